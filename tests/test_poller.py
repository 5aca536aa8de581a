"""The fast path on Linux: it does what Twisted's own does, with real sockets and the real reactor."""

from __future__ import annotations

import select
import socket
from typing import Any, cast
from unittest import skipUnless

from twisted.internet import reactor as _reactor
from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import TCP4ClientEndpoint, serverFromString, wrapClientTLS
from twisted.internet.error import ConnectionAborted
from twisted.internet.interfaces import IHalfCloseableProtocol, IListeningPort
from twisted.internet.protocol import Factory, Protocol, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import Clock, deferLater
from twisted.python.failure import Failure
from twisted.trial.unittest import TestCase
from zope.interface import implementer

from tests import temporaryFolder
from tests.test_transports import makeCertificate
from wecompany.poller import MAX_ACCEPTS, MAX_EVENTS, Poller, fastest, serverEndpoint
from wecompany.server import WeCompanyFactory
from wecompany.wire import MessageType, encodeFrame

reactor: Any = _reactor
HAS_EPOLL = hasattr(select, "epoll")


class Recorder(Protocol):
    """Keeps what comes."""

    def __init__(self) -> None:
        self.data: DeferredQueue[bytes] = DeferredQueue()
        self.made: Deferred[None] = Deferred()
        self.lost: Deferred[str] = Deferred()

    def connectionMade(self) -> None:
        self.made.callback(None)

    def dataReceived(self, data: bytes) -> None:
        self.data.put(data)

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(reason.getErrorMessage())


