"""
The way out to one receiver: at once while its transport takes everything, else through a backlog.

How much may wait there in all, and how long it may stand still.
"""

from __future__ import annotations

import math
import socket
import sys
from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from twisted.internet.interfaces import IPushProducer, IReactorTime
from twisted.logger import Logger
from zope.interface import implementer

from wecompany.backlog import MAX_TEXTS, Backlog, Class, splitTexts, units
from wecompany.interfaces import IConnection, IStreamTransport
from wecompany.wire import MessageType, decodeFrames

MAX_WAITING = 6 * 1_048_576
"""Bytes that may wait for one receiver: four files' windows, the texts and the media that may wait, and some more."""

STALLED_AFTER = 60.0
"""Seconds after which a receiver that takes nothing while something waits is given up."""

PIECE = 16_384
"""Bytes that are handed to the transport at once when anything waits."""

PIECE_IN_CALL = 4_096
"""The same for a receiver in a call: a voice waits behind no more than that."""

UNSENT = 16_384
"""Bytes that the kernel may hold unsent and still takes more."""

UNSENT_IN_CALL = 1
"""The same for a receiver in a call: it takes a piece when it has sent the one before, so that it never holds two."""

CLASSES = tuple(where.name.lower() for where in Class)
"""What the classes of a backlog are called where somebody reads of them."""

_MEDIA = int(MessageType.MEDIA_DATA)

_TCP_NOTSENT_LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)


