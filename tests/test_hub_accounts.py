"""What the hub does with those who say who may be whom, and with a store, when things go another way."""

from __future__ import annotations

from twisted.internet.defer import Deferred
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests import temporaryFolder
from tests.slowdisk import SlowDisk
from wecompany.backlog import MAX_TEXTS
from wecompany.database import Database
from wecompany.interfaces import Attempt, IAuthenticator, StoreProblem
from wecompany.limits import Limits
from wecompany.testing import MemoryServer, Message
from wecompany.wire import ErrorCode, MessageType, encodeFrame

TEXT, ACK, ERROR, HEARTBEAT, LOGIN = (
    MessageType.TEXT,
    MessageType.ACK,
    MessageType.ERROR,
    MessageType.HEARTBEAT,
    MessageType.LOGIN,
)


@implementer(IAuthenticator)
class Authenticator:
    """Answers when the test says so."""

    def __init__(self) -> None:
        self.asked: list[Deferred[bytes]] = []

    def authenticate(self, attempt: Attempt) -> Deferred[bytes]:
        self.asked.append(Deferred())
        return self.asked[-1]

    def accountCommand(self, userId: bytes, address: str, data: bytes) -> Deferred[bytes]:
        return self.authenticate(Attempt(userId, data, LOGIN, address))


class AuthenticatedTests(SynchronousTestCase):
    """A server with accounts."""

    def setUp(self) -> None:
        self.path = temporaryFolder(self) / "store.sqlite"
        self.authenticator = Authenticator()
        self.server = MemoryServer(self.path, authenticator=self.authenticator)
        self.addCleanup(self.server.close)

    def test_leftBefore(self) -> None:
        """Who has left before it was let in is nobody."""
        client = self.server.connect()
        client.send(HEARTBEAT, "alice")
        client.drop()
        self.authenticator.asked[0].callback(b"")
        self.assertEqual(self.server.factory.getOnlineUsers(), [])

    def test_fault(self) -> None:
        """A fault of what asks for passwords ends that registration, is logged, and lets nobody in."""
        client = self.server.connect()
        client.send(HEARTBEAT, "alice")
        self.authenticator.asked[0].errback(ZeroDivisionError())
        (word,) = client.received()
        self.assertEqual((word.type, word.data[0], client.ended), (ERROR, ErrorCode.INTERNAL, True))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)
        self.assertEqual(self.server.factory.getOnlineUsers(), [])

    def test_commandFault(self) -> None:
        """A fault in an account command is logged and answered, and the next one is taken."""
        client = self.server.connect()
        client.send(HEARTBEAT, "alice")
        self.authenticator.asked[0].callback(b"")
        for answer in (ZeroDivisionError(), StoreProblem("full")):
            client.received()
            client.send(LOGIN, "", b"\0")
            self.authenticator.asked[-1].errback(answer)
            (message,) = client.received()
            self.assertEqual((message.type, message.data[:1]), (MessageType.AUTH_RESPONSE, b"\0"))
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_disabled(self) -> None:
        """Who is disabled by the operator, in another process, is put out; others are not."""
        operator = Database(self.path, self.server.clock.seconds)
        self.addCleanup(operator.close)
        clients = []
        for name in ("alice", "bob"):
            operator.transact(operator.addAccount, name.encode(), "", "test")
            clients.append(self.server.connect())
            clients[-1].send(HEARTBEAT, name)
            self.authenticator.asked[-1].callback(b"")
        self.server.advance(1)
        alice, bob = clients
        alice.received()
        operator.transact(operator.addAccount, b"nobody", "", "test")
        for userId in (b"alice", b"nobody"):
            operator.transact(operator.disable, userId, "test")
            self.server.advance(1)
        (word,) = alice.received()
        self.assertEqual((word.data[0], alice.ended, bob.ended), (ErrorCode.FORBIDDEN, True, False))


class OpenTests(SynchronousTestCase):
    """A server without accounts."""

    def test_disabled(self) -> None:
        """Where anyone may be anyone, a disabled account puts nobody out."""
        path = temporaryFolder(self) / "store.sqlite"
        server = MemoryServer(path)
        self.addCleanup(server.close)
        alice = server.login("alice")
        operator = Database(path, server.clock.seconds)
        self.addCleanup(operator.close)
        operator.transact(operator.addAccount, b"alice", "", "test")
        operator.transact(operator.disable, b"alice", "test")
        server.advance(1)
        self.assertFalse(alice.ended)

    def test_leftBeforeFailure(self) -> None:
        """Who has left before the store said that it cannot is nobody."""
        server = SlowDisk(temporaryFolder(self) / "store.sqlite", Clock())
        self.addCleanup(server.close)
        server.isHeld = True
        client = server.connect()
        client.send(ACK, "bob", bytes(20))
        client.drop()
        server.isFull = True
        server.release()
        self.assertEqual(server.factory.getOnlineUsers(), [])

    def test_behind(self) -> None:
        """Texts for who is more than 1 MiB behind wait in the store; all come in order, later ones directly."""
        server = MemoryServer(temporaryFolder(self) / "store.sqlite", limits=Limits.none())
        self.addCleanup(server.close)
        alice, bob = server.login("alice"), server.login("bob")
        bob.pauseReading()
        texts = [b"%03d" % i + bytes(50_000) for i in range(120)]
        for text in texts:
            alice.send(TEXT, "bob", text)
        self.assertLess(server.factory._turn.waiting, MAX_TEXTS + 100_000)
        bob.resumeReading()
        server.advance(1)
        self.assertEqual([m.data for m in bob.received() if m.type == TEXT], texts)
        server.advance(2)
        alice.send(TEXT, "bob", b"hello")
        self.assertEqual(bob.received(), [Message(TEXT, "alice", b"hello")])

    def test_queuedMemory(self) -> None:
        """If all together have too much waiting, the one with the most is closed, be it noticed once or often."""
        server = MemoryServer(limits=Limits.none().changed("queued-memory=300k"))
        alice, bob, carol = server.login("alice"), server.login("bob"), server.login("carol")
        bob.pauseReading()
        carol.pauseReading()
        for user in ("bob", "bob", "carol", "carol"):
            alice.send(TEXT, user, bytes(60_000))
        frames = [encodeFrame(TEXT, user, bytes(60_000)) for user in (*[b"bob"] * 6, b"carol")]
        alice.sendBytes(b"".join(frames))
        server.advance(5)
        self.assertEqual(server.factory.getOnlineUsers(), ["alice", "carol"])
        self.assertGreater(server.factory.counters["limits hit: queued-memory"], 0)

    def test_refusedLeaves(self) -> None:
        """A refused connection that goes takes no place from its address with it."""
        server = MemoryServer(limits=Limits.none().changed("address-connections=1"))
        first, refused = server.connect(), server.connect()
        refused.drop()
        self.assertTrue(server.connect().ended)
        first.drop()
        self.assertFalse(server.connect().ended)
