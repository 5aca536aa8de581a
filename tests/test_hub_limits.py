"""Each limit that the hub keeps, on both sides of its bound.  Those of accounts and of the store have tests there."""

from __future__ import annotations

from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IListeningPort, IProtocolFactory, IStreamServerEndpoint
from twisted.internet.testing import StringTransport
from twisted.protocols.haproxy import proxyEndpoint
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests import temporaryFolder
from wecompany.limits import Limits
from wecompany.server import LONGEST_PAUSE
from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import ErrorCode, FileOffer, FileOp, MessageType, RejectCode, encodeFrame, encodeOffset

TEXT, FILE, MEDIA, ERROR = MessageType.TEXT, MessageType.FILE, MessageType.MEDIA_DATA, MessageType.ERROR
HEARTBEAT, PRESENCE = MessageType.HEARTBEAT, MessageType.PRESENCE
TRANSFER = bytes(range(16))


@implementer(IStreamServerEndpoint)
class _Captured:
    """An endpoint that keeps what would listen."""

    factory: IProtocolFactory

    def listen(self, factory: IProtocolFactory) -> Deferred[IListeningPort]:
        """See L{IStreamServerEndpoint.listen}."""
        self.factory = factory
        return Deferred()


class LimitsScene(SynchronousTestCase):
    """A server with one limit set, and the others off."""

    def limit(self, *settings: str, broadcast: bool = False) -> MemoryServer:
        """Return a server with these limits."""
        limits = Limits.none()
        for setting in settings:
            limits = limits.changed(setting)
        self.server = MemoryServer(limits=limits, idleTimeout=1e6, broadcast=broadcast)
        return self.server

    def hits(self, limit: str) -> int:
        """Return how often that limit was hit."""
        return self.server.factory.counters[f"limits hit: {limit}"]

    def assertRefused(self, client: FakeClient, limit: str) -> None:
        """The connection was one too many."""
        (word,) = client.received()
        self.assertEqual((word.type, word.data[0], client.ended), (ERROR, ErrorCode.OVERLOADED, True))
        self.assertNamed(word, limit)
        self.assertEqual(self.hits(limit), 1)

    def assertNamed(self, word: Message, limit: str) -> None:
        """The text says which limit it is."""
        self.assertTrue(word.data.endswith(f"(limit {limit})".encode()), word)

    def errors(self, client: FakeClient, limit: str = "") -> list[ErrorCode]:
        """Return the codes of the ERRORs that have come; all of them name that limit, if one is given."""
        words = [m for m in client.received() if m.type == ERROR]
        for word in words if limit else ():
            self.assertNamed(word, limit)
        return [ErrorCode(word.data[0]) for word in words]


