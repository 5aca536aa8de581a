"""
The service that twistd runs: the only place where the parts are put together.

C{twistd -n wecompany --port 8888}
"""

from __future__ import annotations

import math
import os
import signal
import sys
import textwrap
import threading
from collections.abc import Callable, Sequence
from ipaddress import ip_address
from pathlib import Path
from typing import Any, cast

from twisted.application.service import MultiService, Service
from twisted.cred.checkers import ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword
from twisted.cred.strcred import AuthOptionMixin, InvalidAuthType, UnsupportedInterfaces, makeChecker
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import SSL4ServerEndpoint, TCP4ServerEndpoint, serverFromString
from twisted.internet.interfaces import (
    IListeningPort,
    IProtocolFactory,
    IReactorFromThreads,
    IReactorTime,
    IStreamServerEndpoint,
)
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from twisted.python.usage import Options as _Options
from twisted.python.usage import UsageError

from wecompany._version import version
from wecompany.accounts import HASHING_AT_ONCE, TOKEN_LIFETIME, Accounts
from wecompany.calls import CALL_GRACE, MAX_CALL, RING_TIMEOUT
from wecompany.interfaces import IAuthenticator, StoreProblem
from wecompany.limits import DEFAULTS, Limits
from wecompany.poller import fastest
from wecompany.server import BACKLOG, IDLE_TIMEOUT, MAX_REFUSED, WeCompanyFactory
from wecompany.store import Store, openStore
from wecompany.tls import ServerTLS, TLSProblem
from wecompany.web import MAX_CONNECTIONS

DEFAULT_PORT = 8888

DEFAULT_DATABASE = "wecompany.sqlite"
"""The store's file."""

POLITE = 10
"""The nice value of the threads in which passwords are hashed."""

NO_DATABASE = "none"
"""What --database is for a server without a store."""

THREADS = HASHING_AT_ONCE
"""Threads for passwords.  The certificate's files are read in them, too."""

RESERVED_FILES = 64 + MAX_REFUSED
"""Open files that are not for connections: those of the process itself, and of connections that are being refused."""

MACOS_OPEN_MAX = 10_240
"""Open files that macOS allows a process, whatever its hard limit says."""

_BARE = ("tcp:", "tcp6:", "systemd:")
"""How the strings of endpoints without TLS begin."""

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


def _makeChecker(description: str) -> ICredentialsChecker:
    """Make a checker of what C{--auth} says."""
    checker: ICredentialsChecker = makeChecker(description)
    if isinstance(checker, InMemoryUsernamePasswordDatabaseDontUse):
        # "memory" keeps the words of the command line as they are, while all credentials are bytes.
        checker.users = {os.fsencode(name): os.fsencode(password) for name, password in checker.users.items()}
    return checker


def _whole(what: str, most: float) -> Callable[[str], int]:
    def coerce(value: str) -> int:
        if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) <= most):
            raise UsageError(f"{value!r} is not {what}")
        return int(value)

    return coerce


