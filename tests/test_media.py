"""Media: frames in pieces, the description of streams, and real files that are read and recorded."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
import sys
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any
from unittest import mock

import av
from attrs import evolve
from hypothesis import given, settings
from hypothesis import strategies as st
from twisted.trial.unittest import SynchronousTestCase

from tests.mediasample import makeSample
from wecompany.media import (
    LAST_PIECE,
    LATE_WINDOW,
    MAX_FRAME,
    MAX_PIECE,
    MAX_RECORDING,
    AudioDescription,
    MediaError,
    MediaFile,
    MediaFrame,
    MediaUnavailable,
    Reassembler,
    Recorder,
    StreamDescription,
    VideoDescription,
    encodeFrame,
)
from wecompany.wire import CONTINUATION, MAX_DESCRIPTION, MediaKind

AUDIO, KEY, DELTA, OTHER = MediaKind
U32 = 2**32
U64 = 2**64
HEADER = 14

frames = st.builds(
    MediaFrame,
    st.sampled_from(MediaKind),
    st.integers(0, U32 - 1),
    st.integers(0, U64 - 1),
    st.binary(max_size=64)
    | st.integers(0, 5 * MAX_PIECE).map(lambda size: bytes(size // 3) + b"x" * (size - size // 3)),
)
heads = st.builds(
    lambda channels, skipped: b"OpusHead" + struct.pack("<BBHIhB", 1, channels, skipped, 48_000, 0, 0),
    st.integers(1, 2),
    st.integers(0, 65_535),
)
descriptions = st.builds(
    StreamDescription,
    st.none()
    | st.builds(AudioDescription, st.integers(8_000, 48_000), st.integers(1, 2))
    | heads.map(lambda head: AudioDescription(48_000, head[9], head)),
    st.none()
    | st.builds(
        VideoDescription,
        st.integers(1, 16_383),
        st.integers(1, 16_383),
        st.none() | st.fractions(Fraction(1, 1_001), 1_000, max_denominator=1_001),
    ),
)


def feedAll(reassembler: Reassembler, pieces: Sequence[bytes]) -> list[MediaFrame]:
    """Return the frames that C{pieces} complete."""
    return [frame for frame in map(reassembler.feed, pieces) if frame is not None]


class EncodeFrameTests(SynchronousTestCase):
    """A frame is cut into pieces of a documented layout."""

    def test_layout(self) -> None:
        """A piece is kind, flags, sequence and timestamp in network order, and then the data."""
        self.assertEqual(
            encodeFrame(MediaFrame(KEY, 0x01020304, 0x05060708090A0B0C, b"data")),
            [b"\x01\x01\x01\x02\x03\x04\x05\x06\x07\x08\x09\x0a\x0b\x0cdata"],
        )

    def test_cut(self) -> None:
        """Every piece but the first is a continuation, and the last alone is marked as such."""
        pieces = encodeFrame(MediaFrame(DELTA, 7, 9, b"x" * 10_000))
        self.assertEqual(
            [piece[:2] for piece in pieces], [b"\x02\x00", bytes([2 | CONTINUATION, 0]), bytes([2 | CONTINUATION, 1])]
        )
        self.assertEqual([len(piece) for piece in pieces], [MAX_PIECE, MAX_PIECE, 10_000 - 2 * 4_082 + HEADER])
        self.assertEqual({piece[2:HEADER] for piece in pieces}, {struct.pack(">IQ", 7, 9)})

    def test_fullPiece(self) -> None:
        """A frame that just fills a piece is not followed by an empty one, and an empty frame is one piece."""
        self.assertEqual([len(p) for p in encodeFrame(MediaFrame(AUDIO, 0, 0, bytes(4_082)))], [MAX_PIECE])
        self.assertEqual([len(p) for p in encodeFrame(MediaFrame(AUDIO, 0, 0, b""))], [HEADER])

    def test_refused(self) -> None:
        """A frame that no receiver would take, or whose numbers do not fit, is an error of its maker."""
        frame = MediaFrame(KEY, 0, 0, b"")
        self.assertIn(
            "at most 1048576", str(self.assertRaises(ValueError, encodeFrame, evolve(frame, data=bytes(MAX_FRAME + 1))))
        )
        self.assertRaises(ValueError, encodeFrame, evolve(frame, sequence=U32))
        self.assertRaises(ValueError, encodeFrame, evolve(frame, timestamp=-1))

    @given(frames)
    def test_roundTrip(self, frame: MediaFrame) -> None:
        """A frame comes out as it went in, with its last piece and not before."""
        pieces = encodeFrame(frame)
        reassembler = Reassembler()
        self.assertTrue(all(HEADER <= len(piece) <= MAX_PIECE for piece in pieces))
        self.assertEqual([reassembler.feed(piece) for piece in pieces], [None] * (len(pieces) - 1) + [frame])
        self.assertEqual((reassembler.dropped, reassembler.ignored), (0, 0))


class ReassemblerTests(SynchronousTestCase):
    """Pieces become frames again, or are counted."""

    def setUp(self) -> None:
        self.reassembler = Reassembler()

    def feed(self, *pieces: bytes) -> list[int]:
        """Return the sequences of the frames that C{pieces} complete."""
        return [frame.sequence for frame in feedAll(self.reassembler, pieces)]

    def counts(self) -> tuple[int, int]:
        return self.reassembler.dropped, self.reassembler.ignored

    def test_largest(self) -> None:
        """A frame of the bound is taken; with a byte more it is dropped, and what follows of it is ignored."""
        pieces = encodeFrame(MediaFrame(KEY, 0, 0, bytes(MAX_FRAME)))
        self.assertEqual(self.feed(*pieces), [0])
        self.reassembler = Reassembler()
        pieces[0] += b"x"
        self.assertEqual(self.feed(*pieces, pieces[-1]), [])
        self.assertEqual(self.counts(), (1, 1))
        self.assertEqual(self.feed(*encodeFrame(MediaFrame(KEY, 1, 0, b""))), [1])

    def test_streamsApart(self) -> None:
        """Sound that overtakes the pieces of a picture harms neither."""
        picture = encodeFrame(MediaFrame(KEY, 5, 0, bytes(9_000)))
        sound = [encodeFrame(MediaFrame(AUDIO, number, 0, b"a"))[0] for number in range(3)]
        self.assertEqual(self.feed(sound[0], picture[0], sound[1], picture[1], sound[2], picture[2]), [0, 1, 2, 5])
        self.assertEqual(self.counts(), (0, 0))

    def test_keyAndDeltaAreOneStream(self) -> None:
        """A key frame takes the place of a delta frame that was not finished."""
        begun = encodeFrame(MediaFrame(DELTA, 5, 0, bytes(9_000)))
        self.assertEqual(self.feed(begun[0], *encodeFrame(MediaFrame(KEY, 6, 0, b"")), *begun[1:]), [6])
        self.assertEqual(self.counts(), (1, 2))

    def test_beginningLost(self) -> None:
        """Of a frame without its beginning nothing is given, and it counts once."""
        pieces = encodeFrame(MediaFrame(DELTA, 5, 0, bytes(13_000)))
        self.assertEqual(self.feed(*pieces[1:]), [])
        self.assertEqual(self.counts(), (1, len(pieces) - 2))

    def test_doubled(self) -> None:
        """A beginning that comes twice does not disturb its frame, and a frame that comes twice is given once."""
        pieces = encodeFrame(MediaFrame(DELTA, 5, 0, bytes(9_000)))
        self.assertEqual(self.feed(pieces[0], pieces[0], *pieces[1:], *pieces), [5])
        self.assertEqual(self.counts(), (0, 1 + len(pieces)))

    def test_mixed(self) -> None:
        """A continuation with another kind or time than its beginning belongs to no frame, and ends the one begun."""
        for other in (MediaFrame(DELTA, 5, 1, bytes(9_000)), MediaFrame(KEY, 5, 0, bytes(9_000))):
            with self.subTest(other=other.kind):
                self.reassembler = Reassembler()
                pieces = encodeFrame(MediaFrame(DELTA, 5, 0, bytes(9_000)))
                self.assertEqual(self.feed(pieces[0], encodeFrame(other)[1], pieces[2]), [])
                self.assertEqual(self.counts(), (1, 1))

    def test_late(self) -> None:
        """What is a little behind is late; what is far behind is from a sender who has begun anew."""
        self.assertEqual(
            self.feed(
                *(
                    encodeFrame(MediaFrame(AUDIO, number, 0, b""))[0]
                    for number in (LATE_WINDOW + 5, LATE_WINDOW + 4, 5, 4, 3, LATE_WINDOW + 6)
                )
            ),
            [LATE_WINDOW + 5, 4, LATE_WINDOW + 6],
        )
        self.assertEqual(self.counts(), (0, 3))

    def test_wrap(self) -> None:
        """After the largest number comes 0."""
        numbers = [U32 - 2, U32 - 1, 0, U32 - 1, 1]
        self.assertEqual(
            self.feed(*(encodeFrame(MediaFrame(AUDIO, number, 0, b""))[0] for number in numbers)),
            [U32 - 2, U32 - 1, 0, 1],
        )

    def test_unusedFlags(self) -> None:
        """Flags of later versions are ignored."""
        piece = bytearray(encodeFrame(MediaFrame(AUDIO, 3, 0, b""))[0])
        piece[1] = 0xFE | LAST_PIECE
        self.assertEqual(self.feed(bytes(piece)), [3])

    def test_rubbish(self) -> None:
        """What is too short for a piece, or of an unknown kind, is counted."""
        self.assertEqual(self.feed(b"", bytes(13), bytes([4]) + bytes(13), bytes([0xFF]) + bytes(99)), [])
        self.assertEqual(self.counts(), (0, 4))

    @given(
        st.lists(st.tuples(st.integers(0, 5 * MAX_PIECE), st.integers(0, 6), st.integers(0, 6)), max_size=12),
        st.integers(0, U32 - 1),
    )
    def test_loss(self, sent: list[tuple[int, int, int]], start: int) -> None:
        """Whatever is lost at the beginning and the end of frames, the whole ones come, and every torn one counts."""
        whole, torn = [], 0
        for number, (size, lostBefore, lostBehind) in enumerate(sent):
            frame = MediaFrame(DELTA, (start + number) % U32, number, bytes([number]) * size)
            pieces = encodeFrame(frame)
            left = pieces[lostBefore : max(len(pieces) - lostBehind, 0)]
            if left == pieces:
                whole.append(frame)
            elif left:
                torn += 1
            self.assertEqual(feedAll(self.reassembler, left), whole[-1:] if left == pieces else [])
        # The last is not known to be torn until the next one comes.
        feedAll(self.reassembler, encodeFrame(MediaFrame(DELTA, (start + len(sent)) % U32, 0, b"")))
        self.assertEqual(self.reassembler.dropped, torn)
        self.reassembler = Reassembler()

    @given(st.lists(frames, max_size=6, unique_by=lambda frame: frame.sequence), st.randoms(use_true_random=False))
    def test_disorder(self, sent: list[MediaFrame], random: Any) -> None:
        """Pieces in any order, changed at random, never raise, and what they hold stays bounded."""
        pieces = [piece for frame in sent for piece in encodeFrame(frame)]
        random.shuffle(pieces)
        reassembler = Reassembler()
        for piece in pieces:
            changed = bytearray(piece)
            if random.random() < 0.3:
                changed[random.randrange(HEADER)] = random.randrange(256)
            frame = reassembler.feed(bytes(changed))
            self.assertTrue(frame is None or len(frame.data) <= MAX_FRAME)

    @given(st.binary(max_size=40))
    def test_randomBytes(self, data: bytes) -> None:
        """No bytes raise."""
        reassembler = Reassembler()
        reassembler.feed(data)
        reassembler.feed(data)


class StreamDescriptionTests(SynchronousTestCase):
    """What a side is going to send, in its offer or answer."""

    def test_example(self) -> None:
        """The description is the JSON of the documentation."""
        head = b"OpusHead\x01\x01\x38\x01\x80\xbb\x00\x00\x00\x00\x00"
        self.assertEqual(
            StreamDescription(AudioDescription(48_000, 1, head), VideoDescription(320, 240, Fraction(15))).encode(),
            b'{"v":1,"audio":{"codec":"opus","rate":48000,"channels":1,"config":"T3B1c0hlYWQBATgBgLsAAAAAAA=="},'
            b'"video":{"codec":"vp8","width":320,"height":240,"rate":"15"}}',
        )

    @given(descriptions)
    def test_roundTrip(self, description: StreamDescription) -> None:
        """A description comes out as it went in, and fits into an offer."""
        data = description.encode()
        self.assertLessEqual(len(data), MAX_DESCRIPTION)
        self.assertEqual(StreamDescription.decode(data), description)

    def test_empty(self) -> None:
        """An empty offer has no streams."""
        self.assertEqual(StreamDescription.decode(b""), StreamDescription())
        self.assertEqual(StreamDescription.decode(b'{"v":1,"audio":null}'), StreamDescription())

    def test_unknownKeys(self) -> None:
        """What a later version may add is left alone."""
        self.assertEqual(
            StreamDescription.decode(b'{"v":1,"x":[],"video":{"codec":"vp8","width":2,"height":3,"layers":2}}'),
            StreamDescription(video=VideoDescription(2, 3)),
        )

    def test_refused(self) -> None:
        """Whatever is no description that is known raises ValueError with a text that names what is wrong."""
        audio = {"codec": "opus", "rate": 48_000, "channels": 1}
        video = {"codec": "vp8", "width": 320, "height": 240}
        stereo = base64.b64encode(b"OpusHead\x01\x02" + bytes(9)).decode()
        short = base64.b64encode(b"OpusHead\x01\x01").decode()
        cases: list[tuple[str, Any]] = [
            ("at most 16384", b" " * (MAX_DESCRIPTION + 1)),
            ("JSON", b"v=0\r\n"),
            ("JSON", b"\xff"),
            ("JSON", b"[" * MAX_DESCRIPTION),
            ("JSON", '{"v":1}'.encode("utf-16")),
            ("version", []),
            ("version", {}),
            ("version", {"v": 2}),
            ("audio is", {"audio": "opus"}),
            ("audio is", {"audio": {**audio, "codec": "pcm"}}),
            ("video is", {"video": {**video, "codec": ["vp8"]}}),
            ("video is", {"video": []}),
            ("rate is a whole", {"audio": {**audio, "rate": 48_001}}),
            ("rate is a whole", {"audio": {**audio, "rate": "48000"}}),
            ("rate is a whole", {"audio": {**audio, "rate": float("inf")}}),
            ("channels", {"audio": {**audio, "channels": True}}),
            ("channels", {"audio": {**audio, "channels": 3}}),
            ("channels", {"audio": {"codec": "opus", "rate": 48_000}}),
            ("Base64", {"audio": {**audio, "config": "ä"}}),
            ("Base64", {"audio": {**audio, "config": "%%%%"}}),
            ("Base64", {"audio": {**audio, "config": 7}}),
            ("OpusHead", {"audio": {**audio, "config": "AAAA"}}),
            ("OpusHead", {"audio": {**audio, "config": stereo}}),
            ("OpusHead", {"audio": {**audio, "config": short}}),
            ("width", {"video": {**video, "width": 0}}),
            ("width", {"video": {**video, "width": 10**400}}),
            ("height", {"video": {**video, "height": 16_384}}),
            ("height", {"video": {**video, "height": 240.0}}),
            ('rate is a text like "15"', {"video": {**video, "rate": 15}}),
            ('rate is a text like "15"', {"video": {**video, "rate": "1e999999999"}}),
            ('rate is a text like "15"', {"video": {**video, "rate": "15/0"}}),
            ("at most 1000", {"video": {**video, "rate": "1001"}}),
            ("at most 1000", {"video": {**video, "rate": "1/9999999"}}),
        ]
        for text, case in cases:
            with self.subTest(case=str(case)[:60]):
                data = case
                if not isinstance(case, bytes):
                    data = json.dumps({"v": 1, **case} if case and "v" not in case else case).encode()
                self.assertIn(text, str(self.assertRaises(ValueError, StreamDescription.decode, data)))

    @given(
        st.binary(max_size=60)
        | st.recursive(
            st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just("opus") | st.just("vp8"),
            lambda inner: st.dictionaries(
                st.sampled_from(["v", "audio", "video", "codec", "rate", "channels", "config", "width", "height"]),
                inner,
            ),
        ).map(lambda document: json.dumps({"v": 1, "audio": document, "video": document}).encode())
    )
    def test_hostile(self, data: bytes) -> None:
        """Whatever comes, it is a description or a ValueError."""
        with contextlib.suppress(ValueError):
            self.assertIsInstance(StreamDescription.decode(data), StreamDescription)


class FileCase(SynchronousTestCase):
    """Tests with files of their own."""

    def setUp(self) -> None:
        # Not self.mktemp(): outside trial that litters the working directory.
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.folder = Path(folder.name)

    def sample(self, name: str, seconds: float = 1.5, video: bool = False) -> Path:
        """Return the path of a new sample."""
        path = self.folder / name
        makeSample(path, seconds, video)
        return path


class MediaFileTests(FileCase):
    """Packets come from files as they are in them."""

    def test_ogg(self) -> None:
        """An Ogg file gives its Opus packets, 20 ms apart, from 0 on, as a demuxer has them."""
        path = self.sample("talk.ogg", 1)
        sound = MediaFile(path)
        self.assertIsNone(sound.description.video)
        assert sound.description.audio is not None
        self.assertEqual((sound.description.audio.rate, sound.description.audio.channels), (48_000, 1))
        self.assertTrue(sound.description.audio.config.startswith(b"OpusHead"))
        with av.open(str(path)) as container:
            packets = [bytes(packet) for packet in container.demux() if packet.size]
        self.assertEqual(
            list(sound), [MediaFrame(AUDIO, number, number * 20_000, packet) for number, packet in enumerate(packets)]
        )
        self.assertEqual(list(sound), list(sound))

    def test_webm(self) -> None:
        """A WebM file gives sound and picture in order of time, each stream with its own numbers, key frames marked."""
        film = MediaFile(self.sample("film.webm", 2, True))
        self.assertEqual(film.description.video, VideoDescription(320, 240, Fraction(15)))
        given = list(film)
        self.assertEqual([frame.timestamp for frame in given], sorted(frame.timestamp for frame in given))
        pictures = [frame for frame in given if frame.kind is not AUDIO]
        self.assertEqual([frame.sequence for frame in pictures], list(range(30)))
        self.assertEqual([frame.sequence for frame in pictures if frame.kind is KEY], [0, 15])
        self.assertTrue(any(len(encodeFrame(frame)) > 1 for frame in pictures))
        sound = [frame for frame in given if frame.kind is AUDIO]
        self.assertEqual([frame.sequence for frame in sound], list(range(101)))
        for frame in sound:
            self.assertApproximates(frame.timestamp, frame.sequence * 20_000, 1_000)

    def test_pictureAlone(self) -> None:
        """A file with nothing but pictures is one, too, whatever their rate may be said to be."""
        path = self.folder / "film.mkv"
        source = MediaFile(self.sample("film.webm", 1, True))
        recorder = Recorder(path, StreamDescription(video=source.description.video))
        for frame in source:
            recorder.write(evolve(frame, timestamp=frame.timestamp * 1_000))
        recorder.close()
        self.assertEqual(MediaFile(path).description, StreamDescription(video=VideoDescription(320, 240)))
        self.assertEqual([frame.sequence for frame in MediaFile(path)], list(range(15)))

    def test_chained(self) -> None:
        """Where a file begins anew, as two Ogg files in one do, time goes on."""
        path = self.sample("talk.ogg", 2)
        path.write_bytes(path.read_bytes() * 2)
        given = [frame.timestamp for frame in MediaFile(path)]
        self.assertEqual(given, sorted(given))
        self.assertGreater(given[-1], 3_900_000)

    def test_lazy(self) -> None:
        """Packets are read when they are asked for, and whoever stops asking leaves nothing open."""
        path = self.sample("film.webm", 2, True)
        iterator = iter(MediaFile(path))
        self.assertEqual(next(iterator).timestamp, 0)
        path.write_bytes(b"")
        self.assertLess(sum(1 for _ in iterator), 101)
        unfinished = iter(MediaFile(self.sample("talk.ogg")))
        next(unfinished)
        getattr(unfinished, "close")()  # noqa: B009  # it is a generator, and its type does not say so

    def test_refused(self) -> None:
        """A file that does not exist, or is no media, or none that is known, is a MediaError that says why."""
        (self.folder / "text.ogg").write_text("This is no music." * 100)
        (self.folder / "empty.ogg").write_bytes(b"")
        (self.folder / "list.webm").write_text("#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nx.ts\n#EXT-X-ENDLIST\n")
        with av.open(str(self.folder / "tone.mkv"), "w") as container:
            stream = container.add_stream("pcm_s16le", rate=48_000, layout="mono")
            frame = av.AudioFrame(format="s16", layout="mono", samples=960)
            frame.sample_rate = 48_000
            container.mux(stream.encode(frame))
        with av.open(str(self.folder / "six.webm"), "w") as container:
            stream = container.add_stream("libopus", rate=48_000, layout="5.1", format="s16")
            frame = av.AudioFrame(format="s16", layout="5.1", samples=960)
            frame.sample_rate = 48_000
            container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        for name, text in (
            ("nothing.ogg", "No such file"),
            (".", "Is a directory"),
            ("text.ogg", "neither an Ogg nor a WebM"),
            ("empty.ogg", "neither an Ogg nor a WebM"),
            ("list.webm", "neither an Ogg nor a WebM"),
            ("tone.mkv", "neither Opus nor VP8"),
            ("six.webm", "channels is a whole number from 1 to 2"),
        ):
            with self.subTest(name=name):
                path = self.folder / name
                text = f"{path}: .*{text}"
                self.assertRegex(str(self.assertRaises(MediaError, MediaFile, path)), text)

    def test_gone(self) -> None:
        """A file that is gone when it is read is a MediaError."""
        path = self.sample("talk.ogg", 0.1)
        sound = MediaFile(path)
        path.unlink()
        self.assertRaises(MediaError, list, sound)

    def test_localOnly(self) -> None:
        """A name that looks like an address is the name of a file."""
        self.assertRegex(str(self.assertRaises(MediaError, MediaFile, "http:x.ogg")), "^http:x.ogg: No such file")

    @settings(max_examples=60)
    @given(st.data())
    def test_damaged(self, data: st.DataObject) -> None:
        """A damaged file gives frames in order of time, or a MediaError."""
        name = data.draw(st.sampled_from(["talk.ogg", "film.webm"]))
        path = self.folder / name
        whole = self.folder / f"whole-{name}"
        if not whole.exists():
            makeSample(whole, 0.5, name == "film.webm")
        damaged = bytearray(whole.read_bytes())
        for _ in range(data.draw(st.integers(1, 20))):
            damaged[data.draw(st.integers(0, len(damaged) - 1))] = data.draw(st.integers(0, 255))
        path.write_bytes(damaged[: data.draw(st.integers(0, len(damaged)))])
        try:
            given = [frame.timestamp for frame in MediaFile(path)]
        except MediaError:
            return
        self.assertEqual(given, sorted(given))

    def test_withoutPyAV(self) -> None:
        """Without PyAV the error says how to install it, and the rest of the module works."""
        with mock.patch.dict(sys.modules, {"av": None}):
            for make in (lambda: MediaFile("x.ogg"), lambda: Recorder("x.ogg", StreamDescription())):
                self.assertIn('pip install "wecompany[media]"', str(self.assertRaises(MediaUnavailable, make)))


class RecorderTests(FileCase):
    """What is received is in the file."""

    mono = StreamDescription(AudioDescription(48_000, 1))
    film = StreamDescription(AudioDescription(48_000, 1), VideoDescription(320, 240, Fraction(15)))

    def record(self, name: str, description: StreamDescription, given: Sequence[MediaFrame]) -> tuple[Path, Recorder]:
        """Return the path of a recording of C{given}, and its recorder."""
        path = self.folder / name
        recorder = Recorder(path, description)
        for frame in given:
            recorder.write(frame)
        recorder.close()
        return path, recorder

    def test_unchanged(self) -> None:
        """A recording holds the same packets, in the same order, at the same times; and it decodes."""
        for source, names in (
            (self.sample("talk.ogg"), ("1.ogg", "2.OPUS", "3.webm", "4.mkv")),
            (self.sample("film.webm", 1.5, True), ("5.webm", "6.mkv")),
        ):
            original = MediaFile(source)
            given = list(original)
            for name in names:
                with self.subTest(name=name):
                    path, recorder = self.record(name, original.description, given)
                    self.assertEqual((recorder.written, recorder.dropped), (len(given), 0))
                    self.assertEqual(MediaFile(path).description, original.description)
                    heard = list(MediaFile(path))
                    self.assertEqual([evolve(f, timestamp=0) for f in heard], [evolve(f, timestamp=0) for f in given])
                    for one, other in zip(heard, given, strict=True):
                        self.assertApproximates(one.timestamp, other.timestamp, 1_000)
                    self.assertDecodes(path, given)

    def assertDecodes(self, path: Path, given: Sequence[MediaFrame]) -> None:
        """Assert that the sound of C{path} is 20 ms of each packet, and that there is each of the pictures."""
        with av.open(str(path)) as container:
            samples = sum(frame.samples for frame in container.decode(audio=0))
        self.assertApproximates(samples, 960 * sum(frame.kind is AUDIO for frame in given), 960)
        pictures = sum(frame.kind is not AUDIO for frame in given)
        if pictures:
            with av.open(str(path)) as container:
                self.assertEqual(sum(1 for _ in container.decode(video=0)), pictures)

    @settings(max_examples=20)
    @given(heads)
    def test_anyHeader(self, head: bytes) -> None:
        """The encoder's own header is kept, and shifts nothing."""
        given = list(MediaFile(self.sample("talk.ogg", 0.2)))
        description = StreamDescription(AudioDescription(48_000, head[9], head))
        for name in ("heard.ogg", "heard.webm"):
            path, _ = self.record(name, description, given)
            self.assertEqual(MediaFile(path).description, description)
            with av.open(str(path)) as container:
                first = next(container.demux())
                assert first.pts is not None
                self.assertEqual(first.pts, 0)

    def test_startsAtZero(self) -> None:
        """The first frame takes place at 0, whatever the sender's clock said, and gaps stay as long as they were."""
        given = [evolve(frame, timestamp=frame.timestamp + U64 // 2) for frame in MediaFile(self.sample("talk.ogg", 1))]
        path, _ = self.record("heard.webm", self.mono, given[10:20] + given[30:])
        self.assertEqual(
            [frame.timestamp for frame in MediaFile(path)],
            [*range(0, 200_000, 20_000), *range(400_000, 820_000, 20_000)],
        )

    def test_gapInOgg(self) -> None:
        """In Ogg a gap moves nothing that is before it, and what is behind it is at its time."""
        given = list(MediaFile(self.sample("talk.ogg", 1)))
        path, _ = self.record("heard.ogg", self.mono, given[10:20] + given[30:])
        heard = [frame.timestamp for frame in MediaFile(path)]
        self.assertEqual(heard[:10], list(range(0, 200_000, 20_000)))
        # A page says when it ends, so that FFmpeg knows of the gap one packet late.
        self.assertEqual(heard[11:], list(range(420_000, 820_000, 20_000)))

    def test_dropped(self) -> None:
        """Late, doubled and empty frames, and those of no stream described, are counted and not written."""
        sound = list(MediaFile(self.sample("talk.ogg", 0.2)))
        given = [
            sound[0],
            sound[2],
            sound[1],
            sound[2],
            evolve(sound[3], data=b""),
            evolve(sound[3], kind=OTHER),
            evolve(sound[3], kind=KEY),
            evolve(sound[3], timestamp=MAX_RECORDING + 1),
            sound[3],
        ]
        path, recorder = self.record("heard.ogg", self.mono, given)
        self.assertEqual((recorder.written, recorder.dropped), (3, 6))
        self.assertEqual([frame.data for frame in MediaFile(path)], [sound[number].data for number in (0, 2, 3)])

    def test_firstPictureIsKey(self) -> None:
        """A recording begins with a key frame, as nothing could decode what is before it."""
        pictures = [frame for frame in MediaFile(self.sample("film.webm", 2, True)) if frame.kind is not AUDIO]
        path, recorder = self.record("seen.webm", self.film, pictures[5:])
        self.assertEqual((recorder.written, recorder.dropped), (15, 10))
        with av.open(str(path)) as container:
            self.assertEqual(sum(1 for _ in container.decode(video=0)), 15)

    def test_olderPicture(self) -> None:
        """A picture older than the first sound, which overtook it, is at the beginning; what follows is at its time."""
        given = [frame for frame in MediaFile(self.sample("film.webm", 1, True)) if frame.timestamp < 400_000]
        late = sorted(given, key=lambda frame: frame.timestamp + (0 if frame.kind is AUDIO else 100_000))
        path, recorder = self.record("seen.webm", self.film, late[2:])
        self.assertEqual(recorder.dropped, 0)
        seen = [frame.timestamp for frame in MediaFile(path) if frame.kind is not AUDIO]
        sent = [max(frame.timestamp - late[2].timestamp, 0) for frame in given if frame.kind is not AUDIO]
        self.assertEqual([round(time / 1_000) for time in seen], [round(time / 1_000) for time in sent])

    def test_clockBeginsAnew(self) -> None:
        """When the sender's clock steps back, the recording goes on where it was."""
        given = list(MediaFile(self.sample("talk.ogg", 0.5)))
        again = [evolve(frame, sequence=frame.sequence + len(given)) for frame in given]
        path, _ = self.record("heard.webm", self.mono, given + again)
        self.assertEqual(
            [frame.timestamp for frame in MediaFile(path)], [number * 20_000 for number in range(2 * len(given))]
        )

    def test_durations(self) -> None:
        """In Ogg each packet counts as long as its first bytes say."""
        for packet, milliseconds in (
            (b"\x00x", 10),
            (b"\x18x", 60),
            (b"\x68x", 20),
            (b"\x80x", 2.5),
            (b"\xf9xx", 40),
            (b"\xfa\x01xx", 40),
            (b"\xfb\x03xxx", 60),
            (b"\xfb\x3fx", 120),
        ):
            with self.subTest(packet=packet):
                path, _ = self.record("heard.ogg", self.mono, [MediaFrame(AUDIO, 0, 0, packet)])
                data = path.read_bytes()
                (samples,) = struct.unpack_from("<Q", data, data.rindex(b"OggS") + 6)
                # 312 are skipped at the beginning.
                self.assertEqual(samples - 312, milliseconds * 48)

    def test_nothingWritten(self) -> None:
        """A recording without a frame leaves no file."""
        for name in ("heard.ogg", "seen.webm"):
            path, _ = self.record(name, self.mono, [MediaFrame(OTHER, 0, 0, b"x")])
            self.assertFalse(path.exists())

    def test_afterTheEnd(self) -> None:
        """What comes after the end is counted, and ending twice is harmless."""
        given = list(MediaFile(self.sample("talk.ogg", 0.1)))
        path, recorder = self.record("heard.ogg", self.mono, given[:3])
        recorder.write(given[3])
        recorder.close()
        self.assertEqual((recorder.written, recorder.dropped), (3, 1))
        self.assertEqual(len(list(MediaFile(path))), 3)

    def test_refused(self) -> None:
        """An ending that does not fit, nothing to record, or a place where nothing can be written is a MediaError."""
        (self.folder / "folder.ogg").mkdir()
        for name, description, text in (
            ("heard.wav", self.mono, "an .ogg, .webm or .mkv"),
            ("heard", self.mono, "an .ogg, .webm or .mkv"),
            ("seen.ogg", self.film, "with video is a .webm"),
            ("seen.webm", StreamDescription(), "neither sound nor picture"),
            ("no/heard.ogg", self.mono, "no such folder"),
            ("folder.ogg", self.mono, "Is a directory"),
        ):
            with self.subTest(name=name):
                error = self.assertRaises(MediaError, Recorder, self.folder / name, description)
                self.assertIn(str(self.folder / name), str(error))
                self.assertIn(text, str(error))
        self.assertEqual([path.name for path in self.folder.iterdir()], ["folder.ogg"])

    def test_headerFails(self) -> None:
        """A recording that cannot be begun leaves no file."""
        path = self.folder / "heard.ogg"
        with mock.patch("av.open", side_effect=av.error.InvalidDataError(1, "Out of luck")):
            self.assertRaises(MediaError, Recorder, path, self.mono)
        self.assertFalse(path.exists())

    def test_diskFull(self) -> None:
        """A full disk is a MediaError, and the recorder can be closed after it."""
        if not Path("/dev/full").exists():
            self.skipTest("there is no /dev/full on this system")
        given = list(MediaFile(self.sample("talk.ogg", 1)))
        path = self.folder / "heard.ogg"
        path.symlink_to("/dev/full")
        recorder = Recorder(path, self.mono)

        def writeAll() -> None:
            for number in range(10_000):
                recorder.write(evolve(given[number % 50], sequence=number, timestamp=number * 20_000))

        self.assertIn("No space left", str(self.assertRaises(MediaError, writeAll)))
        self.assertRaises(MediaError, recorder.close)
        recorder.close()

    @settings(max_examples=60)
    @given(st.sampled_from(["heard.ogg", "seen.webm"]), st.lists(frames, max_size=30))
    def test_hostile(self, name: str, given: list[MediaFrame]) -> None:
        """Whatever a stranger sends is written or counted, and what was written can be read."""
        path, recorder = self.record(name, self.mono if name == "heard.ogg" else self.film, given)
        self.assertEqual(recorder.written + recorder.dropped, len(given))
        self.assertEqual(path.exists(), recorder.written > 0)
        if recorder.written:
            self.assertLessEqual(len(list(MediaFile(path))), recorder.written)
