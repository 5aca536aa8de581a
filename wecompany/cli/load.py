"""
The load on a server, and what is measured of it.

Everything happens in one loop over one selector, without a reactor.  What is sent is made once, before the measurement,
and what arrives is compared with what has to arrive as a whole, so that the load costs little beside what it measures.

A L{Load} is one shape of load on one L{Target}, and L{measure} runs it.
"""

from __future__ import annotations

import gc
import itertools
import os
import socket
import ssl
import time
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import TextIO

from wecompany.cli.target import (
    ANSWER_WITHIN,
    AT_ONCE,
    CHUNK,
    HINT,
    SLICE,
    WOULD_BLOCK,
    Connection,
    Target,
    Trouble,
    Unreachable,
    explained,
    makeLoop,
)
from wecompany.wire import MessageType, decodeFrames

TEXT_LIMIT = 100
"""Texts a second of each user that a server lets through, if nobody raises that."""

LIMITED = 0.2
"""How far from L{TEXT_LIMIT} the rate of a user may be to look as if it were that: a share."""

WARM_UP = 0.5
"""Seconds of load before the measurement."""

SETTLE = 1.0
"""Seconds between the last registration of idle connections and the look at the memory."""

QUIET = 0.1
"""Seconds in which what has been on its way for a while arrives."""

AUDIO_SIZE = 160
"""Bytes of a piece of audio."""

AUDIO_RATE = 50
"""Pieces of audio a second, each way."""

SPIN = 2_000_000
"""Nanoseconds before a scheduled send in which the loop does not sleep: selectors wake up to a millisecond late."""

SENDS_AT_ONCE = 64
"""Sends in time with a clock between two looks at what has arrived."""

LATE = 5_000_000
"""Nanoseconds after its time at which a send is late enough to be told."""

LATE_SHARE = 0.01
"""The share of late sends from which on the load itself is in doubt."""

LOGIN_USERS = 16
"""User IDs that each place of C{logins} takes in turn, so that a server does not have to remember ever more users."""

TURNS = 100
"""Texts under way at once in C{turns}, however many connections there are."""

MUCH_STEAL = 3.0
"""Per cent of the machine's time which its host may take away before the figures are doubtful."""

SPARE_FILES = 64
"""Open files of this process besides those of the connections."""

WINDOWS_SOCKETS = 500
"""Connections that one selector of Windows can watch."""

STAMP = b"0123456789abcdef"
"""Stands in a message for the time at which it had to be sent: 16 hexadecimal digits."""


# -- The machine ---------------------------------------------------------------------------------------------------


def cpuSeconds(pid: int) -> float:
    """
    Return the seconds of CPU, user and system, that a process has used so far.

    @raise Trouble: if there is no such process, or this is not Linux.
    """
    try:
        # The CPU clock of another process, as clock_getcpuclockid(3) names it: exact, where /proc/PID/stat has 10 ms.
        return time.clock_gettime(~pid << 3 | 2)
    except (OSError, AttributeError, OverflowError):
        raise Trouble(f"there is no process {pid} here whose CPU time can be read; that goes on Linux") from None


def memory(pid: int, what: str = "VmRSS") -> int:
    """Return the kB that a process has in memory now (C{VmRSS}), or has had at most (C{VmHWM})."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1])
    raise Trouble(f"process {pid} has no {what}: it has ended")


def machineTicks() -> tuple[int, int]:
    """Return the ticks that the host has taken from this machine since its start, and all ticks; (0, 0) if unknown."""
    try:
        ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
    except OSError:
        return 0, 0
    return ticks[7], sum(ticks)


def stealPercent(since: tuple[int, int]) -> float:
    """Return the share of the machine's time, in per cent, that its host has taken since L{machineTicks} gave that."""
    steal, total = machineTicks()
    return round(100 * (steal - since[0]) / max(1, total - since[1]), 1)


