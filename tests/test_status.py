"""The page for the operator: its figures, who may see them, its files, and the dashboard with the same figures."""

from __future__ import annotations

import gzip
import json
import re
import shutil
import sqlite3
import subprocess
import sys
from base64 import b64encode
from collections import Counter
from pathlib import Path
from typing import Any
from unittest import mock, skipUnless

from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder
from tests.test_pages import NODE, PAGES, _Markup
from tests.test_store import StoreTestCase
from tests.test_web import WebTestCase
from wecompany.backlog import Backlog, Class
from wecompany.limits import Limits
from wecompany.metrics import Metrics
from wecompany.outbound import CLASSES
from wecompany.server import PROBE_TIMEOUT, SWEEP_EVERY
from wecompany.store import RETRY_AFTER
from wecompany.testing import FakeClient, MemoryServer
from wecompany.web import site
from wecompany.web.history import FIELDS, MAX_SAMPLES, MAX_TIMED, SAMPLE_EVERY, History
from wecompany.web.site import WebSite
from wecompany.wire import MediaKind, MessageType, encodeFrame

ROOT = Path(__file__).parent.parent
STATUS = ROOT / "wecompany" / "web" / "status"
DASHBOARD = ROOT / "docs" / "grafana.json"
PROMTOOL = shutil.which("promtool")

MAX_SIZE = 12_000
"""Bytes of the page and what it loads, compressed as a browser asks for them."""

MAX_SOURCE = 25_000
"""Bytes of its own files as they stand in the package."""

TEXT = MessageType.TEXT
PASSWORD = "p\u00e4ss:word"


class HistoryTestCase(SynchronousTestCase):
    """A server in memory, and its history, which has begun."""

    def setUp(self) -> None:
        self.serve()

    def serve(self, **options: Any) -> None:
        """Begin with another server."""
        self.server = MemoryServer(**options)
        self.addCleanup(self.server.close)
        self.clock = self.server.clock
        self.history = History(self.server.factory, self.clock)
        self.history.start()

    def told(self, after: int = 0) -> dict[str, Any]:
        """Return what the page is told."""
        found: dict[str, Any] = json.loads(self.history.render(after))
        return found

    def samples(self, after: int = 0) -> list[dict[str, Any]]:
        """Return the samples that the page is told of."""
        told = self.told(after)
        return [dict(zip(told["fields"], row, strict=True)) for row in told["samples"]]

    def sample(self, seconds: float = SAMPLE_EVERY) -> dict[str, Any]:
        """Let that time pass, and return the newest sample."""
        self.server.advance(seconds)
        return self.samples()[-1]

    def call(self) -> tuple[FakeClient, FakeClient, bytes]:
        """Return a caller, a callee whom it rings, and the call's ID."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.send(MessageType.CALL_REQUEST, "bob", b"\1")
        alice.received()
        return alice, bob, bob.received()[0].data[:16]


class SamplesTests(HistoryTestCase):
    """When there is a sample, and how many are kept."""

    def test_every(self) -> None:
        """There is a sample each ten seconds from the start on, whether anybody is connected or not."""
        self.server.advance(SAMPLE_EVERY - 0.01)
        self.assertEqual(self.samples(), [])
        self.server.advance(0.01)
        self.assertEqual([one["at"] for one in self.samples()], [10_000])
        self.server.login("alice")
        self.server.advance(2 * SAMPLE_EVERY)
        self.assertEqual([one["at"] for one in self.samples()], [10_000, 20_000, 30_000])

    def test_anHour(self) -> None:
        """An hour of samples is kept: one more, and the oldest is gone."""
        self.assertEqual(MAX_SAMPLES * SAMPLE_EVERY, 3_600)
        self.server.advance(MAX_SAMPLES * SAMPLE_EVERY)
        self.assertEqual((len(self.samples()), self.samples()[0]["at"]), (MAX_SAMPLES, 10_000))
        self.server.advance(SAMPLE_EVERY)
        self.assertEqual((len(self.samples()), self.samples()[0]["at"]), (MAX_SAMPLES, 20_000))

    def test_stopped(self) -> None:
        """When it is stopped nothing wakes the server up for it; what was kept is there when it goes on."""
        self.server.advance(SAMPLE_EVERY)
        self.history.stop()
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.server.advance(100)
        self.assertEqual(len(self.samples()), 1)
        self.history.start()
        self.server.advance(SAMPLE_EVERY)
        self.assertEqual([one["at"] for one in self.samples()], [10_000, 120_000])
        self.history.stop()
        self.history.stop()

    def test_onlyNewer(self) -> None:
        """Who has some samples already is told of those that came later."""
        self.server.advance(3 * SAMPLE_EVERY)
        for after, n in ((0, 3), (9_999, 3), (10_000, 2), (20_000, 1), (29_999, 1), (30_000, 0), (10**15, 0)):
            self.assertEqual(len(self.samples(after)), n, after)

    def test_asleep(self) -> None:
        """A process that slept has no samples of that time, and the next one tells of all of it by its length."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        self.server.advance(SAMPLE_EVERY)
        for _ in range(31):
            alice.send(TEXT, "bob", b"hello")
        self.clock.advance(310)
        bob.received()
        first, second = self.samples()
        self.assertEqual((first["at"], second["at"]), (10_000, 320_000))
        self.assertAlmostEqual(second["messagesIn"], 31 / 310)

    def test_clockSetBack(self) -> None:
        """When the clock is set back, what was kept would lie in the future: it is forgotten, and all goes on."""
        self.server.advance(3 * SAMPLE_EVERY)
        self.clock.rightNow -= 25
        for call in self.clock.getDelayedCalls():
            call.reset(SAMPLE_EVERY)
        self.server.advance(SAMPLE_EVERY)
        self.assertEqual(self.samples(), [])
        self.assertEqual(self.sample()["at"], 25_000)

    def test_shape(self) -> None:
        """What the page is told names its fields, and is a number, or nothing, in each of them."""
        self.server.login("alice")
        self.server.advance(SAMPLE_EVERY)
        told = self.told()
        self.assertEqual(set(told), {"now", "every", "state", "current", "fields", "samples"})
        self.assertEqual((told["now"], told["every"], told["state"]), (10_000, SAMPLE_EVERY, "running"))
        self.assertEqual(told["fields"], list(FIELDS))
        (row,) = told["samples"]
        self.assertEqual({type(value) for value in row} - {int, float, type(None)}, set())
        self.assertLess(len(json.dumps(row)) * MAX_SAMPLES, 60_000)