@implementer(IHalfCloseableProtocol)
class HalfRecorder(Recorder):
    """One that notices when a half is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.readLost: Deferred[None] = Deferred()

    def readConnectionLost(self) -> None:
        self.readLost.callback(None)

    def writeConnectionLost(self) -> None:
        """Nothing follows from it."""


class AlwaysReady:
    """A reader that is never done."""

    def __init__(self, one: socket.socket) -> None:
        self._one = one
        self.reads = 0

    def fileno(self) -> int:
        return self._one.fileno()

    def doRead(self) -> None:
        self.reads += 1


@skipUnless(HAS_EPOLL, "epoll is Linux's own")
class PollerTests(TestCase):
    """One poller, one port, one client."""

    timeout = 20

    def setUp(self) -> None:
        self.poller = Poller(reactor)

    async def pair(self, kind: type[Recorder] = Recorder) -> tuple[Any, Any]:
        """Return a server's and a client's protocol that are connected; all ends with the test."""
        server, client = kind(), Recorder()
        factory = Factory.forProtocol(lambda: server)
        port = self.poller.listenTCP(0, factory, interface="127.0.0.1")
        self.addCleanup(port.stopListening)
        endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", cast(Any, port).getHost().port)
        await endpoint.connect(Factory.forProtocol(lambda: client))
        await server.made

        async def finish() -> None:
            for end in (server, client):
                if not end.lost.called:
                    cast(Any, end.transport).abortConnection()
                    await end.lost

        self.addCleanup(lambda: Deferred.fromCoroutine(finish()))
        return server, client

    async def test_bothWays(self) -> None:
        """What either side writes arrives at the other."""
        server, client = await self.pair()
        client.transport.write(b"question")
        self.assertEqual(await server.data.get(), b"question")
        server.transport.write(b"answer")
        self.assertEqual(await client.data.get(), b"answer")

    async def test_atOnce(self) -> None:
        """What is written when nothing waits is sent before write returns."""
        server, client = await self.pair()
        client.transport.pauseProducing()
        server.transport.write(b"now")
        self.assertEqual(client.transport.getHandle().recv(100), b"now")

    async def test_moreThanTheKernelTakes(self) -> None:
        """A write that the kernel takes in part arrives whole and in order with what is written behind it."""
        server, client = await self.pair()
        client.transport.pauseProducing()
        parts = [bytes([n]) * 3_000_000 for n in range(5)]
        for part in parts:
            server.transport.write(part)
        self.assertEqual(self.poller.getWriters(), [server.transport])
        server.transport.loseConnection()
        client.transport.resumeProducing()
        await client.lost
        got = b""
        while client.data.pending:
            got += await client.data.get()
        self.assertEqual(got, b"".join(parts))

    async def test_lost(self) -> None:
        """When the client closes, the server's protocol learns that it was done."""
        server, client = await self.pair()
        client.transport.loseConnection()
        self.assertIn("cleanly", await server.lost)

    async def test_aborted(self) -> None:
        """When the client aborts, the server's protocol learns that it was not done."""
        server, client = await self.pair()
        client.transport.abortConnection()
        self.assertIn("non-clean", await server.lost)

    async def test_abortedWhileNotRead(self) -> None:
        """A connection that is only written to learns of its loss too."""
        server, client = await self.pair()
        client.transport.pauseProducing()
        server.transport.pauseProducing()
        server.transport.write(b"x" * 20_000_000)
        client.transport.abortConnection()
        await server.lost

    async def test_writeToTheLost(self) -> None:
        """A write to a connection that is gone is found out, and raises nothing."""
        server, client = await self.pair()
        client.transport.abortConnection()
        server.transport.getHandle().shutdown(socket.SHUT_RDWR)
        server.transport.write(b"x")
        await server.lost

    async def test_halfClosed(self) -> None:
        """A protocol that cares learns when the client closes its half, and can still answer."""
        server, client = await self.pair(HalfRecorder)
        client.transport.loseWriteConnection()
        await server.readLost
        server.transport.write(b"late answer")
        self.assertEqual(await client.data.get(), b"late answer")
        server.transport.loseConnection()
        await server.lost

    async def test_fault(self) -> None:
        """A protocol that raises loses its connection; the fault is logged, and the others go on."""
        server, client = await self.pair()
        other, otherClient = await self.pair()
        server.dataReceived = lambda data: 1 / 0
        client.transport.write(b"x")
        await server.lost
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        otherClient.transport.write(b"still here")
        self.assertEqual(await other.data.get(), b"still here")

    async def test_faultAtTheEnd(self) -> None:
        """A protocol that raises even when it is told of its loss harms no other connection."""
        server, client = await self.pair()
        other, otherClient = await self.pair()
        server.dataReceived = lambda data: 1 / 0

        def lost(reason: Failure) -> None:
            server.lost.callback("")
            raise KeyError

        server.connectionLost = lost
        client.transport.write(b"x")
        await server.lost
        await deferLater(reactor, 0)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError, KeyError)), 2)
        otherClient.transport.write(b"still here")
        self.assertEqual(await other.data.get(), b"still here")

    async def test_tls(self) -> None:
        """TLS goes on top as it does on a reactor's own ports."""
        folder = temporaryFolder(self)
        makeCertificate(folder / "key.pem", folder / "cert.pem")
        description = f"ssl:0:interface=127.0.0.1:privateKey={folder}/key.pem:certKey={folder}/cert.pem"
        server, client = Recorder(), Recorder()
        endpoint = serverFromString(self.poller, description)
        port: Any = await endpoint.listen(Factory.forProtocol(lambda: server))
        plain = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
        await wrapClientTLS(CertificateOptions(), plain).connect(Factory.forProtocol(lambda: client))
        cast(Any, client.transport).write(b"question")
        self.assertEqual(await server.data.get(), b"question")
        cast(Any, server.transport).write(b"answer")
        self.assertEqual(await client.data.get(), b"answer")
        cast(Any, client.transport).loseConnection()
        await server.lost
        await client.lost
        await port.stopListening()

    async def test_starvesNobody(self) -> None:
        """With sockets that are always ready the reactor's timers still run, and each socket has its turn."""
        pairs = [socket.socketpair() for _ in range(MAX_EVENTS + 10)]
        readers = []
        for one, other in pairs:
            self.addCleanup(one.close)
            self.addCleanup(other.close)
            other.send(b"x")
            readers.append(AlwaysReady(one))
            self.poller.addReader(readers[-1])
        for _ in range(4):
            await deferLater(reactor, 0)
        self.assertEqual(len(self.poller.getReaders()), len(readers))
        self.assertEqual(set(self.poller.removeAll()), set(readers))
        self.assertTrue(all(reader.reads for reader in readers))

    async def test_rests(self) -> None:
        """A poller that serves nothing is no reader of the reactor, and serves again when there is something."""
        self.assertNotIn(self.poller, reactor.getReaders())
        for _ in range(2):
            port: IListeningPort = self.poller.listenTCP(0, Factory.forProtocol(Recorder), interface="127.0.0.1")
            self.assertIn(self.poller, reactor.getReaders())
            await cast(Any, port).stopListening()
            self.assertNotIn(self.poller, reactor.getReaders())
        self.assertEqual(self.poller.fileno(), -1)

    async def test_closedFirst(self) -> None:
        """A socket that was closed before it was taken out is taken out all the same."""
        one, other = socket.socketpair()
        self.addCleanup(other.close)
        reader = AlwaysReady(one)
        self.poller.addReader(reader)
        one.close()
        self.poller.removeReader(reader)
        self.poller.removeWriter(reader)
        self.assertEqual(self.poller.getReaders(), [])
        self.assertNotIn(self.poller, reactor.getReaders())

    async def test_closedByOneBefore(self) -> None:
        """A socket that is closed while its event waits its turn is not served any more."""
        first, second = await self.pair(), await self.pair()
        served = []

        def closeTheOther(which: int, data: bytes) -> None:
            served.append(which)
            (second if which == 1 else first)[0].transport.connectionLost(Failure(ConnectionAborted()))

        first[0].dataReceived = lambda data: closeTheOther(1, data)
        second[0].dataReceived = lambda data: closeTheOther(2, data)
        first[1].transport.getHandle().send(b"x")
        second[1].transport.getHandle().send(b"x")
        self.poller.doRead()
        self.assertEqual(len(served), 1)

    async def test_reactorStops(self) -> None:
        """When the reactor loses the poller, all that it served is lost, whatever one of them raises."""
        server, client = await self.pair()
        one, other = socket.socketpair()
        self.addCleanup(one.close)
        self.addCleanup(other.close)
        self.poller.addReader(AlwaysReady(one))
        self.poller.connectionLost(Failure(ConnectionAborted()))
        self.assertEqual(self.poller.getReaders(), [])
        self.assertIn("aborted", await server.lost)
        await client.lost
        self.assertEqual(len(self.flushLoggedErrors(AttributeError)), 1, "that one has no connectionLost")

    async def test_endpoint(self) -> None:
        """An application's own endpoint, of whatever kind, is served through a poller."""
        folder = temporaryFolder(self)
        makeCertificate(folder / "key.pem", folder / "cert.pem")
        secured = f"ssl:0:interface=127.0.0.1:privateKey={folder / 'key.pem'}:certKey={folder / 'cert.pem'}"
        for description in ("tcp:0:interface=127.0.0.1", secured):
            port = await serverEndpoint(reactor, description).listen(Factory.forProtocol(Recorder))
            self.addCleanup(port.stopListening)
            pollers = [reader for reader in reactor.getReaders() if isinstance(reader, Poller)]
            self.assertIn(port, [reader for poller in pollers for reader in poller.getReaders()])
        with self.assertRaises(ValueError):
            serverEndpoint(reactor, "nonsense:0")

    async def test_accepts(self) -> None:
        """A port takes so many connections and no more before others get their turn."""
        made: list[Recorder] = []

        class Kept(Recorder):
            def connectionMade(self) -> None:
                made.append(self)

        factory = Factory.forProtocol(Kept)
        port = cast(Any, self.poller.listenTCP(0, factory, backlog=200, interface="127.0.0.1"))
        self.addCleanup(port.stopListening)
        for _ in range(MAX_ACCEPTS + 1):
            self.addCleanup(socket.create_connection(("127.0.0.1", port.getHost().port)).close)
        for n in (MAX_ACCEPTS, MAX_ACCEPTS + 1):
            port.doRead()
            self.assertEqual(len(made), n)
        for server in made:
            cast(Any, server.transport).abortConnection()
            await server.lost

    async def test_adopted(self) -> None:
        """A listening socket that was opened by somebody else, as by systemd, is served; a UNIX one by the reactor."""
        for family, address in ((socket.AF_INET, ("127.0.0.1", 0)), (socket.AF_UNIX, "\0wecompany-test")):
            with socket.socket(family) as listening:
                listening.bind(address)
                listening.listen()
                listening.setblocking(False)
                port = self.poller.adoptStreamPort(listening.fileno(), family, Factory.forProtocol(Recorder))
            served = [*self.poller.getReaders(), *reactor.getReaders()]
            self.assertIn(port, served)
            await cast(Any, port).stopListening()

    async def test_startServer(self) -> None:
        """startServer serves through a poller, or plainly where that is asked for; a text takes either way."""
        for plain in (False, True):
            factory = WeCompanyFactory(reactor)
            port = await factory.startServer(0, "127.0.0.1", plain=plain)
            self.assertEqual(any(isinstance(reader, Poller) for reader in reactor.getReaders()), not plain)
            client = Recorder()
            endpoint = TCP4ClientEndpoint(reactor, "127.0.0.1", cast(Any, port).getHost().port)
            await endpoint.connect(Factory.forProtocol(lambda client=client: client))  # type: ignore[misc]
            transport = cast(Any, client.transport)
            transport.write(encodeFrame(MessageType.HEARTBEAT, b"me") + encodeFrame(MessageType.TEXT, b"me", b"hi"))
            wanted = encodeFrame(MessageType.TEXT, b"me", b"hi")
            got = b""
            while wanted not in got:
                got += await client.data.get()
            stopped = factory.stopServer()
            await client.data.get()
            transport.loseConnection()
            await stopped
            await client.lost

    def test_fastest(self) -> None:
        """A reactor that is none of Twisted's own, as in tests, is left as it is."""
        clock = Clock()
        self.assertIs(fastest(clock), clock)
        self.assertIsInstance(fastest(reactor), Poller)
        self.assertEqual(Poller(clock).seconds(), clock.seconds(), "time is the reactor's")
        self.assertEqual(Poller(clock).logPrefix(), "wecompany")
