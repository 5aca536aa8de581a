"""
The hub: who is online, and where each message goes.

::

    bytes -> protocol -> (type, userId, data) -> WeCompanyFactory -> calls, files, presence
                                                       |
    bytes <- transport <- outbound <- protocol <-------+
"""

from __future__ import annotations

import secrets
from collections import Counter
from collections.abc import Callable, Iterable
from typing import cast

from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from zope.interface import implementer

from wecompany.calls import CALL_GRACE, MAX_CALL, RING_TIMEOUT, VideoCallServer
from wecompany.files import FileTransfers
from wecompany.interfaces import (
    CallSession,
    IConnection,
    IHub,
    IRouter,
    IServerObserver,
)
from wecompany.limits import RateLimit
from wecompany.outbound import Turn
from wecompany.poller import fastest
from wecompany.presence import Presence
from wecompany.protocol import WeCompanyProtocol
from wecompany.wire import (
    ID_SIZE,
    ErrorCode,
    MessageType,
    WireError,
    checkUserId,
    encodeFrame,
    encodeTagged,
)

IDLE_TIMEOUT = 90
"""Seconds after which a client that has sent nothing is closed: three heartbeats of theirs."""

PROBE_TIMEOUT = 5.0
"""Seconds that an old connection has for a sign of life when somebody else wants its user ID."""

BACKLOG = 1_024
"""Connections that the kernel holds until they are taken: all staff may come back at once when a network returns."""

STOP_WITHIN = 4.0
"""Seconds that clients have to read the last words of a server that stops."""

SWEEP_EVERY = 1.0
"""Seconds between two looks at the deadlines of all connections: one timer for all of them."""

REPORT_EVERY = 60.0
"""Seconds between two log lines about what was counted."""

MAX_REFUSED = 100
"""Connections past the most allowed ones that are told so; any further one is dropped without a word."""

BROADCASTS_PER_SECOND = 1
"""Broadcasts of one user."""


@implementer(IServerObserver)
class ServerObserver:
    """An L{IServerObserver} to derive from: it does nothing."""

    def clientConnected(self, userId: str) -> None:
        """See L{IServerObserver.clientConnected}."""

    def clientDisconnected(self, userId: str) -> None:
        """See L{IServerObserver.clientDisconnected}."""

    def messageReceived(self, fromUser: str, toUser: str, messageType: int, data: bytes) -> None:
        """See L{IServerObserver.messageReceived}."""

    def callInitiated(self, session: CallSession) -> None:
        """See L{IServerObserver.callInitiated}."""

    def callAccepted(self, session: CallSession) -> None:
        """See L{IServerObserver.callAccepted}."""

    def callRejected(self, session: CallSession, code: int, reason: str) -> None:
        """See L{IServerObserver.callRejected}."""

    def callEnded(self, session: CallSession, code: int, reason: str) -> None:
        """See L{IServerObserver.callEnded}."""


