"""Reliable text under whatever happens to clients, connections, the server and its disk: a rule-based state machine."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from tests.slowdisk import KernelTransport, SlowDisk
from wecompany import ErrorCode, MessageType, testing
from wecompany.testing import FakeClient, Message
from wecompany.wire import decodeError

TEXT, ACK, DELAY, ERROR, HEARTBEAT = (
    MessageType.TEXT,
    MessageType.ACK,
    MessageType.DELAY,
    MessageType.ERROR,
    MessageType.HEARTBEAT,
)

ENDS = {ErrorCode.REPLACED, ErrorCode.SHUTTING_DOWN, ErrorCode.IDLE, ErrorCode.TOO_SLOW}
"""The ERRORs of a connection that is closed for a reason; others may not come."""

RELIABLE = ("ann", "bob", "cat")
PLAIN = "pat"
WANDERER = "cat"
"""Who has a second device."""

MOST_FRESH = 6
"""Registrations of one user that resume nothing: the server remembers eight sessions."""

people = st.integers(0, len(RELIABLE))
seldom = st.sampled_from((False, False, False, True))
sizes = st.sampled_from((0, 0, 0, 0, 20_000, 40_000))


class Device:
    """
    One client as it knows itself.

    @ivar inbox: each text that it got, (sender, data).
    @ivar sent: each text that somebody wrote here, (receiver, data), in order.
    @ivar acknowledged: those of them that the server has acknowledged.
    @ivar refused: those that it has answered with an ERROR.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.client: FakeClient | None = None
        self.unread: list[Message] = []
        self.abandoned: list[FakeClient] = []
        self.inbox: list[tuple[str, bytes]] = []
        self.sent: list[tuple[str, bytes]] = []
        self.acknowledged: set[bytes] = set()
        self.refused: set[bytes] = set()

    def hangUp(self) -> None:
        """All connections of this device break; what has come and was not read is lost."""
        for client in [*self.abandoned, self.client]:
            if client is not None:
                client.drop()
        self.forgetConnections()

    def forgetConnections(self) -> None:
        """They are gone, and what came over them and was not read."""
        self.client, self.unread, self.abandoned = None, [], []

    def read(self, most: int = 1_000_000) -> None:
        """Take what has come, up to so many texts."""
        client = self.client
        if client is None:
            return
        messages = self.unread + client.received()
        self.unread = []
        for i, (kind, userId, data) in enumerate(messages):
            if kind == TEXT:
                most -= 1
                if most < 0:
                    self.unread = messages[i:]
                    return
                self.takeText(userId, data)
            elif kind == DELAY:
                assert messages[i + 1][:2] == (TEXT, userId), "a DELAY stands directly before its TEXT"
            elif kind == ERROR:
                self.takeError(userId, data)
            else:
                self.takeOther(Message(kind, userId, data))
        if client.ended:
            self.client = None

    def takeText(self, sender: str, data: bytes) -> None:
        """A text comes."""
        self.inbox.append((sender, data))

    def takeError(self, userId: str, data: bytes) -> None:
        """An ERROR comes: it is about a text, or it is the end."""
        code, about, why = decodeError(data)
        if about == TEXT:
            assert code == ErrorCode.OVERLOADED, (code, why)
            self.textRefused()
        else:
            assert code in ENDS or (code, about) == (ErrorCode.OVERLOADED, ACK), (code, why)

    def textRefused(self) -> None:
        """A text of this client was answered with an ERROR."""

    def takeOther(self, message: Message) -> None:
        """Something else comes."""

    def write(self, receiver: str, data: bytes, isLost: bool) -> None:
        """Send a text; it may be lost on the way, and then so is the connection."""
        raise NotImplementedError


class PlainDevice(Device):
    """One that registers with a HEARTBEAT."""

    def write(self, receiver: str, data: bytes, isLost: bool) -> None:
        """Send a text if there is a connection; nobody would send it again."""
        if self.client is not None and not isLost:
            self.sent.append((receiver, data))
            self.client.send(TEXT, receiver, data)

    def textRefused(self) -> None:
        """It cannot know which one."""
        self.refused.add(b"some")