class FiguresTests(HistoryTestCase):
    """What is in a sample."""

    def test_people(self) -> None:
        """Connections and users are those that there are at its time, and now."""
        alice = self.server.login("alice")
        self.server.connect()
        sample = self.sample(SAMPLE_EVERY)
        self.assertEqual((sample["connections"], sample["users"]), (2, 1))
        alice.drop()
        current = self.told()["current"]
        self.assertEqual((current["connections"], current["users"]), (1, 0))
        self.assertEqual(self.samples()[-1], sample)

    def test_messages(self) -> None:
        """Messages and bytes are told by the second, in both directions, each sample for its own time."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        self.server.advance(SAMPLE_EVERY)
        for _ in range(20):
            alice.send(TEXT, "bob", b"hello")
        bob.received()
        sample = self.sample()
        self.assertEqual((sample["messagesIn"], sample["messagesOut"]), (2, 2))
        size = len(encodeFrame(TEXT, b"bob", b"hello"))
        self.assertEqual((sample["bytesIn"], sample["bytesOut"]), (2 * size, 2 * (size + 2)))
        sample = self.sample()
        self.assertEqual([sample[name] for name in ("messagesIn", "messagesOut", "bytesIn", "bytesOut")], [0] * 4)

    def test_nobody(self) -> None:
        """While nobody is connected there is nothing of anything, and latencies are not known."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.send(TEXT, "bob", b"hello")
        alice.drop()
        bob.drop()
        self.assertEqual(self.sample()["messagesIn"], 0.3)
        self.server.advance(7 * SAMPLE_EVERY)
        for sample in self.samples()[1:]:
            self.assertEqual({sample[name] for name in FIELDS[1:-4]}, {0})
            self.assertEqual({sample[name] for name in FIELDS[-4:]}, {None})
        self.server.login("carol")
        self.assertEqual(self.sample()["connections"], 1)

    def test_calls(self) -> None:
        """A call rings, is active, and is over."""
        alice, bob, callId = self.call()
        sample = self.sample()
        self.assertEqual((sample["callsRinging"], sample["callsActive"]), (1, 0))
        bob.send(MessageType.CALL_ACCEPT, "alice", callId)
        sample = self.sample()
        self.assertEqual((sample["callsRinging"], sample["callsActive"]), (0, 1))
        alice.send(MessageType.CALL_END, "bob", callId)
        sample = self.sample()
        self.assertEqual((sample["callsRinging"], sample["callsActive"]), (0, 0))

    def test_troubles(self) -> None:
        """Drops, errors and limits that are hit are told by the second, whatever their kind."""
        count = self.server.factory.count
        count("media dropped: audio, x", 10), count("media dropped: too long", 20)
        count("errors: OFFLINE", 40), count("connections closed: IDLE", 30)
        count("limits hit: text", 50), count("wrong passwords", 100)
        sample = self.sample()
        self.assertEqual([sample[name] for name in ("dropped", "errors", "limits")], [3, 7, 5])

    def test_queued(self) -> None:
        """The bytes that wait for receivers are told."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        bob.transport.pauseProducing()
        for _ in range(3):
            alice.send(TEXT, "bob", bytes(60_000))
        self.assertGreater(self.server.factory.traffic.waiting, 0)
        self.assertEqual(self.sample()["queuedBytes"], self.server.factory.traffic.waiting)
        bob.transport.resumeProducing()
        bob.received()
        self.assertEqual(self.sample()["queuedBytes"], 0)

    def test_lag(self) -> None:
        """The reactor's lag is the median and the highest of what was seen in the time of the sample."""
        self.server.login("alice")
        for late in (0, 0.25, 0, 0.5, 0.125):
            self.clock.advance(SWEEP_EVERY + late)
        sample = self.sample(SAMPLE_EVERY - self.clock.seconds())
        self.assertEqual(sample["lagMost"], 0.5)
        self.assertEqual(sample["lagMedian"], 0)
        self.assertEqual(self.sample()["lagMost"], 0)

    def test_relay(self) -> None:
        """So is the time that a relay takes, and all messages but one a second take their usual way."""
        self.serve(limits=Limits().changed("text=1M:1M"))
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.send(TEXT, "bob")  # the first is looked at by the limit
        write = bob.transport.other.write
        for took in (0.001, 0.002, 0.004):
            self.clock.advance(SWEEP_EVERY)

            def slow(data: bytes, took: float = took) -> None:
                self.clock.rightNow += took
                write(data)

            with mock.patch.object(bob.transport.other, "write", slow):
                alice.send(TEXT, "bob", b"hello")
            self.assertNotIn("relay", vars(self.server.factory))
        sample = self.sample()
        self.assertAlmostEqual(sample["relayMedian"], 0.002)
        self.assertAlmostEqual(sample["relayMost"], 0.004)
        self.assertIsNone(self.sample()["relayMost"])

    def test_twoWatchers(self) -> None:
        """The metrics beside it are told of the same relays, and an idle hour leaves nothing behind."""
        self.serve(limits=Limits().changed("text=1M:1M"))
        metrics = Metrics(self.server.factory)
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.send(TEXT, "bob")
        for _ in range(50):
            self.clock.advance(SWEEP_EVERY)
        self.assertEqual(len(self.server.factory._relayTimers), 2)
        alice.send(TEXT, "bob", b"hello")
        self.assertEqual(self.server.factory._relayTimers, [])
        self.assertIn(b"wecompany_relay_seconds_count 1.0", metrics.render())
        self.assertEqual(len(self.history._relays), 1)
        self.assertEqual(len(bob.received()), 2)

    def test_timedAtMost(self) -> None:
        """However often it is swept, no more latencies are kept than are said."""
        for late in range(MAX_TIMED + 5):
            self.server.factory.swept(late)
        self.assertEqual(len(self.history._lags), MAX_TIMED)

    def test_otherWatchers(self) -> None:
        """Who has watched the sweeps before goes on to."""
        late: list[float] = []
        self.server.factory.swept = late.append
        History(self.server.factory, self.clock)
        self.server.factory.swept(0.5)
        self.assertEqual(late, [0.5])

    def test_state(self) -> None:
        """The page is told when the server stops, and when its store does not work; without a store, of none."""
        current = self.told()["current"]
        self.assertEqual((current["storeOperations"], current["storeLag"]), (None, None))
        self.serve(database=temporaryFolder(self) / "store.sqlite")
        self.assertEqual((self.told()["state"], self.told()["current"]["storeLag"]), ("running", 0))
        store: Any = self.server.factory.store
        store._tellFailing("the disk is full")
        self.assertEqual(self.told()["state"], "failing")
        self.server.login("alice").transport.pauseProducing()
        self.server.factory.stopServer()
        self.assertEqual(self.told()["state"], "stopping")


