"""What a server tells its operator: the figures, who may read them, and what watching costs the way of a message."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any
from unittest import mock
from urllib.error import HTTPError
from urllib.request import Request, urlopen

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families
from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder
from tests.processes import freePort, startServer
from tests.test_service import parse
from tests.test_web import WebTestCase
from wecompany import metrics
from wecompany.interfaces import CallSession
from wecompany.limits import Limits
from wecompany.metrics import Metrics, MetricsMissing
from wecompany.server import SWEEP_EVERY, ServerObserver, WeCompanyFactory
from wecompany.service import CannotStart, makeService
from wecompany.testing import FakeClient, MemoryServer
from wecompany.web.site import WebSite
from wecompany.wire import ErrorCode, MessageType, encodeFrame

TEXT = MessageType.TEXT
HEARTBEAT = MessageType.HEARTBEAT

OFTEN = Limits().changed("text=1M:1M")
"""Texts are looked at by the limit after each ten thousand of them."""

PASSWORD = "p\u00e4ss:word"


def values(text: bytes) -> dict[str, float]:
    """Return the samples of a text by name and labels, as they stand in it."""
    lines = (line for line in text.decode().splitlines() if not line.startswith("#"))
    return {name: float(value) for name, value in (line.rsplit(" ", 1) for line in lines)}


class MetricsTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.serve()

    def serve(self, **options: Any) -> None:
        """Begin with another server."""
        self.server = MemoryServer(**options)
        self.addCleanup(self.server.close)
        self.metrics = Metrics(self.server.factory)

    def value(self, name: str) -> float:
        """Return one sample."""
        return values(self.metrics.render())["wecompany_" + name]

    def call(self) -> tuple[FakeClient, FakeClient, bytes]:
        """Return a caller, a callee whom it rings, and the call's ID."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.send(MessageType.CALL_REQUEST, "bob", b"\1")
        alice.received()
        return alice, bob, bob.received()[0].data[:16]


