"""
The service that twistd runs: the only place where the parts are put together.

C{twistd -n wecompany --port 8888}
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from typing import cast

from twisted.application.service import MultiService, Service
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ServerEndpoint, serverFromString
from twisted.internet.interfaces import IListeningPort, IReactorTime, IStreamServerEndpoint
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.usage import Options as _Options
from twisted.python.usage import UsageError

from wecompany._version import version
from wecompany.calls import CALL_GRACE, MAX_CALL, RING_TIMEOUT
from wecompany.poller import fastest
from wecompany.server import BACKLOG, IDLE_TIMEOUT, MAX_REFUSED, WeCompanyFactory

DEFAULT_PORT = 8888

RESERVED_FILES = 64 + MAX_REFUSED
"""Open files that are not for connections: those of the process itself, and of connections that are being refused."""

MACOS_OPEN_MAX = 10_240
"""Open files that macOS allows a process, whatever its hard limit says."""

_log = Logger()


class CannotStart(SystemExit, Exception):
    """
    Ends the program with one line that says why.

    It is an C{Exception} too, so that twistd, which catches those while it starts, removes its PID file.
    """


def _seconds(least: float) -> Callable[[str], float]:
    def coerce(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not least <= number < math.inf:
            raise UsageError(f"{value!r} is not a number of seconds, {least:g} or more")
        return number

    return coerce


def _whole(what: str, most: float) -> Callable[[str], int]:
    def coerce(value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) <= most):
            raise UsageError(f"{value!r} is not {what}")
        return int(value)

    return coerce


class Options(_Options):
    """What can be set on the command line."""

    synopsis = "[options]"
    longdesc = (
        "WeCompany Server passes messages, files and audio/video calls between the people of one company. "
        "All times are in seconds. Endpoints for --listen: ssl:8889:privateKey=key.pem:certKey=cert.pem, "
        "unix:/run/wecompany.sock, systemd:domain=INET:index=0, haproxy:tcp:8888."
    )

    optParameters = [
        [
            "port",
            "p",
            None,
            f"TCP port to listen on. [default: {DEFAULT_PORT}, if there is no --listen]",
            _whole("a port: a number from 0 to 65535", 65535),
        ],
        ["interface", None, None, "Address that --port listens on, :: for IPv6 too. [default: every IPv4 address]"],
        ["ring-timeout", None, RING_TIMEOUT, "How long a call rings.", _seconds(0.1)],
        ["call-grace", None, CALL_GRACE, "How long a lost party of an active call may take to come back.", _seconds(0)],
        ["max-call", None, MAX_CALL, "How long a call may last; 0 for any time.", _seconds(0)],
        ["idle-timeout", None, IDLE_TIMEOUT, "How long a client may be silent.", _seconds(1)],
        [
            "max-connections",
            None,
            0,
            "How many may be connected; 0 for as many as the limit of open files allows.",
            _whole("a number of connections", math.inf),
        ],
    ]

    optFlags = [
        ["broadcast", None, "Let clients send a text to everyone at once."],
        ["plain", None, "Leave the sockets to the reactor, even where a faster way is known (Linux)."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []

    def opt_listen(self, endpoint: str) -> None:
        """Endpoint to listen on, in Twisted's notation; may be repeated."""
        self["listen"].append(endpoint)

    def opt_version(self) -> None:
        """Show the version and exit."""
        print(f"WeCompany Server {version}")  # noqa: T201
        sys.exit(0)

    def parseOptions(self, options: Sequence[str] | None = None) -> None:
        """Parse; what is wrong is said in one line, without the whole help."""
        try:
            super().parseOptions(options)
        except UsageError as e:
            raise CannotStart(f"twistd wecompany: {e} (twistd wecompany --help shows all options)") from None

    def postOptions(self) -> None:
        """Fill in what was left out."""
        if self["port"] is None and not self["listen"]:
            self["port"] = DEFAULT_PORT
        if self["interface"] is not None and self["port"] is None:
            raise UsageError("--interface goes with --port; an endpoint of --listen names its own interface")