def raiseOpenFiles(needed: int) -> None:
    """
    Raise this process' limit of open files as far as it goes.

    @raise Trouble: if that is not enough for so many connections.
    """
    try:
        import resource
    except ImportError:  # Windows
        if needed > WINDOWS_SOCKETS:
            raise Trouble(f"{needed} connections are more than the {WINDOWS_SOCKETS} that go on Windows") from None
        return
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    wanted = needed + SPARE_FILES
    if hard != resource.RLIM_INFINITY and wanted > hard:
        raise Trouble(f"{needed} connections need more open files than the {hard} that are allowed here (ulimit -n)")
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    except (ValueError, OSError):  # macOS has no hard limit, and does not let one go so far
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
        except (ValueError, OSError) as e:
            raise Trouble(f"{needed} connections need more open files than are allowed here (ulimit -n): {e}") from None


# -- The load ------------------------------------------------------------------------------------------------------


class Tally:
    """
    What has arrived, and how long it took.

    @ivar delivered: messages.
    """

    __slots__ = ("_nanoseconds", "_numbers", "delivered")

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begin anew."""
        self.delivered = 0
        self._nanoseconds = array("q")
        self._numbers = array("l")

    def add(self, nanoseconds: int, n: int) -> None:
        """So many messages have arrived, and each took so long."""
        self._nanoseconds.append(nanoseconds)
        self._numbers.append(n)
        self.delivered += n

    def latencies(self) -> list[tuple[int, int]]:
        """Return nanoseconds, to a tenth of a microsecond, and how many messages took so long: the shortest first."""
        counts: Counter[int] = Counter()
        for nanoseconds, n in zip(self._nanoseconds, self._numbers, strict=True):
            counts[nanoseconds // 100] += n
        return [(100 * tenths, n) for tenths, n in sorted(counts.items())]


def percentile(latencies: Sequence[tuple[int, int]], share: float) -> float:
    """
    Return the microseconds that this share of the messages took at most.

    @param latencies: nanoseconds and how many messages took so long, the shortest first.
    """
    left = share * sum(n for _, n in latencies)
    for nanoseconds, n in latencies:
        left -= n
        if left <= 0:
            return round(nanoseconds / 1000, 1)
    return 0.0


class Flow:
    """
    Messages from one user to another that are all the same, some of them under way at any time.

    They arrive in the order in which they were sent, so that none of them has to say when that was.

    @ivar arrived: called with how many have arrived, and when.
    """

    __slots__ = ("_add", "_expected", "_frames", "_partial", "_sent", "_size", "_sizeSent", "_write", "arrived")

    def __init__(
        self, tally: Tally, sender: Connection, receiver: Connection, message: bytes, delivery: bytes, window: int
    ) -> None:
        """
        @param message: what the sender sends.
        @param delivery: what the receiver gets for it.
        @param window: the most that are ever under way.
        """
        self._frames = memoryview(message * window)
        self._sizeSent = len(message)
        # One more, as what arrives may begin in the middle of a message.
        self._expected = delivery * (window + 1)
        self._size = len(delivery)
        self._partial = 0
        self._sent: deque[tuple[int, int]] = deque()
        self._add = tally.add
        self._write = sender.write
        self.arrived: Callable[[int, int], None] = self.send
        receiver.received = self.received

    @property
    def underWay(self) -> int:
        """Return how many have been sent and have not arrived."""
        return sum(n for _, n in self._sent)

    def send(self, n: int, at: int) -> None:
        """Send C{n} messages at that time, in nanoseconds."""
        self._sent.append((at, n))
        self._write(self._frames[: n * self._sizeSent])

    def expect(self, at: int) -> None:
        """A message has been sent at that time by other means."""
        self._sent.append((at, 1))

    def received(self, data: bytes) -> None:
        """Take what has arrived."""
        if not self._expected.startswith(data, self._partial):
            raise Trouble(explained(self._expected[: self._partial] + data))
        n, self._partial = divmod(self._partial + len(data), self._size)
        if not n:
            return
        now = perf_counter_ns()
        left = n
        sent = self._sent
        while left:
            if not sent:
                raise Trouble("more has arrived than was sent")
            at, some = sent.popleft()
            if some > left:
                sent.appendleft((at, some - left))
                some = left
            left -= some
            self._add(now - at, some)
        self.arrived(n, now)


class PacedFlow:
    """
    Messages from one user to another that are sent at certain times, whatever becomes of those before.

    Each says when it had to be sent, as some may be dropped on their way.

    @ivar sent: how many have been sent.
    @ivar arrivals: how many have arrived.
    """

    __slots__ = ("_add", "_at", "_head", "_message", "_rest", "_size", "_slice", "_write", "arrivals", "sent")

    def __init__(self, tally: Tally, sender: Connection, receiver: Connection, message: bytes, delivery: bytes) -> None:
        """
        @param message: what the sender sends, with L{STAMP} in it.
        @param delivery: what the receiver gets for it.
        """
        at = message.index(STAMP)
        self._message = bytearray(message)
        self._slice = slice(at, at + len(STAMP))
        self._head = delivery[: delivery.index(STAMP)]
        self._at = len(self._head)
        self._size = len(delivery)
        self._rest = b""
        self._add = tally.add
        self._write = sender.write
        self.sent = self.arrivals = 0
        receiver.received = self.received

    def send(self, due: int) -> None:
        """Send what had to be sent at that time, in nanoseconds."""
        self._message[self._slice] = b"%016x" % due
        self.sent += 1
        self._write(self._message)

    def received(self, data: bytes) -> None:
        """Take what has arrived."""
        now = perf_counter_ns()
        if self._rest:
            data = self._rest + data
        size, stamp, add = self._size, self._at, self._add
        at, end = 0, len(data) - size
        while at <= end:
            if not data.startswith(self._head, at):
                break
            add(now - int(data[at + stamp : at + stamp + 16], 16), 1)
            self.arrivals += 1
            at += size
        self._rest = data[at:]
        if not self._rest.startswith(self._head[: len(self._rest)]):
            raise Trouble(explained(self._rest))


class Load:
    """
    One shape of load on one target, on connections of its own.

    @ivar tally: what has arrived.
    @ivar connections: those that are open.
    """

    isText = True
    """Whether each user's own texts are what is counted."""

    def __init__(self, target: Target, number: int, asked: Asked) -> None:
        """
        @param number: what stands behind the colon of the shape's name.
        """
        self.target = target
        self.number = number
        self.size = asked.size
        self.pairs = asked.pairs
        self.loop = makeLoop()
        self.tally = Tally()
        self.connections: list[Connection] = []

    @property
    def needed(self) -> int:
        """Return how many connections it takes."""
        return 2 * self.pairs

    @property
    def senders(self) -> int:
        """Return how many users send."""
        return self.needed

    def prepare(self, told: Callable[[str], None]) -> None:
        """
        Open the connections, and make what is to be sent.

        @raise Trouble: if that does not go.
        """
        for connection in self.target.open(self.loop, self.needed, told):
            self.connections.append(connection)
        if self.target.users:
            time.sleep(QUIET)  # texts that had waited for them may come now
            for connection in self.connections:
                connection.discard()

    def start(self) -> None:
        """Send the first messages."""
        raise NotImplementedError

    def run(self, until: int) -> None:
        """Go on until that time, in nanoseconds."""
        while (now := perf_counter_ns()) < until:
            self.loop.turn((until - now) / 1e9)

    def drain(self, seconds: float) -> int:
        """Wait for what is under way, so long at most, and return how many messages never arrive."""
        until = perf_counter_ns() + int(seconds * 1e9)
        self.stop()
        while (lost := self.underWay()) and perf_counter_ns() < until:
            self.loop.turn(SLICE)
        return lost

    def stop(self) -> None:
        """Send nothing more."""

    def underWay(self) -> int:
        """Return how many messages have been sent and have not arrived."""
        return 0

    def notes(self) -> list[str]:
        """Return what has to be known about the figures."""
        return []

    def close(self) -> None:
        """Close all connections."""
        for connection in self.connections:
            connection.close()
        self.loop.close()