class FiguresTests(MetricsTestCase):
    def test_people(self) -> None:
        """Connections, users online and registrations are counted, each as what it is."""
        self.assertEqual(self.value("connections"), 0)
        alice = self.server.login("alice")
        self.server.login("bob"), self.server.connect()
        self.assertEqual([self.value(name) for name in ("connections", "users_online")], [3, 2])
        alice.drop()
        self.server.login("alice")
        self.assertEqual(
            [self.value(name) for name in ("connections", "users_online", "registrations_total")], [3, 2, 3]
        )

    def test_oneFrame(self) -> None:
        """A frame that is passed on counts once in each direction, with all its bytes."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.send(TEXT, "bob", b"hello")
        self.assertEqual(len(bob.received()), 1)
        size = len(encodeFrame(TEXT, b"bob", b"hello"))
        for direction, more in (("in", 0), ("out", 2)):  # "alice" is longer than "bob"
            labels = f'{{direction="{direction}",type="text"}}'
            self.assertEqual(self.value(f"messages_total{labels}"), 1)
            self.assertEqual(self.value(f"message_bytes_total{labels}"), size + more)

    def test_run(self) -> None:
        """A run of frames counts as its frames do, be it passed on as it came or not."""
        bob = self.server.login("bob")
        frames = b"".join(encodeFrame(TEXT, b"bob", bytes(n)) for n in range(5))
        for i, rest in enumerate((b"", frames[:4])):
            alice = self.server.login(f"alice{i}")
            alice.transport.write(frames + rest)
            self.assertEqual(len(bob.received()), 5)
            for direction, more in (("in", 0), ("out", 3 * 5)):
                labels = f'{{direction="{direction}",type="text"}}'
                self.assertEqual(self.value(f"messages_total{labels}"), 5 * (i + 1))
                self.assertEqual(self.value(f"message_bytes_total{labels}"), (len(frames) + more) * (i + 1))

    def test_types(self) -> None:
        """Each type counts for itself, in a group of frames too; what is none counts as other, whatever it says."""
        alice = self.server.connect()
        alice.send(MessageType.LOGIN, "alice")
        alice.send(99, "", b"?")
        alice.send(255, "", b"?")
        alice.received()
        names = ("login", "auth_response", "heartbeat", "error", "other")
        for direction, expected in (("in", [1, 0, 0, 0, 2]), ("out", [0, 1, 1, 2, 0])):
            found = [self.value(f'messages_total{{direction="{direction}",type="{name}"}}') for name in names]
            self.assertEqual(found, expected, direction)

    def test_lastWord(self) -> None:
        """The ERROR before a server closes counts as sent, and the closing by its reason."""
        self.server.connect().send(HEARTBEAT, "")
        self.assertEqual(self.value('messages_total{direction="out",type="error"}'), 1)
        self.assertEqual(self.value('connections_closed_total{reason="NOT_REGISTERED"}'), 1)

    def test_everythingThatIsCounted(self) -> None:
        """What is counted under a name becomes a counter with that as its label, and nothing is left out."""
        count = self.server.factory.count
        for n, (what, name) in enumerate(
            (
                ("limits hit: text", 'limits_hit_total{limit="text"}'),
                ("errors: OFFLINE", 'errors_total{code="OFFLINE"}'),
                ("connections closed: IDLE", 'connections_closed_total{reason="IDLE"}'),
                ("registrations refused: FORBIDDEN", 'registrations_refused_total{reason="FORBIDDEN"}'),
                ("media dropped: audio, too late", 'media_dropped_total{class="audio",reason="too late"}'),
                ("media dropped: video, it waits", 'media_dropped_total{class="video",reason="it waits"}'),
                ("media dropped: no call, or so", 'media_dropped_total{class="unknown",reason="no call, or so"}'),
                ("registered by token", 'log_ins_total{by="token"}'),
                ("store: texts refused", 'events_total{event="store: texts refused"}'),
                ("wrong passwords", 'events_total{event="wrong passwords"}'),
            ),
            1,
        ):
            count(what, n)
            self.assertEqual(self.value(name), n)

    def test_queued(self) -> None:
        """The bytes that wait for receivers are told, by their class."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        bob.transport.pauseProducing()
        for _ in range(3):
            alice.send(TEXT, "bob", bytes(60_000))
            self.server.pump()
        self.assertEqual(self.value('queued_bytes{class="texts"}'), self.server.factory.traffic.waiting)
        self.assertGreater(self.server.factory.traffic.waiting, 0)
        bob.transport.resumeProducing()
        bob.received()
        self.assertEqual(self.value('queued_bytes{class="texts"}'), 0)

    def test_noUserInALabel(self) -> None:
        """Whatever users call themselves and each other, no label has it, and the number of samples stays."""

        self.serve(limits=Limits.none())

        def play(name: str) -> None:
            alice, bob = self.server.login(name), self.server.login(name + "2")
            for messageType in range(20):
                alice.send(messageType, name + "2", name.encode())
                alice.send(messageType, name + "3", name.encode())
            alice.received(), bob.received()
            alice.drop()
            bob.drop()
            self.server.advance(90)

        play("mallory")
        before = self.metrics.render()
        play('zz"}\\')
        after = self.metrics.render()
        self.assertEqual(set(values(before)), set(values(after)))
        self.assertNotIn(b"mallory", after)
        self.assertNotIn(b"zz", after)


class CallsTests(MetricsTestCase):
    def states(self) -> tuple[float, float]:
        return self.value('calls{state="ringing"}'), self.value('calls{state="active"}')

    def test_call(self) -> None:
        """A call rings, is active and over; how long it took to be taken and how long it lasted is kept."""
        alice, bob, callId = self.call()
        self.assertEqual(self.states(), (1, 0))
        self.server.advance(4)
        bob.send(MessageType.CALL_ACCEPT, "alice", callId)
        bob.received()
        self.assertEqual(self.states(), (0, 1))
        self.assertEqual(self.value("call_setup_seconds_count"), 1)
        self.assertAlmostEqual(self.value("call_setup_seconds_sum"), 4, delta=0.1)
        self.server.advance(50)
        alice.send(MessageType.CALL_END, "bob", callId)
        alice.received()
        self.assertEqual(self.states(), (0, 0))
        self.assertAlmostEqual(self.value("call_duration_seconds_sum"), 50, delta=0.1)
        self.assertEqual(self.value('calls_ended_total{outcome="hung_up"}'), 1)

    def test_notTaken(self) -> None:
        """A call that is not taken, or could not even ring, counts by how that came, and has no duration."""
        alice, bob, callId = self.call()
        bob.send(MessageType.CALL_REJECT, "alice", callId + b"\0")
        bob.received()
        alice.send(MessageType.CALL_REQUEST, "nobody", b"\1")
        alice.received()
        self.assertEqual(self.states(), (0, 0))
        for outcome, n in (("declined", 1), ("offline", 1), ("busy", 0), ("hung_up", 0)):
            self.assertEqual(self.value(f'calls_ended_total{{outcome="{outcome}"}}'), n)
        self.assertEqual(self.value("call_duration_seconds_count"), 0)

    def test_endedAtOnce(self) -> None:
        """A call that another observer ends as soon as it rings does not ring for ever."""
        server = MemoryServer()
        self.addCleanup(server.close)

        class Strict(ServerObserver):
            def callInitiated(self, session: CallSession) -> None:
                server.factory.calls.endCall(session.callId)

        server.factory.addObserver(Strict())
        self.server, self.metrics = server, Metrics(server.factory)
        self.call()
        self.assertEqual(self.states(), (0, 0))
        self.assertEqual(self.value('calls_ended_total{outcome="cancelled"}'), 1)


