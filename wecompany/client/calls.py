"""A call, as one of its parties sees it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from attrs import frozen
from twisted.internet.defer import Deferred, fail, succeed
from twisted.python.failure import Failure

from wecompany.client.errors import CallRejected, ClientError, NotConnected
from wecompany.wire import MAX_DESCRIPTION, VIDEO_FLAG, EndCode, MessageType, RejectCode, encodeReason

if TYPE_CHECKING:
    from wecompany.client.session import Client


@frozen
class CallOutcome:
    """
    How a call ended.  As a string it is for a person to read.

    @ivar rejected: whether it was never taken; then C{code} is a L{RejectCode<wecompany.RejectCode>}, else an
        L{EndCode<wecompany.EndCode>}.
    @ivar text: the words of whoever ended it, may be empty.
    """

    rejected: bool
    code: int
    text: str

    @property
    def isHangUp(self) -> bool:
        """Whether one of the parties ended the call when it was active."""
        return not self.rejected and self.code == EndCode.HUNG_UP

    def __str__(self) -> str:
        kind: type[RejectCode] | type[EndCode] = RejectCode if self.rejected else EndCode
        try:
            name = kind(self.code).name.lower().replace("_", " ")
        except ValueError:
            name = f"code {self.code}"
        return name + (f": {self.text}" if self.text else "")


class Call:
    """
    A call with one other user.

    @ivar peer: the other party.
    @ivar isIncoming: whether the other party called.
    @ivar offer: what the caller said of its media.
    @ivar answer: what the callee said of its media, once the call is active.
    @ivar isActive: whether media flows.
    @ivar outcome: how it ended; C{None} until then.
    @ivar mediaReceived: called with each media that comes; yours to set.
    """

    def __init__(self, client: Client, callId: bytes, peer: str, flags: int, offer: bytes, isIncoming: bool) -> None:
        self._client = client
        self._id = callId
        self.peer = peer
        self.isVideo = bool(flags & VIDEO_FLAG)
        self.isIncoming = isIncoming
        self.offer = offer
        self.answer = b""
        self.isActive = False
        self.outcome: CallOutcome | None = None
        self.mediaReceived: Callable[[bytes], None] = lambda media: None
        self._lastWord: tuple[MessageType, bytes] | None = None
        self._acceptWaiters: list[Deferred[bytes]] = []
        self._endWaiters: list[Deferred[CallOutcome]] = []

    @property
    def callId(self) -> str:
        """Its ID, as 32 hexadecimal digits."""
        return self._id.hex()

    def accept(self, answer: bytes = b"") -> Deferred[bytes]:
        """
        Take the call.

        @return: fires when media flows; fails with L{ClientError} if the call is over.
        """
        if len(answer) > MAX_DESCRIPTION:
            return fail(ClientError(f"an answer has at most {MAX_DESCRIPTION} bytes"))
        self._say(MessageType.CALL_ACCEPT, answer)
        return self.whenAccepted()

    def reject(self, code: int = RejectCode.DECLINED, text: str = "") -> Deferred[CallOutcome]:
        """Decline the call; fires when it is over.  Of C{text} as much is sent as a reason may have."""
        self._say(MessageType.CALL_REJECT, bytes((code,)) + encodeReason(text))
        return self.whenEnded()

    def end(self, text: str = "") -> Deferred[CallOutcome]:
        """Hang up, or cancel what rings; fires when it is over.  Of C{text} as much is sent as a reason may have."""
        self._say(MessageType.CALL_END, b"\0" + encodeReason(text))
        return self.whenEnded()

    def _say(self, messageType: MessageType, rest: bytes) -> None:
        if self.outcome is None:
            self._lastWord = messageType, self._id + rest
            self._client.sendCallFrame(messageType, self.peer, self._id + rest)

    def stands(self) -> None:
        """For the client: the server says again how the call stands, so what was last said may have been lost."""
        if self._lastWord is not None and not (self.isActive and self._lastWord[0] == MessageType.CALL_ACCEPT):
            self._client.sendCallFrame(self._lastWord[0], self.peer, self._lastWord[1])

    def sendMedia(self, media: bytes) -> bool:
        """
        Send media to the other party.

        @param media: its first byte is its kind, see C{docs/media.rst}.
        @return: whether it was sent: only while the call is active, there is a connection with room for it, and it
            fits into a frame.  Media that has to wait is worth nothing.
        """
        return self.isActive and self._client.sendMedia(self.peer, media)

    def whenAccepted(self) -> Deferred[bytes]:
        """Return a Deferred that fires with the answer, or fails with L{CallRejected} or L{NotConnected}."""
        if self.isActive:
            return succeed(self.answer)
        if self.outcome is not None:
            return fail(self._failure(self.outcome))
        waiter: Deferred[bytes] = Deferred()
        self._acceptWaiters.append(waiter)
        return waiter

    def whenEnded(self) -> Deferred[CallOutcome]:
        """Return a Deferred that fires when the call is over."""
        if self.outcome is not None:
            return succeed(self.outcome)
        waiter: Deferred[CallOutcome] = Deferred()
        self._endWaiters.append(waiter)
        return waiter

    def accepted(self, answer: bytes) -> None:
        """For the client: the server says that the call is active."""
        if self.isActive:
            return
        self.isActive = True
        self.answer = answer
        waiters, self._acceptWaiters = self._acceptWaiters, []
        for waiter in waiters:
            waiter.callback(answer)

    def over(self, outcome: CallOutcome) -> None:
        """For the client: the server says that the call has ended."""
        self.isActive = False
        self.outcome = outcome
        acceptWaiters, self._acceptWaiters = self._acceptWaiters, []
        endWaiters, self._endWaiters = self._endWaiters, []
        for waiting in acceptWaiters:
            waiting.errback(Failure(self._failure(outcome)))
        for waiter in endWaiters:
            waiter.callback(outcome)

    @staticmethod
    def _failure(outcome: CallOutcome) -> ClientError:
        if outcome.rejected:
            return CallRejected(outcome.code, outcome.text)
        return NotConnected(f"the call is over: {outcome}")
