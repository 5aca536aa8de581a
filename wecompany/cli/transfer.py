"""``wecompany send-file`` and ``wecompany receive-files``."""

from __future__ import annotations

import argparse
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from wecompany.cli.progress import showProgress, size
from wecompany.cli.running import EXIT_OK, Announcer, Command, printable, say, startClient
from wecompany.client import Client, ClientError, IncomingFile


class _Receiver(Announcer):
    """Takes what is offered."""

    def __init__(self, options: argparse.Namespace) -> None:
        super().__init__()
        self._options = options
        self._left = options.count
        self._underWay = 0
        self.finished: Deferred[None] = Deferred()

    def fileOffered(self, file: IncomingFile) -> None:
        if self._options.senders and file.sender not in self._options.senders:
            file.decline("only some senders are wanted")
            return
        if self._options.count and self._underWay >= self._left:
            file.decline("no more files are wanted")
            return
        self._underWay += 1
        say(f"{file.sender} sends {file.name} ({size(file.size)})")
        Deferred.fromCoroutine(self._take(file))

    async def _take(self, file: IncomingFile) -> None:
        progress = showProgress(file.name)
        try:
            path = await file.accept(self._options.into, progress)
        except (ClientError, OSError) as e:
            say(f"{file.name}: {e!s}")
            return
        finally:
            self._underWay -= 1
            progress.close()
        print(printable(str(path)), flush=True)
        self._left -= 1
        if self._left == 0:
            self.finished.callback(None)

    def stopped(self, reason: ClientError) -> None:
        if not self.finished.called:
            self.finished.errback(Failure(reason))


async def sendFile(reactor: Any, options: argparse.Namespace) -> int:
    """Send one file."""
    client = await startClient(reactor, options, Announcer())
    progress = showProgress(options.path.name)
    try:
        await client.sendFile(options.to, options.path, progress)
    finally:
        progress.close()
        await client.stop()
    say(f"{options.to} has received {options.path.name}, and its SHA-256 is right.")
    return EXIT_OK


async def receiveFiles(reactor: Any, options: argparse.Namespace) -> int:
    """Take files until there were enough."""
    listener = _Receiver(options)
    client: Client = await startClient(reactor, options, listener)
    say(f"Waiting for files as {options.user}; Ctrl-C ends it.")
    try:
        await listener.finished
    finally:
        await client.stop()
    return EXIT_OK


commands: dict[str, Command] = {"send-file": sendFile, "receive-files": receiveFiles}
