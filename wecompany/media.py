"""
Media: what stands in a call's MEDIA_DATA, offer and answer, and the files that it comes from and goes to.

The first half is sans-IO: a frame of sound or picture is cut into pieces and put together again (L{encodeFrame},
L{Reassembler}), and a L{StreamDescription} tells the other side what it is going to get.  docs/media.rst describes the
same thing for people.  The second half reads packets from Ogg and WebM files and writes them into such files, without
decoding them (L{MediaFile}, L{Recorder}).  That needs PyAV and blocks: whoever has a reactor does it in a thread.

The server uses nothing of this.  To it, media is opaque.
"""

from __future__ import annotations

import base64
import heapq
import io
import json
import re
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from fractions import Fraction
from operator import itemgetter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from attrs import Attribute, field, frozen

from wecompany.wire import CONTINUATION, MAX_DESCRIPTION, MediaKind

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.stream import Stream

# -- Names and bounds ----------------------------------------------------------------------------------------------

LAST_PIECE = 1
"""Bit 0 of a piece's flags: its frame is complete with it.  The other bits are 0, and are ignored by who reads them."""

MAX_PIECE = 4_096
"""Bytes of a piece with its header: sound never waits behind more of a picture than that."""

MAX_FRAME = 1_048_576
"""Bytes of a frame: a sender may not make a receiver hold more."""

LATE_WINDOW = 1_000
"""Frames by which a late one may be behind; one that is further behind is from a sender who has begun anew."""

MAX_RECORDING = 7 * 86_400 * 1_000_000
"""Microseconds of a recording: a sender's clock that jumps further is wrong."""

_HEADER = struct.Struct(">BBIQ")
_SEQUENCES = 1 << 32
_KINDS = {int(kind): kind for kind in MediaKind}
_TRACKS = {
    MediaKind.AUDIO: "audio",
    MediaKind.VIDEO_KEY: "video",
    MediaKind.VIDEO_DELTA: "video",
    MediaKind.OTHER: "other",
}
_OPUS_RATE = 48_000


class MediaError(Exception):
    """A file cannot be played or recorded; the text says which, and why, for a person to read."""


class MediaUnavailable(Exception):
    """PyAV, which reads and writes media files, is not installed; the text says how to install it."""


# -- Frames and their pieces ---------------------------------------------------------------------------------------


@frozen
class MediaFrame:
    """
    One packet of sound, or one picture, encoded.

    @ivar kind: what it is.
    @ivar sequence: its number among the frames of the same sender and stream (audio, video, other): counted from 0, and
        from 0 again after 2**32 - 1.
    @ivar timestamp: microseconds of the sender's media clock, which is the same for all its streams.
    @ivar data: what the encoder made.
    """

    kind: MediaKind
    sequence: int
    timestamp: int
    data: bytes


def encodeFrame(frame: MediaFrame) -> list[bytes]:
    """
    Return the C{media} of each MEDIA_DATA that together carry C{frame}, in the order in which they have to be sent.

    There is at least one, and none has more than L{MAX_PIECE} bytes.

    @raise ValueError: if the frame has more than L{MAX_FRAME} bytes, or a number that does not fit into its field.
    """
    size = len(frame.data)
    if size > MAX_FRAME:
        raise ValueError(f"a frame has at most {MAX_FRAME} bytes, and this one {size}")
    room = MAX_PIECE - _HEADER.size
    pieces = []
    for start in range(0, max(size, 1), room):
        kind = frame.kind | CONTINUATION if start else frame.kind
        flags = LAST_PIECE if start + room >= size else 0
        try:
            header = _HEADER.pack(kind, flags, frame.sequence, frame.timestamp)
        except struct.error:
            raise ValueError("a sequence is a u32 and a timestamp a u64") from None
        pieces.append(header + frame.data[start : start + room])
    return pieces


def _isNewer(sequence: int, last: int | None) -> bool:
    """
    Return whether a frame with the number C{sequence} comes after the one with C{last}, or before any was there.

    A sender who has begun anew counts from 0 again.  It would be unheard for ever if that were taken for late.
    """
    return last is None or 0 < (sequence - last) % _SEQUENCES < _SEQUENCES - LATE_WINDOW


