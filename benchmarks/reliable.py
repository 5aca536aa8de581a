"""
What the store costs: acknowledged texts per second, log-ins per second, and a start with a full store.

::

    python -m benchmarks.reliable                        all of it, each with a server of its own
    python -m benchmarks.reliable --part texts --pairs 10 --window 16

I{texts}: pairs of users with reliable sessions write to each other, both ways at once, each with some texts under way
that are not acknowledged; what is acknowledged is replaced by new ones, and what arrives is acknowledged.  So each text
is written, committed, acknowledged, delivered, acknowledged again and forgotten.  SQLite waits for the disk at each
commit, as it does by default.

I{logins}: users connect, register with their tokens, are answered and leave, some of them at once.

I{start}: the seconds from the start of the process to the first answered registration, with an empty store and with one
in which a million texts wait.  The file has just been written, so the system has it in memory; after a boot it takes
longer by what the disk needs for the parts that are read.

I{peer}: texts and log-ins once more with prosody, an XMPP server, where that is installed, and the ratio to it.  Stream
management (XEP-0198) is what comes nearest to reliable texts there: each side says how many it has taken.  It promises
less, as what the server has taken is in its memory, and gone if that is killed.  Its users log in with SASL PLAIN and a
password that is stored as it is: hashing would be all that is measured.

It runs on Linux, as L{benchmarks.bench} does, and what is said there about comparing figures holds here.
"""

from __future__ import annotations

import argparse
import gc
import json
import os
import re
import select
import shutil
import signal
import socket
import statistics
import struct
import sys
import tempfile
import time
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from benchmarks.bench import (
    ANSWER_WITHIN,
    MAX_SIZE,
    MUCH_STEAL,
    RAISED,
    START_WITHIN,
    WARM_UP,
    Server,
    Trouble,
    atLeast,
    cpuSeconds,
    freePort,
    machineTicks,
    percentile,
    positive,
    raiseOpenFiles,
    say,
    shown,
    started,
    startedServer,
    stealPercent,
)
from wecompany.accounts import digestToken, makeToken
from wecompany.database import Database, Operation
from wecompany.wire import ID_SIZE, MessageType, WireError, decodeFrames, decodeU32, encodeFrame, encodeU32

PARTS = ("texts", "logins", "start", "peer")

OPTIONS = (*RAISED, "--limit=queued-texts=1M", "--limit=users=1M")
"""The limits of the server that this load is over."""

NEW_SESSION = encodeU32(0) + bytes(ID_SIZE)
"""What an ACK that resumes nothing brings."""

PREPARED_AT_ONCE = 5_000
"""Operations in one transaction when a store is prepared."""

FOR_EACH = 100
"""Texts that wait for each user, in the store that is full of them."""

TEXT_SIZE = 100
"""Bytes of each of those."""

USERS = 1_000
"""Accounts that log in, one after the other and again."""

TOKENS_FOR = 3_600.0
"""Seconds for which their tokens are good."""

STARTS = 3
"""Starts of which the one in the middle counts."""

RETRY_AFTER = 0.002
"""Seconds between two tries to connect to a server that starts."""

_RESET = struct.pack("ii", 1, 0)

_WIDTH = 34
"""Characters of what stands before a figure."""


# -- The server and its store --------------------------------------------------------------------------------------


def withStore(path: Path) -> tuple[str, ...]:
    """Return the options of a server with that store."""
    return (*OPTIONS, "--database", str(path))


def prepare(path: Path, operations: Callable[[Database], Iterator[Operation]]) -> None:
    """Make a store, and do all of that in it."""
    database = Database(path)
    try:
        batch: list[Operation] = []
        for operation in operations(database):
            batch.append(operation)
            if len(batch) >= PREPARED_AT_ONCE:
                _run(database, batch)
                batch = []
        _run(database, batch)
    finally:
        database.close()


def _run(database: Database, batch: list[Operation]) -> None:
    for result in database.run(batch).results:
        if isinstance(result, Exception):
            raise Trouble(f"the store cannot be prepared: {result}") from result


def waitingUser(n: int) -> bytes:
    """Return a user for whom texts wait."""
    return b"waiting-%d" % n


