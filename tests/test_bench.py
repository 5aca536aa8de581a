"""The benchmarks run and say what they measured; what the figures are is not a test's business."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest import mock

from twisted.python.runtime import platform
from twisted.trial.unittest import SkipTest, SynchronousTestCase

from tests import temporaryFolder

if platform.isLinux():
    from benchmarks import bench, peers
    from benchmarks.bench import Server, started
    from benchmarks.peers import Growth, Measured, Missing, Results, Summary, growth, growthText, resultsText, table
    from wecompany.cli.load import Asked, Progress, Shape, ShapeFigures
    from wecompany.cli.target import Trouble

ROOT = Path(__file__).parent.parent
SECONDS = 60


class BenchTests(SynchronousTestCase):
    """C{python -m benchmarks.bench}."""

    if not platform.isLinux():
        skip = "the benchmark reads /proc"

    def bench(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        command = [sys.executable, "-m", "benchmarks.bench", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)

    def test_measuresWhatWasAskedFor(self) -> None:
        """With --json it prints one object with every figure, and says on stderr how far it is."""
        ended = self.bench(
            *("--seconds", "0.5", "--pairs", "2", "--size", "20", "--shape", "idle:10", "--json"),
            *("--shape", "sparse", "--shape", "broadcast:2", "--", "--broadcast"),
        )
        self.assertEqual(ended.returncode, 0, ended.stderr + ended.stdout)
        figures = json.loads(ended.stdout)
        self.assertEqual([f["shape"] for f in figures["shapes"]], ["sparse", "broadcast:2"])
        for f in figures["shapes"]:
            self.assertEqual((f["bytesEach"], f["lost"]), (20, 0))
            self.assertGreater(f["messages"], 0)
            self.assertGreater(f["cpuMicros"], 0)
        self.assertEqual(figures["idle"][0]["connections"], 10)
        self.assertGreaterEqual(figures["idle"][0]["kilobytesEach"], 0)
        self.assertIn("broadcast:2", ended.stderr)

    def test_printsATable(self) -> None:
        """Without --json it prints a table; what the server does not allow is told, and the code is 1."""
        ended = self.bench("--seconds", "0.5", "--pairs", "1", "--shape", "window:8", "--shape", "broadcast:1")
        self.assertEqual(ended.returncode, 1, ended.stderr)
        self.assertIn("CPU µs each", ended.stdout)
        self.assertIn("\nwindow:8 ", ended.stdout)
        self.assertIn("\nbroadcast:1: the server says", ended.stdout)
        self.assertNotIn("idle", ended.stdout)

    def test_serverDoesNotStart(self) -> None:
        """A server that does not start, or ends by itself, is told with its own words."""
        ended = self.bench("--", "--no-such-option")
        self.assertEqual((ended.returncode, ended.stdout), (1, ""))
        self.assertIn("no-such-option", ended.stderr)
        self.assertNotIn("Traceback", ended.stderr)

    def test_serverEnds(self) -> None:
        """A server that ends while it is measured is told."""
        port = bench.freePort()
        program = (
            f"import socket; s = socket.create_server(('127.0.0.1', {port})); s.accept(); s.accept(); print('bye')"
        )
        with (
            self.assertRaisesRegex(Trouble, "(?s)ended with 0:.*bye"),
            started([sys.executable, "-c", program], Server("127.0.0.1", port)) as server,
        ):
            server.connect().close()
            os.waitid(os.P_PID, server.pid or 0, os.WEXITED | os.WNOWAIT)

    def test_interrupted(self) -> None:
        """Ctrl-C shows what was measured, with the code 130; SIGTERM ends it as one should."""
        out = io.StringIO()
        before = os.sched_getaffinity(0)
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        self.addCleanup(os.sched_setaffinity, 0, before)
        for result in ({"return_value": True}, {"side_effect": KeyboardInterrupt}):
            with (
                mock.patch.object(bench, "measureAll", **result),
                contextlib.redirect_stdout(out),
                contextlib.redirect_stderr(io.StringIO()),
            ):
                self.assertEqual(bench.main(["--shape", "sparse"]), 130)
        self.assertIn("server: twistd", out.getvalue())
        with self.assertRaises(SystemExit) as left:
            signal.raise_signal(signal.SIGTERM)
        self.assertEqual(left.exception.code, 128 + signal.SIGTERM)

    def test_elsewhere(self) -> None:
        """On another system than Linux it says so."""
        for main in (bench.main, peers.main):
            err = io.StringIO()
            with mock.patch.object(sys, "platform", "darwin"), contextlib.redirect_stderr(err):
                self.assertEqual(main([]), 1)
            self.assertIn("Linux only", err.getvalue())


class PeersTests(SynchronousTestCase):
    """C{python -m benchmarks.peers}."""

    if not platform.isLinux():
        skip = "the benchmark reads /proc"

    def measured(self, run: int, peer: str, cpu: float, shape: str = "sparse", **changes: Any) -> Measured:
        """Return a measurement."""
        values: dict[str, Any] = {"messages": 1, "messagesPerSecond": 10.0 * run, "lost": 1, "stealPercent": 0.0}
        values |= {"p50Micros": 1.0, "p99Micros": 2000.0, "p999Micros": 3.0, "maxMicros": 4.0}
        return Measured(run, peer, ShapeFigures(shape, 2, 200, cpuMicros=cpu, **(values | changes)))

    def run_(self, *arguments: str | Path) -> tuple[int, str, str]:
        """Return the exit code of the command and what it has printed on both outputs."""
        self.addCleanup(signal.signal, signal.SIGTERM, signal.getsignal(signal.SIGTERM))
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = peers.main(list(map(str, arguments)))
        return code, out.getvalue(), err.getvalue()

    def test_ratiosAreOfOneRun(self) -> None:
        """A ratio is to the floor of the same run; what the host disturbed is left out, be it of the floor or not."""
        results = Results("here")
        for run, floor, ours, steal in ((1, 10.0, 20.0, 0.0), (2, 20.0, 80.0, 3.0), (3, 1.0, 90.0, 3.1)):
            results.all.append(self.measured(run, "floor", floor, stealPercent=steal))
            results.all.append(self.measured(run, "ours", ours))
        floor_, ours_ = results.summaries()
        self.assertEqual((floor_.cpuMicros, floor_.ratio, floor_.runs, floor_.dropped), (15.0, 1.0, 2, 1))
        self.assertEqual((ours_.cpuMicros, ours_.ratio, ours_.runs, ours_.dropped, ours_.lost), (80.0, 3.0, 3, 0, 3))
        self.assertEqual(ours_.messagesPerSecond, 20)
        shown = table([floor_, ours_])
        self.assertIn("2 (-1)", shown)
        self.assertIn("3.00", shown)

    def test_withoutFloor(self) -> None:
        """Without a floor there are no ratios, and what was disturbed in every run is not shown at all."""
        results = Results("here", [self.measured(1, "a", 1.0), self.measured(1, "b", 1.0, stealPercent=50.0)])
        (only,) = results.summaries()
        self.assertEqual((only.peer, only.ratio), ("a", None))
        self.assertIn(" - ", table([only]))

    def test_growth(self) -> None:
        """The spread is how far the highest cost is above the lowest, of the cost and of its multiple of the floor."""

        def summary(peer: str, shape: str, cpu: float, ratio: float | None) -> Summary:
            return Summary(peer, shape, 1, 0, cpu, ratio, 1, 1.0, 1.0, 0)

        grown = growth(
            [
                summary("ours", "turns:100", 10.0, 1.0),
                summary("ours", "turns:1000", 8.0, 1.1),
                summary("ours", "turns:10000", 12.0, 1.2),
                summary("ours", "turns:5", 99.0, 9.0),
                summary("ours", "sparse", 99.0, 9.0),
                summary("other", "broadcast:100", 3.0, None),
            ]
        )
        self.assertEqual(
            grown,
            [
                Growth("ours", "turns", {100: 10.0, 1000: 8.0, 10000: 12.0}, 50.0, 20.0),
                Growth("other", "broadcast", {100: 3.0}, 0.0, None),
            ],
        )
        lines = growthText([summary("ours", "turns:1000", 8.0, 1.1)]).splitlines()
        self.assertIn("–", lines[-1])
        self.assertIn("0.0 %", lines[-1])

    def results(self) -> Results:
        """Return some results."""
        results = Results("a machine", skipped={"x": "it is not installed"})
        for peer, cpu in (("floor", 1.0), ("wecompany", 1.5)):
            results.all += [self.measured(1, peer, cpu, shape) for shape in ("sparse", "calls:5", "turns:100")]
        results.all.append(self.measured(1, "other", 9.0))
        return results

    def test_results(self) -> None:
        """What is written has every figure, and says when it is preliminary."""
        for isPreliminary in (False, True):
            text = resultsText(self.results(), 3.0, isPreliminary, hasPlot=True)
            self.assertEqual("Preliminary" in text, isPreliminary)
            for expected in ("1.50 (1.50)", "0.00 / 2.00; 1 lost", "latency.png", "not installed", "1 run of 3 s", "–"):
                self.assertIn(expected, text)
        self.assertNotIn("latency.png", resultsText(self.results(), 3.0, False, hasPlot=False))

    def test_resultsAreReStructuredText(self) -> None:
        """What is written, and what tells how, is good reStructuredText."""
        try:
            from docutils.core import publish_doctree
        except ImportError:
            raise SkipTest("docutils is missing, which is in the extra lint") from None
        readme = (ROOT / "benchmarks" / "README.rst").read_text(encoding="utf-8")
        for text in (resultsText(self.results(), 3.0, True, hasPlot=True), readme):
            publish_doctree(text, settings_overrides={"report_level": 1, "halt_level": 1})

    def test_eachPeer(self) -> None:
        """Every peer that is installed passes messages, in time with a clock too, and what is not is told by name."""
        for peer in peers.PEERS:
            kept: list[Measured] = []
            shapes = [Shape("window", 3), Shape("calls", 2)]
            try:
                with contextlib.redirect_stderr(io.StringIO()) as err:
                    peers.runOne(1, peer, shapes, Asked(2, 200, 0.2), None, Progress(io.StringIO()), kept)
            except Missing as e:
                self.assertIn(peer if peer != "floor" else "cc", str(e))
                continue
            self.assertEqual(
                [(m.figures.shape, m.figures.lost) for m in kept], [("window:3", 0), ("calls:2", 0)], err.getvalue()
            )
            self.assertIn(peer.partition(" ")[0], peers.versionOf(peer))

    def test_whole(self) -> None:
        """The command measures, tells what is missing, and writes the results, the plot and the figures."""
        folder = temporaryFolder(self)
        where = shutil.which

        def which(program: str, **more: Any) -> str | None:
            return None if program == "redis-server" else where(program, **more)

        with (
            mock.patch.object(shutil, "which", which),
            mock.patch.multiple(peers, GROWTH=(2, 4), MUCH_STEAL=101),
        ):
            code, out, err = self.run_(
                *("--peer", "wecompany", "--peer", "redis-server", "--runs", "1", "--seconds", "0.4", "--pairs", "2"),
                *("--shape", "sparse", "--shape", "calls:1", "--growth", "--preliminary", "--write", "--into", folder),
                *("--json", folder / "all.json"),
            )
        self.assertEqual(code, 0, err)
        self.assertIn("redis-server is left out: redis-server is not installed", err)
        self.assertIn("wecompany, broadcast", out)
        self.assertEqual((folder / "latency.png").read_bytes()[:4], b"\x89PNG")
        self.assertIn("Preliminary", (folder / "RESULTS.rst").read_text())
        figures = json.loads((folder / "all.json").read_text())
        shapes = ["sparse", "calls:1", "turns:2", "turns:4", "broadcast:2", "broadcast:4"]
        self.assertEqual([s["shape"] for s in figures["summaries"]], shapes)
        self.assertEqual(len(figures["ladder"]), 1)

    def test_troubles(self) -> None:
        """A shape that cannot be measured is told and the others go on; if nothing was measured the code is 1."""
        arguments = ("--peer", "wecompany", "--runs", "1", "--seconds", "0.4", "--shape", "sparse", "--pairs", "1")
        with mock.patch.object(peers, "measureShape", side_effect=Trouble("it is broken")):
            code, _, err = self.run_(*arguments)
        self.assertEqual(code, 1)
        self.assertIn("run 1, wecompany, sparse: it is broken", err)
        with mock.patch.dict(peers.PEERS, wecompany=mock.Mock(side_effect=Trouble("it does not start"))):
            code, _, err = self.run_(*arguments)
        self.assertEqual(code, 1)
        self.assertIn("wecompany is left out: it does not start", err)
        code, _, err = self.run_(*arguments, "--json", "/nowhere/x.json")
        self.assertEqual(code, 1)
        self.assertIn("/nowhere/x.json", err)

    def test_interrupted(self) -> None:
        """After a Ctrl-C what was measured is shown, with the code 130, and nothing is written."""
        folder = temporaryFolder(self)
        figures = self.measured(1, "wecompany", 5.0).figures
        with mock.patch.object(peers, "measureShape", return_value=(figures, True)):
            code, out, err = self.run_("--peer", "wecompany", "--shape", "sparse", "--write", "--into", folder)
        self.assertEqual((code, list(folder.iterdir())), (130, []))
        self.assertIn("5.00", out)
        self.assertIn("stopped", err)


class ReliableTests(SynchronousTestCase):
    """C{python -m benchmarks.reliable}."""

    if not platform.isLinux():
        skip = "the benchmark reads /proc and waits with epoll"

    def bench(self, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        command = [sys.executable, "-m", "benchmarks.reliable", *arguments]
        return subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )

    def test_measuresAllParts(self) -> None:
        """With --json it prints one object with every figure, and says on stderr how far it is."""
        ended = self.bench(
            *("--seconds", "0.4", "--pairs", "2", "--window", "5", "--size", "20"),
            *("--at-once", "3", "--waiting", "250", "--json"),
        )
        self.assertEqual(ended.returncode, 0, ended.stderr)
        figures = json.loads(ended.stdout)
        texts, logins, start = figures["texts"], figures["logins"], figures["start"]
        self.assertEqual((texts["pairs"], texts["window"], texts["bytesEach"], texts["lost"]), (2, 5, 20, 0))
        self.assertEqual(logins["atOnce"], 3)
        self.assertEqual(start["texts"], 250)
        for name in ("texts", "textsPerSecond", "p50Micros", "loadPercent"):
            self.assertGreater(texts[name], 0, name)
        for name in ("logins", "loginsPerSecond", "p50Micros", "loadPercent"):
            self.assertGreater(logins[name], 0, name)
        for part in (texts, logins):
            self.assertGreaterEqual(part["p99Micros"], part["p50Micros"])
            self.assertGreaterEqual(part["cpuMicros"], 0)
        for name in ("emptySeconds", "fullSeconds"):
            self.assertGreater(start[name], 0, name)
        for part in (texts, logins, start):
            self.assertGreaterEqual(part["stealPercent"], 0)
        for part in ("texts", "logins", "start", "peer"):
            self.assertIn(f"{part}: ", ended.stderr)
        if figures["peer"] is not None:
            self.assertGreater(figures["peer"]["texts"]["textsPerSecond"], 0)
            self.assertGreater(figures["peer"]["logins"]["loginsPerSecond"], 0)

    def test_noPeer(self) -> None:
        """Where the server to compare with is not installed, that is said, and all else is measured."""
        ended = self.bench(
            *("--part", "peer", "--part", "texts", "--seconds", "0.4", "--pairs", "1", "--window", "1"), PATH="/none"
        )
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertIn("prosody is not installed", ended.stderr)
        self.assertIn("CPU µs/text", ended.stdout)
        self.assertNotIn("prosody", ended.stdout)

    def test_printsATable(self) -> None:
        """Without --json it prints a table of what was asked for."""
        ended = self.bench("--part", "texts", "--seconds", "0.4", "--pairs", "1", "--window", "1")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertIn("CPU µs/text", ended.stdout)
        self.assertNotIn("log-ins", ended.stdout)
        self.assertNotIn("waiting", ended.stdout)
