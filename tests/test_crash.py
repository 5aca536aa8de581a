"""A short run of the crash test; C{python -m benchmarks.crash} is the long one."""

import subprocess
import sys
from pathlib import Path

from twisted.python.runtime import platform
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.crash import Tally

ROOT = Path(__file__).parent.parent
SECONDS = 120


class TallyTests(SynchronousTestCase):
    """What has come is compared with what was sent."""

    def setUp(self) -> None:
        """Three texts have been sent from one to the other."""
        self.tally = Tally()
        self.tally.channel(b"alice", b"bob").sent = 3

    def receive(self, *numbers: int) -> None:
        """Let texts of these numbers come."""
        for number in numbers:
            self.tally.received(b"alice", b"bob", b"%d and more" % number)

    def test_allInOrder(self) -> None:
        """Each once and in order is right."""
        self.receive(0, 1, 2)
        self.assertEqual((self.tally.findings, self.tally.missing()), ([], 0))

    def test_lost(self) -> None:
        """What has not come is missing, be it at the end or in the middle."""
        self.receive(0, 2)
        self.assertEqual((self.tally.findings, self.tally.missing()), ([], 1))
        self.tally.channel(b"alice", b"bob").sent = 4
        self.assertEqual(self.tally.missing(), 2)

    def test_duplicate(self) -> None:
        """What comes again is found, be it all there or something missing before it."""
        self.receive(0, 0, 2, 2)
        self.assertEqual(
            self.tally.findings, ["text 0 from alice to bob has come twice", "text 2 from alice to bob has come twice"]
        )
        self.assertEqual((self.tally.counts["duplicates"], self.tally.missing()), (2, 1))

    def test_outOfOrder(self) -> None:
        """What comes after a later one is found, and is not missing."""
        self.receive(0, 2, 1)
        self.assertEqual(self.tally.findings, ["text 1 from alice to bob has come after text 2"])
        self.assertEqual((self.tally.counts["out of order"], self.tally.missing()), (1, 0))

    def test_neverSent(self) -> None:
        """What nobody has sent is found, on every way apart."""
        self.receive(3)
        self.tally.received(b"bob", b"alice", b"0 and more")
        self.assertEqual(
            self.tally.findings,
            ["text 3 from alice to bob was never sent", "text 0 from bob to alice was never sent"],
        )


class CrashTests(SynchronousTestCase):
    """C{python -m benchmarks.crash}."""

    def test_nothingIsLost(self) -> None:
        """A server that is killed under load loses no text, doubles none, and keeps their order."""
        command = [sys.executable, "-m", "benchmarks.crash", "--kills", "3", "--clients", "8", "--seed", "3"]
        ended = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=SECONDS, check=False)
        self.assertEqual(ended.returncode, 0, ended.stdout + ended.stderr)
        self.assertIn("3 kills in ", ended.stdout)
        self.assertIn("0 lost, 0 duplicates, 0 out of order\npassed", ended.stdout)
        self.assertNotIn("sent: 0\n", ended.stdout)
        self.assertNotIn("resumptions: 0\n", ended.stdout)

    if platform.isWindows():
        test_nothingIsLost.skip = "there is no SIGKILL"  # type: ignore[attr-defined]
