"""The wire: bytes to messages and back, without any connection."""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum
from itertools import pairwise

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.testing import StringTransport
from twisted.protocols.basic import Int16StringReceiver
from twisted.trial.unittest import SynchronousTestCase

from wecompany import wire
from wecompany.testing import MemoryServer, Message
from wecompany.wire import ErrorCode, FileOffer, MessageType, WireError

Frame = tuple[int, bytes, bytes]

FRAMES = st.lists(st.tuples(st.integers(0, 255), st.binary(max_size=150), st.binary(max_size=300)), max_size=8)

SOME: list[Frame] = [(0, b"bob", b"hello"), (7, b"", b""), (15, "王".encode(), bytes(range(256))), (255, b"", b"\0")]


def encoded(frames: list[Frame]) -> bytes:
    return b"".join(wire.encodeFrame(*frame) for frame in frames)


def fed(pieces: list[bytes]) -> tuple[list[Frame], bytes]:
    """Return the frames of a stream that arrives in C{pieces}, and what is left of it."""
    frames: list[Frame] = []
    kept = b""
    for piece in pieces:
        kept += piece
        end = 0
        for messageType, userId, data, end in wire.decodeFrames(kept):
            frames.append((messageType, userId, data))
        kept = kept[end:]
    return frames, kept


def cut(stream: bytes, places: list[int]) -> list[bytes]:
    ends = [0, *sorted(place % (len(stream) + 1) for place in places), len(stream)]
    return [stream[a:b] for a, b in pairwise(ends)]


class WireTestCase(SynchronousTestCase):
    def refused(self, code: ErrorCode, decode: Callable[..., object], *arguments: object) -> None:
        e = self.assertRaises(WireError, decode, *arguments)
        self.assertEqual(e.code, code)
        self.assertTrue(e.text)

    def badRequest(self, decode: Callable[..., object], *arguments: object) -> None:
        self.refused(ErrorCode.BAD_REQUEST, decode, *arguments)


class HasFrameTests(SynchronousTestCase):
    """L{wire.hasFrame}."""

    @given(st.binary(max_size=20))
    def test_asDecoded(self, stream: bytes) -> None:
        """It is true of just those streams from which decodeFrames takes or refuses something."""
        try:
            isSomething = any(True for _ in wire.decodeFrames(stream))
        except WireError:
            isSomething = True
        self.assertEqual(wire.hasFrame(stream), isSomething)


class NamesTests(SynchronousTestCase):
    def test_numbers(self) -> None:
        """Every name has the number that the contract gives it, and there are no others."""
        tables: list[tuple[type[IntEnum], int, str]] = [
            (
                wire.MessageType,
                0,
                "TEXT FILE CALL_REQUEST CALL_ACCEPT CALL_REJECT CALL_END MEDIA_DATA HEARTBEAT LOGIN SIGNUP"
                " AUTH_RESPONSE ERROR PRESENCE ACK DELAY GROUP",
            ),
            (
                wire.ErrorCode,
                1,
                "MALFORMED NOT_REGISTERED BAD_CREDENTIAL ID_IN_USE OFFLINE NO_SUCH_CALL OVERLOADED BAD_REQUEST"
                " FORBIDDEN SHUTTING_DOWN REPLACED IDLE TOO_SLOW INTERNAL",
            ),
            (wire.RejectCode, 0, "DECLINED BUSY OFFLINE NO_ANSWER TO_SELF OVERLOADED FORBIDDEN UNSUPPORTED"),
            (wire.EndCode, 0, "HUNG_UP CANCELLED PEER_LOST MAX_DURATION SHUTTING_DOWN ANSWERED_ELSEWHERE"),
            (wire.FileOp, 0, "OFFER ACCEPT CHUNK DONE RECEIVED CANCEL CREDIT"),
            (wire.CancelCode, 0, "DECLINED CANCELLED HASH_MISMATCH PEER_LOST RULE_BROKEN NO_SPACE"),
            (wire.PresenceOp, 0, "LIST SUBSCRIBE UNSUBSCRIBE LIST_ALL"),
            (wire.MediaKind, 0, "AUDIO VIDEO_KEY VIDEO_DELTA OTHER"),
        ]
        for enum, first, names in tables:
            with self.subTest(enum=enum.__name__):
                self.assertEqual({e.name: e.value for e in enum}, {n: i for i, n in enumerate(names.split(), first)})

    def test_bounds(self) -> None:
        """Every bound is the contract's."""
        bounds = {
            "MAX_PAYLOAD": 65_535,
            "MAX_FIRST_PAYLOAD": 2_048,
            "MAX_USER_ID": 128,
            "MAX_DESCRIPTION": 16_384,
            "MAX_REASON": 1_024,
            "MAX_CHUNK": 60_000,
            "FILE_WINDOW": 1_048_576,
            "MAX_FILE_NAME": 255,
            "ID_SIZE": 16,
            "NO_TYPE": 255,
            "VIDEO_FLAG": 1,
            "CONTINUATION": 128,
        }
        self.assertEqual({name: getattr(wire, name) for name in bounds}, bounds)