class Turn:
    """
    The time in which one chunk of somebody's frames is handled, or one transaction of the store.

    What is sent meanwhile is kept for its end, so that each receiver gets all of it in one write.

    @ivar isOpen: whether such a time is now.
    @ivar waiting: bytes that wait for all receivers together.
    @ivar overflowed: called when that exceeds C{mostWaiting}; not to act at once, as a sender is in the middle of
        something.
    @ivar received: frames of each type that have come from all clients, by the type's number.
    @ivar receivedBytes: how many bytes these had.
    @ivar sent: frames of each type that were given to a way out, be it that they are dropped there.
    @ivar sentBytes: how many bytes these had.
    """

    __slots__ = (
        "_receivers",
        "isOpen",
        "mostWaiting",
        "overflowed",
        "received",
        "receivedBytes",
        "sent",
        "sentBytes",
        "waiting",
    )

    _log = Logger()

    def __init__(self, mostWaiting: float = math.inf, overflowed: Callable[[], None] = lambda: None) -> None:
        self.isOpen = False
        self.waiting = 0
        self.mostWaiting = mostWaiting
        self.overflowed = overflowed
        # A type is a byte, so each has its place.
        self.received, self.receivedBytes = [0] * 256, [0] * 256
        self.sent, self.sentBytes = [0] * 256, [0] * 256
        self._receivers: list[Outbound] = []

    def countSent(self, frames: bytes) -> None:
        """Count frames of whatever types."""
        start = 0
        for messageType, _, _, end in decodeFrames(frames):
            self.sent[messageType] += 1
            self.sentBytes[messageType] += end - start
            start = end

    def add(self, receiver: Outbound) -> None:
        """Remember that something is kept for C{receiver}."""
        self._receivers.append(receiver)

    def sendAll(self, receivers: Iterable[IConnection], frames: bytes) -> None:
        """
        Send whole frames to each of these at once, behind what is kept for the end of the turn.

        They may be thousands, of whom each costs more to look at twice than what else there is to do.
        """
        wasOpen = self.isOpen
        self.close()
        for receiver in receivers:
            try:
                receiver.send(frames)
            except Exception:  # noqa: BLE001 - as below
                self._log.failure("A receiver could not be written to")
        self.isOpen = wasOpen

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
    The way out to one receiver.

    It is the transport's producer: while the transport has enough to send, what comes waits in a L{Backlog}.

    @ivar size: bytes that wait.
    @ivar isSpoiled: see L{takeTexts}.
    """

    __slots__ = (
        "_backlog",
        "_batch",
        "_behind",
        "_cleared",
        "_clock",
        "_count",
        "_handed",
        "_handedSize",
        "_isInCall",
        "_layers",
        "_mark",
        "_overflowed",
        "_paused",
        "_pausesAtOnce",
        "_progressAt",
        "_room",
        "_socket",
        "_tooMuch",
        "_transport",
        "_turn",
        "isSpoiled",
        "size",
    )

    def __init__(
        self,
        transport: IStreamTransport,
        clock: IReactorTime,
        turn: Turn,
        count: Callable[[str], None],
        tooMuch: Callable[[], None],
        behind: Callable[[], None] = lambda: None,
        cleared: Callable[[], None] = lambda: None,
    ) -> None:
        """
        @param turn: shared by all receivers of a server.
        @param count: adds one to a counter that the operator sees.
        @param tooMuch: called once, from the reactor and not from within L{send}, when more than L{MAX_WAITING} waits.
        @param behind: called when more than L{MAX_TEXTS} of texts wait.
        @param cleared: called when the transport takes more again and no text waits.
        """
        self._transport = transport
        self._clock = clock
        self._turn = turn
        self._count = count
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
        isBuffered = any(hasattr(layer, "_aggregator") for layer in self._layers)
        self._pausesAtOnce = not isBuffered and getattr(self._socket, "pausesAtOnce", False)
        # Most receivers never wait, so these cost nothing until then.
        self._handed: tuple[bytes, ...] = ()
        self._handedSize = 0
        self._backlog: Backlog | None = None
        self.size = 0
        self.isSpoiled = False
        self._paused = False
        self._overflowed = False
        self._progressAt = clock.seconds()
        self._mark = (0, 0)
        self._isInCall = False
        self._room = sys.maxsize  # bytes that are just sent: none while anything waits
        self._keepFewUnsent(UNSENT)
        transport.registerProducer(self, True)

    def send(self, frames: bytes) -> None:
        """Send whole frames, each as soon as those before it in its class have been sent."""
        turn = self._turn
        messageType = frames[2]
        if messageType <= _MEDIA:  # those have no others behind them
            turn.sent[messageType] += 1
            turn.sentBytes[messageType] += len(frames)
        else:
            turn.countSent(frames)
        if turn.isOpen:
            if not self._batch:
                turn.add(self)
            self._batch.append(frames)
        elif len(frames) > self._room:
            self._queue(frames)
        else:  # as _write does, without the call
            self._transport.write(frames)
            if self._paused or not self._pausesAtOnce:
                self._remember(frames)

    def sendRun(self, frames: bytes, n: int) -> None:
        """Do L{send} with each of these C{n} frames, which are of one type."""
        turn = self._turn
        messageType = frames[2]
        turn.sent[messageType] += n
        turn.sentBytes[messageType] += len(frames)
        if turn.isOpen:
            if not self._batch:
                turn.add(self)
            self._batch.append(frames)
        elif len(frames) > self._room:
            self._queue(frames)
        else:
            self._transport.write(frames)
            if self._paused or not self._pausesAtOnce:
                self._remember(frames)

    def flush(self) -> None:
        """Send what was kept for the end of a turn."""
        if self._batch:
            batch, self._batch = self._batch, []
            frames = batch[0] if len(batch) == 1 else b"".join(batch)
            if len(frames) > self._room:
                self._queue(frames)
            else:
                self._write(frames)

    def setInCall(self, isInCall: bool) -> None:
        """Say whether the receiver is in a call: then sound waits behind less."""
        if isInCall != self._isInCall:
            self._isInCall = isInCall
            self._keepFewUnsent(UNSENT_IN_CALL if isInCall else UNSENT)
            if self._backlog is not None:
                self._backlog.isInCall = isInCall
                self._backlog.callEnded()
            self._send()

    @property
    def textsWaiting(self) -> int:
        """How many bytes of texts wait."""
        return 0 if self._backlog is None else self._backlog.textSize

    def waitingByClass(self) -> dict[str, int]:
        """Return how many bytes wait in each of L{CLASSES}; nothing if nothing waits at all."""
        return {} if self._backlog is None else dict(zip(CLASSES, self._backlog.sizes(), strict=True))

    @property
    def isClear(self) -> bool:
        """Whether the kernel has taken every text."""
        return not (self._batch or self.textsWaiting or (self._unsent() and self.handedTexts()))

    def takeTexts(self) -> list[tuple[bytes, bytes]]:
        """
        Return the TEXTs that are not on their way yet, each C{(user ID, data)}; they are not sent any more.

        Of what the transport has, that is all but a frame which the kernel has a part of.  Where the transport has it
        encrypted already, nothing can be taken out of it: then L{isSpoiled} is true, and it is not to be used further.
        """
        texts = self._takeHanded()
        if self._backlog is not None:
            texts += self._backlog.takeTexts()
            self._look()
        batch, self._batch = self._batch, []
        texts += splitTexts(b"".join(batch), self._batch)
        return texts

    def _takeHanded(self) -> list[tuple[bytes, bytes]]:
        unsent = self._unsent()
        if not unsent:
            return []
        handed = b"".join(self._handed)
        taken = max(0, len(handed) - unsent)
        start, end = _boundary(handed, taken)
        if self._layers:
            texts = splitTexts(handed[start:], [])
            self.isSpoiled = bool(texts)
            return texts
        others: list[bytes] = []
        texts = splitTexts(handed[end:], others)
        left = b"".join(others)
        self._socket.dataBuffer = handed[taken:end] + left
        self._socket.offset = self._socket._tempDataLen = 0
        self._socket._tempDataBuffer = []
        self._handed = (handed[start:end] + left,)
        self._handedSize = len(self._handed[0])
        return texts

    def handedTexts(self) -> list[tuple[bytes, bytes]]:
        """Return the TEXTs that the transport was given and the kernel has not, or not wholly, taken."""
        handed = b"".join(self._handed)
        return splitTexts(handed[_boundary(handed, len(handed) - self._unsent())[0] :], [])

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
        self._turn.countSent(lastFrames)
        self._transport.unregisterProducer()
        self._paused = False
        waiting = b"" if self._backlog is None else self._backlog.takeAll()
        batch = b"".join(self._batch)
        self.clear()
        self._write(waiting + batch + lastFrames)

    def clear(self) -> None:
        """Drop what waits."""
        self._batch.clear()
        self._backlog = None
        self._look()

    def pauseProducing(self) -> None:
        """The transport has enough."""
        if not self._paused:
            self._paused = True
            self._room = 0
            self._progressAt = self._clock.seconds()

    def resumeProducing(self) -> None:
        """The transport has sent what it had."""
        self._paused = False
        self._send()
        if not self._paused:
            self._forgetSent()
        if not self.textsWaiting:
            self._cleared()

    def stopProducing(self) -> None:
        """The connection is lost."""

    def _queue(self, frames: bytes) -> None:
        """Put these behind what waits, each in its class, and send what may be sent."""
        backlog = self._backlog
        if backlog is None:
            backlog = self._backlog = Backlog(self._count, self._isInCall)
        now = self._clock.seconds()
        for unit in units(frames):
            if backlog.size + len(unit) > MAX_WAITING and not self._overflowed:
                self._overflowed = True
                # Not now: whoever sends this is in the middle of something.
                self._clock.callLater(0, self._tooMuch)
            # What is left of the texts goes back to the store, so until then they are still taken.
            if not self._overflowed or (unit[2] == MessageType.TEXT and backlog.textSize + len(unit) <= MAX_TEXTS):
                backlog.put(unit, now)
        self._send()
        if self._turn.waiting > self._turn.mostWaiting:
            self._turn.overflowed()
        if self.textsWaiting > MAX_TEXTS:
            self._behind()

    def _send(self) -> None:
        """Hand over what waits, as far as the transport takes it."""
        backlog = self._backlog
        if backlog is not None:
            now = self._clock.seconds()
            while backlog.size and not self._paused:
                data = backlog.take(PIECE_IN_CALL if self._isInCall else PIECE, now)
                if data:
                    self._write(data)
            if not backlog.isNeeded:
                self._backlog = None
        self._look()

    def _look(self) -> None:
        """See how things stand when what waits has changed."""
        size = 0 if self._backlog is None else self._backlog.size
        self._turn.waiting += size - self.size
        self.size = size
        if self._paused or self._backlog is not None:
            self._room = 0
        else:
            self._room = PIECE_IN_CALL if self._isInCall else sys.maxsize

    def _write(self, data: bytes) -> None:
        self._transport.write(data)
        if self._paused or not self._pausesAtOnce:
            self._remember(data)

    def _remember(self, data: bytes) -> None:
        """Keep what the transport may not have sent until it has: see L{handedTexts}."""
        self._handed += (data,)
        self._handedSize += len(data)
        self._forgetSent()
        if self._handed and not self._paused:
            self._pauseTransport()

    def _pauseTransport(self) -> None:
        """Have a transport of Twisted's resume its producer when it has sent what it has, however little that is."""
        for layer in self._layers:
            aggregator = getattr(layer, "_aggregator", None)
            if aggregator is not None:
                aggregator.flush()
        transport = self._socket
        if getattr(transport, "producerPaused", True) is False and transport.producer is not None and self._unsent():
            transport.producerPaused = True
            transport.producer.pauseProducing()

    def _keepFewUnsent(self, size: int) -> None:
        """Have the kernel say that it is full when it has so many bytes that it has not sent, where it can."""
        handle: Any = getattr(self._socket, "getHandle", lambda: None)()
        if _TCP_NOTSENT_LOWAT is not None and getattr(handle, "family", None) in (socket.AF_INET, socket.AF_INET6):
            with suppress(OSError):  # an old kernel: what it holds unsent is all that is different then
                handle.setsockopt(socket.IPPROTO_TCP, _TCP_NOTSENT_LOWAT, size)

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
            unsent += sum(map(len, getattr(layer, "_appSendBuffer", ())))
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
