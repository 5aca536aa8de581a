"""
A server in memory, for tests of this project and of applications that embed it: no socket, no reactor, no real time.

::

    server = MemoryServer(ringTimeout=10)
    alice, bob = server.login("alice"), server.login("bob")
    alice.send(MessageType.TEXT, "bob", b"hello")
    assert bob.received() == [Message(MessageType.TEXT, "alice", b"hello")]
    server.advance(90)
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, succeed
from twisted.internet.error import ConnectionAborted, ConnectionDone, ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import (
    IAddress,
    IConsumer,
    IProducer,
    IProtocol,
    IProtocolFactory,
    IPushProducer,
    IStreamClientEndpoint,
    ITransport,
)
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.python.failure import Failure
from zope.interface import implementer

from wecompany.database import Database
from wecompany.limits import Limits
from wecompany.server import WeCompanyFactory
from wecompany.store import Store
from wecompany.wire import MAX_PAYLOAD, MessageType, WireError, decodeFrames, encodeTag

T = TypeVar("T")

_ADDRESS = IPv4Address("TCP", "127.0.0.1", 8888)


class Message(NamedTuple):
    """One message as a client gets it."""

    type: int
    userId: str
    data: bytes


@implementer(ITransport, IConsumer, IPushProducer)
class MemoryTransport:
    """
    One end of a connection in memory.  What is written arrives at the other end when the clock is next advanced.

    It behaves as Twisted's TCP transport does with producers, half-closing and aborting.
    """

    bufferSize = 65_536
    disconnecting = False

    def __init__(self, clock: Clock, peer: IAddress = _ADDRESS) -> None:
        self._clock = clock
        self._peer = peer
        self._buffer = b""
        self._producer: Any = None
        self._producerPaused = False
        self._reading = True
        self._closing: str = ""
        self.connected = True
        self.protocol: IProtocol
        self.other: MemoryTransport

    def write(self, data: bytes) -> None:
        """See L{ITransport.write}."""
        if not self.connected or self._closing == "written":
            return
        self._buffer += data
        if self._producer is not None and len(self._buffer) > self.bufferSize:
            self._producerPaused = True
            self._producer.pauseProducing()
        self._clock.callLater(0, self._flush)

    def writeSequence(self, iovec: Any) -> None:
        """See L{ITransport.writeSequence}."""
        self.write(b"".join(iovec))

    def loseConnection(self) -> None:
        """See L{ITransport.loseConnection}."""
        self.disconnecting = True
        self._closing = "both"
        self._reading = False
        self._clock.callLater(0, self._flush)

    def loseWriteConnection(self) -> None:
        """Close this half when everything has been written."""
        self._closing = self._closing or "half"
        self._clock.callLater(0, self._flush)

    def abortConnection(self) -> None:
        """Drop both ends at once, and whatever was under way."""
        self._buffer = b""
        self._clock.callLater(0, self.lose, ConnectionAborted())

    def lose(self, reason: Exception) -> None:
        """The connection breaks: both ends learn it."""
        if self.connected:
            self.connected = False
            self.protocol.connectionLost(Failure(reason))
            if self.other.connected:
                self._clock.callLater(0, self.other.lose, ConnectionLost())

    def getPeer(self) -> IAddress:
        """See L{ITransport.getPeer}."""
        return self._peer

    def getHost(self) -> IAddress:
        """See L{ITransport.getHost}."""
        return _ADDRESS

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """See L{IConsumer.registerProducer}."""
        self._producer = producer

    def unregisterProducer(self) -> None:
        """See L{IConsumer.unregisterProducer}."""
        self._producer = None

    def pauseProducing(self) -> None:
        """Take nothing more from the other end."""
        self._reading = False

    def resumeProducing(self) -> None:
        """Take from the other end again."""
        self._reading = self._closing != "both"
        self._clock.callLater(0, self.other._flush)

    def stopProducing(self) -> None:
        """See L{IPushProducer.stopProducing}."""
        self.loseConnection()

    def _flush(self) -> None:
        if not self.connected or not self.other._reading:
            return
        data, self._buffer = self._buffer, b""
        if data and self.other.connected:
            self.other.protocol.dataReceived(data)
        if self._buffer:
            return
        if self._producerPaused and self._producer is not None:
            self._producerPaused = False
            self._producer.resumeProducing()
        elif self._closing == "both":
            self.lose(ConnectionDone())
        elif self._closing == "half":
            self._closing = "written"
            self.other._ended()

    def _ended(self) -> None:
        """The other end has closed its half.  A client of ours may look at that before it closes the rest."""
        ended = getattr(self.protocol, "writeHalfEnded", None)
        if ended is None:
            self.lose(ConnectionDone())
        else:
            ended()


class FakeClient(Protocol):
    """
    A client that knows frames and nothing else.

    @ivar sessionId: what the registration was answered with.
    @ivar ended: whether the server has closed its half, or everything.
    """

    transport: MemoryTransport

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._unparsed = b""
        self._messages: list[Message] = []
        self.sessionId = b""
        self.ended = False

    def dataReceived(self, data: bytes) -> None:
        """Keep whole frames for L{received}."""
        data = self._unparsed + data
        end = 0
        for messageType, userId, body, end in decodeFrames(data):
            self._messages.append(Message(messageType, userId.decode(), body))
        self._unparsed = data[end:]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.ended = True

    def writeHalfEnded(self) -> None:
        """The server has said its last word."""
        self.ended = True

    def send(self, messageType: int, userId: str | bytes = b"", data: bytes = b"") -> None:
        """Send one frame, even one that breaks the rules, and let everything that follows from it happen."""
        tag = encodeTag(userId.encode() if isinstance(userId, str) else userId)
        payload = bytes((messageType,)) + tag + data
        if len(payload) > MAX_PAYLOAD:
            raise ValueError("no frame can hold this")
        self.sendBytes(len(payload).to_bytes(2, "big") + payload)

    def sendBytes(self, data: bytes) -> None:
        """Send bytes, and let everything that follows from them happen."""
        self.transport.write(data)
        self._server.pump()

    def received(self) -> list[Message]:
        """Return what has come since one last asked."""
        self._server.pump()
        messages, self._messages = self._messages, []
        return messages

    def pauseReading(self) -> None:
        """Read nothing more, as a client that hangs."""
        self.transport.pauseProducing()

    def resumeReading(self) -> None:
        """Read again."""
        self.transport.resumeProducing()
        self._server.pump()

    def drop(self) -> None:
        """Break the connection."""
        self.transport.lose(ConnectionLost())
        self._server.pump()


@implementer(IStreamClientEndpoint)
class MemoryEndpoint:
    """Connects a client to a L{MemoryServer}."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See L{IStreamClientEndpoint.connect}."""
        if self._server.isDown:
            failed: Deferred[IProtocol] = Deferred()
            failed.errback(ConnectionRefusedError())
            return failed
        client = protocolFactory.buildProtocol(_ADDRESS)
        assert client is not None
        self._server.link(client)
        return succeed(client)