class ReliableDevice(Device):
    """
    One that registers with ACK, keeps what is not acknowledged, and resumes.

    @ivar taken: how many texts it took in its session.
    @ivar told: how many of them it has acknowledged.
    @ivar pending: what it has sent, and has no answer to.
    @ivar settled: how many texts of its session have an answer.
    """

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.sessionId = bytes(16)
        self.taken = self.told = self.settled = 0
        self.pending: list[tuple[str, bytes]] = []
        self.greeting = b""
        self.isReady = False

    def connect(self, server: SlowDisk) -> None:
        """Connect, and ask to go on."""
        self.client = server.connect()
        self.unread = []
        self.greeting = b""
        self.isReady = False
        self.client.send(ACK, self.name, self.taken.to_bytes(4, "big") + self.sessionId)

    def takeText(self, sender: str, data: bytes) -> None:
        """A text counts."""
        assert self.isReady, "HEARTBEAT and ACK come first"
        super().takeText(sender, data)
        self.taken += 1

    def textRefused(self) -> None:
        """The ACK of all before it has come before it."""
        self.refused.add(self.pending.pop(0)[1])
        self.settled += 1

    def takeOther(self, message: Message) -> None:
        """The answer to the registration, or an ACK."""
        if message.type == HEARTBEAT:
            if not self.greeting and message.data:
                assert not self.isReady
                self.greeting = message.data
            return
        assert message.type == ACK, message
        n = int.from_bytes(message.data, "big")
        assert self.greeting
        if self.isReady:
            assert n <= self.settled + len(self.pending), "no more is acknowledged than was sent"
        self.settle(n)
        if not self.isReady:
            self.sessionId = self.greeting
            self.isReady = True
            self.taken = self.told = self.settled = 0
            assert self.client is not None
            for receiver, data in self.pending:
                self.client.send(TEXT, receiver, data)

    def settle(self, n: int) -> None:
        """The server has taken the first C{n} texts, be it that it told of some otherwise."""
        more = max(0, n - self.settled)
        self.acknowledged.update(data for _, data in self.pending[:more])
        del self.pending[:more]
        self.settled += more

    def write(self, receiver: str, data: bytes, isLost: bool) -> None:
        """Send a text, now or when there is a connection again."""
        self.sent.append((receiver, data))
        self.pending.append((receiver, data))
        if self.client is not None and self.isReady and not isLost:
            self.client.send(TEXT, receiver, data)

    def acknowledge(self, n: int) -> None:
        """Tell the server that so many more have been taken."""
        if self.client is not None and self.isReady:
            self.told = min(self.taken, self.told + n)
            self.client.send(ACK, "", self.told.to_bytes(4, "big"))


