"""The first frame: who one is, and who wins where two want to be the same."""

from __future__ import annotations

from twisted.internet.testing import StringTransport
from twisted.trial.unittest import SynchronousTestCase

from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import (
    NO_TYPE,
    CancelCode,
    ErrorCode,
    FileOffer,
    FileOp,
    MessageType,
    WireError,
    decodeError,
    encodeFrame,
)

HEARTBEAT = MessageType.HEARTBEAT
PROBE = Message(HEARTBEAT, "alice", b"")

NEW_SESSION = bytes(4) + bytes(16)
"""What stands before the credential in an ACK that resumes nothing."""


def refusal(client: FakeClient) -> tuple[str, int, int]:
    """Return (userId, code, type) of an ERROR, which is all that has come and the last word."""
    (message,) = client.received()
    assert message.type == MessageType.ERROR, message
    assert client.ended
    code, about, text = decodeError(message.data)
    assert text
    return message.userId, code, about


class RegistrationTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer()

    def online(self) -> list[str]:
        return self.server.factory.getOnlineUsers()

    def assertRefused(self, client: FakeClient, code: ErrorCode, about: int, userId: str = "") -> None:
        self.assertEqual(refusal(client), (userId, code, about))
        self.server.advance(5)
        self.assertFalse(client.transport.connected)

    def assertAnswers(self, client: FakeClient) -> None:
        """The client is registered, and what it says is answered."""
        client.received()
        client.send(HEARTBEAT, "", b"?")
        self.assertEqual(client.received(), [Message(HEARTBEAT, "", b"?")])


