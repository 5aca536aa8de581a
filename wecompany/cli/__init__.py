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
from wecompany.cli.admin import addAdminParser, runAdmin
from wecompany.cli.bench import addBenchParser, runBench
from wecompany.cli.running import DEFAULT_SERVER, EXIT_INTERRUPTED, EXIT_USAGE, Problem, isFile, isFolder, run, say
from wecompany.cli.tone import MAX_TONE
from wecompany.wire import MAX_PAYLOAD, WireError, checkUserId


def _userId(value: str) -> str:
    try:
        return checkUserId(value.encode())
    except (WireError, UnicodeEncodeError) as e:
        text = e.text if isinstance(e, WireError) else "a user ID is UTF-8"
        raise argparse.ArgumentTypeError(f"{value!r} is no user ID: {text}") from None


def _folder(value: str) -> Path:
    """Return a folder; one that is not there yet is made, in one that is."""
    path = _path(value)
    if not isFolder(path):
        try:
            path.mkdir()
        except OSError as e:
            raise argparse.ArgumentTypeError(f"{value} is not a folder, and cannot be made one: {e.strerror}") from None
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


def _certificate(value: str) -> tuple[Path, Path]:
    certificate, comma, key = value.partition(",")
    return _file(certificate), _file(key if comma else certificate)


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
        sub.add_argument("--tls", action="store_true", help="connect to HOST:PORT with TLS; so do --ca and --cert")
        sub.add_argument(
            "--ca", type=_file, metavar="FILE", help="whom to trust, in PEM [default: the system's authorities]"
        )
        sub.add_argument(
            "--cert",
            dest="certificate",
            type=_certificate,
            metavar="CERT[,KEY]",
            help="the certificate that speaks for you, and its key, in PEM",
        )
        return sub

    login = command("login", "log in with a password, for all commands to come")
    login.add_argument("--signup", action="store_true", help="create the account, where the server lets you")
    passwd = command("passwd", "change your password")
    for asking in (login, passwd):
        asking.add_argument(
            "--password-stdin",
            dest="passwordStdin",
            action="store_true",
            help="read it from the standard input, a line each, instead of asking for it",
        )
    command("logout", "end what login began")

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

    users = command("users", "list who is online", userNeeded=False)
    users.add_argument("--all", action="store_true", help="list everybody whom the server knows, and who is online")
    for name, help in (
        ("block", "let no text, call or file of somebody through to you"),
        ("unblock", "let somebody through again"),
    ):
        command(name, help).add_argument("whom", type=_userId, metavar="WHOM", help="that user's ID")
    addBenchParser(commands)
    addAdminParser(commands)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """
    Do what the command line says.

    @param argv: without the program's name; that of this process if not given.
    @return: the exit code.
    """
    options = makeParser().parse_args(argv)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):  # what the terminal has no letters for is shown some other way
            stream.reconfigure(errors="backslashreplace")
    try:
        if options.command == "admin":
            return runAdmin(options)
        if options.command == "bench":
            return runBench(options)
        options.isGuest = options.user is None
        if options.isGuest:
            options.user = f"users-{secrets.token_hex(4)}"
        if options.command == "send" and options.text == "-":
            options.text = sys.stdin.read(MAX_PAYLOAD)
        elif options.command in ("login", "passwd"):
            from wecompany.cli.account import readPasswords

            readPasswords(options)
        return run(options)
    except Problem as e:
        say(f"wecompany: {e}")
        return EXIT_USAGE
    except UnicodeDecodeError:
        say("wecompany: the standard input is not text")
        return EXIT_USAGE
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
