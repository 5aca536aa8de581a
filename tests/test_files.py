"""File transfers: section 5 of the contract."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from tests.test_calls import A_MOMENT, Scene, error
from wecompany import CancelCode, ErrorCode, FileOp, MessageType
from wecompany.files import MAX_REMEMBERED
from wecompany.testing import FakeClient, Message

FILE = MessageType.FILE
OFFER, ACCEPT, CHUNK, DONE = FileOp.OFFER, FileOp.ACCEPT, FileOp.CHUNK, FileOp.DONE
RECEIVED, CANCEL, CREDIT = FileOp.RECEIVED, FileOp.CANCEL, FileOp.CREDIT

T = b"the transfer ID."
SHA256 = bytes(range(32))
WINDOW = 1_048_576
LONGEST = 60_000
PEER = {"alice": "bob", "bob": "alice"}


def u64(number: int) -> bytes:
    """An offset or a size."""
    return number.to_bytes(8, "big")


def offer(size: int = 100, name: bytes = b"name") -> bytes:
    """What follows the transfer ID in an OFFER."""
    return u64(size) + SHA256 + name


def op(kind: int, rest: bytes = b"", transferId: bytes = T) -> bytes:
    """The data of a FILE frame."""
    return bytes((kind,)) + transferId + rest


def cancelled(peer: str, code: CancelCode, transferId: bytes = T) -> Message:
    """A CANCEL without its text, which is free where it comes from the server."""
    return Message(FILE, peer, op(CANCEL, bytes((code,)), transferId))


def number(n: int) -> bytes:
    """Another transfer ID for each number."""
    return n.to_bytes(16, "big")


class FileScene(Scene):
    """Alice sends a file to bob; carol has no part in it."""

    def op(self, sender: str, kind: int, rest: bytes = b"", peer: str = "", transferId: bytes = T) -> None:
        """Let a user send an op, of the transfer between alice and bob if nothing else is said."""
        self.send(sender, FILE, peer or PEER[sender], op(kind, rest, transferId))

    def assertPassedOn(self, sender: str, kind: int, rest: bytes = b"", transferId: bytes = T) -> None:
        """What alice or bob sends gets to the other one, byte for byte, and nowhere else."""
        self.op(sender, kind, rest, transferId=transferId)
        self.assertTold({PEER[sender]: [Message(FILE, sender, op(kind, rest, transferId))]}, FileOp(kind).name)

    def assertRefused(
        self, code: ErrorCode, sender: str, kind: int, rest: bytes = b"", peer: str = "", transferId: bytes = T
    ) -> None:
        """The op is answered with an ERROR, and nothing else happens."""
        self.op(sender, kind, rest, peer, transferId)
        self.assertTold({sender: [error(code, FILE, peer or PEER[sender])]}, f"{sender} {kind} {rest[:20]!r}")

    def assertBothCancelled(self, code: CancelCode, about: str = "") -> None:
        """Alice and bob are told that the transfer is over, and nobody anything else."""
        told = {
            name: [m._replace(data=m.data[:18]) for m in client.received()] for name, client in self.clients.items()
        }
        self.assertEqual(
            {name: ms for name, ms in told.items() if ms},
            {name: [cancelled(peer, code)] for name, peer in PEER.items()},
            about,
        )

    def assertCancelled(self, name: str, code: CancelCode) -> None:
        """One of the two is told that the transfer is over, and nobody anything else."""
        got = [m._replace(data=m.data[:18]) for m in self.clients[name].received()]
        self.assertEqual(got, [cancelled(PEER[name], code)])
        self.assertTold()

    def assertDropped(self, sender: str, kind: int, rest: bytes) -> None:
        """The op is answered by nothing, reaches nobody, and is counted."""
        before = self.counted()
        self.op(sender, kind, rest)
        self.assertTold(about=FileOp(kind).name)
        self.assertEqual(self.counted(), before + 1)

    def offered(self, size: int = 100) -> None:
        """There is an offer."""
        self.op("alice", OFFER, offer(size))
        self.forgetFrames()

    def accepted(self, size: int = 100, offset: int = 0) -> None:
        """There is an accepted transfer."""
        self.offered(size)
        self.op("bob", ACCEPT, u64(offset))
        self.forgetFrames()

    def sent(self, upTo: int, offset: int = 0) -> None:
        """Alice sends chunks from one offset up to another, which bob gets."""
        chunks = [(at, bytes(min(LONGEST, upTo - at))) for at in range(offset, upTo, LONGEST)]
        for at, part in chunks:
            self.op("alice", CHUNK, u64(at) + part)
        got = [Message(FILE, "alice", op(CHUNK, u64(at) + part)) for at, part in chunks]
        self.assertTold({"bob": got} if got else {})

    def done(self, size: int = 100) -> None:
        """Alice has sent everything."""
        self.accepted(size)
        self.sent(size)
        self.op("alice", DONE)
        self.forgetFrames()


class TransferTests(FileScene):
    """A transfer that goes well."""

    def test_whole(self) -> None:
        """Every op is passed on to the other party, byte for byte, and the transfer is over with RECEIVED."""
        self.assertPassedOn("alice", OFFER, offer(LONGEST + 1, "Bericht für Zoë.pdf".encode()))
        self.assertPassedOn("bob", ACCEPT, u64(0))
        self.assertPassedOn("alice", CHUNK, u64(0) + bytes(range(240)) * 250)
        self.assertPassedOn("bob", CREDIT, u64(LONGEST))
        self.assertPassedOn("alice", CHUNK, u64(LONGEST) + b"x")
        self.assertPassedOn("alice", DONE)
        self.assertPassedOn("bob", CREDIT, u64(LONGEST + 1))
        self.assertPassedOn("bob", RECEIVED)
        self.assertRefused(ErrorCode.BAD_REQUEST, "bob", RECEIVED)

    def test_empty(self) -> None:
        """A file may be empty: nothing is sent before DONE."""
        self.assertPassedOn("alice", OFFER, offer(0))
        self.assertPassedOn("bob", ACCEPT, u64(0))
        self.assertPassedOn("alice", DONE)
        self.assertPassedOn("bob", RECEIVED)

    def test_fromAnOffset(self) -> None:
        """The receiver may take a file from where an earlier try stopped, even from its very end."""
        for offset in (1, 40, 100):
            self.open()
            self.offered(100)
            self.assertPassedOn("bob", ACCEPT, u64(offset))
            self.sent(100, offset)
            self.assertPassedOn("alice", DONE)
            self.assertPassedOn("bob", RECEIVED)

    def test_hugeOffset(self) -> None:
        """Sizes and offsets go up to the end of a u64."""
        size = 2**64 - 1
        self.assertPassedOn("alice", OFFER, offer(size))
        self.assertPassedOn("bob", ACCEPT, u64(size - 1))
        self.assertPassedOn("alice", CHUNK, u64(size - 1) + b"x")
        self.assertPassedOn("alice", DONE)

    def test_transfersDoNotMix(self) -> None:
        """The same ID in the other direction or to another receiver, and another ID, are other transfers."""
        self.accepted(10)
        self.assertPassedOn("bob", OFFER, offer(20))
        self.assertPassedOn("alice", OFFER, offer(30), transferId=number(1))
        self.op("alice", OFFER, offer(40), "carol")
        self.assertTold({"carol": [Message(FILE, "alice", op(OFFER, offer(40)))]})
        self.assertPassedOn("alice", ACCEPT, u64(20))
        self.assertPassedOn("bob", ACCEPT, u64(30), transferId=number(1))
        self.op("carol", ACCEPT, u64(40), "alice")
        self.assertTold({"alice": [Message(FILE, "carol", op(ACCEPT, u64(40)))]})
        self.assertPassedOn("bob", DONE)
        self.assertPassedOn("alice", DONE, transferId=number(1))
        self.sent(10)
        self.assertPassedOn("alice", DONE)
        self.assertPassedOn("alice", RECEIVED)
        self.assertPassedOn("bob", RECEIVED)


class OfferTests(FileScene):
    """What can be offered."""

    def test_names(self) -> None:
        """A name of 1 to 255 bytes of UTF-8 is passed on as it is."""
        for i, name in enumerate(("x", "...", ".profile", "a b", "CON", "名前.txt", "x" * 255, "x" + "ü" * 127)):
            self.assertPassedOn("alice", OFFER, offer(1, name.encode()), transferId=number(i))

    def test_hostileNames(self) -> None:
        """A name that could lead out of a folder, lie on a terminal, or that is too long or none, is a badRequest."""
        for name in (
            *(b"", b".", b"..", b"/", b"/etc/passwd", b"../x", b"a/b", b"\\", b"..\\x", b"C:\\x"),
            *(b"\0", b"a\0b", b"a\n", b"\x1b[2J", b"\x7f", "\u0080".encode(), "a\u009b".encode()),
            *(b"\xff", b"\xc0\xae\xc0\xae", b"\xed\xa0\x80", b"x" * 256, b"x" + "ü".encode() * 128),
        ):
            self.assertRefused(ErrorCode.BAD_REQUEST, "alice", OFFER, offer(1, name))
        self.assertPassedOn("alice", OFFER, offer())

    def test_offline(self) -> None:
        """An OFFER to someone who is not online is answered with offline."""
        self.assertRefused(ErrorCode.OFFLINE, "alice", OFFER, offer(), "nobody")
        self.drop("bob")
        self.assertRefused(ErrorCode.OFFLINE, "alice", OFFER, offer())
        self.login("bob")
        self.assertPassedOn("alice", OFFER, offer())

    def test_toOneself(self) -> None:
        """An OFFER to oneself is a badRequest."""
        self.assertRefused(ErrorCode.BAD_REQUEST, "alice", OFFER, offer(), "alice")

    def test_badUserIds(self) -> None:
        """An op to what is no user ID is a badRequest."""
        for userId in (b"", b"#group", b"a/b", b"\xff"):
            for kind, rest in ((OFFER, offer()), (CHUNK, u64(0) + b"x"), (CANCEL, b"\0")):
                self.clients["alice"].send(FILE, userId, op(kind, rest))
                self.assertTold({"alice": [error(ErrorCode.BAD_REQUEST, FILE, "")]})

    def test_underWay(self) -> None:
        """A transfer that is under way cannot be offered again, and goes on."""
        self.offered()
        self.assertRefused(ErrorCode.BAD_REQUEST, "alice", OFFER, offer())
        self.assertPassedOn("bob", ACCEPT, u64(0))
        self.assertRefused(ErrorCode.BAD_REQUEST, "alice", OFFER, offer())
        self.sent(100)

    def test_lapses(self) -> None:
        """An offer that nobody accepts within 10 min is cancelled for both."""
        self.offered()
        self.server.advance(600 - A_MOMENT)
        self.assertTold()
        self.server.advance(A_MOMENT)
        self.assertBothCancelled(CancelCode.CANCELLED)
        self.assertRefused(ErrorCode.BAD_REQUEST, "bob", ACCEPT, u64(0))

    def test_acceptedInTime(self) -> None:
        """An offer that is accepted within 10 min does not lapse any more."""
        self.offered()
        self.server.advance(600 - A_MOMENT)
        self.assertPassedOn("bob", ACCEPT, u64(0))
        self.server.advance(1000)
        self.sent(100)


class WindowTests(FileScene):
    """At most 1 MiB is under way."""

    def test_fromAccept(self) -> None:
        """The window begins at the offset of the ACCEPT: up to its end, and not a byte further."""
        for offset in (0, 70_001):
            self.open()
            self.accepted(10 * WINDOW, offset)
            self.sent(offset + WINDOW, offset)
            self.op("alice", CHUNK, u64(offset + WINDOW) + b"x")
            self.assertBothCancelled(CancelCode.RULE_BROKEN)

    def test_acrossItsEnd(self) -> None:
        """The end of a chunk counts, not its beginning."""
        self.accepted(10 * WINDOW)
        self.sent(WINDOW - 10)
        self.op("alice", CHUNK, u64(WINDOW - 10) + bytes(11))
        self.assertBothCancelled(CancelCode.RULE_BROKEN)

    def test_credit(self) -> None:
        """Each CREDIT moves the window's end, whatever was sent before; as far, and not a byte further."""
        self.accepted(10 * WINDOW)
        self.sent(WINDOW)
        self.assertPassedOn("bob", CREDIT, u64(1))
        self.sent(WINDOW + 1, WINDOW)
        self.assertPassedOn("bob", CREDIT, u64(WINDOW + 1))
        self.assertPassedOn("bob", CREDIT, u64(WINDOW + 1))
        self.sent(2 * WINDOW + 1, WINDOW + 1)
        self.op("alice", CHUNK, u64(2 * WINDOW + 1) + b"x")
        self.assertBothCancelled(CancelCode.RULE_BROKEN)

    def test_creditOnlyGrows(self) -> None:
        """A CREDIT below an earlier one or the ACCEPT, or before it, is a badRequest, and the window stays."""
        self.offered(10 * WINDOW)
        self.assertRefused(ErrorCode.BAD_REQUEST, "bob", CREDIT, u64(0))
        self.assertPassedOn("bob", ACCEPT, u64(10))
        self.assertRefused(ErrorCode.BAD_REQUEST, "bob", CREDIT, u64(9))
        self.sent(30, 10)
        self.assertPassedOn("bob", CREDIT, u64(20))
        self.assertRefused(ErrorCode.BAD_REQUEST, "bob", CREDIT, u64(19))
        self.sent(20 + WINDOW, 30)


