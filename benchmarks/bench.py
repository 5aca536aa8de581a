"""
How fast the server is, and how much memory a connection costs.

::

    python -m benchmarks.bench                            start a server, measure it, print a table
    python -m benchmarks.bench --connect 127.0.0.1:8888   load one that runs already

In each shape of load, pairs of users write to each other, both ways at once.  C{sparse} has one text under way in each
direction, so that every text is an event of its own; C{window:8} and C{window:64} have as many, so that several come at
once.  A text that arrives is replaced by the next one.  Compare only figures that were measured within the same
minutes, several times: what else the machine does changes them by a fifth and more.

It runs on Linux: it reads CPU times and memory from /proc, and waits with epoll.
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

from wecompany.wire import MessageType, WireError, decodeFrames, encodeFrame

SHAPES = {"sparse": 1, "window:8": 8, "window:64": 64}
"""Texts under way in each direction between two users."""

WARM_UP = 0.5
"""Seconds of load before the measurement."""

START_WITHIN = 20.0
"""Seconds that a server has to listen."""

STOP_WITHIN = 10.0
"""Seconds that a server has to stop, before it is killed."""

ANSWER_WITHIN = 10.0
"""Seconds that a server has to answer a registration, and to deliver what is under way when a measurement ends."""

SETTLE = 1.0
"""Seconds between the last registration and the look at the memory."""

MUCH_STEAL = 3.0
"""Per cent of the machine's time which its host may take away before the figures are doubtful."""

SPARE_FILES = 64
"""Open files of this process besides those of the connections."""

_WIDTHS = (12, 17, 11, 11, 7, 10)
"""Characters of the table's columns after the first."""

MAX_SIZE = 16_384
"""Bytes of a text: 64 of them are well below what may wait for one receiver."""

_serial = itertools.count()


class Trouble(Exception):
    """What was asked for cannot be measured; the text says why, for a person."""


def say(text: str) -> None:
    """Tell a person how far it is, on stderr."""
    print(text, file=sys.stderr, flush=True)


# -- The machine ---------------------------------------------------------------------------------------------------


def cpuSeconds(pid: int) -> float:
    """Return the seconds of CPU, user and system, that a process has used so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def memory(pid: int, what: str = "VmRSS") -> int:
    """Return the kB that a process has in memory now (C{VmRSS}), or has had at most (C{VmHWM})."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(what + ":"):
            return int(line.split()[1])
    raise Trouble(f"process {pid} has no {what}: it has ended")


def machineTicks() -> tuple[int, int]:
    """Return the ticks that the host has taken from this machine since its start, and all ticks."""
    ticks = [int(number) for number in Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9]]
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
    import resource

    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    if hard != resource.RLIM_INFINITY and needed + SPARE_FILES > hard:
        raise Trouble(f"{needed} connections need more open files than the {hard} that are allowed here (ulimit -n)")


# -- The server ----------------------------------------------------------------------------------------------------


@dataclass
class Server:
    """
    A server that listens.

    @ivar pid: its process, if that is known and on this machine.
    @ivar output: what it has logged, when it was started here and has been stopped.
    @ivar exitCode: how it ended then, as L{subprocess} says it.
    """

    host: str
    port: int
    pid: int | None
    output: bytes = b""
    exitCode: int | None = None

    def connect(self) -> socket.socket:
        """Return a new connection, which is nobody's yet."""
        connection = socket.create_connection((self.host, self.port), ANSWER_WITHIN)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return connection

    def register(self, userId: bytes) -> socket.socket:
        """
        Return a connection that is C{userId}'s.

        @raise Trouble: if the server does not want that.
        """
        connection = self.connect()
        connection.sendall(encodeFrame(MessageType.HEARTBEAT, userId))
        received = b""
        while more := connection.recv(65_536):
            received += more
            try:
                for messageType, about, _, _ in decodeFrames(received):
                    if messageType == MessageType.HEARTBEAT and about == userId:
                        return connection
                    raise Trouble(f"the server refused a registration: {received!r}")
            except WireError:
                raise Trouble(f"what answers at port {self.port} is no WeCompany server") from None
        raise Trouble("the server closed a connection that was to be registered")


def freePort() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


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
    )
)
"""The limits that one machine which stands for many people exceeds.  They are raised rather than turned off."""


