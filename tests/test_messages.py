"""Texts, broadcasts, heartbeats, and what an application sends and hears."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from wecompany.interfaces import CallSession, IServerObserver
from wecompany.limits import Limits
from wecompany.protocol import ERROR_COSTS, MAX_FRAMES
from wecompany.server import ServerObserver
from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import (
    MAX_PAYLOAD,
    NO_TYPE,
    ErrorCode,
    FileOffer,
    FileOp,
    MessageType,
    WireError,
    decodeError,
    encodeFrame,
)

TEXT = MessageType.TEXT
HEARTBEAT = MessageType.HEARTBEAT
MEDIA_DATA = MessageType.MEDIA_DATA


class MessageTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer()
        self.alice, self.bob = self.server.login("alice"), self.server.login("bob")

    def assertError(self, client: FakeClient, code: ErrorCode, about: int, userId: str = "") -> None:
        """One ERROR has come and nothing else, and the connection stays."""
        (message,) = client.received()
        self.assertEqual((message.type, message.userId), (MessageType.ERROR, userId))
        self.assertEqual(decodeError(message.data)[:2], (code, about))
        self.assertTrue(decodeError(message.data)[2])
        self.assertFalse(client.ended)


class TextTests(MessageTestCase):
    def test_relayed(self) -> None:
        """A TEXT arrives from its sender with its data verbatim, and its sender gets nothing."""
        for data in (b"", b"hello", bytes(range(256)), "王".encode(), b"x" * 60_000):
            self.alice.send(TEXT, "bob", data)
            self.assertEqual(self.bob.received(), [Message(TEXT, "alice", data)])
        self.assertEqual(self.alice.received(), [])

    @given(st.lists(st.tuples(st.booleans(), st.binary(max_size=50)), max_size=20))
    def test_order(self, texts: list[tuple[bool, bytes]]) -> None:
        """Texts arrive in the order in which they were sent, for each sender and receiver."""
        server = MemoryServer()
        clients = [server.login("alice"), server.login("bob")]
        for byBob, data in texts:
            clients[byBob].send(TEXT, "carol" if not data else "alice", data)
        received = clients[0].received()
        for name in ("alice", "bob"):
            self.assertEqual(
                [m.data for m in received if m[:2] == (TEXT, name)],
                [data for byBob, data in texts if byBob == (name == "bob") and data],
            )

    def test_toOneself(self) -> None:
        """A TEXT to one's own ID is delivered to oneself."""
        self.alice.send(TEXT, "alice", b"note")
        self.assertEqual(self.alice.received(), [Message(TEXT, "alice", b"note")])

    def test_offline(self) -> None:
        """Without a store a TEXT to somebody offline is ERROR offline, whether or not that user was ever here."""
        self.bob.drop()
        for userId in ("bob", "nobody", "x" * 128):
            self.alice.send(TEXT, userId, b"hello")
            self.assertError(self.alice, ErrorCode.OFFLINE, TEXT, userId)
        self.bob = self.server.login("bob")
        self.assertEqual(self.bob.received(), [])

    def test_badUserId(self) -> None:
        """A TEXT to a bad user ID is a badRequest that names no user, and the connection stays."""
        for userId in (b"#group", b"a/b", b"\xff", b"a\n", b"a ", b"x" * 129):
            self.alice.send(TEXT, userId, b"hello")
            self.assertError(self.alice, ErrorCode.BAD_REQUEST, TEXT)

    def test_longest(self) -> None:
        """What would exceed 65,535 bytes with its sender's ID is a badRequest; what just fits is relayed."""
        carol = self.server.login("c")
        for sender, senderId, most in ((self.alice, "alice", 65_527), (carol, "c", 65_529)):
            sender.send(TEXT, "bob", b"x" * most)
            self.assertEqual(self.bob.received(), [Message(TEXT, senderId, b"x" * most)])
        self.alice.send(TEXT, "bob", b"x" * 65_528)
        self.assertError(self.alice, ErrorCode.BAD_REQUEST, TEXT, "bob")
        self.assertEqual(self.bob.received(), [])

    def test_longestUserIds(self) -> None:
        """User IDs of 128 bytes are relayed whole."""
        one, other = self.server.login("é" * 64), self.server.login("x" * 128)
        one.send(TEXT, "x" * 128, b"hello")
        self.assertEqual(other.received(), [Message(TEXT, "é" * 64, b"hello")])

    def test_types(self) -> None:
        """A type that a client does not send, or that nobody knows, is a badRequest."""
        for messageType in (8, 9, 10, 11, 13, 14, 15):
            self.alice.send(messageType, "bob", b"\0")
            self.assertError(self.alice, ErrorCode.BAD_REQUEST, messageType, "bob")
        for messageType in (16, 100, 254, 255):
            self.alice.send(messageType, "bob", b"\0")
            (error,) = self.alice.received()
            self.assertEqual((error.type, error.data[0]), (MessageType.ERROR, ErrorCode.BAD_REQUEST))
        self.assertEqual(self.bob.received(), [])

    def test_malformed(self) -> None:
        """A zero-length frame, a payload under 3 bytes and an ID past the payload are malformed, and close."""
        for i, data in enumerate((b"\0\0", b"\0\1\0", b"\0\2\0\0", b"\0\4\0\0\2b", b"\0\3\0\xff\xff")):
            client = self.server.login(f"user{i}")
            client.sendBytes(data)
            client.send(TEXT, "bob", b"too late")
            (error,) = client.received()
            self.assertEqual((error.type, error.userId, error.data[0]), (MessageType.ERROR, "", ErrorCode.MALFORMED))
            self.assertTrue(client.ended)
            self.assertNotIn(f"user{i}", self.server.factory.getOnlineUsers())
        self.assertEqual(self.bob.received(), [])

    def test_beforeMalformed(self) -> None:
        """Frames in the same piece before a malformed one have their effect."""
        self.alice.sendBytes(b"\0\6\0\0\3bob" + b"\0\0")
        self.assertEqual(self.bob.received(), [Message(TEXT, "alice", b"")])


