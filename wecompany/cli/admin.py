"""
``wecompany admin``: the accounts and the history of a server, in its database, while it runs or not.

Exit codes: 0 all went well; 1 it could not be done, or ``check`` has found something; 2 wrong usage.
"""

from __future__ import annotations

import argparse
import getpass
import json
import os
import secrets
import shlex
import sys
import unicodedata
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from wecompany.accounts import MAX_PASSWORD, checkNewPassword, hashPassword
from wecompany.cli.running import EXIT_FAILED, EXIT_OK, EXIT_USAGE, Problem, printable, say
from wecompany.database import Database
from wecompany.interfaces import AccountExists, NoSuchAccount, StoreProblem
from wecompany.wire import WireError, checkUserId

DEFAULT_DATABASE = Path("wecompany.sqlite")
"""The database that is looked for in the current folder."""

DEFAULT_LAST = 50
"""Entries of a history that are shown."""

GENERATED_LENGTH = 16
"""Characters of a generated password: 80 bits."""

GENERATED_FROM = "abcdefghijkmnopqrstuvwxyz2346789"
"""What it consists of: 32 characters, none of which looks like another one."""

Row = dict[str, Any]
"""What is shown of one thing: the columns' names and their values."""


class _Failed(Exception):
    """It could not be done, and the text says why."""


# -- the command line ----------------------------------------------------------------------------------------------


def _user(value: str) -> bytes:
    try:
        userId = value.encode()
        checkUserId(userId)
    except (WireError, UnicodeEncodeError) as e:
        text = e.text if isinstance(e, WireError) else "a user ID is UTF-8"
        raise argparse.ArgumentTypeError(f"{value!r} is no user ID: {text}") from None
    return userId


def _count(value: str) -> int:
    if not (value.isascii() and value.isdigit() and len(value) < 10 and int(value) > 0):
        raise argparse.ArgumentTypeError(f"{value!r} is not a number of entries")
    return int(value)


