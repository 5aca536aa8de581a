"""
``wecompany call`` and ``wecompany answer``: real sound and pictures, from a file to a file, at their real pace.

Nothing is encoded or decoded here: the packets of the file that is played go over the wire as they are, and those that
come are put into the file that is recorded as they are.
"""

from __future__ import annotations

import argparse
import contextlib
import tempfile
from itertools import islice
from pathlib import Path
from typing import Any

from twisted.internet.defer import CancelledError, Deferred, DeferredQueue, TimeoutError
from twisted.internet.threads import deferToThreadPool
from twisted.python.failure import Failure

from wecompany.cli.running import EXIT_FAILED, EXIT_OK, Announcer, Command, Problem, say, startClient
from wecompany.cli.tone import writeTone
from wecompany.client import Call, Client, ClientError
from wecompany.media import (
    MediaError,
    MediaFile,
    MediaFrame,
    MediaUnavailable,
    Reassembler,
    Recorder,
    StreamDescription,
    checkRecording,
    encodeFrame,
)
from wecompany.wire import MediaKind, RejectCode

READ_AHEAD = 25
"""Frames that are read from the disk at once."""

MAX_UNWRITTEN = 5_000
"""Frames that wait to be written to the disk; any more are dropped and counted."""

LINGER = 0.5
"""Seconds between the last packet and hanging up, so that it is there before the call is over."""

HANG_UP_WITHIN = 3.0
"""Seconds for the server to say that the call is over, when we leave."""

END_OF_MEDIA = b"end"
"""What a frame of kind OTHER says when its sender has no more to play."""


class _Ear:
    """Takes what the other party sends, and records it if there is a file to record to."""

    def __init__(self, isRecorded: bool = False) -> None:
        self._isRecorded = isRecorded
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
        if self.received == 1:
            say("Media comes.")
        if not self._isRecorded:
            return
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


class Talk(Announcer):
    """
    One call of this command.

    @ivar client: set as soon as it is there.
    @ivar arrivals: the calls that come, or why none will.
    @ivar isTaken: whether the one call that is to be answered has come.
    @ivar sent: frames that have been sent.
    """

    client: Client

    def __init__(self, reactor: Any, options: argparse.Namespace) -> None:
        super().__init__()
        self._reactor = reactor
        self._options = options
        self._file: MediaFile | None = None
        self._tone: tempfile.TemporaryDirectory[str] | None = None
        self._recording: Deferred[None] | None = None
        self._hasFailed = False
        self._ear = _Ear()
        self.arrivals: DeferredQueue[Call | ClientError] = DeferredQueue()
        self.isTaken = False
        self.sent = 0

    def open(self) -> None:
        """
        Open what is to be played, and see that what is to be recorded can be.  It blocks.

        @raise Problem: if something is not as it should be.
        """
        try:
            if self._options.record is not None:
                checkRecording(self._options.record)
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

    def disconnected(self, reason: ClientError) -> None:
        super().disconnected(reason)
        self._ear.connectionLost()

    def stopped(self, reason: ClientError) -> None:
        self.arrivals.put(reason)

    def callReceived(self, call: Call) -> None:
        if self.isTaken:
            call.reject(RejectCode.BUSY)
        elif self._options.senders and call.peer not in self._options.senders:
            call.reject(RejectCode.FORBIDDEN)
        else:
            self.arrivals.put(call)

    # -- the call

    async def listen(self, call: Call, description: bytes) -> Recorder | None:
        """
        Take what the other party sends from now on.

        @param description: its offer or answer.
        @return: what records it, if that is wanted and there is anything.
        @raise ValueError: if it is no description, or of codecs that are not known here.
        @raise MediaError: if the file cannot hold it.
        """
        described = StreamDescription.decode(description)
        isRecorded = self._options.record is not None and described != StreamDescription()
        self._ear = _Ear(isRecorded)
        call.mediaReceived = self._ear.mediaReceived
        if described == StreamDescription():
            self._ear.finish()
        return await self.client.runInThread(Recorder, self._options.record, described) if isRecorded else None

    async def talk(self, call: Call, recorder: Recorder | None) -> int:
        """
        Play and record until either side hangs up.

        @return: the exit code.
        """
        say(f"In a call with {call.peer}; Ctrl-C hangs up.")
        if recorder is not None:
            self._recording = Deferred.fromCoroutine(self._ear.record(self.client, recorder))
            self._recording.addErrback(self._failed, call)
        hangingUp = Deferred.fromCoroutine(self._hangUpWhenDone(call))
        hangingUp.addErrback(self._failed, call)
        try:
            outcome = await call.whenEnded()
        finally:
            self._ear.finish()  # first: to cancel who waits for that would cancel that
            hangingUp.cancel()
            if self._recording is not None:
                await self._recording
        say(f"The call is over: {outcome}.")
        say(f"Packets: {self.sent} sent, {self._ear.received} received, {self._ear.lost} lost on the way.")
        return EXIT_OK if outcome.isHangUp and not self._hasFailed else EXIT_FAILED

    def _failed(self, failure: Failure, call: Call) -> None:
        if not failure.check(CancelledError):
            self._hasFailed = True
            say(f"The call is ended: {failure.getErrorMessage()}")
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
        await deferToThreadPool(reactor, reactor.getThreadPool(), talk.open)
        client = await startClient(reactor, options, talk)
        talk.client = client
        try:
            return await (_call(talk, options) if calling else _answer(talk, options))
        finally:
            if client.currentCall is not None and client.isOnline:
                with contextlib.suppress(TimeoutError):  # the server may be as good as dead
                    await client.currentCall.end().addTimeout(HANG_UP_WITHIN, reactor)
            await client.stop()
    finally:
        talk.close()


async def _call(talk: Talk, options: argparse.Namespace) -> int:
    isVideo = talk.description.video is not None
    call = await talk.client.call(options.to, isVideo, talk.description.encode())
    say(f"{options.to}'s phone rings.")
    try:
        recorder = await talk.listen(call, await call.whenAccepted())
    except (MediaError, ValueError) as e:
        call.end("what you send cannot be recorded here")
        raise Problem(str(e)) from None
    return await talk.talk(call, recorder)


async def _answer(talk: Talk, options: argparse.Namespace) -> int:
    say(f"Waiting for a call as {options.user}; Ctrl-C ends it.")
    while True:
        arrival = await talk.arrivals.get()
        if isinstance(arrival, ClientError):
            raise arrival
        say(f"{arrival.peer} calls.")
        try:
            recorder = await talk.listen(arrival, arrival.offer)
        except (MediaError, ValueError) as e:
            say(f"That call cannot be taken: {e}")
            arrival.reject(RejectCode.UNSUPPORTED, str(e)[:200])
            continue
        except MediaUnavailable as e:
            arrival.reject(RejectCode.UNSUPPORTED, "nothing can be recorded here")
            raise Problem(str(e)) from None
        talk.isTaken = True
        try:
            await arrival.accept(talk.description.encode())
        except ClientError as e:
            say(f"The call is over: {e}.")
            if recorder is not None:
                await talk.client.runInThread(recorder.close)
            talk.isTaken = False
            continue
        return await talk.talk(arrival, recorder)


async def call(reactor: Any, options: argparse.Namespace) -> int:
    """Call somebody."""
    return await _withClient(reactor, options, calling=True)


async def answer(reactor: Any, options: argparse.Namespace) -> int:
    """Wait for a call and take it."""
    return await _withClient(reactor, options, calling=False)


commands: dict[str, Command] = {"call": call, "answer": answer}
