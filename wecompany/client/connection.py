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
from twisted.internet.interfaces import IDelayedCall, IReactorTime
from twisted.internet.protocol import connectionDone
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from twisted.protocols.basic import Int16StringReceiver
from twisted.python.failure import Failure

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

DEAD_AFTER = 75.0
"""Seconds without a byte from the server after which the connection is given up: two heartbeats went unanswered."""


@define
class _Request:
    number: bytes
    messageType: int
    answered: Deferred[None]
    error: ServerError | None = None


class Connection(Int16StringReceiver):
    """
    A registered connection.

    @ivar sessionId: what the registration was answered with.
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
        lost: Callable[[Connection, ClientError], None],
    ) -> None:
        """
        @param frameReceived: called with C{(type, userId, data)} of every frame that is not about the connection.
        @param errorReceived: called with an ERROR that belongs to no request.
        @param lost: called with this connection and why it ended.
        """
        self._clock = clock
        self._userId = userId
        self._credential = credential
        self._frameReceived = frameReceived
        self._errorReceived = errorReceived
        self._lost = lost
        self._requests: deque[_Request] = deque()
        self._count = 0
        self._heardAt = clock.seconds()
        self._heartbeats = LoopingCall(self._heartbeat)
        self._heartbeats.clock = clock
        self._lastError: ServerError | None = None
        self._registering: Deferred[None] | None = Deferred()
        self._timeout: IDelayedCall | None = None
        self.sessionId = b""

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
        setNoDelay = getattr(self.transport, "setTcpNoDelay", None)
        if setNoDelay is not None:
            setNoDelay(True)

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
        try:
            messageType, userId, data = decodePayload(payload)
            if messageType == MessageType.HEARTBEAT:
                self._heartbeatReceived(userId, data)
            elif messageType == MessageType.ERROR:
                self._errorFrame(*decodeError(data))
            else:
                self._frameReceived(messageType, userId, data)
        except WireError as e:
            self._log.warn("The server sent what is no message: {text}", text=e.text)
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail whatever waits for an answer."""
        if self._timeout is not None and self._timeout.active():
            self._timeout.cancel()
        if self._heartbeats.running:
            self._heartbeats.stop()
        why: ClientError = self._lastError or NotConnected(f"the connection was lost: {reason.getErrorMessage()}")
        requests, self._requests = self._requests, deque()
        for request in requests:
            request.answered.errback(Failure(why))
        registering, self._registering = self._registering, None
        if registering is not None:
            registering.errback(Failure(why))
        self._lost(self, why)

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
