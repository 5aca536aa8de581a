"""Who is online, and who is told when that changes."""

from __future__ import annotations

from twisted.trial.unittest import SynchronousTestCase

from wecompany import presence
from wecompany.limits import Limits
from wecompany.presence import LISTED_AT_ONCE
from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import ErrorCode, MessageType, decodeError

PRESENCE = MessageType.PRESENCE
LIST, SUBSCRIBE, UNSUBSCRIBE, LIST_ALL = b"\0", b"\1", b"\2", b"\3"


def state(userId: str, isOnline: bool) -> Message:
    return Message(PRESENCE, userId, b"\1" if isOnline else b"\0")


def end(count: int) -> Message:
    """Return what ends a list of so many."""
    return Message(PRESENCE, "", count.to_bytes(4, "big"))


class PresenceTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer()
        self.alice = self.server.login("alice")

    def asked(self, op: bytes, userId: str = "", client: FakeClient | None = None) -> list[Message]:
        """Return what a client is answered."""
        client = client or self.alice
        client.send(PRESENCE, userId, op)
        return client.received()

    def changes(self, client: FakeClient | None = None) -> list[Message]:
        """Return what a client is told within a second."""
        self.server.advance(1)
        return (client or self.alice).received()

    def assertError(self, messages: list[Message], code: ErrorCode, userId: str = "") -> None:
        (error,) = messages
        self.assertEqual((error.type, error.userId), (MessageType.ERROR, userId))
        self.assertEqual(decodeError(error.data)[:2], (code, PRESENCE))


class ListTests(PresenceTestCase):
    def test_list(self) -> None:
        """A list names every other user online, and ends with their number."""
        self.assertEqual(self.asked(LIST), [end(0)])
        bob, carol = self.server.login("bob"), self.server.login("王")
        self.server.connect()
        answer = self.asked(LIST)
        self.assertEqual(set(answer[:-1]), {state("bob", True), state("王", True)})
        self.assertEqual((len(answer), answer[-1]), (3, end(2)))
        bob.drop()
        self.assertEqual(self.asked(LIST, client=carol), [state("alice", True), end(1)])

    def test_listAll(self) -> None:
        """A list of all knows, without a store, no more than who is online; oneself is in it."""
        self.server.login("bob")
        self.server.login("carol").drop()
        self.assertEqual(self.asked(LIST_ALL), [state("alice", True), state("bob", True), end(2)])

    def test_listIsNoSubscription(self) -> None:
        """Whoever asks for a list alone is not told of changes."""
        self.asked(LIST)
        self.asked(LIST_ALL)
        self.server.login("bob").drop()
        self.assertEqual(self.changes(), [])

    def test_limit(self) -> None:
        """A user has at most 6 lists a minute, of any kind together; the next one is ERROR overloaded."""
        for op in (LIST, SUBSCRIBE, LIST_ALL) * 2:
            self.assertEqual(self.asked(op)[-1], end(op == LIST_ALL))
        for op in (LIST, SUBSCRIBE, LIST_ALL):
            self.assertError(self.asked(op), ErrorCode.OVERLOADED)
        bob = self.server.login("bob")
        self.assertEqual(len(self.asked(LIST, client=bob)), 2)
        self.alice.drop()
        self.alice = self.server.login("alice")
        self.assertError(self.asked(LIST), ErrorCode.OVERLOADED)
        self.server.advance(60)
        for _ in range(6):
            self.assertEqual(self.asked(LIST), [state("bob", True), end(1)])
        self.assertError(self.asked(LIST), ErrorCode.OVERLOADED)

    def test_refusedSubscription(self) -> None:
        """A subscription whose list is refused as overloaded is none."""
        for _ in range(6):
            self.asked(LIST)
        self.assertError(self.asked(SUBSCRIBE), ErrorCode.OVERLOADED)
        self.server.login("bob")
        self.assertEqual(self.changes(), [])

    def test_badRequests(self) -> None:
        """An op that does not exist, or not with or without that user, or with more behind it, is a badRequest."""
        for userId, data in (
            ("", b""),
            ("", b"\4"),
            ("", b"\xff"),
            ("", b"\0\0"),
            ("", b"\1\1"),
            ("", b"\2\2"),
            ("bob", b""),
            ("bob", LIST),
            ("bob", LIST_ALL),
            ("bob", b"\4"),
            ("bob", b"\1\1"),
        ):
            with self.subTest(userId=userId, data=data):
                self.assertError(self.asked(data, userId), ErrorCode.BAD_REQUEST, userId)
        for op in (SUBSCRIBE, UNSUBSCRIBE, LIST):
            self.assertError(self.asked(op, "#group"), ErrorCode.BAD_REQUEST)


