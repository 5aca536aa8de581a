"""The benchmark runs and says what it measured; what the figures are is not a test's business."""

import json
import subprocess
import sys
from pathlib import Path

from twisted.python.runtime import platform
from twisted.trial.unittest import SynchronousTestCase

ROOT = Path(__file__).parent.parent
SECONDS = 60


class BenchTests(SynchronousTestCase):
    """C{python -m benchmarks.bench}."""

    if not platform.isLinux():
        skip = "the benchmark reads /proc and waits with epoll"

    def bench(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        command = [sys.executable, "-m", "benchmarks.bench", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)

    def test_measuresEveryShapeAndIdleConnections(self) -> None:
        """With --json it prints one object with every figure, and says on stderr how far it is."""
        ended = self.bench("--seconds", "0.05", "--pairs", "2", "--size", "20", "--idle", "10", "--json")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        figures = json.loads(ended.stdout)
        self.assertEqual([f["shape"] for f in figures["shapes"]], ["sparse", "window:8", "window:64"])
        for f in figures["shapes"]:
            self.assertEqual((f["pairs"], f["bytesEach"], f["lost"]), (2, 20, 0))
            self.assertGreater(f["messages"], 0)
            self.assertGreater(f["messagesPerSecond"], 0)
            self.assertGreaterEqual(f["cpuMicros"], 0)
            self.assertGreater(f["p50Micros"], 0)
            self.assertGreaterEqual(f["p99Micros"], f["p50Micros"])
            self.assertGreaterEqual(f["stealPercent"], 0)
        self.assertEqual(figures["idle"]["connections"], 10)
        self.assertGreaterEqual(figures["idle"]["kilobytesEach"], 0)
        self.assertIn("window:64", ended.stderr)

    def test_printsATable(self) -> None:
        """Without --json it prints a table of what was asked for."""
        ended = self.bench("--seconds", "0.05", "--pairs", "1", "--shape", "window:8", "--idle", "0")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertIn("CPU µs/message", ended.stdout)
        self.assertIn("\nwindow:8 ", ended.stdout)
        self.assertNotIn("idle", ended.stdout)

    def test_noServer(self) -> None:
        """Where nobody listens it says so in a line and fails."""
        ended = self.bench("--connect", "127.0.0.1:1", "--idle", "0")
        self.assertEqual((ended.returncode, ended.stdout), (1, ""))
        self.assertIn("Connection refused", ended.stderr)
        self.assertNotIn("Traceback", ended.stderr)


class ReliableTests(SynchronousTestCase):
    """C{python -m benchmarks.reliable}."""

    if not platform.isLinux():
        skip = "the benchmark reads /proc and waits with epoll"

    def bench(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        command = [sys.executable, "-m", "benchmarks.reliable", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)

    def test_measuresAllParts(self) -> None:
        """With --json it prints one object with every figure, and says on stderr how far it is."""
        ended = self.bench(
            *("--seconds", "0.1", "--pairs", "2", "--window", "5", "--size", "20"),
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
        for part in ("texts", "logins", "start"):
            self.assertIn(f"{part}: ", ended.stderr)

    def test_printsATable(self) -> None:
        """Without --json it prints a table of what was asked for."""
        ended = self.bench("--part", "texts", "--seconds", "0.1", "--pairs", "1", "--window", "1")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertIn("CPU µs/text", ended.stdout)
        self.assertNotIn("log-ins", ended.stdout)
        self.assertNotIn("waiting", ended.stdout)