class ConnectionTests(LimitsScene):
    """How many connections there may be."""

    def test_connections(self) -> None:
        """As many connections as the limit says are taken, one more is told that it is one too many."""
        server = self.limit("connections=2")
        self.assertEqual([server.connect().received() for _ in range(2)], [[], []])
        self.assertRefused(server.connect("10.0.0.1"), "connections")

    def test_connections_off(self) -> None:
        """Without limits nobody is refused."""
        server = self.limit()
        self.assertEqual({c.ended for c in [server.connect() for _ in range(1_500)]}, {False})

    def test_ofAddress(self) -> None:
        """Each address has its own number of connections, and gets one back when one is gone."""
        server = self.limit("address-connections=2")
        first, _ = server.connect("10.0.0.1"), server.connect("10.0.0.1")
        self.assertRefused(server.connect("10.0.0.1"), "address-connections")
        self.assertEqual(server.connect("10.0.0.2").received(), [])
        first.drop()
        self.assertFalse(server.connect("10.0.0.1").ended)
        self.assertTrue(server.connect("10.0.0.1").ended)

    def test_ofAddress_network(self) -> None:
        """IPv6 addresses of one /64 count as one."""
        server = self.limit("address-connections=1")
        self.assertFalse(server.connect("2001:db8::1").ended)
        self.assertRefused(server.connect("2001:db8::ffff:0:0:2"), "address-connections")
        self.assertFalse(server.connect("2001:db8:0:1::1").ended)

    def test_refusedDoNotCount(self) -> None:
        """A connection that was refused, and lingers, is not among those of its address."""
        server = self.limit("address-connections=1")
        first = server.connect()
        self.assertTrue(server.connect().ended)
        first.drop()
        self.assertFalse(server.connect().ended)

    def test_rate(self) -> None:
        """An address connects as often as its burst allows, and then as its rate does; another one is not affected."""
        server = self.limit("connection-rate=10:3")
        for _ in range(3):
            self.assertFalse(server.connect().ended)
        self.assertRefused(server.connect(), "connection-rate")
        self.assertFalse(server.connect("10.0.0.2").ended)
        server.advance(0.09)
        self.assertTrue(server.connect().ended)
        server.advance(0.011)
        self.assertFalse(server.connect().ended)
        self.assertTrue(server.connect().ended)

    def test_unregistered(self) -> None:
        """An address has so many connections that have not registered; one that registers, or goes, makes room."""
        server = self.limit("unregistered=2")
        first, second = server.connect(), server.connect()
        self.assertRefused(server.connect(), "unregistered")
        self.assertFalse(server.connect("10.0.0.2").ended)
        first.send(HEARTBEAT, "alice")
        third = server.connect()
        self.assertFalse(third.ended)
        self.assertTrue(server.connect().ended)
        second.drop()
        self.assertFalse(server.connect().ended)
        self.assertFalse(first.ended)

    def test_behindProxy(self) -> None:
        """Behind a proxy the address is the client's, which the proxy tells first; until then it is nobody's."""
        server = self.limit("address-connections=1", "connection-rate=1:2")
        listening = _Captured()
        proxyEndpoint(listening).listen(server.factory)

        def connect(client: str) -> StringTransport:
            protocol = listening.factory.buildProtocol(IPv4Address("TCP", "10.0.0.1", 1))
            assert protocol is not None
            transport = StringTransport()
            protocol.makeConnection(transport)
            protocol.dataReceived(f"PROXY TCP4 {client} 10.0.0.9 40000 8888\r\n".encode())
            protocol.dataReceived(encodeFrame(HEARTBEAT, client.encode()))
            return transport

        answers = [connect(client).value()[2] for client in ("192.0.2.1", "192.0.2.2", "192.0.2.1", "192.0.2.3")]
        self.assertEqual(answers, [HEARTBEAT, HEARTBEAT, ERROR, HEARTBEAT])
        self.assertEqual((self.hits("address-connections"), self.hits("connection-rate")), (1, 0))

    def test_counted(self) -> None:
        """When everybody has gone, nothing of them is left."""
        server = self.limit("unregistered=5", "address-connections=5", "connection-rate=1000")
        clients = [server.connect(f"10.0.0.{i}") for i in range(5)]
        clients[0].send(HEARTBEAT, "alice")
        for client in clients:
            client.drop()
        self.assertEqual((len(server.factory._ofAddress), len(server.factory._unregisteredOfAddress)), (0, 0))