class FrameTests(WireTestCase):
    def test_bytes(self) -> None:
        """A frame is a length, a type, the length of the user ID, the user ID and the data, all big-endian."""
        self.assertEqual(wire.encodeFrame(0, b"bob", b"hi"), b"\0\x08\0\0\3bobhi")
        self.assertEqual(wire.encodeFrame(7, b""), b"\0\3\7\0\0")
        self.assertEqual(wire.encodeFrame(1, b"b" * 300, b"c" * 300), b"\x02\x5b\1\x01\x2c" + b"b" * 300 + b"c" * 300)

    def test_tagged(self) -> None:
        """A frame made from a prepared tag is the same as one made from the user ID."""
        self.assertEqual(wire.encodeTagged(12, wire.encodeTag(b"bob"), b"\1"), wire.encodeFrame(12, b"bob", b"\1"))

    @given(FRAMES)
    def test_roundTrip(self, frames: list[Frame]) -> None:
        """What is encoded is decoded to the same."""
        self.assertEqual(fed([encoded(frames)]), (frames, b""))
        for frame in frames:
            self.assertEqual(wire.decodePayload(wire.encodeFrame(*frame)[2:]), frame)

    def test_everySplit(self) -> None:
        """Wherever a stream is cut in two, and byte by byte, it gives the same frames."""
        stream = encoded(SOME)
        for place in range(len(stream) + 1):
            self.assertEqual(fed(cut(stream, [place])), (SOME, b""))
        self.assertEqual(fed([stream[i : i + 1] for i in range(len(stream))]), (SOME, b""))

    @given(FRAMES, st.lists(st.integers(0, 10_000), max_size=20), st.binary(max_size=1))
    def test_anySplit(self, frames: list[Frame], places: list[int], tail: bytes) -> None:
        """However often a stream is cut it gives the same frames, and keeps the beginning of the next one."""
        self.assertEqual(fed(cut(encoded(frames) + tail, places)), (frames, tail))

    @given(st.lists(st.sampled_from([(0, b"bob"), (6, b"bob"), (0, b"eve"), (0, b"bobs"), (0, b"")]), min_size=2))
    def test_oneLength(self, begins: list[tuple[int, bytes]]) -> None:
        """Frames that all have the same length are taken apart as any others, be they alike or not."""
        frames = [(messageType, userId, b"\0\x1a\0\0\3bob" + bytes(18 - len(userId))) for messageType, userId in begins]
        self.assertEqual(len(encoded(frames)), 31 * len(frames))
        self.assertEqual(fed([encoded(frames)]), (frames, b""))

    def test_end(self) -> None:
        """Each frame comes with the offset behind it."""
        ends = [end for _, _, _, end in wire.decodeFrames(encoded(SOME) + b"\0")]
        self.assertEqual(ends, [len(encoded(SOME[: i + 1])) for i in range(len(SOME))])

    def test_largest(self) -> None:
        """A payload of 65,535 bytes is a frame, and one more is a badRequest."""
        self.assertEqual(fed([wire.encodeFrame(0, b"bob", b"x" * 65_529)]), ([(0, b"bob", b"x" * 65_529)], b""))
        self.badRequest(wire.encodeFrame, 0, b"bob", b"x" * 65_530)
        self.badRequest(wire.encodeTagged, 0, wire.encodeTag(b"bob"), b"x" * 65_530)

    def test_shortPayload(self) -> None:
        """A payload of 0, 1 or 2 bytes is malformed as soon as its length is known; 3 bytes are a payload."""
        for length in (0, 1, 2):
            with self.subTest(length=length):
                self.refused(ErrorCode.MALFORMED, list, wire.decodeFrames(bytes((0, length))))
                self.refused(ErrorCode.MALFORMED, wire.decodePayload, bytes(length))
        self.assertEqual(wire.decodePayload(b"\7\0\0"), (7, b"", b""))

    def test_idPastPayload(self) -> None:
        """A user ID that ends with the payload is right, one that would end a byte later is malformed."""
        self.assertEqual(wire.decodePayload(b"\0\0\3bob"), (0, b"bob", b""))
        self.refused(ErrorCode.MALFORMED, wire.decodePayload, b"\0\0\4bob")
        self.refused(ErrorCode.MALFORMED, wire.decodePayload, b"\0\xff\xffbob")

    def test_framesBeforeAMalformedOne(self) -> None:
        """The frames before one that cannot be one are decoded first."""
        decoding = wire.decodeFrames(encoded(SOME) + b"\0\0" + encoded(SOME))
        self.assertEqual([next(decoding)[:3] for _ in SOME], SOME)
        self.refused(ErrorCode.MALFORMED, next, decoding)

    @given(st.binary(max_size=400))
    @example(b"\0\0")
    def test_randomBytes(self, data: bytes) -> None:
        """Random bytes give frames or a WireError and nothing else."""
        try:
            frames, kept = fed([data])
        except WireError as e:
            self.assertEqual(e.code, ErrorCode.MALFORMED)
        else:
            self.assertEqual(encoded(frames) + kept, data)

    @given(FRAMES, st.integers(0, 5_000), st.integers(0, 255), st.sampled_from(["set", "insert", "delete"]))
    def test_mutatedBytes(self, frames: list[Frame], place: int, byte: int, how: str) -> None:
        """A stream with one byte wrong, too many or too few gives frames or a WireError and nothing else."""
        stream = encoded(frames)
        place %= len(stream) + 1
        middle = b"" if how == "delete" else bytes((byte,))
        mutated = stream[:place] + middle + stream[place + (how != "insert") :]
        try:
            decoded, kept = fed([mutated])
        except WireError as e:
            self.assertEqual(e.code, ErrorCode.MALFORMED)
        else:
            self.assertEqual(encoded(decoded) + kept, mutated)

    def test_int16StringReceiver(self) -> None:
        """Twisted's own Int16StringReceiver writes and reads the same frames."""
        strings: list[bytes] = []

        class Receiver(Int16StringReceiver):
            def stringReceived(self, string: bytes) -> None:
                strings.append(string)

        receiver, transport = Receiver(), StringTransport()
        receiver.makeConnection(transport)
        receiver.sendString(b"\0\0\3bobhi")
        self.assertEqual(transport.value(), wire.encodeFrame(0, b"bob", b"hi"))
        receiver.dataReceived(encoded(SOME))
        self.assertEqual([wire.decodePayload(string) for string in strings], SOME)


