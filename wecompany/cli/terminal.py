"""
A prompt at the bottom of the terminal, and messages above it.

Lines are read in a thread of their own: that works with every reactor, on every system, and lets the readline module do
history and completion.
"""

from __future__ import annotations

import codecs
import contextlib
import ctypes
import os
import sys
import threading
import unicodedata
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

from wecompany.cli.running import printable

PROMPT_WITHIN = 0.2
"""Seconds that a message waits at most for the prompt that is just being shown; it takes a thousandth of that."""

Complete = Callable[[str, str], list[str]]
"""Called with the line so far and its last word; returns what that word may become."""


def _readline() -> ModuleType | None:
    try:
        import readline
    except ImportError:  # Windows
        return None
    return readline


@contextlib.contextmanager
def terminalRestored() -> Iterator[None]:
    """Leave the terminal as it was, whatever a thread that still reads has done to it."""
    try:
        import termios
    except ImportError:  # Windows
        yield
        return
    before = termios.tcgetattr(sys.stdin) if sys.stdin.isatty() else None
    try:
        yield
    finally:
        if before is not None:
            termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


def _behindCursor(readline: ModuleType | None, typed: str) -> int:
    """Return how many columns of what is being typed stand behind the cursor; 0 where readline does not tell."""
    try:
        point = ctypes.c_int.in_dll(ctypes.CDLL(readline.__file__), "rl_point").value  # type: ignore[union-attr]
    except (AttributeError, OSError, TypeError, ValueError):  # no readline, one that is built in, or another than GNU's
        return 0
    behind = typed.encode()[point:].decode("utf-8", "ignore")
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in behind)


def _pipedLines(descriptor: int) -> Iterator[str]:
    """Yield the lines of a pipe, past C{sys.stdin}: Python aborts if it ends while a thread waits in there."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    rest = ""
    while data := os.read(descriptor, 65_536):
        *lines, rest = (rest + decoder.decode(data)).split("\n")
        yield from lines
    if rest:
        yield rest


class Terminal:
    """
    Reads lines and shows messages.

    @ivar prompt: what stands before the line that is being typed.
    """

    def __init__(self, reactor: Any, lineReceived: Callable[[str], None], ended: Callable[[], None]) -> None:
        """
        @param lineReceived: called in the reactor with each line.
        @param ended: called in the reactor when there are no more.
        """
        self._reactor = reactor
        self._lineReceived = lineReceived
        self._ended = ended
        self._isTerminal = sys.stdin.isatty() and sys.stdout.isatty()
        self._readline = _readline() if self._isTerminal else None
        self._goOn = threading.Event()
        # A message waits until the prompt is there, or is shown before it is asked for; never in between.
        self._lock = threading.Lock()
        self._isAsking = False
        self._atPrompt = threading.Event()
        self.prompt = "> "

    def start(self, complete: Complete) -> None:
        """Begin to read."""
        if self._readline is not None:
            readline = self._readline

            def completer(word: str, state: int) -> str | None:
                matches = complete(readline.get_line_buffer()[: readline.get_begidx()], word)
                return matches[state] if state < len(matches) else None

            readline.set_pre_input_hook(self._atPrompt.set)
            readline.set_completer(completer)
            readline.set_completer_delims(" ")
            readline.parse_and_bind("tab: complete")
        threading.Thread(target=self._read, daemon=True).start()

    def show(self, text: str) -> None:
        """Show C{text}, made printable, above the prompt, and leave what is being typed as it is."""
        text = printable(text)
        with self._lock:
            if not self._isAsking:
                print(text, flush=True)
                return
        self._atPrompt.wait(PROMPT_WITHIN)
        # Readline itself could show its line again, but it runs in another thread and is not made for two.
        typed = self._readline.get_line_buffer() if self._readline is not None else ""
        columns = _behindCursor(self._readline, typed)
        back = f"\x1b[{columns}D" if columns else ""
        sys.stdout.write(f"\r\x1b[K{text}\n{self.prompt}{typed}{back}")
        sys.stdout.flush()

    def close(self) -> None:
        """Leave the line that is being typed."""
        if self._isAsking:
            print(flush=True)

    def ring(self) -> None:
        """Ring the terminal's bell, where there is one."""
        if self._isTerminal:
            sys.stdout.write("\a")
            sys.stdout.flush()

    def _read(self) -> None:
        for line in self._typedLines() if self._isTerminal else _pipedLines(sys.stdin.fileno()):
            self._goOn.clear()
            self._reactor.callFromThread(self._take, line)
            self._goOn.wait()  # so that the next prompt is the one that this line leads to
        self._reactor.callFromThread(self._ended)

    def _typedLines(self) -> Iterator[str]:
        while True:
            try:
                with self._lock:
                    self._isAsking = True
                if self._readline is None:  # nothing is going to tell when the prompt is there
                    self._atPrompt.set()
                line = input(self.prompt)
                self._isAsking = False
                self._atPrompt.clear()
                yield line
            except (EOFError, UnicodeDecodeError):
                return

    def _take(self, line: str) -> None:
        try:
            self._lineReceived(line)
        finally:
            self._goOn.set()
