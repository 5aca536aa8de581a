"""
Hostile clients against one running server, and two well-behaved ones beside them.

::

    python -m benchmarks.fuzz                            100,000 streams, a few minutes
    python -m benchmarks.fuzz --seed 7 --streams 5000
    python -m benchmarks.fuzz --first 4711 --streams 2   only streams 4711 and 4712 of those

Each stream is one connection: a dialogue that could be a client's (it registers, then texts, sends files, calls, asks
who is there, ...), mutated by flipped bits, lies about lengths, cuts, repetitions, splices and garbage.  Some
connections are reset in the middle, some never read, some use the ID of another one, and hundreds are open at once.
A few dialogues are left as they are, and have to be answered.

What a stream sends follows from the seed and its number.  When it does so, and what of the server's answers comes
between, does not.

It passes if the server is up at the end and stops in order, its memory has not grown, its log holds no traceback, what
it sent was well framed, it closed what it said it would close, nobody stayed online who had gone, and the two
well-behaved clients have lost nothing and waited for nothing.  Linux only, like L{benchmarks.bench}.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import select
import signal
import socket
import struct
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from hashlib import sha256
from multiprocessing.connection import Connection
from pathlib import Path
from random import Random

from benchmarks.bench import Server, Trouble, memory, raiseOpenFiles, say, startedServer
from wecompany.wire import (
    CancelCode,
    ErrorCode,
    FileOffer,
    FileOp,
    MessageType,
    PresenceOp,
    WireError,
    decodeError,
    decodeFrames,
    encodeError,
    encodeFrame,
    encodeOffset,
    encodeU32,
)

AT_ONCE = 200
"""Streams that are open at the same time."""

STARTED_AT_ONCE = 20
"""Connections that are begun between two looks at the others."""

WARM_UP = 0.2
"""Share of the streams after which the memory that the server then has is taken as its usual one."""

MAX_GROWTH = 20_000
"""kB that the server's memory may grow after that."""

MAX_P99 = 0.5
"""Seconds that 99 of 100 frames between the well-behaved clients may take: far more than they do, and less than what
somebody would notice who is not on the telephone."""

PACE = 0.02
"""Seconds between two frames of a well-behaved client: that of audio."""

PAUSE = 0.03
"""Seconds that a stream waits for an answer, at most, before it sends its next piece."""

ANSWER_WITHIN = 10.0
"""Seconds that the server has to answer a client that did nothing wrong."""

CLOSE_WITHIN = 6.0
"""Seconds that the server has to close a connection when it has said so."""

LEAVE_WITHIN = 20.0
"""Seconds in which the server has to see that all streams have gone."""

MAX_FINDINGS = 20
"""Findings that are printed; if there are more, these say enough."""

PAIR = (b"well-behaved-one", b"well-behaved-two")
SHARED = [b"shared%d" % n for n in range(8)]
"""User IDs that several streams have at once."""

CALL_ID = b"<id of the call>"
"""Stands in a dialogue for the ID of the call that the server has named last, to this stream or, if none, to any."""

STILL_HERE = b"are you still there?"
"""Data of the heartbeat that ends an unmutated dialogue."""

CLOSING = {
    ErrorCode.MALFORMED,
    ErrorCode.NOT_REGISTERED,
    ErrorCode.BAD_CREDENTIAL,
    ErrorCode.ID_IN_USE,
    ErrorCode.SHUTTING_DOWN,
    ErrorCode.REPLACED,
    ErrorCode.IDLE,
    ErrorCode.TOO_SLOW,
}
"""Errors after which the server closes, whatever they are about."""


# -- What a stream sends -------------------------------------------------------------------------------------------


@dataclass
class Script:
    """
    What one stream does.

    @ivar pieces: what it sends, with a pause after each.
    @ivar expectsEcho: whether it is unmutated and alone under its ID, so that its last heartbeat is to be answered.
    @ivar cutAfter: the piece after which it resets the connection; C{None} if it closes like others.
    @ivar reads: whether it takes what the server sends.
    @ivar lingers: seconds that it stays when it has sent everything.
    """

    pieces: list[bytes]
    expectsEcho: bool = False
    cutAfter: int | None = None
    reads: bool = True
    lingers: float = 0.0


