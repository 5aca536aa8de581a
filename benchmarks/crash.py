"""
A server that is killed again and again, and clients that must not notice more than a pause.

::

    python -m benchmarks.crash                           50 kills, two minutes
    python -m benchmarks.crash --kills 500 --seed 7

Clients with reliable sessions write to each other, no faster than they are acknowledged.  Meanwhile the server is
killed with SIGKILL and started again, while it starts too; and connections are cut: in the middle of a frame, right
after a registration has been sent, in the middle of its answer, or left open while the client resumes on another.
Some clients stay away for a while, some read slowly, all acknowledge now and then.

At the end everybody resumes and takes what is left.  It passes if every text has arrived exactly once, and in order for
each sender and receiver; if no acknowledgement was taken back; if the store holds nothing any more and is consistent;
and if the server's log holds no traceback.

A killed process leaves what it wrote with the system, so this says nothing about a power cut: what holds then is up to
C{fsync}, and to the disk.
"""

from __future__ import annotations

import argparse
import asyncio
import signal
import socket
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from benchmarks.bench import Trouble, atLeast, freePort, say
from benchmarks.fuzz import faultsIn
from wecompany.database import Database
from wecompany.wire import (
    ErrorCode,
    MessageType,
    WireError,
    decodeError,
    decodeFrames,
    decodeU32,
    encodeFrame,
    encodeU32,
)

HOST = "127.0.0.1"

START_WITHIN = 20.0
"""Seconds that a server has to listen, and to let everybody in."""

STOP_WITHIN = 10.0
"""Seconds that a server has to stop in order."""

DRAIN_WITHIN = 30.0
"""Seconds in which everything has to have arrived after the last kill."""

LIVES = (0.1, 2.5)
"""Seconds that a server lives when it listens."""

KILLED_EARLY = 0.25
"""The share of the kills that come while the server starts, or is just back."""

EARLY = (0.2, 1.2)
"""Seconds after its start at which such a server is killed."""

CONNECTED_FOR = 1.5
"""Seconds that a connection lasts on average, until it is cut."""

PAUSE = 0.05
"""Seconds that a client waits on average until it connects again."""

STAYS_AWAY = 0.1
"""The share of the pauses that last for L{AWAY_FOR} seconds, so that texts wait in the store."""

AWAY_FOR = 1.0

CUT_AT_ONCE = 0.12
"""The share of connections that are cut when the registration has been sent and nothing of the answer been read."""

CUT_IN_ANSWER = 0.12
"""The share of connections that are cut when some bytes of the answer have been read."""

ABANDONED = 0.15
"""The share of cuts in which the connection stays open until the client has resumed on another one."""

DEAF = 0.5
"""The share of cuts before which a client reads nothing, acknowledges, and goes on reading nothing, each for up to
L{DEAF_FOR} seconds."""

DEAF_FOR = 0.1

RETRY_AFTER = 0.02
"""Seconds after which a client tries again when nobody listens."""

WINDOW = 200
"""Texts of a client that are not acknowledged, at most."""

BURST = 12
"""Texts that a client writes at once, at most."""

EVERY = (0.002, 0.04)
"""Seconds between two bursts."""

LONGEST_TEXT = 3_000
"""Bytes that a text is padded with, at most: most of them by far less."""

TO_ITSELF = 0.05
"""The share of texts that go to their sender."""

READS_SLOWLY = 0.02
"""The share of reads after which a client reads nothing for L{SLOW_FOR} seconds."""

SLOW_FOR = 0.1

ACKNOWLEDGES = 0.3
"""The share of reads after which a client acknowledges."""

ECHO = b"is anything left?"

MAX_FINDINGS = 20
"""Findings that are printed, and with which a run is given up: they say enough."""

LIMITS = (
    "text=1M:1M",
    "address-connections=100k",
    "connection-rate=100k:100k",
    "unregistered=100k",
    "queued-texts=1M",
    "queued-bytes=4Gi",
)
"""The limits of the server that this load is over."""


# -- The server ----------------------------------------------------------------------------------------------------