class _Flows(Load):
    """Loads that consist of flows."""

    def __init__(self, target: Target, number: int, asked: Asked) -> None:
        super().__init__(target, number, asked)
        self.flows: list[Flow] = []

    def underWay(self) -> int:
        """See L{Load.underWay}."""
        return sum(flow.underWay for flow in self.flows)

    def stop(self) -> None:
        """See L{Load.stop}."""
        for flow in self.flows:
            flow.arrived = lambda n, now: None

    def _pairUp(self, window: int) -> None:
        data = b"x" * self.size
        ends = iter(self.connections)
        for one, other in zip(ends, ends, strict=True):
            for sender, receiver in ((one, other), (other, one)):
                message, delivery = self.target.texts(sender.userId, receiver.userId, data)
                self.flows.append(Flow(self.tally, sender, receiver, message, delivery, window))


class Windows(_Flows):
    """Pairs write to each other, with so many texts under way in each direction."""

    def prepare(self, told: Callable[[str], None]) -> None:
        """See L{Load.prepare}."""
        super().prepare(told)
        self._pairUp(self.number)

    def start(self) -> None:
        """See L{Load.start}."""
        for flow in self.flows:
            flow.send(self.number, perf_counter_ns())


class Turns(_Flows):
    """So many users in pairs, and as many texts under way in all as C{sparse} has: each pair has its turn."""

    isText = False

    @property
    def needed(self) -> int:
        """See L{Load.needed}."""
        return max(2, self.number & ~1)

    def prepare(self, told: Callable[[str], None]) -> None:
        """See L{Load.prepare}."""
        super().prepare(told)
        self._pairUp(TURNS)
        step = min(TURNS, len(self.flows))
        for flow, following in zip(self.flows, (self.flows * 2)[step:], strict=False):
            flow.arrived = following.send

    def start(self) -> None:
        """See L{Load.start}."""
        for flow in self.flows[:TURNS]:
            flow.send(1, perf_counter_ns())