class FirstFrameTests(RegistrationTestCase):
    def test_anyType(self) -> None:
        """A first frame of any type registers, and is answered HEARTBEAT ownId with a session ID of 16 bytes."""
        for messageType in range(256):
            if messageType in (MessageType.LOGIN, MessageType.SIGNUP, MessageType.ACK):
                continue
            with self.subTest(type=messageType):
                client = self.server.connect()
                client.send(messageType, f"user{messageType}", b"whatever" if messageType else b"")
                (answer,) = client.received()
                self.assertEqual(answer[:2], (HEARTBEAT, f"user{messageType}"))
                self.assertEqual(len(answer.data), 16)
                self.assertIn(f"user{messageType}", self.online())

    def test_loginAndSignup(self) -> None:
        """LOGIN and SIGNUP get AUTH_RESPONSE ownId [1] with an empty token directly before the HEARTBEAT."""
        for messageType in (MessageType.LOGIN, MessageType.SIGNUP):
            client = self.server.connect()
            client.send(messageType, f"user{messageType}", b"password")
            response, answer = client.received()
            self.assertEqual(response, (MessageType.AUTH_RESPONSE, f"user{messageType}", b"\1"))
            self.assertEqual((answer.type, answer.userId, len(answer.data)), (HEARTBEAT, f"user{messageType}", 16))

    def test_ack(self) -> None:
        """Without a store an ACK registers as a HEARTBEAT does, be the session that it names none or unknown."""
        for i, session in enumerate((bytes(16), b"s" * 16)):
            client = self.server.connect()
            client.send(MessageType.ACK, f"user{i}", b"\0\0\0\7" + session + b"credential")
            (answer,) = client.received()
            self.assertEqual((answer.type, answer.userId, len(answer.data)), (HEARTBEAT, f"user{i}", 16))

    def test_shortAck(self) -> None:
        """A first ACK without a whole count and session ID is refused, and the connection is closed."""
        for length in (0, 4, 19):
            client = self.server.connect()
            client.send(MessageType.ACK, "alice", bytes(length))
            self.assertRefused(client, ErrorCode.MALFORMED, MessageType.ACK, "alice")
        client = self.server.connect()
        client.send(MessageType.ACK, "alice", bytes(20))
        self.assertEqual(len(client.received()), 1)
        self.assertFalse(client.ended)

    def test_sessionIds(self) -> None:
        """No two registrations get the same session ID, not even of the same user."""
        sessions = set()
        for _ in range(10):
            client = self.server.login("alice")
            sessions.add(client.sessionId)
            client.drop()
        self.assertEqual(len(sessions), 10)

    def test_nothingBefore(self) -> None:
        """Before it is registered a client gets nothing, whatever is sent to everyone."""
        client = self.server.connect()
        self.server.factory.broadcastMessage("hello")
        self.assertEqual(client.received(), [])

    def test_furtherFrames(self) -> None:
        """What comes in one piece with the first frame is taken in order after the registration."""
        client = self.server.connect()
        frames = [encodeFrame(HEARTBEAT, b"alice"), encodeFrame(HEARTBEAT, b"", b"1"), encodeFrame(0, b"alice", b"2")]
        client.sendBytes(b"".join(frames)[:-1])
        self.assertEqual([m.data for m in client.received()[1:]], [b"1"])
        client.sendBytes(b"2")
        self.assertEqual(client.received(), [Message(MessageType.TEXT, "alice", b"2")])

    def test_furtherNonsense(self) -> None:
        """A malformed frame behind the first one closes, after the registration has been answered."""
        client = self.server.connect()
        client.sendBytes(encodeFrame(HEARTBEAT, b"alice") + b"\0\0")
        answer, error = client.received()
        self.assertEqual((answer.type, len(answer.data)), (HEARTBEAT, 16))
        self.assertEqual((error.type, error.userId, error.data[:2]), (MessageType.ERROR, "", b"\1\xff"))
        self.assertEqual(self.online(), [])

    def test_noUserId(self) -> None:
        """A first frame with an empty user ID is notRegistered, and the connection is closed."""
        client = self.server.connect()
        client.send(HEARTBEAT, "")
        self.assertRefused(client, ErrorCode.NOT_REGISTERED, HEARTBEAT)

    def test_badUserId(self) -> None:
        """A bad user ID in the first frame is malformed: the ERROR names the type and no user, and closes."""
        for userId in (b"#group", b"a/b", b"\xff", b"a\n", b" a", b"x" * 129, "e\u0301".encode()):
            with self.subTest(userId=userId):
                client = self.server.connect()
                client.send(HEARTBEAT, userId)
                self.assertRefused(client, ErrorCode.MALFORMED, HEARTBEAT)

    def test_longestUserId(self) -> None:
        """A user ID of 128 bytes registers."""
        self.assertEqual(len(self.server.login("x" * 128).sessionId), 16)

    def test_noFrame(self) -> None:
        """A zero-length frame, a payload under 3 bytes and an ID past the payload are malformed, and close."""
        for data in (b"\0\0", b"\0\1", b"\0\2\7\0", b"\0\4\7\0\2a", b"\0\3\7\xff\xff"):
            with self.subTest(data=data):
                client = self.server.connect()
                client.sendBytes(data)
                userId, code, _ = refusal(client)
                self.assertEqual((userId, code), ("", ErrorCode.MALFORMED))

    def test_tooLong(self) -> None:
        """A first frame of over 2,048 bytes is malformed as soon as its length has come; one of 2,048 may go on."""
        for data in (b"\x08\x01", b"\xff\xff", b"\x08\x01" + encodeFrame(HEARTBEAT, b"alice", b"x" * 2040)[2:] + b"x"):
            client = self.server.connect()
            client.sendBytes(data[:1])
            self.assertEqual(client.received(), [])
            client.sendBytes(data[1:])
            self.assertRefused(client, ErrorCode.MALFORMED, NO_TYPE)
        client = self.server.connect()
        client.sendBytes(b"\x08\x00")
        client.sendBytes(b"\0" * 2047)
        self.assertEqual((client.received(), client.ended), ([], False))

    def test_credential(self) -> None:
        """A credential has at most 1,024 bytes: one more is too many for a first frame, which is malformed."""
        for messageType, before in ((HEARTBEAT, b""), (MessageType.ACK, NEW_SESSION)):
            client = self.server.connect()
            client.send(messageType, "alice", before + b"x" * 1025)
            self.assertRefused(client, ErrorCode.MALFORMED, messageType, "alice")
            client = self.server.connect()
            client.send(messageType, "alice", before + b"x" * 1024)
            self.assertEqual([m.type for m in client.received()], [HEARTBEAT])
            client.drop()

    def test_credentialOfLogin(self) -> None:
        """Where a LOGIN or SIGNUP fails, AUTH_RESPONSE ownId [0] with a reason stands in place of the ERROR."""
        for messageType in (MessageType.LOGIN, MessageType.SIGNUP):
            client = self.server.connect()
            client.send(messageType, "alice", b"x" * 1025)
            (message,) = client.received()
            self.assertEqual((message.type, message.userId), (MessageType.AUTH_RESPONSE, "alice"))
            self.assertEqual(message.data[:1], b"\0")
            self.assertTrue(message.data[1:].decode())
            self.assertTrue(client.ended)

    def test_inTime(self) -> None:
        """A first frame has 10 s to come: a connection that takes longer is notRegistered and closed."""
        prompt, silent, slow = self.server.connect(), self.server.connect(), self.server.connect()
        frame = encodeFrame(HEARTBEAT, b"alice")
        slow.sendBytes(frame[:-1])
        self.server.advance(9.9)
        self.assertFalse(silent.ended or slow.ended)
        prompt.send(HEARTBEAT, "bob")
        self.server.advance(2.1)
        for client in (silent, slow):
            self.assertEqual(refusal(client), ("", ErrorCode.NOT_REGISTERED, NO_TYPE))
        slow.sendBytes(frame[-1:])
        self.assertEqual(self.online(), ["bob"])
        self.assertAnswers(prompt)

    def test_refusedStaysRefused(self) -> None:
        """What a refused client sends after its first frame has no effect, and is not answered."""
        client = self.server.connect()
        client.sendBytes(encodeFrame(HEARTBEAT, b"#") + encodeFrame(HEARTBEAT, b"alice"))
        client.send(HEARTBEAT, "alice")
        self.assertEqual(refusal(client), ("", ErrorCode.MALFORMED, HEARTBEAT))
        self.assertEqual(self.online(), [])

    def test_compared(self) -> None:
        """IDs are compared byte for byte: a difference in case makes another user."""
        self.server.login("alice")
        self.server.login("Alice")
        self.assertEqual(self.online(), ["alice", "Alice"])

    def test_registersOnce(self) -> None:
        """A registered client that sends LOGIN, SIGNUP or an ACK gets a badRequest and stays who it is."""
        alice = self.server.login("alice")
        for messageType in (MessageType.LOGIN, MessageType.SIGNUP, MessageType.ACK):
            alice.send(messageType, "bob", NEW_SESSION)
            (error,) = alice.received()
            self.assertEqual((error.type, error.userId), (MessageType.ERROR, "bob"))
            self.assertEqual(decodeError(error.data)[:2], (ErrorCode.BAD_REQUEST, messageType))
        self.assertEqual(self.online(), ["alice"])


