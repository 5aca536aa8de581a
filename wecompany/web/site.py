"""
The page's files over HTTP, and the door to the gateway.

The files are those of C{wecompany/web/pages} and, for the operator, C{wecompany/web/status}, read once; what is not
among them is not there, however it is asked for.
"""

from __future__ import annotations

import gzip
import re
from base64 import b64decode
from binascii import Error as NotBase64
from collections.abc import Iterable
from hashlib import sha256
from hmac import compare_digest
from importlib.resources import files
from ipaddress import ip_address
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from attrs import frozen
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IProtocol, IReactorTime, ITransport
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from twisted.web.http import HTTPChannel
from twisted.web.resource import IResource, Resource, getChildForRequest
from twisted.web.server import NOT_DONE_YET, Request, Site

from wecompany.limits import AddressCounts, addressKey
from wecompany.metrics import Metrics, MetricsMissing
from wecompany.server import WeCompanyFactory
from wecompany.web import MAX_CONNECTIONS
from wecompany.web.gateway import Gateway
from wecompany.web.history import History

if TYPE_CHECKING:
    from importlib.resources.abc import Traversable

REQUEST_WITHIN = 15.0
"""Seconds in which a whole request has to come, from the connection's beginning or the answer before it."""

TAKE_WITHIN = 60
"""Seconds in which a client has to take the last answer when its time for another request is over."""

MAX_OF_ADDRESS = 500
"""L{MAX_CONNECTIONS} of one address, unless it comes through a proxy, which tells the address later."""

MAX_HEADERS = 16_384
"""Bytes of a request's first line and headers."""

_TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".ico": "image/x-icon",
    ".jpg": "image/jpeg",
    ".js": "text/javascript; charset=utf-8",
    ".json": "application/json",
    ".mjs": "text/javascript; charset=utf-8",
    ".mp3": "audio/mpeg",
    ".ogg": "audio/ogg",
    ".png": "image/png",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
    ".wav": "audio/wav",
    ".webmanifest": "application/manifest+json",
    ".webp": "image/webp",
    ".woff2": "font/woff2",
}
"""What is served, and as what.  The system's own table of types differs from one machine to the next."""

_POLICY = (
    "default-src 'self'; connect-src 'self'{sockets}; img-src 'self' blob: data:; media-src 'self' blob:; "
    "worker-src 'self'; object-src 'none'; base-uri 'none'; frame-ancestors 'none'; form-action 'self'"
)

_HEADERS = {
    b"Content-Security-Policy": _POLICY.format(sockets="").encode(),
    b"X-Content-Type-Options": b"nosniff",
    b"X-Frame-Options": b"DENY",
    b"Referrer-Policy": b"no-referrer",
    b"Permissions-Policy": b"camera=(self), microphone=(self)",
    b"Cross-Origin-Opener-Policy": b"same-origin",
    b"Cross-Origin-Resource-Policy": b"same-origin",
}
"""What every answer has."""

_TRANSPORT_SECURITY = b"max-age=31536000"

_PORTS = {"http": 80, "https": 443}

_HOST = re.compile(r"([a-z0-9._-]{1,253}|\[[0-9a-f:.]{2,45}\])(:[0-9]{1,5})?")


def checkOrigin(text: str) -> str:
    """
    Return an origin in the form in which browsers send it: C{scheme://host}, and the port unless it is the usual one.

    @raise ValueError: if it is none; the text is one line that says why.
    """
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise ValueError(f"{text!r} is not an origin: https://HOST or https://HOST:PORT") from None
    host = parts.netloc.lower()
    if not parts.scheme.isalpha() or text.lower() != f"{parts.scheme}://{host}" or not _HOST.fullmatch(host):
        raise ValueError(f"{text!r} is not an origin: https://HOST or https://HOST:PORT")
    if port is not None and port == _PORTS.get(parts.scheme):
        host = host.rpartition(":")[0]
    return f"{parts.scheme}://{host}"


@frozen
class _File:
    """
    One of the page's files.

    @ivar tag: its ETag: another one for every other content.
    @ivar encoding: how C{data} is compressed; empty if it is not.
    """

    data: bytes
    type: bytes
    tag: bytes
    encoding: bytes = b""

    @classmethod
    def read(cls, file: Traversable) -> _File:
        kind, data = _typeOf(file), file.read_bytes()
        return cls(data, kind, b'"' + sha256(data).hexdigest()[:32].encode() + b'"')

    def packed(self) -> _File:
        """Return the same as gzip has it, a third of the bytes.  No secret is in it that its length could tell."""
        return _File(gzip.compress(self.data, mtime=0), self.type, self.tag[:-1] + b'-gz"', b"gzip")


