"""
Files on their way, as their sender and their receiver see them.

A transfer outlives a connection: when either side was lost, the sender offers the file again under the same ID, and the
receiver accepts it from where it stopped.  The ID follows from what is sent to whom, so even a new process of the
sender goes on where an old one was killed.
"""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

from twisted.internet.defer import Deferred, DeferredQueue, fail

from wecompany.client.errors import ClientError, NotConnected, ServerError, TransferCancelled
from wecompany.wire import (
    FILE_WINDOW,
    ID_SIZE,
    MAX_CHUNK,
    CancelCode,
    ErrorCode,
    FileOffer,
    FileOp,
    decodeOffset,
    encodeOffset,
    splitOffset,
    splitReason,
)

if TYPE_CHECKING:
    from wecompany.client.session import Client

Progress = Callable[[int, int], None]
"""Called with the bytes that are through, and the bytes of the whole file."""

CREDIT_EVERY = FILE_WINDOW // 4
"""Bytes that a receiver takes before it tells the sender."""

RETRY_FIRST = 2.0
RETRY_MOST = 30.0
"""Seconds between two offers to a receiver that was lost: the first time, doubling, and at most."""

MAX_OFFLINE_RETRIES = 20
"""Offers in a row to a receiver who was lost and does not come back, about 9 minutes; then the transfer is given up."""

_READ = 4 * MAX_CHUNK

_LOST = -1
"""Stands among the ops for: the own connection was lost."""


def _noProgress(done: int, size: int) -> None:
    """Tell nobody."""


def hashFile(path: Path) -> tuple[int, bytes]:
    """Return size and SHA-256 of a file.  It blocks."""
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while block := file.read(1_048_576):
            digest.update(block)
            size += len(block)
    return size, digest.digest()


def safeName(name: str) -> str:
    """Return a file name that every common system takes, and that stays in its folder."""
    cleaned = "".join("_" if c in '<>:"|?*/\\' or not c.isprintable() else c for c in name).rstrip(". ")
    return cleaned or "file"


class OutgoingFile:
    """One file that is being sent."""

    def __init__(self, client: Client, receiver: str, path: Path, progress: Progress = _noProgress) -> None:
        self._client = client
        self._progress = progress
        self._path = path
        self._events: DeferredQueue[tuple[int, bytes]] = DeferredQueue()
        self._started = False
        self.receiver = receiver
        self.transferId = b""

    def event(self, op: int, rest: bytes) -> None:
        """For the client: an op has come from the receiver."""
        self._events.put((op, rest))

    def connectionLost(self) -> None:
        """For the client: the own connection is gone."""
        self._events.put((_LOST, b""))

    async def run(self) -> None:
        """
        Send the file, however often a connection is lost meanwhile.

        @raise TransferCancelled: if the receiver does not want it, or it cannot get through.
        @raise ServerError: if the server does not take the offer.
        @raise OSError: if the file cannot be read.
        """
        size, digest = await self._client.runInThread(hashFile, self._path)
        offer = FileOffer(size, digest, self._path.name)
        what = "\0".join((self._client.userId, self.receiver, self._path.name)).encode() + digest
        self.transferId = hashlib.sha256(what).digest()[:ID_SIZE]
        file = await self._client.runInThread(_open, self._path)
        self._client.addOutgoing(self)
        try:
            failures = 0
            while True:
                try:
                    if await self._tryOnce(file, offer):
                        return
                    failures = 0
                except ServerError as e:
                    # Offline at first is an answer; offline after some of it got through is a bad network.
                    if not self._started or e.code != ErrorCode.OFFLINE or failures >= MAX_OFFLINE_RETRIES:
                        raise
                except NotConnected:
                    if not self._started:
                        raise
                await self._client.sleep(min(RETRY_MOST, RETRY_FIRST * 2**failures))
                failures += 1
                await self._client.whenOnline()
        finally:
            self._client.removeOutgoing(self)
            file.close()

    async def _tryOnce(self, file: IO[bytes], offer: FileOffer) -> bool:
        """Offer the file and send it; return false if a connection was lost on the way."""
        self._events = DeferredQueue()
        await self._client.askFile(self.receiver, FileOp.OFFER, self.transferId, offer.encode())
        sent = credit = 0
        accepted = done = False
        while True:
            if accepted and not done and sent < min(offer.size, credit + FILE_WINDOW) and not self._events.pending:
                block = await self._client.runInThread(_readAt, file, sent, min(_READ, credit + FILE_WINDOW - sent))
                if not block:
                    self._cancel(CancelCode.CANCELLED, "the file became shorter")
                    raise TransferCancelled(CancelCode.CANCELLED, "the file became shorter while it was sent")
                for at in range(0, len(block), MAX_CHUNK):
                    chunk = block[at : at + MAX_CHUNK]
                    self._client.sendFileFrame(self.receiver, FileOp.CHUNK, self.transferId, encodeOffset(sent) + chunk)
                    sent += len(chunk)
                continue
            if accepted and not done and sent == offer.size:
                done = True
                self._client.sendFileFrame(self.receiver, FileOp.DONE, self.transferId, b"")
            op, rest = await self._events.get()
            if op == _LOST:
                return False
            if op == FileOp.ACCEPT:
                accepted = self._started = True
                sent = credit = decodeOffset(rest)
                self._progress(credit, offer.size)
            elif op == FileOp.CREDIT:
                credit = decodeOffset(rest)
                self._progress(credit, offer.size)
            elif op == FileOp.RECEIVED:
                self._progress(offer.size, offer.size)
                return True
            elif op == FileOp.CANCEL:
                code, text = splitReason(rest)
                if code == CancelCode.PEER_LOST and self._started:
                    return False
                raise TransferCancelled(code, text.decode("utf-8", "replace"))

    def _cancel(self, code: CancelCode, text: str) -> None:
        self._client.sendFileFrame(self.receiver, FileOp.CANCEL, self.transferId, bytes((code,)) + text.encode())