class DepthsTests(StoreTestCase):
    """What waits, and for how long."""

    def test_classes(self) -> None:
        """What waits for a receiver is told by its class, and all classes together are all that waits."""
        backlog = Backlog(lambda what: None, False)
        self.assertEqual((backlog.sizes(), len(CLASSES)), ([0] * 5, len(Class)))
        sizes = Counter[str]()
        for n, (kind, data) in enumerate(
            (
                (MessageType.HEARTBEAT, b""),
                (MessageType.MEDIA_DATA, bytes((MediaKind.AUDIO,)) + bytes(11)),
                (MessageType.MEDIA_DATA, bytes((MediaKind.VIDEO_KEY,)) + bytes(11)),
                (TEXT, b"hello"),
                (MessageType.FILE, b"x"),
            )
        ):
            for _ in range(n + 1):
                frame = encodeFrame(kind, b"bob", data)
                backlog.put(frame, 0)
                sizes[CLASSES[n]] += len(frame)
            self.assertEqual(dict(zip(CLASSES, backlog.sizes(), strict=True)), {name: sizes[name] for name in CLASSES})
            self.assertEqual(sum(backlog.sizes()), backlog.size)
        backlog.takeAll()
        self.assertEqual(backlog.sizes(), [0] * 5)

    def test_lag(self) -> None:
        """The store's lag is how long its oldest operation waits, be it in the writer's hands or behind that."""
        self.assertEqual(self.store.lagSeconds, 0)
        self.delay = 5
        self.store.registered(b"alice")
        self.clock.advance(0)
        self.clock.advance(2)
        self.store.registered(b"bob")
        for passed, lag in ((0, 2), (1, 3), (1.5, 4.5), (0.5, 3), (4, 7), (1, 0), (1, 0)):
            self.clock.advance(passed)
            self.assertEqual(self.store.lagSeconds, lag, passed)

    def test_lagOfRetried(self) -> None:
        """What could not be written goes on waiting until it is."""
        self.register(b"bob")
        self.keep(b"bob", b"hello")
        (number,) = self.taken()
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        self.store.forget(b"bob", number)
        self.settle()
        self.clock.advance(3)
        self.assertEqual(self.store.lagSeconds, 3)
        other.execute("COMMIT")
        self.clock.advance(RETRY_AFTER)
        self.settle()
        self.assertEqual(self.store.lagSeconds, 0)