class Calls(Load):
    """So many two-way audio calls, in time with a clock."""

    isText = False

    def __init__(self, target: Target, number: int, asked: Asked) -> None:
        super().__init__(target, number, asked)
        self.size = AUDIO_SIZE
        self._flows: list[PacedFlow] = []
        self._began = self._sends = self._late = 0

    @property
    def needed(self) -> int:
        """See L{Load.needed}."""
        return 2 * self.number

    def prepare(self, told: Callable[[str], None]) -> None:
        """See L{Load.prepare}."""
        super().prepare(told)
        data = b"x" + STAMP + b"x" * (AUDIO_SIZE - 1 - len(STAMP))
        ends = iter(self.connections)
        for i, (one, other) in enumerate(zip(ends, ends, strict=True)):
            if not i % AT_ONCE:
                told(f"{i:,} of {self.number:,} calls")
            self.target.call(self.loop, one, other)
            for sender, receiver in ((one, other), (other, one)):
                message, delivery = self.target.media(sender.userId, receiver.userId, data)
                self._flows.append(PacedFlow(self.tally, sender, receiver, message, delivery))

    def start(self) -> None:
        """See L{Load.start}."""
        self._began = perf_counter_ns()

    def run(self, until: int) -> None:
        """See L{Load.run}."""
        flows, n = self._flows, len(self._flows)
        interval = 1e9 / AUDIO_RATE / n
        began, k, turn = self._began, self._sends, self.loop.turn
        due = began + int(k * interval)
        while (now := perf_counter_ns()) < until:
            first = k
            if now - due > LATE:
                self._late += min(SENDS_AT_ONCE, int((now - LATE - due) / interval) + 1)
            # A few at most: what arrives is to be seen in time even when the sends are late.
            while due <= now and k - first < SENDS_AT_ONCE:
                flows[k % n].send(due)
                k += 1
                due = began + int(k * interval)
            self._sends = k
            turn(max(0, due - now - SPIN) / 1e9)

    def underWay(self) -> int:
        """See L{Load.underWay}."""
        return sum(flow.sent - flow.arrivals for flow in self._flows)

    def notes(self) -> list[str]:
        """See L{Load.notes}."""
        late = self._late / max(1, self._sends)
        if late < LATE_SHARE:
            return []
        return [
            f"{late:.0%} were sent over {LATE / 1e6:g} ms late: this machine, not the server, was too slow for that"
        ]


