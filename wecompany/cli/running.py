"""What all commands share: the reactor's life, the server's address, and what is told to whoever typed the command."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Awaitable, Callable
from importlib import import_module
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from wecompany.client import Client, ClientError, ClientListener, ServerError
from wecompany.client.session import FINAL_ERRORS

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_CONNECTION = 3
EXIT_INTERRUPTED = 130

_MODULES = {
    "chat": "wecompany.cli.chat",
    "send": "wecompany.cli.messages",
    "users": "wecompany.cli.messages",
    "send-file": "wecompany.cli.transfer",
    "receive-files": "wecompany.cli.transfer",
    "call": "wecompany.cli.talk",
    "answer": "wecompany.cli.talk",
}

Command = Callable[[Any, argparse.Namespace], Awaitable[int]]


class Problem(Exception):
    """Something that the person at the terminal has to put right first."""


class NoConnection(Exception):
    """The client could not register."""


def printable(text: str) -> str:
    """
    Return C{text} so that a terminal shows it and obeys nothing in it.

    Further lines are set in, so that none of them looks like somebody else's.
    """
    # Zero-width joiners hold emoji together and do no harm.
    shown = "".join(c if c.isprintable() or c in "\n\t\u200d" else f"\\x{ord(c):02x}" for c in text)
    return shown.replace("\n", "\n      ")


def say(text: str) -> None:
    """Tell the person at the terminal how it goes, on the standard error; whatever is in it, it is made printable."""
    with contextlib.suppress(BrokenPipeError):  # nobody reads it any more
        print(printable(text), file=sys.stderr, flush=True)


def lostText(reason: ClientError) -> str:
    """Return what to say when the connection was lost."""
    isFinal = isinstance(reason, ServerError) and reason.code in FINAL_ERRORS
    return str(reason) if isFinal else f"{reason}; trying to get it back."


def isFile(path: Path) -> bool:
    """Return whether there is a file that one may look at."""
    try:
        return path.is_file()
    except OSError:  # no access, or a name that no file can have
        return False


def isFolder(path: Path) -> bool:
    """Return whether there is a folder that one may look at."""
    try:
        return path.is_dir()
    except OSError:  # as above
        return False


class Announcer(ClientListener):
    """Says when the connection goes and comes back."""

    def __init__(self) -> None:
        self._wasLost = False

    def connected(self) -> None:
        if self._wasLost:
            say("Connected again.")

    def disconnected(self, reason: ClientError) -> None:
        self._wasLost = True
        say(lostText(reason))


def serverEndpoint(reactor: Any, server: str) -> IStreamClientEndpoint:
    """
    Return the endpoint that C{--server} names.

    @param server: C{HOST}, C{HOST:PORT}, C{[IPV6]:PORT}, or a Twisted client endpoint string.
    @raise Problem: if it is none of these.
    """
    if server.split(":")[0] in ("tcp", "tls", "ssl", "unix"):
        try:
            endpoint: IStreamClientEndpoint = clientFromString(reactor, server)
        except (NameError, ImportError):  # how Twisted says that pyOpenSSL is missing
            raise Problem(f'--server {server}: TLS needs pip install "wecompany[tls]"') from None
        except (ValueError, TypeError, KeyError) as e:
            raise Problem(f"--server {server}: {e}") from None
        return endpoint
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):
        host, port = server, "8888"
    if not (host and port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise Problem(f"--server {server}: this is not HOST:PORT")
    isBracketed = host.startswith("[") and host.endswith("]")
    if not isBracketed and set(host) & set(":[]"):
        raise Problem(f"--server {server}: an IPv6 address stands in brackets, as in [::1]:8888")
    return HostnameEndpoint(reactor, host.strip("[]"), int(port))


async def startClient(reactor: Any, options: argparse.Namespace, listener: ClientListener | None = None) -> Client:
    """
    Return a client that is registered as C{--as} says.

    @raise NoConnection: if it could not be.
    """
    client = Client(reactor, serverEndpoint(reactor, options.server), options.user, listener)
    try:
        await client.start()
    except ServerError as e:
        raise NoConnection(f"the server does not take {options.user}: {e.text}") from None
    except ClientError as e:
        raise NoConnection(str(e)) from None
    except (Problem, CancelledError):
        raise
    except Exception as e:  # noqa: BLE001 - endpoints fail with what their transport raises
        why = str(e) or type(e).__name__
        raise NoConnection(
            f"cannot reach {options.server}: {why}\nIs the server running? twistd -n wecompany starts one here."
        ) from None
    return client


def run(options: argparse.Namespace) -> int:
    """
    Run a command in the reactor.

    @return: the exit code.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    command: Command = import_module(_MODULES[options.command]).commands[options.command]
    serverEndpoint(reactor, options.server)  # so that a typing error ends this before anything begins
    code = EXIT_INTERRUPTED
    isOver = False

    def over(result: int | Failure) -> None:
        nonlocal code, isOver
        isOver = True
        if not isinstance(result, Failure):
            code = result
        elif result.check(NoConnection):
            say(f"wecompany: {result.getErrorMessage()}")
            code = EXIT_NO_CONNECTION
        elif result.check(Problem):
            say(f"wecompany: {result.getErrorMessage()}")
            code = EXIT_USAGE
        elif result.check(UnicodeEncodeError):
            say("wecompany: what you typed is not UTF-8")
            code = EXIT_USAGE
        elif result.check(ClientError, OSError):
            say(f"wecompany: {result.getErrorMessage()}")
            final = isinstance(result.value, ServerError) and result.value.code in FINAL_ERRORS
            code = EXIT_NO_CONNECTION if final else EXIT_FAILED
        elif not result.check(CancelledError):
            result.printTraceback(file=sys.stderr)
            code = EXIT_FAILED

    def begin() -> None:
        running: Deferred[int] = Deferred.fromCoroutine(_guard(command, reactor, options))

        def shutDown() -> Deferred[None] | None:
            """Ctrl-C: let the command end what it has begun."""
            if isOver:
                return None
            ended: Deferred[None] = Deferred()
            running.addBoth(lambda _: ended.callback(None))
            running.cancel()
            return ended

        running.addBoth(over)
        running.addBoth(lambda _: reactor.running and not reactor._stopped and reactor.stop())
        if not isOver:
            reactor.addSystemEventTrigger("before", "shutdown", shutDown)

    reactor.callWhenRunning(begin)
    reactor.run()
    return code


async def _guard(command: Command, reactor: Any, options: argparse.Namespace) -> int:
    return await command(reactor, options)