# -- Rules ---------------------------------------------------------------------------------------------------------


def broken(
    rule: str, prepare: Callable[[FileScene], None], sender: str, kind: FileOp, rest: bytes = b""
) -> Callable[[FileScene], None]:
    """Return the test of one rule: what C{sender} sends then is answered to both with CANCEL rule broken."""

    def test(self: FileScene) -> None:
        prepare(self)
        self.op(sender, kind, rest)
        self.assertBothCancelled(CancelCode.RULE_BROKEN, rule)
        self.assertRefused(ErrorCode.BAD_REQUEST, "bob", RECEIVED)
        self.assertDropped("alice", CHUNK, u64(0) + b"x")
        self.assertPassedOn("alice", OFFER, offer())

    test.__doc__ = rule
    return test


def offered(scene: FileScene) -> None:
    """100 bytes are offered."""
    scene.offered()


def accepted(scene: FileScene) -> None:
    """They are accepted."""
    scene.accepted()


def resumed(scene: FileScene) -> None:
    """They are accepted from the 40th on."""
    scene.accepted(100, 40)


def halfSent(scene: FileScene) -> None:
    """50 of them are sent."""
    scene.accepted()
    scene.sent(50)


def allSent(scene: FileScene) -> None:
    """All of them are sent."""
    scene.accepted()
    scene.sent(100)


