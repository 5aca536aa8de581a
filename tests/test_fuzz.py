"""A short run of the fuzzer; C{python -m benchmarks.fuzz} is the long one."""

import subprocess
import sys
from pathlib import Path

from twisted.python.runtime import platform
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.fuzz import faultsIn, scriptOf

ROOT = Path(__file__).parent.parent
SECONDS = 120


class FuzzTests(SynchronousTestCase):
    """C{python -m benchmarks.fuzz}."""

    def test_streamsFollowFromTheSeed(self) -> None:
        """A stream is the same whenever it is made, and others are others."""
        self.assertEqual([scriptOf(1, n) for n in range(50)], [scriptOf(1, n) for n in range(50)])
        self.assertNotEqual(scriptOf(1, 0), scriptOf(1, 1))
        self.assertNotEqual(scriptOf(1, 0), scriptOf(2, 0))

    def test_seesTracebacks(self) -> None:
        """What is wrong in a log is found."""
        self.assertEqual(faultsIn(b"all\nis\nwell\n"), [])
        self.assertEqual(len(faultsIn(b"this is\nTraceback (most recent call last):\n  and more\n")), 1)
        self.assertEqual(len(faultsIn(b"Unhandled error in Deferred:\n")), 1)

    def test_serverStandsIt(self) -> None:
        """Mutated streams leave the server up, clean and small, and the clients beside them undisturbed."""
        command = [sys.executable, "-m", "benchmarks.fuzz", "--streams", "1500", "--seed", "2"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        self.assertIn(" 0 lost", ended.stdout)
        self.assertIn("passed", ended.stdout)

    if not platform.isLinux():
        test_serverStandsIt.skip = "the fuzzer reads /proc and waits with epoll"  # type: ignore[attr-defined]
