"""Small bad networks around a real server: what gets through, and in what order.  How soon, the benchmark measures."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

from twisted.python.runtime import platform
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.network import (
    DELTA_SIZE,
    KEY_EVERY,
    KEY_SIZE,
    MAX_LATE,
    PICTURE_EVERY,
    SEGMENT,
    SOUND_SIZE,
    Arrival,
    Delays,
    Figures,
    Pipe,
    caughtUp,
    content,
    misplaced,
    mostUnsent,
    table,
    undecodable,
)
from wecompany.wire import MediaKind

ROOT = Path(__file__).parent.parent
SECONDS = 120


def pictures(*sequences: int) -> list[Arrival]:
    """Return those pictures; every fifth is a key frame."""
    return [Arrival(MediaKind.VIDEO_DELTA if n % 5 else MediaKind.VIDEO_KEY, n, 0.0, 0.0) for n in sequences]


def sound(sentAt: float, delay: float) -> Arrival:
    """Return a packet of sound."""
    return Arrival(MediaKind.AUDIO, 0, sentAt, delay)


class FiguresTests(SynchronousTestCase):
    """How what has come is judged."""

    def test_undecodable(self) -> None:
        """A picture needs the one before it, back to a key frame, which needs nothing."""
        self.assertEqual(undecodable(pictures(0, 1, 2, 5, 6, 15)), 0)
        self.assertEqual(undecodable(pictures(0, 1, 3)), 1)
        self.assertEqual(undecodable(pictures(0, 2, 3, 4, 5)), 3)
        self.assertEqual(undecodable(pictures(1)), 1)
        self.assertEqual(undecodable(pictures(0, 2, 1)), 1)

    def test_misplaced(self) -> None:
        """A text is out of order if one after it, or itself, came before."""
        self.assertEqual(misplaced(pictures(0, 1, 2, 5)), 0)
        self.assertEqual(misplaced(pictures(0, 2, 1, 3, 3)), 2)
        self.assertEqual(misplaced([]), 0)

    def test_caughtUp(self) -> None:
        """Coming back is judged by the first in time and the last that was late."""
        media = [sound(5.0, 5_010.0), sound(9.9, 130.0), sound(9.5, 540.0), sound(10.1, 3.0)]
        self.assertEqual(caughtUp(media, 10.0), (30.0, 40.0, 2 * SOUND_SIZE))

    def test_neverCaughtUp(self) -> None:
        """Without anything in time it has not come back."""
        self.assertEqual(caughtUp([], 10.0), (float("inf"), 0.0, 0))

    def test_delays(self) -> None:
        """Of a hundred delays the 99th part takes all but the longest."""
        self.assertEqual(Delays.of([float(n) for n in range(100, 0, -1)]), Delays(51.0, 100.0, 100.0))
        self.assertEqual(Delays.of([]), Delays(0.0, 0.0, 0.0))

    def test_unsent(self) -> None:
        """Of the kernel's table, established connections at that local port count."""
        rows = (
            "sl local_address rem_address st tx_queue rx_queue",
            "0: 0100007F:22B8 0100007F:8F4C 01 00000010:00000000 00:00000000 0 0 0",
            "1: 0100007F:22B8 0100007F:8F4E 01 000000FF:00000000 00:00000000 0 0 0",
            "2: 0100007F:22B8 0100007F:8F50 06 0000FFFF:00000000 00:00000000 0 0 0",
            "3: 0100007F:8F4E 0100007F:22B8 01 0000FFFF:00000000 00:00000000 0 0 0",
        )
        self.assertEqual(mostUnsent("\n".join(rows), 0x22B8), 255)

    def test_content(self) -> None:
        """Every packet and picture has its own content, and its kind's size: a megabit a second of pictures."""
        self.assertNotEqual(content(MediaKind.AUDIO, 1), content(MediaKind.AUDIO, 2))
        self.assertEqual(len(content(MediaKind.AUDIO, 1)), SOUND_SIZE)
        self.assertEqual(len(content(MediaKind.VIDEO_KEY, 0)), KEY_SIZE)
        self.assertEqual(len(content(MediaKind.VIDEO_DELTA, 1)), DELTA_SIZE)
        perSecond = 8 * (KEY_SIZE + (KEY_EVERY - 1) * DELTA_SIZE) / (KEY_EVERY * PICTURE_EVERY)
        self.assertAlmostEqual(perSecond / 1e6, 1.0, places=2)

    def test_table(self) -> None:
        """The table shows figures, what the server counted, and what is wrong."""
        figures = Figures("throttled", "proxy", {"a, ms": Delays(1.0, 2.0, 3.0), "b": 4}, {"c": 5})
        figures.demand(True, "nothing")
        figures.demand(False, "late")
        shown = [line.split() for line in table([figures]).splitlines()]
        self.assertIn(["a,", "ms", "1.0", "p50", "2.0", "p99", "3.0", "max"], shown)
        self.assertIn(["b", "4"], shown)
        self.assertIn(["counted:", "c", "5"], shown)
        self.assertIn(["FAILED:", "late"], shown)
        self.assertNotIn(["FAILED:", "nothing"], shown)


