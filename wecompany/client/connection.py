"""
One connection of a client: registration, signs of life, and which answer belongs to which request.

The server answers a TEXT only if something is wrong with it.  So every request is followed by a HEARTBEAT of its own:
the server handles frames in order, hence an ERROR that comes before that HEARTBEAT's answer is the request's, and when
the answer comes without one, all is well.  Where the server acknowledges texts, L{wecompany.client.texts} has those.
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

from wecompany.client.errors import ClientError, NotConnected, ServerError, TlsFailed
from wecompany.interfaces import IStreamTransport
from wecompany.wire import (
    MAX_PAYLOAD,
    ErrorCode,
    MessageType,
    WireError,
    decodeError,
    decodePayload,
    decodeU32,
    encodeFrame,
    splitId,
)

REGISTER_WITHIN = 30.0
"""Seconds for the server to answer the registration."""

ASK_AFTER = 5.0
"""
Seconds that a resumed session waits for the server's count before it asks whether there will be one.

The server forgets the session before it when anything arrives in the new one; what it counted must be known by then.
"""

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
    @ivar token: what a LOGIN or SIGNUP was answered with.
    @ivar isFull: whether enough waits to be sent, so that what is worth nothing late had better not be.
    """

    transport: IStreamTransport
    MAX_LENGTH = MAX_PAYLOAD

    _log = Logger()

    def __init__(
        self,
        clock: IReactorTime,
        userId: bytes,
        frameReceived: Callable[[int, bytes, bytes], None],
        errorReceived: Callable[[ServerError, int, bytes], None],
        countReceived: Callable[[int | None], None],
        chunkHandled: Callable[[], None],
    ) -> None:
        """
        @param frameReceived: called with C{(type, userId, data)} of every frame that is not about the connection.
        @param errorReceived: called with an ERROR that belongs to no request, and the type and user ID it is about.
        @param countReceived: called once after the registration, with how many texts the server took in the session
            before; with C{None} if it acknowledges none.
        @param chunkHandled: called when all frames that came together have been handled.
        """
        self._clock = clock
        self._userId = userId
        self._frameReceived = frameReceived
        self._errorReceived = errorReceived
        self._countReceived = countReceived
        self._chunkHandled = chunkHandled
        self._lost: Deferred[ClientError] = Deferred()
        self._requests: deque[_Request] = deque()
        self._count = 0
        self._heardAt = clock.seconds()
        self._heartbeats = LoopingCall(self._heartbeat)
        self._heartbeats.clock = clock
        self._lastError: ServerError | None = None
        self._registering: Deferred[None] | None = Deferred()
        self._askAfter: float | None = None
        self._isCounted = False
        self._timers: list[IDelayedCall] = []
        self._closing: IDelayedCall | None = None
        self._isRefused = False
        self.sessionId = b""
        self.token = b""
        self.isFull = False

    def register(self, messageType: int, data: bytes, askAfter: float | None = None) -> Deferred[None]:
        """
        Say who we are.

        @param askAfter: for an ACK, the seconds after the server's answer until we ask it whether its count follows.
            If there are any we are registered only then, because nothing else may be said before.
        @return: fires when the server has taken it; fails with L{ServerError} or L{NotConnected}.
        """
        registering = self._registering
        assert registering is not None
        self._askAfter = askAfter
        self._timers.append(self._clock.callLater(REGISTER_WITHIN, self.abort))
        self.sendFrame(messageType, self._userId, data)
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
            return self.askFrame(messageType, encodeFrame(messageType, userId, data))
        except WireError as e:
            return fail(ServerError(e.code, e.text))

    def askFrame(self, messageType: int, frame: bytes) -> Deferred[None]:
        """As L{ask}, with a whole frame of that type, or with none at all: then all frames before it were handled."""
        self._count += 1
        request = _Request(self._count.to_bytes(8, "big"), messageType, Deferred())
        self._requests.append(request)
        self.transport.write(frame + encodeFrame(MessageType.HEARTBEAT, b"", request.number))
        return request.answered

    def dataReceived(self, data: bytes) -> None:
        """Note that the server lives, and take its frames."""
        self._heardAt = self._clock.seconds()
        super().dataReceived(data)
        self._chunkHandled()

    def stringReceived(self, payload: bytes) -> None:
        """Take one frame."""
        if self._isRefused or self._closing is not None:
            return
        try:
            messageType, userId, data = decodePayload(payload)
            if messageType == MessageType.ERROR:
                self._errorFrame(userId, *decodeError(data))
            elif not self._isCounted and self._isAnswer(messageType, userId, data):
                return
            elif messageType == MessageType.HEARTBEAT:
                self._heartbeatReceived(userId, data)
            else:
                self._frameReceived(messageType, userId, data)
        except WireError as e:
            self._log.info("The server sent what is no message: {text}", text=e.text)
            self._isRefused = True
            self.abort()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """Fail whatever waits for an answer."""
        self._stopTimers()
        if self._heartbeats.running:
            self._heartbeats.stop()
        why: ClientError = self._lastError or _why(reason, self.transport)
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

    def _isAnswer(self, messageType: int, userId: bytes, data: bytes) -> bool:
        """Take what comes while we register; return whether it answers that, so that there is no more to it."""
        if self.sessionId:  # directly behind that stands the server's count, if there is to be one
            isCount = messageType == MessageType.ACK and not userId
            self._counted(decodeU32(data) if isCount else None)
            return isCount
        if messageType == MessageType.HEARTBEAT:
            self.sessionId = splitId(data)[0]
            if self._askAfter is None:
                self._counted(None)
            elif self._askAfter:
                self._timers.append(self._clock.callLater(self._askAfter, self._askForCount))
            else:
                self._askForCount()
                self._registered()
        elif messageType == MessageType.AUTH_RESPONSE:
            if data[:1] == b"\1":
                self.token = data[1:]
            else:
                self._lastError = ServerError(ErrorCode.BAD_CREDENTIAL, data[1:].decode("utf-8", "replace"))
                self.disconnect()
        else:
            raise WireError(ErrorCode.BAD_REQUEST, "something came before the registration's answer")
        return True

    def _askForCount(self) -> None:
        self.askFrame(MessageType.HEARTBEAT, b"").addErrback(lambda _: None)  # a loss is told by register()

    def _counted(self, count: int | None) -> None:
        self._isCounted = True
        if self._registering is not None:
            self._registered()
        self._countReceived(count)

    def _registered(self) -> None:
        registering, self._registering = self._registering, None
        assert registering is not None
        self._stopTimers()
        self._heartbeats.start(HEARTBEAT_EVERY, now=False)
        registering.callback(None)

    def _stopTimers(self) -> None:
        timers, self._timers = self._timers, []
        for timer in timers:
            if timer.active():
                timer.cancel()

    def _heartbeatReceived(self, userId: bytes, data: bytes) -> None:
        if userId:
            self.sendFrame(MessageType.HEARTBEAT, b"")  # the server asks whether we live
        elif self._requests and data == self._requests[0].number:
            request = self._requests.popleft()
            if request.error is None:
                request.answered.callback(None)
            else:
                request.answered.errback(Failure(request.error))

    def _errorFrame(self, userId: bytes, code: int, messageType: int, text: str) -> None:
        error = ServerError(code, text)
        if self._registering is not None or code in _CLOSING:
            self._lastError = error
        elif self._requests and self._requests[0].messageType == messageType and self._requests[0].error is None:
            self._requests[0].error = error
        else:
            self._errorReceived(error, messageType, userId)

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


def _why(reason: Failure, transport: IStreamTransport) -> ClientError:
    """Return why a connection was lost, as this library says it."""
    if reason.check("service_identity.exceptions.VerificationError"):
        return TlsFailed("its certificate is for another name")
    if reason.check("OpenSSL.SSL.Error"):
        from wecompany.client.tls import explain

        # OpenSSL says a list of (library, function, reason).
        errors = reason.value.args[0] if reason.value is not None and reason.value.args else None
        words = "; ".join(str(e[-1]) for e in errors) if isinstance(errors, list) else reason.getErrorMessage()
        return TlsFailed(explain(transport.getHandle(), f"TLS failed: {words}"))  # type: ignore[attr-defined]
    return NotConnected(f"the connection was lost: {reason.getErrorMessage()}")


_CLOSING = {
    ErrorCode.MALFORMED,
    ErrorCode.NOT_REGISTERED,
    ErrorCode.SHUTTING_DOWN,
    ErrorCode.REPLACED,
    ErrorCode.IDLE,
    ErrorCode.TOO_SLOW,
}
"""After these, the server closes a registered connection."""
