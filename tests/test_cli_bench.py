"""C{wecompany bench}: what it takes, what it counts, what it says, and every shape of load against a real server."""

from __future__ import annotations

import argparse
import contextlib
import errno
import io
import json
import os
import select
import socket
import ssl
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import mock

from cryptography import x509
from hypothesis import given
from hypothesis import strategies as st
from twisted.python.runtime import platform
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests import temporaryFolder
from tests.processes import INTERRUPT, Process, freePort, startServer
from tests.test_tls import keyOf, makeCertificate
from wecompany.cli import bench, main
from wecompany.cli.bench import DEFAULT_SHAPES, LADDER, atLeast, parseShape, plotLatency, positive, table
from wecompany.cli.load import (
    KINDS,
    SPARE_FILES,
    STAMP,
    TEXT_LIMIT,
    WINDOWS_SOCKETS,
    Asked,
    Calls,
    Figures,
    Flow,
    IdleFigures,
    Load,
    PacedFlow,
    Progress,
    Shape,
    ShapeFigures,
    Tally,
    Windows,
    cpuSeconds,
    machineTicks,
    measure,
    measureShape,
    memory,
    percentile,
    raiseOpenFiles,
    stealPercent,
)
from wecompany.cli.running import Problem
from wecompany.cli.target import (
    HINT,
    RAISED,
    SLICE,
    Connection,
    Loop,
    SelectorLoop,
    Target,
    Trouble,
    Unreachable,
    explained,
    makeLoop,
)
from wecompany.limits import DEFAULTS
from wecompany.wire import ErrorCode, MessageType, RejectCode, decodeFrames, encodeError, encodeFrame

ALL = ("sparse", "window:3", "turns:6", "calls:2", "fan-in:3", "broadcast:3", "idle:4", "logins:2")


def figuresOf(shape: str = "sparse", **changes: Any) -> ShapeFigures:
    """Return some figures."""
    values = {"cpuMicros": 9.87, "p50Micros": 50.0, "p99Micros": 1234.5, "p999Micros": 2000.0, "maxMicros": 3000.0}
    values |= {"connections": 100, "bytesEach": 200, "messages": 30, "messagesPerSecond": 12345.6, "lost": 0}
    return ShapeFigures(shape=shape, **(values | {"stealPercent": 0.0} | changes))