class Options(_Options, AuthOptionMixin):
    """What can be set on the command line."""

    synopsis = "[options]"
    longdesc = (
        "WeCompany Server passes messages, files and audio/video calls between the people of one company. "
        "All times are in seconds. Endpoints for --listen: ssl:8889:privateKey=key.pem:certKey=cert.pem, "
        "unix:/run/wecompany.sock, systemd:domain=INET:index=0, haproxy:tcp:8888."
    )

    supportedInterfaces = [IUsernamePassword]

    optParameters = [
        [
            "port",
            "p",
            None,
            f"TCP port to listen on. [default: {DEFAULT_PORT}, if there is no --listen]",
            _whole("a port: a number from 0 to 65535", 65535),
        ],
        ["interface", None, None, "Address that --port listens on, :: for IPv6 too. [default: every IPv4 address]"],
        [
            "tls",
            None,
            None,
            "Speak TLS on --port, with the certificate in the PEM file CERT, its chain behind it, and the key in KEY "
            "or CERT, as --tls CERT,KEY. Read again on SIGHUP and when the files change.",
        ],
        [
            "tls-clients",
            None,
            None,
            "Ask clients for a certificate that a CA in this PEM file has signed: it stands for the password of the "
            "user that it names. Without --accounts and --auth it is required.",
        ],
        [
            "web",
            None,
            None,
            "Serve the page for browsers too, on this TCP port or endpoint; --interface and --tls hold for the port.",
        ],
        [
            "status-password",
            None,
            None,
            "Give /status and /metrics on the web port to whoever has the password in this file, and to nobody else. "
            "[default: to this machine, without one]",
        ],
        ["database", None, DEFAULT_DATABASE, "File of the store, in twistd's run directory; none for no store."],
        ["token-lifetime", None, TOKEN_LIFETIME, "How long the token from a log-in is good.", _seconds(1)],
        ["ring-timeout", None, RING_TIMEOUT, "How long a call rings.", _seconds(0.1)],
        ["call-grace", None, CALL_GRACE, "How long a lost party of an active call may take to come back.", _seconds(0)],
        ["max-call", None, MAX_CALL, "How long a call may last; 0 for any time.", _seconds(0)],
        ["idle-timeout", None, IDLE_TIMEOUT, "How long a client may be silent.", _seconds(1)],
    ]

    optFlags = [
        ["accounts", None, "Let in only who has an account in the store; wecompany admin makes them."],
        ["signup", None, "Let anyone make an account; goes with --accounts."],
        ["broadcast", None, "Let clients send a text to everyone at once."],
        ["no-limits", None, "Turn all limits off but those that are set by --limit."],
        ["plain", None, "Leave the sockets to the reactor, even where a faster way is known (Linux)."],
    ]

    def __init__(self) -> None:
        super().__init__()
        self["listen"] = []
        self["web-origins"] = []
        self["limits"] = Limits()
        self["credCheckers"] = []
        self._limits: list[str] = []

    def opt_listen(self, endpoint: str) -> None:
        """Endpoint to listen on, in Twisted's notation; may be repeated."""
        self["listen"].append(endpoint)

    def opt_web_origin(self, origin: str) -> None:
        """Let pages of this origin connect too, as https://chat.example.com; may be repeated."""
        self["web-origins"].append(origin)

    def opt_limit(self, setting: str) -> None:
        """Set one of the limits below, as NAME=VALUE or NAME=VALUE:BURST; 0 turns it off. May be repeated."""
        try:
            Limits().changed(setting)
        except ValueError as e:
            raise UsageError(f"--limit: {e}") from None
        self._limits.append(setting)

    def opt_max_connections(self, number: str) -> None:
        """Another word for --limit connections=N."""
        self._limits.append(f"connections={_whole('a number of connections', math.inf)(number)}")

    def opt_auth(self, description: str) -> None:
        """
        Let in whom this credentials checker of Twisted's knows, as file:/etc/wecompany.passwd; may be repeated.
        """
        # Its argument may be a password, so only its kind is ever shown.
        kind = description.partition(":")[0]
        try:
            self.addChecker(_makeChecker(description))
        except InvalidAuthType:
            raise UsageError(f"--auth {kind}: there is no such checker; --help-auth lists all") from None
        except UnsupportedInterfaces:
            raise UsageError(f"--auth {kind}: this checker does not take user IDs and passwords") from None
        except Exception as e:  # noqa: BLE001 - plugins raise what they like
            raise UsageError(f"--auth {kind}: {' '.join(str(e).split()) or type(e).__name__}") from None

    def opt_help_auth(self) -> None:
        """Show the checkers that there are for --auth, and exit."""
        super().opt_help_auth()

    def opt_help_auth_type(self, kind: str) -> None:
        """Show what a checker for --auth takes, and exit."""
        super().opt_help_auth_type(kind)

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
        """Fill in what was left out, and see that all goes together."""
        if self["port"] is None and not self["listen"]:
            self["port"] = DEFAULT_PORT
        if self["no-limits"]:
            self["limits"] = Limits.none()
        for setting in self._limits:
            self["limits"] = self["limits"].changed(setting)
        web = self["web"]
        if web is not None and ":" not in web:
            try:
                self["web"] = _whole("a port, a number from 0 to 65535, or an endpoint", 65535)(web)
            except UsageError as e:
                raise UsageError(f"--web: {e}") from None
        hasPort = self["port"] is not None or isinstance(self["web"], int)
        for isWrong, why in (
            (
                self["interface"] is not None and not hasPort,
                "--interface goes with --port; an endpoint of --listen names its own interface",
            ),
            (
                self["tls"] is not None and not hasPort,
                "--tls goes with --port; for --listen there are ssl: endpoints",
            ),
            (bool(self["web-origins"]) and web is None, "--web-origin goes with --web"),
            (self["status-password"] is not None and web is None, "--status-password goes with --web"),
            (self["tls"] is not None and not self["tls"].partition(",")[0], "--tls names a file: CERT or CERT,KEY"),
            (self["tls-clients"] is not None and self["tls"] is None, "--tls-clients goes with --tls"),
            (not self["database"], "--database names a file, or none"),
            (self["accounts"] and self["database"] == NO_DATABASE, "--accounts needs a --database"),
            (self["signup"] and not self["accounts"], "--signup goes with --accounts"),
            (
                self["signup"] and self["credCheckers"],
                "--signup does not go with --auth: strangers could take the IDs of those whom only the checker knows",
            ),
        ):
            if isWrong:
                raise UsageError(why)

    def getUsage(self, width: int | None = None) -> str:
        """Return what --help shows: the options by their purpose, and all limits."""
        width = max(width or int(os.environ.get("COLUMNS", "80")), 60)
        takesValue = {name.removesuffix("=") for name in self.longOpt if name.endswith("=")}
        parts = []
        for title, names in _GROUPS.items():
            rows = []
            for name in names:
                text = " ".join(self.docs[name].split())
                default = self.defaults.get(name) if name in takesValue else None
                if default is not None:
                    text += f" [default: {default:{'' if isinstance(default, str) else 'g'}}]"
                rows.append((f"{'-p, ' * (name == 'port')}--{name}{'=' * (name in takesValue)}", text))
            parts.append(_table(title, rows, width))
        limits = [(str(limit), limit.what) for limit in DEFAULTS]
        parts.append(_table("Limits for --limit, as they are by default", limits, width))
        return "\n".join([*parts, *textwrap.wrap(self.longdesc, width), ""])