class FanIn(Load):
    """So many users write to one, each with one text under way."""

    def __init__(self, target: Target, number: int, asked: Asked) -> None:
        super().__init__(target, number, asked)
        self._rest = b""
        self._isOver = False
        self._sentAt: dict[bytes, int] = {}
        self._writers: dict[bytes, tuple[Callable[[bytes], None], bytes]] = {}

    @property
    def needed(self) -> int:
        """See L{Load.needed}."""
        return self.number + 1

    @property
    def senders(self) -> int:
        """See L{Load.senders}."""
        return self.number

    def prepare(self, told: Callable[[str], None]) -> None:
        """See L{Load.prepare}."""
        super().prepare(told)
        receiver, *senders = self.connections
        receiver.received = self._received
        for sender in senders:
            message, _ = self.target.texts(sender.userId, receiver.userId, b"x" * self.size)
            self._writers[sender.userId] = sender.write, message

    def start(self) -> None:
        """See L{Load.start}."""
        for userId, (write, message) in self._writers.items():
            self._sentAt[userId] = perf_counter_ns()
            write(message)

    def stop(self) -> None:
        """See L{Load.stop}."""
        self._isOver = True

    def underWay(self) -> int:
        """See L{Load.underWay}."""
        return len(self._sentAt)

    def _received(self, data: bytes) -> None:
        now = perf_counter_ns()
        stream = self._rest + data
        at = 0
        for messageType, userId, _, end in decodeFrames(stream):
            sentAt = self._sentAt.pop(userId, None)
            if sentAt is None or messageType != MessageType.TEXT:
                raise Trouble(explained(stream[at:]))
            self.tally.add(now - sentAt, 1)
            if not self._isOver:
                write, message = self._writers[userId]
                self._sentAt[userId] = now
                write(message)
            at = end
        self._rest = stream[at:]


class Broadcast(_Flows):
    """One user writes to everybody, so many others: the next text when all have the one before."""

    isText = False

    @property
    def needed(self) -> int:
        """See L{Load.needed}."""
        return self.number + 1

    def prepare(self, told: Callable[[str], None]) -> None:
        """See L{Load.prepare}."""
        super().prepare(told)
        self._sender, *receivers = self.connections
        self._message, delivery = self.target.texts(self._sender.userId, b"", b"x" * self.size)
        for receiver in receivers:
            flow = Flow(self.tally, self._sender, receiver, self._message, delivery, 1)
            flow.arrived = self._arrived
            self.flows.append(flow)

    def start(self) -> None:
        """See L{Load.start}."""
        now = perf_counter_ns()
        self._missing = len(self.flows)
        for flow in self.flows:
            flow.expect(now)
        self._sender.write(self._message)

    def _arrived(self, n: int, now: int) -> None:
        self._missing -= n
        if not self._missing:
            self.start()


class _Login:
    """A place from which one user after another connects, registers and leaves."""

    def __init__(self, load: Logins, users: Sequence[tuple[bytes, bytes]]) -> None:
        self._load = load
        self._target = load.target
        self._users = itertools.cycle(users)
        self._socket: socket.socket | None = None

    @property
    def isBusy(self) -> bool:
        """Return whether somebody is about to register."""
        return self._socket is not None

    def fileno(self) -> int:
        """See L{wecompany.cli.target.Watched.fileno}."""
        assert self._socket is not None
        return self._socket.fileno()

    def begin(self) -> None:
        """Connect as the next one."""
        self._userId, self._credential = next(self._users)
        self._received = b""
        self._isConnected = self._hasBegun = False
        self._at = perf_counter_ns()
        self._socket = socket.socket(self._load.family)
        self._socket.setblocking(False)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with suppress(BlockingIOError):
            self._socket.connect(self._load.address)
        self._load.loop.watch(self, toRead=False, toWrite=True)

    def writable(self) -> None:
        """See L{wecompany.cli.target.Watched.writable}."""
        self.readable()

    def readable(self) -> None:
        """Go on from wherever it is."""
        if self._socket is None:  # it has just left
            return
        try:
            if not self._isConnected:
                self._connected()
            data = self._talk(self._socket)
        except ssl.SSLWantWriteError:
            self._load.loop.watch(self, toRead=False, toWrite=True)
        except WOULD_BLOCK:
            self._load.loop.watch(self)
        else:
            if not data:
                raise self._target.closed()
            self._received += data
            if self._target.isRegistered(self._received, self._userId):
                self.close()
                self._load.tally.add(perf_counter_ns() - self._at, 1)
                if not self._load.isOver:
                    self.begin()

    def _connected(self) -> None:
        assert self._socket is not None
        if code := self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            raise OSError(code, os.strerror(code))  # which makes it a ConnectionRefusedError, for one
        self._isConnected = True
        if self._target.tls is not None:
            self._load.loop.forget(self.fileno())  # the TLS socket takes the file over
            self._socket = self._target.tls.wrap_socket(
                self._socket, server_hostname=self._target.host, do_handshake_on_connect=False
            )
            self._load.loop.watch(self)

    def _talk(self, connection: socket.socket) -> bytes:
        if not self._hasBegun:
            if isinstance(connection, ssl.SSLSocket):
                connection.do_handshake()
            self._target.begin(connection, self._userId, self._credential)
            self._hasBegun = True
        return connection.recv(CHUNK)

    def close(self) -> None:
        """Leave."""
        if self._socket is not None:
            self._load.loop.forget(self.fileno())
            self._socket.close()
            self._socket = None


