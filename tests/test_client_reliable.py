"""Texts that are not lost and not shown twice, accounts, and what waited: the client against a scripted server."""

from __future__ import annotations

import itertools
from typing import Any, cast

from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionRefusedError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder
from tests.test_client import CALL_ID, ClientTestCase, Heard, ScriptedTestCase
from wecompany.accounts import Accounts
from wecompany.client import (
    AccountRefused,
    Client,
    ClientError,
    ClientListener,
    NotConnected,
    ServerError,
    logIn,
    signUp,
)
from wecompany.client import texts as clientTexts
from wecompany.client.connection import ASK_AFTER
from wecompany.client.session import MAX_CALLS_TOLD
from wecompany.server import WeCompanyFactory
from wecompany.testing import MemoryServer, MemoryTransport
from wecompany.wire import (
    MAX_PAYLOAD,
    EndCode,
    ErrorCode,
    MessageType,
    RejectCode,
    decodeFrames,
    decodeU32,
    encodeError,
    encodeFrame,
    encodeOffset,
    encodeTag,
    encodeU32,
)

ACK = MessageType.ACK
DELAY = MessageType.DELAY
HEARTBEAT = MessageType.HEARTBEAT
LOGIN = MessageType.LOGIN
PRESENCE = MessageType.PRESENCE
TEXT = MessageType.TEXT
RESPONSE = MessageType.AUTH_RESPONSE
SESSION = b"s" * 16
OTHER = b"t" * 16


def greeting(session: bytes = SESSION, count: int | None = 0) -> bytes:
    """Return what a registration is answered with; without a count, by a server that has no store."""
    tail = b"" if count is None else encodeFrame(ACK, b"", encodeU32(count))
    return encodeFrame(HEARTBEAT, b"alice", session) + tail


def at(seconds: float) -> bytes:
    """Return a time as a DELAY says it."""
    return encodeOffset(round(seconds * 1000))


class ReliableTestCase(ScriptedTestCase):
    """Makes one client of a server with a store that does only what a test says."""

    def setUp(self) -> None:
        super().setUp()
        self.scripted.greeting = greeting()

    def acknowledge(self, count: int) -> None:
        """Let the server have so many texts in its store."""
        self.connection.send(ACK, b"", encodeU32(count))

    def answer(self, to: bytes, code: int = ErrorCode.OFFLINE) -> None:
        """Let the server answer a text with an ERROR."""
        self.connection.send(MessageType.ERROR, to, encodeError(code, TEXT, "no"))

    def comeBack(self, count: int | None, session: bytes = OTHER) -> None:
        """Lose the connection, and let the client come back to a server that counts so many texts."""
        self.scripted.greeting = greeting(session, count)
        self.server.cut()
        self.server.advance(2)

    def texts(self) -> list[bytes]:
        """Return the texts that came over the newest connection since one last asked."""
        self.server.pump()
        return [data for messageType, _, data in self.connection.taken() if messageType == TEXT]

    def registration(self) -> tuple[int, bytes]:
        """Return the count and the session ID with which the newest connection was registered."""
        messageType, _, data = self.connection.frames[0]
        self.assertEqual(messageType, ACK)
        return decodeU32(data[:4]), data[4:20]


class SendingTests(ReliableTestCase):
    def test_firesWhenStored(self) -> None:
        """sendText fires when the server acknowledges the text, one ACK for many, and in order."""
        client = self.begin()
        order: list[int] = []
        sent = [client.sendText("bob", str(n)) for n in range(4)]
        for n, result in enumerate(sent):
            result.addCallback(lambda _, number: order.append(number), n)
        self.assertEqual(self.texts(), [b"0", b"1", b"2", b"3"])
        self.acknowledge(1)
        self.assertEqual(order, [0])
        self.acknowledge(1)
        self.acknowledge(0)
        self.assertEqual(order, [0])
        self.acknowledge(4)
        self.assertEqual(order, [0, 1, 2, 3])
        for result in sent:
            self.successResultOf(result)

    def test_noBarrier(self) -> None:
        """A reliable text needs no heartbeat behind it."""
        client = self.begin()
        client.sendText("bob", "hello")
        self.server.pump()
        self.assertEqual(self.connection.frames[1:], [(TEXT, b"bob", b"hello")])
        self.acknowledge(1)

    def test_sentInTheListener(self) -> None:
        """What is sent before it is known how, when the listener is just told of the connection, is not lost."""

        class Eager(ClientListener):
            def connected(self) -> None:
                sent.append(client.sendText("bob", "first"))

        for count in (0, None):
            sent: list[Deferred[None]] = []
            self.scripted.greeting = greeting(SESSION, count)
            client = self.make("alice", Eager())
            self.settled(client.start())
            if count is not None:
                self.assertNoResult(sent[0])
                self.acknowledge(1)
            self.settled(sent[0])
            self.assertEqual(self.texts(), [b"first"])

    def test_answered(self) -> None:
        """An ERROR answers the first text that is not acknowledged, and the ones behind it keep their numbers."""
        client = self.begin()
        sent = [client.sendText(to, to) for to in ("bob", "ghost", "bob", "carol")]
        self.server.pump()
        self.acknowledge(1)
        self.settled(sent[0])
        self.answer(b"ghost")
        self.refused(sent[1], ErrorCode.OFFLINE)
        self.acknowledge(2)
        self.assertNoResult(sent[2])
        self.acknowledge(3)
        self.settled(sent[2])
        self.assertNoResult(sent[3])
        self.acknowledge(4)
        self.settled(sent[3])
        self.assertEqual(self.heard.take(), [])

    def test_answerToAnother(self) -> None:
        """An ERROR that is about another user or another type than the oldest text's answers no text."""
        client = self.begin()
        self.answer(b"bob")
        sent = client.sendText("bob", "hello")
        self.server.pump()
        self.answer(b"carol")
        self.connection.send(MessageType.ERROR, b"bob", encodeError(ErrorCode.OFFLINE, MessageType.FILE, "no"))
        self.assertNoResult(sent)
        self.assertEqual(self.heard.take(), [("error", ErrorCode.OFFLINE)] * 3)
        self.acknowledge(1)
        self.settled(sent)
        self.answer(b"bob")
        self.assertEqual(self.heard.take(), [("error", ErrorCode.OFFLINE)])

    def test_tooManyAcknowledged(self) -> None:
        """A server that acknowledges what was not sent is given up, and then counts from what was sent."""
        client = self.begin()
        sent = client.sendText("bob", "hello")
        self.server.pump()
        self.acknowledge(2)
        self.assertTrue(self.connection.isLost)
        self.assertNoResult(sent)
        self.scripted.greeting = greeting(OTHER, 99)
        self.server.advance(2)
        self.settled(sent)
        self.assertEqual(self.texts(), [])

    def test_others(self) -> None:
        """Requests other than texts are still answered behind a heartbeat of their own."""
        client = self.begin()
        self.scripted.answers = False
        listing = client.users()
        (number,) = self.asked()
        self.connection.send(MessageType.ERROR, b"", encodeError(ErrorCode.OVERLOADED, PRESENCE, "later"))
        self.assertNoResult(listing)
        self.connection.send(HEARTBEAT, b"", number)
        self.failed(listing, ServerError)

    def test_longest(self) -> None:
        """What fits into no frame fails at once, connected or not, and leaves no gap in the numbers."""
        client = self.begin()
        most = MAX_PAYLOAD - 3 - len("bob")
        self.refused(client.sendText("bob", "x" * (most + 1)), ErrorCode.BAD_REQUEST)
        self.refused(client.sendText("a/b", "x"), ErrorCode.BAD_REQUEST)
        sent = client.sendText("bob", "x" * most)
        self.assertEqual(len(self.texts()[0]), most)
        self.acknowledge(1)
        self.settled(sent)
        self.server.cut()
        self.refused(client.sendText("bob", "x" * (most + 1)), ErrorCode.BAD_REQUEST)
        self.refused(client.sendText("\ud800", "x"), ErrorCode.BAD_REQUEST)


