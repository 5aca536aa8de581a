"""
The same work on this server and on its peers, side by side, so that ratios come from one run.

::

    python -m benchmarks.peers                                all peers that are installed, five runs, a table
    python -m benchmarks.peers --peer wecompany --shape sparse --runs 1
    python -m benchmarks.peers --growth                       how the cost grows with the number of connections
    python -m benchmarks.peers --write                        besides, benchmarks/RESULTS.rst and benchmarks/latency.png

The server under test has the first CPU, the load the second one.  C{floor} is benchmarks/relay.c, which does what a
relay must and nothing else.  The others are what Debian calls nats-server, mosquitto, redis-server and ngircd; each is
started with a configuration of its own on a free port of the loopback, and skipped where it is not installed.  In each
run all of them have their turn; a measurement in which the host took more than 3 % of the machine's time is dropped.  A
figure is the median of those that are left, a ratio the median of the ratios to C{floor} in the same run.

It runs on Linux.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import re
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import tempfile
import textwrap
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, field
from ipaddress import ip_address
from pathlib import Path
from statistics import median

import twisted
from benchmarks.bench import Server, freePort, started, startedServer, stopInOrder, twoCPUs
from wecompany.cli.bench import LADDER, addLoadOptions, askedOf, atLeast, parseShape, plotLatency, shown
from wecompany.cli.load import MUCH_STEAL, Asked, Progress, Shape, ShapeFigures, measureShape
from wecompany.cli.running import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, Problem, say
from wecompany.cli.target import CHUNK, RAISED, Connection, Loop, Trouble

FOLDER = Path(__file__).parent

SHAPES = ("sparse", "window:8", "window:64", "calls:200", "calls:800")
"""What is measured, if nothing is said."""

GROWTH = (100, 1_000, 10_000)
"""Connections of the servers whose growth is measured."""

FLOOR = "floor"
"""What all others are compared with."""


class Peer(Server):
    """A server that takes messages in its own way, and has neither calls nor accounts."""

    def userId(self, index: int) -> bytes:
        """See L{wecompany.cli.target.Target.userId}: short, as on IRC."""
        return b"u%06d" % index

    def media(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """See L{wecompany.cli.target.Target.media}: a message as any other."""
        return self.texts(sender, receiver, data)

    def call(self, loop: Loop, caller: Connection, callee: Connection) -> None:
        """See L{wecompany.cli.target.Target.call}: there is nothing to agree on."""

    def _until(self, connection: socket.socket, end: re.Pattern[bytes]) -> re.Match[bytes]:
        received = b""
        while more := connection.recv(CHUNK):
            received += more
            if found := end.search(received):
                return found
        raise Trouble(f"a connection was closed, after {received[:200]!r}")


class Floor(Peer):
    """benchmarks/relay.c, which takes the same frames as we do."""

    def media(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """See L{wecompany.cli.target.Target.media}."""
        return Server.media(self, sender, receiver, data)


class Nats(Peer):
    """nats-server: each user has a subject."""

    def begin(self, connection: socket.socket, userId: bytes, credential: bytes = b"") -> None:
        """See L{wecompany.cli.target.Target.begin}."""
        options = b'{"verbose":false,"pedantic":false,"echo":false}'
        connection.sendall(b"CONNECT %b\r\nSUB %b 1\r\nPING\r\n" % (options, userId))

    def finish(self, connection: socket.socket, userId: bytes) -> None:
        """See L{wecompany.cli.target.Target.finish}."""
        self._until(connection, re.compile(rb"PONG\r\n"))

    def texts(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """See L{wecompany.cli.target.Target.texts}."""
        rest = b" %d\r\n%b\r\n" % (len(data), data)
        return b"PUB " + receiver + rest, b"MSG " + receiver + b" 1" + rest


class Redis(Peer):
    """redis-server: each user has a channel; in its third protocol a connection may publish and subscribe."""

    def begin(self, connection: socket.socket, userId: bytes, credential: bytes = b"") -> None:
        """See L{wecompany.cli.target.Target.begin}."""
        for words in ((b"HELLO", b"3"), (b"SUBSCRIBE", userId), (b"CLIENT", b"REPLY", b"OFF")):
            connection.sendall(self._words(b"*", *words))

    def finish(self, connection: socket.socket, userId: bytes) -> None:
        """See L{wecompany.cli.target.Target.finish}."""
        self._until(connection, re.compile(re.escape(userId) + rb"\r\n:1\r\n"))

    def texts(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """See L{wecompany.cli.target.Target.texts}."""
        return self._words(b"*", b"PUBLISH", receiver, data), self._words(b">", b"message", receiver, data)

    def _words(self, kind: bytes, *words: bytes) -> bytes:
        return b"%b%d\r\n" % (kind, len(words)) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


class Mosquitto(Peer):
    """mosquitto: each user has a topic, at quality of service 0."""

    def begin(self, connection: socket.socket, userId: bytes, credential: bytes = b"") -> None:
        """See L{wecompany.cli.target.Target.begin}."""
        name = self._name(userId)
        connection.sendall(
            self._packet(0x10, self._name(b"MQTT") + b"\4\2\0\0" + name) + self._packet(0x82, b"\0\1" + name + b"\0")
        )

    def finish(self, connection: socket.socket, userId: bytes) -> None:
        """See L{wecompany.cli.target.Target.finish}."""
        self._until(connection, re.compile(re.escape(b"\x20\2\0\0\x90\3\0\1\0")))

    def texts(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """See L{wecompany.cli.target.Target.texts}."""
        packet = self._packet(0x30, self._name(receiver) + data)
        return packet, packet

    def _name(self, name: bytes) -> bytes:
        return struct.pack(">H", len(name)) + name

    def _packet(self, kind: int, body: bytes) -> bytes:
        length, head = len(body), bytearray([kind])
        while length > 127:
            head.append(length & 127 | 128)
            length >>= 7
        return bytes(head) + bytes([length]) + body


class Ngircd(Peer):
    """ngircd: users write to each other by their nicknames."""

    atOnce = 5  # so many may wait to be accepted; the next one would try again a second later

    def begin(self, connection: socket.socket, userId: bytes, credential: bytes = b"") -> None:
        """See L{wecompany.cli.target.Target.begin}."""
        connection.sendall(b"NICK %b\r\nUSER %b 0 * :x\r\n" % (userId, userId))

    def finish(self, connection: socket.socket, userId: bytes) -> None:
        """See L{wecompany.cli.target.Target.finish}: 376 and 422 end the greeting."""
        self._until(connection, re.compile(rb" (376|422) [^\n]*\n"))

    def texts(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """See L{wecompany.cli.target.Target.texts}."""
        message = b"PRIVMSG %b :%b\r\n" % (receiver, data)
        return message, b":%b!~%b@%b " % (sender, sender, self.host.encode()) + message


# -- How they are started ------------------------------------------------------------------------------------------

Starting = Callable[["int | None", Path], AbstractContextManager[Server]]
"""Starts a server on that CPU, with a folder for its files."""


class Missing(Exception):
    """It is not installed; the text says what is missing."""


def _found(program: str) -> str:
    path = shutil.which(program, path=f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/usr/local/sbin")
    if path is None:
        raise Missing(f"{program} is not installed")
    return path


@contextmanager
def startFloor(cpu: int | None, folder: Path) -> Iterator[Server]:
    """Compile and start the bare relay."""
    program = folder / "relay"
    subprocess.run([_found("cc"), "-O2", "-o", program, FOLDER / "relay.c"], check=True)
    port = freePort()
    with started([str(program), str(port)], Floor("127.0.0.1", port), cpu) as server:
        yield server


def _ours(*options: str) -> Starting:
    @contextmanager
    def start(cpu: int | None, folder: Path) -> Iterator[Server]:
        with startedServer(0, cpu, (*RAISED, "--broadcast", *options), folder) as server:
            yield server

    return start


@contextmanager
def startWithTLS(cpu: int | None, folder: Path) -> Iterator[Server]:
    """Start this server with a certificate that is good for this run."""
    pem = folder / "server.pem"
    pem.write_bytes(certificateFor("127.0.0.1"))
    with startedServer(0, cpu, (*RAISED, "--broadcast", f"--tls={pem}"), folder) as server:
        server.tls = ssl.create_default_context(cafile=str(pem))
        yield server


def certificateFor(address: str) -> bytes:
    """
    Return a certificate that nobody but itself has signed, and its key, in PEM.

    @raise Missing: if that needs a package that is not there.
    """
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError:
        raise Missing('the package cryptography is missing: pip install "wecompany[tls]"') from None
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, address)])
    now, day = datetime.datetime.now(datetime.timezone.utc), datetime.timedelta(days=1)
    builder = x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number(), now - day, now + day)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.IPAddress(ip_address(address))]), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM) + key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _peer(make: type[Peer], program: str, arguments: str, configuration: str = "", **environment: str) -> Starting:
    """
    Return what starts a peer.

    @param arguments: its command line, where C{{port}} and C{{file}} (of its configuration) are filled in.
    """

    @contextmanager
    def start(cpu: int | None, folder: Path) -> Iterator[Server]:
        port, file = freePort(), folder / "configuration"
        file.write_text(configuration.format(port=port))
        words = arguments.format(port=port, file=file).split()
        command = ["env", *(f"{name}={value}" for name, value in environment.items()), _found(program), *words]
        with started(command, make("127.0.0.1", port), cpu) as server:
            yield server

    return start


_MOSQUITTO = """
listener {port} 127.0.0.1
allow_anonymous true
set_tcp_nodelay true
max_queued_messages 100000
max_inflight_messages 0
persistence false
log_dest none
user root
"""

_NGIRCD = """
[Global]
Name = bench.example.net
Info = a benchmark
Listen = 127.0.0.1
Ports = {port}
MotdPhrase = welcome