class BenchTestCase(SynchronousTestCase):
    """Runs the command in this process, so that what it does is seen."""

    def bench(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Return its exit code and what it has printed on both outputs."""
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            try:
                code = main(["bench", *map(str, arguments)])
            except SystemExit as e:
                code = int(e.code or 0)
        return code, out.getvalue(), err.getvalue()

    def server(self, *options: str) -> tuple[str, Process]:
        """Return where a server is, and its process."""
        port = freePort()
        process = startServer(port, *options)
        self.addCleanup(process.end)
        return f"127.0.0.1:{port}", process


class ArgumentTests(BenchTestCase):
    """What can be typed."""

    def test_shapes(self) -> None:
        """A shape has a name that is known, and a number where it takes one, from 1 on."""
        self.assertEqual(parseShape("sparse"), Shape("sparse", None))
        self.assertEqual(parseShape("window"), Shape("window", 8))
        for text in ("window:1", "window:64", "calls:100000"):
            self.assertEqual(str(parseShape(text)), text)
        for text in ("", "dense", "sparse:1", "window:0", "window:65", "calls:100001", "calls:", "calls:x", "calls:²"):
            with self.assertRaises(argparse.ArgumentTypeError, msg=text):
                parseShape(text)

    def test_numbers(self) -> None:
        """Numbers have bounds, and what is none is not taken."""
        self.assertEqual([atLeast(1)("1"), positive("0.5")], [1, 0.5])
        for convert, text in (
            (atLeast(1), "0"),
            (atLeast(1), "x"),
            (positive, "0"),
            (positive, "x"),
            (positive, "nan"),
        ):
            with self.assertRaises(argparse.ArgumentTypeError, msg=text):
                convert(text)

    def test_wrongUsage(self) -> None:
        """What cannot be meant is refused in a line that names it, before anything is loaded."""
        for arguments, named in (
            (("::1",), "brackets"),
            (("host:0",), "HOST:PORT"),
            (("--shape", "dense"), "dense"),
            (("--seconds", "61"), "60 s at most"),
            (("--seconds", "0"), "number of seconds"),
            (("--size", "16385"), "16384"),
            (("--pairs", "0"), "from 1 to"),
            (("--plot", "x.txt"), ".png"),
            (("--plot", "/nowhere/x.png"), "no such folder"),
            (("--pid", "0"), "1 or more"),
            (("--pid", "999999999"), "no process"),
            (("--ca", "/nowhere"), "No such file"),
            (("--users", "/nowhere"), "No such file"),
        ):
            code, out, err = self.bench("127.0.0.1:1", *arguments) if arguments[0][0] == "-" else self.bench(*arguments)
            self.assertEqual((code, out), (2, ""), arguments)
            self.assertIn(named, err)

    def test_help(self) -> None:
        """The help fits into 80 columns, lists all shapes, and how to start a server whose limits are high enough."""
        with mock.patch.dict(os.environ, COLUMNS="80"):
            code, out, _ = self.bench("--help")
        self.assertEqual(code, 0)
        for name in (*KINDS, *RAISED, "Exit codes"):
            self.assertIn(name, out)
        self.assertLess(max(map(len, out.splitlines())), 80)

    def test_raisedLimitsExist(self) -> None:
        """Every limit that is to be raised is one that the server has, and the text limit is what the server's is."""
        limits = {limit.name: limit for limit in DEFAULTS}
        self.assertEqual([r for r in RAISED if r.removeprefix("--limit=").partition("=")[0] not in limits], [])
        self.assertEqual(limits["text"].value, TEXT_LIMIT)

    def test_users(self) -> None:
        """A file of users has an ID, a tab and a password in each line; what is wrong is told with its line."""
        path = temporaryFolder(self) / "users"
        path.write_bytes(b"ann\tsecret one\nbob\ttoken\n")
        self.assertEqual(bench._usersIn(path), [(b"ann", b"secret one"), (b"bob", b"token")])
        for text, named in ((b"ann\tx\n\tx\n", "line 2"), (b"ann\tx\nann\ty\n", "twice"), (b"", "nobody")):
            path.write_bytes(text)
            with self.assertRaisesRegex(Problem, named):
                bench._usersIn(path)

    def test_defaultShapes(self) -> None:
        """Without a shape a few are measured, with a plot the ladder; a plot of calls that were asked for has these."""

        def shapes(*arguments: str) -> list[str]:
            options = SimpleNamespace(plot=None, shapes=None)
            for argument in arguments:
                if argument == "plot":
                    options.plot = Path("x.png")
                else:
                    options.shapes = [*(options.shapes or ()), parseShape(argument)]
            return [str(shape) for shape in bench._shapesOf(options)]  # type: ignore[arg-type]

        self.assertEqual(shapes(), list(DEFAULT_SHAPES))
        self.assertEqual(shapes("sparse", "calls", "sparse"), ["sparse", "calls:200"])
        self.assertEqual(shapes("plot"), [f"calls:{n}" for n in LADDER])
        self.assertEqual(shapes("plot", "sparse", "calls:3"), ["sparse", "calls:3"])


class CountingTests(SynchronousTestCase):
    """What is made of what was counted."""

    def test_percentiles(self) -> None:
        """The share of messages that took at most so long, however many took the same time."""
        latencies = [(1_000, 98), (20_000, 1), (300_000, 1)]
        for share, expected in ((0.5, 1.0), (0.98, 1.0), (0.981, 20.0), (0.99, 20.0), (0.999, 300.0), (1, 300.0)):
            self.assertEqual(percentile(latencies, share), expected, share)
        self.assertEqual(percentile([], 0.5), 0.0)

    def test_tally(self) -> None:
        """Latencies come sorted and added up to a tenth of a microsecond, and a reset forgets all."""
        tally = Tally()
        for nanoseconds, n in ((250, 2), (120, 1), (199, 3)):
            tally.add(nanoseconds, n)
        self.assertEqual((tally.delivered, tally.latencies()), (6, [(100, 4), (200, 2)]))
        tally.reset()
        self.assertEqual((tally.delivered, tally.latencies()), (0, []))

    def test_steal(self) -> None:
        """Where /proc/stat does not exist no steal is known; a time that has not passed has none."""
        with mock.patch.object(Path, "read_text", side_effect=FileNotFoundError):
            self.assertEqual(machineTicks(), (0, 0))
            self.assertEqual(stealPercent((0, 0)), 0.0)

    def test_otherProcesses(self) -> None:
        """The CPU time of this process grows; of one that does not exist nothing is known, and that is told."""
        if not platform.isLinux():
            raise SkipTest("the CPU time of other processes is read on Linux only")
        before = cpuSeconds(os.getpid())
        sum(range(100_000))
        self.assertGreater(cpuSeconds(os.getpid()), before)
        self.assertGreater(memory(os.getpid()), 1000)
        for pid in (999_999_999, 1 << 70):
            self.assertRaises(Trouble, cpuSeconds, pid)
        with mock.patch.object(Path, "read_text", return_value="Name: gone\n"):
            self.assertRaisesRegex(Trouble, "ended", memory, 1)


class OpenFilesTests(SynchronousTestCase):
    """How many connections there can be."""

    def test_hardLimit(self) -> None:
        """More than the hard limit cannot be; up to it the soft one is raised."""
        limit = SimpleNamespace(RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda _: (256, 1024))
        limit.setrlimit = mock.Mock()
        with mock.patch.dict(sys.modules, resource=limit):
            raiseOpenFiles(1024 - SPARE_FILES)
            limit.setrlimit.assert_called_once_with(7, (1024, 1024))
            with self.assertRaisesRegex(Trouble, "ulimit -n"):
                raiseOpenFiles(1025 - SPARE_FILES)

    def test_noHardLimit(self) -> None:
        """Where there is no hard limit but a hidden one, as many are asked for as are needed, and a refusal is told."""
        limit = SimpleNamespace(RLIMIT_NOFILE=7, RLIM_INFINITY=-1, getrlimit=lambda _: (256, -1))
        asked: list[int] = []

        def setLimit(what: int, limits: tuple[int, int]) -> None:
            asked.append(limits[0])
            if not 0 < limits[0] <= 10_240:
                raise ValueError("not allowed")

        limit.setrlimit = setLimit
        with mock.patch.dict(sys.modules, resource=limit):
            raiseOpenFiles(1000)
            self.assertEqual(asked, [-1, 1000 + SPARE_FILES])
            with self.assertRaisesRegex(Trouble, "not allowed"):
                raiseOpenFiles(20_000)

    def test_windows(self) -> None:
        """Windows has no such limit, but a selector there watches 500 connections and no more."""
        with mock.patch.dict(sys.modules, resource=None):
            raiseOpenFiles(WINDOWS_SOCKETS)
            self.assertRaisesRegex(Trouble, "Windows", raiseOpenFiles, WINDOWS_SOCKETS + 1)


class LoopMixin:
    """Both loops do the same."""

    makeLoop: Callable[[], Loop]

    def setUp(self: Any) -> None:
        """Make two ends of a connection."""
        self.loop = self.makeLoop()
        self.addCleanup(self.loop.close)
        one, self.other = socket.socketpair()
        self.addCleanup(self.other.close)
        one.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        self.connection = Connection(self.loop, one, b"me")
        self.addCleanup(self.connection.close)

    def test_receives(self: Any) -> None:
        """What comes is handed on, and a turn ends when nothing does."""
        got: list[bytes] = []
        self.connection.received = got.append
        self.other.sendall(b"hello")
        self.loop.turn(10)
        self.loop.turn(0)
        self.assertEqual(got, [b"hello"])

    def test_sendsTheRestLater(self: Any) -> None:
        """What does not go at once goes when there is room, in order."""
        parts = [bytes([n]) * 300_000 for n in (1, 2)]
        for part in parts:
            self.connection.write(part)
        self.other.setblocking(False)
        got = b""
        while len(got) < 600_000:
            self.loop.turn(0)
            with contextlib.suppress(BlockingIOError):
                got += self.other.recv(65_536)
        self.assertEqual(got, b"".join(parts))

    def test_forgets(self: Any) -> None:
        """What is closed is not called any more, and a loop without anything waits and ends."""
        self.connection.received = self.fail
        self.other.sendall(b"hello")
        self.connection.close()
        self.loop.turn(0.001)

    def test_closed(self: Any) -> None:
        """A connection that the other side closes is a trouble, when it is read as when it is written."""
        self.other.close()
        self.assertRaisesRegex(Trouble, "closed a connection", self.loop.turn, 10)
        self.assertRaisesRegex(Trouble, "closed a connection: ", self.connection.write, b"x")

    def test_unexpected(self: Any) -> None:
        """What nobody waits for is explained."""
        self.other.sendall(encodeFrame(MessageType.ERROR, b"", encodeError(ErrorCode.SHUTTING_DOWN, 0, "bye")))
        self.assertRaisesRegex(Trouble, "bye", self.loop.turn, 10)

    def test_discards(self: Any) -> None:
        """What came too early can be thrown away, with nothing of what comes later."""
        got: list[bytes] = []
        self.connection.received = got.append
        self.other.sendall(b"old")
        self.connection.discard()
        self.other.sendall(b"new")
        self.loop.turn(10)
        self.assertEqual(got, [b"new"])


class SelectorLoopTests(LoopMixin, SynchronousTestCase):
    """The loop of all systems."""

    makeLoop = SelectorLoop


class FastLoopTests(LoopMixin, SynchronousTestCase):
    """The fastest loop that there is here."""

    makeLoop = staticmethod(makeLoop)


class FakeConnection:
    """Keeps what is written."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.received: Callable[[bytes], None] = lambda data: None

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.written.append(bytes(data))


def fakeConnection() -> Any:
    """Return a fake that stands for a connection."""
    return FakeConnection()


class FlowTests(SynchronousTestCase):
    """Messages that are all the same."""

    def setUp(self) -> None:
        """Make a flow of messages that arrive in another form."""
        self.tally = Tally()
        self.sender, self.receiver = fakeConnection(), fakeConnection()
        self.flow = Flow(self.tally, self.sender, self.receiver, b"out!", b"in-here", 3)

    def test_answersWithTheNext(self) -> None:
        """As many are sent as have arrived, and a message counts when its last byte is there."""
        self.flow.send(3, 0)
        self.assertEqual((self.sender.written, self.flow.underWay), ([b"out!" * 3], 3))
        self.receiver.received(b"in-herein-h")
        self.assertEqual((self.sender.written[1:], self.tally.delivered, self.flow.underWay), ([b"out!"], 1, 3))
        self.receiver.received(b"erein-here")
        self.assertEqual((self.sender.written[2:], self.tally.delivered), ([b"out!" * 2], 3))

    def test_latency(self) -> None:
        """Each message is timed from when it was sent, whether it arrives with others or not."""
        with mock.patch("wecompany.cli.load.perf_counter_ns", side_effect=[1_000, 9_000]):
            self.flow.arrived = lambda n, now: None
            self.flow.send(2, 0)
            self.flow.expect(500)
            self.receiver.received(b"in-here")
            self.receiver.received(b"in-here" * 2)
        self.assertEqual(self.tally.latencies(), [(1_000, 1), (8_500, 1), (9_000, 1)])

    def test_somethingElse(self) -> None:
        """What is not the message is a trouble, with the server's own words where it has sent an ERROR."""
        self.flow.send(1, 0)
        self.assertRaisesRegex(Trouble, "not what was sent", self.receiver.received, b"in-hell")
        flow = Flow(self.tally, self.sender, self.receiver, b"out", encodeFrame(0, b"x", b"text"), 2)
        flow.send(2, 0)
        error = encodeFrame(MessageType.ERROR, b"", encodeError(ErrorCode.OFFLINE, 0, "that user is offline"))
        self.receiver.received(encodeFrame(0, b"x", b"text")[:5])
        with self.assertRaisesRegex(Trouble, "that user is offline"):
            self.receiver.received(encodeFrame(0, b"x", b"text")[5:] + error)

    def test_moreThanWasSent(self) -> None:
        """A message that nobody has sent is a trouble."""
        self.assertRaisesRegex(Trouble, "more has arrived", self.receiver.received, b"in-here")


class PacedFlowTests(SynchronousTestCase):
    """Messages in time with a clock."""

    def flow(self) -> tuple[PacedFlow, Any, Any, Tally]:
        """Return a flow, its sender, its receiver and its tally."""
        tally, sender, receiver = Tally(), fakeConnection(), fakeConnection()
        message, delivery = Target("", 0).media(b"me", b"you", b"x" + STAMP + b"rest")
        return PacedFlow(tally, sender, receiver, message, delivery), sender, receiver, tally

    @given(st.lists(st.integers(1, 60)), st.sets(st.integers(0, 9)))
    def test_anySplit(self, cuts: list[int], dropped: set[int]) -> None:
        """However a stream is cut, each message counts once and from its own time; what was dropped is under way."""
        flow, sender, receiver, tally = self.flow()
        for due in range(10):
            flow.send(due * 1_000)
        written = [m.replace(b"\0\3you", b"\0\2me", 1) for m in sender.written]
        stream = b"".join(b"%c%c%b" % (0, len(m) - 2, m[2:]) for i, m in enumerate(written) if i not in dropped)
        with mock.patch("wecompany.cli.load.perf_counter_ns", return_value=10_000):
            for cut in cuts:
                if stream:
                    receiver.received(stream[:cut])
                stream = stream[cut:]
            if stream:
                receiver.received(stream)
        kept = [due for due in range(10) if due not in dropped]
        self.assertEqual((flow.sent, flow.arrivals, tally.delivered), (10, len(kept), len(kept)))
        self.assertEqual(tally.latencies(), [(10_000 - 1_000 * due, 1) for due in reversed(kept)])

    def test_somethingElse(self) -> None:
        """What does not begin as the message does is a trouble."""
        flow, _, receiver, _ = self.flow()
        flow.send(1)
        ended = encodeFrame(MessageType.ERROR, b"", encodeError(ErrorCode.NO_SUCH_CALL, 6, "no such call"))
        self.assertRaisesRegex(Trouble, "no such call", receiver.received, ended)


class ExplainedTests(SynchronousTestCase):
    """What is said about what came in place of what was expected."""

    def test_errors(self) -> None:
        """The server's words come with what to do: higher limits, broadcasts, or users of its own."""
        for code, about, advice in (
            (ErrorCode.OVERLOADED, 0, "--limit=text=10M"),
            (ErrorCode.FORBIDDEN, 0, "--broadcast"),
            (ErrorCode.BAD_CREDENTIAL, 7, "--users"),
            (ErrorCode.INTERNAL, 0, "its words"),
        ):
            said = explained(encodeFrame(MessageType.ERROR, b"", encodeError(code, about, "its words")))
            self.assertIn("its words", said)
            self.assertIn(advice, said)

    def test_rejects(self) -> None:
        """A call that was rejected is told with its reason; too many calls with the limits."""
        for code, text, expected in (
            (RejectCode.BUSY, b"", "code 1"),
            (RejectCode.OVERLOADED, b"10 calls a minute", "10 calls a minute\nStart the server"),
        ):
            said = explained(encodeFrame(MessageType.CALL_REJECT, b"x", bytes(16) + bytes([code]) + text))
            self.assertIn(expected, said)

    def test_nonsense(self) -> None:
        """What is no frame, or one that says nothing, is shown, and not too much of it."""
        for stream in (b"\0\0", b"\0", b"x" * 70_000, encodeFrame(MessageType.ERROR, b"", b"")):
            said = explained(stream)
            self.assertIn("not what was sent", said)
            self.assertLess(len(said), 500)


class ShownTests(BenchTestCase):
    """What a person sees."""

    def test_table(self) -> None:
        """The table has all figures, the notes about them, and what went wrong."""
        figures = Figures("here", [figuresOf(lost=7, notes=["look out"])], [IdleFigures(1000, 2.5)], {"logins:5": "no"})
        self.assertEqual(
            table(figures).splitlines(),
            [
                "server: here",
                "",
                "shape             messages/s CPU µs each    p50 µs     p99 µs    p999 µs     max µs    lost",
                "sparse                12,346         9.9      50.0      1,234      2,000      3,000       7",
                "",
                "idle: 1,000 registered connections, 2.50 kB each",
                "",
                "sparse: look out",
                "",
                "logins:5: no",
            ],
        )

    def test_adviceOnce(self) -> None:
        """That the limits should be higher is said once, behind everything that it is for."""
        note = f"slow\n{HINT}"
        shown = table(Figures("here", [figuresOf(notes=[note])], problems={"idle:5": note}))
        self.assertTrue(shown.endswith(f"\nsparse: slow\n\nidle:5: slow\n\n{HINT}"), shown)

    def test_withoutPid(self) -> None:
        """What is not known is not shown as if it were, and how it can be known is said."""
        shown = table(Figures("here", [figuresOf(cpuMicros=None)], [IdleFigures(10, None)]))
        self.assertIn("  -  ", shown)
        self.assertEqual(shown.count("--pid"), 2)
        self.assertEqual(table(Figures("here")), "server: here")

    def test_progress(self) -> None:
        """On a terminal a line changes and goes; elsewhere there is a line for each shape and no more."""
        plain, terminal = io.StringIO(), io.StringIO()
        with mock.patch.object(terminal, "isatty", return_value=True):
            for stream in (plain, terminal):
                progress = Progress(stream)
                progress.shape("sparse")
                progress("a long text")
                progress("short")
                progress.clear()
                progress.clear()
        self.assertEqual(plain.getvalue(), "sparse ...\n")
        self.assertEqual(
            terminal.getvalue(),
            "\rsparse: " + "\rsparse: a long text" + "\rsparse: short      " + "\r" + " " * 13 + "\r",
        )

    def test_progressToNobody(self) -> None:
        """That nobody reads the progress stops nothing."""
        stream = mock.Mock(**{"isatty.return_value": True, "write.side_effect": BrokenPipeError})
        Progress(stream).shape("sparse")

    def test_plot(self) -> None:
        """A plot is a picture in the file that was named, and drawing it changes nothing for others."""
        path = temporaryFolder(self) / "x.png"
        points = [figuresOf(f"calls:{n}", messagesPerSecond=100.0 * n) for n in (2, 1)]
        plotLatency({"one": points, "none": []}, path)
        self.assertEqual(path.read_bytes()[:4], b"\x89PNG")
        self.assertNotIn("matplotlib.pyplot", sys.modules)
        with self.assertRaisesRegex(Problem, "No such file"):
            plotLatency({}, path.parent / "no" / "x.png")

    def test_noPlotting(self) -> None:
        """Where matplotlib is missing a plot is refused before anything is measured, with what to install."""
        with mock.patch.dict(sys.modules, {"matplotlib.figure": None}):
            code, out, err = self.bench("--plot", temporaryFolder(self) / "x.png")
        self.assertEqual((code, out), (2, ""))
        self.assertIn("wecompany[bench]", err)


class FakeLoad(Load):
    """A load with a clock of its own."""

    def __init__(self, each: int, took: int = 50_000, stopAt: int = 0) -> None:
        """
        @param each: messages that arrive in a slice.
        @param took: nanoseconds that each of them takes.
        @param stopAt: the slice in which Ctrl-C is pressed.
        """
        super().__init__(Target("nowhere", 1), 1, Asked(pairs=5))
        self._each, self._took, self._stopAt = each, took, stopAt
        self.now = self.slices = 0

    def start(self) -> None:
        """Nothing."""

    def run(self, until: int) -> None:
        """Let the clock go on."""
        self.slices += 1
        if self._each:
            self.tally.add(self._took, round(self._each * (until - self.now) / (SLICE * 1e9)))
        self.now = until
        if self.slices == self._stopAt:
            raise KeyboardInterrupt


class MeasureTests(SynchronousTestCase):
    """What is made of a load."""

    def measure(self, load: FakeLoad, seconds: float = 2.0, steal: float = 0.0) -> tuple[ShapeFigures, bool, list[str]]:
        """Return the figures, whether it was stopped, and what was told meanwhile."""
        self.addCleanup(load.close)
        told: list[str] = []
        with (
            mock.patch("wecompany.cli.load.perf_counter_ns", side_effect=lambda: load.now),
            mock.patch("wecompany.cli.load.stealPercent", return_value=steal),
        ):
            figures, isStopped = measure(load, "sparse", seconds, told.append)
        return figures, isStopped, told

    def test_figures(self) -> None:
        """The messages after the warm-up count, for the time that was asked for, and progress is told meanwhile."""
        figures, isStopped, told = self.measure(FakeLoad(600))
        self.assertFalse(isStopped)
        self.assertEqual((figures.messages, figures.messagesPerSecond), (6_000, 3_000.0))
        self.assertEqual((figures.p50Micros, figures.p999Micros, figures.maxMicros), (50.0, 50.0, 50.0))
        self.assertEqual((figures.cpuMicros, figures.lost, figures.notes), (None, 0, []))
        self.assertEqual(told[-1], "2 of 2 s, 3,000 messages/s")

    def test_throttled(self) -> None:
        """A rate as that of a server's own limit is told, with what to do; others are not."""
        for each, isLimited in ((200, True), (239, True), (241, False), (161, True), (159, False)):
            figures, _, _ = self.measure(FakeLoad(each))
            self.assertEqual(any("limit=text" in note for note in figures.notes), isLimited, each)

    def test_steal(self) -> None:
        """That the host took much of the machine's time is told from above 3 % on."""
        for steal, isTold in ((3.0, False), (3.1, True)):
            figures, _, _ = self.measure(FakeLoad(600), steal=steal)
            self.assertEqual(any("took" in note for note in figures.notes), isTold)

    def test_nothing(self) -> None:
        """That nothing arrives is a trouble."""
        with self.assertRaisesRegex(Trouble, "nothing was delivered"):
            self.measure(FakeLoad(0))

    def test_stopped(self) -> None:
        """After a Ctrl-C there are the figures until then, which say so."""
        figures, isStopped, _ = self.measure(FakeLoad(600, stopAt=3))
        self.assertTrue(isStopped)
        self.assertEqual(figures.messages, 1_200)
        self.assertEqual(figures.messagesPerSecond, 3_000.0)
        self.assertIn("stopped after 0.4 s", figures.notes[0])

    def test_lateSends(self) -> None:
        """A paced load that could not keep its own pace says so, as the server is not to blame."""
        load = Shape("calls", 1).makeLoad(Target("nowhere", 1), Asked())
        self.addCleanup(load.close)
        assert isinstance(load, Calls)
        flow = mock.Mock()
        load._flows = [flow, flow]
        with mock.patch("wecompany.cli.load.perf_counter_ns", side_effect=[0, 0, 20_000_000, 40_000_000]):
            load.start()
            load.run(30_000_000)
        # 100 a second: at 20 ms those of 10 and 20 ms are sent, and the first of them is 10 ms late.
        self.assertEqual([call.args[0] for call in flow.send.call_args_list], [0, 10_000_000, 20_000_000])
        self.assertIn("over 5 ms late", load.notes()[0])


class WithoutServerTests(BenchTestCase):
    """What is not there, or is something else."""

    def test_noServer(self) -> None:
        """Where nobody listens that is told, with how to start a server, and the code is 3."""
        for shape in ("sparse", "idle:2", "logins:2"):
            code, out, err = self.bench(f"127.0.0.1:{freePort()}", "--shape", shape)
            self.assertEqual((code, out), (3, ""))
            self.assertIn("twistd -n wecompany", err)
            self.assertNotIn("Traceback", err)

    def test_noHost(self) -> None:
        """A host that does not exist is told."""
        with mock.patch.object(socket, "create_connection", side_effect=socket.gaierror(-2, "Name not known")):
            code, _, err = self.bench("nowhere.invalid")
        self.assertEqual(code, 3)
        self.assertIn("cannot reach nowhere.invalid:8888: Name not known", err)

    def test_whatConnectionsFailWith(self) -> None:
        """Each way in which a connection fails has its advice; only a lack of ports is this machine's."""
        for error, kind, text in (
            (TimeoutError(), Unreachable, "--tls"),
            (ConnectionResetError(), Unreachable, "--tls"),
            (ssl.SSLError(1, "odd"), Unreachable, "no TLS"),
            (OSError(errno.EADDRNOTAVAIL, "none"), Trouble, "free ports"),
            (OSError(errno.ENETUNREACH, "no way"), Unreachable, "no way"),
        ):
            with self.assertRaisesRegex(kind, text), Target("::1", 5).reaching():
                raise error

    def test_somethingElse(self) -> None:
        """What answers otherwise, or closes, is no server of ours, and the code is not 0."""
        for answer, expected in ((b"HTTP/1.1 400 Bad Request\r\n\r\n" * 900, "no"), (b"", "closes"), (b"\0\0", "no")):
            listening = socket.create_server(("127.0.0.1", 0))
            self.addCleanup(listening.close)

            def serve(listening: socket.socket = listening, answer: bytes = answer) -> None:
                with contextlib.suppress(OSError):
                    connection, _ = listening.accept()
                    with connection:
                        connection.recv(100)
                        connection.sendall(answer)

            thread = threading.Thread(target=serve, daemon=True)
            thread.start()
            code, _, err = self.bench(f"127.0.0.1:{listening.getsockname()[1]}", "--shape", "idle:1")
            thread.join(10)
            self.assertEqual(code, 3, err)
            self.assertIn("no WeCompany server" if expected == "no" else "closes a connection", err)


class WithServerTests(BenchTestCase):
    """A real server in a process of its own."""

    def test_everyShape(self) -> None:
        """Every shape is measured, nothing is lost, and the CPU and the memory of the server are known."""
        address, process = self.server("--broadcast", *RAISED)
        pid = ["--pid", str(process._process.pid)] if platform.isLinux() else []
        path = temporaryFolder(self) / "plot.png"
        shapes = [word for shape in ALL for word in ("--shape", shape)]
        code, out, err = self.bench(
            address, *pid, *shapes, "--pairs", "2", "--seconds", "0.3", "--json", "--plot", path
        )
        self.assertEqual((code, [line for line in err.splitlines() if "..." not in line]), (0, []), out)
        figures = json.loads(out)
        self.assertEqual([f["shape"] for f in figures["shapes"]], [s for s in ALL if not s.startswith("idle")])
        for f in figures["shapes"]:
            self.assertGreater(f["messages"], 0, f)
            self.assertGreater(f["messagesPerSecond"], 0, f)
            self.assertEqual(f["lost"], 0, f)
            self.assertTrue(0 < f["p50Micros"] <= f["p99Micros"] <= f["p999Micros"] <= f["maxMicros"], f)
            if pid:
                self.assertGreater(f["cpuMicros"], 0, f)
        connections = {f["shape"]: f["connections"] for f in figures["shapes"]}
        expected = {
            "sparse": 4,
            "window:3": 4,
            "turns:6": 6,
            "calls:2": 4,
            "fan-in:3": 4,
            "broadcast:3": 4,
            "logins:2": 2,
        }
        self.assertEqual(connections, expected)
        self.assertEqual((figures["idle"][0]["connections"], figures["problems"]), (4, {}))
        self.assertEqual(path.read_bytes()[:4], b"\x89PNG")

    def test_limits(self) -> None:
        """What a server does not allow is told with what to do, and all else is measured."""
        address, _ = self.server("--limit=address-connections=9", "--limit=text=100:10")
        code, out, _ = self.bench(
            *(address, "--pairs", "2", "--seconds", "2"),
            *("--shape", "broadcast:2", "--shape", "idle:30", "--shape", "sparse"),
        )
        self.assertEqual(code, 1)
        self.assertRegex(out, r"\nbroadcast:2: .* allows no broadcasts\n.*\n.*--broadcast --limit=broadcast=1M")
        self.assertRegex(out, r"\nidle:30: .* your address has 9 connections \(limit address-connections\)\n")
        self.assertRegex(out, r"\nsparse: each user got about 100 texts a second")
        self.assertEqual(out.count("--limit=text=10M"), 1)

    def test_callsWithinLimits(self) -> None:
        """Each user begins one call at most, so the limit of calls a minute of each is no obstacle."""
        address, _ = self.server("--limit=calls=1:1")
        code, out, _ = self.bench(address, "--shape", "calls:2", "--seconds", "0.4")
        self.assertEqual(code, 0, out)
        self.assertIn("calls:2", out)

    def test_serverStops(self) -> None:
        """A server that stops in the middle is a problem of that shape, and then there is none any more."""
        address, process = self.server(*RAISED)
        host, port = address.split(":")
        load = Shape("sparse", None).makeLoad(Target(host, int(port)), Asked(pairs=1))
        self.addCleanup(load.close)
        load.prepare(lambda text: None)
        load.start()
        process.end()
        with self.assertRaises(Trouble):
            load.run(time.perf_counter_ns() + 10**10)
        with self.assertRaises(Unreachable):
            measureShape(Target(host, int(port)), Shape("sparse", None), Asked(pairs=1), lambda text: None)

    def test_tls(self) -> None:
        """With --ca everything goes over TLS; a certificate that nobody vouches for, or no TLS at all, is told."""
        folder = temporaryFolder(self)
        pem = folder / "server.pem"
        others = (x509.DNSName("localhost"),)
        certificate = makeCertificate("server", extension=x509.SubjectAlternativeName(others))
        pem.write_bytes(certificate + keyOf("server"))
        address, _ = self.server(f"--tls={pem}", *RAISED)
        address = address.replace("127.0.0.1", "localhost")
        code, out, err = self.bench(
            *(address, "--ca", pem, "--pairs", "2", "--seconds", "0.4", "--size", "16000"),
            *("--shape", "window:64", "--shape", "logins:2", "--shape", "calls:1", "--json"),
        )
        self.assertEqual(code, 0, err + out)
        self.assertEqual([f["lost"] for f in json.loads(out)["shapes"]], [0, 0, 0])
        self.assertIn("over TLS", out)
        code, _, err = self.bench(address, "--tls", "--shape", "logins:2")
        self.assertEqual(code, 3)
        self.assertIn("--ca FILE", err)
        with mock.patch("wecompany.cli.target.ANSWER_WITHIN", 0.3):
            code, _, err = self.bench(address, "--shape", "sparse")
        self.assertEqual(code, 3, err)
        self.assertIn("TLS", err)

    def test_accounts(self) -> None:
        """A server with accounts takes the users of --users; without them it says what to do."""
        folder = temporaryFolder(self)
        tokens = folder / "users"
        lines = []
        address, _ = self.server("--accounts", "--signup", *RAISED)
        host, port = address.split(":")
        for user in (b"ann", b"bob"):
            with socket.create_connection((host, int(port))) as connection:
                connection.sendall(encodeFrame(MessageType.SIGNUP, user, b"a long password of " + user))
                _, _, answer, _ = next(decodeFrames(connection.recv(1000)))
            self.assertEqual(answer[0], 1, answer)
            lines.append(b"%b\t%b\n" % (user, answer[1:]))
        tokens.write_bytes(b"".join(lines))
        base = (address, "--pairs", "1", "--seconds", "0.1", "--shape")
        code, out, err = self.bench(*base, "sparse", "--shape", "logins:1", "--shape", "calls:2", "--users", tokens)
        self.assertEqual(code, 1, out)
        self.assertIn("calls:2: this takes 4 users, and --users names 2", out)
        self.assertRegex(out, r"\nsparse +\d")
        self.assertRegex(out, r"\nlogins:1 +\d")
        code, out, err = self.bench(*base, "sparse")
        self.assertEqual(code, 1, err)
        self.assertIn("--users FILE", out)

    def test_interrupted(self) -> None:
        """Ctrl-C ends it in order: what was measured is shown, and the code is 130."""
        address, _ = self.server(*RAISED)

        def interrupt(load: Windows, until: int) -> None:
            run(load, time.perf_counter_ns() + 10**8)
            if load.tally.delivered and not load.isFirst:  # type: ignore[attr-defined]
                raise KeyboardInterrupt
            load.isFirst = False  # type: ignore[attr-defined]

        run = Load.run
        with mock.patch.multiple(Windows, run=interrupt, isFirst=True, create=True):
            code, out, err = self.bench(address, "--pairs", "1", "--shape", "sparse", "--shape", "calls:1")
        self.assertEqual(code, 130)
        self.assertRegex(out, r"\nsparse +\d")
        self.assertNotIn("calls:1", out)
        self.assertIn("stopped", err)
        with mock.patch.object(Windows, "prepare", side_effect=KeyboardInterrupt):
            code, out, _ = self.bench(address)
        self.assertEqual(code, 130)

    def test_interruptedProcess(self) -> None:
        """A real Ctrl-C ends a real process with the code 130, and without a traceback."""
        address, _ = self.server(*RAISED)
        process = Process("wecompany", "bench", address, "--shape", "sparse", "--seconds", "60", "--pairs", "1")
        self.addCleanup(process.end)
        process.waitFor("sparse ...")
        process.signal(INTERRUPT)
        self.assertEqual(process.wait(), 130)
        self.assertIn("wecompany: stopped; this was measured until then", process.lines)
        self.assertNotIn("Traceback", "\n".join(process.lines))


class LostTests(SynchronousTestCase):
    """What never arrives."""

    def test_drain(self) -> None:
        """What is under way when the time is over is waited for; what then is missing is lost."""
        loop = makeLoop()
        ends = [socket.socketpair() for _ in range(2)]
        load = Windows(Target("nowhere", 1), 2, Asked(pairs=1, size=5))
        load.loop.close()
        load.loop = loop
        load.connections = [Connection(loop, near, b"%d" % i) for i, (near, _) in enumerate(ends)]
        self.addCleanup(load.close)
        for _, far in ends:
            self.addCleanup(far.close)
        load._pairUp(2)
        load.start()
        ends[1][1].sendall(ends[0][1].recv(1000)[:0] + encodeFrame(0, b"0", b"xxxxx") * 2)
        ends[0][1].sendall(encodeFrame(0, b"1", b"xxxxx"))
        self.assertEqual(load.drain(0.3), 1)
        self.assertEqual(load.tally.delivered, 3)
        with self.assertRaises(BlockingIOError):  # nothing more was sent when it was over
            ends[0][1].setblocking(False)
            ends[0][1].recv(1000)
        self.assertTrue(select.select([ends[1][1]], [], [], 1)[0])
