"""
A server on a bad network: whether voices stay in time there, and whether anything else gets lost.

::

    python -m benchmarks.network                                   all shapes, each against a server of its own
    python -m benchmarks.network --shape throttled --line tc       through network namespaces: Linux, root, iproute2
    python -m benchmarks.network --shape throttled --shape unclassed --plot-to docs/images

C{throttled}: a receiver behind 512 kbit/s gets at once a call with sound and a video of twice what the line carries, a
file, and texts.  C{unclassed} is the same with a server that has one queue for all, to compare with.  C{stalled}: a
receiver in such a call takes nothing for a while, and then comes back.  C{many}: a thousand of them do so at once, and
two others write to each other meanwhile.

The bad line is a proxy that passes on so many bytes a second and has hardly any buffer, or two network namespaces with
C{tc}'s token bucket filter between them and a queue of 50 ms.  All clients of a call are one process with one clock.
A delay counts from when the sound, picture or text was to be sent, so a load that is late itself is not forgiven that.

A shape fails if what is promised does not hold (docs/performance.rst).  Linux only, like L{benchmarks.bench}.
"""

from __future__ import annotations

import argparse
import ctypes
import hashlib
import heapq
import itertools
import json
import math
import os
import random
import select
import shutil
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.attacks import Seen, beThePair, countedIn, process, share
from benchmarks.bench import (
    ANSWER_WITHIN,
    MUCH_STEAL,
    RAISED,
    Server,
    Trouble,
    atLeast,
    cpuSeconds,
    freePort,
    machineTicks,
    memory,
    positive,
    raiseOpenFiles,
    say,
    started,
    startedServer,
    stealPercent,
)
from wecompany.media import MediaFrame, Reassembler, encodeFrame
from wecompany.wire import (
    FILE_WINDOW,
    ID_SIZE,
    MAX_CHUNK,
    VIDEO_FLAG,
    FileOffer,
    FileOp,
    MediaKind,
    MessageType,
    WireError,
    decodeFrames,
    decodeOffset,
    encodeOffset,
    encodeTag,
    encodeTagged,
    splitId,
    splitOffset,
)
from wecompany.wire import encodeFrame as encodeMessage

LINE_RATE = 512_000
"""Bits a second of the bad line, each way."""

LINE_QUEUE = 0.05
"""Seconds' worth of data that the line itself holds back."""

BURST = 1_600
"""Bytes that C{tc} lets through at once: a packet."""

SOUND_EVERY = 0.02
"""Seconds between two packets of sound."""

SOUND_SIZE = 160
"""Bytes of a packet of sound: 64 kbit/s, what G.711 takes and Opus at its best."""

PICTURE_EVERY = 0.04
"""Seconds between two pictures."""

KEY_EVERY = 25
"""Pictures from one key frame to the next: 1 s."""

KEY_SIZE = 25_000
"""Bytes of a key frame."""

DELTA_SIZE = 4_170
"""Bytes of the other pictures: 1 Mbit/s with the key frames."""

TEXT_EVERY = 0.05
"""Seconds between two texts."""

CREDIT_EVERY = FILE_WINDOW // 4
"""Bytes of a file that its receiver takes between two credits."""

IN_TIME = 200.0
"""Milliseconds that media may be behind real time when a receiver reads again, and within which it has caught up."""

MAX_LATE = 131_072
"""Bytes of media that may come late then: what had left the queue already, or was at the end of it."""

MAX_SOUND_DELAY = 150.0
"""Milliseconds that 99 of 100 packets of sound take at most through the bad line."""

MAX_GROWTH = 3 * 1024
"""kB that the server's memory may grow for one connection, whatever it does."""

SMALL_BUFFER = 8_192
"""Bytes of the receive buffer of a receiver that stalls: what it gets later than that waits in the server."""

SEGMENT = 1_448
"""Bytes of a TCP segment through the proxy and to receivers that stall: the loopback's own would be 64 KiB."""

TICK = 0.005
"""Seconds between two looks of the proxy."""

SAMPLE_EVERY = 0.1
"""Seconds between two looks at the server's memory, and C{KERNEL_EVERY} at the kernel's."""

KERNEL_EVERY = 5.0

BEFORE_STALL = 2.0
"""Seconds of a call before its receiver stops to read, and C{AFTER_STALL} at most when it reads again."""

AFTER_STALL = 3.0

STAGE_WITHIN = 600.0
"""Seconds that a crowd waits to be told what to do next."""

CATCH_UP_WITHIN = 30.0
"""Seconds that texts have to arrive when a receiver reads again, or the load has ended."""

FILE_WITHIN = 600.0
"""Seconds that the file has."""

CROWD_SOUND_EVERY = 0.1
"""Seconds between two packets of sound to each receiver of a crowd: long ones, as there are many."""

CROWD_SOUND_SIZE = 800
"""Bytes of such a packet: 64 kbit/s too."""

CROWD_PARTS = 20
"""Parts of a crowd to which they go one after the other."""

CROWD_HEARTBEAT_EVERY = 20.0
"""Seconds between two heartbeats of a crowd's receivers, which send nothing else."""

CROWD_TEXT_EVERY = 1.0
"""Seconds between two texts to each receiver of a crowd."""

CROWD_TEXT_SIZE = 1_000
"""Bytes of such a text."""

CROWD_GROWTH = 256
"""kB that the server's memory may grow for each receiver of a crowd: its texts are 50, and its media 128 at most."""

PAIR_SECONDS = 10.0
"""Seconds for which the pair is measured before a crowd is there, and while it reads."""

PAIR_NOTICES = 20.0
"""Milliseconds that a stalled crowd may add to the pair's p99, compared with a crowd that reads."""

UNCLASSED = """\
import wecompany.backlog

wecompany.backlog.classOf = lambda frames: wecompany.backlog.Class.SIGNALS
from twisted.scripts.twistd import run
run()
"""
"""A server for which all frames are of one class."""

_CLONE_NEWNET = 0x40000000
_TEXT = struct.Struct(">Id")
_SENT_AT = struct.Struct(">6xQ")


# -- Lines ---------------------------------------------------------------------------------------------------------


class NarrowServer(Server):
    """A server as a receiver with a small buffer sees it."""

    def connect(self) -> socket.socket:
        """See L{Server.connect}."""
        return narrowConnection((self.host, self.port), SMALL_BUFFER)


