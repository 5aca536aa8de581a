"""Slow receivers: what waits for them is bounded, in bytes and in time, and their calls stay in time."""

from __future__ import annotations

import socket
import tracemalloc
from typing import Any, cast
from unittest import skipUnless

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet import reactor as _reactor
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.defer import Deferred
from twisted.internet.endpoints import TCP4ClientEndpoint, serverFromString, wrapClientTLS
from twisted.internet.error import ConnectionAborted
from twisted.internet.protocol import Factory, connectionDone
from twisted.internet.ssl import CertificateOptions
from twisted.internet.task import deferLater
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import temporaryFolder
from tests.test_backlog import MediaModel
from tests.test_transports import PlainReceiver, makeCertificate
from wecompany.backlog import MAX_AGE, MAX_MEDIA, MAX_PIECE, MAX_TEXTS, MIN_MEDIA
from wecompany.outbound import MAX_WAITING, PIECE, PIECE_IN_CALL, UNSENT, UNSENT_IN_CALL
from wecompany.poller import Poller
from wecompany.protocol import WeCompanyProtocol
from wecompany.server import WeCompanyFactory
from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import (
    CONTINUATION,
    ID_SIZE,
    MAX_CHUNK,
    NO_TYPE,
    ErrorCode,
    FileOp,
    MediaKind,
    MessageType,
    decodeError,
    decodeFrames,
    encodeFrame,
    encodeOffset,
    splitOffset,
)

reactor: Any = _reactor

MIB = 1_048_576

FILL = 65_531
"""Bytes of data in a frame of 64 KiB from the server itself: the transport takes one, and asks for no more."""

REFUSED = "texts refused: the receiver is too far behind"

TEXT, FILE, MEDIA = MessageType.TEXT, MessageType.FILE, MessageType.MEDIA_DATA
AUDIO, KEY, DELTA, OTHER = MediaKind.AUDIO, MediaKind.VIDEO_KEY, MediaKind.VIDEO_DELTA, MediaKind.OTHER


class OutboundTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer(broadcast=True)
        self.slow, self.bob = self.server.login("slow"), self.server.login("bob")

    def fill(self, frames: int, data: bytes = bytes(FILL), messageType: int = TEXT) -> None:
        for _ in range(frames):
            self.assertTrue(self.server.factory.sendMessage("slow", data, messageType))

    def stop(self) -> None:
        """The slow one reads no more, and its transport has enough."""
        self.slow.pauseReading()
        self.fill(1, bytes(FILL + 1))

    def assertTooSlow(self, client: FakeClient) -> None:
        """The client's last word is ERROR tooSlow, behind whole frames."""
        self.assertNotIn("slow", self.server.factory.getOnlineUsers())
        client.resumeReading()
        *_, error = client.received()
        self.assertEqual((error.type, error.userId), (MessageType.ERROR, ""))
        self.assertEqual(decodeError(error.data)[:2], (ErrorCode.TOO_SLOW, NO_TYPE))
        self.assertTrue(client.ended)