class UserIdTests(WireTestCase):
    def test_good(self) -> None:
        """A user ID is 1 to 128 bytes of UTF-8 in NFC: letters of any script, inner spaces, signs, emoji."""
        good = ["a", "alice", "Alice Liddell", "a#b", "王小明", "é", "a@b.c", "\\", "\U0001f600", ".", "x" * 128]
        for text in [*good, "é" * 64, "王" * 42 + "xx"]:
            with self.subTest(text=text):
                self.assertEqual(wire.checkUserId(text.encode()), text)

    def test_bad(self) -> None:
        """Anything else is a badRequest."""
        bad = {
            "empty": b"",
            "129 bytes": b"x" * 129,
            "129 bytes in 65 characters": ("é" * 64 + "x").encode(),
            "no UTF-8": b"\xff",
            "cut UTF-8": "王".encode()[:2],
            "overlong UTF-8": b"\xc0\xaf",
            "a surrogate": b"\xed\xa0\x80",
            "NFD": "e\u0301".encode(),
            "a sign that NFC replaces": "\u212b".encode(),
            "Cc: NUL": b"a\0b",
            "Cc: newline": b"a\nb",
            "Cc: delete": b"a\x7fb",
            "Cc: of Latin-1": "a\x85b".encode(),
            "Cf: soft hyphen": "a\xadb".encode(),
            "Cf: right-to-left override": "a\u202eb".encode(),
            "Cf: zero width joiner": "a\u200db".encode(),
            "Cf: byte order mark": "\ufeffa".encode(),
            "Zl": "a\u2028b".encode(),
            "Zp": "a\u2029b".encode(),
            "space before": b" a",
            "space behind": b"a ",
            "only a space": b" ",
            "a group": b"#a",
            "a user in a group": b"#a/b",
            "a slash": b"a/b",
        }
        for what, userId in bad.items():
            with self.subTest(what=what):
                self.badRequest(wire.checkUserId, userId)

    @given(st.binary(max_size=140) | st.text(max_size=50).map(str.encode))
    def test_any(self, userId: bytes) -> None:
        """Any bytes are either a user ID, which is returned unchanged, or a badRequest."""
        try:
            text = wire.checkUserId(userId)
        except WireError as e:
            self.assertEqual(e.code, ErrorCode.BAD_REQUEST)
        else:
            self.assertEqual(text.encode(), userId)
            self.assertTrue(1 <= len(userId) <= 128)