class TextRateTests(LimitsScene):
    """How fast a user may write."""

    def flood(self, n: int, *settings: str) -> tuple[FakeClient, FakeClient]:
        """Let alice send that many texts to bob at once."""
        server = self.limit(*settings)
        alice, bob = server.login("alice"), server.login("bob")
        alice.sendBytes(b"".join(encodeFrame(TEXT, b"bob", b"%d" % i) for i in range(n)))
        return alice, bob

    def test_burst(self) -> None:
        """As many texts as the burst go at once, and one more waits a moment; none is dropped or refused."""
        alice, bob = self.flood(20, "text=100:20")
        self.assertEqual(len(bob.received()), 20)
        self.assertEqual(self.hits("text"), 0)
        alice.send(TEXT, "bob", b"one more")
        alice.send(TEXT, "bob", b"and another")
        self.assertLessEqual(len(bob.received()), 1)
        self.assertEqual(self.hits("text"), 1)
        self.server.advance(0.02)
        self.assertEqual(bob.received()[-1].data, b"and another")
        self.assertEqual(alice.received(), [])

    def test_rate(self) -> None:
        """What is over the rate is read as fast as the rate allows, in order, and nothing of it is lost."""
        alice, bob = self.flood(300, "text=100:20")
        came = [len(bob.received())]
        for _ in range(30):
            self.server.advance(0.1)
            came.append(len(bob.received()))
        self.assertEqual(sum(came), 300)
        self.assertTrue(all(8 <= n <= 12 for n in came[2:20]), came)  # as two come in a pause
        alice.send(HEARTBEAT)
        self.assertEqual(alice.received(), [Message(HEARTBEAT, "", b"")])

    def test_pauses(self) -> None:
        """Past the default rate no pause is longer than 20 ms, and one at its end is no longer for all that waits."""
        _, bob = self.flood(1_300, "text=100:1000")
        self.assertGreaterEqual(len(bob.received()), 1_000)
        came = []
        for _ in range(50):
            self.server.advance(LONGEST_PAUSE)
            came.append(len(bob.received()))
        self.assertTrue(all(1 <= n <= 3 for n in came), came)
        self.assertAlmostEqual(sum(came), 100, delta=3)

    def test_slowRate(self) -> None:
        """Also a rate of less than one text for each pause is held."""
        _, bob = self.flood(6, "text=2:1")
        self.assertGreater(0.5, LONGEST_PAUSE)
        self.server.advance(1.9)
        self.assertIn(len(bob.received()), (4, 5))
        self.server.advance(2)
        self.assertIn(len(bob.received()), (1, 2))

    def test_ofUser(self) -> None:
        """The rate is the user's, not the connection's, and nobody else's."""
        alice, bob = self.flood(10, "text=1:5")
        alice.drop()
        self.assertEqual(len(bob.received()), 6)
        again, carol = self.server.login("alice"), self.server.login("carol")
        again.sendBytes(encodeFrame(TEXT, b"bob", b"x") * 3)
        carol.sendBytes(encodeFrame(TEXT, b"bob", b"y") * 5)
        received = [m.userId for m in bob.received()]
        self.assertEqual((received.count("carol"), received.count("alice")), (5, 1))

    def test_aliveWhileSlowed(self) -> None:
        """A client that the server does not read is not idle, and holds its user ID."""
        limits = Limits.none().changed("text=1:1")
        server = MemoryServer(limits=limits, idleTimeout=10)
        alice, _ = server.login("alice"), server.login("bob")
        alice.sendBytes(encodeFrame(TEXT, b"bob", b"x") * 40)
        newcomer = server.connect()
        newcomer.send(HEARTBEAT, "alice")
        self.assertEqual(newcomer.received()[0].data[0], ErrorCode.ID_IN_USE)
        server.advance(25)
        self.assertFalse(alice.ended)
        server.advance(30)
        self.assertTrue(alice.ended)

    def test_leavesWhileSlowed(self) -> None:
        """A client that leaves while it is not read takes nobody with it."""
        alice, _ = self.flood(10, "text=1:1")
        alice.drop()
        self.server.advance(1)
        self.assertEqual(self.server.factory.getOnlineUsers(), ["bob"])

    def test_off(self) -> None:
        """Without the limit a user writes as fast as it likes."""
        _, bob = self.flood(3_000)
        self.assertEqual(len(bob.received()), 3_000)


class MediaRateTests(LimitsScene):
    """How many bytes of media a user may send."""

    def talk(self, *settings: str) -> tuple[FakeClient, FakeClient]:
        """Let alice and bob be in a call."""
        server = self.limit(*settings)
        alice, bob = server.login("alice"), server.login("bob")
        callId = server.factory.calls.initiateCall("alice", "bob")
        server.factory.calls.acceptCall(callId)
        alice.received()
        bob.received()
        return alice, bob

    def test_media(self) -> None:
        """Media up to the burst is passed on, what is past it is dropped and counted; in time there is room again."""
        alice, bob = self.talk("media=1000:2000")
        for _ in range(20):
            alice.send(MEDIA, "bob", bytes(100))
        self.assertEqual((len(bob.received()), self.hits("media")), (20, 0))
        alice.send(MEDIA, "bob", bytes(100))
        self.assertEqual((bob.received(), alice.received(), self.hits("media")), ([], [], 1))
        self.server.advance(0.1)
        alice.send(MEDIA, "bob", bytes(100))
        alice.send(MEDIA, "bob", bytes(100))
        self.assertEqual((len(bob.received()), self.hits("media")), (1, 2))

    def test_large(self) -> None:
        """Also a frame that is larger than a part of the burst counts with its size."""
        alice, bob = self.talk("media=1000:2000")
        alice.send(MEDIA, "bob", bytes(1_500))
        alice.send(MEDIA, "bob", bytes(600))
        alice.send(MEDIA, "bob", bytes(400))
        self.assertEqual([len(m.data) for m in bob.received()], [1_500, 400])

    def test_off(self) -> None:
        """Without the limit everything is passed on."""
        alice, bob = self.talk()
        for _ in range(100):
            alice.send(MEDIA, "bob", bytes(60_000))
        self.assertEqual(len(bob.received()), 100)


