"""The hub under whatever several clients do in whatever order: a rule-based state machine, and what always holds."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from twisted.trial.unittest import SynchronousTestCase

from wecompany import ErrorCode, FileOp, MessageType
from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import checkUserId

NAMES = ("ann", "bob", "cat", "dan")
STAGES = {
    MessageType.CALL_REQUEST: 0,
    MessageType.CALL_ACCEPT: 1,
    MessageType.CALL_REJECT: 2,
    MessageType.CALL_END: 2,
}
"""How far a call has come when a frame of this type is told: it rings, is active, is over."""

OVER = 2
CLOSING = {
    *(ErrorCode.MALFORMED, ErrorCode.NOT_REGISTERED, ErrorCode.ID_IN_USE, ErrorCode.SHUTTING_DOWN),
    *(ErrorCode.REPLACED, ErrorCode.IDLE, ErrorCode.TOO_SLOW),
}
"""The ERRORs after which the server closes."""

WINDOW = 1_048_576
MOST_PEOPLE = 8

GOING_ON = (FileOp.ACCEPT, FileOp.CHUNK, FileOp.DONE, FileOp.RECEIVED, FileOp.CREDIT, FileOp.CREDIT)

indexes = st.integers(0, 1000)
names = st.sampled_from(NAMES)
strangers = st.sampled_from((*NAMES, "nobody"))
bodies = st.binary(max_size=20)


class Person:
    """One connection, as whoever sits there sees it."""

    def __init__(self, client: FakeClient) -> None:
        self.client = client
        self.name = ""
        self.isOnline = False
        self.sessionId = b""
        self.stages: dict[bytes, int] = {}


class Call:
    """What all clients together know of one call."""

    def __init__(self, caller: str, callee: str) -> None:
        self.parties = caller, callee
        self.stage = 0


class Transfer:
    """What the two parties of one transfer know of it."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.isAccepted = self.isDone = False
        self.next = self.credit = 0

    def goesOnWith(self) -> FileOp:
        """What should come next."""
        if not self.isAccepted:
            return FileOp.ACCEPT
        if self.next < self.size:
            return FileOp.CHUNK
        return FileOp.RECEIVED if self.isDone else FileOp.DONE


