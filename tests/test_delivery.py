"""Texts that last: kept for who is away, committed before they are acknowledged, and given to everyone once."""

from __future__ import annotations

import sqlite3
from functools import partial
from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder
from tests.slowdisk import KernelTransport, SlowDisk
from wecompany import delivery, testing
from wecompany.database import KNOWN_FOR, Database
from wecompany.delivery import DELAYED_AFTER, MAX_STORING, READ_AT_ONCE, RETRY_AFTER
from wecompany.limits import Limits
from wecompany.server import ServerObserver
from wecompany.store import Store
from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import (
    NO_TYPE,
    AccountOp,
    EndCode,
    ErrorCode,
    FileOp,
    MessageType,
    RejectCode,
    WireError,
    decodeError,
    encodeFrame,
)

TEXT, ACK, DELAY, ERROR, HEARTBEAT = (
    MessageType.TEXT,
    MessageType.ACK,
    MessageType.DELAY,
    MessageType.ERROR,
    MessageType.HEARTBEAT,
)
LOGIN, AUTH_RESPONSE, PRESENCE = MessageType.LOGIN, MessageType.AUTH_RESPONSE, MessageType.PRESENCE

NOW = 1_700_000_000
"""Seconds since the epoch when each test begins."""


def text(sender: str, data: bytes) -> Message:
    return Message(TEXT, sender, data)


def delay(sender: str, after: float = 0) -> Message:
    """Return the DELAY of what was sent so many seconds after the beginning."""
    return Message(DELAY, sender, int((NOW + after) * 1000).to_bytes(8, "big"))


def ack(n: int) -> Message:
    return Message(ACK, "", n.to_bytes(4, "big"))


def acknowledge(client: FakeClient, n: int) -> None:
    client.send(ACK, "", n.to_bytes(4, "big"))


def texts(client: FakeClient) -> list[bytes]:
    """Return the data of all TEXTs that have come."""
    return [message.data for message in client.received() if message.type == TEXT]


def error(message: Message) -> tuple[str, int, int]:
    """Return (userId, code, type) of an ERROR."""
    assert message.type == ERROR, message
    code, about, why = decodeError(message.data)
    assert why
    return message.userId, code, about


class DeliveryTestCase(SynchronousTestCase):
    options: dict[str, Any] = {}

    def setUp(self) -> None:
        self.path = temporaryFolder(self) / "store.sqlite"
        clock = Clock()
        clock.advance(NOW)
        self.server = self.start(clock)

    def start(self, clock: Clock, **options: Any) -> SlowDisk:
        server = SlowDisk(self.path, clock, **(self.options | options))
        self.addCleanup(server.close)
        return server

    def restart(self, **options: Any) -> None:
        self.server.close()
        self.server = self.start(self.server.clock, **options)

    def kill(self) -> None:
        self.server = self.server.killed()
        self.path = self.server.path
        self.addCleanup(self.server.close)

    def known(self, userId: str) -> None:
        """That user was here and is away."""
        self.server.login(userId).drop()

    def begun(self, userId: str, received: int = 0, sessionId: bytes = bytes(16)) -> FakeClient:
        """Return a client that has asked for reliable delivery, and may have no answer yet."""
        client = self.server.connect()
        client.send(ACK, userId, received.to_bytes(4, "big") + sessionId)
        return client

    def assertRefused(self, client: FakeClient, code: ErrorCode, about: int = NO_TYPE) -> None:
        """The last that came is an ERROR, and the connection is closed."""
        self.assertEqual(error(client.received()[-1])[1:], (code, about))
        self.assertTrue(client.ended)

    def assertTold(self, client: FakeClient, code: ErrorCode, userId: str, about: int = TEXT) -> None:
        """An ERROR is all that came, and the connection stays."""
        (message,) = client.received()
        self.assertEqual(error(message), (userId, code, about))
        self.assertFalse(client.ended)

    def assertHeard(self, client: FakeClient) -> None:
        """What the client says is read and answered."""
        client.send(HEARTBEAT, "", b"?")
        self.assertEqual(client.received()[-1], Message(HEARTBEAT, "", b"?"))