class EveryoneTests(PresenceTestCase):
    def test_changes(self) -> None:
        """Whoever subscribes to everyone gets the list, and then each change within a second."""
        bob = self.server.login("bob")
        self.assertEqual(self.asked(SUBSCRIBE), [state("bob", True), end(1)])
        bob.drop()
        self.assertEqual(self.changes(), [state("bob", False)])
        self.server.login("bob")
        self.server.login("carol")
        self.assertEqual(self.changes(), [state("bob", True), state("carol", True)])
        self.assertEqual(self.changes(), [])

    def test_coalesced(self) -> None:
        """Several changes of one user within a second may come as the last one, and the last one does come."""
        self.asked(SUBSCRIBE)
        for _ in range(10):
            self.server.login("bob").drop()
        carol = self.server.login("carol")
        changes = self.changes()
        self.assertEqual([m for m in changes if m.userId == "bob"][-1], state("bob", False))
        self.assertEqual([m for m in changes if m.userId == "carol"][-1], state("carol", True))
        self.assertLess(len(changes), 6)
        carol.drop()
        self.assertEqual(self.changes(), [state("carol", False)])

    def test_storm(self) -> None:
        """Of a storm of log-ins each one is told, once."""
        self.asked(SUBSCRIBE)
        for i in range(200):
            self.server.login(f"user{i}")
        self.assertEqual(self.changes(), [state(f"user{i}", True) for i in range(200)])

    def test_nothingOlderFollowsTheList(self) -> None:
        """After the list of a subscription comes only what changed after it."""
        bob, carol = self.server.login("bob"), self.server.login("carol")
        self.asked(SUBSCRIBE, client=carol)
        bob.drop()
        bob = self.server.login("bob")
        self.assertEqual(self.asked(SUBSCRIBE), [state("carol", True), state("bob", True), end(2)])
        self.assertEqual(self.changes(), [])
        self.assertEqual(self.changes(carol)[-1:], [state("bob", True)])

    def test_notOneself(self) -> None:
        """Nobody is told of itself."""
        bob = self.server.login("bob")
        self.asked(SUBSCRIBE)
        self.asked(SUBSCRIBE, client=bob)
        carol = self.server.login("carol")
        self.asked(SUBSCRIBE, client=carol)
        self.assertEqual(self.changes(carol), [])
        self.assertEqual(self.changes(bob), [state("carol", True)])

    def test_unsubscribe(self) -> None:
        """Whoever unsubscribes is told nothing more; to do so without a subscription harms nothing."""
        self.assertEqual(self.asked(UNSUBSCRIBE), [])
        self.asked(SUBSCRIBE)
        self.assertEqual(self.asked(UNSUBSCRIBE), [])
        self.server.login("bob")
        self.assertEqual(self.changes(), [])

    def test_endsWithTheConnection(self) -> None:
        """A subscription belongs to a connection and ends with it."""
        self.asked(SUBSCRIBE)
        self.alice.drop()
        self.alice = self.server.login("alice")
        self.server.login("bob")
        self.assertEqual(self.changes(), [])

    def test_takeover(self) -> None:
        """A takeover changes nobody's presence, and its newcomer subscribes anew."""
        bob = self.server.login("bob")
        self.asked(SUBSCRIBE)
        self.asked(SUBSCRIBE, client=bob)
        newcomer = self.server.connect()
        newcomer.send(MessageType.ACK, "bob", bytes(4) + bob.sessionId)
        newcomer.received()
        bob.drop()
        self.server.login("carol")
        self.assertEqual(self.changes(), [state("carol", True)])
        self.assertEqual(self.changes(newcomer), [])

    def test_probedTakeover(self) -> None:
        """Neither does one by a newcomer that was held."""
        self.server.login("bob")
        self.asked(SUBSCRIBE)
        newcomer = self.server.connect()
        newcomer.send(MessageType.HEARTBEAT, "bob")
        self.server.advance(6)
        self.assertEqual(len(newcomer.received()), 1)
        self.assertEqual(self.changes(), [])


