"""The installed programs as processes of their own, for the tests that need the real thing."""

from __future__ import annotations

import contextlib
import os
import queue
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from time import monotonic

BIN = Path(sys.executable).parent
TIMEOUT = 30.0


class Process:
    """
    A program with its output, line by line.

    @ivar lines: what it has printed so far, on both outputs.
    """

    def __init__(
        self,
        program: str,
        *arguments: str | Path,
        folder: tempfile.TemporaryDirectory[str] | None = None,
        package: Path | None = None,
    ) -> None:
        """
        @param folder: what goes when the process has ended.
        @param package: a folder that has the package which the program uses; without one, it is what is installed.
        """
        self._folder = folder
        self._process = subprocess.Popen(
            [BIN / program, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            env=None if package is None else {**os.environ, "PYTHONPATH": str(package)},
        )
        self._queue: queue.Queue[str | None] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()
        self.lines: list[str] = []

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._queue.put(line.rstrip("\n"))
        self._queue.put(None)

    def type(self, line: str) -> None:
        """Type a line."""
        assert self._process.stdin is not None
        self._process.stdin.write(line + "\n")
        self._process.stdin.flush()

    def waitFor(self, text: str, seconds: float = TIMEOUT) -> str:
        """Return the next line with C{text} in it; fail if there is none in time."""
        deadline = monotonic() + seconds
        while True:
            try:
                line = self._queue.get(timeout=max(0.0, deadline - monotonic()))
            except queue.Empty:
                raise AssertionError(f"{text!r} did not come in {seconds} s:\n" + "\n".join(self.lines)) from None
            if line is None:
                raise AssertionError(f"{text!r} did not come before the end:\n" + "\n".join(self.lines))
            self.lines.append(line)
            if text in line:
                return line

    def signal(self, number: int) -> None:
        """Send it a signal."""
        self._process.send_signal(number)

    def wait(self, seconds: float = TIMEOUT) -> int:
        """Return its exit code when it has ended."""
        code = self._process.wait(seconds)
        while (line := self._queue.get(timeout=TIMEOUT)) is not None:
            self.lines.append(line)
        return code

    def end(self) -> None:
        """Make sure that nothing is left of it."""
        if self._process.poll() is None:
            self._process.kill()
        self._process.wait(TIMEOUT)
        self._reader.join(TIMEOUT)
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        if self._folder is not None:
            self._folder.cleanup()


def freePort() -> int:
    """Return a TCP port of the loopback that nobody uses now."""
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        port: int = s.getsockname()[1]
        return port


def startServer(port: int, *options: str, package: Path | None = None) -> Process:
    """Return a server that listens on that port of the loopback; C{package} is as L{Process} has it."""
    folder = tempfile.TemporaryDirectory(prefix="wecompany-test-")  # for its store
    interface = "--interface", "127.0.0.1"
    server = Process(
        *("twistd", "-n", "--pidfile=", "--rundir", folder.name, "wecompany"),
        *(*interface, "--port", str(port), *options),
        folder=folder,
        package=package,
    )
    server.waitFor("starting on" if "--accounts" in options else "runs open")
    return server


class Proxy:
    """
    A network between clients and a server that can be cut.

    @ivar isDown: whether it lets nobody in.
    """

    isDown = False

    def __init__(self, target: int) -> None:
        self._target = target
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._pairs: list[tuple[socket.socket, socket.socket]] = []
        self._passed = 0
        self._lock = threading.Lock()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def passed(self) -> int:
        """Return how many bytes have gone towards the server."""
        return self._passed

    def cut(self) -> None:
        """Break every connection."""
        with self._lock:
            pairs, self._pairs = self._pairs, []
        for pair in pairs:
            for end in pair:
                with contextlib.suppress(OSError):
                    end.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Stop."""
        self._listener.close()
        self.cut()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            try:
                if self.isDown:
                    raise ConnectionRefusedError
                far = socket.create_connection(("127.0.0.1", self._target))
            except OSError:  # or the server is
                near.close()
            else:
                with self._lock:
                    self._pairs.append((near, far))
                threading.Thread(target=self._pump, args=(near, far), daemon=True).start()

    def _pump(self, near: socket.socket, far: socket.socket) -> None:
        with near, far, contextlib.suppress(OSError):
            while True:
                for source in select.select([near, far], [], [])[0]:
                    data = source.recv(65536)
                    if not data:
                        return
                    if source is near:
                        self._passed += len(data)
                    (far if source is near else near).sendall(data)


INTERRUPT = signal.SIGINT
TERMINATE = signal.SIGTERM
KILL = signal.SIGKILL
