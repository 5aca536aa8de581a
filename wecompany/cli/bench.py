"""
``wecompany bench``: how fast a running server is, and what it costs.

Everything happens in one loop over one selector, without a reactor.  What is sent is made once, before the measurement,
and what arrives is compared with what has to arrive as a whole, so that the load costs little beside what it measures.

A L{Target} says how a server is spoken to; benchmarks/peers.py has some for other servers.  A L{Load} is one shape of
load on such a target, and L{measure} runs it.
"""

from __future__ import annotations

import argparse
import errno
import gc
import itertools
import json
import os
import secrets
import select
import selectors
import socket
import ssl
import sys
import textwrap
import time
from abc import ABC, abstractmethod
from array import array
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from time import perf_counter_ns
from typing import Any, NoReturn, Protocol, TextIO

from wecompany.cli.running import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NO_CONNECTION,
    EXIT_OK,
    Problem,
    _hostAndPort,
    printable,
    say,
)
from wecompany.wire import (
    ID_SIZE,
    ErrorCode,
    MediaKind,
    MessageType,
    RejectCode,
    WireError,
    checkUserId,
    decodeError,
    decodeFrames,
    encodeFrame,
    splitId,
    splitReason,
)

DEFAULT_TARGET = "127.0.0.1:8888"
"""Where the server is, if nothing is said."""

DEFAULT_SHAPES = ("sparse", "window:8", "window:64", "calls:200")
"""What is measured, if nothing is said."""

LADDER = (25, 50, 100, 200, 300, 400, 500, 600, 700, 800, 1000)
"""Calls at once for a plot, if no others are asked for."""

RAISED = tuple(
    f"--limit={limit}"
    for limit in (
        "text=10M",
        "media=10G",
        "file=10G",
        "address-connections=1M",
        "connection-rate=1M",
        "unregistered=1M",
        "calls=1M",
        "broadcast=1M",
    )
)
"""The limits that one machine which stands for many people exceeds.  They are raised rather than turned off."""

TEXT_LIMIT = 100
"""Texts a second of each user that a server lets through, if nobody raises that."""

LIMITED = 0.2
"""How far from L{TEXT_LIMIT} the rate of a user may be to look as if it were that: a share."""

WARM_UP = 0.5
"""Seconds of load before the measurement."""

MAX_SECONDS = 60
"""Seconds of a measurement: no connection is silent for so long that a server would close it."""

MAX_SIZE = 16_384
"""Bytes of a text: 64 of them are well below what may wait for one receiver."""

MAX_USERS = 100_000
"""Users of one load."""

ANSWER_WITHIN = 10.0
"""Seconds that a server has to answer a registration, and to deliver what is under way when a measurement ends."""

AT_ONCE = 64
"""Connections that are registered at once, before the measurement, and calls between two looks at the progress."""

SETTLE = 1.0
"""Seconds between the last registration of idle connections and the look at the memory."""

QUIET = 0.1
"""Seconds in which what has been on its way for a while arrives."""

SLICE = 0.2
"""Seconds of load between two looks at the progress."""

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

HELP_WIDTH = 79
"""Characters of the lines of the help."""

CHUNK = 65_536
"""Bytes that are read at once."""

STAMP = b"0123456789abcdef"
"""Stands in a message for the time at which it had to be sent: 16 hexadecimal digits."""

_WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)

_HINT = "Start the server with higher limits for that:\ntwistd -n wecompany " + " ".join(RAISED)


class Trouble(Exception):
    """What was asked for cannot be measured; the text says why, for a person."""


class Unreachable(Trouble):
    """There is no server, or it cannot be trusted, or it lets nobody in."""


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


# -- Connections ---------------------------------------------------------------------------------------------------


class Watched(Protocol):
    """Something that a loop watches."""

    def fileno(self) -> int:
        """Return its file number."""

    def readable(self) -> None:
        """Something has come."""

    def writable(self) -> None:
        """There is room for more."""