def waitingTexts(n: int, database: Database) -> Iterator[Operation]:
    """Yield what lets C{n} texts wait."""
    now = int(time.time() * 1000)
    for at in range(0, n, FOR_EACH):
        receiver = waitingUser(at // FOR_EACH)
        yield database.registered, (receiver,)
        for _ in range(min(FOR_EACH, n - at)):
            yield database.keep, (receiver, b"sender", now, b"x" * TEXT_SIZE, b"", 0)


def tokens(users: Sequence[tuple[bytes, bytes]], database: Database) -> Iterator[Operation]:
    """Yield what gives each user an account and that token."""
    expiresAt = time.time() + TOKENS_FOR
    for userId, token in users:
        yield database.addAccount, (userId, "", "benchmark")
        yield database.addToken, (userId, digestToken(token), expiresAt)


def connected(server: Server) -> socket.socket:
    """
    Return a new connection to a server that may be starting yet.

    @raise Trouble: if it does not listen in time.
    """
    deadline = time.monotonic() + START_WITHIN
    while time.monotonic() < deadline:
        with suppress(ConnectionError):
            return server.connect()
        time.sleep(RETRY_AFTER)
    raise Trouble(f"the server does not listen within {START_WITHIN:g} s")


def answer(connection: socket.socket, userId: bytes, received: bytes = b"") -> bytes:
    """
    Wait until a registration is answered, and return what came behind that.

    @raise Trouble: if it is refused.
    """
    while True:
        try:
            for messageType, about, _, end in decodeFrames(received):
                if messageType != MessageType.HEARTBEAT or about != userId:
                    raise Trouble(f"the server refused a registration: {received[:200]!r}")
                return received[end:]
        except WireError:
            raise Trouble("what answers is no WeCompany server") from None
        more = connection.recv(65_536)
        if not more:
            raise Trouble("the server closed a connection that was to be registered")
        received += more


# -- Texts ---------------------------------------------------------------------------------------------------------


class Peer:
    """
    A user with a reliable session who writes to another one.

    @ivar acknowledged: how many of its texts the server has acknowledged.
    @ivar arrived: how many texts it has got.
    @ivar latencies: nanoseconds between the sending of some texts and their acknowledgement, and how many they were.
    """

    def __init__(self, connection: socket.socket, me: bytes, other: bytes, size: int) -> None:
        self.socket = connection
        self.acknowledged = self.arrived = 0
        self.latencies: list[tuple[int, int]] = []
        self._me = me
        self._text = encodeFrame(MessageType.TEXT, other, b"x" * size)
        self._data = b"x" * size
        self._unparsed = b""
        self._sent: deque[tuple[int, int]] = deque()

    @property
    def underWay(self) -> int:
        """Return how many of its texts are not acknowledged."""
        return sum(n for _, n in self._sent)

    def register(self) -> None:
        """Begin a session."""
        self.socket.sendall(encodeFrame(MessageType.ACK, self._me, NEW_SESSION))
        self._unparsed = answer(self.socket, self._me)
        while len(self._unparsed) < len(encodeFrame(MessageType.ACK, b"", encodeU32(0))):
            self._unparsed += self.socket.recv(65_536)
        self._take(b"")

    def send(self, n: int, before: bytes = b"") -> None:
        """Send C{n} texts, and C{before} before them.  The window is so small that this hardly ever blocks."""
        if n:
            self._sent.append((time.perf_counter_ns(), n))
        self.socket.sendall(before + self._textsOf(n))

    def _textsOf(self, n: int) -> bytes:
        """Return C{n} texts."""
        return self._text * n

    def receive(self) -> int:
        """
        Take what has come.

        @return: how many texts are acknowledged with that.
        @raise Trouble: if it is something else.
        """
        data = self.socket.recv(65_536)
        if not data:
            raise Trouble("a connection was closed")
        return self._take(data)

    def takenSince(self, arrived: int) -> bytes:
        """Return what acknowledges all texts that have come, if any have since there were C{arrived}."""
        return encodeFrame(MessageType.ACK, b"", encodeU32(self.arrived)) if self.arrived > arrived else b""

    def _take(self, data: bytes) -> int:
        data = self._unparsed + data
        taken = self.acknowledged
        end = 0
        for messageType, _, body, end in decodeFrames(data):
            if messageType == MessageType.TEXT and body == self._data:
                self.arrived += 1
            elif messageType == MessageType.ACK:
                taken = decodeU32(body)
            elif messageType != MessageType.DELAY:
                raise Trouble(f"not the texts that were sent, but: {data[:200]!r}")
        self._unparsed = data[end:]
        return self._acknowledge(taken)

    def _acknowledge(self, taken: int) -> int:
        """The server has taken so many; return how many of them are news."""
        before, self.acknowledged = self.acknowledged, taken
        left = taken - before
        now = time.perf_counter_ns()
        while left:
            at, n = self._sent.popleft()
            if n > left:
                self._sent.appendleft((at, n - left))
                n = left
            left -= n
            self.latencies.append((now - at, n))
        return taken - before


@dataclass(frozen=True)
class TextFigures:
    """
    What was measured of acknowledged texts.

    @ivar textsPerSecond: texts acknowledged; as many are delivered.
    @ivar cpuMicros: microseconds of the server's CPU for each of them, both threads.
    @ivar p50Micros: microseconds from the sending to the acknowledgement that half of the texts took at most.
    @ivar p99Micros: the same for 99 of 100 texts.
    @ivar loadPercent: how busy the load's own CPU was; near 100 the load is what is measured.
    @ivar lost: texts that were never acknowledged, or never arrived.
    @ivar stealPercent: the share of the machine's time that its host took.
    """

    pairs: int
    window: int
    bytesEach: int
    texts: int
    textsPerSecond: float
    cpuMicros: float
    p50Micros: float
    p99Micros: float
    loadPercent: float
    lost: int
    stealPercent: float


def exchange(peers: Sequence[Peer], isOver: Callable[[], bool], isGoingOn: bool = True) -> None:
    """Answer what arrives, and if C{isGoingOn} replace each acknowledged text by a new one, until C{isOver}."""
    with select.epoll() as poll:
        byFile = {peer.socket.fileno(): peer for peer in peers}
        for fileNumber in byFile:
            poll.register(fileNumber, select.EPOLLIN)
        while not isOver():
            for fileNumber, _ in poll.poll(0.1):
                peer = byFile[fileNumber]
                arrived = peer.arrived
                acknowledged = peer.receive()
                peer.send(acknowledged if isGoingOn else 0, peer.takenSince(arrived))


def after(seconds: float, isOver: Callable[[], bool] = lambda: False) -> Callable[[], bool]:
    """Return what tells whether C{seconds} have passed, or it is over before."""
    until = time.perf_counter() + seconds
    return lambda: time.perf_counter() >= until or isOver()


def measureTexts(
    server: Server, pairs: int, window: int, size: int, seconds: float, makePeer: type[Peer] = Peer
) -> TextFigures:
    """
    Load the server with reliable texts.

    @param window: the texts of each user that are not acknowledged.
    @param size: bytes of each text.
    @param seconds: how long to measure.
    @param makePeer: what users are.
    """
    assert server.pid is not None
    with ExitStack() as connections:
        peers = []
        for n in range(2 * pairs):
            connection = connections.enter_context(connected(server))
            peers.append(makePeer(connection, b"user-%06d" % n, b"user-%06d" % (n ^ 1), size))
        for peer in peers:
            peer.register()
            peer.socket.settimeout(None)  # a timeout would cost a system call each time
        gc.disable()
        try:
            for peer in peers:
                peer.send(window)
            exchange(peers, after(min(WARM_UP, seconds)))
            before = sum(peer.acknowledged for peer in peers)
            for peer in peers:
                peer.latencies.clear()
            ticks, cpu, own, began = machineTicks(), cpuSeconds(server.pid), time.process_time(), time.perf_counter()
            exchange(peers, after(seconds))
            took = time.perf_counter() - began
            own = time.process_time() - own
            cpu = cpuSeconds(server.pid) - cpu
            steal = stealPercent(ticks)
            latencies = sorted(latency for peer in peers for latency in peer.latencies)
            texts = sum(peer.acknowledged for peer in peers) - before

            def lost() -> int:
                return sum(peer.underWay for peer in peers) + sum(
                    peer.acknowledged - peers[n ^ 1].arrived for n, peer in enumerate(peers)
                )

            exchange(peers, after(ANSWER_WITHIN, lambda: not lost()), isGoingOn=False)
        finally:
            gc.enable()
    if not texts:
        raise Trouble(f"nothing was acknowledged within {seconds:g} s")
    return TextFigures(
        pairs=pairs,
        window=window,
        bytesEach=size,
        texts=texts,
        textsPerSecond=round(texts / took, 1),
        cpuMicros=round(cpu / texts * 1e6, 2),
        p50Micros=percentile(latencies, 0.5),
        p99Micros=percentile(latencies, 0.99),
        loadPercent=round(100 * own / took, 1),
        lost=lost(),
        stealPercent=steal,
    )


# -- Log-ins -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class LoginFigures:
    """
    What was measured of log-ins.

    @ivar atOnce: how many are under way.
    @ivar loginsPerSecond: registrations with a token that were answered.
    @ivar cpuMicros: microseconds of the server's CPU for each of them, its end included.
    @ivar p50Micros: microseconds from the connection to the answer that half of them took at most.
    @ivar p99Micros: the same for 99 of 100.
    @ivar loadPercent: see L{TextFigures}.
    @ivar stealPercent: the share of the machine's time that its host took.
    """

    atOnce: int
    logins: int
    loginsPerSecond: float
    cpuMicros: float
    p50Micros: float
    p99Micros: float
    loadPercent: float
    stealPercent: float


class Logins:
    """
    Users who log in, and leave as soon as they are answered.

    @ivar latencies: for each log-in the nanoseconds that it took, and 1.
    """

    def __init__(self, server: Server, users: Sequence[tuple[bytes, bytes]]) -> None:
        """
        @param users: their IDs and tokens.
        """
        self.latencies: list[tuple[int, int]] = []
        self._server = server
        self._users = deque(users)
        self._poll = select.epoll()
        self._underWay: dict[int, tuple[socket.socket, bytes, int]] = {}

    def begin(self) -> None:
        """Let the next user log in."""
        userId, token = self._users[0]
        self._users.rotate(-1)
        at = time.perf_counter_ns()
        connection = self._server.connect()
        self._begin(connection, userId, token)
        self._underWay[connection.fileno()] = connection, userId, at
        self._poll.register(connection.fileno(), select.EPOLLIN)

    def run(self, isOver: Callable[[], bool]) -> None:
        """Let somebody begin for each who is answered, until C{isOver}."""
        while not isOver():
            for fileNumber, _ in self._poll.poll(0.1):
                connection, userId, at = self._underWay[fileNumber]
                if not self._isIn(connection, userId):
                    continue
                del self._underWay[fileNumber]
                self.latencies.append((time.perf_counter_ns() - at, 1))
                self._leave(connection)
                self.begin()

    def _begin(self, connection: socket.socket, userId: bytes, token: bytes) -> None:
        """Say the first word."""
        connection.sendall(encodeFrame(MessageType.HEARTBEAT, userId, token))

    def _isIn(self, connection: socket.socket, userId: bytes) -> bool:
        """Something has come: return whether that user is logged in with it, or say the next word."""
        answer(connection, userId)
        return True

    def close(self) -> None:
        """End those that are under way."""
        for connection, _, _ in self._underWay.values():
            self._leave(connection)
        self._poll.close()

    def _leave(self, connection: socket.socket) -> None:
        # With a reset: else its port would be taken for a minute, and there are not so many.
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        connection.close()


def measureLogins(
    server: Server,
    users: Sequence[tuple[bytes, bytes]],
    atOnce: int,
    seconds: float,
    makeLogins: type[Logins] = Logins,
) -> LoginFigures:
    """
    Load the server with log-ins.

    @param users: their IDs and tokens.
    @param atOnce: how many are under way at any time.
    @param makeLogins: how users log in.
    """
    assert server.pid is not None
    connected(server).close()
    logins = makeLogins(server, users)
    try:
        for _ in range(atOnce):
            logins.begin()
        logins.run(after(min(WARM_UP, seconds)))
        logins.latencies.clear()
        ticks, cpu, own, began = machineTicks(), cpuSeconds(server.pid), time.process_time(), time.perf_counter()
        logins.run(after(seconds))
        took = time.perf_counter() - began
        own = time.process_time() - own
        cpu = cpuSeconds(server.pid) - cpu
        steal = stealPercent(ticks)
    finally:
        logins.close()
    latencies = sorted(logins.latencies)
    n = len(latencies)
    if not n:
        raise Trouble(f"nobody was let in within {seconds:g} s")
    return LoginFigures(
        atOnce=atOnce,
        logins=n,
        loginsPerSecond=round(n / took, 1),
        cpuMicros=round(cpu / n * 1e6, 2),
        p50Micros=percentile(latencies, 0.5),
        p99Micros=percentile(latencies, 0.99),
        loadPercent=round(100 * own / took, 1),
        stealPercent=steal,
    )


# -- The start -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StartFigures:
    """
    What was measured of the start, in seconds up to the first answered registration.

    @ivar texts: how many wait in the full store.
    @ivar emptySeconds: with an empty store.
    @ivar fullSeconds: with the full one.
    @ivar stealPercent: the share of the machine's time that its host took.
    """

    texts: int
    emptySeconds: float
    fullSeconds: float
    stealPercent: float


def startSeconds(path: Path, cpu: int | None) -> float:
    """Start a server with that store, and return the seconds until somebody with waiting texts is let in."""
    began = time.perf_counter()
    with startedServer(0, cpu, withStore(path), isAwaited=False) as server, connected(server) as connection:
        connection.sendall(encodeFrame(MessageType.ACK, waitingUser(0), NEW_SESSION))
        answer(connection, waitingUser(0))
        return time.perf_counter() - began


def measureStart(folder: Path, cpu: int | None, texts: int) -> StartFigures:
    """
    Start servers.

    @param texts: how many are to wait in the full store.
    """
    full = folder / "full.sqlite"
    began = time.monotonic()
    prepare(full, partial(waitingTexts, texts))
    say(f"start: {texts:,} texts were stored in {time.monotonic() - began:.1f} s")
    ticks = machineTicks()
    seconds = [(startSeconds(folder / f"empty{n}.sqlite", cpu), startSeconds(full, cpu)) for n in range(STARTS)]
    empty, filled = (round(statistics.median(values), 3) for values in zip(*seconds, strict=True))
    return StartFigures(texts, empty, filled, stealPercent(ticks))


# -- A peer --------------------------------------------------------------------------------------------------------

_DOMAIN = b"localhost"

_STREAM = (
    b"<stream:stream to='%s' xmlns='jabber:client' xmlns:stream='http://etherx.jabber.org/streams' version='1.0'>"
    % _DOMAIN
)

_TAKEN = re.compile(rb"<a [^>]*h=['\"](\d+)['\"]")

_CONFIGURATION = """\
daemonize = false
run_as_root = true
data_path = "{folder}"
interfaces = {{ "127.0.0.1" }}
c2s_ports = {{ {port} }}
modules_enabled = {{ "saslauth", "smacks" }}
modules_disabled = {{ "s2s" }}
c2s_require_encryption = false
allow_unencrypted_plain_auth = true
authentication = "internal_plain"
log = {{ warn = "*console" }}
VirtualHost "{domain}"
"""


class Missing(Exception):
    """It is not installed; the text says what to do."""


@contextmanager
def startedProsody(cpu: int | None, folder: Path, users: Sequence[tuple[bytes, bytes]]) -> Iterator[Server]:
    """
    Start prosody, and stop it at the end.

    @param users: their names and passwords.
    @raise Missing: if it is not installed.
    @raise Trouble: if it does not start.
    """
    program = shutil.which("prosody", path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if program is None:
        raise Missing("prosody is not installed, so nothing is compared with it (Debian: apt-get install prosody)")
    accounts = folder / _DOMAIN.decode() / "accounts"
    accounts.mkdir(parents=True)
    for user, password in users:
        file = accounts / f"{user.decode().replace('-', '%2d')}.dat"
        file.write_text(f'return {{ ["password"] = "{password.decode()}"; }};\n')
    server = Server("127.0.0.1", freePort())
    configuration = folder / "prosody.cfg.lua"
    configuration.write_text(_CONFIGURATION.format(folder=folder, port=server.port, domain=_DOMAIN.decode()))
    with started([program, "--config", str(configuration), "-F"], server, cpu):
        yield server


def xmppSteps(user: bytes, password: bytes) -> list[tuple[bytes, bytes]]:
    """Return what a log-in says, and what is in the last part of each answer."""
    auth = b"<auth xmlns='urn:ietf:params:xml:ns:xmpp-sasl' mechanism='PLAIN'>%s</auth>"
    bind = b"<iq type='set' id='b'><bind xmlns='urn:ietf:params:xml:ns:xmpp-bind'><resource>r</resource></bind></iq>"
    return [
        (_STREAM, b"</stream:features>"),
        (auth % b64encode(b"\0%s\0%s" % (user, password)), b"<success"),
        (_STREAM, b"</stream:features>"),
        (bind, b"</iq>"),
    ]


class XmppPeer(Peer):
    """A user of prosody who writes to another one, with stream management."""

    def __init__(self, connection: socket.socket, me: bytes, other: bytes, size: int) -> None:
        super().__init__(connection, me, other, size)
        self._text = b"<message to='%s@%s/r' type='chat'><body>%s</body></message>" % (other, _DOMAIN, self._data)

    def register(self) -> None:
        """Log in, and begin to count."""
        enable = b"<presence/><enable xmlns='urn:xmpp:sm:3'/>", b"<enabled"
        for said, expected in (*xmppSteps(self._me, self._me), enable):
            self.socket.sendall(said)
            received = b""
            while expected not in received:
                more = self.socket.recv(65_536)
                received += more
                if not more or b"<fail" in received:
                    raise Trouble(f"prosody did not answer {said[:40]!r} as it should: {received[:200]!r}")

    def _textsOf(self, n: int) -> bytes:
        """Return C{n} texts, and the question how many have been taken."""
        return self._text * n + b"<r xmlns='urn:xmpp:sm:3'/>" * (n > 0)

    def takenSince(self, arrived: int) -> bytes:
        """See L{Peer.takenSince}."""
        return b"<a xmlns='urn:xmpp:sm:3' h='%d'/>" % self.arrived if self.arrived > arrived else b""

    def _take(self, data: bytes) -> int:
        whole, end, self._unparsed = (self._unparsed + data).rpartition(b">")
        self.arrived += (whole + end).count(b"</message>")
        taken = _TAKEN.findall(whole)
        return self._acknowledge(int(taken[-1])) if taken else 0


class XmppLogins(Logins):
    """Users of prosody who log in, up to where others can write to them, and leave."""

    def __init__(self, server: Server, users: Sequence[tuple[bytes, bytes]]) -> None:
        super().__init__(server, users)
        self._steps: dict[socket.socket, list[tuple[bytes, bytes]]] = {}
        self._received: dict[socket.socket, bytes] = {}

    def _begin(self, connection: socket.socket, userId: bytes, token: bytes) -> None:
        self._steps[connection] = xmppSteps(userId, token)
        self._say(connection)

    def _say(self, connection: socket.socket) -> None:
        connection.sendall(self._steps[connection][0][0])
        self._received[connection] = b""

    def _isIn(self, connection: socket.socket, userId: bytes) -> bool:
        more = connection.recv(65_536)
        received = self._received[connection] = self._received[connection] + more
        steps = self._steps[connection]
        said, expected = steps[0]
        if not more or b"<failure" in received:
            raise Trouble(f"prosody did not answer {said[:40]!r} as it should: {received[:200]!r}")
        if expected not in received:
            return False
        del steps[0]
        if steps:
            self._say(connection)
            return False
        del self._steps[connection], self._received[connection]
        return True


@dataclass(frozen=True)
class PeerFigures:
    """The same of another server; see there."""

    texts: TextFigures
    logins: LoginFigures


def measurePeer(folder: Path, cpu: int | None, asked: argparse.Namespace) -> PeerFigures:
    """
    Do with prosody what is done with ours.

    @raise Missing: if it is not installed.
    """
    users = [(name, name) for name in (b"user-%06d" % n for n in range(max(USERS, 2 * asked.pairs)))]
    with startedProsody(cpu, folder, users) as server:
        texts = measureTexts(server, asked.pairs, asked.window, asked.size, asked.seconds, XmppPeer)
        return PeerFigures(texts, measureLogins(server, users[:USERS], asked.at_once, asked.seconds, XmppLogins))


# -- The command ---------------------------------------------------------------------------------------------------


@dataclass
class Figures:
    """All that was measured."""

    server: str
    texts: TextFigures | None = None
    logins: LoginFigures | None = None
    start: StartFigures | None = None
    peer: PeerFigures | None = None


def table(figures: Figures) -> str:
    """Return all figures for a person to read."""
    lines = [f"server: {figures.server}"]

    def add(title: str, rows: dict[str, str]) -> None:
        lines.extend(["", title, *(f"  {name:<{_WIDTH}}{value:>12}" for name, value in rows.items())])

    if (t := figures.texts) is not None:
        add(
            f"reliable texts of {t.bytesEach} bytes, {t.pairs} pairs both ways, {t.window} not acknowledged each",
            {
                "acknowledged texts/s": shown(t.textsPerSecond),
                "CPU µs/text": shown(t.cpuMicros),
                "p50 µs": shown(t.p50Micros),
                "p99 µs": shown(t.p99Micros),
                "lost": str(t.lost),
                "load's CPU %": shown(t.loadPercent),
                "steal %": shown(t.stealPercent),
            },
        )
    if (g := figures.logins) is not None:
        add(
            f"log-ins with a token, {g.atOnce} at once",
            {
                "log-ins/s": shown(g.loginsPerSecond),
                "CPU µs/log-in": shown(g.cpuMicros),
                "p50 µs": shown(g.p50Micros),
                "p99 µs": shown(g.p99Micros),
                "load's CPU %": shown(g.loadPercent),
                "steal %": shown(g.stealPercent),
            },
        )
    if (s := figures.start) is not None:
        add(
            "from the start to the first answer",
            {
                "s, empty store": f"{s.emptySeconds:.2f}",
                f"s, {s.texts:,} texts waiting": f"{s.fullSeconds:.2f}",
                "steal %": shown(s.stealPercent),
            },
        )
    if (p := figures.peer) is not None:
        rows = {
            "acknowledged texts/s": shown(p.texts.textsPerSecond),
            "CPU µs/text": shown(p.texts.cpuMicros),
            "log-ins/s": shown(p.logins.loginsPerSecond),
            "CPU µs/log-in": shown(p.logins.cpuMicros),
            "steal %": shown(max(p.texts.stealPercent, p.logins.stealPercent)),
        }
        if figures.texts is not None:
            rows["texts/s here to there"] = f"{figures.texts.textsPerSecond / p.texts.textsPerSecond:.1f}"
        if figures.logins is not None:
            rows["log-ins/s here to there"] = f"{figures.logins.loginsPerSecond / p.logins.loginsPerSecond:.1f}"
        add("the same with prosody: stream management, log-ins with a password", rows)
    return "\n".join(lines)


def parseArguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="reliable",
        description="Measure what the store of a WeCompany server costs: acknowledged texts per second, log-ins per "
        "second, and the time that a start takes.  It starts servers of its own on this machine, on the first CPU, and "
        "loads them from the second one.  Linux only.",
    )
    parser.add_argument(
        "--part", action="append", choices=PARTS, help="what to measure; may be repeated (default: all)"
    )
    parser.add_argument("--pairs", type=atLeast(1), default=50, help="pairs of users that write (default: 50)")
    parser.add_argument(
        "--window", type=atLeast(1), default=64, help="texts of each that are not acknowledged (default: 64)"
    )
    parser.add_argument("--size", type=atLeast(1), default=200, help="bytes of each text (default: 200)")
    parser.add_argument("--at-once", type=atLeast(1), default=50, help="log-ins that are under way (default: 50)")
    parser.add_argument(
        "--waiting", type=atLeast(1), default=1_000_000, help="texts that wait at the start (default: 1000000)"
    )
    parser.add_argument(
        "--seconds",
        type=positive,
        default=5.0,
        help="how long texts and log-ins are measured, after half a second of them (default: 5)",
    )
    parser.add_argument(
        "--folder", type=Path, help="where the stores are made: their disk is measured too (default: a temporary one)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    asked = parser.parse_args(arguments)
    if asked.size > MAX_SIZE:
        parser.error(f"--size is {MAX_SIZE} at most")
    if asked.at_once > USERS // 2:
        parser.error(f"--at-once is {USERS // 2} at most")
    asked.part = list(dict.fromkeys(asked.part or PARTS))
    return asked


def measure(asked: argparse.Namespace) -> Figures:
    """
    Measure what was asked for.

    @raise Trouble: if that does not go.
    """
    raiseOpenFiles(max(2 * asked.pairs, asked.at_once))
    cpus: list[int | None] = [*sorted(os.sched_getaffinity(0))]
    serverCpu, loadCpu = cpus[:2] if len(cpus) > 1 else (None, None)
    figures = Figures(f"twistd wecompany on CPU {serverCpu}, the load on CPU {loadCpu}")
    if loadCpu is None:
        figures.server = "twistd wecompany on the same CPU as the load, as there is only one"
    else:
        os.sched_setaffinity(0, {loadCpu})
    with tempfile.TemporaryDirectory(prefix="wecompany-reliable-", dir=asked.folder) as name:
        folder = Path(name)
        if "texts" in asked.part:
            say(f"texts: {asked.pairs} pairs, {asked.seconds:g} s")
            with startedServer(0, serverCpu, withStore(folder / "texts.sqlite")) as server:
                figures.texts = measureTexts(server, asked.pairs, asked.window, asked.size, asked.seconds)
        if "logins" in asked.part:
            say(f"logins: {asked.at_once} at once, {asked.seconds:g} s")
            users = [(b"user-%06d" % n, makeToken()) for n in range(USERS)]
            path = folder / "logins.sqlite"
            prepare(path, partial(tokens, users))
            with startedServer(0, serverCpu, (*withStore(path), "--accounts")) as server:
                figures.logins = measureLogins(server, users, asked.at_once, asked.seconds)
        if "start" in asked.part:
            figures.start = measureStart(folder, serverCpu, asked.waiting)
        if "peer" in asked.part:
            say(f"peer: prosody, {asked.pairs} pairs, {asked.seconds:g} s, and {asked.at_once} log-ins at once")
            try:
                figures.peer = measurePeer(folder / "prosody", serverCpu, asked)
            except Missing as e:
                say(f"peer: {e}")
    return figures


def _stop(signalNumber: int, frame: object) -> None:
    """On SIGTERM: end as one should, and stop the server."""
    raise SystemExit(128 + signalNumber)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    @return: its exit code: 0; 1 if something went wrong; 130 after a Ctrl-C.
    """
    asked = parseArguments(arguments)
    if not sys.platform.startswith("linux"):
        say("reliable: this runs on Linux only: it needs epoll, and /proc for CPU times")
        return 1
    signal.signal(signal.SIGTERM, _stop)
    try:
        figures = measure(asked)
    except (Trouble, OSError) as e:
        say(f"reliable: {e}")
        return 1
    except KeyboardInterrupt:
        say("reliable: stopped")
        return 130
    print(json.dumps(asdict(figures)) if asked.json else table(figures))
    measured = [figures.texts, figures.logins, figures.start]
    if figures.peer is not None:
        measured += [figures.peer.texts, figures.peer.logins]
    steal = max((part.stealPercent for part in measured if part is not None), default=0.0)
    if steal > MUCH_STEAL:
        say(f"warning: the host took {steal:g} % of this machine's time: measure again when it is quieter")
    return 1 if figures.texts is not None and figures.texts.lost else 0


if __name__ == "__main__":
    sys.exit(main())