def _typeOf(file: Traversable) -> bytes:
    """Return as what a file is served; nothing for one that is not."""
    return _TYPES.get("." + file.name.rpartition(".")[2], "").encode()


def _readFiles(folder: Traversable, path: str = "/") -> dict[bytes, _File]:
    """Return all files in C{folder} of a type that is served, by their paths."""
    found: dict[bytes, _File] = {}
    for entry in folder.iterdir():
        if entry.is_dir():
            found |= _readFiles(entry, f"{path}{entry.name}/")
        elif _typeOf(entry):
            found[(path + entry.name).encode()] = _File.read(entry)
    return found


class _Request(Request):
    """A request whose answer has the strict headers, whatever it is."""

    def render(self, resrc: IResource) -> None:
        """Say what every answer says, and then the resource's own."""
        headers = self.responseHeaders
        headers.removeHeader(b"Server")
        for name, value in _HEADERS.items():
            headers.setRawHeaders(name, [value])
        host = _hostOf(self)
        if host:  # some browsers do not take 'self' for WebSockets
            sockets = f" wss://{host}" + ("" if self.isSecure() else f" ws://{host}")
            self.setHeader(b"Content-Security-Policy", _POLICY.format(sockets=sockets).encode())
        if self.isSecure():
            self.setHeader(b"Strict-Transport-Security", _TRANSPORT_SECURITY)
        if self.method in (b"GET", b"HEAD"):
            super().render(resrc)
        else:
            self.setHeader(b"Allow", b"GET, HEAD")
            self.write(_say(self, 405, "Only GET and HEAD are served here."))
            self.finish()


def _hostOf(request: Request) -> str:
    """Return the host and port that the client says it has asked; nothing if that makes no sense."""
    hosts = request.requestHeaders.getRawHeaders(b"Host") or [b""]
    host = hosts[0].decode("latin-1").lower()
    return host if len(hosts) == 1 and _HOST.fullmatch(host) else ""


def _say(request: Request, code: int, text: str, status: bytes | None = None) -> bytes:
    """Answer with plain text; C{status} is for a code that Twisted has no words for."""
    body = text.encode() + b"\n"
    request.setResponseCode(code, status)
    request.setHeader(b"Content-Type", b"text/plain; charset=utf-8")
    request.setHeader(b"Content-Length", b"%d" % len(body))
    request.setHeader(b"Cache-Control", b"no-store")
    return b"" if request.method == b"HEAD" else body


def _tell(request: Request, body: bytes, kind: str) -> bytes:
    """Answer with figures, which are others the next time."""
    request.setHeader(b"Content-Type", kind.encode())
    request.setHeader(b"Content-Length", b"%d" % len(body))
    request.setHeader(b"Cache-Control", b"no-store")
    return b"" if request.method == b"HEAD" else body


class _Pages(Resource):
    """Everything that is not put beside it: a page's files."""

    def __init__(self, files: dict[bytes, _File], path: bytes) -> None:
        """
        @param files: by their paths.
        @param path: where the page itself is, whose name among the files is C{index.html}.
        """
        super().__init__()
        self._files = dict(files)
        page = path.rstrip(b"/") + b"/index.html"
        if page in files:
            self._files[path] = files[page]
        self._packed = {path: file.packed() for path, file in self._files.items()}

    def getChild(self, path: bytes, request: Request) -> _Leaf:
        """Return what is there, or what says that nothing is."""
        accepted = _header(request, b"Accept-Encoding").lower().replace(b" ", b"").split(b",")
        return _Leaf((self._packed if b"gzip" in accepted else self._files).get(request.path))

    def render(self, request: Request) -> bytes:
        """Answer with the page, where its path has no slash at its end."""
        return self.getChild(b"", request).render(request)


