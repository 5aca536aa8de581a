"""``wecompany send`` and ``wecompany users``: one question, one answer."""

from __future__ import annotations

import argparse
from typing import Any

from wecompany.cli.running import EXIT_OK, Command, printable, say, startClient


async def send(reactor: Any, options: argparse.Namespace) -> int:
    """Send one text."""
    client = await startClient(reactor, options)
    try:
        await client.sendText(options.to, options.text)
    finally:
        await client.stop()
    return EXIT_OK


async def users(reactor: Any, options: argparse.Namespace) -> int:
    """Print who is online, or whom the server knows, a line each."""
    client = await startClient(reactor, options)
    try:
        if options.all:
            known = await client.allUsers()
            lines = [f"{user}\t{'online' if isOnline else 'offline'}" for user, isOnline in known]
        else:
            lines = await client.users()
    finally:
        await client.stop()
    for line in sorted(lines):
        print(printable(line))
    if not lines:
        say("Nobody else is known." if options.all else "Nobody else is online.")
    return EXIT_OK


commands: dict[str, Command] = {"send": send, "users": users}
