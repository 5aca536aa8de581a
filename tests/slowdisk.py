"""A server whose disk is in the hands of a test, slow, full or dead, and a transport whose kernel is."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred
from twisted.internet.error import ConnectionAborted
from twisted.internet.task import Clock

from wecompany.interfaces import StoreProblem
from wecompany.testing import MemoryServer, MemoryTransport

T = TypeVar("T")


class SlowDisk(MemoryServer):
    """
    A server that may wait for its disk for as long as one likes.

    @ivar isHeld: whether what the disk is asked for waits, for L{write} and L{release}.
    @ivar isFull: whether all that the disk is asked for fails.
    """

    def __init__(self, path: Path, clock: Clock | None = None, **options: Any) -> None:
        self.path = path
        self.options = options
        self.isHeld = self.isFull = False
        self._job: tuple[Callable[[], Any], Deferred[Any]] | None = None
        self._written: tuple[Deferred[Any], Any] | None = None
        super().__init__(path, clock, **options)
        assert self.store is not None
        # Nobody cuts the power here, and the tests need not wait for a real disk.
        self.store._database._connection.execute("PRAGMA synchronous = OFF")

    def _runLater(self, f: Callable[[], T]) -> Deferred[T]:
        if self.isFull:
            return super()._runLater(self._fail)
        if not self.isHeld:
            return super()._runLater(f)
        done: Deferred[T] = Deferred()
        self._job = f, done
        return done

    def _fail(self) -> Any:
        raise StoreProblem("the store is full")

    def write(self) -> None:
        """Let the disk do what it was asked for first; the server does not learn of it yet."""
        if self._job is not None:
            (f, done), self._job = self._job, None
            self._written = done, f()

    def tell(self) -> None:
        """Let the disk do what it was asked for first, and the server learn of it."""
        self.write()
        if self._written is not None:
            (done, result), self._written = self._written, None
            done.callback(result)
            self.pump()

    def fail(self) -> None:
        """Let what the disk was asked for first fail, and the server learn of it; then be fast again."""
        self.isHeld = False
        if self._job is not None:
            (_, done), self._job = self._job, None
            done.errback(StoreProblem("the store is full"))
            self.pump()

    def release(self) -> None:
        """Let the disk be fast again."""
        self.isHeld = False
        self.tell()

    def close(self) -> None:
        """Stop in good order, whatever state the disk is in."""
        self.isFull = False
        self.release()
        super().close()

    def killed(self) -> SlowDisk:
        """Return the server that is started after this one was killed right now, with what is on the disk."""
        path = self.path.with_name("again-" + self.path.name)
        for suffix in ("", "-wal"):
            shutil.copy(f"{self.path}{suffix}", f"{path}{suffix}")
        clock = Clock()  # time stands still for the dead
        clock.advance(self.clock.seconds())
        self.close()
        return SlowDisk(path, clock, **self.options)


class KernelTransport(MemoryTransport):
    """
    A transport that shows what the kernel has not taken, as Twisted's do.

    @ivar taken: bytes that the kernel has, of what a client has not that does not read.
    """

    offset = 0
    taken = 0

    @property
    def dataBuffer(self) -> bytes:
        """What waits for the kernel."""
        return self._buffer[self.taken :]

    @dataBuffer.setter
    def dataBuffer(self, data: bytes) -> None:
        self._buffer = self._buffer[: self.taken] + data

    def abortConnection(self) -> None:
        """Drop the connection, and what waits with it."""
        self._clock.callLater(0, self.lose, ConnectionAborted())