class _Assembly:
    """The frame of one stream that is being put together."""

    __slots__ = ("data", "head", "sequence")

    def __init__(self) -> None:
        self.sequence: int | None = None
        self.head: tuple[int, int, int] | None = None
        self.data = bytearray()


class Reassembler:
    """
    Puts the pieces together that one sender's frames of a call were cut into.

    It takes whatever a stranger may send, and holds at most one frame of L{MAX_FRAME} bytes for each stream.  Within a
    stream pieces come in order, for that is how the server relays them; between streams they need not.

    A piece does not say how many of its frame were before it.  The server drops a frame together with the rest of it,
    so that a hole in the middle comes about in one way alone: the connection was lost and is there again.  So there has
    to be a new L{Reassembler} for every connection, and a sender begins with a new frame on it.

    @ivar dropped: frames of which a part has come, and another has not or was too much.
    @ivar ignored: pieces that are late, doubled, of no frame that could be completed, or no pieces at all.
    """

    def __init__(self) -> None:
        self.dropped = 0
        self.ignored = 0
        self._assemblies = {track: _Assembly() for track in _TRACKS.values()}

    def feed(self, piece: bytes) -> MediaFrame | None:
        """
        Take the C{media} of one MEDIA_DATA.

        @return: the frame that is complete with it, if one is.
        """
        if len(piece) < _HEADER.size:
            self.ignored += 1
            return None
        first, flags, sequence, timestamp = _HEADER.unpack_from(piece)
        kind = _KINDS.get(first & ~CONTINUATION)
        if kind is None:
            self.ignored += 1
            return None
        assembly = self._assemblies[_TRACKS[kind]]
        head = (kind, sequence, timestamp)
        if _isNewer(sequence, assembly.sequence):
            if assembly.head is not None:
                self._drop(assembly)
            assembly.sequence = sequence
            if first & CONTINUATION:
                # Its beginning is lost.
                self._drop(assembly)
                return None
            assembly.head = head
        elif assembly.head is None or sequence != assembly.sequence or not first & CONTINUATION:
            self.ignored += 1
            return None
        if head != assembly.head or len(assembly.data) + len(piece) - _HEADER.size > MAX_FRAME:
            self._drop(assembly)
            return None
        assembly.data += memoryview(piece)[_HEADER.size :]
        if not flags & LAST_PIECE:
            return None
        frame = MediaFrame(kind, sequence, timestamp, bytes(assembly.data))
        assembly.head = None
        assembly.data = bytearray()
        return frame

    def _drop(self, assembly: _Assembly) -> None:
        """Give up the frame that is being put together."""
        self.dropped += 1
        assembly.head = None
        assembly.data = bytearray()


# -- The description in offer and answer ---------------------------------------------------------------------------


def _whole(least: int, most: int) -> Callable[[object, Attribute[int], object], None]:
    """Return a validator for a whole number from C{least} to C{most}."""

    def check(_: object, attribute: Attribute[int], value: object) -> None:
        # A bool is an int to Python and another thing to JSON.
        if type(value) is not int or not least <= value <= most:
            raise ValueError(f"{attribute.name} is a whole number from {least} to {most}")

    return check


@frozen
class AudioDescription:
    """
    A stream of Opus packets.

    @ivar rate: samples a second that its encoder got.  Any decoder may give 48,000.
    @ivar channels: 1 or 2.
    @ivar config: the identification header of RFC 7845 (C{OpusHead}), or empty for the customary one.
    @raise ValueError: if a value is out of its range.
    """

    rate: int = field(validator=_whole(8_000, _OPUS_RATE))
    channels: int = field(validator=_whole(1, 2))
    config: bytes = field(default=b"", repr=False)

    @config.validator
    def _checkConfig(self, _: object, config: bytes) -> None:
        # 276: 19 bytes, two more of a mapping family, and a mapping of at most 255 channels.
        if config and not (config.startswith(b"OpusHead") and 19 <= len(config) <= 276 and config[9] == self.channels):
            raise ValueError("config is an OpusHead with the same number of channels")

    def header(self) -> bytes:
        """Return L{config}, or the customary header: 312 samples, libopus' delay, are skipped before the first."""
        return self.config or b"OpusHead" + struct.pack("<BBHIhB", 1, self.channels, 312, self.rate, 0, 0)