class Logins(Load):
    """
    Users connect, register and leave, so many at once.

    @ivar isOver: whether nobody comes any more.
    """

    isText = False

    def __init__(self, target: Target, number: int, asked: Asked) -> None:
        super().__init__(target, number, asked)
        self.isOver = False
        self._places: list[_Login] = []

    @property
    def needed(self) -> int:
        """See L{Load.needed}."""
        return self.number

    def prepare(self, told: Callable[[str], None]) -> None:
        """See L{Load.prepare}."""
        with self.target.reaching(), self.target.connect() as found:
            self.family, self.address = found.family, found.getpeername()
        each = 1 if self.target.users else LOGIN_USERS
        users = self.target.newUsers(self.number * each)
        self._places = [_Login(self, users[i * each : (i + 1) * each]) for i in range(self.number)]

    def start(self) -> None:
        """See L{Load.start}."""
        with self.target.reaching():
            for place in self._places:
                place.begin()

    def run(self, until: int) -> None:
        """See L{Load.run}."""
        with self.target.reaching():
            super().run(until)

    def stop(self) -> None:
        """See L{Load.stop}."""
        self.isOver = True

    def underWay(self) -> int:
        """See L{Load.underWay}."""
        return sum(place.isBusy for place in self._places)

    def close(self) -> None:
        """See L{Load.close}."""
        for place in self._places:
            place.close()
        super().close()


# -- Shapes --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Kind:
    """
    A kind of shape.

    @ivar load: what it does; C{None} for connections that only wait.
    @ivar number: what stands behind the colon if nothing does; C{None} if nothing may.
    @ivar what: what it is, for the help.
    """

    load: type[Load] | None
    number: int | None
    what: str


KINDS = {
    "sparse": Kind(Windows, None, "pairs write to each other, one text under way each way"),
    "window": Kind(Windows, 8, "the same with N texts under way each way"),
    "turns": Kind(Turns, 1000, f"N users in pairs, {TURNS} texts under way in all: each pair in its turn"),
    "calls": Kind(
        Calls,
        200,
        f"N two-way audio calls: {AUDIO_SIZE} bytes {AUDIO_RATE} times a second each way, in time with a clock",
    ),
    "fan-in": Kind(FanIn, 50, "N users write to one, one text under way each"),
    "broadcast": Kind(Broadcast, 50, "one user writes to N others at once"),
    "idle": Kind(None, 1000, "N connections that are silent, and the memory that they take"),
    "logins": Kind(Logins, 50, "users connect, register and leave, N at once"),
}
"""All kinds of shapes, by their names."""


@dataclass(frozen=True)
class Shape:
    """A kind of load, and how much of it: C{window:8}."""

    name: str
    number: int | None

    def __str__(self) -> str:
        """Return it as it is typed."""
        return self.name if self.number is None else f"{self.name}:{self.number}"

    def makeLoad(self, target: Target, asked: Asked) -> Load:
        """Return such a load."""
        make = KINDS[self.name].load
        assert make is not None
        return make(target, 1 if self.number is None else self.number, asked)


