"""
One connection of a client: registration, signs of life, and which answer belongs to which request.

The server answers a TEXT only if something is wrong with it.  So every request is followed by a HEARTBEAT of its own:
the server handles frames in order, hence an ERROR that comes before that HEARTBEAT's answer is the request's, and when
the answer comes without one, all is well.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import define
from twisted.internet.defer import Deferred, fail
from twisted.internet.interfaces import IDelayedCall, IPushProducer, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure
from zope.interface import implementer

from wecompany.client.errors import ClientError, NotConnected, ServerError
from wecompany.interfaces import IStreamTransport
from wecompany.wire import (
    MAX_PAYLOAD,
    ErrorCode,
    MessageType,
    WireError,
    decodeError,
    decodePayload,
    encodeFrame,
)

REGISTER_WITHIN = 30.0
"""Seconds for the server to answer the registration."""

HEARTBEAT_EVERY = 30.0
"""Seconds between two heartbeats."""

CLOSE_WITHIN = 3.0
"""Seconds that a server has to read the last bytes."""

DEAD_AFTER = 75.0
"""Seconds without a byte from the server after which the connection is given up: two heartbeats went unanswered."""


@define
class _Request:
    number: bytes
    messageType: int
    answered: Deferred[None]
    error: ServerError | None = None


@implementer(IPushProducer)
class Connection(Int16StringReceiver):
    """
    A registered connection.

    @ivar sessionId: what the registration was answered with.
    @ivar isFull: whether enough waits to be sent, so that what is worth nothing late had better not be.
    """

    transport: IStreamTransport
    MAX_LENGTH = MAX_PAYLOAD

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        userId: bytes,
        credential: bytes,
        frameReceived: Callable[[int, bytes, bytes], None],
        errorReceived: Callable[[ServerError], None],
    ) -> None:
        """
        @param frameReceived: called with C{(type, userId, data)} of every frame that is not about the connection.
        @param errorReceived: called with an ERROR that belongs to no request.
        """
        self._clock = clock
        self._userId = userId
        self._credential = credential
        self._frameReceived = frameReceived
        self._errorReceived = errorReceived
        self._lost: Deferred[ClientError] = Deferred()
        self._requests: deque[_Request] = deque()
        self._count = 0
        self._heardAt = clock.seconds()
        self._heartbeats = LoopingCall(self._heartbeat)
        self._heartbeats.clock = clock
        self._lastError: ServerError | None = None
        self._registering: Deferred[None] | None = Deferred()
        self._timeout: IDelayedCall | None = None
        self._closing: IDelayedCall | None = None
        self._isRefused = False
        self.sessionId = b""
        self.isFull = False

    def register(self) -> Deferred[None]:
        """
        Say who we are.

        @return: fires when the server has taken it; fails with L{ServerError} or L{NotConnected}.
        """
        registering = self._registering
        assert registering is not None
        self._timeout = self._clock.callLater(REGISTER_WITHIN, self.abort)
        self.sendFrame(MessageType.HEARTBEAT, self._userId, self._credential)
        return registering

    def connectionMade(self) -> None:
        """Begin."""
        self.transport.registerProducer(self, True)
        setNoDelay = getattr(self.transport, "setTcpNoDelay", None)
        if setNoDelay is not None:
            setNoDelay(True)

    def pauseProducing(self) -> None:
        """The transport has enough: see L{isFull}."""
        self.isFull = True

    def resumeProducing(self) -> None:
        """The transport has sent what it had."""
        self.isFull = False

    def stopProducing(self) -> None:
        """The connection is lost."""

    def sendFrame(self, messageType: int, userId: bytes, data: bytes = b"") -> None:
        """
        Send a frame that nobody waits for an answer to.

        @raise WireError: if it is too long.
        """
        frame = encodeFrame(messageType, userId, data)
        self.transport.write(frame)

    def ask(self, messageType: int, userId: bytes, data: bytes = b"") -> Deferred[None]:
        """
        Send a frame.

        @return: fires when the server has handled it; fails with L{ServerError} or L{NotConnected}.
        """
        try:
            self.sendFrame(messageType, userId, data)
        except WireError as e:
            return fail(ServerError(e.code, e.text))
        self._count += 1
        request = _Request(self._count.to_bytes(8, "big"), messageType, Deferred())
        self._requests.append(request)
        self.sendFrame(MessageType.HEARTBEAT, b"", request.number)
        return request.answered

    def dataReceived(self, data: bytes) -> None:
        """Note that the server lives, and take its frames."""
        self._heardAt = self._clock.seconds()
        super().dataReceived(data)

    def stringReceived(self, payload: bytes) -> None:
        """Take one frame."""
        if self._isRefused:
            return
        try:
            messageType, userId, data = decodePayload(payload)
            if messageType == MessageType.HEARTBEAT:
                self._heartbeatReceived(userId, data)
            elif messageType == MessageType.ERROR:
                self._errorFrame(*decodeError(data))
            else:
                self._frameReceived(messageType, userId, data)
        except WireError as e:
            self._log.info("The server sent what is no message: {text}", text=e.text)
            self._isRefused = True
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail whatever waits for an answer."""
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
        if self._heartbeats.running:
            self._heartbeats.stop()
        why: ClientError = self._lastError or NotConnected(f"the connection was lost: {reason.getErrorMessage()}")
        registering, self._registering = self._registering, None
        if registering is not None:
            registering.errback(Failure(why))
        if self._closing is not None:
            self._closing.cancel()
        self._lost.callback(why)
        # Only now: whoever asks again in its errback finds that there is no connection.
        requests, self._requests = self._requests, deque()
        for request in requests:
            request.answered.errback(Failure(why))

    def _heartbeatReceived(self, userId: bytes, data: bytes) -> None:
        registering, self._registering = self._registering, None
        if registering is not None:
            self.sessionId = data
            assert self._timeout is not None
            self._timeout.cancel()
            self._heartbeats.start(HEARTBEAT_EVERY, now=False)
            registering.callback(None)
        elif userId:
            self.sendFrame(MessageType.HEARTBEAT, b"")  # the server asks whether we live
        elif self._requests and data == self._requests[0].number:
            request = self._requests.popleft()
            if request.error is None:
                request.answered.callback(None)
            else:
                request.answered.errback(Failure(request.error))

    def _errorFrame(self, code: int, messageType: int, text: str) -> None:
        error = ServerError(code, text)
        if self._registering is not None or code in _CLOSING:
            self._lastError = error
        elif self._requests and self._requests[0].messageType == messageType and self._requests[0].error is None:
            self._requests[0].error = error
        else:
            self._errorReceived(error)

    def _heartbeat(self) -> None:
        if self._clock.seconds() - self._heardAt >= DEAD_AFTER:
            self.abort()
        else:
            self.sendFrame(MessageType.HEARTBEAT, b"")

    def whenLost(self) -> Deferred[ClientError]:
        """Return the Deferred that fires with why the connection ended, once."""
        return self._lost

    def disconnect(self) -> None:
        """Close when everything has been sent, and in any case after C{CLOSE_WITHIN}."""
        if self._closing is None:
            self._closing = self._clock.callLater(CLOSE_WITHIN, self._closeNow)
            self.transport.unregisterProducer()
            self.transport.loseConnection()

    def _closeNow(self) -> None:
        self._closing = None
        self.abort()

    def abort(self) -> None:
        """Drop the connection at once."""
        self.transport.abortConnection()


_CLOSING = {
    ErrorCode.MALFORMED,
    ErrorCode.NOT_REGISTERED,
    ErrorCode.SHUTTING_DOWN,
    ErrorCode.REPLACED,
    ErrorCode.IDLE,
    ErrorCode.TOO_SLOW,
}
"""After these, the server closes a registered connection."""