class RunTests(MessageTestCase):
    """Frames in a row that are alike but for their data, in one chunk."""

    def send(self, *data: bytes, messageType: int = TEXT, to: bytes = b"bob") -> None:
        """Have alice send these at once."""
        self.alice.sendBytes(b"".join(encodeFrame(messageType, to, each) for each in data))

    def data(self, client: FakeClient) -> list[bytes]:
        return [message.data for message in client.received()]

    @given(st.lists(st.binary(max_size=300), min_size=2, max_size=30), st.data())
    def test_cut(self, texts: list[bytes], data: st.DataObject) -> None:
        """However a run is cut, all of it arrives, in order."""
        server = MemoryServer()
        alice, bob = server.login("alice"), server.login("bob")
        stream = b"".join(encodeFrame(TEXT, b"bob", text) for text in texts)
        cut = data.draw(st.integers(0, len(stream)))
        alice.sendBytes(stream[:cut])
        alice.sendBytes(stream[cut:])
        self.assertEqual(self.data(bob), texts)

    def test_oneWrite(self) -> None:
        """A run is one write."""
        writes: list[bytes] = []
        transport = self.bob.transport.other
        self.patch(transport, "write", writes.append)
        self.send(b"one", b"two", b"three")
        frames = [encodeFrame(TEXT, b"alice", data) for data in (b"one", b"two", b"three")]
        self.assertEqual(writes, [b"".join(frames)])

    def test_oneLength(self) -> None:
        """All of a run of texts of one length arrive, be it less than a client's share of a turn or more."""
        self.server = MemoryServer(limits=Limits().changed("text=0"))
        self.alice, self.bob = self.server.login("alice"), self.server.login("bob")
        for n in (2, MAX_FRAMES - 1, MAX_FRAMES, MAX_FRAMES + 1, 3 * MAX_FRAMES):
            texts = [b"%04d" % i for i in range(n)]
            self.send(*texts)
            self.server.advance(0.01)
            self.assertEqual(self.data(self.bob), texts)

    def test_tooLong(self) -> None:
        """One that is too long to be passed on is answered by itself; the others arrive."""
        self.alice = self.server.login("alice2")
        longest = bytes(MAX_PAYLOAD - 1 - 2 - len("alice2"))
        self.send(b"one", longest, b"two")
        self.assertEqual(self.data(self.bob), [b"one", longest, b"two"])
        self.send(b"one", longest + b"+", b"two")
        self.assertEqual(self.data(self.bob), [b"one", b"two"])
        self.assertError(self.alice, ErrorCode.BAD_REQUEST, TEXT, "bob")

    def test_offline(self) -> None:
        """A run to nobody is answered frame by frame."""
        self.send(b"one", b"two", to=b"carol")
        errors = self.alice.received()
        self.assertEqual([message.data[0] for message in errors], [ErrorCode.OFFLINE] * 2)

    def test_textRate(self) -> None:
        """Each of a run counts for the text rate: behind the first that is over it, reading pauses."""
        for burst, arrive in ((10, 10), (11, 11), (12, 11)):
            self.server = MemoryServer(limits=Limits().changed("text=1:10"))
            self.alice, self.bob = self.server.login("alice"), self.server.login("bob")
            self.send(*(b"%d" % i for i in range(burst)))
            self.assertEqual(len(self.bob.received()), arrive)
            self.server.advance(3)
            self.assertEqual(len(self.bob.received()), burst - arrive)

    def test_media(self) -> None:
        """Media of a call arrives, in order; that to anybody else is dropped and counted."""
        pieces = [b"\0%d" % i for i in range(5)]
        self.server.login("carol")
        self.send(*pieces, messageType=MEDIA_DATA)
        self.server.factory.calls.acceptCall(self.server.factory.calls.initiateCall("alice", "bob"))
        self.bob.received()
        self.send(*pieces, messageType=MEDIA_DATA)
        self.send(*pieces, messageType=MEDIA_DATA, to=b"carol")
        self.assertEqual(self.data(self.bob), pieces)
        self.assertEqual(self.server.factory.counters["media dropped: no call, or the party is away"], 10)

    def test_mediaRate(self) -> None:
        """Each of a run counts for the media rate, and what is over it is dropped."""
        self.server = MemoryServer(limits=Limits().changed("media=1:1000"))
        self.alice, self.bob = self.server.login("alice"), self.server.login("bob")
        self.server.factory.calls.acceptCall(self.server.factory.calls.initiateCall("alice", "bob"))
        self.bob.received()
        self.send(*[bytes(100)] * 12, messageType=MEDIA_DATA)
        self.assertEqual(len(self.bob.received()), 10)
        self.assertEqual(self.server.factory.counters["limits hit: media"], 2)

    def test_fault(self) -> None:
        """A fault in the server ends nothing, for one frame as for a run: it is logged, and answered once."""
        for run in ((b"one",), (b"one", b"two")):
            with self.subTest(run=run):
                self.send(b"looks at the text rate")
                self.bob.received()
                transport = self.bob.transport.other
                write = transport.write
                transport.write = lambda data: [][1]  # type: ignore[method-assign]
                self.send(*run)
                transport.write = write  # type: ignore[method-assign]
                self.assertError(self.alice, ErrorCode.INTERNAL, TEXT, "bob")
                self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)
                self.send(*run)
                self.assertEqual(self.data(self.bob), list(run))


