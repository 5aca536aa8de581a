"""The fuzzer's targets: what it found worth keeping is tried again, and faults are seen where there are some."""

from __future__ import annotations

import builtins
import random
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

from twisted.logger import Logger
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.fuzzing import __main__ as fuzzing
from benchmarks.fuzzing import targets
from benchmarks.fuzzing.targets import TARGETS, Finding, Script, fill, watchedLog
from wecompany import wire
from wecompany.files import FileTransfers
from wecompany.presence import Presence
from wecompany.wire import WireError, decodeU32

ROOT = Path(__file__).parent.parent

FILE_FRAME = bytes((0, 0, 1, 1, 1, 7))
"""A script: the first user sends the second one a FILE frame with one byte of data."""

WATCH = bytes((0, 0, 12, 3, 1, 1))
"""A script: the first user watches everyone's presence."""


class CorpusTests(SynchronousTestCase):
    """C{benchmarks/fuzzing/corpus}."""

    def test_replay(self) -> None:
        """Every kept input passes its target."""
        for name, target in TARGETS.items():
            inputs = fuzzing.corpusOf(name)
            self.assertTrue(inputs, f"{name} has no corpus")
            for data in inputs:
                try:
                    target(data)
                except Finding as e:
                    self.fail(f"{name} with {data.hex()}: {e}")

    def test_small(self) -> None:
        """The corpus has fewer than 50 files and 200 kB, and nothing that is no target's."""
        files = list(fuzzing.CORPUS.iterdir())
        self.assertLess(len(files), 50)
        self.assertLess(sum(path.stat().st_size for path in files), 200_000)
        self.assertEqual({path.name for path in files}, {f"{name}.hex" for name in TARGETS})

    def test_mutations(self) -> None:
        """Some mutations of the corpus pass, too; they follow from the seed."""
        for name, target in TARGETS.items():
            inputs = fuzzing.corpusOf(name)
            one, other = (random.Random(7), random.Random(7))
            for _ in range(10):
                data = fuzzing.mutated(one, inputs)
                self.assertEqual(data, fuzzing.mutated(other, inputs))
                self.assertLessEqual(len(data), fuzzing.MAX_LENGTH)
                target(data)


class ScriptTests(SynchronousTestCase):
    """How a fuzzer's bytes are read."""

    def test_reads(self) -> None:
        """Numbers and strings come in order; past the end there are zeros."""
        script = Script(b"\x05\x02ab\x03x")
        self.assertEqual((script.number(4), script.string(), script.isOver), (1, b"ab", False))
        self.assertEqual((script.string(), script.isOver, script.number(9), script.string()), (b"x", True, 0, b""))

    def test_stepsAreBounded(self) -> None:
        """A script ends with its bytes, or after its most steps."""
        self.assertEqual(list(Script(b"\x01\x12").steps()), [1, 2])
        self.assertEqual(len(list(Script(bytes(1_000)).steps())), targets.MAX_STEPS)

    def test_fills(self) -> None:
        """Words stand where their bytes stood, and all fits into a frame."""
        self.assertEqual(fill(b"a\xc0b", {0xC0: b"id"}), b"aidb")
        self.assertLess(len(fill(b"\xc0" * 9, {0xC0: bytes(30_000)})), 65_536)


class FindingTests(SynchronousTestCase):
    """Targets see what is wrong."""

    def test_faultInTheServer(self) -> None:
        """An exception while a frame is handled is a finding, and ends up in the message."""

        def fail(*arguments: object) -> NoReturn:
            raise ZeroDivisionError("planted")

        targets.server(FILE_FRAME)
        self.patch(FileTransfers, "frameReceived", fail)
        for target in (targets.server, targets.store, targets.accounts):
            self.assertIn("fault in the server", str(self.assertRaises(Finding, target, FILE_FRAME)))
            self.assertTrue(self.flushLoggedErrors(ZeroDivisionError))

    def test_leftBehind(self) -> None:
        """A table that keeps users who have gone is a finding."""
        targets.server(WATCH)
        self.patch(Presence, "connectionLost", lambda self, connection: None)
        self.assertIn("left behind", str(self.assertRaises(Finding, targets.server, WATCH)))

    def test_framesThatDependOnTheCuts(self) -> None:
        """A decoder that loses the first frame of each piece is found."""
        stream = b"\x04" + b"\0\x03\7\0\0" * 3
        targets.frames(stream)
        decode = wire.decodeFrames
        self.patch(targets, "decodeFrames", lambda data: list(decode(data))[1:])
        self.assertRaises(Finding, targets.frames, stream)

    def test_decoderThatRaises(self) -> None:
        """Anything but a WireError comes out of a decoder's target."""

        def fail(body: bytes) -> NoReturn:
            raise IndexError

        self.patch(targets, "_FIELDS", [(fail, None)])
        self.assertRaises(IndexError, targets.fields, b"\0")
        self.patch(targets, "_FIELDS", [(decodeU32, None)])
        targets.fields(b"\0")
        self.assertRaises(WireError, decodeU32, b"")

    def test_brokenLogLine(self) -> None:
        """A log line that a stranger's text breaks in two is a finding, and one that quotes it is none."""
        log = Logger()

        def say(form: str) -> None:
            with watchedLog():
                log.info(form, name="a\nb")

        say("{name!r} is here")
        self.assertRaises(Finding, say, "{name} is here")

    def test_printsTheInput(self) -> None:
        """A finding is raised, and its input printed."""
        printed: list[str] = []
        self.patch(builtins, "print", lambda text, **_: printed.append(text))

        def fail(data: bytes) -> NoReturn:
            raise Finding

        self.assertRaises(Finding, fuzzing.fuzzPlainly, fail, [b"\1\2"], 5.0, 1)
        self.assertEqual(printed, ["FAILED with: 0102"])

    def test_minimises(self) -> None:
        """Of inputs that reach the same the shortest is kept, and one that reaches more than it."""
        found = fuzzing.minimised(targets.limits, [b"text=1", b"text=100", b"nothing"], 9)
        self.assertIn(b"text=1", found)
        self.assertNotIn(b"text=100", found)
        self.assertEqual(len(fuzzing.minimised(targets.limits, [b"text=1", b"nothing"], 1)), 1)


class CommandTests(SynchronousTestCase):
    """C{python -m benchmarks.fuzzing}."""

    def run_(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """Run it."""
        command = [sys.executable, "-m", "benchmarks.fuzzing", "--plain", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)

    def test_plain(self) -> None:
        """Without atheris a target is run for so long, and the number of inputs told."""
        ended = self.run_("--target", "frames", "--seconds", "0.05")
        self.assertEqual(ended.returncode, 0, ended.stderr)
        self.assertRegex(ended.stdout, r"^frames: [0-9,]+ inputs in 0.05 s, no finding\n$")

    def test_replay(self) -> None:
        """One input is tried alone."""
        self.assertEqual(self.run_("--target", "server", "--replay", FILE_FRAME.hex()).returncode, 0)

    def test_noSuchTarget(self) -> None:
        """A target that is none is told as that."""
        ended = self.run_("--target", "x")
        self.assertEqual(ended.returncode, 1)
        self.assertIn("there is no target 'x'", ended.stderr)
