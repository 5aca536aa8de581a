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
    """Print who is online, a line each."""
    client = await startClient(reactor, options)
    try:
        online = await client.users()
    finally:
        await client.stop()
    for user in sorted(online):
        print(printable(user))
    if not online:
        say("Nobody else is online.")
    return EXIT_OK


commands: dict[str, Command] = {"send": send, "users": users}