class BroadcastTests(MessageTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer(broadcast=True)
        self.alice, self.bob, self.carol = (self.server.login(userId) for userId in ("alice", "bob", "carol"))

    def test_delivered(self) -> None:
        """A TEXT to nobody goes to every other user online, from its sender, and to nobody who is not registered."""
        stranger = self.server.connect()
        self.alice.send(TEXT, "", b"hello")
        for client in (self.bob, self.carol):
            self.assertEqual(client.received(), [Message(TEXT, "alice", b"hello")])
        self.assertEqual(self.alice.received() + stranger.received(), [])
        self.assertEqual(self.server.login("dave").received(), [])

    def test_afterOthers(self) -> None:
        """What its sender said before in the same chunk comes before it, and what it says then comes behind."""
        frames = [(b"bob", b"1"), (b"", b"2"), (b"bob", b"3")]
        self.alice.sendBytes(b"".join(encodeFrame(TEXT, to, data) for to, data in frames))
        self.assertEqual([m.data for m in self.bob.received()], [b"1", b"2", b"3"])

    def test_faultOfOne(self) -> None:
        """If one receiver cannot be written to, that is logged, and all others get it."""
        for client in (self.bob, self.carol):
            server = client.transport.other
            write = server.write
            server.write = lambda data: [][1]  # type: ignore[method-assign]
            self.server.factory.broadcastMessage("hello")
            server.write = write  # type: ignore[method-assign]
            self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)
            others = {self.alice, self.bob, self.carol} - {client}
            self.assertEqual([[m.data for m in other.received()] for other in others], [[b"hello"]] * 2)

    def test_forbidden(self) -> None:
        """It is forbidden unless the server allows it."""
        server = MemoryServer()
        alice, bob = server.login("alice"), server.login("bob")
        alice.send(TEXT, "", b"hello")
        self.assertError(alice, ErrorCode.FORBIDDEN, TEXT)
        self.assertEqual(bob.received(), [])

    def test_limit(self) -> None:
        """Each user has one a second: what comes earlier is ERROR overloaded and goes to nobody."""
        self.alice.send(TEXT, "", b"1")
        self.bob.send(TEXT, "", b"2")
        self.assertEqual([m.data for m in self.carol.received()], [b"1", b"2"])
        self.assertEqual([m.data for m in self.alice.received()], [b"2"])
        self.server.advance(0.9)
        self.alice.send(TEXT, "", b"3")
        self.assertError(self.alice, ErrorCode.OVERLOADED, TEXT)
        self.server.advance(0.1)
        self.alice.send(TEXT, "", b"4")
        self.assertEqual([m.data for m in self.carol.received()], [b"4"])

    def test_limitOutlivesConnection(self) -> None:
        """The limit is the user's, not the connection's."""
        self.alice.send(TEXT, "", b"1")
        self.alice.drop()
        self.alice = self.server.login("alice")
        self.alice.send(TEXT, "", b"2")
        self.assertError(self.alice, ErrorCode.OVERLOADED, TEXT)

    def test_longest(self) -> None:
        """One that would be too long with its sender's ID is a badRequest and costs nothing."""
        self.alice.send(TEXT, "", b"x" * 65_528)
        self.assertError(self.alice, ErrorCode.BAD_REQUEST, TEXT)
        self.alice.send(TEXT, "", b"x" * 65_527)
        self.assertEqual([len(m.data) for m in self.bob.received()], [65_527])