class ResumingTests(ReliableTestCase):
    def test_resumes(self) -> None:
        """Over a new connection the client resumes its session: it drops what the server counted, sends the rest."""
        client = self.begin()
        sent = [client.sendText("bob", str(n)) for n in range(4)]
        self.server.pump()
        for n in range(3):
            self.connection.send(TEXT, b"bob", b"%d" % n)
        self.acknowledge(1)
        self.comeBack(3)
        self.assertEqual(self.registration(), (3, SESSION))
        self.assertEqual(self.texts(), [b"3"])
        for result in sent[:3]:
            self.settled(result)
        self.assertNoResult(sent[3])
        self.acknowledge(1)
        self.settled(sent[3])
        self.comeBack(1, b"u" * 16)
        self.assertEqual(self.registration(), (0, OTHER))

    def test_firstRegistration(self) -> None:
        """There is nothing to go on from at first, and the credential stands behind that."""
        client = self.make(credential=b"secret")
        self.settled(client.start())
        self.assertEqual(self.connection.frames[0], (ACK, b"alice", bytes(20) + b"secret"))

    def test_nothingBeforeTheCount(self) -> None:
        """A session that resumes another says nothing until it has the server's count; then the old texts go first."""
        client = self.begin()
        self.settled_ = client.sendText("bob", "old")
        self.settled_.addErrback(lambda _: None)
        client.watch().addErrback(lambda failure: failure.trap(ClientError))
        self.server.pump()
        self.scripted.greeting = encodeFrame(HEARTBEAT, b"alice", OTHER)
        self.server.cut()
        self.server.advance(2)
        self.assertFalse(client.isOnline)
        sent = client.sendText("bob", "new")
        self.server.advance(ASK_AFTER - 1)
        self.assertEqual(len(self.connection.frames), 1)
        self.acknowledge(0)
        self.assertTrue(client.isOnline)
        self.assertEqual(self.texts(), [b"old", b"new"])
        self.acknowledge(2)
        self.settled(sent)

    def test_lostBeforeTheCount(self) -> None:
        """A connection that is lost before the count came leaves everything as it was: the same session is resumed."""
        client = self.begin()
        sent = client.sendText("bob", "hello")
        self.server.pump()
        self.connection.send(TEXT, b"bob", b"hi")
        self.scripted.greeting = encodeFrame(HEARTBEAT, b"alice", OTHER)
        self.server.cut()
        self.server.advance(2)
        self.scripted.greeting = greeting(b"u" * 16, 1)
        self.server.cut()
        self.server.advance(4)
        self.assertEqual(self.registration(), (1, SESSION))
        self.settled(sent)
        self.assertEqual(self.texts(), [])

    def test_answeredButNotCounted(self) -> None:
        """A text that was answered with an ERROR is not sent again, be it that the server's count covers it or not."""
        for counted in (1, 2):
            self.setUp()
            client = self.begin()
            sent = [client.sendText(to, to) for to in ("bob", "ghost", "carol")]
            self.server.pump()
            self.acknowledge(1)
            self.answer(b"ghost")
            self.refused(sent[1], ErrorCode.OFFLINE)
            self.comeBack(counted)
            self.assertEqual(self.texts(), [b"carol"])
            self.acknowledge(1)
            self.settled(sent[2])

    def test_unknownSession(self) -> None:
        """A server that has forgotten the session gets again whatever it has not acknowledged."""
        client = self.begin()
        sent = [client.sendText("bob", str(n)) for n in range(3)]
        self.server.pump()
        self.acknowledge(1)
        self.comeBack(0)
        self.assertEqual(self.texts(), [b"1", b"2"])
        self.acknowledge(2)
        for result in sent:
            self.settled(result)

    def test_whileAway(self) -> None:
        """Texts that are sent while the connection is lost wait, and go behind the older ones; then they fire."""
        client = self.begin()
        old = client.sendText("bob", "old")
        self.server.pump()
        self.server.cut()
        new = client.sendText("bob", "new")
        self.assertNoResult(new)
        self.scripted.greeting = greeting(OTHER, 0)
        self.server.advance(2)
        self.assertEqual(self.texts(), [b"old", b"new"])
        self.acknowledge(2)
        self.settled(old)
        self.settled(new)

    def test_countPastWhatWasSent(self) -> None:
        """A count never covers a text that was not sent yet."""
        client = self.begin()
        self.server.cut()
        sent = client.sendText("bob", "new")
        self.scripted.greeting = greeting(OTHER, 1)
        self.server.advance(2)
        self.assertNoResult(sent)
        self.assertEqual(self.texts(), [b"new"])
        self.acknowledge(1)
        self.settled(sent)

    def test_mostTexts(self) -> None:
        """So many texts wait for a connection and no more; the connection itself takes any number."""
        self.patch(clientTexts, "MAX_WAITING", 3)
        client = self.begin()
        for n in range(2):
            client.sendText("bob", str(n))
        self.server.cut()
        third, fourth = client.sendText("bob", "2"), client.sendText("bob", "3")
        self.assertIn("wait", str(self.failed(fourth, NotConnected)))
        self.assertNoResult(third)
        self.scripted.greeting = greeting(OTHER, 0)
        self.server.advance(2)
        self.assertEqual(self.texts(), [b"0", b"1", b"2"])
        for n in range(5):
            self.assertNoResult(client.sendText("bob", str(n)))
        self.acknowledge(8)
        self.settled(third)

    def test_mostBytes(self) -> None:
        """So many bytes wait for a connection and no more, and what was acknowledged does not count."""
        frame = len(encodeFrame(TEXT, b"bob", b"x" * 100))
        self.patch(clientTexts, "MAX_WAITING_BYTES", 3 * frame)
        client = self.begin()
        client.sendText("bob", "y" * 100)
        self.acknowledge(1)
        self.server.cut()
        waiting = [client.sendText("bob", "x" * 100) for _ in range(3)]
        self.failed(client.sendText("bob", ""), NotConnected)
        for result in waiting:
            self.assertNoResult(result)
            result.addErrback(lambda failure: failure.trap(NotConnected))

    def test_beforeAndAfter(self) -> None:
        """Before the first connection, and when the client has stopped, nothing waits: it fails at once."""
        client = self.make()
        self.failed(client.sendText("bob", "?"), NotConnected)
        self.server.isDown = True
        started = client.start()
        self.failed(client.sendText("bob", "?"), NotConnected, ServerError)
        self.failed(started, ConnectionRefusedError)
        self.server.isDown = False
        client = self.begin()
        self.settled(client.stop())
        self.failed(client.sendText("bob", "?"), NotConnected)

    def test_stopped(self) -> None:
        """When the client stops, a text that is not acknowledged fails with: it is not known."""
        for stop in (Client.stop, lambda client: self.connection.refuse(ErrorCode.REPLACED, "elsewhere")):
            self.setUp()
            client = self.begin()
            sent = client.sendText("bob", "hello")
            self.server.pump()
            stop(client)
            error = self.failed(sent, NotConnected)
            self.assertIn("not known", str(error))
        self.assertEqual(cast(Any, error.__cause__).code, ErrorCode.REPLACED)

    def test_stoppedWhileAway(self) -> None:
        """What waits for a connection fails when the client stops, and is not sent when it is started again."""
        client = self.begin()
        self.server.cut()
        sent = client.sendText("bob", "hello")
        self.settled(client.stop())
        self.failed(sent, NotConnected)
        self.settled(client.start())
        self.assertEqual(self.texts(), [])

    def test_startedAgain(self) -> None:
        """A client that is started again goes on from its session, so that no text is told twice."""
        client = self.begin()
        lost = client.sendText("bob", "lost")
        self.server.pump()
        self.connection.send(TEXT, b"bob", b"hi")
        self.settled(client.stop())
        self.failed(lost, NotConnected)
        self.scripted.greeting = greeting(OTHER, 1)
        self.settled(client.start())
        self.assertEqual(self.registration(), (1, SESSION))
        sent = client.sendText("bob", "next")
        self.assertEqual(self.texts(), [b"next"])
        self.acknowledge(1)
        self.settled(sent)


