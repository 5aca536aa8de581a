"""
The hub: who is online, and where each message goes.

::

    bytes -> protocol -> (type, userId, data) -> WeCompanyFactory -> calls, files, presence
                                                       |
    bytes <- transport <- outbound <- protocol <-------+
"""

from __future__ import annotations

import math
import secrets
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence, Set
from functools import partial
from hashlib import sha256
from typing import cast

from attrs import define
from twisted.internet.defer import Deferred, gatherResults, maybeDeferred
from twisted.internet.endpoints import TCP4ServerEndpoint
from twisted.internet.interfaces import IAddress, IDelayedCall, IListeningPort, IReactorTime
from twisted.internet.protocol import Factory
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from wecompany.calls import CALL_GRACE, MAX_CALL, RING_TIMEOUT, VideoCallServer
from wecompany.delivery import Delivery
from wecompany.files import FileTransfers
from wecompany.interfaces import (
    Attempt,
    Begun,
    CallRecord,
    CallSession,
    IAuthenticator,
    IConnection,
    IHub,
    IRouter,
    IServerObserver,
    IStore,
    MissedCall,
    QueueFull,
    Refused,
    Session,
    StoreProblem,
)
from wecompany.limits import AddressCounts, Limits, addressKey
from wecompany.outbound import CLASSES, Turn
from wecompany.poller import fastest
from wecompany.presence import Presence
from wecompany.protocol import WeCompanyProtocol
from wecompany.wire import (
    ID_SIZE,
    MAX_PAYLOAD,
    AccountOp,
    EndCode,
    ErrorCode,
    MessageType,
    RejectCode,
    WireError,
    checkUserId,
    encodeFrame,
    encodeRun,
    encodeTag,
    encodeTagged,
    packHead,
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

SWEPT_AT_ONCE = 40
"""Connections that are looked at before others get their turn."""

REPORT_EVERY = 60.0
"""Seconds between two log lines about what was counted."""

MAX_REFUSED = 100
"""Connections past the most allowed ones that get time to read that; any further one is told, and dropped at once."""

LONGEST_PAUSE = 0.02
"""Seconds for which a client that writes too fast is not read, at a time."""

PREPAID = 100
"""Parts of a burst: so much is taken from a bucket at once, and then counted down without looking at it."""

TOO_FAST = "it writes too fast"
"""Why a connection is not read."""


_RELAYS = ("relay", "relayRun")

_TEXT = int(MessageType.TEXT)
_MEDIA = int(MessageType.MEDIA_DATA)

BLOCKED = "that user takes nothing from you"

_MISSED = {(RejectCode, RejectCode.NO_ANSWER), (RejectCode, RejectCode.OFFLINE), (EndCode, EndCode.CANCELLED)}
"""How a call ends that its callee has missed.  The numbers alone would not do: that of cancelled is that of busy."""


def _wantsMessages(observer: IServerObserver) -> bool:
    """Return whether that observer does anything with a message."""
    heard = getattr(observer, "messageReceived", None)
    return getattr(heard, "__func__", None) is not ServerObserver.messageReceived


def _nobodyWatches(late: float) -> None:
    """Stand for L{WeCompanyFactory.swept} where it is not set."""


_ACCOUNT_COMMANDS = {AccountOp.LOG_OUT, AccountOp.CHANGE_PASSWORD, AccountOp.NEW_TOKEN}


@implementer(IServerObserver)
class ServerObserver:
    """
    An L{IServerObserver} to derive from: it does nothing.

    Messages are passed on faster while no observer wants them: do not define C{messageReceived} unless you need it.
    """

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


@define(eq=False)
class _Newcomer:
    """
    Somebody who is about to be a user.

    @ivar resumed: see L{IHub.register}.
    @ivar received: see L{IHub.register}.
    @ivar wasOnline: whether the user was online until this one took over.
    """

    connection: IConnection
    userId: bytes
    resumed: bytes | None
    received: int
    token: bytes = b""
    session: Session | None = None
    wasOnline: bool = False


@implementer(IHub, IRouter)
class WeCompanyFactory(Factory):
    """
    The server: listen with it through any endpoint, or call L{startServer}.

    Several of them can live in one process; they share nothing.

    @ivar calls: the L{VideoCallServer} with all calls.
    @ivar counters: what was dropped, refused or closed, and how often, since the start.
    @ivar registrations: how often somebody has registered, since the start.
    @ivar traffic: where the frames and bytes of each type are counted, in both directions, and the bytes that wait.
    @ivar swept: called about each second while somebody is connected, with the seconds by which that is late.
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
        limits: Limits | None = None,
        store: IStore | None = None,
        authenticator: IAuthenticator | None = None,
    ) -> None:
        """
        @param reactor: the time, and for L{startServer} the sockets; without one, Twisted's own.
        @param ringTimeout: seconds until a call that nobody answers is over.
        @param callGrace: seconds that a party of an active call may be away.
        @param maxCall: seconds that a call may last; 0 for any time.
        @param idleTimeout: seconds after which a silent client is closed.
        @param maxConnections: how many there may be, where C{limits} does not say it; 0 for as many as the system
            allows.
        @param broadcast: whether clients may send to everyone.
        @param observers: see L{addObserver}.
        @param limits: what anyone may do at most; the defaults if not given.
        @param store: see L{setStore}.
        @param authenticator: see L{setStore}.
        """
        if reactor is None:
            from twisted.internet import reactor as installed

            reactor = cast(IReactorTime, installed)
        self._reactor = reactor
        self.idleTimeout = idleTimeout
        self.counters: Counter[str] = Counter()
        self._reported: Counter[str] = Counter()
        limits = limits or Limits()
        self._limits = limits
        self._maxConnections = limits["connections"].value or maxConnections
        self._broadcastAllowed = broadcast
        self._broadcasts = limits.rate("broadcast", reactor)
        self._connectionRate = limits.rate("connection-rate", reactor)
        self._texts = limits.rate("text", reactor)
        self._mediaBytes = limits.rate("media", reactor)
        self._ofAddress = AddressCounts()
        self._unregisteredOfAddress = AddressCounts()
        self._unregistered: set[IConnection] = set()
        self._observers: list[IServerObserver] = list(observers)
        self._listeners = list(filter(_wantsMessages, self._observers))
        self._connections: set[IConnection] = set()
        self._refused: set[IConnection] = set()
        self._online: dict[bytes, IConnection] = {}
        self._newcomers: dict[bytes, tuple[_Newcomer, IDelayedCall]] = {}
        self._entering: dict[bytes, _Newcomer] = {}
        self._commanding: set[IConnection] = set()
        self._ports: list[IListeningPort] = []
        self._sweeping: IDelayedCall | None = None
        self._sweepAt = 0.0
        self.swept: Callable[[float], None] = _nobodyWatches
        self._relayTimers: list[Callable[[float], None]] = []
        self._reportAt = 0.0
        self._turn = self.traffic = Turn(limits["queued-memory"].value or math.inf, self._queuedTooMuch)
        self._received, self._receivedBytes = self._turn.received, self._turn.receivedBytes
        self.registrations = 0
        self._isRelieving = False
        self._isStopping = False
        self._stopped: Deferred[None]
        self._emptied: Deferred[None] | None = None
        self.calls = VideoCallServer(
            self,
            reactor,
            ringTimeout=ringTimeout,
            callGrace=callGrace,
            maxCall=maxCall,
            requests=limits.rate("calls", reactor),
        )
        self._files = FileTransfers(self, reactor, limits.rate("file", reactor))
        self._presence = Presence(
            self._online, reactor, self.count, limits.rate("presence", reactor), limits["subscriptions"].value
        )
        self._store: IStore | None = None
        self._authenticator: IAuthenticator | None = None
        self._delivery: Delivery | None = None
        self._blocks: Mapping[bytes, Set[bytes]] = {}
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
            MessageType.ACK: self._ack,
            MessageType.LOGIN: self._accountFrame,
        }
        self.setStore(store, authenticator)

    # -- for applications

    def setStore(self, store: IStore | None, authenticator: IAuthenticator | None = None) -> None:
        """
        Say where texts are kept and who may be whom, before the first client connects.

        @param store: without one, a text to somebody offline is refused, and nothing is reliable.
        @param authenticator: without one the server runs open: whoever connects may be anyone.
        """
        self._store = store
        self._authenticator = authenticator
        if store is not None:
            self._delivery = Delivery(store, self._reactor, self._turn, self.count, self._online.get)
            self._blocks = store.blocks
            self._presence.known = store.knownUsers
            store.setCount(self.count)
            store.setOnline(lambda userId: not self._isAway(userId))
            store.setAccountChanged(self._accountChanged)

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
        Send a message from the server itself.  A TEXT for somebody offline waits in the store, if that knows the user.

        @param data: bytes, or a text that is sent as UTF-8.
        @return: whether the user is online, and not so far behind that a text is refused.
        @raise WireError: if it is too long for a frame.
        """
        name = userId.encode()
        body = data.encode() if isinstance(data, str) else data
        frame = encodeFrame(messageType, b"", body)
        receiver = self._online.get(name)
        isDirect = receiver is not None and receiver.isDirect
        if messageType == MessageType.TEXT and not isDirect and self._delivery is not None:
            if self._isKept(name):
                self._delivery.keep(None, b"", name, body)
            return receiver is not None
        if receiver is None:
            return False
        if messageType == MessageType.TEXT:
            return self._sendIfRoom(receiver, frame)
        receiver.send(frame)
        return True

    def broadcastMessage(self, data: bytes | str, messageType: int = MessageType.TEXT) -> int:
        """
        Send a message from the server itself to everyone online.

        @return: how many that were; a text is kept from those who are too far behind.
        @raise WireError: if it is too long for a frame.
        """
        body = data.encode() if isinstance(data, str) else data
        return len(self._online) - self._spread(messageType, b"", body, encodeFrame(messageType, b"", body))

    def getOnlineUsers(self) -> list[str]:
        """Return the IDs of all users online, in the order in which they came."""
        return [userId.decode() for userId in self._online]

    @property
    def connectionCount(self) -> int:
        """How many are connected, be they registered or not."""
        return len(self._connections)

    @property
    def onlineCount(self) -> int:
        """How many users are online."""
        return len(self._online)

    def waitingByClass(self) -> dict[str, int]:
        """Return how many bytes wait for all receivers together, by the class that they wait in; it looks at each."""
        sizes = dict.fromkeys(CLASSES, 0)
        for connection in self._connections:
            if connection.waiting:
                for name, size in connection.waitingByClass().items():
                    sizes[name] += size
        return sizes

    @property
    def store(self) -> IStore | None:
        """The store, where there is one: see L{setStore}."""
        return self._store

    @property
    def isStopping(self) -> bool:
        """Whether L{stopServer} is at work."""
        return self._isStopping

    @property
    def isStoreFailing(self) -> bool:
        """Whether the store could not write when it last tried."""
        return self._store is not None and self._store.isFailing

    def timeRelay(self, tell: Callable[[float], None]) -> None:
        """
        Call C{tell} with the seconds that the next frame, or run of frames, takes to be passed on, up to the receiver's
        socket; with none, if that is one with which there is more to do.  Whoever else has asked is told the same.
        """
        if tell not in self._relayTimers:
            self._relayTimers.append(tell)
        for name in _RELAYS:  # before the methods of these names, until one is called: so all others pay nothing for it
            vars(self)[name] = partial(self._timedRelay, name)

    def _timedRelay(self, name: str, *frames: object) -> bool:
        for each in _RELAYS:
            del vars(self)[each]
        timers, self._relayTimers = self._relayTimers, []
        began = self._reactor.seconds()
        isRelayed: bool = getattr(self, name)(*frames)
        if isRelayed:
            took = self._reactor.seconds() - began
            for tell in timers:
                tell(took)
        return isRelayed

    def addObserver(self, observer: IServerObserver) -> None:
        """Tell C{observer} what happens from now on."""
        self._observers.append(observer)
        self._listeners = list(filter(_wantsMessages, self._observers))

    def removeObserver(self, observer: IServerObserver) -> None:
        """Tell C{observer} nothing more."""
        self._observers.remove(observer)
        self._listeners = list(filter(_wantsMessages, self._observers))

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

    def isBlocked(self, userId: bytes, sender: bytes) -> bool:
        """See L{IRouter.isBlocked}."""
        return sender in self._blocks.get(userId, ())

    def recordCall(self, session: CallSession, outcome: RejectCode | EndCode) -> None:
        """See L{IRouter.recordCall}."""
        if self._store is None:
            return
        callId = bytes.fromhex(session.callId)
        caller, callee = session.caller.encode(), session.callee.encode()
        startedAt = int(session.startedAt * 1000)
        answeredAt = None if session.answeredAt is None else int(session.answeredAt * 1000)
        assert session.endedAt is not None
        outcomeText = outcome.name.lower().replace("_", " ")
        self._store.callEnded(
            CallRecord(
                callId, caller, callee, session.isVideo, startedAt, answeredAt, int(session.endedAt * 1000), outcomeText
            )
        )
        if (type(outcome), outcome) in _MISSED and answeredAt is None:
            self._store.missedCall(callee, MissedCall(callId, caller, startedAt))

    def routesChanged(self, userId: bytes) -> None:
        """See L{IRouter.routesChanged}."""
        connection = self._online.get(userId)
        if connection is not None:
            connection.setInCall(userId in self.calls.routes)

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
        elif not connection.isClosed and self._maxConnections and others >= self._maxConnections:
            self._turnAway(connection, "connections", f"the server takes {self._maxConnections} connections")

    def addressKnown(self, connection: IConnection) -> None:
        """See L{IHub.addressKnown}."""
        key = sys.intern(addressKey(connection.address))
        most, mostUnregistered = self._limits["address-connections"].value, self._limits["unregistered"].value
        if self._connectionRate is not None and not self._connectionRate.allow(key.encode()):
            self._turnAway(connection, "connection-rate", "too many new connections from your address: wait a moment")
        elif most and self._ofAddress[key] >= most:
            self._turnAway(connection, "address-connections", f"your address has {most} connections")
        elif mostUnregistered and self._unregisteredOfAddress[key] >= mostUnregistered:
            self._turnAway(
                connection, "unregistered", f"{mostUnregistered} connections of your address have not registered yet"
            )
        else:
            connection.countedAs = key
            self._unregistered.add(connection)
            self._ofAddress.add(key)
            self._unregisteredOfAddress.add(key)

    def connectionLost(self, connection: IConnection) -> None:
        """See L{IHub.connectionLost}."""
        self.unregister(connection)
        if self._delivery is not None and connection.tag:
            self._delivery.lost(connection)
        self._isRegistered(connection)
        if connection.countedAs:
            self._ofAddress.remove(connection.countedAs)
        self._connections.discard(connection)
        self._refused.discard(connection)
        self._isEmpty()

    def register(self, connection: IConnection, attempt: Attempt, resumed: bytes | None, received: int) -> None:
        """See L{IHub.register}."""
        newcomer = _Newcomer(connection, attempt.userId, resumed, received)
        if self._authenticator is None:
            self._claim(newcomer)
        else:
            self._authenticator.authenticate(attempt).addCallbacks(
                self._authenticated, self._notAuthenticated, (newcomer,), errbackArgs=(newcomer,)
            ).addErrback(self._registrationFailed, newcomer)

    def _authenticated(self, token: bytes, newcomer: _Newcomer) -> None:
        newcomer.token = token
        if not newcomer.connection.isClosed:
            self._claim(newcomer)

    def _notAuthenticated(self, failure: Failure, newcomer: _Newcomer) -> None:
        failure.trap(Refused, StoreProblem)
        why = failure.value
        code = why.code if isinstance(why, Refused) else ErrorCode.OVERLOADED
        self._refuse(newcomer, code, why.text if isinstance(why, Refused) else str(why))

    def _registrationFailed(self, failure: Failure, newcomer: _Newcomer) -> None:
        self._log.failure("A registration of {user!r} failed", failure, user=newcomer.userId.decode())
        self._refuse(newcomer, ErrorCode.INTERNAL, "a fault in the server; it is logged")

    def _refuse(self, newcomer: _Newcomer, code: ErrorCode, text: str) -> None:
        self.count(f"registrations refused: {code.name}")
        newcomer.connection.close(code, text)

    def _claim(self, newcomer: _Newcomer) -> None:
        """Somebody who may be this user wants to be; there may be one already."""
        userId = newcomer.userId
        entering = self._entering.get(userId)
        holder = entering.connection if entering is not None else self._online.get(userId)
        isSame = newcomer.resumed and (
            entering.resumed == newcomer.resumed
            if entering is not None
            else holder is not None and holder.ownsSession(newcomer.resumed)
        )
        if holder is None:
            self._begin(newcomer)
        elif isSame or self._authenticator is not None:
            self._refuseNewcomer(userId)
            self._takeOver(holder, newcomer)
        elif userId in self._newcomers or entering is not None:
            self._refuse(newcomer, ErrorCode.ID_IN_USE, "somebody else is waiting for this ID")
        else:
            timer = self._reactor.callLater(PROBE_TIMEOUT, self._probeTimedOut, userId)
            self._newcomers[userId] = newcomer, timer
            holder.probe()

    def _begin(self, newcomer: _Newcomer) -> None:
        """Nobody else is in the way: begin its session, in the store first if it is a reliable one."""
        sessionId = secrets.token_bytes(ID_SIZE)
        if self._delivery is not None:
            self._delivery.expect(newcomer.userId)
        if self._store is None or newcomer.resumed is None:
            self._admit(newcomer, sessionId, None)
        else:
            self._entering[newcomer.userId] = newcomer
            newcomer.session = Session(sha256(sessionId).digest())
            begun = partial(self._begun, newcomer, sessionId)
            self._store.beginSession(
                newcomer.userId, newcomer.session.digest, newcomer.resumed, newcomer.received, begun
            )

    def _begun(self, newcomer: _Newcomer, sessionId: bytes, result: Begun | StoreProblem) -> None:
        userId = newcomer.userId
        if self._entering.get(userId) is not newcomer:  # it has left, or been replaced
            assert self._store is not None
            assert newcomer.session is not None
            self._store.sessionLost(newcomer.session.digest)
            return
        if isinstance(result, StoreProblem) and not isinstance(result, QueueFull):
            self._refuse(newcomer, ErrorCode.OVERLOADED, str(result))
            return
        del self._entering[userId]
        if isinstance(result, QueueFull):  # the store remembers no more users: this one is as without a store
            newcomer.session = None
            self._admit(newcomer, sessionId, None)
        else:
            self._admit(newcomer, sessionId, result)

    def _admit(self, newcomer: _Newcomer, sessionId: bytes, begun: Begun | None) -> None:
        connection, userId = newcomer.connection, newcomer.userId
        self._online[userId] = connection
        self.registrations += 1
        self._isRegistered(connection)
        connection.session = newcomer.session
        isReliable = newcomer.session is not None
        connection.registered(userId, sessionId, newcomer.resumed or b"" if isReliable else b"", newcomer.token)
        delivery = self._delivery
        if delivery is not None:
            delivery.join(connection, begun)
        self._log.info("{user!r} is online from {peer}", user=userId.decode(), peer=connection.peerName())
        self.calls.userRegistered(userId)
        self.routesChanged(userId)
        if delivery is not None and begun is not None:
            delivery.begin(connection, begun.waiting, bool(newcomer.resumed))
        if not newcomer.wasOnline:
            self._presence.changed(userId)
            self.tell("clientConnected", userId.decode())
        connection.resume()

    def _isRegistered(self, connection: IConnection) -> None:
        """This connection does not count among the unregistered ones any more."""
        if connection in self._unregistered:
            self._unregistered.remove(connection)
            self._unregisteredOfAddress.remove(connection.countedAs)

    def _turnAway(self, connection: IConnection, limit: str, text: str) -> None:
        self.count(f"limits hit: {limit}")
        lingers = len(self._refused) < MAX_REFUSED
        if lingers:
            self._refused.add(connection)
        else:
            self.count("connections dropped: too many")
        connection.close(ErrorCode.OVERLOADED, f"{text} (limit {limit})", lingers)

    def heardFrom(self, connection: IConnection) -> None:
        """See L{IHub.heardFrom}."""
        if self._online.get(connection.userId) is connection:
            self._refuseNewcomer(connection.userId)
            if self._delivery is not None and connection.session is not None:
                self._delivery.heardFrom(connection, connection.session)

    def isBehind(self, connection: IConnection) -> None:
        """See L{IHub.isBehind}."""
        if self._delivery is None:
            connection.isDirect = False
        else:
            self._delivery.divert(connection)

    def cleared(self, connection: IConnection) -> None:
        """See L{IHub.cleared}."""
        self._presence.cleared(connection)
        if self._delivery is None:
            connection.isDirect = True
        else:
            self._delivery.cleared(connection)

    def unregister(self, connection: IConnection) -> None:
        """See L{IHub.unregister}."""
        userId = connection.userId
        newcomer, timer = self._newcomers.get(userId, (None, None))
        if newcomer is not None and newcomer.connection is connection:
            assert timer is not None
            timer.cancel()
            del self._newcomers[userId]
        entering = self._entering.get(userId)
        if entering is not None and entering.connection is connection:
            del self._entering[userId]
            if entering.wasOnline:
                self._wentOffline(userId)
        if self._online.get(userId) is not connection:
            return
        if newcomer is not None and not self._isStopping:
            self._takeOver(connection, newcomer)
            return
        self._leave(connection)
        self._wentOffline(userId)

    def _leave(self, connection: IConnection) -> None:
        """This connection is its user's no more."""
        userId = connection.userId
        del self._online[userId]
        self._presence.connectionLost(connection)
        if self._delivery is not None:
            self._delivery.leave(connection)
        if not self._isStopping:
            self._files.userLost(userId)
            self.calls.userLost(userId)

    def _wentOffline(self, userId: bytes) -> None:
        self._log.info("{user!r} is offline", user=userId.decode())
        if not self._isStopping:
            self._presence.changed(userId)
        self.tell("clientDisconnected", userId.decode())

    def _takeOver(self, old: IConnection, newcomer: _Newcomer) -> None:
        """As if the old connection were lost and the user registered again at once; nobody's presence changes."""
        userId = newcomer.userId
        _, timer = self._newcomers.pop(userId, (None, None))
        if timer is not None and timer.active():
            timer.cancel()
        entering = self._entering.pop(userId, None)
        newcomer.wasOnline = entering is None or entering.wasOnline
        if entering is None:
            self._leave(old)
        old.close(ErrorCode.REPLACED, "you have registered from another connection")
        self._begin(newcomer)

    def _probeTimedOut(self, userId: bytes) -> None:
        newcomer, _ = self._newcomers[userId]
        self._takeOver(self._online[userId], newcomer)

    def _refuseNewcomer(self, userId: bytes) -> None:
        newcomer, timer = self._newcomers.pop(userId, (None, None))
        if newcomer is not None and timer is not None:
            timer.cancel()
            self._refuse(newcomer, ErrorCode.ID_IN_USE, "this ID is in use by a live connection")

    def _isAway(self, userId: bytes) -> bool:
        return userId not in self._online and userId not in self._entering

    def _accountChanged(self, userId: bytes) -> None:
        """An account has been disabled or deleted: put its user out."""
        if self._authenticator is None:
            return
        entering = self._entering.get(userId)
        connection = entering.connection if entering is not None else self._online.get(userId)
        if connection is not None:
            connection.close(ErrorCode.FORBIDDEN, "this account is disabled or deleted")

    # -- IHub: messages

    def frameReceived(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        """See L{IHub.frameReceived}."""
        self._received[messageType] += 1
        self._receivedBytes[messageType] += 5 + len(userId) + len(data)
        handler = self._handlers.get(messageType)
        if handler is None:
            raise WireError(ErrorCode.BAD_REQUEST, f"a registered client sends no frames of type {messageType}")
        handler(connection, messageType, userId, data)

    # The way of nearly all texts and media: so there are as few calls on it as can be, at the price of saying it twice.

    def relay(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> bool:
        """See L{IHub.relay}."""
        receiver = self._online.get(userId)
        size = len(data)
        length = 1 + len(connection.tag) + size
        if receiver is None or length > MAX_PAYLOAD:
            return False
        if messageType == _TEXT:
            left = connection.textsLeft - 1
            if left < 0 or not receiver.isDirect or connection.session is not None or self._listeners:
                return False
            if self._blocks and self.isBlocked(userId, connection.userId):
                return False
            connection.textsLeft = left
        elif messageType == _MEDIA and self.calls.routes.get(connection.userId) == userId:
            left = connection.mediaLeft - size
            if left < 0:
                return False
            connection.mediaLeft = left
        else:
            return False
        self._received[messageType] += 1
        self._receivedBytes[messageType] += 5 + len(userId) + size
        receiver.send(packHead(length, messageType) + connection.tag + data)
        return True

    def relayRun(
        self,
        connection: IConnection,
        messageType: int,
        userId: bytes,
        bodies: Sequence[bytes],
        isEven: bool,
        size: int,
    ) -> bool:
        """See L{IHub.relayRun}."""
        receiver = self._online.get(userId)
        if receiver is None:
            return False
        try:
            frames = encodeRun(messageType, connection.tag, bodies, isEven)
        except WireError:
            return False  # it is said of the one that is too long
        if messageType == _TEXT:
            left = connection.textsLeft - len(bodies)
            if left < 0 or not receiver.isDirect or connection.session is not None or self._listeners:
                return False
            if self._blocks and self.isBlocked(userId, connection.userId):
                return False
            connection.textsLeft = left
        elif messageType == _MEDIA and self.calls.routes.get(connection.userId) == userId:
            left = connection.mediaLeft - size + len(bodies) * (5 + len(userId))
            if left < 0:
                return False
            connection.mediaLeft = left
        else:
            return False
        self._received[messageType] += len(bodies)
        self._receivedBytes[messageType] += size
        receiver.sendRun(frames, len(bodies))
        return True

    def _text(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        connection.textsLeft = left = connection.textsLeft - 1
        if left < 0:
            self._lookAtTextRate(connection)
        receiver = self._online.get(userId)
        if receiver is not None and receiver.isDirect and connection.session is None:
            if self._blocks and self.isBlocked(userId, connection.userId):
                raise WireError(ErrorCode.FORBIDDEN, BLOCKED)
            receiver.send(encodeTagged(messageType, connection.tag, data))
        elif connection.session is None:
            self._keepText(connection, userId, data)
        else:
            connection.session.received += 1
            try:
                self._keepText(connection, userId, data)
            except WireError as e:
                assert self._delivery is not None
                self._delivery.refuse(connection, e, userId)
                return
        if self._listeners and (receiver is not None or not userId):
            self.tell("messageReceived", connection.userId.decode(), userId.decode(), messageType, data)

    def _keepText(self, connection: IConnection, userId: bytes, data: bytes) -> None:
        """Take a text that does not go straight to one receiver."""
        if not userId or len(connection.tag) + len(data) >= MAX_PAYLOAD:  # if it is too long, that is said here
            frame = encodeTagged(MessageType.TEXT, connection.tag, data)
        if not userId:
            self._broadcast(connection, data, frame)
        elif not self._isKept(userId):
            checkUserId(userId)
            raise WireError(ErrorCode.OFFLINE, "that user is offline")
        elif self.isBlocked(userId, connection.userId):
            raise WireError(ErrorCode.FORBIDDEN, BLOCKED)
        elif self._delivery is not None:
            self._delivery.keep(connection, connection.userId, userId, data)
        elif not self._sendIfRoom(self._online[userId], encodeTagged(MessageType.TEXT, connection.tag, data)):
            raise WireError(ErrorCode.OVERLOADED, "too much waits for that user already: try again later")

    def _sendIfRoom(self, receiver: IConnection, frame: bytes) -> bool:
        """Send a text, where there is no store, to somebody who may be behind; return whether that could be done."""
        if receiver.isDirect or receiver.hasRoomFor(len(frame)):
            receiver.send(frame)
            return True
        self.count("texts refused: the receiver is too far behind")
        return False

    def _isKept(self, userId: bytes) -> bool:
        """Whether a text for that user has a place, with its connection or in the store."""
        return (
            userId in self._online
            or userId in self._entering
            or (self._store is not None and self._store.isKnown(userId))
        )

    def _broadcast(self, connection: IConnection, data: bytes, frame: bytes) -> None:
        if not self._broadcastAllowed:
            raise WireError(ErrorCode.FORBIDDEN, "this server allows no broadcasts")
        if self._broadcasts is not None and not self._broadcasts.allow(connection.userId):
            self.count("limits hit: broadcast")
            raise WireError(ErrorCode.OVERLOADED, "too many texts to everyone: wait a moment (limit broadcast)")
        if connection.session is None or self._delivery is None:
            missed = self._spread(MessageType.TEXT, connection.userId, data, frame)
            if missed:
                raise WireError(ErrorCode.OVERLOADED, f"{missed} users are too far behind, and did not get it")
        else:
            self._delivery.spread(connection, data, self._receivers(connection.userId))

    def _spread(self, messageType: int, sender: bytes, data: bytes, frame: bytes) -> int:
        """
        Send to everyone who gets what that user sends to all.

        @return: how many did not get it, as they are too far behind.
        """
        direct: list[IConnection] = []
        missed = 0
        for receiver in self._receivers(sender):
            if messageType != MessageType.TEXT or receiver.isDirect:
                direct.append(receiver)
            elif self._delivery is not None:
                self._delivery.keep(None, sender, receiver.userId, data)
            elif not self._sendIfRoom(receiver, frame):
                missed += 1
        self._turn.sendAll(direct, frame)
        return missed

    def _receivers(self, sender: bytes) -> list[IConnection]:
        """Return all who are online, but the sender and those who block it."""
        everyone = self._online.items()
        if not self._blocks:
            return [receiver for userId, receiver in everyone if userId != sender]
        return [receiver for userId, receiver in everyone if userId != sender and not self.isBlocked(userId, sender)]

    def _lookAtTextRate(self, connection: IConnection) -> None:
        """Let so many texts pass before this is asked again; if there are too many, read the client more slowly."""
        if self._texts is None:
            connection.textsLeft = sys.maxsize
            return
        limit = self._limits["text"]
        some = max(1, limit.burst // PREPAID)
        if self._texts.allow(connection.userId, some):
            connection.textsLeft = some - 1
            return
        connection.textsLeft = 0
        self.count("limits hit: text")
        connection.hold(TOO_FAST)
        # No more than come in a pause, so that no pause is longer.
        self._pause(connection, max(1, int(limit.value * LONGEST_PAUSE)))

    def _pause(self, connection: IConnection, few: int) -> None:
        assert self._texts is not None
        wait = self._texts.wait(connection.userId, few)
        self._reactor.callLater(min(max(wait, 0.001), LONGEST_PAUSE), self._readAgain, connection, few)

    def _readAgain(self, connection: IConnection, few: int) -> None:
        assert self._texts is not None
        if connection.isClosed:
            return
        if self._texts.allow(connection.userId, few):
            connection.textsLeft = few - 1
            connection.release(TOO_FAST)
        else:
            self._pause(connection, few)

    def _file(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        self._files.frameReceived(connection.userId, userId, data)
        if self._listeners and userId in self._online:
            self.tell("messageReceived", connection.userId.decode(), userId.decode(), messageType, data)

    def _callFrame(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        self.calls.frameReceived(connection.userId, messageType, userId, data)

    def _media(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        receiver = self._online.get(userId)
        if receiver is not None and self.calls.routes.get(connection.userId) == userId:
            connection.mediaLeft -= len(data)
            if connection.mediaLeft < 0 and not self._mayMedia(connection, len(data)):
                self.count("limits hit: media")
                return
            receiver.send(encodeTagged(messageType, connection.tag, data))
            return
        self.count("media dropped: no call, or the party is away")
        if userId:
            checkUserId(userId)

    def _mayMedia(self, connection: IConnection, size: int) -> bool:
        """Whether that much may pass, as the bucket says; and let some more pass before this is asked again."""
        if self._mediaBytes is None:
            connection.mediaLeft = sys.maxsize
            return True
        some = max(size, self._limits["media"].burst // PREPAID)
        if self._mediaBytes.allow(connection.userId, some):
            connection.mediaLeft = some - size
            return True
        connection.mediaLeft = 0
        return False

    def _heartbeat(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        if userId:
            checkUserId(userId)
        connection.send(encodeFrame(messageType, b"", data))

    def _presenceFrame(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        self._presence.frameReceived(connection, userId, data)

    def _ack(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        if self._delivery is None:
            raise WireError(ErrorCode.BAD_REQUEST, "this server has no store, so nothing is acknowledged")
        self._delivery.acknowledge(connection, userId, data)

    def _accountFrame(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        """Take what a registered user asks for its own account: see L{AccountOp}, and docs/protocol.rst."""
        if connection in self._commanding:
            raise WireError(ErrorCode.OVERLOADED, "one account command at a time")
        op = data[0] if data else -1
        isAlone = len(data) == 1
        store = self._store
        done = partial(self._commandDone, connection, userId)
        if op in (AccountOp.BLOCK, AccountOp.UNBLOCK) and isAlone and store is not None and userId != connection.userId:
            checkUserId(userId)
            self._commanding.add(connection)
            (store.block if op == AccountOp.BLOCK else store.unblock)(connection.userId, userId, done)
        elif op == AccountOp.LIST_BLOCKED and isAlone and store is not None and not userId:
            blocked = sorted(self._blocks.get(connection.userId, ()))
            done(b"".join(map(encodeTag, blocked)))
        elif op in _ACCOUNT_COMMANDS and self._authenticator is not None and not userId:
            self._commanding.add(connection)
            self._authenticator.accountCommand(connection.userId, connection.address, data).addBoth(done)
        else:
            raise WireError(ErrorCode.BAD_REQUEST, "there is no such account command here")

    def _commandDone(self, connection: IConnection, userId: bytes, result: object) -> None:
        self._commanding.discard(connection)
        why = result.value if isinstance(result, Failure) else result
        if isinstance(why, Refused | WireError):
            answer = b"\0" + why.text.encode()
        elif isinstance(why, StoreProblem):
            answer = b"\0" + str(why).encode()
        elif isinstance(result, Failure):
            self._log.failure("An account command failed", result)
            answer = b"\0a fault in the server; it is logged"
        else:
            answer = b"\1" + (result if isinstance(result, bytes) else b"")
        connection.send(encodeFrame(MessageType.AUTH_RESPONSE, userId, answer))

    # -- memory

    def _queuedTooMuch(self) -> None:
        if not self._isRelieving:
            self._isRelieving = True
            self._reactor.callLater(0, self._relieve)

    def _relieve(self) -> None:
        """Close whoever has the most waiting, until all together have no more than the limit."""
        self._isRelieving = False
        while self._turn.waiting > self._turn.mostWaiting:
            slowest = max(self._connections, key=lambda connection: connection.waiting)
            assert slowest.waiting, "the sum is more than its parts"
            self.count("limits hit: queued-memory")
            slowest.close(ErrorCode.TOO_SLOW, "too much waits for all, and most for you (limit queued-memory)")

    # -- time

    def _scheduleSweep(self) -> None:
        delay = min(SWEEP_EVERY, self.idleTimeout / 10)
        self._sweepAt = self._reactor.seconds() + delay
        self._sweeping = self._reactor.callLater(delay, self._sweep)

    def _sweep(self) -> None:
        if self._delivery is not None:
            self._delivery.sweep()
        now = self._reactor.seconds()
        self.swept(max(0.0, now - self._sweepAt))
        if now >= self._reportAt:
            self._reportAt = now + REPORT_EVERY
            self._report()
        self._sweepSome(list(self._connections))

    def _sweepSome(self, connections: list[IConnection]) -> None:
        """Look at some of them, and let others have their turn before the next: to close many takes long."""
        self._sweeping = None
        now = self._reactor.seconds()
        for connection in connections[-SWEPT_AT_ONCE:]:
            connection.sweep(now)
        del connections[-SWEPT_AT_ONCE:]
        if not self._connections:
            return
        if connections:
            self._sweeping = self._reactor.callLater(0, self._sweepSome, connections)
        else:
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