def narrowConnection(address: tuple[str, int], size: int) -> socket.socket:
    """Return a connection that takes no more than about C{size} bytes before they are read."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, size // 2)  # the kernel doubles it
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT)
    connection.settimeout(ANSWER_WITHIN)
    connection.connect(address)
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


class Pipe:
    """
    One direction of the proxy: it takes no byte before it may pass it on.

    @ivar allowance: bytes that may be passed on now: a segment at most, so that a proxy that comes late does not
        send a burst.
    """

    def __init__(self, source: socket.socket, target: socket.socket, bitsPerSecond: float) -> None:
        self._source = source
        self._target = target
        self._rate = bitsPerSecond / 8
        self._pending = b""
        self.allowance = 0.0

    def pump(self, seconds: float) -> bool:
        """Pass on what may be after so many seconds; return false when there is nothing more to come."""
        self.allowance = min(SEGMENT, self.allowance + seconds * self._rate)
        try:
            if not self._pending and self.allowance >= 1:
                self._pending = self._source.recv(int(self.allowance))
                self.allowance -= len(self._pending)
                if not self._pending:
                    return False
            if self._pending:
                self._pending = self._pending[self._target.send(self._pending) :]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return True


def beTheProxy(server: Server, bitsPerSecond: float, control: Connection) -> None:
    """Carry one connection over a bad line, each way: a process of its own that tells its port."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        control.send(listening.getsockname()[1])
        client, _ = listening.accept()
    held = int(bitsPerSecond / 8 * LINE_QUEUE)
    with client, narrowConnection((server.host, server.port), held) as upstream:
        for connection in (client, upstream):
            connection.setblocking(False)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        pipes = Pipe(upstream, client, bitsPerSecond), Pipe(client, upstream, bitsPerSecond)
        last = time.monotonic()
        isOpen = True
        while isOpen:
            time.sleep(TICK)
            now = time.monotonic()
            isDown, isUp = (pipe.pump(now - last) for pipe in pipes)
            isOpen = isDown and isUp
            last = now


class Namespaces:
    """
    A network of three namespaces: the server's, a router, and behind a bad line the receiver's.

    While this is entered this process, and the server that it starts, are in the first.
    """

    _server = "192.0.2.1"
    _routers = "192.0.2.2", "192.0.2.129"
    _receiver = "192.0.2.130"

    def __init__(self, bitsPerSecond: float, isFar: bool) -> None:
        """
        @param isFar: whether the queues of the line are the router's, which drops what does not fit.  Else they are
            the server's and the receiver's own, and TCP sees to it that all fits.
        """
        self._rate = int(bitsPerSecond)
        self._isFar = isFar
        self._names = [f"wecompany-{os.getpid()}-{what}" for what in ("server", "router", "receiver")]
        self._outside = -1

    def __enter__(self) -> Namespaces:
        self._outside = os.open("/proc/self/ns/net", os.O_RDONLY)
        try:
            self._build()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _build(self) -> None:
        server, router, receiver = self._names
        for name in self._names:
            _run("ip", "netns", "add", name)
        ends = ((server, "near", self._server, self._routers[0]), (receiver, "far", self._receiver, self._routers[1]))
        for name, device, address, gateway in ends:
            _run("ip", "-n", router, "link", "add", device, "type", "veth", "peer", "name", "line", "netns", name)
            _run("ip", "-n", router, "address", "add", f"{gateway}/25", "dev", device)
            _run("ip", "-n", name, "address", "add", f"{address}/25", "dev", "line")
            for where, what in ((router, device), (name, "line"), (name, "lo")):
                # Packets as they are on a line, and not what a network card would cut up.
                _run("ip", "-n", where, "link", "set", what, "gso_max_segs", "1", "up")
            _run("ip", "-n", name, "route", "add", "default", "via", gateway)
        self._enter(router)
        Path("/proc/sys/net/ipv4/ip_forward").write_text("1")
        self._enter(server)
        shaper = f"rate {self._rate}bit burst {BURST} latency {round(1000 * LINE_QUEUE)}ms"
        queues = ((router, "near"), (router, "far")) if self._isFar else ((server, "line"), (receiver, "line"))
        for name, device in queues:
            _run("tc", "-n", name, "qdisc", "add", "dev", device, "root", "tbf", *shaper.split())

    def __exit__(self, *_: object) -> None:
        self._enterFile(self._outside)
        os.close(self._outside)
        for name in self._names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    def connect(self, server: Server) -> socket.socket:
        """Return a connection from the other end of the line."""
        self._enter(self._names[2])
        try:
            connection = socket.socket()
        finally:
            self._enter(self._names[0])
        connection.settimeout(ANSWER_WITHIN)
        connection.connect((self._server, server.port))
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def _enter(self, name: str) -> None:
        file = os.open(f"/run/netns/{name}", os.O_RDONLY)
        try:
            self._enterFile(file)
        finally:
            os.close(file)

    @staticmethod
    def _enterFile(file: int) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.setns(file, _CLONE_NEWNET):
            raise OSError(ctypes.get_errno(), "a network namespace cannot be entered")


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise Trouble(f"{' '.join(command)}: {done.stderr.strip()}")


@dataclass
class FarServer(Server):
    """A server as it is seen from the other end of the line."""

    line: Namespaces | None = None

    def connect(self) -> socket.socket:
        """See L{Server.connect}."""
        assert self.line is not None
        return self.line.connect(self)


def canShape() -> bool:
    """Return whether there can be network namespaces here."""
    return os.geteuid() == 0 and bool(shutil.which("ip")) and bool(shutil.which("tc"))


# -- Clients -------------------------------------------------------------------------------------------------------

Handler = Callable[[bytes, bytes], None]
"""Takes the user ID and the data of a frame."""


class Loop:
    """
    Some parties, and what is done every so often.

    @ivar lost: those that the server has closed.
    """

    def __init__(self) -> None:
        self._poll = select.epoll()
        self._parties: dict[int, Party] = {}
        self._timers: list[tuple[float, int, float, Callable[[float], None]]] = []
        self._serial = itertools.count()
        self.lost: list[Party] = []

    def add(self, party: Party) -> None:
        """Serve a party."""
        self._parties[party.fileno()] = party
        self._poll.register(party.fileno(), select.EPOLLIN)

    def watch(self, party: Party, isRead: bool, isWritten: bool) -> None:
        """Wait for what the party wants to do."""
        mask = (select.EPOLLIN if isRead else 0) | (select.EPOLLOUT if isWritten else 0)
        self._poll.modify(party.fileno(), mask)

    def lose(self, party: Party) -> None:
        """The server has closed it."""
        self._poll.unregister(party.fileno())
        self.lost.append(party)

    def every(self, seconds: float, function: Callable[[float], None]) -> None:
        """Call C{function} every so often, with the time at which it was to be called."""
        heapq.heappush(self._timers, (time.monotonic() + seconds, next(self._serial), seconds, function))

    def forget(self, *functions: Callable[[float], None]) -> None:
        """Call them no more."""
        self._timers = [timer for timer in self._timers if timer[3] not in functions]
        heapq.heapify(self._timers)

    def run(self, seconds: float, until: Callable[[], object] = lambda: False) -> bool:
        """
        Go on for so long.

        @param until: ends it before, when it returns something true.
        @return: whether that did.
        """
        end = time.monotonic() + seconds
        while not until():
            now = time.monotonic()
            if now >= end:
                return False
            while self._timers and self._timers[0][0] <= now:
                due, serial, interval, function = heapq.heappop(self._timers)
                heapq.heappush(self._timers, (due + interval, serial, interval, function))
                function(due)
            wait = min(end, self._timers[0][0]) if self._timers else end
            for fileNumber, event in self._poll.poll(max(0.0, wait - time.monotonic())):
                party = self._parties[fileNumber]
                if event & select.EPOLLOUT:
                    party.flush()
                if event & ~select.EPOLLOUT:
                    party.read()
        return True

    def close(self) -> None:
        """Close them all."""
        for party in self._parties.values():
            party.close()
        self._poll.close()