[Limits]
MaxConnections = 0
MaxConnectionsIP = 0
MaxPenaltyTime = 0
PingTimeout = 300

[Options]
DNS = no
Ident = no
PAM = no
"""

PEERS: dict[str, Starting] = {
    FLOOR: startFloor,
    "wecompany": _ours(),
    "wecompany --plain": _ours("--plain"),
    "wecompany --tls": startWithTLS,
    "nats-server": _peer(Nats, "nats-server", "-a 127.0.0.1 -p {port}", GOMAXPROCS="1"),
    "mosquitto": _peer(Mosquitto, "mosquitto", "-c {file}", _MOSQUITTO),
    "redis-server": _peer(Redis, "redis-server", "--bind 127.0.0.1 --port {port} --save --appendonly no"),
    "ngircd": _peer(Ngircd, "ngircd", "-n -f {file}", _NGIRCD),
}
"""All servers that are compared, and how each is started."""

_VERSIONS = {"nats-server": "--version", "mosquitto": "-h", "redis-server": "--version", "ngircd": "--version"}


def versionOf(program: str) -> str:
    """Return the program with its version, as far as it tells that."""
    if program not in _VERSIONS:
        return program
    done = subprocess.run([_found(program), _VERSIONS[program]], capture_output=True, text=True, check=False)
    found = re.search(r"\d+\.[\d.]*\d|-\d+", done.stdout + done.stderr)
    return f"{program} {found[0].strip('-')}" if found else program


# -- The runs ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Measured:
    """
    One measurement.

    @ivar run: which of the runs; ratios are made within one.
    @ivar isKept: whether the host left the machine alone meanwhile.
    """

    run: int
    peer: str
    figures: ShapeFigures

    @property
    def isKept(self) -> bool:
        """Return whether the host left the machine alone meanwhile."""
        return self.figures.stealPercent <= MUCH_STEAL


@dataclass(frozen=True)
class Summary:
    """
    The medians of one peer under one shape.

    @ivar runs: of how many runs.
    @ivar dropped: how many runs were left out, as the host took too much.
    @ivar cpuMicros: microseconds of the server's CPU for each message delivered.
    @ivar ratio: the median of these by those of the floor in the same run; C{None} if there is none.
    @ivar lost: in all runs together.
    """

    peer: str
    shape: str
    runs: int
    dropped: int
    cpuMicros: float
    ratio: float | None
    messagesPerSecond: float
    p50Micros: float
    p99Micros: float
    lost: int


@dataclass
class Results:
    """
    All that was measured.

    @ivar machine: what it was measured on.
    @ivar skipped: which peers were not measured, and why.
    @ivar ladder: measurements of paced loads, for the plot.
    """

    machine: str
    all: list[Measured] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)
    ladder: list[Measured] = field(default_factory=list)

    def summaries(self) -> list[Summary]:
        """Return the medians, shape by shape."""
        groups: dict[tuple[str, str], list[Measured]] = defaultdict(list)
        for measured in self.all:
            groups[measured.figures.shape, measured.peer].append(measured)
        floors = {(m.run, m.figures.shape): _cpu(m) for m in self.all if m.peer == FLOOR and m.isKept}
        summaries = []
        for (shape, peer), group in sorted(groups.items(), key=lambda item: list(groups).index(item[0])):
            kept = [m for m in group if m.isKept]
            if not kept:
                continue
            ratios = [_cpu(m) / floor for m in kept if (floor := floors.get((m.run, shape)))]
            summaries.append(
                Summary(
                    peer=peer,
                    shape=shape,
                    runs=len(kept),
                    dropped=len(group) - len(kept),
                    cpuMicros=round(median(map(_cpu, kept)), 2),
                    ratio=round(median(ratios), 2) if ratios else None,
                    messagesPerSecond=round(median(m.figures.messagesPerSecond for m in kept)),
                    p50Micros=median(m.figures.p50Micros for m in kept),
                    p99Micros=median(m.figures.p99Micros for m in kept),
                    lost=sum(m.figures.lost for m in kept),
                )
            )
        return summaries


def _cpu(measured: Measured) -> float:
    assert measured.figures.cpuMicros is not None
    return measured.figures.cpuMicros


def machine() -> str:
    """Return the CPU, how many there are, and what runs on it."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return (
        f"{model[1] if model else platform.machine()}, {os.cpu_count()} CPUs, Linux "
        f"{platform.release().partition('-')[0]}, Python {platform.python_version()}, Twisted {twisted.__version__}"
    )