@contextmanager
def startedServer(
    port: int = 0,
    cpu: int | None = None,
    options: Sequence[str] = RAISED,
    folder: Path | None = None,
    isAwaited: bool = True,
) -> Iterator[Server]:
    """
    Start a server as C{twistd} does, and stop it at the end, whatever happens; then its output is known.

    @param port: where it listens; 0 for a free port.
    @param cpu: the only CPU that it may use; C{None} for any.
    @param options: further ones.
    @param folder: where it runs and has its store; a temporary one if not given.
    @param isAwaited: whether it listens when this begins.
    @raise Trouble: if it does not start.
    """
    port = port or freePort()
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
    with tempfile.TemporaryFile() as log, tempfile.TemporaryDirectory(prefix="wecompany-bench-") as temporary:
        command += ["--rundir", str(folder or temporary)]
        command += ["wecompany", "--interface", "127.0.0.1", "--port", str(port), *options]
        # In a session of its own, so that a Ctrl-C is for us alone and the server is stopped in order.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        server = Server("127.0.0.1", port, process.pid)
        try:
            if cpu is not None:
                os.sched_setaffinity(process.pid, {cpu})
            if isAwaited and not _listens(server, process):
                log.seek(0)
                raise Trouble(f"the server did not start:\n{log.read().decode(errors='replace')}")
            yield server
            if process.poll() is not None:
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()
                raise Trouble("\n".join([f"the server ended with {process.returncode}:", *lines[-20:]]))
        finally:
            process.terminate()
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_WITHIN)
            finally:
                process.kill()
                server.exitCode = process.wait()
                log.seek(0)
                server.output = log.read()


