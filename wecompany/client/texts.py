"""
Texts that are not lost: what the server has not acknowledged, and how many of its texts we have taken.

Both sides count the texts of a session, from 0, in each direction.  When the connection is lost we register with the
number that we took and the session's ID; the server answers with the number that it took, and what lies past that is
sent again, in the new session, counted from 0.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from attrs import frozen
from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from wecompany.client.errors import ClientError, NotConnected
from wecompany.wire import ID_SIZE, ErrorCode, WireError, encodeU32

MAX_WAITING = 1_000
"""Texts that may wait for a lost connection to come back, those included that the server has not acknowledged."""

MAX_WAITING_BYTES = 4_194_304
"""Bytes of their frames together."""

NO_SESSION = bytes(ID_SIZE)
"""Stands in a registration for: there is nothing to go on from."""


@frozen
class Text:
    """
    A text that the server has not acknowledged.

    @ivar stored: what C{sendText} returned.
    """

    to: bytes
    frame: bytes
    stored: Deferred[None]


class Texts:
    """
    The texts of one client, over all its sessions.

    @ivar isReliable: whether the server of the last session acknowledges texts: it has a store.  C{None} if that is
        not known yet.
    """

    def __init__(self) -> None:
        self.isReliable: bool | None = None
        self._sessionId = NO_SESSION
        self._send: Callable[[bytes], None] | None = None
        self._waiting: deque[Text] = deque()
        self._waitingBytes = 0
        self._sent = 0  # of this session, in it or answered: those that wait are the last of them, then what is unsent
        self._settled = 0
        self._taken = 0
        self._acknowledged = 0

    def registration(self) -> bytes:
        """Return what stands before the credential in an ACK that registers."""
        return encodeU32(self._taken) + self._sessionId

    def registered(self) -> None:
        """There is a connection again; until it is known what kind of server it is at, texts wait."""
        if not self.isReliable:
            self.isReliable = None

    def begun(self, sessionId: bytes, counted: int | None, send: Callable[[bytes], None]) -> list[Text]:
        """
        A session has begun: send again what the server does not have.

        @param counted: how many texts the server took in the session that we registered with; C{None} if it
            acknowledges none.
        @param send: sends a frame.
        @return: without acknowledgements, the texts that it is now up to the caller to send.
        """
        # A server that forgot the session says 0, and one of its answers may have overtaken its count.
        stored = self._settle(min(counted or 0, self._sent))
        self.isReliable = counted is not None
        self._sessionId = sessionId
        self._sent = self._settled = self._taken = self._acknowledged = 0
        released: list[Text] = []
        if self.isReliable:
            self._send = send
            for text in self._waiting:
                self._sendNow(text)
        else:
            released.extend(self._waiting)
            self._waiting.clear()
            self._waitingBytes = 0
        for text in stored:
            text.stored.callback(None)
        return released

    def add(self, to: bytes, frame: bytes, isBounded: bool) -> Deferred[None]:
        """
        Send a text, now or when the connection is back.

        @param isBounded: whether it has to wait for that, so that not any number can.
        @return: fires when the server has it in its store; fails with what it answers instead, and with
            L{NotConnected} if too many wait already.
        """
        size = self._waitingBytes + len(frame)
        if isBounded and (len(self._waiting) >= MAX_WAITING or size > MAX_WAITING_BYTES):
            return fail(
                NotConnected(
                    f"there is no connection now, and no more than {MAX_WAITING} texts of "
                    f"{MAX_WAITING_BYTES} bytes together wait for one"
                )
            )
        text = Text(to, frame, Deferred())
        self._waiting.append(text)
        self._waitingBytes = size
        if self._send is not None:
            self._sendNow(text)
        return text.stored

    def _sendNow(self, text: Text) -> None:
        assert self._send is not None
        self._sent += 1
        self._send(text.frame)

    def acknowledged(self, count: int) -> None:
        """
        The server has the first C{count} texts of this session.

        @raise WireError: if so many were not sent.
        """
        if count > self._sent:
            raise WireError(ErrorCode.BAD_REQUEST, "more texts are acknowledged than were sent")
        for text in self._settle(count):
            text.stored.callback(None)

    def refused(self, to: bytes, error: ClientError) -> bool:
        """
        The server answers a text with an ERROR: that is the first one that it has not acknowledged.

        @return: whether there is such a text to that user.
        """
        if self._settled == self._sent or self._waiting[0].to != to:
            return False
        (text,) = self._settle(self._settled + 1)
        text.stored.errback(Failure(error))
        return True

    def _settle(self, count: int) -> list[Text]:
        """Return the texts of this session before number C{count} that waited, which they do no more."""
        texts = [self._waiting.popleft() for _ in range(self._settled, count)]
        self._settled = max(self._settled, count)
        self._waitingBytes -= sum(len(text.frame) for text in texts)
        return texts

    def lost(self) -> None:
        """The connection is gone."""
        self._send = None

    def fail(self, error: ClientError) -> None:
        """Nothing is sent any more."""
        self._settled = self._sent
        waiting, self._waiting = self._waiting, deque()
        self._waitingBytes = 0
        for text in waiting:
            text.stored.errback(Failure(error))

    def took(self) -> None:
        """A text of the server's has been shown."""
        self._taken += 1

    def acknowledgement(self) -> bytes:
        """Return the data of the ACK that is due; nothing if none is."""
        if self._send is None or self._acknowledged == self._taken:
            return b""
        self._acknowledged = self._taken
        return encodeU32(self._taken)
