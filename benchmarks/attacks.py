"""
Hostile clients against one running server, one kind at a time, and what a well-behaved pair notices of them.

::

    python -m benchmarks.attacks                             all attacks, each against a server of its own
    python -m benchmarks.attacks --attack slowloris --attack flood
    python -m benchmarks.attacks --scale 0.02 --seconds 1    small ones

The server runs as C{twistd} runs it, with its limits as they are by default and its database in a temporary folder, on
the first CPU.  The pair writes a text each way 50 times a second, in a process of its own; a text's latency counts from
when it was to be sent, so a server that stops for a while is not forgiven what was not sent meanwhile.  Pair and
attacker share the second CPU, and the attacker gives way to the pair; how late the pair itself was, which is no
fault of the server's, is shown beside.  Compare only figures without steal.

An attack fails if a text of the pair is lost, or the server does not answer it as it should.  Linux only, like
L{benchmarks.bench}: it binds addresses 127.x.x.x, and reads /proc.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import re
import select
import signal
import socket
import struct
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.bench import (
    ANSWER_WITHIN,
    MUCH_STEAL,
    Server,
    Trouble,
    cpuSeconds,
    machineTicks,
    memory,
    positive,
    raiseOpenFiles,
    say,
    startedServer,
    stealPercent,
)
from wecompany.accounts import digestToken, hashPassword, makeToken
from wecompany.database import Database
from wecompany.wire import (
    ErrorCode,
    MessageType,
    WireError,
    decodeError,
    decodeFrames,
    encodeFrame,
)

PACE = 0.02
"""Seconds between two texts of the pair, each way."""

AT_ONCE = 200
"""Connections that an attack keeps open, where it does not say otherwise."""

FLOOD = 2_500
"""Connections of a flood at least: more than an address may make at once, and within the next seconds."""

GUESSING_AT_ONCE = 32
"""The same where passwords are guessed."""

MAX_GROWTH = 200_000
"""kB that the server's memory may grow in an attack."""

HASHING_MEMORY = 4 * 65_536
"""kB that the hashing of passwords may take besides: four at once, of 64 MiB each."""

SETTLE = 1.5
"""Seconds between an attack's end and the look at the memory; the server sweeps every second."""

PASSWORD = b"correct horse battery"
"""The owner's password, and the pair's."""

PAIR = (b"well-behaved-one", b"well-behaved-two")
OWNER = b"owner"
CHUNK = 65_536
"""Bytes that a hostile client sends at once."""

_HEAD = struct.Struct(">d")


# -- Connections ---------------------------------------------------------------------------------------------------


def sources(n: int, first: int = 1) -> list[str]:
    """Return C{n} addresses of this machine."""
    return [f"127.{first}.{i // 250}.{i % 250 + 1}" for i in range(n)]


def newSocket(source: str) -> socket.socket:
    """Return a socket that will come from that address."""
    connection = socket.socket()
    # Else the port would be chosen now, for whatever address, and 28,000 of them would have to do for all.
    connection.setsockopt(socket.IPPROTO_IP, 24, 1)  # IP_BIND_ADDRESS_NO_PORT
    connection.bind((source, 0))
    return connection


def firstFrame(received: bytes) -> tuple[int, bytes, bytes] | None:
    """Return the type, user ID and data of the first frame, if it is all there."""
    for messageType, userId, data, _ in decodeFrames(received):
        return messageType, userId, data
    return None


def answerIn(received: bytes) -> str:
    """Return in a few words how a first frame was answered; nothing if it is not yet."""
    frame = firstFrame(received)
    if frame is None:
        return ""
    messageType, _, data = frame
    if messageType == MessageType.ERROR:
        code, _, text = decodeError(data)
        return f"{ErrorCode(code).name}: {_plain(text)}"
    if messageType == MessageType.AUTH_RESPONSE and data[:1] == b"\0":
        return _plain(data[1:].decode())
    return "in"


def _plain(text: str) -> str:
    """Return a text that is the same whatever the numbers in it."""
    return re.sub(r"\d+", "N", text)


