"""``wecompany chat``: write, call and send files, line by line."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Callable, Collection
from pathlib import Path
from time import monotonic
from typing import Any

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from wecompany.cli.progress import size
from wecompany.cli.running import (
    EXIT_NO_CONNECTION,
    EXIT_OK,
    Command,
    isFile,
    logInText,
    lostText,
    printable,
    startClient,
    textTime,
)
from wecompany.cli.terminal import Terminal, terminalRestored
from wecompany.client import (
    Call,
    CallOutcome,
    Client,
    ClientError,
    ClientListener,
    IncomingFile,
    ServerError,
)
from wecompany.wire import ErrorCode, WireError, checkUserId

HELP = """\
@bob hello         write to bob; from then on a plain line goes to bob too
/to bob            choose whom a plain line goes to
/users             who is online, and who else there is
/call bob          call bob; /call bob video for a video call
/accept            take the call that rings, or else the file that is offered
/reject [why]      do not take it
/end               hang up
/file PATH bob     send a file
/block bob         let nothing through from bob; /unblock bob
/help              this
/quit              leave; so do Ctrl-D and Ctrl-C
//text             a text that begins with a slash
Tab completes names and commands where the terminal can."""

_NO_MEDIA = "this chat shows texts only: to hear and be heard, use wecompany call and wecompany answer"


class Chat(ClientListener):
    """
    One person's chat.

    @ivar finished: fires with the exit code.
    """

    client: Client

    def __init__(self, reactor: Any, user: str, folder: Path, logInText: str = "") -> None:
        """
        @param logInText: what to do if the server does not know the credential any more.
        """
        self._logInText = logInText
        self._wasLost = False
        self._user = user
        self._folder = folder
        self._partner = ""
        self._online: set[str] = set()
        self._offers: list[IncomingFile] = []
        self._heard = 0
        self.finished: Deferred[int] = Deferred()
        self._terminal = Terminal(reactor, self.lineReceived, lambda: self._finish(EXIT_OK))
        self._commands: dict[str, Callable[[list[str]], None]] = {
            "/to": self._to,
            "/users": self._users,
            "/call": self._call,
            "/accept": self._accept,
            "/reject": self._reject,
            "/end": self._end,
            "/file": self._file,
            "/block": self._block,
            "/unblock": self._unblock,
            "/help": self._help,
            "/quit": lambda words: self._finish(EXIT_OK),
        }

    def begin(self) -> None:
        """Greet, and read the first line."""
        self._choose("")
        self._show(f"You are {self._user}. Write @name and a text, or /help.")
        self._terminal.start(self._complete)
        self._watch()

    def leave(self) -> None:
        """Leave the terminal to the shell."""
        self._terminal.close()

    # -- what is typed

    def lineReceived(self, line: str) -> None:
        """Do what a line says."""
        line = line.strip()
        word, _, rest = line.partition(" ")
        if not line:
            return
        if line.startswith("//"):
            self._write(self._partner, line[1:])
        elif line.startswith("@") and len(word) > 1:
            self._choose(word[1:])
            if rest.strip() and self._partner == word[1:]:
                self._write(self._partner, rest.strip())
        elif line.startswith("/"):
            command = self._commands.get(word)
            try:
                words = shlex.split(rest)
            except ValueError:  # an apostrophe in a reason is no quotation mark
                words = rest.split()
            if command is None:
                self._show(f"There is no {word}; /help shows what there is.")
            else:
                command(words)
        else:
            self._write(self._partner, line)

    def _write(self, to: str, text: str) -> None:
        if not to:
            self._show("To whom? Write @name and the text.")
            return
        self.client.sendText(to, text).addCallbacks(
            self._taken, self._failed, (to,), errbackArgs=(f"{to} did not get it",)
        )

    def _taken(self, _: None, to: str) -> None:
        if to not in self._online and to != self.client.userId and self.client.isOnline:
            self._show(f"{to} is offline and gets it later.")

    def _help(self, words: list[str]) -> None:
        for line in HELP.splitlines():
            self._show(line)

    def _to(self, words: list[str]) -> None:
        self._choose(words[0] if words else "")

    def _users(self, words: list[str]) -> None:
        if not self.client.isOnline:
            self._show("There is no connection now.")
            return
        self._showUsers(self._online)

        def showOthers(users: list[tuple[str, bool]]) -> None:
            away = sorted({user for user, isOnline in users if not isOnline} - self._online)
            if away:
                self._show(f"Offline: {', '.join(away)}")

        self.client.allUsers().addCallbacks(showOthers, lambda _: None)  # of a server that tells only who is online

    def _block(self, words: list[str]) -> None:
        self._setBlocked(words, self.client.block, "blocked")

    def _unblock(self, words: list[str]) -> None:
        self._setBlocked(words, self.client.unblock, "not blocked any more")

    def _setBlocked(self, words: list[str], change: Callable[[str], Deferred[None]], done: str) -> None:
        if not words:
            self._show("Whom? /block bob, /unblock bob")
            return
        name = words[0]
        change(name).addCallbacks(lambda _: self._show(f"* {name} is {done}"), self._failed)

    def _call(self, words: list[str]) -> None:
        name = words[0] if words else self._partner
        if not name:
            self._show("Whom? /call bob")
            return
        isVideo = words[1:] == ["video"]
        self.client.call(name, isVideo).addCallbacks(self._ringing, self._failed, errbackArgs=(f"no call with {name}",))

    def _accept(self, words: list[str]) -> None:
        call = self.client.currentCall
        if call is not None and call.isIncoming and not call.isActive:
            call.accept().addErrback(self._failed)
        elif self._offers:
            file = self._offers.pop(0)
            name = file.name
            self._show(f"* taking {name}")
            received = file.accept(self._folder)
            received.addCallbacks(
                lambda path: self._show(f"* {path!s} is complete, its SHA-256 is right"),
                self._failed,
                errbackArgs=(f"{name} did not arrive",),
            )
        else:
            self._show("Nothing waits to be accepted.")

    def _reject(self, words: list[str]) -> None:
        call = self.client.currentCall
        if call is not None and call.isIncoming and not call.isActive:
            call.reject(text=" ".join(words))
        elif self._offers:
            file = self._offers.pop(0)
            file.decline(" ".join(words))
            self._show(f"* {file.name} declined")
        else:
            self._show("Nothing waits to be rejected.")

    def _end(self, words: list[str]) -> None:
        call = self.client.currentCall
        if call is None:
            self._show("There is no call.")
        else:
            call.end(" ".join(words))

    def _file(self, words: list[str]) -> None:
        if not words:
            self._show("Which? /file PATH bob")
            return
        try:
            path = Path(words[0]).expanduser()
        except RuntimeError as e:  # ~nobody
            self._show(f"! {e}")
            return
        to = words[1] if len(words) > 1 else self._partner
        if not to or not isFile(path):
            self._show(f"{path} is not a file" if to else "To whom? /file PATH bob")
            return
        self._show(f"* offering {path.name} to {to}")
        self.client.sendFile(to, path).addCallbacks(
            lambda _: self._show(f"* {to} has received {path.name}"),
            self._failed,
            errbackArgs=(f"{path.name} did not get through",),
        )

    # -- what comes (ClientListener)

    def textReceived(self, fromUser: str, text: str, sentAt: float | None) -> None:
        if not self._partner and fromUser:
            self._choose(fromUser)
        self._show(f"{textTime(sentAt)} {fromUser or '(server)'}: {text}")

    def callMissed(self, caller: str, at: float) -> None:
        self._show(f"* you missed a call from {caller}, {textTime(at)}")

    def callReceived(self, call: Call) -> None:
        kind = "video call" if call.isVideo else "call"
        self._show(f"* {kind} from {call.peer}: /accept or /reject")
        self._terminal.ring()
        self._follow(call)

    def fileOffered(self, file: IncomingFile) -> None:
        self._offers.append(file)
        self._show(f"* {file.sender} offers {file.name} ({size(file.size)}): /accept or /reject")

    def fileWithdrawn(self, file: IncomingFile) -> None:
        self._offers.remove(file)
        self._show(f"* {file.sender} offers {file.name} no more")

    def presenceChanged(self, userId: str, isOnline: bool) -> None:
        (self._online.add if isOnline else self._online.discard)(userId)
        self._show(f"* {userId} is {'online' if isOnline else 'offline'}")

    def errorReceived(self, error: ServerError) -> None:
        self._show(f"! {error}")

    def connected(self) -> None:
        if self._wasLost:
            self._show("* connected again")

    def disconnected(self, reason: ClientError) -> None:
        self._wasLost = True
        if not self.finished.called:
            self._show(f"! {lostText(reason)}")

    def stopped(self, reason: ClientError) -> None:
        self._show(f"! {reason}")
        if self._logInText and isinstance(reason, ServerError) and reason.code == ErrorCode.BAD_CREDENTIAL:
            self._show(self._logInText)
        self._finish(EXIT_NO_CONNECTION)

    # -- calls

    def _ringing(self, call: Call) -> None:
        if not call.isActive:
            self._show(f"* {call.peer}'s phone rings; /end cancels")
        self._follow(call)

    def _follow(self, call: Call) -> None:
        self._heard = 0
        began: float | None = None

        def media(data: bytes) -> None:
            self._heard += len(data)

        def active(_: object) -> None:
            nonlocal began
            began = monotonic()
            self._show(f"* in a call with {call.peer}; /end hangs up ({_NO_MEDIA})")

        def ended(outcome: CallOutcome) -> None:
            lasted = "" if began is None else f" after {monotonic() - began:.0f} s"
            heard = f", {size(self._heard)} of sound and picture came" if self._heard else ""
            self._show(f"* the call with {call.peer} is over{lasted}: {outcome!s}{heard}")

        call.mediaReceived = media
        call.whenAccepted().addCallbacks(active, lambda failure: None)  # the end is told below
        call.whenEnded().addCallback(ended)

    # -- the terminal

    def _watch(self) -> None:
        def online(users: list[str]) -> None:
            self._online = set(users)
            self._showUsers(users)

        self.client.watch().addCallbacks(online, self._failed)

    def _showUsers(self, users: Collection[str]) -> None:
        self._show(f"Online: {', '.join(sorted(users))}" if users else "Nobody else is online yet.")

    def _choose(self, partner: str) -> None:
        if partner:
            try:
                checkUserId(partner.encode("utf-8", "replace"))
            except WireError as e:
                self._show(f"! {partner} is no user ID: {e.text}")
                return
        self._partner = partner
        self._terminal.prompt = f"{self._user} → {printable(partner)}> " if partner else f"{self._user}> "

    def _complete(self, before: str, word: str) -> list[str]:
        if not before:
            names = [f"@{name} " for name in self._online] + [f"{command} " for command in self._commands]
        else:
            names = [f"{name} " for name in self._online]
        return sorted(name for name in names if name.startswith(word))

    def _show(self, text: str) -> None:
        self._terminal.show(text)

    def _failed(self, failure: Failure, what: str = "that did not work") -> None:
        why = failure.value.text if isinstance(failure.value, ServerError) else failure.getErrorMessage()
        self._show(f"! {what}: {why}")

    def _finish(self, code: int) -> None:
        if not self.finished.called:
            self.finished.callback(code)


async def chat(reactor: Any, options: argparse.Namespace) -> int:
    """Chat until the person leaves."""
    listener = Chat(reactor, options.user, options.into, logInText(options))
    client = await startClient(reactor, options, listener)
    listener.client = client
    with terminalRestored():
        listener.begin()
        try:
            return await listener.finished
        finally:
            listener.leave()
            await client.stop()


commands: dict[str, Command] = {"chat": chat}