class StoreTests(MetricsTestCase):
    def test_store(self) -> None:
        """A store tells of its transactions; without one nothing is said of any."""
        self.assertNotIn(b"wecompany_store", self.metrics.render())
        self.serve(database=temporaryFolder(self) / "store.sqlite")
        before = self.value("store_commits_total")
        alice, bob = self.server.login("alice"), self.server.login("bob")
        bob.drop()
        alice.send(TEXT, "bob", b"later")
        self.server.advance(1)
        self.assertGreater(self.value("store_commits_total"), before)
        self.assertEqual(self.value("store_texts_kept_total"), 1)
        self.assertEqual([self.value(f"store_{name}") for name in ("failures_total", "pending_bytes")], [0, 0])


class LatenessTests(MetricsTestCase):
    def test_lag(self) -> None:
        """How late the reactor is, is looked at each second while somebody is connected."""
        self.server.advance(5)
        self.assertEqual(self.value("reactor_lag_seconds_count"), 0)
        self.server.login("alice")
        self.server.clock.advance(SWEEP_EVERY)
        self.assertEqual((self.value("reactor_lag_seconds_count"), self.value("reactor_lag_seconds_sum")), (1, 0))
        self.server.clock.advance(SWEEP_EVERY + 0.25)
        self.assertEqual(self.value("reactor_lag_seconds_count"), 2)
        self.assertAlmostEqual(self.value("reactor_lag_seconds_sum"), 0.25)

    def test_relay(self) -> None:
        """One message a second is timed, or one run of them; all others are passed on by the methods themselves."""
        self.serve(limits=OFTEN)
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.send(TEXT, "bob")  # the first is looked at by the limit
        bob.received()
        factory = self.server.factory
        self.assertNotIn("relay", vars(factory))
        for n, frames in enumerate((1, 3, 1), 1):
            self.server.clock.advance(SWEEP_EVERY)
            self.assertIn("relay", vars(factory))
            for _ in range(2):
                alice.transport.write(encodeFrame(TEXT, b"bob", b"hello") * frames)
                self.assertEqual(len(bob.received()), frames)
                self.assertNotIn("relay", vars(factory))
                self.assertNotIn("relayRun", vars(factory))
            self.assertEqual(self.value("relay_seconds_count"), n)

    def test_notRelayed(self) -> None:
        """What is not just passed on is not timed, and happens as ever."""
        alice = self.server.login("alice")
        self.server.clock.advance(SWEEP_EVERY)
        alice.send(TEXT, "nobody", b"hello")
        self.assertEqual(alice.received()[0].data[0], ErrorCode.OFFLINE)
        self.assertNotIn("relay", vars(self.server.factory))
        self.assertEqual(self.value("relay_seconds_count"), 0)

    def test_otherWatchers(self) -> None:
        """Who has watched the sweeps before goes on to."""
        late: list[float] = []
        server = MemoryServer()
        self.addCleanup(server.close)
        server.factory.swept = late.append
        Metrics(server.factory)
        server.login("alice")
        server.clock.advance(SWEEP_EVERY)
        self.assertEqual(late, [0])