class OfflineTests(DeliveryTestCase):
    """Plain clients, and a store."""

    def test_kept(self) -> None:
        """A text for somebody away is kept, and comes with the next registration, each directly behind its DELAY."""
        self.known("bob")
        alice, carol = self.server.login("alice"), self.server.login("carol")
        alice.send(TEXT, "bob", b"one")
        self.server.advance(2)
        carol.send(TEXT, "bob", b"two")
        self.server.advance(0.25)
        alice.send(TEXT, "bob", b"")
        self.server.advance(60)
        self.assertEqual((alice.received(), carol.received()), ([], []))
        bob = self.server.login("bob")
        self.assertEqual(
            bob.received(),
            [
                *(delay("alice"), text("alice", b"one"), delay("carol", 2), text("carol", b"two")),
                *(delay("alice", 2.25), text("alice", b"")),
            ],
        )
        bob.drop()
        self.assertEqual(self.server.login("bob").received(), [])

    def test_restart(self) -> None:
        """What waits survives the server, in whichever way that ends."""
        for end in (self.restart, self.kill):
            self.known("bob")
            self.server.login("alice").send(TEXT, "bob", b"hello")
            end()
            bob = self.server.login("bob")
            self.assertEqual(texts(bob), [b"hello"])
            bob.drop()
            self.restart()

    def test_unknown(self) -> None:
        """A text for somebody whom the store does not know, or with a bad user ID, is answered with an ERROR."""
        alice = self.server.login("alice")
        alice.send(TEXT, "nobody", b"hello")
        self.assertTold(alice, ErrorCode.OFFLINE, "nobody")
        alice.send(TEXT, "no/body", b"hello")
        self.assertTold(alice, ErrorCode.BAD_REQUEST, "")

    def test_noLongerKnown(self) -> None:
        """Without accounts one is known for 30 days after one's last registration."""
        self.known("bob")
        self.server.clock.advance(KNOWN_FOR)
        alice = self.server.login("alice")
        alice.send(TEXT, "bob", b"hello")
        self.assertEqual(alice.received(), [])
        self.server.clock.advance(1)
        alice.send(TEXT, "bob", b"hello")
        self.assertTold(alice, ErrorCode.OFFLINE, "bob")

    def test_noStore(self) -> None:
        """Without a store nothing is kept, and nothing can be acknowledged."""
        self.server.close()
        server = MemoryServer()
        server.login("bob").drop()
        alice = server.resume("alice")
        alice.send(TEXT, "bob", b"hello")
        self.assertTold(alice, ErrorCode.OFFLINE, "bob")
        acknowledge(alice, 0)
        self.assertTold(alice, ErrorCode.BAD_REQUEST, "", ACK)
        alice.send(TEXT, "alice", b"hello")
        self.assertEqual(alice.received(), [text("alice", b"hello")])

    def test_toOneself(self) -> None:
        """A text to one's own ID is delivered to oneself."""
        alice = self.server.login("alice")
        alice.send(TEXT, "alice", b"note")
        self.assertEqual(alice.received(), [text("alice", b"note")])

    def test_noOvertaking(self) -> None:
        """No live text overtakes a stored one; live ones have no DELAY."""
        self.known("bob")
        alice = self.server.login("alice")
        for i in range(3):
            alice.send(TEXT, "bob", b"%d" % i)
        self.server.isHeld = True
        bob = self.server.login("bob")
        alice.send(TEXT, "bob", b"3")
        for i in range(4, 9):
            self.server.tell()
            alice.send(TEXT, "bob", b"%d" % i)
        self.server.release()
        alice.send(TEXT, "bob", b"9")
        messages = bob.received()
        self.assertEqual([m.data for m in messages if m.type == TEXT], [b"%d" % i for i in range(10)])
        self.assertEqual([m.type for m in messages], [DELAY, TEXT] * 3 + [TEXT] * 7)

    def test_delayedWhileOnline(self) -> None:
        """A text that took over a second to be delivered says so, even if its receiver was online all the time."""
        for seconds, expected in ((DELAYED_AFTER, [TEXT] * 4), (DELAYED_AFTER + 0.001, [TEXT] * 3 + [DELAY, TEXT])):
            bob, alice = self.server.resume("bob"), self.server.login("alice")
            bob.received()
            alice.send(TEXT, "bob", b"first")
            bob.pauseReading()
            alice.send(TEXT, "bob", bytes(60_000))
            alice.send(TEXT, "bob", bytes(60_000))  # past this its transport has enough
            alice.send(TEXT, "bob", b"waits for it")
            alice.send(TEXT, "bob", b"late")  # while one waits, no more is taken from the store
            self.server.clock.advance(seconds)
            bob.resumeReading()
            self.assertEqual([m.type for m in bob.received()][1:], expected)
            bob.drop()
            alice.drop()

    def test_largeBacklog(self) -> None:
        """However much waits, it comes in order and wholly, also to a client that pauses now and then."""
        self.known("bob")
        alice = self.server.login("alice")
        sent = [b"%d" % i + bytes(READ_AT_ONCE // 3) for i in range(12)]
        for data in sent:
            alice.send(TEXT, "bob", data)
        bob = self.server.login("bob")
        bob.pauseReading()
        got = texts(bob)
        alice.send(TEXT, "bob", b"live")
        bob.resumeReading()
        self.assertEqual(got + texts(bob), [*sent, b"live"])

    def test_manyLive(self) -> None:
        """More live texts in one transaction than are sent at a time come in order, and wholly."""
        bob, alice = self.server.resume("bob"), self.server.login("alice")
        sent = [b"%d" % i + bytes(READ_AT_ONCE // 3) for i in range(12)]
        alice.sendBytes(b"".join(encodeFrame(TEXT, b"bob", data) for data in sent))
        self.assertEqual(texts(bob), sent)

    def test_directAgain(self) -> None:
        """Who has got everything gets its texts past the store again: a store that hangs does not matter then."""
        self.known("bob")
        alice = self.server.login("alice")
        alice.send(TEXT, "bob", b"one")
        bob = self.server.login("bob")
        self.server.isHeld = True
        alice.send(TEXT, "bob", b"two")
        self.assertEqual(texts(bob), [b"one", b"two"])

    def test_known(self) -> None:
        """PRESENCE [3] lists all known users with their states, oneself among them."""
        self.known("bob")
        self.server.login("carol")
        alice = self.server.login("alice")
        alice.send(PRESENCE, "", b"\3")
        self.assertEqual(
            set(alice.received()),
            {
                Message(PRESENCE, "bob", b"\0"),
                Message(PRESENCE, "carol", b"\1"),
                Message(PRESENCE, "alice", b"\1"),
                Message(PRESENCE, "", b"\0\0\0\3"),
            },
        )

    def test_unreadable(self) -> None:
        """What the store cannot read now is read later, and nothing overtakes it."""
        self.known("bob")
        alice = self.server.login("alice")
        alice.send(TEXT, "bob", b"one")
        self.server.isFull = True
        bob = self.server.login("bob")
        self.assertFalse(bob.ended)
        alice.send(TEXT, "bob", b"refused")
        self.assertTold(alice, ErrorCode.OVERLOADED, "bob")
        self.server.advance(RETRY_AFTER - 0.01)
        self.server.isFull = False
        alice.send(TEXT, "bob", b"two")
        self.assertEqual(bob.received(), [])
        self.server.advance(0.01)
        self.assertEqual(texts(bob), [b"one", b"two"])
        self.assertEqual(self.server.factory.counters["store: could not be read"], 1)

    def test_unreadableThenGone(self) -> None:
        """Who leaves while the store cannot be read loses nothing."""
        self.known("bob")
        alice = self.server.login("alice")
        alice.send(TEXT, "bob", b"one")
        self.server.isFull = True
        self.server.login("bob").drop()
        self.server.isFull = False
        self.server.advance(RETRY_AFTER)
        self.assertEqual(texts(self.server.login("bob")), [b"one"])

    def test_unloadable(self) -> None:
        """What the store knows of and cannot read now is read later, if its receiver is still there then."""
        self.known("bob")
        alice = self.server.login("alice")
        alice.send(TEXT, "bob", b"one")
        for isGone in (True, False):
            self.server.isHeld = True
            bob = self.server.login("bob")
            self.server.isFull = True  # for what is asked after what is just being done
            self.server.tell()
            self.server.tell()
            self.server.pump()
            self.assertEqual(bob.received(), [])
            self.server.isFull = False
            self.server.release()
            if isGone:
                bob.drop()
            self.server.advance(RETRY_AFTER)
            self.assertEqual(texts(bob), [] if isGone else [b"one"])

    def test_leavesWhileLoading(self) -> None:
        """Who leaves while its texts are being read gets them the next time."""
        self.known("bob")
        alice = self.server.login("alice")
        alice.send(TEXT, "bob", b"one")
        self.server.isHeld = True
        bob = self.server.login("bob")
        self.server.tell()
        bob.drop()
        self.server.release()
        self.assertEqual(texts(self.server.login("bob")), [b"one"])

    def test_leavesBeforeItIsKnown(self) -> None:
        """Who leaves before the server knows what waits gets it the next time."""
        self.known("bob")
        alice = self.server.login("alice")
        alice.send(TEXT, "bob", b"one")
        self.server.isHeld = True
        self.server.login("bob").drop()
        self.server.release()
        self.assertEqual(texts(self.server.login("bob")), [b"one"])

    def test_gap(self) -> None:
        """If texts are gone from the database the client is closed, for the server does not know what it missed."""
        for condition in ("", "WHERE data = x'31'"):
            self.known("bob")
            alice = self.server.login("alice")
            alice.send(TEXT, "bob", b"1")
            alice.send(TEXT, "bob", b"2")
            self.server.isHeld = True
            bob = self.server.login("bob")
            self.server.tell()
            with sqlite3.connect(self.path) as database:
                database.execute(f"DELETE FROM text {condition}")
            database.close()
            self.server.release()
            self.assertRefused(bob, ErrorCode.INTERNAL)
            alice.drop()


class PlainTests(DeliveryTestCase):
    """Each text once, whatever the kernel takes."""

    def setUp(self) -> None:
        self.patch(testing, "MemoryTransport", KernelTransport)
        super().setUp()

    def test_direct(self) -> None:
        """What the kernel has not taken when a client leaves goes back to the store, in order, before later texts."""
        bob, alice = self.server.login("bob"), self.server.login("alice")
        alice.send(TEXT, "bob", b"taken")
        bob.pauseReading()
        sent = [b"%d" % i + bytes(20_000) for i in range(8)]
        for data in sent:
            alice.send(TEXT, "bob", data)
        self.assertEqual(texts(bob), [b"taken"])
        bob.drop()
        alice.send(TEXT, "bob", b"later")
        self.assertEqual(alice.received(), [])
        self.assertEqual(texts(self.server.login("bob")), [*sent, b"later"])

    def test_halfTaken(self) -> None:
        """A text of which the kernel has only a part goes back; one that it has wholly does not."""
        bob, alice = self.server.login("bob"), self.server.login("alice")
        bob.pauseReading()
        for data in (b"one", b"two", b"three"):
            alice.send(TEXT, "bob", data)
        end = bob.transport.other
        assert isinstance(end, KernelTransport)
        end.taken = len(encodeFrame(TEXT, b"alice", b"one")) + 5
        bob.drop()
        self.assertEqual(texts(self.server.login("bob")), [b"two", b"three"])

    def test_stored(self) -> None:
        """A stored text is forgotten only when the kernel has taken it."""
        self.known("bob")
        alice = self.server.login("alice")
        sent = [b"%d" % i + bytes(20_000) for i in range(8)]
        for data in sent:
            alice.send(TEXT, "bob", data)
        bob = self.server.connect()
        bob.pauseReading()
        bob.sendBytes(encodeFrame(HEARTBEAT, b"bob"))
        alice.send(TEXT, "bob", b"later")
        self.server.advance(2)
        bob.drop()
        self.assertEqual(texts(self.server.login("bob")), [*sent, b"later"])

    def test_storedAndKilled(self) -> None:
        """A text that the kernel has not taken is still in the store when the server is killed."""
        self.known("bob")
        alice = self.server.login("alice")
        sent = [b"%d" % i + bytes(20_000) for i in range(8)]
        for data in sent:
            alice.send(TEXT, "bob", data)
        bob = self.server.connect()
        bob.pauseReading()
        bob.sendBytes(encodeFrame(HEARTBEAT, b"bob"))
        self.server.advance(2)
        self.kill()
        self.assertEqual(texts(self.server.login("bob")), sent)

    def test_storedAndTaken(self) -> None:
        """Of stored texts that one leaves with, those are forgotten that the kernel has."""
        bob, alice = self.server.login("bob"), self.server.resume("alice")
        bob.pauseReading()
        for data in (b"one", b"two", b"three"):
            alice.send(TEXT, "bob", data)
        end = bob.transport.other
        assert isinstance(end, KernelTransport)
        end.taken = len(encodeFrame(TEXT, b"alice", b"one")) + 5
        bob.drop()
        self.assertEqual(texts(self.server.login("bob")), [b"two", b"three"])

    def test_takenBack(self) -> None:
        """What the kernel has nothing of when its client is told to go is taken back, for the next registration."""
        for isReliable in (False, True):
            bob, alice = self.server.login("bob"), self.server.resume("alice")
            sender = alice if isReliable else self.server.login("carol")
            self.server.advance(85)
            sender.send(HEARTBEAT)
            alice.send(HEARTBEAT)
            bob.pauseReading()
            sender.send(TEXT, "bob", b"one")
            self.server.advance(7)
            self.assertEqual(self.server.factory.counters["connections closed: IDLE"], 1 + isReliable)
            bob.resumeReading()
            last = bob.received()
            self.assertEqual([m.type for m in last], [MessageType.ERROR])
            self.server.advance(5)
            bob = self.server.login("bob")
            self.assertEqual(texts(bob), [b"one"])
            for client in (alice, sender, bob):
                client.drop()
            self.server.advance(5)

    def test_unknown(self) -> None:
        """What waits for somebody who leaves and is not known is counted as lost."""
        self.patch(testing, "Store", partial(Store, accounts=True))
        self.restart()
        bob, alice = self.server.login("bob"), self.server.login("alice")
        bob.pauseReading()
        alice.send(TEXT, "bob", b"one")
        bob.drop()
        counted = "texts lost: their receiver left and is not known to the store"
        self.assertEqual(self.server.factory.counters[counted], 1)

    def replaced(self, sender: FakeClient, *data: bytes) -> FakeClient:
        """Bob does not read what he is sent, and somebody else takes his place; return that one."""
        bob = self.server.login("bob")
        bob.pauseReading()
        for each in data:
            sender.send(TEXT, "bob", each)
        newcomer = self.server.connect()
        newcomer.send(HEARTBEAT, "bob")
        sender.send(HEARTBEAT)
        self.server.advance(5)
        return newcomer

    def test_replaced(self) -> None:
        """What the kernel of a replaced client never takes is delivered to the one who replaced it."""
        alice = self.server.login("alice")
        bob = self.replaced(alice, b"one")
        self.server.advance(5)
        self.assertEqual(texts(bob), [b"one"])
        alice.send(TEXT, "bob", b"two")
        self.assertEqual(texts(bob), [b"two"])
        bob.drop()
        self.assertEqual(texts(self.server.login("bob")), [])

    def test_replacedStored(self) -> None:
        """What was stored and the kernel of a replaced client has not taken goes to the one who replaced it, once."""
        alice = self.server.resume("alice")
        bob = self.replaced(alice, b"one", b"two")
        self.assertEqual(texts(bob), [b"one", b"two"])
        self.server.advance(5)
        alice.send(TEXT, "bob", b"three")
        self.assertEqual(texts(bob), [b"three"])
        bob.drop()
        self.assertEqual(texts(self.server.login("bob")), [])

    def test_directThenStored(self) -> None:
        """A stored text waits until the kernel has all that went past the store before it; none is lost or twice."""
        for isLeaving in (False, True):
            bob, alice, carol = self.server.login("bob"), self.server.login("alice"), self.server.resume("carol")
            bob.pauseReading()
            alice.send(TEXT, "bob", b"direct")
            carol.send(TEXT, "bob", b"stored")
            alice.send(TEXT, "bob", b"after")
            self.server.advance(2)
            self.assertEqual(texts(bob), [])
            if isLeaving:
                bob.drop()
                bob = self.server.login("bob")
            else:
                bob.resumeReading()
                self.server.advance(1)  # its transport does not tell
            self.assertEqual(texts(bob), [b"direct", b"stored", b"after"])
            bob.drop()
            self.assertEqual(texts(self.server.login("bob")), [])
            for client in (alice, carol):
                client.drop()
            self.server.advance(100)

    def test_tooSlow(self) -> None:
        """Of a client that is closed as too slow everything that it did not take goes back to the store."""
        self.restart(limits=Limits().changed("queued-memory=80000"))
        alice, bob, carol = (self.server.login(userId) for userId in ("alice", "bob", "carol"))
        bob.pauseReading()
        carol.pauseReading()
        for i in range(5):
            alice.send(TEXT, "bob", b"%d" % i + bytes(30_000))
        for i in range(4):
            alice.send(TEXT, "carol", b"%d" % i + bytes(30_000))
        self.server.pump()
        self.assertEqual(self.server.factory.getOnlineUsers(), ["alice", "carol"])
        self.assertEqual(self.server.factory.counters["limits hit: queued-memory"], 1)
        self.server.advance(5)
        self.assertEqual(len(texts(self.server.login("bob"))), 5)
        carol.resumeReading()
        self.assertEqual(len(texts(carol)), 4)


class ReliableTests(DeliveryTestCase):
    """What is acknowledged is in the store, and what is not acknowledged is kept."""

    def setUp(self) -> None:
        super().setUp()
        self.alice, self.bob = self.server.resume("alice"), self.server.resume("bob")
        self.assertEqual((self.alice.received(), self.bob.received()), ([ack(0)], [ack(0)]))

    def test_begin(self) -> None:
        """A session is committed before its HEARTBEAT is sent; ACK 0 follows that of a new one."""
        self.server.isHeld = True
        carol = self.begun("carol")
        self.assertEqual(carol.received(), [])
        self.server.write()
        self.assertEqual(carol.received(), [])
        self.server.tell()
        greeting, zero = carol.received()
        self.assertEqual((greeting.type, greeting.userId, len(greeting.data)), (HEARTBEAT, "carol", 16))
        self.assertEqual(zero, ack(0))

    def test_text(self) -> None:
        """A text is committed before it is acknowledged or delivered; it comes without DELAY."""
        self.server.isHeld = True
        self.alice.send(TEXT, "bob", b"one")
        self.server.write()
        self.assertEqual((self.alice.received(), self.bob.received()), ([], []))
        self.server.tell()
        self.assertEqual((self.alice.received(), self.bob.received()), ([ack(1)], [text("alice", b"one")]))

    def test_anySender(self) -> None:
        """A text to a reliable session is committed before it is delivered, whoever sent it; so is one from it."""
        carol = self.server.login("carol")
        self.server.isHeld = True
        carol.send(TEXT, "bob", b"to")
        self.alice.send(TEXT, "carol", b"from")
        self.server.factory.sendMessage("bob", "server")
        self.server.factory.broadcastMessage("all")
        for client in (carol, self.bob):
            self.assertEqual(texts(client), [])
        self.server.tell()
        self.server.tell()
        self.assertEqual(texts(self.bob), [b"to", b"server", b"all"])
        self.assertEqual(texts(carol), [b"from", b"all"])

    def test_many(self) -> None:
        """Many texts of one transaction are acknowledged at once."""
        self.alice.sendBytes(b"".join(encodeFrame(TEXT, b"bob", b"%d" % i) for i in range(100)))
        self.assertEqual(self.alice.received(), [ack(100)])
        self.assertEqual(texts(self.bob), [b"%d" % i for i in range(100)])

    def test_kill(self) -> None:
        """What is acknowledged survives a kill, and what was not acknowledged is known by number."""
        self.alice.send(TEXT, "bob", b"one")
        self.server.isHeld = True
        self.alice.send(TEXT, "bob", b"two")
        self.server.write()
        self.alice.send(TEXT, "bob", b"three")
        self.assertEqual((self.alice.received(), texts(self.bob)), ([ack(1)], [b"one"]))
        a, b = self.alice.sessionId, self.bob.sessionId
        self.kill()
        alice = self.server.resume("alice", 0, a)
        self.assertEqual(alice.received(), [ack(2)])
        alice.send(TEXT, "bob", b"three")
        bob = self.server.resume("bob", 1, b)
        self.assertEqual(
            bob.received(), [ack(0), delay("alice"), text("alice", b"two"), delay("alice"), text("alice", b"three")]
        )
        self.assertEqual(alice.received(), [ack(1)])

    def test_restart(self) -> None:
        """A session goes on after the server was stopped in good order."""
        self.alice.send(TEXT, "bob", b"one")
        self.restart()
        self.assertEqual(self.server.resume("alice", 0, self.alice.sessionId).received(), [ack(1)])
        bob = self.server.resume("bob", 1, self.bob.sessionId)
        self.assertEqual(bob.received(), [ack(0)])
        bob.drop()
        self.assertEqual(self.server.login("bob").received(), [])

    def test_keptUntilAcknowledged(self) -> None:
        """Each text is kept until its receiver has acknowledged it."""
        for data in (b"one", b"two", b"three"):
            self.alice.send(TEXT, "bob", data)
        self.assertEqual(len(texts(self.bob)), 3)
        acknowledge(self.bob, 1)
        self.bob.drop()
        bob = self.server.resume("bob", 0, self.bob.sessionId)
        self.assertEqual(texts(bob), [b"two", b"three"])

    def test_countedFromZero(self) -> None:
        """In a resumed session both sides count from 0 again."""
        for data in (b"one", b"two", b"three"):
            self.alice.send(TEXT, "bob", data)
        alice = self.server.resume("alice", 0, self.alice.sessionId)
        self.assertEqual(alice.received(), [ack(3)])
        alice.send(TEXT, "bob", b"four")
        self.assertEqual(alice.received(), [ack(1)])
        bob = self.server.resume("bob", 1, self.bob.sessionId)
        self.assertEqual(texts(bob), [b"two", b"three", b"four"])
        acknowledge(bob, 2)
        self.assertEqual(texts(self.server.resume("bob", 2, bob.sessionId)), [b"four"])

    def test_acknowledgedAndResumed(self) -> None:
        """The number in a resumption counts from the beginning of its session, whatever was acknowledged before."""
        for data in (b"one", b"two", b"three"):
            self.alice.send(TEXT, "bob", data)
        acknowledge(self.bob, 1)
        self.assertEqual(texts(self.server.resume("bob", 2, self.bob.sessionId)), [b"three"])

    def test_lowerNumber(self) -> None:
        """An ACK with a number no higher than before is ignored."""
        self.alice.send(TEXT, "bob", b"one")
        self.alice.send(TEXT, "bob", b"two")
        self.bob.received()
        for n in (2, 2, 1, 0):
            acknowledge(self.bob, n)
        self.assertEqual(self.bob.received(), [])
        self.bob.drop()
        self.assertEqual(texts(self.server.resume("bob", 0, self.bob.sessionId)), [])

    def test_tooHighNumber(self) -> None:
        """An ACK past what was sent, or that is no count, is a badRequest and forgets nothing."""
        self.alice.send(TEXT, "bob", b"one")
        self.bob.received()
        acknowledge(self.bob, 2)
        self.assertTold(self.bob, ErrorCode.BAD_REQUEST, "", ACK)
        for data in (b"", b"\0\0\1", b"\0\0\0\1\0"):
            self.bob.send(ACK, "", data)
            self.assertTold(self.bob, ErrorCode.BAD_REQUEST, "", ACK)
        self.bob.send(ACK, "alice", b"\0\0\0\1")
        self.assertTold(self.bob, ErrorCode.BAD_REQUEST, "alice", ACK)
        self.bob.drop()
        self.assertEqual(texts(self.server.resume("bob", 0, self.bob.sessionId)), [b"one"])

    def test_plainAck(self) -> None:
        """An ACK from a client that did not register with one is a badRequest."""
        carol = self.server.login("carol")
        acknowledge(carol, 0)
        self.assertTold(carol, ErrorCode.BAD_REQUEST, "", ACK)

    def test_error(self) -> None:
        """An ERROR for a text comes after the ACK of all before it, and counts as an answer."""
        frames = [(b"bob", b"1"), (b"nobody", b"2"), (b"bob", b"3"), (b"no/body", b"4"), (b"", b"5"), (b"bob", b"6")]
        self.alice.sendBytes(b"".join(encodeFrame(TEXT, to, data) for to, data in frames))
        one, offline, three, bad, four, forbidden, six = self.alice.received()
        self.assertEqual([one, three, four, six], [ack(1), ack(3), ack(4), ack(6)])
        self.assertEqual(error(offline), ("nobody", ErrorCode.OFFLINE, TEXT))
        self.assertEqual(error(bad), ("", ErrorCode.BAD_REQUEST, TEXT))
        self.assertEqual(error(forbidden), ("", ErrorCode.FORBIDDEN, TEXT))
        self.assertEqual(texts(self.bob), [b"1", b"3", b"6"])

    def test_errorWaits(self) -> None:
        """An ERROR for a text is counted in the store before it is told."""
        self.server.isHeld = True
        self.alice.send(TEXT, "bob", b"1")
        self.alice.send(TEXT, "nobody", b"2")
        self.assertEqual(self.alice.received(), [])
        self.server.release()
        first, offline, second = self.alice.received()
        self.assertEqual((first, error(offline), second), (ack(1), ("nobody", ErrorCode.OFFLINE, TEXT), ack(2)))
        self.assertEqual(self.server.resume("alice", 0, self.alice.sessionId).received(), [ack(2)])

    def test_broadcast(self) -> None:
        """A broadcast is counted, committed before it is delivered, and a counted text for its reliable receivers."""
        self.restart(broadcast=True, limits=Limits().changed("broadcast=0"))
        alice, bob, carol = self.server.resume("alice"), self.server.resume("bob"), self.server.login("carol")
        alice.received()
        self.server.isHeld = True
        alice.send(TEXT, "", b"all")
        self.assertEqual((alice.received(), texts(bob), texts(carol)), ([], [], []))
        self.server.release()
        self.assertEqual((alice.received(), texts(bob), texts(carol)), ([ack(1)], [b"all"], [b"all"]))
        carol.send(TEXT, "", b"plain")
        self.assertEqual((texts(alice), texts(bob), texts(carol)), ([b"plain"], [b"plain"], []))
        self.server.isFull = True
        alice.send(TEXT, "", b"lost")
        refused, one = alice.received()
        self.assertEqual((error(refused), one), (("", ErrorCode.OVERLOADED, TEXT), ack(2)))
        self.server.isFull = False
        acknowledge(bob, 2)
        self.assertEqual(bob.received(), [])

    def test_ofTheServer(self) -> None:
        """What the server itself sends to a reliable receiver is a counted text from ""; for the known it waits."""
        self.assertTrue(self.server.factory.sendMessage("bob", "one"))
        self.assertEqual(self.server.factory.broadcastMessage(b"two"), 2)
        self.assertEqual(self.bob.received(), [text("", b"one"), text("", b"two")])
        acknowledge(self.bob, 2)
        self.bob.drop()
        self.assertFalse(self.server.factory.sendMessage("bob", "three"))
        self.assertFalse(self.server.factory.sendMessage("nobody", "three"))
        bob = self.server.resume("bob", 2, self.bob.sessionId)
        self.assertEqual(bob.received(), [ack(0), delay(""), text("", b"three")])
        with self.assertRaises(WireError):
            self.server.factory.sendMessage("bob", bytes(65_536))

    def test_serverTextFails(self) -> None:
        """What the server itself sends and the store does not take is counted."""
        self.server.isFull = True
        self.server.factory.sendMessage("bob", "one")
        self.server.pump()
        self.assertEqual(self.server.factory.counters["store: texts refused"], 1)

    def test_toOneself(self) -> None:
        """A text of a reliable client to itself is acknowledged, and delivered as any other."""
        self.alice.send(TEXT, "alice", b"note")
        self.assertEqual(set(self.alice.received()), {text("alice", b"note"), ack(1)})

    def test_inherits(self) -> None:
        """A registration that resumes nothing gets first what earlier sessions have not acknowledged, with DELAY."""
        for register in (self.server.resume, self.server.login):
            for data in (b"one", b"two"):
                self.alice.send(TEXT, "bob", data)
            self.bob.received()
            acknowledge(self.bob, 1)
            self.bob.drop()
            self.alice.send(TEXT, "bob", b"three")
            self.bob = register("bob")
            self.alice.send(TEXT, "bob", b"four")
            messages = [m for m in self.bob.received() if m.type != ACK]
            self.assertEqual([m.type for m in messages], [DELAY, TEXT, DELAY, TEXT, TEXT])
            self.assertEqual([m.data for m in messages if m.type == TEXT], [b"two", b"three", b"four"])
            self.bob.send(ACK, "", b"\0\0\0\3")
            self.bob.drop()
            self.bob = self.server.resume("bob")
            self.assertEqual(self.bob.received(), [ack(0)])

    def test_olderSession(self) -> None:
        """An earlier session that is resumed after one that resumed nothing still learns its m."""
        self.alice.send(TEXT, "bob", b"one")
        self.alice.drop()
        other = self.server.resume("alice")
        other.send(TEXT, "bob", b"two")
        other.drop()
        self.assertEqual(self.server.resume("alice", 0, self.alice.sessionId).received(), [ack(1)])

    def test_unknownSession(self) -> None:
        """A session that the server does not know, be it another user's, begins a new one."""
        self.alice.send(TEXT, "bob", b"one")
        for sessionId in (b"x" * 16, self.alice.sessionId):
            bob = self.server.resume("carol", 7, sessionId)
            self.assertEqual(bob.received(), [ack(0)])
            bob.drop()
        self.assertEqual(texts(self.bob), [b"one"])

    def test_clearedLate(self) -> None:
        """A transport that takes more after its client is gone does no harm."""
        connection = self.bob.transport.other.protocol
        self.bob.drop()
        self.alice.send(TEXT, "bob", b"one")
        self.server.factory.cleared(connection)  # type: ignore[arg-type]
        bob = self.server.resume("bob", 0, self.bob.sessionId)
        self.server.factory.cleared(connection)  # type: ignore[arg-type]
        self.assertEqual(texts(bob), [b"one"])

    def test_plainOnce(self) -> None:
        """A plain client gets a reliable one's texts once, and live ones of others in their order behind them."""
        carol, dave = self.server.login("carol"), self.server.login("dave")
        self.server.isHeld = True
        self.alice.send(TEXT, "carol", b"one")
        dave.send(TEXT, "carol", b"two")
        self.assertEqual(texts(carol), [])
        self.server.release()
        dave.send(TEXT, "carol", b"three")
        self.assertEqual(carol.received(), [text("alice", b"one"), text("dave", b"two"), text("dave", b"three")])
        carol.drop()
        self.assertEqual(texts(self.server.login("carol")), [])

    def test_reliableThenPlain(self) -> None:
        """Texts stay in order when their sender registers reliably first and plainly then."""
        carol = self.server.login("carol")
        self.server.isHeld = True
        self.alice.send(TEXT, "carol", b"one")
        self.alice.drop()
        alice = self.server.login("alice")
        alice.send(TEXT, "carol", b"two")
        self.server.tell()
        alice.send(TEXT, "carol", b"three")
        self.server.release()
        alice.send(TEXT, "carol", b"four")
        self.assertEqual(texts(carol), [b"one", b"two", b"three", b"four"])

    def test_pausedReceiver(self) -> None:
        """A reliable receiver that does not read gets everything in order when it reads again."""
        self.bob.pauseReading()
        sent = [b"%d" % i + bytes(20_000) for i in range(20)]
        for data in sent:
            self.alice.send(TEXT, "bob", data)
        self.assertEqual(self.alice.received()[-1], ack(20))
        self.bob.resumeReading()
        self.assertEqual(texts(self.bob), sent)

    def test_diskAndRegistration(self) -> None:
        """A text that comes while its receiver registers is delivered once, wherever it falls."""
        for moment in range(4):
            self.bob.drop()
            self.server.isHeld = True
            if moment == 0:
                self.alice.send(TEXT, "bob", b"one")
            bob = self.begun("bob")
            if moment == 1:
                self.alice.send(TEXT, "bob", b"one")
            self.server.write()
            if moment == 2:
                self.alice.send(TEXT, "bob", b"one")
            self.server.tell()
            if moment == 3:
                self.alice.send(TEXT, "bob", b"one")
            self.server.release()
            self.assertEqual(texts(bob), [b"one"])
            acknowledge(bob, 1)
            self.bob = bob

    def test_refusedWhileAway(self) -> None:
        """A text that the store refused does not let live texts overtake one that is being kept."""
        self.restart(limits=Limits().changed("queued-bytes=10"))
        self.known("bob")
        alice = self.server.login("alice")
        self.server.isHeld = True
        alice.send(TEXT, "bob", b"far too long")
        bob = self.server.login("bob")
        alice.send(TEXT, "bob", b"one")
        self.server.tell()
        self.server.tell()
        alice.send(TEXT, "bob", b"two")
        self.server.release()
        self.assertEqual(texts(bob), [b"one", b"two"])
        self.assertTold(alice, ErrorCode.OVERLOADED, "bob")


class BroadcastTests(DeliveryTestCase):
    """What a reliable client sends to everyone keeps its place among its texts."""

    options: dict[str, Any] = {"broadcast": True, "limits": Limits().changed("broadcast=0").changed("text=0")}

    def setUp(self) -> None:
        super().setUp()
        self.alice, self.bob, self.carol = (
            self.server.resume("alice"),
            self.server.resume("bob"),
            self.server.login("carol"),
        )

    def write(self, *words: str) -> None:
        """Let alice send that at once, each as C{RECEIVER:TEXT}, to everyone where no receiver is named."""
        frames = [encodeFrame(TEXT, *map(str.encode, word.split(":"))) for word in words]
        self.alice.sendBytes(b"".join(frames))

    def test_order(self) -> None:
        """To a plain and to a reliable receiver it comes behind the texts before it, and before those behind it."""
        self.server.isHeld = True
        self.write("carol:1", "bob:1", ":2", "carol:3", "bob:3", ":4", ":5", "carol:6", "bob:6")
        self.server.release()
        for client in (self.carol, self.bob):
            self.assertEqual(texts(client), [b"1", b"2", b"3", b"4", b"5", b"6"])
        self.write(":7", "carol:8", "bob:8", ":9")
        for client in (self.carol, self.bob):
            self.assertEqual(texts(client), [b"7", b"8", b"9"])

    def test_oneTransaction(self) -> None:
        """It is on the disk for all reliable receivers when it is acknowledged, and before that for none."""
        dave = self.server.resume("dave")
        self.server.isHeld = True
        self.write(":all")
        for client in (self.bob, self.carol, dave, self.alice):
            self.assertEqual([m for m in client.received() if m.type in (TEXT, ERROR)], [])
        self.server.tell()
        self.assertIn(ack(1), self.alice.received())
        self.kill()
        for name, client in (("bob", self.bob), ("dave", dave)):
            self.assertEqual(texts(self.server.resume(name, 0, client.sessionId)), [b"all"])

    def test_noRoom(self) -> None:
        """One receiver for whom too much waits does not keep it from the others."""
        self.restart(limits=self.options["limits"].changed("queued-texts=1"))
        self.alice, bob, carol = self.server.resume("alice"), self.server.resume("bob"), self.server.resume("carol")
        self.write("bob:1", ":2")
        self.assertEqual((texts(bob), texts(carol)), ([b"1"], [b"2"]))
        self.assertIn(ack(2), self.alice.received())
        self.assertEqual(self.server.factory.counters["limits hit: queued-texts"], 1)

    def test_leavesBefore(self) -> None:
        """A plain receiver that leaves before the commit gets it at its next registration, in its place."""
        for again in (True, False):
            self.server.isHeld = True
            self.write(":1", "carol:2", ":3")
            self.carol.drop()
            if again:
                self.carol = self.server.login("carol")
            self.server.release()
            if not again:
                self.carol = self.server.login("carol")
            self.assertEqual(texts(self.carol), [b"1", b"2", b"3"])
            self.write(":4")
            self.assertEqual(texts(self.carol), [b"4"])

    @given(st.lists(st.sampled_from(["all", "bob", "carol", "hold", "tell", "pause", "read", "leave"]), max_size=30))
    def test_anyOrder(self, steps: list[str]) -> None:
        """Whatever the disk and the receivers do, what one sender sends to a receiver comes in order and once."""
        self.path = temporaryFolder(self) / "store.sqlite"
        self.server = self.start(self.server.clock)
        self.alice, bob, carol = self.server.resume("alice"), self.server.resume("bob"), self.server.login("carol")
        got: dict[str, list[bytes]] = {"bob": [], "carol": []}
        sent: dict[str, list[bytes]] = {"bob": [], "carol": []}
        for n, step in enumerate(steps):
            if step in ("all", "bob", "carol"):
                data = b"%d " % n + bytes(20_000)
                for name in got if step == "all" else [step]:
                    sent[name].append(data)
                self.alice.send(TEXT, "" if step == "all" else step, data)
            elif step == "hold":
                self.server.isHeld = True
            elif step == "tell":
                self.server.release()
            elif step == "pause":
                carol.pauseReading()
            elif step == "read":
                carol.resumeReading()
            else:
                got["carol"] += texts(carol)
                carol.transport.loseConnection()
                self.server.pump()
                carol = self.server.login("carol")
        self.server.release()
        carol.resumeReading()
        self.server.advance(3)
        got["bob"] += texts(bob)
        got["carol"] += texts(carol)
        self.assertEqual(got, sent)


class FailureTests(DeliveryTestCase):
    """The store does not work for a while."""

    def test_senders(self) -> None:
        """Senders get ERROR overloaded in its turn; nothing acknowledged is lost; all works again afterwards."""
        self.known("bob")
        alice, carol = self.server.resume("alice"), self.server.login("carol")
        alice.send(TEXT, "bob", b"one")
        self.assertEqual(alice.received(), [ack(0), ack(1)])
        self.server.isFull = True
        carol.send(TEXT, "bob", b"x")
        self.assertTold(carol, ErrorCode.OVERLOADED, "bob")
        alice.sendBytes(encodeFrame(TEXT, b"bob", b"x") * 2)
        first, two, second, three = alice.received()
        self.assertEqual((two, three), (ack(2), ack(3)))
        self.assertEqual(error(first), ("bob", ErrorCode.OVERLOADED, TEXT))
        self.assertEqual(error(second), ("bob", ErrorCode.OVERLOADED, TEXT))
        alice.send(TEXT, "nobody", b"x")
        offline, four = alice.received()
        self.assertEqual((error(offline), four), (("nobody", ErrorCode.OFFLINE, TEXT), ack(4)))
        self.assertEqual(self.server.factory.counters["store: texts refused"], 3)
        self.server.isFull = False
        alice.send(TEXT, "bob", b"two")
        carol.send(TEXT, "bob", b"three")
        self.assertEqual((alice.received(), carol.received()), ([ack(5)], []))
        self.kill()
        self.assertEqual(texts(self.server.login("bob")), [b"one", b"two", b"three"])
        self.assertEqual(self.server.resume("alice", 0, alice.sessionId).received(), [ack(5)])

    def test_leftBeforeTheRefusal(self) -> None:
        """Who has left before a text was refused as the disk was full sends that again; who has not does not."""
        self.known("bob")
        for hasLeft in (True, False):
            alice = self.server.resume("alice")
            self.server.isHeld = True
            alice.send(TEXT, "bob", b"one")
            if hasLeft:
                alice.drop()
            self.server.fail()
            if not hasLeft:
                alice.drop()
            self.server.advance(RETRY_AFTER)
            again = self.server.resume("alice", 0, alice.sessionId)
            self.assertEqual(again.received(), [ack(0 if hasLeft else 1)])
            again.drop()

    def test_fullDatabase(self) -> None:
        """A database that can take no more pages refuses texts, and takes them when it can again."""
        self.known("bob")
        alice = self.server.resume("alice")
        assert self.server.store is not None
        database = self.server.store._database._connection
        (most,) = database.execute("PRAGMA max_page_count").fetchone()
        (pages,) = database.execute("PRAGMA page_count").fetchone()
        database.execute(f"PRAGMA max_page_count = {pages + 40}")
        sent = [b"%d" % i + bytes(30_000) for i in range(10)]
        for data in sent:
            alice.send(TEXT, "bob", data)
        answers = alice.received()[1:]
        refused = [m for m in answers if m.type == ERROR]
        self.assertEqual({error(m) for m in refused}, {("bob", ErrorCode.OVERLOADED, TEXT)})
        self.assertEqual([m for m in answers if m.type == ACK], [ack(i + 1) for i in range(10)])
        database.execute(f"PRAGMA max_page_count = {most}")
        alice.send(TEXT, "bob", b"again")
        self.assertEqual(alice.received(), [ack(11)])
        self.assertEqual(texts(self.server.login("bob")), [*sent[: 10 - len(refused)], b"again"])

    def test_live(self) -> None:
        """A text that could not be kept does not make others to the same plain receiver depend on the store."""
        alice, bob, carol = self.server.resume("alice"), self.server.login("bob"), self.server.login("carol")
        self.server.isFull = True
        alice.send(TEXT, "bob", b"refused")
        carol.send(TEXT, "bob", b"live")
        self.assertEqual((texts(bob), carol.received()), ([b"live"], []))

    def test_registration(self) -> None:
        """Who wants reliable delivery is refused while there can be none, and loses nothing by it."""
        self.known("bob")
        alice = self.server.resume("alice")
        alice.send(TEXT, "bob", b"one")
        for isStillThere in (True, False):
            if not isStillThere:
                alice.drop()
            self.server.isFull = True
            refused = self.begun("alice", 0, alice.sessionId)
            self.assertRefused(refused, ErrorCode.OVERLOADED, ACK)
            if isStillThere:
                self.assertRefused(alice, ErrorCode.REPLACED)
            self.server.advance(5)
            self.assertEqual(self.server.factory.getOnlineUsers(), [])
            self.server.isFull = False
            self.assertEqual(self.server.resume("alice", 0, alice.sessionId).received(), [ack(1)])
            alice = self.server.resume("alice", 0, alice.sessionId)
            alice.send(TEXT, "bob", b"two")
            self.server.advance(1)

    def test_retried(self) -> None:
        """What a receiver has acknowledged while the store failed is forgotten when it works again."""
        alice, bob = self.server.resume("alice"), self.server.resume("bob")
        alice.send(TEXT, "bob", b"one")
        self.assertEqual(texts(bob), [b"one"])
        self.server.isFull = True
        acknowledge(bob, 1)
        bob.drop()
        self.server.isFull = False
        self.assertEqual(texts(self.server.login("bob")), [])


class ResumeTests(DeliveryTestCase):
    """Going on from an earlier session, however often the answer is lost."""

    def setUp(self) -> None:
        super().setUp()
        self.known("bob")
        self.alice = self.server.resume("alice")

    def online(self) -> list[str]:
        return self.server.factory.getOnlineUsers()

    def test_oldOneFirst(self) -> None:
        """The old connection is closed first and nothing more is taken from it; then its commits are waited for."""
        self.server.isHeld = True
        self.alice.send(TEXT, "bob", b"one")
        alice = self.begun("alice", 0, self.alice.sessionId)
        self.assertRefused(self.alice, ErrorCode.REPLACED)
        self.alice.send(TEXT, "bob", b"two")
        self.assertEqual(alice.received(), [])
        self.server.release()
        greeting, m = alice.received()
        self.assertEqual((greeting.type, m), (HEARTBEAT, ack(1)))
        self.assertEqual(texts(self.server.login("bob")), [b"one"])

    def test_unread(self) -> None:
        """What the server has of the old connection and did not take yet is not taken either."""
        self.server.isHeld = True
        big = encodeFrame(TEXT, b"bob", bytes(60_000))
        self.alice.sendBytes(big * 7)
        alice = self.begun("alice", 0, self.alice.sessionId)
        self.server.release()
        taken = int.from_bytes(alice.received()[1].data, "big")
        self.assertEqual(taken, MAX_STORING // 60_064 + 1)
        self.assertEqual(len(texts(self.server.login("bob"))), taken)

    def test_unused(self) -> None:
        """Until something arrives in the new session the old one can be resumed again; the new one is discarded."""
        self.alice.send(TEXT, "bob", b"one")
        carol = self.server.login("carol")
        carol.send(TEXT, "alice", b"a")
        self.alice.drop()
        old = self.alice.sessionId
        second = self.server.resume("alice", 0, old)
        carol.send(TEXT, "alice", b"b")
        self.assertEqual(texts(second), [b"a", b"b"])
        third = self.server.resume("alice", 0, old)  # a takeover: the server still has the second
        self.assertRefused(second, ErrorCode.REPLACED)
        self.assertEqual((third.received()[0], texts(third)), (ack(1), []))
        third.drop()
        fourth = self.server.resume("alice", 1, old)
        self.assertEqual((fourth.received()), [ack(1), delay("carol"), text("carol", b"b")])
        fourth.drop()
        self.assertEqual(self.server.resume("alice", 0, third.sessionId).received()[0], ack(0))

    def test_used(self) -> None:
        """As soon as something arrives in the new session the old one is forgotten: it begins a new one."""
        self.alice.send(TEXT, "bob", b"one")
        second = self.server.resume("alice", 0, self.alice.sessionId)
        self.assertEqual(second.received(), [ack(1)])
        second.send(HEARTBEAT)
        second.drop()
        self.assertEqual(self.server.resume("alice", 0, self.alice.sessionId).received(), [ack(0)])

    def test_usedHolds(self) -> None:
        """A session that has been used is no longer taken over with the ID of the one that it resumed."""
        second = self.server.resume("alice", 0, self.alice.sessionId)
        second.send(HEARTBEAT)
        third = self.begun("alice", 0, self.alice.sessionId)
        self.assertEqual(second.received()[-1], Message(HEARTBEAT, "alice", b""))
        second.send(HEARTBEAT)
        self.assertRefused(third, ErrorCode.ID_IN_USE, ACK)

    def test_usedByWhatWaited(self) -> None:
        """What came with the registration itself is something that arrived."""
        self.server.isHeld = True
        second = self.server.connect()
        second.sendBytes(
            encodeFrame(ACK, b"alice", bytes(4) + self.alice.sessionId) + encodeFrame(TEXT, b"bob", b"two")
        )
        self.server.release()
        self.assertEqual(second.received()[1:], [ack(0), ack(1)])
        second.drop()
        self.assertEqual(self.server.resume("alice", 0, self.alice.sessionId).received(), [ack(0)])

    def test_resumedOfResumed(self) -> None:
        """Who knows the ID of an unused session got its answer: the one before is forgotten then."""
        second = self.server.resume("alice", 0, self.alice.sessionId)
        second.drop()
        third = self.server.resume("alice", 0, second.sessionId)
        third.drop()
        self.alice.send(TEXT, "bob", b"x")
        self.assertEqual(self.server.resume("alice", 0, self.alice.sessionId).received(), [ack(0)])

    def test_againBeforeTheCommit(self) -> None:
        """The same session resumed again before the first answer: the later one gets it, the earlier one goes."""
        self.alice.send(TEXT, "bob", b"one")
        self.server.isHeld = True
        second = self.begun("alice", 0, self.alice.sessionId)
        third = self.begun("alice", 0, self.alice.sessionId)
        self.assertRefused(second, ErrorCode.REPLACED, ACK)
        self.server.release()
        greeting, m = third.received()
        self.assertEqual((greeting.type, m), (HEARTBEAT, ack(1)))
        self.assertEqual(self.online(), ["alice"])
        third.drop()
        self.assertEqual(self.server.resume("alice", 0, greeting.data).received(), [ack(0)])

    def test_anotherBeforeTheCommit(self) -> None:
        """Somebody else who wants an ID that is about to be registered reliably gets idInUse at once."""
        self.alice.drop()
        for credential, messageType in ((b"", HEARTBEAT), (bytes(20), ACK), (bytes(4) + b"x" * 16, ACK)):
            self.server.isHeld = True
            first = self.begun("alice")
            second = self.server.connect()
            second.send(messageType, "alice", credential)
            self.assertRefused(second, ErrorCode.ID_IN_USE, messageType)
            self.server.release()
            self.assertEqual(first.received()[1], ack(0))
            first.drop()

    def test_plainThenReliable(self) -> None:
        """A reliable newcomer is held while a plain client of that ID is probed, and begins when that one is gone."""
        self.alice.drop()
        plain = self.server.login("alice")
        newcomer = self.begun("alice")
        self.assertEqual(newcomer.received(), [])
        self.assertEqual(plain.received(), [Message(HEARTBEAT, "alice", b"")])
        self.server.isHeld = True
        plain.drop()
        self.assertEqual((newcomer.received(), self.online()), ([], []))
        bob = self.server.login("bob")
        bob.send(TEXT, "alice", b"hello")
        self.server.release()
        self.assertEqual([m.type for m in newcomer.received()], [HEARTBEAT, ACK, TEXT])

    def test_newcomerLeaves(self) -> None:
        """A newcomer who leaves while its session is being committed is nobody; what waits is not lost."""
        self.alice.drop()
        self.server.login("bob").send(TEXT, "alice", b"hello")
        self.server.isHeld = True
        newcomer = self.begun("alice", 0, self.alice.sessionId)
        newcomer.drop()
        self.server.release()
        self.assertEqual(self.online(), ["bob"])
        alice = self.server.resume("alice", 0, self.alice.sessionId)
        self.assertEqual(texts(alice), [b"hello"])

    def test_newcomerWhoTookOverLeaves(self) -> None:
        """If a newcomer who has taken over leaves before its session is committed its user has gone offline."""
        told: list[tuple[str, bool]] = []

        class Observer(ServerObserver):
            def clientConnected(self, userId: str) -> None:
                told.append((userId, True))

            def clientDisconnected(self, userId: str) -> None:
                told.append((userId, False))

        self.server.factory.addObserver(Observer())
        self.server.isHeld = True
        second = self.begun("alice", 0, self.alice.sessionId)
        self.server.advance(1)
        third = self.begun("alice", 0, self.alice.sessionId)
        self.assertEqual(told, [])
        third.drop()
        self.assertEqual(told, [("alice", False)])
        self.server.release()
        second.drop()
        self.assertEqual((self.online(), told), ([], [("alice", False)]))
        self.server.resume("alice", 0, self.alice.sessionId)
        self.assertEqual(told[1:], [("alice", True)])

    def test_killedWhileResuming(self) -> None:
        """A server that is killed between the commit of a resumption and its answer lets it be resumed again."""
        self.alice.send(TEXT, "bob", b"one")
        self.server.login("bob").send(TEXT, "alice", b"hello")
        self.server.isHeld = True
        self.begun("alice", 0, self.alice.sessionId)
        self.server.write()
        self.kill()
        alice = self.server.resume("alice", 1, self.alice.sessionId)
        self.assertEqual(alice.received(), [ack(1)])

    def test_order(self) -> None:
        """After HEARTBEAT come ACK m, the call's frame, missed calls and texts, in this order."""
        bob, carol = self.server.login("bob"), self.server.login("carol")
        carol.send(MessageType.CALL_REQUEST, "alice", b"\1")
        missed = carol.received()[0].data[:16]
        carol.send(MessageType.CALL_END, "alice", missed)
        bob.send(MessageType.CALL_REQUEST, "alice", b"\0offer")
        ringing = bob.received()[0].data[:16]
        self.alice.drop()
        bob.send(TEXT, "alice", b"one")
        self.server.advance(1)
        bob.send(TEXT, "alice", b"two")
        alice = self.server.resume("alice", 0, self.alice.sessionId)
        self.assertEqual(
            alice.received(),
            [
                ack(0),
                Message(MessageType.CALL_REQUEST, "bob", ringing + b"\0offer"),
                delay("carol"),
                Message(MessageType.CALL_REJECT, "carol", missed + bytes((RejectCode.NO_ANSWER,))),
                *(delay("bob"), text("bob", b"one"), delay("bob", 1), text("bob", b"two")),
            ],
        )


class MissedCallTests(DeliveryTestCase):
    """Calls that one did not take."""

    def test_missed(self) -> None:
        """A call that nobody answered, that was cancelled or that found one offline is told once, at registration."""
        for register in (self.server.login, self.server.resume):
            now = self.server.clock.seconds() - NOW
            bob, alice = self.server.login("bob"), self.server.login("alice")
            ids = []
            for how in ("no answer", "cancelled", "offline"):
                if how == "offline":
                    bob.drop()
                alice.send(MessageType.CALL_REQUEST, "bob", b"\0")
                ids.append(alice.received()[0].data[:16])
                if how == "cancelled":
                    alice.send(MessageType.CALL_END, "bob", ids[-1])
                self.server.advance(30)
                alice.received()
            expected = []
            for i, callId in enumerate(ids):
                reject = Message(MessageType.CALL_REJECT, "alice", callId + bytes((RejectCode.NO_ANSWER,)))
                expected += [delay("alice", now + 30 * i), reject]
            for wanted in (expected, []):
                bob = register("bob")
                self.assertEqual([m for m in bob.received() if m.type != ACK][-6:], wanted)
                bob.drop()
            alice.drop()
            self.server.advance(40)

    def test_busy(self) -> None:
        """A call that found one in another call is no missed one."""
        bob, alice, carol = (self.server.login(name) for name in ("bob", "alice", "carol"))
        alice.send(MessageType.CALL_REQUEST, "bob", b"\0")
        callId = alice.received()[0].data[:16]
        carol.send(MessageType.CALL_REQUEST, "bob", b"\0")
        self.assertEqual(carol.received()[0].data[16], RejectCode.BUSY)
        bob.send(MessageType.CALL_REJECT, "alice", callId)
        bob.drop()
        self.assertEqual(self.missed(self.server.login("bob")), 0)

    def miss(self) -> None:
        """Let bob, who is away, miss a call."""
        self.server.login("alice").send(MessageType.CALL_REQUEST, "bob", b"\0")

    def missed(self, client: FakeClient) -> int:
        """Return how many missed calls a client was told of."""
        return [message.type for message in client.received()].count(MessageType.CALL_REJECT)

    def test_history(self) -> None:
        """Calls that the rate lets through are in the history; refusals that come at any speed are only counted."""
        self.restart(limits=Limits.none().changed("calls=3"))
        bob, alice = self.server.login("bob"), self.server.login("alice")
        bob.send(LOGIN, "carol", bytes((AccountOp.BLOCK,)))
        carol = self.server.login("carol")
        for caller, callee in [(carol, "bob"), (carol, "carol")] * 20 + [(alice, "bob")] * 20:
            caller.send(MessageType.CALL_REQUEST, callee, b"\0")
            if caller is alice:
                callId = alice.received()[-1].data[:16]
                alice.send(MessageType.CALL_END, "bob", callId)
        operator = Database(self.path, self.server.clock.seconds)
        self.addCleanup(operator.close)
        self.assertEqual([call.outcome for call in operator.calls(100)], ["cancelled"] * 3)
        counted = self.server.factory.counters
        counts = [counted[f"calls refused: {name}"] for name in ("FORBIDDEN", "TO_SELF", "OVERLOADED")]
        self.assertEqual(counts, [20, 20, 17])

    def test_leftBefore(self) -> None:
        """Whoever leaves before it was told is told at the next registration."""
        self.known("bob")
        self.miss()
        self.server.isHeld = True
        for client in (self.begun("bob"), self.server.connect()):
            client.send(HEARTBEAT, "bob")
            client.drop()
        self.server.release()
        self.assertEqual(self.missed(self.server.login("bob")), 1)

    def test_answerLost(self) -> None:
        """Who resumes again as the answer was lost is told again, until something was said."""
        bob = self.server.resume("bob")
        sessionId = bob.sessionId
        bob.drop()
        self.miss()
        for _ in range(2):
            bob = self.server.resume("bob", 0, sessionId)
            self.assertEqual(self.missed(bob), 1)
            newId = bob.sessionId
            bob.drop()
        bob = self.server.resume("bob", 0, newId)
        self.assertEqual(self.missed(bob), 1)
        bob.send(HEARTBEAT)
        newId = bob.sessionId
        bob.drop()
        self.assertEqual(self.missed(self.server.resume("bob", 0, newId)), 0)

    def test_notMissed(self) -> None:
        """A call that was declined or answered, or of somebody unknown, is not told."""
        bob, alice = self.server.login("bob"), self.server.login("alice")
        for end in (MessageType.CALL_REJECT, MessageType.CALL_ACCEPT):
            alice.send(MessageType.CALL_REQUEST, "bob", b"\0")
            callId = alice.received()[0].data[:16]
            bob.send(end, "alice", callId)
            alice.send(MessageType.CALL_END, "bob", callId + bytes((EndCode.HUNG_UP,)))
            alice.received()
        alice.send(MessageType.CALL_REQUEST, "nobody", b"\0")
        bob.drop()
        for userId in ("bob", "nobody"):
            self.server.advance(33)
            alice.send(HEARTBEAT)
            self.assertEqual(self.server.login(userId).received(), [])


class SuccessorTests(DeliveryTestCase):
    """What a connection leaves to the next one of its user."""

    def setUp(self) -> None:
        self.patch(testing, "MemoryTransport", KernelTransport)
        super().setUp()

    def test_order(self) -> None:
        """Who takes over from a plain client that had stopped reading, in the middle of a text, gets all in order."""
        for taken in (0, 1, 20, len(encodeFrame(TEXT, b"alice", bytes(100))) * 2 + 7):
            old, alice = self.server.login("bob"), self.server.login("alice")
            old.pauseReading()
            data = [b"%02d" % i + bytes(98) for i in range(20)]
            for text_ in data[:10]:
                alice.send(TEXT, "bob", text_)
            transport = old.transport.other
            assert isinstance(transport, KernelTransport)
            transport.taken = taken
            new = self.server.connect()
            new.send(HEARTBEAT, "bob")
            self.server.advance(5)
            for text_ in data[10:]:
                alice.send(TEXT, "bob", text_)
            self.server.advance(5)
            wholly = taken // len(encodeFrame(TEXT, b"alice", data[0]))
            self.assertEqual(texts(new), data[wholly:])
            new.drop()
            alice.drop()
            self.server.advance(5)

    def test_pipelined(self) -> None:
        """What was sent before the answer came says nothing about the answer: the old session can be resumed again."""
        bob = self.server.resume("bob")
        self.known("alice")
        bob.send(TEXT, "alice", b"one")
        sessionId = bob.sessionId
        bob.drop()
        for _ in range(2):
            client = self.server.connect()
            registration = encodeFrame(ACK, b"bob", bytes(4) + sessionId)
            client.sendBytes(registration + encodeFrame(HEARTBEAT, b""))
            self.assertEqual(client.received()[1], ack(1))
            client.drop()

    def test_tooManyUsers(self) -> None:
        """Whom the store cannot remember, as there are too many, registers as without a store."""
        self.restart(limits=Limits().changed("users=1"))
        self.server.login("alice")
        bob = self.server.resume("bob")
        self.assertEqual(bob.received(), [])
        acknowledge(bob, 0)
        self.assertTold(bob, ErrorCode.BAD_REQUEST, "", ACK)


class BlockTests(DeliveryTestCase):
    """Whom one blocks."""

    def setUp(self) -> None:
        super().setUp()
        self.alice, self.bob = self.server.login("alice"), self.server.login("bob")

    def command(self, client: FakeClient, userId: str, data: bytes) -> list[Message]:
        client.send(LOGIN, userId, data)
        return client.received()

    def test_block(self) -> None:
        """Texts, calls and files of somebody blocked are forbidden, and nothing of them arrives, until unblocked."""
        self.assertEqual(self.command(self.bob, "alice", b"\2"), [Message(AUTH_RESPONSE, "alice", b"\1")])
        self.alice.send(TEXT, "bob", b"no")
        self.assertTold(self.alice, ErrorCode.FORBIDDEN, "bob")
        self.alice.send(MessageType.CALL_REQUEST, "bob", b"\0")
        (reject,) = self.alice.received()
        self.assertEqual((reject.type, reject.data[16]), (MessageType.CALL_REJECT, RejectCode.FORBIDDEN))
        offer = bytes((FileOp.OFFER,)) + b"t" * 16 + (1).to_bytes(8, "big") + bytes(32) + b"name"
        self.alice.send(MessageType.FILE, "bob", offer)
        self.assertTold(self.alice, ErrorCode.FORBIDDEN, "bob", MessageType.FILE)
        reliable = self.server.resume("alice", 0, self.alice.sessionId)
        reliable.received()
        reliable.send(TEXT, "bob", b"no")
        refused, one = reliable.received()
        self.assertEqual((error(refused), one), (("bob", ErrorCode.FORBIDDEN, TEXT), ack(1)))
        self.assertEqual(self.bob.received(), [])
        self.bob.send(TEXT, "alice", b"yes")
        self.assertEqual(texts(reliable), [b"yes"])
        self.bob.drop()
        reliable.send(TEXT, "bob", b"no")
        self.assertEqual(error(reliable.received()[0]), ("bob", ErrorCode.FORBIDDEN, TEXT))
        self.restart()
        self.alice, self.bob = self.server.login("alice"), self.server.login("bob")
        self.assertEqual(texts(self.alice), [b"yes"])
        self.alice.send(TEXT, "bob", b"no")
        self.assertTold(self.alice, ErrorCode.FORBIDDEN, "bob")
        self.assertEqual(self.command(self.bob, "alice", b"\3"), [Message(AUTH_RESPONSE, "alice", b"\1")])
        self.alice.send(TEXT, "bob", b"yes")
        self.assertEqual((self.alice.received(), self.bob.received()), ([], [text("alice", b"yes")]))

    def test_others(self) -> None:
        """A block concerns nobody else, be it one text or many at once; of whom it concerns, each is refused."""
        self.command(self.bob, "carol", b"\2")
        carol = self.server.login("carol")
        for n in (1, 1, 2, 9):  # a first one is looked at more closely
            run = encodeFrame(TEXT, b"bob", b"text") * n
            self.alice.sendBytes(run)
            carol.sendBytes(run)
            self.assertEqual(texts(self.bob), [b"text"] * n)
            self.assertEqual([error(m) for m in carol.received()], [("bob", ErrorCode.FORBIDDEN, TEXT)] * n)

    def test_broadcast(self) -> None:
        """A broadcast passes those by who block its sender; the server itself cannot be blocked."""
        self.restart(broadcast=True)
        alice, bob, carol = (self.server.login(userId) for userId in ("alice", "bob", "carol"))
        self.command(bob, "alice", b"\2")
        alice.send(TEXT, "", b"all")
        self.server.factory.broadcastMessage("server")
        self.assertEqual((texts(bob), texts(carol)), ([b"server"], [b"all", b"server"]))

    def test_list(self) -> None:
        """The list of whom one blocks has their IDs, sorted, each as a frame has it."""
        self.assertEqual(self.command(self.bob, "", b"\4"), [Message(AUTH_RESPONSE, "", b"\1")])
        for userId in ("zoe", "carol"):
            self.command(self.bob, userId, b"\2")
        answer = Message(AUTH_RESPONSE, "", b"\1\0\5carol\0\3zoe")
        self.assertEqual(self.command(self.bob, "", b"\4"), [answer])

    def test_bad(self) -> None:
        """A command that makes no sense is a badRequest: oneself, no ID, no op, an unknown op, no accounts here."""
        for userId, data in (
            *(("bob", b"\2"), ("", b"\2"), ("", b"\3"), ("alice", b""), ("alice", b"\2x"), ("alice", b"\4")),
            *(("", b"\5"), ("", b"\0"), ("", b"\1"), ("a/b", b"\2")),
        ):
            self.bob.send(LOGIN, userId, data)
            self.assertTold(self.bob, ErrorCode.BAD_REQUEST, userId if "/" not in userId else "", LOGIN)

    def test_oneAtATime(self) -> None:
        """A second command before the first is done is ERROR overloaded."""
        self.server.isHeld = True
        self.bob.send(LOGIN, "alice", b"\2")
        self.bob.send(LOGIN, "carol", b"\2")
        self.assertTold(self.bob, ErrorCode.OVERLOADED, "carol", LOGIN)
        self.server.release()
        self.assertEqual(self.bob.received(), [Message(AUTH_RESPONSE, "alice", b"\1")])
        self.assertEqual(self.command(self.bob, "carol", b"\2"), [Message(AUTH_RESPONSE, "carol", b"\1")])

    def test_storeFails(self) -> None:
        """A block that the store did not take is answered with the reason, and does not hold."""
        self.server.isFull = True
        (answer,) = self.command(self.bob, "alice", b"\2")
        self.assertEqual((answer.userId, answer.data[:1]), ("alice", b"\0"))
        self.assertTrue(answer.data[1:])
        self.alice.send(TEXT, "bob", b"yes")
        self.assertEqual(texts(self.bob), [b"yes"])


class BackpressureTests(DeliveryTestCase):
    """Senders that are too fast are read more slowly, and lose nothing."""

    def test_storing(self) -> None:
        """A sender with too much to commit is not read, and goes on where it stopped when half of it is done."""
        for sender in (self.server.login("alice"), self.server.resume("alice2")):
            bob = self.server.resume("bob")
            sent = [bytes((65 + i,)) * (MAX_STORING // 4 - 64) for i in range(10)]
            frames = [encodeFrame(TEXT, b"bob", data) for data in sent]
            self.server.isHeld = True
            sender.received()
            sender.sendBytes(b"".join(frames[:4]))
            self.assertHeard(sender)
            sender.sendBytes(frames[4])
            sender.send(HEARTBEAT, "", b"?")
            sender.sendBytes(b"".join(frames[5:]))
            self.assertEqual(sender.received(), [])
            self.server.tell()  # of the first text, which was asked for alone, or of some
            self.server.release()
            self.assertIn(Message(HEARTBEAT, "", b"?"), sender.received())
            self.assertEqual(texts(bob), sent)
            acknowledge(bob, 10)
            bob.drop()

    def test_leavesWhileHeld(self) -> None:
        """What a sender who leaves had not been read of is not taken; the rest is."""
        self.known("bob")
        alice = self.server.login("alice")
        self.server.isHeld = True
        for i in range(7):
            alice.sendBytes(encodeFrame(TEXT, b"bob", b"%d" % i + bytes(60_000)))
        alice.drop()
        self.server.release()
        self.assertEqual([data[:1] for data in texts(self.server.login("bob"))], [b"0", b"1", b"2", b"3", b"4"])

    def test_storingInAll(self) -> None:
        """When all senders together have too much to commit, whoever sends more is not read."""
        self.known("bob")
        alice = self.server.login("alice")
        self.server.isHeld = True
        self.patch(delivery, "MAX_STORING_IN_ALL", 100)
        alice.send(TEXT, "bob", b"one")  # nothing else is pending before it
        self.assertHeard(alice)
        alice.send(TEXT, "bob", b"two")
        alice.send(HEARTBEAT, "", b"?")
        self.assertEqual(alice.received(), [])
        self.server.release()
        self.assertEqual(alice.received(), [Message(HEARTBEAT, "", b"?")])
        self.assertEqual(texts(self.server.login("bob")), [b"one", b"two"])

    def test_rate(self) -> None:
        """Over its text rate a client is read more slowly: nothing is dropped, and it goes on in its order."""
        self.restart(limits=Limits().changed("text=10:5"), idleTimeout=20)
        alice, bob = self.server.login("alice"), self.server.login("bob")
        sent = [b"%d" % i for i in range(400)]
        alice.sendBytes(b"".join(encodeFrame(TEXT, b"bob", data) for data in sent))
        got = texts(bob)
        self.assertLessEqual(len(got), 6)
        for _ in range(41):
            bob.send(HEARTBEAT)
            self.server.advance(1)
            new = texts(bob)
            self.assertLessEqual(len(new), 11)
            got += new
        self.assertEqual(got, sent)
        self.assertFalse(alice.ended)
        self.assertHeard(alice)

    def test_pauses(self) -> None:
        """A client that writes too fast is looked at again within 20 ms: as soon as its bucket allows, it is read."""
        self.restart(limits=Limits().changed("text=100:1"))
        alice, bob = self.server.login("alice"), self.server.login("bob")
        alice.sendBytes(b"".join(encodeFrame(TEXT, b"bob", b"%d" % i) for i in range(50)))
        got = len(texts(bob))
        while got < 50:
            self.server.advance(0.02)
            new = len(texts(bob))
            self.assertTrue(new)
            got += new

    def test_probe(self) -> None:
        """A client that the server does not read counts as alive when it is probed."""
        self.restart(limits=Limits().changed("text=1:1"))
        alice = self.server.login("alice")
        alice.sendBytes(encodeFrame(TEXT, b"alice", b"x") * 10)
        newcomer = self.server.connect()
        newcomer.send(HEARTBEAT, "alice")
        self.assertRefused(newcomer, ErrorCode.ID_IN_USE, HEARTBEAT)
        self.assertFalse(alice.ended)
