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

from twisted.internet.defer import CancelledError, Deferred, DeferredQueue, fail
from twisted.internet.interfaces import IDelayedCall

from wecompany.client.errors import ClientError, NotConnected, ServerError, TransferCancelled
from wecompany.wire import (
    FILE_WINDOW,
    ID_SIZE,
    MAX_CHUNK,
    MAX_FILE_NAME,
    CancelCode,
    ErrorCode,
    FileOffer,
    FileOp,
    WireError,
    decodeOffset,
    encodeOffset,
    encodeReason,
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

SENDER_LOST_FOR = 600.0
"""Seconds that a receiver waits for a sender that was lost, before it gives the file up."""

MAX_QUEUED = 2 * FILE_WINDOW
"""Bytes that a sender may have under way to us; an honest one stays below the window."""

_READ = 4 * MAX_CHUNK

_CONNECTION_ENDED = {ErrorCode.SHUTTING_DOWN, ErrorCode.IDLE, ErrorCode.TOO_SLOW}
"""With these the server ends a connection that one may come back from."""

_LOST = -1
"""Stands among the ops for: the own connection was lost."""

_RESERVED = {"CON", "PRN", "AUX", "NUL", *(f"{port}{n}" for port in ("COM", "LPT") for n in range(1, 10))}
"""What Windows takes for a device, with any suffix."""


def _noProgress(done: int, size: int) -> None:
    """Tell nobody."""


def hashFile(path: Path, goOn: Callable[[], bool] = lambda: True) -> tuple[int, bytes]:
    """
    Return size and SHA-256 of a file.  It blocks.

    @param goOn: asked after each block; when it says no, what has been read so far is taken for all.
    """
    digest = hashlib.sha256()
    size = 0
    with path.open("rb") as file:
        while goOn() and (block := file.read(1_048_576)):
            digest.update(block)
            size += len(block)
    return size, digest.digest()


def safeName(name: str) -> str:
    """Return a file name that every common system takes, that stays in its folder, and that no program obeys."""
    cleaned = "".join("_" if c in '<>:"|?*/\\' or not c.isprintable() else c for c in name).strip(". ")
    if cleaned.partition(".")[0].strip().upper() in _RESERVED:
        cleaned = f"_{cleaned}"
    return cleaned or "file"


class OutgoingFile:
    """One file that is being sent."""

    def __init__(self, client: Client, receiver: str, path: Path, progress: Progress = _noProgress) -> None:
        self._client = client
        self._progress = progress
        self._path = path
        self._events: DeferredQueue[tuple[int, bytes]] = DeferredQueue()
        self._started = False
        self._isOver = False
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
        try:
            self._path.name.encode()
        except UnicodeEncodeError:
            raise ClientError("the file's name is not UTF-8: rename it first") from None
        try:
            size, digest = await self._client.runInThread(hashFile, self._path, lambda: not self._isOver)
        except CancelledError:
            self._isOver = True
            raise
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
                    isAway = e.code == ErrorCode.OFFLINE and failures < MAX_OFFLINE_RETRIES
                    if not self._started or not (isAway or e.code in _CONNECTION_ENDED):
                        raise
                except NotConnected:
                    if not self._started:
                        raise
                await self._client.sleep(min(RETRY_MOST, RETRY_FIRST * 2 ** min(failures, 8)))
                failures += 1
                await self._client.whenOnline()
        except ClientError:
            raise
        except WireError as e:
            self._cancel(CancelCode.CANCELLED, e.text)
            raise ClientError(f"nonsense came from the receiver: {e.text}") from None
        except Exception:
            self._cancel(CancelCode.CANCELLED, "the sender gave up")
            raise
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
                block = await self._client.runInThread(
                    _readAt, file, sent, min(_READ, credit + FILE_WINDOW - sent, offer.size - sent)
                )
                if not block:
                    raise OSError(errno.EIO, "the file became shorter while it was sent", str(self._path))
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
        self._client.command(self.receiver, FileOp.CANCEL, self.transferId, bytes((code,)) + encodeReason(text))


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
        self._queued = 0
        self._isGivenUp = False
        self._givingUp: IDelayedCall | None = None

    def decline(self, text: str = "") -> None:
        """Refuse it, or give it up if it was accepted.  Of C{text} as much is sent as a reason may have."""
        self._cancel(CancelCode.DECLINED, text)
        self._client.removeIncoming(self)
        if self.isAccepted:
            self._isGivenUp = True
            self._events.put((FileOp.CANCEL, bytes((CancelCode.DECLINED,))))

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
        """
        For the client: an op has come from the sender.

        @raise WireError: if more is under way than an honest sender sends.
        """
        self._queued += len(rest)
        if self._queued > MAX_QUEUED:
            raise WireError(ErrorCode.BAD_REQUEST, "more of a file came than the window allows")
        self._events.put((op, rest))

    def connectionLost(self) -> None:
        """For the client: the own connection is gone.  The sender will offer the file again."""
        self._events.put((_LOST, b""))

    def giveUp(self) -> None:
        """Nobody waits for it any more."""
        self._isGivenUp = True
        self._events.put((FileOp.CANCEL, bytes((CancelCode.PEER_LOST,))))

    async def _run(self, folder: Path, progress: Progress) -> Path:
        # Not the transfer ID alone: that is the sender's choice, and two may choose the same.
        what = self.sender.encode() + b"\0" + self.transferId + self._offer.sha256
        part = folder / f".{hashlib.sha256(what).hexdigest()[:32]}.part"
        file, digest, taken = None, hashlib.sha256(), 0
        try:
            file, digest, taken = await self._client.runInThread(_openPart, part, self.size)
            await self._accept(taken)
            progress(taken, self.size)
            credited = taken
            while True:
                op, rest = await self._events.get()
                self._queued -= len(rest)
                if op == FileOp.CHUNK:
                    offset, data = splitOffset(rest)
                    if offset != taken or taken + len(data) > self.size:
                        continue  # of an earlier try
                    await self._client.runInThread(_append, file, digest, data)
                    taken += len(data)
                    if taken - credited >= CREDIT_EVERY or taken == self.size:
                        credited = taken
                        self._send(FileOp.CREDIT, encodeOffset(taken))
                        progress(taken, self.size)
                elif op == FileOp.OFFER:
                    if FileOffer.decode(rest).sha256 != self._offer.sha256:
                        raise TransferCancelled(CancelCode.CANCELLED, "another file is offered in its place")
                    self._waitNoMore()
                    credited = taken
                    await self._accept(taken)
                elif op == FileOp.DONE:
                    if taken == self.size:
                        return await self._finish(folder, part, file, digest.digest())
                elif op == FileOp.CANCEL:
                    code, text = splitReason(rest)
                    if code != CancelCode.PEER_LOST or self._isGivenUp or not self._client.keepIncoming(self):
                        raise TransferCancelled(code, text.decode("utf-8", "replace"))
                    self._waitForSender()
                elif op == _LOST:
                    self._waitForSender()
        except OSError as e:
            full = e.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
            self._cancel(CancelCode.NO_SPACE if full else CancelCode.CANCELLED, e.strerror or "cannot write")
            raise
        except ClientError:
            raise
        except WireError as e:
            self._cancel(CancelCode.CANCELLED, e.text)
            raise ClientError(f"nonsense came from the sender: {e.text}") from None
        except Exception:
            self._cancel(CancelCode.CANCELLED, "the receiver gave up")
            raise
        finally:
            self._waitNoMore()
            self._client.removeIncoming(self)
            for op, rest in self._events.pending:
                if op == FileOp.OFFER:
                    self._client.offeredAgain(self.sender, self.transferId, rest)
            if file is not None:
                file.close()

    async def _finish(self, folder: Path, part: Path, file: IO[bytes], digest: bytes) -> Path:
        file.close()
        if digest != self._offer.sha256:
            await self._client.runInThread(part.unlink)
            self._cancel(CancelCode.HASH_MISMATCH, "what arrived is not what was offered")
            raise TransferCancelled(CancelCode.HASH_MISMATCH, "what arrived is not what was offered")
        path = await self._client.runInThread(_moveInto, part, folder, self.name)
        self._client.confirm(self.sender, self.transferId, self._offer.sha256)
        return path

    async def _accept(self, offset: int) -> None:
        """Say from where on we take it; while too many others are under way, wait."""
        while True:
            try:
                await self._client.askFile(self.sender, FileOp.ACCEPT, self.transferId, encodeOffset(offset))
            except NotConnected:
                if not self._events.pending:  # it was withdrawn before we accepted
                    raise
                return
            except ServerError as e:
                if e.code == ErrorCode.OVERLOADED:
                    await self._client.sleep(RETRY_FIRST)
                    if not self._events.pending:
                        continue
                    return  # what has come meanwhile decides
                if not self._events.pending:  # else it was withdrawn or lost meanwhile, and the queue says so
                    raise
            return

    def _waitForSender(self) -> None:
        if self._givingUp is None:
            self._givingUp = self._client.callLater(SENDER_LOST_FOR, self.giveUp)

    def _waitNoMore(self) -> None:
        if self._givingUp is not None and self._givingUp.active():
            self._givingUp.cancel()
        self._givingUp = None

    def _send(self, op: FileOp, rest: bytes) -> None:
        self._client.sendFileFrame(self.sender, op, self.transferId, rest)

    def _cancel(self, code: CancelCode, text: str) -> None:
        self._client.command(self.sender, FileOp.CANCEL, self.transferId, bytes((code,)) + encodeReason(text))


def _openPart(part: Path, size: int) -> tuple[IO[bytes], hashlib._Hash, int]:
    """Open what came of a file so far, and hash it."""
    digest = hashlib.sha256()
    file = open(part, "a+b", opener=_openNoLink)  # noqa: SIM115 - it stays open as long as the transfer takes
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


def _openNoLink(path: str, flags: int) -> int:
    """Open a file, but not through a symbolic link that somebody has put there."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _append(file: IO[bytes], digest: hashlib._Hash, data: bytes) -> None:
    digest.update(data)
    file.write(data)


def _shorten(stem: str, end: str) -> str:
    """Return both, with as much of C{stem} as a file's name has room for."""
    room = MAX_FILE_NAME - len(end.encode())
    return stem.encode()[: max(1, room)].decode("utf-8", "ignore") + end


def _moveInto(part: Path, folder: Path, name: str) -> Path:
    """Give a complete file its name, or one like it that is free and not too long."""
    suffix = Path(name).suffix
    number = 0
    while True:
        path = folder / (name if not number else _shorten(Path(name).stem, f" ({number}){suffix}"))
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