def _simplify(rate: Fraction | None) -> Fraction | None:
    """Return C{rate} with a denominator that suffices for 30000/1001: a file's average may be as odd as it likes."""
    return None if rate is None else rate.limit_denominator(1_001)


@frozen
class VideoDescription:
    """
    A stream of VP8 pictures.

    @ivar width: pixels.
    @ivar height: pixels.
    @ivar rate: pictures a second, or C{None} where that varies.
    @raise ValueError: if a value is out of its range.
    """

    width: int = field(validator=_whole(1, 16_383))
    height: int = field(validator=_whole(1, 16_383))
    rate: Fraction | None = field(default=None, converter=_simplify)

    @rate.validator
    def _checkRate(self, _: object, rate: Fraction | None) -> None:
        if rate is not None and not 0 < rate <= 1_000:
            raise ValueError("rate is more than 0 and at most 1000 pictures a second")


@frozen
class StreamDescription:
    """
    What one side of a call is going to send, as it stands in the call's offer or answer.

    @ivar audio: C{None} for no sound.
    @ivar video: C{None} for no picture.
    """

    audio: AudioDescription | None = None
    video: VideoDescription | None = None

    def encode(self) -> bytes:
        """Return this as compact JSON in UTF-8."""
        document: dict[str, object] = {"v": 1}
        if self.audio is not None:
            audio: dict[str, object] = {
                "codec": "opus",
                "rate": self.audio.rate,
                "channels": self.audio.channels,
            }
            if self.audio.config:
                audio["config"] = base64.b64encode(self.audio.config).decode("ascii")
            document["audio"] = audio
        if self.video is not None:
            video: dict[str, object] = {
                "codec": "vp8",
                "width": self.video.width,
                "height": self.video.height,
            }
            if self.video.rate is not None:
                video["rate"] = str(self.video.rate)
            document["video"] = video
        return json.dumps(document, separators=(",", ":")).encode("ascii")

    @classmethod
    def decode(cls, data: bytes) -> StreamDescription:
        """
        Return the description that C{data}, an offer or an answer, is; an empty one describes no stream.

        Keys that are not known are left alone, so that later versions can say more.

        @raise ValueError: if it is none, or one that this program does not understand; the text quotes nothing of it.
        """
        if not data:
            return cls()
        if len(data) > MAX_DESCRIPTION:
            raise ValueError(f"a description has at most {MAX_DESCRIPTION} bytes")
        try:
            document = json.loads(data.decode("utf-8"))
        except (ValueError, RecursionError):
            raise ValueError("a description is JSON in UTF-8") from None
        if not isinstance(document, dict) or document.get("v") != 1:
            raise ValueError("a description is an object whose version, v, is 1")
        return cls(_decodeAudio(document), _decodeVideo(document))


def _describedStream(document: dict[str, Any], name: str, codec: str) -> dict[str, Any] | None:
    """
    Return what C{document} says of the stream C{name}, or C{None} if it has none.

    @raise ValueError: if that is no object, or for another codec.
    """
    stream = document.get(name)
    if stream is None:
        return None
    if not isinstance(stream, dict) or stream.get("codec") != codec:
        raise ValueError(f"{name} is an object whose codec is {codec}: no other is known")
    return stream


def _decodeAudio(document: dict[str, Any]) -> AudioDescription | None:
    """
    Return what C{document} says of sound, if anything.

    @raise ValueError: if that is no description of it.
    """
    audio = _describedStream(document, "audio", "opus")
    if audio is None:
        return None
    try:
        config = base64.b64decode(audio.get("config", ""), validate=True)
    except (TypeError, ValueError):
        raise ValueError("config is a text in Base64") from None
    return AudioDescription(audio.get("rate", 0), audio.get("channels", 0), config)


def _decodeVideo(document: dict[str, Any]) -> VideoDescription | None:
    """
    Return what C{document} says of the picture, if anything.

    @raise ValueError: if that is no description of it.
    """
    video = _describedStream(document, "video", "vp8")
    if video is None:
        return None
    rate = video.get("rate")
    # Fraction itself would also take "1e999999999", and take its time.
    if rate is not None and not (isinstance(rate, str) and re.fullmatch("[0-9]{1,7}(/[1-9][0-9]{0,6})?", rate)):
        raise ValueError('rate is a text like "15" or "30000/1001"')
    return VideoDescription(video.get("width", 0), video.get("height", 0), None if rate is None else Fraction(rate))


