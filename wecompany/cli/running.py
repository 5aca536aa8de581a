"""What all commands share: the reactor's life, the server's address, and what is told to whoever typed the command."""

from __future__ import annotations

import argparse
import contextlib
import shlex
import sys
from collections.abc import Awaitable, Callable, Iterator
from importlib import import_module
from pathlib import Path
from time import localtime, strftime
from typing import Any

from twisted.internet.defer import CancelledError, Deferred
from twisted.internet.endpoints import HostnameEndpoint, clientFromString
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.python.failure import Failure

from wecompany.client import Client, ClientError, ClientListener, ServerError, TlsFailed, tlsEndpoint
from wecompany.client.session import FINAL_ERRORS
from wecompany.wire import ErrorCode

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_NO_CONNECTION = 3
EXIT_INTERRUPTED = 130

DEFAULT_SERVER = "localhost:8888"

_MODULES = {
    "chat": "wecompany.cli.chat",
    "send": "wecompany.cli.messages",
    "users": "wecompany.cli.messages",
    "send-file": "wecompany.cli.transfer",
    "receive-files": "wecompany.cli.transfer",
    "call": "wecompany.cli.talk",
    "answer": "wecompany.cli.talk",
    "login": "wecompany.cli.account",
    "logout": "wecompany.cli.account",
    "passwd": "wecompany.cli.account",
    "block": "wecompany.cli.account",
    "unblock": "wecompany.cli.account",
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


def textTime(sentAt: float | None) -> str:
    """Return when a text was sent: the time of day now for one that has just been, else the date too."""
    if sentAt is None:
        return strftime("%H:%M")
    try:
        return strftime("%Y-%m-%d %H:%M", localtime(sentAt))
    except (OverflowError, ValueError, OSError):  # of a year that no calendar here has
        return "once"


def logInText(options: argparse.Namespace) -> str:
    """Return what to do where the server does not know this user's token."""
    if options.isGuest:
        return "this server has accounts: log in, and say who you are with --as ME"
    words = ["wecompany", "login", "--as", options.user]
    if options.server != DEFAULT_SERVER:
        words += ["--server", options.server]
    if options.ca is not None:
        words += ["--ca", str(options.ca)]
    elif _isTls(options):
        words.append("--tls")
    return f"log in first: {shlex.join(words)}"


class Notices(ClientListener):
    """Tells of missed calls, which the server tells once; texts it leaves there for a chat."""

    takesTexts = False

    def callMissed(self, caller: str, at: float) -> None:
        say(f"Missed call from {caller}: {textTime(at)}")


class Announcer(Notices):
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
    if _isEndpointString(server):
        try:
            endpoint: IStreamClientEndpoint = clientFromString(reactor, server)
        except (NameError, ImportError):  # how Twisted says that pyOpenSSL is missing
            raise Problem(f'--server {server}: TLS needs pip install "wecompany[tls]"') from None
        except (ValueError, TypeError, KeyError) as e:
            raise Problem(f"--server {server}: {e}") from None
        return endpoint
    return HostnameEndpoint(reactor, *hostAndPort(server))


def _isEndpointString(server: str) -> bool:
    return server.split(":")[0] in ("tcp", "tls", "ssl", "unix")


def hostAndPort(server: str) -> tuple[str, int]:
    """
    Return what C{HOST}, C{HOST:PORT} or C{[IPV6]:PORT} names; without a port it is 8888.

    @raise Problem: if it is none of these.
    """
    host, colon, port = server.rpartition(":")
    if not colon or server.endswith("]"):
        host, port = server, "8888"
    if not (host and port.isascii() and port.isdigit() and len(port) < 6 and 0 < int(port) < 65536):
        raise Problem(f"--server {server}: this is not HOST:PORT")
    isBracketed = host.startswith("[") and host.endswith("]")
    if not isBracketed and set(host) & set(":[]"):
        raise Problem(f"--server {server}: an IPv6 address stands in brackets, as in [::1]:8888")
    return host.strip("[]"), int(port)


def _isTls(options: argparse.Namespace) -> bool:
    return bool(options.tls or options.ca or options.certificate)


def endpointOf(reactor: Any, options: argparse.Namespace) -> IStreamClientEndpoint:
    """
    Return the endpoint that C{--server} and the options about TLS name.

    @raise Problem: if there is something wrong with them.
    """
    if not _isTls(options):
        return serverEndpoint(reactor, options.server)
    if _isEndpointString(options.server):
        raise Problem(f"--server {options.server}: --tls, --ca and --cert go with HOST:PORT")
    host, port = hostAndPort(options.server)
    try:
        return tlsEndpoint(reactor, host, port, options.ca, options.certificate)
    except OSError as e:
        raise Problem(f"{e.filename}: {e.strerror}") from None
    except ClientError as e:
        raise Problem(str(e)) from None


def serverName(options: argparse.Namespace) -> str:
    """
    Return what a token is kept under: one server, by whatever way it was typed.

    With TLS it is another name, so that a token that was got over TLS is never sent without.
    """
    if _isEndpointString(options.server):
        return str(options.server)
    host, port = hostAndPort(options.server)
    return f"{'tls' if _isTls(options) else 'tcp'}:{host.lower()}:{port}"


@contextlib.contextmanager
def explained(options: argparse.Namespace) -> Iterator[None]:
    """Turn what a registration fails with into a L{NoConnection}, with its cause, that says what to do."""
    try:
        yield
    except ServerError as e:
        isStranger = e.code == ErrorCode.BAD_CREDENTIAL and options.command != "login"
        hint = f"\n{logInText(options)}" if isStranger else ""
        raise NoConnection(f"the server does not take {options.user}: {e.text}{hint}") from e
    except TlsFailed as e:
        raise NoConnection(f"cannot trust {options.server}: {e} (--ca FILE names whom to trust)") from e
    except ClientError as e:
        raise NoConnection(str(e)) from e
    except (Problem, CancelledError):
        raise
    except Exception as e:  # endpoints fail with what their transport raises
        why = str(e) or type(e).__name__
        raise NoConnection(
            f"cannot reach {options.server}: {why}\nIs the server running? twistd -n wecompany starts one here."
        ) from e


async def startClient(reactor: Any, options: argparse.Namespace, listener: ClientListener | None = None) -> Client:
    """
    Return a client that is registered as C{--as} says.

    @raise NoConnection: if it could not be.
    """
    from wecompany.cli.tokens import loadToken

    token = loadToken(serverName(options), options.user)
    client = Client(reactor, endpointOf(reactor, options), options.user, listener or Notices(), credential=token)
    with explained(options):
        await client.start()
    return client


def run(options: argparse.Namespace) -> int:
    """
    Run a command in the reactor.

    @return: the exit code.
    """
    from twisted.internet import reactor as installed

    reactor: Any = installed
    command: Command = import_module(_MODULES[options.command]).commands[options.command]
    endpointOf(reactor, options)  # so that a typing error ends this before anything begins
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
            why = getattr(result.value, "__cause__", None) or result.value
            final = FINAL_ERRORS - {ErrorCode.FORBIDDEN}  # which most often is about whom one wants to reach
            code = EXIT_NO_CONNECTION if isinstance(why, ServerError) and why.code in final else EXIT_FAILED
            if isinstance(why, ServerError) and why.code == ErrorCode.BAD_CREDENTIAL:
                say(logInText(options))
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