def registered(server: Server, userId: bytes, credential: bytes = b"", source: str = "127.0.0.1") -> socket.socket:
    """
    Return a connection that is that user's.

    @raise Trouble: if the server refuses.
    """
    connection = newSocket(source)
    connection.settimeout(ANSWER_WITHIN)
    connection.connect((server.host, server.port))
    connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    connection.sendall(encodeFrame(MessageType.HEARTBEAT, userId, credential))
    received = b""
    while not answerIn(received):
        data = connection.recv(4_096)
        if not data:
            raise Trouble("the server closed a connection that was to be registered")
        received += data
    if (answer := answerIn(received)) != "in":
        raise Trouble(f"the server refused {userId!r}: {answer}")
    return connection


class Visitor:
    """
    One connection of an attacker.

    @ivar received: what has come.
    @ivar openedAt: when it was begun.
    """

    __slots__ = ("connection", "isConnected", "openedAt", "pending", "received")

    def __init__(self, connection: socket.socket, pending: bytes) -> None:
        self.connection = connection
        self.pending = pending
        self.received = b""
        self.openedAt = time.monotonic()
        self.isConnected = False


class Crowd:
    """Many connections of an attacker at once."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._poll = select.epoll()
        self._visitors: dict[int, Visitor] = {}

    def __len__(self) -> int:
        return len(self._visitors)

    def __iter__(self) -> Iterator[Visitor]:
        return iter(list(self._visitors.values()))

    def enter(self, source: str, pending: bytes) -> None:
        """Begin a connection that sends that when it can."""
        connection = newSocket(source)
        connection.setblocking(False)
        connection.connect_ex((self._server.host, self._server.port))
        self._visitors[connection.fileno()] = Visitor(connection, pending)
        self._poll.register(connection.fileno(), select.EPOLLOUT)

    def leave(self, visitor: Visitor) -> None:
        """Close it."""
        del self._visitors[visitor.connection.fileno()]
        visitor.connection.close()

    def events(self, timeout: float = 0.01) -> Iterator[tuple[Visitor, bool]]:
        """Yield each visitor for whom something has come, and whether the connection is over."""
        for fileNumber, event in self._poll.poll(timeout):
            visitor = self._visitors.get(fileNumber)
            if visitor is None:
                continue
            isOver = False
            try:
                if not visitor.isConnected:
                    visitor.isConnected = True
                    self._poll.modify(fileNumber, select.EPOLLIN)
                    visitor.connection.send(visitor.pending)
                elif event & (select.EPOLLIN | select.EPOLLHUP | select.EPOLLERR):
                    data = visitor.connection.recv(CHUNK)
                    visitor.received += data
                    isOver = not data
            except BlockingIOError:
                continue
            except OSError:
                isOver = True
            if isOver or visitor.received:
                yield visitor, isOver

    def close(self) -> None:
        """Close them all."""
        for visitor in self:
            self.leave(visitor)
        self._poll.close()


# -- The attacks ---------------------------------------------------------------------------------------------------

Counts = dict[str, float]
"""What an attacker has seen, by what it is."""


@dataclass(frozen=True)
class Asked:
    """
    How an attack is to be.

    @ivar seconds: how long it lasts, if it is not over by itself.
    @ivar scale: the share of the connections, users and so on that it has in full.
    """

    seconds: float
    scale: float

    def of(self, n: int) -> int:
        """Return what share of C{n} that is, one at least."""
        return max(1, round(n * self.scale))


def alone(server: Server, asked: Asked) -> Counts:
    """Nothing at all."""
    time.sleep(asked.seconds)
    return {}


def slowloris(server: Server, asked: Asked) -> Counts:
    """10,000 connections from 100 addresses, each of which sends a byte of a first frame every 2 s."""
    counts: Counter[str] = Counter()
    stayed: list[float] = []
    wanted = asked.of(10_000)
    addresses = sources(100)
    begun = 0
    crowd = Crowd(server)
    dripAt = time.monotonic() + 2
    giveUpAt = time.monotonic() + 60
    while (begun < wanted or len(crowd)) and time.monotonic() < giveUpAt:
        for _ in range(min(100, wanted - begun)):
            crowd.enter(addresses[begun % len(addresses)], b"\x07\xd0")
            begun += 1
        for visitor, isOver in crowd.events():
            if isOver:
                counts[answerIn(visitor.received) or "closed without a word"] += 1
                stayed.append(time.monotonic() - visitor.openedAt)
                crowd.leave(visitor)
        if time.monotonic() >= dripAt:
            dripAt += 2
            for visitor in crowd:
                with suppress(OSError):
                    visitor.connection.send(b"\0")
    counts["never closed"] = len(crowd)
    crowd.close()
    return {
        "connections": wanted,
        **counts,
        "closed after, s, at least": round(min(stayed, default=0), 1),
        "closed after, s, at most": round(max(stayed, default=0), 1),
    }


def visit(
    server: Server,
    seconds: float,
    addresses: Sequence[str],
    atOnce: int,
    frame: Callable[[int], bytes],
    least: int = 0,
) -> Counts:
    """
    Connect again and again as fast as that goes, and count how first frames are answered.

    @param frame: returns the first frame of the connection with that number.
    @param least: how many connections there are in any case, however long that takes.
    """
    counts: Counter[str] = Counter()
    begun = 0
    crowd = Crowd(server)
    until = time.monotonic() + seconds
    while (now := time.monotonic()) < until or (len(crowd) and now < until + ANSWER_WITHIN):
        if begun < least:
            until = max(until, now + 1)
        while now < until and len(crowd) < atOnce:
            crowd.enter(addresses[begun % len(addresses)], frame(begun))
            begun += 1
        for visitor, isOver in crowd.events():
            answer = answerIn(visitor.received)
            if isOver or answer:
                counts[answer or "closed without a word"] += 1
                crowd.leave(visitor)
    crowd.close()
    return {"connections": begun, **counts}


def flood(server: Server, asked: Asked) -> Counts:
    """New connections from one address, as fast as they can be made, each with a user ID of its own."""
    return visit(
        server,
        asked.seconds,
        sources(1),
        AT_ONCE,
        lambda n: encodeFrame(MessageType.HEARTBEAT, b"flood-%d" % n),
        FLOOD,
    )


def guess(server: Server, asked: Asked, addresses: int) -> Counts:
    """Wrong passwords for one account, as fast as they can be said, while its owner logs in from elsewhere."""
    with process(logInAgain, server) as owner:
        owner.recv()
        counts = visit(
            server,
            asked.seconds,
            sources(addresses),
            GUESSING_AT_ONCE * (4 if addresses > 1 else 1),
            lambda n: encodeFrame(MessageType.LOGIN, OWNER, b"wrong-password-%d" % n),
        )
        owner.send("stop")
        theirs: Counts = owner.recv()
    return counts | theirs


def logInAgain(server: Server, control: Connection) -> None:
    """Log in as the owner, with password and token in turn, until told to stop; tell how often that went."""
    token = _tokenOf(server)
    control.send("ready")
    counts: Counts = {}
    for how in ("password", "token"):
        counts |= {f"owner's {how}: tries": 0, f"owner's {how}: in": 0, f"owner's {how}: s, at most": 0.0}
    while True:
        for how, credential in (("password", PASSWORD), ("token", token)):
            began = time.monotonic()
            with suppress(Trouble, TimeoutError):
                counts[f"owner's {how}: tries"] += 1
                registered(server, OWNER, credential, "127.0.0.2").close()
                counts[f"owner's {how}: in"] += 1
                key = f"owner's {how}: s, at most"
                counts[key] = max(counts[key], round(time.monotonic() - began, 2))
        if control.poll(0.1):
            control.recv()
            control.send(counts)
            return


def _tokenOf(server: Server) -> bytes:
    with socket.create_connection((server.host, server.port), ANSWER_WITHIN) as connection:
        connection.sendall(encodeFrame(MessageType.LOGIN, OWNER, PASSWORD))
        received = b""
        while (frame := firstFrame(received)) is None:
            received += connection.recv(4_096)
        return frame[2][1:]


def oversized(server: Server, asked: Asked) -> Counts:
    """First frames that say they have 65,535 bytes, and begin to send them."""
    return visit(server, asked.seconds, sources(50), AT_ONCE, lambda n: b"\xff\xff" + bytes(20_000))


def pour(connection: socket.socket, others: Sequence[socket.socket], chunk: bytes, seconds: float) -> Counts:
    """Write C{chunk} again and again for so long, and read whatever comes, here and at C{others}."""
    connections = {c.fileno(): c for c in (connection, *others)}
    received = dict.fromkeys(connections, 0)
    sent = 0
    isOver = False
    pending = memoryview(chunk)
    until = time.monotonic() + seconds
    with select.epoll() as poll:
        for fileNumber, c in connections.items():
            c.setblocking(False)
            poll.register(fileNumber, select.EPOLLIN | (select.EPOLLOUT if c is connection else 0))
        while time.monotonic() < until and not isOver:
            for fileNumber, event in poll.poll(0.01):
                if event & select.EPOLLIN:
                    data = connections[fileNumber].recv(1_048_576)
                    received[fileNumber] += len(data)
                    isOver = isOver or not data
                if event & select.EPOLLOUT:
                    with suppress(BlockingIOError):
                        n = connection.send(pending)
                        sent += n
                        pending = pending[n:] or memoryview(chunk)
    return {
        "MB sent": round(sent / 1e6, 1),
        "MB answered": round(received[connection.fileno()] / 1e6, 1),
        "closed by the server": isOver,
        "bytes arrived": sum(received[c.fileno()] for c in others),
    }


def texts(server: Server, asked: Asked) -> Counts:
    """One user writes short texts to another one, far over the rate."""
    writer, reader = (registered(server, user, source=sources(1)[0]) for user in (b"writer", b"reader"))
    frame = encodeFrame(MessageType.TEXT, b"reader", b"x" * 20)
    with writer, reader:
        counts = pour(writer, [reader], frame * (CHUNK // len(frame)), asked.seconds)
    return counts | {"texts arrived": round(counts["bytes arrived"] / len(frame))}


def media(server: Server, asked: Asked) -> Counts:
    """One party of a call sends media far over the rate."""
    caller, callee = (registered(server, user, source=sources(1)[0]) for user in (b"caller", b"callee"))
    with caller, callee:
        # The second request accepts the call of the first.
        caller.sendall(encodeFrame(MessageType.CALL_REQUEST, b"callee", b"\0"))
        callee.recv(4_096)
        callee.sendall(encodeFrame(MessageType.CALL_REQUEST, b"caller", b"\0"))
        callee.recv(4_096)
        frame = encodeFrame(MessageType.MEDIA_DATA, b"callee", b"\0" + bytes(4_000))
        counts = pour(caller, [callee], frame * (CHUNK // len(frame)), asked.seconds)
    return counts | {"media MB/s arrived": round(counts["bytes arrived"] / 1e6 / asked.seconds, 2)}


def frames(server: Server, asked: Asked) -> Counts:
    """A registered client sends maximal heartbeats without end, and reads what they are answered with."""
    with registered(server, b"hostile", source=sources(1)[0]) as connection:
        return pour(connection, [], encodeFrame(MessageType.HEARTBEAT, b"", bytes(65_000)), asked.seconds)


def nonsense(server: Server, asked: Asked) -> Counts:
    """A registered client sends the shortest frames that make no sense, each of which is answered with an ERROR."""
    with registered(server, b"hostile", source=sources(1)[0]) as connection:
        frame = encodeFrame(200, b"")
        return pour(connection, [], frame * (CHUNK // len(frame)), asked.seconds)


def unread(server: Server, asked: Asked) -> Counts:
    """20 users read nothing of what 20 others write to them: the longest texts, as fast as they are taken."""
    n = asked.of(20)
    address = sources(1)[0]
    chunk = {i: encodeFrame(MessageType.TEXT, b"deaf-%d" % i, bytes(65_000)) for i in range(n)}
    sent = 0
    refusals = 0
    with ExitStack() as stack:
        for i in range(n):
            deaf = newSocket(address)
            deaf.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
            stack.enter_context(deaf)
            deaf.connect((server.host, server.port))
            deaf.sendall(encodeFrame(MessageType.HEARTBEAT, b"deaf-%d" % i))
        writers = [stack.enter_context(registered(server, b"writer-%d" % i, source=address)) for i in range(n)]
        until = time.monotonic() + asked.seconds
        with select.epoll() as poll:
            byFile = {writer.fileno(): i for i, writer in enumerate(writers)}
            pending = {i: memoryview(chunk[i]) for i in range(n)}
            for writer in writers:
                writer.setblocking(False)
                poll.register(writer.fileno(), select.EPOLLIN | select.EPOLLOUT)
            while time.monotonic() < until:
                for fileNumber, event in poll.poll(0.01):
                    i = byFile[fileNumber]
                    if event & select.EPOLLIN:
                        refusals += len(writers[i].recv(CHUNK))
                    if event & select.EPOLLOUT:
                        with suppress(BlockingIOError):
                            written = writers[i].send(pending[i])
                            sent += written
                            pending[i] = pending[i][written:] or memoryview(chunk[i])
    return {"receivers": n, "MB sent": round(sent / 1e6, 1), "MB of refusals": round(refusals / 1e6, 3)}


def storm(server: Server, asked: Asked, tokens: Sequence[bytes]) -> Counts:
    """5,000 token holders log in at once from 50 addresses, just after the server has started."""
    counts: Counter[str] = Counter()
    crowd = Crowd(server)
    addresses = sources(50)
    began = time.monotonic()
    waits: list[float] = []
    for n, token in enumerate(tokens):
        crowd.enter(addresses[n % len(addresses)], encodeFrame(MessageType.HEARTBEAT, b"user-%d" % n, token))
        if n % 50 == 0:
            waits += _takeAnswers(crowd, counts, 0.0)
    while sum(counts.values()) < len(tokens) and time.monotonic() < began + 60:
        waits += _takeAnswers(crowd, counts, 0.01)
    took = time.monotonic() - began
    crowd.close()
    return {
        "users": len(tokens),
        **counts,
        "s until all were in": round(took, 2),
        "s that 99 of 100 waited at most": round(sorted(waits)[int(0.99 * len(waits))], 2) if waits else 0.0,
    }


def _takeAnswers(crowd: Crowd, counts: Counter[str], timeout: float) -> list[float]:
    waits = []
    for visitor, isOver in crowd.events(timeout):
        answer = answerIn(visitor.received)
        if isOver and not answer:
            answer = "closed without a word"
        if answer and visitor.pending:
            visitor.pending = b""
            counts[answer] += 1
            waits.append(time.monotonic() - visitor.openedAt)
        if isOver:
            crowd.leave(visitor)
    return waits


def signups(server: Server, asked: Asked) -> Counts:
    """Sign-ups from one address, as fast as they can be said, each for another name."""
    return visit(
        server,
        asked.seconds,
        sources(1),
        GUESSING_AT_ONCE,
        lambda n: encodeFrame(MessageType.SIGNUP, b"new-%d" % n, PASSWORD),
    )


@dataclass(frozen=True)
class Attack:
    """
    One kind of attack.

    @ivar run: what the attacker does; it returns what was seen.
    @ivar isRight: whether the server has dealt with it, by what the attacker saw and the server counted.
    @ivar options: of the server.
    @ivar accounts: whether the users of the pair, and the owner, have accounts.
    """

    run: Callable[[Server, Asked], Counts]
    isRight: Callable[[Counts, Counter[str]], bool] = lambda seen, counted: True
    options: tuple[str, ...] = ()
    accounts: bool = False


_ACCOUNTS = ("--accounts",)
_SIGNUP = ("--accounts", "--signup")


def _isHeld(seen: Counts, counted: Counter[str]) -> bool:
    """Guesses are heard, and the owner's token is not held up; a password has to find a place to be checked first."""
    return seen["owner's token: in"] == seen["owner's token: tries"] > 0 and counted["wrong passwords"] > 0


