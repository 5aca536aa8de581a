"""
A server of our own, started for the measurement and pinned to one CPU, and C{wecompany bench} on another one.

::

    python -m benchmarks.bench                            start a server, measure it, print a table
    python -m benchmarks.bench --shape sparse -- --plain  the same for one shape, with an option for the server

A server that runs already is measured by C{wecompany bench} itself, which has all shapes of load; other benchmarks take
what they share from here.  Compare only figures that were measured within the same minutes, several times: what else
the machine does changes them by a fifth and more.

It runs on Linux: it reads CPU times and memory from /proc.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from wecompany.cli.bench import MAX_SIZE, addLoadOptions, askedOf, atLeast, parseShape, positive, shown, table
from wecompany.cli.load import (
    MUCH_STEAL,
    WARM_UP,
    Figures,
    Progress,
    cpuSeconds,
    machineTicks,
    measureAll,
    memory,
    percentile,
    raiseOpenFiles,
    stealPercent,
)
from wecompany.cli.running import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_OK, say
from wecompany.cli.target import ANSWER_WITHIN, RAISED, Target, Trouble

__all__ = [  # which the other benchmarks take from here
    "ANSWER_WITHIN",
    "MAX_SIZE",
    "MUCH_STEAL",
    "RAISED",
    "START_WITHIN",
    "WARM_UP",
    "Server",
    "Trouble",
    "atLeast",
    "cpuSeconds",
    "freePort",
    "machineTicks",
    "memory",
    "percentile",
    "positive",
    "raiseOpenFiles",
    "say",
    "shown",
    "startedServer",
    "stealPercent",
]

DEFAULT_SHAPES = ("idle:5000", "sparse", "window:8", "window:64")
"""What is measured, if nothing is said.  C{idle} is first: a server that has worked has memory to give already."""

START_WITHIN = 20.0
"""Seconds that a server has to listen."""

STOP_WITHIN = 10.0
"""Seconds that a server has to stop, before it is killed."""


@dataclass
class Server(Target):
    """
    A server that listens.

    @ivar output: what it has logged, when it was started here and has been stopped.
    @ivar exitCode: how it ended then, as L{subprocess} says it.
    """

    output: bytes = b""
    exitCode: int | None = None


def freePort() -> int:
    """Return a TCP port of this machine that nobody listens on."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        return int(listening.getsockname()[1])


@contextmanager
def startedServer(
    port: int = 0,
    cpu: int | None = None,
    options: Sequence[str] = RAISED,
    folder: Path | None = None,
    isAwaited: bool = True,
) -> Iterator[Server]:
    """
    Start a server as C{twistd} does, and stop it at the end, whatever happens; then its output is known.

    @param port: where it listens; 0 for a free port.
    @param cpu: the only CPU that it may use; C{None} for any.
    @param options: further ones.
    @param folder: where it runs and has its store; a temporary one if not given.
    @param isAwaited: whether it listens when this begins.
    @raise Trouble: if it does not start.
    """
    port = port or freePort()
    command = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()", "-n", "--pidfile="]
    with tempfile.TemporaryDirectory(prefix="wecompany-bench-") as temporary:
        command += ["--rundir", str(folder or temporary)]
        command += ["wecompany", "--interface", "127.0.0.1", "--port", str(port), *options]
        with started(command, Server("127.0.0.1", port), cpu, isAwaited) as server:
            yield server


_S = TypeVar("_S", bound=Server)


@contextmanager
def started(command: Sequence[str], server: _S, cpu: int | None = None, isAwaited: bool = True) -> Iterator[_S]:
    """
    Start any server, and stop it at the end, whatever happens; then its output is known.

    @param server: where it will listen; its process is filled in.
    @param cpu: the only CPU that it may use; C{None} for any.
    @param isAwaited: whether it listens when this begins.
    @raise Trouble: if it does not start, or ends by itself.
    """
    with tempfile.TemporaryFile() as log:
        # In a session of its own, so that a Ctrl-C is for us alone and the server is stopped in order.
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
        server.pid = process.pid
        try:
            if cpu is not None:
                os.sched_setaffinity(process.pid, {cpu})
            if isAwaited and not _listens(server, process):
                log.seek(0)
                raise Trouble(f"the server did not start:\n{log.read().decode(errors='replace')}")
            yield server
            if process.poll() is not None:
                log.seek(0)
                lines = log.read().decode(errors="replace").splitlines()
                raise Trouble("\n".join([f"the server ended with {process.returncode}:", *lines[-20:]]))
        finally:
            process.terminate()
            try:
                with suppress(subprocess.TimeoutExpired):
                    process.wait(STOP_WITHIN)
            finally:
                process.kill()
                server.exitCode = process.wait()
                log.seek(0)
                server.output = log.read()


def _listens(server: Server, process: subprocess.Popen[bytes]) -> bool:
    deadline = time.monotonic() + START_WITHIN
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(ConnectionError):
            socket.create_connection((server.host, server.port), ANSWER_WITHIN).close()
            # What answers could be somebody else's, if the port was taken meanwhile; then ours ends.
            return process.poll() is None
        time.sleep(0.05)
    return False


def twoCPUs() -> tuple[int | None, int | None]:
    """Return a CPU for the server and another one for the load; C{None} where there is only one for both."""
    cpus = sorted(os.sched_getaffinity(0))
    return (cpus[0], cpus[1]) if len(cpus) > 1 else (None, None)


def stopInOrder() -> None:
    """On SIGTERM: end as one should, and stop the server."""

    def stop(signalNumber: int, frame: object) -> None:
        raise SystemExit(128 + signalNumber)

    signal.signal(signal.SIGTERM, stop)


def parseArguments(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Return what was asked for."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.bench",
        description="Start a WeCompany server on the first CPU of this machine, and measure it from the second one as "
        "wecompany bench does, whose --help lists the shapes of load. Linux only.",
    )
    parser.add_argument(
        "options", nargs="*", metavar="OPTION", help="behind --: options for the server, besides those for its limits"
    )
    parser.add_argument("--port", type=atLeast(0), default=0, help="where the server listens [default: a free port]")
    addLoadOptions(parser, DEFAULT_SHAPES)
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """
    Run the command.

    @return: its exit code: 0; 1 if something went wrong; 130 after a Ctrl-C.
    """
    asked = parseArguments(arguments)
    if not sys.platform.startswith("linux"):
        say("bench: this runs on Linux only: it reads CPU times and memory from /proc")
        return EXIT_FAILED
    stopInOrder()
    serverCpu, loadCpu = twoCPUs()
    where = "the same CPU as the load, as there is only one" if loadCpu is None else f"CPU {serverCpu}"
    figures = Figures(" ".join(["twistd wecompany", *asked.options, "on", where]))
    if loadCpu is not None:
        os.sched_setaffinity(0, {loadCpu})
    shapes = list(dict.fromkeys(asked.shapes or map(parseShape, DEFAULT_SHAPES)))
    try:
        with startedServer(asked.port, serverCpu, (*RAISED, *asked.options)) as server:
            isStopped = measureAll(server, shapes, askedOf(asked), Progress(sys.stderr), figures)
    except (Trouble, OSError) as e:
        say(f"bench: {e}")
        return EXIT_FAILED
    except KeyboardInterrupt:
        isStopped = True
    print(json.dumps(asdict(figures)) if asked.json else table(figures))
    if isStopped:
        say("bench: stopped")
        return EXIT_INTERRUPTED
    return EXIT_FAILED if figures.problems else EXIT_OK


if __name__ == "__main__":
    sys.exit(main())
