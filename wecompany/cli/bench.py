"""``wecompany bench``: how fast a running server is, and what it costs, as a person asks for it and sees it."""

from __future__ import annotations

import argparse
import json
import ssl
import sys
import textwrap
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from wecompany.cli.load import (
    AUDIO_RATE,
    KINDS,
    WARM_UP,
    Asked,
    Figures,
    Progress,
    Shape,
    ShapeFigures,
    cpuSeconds,
    measureAll,
)
from wecompany.cli.running import (
    EXIT_FAILED,
    EXIT_INTERRUPTED,
    EXIT_NO_CONNECTION,
    EXIT_OK,
    Problem,
    hostAndPort,
    printable,
    say,
)
from wecompany.cli.target import HINT, RAISED, Target, Trouble, Unreachable
from wecompany.wire import WireError, checkUserId

DEFAULT_TARGET = "127.0.0.1:8888"
"""Where the server is, if nothing is said."""

DEFAULT_SHAPES = ("sparse", "window:8", "window:64", "calls:200")
"""What is measured, if nothing is said."""

LADDER = (25, 50, 100, 200, 300, 400, 500, 600, 700, 800, 1000)
"""Calls at once for a plot, if no others are asked for."""

MAX_SECONDS = 60
"""Seconds of a measurement: no connection is silent for so long that a server would close it."""

MAX_SIZE = 16_384
"""Bytes of a text: 64 of them are well below what may wait for one receiver."""

MAX_USERS = 100_000
"""Users of one load."""

HELP_WIDTH = 79
"""Characters of the lines of the help."""


# -- What is shown -------------------------------------------------------------------------------------------------

_WIDTHS = (13, 12, 10, 11, 11, 11, 8)


def shown(value: float | None) -> str:
    """Return a figure as a table shows it."""
    return "-" if value is None else f"{value:,.0f}" if value >= 1000 else f"{value:.1f}"


def table(figures: Figures) -> str:
    """Return all figures for a person to read."""
    lines = [f"server: {figures.server}"]
    if figures.shapes:
        lines += ["", _row("shape", "messages/s", "CPU µs each", "p50 µs", "p99 µs", "p999 µs", "max µs", "lost")]
    for f in figures.shapes:
        values = (f.messagesPerSecond, f.cpuMicros, f.p50Micros, f.p99Micros, f.p999Micros, f.maxMicros)
        lines.append(_row(f.shape, *map(shown, values), f"{f.lost:,}"))
    if figures.shapes and all(f.cpuMicros is None for f in figures.shapes):
        lines.append("The server's CPU is not known: name its process with --pid, if it is on this machine.")
    for idle in figures.idle:
        each = idle.kilobytesEach
        cost = "memory not known: name the server's process with --pid" if each is None else f"{each:.2f} kB each"
        lines += ["", f"idle: {idle.connections:,} registered connections, {cost}"]
    remarks = [f"{f.shape}: {note}" for f in figures.shapes for note in f.notes]
    remarks += [f"{shape}: {why}" for shape, why in figures.problems.items()]
    for remark in remarks:
        lines += ["", remark.removesuffix(f"\n{HINT}")]
    if any(remark.endswith(HINT) for remark in remarks):
        lines += ["", HINT]
    return "\n".join(lines)


def _row(name: str, *cells: str) -> str:
    return f"{name:<15}" + "".join(f"{cell:>{width}}" for cell, width in zip(cells, _WIDTHS, strict=True))


def plotLatency(series: Mapping[str, Sequence[ShapeFigures]], path: Path) -> None:
    """
    Draw latency against load: half of the messages took at most the dashed line, 99 of 100 the solid one.

    @param series: for each server's name, what was measured under C{calls:N}.
    @raise Problem: if there is nothing to draw it with, or it cannot be written.
    """
    Canvas, Figure = _plotting()
    figure = Figure(figsize=(8, 5), layout="constrained")
    Canvas(figure)
    axes = figure.add_subplot()
    for index, (name, measured) in enumerate(series.items()):
        points = sorted((int(f.shape.partition(":")[2]), f.p50Micros / 1000, f.p99Micros / 1000) for f in measured)
        calls, halves, most = zip(*points, strict=True) if points else ((), (), ())
        axes.plot(calls, most, f"C{index}o-", markersize=3, label=f"{name} p99")
        axes.plot(calls, halves, f"C{index}--", linewidth=1, label=f"{name} p50")
    axes.set_yscale("log")
    axes.set_xlabel(f"two-way calls at once, {2 * AUDIO_RATE} pieces of audio a second each")
    axes.set_ylabel("latency, ms")
    axes.grid(visible=True, which="both", alpha=0.3)
    if series:
        axes.legend(fontsize="small")
    try:
        figure.savefig(path)
    except (OSError, ValueError) as e:
        raise Problem(f"--plot {path}: {getattr(e, 'strerror', None) or e}") from None


