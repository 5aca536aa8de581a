"""The client library against a server in memory, and against one that does only what a test says."""

from __future__ import annotations

import itertools
import random
from typing import Any, cast

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.address import IPv4Address
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred
from twisted.internet.error import ConnectionLost, ConnectionRefusedError
from twisted.internet.interfaces import IAddress
from twisted.internet.protocol import Protocol
from twisted.trial.unittest import SynchronousTestCase

from wecompany.client import (
    Call,
    CallOutcome,
    CallRejected,
    Client,
    ClientError,
    ClientListener,
    IncomingFile,
    NotConnected,
    ServerError,
    TransferCancelled,
)
from wecompany.client import presence as clientPresence
from wecompany.client.session import BACKOFF_BASE, BACKOFF_MOST, backoff
from wecompany.server import WeCompanyFactory
from wecompany.testing import MemoryServer, MemoryTransport, Message
from wecompany.wire import (
    MAX_PAYLOAD,
    CancelCode,
    EndCode,
    ErrorCode,
    MessageType,
    RejectCode,
    decodeFrames,
    encodeError,
    encodeFrame,
    encodeU32,
)

HEARTBEAT = MessageType.HEARTBEAT
TEXT = MessageType.TEXT
PRESENCE = MessageType.PRESENCE
SESSION = b"s" * 16
CALL_ID = bytes(range(16))


class Heard(ClientListener):
    """Keeps what a client tells, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[object, ...]] = []
        self.calls: list[Call] = []
        self.files: list[IncomingFile] = []

    def take(self) -> list[tuple[object, ...]]:
        """Return what was told since one last asked."""
        events, self.events = self.events, []
        return events

    def connected(self) -> None:
        self.events.append(("connected",))

    def disconnected(self, reason: ClientError) -> None:
        self.events.append(("disconnected", type(reason)))

    def stopped(self, reason: ClientError) -> None:
        assert isinstance(reason, ServerError)
        self.events.append(("stopped", reason.code, reason.text))

    def textReceived(self, fromUser: str, text: str, sentAt: float | None) -> None:
        self.events.append(("text", fromUser, text) if sentAt is None else ("text", fromUser, text, sentAt))

    def callReceived(self, call: Call) -> None:
        self.calls.append(call)
        self.events.append(("call", call.peer))

    def fileOffered(self, file: IncomingFile) -> None:
        self.files.append(file)
        self.events.append(("offer", file.sender, file.name))

    def fileWithdrawn(self, file: IncomingFile) -> None:
        self.events.append(("withdrawn", file.sender, file.name))

    def presenceChanged(self, userId: str, isOnline: bool) -> None:
        self.events.append(("presence", userId, isOnline))

    def errorReceived(self, error: ServerError) -> None:
        self.events.append(("error", error.code))


class ScriptedConnection(Protocol):
    """
    The server's end of a connection.

    @ivar frames: what the client has sent.
    @ivar isLost: whether the connection is gone.
    """

    transport: MemoryTransport

    def __init__(self, server: ScriptedServer) -> None:
        self._server = server
        self._unparsed = b""
        self.frames: list[tuple[int, bytes, bytes]] = []
        self.isLost = False

    def dataReceived(self, data: bytes) -> None:
        data = self._unparsed + data
        end = 0
        for messageType, userId, body, end in decodeFrames(data):
            self.frames.append((messageType, userId, body))
            if len(self.frames) == 1:
                self.transport.write(self._server.greeting)
            elif messageType == HEARTBEAT and self._server.answers:
                self.transport.write(encodeFrame(HEARTBEAT, b"", body))
        self._unparsed = data[end:]

    def connectionLost(self, reason: object = None) -> None:
        self.isLost = True

    def taken(self) -> list[tuple[int, bytes, bytes]]:
        """Return the frames that came since one last asked, without those that ask whether all was handled."""
        frames, self.frames[1:] = self.frames[1:], []
        return [frame for frame in frames if frame[0] != HEARTBEAT]

    def send(self, messageType: int, userId: bytes = b"", data: bytes = b"") -> None:
        """Send one frame."""
        self.sendBytes(encodeFrame(messageType, userId, data))

    def sendBytes(self, data: bytes) -> None:
        """Send bytes, and let everything that follows from them happen."""
        self.transport.write(data)
        self._server.pump()

    def refuse(self, code: int, text: str) -> None:
        """Close with an ERROR."""
        self.transport.write(encodeFrame(MessageType.ERROR, b"", encodeError(code, 255, text)))
        self.transport.loseConnection()
        self._server.pump()


class ScriptedServer(MemoryServer):
    """
    A server that registers whoever comes, answers heartbeats, and does else only what a test says.

    @ivar greeting: what the first frame is answered with.
    @ivar answers: whether heartbeats are answered.
    """

    def __init__(self) -> None:
        super().__init__()
        self.connections: list[ScriptedConnection] = []
        self.greeting = encodeFrame(HEARTBEAT, b"alice", SESSION)
        self.answers = True
        self.factory = cast(WeCompanyFactory, self)

    def buildProtocol(self, addr: IAddress) -> ScriptedConnection:
        """Return the server's end of one connection."""
        self.connections.append(ScriptedConnection(self))
        return self.connections[-1]


class ClientTestCase(SynchronousTestCase):
    """Makes clients of a server in memory."""

    def setUp(self) -> None:
        self.server = MemoryServer(broadcast=True)

    def make(self, user: str = "alice", listener: ClientListener | None = None, **options: Any) -> Client:
        """Return a client that is not started; it stops with the test."""
        options.setdefault("runInThread", maybeDeferred)
        server = self.server
        client = Client(server.clock, server.endpoint(), user, listener, **options)

        def stop() -> None:
            server.isDown = True
            stopped = client.stop()
            server.advance(5)
            self.successResultOf(stopped)

        self.addCleanup(stop)
        return client

    def start(self, user: str = "alice", listener: ClientListener | None = None, **options: Any) -> Client:
        """Return a client that is registered."""
        client = self.make(user, listener, **options)
        started = client.start()
        self.server.pump()
        self.successResultOf(started)
        return client

    def cutOff(self, user: str) -> None:
        """Break the connection of one user."""
        connection = cast(Any, self.server.factory)._online[user.encode()]
        connection.transport.lose(ConnectionLost())
        self.server.pump()

    def settled(self, result: Deferred[Any]) -> Any:
        """Return what a Deferred fires with when everything that needs no time has happened."""
        self.server.pump()
        return self.successResultOf(result)

    def failed(self, result: Deferred[Any], *kinds: type[Exception]) -> Any:
        """Return the exception, of one of C{kinds}, that a Deferred fails with when all that needs no time is done."""
        self.server.pump()
        return self.failureResultOf(result, *kinds).value

    def refused(self, result: Deferred[Any], code: int) -> None:
        """Assert that a Deferred fails with an error of the server's, which has a text."""
        error = self.failed(result, ServerError)
        self.assertEqual(error.code, code)
        self.assertTrue(error.text)


class ScriptedTestCase(ClientTestCase):
    """Makes one client of a server that does only what a test says."""

    def setUp(self) -> None:
        self.scripted = self.server = ScriptedServer()
        self.heard = Heard()

    @property
    def connection(self) -> ScriptedConnection:
        """Return the server's end of the newest connection."""
        return self.scripted.connections[-1]

    def begin(self) -> Client:
        """Return a registered client, of which nothing has been told yet."""
        client = self.start("alice", self.heard)
        self.heard.take()
        del self.connection.frames[1:]
        return client

    def asked(self) -> list[bytes]:
        """Return what the client wants to have back from its heartbeats, each of which follows a request."""
        self.server.pump()
        return [data for messageType, _, data in self.connection.frames[1:] if messageType == HEARTBEAT and data]