class OneUserTests(PresenceTestCase):
    def test_stateNow(self) -> None:
        """Whoever subscribes to one user is told that user's state now."""
        self.server.login("bob")
        self.assertEqual(self.asked(SUBSCRIBE, "bob"), [state("bob", True)])
        self.assertEqual(self.asked(SUBSCRIBE, "nobody"), [state("nobody", False)])
        self.assertEqual(self.asked(SUBSCRIBE, "alice"), [state("alice", True)])

    def test_changes(self) -> None:
        """Changes of that user are told, those of others are not."""
        self.asked(SUBSCRIBE, "bob")
        bob, _ = self.server.login("bob"), self.server.login("carol")
        self.assertEqual(self.changes(), [state("bob", True)])
        bob.drop()
        self.assertEqual(self.changes(), [state("bob", False)])

    def test_nothingOlderFollows(self) -> None:
        """After the state now comes only what changed after it."""
        carol = self.server.login("carol")
        self.asked(SUBSCRIBE, "bob", carol)
        self.server.login("bob").drop()
        self.assertEqual(self.asked(SUBSCRIBE, "bob"), [state("bob", False)])
        self.assertEqual(self.changes(), [])

    def test_toldOnce(self) -> None:
        """Each change is told once, however often and in whatever way somebody has subscribed."""
        self.asked(SUBSCRIBE, "bob")
        self.asked(SUBSCRIBE, "bob")
        self.asked(SUBSCRIBE)
        self.server.login("bob")
        self.assertEqual(self.changes(), [state("bob", True)])

    def test_unsubscribe(self) -> None:
        """Whoever unsubscribes from one user is told nothing more of it; the other subscriptions stay."""
        self.assertEqual(self.asked(UNSUBSCRIBE, "bob"), [])
        carol = self.server.login("carol")
        for client in (self.alice, carol):
            self.asked(SUBSCRIBE, "bob", client)
        self.asked(SUBSCRIBE, "dave")
        self.assertEqual(self.asked(UNSUBSCRIBE, "bob"), [])
        self.server.login("bob")
        self.server.login("dave")
        self.assertEqual(self.changes(), [state("dave", True)])
        self.assertEqual(carol.received(), [state("bob", True)])

    def test_unsubscribeEveryone(self) -> None:
        """To unsubscribe from everyone leaves the subscriptions to single users."""
        self.asked(SUBSCRIBE, "bob")
        self.asked(SUBSCRIBE)
        self.asked(UNSUBSCRIBE)
        self.server.login("bob")
        self.server.login("carol")
        self.assertEqual(self.changes(), [state("bob", True)])

    def test_ownId(self) -> None:
        """A subscription to oneself tells the state now and nothing else, as one is always online to oneself."""
        self.asked(SUBSCRIBE, "bob")
        bob = self.server.login("bob")
        self.asked(SUBSCRIBE, "bob", bob)
        self.assertEqual(self.changes(bob), [])
        self.assertEqual(self.alice.received(), [state("bob", True)])

    def test_noLimitOfLists(self) -> None:
        """Subscriptions to single users are not lists."""
        for i in range(20):
            self.assertEqual(self.asked(SUBSCRIBE, f"user{i}"), [state(f"user{i}", False)])

    def test_bounded(self) -> None:
        """A connection watches at most 1,000 single users: one more is ERROR overloaded until it gives up another."""
        for i in range(1000):
            self.alice.send(PRESENCE, f"user{i}", SUBSCRIBE)
        self.assertEqual(self.alice.received()[-1], state("user999", False))
        self.assertError(self.asked(SUBSCRIBE, "bob"), ErrorCode.OVERLOADED, "bob")
        self.assertEqual(self.asked(SUBSCRIBE, "user0"), [state("user0", False)])
        self.asked(UNSUBSCRIBE, "user0")
        self.assertEqual(self.asked(SUBSCRIBE, "bob"), [state("bob", False)])
        self.alice.drop()
        self.alice = self.server.login("alice")
        self.assertEqual(self.asked(SUBSCRIBE, "user0"), [state("user0", False)])

    def test_endsWithTheConnection(self) -> None:
        """A subscription to one user ends with its connection too, and leaves those of others."""
        carol = self.server.login("carol")
        for client in (self.alice, carol):
            self.asked(SUBSCRIBE, "bob", client)
        self.alice.drop()
        self.alice = self.server.login("alice")
        self.server.login("bob")
        self.assertEqual(self.changes(), [])
        self.assertEqual(carol.received(), [state("bob", True)])


class LongListTests(SynchronousTestCase):
    """Lists that are longer than what is sent at once."""

    def setUp(self) -> None:
        self.server = MemoryServer(limits=Limits.none())
        self.names = [f"{i:04d}" + "x" * 120 for i in range(2_000)]
        self.users = [self.server.login(name) for name in self.names]
        self.alice = self.server.login("alice")

    def test_whole(self) -> None:
        """All of it comes, and its count."""
        self.alice.send(PRESENCE, "", LIST)
        self.assertEqual(self.alice.received(), [*(state(name, True) for name in self.names), end(2_000)])

    def test_unread(self) -> None:
        """Of a list that its client does not take no more waits than a few pieces; it gets the rest when it reads."""
        waiting = self.server.factory._turn
        self.alice.pauseReading()
        self.alice.send(PRESENCE, "", SUBSCRIBE)
        self.assertLess(len(self.alice.transport.other._buffer) + waiting.waiting, 3 * LISTED_AT_ONCE)
        self.alice.send(PRESENCE, "", LIST)
        self.users[-1].drop()
        self.server.advance(1)
        self.alice.resumeReading()
        received = self.alice.received()
        self.assertEqual([m.data[0] for m in received if m.type == MessageType.ERROR], [ErrorCode.OVERLOADED])
        listed = [m for m in received if m.type == PRESENCE]
        told = [m for m in listed if m.userId == self.names[-1]]
        self.assertEqual(told, [state(self.names[-1], False)])
        self.assertEqual([m for m in listed if not m.userId], [end(1_999)])

    def test_pieces(self) -> None:
        """However a list is cut into pieces, it is whole, and nothing is behind it."""
        for size in (1, 12, 100):
            self.patch(presence, "LISTED_AT_ONCE", size)
            self.alice.send(PRESENCE, "", LIST)
            self.server.advance(1)
            listed = self.alice.received()
            self.assertEqual([m.userId for m in listed], [*self.names, ""])

    def test_left(self) -> None:
        """A list ends with its connection."""
        self.alice.pauseReading()
        self.alice.send(PRESENCE, "", LIST)
        self.alice.drop()
        self.server.advance(1)
        self.assertFalse(self.server.factory._presence._listings)
