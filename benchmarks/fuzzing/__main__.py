"""
The fuzzer.

::

    python -m benchmarks.fuzzing --seconds 60                      all targets, one after the other
    python -m benchmarks.fuzzing --target server --seconds 600 --seed 7
    python -m benchmarks.fuzzing --target server --replay 0801...  one input, as a finding prints it

Where U{atheris<https://pypi.org/project/atheris/>} is installed it looks for inputs that reach new code; elsewhere
inputs are made by mutating those of the corpus.  A finding ends the run with its input in hexadecimal.  See
L{benchmarks.fuzzing.targets} for what the targets are.
"""

from __future__ import annotations

import argparse
import importlib
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from hashlib import sha1
from importlib.util import find_spec
from pathlib import Path
from types import FrameType
from typing import Any, cast

from twisted.logger import globalLogBeginner

CORPUS = Path(__file__).parent / "corpus"
"""Each target's file holds its inputs, one in hexadecimal in each line."""

MAX_LENGTH = 1_024
"""Bytes of an input."""

PACKAGE = "wecompany"
"""What coverage is about."""

Target = Callable[[bytes], None]


def corpusOf(name: str) -> list[bytes]:
    """Return a target's inputs."""
    path = CORPUS / f"{name}.hex"
    return [bytes.fromhex(line) for line in path.read_text().split("\n")[:-1]] if path.exists() else []


def writeCorpus(name: str, inputs: Sequence[bytes]) -> None:
    """Replace a target's inputs."""
    CORPUS.mkdir(exist_ok=True)
    (CORPUS / f"{name}.hex").write_text("".join(f"{data.hex()}\n" for data in inputs))


# -- Without atheris -----------------------------------------------------------------------------------------------


def mutated(chance: random.Random, inputs: Sequence[bytes]) -> bytes:
    """Return an input that resembles others."""
    data = bytearray(chance.choice(inputs))
    for _ in range(chance.choice((1, 1, 2, 4, 8))):
        how = chance.randrange(5)
        at = chance.randrange(len(data) + 1)
        if how == 0:
            data[at:at] = chance.randbytes(chance.choice((1, 2, 5, 30)))
        elif how == 1:
            del data[at : at + chance.choice((1, 2, 5, 30))]
        elif how == 2 and at < len(data):
            data[at] = chance.choice((0, 1, 0x7F, 0xFF, chance.randrange(256)))
        elif how == 3 and at < len(data):
            data[at] ^= 1 << chance.randrange(8)
        else:
            other = chance.choice(inputs)
            start = chance.randrange(len(other) + 1)
            data[at:] = other[start:]
    return bytes(data[:MAX_LENGTH])


def fuzzPlainly(target: Target, inputs: Sequence[bytes], seconds: float, seed: int) -> int:
    """Try inputs for so long, and return how many; a finding is raised, with its input as a note."""
    chance = random.Random(seed)
    inputs = [*inputs, b"", bytes(32)]
    until = time.monotonic() + seconds
    n = 0
    while time.monotonic() < until:
        data = inputs[n] if n < len(inputs) else mutated(chance, inputs)
        tryOne(target, data)
        n += 1
    return n


def tryOne(target: Target, data: bytes) -> None:
    """Try one input; print it if it is a finding."""
    try:
        target(data)
    except BaseException:
        print(f"FAILED with: {data.hex()}", flush=True)
        raise


# -- With atheris --------------------------------------------------------------------------------------------------


def fuzzGuided(atheris: Any, target: Target, folder: Path, seconds: float, seed: int) -> None:
    """Let atheris look for new ways through the code; it ends the process."""
    arguments = [sys.argv[0], str(folder), f"-max_total_time={max(1, round(seconds))}", f"-seed={seed}"]
    arguments += [f"-max_len={MAX_LENGTH}", "-len_control=20", "-print_final_stats=1", "-timeout=60"]
    arguments += ["-rss_limit_mb=2048", f"-artifact_prefix={folder}/finding-"]
    atheris.Setup(arguments, lambda data: tryOne(target, data))
    atheris.Fuzz()


@contextmanager
def asFiles(inputs: Sequence[bytes], keep: Path | None) -> Iterator[Path]:
    """Make a folder of inputs as libFuzzer wants it."""
    with nullcontext(str(keep)) if keep else tempfile.TemporaryDirectory(prefix="wecompany-fuzz-") as name:
        folder = Path(name)
        folder.mkdir(parents=True, exist_ok=True)
        for data in inputs:
            (folder / sha1(data, usedforsecurity=False).hexdigest()).write_bytes(data)
        yield folder


# -- The corpus ----------------------------------------------------------------------------------------------------