class Loop(ABC):
    """Watches connections, and calls them when they can go on."""

    @abstractmethod
    def watch(self, watched: Watched, toRead: bool = True, toWrite: bool = False) -> None:
        """Watch something from now on, or in another way than before."""

    @abstractmethod
    def forget(self, fileNumber: int) -> None:
        """Watch it no more, if it is watched."""

    @abstractmethod
    def turn(self, seconds: float) -> None:
        """Take what has come, or wait for it so long at most."""

    @abstractmethod
    def close(self) -> None:
        """It is not needed any more."""


class SelectorLoop(Loop):
    """The loop of all systems."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, watched: Watched, toRead: bool = True, toWrite: bool = False) -> None:
        """See L{Loop.watch}."""
        events = selectors.EVENT_READ * toRead | selectors.EVENT_WRITE * toWrite
        known = watched.fileno() in self._selector.get_map()
        (self._selector.modify if known else self._selector.register)(watched.fileno(), events, watched)

    def forget(self, fileNumber: int) -> None:
        """See L{Loop.forget}."""
        with suppress(KeyError, ValueError):  # it may be closed
            self._selector.unregister(fileNumber)

    def turn(self, seconds: float) -> None:
        """See L{Loop.turn}."""
        if not self._selector.get_map():  # Windows cannot wait for nothing
            time.sleep(seconds)
            return
        for key, events in self._selector.select(seconds):
            if events & selectors.EVENT_READ:
                key.data.readable()
            if events & selectors.EVENT_WRITE:
                key.data.writable()

    def close(self) -> None:
        """See L{Loop.close}."""
        self._selector.close()


class EpollLoop(Loop):
    """The loop of Linux: an event costs half of what it does in L{SelectorLoop}."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}

    def watch(self, watched: Watched, toRead: bool = True, toWrite: bool = False) -> None:
        """See L{Loop.watch}."""
        fileNumber = watched.fileno()
        change = self._epoll.modify if fileNumber in self._watched else self._epoll.register
        change(fileNumber, select.EPOLLIN * toRead | select.EPOLLOUT * toWrite)
        self._watched[fileNumber] = watched

    def forget(self, fileNumber: int) -> None:
        """See L{Loop.forget}."""
        if self._watched.pop(fileNumber, None) is not None:
            self._epoll.unregister(fileNumber)

    def turn(self, seconds: float) -> None:
        """See L{Loop.turn}."""
        watched = self._watched
        for fileNumber, events in self._epoll.poll(seconds):
            if events & ~select.EPOLLOUT:
                watched[fileNumber].readable()
            if events & select.EPOLLOUT:
                watched[fileNumber].writable()

    def close(self) -> None:
        """See L{Loop.close}."""
        self._epoll.close()


makeLoop: Callable[[], Loop] = EpollLoop if hasattr(select, "epoll") else SelectorLoop
"""Makes the fastest loop that there is here."""


