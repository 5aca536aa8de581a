"""What waits for one receiver: how much of it there may be, and how long it may stand still."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from typing import Any

from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from wecompany.interfaces import IStreamTransport
from wecompany.wire import MessageType, decodeFrames

MAX_WAITING = 4 * 1_048_576
"""Bytes that may wait for one receiver, besides the transport's own 64 KiB."""

STALLED_AFTER = 60.0
"""Seconds after which a receiver that takes nothing while something waits is given up."""

BEHIND = 1_048_576
"""Bytes that wait for a receiver from which on its texts had better wait in the store."""

MERGE = 4_096
"""Bytes up to which what waits is joined: each piece costs some fifty bytes that L{MAX_WAITING} leaves out."""

BATCH = 65_536
"""Bytes that are handed to the transport at once."""


class Turn:
    """
    The time in which one chunk of somebody's frames is handled, or one transaction of the store.

    What is sent meanwhile is kept for its end, so that each receiver gets all of it in one write.

    @ivar isOpen: whether such a time is now.
    @ivar waiting: bytes that wait for all receivers together.
    @ivar overflowed: called when that exceeds C{mostWaiting}; not to act at once, as a sender is in the middle of
        something.
    """

    __slots__ = ("_receivers", "isOpen", "mostWaiting", "overflowed", "waiting")

    _log = Logger()

    def __init__(self, mostWaiting: float = math.inf, overflowed: Callable[[], None] = lambda: None) -> None:
        self.isOpen = False
        self.waiting = 0
        self.mostWaiting = mostWaiting
        self.overflowed = overflowed
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

    @ivar size: bytes that wait here.
    @ivar isSpoiled: see L{takeTexts}.
    """

    __slots__ = (
        "_batch",
        "_behind",
        "_cleared",
        "_clock",
        "_handed",
        "_handedSize",
        "_layers",
        "_mark",
        "_overflowed",
        "_paused",
        "_pausesAtOnce",
        "_progressAt",
        "_socket",
        "_tooMuch",
        "_transport",
        "_turn",
        "_waiting",
        "isSpoiled",
        "size",
    )

    def __init__(
        self,
        transport: IStreamTransport,
        clock: IReactorTime,
        turn: Turn,
        tooMuch: Callable[[], None],
        behind: Callable[[], None] = lambda: None,
        cleared: Callable[[], None] = lambda: None,
    ) -> None:
        """
        @param turn: shared by all receivers of a server.
        @param tooMuch: called once, from the reactor and not from within L{send}, when more than L{MAX_WAITING} waits.
        @param behind: called when more than L{BEHIND} waits.
        @param cleared: called when the transport takes more again and nothing waits.
        """
        self._transport = transport
        self._clock = clock
        self._turn = turn
        self._tooMuch = tooMuch
        self._behind = behind
        self._cleared = cleared
        self._batch: list[bytes] = []
        self._socket: Any = transport
        self._layers: tuple[Any, ...] = ()
        while hasattr(self._socket, "transport"):  # TLS and the like wrap one around another
            self._layers += (self._socket,)
            self._socket = self._socket.transport
        # Whether the transport pauses its producer whenever it could not send everything: then it need not be asked.
        self._pausesAtOnce = not self._layers and getattr(self._socket, "pausesAtOnce", False)
        # Most receivers never wait, so these cost nothing until then.
        self._handed: tuple[bytes, ...] = ()
        self._handedSize = 0
        self._waiting: deque[bytes] | tuple[()] = ()
        self.size = 0
        self.isSpoiled = False
        self._paused = False
        self._overflowed = False
        self._progressAt = clock.seconds()
        self._mark = (0, 0)
        transport.registerProducer(self, True)

    def send(self, frames: bytes) -> None:
        """Send whole frames, as soon as everything before them has been sent."""
        if not self._paused:
            if not self._turn.isOpen:
                self._write(frames)
                return
            if not self._batch:
                self._turn.add(self)
            self._batch.append(frames)
        elif not self._overflowed and self.size + len(frames) <= MAX_WAITING:
            self._grow(len(frames))
            if not self._waiting:
                self._waiting = deque((frames,))
            elif len(self._waiting[-1]) < MERGE:
                self._waiting[-1] += frames
            else:
                self._waiting.append(frames)
            if self.size > BEHIND:
                self._behind()
            if self._turn.waiting > self._turn.mostWaiting:
                self._turn.overflowed()
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
            if self._paused or not self._pausesAtOnce:
                self._remember(data)

    @property
    def isPaused(self) -> bool:
        """Whether what is sent now has to wait."""
        return self._paused

    @property
    def isClear(self) -> bool:
        """Whether the kernel has taken everything."""
        return not (self._paused or self._batch or self._unsent())

    def takeTexts(self) -> list[tuple[bytes, bytes]]:
        """
        Return the TEXTs that are not on their way yet, each C{(user ID, data)}; they are not sent any more.

        Of what the transport has, that is all but a frame which the kernel has a part of.  Where the transport has it
        encrypted already, nothing can be taken out of it: then L{isSpoiled} is true, and it is not to be used further.
        """
        others: list[bytes] = []
        texts = self._takeHanded(others)
        texts += _splitTexts(b"".join((*self._waiting, *self._batch)), others)
        self.clear()
        if others:
            self._waiting = deque((b"".join(others),))
            self._grow(len(self._waiting[0]))
        return texts

    def _takeHanded(self, others: list[bytes]) -> list[tuple[bytes, bytes]]:
        unsent = self._unsent()
        if not unsent:
            return []
        handed = b"".join(self._handed)
        taken = max(0, len(handed) - unsent)
        if self._layers:
            texts = _splitTexts(handed[_boundary(handed, taken)[0] :], [])
            self.isSpoiled = bool(texts)
            return texts
        start, end = _boundary(handed, taken)
        self._socket.dataBuffer = handed[taken:end]
        self._socket.offset = self._socket._tempDataLen = 0
        self._socket._tempDataBuffer = []
        self._handed = (handed[start:end],)
        self._handedSize = end - start
        return _splitTexts(handed[end:], others)

    def handedTexts(self) -> list[tuple[bytes, bytes]]:
        """Return the TEXTs that the transport was given and the kernel has not, or not wholly, taken."""
        handed = b"".join(self._handed)
        return _splitTexts(handed[_boundary(handed, len(handed) - self._unsent())[0] :], [])

    def isStalled(self, now: float) -> bool:
        """Return whether something has waited for L{STALLED_AFTER} and nothing was taken."""
        self._forgetSent()
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
        self._write(b"".join((*self._waiting, *self._batch, lastFrames)))
        self.clear()

    def clear(self) -> None:
        """Drop what waits."""
        self._batch.clear()
        self._waiting = ()
        self._grow(-self.size)

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
            self._grow(-size)
            self._write(b"".join(batch))
        if not self._paused:
            self._forgetSent()
            self._cleared()

    def stopProducing(self) -> None:
        """The connection is lost."""

    def _grow(self, n: int) -> None:
        self.size += n
        self._turn.waiting += n

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        if self._paused or not self._pausesAtOnce:
            self._remember(data)

    def _remember(self, data: bytes) -> None:
        """Keep what the transport may not have sent until it has: see L{handedTexts}."""
        self._handed += (data,)
        self._handedSize += len(data)
        self._forgetSent()

    def _forgetSent(self) -> None:
        unsent = self._unsent()
        while self._handed and self._handedSize - len(self._handed[0]) >= unsent:
            self._handedSize -= len(self._handed[0])
            self._handed = self._handed[1:]

    def _unsent(self) -> int:
        """Return how many bytes the transport has that the kernel has not taken: with TLS, rather too many."""
        transport = self._socket
        unsent = getattr(transport, "_tempDataLen", 0)
        unsent += len(getattr(transport, "dataBuffer", b"")) - getattr(transport, "offset", 0)
        for layer in self._layers:
            aggregator = getattr(layer, "_aggregator", None)
            unsent += sum(map(len, getattr(aggregator, "_buffer", ())))
        return int(unsent)


def _boundary(frames: bytes, taken: int) -> tuple[int, int]:
    """Return where the frame begins and ends of which C{taken} is a part, both C{taken} if it is between two."""
    start = 0
    for _, _, _, end in decodeFrames(frames):
        if start >= taken:
            return start, start
        if end > taken:
            return start, end
        start = end
    return start, start


def _splitTexts(frames: bytes, others: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the TEXTs among whole frames, and add what else there is to C{others}."""
    texts = []
    start = 0
    for messageType, userId, data, end in decodeFrames(frames):
        if messageType == MessageType.TEXT:
            texts.append((userId, data))
        elif messageType != MessageType.DELAY:  # a DELAY sticks to its TEXT
            others.append(frames[start:end])
        start = end
    return texts