def runOne(
    run: int,
    peer: str,
    shapes: Iterable[Shape],
    asked: Asked,
    cpu: int | None,
    progress: Progress,
    kept: list[Measured],
) -> None:
    """
    Start a peer, and measure it under all shapes.

    @param kept: where the measurements go, one by one.
    @raise Missing: if it is not installed.
    @raise Trouble: if it does not start.
    """
    with tempfile.TemporaryDirectory(prefix="wecompany-peers-") as folder, PEERS[peer](cpu, Path(folder)) as server:
        for shape in shapes:
            progress.shape(f"{peer}, {shape}")
            try:
                figures, isStopped = measureShape(server, shape, asked, progress)
            except (Trouble, OSError) as e:
                progress.clear()
                say(f"run {run}, {peer}, {shape}: {e}")
                continue
            progress.clear()
            kept.append(Measured(run, peer, figures))
            say(
                f"run {run}, {peer}, {shape}: {shown(figures.cpuMicros)} µs, p99 {shown(figures.p99Micros)} µs, "
                f"steal {figures.stealPercent:g} %{'' if kept[-1].isKept else ': dropped'}"
            )
            for note in figures.notes:
                say(f"   {note}")
            if isStopped:
                raise KeyboardInterrupt


def runAll(
    peers: Sequence[str], shapes: Sequence[Shape], asked: Asked, runs: int, results: Results, isLadder: bool = False
) -> None:
    """
    Measure each peer in each run.

    @param isLadder: whether this is for the plot.
    """
    cpu, _ = twoCPUs()
    with pinned():
        for run in range(1, runs + 1):
            for peer in peers:
                if peer in results.skipped:
                    continue
                try:
                    target = results.ladder if isLadder else results.all
                    runOne(run, peer, shapes, asked, cpu, Progress(sys.stderr, isBrief=True), target)
                except (Missing, Trouble) as e:
                    results.skipped[peer] = str(e)
                    say(f"{peer} is left out: {e}")


