"""What twistd runs: the options, listening and stopping, the limit of open files, and what imports what."""

from __future__ import annotations

import ast
import contextlib
import io
import math
import resource
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast

from twisted.application.service import IService, IServiceMaker
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IStreamServerEndpoint
from twisted.internet.protocol import Protocol
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.plugin import IPlugin, getPlugins
from twisted.python.reflect import namedAny
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

import wecompany
from tests import temporaryFolder
from wecompany import service
from wecompany.server import MAX_REFUSED, WeCompanyFactory
from wecompany.service import CannotStart, Options, WeCompanyService, makeService
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
                "max-connections": 0,
                "broadcast": 0,
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
            ("max-connections", (("0", 0), ("1", 1), ("100000", 100_000))),
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
        return makeService(parse(*words), self.reactor)

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
        words = "--ring-timeout 1 --call-grace 2 --max-call 3 --idle-timeout 4 --max-connections 5 --broadcast"
        self.make(*words.split())
        self.assertEqual(
            made,
            made
            | {
                "ringTimeout": 1,
                "callGrace": 2,
                "maxCall": 3,
                "idleTimeout": 4,
                "maxConnections": 5,
                "broadcast": True,
            },
        )

    def test_ownReactor(self) -> None:
        """Without a reactor it runs in Twisted's own."""
        from twisted.internet import reactor

        self.assertIs(cast(Any, makeService(parse())).factory._reactor, reactor)


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
        made = WeCompanyService(factory, [("x", cast(IStreamServerEndpoint, Endpoint()))])
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

        made = WeCompanyService(WeCompanyFactory(self.reactor), [("x", cast(IStreamServerEndpoint, Endpoint()))])
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
        made = makeService(parse(*words))
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
            made = makeService(parse("--port", str(port), "--interface", "127.0.0.1"))
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
        made = makeService(parse("--listen", f"unix:{path}"))
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
    "outbound": {"interfaces"},
    "calls": {"wire", "interfaces", "limits"},
    "files": {"wire", "interfaces"},
    "presence": {"wire", "interfaces", "limits"},
    "poller": set(),
    "protocol": {"wire", "interfaces", "outbound"},
    "server": {"wire", "interfaces", "limits", "calls", "files", "outbound", "poller", "presence", "protocol"},
    "service": {"_version", "calls", "poller", "server"},
    "testing": {"server", "wire"},
    "media": {"wire"},
    "client": {"wire", "interfaces"},
    "cli": {"_version", "client", "wire", "media"},
    "": {"_version", "wire", "interfaces", "calls", "protocol", "server"},
}
"""Which room of the package may import which; the package itself is the empty one."""

OPTIONAL = {"rich", "av"}
"""What an extra brings: imported only where it is needed."""

CORE = {"twisted", "attrs", "automat", "zope"}
"""What every installation has; zope.interface comes with Twisted."""


def imports(path: Path) -> list[tuple[str, bool]]:
    """Return what a module imports, and whether at once, that is neither in a function nor for its types only."""
    found: list[tuple[str, bool]] = []

    def walk(node: ast.AST, atOnce: bool) -> None:
        if isinstance(node, ast.Import):
            found.extend((alias.name, atOnce) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            found.extend((f"{node.module}.{alias.name}", atOnce) for alias in node.names)
        isTypes = isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        inside = atOnce and not isTypes and not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
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
        for path in self.modules:
            for name, atOnce in imports(path):
                top = name.split(".")[0]
                if top not in sys.stdlib_module_names and top not in CORE | {"wecompany"}:
                    self.assertIn(top, OPTIONAL, f"{path.name} imports {name}")
                    self.assertFalse(atOnce, f"{path.name} imports {name} at once")

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
            "sys.modules.update(dict.fromkeys(['OpenSSL', 'service_identity', 'idna', 'rich', 'av']))\n"
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