class HeartbeatTests(MessageTestCase):
    def test_answered(self) -> None:
        """A HEARTBEAT is answered from the server with the same data, whomever it names."""
        for userId, data in (("", b""), ("", b"\0\xff" * 100), ("alice", b""), ("bob", b"1"), ("", b"x" * 65_532)):
            self.alice.send(HEARTBEAT, userId, data)
            self.assertEqual(self.alice.received(), [Message(HEARTBEAT, "", data)])
        self.assertEqual(self.bob.received(), [])

    def test_badUserId(self) -> None:
        """A HEARTBEAT with a bad user ID is a badRequest."""
        self.alice.send(HEARTBEAT, "#group")
        self.assertError(self.alice, ErrorCode.BAD_REQUEST, HEARTBEAT)

    def test_idle(self) -> None:
        """A client that has sent nothing for 90 s is closed as idle, one that sends every 30 s stays."""
        for _ in range(2):
            self.server.advance(30)
            self.bob.send(HEARTBEAT)
        self.server.advance(29.9)
        self.assertFalse(self.alice.ended)
        self.bob.send(HEARTBEAT)
        self.server.advance(2.1)
        (error,) = self.alice.received()
        self.assertEqual((error.type, error.userId, error.data[:2]), (MessageType.ERROR, "", b"\x0c\xff"))
        self.assertTrue(self.alice.ended)
        self.assertEqual(self.server.factory.getOnlineUsers(), ["bob"])
        self.server.advance(60)
        self.assertFalse(self.bob.ended)

    def test_anyByteIsALife(self) -> None:
        """Any bytes count as sent, a part of a frame too, and the time begins anew with them."""
        self.server.advance(60)
        self.alice.sendBytes(b"\0")
        self.server.advance(89.9)
        self.assertFalse(self.alice.ended)
        self.server.advance(2.1)
        self.assertTrue(self.alice.ended)

    def test_receivingIsNoLife(self) -> None:
        """What a client gets does not keep it from being idle."""
        for _ in range(9):
            self.server.advance(10)
            self.bob.send(TEXT, "alice", b"hello")
        self.server.advance(2.1)
        self.assertEqual(self.alice.received()[-1].data[:2], b"\x0c\xff")
        self.assertTrue(self.alice.ended)

    def test_otherTimeout(self) -> None:
        """The idle time is the server's to choose."""
        server = MemoryServer(idleTimeout=2)
        alice = server.login("alice")
        server.advance(1.9)
        self.assertFalse(alice.ended)
        server.advance(0.5)
        self.assertTrue(alice.ended)


