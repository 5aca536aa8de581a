"""
``wecompany call`` and ``wecompany answer``: real sound and pictures, from a file to a file, at their real pace.

Nothing is encoded or decoded here: the packets of the file that is played go over the wire as they are, and those that
come are put into the file that is recorded as they are.
"""

from __future__ import annotations

import argparse
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredQueue
from twisted.python.failure import Failure

from wecompany.cli.running import EXIT_FAILED, EXIT_OK, Command, Problem, printable, say, startClient
from wecompany.cli.tone import writeTone
from wecompany.client import Call, CallOutcome, Client, ClientError, ClientListener
from wecompany.media import (
    MediaError,
    MediaFile,
    MediaFrame,
    MediaUnavailable,
    Reassembler,
    Recorder,
    StreamDescription,
    encodeFrame,
)
from wecompany.wire import EndCode, MediaKind, RejectCode

READ_AHEAD = 25
"""Frames that are read from the disk at once."""

MAX_UNWRITTEN = 5_000
"""Frames that wait to be written to the disk; any more are dropped and counted."""

LINGER = 0.5
"""Seconds between the last packet and hanging up, so that it is there before the call is over."""

END_OF_MEDIA = b"end"
"""What a frame of kind OTHER says when its sender has no more to play."""


class _Ear:
    """Takes what the other party sends, and records it if there is a file to record to."""

    def __init__(self) -> None:
        self._frames: DeferredQueue[MediaFrame | None] = DeferredQueue()
        self._reassembler = Reassembler()
        self._lost = 0
        self.received = 0
        self.finished: Deferred[None] = Deferred()

    def connectionLost(self) -> None:
        """What was under way when the connection broke will not be completed."""
        self._lost += self._reassembler.dropped
        self._reassembler = Reassembler()

    def mediaReceived(self, media: bytes) -> None:
        """Take one MEDIA_DATA."""
        frame = self._reassembler.feed(media)
        if frame is None:
            return
        if frame.kind is MediaKind.OTHER:
            if frame.data == END_OF_MEDIA:
                self.finish()
            return
        self.received += 1
        if len(self._frames.pending) < MAX_UNWRITTEN:
            self._frames.put(frame)
        else:
            self._lost += 1

    def finish(self) -> None:
        """No more is going to come."""
        if not self.finished.called:
            self.finished.callback(None)
            self._frames.put(None)

    async def record(self, client: Client, recorder: Recorder) -> None:
        """Write what comes until there is no more, then close the file."""
        try:
            frame = await self._frames.get()
            while frame is not None:
                batch = [frame]
                while self._frames.pending and (frame := await self._frames.get()) is not None:
                    batch.append(frame)
                await client.runInThread(_writeAll, recorder, batch)
                if frame is not None:
                    frame = await self._frames.get()
        finally:
            await client.runInThread(recorder.close)

    @property
    def lost(self) -> int:
        """Return how many frames came in part or could not be kept."""
        return self._lost + self._reassembler.dropped


def _writeAll(recorder: Recorder, frames: list[MediaFrame]) -> None:
    for frame in frames:
        recorder.write(frame)


