"""
What waits for one receiver while its transport is full: in classes, so that a voice does not wait behind a file.

::

    signals   errors, heartbeats, ACK, call signalling    first
    audio     media of that kind                          then
    video     all other media         6 \\
    texts     TEXT, PRESENCE, DELAY   3  }                what is left is shared by bytes: deficit round robin
    files     FILE                    1 /

Within a class the order is kept.  Media is worth nothing late: what has waited for too long is dropped.  This does no
IO and has no clock; L{wecompany.outbound} asks it what is next when the transport takes more.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from enum import IntEnum

from wecompany.wire import (
    CONTINUATION,
    ID_SIZE,
    FileOp,
    MediaKind,
    MessageType,
    decodeFrames,
    encodeFrame,
    encodeOffset,
    splitOffset,
)

MAX_AGE = 0.1
"""Seconds that media may wait."""

MIN_MEDIA = 8_192
"""Bytes of media that may wait for any time: what a thin line takes in a moment is not worth dropping."""

MAX_MEDIA = 131_072
"""Bytes of media that may wait at all."""

MAX_MEDIA_PIECES = 1_024
"""Pieces of media that may wait at all: each costs some hundred bytes besides its own."""

MAX_TEXTS = 1_048_576
"""Bytes of texts from which on any more had better wait elsewhere."""

MAX_PIECE = 4_096
"""
Bytes of a piece that is made here: small frames of a class are joined up to that, as each piece costs some fifty bytes
besides its own, and a CHUNK for a receiver in a call is cut into such.
"""

QUANTUM = 1_024
"""Bytes that a share of one is worth in each round."""


class Class(IntEnum):
    """The classes, in the order in which they are served, as far as they have one."""

    SIGNALS = 0
    AUDIO = 1
    VIDEO = 2
    TEXTS = 3
    FILES = 4


SHARES = {Class.VIDEO: 6, Class.TEXTS: 3, Class.FILES: 1}
"""How those that come last share what is left to them."""

_AFTER = {Class.VIDEO: Class.TEXTS, Class.TEXTS: Class.FILES, Class.FILES: Class.VIDEO}

_CLASSES: dict[int, Class] = {
    MessageType.TEXT: Class.TEXTS,
    MessageType.PRESENCE: Class.TEXTS,
    MessageType.FILE: Class.FILES,
}

_TOO_OLD = "waited too long"
_TOO_MUCH = "too much waits"
_AFTER_A_GAP = "after a gap"


def classOf(frames: bytes) -> Class:
    """Return the class of whole frames that are sent together: a DELAY goes with what is behind it."""
    at = 0
    if frames[2] == MessageType.DELAY:
        at = 2 + (frames[0] << 8 | frames[1])
    messageType = frames[at + 2]
    if messageType == MessageType.MEDIA_DATA:
        return Class.AUDIO if _mediaByte(frames) & ~CONTINUATION == MediaKind.AUDIO else Class.VIDEO
    return _CLASSES.get(messageType, Class.SIGNALS)


def units(frames: bytes) -> Iterator[bytes]:
    """Yield whole frames one by one, a DELAY together with what is behind it."""
    start = end = 0
    while end < len(frames):
        isDelay = frames[end + 2] == MessageType.DELAY
        end += 2 + (frames[end] << 8 | frames[end + 1])
        if not isDelay:
            yield frames[start:end]
            start = end


def _mediaByte(frame: bytes) -> int:
    """Return the kind of a MEDIA_DATA, and whether it continues what is before it."""
    at = 5 + (frame[3] << 8 | frame[4])
    return frame[at] if at < len(frame) else MediaKind.OTHER


class _MediaFrame:
    """
    A packet of sound or a picture, with its continuations.

    @ivar at: when it came.
    @ivar size: bytes of it that wait.
    @ivar isBegun: whether a part of it has been sent already, so that the rest had better follow.
    """

    __slots__ = ("at", "isBegun", "isDropped", "kind", "size")

    def __init__(self, kind: int, at: float) -> None:
        self.kind = kind
        self.at = at
        self.size = 0
        self.isBegun = self.isDropped = False


_Pieces = deque[tuple[_MediaFrame, bytes]]


class Backlog:
    """
    What waits for one receiver.

    @ivar size: bytes of it.
    @ivar textSize: bytes of it that are in the class of texts.
    @ivar isInCall: whether the receiver is in a call: CHUNKs are cut then.
    @ivar hasGap: whether a picture was dropped without which those up to the next key frame mean nothing.
    """

    __slots__ = (
        "_audio",
        "_count",
        "_deficits",
        "_files",
        "_isNewTurn",
        "_latest",
        "_mediaSize",
        "_signals",
        "_texts",
        "_turnOf",
        "_video",
        "hasGap",
        "isInCall",
        "size",
        "textSize",
    )

    def __init__(self, count: Callable[[str], None], isInCall: bool) -> None:
        """
        @param count: adds one to a counter that the operator sees.
        """
        self._count = count
        self._signals: deque[bytes] = deque()
        self._audio: _Pieces = deque()
        self._video: _Pieces = deque()
        self._texts: deque[bytes] = deque()
        self._files: deque[bytes] = deque()
        self._latest: dict[int, _MediaFrame] = {}
        self._mediaSize = 0
        self._deficits = dict.fromkeys(SHARES, 0)
        self._turnOf = Class.VIDEO
        self._isNewTurn = True
        self.size = self.textSize = 0
        self.isInCall = isInCall
        self.hasGap = False

    @property
    def isNeeded(self) -> bool:
        """Whether anything waits, or something that comes later is to be dropped."""
        return self.size > 0 or self.hasGap or any(frame.isDropped for frame in self._latest.values())

    def sizes(self) -> list[int]:
        """Return the bytes that wait in each L{Class}."""
        signals = sum(map(len, self._signals))
        audio = sum(len(piece) for _, piece in self._audio)
        rest = self.size - signals - self._mediaSize - self.textSize
        return [signals, audio, self._mediaSize - audio, self.textSize, rest]

    def callEnded(self) -> None:
        """What one call has lost is no other's loss."""
        self.hasGap = False
        self._latest.clear()

    # -- in

    def put(self, frames: bytes, now: float) -> None:
        """
        Put whole frames that belong together behind those of their class.

        @param now: seconds.
        """
        where = classOf(frames)
        if where is Class.AUDIO or where is Class.VIDEO:
            self._putMedia(frames, now)
        else:
            self.size += len(frames)
            if where is Class.TEXTS:
                self.textSize += len(frames)
            queue = self._queue(where)
            if queue and len(queue[-1]) + len(frames) <= MAX_PIECE:
                queue[-1] += frames
            else:
                queue.append(frames)

    def _queue(self, where: Class) -> deque[bytes]:
        return self._texts if where is Class.TEXTS else self._files if where is Class.FILES else self._signals

    def _putMedia(self, piece: bytes, now: float) -> None:
        first = _mediaByte(piece)
        kind = first & ~CONTINUATION
        stream = MediaKind.VIDEO_KEY if kind == MediaKind.VIDEO_DELTA else min(kind, MediaKind.OTHER)
        queue = self._audio if kind == MediaKind.AUDIO else self._video
        frame = self._latest.get(stream)
        if not first & CONTINUATION:
            frame = self._latest[stream] = _MediaFrame(kind, now)
            if kind == MediaKind.VIDEO_KEY:
                self.hasGap = False
            elif kind == MediaKind.VIDEO_DELTA and self.hasGap:
                self._isDropped(frame, _AFTER_A_GAP)
        elif frame is None:  # its beginning did not have to wait
            frame = self._latest[stream] = _MediaFrame(kind, now)
            frame.isBegun = True
        if frame.isDropped:
            return
        queue.append((frame, piece))
        self._grow(frame, len(piece))
        self._dropLate(now)
        while self._mediaSize > MAX_MEDIA or len(self._audio) + len(self._video) > MAX_MEDIA_PIECES:
            queue = self._video or self._audio
            self._drop(next((frame for frame, _ in queue if not frame.isBegun), queue[0][0]), _TOO_MUCH)

    # -- out

    def take(self, size: int, now: float) -> bytes:
        """
        Return what is to be sent next.

        @param size: bytes that are not exceeded, but by the first piece.
        @param now: seconds.
        @return: whole frames; nothing if nothing waits that is not too old.
        """
        self._dropLate(now)
        taken: list[bytes] = []
        while self.size and size > 0:
            where = self._next()
            size -= self._firstSize(where)
            if taken and size < 0:
                break
            taken.append(self._takeFrom(where))
        return b"".join(taken)

    def takeTexts(self) -> list[tuple[bytes, bytes]]:
        """Return the TEXTs, each C{(user ID, data)}; they wait here no more."""
        others: list[bytes] = []
        texts = splitTexts(b"".join(self._texts), others)
        self._texts = deque(others)
        left = sum(map(len, others))
        self.size -= self.textSize - left
        self.textSize = left
        return texts

    def takeAll(self) -> bytes:
        """Return all that waits, however old."""
        taken = []
        while self.size:
            taken.append(self._takeFrom(self._next()))
        return b"".join(taken)

    def _next(self) -> Class:
        """Return the class that sends the next piece."""
        return Class.SIGNALS if self._signals else Class.AUDIO if self._audio else self._whoseTurn()

    def _whoseTurn(self) -> Class:
        """Choose among those that have shares: deficit round robin (Shreedhar and Varghese, 1995)."""
        while True:
            where = self._turnOf
            size = self._firstSize(where)
            if not size:
                self._deficits[where] = 0
            elif self._isNewTurn:
                self._deficits[where] += QUANTUM * SHARES[where]
                self._isNewTurn = False
            if size and self._deficits[where] >= size:
                return where
            self._turnOf = _AFTER[where]
            self._isNewTurn = True

    def _firstSize(self, where: Class) -> int:
        """Return the bytes of the first piece of that class; 0 if there is none."""
        if where is Class.AUDIO or where is Class.VIDEO:
            pieces = self._audio if where is Class.AUDIO else self._video
            return len(pieces[0][1]) if pieces else 0
        queue = self._queue(where)
        if where is Class.FILES and self.isInCall and queue and len(queue[0]) > MAX_PIECE:
            chunk = queue.popleft()
            cut = _splitChunk(chunk)
            queue.extendleft(reversed(cut))
            self.size += sum(map(len, cut)) - len(chunk)
        return len(queue[0]) if queue else 0

    def _takeFrom(self, where: Class) -> bytes:
        if where is Class.AUDIO or where is Class.VIDEO:
            frame, piece = (self._audio if where is Class.AUDIO else self._video).popleft()
            frame.isBegun = True
            self._grow(frame, -len(piece))
        else:
            piece = self._queue(where).popleft()
            self.size -= len(piece)
            if where is Class.TEXTS:
                self.textSize -= len(piece)
        if where in SHARES:
            self._deficits[where] -= len(piece)
        return piece

    # -- what is dropped

    def _dropLate(self, now: float) -> None:
        for frame in self._late(self._video, now) + self._late(self._audio, now):
            if self._mediaSize - frame.size < MIN_MEDIA:
                return
            if not frame.isDropped:
                self._drop(frame, _TOO_OLD)

    @staticmethod
    def _late(queue: _Pieces, now: float) -> list[_MediaFrame]:
        """Return the frames that wait for too long, each at least once, oldest first."""
        late = []
        for frame, _ in queue:
            if not frame.isBegun:
                if now - frame.at <= MAX_AGE:
                    break
                late.append(frame)
        return late

    def _drop(self, dropped: _MediaFrame, why: str) -> None:
        """Drop one frame with its continuations, and the pictures that mean nothing without it."""
        self._isDropped(dropped, why)
        if dropped.kind == MediaKind.AUDIO:
            self._audio = deque(piece for piece in self._audio if not piece[0].isDropped)
            return
        if dropped.kind in (MediaKind.VIDEO_KEY, MediaKind.VIDEO_DELTA):
            self.hasGap = False
            for frame, _ in self._video:
                if frame is dropped:
                    self.hasGap = True
                elif frame.kind == MediaKind.VIDEO_KEY:
                    self.hasGap = False
                elif frame.kind == MediaKind.VIDEO_DELTA and self.hasGap and not frame.isDropped:
                    self._isDropped(frame, _AFTER_A_GAP)
        self._video = deque(piece for piece in self._video if not piece[0].isDropped)

    def _isDropped(self, frame: _MediaFrame, why: str) -> None:
        frame.isDropped = True
        self._grow(frame, -frame.size)
        self._count(f"media dropped: {'audio' if frame.kind == MediaKind.AUDIO else 'video'}, {why}")

    def _grow(self, frame: _MediaFrame, size: int) -> None:
        frame.size += size
        self.size += size
        self._mediaSize += size


def splitTexts(frames: bytes, others: list[bytes]) -> list[tuple[bytes, bytes]]:
    """Return the TEXTs among whole frames, each C{(user ID, data)}, and add what else there is to C{others}."""
    texts = []
    start = 0
    delay = b""  # which sticks to what is behind it
    for messageType, userId, data, end in decodeFrames(frames):
        if messageType == MessageType.TEXT:
            texts.append((userId, data))
        elif messageType != MessageType.DELAY:
            others.append(delay + frames[start:end])
        delay = frames[start:end] if messageType == MessageType.DELAY else b""
        start = end
    return texts


def _splitChunk(frame: bytes) -> list[bytes]:
    """Return a FILE frame as consecutive CHUNKs of at most L{MAX_PIECE} bytes, if it is a CHUNK."""
    ((messageType, userId, data, _),) = decodeFrames(frame)
    head, rest = data[: 1 + ID_SIZE], data[1 + ID_SIZE :]
    if data[0] != FileOp.CHUNK:
        return [frame]
    offset, part = splitOffset(rest)
    room = MAX_PIECE - (len(frame) - len(part))
    return [
        encodeFrame(messageType, userId, head + encodeOffset(offset + at) + part[at : at + room])
        for at in range(0, len(part), room)
    ]