class HubMachine(RuleBasedStateMachine):
    """
    Clients connect, register, talk and vanish.

    The model knows only what clients have been told, never what the server has inside.
    """

    def __init__(self) -> None:
        super().__init__()
        self.server = MemoryServer(callGrace=15)
        self.people: list[Person] = []
        self.calls: dict[bytes, Call] = {}
        self.transfers: dict[bytes, Transfer] = {}
        self.heard: list[tuple[int, Person, Message]] = []

    # -- the model

    def online(self) -> list[Person]:
        """Everyone who is registered and connected, as they know themselves."""
        return [person for person in self.people if person.isOnline]

    def anyone(self, index: int) -> Person:
        """Someone who is online."""
        online = self.online()
        return online[index % len(online)]

    def named(self, name: str) -> Person | None:
        """The one who is online under that name."""
        return next((person for person in self.online() if person.name == name), None)

    def settle(self) -> None:
        """Let everyone read what has come.  Every frame decodes, or the fake client itself would fail."""
        for person in self.people:
            messages = person.client.received()
            for i, message in enumerate(messages):
                if message.userId:
                    checkUserId(message.userId.encode())
                self.read(person, message, messages[i + 1 :])
            person.isOnline = person.isOnline and not person.client.ended

    def read(self, person: Person, message: Message, rest: list[Message]) -> None:
        """One message arrives; C{rest} came with it."""
        kind, userId, data = message
        if kind == MessageType.HEARTBEAT and not person.isOnline:
            assert (userId, len(data)) == (person.name, 16)
            person.isOnline, person.sessionId = True, data
            told = rest[0].data[:16] if rest and rest[0].type in STAGES else b""
            for callId, call in self.calls.items():
                if person.name in call.parties and callId != told:
                    call.stage = OVER
        elif kind == MessageType.ERROR:
            assert data[0] != ErrorCode.INTERNAL
            if person.isOnline:  # else it is a newcomer who is turned away
                self.heard.append((kind, person, message))
            person.isOnline = person.isOnline and data[0] not in CLOSING
        elif kind == MessageType.AUTH_RESPONSE:
            assert not person.isOnline
            isRefusal = data[:1] == b"\0"
            assert userId == person.name
            assert isRefusal or (data == b"\1" and rest[0].type == MessageType.HEARTBEAT)
        else:
            assert person.isOnline, "only the registered are told anything else"
            if kind in STAGES:
                self.readCall(person, kind, userId, data)
            elif kind == MessageType.FILE:
                self.readFile(person, userId, data)
            else:
                assert kind in (MessageType.TEXT, MessageType.MEDIA_DATA, MessageType.HEARTBEAT)
                self.heard.append((kind, person, message))

    def readCall(self, person: Person, kind: int, peer: str, data: bytes) -> None:
        """A call only goes forward, and concerns nobody but its parties."""
        callId, stage = data[:16], STAGES[MessageType(kind)]
        call = self.calls.get(callId)
        if call is None:
            if stage == OVER:
                return  # it could not ring, or ended before anyone but its absent parties knew of it
            isCaller = len(data) == 17  # all offers here have a byte at least
            parties = (person.name, peer) if isCaller else (peer, person.name)
            call = self.calls[callId] = Call(*parties)
        assert {person.name, peer} == set(call.parties)
        before = person.stages.get(callId, 0)
        assert stage >= before, "a call never goes back"
        assert before != OVER, "an ended call is told once"
        person.stages[callId] = stage
        call.stage = max(call.stage, stage)

    def readFile(self, person: Person, peer: str, data: bytes) -> None:
        """Whatever reaches a party of a transfer keeps to its rules."""
        op, transferId, rest = data[0], data[1:17], data[17:]
        sender = transferId.rstrip(b"0123456789\0").decode()
        assert sender in (person.name, peer)
        if op == FileOp.OFFER:
            assert transferId not in self.transfers
            self.transfers[transferId] = Transfer(int.from_bytes(rest[:8], "big"))
        elif op == FileOp.CANCEL:
            self.transfers.pop(transferId, None)
        else:
            transfer = self.transfers[transferId]
            assert (person.name == sender) == (op in (FileOp.ACCEPT, FileOp.CREDIT, FileOp.RECEIVED))
            offset = int.from_bytes(rest[:8], "big")
            if op == FileOp.ACCEPT:
                assert not transfer.isAccepted
                assert offset <= transfer.size
                transfer.isAccepted, transfer.next, transfer.credit = True, offset, offset
                return
            assert transfer.isAccepted
            if op == FileOp.CHUNK:
                assert offset == transfer.next
                transfer.next += len(rest) - 8
                assert transfer.next <= min(transfer.size, transfer.credit + WINDOW)
            elif op == FileOp.CREDIT:
                assert transfer.credit <= offset <= transfer.next
                transfer.credit = offset
            elif op == FileOp.DONE:
                assert transfer.next == transfer.size
                transfer.isDone = True
            else:
                assert transfer.isDone
                del self.transfers[transferId]

    def liveCallOf(self, name: str) -> Call | None:
        """The call in which that user is, as far as clients know; there is one at most."""
        live = [call for call in self.calls.values() if call.stage != OVER and name in call.parties]
        assert len(live) <= 1, "one call at a time"
        return live[0] if live else None

    # -- connections

    def connect(self, name: str, kind: int, data: bytes = b"") -> Person:
        """Someone connects, and says who it is."""
        person = Person(self.server.connect())
        person.name = name
        self.people.append(person)
        person.client.send(kind, name, data)
        self.settle()
        return person

    @initialize()
    def begin(self) -> None:
        """Three are there from the beginning."""
        for name in NAMES[:3]:
            self.connect(name, MessageType.HEARTBEAT)

    @precondition(lambda self: len(self.people) < MOST_PEOPLE and len(self.online()) < len(NAMES))
    @rule(index=indexes, kind=st.sampled_from((MessageType.HEARTBEAT, MessageType.LOGIN, MessageType.TEXT)))
    def register(self, index: int, kind: int) -> None:
        """Someone who is offline registers, with whatever frame."""
        offline = [name for name in NAMES if self.named(name) is None]
        assert self.connect(offline[index % len(offline)], kind).isOnline

    @precondition(lambda self: len(self.people) < MOST_PEOPLE)
    @rule()
    def linger(self) -> None:
        """Someone connects and says nothing."""
        self.people.append(Person(self.server.connect()))

    @precondition(lambda self: len(self.people) < MOST_PEOPLE and self.online())
    @rule(index=indexes, kind=st.sampled_from((MessageType.HEARTBEAT, MessageType.LOGIN)))
    def contest(self, index: int, kind: int) -> None:
        """Someone registers an ID that is in use, and has to wait, if for anything."""
        old = self.anyone(index)
        person = self.connect(old.name, kind)
        assert (old.isOnline, person.isOnline) == (True, False)

    @precondition(lambda self: len(self.people) < MOST_PEOPLE and self.online())
    @rule(index=indexes)
    def takeOver(self, index: int) -> None:
        """Someone registers again with its session ID, while the old connection is still there."""
        old = self.anyone(index)
        call = self.liveCallOf(old.name)
        person = self.connect(old.name, MessageType.ACK, bytes(4) + old.sessionId)
        assert (old.isOnline, person.isOnline) == (False, True)
        assert self.liveCallOf(old.name) is call, "a takeover carries calls over"

    @precondition(lambda self: self.people)
    @rule(index=indexes)
    def drop(self, index: int) -> None:
        """A connection breaks."""
        person = self.people.pop(index % len(self.people))
        person.client.drop()

    @rule(seconds=st.sampled_from((0.5, 1.0, 4.0, 5.0, 10.0, 15.0, 31.0)), areAlive=st.integers(0, 3))
    def advance(self, seconds: float, areAlive: int) -> None:
        """Time passes; mostly the clients show that they are alive."""
        for person in self.online() if areAlive else ():
            person.client.send(MessageType.HEARTBEAT)
        self.server.advance(seconds)

    # -- messages

    @precondition(lambda self: self.online())
    @rule(index=indexes, to=strangers, body=bodies)
    def text(self, index: int, to: str, body: bytes) -> None:
        """A text reaches whom it is for, exactly, and nobody else; if nobody is there the sender is told."""
        sender, receiver = self.anyone(index), self.named(to)
        self.heard.clear()
        sender.client.send(MessageType.TEXT, to, body)
        self.settle()
        if receiver is not None:
            assert self.heard == [(MessageType.TEXT, receiver, Message(MessageType.TEXT, sender.name, body))]
        else:
            assert [(kind, person, m.data[0]) for kind, person, m in self.heard] == [
                (MessageType.ERROR, sender, ErrorCode.OFFLINE)
            ]

    @precondition(lambda self: self.online())
    @rule(index=indexes, body=bodies)
    def heartbeat(self, index: int, body: bytes) -> None:
        """A heartbeat is answered with the same data."""
        sender = self.anyone(index)
        self.heard.clear()
        sender.client.send(MessageType.HEARTBEAT, "", body)
        self.settle()
        assert (MessageType.HEARTBEAT, sender, Message(MessageType.HEARTBEAT, "", body)) in self.heard

    @precondition(lambda self: self.online())
    @rule(index=indexes, kind=st.integers(16, 255), tag=st.sampled_from((b"\0\0", b"\0\1x", b"\0\1/", b"\0\x09", b"")))
    def junk(self, index: int, kind: int, tag: bytes) -> None:
        """Someone sends a frame of an unknown type, or that is none; it is told so."""
        person = self.anyone(index)
        payload = bytes((kind,)) + tag
        self.heard.clear()
        person.client.sendBytes(len(payload).to_bytes(2, "big") + payload)
        self.settle()
        assert [(kind, who) for kind, who, _ in self.heard][:1] == [(MessageType.ERROR, person)]

    # -- calls

    @precondition(lambda self: self.online())
    @rule(index=indexes, to=st.none() | strangers, flags=st.integers(0, 255))
    def request(self, index: int, to: str | None, flags: int) -> None:
        """Someone calls someone, more often than not somebody who is online."""
        data = bytes((flags,)) + b"offer"
        self.anyone(index).client.send(MessageType.CALL_REQUEST, to or self.anyone(index + 1).name, data)

    @precondition(lambda self: self.online() and self.calls)
    @rule(
        index=indexes,
        which=st.integers(0, 3),
        kind=st.sampled_from((MessageType.CALL_ACCEPT, MessageType.CALL_REJECT, MessageType.CALL_END)),
        to=st.none() | names,
        tail=bodies,
    )
    def callFrame(self, index: int, which: int, kind: int, to: str | None, tail: bytes) -> None:
        """Someone sends something about one of the newest calls, be it its own or not, over or not."""
        callId = list(self.calls)[-1 - which % len(self.calls)]
        caller, callee = self.calls[callId].parties
        person = self.anyone(index)
        peer = to or (callee if person.name == caller else caller)
        person.client.send(kind, peer, callId + tail)

    @precondition(lambda self: any(call.stage == 0 for call in self.calls.values()))
    @rule(throughTheApi=st.booleans())
    def answer(self, throughTheApi: bool) -> None:
        """The callee of a ringing call accepts it."""
        callId, call = next((callId, call) for callId, call in self.calls.items() if call.stage == 0)
        caller, callee = call.parties
        person = self.named(callee)
        if throughTheApi or person is None:
            assert self.server.factory.calls.acceptCall(callId.hex()) or not (self.named(caller) or person)
        else:
            person.client.send(MessageType.CALL_ACCEPT, caller, callId)
            self.settle()
            assert call.stage == 1

    @precondition(lambda self: self.online())
    @rule(index=indexes, to=st.none() | strangers, body=bodies)
    def media(self, index: int, to: str | None, body: bytes) -> None:
        """Media reaches the other party of an active call, and nobody else ever."""
        sender = self.anyone(index)
        call = self.liveCallOf(sender.name)
        peers = [name for name in call.parties if name != sender.name] if call is not None else []
        to = to or (peers[0] if peers else "nobody")
        receiver = self.named(to) if call is not None and call.stage == 1 and to in peers else None
        self.heard.clear()
        sender.client.send(MessageType.MEDIA_DATA, to, body)
        self.settle()
        message = Message(MessageType.MEDIA_DATA, sender.name, body)
        assert self.heard == ([] if receiver is None else [(MessageType.MEDIA_DATA, receiver, message)])

    # -- files

    @precondition(lambda self: len(self.online()) > 1)
    @rule(index=indexes, to=st.none() | names, n=st.integers(0, 5), size=st.sampled_from((3_000_000, 50, 1, 0)))
    def offer(self, index: int, to: str | None, n: int, size: int) -> None:
        """Someone offers a file, mostly to somebody who is online."""
        sender = self.anyone(index)
        self.sendFile(
            sender, to or self.anyone(index + 1).name, FileOp.OFFER, n, size.to_bytes(8, "big") + bytes(32) + b"name"
        )

    @precondition(lambda self: self.transfers)
    @rule(
        which=indexes,
        other=st.none() | st.none() | st.sampled_from(GOING_ON),
        skew=st.sampled_from((0, 0, 0, 0, 0, 0, -1, 1)),
        length=st.sampled_from((1, 49, 60_000)),
    )
    def transfer(self, which: int, other: FileOp | None, skew: int, length: int) -> None:
        """A party goes on with a transfer, more often than not as it should."""
        transferId, transfer = list(self.transfers.items())[which % len(self.transfers)]
        sender = transferId.rstrip(b"0123456789\0").decode()
        receiver = NAMES[transferId[len(sender)] - ord("0")]
        op = other or transfer.goesOnWith()
        offset = max(0, (0 if op == FileOp.ACCEPT else transfer.next) + skew)
        bySender = op in (FileOp.CHUNK, FileOp.DONE)
        person = self.named(sender if bySender else receiver)
        assert person is not None, "a transfer is over when a party is lost"
        rest = b"" if op in (FileOp.DONE, FileOp.RECEIVED) else offset.to_bytes(8, "big")
        if op == FileOp.CHUNK:
            rest += bytes(min(length, max(1, transfer.size - offset)))
        person.client.send(MessageType.FILE, receiver if bySender else sender, bytes((op,)) + transferId + rest)

    @precondition(lambda self: self.online())
    @rule(index=indexes, to=names, op=st.integers(0, 7), n=st.integers(0, 5), rest=bodies)
    def fileFrame(self, index: int, to: str, op: int, n: int, rest: bytes) -> None:
        """Someone sends whatever about a transfer, be it its own or not."""
        self.sendFile(self.anyone(index), to, op, n, rest)

    def sendFile(self, sender: Person, to: str, op: int, n: int, rest: bytes) -> None:
        """Send an op of the transfer with that number from one to the other, which its ID names."""
        transferId = f"{sender.name}{NAMES.index(to)}{n}".encode().ljust(16, b"\0")
        sender.client.send(MessageType.FILE, to, bytes((op,)) + transferId + rest)

    # -- what always holds

    @invariant()
    def holds(self) -> None:
        """The hub and its clients agree on who is online and in a call; nobody is in two calls."""
        self.settle()
        self.heard.clear()
        online = [person.name for person in self.online()]
        assert sorted(self.server.factory.getOnlineUsers()) == sorted(online)
        calls = self.server.factory.calls
        talking = [name for session in calls.getActiveCalls() for name in (session.caller, session.callee)]
        assert len(talking) == len(set(talking))
        for name in online:
            call = self.liveCallOf(name)
            assert calls.isUserInCall(name) == (call is not None), name
            assert (name in talking) == (call is not None and call.stage == 1), name
        for transferId in self.transfers:
            sender = transferId.rstrip(b"0123456789\0").decode()
            assert {sender, NAMES[transferId[len(sender)] - ord("0")]} <= set(online)

    def teardown(self) -> None:
        """When all are gone nothing of them is left: no user, no call, no timer."""
        for person in self.people:
            person.client.drop()
        self.server.advance(60)
        factory = self.server.factory
        assert (factory.getOnlineUsers(), factory.calls.getActiveCalls()) == ([], [])
        assert not any(factory.calls.getCallSession(callId.hex()) for callId in self.calls)
        assert not any(factory.calls.isUserInCall(name) for name in NAMES)
        assert self.server.clock.getDelayedCalls() == []


class HubTests(SynchronousTestCase):
    """The machine, run."""

    def test_machine(self) -> None:
        """Whatever clients do: one call a user, true presence, exact texts, media only for the other party."""
        run_state_machine_as_test(HubMachine, settings=settings(max_examples=200, stateful_step_count=80))