_GROUPS = {
    "Where it listens": ["port", "interface", "tls", "listen", "plain"],
    "In the browser": ["web", "web-origin", "status-password"],
    "Who may come in (anybody, if nothing here is chosen)": [
        "accounts",
        "signup",
        "token-lifetime",
        "auth",
        "help-auth",
        "help-auth-type",
        "tls-clients",
    ],
    "What it does": [
        "database",
        "broadcast",
        "ring-timeout",
        "call-grace",
        "max-call",
        "idle-timeout",
        "limit",
        "no-limits",
        "max-connections",
    ],
    "Other": ["version", "help"],
}
"""All options in the order of the help."""


def _table(title: str, rows: list[tuple[str, str]], width: int) -> str:
    column = max(len(first) for first, _ in rows) + 4
    lines = [f"{title}:"]
    for first, second in rows:
        lines += textwrap.wrap(second, width, initial_indent=f"  {first}".ljust(column), subsequent_indent=" " * column)
    return "\n".join([*lines, ""])


RunInThread = Callable[..., Deferred[Any]]
"""Calls a function with arguments in a thread; fires with what it returns."""


class _Listener(Service):
    """Listens on one endpoint."""

    def __init__(self, name: str, endpoint: IStreamServerEndpoint, factory: IProtocolFactory, isBare: bool) -> None:
        """
        @param isBare: whether passwords cross it as they are.
        """
        self._name = name
        self._isBare = isBare
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
        self._listening = self._endpoint.listen(self._factory).addCallbacks(self._warn, failed)
        isStarting = False
        if failures:
            raise CannotStart(f"twistd wecompany: cannot listen on {self._name}: {failures[0].getErrorMessage()}")

    def startService(self) -> None:
        """Listen, if that did not need privileges."""
        super().startService()
        if self._listening is None:
            self.privilegedStartService()

    def _warn(self, port: IListeningPort) -> IListeningPort:
        address = port.getHost() if self._isBare else None
        if isinstance(address, IPv4Address | IPv6Address) and not _isLoopback(address.host):
            _log.warn(
                "Passwords cross the network unencrypted at {name}: use --tls, or an address that only this machine "
                "reaches.",
                name=self._name,
            )
        return port

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


