"""Slow receivers: what waits for them is bounded, in bytes and in time."""

from __future__ import annotations

import tracemalloc
from typing import Any

from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address
from twisted.internet.error import ConnectionAborted
from twisted.internet.testing import MemoryReactorClock
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase

from wecompany.protocol import WeCompanyProtocol
from wecompany.server import WeCompanyFactory
from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import NO_TYPE, ErrorCode, MessageType, decodeError, decodeFrames, encodeFrame

MIB = 1_048_576

FILL = 65_531
"""Bytes of data in a frame of 64 KiB from the server itself: the transport takes one, and asks for no more."""


class OutboundTestCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.server = MemoryServer()
        self.slow, self.bob = self.server.login("slow"), self.server.login("bob")

    def fill(self, frames: int, data: bytes = bytes(FILL)) -> None:
        for _ in range(frames):
            self.assertTrue(self.server.factory.sendMessage("slow", data))

    def assertTooSlow(self, client: FakeClient) -> None:
        """The client's last word is ERROR tooSlow, behind whole frames."""
        self.assertNotIn("slow", self.server.factory.getOnlineUsers())
        client.resumeReading()
        *_, error = client.received()
        self.assertEqual((error.type, error.userId), (MessageType.ERROR, ""))
        self.assertEqual(decodeError(error.data)[:2], (ErrorCode.TOO_SLOW, NO_TYPE))
        self.assertTrue(client.ended)


class BytesTests(OutboundTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.slow.pauseReading()
        self.fill(1, bytes(FILL + 1))  # the transport's own

    def test_most(self) -> None:
        """4 MiB may wait, and arrive whole and in order when the client reads on."""
        for i in range(64):
            self.fill(1, bytes((i,)) * FILL)
        self.server.advance(5)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        self.slow.resumeReading()
        self.assertEqual([m.data for m in self.slow.received()[1:]], [bytes((i,)) * FILL for i in range(64)])
        self.fill(1)
        self.assertEqual(len(self.slow.received()), 1)

    def test_tooMuch(self) -> None:
        """When more than 4 MiB waits the client is closed as tooSlow, after whole frames."""
        self.fill(64)
        self.fill(1, b"")
        self.server.pump()
        self.assertTooSlow(self.slow)
        self.assertFalse(self.server.factory.sendMessage("slow", "hello"))

    def test_smallFrames(self) -> None:
        """The bound is in bytes, however many frames they are."""
        data = bytes(1019)
        self.fill(4096, data)
        self.server.advance(1)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        self.fill(1, b"")
        self.server.pump()
        self.assertTooSlow(self.slow)

    def test_again(self) -> None:
        """What has been read waits no more: there is room for as much again."""
        self.fill(64)
        self.slow.resumeReading()
        self.assertEqual(len(self.slow.received()), 65)
        self.slow.pauseReading()
        self.fill(1, bytes(FILL + 1))
        self.fill(64)
        self.server.advance(5)
        self.assertIn("slow", self.server.factory.getOnlineUsers())
        self.fill(1, b"")
        self.server.pump()
        self.assertTooSlow(self.slow)

    def test_dropped(self) -> None:
        """A client that does not even read its last word is dropped within seconds."""
        self.fill(66)
        self.server.advance(2)
        self.assertTrue(self.slow.transport.connected)
        self.server.advance(3)
        self.assertFalse(self.slow.transport.connected)

    def test_othersAreUndisturbed(self) -> None:
        """One receiver that does not read slows nobody: neither its sender nor the sender's other work."""
        for i in range(70):
            self.bob.send(MessageType.TEXT, "slow", bytes(65_000))
            self.bob.send(MessageType.HEARTBEAT, "", b"%d" % i)
            if "slow" in self.server.factory.getOnlineUsers():
                self.assertEqual(self.bob.received(), [Message(MessageType.HEARTBEAT, "", b"%d" % i)])
        self.assertFalse(self.bob.ended)
        self.assertEqual(self.server.factory.getOnlineUsers(), ["bob"])
        self.assertGreater(sum(self.server.factory.counters.values()), 0)

    def test_presence(self) -> None:
        """Others learn that a client which was closed as tooSlow is offline."""
        self.bob.send(MessageType.PRESENCE, "slow", b"\1")
        self.fill(66)
        self.server.advance(1)
        self.assertEqual([m.data for m in self.bob.received()], [b"\1", b"\0"])

    def test_lostWhileMuchWaits(self) -> None:
        """When the connection breaks nothing is left of what waited, and the next one begins empty."""
        self.fill(64)
        self.slow.drop()
        self.slow = self.server.login("slow")
        self.assertEqual(self.slow.received(), [])
        self.fill(1, b"hello")
        self.assertEqual(self.slow.received(), [Message(MessageType.TEXT, "", b"hello")])

    def test_closedWhileMuchWaits(self) -> None:
        """A client that is closed for another reason gets what waits first, and the reason behind it."""
        self.fill(10)
        newcomer = self.server.connect()
        newcomer.send(MessageType.ACK, "slow", bytes(4) + self.slow.sessionId)
        self.slow.resumeReading()
        *texts, error = self.slow.received()
        self.assertEqual((len(texts), error.data[0]), (11, ErrorCode.REPLACED))

    def test_stoppedWhileMuchWaits(self) -> None:
        """The server stops within 5 s although a client does not read."""
        self.fill(64)
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

    def texts(self) -> list[bytes]:
        """Return the data of all TEXTs that have been taken whole."""
        return [data for messageType, _, data, _ in decodeFrames(self.taken) if messageType == MessageType.TEXT]


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
        texts = [b"%d" % i + bytes(60_000) for i in range(80)] + [b"small"]
        for text in texts:
            self.factory.sendMessage("slow", text)
        self.socket.take(10 * MIB)  # in the same turn: the reactor writes before the next timers
        self.reactor.advance(0)
        self.socket.take(10 * MIB)
        taken = [(len(text), text[:5]) for text in self.socket.texts()]
        self.assertEqual(taken, [(len(text), text[:5]) for text in texts[: len(taken)]])
        self.assertLess(len(taken), 80)

    def test_lastWord(self) -> None:
        """The ERROR tooSlow stands behind a whole frame, also where the network had taken a part of one."""
        for _ in range(3):
            self.factory.sendMessage("slow", bytes(60_000))
        self.socket.take(30_000)
        for _ in range(80):
            self.factory.sendMessage("slow", bytes(60_000))
        self.reactor.advance(0)
        self.socket.take(10 * MIB)
        *_, (messageType, userId, data, end) = decodeFrames(self.socket.taken)
        self.assertEqual((messageType, userId, data[0]), (MessageType.ERROR, b"", ErrorCode.TOO_SLOW))
        self.assertEqual(end, len(self.socket.taken))

    def test_lost(self) -> None:
        """When the connection is lost while much waits, nothing is left and nothing fails."""
        for _ in range(80):
            self.factory.sendMessage("slow", bytes(60_000))
        self.protocol.connectionLost()
        self.socket.connectionLost(Failure(ConnectionAborted()))
        self.advance(2)
        self.assertEqual(self.factory.getOnlineUsers(), [])
        self.assertEqual(self.reactor.getDelayedCalls(), [])