class RegistrationTests(ClientTestCase):
    def test_registers(self) -> None:
        """start() fires when the user is online, and the listener is told."""
        heard = Heard()
        client = self.make("alice", heard)
        self.assertFalse(client.isOnline)
        started = client.start()
        self.assertIsNone(self.settled(started))
        self.assertTrue(client.isOnline)
        self.assertEqual(heard.events, [("connected",)])
        self.assertEqual(self.server.factory.getOnlineUsers(), ["alice"])

    def test_connectionRefused(self) -> None:
        """start() fails with what the endpoint failed with, and then nothing more is tried."""
        self.server.isDown = True
        client = self.make()
        started = client.start()
        self.failed(started, ConnectionRefusedError)
        self.server.isDown = False
        self.server.advance(600)
        self.assertEqual(self.server.factory.getOnlineUsers(), [])

    def test_badUserId(self) -> None:
        """A user ID that the server does not take is a ServerError with the server's code and text."""
        self.refused(self.make("a/b").start(), ErrorCode.MALFORMED)

    def test_idInUse(self) -> None:
        """While a live connection holds the ID, start() fails with idInUse."""
        other = self.server.login("alice")
        started = self.make().start()
        self.server.pump()
        self.assertNoResult(started)
        other.send(HEARTBEAT)
        self.refused(started, ErrorCode.ID_IN_USE)

    def test_takesOver(self) -> None:
        """A connection that gives no sign of life loses its ID to the client after 5 s."""
        other = self.server.login("alice")
        started = self.make().start()
        self.server.advance(4.9)
        self.assertNoResult(started)
        self.server.advance(0.1)
        self.settled(started)
        self.assertTrue(other.ended)

    def test_startAgain(self) -> None:
        """A client can be started again after it has failed to start, and after it was stopped."""
        client = self.make()
        self.server.isDown = True
        self.failed(client.start(), ConnectionRefusedError)
        self.server.isDown = False
        self.settled(client.start())
        self.settled(client.stop())
        self.assertFalse(client.isOnline)
        self.settled(client.start())
        self.assertTrue(client.isOnline)

    def test_stop(self) -> None:
        """stop() ends the connection for good and leaves no timer of the client's."""
        heard = Heard()
        client = self.start("alice", heard)
        heard.take()
        self.settled(client.stop())
        self.server.advance(600)
        self.assertEqual(self.server.factory.getOnlineUsers(), [])
        self.assertEqual(heard.events, [])
        self.assertEqual(self.server.clock.getDelayedCalls(), [])
        self.settled(client.stop())

    def test_stopAtOnce(self) -> None:
        """A client may be stopped as soon as it is told that it is connected, be it by start() or by the listener."""
        client = self.make()
        self.settled(client.start().addCallback(lambda _: client.stop()))
        self.assertFalse(client.isOnline)

        class Leaving(ClientListener):
            def connected(self) -> None:
                leaving.stop()

        leaving = self.make("bob", Leaving())
        leaving.start().addErrback(lambda failure: failure.trap(ClientError))
        self.server.advance(60)
        self.assertFalse(leaving.isOnline)
        self.assertEqual(self.server.factory.getOnlineUsers(), [])

    def test_startTwice(self) -> None:
        """A client that has been started is not started again: that fails, and the connection stays the only one."""
        client = self.start()
        self.failed(client.start(), ClientError)
        self.server.advance(60)
        self.assertTrue(client.isOnline)
        self.settled(client.sendText("alice", "here"))

    def test_faultyListener(self) -> None:
        """A listener's fault is logged and does not keep the client from coming back, nor from stopping."""

        class Faulty(ClientListener):
            def connected(self) -> None:
                raise ZeroDivisionError

            def disconnected(self, reason: ClientError) -> None:
                raise ZeroDivisionError

        client = self.make(listener=Faulty())
        self.settled(client.start())
        self.server.cut()
        self.server.advance(2)
        self.assertTrue(client.isOnline)
        self.settled(client.stop())
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 3)

    def test_startCancelled(self) -> None:
        """A start() that is cancelled stops the client."""
        self.server.login("alice")
        client = self.make()
        started = client.start()
        self.server.pump()
        started.cancel()
        self.failed(started, CancelledError)
        self.server.advance(100)
        self.assertFalse(client.isOnline)

    def test_stopWhileStarting(self) -> None:
        """If a client is stopped while it registers, start() fails with a ClientError, and nothing more is tried."""
        self.server.login("alice")
        client = self.make()
        started = client.start()
        self.server.pump()
        self.settled(client.stop())
        self.failed(started, ClientError)
        self.server.advance(60)
        self.assertFalse(client.isOnline)

    def test_whenOnline(self) -> None:
        """whenOnline() fires now if there is a connection, else with the next one, and fails when the client stops."""
        client = self.start()
        self.successResultOf(client.whenOnline())
        self.server.cut()
        back = client.whenOnline()
        self.assertNoResult(back)
        self.server.advance(2)
        self.successResultOf(back)
        self.server.isDown = True
        self.server.cut()
        never = client.whenOnline()
        self.settled(client.stop())
        self.failed(never, NotConnected)
        self.failed(client.whenOnline(), NotConnected)

    def test_noListener(self) -> None:
        """A client without a listener takes whatever comes."""
        alice, bob = self.start("alice"), self.start("bob")
        self.settled(alice.watch())
        self.settled(bob.sendText("alice", "hello"))
        self.settled(bob.call("alice"))
        self.server.cut()
        self.server.advance(2)
        self.assertTrue(alice.isOnline)


class ScriptedRegistrationTests(ScriptedTestCase):
    def test_firstFrame(self) -> None:
        """The first frame is an ACK with the own ID, no session to go on from, and the credential."""
        client = self.make(credential=b"secret")
        self.settled(client.start())
        self.assertEqual(self.connection.frames[0], (MessageType.ACK, b"alice", bytes(20) + b"secret"))

    def test_refusals(self) -> None:
        """Whatever the first registration is refused with is start()'s failure, and the client comes back no more."""
        for code in (*ErrorCode, 99):
            self.scripted.greeting = encodeFrame(MessageType.ERROR, b"alice", encodeError(code, 7, "no"))
            heard = Heard()
            started = self.make("alice", heard).start()
            self.server.pump()
            self.connection.transport.loseConnection()
            error = self.failed(started, ServerError)
            self.assertEqual((error.code, error.text), (code, "no"))
            self.assertEqual(heard.events, [])
            before = len(self.scripted.connections)
            self.server.advance(600)
            self.assertEqual(len(self.scripted.connections), before)

    def test_noAnswer(self) -> None:
        """A server that does not answer the registration is given up after 30 s."""
        self.scripted.greeting = b""
        started = self.make().start()
        self.server.advance(29.9)
        self.assertNoResult(started)
        self.server.advance(0.1)
        self.failed(started, NotConnected)
        self.assertTrue(self.connection.isLost)