class TextsTests(OutboundTestCase):
    """Texts for somebody who does not keep up, without a store."""

    def setUp(self) -> None:
        super().setUp()
        self.stop()

    def assertRefused(self, text: bytes = b"") -> None:
        """A text is answered with ERROR overloaded, and nothing else happens."""
        self.bob.send(TEXT, "slow", text)
        (error,) = self.bob.received()
        self.assertEqual((error.type, error.userId), (MessageType.ERROR, "slow"))
        self.assertEqual(decodeError(error.data)[:2], (ErrorCode.OVERLOADED, TEXT))

    def test_most(self) -> None:
        """While no more than 1 MiB of texts waits, one more is taken; then they are refused, until there is room."""
        for i in range(16):
            self.fill(1, bytes((i,)) * FILL)
        self.bob.send(TEXT, "slow", b"one more")
        self.assertEqual(self.bob.received(), [])
        self.assertFalse(self.server.factory.sendMessage("slow", b""))
        self.assertRefused()
        self.assertEqual(self.server.factory.counters[REFUSED], 2)
        self.server.advance(5)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        self.slow.resumeReading()
        texts = [m.data for m in self.slow.received()]
        self.assertEqual(texts[1:], [*(bytes((i,)) * FILL for i in range(16)), b"one more"])
        self.bob.send(TEXT, "slow", b"again")
        self.assertEqual(self.slow.received(), [Message(TEXT, "bob", b"again")])
        self.assertEqual(self.bob.received(), [])

    def test_smallFrames(self) -> None:
        """The bound is in bytes, however many frames they are."""
        self.fill(1024, bytes(1019))
        self.fill(1, b"")
        self.assertRefused()
        self.slow.resumeReading()
        self.assertEqual(len(self.slow.received()), 1026)

    def test_oneChunk(self) -> None:
        """Many texts in one chunk are judged as others are: not much more than 1 MiB waits, the others are refused."""
        stream = encodeFrame(TEXT, b"slow", bytes(10_000)) * 200
        for at in range(0, len(stream), 65_536):
            self.bob.sendBytes(stream[at : at + 65_536])
        errors = self.bob.received()
        self.slow.resumeReading()
        taken = self.slow.received()[1:]
        self.assertEqual(len(taken) + len(errors), 200)
        self.assertGreater(len(taken) * 10_008, MAX_TEXTS)
        self.assertLess(len(taken) * 10_008, MAX_TEXTS + 2 * 65_536)

    def test_again(self) -> None:
        """What has been read waits no more: all is direct again, and there is room for as much again."""
        for _ in range(3):
            self.fill(17)
            self.assertRefused()
            self.slow.resumeReading()
            self.assertEqual(len(self.slow.received()), 18)
            self.bob.send(TEXT, "slow", b"direct")
            self.assertEqual(self.slow.received(), [Message(TEXT, "bob", b"direct")])
            self.stop()

    def test_broadcast(self) -> None:
        """A text to everyone passes those by who are too far behind; its sender is told how many they are."""
        carol = self.server.login("carol")
        for expected in (0, 1):
            self.bob.send(TEXT, "", b"all")
            self.assertEqual(carol.received(), [Message(TEXT, "bob", b"all")])
            errors = [(m.userId, decodeError(m.data)) for m in self.bob.received()]
            self.assertEqual([(e[0], *e[1][:2]) for e in errors], [("", ErrorCode.OVERLOADED, TEXT)] * expected)
            self.assertTrue(all(e[1][2].startswith("1 ") for e in errors))
            self.assertEqual(self.server.factory.broadcastMessage(b"server"), 3 - expected)
            self.assertEqual(carol.received(), [Message(TEXT, "", b"server")])
            self.assertEqual(self.bob.received(), [Message(TEXT, "", b"server")])
            self.server.advance(1)
            self.fill(0 if expected else 16)
        self.assertEqual(self.server.factory.counters[REFUSED], 2)

    def test_othersAreUndisturbed(self) -> None:
        """One receiver that does not read slows nobody: neither its sender, nor the sender's other work, nor others."""
        carol = self.server.login("carol")
        refused = 0
        for i in range(70):
            self.bob.send(TEXT, "slow", bytes(65_000))
            self.bob.send(TEXT, "carol", b"%d" % i)
            self.bob.send(MessageType.HEARTBEAT, "", b"%d" % i)
            *errors, beat = self.bob.received()
            self.assertEqual(beat, Message(MessageType.HEARTBEAT, "", b"%d" % i))
            self.assertEqual(carol.received(), [Message(TEXT, "bob", b"%d" % i)])
            refused += len(errors)
        self.assertEqual(refused, self.server.factory.counters[REFUSED])
        self.assertEqual(refused, 70 - -(-MAX_TEXTS // 65_008))
        self.assertEqual(self.server.factory.getOnlineUsers(), ["slow", "bob", "carol"])

    def test_otherClasses(self) -> None:
        """Only texts are refused: everything else comes to those who are behind, and counts for itself."""
        self.fill(17)
        self.assertRefused()
        self.fill(1, b"\6", FILE)
        self.fill(1, b"", MessageType.HEARTBEAT)
        self.slow.resumeReading()
        self.assertLessEqual({MessageType.HEARTBEAT, FILE, TEXT}, {m.type for m in self.slow.received()})


class StoredTextsTests(OutboundTestCase):
    """The same, with a store."""

    def setUp(self) -> None:
        self.server = MemoryServer(temporaryFolder(self) / "store.sqlite", broadcast=True)
        self.addCleanup(self.server.close)
        self.slow, self.bob = self.server.login("slow"), self.server.login("bob")
        self.server.pump()
        self.stop()

    def waiting(self) -> int:
        return int(self.server.factory._online[b"slow"].waiting)

    def test_inOrder(self) -> None:
        """Texts past 1 MiB wait in the store, not in memory, and all arrive in order when the client reads on."""
        sent = [b"%d " % i + bytes(60_000) for i in range(60)]
        for i, text in enumerate(sent):
            self.bob.send(TEXT, "slow", text)
            if i == 40:
                self.assertTrue(self.server.factory.sendMessage("slow", b"from the server"))
        self.assertEqual(self.bob.received(), [])
        self.assertLess(self.waiting(), MAX_TEXTS + 65_536)
        self.assertGreater(self.waiting(), MAX_TEXTS)
        self.slow.resumeReading()
        got = [m for m in self.slow.received() if m.type == TEXT][1:]
        self.assertEqual([m.data for m in got if m.userId == "bob"], sent)
        self.assertEqual([i for i, m in enumerate(got) if not m.userId], [41])
        self.assertEqual(self.server.factory.counters[REFUSED], 0)

    def test_directAgain(self) -> None:
        """When all has arrived texts go past the store again."""
        for _ in range(20):
            self.bob.send(TEXT, "slow", bytes(60_000))
        self.assertFalse(self.server.factory._online[b"slow"].isDirect)
        self.slow.resumeReading()
        self.slow.received()
        self.server.advance(5)
        self.assertTrue(self.server.factory._online[b"slow"].isDirect)

    def test_broadcast(self) -> None:
        """A text to everyone reaches those too who are behind."""
        for _ in range(20):
            self.bob.send(TEXT, "slow", bytes(60_000))
        self.bob.send(TEXT, "", b"all")
        self.assertEqual(self.server.factory.broadcastMessage(b"server"), 2)
        self.assertEqual(self.bob.received(), [Message(TEXT, "", b"server")])
        self.slow.resumeReading()
        self.assertEqual([m.data for m in self.slow.received() if m.type == TEXT][-2:], [b"all", b"server"])

    def test_takenOver(self) -> None:
        """When a user registers again while much waits, every text arrives once and in order, on either connection."""
        sent = [b"%d " % i + bytes(30_000) for i in range(60)]
        for text in sent:
            self.bob.send(TEXT, "slow", text)
            self.fill(1, b"\6" + text[:5_000], FILE)
        newcomer = self.server.connect()
        newcomer.send(MessageType.HEARTBEAT, "slow")
        self.server.advance(6)
        self.bob.send(TEXT, "slow", b"live")
        new = [m.data for m in newcomer.received() if m.type == TEXT]
        self.slow.resumeReading()
        old = [m.data for m in self.slow.received() if m.type == TEXT]
        self.assertEqual(old[1:] + new, [*sent, b"live"])
        self.assertGreater(len(new), 50)
        self.assertTrue(self.slow.ended)

    def test_leaves(self) -> None:
        """What waits when a client is lost comes to it when it registers again, once and in order."""
        sent = [b"%d " % i + bytes(30_000) for i in range(60)]
        for text in sent:
            self.bob.send(TEXT, "slow", text)
        self.slow.drop()
        again = [m.data for m in self.server.login("slow").received() if m.type == TEXT]
        self.assertEqual(again, sent)

    def test_tooSlow(self) -> None:
        """A text that comes between the moment when too much waits and the close is not lost."""
        self.fill(97, bytes(FILL), FILE)
        sent = self.server.factory.sendMessage("slow", b"text")
        self.server.pump()
        self.assertTooSlow(self.slow)
        self.assertTrue(sent)
        again = [m.data for m in self.server.login("slow").received() if m.type == TEXT]
        self.assertEqual(again[-1:], [b"text"])


class MostTests(OutboundTestCase):
    """However much it is of whatever kind."""

    def setUp(self) -> None:
        super().setUp()
        self.stop()

    def flood(self, frames: int, data: bytes = bytes(FILL)) -> None:
        self.fill(frames, data, FILE)

    def test_most(self) -> None:
        """6 MiB may wait, and arrive whole and in order when the client reads on."""
        self.assertEqual(MAX_WAITING, 96 * 65_536)
        for i in range(96):
            self.flood(1, bytes((i,)) * FILL)
        self.server.advance(5)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        self.slow.resumeReading()
        self.assertEqual([m.data for m in self.slow.received()[1:]], [bytes((i,)) * FILL for i in range(96)])
        self.flood(1)
        self.assertEqual(len(self.slow.received()), 1)

    def test_tooMuch(self) -> None:
        """When more than 6 MiB waits the client is closed as tooSlow, after whole frames."""
        self.flood(96)
        self.flood(1, b"")
        self.server.pump()
        self.assertTooSlow(self.slow)
        self.assertFalse(self.server.factory.sendMessage("slow", "hello"))

    def test_smallFrames(self) -> None:
        """The bound is in bytes, however many frames they are."""
        self.flood(6 * 1024, bytes(1019))
        self.server.advance(1)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        self.flood(1, b"")
        self.server.pump()
        self.assertTooSlow(self.slow)

    def test_together(self) -> None:
        """It is for all classes together."""
        self.fill(16)
        for n in range(2, 82):
            self.fill(1, bytes(FILL), (FILE, MessageType.PRESENCE, MessageType.HEARTBEAT)[n % 3])
        self.server.advance(1)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        self.fill(1, b"", MessageType.PRESENCE)
        self.server.pump()
        self.assertTooSlow(self.slow)

    def test_again(self) -> None:
        """What has been read waits no more: there is room for as much again."""
        self.flood(96)
        self.slow.resumeReading()
        self.assertEqual(len(self.slow.received()), 97)
        self.stop()
        self.flood(96)
        self.server.advance(5)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        self.flood(1, b"")
        self.server.pump()
        self.assertTooSlow(self.slow)

    def test_dropped(self) -> None:
        """A client that does not even read its last word is dropped within seconds."""
        self.flood(97)
        self.server.advance(2)
        self.assertTrue(self.slow.transport.connected)
        self.server.advance(3)
        self.assertFalse(self.slow.transport.connected)

    def test_othersAreUndisturbed(self) -> None:
        """Who floods somebody is not disturbed by that, nor is its other work."""
        for i in range(120):
            self.server.factory.sendMessage("slow", bytes(FILL), FILE)
            self.bob.send(MessageType.HEARTBEAT, "", b"%d" % i)
            self.assertEqual(self.bob.received(), [Message(MessageType.HEARTBEAT, "", b"%d" % i)])
        self.assertFalse(self.bob.ended)
        self.assertEqual(self.server.factory.getOnlineUsers(), ["bob"])
        self.assertEqual(self.server.factory.counters["connections closed: TOO_SLOW"], 1)

    def test_presence(self) -> None:
        """Others learn that a client which was closed as tooSlow is offline."""
        self.bob.send(MessageType.PRESENCE, "slow", b"\1")
        self.flood(97)
        self.server.advance(1)
        self.assertEqual([m.data for m in self.bob.received()], [b"\1", b"\0"])

    def test_lostWhileMuchWaits(self) -> None:
        """When the connection breaks nothing is left of what waited, and the next one begins empty."""
        self.fill(16)
        self.flood(64)
        self.slow.drop()
        self.slow = self.server.login("slow")
        self.assertEqual(self.slow.received(), [])
        self.fill(1, b"hello")
        self.assertEqual(self.slow.received(), [Message(TEXT, "", b"hello")])
        self.assertEqual(self.server.factory._turn.waiting, 0)

    def test_closedWhileMuchWaits(self) -> None:
        """A client that is closed for another reason gets what waits first, and the reason behind it."""
        self.fill(10)
        self.flood(10)
        newcomer = self.server.connect()
        newcomer.send(MessageType.ACK, "slow", bytes(4) + self.slow.sessionId)
        self.slow.resumeReading()
        *others, error = self.slow.received()
        self.assertEqual((len(others), error.type, error.data[0]), (21, MessageType.ERROR, ErrorCode.REPLACED))

    def test_stoppedWhileMuchWaits(self) -> None:
        """The server stops within 5 s although a client does not read."""
        self.fill(16)
        self.flood(64)
        done = self.server.factory.stopServer()
        self.server.advance(5)
        self.successResultOf(done)
        self.assertFalse(self.slow.transport.connected)


class MemoryTests(OutboundTestCase):
    def grown(self) -> int:
        """Return the most bytes that the process held at any time since C{setUp}."""
        return tracemalloc.get_traced_memory()[1] - self.before

    def setUp(self) -> None:
        super().setUp()
        self.slow.pauseReading()
        tracemalloc.start()
        self.addCleanup(tracemalloc.stop)
        self.before = tracemalloc.get_traced_memory()[0]

    def test_flooded(self) -> None:
        """Whatever others send to a client that does not read, the server grows by some MiB and no more."""
        data = bytes(60_000)
        for i in range(1000):
            self.server.factory.sendMessage("slow", data + b"%d" % i)
        self.server.pump()
        self.assertLess(self.grown(), 2 * MIB)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        for i in range(1000):
            self.server.factory.sendMessage("slow", data + b"%d" % i, FILE)
        self.server.pump()
        self.assertLess(self.grown(), 8 * MIB)

    def test_flooding(self) -> None:
        """A client that sends and does not read its answers does not grow the server either, and is closed."""
        beats = encodeFrame(MessageType.HEARTBEAT, b"", bytes(59)) * 1000
        for _ in range(100):
            self.slow.sendBytes(beats)
        self.assertLess(self.grown(), 24 * MIB)
        self.assertTooSlow(self.slow)


class TimeTests(OutboundTestCase):
    def beat(self, seconds: float) -> None:
        """Let time pass in which the slow client gives signs of life."""
        self.slow.send(MessageType.HEARTBEAT)
        self.server.advance(seconds)

    def stall(self) -> None:
        self.slow.pauseReading()
        self.fill(2)

    def test_stalled(self) -> None:
        """A client that takes nothing for 60 s while something waits is closed as tooSlow, whatever it sends."""
        self.stall()
        self.beat(30)
        self.beat(29.9)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        self.beat(2.1)
        self.assertTooSlow(self.slow)

    def test_readsInTime(self) -> None:
        """A client that reads before the 60 s are over has another 60 s when it stops again."""
        for _ in range(3):
            self.stall()
            self.beat(50)
            self.slow.resumeReading()
            self.assertIn((MessageType.TEXT, "", bytes(FILL)), self.slow.received())
        self.stall()
        self.beat(30)
        self.beat(32.1)
        self.assertTooSlow(self.slow)

    def test_nothingWaits(self) -> None:
        """A client for which nothing waits is not slow, however long it gets nothing."""
        for _ in range(5):
            self.beat(60)
        self.assertIn("slow", self.server.factory.getOnlineUsers())

    def test_notRegistered(self) -> None:
        """A held newcomer that does not read is no exception to any of that."""
        newcomer = self.server.connect()
        newcomer.send(MessageType.HEARTBEAT, "slow")
        newcomer.pauseReading()
        self.server.advance(6)
        self.fill(2)
        self.server.advance(30)
        newcomer.send(MessageType.HEARTBEAT)
        self.server.advance(32.1)
        self.assertTooSlow(newcomer)


class Socket(FileDescriptor):
    """A transport with Twisted's own buffers, over a network that takes as many bytes as one says."""

    def __init__(self, reactor: MemoryReactorClock, protocol: WeCompanyProtocol) -> None:
        super().__init__(reactor)
        self.connected = 1
        self.protocol = protocol
        self.clock = reactor
        self.taken = b""
        self.room = 0

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 40000)

    def writeSomeData(self, data: Any) -> int:
        part = bytes(data[: self.room])
        self.room -= len(part)
        self.taken += part
        return len(part)

    def take(self, size: int) -> None:
        """Let the network take up to so many bytes."""
        self.room = size
        while self.room and self in self.clock.getWriters():
            self.doWrite()

    def abortConnection(self) -> None:
        self.protocol.connectionLost(Failure(ConnectionAborted()))

    def frames(self) -> list[tuple[int, bytes]]:
        """Return (type, data) of all that has been taken whole."""
        return [(messageType, data) for messageType, _, data, _ in decodeFrames(self.taken)]

    def got(self, wanted: int) -> list[bytes]:
        """Return the data of all of that type."""
        return [data for messageType, data in self.frames() if messageType == wanted]

    def texts(self) -> list[bytes]:
        """Return the data of all TEXTs."""
        return self.got(TEXT)


class SocketTests(SynchronousTestCase):
    """The same over Twisted's own buffers."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.factory = WeCompanyFactory(self.reactor)
        self.protocol = self.factory.buildProtocol(None)
        self.socket = Socket(self.reactor, self.protocol)
        self.protocol.makeConnection(self.socket)
        self.protocol.dataReceived(encodeFrame(MessageType.HEARTBEAT, b"slow"))
        self.socket.take(1000)

    def advance(self, seconds: int) -> None:
        for _ in range(seconds):
            self.reactor.advance(1)

    def test_everything(self) -> None:
        """However few bytes the network takes at a time, everything arrives, once and in order."""
        texts = [b"%d " % i * (i % 5_000) for i in range(300)]
        for i, text in enumerate(texts):
            self.factory.sendMessage("slow", text)
            self.socket.take(i * 17)
        while self.socket in self.reactor.getWriters():
            self.socket.take(10_007)
            self.reactor.advance(0)
        self.assertEqual(self.socket.texts(), texts)

    def test_slowIsNotStalled(self) -> None:
        """A client that takes a little every second, on a thin line, makes progress and is not closed."""
        for _ in range(3):
            self.factory.sendMessage("slow", bytes(60_000))
        for _ in range(120):
            self.socket.take(1_000)
            self.protocol.dataReceived(encodeFrame(MessageType.HEARTBEAT, b""))
            self.advance(1)
        self.assertEqual(self.factory.getOnlineUsers(), ["slow"])

    def test_littleWaits(self) -> None:
        """A client that takes nothing for 60 s is closed though little waits for it, heartbeats or not."""
        self.factory.sendMessage("slow", b"a little")
        for second in range(1, 63):
            self.protocol.dataReceived(encodeFrame(MessageType.HEARTBEAT, b""))
            self.advance(1)
            if second < 60:
                self.assertEqual(self.factory.getOnlineUsers(), ["slow"], second)
        self.assertEqual(self.factory.getOnlineUsers(), [])

    def test_faultOfOne(self) -> None:
        """A transport that cannot be written to keeps nothing from the others that the same chunk is for."""
        other = self.factory.buildProtocol(None)
        socket = Socket(self.reactor, other)
        other.makeConnection(socket)
        other.dataReceived(encodeFrame(MessageType.HEARTBEAT, b"other"))
        self.socket.write = lambda data: [][1]  # type: ignore[method-assign]
        text = encodeFrame(MessageType.TEXT, b"other", b"hi")
        self.protocol.dataReceived(encodeFrame(MessageType.TEXT, b"slow", b"hi") + text)
        socket.take(1000)
        self.assertEqual(socket.texts(), [b"hi"])
        self.assertEqual(len(self.flushLoggedErrors(IndexError)), 1)

    def test_nothingAfterAGap(self) -> None:
        """When a message does not fit any more, none that comes after it is delivered."""
        sent = [b"%d" % i + bytes(60_000) for i in range(120)] + [b"small"]
        for data in sent:
            self.factory.sendMessage("slow", data, FILE)
        self.socket.take(10 * MIB)  # in the same turn: the reactor writes before the next timers
        self.reactor.advance(0)
        self.socket.take(10 * MIB)
        taken = [(len(data), data[:5]) for data in self.socket.got(FILE)]
        self.assertEqual(taken, [(len(data), data[:5]) for data in sent[: len(taken)]])
        self.assertLess(len(taken), 120)

    def test_lastWord(self) -> None:
        """The ERROR tooSlow stands behind a whole frame, also where the network had taken a part of one."""
        for _ in range(3):
            self.factory.sendMessage("slow", bytes(60_000))
        self.socket.take(30_000)
        for _ in range(120):
            self.factory.sendMessage("slow", bytes(60_000), FILE)
        self.reactor.advance(0)
        self.socket.take(10 * MIB)
        *_, (messageType, userId, data, end) = decodeFrames(self.socket.taken)
        self.assertEqual((messageType, userId, data[0]), (MessageType.ERROR, b"", ErrorCode.TOO_SLOW))
        self.assertEqual(end, len(self.socket.taken))

    def test_lost(self) -> None:
        """When the connection is lost while much waits, nothing is left and nothing fails."""
        for i in range(80):
            self.factory.sendMessage("slow", bytes(60_000), (TEXT, FILE)[i % 2])
        self.protocol.connectionLost()
        self.socket.connectionLost(Failure(ConnectionAborted()))
        self.advance(2)
        self.assertEqual(self.factory.getOnlineUsers(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])

    def test_room(self) -> None:
        """Who was too far behind gets a text again when there is room for it: 1 MiB may wait, and no byte more."""
        text = bytes(1019)  # 1 KiB on the wire
        while self.factory.sendMessage("slow", text):
            pass
        connection = self.factory._online[b"slow"]
        self.assertFalse(connection.isDirect)
        for room in (0, 1):
            while connection.textsWaiting > MAX_TEXTS - 100_000:
                self.socket.take(1)
                self.socket.take(PIECE)
            while missing := MAX_TEXTS - 1023 - room - connection.textsWaiting:
                size = missing if missing <= 1024 else min(1024, missing - 5)  # the last one has 5 bytes at least
                self.assertTrue(self.factory.sendMessage("slow", text[: size - 5]))
            self.assertEqual(connection.textsWaiting, MAX_TEXTS - 1023 - room)
            self.assertEqual(self.factory.broadcastMessage(text), room)
        self.assertFalse(self.factory.sendMessage("slow", b""))
        self.socket.take(2 * PIECE)
        before = connection.textsWaiting
        self.protocol.dataReceived(encodeFrame(TEXT, b"slow", b"from a client"))
        self.assertGreater(connection.textsWaiting, before)
        while self.socket in self.reactor.getWriters():
            self.socket.take(MIB)
        self.assertTrue(connection.isDirect)

    def test_onlyOthersWait(self) -> None:
        """All is direct again as soon as no text waits, though files still do."""
        for _ in range(4):
            for _ in range(16):
                self.factory.sendMessage("slow", bytes(60_000), FILE)
        while self.factory.sendMessage("slow", bytes(60_000)):
            pass
        connection = self.factory._online[b"slow"]
        self.assertFalse(connection.isDirect)
        while connection.textsWaiting:
            self.assertFalse(connection.isDirect)
            self.socket.take(PIECE)
        self.assertTrue(connection.isDirect)
        self.assertGreater(connection.waiting, 2 * MIB)

    def test_tornFrame(self) -> None:
        """What continues a frame that was dropped is dropped too, also when nothing waits any more by then."""
        self.factory.sendMessage("slow", b"fills the transport")
        self.factory.sendMessage("slow", bytes((OTHER,)) + b"the beginning", MEDIA)
        self.reactor.advance(0.05)
        for _ in range(3):
            self.factory.sendMessage("slow", bytes((KEY,)) + bytes(4000), MEDIA)
        self.reactor.advance(0.06)
        self.socket.take(MIB)
        self.assertEqual([data[0] for data in self.socket.got(MEDIA)], [KEY] * 3)
        self.factory.sendMessage("slow", bytes((OTHER | CONTINUATION,)) + b"the end", MEDIA)
        self.socket.take(MIB)
        self.assertEqual([data[0] for data in self.socket.got(MEDIA)], [KEY] * 3)


class CallTests(SynchronousTestCase):
    """Somebody in a call, on a line that takes as much as one says."""

    def setUp(self) -> None:
        self.reactor = MemoryReactorClock()
        self.factory = WeCompanyFactory(self.reactor, idleTimeout=1e6)
        self.alice, self.bob, self.carol = (self.join(name) for name in (b"alice", b"bob", b"carol"))

    def join(self, name: bytes, room: int = 1 << 30) -> Socket:
        """Return the line of a user who registers."""
        protocol = self.factory.buildProtocol(None)
        line = Socket(self.reactor, protocol)
        protocol.makeConnection(line)
        protocol.dataReceived(encodeFrame(MessageType.HEARTBEAT, name))
        self.take(line)
        return line

    def take(self, *lines: Socket) -> None:
        """Let these lines take all that waits."""
        for line in lines or (self.alice, self.bob, self.carol):
            while line in self.reactor.getWriters():
                line.take(MIB)
            line.room = 0

    def say(self, line: Socket, messageType: int, to: bytes, data: bytes = b"") -> None:
        line.protocol.dataReceived(encodeFrame(messageType, to, data))

    def talk(self) -> bytes:
        """Return the ID of a call between alice and bob."""
        self.say(self.alice, MessageType.CALL_REQUEST, b"bob", b"\1")
        self.take()
        callId = self.bob.got(MessageType.CALL_REQUEST)[-1][:ID_SIZE]
        self.say(self.bob, MessageType.CALL_ACCEPT, b"alice", callId)
        self.take()
        self.assertEqual(self.bob.got(MessageType.CALL_ACCEPT)[-1][:ID_SIZE], callId)
        self.bob.taken = self.alice.taken = b""
        return callId

    def op(self, line: Socket, to: bytes, op: int, rest: bytes) -> None:
        self.say(line, FILE, to, bytes((op,)) + b"the transfer ID." + rest)

    def offer(self, sender: Socket, name: bytes, size: int) -> None:
        """Offer a file to bob, who takes it."""
        self.op(sender, b"bob", FileOp.OFFER, encodeOffset(size) + bytes(32) + b"name")
        self.op(self.bob, name, FileOp.ACCEPT, encodeOffset(0))
        self.take()
        self.bob.taken = b""

    def chunks(self) -> list[tuple[int, bytes]]:
        """Return (offset, bytes) of each CHUNK that bob has got."""
        return [splitOffset(data[1 + ID_SIZE :]) for data in self.bob.got(FILE) if data[0] == FileOp.CHUNK]

    def test_voiceFirst(self) -> None:
        """A voice overtakes the file, the texts and the video that wait: no more than two pieces are before it."""
        self.talk()
        self.offer(self.carol, b"carol", MIB)
        for i in range(10):
            self.op(self.carol, b"bob", FileOp.CHUNK, encodeOffset(i * MAX_CHUNK) + bytes(MAX_CHUNK))
            self.say(self.carol, TEXT, b"bob", bytes(2_000))
            self.say(self.alice, MEDIA, b"bob", bytes((OTHER,)) + bytes(2_000))
        self.say(self.alice, MEDIA, b"bob", bytes((AUDIO,)) + b"voice")
        while not self.bob.got(MEDIA):
            self.bob.take(100)
        self.assertEqual(self.bob.got(MEDIA)[-1], b"\0voice")
        self.assertLessEqual(len(self.bob.taken), 2 * PIECE_IN_CALL)
        self.take()
        self.assertEqual(len(self.bob.texts()), 10)

    def test_signalsFirst(self) -> None:
        """The end of the call overtakes everything, the voice too."""
        callId = self.talk()
        for i in range(100):
            self.say(self.alice, MEDIA, b"bob", bytes((AUDIO, i)) + bytes(158))
        self.say(self.carol, TEXT, b"bob", bytes(60_000))
        self.say(self.alice, MessageType.CALL_END, b"bob", callId)
        self.bob.take(5_000)
        types = [messageType for messageType, _ in self.bob.frames()]
        self.assertLess(types.index(MessageType.CALL_END), 30)
        self.take()

    def test_file(self) -> None:
        """In a call a file comes in pieces of at most 4 KiB, before and after it in whole chunks, and is the same."""
        content = bytes(range(256)) * 2_400
        self.offer(self.carol, b"carol", len(content))
        sizes = []

        def sendChunks(first: int, end: int) -> None:
            for at in range(first * MAX_CHUNK, end * MAX_CHUNK, MAX_CHUNK):
                self.op(self.carol, b"bob", FileOp.CHUNK, encodeOffset(at) + content[at : at + MAX_CHUNK])
            self.take()
            sizes.append({len(part) for _, part in self.chunks()})

        sendChunks(0, 2)
        before = self.bob.taken
        callId = self.talk()
        sendChunks(2, 6)
        during = self.bob.taken
        self.say(self.bob, MessageType.CALL_END, b"alice", callId)
        self.take()
        self.bob.taken = b""
        sendChunks(6, 11)
        self.assertEqual(sizes[0], {MAX_CHUNK})
        self.assertLessEqual(max(sizes[1]), MAX_PIECE)
        self.assertEqual(sizes[2], {MAX_CHUNK, len(content) % MAX_CHUNK})
        self.bob.taken = before + during + self.bob.taken
        chunks = self.chunks()
        self.assertEqual(b"".join(part for _, part in chunks), content)
        self.assertEqual([at for at, _ in chunks], [sum(len(p) for _, p in chunks[:i]) for i in range(len(chunks))])

    def test_registeredAgain(self) -> None:
        """A party that registers again within the call is in a call again; one that does so after its end is not."""
        callId = self.talk()
        chunk = bytes((FileOp.CHUNK,)) + b"the transfer ID." + encodeOffset(0) + bytes(MAX_CHUNK)
        for inCall in (True, False):
            self.bob.protocol.connectionLost()
            self.bob = self.join(b"bob")
            self.factory.sendMessage("bob", chunk, FILE)
            self.take()
            self.assertEqual(len(self.chunks()) > 1, inCall)
            self.say(self.alice, MessageType.CALL_END, b"bob", callId)

    def test_waitsAlready(self) -> None:
        """A chunk that waits when a call begins is cut too."""
        chunk = bytes((FileOp.CHUNK,)) + b"the transfer ID." + encodeOffset(0) + bytes(MAX_CHUNK)
        self.say(self.alice, MessageType.CALL_REQUEST, b"bob", b"\0")
        self.take()
        callId = self.bob.got(MessageType.CALL_REQUEST)[-1][:ID_SIZE]
        for _ in range(2):
            self.factory.sendMessage("bob", chunk, FILE)
        self.say(self.bob, MessageType.CALL_ACCEPT, b"alice", callId)
        self.take()
        sizes = [len(part) for _, part in self.chunks()]
        self.assertEqual((sizes[0], sum(sizes)), (MAX_CHUNK, 2 * MAX_CHUNK))
        self.assertLessEqual(max(sizes[1:]), MAX_PIECE)

    def test_ringing(self) -> None:
        """A call that only rings changes nothing."""
        self.say(self.alice, MessageType.CALL_REQUEST, b"bob", b"\0")
        chunk = bytes((FileOp.CHUNK,)) + b"the transfer ID." + encodeOffset(0) + bytes(MAX_CHUNK)
        self.factory.sendMessage("bob", chunk, FILE)
        self.take()
        self.assertEqual(len(self.chunks()), 1)

    def test_stopsAndComesBack(self) -> None:
        """Who reads nothing for 50 s and comes back gets fresh media at once, and all the texts, in order."""
        self.talk()
        texts = []
        n = 0
        for frame in range(50 * 25):
            self.reactor.advance(0.04)
            for _ in range(2):
                n += 1
                self.say(self.alice, MEDIA, b"bob", bytes((AUDIO,)) + b"%d " % n + bytes(150))
            kind = DELTA if frame % 50 else KEY
            for more in (0, CONTINUATION):
                self.say(self.alice, MEDIA, b"bob", bytes((kind | more,)) + b"%d " % frame + bytes(2_500))
            if frame % 5 == 0:
                texts.append(b"%d" % frame)
                self.say(self.carol, TEXT, b"bob", texts[-1])
            self.assertLess(self.factory._online[b"bob"].waiting, MAX_MEDIA + 20_000)
        self.bob.taken = b""
        self.bob.take(65_536)
        self.take()
        self.assertEqual(self.bob.texts(), texts)
        voices = [int(data[1:].split(b" ")[0]) for data in self.bob.got(MEDIA) if data[0] == AUDIO]
        self.assertEqual(voices[-1], n)
        self.assertEqual(voices[-4:], list(range(n - 3, n + 1)))
        old = [data for data in self.bob.got(MEDIA) if data[0] == AUDIO and int(data[1:].split(b" ")[0]) < n - 10]
        self.assertLessEqual(sum(len(data) + 10 for data in old), MIN_MEDIA + PIECE_IN_CALL)
        self.assertGreater(sum(count for what, count in self.factory.counters.items() if "dropped" in what), 0)
        self.bob.taken = b""
        self.say(self.alice, MEDIA, b"bob", bytes((DELTA,)))
        self.say(self.alice, MEDIA, b"bob", bytes((AUDIO,)) + b"fresh")
        self.say(self.alice, MEDIA, b"bob", bytes((KEY,)))
        self.say(self.alice, MEDIA, b"bob", bytes((DELTA,)))
        self.take()
        self.assertEqual([data[:2] for data in self.bob.got(MEDIA)], [b"\0f", b"\1", b"\2"])

    def test_nextCall(self) -> None:
        """What was lost of one call's video is not held against the next call's."""
        callId = self.talk()
        self.say(self.alice, MEDIA, b"bob", bytes((AUDIO,)))
        for kind in (KEY, AUDIO):
            self.say(self.alice, MEDIA, b"bob", bytes((kind,)) + bytes(MIN_MEDIA))
            self.reactor.advance(MAX_AGE + 0.01)
        self.take()
        self.assertEqual([data[0] for data in self.bob.got(MEDIA)], [AUDIO, AUDIO])
        self.say(self.alice, MessageType.CALL_END, b"bob", callId)
        self.take()
        self.talk()
        self.say(self.alice, MEDIA, b"bob", bytes((DELTA,)))
        self.take()
        self.assertEqual([data[0] for data in self.bob.got(MEDIA)], [DELTA])

    def test_others(self) -> None:
        """What waits for one party delays the other one by nothing, and loses nothing of what it hears."""
        self.talk()
        self.say(self.carol, TEXT, b"bob", bytes(60_000))
        for i in range(100):
            self.reactor.advance(0.02)
            self.say(self.alice, MEDIA, b"bob", bytes((AUDIO,)) + bytes(1_000))
            self.say(self.bob, MEDIA, b"alice", bytes((AUDIO, i)))
            self.take(self.alice)
            self.assertEqual(self.alice.got(MEDIA)[-1], bytes((AUDIO, i)))
        self.assertEqual(len(self.alice.got(MEDIA)), 100)
        self.assertGreater(self.factory.counters["media dropped: audio, waited too long"], 0)

    def test_flood(self) -> None:
        """However much media comes to somebody who takes nothing, it is not closed for that, and little waits."""
        self.talk()
        self.say(self.carol, TEXT, b"bob", b"fills the transport")
        for _ in range(300):
            self.say(self.alice, MEDIA, b"bob", bytes((KEY,)) + bytes(60_000))
            self.reactor.advance(0.04)
        self.assertIn("bob", self.factory.getOnlineUsers())
        self.assertLessEqual(self.factory._online[b"bob"].waiting, MAX_MEDIA)

    def assertGoesWell(self, steps: list[tuple[int, int]]) -> None:
        """
        Whatever comes for bob and however much his line takes, nothing but media is lost, no frame of media is torn and
        no delta frame follows a gap.

        @param steps: each is a kind of media or one of the three below, and a size.
        """
        self.setUp()
        self.talk()
        media, sent = MediaModel(), {TEXT: list[bytes](), FILE: list[bytes]()}
        for what, size in steps:
            if what == self.LINE:
                self.bob.take(size)
                self.bob.room = 0
            elif what == self.TIME:
                self.reactor.advance(size / 100_000)
            elif what < 0:
                messageType = (TEXT, FILE)[what == self.FILES]
                sent[messageType].append(b"\6%d " % size + bytes(size))
                self.assertTrue(self.factory.sendMessage("bob", sent[messageType][-1], messageType))
            else:
                self.say(self.alice, MEDIA, b"bob", media.make(what, size))
        self.take()
        for messageType, expected in sent.items():
            self.assertEqual(self.bob.got(messageType), expected)
        for data in self.bob.got(MEDIA):
            media.take(data)
        dropped = sum(n for what, n in self.factory.counters.items() if what.startswith("media dropped: "))
        self.assertEqual(dropped, media.missing())
        self.assertEqual(self.factory._turn.waiting, 0)

    TEXTS, FILES, TIME, LINE = -1, -2, -3, -4
    SIZES = st.one_of(st.integers(0, 200), st.integers(0, 20_000))
    VIDEO = (KEY, KEY | CONTINUATION, DELTA, DELTA, DELTA | CONTINUATION, AUDIO, OTHER)

    @given(st.lists(st.tuples(st.sampled_from([*VIDEO, TEXTS, FILES, TIME, LINE, LINE]), SIZES), max_size=60))
    def test_whatever(self, steps: list[tuple[int, int]]) -> None:
        """Whatever comes, and however much the line takes: see L{assertGoesWell}."""
        self.assertGoesWell(steps)

    MORE = (AUDIO | CONTINUATION, OTHER | CONTINUATION)

    @given(st.lists(st.tuples(st.sampled_from([*VIDEO, *MORE, TEXTS, TIME, LINE, LINE]), SIZES), max_size=60))
    @example([(TEXTS, 0), (OTHER, 9), (TIME, 20_000), (KEY, 9_000), (LINE, MIB), (OTHER | CONTINUATION, 9)])
    def test_whateverIsContinued(self, steps: list[tuple[int, int]]) -> None:
        """The same where sound and other media come in pieces too."""
        self.assertGoesWell(steps)


class Client(PlainReceiver):
    """One that tells of its end."""

    def __init__(self) -> None:
        super().__init__()
        self.lost: Deferred[None] = Deferred()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        self.lost.callback(None)


LOWAT = getattr(socket, "TCP_NOTSENT_LOWAT", None)


@skipUnless(LOWAT, "this system has no TCP_NOTSENT_LOWAT")
class KernelTests(TestCase):
    """What the kernel may hold unsent, on real sockets."""

    timeout = 20

    async def begin(self, plain: bool) -> None:
        """Let alice and bob register."""
        self.factory = WeCompanyFactory(reactor)
        port = await self.factory.startServer(0, "127.0.0.1", plain=plain)
        await self.connect(TCP4ClientEndpoint(reactor, "127.0.0.1", cast(Any, port).getHost().port))

    async def connect(self, endpoint: Any) -> None:
        self.alice, self.bob = [cast(Any, await endpoint.connect(Factory.forProtocol(Client))) for _ in range(2)]
        for client, name in ((self.alice, b"\0\5alice"), (self.bob, b"\0\3bob")):
            client.sendString(bytes((MessageType.HEARTBEAT,)) + name)
            await client.payloads.get()

    async def end(self) -> None:
        stopped = self.factory.stopServer()
        for client in (self.alice, self.bob):
            client.transport.loseConnection()
            await client.lost
        await stopped

    async def ring(self) -> bytes:
        self.alice.sendString(bytes((MessageType.CALL_REQUEST,)) + b"\0\3bob\0")
        return bytes((await self.bob.payloads.get())[8 : 8 + ID_SIZE])

    async def accept(self, callId: bytes) -> None:
        self.bob.sendString(bytes((MessageType.CALL_ACCEPT,)) + b"\0\5alice" + callId)
        await self.bob.payloads.get()

    def unsent(self) -> int:
        """Return the bytes that bob's socket may hold unsent."""
        handle = cast(Any, self.factory._online[b"bob"]).transport.getHandle()
        return int(handle.getsockopt(socket.IPPROTO_TCP, cast(int, LOWAT)))

    async def test_unsent(self) -> None:
        """The kernel takes more while less than 16 KiB are unsent, in a call while none are, on either path."""
        for plain in (True, False):
            await self.begin(plain)
            results = [self.unsent()]
            callId = await self.ring()
            results.append(self.unsent())
            await self.accept(callId)
            results.append(self.unsent())
            self.bob.sendString(bytes((MessageType.CALL_END,)) + b"\0\5alice" + callId)
            await self.bob.payloads.get()
            results.append(self.unsent())
            await self.end()
            self.assertEqual(results, [UNSENT, UNSENT, UNSENT_IN_CALL, UNSENT])

    async def test_voiceFirst(self) -> None:
        """A voice overtakes what waits for somebody who does not read, all but what the other's kernel has already."""
        for plain in (True, False):
            await self.begin(plain)
            await self.accept(await self.ring())
            self.bob.transport.pauseProducing()
            n = 90
            for i in range(n):
                self.factory.sendMessage("bob", b"%d " % i + bytes(60_000), (TEXT, FILE)[i % 2])
                await deferLater(reactor, 0)
            self.alice.sendString(bytes((MEDIA,)) + b"\0\3bob\0voice")
            self.alice.sendString(bytes((MessageType.HEARTBEAT,)) + b"\0\0?")
            while (await self.alice.payloads.get())[0] != MessageType.HEARTBEAT:
                pass
            waiting = self.factory._online[b"bob"].waiting
            self.bob.transport.resumeProducing()
            got = [await self.bob.payloads.get() for _ in range(n + 1 - self.factory.counters[REFUSED])]
            await self.end()
            self.assertGreater(waiting, MIB)
            voice = next(i for i, payload in enumerate(got) if payload[0] == MEDIA)
            self.assertGreater(sum(map(len, got[voice:])), waiting - 2 * 60_100)
            for messageType in (TEXT, FILE):
                numbers = [int(payload[3:].split(b" ")[0]) for payload in got if payload[0] == messageType]
                self.assertEqual(numbers, sorted(numbers))

    async def test_tls(self) -> None:
        """Over TLS it is the socket below that holds little, and texts that wait come in order."""
        folder = temporaryFolder(self)
        makeCertificate(folder / "key.pem", folder / "cert.pem")
        for listener in (reactor, Poller(reactor)):
            self.factory = WeCompanyFactory(reactor)
            description = f"ssl:0:interface=127.0.0.1:privateKey={folder}/key.pem:certKey={folder}/cert.pem"
            port: Any = await serverFromString(listener, description).listen(self.factory)
            plain = TCP4ClientEndpoint(reactor, "127.0.0.1", port.getHost().port)
            await self.connect(wrapClientTLS(CertificateOptions(), plain))
            handle = cast(Any, self.factory._online[b"bob"]).transport.transport.getHandle()
            results = [handle.getsockopt(socket.IPPROTO_TCP, cast(int, LOWAT))]
            await self.accept(await self.ring())
            results.append(handle.getsockopt(socket.IPPROTO_TCP, cast(int, LOWAT)))
            self.bob.transport.pauseProducing()
            n = 15
            for i in range(n):
                self.factory.sendMessage("bob", b"%d " % i + bytes(60_000))
                await deferLater(reactor, 0)
            self.bob.transport.resumeProducing()
            got = [await self.bob.payloads.get() for _ in range(n)]
            await self.end()
            await port.stopListening()
            self.assertEqual(results, [UNSENT, UNSENT_IN_CALL])
            self.assertEqual([int(payload[3:].split(b" ")[0]) for payload in got], list(range(n)))
