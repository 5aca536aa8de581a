"""The hub: listening and stopping, limits, deadlines, what an operator sees, and faults of its own."""

from __future__ import annotations

import gc
import weakref
from typing import Any, cast

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.internet.address import IPv4Address
from twisted.internet.error import CannotListenError
from twisted.internet.interfaces import IProtocolFactory, ISSLTransport
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.logger import ILogObserver, LogEvent, LogLevel, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import directlyProvides
from zope.interface.verify import verifyObject

from wecompany.interfaces import IConnection, IHub, IRouter
from wecompany.protocol import WeCompanyProtocol
from wecompany.server import MAX_REFUSED, ServerObserver, WeCompanyFactory
from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import (
    NO_TYPE,
    ErrorCode,
    FileOffer,
    MessageType,
    decodeError,
    decodeFrames,
    encodeFrame,
)

HEARTBEAT = MessageType.HEARTBEAT
TEXT = MessageType.TEXT


def lastWord(client: FakeClient) -> tuple[str, int, int]:
    """Return (userId, code, type) of the ERROR that is the last thing a client has got."""
    *_, message = client.received()
    assert message.type == MessageType.ERROR, message
    assert client.ended
    code, about, text = decodeError(message.data)
    assert text
    return message.userId, code, about


def said(transport: StringTransport) -> list[tuple[int, bytes, bytes]]:
    """Return the frames that a server has written."""
    return [frame[:3] for frame in decodeFrames(transport.value())]


class LogTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.events: list[LogEvent] = []
        observer = cast(ILogObserver, self.events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)

    def counted(self) -> list[str]:
        """Return what the server has reported since one last asked."""
        events, self.events[:] = list(self.events), []
        return [event["counts"] for event in events if "counts" in event]


class ListeningTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.factory = WeCompanyFactory(self.reactor)

    def connect(self, factory: IProtocolFactory) -> tuple[WeCompanyProtocol, StringTransport]:
        transport = StringTransport()
        protocol = factory.buildProtocol(transport.getPeer())
        assert isinstance(protocol, WeCompanyProtocol)
        protocol.makeConnection(transport)
        return protocol, transport

    def test_startServer(self) -> None:
        """startServer listens on that TCP port, and its Deferred fires with the listening port."""
        port = self.successResultOf(self.factory.startServer(9999))
        ((number, factory, _, interface),) = self.reactor.tcpServers
        self.assertEqual((number, interface, port.getHost()), (9999, "", IPv4Address("TCP", "0.0.0.0", 9999)))
        protocol, transport = self.connect(factory)
        protocol.dataReceived(encodeFrame(HEARTBEAT, b"alice"))
        self.assertEqual([frame[:2] for frame in said(transport)], [(HEARTBEAT, b"alice")])
        self.assertEqual(self.factory.getOnlineUsers(), ["alice"])

    def test_defaultPort(self) -> None:
        """The port is 8888 where none is given, and the interface can be chosen."""
        self.successResultOf(self.factory.startServer())
        self.successResultOf(self.factory.startServer(9999, interface="127.0.0.1"))
        self.assertEqual(
            [(port, interface) for port, _, _, interface in self.reactor.tcpServers], [(8888, ""), (9999, "127.0.0.1")]
        )

    def test_portInUse(self) -> None:
        """startServer fails with CannotListenError where the port is in use, and the server can still be stopped."""

        class Busy(MemoryReactorClock):
            def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
                raise CannotListenError(interface, port, OSError("in use"))

        factory = WeCompanyFactory(Busy())
        self.failureResultOf(factory.startServer(8888), CannotListenError)
        self.successResultOf(factory.stopServer())

    def test_stopServer(self) -> None:
        """stopServer stops listening, closes the clients as shuttingDown, and fires when they are gone."""
        port = self.successResultOf(self.factory.startServer(8888))
        stopped: list[bool] = []
        self.patch(port, "stopListening", lambda: stopped.append(True))
        protocol, transport = self.connect(self.factory)
        protocol.dataReceived(encodeFrame(HEARTBEAT, b"alice"))
        done = self.factory.stopServer()
        self.assertEqual(stopped, [True])
        self.assertEqual(said(transport)[-1][:2], (MessageType.ERROR, b""))
        self.assertEqual(said(transport)[-1][2][:2], bytes((ErrorCode.SHUTTING_DOWN, NO_TYPE)))
        self.assertTrue(transport.disconnecting)
        self.assertNoResult(done)
        protocol.connectionLost()
        self.successResultOf(done)
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_installedReactor(self) -> None:
        """Without a reactor of its own a factory takes Twisted's, and leaves nothing in it when it is not used."""
        from twisted.internet import reactor

        before = list(reactor.getDelayedCalls())
        factory = WeCompanyFactory()
        self.assertEqual(factory.getOnlineUsers(), [])
        self.assertEqual(reactor.getDelayedCalls(), before)

    def test_severalInOneProcess(self) -> None:
        """Several factories share nothing: not the users, not the limits, not what they counted."""
        one, other = MemoryServer(broadcast=True), MemoryServer()
        alice, bob = one.login("alice"), other.login("bob")
        other.login("alice")
        alice.send(TEXT, "bob", b"hello")
        alice.send(TEXT, "", b"hello")
        self.assertEqual([m.type for m in alice.received()], [MessageType.ERROR])
        self.assertEqual(bob.received(), [])
        self.assertEqual((one.factory.getOnlineUsers(), other.factory.getOnlineUsers()), (["alice"], ["bob", "alice"]))
        self.assertFalse(other.factory.counters)
        other.factory.stopServer()
        other.advance(5)
        self.assertTrue(bob.ended)
        self.assertFalse(alice.ended)

    def test_interfaces(self) -> None:
        """The hub and its connections provide the interfaces that they are known by."""
        self.assertTrue(verifyObject(IHub, self.factory))
        self.assertTrue(verifyObject(IRouter, self.factory))
        protocol = self.factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        self.assertTrue(verifyObject(IConnection, protocol))