class Connection:
    """
    A registered user's connection.

    @ivar received: takes the bytes that come.
    """

    __slots__ = ("_loop", "_pending", "_recv", "_send", "_socket", "_unsent", "fileno", "received", "userId")

    def __init__(self, loop: Loop, connected: socket.socket, userId: bytes) -> None:
        self._loop = loop
        self._socket = connected
        self._recv = connected.recv
        self._send = connected.send
        self._pending = connected.pending if isinstance(connected, ssl.SSLSocket) else None
        self._unsent = bytearray()
        self.userId = userId
        self.received: Callable[[bytes], None] = self._unexpected
        self.fileno = connected.fileno
        connected.setblocking(False)
        loop.watch(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send at once what goes, and the rest when it does."""
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._send(data)
        except _WOULD_BLOCK:
            sent = 0
        except OSError as e:
            self._lost(e)
        if sent < len(data):
            self._unsent += data[sent:]
            self._loop.watch(self, toWrite=True)

    def writable(self) -> None:
        """There is room for more."""
        unsent, self._unsent = self._unsent, bytearray()
        self._loop.watch(self)
        self.write(unsent)

    def readable(self) -> None:
        """Something has come."""
        try:
            data = self._recv(CHUNK)
            # What TLS has decrypted already no selector tells of.
            while self._pending is not None and self._pending():
                data += self._recv(CHUNK)
        except _WOULD_BLOCK:
            return
        except OSError as e:
            self._lost(e)
        if not data:
            self._lost(None)
        self.received(data)

    def discard(self) -> None:
        """Throw away what has come so far."""
        with suppress(*_WOULD_BLOCK):
            while self._recv(CHUNK):
                pass

    def close(self) -> None:
        """Close it."""
        self._loop.forget(self.fileno())
        self._socket.close()

    def _lost(self, e: OSError | None) -> NoReturn:
        why = "" if e is None else f": {e.strerror or e}"
        raise Trouble(f"the server closed a connection{why}; its log may say why")

    def _unexpected(self, data: bytes) -> None:
        raise Trouble(explained(data))


def explained(stream: bytes) -> str:
    """
    Return what to say, and what to do, about something that came in place of what was expected.

    @param stream: what came, from the beginning of a frame on.
    """
    try:
        for messageType, _, data, _ in decodeFrames(stream):
            if messageType == MessageType.ERROR:
                code, about, text = decodeError(data)
                return _advised(code, about, text)
            if messageType == MessageType.CALL_REJECT:
                code, why = splitReason(splitId(data)[1])
                hint = f"\n{_HINT}" if code == RejectCode.OVERLOADED else ""
                return f"the server rejected a call: {why.decode(errors='replace') or f'code {code}'}{hint}"
    except WireError:
        pass
    return f"what arrived is not what was sent, but {stream[:100]!r}"


def _advised(code: int, about: int, text: str) -> str:
    said = f"the server says: {text}"
    if code == ErrorCode.OVERLOADED:
        return f"{said}\n{_HINT}"
    if code == ErrorCode.FORBIDDEN and about == MessageType.TEXT:
        return f"{said}\nThis shape needs a server that was started with --broadcast, and a higher limit:\n" + (
            "twistd -n wecompany --broadcast --limit=broadcast=1M"
        )
    if code == ErrorCode.BAD_CREDENTIAL:
        return f"{said}\nThis server has accounts: name some with --users FILE."
    return said


@dataclass
class Target:
    """
    A server that is to be loaded, and how one speaks to it.

    @ivar pid: its process, if that is known and on this machine.
    @ivar tls: what makes TLS connections; C{None} for plain ones.
    @ivar users: user IDs and their passwords or tokens, where the server has accounts.
    """

    host: str
    port: int
    pid: int | None = None
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    users: Sequence[tuple[bytes, bytes]] = field(default=(), repr=False)

    atOnce = AT_ONCE  # connections that are registered at once, before the measurement

    def __str__(self) -> str:
        """Return where it is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def connect(self) -> socket.socket:
        """
        Return a new connection, which is nobody's yet.

        @raise OSError: if there is none.
        """
        connection = socket.create_connection((self.host, self.port), ANSWER_WITHIN)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection if self.tls is None else self.tls.wrap_socket(connection, server_hostname=self.host)
        except BaseException:
            connection.close()
            raise

    def userId(self, index: int) -> bytes:
        """Return a user ID that nobody has, always of the same length."""
        return b"bench-%b-%06d" % (_RUN, index)

    def newUsers(self, n: int) -> list[tuple[bytes, bytes]]:
        """
        Return user IDs, and their passwords or tokens.

        @raise Trouble: if there are not so many.
        """
        if not self.users:
            return [(self.userId(next(_serial)), b"") for _ in range(n)]
        if n > len(self.users):
            raise Trouble(f"this takes {n} users, and --users names {len(self.users)}")
        return list(self.users[:n])

    def begin(self, connection: socket.socket, userId: bytes, credential: bytes = b"") -> None:
        """Send what registers a user."""
        connection.sendall(encodeFrame(MessageType.HEARTBEAT, userId, credential))

    def finish(self, connection: socket.socket, userId: bytes) -> None:
        """
        Wait for the answer to L{begin}.

        @raise Trouble: if the server does not want that.
        """
        received = b""
        while more := connection.recv(CHUNK):
            received += more
            if self.isRegistered(received, userId):
                return
        raise self.closed()

    def closed(self) -> Unreachable:
        """Return what to raise when the server closes a connection instead of registering it."""
        return Unreachable(f"{self} closes a connection that was to be registered; does it speak TLS? Then say --tls.")

    def isRegistered(self, received: bytes, userId: bytes) -> bool:
        """
        Return whether that is the answer to a registration; false if it has not all come yet.

        @raise Trouble: if it is something else.
        """
        try:
            for messageType, about, _, _ in decodeFrames(received):
                if messageType != MessageType.HEARTBEAT or about != userId:
                    raise Trouble(explained(received))
                return True
        except WireError:
            raise Unreachable(f"what answers at {self} is no WeCompany server, or it speaks TLS (--tls)") from None
        return False

    def register(self, userId: bytes, credential: bytes = b"") -> socket.socket:
        """
        Return a connection that is C{userId}'s.

        @raise Trouble: if the server does not want that.
        """
        with ExitStack() as undo:
            connection = undo.enter_context(self.connect())
            self.begin(connection, userId, credential)
            self.finish(connection, userId)
            undo.pop_all()
        return connection

    def texts(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Return a text as its sender sends it, and as its receiver gets it."""
        return encodeFrame(MessageType.TEXT, receiver, data), encodeFrame(MessageType.TEXT, sender, data)

    def media(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Return a piece of audio as its sender sends it, and as its receiver gets it."""
        data = bytes((MediaKind.AUDIO,)) + data[1:]
        return encodeFrame(MessageType.MEDIA_DATA, receiver, data), encodeFrame(MessageType.MEDIA_DATA, sender, data)

    def call(self, loop: Loop, caller: Connection, callee: Connection) -> None:
        """
        Let one call the other, who accepts.

        @raise Trouble: if the server does not want that.
        """
        heard = {caller: bytearray(), callee: bytearray()}
        for party, stream in heard.items():
            party.received = stream.extend

        def hear(party: Connection, messageType: MessageType) -> bytes:
            deadline = time.monotonic() + ANSWER_WITHIN
            while time.monotonic() < deadline:
                stream = bytes(heard[party])
                for kind, _, data, end in decodeFrames(stream):
                    if kind != messageType:
                        raise Trouble(explained(stream))
                    del heard[party][:end]
                    return data
                loop.turn(SLICE)
            raise Trouble(f"a call was not connected within {ANSWER_WITHIN:g} s")

        caller.write(encodeFrame(MessageType.CALL_REQUEST, callee.userId, b"\0"))
        callId = hear(caller, MessageType.CALL_REQUEST)[:ID_SIZE]
        hear(callee, MessageType.CALL_REQUEST)
        callee.write(encodeFrame(MessageType.CALL_ACCEPT, caller.userId, callId))
        for party in heard:
            hear(party, MessageType.CALL_ACCEPT)

    def open(self, loop: Loop, n: int, told: Callable[[str], None]) -> Iterator[Connection]:
        """
        Yield so many registered connections, of different users.

        @param told: called with how far that is.
        @raise Trouble: if the server does not want that.
        """
        users = self.newUsers(n)
        for first in range(0, n, self.atOnce):
            told(f"{first:,} of {n:,} connections")
            some = users[first : first + self.atOnce]
            with self.reaching(), ExitStack() as undo:
                sockets: list[socket.socket] = []
                for userId, credential in some:
                    sockets.append(undo.enter_context(self.connect()))
                    self.begin(sockets[-1], userId, credential)
                for connected, (userId, _) in zip(sockets, some, strict=True):
                    self.finish(connected, userId)
                undo.pop_all()
            for connected, (userId, _) in zip(sockets, some, strict=True):
                yield Connection(loop, connected, userId)

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn what a connection fails with into a L{Trouble} that says what to do."""
        try:
            yield
        except ssl.SSLCertVerificationError as e:
            raise Unreachable(f"cannot trust {self}: {e.verify_message} (--ca FILE names whom to trust)") from None
        except ssl.SSLError as e:
            raise Unreachable(f"{self} speaks no TLS, or not ours: {e.strerror or e}") from None
        except ConnectionRefusedError:
            raise Unreachable(
                f"nobody listens at {self}\nIs the server running? twistd -n wecompany starts one here."
            ) from None
        except TimeoutError:
            raise Unreachable(f"{self} does not answer; does it speak TLS? Then say --tls.") from None
        except ConnectionResetError:
            raise Unreachable(
                f"{self} closes connections at once; does it speak TLS? Then say so with --tls."
            ) from None
        except OSError as e:
            if e.errno == errno.EADDRNOTAVAIL:
                raise Trouble("this machine has no free ports left: wait a minute, and take less") from None
            raise Unreachable(f"cannot reach {self}: {e.strerror or e}") from None


_RUN = secrets.token_hex(4).encode()
_serial = itertools.count()


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
        counts: dict[int, int] = {}
        for nanoseconds, n in zip(self._nanoseconds, self._numbers, strict=True):
            tenths = nanoseconds // 100
            counts[tenths] = counts.get(tenths, 0) + n
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
        self._send(perf_counter_ns())

    def _send(self, now: int) -> None:
        self._missing = len(self.flows)
        for flow in self.flows:
            flow.expect(now)
        self._sender.write(self._message)

    def _arrived(self, n: int, now: int) -> None:
        self._missing -= n
        if not self._missing:
            self._send(perf_counter_ns())


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
        """See L{Watched.fileno}."""
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
        """See L{Watched.writable}."""
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
        except _WOULD_BLOCK:
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
    "turns": Kind(Turns, 1000, "N users in pairs, 100 texts under way in all: each pair in its turn"),
    "calls": Kind(Calls, 200, "N two-way audio calls: 160 bytes 50 times a second each way, in time with a clock"),
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


def parseShape(text: str) -> Shape:
    """Return the shape that C{NAME} or C{NAME:N} is, as argparse wants it."""
    name, colon, number = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape of load; there are {', '.join(KINDS)}")
    if not colon:
        return Shape(name, kind.number)
    if kind.number is None:
        raise argparse.ArgumentTypeError(f"{text!r}: {name} takes no number")
    most = 64 if name == "window" else MAX_USERS
    try:
        return Shape(name, atLeast(1, most)(number))
    except argparse.ArgumentTypeError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: {e}") from None


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
            f"if nobody raises it.\n{_HINT}"
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


# -- What is shown -------------------------------------------------------------------------------------------------

_WIDTHS = (13, 12, 10, 11, 11, 11, 8)


def shown(value: float | None) -> str:
    """Return a figure as a table shows it."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def table(figures: Figures) -> str:
    """Return all figures for a person to read."""
    lines = [f"server: {figures.server}"]
    if figures.shapes:
        lines += ["", _row("shape", "messages/s", "CPU µs each", "p50 µs", "p99 µs", "p999 µs", "max µs", "lost")]
    for f in figures.shapes:
        values = (f.messagesPerSecond, f.cpuMicros, f.p50Micros, f.p99Micros, f.p999Micros, f.maxMicros)
        lines.append(_row(f.shape, *map(shown, values), f"{f.lost:,}"))
    if figures.shapes and all(f.cpuMicros is None for f in figures.shapes):
        lines.append("The server's CPU is not known: name its process with --pid, if it is on this machine.")
    for idle in figures.idle:
        each = idle.kilobytesEach
        cost = "memory not known: name the server's process with --pid" if each is None else f"{each:.2f} kB each"
        lines += ["", f"idle: {idle.connections:,} registered connections, {cost}"]
    remarks = [f"{f.shape}: {note}" for f in figures.shapes for note in f.notes]
    remarks += [f"{shape}: {why}" for shape, why in figures.problems.items()]
    for remark in remarks:
        lines += ["", remark.removesuffix(f"\n{_HINT}")]
    if any(remark.endswith(_HINT) for remark in remarks):
        lines += ["", _HINT]
    return "\n".join(lines)


def _row(name: str, *cells: str) -> str:
    return f"{name:<15}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def plotLatency(series: Mapping[str, Sequence[ShapeFigures]], path: Path) -> None:
    """
    Draw latency against load: half of the messages took at most the dashed line, 99 of 100 the solid one.

    @param series: for each server's name, what was measured under C{calls:N}.
    @raise Problem: if there is nothing to draw it with, or it cannot be written.
    """
    Canvas, Figure = _plotting()
    figure = Figure(figsize=(8, 5), layout="constrained")
    Canvas(figure)
    axes = figure.add_subplot()
    for index, (name, measured) in enumerate(series.items()):
        points = sorted((int(f.shape.partition(":")[2]), f.p50Micros / 1000, f.p99Micros / 1000) for f in measured)
        calls, halves, most = zip(*points, strict=True) if points else ((), (), ())
        axes.plot(calls, most, f"C{index}o-", markersize=3, label=f"{name} p99")
        axes.plot(calls, halves, f"C{index}--", linewidth=1, label=f"{name} p50")
    axes.set_yscale("log")
    axes.set_xlabel(f"two-way calls at once, {2 * AUDIO_RATE} pieces of audio a second each")
    axes.set_ylabel("latency, ms")
    axes.grid(visible=True, which="both", alpha=0.3)
    if series:
        axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as e:
        raise Problem(f"--plot {path}: {getattr(e, 'strerror', None) or e}") from None


def _plotting() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Problem('a plot needs matplotlib: pip install "wecompany[bench]"') from None
    return FigureCanvasAgg, Figure


# -- The command ---------------------------------------------------------------------------------------------------


def atLeast(least: int, most: int | None = None) -> Callable[[str], int]:
    """
    Return what argparse takes for a whole number of C{least} or more.

    @param most: the highest one, if there is a bound.
    """
    bounds = f"{least} or more" if most is None else f"from {least} to {most}"

    def whole(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= (most or int(text))):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {bounds}")
        return int(text)

    return whole


def positive(text: str) -> float:
    """Return a number of seconds, as argparse wants it."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _measurable(text: str) -> float:
    seconds = positive(text)
    if seconds > MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"a shape is measured for {MAX_SECONDS} s at most")
    return seconds


def _server(text: str) -> tuple[str, int]:
    try:
        return _hostAndPort(text)
    except Problem as e:
        raise argparse.ArgumentTypeError(str(e).removeprefix("--server ")) from None


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text!r}: a plot is a .png, .svg or .pdf file")
    return path


def _usersIn(path: Path) -> list[tuple[bytes, bytes]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as e:
        raise Problem(f"--users {path}: {e.strerror or e}") from None
    users = []
    for number, line in enumerate(lines, 1):
        userId, _, credential = line.partition(b"\t")
        try:
            checkUserId(userId)
        except WireError as e:
            raise Problem(f"--users {path}: line {number}: {e.text}") from None
        users.append((userId, credential))
    if len({userId for userId, _ in users}) < max(1, len(users)):
        raise Problem(f"--users {path}: it names {'a user twice' if users else 'nobody'}")
    return users


def addLoadOptions(parser: argparse.ArgumentParser) -> None:
    """Add the options that say how to measure, as L{askedOf} takes them."""
    parser.add_argument(
        "--pairs", type=atLeast(1, MAX_USERS // 2), default=50, help="pairs of users in sparse and window [default: 50]"
    )
    parser.add_argument("--size", type=atLeast(1, MAX_SIZE), default=200, help="bytes of each text [default: 200]")
    parser.add_argument(
        "--seconds",
        type=_measurable,
        default=3.0,
        help="how long each shape is measured, after half a second of it [default: 3]",
    )


def askedOf(options: argparse.Namespace) -> Asked:
    """Return how to measure."""
    return Asked(options.pairs, options.size, options.seconds)


def addBenchParser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """
    Add C{bench} to the commands of a command line.

    @param commands: what C{add_subparsers} returned.
    """
    bench = commands.add_parser(
        "bench",
        help="measure how fast a running server is",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.fill(
            "Load a running server as many users would, and measure it: messages a second, the time from the sending "
            "of a message to its arrival, messages that were lost, and, where the server is a process of this machine "
            "(--pid, on Linux), its CPU time for each message delivered and its memory.",
            HELP_WIDTH,
        ),
        epilog=_epilog(),
    )
    bench.add_argument(
        "target",
        nargs="?",
        type=_server,
        default=_server(DEFAULT_TARGET),
        metavar="HOST[:PORT]",
        help=f"where the server is [default: {DEFAULT_TARGET}]",
    )
    bench.add_argument("--tls", action="store_true", help="connect with TLS; so does --ca")
    bench.add_argument(
        "--ca", type=Path, metavar="FILE", help="whom to trust, in PEM [default: the system's authorities]"
    )
    bench.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        help="where the server has accounts: a line for each, its user ID, a tab, and its password or token",
    )
    bench.add_argument(
        "--shape",
        dest="shapes",
        action="append",
        type=parseShape,
        metavar="NAME[:N]",
        help=f"what to measure, see below; repeatable [default: {' '.join(DEFAULT_SHAPES)}]",
    )
    addLoadOptions(bench)
    bench.add_argument("--pid", type=atLeast(1), help="the server's process on this machine, for its CPU and memory")
    bench.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    bench.add_argument(
        "--plot",
        type=_picture,
        metavar="FILE.png",
        help=f"draw the latency of all calls:N against the load [default: calls:{LADDER[0]} to calls:{LADDER[-1]}]",
    )


def _epilog() -> str:
    def paragraph(text: str) -> str:
        return textwrap.fill(text, HELP_WIDTH)

    shapes = []
    for name, kind in KINDS.items():
        head, default = (name, "") if kind.number is None else (f"{name}:N", f" [{kind.number}]")
        shapes += textwrap.wrap(f"  {head:<12} {kind.what}{default}", HELP_WIDTH, subsequent_indent=" " * 15)
    command = f"twistd -n --pidfile= wecompany --database=none --broadcast {' '.join(RAISED)}"
    start = textwrap.wrap(command, HELP_WIDTH - 6, break_on_hyphens=False)
    return "\n\n".join(
        [
            "\n".join(["shapes of load:", *shapes]),
            paragraph("A server in use has limits that this is over. Start one for the measurement, with higher ones:"),
            "  " + " \\\n    ".join(start),
            paragraph(
                "Compare only what was measured in the same minutes, several times, with the server and this command "
                "on CPUs of their own (taskset on Linux)."
            ),
            paragraph(
                "Exit codes: 0 all was measured; 1 something was not; 2 wrong usage; 3 no connection; 130 Ctrl-C, "
                "which ends it and still shows what was measured."
            ),
        ]
    )


def _targetOf(options: argparse.Namespace) -> Target:
    context = None
    if options.tls or options.ca:
        try:
            context = ssl.create_default_context(cafile=options.ca)
        except (OSError, ssl.SSLError) as e:
            raise Problem(f"{options.ca}: {e.strerror or e}") from None
    host, port = options.target
    if options.pid is not None:
        try:
            cpuSeconds(options.pid)
        except Trouble as e:
            raise Problem(f"--pid {options.pid}: {e}") from None
    return Target(host, port, options.pid, context, _usersIn(options.users) if options.users else ())


def _shapesOf(options: argparse.Namespace) -> list[Shape]:
    if options.plot is None:
        return list(dict.fromkeys(options.shapes or map(parseShape, DEFAULT_SHAPES)))
    shapes = list(dict.fromkeys(options.shapes or ()))
    if not any(shape.name == "calls" for shape in shapes):
        shapes += [Shape("calls", n) for n in LADDER]
    return shapes


def runBench(options: argparse.Namespace) -> int:
    """
    Do what C{wecompany bench} was asked for.

    @return: the exit code.
    @raise Problem: if something has to be put right first.
    """
    if options.plot:
        _plotting()
        if not options.plot.parent.is_dir():
            raise Problem(f"--plot {options.plot}: there is no such folder")
    target = _targetOf(options)
    figures = Figures(str(target) + (" over TLS" if target.tls else ""))
    code = EXIT_OK
    try:
        if measureAll(target, _shapesOf(options), askedOf(options), Progress(sys.stderr), figures):
            say("wecompany: stopped; this was measured until then")
            code = EXIT_INTERRUPTED
        elif figures.problems:
            code = EXIT_FAILED
    except Unreachable as e:
        say(f"wecompany: {e}")
        if not (figures.shapes or figures.idle):
            return EXIT_NO_CONNECTION
        code = EXIT_NO_CONNECTION
    print(json.dumps(asdict(figures)) if options.json else printableLines(table(figures)))
    calls = [f for f in figures.shapes if f.shape.startswith("calls:")]
    if options.plot and calls:
        plotLatency({str(target): calls}, options.plot)
    return code


def printableLines(text: str) -> str:
    """Return C{text} so that a terminal shows it, line by line, and obeys nothing in it."""
    return "\n".join(map(printable, text.splitlines()))