def _listens(server: Server, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(ConnectionError):
            server.connect().close()
            # What answers could be somebody else's, if the port was taken meanwhile; then ours ends.
            return process.poll() is None
        time.sleep(0.05)
    return False


# -- The load ------------------------------------------------------------------------------------------------------


class Flow:
    """
    Texts from one user to another, some of them under way at any time.

    @ivar delivered: how many have arrived.
    @ivar latencies: nanoseconds between the sending of some texts and their arrival, and how many they were.
    """

    __slots__ = ("_expected", "_frames", "_partial", "_sender", "_sent", "_size", "delivered", "latencies", "receiver")

    def __init__(
        self, sender: socket.socket, fromId: bytes, receiver: socket.socket, toId: bytes, text: bytes, window: int
    ) -> None:
        """
        @param window: the most texts that are ever under way.
        """
        frame = encodeFrame(MessageType.TEXT, toId, text)
        self._sender = sender
        self._frames = memoryview(frame * window)
        self._size = len(frame)
        # One more, as what arrives may begin in the middle of a text.  Both IDs are of one length.
        self._expected = encodeFrame(MessageType.TEXT, fromId, text) * (window + 1)
        self._partial = 0
        self._sent: deque[tuple[int, int]] = deque()
        self.receiver = receiver
        self.delivered = 0
        self.latencies: list[tuple[int, int]] = []

    @property
    def underWay(self) -> int:
        """Return how many texts have been sent and have not arrived."""
        return sum(n for _, n in self._sent)

    def send(self, n: int) -> None:
        """Send C{n} texts.  This never blocks for long: the window is much less than what a socket takes."""
        self._sent.append((time.perf_counter_ns(), n))
        self._sender.sendall(self._frames[: n * self._size])

    def receive(self) -> int:
        """
        Take what has arrived.

        @return: how many texts that were.
        @raise Trouble: if it is something else.
        """
        data = self.receiver.recv(65_536)
        if not data or not self._expected.startswith(data, self._partial):
            raise Trouble(f"not the texts that were sent, but: {data[:200]!r}" if data else "a connection was closed")
        arrived, self._partial = divmod(self._partial + len(data), self._size)
        now = time.perf_counter_ns()
        left = arrived
        while left:
            at, n = self._sent.popleft()
            if n > left:
                self._sent.appendleft((at, n - left))
                n = left
            left -= n
            self.latencies.append((now - at, n))
        self.delivered += arrived
        return arrived


@dataclass(frozen=True)
class ShapeFigures:
    """
    What was measured under one shape of load.

    @ivar messagesPerSecond: texts delivered.
    @ivar cpuMicros: microseconds of the server's CPU for each of them; C{None} if its process is not known.
    @ivar p50Micros: microseconds from the sending to the arrival that half of the texts took at most.
    @ivar p99Micros: the same for 99 of 100 texts.
    @ivar lost: texts that never arrived.
    @ivar stealPercent: the share of the machine's time that its host took.
    """

    shape: str
    pairs: int
    bytesEach: int
    messages: int
    messagesPerSecond: float
    cpuMicros: float | None
    p50Micros: float
    p99Micros: float
    lost: int
    stealPercent: float


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
    """All that was measured."""

    server: str
    shapes: list[ShapeFigures] = field(default_factory=list)
    idle: IdleFigures | None = None


def newUserId() -> bytes:
    """Return a user ID that nobody has, always of the same length."""
    return b"bench-%010d-%06d" % (os.getpid(), next(_serial))


def percentile(latencies: Sequence[tuple[int, int]], share: float) -> float:
    """Return the microseconds that this share of the texts took at most; C{latencies} are sorted."""
    left = share * sum(n for _, n in latencies)
    for nanoseconds, n in latencies:
        left -= n
        if left <= 0:
            return round(nanoseconds / 1000, 1)
    return 0.0


def exchange(flows: Sequence[Flow], seconds: float) -> float:
    """
    Answer each text that arrives with the next one.

    @return: the seconds that this took.
    """
    began = time.perf_counter()
    until = began + seconds
    with select.epoll() as poll:
        byFile = {flow.receiver.fileno(): flow for flow in flows}
        for fileNumber, flow in byFile.items():
            flow.receiver.settimeout(None)  # a timeout would cost a system call each time
            poll.register(fileNumber, select.EPOLLIN)
        while (now := time.perf_counter()) < until:
            for fileNumber, _ in poll.poll(0.1):
                flow = byFile[fileNumber]
                arrived = flow.receive()
                if arrived:
                    flow.send(arrived)
    return now - began


def drain(flows: Sequence[Flow]) -> int:
    """Wait for the texts under way, and return how many of them never arrive."""
    for flow in flows:
        flow.receiver.settimeout(ANSWER_WITHIN)
        with suppress(TimeoutError):
            while flow.underWay:
                flow.receive()
    return sum(flow.underWay for flow in flows)


def measureShape(server: Server, shape: str, pairs: int, size: int, seconds: float) -> ShapeFigures:
    """
    Load the server with one shape.

    @param size: bytes of each text.
    @param seconds: how long to measure.
    """
    window = SHAPES[shape]
    with ExitStack() as connections:
        flows = []
        for _ in range(pairs):
            users = [newUserId(), newUserId()]
            ends = [connections.enter_context(server.register(userId)) for userId in users]
            for one, other in ((0, 1), (1, 0)):
                flows.append(Flow(ends[one], users[one], ends[other], users[other], b"x" * size, window))
        gc.disable()
        try:
            for flow in flows:
                flow.send(window)
            exchange(flows, min(WARM_UP, seconds))
            for flow in flows:
                flow.delivered = 0
                flow.latencies.clear()
            ticks = machineTicks()
            cpu = cpuSeconds(server.pid) if server.pid else 0.0
            took = exchange(flows, seconds)
            used = cpuSeconds(server.pid) - cpu if server.pid else None
            steal = stealPercent(ticks)
        finally:
            gc.enable()
        messages = sum(flow.delivered for flow in flows)
        latencies = sorted(latency for flow in flows for latency in flow.latencies)
        lost = drain(flows)
    if not messages:
        raise Trouble(f"nothing was delivered within {seconds:g} s")
    return ShapeFigures(
        shape=shape,
        pairs=pairs,
        bytesEach=size,
        messages=messages,
        messagesPerSecond=round(messages / took, 1),
        cpuMicros=None if used is None else round(used / messages * 1e6, 2),
        p50Micros=percentile(latencies, 0.5),
        p99Micros=percentile(latencies, 0.99),
        lost=lost,
        stealPercent=steal,
    )


def measureIdle(server: Server, n: int) -> IdleFigures:
    """Register C{n} connections and look at the server's memory before and after."""
    with ExitStack() as connections:
        before = memory(server.pid) if server.pid else 0
        for _ in range(n):
            connections.enter_context(server.register(newUserId()))
        time.sleep(SETTLE)
        return IdleFigures(n, round((memory(server.pid) - before) / n, 2) if server.pid else None)


# -- The command ---------------------------------------------------------------------------------------------------


def shown(value: float | None) -> str:
    """Return a figure as a table shows it."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def table(figures: Figures) -> str:
    """Return all figures for a person to read."""
    lines = [f"server: {figures.server}"]
    if figures.shapes:
        first = figures.shapes[0]
        lines += [f"load: texts of {first.bytesEach} bytes between {first.pairs} pairs of users, both ways", ""]
        lines.append(_row("shape", "messages/s", "CPU µs/message", "p50 µs", "p99 µs", "lost", "steal %"))
    for f in figures.shapes:
        values = map(shown, (f.messagesPerSecond, f.cpuMicros, f.p50Micros, f.p99Micros))
        lines.append(_row(f.shape, *values, str(f.lost), f"{f.stealPercent:.1f}"))
    if figures.idle is not None:
        each = figures.idle.kilobytesEach
        cost = "memory unknown: name the server's process with --pid" if each is None else f"{each:.2f} kB each"
        lines += ["", f"idle: {figures.idle.connections:,} registered connections, {cost}"]
    return "\n".join(lines)


def _row(name: str, *cells: str) -> str:
    return f"{name:<10}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def address(text: str) -> tuple[str, int]:
    """Return the host and the port of C{HOST:PORT}, as argparse wants it."""
    host, _, port = text.rpartition(":")
    if not host or not port.isdigit():
        raise argparse.ArgumentTypeError(f"{text!r} is not HOST:PORT")
    return host.strip("[]"), int(port)


def atLeast(least: int) -> Callable[[str], int]:
    """Return what argparse takes for a whole number of C{least} or more."""

    def whole(text: str) -> int:
        if not text.isdigit() or int(text) < least:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {least} or more")
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


def parseArguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="bench",
        description="Measure a WeCompany server: messages per second, CPU for each message, latency, and memory for "
        "each idle connection.  Without --connect it starts a server of its own on this machine, on the first CPU, and "
        "loads it from the second one.  Linux only.",
    )
    parser.add_argument(
        "--connect", metavar="HOST:PORT", type=address, help="load a server that runs already, instead of a new one"
    )
    parser.add_argument(
        "--pid", type=atLeast(1), help="with --connect: the server's process on this machine, for its CPU and memory"
    )
    parser.add_argument("--port", type=atLeast(0), default=0, help="where a new server listens (default: a free port)")
    parser.add_argument(
        "--shape",
        action="append",
        choices=list(SHAPES),
        help="how many texts are under way at once between two users, 1, 8 or 64; may be repeated (default: all)",
    )
    parser.add_argument("--pairs", type=atLeast(1), default=50, help="pairs of users that write (default: 50)")
    parser.add_argument("--size", type=atLeast(1), default=200, help="bytes of each text (default: 200)")
    parser.add_argument(
        "--seconds",
        type=positive,
        default=3.0,
        help="how long each shape is measured, after half a second of it (default: 3)",
    )
    parser.add_argument(
        "--idle", metavar="N", type=atLeast(0), default=5000, help="idle connections; 0 for none (default: 5000)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    asked = parser.parse_args(arguments)
    if asked.pid and not asked.connect:
        parser.error("--pid goes with --connect: the process of a new server is known")
    if asked.port and asked.connect:
        parser.error("--port is for a new server; --connect names the port itself")
    if asked.size > MAX_SIZE:
        parser.error(f"--size is {MAX_SIZE} at most")
    asked.shape = list(dict.fromkeys(asked.shape or SHAPES))
    return asked


def measure(asked: argparse.Namespace) -> Figures:
    """
    Measure what was asked for.

    @raise Trouble: if that does not go.
    """
    raiseOpenFiles(max(asked.idle, 2 * asked.pairs))
    if asked.connect:
        host, port = asked.connect
        figures = Figures(f"at {host}:{port}, which ran already")

        def server() -> AbstractContextManager[Server]:
            return nullcontext(Server(host, port, asked.pid))

    else:
        cpus: list[int | None] = [*sorted(os.sched_getaffinity(0))]
        serverCpu, loadCpu = cpus[:2] if len(cpus) > 1 else (None, None)
        figures = Figures(f"twistd wecompany on CPU {serverCpu}, the load on CPU {loadCpu}")
        if loadCpu is None:
            figures.server = "twistd wecompany on the same CPU as the load, as there is only one"
        else:
            os.sched_setaffinity(0, {loadCpu})

        def server() -> AbstractContextManager[Server]:
            return startedServer(asked.port, serverCpu)

    if asked.idle:
        # First and in a server of its own: one that has worked has memory to give to connections already.
        say(f"idle: {asked.idle:,} connections")
        with server() as running:
            figures.idle = measureIdle(running, asked.idle)
    with server() as running:
        for shape in asked.shape:
            say(f"{shape}: {asked.pairs} pairs, {asked.seconds:g} s")
            figures.shapes.append(measureShape(running, shape, asked.pairs, asked.size, asked.seconds))
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
        say("bench: this runs on Linux only: it needs epoll, and /proc for CPU times and memory")
        return 1
    signal.signal(signal.SIGTERM, _stop)
    try:
        figures = measure(asked)
    except (Trouble, OSError) as e:
        say(f"bench: {e}")
        return 1
    except KeyboardInterrupt:
        say("bench: stopped")
        return 130
    print(json.dumps(asdict(figures)) if asked.json else table(figures))
    steal = max((f.stealPercent for f in figures.shapes), default=0.0)
    if steal > MUCH_STEAL:
        say(f"warning: the host took {steal:g} % of this machine's time: measure again when it is quieter")
    return 0


if __name__ == "__main__":
    sys.exit(main())