class Victim:
    """
    A server that is started again and again, on one port and one database.

    @ivar kills: how often it was killed.
    """

    def __init__(self, folder: Path, port: int) -> None:
        self.port = port
        self.database = folder / "store.sqlite"
        self.kills = 0
        self._log = folder / "log"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; it does not listen yet."""
        command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
        command += ["wecompany", "--interface", HOST, "--port", str(self.port), "--database", str(self.database)]
        for limit in LIMITS:
            command += ["--limit", limit]
        with self._log.open("ab") as log:
            # In a session of its own, so that a Ctrl-C is for us alone.
            self._process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )

    async def listens(self) -> None:
        """
        Wait until somebody can connect.

        @raise Trouble: if that takes too long, or the server ends.
        """
        deadline = time.monotonic() + START_WITHIN
        while time.monotonic() < deadline:
            self._mustRun()
            with suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, self.port)
                writer.close()
                return
            await asyncio.sleep(RETRY_AFTER)
        raise Trouble(f"the server does not listen:\n{self._tail()}")

    def kill(self) -> None:
        """
        Kill it.

        @raise Trouble: if it has ended by itself.
        """
        self._mustRun()
        self.end()
        self.kills += 1

    def stop(self) -> int:
        """Stop it as an operator does, and return its exit code."""
        assert self._process is not None
        self._process.terminate()
        try:
            return self._process.wait(STOP_WITHIN)
        except subprocess.TimeoutExpired:
            raise Trouble(f"the server does not stop within {STOP_WITHIN:g} s") from None

    def end(self) -> None:
        """Make sure that it does not run any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def log(self) -> bytes:
        """Return all that it has logged."""
        return self._log.read_bytes() if self._log.exists() else b""

    def _mustRun(self) -> None:
        assert self._process is not None
        code = self._process.poll()
        if code is not None:
            raise Trouble(f"the server ended by itself, with {code}:\n{self._tail()}")

    def _tail(self) -> str:
        return "\n".join(self.log().decode(errors="replace").splitlines()[-30:])


@contextmanager
def victim(port: int) -> Iterator[Victim]:
    """Return a server with a folder of its own; nothing is left of either at the end."""
    with tempfile.TemporaryDirectory(prefix="wecompany-crash-") as folder:
        server = Victim(Path(folder), port or freePort())
        try:
            yield server
        finally:
            server.end()


# -- What is counted -----------------------------------------------------------------------------------------------


@dataclass
class Channel:
    """
    What has gone from one client to another.

    @ivar sent: how many texts were written; they are numbered from 0.
    @ivar seen: the numbers of those that have come, past C{next}.
    @ivar next: all before it have come.
    @ivar last: the highest number that has come.
    """

    sent: int = 0
    next: int = 0
    last: int = -1
    seen: set[int] = field(default_factory=set)


@dataclass
class Tally:
    """
    What happened, in the whole run.

    @ivar counts: how often, under the names that L{summary} shows.
    @ivar findings: what is wrong.
    @ivar isWild: whether connections are cut and texts written; then comes the end.
    """

    counts: Counter[str] = field(default_factory=Counter)
    findings: list[str] = field(default_factory=list)
    channels: dict[tuple[bytes, bytes], Channel] = field(default_factory=dict)
    isWild: bool = True

    def channel(self, sender: bytes, receiver: bytes) -> Channel:
        """Return what has gone from one to the other."""
        return self.channels.setdefault((sender, receiver), Channel())

    def found(self, text: str) -> None:
        """Remember that something is wrong."""
        self.findings.append(text)

    def received(self, sender: bytes, receiver: bytes, data: bytes) -> None:
        """A text has come: see that it is the one that should."""
        channel = self.channel(sender, receiver)
        number = int(data.split(b" ", 1)[0])
        way = f"text {number} from {sender.decode()} to {receiver.decode()}"
        self.counts["received"] += 1
        if number >= channel.sent:
            self.found(f"{way} was never sent")
        elif number < channel.next or number in channel.seen:
            self.counts["duplicates"] += 1
            self.found(f"{way} has come twice")
        else:
            if number < channel.last:
                self.counts["out of order"] += 1
                self.found(f"{way} has come after text {channel.last}")
            channel.last = max(channel.last, number)
            channel.seen.add(number)
            while channel.next in channel.seen:
                channel.seen.remove(channel.next)
                channel.next += 1

    def missing(self) -> int:
        """Return how many texts have been sent and have not come."""
        return sum(channel.sent - channel.next - len(channel.seen) for channel in self.channels.values())