class ApplicationTests(MessageTestCase):
    def test_sendMessage(self) -> None:
        """sendMessage sends a TEXT from the server itself and returns whether the user was online."""
        send = self.server.factory.sendMessage
        self.assertIs(send("bob", b"\0\xff"), True)
        self.assertIs(send("bob", "grüß"), True)
        self.assertIs(send("nobody", b"hello"), False)
        self.assertIs(send("", b"hello"), False)
        self.assertEqual(self.bob.received(), [Message(TEXT, "", b"\0\xff"), Message(TEXT, "", "grüß".encode())])
        self.assertEqual(self.alice.received(), [])

    def test_sendMessageType(self) -> None:
        """sendMessage and broadcastMessage take a message type as an option."""
        self.server.factory.sendMessage("bob", b"\1", MessageType.FILE)
        self.server.factory.broadcastMessage(b"\2", messageType=MessageType.PRESENCE)
        self.assertEqual(
            self.bob.received(), [Message(MessageType.FILE, "", b"\1"), Message(MessageType.PRESENCE, "", b"\2")]
        )

    def test_tooLong(self) -> None:
        """What no frame can hold is a WireError, and what just fits is sent."""
        factory = self.server.factory
        self.assertTrue(factory.sendMessage("bob", b"x" * 65_532))
        self.assertEqual(factory.broadcastMessage(b"x" * 65_532), 2)
        self.assertEqual([len(m.data) for m in self.bob.received()], [65_532, 65_532])
        e = self.assertRaises(WireError, factory.sendMessage, "bob", b"x" * 65_533)
        self.assertEqual(e.code, ErrorCode.BAD_REQUEST)
        self.assertRaises(WireError, factory.broadcastMessage, b"x" * 65_533)

    def test_broadcastMessage(self) -> None:
        """broadcastMessage reaches everyone online, whatever clients may do, and returns how many they are."""
        stranger = self.server.connect()
        self.assertEqual(self.server.factory.broadcastMessage("hello"), 2)
        self.assertEqual(self.server.factory.broadcastMessage(b"again"), 2)
        for client in (self.alice, self.bob):
            self.assertEqual(client.received(), [Message(TEXT, "", b"hello"), Message(TEXT, "", b"again")])
        self.assertEqual(stranger.received(), [])
        self.assertEqual(MemoryServer().factory.broadcastMessage("hello"), 0)

    def test_getOnlineUsers(self) -> None:
        """getOnlineUsers names who is registered now, in the order in which they came."""
        self.server.connect()
        self.server.login("王")
        self.assertEqual(self.server.factory.getOnlineUsers(), ["alice", "bob", "王"])
        self.alice.drop()
        self.assertEqual(self.server.factory.getOnlineUsers(), ["bob", "王"])