class NoStoreTests(ReliableTestCase):
    def test_found(self) -> None:
        """A server that answers no ACK has no store: each text has a heartbeat of its own, as every request has."""
        self.scripted.greeting = greeting(SESSION, None)
        client = self.begin()
        sent = client.sendText("bob", "hello")
        self.server.pump()
        self.assertEqual([frame[0] for frame in self.connection.frames[1:]], [TEXT, HEARTBEAT])
        self.settled(sent)
        self.server.cut()
        self.failed(client.sendText("bob", "?"), NotConnected)

    def test_firstText(self) -> None:
        """A text that comes directly after the registration says so too, and it is told."""
        self.scripted.answers = False
        self.scripted.greeting = greeting(SESSION, None) + encodeFrame(TEXT, b"bob", b"hi")
        client = self.start("alice", self.heard)
        self.assertEqual(self.heard.take(), [("connected",), ("text", "bob", "hi")])
        sent = client.sendText("bob", "hello")
        self.scripted.answers = True
        self.server.pump()
        self.assertEqual(self.texts(), [b"hello"])
        self.assertNotIn(ACK, [frame[0] for frame in self.connection.frames[1:]])
        self.assertNoResult(sent)
        for number in (1, 2):
            self.connection.send(HEARTBEAT, b"", number.to_bytes(8, "big"))
        self.settled(sent)

    def test_whileNotKnown(self) -> None:
        """While it is not known whether there is a store texts wait, as many as one likes."""
        self.patch(clientTexts, "MAX_WAITING", 3)
        self.scripted.answers = False
        self.scripted.greeting = greeting(SESSION, None)
        client = self.start("alice", self.heard)
        sent = [client.sendText("bob", str(n)) for n in range(5)]
        self.assertEqual(self.texts(), [])
        self.acknowledge(0)
        self.assertEqual(self.texts(), [b"0", b"1", b"2", b"3", b"4"])
        self.acknowledge(5)
        for result in sent:
            self.settled(result)

    def test_noStoreAnyMore(self) -> None:
        """If the server comes back without its store, what it had not acknowledged is sent again, and answered."""
        client = self.begin()
        sent = [client.sendText("bob", str(n)) for n in range(3)]
        self.server.pump()
        self.acknowledge(1)
        self.comeBack(None)
        self.assertFalse(client.isOnline)
        self.server.advance(ASK_AFTER)
        self.assertTrue(client.isOnline)
        self.assertEqual(self.texts(), [b"1", b"2"])
        for result in sent:
            self.settled(result)

    def test_aStoreAtLast(self) -> None:
        """If the server comes back with a store, texts are reliable from then on."""
        self.scripted.greeting = greeting(SESSION, None)
        client = self.begin()
        self.comeBack(0)
        sent = client.sendText("bob", "hello")
        self.server.pump()
        self.assertNoResult(sent)
        self.acknowledge(1)
        self.settled(sent)

    def test_unasked(self) -> None:
        """An ACK of a server that has no store changes nothing."""
        self.scripted.greeting = greeting(SESSION, None)
        client = self.begin()
        self.acknowledge(7)
        self.assertTrue(client.isOnline)

    def test_tooEarly(self) -> None:
        """Nothing comes before the registration's answer: a server that sends it is given up."""
        self.scripted.greeting = encodeFrame(TEXT, b"bob", b"hi") + greeting()
        self.failed(self.make().start(), NotConnected)
        self.assertTrue(self.connection.isLost)
        self.scripted.greeting = encodeFrame(HEARTBEAT, b"alice", b"short")
        self.failed(self.make().start(), NotConnected)