class TransportTests(SynchronousTestCase):
    """What a connection asks of its transport, whatever kind that is."""

    def refused(self, transport: StringTransport) -> None:
        protocol = MemoryServer().factory.buildProtocol(None)
        protocol.makeConnection(transport)
        protocol.dataReceived(b"\0\0")
        self.assertEqual([frame[0] for frame in said(transport)], [MessageType.ERROR])

    def test_noDelay(self) -> None:
        """Over TCP small messages are not held back."""

        class Tcp(StringTransport):
            noDelay = False

            def setTcpNoDelay(self, enabled: bool) -> None:
                self.noDelay = enabled

        transport = Tcp()
        self.refused(transport)
        self.assertTrue(transport.noDelay)

    def test_halfClose(self) -> None:
        """Only our half is closed where the transport can, so that no reset overtakes the ERROR."""

        class HalfClosing(StringTransport):
            halfClosed = False

            def loseWriteConnection(self) -> None:
                self.halfClosed = True

        tcp, tls, other = HalfClosing(), HalfClosing(), StringTransport()
        directlyProvides(tls, ISSLTransport)
        for transport in (tcp, tls, other):
            self.refused(transport)
        self.assertEqual((tcp.halfClosed, tcp.disconnecting), (True, False))
        self.assertEqual((tls.halfClosed, tls.disconnecting), (False, True))
        self.assertTrue(other.disconnecting)

    def test_lingering(self) -> None:
        """A client that was refused and does not close is answered no more, and dropped within seconds."""
        server = MemoryServer()
        client = server.connect()
        client.sendBytes(b"\0\0")
        server.advance(2)
        self.assertTrue(client.ended and client.transport.connected)
        client.sendBytes(bytes(1000))
        server.advance(3)
        self.assertFalse(client.transport.connected)
        self.assertEqual([m.type for m in client.received()], [MessageType.ERROR])


class StoppingTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer()

    def test_nobody(self) -> None:
        """A server without clients stops at once."""
        self.successResultOf(self.server.factory.stopServer())

    def test_everyPhase(self) -> None:
        """Every connection is told: registered ones, held newcomers and those that have said nothing."""
        alice = self.server.login("alice")
        held, stranger = self.server.connect(), self.server.connect()
        held.send(HEARTBEAT, "alice")
        done = self.server.factory.stopServer()
        self.assertEqual(lastWord(alice), ("", ErrorCode.SHUTTING_DOWN, NO_TYPE))
        self.assertEqual(lastWord(held), ("alice", ErrorCode.SHUTTING_DOWN, HEARTBEAT))
        self.assertEqual(lastWord(stranger), ("", ErrorCode.SHUTTING_DOWN, NO_TYPE))
        self.assertEqual(self.server.factory.getOnlineUsers(), [])
        for client in (alice, held, stranger):
            self.assertNoResult(done)
            client.drop()
        self.successResultOf(done)

    def test_nothingIsLeft(self) -> None:
        """When it has stopped no timer is left, whatever went on before."""
        alice, bob, carol = (self.server.login(userId) for userId in ("alice", "bob", "carol"))
        held = self.server.connect()
        held.send(HEARTBEAT, "alice")
        alice.send(MessageType.PRESENCE, "", b"\1")
        alice.send(MessageType.CALL_REQUEST, "bob", b"\0")
        carol.send(MessageType.CALL_REQUEST, "nobody", b"\0")
        carol.send(MessageType.FILE, "bob", b"\0" + b"i" * 16 + FileOffer(1, b"h" * 32, "a").encode())
        done = self.server.factory.stopServer()
        for client in (alice, bob, carol, held):
            client.drop()
        self.successResultOf(done)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_calls(self) -> None:
        """The parties of a call are told of its end before they are told that the server goes."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.send(MessageType.CALL_REQUEST, "bob", b"\0")
        alice.received(), bob.received()
        self.server.factory.stopServer()
        for client in (alice, bob):
            end, error = client.received()
            self.assertEqual((end.type, end.data[16]), (MessageType.CALL_END, 4))
            self.assertEqual((error.type, error.data[0]), (MessageType.ERROR, ErrorCode.SHUTTING_DOWN))

    def test_lateFrames(self) -> None:
        """What clients send to a server that stops has no effect, and nobody new gets in."""
        alice = self.server.login("alice")
        done = self.server.factory.stopServer()
        alice.send(TEXT, "alice", b"hello")
        newcomer = self.server.connect()
        newcomer.send(HEARTBEAT, "bob")
        self.assertEqual(lastWord(newcomer)[1], ErrorCode.SHUTTING_DOWN)
        self.assertEqual([m.type for m in alice.received()], [MessageType.ERROR])
        self.assertEqual(self.server.factory.getOnlineUsers(), [])
        self.server.advance(5)
        self.successResultOf(done)

    def test_inTime(self) -> None:
        """Clients that do not close are dropped, so that it has stopped within 5 s."""
        alice = self.server.login("alice")
        done = self.server.factory.stopServer()
        self.server.advance(2)
        self.assertNoResult(done)
        self.server.advance(2.9)
        self.successResultOf(done)
        self.assertFalse(alice.transport.connected)

    def test_lastResort(self) -> None:
        """A client that connects at the last moment does not hold up the server for longer."""
        self.server.login("alice")
        done = self.server.factory.stopServer()
        self.server.advance(2.5)
        late = self.server.connect()
        self.server.advance(2.4)
        self.successResultOf(done)
        self.assertFalse(late.transport.connected)

    def test_twice(self) -> None:
        """To stop a server that is stopping waits for the same end."""
        alice = self.server.login("alice")
        first, second = self.server.factory.stopServer(), self.server.factory.stopServer()
        self.assertNoResult(second)
        alice.drop()
        self.successResultOf(first)
        self.successResultOf(second)
        self.successResultOf(self.server.factory.stopServer())

    def test_again(self) -> None:
        """A server that has stopped can be used again, with its deadlines."""
        self.server.login("alice").drop()
        self.successResultOf(self.server.factory.stopServer())
        alice, stranger = self.server.login("alice"), self.server.connect()
        alice.send(TEXT, "alice", b"hello")
        self.assertEqual(alice.received(), [Message(TEXT, "alice", b"hello")])
        self.server.advance(12)
        self.assertEqual(lastWord(stranger)[1], ErrorCode.NOT_REGISTERED)
        self.assertFalse(alice.ended)

    def test_observers(self) -> None:
        """Observers hear who has gone offline because the server stopped, once each."""
        gone: list[str] = []

        class Observer(ServerObserver):
            def clientDisconnected(self, userId: str) -> None:
                gone.append(userId)

        self.server.login("alice"), self.server.login("bob")
        self.server.factory.addObserver(Observer())
        self.server.factory.stopServer()
        self.server.advance(5)
        self.assertEqual(sorted(gone), ["alice", "bob"])


class ConnectionsTests(SynchronousTestCase):
    def test_most(self) -> None:
        """As many connections as allowed are taken; one more is ERROR overloaded and closed."""
        server = MemoryServer(maxConnections=2)
        alice, stranger = server.login("alice"), server.connect()
        surplus = server.connect()
        self.assertEqual(lastWord(surplus), ("", ErrorCode.OVERLOADED, NO_TYPE))
        surplus.send(HEARTBEAT, "bob")
        self.assertEqual(server.factory.getOnlineUsers(), ["alice"])
        stranger.send(HEARTBEAT, "carol")
        self.assertEqual(server.factory.getOnlineUsers(), ["alice", "carol"])
        self.assertFalse(alice.ended or stranger.ended)

    def test_room(self) -> None:
        """When one has gone there is room for one."""
        server = MemoryServer(maxConnections=1)
        for _ in range(3):
            server.login("alice").drop()
        client = server.login("alice")
        self.assertEqual(lastWord(server.connect())[1], ErrorCode.OVERLOADED)
        self.assertFalse(client.ended)

    def test_refusedTakeNoRoom(self) -> None:
        """A connection that was refused and lingers takes nobody's room."""
        server = MemoryServer(maxConnections=1)
        alice, surplus = server.login("alice"), server.connect()
        self.assertTrue(surplus.ended)
        alice.drop()
        self.assertTrue(server.login("bob").sessionId)

    def test_farTooMany(self) -> None:
        """Past a hundred refused ones that still linger, one more is told so, dropped at once, and counted."""
        server = MemoryServer(maxConnections=1)
        server.login("alice")
        refused = [server.connect() for _ in range(MAX_REFUSED)]
        self.assertTrue(all(lastWord(client)[1] == ErrorCode.OVERLOADED for client in refused))
        before = server.factory.counters.copy()
        self.assertTrue(all(client.transport.connected for client in refused))
        dropped = server.connect()
        self.assertEqual((lastWord(dropped)[1], dropped.transport.connected), (ErrorCode.OVERLOADED, False))
        counted = server.factory.counters - before
        names = ("limits hit: connections", "connections dropped: too many", "connections closed: OVERLOADED")
        self.assertEqual(counted, dict.fromkeys(names, 1))
        server.advance(5)
        self.assertEqual(lastWord(server.connect())[1], ErrorCode.OVERLOADED)

    def test_unlimited(self) -> None:
        """Without a limit all are taken."""
        server = MemoryServer()
        self.assertFalse(any(server.connect().ended for _ in range(300)))