@implementer(IHub, IRouter)
class WeCompanyFactory(Factory):
    """
    The server: listen with it through any endpoint, or call L{startServer}.

    Several of them can live in one process; they share nothing.

    @ivar calls: the L{VideoCallServer} with all calls.
    @ivar counters: what was dropped, refused or closed, and how often, since the start.
    """

    noisy = False

    _log = Logger()

    def __init__(
        self,
        reactor: IReactorTime | None = None,
        *,
        ringTimeout: float = RING_TIMEOUT,
        callGrace: float = CALL_GRACE,
        maxCall: float = MAX_CALL,
        idleTimeout: float = IDLE_TIMEOUT,
        maxConnections: int = 0,
        broadcast: bool = False,
        observers: Iterable[IServerObserver] = (),
    ) -> None:
        """
        @param reactor: the time, and for L{startServer} the sockets; without one, Twisted's own.
        @param ringTimeout: seconds until a call that nobody answers is over.
        @param callGrace: seconds that a party of an active call may be away.
        @param maxCall: seconds that a call may last; 0 for any time.
        @param idleTimeout: seconds after which a silent client is closed.
        @param maxConnections: how many there may be; 0 for as many as the system allows.
        @param broadcast: whether clients may send to everyone.
        @param observers: see L{addObserver}.
        """
        if reactor is None:
            from twisted.internet import reactor as installed

            reactor = cast(IReactorTime, installed)
        self._reactor = reactor
        self.idleTimeout = idleTimeout
        self.counters: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        self._maxConnections = maxConnections
        self._broadcastAllowed = broadcast
        self._broadcasts = RateLimit(reactor, BROADCASTS_PER_SECOND, BROADCASTS_PER_SECOND)
        self._observers: list[IServerObserver] = list(observers)
        self._connections: set[IConnection] = set()
        self._refused: set[IConnection] = set()
        self._online: dict[bytes, IConnection] = {}
        self._newcomers: dict[bytes, tuple[IConnection, IDelayedCall]] = {}
        self._ports: list[IListeningPort] = []
        self._sweeping: IDelayedCall | None = None
        self._reportAt = 0.0
        self._turn = Turn()
        self._isStopping = False
        self._stopped: Deferred[None]
        self._emptied: Deferred[None] | None = None
        self.calls = VideoCallServer(self, reactor, ringTimeout=ringTimeout, callGrace=callGrace, maxCall=maxCall)
        self._files = FileTransfers(self, reactor)
        self._presence = Presence(self._online, reactor)
        callFrame = self._callFrame
        self._handlers: dict[int, Callable[[IConnection, int, bytes, bytes], None]] = {
            MessageType.TEXT: self._text,
            MessageType.FILE: self._file,
            MessageType.CALL_REQUEST: callFrame,
            MessageType.CALL_ACCEPT: callFrame,
            MessageType.CALL_REJECT: callFrame,
            MessageType.CALL_END: callFrame,
            MessageType.MEDIA_DATA: self._media,
            MessageType.HEARTBEAT: self._heartbeat,
            MessageType.PRESENCE: self._presenceFrame,
        }

    # -- for applications

    def startServer(self, port: int = 8888, interface: str = "", plain: bool = False) -> Deferred[IListeningPort]:
        """
        Listen on a TCP port.

        @param interface: the address to listen on; empty for all IPv4 ones, C{"::"} for all.
        @param plain: whether to leave the sockets to the reactor even where L{wecompany.poller} would be faster.
        @return: fires with the port, or fails with C{CannotListenError}.
        """

        def listening(listeningPort: IListeningPort) -> IListeningPort:
            self._ports.append(listeningPort)
            return listeningPort

        reactor = self._reactor if plain else fastest(self._reactor)
        endpoint = TCP4ServerEndpoint(reactor, port, backlog=BACKLOG, interface=interface)
        listened: Deferred[IListeningPort] = endpoint.listen(self)
        return listened.addCallback(listening)

    def stopServer(self) -> Deferred[None]:
        """
        Stop what L{startServer} began: end the calls, tell the clients, and let them go.

        @return: fires when nobody is connected any more, 4 s later at most.
        """
        if not self._isStopping:
            self._isStopping = True
            self._stopped = Deferred()
            Deferred.fromCoroutine(self._stop()).addBoth(self._stopped.callback)
        waiting: Deferred[None] = Deferred()
        self._stopped.addBoth(waiting.callback)
        return waiting

    async def _stop(self) -> None:
        try:
            ports, self._ports = self._ports, []
            await gatherResults([maybeDeferred(port.stopListening) for port in ports])
            self._presence.stop()
            self._files.stop()
            self.calls.stop()
            for connection in list(self._connections):
                connection.close(ErrorCode.SHUTTING_DOWN, "the server is going away")
            if self._connections:
                giveUp = self._reactor.callLater(STOP_WITHIN, self._abortAll)
                self._emptied = Deferred()
                await self._emptied
                if giveUp.active():
                    giveUp.cancel()
            self._report()
        finally:
            self._isStopping = False
            self.calls.start()

    def sendMessage(self, userId: str, data: bytes | str, messageType: int = MessageType.TEXT) -> bool:
        """
        Send a message from the server itself.

        @param data: bytes, or a text that is sent as UTF-8.
        @return: whether the user was online.
        @raise WireError: if it is too long for a frame.
        """
        return self.deliver(userId.encode(), messageType, b"", data.encode() if isinstance(data, str) else data)

    def broadcastMessage(self, data: bytes | str, messageType: int = MessageType.TEXT) -> int:
        """
        Send a message from the server itself to everyone online.

        @return: how many that were.
        @raise WireError: if it is too long for a frame.
        """
        frame = encodeFrame(messageType, b"", data.encode() if isinstance(data, str) else data)
        for connection in self._online.values():
            connection.send(frame)
        return len(self._online)

    def getOnlineUsers(self) -> list[str]:
        """Return the IDs of all users online, in the order in which they came."""
        return [userId.decode() for userId in self._online]

    def addObserver(self, observer: IServerObserver) -> None:
        """Tell C{observer} what happens from now on."""
        self._observers.append(observer)

    def removeObserver(self, observer: IServerObserver) -> None:
        """Tell C{observer} nothing more."""
        self._observers.remove(observer)

    # -- Factory

    def buildProtocol(self, addr: IAddress | None) -> WeCompanyProtocol:  # type: ignore[override]
        """Return the protocol of one new connection."""
        return WeCompanyProtocol(self, self._reactor, self._turn)

    # -- IRouter: for calls, files and presence

    def isOnline(self, userId: bytes) -> bool:
        """See L{IRouter.isOnline}."""
        return userId in self._online

    def deliver(self, userId: bytes, messageType: int, about: bytes, data: bytes) -> bool:
        """See L{IRouter.deliver}."""
        receiver = self._online.get(userId)
        if receiver is None:
            return False
        receiver.send(encodeFrame(messageType, about, data))
        return True

    def count(self, what: str, n: int = 1) -> None:
        """See L{IRouter.count}."""
        self.counters[what] += n

    def tell(self, event: str, *arguments: object) -> None:
        """See L{IRouter.tell}."""
        for observer in list(self._observers):
            try:
                getattr(observer, event)(*arguments)
            except Exception:  # noqa: BLE001 - an application's fault is logged and stays its own
                self._log.failure("An observer failed in {event}", event=event)

    # -- IHub: connections

    def connectionMade(self, connection: IConnection) -> None:
        """See L{IHub.connectionMade}."""
        others = len(self._connections) - len(self._refused)
        self._connections.add(connection)
        if self._sweeping is None:
            self._reportAt = self._reactor.seconds() + REPORT_EVERY
            self._scheduleSweep()
        if self._isStopping:
            connection.close(ErrorCode.SHUTTING_DOWN, "the server is going away")
        elif self._maxConnections and others >= self._maxConnections:
            if len(self._refused) < MAX_REFUSED:
                self._refused.add(connection)
                connection.close(ErrorCode.OVERLOADED, f"the server takes {self._maxConnections} connections")
            else:
                self.count("connections dropped: too many")
                connection.abort()

    def connectionLost(self, connection: IConnection) -> None:
        """See L{IHub.connectionLost}."""
        self.unregister(connection)
        self._connections.discard(connection)
        self._refused.discard(connection)
        self._isEmpty()

    def register(self, connection: IConnection, userId: bytes, credential: bytes, sessionId: bytes | None) -> None:
        """See L{IHub.register}.  The server runs open: whatever the credential, it is right."""
        old = self._online.get(userId)
        if old is None:
            self._admit(connection, userId)
            self._presence.changed(userId)
            self.tell("clientConnected", userId.decode())
            connection.resume()
        elif sessionId is not None and old.ownsSession(sessionId):
            self._refuseNewcomer(userId)
            self._takeOver(old, connection)
        elif userId in self._newcomers:
            connection.close(ErrorCode.ID_IN_USE, "somebody else is waiting for this ID")
        else:
            timer = self._reactor.callLater(PROBE_TIMEOUT, self._probeTimedOut, userId)
            self._newcomers[userId] = connection, timer
            old.probe()

    def heardFrom(self, connection: IConnection) -> None:
        """See L{IHub.heardFrom}."""
        if self._online.get(connection.userId) is connection:
            self._refuseNewcomer(connection.userId)

    def unregister(self, connection: IConnection) -> None:
        """See L{IHub.unregister}."""
        userId = connection.userId
        self._presence.connectionLost(connection)
        newcomer, timer = self._newcomers.get(userId, (None, None))
        if newcomer is connection:
            assert timer is not None
            timer.cancel()
            del self._newcomers[userId]
        if self._online.get(userId) is not connection:
            return
        if newcomer is not None and not self._isStopping:
            self._takeOver(connection, newcomer)
            return
        del self._online[userId]
        self._log.info("{user!r} is offline", user=userId.decode())
        if not self._isStopping:
            self._files.userLost(userId)
            self.calls.userLost(userId)
            self._presence.changed(userId)
        self.tell("clientDisconnected", userId.decode())

    def _admit(self, connection: IConnection, userId: bytes) -> None:
        self._online[userId] = connection
        connection.registered(userId, secrets.token_bytes(ID_SIZE))
        self._log.info("{user!r} is online from {peer}", user=userId.decode(), peer=connection.peerName())
        self.calls.userRegistered(userId)

    def _takeOver(self, old: IConnection, newcomer: IConnection) -> None:
        """As if the old connection were lost and the user registered again at once; nobody's presence changes."""
        userId = old.userId
        _, timer = self._newcomers.pop(userId, (None, None))
        if timer is not None and timer.active():
            timer.cancel()
        self._files.userLost(userId)
        self.calls.userLost(userId)
        self._admit(newcomer, userId)
        old.close(ErrorCode.REPLACED, "you have registered from another connection")
        newcomer.resume()

    def _probeTimedOut(self, userId: bytes) -> None:
        newcomer, _ = self._newcomers[userId]
        self._takeOver(self._online[userId], newcomer)

    def _refuseNewcomer(self, userId: bytes) -> None:
        newcomer, timer = self._newcomers.pop(userId, (None, None))
        if newcomer is not None and timer is not None:
            timer.cancel()
            newcomer.close(ErrorCode.ID_IN_USE, "this ID is in use by a live connection")

    # -- IHub: messages

    def frameReceived(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        """See L{IHub.frameReceived}."""
        handler = self._handlers.get(messageType)
        if handler is None:
            raise WireError(ErrorCode.BAD_REQUEST, f"a registered client sends no frames of type {messageType}")
        handler(connection, messageType, userId, data)

    def _text(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        receiver = self._online.get(userId)
        if receiver is not None:
            receiver.send(encodeTagged(messageType, connection.tag, data))
        elif not userId:
            self._broadcast(connection, data)
        else:
            checkUserId(userId)
            raise WireError(ErrorCode.OFFLINE, "that user is offline")
        if self._observers:
            self.tell("messageReceived", connection.userId.decode(), userId.decode(), messageType, data)

    def _broadcast(self, connection: IConnection, data: bytes) -> None:
        if not self._broadcastAllowed:
            raise WireError(ErrorCode.FORBIDDEN, "this server allows no broadcasts")
        frame = encodeTagged(MessageType.TEXT, connection.tag, data)
        if not self._broadcasts.allow(connection.userId):
            raise WireError(ErrorCode.OVERLOADED, f"at most {BROADCASTS_PER_SECOND} broadcast a second")
        for receiver in self._online.values():
            if receiver is not connection:
                receiver.send(frame)

    def _file(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        self._files.frameReceived(connection.userId, userId, data)
        if self._observers and userId in self._online:
            self.tell("messageReceived", connection.userId.decode(), userId.decode(), messageType, data)

    def _callFrame(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        self.calls.frameReceived(connection.userId, messageType, userId, data)

    def _media(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        receiver = self._online.get(userId)
        if receiver is not None and self.calls.routes.get(connection.userId) == userId:
            receiver.send(encodeTagged(messageType, connection.tag, data))
            return
        self.count("media dropped: no call, or the party is away")
        if userId:
            checkUserId(userId)

    def _heartbeat(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        if userId:
            checkUserId(userId)
        connection.send(encodeFrame(messageType, b"", data))

    def _presenceFrame(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        self._presence.frameReceived(connection, userId, data)

    # -- time

    def _scheduleSweep(self) -> None:
        self._sweeping = self._reactor.callLater(min(SWEEP_EVERY, self.idleTimeout / 10), self._sweep)

    def _sweep(self) -> None:
        self._sweeping = None
        now = self._reactor.seconds()
        for connection in list(self._connections):
            connection.sweep(now)
        if now >= self._reportAt:
            self._reportAt = now + REPORT_EVERY
            self._report()
        if self._connections:
            self._scheduleSweep()

    def _report(self) -> None:
        news = self.counters - self._reported
        if news:
            self._reported = Counter(self.counters)
            self._log.info(
                "Counted lately: {counts}", counts=", ".join(f"{what} {n}" for what, n in sorted(news.items()))
            )

    def _isEmpty(self) -> None:
        """If nobody is connected there is nothing to sweep, and a server that stops has stopped."""
        if self._connections:
            return
        if self._sweeping is not None:
            self._sweeping.cancel()
            self._sweeping = None
            self._report()
        emptied, self._emptied = self._emptied, None
        if emptied is not None:
            emptied.callback(None)

    def _abortAll(self) -> None:
        for connection in list(self._connections):
            connection.abort()