class DataTests(WireTestCase):
    @given(st.integers(0, 2**32 - 1), st.integers(0, 2**64 - 1), st.binary(max_size=20))
    def test_numbers(self, count: int, offset: int, rest: bytes) -> None:
        """Counts and offsets are read as they were written."""
        self.assertEqual(wire.decodeU32(wire.encodeU32(count)), count)
        self.assertEqual(wire.decodeOffset(wire.encodeOffset(offset)), offset)
        self.assertEqual(wire.splitOffset(wire.encodeOffset(offset) + rest), (offset, rest))

    def test_numbersBytes(self) -> None:
        """A count has 4 bytes and an offset 8, big-endian; one less or more is a badRequest."""
        self.assertEqual(wire.encodeU32(258), b"\0\0\1\2")
        self.assertEqual(wire.encodeOffset(258), b"\0\0\0\0\0\0\1\2")
        for wrong in (b"", bytes(3), bytes(5)):
            self.badRequest(wire.decodeU32, wrong)
        for wrong in (b"", bytes(7), bytes(9)):
            self.badRequest(wire.decodeOffset, wrong)
        self.badRequest(wire.splitOffset, bytes(7))

    def test_id(self) -> None:
        """An ID is 16 bytes: 15 are a badRequest, what follows is the rest."""
        self.assertEqual(wire.splitId(b"i" * 16), (b"i" * 16, b""))
        self.assertEqual(wire.splitId(b"i" * 16 + b"rest"), (b"i" * 16, b"rest"))
        self.badRequest(wire.splitId, b"i" * 15)

    def test_checkLength(self) -> None:
        """As many bytes as a bound says are right, and one more is a badRequest."""
        self.assertEqual(wire.checkLength(b"abc", 3, "this"), b"abc")
        self.badRequest(wire.checkLength, b"abc", 2, "this")

    def test_reason(self) -> None:
        """A reason is a code and a text of at most 1,024 bytes; both may be left out."""
        self.assertEqual(wire.splitReason(b""), (0, b""))
        self.assertEqual(wire.splitReason(b"\7"), (7, b""))
        self.assertEqual(wire.splitReason(b"\xff" + b"x" * 1024), (255, b"x" * 1024))
        self.badRequest(wire.splitReason, b"\0" + b"x" * 1025)

    def test_error(self) -> None:
        """An ERROR is a code, the type at fault and a text; it is read even where the text is no UTF-8."""
        self.assertEqual(wire.encodeError(5, 0, "weg é"), b"\5\0weg \xc3\xa9")
        self.assertEqual(wire.decodeError(b"\5\0weg \xc3\xa9"), (5, 0, "weg é"))
        self.assertEqual(wire.decodeError(b"\1\xff"), (1, 255, ""))
        self.assertEqual(wire.decodeError(b"\1\xff\xff"), (1, 255, "\ufffd"))
        self.badRequest(wire.decodeError, b"\1")

    @given(st.binary(max_size=330))
    def test_randomData(self, data: bytes) -> None:
        """No decoder raises anything but a badRequest, whatever it is given."""
        for decode in (
            wire.decodeU32,
            wire.decodeError,
            wire.splitId,
            wire.splitReason,
            wire.splitOffset,
            wire.decodeOffset,
            FileOffer.decode,
        ):
            try:
                decode(data)
            except WireError as e:
                self.assertEqual(e.code, ErrorCode.BAD_REQUEST)


