"""Something to hear for who has no recording at hand."""

from __future__ import annotations

import math
from array import array
from fractions import Fraction
from pathlib import Path

RATE = 48_000
PACKET = RATE // 50
FREQUENCY = 440

MAX_TONE = 3600
"""Seconds that a tone may last."""


def writeTone(path: Path, seconds: float) -> None:
    """
    Write an Ogg file with a tone of 440 Hz in Opus packets of 20 ms.  It blocks.

    @raise ImportError: if PyAV is not installed.
    """
    import av
    from av.audio.stream import AudioStream

    turn = 2 * math.pi * FREQUENCY / RATE
    # A second holds whole turns, so that it can be repeated.
    second = array("h", (round(8_000 * math.sin(turn * at)) for at in range(RATE))).tobytes()
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libopus", rate=RATE, layout="mono", format="s16")
        assert isinstance(stream, AudioStream)
        for start in range(0, round(seconds * RATE), PACKET):
            frame = av.AudioFrame(format="s16", layout="mono", samples=PACKET)
            frame.sample_rate = RATE
            frame.pts = start
            frame.time_base = Fraction(1, RATE)
            at = 2 * (start % RATE)
            # The buffer may be longer, for the alignment of its end.
            frame.planes[0].update(second[at : at + 2 * PACKET].ljust(frame.planes[0].buffer_size, b"\0"))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