class SameIdTests(RegistrationTestCase):
    """The same ID twice, in open mode."""

    def setUp(self) -> None:
        super().setUp()
        self.old = self.server.login("alice")

    def newcomer(self, messageType: int = HEARTBEAT, data: bytes = b"") -> FakeClient:
        client = self.server.connect()
        client.send(messageType, "alice", data)
        return client

    def test_probe(self) -> None:
        """While the newcomer is held and hears nothing, the old connection is probed with HEARTBEAT ownId, no data."""
        newcomer = self.newcomer()
        self.assertEqual(self.old.received(), [PROBE])
        self.assertEqual(newcomer.received(), [])
        self.assertEqual(self.online(), ["alice"])

    def test_oldIsAlive(self) -> None:
        """If anything arrives from the old connection within 5 s the newcomer gets idInUse and is closed."""
        for sign in (encodeFrame(HEARTBEAT, b""), b"\0", encodeFrame(MessageType.TEXT, b"nobody")[:4]):
            with self.subTest(sign=sign):
                server = self.server = MemoryServer()
                old = server.login("alice")
                newcomer = self.newcomer()
                server.advance(4.9)
                self.assertFalse(newcomer.ended)
                old.sendBytes(sign)
                self.assertEqual(refusal(newcomer), ("alice", ErrorCode.ID_IN_USE, HEARTBEAT))
                server.advance(10)
                self.assertFalse(old.ended)
                self.assertEqual(self.online(), ["alice"])

    def test_oldIsDead(self) -> None:
        """If nothing arrives for 5 s the old connection gets ERROR replaced and the newcomer is registered."""
        newcomer = self.newcomer()
        self.server.advance(4.9)
        self.assertEqual(newcomer.received(), [])
        self.server.advance(0.2)
        self.assertEqual([(m.type, m.userId, len(m.data)) for m in newcomer.received()], [(HEARTBEAT, "alice", 16)])
        probe, last = self.old.received()
        self.assertEqual((probe, last.type, last.userId), (PROBE, MessageType.ERROR, ""))
        self.assertEqual(decodeError(last.data)[:2], (ErrorCode.REPLACED, NO_TYPE))
        self.assertTrue(self.old.ended)
        self.server.advance(5)
        self.assertFalse(self.old.transport.connected)
        self.assertAnswers(newcomer)

    def test_signBeforeProbe(self) -> None:
        """What came from the old connection before the probe is no answer to it."""
        self.old.send(HEARTBEAT, "")
        newcomer = self.newcomer()
        self.server.advance(5.1)
        self.assertAnswers(newcomer)

    def test_login(self) -> None:
        """A held LOGIN gets its AUTH_RESPONSE when it is decided: [0] with a reason, or [1] before the HEARTBEAT."""
        newcomer = self.newcomer(MessageType.LOGIN, b"password")
        self.assertEqual(newcomer.received(), [])
        self.old.send(HEARTBEAT, "")
        (message,) = newcomer.received()
        self.assertEqual((message.type, message.userId, message.data[:1]), (MessageType.AUTH_RESPONSE, "alice", b"\0"))
        self.assertTrue(message.data[1:])
        self.assertTrue(newcomer.ended)
        newcomer = self.newcomer(MessageType.LOGIN)
        self.server.advance(5.1)
        response, answer = newcomer.received()
        self.assertEqual(response, (MessageType.AUTH_RESPONSE, "alice", b"\1"))
        self.assertEqual((answer.type, len(answer.data)), (HEARTBEAT, 16))

    def test_secondNewcomer(self) -> None:
        """While one newcomer is held a second one gets idInUse at once, and nothing changes for the first."""
        first = self.newcomer()
        self.server.advance(3)
        self.assertEqual(refusal(self.newcomer()), ("alice", ErrorCode.ID_IN_USE, HEARTBEAT))
        self.assertEqual(self.old.received(), [PROBE])
        self.server.advance(2.1)
        self.assertAnswers(first)

    def test_newcomerLeaves(self) -> None:
        """If the held newcomer leaves nothing has happened, and the next newcomer is held for its own 5 s."""
        self.newcomer().drop()
        self.server.advance(3)
        second = self.newcomer()
        self.assertEqual(self.old.received(), [PROBE, PROBE])
        self.server.advance(4)
        self.assertFalse(self.old.ended)
        self.assertEqual(second.received(), [])
        second.drop()
        self.server.advance(10)
        self.assertAnswers(self.old)

    def test_oldLeaves(self) -> None:
        """If the old connection is lost while the newcomer is held, the newcomer is registered at once."""
        newcomer = self.newcomer()
        self.old.drop()
        self.assertEqual(self.online(), ["alice"])
        self.assertAnswers(newcomer)
        self.server.advance(10)
        self.assertAnswers(newcomer)

    def test_oldIsClosed(self) -> None:
        """If the server closes the old connection while the newcomer is held, the newcomer is registered at once."""
        self.old.pauseReading()
        newcomer = self.newcomer()
        self.server.advance(1)
        for _ in range(110):
            self.server.factory.sendMessage("alice", bytes(65_000), MessageType.FILE)
        self.assertAnswers(newcomer)
        self.assertEqual(self.online(), ["alice"])

    def test_heldFrames(self) -> None:
        """The newcomer's further frames wait while it is held, and are then taken in order."""
        bob = self.server.login("bob")
        newcomer = self.newcomer()
        for text in (b"1", b"2", b"3"):
            newcomer.send(MessageType.TEXT, "bob", text)
        self.assertEqual(bob.received(), [])
        self.server.advance(5.1)
        self.assertEqual(bob.received(), [Message(MessageType.TEXT, "alice", text) for text in (b"1", b"2", b"3")])

    def test_heldFramesOfRefused(self) -> None:
        """The further frames of a newcomer that is refused have no effect."""
        bob = self.server.login("bob")
        newcomer = self.newcomer()
        newcomer.send(MessageType.TEXT, "bob", b"hello")
        self.old.send(HEARTBEAT, "")
        self.server.advance(10)
        self.assertEqual(bob.received(), [])

    def test_heldFramesAreBounded(self) -> None:
        """At most 64 KiB of a held newcomer's further frames wait: past that it is not read until it is decided."""
        for isRegistered in (True, False):
            with self.subTest(isRegistered=isRegistered):
                server = MemoryServer()
                old = server.login("alice")
                protocol, transport = server.factory.buildProtocol(None), StringTransport(lenient=True)
                protocol.makeConnection(transport)
                protocol.dataReceived(encodeFrame(HEARTBEAT, b"alice"))
                frame = encodeFrame(HEARTBEAT, b"", b"x" * 1019)
                for _ in range(63):
                    protocol.dataReceived(frame)
                self.assertEqual(transport.producerState, "producing")
                protocol.dataReceived(frame)
                protocol.dataReceived(frame)
                self.assertEqual(transport.producerState, "paused")
                if isRegistered:
                    server.advance(5.1)
                    self.assertEqual(transport.producerState, "producing")
                    self.assertEqual(transport.value().count(b"x" * 1019), 65)
                else:
                    old.send(HEARTBEAT, "")
                    self.assertTrue(transport.disconnecting)

    def test_refusedNewcomerIsReadAgain(self) -> None:
        """A newcomer that was no longer read learns that it is refused, and is gone when it closes."""
        newcomer = self.newcomer()
        newcomer.sendBytes(encodeFrame(MessageType.TEXT, b"bob", bytes(40_000)) * 4)
        newcomer.sendBytes(encodeFrame(MessageType.TEXT, b"bob", bytes(40_000)) * 4)
        self.old.send(HEARTBEAT, "")
        self.assertEqual(refusal(newcomer), ("alice", ErrorCode.ID_IN_USE, HEARTBEAT))
        newcomer.transport.loseConnection()
        self.server.pump()
        self.assertFalse(newcomer.transport.connected)

    def test_heldMoreThanTenSeconds(self) -> None:
        """A newcomer is judged by the probe alone, not by the 10 s for the first frame."""
        newcomer = self.server.connect()
        self.server.advance(9)
        newcomer.send(HEARTBEAT, "alice")
        self.server.advance(4)
        self.assertEqual((newcomer.received(), newcomer.ended), ([], False))
        self.server.advance(1.1)
        self.assertAnswers(newcomer)

    def test_probeIsNoSilence(self) -> None:
        """A probe does not make the old connection forget when it was last heard: it has its 5 s, and is not idle."""
        self.server.advance(90.5)
        self.old.send(HEARTBEAT, "")
        newcomer = self.newcomer()
        self.server.advance(4)
        self.assertEqual((newcomer.received(), self.old.ended), ([], False))

    def test_sessionId(self) -> None:
        """A newcomer that presents the old connection's session ID takes over at once."""
        newcomer = self.newcomer(MessageType.ACK, bytes(4) + self.old.sessionId)
        (answer,) = newcomer.received()
        self.assertEqual((answer.type, answer.userId, len(answer.data)), (HEARTBEAT, "alice", 16))
        self.assertNotEqual(answer.data, self.old.sessionId)
        self.assertEqual(refusal(self.old), ("", ErrorCode.REPLACED, NO_TYPE))
        self.assertEqual(self.online(), ["alice"])

    def test_wrongSessionId(self) -> None:
        """A newcomer that presents any other session ID is held like everyone else."""
        spent = self.newcomer(MessageType.ACK, bytes(4) + self.old.sessionId)
        spent.received()
        bob = self.server.login("bob")
        for session in (bytes(16), b"x" * 16, self.old.sessionId, bob.sessionId):
            newcomer = self.newcomer(MessageType.ACK, bytes(4) + session)
            self.assertEqual(newcomer.received(), [])
            self.assertEqual(spent.received(), [PROBE])
            newcomer.drop()

    def test_sessionIdInAnotherType(self) -> None:
        """Only an ACK presents a session ID: in any other first frame it is a credential."""
        newcomer = self.newcomer(HEARTBEAT, bytes(4) + self.old.sessionId)
        self.assertEqual(newcomer.received(), [])

    def test_sessionIdWhileOneIsHeld(self) -> None:
        """The one with the session ID takes over although another newcomer is held, which gets idInUse."""
        held = self.newcomer()
        owner = self.newcomer(MessageType.ACK, bytes(4) + self.old.sessionId)
        self.assertEqual(refusal(held), ("alice", ErrorCode.ID_IN_USE, HEARTBEAT))
        self.assertAnswers(owner)
        self.server.advance(10)
        self.assertAnswers(owner)

    def test_loginHelper(self) -> None:
        """The test client's login says what it was refused for."""
        self.newcomer()
        self.assertEqual(self.assertRaises(WireError, self.server.login, "alice").code, ErrorCode.ID_IN_USE)