@dataclass(frozen=True)
class Asked:
    """
    How to measure.

    @ivar pairs: of users, in the shapes that do not say how many.
    @ivar size: bytes of each text.
    @ivar seconds: how long each shape is measured.
    """

    pairs: int = 50
    size: int = 200
    seconds: float = 3.0


@dataclass(frozen=True)
class ShapeFigures:
    """
    What was measured under one shape of load.

    @ivar messagesPerSecond: texts, pieces of audio or log-ins that were delivered.
    @ivar cpuMicros: microseconds of the server's CPU for each of them; C{None} if its process is not known.
    @ivar p50Micros: microseconds from the sending to the arrival that half of them took at most.
    @ivar p99Micros: the same for 99 of 100; C{p999Micros} for 999 of 1,000, and C{maxMicros} for all.
    @ivar lost: how many never arrived.
    @ivar stealPercent: the share of this machine's time that its host took; 0 where that is not known.
    @ivar notes: what has to be known about these figures.
    """

    shape: str
    connections: int
    bytesEach: int
    messages: int
    messagesPerSecond: float
    cpuMicros: float | None
    p50Micros: float
    p99Micros: float
    p999Micros: float
    maxMicros: float
    lost: int
    stealPercent: float
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class IdleFigures:
    """
    What was measured of connections that are registered and silent.

    @ivar kilobytesEach: kB of the server's memory for each; C{None} if its process is not known.
    """

    connections: int
    kilobytesEach: float | None


@dataclass
class Figures:
    """
    All that was measured.

    @ivar problems: the shapes that could not be measured, and why.
    """

    server: str
    shapes: list[ShapeFigures] = field(default_factory=list)
    idle: list[IdleFigures] = field(default_factory=list)
    problems: dict[str, str] = field(default_factory=dict)


class Progress:
    """How far it is: a line that changes where somebody looks, a line for each shape elsewhere."""

    def __init__(self, stream: TextIO, isBrief: bool = False) -> None:
        """
        @param isBrief: whether shapes have no lines where nobody looks.
        """
        self._stream = stream
        self._isBrief = isBrief
        self._isSeen = stream.isatty()
        self._shape = ""
        self._width = 0

    def shape(self, name: str) -> None:
        """Another shape begins."""
        self._shape = name
        if self._isSeen:
            self("")
        elif not self._isBrief:
            self._print(f"{name} ...\n")

    def __call__(self, text: str) -> None:
        """So far it is."""
        if self._isSeen:
            line = f"{self._shape}: {text}"
            self._print(f"\r{line:<{self._width}}")
            self._width = len(line)

    def clear(self) -> None:
        """Leave an empty line for something else."""
        if self._isSeen and self._width:
            self._print("\r" + " " * self._width + "\r")
            self._width = 0

    def _print(self, text: str) -> None:
        with suppress(BrokenPipeError):  # nobody looks any more
            print(text, end="", file=self._stream, flush=True)


