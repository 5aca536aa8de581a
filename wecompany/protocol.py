"""
One connection: bytes to messages and back, registration, heartbeat and idle time.

::

    client                                        server
      | HEARTBEAT alice  (or LOGIN, ACK, any type)   |      the first frame says who one is
      |--------------------------------------------->|
      | <--------------- HEARTBEAT alice [sessionId] |      from here on it is alice's
      |                                              |
      | TEXT bob "hello"                             |
      |--------------------------------------------->|--- TEXT alice "hello" ---> bob
      |                                              |
      | HEARTBEAT "" anything                        |      every 30 s
      |--------------------------------------------->|
      | <-------------------- HEARTBEAT "" anything  |

What a message means is the hub's business; it is reached as C{self.factory} only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from enum import Enum
from hashlib import sha256

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from wecompany.backlog import MAX_TEXTS
from wecompany.interfaces import Attempt, IConnection, IHub, IStreamTransport, Session
from wecompany.outbound import Outbound, Turn
from wecompany.wire import (
    ID_SIZE,
    MAX_FIRST_PAYLOAD,
    MAX_REASON,
    NO_TYPE,
    ErrorCode,
    MessageType,
    WireError,
    checkUserId,
    decodeFrames,
    decodeRun,
    decodeU32,
    encodeError,
    encodeFrame,
    encodeTag,
    hasFrame,
)

REGISTER_WITHIN = 10.0
"""Seconds in which the first frame has to come."""

DECIDE_WITHIN = 30.0
"""Seconds in which the hub has to have decided about the first frame."""

LINGER = 3.0
"""Seconds that a client has to read the last ERROR and close; then the connection is dropped."""

MAX_HELD = 65_536
"""Bytes of further frames that wait for a registration; past that the client is not read."""


MAX_FRAMES = 200
"""Frames of one client that are taken before others get their turn: so a flood of small ones, or of bad ones that are
all answered, takes no more than its share."""

ERROR_COSTS = 10
"""Frames that one stands for besides itself if it is answered with an ERROR, which costs that much more."""

SHARE_IS_OVER = "others have their turn"
"""Why a connection is not read."""

LOCAL = "local"
"""Stands for the address of whoever comes through a UNIX socket."""


def _isProxied(transport: object) -> bool:
    """Return whether a proxy in front is yet to tell where the client is: its first bytes do (C{haproxy:})."""
    return getattr(transport, "_proxyInfo", transport) is None


def _drop(frames: bytes, n: int = 1) -> None:
    """Take the place of L{IConnection.send} and C{sendRun} when the last word is said."""


class _Phase(Enum):
    NEW = "no frame yet"
    REGISTERING = "the hub decides"
    REGISTERED = "somebody's"
    CLOSED = "the last word is said"


@implementer(IConnection)
class WeCompanyProtocol(Protocol):
    """
    The server's side of one connection.

    The frames are those of Twisted's C{Int16StringReceiver}; a whole chunk of them is taken in one loop.
    """

    # There may be many thousands of these, mostly idle.
    __slots__ = (
        "_clock",
        "_deadline",
        "_firstType",
        "_heard",
        "_heardAt",
        "_holds",
        "_isTaking",
        "_outbound",
        "_phase",
        "_probed",
        "_sessions",
        "_turn",
        "_unparsed",
        "address",
        "connected",
        "countedAs",
        "factory",
        "isDirect",
        "mediaLeft",
        "send",
        "sendRun",
        "session",
        "storing",
        "tag",
        "textsLeft",
        "transport",
        "userId",
    )

    factory: IHub
    transport: IStreamTransport
    # See IConnection: they are the queue's own, as one call less is worth it here.
    send: Callable[[bytes], None]
    sendRun: Callable[[bytes, int], None]

    _log = Logger()

    def __init__(self, hub: IHub, clock: IReactorTime, turn: Turn) -> None:
        self.factory = hub
        self._turn = turn
        self._clock = clock
        self.userId = b""
        self.tag = b""
        self._phase = _Phase.NEW
        self._firstType = NO_TYPE
        self.address = ""
        self.countedAs = ""
        self.session: Session | None = None
        self.isDirect = True
        self.textsLeft = self.mediaLeft = self.storing = 0
        self._sessions: tuple[bytes, ...] = ()
        self._holds: tuple[str, ...] = ()
        self._isTaking = False
        self._unparsed = b""
        self._heard = True
        self._probed = False
        self._heardAt = 0.0
        self._deadline = clock.seconds() + REGISTER_WITHIN

    # -- IProtocol

    def connectionMade(self) -> None:
        """Begin."""
        setNoDelay = getattr(self.transport, "setTcpNoDelay", None)
        if setNoDelay is not None:
            setNoDelay(True)
        self._outbound = Outbound(
            self.transport,
            self._clock,
            self._turn,
            self.factory.count,
            self._tooMuchWaits,
            self._isBehind,
            self._cleared,
        )
        self.send = self._outbound.send
        self.sendRun = self._outbound.sendRun
        if not _isProxied(self.transport):
            self._knowAddress()
        self.factory.connectionMade(self)

    def dataReceived(self, data: bytes) -> None:
        """Take what has arrived, however the stream was cut."""
        if not self._heard:
            self._isHeard()
        if self._isTaking and not self._unparsed:
            # What is just passed on, as nearly all is, goes its way without a turn.
            if len(data) > 4 and data[0] << 8 | data[1] == len(data) - 2:
                body = 5 + (data[3] << 8 | data[4])
                try:
                    if body <= len(data) and self.factory.relay(self, data[2], data[5:body], data[body:]):
                        return
                except Exception:  # noqa: BLE001 - whatever is wrong with one frame stays with that frame
                    self._isAtFault(data[2], data[5:body])
                    return
            elif self._isRelayed(data):
                return
        if self._unparsed:
            data = self._unparsed + data
        turn = self._turn
        turn.isOpen = True
        try:
            if self._isTaking:
                self._takeFrames(data)
            elif self._phase is _Phase.NEW:
                self._takeFirstFrame(data)
            elif self._phase is not _Phase.CLOSED:
                self._keepUnparsed(data)
        finally:
            turn.close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self._setPhase(_Phase.CLOSED)
        self._unparsed = b""
        self.factory.connectionLost(self)
        self._outbound.clear()

    # -- IConnection

    def peerName(self) -> str:
        """See L{IConnection.peerName}."""
        address = self.transport.getPeer()
        if isinstance(address, IPv4Address | IPv6Address):
            return f"{address.host}:{address.port}"
        return "a UNIX socket" if isinstance(address, UNIXAddress) else str(address)

    def sendError(self, code: ErrorCode, text: str, messageType: int, userId: bytes) -> None:
        """See L{IConnection.sendError}."""
        try:
            if userId:
                checkUserId(userId)
        except WireError:
            userId = b""
        self.factory.count(f"errors: {code.name}")
        self.send(encodeFrame(MessageType.ERROR, userId, encodeError(code, messageType, text)))

    def registered(self, userId: bytes, sessionId: bytes, resumed: bytes, token: bytes) -> None:
        """See L{IConnection.registered}."""
        self._setPhase(_Phase.REGISTERED)
        self._heardAt = self._clock.seconds()
        self.userId = userId
        self.tag = encodeTag(userId)
        digest = sha256(sessionId).digest()
        self._sessions = (digest, resumed) if resumed else (digest,)
        answer = encodeFrame(MessageType.HEARTBEAT, userId, sessionId)
        if self._wantsAuthResponse():
            answer = encodeFrame(MessageType.AUTH_RESPONSE, userId, b"\1" + token) + answer
        self._heard = not resumed  # to learn of what comes first
        self.send(answer)

    def resume(self) -> None:
        """See L{IConnection.resume}."""
        self._goOn()

    def hold(self, why: str) -> None:
        """See L{IConnection.hold}."""
        if why not in self._holds:
            self._holds += (why,)
            self._isTaking = False
            self.transport.pauseProducing()

    def release(self, why: str) -> None:
        """See L{IConnection.release}."""
        if why in self._holds:
            self._holds = tuple(w for w in self._holds if w != why)
            self._goOn()

    def _goOn(self) -> None:
        """Take what was kept, and read again, if nothing is in the way any more."""
        if self._holds or self._phase is not _Phase.REGISTERED:
            return
        self._isTaking = True
        outer, self._turn.isOpen = self._turn.isOpen, True
        try:
            self._takeFrames(self._unparsed)
        finally:
            if not outer:
                self._turn.close()
        if self._isTaking:
            self.transport.resumeProducing()

    @property
    def isClosed(self) -> bool:
        """See L{IConnection.isClosed}."""
        return self._phase is _Phase.CLOSED

    def hasRoomFor(self, size: int) -> bool:
        """See L{IConnection.hasRoomFor}."""
        return self._outbound.textsWaiting + size <= MAX_TEXTS

    def setInCall(self, isInCall: bool) -> None:
        """See L{IConnection.setInCall}."""
        self._outbound.setInCall(isInCall)

    @property
    def textsWaiting(self) -> int:
        """See L{IConnection.textsWaiting}."""
        return self._outbound.textsWaiting

    @property
    def isClear(self) -> bool:
        """See L{IConnection.isClear}."""
        return self._outbound.isClear

    @property
    def waiting(self) -> int:
        """See L{IConnection.waiting}."""
        return self._outbound.size

    def waitingByClass(self) -> Mapping[str, int]:
        """See L{IConnection.waitingByClass}."""
        return self._outbound.waitingByClass()

    def takeTexts(self) -> list[tuple[bytes, bytes]]:
        """See L{IConnection.takeTexts}."""
        return self._outbound.takeTexts()

    def handedTexts(self) -> list[tuple[bytes, bytes]]:
        """See L{IConnection.handedTexts}."""
        return self._outbound.handedTexts()

    def ownsSession(self, digest: bytes) -> bool:
        """See L{IConnection.ownsSession}."""
        return digest in self._sessions

    def probe(self) -> None:
        """See L{IConnection.probe}."""
        if self._heard:
            self._heardAt = self._clock.seconds()
        self._heard = False
        self._probed = True
        if self._holds:  # what it said may be among what is not read
            self._isHeard()
            return
        self.send(encodeFrame(MessageType.HEARTBEAT, self.userId))

    def sweep(self, now: float) -> None:
        """See L{IConnection.sweep}."""
        if self._phase is _Phase.CLOSED:
            if now >= self._deadline:
                self.abort()
        elif self._phase is _Phase.NEW:
            if now >= self._deadline:
                self.close(ErrorCode.NOT_REGISTERED, f"no first frame within {REGISTER_WITHIN:g} s")
        elif self._phase is _Phase.REGISTERING and now >= self._deadline:
            self.close(ErrorCode.OVERLOADED, "the server could not decide in time: try again later")
        elif self._outbound.isStalled(now):
            self.close(ErrorCode.TOO_SLOW, "you take nothing of what waits for you")
        elif self._phase is _Phase.REGISTERED:
            if self._heard or self._holds:
                self._heard = False
                self._heardAt = now
            elif now - self._heardAt >= self.factory.idleTimeout:
                idle = self.factory.idleTimeout
                self.close(ErrorCode.IDLE, f"nothing came for {idle:g} s: send a HEARTBEAT every {idle / 3:g} s")

    def close(self, code: ErrorCode, text: str, lingers: bool = True) -> None:
        """See L{IConnection.close}."""
        self._close(code, text, NO_TYPE, b"", lingers)

    def abort(self) -> None:
        """See L{IConnection.abort}."""
        self.transport.abortConnection()

    # -- frames

    def _isRelayed(self, data: bytes) -> bool:
        """If C{data} is a run of frames and nothing else, pass them on; return whether that has been done."""
        messageType, userId = NO_TYPE, b""
        try:
            run = decodeRun(data, 0, MAX_FRAMES)
            if run is None:
                return False
            messageType, userId, bodies, isEven, end = run
            return end == len(data) and self.factory.relayRun(self, messageType, userId, bodies, isEven, end)
        except WireError:
            return False  # that is said where frames are taken one by one
        except Exception:  # noqa: BLE001 - see dataReceived
            self._isAtFault(messageType, userId)
            return True

    def _takeFrames(self, data: bytes) -> None:
        receive = self.factory.frameReceived
        at = 0
        left = MAX_FRAMES
        try:
            while left > 0 and (run := decodeRun(data, at, left)) is not None:
                messageType, userId, bodies, isEven, end = run
                if len(bodies) > 1 and self.factory.relayRun(self, messageType, userId, bodies, isEven, end - at):
                    left -= len(bodies)
                    at = end
                    continue
                for body in bodies:
                    left -= 1
                    at += 5 + len(userId) + len(body)
                    try:
                        receive(self, messageType, userId, body)
                    except WireError as e:
                        self.sendError(e.code, e.text, messageType, userId)
                        left -= ERROR_COSTS
                    except Exception:  # noqa: BLE001 - whatever is wrong with one frame stays with that frame
                        self._isAtFault(messageType, userId)
                        left -= ERROR_COSTS
                    if not self._isTaking:
                        self._unparsed = data[at:] if self._phase is _Phase.REGISTERED else b""
                        return
                    if left <= 0:
                        break
        except WireError as e:
            self._close(e.code, e.text, NO_TYPE, b"")
        else:
            self._unparsed = rest = data[at:]
            if rest and hasFrame(rest):  # it had its share of this turn
                self.hold(SHARE_IS_OVER)
                self._clock.callLater(0, self.release, SHARE_IS_OVER)

    def _isAtFault(self, messageType: int, userId: bytes) -> None:
        """The server could not handle a frame, and that is being caught."""
        self._log.failure("A frame of type {type} could not be handled", type=messageType)
        self.sendError(ErrorCode.INTERNAL, "a fault in the server; it is logged", messageType, userId)

    def _takeFirstFrame(self, data: bytes) -> None:
        if not self.address:
            self._knowAddress()
            if self.isClosed:
                return
        if len(data) >= 2 and int.from_bytes(data[:2], "big") > MAX_FIRST_PAYLOAD:
            self.close(ErrorCode.MALFORMED, f"a first frame has at most {MAX_FIRST_PAYLOAD} bytes")
            return
        self._unparsed = data
        try:
            for messageType, userId, body, end in decodeFrames(data):
                self._unparsed = b""
                self._turn.received[messageType] += 1
                self._turn.receivedBytes[messageType] += end
                self._setPhase(_Phase.REGISTERING)
                self._deadline = self._clock.seconds() + DECIDE_WITHIN
                self._keepUnparsed(data[end:])
                self._register(messageType, userId, body)
                return
        except WireError as e:
            self.close(e.code, e.text)

    def _register(self, messageType: int, userId: bytes, data: bytes) -> None:
        if not userId:
            self._close(ErrorCode.NOT_REGISTERED, "the first frame says your user ID", messageType, b"")
            return
        try:
            checkUserId(userId)
        except WireError as e:
            self._close(ErrorCode.MALFORMED, e.text, messageType, b"")
            return
        self._firstType = messageType
        self.userId = userId
        credential = data
        received = 0
        resumed = None
        if messageType == MessageType.ACK:
            if len(data) < 4 + ID_SIZE:
                self._close(ErrorCode.MALFORMED, "an ACK has a count and a session ID first", messageType, userId)
                return
            received = decodeU32(data[:4])
            sessionId = data[4 : 4 + ID_SIZE]
            resumed = sha256(sessionId).digest() if any(sessionId) else b""
            credential = data[4 + ID_SIZE :]
        if len(credential) > MAX_REASON:
            self._close(ErrorCode.MALFORMED, f"a credential has at most {MAX_REASON} bytes", messageType, userId)
            return
        names: frozenset[bytes] = frozenset()
        if ISSLTransport.providedBy(self.transport):
            from wecompany.tls import certificateNames  # what this needs is an extra

            names = certificateNames(self.transport)
        self.factory.register(self, Attempt(userId, credential, messageType, self.address, names), resumed, received)

    def _keepUnparsed(self, data: bytes) -> None:
        self._unparsed = data
        if len(data) >= MAX_HELD:
            self.transport.pauseProducing()

    def _setPhase(self, phase: _Phase) -> None:
        self._phase = phase
        if phase is _Phase.CLOSED:
            self.send = self.sendRun = _drop
        self._isTaking = phase is _Phase.REGISTERED and not self._holds

    def _knowAddress(self) -> None:
        """Learn where the client is, which behind a proxy only the first bytes tell."""
        peer = self.transport.getPeer()
        self.address = peer.host if isinstance(peer, IPv4Address | IPv6Address) else LOCAL
        self.factory.addressKnown(self)

    # -- the end

    def _wantsAuthResponse(self) -> bool:
        return self._firstType in (MessageType.LOGIN, MessageType.SIGNUP)

    def _close(self, code: ErrorCode, text: str, messageType: int, userId: bytes, lingers: bool = True) -> None:
        """Say why, then close.  The frame at fault is named as L{_sendError} does."""
        if self._phase is _Phase.CLOSED:
            return
        if self._phase is _Phase.REGISTERING and self._firstType != NO_TYPE:
            messageType, userId = self._firstType, self.userId
        if self._phase is _Phase.REGISTERING and self._wantsAuthResponse():
            lastWord = encodeFrame(MessageType.AUTH_RESPONSE, userId, b"\0" + text.encode())
        else:
            lastWord = encodeFrame(MessageType.ERROR, userId, encodeError(code, messageType, text))
        if lingers:  # to log one that comes only to be turned away costs more than to do so
            level = self._log.info if self._phase is _Phase.REGISTERED else self._log.debug
            level(
                "Closing {user!r} from {peer}: {code}: {text}",
                user=self.userId.decode(),
                peer=self.peerName(),
                code=code.name,
                text=text,
            )
        self.factory.count(f"connections closed: {code.name}")
        self._setPhase(_Phase.CLOSED)
        self._unparsed = b""
        self._deadline = self._clock.seconds() + LINGER
        self.factory.unregister(self)
        if self.session is None and self._outbound.isSpoiled:
            self.abort()
            return
        if code == ErrorCode.TOO_SLOW:
            self._outbound.clear()
        self._outbound.finish(lastWord)
        # A socket that is closed with unread bytes in it sends a reset, and a reset can overtake the ERROR.  So where
        # the transport can, only our half is closed, and what still comes is read and dropped until the client closes.
        halfClose = getattr(self.transport, "loseWriteConnection", None)
        if not lingers or halfClose is None or ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            self.transport.resumeProducing()
            halfClose()

    def _isBehind(self) -> None:
        if self.isDirect:
            self.factory.isBehind(self)

    def _cleared(self) -> None:
        self.factory.cleared(self)

    def _tooMuchWaits(self) -> None:
        self.close(ErrorCode.TOO_SLOW, "too much waits for you")

    # -- signs of life

    def _isHeard(self) -> None:
        self._heard = True
        if self._probed or len(self._sessions) > 1:
            self._probed = False
            self._sessions = self._sessions[:1]
            self.factory.heardFrom(self)