class FastWayTests(SynchronousTestCase):
    """Whether a text takes the short way, where no observer is told of messages."""

    class Quiet(ServerObserver):
        """Wants no messages."""

    class Curious(ServerObserver):
        """Wants them."""

        def __init__(self) -> None:
            self.heard: list[bytes] = []

        def messageReceived(self, fromUser: str, toUser: str, messageType: int, data: bytes) -> None:
            """Keep it."""
            self.heard.append(data)

    class Foreign:
        """Has nothing of ServerObserver's, and wants them."""

        def __getattr__(self, name: str) -> Any:
            return lambda *arguments: None

    def isRelayed(self, server: MemoryServer) -> list[bool]:
        """Return whether a text is just passed on, one alone and a run."""
        if "alice" not in server.factory.getOnlineUsers():
            self.alice, self.bob = server.login("alice"), server.login("bob")
            self.alice.send(TEXT, "bob")  # the first is looked at by the limit
            self.bob.received()
        with mock.patch.object(WeCompanyFactory, "frameReceived", autospec=True) as slow:
            results = []
            for n in (1, 2):
                self.alice.transport.write(encodeFrame(TEXT, b"bob", b"hello") * n)
                results.append(len(self.bob.received()) == n)
            self.assertEqual(slow.called, not all(results))
        return results

    def make(self, *observers: Any) -> MemoryServer:
        server = MemoryServer(observers=observers, limits=OFTEN)
        self.addCleanup(server.close)
        return server

    def test_quiet(self) -> None:
        """An observer that has no use for messages, as the metrics have none, leaves the short way open."""
        server = self.make(self.Quiet())
        server.factory.addObserver(self.Quiet())
        Metrics(server.factory)
        self.assertEqual(self.isRelayed(server), [True, True])

    def test_curious(self) -> None:
        """An observer that wants messages closes it, given at once or added, until the last such is removed."""
        anyone: tuple[Any, ...] = self.Curious(), self.Foreign()
        for curious in anyone:
            server = self.make(curious)
            self.assertEqual(self.isRelayed(server), [False, False])
            server.factory.removeObserver(curious)
            self.assertEqual(self.isRelayed(server), [True, True])
            server.factory.addObserver(curious)
            self.assertEqual(self.isRelayed(server), [False, False])

    def test_told(self) -> None:
        """An observer that wants messages is told of each, beside one that does not."""
        curious = self.Curious()
        server = self.make(self.Quiet(), curious)
        alice, bob = server.login("alice"), server.login("bob")
        alice.transport.write(encodeFrame(TEXT, b"bob", b"one"))
        alice.transport.write(encodeFrame(TEXT, b"bob", b"two") * 2)
        bob.received()
        self.assertEqual(curious.heard, [b"one", b"two", b"two"])


class FormatTests(MetricsTestCase):
    def fill(self) -> bytes:
        """Return the text of a server with something in all families."""
        self.serve(database=temporaryFolder(self) / "store.sqlite")
        for prefix in metrics._FAMILIES:
            self.server.factory.count(f"{prefix}: x")
        self.server.factory.count("registered by token")
        self.server.factory.count('something "else"\\\n')
        self.call()
        self.server.advance(3)
        return self.metrics.render()

    def test_wellFormed(self) -> None:
        """The text can be read by another reader, and all names are the project's or a process's."""
        families = list(text_string_to_metric_families(self.fill().decode()))
        names = [family.name for family in families]
        self.assertEqual(len(names), len(set(names)))
        self.assertEqual([name for name in names if not name.startswith(("wecompany_", "process_", "python_"))], [])
        self.assertTrue(all(family.documentation for family in families))

    def test_promtool(self) -> None:
        """Prometheus' own checker has nothing to say against it."""
        promtool = shutil.which("promtool")
        if promtool is None:
            self.skipTest("promtool is not installed: it is part of Prometheus")
        done = subprocess.run(
            [promtool, "check", "metrics"], input=self.fill(), capture_output=True, timeout=60, check=False
        )
        self.assertEqual((done.returncode, done.stdout, done.stderr), (0, b"", b""))

    def test_documented(self) -> None:
        """docs/metrics.rst tells of each of the project's metrics, and of none that is not there."""
        page = Path(__file__).parent.parent / "docs" / "metrics.rst"
        told = set(re.findall(r"``(wecompany_\w+)", page.read_text("utf-8")))
        found = re.findall(r"^# TYPE (wecompany_\w+) ", self.fill().decode(), re.M)
        self.assertEqual(told, {name for name in found if not name.endswith("_created")})

    def test_ownRegistry(self) -> None:
        """Two servers in one process share nothing, and the global registry knows of neither."""
        from prometheus_client import REGISTRY, generate_latest

        other = MemoryServer()
        self.addCleanup(other.close)
        others = Metrics(other.factory)
        self.server.login("alice")
        self.assertEqual(self.value("users_online"), 1)
        self.assertEqual(values(others.render())["wecompany_users_online"], 0)
        self.assertNotIn(b"wecompany", generate_latest(REGISTRY))

    def test_missing(self) -> None:
        """Without prometheus_client that is said, with what to install; the server is as it was."""
        without = mock.patch.dict(sys.modules, {"prometheus_client": None})
        with without, self.assertRaises(MetricsMissing) as raised:
            Metrics(self.server.factory)
        self.assertIn("wecompany[metrics]", str(raised.exception))


