"""What waits for one receiver: how much of it there may be, and how long it may stand still."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from wecompany.interfaces import IStreamTransport

MAX_WAITING = 4 * 1_048_576
"""Bytes that may wait for one receiver, besides the transport's own 64 KiB."""

STALLED_AFTER = 60.0
"""Seconds after which a receiver that takes nothing while something waits is given up."""

MERGE = 4_096
"""Bytes up to which what waits is joined: each piece costs some fifty bytes that L{MAX_WAITING} leaves out."""

BATCH = 65_536
"""Bytes that are handed to the transport at once."""


class Turn:
    """
    The time in which one chunk of somebody's frames is handled.

    What is sent meanwhile is kept for its end, so that each receiver gets all of it in one write.

    @ivar isOpen: whether such a time is now.
    """

    __slots__ = ("_receivers", "isOpen")

    _log = Logger()

    def __init__(self) -> None:
        self.isOpen = False
        self._receivers: list[Outbound] = []

    def add(self, receiver: Outbound) -> None:
        """Remember that something is kept for C{receiver}."""
        self._receivers.append(receiver)

    def close(self) -> None:
        """Let all that was kept go."""
        self.isOpen = False
        receivers = self._receivers
        self._receivers = []
        for receiver in receivers:
            try:
                receiver.flush()
            except Exception:  # noqa: BLE001 - what is wrong with one transport is kept from the others
                self._log.failure("A receiver could not be written to")


@implementer(IPushProducer)
class Outbound:
    """
    The queue in front of one transport.

    It is the transport's producer: while the transport has enough to send, what comes waits here.
    """

    __slots__ = (
        "_batch",
        "_clock",
        "_mark",
        "_overflowed",
        "_paused",
        "_progressAt",
        "_size",
        "_socket",
        "_tooMuch",
        "_transport",
        "_turn",
        "_waiting",
    )

    def __init__(
        self, transport: IStreamTransport, clock: IReactorTime, turn: Turn, tooMuch: Callable[[], None]
    ) -> None:
        """
        @param turn: shared by all receivers of a server.
        @param tooMuch: called once, from the reactor and not from within L{send}, when more than L{MAX_WAITING} waits.
        """
        self._transport = transport
        self._clock = clock
        self._turn = turn
        self._tooMuch = tooMuch
        self._batch: list[bytes] = []
        self._socket: Any = transport
        while hasattr(self._socket, "transport"):  # TLS and the like wrap one around another
            self._socket = self._socket.transport
        self._waiting: deque[bytes] = deque()
        self._size = 0
        self._paused = False
        self._overflowed = False
        self._progressAt = clock.seconds()
        self._mark = (0, 0)
        transport.registerProducer(self, True)

    def send(self, frames: bytes) -> None:
        """Send whole frames, as soon as everything before them has been sent."""
        if not self._paused:
            if not self._turn.isOpen:
                self._transport.write(frames)
                return
            if not self._batch:
                self._turn.add(self)
            self._batch.append(frames)
        elif not self._overflowed and self._size + len(frames) <= MAX_WAITING:
            self._size += len(frames)
            if self._waiting and len(self._waiting[-1]) < MERGE:
                self._waiting[-1] += frames
            else:
                self._waiting.append(frames)
        elif not self._overflowed:
            self._overflowed = True
            # Not now: whoever sends this is in the middle of something.
            self._clock.callLater(0, self._tooMuch)

    def flush(self) -> None:
        """Write what was kept for the end of a turn."""
        batch = self._batch
        if batch:
            data = batch[0] if len(batch) == 1 else b"".join(batch)
            batch.clear()
            self._transport.write(data)

    def isStalled(self, now: float) -> bool:
        """Return whether something has waited for L{STALLED_AFTER} and nothing was taken."""
        # How far the transport is with what it has, Twisted's tell in these attributes.
        transport = self._socket
        mark = len(getattr(transport, "dataBuffer", b"")), getattr(transport, "offset", 0)
        isWaiting = self._paused or mark[0] > mark[1] or getattr(transport, "_tempDataLen", 0) > 0
        if not isWaiting or mark != self._mark:
            self._mark = mark
            self._progressAt = now
        return now - self._progressAt >= STALLED_AFTER

    def finish(self, lastFrames: bytes) -> None:
        """Hand everything to the transport, C{lastFrames} at the end, and be its producer no more."""
        self._transport.unregisterProducer()
        self._paused = False
        self._transport.write(b"".join((*self._waiting, *self._batch, lastFrames)))
        self.clear()

    def clear(self) -> None:
        """Drop what waits."""
        self._batch.clear()
        self._waiting.clear()
        self._size = 0

    def pauseProducing(self) -> None:
        """The transport has enough."""
        self._paused = True
        self._progressAt = self._clock.seconds()

    def resumeProducing(self) -> None:
        """The transport has sent what it had."""
        self._paused = False
        while self._waiting and not self._paused:
            batch = []
            size = 0
            while self._waiting and size < BATCH:
                batch.append(self._waiting.popleft())
                size += len(batch[-1])
            self._size -= size
            self._transport.write(b"".join(batch))

    def stopProducing(self) -> None:
        """The connection is lost."""
        self.clear()