def _plotting() -> tuple[Any, Any]:
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise Problem('a plot needs matplotlib: pip install "wecompany[bench]"') from None
    return FigureCanvasAgg, Figure


# -- The command ---------------------------------------------------------------------------------------------------


def atLeast(least: int, most: int | None = None) -> Callable[[str], int]:
    """
    Return what argparse takes for a whole number of C{least} or more.

    @param most: the highest one, if there is a bound.
    """
    bounds = f"{least} or more" if most is None else f"from {least} to {most}"

    def whole(text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and least <= int(text) <= (most or int(text))):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number, {bounds}")
        return int(text)

    return whole


def positive(text: str) -> float:
    """Return a number of seconds, as argparse wants it."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _measurable(text: str) -> float:
    seconds = positive(text)
    if seconds > MAX_SECONDS:
        raise argparse.ArgumentTypeError(f"a shape is measured for {MAX_SECONDS} s at most")
    return seconds


def _server(text: str) -> tuple[str, int]:
    try:
        return hostAndPort(text)
    except Problem as e:
        raise argparse.ArgumentTypeError(str(e).removeprefix("--server ")) from None


def _picture(text: str) -> Path:
    path = Path(text)
    if path.suffix not in (".png", ".svg", ".pdf"):
        raise argparse.ArgumentTypeError(f"{text!r}: a plot is a .png, .svg or .pdf file")
    return path


def parseShape(text: str) -> Shape:
    """Return the shape that C{NAME} or C{NAME:N} is, as argparse wants it."""
    name, colon, number = text.partition(":")
    kind = KINDS.get(name)
    if kind is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no shape of load; there are {', '.join(KINDS)}")
    if not colon:
        return Shape(name, kind.number)
    if kind.number is None:
        raise argparse.ArgumentTypeError(f"{text!r}: {name} takes no number")
    most = 64 if name == "window" else MAX_USERS
    try:
        return Shape(name, atLeast(1, most)(number))
    except argparse.ArgumentTypeError as e:
        raise argparse.ArgumentTypeError(f"{text!r}: {e}") from None


def _usersIn(path: Path) -> list[tuple[bytes, bytes]]:
    try:
        lines = path.read_bytes().splitlines()
    except OSError as e:
        raise Problem(f"--users {path}: {e.strerror or e}") from None
    users = []
    for number, line in enumerate(lines, 1):
        userId, _, credential = line.partition(b"\t")
        try:
            checkUserId(userId)
        except WireError as e:
            raise Problem(f"--users {path}: line {number}: {e.text}") from None
        users.append((userId, credential))
    if len({userId for userId, _ in users}) < max(1, len(users)):
        raise Problem(f"--users {path}: it names {'a user twice' if users else 'nobody'}")
    return users


def addLoadOptions(parser: argparse.ArgumentParser, shapes: Iterable[str]) -> None:
    """
    Add the options that say what to measure, and how, as L{askedOf} takes them.

    @param shapes: what is measured without any, for the help.
    """
    parser.add_argument(
        "--shape",
        dest="shapes",
        action="append",
        type=parseShape,
        metavar="NAME[:N]",
        help=f"what to measure; repeatable [default: {' '.join(shapes)}]",
    )
    parser.add_argument(
        "--pairs",
        type=atLeast(1, MAX_USERS // 2),
        default=Asked.pairs,
        help="pairs of users in sparse and window [default: %(default)s]",
    )
    parser.add_argument(
        "--size", type=atLeast(1, MAX_SIZE), default=Asked.size, help="bytes of each text [default: %(default)s]"
    )
    parser.add_argument(
        "--seconds",
        type=_measurable,
        default=Asked.seconds,
        help=f"how long each shape is measured, after {WARM_UP:g} s of it [default: %(default)g]",
    )


def askedOf(options: argparse.Namespace) -> Asked:
    """Return how to measure."""
    return Asked(options.pairs, options.size, options.seconds)


def addBenchParser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """
    Add C{bench} to the commands of a command line.

    @param commands: what C{add_subparsers} returned.
    """
    bench = commands.add_parser(
        "bench",
        help="measure how fast a running server is",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=textwrap.fill(
            "Load a running server as many users would, and measure it: messages a second, the time from the sending "
            "of a message to its arrival, messages that were lost, and, where the server is a process of this machine "
            "(--pid, on Linux), its CPU time for each message delivered and its memory.",
            HELP_WIDTH,
        ),
        epilog=_epilog(),
    )
    bench.add_argument(
        "target",
        nargs="?",
        type=_server,
        default=_server(DEFAULT_TARGET),
        metavar="HOST[:PORT]",
        help=f"where the server is [default: {DEFAULT_TARGET}]",
    )
    bench.add_argument("--tls", action="store_true", help="connect with TLS; so does --ca")
    bench.add_argument(
        "--ca", type=Path, metavar="FILE", help="whom to trust, in PEM [default: the system's authorities]"
    )
    bench.add_argument(
        "--users",
        type=Path,
        metavar="FILE",
        help="where the server has accounts: a line for each, its user ID, a tab, and its password or token",
    )
    addLoadOptions(bench, DEFAULT_SHAPES)
    bench.add_argument("--pid", type=atLeast(1), help="the server's process on this machine, for its CPU and memory")
    bench.add_argument("--json", action="store_true", help="print one JSON object instead of the table")
    bench.add_argument(
        "--plot",
        type=_picture,
        metavar="FILE.png",
        help=f"draw the latency of all calls:N against the load [default: calls:{LADDER[0]} to calls:{LADDER[-1]}]",
    )


def _epilog() -> str:
    def paragraph(text: str) -> str:
        return textwrap.fill(text, HELP_WIDTH)

    shapes = []
    for name, kind in KINDS.items():
        head, default = (name, "") if kind.number is None else (f"{name}:N", f" [{kind.number}]")
        shapes += textwrap.wrap(f"  {head:<12} {kind.what}{default}", HELP_WIDTH, subsequent_indent=" " * 15)
    command = f"twistd -n --pidfile= wecompany --database=none --broadcast {' '.join(RAISED)}"
    start = textwrap.wrap(command, HELP_WIDTH - 6, break_on_hyphens=False)
    return "\n\n".join(
        [
            "\n".join(["shapes of load:", *shapes]),
            paragraph("A server in use has limits that this is over. Start one for the measurement, with higher ones:"),
            "  " + " \\\n    ".join(start),
            paragraph(
                "Compare only what was measured in the same minutes, several times, with the server and this command "
                "on CPUs of their own (taskset on Linux)."
            ),
            paragraph(
                "Exit codes: 0 all was measured; 1 something was not; 2 wrong usage; 3 no connection; 130 Ctrl-C, "
                "which ends it and still shows what was measured."
            ),
        ]
    )


def _targetOf(options: argparse.Namespace) -> Target:
    context = None
    if options.tls or options.ca:
        try:
            context = ssl.create_default_context(cafile=options.ca)
        except (OSError, ssl.SSLError) as e:
            raise Problem(f"{options.ca}: {e.strerror or e}") from None
    host, port = options.target
    if options.pid is not None:
        try:
            cpuSeconds(options.pid)
        except Trouble as e:
            raise Problem(f"--pid {options.pid}: {e}") from None
    return Target(host, port, options.pid, context, _usersIn(options.users) if options.users else ())


def _shapesOf(options: argparse.Namespace) -> list[Shape]:
    if options.plot is None:
        return list(dict.fromkeys(options.shapes or map(parseShape, DEFAULT_SHAPES)))
    shapes = list(dict.fromkeys(options.shapes or ()))
    if not any(shape.name == "calls" for shape in shapes):
        shapes += [Shape("calls", n) for n in LADDER]
    return shapes


def runBench(options: argparse.Namespace) -> int:
    """
    Do what C{wecompany bench} was asked for.

    @return: the exit code.
    @raise Problem: if something has to be put right first.
    """
    if options.plot:
        _plotting()
        if not options.plot.parent.is_dir():
            raise Problem(f"--plot {options.plot}: there is no such folder")
    target = _targetOf(options)
    figures = Figures(str(target) + (" over TLS" if target.tls else ""))
    code = EXIT_OK
    try:
        if measureAll(target, _shapesOf(options), askedOf(options), Progress(sys.stderr), figures):
            say("wecompany: stopped; this was measured until then")
            code = EXIT_INTERRUPTED
        elif figures.problems:
            code = EXIT_FAILED
    except Unreachable as e:
        say(f"wecompany: {e}")
        code = EXIT_NO_CONNECTION
        if not (figures.shapes or figures.idle):
            return code
    # Line by line, as none of these lines is to be set in.
    print(json.dumps(asdict(figures)) if options.json else "\n".join(map(printable, table(figures).splitlines())))
    calls = [f for f in figures.shapes if f.shape.startswith("calls:")]
    if options.plot and calls:
        plotLatency({str(target): calls}, options.plot)
    return code