class PageTests(WebTestCase):
    """C{/metrics} and C{/health}."""

    local = "Host: localhost:8080"

    def at(self, path: str, *headers: str, address: str = "127.0.0.1", method: str = "GET") -> tuple[int, bytes]:
        """Return code and body of an answer."""
        client = self.connect(address)
        client.sendBytes("\r\n".join((f"{method} {path} HTTP/1.1", *headers, "", "")).encode("latin-1"))
        self.headers = client.statusAndHeaders()[1]
        return client.statusAndHeaders()[0], client.head.partition(b"\r\n\r\n")[2]

    def protect(self) -> None:
        """Go on with a password."""
        self.site = WebSite(
            self.server.factory, self.server.clock, folder=self.folder, statusPassword=PASSWORD.encode()
        )

    def authorization(self, password: str, user: str = "ops") -> str:
        return "Authorization: Basic " + b64encode(f"{user}:{password}".encode()).decode()

    def test_metrics(self) -> None:
        """/metrics on the own machine is the text, not to be kept; HEAD has its headers alone."""
        for host in ("localhost:8080", "localhost", "127.0.0.1:8080", "[::1]:8080", "[::1]"):
            code, body = self.at("/metrics", f"Host: {host}")
            self.assertEqual((code, "wecompany_connections" in body.decode()), (200, True), host)
        self.assertIn("text/plain", self.headers["Content-Type"])
        self.assertEqual(self.headers["Cache-Control"], "no-store")
        for address in ("::1", "::ffff:127.0.0.1"):
            self.assertEqual(self.at("/metrics", self.local, address=address)[0], 200)
        self.assertEqual(self.at("/metrics", self.local, method="HEAD"), (200, b""))
        self.assertEqual(self.at("/metrics/x", self.local)[0], 404)

    def test_fromElsewhere(self) -> None:
        """Others get nothing, be it directly, through a proxy on this machine, or by a page with a name of theirs."""
        for address in ("192.0.2.1", "::2", "::ffff:192.0.2.1"):
            self.assertEqual(self.at("/metrics", self.local, address=address)[0], 403)
        for header in ("X-Forwarded-For: 192.0.2.1", "Forwarded: for=192.0.2.1", "Via: 1.1 x", "X-Real-IP: 192.0.2.1"):
            self.assertEqual(self.at("/metrics", self.local, header)[0], 403)
        for host in ("Host: evil.example", "Host: localhost.evil.example", "Host: 192.0.2.1", "Host: ", "X: y"):
            code, body = self.at("/metrics", host)
            self.assertIn(code, (400, 403), host)
            self.assertNotIn(b"wecompany_", body)

    def test_password(self) -> None:
        """With a password everybody needs it, and it will do from anywhere."""
        self.protect()
        good = self.authorization(PASSWORD)
        for address in ("127.0.0.1", "192.0.2.1"):
            self.assertEqual(self.at("/metrics", self.local, good, address=address)[0], 200)
            code, body = self.at("/metrics", self.local, address=address)
            self.assertEqual((code, b"wecompany_" in body), (401, False))
            self.assertTrue(self.headers["WWW-Authenticate"].startswith("Basic "))
        self.assertNotIn("web requests refused: wrong status password", self.server.factory.counters)

    def test_wrongPassword(self) -> None:
        """Anything but the password is refused, and counted."""
        self.protect()
        wrong = [self.authorization(other) for other in ("", PASSWORD + "x", PASSWORD[:-1], "x")]
        wrong += [
            "Authorization: Basic",
            "Authorization: Basic ????",
            "Authorization: Bearer x",
            "Authorization: x y z",
        ]
        wrong += [self.authorization(PASSWORD).replace("Basic", "Digest")]
        for header in wrong:
            code, body = self.at("/metrics", self.local, header)
            self.assertEqual((code, b"wecompany_" in body), (401, False), header)
        self.assertEqual(self.server.factory.counters["web requests refused: wrong status password"], len(wrong))

    def test_missing(self) -> None:
        """Without prometheus_client the page works, and /metrics says what to install."""
        with mock.patch.dict(sys.modules, {"prometheus_client": None}):
            self.serve()
        self.assertEqual(self.at("/", self.local)[0], 200)
        code, body = self.at("/metrics", self.local)
        self.assertEqual((code, b"wecompany[metrics]" in body), (501, True))

    @given(st.text(st.characters(min_codepoint=32, max_codepoint=255, exclude_characters="\x7f"), max_size=40))
    def test_anyAuthorization(self, words: str) -> None:
        """No header lets in or breaks anything."""
        self.setUp()
        self.protect()
        self.assertEqual(self.at("/metrics", self.local, f"Authorization: Basic {words}")[0], 401)

    def test_health(self) -> None:
        """A server that runs is live and ready, and says so to anybody."""
        for path, text in (("/health", b"ready\n"), ("/health/ready", b"ready\n"), ("/health/live", b"live\n")):
            self.assertEqual(self.at(path, "Host: x.example", address="192.0.2.1"), (200, text))
        self.assertEqual(self.at("/health/x", self.local)[0], 404)
        self.assertEqual(self.at("/health", self.local, method="HEAD"), (200, b""))

    def test_stopping(self) -> None:
        """One that stops is live and not ready, until it has stopped."""
        client = self.server.login("alice")
        client.transport.pauseProducing()
        self.server.factory.stopServer()
        self.assertEqual(self.at("/health/ready", self.local)[0], 503)
        self.assertEqual(self.at("/health/live", self.local)[0], 200)
        self.server.advance(10)
        self.assertEqual(self.at("/health/ready", self.local)[0], 200)

    def test_storeFails(self) -> None:
        """One whose store does not work is not ready until it does again."""
        self.serve(database=temporaryFolder(self) / "store.sqlite")
        self.assertEqual(self.at("/health", self.local)[0], 200)
        store: Any = self.server.factory.store
        store._tellFailing("the disk is full")
        self.assertEqual(self.at("/health", self.local), (503, b"the store does not work\n"))
        self.assertEqual(self.at("/health/live", self.local)[0], 200)
        alice, bob = self.server.login("alice"), self.server.login("bob")
        bob.drop()
        alice.send(TEXT, "bob", b"later")
        self.server.advance(1)
        self.assertEqual(self.at("/health", self.local)[0], 200)