class _Leaf(Resource):
    """A file, or none."""

    isLeaf = True

    def __init__(self, file: _File | None) -> None:
        super().__init__()
        self._file = file

    def render(self, request: Request) -> bytes:
        """Answer with the file, or that the client has it."""
        file = self._file
        if file is None:
            return _say(request, 404, "There is nothing here.")
        # The modules name each other, so all of them must be of one version: each is asked for, and seldom sent.
        request.setHeader(b"Cache-Control", b"no-cache")
        request.setHeader(b"ETag", file.tag)
        request.setHeader(b"Vary", b"Accept-Encoding")
        given = b",".join(request.requestHeaders.getRawHeaders(b"If-None-Match") or [])
        if any(tag.strip().removeprefix(b"W/") in (file.tag, b"*") for tag in given.split(b",")):
            request.setResponseCode(304)
            return b""
        request.setHeader(b"Content-Type", file.type)
        if file.encoding:
            request.setHeader(b"Content-Encoding", file.encoding)
        request.setHeader(b"Content-Length", b"%d" % len(file.data))
        return b"" if request.method == b"HEAD" else file.data


class _Door(Resource):
    """C{/ws}: makes a WebSocket of a request that may become one."""

    isLeaf = True

    def __init__(self, factory: WeCompanyFactory, gateway: Gateway, origins: frozenset[str]) -> None:
        super().__init__()
        self._hub = factory
        self._gateway = gateway
        self._origins = origins

    def render(self, request: Request) -> bytes | int:
        """Shake hands, or say why not."""
        if request.path != b"/ws":
            return _say(request, 404, "There is nothing here.")
        if not self._isAllowed(request):
            self._hub.count("web requests refused: another origin")
            return _say(request, 403, "Pages of that origin may not connect here.")
        words = {word.strip().lower() for word in _header(request, b"Connection").split(b",")}
        if (
            request.method != b"GET"
            or request.clientproto != b"HTTP/1.1"
            or _header(request, b"Upgrade").lower() != b"websocket"
            or b"upgrade" not in words
            or _header(request, b"Sec-WebSocket-Version") != b"13"
        ):
            request.setHeader(b"Upgrade", b"websocket")
            request.setHeader(b"Connection", b"Upgrade")
            request.setHeader(b"Sec-WebSocket-Version", b"13")
            return _say(request, 426, "This is a WebSocket, version 13.", b"Upgrade Required")
        key = _header(request, b"Sec-WebSocket-Key")
        if not _isKey(key):
            return _say(request, 400, "Sec-WebSocket-Key is 16 bytes in base64.")
        channel = request.channel
        assert isinstance(channel, _Channel)
        self._gateway.open(key, channel.upgrade)
        return NOT_DONE_YET

    def _isAllowed(self, request: Request) -> bool:
        """Whether the page that asks may, or it is no page: only browsers say where a request comes from."""
        origins = request.requestHeaders.getRawHeaders(b"Origin")
        if origins is None:
            return True
        origin = origins[0].decode("latin-1").lower()
        if len(origins) > 1:
            return False
        try:
            own = checkOrigin(f"{'https' if request.isSecure() else 'http'}://{_hostOf(request)}")
        except ValueError:
            own = ""
        return origin == own or origin in self._origins


def _header(request: Request, name: bytes) -> bytes:
    return b",".join(request.requestHeaders.getRawHeaders(name) or [])


def _isKey(key: bytes) -> bool:
    try:
        return len(b64decode(key, validate=True)) == 16
    except NotBase64:
        return False


class _Health(Resource):
    """C{/health}, C{/health/ready} and C{/health/live}: for whoever shares out the load, or starts the server anew."""

    isLeaf = True

    def __init__(self, factory: WeCompanyFactory) -> None:
        super().__init__()
        self._hub = factory

    def render(self, request: Request) -> bytes:
        """Say how the server is, with 200 if that is well and 503 else."""
        if request.path == b"/health/live":
            return _say(request, 200, "live")
        if request.path not in (b"/health", b"/health/ready"):
            return _say(request, 404, "There is nothing here.")
        if self._hub.isStopping:
            return _say(request, 503, "the server is going away")
        if self._hub.isStoreFailing:
            return _say(request, 503, "the store does not work")
        return _say(request, 200, "ready")


_FORWARDED = (b"Forwarded", b"Via", b"X-Forwarded-For", b"X-Forwarded-Host", b"X-Real-IP")
"""What proxies say of themselves."""

_MILLISECONDS = re.compile(rb"[0-9]{1,15}")