class Party:
    """
    One user's connection.

    @ivar handlers: what is done with the frames of each type; one of a type that has none is noted in C{surprises}.
    @ivar surprises: frames that were not expected.
    """

    def __init__(self, loop: Loop, server: Server, userId: bytes) -> None:
        self.userId = userId
        self.handlers: dict[int, Handler] = {}
        self.surprises: list[str] = []
        self._loop = loop
        self._connection = server.register(userId)
        self._connection.setblocking(False)
        self._pending = bytearray()
        self._unparsed = b""
        self._isResting = self._isBlocked = self._isLost = False
        loop.add(self)

    def fileno(self) -> int:
        """Return its connection's."""
        return self._connection.fileno()

    def send(self, messageType: int, toId: bytes, data: bytes = b"") -> None:
        """Send a frame as soon as what is before it has been sent."""
        self.sendFrames(encodeMessage(messageType, toId, data))

    def sendFrames(self, frames: bytes) -> None:
        """Send whole frames, likewise."""
        isWaiting = bool(self._pending)
        self._pending += frames
        if not isWaiting:
            self.flush()

    def flush(self) -> None:
        """Send what the kernel takes."""
        try:
            while self._pending:
                del self._pending[: self._connection.send(self._pending)]
        except BlockingIOError:
            pass
        except OSError:
            self._pending.clear()  # reading tells why
        if self._isBlocked != bool(self._pending):
            self._isBlocked = not self._isBlocked
            self._watch()

    def rest(self) -> None:
        """Read nothing more."""
        self._isResting = True
        self._watch()

    def wake(self) -> None:
        """Read again."""
        self._isResting = False
        self._watch()

    def _watch(self) -> None:
        if not self._isLost:
            self._loop.watch(self, not self._isResting, self._isBlocked)

    def read(self) -> None:
        """Take what has come."""
        try:
            received = self._connection.recv(65_536)
        except BlockingIOError:
            return
        except OSError:
            received = b""
        if not received:
            self._isLost = True
            self._loop.lose(self)
            return
        stream = self._unparsed + received
        at = 0
        for messageType, userId, data, at in decodeFrames(stream):
            handler = self.handlers.get(messageType)
            if handler:
                handler(userId, data)
            else:
                self.surprises.append(f"type {messageType} from {userId!r}: {data[:100]!r}")
        self._unparsed = stream[at:]

    def close(self) -> None:
        """Leave."""
        self._connection.close()