class StaleConnectionTests(RegistrationTestCase):
    """A replaced or dead connection never touches its successor."""

    def takeOver(self, old: FakeClient) -> FakeClient:
        newcomer = self.server.connect()
        newcomer.send(MessageType.ACK, "alice", bytes(4) + old.sessionId)
        newcomer.sessionId = newcomer.received()[0].data
        return newcomer

    def test_loss(self) -> None:
        """When the replaced connection is finally lost its successor stays online and gets what is sent to it."""
        old = self.server.login("alice")
        new = self.takeOver(old)
        old.drop()
        self.server.advance(5)
        self.assertEqual(self.online(), ["alice"])
        self.server.factory.sendMessage("alice", "hello")
        self.assertEqual(new.received(), [Message(MessageType.TEXT, "", b"hello")])

    def test_lateFrames(self) -> None:
        """What a replaced connection still sends has no effect."""
        bob = self.server.login("bob")
        old = self.server.login("alice")
        self.takeOver(old)
        old.send(MessageType.TEXT, "bob", b"too late")
        self.assertEqual(bob.received(), [])

    def test_lateSignOfLife(self) -> None:
        """A replaced connection that answers its probe too late says nothing about its successor."""
        first = self.server.login("alice")
        second = self.server.connect()
        second.send(HEARTBEAT, "alice")
        self.server.advance(5.1)
        third = self.server.connect()
        third.send(HEARTBEAT, "alice")
        first.send(HEARTBEAT, "")
        self.assertEqual((third.received(), third.ended), ([], False))
        self.server.advance(5.1)
        self.assertAnswers(third)

    def test_call(self) -> None:
        """A takeover carries a call over: the newcomer gets its frame again, and the peer notices nothing."""
        bob, old = self.server.login("bob"), self.server.login("alice")
        old.send(MessageType.CALL_REQUEST, "bob", b"\0")
        callId = bob.received()[0].data[:16]
        bob.send(MessageType.CALL_ACCEPT, "alice", callId + b"answer")
        bob.received()
        new = self.server.connect()
        new.send(MessageType.ACK, "alice", bytes(4) + old.sessionId)
        answer, acceptance = new.received()
        self.assertEqual((answer.type, len(answer.data)), (HEARTBEAT, 16))
        self.assertEqual(acceptance, Message(MessageType.CALL_ACCEPT, "bob", callId + b"answer"))
        old.drop()
        self.server.advance(20)
        self.assertEqual(bob.received(), [])
        new.send(MessageType.MEDIA_DATA, "bob", b"\0opus")
        self.assertEqual(bob.received(), [Message(MessageType.MEDIA_DATA, "alice", b"\0opus")])

    def test_files(self) -> None:
        """A takeover cancels files: the other party is told that this one was lost, and the newcomer nothing."""
        bob, old = self.server.login("bob"), self.server.login("alice")
        transferId = b"i" * 16
        old.send(MessageType.FILE, "bob", b"\0" + transferId + FileOffer(1, b"h" * 32, "a").encode())
        bob.received()
        new = self.takeOver(old)
        (cancel,) = bob.received()
        self.assertEqual((cancel.type, cancel.userId), (MessageType.FILE, "alice"))
        self.assertEqual(cancel.data[:18], bytes((FileOp.CANCEL,)) + transferId + bytes((CancelCode.PEER_LOST,)))
        self.assertEqual(new.received(), [])

    def test_chain(self) -> None:
        """Of many takeovers in a row the last connection alone is online, in whatever order the others go."""
        clients = [self.server.login("alice")]
        for _ in range(5):
            clients.append(self.takeOver(clients[-1]))
        for i in (3, 0, 4, 1, 2):
            clients[i].drop()
        self.server.advance(5)
        self.assertEqual(self.online(), ["alice"])
        self.assertAnswers(clients[-1])