ATTACKS = {
    "alone": Attack(alone),
    "slowloris": Attack(
        slowloris,
        lambda seen, counted: (
            seen["never closed"] == 0 and counted["connections closed: NOT_REGISTERED"] == seen["connections"]
        ),
    ),
    "flood": Attack(
        flood,
        lambda seen, counted: counted["limits hit: connection-rate"] > 0,
    ),
    "guessing": Attack(
        partial(guess, addresses=1),
        lambda seen, counted: (
            _isHeld(seen, counted)
            and seen["owner's password: in"] > 0
            and counted["wrong passwords"] == 10
            and counted["lock-outs: account"] == 1
            and counted["passwords refused: locked out"] > 0
        ),
        _ACCOUNTS,
        True,
    ),
    "guessing-many": Attack(partial(guess, addresses=2_000), _isHeld, _ACCOUNTS, True),
    "oversized": Attack(
        oversized, lambda seen, counted: counted["connections closed: MALFORMED"] > 0 and "in" not in seen
    ),
    "frames": Attack(frames, lambda seen, counted: seen["MB answered"] > 0 and not seen["closed by the server"]),
    "nonsense": Attack(nonsense, lambda seen, counted: counted["errors: BAD_REQUEST"] > 0),
    "texts": Attack(
        texts,
        lambda seen, counted: counted["limits hit: text"] > 0 and not seen["closed by the server"],
    ),
    "media": Attack(media, lambda seen, counted: counted["limits hit: media"] > 0 and not seen["closed by the server"]),
    "unread": Attack(unread),
    "storm": Attack(
        lambda server, asked: {},  # what it needs is made with the accounts: see _prepare
        lambda seen, counted: seen["in"] == seen["users"],
        _ACCOUNTS,
        True,
    ),
    "signups": Attack(
        signups,
        lambda seen, counted: counted["registered by sign-up"] == 10 and counted["limits hit: signups"] > 0,
        _SIGNUP,
        True,
    ),
}
"""All attacks, by their names; C{alone} is none."""