class Talk(ClientListener):
    """
    One call of this command.

    @ivar client: set as soon as it is there.
    """

    client: Client

    def __init__(self, reactor: Any, options: argparse.Namespace) -> None:
        self._reactor = reactor
        self._options = options
        self._file: MediaFile | None = None
        self._tone: tempfile.TemporaryDirectory[str] | None = None
        self._recording: Deferred[None] | None = None
        self._ear = _Ear()
        self.incoming: Deferred[tuple[Call, Recorder | None]] = Deferred()
        self.sent = 0

    def open(self) -> None:
        """
        Open what is to be played.  It blocks.

        @raise Problem: if it cannot be.
        """
        try:
            if self._options.tone is not None:
                self._tone = tempfile.TemporaryDirectory(prefix="wecompany-")
                path = Path(self._tone.name) / "tone.ogg"
                writeTone(path, self._options.tone)
                self._file = MediaFile(path)
            elif self._options.play is not None:
                self._file = MediaFile(self._options.play)
        except ImportError:
            raise Problem('a tone needs PyAV: pip install "wecompany[media]"') from None
        except (MediaError, MediaUnavailable) as e:
            raise Problem(str(e)) from None

    def close(self) -> None:
        """Remove the tone."""
        if self._tone is not None:
            self._tone.cleanup()

    @property
    def description(self) -> StreamDescription:
        """Return what this side plays."""
        return self._file.description if self._file is not None else StreamDescription()

    # -- ClientListener

    def connected(self) -> None:
        if hasattr(self, "client"):
            say("Connected again.")

    def disconnected(self, reason: ClientError) -> None:
        self._ear.connectionLost()
        say(f"{reason}; trying to get it back.")

    def stopped(self, reason: ClientError) -> None:
        if not self.incoming.called:
            self.incoming.errback(Failure(reason))

    def callReceived(self, call: Call) -> None:
        if self.incoming.called or (self._options.senders and call.peer not in self._options.senders):
            call.reject(RejectCode.BUSY if self.incoming.called else RejectCode.FORBIDDEN)
            return
        try:
            recorder = self.recorderFor(call.offer)
        except (MediaError, ValueError) as e:
            call.reject(RejectCode.UNSUPPORTED, str(e)[:200])
            say(f"{printable(call.peer)}'s call cannot be taken: {printable(str(e))}")
            return
        self.incoming.callback((call, recorder))

    # -- the call

    def recorderFor(self, description: bytes) -> Recorder | None:
        """
        Return what records a party with that offer or answer, if that is wanted and there is anything.

        @raise ValueError: if it is no description, or of codecs that are not known here.
        @raise MediaError: if the file cannot hold it.
        """
        described = StreamDescription.decode(description)
        if described == StreamDescription():
            self._ear.finish()
            return None
        return Recorder(self._options.record, described) if self._options.record is not None else None

    def listen(self, call: Call) -> None:
        """Take what the other party sends from now on."""
        call.mediaReceived = self._ear.mediaReceived

    async def talk(self, call: Call, recorder: Recorder | None) -> int:
        """
        Play and record until either side hangs up.

        @return: the exit code.
        """
        say(f"In a call with {printable(call.peer)}; Ctrl-C hangs up.")
        if recorder is not None:
            self._recording = Deferred.fromCoroutine(self._ear.record(self.client, recorder))
        hangingUp = Deferred.fromCoroutine(self._hangUpWhenDone(call))
        hangingUp.addErrback(self._playFailed, call)
        try:
            outcome = await call.whenEnded()
        finally:
            self._ear.finish()  # first: to cancel who waits for that would cancel that
            hangingUp.cancel()
            if self._recording is not None:
                await self._recording
        say(f"The call is over: {printable(str(outcome))}.")
        say(f"Packets: {self.sent} sent, {self._ear.received} received, {self._ear.lost} lost on the way.")
        return EXIT_OK if outcome == CallOutcome(False, EndCode.HUNG_UP, outcome.text) else EXIT_FAILED

    @staticmethod
    def _playFailed(failure: Failure, call: Call) -> None:
        if not failure.check(CancelledError):
            say(f"The call is ended: {printable(failure.getErrorMessage())}")
            call.end()

    async def _hangUpWhenDone(self, call: Call) -> None:
        isRecording = self._recording is not None
        if self._file is None and not isRecording:
            return
        if self._file is not None:
            await self._play(call, self._file)
        if isRecording:
            await self._ear.finished
        await self.client.sleep(LINGER)
        if call.outcome is None:
            call.end()

    async def _play(self, call: Call, file: MediaFile) -> None:
        frames = iter(file)
        began = self._reactor.seconds()
        last = 0
        while batch := await self.client.runInThread(lambda: list(islice(frames, READ_AHEAD))):
            for frame in batch:
                last = frame.timestamp
                wait = began + last / 1_000_000 - self._reactor.seconds()
                if wait > 0:
                    await self.client.sleep(wait)
                if call.outcome is not None:
                    return
                pieces = encodeFrame(frame)
                if sum(call.sendMedia(piece) for piece in pieces) == len(pieces):
                    self.sent += 1
        for piece in encodeFrame(MediaFrame(MediaKind.OTHER, 0, last, END_OF_MEDIA)):
            call.sendMedia(piece)


async def _withClient(reactor: Any, options: argparse.Namespace, calling: bool) -> int:
    talk = Talk(reactor, options)
    try:
        talk.open()
        client = await startClient(reactor, options, talk)
        talk.client = client
        try:
            return await (_call(talk, options) if calling else _answer(talk, options))
        finally:
            if client.currentCall is not None and client.isOnline:
                await client.currentCall.end()
            await client.stop()
    finally:
        talk.close()


async def _call(talk: Talk, options: argparse.Namespace) -> int:
    isVideo = talk.description.video is not None
    call = await talk.client.call(options.to, isVideo, talk.description.encode())
    say(f"{printable(options.to)}'s phone rings.")
    talk.listen(call)
    answer = await call.whenAccepted()
    try:
        recorder = talk.recorderFor(answer)
    except (MediaError, ValueError) as e:
        call.end("what you send cannot be recorded here")
        raise Problem(str(e)) from None
    return await talk.talk(call, recorder)


async def _answer(talk: Talk, options: argparse.Namespace) -> int:
    say(f"Waiting for a call as {printable(options.user)}; Ctrl-C ends it.")
    call, recorder = await talk.incoming
    say(f"{printable(call.peer)} calls.")
    talk.listen(call)
    await call.accept(talk.description.encode())
    return await talk.talk(call, recorder)


async def call(reactor: Any, options: argparse.Namespace) -> int:
    """Call somebody."""
    return await _withClient(reactor, options, calling=True)


async def answer(reactor: Any, options: argparse.Namespace) -> int:
    """Wait for a call and take it."""
    return await _withClient(reactor, options, calling=False)


commands: dict[str, Command] = {"call": call, "answer": answer}