class FileRateTests(LimitsScene):
    """How many bytes of files a user may send."""

    def transfer(self, *settings: str) -> tuple[FakeClient, FakeClient]:
        """Let bob accept a file of alice's."""
        server = self.limit(*settings)
        alice, bob = server.login("alice"), server.login("bob")
        offer = FileOffer(10_000_000, bytes(32), "name").encode()
        alice.send(FILE, "bob", bytes((FileOp.OFFER,)) + TRANSFER + offer)
        bob.send(FILE, "alice", bytes((FileOp.ACCEPT,)) + TRANSFER + encodeOffset(0))
        alice.received()
        bob.received()
        return alice, bob

    def take(self, alice: FakeClient, bob: FakeClient, start: int, size: int) -> None:
        """Let a chunk pass, and bob say that he has it."""
        alice.send(FILE, "bob", bytes((FileOp.CHUNK,)) + TRANSFER + encodeOffset(start) + bytes(size))
        bob.send(FILE, "alice", bytes((FileOp.CREDIT,)) + TRANSFER + encodeOffset(start + size))

    def credits(self, client: FakeClient) -> list[int]:
        """Return the offsets of the CREDITs that have come."""
        return [int.from_bytes(m.data[17:], "big") for m in client.received() if m.data[0] == FileOp.CREDIT]

    def test_file(self) -> None:
        """Credit up to the burst is passed on at once, what is past it when the rate allows, with what came later."""
        alice, bob = self.transfer("file=1000:2000")
        self.take(alice, bob, 0, 2_000)
        self.assertEqual(self.credits(alice), [2_000])
        self.take(alice, bob, 2_000, 500)
        self.assertEqual((self.credits(alice), self.hits("file")), ([], 1))
        self.server.advance(0.4)
        self.assertEqual(self.credits(alice), [])
        self.server.advance(0.11)
        self.assertEqual(self.credits(alice), [2_500])
        self.take(alice, bob, 2_500, 100)
        self.take(alice, bob, 2_600, 100)
        self.server.advance(0.3)
        self.assertEqual(self.credits(alice), [2_700])

    def test_window(self) -> None:
        """Credit that is held back does not widen the sender's window."""
        alice, bob = self.transfer("file=1000:1000")
        for i in range(20):
            self.take(alice, bob, i * 50_000, 50_000)
        alice.received()
        alice.send(FILE, "bob", bytes((FileOp.CHUNK,)) + TRANSFER + encodeOffset(1_000_000) + bytes(48_576))
        self.assertEqual(self.errors(alice), [])
        alice.send(FILE, "bob", bytes((FileOp.CHUNK,)) + TRANSFER + encodeOffset(1_048_576) + bytes(60_000))
        self.assertIn(self.credits(alice), ([], [50_000]))

    def test_over(self) -> None:
        """A transfer that ends while credit is held back leaves nothing behind."""
        alice, bob = self.transfer("file=1000:1000")
        self.take(alice, bob, 0, 1_000)
        self.take(alice, bob, 1_000, 1_000)
        bob.drop()
        alice.received()
        self.server.advance(10)
        self.assertEqual(alice.received(), [])

    def test_off(self) -> None:
        """Without the limit credit is passed on at once."""
        alice, bob = self.transfer()
        for i in range(100):
            self.take(alice, bob, i * 60_000, 60_000)
        self.assertEqual(len(self.credits(alice)), 100)