class RefusedTests(HistoryTestCase):
    def test_inUse(self) -> None:
        """A registration that is refused as somebody has the ID counts with its reason, accounts or not."""
        alice = self.server.login("alice")
        for n in (1, 2):
            newcomer = self.server.connect()
            newcomer.send(MessageType.HEARTBEAT, "alice")
            alice.send(MessageType.HEARTBEAT, "")
            self.server.advance(PROBE_TIMEOUT)
            self.assertEqual(self.server.factory.counters["registrations refused: ID_IN_USE"], n)


class PageTestCase(WebTestCase):
    local = "Host: localhost:8080"
    paths = ("/status", "/status/data", "/status/status.js", "/status/theme.css", "/metrics")

    def at(self, path: str, *headers: str, address: str = "127.0.0.1", method: str = "GET") -> tuple[int, bytes]:
        """Return code and body of an answer."""
        client = self.connect(address)
        client.sendBytes("\r\n".join((f"{method} {path} HTTP/1.1", *headers, "", "")).encode("latin-1"))
        code, self.headers = client.statusAndHeaders()
        return code, client.head.partition(b"\r\n\r\n")[2]


class AccessTests(PageTestCase):
    """Who may see the page and what it draws: the same as may see C{/metrics}."""

    def authorization(self, password: str) -> str:
        return "Authorization: Basic " + b64encode(f"ops:{password}".encode()).decode()

    def test_here(self) -> None:
        """Without a password they are for this machine."""
        for path in self.paths:
            for host, address in (("localhost", "127.0.0.1"), ("127.0.0.1:8080", "127.0.0.1"), ("[::1]", "::1")):
                self.assertEqual(self.at(path, f"Host: {host}", address=address)[0], 200, path)

    def test_elsewhere(self) -> None:
        """Others get nothing of them, be it directly, through a proxy here, or by a page with a name of theirs."""
        for path in (*self.paths, "/status/nothing"):
            for address in ("192.0.2.1", "::2"):
                self.assertEqual(self.at(path, self.local, address=address)[0], 403, path)
            self.assertEqual(self.at(path, self.local, "X-Forwarded-For: 192.0.2.1")[0], 403, path)
            code, body = self.at(path, "Host: evil.example")
            self.assertEqual((code, b"connections" in body), (403, False), path)

    def test_password(self) -> None:
        """With a password everybody needs it, and it will do from anywhere."""
        self.site = WebSite(self.server.factory, self.server.clock, statusPassword=PASSWORD.encode())
        for path in self.paths:
            for address in ("127.0.0.1", "192.0.2.1"):
                self.assertEqual(self.at(path, self.local, self.authorization(PASSWORD), address=address)[0], 200)
                for headers in ((), (self.authorization(PASSWORD + "x"),), (self.authorization(PASSWORD[:-1]),)):
                    code, body = self.at(path, self.local, *headers, address=address)
                    self.assertEqual((code, b"connections" in body), (401, False), path)
                    self.assertTrue(self.headers["WWW-Authenticate"].startswith("Basic "))
        wrong = self.server.factory.counters["web requests refused: wrong status password"]
        self.assertEqual(wrong, 2 * 2 * len(self.paths))