class BackoffTests(SynchronousTestCase):
    @given(st.integers(1, 10_000))
    def test_bounds(self, attempt: int) -> None:
        """The wait doubles from 2 s up to 60 s, and chance takes at most half of it away."""
        most = min(60.0, 2.0**attempt) if attempt < 100 else 60.0
        self.assertTrue(most / 2 <= backoff(attempt) <= most)

    def test_jitter(self) -> None:
        """Two clients that lost the same server do not come back at the same moment."""
        self.assertEqual((BACKOFF_BASE, BACKOFF_MOST), (2.0, 60.0))
        self.assertGreater(len({backoff(3) for _ in range(20)}), 10)


class ReconnectTests(ScriptedTestCase):
    def attempts(self, chance: float, until: float) -> list[float]:
        """Return the seconds between the tries to connect to a server that is down, which then comes up."""
        self.patch(random, "uniform", lambda low, high: low + (high - low) * chance)
        times: list[float] = []
        endpoint = self.server.endpoint()
        connect = endpoint.connect

        def noted(factory: Any) -> Any:
            times.append(self.server.clock.seconds())
            return connect(factory)

        self.patch(endpoint, "connect", noted)
        self.patch(self.server, "endpoint", lambda: endpoint)
        self.begin()
        self.server.isDown = True
        self.server.cut()
        self.server.advance(until)
        self.server.isDown = False
        self.server.advance(60)
        self.server.cut()
        self.server.advance(2)
        return [after - before for before, after in itertools.pairwise(times)]

    def test_waitsDouble(self) -> None:
        """Without luck the waits are 2, 4, 8, ... s and never more than 60, and after a success 2 again."""
        waits = self.attempts(1, until=183)
        self.assertEqual([round(wait, 6) for wait in waits[:7]], [2, 4, 8, 16, 32, 60, 60])
        self.assertLess(waits[-1], 60.1)
        self.assertEqual(self.server.clock.seconds(), 183 + 60 + 2)
        self.assertTrue(self.heard.take()[-1] == ("connected",))

    def test_waitsAreHalvedAtBest(self) -> None:
        """With all luck the waits are half as long."""
        self.assertEqual(self.attempts(0, until=60)[:6], [1, 2, 4, 8, 16, 30])

    def test_tells(self) -> None:
        """A lost connection and its return are told, once each."""
        client = self.begin()
        self.server.cut()
        self.assertEqual(self.heard.take(), [("disconnected", NotConnected)])
        self.assertFalse(client.isOnline)
        self.server.advance(2)
        self.assertEqual(self.heard.take(), [("connected",)])
        self.assertTrue(client.isOnline)

    def test_comesBackAfter(self) -> None:
        """After an error that closes the connection and is not about the user, the client comes back by itself."""
        self.begin()
        for code in (
            ErrorCode.MALFORMED,
            ErrorCode.NOT_REGISTERED,
            ErrorCode.SHUTTING_DOWN,
            ErrorCode.IDLE,
            ErrorCode.TOO_SLOW,
        ):
            self.connection.refuse(code, "go")
            self.assertEqual(self.heard.take(), [("disconnected", ServerError)])
            self.server.advance(2)
            self.assertEqual(self.heard.take(), [("connected",)])

    def test_replaced(self) -> None:
        """After replaced the client stops, says so, and does not come back by itself."""
        client = self.begin()
        self.connection.refuse(ErrorCode.REPLACED, "elsewhere")
        self.assertEqual(
            self.heard.take(), [("disconnected", ServerError), ("stopped", ErrorCode.REPLACED, "elsewhere")]
        )
        self.server.advance(600)
        self.assertEqual(len(self.scripted.connections), 1)
        error = self.failed(client.sendText("bob", "?"), ServerError)
        self.assertEqual(error.code, ErrorCode.REPLACED)

    def test_refusedOnReturn(self) -> None:
        """A client that is refused for good when it comes back stops, says so, and tries no more."""
        for code in (ErrorCode.BAD_CREDENTIAL, ErrorCode.ID_IN_USE, ErrorCode.FORBIDDEN, ErrorCode.REPLACED):
            self.scripted = self.server = ScriptedServer()
            client = self.begin()
            waiting = client.whenOnline
            self.server.cut()
            online = waiting()
            self.heard.take()
            self.scripted.greeting = encodeFrame(MessageType.ERROR, b"alice", encodeError(code, 7, "no"))
            self.server.advance(3)
            self.connection.transport.loseConnection()
            self.server.pump()
            self.assertEqual(self.heard.take(), [("stopped", code, "no")])
            self.server.advance(600)
            self.assertEqual(len(self.scripted.connections), 2)
            self.assertEqual(self.failed(online, ServerError).code, code)

    def test_overloadedOnReturn(self) -> None:
        """A server that is only full when the client comes back is tried again."""
        client = self.begin()
        greeting = self.scripted.greeting
        self.server.cut()
        self.scripted.greeting = encodeFrame(MessageType.ERROR, b"alice", encodeError(ErrorCode.OVERLOADED, 7, "full"))
        self.server.advance(2)
        self.connection.transport.loseConnection()
        self.server.pump()
        self.assertFalse(client.isOnline)
        self.scripted.greeting = greeting
        self.server.advance(4)
        self.assertTrue(client.isOnline)


class SignsOfLifeTests(ScriptedTestCase):
    def test_heartbeats(self) -> None:
        """A client sends a heartbeat every 30 s."""
        self.begin()
        self.server.advance(29.9)
        self.assertEqual(self.connection.frames[1:], [])
        self.server.advance(0.1)
        self.assertEqual(self.connection.frames[1:], [(HEARTBEAT, b"", b"")])
        self.server.advance(60)
        self.assertEqual(len(self.connection.frames), 4)

    def test_deadServer(self) -> None:
        """A server that leaves two heartbeats unanswered is given up, and then tried again."""
        client = self.begin()
        self.scripted.answers = False
        self.server.advance(75)
        self.assertTrue(client.isOnline)
        self.server.advance(15)
        self.assertFalse(client.isOnline)
        self.assertEqual(self.heard.take(), [("disconnected", NotConnected)])
        self.server.advance(2)
        self.assertTrue(client.isOnline)

    def test_anyByteCounts(self) -> None:
        """Whatever comes shows that the server lives, even less than a frame."""
        client = self.begin()
        self.scripted.answers = False
        self.server.advance(20)
        self.connection.sendBytes(b"\0")
        self.server.advance(94.9 - 20)
        self.assertTrue(client.isOnline)
        self.server.advance(120 - 94.9)
        self.assertFalse(client.isOnline)

    def test_probe(self) -> None:
        """The server's probe is answered with a frame, and nothing else is."""
        self.begin()
        self.connection.send(HEARTBEAT, b"", b"an answer to nobody")
        self.assertEqual(self.connection.frames[1:], [])
        self.connection.send(HEARTBEAT, b"alice")
        self.assertEqual(len(self.connection.frames[1:]), 1)


class ProbeTests(ClientTestCase):
    def test_keepsItsId(self) -> None:
        """A client that lives keeps its ID: a newcomer with the same one is refused at once."""
        heard = Heard()
        client = self.start("alice", heard)
        with self.assertRaises(Exception) as raised:
            self.server.login("alice")
        self.assertEqual(cast(Any, raised.exception).code, ErrorCode.ID_IN_USE)
        self.settled(client.sendText("alice", "still me"))
        self.assertEqual(heard.events[1:], [("text", "alice", "still me")])

    def test_idleTime(self) -> None:
        """A client that has nothing to say is not closed for idleness."""
        client = self.start()
        self.server.advance(1_000)
        self.assertTrue(client.isOnline)


