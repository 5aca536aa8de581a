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

import hmac
from enum import Enum
from hashlib import sha256

from twisted.internet.address import IPv4Address, IPv6Address, UNIXAddress
from twisted.internet.interfaces import IReactorTime, ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from wecompany.interfaces import IConnection, IHub, IStreamTransport
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
    encodeError,
    encodeFrame,
    encodeTag,
)

REGISTER_WITHIN = 10.0
"""Seconds in which the first frame has to come."""

LINGER = 3.0
"""Seconds that a client has to read the last ERROR and close; then the connection is dropped."""

MAX_HELD = 65_536
"""Bytes of further frames that wait for a registration; past that the client is not read."""


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

    factory: IHub
    transport: IStreamTransport

    _log = Logger()

    def __init__(self, hub: IHub, clock: IReactorTime, turn: Turn) -> None:
        self.factory = hub
        self._turn = turn
        self._clock = clock
        self.userId = b""
        self.tag = b""
        self._phase = _Phase.NEW
        self._firstType = NO_TYPE
        self._sessionDigest = b""
        self._unparsed = b""
        self._readingPaused = False
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
        self._outbound = Outbound(self.transport, self._clock, self._turn, self._tooMuchWaits)
        self.factory.connectionMade(self)

    def dataReceived(self, data: bytes) -> None:
        """Take what has arrived, however the stream was cut."""
        if not self._heard:
            self._isHeard()
        if self._unparsed:
            data = self._unparsed + data
        turn = self._turn
        turn.isOpen = True
        try:
            if self._phase is _Phase.REGISTERED:
                self._takeFrames(data)
            elif self._phase is _Phase.NEW:
                self._takeFirstFrame(data)
            elif self._phase is _Phase.REGISTERING:
                self._hold(data)
        finally:
            turn.close()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self._phase = _Phase.CLOSED
        self._unparsed = b""
        self._outbound.clear()
        self.factory.connectionLost(self)

    # -- IConnection

    def peerName(self) -> str:
        """See L{IConnection.peerName}."""
        address = self.transport.getPeer()
        if isinstance(address, IPv4Address | IPv6Address):
            return f"{address.host}:{address.port}"
        return "a UNIX socket" if isinstance(address, UNIXAddress) else str(address)

    def send(self, frames: bytes) -> None:
        """See L{IConnection.send}."""
        if self._phase is not _Phase.CLOSED:
            self._outbound.send(frames)

    def registered(self, userId: bytes, sessionId: bytes) -> None:
        """See L{IConnection.registered}."""
        self._phase = _Phase.REGISTERED
        self._heardAt = self._clock.seconds()
        self.userId = userId
        self.tag = encodeTag(userId)
        self._sessionDigest = sha256(sessionId).digest()
        answer = encodeFrame(MessageType.HEARTBEAT, userId, sessionId)
        if self._wantsAuthResponse():
            answer = encodeFrame(MessageType.AUTH_RESPONSE, userId, b"\1") + answer
        self.send(answer)

    def resume(self) -> None:
        """See L{IConnection.resume}."""
        if self._phase is not _Phase.REGISTERED:
            return
        self._takeFrames(self._unparsed)
        if self._readingPaused:
            self._readingPaused = False
            self.transport.resumeProducing()

    def ownsSession(self, sessionId: bytes) -> bool:
        """See L{IConnection.ownsSession}."""
        return hmac.compare_digest(self._sessionDigest, sha256(sessionId).digest())

    def probe(self) -> None:
        """See L{IConnection.probe}."""
        if self._heard:
            self._heardAt = self._clock.seconds()
        self._heard = False
        self._probed = True
        self.send(encodeFrame(MessageType.HEARTBEAT, self.userId))

    def sweep(self, now: float) -> None:
        """See L{IConnection.sweep}."""
        if self._phase is _Phase.CLOSED:
            if now >= self._deadline:
                self.abort()
        elif self._phase is _Phase.NEW:
            if now >= self._deadline:
                self.close(ErrorCode.NOT_REGISTERED, f"no first frame within {REGISTER_WITHIN:g} s")
        elif self._outbound.isStalled(now):
            self.close(ErrorCode.TOO_SLOW, "you take nothing of what waits for you")
        elif self._phase is _Phase.REGISTERED:
            if self._heard:
                self._heard = False
                self._heardAt = now
            elif now - self._heardAt >= self.factory.idleTimeout:
                idle = self.factory.idleTimeout
                self.close(ErrorCode.IDLE, f"nothing came for {idle:g} s: send a HEARTBEAT every {idle / 3:g} s")

    def close(self, code: ErrorCode, text: str) -> None:
        """See L{IConnection.close}."""
        self._close(code, text, NO_TYPE, b"")

    def abort(self) -> None:
        """See L{IConnection.abort}."""
        self.transport.abortConnection()

    # -- frames

    def _takeFrames(self, data: bytes) -> None:
        receive = self.factory.frameReceived
        end = 0
        try:
            for messageType, userId, body, end in decodeFrames(data):
                try:
                    receive(self, messageType, userId, body)
                except WireError as e:
                    self._sendError(e.code, e.text, messageType, userId)
                except Exception:  # noqa: BLE001 - whatever is wrong with one frame stays with that frame
                    self._log.failure("A frame of type {type} could not be handled", type=messageType)
                    self._sendError(ErrorCode.INTERNAL, "a fault in the server; it is logged", messageType, userId)
                if self._phase is not _Phase.REGISTERED:
                    return
        except WireError as e:
            self._close(e.code, e.text, NO_TYPE, b"")
        else:
            self._unparsed = data[end:]

    def _takeFirstFrame(self, data: bytes) -> None:
        if len(data) >= 2 and int.from_bytes(data[:2], "big") > MAX_FIRST_PAYLOAD:
            self.close(ErrorCode.MALFORMED, f"a first frame has at most {MAX_FIRST_PAYLOAD} bytes")
            return
        self._unparsed = data
        try:
            for messageType, userId, body, end in decodeFrames(data):
                self._unparsed = b""
                self._phase = _Phase.REGISTERING
                self._hold(data[end:])
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
        sessionId = None
        if messageType == MessageType.ACK:
            if len(data) < 4 + ID_SIZE:
                self._close(ErrorCode.MALFORMED, "an ACK has a count and a session ID first", messageType, userId)
                return
            sessionId = data[4 : 4 + ID_SIZE]
            credential = data[4 + ID_SIZE :]
        if len(credential) > MAX_REASON:
            self._close(ErrorCode.MALFORMED, f"a credential has at most {MAX_REASON} bytes", messageType, userId)
            return
        self.factory.register(self, userId, credential, sessionId)

    def _hold(self, data: bytes) -> None:
        self._unparsed = data
        if len(data) >= MAX_HELD and not self._readingPaused:
            self._readingPaused = True
            self.transport.pauseProducing()

    # -- the end

    def _wantsAuthResponse(self) -> bool:
        return self._firstType in (MessageType.LOGIN, MessageType.SIGNUP)

    def _close(self, code: ErrorCode, text: str, messageType: int, userId: bytes) -> None:
        """Say why, then close.  The frame at fault is named as L{_sendError} does."""
        if self._phase is _Phase.CLOSED:
            return
        if self._phase is _Phase.REGISTERING and self._firstType != NO_TYPE:
            messageType, userId = self._firstType, self.userId
        if self._phase is _Phase.REGISTERING and self._wantsAuthResponse():
            lastWord = encodeFrame(MessageType.AUTH_RESPONSE, userId, b"\0" + text.encode())
        else:
            lastWord = encodeFrame(MessageType.ERROR, userId, encodeError(code, messageType, text))
        level = self._log.info if self._phase is _Phase.REGISTERED else self._log.debug
        level(
            "Closing {user!r} from {peer}: {code}: {text}",
            user=self.userId.decode(),
            peer=self.peerName(),
            code=code.name,
            text=text,
        )
        self.factory.count(f"connections closed: {code.name}")
        self._phase = _Phase.CLOSED
        self._unparsed = b""
        self._deadline = self._clock.seconds() + LINGER
        if code == ErrorCode.TOO_SLOW:
            self._outbound.clear()
        self._outbound.finish(lastWord)
        # A socket that is closed with unread bytes in it sends a reset, and a reset can overtake the ERROR.  So where
        # the transport can, only our half is closed, and what still comes is read and dropped until the client closes.
        halfClose = getattr(self.transport, "loseWriteConnection", None)
        if halfClose is None or ISSLTransport.providedBy(self.transport):
            self.transport.loseConnection()
        else:
            if self._readingPaused:
                self.transport.resumeProducing()
            halfClose()
        self.factory.unregister(self)

    def _sendError(self, code: ErrorCode, text: str, messageType: int, userId: bytes) -> None:
        try:
            if userId:
                checkUserId(userId)
        except WireError:
            userId = b""
        self.factory.count(f"errors: {code.name}")
        self.send(encodeFrame(MessageType.ERROR, userId, encodeError(code, messageType, text)))

    def _tooMuchWaits(self) -> None:
        self.close(ErrorCode.TOO_SLOW, "too much waits for you")

    # -- signs of life

    def _isHeard(self) -> None:
        self._heard = True
        if self._probed:
            self._probed = False
            self.factory.heardFrom(self)