class AnswersTests(PageTestCase):
    """What is answered there."""

    def test_page(self) -> None:
        """The page and its files come with their types, compressed for who takes that, and once for who has them."""
        for path, kind in (
            ("/status", "text/html; charset=utf-8"),
            ("/status/status.js", "text/javascript; charset=utf-8"),
            ("/status/status.css", "text/css; charset=utf-8"),
            ("/status/theme.css", "text/css; charset=utf-8"),
            ("/status/favicon.svg", "image/svg+xml"),
        ):
            code, body = self.at(path, self.local)
            self.assertEqual((code, self.headers["Content-Type"]), (200, kind))
            self.assertIn("default-src 'self'", self.headers["Content-Security-Policy"])
            self.assertEqual(self.at(path, self.local, method="HEAD"), (200, b""))
            self.assertEqual(int(self.headers["Content-Length"]), len(body))
            code, packed = self.at(path, self.local, "Accept-Encoding: gzip")
            self.assertEqual((gzip.decompress(packed), self.headers["Content-Encoding"]), (body, "gzip"))
            self.assertEqual(
                self.at(path, self.local, "Accept-Encoding: gzip", f"If-None-Match: {self.headers['ETag']}"), (304, b"")
            )

    def test_data(self) -> None:
        """The figures are JSON that nobody is to keep, and HEAD has their headers alone."""
        self.site.doStart()
        self.addCleanup(self.site.doStop)
        self.server.advance(3 * SAMPLE_EVERY)
        code, body = self.at("/status/data", self.local)
        self.assertEqual((code, self.headers["Content-Type"]), (200, "application/json"))
        self.assertEqual((self.headers["Cache-Control"], int(self.headers["Content-Length"])), ("no-store", len(body)))
        self.assertEqual(len(json.loads(body)["samples"]), 3)
        self.assertEqual(self.at("/status/data", self.local, method="HEAD"), (200, b""))

    def test_after(self) -> None:
        """With a time there are only later samples; what is no time is as none."""
        self.site.doStart()
        self.addCleanup(self.site.doStop)
        self.server.advance(3 * SAMPLE_EVERY)
        for query, n in (
            ("after=10000", 2),
            ("after=30000", 0),
            ("after=999999999999999", 0),
            ("after=9999999999999999", 3),
            *((f"after={bad}", 3) for bad in ("", "x", "-1", "1.5", "%D9%A3", "1e3", "9" * 5_000)),
            ("before=1", 3),
        ):
            body = self.at(f"/status/data?{query}", self.local)[1]
            self.assertEqual(len(json.loads(body)["samples"]), n, query[:30])

    def test_nothing(self) -> None:
        """Nothing else is there, and nothing but GET and HEAD is answered."""
        for path in ("/status/", "/status/x", "/status/data/", "/status/data/x", "/status/../status.js", "/statusx"):
            self.assertEqual(self.at(path, self.local)[0], 404, path)
        self.assertEqual(self.at("/status/status.js/x", self.local)[0], 404)
        for path in ("/status", "/status/data"):
            self.assertEqual(self.at(path, self.local, method="POST")[0], 405)

    def test_sampled(self) -> None:
        """Samples are taken while the port is open, be it the second time."""
        for n in (1, 2):
            self.site.doStart()
            self.server.advance(SAMPLE_EVERY)
            self.site.doStop()
            self.server.advance(5 * SAMPLE_EVERY)
            self.assertEqual(len(self.site._history.samples), n)

    def test_withoutPrometheus(self) -> None:
        """It needs nothing that is not installed with the web port."""
        with mock.patch.dict(sys.modules, {"prometheus_client": None}):
            self.serve()
        self.assertEqual([self.at(path, self.local)[0] for path in self.paths], [200, 200, 200, 200, 501])

    def test_otherPage(self) -> None:
        """An application with a page of its own has this one all the same, and may put another in its place."""
        self.assertEqual(self.site._hub, self.server.factory)
        self.assertIn(b"status.js", self.at("/status", self.local)[1])
        self.assertEqual(self.at("/theme.css", self.local)[0], 404)
        self.site.resource.putChild(b"status", site._Leaf(None))
        self.assertEqual(self.at("/status", self.local)[0], 404)