@implementer(IServerObserver)
class Recorder:
    """Hears everything and notes it."""

    def __init__(self) -> None:
        self.events: list[tuple[Any, ...]] = []

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)
        return lambda *arguments: self.events.append((name, *arguments))

    def heard(self) -> list[tuple[Any, ...]]:
        events, self.events = self.events, []
        return events


@implementer(IServerObserver)
class Faulty:
    """Hears everything and fails."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):
            raise AttributeError(name)

        def fail(*arguments: object) -> None:
            raise ZeroDivisionError(name)

        return fail


class ShareTests(SynchronousTestCase):
    """How much of one client is taken at a time."""

    def test_share(self) -> None:
        """Of many frames in one chunk some are taken before others get their turn, and then the rest, in order."""
        for n in (MAX_FRAMES, 10 * MAX_FRAMES + 7):
            server = MemoryServer(limits=Limits.none())
            flood, alice, bob = server.login("flood"), server.login("alice"), server.login("bob")
            texts = [b"%05d" % i for i in range(n)]
            flood.transport.write(b"".join(encodeFrame(TEXT, b"bob", text) for text in texts))
            alice.transport.write(encodeFrame(TEXT, b"bob", b"hello"))
            received = [m.data for m in bob.received()]
            self.assertEqual(received.index(b"hello"), MAX_FRAMES)
            received.remove(b"hello")
            self.assertEqual(received, texts)

    def test_errorsCost(self) -> None:
        """A frame that is answered with an ERROR takes as much of a turn as eleven others."""
        server = MemoryServer(limits=Limits.none())
        flood, alice, bob = server.login("flood"), server.login("alice"), server.login("bob")
        pairs = (encodeFrame(200, b"") + encodeFrame(TEXT, b"bob", b"%05d" % i) for i in range(100))
        flood.transport.write(b"".join(pairs))
        alice.transport.write(encodeFrame(TEXT, b"bob", b"hello"))
        received = [m.data for m in bob.received()]
        self.assertEqual(received.index(b"hello"), MAX_FRAMES // (ERROR_COSTS + 2))
        self.assertEqual(len(received), 101)

    def test_bad(self) -> None:
        """Each of many bad frames is answered, and what follows them is taken."""
        server = MemoryServer(limits=Limits.none())
        alice = server.login("alice")
        alice.sendBytes(encodeFrame(200, b"") * (3 * MAX_FRAMES) + encodeFrame(MessageType.HEARTBEAT, b"", b"x"))
        *errors, last = alice.received()
        self.assertEqual({m.type for m in errors}, {MessageType.ERROR})
        self.assertEqual((len(errors), last), (3 * MAX_FRAMES, Message(MessageType.HEARTBEAT, "", b"x")))


class ObserverTests(MessageTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.recorder = Recorder()
        self.server.factory.addObserver(self.recorder)

    def test_comingAndGoing(self) -> None:
        """Observers hear who has come online and who has gone offline, once each."""
        carol = self.server.login("carol")
        self.assertEqual(self.recorder.heard(), [("clientConnected", "carol")])
        carol.drop()
        self.assertEqual(self.recorder.heard(), [("clientDisconnected", "carol")])
        self.server.connect().drop()
        self.server.advance(10)
        self.assertEqual(self.recorder.heard(), [])

    def test_takeover(self) -> None:
        """A takeover from another connection is not told."""
        newcomer = self.server.connect()
        newcomer.send(MessageType.ACK, "alice", bytes(4) + self.alice.sessionId)
        self.assertEqual(len(newcomer.received()), 1)
        self.server.advance(5)
        self.assertEqual(self.recorder.heard(), [])
        newcomer.drop()
        self.assertEqual(self.recorder.heard(), [("clientDisconnected", "alice")])

    def test_closedByServer(self) -> None:
        """A client that the server closes has gone offline, and that is told once."""
        self.alice.sendBytes(b"\0\0")
        self.server.advance(10)
        self.assertEqual(self.recorder.heard(), [("clientDisconnected", "alice")])

    def test_messages(self) -> None:
        """A TEXT for someone online is told, one for somebody offline is not."""
        self.alice.send(TEXT, "bob", b"hello")
        self.alice.send(TEXT, "alice", b"note")
        self.alice.send(TEXT, "nobody", b"lost")
        self.alice.send(TEXT, "", b"forbidden")
        self.assertEqual(
            self.recorder.heard(),
            [("messageReceived", "alice", "bob", TEXT, b"hello"), ("messageReceived", "alice", "alice", TEXT, b"note")],
        )

    def test_broadcast(self) -> None:
        """A broadcast is told with an empty addressee."""
        recorder = Recorder()
        server = MemoryServer(broadcast=True, observers=[recorder])
        server.login("alice").send(TEXT, "", b"hello")
        self.assertEqual(recorder.heard()[1:], [("messageReceived", "alice", "", TEXT, b"hello")])

    def test_files(self) -> None:
        """A FILE for someone online is told, one for somebody offline is not."""
        offer = bytes((FileOp.OFFER,)) + b"i" * 16 + FileOffer(1, b"h" * 32, "a.txt").encode()
        self.alice.send(MessageType.FILE, "bob", offer)
        self.alice.send(MessageType.FILE, "nobody", offer)
        self.assertEqual(self.recorder.heard(), [("messageReceived", "alice", "bob", MessageType.FILE, offer)])

    def test_calls(self) -> None:
        """The events of a call come with a snapshot of it, and with the code and text of its end."""
        self.alice.send(MessageType.CALL_REQUEST, "bob", b"\1")
        callId = self.bob.received()[0].data[:16]
        self.bob.send(MessageType.CALL_ACCEPT, "alice", callId)
        self.bob.send(MessageType.CALL_END, "alice", callId + b"\0bye")
        self.alice.send(MessageType.CALL_REQUEST, "nobody", b"\0")
        (initiated, first), (accepted, second), (ended, third, *why), (rejected, fourth, *whyNot) = (
            self.recorder.heard()
        )
        self.assertEqual(
            (initiated, accepted, ended, rejected), ("callInitiated", "callAccepted", "callEnded", "callRejected")
        )
        self.assertEqual((why, whyNot), ([0, "bye"], [2, ""]))
        self.assertEqual([s.state for s in (first, second, third, fourth)], ["ringing", "active", "ended", "ended"])
        self.assertEqual({s.callId for s in (first, second, third)}, {callId.hex()})

    def test_media(self) -> None:
        """Media goes to the other party of an active call; any other is dropped, and counted or a badRequest."""
        self.alice.send(MessageType.CALL_REQUEST, "bob", b"\0")
        callId = self.bob.received()[0].data[:16]
        self.bob.send(MessageType.CALL_ACCEPT, "alice", callId)
        self.bob.received()
        self.alice.send(MessageType.MEDIA_DATA, "bob", b"\0opus")
        self.assertEqual(self.bob.received(), [Message(MessageType.MEDIA_DATA, "alice", b"\0opus")])
        self.alice.received()
        before = sum(self.server.factory.counters.values())
        for userId in ("alice", "nobody", ""):
            self.alice.send(MessageType.MEDIA_DATA, userId, b"\0opus")
        self.assertEqual(sum(self.server.factory.counters.values()), before + 3)
        self.assertEqual(self.alice.received(), [])
        self.alice.send(MessageType.MEDIA_DATA, "a/b", b"\0opus")
        self.assertError(self.alice, ErrorCode.BAD_REQUEST, MessageType.MEDIA_DATA)

    def test_faulty(self) -> None:
        """What an observer raises is logged and harms nothing: neither the message nor the observers after it."""
        server = MemoryServer(broadcast=True, observers=[Faulty(), self.recorder])
        alice, bob = server.login("alice"), server.login("bob")
        alice.send(TEXT, "bob", b"hello")
        self.assertEqual(bob.received(), [Message(TEXT, "alice", b"hello")])
        bob.drop()
        self.assertEqual(alice.received(), [])
        self.assertFalse(alice.ended)
        events = ["clientConnected", "clientConnected", "messageReceived", "clientDisconnected"]
        self.assertEqual([event[0] for event in self.recorder.heard()], events)
        self.assertEqual([f.getErrorMessage() for f in self.flushLoggedErrors(ZeroDivisionError)], events)

    def test_removed(self) -> None:
        """An observer that was removed hears nothing more, also where it removes itself while it is told."""
        factory = self.server.factory

        class Once(ServerObserver):
            heard = 0

            def clientConnected(self, userId: str) -> None:
                self.heard += 1
                factory.removeObserver(self)

        once = Once()
        factory.removeObserver(self.recorder)
        factory.addObserver(once)
        factory.addObserver(self.recorder)
        self.server.login("carol")
        self.server.login("dave")
        self.assertEqual(once.heard, 1)
        self.assertEqual(len(self.recorder.heard()), 2)

    def test_greeting(self) -> None:
        """What an observer sends to a user who comes online follows the answer to the registration."""
        factory = self.server.factory

        class Greeter(ServerObserver):
            def clientConnected(self, userId: str) -> None:
                factory.sendMessage(userId, "welcome")

        factory.addObserver(Greeter())
        carol = self.server.login("carol")
        self.assertEqual(len(carol.sessionId), 16)
        self.assertEqual(carol.received(), [Message(TEXT, "", b"welcome")])

    def test_serverObserver(self) -> None:
        """ServerObserver provides the whole interface, and each of its methods does nothing."""
        observer = ServerObserver()
        self.assertTrue(verifyObject(IServerObserver, observer))
        session = CallSession("00" * 16, "alice", "bob", False, "ringing", 0.0)
        arguments: dict[str, tuple[Any, ...]] = {
            "clientConnected": ("alice",),
            "clientDisconnected": ("alice",),
            "messageReceived": ("alice", "bob", 0, b""),
            "callInitiated": (session,),
            "callAccepted": (session,),
            "callRejected": (session, 0, ""),
            "callEnded": (session, 0, ""),
        }
        self.assertEqual(set(arguments), set(IServerObserver.names()))
        for name, values in arguments.items():
            self.assertIsNone(getattr(observer, name)(*values))


class ErrorTests(MessageTestCase):
    def test_names(self) -> None:
        """An ERROR names the type of the frame at fault and the user ID that it carried, empty where that was bad."""
        for messageType, userId, named in (
            (TEXT, "nobody", "nobody"),
            (MessageType.GROUP, "bob", "bob"),
            (MessageType.GROUP, "", ""),
            (MessageType.GROUP, "#bob", ""),
            (MessageType.PRESENCE, "bob", "bob"),
            (MessageType.FILE, "bob", "bob"),
        ):
            self.alice.send(messageType, userId)
            (error,) = self.alice.received()
            self.assertEqual((error.type, error.userId), (MessageType.ERROR, named))
            self.assertEqual(error.data[1], messageType)
            self.assertNotEqual(error.data[1], NO_TYPE)