class RuleTests(FileScene):
    """Each cause of CANCEL rule broken; TransferTests and WindowTests stand on the other side of each boundary."""

    test_chunkNotAccepted = broken(
        "A chunk of a transfer that is not accepted.", offered, "alice", CHUNK, u64(0) + b"x"
    )
    test_chunkNotFromTheStart = broken("A first chunk past the start.", accepted, "alice", CHUNK, u64(1) + b"x")
    test_chunkBeforeTheOffset = broken(
        "A first chunk before the accepted offset.", resumed, "alice", CHUNK, u64(39) + b"x"
    )
    test_chunkPastTheOffset = broken("A first chunk past the accepted offset.", resumed, "alice", CHUNK, u64(41) + b"x")
    test_chunkLeavesAGap = broken("A chunk that leaves a gap.", halfSent, "alice", CHUNK, u64(51) + b"x")
    test_chunkRepeats = broken("A chunk that repeats bytes.", halfSent, "alice", CHUNK, u64(49) + b"xx")
    test_chunkPastTheSize = broken("A chunk past the size.", allSent, "alice", CHUNK, u64(100) + b"x")
    test_chunkAcrossTheSize = broken("A chunk across the size.", halfSent, "alice", CHUNK, u64(50) + bytes(51))
    test_doneNotAccepted = broken("DONE before the offer is accepted.", offered, "alice", DONE)
    test_doneAtOnce = broken("DONE before anything is sent.", accepted, "alice", DONE)
    test_doneTooEarly = broken("DONE before all is sent.", halfSent, "alice", DONE)
    test_receivedNotAccepted = broken("RECEIVED of an offer.", offered, "bob", RECEIVED)
    test_receivedTooEarly = broken("RECEIVED before all is sent.", halfSent, "bob", RECEIVED)
    test_receivedBeforeDone = broken("RECEIVED before DONE.", allSent, "bob", RECEIVED)
    test_creditNotAccepted = broken("CREDIT of what was not even accepted.", offered, "bob", CREDIT, u64(1))
    test_creditTooMuch = broken("CREDIT past what was sent.", halfSent, "bob", CREDIT, u64(51))
    test_creditTooMuchResumed = broken("CREDIT past the offset before a chunk.", resumed, "bob", CREDIT, u64(41))
    test_acceptPastTheSize = broken("ACCEPT past the size.", offered, "bob", ACCEPT, u64(101))
    test_acceptTwice = broken("A second ACCEPT.", accepted, "bob", ACCEPT, u64(0))
    test_acceptAfterAll = broken("A second ACCEPT when all is sent.", allSent, "bob", ACCEPT, u64(0))

    def test_doneTwice(self) -> None:
        """A second DONE is a badRequest, and the receiver gets only one."""
        self.done()
        self.assertRefused(ErrorCode.BAD_REQUEST, "alice", DONE)
        self.assertPassedOn("bob", RECEIVED)

    def test_chunkLengths(self) -> None:
        """A chunk has 1 to 60,000 bytes; else it is a badRequest, and the transfer goes on."""
        self.accepted(LONGEST + 1)
        self.assertRefused(ErrorCode.BAD_REQUEST, "alice", CHUNK, u64(0))
        self.assertRefused(ErrorCode.BAD_REQUEST, "alice", CHUNK, u64(0) + bytes(LONGEST + 1))
        self.assertPassedOn("alice", CHUNK, u64(0) + bytes(LONGEST))
        self.assertPassedOn("alice", CHUNK, u64(LONGEST) + b"x")

    def test_longestIds(self) -> None:
        """The longest chunk fits into a frame with the longest user IDs."""
        alice, bob = "ä" * 64, "ö" * 64
        for name in (alice, bob):
            self.login(name)
        for sender, peer, kind, rest in (
            (alice, bob, OFFER, offer(LONGEST, b"x" * 255)),
            (bob, alice, ACCEPT, u64(0)),
            (alice, bob, CHUNK, u64(0) + bytes(LONGEST)),
        ):
            self.op(sender, kind, rest, peer)
            self.assertTold({peer: [Message(FILE, sender, op(kind, rest))]})

    def test_badFields(self) -> None:
        """Missing or superfluous fields and unknown ops are badRequests, and the transfer goes on."""
        for data in (b"", op(OFFER)[:16], op(OFFER, offer(1, b"")), op(7), op(255)):
            self.send("alice", FILE, "bob", data)
            self.assertTold({"alice": [error(ErrorCode.BAD_REQUEST, FILE, "bob")]})
        self.offered()
        for rest in (b"", bytes(7), bytes(9)):
            self.assertRefused(ErrorCode.BAD_REQUEST, "bob", ACCEPT, rest)
        self.assertPassedOn("bob", ACCEPT, u64(0))
        for rest in (b"", bytes(7), bytes(9)):
            self.assertRefused(ErrorCode.BAD_REQUEST, "bob", CREDIT, rest)
        self.assertRefused(ErrorCode.BAD_REQUEST, "alice", CHUNK, bytes(7))
        self.sent(100)
        self.assertRefused(ErrorCode.BAD_REQUEST, "alice", DONE, b"x")
        self.assertPassedOn("alice", DONE)
        self.assertRefused(ErrorCode.BAD_REQUEST, "bob", RECEIVED, b"x")
        for rest in (b"", b"\0" + b"x" * 1_025):
            self.assertRefused(ErrorCode.BAD_REQUEST, "bob", CANCEL, rest)
        self.assertPassedOn("bob", RECEIVED)

    def test_noParty(self) -> None:
        """An op of a transfer to which its sender is no party is a badRequest, and the transfer goes on."""
        ops = (ACCEPT, u64(0)), (CHUNK, u64(0) + b"x"), (DONE, b""), (RECEIVED, b""), (CANCEL, b"\0"), (CREDIT, u64(0))
        for prepare in (offered, allSent):
            self.open()
            prepare(self)
            for kind, rest in ops:
                for sender, peer in (("carol", "alice"), ("carol", "bob"), ("alice", "carol"), ("bob", "nobody")):
                    self.assertRefused(ErrorCode.BAD_REQUEST, sender, kind, rest, peer)
                for sender in PEER:
                    self.assertRefused(ErrorCode.BAD_REQUEST, sender, kind, rest, transferId=number(0))
        self.assertPassedOn("alice", DONE)

    def test_wrongSide(self) -> None:
        """What only the receiver may say is a badRequest from the sender, and the other way round."""
        for prepare in (offered, allSent):
            self.open()
            prepare(self)
            for sender, kind, rest in (
                ("alice", ACCEPT, u64(0)),
                ("alice", CREDIT, u64(0)),
                ("alice", RECEIVED, b""),
                ("bob", CHUNK, u64(0) + b"x"),
                ("bob", DONE, b""),
            ):
                self.assertRefused(ErrorCode.BAD_REQUEST, sender, kind, rest)
        self.assertPassedOn("alice", DONE)