class _WebListener(_Listener):
    """Listens for browsers."""

    def __init__(
        self, name: str, endpoint: IStreamServerEndpoint, site: IProtocolFactory, isBare: bool, isEncrypted: bool
    ) -> None:
        """
        @param isEncrypted: whether browsers speak TLS with it.
        """
        super().__init__(name, endpoint, site, isBare)
        self._isEncrypted = isEncrypted

    def _warn(self, port: IListeningPort) -> IListeningPort:
        address = port.getHost()
        if isinstance(address, IPv4Address | IPv6Address):
            isLocal = _isLoopback(address.host)
            isAny = ip_address(address.host).is_unspecified
            host = "localhost" if isAny else f"[{address.host}]" if ":" in address.host else address.host
            scheme = "https" if self._isEncrypted else "http"
            _log.info("The page for browsers: {url}", url=f"{scheme}://{host}:{address.port}/")
            if not (isLocal or self._isEncrypted):
                _log.warn(
                    "Browsers on other machines give a page no camera and no microphone without TLS: use --tls or an "
                    "ssl: endpoint, or a proxy with TLS in front of {name}.",
                    name=self._name,
                )
        return super()._warn(port)


def _isBare(name: str, endpoint: IStreamServerEndpoint) -> bool:
    """Return whether an endpoint of that name is TCP without TLS; what else plugins bring is theirs to judge."""
    return isinstance(endpoint, TCP4ServerEndpoint) or name.removeprefix("haproxy:").startswith(_BARE)


def _isLoopback(host: str) -> bool:
    address = ip_address(host)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _behindReactor(f: Callable[..., Any], *arguments: Any) -> Any:
    """Call C{f} with less priority than the reactor's thread has, where threads have one: hashing takes long."""
    if sys.platform == "linux":
        os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), POLITE)
    return f(*arguments)