def content(kind: int, sequence: int) -> bytes:
    """Return what is in a packet of sound or a picture: of its usual size, and different each time."""
    size = sizeOf(kind)
    return (b"%010d" % sequence * (size // 10 + 1))[:size]


def sizeOf(kind: int) -> int:
    """Return the bytes of a packet of sound or a picture."""
    return SOUND_SIZE if kind == MediaKind.AUDIO else KEY_SIZE if kind == MediaKind.VIDEO_KEY else DELTA_SIZE


class MediaSource:
    """
    What a party says and shows in its call.

    @ivar sounds: packets of sound that it has sent.
    @ivar pictures: pictures that it has sent.
    @ivar lateness: milliseconds by which each packet of sound was sent late.
    """

    def __init__(self, party: Party, peer: bytes) -> None:
        self._party = party
        self._peer = peer
        self.sounds = 0
        self.pictures = 0
        self.lateness: list[float] = []

    def say(self, due: float) -> None:
        """Send a packet of sound."""
        self.lateness.append(1000 * (time.monotonic() - due))
        self._send(MediaKind.AUDIO, self.sounds, due)
        self.sounds += 1

    def show(self, due: float) -> None:
        """Send a picture."""
        kind = MediaKind.VIDEO_DELTA if self.pictures % KEY_EVERY else MediaKind.VIDEO_KEY
        self._send(kind, self.pictures, due)
        self.pictures += 1

    def _send(self, kind: MediaKind, sequence: int, due: float) -> None:
        for piece in encodeFrame(MediaFrame(kind, sequence, int(due * 1e6), content(kind, sequence))):
            self._party.send(MessageType.MEDIA_DATA, self._peer, piece)


@dataclass(frozen=True)
class Arrival:
    """
    Something that has arrived.

    @ivar kind: of media; sound also stands for texts.
    @ivar sentAt: seconds, when it was to be sent.
    @ivar delay: milliseconds that it took.
    """

    kind: int
    sequence: int
    sentAt: float
    delay: float

    def after(self, moment: float) -> float:
        """Return the milliseconds from that moment until it came."""
        return 1000 * (self.sentAt - moment) + self.delay


class MediaSink:
    """
    What a party hears and sees in its call.

    @ivar sounds: the packets of sound that have come.
    @ivar pictures: the whole pictures that have come.
    @ivar spoilt: how many were other than they had been sent.
    """

    def __init__(self, party: Party) -> None:
        party.handlers[MessageType.MEDIA_DATA] = self._take
        self._reassembler = Reassembler()
        self.sounds: list[Arrival] = []
        self.pictures: list[Arrival] = []
        self.spoilt = 0

    @property
    def torn(self) -> int:
        """Return how many pictures came in part, or wrong, and how many pieces belonged to none."""
        return self.spoilt + self._reassembler.dropped + self._reassembler.ignored

    def _take(self, _: bytes, piece: bytes) -> None:
        frame = self._reassembler.feed(piece)
        if frame is None:
            return
        if frame.data != content(frame.kind, frame.sequence):
            self.spoilt += 1
        sentAt = frame.timestamp / 1e6
        arrival = Arrival(frame.kind, frame.sequence, sentAt, 1000 * (time.monotonic() - sentAt))
        (self.sounds if frame.kind == MediaKind.AUDIO else self.pictures).append(arrival)


def undecodable(pictures: Sequence[Arrival]) -> int:
    """Return how many pictures need one before them that has not come, or came out of order."""
    count = 0
    last: int | None = None
    for picture in pictures:
        if picture.kind == MediaKind.VIDEO_KEY or picture.sequence - 1 == last:
            last = picture.sequence
        else:
            count += 1
    return count


class Writer:
    """
    Writes to somebody, over and over.

    @ivar sent: how many texts.
    @ivar refused: how many were answered with an ERROR.
    """

    def __init__(self, party: Party, toId: bytes, size: int) -> None:
        party.handlers[MessageType.ERROR] = self._error
        self._party = party
        self._toId = toId
        self._filling = bytes(size - _TEXT.size)
        self.sent = 0
        self.refused = 0

    def write(self, due: float) -> None:
        """Send a text."""
        self._party.send(MessageType.TEXT, self._toId, _TEXT.pack(self.sent, due) + self._filling)
        self.sent += 1

    def _error(self, _: bytes, data: bytes) -> None:
        self.refused += 1


class Reader:
    """
    Reads what somebody writes.

    @ivar texts: what has come.
    """

    def __init__(self, party: Party) -> None:
        party.handlers[MessageType.TEXT] = self._text
        party.handlers[MessageType.DELAY] = lambda _, __: None
        self.texts: list[Arrival] = []

    def _text(self, _: bytes, data: bytes) -> None:
        n, sentAt = _TEXT.unpack_from(data)
        self.texts.append(Arrival(MediaKind.AUDIO, n, sentAt, 1000 * (time.monotonic() - sentAt)))


def misplaced(texts: Sequence[Arrival]) -> int:
    """Return how many texts do not come after the one before them."""
    return sum(text.sequence <= before.sequence for before, text in itertools.pairwise(texts))


class FileSender:
    """
    Sends a file as fast as its window lets it.

    @ivar isDone: whether the receiver has said that it has the right one.
    @ivar problem: why it was given up, if it was.
    """

    def __init__(self, party: Party, toId: bytes, size: int) -> None:
        party.handlers[MessageType.FILE] = self._take
        self._party = party
        self._toId = toId
        self._data = random.Random(size).randbytes(size)
        self._transferId = os.urandom(ID_SIZE)
        self._sent = 0
        self.isDone = False
        self.problem = ""

    def offer(self) -> None:
        """Begin."""
        offer = FileOffer(len(self._data), hashlib.sha256(self._data).digest(), "report.pdf")
        self._send(FileOp.OFFER, offer.encode())

    def _send(self, op: FileOp, data: bytes = b"") -> None:
        self._party.send(MessageType.FILE, self._toId, bytes((op,)) + self._transferId + data)

    def _take(self, _: bytes, data: bytes) -> None:
        op, rest = data[0], data[1 + ID_SIZE :]
        if op == FileOp.RECEIVED:
            self.isDone = True
        elif op == FileOp.CANCEL:
            self.problem = f"the file was cancelled: {rest!r}"
        elif op in (FileOp.ACCEPT, FileOp.CREDIT):
            most = min(len(self._data), decodeOffset(rest) + FILE_WINDOW)
            while self._sent < most:
                chunk = self._data[self._sent : min(most, self._sent + MAX_CHUNK)]
                self._send(FileOp.CHUNK, encodeOffset(self._sent) + chunk)
                self._sent += len(chunk)
                if self._sent == len(self._data):
                    self._send(FileOp.DONE)


class FileTaker:
    """
    Takes whatever file it is offered.

    @ivar taken: bytes.
    @ivar began: when it was offered; C{ended}, when all of it was there.
    @ivar isWhole: whether its SHA-256 is the one of the offer.
    """

    def __init__(self, party: Party) -> None:
        party.handlers[MessageType.FILE] = self._take
        self._party = party
        self._offer: FileOffer | None = None
        self._digest = hashlib.sha256()
        self._credited = 0
        self.taken = 0
        self.began = self.ended = 0.0
        self.isWhole = False

    def _take(self, fromId: bytes, data: bytes) -> None:
        op, (transferId, rest) = data[0], splitId(data[1:])

        def answer(op: FileOp, rest: bytes = b"") -> None:
            self._party.send(MessageType.FILE, fromId, bytes((op,)) + transferId + rest)

        if op == FileOp.OFFER:
            self._offer = FileOffer.decode(rest)
            self.began = time.monotonic()
            answer(FileOp.ACCEPT, encodeOffset(0))
        elif op == FileOp.CHUNK:
            offset, chunk = splitOffset(rest)
            if offset != self.taken:
                raise Trouble(f"byte {offset} of the file came after byte {self.taken}")
            self._digest.update(chunk)
            self.taken += len(chunk)
            if self.taken - self._credited >= CREDIT_EVERY:
                self._credited = self.taken
                answer(FileOp.CREDIT, encodeOffset(self.taken))
        elif op == FileOp.DONE and self._offer is not None:
            self.ended = time.monotonic()
            self.isWhole = self._digest.digest() == self._offer.sha256
            if self.isWhole:
                answer(FileOp.RECEIVED)


def beginCall(loop: Loop, caller: Party, callee: Party) -> None:
    """
    Let one call the other, and the other accept.

    @raise Trouble: if that does not come about.
    """
    accepted: list[bytes] = []

    def ring(fromId: bytes, data: bytes) -> None:
        callee.send(MessageType.CALL_ACCEPT, fromId, data[:ID_SIZE])

    callee.handlers[MessageType.CALL_REQUEST] = ring
    caller.handlers[MessageType.CALL_REQUEST] = lambda _, __: None
    for party in (caller, callee):
        party.handlers[MessageType.CALL_ACCEPT] = lambda _, data: accepted.append(data)
    caller.send(MessageType.CALL_REQUEST, callee.userId, bytes((VIDEO_FLAG,)))
    if not loop.run(ANSWER_WITHIN, lambda: len(accepted) == 2):
        raise Trouble(f"there is no call: {caller.surprises} {callee.surprises}")


# -- What is measured ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Delays:
    """Milliseconds that half, 99 of 100 and all of them took at most."""

    p50: float
    p99: float
    longest: float

    @classmethod
    def of(cls, delays: Sequence[float]) -> Delays:
        """Return those of some delays."""
        return cls(*(round(share(delays, part), 1) for part in (0.5, 0.99, 1.0)))


@dataclass
class Figures:
    """
    What one shape came to.

    @ivar values: the figures, by what they are: a number, or three L{Delays}.
    @ivar counted: what the server counted.
    @ivar findings: what is not as promised.
    @ivar sounds: of a receiver, for the plot.
    """

    shape: str
    line: str
    values: dict[str, float | Delays] = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)
    sounds: list[Arrival] = field(default_factory=list)
    stealPercent: float = 0.0

    def demand(self, isTrue: bool, otherwise: str) -> None:
        """Note what is wrong if it is."""
        if not isTrue:
            self.findings.append(otherwise)

    def asDict(self) -> dict[str, Any]:
        """Return what can be JSON."""
        values = {what: vars(value) if isinstance(value, Delays) else value for what, value in self.values.items()}
        return {**vars(self), "values": values, "sounds": len(self.sounds)}


class Watch:
    """
    Looks at the server again and again.

    @ivar before: kB of its memory at first.
    @ivar most: kB of its memory at most.
    @ivar unsent: the most bytes that the kernel had for one of its connections: sent or not, and not yet acknowledged.
    """

    def __init__(self, server: Server) -> None:
        assert server.pid is not None
        self._pid = server.pid
        self._port = server.port
        self.before = self.most = memory(server.pid)
        self.unsent = 0

    def look(self, _: float = 0.0) -> None:
        """Look at its memory."""
        self.most = max(self.most, memory(self._pid))

    def lookAtKernel(self, _: float = 0.0) -> None:
        """Look at what the kernel has for it, which takes longer."""
        self.unsent = max(self.unsent, mostUnsent(Path("/proc/self/net/tcp").read_text(), self._port))


def mostUnsent(table: str, port: int) -> int:
    """Return the longest send queue of the connections at that port of this machine, by C{/proc/net/tcp}."""
    most = 0
    for line in table.splitlines()[1:]:
        _, local, _, state, queues, *_ = line.split()
        if local.endswith(f":{port:04X}") and state == "01":
            most = max(most, int(queues.partition(":")[0], 16))
    return most


@dataclass(frozen=True)
class Asked:
    """
    How long and how much.

    @ivar seconds: the shortest time of C{throttled}.
    @ivar fileSize: bytes.
    @ivar stall: seconds for which nothing is read.
    @ivar crowd: receivers of C{many}.
    @ivar line: C{proxy}, C{tc} or C{router}.
    """

    seconds: float = 60.0
    fileSize: int = 2_000_000
    stall: float = 50.0
    crowd: int = 1_000
    line: str = "proxy"


class Scene:
    """
    A call, and others who write and send a file to one of its parties.

    @ivar receiver: to whom all comes.
    @ivar source: what its peer in the call sends, C{sink}: what comes of that; C{answers} and C{heard}: the other way.
    @ivar seconds: how long they sent.
    """

    def __init__(self, server: Server, receivers: Server, textSize: int) -> None:
        """
        @param receivers: the server as the receiver sees it.
        """
        self.loop = Loop()
        self.receiver = Party(self.loop, receivers, b"receiver")
        self.peer, self.writing, self.sending = (
            Party(self.loop, server, userId) for userId in (b"caller", b"writer", b"file-sender")
        )
        beginCall(self.loop, self.peer, self.receiver)
        self.source = MediaSource(self.peer, self.receiver.userId)
        self.answers = MediaSource(self.receiver, self.peer.userId)
        self.sink = MediaSink(self.receiver)
        self.heard = MediaSink(self.peer)
        self.writer = Writer(self.writing, self.receiver.userId, textSize)
        self.reader = Reader(self.receiver)
        self.watch = Watch(server)
        self.seconds = 0.0
        self._began = time.monotonic()
        for interval, function in (
            (SOUND_EVERY, self.source.say),
            (SOUND_EVERY, self.answers.say),
            (PICTURE_EVERY, self.source.show),
            (TEXT_EVERY, self.writer.write),
            (SAMPLE_EVERY, self.watch.look),
            (KERNEL_EVERY, self.watch.lookAtKernel),
        ):
            self.loop.every(interval, function)

    def run(self, seconds: float, until: Callable[[], object] = lambda: False) -> None:
        """Go on for so long, or until that is true or somebody was put out."""
        self.loop.run(seconds, lambda: until() or self.loop.lost)

    def finish(self, within: float) -> None:
        """Send no more, and wait for what is under way."""
        self.seconds = time.monotonic() - self._began
        self.loop.forget(self.source.say, self.source.show, self.answers.say, self.writer.write)
        # Before anybody leaves, the server has taken what both have said: else it counts that as said to nobody.
        taken: list[bytes] = []
        self.peer.handlers[MessageType.HEARTBEAT] = lambda _, data: taken.append(data)
        self.peer.send(MessageType.HEARTBEAT, b"")
        self.run(ANSWER_WITHIN, lambda: bool(taken) and self._isHeard(self.answers, self.heard))
        self.run(within, lambda: len(self.reader.texts) + self.writer.refused >= self.writer.sent)
        # Media comes in time or not at all.
        self.run(min(1.0, within), lambda: self._isHeard(self.source, self.sink))
        self.run(min(1.0, within), lambda: self._isHeard(self.answers, self.heard))

    @staticmethod
    def _isHeard(source: MediaSource, sink: MediaSink) -> bool:
        return bool(sink.sounds) and sink.sounds[-1].sequence == source.sounds - 1

    def tell(self, figures: Figures) -> None:
        """Note what is to be told of any such scene, and what has to hold in it."""
        sink, texts = self.sink, self.reader.texts
        received = sum(sizeOf(picture.kind) for picture in sink.pictures)
        sent = self.source.pictures * (KEY_SIZE + (KEY_EVERY - 1) * DELTA_SIZE) / KEY_EVERY
        figures.sounds = sink.sounds
        figures.values |= {
            "seconds": round(self.seconds, 1),
            "sound to the receiver, ms": Delays.of([sound.delay for sound in sink.sounds]),
            "sound to the receiver: sent": self.source.sounds,
            "sound to the receiver: lost": self.source.sounds - len(sink.sounds),
            "sound: late itself, ms": Delays.of(self.source.lateness),
            "sound from the receiver, ms": Delays.of([sound.delay for sound in self.heard.sounds]),
            "sound from the receiver: lost": self.answers.sounds - len(self.heard.sounds),
            "pictures, ms": Delays.of([picture.delay for picture in sink.pictures]),
            "pictures: sent": self.source.pictures,
            "pictures: received": len(sink.pictures),
            "pictures: key frames received": sum(picture.kind == MediaKind.VIDEO_KEY for picture in sink.pictures),
            "pictures: torn": sink.torn,
            "pictures: without the one before": undecodable(sink.pictures),
            "pictures, kbit/s: sent": round(sent * 8 / self.seconds / 1000, 1),
            "pictures, kbit/s: received": round(received * 8 / self.seconds / 1000, 1),
            "texts, ms": Delays.of([text.delay for text in texts]),
            "texts: sent": self.writer.sent,
            "texts: received": len(texts),
            "texts: refused": self.writer.refused,
            "texts: out of order": misplaced(texts),
            "server memory, kB: before": self.watch.before,
            "server memory, kB: grown by at most": self.watch.most - self.watch.before,
            "server kernel, bytes for one connection at most": self.watch.unsent,
        }
        figures.demand(not self.loop.lost, f"closed by the server: {[party.userId for party in self.loop.lost]}")
        figures.demand(sink.torn == 0, f"{sink.torn} pictures came torn")
        figures.demand(undecodable(sink.pictures) == 0, "pictures came that need one that has not come")
        figures.demand(bool(sink.pictures), "no picture came at all")
        figures.demand(len(texts) + self.writer.refused == self.writer.sent, "texts were lost")
        figures.demand(misplaced(texts) == 0, "texts came out of order")
        growth = self.watch.most - self.watch.before
        figures.demand(growth < MAX_GROWTH, f"the server's memory grew by {growth} kB")
        surprises = [s for p in (self.receiver, self.peer, self.writing, self.sending) for s in p.surprises]
        figures.demand(not surprises, f"unexpected: {surprises[:3]}")


def throttled(server: Server, receivers: Server, asked: Asked, figures: Figures, isComplete: bool = True) -> None:
    """
    Everything at once for a receiver behind a bad line.

    @param isComplete: whether to wait until the file and all texts are through.
    """
    scene = Scene(server, receivers, 200)
    try:
        sender = FileSender(scene.sending, scene.receiver.userId, asked.fileSize)
        taker = FileTaker(scene.receiver)
        sender.offer()
        scene.run(asked.seconds)
        if isComplete:
            scene.run(FILE_WITHIN, lambda: sender.isDone or sender.problem)
        scene.finish(CATCH_UP_WITHIN if isComplete else 0.0)
        scene.tell(figures)
        seconds = (taker.ended or time.monotonic()) - taker.began
        figures.values |= {
            "file: bytes": asked.fileSize,
            "file: bytes received": taker.taken,
            "file: whole": int(taker.isWhole and sender.isDone),
            "file, seconds": round(seconds, 1),
            "file, kbit/s": round(taker.taken * 8 / 1000 / seconds, 1),
        }
        figures.demand(taker.isWhole and sender.isDone, f"the file is not whole: {sender.problem}")
        for what, source, sink in (("to", scene.source, scene.sink), ("from", scene.answers, scene.heard)):
            p99 = Delays.of([sound.delay for sound in sink.sounds]).p99
            figures.demand(len(sink.sounds) == source.sounds, f"sound {what} the receiver was lost")
            figures.demand(p99 < MAX_SOUND_DELAY, f"sound {what} the receiver is late: p99 {p99} ms")
    finally:
        scene.loop.close()


def stalled(server: Server, asked: Asked, figures: Figures) -> None:
    """A receiver in a call takes nothing for a while."""
    scene = Scene(server, NarrowServer(server.host, server.port, server.pid), 2_000)
    try:
        scene.run(BEFORE_STALL)
        heardBefore = len(scene.sink.sounds), len(scene.sink.pictures)
        scene.receiver.rest()
        scene.run(asked.stall)
        back = time.monotonic()
        scene.receiver.wake()
        scene.run(min(AFTER_STALL, asked.stall))
        scene.finish(CATCH_UP_WITHIN)
        scene.tell(figures)
        media = [*scene.sink.sounds[heardBefore[0] :], *scene.sink.pictures[heardBefore[1] :]]
        first, last, late = caughtUp(media, back)
        figures.values |= {
            "stalled, seconds": asked.stall,
            "back: ms until the first sound or picture in time": first,
            "back: ms until the last one that was late": last,
            "back: bytes of those that were late": late,
        }
        figures.demand(max(first, last) < IN_TIME, f"media is in time {max(first, last)} ms after coming back only")
        figures.demand(late < MAX_LATE, f"{late} bytes of media were late")
    finally:
        scene.loop.close()


def caughtUp(media: Sequence[Arrival], back: float) -> tuple[float, float, int]:
    """
    Return how a receiver that reads again is with real time.

    @param media: what it gets then.
    @param back: when it began to.
    @return: ms until the first in time, infinite if there is none; ms until the last that was not, and the bytes of
        those that were not.
    """
    inTime = [arrival for arrival in media if arrival.delay <= IN_TIME]
    late = [arrival for arrival in media if arrival.delay > IN_TIME]
    first = min((arrival.after(back) for arrival in inTime), default=math.inf)
    last = max((arrival.after(back) for arrival in late), default=0.0)
    return round(first, 1), round(last, 1), sum(sizeOf(arrival.kind) for arrival in late)


# -- A crowd -------------------------------------------------------------------------------------------------------


class Member:
    """
    One receiver of a crowd, in a call.

    @ivar written: how many texts it was sent, C{texts}: how many it has.
    @ivar misplaced: how many of them did not come next.
    @ivar sounds: packets of sound that it has.
    @ivar lateAt: when the last one came that was not in time.
    """

    __slots__ = ("lateAt", "misplaced", "party", "sounds", "tag", "texts", "written")

    def __init__(self, party: Party) -> None:
        party.handlers[MessageType.TEXT] = self._text
        party.handlers[MessageType.DELAY] = party.handlers[MessageType.HEARTBEAT] = lambda _, __: None
        party.handlers[MessageType.MEDIA_DATA] = self._sound
        self.party = party
        self.tag = encodeTag(party.userId)
        self.written = self.texts = self.misplaced = self.sounds = 0
        self.lateAt = 0.0

    def _text(self, _: bytes, data: bytes) -> None:
        self.misplaced += _TEXT.unpack_from(data)[0] != self.texts
        self.texts += 1

    def _sound(self, _: bytes, data: bytes) -> None:
        self.sounds += 1
        now = time.monotonic()
        if 1000 * (now - _SENT_AT.unpack_from(data)[0] / 1e6) > IN_TIME:
            self.lateAt = now


class Crowd:
    """Receivers that are all in calls with somebody else, and are written to."""

    def __init__(self, server: Server, n: int) -> None:
        narrow = NarrowServer(server.host, server.port, server.pid)
        self.loop = Loop()
        self._writer = Party(self.loop, server, b"crowd-writer")
        self._pairs: list[tuple[Party, Member]] = []
        for i in range(n):
            caller = Party(self.loop, server, b"caller-%d" % i)
            member = Party(self.loop, narrow, b"member-%d" % i)
            beginCall(self.loop, caller, member)
            self._pairs.append((caller, Member(member)))
        self.members = [member for _, member in self._pairs]
        self.sounds = 0
        self._talking, self._parts = itertools.cycle(range(CROWD_PARTS)), itertools.cycle(range(CROWD_PARTS))
        self.loop.every(CROWD_SOUND_EVERY / CROWD_PARTS, self._say)
        self.loop.every(CROWD_TEXT_EVERY / CROWD_PARTS, self._write)
        self.loop.every(CROWD_HEARTBEAT_EVERY, self._beat)

    def _say(self, due: float) -> None:
        talking = self._pairs[next(self._talking) :: CROWD_PARTS]
        (piece,) = encodeFrame(MediaFrame(MediaKind.AUDIO, 0, int(due * 1e6), bytes(CROWD_SOUND_SIZE)))
        for caller, member in talking:
            caller.sendFrames(encodeTagged(MessageType.MEDIA_DATA, member.tag, piece))
        self.sounds += len(talking)

    def _write(self, due: float) -> None:
        for member in self.members[next(self._parts) :: CROWD_PARTS]:
            text = _TEXT.pack(member.written, due) + bytes(CROWD_TEXT_SIZE - _TEXT.size)
            self._writer.sendFrames(encodeTagged(MessageType.TEXT, member.tag, text))
            member.written += 1

    def _beat(self, _: float) -> None:
        for member in self.members:
            member.party.send(MessageType.HEARTBEAT, b"")

    def isServed(self) -> bool:
        """Return whether everybody has all texts."""
        return all(member.texts >= member.written for member in self.members)

    def stopWriting(self) -> None:
        """No more texts."""
        self.loop.forget(self._write)


def beTheCrowd(server: Server, n: int, control: Connection) -> None:
    """
    Be a crowd, in a process of its own that gives way to others: it goes on to the next stage whenever it is told so.

    First it reads, then it reads nothing, then it reads again and no more is written; at last it tells what it saw.
    """
    os.nice(19)
    try:
        crowd = Crowd(server, n)
        control.send("reads")
        crowd.loop.run(STAGE_WITHIN, control.poll)
        control.recv()
        for member in crowd.members:
            member.party.rest()
        control.send("stalls")
        crowd.loop.run(STAGE_WITHIN, control.poll)
        control.recv()
        back = time.monotonic()
        crowd.stopWriting()
        for member in crowd.members:
            member.party.wake()
        crowd.loop.run(CATCH_UP_WITHIN, crowd.isServed)
        crowd.loop.run(1.0, control.poll)
        surprises = [s for m in crowd.members for s in m.party.surprises]
        control.send(
            {
                "crowd: texts sent": sum(member.written for member in crowd.members),
                "crowd: texts received": sum(member.texts for member in crowd.members),
                "crowd: texts out of order": sum(member.misplaced for member in crowd.members),
                "crowd: packets of sound sent": crowd.sounds,
                "crowd: packets of sound received": sum(member.sounds for member in crowd.members),
                "crowd: ms until the last sound that was late": round(
                    1000 * max(0.0, max(member.lateAt for member in crowd.members) - back), 1
                ),
                "crowd: closed by the server": len(crowd.loop.lost),
                "crowd: unexpected frames": len(surprises),
            }
        )
    except (Trouble, OSError, EOFError, WireError) as e:
        control.send(f"{e or type(e).__name__}")


def _pairFor(server: Server, seconds: float, watch: Watch) -> tuple[Seen, float]:
    """
    Let the pair write to each other for so long, and look at the server now and then.

    @return: what the pair saw, and the share of a CPU, in per cent, that the server used meanwhile.
    """
    assert server.pid is not None
    with process(beThePair, server, b"") as pair:
        ready = pair.recv()
        if isinstance(ready, Seen):
            return ready, 0.0
        used = cpuSeconds(server.pid)
        until = time.monotonic() + seconds
        while (left := until - time.monotonic()) > 0:
            watch.look()
            time.sleep(min(SAMPLE_EVERY, left))
        used = cpuSeconds(server.pid) - used
        pair.send("stop")
        seen: Seen = pair.recv()
        return seen, round(100 * used / seconds, 1)


def many(server: Server, asked: Asked, figures: Figures) -> None:
    """A crowd takes nothing for a while, and a pair writes to each other meanwhile."""
    short = min(PAIR_SECONDS, asked.stall)
    seen = {"alone": _pairFor(server, short, Watch(server))}
    with process(beTheCrowd, server, asked.crowd) as crowd:

        def stage(name: str) -> None:
            said = crowd.recv()
            if said != name:
                raise Trouble(f"the crowd: {said}")

        stage("reads")
        seen["beside a crowd that reads"] = _pairFor(server, short, Watch(server))
        crowd.send("stall")
        stage("stalls")
        watch = Watch(server)
        seen["beside a crowd that reads nothing"] = _pairFor(server, asked.stall, watch)
        crowd.send("read")
        seen["beside a crowd that comes back"] = _pairFor(server, short, Watch(server))
        told: dict[str, float] | str = crowd.recv()
    if isinstance(told, str):
        raise Trouble(f"the crowd: {told}")
    for when, (pair, cpuPercent) in seen.items():
        figures.values[f"pair {when}, ms"] = Delays.of(pair.latencies)
        figures.values[f"pair {when}: late itself, ms"] = Delays.of(pair.delays)
        figures.values[f"pair {when}: the server's share of a CPU, %"] = cpuPercent
        figures.demand(not pair.problem, f"the pair {when}: {pair.problem}")
        figures.demand(pair.sent == len(pair.latencies), f"the pair {when} lost texts")
    growth = (watch.most - watch.before) / asked.crowd
    figures.values |= {
        "crowd": asked.crowd,
        "stalled, seconds": asked.stall,
        **told,
        "server memory, kB: before": watch.before,
        "server memory, kB: grown by at most": watch.most - watch.before,
        "server memory, kB: grown for each": round(growth, 1),
    }
    figures.demand(told["crowd: texts received"] == told["crowd: texts sent"], "the crowd lost texts")
    for what in ("texts out of order", "closed by the server", "unexpected frames"):
        figures.demand(not told[f"crowd: {what}"], f"the crowd: {what}")
    figures.demand(growth < CROWD_GROWTH, f"the server's memory grew by {growth:.0f} kB for each of the crowd")
    p99 = {when: Delays.of(pair.latencies).p99 for when, (pair, _) in seen.items()}
    more = round(p99["beside a crowd that reads nothing"] - p99["beside a crowd that reads"], 1)
    figures.demand(more < PAIR_NOTICES, f"the pair's p99 is {more} ms more when the crowd reads nothing")


# -- The command ---------------------------------------------------------------------------------------------------

SHAPES = ("throttled", "unclassed", "stalled", "many")


@contextmanager
def unclassedServer(cpu: int | None, options: Sequence[str]) -> Iterator[Server]:
    """Start a server that has one class for all frames; see L{startedServer}."""
    port = freePort()
    with tempfile.TemporaryDirectory(prefix="wecompany-network-") as folder:
        command = [sys.executable, "-c", UNCLASSED, "-n", "--pidfile=", "--rundir", folder, "wecompany"]
        with started([*command, "--port", str(port), *options], Server("127.0.0.1", port), cpu) as server:
            yield server


def measure(shape: str, asked: Asked, cpu: int | None) -> Figures:
    """Measure one shape with a server of its own."""
    isLine = shape in ("throttled", "unclassed")
    figures = Figures(shape, asked.line if isLine else "loopback")
    ticks = machineTicks()
    with ExitStack() as stack:
        options = (*RAISED, "--interface", "127.0.0.1")
        if figures.line in ("tc", "router"):
            line = stack.enter_context(Namespaces(LINE_RATE, asked.line == "router"))
            options = (*RAISED, "--interface", "0.0.0.0")  # noqa: S104 - of the namespace
        start = unclassedServer(cpu, options) if shape == "unclassed" else startedServer(0, cpu, options)
        server = stack.enter_context(start)
        receivers: Server = server
        if figures.line in ("tc", "router"):
            receivers = FarServer(server.host, server.port, server.pid, line=line)
        elif figures.line == "proxy":
            proxy = stack.enter_context(process(beTheProxy, server, LINE_RATE))
            receivers = replace(server, port=proxy.recv())
        if isLine:
            throttled(server, receivers, asked, figures, shape == "throttled")
        elif shape == "stalled":
            stalled(server, asked, figures)
        else:
            many(server, asked, figures)
    figures.stealPercent = stealPercent(ticks)
    figures.counted = dict(sorted(countedIn(server.output).items()))
    figures.demand(
        b"Traceback" not in server.output and b"Unhandled" not in server.output,
        "the server's log has a traceback: " + server.output.decode(errors="replace")[-3_000:],
    )
    figures.demand(server.exitCode in (0, -signal.SIGTERM), f"the server ended with {server.exitCode}")
    if shape == "unclassed":
        figures.findings.clear()  # it promises nothing
    return figures


def table(all_: Sequence[Figures]) -> str:
    """Return all figures for a person to read."""
    lines: list[str] = []
    for figures in all_:
        lines += [f"{figures.shape}, through {figures.line}; the host took {figures.stealPercent:.1f} % of the time"]
        for what, value in figures.values.items():
            if isinstance(value, Delays):
                shown = f"{value.p50:>10,.1f} p50 {value.p99:>10,.1f} p99 {value.longest:>10,.1f} max"
            else:
                shown = f"{value:>10,}"
            lines.append(f"    {what:<70}{shown}")
        lines += [f"    counted: {what:<61}{n:>10,}" for what, n in figures.counted.items()]
        lines += [f"    FAILED: {finding}" for finding in figures.findings]
        lines.append("")
    return "\n".join(lines)


def plot(all_: Sequence[Figures], folder: Path) -> Path:
    """
    Draw how long sound took through the bad line.

    @return: where that is.
    @raise Trouble: if it cannot be drawn.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise Trouble('a plot needs matplotlib: pip install "wecompany[bench]"') from None
    names = {"throttled": "with the classes", "unclassed": "one queue for all"}
    drawn = [figures for figures in all_ if figures.shape in names and figures.sounds]
    if not drawn:
        raise Trouble("a plot needs the shape throttled or unclassed")
    figure = Figure(figsize=(7, 3.6), dpi=100, layout="constrained")
    axes = figure.add_subplot()
    for figures in drawn:
        began = figures.sounds[0].sentAt
        at = [sound.after(began) / 1000 for sound in figures.sounds]
        axes.plot(at, [sound.delay for sound in figures.sounds], linewidth=0.7, label=names[figures.shape])
    axes.axhline(MAX_SOUND_DELAY, color="gray", linestyle="--", linewidth=0.8, label=f"{MAX_SOUND_DELAY:.0f} ms")
    axes.set(
        yscale="log",
        xlabel="seconds, when it came",
        ylabel="delay of sound, ms",
        ylim=(1, 100_000),
        title="Sound through 512 kbit/s, beside a video, a file and texts",
    )
    axes.grid(alpha=0.3, which="both", linewidth=0.4)
    axes.yaxis.set_major_formatter("{x:,.0f}")
    axes.legend(loc="lower right", ncols=3)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / "audio-delay.png"
    figure.savefig(target, metadata={"Software": None})
    return target


def _stop(signalNumber: int, frame: object) -> None:
    """On SIGTERM: end as one should, and stop the server."""
    raise SystemExit(128 + signalNumber)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    @return: its exit code: 0; 1 if something is wrong; 130 after a Ctrl-C.
    """
    default = Asked()
    parser = argparse.ArgumentParser(
        prog="network",
        description="Measure what a WeCompany server does for receivers on a bad network, and for others meanwhile.  "
        "Linux only.",
    )
    parser.add_argument("--shape", action="append", choices=SHAPES, help="may be repeated (default: all)")
    parser.add_argument(
        "--line",
        choices=("proxy", "tc", "router", "auto"),
        default="auto",
        help="the bad line: a throttling proxy; namespaces with tc at the server's device, or at a router, which "
        "need root and iproute2 (default: tc where that is possible)",
    )
    parser.add_argument(
        "--seconds", type=positive, default=default.seconds, help="how long throttled lasts at least (default: 60)"
    )
    parser.add_argument(
        "--file-size", type=atLeast(1), default=default.fileSize, help="bytes of the file (default: 2,000,000)"
    )
    parser.add_argument("--stall", type=positive, default=default.stall, help="seconds without reading (default: 50)")
    parser.add_argument("--crowd", type=atLeast(1), default=default.crowd, help="receivers of many (default: 1,000)")
    parser.add_argument("--plot-to", type=Path, metavar="FOLDER", help="draw audio-delay.png there; needs matplotlib")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        say("network: this runs on Linux only: it needs epoll, and reads /proc")
        return 1
    signal.signal(signal.SIGTERM, _stop)
    line = options.line if options.line != "auto" else "tc" if canShape() else "proxy"
    asked = Asked(options.seconds, options.file_size, options.stall, options.crowd, line)
    available = sorted(os.sched_getaffinity(0))
    cpu = available[0] if len(available) > 1 else None
    all_: list[Figures] = []
    try:
        raiseOpenFiles(2 * asked.crowd)
        if cpu is not None:
            os.sched_setaffinity(0, {available[1]})
        for shape in dict.fromkeys(options.shape or SHAPES):
            say(f"{shape} ...")
            all_.append(measure(shape, asked, cpu))
        if options.plot_to:
            say(f"drawn: {plot(all_, options.plot_to)}")
    except (Trouble, OSError, EOFError) as e:
        say(f"network: {e or type(e).__name__}")
        return 1
    except KeyboardInterrupt:
        say("network: stopped")
        return 130
    print(json.dumps({"shapes": [figures.asDict() for figures in all_]}) if options.json else table(all_))
    if (steal := max(figures.stealPercent for figures in all_)) > MUCH_STEAL:
        say(f"warning: the host took {steal:g} % of this machine's time: measure again when it is quieter")
    return 1 if any(figures.findings for figures in all_) else 0


if __name__ == "__main__":
    sys.exit(main())