def ways(target: Target, data: bytes) -> set[tuple[str, int, int]]:
    """Return which lines of the package follow which ones when C{target} takes C{data}."""
    found: set[tuple[str, int, int]] = set()

    def enter(frame: FrameType, event: str, argument: object) -> Any:
        name = frame.f_code.co_filename
        if f"{os.sep}{PACKAGE}{os.sep}" not in name:
            return None
        last = 0

        def line(frame: FrameType, event: str, argument: object) -> Any:
            nonlocal last
            found.add((name, last, frame.f_lineno))
            last = frame.f_lineno
            return line

        return line

    before = sys.gettrace()
    sys.settrace(enter)
    try:
        target(data)
    finally:
        sys.settrace(before)
    return found


def minimised(target: Target, inputs: Sequence[bytes], most: int) -> list[bytes]:
    """Return the inputs that together reach the most, at most so many of them; the short ones first."""
    reached = {data: ways(target, data) for data in sorted(inputs, key=lambda data: (len(data), data))}
    chosen: list[bytes] = []
    have: set[tuple[str, int, int]] = set()
    while len(chosen) < most:
        best = max(reached, key=lambda data: len(reached[data] - have) / (len(data) + 64), default=None)
        if best is None or not reached[best] - have:
            break
        have |= reached.pop(best)
        chosen.append(best)
    print(f"{len(chosen)} of {len(inputs)} inputs reach {len(have)} ways")
    return chosen


# -- The command ---------------------------------------------------------------------------------------------------


def parseArguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(prog="fuzzing", description="Feed the parts of WeCompany any bytes.")
    parser.add_argument("--target", metavar="NAME", help="which one; all, one after the other, if not given")
    parser.add_argument("--seconds", type=float, default=60.0, help="how long each is run (default: 60)")
    parser.add_argument("--seed", type=int, default=1, help="what the inputs follow from (default: 1)")
    parser.add_argument("--plain", action="store_true", help="do without atheris, even if it is installed")
    parser.add_argument("--replay", metavar="HEX", help="try this input only, and show what comes of it")
    parser.add_argument("--keep", metavar="FOLDER", type=Path, help="keep the inputs that atheris finds there")
    parser.add_argument(
        "--minimise",
        metavar="N",
        type=int,
        help="replace the corpus by the N best inputs of it and of the folder of --keep",
    )
    asked = parser.parse_args(arguments)
    if (asked.replay or asked.keep or asked.minimise) and not asked.target:
        parser.error("--replay, --keep and --minimise go with --target")
    return asked


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    @return: its exit code: 0; 1 for a finding.
    """
    asked = parseArguments(arguments)
    isGuided = not (asked.plain or asked.replay or asked.minimise) and find_spec("atheris") is not None
    atheris = importlib.import_module("atheris") if isGuided else None
    # Else every event of the run is kept until somebody wants a log.
    globalLogBeginner.beginLoggingTo([cast(Any, lambda event: None)], discardBuffer=True, redirectStandardIO=False)
    # What has been imported before stays as it is, so nothing of the package is imported above.
    with nullcontext() if atheris is None else atheris.instrument_imports(include=[PACKAGE]):
        targets = importlib.import_module("benchmarks.fuzzing.targets").TARGETS
    if asked.target is None:
        return max(_runAlone(name, sys.argv[1:] if arguments is None else arguments) for name in targets)
    if asked.target not in targets:
        print(f"fuzzing: there is no target {asked.target!r}, there are {', '.join(targets)}", file=sys.stderr)
        return 1
    target = targets[asked.target]
    inputs = corpusOf(asked.target)
    if asked.replay is not None:
        tryOne(target, bytes.fromhex(asked.replay))
    elif asked.minimise:
        found = [path.read_bytes() for path in asked.keep.iterdir()] if asked.keep else []
        writeCorpus(asked.target, minimised(target, list({*inputs, *found}), asked.minimise))
    elif atheris is not None:
        with asFiles(inputs, asked.keep) as folder:
            fuzzGuided(atheris, target, folder, asked.seconds, asked.seed)
    else:
        n = fuzzPlainly(target, inputs, asked.seconds, asked.seed)
        print(f"{asked.target}: {n:,} inputs in {asked.seconds:g} s, no finding")
    return 0


def _runAlone(name: str, arguments: Sequence[str]) -> int:
    """Run one target in a process of its own, as atheris ends it; return its exit code."""
    print(f"-- {name}", flush=True)
    command = [sys.executable, "-m", "benchmarks.fuzzing", *arguments, "--target", name]
    return min(1, abs(subprocess.run(command, check=False).returncode))


if __name__ == "__main__":
    sys.exit(main())