class OtherTests(LimitsScene):
    """Calls, broadcasts, lists, subscriptions, and what waits in the store."""

    def test_calls(self) -> None:
        """A user requests as many calls as the limit says, and one more is rejected as overloaded."""
        alice = self.limit("calls=3").login("alice")
        for _ in range(4):
            alice.send(MessageType.CALL_REQUEST, "bob", b"\0")
        words = alice.received()
        self.assertEqual([m.data[16] for m in words], [RejectCode.OFFLINE] * 3 + [RejectCode.OVERLOADED])
        self.assertNamed(words[-1], "calls")
        self.assertEqual(self.hits("calls"), 1)

    def test_broadcast(self) -> None:
        """A user writes to everyone as often as the limit says."""
        alice = self.limit("broadcast=1:2", broadcast=True).login("alice")
        for _ in range(3):
            alice.send(TEXT, "", b"hello")
        self.assertEqual(self.errors(alice, "broadcast"), [ErrorCode.OVERLOADED])
        self.assertEqual(self.hits("broadcast"), 1)
        self.server.advance(1)
        alice.send(TEXT, "", b"hello")
        self.assertEqual(self.errors(alice), [])

    def test_presence(self) -> None:
        """A user asks for as many lists as the limit says."""
        alice = self.limit("presence=2").login("alice")
        for op in (0, 1, 3):
            alice.send(PRESENCE, "", bytes((op,)))
        self.assertEqual(self.errors(alice, "presence"), [ErrorCode.OVERLOADED])
        self.assertEqual(self.hits("presence"), 1)

    def test_subscriptions(self) -> None:
        """A connection watches as many users as the limit says; those that it watches already do not count again."""
        alice = self.limit("subscriptions=2").login("alice")
        for name in ("bob", "carol", "bob"):
            alice.send(PRESENCE, name, b"\1")
        self.assertEqual(self.errors(alice), [])
        alice.send(PRESENCE, "dave", b"\1")
        self.assertEqual(self.errors(alice, "subscriptions"), [ErrorCode.OVERLOADED])
        self.assertEqual(self.hits("subscriptions"), 1)
        alice.send(PRESENCE, "bob", b"\2")
        alice.send(PRESENCE, "dave", b"\1")
        self.assertEqual(self.errors(alice), [])

    def test_off(self) -> None:
        """Without limits all of that goes on."""
        alice = self.limit(broadcast=True).login("alice")
        for _ in range(50):
            alice.send(MessageType.CALL_REQUEST, "bob", b"\0")
            alice.send(TEXT, "", b"hello")
            alice.send(PRESENCE, "", b"\0")
        for i in range(1_100):
            alice.send(PRESENCE, f"user {i}", b"\1")
        received = alice.received()
        self.assertEqual([m for m in received if m.type == ERROR], [])
        self.assertEqual({m.data[16] for m in received if m.type == MessageType.CALL_REJECT}, {RejectCode.OFFLINE})

    def queue(self, *settings: str) -> list[bytes]:
        """Let alice write four texts of 100 bytes to bob, who is offline; return those that he gets later."""
        limits = Limits.none()
        for setting in settings:
            limits = limits.changed(setting)
        self.server = server = MemoryServer(temporaryFolder(self) / "store.sqlite", limits=limits)
        self.addCleanup(server.close)
        server.login("bob").drop()
        alice = server.login("alice")
        for i in range(4):
            alice.send(TEXT, "bob", bytes((i,)) * 100)
        self.refused = self.errors(alice, settings[0].partition("=")[0])
        return [m.data[:1] for m in server.login("bob").received() if m.type == TEXT]

    def test_queuedTexts(self) -> None:
        """Texts that the store has no room for are refused to their sender, and those before them are delivered."""
        for limit in ("queued-texts=3", "queued-bytes=399", "queued-bytes=300"):
            self.assertEqual(self.queue(limit), [b"\0", b"\1", b"\2"])
            self.assertEqual(self.refused, [ErrorCode.OVERLOADED])
        for limit in ("queued-texts=4", "queued-bytes=400", "queued-texts=0"):
            self.assertEqual(len(self.queue(limit)), 4)
            self.assertEqual(self.refused, [])

    def test_storeSize(self) -> None:
        """A store that has reached its size takes no more texts."""
        self.assertEqual(self.queue("store-size=1"), [])
        self.assertEqual(self.refused, [ErrorCode.OVERLOADED] * 4)
        self.assertEqual(len(self.queue("store-size=10M")), 4)

    def test_users(self) -> None:
        """Of users whom nobody has written to, as many are remembered as the limit says, the latest."""
        for most, known in ((2, 0), (3, 1)):
            limits = Limits.none().changed(f"users={most}")
            server = MemoryServer(temporaryFolder(self) / "store.sqlite", limits=limits)
            self.addCleanup(server.close)
            for name in ("bob", "carol"):
                server.login(name).drop()
                server.advance(1)
            alice = server.login("alice")
            alice.send(TEXT, "bob", b"hello")
            self.assertEqual(self.errors(alice), [] if known else [ErrorCode.OFFLINE])
            self.assertEqual(server.factory.counters["limits hit: users"], 1 - known)
