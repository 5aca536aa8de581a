"""The database: what is in the file, and what is done where it cannot be used."""

from __future__ import annotations

import os
import shutil
import sqlite3
import stat
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest import TestCase

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder
from wecompany import database as module
from wecompany.database import DAY, LEAST_ROOM, MIGRATIONS, Database, describe
from wecompany.interfaces import (
    Account,
    AccountExists,
    CallRecord,
    MissedCall,
    NoSuchAccount,
    QueueFull,
    StoredText,
    StoreProblem,
    Token,
    Waiting,
)

NOW = 1_800_000_000.0


class DatabaseTestCase(SynchronousTestCase):
    """A database that a server has, in a folder of its own, at a time that stands still."""

    def setUp(self) -> None:
        self.folder = temporaryFolder(self)
        self.path = self.folder / "store.sqlite"
        self.now = NOW
        self.options: dict[str, Any] = {}
        self.online: set[bytes] = set()
        self.database = self.serve()

    def open(self, path: Path | None = None, **options: Any) -> Database:
        """Open the file once more, as the admin command does."""
        database = Database(path or self.path, lambda: self.now, **options)
        self.addCleanup(database.close)
        return database

    def serve(self, **options: Any) -> Database:
        """Open the file as the server does."""
        database = self.open(**options)
        database.isOnline = self.online.__contains__
        self.served = database.serve(**self.options)
        return database

    def restart(self, **options: Any) -> None:
        """Stop the server and start it again, perhaps with other limits."""
        self.database.close()
        self.options = options
        self.database = self.serve()

    def do(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Do one operation in a transaction of its own."""
        return self.database.transact(function, *arguments)

    def register(self, *names: bytes) -> None:
        """Let users be known."""
        for name in names:
            self.assertTrue(self.do(self.database.registered, name)[0])

    def keep(self, receiver: bytes, data: bytes, session: bytes = b"", taken: int = 0) -> int:
        """Keep a text from alice, sent now; return its number."""
        number = self.do(self.database.keep, receiver, b"alice", int(self.now * 1000), data, session, taken)
        assert isinstance(number, int)
        return number

    def forget(self, receiver: bytes, before: int) -> None:
        """Forget texts."""
        self.do(self.database.forget, receiver, before)

    def waiting(self, receiver: bytes) -> Waiting:
        """What waits, without the missed calls being forgotten in passing."""
        waiting = self.do(self.database.waiting, receiver)
        assert isinstance(waiting, Waiting)
        return waiting

    def texts(self, receiver: bytes) -> list[bytes]:
        """The data of all that waits for someone, which has no gap in its numbers."""
        texts = self.do(self.database.load, receiver, 0, 2**40)
        waiting = self.waiting(receiver)
        self.assertEqual([text.number for text in texts], list(range(waiting.first, waiting.end)))
        return [text.data for text in texts]

    def begin(self, session: bytes, resumed: bytes = b"", received: int = 0, name: bytes = b"bob") -> tuple[int, int]:
        """Begin a session; return what was taken in the one before, and the number of the first text of this one."""
        begun = self.do(self.database.beginSession, name, session, resumed, received)
        return begun.taken, begun.waiting.first

    def row(self, sql: str, *arguments: object) -> Any:
        """What is in the file, seen from elsewhere."""
        connection = sqlite3.connect(self.path)
        try:
            return connection.execute(sql, arguments).fetchone()
        finally:
            connection.close()


class OpeningTests(DatabaseTestCase):
    def problem(self, path: Path | str, **options: Any) -> str:
        """The one line that says why it cannot be opened."""
        with self.assertRaises(StoreProblem) as caught:
            Database(path, **options).close()
        text = str(caught.exception)
        self.assertIn(repr(str(path)), text)
        self.assertNotIn("\n", text)
        self.assertGreater(text.count(". "), 0, "it says what to do")
        return text

    def test_private(self) -> None:
        """The file, what SQLite puts beside it, and a copy can be read by nobody else."""
        self.register(b"bob")
        self.database.backup(self.folder / "copy")
        names = {path.name for path in self.folder.iterdir()}
        self.assertEqual(names, {"copy"} | {f"store.sqlite{end}" for end in ("", "-wal", "-shm", "-lock")})
        for path in self.folder.iterdir():
            self.assertEqual(stat.S_IMODE(path.stat().st_mode), 0o600, path.name)

    def test_settings(self) -> None:
        """The file is in WAL mode, and every commit is on the disk before it counts."""
        self.assertEqual(self.row("PRAGMA journal_mode"), ("wal",))
        self.assertEqual(self.database._value("PRAGMA synchronous"), 2)
        self.assertEqual(self.database._value("PRAGMA foreign_keys"), 1)

    def test_folderMissing(self) -> None:
        """Where there is no folder there is no database."""
        self.assertIn("No such file", self.problem(self.folder / "none" / "x"))

    def test_notAFolder(self) -> None:
        """A path under a file is told as that."""
        self.assertIn("Not a directory", self.problem(self.path / "x"))

    def test_folderNotWritable(self) -> None:
        """Where nobody can write there is no database."""
        self.problem("/proc/wecompany.sqlite")

    def test_isFolder(self) -> None:
        """A folder is no database."""
        self.problem(self.folder)

    def test_notWritable(self) -> None:
        """A file that may only be read is refused at once, not at the first text."""
        self.patch(os, "access", lambda path, mode: False)
        self.assertIn("Permission denied", self.problem(self.path))

    def test_mustExist(self) -> None:
        """Where it must exist, none is made."""
        missing = self.folder / "x"
        self.assertIn("No such file", self.problem(missing, mustExist=True))
        self.assertFalse(missing.exists())
        self.open(self.path, mustExist=True)

    def test_notADatabase(self) -> None:
        """A file that is no database stays as it is."""
        path = self.folder / "letter"
        path.write_bytes(b"Dear Sir or Madam,\n" * 1000)
        self.assertIn("not a database", self.problem(path))
        self.assertEqual(path.read_bytes(), b"Dear Sir or Madam,\n" * 1000)

    def test_notOurs(self) -> None:
        """A database of something else stays as it is."""
        path = self.folder / "other"
        connection = sqlite3.connect(path)
        connection.execute("CREATE TABLE cake(x)")
        connection.commit()
        connection.close()
        before = path.read_bytes()
        self.assertIn("not one of this server", self.problem(path))
        self.assertEqual(path.read_bytes(), before)

    def test_newer(self) -> None:
        """A newer version than this server knows is not touched."""
        self.database.close()
        Database(self.path, migrations=(*MIGRATIONS, ("CREATE TABLE cake(x)",))).close()
        self.assertIn("newer version (2)", self.problem(self.path))

    def test_damaged(self) -> None:
        """A file that is damaged where it is read first is refused; one line tells to take a backup."""
        self.database.close()
        content = self.path.read_bytes()
        self.path.write_bytes(content[:100] + b"\xaa" * 3996 + content[4096:])
        self.assertIn("malformed", self.problem(self.path))

    def test_damagedSchema(self) -> None:
        """A schema that is not even text is told as any damage."""
        self.database.close()
        content = self.path.read_bytes()
        at = content.index(b"CREATE TABLE call(")
        self.path.write_bytes(content[: at + 3] + b"\xf8" + content[at + 4 :])
        self.assertIn("malformed. Put a backup in its place", self.problem(self.path))

    def test_damagedValues(self) -> None:
        """A value that a server needs at its start, and that is missing or of another kind, is damage too."""
        for damage, problems in (
            ("INSERT INTO user(name, createdAt, seenAt) VALUES(X'00', 0, 'cake')", 0),
            ("UPDATE setting SET value = 'cake'", 1),
            ("DELETE FROM setting", 1),
        ):
            self.database._connection.execute(damage)
            self.database.close()
            self.database = self.open()
            with self.assertRaisesRegex(StoreProblem, "malformed. Put a backup in its place"):
                self.database.serve()
            self.assertEqual(len(self.database.check()), problems)

    def test_noSpace(self) -> None:
        """Where SQLite cannot make what it needs, a full disk is told as that, and any other fault as it is."""

        def fail(database: Database) -> int:
            raise sqlite3.OperationalError("disk I/O error")

        self.patch(Database, "_checkOurs", fail)
        for free, said in ((LEAST_ROOM - 1, "no space is left. Make room on that disk"), (LEAST_ROOM, "I/O error")):
            self.patch(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
            self.assertIn(said, self.problem(self.path))

    def test_locked(self) -> None:
        """A file that another program holds on to is told as locked."""
        path = self.folder / "x"
        other = sqlite3.connect(path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN EXCLUSIVE")
        self.assertIn("locked", self.problem(path, busyTimeout=0.01))

    def test_oneServer(self) -> None:
        """A second server does not get it, the admin command does; and the next server does when the first is gone."""
        second = self.open()
        with self.assertRaisesRegex(StoreProblem, "in use by another server"):
            second.serve()
        self.assertEqual(second.users(), [])
        self.database.close()
        self.serve()

    def test_tooOldSqlite(self) -> None:
        """An SQLite that lacks what is needed is refused."""
        self.patch(sqlite3, "sqlite_version_info", (3, 24, 9))
        with self.assertRaisesRegex(StoreProblem, "too old"):
            Database(self.path)

    def test_describe(self) -> None:
        """What SQLite says of a store in use is told in the words of a person."""
        for text, meaning in (
            ("database or disk is full", "no space left"),
            ("database is locked", "locked by another program"),
            ("attempt to write a readonly database", "read-only"),
            ("database disk image is malformed", "damaged"),
            ("file is not a database", "damaged"),
            ("disk I/O error", "disk fails"),
            ("cake", "the store failed: cake"),
        ):
            self.assertIn(meaning, describe(sqlite3.OperationalError(text)))


class UpgradeTests(DatabaseTestCase):
    SECOND = ("ALTER TABLE user ADD COLUMN cake TEXT DEFAULT 'plum'", "CREATE TABLE candle(x)")

    def setUp(self) -> None:
        super().setUp()
        self.register(b"bob")
        self.database.close()

    def test_upgrade(self) -> None:
        """An older file is upgraded, and a copy of it as it was lies beside it."""
        database = self.open(migrations=(*MIGRATIONS, self.SECOND))
        self.assertEqual(self.row("SELECT name, cake FROM user"), (b"bob", "plum"))
        self.assertEqual(database.statistics().version, 2)
        copy = self.open(self.folder / "store.sqlite.v1-backup")
        self.assertEqual([user.name for user in copy.users()], [b"bob"])
        self.assertEqual(copy.statistics().version, 1)

    def test_twoSteps(self) -> None:
        """Several versions are caught up with at once, each in its turn."""
        self.open(migrations=(*MIGRATIONS, self.SECOND, ("DROP TABLE candle",)))
        self.assertEqual(self.row("PRAGMA user_version"), (3,))
        self.assertEqual(self.row("SELECT count(*) FROM sqlite_master WHERE name = 'candle'"), (0,))

    def test_fails(self) -> None:
        """An upgrade that fails changes nothing, and can be tried again."""
        with self.assertRaisesRegex(StoreProblem, "no such table: cake"):
            Database(self.path, migrations=(*MIGRATIONS, (*self.SECOND, "DROP TABLE cake")))
        self.assertEqual(self.row("PRAGMA user_version"), (1,))
        self.assertEqual(self.row("SELECT count(*) FROM sqlite_master WHERE name = 'candle'"), (0,))
        self.open(migrations=(*MIGRATIONS, self.SECOND))

    def test_noCopy(self) -> None:
        """Without a copy there is no upgrade."""
        (self.folder / "store.sqlite.v1-backup").mkdir()
        with self.assertRaises(StoreProblem):
            Database(self.path, migrations=(*MIGRATIONS, self.SECOND))
        self.assertEqual(self.row("PRAGMA user_version"), (1,))

    def test_same(self) -> None:
        """A file of the same version is opened without a copy."""
        self.open()
        self.assertEqual([path.name for path in self.folder.glob("*backup*")], [])


class TextTests(DatabaseTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.register(b"bob", b"carol")

    def test_numbers(self) -> None:
        """Each receiver's texts are numbered without a gap; they are loaded as they were kept."""
        first = self.keep(b"bob", b"1")
        self.now += 1.5
        self.assertEqual(self.keep(b"bob", b""), first + 1)
        self.keep(b"carol", b"x")
        self.assertEqual(self.keep(b"bob", bytes(range(256))), first + 2)
        at = int(NOW * 1000)
        self.assertEqual(
            self.do(self.database.load, b"bob", 0, 1000),
            [
                StoredText(first, b"alice", at, b"1"),
                StoredText(first + 1, b"alice", at + 1500, b""),
                StoredText(first + 2, b"alice", at + 1500, bytes(range(256))),
            ],
        )
        self.assertEqual(self.waiting(b"bob"), Waiting(first, first + 3, ()))

    def test_emptySender(self) -> None:
        """The server's own texts have no sender's ID."""
        self.do(self.database.keep, b"bob", b"", 5, b"x", b"", 0)
        self.assertEqual(self.do(self.database.load, b"bob", 0, 1)[0].sender, b"")

    def test_unknownReceiver(self) -> None:
        """Nothing is kept for who is not known, and nothing waits for him."""
        with self.assertRaisesRegex(StoreProblem, "not known"):
            self.keep(b"nobody", b"x")
        self.forget(b"nobody", 5)
        self.assertEqual(self.texts(b"nobody"), [])
        self.assertEqual(self.do(self.database.putBack, b"nobody", [(b"alice", b"x")], 0), 1)

    def test_forget(self) -> None:
        """What is before a number is forgotten, once and for all."""
        first, *_ = [self.keep(b"bob", b"%d" % i) for i in range(5)]
        self.keep(b"carol", b"x")
        self.forget(b"bob", first)
        self.assertEqual(self.texts(b"bob"), [b"0", b"1", b"2", b"3", b"4"])
        self.forget(b"bob", first + 2)
        self.forget(b"bob", first + 1)
        self.assertEqual(self.texts(b"bob"), [b"2", b"3", b"4"])
        self.assertEqual(self.texts(b"carol"), [b"x"])

    def test_forgetTooMuch(self) -> None:
        """A number that nothing has got yet forgets what there is, and nothing that comes later."""
        first = self.keep(b"bob", b"0")
        self.database.run(
            [
                (self.database.forget, (b"bob", first + 100)),
                (self.database.keep, (b"bob", b"alice", 0, b"1", b"", 0)),
            ]
        )
        self.assertEqual(self.texts(b"bob"), [b"1"])
        self.assertEqual(self.waiting(b"bob").first, first + 1)

    def test_keepAndForgetTogether(self) -> None:
        """What is asked in one transaction is done in order."""
        first = self.waiting(b"bob").end
        keep = self.database.keep, (b"bob", b"alice", 0, b"x", b"", 0)
        outcome = self.database.run(
            [
                keep,
                (self.database.forget, (b"bob", first + 1)),
                keep,
                (self.database.load, (b"bob", 0, 100)),
                keep,
                (self.database.waiting, (b"bob",)),
            ]
        )
        self.assertEqual([r for r in outcome.results if isinstance(r, int)], [first, first + 1, first + 2])
        self.assertEqual([text.number for text in outcome.results[3]], [first + 1])
        self.assertEqual(outcome.results[5], Waiting(first + 1, first + 3, ()))
        self.assertEqual(outcome.texts, 3)

    def test_manyAtOnce(self) -> None:
        """Any number of texts, forgets and counts goes into one transaction."""
        names = [b"user%d" % i for i in range(75)]
        self.register(*names)
        sessions = [name.ljust(32) for name in names]
        for name, session in zip(names, sessions, strict=True):
            self.begin(session, name=name)
        for n in (1, 7, 8, 9, 64, 73, 75):
            outcome = self.database.run(
                [
                    (self.database.keep, (name, b"alice", 0, b"%d" % n, session, n))
                    for name, session in zip(names[:n], sessions, strict=False)
                ]
            )
            self.database.run(
                [
                    (self.database.forget, (name, number))
                    for name, number in zip(names[:n], outcome.results, strict=True)
                ]
            )
            self.assertEqual([self.texts(name) for name in names[:n]], [[b"%d" % n]] * n)
            self.assertEqual(self.row("SELECT min(taken), max(taken) FROM session WHERE id <= ?", n), (n, n))

    def test_load(self) -> None:
        """As many texts are read as have so many bytes together, and one at least."""
        first, *_ = [self.keep(b"bob", bytes(10)) for _ in range(5)]
        for number, size, n in (
            (first, 30, 3),
            (first, 29, 2),
            (first, 39, 3),
            (first, 10, 1),
            (first, 9, 1),
            (first, 0, 1),
            (first, 1000, 5),
            (first + 3, 1000, 2),
            (first + 5, 1000, 0),
        ):
            texts = self.do(self.database.load, b"bob", number, size)
            self.assertEqual([text.number for text in texts], list(range(number, number + n)), (number, size))

    def test_loadAtMost(self) -> None:
        """Even of texts without data only so many are read at a time."""
        self.patch(module, "MAX_LOADED", 3)
        first, *_ = [self.keep(b"bob", b"") for _ in range(4)]
        self.assertEqual([t.number - first for t in self.do(self.database.load, b"bob", first, 10)], [0, 1, 2])
        self.assertEqual([t.number - first for t in self.do(self.database.load, b"bob", first + 1, 10)], [1, 2, 3])

    def test_putBack(self) -> None:
        """What is put back goes before all that waits, and all of it gets numbers that nothing ever had."""
        end = [self.keep(b"bob", b"%d" % i) for i in range(3)][-1] + 1
        self.forget(b"bob", end - 2)
        texts = [(b"dave", b"a"), (b"alice", b"b")]
        self.assertEqual(self.do(self.database.putBack, b"bob", texts, 77), 0)
        loaded = self.do(self.database.load, b"bob", 0, 100)
        self.assertEqual(
            [(text.number - end, text.sender, text.data) for text in loaded],
            [(0, b"dave", b"a"), (1, b"alice", b"b"), (2, b"alice", b"1"), (3, b"alice", b"2")],
        )
        self.assertEqual(loaded[0].sentAt, 77)
        self.assertEqual(self.keep(b"bob", b"3"), end + 4)
        self.assertEqual(self.texts(b"bob"), [b"a", b"b", b"1", b"2", b"3"])

    def test_putBackIntoEmpty(self) -> None:
        """Into an empty queue texts are put back like any others; none at all are put back too."""
        end = self.waiting(b"bob").end
        self.assertEqual(self.do(self.database.putBack, b"bob", [(b"alice", b"a")], 0), 0)
        self.assertEqual(self.do(self.database.putBack, b"bob", [], 0), 0)
        self.assertEqual(self.texts(b"bob"), [b"a"])
        self.assertEqual(self.waiting(b"bob").first, end)

    def test_putBackTakesNothingFromAnOldSession(self) -> None:
        """A session that is resumed after texts were put back does not forget those: it never got them."""
        self.begin(b"S1")
        self.keep(b"bob", b"0")
        self.keep(b"bob", b"1")
        self.do(self.database.putBack, b"bob", [(b"alice", b"a")], 0)
        self.begin(b"S2", b"S1", 2)
        self.assertEqual(self.texts(b"bob"), [b"a", b"0", b"1"])

    def test_afterRestart(self) -> None:
        """What waits has its numbers still; no number is given twice, not even where nothing waits."""
        first = self.keep(b"bob", b"0")
        emptied = self.keep(b"carol", b"x")
        self.forget(b"carol", emptied + 1)
        self.restart()
        self.assertEqual(self.keep(b"bob", b"1"), first + 1)
        self.assertEqual(self.texts(b"bob"), [b"0", b"1"])
        self.assertEqual(self.keep(b"carol", b"y"), emptied - (emptied & (2**40 - 1)) + 2**40)

    def test_sameNameAgain(self) -> None:
        """Who is deleted and comes again gets no number that was given already, whoever deleted him."""
        number = self.keep(b"bob", b"0")
        self.do(self.database.deleteUser, b"bob", "root")
        self.register(b"bob")
        self.assertEqual(self.texts(b"bob"), [])
        again = self.keep(b"bob", b"1")
        self.assertGreater(again, number)
        admin = self.open()
        admin.transact(admin.deleteUser, b"bob", "root")
        with self.assertRaises(StoreProblem):
            self.keep(b"bob", b"2")
        self.register(b"bob")
        self.assertGreater(self.keep(b"bob", b"3"), again)
        self.assertEqual(self.texts(b"bob"), [b"3"])


class LimitTests(DatabaseTestCase):
    def test_queuedTexts(self) -> None:
        """So many texts wait for a user and no more; what is forgotten makes room."""
        self.restart(queuedTexts=3)
        self.register(b"bob", b"carol")
        first, *_ = [self.keep(b"bob", b"") for _ in range(3)]
        with self.assertRaisesRegex(QueueFull, r"^that user has 3 texts waiting \(limit queued-texts\)$"):
            self.keep(b"bob", b"")
        self.keep(b"carol", b"")
        self.forget(b"bob", first + 1)
        self.assertEqual(self.keep(b"bob", b"x"), first + 3)
        self.assertRaises(QueueFull, self.keep, b"bob", b"")

    def test_queuedBytes(self) -> None:
        """So many bytes wait for a user and no more, counted anew after a restart or when some are forgotten."""
        self.restart(queuedBytes=100)
        self.register(b"bob")
        first = self.keep(b"bob", bytes(60))
        self.keep(b"bob", bytes(40))
        with self.assertRaisesRegex(QueueFull, r"^that user has 100 bytes of texts waiting \(limit queued-bytes\)$"):
            self.keep(b"bob", b"x")
        self.keep(b"bob", b"")
        self.restart(queuedBytes=100)
        self.assertRaises(QueueFull, self.keep, b"bob", b"x")
        self.forget(b"bob", first + 1)
        self.assertRaises(QueueFull, self.keep, b"bob", bytes(61))
        self.keep(b"bob", bytes(60))
        self.forget(b"bob", first + 100)
        self.keep(b"bob", bytes(100))
        self.assertRaises(QueueFull, self.keep, b"bob", b"x")

    def test_storeSize(self) -> None:
        """So many bytes of the file are in use and no more; what is forgotten makes room."""
        self.register(b"bob")
        size = self.database.statistics().usedBytes
        self.restart(storeSize=size + 100_000)
        first, *_ = [self.keep(b"bob", bytes(10_000)) for _ in range(8)]
        with self.assertRaisesRegex(QueueFull, r"^the store has reached its .*\(limit store-size\)$"):
            self.keep(b"bob", bytes(65_000))
        self.forget(b"bob", first + 8)
        self.keep(b"bob", bytes(65_000))
        self.assertLessEqual(self.database.statistics().usedBytes, size + 100_000)

    def test_storeSizeInOneTransaction(self) -> None:
        """One transaction cannot go far past the size either."""
        self.register(b"bob")
        size = self.database.statistics().usedBytes
        self.restart(storeSize=size + 100_000)
        outcome = self.database.run([(self.database.keep, (b"bob", b"", 0, bytes(10_000), b"", 0))] * 20)
        self.assertEqual(sum(isinstance(result, QueueFull) for result in outcome.results), 11)

    def test_off(self) -> None:
        """0 turns a limit off."""
        self.restart(maxUsers=0, queuedTexts=0, queuedBytes=0, storeSize=0)
        self.register(*(b"user%d" % i for i in range(5)))
        for i in range(5):
            self.keep(b"user1", bytes(65_000))

    def test_refusedIsCounted(self) -> None:
        """A text that is refused leaves no gap, and its sender's session counts it: it is answered with that."""
        self.restart(queuedTexts=1)
        self.register(b"alice", b"bob")
        self.begin(b"S", name=b"alice")
        self.keep(b"bob", b"0", b"S", 1)
        (result,) = self.database.run([(self.database.keep, (b"bob", b"alice", 0, b"1", b"S", 2))]).results
        self.assertIsInstance(result, QueueFull)
        self.assertEqual(self.row("SELECT taken FROM session"), (2,))
        self.assertEqual(self.texts(b"bob"), [b"0"])

    def test_putBack(self) -> None:
        """The first 5 MiB that are put back are kept past all limits, what follows is not."""
        self.restart(queuedTexts=2, queuedBytes=10)
        self.register(b"bob")
        self.keep(b"bob", b"0")
        text = b"alice", bytes(2**16 - 1)
        self.assertEqual(self.do(self.database.putBack, b"bob", [text] * 100, 0), 20)
        self.assertEqual(len(self.texts(b"bob")), 81)
        self.assertEqual(self.texts(b"bob")[-1], b"0")
        self.assertRaises(QueueFull, self.keep, b"bob", b"")

    def test_putBackWhereThereIsRoom(self) -> None:
        """Where there is room, more than 5 MiB are put back."""
        self.register(b"bob")
        self.assertEqual(self.do(self.database.putBack, b"bob", [(b"alice", bytes(2**16 - 1))] * 100, 0), 0)
        self.assertEqual(len(self.texts(b"bob")), 100)


class UserTests(DatabaseTestCase):
    def names(self) -> list[bytes]:
        """Everyone who is remembered."""
        return [user.name for user in self.database.users()]

    def test_maxUsers(self) -> None:
        """Past the limit the longest absent is forgotten for a newcomer, and what belongs to him."""
        self.restart(maxUsers=3)
        for name in (b"a", b"b", b"c"):
            self.register(name)
            self.now += 1
        self.register(b"a")
        self.begin(b"S", name=b"b")
        self.assertEqual(self.do(self.database.registered, b"d"), (True, b"b"))
        self.assertEqual(self.names(), [b"a", b"c", b"d"])
        self.assertEqual(self.row("SELECT count(*) FROM session"), (0,))
        self.assertEqual(self.do(self.database.registered, b"a"), (True, None))

    def test_whoIsNotForgotten(self) -> None:
        """Whoever is online, has waiting texts or has an account is not forgotten; then the newcomer is not known."""
        self.restart(maxUsers=2)
        self.register(b"a", b"b")
        self.do(self.database.addAccount, b"account", "hash", "root")
        self.online.add(b"a")
        number = self.keep(b"b", b"x")
        self.assertEqual(self.do(self.database.registered, b"c"), (False, None))
        self.forget(b"b", number + 1)
        self.assertEqual(self.do(self.database.registered, b"c"), (False, None), "it is not looked for each time")
        self.now += module.LOOK_AGAIN_AFTER
        self.assertEqual(self.do(self.database.registered, b"c"), (True, b"b"))
        self.assertEqual(self.names(), [b"a", b"account", b"c"])

    def test_foundButBack(self) -> None:
        """Who was found to be long absent and has come back meanwhile is not forgotten."""
        self.restart(maxUsers=3)
        self.register(b"a", b"b", b"c")
        self.assertEqual(self.do(self.database.registered, b"d"), (True, b"a"))
        self.now += 1
        self.register(b"b")
        self.assertEqual(self.do(self.database.registered, b"e"), (True, b"c"))

    def test_accounts(self) -> None:
        """With accounts, known is who has one, and nobody else by registering."""
        self.restart(accounts=True)
        self.do(self.database.addAccount, b"bob", "hash", "root")
        self.assertEqual(self.do(self.database.registered, b"bob"), (True, None))
        self.assertEqual(self.do(self.database.registered, b"eve"), (False, None))
        self.assertEqual(self.names(), [b"bob"])
        self.restart()
        self.register(b"guest")
        self.assertEqual(self.served.known, {b"bob": NOW})
        self.restart(accounts=True)
        self.assertEqual(self.served.known, {b"bob": NOW})
        self.assertEqual(self.do(self.database.registered, b"guest"), (False, None))

    def test_served(self) -> None:
        """At its start a server learns who is known, longest absent first, and who blocks whom."""
        self.register(b"c")
        self.now += 1
        self.register(b"a", b"b")
        self.do(self.database.block, b"a", b"b")
        self.do(self.database.block, b"a", b"x")
        self.restart()
        self.assertEqual(self.served.known, {b"c": NOW, b"a": NOW + 1, b"b": NOW + 1})
        self.assertEqual(next(iter(self.served.known)), b"c")
        self.assertEqual(self.served.blocks, {b"a": {b"b", b"x"}})

    def test_expireUsers(self) -> None:
        """Who has not registered for 30 days is forgotten, if nothing waits, no account is there, and he is away."""
        self.register(b"old", b"online", b"texts")
        self.do(self.database.addAccount, b"account", "hash", "root")
        self.online.add(b"online")
        self.keep(b"texts", b"x")
        self.now += 1
        self.register(b"young")
        self.now += 30 * DAY - 1
        self.assertEqual(self.do(self.database.expireUsers), ([], False))
        self.now += 0.125
        self.assertEqual(self.do(self.database.expireUsers), ([b"old"], False))
        self.assertEqual(self.names(), [b"account", b"online", b"texts", b"young"])

    def test_expireUsersInSteps(self) -> None:
        """Many are forgotten in several steps."""
        self.patch(module, "STEP", 2)
        self.register(b"a", b"b", b"c")
        self.now += 31 * DAY
        self.assertEqual(self.do(self.database.expireUsers), ([b"a", b"b"], True))
        self.assertEqual(self.do(self.database.expireUsers), ([b"c"], False))


class SessionTests(DatabaseTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.register(b"bob", b"carol", b"alice")

    def sessions(self) -> int:
        """How many are kept."""
        (n,) = self.row("SELECT count(*) FROM session")
        assert isinstance(n, int)
        return n

    def test_fresh(self) -> None:
        """A session that resumes nothing, or something unknown, has taken nothing and inherits what waits."""
        first = self.keep(b"bob", b"0")
        self.assertEqual(self.begin(b"S1"), (0, first))
        self.assertEqual(self.begin(b"S2", b"unknown", 1), (0, first))
        self.assertEqual(self.texts(b"bob"), [b"0"])

    def test_unknownUser(self) -> None:
        """Who is not remembered has no session."""
        with self.assertRaisesRegex(QueueFull, "too many users"):
            self.begin(b"S", name=b"nobody")

    def test_resume(self) -> None:
        """The first texts that the resumed session got are forgotten, and what was taken in it is learned."""
        _, base = self.begin(b"S1")
        for i in range(4):
            self.keep(b"bob", b"%d" % i)
        self.keep(b"alice", b"x", b"S1", 7)
        self.forget(b"bob", base + 1)
        self.assertEqual(self.begin(b"S2", b"S1", 3), (7, base + 3))
        self.assertEqual(self.texts(b"bob"), [b"3"])
        self.assertEqual(self.begin(b"S3", b"S2", 1), (0, base + 4))

    def test_resumeWithLess(self) -> None:
        """What was forgotten already stays so, whatever the client says."""
        _, base = self.begin(b"S1")
        self.keep(b"bob", b"0")
        self.forget(b"bob", base + 1)
        self.assertEqual(self.begin(b"S2", b"S1", 0), (0, base + 1))

    def test_resumeWithMore(self) -> None:
        """Who claims to have taken more than there was loses what there is, and nothing that comes later."""
        self.begin(b"S1")
        self.keep(b"bob", b"0")
        self.begin(b"S2", b"S1", 2**32 - 1)
        self.keep(b"bob", b"1")
        self.assertEqual(self.texts(b"bob"), [b"1"])

    def test_resumeTwice(self) -> None:
        """Until something arrives in the new session the old one can be resumed again; that discards the new one."""
        _, base = self.begin(b"S1")
        self.keep(b"bob", b"0")
        self.keep(b"bob", b"1", b"S1", 4)
        self.assertEqual(self.begin(b"S2", b"S1", 1), (4, base + 1))
        self.assertEqual(self.begin(b"S3", b"S1", 1), (4, base + 1))
        self.assertEqual(self.begin(b"S4", b"S2", 1), (0, base + 1))
        self.assertEqual(self.texts(b"bob"), [b"1"])

    def test_used(self) -> None:
        """When something has arrived in the new session the old one is unknown."""
        _, base = self.begin(b"S1")
        self.keep(b"bob", b"0", b"S1", 4)
        self.begin(b"S2", b"S1")
        self.do(self.database.sessionUsed, b"S2")
        self.do(self.database.sessionUsed, b"S2")
        self.assertEqual(self.begin(b"S3", b"S1", 1), (0, base))
        self.assertEqual(self.sessions(), 2)

    def test_resumedIsUsed(self) -> None:
        """Who resumes a session knows its ID, so it counts as used: the one before it is forgotten."""
        self.begin(b"S1")
        self.begin(b"S2", b"S1")
        self.begin(b"S3", b"S2")
        self.assertEqual(self.sessions(), 2)
        self.begin(b"S4", b"S2")
        self.assertEqual(self.sessions(), 2)

    def test_superseded(self) -> None:
        """A session that was followed by one which resumed nothing can still be resumed and learn what was taken."""
        _, base = self.begin(b"S1")
        self.keep(b"bob", b"0", b"S1", 4)
        self.assertEqual(self.begin(b"S2"), (0, base))
        self.do(self.database.sessionUsed, b"S2")
        self.assertEqual(self.begin(b"S3", b"S1", 1), (4, base + 1))

    def test_otherUser(self) -> None:
        """Another user's session is unknown."""
        self.begin(b"S1", name=b"carol")
        first = self.keep(b"bob", b"0", b"S1", 4)
        self.assertEqual(self.begin(b"S2", b"S1", 1), (0, first))
        self.do(self.database.sessionUsed, b"S2")
        self.assertEqual(self.begin(b"S3", b"S1", 0, b"carol")[0], 4)

    def test_eightNewest(self) -> None:
        """A user's 8 newest sessions are kept, whatever others have."""
        self.begin(b"other", name=b"carol")
        for i in range(9):
            self.begin(b"S%d" % i)
            self.do(self.database.answered, b"S%d" % i, 1)
        self.do(self.database.answered, b"other", 1)
        self.assertEqual(self.begin(b"again", b"other", 0, b"carol")[0], 1)
        self.assertEqual(self.row("SELECT count(*) FROM session WHERE hex(digest) LIKE '53%'"), (8,))
        self.assertEqual(self.begin(b"T", b"S0"), (0, self.waiting(b"bob").first))
        self.assertEqual(self.begin(b"U", b"S8")[0], 1)

    def test_oldestResumed(self) -> None:
        """The oldest of eight stays resumable when it is resumed, and counts once with its new one."""
        for i in range(8):
            self.begin(b"S%d" % i)
            self.do(self.database.answered, b"S%d" % i, 1)
        self.assertEqual(self.begin(b"T", b"S0")[0], 1)
        self.assertEqual(self.begin(b"U", b"S0")[0], 1)
        self.assertEqual(self.begin(b"V", b"S1")[0], 1)
        self.assertEqual(self.sessions(), 10)

    def test_sevenDays(self) -> None:
        """A session is kept for 7 days after it was lost, and no longer."""
        for wait, taken in ((7 * DAY, 1), (7 * DAY + 0.125, 0)):
            self.begin(b"S%d" % taken)
            self.do(self.database.answered, b"S%d" % taken, 1)
            self.now += 8 * DAY
            self.do(self.database.sessionLost, b"S%d" % taken)
            self.now += wait
            self.assertEqual(self.begin(b"T%d" % taken, b"S%d" % taken)[0], taken)

    def test_expire(self) -> None:
        """Sessions that cannot be resumed any more are removed; those that live are not."""
        self.begin(b"S1")
        self.begin(b"S2")
        self.do(self.database.sessionLost, b"S1")
        self.now += 7 * DAY
        self.do(self.database.expire)
        self.assertEqual(self.sessions(), 2)
        self.now += 0.125
        self.do(self.database.expire)
        self.assertEqual(self.row("SELECT digest FROM session"), (b"S2",))

    def test_serverDied(self) -> None:
        """The 7 days of sessions that lived when the server died count from its restart."""
        self.begin(b"S1")
        self.do(self.database.answered, b"S1", 5)
        self.begin(b"S2")
        self.do(self.database.answered, b"S2", 6)
        self.now += 100 * DAY
        self.restart()
        self.now += 7 * DAY
        self.assertEqual(self.begin(b"T", b"S1")[0], 5)
        self.now += 0.125
        self.assertEqual(self.begin(b"U", b"S2")[0], 0)

    def test_restart(self) -> None:
        """A session is resumed after a restart as if there had been none, be its queue empty or not."""
        _, base = self.begin(b"S1")
        _, carols = self.begin(b"C1", name=b"carol")
        for i in range(3):
            self.keep(b"bob", b"%d" % i, b"S1", i + 1)
            self.keep(b"carol", b"x")
        self.forget(b"carol", carols + 3)
        self.restart()
        self.keep(b"carol", b"y")
        self.assertEqual(self.begin(b"S2", b"S1", 2), (3, base + 2))
        self.begin(b"C2", b"C1", 3, b"carol")
        self.assertEqual(self.texts(b"carol"), [b"y"])

    def test_countNeverFalls(self) -> None:
        """A count only grows, and an unknown session has none."""
        self.begin(b"S1")
        self.do(self.database.answered, b"S1", 5)
        self.do(self.database.answered, b"S1", 4)
        self.do(self.database.answered, b"S2", 4)
        self.assertEqual(self.row("SELECT digest, taken FROM session"), (b"S1", 5))


class ExpiryTests(DatabaseTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.register(b"a", b"b", b"c")

    def expire(self) -> None:
        """Let all steps be done."""
        after: int | None = 0
        while after is not None:
            after = self.do(self.database.expireTexts, after)

    def test_thirtyDays(self) -> None:
        """A waiting text expires after 30 days, not before; what came later stays."""
        first = self.keep(b"a", b"0")
        self.now += 1
        self.keep(b"a", b"1")
        self.keep(b"b", b"2")
        self.now += 30 * DAY - 1
        self.expire()
        self.assertEqual(self.texts(b"a"), [b"0", b"1"])
        self.now += 0.125
        self.expire()
        self.assertEqual(self.texts(b"a"), [b"1"])
        self.assertEqual(self.texts(b"b"), [b"2"])
        self.now += 1
        self.expire()
        self.assertEqual(self.texts(b"a"), [])
        self.assertEqual(self.keep(b"a", b"3"), first + 2)

    def test_onlyFromTheFront(self) -> None:
        """A text that is too old stays behind one that is not: a queue has no gap."""
        self.keep(b"a", b"0")
        self.now -= DAY
        self.keep(b"a", b"1")
        self.now += 30 * DAY + 1
        self.expire()
        self.assertEqual(self.texts(b"a"), [b"0", b"1"])

    def test_online(self) -> None:
        """Nothing expires of a queue whose receiver is online, or has a reliable session that lives."""
        for name in (b"a", b"b", b"c"):
            self.keep(name, b"0")
        self.online.add(b"a")
        self.begin(b"S", name=b"b")
        self.now += 31 * DAY
        self.expire()
        self.assertEqual([self.texts(name) for name in (b"a", b"b", b"c")], [[b"0"], [b"0"], []])
        self.online.clear()
        self.do(self.database.sessionLost, b"S")
        self.expire()
        self.assertEqual([self.texts(name) for name in (b"a", b"b", b"c")], [[], [], []])

    def test_steps(self) -> None:
        """Each step looks at and removes only so much."""
        self.patch(module, "STEP", 2)
        for name in (b"a", b"b", b"c"):
            for i in range(3):
                self.keep(name, b"%d" % i)
        self.now += 31 * DAY
        left = []
        after: int | None = 0
        while after is not None:
            after = self.do(self.database.expireTexts, after)
            left.append(self.row("SELECT count(*) FROM text")[0])
        self.assertEqual(left[-1], 0)
        for before, now in zip([9, *left], left, strict=False):
            self.assertLessEqual(before - now, 2)

    def test_nothing(self) -> None:
        """Where nothing waits, one step is enough."""
        self.assertIsNone(self.do(self.database.expireTexts, 0))


class CallTests(DatabaseTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.register(b"bob")

    def call(self, n: int, caller: bytes = b"alice", callee: bytes = b"bob") -> CallRecord:
        """A call that ended now."""
        at = int(self.now * 1000)
        return CallRecord(b"%d" % n, caller, callee, bool(n % 2), at - 10, None if n % 2 else at - 5, at, "hung up")

    def missed(self, n: int, name: bytes = b"bob") -> MissedCall:
        """Let someone miss a call."""
        call = MissedCall(b"%d" % n, b"alice", int(self.now * 1000))
        self.do(self.database.missedCall, name, call)
        return call

    def test_missed(self) -> None:
        """Missed calls are told in order, at whichever kind of registration comes next, until they have been told."""
        calls = self.missed(1), self.missed(2)
        self.assertEqual(self.waiting(b"bob").missedCalls, calls)
        self.assertEqual(self.do(self.database.beginSession, b"bob", b"S", b"", 0).waiting.missedCalls, calls)
        later = self.missed(3)
        self.do(self.database.missedCallsTold, b"alice", calls)
        self.assertEqual(self.waiting(b"bob").missedCalls, (*calls, later))
        self.do(self.database.missedCallsTold, b"bob", calls)
        self.assertEqual(self.waiting(b"bob").missedCalls, (later,))
        self.missed(4, b"nobody")

    def test_atMost(self) -> None:
        """The newest 100 are told."""
        calls = [self.missed(n) for n in range(101)]
        self.assertEqual(list(self.waiting(b"bob").missedCalls), calls[1:])

    def test_missedLongAgo(self) -> None:
        """After 30 days nobody is told any more, be it removed already or not."""
        self.missed(1)
        self.now += 0.125
        second = self.missed(2)
        self.now += 30 * DAY
        self.do(self.database.expire)
        self.assertEqual(self.row("SELECT count(*) FROM missedCall"), (1,))
        self.missed(3)
        self.assertEqual(self.waiting(b"bob").missedCalls[0], second)
        self.missed(4)
        self.now += 30 * DAY + 0.125
        self.assertEqual(self.waiting(b"bob").missedCalls, ())

    def test_history(self) -> None:
        """The history tells the newest calls first, of one user where that is asked, and since a time."""
        calls = [self.call(1), self.call(2, b"bob", b"carol"), self.call(3, b"carol", b"dave")]
        self.now += 60
        calls.append(self.call(4, b"dave", b"bob"))
        for call in calls:
            self.do(self.database.callEnded, call)
        calls.reverse()
        self.assertEqual(self.database.calls(10), calls)
        self.assertEqual(self.database.calls(2), calls[:2])
        self.assertEqual(self.database.calls(10, b"bob"), [calls[0], calls[2], calls[3]])
        self.assertEqual(self.database.calls(1, b"carol"), [calls[1]])
        self.assertEqual(self.database.calls(10, None, calls[0].startedAt), calls[:1])
        self.assertEqual(self.database.calls(10, None, calls[0].startedAt + 1), [])

    def test_historyBounds(self) -> None:
        """Calls older than a year go, and so do the oldest past the bound."""
        self.do(self.database.callEnded, self.call(0))
        self.now += 0.125
        for n in (1, 2, 3):
            self.do(self.database.callEnded, self.call(n))
        self.now += 365 * DAY
        self.do(self.database.expire)
        self.assertEqual([call.callId for call in self.database.calls(10)], [b"3", b"2", b"1"])
        self.patch(module, "MAX_CALLS", 2)
        self.do(self.database.expire)
        self.assertEqual([call.callId for call in self.database.calls(10)], [b"3", b"2"])

    def test_expireInSteps(self) -> None:
        """One step removes only so much, and tells that there is more."""
        self.patch(module, "STEP", 2)
        for n in range(3):
            self.do(self.database.callEnded, self.call(n))
        self.now += 366 * DAY
        self.assertTrue(self.do(self.database.expire))
        self.assertEqual(len(self.database.calls(10)), 1)
        self.assertFalse(self.do(self.database.expire))
        self.assertEqual(self.database.calls(10), [])


class BlockTests(DatabaseTestCase):
    def test_atMost(self) -> None:
        """So many users can be blocked; one more only when one is unblocked."""
        self.patch(module, "MAX_BLOCKS", 2)
        self.register(b"bob")
        for other in (b"x", b"y", b"x"):
            self.do(self.database.block, b"bob", other)
        with self.assertRaisesRegex(StoreProblem, "you block 2 users"):
            self.do(self.database.block, b"bob", b"z")
        self.do(self.database.unblock, b"bob", b"x")
        self.do(self.database.block, b"bob", b"z")
        self.do(self.database.unblock, b"bob", b"nobody")
        self.do(self.database.unblock, b"nobody", b"x")
        self.restart()
        self.assertEqual(self.served.blocks, {b"bob": {b"y", b"z"}})

    def test_unknown(self) -> None:
        """Who is not known blocks nobody."""
        with self.assertRaisesRegex(StoreProblem, "not known"):
            self.do(self.database.block, b"nobody", b"x")


class AccountTests(DatabaseTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.do(self.database.addAccount, b"bob", "hash", "root")

    def trail(self) -> list[tuple[str, str, bytes]]:
        """The audit trail, oldest first."""
        return [(entry.actor, entry.action, entry.subject) for entry in reversed(self.database.audit(100))]

    def test_add(self) -> None:
        """An account is added once; someone who was only remembered may get one."""
        self.assertEqual(self.do(self.database.account, b"bob"), Account(b"bob", "hash", False))
        self.assertRaises(AccountExists, self.do, self.database.addAccount, b"bob", "other", "root")
        self.register(b"guest")
        self.assertIsNone(self.do(self.database.account, b"guest"))
        self.do(self.database.addAccount, b"guest", "", "guest")
        self.assertEqual(self.do(self.database.account, b"guest"), Account(b"guest", "", False))
        self.assertEqual(self.trail(), [("root", "add", b"bob"), ("guest", "add", b"guest")])

    def test_atMost(self) -> None:
        """Where a number is given, there are no more accounts than that; remembered users do not count."""
        self.register(b"guest")
        self.do(self.database.addAccount, b"carol", "hash", "root", 2)
        with self.assertRaisesRegex(QueueFull, "2 accounts"):
            self.do(self.database.addAccount, b"dave", "hash", "root", 2)
        self.assertRaises(AccountExists, self.do, self.database.addAccount, b"bob", "hash", "root", 1)
        self.do(self.database.addAccount, b"dave", "hash", "root", 0)

    def test_refusedAlone(self) -> None:
        """An operation that is refused spoils nothing of what is done with it."""
        outcome = self.database.run(
            [
                (self.database.addAccount, (b"a", "1", "root")),
                (self.database.addAccount, (b"a", "2", "root")),
                (self.database.setPassword, (b"nobody", "1", "root")),
                (self.database.keep, (b"nobody", b"", 0, b"", b"", 0)),
                (self.database.addAccount, (b"b", "3", "root")),
            ]
        )
        self.assertEqual(
            [type(r).__name__ for r in outcome.results[1:4]], ["AccountExists", "NoSuchAccount", "StoreProblem"]
        )
        self.assertEqual([user.name for user in self.database.users()], [b"a", b"b", b"bob"])
        self.assertEqual(self.do(self.database.account, b"a").passwordHash, "1")

    def test_setPassword(self) -> None:
        """A new password revokes all tokens of that user."""
        self.do(self.database.addToken, b"bob", b"T", NOW)
        self.do(self.database.addToken, b"carol", b"U", NOW)
        self.do(self.database.setPassword, b"bob", "new", "bob")
        self.assertEqual(self.do(self.database.account, b"bob").passwordHash, "new")
        self.assertIsNone(self.do(self.database.token, b"T"))
        self.assertIsNotNone(self.do(self.database.token, b"U"))
        self.assertRaises(NoSuchAccount, self.do, self.database.setPassword, b"carol", "new", "root")
        self.assertEqual(self.trail()[1:], [("bob", "password", b"bob")])

    def test_renewHash(self) -> None:
        """A hash is renewed if it is still the old one, and no token is revoked."""
        self.do(self.database.addToken, b"bob", b"T", NOW)
        self.do(self.database.renewHash, b"bob", "older", "better")
        self.assertEqual(self.do(self.database.account, b"bob").passwordHash, "hash")
        self.do(self.database.renewHash, b"bob", "hash", "better")
        self.assertEqual(self.do(self.database.account, b"bob").passwordHash, "better")
        self.assertIsNotNone(self.do(self.database.token, b"T"))

    def test_disable(self) -> None:
        """A disabled account has no tokens; doing it twice is written down once."""
        self.do(self.database.addToken, b"bob", b"T", NOW)
        self.assertTrue(self.do(self.database.disable, b"bob", "root"))
        self.assertFalse(self.do(self.database.disable, b"bob", "root"))
        self.assertTrue(self.do(self.database.account, b"bob").isDisabled)
        self.assertIsNone(self.do(self.database.token, b"T"))
        self.assertTrue(self.do(self.database.enable, b"bob", "root"))
        self.assertFalse(self.do(self.database.enable, b"bob", "root"))
        self.assertFalse(self.do(self.database.account, b"bob").isDisabled)
        self.assertRaises(NoSuchAccount, self.do, self.database.disable, b"carol", "root")
        self.assertRaises(NoSuchAccount, self.do, self.database.enable, b"carol", "root")
        self.assertEqual(self.trail()[1:], [("root", "disable", b"bob"), ("root", "enable", b"bob")])

    def test_delete(self) -> None:
        """With a user goes all that is his: texts for him, sessions, missed calls, blocks and tokens."""
        self.register(b"carol")
        self.keep(b"bob", b"x")
        self.keep(b"carol", b"y")
        self.begin(b"S")
        self.do(self.database.block, b"bob", b"eve")
        self.do(self.database.missedCall, b"bob", MissedCall(b"", b"", int(NOW * 1000)))
        self.do(self.database.addToken, b"bob", b"T", NOW)
        self.do(self.database.deleteUser, b"bob", "root")
        self.assertRaises(NoSuchAccount, self.do, self.database.deleteUser, b"bob", "root")
        s = self.database.statistics()
        self.assertEqual((s.users, s.texts, s.sessions, s.blocks, s.missedCalls, s.tokens), (1, 1, 0, 0, 0, 0))
        self.assertEqual(self.trail()[1:], [("root", "delete", b"bob")])

    def test_tokens(self) -> None:
        """A token is told with its user and when it expires, be that past or not."""
        self.do(self.database.addToken, b"bob", b"T", NOW - 0.5)
        self.assertEqual(self.do(self.database.token, b"T"), Token(b"bob", NOW - 0.5))
        self.assertIsNone(self.do(self.database.token, b"U"))

    def test_tokensAtMost(self) -> None:
        """The newest 100 tokens of a user are kept."""
        self.do(self.database.addToken, b"carol", b"U", NOW)
        for n in range(101):
            self.do(self.database.addToken, b"bob", b"%d" % n, NOW)
        self.assertIsNone(self.do(self.database.token, b"0"))
        for digest in (b"1", b"100", b"U"):
            self.assertIsNotNone(self.do(self.database.token, digest))

    def test_tokensOfAccounts(self) -> None:
        """Where there are accounts, none gets a token who has none or is disabled."""
        self.restart(accounts=True)
        self.do(self.database.addToken, b"bob", b"T", NOW)
        self.assertRaises(NoSuchAccount, self.do, self.database.addToken, b"carol", b"U", NOW)
        self.do(self.database.disable, b"bob", "root")
        self.assertRaises(NoSuchAccount, self.do, self.database.addToken, b"bob", b"U", NOW)

    def test_tokensExpire(self) -> None:
        """Expired tokens are removed."""
        self.do(self.database.addToken, b"bob", b"T", NOW + 1)
        self.do(self.database.expire)
        self.assertIsNotNone(self.do(self.database.token, b"T"))
        self.now += 1
        self.do(self.database.expire)
        self.assertIsNone(self.do(self.database.token, b"T"))

    def test_revoke(self) -> None:
        """One token or all of a user's are revoked; what revokes nothing is not written down."""
        for digest in (b"1", b"2", b"3"):
            self.do(self.database.addToken, b"bob", digest, NOW)
        self.do(self.database.addToken, b"carol", b"4", NOW)
        self.assertEqual(self.do(self.database.revokeTokens, b"bob", b"1", "bob"), 1)
        self.assertEqual(self.do(self.database.revokeTokens, b"bob", b"1", "bob"), 0)
        self.assertEqual(self.do(self.database.revokeTokens, b"bob", b"4", "bob"), 0)
        self.assertEqual(self.do(self.database.revokeTokens, b"bob", b"", "root"), 2)
        self.assertIsNotNone(self.do(self.database.token, b"4"))
        self.assertEqual(self.trail()[1:], [("bob", "revoke", b"bob"), ("root", "revoke", b"bob")])
        self.assertEqual([entry.detail for entry in self.database.audit(2)], ["2", "1"])

    def test_auditBound(self) -> None:
        """The newest entries of the audit trail are kept."""
        for n in range(3):
            self.do(self.database.setPassword, b"bob", "hash", str(n))
        self.patch(module, "MAX_AUDIT", 2)
        self.do(self.database.expire)
        self.assertEqual([entry.actor for entry in self.database.audit(10)], ["2", "1"])
        self.assertEqual([entry.actor for entry in self.database.audit(1)], ["2"])
        self.assertEqual(self.database.audit(1)[0].at, int(NOW * 1000))


class TransactionTests(DatabaseTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.register(b"bob")

    def test_rollBack(self) -> None:
        """A transaction that fails has done nothing: the numbers that it gave are given again."""
        first = self.keep(b"bob", b"0")
        keep = self.database.keep, (b"bob", b"", 0, b"x", b"", 0)

        def fail() -> None:
            raise sqlite3.OperationalError("database or disk is full")

        with self.assertRaisesRegex(StoreProblem, "no space left"):
            self.database.run(
                [
                    keep,
                    (self.database.forget, (b"bob", first + 1)),
                    (self.database.registered, (b"new",)),
                    (self.database.deleteUser, (b"bob", "root")),
                    (fail, ()),
                ]
            )
        self.assertEqual(self.texts(b"bob"), [b"0"])
        self.assertEqual(self.keep(b"bob", b"1"), first + 1)
        with self.assertRaisesRegex(StoreProblem, "not known"):
            self.keep(b"new", b"x")
        self.assertEqual(self.database.poll(), [])

    def test_otherErrors(self) -> None:
        """A fault is not told as a problem of the store, but it is rolled back too."""
        keep = self.database.keep, (b"bob", b"", 0, b"x", b"", 0)
        for error in (ValueError("cake"), sqlite3.IntegrityError("cake"), sqlite3.ProgrammingError("cake")):

            def fail(error: Exception = error) -> None:
                raise error

            self.assertRaises(type(error), self.database.run, [keep, (fail, ())])
            self.assertEqual(self.texts(b"bob"), [])
        self.keep(b"bob", b"0")

    def test_diskFull(self) -> None:
        """A full disk fails the transaction; when there is room again it goes on, and nothing is missing."""
        first = self.keep(b"bob", b"0")
        pages = self.row("PRAGMA page_count")[0]
        self.database._value(f"PRAGMA max_page_count = {pages + 3}")
        with self.assertRaisesRegex(StoreProblem, "^the store is full: no space left on the disk$"):
            self.keep(b"bob", bytes(60_000))
        self.assertEqual(self.keep(b"bob", b"1"), first + 1)
        self.database._value("PRAGMA max_page_count = 1000000")
        self.keep(b"bob", bytes(60_000))
        self.assertEqual([len(text) for text in self.texts(b"bob")], [1, 1, 60_000])

    def test_locked(self) -> None:
        """A lock that another program does not give back fails the transaction."""
        self.database.close()
        self.database = self.serve(busyTimeout=0.01)
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        with self.assertRaisesRegex(StoreProblem, "locked by another program"):
            self.keep(b"bob", b"0")
        other.execute("ROLLBACK")
        self.keep(b"bob", b"0")

    def test_damaged(self) -> None:
        """A file that is found damaged while it is used is told as that, at its start and later."""
        for i in range(20):
            self.keep(b"bob", bytes(5000))
        self.database.close()
        content = bytearray(self.path.read_bytes())
        (root,) = self.row("SELECT rootpage FROM sqlite_master WHERE name = 'text'")
        content[(root - 1) * 4096 : root * 4096] = b"\xaa" * 4096
        self.path.write_bytes(content)
        self.database = self.serve()
        with self.assertRaisesRegex(StoreProblem, "damaged"):
            self.do(self.database.load, b"bob", 0, 100)
        self.assertNotEqual(self.database.check(), [])

    def test_hasWritten(self) -> None:
        """It is told whether a transaction wrote anything."""
        self.assertFalse(self.database.run([(self.database.account, (b"bob",))]).hasWritten)
        self.assertTrue(self.database.run([(self.database.registered, (b"bob",))]).hasWritten)


class ChangeTests(DatabaseTestCase):
    def test_own(self) -> None:
        """What is changed here is told with the transaction that did it, once."""
        outcome = self.database.run([(self.database.addAccount, (b"bob", "hash", "root"))])
        self.assertEqual(outcome.changes, [module.Change(b"bob", "add", True, frozenset())])
        self.assertEqual(self.database.run([]).changes, [])
        self.assertEqual(self.database.poll(), [])

    def test_elsewhere(self) -> None:
        """What another process changes is told at the next look or with the next transaction, whichever comes first."""
        self.register(b"bob")
        self.do(self.database.block, b"bob", b"eve")
        admin = self.open()
        admin.transact(admin.addAccount, b"bob", "hash", "root")
        self.assertEqual(self.database.poll(), [module.Change(b"bob", "add", True, frozenset({b"eve"}))])
        self.assertEqual(self.database.poll(), [])
        admin.transact(admin.disable, b"bob", "root")
        admin.transact(admin.deleteUser, b"bob", "root")
        changes = self.database.run([]).changes
        gone = frozenset[bytes]()
        self.assertEqual(
            changes, [module.Change(b"bob", "disable", False, gone), module.Change(b"bob", "delete", False, gone)]
        )
        self.assertEqual(self.database.poll(), [])

    def test_lockedPoll(self) -> None:
        """A look that fails is told as a problem of the store."""
        self.database._connection.close()
        self.assertRaises(StoreProblem, self.database.poll)


class OperatorTests(DatabaseTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.register(b"bob")
        self.keep(b"bob", b"12345")
        self.keep(b"bob", b"67")

    def test_users(self) -> None:
        """Users are listed by name, with what an operator wants to know."""
        self.now += 5
        self.do(self.database.addAccount, b"ann", "hash", "root")
        self.do(self.database.disable, b"ann", "root")
        at = int(NOW * 1000)
        self.assertEqual(
            self.open().users(),
            [
                module.UserRecord(b"ann", at + 5000, None, True, True, 0),
                module.UserRecord(b"bob", at, at, False, False, 2),
            ],
        )

    def test_statistics(self) -> None:
        """What there is is counted."""
        s = self.open().statistics()
        self.assertEqual((s.version, s.users, s.accounts, s.texts, s.textBytes), (1, 1, 0, 2, 7))
        self.assertLessEqual(s.usedBytes, s.fileBytes)

    def test_check(self) -> None:
        """A sound database has no problems; a gap, an orphan and a lost start number are found."""
        self.assertEqual(self.open().check(), [])
        connection = sqlite3.connect(self.path)
        self.addCleanup(connection.close)
        connection.execute("UPDATE text SET number = number + 1 WHERE data = x'3637'")
        connection.execute("INSERT INTO session(digest, user, base) VALUES(x'00', 99, 0)")
        connection.execute("DELETE FROM setting")
        connection.commit()
        problems = self.open().check()
        self.assertEqual(len(problems), 3)
        self.assertIn("session", problems[0])
        self.assertIn("'bob'", problems[1])

    def test_backup(self) -> None:
        """A database that is in use is copied as it is at that moment, whatever is written meanwhile."""
        self.patch(module, "PAGES_AT_ONCE", 5)
        for _ in range(10):
            self.keep(b"bob", bytes(60_000))
        progress = []

        def told(left: int, total: int) -> None:
            progress.append((left, total))
            self.keep(b"bob", b"later")

        self.open().backup(self.folder / "copy", told)
        self.assertGreater(len(progress), 10)
        self.assertEqual(progress[-1][0], 0)
        copy = self.open(self.folder / "copy")
        self.assertEqual(copy.check(), [])
        self.assertEqual(copy.statistics().texts, 12)

    def test_backupServes(self) -> None:
        """A copy can take the place of the original."""
        self.database.backup(self.folder / "copy")
        self.keep(b"bob", b"later")
        self.database.close()
        shutil.move(self.folder / "copy", self.path)
        self.database = self.serve()
        self.assertEqual(self.texts(b"bob"), [b"12345", b"67"])

    def test_backupOverNothing(self) -> None:
        """Nothing is overwritten, and where it cannot be written no part of a copy is left."""
        (self.folder / "there").write_bytes(b"cake")
        with self.assertRaisesRegex(StoreProblem, "there already"):
            self.database.backup(self.folder / "there")
        self.assertEqual((self.folder / "there").read_bytes(), b"cake")
        with self.assertRaisesRegex(StoreProblem, "No such file"):
            self.database.backup(self.folder / "none" / "copy")

        def fail(left: int, total: int) -> None:
            raise OSError("cake")

        with self.assertRaisesRegex(StoreProblem, "cake"):
            self.database.backup(self.folder / "copy", fail)
        self.assertFalse((self.folder / "copy").exists())
        self.keep(b"bob", b"x")

    def test_closedTwice(self) -> None:
        """Closing twice does no harm."""
        self.database.close()
        self.database.close()

    def test_unreadable(self) -> None:
        """What cannot be read is told as a problem of the store."""
        self.database.close()
        self.assertRaises(StoreProblem, self.database.users)


class Texts(RuleBasedStateMachine):
    """The texts of two receivers are what a list of them would be, whatever is done and wherever it fails."""

    receivers = st.sampled_from([b"bob", b"carol"])
    data = st.binary(max_size=5)

    def __init__(self) -> None:
        super().__init__()
        self.folder = temporaryFolder(machineTest())
        self.queues: dict[bytes, list[tuple[int, bytes]]] = {b"bob": [], b"carol": []}
        self.given: dict[bytes, int] = {b"bob": -1, b"carol": -1}
        self.sessions: dict[bytes, tuple[bytes, int]] = {}
        self.count = 0
        self.open()
        for name in self.queues:
            self.database.transact(self.database.registered, name)

    def open(self) -> None:
        """Open the file as a server."""
        self.database = Database(self.folder / "x", lambda: NOW)
        self.database.serve()

    def teardown(self) -> None:
        """Leave a sound file."""
        problems = self.database.check()
        self.database.close()
        shutil.rmtree(self.folder)
        assert problems == []

    def give(self, receiver: bytes, number: int) -> None:
        """A number is given once, and none is left out as long as something waits."""
        assert number > self.given[receiver]
        if self.queues[receiver]:
            assert number == self.queues[receiver][-1][0] + 1
        self.given[receiver] = number

    @rule(texts=st.lists(st.tuples(receivers, data), min_size=1, max_size=20))
    def keep(self, texts: list[tuple[bytes, bytes]]) -> None:
        """Keep some in one transaction."""
        keep = self.database.keep
        outcome = self.database.run([(keep, (r, b"alice", 0, data, b"", 0)) for r, data in texts])
        for (receiver, data), number in zip(texts, outcome.results, strict=True):
            self.give(receiver, number)
            self.queues[receiver].append((number, data))

    @rule(texts=st.lists(st.tuples(receivers, data), max_size=5), ahead=st.integers(0, 3))
    def fail(self, texts: list[tuple[bytes, bytes]], ahead: int) -> None:
        """A transaction fails after everything else was done."""
        operations: list[Any] = [(self.database.keep, (r, b"alice", 0, data, b"", 0)) for r, data in texts]
        operations.append((self.database.forget, (b"bob", self.given[b"bob"] + ahead)))
        operations.append((self.database.putBack, (b"bob", [(b"x", b"y")], 0)))
        operations.append((self.database._connection.execute, ("SELECT cake",)))
        try:
            self.database.run(operations)
        except StoreProblem:
            return
        raise AssertionError("that should have failed")

    @rule(receiver=receivers, n=st.integers(0, 5))
    def forget(self, receiver: bytes, n: int) -> None:
        """Forget the first few, or more than there are."""
        queue = self.queues[receiver]
        before = (queue[0][0] if queue else self.given[receiver]) + n
        self.database.transact(self.database.forget, receiver, before)
        self.queues[receiver] = [text for text in queue if text[0] >= before]

    @rule(receiver=receivers, texts=st.lists(data, max_size=10))
    def putBack(self, receiver: bytes, texts: list[bytes]) -> None:
        """Put some back before all others."""
        queue = self.queues[receiver]
        assert not self.database.transact(self.database.putBack, receiver, [(b"x", data) for data in texts], 0)
        everything = texts + [data for _, data in queue]
        waiting = self.database.transact(self.database.waiting, receiver)
        if texts:
            assert waiting.first > self.given[receiver]
            self.given[receiver] = max(self.given[receiver], waiting.end - 1)
            self.queues[receiver] = [(waiting.first + i, data) for i, data in enumerate(everything)]

    @rule(receiver=receivers)
    def begin(self, receiver: bytes) -> None:
        """Begin a session that gets all that waits, from its first text on."""
        self.count += 1
        session = b"%d" % self.count
        begun = self.database.transact(self.database.beginSession, receiver, session, b"", 0)
        queue = self.queues[receiver]
        assert not queue or begun.waiting.first == queue[0][0]
        assert begun.waiting.end == begun.waiting.first + len(queue)
        self.sessions[receiver] = session, begun.waiting.first

    @precondition(lambda self: self.sessions)
    @rule(receiver=receivers, n=st.integers(0, 5), more=st.integers(0, 1))
    def resume(self, receiver: bytes, n: int, more: int) -> None:
        """Resume it having taken n, as long as there were so many."""
        if receiver not in self.sessions:
            return
        old, base = self.sessions[receiver]
        self.count += 1
        session = b"%d" % self.count
        begun = self.database.transact(self.database.beginSession, receiver, session, old, n)
        self.queues[receiver] = [text for text in self.queues[receiver] if text[0] >= base + n]
        if more:
            self.database.transact(self.database.sessionUsed, session)
            self.sessions[receiver] = session, begun.waiting.first

    @rule()
    def reopen(self) -> None:
        """Stop and start again."""
        self.database.close()
        self.open()

    @invariant()
    def same(self) -> None:
        """What waits is what should."""
        for receiver, queue in self.queues.items():
            texts = self.database.transact(self.database.load, receiver, 0, 2**40)
            assert [(text.number, text.data) for text in texts] == queue


_machineTest: TestCase | None = None


def machineTest() -> TestCase:
    """The test that runs the machine, which removes the folders."""
    assert _machineTest is not None
    return _machineTest


class MachineTests(SynchronousTestCase):
    def test_machine(self) -> None:
        """The database agrees with its model."""
        global _machineTest
        _machineTest = self
        run_state_machine_as_test(
            Texts, settings=settings(max_examples=25, stateful_step_count=30, deadline=None, derandomize=True)
        )
