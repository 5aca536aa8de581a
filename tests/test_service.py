"""What twistd runs: the options, listening and stopping, the limit of open files, and what imports what."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import os
import re
import resource
import select
import signal
import socket
import ssl
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar, cast
from unittest.mock import ANY

from twisted.application.service import IService, IServiceMaker
from twisted.cred.checkers import FilePasswordDB, InMemoryUsernamePasswordDatabaseDontUse
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.plugin import IPlugin, getPlugins
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

import wecompany
from tests import temporaryFolder
from tests.processes import Process, freePort
from tests.test_tls import Logged, keyOf, makeCertificate
from wecompany import service
from wecompany.accounts import Accounts, hashPassword
from wecompany.database import Database
from wecompany.limits import DEFAULTS, Limits
from wecompany.server import MAX_REFUSED, WeCompanyFactory
from wecompany.service import Backend, CannotStart, Options, WeCompanyService, makeService
from wecompany.tls import ServerTLS
from wecompany.wire import ErrorCode, MessageType, decodeFrames, encodeFrame

ROOT = Path(wecompany.__file__).parent
REAL_SETRLIMIT = resource.setrlimit


def parse(*words: str) -> Options:
    """Return the options of a command line."""
    options = Options()
    options.parseOptions(words)
    return options


class OptionsTests(SynchronousTestCase):
    def complaint(self, *words: str) -> str:
        """Return the one line that says what is wrong with a command line."""
        with self.assertRaises(CannotStart) as raised:
            parse(*words)
        text = str(raised.exception)
        self.assertEqual(raised.exception.code, text)
        self.assertTrue(text.startswith("twistd wecompany: "), text)
        self.assertNotIn("\n", text)
        return text

    def test_defaults(self) -> None:
        """Without options it is port 8888 on every address, and the times of the protocol."""
        options = dict(parse())
        self.assertEqual(
            options,
            options
            | {
                "port": 8888,
                "interface": None,
                "listen": [],
                "ring-timeout": 30,
                "call-grace": 15,
                "max-call": 12 * 3600,
                "idle-timeout": 90,
                "broadcast": 0,
                "limits": Limits(),
                "no-limits": 0,
                "database": "wecompany.sqlite",
                "accounts": 0,
                "signup": 0,
                "token-lifetime": 86_400,
                "credCheckers": [],
                "tls": None,
                "tls-clients": None,
            },
        )

    def test_values(self) -> None:
        """Each option takes what is in its bounds."""
        for name, words in (
            ("port", (("0", 0), ("8889", 8889), ("65535", 65535))),
            ("ring-timeout", (("0.1", 0.1), ("30", 30.0), ("1e3", 1000.0))),
            ("call-grace", (("0", 0.0), ("2.5", 2.5))),
            ("max-call", (("0", 0.0), ("60", 60.0))),
            ("idle-timeout", (("1", 1.0), ("3600", 3600.0))),
            ("token-lifetime", (("1", 1.0), ("3600", 3600.0))),
        ):
            for word, value in words:
                self.assertEqual(parse(f"--{name}", word)[name], value)
        self.assertEqual(parse("-p", "1")["port"], 1)
        self.assertTrue(parse("--broadcast")["broadcast"])
        self.assertEqual(parse("--port", "1", "--interface", "::1")["interface"], "::1")
        self.assertEqual(parse("--interface", "::1")["port"], 8888)

    def test_outOfBounds(self) -> None:
        """What is out of an option's bounds, or no number at all, is said in one line that quotes it."""
        numbers = ("", "x", "nan", "inf", "-1", "1e999", "0x10")
        for name, words in (
            ("port", (*numbers, "65536", "1.5", " 1", "²", "1_0", "9" * 5_000)),
            ("ring-timeout", (*numbers, "0", "0.09")),
            ("call-grace", (*numbers, "-0.1")),
            ("max-call", numbers),
            ("idle-timeout", (*numbers, "0.9", "0")),
            ("max-connections", (*numbers, "1.5", "٣")),
            ("token-lifetime", (*numbers, "0.9")),
        ):
            for word in words:
                said = self.complaint(f"--{name}={word}")
                self.assertTrue(len(word) > 100 or repr(word) in said, said)

    def test_listen(self) -> None:
        """--listen may be repeated; then there is no port unless it is asked for."""
        options = parse("--listen", "tcp:1", "--listen", "unix:/x")
        self.assertEqual((options["listen"], options["port"]), (["tcp:1", "unix:/x"], None))
        self.assertEqual(parse("--listen", "tcp:1", "--port", "2")["port"], 2)
        self.assertEqual(parse()["listen"], [])

    def test_usage(self) -> None:
        """What twistd does not know of is said in one line, which names --help."""
        for words in (("--fly",), ("extra",), ("--port",), ("--interface", "::1", "--listen", "tcp:1")):
            self.assertIn("--help", self.complaint(*words))

    def test_limits(self) -> None:
        """Limits are set in turn, a later one over an earlier one; --no-limits turns off all others, wherever it is."""
        for words, limits in (
            (("--limit", "text=5"), Limits().changed("text=5")),
            (("--limit", "text=5", "--limit", "hashing=1", "--limit=text=6:7"), ("text=6:7", "hashing=1")),
            (("--no-limits",), Limits.none()),
            (("--limit", "text=5", "--no-limits"), Limits.none().changed("text=5")),
            (("--max-connections", "100000"), ("connections=100000",)),
            (("--max-connections", "5", "--limit", "connections=6"), ("connections=6",)),
            (("--limit", "connections=6", "--max-connections", "0"), ("connections=0",)),
        ):
            wanted = Limits()
            for setting in limits if isinstance(limits, tuple) else ():
                wanted = wanted.changed(setting)
            self.assertEqual(parse(*words)["limits"], limits if isinstance(limits, Limits) else wanted)

    def test_badLimits(self) -> None:
        """A limit that there is not, or that cannot be so, is said in one line."""
        self.assertIn("did you mean text?", self.complaint("--limit", "texts=5"))
        self.assertIn("'x'", self.complaint("--limit", "text=x"))
        self.assertIn("NAME=VALUE", self.complaint("--limit", "text"))

    def test_together(self) -> None:
        """Options that need each other, or exclude each other, say so."""
        for words, said in (
            (("--tls", "c", "--listen", "tcp:1"), "--port"),
            (("--tls", ""), "CERT"),
            (("--tls", ",key"), "CERT"),
            (("--tls-clients", "ca"), "--tls"),
            (("--database", ""), "none"),
            (("--accounts", "--database", "none"), "--database"),
            (("--signup",), "--accounts"),
            (("--accounts", "--signup", "--auth", "memory:a:b"), "--auth"),
        ):
            self.assertIn(said, self.complaint(*words).partition(" (twistd")[0], words)
        for line in (
            "--tls c --listen tcp:1 --port 2",
            "--tls c,k --tls-clients ca",
            "--accounts --signup --database x",
            "--auth memory:a:b --database none",
        ):
            parse(*line.split())

    def test_auth(self) -> None:
        """--auth takes any of Twisted's checkers that knows passwords, as often as one likes."""
        file = temporaryFolder(self) / "passwd"
        file.write_text("alice:secret\n")
        options = parse("--auth", f"file:{file}", "--auth", "memory:bob:secret")
        self.assertEqual(
            [type(checker) for checker in options["credCheckers"]],
            [FilePasswordDB, InMemoryUsernamePasswordDatabaseDontUse],
        )

    def test_badAuth(self) -> None:
        """A checker that is none, that knows no passwords, or that is told nonsense is one line without secrets."""
        for word, said in (
            ("nonsense:secret", "--help-auth"),
            ("", "--help-auth"),
            ("anonymous", "does not take"),
            ("file", "filename"),
            ("memory:bob:secret:eve", "memory: "),
        ):
            complaint = self.complaint("--auth", word)
            self.assertIn(said, complaint)
            self.assertNotIn("secret", complaint)

    def test_helpAuth(self) -> None:
        """--help-auth lists the checkers that can be used, and --help-auth-type explains one of them."""
        for words, said in ((("--help-auth",), "memory"), (("--help-auth-type", "file"), "--auth file")):
            shown = io.StringIO()
            self.patch(Options, "authOutput", shown)
            with self.assertRaises(SystemExit) as left:
                parse(*words)
            self.assertEqual(left.exception.code or 0, 0)
            self.assertIn(said, shown.getvalue())
            self.assertNotIn("anonymous", shown.getvalue())
        self.assertIn("nonsense", self.complaint("--help-auth-type", "nonsense"))

    def test_isCaughtByTwistd(self) -> None:
        """Why it cannot start ends the program with that line, and is an Exception, so that twistd cleans up."""
        self.assertTrue(issubclass(CannotStart, SystemExit))
        self.assertTrue(issubclass(CannotStart, Exception))

    def test_help(self) -> None:
        """--help names every option, and --version the version; both exit with 0."""
        for word, said in (
            ("--version", [wecompany.__version__]),
            (
                "--help",
                ["--port=", "-p", "--interface=", "--listen=", "--ring-timeout=", "--call-grace=", "--max-call="],
            ),
            (
                "--help",
                ["--idle-timeout=", "--max-connections=", "--broadcast", "--version", "8888", "ssl:", "haproxy:"],
            ),
        ):
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown), self.assertRaises(SystemExit) as left:
                parse(word)
            self.assertEqual(left.exception.code or 0, 0)
            for part in said:
                self.assertIn(part, shown.getvalue())

    def test_helpIsComplete(self) -> None:
        """--help shows every option and limit once, with its default, in the width of the terminal."""
        options = Options()
        for columns in ("60", "80", "132"):
            self.patch(os, "environ", os.environ | {"COLUMNS": columns})
            lines = options.getUsage().splitlines()
            self.assertLessEqual(max(map(len, lines)), int(columns))
            for name in options.longOpt:
                self.assertEqual(len([line for line in lines if re.match(rf"  (-p, )?--{name}( |$)", line)]), 1, name)
            for limit in DEFAULTS:
                self.assertEqual(len([line for line in lines if line.startswith(f"  {limit} ")]), 1, limit)
            text = " ".join(" ".join(lines).split())
            for default in ("30", "15", "43200", "90", "86400", "wecompany.sqlite", "8888, if there is no --listen"):
                self.assertIn(f"[default: {default}]", text)


class ServiceTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.limits: list[tuple[int, tuple[int, int]]] = []
        self.limit = (1024, 4096)
        self.patch(resource, "getrlimit", lambda what: self.limit)
        self.patch(resource, "setrlimit", lambda what, limits: self.limits.append((what, limits)))
        self.reactor = MemoryReactorClock()
        self.logged: list[LogEvent] = []
        observer = cast(ILogObserver, self.logged.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def make(self, *words: str) -> WeCompanyService:
        return makeService(parse("--database", "none", *words), self.reactor)

    def warnings(self) -> list[str]:
        """Return what has been warned about, and forget it."""
        events, self.logged[:] = list(self.logged), []
        return [e["log_format"].format(**e) for e in events if e["log_level"].name == "warn" and e.get("log_format")]

    def listening(self, made: WeCompanyService) -> list[tuple[int, str]]:
        """Start a service, and return the TCP ports and interfaces that it listens on."""
        made.privilegedStartService()
        made.startService()
        self.addCleanup(made.stopService)
        return [(port, interface) for port, _, _, interface in self.reactor.tcpServers]


class MakeServiceTests(ServiceTestCase):
    def test_listens(self) -> None:
        """It listens once on each port and endpoint that was asked for."""
        for words, ports in (
            ((), [(8888, "")]),
            (("--port", "9999", "--interface", "127.0.0.1"), [(9999, "127.0.0.1")]),
            (("--listen", "tcp:1:interface=\\:\\:1", "--listen", "tcp:2"), [(1, "::1"), (2, "")]),
            (("--listen", "tcp:1", "-p", "2"), [(2, ""), (1, "")]),
        ):
            self.reactor = MemoryReactorClock()
            self.assertEqual(self.listening(self.make(*words)), ports)

    def test_otherEndpoints(self) -> None:
        """UNIX sockets and haproxy: work, as any endpoint of Twisted's does."""
        self.listening(self.make("--listen", "unix:/run/wecompany.sock", "--listen", "haproxy:tcp:1"))
        self.assertEqual([server[0] for server in self.reactor.unixServers], ["/run/wecompany.sock"])
        self.assertEqual([server[0] for server in self.reactor.tcpServers], [1])

    def test_helpTellsTheTruth(self) -> None:
        """The endpoints that --help gives as examples, and that need no files, are endpoints."""
        examples = [word.rstrip(".,") for word in Options.longdesc.split() if word.startswith(("unix:", "haproxy:"))]
        self.assertEqual(len(examples), 2)
        for example in examples:
            self.make("--listen", example)

    def test_startedOnce(self) -> None:
        """Started without privileges it listens once, too."""
        made = self.make()
        made.startService()
        self.addCleanup(made.stopService)
        self.assertEqual(len(self.reactor.tcpServers), 1)

    def test_isAService(self) -> None:
        """It is a service, whose hub can be reached for more."""
        made = self.make()
        verifyObject(IService, made)
        self.assertIsInstance(made.factory, WeCompanyFactory)

    def test_badEndpoint(self) -> None:
        """An endpoint that is none is one line that quotes it."""
        for endpoint in (
            "",
            "tcp",
            "tcp:x",
            "nonsense:1",
            "ssl:1:privateKey=/no/such/key.pem:certKey=/no/such/cert.pem",
            "systemd:domain=INET:index=99",
            "haproxy:nonsense:1",
        ):
            with self.assertRaises(CannotStart) as raised:
                self.make("--listen", endpoint)
            self.assertIn(f"--listen {endpoint}: ", str(raised.exception))
            self.assertNotIn("\n", str(raised.exception))

    def test_inUse(self) -> None:
        """A port in use is one line that names it, and nothing that was begun is left."""

        class Busy(MemoryReactorClock):
            def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
                raise CannotListenError(interface, port, OSError(98, "in use"))

        self.reactor = Busy()
        for words, name in ((("--interface", "::1"), "port 8888 of ::1: "), (("--listen", "tcp:1"), "on tcp:1: ")):
            made = self.make(*words)
            with self.assertRaises(CannotStart) as raised:
                made.privilegedStartService()
            self.assertIn(name, str(raised.exception))
            self.assertNotIn("\n", str(raised.exception))
            self.successResultOf(made.stopService())

    def test_saysOpen(self) -> None:
        """At the start it says that anyone may register any ID."""
        self.listening(self.make())
        said = [event for event in self.logged if "any user ID" in (event.get("log_format") or "")]
        self.assertEqual([event["log_level"].name for event in said], ["warn"])

    def test_options(self) -> None:
        """Each option reaches the hub."""
        made: dict[str, Any] = {}
        real = WeCompanyFactory

        def note(reactor: Any, **options: Any) -> WeCompanyFactory:
            made.update(options)
            return real(reactor, **options)

        self.patch(service, "WeCompanyFactory", note)
        words = "--ring-timeout 1 --call-grace 2 --max-call 3 --idle-timeout 4 --limit connections=5 --broadcast"
        self.make(*words.split())
        self.assertEqual(
            made,
            made
            | {
                "ringTimeout": 1,
                "callGrace": 2,
                "maxCall": 3,
                "idleTimeout": 4,
                "limits": Limits().changed("connections=5"),
                "broadcast": True,
            },
        )

    def test_ownReactor(self) -> None:
        """Without a reactor it runs in Twisted's own."""
        from twisted.internet import reactor

        self.assertIs(cast(Any, makeService(parse())).factory._reactor, reactor)

    def test_badCertificate(self) -> None:
        """A certificate that cannot be used is one line that names the file."""
        for words in (("--tls", "/no/cert.pem"), ("--tls", "/no/cert.pem,/no/key.pem", "--tls-clients", "/no/ca.pem")):
            with self.assertRaises(CannotStart) as raised:
                self.make(*words)
            self.assertIn("--tls: /no/cert.pem: ", str(raised.exception))
            self.assertNotIn("\n", str(raised.exception))


class OpenFilesTests(ServiceTestCase):
    def most(self, *words: str) -> int:
        """Return how many connections the hub takes."""
        return cast(int, cast(Any, self.make(*words).factory)._maxConnections)

    def test_raised(self) -> None:
        """The soft limit is raised to the hard one, and what is not reserved of it is for connections."""
        self.assertEqual(self.most(), 4096 - 64 - MAX_REFUSED)
        self.assertEqual(self.limits, [(resource.RLIMIT_NOFILE, (4096, 4096))])

    def test_chosen(self) -> None:
        """A number that is asked for is taken as it is."""
        self.assertEqual(self.most("--max-connections", "7"), 7)

    def test_noLimitsAtAll(self) -> None:
        """--no-limits gives nobody more open files than there are."""
        self.assertEqual(self.most("--no-limits"), 4096 - 64 - MAX_REFUSED)

    def test_least(self) -> None:
        """However low the limit, one connection is taken."""
        self.limit = (10, 20)
        self.assertEqual(self.most(), 1)

    def test_unlimited(self) -> None:
        """Without a limit there is no most."""
        self.limit = (1024, resource.RLIM_INFINITY)
        self.assertEqual(self.most(), 0)

    def test_cannotBeRaised(self) -> None:
        """Where the limit cannot be raised it stays, which is logged."""
        for error in (ValueError("not allowed"), OSError("not allowed")):

            def fail(what: int, limits: tuple[int, int], error: Exception = error) -> None:
                raise error

            self.patch(resource, "setrlimit", fail)
            self.logged.clear()
            self.assertEqual(self.most(), 1024 - 64 - MAX_REFUSED)
            self.assertEqual([event.get("soft") for event in self.logged if "soft" in event], [1024])

    def test_macOS(self) -> None:
        """A system that names no hard limit and allows 10,240 files is asked for those."""
        self.limit = (256, resource.RLIM_INFINITY)

        def setLimit(what: int, limits: tuple[int, int]) -> None:
            if limits[0] > 10_240 or limits[0] == resource.RLIM_INFINITY:
                raise ValueError("current limit exceeds maximum limit")

        self.patch(resource, "setrlimit", setLimit)
        self.assertEqual(self.most(), 10_240 - 64 - MAX_REFUSED)

    def test_noLimits(self) -> None:
        """A system that knows no such limits has none."""
        modules: dict[str, Any] = sys.modules
        modules["resource"] = None
        self.addCleanup(modules.__setitem__, "resource", resource)
        self.assertEqual(service._raiseOpenFiles(), math.inf)


class StoppingTests(ServiceTestCase):
    def test_order(self) -> None:
        """stopService first stops listening, then tells the clients, and fires when they are gone."""
        steps: list[str] = []
        closing: Deferred[None] = Deferred()

        class Port:
            def stopListening(self) -> Deferred[None]:
                steps.append("not listening")
                return closing

        class Endpoint:
            def listen(self, factory: object) -> Deferred[Port]:
                return succeed(Port())

        factory = WeCompanyFactory(self.reactor)
        backend = Backend(self.reactor, Limits())
        made = WeCompanyService(factory, [("x", cast(IStreamServerEndpoint, Endpoint()))], backend)
        made.privilegedStartService()
        made.startService()
        transport = StringTransport()
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(transport)
        protocol.dataReceived(encodeFrame(MessageType.HEARTBEAT, b"alice"))
        transport.clear()
        stopped = made.stopService()
        self.assertEqual((steps, transport.value()), (["not listening"], b""))
        closing.callback(None)
        ((messageType, _, data, _),) = decodeFrames(transport.value())
        self.assertEqual((messageType, data[0]), (MessageType.ERROR, ErrorCode.SHUTTING_DOWN))
        self.assertNoResult(stopped)
        protocol.connectionLost()
        self.successResultOf(stopped)

    def test_deafClients(self) -> None:
        """Clients that do not go are dropped after 4 s at most."""
        aborted: list[bool] = []
        made = self.make()
        made.startService()
        protocol = made.factory.buildProtocol(None)
        transport = StringTransport()

        def abort() -> None:
            aborted.append(True)
            protocol.connectionLost()

        self.patch(transport, "abortConnection", abort)
        protocol.makeConnection(transport)
        stopped = made.stopService()
        self.reactor.advance(4)
        self.successResultOf(stopped)
        self.assertTrue(aborted)

    def test_stoppedWithoutStart(self) -> None:
        """A service that never listened stops, too, and so does one whose endpoint is still busy failing."""
        self.successResultOf(self.make().stopService())
        slow: Deferred[Any] = Deferred()

        class Endpoint:
            def listen(self, factory: object) -> Deferred[Any]:
                return slow

        factory = WeCompanyFactory(self.reactor)
        backend = Backend(self.reactor, Limits())
        made = WeCompanyService(factory, [("x", cast(IStreamServerEndpoint, Endpoint()))], backend)
        made.startService()
        stopped = made.stopService()
        self.assertNoResult(stopped)
        slow.errback(CannotListenError("", 1, OSError("in use")))
        self.successResultOf(stopped)
        self.assertEqual(len(self.flushLoggedErrors(CannotListenError)), 1)


class RealSocketTests(TestCase):
    """With the real reactor, and on the loopback only."""

    timeout = 30

    def setUp(self) -> None:
        limits = resource.getrlimit(resource.RLIMIT_NOFILE)
        self.addCleanup(REAL_SETRLIMIT, resource.RLIMIT_NOFILE, limits)

    def start(self, *words: str) -> WeCompanyService:
        made = makeService(parse("--database", "none", *words))
        made.privilegedStartService()
        made.startService()
        self.addCleanup(made.stopService)
        return made

    def test_portInUse(self) -> None:
        """A port that another program listens on is one line."""
        with socket.socket() as other:
            other.bind(("127.0.0.1", 0))
            other.listen()
            port = other.getsockname()[1]
            made = makeService(parse("--port", str(port), "--interface", "127.0.0.1", "--database", "none"))
            with self.assertRaises(CannotStart) as raised:
                made.privilegedStartService()
            self.assertIn(f"port {port} of 127.0.0.1", str(raised.exception))
            self.assertNotIn("\n", str(raised.exception))

    def test_badInterface(self) -> None:
        """An interface that this machine does not have is one line."""
        for interface in ("203.0.113.1", "no such interface"):
            made = makeService(parse("--port", "0", "--interface", interface))
            with self.assertRaises(CannotStart) as raised:
                made.privilegedStartService()
            self.assertIn(interface, str(raised.exception))
            self.assertNotIn("\n", str(raised.exception))

    async def test_unixSocket(self) -> None:
        """A client registers through a UNIX socket, and is told when the server stops."""
        from twisted.internet import reactor
        from twisted.internet.endpoints import UNIXClientEndpoint
        from twisted.internet.protocol import Factory

        path = str(temporaryFolder(cast(Any, self)) / "socket")
        made = makeService(parse("--listen", f"unix:{path}", "--database", "none"))
        made.startService()
        registered: Deferred[None] = Deferred()
        lost: Deferred[bytes] = Deferred()

        class Ear(Protocol):
            received = b""

            def connectionMade(self) -> None:
                assert self.transport is not None
                self.transport.write(encodeFrame(MessageType.HEARTBEAT, b"alice"))

            def dataReceived(self, data: bytes) -> None:
                self.received += data
                if not registered.called:
                    registered.callback(None)

            def connectionLost(self, reason: object = None) -> None:
                lost.callback(self.received)

        await UNIXClientEndpoint(cast(Any, reactor), path).connect(Factory.forProtocol(Ear))
        await registered
        self.assertEqual(made.factory.getOnlineUsers(), ["alice"])
        await made.stopService()
        frames = list(decodeFrames(await lost))
        self.assertEqual([frame[0] for frame in frames], [MessageType.HEARTBEAT, MessageType.ERROR])
        self.assertFalse(Path(path).exists())

    def test_unencrypted(self) -> None:
        """Where passwords are asked for, each port that others can reach without TLS is warned about, and no other."""
        folder = temporaryFolder(cast(Any, self))
        (folder / "cert.pem").write_bytes(makeCertificate("one") + keyOf("one"))
        tls = ("--tls", str(folder / "cert.pem"))
        logged = Logged(self)
        auth = ("--auth", "memory:alice:secret12")
        for words, warned in (
            ((*auth, "--port", "0"), ["port 0:"]),
            ((*auth, "--port", "0", "--interface", "::"), ["port 0 of :::"]),
            ((*auth, "--port", "0", "--interface", "127.0.0.1"), []),
            ((*auth, "--port", "0", "--interface", "::1"), []),
            ((*auth, "--port", "0", *tls), []),
            ((*auth, "--listen", "tcp:0"), ["tcp:0:"]),
            ((*auth, "--listen", "haproxy:tcp:0"), ["haproxy:tcp:0:"]),
            ((*auth, "--listen", "tcp:0:interface=127.0.0.1"), []),
            ((*auth, "--listen", f"unix:{folder / 'socket'}"), []),
            ((*auth, "--listen", f"ssl:0:privateKey={folder / 'cert.pem'}:certKey={folder / 'cert.pem'}"), []),
            ((*auth, "--port", "0", "--listen", "tcp:0"), ["port 0:", "tcp:0:"]),
            (("--port", "0"), None),
        ):
            self.start(*words)
            said = logged.warnings()
            if warned is None:
                self.assertEqual([line for line in said if "unencrypted" in line], [])
                self.assertIn("runs open", said[0])
            else:
                self.assertEqual(len(said), len(warned), said)
                for line, name in zip(said, warned, strict=True):
                    self.assertIn(f"unencrypted at {name}", line)

    async def test_hangUp(self) -> None:
        """On SIGHUP the certificate is read again; after the stop it is whose it was, and no thread is left."""
        folder = temporaryFolder(cast(Any, self))
        path = folder / "cert.pem"
        path.write_bytes(makeCertificate("one") + keyOf("one"))
        before = signal.getsignal(signal.SIGHUP)
        made = self.start("--port", "0", "--interface", "127.0.0.1", "--tls", str(path))
        port = cast(Any, next(iter(made))._listening.result).getHost().port

        def served() -> str:
            return ssl.get_server_certificate(("127.0.0.1", port))

        self.assertEqual(await deferToThread(served), path.read_text().partition("-----BEGIN PRIVATE")[0])
        path.write_bytes(makeCertificate("two") + keyOf("two"))
        read: Deferred[None] = Deferred()
        real = ServerTLS.reload
        self.patch(ServerTLS, "reload", lambda tls: real(tls).addCallback(read.callback))
        signal.raise_signal(signal.SIGHUP)
        await read
        self.assertEqual(await deferToThread(served), path.read_text().partition("-----BEGIN PRIVATE")[0])
        names = [thread.name for thread in threading.enumerate()]
        self.assertTrue(any("wecompany" in name for name in names), names)
        await made.stopService()
        self.assertIs(signal.getsignal(signal.SIGHUP), before)
        names = [thread.name for thread in threading.enumerate()]
        self.assertFalse(any("wecompany" in name for name in names), names)

    def test_fastPath(self) -> None:
        """The port is the poller's, with TLS as without it, unless --plain is said."""
        path = temporaryFolder(cast(Any, self)) / "cert.pem"
        path.write_bytes(makeCertificate("one") + keyOf("one"))
        for words in ((), ("--tls", str(path))):
            for plain in ((), ("--plain",)):
                made = self.start("--port", "0", *words, *plain)
                port = cast(Any, next(iter(made))._listening.result)
                self.assertEqual(port.reactor is made.factory._reactor, bool(plain))

    async def test_noHangUp(self) -> None:
        """Without a certificate there is nothing to read again on SIGHUP, which is logged and harms nobody."""
        before = signal.getsignal(signal.SIGHUP)
        said: Deferred[None] = Deferred()

        def hear(event: LogEvent) -> None:
            if "nothing to read again" in str(event.get("log_format")):
                said.callback(None)

        globalLogPublisher.addObserver(cast(ILogObserver, hear))
        self.addCleanup(globalLogPublisher.removeObserver, cast(ILogObserver, hear))
        made = self.start("--port", "0", "--interface", "127.0.0.1")
        signal.raise_signal(signal.SIGHUP)
        await said
        await made.stopService()
        self.assertIs(signal.getsignal(signal.SIGHUP), before)

    async def test_noSignals(self) -> None:
        """Outside of the main thread, and on a system without SIGHUP, the service runs and stops without it."""
        path = temporaryFolder(cast(Any, self)) / "cert.pem"
        path.write_bytes(makeCertificate("one") + keyOf("one"))
        before = signal.getsignal(signal.SIGHUP)

        def otherThread(number: int, handler: object) -> None:
            raise ValueError("signal only works in main thread")

        class NoSignals:
            """The module where there is no SIGHUP."""

        for module in (SimpleNamespace(SIGHUP=1, signal=otherThread), NoSignals()):
            self.patch(service, "signal", module)
            await self.start("--port", "0", "--tls", str(path)).stopService()
        self.assertIs(signal.getsignal(signal.SIGHUP), before)

    async def test_passwords(self) -> None:
        """--auth lets in whom it names, and --accounts whoever has a password in the store: neither the other's."""
        database = temporaryFolder(cast(Any, self)) / "wecompany.sqlite"
        with contextlib.closing(Database(database)) as store:
            store.transact(store.addAccount, b"alice", hashPassword(b"12345678"), "test")

        def register(port: int, userId: str, password: bytes) -> int:
            """Return the type of the answer."""
            with socket.create_connection(("127.0.0.1", port), 20) as client:
                client.sendall(encodeFrame(MessageType.HEARTBEAT, userId.encode(), password))
                return client.recv(1000)[2]

        auth = ("--auth", "memory:bób:sécret:carol:12345678")
        yes, no = MessageType.HEARTBEAT, MessageType.ERROR
        for words, answers in (
            (auth, (yes, no, yes, no)),
            (("--accounts",), (no, no, no, yes)),
            ((*auth, "--accounts"), (yes, no, yes, yes)),
        ):
            made = self.start("--database", str(database), "--port", "0", "--interface", "127.0.0.1", *words)
            port = cast(Any, next(iter(made))._listening.result).getHost().port
            for (userId, password), answer in zip(
                (("bób", "sécret"), ("bób", "wrong"), ("carol", "12345678"), ("alice", "12345678")),
                answers,
                strict=True,
            ):
                self.assertEqual(await deferToThread(register, port, userId, password.encode()), answer, words)
            await made.stopService()

    async def test_clientCertificates(self) -> None:
        """With --tls-clients a certificate lets one in as whom it names, and is required where nothing else does."""
        folder = temporaryFolder(cast(Any, self))
        for name, data in (
            ("server.pem", makeCertificate("one") + keyOf("one")),
            ("ca.pem", makeCertificate("ca", isCA=True)),
            ("alice.pem", makeCertificate("alice", "ca") + keyOf("alice")),
        ):
            (folder / name).write_bytes(data)
        tls = ("--tls", str(folder / "server.pem"), "--tls-clients", str(folder / "ca.pem"))

        def register(port: int, certificate: str, userId: bytes) -> int:
            """Return the type of the answer; -1 if there is none."""
            context = ssl.create_default_context(cafile=folder / "server.pem")
            context.check_hostname = False
            if certificate:
                context.load_cert_chain(folder / certificate)
            try:
                with socket.create_connection(("127.0.0.1", port), 20) as plain, context.wrap_socket(plain) as client:
                    client.sendall(encodeFrame(MessageType.HEARTBEAT, userId))
                    for messageType, _, _, _ in decodeFrames(client.recv(1000)):
                        return messageType
            except (ssl.SSLError, ConnectionError):
                pass
            return -1

        for words, answers in (
            ((), (MessageType.HEARTBEAT, MessageType.ERROR, -1)),
            (("--plain",), (MessageType.HEARTBEAT, MessageType.ERROR, -1)),
            (("--auth", "memory:bob:secret12"), (MessageType.HEARTBEAT, MessageType.ERROR, MessageType.ERROR)),
        ):
            made = self.start("--port", "0", "--interface", "127.0.0.1", *tls, *words)
            port = cast(Any, next(iter(made))._listening.result).getHost().port
            for (certificate, userId), answer in zip(
                (("alice.pem", b"alice"), ("alice.pem", b"bob"), ("", b"bob")), answers, strict=True
            ):
                self.assertEqual(await deferToThread(register, port, certificate, userId), answer, (words, userId))
            await made.stopService()


class BackendTests(ServiceTestCase):
    """The store and the accounts, as parts of the service."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = temporaryFolder(self)
        self.steps: list[str] = []
        self.opened: list[tuple[Any, dict[str, Any]]] = []
        self.closing: Deferred[None] = succeed(None)

    def fake(self) -> None:
        """Put a store in the place of the real one that notes what is done with it."""
        steps = self.steps
        test = self

        class Noting:
            blocks: ClassVar[dict[bytes, set[bytes]]] = {}
            pendingBytes = 0

            def __getattr__(self, name: str) -> Any:
                return lambda *arguments: None

            def stop(self) -> Deferred[None]:
                steps.append("the store stops")
                return test.closing

        def note(path: Any, reactor: Any, **options: Any) -> Any:
            steps.append("the store opens")
            self.opened.append((path, options))
            return Noting()

        self.patch(service, "openStore", note)

    def makeWithStore(self, *words: str) -> WeCompanyService:
        return makeService(parse(*words), self.reactor)

    def test_openedAtTheStart(self) -> None:
        """The store is opened when the service starts, not before, and before anything listens without privileges."""
        self.fake()
        listen = MemoryReactorClock.listenTCP

        def note(reactor: Any, *arguments: Any, **options: Any) -> Any:
            self.steps.append("listening")
            return listen(reactor, *arguments, **options)

        self.patch(MemoryReactorClock, "listenTCP", note)
        made = self.makeWithStore()
        self.assertEqual(self.steps, [])
        made.startService()
        self.assertEqual(self.steps, ["the store opens", "listening"])
        self.successResultOf(made.stopService())

    def test_privileges(self) -> None:
        """With privileges it listens, but the store is opened without them."""
        self.fake()
        made = self.makeWithStore()
        made.privilegedStartService()
        self.assertEqual((len(self.reactor.tcpServers), self.steps), (1, []))
        made.startService()
        self.assertEqual((len(self.reactor.tcpServers), self.steps), (1, ["the store opens"]))
        self.successResultOf(made.stopService())

    def test_options(self) -> None:
        """File and limits are those of the options; where people are asked who they are, accounts are who is known."""
        self.fake()
        for words, path, options in (
            ((), "wecompany.sqlite", {"accounts": False, "maxUsers": 100_000, "storeSize": 2**32}),
            (("--database", "/x", "--accounts"), "/x", {"accounts": True}),
            (("--auth", "memory:a:b"), "wecompany.sqlite", {"accounts": True}),
            (("--limit", "queued-texts=1", "--limit", "queued-bytes=2"), None, {"queuedTexts": 1, "queuedBytes": 2}),
            (("--no-limits",), None, dict.fromkeys(("maxUsers", "queuedTexts", "queuedBytes", "storeSize"), 0)),
        ):
            made = self.makeWithStore(*words)
            made.startService()
            opened, given = self.opened.pop()
            self.assertEqual(opened, path or "wecompany.sqlite")
            self.assertEqual(given, given | options)
            self.successResultOf(made.stopService())

    def test_none(self) -> None:
        """With --database none there is no store."""
        self.fake()
        made = self.make()
        made.startService()
        self.successResultOf(made.stopService())
        self.assertEqual(self.steps, [])

    def test_saysOpen(self) -> None:
        """An open server with a store says that waiting texts go to whoever comes; one with accounts is not open."""
        self.fake()
        for words, said in (
            ((), "any user ID, and gets the texts that wait for it."),
            (("--database", "none"), "any user ID."),
            (("--accounts",), ""),
        ):
            made = self.makeWithStore(*words)
            made.startService()
            (*_, last) = ["", *[line for line in self.warnings() if "runs open" in line]]
            self.assertTrue(last.endswith(said) if said else not last, last)
            self.successResultOf(made.stopService())

    def test_cannotOpen(self) -> None:
        """A store that cannot be opened is one line that names the file, and nothing that was begun is left."""
        for path in (self.folder, self.folder / "missing" / "x"):
            made = self.makeWithStore("--database", str(path))
            made.privilegedStartService()
            with self.assertRaises(CannotStart) as raised:
                made.startService()
            self.assertIn(str(path), str(raised.exception))
            self.assertNotIn("\n", str(raised.exception))
            self.successResultOf(made.stopService())

    def test_stopping(self) -> None:
        """The store is closed when the last client is gone, and the service has stopped when that is done."""
        self.fake()
        self.closing = Deferred()
        made = self.makeWithStore("--auth", "memory:a:b")
        made.startService()
        protocol = made.factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        stopped = made.stopService()
        self.assertEqual(self.steps, ["the store opens"])
        protocol.connectionLost()
        self.assertEqual(self.steps, ["the store opens", "the store stops"])
        self.assertNoResult(stopped)
        self.closing.callback(None)
        self.successResultOf(stopped)

    def test_startedAgain(self) -> None:
        """A service that was stopped can be started again, with its store."""
        self.fake()
        made = self.makeWithStore()
        for _ in range(2):
            made.startService()
            self.successResultOf(made.stopService())
        self.assertEqual(self.steps, ["the store opens", "the store stops"] * 2)

    def test_accounts(self) -> None:
        """Who lets people in is made of the options."""
        self.fake()
        made: list[tuple[tuple[Any, ...], dict[str, Any]]] = []
        real = Accounts

        def note(*arguments: Any, **options: Any) -> Any:
            made.append((arguments, options))
            return real(*arguments, **options)

        self.patch(service, "Accounts", note)
        for words, options in (
            (("--accounts",), {"ownPasswords": True, "signup": False, "tokenLifetime": 86_400, "checkers": []}),
            (("--accounts", "--signup", "--token-lifetime", "5"), {"signup": True, "tokenLifetime": 5}),
            (("--accounts", "--limit", "hashing=3"), {"limits": ANY}),
        ):
            server = self.makeWithStore(*words)
            server.startService()
            ((store, clock, _), given) = made.pop()
            self.assertEqual((store is not None, clock), (True, self.reactor))
            self.assertEqual(given, given | options)
            self.assertEqual(given["limits"]["hashing"].value, 3 if "--limit" in words else 64)
            self.successResultOf(server.stopService())
        server = self.make("--auth", "memory:a:b")
        server.startService()
        ((store, _, _), given) = made.pop()
        self.assertEqual((store, len(given["checkers"]), given["ownPasswords"]), (None, 1, False))
        self.successResultOf(server.stopService())


class DaemonTests(SynchronousTestCase):
    """The installed twistd, as a daemon."""

    if not hasattr(os, "pidfd_open"):
        skip = "this system does not tell when a process that is no child ends"

    def test_daemon(self) -> None:
        """A daemon with TLS, accounts and a store has threads in spite of its fork, and its files where they belong."""
        folder = temporaryFolder(self)
        run = folder / "run"
        run.mkdir()
        (folder / "cert.pem").write_bytes(makeCertificate("one") + keyOf("one"))
        port = freePort()
        twistd = Process(
            "twistd",
            *("--rundir", run, "--pidfile", run / "pid", "--logfile", run / "log", "wecompany"),
            *("--port", str(port), "--interface", "127.0.0.1", "--tls", os.path.relpath(folder / "cert.pem")),
            *("--accounts", "--signup"),
        )
        self.addCleanup(twistd.end)
        self.assertEqual(twistd.wait(), 0, twistd.lines)
        pid = int((run / "pid").read_text())
        try:
            context = ssl.create_default_context(cafile=folder / "cert.pem")
            context.check_hostname = False
            with socket.create_connection(("127.0.0.1", port), 30) as plain, context.wrap_socket(plain) as client:
                client.sendall(encodeFrame(MessageType.SIGNUP, b"alice", b"correct horse"))
                answer = b""
                while len(frames := list(decodeFrames(answer))) < 2:
                    data = client.recv(65_536)
                    self.assertTrue(data, frames)
                    answer += data
                self.assertEqual([frame[0] for frame in frames], [MessageType.AUTH_RESPONSE, MessageType.HEARTBEAT])
                self.assertEqual(frames[0][2][:1], b"\1")
        finally:
            process = os.pidfd_open(pid)
            self.addCleanup(os.close, process)
            os.kill(pid, signal.SIGTERM)
        ended, _, _ = select.select([process], [], [], 30)
        self.assertTrue(ended, (run / "log").read_text())
        self.assertFalse((run / "pid").exists())
        self.assertTrue((run / "wecompany.sqlite").exists())
        self.assertNotIn("Traceback", (run / "log").read_text())


class PluginTests(SynchronousTestCase):
    def test_found(self) -> None:
        """twistd finds the service, whose options and maker are those of this package."""
        (plugin,) = [cast(Any, found) for found in getPlugins(IServiceMaker) if found.tapname == "wecompany"]
        verifyObject(IPlugin, plugin)
        self.assertIs(namedAny(plugin.module), service)
        self.assertIs(plugin.options, Options)
        self.assertIs(plugin.makeService, makeService)


# -- what imports what -----------------------------------------------------------------------------------------------

ARROWS: dict[str, set[str]] = {
    "_version": set(),
    "wire": set(),
    "interfaces": {"wire"},
    "limits": set(),
    "tls": set(),
    "backlog": {"wire"},
    "outbound": {"wire", "interfaces", "backlog"},
    "calls": {"wire", "interfaces", "limits"},
    "files": {"wire", "interfaces", "limits"},
    "presence": {"wire", "interfaces", "limits"},
    "database": {"interfaces"},
    "store": {"interfaces", "database"},
    "delivery": {"wire", "interfaces", "outbound"},
    "accounts": {"wire", "interfaces", "limits"},
    "poller": set(),
    "protocol": {"wire", "interfaces", "backlog", "outbound", "tls"},
    "server": {
        *("wire", "interfaces", "limits", "calls", "files", "presence"),
        *("outbound", "delivery", "poller", "protocol"),
    },
    "service": {"_version", "interfaces", "limits", "calls", "accounts", "poller", "server", "store", "tls", "web"},
    "metrics": {"wire", "interfaces", "server"},
    "web": {"wire", "interfaces", "limits", "protocol", "server", "metrics"},
    "testing": {"server", "wire", "limits", "database", "store"},
    "media": {"wire"},
    "client": {"wire", "interfaces"},
    "cli": {"_version", "client", "wire", "media", "interfaces", "accounts", "database"},
    "": {"_version", "wire", "interfaces", "calls", "protocol", "server"},
}
"""Which room of the package may import which; the package itself is the empty one."""

OPTIONAL = {"rich", "av", "argon2", "OpenSSL", "cryptography", "autobahn", "txaio", "matplotlib", "prometheus_client"}
"""What an extra brings: imported only where it is needed."""

CORE = {"twisted", "attrs", "automat", "zope"}
"""What every installation has; zope.interface comes with Twisted."""


def imports(path: Path) -> list[tuple[str, bool]]:
    """
    Return what a module imports, and whether at once: that is neither in a function, nor for its types only, nor where
    it may be missing.
    """
    found: list[tuple[str, bool]] = []

    def walk(node: ast.AST, atOnce: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, atOnce) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.extend((f"{node.module}.{alias.name}", atOnce) for alias in node.names)
        isTypes = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        mayBeMissing = isinstance(node, ast.Try) and any("ImportError" in ast.unparse(h) for h in node.handlers)
        isLater = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        inside = atOnce and not (isTypes or mayBeMissing or isLater)
        for child in ast.iter_child_nodes(node):
            walk(child, inside)

    walk(ast.parse(path.read_text("utf-8")), True)
    return found


def room(path: Path) -> str:
    """Return the room that a module is in."""
    first = path.relative_to(ROOT).parts[0].removesuffix(".py")
    return "" if first == "__init__" else first


class ArrowTests(SynchronousTestCase):
    modules = sorted(ROOT.rglob("*.py"))

    def test_rooms(self) -> None:
        """Each module has its arrows written down here, and no room is written down that is not there."""
        self.assertEqual({room(path) for path in self.modules}, set(ARROWS))

    def test_arrows(self) -> None:
        """No module imports a room of this package that it should not know, be it for a type only."""
        for path in self.modules:
            for name, _ in imports(path):
                if name.split(".")[0] == "wecompany":
                    target = [*name.split("."), ""][1]
                    self.assertIn(target, ARROWS[room(path)] | {room(path)}, f"{path.name} imports {name}")

    def test_noCircles(self) -> None:
        """The arrows lead in no circle."""

        def reached(start: str) -> set[str]:
            seen: set[str] = set()
            waiting = list(ARROWS[start])
            while waiting:
                if (target := waiting.pop()) not in seen:
                    seen.add(target)
                    waiting.extend(ARROWS[target])
            return seen

        for name in ARROWS:
            self.assertNotIn(name, reached(name))

    def test_sansIO(self) -> None:
        """The wire knows nothing of Twisted, and reads no clock and no file."""
        names = {name.split(".")[0] for name, _ in imports(ROOT / "wire.py")}
        self.assertEqual(names & (CORE | OPTIONAL | {"time", "os", "io", "socket", "pathlib", "random"}), {"attrs"})

    def test_dependencies(self) -> None:
        """Besides the standard library only what is declared is imported, and extras only where they are needed."""
        late = ("wecompany.client.tls.", "wecompany.web.gateway.", "wecompany.web.site.")
        for path in self.modules:
            isLate = path == ROOT / "client" / "tls.py" or path.parent == ROOT / "web"
            for name, atOnce in imports(path):
                top = name.split(".")[0]
                atOnce = atOnce and not isLate
                self.assertFalse(atOnce and f"{name}.".startswith(late), f"{path} imports {name} at once")
                if top not in sys.stdlib_module_names and top not in CORE | {"wecompany"}:
                    self.assertIn(top, OPTIONAL, f"{path.name} imports {name}")
                    self.assertFalse(atOnce, f"{path} imports {name} at once")

    def test_reactorIsAParameter(self) -> None:
        """No module imports the reactor at once."""
        for path in self.modules:
            at = [name for name, atOnce in imports(path) if atOnce and name.startswith("twisted.internet.reactor")]
            self.assertEqual(at, [], path.name)

    def test_noReactor(self) -> None:
        """Whoever imports the package, or one of its rooms, gets no reactor installed."""
        names = ["wecompany", *(f"wecompany.{name}" for name in ARROWS if name)]
        script = "import sys, importlib\n" + "".join(
            f"importlib.import_module({name!r}); assert 'twisted.internet.reactor' not in sys.modules, {name!r}\n"
            for name in names
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_withoutExtras(self) -> None:
        """With nothing but the core dependencies installed every room can be imported, and the server be made."""
        script = (
            "import sys, importlib\n"
            f"sys.modules.update(dict.fromkeys({sorted(OPTIONAL | {'service_identity', 'idna'})!r}))\n"
            f"for name in {[f'wecompany.{name}' for name in ARROWS if name]!r}: importlib.import_module(name)\n"
            "from wecompany.service import Options, makeService\n"
            "options = Options(); options.parseOptions([]); makeService(options)\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))

    def test_publicNames(self) -> None:
        """What the package and its client library promise is there."""
        for name in ("wecompany", "wecompany.client"):
            module = namedAny(name)
            self.assertEqual([promised for promised in module.__all__ if not hasattr(module, promised)], [])