class _Guard(Resource):
    """Lets the operator alone to what is behind it: who is on this machine or, if there is a password, knows that."""

    isLeaf = True

    def __init__(self, factory: WeCompanyFactory, password: bytes | None, guarded: Resource) -> None:
        super().__init__()
        self._hub = factory
        self._digest = None if password is None else sha256(password).digest()
        self._guarded = guarded

    def render(self, request: Request) -> bytes:
        """Answer as what is behind this does, or say why not."""
        if self._digest is None and not _isLocal(request):
            self._hub.count("web requests refused: status from elsewhere")
            return _say(request, 403, "Without --status-password this is for the server's own machine.")
        if self._digest is not None and not compare_digest(sha256(request.getPassword()).digest(), self._digest):
            if request.requestHeaders.hasHeader(b"Authorization"):
                self._hub.count("web requests refused: wrong status password")
            request.setHeader(b"WWW-Authenticate", b'Basic realm="WeCompany status", charset="UTF-8"')
            return _say(request, 401, "This needs the password of --status-password; any user name will do.")
        answer: bytes = getChildForRequest(self._guarded, request).render(request)
        return answer


class _Metrics(Resource):
    """C{/metrics}: all figures, as Prometheus reads them."""

    isLeaf = True

    def __init__(self, factory: WeCompanyFactory) -> None:
        super().__init__()
        self._metrics: Metrics | None = None
        try:
            self._metrics = Metrics(factory)
        except MetricsMissing as e:
            self._missing = str(e)

    def render(self, request: Request) -> bytes:
        """Answer with all figures, or say why not."""
        if request.path != b"/metrics":
            return _say(request, 404, "There is nothing here.")
        if self._metrics is None:
            return _say(request, 501, self._missing)
        return _tell(request, self._metrics.render(), self._metrics.contentType)


class _Figures(Resource):
    """C{/status/data}: what the page at C{/status} draws, with C{?after=} only what is newer, in milliseconds."""

    isLeaf = True

    def __init__(self, history: History) -> None:
        super().__init__()
        self._history = history

    def render(self, request: Request) -> bytes:
        """Answer with the samples."""
        if request.path != b"/status/data":
            return _say(request, 404, "There is nothing here.")
        after = (request.args or {}).get(b"after", [b""])[0]
        return _tell(
            request, self._history.render(int(after) if _MILLISECONDS.fullmatch(after) else 0), _TYPES[".json"]
        )


def _statusPage(history: History) -> Resource:
    """Return C{/status}, with all that belongs to it: the page has the colours and the icon of the other one."""
    own = files("wecompany.web")
    shared = {f"/status/{name}".encode(): _File.read(own / "pages" / name) for name in ("theme.css", "favicon.svg")}
    page = _Pages(_readFiles(own / "status", "/status/") | shared, b"/status")
    page.putChild(b"data", _Figures(history))
    return page


def _isLocal(request: Request) -> bool:
    """
    Whether somebody on this machine asks, and asks this machine.

    A proxy here passes on what others ask, and a page of theirs can give this machine another name: neither counts.
    """
    if any(map(request.requestHeaders.hasHeader, _FORWARDED)):
        return False
    host = _hostOf(request)
    name = host[1 : host.index("]")] if host.startswith("[") else host.partition(":")[0]
    return (name == "localhost" or _isLoopback(name)) and _isLoopback(getattr(request.getClientAddress(), "host", ""))


def _isLoopback(host: object) -> bool:
    try:
        address = ip_address(str(host))
    except ValueError:
        return False
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