@contextmanager
def pinned() -> Iterator[None]:
    """Keep the load on its CPU."""
    before = os.sched_getaffinity(0)
    _, cpu = twoCPUs()
    if cpu is not None:
        os.sched_setaffinity(0, {cpu})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


# -- What is shown -------------------------------------------------------------------------------------------------


def table(summaries: Sequence[Summary]) -> str:
    """Return the medians for a person to read."""
    lines = []
    for shape in dict.fromkeys(s.shape for s in summaries):
        heads = ("CPU µs each", "× floor", "messages/s", "p50 µs", "p99 µs", "lost", "runs")
        lines += ["", f"{shape:<20}" + "".join(f"{head:>12}" for head in heads)]
        for s in summaries:
            if s.shape == shape:
                ratio = "-" if s.ratio is None else f"{s.ratio:.2f}"
                cells = (f"{s.cpuMicros:.2f}", ratio, *map(shown, (s.messagesPerSecond, s.p50Micros, s.p99Micros)))
                runs = f"{s.runs}" + (f" (-{s.dropped})" if s.dropped else "")
                lines.append(f"{s.peer:<20}" + "".join(f"{cell:>12}" for cell in (*cells, f"{s.lost:,}", runs)))
    return "\n".join(lines)


@dataclass(frozen=True)
class Growth:
    """
    How the cost of one peer grows.

    @ivar costs: for each number of connections the microseconds of CPU for a message.
    @ivar spread: by how much per cent the highest of them is above the lowest.
    @ivar ratioSpread: the same of the ratios to the floor, whose cost is the kernel's; C{None} if there is none.
    """

    peer: str
    name: str
    costs: dict[int, float]
    spread: float
    ratioSpread: float | None


