"""How far a file is: a bar where rich is installed and somebody looks, plain lines elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Protocol, TextIO

from wecompany.cli.running import printable


class ProgressDisplay(Protocol):
    """Shows one transfer."""

    def __call__(self, done: int, total: int, /) -> None:
        """So many bytes of so many are through."""

    def close(self) -> None:
        """It is over, well or not."""


def size(n: float) -> str:
    """Return a number of bytes for a person to read."""
    for unit in ("B", "kB", "MB", "GB"):
        if n < 1000:
            return f"{n:.0f} {unit}" if unit == "B" else f"{n:.1f} {unit}"
        n /= 1000
    return f"{n:.1f} TB"


class PlainProgress:
    """A line for each tenth of the file."""

    def __init__(self, name: str, stream: TextIO) -> None:
        self._name = name
        self._stream = stream
        self._tenths = -1

    def __call__(self, done: int, total: int, /) -> None:
        """See L{ProgressDisplay.__call__}."""
        tenths = 10 * done // total if total else 10
        if tenths > self._tenths:
            self._tenths = tenths
            print(f"{self._name}: {10 * tenths:3} %  {size(done)} of {size(total)}", file=self._stream, flush=True)

    def close(self) -> None:
        """See L{ProgressDisplay.close}."""


def _richProgress(name: str, stream: TextIO) -> ProgressDisplay | None:
    try:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn, TransferSpeedColumn
    except ImportError:
        return None

    class RichProgress:
        def __init__(self) -> None:
            columns = (
                "{task.description}",
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
            )
            self._progress = Progress(
                *columns, console=Console(file=stream), redirect_stdout=False, redirect_stderr=False
            )
            self._task = self._progress.add_task(name.replace("[", r"\["), total=None)
            self._progress.start()

        def __call__(self, done: int, total: int, /) -> None:
            self._progress.update(self._task, completed=done, total=total)

        def close(self) -> None:
            self._progress.stop()

    return RichProgress()


def showProgress(
    name: str, stream: TextIO | None = None, rich: Callable[[str, TextIO], ProgressDisplay | None] = _richProgress
) -> ProgressDisplay:
    """
    Return what shows the progress of one transfer.

    @param stream: where; the standard error if not given.
    """
    stream = stream or sys.stderr
    name = printable(name)
    return (rich(name, stream) if stream.isatty() else None) or PlainProgress(name, stream)