# -- The pair ------------------------------------------------------------------------------------------------------


@dataclass
class Seen:
    """
    What the pair has seen; times are in ms.

    @ivar latencies: from when each text was to be sent until it arrived.
    @ivar delays: by how much each was sent later than it was to be, which the server cannot help.
    """

    sent: int = 0
    latencies: list[float] = field(default_factory=list)
    delays: list[float] = field(default_factory=list)
    problem: str = ""


def share(values: Sequence[float], part: float) -> float:
    """Return what this part of the values does not exceed."""
    ordered = sorted(values) or [0.0]
    return round(ordered[min(len(ordered) - 1, int(part * len(ordered)))], 2)


def beThePair(server: Server, credential: bytes, control: Connection) -> None:
    """Exchange texts until told to stop, then send a L{Seen} back: a process of its own."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    seen = Seen()
    try:
        with registered(server, PAIR[0], credential) as one, registered(server, PAIR[1], credential) as other:
            control.send("ready")
            _converse((one, other), control, seen)
    except (Trouble, OSError, WireError) as e:
        seen.problem = f"{e or type(e).__name__}"
    control.send(seen)


def _converse(ends: tuple[socket.socket, socket.socket], control: Connection, seen: Seen) -> None:
    unparsed = [b"", b""]
    watched: list[Any] = [*ends, control]
    sendAt = time.monotonic()
    stopAt: float | None = None
    while stopAt is None or (len(seen.latencies) < seen.sent and time.monotonic() < stopAt):
        now = time.monotonic()
        if stopAt is None and now >= sendAt:
            for end, peer in zip(ends, PAIR[::-1], strict=True):
                end.sendall(encodeFrame(MessageType.TEXT, peer, _HEAD.pack(sendAt) + b"as agreed"))
                seen.sent += 1
                seen.delays.append(1000 * (now - sendAt))
            sendAt += PACE
        ready, _, _ = select.select(watched, [], [], PACE if stopAt else max(0.0, sendAt - time.monotonic()))
        for i, end in enumerate(ends):
            if end not in ready:
                continue
            data = end.recv(CHUNK)
            if not data:
                raise Trouble("the pair was closed")
            stream = unparsed[i] + data
            at = 0
            for messageType, _, body, at in decodeFrames(stream):
                if messageType != MessageType.TEXT:
                    raise Trouble(f"the pair got a frame of type {messageType}: {body!r}")
                seen.latencies.append(1000 * (time.monotonic() - _HEAD.unpack_from(body)[0]))
            unparsed[i] = stream[at:]
        if control in ready:
            control.recv()
            stopAt = time.monotonic() + ANSWER_WITHIN


# -- One run -------------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """
    What one attack came to.  Times are in ms, memory is in kB.

    @ivar lateP99: by how much the pair itself was late.
    @ivar cpuPercent: of one CPU, the server's share while the attack ran.
    @ivar seen: what the attacker saw.
    @ivar counted: what the server counted.
    @ivar findings: what is wrong.
    """

    attack: str
    seconds: float = 0.0
    texts: int = 0
    lost: int = 0
    p50: float = 0.0
    p99: float = 0.0
    longest: float = 0.0
    lateP99: float = 0.0
    memoryBefore: int = 0
    memoryAfter: int = 0
    memoryPeak: int = 0
    cpuPercent: float = 0.0
    stealPercent: float = 0.0
    seen: Counts = field(default_factory=dict)
    counted: dict[str, int] = field(default_factory=dict)
    findings: list[str] = field(default_factory=list)


def countedIn(output: bytes) -> Counter[str]:
    """Return what a server has counted, by its log."""
    counted: Counter[str] = Counter()
    for line in output.decode(errors="replace").splitlines():
        for what, n in re.findall(r"(\S.*?) (\d+)(?:, |$)", line.partition("Counted lately: ")[2]):
            counted[what] += int(n)
    return counted


def _prepare(name: str, attack: Attack, folder: Path, asked: Asked) -> Attack:
    """Make the accounts that the attack needs; return the attack with what it has to know of them."""
    if not attack.accounts:
        return attack
    database = Database(folder / "wecompany.sqlite")
    hashed = hashPassword(PASSWORD)
    for user in (*PAIR, OWNER):
        database.addAccount(user, hashed, "attacks")
    run = attack.run
    if name == "storm":
        tokens = [makeToken() for _ in range(asked.of(5_000))]
        for n, token in enumerate(tokens):
            database.addAccount(b"user-%d" % n, hashed, "attacks")
            database.addToken(b"user-%d" % n, digestToken(token), time.time() + 86_400)
        run = partial(storm, tokens=tokens)
    database.close()
    return Attack(run, attack.isRight, attack.options, attack.accounts)


def measure(name: str, asked: Asked, cpus: tuple[int | None, int | None]) -> Figures:
    """Run one attack against a server of its own."""
    figures = Figures(name)
    with tempfile.TemporaryDirectory(prefix="wecompany-attacks-") as folder:
        attack = _prepare(name, ATTACKS[name], Path(folder), asked)
        with startedServer(0, cpus[0], attack.options, Path(folder)) as server, ExitStack() as stack:
            assert server.pid is not None
            pair = stack.enter_context(process(beThePair, server, PASSWORD if attack.accounts else b""))
            ready = pair.recv()
            if isinstance(ready, Seen):
                raise Trouble(f"{name}: {ready.problem}")
            figures.memoryBefore = memory(server.pid)
            ticks, cpu, began = machineTicks(), cpuSeconds(server.pid), time.monotonic()
            attacker = stack.enter_context(process(beTheAttacker, server, attack.run, asked))
            seenThere: Counts | str = attacker.recv()
            if isinstance(seenThere, str):
                figures.findings.append(f"the attacker: {seenThere}")
            else:
                figures.seen = seenThere
            figures.seconds = round(time.monotonic() - began, 1)
            figures.cpuPercent = round(100 * (cpuSeconds(server.pid) - cpu) / (time.monotonic() - began), 1)
            figures.stealPercent = stealPercent(ticks)
            pair.send("stop")
            seen = pair.recv()
            time.sleep(min(SETTLE, asked.seconds))
            figures.memoryAfter = memory(server.pid)
            figures.memoryPeak = memory(server.pid, "VmHWM")
    _judge(figures, attack, seen, server)
    return figures


def _judge(figures: Figures, attack: Attack, seen: Seen, server: Server) -> None:
    figures.texts = seen.sent
    figures.lost = seen.sent - len(seen.latencies)
    figures.p50, figures.p99, figures.longest = (share(seen.latencies, part) for part in (0.5, 0.99, 1.0))
    figures.lateP99 = share(seen.delays, 0.99)
    counted = countedIn(server.output)
    figures.counted = dict(sorted(counted.items()))
    if seen.problem:
        figures.findings.append(f"the pair: {seen.problem}")
    growth = figures.memoryPeak - figures.memoryBefore
    if growth > MAX_GROWTH + (HASHING_MEMORY if attack.accounts else 0):
        figures.findings.append(f"the server's memory grew by {growth / 1000:.1f} MB")
    if figures.lost:
        figures.findings.append(f"{figures.lost} texts of the pair were lost")
    if not attack.isRight(defaultdict(float, figures.seen), counted):
        figures.findings.append("the server did not answer this as it should")
    if b"Traceback" in server.output or b"Unhandled" in server.output:
        figures.findings.append("the server's log has a traceback: " + server.output.decode(errors="replace")[-3_000:])
    if server.exitCode not in (0, -signal.SIGTERM):
        figures.findings.append(f"the server ended with {server.exitCode}")


@contextmanager
def process(target: Callable[..., None], server: Server, *arguments: object) -> Iterator[Connection]:
    """Let a process do that, with our end of its pipe; nothing is left of it at the end."""
    context = multiprocessing.get_context("fork")
    ours, theirs = context.Pipe()
    begun = context.Process(target=target, args=(server, *arguments, theirs))
    begun.start()
    theirs.close()
    try:
        with ours:
            yield ours
    finally:
        begun.terminate()
        begun.join()


def beTheAttacker(server: Server, run: Callable[[Server, Asked], Counts], asked: Asked, control: Connection) -> None:
    """Attack, and send back what was seen: a process of its own, which gives way to the pair."""
    os.nice(19)
    try:
        control.send(run(server, asked))
    except (Trouble, OSError, EOFError, WireError) as e:
        control.send(f"{e or type(e).__name__}")


# -- The command ---------------------------------------------------------------------------------------------------


def table(where: str, all_: Sequence[Figures]) -> str:
    """Return all figures for a person to read."""
    lines = [where, ""]
    head = ("attack", "p50 ms", "p99 ms", "max ms", "late ms", "lost", "MB before", "after", "peak", "CPU %", "steal %")
    lines.append(_row(*head))
    for f in all_:
        megabytes = (f"{kilobytes / 1000:.1f}" for kilobytes in (f.memoryBefore, f.memoryAfter, f.memoryPeak))
        times = (f"{value:.1f}" for value in (f.p50, f.p99, f.longest, f.lateP99))
        lines.append(_row(f.attack, *times, str(f.lost), *megabytes, f"{f.cpuPercent:.0f}", f"{f.stealPercent:.1f}"))
    for f in all_:
        if f.seen or f.counted or f.findings:
            lines += ["", f"{f.attack}, {f.seconds:g} s"]
            for title, counts in (("saw", f.seen), ("counted", f.counted)):
                lines += [f"    {title}: {_said(counts)}"] if counts else []
            lines += [f"    FAILED: {finding}" for finding in f.findings]
    return "\n".join(lines)


def _said(counts: Counts | dict[str, int]) -> str:
    return "; ".join(f"{what} {n:,}" for what, n in counts.items())


def _row(name: str, *cells: str) -> str:
    return f"{name:<14}" + "".join(f"{cell:>10}" for cell in cells)


def _stop(signalNumber: int, frame: object) -> None:
    """On SIGTERM: end as one should, and stop the server."""
    raise SystemExit(128 + signalNumber)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    @return: its exit code: 0; 1 if something is wrong; 130 after a Ctrl-C.
    """
    parser = argparse.ArgumentParser(
        prog="attacks",
        description="Attack a WeCompany server in several ways, and measure what two well-behaved clients notice "
        "of it.  Linux only.",
    )
    parser.add_argument(
        "--attack", action="append", choices=list(ATTACKS), metavar="NAME", help=f"{', '.join(ATTACKS)} (default: all)"
    )
    parser.add_argument("--seconds", type=positive, default=8.0, help="how long each lasts (default: 8)")
    parser.add_argument("--scale", type=positive, default=1.0, help="share of the connections and users (default: 1)")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    options = parser.parse_args(arguments)
    if not sys.platform.startswith("linux"):
        say("attacks: this runs on Linux only: it needs epoll, many loopback addresses, and /proc")
        return 1
    signal.signal(signal.SIGTERM, _stop)
    asked = Asked(options.seconds, options.scale)
    available = sorted(os.sched_getaffinity(0))
    cpus: tuple[int | None, int | None] = (available[0], available[1]) if len(available) > 1 else (None, None)
    where = f"server on CPU {cpus[0]}, pair and attacker on CPU {cpus[1]}; the machine has {len(available)}"
    if cpus[1] is None:
        where = "all on one CPU, as there is only one"
    all_: list[Figures] = []
    try:
        raiseOpenFiles(asked.of(10_000))
        if cpus[1] is not None:
            os.sched_setaffinity(0, {cpus[1]})
        for name in dict.fromkeys(options.attack or ATTACKS):
            say(f"{name} ...")
            all_.append(measure(name, asked, cpus))
    except (Trouble, OSError, EOFError) as e:
        say(f"attacks: {e or type(e).__name__}")
        return 1
    except KeyboardInterrupt:
        say("attacks: stopped")
        return 130
    if options.json:
        print(json.dumps({"where": where, "attacks": [asdict(figures) for figures in all_]}))
    else:
        print(table(where, all_))
    if (steal := max(figures.stealPercent for figures in all_)) > MUCH_STEAL:
        say(f"warning: the host took {steal:g} % of this machine's time: measure again when it is quieter")
    return 1 if any(figures.findings for figures in all_) else 0


if __name__ == "__main__":
    sys.exit(main())