class _Channel(HTTPChannel):
    """
    One connection that asks for files, or becomes a WebSocket.

    It speaks HTTP/1.1 alone: that will do for a page of some files, and browsers open a WebSocket with nothing else.
    """

    totalHeadersSize = MAX_HEADERS
    abortTimeout = TAKE_WITHIN
    site: WebSite
    transport: Any
    _countedAs: str | None = None
    _isCounted = False

    def connectionMade(self) -> None:
        """Begin, if there are not too many."""
        self._isCounted = True
        peer = self.transport.getPeer()
        if isinstance(peer, IPv4Address | IPv6Address) and not hasattr(self.transport, "_proxyInfo"):
            self._countedAs = addressKey(peer.host)
        super().connectionMade()
        if not self.site.enter(self, self._countedAs):
            self.transport.abortConnection()

    def dataReceived(self, data: bytes) -> None:
        """Take what has come, until the last answer is given: over TLS more can come then."""
        if not self.transport.disconnecting:
            super().dataReceived(data)

    def resetTimeout(self) -> None:
        """A few bytes give no more time: a whole request has to come."""

    def timeoutConnection(self) -> None:
        """The time for a request is over; what was answered may still be taken."""
        self._abortingCall = self.callLater(self.abortTimeout, self.forceAbortClient)
        self.loseConnection()

    def forceAbortClient(self) -> None:
        """It was not taken."""
        self._abortingCall = None
        self.transport.abortConnection()

    def headerReceived(self, line: bytes) -> bool:
        """Take a header; a request with a body is not even read."""
        isGood: bool = super().headerReceived(line)
        if isGood and self.length != 0:
            self.transport.write(b"HTTP/1.1 413 Content Too Large\r\nConnection: close\r\nContent-Length: 0\r\n\r\n")
            self.loseConnection()
            return False
        return isGood

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self._leave()
        super().connectionLost(reason)

    def upgrade(self, protocol: IProtocol) -> ITransport:
        """Hand the connection over: from now on, and with what follows the request already, it is C{protocol}'s."""
        self._leave()
        self.requests.clear()
        self.transport.unregisterProducer()
        self.dataReceived = self.rawDataReceived = protocol.dataReceived  # type: ignore[method-assign]
        self.connectionLost = protocol.connectionLost  # type: ignore[method-assign, assignment]
        transport: ITransport = self.transport
        return transport

    def _leave(self) -> None:
        if self._isCounted:
            self._isCounted = False
            self.site.leave(self, self._countedAs)


class WebSite(Site):
    """
    What an application listens with for browsers, through any endpoint: the page at C{/}, the gateway at C{/ws}, and
    for the operator C{/status}, C{/metrics} and C{/health}.

    Further resources can be put beside them: C{site.resource.putChild(b"news", resource)}.
    """

    noisy = False
    displayTracebacks = False
    requestFactory = _Request
    protocol = _Channel  # type: ignore[assignment]

    def __init__(
        self,
        factory: WeCompanyFactory,
        reactor: IReactorTime,
        origins: Iterable[str] = (),
        folder: Traversable | None = None,
        statusPassword: bytes | None = None,
    ) -> None:
        """
        @param factory: the hub.
        @param reactor: the time; it is the hub's.
        @param origins: pages of these origins, such as C{https://chat.example.com}, may connect, too.
        @param folder: files to serve in place of the page's own; they are read here and at once.
        @param statusPassword: what C{/status} and C{/metrics} ask for; without one they are for this machine alone.
        @raise ValueError: if one of the origins is none.
        """
        pages = _Pages(_readFiles(folder or files("wecompany.web") / "pages"), b"/")
        pages.putChild(b"ws", _Door(factory, Gateway(factory, reactor), frozenset(map(checkOrigin, origins))))
        pages.putChild(b"health", _Health(factory))
        pages.putChild(b"metrics", _Guard(factory, statusPassword, _Metrics(factory)))
        self._history = History(factory, reactor)
        pages.putChild(b"status", _Guard(factory, statusPassword, _statusPage(self._history)))
        super().__init__(pages, timeout=REQUEST_WITHIN, reactor=reactor)
        self._hub = factory
        self._channels: set[_Channel] = set()
        self._ofAddress = AddressCounts()

    def enter(self, channel: _Channel, address: str | None) -> bool:
        """
        There is one more.

        @param address: as it is counted; C{None} for one that is not.
        @return: whether there may be.
        """
        self._channels.add(channel)
        isTooMany = len(self._channels) > MAX_CONNECTIONS
        isTooManyOfAddress = address is not None and self._ofAddress.add(address) > MAX_OF_ADDRESS
        if isTooMany or isTooManyOfAddress:
            self._hub.count(f"web connections refused: too many{'' if isTooMany else ' of one address'}")
            return False
        return True

    def leave(self, channel: _Channel, address: str | None) -> None:
        """There is one less."""
        self._channels.discard(channel)
        if address is not None:
            self._ofAddress.remove(address)

    def startFactory(self) -> None:
        """Begin to take samples; keep no log of requests, which whoever asks could fill, and no clock for one."""
        self._history.start()

    def stopFactory(self) -> None:
        """The port is closed: those that only ask for files go too."""
        self._history.stop()
        for channel in list(self._channels):
            channel.loseConnection()