# -- A client ------------------------------------------------------------------------------------------------------


class Cut(Exception):
    """The connection is over, as the client or the server wanted it."""


class Client:
    """
    One user with a reliable session: what a client has to do for it, and what can go wrong with it.

    A new session counts only when the ACK behind its HEARTBEAT has come: until then it is the old one that is resumed,
    as what the server took in that is not known.

    @ivar isKnown: set when the first session has begun.
    """

    def __init__(self, me: bytes, everyone: Sequence[bytes], port: int, tally: Tally, random: Random) -> None:
        self.me = me
        self.isKnown = asyncio.Event()
        self._everyone = everyone
        self._port = port
        self._tally = tally
        self._random = random
        self._sessionId = bytes(16)
        self._taken = 0
        self._acknowledged = 0
        self._sentHere = 0
        self._unacknowledged: deque[bytes] = deque()
        self._answer = 0
        self._unparsed = b""
        self._delayed: bytes | None = None
        self._echoed = asyncio.Event()
        self._writer: asyncio.StreamWriter | None = None
        self._abandoned: list[asyncio.StreamWriter] = []

    @property
    def isIdle(self) -> bool:
        """Whether everything that it has sent is acknowledged."""
        return not self._unacknowledged

    async def run(self) -> None:
        """Be online, more or less, until cancelled."""
        try:
            while True:
                try:
                    await self._connect()
                except (Cut, OSError, EOFError):
                    self._tally.counts["connections lost"] += 1
                except WireError as e:
                    self._tally.found(f"{self.me.decode()}: the server sent what is no frame: {e.text}")
                finally:
                    self._hangUp()
                isAway = self._tally.isWild and self._random.random() < STAYS_AWAY
                await asyncio.sleep(AWAY_FOR * self._random.random() if isAway else self._pause())
        finally:
            for writer in self._abandoned:
                _reset(writer)

    async def settle(self) -> None:
        """Acknowledge everything, and wait until the server has seen that."""
        while not self._echoed.is_set():
            if self._writer is not None and self._answer == 2 and not self._writer.is_closing():
                self._acknowledge(self._writer)
                self._writer.write(encodeFrame(MessageType.HEARTBEAT, b"", ECHO))
            with suppress(TimeoutError, asyncio.TimeoutError):
                await asyncio.wait_for(self._echoed.wait(), 1.0)

    def _pause(self) -> float:
        return self._random.expovariate(1 / PAUSE)

    # -- one connection

    async def _connect(self) -> None:
        random = self._random
        try:
            reader, writer = await asyncio.open_connection(HOST, self._port)
        except OSError:
            await asyncio.sleep(RETRY_AFTER)
            return
        self._answer = 0
        self._unparsed = b""
        self._delayed = None
        self._writer = writer
        writer.write(encodeFrame(MessageType.ACK, self.me, encodeU32(self._taken) + self._sessionId))
        fate = random.random() if self._tally.isWild else 1.0
        if fate < CUT_AT_ONCE:
            # At once, or when the server has had time to answer.
            await writer.drain()
            await asyncio.sleep(random.choice((0, 0, 0.02, 0.1)) * random.random())
            self._tally.counts["cuts after a registration"] += 1
            raise Cut
        if fate < CUT_AT_ONCE + CUT_IN_ANSWER:
            # Its two frames are 21 and 9 bytes besides the ID.
            await reader.readexactly(random.randrange(1, 30 + len(self.me)))
            self._tally.counts["cuts in an answer"] += 1
            raise Cut
        writing = asyncio.create_task(self._write(writer))
        until = asyncio.get_running_loop().time() + random.expovariate(1 / CONNECTED_FOR)
        try:
            await self._read(reader, writer, until)
        finally:
            writing.cancel()
            await asyncio.wait({writing})

    async def _read(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, until: float) -> None:
        """Take what comes, until the server closes or the time has come to cut."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                data = await asyncio.wait_for(reader.read(65_536), max(0.01, until - loop.time()))
            except (TimeoutError, asyncio.TimeoutError):
                if self._tally.isWild:
                    await self._cut(writer)
                    raise Cut from None
                until = loop.time() + 1.0
                continue
            if not data:
                raise Cut
            self._take(data)
            if not self._tally.isWild:
                self._acknowledge(writer)
            elif self._random.random() < ACKNOWLEDGES:
                # Sometimes less than what was taken: it may have a reason to wait with some.
                self._acknowledge(writer, self._random.choice((0, 0, 1, 5)))
            elif self._random.random() < READS_SLOWLY:
                await asyncio.sleep(SLOW_FOR * self._random.random())

    def _acknowledge(self, writer: asyncio.StreamWriter, less: int = 0) -> None:
        if self._answer == 2 and not writer.is_closing():
            writer.write(encodeFrame(MessageType.ACK, b"", encodeU32(max(0, self._taken - less))))

    async def _cut(self, writer: asyncio.StreamWriter) -> None:
        """End a connection in the middle of whatever is under way."""
        if self._random.random() < DEAF:
            # Much may have been sent that is never read: the acknowledgement is of what was.
            await asyncio.sleep(DEAF_FOR * self._random.random())
            self._acknowledge(writer)
            await asyncio.sleep(DEAF_FOR * self._random.random())
        if self._random.random() < ABANDONED and self._answer == 2:
            self._tally.counts["connections abandoned"] += 1
            self._abandoned.append(writer)
            self._writer = None
        else:
            self._tally.counts["cuts"] += 1
            # Before the answer nothing may be sent: the old session is over when something arrives in the new one.
            if self._answer == 2 and not writer.is_closing():
                half = encodeFrame(MessageType.TEXT, self.me, b"0 half of a text")
                writer.write(half[: self._random.randrange(len(half))])

    def _hangUp(self) -> None:
        writer, self._writer = self._writer, None
        if writer is None:
            return
        if self._random.random() < 0.5:
            _reset(writer)
        else:
            writer.close()

    # -- sending

    async def _write(self, writer: asyncio.StreamWriter) -> None:
        """Write texts, when the session has begun and everyone is there."""
        random = self._random
        with suppress(OSError):  # who reads finds out, too
            while self._tally.isWild:
                await asyncio.sleep(random.uniform(*EVERY))
                if self._answer == 2 and self._tally.counts["everyone is known"]:
                    for _ in range(min(random.randrange(BURST) + 1, WINDOW - len(self._unacknowledged))):
                        self._send(writer, self._newText())
                    await writer.drain()

    def _newText(self) -> bytes:
        random = self._random
        receiver = self.me if random.random() < TO_ITSELF else random.choice(self._everyone)
        channel = self._tally.channel(self.me, receiver)
        padding = b"x" * int(LONGEST_TEXT * random.random() ** 6)
        text = encodeFrame(MessageType.TEXT, receiver, b"%d %b" % (channel.sent, padding))
        channel.sent += 1
        self._tally.counts["sent"] += 1
        self._unacknowledged.append(text)
        return text

    def _send(self, writer: asyncio.StreamWriter, text: bytes) -> None:
        self._sentHere += 1
        if not writer.is_closing():
            writer.write(text)

    # -- receiving

    def _take(self, data: bytes) -> None:
        data = self._unparsed + data
        end = 0
        for messageType, userId, body, end in decodeFrames(data):
            self._frame(messageType, userId, body)
        self._unparsed = data[end:]

    def _frame(self, messageType: int, userId: bytes, body: bytes) -> None:
        if self._delayed is not None and (messageType != MessageType.TEXT or userId != self._delayed):
            self._tally.found(f"{self.me.decode()}: a DELAY stands before something else than its text")
        delayed, self._delayed = self._delayed, None
        if messageType == MessageType.ERROR:
            code, about, text = decodeError(body)
            self._tally.found(f"{self.me.decode()}: ERROR {ErrorCode(code).name} about type {about}: {text}")
        elif self._answer == 0:
            self._expect(messageType == MessageType.HEARTBEAT and userId == self.me and len(body) == 16)
            self._newSessionId = body
            self._answer = 1
        elif self._answer == 1:
            self._expect(messageType == MessageType.ACK and not userId)
            self._begin(decodeU32(body))
        elif messageType == MessageType.TEXT:
            self._taken += 1
            self._tally.received(userId, self.me, body)
            if delayed is not None:
                self._tally.counts["received with a delay"] += 1
        elif messageType == MessageType.DELAY:
            self._delayed = userId
        elif messageType == MessageType.ACK:
            self._isAcknowledged(decodeU32(body))
        else:
            self._expect(messageType == MessageType.HEARTBEAT and (not userId or userId == self.me))
            if body == ECHO:
                self._echoed.set()
            elif userId:  # it asks for a sign of life
                assert self._writer is not None
                self._writer.write(encodeFrame(MessageType.HEARTBEAT, b""))

    def _expect(self, isRight: bool) -> None:
        if not isRight:
            self._tally.found(f"{self.me.decode()}: the server sent something that it should not")
            raise Cut

    def _begin(self, n: int) -> None:
        """The answer is complete: this is the session from now on; what the old one had not taken is sent again."""
        if self.isKnown.is_set():
            self._tally.counts["resumptions"] += 1
        self._isAcknowledged(n)
        self._answer = 2
        self._sessionId = self._newSessionId
        self._taken = self._acknowledged = self._sentHere = 0
        self.isKnown.set()
        for writer in self._abandoned:
            _reset(writer)
        self._abandoned.clear()
        assert self._writer is not None
        for text in self._unacknowledged:
            self._tally.counts["sent again"] += 1
            self._send(self._writer, text)

    def _isAcknowledged(self, n: int) -> None:
        if not self._acknowledged <= n <= self._sentHere:
            self._tally.found(
                f"{self.me.decode()}: {n} texts are acknowledged, after {self._acknowledged} of {self._sentHere}"
            )
            raise Cut
        for _ in range(n - self._acknowledged):
            self._unacknowledged.popleft()
        self._tally.counts["acknowledged"] += n - self._acknowledged
        self._acknowledged = n


def _reset(writer: asyncio.StreamWriter) -> None:
    """Break a connection: what is under way in either direction is lost."""
    s = writer.get_extra_info("socket")
    if s is not None and s.fileno() != -1:
        with suppress(OSError):
            s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


# -- The run -------------------------------------------------------------------------------------------------------


async def run(server: Victim, clients: int, kills: int, seed: int, tally: Tally) -> None:
    """
    Do all of it.

    @raise Trouble: if the server cannot be used at all.
    """
    everyone = [b"client%d" % n for n in range(clients)]
    users = [Client(me, everyone, server.port, tally, Random(f"{seed}/{me!r}")) for me in everyone]
    random = Random(f"{seed}/server")
    server.start()
    await server.listens()
    tasks = [asyncio.create_task(user.run()) for user in users]
    try:
        await _within(START_WITHIN, "not everybody is let in", asyncio.gather(*(user.isKnown.wait() for user in users)))
        tally.counts["everyone is known"] = 1
        await asyncio.sleep(random.uniform(*LIVES))
        for n in range(kills):
            server.kill()
            server.start()
            if random.random() < KILLED_EARLY:
                await asyncio.sleep(random.uniform(*EARLY))
            else:
                await server.listens()
                await asyncio.sleep(random.uniform(*LIVES))
            say(f"{n + 1} of {kills} kills, {tally.counts['acknowledged']:,} texts acknowledged")
            _raiseFailed(tasks)
            if len(tally.findings) >= MAX_FINDINGS:
                return
        await server.listens()
        tally.isWild = False
        deadline = time.monotonic() + DRAIN_WITHIN
        while tally.missing() or not all(user.isIdle for user in users):
            _raiseFailed(tasks)
            if time.monotonic() > deadline or len(tally.findings) >= MAX_FINDINGS:
                tally.found(f"{tally.missing()} texts had not come when the run was given up")
                return
            await asyncio.sleep(0.05)
        await _within(DRAIN_WITHIN, "not everybody is answered", asyncio.gather(*(user.settle() for user in users)))
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _within(seconds: float, otherwise: str, result: asyncio.Future[list[object]]) -> None:
    try:
        await asyncio.wait_for(result, seconds)
    except (TimeoutError, asyncio.TimeoutError):
        raise Trouble(f"{otherwise} within {seconds:g} s") from None


def _raiseFailed(tasks: list[asyncio.Task[None]]) -> None:
    for task in tasks:
        if task.done():
            task.result()


def judgeStore(server: Victim, tally: Tally) -> None:
    """See that nothing is left in the store of a server that has been stopped, and that it is consistent."""
    database = Database(server.database, mustExist=True)
    try:
        for problem in database.check():
            tally.found(f"the store: {problem}")
        texts = database.statistics().texts
    finally:
        database.close()
    if texts:
        tally.found(f"{texts} texts are still in the store, and all have been acknowledged")


_SHOWN = (
    "sent",
    "acknowledged",
    "sent again",
    "received",
    "received with a delay",
    "resumptions",
    "cuts",
    "cuts after a registration",
    "cuts in an answer",
    "connections abandoned",
    "connections lost",
)


def summary(tally: Tally, kills: int, took: float) -> str:
    """Return what happened, for a person to read."""
    counts = tally.counts
    lines = [f"{kills} kills in {took:.0f} s", *(f"{what}: {counts[what]:,}" for what in _SHOWN)]
    bad = (f"{tally.missing()} lost", f"{counts['duplicates']} duplicates", f"{counts['out of order']} out of order")
    return "\n".join([*lines, ", ".join(bad)])


# -- The command ---------------------------------------------------------------------------------------------------


def parseArguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="crash",
        description="Kill a server again and again under load, cut its connections, and see that no text between "
        "reliable sessions is lost, doubled, or out of order.",
    )
    parser.add_argument("--kills", type=atLeast(0), default=50, help="how often it is killed (default: 50)")
    parser.add_argument("--clients", type=atLeast(1), default=20, help="who write to each other (default: 20)")
    parser.add_argument("--seed", type=atLeast(0), default=1, help="of what happens when (default: 1)")
    parser.add_argument("--port", type=atLeast(0), default=0, help="where the server listens (default: a free port)")
    return parser.parse_args(arguments)


def _stop(signalNumber: int, frame: object) -> None:
    """On SIGTERM: end as one should, and take the server along."""
    raise SystemExit(128 + signalNumber)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    @return: its exit code: 0; 1 if something is wrong; 130 after a Ctrl-C.
    """
    asked = parseArguments(arguments)
    signal.signal(signal.SIGTERM, _stop)
    tally = Tally()
    began = time.monotonic()
    with victim(asked.port) as server:
        try:
            asyncio.run(run(server, asked.clients, asked.kills, asked.seed, tally))
            code = server.stop()
            if code not in (0, -signal.SIGTERM):
                tally.found(f"the server ended with {code}")
            if not tally.findings:
                judgeStore(server, tally)
        except (Trouble, OSError) as e:
            tally.found(str(e))
        except KeyboardInterrupt:
            say("crash: stopped")
            return 130
        findings = tally.findings + faultsIn(server.log())
        kills = server.kills
    print(summary(tally, kills, time.monotonic() - began))
    for finding in findings[:MAX_FINDINGS]:
        print(f"FAILED: {finding}")
    print("failed" if findings else "passed")
    return 1 if findings else 0


if __name__ == "__main__":
    sys.exit(main())