class SweepTests(LogTestCase):
    def test_onlyWhileSomebodyIsThere(self) -> None:
        """A server without connections keeps no timer."""
        server = MemoryServer()
        self.assertEqual(server.clock.getDelayedCalls(), [])
        server.login("alice").drop()
        server.advance(1)
        self.assertEqual(server.clock.getDelayedCalls(), [])
        stranger = server.connect()
        server.advance(30)
        self.assertFalse(stranger.transport.connected)
        self.assertEqual(server.clock.getDelayedCalls(), [])

    def test_nothingIsKept(self) -> None:
        """Nothing is kept of a connection that has gone, whatever it had subscribed to and whatever waited for it."""
        factory = MemoryServer().factory
        protocol = factory.buildProtocol(None)
        protocol.makeConnection(StringTransport())
        protocol.dataReceived(encodeFrame(HEARTBEAT, b"alice"))
        for userId in (b"", b"bob", b"alice"):
            protocol.dataReceived(encodeFrame(MessageType.PRESENCE, userId, b"\1"))
        protocol.connectionLost()
        gone = weakref.ref(protocol)
        del protocol
        gc.collect()
        self.assertIsNone(gone())

    def test_report(self) -> None:
        """What was counted is logged once a minute, and only what is new."""
        server = MemoryServer(idleTimeout=1000)
        alice = server.login("alice")
        alice.send(TEXT, "nobody")
        alice.send(TEXT, "nobody")
        self.assertEqual(self.counted(), [])
        server.advance(62)
        (report,) = self.counted()
        self.assertIn("OFFLINE 2", report)
        server.advance(62)
        self.assertEqual(self.counted(), [])
        alice.send(TEXT, "nobody")
        server.advance(62)
        (report,) = self.counted()
        self.assertIn("OFFLINE 1", report)
        self.assertNotIn("2", report)

    def test_reportAtTheEnd(self) -> None:
        """What was counted is logged too when the last client goes, and when the server stops."""
        server = MemoryServer()
        alice = server.login("alice")
        alice.send(TEXT, "nobody")
        alice.drop()
        self.assertEqual(len(self.counted()), 1)
        alice = server.login("alice")
        alice.send(TEXT, "nobody")
        server.factory.stopServer()
        server.advance(5)
        self.assertGreaterEqual(len(self.counted()), 1)

    def test_counters(self) -> None:
        """Every ERROR and every closing is counted under the name of its code."""
        server = MemoryServer()
        alice = server.login("alice")
        alice.send(TEXT, "nobody")
        alice.send(MessageType.GROUP)
        alice.sendBytes(b"\0\0")
        names = " ".join(server.factory.counters)
        for code in ("OFFLINE", "BAD_REQUEST", "MALFORMED"):
            self.assertIn(code, names)
        self.assertEqual(sum(server.factory.counters.values()), 3)

    def test_logged(self) -> None:
        """Who comes and goes and is closed is logged, and no message is."""
        server = MemoryServer()
        alice = server.login("alice")
        alice.sendBytes(b"\0\0")
        server.advance(5)
        server.connect().sendBytes(b"\0\0")
        levels = [event["log_level"] for event in self.events]
        self.assertGreaterEqual(levels.count(LogLevel.info), 3)
        self.assertFalse({LogLevel.warn, LogLevel.error, LogLevel.critical} & set(levels))
        bob = server.login("bob")
        before = len(self.events)
        for _ in range(10):
            bob.send(TEXT, "bob", b"hello")
            bob.send(HEARTBEAT)
            bob.send(TEXT, "nobody", b"hello")
        self.assertEqual(len(self.events), before)