def userIdOf(index: int) -> bytes:
    """Return the ID that a stream has, if it does not share one."""
    return b"stream%d" % index


def scriptOf(seed: int, index: int) -> Script:
    """Return what stream C{index} does under C{seed}."""
    random = Random(f"{seed}/{index}")
    me = userIdOf(index)
    if random.random() < 0.05:
        me = random.choice([*SHARED, *PAIR])
    peer = userIdOf(index ^ 1)
    if random.random() < 0.3:
        peer = random.choice([*PAIR, *SHARED, me, b"nobody", b"", b"#group", b"\xff"])
    # Streams come in twos, which do the same things: the even one calls and sends, the odd one accepts and receives.
    together = Random(f"{seed}/{index // 2}/acts")
    acts = together.choices(ACTS, k=together.choice((1, 1, 2, 3)))
    frames = [frame for act in acts for frame in act(random, peer, index)]
    if random.random() < 0.05:
        # Under an ID which no flipped bit makes of another stream's.
        frames.insert(0, encodeFrame(MessageType.HEARTBEAT, b"honest%d" % index))
        frames.append(encodeFrame(MessageType.HEARTBEAT, b"", STILL_HERE))
        pieces = cutAnywhere(random, b"".join(frames)) if random.random() < 0.5 else frames
        return Script(pieces, expectsEcho=True)
    frames.insert(0, registration(random, me))
    script = Script(frames)
    # The registration mostly stays whole: what is behind it has more to break.
    first = 0 if random.random() < 0.25 else 1
    for _ in range(random.choice((0, 1, 1, 2, 3))):
        mutate(random, frames, first)
    if random.random() < 0.3:
        script.pieces = cutAnywhere(random, b"".join(frames))
    fate = random.random()
    if fate < 0.15:
        script.cutAfter = random.randrange(len(script.pieces))
    elif fate < 0.2:
        script.reads = False
        script.lingers = random.random()
    elif fate < 0.3:
        script.lingers = random.random() / 4
    if random.random() < 0.001:
        # It never reads, and makes more than the server keeps for it: it is too slow.
        script.pieces += [encodeFrame(MessageType.HEARTBEAT, b"", bytes(65_000))] * 150
        script.reads, script.cutAfter, script.lingers = False, None, 2.0
    return script


def registration(random: Random, me: bytes) -> bytes:
    """Return a first frame, mostly the customary one."""
    how = random.random()
    if how < 0.7:
        return encodeFrame(MessageType.HEARTBEAT, me)
    if how < 0.8:
        return encodeFrame(random.choice((MessageType.LOGIN, MessageType.SIGNUP)), me, b"secret")
    if how < 0.9:
        return encodeFrame(MessageType.ACK, me, encodeU32(0) + bytes(16))
    return encodeFrame(random.randrange(256), me, random.randbytes(random.choice((0, 20, 2000))))