# -- Files ---------------------------------------------------------------------------------------------------------


def _requireAv() -> ModuleType:
    """
    Return PyAV.

    @raise MediaUnavailable: if it is not installed.
    """
    try:
        import av
    except ImportError as error:
        raise MediaUnavailable('media files need PyAV: pip install "wecompany[media]"') from error
    return av


@contextmanager
def _mediaErrors(av: ModuleType, path: Path) -> Iterator[None]:
    """Turn whatever goes wrong with the file at C{path} into a L{MediaError}."""
    try:
        yield
    except (OSError, ValueError, av.FFmpegError) as error:
        raise MediaError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


class _Timeline:
    """Makes the timestamps of one stream run forward, whatever its source says."""

    def __init__(self) -> None:
        self._shift = 0
        self._last: int | None = None
        self._end = 0

    def place(self, time: int, duration: int) -> int:
        """
        Return when the frame takes place of which the source says C{time}.

        Where the source steps back, because it has begun anew, it goes on where it was.
        """
        at = time + self._shift
        if self._last is not None and at < self._last:
            self._shift += self._end - at
            at = self._end
        self._last = at
        self._end = at + duration
        return at


class MediaFile:
    """
    An Ogg file with Opus, or a WebM or Matroska file with Opus, VP8 or both, as the packets that are in it.

    Iterating over it gives its L{MediaFrame}s in order of time, the first at 0, without decoding them and without
    holding more than a few.  It can be done any number of times; each reads the file anew.  Of several streams of a
    codec the first is taken, and streams of other codecs are left alone.

    Making one, and every step of the iteration, reads from the disk and blocks: do it in a thread.

    @ivar description: its streams.
    """

    def __init__(self, path: str | Path) -> None:
        """
        Read what streams the file has.

        @raise MediaError: if there is no such file, it cannot be read, is no media, or has neither Opus nor VP8.
        @raise MediaUnavailable: if PyAV is not installed.
        """
        self._av = _requireAv()
        self._path = Path(path)
        with _mediaErrors(self._av, self._path), self._open() as container:
            opus = self._find(container, "opus")
            vp8 = self._find(container, "vp8")
            audio = video = None
            if opus is not None:
                audio = AudioDescription(opus.sample_rate, opus.channels, opus.codec_context.extradata or b"")
            if vp8 is not None:
                # Where pictures come as they like, the average may be anything.
                rate = vp8.average_rate if 1 <= (vp8.average_rate or 0) <= 1_000 else None
                video = VideoDescription(vp8.width, vp8.height, rate)
            self.description = StreamDescription(audio, video)
        if opus is None and vp8 is None:
            raise MediaError(f"{path}: there is neither Opus nor VP8 in it")

    def __iter__(self) -> Iterator[MediaFrame]:
        """
        Yield its frames.

        @raise MediaError: if the file is damaged, or gone.
        """
        codecs = [
            codec
            for codec, described in (("opus", self.description.audio), ("vp8", self.description.video))
            if described is not None
        ]
        with _mediaErrors(self._av, self._path), ExitStack() as stack:
            # The file is opened once for each stream, as nothing obliges it to have them in order of time.
            streams = [self._packets(stack.enter_context(self._open()), codec) for codec in codecs]
            origin = None
            for at, kind, sequence, data in heapq.merge(*streams, key=itemgetter(0)):
                if origin is None:
                    origin = at
                yield MediaFrame(kind, sequence, at - origin, data)

    def _open(self) -> InputContainer:
        """Open the file, as one of the two formats and nothing else: a playlist, say, would name other files."""
        try:
            container: InputContainer = self._av.open(
                f"file:{self._path}",
                metadata_errors="replace",
                container_options={"format_whitelist": "ogg,matroska,webm"},
            )
        except OSError:
            raise
        except self._av.FFmpegError:
            raise MediaError(f"{self._path}: this is neither an Ogg nor a WebM file") from None
        return container

    @staticmethod
    def _find(container: InputContainer, codec: str) -> Any:
        """Return the first stream of C{codec}, or C{None}."""
        for stream in container.streams:
            if stream.codec_context is not None and stream.codec_context.codec.canonical_name == codec:
                return stream
        return None

    @classmethod
    def _packets(cls, container: InputContainer, codec: str) -> Iterator[tuple[int, MediaKind, int, bytes]]:
        """Yield C{(microseconds, kind, sequence, data)} of each packet of one stream; the first may be before 0."""
        stream = cls._find(container, codec)
        timeline = _Timeline()
        sequence = 0
        for packet in container.demux(stream):
            # An empty one without a time marks the end.
            if packet.pts is None or not packet.size:
                continue
            unit = packet.time_base * 1_000_000
            at = timeline.place(round(packet.pts * unit), round((packet.duration or 0) * unit))
            if codec == "opus":
                kind = MediaKind.AUDIO
            else:
                kind = MediaKind.VIDEO_KEY if packet.is_keyframe else MediaKind.VIDEO_DELTA
            yield at, kind, sequence % _SEQUENCES, bytes(packet)
            sequence += 1


