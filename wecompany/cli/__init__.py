"""
The ``wecompany`` command: a user of the server in a terminal, or in a script.

Exit codes: 0 all went well; 1 it did not get through (offline, rejected, cancelled, ...); 2 wrong usage;
3 no connection, or the server does not take this user; 130 Ctrl-C.
"""

from __future__ import annotations

import argparse
import secrets
import sys
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path

from wecompany._version import version
from wecompany.cli.running import EXIT_INTERRUPTED, EXIT_USAGE, Problem, isFile, isFolder, run, say
from wecompany.cli.tone import MAX_TONE
from wecompany.wire import MAX_PAYLOAD, WireError, checkUserId

DEFAULT_SERVER = "localhost:8888"


def _userId(value: str) -> str:
    try:
        return checkUserId(value.encode())
    except (WireError, UnicodeEncodeError) as e:
        text = e.text if isinstance(e, WireError) else "a user ID is UTF-8"
        raise argparse.ArgumentTypeError(f"{value!r} is no user ID: {text}") from None


def _folder(value: str) -> Path:
    path = _path(value)
    if not isFolder(path):
        raise argparse.ArgumentTypeError(f"{value} is not a folder")
    return path


def _file(value: str) -> Path:
    path = _path(value)
    if not isFile(path):
        raise argparse.ArgumentTypeError(f"{value} is not a file")
    return path


def _path(value: str) -> Path:
    try:
        return Path(value).expanduser()
    except RuntimeError as e:  # ~nobody
        raise argparse.ArgumentTypeError(f"{value}: {e}") from None


def _tone(value: str) -> float:
    try:
        seconds = float(value)
    except ValueError:
        seconds = 0
    if not 0 < seconds <= MAX_TONE:
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of seconds, {MAX_TONE} at most")
    return seconds


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of files")
    return int(value)


def makeParser() -> argparse.ArgumentParser:
    """Return the parser of the whole command line."""
    parser = argparse.ArgumentParser(
        prog="wecompany",
        description="Write, send files and call, as a user of a WeCompany Server.",
        epilog="Exit codes: 0 all went well; 1 it did not get through; 2 wrong usage; 3 no connection, or the server "
        "does not take this user; 130 Ctrl-C. Each command has a --help of its own.",
    )
    parser.add_argument("--version", action="version", version=f"wecompany {version}")
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def command(name: str, help: str, userNeeded: bool = True) -> argparse.ArgumentParser:
        sub = commands.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.add_argument("--as", dest="user", metavar="ME", type=_userId, required=userNeeded, help="your user ID")
        sub.add_argument(
            "--server",
            default=DEFAULT_SERVER,
            metavar="HOST:PORT",
            help=f"where the server is, or a Twisted client endpoint such as tls:HOST:PORT [default: {DEFAULT_SERVER}]",
        )
        return sub

    chat = command("chat", "write and call, line by line; /help inside tells how")
    chat.add_argument("--into", type=_folder, default=Path(), metavar="DIR", help="where files go [default: here]")

    send = command("send", "send one text")
    send.add_argument("to", type=_userId, metavar="WHOM", help="the user ID of whoever gets it")
    send.add_argument("text", metavar="TEXT", help="what to send; - reads it from the standard input")

    sendFile = command("send-file", "send a file, going on by itself when a connection drops")
    sendFile.add_argument("to", type=_userId, metavar="WHOM", help="the user ID of whoever gets it")
    sendFile.add_argument("path", type=_file, metavar="PATH", help="the file")

    receive = command("receive-files", "take the files that others send")
    receive.add_argument("--into", type=_folder, required=True, metavar="DIR", help="where they go")
    receive.add_argument(
        "--count", type=_count, default=0, metavar="N", help="leave after N files [default: Ctrl-C ends it]"
    )

    call = command("call", "call somebody and play a recording (Ogg Opus, or WebM with Opus and VP8)")
    call.add_argument("to", type=_userId, metavar="WHOM", help="the user ID of whoever is called")
    answer = command("answer", "wait for a call, take it, and record what comes")
    for choosy in (receive, answer):
        choosy.add_argument(
            "--from", dest="senders", action="append", type=_userId, metavar="WHOM", help="take only theirs; repeatable"
        )
    for talk in (call, answer):
        play = talk.add_mutually_exclusive_group()
        play.add_argument("--play", type=_file, metavar="FILE", help="what the other party gets to hear and see")
        play.add_argument("--tone", type=_tone, metavar="SECONDS", help="instead, play a tone for so long")
        talk.add_argument(
            "--record", type=_path, metavar="FILE", help="where what comes is kept: .ogg, or .webm for video"
        )

    command("users", "list who is online", userNeeded=False)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Do what the command line says.

    @param argv: without the program's name; that of this process if not given.
    @return: the exit code.
    """
    options = makeParser().parse_args(argv)
    if options.user is None:
        options.user = f"users-{secrets.token_hex(4)}"
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what the terminal has no letters for is shown some other way
            stream.reconfigure(errors="backslashreplace")
    try:
        if options.command == "send" and options.text == "-":
            options.text = sys.stdin.read(MAX_PAYLOAD)
        return run(options)
    except Problem as e:
        say(f"wecompany: {e}")
        return EXIT_USAGE
    except UnicodeDecodeError:
        say("wecompany: the standard input is not text")
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