# -- The end -------------------------------------------------------------------------------------------------------


class Ending(NamedTuple):
    """One way in which a transfer ends."""

    prepare: Callable[[FileScene], None]
    sender: str
    kind: FileOp
    rest: bytes = b""


class EndTests(FileScene):
    """How a transfer ends, and what comes after that."""

    def test_cancel(self) -> None:
        """Either may cancel at any time; code and text are passed on, and the transfer is over."""
        for prepare in (offered, accepted, halfSent, allSent, FileScene.done):
            for sender in PEER:
                self.open()
                prepare(self)
                self.assertPassedOn(sender, CANCEL, b"\1changed my mind \xff")
                for name in PEER:
                    self.assertRefused(ErrorCode.BAD_REQUEST, name, CANCEL, b"\1")

    def assertCancelCodesPassedOn(self, *codes: int) -> None:
        """These codes of a client's CANCEL reach the other party."""
        for code in codes:
            for sender in PEER:
                self.offered()
                self.assertPassedOn(sender, CANCEL, bytes((code,)))

    def test_cancelCodes(self) -> None:
        """The codes with which a client gives up are passed on as they are."""
        self.assertCancelCodesPassedOn(0, 1, 2, 5)

    def test_cancelCodes_others(self) -> None:
        """So are peer lost and rule broken: a server passes each op on, and CANCEL may be sent by either."""
        self.assertCancelCodesPassedOn(3, 4)

    def test_cancelText(self) -> None:
        """The text of a CANCEL has at most 1,024 bytes."""
        self.offered()
        self.assertRefused(ErrorCode.BAD_REQUEST, "bob", CANCEL, b"\0" + b"x" * 1_025)
        self.assertPassedOn("bob", CANCEL, b"\0" + b"x" * 1_024)

    def test_creditOfATryBefore(self) -> None:
        """A CREDIT that crosses a second offer of the same file is dropped and counted; the offer stands."""
        self.accepted()
        self.sent(50)
        self.op("alice", CANCEL, b"\1")
        self.offered()
        before = self.server.factory.counters["file frames dropped: transfer over"]
        self.op("bob", CREDIT, u64(50))
        self.assertTold({})
        self.assertEqual(self.server.factory.counters["file frames dropped: transfer over"], before + 1)
        self.assertPassedOn("bob", ACCEPT, u64(50))

    def test_late(self) -> None:
        """However a transfer ended: CHUNK, CREDIT and DONE within 32 s are dropped and counted, then badRequests."""
        for ending in (
            Ending(FileScene.done, "bob", RECEIVED),
            Ending(offered, "bob", CANCEL, b"\0"),
            Ending(halfSent, "bob", CANCEL, b"\5"),
            Ending(halfSent, "alice", CANCEL, b"\1"),
            Ending(halfSent, "alice", CHUNK, u64(0) + b"x"),
        ):
            self.open()
            ending.prepare(self)
            self.op(ending.sender, ending.kind, ending.rest)
            self.forgetFrames()
            self.assertLateFramesDropped()

    def test_late_lapsed(self) -> None:
        """The same goes for an offer that lapsed."""
        self.offered()
        self.server.advance(600)
        self.forgetFrames()
        self.assertLateFramesDropped()

    def test_late_lost(self) -> None:
        """The same goes for a transfer whose party was lost, and for one who is back soon."""
        for name in PEER:
            self.open()
            halfSent(self)
            self.drop(name)
            self.login(name)
            self.forgetFrames()
            self.assertLateFramesDropped()

    def assertLateFramesDropped(self) -> None:
        """The transfer has just ended."""
        late = ("alice", CHUNK, u64(50) + b"x"), ("alice", DONE, b""), ("bob", CREDIT, u64(50))
        for seconds in (0, 32 - A_MOMENT):
            self.server.advance(seconds)
            for frame in late:
                self.assertDropped(*frame)
        for sender, kind, rest in (("bob", ACCEPT, u64(0)), ("bob", RECEIVED, b""), ("alice", CANCEL, b"\1")):
            self.assertRefused(ErrorCode.BAD_REQUEST, sender, kind, rest)
        for sender, kind, rest in late:  # those of others are no late frames
            self.assertRefused(ErrorCode.BAD_REQUEST, "carol", kind, rest, PEER[sender])
            self.assertRefused(ErrorCode.BAD_REQUEST, sender, kind, rest, transferId=number(0))
        self.server.advance(A_MOMENT)
        for frame in late:
            self.assertRefused(ErrorCode.BAD_REQUEST, *frame)

    def test_late_atMost(self) -> None:
        """Of more than 10,000 ended transfers within 32 s the oldest are forgotten, so that memory is bounded."""
        self.assertEqual(MAX_REMEMBERED, 10_000)

        def endAnother(first: int, last: int) -> None:
            frames = [
                bytes((FILE,)) + b"\0\3bob" + data
                for n in range(first, last)
                for data in (op(OFFER, offer(), number(n)), op(CANCEL, b"\1", number(n)))
            ]
            self.clients["alice"].sendBytes(b"".join(len(f).to_bytes(2, "big") + f for f in frames))
            self.forgetFrames()

        for n in range(0, 10_000, 20):  # few at once, for the fake clock's sake
            endAnother(n, n + 20)
        self.op("alice", DONE, transferId=number(0))
        self.assertTold()
        endAnother(10_000, 10_001)
        self.assertRefused(ErrorCode.BAD_REQUEST, "alice", DONE, transferId=number(0))
        self.op("alice", DONE, transferId=number(1))
        self.assertTold()

    def test_lost(self) -> None:
        """When a party is lost the other one is told at once, and the lost one nothing when it is back."""
        for prepare in (offered, accepted, halfSent, FileScene.done):
            for name in PEER:
                self.open()
                prepare(self)
                self.drop(name)
                self.assertCancelled(PEER[name], CancelCode.PEER_LOST)
                self.login(name)
                self.assertTold()

    def test_lost_all(self) -> None:
        """All transfers of a lost user are cancelled, in both directions, and those of others are not."""
        self.offered()
        self.op("bob", OFFER, offer(), "alice", number(1))
        self.op("carol", OFFER, offer(), "alice", number(2))
        self.op("carol", OFFER, offer(), "bob", number(3))
        self.forgetFrames()
        self.drop("alice")
        told = {
            name: {m._replace(data=m.data[:18]) for m in self.clients[name].received()} for name in ("bob", "carol")
        }
        lost = CancelCode.PEER_LOST
        self.assertEqual(told["bob"], {cancelled("alice", lost), cancelled("alice", lost, number(1))})
        self.assertEqual(told["carol"], {cancelled("alice", lost, number(2))})
        self.op("bob", ACCEPT, u64(0), "carol", number(3))
        self.assertTold({"carol": [Message(FILE, "bob", op(ACCEPT, u64(0), number(3)))]})

    def test_resume(self) -> None:
        """A transfer whose party was lost can be offered again under its ID and accepted from where it stopped."""
        for name in PEER:
            self.open()
            self.accepted(3 * LONGEST)
            self.sent(2 * LONGEST)
            self.drop(name)
            self.login(name)
            self.forgetFrames()
            self.assertPassedOn("alice", OFFER, offer(3 * LONGEST))
            self.assertPassedOn("bob", ACCEPT, u64(LONGEST))
            self.sent(3 * LONGEST, LONGEST)
            self.assertPassedOn("bob", CREDIT, u64(3 * LONGEST))
            self.assertPassedOn("alice", DONE)
            self.assertPassedOn("bob", RECEIVED)

    def test_takeover(self) -> None:
        """A takeover cancels files: the other party is told peer lost, the newcomer nothing."""
        for name in PEER:
            self.open()
            halfSent(self)
            newcomer: FakeClient = self.server.connect()
            newcomer.send(MessageType.ACK, name, bytes(4) + self.clients[name].sessionId)
            self.assertEqual([m.type for m in newcomer.received()], [MessageType.HEARTBEAT])
            self.clients[name] = newcomer
            self.assertCancelled(PEER[name], CancelCode.PEER_LOST)
            self.assertPassedOn("alice", OFFER, offer())

    def test_stop(self) -> None:
        """A server that stops leaves no timer of an offer behind."""
        self.offered()
        self.op("alice", OFFER, offer(), transferId=number(1))
        self.op("bob", ACCEPT, u64(0), transferId=number(1))
        stopped = self.server.factory.stopServer()
        self.drop(*self.clients)
        self.assertIsNone(self.successResultOf(stopped))
        self.server.advance(1)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])