class TextTests(ClientTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.heard = Heard()
        self.alice = self.start("alice", self.heard)
        self.heard.take()

    def test_text(self) -> None:
        """sendText fires when the text was passed on, and the other side is told it as it was written."""
        bob = Heard()
        self.start("bob", bob)
        for text in ("hello", "", "再见 \N{WAVING HAND SIGN}\n\0"):
            self.assertIsNone(self.settled(self.alice.sendText("bob", text)))
            self.assertEqual(bob.take()[-1], ("text", "alice", text))

    def test_offline(self) -> None:
        """A text to somebody who is not online fails with offline, and the connection stays."""
        self.refused(self.alice.sendText("nobody", "hello"), ErrorCode.OFFLINE)
        self.assertEqual(self.heard.events, [])

    def test_eachItsOwnAnswer(self) -> None:
        """Of several texts sent at once each has its own answer."""
        bob = self.server.login("bob")
        results = [self.alice.sendText(to, to) for to in ("bob", "ghost", "bob", "a/b", "ghost", "bob")]
        self.server.pump()
        codes: list[int | None] = []
        for result in results:
            result.addCallbacks(lambda _: codes.append(None), lambda failure: codes.append(failure.value.code))
        self.assertEqual(codes, [None, ErrorCode.OFFLINE, None, ErrorCode.BAD_REQUEST, ErrorCode.OFFLINE, None])
        self.assertEqual(bob.received(), [Message(TEXT, "alice", b"bob")] * 3)

    def test_longest(self) -> None:
        """The longest text that fits with the sender's ID goes through; a longer one is a badRequest."""
        bob = self.server.login("bob")
        most = MAX_PAYLOAD - 3 - len("alice")
        self.settled(self.alice.sendText("bob", "x" * most))
        self.assertEqual(len(bob.received()[0].data), most)
        for length in (most + 1, MAX_PAYLOAD - 3 - len("bob"), MAX_PAYLOAD - 2 - len("bob"), 1_000_000):
            self.refused(self.alice.sendText("bob", "x" * length), ErrorCode.BAD_REQUEST)
        self.assertTrue(self.alice.isOnline)

    def test_unsendable(self) -> None:
        """What can be no frame fails through the Deferred, as all else that goes wrong does."""
        for to, text in (("x" * 100_000, ""), ("\ud800", ""), ("bob", "\ud800")):
            self.failed(self.alice.sendText(to, text), ClientError)

    def test_askedAgainWhenLost(self) -> None:
        """Who asks again as soon as the loss is known learns that there is no connection."""
        again: list[Deferred[None]] = []
        sent = self.alice.sendText("bob", "1")
        sent.addErrback(lambda failure: again.append(self.alice.sendText("bob", "2")))
        cast(Any, self.server)._ends[-1].lose(ConnectionLost())
        self.server.pump()
        self.failed(again[0], NotConnected)

    def test_notConnected(self) -> None:
        """Without a connection a text fails with NotConnected, and so does one whose answer did not come in time."""
        sent = self.alice.sendText("alice", "?")
        self.server.isDown = True
        cast(Any, self.server)._ends[-1].lose(ConnectionLost())
        self.failed(sent, NotConnected)
        self.failed(self.alice.sendText("alice", "?"), NotConnected)
        self.settled(self.alice.stop())
        self.failed(self.alice.sendText("alice", "?"), NotConnected)
        self.failed(self.make("carol").sendText("alice", "?"), NotConnected)

    def test_broadcast(self) -> None:
        """A text to the empty ID goes to everyone else online, and not more than one in a second."""
        bob, carol = Heard(), Heard()
        self.start("bob", bob)
        self.start("carol", carol)
        self.heard.take()
        self.settled(self.alice.sendText("", "all"))
        for heard in (bob, carol):
            self.assertEqual(heard.events[-1], ("text", "alice", "all"))
        self.assertEqual(self.heard.events, [])
        self.refused(self.alice.sendText("", "again"), ErrorCode.OVERLOADED)

    def test_broadcastForbidden(self) -> None:
        """Where the server allows no broadcast it fails with forbidden, and the connection stays."""
        self.server = MemoryServer()
        client = self.start()
        self.refused(client.sendText("", "all"), ErrorCode.FORBIDDEN)
        self.settled(client.sendText("alice", "here"))

    def test_fromTheServer(self) -> None:
        """What the server itself says comes from the empty ID, and bytes that are no UTF-8 do no harm."""
        self.server.factory.sendMessage("alice", b"maintenance \xff")
        self.server.pump()
        self.assertEqual(self.heard.events, [("text", "", "maintenance \ufffd")])


class PresenceTests(ClientTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.heard = Heard()
        self.alice = self.start("alice", self.heard)
        self.heard.take()

    def test_users(self) -> None:
        """users() tells the others online, and nothing is told of them later."""
        self.assertEqual(self.settled(self.alice.users()), [])
        bob = self.server.login("bob")
        self.server.login("carol")
        self.assertEqual(self.settled(self.alice.users()), ["bob", "carol"])
        bob.drop()
        self.server.advance(1)
        self.assertEqual(self.heard.events, [])

    def test_watch(self) -> None:
        """watch() tells who is there, and then who comes and goes."""
        bob = self.server.login("bob")
        self.assertEqual(self.settled(self.alice.watch()), ["bob"])
        self.server.login("carol")
        self.server.advance(1)
        bob.drop()
        self.server.advance(1)
        self.assertEqual(self.heard.events, [("presence", "carol", True), ("presence", "bob", False)])

    def test_watchGoesOn(self) -> None:
        """Over a new connection it goes on, without being asked for."""
        self.settled(self.alice.watch())
        self.server.cut()
        self.server.advance(2)
        self.server.login("bob")
        self.server.advance(1)
        self.assertEqual(self.heard.take()[-1], ("presence", "bob", True))

    def test_changesWhileAway(self) -> None:
        """Who came and went while there was no connection is told when there is one again."""
        for name in ("bob", "carol"):
            self.server.login(name)
        self.assertEqual(self.settled(self.alice.watch()), ["bob", "carol"])
        self.server.cut()
        self.server.login("bob")
        self.server.login("dave")
        self.heard.take()
        self.server.advance(3)
        told = [event for event in self.heard.take() if event[0] == "presence"]
        self.assertEqual(sorted(told), [("presence", "carol", False), ("presence", "dave", True)])

    def test_oneListAtATime(self) -> None:
        """While a list is on its way another one is refused, and the first one still comes."""
        first = self.alice.users()
        self.failed(self.alice.watch(), ClientError)
        self.assertEqual(self.settled(first), [])

    def test_tooMany(self) -> None:
        """Past the server's limit of lists it fails with overloaded, and works again later."""
        for _ in range(6):
            self.settled(self.alice.users())
        self.refused(self.alice.users(), ErrorCode.OVERLOADED)
        self.server.advance(60)
        self.settled(self.alice.users())

    def test_lost(self) -> None:
        """A list that the connection is lost over fails with NotConnected, and can be asked for on the next one."""
        listing = self.alice.users()
        self.server.cut()
        self.failed(listing, NotConnected)
        self.failed(self.alice.users(), NotConnected)
        self.server.advance(2)
        self.assertEqual(self.settled(self.alice.users()), [])

    def test_watchRefusedOnReturn(self) -> None:
        """If the server refuses the subscription of a new connection, that is logged and harms nothing."""
        self.settled(self.alice.watch())
        for _ in range(7):
            self.cutOff("alice")
            self.server.advance(2)
        self.settled(self.alice.sendText("alice", "here"))


class ScriptedPresenceTests(ScriptedTestCase):
    def test_changesBeforeTheList(self) -> None:
        """What the server tells before a list is a change; only as many users as the list counts are the list."""
        client = self.begin()
        listing = client.watch()
        for name, state in ((b"dave", b"\0"), (b"carol", b"\1"), (b"bob", b"\1")):
            self.connection.send(PRESENCE, name, state)
        self.connection.send(PRESENCE, b"", encodeU32(1))
        self.assertEqual(self.settled(listing), ["bob"])
        self.assertEqual(self.heard.take(), [("presence", "dave", False), ("presence", "carol", True)])

    def test_unasked(self) -> None:
        """The end of a list that nobody asked for is ignored."""
        client = self.begin()
        self.connection.send(PRESENCE, b"", encodeU32(0))
        self.assertTrue(client.isOnline)
        self.assertEqual(self.heard.take(), [])

    def test_bounded(self) -> None:
        """A list without end does not grow the client."""
        self.patch(clientPresence, "MAX_LISTED", 3)
        client = self.begin()
        listing = client.users()
        for number in range(10):
            self.connection.send(PRESENCE, b"user%d" % number, b"\1")
        self.connection.send(PRESENCE, b"", encodeU32(10))
        self.assertEqual(self.settled(listing), ["user0", "user1", "user2"])


class CallTests(ClientTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.aliceHeard, self.bobHeard = Heard(), Heard()
        self.alice = self.start("alice", self.aliceHeard)
        self.bob = self.start("bob", self.bobHeard)

    def ring(self, isVideo: bool = False, offer: bytes = b"") -> tuple[Call, Call]:
        """Return a call that rings, as alice who calls and as bob who is called see it."""
        outgoing = self.settled(self.alice.call("bob", isVideo, offer))
        return outgoing, self.bobHeard.calls[-1]

    def active(self) -> tuple[Call, Call]:
        """Return a call that is active, as the caller and the callee see it."""
        outgoing, incoming = self.ring()
        self.settled(incoming.accept())
        return outgoing, incoming

    def over(self, *calls: Call, rejected: bool = False, code: int = EndCode.HUNG_UP, text: str | None = "") -> None:
        """Assert that calls are over as said, and that the clients have forgotten them."""
        for call in calls:
            assert call.outcome is not None
            self.assertEqual((call.outcome.rejected, call.outcome.code), (rejected, code))
            if text is not None:
                self.assertEqual(call.outcome.text, text)
            self.assertFalse(call.isActive)
            self.assertFalse(call.sendMedia(b"\0late"))
            self.assertIs(self.settled(call.whenEnded()), call.outcome)
        for client in (self.alice, self.bob):
            self.assertIsNone(client.currentCall)

    def mediaFlows(self, *calls: Call) -> None:
        """Assert that both parties hear each other."""
        for sender, receiver in (calls, calls[::-1]):
            got: list[bytes] = []
            receiver.mediaReceived = got.append
            self.assertTrue(sender.sendMedia(b"\0sound"))
            self.server.pump()
            self.assertEqual(got, [b"\0sound"])

    def test_accepted(self) -> None:
        """A call rings at the callee with what the caller said, and is active for both when it is accepted."""
        outgoing, incoming = self.ring(isVideo=True, offer=b"my codecs")
        for call, peer, isIncoming in ((outgoing, "bob", False), (incoming, "alice", True)):
            self.assertEqual((call.peer, call.isIncoming, call.isVideo, call.isActive), (peer, isIncoming, True, False))
            self.assertFalse(call.sendMedia(b"\0early"))
        self.assertEqual(incoming.offer, b"my codecs")
        self.assertEqual(outgoing.callId, incoming.callId)
        self.assertIs(self.alice.currentCall, outgoing)
        waiting = outgoing.whenAccepted()
        self.assertNoResult(waiting)
        self.assertEqual(self.settled(incoming.accept(b"mine")), b"mine")
        self.assertEqual(self.successResultOf(waiting), b"mine")
        self.assertEqual(self.successResultOf(outgoing.whenAccepted()), b"mine")
        self.assertTrue(outgoing.isActive and incoming.isActive)
        self.assertEqual((outgoing.answer, incoming.answer), (b"mine", b"mine"))
        self.mediaFlows(outgoing, incoming)

    def test_hungUp(self) -> None:
        """Either party hangs up an active call, and both learn it with the words."""
        for end in (0, 1):
            calls = self.active()
            ended = calls[0].whenEnded()
            self.settled(calls[end].end("bye"))
            self.over(*calls, text="bye")
            self.assertEqual(self.successResultOf(ended), CallOutcome(False, EndCode.HUNG_UP, "bye"))

    def test_rejected(self) -> None:
        """A rejection has the callee's code, where the protocol lets it say that, and words."""
        for code, told in (
            (RejectCode.DECLINED, RejectCode.DECLINED),
            (RejectCode.BUSY, RejectCode.BUSY),
            (RejectCode.FORBIDDEN, RejectCode.FORBIDDEN),
            (RejectCode.UNSUPPORTED, RejectCode.UNSUPPORTED),
            (RejectCode.OFFLINE, RejectCode.DECLINED),
        ):
            outgoing, incoming = self.ring()
            waiting = outgoing.whenAccepted()
            self.settled(incoming.reject(code, "not now"))
            self.over(outgoing, incoming, rejected=True, code=told, text="not now")
            for failure in (waiting, outgoing.whenAccepted(), incoming.whenAccepted()):
                error = self.failed(failure, CallRejected)
                self.assertEqual((error.code, error.text), (told, "not now"))

    def test_endedByCalleeWhileRinging(self) -> None:
        """A callee that ends a call that rings has declined it."""
        outgoing, incoming = self.ring()
        self.settled(incoming.end("no"))
        self.over(outgoing, incoming, rejected=True, code=RejectCode.DECLINED, text="no")

    def test_cancelled(self) -> None:
        """A caller who ends a call that rings has cancelled it; who waits for its acceptance gets NotConnected."""
        outgoing, incoming = self.ring()
        waiting = incoming.whenAccepted()
        self.settled(outgoing.end("sorry"))
        self.over(outgoing, incoming, code=EndCode.CANCELLED, text="sorry")
        self.assertIn("cancelled", str(self.failed(waiting, NotConnected)))

    def test_cannotRing(self) -> None:
        """A call that cannot ring fails with CallRejected and the reason, and the client can call again."""
        self.server.login("carol").send(MessageType.CALL_REQUEST, "bob", b"\0")
        for callee, code in (("alice", RejectCode.TO_SELF), ("bob", RejectCode.BUSY), ("nobody", RejectCode.OFFLINE)):
            self.assertEqual(self.failed(self.alice.call(callee), CallRejected).code, code)
            self.assertIsNone(self.alice.currentCall)

    def test_badRequest(self) -> None:
        """A call that breaks a rule of the server's fails with its ServerError."""
        self.refused(self.alice.call("a/b"), ErrorCode.BAD_REQUEST)
        self.refused(self.alice.call("bob", offer=b"x" * 16_385), ErrorCode.BAD_REQUEST)
        self.refused(self.alice.call("bob", offer=b"x" * 70_000), ErrorCode.BAD_REQUEST)
        self.assertEqual(self.bobHeard.calls, [])

    def test_oneAtATime(self) -> None:
        """While a call rings, is on or is being set up there is no other."""
        dialled = self.alice.call("bob")
        self.failed(self.alice.call("carol"), ClientError)
        self.settled(dialled)
        self.failed(self.alice.call("carol"), ClientError)

    def test_noAnswer(self) -> None:
        """A call that nobody answers is over after 30 s, for both."""
        calls = self.ring()
        self.server.advance(29.9)
        self.assertIsNone(calls[0].outcome)
        self.server.advance(0.1)
        self.over(*calls, rejected=True, code=RejectCode.NO_ANSWER, text=None)

    def test_maxDuration(self) -> None:
        """A call ends when it has lasted as long as the server lets it."""
        self.server.factory.calls._maxCall = 100
        calls = self.active()
        self.server.advance(100)
        self.over(*calls, code=EndCode.MAX_DURATION, text=None)

    def test_serverStops(self) -> None:
        """When the server stops, the calls are over before the connections are."""
        calls = self.active()
        self.server.isDown = True
        self.server.factory.stopServer()
        self.server.advance(5)
        self.over(*calls, code=EndCode.SHUTTING_DOWN, text=None)

    def test_glare(self) -> None:
        """Two who call each other at the same moment are in one call, and nobody is told of a second."""
        fromAlice = self.alice.call("bob", offer=b"hers")
        fromBob = self.bob.call("alice", offer=b"his")
        self.server.advance(1)
        hers, his = self.settled(fromAlice), self.settled(fromBob)
        self.assertEqual(hers.callId, his.callId)
        self.assertEqual(hers.answer, b"his")
        self.assertEqual(self.aliceHeard.calls + self.bobHeard.calls, [])
        self.mediaFlows(hers, his)

    def test_calledWhileDialling(self) -> None:
        """Who is called by a third user while dialling gets that call, and busy for the own one."""
        self.server.login("carol").send(MessageType.CALL_REQUEST, "alice", b"\0")
        self.failed(self.alice.call("bob"), ClientError)
        self.assertEqual(self.aliceHeard.calls[0].peer, "carol")
        self.settled(self.aliceHeard.calls[0].reject())
        carol = self.server.login("carole")
        dialled = self.alice.call("bob")
        carol.transport.write(encodeFrame(MessageType.CALL_REQUEST, b"alice", b"\0"))
        carol.transport._flush()
        self.assertEqual(self.failed(dialled, CallRejected).code, RejectCode.BUSY)
        self.assertEqual(self.aliceHeard.calls[1].peer, "carole")

    def test_rejoined(self) -> None:
        """Whoever was lost from an active call and comes back in the grace is in the same call, and media flows."""
        for lost in (("alice",), ("bob",), ("alice", "bob")):
            calls = self.active()
            for user in lost:
                self.cutOff(user)
            self.assertEqual([call.sendMedia(b"\0") for call in calls], ["alice" not in lost, "bob" not in lost])
            self.server.advance(3)
            self.mediaFlows(*calls)
            self.assertEqual(len(self.bobHeard.calls), 1)
            self.settled(calls[0].end())
            self.over(*calls)
            self.bobHeard.calls.clear()

    def test_rejoinedWhileRinging(self) -> None:
        """Whoever is lost while it rings and comes back in the grace goes on ringing, and is told of no second call."""
        for user in ("alice", "bob"):
            outgoing, incoming = self.ring(offer=b"codecs")
            self.cutOff(user)
            self.server.advance(3)
            self.assertEqual((len(self.aliceHeard.calls), len(self.bobHeard.calls)), (0, 1))
            self.settled(incoming.accept())
            self.mediaFlows(outgoing, incoming)
            self.settled(outgoing.end())
            self.bobHeard.calls.clear()

    def test_peerLost(self) -> None:
        """A peer that does not come back in the grace is lost: END peerLost in a call, REJECT offline while ringing."""
        calls = self.active()
        self.settled(self.bob.stop())
        self.over(calls[1], code=EndCode.PEER_LOST, text=None) if self.alice.currentCall is None else None
        self.server.advance(14.9)
        self.assertTrue(calls[0].isActive)
        self.server.advance(0.2)
        self.over(*calls, code=EndCode.PEER_LOST, text=None)
        carolHeard = Heard()
        carol = self.start("carol", carolHeard)
        outgoing = self.settled(self.alice.call("carol"))
        self.settled(carol.stop())
        self.server.advance(5)
        self.over(outgoing, rejected=True, code=RejectCode.OFFLINE, text=None)
        self.over(carolHeard.calls[0], code=EndCode.PEER_LOST, text=None)

    def test_endedWhileAway(self) -> None:
        """Who comes back to a call that ended meanwhile learns how it ended, or at least that it did."""
        for away, code in ((5, EndCode.HUNG_UP), (70, EndCode.PEER_LOST)):
            outgoing, incoming = self.active()
            self.server.isDown = True
            self.cutOff("alice")
            self.settled(incoming.end("bye"))
            self.server.advance(away)
            self.assertIsNone(outgoing.outcome)
            self.server.isDown = False
            self.server.advance(61)
            self.assertTrue(self.alice.isOnline)
            self.over(outgoing, code=code, text="bye" if code == EndCode.HUNG_UP else None)
            self.settled(self.alice.sendText("bob", "back"))

    def test_endedWithoutConnection(self) -> None:
        """What a party does to a call while it has no connection is done when it has one again."""
        outgoing, incoming = self.active()
        self.cutOff("alice")
        ended = outgoing.end("bye")
        self.server.advance(3)
        self.assertTrue(self.alice.isOnline)
        self.settled(ended)
        self.over(outgoing, incoming, text="bye")

    def test_rejectedWithoutConnection(self) -> None:
        """A call that is rejected while there is no connection is rejected when there is one again, in the grace."""
        outgoing, incoming = self.ring()
        self.cutOff("bob")
        incoming.reject(text="no")
        self.server.advance(3)
        self.over(outgoing, incoming, rejected=True, code=RejectCode.DECLINED, text="no")

    def test_acceptedTooLate(self) -> None:
        """Accepting, rejecting or ending a call that is over fails or fires at once and troubles nobody."""
        outgoing, incoming = self.ring()
        self.settled(outgoing.end())
        self.bobHeard.take()
        self.failed(incoming.accept(), NotConnected)
        self.assertEqual(self.settled(incoming.reject()), incoming.outcome)
        self.server.advance(100)
        self.assertEqual(self.settled(incoming.end()), incoming.outcome)
        self.assertEqual(self.bobHeard.events, [])

    def test_cancelledDial(self) -> None:
        """A call whose Deferred is cancelled before it rings does not ring on."""
        dialled = self.alice.call("bob")
        dialled.cancel()
        self.failed(dialled, CancelledError)
        (call,) = self.bobHeard.calls
        self.assertEqual(call.outcome and call.outcome.code, EndCode.CANCELLED)
        self.assertIsNone(self.alice.currentCall)
        self.active()

    def test_tooMuchMedia(self) -> None:
        """Media that fits into no frame is not sent, and sendMedia says so."""
        outgoing, _ = self.active()
        self.assertFalse(outgoing.sendMedia(b"x" * MAX_PAYLOAD))

    def test_stopped(self) -> None:
        """A client that stops is out of its call."""
        outgoing, _ = self.active()
        ended = outgoing.whenEnded()
        self.settled(self.alice.stop())
        self.assertEqual(self.successResultOf(ended).code, EndCode.PEER_LOST)
        self.assertIsNone(self.alice.currentCall)

    def test_lostWhileDialling(self) -> None:
        """A call that the connection is lost over before it rings fails with NotConnected."""
        dialled = self.alice.call("bob")
        cast(Any, self.server)._ends[0].lose(ConnectionLost())
        self.failed(dialled, NotConnected)
        self.failed(self.alice.call("bob"), NotConnected)


class ScriptedCallTests(ScriptedTestCase):
    def test_confirmedAfterLoss(self) -> None:
        """A call of one's own that is confirmed only over the next connection is not taken for an incoming one."""
        client = self.begin()
        dialled = client.call("bob")
        self.server.pump()
        self.server.cut()
        self.failed(dialled, NotConnected)
        self.scripted.greeting += encodeFrame(MessageType.CALL_REQUEST, b"bob", CALL_ID + b"\0")
        self.server.advance(2)
        self.assertTrue(client.isOnline)
        self.assertEqual(self.heard.calls, [])

    def test_newsOfAnotherCall(self) -> None:
        """What the server tells of another call when the client comes back says nothing of its own, which is over."""
        client = self.begin()
        self.connection.send(MessageType.CALL_REQUEST, b"bob", CALL_ID + b"\0")
        (call,) = self.heard.calls
        self.server.cut()
        self.scripted.greeting += encodeFrame(MessageType.CALL_REJECT, b"carol", CALL_ID[::-1] + b"\3")
        self.server.advance(2)
        self.assertTrue(client.isOnline)
        self.assertEqual(call.outcome and call.outcome.code, EndCode.PEER_LOST)

    def test_replacedByAnother(self) -> None:
        """A call that the server tells of while another is in mind takes that one's place, which is over."""
        client = self.begin()
        self.connection.send(MessageType.CALL_REQUEST, b"bob", CALL_ID + b"\1offer")
        self.connection.send(MessageType.CALL_REQUEST, b"carol", CALL_ID[::-1] + b"\0")
        bob, carol = self.heard.calls
        self.assertEqual((bob.isVideo, bob.offer, carol.isVideo, carol.offer), (True, b"offer", False, b""))
        self.assertIsNotNone(bob.outcome)
        self.assertIs(client.currentCall, carol)

    def test_ofNoCall(self) -> None:
        """What comes of calls that the client does not have changes nothing."""
        client = self.begin()
        self.scripted.answers = False
        dialled = client.call("bob")
        for kind in (MessageType.CALL_ACCEPT, MessageType.CALL_REJECT, MessageType.CALL_END):
            self.connection.send(kind, b"carol", CALL_ID + b"\1")
        self.connection.send(MessageType.CALL_END, b"bob", CALL_ID)
        self.connection.send(MessageType.CALL_REQUEST, b"bob", CALL_ID)
        self.connection.send(MessageType.MEDIA_DATA, b"bob", b"\0sound")
        self.assertNoResult(dialled)
        self.assertIsNone(client.currentCall)
        self.connection.send(MessageType.CALL_REQUEST, b"bob", CALL_ID + b"\0")
        call = self.settled(dialled)
        got: list[bytes] = []
        call.mediaReceived = got.append
        self.connection.send(MessageType.MEDIA_DATA, b"carol", b"\0hers")
        self.connection.send(MessageType.MEDIA_DATA, b"bob", b"\0his")
        self.assertEqual(got, [b"\0his"])
        self.assertTrue(client.isOnline)

    def test_lostAgainOnReturn(self) -> None:
        """A connection that is lost again before it is clear what became of the call leaves the call as it is."""
        client = self.begin()
        self.connection.send(MessageType.CALL_REQUEST, b"bob", CALL_ID + b"\0")
        (call,) = self.heard.calls
        self.server.cut()
        self.scripted.answers = False
        self.server.advance(2)
        self.assertTrue(client.isOnline)
        self.server.cut()
        self.assertIsNone(call.outcome)

    def test_frames(self) -> None:
        """What a party does stands on the wire as the protocol says."""
        client = self.begin()
        self.connection.send(MessageType.CALL_REQUEST, b"bob", CALL_ID + b"\0")
        (call,) = self.heard.calls
        self.assertEqual(call.callId, CALL_ID.hex())
        call.accept(b"answer").addErrback(lambda failure: failure.trap(NotConnected))
        call.reject(RejectCode.BUSY, "no")
        call.end("bye")
        self.server.pump()
        self.assertEqual(
            self.connection.taken(),
            [
                (MessageType.CALL_ACCEPT, b"bob", CALL_ID + b"answer"),
                (MessageType.CALL_REJECT, b"bob", CALL_ID + b"\1no"),
                (MessageType.CALL_END, b"bob", CALL_ID + b"\0bye"),
            ],
        )
        self.connection.send(MessageType.CALL_END, b"bob", CALL_ID)
        client.call("carol", isVideo=True, offer=b"offer").addErrback(lambda _: None)
        self.server.pump()
        self.assertEqual(self.connection.taken(), [(MessageType.CALL_REQUEST, b"carol", b"\1offer")])


class ErrorTests(ScriptedTestCase):
    def test_texts(self) -> None:
        """An exception and an outcome say in words what a code means, and still say something of an unknown one."""
        for thing, text in (
            (ServerError(5, "that user is offline"), "offline: that user is offline"),
            (ServerError(99, "new"), "code 99: new"),
            (CallRejected(RejectCode.NO_ANSWER, ""), "no answer"),
            (CallRejected(1, "later"), "busy: later"),
            (TransferCancelled(CancelCode.HASH_MISMATCH, ""), "hash mismatch"),
            (TransferCancelled(77, "why"), "code 77: why"),
            (CallOutcome(True, RejectCode.DECLINED, "no"), "declined: no"),
            (CallOutcome(False, EndCode.PEER_LOST, ""), "peer lost"),
            (CallOutcome(False, 200, "x"), "code 200: x"),
        ):
            self.assertEqual(str(thing), text)

    def test_ofNobody(self) -> None:
        """An error that belongs to no request is told to the listener, and takes no other's place."""
        client = self.begin()
        self.scripted.answers = False
        sent = client.sendText("bob", "hello")
        (number,) = self.asked()
        for kind in (MessageType.MEDIA_DATA, TEXT, TEXT):
            self.connection.send(MessageType.ERROR, b"bob", encodeError(ErrorCode.FORBIDDEN, kind, "no"))
        self.assertEqual(self.heard.take(), [("error", ErrorCode.FORBIDDEN)] * 2)
        self.assertNoResult(sent)
        self.connection.send(HEARTBEAT, b"", number)
        self.refused(sent, ErrorCode.FORBIDDEN)

    def test_answersOfOthers(self) -> None:
        """An answer to a heartbeat that is not the oldest request's leaves the requests waiting."""
        client = self.begin()
        self.scripted.answers = False
        sent = [client.sendText("bob", "1"), client.sendText("bob", "2")]
        first, second = self.asked()
        for data in (b"", b"\0", second):
            self.connection.send(HEARTBEAT, b"", data)
        for result in sent:
            self.assertNoResult(result)
        for number in (first, second):
            self.connection.send(HEARTBEAT, b"", number)
        for result in sent:
            self.successResultOf(result)

    def test_lastWords(self) -> None:
        """What waits for an answer when the server closes with an error fails with that error."""
        client = self.begin()
        self.scripted.answers = False
        sent = client.sendText("bob", "hello")
        self.server.pump()
        self.connection.refuse(ErrorCode.TOO_SLOW, "read")
        self.refused(sent, ErrorCode.TOO_SLOW)


RUBBISH = {
    "an empty payload": b"\0\0",
    "two bytes of payload": b"\0\2\0\0",
    "a user ID past the payload": b"\0\4\0\0\5x",
    "an ERROR without a code": encodeFrame(MessageType.ERROR, b"", b"\1"),
    "an op of no transfer": encodeFrame(MessageType.FILE, b"bob", b"\1short"),
    "a FILE without an op": encodeFrame(MessageType.FILE, b"bob", b""),
    "an offer without a size": encodeFrame(MessageType.FILE, b"bob", b"\0" + CALL_ID),
    "a file outside of the folder": encodeFrame(MessageType.FILE, b"bob", b"\0" + CALL_ID + bytes(40) + b"../x"),
    "a call without an ID": encodeFrame(MessageType.CALL_REQUEST, b"bob", b"\0"),
    "an endless reason": encodeFrame(MessageType.CALL_END, b"bob", CALL_ID + b"\0" + b"x" * 1_025),
}


class RubbishTests(ScriptedTestCase):
    def test_rubbish(self) -> None:
        """A server that sends what is no message loses the client, which comes back and is none the worse."""
        client = self.begin()
        for name, rubbish in RUBBISH.items():
            connection = self.connection
            connection.sendBytes(rubbish + encodeFrame(TEXT, b"bob", b"behind it"))
            self.assertTrue(connection.isLost, name)
            self.assertEqual(self.heard.take()[:1], [("disconnected", NotConnected)], name)
            self.server.advance(2)
            self.assertTrue(client.isOnline)
            self.heard.take()

    def test_futureTypes(self) -> None:
        """Frames of types that this client does not know, or has no use for, change nothing."""
        client = self.begin()
        for kind in (MessageType.DELAY, MessageType.ACK, MessageType.AUTH_RESPONSE, MessageType.GROUP, 200):
            self.connection.send(kind, b"bob", bytes(8))
        self.connection.send(TEXT, b"bob", b"behind it")
        self.assertEqual(self.heard.take(), [("text", "bob", "behind it", 0.0)])
        self.assertTrue(client.isOnline)

    def test_badCount(self) -> None:
        """A list whose count is no number fails with the connection."""
        client = self.begin()
        listing = client.users()
        self.connection.send(PRESENCE, b"", b"\0")
        self.assertTrue(self.connection.isLost)
        self.failed(listing, NotConnected)

    _frames = st.lists(
        st.tuples(
            st.sampled_from([*MessageType, 16, 255]),
            st.sampled_from([b"", b"alice", b"bob", b"\xff"]),
            st.one_of(
                st.binary(max_size=80),
                st.tuples(st.sampled_from(range(8)), st.binary(max_size=60)).map(
                    lambda part: bytes((part[0],)) + CALL_ID + part[1]
                ),
                st.binary(max_size=20).map(lambda rest: CALL_ID + rest),
            ),
        ),
        max_size=12,
    )

    @given(_frames, st.binary(max_size=20), st.booleans())
    def test_anything(self, frames: list[tuple[int, bytes, bytes]], tail: bytes, busy: bool) -> None:
        """Whatever a server sends, nothing is raised, and the client is online or comes back unless it is refused."""
        self.scripted = self.server = ScriptedServer()
        heard = Heard()
        client = Client(self.server.clock, self.server.endpoint(), "alice", heard, runInThread=maybeDeferred)
        started = client.start()
        self.server.pump()
        self.successResultOf(started)
        if busy:
            for result in (client.sendText("bob", "?"), client.watch(), client.call("bob")):
                cast("Deferred[object]", result).addErrback(lambda _: None)
        self.connection.sendBytes(b"".join(encodeFrame(*frame) for frame in frames) + tail)
        self.server.advance(3)
        self.assertTrue(client.isOnline or any(event[0] == "stopped" for event in heard.events))
        client.stop()
        self.server.advance(5)
        self.assertFalse(client.isOnline)


class MemoryServerTests(SynchronousTestCase):
    """What the server in memory promises to those who test with it."""

    def setUp(self) -> None:
        self.server = MemoryServer()

    def test_refusedLogin(self) -> None:
        """login() raises what the server refused the registration with."""
        with self.assertRaises(Exception) as raised:
            self.server.login("a/b")
        self.assertEqual(cast(Any, raised.exception).code, ErrorCode.MALFORMED)

    def test_tooLong(self) -> None:
        """A client that knows frames sends none that cannot be."""
        client = self.server.login("alice")
        with self.assertRaises(ValueError):
            client.send(TEXT, "bob", b"x" * MAX_PAYLOAD)
        self.assertEqual(client.received(), [])

    def test_pausedReader(self) -> None:
        """What is sent to a client that does not read waits, and comes when it reads again."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        bob.pauseReading()
        alice.send(TEXT, "bob", b"hello")
        self.assertEqual(bob.received(), [])
        bob.resumeReading()
        self.assertEqual(bob.received(), [Message(TEXT, "alice", b"hello")])

    def test_slowReader(self) -> None:
        """A client that never reads is closed by the server, which is what a test of an application wants to see."""
        alice, bob = self.server.login("alice"), self.server.login("bob")
        bob.pauseReading()
        for _ in range(30):
            alice.send(TEXT, "bob", b"x" * 60_000)
        self.assertEqual({m.data[0] for m in alice.received()}, {ErrorCode.OVERLOADED})
        self.server.advance(62)
        self.assertEqual(self.server.factory.getOnlineUsers(), ["alice"])

    def test_transport(self) -> None:
        """An end of a connection has addresses, takes sequences, closes when all is written, then takes no more."""
        received: list[bytes] = []
        lost: list[str] = []

        class Ear(Protocol):
            def dataReceived(self, data: bytes) -> None:
                received.append(data)

            def connectionLost(self, reason: object = None) -> None:
                lost.append("ear")

        class Mouth(Protocol):
            transport: MemoryTransport

            def connectionLost(self, reason: object = None) -> None:
                lost.append("mouth")

        self.patch(
            self.server, "factory", cast(Any, type("Factory", (), {"buildProtocol": lambda self, addr: Ear()})())
        )
        for close in (
            MemoryTransport.loseConnection,
            MemoryTransport.stopProducing,
            MemoryTransport.loseWriteConnection,
        ):
            mouth = Mouth()
            self.server.link(mouth)
            transport = mouth.transport
            self.assertIsInstance(transport.getPeer(), IPv4Address)
            self.assertIsInstance(transport.getHost(), IPv4Address)
            transport.writeSequence([b"a", b"b"])
            close(transport)
            self.server.pump()
            self.assertEqual(b"".join(received), b"ab")
            transport.write(b"too late")
            transport.lose(ConnectionLost())
            self.server.pump()
            self.assertEqual((b"".join(received), sorted(lost)), (b"ab", ["ear", "mouth"]))
            received.clear()
            lost.clear()

    def test_aborted(self) -> None:
        """An aborted connection drops what was under way, at both ends."""
        client = self.server.login("alice")
        client.transport.write(encodeFrame(TEXT, b"alice", b"never"))
        client.transport.abortConnection()
        self.server.pump()
        self.assertTrue(client.ended)
        self.assertEqual(client.received(), [])
        self.assertEqual(self.server.factory.getOnlineUsers(), [])

    def test_cut(self) -> None:
        """cut() breaks every connection."""
        clients = [self.server.login("alice"), self.server.connect()]
        self.server.cut()
        self.assertEqual([client.ended for client in clients], [True, True])
        self.assertEqual(self.server.factory.getOnlineUsers(), [])
