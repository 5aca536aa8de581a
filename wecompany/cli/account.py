"""``wecompany login``, ``logout``, ``passwd``, ``block`` and ``unblock``."""

from __future__ import annotations

import argparse
import getpass
import sys
import warnings
from typing import Any

from wecompany.cli.running import (
    EXIT_OK,
    Command,
    NoConnection,
    Notices,
    Problem,
    endpointOf,
    explained,
    say,
    serverName,
    startClient,
)
from wecompany.cli.tokens import loadToken, saveToken
from wecompany.client import Client, ServerError, logIn, signUp
from wecompany.wire import MAX_REASON, ErrorCode


def readPasswords(options: argparse.Namespace) -> None:
    """
    Ask for the passwords that a command needs, into C{options.old} and C{options.new}.

    It blocks, so it is called before the reactor runs.

    @raise Problem: if there is none, or the new one is not the same twice.
    """
    if options.command == "passwd":
        options.old = _read(options, "Old password: ")
    if options.command == "login" and not options.signup:
        options.new = _read(options, f"Password of {options.user}: ")
    else:
        options.new = _read(options, "New password: ")
        if not options.passwordStdin and _read(options, "The same again: ") != options.new:
            raise Problem("these are two different passwords")


def _read(options: argparse.Namespace, prompt: str) -> str:
    if options.passwordStdin:
        password = sys.stdin.readline(MAX_REASON + 2).rstrip("\r\n")
    else:
        with warnings.catch_warnings():
            warnings.simplefilter("error", getpass.GetPassWarning)
            try:
                password = getpass.getpass(prompt)
            except (getpass.GetPassWarning, EOFError, OSError):
                raise Problem("there is no terminal to ask for the password; see --password-stdin") from None
    try:
        size = len(password.encode())
    except UnicodeEncodeError:
        raise Problem("a password is UTF-8") from None
    if not 0 < size <= MAX_REASON:
        raise Problem(f"a password has 1 to {MAX_REASON} bytes")
    return password


async def _logIn(reactor: Any, options: argparse.Namespace) -> bool:
    """Get a token and keep it; return whether the server gave one."""
    getToken = signUp if getattr(options, "signup", False) else logIn
    endpoint = endpointOf(reactor, options)
    with explained(options):
        token = await getToken(reactor, endpoint, options.user, options.new, Notices())
    saveToken(serverName(options), options.user, token)
    return bool(token)


async def login(reactor: Any, options: argparse.Namespace) -> int:
    """Keep a token for the commands to come."""
    if await _logIn(reactor, options):
        say(f"Logged in as {options.user} at {options.server}.")
    else:
        say(f"{options.server} runs open: whoever says to be {options.user} is.")
    return EXIT_OK


async def logout(reactor: Any, options: argparse.Namespace) -> int:
    """Revoke the token that was kept, and forget it."""
    name = serverName(options)
    token = loadToken(name, options.user)
    if not token:
        raise Problem(f"{options.user} is not logged in at {options.server}")
    try:
        client = await startClient(reactor, options, Notices())
    except NoConnection as e:
        if not (isinstance(e.__cause__, ServerError) and e.__cause__.code == ErrorCode.BAD_CREDENTIAL):
            raise
        # It has expired, or was revoked: that is what was wanted.
    else:
        try:
            await client.logOut(token)
        finally:
            await client.stop()
    saveToken(name, options.user, b"")
    say(f"Logged out as {options.user} at {options.server}.")
    return EXIT_OK


async def passwd(reactor: Any, options: argparse.Namespace) -> int:
    """Change the password, and log in with it: that revokes every token."""
    client = await startClient(reactor, options, Notices())
    try:
        await client.changePassword(options.old, options.new)
    finally:
        await client.stop()
    await _logIn(reactor, options)
    say(f"The password of {options.user} is changed; everybody else who was logged in as {options.user} is so no more.")
    return EXIT_OK


async def block(reactor: Any, options: argparse.Namespace) -> int:
    """Let nothing through from somebody, or let it through again."""
    client: Client = await startClient(reactor, options, Notices())
    try:
        await (client.block(options.whom) if options.command == "block" else client.unblock(options.whom))
    finally:
        await client.stop()
    return EXIT_OK


commands: dict[str, Command] = {
    "login": login,
    "logout": logout,
    "passwd": passwd,
    "block": block,
    "unblock": block,
}