def addAdminParser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """
    Add C{admin}, with its own subcommands, to the commands of a command line.

    @param commands: what C{add_subparsers} returned.
    """
    admin = commands.add_parser(
        "admin",
        help="manage the accounts and look at the history of a server, in its database",
        description="Manage the accounts and look at the history of a server, in its database, while it runs or not.",
        epilog="Exit codes: 0 all went well; 1 it could not be done, or check has found something; 2 wrong usage. "
        "Each command has a --help of its own.",
    )
    actions = admin.add_subparsers(title="commands", dest="action", metavar="COMMAND", required=True)

    def action(name: str, help: str, do: Callable[[Database, argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = actions.add_parser(name, help=help, description=help[0].upper() + help[1:] + ".")
        sub.set_defaults(do=do)
        sub.add_argument(
            "--database",
            type=Path,
            default=DEFAULT_DATABASE,
            metavar="PATH",
            help=f"the server's database [default: {DEFAULT_DATABASE} in the current folder]",
        )
        sub.add_argument("--json", action="store_true", help="answer in JSON, for scripts")
        return sub

    def account(name: str, help: str, do: Callable[[Database, argparse.Namespace], int]) -> argparse.ArgumentParser:
        sub = action(name, help, do)
        sub.add_argument("name", type=_user, metavar="USER", help="the user ID")
        return sub

    action("users", "list the users, with an account or only remembered", _users)
    add = account("add", "make an account, and the database if there is none yet", _add)
    account("delete", "delete a user with all that waits for it; who is online is put out", _delete)
    account("disable", "let a user in no more; who is online is put out", _disable)
    account("enable", "let a disabled user in again", _enable)
    password = account("password", "set a password, and revoke all tokens", _password)
    account("revoke", "revoke all tokens of a user, who then has to give the password again", _revoke)
    for setting in (add, password):
        how = setting.add_mutually_exclusive_group()
        how.add_argument("--password-stdin", action="store_true", help="read the password from the standard input")
        how.add_argument("--generate", action="store_true", help="make a password, and show it")
    calls = action("calls", "list the calls that there have been", _calls)
    calls.add_argument("--user", dest="whose", type=_user, metavar="USER", help="only those with this user")
    audit = action("audit", "list who has done what to which account", _audit)
    for history in (calls, audit):
        history.add_argument(
            "--last", type=_count, default=DEFAULT_LAST, metavar="N", help=f"so many [default: {DEFAULT_LAST}]"
        )
    backup = action("backup", "copy the database, while the server runs or not", _backup)
    backup.add_argument("path", type=Path, metavar="PATH", help="where the copy goes; nothing may be there yet")
    action("check", "test the whole database, and count what is in it", _check)


def runAdmin(options: argparse.Namespace) -> int:
    """
    Do what an C{admin} command line says.

    @return: the exit code.
    """
    path: Path = options.database
    isNew = not path.exists()
    try:
        if isNew and options.action != "add":
            raise _Failed(f"there is no database {str(path)!r}: say with --database PATH where the server's is")
        database = Database(path, mustExist=not isNew)
        if isNew:
            say(f"There was no database {str(path)!r}: it is made.")
        try:
            code: int = options.do(database, options)
        finally:
            database.close()
    except Problem as e:
        say(f"wecompany admin: {e}")
        return EXIT_USAGE
    except (_Failed, StoreProblem) as e:
        say(f"wecompany admin: {e}")
        return EXIT_FAILED
    except NoSuchAccount:
        known = shlex.join(["wecompany", "admin", "users", "--database", str(path)])
        say(f"wecompany admin: there is no account {_shown(options.name)}; {known} lists them")
        return EXIT_FAILED
    return code


# -- what is shown -------------------------------------------------------------------------------------------------


def _shown(userId: bytes) -> str:
    return userId.decode("utf-8", "replace")


def _time(milliseconds: int | None) -> str | None:
    if milliseconds is None:
        return None
    return datetime.fromtimestamp(milliseconds // 1000).astimezone().isoformat(" ")


def _width(text: str) -> int:
    """Return how many columns of a terminal C{text} takes."""
    return sum(0 if unicodedata.combining(c) else 2 if unicodedata.east_asian_width(c) in "WF" else 1 for c in text)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return printable(str(value)).replace("\n", " ")


def _table(rows: Sequence[Row]) -> Iterable[str]:
    lines = [list(rows[0]), *([_cell(value) for value in row.values()] for row in rows)]
    widths = [max(map(_width, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell + " " * (width - _width(cell)) for cell, width in zip(line, widths, strict=True))
        yield "  ".join(cells).rstrip()


def _list(options: argparse.Namespace, rows: Sequence[Row], nothing: str) -> int:
    """Show a table."""
    if options.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif rows:
        print("\n".join(_table(rows)))
    else:
        say(nothing)
    return EXIT_OK


def _answer(options: argparse.Namespace, row: Row, text: str) -> int:
    """Show what has been done."""
    print(json.dumps(row, ensure_ascii=False) if options.json else printable(text))
    return EXIT_OK


# -- accounts ------------------------------------------------------------------------------------------------------


def _actor() -> str:
    """Return who does it: as the system has it, as the environment can say anything."""
    try:
        import pwd

        return f"admin:{pwd.getpwuid(os.getuid()).pw_name}"
    except ImportError:  # Windows
        return f"admin:{getpass.getuser()}"
    except KeyError:  # a user without a name, as in containers
        return f"admin:{os.getuid()}"


def _newPassword(options: argparse.Namespace) -> bytes:
    """
    Return the password that is to be set.

    @raise Problem: there is none, or it may not be one.
    """
    if options.generate:
        return "".join(secrets.choice(GENERATED_FROM) for _ in range(GENERATED_LENGTH)).encode()
    if options.password_stdin:
        password = sys.stdin.buffer.readline(MAX_PASSWORD + 3).rstrip(b"\r\n")
    elif sys.stdin.isatty():
        try:
            first, second = (getpass.getpass(prompt) for prompt in ("Password: ", "The same again: "))
        except EOFError:
            raise Problem("no password, so nothing is done") from None
        if first != second:
            raise Problem("these are two different passwords, so nothing is done: try again")
        password = first.encode("utf-8", "surrogateescape")
    else:
        raise Problem("there is no terminal to ask at: give the password with --password-stdin, or --generate one")
    try:
        checkNewPassword(password)
    except WireError as e:
        raise Problem(f"{e.text}, so nothing is done") from None
    return password


def _setPassword(options: argparse.Namespace, password: bytes, text: str) -> int:
    row = {"user": _shown(options.name)}
    if options.generate:
        row["password"] = password.decode()
        text += f"\nPassword: {row['password']}"
    print(json.dumps(row, ensure_ascii=False) if options.json else text)
    return EXIT_OK


def _getAccount(database: Database, name: bytes) -> None:
    if database.transact(database.account, name) is None:
        raise NoSuchAccount(name)


def _users(database: Database, options: argparse.Namespace) -> int:
    rows = [
        {
            "user": _shown(user.name),
            "account": user.hasAccount,
            "disabled": user.isDisabled,
            "created": _time(user.createdAt),
            "last seen": _time(user.seenAt),
            "texts waiting": user.waitingTexts,
        }
        for user in database.users()
    ]
    return _list(options, rows, "There are no users; wecompany admin add USER makes an account.")


def _add(database: Database, options: argparse.Namespace) -> int:
    name = _shown(options.name)
    taken = f"{name} has an account already; wecompany admin password {shlex.quote(name)} sets its password"
    if database.transact(database.account, options.name) is not None:
        raise _Failed(taken)
    password = _newPassword(options)
    try:
        database.transact(database.addAccount, options.name, hashPassword(password), _actor())
    except AccountExists:
        raise _Failed(taken) from None
    return _setPassword(
        options, password, f"{name} has an account now, and logs in with: wecompany login --as {shlex.quote(name)}"
    )


def _password(database: Database, options: argparse.Namespace) -> int:
    _getAccount(database, options.name)
    password = _newPassword(options)
    database.transact(database.setPassword, options.name, hashPassword(password), _actor())
    return _setPassword(
        options,
        password,
        f"{_shown(options.name)} has a new password; all tokens are revoked, so it is asked for next.",
    )


def _delete(database: Database, options: argparse.Namespace) -> int:
    database.transact(database.deleteUser, options.name, _actor())
    name = _shown(options.name)
    return _answer(options, {"user": name, "changed": True}, f"{name} is deleted, and all that waited for {name} too.")


def _disable(database: Database, options: argparse.Namespace) -> int:
    changed = database.transact(database.disable, options.name, _actor())
    name = _shown(options.name)
    text = f"{name} is {'disabled' if changed else 'disabled already'}: nobody gets in as {name} until "
    undo = f"wecompany admin enable {shlex.quote(name)}"
    return _answer(options, {"user": name, "changed": changed}, text + undo)


def _enable(database: Database, options: argparse.Namespace) -> int:
    changed = database.transact(database.enable, options.name, _actor())
    name = _shown(options.name)
    text = f"{name} may log in again, with the password." if changed else f"{name} is not disabled."
    return _answer(options, {"user": name, "changed": changed}, text)


def _revoke(database: Database, options: argparse.Namespace) -> int:
    _getAccount(database, options.name)
    revoked = database.transact(database.revokeTokens, options.name, b"", _actor())
    name = _shown(options.name)
    text = (
        f"{revoked} token{'' if revoked == 1 else 's'} revoked: {name} has to give the password at the next log-in. "
        f"Who is online as {name} stays so; wecompany admin disable {shlex.quote(name)} puts out."
    )
    return _answer(options, {"user": name, "revoked": revoked}, text)


# -- the history, and the file -------------------------------------------------------------------------------------


def _calls(database: Database, options: argparse.Namespace) -> int:
    rows = [
        {
            "began": _time(call.startedAt),
            "caller": _shown(call.caller),
            "callee": _shown(call.callee),
            "video": call.isVideo,
            "seconds": None if call.answeredAt is None else max(0, round((call.endedAt - call.answeredAt) / 1000)),
            "outcome": call.outcome,
        }
        for call in reversed(database.calls(options.last, options.whose))
    ]
    return _list(options, rows, "There have been no calls.")


def _audit(database: Database, options: argparse.Namespace) -> int:
    rows = [
        {
            "time": _time(entry.at),
            "who": entry.actor,
            "did": entry.action,
            "user": _shown(entry.subject),
            "detail": entry.detail,
        }
        for entry in reversed(database.audit(options.last))
    ]
    return _list(options, rows, "Nothing has been done to any account.")


def _backup(database: Database, options: argparse.Namespace) -> int:
    def progress(left: int, pages: int) -> None:
        print(f"\r{100 * (pages - left) // max(1, pages):3} %", end="" if left else "\n", file=sys.stderr, flush=True)

    path: Path = options.path
    database.backup(path, progress if sys.stderr.isatty() else None)
    size = path.stat().st_size
    # SQLite would write what is left in another file's journal into the copy.
    advice = (
        f"To go back to it, stop the server, put it in place of {database.path}, and remove that one's -wal and -shm."
    )
    text = f"{path} is a copy, of {size:,} bytes. {advice}"
    return _answer(options, {"path": str(path), "bytes": size}, text)


def _check(database: Database, options: argparse.Namespace) -> int:
    problems = database.check()
    if problems:
        if options.json:
            print(json.dumps({"problems": problems}, ensure_ascii=False))
        else:
            print("\n".join(printable(problem) for problem in problems))
        say(f"wecompany admin: {database.path} is damaged: stop the server and put a backup in its place")
        return EXIT_FAILED
    found = database.statistics()
    counts = {
        "accounts": found.accounts,
        "users": found.users,
        "texts waiting": found.texts,
        "sessions": found.sessions,
        "missed calls": found.missedCalls,
        "calls": found.calls,
        "tokens": found.tokens,
        "blocks": found.blocks,
        "audit entries": found.audit,
        "bytes": found.fileBytes,
    }
    text = "\n".join([f"{database.path} is sound.", *(f"{n:>15,} {what}" for what, n in counts.items())])
    return _answer(options, {"problems": [], **counts}, text)