class MemoryServer:
    """
    A server and its time.

    @ivar factory: the hub.
    @ivar clock: its time; L{advance} lets it pass.
    @ivar isDown: whether new connections through L{endpoint} are refused.
    @ivar store: what keeps its texts, if a database was given.
    """

    def __init__(
        self,
        database: Path | None = None,
        clock: Clock | None = None,
        limits: Limits | None = None,
        **options: Any,
    ) -> None:
        """
        @param database: the file of a real store; without one the server has none.
        @param clock: goes on with the time of a server before this one.
        @param limits: the defaults if not given.
        @param options: further ones of L{WeCompanyFactory}.
        """
        self.clock = clock or Clock()
        self.store: Store | None = None
        if database is not None:
            limits = limits or Limits()
            self.store = Store(
                Database(database, self.clock.seconds),
                self.clock,
                self._runLater,
                maxUsers=limits["users"].value,
                queuedTexts=limits["queued-texts"].value,
                queuedBytes=limits["queued-bytes"].value,
                storeSize=limits["store-size"].value,
            )
            self.store.start()
        self.factory = WeCompanyFactory(self.clock, store=self.store, limits=limits, **options)
        self.isDown = False
        self._ends: list[MemoryTransport] = []

    def _runLater(self, f: Callable[[], T]) -> Deferred[T]:
        """Do what a thread would do, when the clock is next advanced."""
        done: Deferred[T] = Deferred()

        def run() -> None:
            try:
                result = f()
            except Exception:  # noqa: BLE001 - as a thread pool hands it on
                done.errback(Failure())
            else:
                done.callback(result)

        self.clock.callLater(0, run)
        return done

    def close(self) -> None:
        """Stop the server in good order, as a restart does, and its store."""
        self.factory.stopServer()
        self.cut()
        if self.store is not None:
            self.store.stop()
        self.pump()

    def endpoint(self) -> MemoryEndpoint:
        """Return an endpoint that connects to this server."""
        return MemoryEndpoint(self)

    def link(self, client: IProtocol, address: str = "127.0.0.1") -> None:
        """Connect a client's protocol, from an address."""
        peer = (IPv6Address if ":" in address else IPv4Address)("TCP", address, 8888)
        protocol = self.factory.buildProtocol(peer)
        end, other = MemoryTransport(self.clock), MemoryTransport(self.clock, peer)
        end.other, other.other = other, end
        end.protocol, other.protocol = client, protocol
        self._ends = [e for e in self._ends if e.connected] + [end]
        protocol.makeConnection(other)
        client.makeConnection(end)

    def cut(self) -> None:
        """Break every connection, as a network does."""
        for end in self._ends:
            end.lose(ConnectionLost())
        self.pump()

    def connect(self, address: str = "127.0.0.1") -> FakeClient:
        """Return a client that is connected and not registered."""
        client = FakeClient(self)
        self.link(client, address)
        self.pump()
        return client

    def login(self, userId: str, credential: bytes = b"") -> FakeClient:
        """
        Return a client that is registered.

        @raise WireError: if the server refused.
        """
        return self._register(userId, MessageType.HEARTBEAT, credential)

    def resume(
        self, userId: str, received: int = 0, sessionId: bytes = bytes(16), credential: bytes = b""
    ) -> FakeClient:
        """
        Return a client that is registered with reliable delivery.

        @param received: how many texts it took in its last session.
        @param sessionId: of that session.
        @raise WireError: if the server refused.
        """
        data = received.to_bytes(4, "big") + sessionId + credential
        return self._register(userId, MessageType.ACK, data)

    def _register(self, userId: str, messageType: int, data: bytes) -> FakeClient:
        client = self.connect()
        client.send(messageType, userId, data)
        greeting, *rest = client.received()
        if greeting.type != MessageType.HEARTBEAT:
            raise WireError(greeting.data[0], greeting.data[2:].decode())  # type: ignore[arg-type]
        client.sessionId = greeting.data
        client._messages = rest
        return client

    def advance(self, seconds: float) -> None:
        """Let time pass, and every timer do its work at its time."""
        self.pump()
        end = self.clock.seconds() + seconds
        while True:
            now = self.clock.seconds()
            due = min((call.getTime() for call in self.clock.getDelayedCalls()), default=end)
            self.clock.advance(max(0.0, min(due, end) - now))
            self.pump()
            if due >= end:
                return

    def pump(self) -> None:
        """Let everything happen that needs no time."""
        while any(call.getTime() <= self.clock.seconds() for call in self.clock.getDelayedCalls()):
            self.clock.advance(0)