class Backend:
    """
    What the hub needs besides the network: threads, the store, and who lets people in.

    @ivar isOpen: whether nobody is asked for a password or certificate.
    @ivar keepsTexts: whether there is a store.
    """

    def __init__(
        self,
        reactor: IReactorTime,
        limits: Limits,
        database: str | None = None,
        makeAuthenticator: Callable[[Store | None, RunInThread], IAuthenticator] | None = None,
    ) -> None:
        """
        @param database: the store's file; none if not given.
        @param makeAuthenticator: called when there is a store; without it the server runs open.
        """
        self._reactor = reactor
        self._limits = limits
        self._database = database
        self._makeAuthenticator = makeAuthenticator
        self._store: Store | None = None
        self._pool: ThreadPool | None = None
        self.isOpen = makeAuthenticator is None
        self.keepsTexts = database is not None

    def start(self, factory: WeCompanyFactory) -> None:
        """
        Open the store, and give it to the hub.

        @raise CannotStart: if it cannot be opened.
        """
        limits = self._limits
        self._pool = ThreadPool(0, THREADS, "wecompany")
        self._pool.start()
        if self._database is not None:
            try:
                self._store = openStore(
                    self._database,
                    self._reactor,
                    accounts=not self.isOpen,
                    maxUsers=limits["users"].value,
                    queuedTexts=limits["queued-texts"].value,
                    queuedBytes=limits["queued-bytes"].value,
                    storeSize=limits["store-size"].value,
                )
            except StoreProblem as e:
                raise CannotStart(f"twistd wecompany: {e}") from None
            self._store.start()
        make = self._makeAuthenticator
        factory.setStore(self._store, None if make is None else make(self._store, self.runInThread))

    def runInThread(self, f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        """Call C{f} in a thread; fires with what it returns."""
        assert self._pool is not None
        return deferToThreadPool(cast(IReactorFromThreads, self._reactor), self._pool, _behindReactor, f, *arguments)

    def callSoon(self, f: Callable[[], object]) -> None:
        """Call C{f} in the reactor's thread, from wherever this is called."""
        cast(IReactorFromThreads, self._reactor).callFromThread(f)

    async def stop(self) -> None:
        """Commit whatever waits, and end the threads."""
        store, self._store = self._store, None
        if store is not None:
            await store.stop()
        pool, self._pool = self._pool, None
        if pool is not None:
            # This waits for the hashes that are being computed now.  Nobody is connected any more who could notice.
            pool.stop()


class WeCompanyService(MultiService):
    """
    The endpoints and the hub, which start and stop together.

    @ivar factory: the hub.
    """

    def __init__(
        self,
        factory: WeCompanyFactory,
        endpoints: list[tuple[str, IStreamServerEndpoint]],
        backend: Backend,
        tls: ServerTLS | None = None,
        web: tuple[str, IStreamServerEndpoint, IProtocolFactory] | None = None,
    ) -> None:
        """
        @param endpoints: what to listen on, each with a name for messages: its string, if it is made of one.
        @param tls: the certificate of one of the endpoints.
        @param web: name and endpoint for browsers, and what answers them.
        """
        super().__init__()
        self.factory = factory
        self._backend = backend
        self._tls = tls
        self._oldHandler: Any = None
        for name, endpoint in endpoints:
            isBare = not backend.isOpen and _isBare(name, endpoint)
            _Listener(name, endpoint, factory, isBare).setServiceParent(self)
        if web is not None:
            name, endpoint, site = web
            isEncrypted = isinstance(endpoint, SSL4ServerEndpoint) or name.removeprefix("haproxy:").startswith("ssl:")
            isBare = not backend.isOpen and _isBare(name, endpoint)
            _WebListener(name, endpoint, site, isBare, isEncrypted).setServiceParent(self)

    def startService(self) -> None:
        """
        Open the store, listen, and tell the operator what kind of server this is.

        The store is opened here and not before: twistd has only now gone to its run directory, become a daemon and put
        its privileges away.  Ports that needed those listen already, but nobody is served before this returns.

        @raise CannotStart: if the store cannot be opened.
        """
        self._backend.start(self.factory)
        super().startService()
        if self._tls is not None:
            self._tls.start()
        self._takeHangUps()
        if self._backend.isOpen:
            _log.warn(
                "This server runs open: it asks for no password, so whoever reaches it may register any user ID{more}.",
                more=", and gets the texts that wait for it" if self._backend.keepsTexts else "",
            )

    def stopService(self) -> Deferred[None]:
        """
        Stop listening, end the calls, tell the clients, and let them go; that takes 4 s at most.  Then close the store.
        """
        return Deferred.fromCoroutine(self._stop())

    async def _stop(self) -> None:
        if self._oldHandler is not None:
            signal.signal(signal.SIGHUP, self._oldHandler)
            self._oldHandler = None
        if self._tls is not None:
            self._tls.stop()
        listenersStopped: Deferred[object] = super().stopService()
        try:
            await listenersStopped
            await self.factory.stopServer()
        finally:
            await self._backend.stop()

    def _takeHangUps(self) -> None:
        """Read the certificate again on SIGHUP, where the system has that; it would end the process otherwise."""

        def hungUp(number: int, frame: object) -> None:
            # This runs between any two instructions of the reactor.
            self._backend.callSoon(reload)

        def reload() -> None:
            if self._tls is None:
                _log.info("SIGHUP: there is nothing to read again")
                return
            _log.info("SIGHUP: the certificate is read again")
            self._tls.reload().addErrback(lambda failure: _log.failure("The certificate cannot be read again", failure))

        if not hasattr(signal, "SIGHUP"):  # Windows
            return
        try:
            self._oldHandler = signal.signal(signal.SIGHUP, hungUp)
        except ValueError:
            _log.info("SIGHUP is not heeded: this is not the main thread")


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
    @raise CannotStart: if an endpoint string is not one, or the certificate cannot be used.
    """
    if reactor is None:
        from twisted.internet import reactor as installed

        reactor = cast(IReactorTime, installed)
    listener = reactor if options["plain"] else fastest(reactor)
    limits: Limits = options["limits"]
    openFiles = _raiseOpenFiles()
    if options["web"] is not None and openFiles < math.inf:
        openFiles -= min(MAX_CONNECTIONS, openFiles // 4)
    if not limits["connections"].value and openFiles < math.inf:
        limits = limits.changed(f"connections={max(1, int(openFiles) - RESERVED_FILES)}")
    checkers = options["credCheckers"]
    asksPasswords = bool(options["accounts"] or checkers)

    def makeAuthenticator(store: Store | None, runInThread: RunInThread) -> IAuthenticator:
        return Accounts(
            store,
            reactor,
            runInThread,
            ownPasswords=bool(options["accounts"]),
            signup=bool(options["signup"]),
            tokenLifetime=options["token-lifetime"],
            limits=limits,
            checkers=checkers,
            count=factory.count,
        )

    backend = Backend(
        reactor,
        limits,
        None if options["database"] == NO_DATABASE else options["database"],
        makeAuthenticator if asksPasswords or options["tls-clients"] else None,
    )
    tls = None
    if options["tls"] is not None:
        certificate, _, key = options["tls"].partition(",")
        clients = options["tls-clients"]
        try:
            tls = ServerTLS(
                reactor,
                backend.runInThread,
                Path(certificate),
                Path(key) if key else None,
                Path(clients) if clients else None,
                isRequired=not asksPasswords,
            )
        except TLSProblem as e:
            raise CannotStart(f"twistd wecompany: --tls: {e}") from None
    interface = options["interface"] or ""

    def portEndpoint(port: int) -> tuple[str, IStreamServerEndpoint]:
        name = f"port {port}{' of ' + interface if interface else ''}"
        if tls is None:
            return name, TCP4ServerEndpoint(listener, port, BACKLOG, interface)
        return name, SSL4ServerEndpoint(listener, port, tls, BACKLOG, interface)

    def stringEndpoint(option: str, description: str) -> tuple[str, IStreamServerEndpoint]:
        try:
            return description, serverFromString(listener, description)
        except ImportError as e:
            raise CannotStart(f'twistd wecompany: {option} {description}: {e}: pip install "wecompany[tls]"') from None
        except Exception as e:  # noqa: BLE001 - endpoint plugins raise what they like, OpenSSL's errors among it
            raise CannotStart(f"twistd wecompany: {option} {description}: {e or type(e).__name__}") from None

    endpoints = [] if options["port"] is None else [portEndpoint(options["port"])]
    endpoints += [stringEndpoint("--listen", description) for description in options["listen"]]
    factory = WeCompanyFactory(
        reactor,
        ringTimeout=options["ring-timeout"],
        callGrace=options["call-grace"],
        maxCall=options["max-call"],
        idleTimeout=options["idle-timeout"],
        broadcast=bool(options["broadcast"]),
        limits=limits,
    )
    web = None
    if options["web"] is not None:
        wanted = options["web"]
        where = portEndpoint(wanted) if isinstance(wanted, int) else stringEndpoint("--web", wanted)
        web = (*where, _makeSite(factory, reactor, options["web-origins"], options["status-password"]))
    return WeCompanyService(factory, endpoints, backend, tls, web)


def _makeSite(
    factory: WeCompanyFactory, reactor: IReactorTime, origins: list[str], passwordFile: str | None
) -> IProtocolFactory:
    password = None
    if passwordFile is not None:
        try:
            password = Path(passwordFile).read_bytes().rstrip(b"\r\n")
        except OSError as e:
            raise CannotStart(f"twistd wecompany: --status-password: {e}") from None
        if not password:
            raise CannotStart(f"twistd wecompany: --status-password: {passwordFile!r} is empty")
    try:
        from wecompany.web.site import WebSite
    except ImportError as e:
        raise CannotStart(f'twistd wecompany: --web: {e}: pip install "wecompany[web]"') from None
    try:
        return WebSite(factory, reactor, origins, statusPassword=password)
    except ValueError as e:
        raise CannotStart(f"twistd wecompany: --web-origin: {e}") from None