class FileOfferTests(WireTestCase):
    def decode(self, name: bytes) -> FileOffer:
        return FileOffer.decode(bytes(8) + b"h" * 32 + name)

    def test_bytes(self) -> None:
        """An offer is a size, a SHA-256 and a name."""
        offer = FileOffer(258, b"h" * 32, "a.txt")
        self.assertEqual(offer.encode(), b"\0\0\0\0\0\0\1\2" + b"h" * 32 + b"a.txt")
        self.assertEqual(FileOffer.decode(offer.encode()), offer)

    @given(
        st.integers(0, 2**64 - 1),
        st.binary(min_size=32, max_size=32),
        st.text(
            st.characters(exclude_categories=["Cc", "Cs"], exclude_characters="/\\"), min_size=1, max_size=60
        ).filter(lambda name: name not in (".", "..")),
    )
    def test_roundTrip(self, size: int, sha256: bytes, name: str) -> None:
        """An offer is read as it was written."""
        offer = FileOffer(size, sha256, name)
        self.assertEqual(FileOffer.decode(offer.encode()), offer)

    def test_goodNames(self) -> None:
        """A name is 1 to 255 bytes of UTF-8, among them ones that look odd and harm nothing."""
        for name in ("a", "...", ".hidden", "a b.txt", "王.ogg", "~", "-rf", "C:", "x" * 255, "王" * 85):
            with self.subTest(name=name):
                self.assertEqual(self.decode(name.encode()).name, name)

    def test_badNames(self) -> None:
        """A name that is missing, too long, no UTF-8, or could lead out of a folder is a badRequest."""
        control = [b"a" + chr(c).encode() for c in (0, 9, 10, 27, 31, 127, 0x80, 0x9F)]
        for name in [b"", b"x" * 256, b"\xff", b".", b"..", b"/", b"../a", b"a/b", b"a\\b", b"\\", *control]:
            with self.subTest(name=name):
                self.badRequest(self.decode, name)

    def test_short(self) -> None:
        """An offer with a field missing is a badRequest."""
        for length in (0, 8, 39, 40):
            self.badRequest(FileOffer.decode, b"a" * length)


class StreamTests(SynchronousTestCase):
    """The same properties with a server behind the wire."""

    STREAM = encoded(
        [
            (7, b"alice", b""),
            (7, b"", b"1"),
            (0, b"alice", b"2"),
            (0, b"nobody", b"3"),
            (200, b"alice", b""),
            (7, b"", b"4"),
        ]
    )

    def answers(self, pieces: list[bytes]) -> list[Message]:
        client = MemoryServer().connect()
        for piece in pieces:
            client.sendBytes(piece)
        registered, *rest = client.received()
        self.assertEqual(registered[:2], (MessageType.HEARTBEAT, "alice"))
        return rest

    def test_everySplit(self) -> None:
        """The server gives the same answers however what it gets is cut, the first frame included."""
        whole = self.answers([self.STREAM])
        self.assertEqual([m[0] for m in whole], [7, 0, 11, 11, 7])
        for place in range(len(self.STREAM) + 1):
            self.assertEqual(self.answers(cut(self.STREAM, [place])), whole)
        self.assertEqual(self.answers([self.STREAM[i : i + 1] for i in range(len(self.STREAM))]), whole)

    @given(st.lists(st.binary(max_size=60), max_size=6), st.booleans())
    def test_randomBytes(self, pieces: list[bytes], isRegistered: bool) -> None:
        """Random bytes from one client raise nothing, and leave the next client undisturbed."""
        server = MemoryServer(broadcast=True)
        bystander = server.login("bystander")
        client = server.login("mallory") if isRegistered else server.connect()
        for piece in pieces:
            client.sendBytes(piece)
        server.advance(15)
        for message in client.received():
            if message.type == MessageType.ERROR:
                self.assertNotEqual(message.data[0], ErrorCode.INTERNAL)
        bystander.send(MessageType.HEARTBEAT, "", b"still here")
        self.assertIn((MessageType.HEARTBEAT, "", b"still here"), bystander.received())
        self.assertEqual(self.flushLoggedErrors(), [])

    @given(
        st.lists(
            st.tuples(
                st.integers(0, 20),
                st.sampled_from([b"", b"alice", b"bob", b"#g", b"nobody"]),
                st.binary(max_size=40),
            ),
            max_size=20,
        )
    )
    def test_randomFrames(self, frames: list[Frame]) -> None:
        """Well-framed nonsense never closes a registered connection and never reaches an internal error."""
        server = MemoryServer(broadcast=True)
        alice, bob = server.login("alice"), server.login("bob")
        for frame in frames:
            alice.send(*frame)
        alice.send(MessageType.HEARTBEAT, "", b"end")
        messages = alice.received()
        self.assertEqual(messages[-1], (MessageType.HEARTBEAT, "", b"end"))
        self.assertFalse([m for m in messages if m.type == MessageType.ERROR and m.data[0] == ErrorCode.INTERNAL])
        self.assertFalse(alice.ended or bob.ended)
        self.assertEqual(self.flushLoggedErrors(), [])