def texts(random: Random, peer: bytes, index: int) -> list[bytes]:
    """A few texts, one of them perhaps long, and heartbeats."""
    size = random.choice((0, 5, 200, 200, 5000, 65_000))
    text = encodeFrame(MessageType.TEXT, peer, "你好 ".encode() * (size // 7))
    return [text] * random.randint(1, 4) + [encodeFrame(MessageType.HEARTBEAT, b"", random.randbytes(8))]


def file(random: Random, peer: bytes, index: int) -> list[bytes]:
    """One side of a file transfer, by the book."""
    size = random.choice((0, 1000, 100_000))
    transferId = sha256(b"%d" % (index // 2)).digest()[:16]

    def op(which: FileOp, rest: bytes = b"") -> bytes:
        return encodeFrame(MessageType.FILE, peer, bytes((which,)) + transferId + rest)

    if index % 2:
        ops = [op(FileOp.ACCEPT, encodeOffset(0)), op(FileOp.CREDIT, encodeOffset(size))]
        ops += [op(FileOp.RECEIVED) if random.random() < 0.7 else op(FileOp.CANCEL, bytes((CancelCode.HASH_MISMATCH,)))]
        return [encodeFrame(MessageType.HEARTBEAT, b""), *ops]
    ops = [op(FileOp.OFFER, FileOffer(size, bytes(32), "report.pdf").encode())]
    for offset in range(0, size, 50_000):
        ops.append(op(FileOp.CHUNK, encodeOffset(offset) + bytes(min(50_000, size - offset))))
    return [*ops, op(FileOp.DONE)]


def call(random: Random, peer: bytes, index: int) -> list[bytes]:
    """One side of a call, from the request to its end."""
    media = encodeFrame(MessageType.MEDIA_DATA, peer, b"\0" + bytes(random.choice((20, 160, 4000))))
    over = [
        encodeFrame(MessageType.CALL_END, peer, CALL_ID + b"\0bye"),
        encodeFrame(MessageType.CALL_END, peer, CALL_ID),
        encodeFrame(MessageType.CALL_REJECT, peer, CALL_ID + b"\1busy"),
    ]
    request = encodeFrame(MessageType.CALL_REQUEST, peer, b"\1" + b"offer " * random.choice((0, 10, 2000)))
    accept = encodeFrame(MessageType.CALL_ACCEPT, peer, CALL_ID + b"answer")
    # A request of the callee is an acceptance too, if the caller's is ringing.
    begin = [request] if index % 2 == 0 else [encodeFrame(MessageType.HEARTBEAT, b"")] * 3
    if index % 2:
        begin.append(request if random.random() < 0.2 else accept)
    return [*begin, *[media] * random.randint(0, 5), *random.choices(over, k=random.choice((0, 1, 1, 2)))]


def presence(random: Random, peer: bytes, index: int) -> list[bytes]:
    """Questions about who is there."""
    ops = random.choices(list(PresenceOp), k=random.randint(1, 4))
    return [encodeFrame(MessageType.PRESENCE, random.choice((b"", peer)), bytes((op,))) for op in ops]


def acknowledgements(random: Random, peer: bytes, index: int) -> list[bytes]:
    """Counts of texts, right or wrong."""
    return [encodeFrame(MessageType.ACK, b"", encodeU32(random.choice((0, 1, 2**32 - 1)))) for _ in range(2)]


def nonsense(random: Random, peer: bytes, index: int) -> list[bytes]:
    """Frames of any type with any data; a server's frames among them."""
    frames = [encodeFrame(MessageType.ERROR, peer, encodeError(ErrorCode.REPLACED, 0, "not really"))]
    for _ in range(random.randint(1, 6)):
        data = random.randbytes(random.choice((0, 1, 15, 16, 17, 40, 300)))
        frames.append(encodeFrame(random.choice((*MessageType, random.randrange(256))), peer, data))
    return frames


ACTS: list[Callable[[Random, bytes, int], list[bytes]]] = [
    texts,
    file,
    file,
    call,
    call,
    call,
    presence,
    acknowledgements,
    nonsense,
]


def mutate(random: Random, frames: list[bytes], first: int) -> None:
    """Break something in one of C{frames[first:]}, or in their order."""
    if len(frames) <= first:
        return
    at = random.randrange(first, len(frames))
    frame = bytearray(frames[at])
    how = random.randrange(9) if len(frame) >= 5 else 7
    if how == 0:  # flipped bits, of the header more often than not
        for _ in range(random.choice((1, 1, 3, 20))):
            frame[random.randrange(min(len(frame), random.choice((5, 40, 65_537))))] ^= 1 << random.randrange(8)
    elif how == 1:  # truncated
        del frame[random.randrange(len(frame)) :]
    elif how == 2:  # a lie about the payload's length
        struct.pack_into(">H", frame, 0, random.choice((0, 1, 2, 3, 65_535, random.randrange(65_536))))
    elif how == 3:  # a lie about the length of the user ID
        struct.pack_into(">H", frame, 3, random.choice((0, 1, 65_535, random.randrange(65_536))))
    elif how == 4:  # repeated
        frame *= random.choice((2, 2, 50)) if len(frame) < 1000 else 2
    elif how == 5:  # spliced with another one
        other = random.choice(frames)
        frame[random.randrange(len(frame)) :] = other[random.randrange(len(other) + 1) :]
    elif how == 6:  # another type
        frame[2] = random.choice((*MessageType, random.randrange(256)))
    elif how == 7:  # garbage
        where = random.randrange(len(frame) + 1)
        frame[where:where] = random.randbytes(random.choice((1, 2, 3, 100, 3000)))
    else:  # shuffled
        rest = frames[first:]
        random.shuffle(rest)
        frames[first:] = rest
        return
    frames[at] = bytes(frame)


def cutAnywhere(random: Random, stream: bytes) -> list[bytes]:
    """Return the same stream, cut into pieces that have nothing to do with frames."""
    cuts = sorted({0, *(random.randrange(len(stream) + 1) for _ in range(random.randint(0, 6)))})
    return [stream[a:b] for a, b in zip(cuts, [*cuts[1:], len(stream)], strict=True) if a < b] or [b"\0"]


# -- What happens to it --------------------------------------------------------------------------------------------


@dataclass
class Tally:
    """What all streams have seen."""

    findings: list[str] = field(default_factory=list)
    answers: Counter[str] = field(default_factory=Counter)
    registered: int = 0
    closedByServer: int = 0
    cut: int = 0
    echoed: int = 0
    lastCallId: bytes = bytes(16)


class Stream:
    """
    One hostile connection, while it is open.

    @ivar watched: what epoll has been told to look for.
    """

    def __init__(self, server: Server, index: int, script: Script, tally: Tally) -> None:
        self._index = index
        self._script = script
        self._tally = tally
        self._sent = 0
        self._pending = memoryview(b"")
        self._received = b""
        self._callId = b""
        self._lastWord = ""
        self._isConnected = False
        self._isRegistered = False
        self._isEchoed = False
        self._deadline = time.monotonic() + ANSWER_WITHIN
        self.isOpen = True
        self.watched = 0
        self.connection = socket.socket()
        self.connection.setblocking(False)
        self.connection.connect_ex((server.host, server.port))

    @property
    def interest(self) -> int:
        """Return what this waits for, as epoll has it."""
        wanted = select.EPOLLIN if self._script.reads else select.EPOLLRDHUP
        return wanted | select.EPOLLOUT if self._pending or not self._isConnected else wanted

    def ready(self, events: int) -> None:
        """The connection can be read or written, or is over."""
        if not self._isConnected:
            if error := self.connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                self._found(f"could not connect: {os.strerror(error)}")
                self.close()
                return
            self._isConnected = True
            self._sendNext()
        elif events & select.EPOLLOUT:
            self._flush()
        if not self.isOpen:
            return
        if events & select.EPOLLIN:
            self._receive()
        elif events & (select.EPOLLHUP | select.EPOLLERR | select.EPOLLRDHUP):
            self._lost()

    def tick(self, now: float) -> None:
        """Time has passed."""
        if now < self._deadline:
            return
        if not self._isConnected:
            self._found("could not connect in time")
        elif self._lastWord:
            self._found(f"was told {self._lastWord} and not closed")
        elif self._pending:
            self._found("could not send: the server does not read")
        elif self._sent < len(self._script.pieces):
            self._sendNext()
            return
        elif self._script.expectsEcho:
            self._found("did nothing wrong and got no answer")
        self.close()

    def close(self, reset: bool = False) -> None:
        """End the connection, in order or by a reset."""
        self.isOpen = False
        if reset:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.connection.close()

    def _found(self, what: str) -> None:
        self._tally.findings.append(f"stream {self._index} {what}")

    def _sendNext(self) -> None:
        piece = self._script.pieces[self._sent]
        if CALL_ID in piece:
            piece = piece.replace(CALL_ID, self._callId or self._tally.lastCallId)
        self._pending = memoryview(piece)
        self._sent += 1
        self._flush()

    def _flush(self) -> None:
        try:
            while self._pending:
                self._pending = self._pending[self.connection.send(self._pending) :]
        except BlockingIOError:
            self._deadline = time.monotonic() + ANSWER_WITHIN
        except ConnectionError:
            self._lost()
        else:
            self._isSent()

    def _isSent(self) -> None:
        script = self._script
        if self._sent - 1 == script.cutAfter:
            self._tally.cut += 1
            self.close(reset=True)
        elif self._sent < len(script.pieces):
            self._deadline = time.monotonic() + (PAUSE if script.reads else 0.0)
        else:
            self._deadline = time.monotonic() + (ANSWER_WITHIN if script.expectsEcho else script.lingers)

    def _receive(self) -> None:
        try:
            data = self.connection.recv(1_048_576)
        except ConnectionError as e:
            if self._lastWord:
                self._found(f"was told {self._lastWord} and not closed in order: {e}")
            data = b""
        if not data:
            self._lost()
            return
        self._received += data
        end = 0
        try:
            for messageType, userId, body, end in decodeFrames(self._received):
                self._take(MessageType(messageType), userId, body)
        except (WireError, ValueError) as e:
            self._found(f"received what is no frame: {e}: {self._received[end:][:100]!r}")
            self.close()
            return
        self._received = self._received[end:]
        if self._isEchoed:
            self._tally.echoed += 1
            self.close()
        elif self._isRegistered and not (self._lastWord or self._pending) and self._sent < len(self._script.pieces):
            self._sendNext()

    def _take(self, messageType: MessageType, userId: bytes, body: bytes) -> None:
        if messageType != MessageType.ERROR:
            self._tally.answers[messageType.name] += 1
        if messageType == MessageType.ERROR:
            number, about, text = decodeError(body)
            code = ErrorCode(number)
            self._tally.answers[code.name] += 1
            if code == ErrorCode.INTERNAL:
                self._found(f"met a fault in the server with a frame of type {about} about {userId!r}")
            if code in CLOSING or (code == ErrorCode.OVERLOADED and not self._isRegistered):
                self._lastWord = f"{code.name}: {text}"
                self._deadline = time.monotonic() + CLOSE_WITHIN
        elif messageType == MessageType.HEARTBEAT and not self._isRegistered:
            self._isRegistered = True
            self._tally.registered += 1
        elif messageType == MessageType.HEARTBEAT and body == STILL_HERE:
            self._isEchoed = self._script.expectsEcho
        elif messageType in (MessageType.CALL_REQUEST, MessageType.CALL_ACCEPT):
            self._callId = self._tally.lastCallId = body[:16]

    def _lost(self) -> None:
        if self._script.expectsEcho:
            self._found(f"did nothing wrong and was closed: {self._lastWord}")
        self._tally.closedByServer += 1
        self.close()


def runStreams(
    server: Server, seed: int, indexes: Sequence[int], tally: Tally, progress: Callable[[int], None]
) -> None:
    """
    Run streams, L{AT_ONCE} at a time.

    @param progress: called from time to time with how many are over.
    """
    waiting = deque(indexes)
    streams: dict[int, Stream] = {}
    tickAt = 0.0
    with select.epoll() as poll:

        def watch(fileNumber: int, stream: Stream) -> None:
            if not stream.isOpen:
                del streams[fileNumber]
            elif stream.interest != stream.watched:
                stream.watched = stream.interest
                poll.modify(fileNumber, stream.watched)

        try:
            while waiting or streams:
                for _ in range(min(STARTED_AT_ONCE, AT_ONCE - len(streams), len(waiting))):
                    index = waiting.popleft()
                    stream = Stream(server, index, scriptOf(seed, index), tally)
                    fileNumber = stream.connection.fileno()
                    streams[fileNumber] = stream
                    poll.register(fileNumber, 0)
                    watch(fileNumber, stream)
                for fileNumber, events in poll.poll(0.005):
                    streams[fileNumber].ready(events)
                    watch(fileNumber, streams[fileNumber])
                now = time.monotonic()
                if now >= tickAt:
                    tickAt = now + 0.01
                    for fileNumber, stream in list(streams.items()):
                        stream.tick(now)
                        watch(fileNumber, stream)
                    progress(len(indexes) - len(waiting) - len(streams))
                    if len(tally.findings) >= MAX_FINDINGS:
                        return
        finally:
            for stream in streams.values():
                stream.close()


# -- The well-behaved clients --------------------------------------------------------------------------------------


@dataclass
class Beside:
    """
    What the two well-behaved clients have seen.

    @ivar latencies: seconds, of each frame that arrived.
    @ivar findings: what went wrong.
    """

    sent: int = 0
    received: int = 0
    latencies: list[float] = field(default_factory=list)
    findings: list[str] = field(default_factory=list)

    def percentile(self, share: float) -> float:
        """Return the seconds that this share of the frames took at most."""
        ordered = sorted(self.latencies) or [0.0]
        return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


class Client:
    """One of the two: it numbers what it sends, and checks what it gets from the other one."""

    _HEAD = struct.Struct(">cQd")

    def __init__(self, server: Server, me: bytes, peer: bytes, seen: Beside) -> None:
        self.connection = server.register(me)
        self._peer = peer
        self._seen = seen
        self._next = dict.fromkeys((MessageType.TEXT, MessageType.MEDIA_DATA), 0)
        self._expected = dict(self._next)
        self._received = b""

    def send(self) -> None:
        """Send a text and a piece of media."""
        for messageType, number in self._next.items():
            head = self._HEAD.pack(b"\0", number, time.monotonic())
            self.connection.sendall(encodeFrame(messageType, self._peer, head + bytes(160)))
            self._next[messageType] += 1
            self._seen.sent += 1

    def receive(self) -> None:
        """Check what has arrived: everything of the other one, once and in order; what others want is ignored."""
        data = self.connection.recv(1_048_576)
        if not data:
            raise Trouble("a well-behaved client was closed")
        self._received += data
        end = 0
        for messageType, userId, body, end in decodeFrames(self._received):
            if messageType == MessageType.ERROR or (messageType == MessageType.CALL_END and userId == self._peer):
                self._seen.findings.append(f"a well-behaved client got {MessageType(messageType).name} {body!r}")
            elif userId == self._peer and messageType in self._expected:
                _, number, at = self._HEAD.unpack_from(body)
                expected = self._expected[MessageType(messageType)]
                if number != expected:
                    self._seen.findings.append(f"a well-behaved client got number {number} instead of {expected}")
                self._expected[MessageType(messageType)] = number + 1
                self._seen.received += 1
                self._seen.latencies.append(time.monotonic() - at)
        self._received = self._received[end:]


def besideThem(server: Server, control: Connection) -> None:
    """Exchange texts and the media of a call until told to stop, then send a L{Beside} back: a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seen = Beside()
    try:
        one, other = (Client(server, me, peer, seen) for me, peer in (PAIR, PAIR[::-1]))
        # Each calls the other: the second request accepts the call of the first.
        one.connection.sendall(encodeFrame(MessageType.CALL_REQUEST, PAIR[1], b"\0"))
        readUntil(other.connection, MessageType.CALL_REQUEST)
        other.connection.sendall(encodeFrame(MessageType.CALL_REQUEST, PAIR[0], b"\0"))
        readUntil(one.connection, MessageType.CALL_ACCEPT)
        readUntil(other.connection, MessageType.CALL_ACCEPT)
        control.send("ready")
        converse([one, other], control, seen)
    except (Trouble, OSError, EOFError, WireError) as e:
        seen.findings.append(f"the well-behaved clients: {e or type(e).__name__}")
    with suppress(OSError):
        control.send(seen)


def converse(clients: list[Client], control: Connection, seen: Beside) -> None:
    """Let both send at their pace until something comes from C{control}, and then wait for what is under way."""
    sendAt = time.monotonic()
    stopAt: float | None = None
    while stopAt is None or (seen.received < seen.sent and time.monotonic() < stopAt):
        now = time.monotonic()
        if stopAt is None and now >= sendAt:
            sendAt += PACE
            for client in clients:
                client.send()
        files = [control.fileno(), *(client.connection.fileno() for client in clients)]
        ready = select.select(files, [], [], PACE if stopAt else max(0.0, sendAt - now))[0]
        for client in clients:
            if client.connection.fileno() in ready:
                client.receive()
        if control.fileno() in ready:
            control.recv()
            stopAt = now + ANSWER_WITHIN


def readUntil(connection: socket.socket, messageType: MessageType) -> None:
    """Read until a frame of that type has come."""
    received = b""
    while data := connection.recv(65_536):
        received += data
        if any(frame[0] == messageType for frame in decodeFrames(received)):
            return
    raise Trouble(f"closed before {messageType.name} came")


# -- The command ---------------------------------------------------------------------------------------------------


def whoStays(server: Server) -> int:
    """Return how many are online besides the one who asks."""
    with server.register(b"who-stays-%d" % time.monotonic_ns()) as connection:
        connection.sendall(encodeFrame(MessageType.PRESENCE, b"", b"\0"))
        received = b""
        while data := connection.recv(65_536):
            received += data
            for messageType, userId, body, _ in decodeFrames(received):
                if messageType == MessageType.PRESENCE and not userId:
                    return int.from_bytes(body, "big")
    raise Trouble("nobody says who is online")


def openFiles(server: Server) -> int:
    """Return how many files the server has open, connections among them."""
    return len(list(Path(f"/proc/{server.pid}/fd").iterdir()))


def faultsIn(log: bytes) -> list[str]:
    """Return each traceback in a log, or what looks like one, with some lines around it."""
    lines = log.decode(errors="replace").splitlines()
    found = [n for n, line in enumerate(lines) if "Traceback" in line or "Unhandled" in line]
    return ["in the log:\n    " + "\n    ".join(lines[max(0, n - 2) : n + 25]) for n in found]


@dataclass
class Figures:
    """What was measured of one run; memory is in kB."""

    took: float = 0.0
    atFirst: int = 0
    usual: int = 0
    atLast: int = 0
    peak: int = 0
    logged: int = 0
    beside: Beside = field(default_factory=Beside)


def run(server: Server, asked: argparse.Namespace, tally: Tally, figures: Figures) -> None:
    """Run the streams beside the well-behaved clients, and look at the server before, meanwhile and after."""
    assert server.pid is not None
    figures.atFirst = memory(server.pid)
    control, theirs = multiprocessing.get_context("fork").Pipe()
    process = multiprocessing.get_context("fork").Process(target=besideThem, args=(server, theirs), daemon=True)
    process.start()
    theirs.close()
    ready = control.recv()
    if isinstance(ready, Beside):
        raise Trouble("; ".join(ready.findings))
    files = openFiles(server)
    began = sayAt = time.monotonic()

    def progress(over: int) -> None:
        nonlocal sayAt
        assert server.pid is not None
        if not figures.usual and over >= WARM_UP * asked.streams:
            figures.usual = memory(server.pid)
        if time.monotonic() >= sayAt:
            sayAt = time.monotonic() + 10
            say(f"{over:>7,} of {asked.streams:,} streams, {memory(server.pid) / 1000:.1f} MB")

    runStreams(server, asked.seed, range(asked.first, asked.first + asked.streams), tally, progress)
    figures.took = time.monotonic() - began
    deadline = time.monotonic() + LEAVE_WITHIN
    # The connection that asked who stays is closed at once, but not before the server has seen that.
    while True:
        stay = whoStays(server)
        time.sleep(0.1)
        if stay == len(PAIR) and openFiles(server) <= files:
            break
        if time.monotonic() > deadline:
            tally.findings.append(
                f"{stay} are online instead of {len(PAIR)}, with {openFiles(server)} open files instead of {files}"
            )
            break
    control.send("stop")
    figures.beside = control.recv()
    process.join()
    figures.atLast = memory(server.pid)
    figures.peak = memory(server.pid, "VmHWM")


def judge(tally: Tally, figures: Figures) -> list[str]:
    """Return all that is wrong."""
    findings = [*tally.findings, *figures.beside.findings]
    beside = figures.beside
    if beside.received != beside.sent or not beside.sent:
        findings.append(f"of {beside.sent} frames between the well-behaved clients {beside.received} arrived")
    if beside.percentile(0.99) > MAX_P99:
        findings.append(f"99 of 100 of those took up to {beside.percentile(0.99):.2f} s")
    if figures.atLast - figures.usual > MAX_GROWTH:
        findings.append(f"the server's memory grew by {(figures.atLast - figures.usual) / 1000:.1f} MB")
    return findings


def summary(asked: argparse.Namespace, tally: Tally, figures: Figures) -> str:
    """Return what happened, for a person to read."""
    beside = figures.beside
    p50, p99, longest = (1000 * beside.percentile(share) for share in (0.5, 0.99, 1.0))
    answers = ", ".join(f"{name} {n:,}" for name, n in tally.answers.most_common())
    return "\n".join(
        (
            f"streams: {asked.streams:,} from {asked.first} on, seed {asked.seed}, in {figures.took:.0f} s "
            f"({asked.streams / max(0.001, figures.took):.0f} a second)",
            f"    {tally.registered:,} registered, {tally.echoed:,} unmutated and answered, "
            f"{tally.closedByServer:,} closed by the server, {tally.cut:,} reset by us",
            f"answers: {answers}",
            f"memory: {figures.atFirst / 1000:.1f} MB at first, {figures.usual / 1000:.1f} MB after "
            f"{WARM_UP:.0%} of them, {figures.atLast / 1000:.1f} MB at last, {figures.peak / 1000:.1f} MB at most",
            f"beside them: {beside.sent:,} texts and media sent, {beside.sent - beside.received:,} lost; "
            f"p50 {p50:.1f} ms, p99 {p99:.1f} ms, longest {longest:.1f} ms",
            f"log: {figures.logged:,} lines",
        )
    )


def _stop(signalNumber: int, frame: object) -> None:
    """On SIGTERM: end as one should, and stop the server."""
    raise SystemExit(128 + signalNumber)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    @return: its exit code: 0; 1 if the server failed; 130 after a Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="fuzz",
        description="Start a WeCompany server, send it mutated streams over many connections at once, and see whether "
        "it stays up and clean while two well-behaved clients talk beside.  Linux only.",
    )
    parser.add_argument("--streams", type=int, default=100_000, help="how many (default: 100000)")
    parser.add_argument("--seed", type=int, default=1, help="what the streams follow from (default: 1)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first stream (default: 0)")
    parser.add_argument("--port", type=int, default=0, help="where the server listens (default: a free port)")
    asked = parser.parse_args(arguments)
    if asked.streams < 1 or asked.first < 0:
        parser.error("--streams is 1 or more, --first 0 or more")
    if not sys.platform.startswith("linux"):
        say("fuzz: this runs on Linux only: it needs epoll, and /proc for the server's memory")
        return 1
    signal.signal(signal.SIGTERM, _stop)
    tally = Tally()
    figures = Figures()
    try:
        raiseOpenFiles(AT_ONCE)
        with startedServer(asked.port) as server:
            try:
                run(server, asked, tally, figures)
            except (Trouble, OSError, EOFError) as e:
                tally.findings.append(f"the run broke off: {e or type(e).__name__}")
    except Trouble as e:
        say(f"fuzz: {e}")
        return 1
    except KeyboardInterrupt:
        say("fuzz: stopped")
        return 130
    figures.logged = server.output.count(b"\n")
    findings = judge(tally, figures) + faultsIn(server.output)
    if server.exitCode not in (0, -signal.SIGTERM):
        findings.append(f"the server ended with {server.exitCode}")
    print(summary(asked, tally, figures))
    for finding in findings[:MAX_FINDINGS]:
        print(f"FAILED: {finding}")
    if not findings:
        print("passed")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
