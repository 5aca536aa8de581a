"""Real media for the tests: a tone as Opus, and a moving pattern as VP8."""

from __future__ import annotations

import math
from array import array
from fractions import Fraction
from pathlib import Path

import av
from av.audio.stream import AudioStream
from av.video.stream import VideoStream

RATE = 48_000
PACKET = 960
PICTURES = 15
WIDTH, HEIGHT = 320, 240


def makeSample(path: str | Path, seconds: float, video: bool, frequency: int = 440) -> None:
    """
    Make a file with a tone in Opus packets of 20 ms.

    @param path: ends in .ogg, .webm or .mkv.
    @param seconds: how long it lasts.
    @param video: with a picture too: VP8 of 320x240, 15 a second, a key frame every second (that needs WebM).
    @param frequency: Hz of the tone.
    """
    with av.open(str(path), "w") as container:
        audio = container.add_stream("libopus", rate=RATE, layout="mono", format="s16")
        picture = None
        if video:
            picture = container.add_stream("libvpx", rate=PICTURES, width=WIDTH, height=HEIGHT, pix_fmt="yuv420p")
            picture.gop_size = PICTURES
            picture.codec_context.options = {"deadline": "realtime", "cpu-used": "8"}
            picture.bit_rate = 500_000
            # More of them would wait for each other in a loop.
            picture.thread_count = 1
        drawn = 0
        for number in range(round(seconds * RATE / PACKET)):
            if picture is not None and drawn * RATE <= number * PACKET * PICTURES:
                container.mux(picture.encode(_draw(drawn)))
                drawn += 1
            container.mux(audio.encode(_sound(number, frequency)))
        for stream in container.streams:
            assert isinstance(stream, AudioStream | VideoStream)
            container.mux(stream.encode(None))


def _sound(number: int, frequency: int) -> av.AudioFrame:
    """Return the samples of packet C{number}."""
    frame = av.AudioFrame(format="s16", layout="mono", samples=PACKET)
    frame.sample_rate = RATE
    frame.pts = number * PACKET
    frame.time_base = Fraction(1, RATE)
    turn = 2 * math.pi * frequency / RATE
    wave = array("h", (round(9_000 * math.sin(turn * at)) for at in range(frame.pts, frame.pts + PACKET)))
    # The buffer may be longer, for the alignment of its end.
    frame.planes[0].update(wave.tobytes().ljust(frame.planes[0].buffer_size, b"\0"))
    return frame


def _draw(number: int) -> av.VideoFrame:
    """Return picture C{number}: a pattern that moves, and is too detailed for one piece of 4,096 bytes."""
    frame = av.VideoFrame(WIDTH, HEIGHT, "yuv420p")
    frame.pts = number
    frame.time_base = Fraction(1, PICTURES)
    pattern = bytes(at * 2 % 256 for at in range(2 * WIDTH + HEIGHT))
    for plane in frame.planes:
        rows = (pattern[number % 128 + row :][: plane.line_size] for row in range(plane.height))
        plane.update(b"".join(row.ljust(plane.line_size, b"\0") for row in rows).ljust(plane.buffer_size, b"\0"))
    return frame