class FaultTests(SynchronousTestCase):
    """A fault in the server itself, which an application's own factory provokes here."""

    def setUp(self) -> None:
        class FaultyFactory(WeCompanyFactory):
            def frameReceived(self, connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
                if data.startswith(b"close"):
                    connection.close(ErrorCode.FORBIDDEN, "go away")
                if data.endswith(b"fault"):
                    raise ZeroDivisionError
                super().frameReceived(connection, messageType, userId, data)

        self.server = MemoryServer()
        self.server.factory = FaultyFactory(self.server.clock)

    def test_internal(self) -> None:
        """It is logged with a traceback and answered with ERROR internal, and the connection stays."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        for userId, named in ((b"bob", "bob"), (b"", ""), (b"#", "")):
            alice.sendBytes(encodeFrame(TEXT, userId, b"fault") + encodeFrame(TEXT, b"bob", b"next"))
            (error,) = alice.received()
            self.assertEqual((error.type, error.userId), (MessageType.ERROR, named))
            self.assertEqual(decodeError(error.data)[:2], (ErrorCode.INTERNAL, TEXT))
            self.assertEqual(bob.received(), [Message(TEXT, "alice", b"next")])
            self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertFalse(alice.ended)
        self.assertEqual(self.server.factory.counters["errors: INTERNAL"], 3)

    def test_internalWhileHeld(self) -> None:
        """The same for a frame that waited for the registration."""
        client = self.server.connect()
        client.sendBytes(encodeFrame(HEARTBEAT, b"alice") + encodeFrame(TEXT, b"", b"fault"))
        answer, error = client.received()
        self.assertEqual((answer.type, error.data[:1]), (HEARTBEAT, bytes((ErrorCode.INTERNAL,))))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_afterTheLastWord(self) -> None:
        """A connection that was closed in the middle of a frame is told nothing more, not even of a fault."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.sendBytes(encodeFrame(TEXT, b"", b"close fault") + encodeFrame(TEXT, b"bob", b"next"))
        self.assertEqual(bob.received(), [])
        self.assertEqual(lastWord(alice), ("", ErrorCode.FORBIDDEN, NO_TYPE))
        self.assertEqual(alice.received(), [])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_stoppedByAnObserver(self) -> None:
        """An application may stop the server or close everyone from within an observer, in the middle of a frame."""
        server = MemoryServer()

        class Stopper(ServerObserver):
            def clientConnected(self, userId: str) -> None:
                if userId == "last":
                    server.factory.stopServer()

            def messageReceived(self, fromUser: str, toUser: str, messageType: int, data: bytes) -> None:
                server.factory.stopServer()

        server.factory.addObserver(Stopper())
        last = server.connect()
        last.sendBytes(encodeFrame(HEARTBEAT, b"last") + encodeFrame(HEARTBEAT, b"", b"too late"))
        self.assertEqual([m.type for m in last.received()], [HEARTBEAT, MessageType.ERROR])
        server.advance(5)
        alice = server.login("alice")
        alice.sendBytes(encodeFrame(TEXT, b"alice", b"1") + encodeFrame(TEXT, b"alice", b"2"))
        self.assertEqual([m.data[:1] for m in alice.received()], [b"1", bytes((ErrorCode.SHUTTING_DOWN,))])


class HubMachine(RuleBasedStateMachine):
    """Some clients that come, go, are replaced and write, in any order."""

    USERS = ("alice", "bob", "carol")

    def __init__(self) -> None:
        super().__init__()
        self.server = MemoryServer()
        self.clients: dict[str, FakeClient] = {}
        self.stale: list[FakeClient] = []

    @rule(userId=st.sampled_from(USERS))
    def come(self, userId: str) -> None:
        if userId not in self.clients:
            self.clients[userId] = self.server.login(userId)

    @rule(userId=st.sampled_from(USERS))
    def replace(self, userId: str) -> None:
        old = self.clients.get(userId)
        if old is not None:
            new = self.clients[userId] = self.server.connect()
            new.send(MessageType.ACK, userId, bytes(4) + old.sessionId)
            new.sessionId = new.received()[0].data
            self.stale.append(old)

    @rule(userId=st.sampled_from(USERS), isClean=st.booleans())
    def go(self, userId: str, isClean: bool) -> None:
        client = self.clients.pop(userId, None)
        if client is not None:
            if isClean:
                client.drop()
            else:
                client.sendBytes(b"\0\0")
                self.stale.append(client)

    @precondition(lambda self: self.stale)
    @rule(data=st.data())
    def lose(self, data: st.DataObject) -> None:
        self.stale.pop(data.draw(st.integers(0, len(self.stale) - 1))).drop()

    @precondition(lambda self: self.stale)
    @rule(data=st.data(), to=st.sampled_from(USERS))
    def sendLate(self, data: st.DataObject, to: str) -> None:
        data.draw(st.sampled_from(self.stale)).send(TEXT, to, b"late")

    @rule(sender=st.sampled_from(USERS), to=st.sampled_from(USERS))
    def write(self, sender: str, to: str) -> None:
        if sender in self.clients:
            for client in self.clients.values():
                client.received()
            self.clients[sender].send(TEXT, to, b"hello")
            if to in self.clients:
                assert self.clients[to].received() == [Message(TEXT, sender, b"hello")]
            else:
                assert [m.type for m in self.clients[sender].received()] == [MessageType.ERROR]

    @rule(seconds=st.floats(0, 3))
    def wait(self, seconds: float) -> None:
        for client in self.clients.values():
            client.send(HEARTBEAT)
        self.server.advance(seconds)

    @invariant()
    def onlineAreTheConnected(self) -> None:
        assert sorted(self.server.factory.getOnlineUsers()) == sorted(self.clients)
        for client in self.clients.values():
            assert not client.ended
            assert b"late" not in [m.data for m in client.received()]


class HubTests(SynchronousTestCase):
    def test_machine(self) -> None:
        """Whatever comes and goes in whatever order, the online users are the connected ones, and texts reach them."""
        run_state_machine_as_test(HubMachine, settings=settings(max_examples=60, stateful_step_count=40))
        self.assertEqual(self.flushLoggedErrors(), [])