def _open(path: Path) -> IO[bytes]:
    return path.open("rb")


def _readAt(file: IO[bytes], offset: int, size: int) -> bytes:
    file.seek(offset)
    return file.read(size)


class IncomingFile:
    """
    A file that somebody offers.

    @ivar sender: who.
    @ivar name: as the sender calls it; safe to show and to use in a folder.
    @ivar size: bytes.
    """

    def __init__(self, client: Client, sender: str, transferId: bytes, offer: FileOffer) -> None:
        self._client = client
        self._offer = offer
        self._events: DeferredQueue[tuple[int, bytes]] = DeferredQueue()
        self.sender = sender
        self.transferId = transferId
        self.name = safeName(offer.name)
        self.size = offer.size
        self.isAccepted = False

    def decline(self, text: str = "") -> None:
        """Refuse it."""
        self._cancel(CancelCode.DECLINED, text)
        self._client.removeIncoming(self)

    def accept(self, folder: Path, progress: Progress = _noProgress) -> Deferred[Path]:
        """
        Take it.

        An existing file is never overwritten.  What came so far is kept as C{.ID.part} in the folder, and gone on with
        when the same file is offered again.

        @return: fires with where it is, when all of it is there and its SHA-256 is right; fails with
            L{TransferCancelled} or C{OSError}.
        """
        if self.isAccepted:
            return fail(ClientError("this file has been accepted"))
        self.isAccepted = True
        return Deferred.fromCoroutine(self._run(folder, progress))

    def event(self, op: int, rest: bytes) -> None:
        """For the client: an op has come from the sender."""
        self._events.put((op, rest))

    def connectionLost(self) -> None:
        """For the client: the own connection is gone.  The sender will offer the file again."""
        self._events.put((_LOST, b""))

    def giveUp(self) -> None:
        """For the client: nobody waits for it any more."""
        self._events.put((FileOp.CANCEL, bytes((CancelCode.PEER_LOST,))))

    async def _run(self, folder: Path, progress: Progress) -> Path:
        part = folder / f".{self.transferId.hex()}.part"
        file, digest, taken = None, hashlib.sha256(), 0
        try:
            file, digest, taken = await self._client.runInThread(_openPart, part, self.size)
            self._send(FileOp.ACCEPT, encodeOffset(taken))
            progress(taken, self.size)
            credited = taken
            while True:
                op, rest = await self._events.get()
                if op == FileOp.CHUNK:
                    offset, data = splitOffset(rest)
                    if offset != taken:
                        continue  # of an earlier try
                    await self._client.runInThread(_append, file, digest, data)
                    taken += len(data)
                    if taken - credited >= CREDIT_EVERY or taken == self.size:
                        credited = taken
                        self._send(FileOp.CREDIT, encodeOffset(taken))
                        progress(taken, self.size)
                elif op == FileOp.OFFER:
                    credited = taken
                    self._send(FileOp.ACCEPT, encodeOffset(taken))
                elif op == FileOp.DONE:
                    if taken == self.size:
                        return await self._finish(folder, part, file, digest.digest())
                elif op == FileOp.CANCEL:
                    code, text = splitReason(rest)
                    if code != CancelCode.PEER_LOST or not self._client.keepIncoming(self):
                        raise TransferCancelled(code, text.decode("utf-8", "replace"))
        except OSError as e:
            full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            self._cancel(CancelCode.NO_SPACE if full else CancelCode.CANCELLED, e.strerror or "cannot write")
            raise
        finally:
            self._client.removeIncoming(self)
            if file is not None:
                file.close()

    async def _finish(self, folder: Path, part: Path, file: IO[bytes], digest: bytes) -> Path:
        file.close()
        if digest != self._offer.sha256:
            await self._client.runInThread(part.unlink)
            self._cancel(CancelCode.HASH_MISMATCH, "what arrived is not what was offered")
            raise TransferCancelled(CancelCode.HASH_MISMATCH, "what arrived is not what was offered")
        path = await self._client.runInThread(_moveInto, part, folder, self.name)
        self._send(FileOp.RECEIVED, b"")
        return path

    def _send(self, op: FileOp, rest: bytes) -> None:
        self._client.sendFileFrame(self.sender, op, self.transferId, rest)

    def _cancel(self, code: CancelCode, text: str) -> None:
        self._send(FileOp.CANCEL, bytes((code,)) + text.encode())


def _openPart(part: Path, size: int) -> tuple[IO[bytes], hashlib._Hash, int]:
    """Open what came of a file so far, and hash it."""
    digest = hashlib.sha256()
    file = part.open("a+b")
    try:
        file.seek(0)
        taken = 0
        while block := file.read(1_048_576):
            digest.update(block)
            taken += len(block)
        if taken > size:
            file.truncate(0)
            return file, hashlib.sha256(), 0
    except OSError:
        file.close()
        raise
    return file, digest, taken


def _append(file: IO[bytes], digest: hashlib._Hash, data: bytes) -> None:
    digest.update(data)
    file.write(data)


def _moveInto(part: Path, folder: Path, name: str) -> Path:
    """Give a complete file its name, or one like it that is free."""
    number = 0
    while True:
        path = folder / (name if not number else f"{Path(name).stem} ({number}){Path(name).suffix}")
        try:
            os.link(part, path)  # fails where a rename would overwrite
        except FileExistsError:
            number += 1
            continue
        except OSError:  # a file system without hard links
            if path.exists():
                number += 1
                continue
            part.rename(path)
            return path
        part.unlink()
        return path