class OptionsTests(SynchronousTestCase):
    def complaint(self, *words: str) -> str:
        """Return the one line that says what is wrong with a command line."""
        with self.assertRaises(CannotStart) as raised:
            makeService(parse(*words), self.clock)
        self.assertNotIn("\n", str(raised.exception))
        return str(raised.exception)

    def setUp(self) -> None:
        from twisted.internet.testing import MemoryReactorClock

        self.clock: Any = MemoryReactorClock()
        self.folder = temporaryFolder(self)

    def test_statusPassword(self) -> None:
        """--status-password goes with --web, and names a file with something in it."""
        self.assertIn("goes with --web", self.complaint("--status-password", "x"))
        self.assertIn("No such file", self.complaint("--web", "0", "--status-password", str(self.folder / "none")))
        empty = self.folder / "empty"
        empty.write_text("\n")
        self.assertIn("is empty", self.complaint("--web", "0", "--status-password", str(empty)))


class ProgramTests(SynchronousTestCase):
    """The installed program."""

    def test_served(self) -> None:
        """twistd with --web serves health to all and metrics to who knows the password in the file."""
        port = freePort()
        secret = temporaryFolder(self) / "password"
        secret.write_text(PASSWORD + "\n", encoding="utf-8")
        server = startServer(freePort(), "--web", str(port), "--status-password", str(secret))
        self.addCleanup(server.end)
        url = f"http://127.0.0.1:{port}"
        with urlopen(f"{url}/health", timeout=30) as answer:
            self.assertEqual((answer.status, answer.read()), (200, b"ready\n"))
        with self.assertRaises(HTTPError) as raised:
            urlopen(f"{url}/metrics", timeout=30)
        raised.exception.close()
        self.assertEqual(raised.exception.code, 401)
        authorization = "Basic " + b64encode(f"prometheus:{PASSWORD}".encode()).decode()
        with urlopen(Request(f"{url}/metrics", headers={"Authorization": authorization}), timeout=30) as answer:
            found = values(answer.read())
        self.assertEqual(found["wecompany_connections"], 0)
        self.assertIn("wecompany_store_commits_total", found)
