"""Files between two clients of a server in memory: whole, cut, resumed, refused, and where they end up."""

from __future__ import annotations

import errno
import hashlib
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hypothesis import example, given
from hypothesis import strategies as st
from twisted.internet.defer import CancelledError, Deferred, maybeDeferred

from tests import temporaryFolder
from tests.test_client import ClientTestCase, Heard, ScriptedTestCase
from wecompany.client import Client, ClientError, IncomingFile, NotConnected, ServerError, TransferCancelled
from wecompany.client.session import MAX_INCOMING
from wecompany.client.transfers import MAX_OFFLINE_RETRIES, _append, _moveInto, hashFile, safeName
from wecompany.server import ServerObserver
from wecompany.wire import (
    FILE_WINDOW,
    MAX_CHUNK,
    CancelCode,
    ErrorCode,
    FileOffer,
    FileOp,
    MessageType,
    encodeOffset,
    splitOffset,
)

FILE = MessageType.FILE
TRANSFER = b"t" * 16


def content(size: int) -> bytes:
    """Return so many bytes of which no two chunks are the same."""
    block = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(3_000))
    return (block * (size // len(block) + 1))[:size]


class Postman(ServerObserver):
    """
    Sees every file op that goes through the server.

    @ivar ops: C{(sender, op, rest)}, the rest without the transfer ID.
    """

    def __init__(self) -> None:
        self.ops: list[tuple[str, int, bytes]] = []

    def messageReceived(self, fromUser: str, toUser: str, messageType: int, data: bytes) -> None:
        if messageType == FILE:
            self.ops.append((fromUser, data[0], data[17:]))

    def of(self, op: FileOp) -> list[bytes]:
        """Return the data of every such op."""
        return [rest for _, what, rest in self.ops if what == op]

    def carried(self) -> int:
        """Return how many bytes of files went through."""
        return sum(len(rest) - 8 for rest in self.of(FileOp.CHUNK))


class Taking(Heard):
    """
    Takes every file that is offered.

    @ivar results: what came of each.
    @ivar progress: what was told of their progress.
    @ivar onProgress: called with that, too.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self.results: list[Deferred[Path]] = []
        self.progress: list[tuple[int, int]] = []
        self.onProgress: Callable[[int], object] = lambda done: None

    def fileOffered(self, file: IncomingFile) -> None:
        super().fileOffered(file)
        self.results.append(file.accept(self._folder, self._noteProgress))

    def _noteProgress(self, done: int, size: int) -> None:
        self.progress.append((done, size))
        self.onProgress(done)


class FilesTestCase(ClientTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.source, self.target = temporaryFolder(self), temporaryFolder(self)
        self.postman = Postman()
        self.server.factory.addObserver(self.postman)
        self.heard = Heard()
        self.taking = Taking(self.target)
        self.addCleanup(self.forget)

    def forget(self) -> None:
        """Leave no failure behind that nobody has looked at."""
        for result in self.taking.results:
            result.addErrback(lambda failure: failure.trap(TransferCancelled, OSError))

    def file(self, size: int, name: str = "report.bin") -> Path:
        """Return a new file."""
        path = self.source / name
        path.write_bytes(content(size))
        return path

    def begin(self, **options: Any) -> tuple[Client, Client]:
        """Return alice, who sends, and bob, who takes everything."""
        return self.start("alice", self.heard), self.start("bob", self.taking, **options)

    def once(self, act: Callable[[], object], after: int = FILE_WINDOW) -> None:
        """Do something as soon as the receiver has taken so many bytes."""

        def progressed(done: int) -> None:
            if done >= after:
                self.taking.onProgress = lambda done: None
                self.server.clock.callLater(0, act)

        self.taking.onProgress = progressed

    def arrived(self, path: Path, *names: str) -> None:
        """Assert that the receiver's folder has the file under these names, and nothing else."""
        self.assertEqual(sorted(found.name for found in self.target.iterdir()), sorted(names))
        for name in names:
            self.assertEqual((self.target / name).read_bytes(), path.read_bytes())

    def cancelled(self, result: Deferred[Any], code: int) -> TransferCancelled:
        """Return the TransferCancelled that a Deferred fails with."""
        error: TransferCancelled = self.failed(result, TransferCancelled)
        self.assertEqual(error.code, code)
        return error


class WholeTests(FilesTestCase):
    def test_sizes(self) -> None:
        """A file of any size arrives as it was, an empty one too, and nothing else is left in the folder."""
        alice, _ = self.begin()
        sizes = (0, 1, MAX_CHUNK, MAX_CHUNK + 1, FILE_WINDOW, FILE_WINDOW + 1, 3_000_000)
        for number, size in enumerate(sizes):
            path = self.file(size, f"{number}.bin")
            self.assertIsNone(self.settled(alice.sendFile("bob", path)))
            received = self.target / f"{number}.bin"
            self.assertEqual(self.successResultOf(self.taking.results[-1]), received)
            self.assertEqual(received.read_bytes(), path.read_bytes())
        self.assertEqual(len(list(self.target.iterdir())), len(sizes))
        self.assertEqual(self.postman.carried(), sum(sizes))

    def test_announced(self) -> None:
        """The receiver is told who offers what, and takes nothing before it accepts."""
        alice, bob = self.start("alice"), Heard()
        self.start("bob", bob)
        sent = alice.sendFile("bob", self.file(1_000))
        self.server.pump()
        (file,) = bob.files
        self.assertEqual((file.sender, file.name, file.size, file.isAccepted), ("alice", "report.bin", 1_000, False))
        self.assertEqual(self.postman.carried(), 0)
        accepted = file.accept(self.target)
        self.failed(file.accept(self.target), ClientError)
        self.settled(sent)
        self.settled(accepted)

    def test_progress(self) -> None:
        """Both sides are told how far it is, from the beginning to the end and never backwards."""
        alice, _ = self.begin()
        told: list[tuple[int, int]] = []
        for size in (0, 3_000_000):
            told.clear()
            self.taking.progress.clear()
            self.settled(alice.sendFile("bob", self.file(size), lambda done, total: told.append((done, total))))
            for progress in (told, self.taking.progress):
                self.assertEqual(progress, sorted(progress))
                self.assertEqual((progress[0], progress[-1]), ((0, size), (size, size)))
            self.assertGreater(len(told), size // FILE_WINDOW)

    def test_window(self) -> None:
        """A sender never has more than 1 MiB under way."""
        alice, _ = self.begin()
        self.settled(alice.sendFile("bob", self.file(5_000_000)))
        credit = most = 0
        for _, op, rest in self.postman.ops:
            if op == FileOp.CREDIT:
                credit, _ = splitOffset(rest)
            elif op == FileOp.CHUNK:
                offset, data = splitOffset(rest)
                most = max(most, offset + len(data) - credit)
        self.assertTrue(MAX_CHUNK < most <= FILE_WINDOW)

    def test_bothWays(self) -> None:
        """Two users may send each other files at the same time."""
        alice, bob = self.begin()
        there = self.file(2_000_000, "there")
        back = self.file(1_500_000, "back")
        aliceTakes = Taking(temporaryFolder(self))
        carol = self.start("carol", aliceTakes)
        sent = [alice.sendFile("bob", there), bob.sendFile("carol", back), carol.sendFile("bob", back)]
        for result in sent:
            self.settled(result)
        self.assertEqual(self.settled(aliceTakes.results[0]).read_bytes(), back.read_bytes())
        self.assertEqual((self.target / "there").read_bytes(), there.read_bytes())

    def test_manyAtOnce(self) -> None:
        """More files than the server lets through at once all arrive, whether from one sender or from several."""
        alice, _ = self.begin()
        sent = [alice.sendFile("bob", self.file(300_000, f"{number}")) for number in range(6)]
        sent += [self.start(f"user{number}").sendFile("bob", self.source / "0") for number in range(6)]
        self.server.advance(60)
        for result in sent:
            self.successResultOf(result)
        self.assertEqual(len(list(self.target.iterdir())), 12)

    def test_sameIdOfTwoSenders(self) -> None:
        """Two senders that happen to use the same transfer ID do not write into each other's file."""
        self.start("bob", self.taking)
        files = {"alice": b"a" * 10, "carol": b"c" * 10}
        clients = {name: self.server.login(name) for name in files}
        for name, data in files.items():
            offer = FileOffer(len(data), hashlib.sha256(data).digest(), name).encode()
            clients[name].send(FILE, "bob", bytes((FileOp.OFFER,)) + TRANSFER + offer)
        for at in range(0, 10, 5):
            for name, data in files.items():
                chunk = encodeOffset(at) + data[at : at + 5]
                clients[name].send(FILE, "bob", bytes((FileOp.CHUNK,)) + TRANSFER + chunk)
        for client in clients.values():
            client.send(FILE, "bob", bytes((FileOp.DONE,)) + TRANSFER)
        paths = [self.settled(result) for result in self.taking.results]
        self.assertEqual([path.read_bytes() for path in paths], list(files.values()))


class RefusedTests(FilesTestCase):
    def test_declined(self) -> None:
        """A declined offer fails with the receiver's words, is not remembered, and can be made again."""
        alice = self.start("alice")
        self.start("bob", self.heard)
        for _ in range(2):
            sent = alice.sendFile("bob", self.file(10))
            self.server.pump()
            self.heard.files.pop().decline("no room")
            self.assertEqual(self.cancelled(sent, CancelCode.DECLINED).text, "no room")
        self.assertNotIn("withdrawn", [event[0] for event in self.heard.events])

    def test_nobody(self) -> None:
        """A file to somebody who is offline, or to oneself, fails at once as the server says."""
        alice, _ = self.begin()
        self.refused(alice.sendFile("nobody", self.file(10)), ErrorCode.OFFLINE)
        self.refused(alice.sendFile("alice", self.file(10)), ErrorCode.BAD_REQUEST)

    def test_longWords(self) -> None:
        """However long the words are with which a file is declined, it is."""
        alice = self.start("alice")
        self.start("bob", self.heard)
        for words in ("x" * 2_000, "\udcff"):
            sent = alice.sendFile("bob", self.file(10))
            self.server.pump()
            self.heard.files[-1].decline(words)
            self.cancelled(sent, CancelCode.DECLINED)

    def test_declinedAfterAll(self) -> None:
        """A file that is declined when it was accepted already is given up on both sides."""
        alice, _ = self.begin()
        self.once(lambda: self.taking.files[0].decline("enough"))
        sent = alice.sendFile("bob", self.file(5_000_000))
        self.cancelled(sent, CancelCode.DECLINED)
        self.cancelled(self.taking.results[0], CancelCode.DECLINED)

    def test_acceptedTooLate(self) -> None:
        """Accepting a file that was withdrawn with the connection fails."""
        alice = self.start("alice")
        self.start("bob", self.heard)
        alice.sendFile("bob", self.file(10)).addErrback(lambda failure: None)
        self.server.pump()
        self.server.cut()
        self.failed(self.heard.files[0].accept(self.target), NotConnected)

    def test_badName(self) -> None:
        """A file whose name the protocol does not take fails with a ClientError and leaves nothing behind."""
        alice, _ = self.begin()
        for name in ("two\nlines", "back\\slash", os.fsdecode(b"\xff")):
            for _ in range(2):
                self.failed(alice.sendFile("bob", self.file(10, name)), ClientError)

    def test_unreadable(self) -> None:
        """A file that cannot be read fails with OSError, and nothing is offered."""
        alice, _ = self.begin()
        for path in (self.source / "missing", self.source):
            self.failed(alice.sendFile("bob", path), OSError)
        self.assertEqual(self.postman.ops, [])

    def test_twiceAtOnce(self) -> None:
        """A file that is on its way to a user is not sent to that user a second time, and the first goes on."""
        alice = self.start("alice")
        self.start("bob", self.heard)
        path = self.file(10)
        first = alice.sendFile("bob", path)
        self.failed(alice.sendFile("bob", path), ClientError)
        self.server.pump()
        self.settled(self.heard.files[0].accept(self.target))
        self.settled(first)

    def test_notConnected(self) -> None:
        """Without a connection a file is not sent."""
        self.failed(self.make().sendFile("bob", self.file(1)), NotConnected)

    def test_lapsed(self) -> None:
        """An offer that nobody takes for 10 min fails at the sender, and is withdrawn from the receiver."""
        alice = self.start("alice")
        self.start("bob", self.heard)
        sent = alice.sendFile("bob", self.file(10))
        self.server.advance(600)
        self.cancelled(sent, CancelCode.CANCELLED)
        self.assertEqual(self.heard.take()[-1], ("withdrawn", "alice", "report.bin"))

    def test_withdrawn(self) -> None:
        """An offer is withdrawn when its sender is lost, and when the own connection is."""
        for lost in ("alice", "bob"):
            alice = self.start("alice")
            self.start("bob", self.heard)
            sent = alice.sendFile("bob", self.file(10))
            sent.addErrback(lambda failure: failure.trap(NotConnected, TransferCancelled))
            self.server.pump()
            self.cutOff(lost)
            self.assertIn(("withdrawn", "alice", "report.bin"), self.heard.take())
            self.doCleanups()
            self.setUp()

    def test_senderGivesUp(self) -> None:
        """A sender that cancels in the middle ends it for the receiver, who keeps what came for another try."""
        self.start("bob", self.taking)
        sender = self.server.login("alice")
        offer = FileOffer(10, bytes(32), "x").encode()
        sender.send(FILE, "bob", bytes((FileOp.OFFER,)) + TRANSFER + offer)
        sender.send(FILE, "bob", bytes((FileOp.CHUNK,)) + TRANSFER + encodeOffset(0) + b"half")
        sender.send(FILE, "bob", bytes((FileOp.CANCEL,)) + TRANSFER + b"\1stop")
        self.assertEqual(self.cancelled(self.taking.results[0], CancelCode.CANCELLED).text, "stop")
        self.assertEqual([path.read_bytes() for path in self.target.iterdir()], [b"half"])

    def test_givenUp(self) -> None:
        """Who cancels the Deferred of its side gives the file up, and the other side is told so."""
        self.start("bob", self.heard)
        sender = self.server.login("alice")
        sender.send(FILE, "bob", bytes((FileOp.OFFER,)) + TRANSFER + FileOffer(10, bytes(32), "x").encode())
        taking = self.heard.files.pop().accept(self.target)
        self.server.pump()
        taking.cancel()
        self.failed(taking, CancelledError)
        self.assertEqual(sender.received()[-1].data[17], CancelCode.CANCELLED)
        sent = self.start("dave").sendFile("bob", self.file(10))
        self.server.pump()
        sent.cancel()
        self.failed(sent, CancelledError)
        self.assertEqual(self.heard.take()[-1], ("withdrawn", "dave", "report.bin"))

    def test_givenUpWhileHashing(self) -> None:
        """Sending can be given up while the file is still being read for its hash: reading ends, nothing is offered."""
        goOn: list[Callable[[], bool]] = []

        def run(f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            goOn.append(arguments[1])
            return Deferred()

        sent = self.start("alice", runInThread=run).sendFile("bob", self.file(10))
        self.assertTrue(goOn[0]())
        self.assertEqual(hashFile(self.file(10), goOn[0])[0], 10)
        sent.cancel()
        self.failed(sent, CancelledError)
        self.assertFalse(goOn[0]())
        self.assertEqual(hashFile(self.file(10), goOn[0])[0], 0)


class ChangedTests(FilesTestCase):
    def change(self, path: Path, data: bytes) -> Callable[..., Deferred[Any]]:
        """Return what runs in no thread, and changes a file once it has been hashed."""

        def run(f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            result = maybeDeferred(f, *arguments)
            if f is hashFile:
                path.write_bytes(data)
            return result

        return run

    def test_hashMismatch(self) -> None:
        """What is not what was offered fails for both with hash mismatch, and is not kept."""
        path = self.file(100_000)
        alice = self.start("alice", runInThread=self.change(path, bytes(100_000)))
        self.start("bob", self.taking)
        self.cancelled(alice.sendFile("bob", path), CancelCode.HASH_MISMATCH)
        self.cancelled(self.taking.results[0], CancelCode.HASH_MISMATCH)
        self.assertEqual(list(self.target.iterdir()), [])

    def test_shorter(self) -> None:
        """A file that becomes shorter while it is sent fails for the sender and is cancelled for the receiver."""
        path = self.file(100_000)
        alice = self.start("alice", runInThread=self.change(path, b"short"))
        self.start("bob", self.taking)
        self.assertIn("shorter", str(self.failed(alice.sendFile("bob", path), OSError, ClientError)))
        self.cancelled(self.taking.results[0], CancelCode.CANCELLED)

    def test_longer(self) -> None:
        """A file that becomes longer while it is sent arrives as it was."""
        path = self.file(100_000)
        before = path.read_bytes()
        alice = self.start("alice", runInThread=self.change(path, before + b"more"))
        self.start("bob", self.taking)
        self.settled(alice.sendFile("bob", path))
        self.assertEqual(self.settled(self.taking.results[0]).read_bytes(), before)


class ResumedTests(FilesTestCase):
    size = 5_000_000

    def offsets(self) -> list[int]:
        """Return the offsets from which the file was accepted."""
        return [splitOffset(rest)[0] for rest in self.postman.of(FileOp.ACCEPT)]

    def resumed(self, path: Path) -> None:
        """Assert that the file is there and was not begun anew: what was not yet taken was sent again, and no more."""
        self.arrived(path, "report.bin")
        first, second = self.offsets()
        self.assertEqual(first, 0)
        self.assertGreaterEqual(second, FILE_WINDOW)
        again = max(at for at, (_, op, _) in enumerate(self.postman.ops) if op == FileOp.ACCEPT)
        at = second
        for offset, data in (splitOffset(rest) for _, op, rest in self.postman.ops[again:] if op == FileOp.CHUNK):
            self.assertEqual(offset, at)
            at += len(data)
        self.assertEqual(at, self.size)
        self.assertLessEqual(self.postman.carried(), self.size + FILE_WINDOW)

    def test_cut(self) -> None:
        """A file whose connections are cut in the middle goes on from where it was, and is right."""
        alice, _ = self.begin()
        self.once(self.server.cut)
        path = self.file(self.size)
        sent = alice.sendFile("bob", path)
        self.server.pump()
        self.assertNoResult(sent)
        self.server.advance(30)
        self.successResultOf(sent)
        self.successResultOf(self.taking.results[0])
        self.assertEqual(len(self.taking.files), 1)
        self.resumed(path)

    def test_oneLost(self) -> None:
        """It goes on whichever of the two was lost."""
        for user in ("alice", "bob"):
            alice, _ = self.begin()
            self.once(lambda user=user: self.cutOff(user))  # type: ignore[misc]
            path = self.file(self.size)
            sent = alice.sendFile("bob", path)
            self.server.advance(30)
            self.successResultOf(sent)
            self.resumed(path)
            self.doCleanups()
            self.setUp()

    def test_cutAgainAndAgain(self) -> None:
        """However often the connections are cut, the file gets through."""
        alice, _ = self.begin()
        path = self.file(2 * self.size)
        cuts = 0

        def cut() -> None:
            nonlocal cuts
            cuts += 1
            self.server.cut()
            if cuts < 5:
                self.once(cut, after=(cuts + 1) * 1_000_000)

        self.once(cut, after=1_000_000)
        sent = alice.sendFile("bob", path)
        self.server.advance(600)
        self.successResultOf(sent)
        self.assertEqual(cuts, 5)
        self.arrived(path, "report.bin")

    def test_cutAtTheEnd(self) -> None:
        """If the connection is lost when the receiver has the file and the sender does not know, it has it once."""
        cuts: list[bool] = []

        def run(f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            result = maybeDeferred(f, *arguments)
            if f is _moveInto and not cuts:
                cuts.append(True)
                self.cutOff("alice")
            return result

        alice, _ = self.begin(runInThread=run)
        path = self.file(self.size)
        sent = alice.sendFile("bob", path)
        self.server.advance(60)
        self.successResultOf(sent)
        self.assertTrue(cuts)
        self.arrived(path, "report.bin")

    def test_senderStartedAgain(self) -> None:
        """A new process of the sender goes on where the old one was killed."""
        alice, _ = self.begin()
        path = self.file(self.size)
        self.once(lambda: alice.stop())
        sent = alice.sendFile("bob", path)
        self.server.advance(60)
        self.failed(sent, NotConnected)
        self.assertNoResult(self.taking.results[0])
        again = self.start("alice")
        self.settled(again.sendFile("bob", path))
        self.assertEqual(len(self.taking.files), 1)
        self.resumed(path)

    def test_receiverStartedAgain(self) -> None:
        """A new process of the receiver goes on with what the old one left in the folder."""
        alice, bob = self.begin()
        path = self.file(self.size)
        self.once(lambda: bob.stop())
        sent = alice.sendFile("bob", path)
        self.server.pump()
        self.cancelled(self.taking.results[0], CancelCode.PEER_LOST)
        self.assertEqual([found.suffix for found in self.target.iterdir()], [".part"])
        self.taking = Taking(self.target)
        self.start("bob", self.taking)
        self.server.advance(60)
        self.successResultOf(sent)
        self.resumed(path)

    def test_receiverStaysAway(self) -> None:
        """A receiver that was lost and does not come back is given up after a while, as offline."""
        alice, bob = self.begin()
        self.once(lambda: bob.stop())
        sent = alice.sendFile("bob", self.file(self.size))
        self.server.advance(300)
        self.assertNoResult(sent)
        self.server.advance(30 * MAX_OFFLINE_RETRIES)
        self.refused(sent, ErrorCode.OFFLINE)

    def test_senderStaysAway(self) -> None:
        """A receiver waits for its lost sender for some minutes and keeps what came, whether it gives up or stops."""
        alice, bob = self.begin()
        self.once(lambda: alice.stop())
        sent = alice.sendFile("bob", self.file(self.size))
        self.server.advance(300)
        self.failed(sent, NotConnected)
        self.assertNoResult(self.taking.results[0])
        self.server.advance(3_600)
        self.cancelled(self.taking.results[0], CancelCode.PEER_LOST)
        alice = self.start("alice")
        self.once(lambda: alice.stop(), after=2 * FILE_WINDOW)
        alice.sendFile("bob", self.source / "report.bin").addErrback(lambda failure: failure.trap(NotConnected))
        self.server.advance(60)
        self.assertNoResult(self.taking.results[1])
        self.settled(bob.stop())
        self.cancelled(self.taking.results[1], CancelCode.PEER_LOST)
        self.assertEqual(len(list(self.target.iterdir())), 1)

    def test_lostWhileOffering(self) -> None:
        """An offer that the connection is lost over before anybody took it fails, as nobody may want it."""
        alice = self.start("alice")
        self.start("bob", self.heard)
        sent = alice.sendFile("bob", self.file(10))
        self.server.cut()
        self.failed(sent, NotConnected)

    def test_declinedOnReturn(self) -> None:
        """A receiver may decline when it comes back, and that is the end."""
        alice, bob = self.begin()
        self.once(lambda: bob.stop())
        sent = alice.sendFile("bob", self.file(self.size))
        self.server.pump()
        self.heard.take()
        declining = Heard()
        self.start("bob", declining)
        self.server.advance(5)
        declining.files[0].decline()
        self.cancelled(sent, CancelCode.DECLINED)

    def test_serverAwayForLong(self) -> None:
        """A transfer outlives a server that is away for long."""
        alice, _ = self.begin()
        path = self.file(self.size)

        def fail() -> None:
            self.server.isDown = True
            self.server.cut()

        self.once(fail)
        sent = alice.sendFile("bob", path)
        self.server.advance(3_600)
        self.assertNoResult(sent)
        self.server.isDown = False
        self.server.advance(200)
        self.successResultOf(sent)
        self.resumed(path)

    def interrupted(self, path: Path) -> tuple[Client, Deferred[None], Path]:
        """Return who sends a file, what comes of it, and what the receiver has of it, who has gone."""
        alice, bob = self.begin()
        self.once(lambda: bob.stop())
        sent = alice.sendFile("bob", path)
        self.server.pump()
        self.cancelled(self.taking.results[0], CancelCode.PEER_LOST)
        (part,) = self.target.iterdir()
        self.taking = Taking(self.target)
        return alice, sent, part

    def test_spoiltPart(self) -> None:
        """A part that is not of this file costs one try and no more."""
        path = self.file(self.size)
        alice, sent, part = self.interrupted(path)
        part.write_bytes(bytes(part.stat().st_size))
        self.start("bob", self.taking)
        self.server.advance(60)
        self.cancelled(sent, CancelCode.HASH_MISMATCH)
        self.settled(alice.sendFile("bob", path))
        self.arrived(path, "report.bin")

    def test_partTooLong(self) -> None:
        """A part that is longer than the file is begun anew."""
        path = self.file(self.size)
        _, sent, part = self.interrupted(path)
        part.write_bytes(bytes(self.size + 1))
        self.start("bob", self.taking)
        self.server.advance(60)
        self.settled(sent)
        self.assertEqual(self.offsets(), [0, 0])
        self.arrived(path, "report.bin")

    def test_wholePart(self) -> None:
        """Of a part that is whole nothing is sent again."""
        path = self.file(self.size)
        _, sent, part = self.interrupted(path)
        part.write_bytes(path.read_bytes())
        self.postman.ops.clear()
        self.start("bob", self.taking)
        self.server.advance(60)
        self.settled(sent)
        self.assertEqual(self.postman.carried(), 0)
        self.arrived(path, "report.bin")


class NameTests(FilesTestCase):
    @given(st.text(min_size=1, max_size=60))
    @example("...")
    @example("a\u202egpj.exe")
    @example("\x1b[2J")
    @example("C:\\x|y?")
    @example("trailing. . ")
    @example("con.txt")
    @example("LPT1")
    def test_safe(self, name: str) -> None:
        """Whatever the name, the safe one is one file in the folder and has nothing in it that a terminal obeys."""
        safe = safeName(name)
        self.assertTrue(safe.isprintable())
        self.assertFalse(set(safe) & set('<>:"|?*/\\'))
        self.assertNotIn(safe[-1:], ("", ".", " "))
        self.assertNotIn(safe.split(".")[0].upper(), ("CON", "NUL", "COM1", "LPT1"))
        self.assertEqual((Path("/folder") / safe).parent, Path("/folder"))
        self.assertEqual(safeName(safe), safe)

    def test_harmless(self) -> None:
        """A name that does no harm stays as it is."""
        for name in ("report (final) v2.tar.gz", "报告.pdf", "a'b&c;$(d)"):
            self.assertEqual(safeName(name), name)

    def test_neverOverwritten(self) -> None:
        """A file of that name that is there already stays as it is, and the new one is numbered."""
        alice, _ = self.begin()
        for name, numbered in (("a.txt", "a ({}).txt"), ("b", "b ({})"), ("c.d.e", "c.d ({}).e")):
            (self.target / name).write_bytes(b"old")
            for number in (1, 2):
                path = self.file(100 * number, name)
                self.settled(alice.sendFile("bob", path))
                self.assertEqual((self.target / numbered.format(number)).read_bytes(), path.read_bytes())
            self.assertEqual((self.target / name).read_bytes(), b"old")
        self.assertEqual(len(list(self.target.iterdir())), 9)

    def test_longestNameTwice(self) -> None:
        """The longest name that the protocol takes can be taken twice."""
        alice, _ = self.begin()
        for number in (1, 2):
            path = self.file(100 * number, "x" * 251 + ".txt")
            self.settled(alice.sendFile("bob", path))
            self.assertEqual(self.settled(self.taking.results[-1]).read_bytes(), path.read_bytes())
        self.assertEqual(len(list(self.target.iterdir())), 2)

    def test_noHardLinks(self) -> None:
        """On a file system without hard links it is the same."""

        def link(source: object, target: object) -> None:
            raise PermissionError(errno.EPERM, "no links here")

        self.patch(os, "link", link)
        alice, _ = self.begin()
        (self.target / "report.bin").write_bytes(b"old")
        path = self.file(100)
        self.settled(alice.sendFile("bob", path))
        self.assertEqual((self.target / "report.bin").read_bytes(), b"old")
        self.assertEqual((self.target / "report (1).bin").read_bytes(), path.read_bytes())
        self.assertEqual(len(list(self.target.iterdir())), 2)


class NoSpaceTests(FilesTestCase):
    def test_writeFails(self) -> None:
        """A receiver that cannot write fails with OSError and tells the sender: no space where that is so."""
        for number, code in (
            (errno.ENOSPC, CancelCode.NO_SPACE),
            (errno.EDQUOT, CancelCode.NO_SPACE),
            (errno.EFBIG, CancelCode.NO_SPACE),
            (errno.EIO, CancelCode.CANCELLED),
        ):

            def run(f: Callable[..., Any], *arguments: Any, number: int = number) -> Deferred[Any]:
                def fails() -> None:
                    raise OSError(number, os.strerror(number))

                return maybeDeferred(fails if f is _append else f, *arguments[: 0 if f is _append else None])

            alice, _ = self.begin(runInThread=run)
            error = self.cancelled(alice.sendFile("bob", self.file(1_000)), code)
            self.assertEqual(error.text, os.strerror(number))
            self.assertEqual(self.failed(self.taking.results[0], OSError).errno, number)
            self.doCleanups()
            self.setUp()

    def test_noFolder(self) -> None:
        """A folder that is not there, or that is none, is an OSError for the receiver and a CANCEL for the sender."""
        (self.target / "file").write_bytes(b"")
        for folder in (self.target / "missing", self.target / "file"):
            taking = Taking(folder)
            alice = self.start("alice")
            self.start("bob", taking)
            error = self.cancelled(alice.sendFile("bob", self.file(10)), CancelCode.CANCELLED)
            self.assertTrue(error.text)
            self.failed(taking.results[0], OSError)
            self.doCleanups()
            self.setUp()
            (self.target / "file").write_bytes(b"")

    def test_goesOnWithSpace(self) -> None:
        """What came before the disk was full is kept, so that with space it goes on from there."""
        writes = 0

        def run(f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            nonlocal writes
            writes += f is _append
            if writes == 11 and f is _append:
                return maybeDeferred(lambda: os.open(self.target / "no" / "such", os.O_RDONLY))
            return maybeDeferred(f, *arguments)

        alice, _ = self.begin(runInThread=run)
        path = self.file(1_000_000)
        self.failed(alice.sendFile("bob", path), TransferCancelled)
        self.failed(self.taking.results[0], OSError)
        self.settled(alice.sendFile("bob", path))
        self.assertEqual(splitOffset(self.postman.of(FileOp.ACCEPT)[1])[0], 10 * MAX_CHUNK)
        self.arrived(path, "report.bin")


class ScriptedFileTests(ScriptedTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.folder = temporaryFolder(self)

    def send(self, op: FileOp, transferId: bytes = TRANSFER, rest: bytes = b"", sender: bytes = b"bob") -> None:
        """Let the server pass an op on."""
        self.connection.send(FILE, sender, bytes((op,)) + transferId + rest)

    def offer(self, data: bytes, transferId: bytes = TRANSFER, name: str = "x") -> None:
        """Let a file be offered."""
        self.send(FileOp.OFFER, transferId, FileOffer(len(data), hashlib.sha256(data).digest(), name).encode())

    def test_unknown(self) -> None:
        """Ops of transfers that the client does not have are ignored."""
        client = self.start("alice", self.heard)
        self.heard.take()
        for op in FileOp:
            if op != FileOp.OFFER:
                self.send(op, rest=encodeOffset(0))
        self.assertTrue(client.isOnline)
        self.assertEqual(self.heard.take(), [])
        self.assertEqual(self.connection.taken(), [])

    def test_notAccepted(self) -> None:
        """Chunks of a file that was not accepted are ignored."""
        self.start("alice", self.heard)
        self.offer(b"data")
        self.send(FileOp.CHUNK, rest=encodeOffset(0) + b"data")
        self.send(FileOp.DONE)
        self.assertEqual(self.connection.taken(), [])
        self.assertFalse(self.heard.files[0].isAccepted)

    def test_tooMany(self) -> None:
        """Past 64 files the client declines, without troubling anybody; an end makes room."""
        self.start("alice", self.heard)
        for number in range(MAX_INCOMING + 3):
            self.offer(b"data", number.to_bytes(16, "big"))
        self.assertEqual(len(self.heard.files), MAX_INCOMING)
        declined = self.connection.taken()
        self.assertEqual([frame[2][:1] + frame[2][17:18] for frame in declined], [b"\5\0"] * 3)
        self.heard.files[0].decline()
        self.offer(b"data")
        self.assertEqual(len(self.heard.files), MAX_INCOMING + 1)

    def test_lostSendersMakeRoom(self) -> None:
        """Files whose senders were lost do not keep others out for ever."""
        self.start("alice", self.heard)
        results = []
        for number in range(MAX_INCOMING):
            transferId = number.to_bytes(16, "big")
            self.offer(b"data", transferId)
            results.append(self.heard.files[-1].accept(self.folder))
            self.send(FileOp.CANCEL, transferId, bytes((CancelCode.PEER_LOST,)))
        self.server.advance(3_600)
        self.offer(b"data")
        self.assertEqual(len(self.heard.files), MAX_INCOMING + 1)
        for result in results:
            result.addErrback(lambda failure: failure.trap(TransferCancelled))

    def test_oldChunks(self) -> None:
        """A chunk that does not go on where the file stands is ignored, and so is a DONE that comes too early."""
        self.start("alice", self.heard)
        self.offer(b"0123456789")
        result = self.heard.files[0].accept(self.folder)
        for offset, data in ((0, b"01234"), (0, b"01234"), (7, b"789")):
            self.send(FileOp.CHUNK, rest=encodeOffset(offset) + data)
        self.send(FileOp.DONE)
        self.assertNoResult(result)
        self.send(FileOp.CHUNK, rest=encodeOffset(5) + b"56789")
        self.send(FileOp.ACCEPT)
        self.send(FileOp.DONE)
        self.assertEqual(self.settled(result).read_bytes(), b"0123456789")

    def test_anotherInItsPlace(self) -> None:
        """If another file comes under the same ID after the sender was lost, the first one is over."""
        self.start("alice", self.heard)
        self.offer(b"0123456789")
        result = self.heard.files[0].accept(self.folder)
        self.send(FileOp.CHUNK, rest=encodeOffset(0) + b"01234")
        self.send(FileOp.CANCEL, rest=bytes((CancelCode.PEER_LOST,)))
        self.offer(b"abcdefghij")
        self.failed(result, TransferCancelled)

    def test_flood(self) -> None:
        """A server that sends more of a file than its window while the disk is busy loses the client."""
        busy: list[Deferred[Any]] = []

        def run(f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            if f is _append:
                busy.append(Deferred())
                return busy[-1]
            return maybeDeferred(f, *arguments)

        self.start("alice", self.heard, runInThread=run)
        self.offer(bytes(10 * FILE_WINDOW))
        result = self.heard.files[0].accept(self.folder)
        connection = self.connection
        for number in range(100):
            self.send(FileOp.CHUNK, rest=encodeOffset(number * MAX_CHUNK) + bytes(MAX_CHUNK))
            if connection.isLost:
                break
        self.assertTrue(FILE_WINDOW < number * MAX_CHUNK < 3 * FILE_WINDOW)
        self.assertTrue(connection.isLost)
        result.addErrback(lambda failure: failure.trap(TransferCancelled, CancelledError))
        result.cancel()

    def test_nonsenseToSender(self) -> None:
        """A receiver's nonsense fails the transfer with a ClientError, and harms nothing else."""
        path = self.folder / "x"
        path.write_bytes(b"data")
        client = self.start("alice", self.heard)
        for op, rest in ((FileOp.ACCEPT, b"short"), (FileOp.CREDIT, b""), (FileOp.CANCEL, b"\1" + b"x" * 1_025)):
            sent = client.sendFile("bob", path)
            self.server.pump()
            ((_, _, offer),) = self.connection.taken()
            self.send(op, offer[1:17], rest)
            self.failed(sent, ClientError)
            self.connection.taken()
        self.assertTrue(client.isOnline)

    def test_replacedWhileSending(self) -> None:
        """A sender that is replaced by another connection of the same user fails with that."""
        path = self.folder / "x"
        path.write_bytes(b"data")
        client = self.start("alice", self.heard)
        sent = client.sendFile("bob", path)
        self.server.pump()
        ((_, _, offer),) = self.connection.taken()
        self.send(FileOp.ACCEPT, offer[1:17], encodeOffset(0))
        self.connection.refuse(ErrorCode.REPLACED, "elsewhere")
        self.server.advance(60)
        error = self.failed(sent, ServerError)
        self.assertEqual(error.code, ErrorCode.REPLACED)