def growth(summaries: Sequence[Summary]) -> list[Growth]:
    """Return how the cost of each peer and kind of shape grows."""
    groups: dict[tuple[str, str], list[Summary]] = defaultdict(list)
    for s in summaries:
        name, _, number = s.shape.partition(":")
        if name in ("turns", "broadcast") and int(number) in GROWTH:
            groups[s.peer, name].append(s)
    found = []
    for (peer, name), group in groups.items():
        costs = {int(s.shape.partition(":")[2]): s.cpuMicros for s in group}
        ratios = [s.ratio for s in group if s.ratio and peer != FLOOR]
        found.append(Growth(peer, name, costs, _spread(costs.values()), _spread(ratios) if ratios else None))
    return found


def _spread(values: Iterable[float]) -> float:
    some = list(values)
    return round(100 * (max(some) / min(some) - 1), 1)


def _grown(g: Growth) -> list[str]:
    costs = [f"{g.costs[n]:.2f}" if n in g.costs else "–" for n in GROWTH]
    return [*costs, f"{g.spread:.1f} %", "–" if g.ratioSpread is None else f"{g.ratioSpread:.1f} %"]


def growthText(summaries: Sequence[Summary]) -> str:
    """Return L{growth} for a person to read."""
    heads = (*(f"{n:,}" for n in GROWTH), "spread", "of × floor")
    lines = ["", f"{'CPU µs each, connections:':<34}" + "".join(f"{head:>12}" for head in heads)]
    for g in growth(summaries):
        lines.append(f"{f'{g.peer}, {g.name}':<34}" + "".join(f"{cell:>12}" for cell in _grown(g)))
    return "\n".join(lines)