# -- Limits --------------------------------------------------------------------------------------------------------


class LimitTests(FileScene):
    """At most 32 offered and 4 accepted transfers per user and direction."""

    def open(self, **options: Any) -> None:
        """Begin anew, with a fourth user."""
        super().open(**options)
        self.login("dave")

    def offers(self, sender: str, receiver: str, *numbers: int) -> None:
        """Offer transfers with such IDs, which the receiver gets."""
        for n in numbers:
            self.op(sender, OFFER, offer(0), receiver, number(n))
        self.assertTold({receiver: [Message(FILE, sender, op(OFFER, offer(0), number(n))) for n in numbers]})

    def accepts(self, receiver: str, sender: str, *numbers: int) -> None:
        """Accept transfers with such IDs, which the sender gets."""
        for n in numbers:
            self.op(receiver, ACCEPT, u64(0), sender, number(n))
        self.assertTold({sender: [Message(FILE, receiver, op(ACCEPT, u64(0), number(n))) for n in numbers]})

    def assertNoOffer(self, sender: str, receiver: str) -> None:
        """One offer more is too many."""
        self.assertRefused(ErrorCode.OVERLOADED, sender, OFFER, offer(0), receiver, number(99))

    def assertNoAccept(self, receiver: str, sender: str, n: int) -> None:
        """To accept this one too is too many."""
        self.assertRefused(ErrorCode.OVERLOADED, receiver, ACCEPT, u64(0), sender, number(n))

    def test_offeredBySender(self) -> None:
        """A user has 32 offers of its own waiting, whomever they are for; it can still be offered files."""
        self.offers("alice", "bob", *range(16))
        self.offers("alice", "carol", *range(16))
        self.assertNoOffer("alice", "bob")
        self.assertNoOffer("alice", "dave")
        self.offers("bob", "alice", 99)
        self.offers("dave", "bob", 99)

    def test_offeredToReceiver(self) -> None:
        """A user has 32 offers from others waiting, whomever they are from; it can still offer files itself."""
        self.offers("bob", "alice", *range(16))
        self.offers("carol", "alice", *range(16))
        self.assertNoOffer("bob", "alice")
        self.assertNoOffer("dave", "alice")
        self.offers("alice", "bob", 99)
        self.offers("bob", "dave", 99)

    def test_offered_frees(self) -> None:
        """Whatever becomes of an offer makes room for another one."""
        self.offers("alice", "bob", *range(32))
        self.assertNoOffer("alice", "bob")
        self.accepts("bob", "alice", 0)
        self.offers("alice", "bob", 32)
        self.op("bob", CANCEL, b"\0", "alice", number(1))
        self.op("alice", CANCEL, b"\1", "bob", number(2))
        self.op("alice", CHUNK, u64(0) + b"x", "bob", number(3))
        self.forgetFrames()
        self.offers("alice", "bob", 33, 34, 35)
        self.assertNoOffer("alice", "bob")
        self.server.advance(600)
        self.forgetFrames()
        self.offers("alice", "bob", *range(40, 72))
        self.assertNoOffer("alice", "bob")
        self.drop("bob")
        self.forgetFrames()
        self.offers("alice", "carol", *range(32))
        self.assertNoOffer("alice", "carol")

    def test_acceptedOfSender(self) -> None:
        """4 files of a user are under way, whomever they are for; it can still receive."""
        for receiver, numbers in (("bob", (1, 2)), ("carol", (3, 4)), ("dave", (5,))):
            self.offers("alice", receiver, *numbers)
        self.accepts("bob", "alice", 1, 2)
        self.accepts("carol", "alice", 3, 4)
        self.assertNoAccept("dave", "alice", 5)
        self.offers("dave", "alice", 6)
        self.accepts("alice", "dave", 6)

    def test_acceptedByReceiver(self) -> None:
        """4 files are under way to a user, whomever they are from; it can still send."""
        for sender, numbers in (("bob", (1, 2)), ("carol", (3, 4)), ("dave", (5,))):
            self.offers(sender, "alice", *numbers)
        self.accepts("alice", "bob", 1, 2)
        self.accepts("alice", "carol", 3, 4)
        self.assertNoAccept("alice", "dave", 5)
        self.offers("alice", "dave", 6)
        self.accepts("dave", "alice", 6)

    def test_accepted_frees(self) -> None:
        """Each transfer that ends, however it does, makes room; the offer that was refused can be accepted then."""
        ends: tuple[tuple[str, FileOp, bytes], ...] = (
            ("bob", RECEIVED, b""),
            ("bob", CANCEL, b"\0"),
            ("alice", CANCEL, b"\1"),
            ("alice", CHUNK, u64(0) + b"x"),
        )
        self.offers("alice", "bob", *range(9))
        self.accepts("bob", "alice", 0, 1, 2, 3)
        for n, (sender, kind, rest) in enumerate(ends):
            self.assertNoAccept("bob", "alice", n + 4)
            if kind == RECEIVED:
                self.op("alice", DONE, transferId=number(n))
            self.op(sender, kind, rest, transferId=number(n))
            self.forgetFrames()
            self.accepts("bob", "alice", n + 4)
        self.assertNoAccept("bob", "alice", 8)
        self.drop("bob")
        self.login("bob")
        self.forgetFrames()
        self.offers("alice", "bob", *range(5))
        self.accepts("bob", "alice", 0, 1, 2, 3)
        self.assertNoAccept("bob", "alice", 4)

    def test_refusedAcceptIsNone(self) -> None:
        """An ACCEPT that was refused for the limit is not the first of two."""
        self.offers("alice", "bob", *range(5))
        self.accepts("bob", "alice", *range(4))
        self.assertNoAccept("bob", "alice", 4)
        self.assertNoAccept("bob", "alice", 4)
        self.op("bob", CANCEL, b"\0", transferId=number(0))
        self.forgetFrames()
        self.accepts("bob", "alice", 4)