class PipeTests(SynchronousTestCase):
    """The throttling proxy, one direction of it."""

    def setUp(self) -> None:
        """Make a pipe of 8,000 bit/s between two connections."""
        ends = [*socket.socketpair(), *socket.socketpair()]
        self.near, source, target, self.far = ends
        for end in ends:
            self.addCleanup(end.close)
            end.setblocking(False)
        self.target = target
        self.pipe = Pipe(source, target, 8_000)

    def test_rate(self) -> None:
        """In a tenth of a second it passes on a hundred bytes, and leaves the rest where it is."""
        self.near.send(b"x" * 5_000)
        self.assertTrue(self.pipe.pump(0.1))
        self.assertEqual(self.far.recv(65_536), b"x" * 100)
        self.assertTrue(self.pipe.pump(0.25))
        self.assertEqual(len(self.far.recv(65_536)), 250)

    def test_burst(self) -> None:
        """However long nothing came, no more than a segment is passed on at once."""
        self.assertTrue(self.pipe.pump(60.0))
        self.near.send(b"x" * 5_000)
        self.assertTrue(self.pipe.pump(60.0))
        self.assertEqual(len(self.far.recv(65_536)), SEGMENT)

    def test_full(self) -> None:
        """What the other side does not take waits, and nothing more is read."""
        while True:
            try:
                self.target.send(b"y" * 65_536)
            except BlockingIOError:
                break
        self.near.send(b"x" * 200)
        for _ in range(3):
            self.assertTrue(self.pipe.pump(0.1))
        arrived = b""
        while b"x" * 100 not in arrived:
            arrived += self.far.recv(1_048_576)
            self.assertTrue(self.pipe.pump(0.0))
        self.assertEqual(arrived.count(b"x"), 100)

    def test_end(self) -> None:
        """When a side has closed, it is over."""
        self.near.close()
        self.assertFalse(self.pipe.pump(0.1))


@cache
def allFigures() -> dict[str, dict[str, Any]]:
    """Run small shapes once, three processes at a time; return what came of each."""
    found: dict[str, dict[str, Any]] = {}
    command = [sys.executable, "-m", "benchmarks.network", "--json", "--line", "proxy", "--seconds", "3"]
    command += ["--file-size", "60000", "--stall", "1", "--crowd", "20"]
    runs = [
        subprocess.Popen(
            [*command, *(word for shape in shapes for word in ("--shape", shape))],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for shapes in (["throttled", "unclassed"], ["stalled"], ["many"])
    ]
    try:
        for run in runs:
            output, errors = run.communicate(timeout=SECONDS)
            if not output:
                raise AssertionError(errors)
            found |= {figures["shape"]: figures for figures in json.loads(output)["shapes"]}
    finally:
        for run in runs:
            if run.poll() is None:
                run.terminate()
                run.communicate()
    return found


class NetworkTests(SynchronousTestCase):
    """C{python -m benchmarks.network}: small shapes are run once, and each test looks at one; none at how fast."""

    if not platform.isLinux():
        skip = "the benchmark needs epoll, and reads /proc"

    def check(self, shape: str) -> dict[str, Any]:
        """Return the figures of one shape; nothing is wrong in it that does not depend on time."""
        figures = allFigures()[shape]
        late = ("is late: p99", "to the receiver was lost", "after coming back", "p99 is")
        self.assertEqual([f for f in figures["findings"] if not any(words in f for words in late)], [])
        values: dict[str, Any] = figures["values"]
        return values

    def test_throttled(self) -> None:
        """Behind a thin line the file is whole, and no text is lost; pictures are left out, and none is torn."""
        values = self.check("throttled")
        self.assertEqual(values["file: whole"], 1)
        self.assertEqual(values["texts: received"], values["texts: sent"])
        self.assertEqual(values["texts: out of order"], 0)
        self.assertGreater(values["sound to the receiver: sent"], 100)
        self.assertLess(values["pictures: received"], values["pictures: sent"])
        self.assertEqual(values["pictures: torn"], 0)
        self.assertEqual(values["pictures: without the one before"], 0)

    def test_soundAlone(self) -> None:
        """What the throttled receiver itself says comes through."""
        self.assertEqual(self.check("throttled")["sound from the receiver: lost"], 0)

    def test_dropsAreCounted(self) -> None:
        """All sound and pictures that did not come are among what the server counts, and nothing else is."""
        values = self.check("throttled")
        dropped = {"audio": 0, "video": 0}
        for what, n in allFigures()["throttled"]["counted"].items():
            if what.startswith("media dropped: "):
                dropped[what.removeprefix("media dropped: ").partition(",")[0]] += n
        self.assertEqual(dropped["audio"], values["sound to the receiver: lost"])
        self.assertEqual(dropped["video"], values["pictures: sent"] - values["pictures: received"])

    def test_unclassed(self) -> None:
        """With one class for all, nothing is dropped: that is what the others are compared with."""
        counted = allFigures()["unclassed"]["counted"]
        self.assertEqual([what for what in counted if what.startswith("media dropped")], [])
        self.assertGreater(allFigures()["unclassed"]["values"]["pictures: sent"], 0)

    def test_stalled(self) -> None:
        """Who reads again gets all texts in order, hardly any old media, and new media."""
        values = self.check("stalled")
        self.assertEqual(values["texts: received"], values["texts: sent"])
        self.assertEqual(values["texts: refused"], 0)
        self.assertLess(values["back: bytes of those that were late"], MAX_LATE)
        self.assertLess(values["pictures: received"], values["pictures: sent"])

    def test_many(self) -> None:
        """A crowd that stalls gets its texts later, and a pair beside it all of theirs."""
        values = self.check("many")
        self.assertEqual(values["crowd"], 20)
        self.assertEqual(values["crowd: texts received"], values["crowd: texts sent"])
        self.assertGreater(values["crowd: packets of sound received"], 0)