def _listTable(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [".. list-table::", "   :header-rows: 1", ""]
    for row in (head, *rows):
        lines += [f"   {'* -' if index == 0 else '  -'} {cell}" for index, cell in enumerate(row)]
    return "\n".join(lines) + "\n"


def _wrapped(part: str) -> str:
    """Return a paragraph in lines that are not too long; what has lines already stays as it is."""
    if "\n" in part.strip():
        return part
    return textwrap.fill(part, 120, break_on_hyphens=False, break_long_words=False) + "\n"


def resultsText(results: Results, seconds: float, isPreliminary: bool, hasPlot: bool) -> str:
    """
    Return what benchmarks/RESULTS.rst says.

    @param seconds: how long each measurement was.
    @param isPreliminary: whether that was too little to rely on.
    """
    summaries = results.summaries()
    shapes = list(dict.fromkeys(s.shape for s in summaries if not s.shape.startswith(("turns:", "broadcast:"))))
    peers = list(dict.fromkeys(s.peer for s in summaries))
    found = {(s.peer, s.shape): s for s in summaries}
    names = {peer: versionOf(peer) for peer in peers}

    def rows(cell: Callable[[Summary], str], some: Sequence[str]) -> Iterator[list[str]]:
        for peer in peers:
            if any((peer, shape) in found for shape in some):
                yield [
                    names[peer],
                    *(cell(found[peer, shape]) if (peer, shape) in found else "–" for shape in some),
                ]

    def cost(s: Summary) -> str:
        return f"{s.cpuMicros:.2f}" + ("" if s.ratio is None else f" ({s.ratio:.2f})")

    parts = [
        "Results\n=======\n",
        ".. This file is written by ``python -m benchmarks.peers --write``.\n",
    ]
    if isPreliminary:
        parts.append("**Preliminary**: from a short run on a busy machine, only to show what is measured.\n")
    runs = max((s.runs + s.dropped for s in summaries), default=0)
    parts += [
        f"Measured on {results.machine}. The server had one CPU, the load the other one. Medians of {runs} "
        f"run{'s' * (runs != 1)} of {seconds:g} s each, all servers in turn; ``README.rst`` says what the shapes are, "
        "and how to measure them again.\n",
        "CPU for each message\n--------------------\n",
        "Microseconds of the server's CPU, user and system, for each message delivered, and in brackets as a multiple "
        "of what the bare relay ``relay.c`` takes in the same run.\n",
        _listTable(["server", *shapes], rows(cost, shapes)),
    ]
    paced = [shape for shape in shapes if shape.startswith("calls:")]
    if paced:
        parts += [
            "Latency of calls\n----------------\n",
            "Milliseconds from the time at which a piece of audio had to be sent to its arrival, p50 / p99, and how "
            "many were lost. Peers that have no calls get the same messages at the same times.\n",
            _listTable(
                ["server", *paced],
                rows(lambda s: f"{s.p50Micros / 1000:.2f} / {s.p99Micros / 1000:.2f}; {s.lost:,} lost", paced),
            ),
        ]
    if hasPlot:
        parts.append(".. image:: latency.png\n   :alt: latency against load, in one run\n")
    if grown := growth(summaries):
        parts += [
            "How cost grows\n--------------\n",
            "Microseconds of the server's CPU for each message delivered, by the number of connections, and how far "
            "the highest is above the lowest. In ``turns`` 100 texts are under way in all, however many users there "
            "are.\n",
            _listTable(
                ["server", "shape", *(f"{n:,}" for n in GROWTH), "spread", "spread of the multiple"],
                ([g.peer, g.name, *_grown(g)] for g in grown),
            ),
        ]
    if results.skipped:
        parts.append("Left out: " + "; ".join(f"{peer} ({why})" for peer, why in results.skipped.items()) + ".\n")
    return "\n".join(map(_wrapped, parts))


# -- The command ---------------------------------------------------------------------------------------------------


def parseArguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.peers",
        description="Measure this server and its peers side by side: the server on the first CPU, the load on the "
        "second one. Linux only.",
        epilog="Peers: "
        + ", ".join(PEERS)
        + ". Debian's packages are nats-server mosquitto redis-server ngircd; floor "
        "needs cc. Shapes: wecompany bench --help lists them.",
    )
    parser.add_argument(
        "--peer", dest="peers", action="append", choices=list(PEERS), metavar="NAME", help="repeatable [default: all]"
    )
    parser.add_argument("--runs", type=atLeast(1), default=5, help="how often all is measured in turn [default: 5]")
    addLoadOptions(parser, SHAPES)
    parser.add_argument(
        "--growth",
        action="store_true",
        help=f"measure how the cost of floor and wecompany grows with {', '.join(map(str, GROWTH))} connections",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="keep all figures in this file")
    parser.add_argument(
        "--write", action="store_true", help="write RESULTS.rst and, from a ladder of calls, latency.png"
    )
    parser.add_argument(
        "--into", type=Path, default=FOLDER, metavar="DIR", help="where --write writes [default: benchmarks]"
    )
    parser.add_argument("--preliminary", action="store_true", help="with --write: say that the figures are so")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    @return: its exit code: 0; 1 if something went wrong; 130 after a Ctrl-C, when what was measured is shown.
    """
    asked = parseArguments(arguments)
    if not sys.platform.startswith("linux"):
        say("peers: this runs on Linux only: it reads CPU times from /proc")
        return EXIT_FAILED
    stopInOrder()
    peers = list(dict.fromkeys(asked.peers or PEERS))
    shapes = list(dict.fromkeys(asked.shapes or ([] if asked.growth and not asked.write else map(parseShape, SHAPES))))
    how = askedOf(asked)
    results = Results(machine())
    code = EXIT_OK
    try:
        if shapes:
            runAll(peers, shapes, how, asked.runs, results)
        if asked.growth:
            grown = [Shape(name, n) for name in ("turns", "broadcast") for n in GROWTH]
            runAll([peer for peer in (FLOOR, "wecompany") if peer in peers], grown, how, asked.runs, results)
        if asked.write:
            ladder = [shape for shape in shapes if shape.name == "calls"] if asked.preliminary else None
            runAll(peers, ladder or [Shape("calls", n) for n in LADDER], how, 1, results, isLadder=True)
    except KeyboardInterrupt:
        say("peers: stopped; this was measured until then")
        code = EXIT_INTERRUPTED
    summaries = results.summaries()
    print(results.machine)
    if summaries:
        print(table(summaries))
    if asked.growth:
        print(growthText(summaries))
    try:
        if asked.json:
            whole = asdict(results) | {"summaries": [asdict(s) for s in summaries]}
            asked.json.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
        if asked.write and code == EXIT_OK:
            write(results, asked.into, how.seconds, asked.preliminary)
    except (OSError, Problem) as e:
        say(f"peers: {e}")
        return EXIT_FAILED
    return code if summaries or code else EXIT_FAILED


def write(results: Results, folder: Path, seconds: float, isPreliminary: bool) -> None:
    """
    Write RESULTS.rst and latency.png.

    @raise Problem: if there is nothing to draw the plot with.
    """
    series: dict[str, list[ShapeFigures]] = defaultdict(list)
    for measured in results.ladder:
        if measured.isKept:
            series[measured.peer].append(measured.figures)
    if series:
        plotLatency(series, folder / "latency.png")
    (folder / "RESULTS.rst").write_text(resultsText(results, seconds, isPreliminary, bool(series)), encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