def measure(load: Load, shape: str, seconds: float, told: Callable[[str], None]) -> tuple[ShapeFigures, bool]:
    """
    Run a load that is prepared.

    @param shape: what it is called.
    @param told: called with how far it is.
    @return: the figures, and whether a Ctrl-C has cut it short.
    @raise Trouble: if something else arrives than was sent, or nothing.
    """
    tally, pid = load.tally, load.target.pid
    isStopped = False
    rates: list[float] = []
    gc.disable()
    try:
        load.start()
        load.run(perf_counter_ns() + int(min(WARM_UP, seconds) * 1e9))
        tally.reset()
        ticks, cpu, began = machineTicks(), cpuSeconds(pid) if pid else 0.0, perf_counter_ns()
        until = began + int(seconds * 1e9)
        try:
            while (now := perf_counter_ns()) < until:
                before = tally.delivered
                # The last slice takes what is left, so that none is too short to say anything.
                end = now + int(SLICE * 1e9)
                load.run(end if end + int(SLICE * 1e9) < until else until)
                rates.append((tally.delivered - before) / (perf_counter_ns() - now) * 1e9)
                told(f"{(now - began) / 1e9:.0f} of {seconds:g} s, {rates[-1]:,.0f} messages/s")
        except KeyboardInterrupt:
            isStopped = True
        took = (perf_counter_ns() - began) / 1e9
        used = cpuSeconds(pid) - cpu if pid else None
        steal = stealPercent(ticks)
    finally:
        gc.enable()
    messages, latencies = tally.delivered, tally.latencies()
    if not messages:
        raise Trouble(f"nothing was delivered within {seconds:g} s: take more --seconds, or less at once")
    notes = load.notes()
    if isStopped:  # perhaps between the arrival of something and its being counted
        lost = 0
        notes.append(f"stopped after {took:.1f} s; what was lost until then is not known")
    else:
        lost = load.drain(ANSWER_WITHIN)
    # At first a server lets a burst through.
    lately = median(rates[len(rates) // 2 :]) if rates else 0.0
    if load.isText and abs(lately / load.senders / TEXT_LIMIT - 1) < LIMITED:
        notes.append(
            f"each user got about {TEXT_LIMIT} texts a second through, which is what the limit text of a server allows "
            f"if nobody raises it.\n{HINT}"
        )
    if steal > MUCH_STEAL:
        notes.append(f"the host took {steal:g} % of this machine's time: measure again when it is quieter")
    figures = ShapeFigures(
        shape=shape,
        connections=load.needed,
        bytesEach=load.size,
        messages=messages,
        messagesPerSecond=round(messages / took, 1),
        cpuMicros=None if used is None else round(used / messages * 1e6, 3),
        p50Micros=percentile(latencies, 0.5),
        p99Micros=percentile(latencies, 0.99),
        p999Micros=percentile(latencies, 0.999),
        maxMicros=percentile(latencies, 1),
        lost=lost,
        stealPercent=steal,
        notes=notes,
    )
    return figures, isStopped


def measureShape(target: Target, shape: Shape, asked: Asked, told: Callable[[str], None]) -> tuple[ShapeFigures, bool]:
    """
    Load a server with one shape.

    @return: as L{measure}.
    @raise Trouble: if that does not go.
    """
    load = shape.makeLoad(target, asked)
    try:
        raiseOpenFiles(load.needed)
        load.prepare(told)
        return measure(load, str(shape), asked.seconds, told)
    finally:
        load.close()


def measureIdle(target: Target, n: int, told: Callable[[str], None]) -> IdleFigures:
    """
    Register C{n} connections, and look at the server's memory before and after.

    @raise Trouble: if that does not go.
    """
    raiseOpenFiles(n)
    loop = makeLoop()
    connections = []
    try:
        before = memory(target.pid) if target.pid else 0
        for connection in target.open(loop, n, told):
            connections.append(connection)
        time.sleep(SETTLE)
        return IdleFigures(n, round((memory(target.pid) - before) / n, 2) if target.pid else None)
    finally:
        for connection in connections:
            connection.close()
        loop.close()


def measureAll(target: Target, shapes: Iterable[Shape], asked: Asked, progress: Progress, figures: Figures) -> bool:
    """
    Measure one shape after the other; what cannot be measured is told, and the next one follows.

    @param figures: where they go, one by one.
    @return: whether a Ctrl-C has ended it.
    @raise Unreachable: if there is no server, or no more.
    """
    try:
        for shape in shapes:
            progress.shape(str(shape))
            time.sleep(QUIET)  # so that the server knows that the connections before are gone
            try:
                if KINDS[shape.name].load is None:
                    figures.idle.append(measureIdle(target, shape.number or 1, progress))
                else:
                    measured, isStopped = measureShape(target, shape, asked, progress)
                    figures.shapes.append(measured)
                    if isStopped:
                        return True
            except Unreachable:
                raise
            except (Trouble, OSError) as e:
                figures.problems[str(shape)] = str(e)
    except KeyboardInterrupt:
        return True
    finally:
        progress.clear()
    return False