class TakingTests(ReliableTestCase):
    def acknowledgements(self) -> list[int]:
        """Return what the client has acknowledged since one last asked."""
        self.server.pump()
        return [decodeU32(data) for messageType, _, data in self.connection.taken() if messageType == ACK]

    def test_oneForEachChunk(self) -> None:
        """What comes together is acknowledged once, when the listener has it; what was acknowledged is not again."""
        self.begin()
        self.connection.sendBytes(b"".join(encodeFrame(TEXT, b"bob", b"%d" % n) for n in range(5)))
        self.assertEqual(self.acknowledgements(), [5])
        self.assertEqual([event[2] for event in self.heard.take()], ["0", "1", "2", "3", "4"])
        self.connection.send(PRESENCE, b"bob", b"\1")
        self.assertEqual(self.acknowledgements(), [])
        self.connection.send(TEXT, b"", b"server")
        self.assertEqual(self.acknowledgements(), [6])

    def test_faultyListener(self) -> None:
        """A text that the listener failed over counts as taken: it would fail over it again."""

        class Faulty(ClientListener):
            def textReceived(self, fromUser: str, text: str, sentAt: float | None) -> None:
                raise ZeroDivisionError

        self.start("alice", Faulty())
        self.connection.taken()
        self.connection.send(TEXT, b"bob", b"hi")
        self.assertEqual(self.acknowledgements(), [1])
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def test_leftThere(self) -> None:
        """A client without a listener, or whose listener takes no texts, leaves them with the server."""

        class Deaf(ClientListener):
            takesTexts = False

        for listener in (None, Deaf()):
            self.scripted.greeting = greeting()
            self.start("alice", listener)
            self.connection.taken()
            self.connection.send(TEXT, b"bob", b"hi")
            self.assertEqual(self.acknowledgements(), [])
            self.comeBack(0)
            self.assertEqual(self.registration()[0], 0)

    def test_stopsInTheMiddle(self) -> None:
        """A listener that stops the client at a text has taken that text and no later one."""
        shown: list[str] = []

        class Leaving(ClientListener):
            def textReceived(self, fromUser: str, text: str, sentAt: float | None) -> None:
                shown.append(text)
                if text == "1":
                    client.stop()

        client = self.start("alice", Leaving())
        self.connection.taken()
        self.connection.sendBytes(b"".join(encodeFrame(TEXT, b"bob", b"%d" % n) for n in range(4)))
        self.assertEqual(shown, ["0", "1"])
        self.assertEqual(self.acknowledgements(), [2])

    def test_delayed(self) -> None:
        """A text that had to wait has the time at which it was sent; the next one has none."""
        self.begin()
        self.connection.send(DELAY, b"bob", at(1_700_000_000.25))
        self.connection.send(TEXT, b"bob", b"old")
        self.connection.send(TEXT, b"bob", b"new")
        self.assertEqual(self.heard.take(), [("text", "bob", "old", 1_700_000_000.25), ("text", "bob", "new")])

    def test_delayOfAnother(self) -> None:
        """A DELAY belongs to what comes next from that very user, and to nothing over another connection."""
        client = self.begin()
        self.connection.send(DELAY, b"carol", at(1))
        self.connection.send(TEXT, b"bob", b"his")
        self.connection.send(TEXT, b"carol", b"hers")
        self.connection.send(DELAY, b"bob", at(2))
        self.comeBack(0)
        self.heard.events.clear()
        self.connection.send(TEXT, b"bob", b"new")
        self.assertEqual(self.heard.take(), [("text", "bob", "new")])
        self.connection.send(DELAY, b"bob", b"short")
        self.assertFalse(client.isOnline)


class Called(Heard):
    """Keeps missed calls too."""

    def callMissed(self, caller: str, at: float) -> None:
        self.events.append(("missed", caller, at))