_FORMATS = {".ogg": "ogg", ".oga": "ogg", ".opus": "ogg", ".webm": "webm", ".mkv": "matroska"}


def _element(identifier: str, *content: bytes) -> bytes:
    """Return an EBML element, of which WebM is made: ID (given in hexadecimal), length, content."""
    body = b"".join(content)
    return bytes.fromhex(identifier) + (1 << 56 | len(body)).to_bytes(8, "big") + body


def _webmHeader(description: StreamDescription) -> bytes:
    """
    Return a WebM file that has the streams described and no packet.

    PyAV makes a stream for packets which it has not encoded itself only after the model of one which it has read.
    """
    tracks = []
    if description.audio is not None:
        header = description.audio.header()
        skipped = int.from_bytes(header[10:12], "little")
        tracks.append(
            _element(
                "AE",
                _element("D7", b"\1"),  # TrackNumber
                _element("73C5", b"\1"),  # TrackUID
                _element("83", b"\2"),  # TrackType: audio
                _element("86", b"A_OPUS"),
                _element("63A2", header),  # CodecPrivate
                _element("56AA", (skipped * 1_000_000_000 // _OPUS_RATE).to_bytes(8, "big")),  # CodecDelay
                _element(
                    "E1",
                    _element("B5", struct.pack(">d", _OPUS_RATE)),
                    _element("9F", bytes([description.audio.channels])),
                ),
            )
        )
    if description.video is not None:
        width, height = description.video.width, description.video.height
        tracks.append(
            _element(
                "AE",
                _element("D7", b"\2"),
                _element("73C5", b"\2"),
                _element("83", b"\1"),  # TrackType: video
                _element("86", b"V_VP8"),
                _element("E0", _element("B0", width.to_bytes(2, "big")), _element("BA", height.to_bytes(2, "big"))),
            )
        )
    return _element("1A45DFA3", _element("4282", b"webm")) + _element(
        "18538067",  # Segment
        _element("1654AE6B", *tracks),
        _element("1F43B675", _element("E7", b"\0")),  # an empty Cluster: the tracks are complete
    )


def _opusDuration(packet: bytes) -> int:
    """Return the microseconds that an Opus packet lasts, by its first bytes (RFC 6716, 3.1 and 3.2)."""
    config = packet[0] >> 3
    if config < 12:
        frame = (10_000, 20_000, 40_000, 60_000)[config & 3]
    elif config < 16:
        frame = (10_000, 20_000)[config & 1]
    else:
        frame = 2_500 << (config & 3)
    code = packet[0] & 3
    count = packet[1] & 63 if code == 3 and len(packet) > 1 else (1, 2, 2, 0)[code]
    # A valid one has at most 120 ms.
    return min(frame * count, 120_000)


def checkRecording(path: Path) -> str:
    """
    Return the format of a recording with that name.

    @raise MediaError: if there is none.
    @raise MediaUnavailable: if PyAV is not installed.
    """
    _requireAv()
    form = _FORMATS.get(path.suffix.lower())
    if form is None:
        raise MediaError(f"{path}: a recording is an .ogg, .webm or .mkv file")
    if not path.parent.is_dir():
        raise MediaError(f"{path}: there is no such folder")
    return form


class _Track:
    """What a recording knows of one of its streams."""

    __slots__ = ("last", "stream", "timeline")

    def __init__(self, stream: Stream) -> None:
        self.stream = stream
        self.last: int | None = None
        self.timeline = _Timeline()


class Recorder:
    """
    Writes the frames that one party of a call sends into a file, unchanged.

    The first frame takes place at 0.  Frames that would do harm are not written but counted: those that are late,
    doubled or empty, of a stream that was not described, or L{MAX_RECORDING} away, the pictures before the first key
    frame, and what comes after the end.

    Making one, and every call of its methods, writes to the disk and blocks: do it in a thread, one call at a time.

    @ivar written: frames in the file.
    @ivar dropped: frames that were not written.
    """

    def __init__(self, path: str | Path, description: StreamDescription) -> None:
        """
        Begin the file; one that is there already is replaced.

        @param path: ends in .ogg, .oga or .opus for sound alone, or in .webm or .mkv.
        @param description: the streams that are going to come.
        @raise MediaError: if the ending does not fit, nothing is described, or the file cannot be written.
        @raise MediaUnavailable: if PyAV is not installed.
        """
        self.written = 0
        self.dropped = 0
        self._path = Path(path)
        form = checkRecording(self._path)
        self._av = _requireAv()
        self._origin: int | None = None
        self._tracks: dict[str, _Track] = {}
        if form == "ogg" and description.video is not None:
            raise MediaError(f"{path}: a recording with video is a .webm or .mkv file")
        if description == StreamDescription():
            raise MediaError(f"{path}: there is neither sound nor picture to be recorded")
        with _mediaErrors(self._av, self._path):
            self._file = self._path.open("wb")
            try:
                self._begin(form, description)
            except BaseException:
                self._file.close()
                self._path.unlink(missing_ok=True)
                raise

    def _begin(self, form: str, description: StreamDescription) -> None:
        """Write the file's header."""
        # In Ogg only the end of a page has a time.  So each packet gets a page, or a gap would move what is before it.
        options = {"page_duration": "1"} if form == "ogg" else {}
        self._container = self._av.open(self._file, "w", format=form, container_options=options)
        with self._av.open(io.BytesIO(_webmHeader(description)), format="matroska") as model:
            for stream in model.streams:
                self._tracks[stream.type] = _Track(self._container.add_stream_from_template(stream, opaque=True))
        self._container.start_encoding()

    def write(self, frame: MediaFrame) -> None:
        """
        Write one frame, or count it as dropped.

        @raise MediaError: if the file cannot be written, for example as the disk is full.
        """
        track = self._tracks.get(_TRACKS[frame.kind])
        if (
            track is None
            or not frame.data
            or not _isNewer(frame.sequence, track.last)
            or (track.last is None and frame.kind is MediaKind.VIDEO_DELTA)
        ):
            self.dropped += 1
            return
        if self._origin is None:
            self._origin = frame.timestamp
        time = frame.timestamp - self._origin
        if time > MAX_RECORDING:
            self.dropped += 1
            return
        track.last = frame.sequence
        packet = self._av.Packet(frame.data)
        packet.stream = track.stream
        packet.time_base = Fraction(1, 1_000_000)
        packet.duration = _opusDuration(frame.data) if frame.kind is MediaKind.AUDIO else 0
        # The other stream's first frame may be a little older than this file's first.
        packet.pts = packet.dts = track.timeline.place(max(time, 0), packet.duration)
        packet.is_keyframe = frame.kind is not MediaKind.VIDEO_DELTA
        with _mediaErrors(self._av, self._path):
            self._container.mux(packet)
        self.written += 1

    def close(self) -> None:
        """
        Finish the file, or remove it if there is no frame in it.  Doing it again does nothing.

        @raise MediaError: if it cannot be written.
        """
        if self._file.closed:
            return
        self._tracks.clear()
        try:
            with _mediaErrors(self._av, self._path), self._file:
                self._container.close()
        finally:
            if not self.written:
                self._path.unlink(missing_ok=True)