class ReliableMachine(RuleBasedStateMachine):
    """Clients talk; connections break; the server stops or is killed, and its disk is slow or full at times."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = Path(tempfile.mkdtemp(prefix="wecompany-test-"))
        clock = Clock()
        clock.advance(1_700_000_000)
        self.server = SlowDisk(self.folder / "store.sqlite", clock)
        self.reliable = [ReliableDevice(name) for name in RELIABLE]
        self.other = ReliableDevice(WANDERER)
        self.plain = PlainDevice(PLAIN)
        self.serial = 0
        self.fresh = dict.fromkeys(RELIABLE, 0)
        self.wasKilled = False
        self.doubtful: set[bytes] = set()

    @invariant()
    def doubt(self) -> None:
        """What is under way while the disk is full may be refused; if that ERROR is lost, its sender cannot know."""
        if self.server.isFull:
            for device in (*self.reliable, self.other):
                self.doubtful.update(data for _, data in device.pending)
            self.doubtful.update(data for _, data in self.plain.sent)

    @initialize()
    def begin(self) -> None:
        """Everybody is known."""
        for device in self.reliable:
            self.connect(device)
            device.read()
        self.login()

    def devices(self) -> list[Device]:
        """All of them."""
        return [*self.reliable, self.other, self.plain]

    def device(self, who: int) -> Device:
        """One of those who talk: a user with two devices talks with the one that is connected."""
        if who == len(RELIABLE):
            return self.plain
        device = self.reliable[who]
        return self.other if device.name == WANDERER and self.other.client is not None else device

    def connect(self, device: ReliableDevice) -> None:
        """Register a reliable client."""
        if not any(device.sessionId):
            if self.fresh[device.name] == MOST_FRESH:
                return
            self.fresh[device.name] += 1
        device.connect(self.server)

    def login(self) -> None:
        """Register the plain client."""
        self.plain.client = self.server.connect()
        self.plain.client.send(HEARTBEAT, PLAIN)

    # -- rules

    @rule(who=people, to=people, n=st.integers(1, 3), size=sizes, isLost=seldom)
    def write(self, who: int, to: int, n: int, size: int, isLost: bool) -> None:
        """Somebody writes to somebody, maybe itself; it may be lost on the way with the connection."""
        device = self.device(who)
        for _ in range(n):
            self.serial += 1
            device.write((*RELIABLE, PLAIN)[to], b"%d " % self.serial + bytes(size), isLost)
        if isLost:
            self.cut(who, False)

    @rule(who=people, most=st.sampled_from((1, 2, 1_000)))
    def read(self, who: int, most: int) -> None:
        """Somebody reads what has come, or some of it."""
        self.device(who).read(most)

    @rule(who=people, n=st.integers(0, 3))
    def acknowledge(self, who: int, n: int) -> None:
        """Somebody acknowledges some of what it has taken."""
        device = self.device(who)
        if isinstance(device, ReliableDevice):
            device.acknowledge(n)

    @rule(who=people, isReading=st.booleans())
    def pause(self, who: int, isReading: bool) -> None:
        """Somebody stops reading, or begins again."""
        client = self.device(who).client
        if client is not None:
            (client.resumeReading if isReading else client.pauseReading)()

    @rule(who=people, hasRead=st.booleans())
    def hangUp(self, who: int, hasRead: bool) -> None:
        """A connection breaks."""
        self.cut(who, hasRead)

    def cut(self, who: int, hasRead: bool) -> None:
        """What was not read of a reliable connection is lost with it; a plain client has what its kernel has."""
        device = self.device(who)
        if hasRead or device is self.plain:
            device.read()
        device.hangUp()

    @rule(who=st.sets(people, min_size=1))
    def resume(self, who: set[int]) -> None:
        """Some of those who are not connected come back."""
        for device in map(self.device, who):
            if device.client is not None and not device.client.ended:
                continue
            device.read()
            if isinstance(device, ReliableDevice):
                self.connect(device)
                device.read()
            else:
                self.login()

    @rule(who=people)
    def resumeAgain(self, who: int) -> None:
        """Somebody comes back who, for the server, is still there, or is about to be."""
        device = self.device(who)
        if isinstance(device, ReliableDevice) and any(device.sessionId):
            if device.client is not None:
                device.abandoned.append(device.client)
            self.connect(device)

    @rule(isTime=seldom, isFirst=st.booleans(), hasRead=st.booleans())
    def change(self, isTime: bool, isFirst: bool, hasRead: bool) -> None:
        """The one with two devices leaves one, and registers with the other: from the beginning, or where it was."""
        if not isTime:
            return
        first = self.reliable[RELIABLE.index(WANDERER)]
        for device in (first, self.other):
            if hasRead:
                device.read()
            device.hangUp()
        self.connect(first if isFirst else self.other)

    @rule(what=st.sampled_from(("hold", "write", "tell", "release", "release", "fill", "empty", "empty")))
    def disk(self, what: str) -> None:
        """The disk is slow for a while, or full."""
        if what == "hold":
            self.server.isHeld = True
        elif what in ("fill", "empty"):
            self.server.isFull = what == "fill"
        else:
            getattr(self.server, what)()

    @rule(seconds=st.sampled_from((0.5, 1.0, 6.0)))
    def advance(self, seconds: float) -> None:
        """Time passes."""
        self.server.advance(seconds)

    @rule(
        isTime=seldom,
        readers=st.integers(0, 15),
        isKilled=st.sampled_from((True, True, False)),
        isWritten=st.booleans(),
    )
    def restart(self, isTime: bool, readers: int, isKilled: bool, isWritten: bool) -> None:
        """The server is stopped, or killed: maybe in the middle of a transaction, or just behind it."""
        if not isTime:
            return
        for i, device in enumerate(self.devices()):
            if device is self.plain or readers & 1 << i:
                device.read()
        if isKilled:
            if isWritten:
                self.server.write()
            self.wasKilled = True
            self.server = self.server.killed()
        else:
            self.server.close()
            self.plain.read()
            self.server = SlowDisk(self.server.path, self.server.clock)
        for device in self.devices():
            device.forgetConnections()

    # -- what holds at the end

    def settle(self) -> None:
        """The disk works, everybody comes back and reads all; then the promises are kept."""
        self.server.isFull = False
        self.server.release()
        self.server.advance(6)
        for device in self.devices():
            if device is self.plain:
                device.read()
            device.hangUp()
        for device in self.reliable:
            self.connect(device)
        self.login()
        for _ in range(8):
            for device in self.devices():
                device.read()
                if isinstance(device, ReliableDevice):
                    device.acknowledge(1_000_000)
            self.server.advance(1)
        self.check()

    def check(self) -> None:
        """What was promised."""
        everywhere = {name: [d for d in self.devices() if d.name == name] for name in (*RELIABLE, PLAIN)}
        for device in self.devices():
            assert device is self.other or device.client is not None or self.fresh.get(device.name) == MOST_FRESH
            mayRepeat = device is self.plain and self.wasKilled
            got = [data for _, data in device.inbox]
            assert mayRepeat or len(set(got)) == len(got), f"{device.name} got something twice"
            for sender in self.devices():
                numbers = [int(data.split()[0]) for _, data in device.inbox if (device.name, data) in sender.sent]
                assert mayRepeat or numbers == sorted(numbers), f"{device.name} got something in the wrong order"
        for sender in self.devices():
            for receiver, data in sender.sent:
                isSafe = data in sender.acknowledged - self.doubtful
                if sender is self.plain:
                    isSafe = not (self.wasKilled or sender.refused or data in self.doubtful)
                if isSafe:
                    isThere = any((sender.name, data) in device.inbox for device in everywhere[receiver])
                    assert isThere, f"{data[:20]!r} from {sender.name} to {receiver} is lost"
            if isinstance(sender, ReliableDevice) and sender.client is not None:
                assert not sender.pending, "all have an answer"
                assert all(data in sender.acknowledged | sender.refused for _, data in sender.sent)

    def teardown(self) -> None:
        """Settle at last."""
        try:
            if self.serial:
                self.settle()
        finally:
            self.server.close()
            shutil.rmtree(self.folder)


class ReliableMachineTests(SynchronousTestCase):
    """The machine, run."""

    def test_machine(self) -> None:
        """Whatever breaks, each acknowledged text arrives once and in order, and no client gets one twice."""
        self.patch(testing, "MemoryTransport", KernelTransport)
        run_state_machine_as_test(ReliableMachine, settings=settings(max_examples=60, stateful_step_count=50))