class FilesTests(SynchronousTestCase):
    """The files in C{wecompany/web/status}."""

    def setUp(self) -> None:
        self.sources = {path.name: path.read_text("utf-8") for path in sorted(STATUS.iterdir())}
        self.shared = {name: (PAGES / name).read_text("utf-8") for name in ("theme.css", "favicon.svg")}

    def test_small(self) -> None:
        """All of it is small, on its way and in the package."""
        sent = [*self.sources.values(), *self.shared.values()]
        self.assertLess(sum(len(gzip.compress(source.encode())) for source in sent), MAX_SIZE)
        self.assertLess(sum(len(source.encode()) for source in self.sources.values()), MAX_SOURCE)

    def test_nothingInline(self) -> None:
        """There is no script, style or handler in the markup: the Content-Security-Policy would not let it."""
        markup = _Markup()
        markup.feed(self.sources["index.html"])
        self.assertEqual(markup.inline, [])
        self.assertEqual({address.split("/")[0] for address in markup.loaded}, {"status"})

    def test_whole(self) -> None:
        """Whatever a file names is there, every file is named by another, and none is of another host."""
        named = {"index.html"}
        for source in self.sources.values():
            named |= set(re.findall(r"""["'](?:\./|status/)([\w-]+\.(?:js|svg|css))["']""", source))
            self.assertEqual(set(re.findall(r"https?://[\w.]+", source)) - {"http://www.w3.org"}, set())
            self.assertEqual(re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|\beval\(|new Function", source), [])
        self.assertEqual(named, self.sources.keys() | self.shared.keys())

    def test_sameFields(self) -> None:
        """The charts draw fields that there are, and all but the time."""
        charts = self.sources["figures.js"].partition("CHARTS = [")[2].partition("].map")[0]
        drawn = [name for fields in re.findall(r", \[(.*?)\]\]", charts) for name in re.findall(r'"(\w+)"', fields)]
        self.assertEqual(sorted(drawn), sorted(FIELDS[1:]))

    @skipUnless(NODE, "there is no node, which runs the page's modules")
    def test_module(self) -> None:
        """Scales, units, gaps and tables are as the script below says, in both languages."""
        assert NODE is not None
        folder = temporaryFolder(self)
        (folder / "figures.mjs").write_text(self.sources["figures.js"], "utf-8")
        (folder / "check.mjs").write_text(CHECK, "utf-8")
        for language in ("en-GB", "zh-CN"):
            done = subprocess.run(
                [NODE, "check.mjs", language], cwd=folder, capture_output=True, text=True, timeout=60, check=False
            )
            self.assertEqual((done.returncode, done.stderr), (0, ""))


CHECK = """
import assert from "node:assert/strict";

const isChinese = process.argv[2] === "zh-CN";
Object.defineProperty(globalThis, "navigator", { value: { language: process.argv[2] }, configurable: true });
const page = await import("./figures.mjs");
const { CHARTS, across, figure, fiveMinutes, merged, parts, roomFor, t } = page;

// Every word that the charts need is there, in this language.
assert.equal(page.isChinese, isChinese);
for (const { name, unit, fields } of CHARTS) {
  for (const key of [name, `in_${unit}`, ...fields]) assert.equal(/[\\u4e00-\\u9fff]/.test(t(key)), isChinese, key);
}
assert.equal(t("ago", { n: 5 }), isChinese ? "5 分钟前" : "5 min ago");

// Every figure has its unit; what was not measured is said so.
const plain = (...given) => figure(...given).replaceAll("\\u202f", " ");
assert.equal(plain(1234, "number"), "1,230");
assert.equal(plain(0, "rate"), "0 /s");
assert.equal(plain(999, "bytes"), "999 B");
assert.equal(plain(1000, "bytes"), "1 kB");
assert.equal(plain(2.5e6, "byteRate"), "2.5 MB/s");
assert.equal(plain(0.000045, "seconds"), "45 µs");
assert.equal(plain(0.001, "seconds"), "1 ms");
assert.equal(plain(2, "seconds"), "2 s");
assert.equal(plain(0, "seconds", 0.01), "0 ms");
assert.equal(plain(null, "seconds"), isChinese ? "无数据" : "no data");

// A scale has room for the highest value, and not much more.
for (const unit of ["number", "rate", "bytes", "seconds"]) {
  for (const most of [0.00003, 0.7, 1, 2, 2.1, 4, 5, 9.9, 10, 11, 99_999, 1e5]) {
    const end = roomFor(most, unit);
    assert.ok(end >= most * 0.999 && (end <= 2.2 * most || (unit === "number" && end === 2)), `${most} ${unit} ${end}`);
  }
}
assert.deepEqual(["number", "rate", "bytes", "seconds"].map((unit) => roomFor(0, unit)), [2, 1, 1000, 0.001]);
assert.equal(roomFor(null, "rate"), 1);

// An hour is kept, whatever else comes; what lies in the future is not.
const answer = (now, ...samples) => ({ now, fields: ["at", "x"], samples });
let kept = merged([], answer(4_000_000, [399_999, 1], [400_000, 1], [400_001, 2], [4_000_000, 3], [4_000_001, 4]));
assert.deepEqual(kept, [{ at: 400_001, x: 2 }, { at: 4_000_000, x: 3 }]);
kept = merged(kept, answer(4_010_000, [4_010_000, 5]));
assert.deepEqual(kept.map(({ at }) => at), [4_000_000, 4_010_000]);
assert.equal(across(400_000, 4_000_000, 720), 0);
assert.equal(across(4_000_000, 4_000_000, 720), 720);

// A line ends where nothing is known, and goes on through zeros.
const line = [[0, 1], [10_000, 0], [20_000, null], [30_000, 2], [45_000, 3], [60_001, 4]];
assert.deepEqual(parts(line.map(([at, x]) => ({ at, x })), "x", 10), [
  [[0, 1], [10_000, 0]],
  [[30_000, 2], [45_000, 3]],
  [[60_001, 4]],
]);

// A table has the highest of each five minutes, newest first.
const row = (at, x, y) => ({ at, x, y });
const rows = fiveMinutes([row(299_999, 1, null), row(300_000, 2, 5), row(599_999, 7, null)], ["x", "y"]);
assert.deepEqual(rows, [[300_000, [7, 5]], [0, [1, null]]]);
"""


class DashboardTests(SynchronousTestCase):
    """The dashboard for Grafana."""

    def setUp(self) -> None:
        self.dashboard = json.loads(DASHBOARD.read_text("utf-8"))
        self.panels = self.dashboard["panels"]
        self.expressions = [target["expr"] for panel in self.panels for target in panel.get("targets", ())]

    def test_shape(self) -> None:
        """It can be imported: each panel has an ID and a place of its own, and asks the source that one chooses."""
        self.assertGreaterEqual(self.dashboard["schemaVersion"], 38)
        ids = [panel["id"] for panel in self.panels]
        self.assertEqual(len(ids), len(set(ids)))
        taken = Counter(
            (place["x"] + x, place["y"] + y)
            for place in (panel["gridPos"] for panel in self.panels)
            for x in range(place["w"])
            for y in range(place["h"])
        )
        self.assertEqual((max(taken.values()), max(x for x, _ in taken)), (1, 23))
        (source, *_) = self.dashboard["templating"]["list"]
        self.assertEqual((source["name"], source["type"]), ("DS_PROMETHEUS", "datasource"))
        for panel in self.panels:
            if panel["type"] != "row":
                used = [panel["datasource"], *(target["datasource"] for target in panel["targets"])]
                self.assertEqual({one["uid"] for one in used}, {"${DS_PROMETHEUS}"}, panel["title"])
                self.assertTrue(panel["description"] and panel["fieldConfig"]["defaults"]["unit"], panel["title"])
                refs = [target["refId"] for target in panel["targets"]]
                self.assertEqual(len(refs), len(set(refs)))

    def test_names(self) -> None:
        """It asks for figures that there are, and for each of the project's own, with labels that they have."""
        server = MemoryServer(database=temporaryFolder(self) / "store.sqlite")
        self.addCleanup(server.close)
        text = Metrics(server.factory).render().decode()
        kinds = dict(re.findall(r"^# TYPE (\w+) (\w+)", text, re.M))
        there = {name for name, kind in kinds.items() if kind != "histogram"}
        there |= {
            f"{n}_{part}" for n, kind in kinds.items() if kind == "histogram" for part in ("bucket", "sum", "count")
        }
        asked = {name for one in self.expressions for name in re.findall(r"\b(?:wecompany|process)_\w+", one)}
        self.assertEqual(asked - there, set())
        families = {re.sub("_(bucket|sum|count)$", "", name) if name not in kinds else name for name in asked}
        own = {name for name in kinds if name.startswith("wecompany_") and not name.endswith("_created")}
        self.assertEqual(own - families, set())

    @skipUnless(PROMTOOL, "promtool is not installed: it is part of Prometheus")
    def test_promtool(self) -> None:
        """Prometheus understands each of its expressions."""
        assert PROMTOOL is not None
        rules = temporaryFolder(self) / "rules.json"  # which is YAML, too
        recorded = [
            {"record": f"x{n}", "expr": one.replace("$__rate_interval", "1m").replace("$instance", ".*")}
            for n, one in enumerate(self.expressions)
        ]
        rules.write_text(json.dumps({"groups": [{"name": "x", "rules": recorded}]}))
        done = subprocess.run(
            [PROMTOOL, "check", "rules", str(rules)], capture_output=True, text=True, timeout=60, check=False
        )
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        self.assertIn(f"{len(recorded)} rules found", done.stdout)