class _Listener(Service):
    """Listens on one endpoint."""

    def __init__(self, name: str, endpoint: IStreamServerEndpoint, factory: WeCompanyFactory) -> None:
        self._name = name
        self._endpoint = endpoint
        self._factory = factory
        self._listening: Deferred[IListeningPort | None] | None = None

    def privilegedStartService(self) -> None:
        """Listen, or raise L{CannotStart}."""
        failures: list[Failure] = []

        def failed(failure: Failure) -> None:
            failures.append(failure)
            if not isStarting:
                _log.failure("Cannot listen on {name}", failure, name=self._name)

        isStarting = True
        self._listening = self._endpoint.listen(self._factory).addErrback(failed)
        isStarting = False
        if failures:
            raise CannotStart(f"twistd wecompany: cannot listen on {self._name}: {failures[0].getErrorMessage()}")

    def startService(self) -> None:
        """Listen, if that did not need privileges."""
        super().startService()
        if self._listening is None:
            self.privilegedStartService()

    def stopService(self) -> Deferred[None]:
        """Stop listening; fires when nobody can connect any more."""
        super().stopService()
        return Deferred.fromCoroutine(self._stopListening())

    async def _stopListening(self) -> None:
        listening, self._listening = self._listening, None
        port = None if listening is None else await listening
        closing = None if port is None else port.stopListening()
        if closing is not None:
            await closing


class WeCompanyService(MultiService):
    """
    The endpoints and the hub, which start and stop together.

    @ivar factory: the hub.
    """

    def __init__(self, factory: WeCompanyFactory, endpoints: list[tuple[str, IStreamServerEndpoint]]) -> None:
        """
        @param endpoints: what to listen on, each with a name for messages.
        """
        super().__init__()
        self.factory = factory
        for name, endpoint in endpoints:
            _Listener(name, endpoint, factory).setServiceParent(self)

    def startService(self) -> None:
        """Listen, and tell the operator what kind of server this is."""
        super().startService()
        _log.warn("This server runs open: it asks for no password, so whoever reaches it may register any user ID.")

    def stopService(self) -> Deferred[None]:
        """Stop listening, end the calls, tell the clients, and let them go; that takes 4 s at most."""
        listenersStopped: Deferred[object] = super().stopService()
        return listenersStopped.addCallback(lambda _: self.factory.stopServer())


def _raiseOpenFiles() -> float:
    """
    Raise this process' own limit of open files to the most that it may have.

    @return: the limit; infinity where there is none, or none to be told.
    """
    try:
        import resource
    except ImportError:  # Windows
        return math.inf
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    for limit in (hard, max(soft, MACOS_OPEN_MAX)):
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
        except (OSError, ValueError) as e:  # macOS names no hard limit and has one
            _log.debug("The limit of open files cannot be {limit}: {error}", limit=limit, error=str(e))
        else:
            return math.inf if limit == resource.RLIM_INFINITY else limit
    _log.warn("The limit of open files stays {soft}", soft=soft)
    return math.inf if soft == resource.RLIM_INFINITY else soft


def makeService(options: Options, reactor: IReactorTime | None = None) -> WeCompanyService:
    """
    Put the server together.

    @param reactor: what to run in; Twisted's own if not given.
    @raise CannotStart: if an endpoint string is not one.
    """
    if reactor is None:
        from twisted.internet import reactor as installed

        reactor = cast(IReactorTime, installed)
    listener = reactor if options["plain"] else fastest(reactor)
    endpoints: list[tuple[str, IStreamServerEndpoint]] = []
    if options["port"] is not None:
        interface = options["interface"] or ""
        tcp = TCP4ServerEndpoint(listener, options["port"], BACKLOG, interface)
        endpoints.append((f"port {options['port']}{' of ' + interface if interface else ''}", tcp))
    for description in options["listen"]:
        try:
            endpoints.append((description, serverFromString(listener, description)))
        except ImportError as e:
            raise CannotStart(f'twistd wecompany: --listen {description}: {e}: pip install "wecompany[tls]"') from None
        except Exception as e:  # noqa: BLE001 - endpoint plugins raise what they like, OpenSSL's errors among it
            raise CannotStart(f"twistd wecompany: --listen {description}: {e or type(e).__name__}") from None
    openFiles = _raiseOpenFiles()
    maxConnections = options["max-connections"]
    if not maxConnections and openFiles < math.inf:
        maxConnections = max(1, int(openFiles) - RESERVED_FILES)
    factory = WeCompanyFactory(
        reactor,
        ringTimeout=options["ring-timeout"],
        callGrace=options["call-grace"],
        maxCall=options["max-call"],
        idleTimeout=options["idle-timeout"],
        maxConnections=maxConnections,
        broadcast=bool(options["broadcast"]),
    )
    return WeCompanyService(factory, endpoints)