class MissedCallTests(ReliableTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.heard = Called()

    def missed(self, caller: bytes, callId: bytes, code: int = RejectCode.NO_ANSWER) -> None:
        """Let the server tell of a missed call."""
        self.connection.send(DELAY, caller, at(7))
        self.connection.send(MessageType.CALL_REJECT, caller, callId + bytes((code,)))

    def test_told(self) -> None:
        """A missed call is told with who called and when, and told once."""
        client = self.begin()
        for _ in range(2):
            self.missed(b"bob", CALL_ID)
        self.assertEqual(self.heard.take(), [("missed", "bob", 7.0)])
        self.assertIsNone(client.currentCall)

    def test_rang(self) -> None:
        """A call that rang here is not told as missed, in whatever way it ended."""
        client = self.begin()
        self.connection.send(MessageType.CALL_REQUEST, b"bob", CALL_ID + b"\0")
        self.connection.send(MessageType.CALL_END, b"bob", CALL_ID + bytes((EndCode.CANCELLED,)))
        self.missed(b"bob", CALL_ID)
        self.connection.send(MessageType.CALL_REQUEST, b"carol", CALL_ID[::-1] + b"\0")
        self.missed(b"carol", CALL_ID[::-1])
        self.assertEqual(self.heard.take(), [("call", "bob"), ("call", "carol")])
        self.assertIsNone(client.currentCall)
        self.assertEqual([call.outcome and call.outcome.rejected for call in self.heard.calls], [False, True])

    def test_bounded(self) -> None:
        """Of calls without end only the last ones are remembered."""
        self.begin()
        for number in range(MAX_CALLS_TOLD + 1):
            self.missed(b"bob", number.to_bytes(16, "big"))
        self.assertEqual(len(self.heard.take()), MAX_CALLS_TOLD + 1)
        self.missed(b"bob", (1).to_bytes(16, "big"))
        self.assertEqual(self.heard.take(), [])
        self.missed(b"bob", bytes(16))
        self.assertEqual(self.heard.take(), [("missed", "bob", 7.0)])

    def test_notOurs(self) -> None:
        """A missed call of somebody whom one is just calling is no answer to that; other codes are no missed calls."""
        client = self.begin()
        dialled = client.call("bob")
        self.server.pump()
        self.missed(b"bob", CALL_ID)
        self.missed(b"bob", CALL_ID[::-1], RejectCode.BUSY)
        self.assertNoResult(dialled)
        self.assertEqual(self.heard.take(), [("missed", "bob", 7.0)])
        self.connection.send(MessageType.CALL_REJECT, b"bob", CALL_ID + bytes((RejectCode.BUSY,)))
        self.failed(dialled, ClientError)


class AccountTests(ReliableTestCase):
    def test_frames(self) -> None:
        """What is asked for one's account stands on the wire as the protocol says."""
        client = self.begin()
        for asked, frame in (
            (client.logOut(), (LOGIN, b"", b"\0")),
            (client.logOut(b"token"), (LOGIN, b"", b"\0token")),
            (client.changePassword("öld", "new"), (LOGIN, b"", b"\1\0\4" + "öldnew".encode())),
            (client.block("bob"), (LOGIN, b"bob", b"\2")),
            (client.unblock("bob"), (LOGIN, b"bob", b"\3")),
            (client.blocked(), (LOGIN, b"", b"\4")),
        ):
            self.server.pump()
            self.assertEqual(self.connection.taken(), [frame])
            self.connection.send(RESPONSE, frame[1], b"\1")
            self.settled(cast("Deferred[object]", asked))

    def test_answers(self) -> None:
        """Commands are given one after the other, and fire or fail with their own answers."""
        client = self.begin()
        changed, out, blocked = client.changePassword("a", "b"), client.logOut(), client.block("bob")
        self.server.pump()
        self.assertEqual(len(self.connection.taken()), 1)
        self.connection.send(RESPONSE, b"", b"\0wrong password")
        self.assertEqual(str(self.failed(changed, AccountRefused)), "wrong password")
        self.assertNoResult(out)
        self.connection.send(RESPONSE, b"", b"\1revoked")
        self.assertIsNone(self.settled(out))
        self.assertNoResult(blocked)
        self.connection.send(RESPONSE, b"bob", b"\1")
        self.assertIsNone(self.settled(blocked))
        self.connection.send(RESPONSE, b"", b"\1nobody asked")
        self.assertTrue(client.isOnline)

    def test_error(self) -> None:
        """An ERROR about a LOGIN answers a command, if there is one."""
        client = self.begin()
        error = encodeError(ErrorCode.BAD_REQUEST, LOGIN, "there are no accounts here")
        out = client.logOut()
        self.server.pump()
        self.connection.send(MessageType.ERROR, b"", error)
        self.refused(out, ErrorCode.BAD_REQUEST)
        self.connection.send(MessageType.ERROR, b"", error)
        self.assertEqual(self.heard.take(), [("error", ErrorCode.BAD_REQUEST)])

    def test_blocked(self) -> None:
        """blocked() tells all whom one blocks; a list that is cut loses the connection."""
        client = self.begin()
        for ids in ([], ["bob"], ["bob", "爱丽丝"]):
            listed = client.blocked()
            self.connection.send(RESPONSE, b"", b"\1" + b"".join(encodeTag(user.encode()) for user in ids))
            self.assertEqual(self.settled(listed), ids)

    def test_rubbish(self) -> None:
        """A list that is cut fails; an answer that is neither yes nor no loses the connection."""
        client = self.begin()
        for data in (b"\0", b"\0\4bob"):
            listed = client.blocked()
            self.connection.send(RESPONSE, b"", b"\1" + data)
            self.failed(listed, ClientError)
        asked = client.blocked()
        self.connection.send(RESPONSE, b"", b"\2")
        self.failed(asked, NotConnected)

    def test_lost(self) -> None:
        """What is not answered when the connection is lost fails, and without a connection everything does."""
        client = self.begin()
        out, blocked = client.logOut(), client.block("bob")
        self.server.cut()
        for result in (out, blocked, client.logOut(), client.blocked()):
            self.failed(cast("Deferred[object]", result), NotConnected)

    def test_senseless(self) -> None:
        """What can be no command fails and is not sent."""
        client = self.begin()
        self.refused(client.block("a/b"), ErrorCode.BAD_REQUEST)
        self.failed(client.changePassword("x" * 1_025, "y"), ClientError)
        self.failed(client.changePassword("x", "y" * 70_000), ClientError)
        self.server.pump()
        self.assertEqual(self.connection.taken(), [])

    def test_allUsers(self) -> None:
        """allUsers() tells everybody else whom the server knows, and who of them is online."""
        client = self.begin()
        listed = client.allUsers()
        self.server.pump()
        self.assertEqual(self.connection.taken(), [(PRESENCE, b"", b"\3")])
        self.connection.send(PRESENCE, b"bob", b"\1")
        self.connection.send(PRESENCE, client.userId.encode(), b"\1")
        self.connection.send(PRESENCE, b"carol", b"\0")
        self.connection.send(PRESENCE, b"", encodeU32(3))
        self.assertEqual(self.settled(listed), [("bob", True), ("carol", False)])
        self.assertEqual(self.heard.take(), [])


class LogInTests(ReliableTestCase):
    def logIn(self, response: bytes, signsUp: bool = False) -> Deferred[bytes]:
        """Return what logging in at a server that answers so gives, when everything has happened."""
        self.scripted.greeting = response
        f = signUp if signsUp else logIn
        result = f(self.server.clock, self.server.endpoint(), "alice", "pässword", self.heard)
        self.server.pump()
        return result

    def test_token(self) -> None:
        """logIn asks for a token on a registration like any other, and leaves."""
        result = self.logIn(greeting(SESSION, 0))
        self.assertEqual(self.connection.frames[0], (ACK, b"alice", bytes(20) + "pässword".encode()))
        self.assertIn((LOGIN, b"", b"\5"), self.connection.frames)
        self.connection.send(RESPONSE, b"", b"\1token")
        self.server.pump()
        self.assertEqual(self.settled(result), b"token")
        self.assertTrue(self.connection.isLost)
        self.server.advance(60)
        self.assertEqual(len(self.scripted.connections), 1)

    def test_signUp(self) -> None:
        """signUp gets the token with its registration, and leaves."""
        result = self.logIn(encodeFrame(RESPONSE, b"alice", b"\1token") + greeting(SESSION, None), signsUp=True)
        self.assertEqual(self.connection.frames[0], (MessageType.SIGNUP, b"alice", "pässword".encode()))
        self.assertEqual(self.settled(result), b"token")
        self.assertTrue(self.connection.isLost)

    def test_wrong(self) -> None:
        """A wrong password is badCredential with the server's reason, and nothing is tried again."""
        wrong = encodeError(ErrorCode.BAD_CREDENTIAL, ACK, "wrong user or password")
        for signsUp, answer in (
            (False, encodeFrame(MessageType.ERROR, b"alice", wrong)),
            (True, encodeFrame(RESPONSE, b"alice", b"\0wrong user or password")),
        ):
            result = self.logIn(answer, signsUp)
            self.connection.transport.loseConnection()
            error = self.failed(result, ServerError)
            self.assertEqual((error.code, error.text), (ErrorCode.BAD_CREDENTIAL, "wrong user or password"))
        self.server.advance(600)
        self.assertEqual(len(self.scripted.connections), 2)

    def test_refused(self) -> None:
        """An ERROR in place of the answer fails with that."""
        result = self.logIn(encodeFrame(MessageType.ERROR, b"alice", encodeError(ErrorCode.OVERLOADED, LOGIN, "full")))
        self.connection.transport.loseConnection()
        self.refused(cast("Deferred[None]", result), ErrorCode.OVERLOADED)
        self.server.isDown = True
        self.failed(self.logIn(b""), ConnectionRefusedError)

    def test_open(self) -> None:
        """A server that runs open knows of no tokens: what it gives is empty."""
        result = self.logIn(greeting(SESSION, None))
        self.connection.send(MessageType.ERROR, b"", encodeError(ErrorCode.BAD_REQUEST, LOGIN, "no such command"))
        self.server.pump()
        self.assertEqual(self.settled(result), b"")

    def test_whatWaited(self) -> None:
        """Texts that waited are the listener's, if it takes any."""
        text = encodeFrame(DELAY, b"bob", at(5)) + encodeFrame(TEXT, b"bob", b"hi")
        result = self.logIn(greeting(SESSION, 0) + text)
        self.connection.send(RESPONSE, b"", b"\1token")
        self.server.pump()
        self.assertEqual(self.settled(result), b"token")
        self.assertEqual(self.heard.take()[-1], ("text", "bob", "hi", 5.0))

    def test_lost(self) -> None:
        """A connection that is lost before the token has come fails."""
        result = self.logIn(greeting(SESSION, 0))
        self.server.cut()
        self.failed(result, NotConnected)
        self.server.advance(60)
        self.assertEqual(len(self.scripted.connections), 1)


# -- the real server --------------------------------------------------------------------------------------------------


class StoreTestCase(ClientTestCase):
    """Makes clients of a real server in memory, with a real store."""

    def setUp(self) -> None:
        self.database = temporaryFolder(self) / "wecompany.sqlite"
        self.server = MemoryServer(self.database)
        self.addCleanup(lambda: self.server.close())

    def done(self, result: Deferred[Any]) -> Any:
        """Return what a Deferred fires with when the server has had a moment."""
        self.server.advance(1)
        return self.successResultOf(result)


class RealStoreTests(StoreTestCase):
    def test_offline(self) -> None:
        """A text to somebody who is away but known fires, and is told with its time when that one comes."""
        heard = Heard()
        bob, alice = self.start("bob", heard), self.start("alice", Heard())
        self.settled(bob.stop())
        for n in range(3):
            self.done(alice.sendText("bob", str(n)))
        ghost = alice.sendText("ghost", "?")
        self.server.advance(1)
        self.refused(ghost, ErrorCode.OFFLINE)
        heard.take()
        self.done(bob.start())
        texts = heard.take()[1:]
        self.assertEqual([event[:3] for event in texts], [("text", "alice", str(n)) for n in range(3)])
        self.assertTrue(all(len(event) == 4 for event in texts))
        self.settled(bob.stop())
        self.done(bob.start())
        self.assertEqual(heard.take(), [("connected",)])

    def test_cut(self) -> None:
        """Whatever is sent while connections break arrives once and in order, from both sides."""
        heards = {"alice": Heard(), "bob": Heard()}
        clients = {user: self.start(user, heard) for user, heard in heards.items()}
        sent = []
        for n in range(30):
            for user, other in (("alice", "bob"), ("bob", "alice")):
                sent.append(clients[user].sendText(other, str(n)))
            if n % 5 == 1:
                self.server.pump()
            if n % 3 == 0:
                self.server.cut()
            self.server.advance(0.3)
        self.server.advance(5)
        for result in sent:
            self.successResultOf(result)
        for heard in heards.values():
            shown = [event[2] for event in heard.events if event[0] == "text"]
            self.assertEqual(shown, [str(n) for n in range(30)])

    def test_restart(self) -> None:
        """A server that is restarted over the same store loses nothing and repeats nothing."""
        heard = Heard()
        alice, bob = self.start("alice", Heard()), self.start("bob", heard)
        sent = [alice.sendText("bob", str(n)) for n in range(5)]
        before = self.server
        before.close()
        self.server = MemoryServer(self.database, clock=before.clock)
        self.patch(cast(Any, alice), "_endpoint", self.server.endpoint())
        self.patch(cast(Any, bob), "_endpoint", self.server.endpoint())
        sent += [alice.sendText("bob", str(n)) for n in range(5, 8)]
        self.server.advance(10)
        for result in sent:
            self.successResultOf(result)
        self.assertEqual([event[2] for event in heard.events if event[0] == "text"], [str(n) for n in range(8)])

    def test_textsStay(self) -> None:
        """What came to a client that takes no texts comes again to the next one."""
        self.settled(self.start("bob", Heard()).stop())
        alice = self.start("alice", Heard())
        self.done(alice.sendText("bob", "hello"))
        self.done(self.start("bob").stop())
        heard = Heard()
        self.done(self.make("bob", heard).start())
        self.assertEqual([event[:3] for event in heard.events[1:]], [("text", "alice", "hello")])

    def test_missedCall(self) -> None:
        """Who was away when somebody called learns it once."""
        heard = Called()
        bob, alice = self.start("bob", heard), self.start("alice", Heard())
        self.settled(bob.stop())
        called = alice.call("bob")
        self.server.advance(1)
        self.failed(cast("Deferred[object]", called), ClientError)
        heard.take()
        self.done(bob.start())
        self.assertEqual([event[:2] for event in heard.take()], [("connected",), ("missed", "alice")])
        self.settled(bob.stop())
        self.done(bob.start())
        self.assertEqual(heard.take(), [("connected",)])

    def test_missedWhileThere(self) -> None:
        """Who let it ring knows that, and is not told again."""
        heard = Called()
        bob, alice = self.start("bob", heard), self.start("alice", Heard())
        call = self.done(alice.call("bob"))
        self.server.advance(40)
        self.assertIsNotNone(call.outcome)
        self.server.cut()
        self.server.advance(5)
        self.assertTrue(bob.isOnline)
        self.assertNotIn("missed", [event[0] for event in heard.events])

    def test_blocked(self) -> None:
        """Who is blocked gets forbidden, until that is taken back."""
        alice, bob = self.start("alice", Heard()), self.start("bob", Heard())
        self.done(bob.block("alice"))
        self.assertEqual(self.done(bob.blocked()), ["alice"])
        sent = alice.sendText("bob", "hello")
        self.server.advance(1)
        self.refused(sent, ErrorCode.FORBIDDEN)
        self.done(bob.unblock("alice"))
        self.done(alice.sendText("bob", "hello"))

    def test_allUsers(self) -> None:
        """The server knows who was here lately."""
        self.settled(self.start("bob").stop())
        self.server.advance(1)
        self.assertEqual(self.done(self.start("alice").allUsers()), [("bob", False)])


class RealAccountTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.server.close()
        self.server = server = MemoryServer(self.database)
        assert server.store is not None
        accounts = Accounts(server.store, server.clock, maybeDeferred, signup=True, wallClock=server.clock.seconds)
        server.factory.setStore(server.store, accounts)

    def getToken(self, f: Any, password: str, listener: ClientListener | None = None) -> Deferred[bytes]:
        """Return what logging in or signing up gives."""
        result: Deferred[bytes] = f(self.server.clock, self.server.endpoint(), "alice", password, listener)
        self.server.advance(10)
        return result

    def test_life(self) -> None:
        """An account is made, its token lets one in, its password is changed, and its tokens are revoked."""
        error = self.failed(self.getToken(logIn, "secret of alice"), ServerError)
        self.assertEqual(error.code, ErrorCode.BAD_CREDENTIAL)
        token = self.successResultOf(self.getToken(signUp, "secret of alice"))
        self.assertTrue(token)
        client = self.make("alice", Heard(), credential=token)
        self.done(client.start())
        wrong = client.changePassword("wrong", "a better secret")
        self.server.advance(5)
        self.failed(wrong, AccountRefused)
        self.done(client.changePassword("secret of alice", "a better secret"))
        self.settled(client.stop())
        stranger = self.make("alice", Heard(), credential=token)
        started = stranger.start()
        self.server.advance(5)
        self.refused(started, ErrorCode.BAD_CREDENTIAL)
        token = self.successResultOf(self.getToken(logIn, "a better secret"))
        client = self.make("alice", Heard(), credential=token)
        self.done(client.start())
        self.done(client.logOut(token))
        self.settled(client.stop())
        started = self.make("alice", Heard(), credential=token).start()
        self.server.advance(5)
        self.refused(started, ErrorCode.BAD_CREDENTIAL)

    def test_whatWaited(self) -> None:
        """What waits for a user goes on waiting when it logs in."""
        self.successResultOf(self.getToken(signUp, "secret of alice"))
        texts = [b"%04d" % n * 1_000 for n in range(500)]
        for text in texts:
            self.server.factory.sendMessage("alice", text)
        self.server.advance(5)
        token = self.successResultOf(self.getToken(logIn, "secret of alice"))
        heard = Heard()
        client = self.make("alice", heard, credential=token)
        self.done(client.start())
        self.server.advance(5)
        self.assertEqual([event[2] for event in heard.events if event[0] == "text"], [text.decode() for text in texts])


# -- a server with a store, cut and slow at random --------------------------------------------------------------------


class ModelSession:
    """What a server with a store knows of one session."""

    def __init__(self, first: int) -> None:
        self.first = first
        self.taken = 0
        self.resumes = b""
        self.uncounted = 0


class ModelConnection(Protocol):
    """Its end of a connection: it handles a frame, and sends a byte, only when it is told to."""

    transport: MemoryTransport

    def __init__(self, server: ModelServer) -> None:
        self._server = server
        self._unparsed = b""
        self.frames: list[tuple[int, bytes, bytes]] = []
        self.out = b""
        self.session: ModelSession | None = None
        self.sent = 0
        self.isLost = False

    def dataReceived(self, data: bytes) -> None:
        data = self._unparsed + data
        end = 0
        for messageType, userId, body, end in decodeFrames(data):
            self.frames.append((messageType, userId, body))
        self._unparsed = data[end:]

    def connectionLost(self, reason: object = None) -> None:
        self.isLost = True

    def say(self, messageType: int, userId: bytes, data: bytes) -> None:
        self.out += encodeFrame(messageType, userId, data)

    def deliver(self, size: int) -> None:
        """Let so many bytes reach the client."""
        data, self.out = self.out[:size], self.out[size:]
        self.transport.write(data)

    def handle(self, isRefused: bool, isCounted: bool) -> None:
        """Handle one frame; if it is a text, store it or refuse it, and in the latter case count it or not."""
        if not self.frames:
            return
        messageType, userId, data = self.frames.pop(0)
        server, session = self._server, self.session
        if session is None:
            self._register(messageType, data)
            return
        server.sessions.pop(session.resumes, None)
        if messageType == TEXT:
            if isRefused:
                self.say(ACK, b"", encodeU32(session.taken))
                self.say(MessageType.ERROR, userId, encodeError(ErrorCode.OFFLINE, TEXT, "no"))
                server.refused.append(int(data))
            else:
                server.stored.append(int(data))
            session.taken += 1
            session.uncounted = int(isRefused and not isCounted)
        elif messageType == ACK:
            server.check(decodeU32(data) <= self.sent)
            server.forgotten = max(server.forgotten, session.first + decodeU32(data))
        elif messageType == HEARTBEAT and data:
            self.say(HEARTBEAT, b"", data)

    def _register(self, messageType: int, data: bytes) -> None:
        server = self._server
        server.check(messageType == ACK)
        count, resumed = decodeU32(data[:4]), data[4:20]
        old = server.sessions.get(resumed)
        self.session = session = ModelSession(server.forgotten if old is None else old.first + count)
        if old is not None:
            server.sessions = {k: s for k, s in server.sessions.items() if s.resumes != resumed}
            server.forgotten = max(server.forgotten, session.first)
            session.resumes = resumed
        else:
            server.check(resumed == bytes(16))
        sessionId = next(server.ids).to_bytes(16, "big")
        server.sessions[sessionId] = session
        self.say(HEARTBEAT, b"alice", sessionId)
        self.say(ACK, b"", encodeU32(0 if old is None else old.taken - old.uncounted))
        for number in range(session.first, len(server.mail)):
            self.say(DELAY, b"bob", at(number))
            self.mail(number)

    def mail(self, number: int) -> None:
        """Send a text that is kept for this user."""
        self.sent += 1
        self.say(TEXT, b"bob", b"%d" % number)


class ModelServer(MemoryServer):
    """
    A server with a store, as the protocol has it, for one user.

    @ivar stored: the texts that it has taken, in order; C{refused} those that it answered with an ERROR.
    @ivar mail: how many texts there are for the user; those before C{forgotten} it has acknowledged.
    """

    def __init__(self) -> None:
        super().__init__()
        self.factory = cast(WeCompanyFactory, self)
        self.ids = itertools.count(1)
        self.sessions: dict[bytes, ModelSession] = {}
        self.connection: ModelConnection | None = None
        self.stored: list[int] = []
        self.refused: list[int] = []
        self.mail: list[None] = []
        self.forgotten = 0
        self.faults = 0

    def check(self, holds: bool) -> None:
        """Note that the client broke the protocol."""
        self.faults += not holds

    def buildProtocol(self, addr: IAddress) -> ModelConnection:
        """Return the server's end of one connection."""
        self.connection = ModelConnection(self)
        return self.connection


_ops = st.one_of(
    st.tuples(st.just("send"), st.integers(1, 3)),
    st.tuples(st.just("handle"), st.integers(1, 5)),
    st.tuples(st.just("refuse"), st.booleans()),
    st.just(("ack", 0)),
    st.tuples(st.just("deliver"), st.sampled_from([3, 26, 33, 60])),  # 26: a registration is answered, and no more
    st.tuples(st.just("deliver"), st.just(10_000)),
    st.tuples(st.just("mail"), st.integers(1, 3)),
    st.just(("cut", 0)),
    st.tuples(st.just("wait"), st.sampled_from([1, 3])),
)


class ModelTests(SynchronousTestCase):
    @settings(max_examples=400)
    @given(st.lists(_ops, min_size=10, max_size=70))
    def test_exactlyOnce(self, ops: list[tuple[str, int]]) -> None:
        """
        However the connection is cut and the server slow: every sendText fires once, the server stores each text at
        most once and in order, none is lost, and each text of the server's is told once and in order.
        """
        self.server = ModelServer()
        self.heard = Heard()
        self.client = Client(self.server.clock, self.server.endpoint(), "alice", self.heard, runInThread=maybeDeferred)
        self.outcomes: dict[int, list[bool]] = {}
        started = self.client.start()
        self.settle()
        self.successResultOf(started)
        for op, argument in ops:
            self.do(op, argument)
            self.server.pump()
        for _ in range(20):
            self.settle()
            self.server.advance(4)
            if self.client.isOnline and all(self.outcomes.values()) and self.server.forgotten == len(self.server.mail):
                break
        self.check()
        self.client.stop()
        self.server.advance(5)

    def do(self, op: str, argument: int) -> None:
        """Do one thing."""
        connection = self.server.connection
        assert connection is not None
        if op == "send":
            for _ in range(argument):
                self.send()
        elif op == "mail":
            for _ in range(argument):
                self.server.mail.append(None)
                if connection.session is not None:
                    connection.mail(len(self.server.mail) - 1)
        elif op == "cut":
            self.server.cut()
        elif op == "wait":
            connection.deliver(len(connection.out))  # a count that follows a registration does so at once
            self.server.advance(argument)
        elif op == "handle":
            for _ in range(argument):
                connection.handle(False, True)
        elif op == "refuse":
            connection.handle(True, bool(argument))
        elif op == "ack" and connection.session is not None:
            connection.say(ACK, b"", encodeU32(connection.session.taken))
        elif op == "deliver":
            connection.deliver(argument)

    def send(self) -> None:
        """Send the next text."""
        number = len(self.outcomes)
        fired = self.outcomes[number] = []
        self.client.sendText("bob", str(number)).addCallbacks(
            lambda _: fired.append(True), lambda failure: fired.append(bool(failure.trap(ServerError)) and False)
        )

    def settle(self) -> None:
        """Let the server do all that it has to."""
        connection = self.server.connection
        for _ in range(100):
            self.server.pump()
            if connection is None or connection.isLost or not (connection.frames or connection.out):
                break
            while connection.frames:
                connection.handle(False, True)
            self.do("ack", 0)
            connection.deliver(len(connection.out))

    def check(self) -> None:
        """Assert what must hold in the end."""
        server = self.server
        self.assertEqual(server.faults, 0)
        self.assertEqual(server.stored, sorted(set(server.stored)))
        for number, fired in self.outcomes.items():
            self.assertEqual(len(fired), 1, number)
            if fired[0]:
                self.assertTrue(number in server.stored or number in server.refused)
            else:
                self.assertIn(number, server.refused)
                self.assertNotIn(number, server.stored)
        shown = [int(cast(str, event[2])) for event in self.heard.events if event[0] == "text"]
        self.assertEqual(shown, list(range(len(server.mail))))
