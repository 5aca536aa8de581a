"""
A user's session with a server: it comes back by itself when the connection is lost.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar, cast

from twisted.internet.defer import CancelledError, Deferred, fail, succeed
from twisted.internet.interfaces import IDelayedCall, IReactorTime, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.task import deferLater
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure

from wecompany.client.accounts import Accounts, splitIds
from wecompany.client.calls import Call, CallOutcome
from wecompany.client.connection import ASK_AFTER, Connection
from wecompany.client.errors import CallRejected, ClientError, NotConnected, ServerError
from wecompany.client.presence import Presence, names
from wecompany.client.texts import Texts
from wecompany.client.transfers import RETRY_FIRST, IncomingFile, OutgoingFile, Progress, _noProgress
from wecompany.wire import (
    MAX_REASON,
    VIDEO_FLAG,
    AccountOp,
    CancelCode,
    EndCode,
    ErrorCode,
    FileOffer,
    FileOp,
    MessageType,
    PresenceOp,
    RejectCode,
    WireError,
    checkUserId,
    decodeOffset,
    decodeU32,
    encodeFrame,
    encodeOffset,
    splitId,
    splitReason,
)

BACKOFF_BASE = 2.0
BACKOFF_MOST = 60.0
"""Seconds until one connects again: the first time, doubling, and at most; half of it is chance."""

MAX_INCOMING = 64
"""Files that are kept in mind: offered, on their way, or waiting for a lost sender."""

WATCH_AGAIN_AFTER = 10.0
"""Seconds until a subscription that the server found one too many is tried again."""

MAX_CALLS_TOLD = 256
"""Calls that rang here of which it is remembered, so that none of them is told as missed."""

FINAL_ERRORS = {ErrorCode.BAD_CREDENTIAL, ErrorCode.ID_IN_USE, ErrorCode.FORBIDDEN, ErrorCode.REPLACED}
"""After these a client does not connect again by itself."""

T = TypeVar("T")


def backoff(attempt: int) -> float:
    """Return the seconds before the C{attempt}th try (from 1) to connect again."""
    return min(BACKOFF_MOST, BACKOFF_BASE * 2.0 ** min(attempt - 1, 16)) * random.uniform(0.5, 1)


class ClientListener:
    """
    What a L{Client} tells.  Derive from it; each method does nothing here.

    @cvar takesTexts: whether C{textReceived} is where texts end up.  If not, a server with a store keeps them for the
        next time that this user registers.
    """

    takesTexts = True

    def connected(self) -> None:
        """The client has registered, for the first time or again."""

    def disconnected(self, reason: ClientError) -> None:
        """The connection was lost; the client tries to get it back unless C{stopped} follows."""

    def stopped(self, reason: ClientError) -> None:
        """The server does not want this client, so it does not come back by itself."""

    def textReceived(self, fromUser: str, text: str, sentAt: float | None) -> None:
        """
        A text came.  When this returns the text counts as taken.

        @param fromUser: empty if it is the server's own.
        @param sentAt: seconds since the epoch, of a text that had to wait; C{None} if it has just been sent.
        """

    def callReceived(self, call: Call) -> None:
        """Somebody calls."""

    def callMissed(self, caller: str, at: float) -> None:
        """
        Somebody called while this user was away.

        @param at: seconds since the epoch.
        """

    def fileOffered(self, file: IncomingFile) -> None:
        """Somebody offers a file."""

    def fileWithdrawn(self, file: IncomingFile) -> None:
        """A file that was offered and not yet accepted is offered no more."""

    def presenceChanged(self, userId: str, isOnline: bool) -> None:
        """Somebody came online or went offline; told after L{Client.watch}."""

    def errorReceived(self, error: ServerError) -> None:
        """The server found fault with something that nobody waits for."""


class _Nobody(ClientListener):
    takesTexts = False


class Client:
    """
    One user of a server.

    Where the server has a store, texts are reliable: each is kept until the server has it, over as many connections as
    that takes, and none is told twice.

    @ivar userId: who.
    @ivar isOnline: whether there is a registered connection.
    @ivar currentCall: the call that rings or is active.
    """

    _log = Logger()

    def __init__(
        self,
        reactor: Any,
        endpoint: IStreamClientEndpoint,
        userId: str,
        listener: ClientListener | None = None,
        *,
        credential: bytes = b"",
        runInThread: Callable[..., Deferred[Any]] | None = None,
    ) -> None:
        """
        @param reactor: time, and the threads in which files are read and written.
        @param endpoint: where the server is.
        @param listener: who is told what comes; without one, texts are left with a server that can keep them.
        @param credential: what the server wants to see, such as the token that L{logIn<wecompany.client.logIn>}
            gives; nothing where it runs open.
        @param runInThread: runs a blocking function elsewhere; in the reactor's threads if not given.
        """
        self._reactor: IReactorTime = reactor
        self.userId = userId
        self._listener = listener or _Nobody()
        self._credential = credential
        self._runInThread = runInThread or (lambda f, *a: deferToThreadPool(reactor, reactor.getThreadPool(), f, *a))
        self._endpoint = endpoint
        self._signsUp = False
        self._isRunning = False
        self._wasOnline = False
        self._texts = Texts()
        self._accounts = Accounts()
        self._delayed: tuple[str, float] | None = None  # of which user the next text or missed call is how old
        self._callsTold: deque[bytes] = deque(maxlen=MAX_CALLS_TOLD)
        self._trying: Deferred[Connection] | None = None
        self._stopWaiters: list[Deferred[None]] = []
        self._connection: Connection | None = None
        self._finalError: ClientError | None = None
        self._onlineWaiters: list[Deferred[None]] = []
        self._presence = Presence(
            userId,
            lambda op: self._ask(MessageType.PRESENCE, "", bytes((op,))),
            lambda user, isOnline: self._tell(self._listener.presenceChanged, user, isOnline),
        )
        self._dialling: tuple[str, Deferred[Call]] | None = None
        self._callFrames = 0
        self._abandoned = ""  # whom we called, when nobody waits for that call any more
        self.currentCall: Call | None = None
        self._outgoing: dict[tuple[str, bytes], OutgoingFile] = {}
        self._incoming: dict[tuple[str, bytes], IncomingFile] = {}
        self._unconfirmed: dict[tuple[str, bytes], bytes] = {}  # what we have, and its sender may not know

    @property
    def isOnline(self) -> bool:
        """Whether there is a registered connection now."""
        return self._connection is not None

    # -- the connection

    def start(self) -> Deferred[None]:
        """
        Connect and register, and from then on stay so.

        @return: fires when the user is registered; fails with what went wrong with the first try, after which the
            client is stopped.
        """
        if self._isRunning:
            return fail(ClientError("this client has been started"))
        self._finalError = None
        self._wasOnline = False
        started: Deferred[None] = Deferred(self._startCancelled)
        self._isRunning = True
        Deferred.fromCoroutine(self._stayConnected(started)).addErrback(self._logFailure)  # a fault of ours, if any
        return started

    def signUp(self) -> Deferred[bytes]:
        """For L{signUp<wecompany.client.signUp>}: as L{start}, and make the account; fires with its first token."""
        self._signsUp = True

        def started(_: None) -> bytes:
            return b"" if self._connection is None else self._connection.token

        return self.start().addCallback(started)

    def _startCancelled(self, started: Deferred[None]) -> None:
        started.errback(Failure(CancelledError()))
        self.stop()

    def stop(self) -> Deferred[None]:
        """
        Disconnect and stay so; fires when that is done.

        Transfers and calls that were under way fail, and so do texts that the server has not acknowledged.
        """
        if not self._isRunning:
            return succeed(None)
        self._finalError = self._finalError or NotConnected("this client has stopped")
        stopped: Deferred[None] = Deferred()
        self._stopWaiters.append(stopped)
        if self._connection is not None:
            self._acknowledge()
            self._connection.disconnect()
        elif self._trying is not None:
            self._trying.cancel()
        return stopped

    async def _stayConnected(self, started: Deferred[None]) -> None:
        """Connect, register, and do so again whenever the connection is lost, until there is a final error."""
        # Twisted's ClientService would do this, but a registration that is refused leaves its machine without a
        # transition: it knows no connection that is lost before it was prepared.
        attempt = 0
        while self._finalError is None:
            try:
                self._trying = Deferred.fromCoroutine(self._connect(attempt))
                connection = await self._trying
            except Exception as e:  # noqa: BLE001 - endpoints fail with what their transport raises
                self._trying = None
                if isinstance(e, ServerError) and e.code in FINAL_ERRORS:
                    self._finalError = self._finalError or e
                if not started.called:
                    why = self._finalError or e
                    self._finalError = self._finalError or NotConnected("this client has stopped")
                    self._over()
                    started.errback(Failure(why))
                    return
                attempt += 1
                continue
            self._trying = None
            attempt = 1
            lost = connection.whenLost()
            self._registered(connection)
            if not started.called:
                started.callback(None)
            self._connectionLost(await lost)
        self._over()
        if isinstance(self._finalError, ServerError):
            self._tell(self._listener.stopped, self._finalError)

    async def _connect(self, attempt: int) -> Connection:
        """Return a registered connection."""
        if attempt:
            await self.sleep(backoff(attempt))
        connection = cast(Connection, await self._endpoint.connect(Factory.forProtocol(self._makeConnection)))
        try:
            await self._register(connection)
        except Exception:
            connection.abort()
            raise
        return connection

    def _register(self, connection: Connection) -> Deferred[None]:
        if self._signsUp:
            return connection.register(MessageType.SIGNUP, self._credential)
        data = self._texts.registration() + self._credential
        # The counts of the session before are lost to us if we say anything before we have the server's.
        return connection.register(MessageType.ACK, data, ASK_AFTER if self._texts.isReliable else 0)

    def _over(self) -> None:
        """The client has stopped."""
        self._isRunning = False
        error = self._finalError
        assert error is not None
        unknown = NotConnected(f"{error}; it is not known whether the server has this text")
        unknown.__cause__ = error
        self._texts.fail(unknown)
        waiters, self._onlineWaiters = self._onlineWaiters, []
        for waiter in waiters:
            waiter.errback(Failure(error))
        for incoming in list(self._incoming.values()):
            incoming.giveUp()
        self._callOver(CallOutcome(False, EndCode.PEER_LOST, str(error)))
        stopWaiters, self._stopWaiters = self._stopWaiters, []
        for stopped in stopWaiters:
            stopped.callback(None)

    def whenOnline(self) -> Deferred[None]:
        """Return a Deferred that fires when there is a registered connection; fails if the client stops before."""
        if self._connection is not None:
            return succeed(None)
        if self._finalError is not None:
            return fail(self._finalError)
        waiter: Deferred[None] = Deferred()
        self._onlineWaiters.append(waiter)
        return waiter

    def _makeConnection(self) -> Connection:
        return Connection(
            self._reactor,
            self.userId.encode(),
            self._frameReceived,
            self._errorReceived,
            self._countReceived,
            self._acknowledge,
        )

    def _registered(self, connection: Connection) -> None:
        self._connection = connection
        self._wasOnline = True
        self._delayed = None
        self._texts.registered()
        waiters, self._onlineWaiters = self._onlineWaiters, []
        if self._presence.isWatched:
            self._watchAgain()
        self._checkCall(connection)
        self._tell(self._listener.connected)
        for waiter in waiters:
            waiter.callback(None)

    def _countReceived(self, count: int | None) -> None:
        """It is known how texts are sent in this session, and what is to be sent again."""
        connection = self._connection
        if connection is None:
            return
        for text in self._texts.begun(connection.sessionId, count, connection.transport.write):
            asked = connection.askFrame(MessageType.TEXT, text.frame)
            asked.addCallbacks(text.stored.callback, text.stored.errback)

    def _connectionLost(self, reason: ClientError) -> None:
        self._connection = None
        self._texts.lost()
        self._accounts.lost(reason)
        if isinstance(reason, ServerError) and reason.code in FINAL_ERRORS:
            self._finalError = self._finalError or reason
        if self._dialling is not None:
            self._abandoned, dialled = self._dialling
            self._dialling = None
            dialled.errback(Failure(reason))
        self._presence.lost(reason)
        for outgoing in list(self._outgoing.values()):
            outgoing.connectionLost()
        for incoming in list(self._incoming.values()):
            if incoming.isAccepted:
                incoming.connectionLost()
            else:
                self._withdraw(incoming)
        if self._finalError is None or self._finalError is reason:
            self._tell(self._listener.disconnected, reason)

    def _tell(self, method: Callable[..., None], *arguments: object) -> None:
        """Call a method of the listener; what it raises is logged and harms nothing."""
        try:
            method(*arguments)
        except Exception:  # noqa: BLE001 - an application's fault is its own
            self._log.failure("The listener failed in {method}", method=method.__name__)

    def _logFailure(self, failure: Failure) -> None:
        self._log.warn("{user!r}: {error}", user=self.userId, error=failure.getErrorMessage())

    # -- text and presence

    def sendText(self, to: str, text: str) -> Deferred[None]:
        """
        Send a text to a user, or to everyone where C{to} is empty.

        Where the server has a store, a text that is sent while the connection is lost waits for the next one, up to
        L{MAX_WAITING<wecompany.client.texts.MAX_WAITING>} of them.

        @return: fires when the server has it in its store, or, where it has none, has passed it on; fails with
            L{ServerError} if it did not, and with L{NotConnected}, or the ERROR with which the server ended the
            connection, if that is not known.
        """
        try:
            data = text.encode()
        except UnicodeEncodeError as e:
            return fail(ClientError(f"this is no text: {e}"))
        if self._texts.isReliable is False or not self._wasOnline or self._finalError is not None:
            return self._ask(MessageType.TEXT, to, data)
        try:
            userId = _encodeUser(to)
            frame = encodeFrame(MessageType.TEXT, userId, data)
        except WireError as e:
            return fail(ServerError(e.code, e.text))
        return self._texts.add(userId, frame, isBounded=self._connection is None)

    def _acknowledge(self) -> None:
        """Tell the server what we have taken, once for all that came together."""
        data = self._texts.acknowledgement()
        if data and self._connection is not None:
            self._connection.sendFrame(MessageType.ACK, b"", data)

    def users(self) -> Deferred[list[str]]:
        """Return a Deferred that fires with the other users online."""
        return self._presence.fetch(PresenceOp.LIST).addCallback(names)

    def allUsers(self) -> Deferred[list[tuple[str, bool]]]:
        """Return a Deferred that fires with every other user whom the server knows, and whether that one is online."""
        return self._presence.fetch(PresenceOp.LIST_ALL)

    def watch(self) -> Deferred[list[str]]:
        """
        Be told of everyone who comes and goes, from now on and over every connection.

        @return: as L{users}.
        """
        return self._presence.watch()

    def _watchAgain(self) -> None:
        """Over a new connection, subscribe again and tell what has changed meanwhile."""
        if not self.isOnline:
            return

        def tooOften(failure: Failure) -> None:
            failure.trap(ServerError)
            self._reactor.callLater(WATCH_AGAIN_AFTER, self._watchAgain)

        self._presence.watchAgain().addErrback(tooOften).addErrback(self._logFailure)

    # -- the account

    def logOut(self, token: bytes | None = None) -> Deferred[None]:
        """
        Revoke a token, or all of this user's if none is given; the connection stays.

        @return: fires when that is done; fails with L{AccountRefused}, L{ServerError} or L{NotConnected}, as everything
            about the account does.
        """
        return self._command("", AccountOp.LOG_OUT, token or b"").addCallback(_nothing)

    def changePassword(self, old: str, new: str) -> Deferred[None]:
        """Change this user's password; all of its tokens are revoked."""
        before = old.encode()
        if len(before) > MAX_REASON:
            return fail(ClientError(f"a password has at most {MAX_REASON} bytes"))
        data = len(before).to_bytes(2, "big") + before + new.encode()
        return self._command("", AccountOp.CHANGE_PASSWORD, data).addCallback(_nothing)

    def block(self, user: str) -> Deferred[None]:
        """Let no text, call or file of C{user} through to this user."""
        return self._command(user, AccountOp.BLOCK).addCallback(_nothing)

    def unblock(self, user: str) -> Deferred[None]:
        """Let C{user} through again."""
        return self._command(user, AccountOp.UNBLOCK).addCallback(_nothing)

    def blocked(self) -> Deferred[list[str]]:
        """Return a Deferred that fires with all whom this user blocks."""
        return self._command("", AccountOp.LIST_BLOCKED).addCallback(splitIds)

    def newToken(self) -> Deferred[bytes]:
        """For L{logIn<wecompany.client.logIn>}: fires with a new token."""
        return self._command("", AccountOp.NEW_TOKEN)

    def _command(self, whom: str, op: AccountOp, data: bytes = b"") -> Deferred[bytes]:
        connection = self._connection
        if connection is None:
            return fail(self._finalError or NotConnected("there is no connection now"))
        try:
            userId = _encodeUser(whom)
            frame = encodeFrame(MessageType.LOGIN, userId, bytes((op,)) + data)
        except WireError as e:
            return fail(ServerError(e.code, e.text))
        return self._accounts.ask(lambda: connection.transport.write(frame))

    # -- calls

    def call(self, callee: str, isVideo: bool = False, offer: bytes = b"") -> Deferred[Call]:
        """
        Call a user.

        @param offer: what to say of one's media, at most 16,384 bytes.
        @return: fires with the call when it rings; fails with L{CallRejected}, L{ServerError} or L{NotConnected}.
        """
        if self._dialling is not None or self.currentCall is not None:
            return fail(ClientError("there is a call already"))

        def abandon(_: object) -> None:
            if self._dialling is not None and self._dialling[1] is dialled:
                self._abandoned, self._dialling = callee, None

        def handled(_: None) -> None:
            self._abandoned = ""

        dialled: Deferred[Call] = Deferred(abandon)
        self._dialling = callee, dialled

        def failed(failure: Failure) -> None:
            if self._dialling is not None and self._dialling[1] is dialled:
                self._dialling = None
                dialled.errback(failure)

        flags = bytes((VIDEO_FLAG if isVideo else 0,))
        self._ask(MessageType.CALL_REQUEST, callee, flags + offer).addCallbacks(handled, failed)
        return dialled

    def sendCallFrame(self, messageType: int, peer: str, data: bytes) -> bool:
        """For a call: send a frame; return whether there was a connection to send it on."""
        if self._connection is None:
            return False
        self._connection.sendFrame(messageType, peer.encode(), data)
        return True

    def sendMedia(self, peer: str, media: bytes) -> bool:
        """For a call: send media if there is room for it now."""
        if self._connection is None or self._connection.isFull:
            return False
        try:
            self._connection.sendFrame(MessageType.MEDIA_DATA, peer.encode(), media)
        except WireError:
            return False
        return True

    def _callFrame(self, messageType: int, peer: str, data: bytes) -> None:
        callId, rest = splitId(data)
        current = self.currentCall
        delay = self._takeDelay(peer) if messageType == MessageType.CALL_REJECT else None
        isCurrent = current is not None and current.callId == callId.hex()
        self._callFrames += isCurrent
        if messageType == MessageType.CALL_REQUEST:
            if isCurrent and current is not None:
                current.stands()
            elif len(rest) == 1 and self._abandoned == peer:
                self._endOrphan(peer, callId)
            elif rest:
                self._rings(peer, callId, rest[0], rest[1:])
        elif messageType == MessageType.CALL_ACCEPT:
            if isCurrent and current is not None:
                current.accepted(rest)
                current.stands()
            else:
                self._endOrphan(peer, callId)
        else:
            code, text = splitReason(rest)
            rejected = messageType == MessageType.CALL_REJECT
            if delay is not None and not isCurrent:
                if rejected and code == RejectCode.NO_ANSWER and callId not in self._callsTold:
                    self._callsTold.append(callId)
                    self._tell(self._listener.callMissed, peer, delay)
            elif isCurrent:
                self._callOver(CallOutcome(rejected, code, text.decode("utf-8", "replace")))
            elif rejected and self._dialling is not None and self._dialling[0] == peer:
                _, dialled = self._dialling
                self._dialling = None
                dialled.errback(Failure(CallRejected(code, text.decode("utf-8", "replace"))))

    def _endOrphan(self, peer: str, callId: bytes) -> None:
        """End a call of this user's that nobody here knows of: of a process before this one, or given up."""
        self.sendCallFrame(MessageType.CALL_END, peer, callId)

    def _rings(self, peer: str, callId: bytes, flags: int, offer: bytes) -> None:
        """Our own request is confirmed, or somebody calls; if both at once (glare), that is one call."""
        dialling = self._dialling
        isOurs = dialling is not None and dialling[0] == peer
        call = Call(self, callId, peer, flags, offer, isIncoming=not isOurs or bool(offer))
        self._callOver(CallOutcome(False, EndCode.PEER_LOST, "another call took its place"))
        self.currentCall = call
        if isOurs and dialling is not None:
            self._dialling = None
            dialling[1].callback(call)
        else:
            self._callsTold.append(callId)
            self._tell(self._listener.callReceived, call)

    def _callOver(self, outcome: CallOutcome) -> None:
        call, self.currentCall = self.currentCall, None
        if call is not None:
            call.over(outcome)

    def _checkCall(self, connection: Connection) -> None:
        """After a registration the call's frame follows at once; where none follows the call is over."""
        call = self.currentCall
        if call is None and not self._abandoned:
            return
        framesBefore = self._callFrames

        def handled(_: None) -> None:
            self._abandoned = ""
            if call is not None and self._callFrames == framesBefore and self.currentCall is call:
                self._callOver(CallOutcome(False, EndCode.PEER_LOST, "it ended while there was no connection"))

        connection.ask(MessageType.HEARTBEAT, b"").addCallbacks(handled, lambda _: None)

    # -- files

    def sendFile(self, to: str, path: Path, progress: Progress = _noProgress) -> Deferred[None]:
        """
        Send a file, over as many connections as that takes.

        @param progress: called with the bytes that the receiver has taken, and the size.
        @return: fires when the receiver has all of it and has checked its SHA-256; fails with L{TransferCancelled},
            L{ServerError}, L{NotConnected} or C{OSError}.
        """
        return Deferred.fromCoroutine(OutgoingFile(self, to, path, progress).run())

    def runInThread(self, f: Callable[..., T], *arguments: Any) -> Deferred[T]:
        """For transfers: run what blocks elsewhere."""
        return self._runInThread(f, *arguments)

    def sleep(self, seconds: float) -> Deferred[None]:
        """For transfers: fire after a while."""
        return deferLater(self._reactor, seconds)

    def callLater(self, seconds: float, f: Callable[[], None]) -> IDelayedCall:
        """For transfers: call C{f} after a while."""
        return self._reactor.callLater(seconds, f)

    def command(self, peer: str, op: FileOp, transferId: bytes, rest: bytes) -> None:
        """For transfers: send an op that is not awaited; what the server finds wrong with it goes to the listener."""

        def failed(failure: Failure) -> None:
            if failure.check(ServerError):
                self._tell(self._listener.errorReceived, failure.value)

        self.askFile(peer, op, transferId, rest).addErrback(failed)

    def askFile(self, peer: str, op: FileOp, transferId: bytes, rest: bytes) -> Deferred[None]:
        """For transfers: send an op and learn whether the server took it."""
        return self._ask(MessageType.FILE, peer, bytes((op,)) + transferId + rest)

    def sendFileFrame(self, peer: str, op: FileOp, transferId: bytes, rest: bytes) -> None:
        """
        For transfers: send a CHUNK, CREDIT or DONE, if there is a connection; if not, the transfer has been told so.

        These the server answers with nothing, or with a CANCEL.
        """
        if self._connection is not None:
            self._connection.sendFrame(MessageType.FILE, peer.encode(), bytes((op,)) + transferId + rest)

    def addOutgoing(self, file: OutgoingFile) -> None:
        """For transfers: let C{file} have what comes for it."""
        key = file.receiver, file.transferId
        if key in self._outgoing:
            raise ClientError("this file is being sent to that user already")
        self._outgoing[key] = file

    def removeOutgoing(self, file: OutgoingFile) -> None:
        """For transfers: it is over."""
        if self._outgoing.get((file.receiver, file.transferId)) is file:
            del self._outgoing[file.receiver, file.transferId]

    def keepIncoming(self, file: IncomingFile) -> bool:
        """For transfers: whether a file may wait for its lost sender."""
        return self._finalError is None and len(self._incoming) < MAX_INCOMING

    def removeIncoming(self, file: IncomingFile) -> None:
        """For transfers: it is over."""
        if self._incoming.get((file.sender, file.transferId)) is file:
            del self._incoming[file.sender, file.transferId]

    def confirm(self, sender: str, transferId: bytes, sha256: bytes) -> None:
        """For transfers: tell the sender that we have it; if that gets lost, tell it when it offers the file again."""

        def failed(failure: Failure) -> None:
            self._unconfirmed[sender, transferId] = sha256
            while len(self._unconfirmed) > MAX_INCOMING:
                del self._unconfirmed[next(iter(self._unconfirmed))]

        self.askFile(sender, FileOp.RECEIVED, transferId, b"").addErrback(failed)

    def _acceptAgain(self, sender: str, transferId: bytes, size: int) -> None:
        """Take a file that we have already from its end on, so that its sender learns that."""

        def failed(failure: Failure) -> None:
            isTooMuch = isinstance(failure.value, ServerError) and failure.value.code == ErrorCode.OVERLOADED
            if isTooMuch and (sender, transferId) in self._unconfirmed:
                self.callLater(RETRY_FIRST, lambda: self._acceptAgain(sender, transferId, size))

        self.askFile(sender, FileOp.ACCEPT, transferId, encodeOffset(size)).addErrback(failed)

    def offeredAgain(self, sender: str, transferId: bytes, rest: bytes) -> None:
        """For transfers: the same file was offered once more while the one before it ended."""
        self._fileFrame(sender, bytes((FileOp.OFFER,)) + transferId + rest)

    def _fileFrame(self, peer: str, data: bytes) -> None:
        op = data[0] if data else -1
        transferId, rest = splitId(data[1:])
        key = peer, transferId
        incoming = self._incoming.get(key)
        outgoing = self._outgoing.get(key)
        if op == FileOp.OFFER:
            offer = FileOffer.decode(rest)
            if incoming is not None and incoming.isAccepted:
                incoming.event(op, rest)
            elif self._unconfirmed.get(key) == offer.sha256:
                self._acceptAgain(peer, transferId, offer.size)
            elif len(self._incoming) >= MAX_INCOMING:
                self.command(peer, FileOp.CANCEL, transferId, bytes((CancelCode.DECLINED,)) + b"too many files")
            else:
                incoming = self._incoming[key] = IncomingFile(self, peer, transferId, offer)
                self._tell(self._listener.fileOffered, incoming)
            return
        if op in (FileOp.ACCEPT, FileOp.RECEIVED, FileOp.CREDIT):
            if outgoing is not None:
                outgoing.event(op, rest)
        elif incoming is not None and incoming.isAccepted:
            incoming.event(op, rest)
        elif incoming is not None and op == FileOp.CANCEL:
            self._withdraw(incoming)
        elif outgoing is not None and op == FileOp.CANCEL:
            outgoing.event(op, rest)
        elif key in self._unconfirmed and op == FileOp.DONE:
            self.confirm(peer, transferId, self._unconfirmed.pop(key))

    def _withdraw(self, incoming: IncomingFile) -> None:
        self.removeIncoming(incoming)
        self._tell(self._listener.fileWithdrawn, incoming)

    # -- frames

    def _ask(self, messageType: MessageType, to: str, data: bytes) -> Deferred[None]:
        if self._connection is None:
            return fail(self._finalError or NotConnected("there is no connection now"))
        try:
            userId = _encodeUser(to)
        except WireError as e:
            return fail(ServerError(e.code, e.text))
        return self._connection.ask(messageType, userId, data)

    def _takeDelay(self, user: str) -> float | None:
        """Return since when what comes from C{user} now had to wait."""
        delayed, self._delayed = self._delayed, None
        return delayed[1] if delayed is not None and delayed[0] == user else None

    def _errorReceived(self, error: ServerError, messageType: int, userId: bytes) -> None:
        isAnswer = (messageType == MessageType.TEXT and self._texts.refused(userId, error)) or (
            messageType == MessageType.LOGIN and self._accounts.refused(error)
        )
        if not isAnswer:
            self._tell(self._listener.errorReceived, error)

    def _frameReceived(self, messageType: int, userId: bytes, data: bytes) -> None:
        user = userId.decode("utf-8", "replace")
        if messageType == MessageType.MEDIA_DATA:
            call = self.currentCall
            if call is not None and call.peer == user:
                self._tell(call.mediaReceived, data)
        elif messageType == MessageType.TEXT:
            if self._listener.takesTexts:
                self._texts.took()
            self._tell(self._listener.textReceived, user, data.decode("utf-8", "replace"), self._takeDelay(user))
        elif messageType == MessageType.DELAY:
            self._delayed = user, decodeOffset(data) / 1000
        elif messageType == MessageType.ACK and self._texts.isReliable:
            self._texts.acknowledged(decodeU32(data))
        elif messageType == MessageType.AUTH_RESPONSE:
            self._accounts.answered(data)
        elif messageType == MessageType.FILE:
            self._fileFrame(user, data)
        elif messageType == MessageType.PRESENCE:
            self._presence.received(user, data)
        elif messageType in _CALL_TYPES:
            self._callFrame(messageType, user, data)
        # Other types are of servers that can do more than this client.


def _encodeUser(user: str) -> bytes:
    """
    Return a user ID as it stands on the wire; empty for the server.

    @raise WireError: badRequest, if it is none.
    """
    try:
        userId = user.encode()
    except UnicodeEncodeError:
        raise WireError(ErrorCode.BAD_REQUEST, "a user ID is UTF-8") from None
    if userId:
        checkUserId(userId)
    return userId


def _nothing(_: object) -> None:
    """Whatever the server says, it has done it."""


_CALL_TYPES = {
    MessageType.CALL_REQUEST,
    MessageType.CALL_ACCEPT,
    MessageType.CALL_REJECT,
    MessageType.CALL_END,
}
