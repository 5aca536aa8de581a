"""
Every SQL statement of the server: a file of SQLite and what is in it.

All of it blocks.  The server calls it in one thread of its own (L{wecompany.store}); the admin command has a
C{Database} of its own on the same file at the same time.

Python gives way to other threads at each row that SQLite yields or takes, and beside a busy reactor it may wait 5 ms
to get back.  So statements here take and give many rows in one step.
"""

from __future__ import annotations

import errno
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from attrs import define, field, frozen

from wecompany.interfaces import (
    Account,
    AccountExists,
    Begun,
    CallRecord,
    MissedCall,
    NoSuchAccount,
    QueueFull,
    StoredText,
    StoreProblem,
    Token,
    Waiting,
)

P = ParamSpec("P")
T = TypeVar("T")

APPLICATION_ID = 0x57436F53
"""What tells SQLite's files of this server from others: "WCoS"."""

OLDEST_SQLITE = (3, 25, 0)
"""The first one with all that the statements here need."""

BUSY_TIMEOUT = 10.0
"""Seconds to wait for another process that writes."""

DAY = 24 * 3600

KNOWN_FOR = 30 * DAY
"""Seconds after which a user without an account is forgotten."""

TEXTS_KEPT_FOR = 30 * DAY
"""Seconds after which a waiting text expires."""

MISSED_CALLS_KEPT_FOR = 30 * DAY
"""Seconds after which nobody is told of a missed call any more."""

SESSIONS_KEPT_FOR = 7 * DAY
"""Seconds after which a session cannot be resumed any more."""

CALLS_KEPT_FOR = 365 * DAY
"""Seconds that a call stays in the history."""

MAX_CALLS = 1_000_000
"""Calls in the history."""

MAX_AUDIT = 1_000_000
"""Entries in the audit trail."""

MAX_SESSIONS = 8
"""Sessions of one user that can be resumed; one and the unused one that resumed it count once."""

MAX_MISSED_CALLS = 100
"""Missed calls that one user is told of."""

MAX_BLOCKS = 500
"""Users that one user may block."""

MAX_TOKENS = 100
"""Tokens of one user."""

PUT_BACK_ALWAYS = 5 * 2**20
"""Bytes of texts that are put back past all limits of a queue: they were accepted long ago."""

MAX_USERS = 100_000
"""Users without accounts who are remembered."""

MAX_QUEUED_TEXTS = 10_000
"""Texts that wait for one user."""

MAX_QUEUED_BYTES = 64 * 2**20
"""Bytes of texts that wait for one user."""

MAX_SIZE = 4 * 2**30
"""Bytes in use of the file, past which no text is kept."""

MAX_LOADED = 4_096
"""Texts that are read at a time."""

TEXT_OVERHEAD = 64
"""About how many bytes of the file a text takes beside its data."""

MAX_TEXT = 65_535
"""Bytes of data that a text has at most."""

STEP = 1_000
"""Rows that one step of tidying up looks at or removes."""

LOOKED_FOR = 100
"""Users who can be forgotten that are looked for at a time."""

LOOK_AGAIN_AFTER = 10.0
"""Seconds after which they are looked for again where there were none."""

PAGES_AT_ONCE = 1_000
"""Pages that a backup copies between two reports of its progress."""

LEAST_ROOM = 65_536
"""Bytes of a disk with fewer of which no database can be opened: SQLite makes an index of 32 KiB beside it."""

GENERATION_BITS = 40
"""So many texts a user may get between two starts of the server, as a power of 2."""

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        "CREATE TABLE setting(name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID",
        "INSERT INTO setting VALUES('generation', 0)",
        """CREATE TABLE user(
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            name BLOB NOT NULL UNIQUE,
            createdAt INTEGER NOT NULL,
            seenAt INTEGER,
            passwordHash TEXT,
            isDisabled INTEGER NOT NULL DEFAULT 0)""",
        "CREATE INDEX userAccount ON user(id) WHERE passwordHash IS NOT NULL",
        "CREATE INDEX userSeen ON user(seenAt) WHERE passwordHash IS NULL",
        """CREATE TABLE text(
            id INTEGER PRIMARY KEY,
            receiver INTEGER NOT NULL REFERENCES user ON DELETE CASCADE,
            number INTEGER NOT NULL,
            sender BLOB NOT NULL,
            sentAt INTEGER NOT NULL,
            data BLOB NOT NULL,
            UNIQUE(receiver, number))""",
        """CREATE TABLE session(
            id INTEGER PRIMARY KEY,
            digest BLOB NOT NULL UNIQUE,
            user INTEGER NOT NULL REFERENCES user ON DELETE CASCADE,
            resumed BLOB,
            base INTEGER NOT NULL,
            taken INTEGER NOT NULL DEFAULT 0,
            lostAt INTEGER)""",
        "CREATE INDEX sessionUser ON session(user)",
        "CREATE INDEX sessionLost ON session(lostAt)",
        """CREATE TABLE missedCall(
            id INTEGER PRIMARY KEY,
            user INTEGER NOT NULL REFERENCES user ON DELETE CASCADE,
            callId BLOB NOT NULL,
            caller BLOB NOT NULL,
            startedAt INTEGER NOT NULL)""",
        "CREATE INDEX missedCallUser ON missedCall(user)",
        "CREATE INDEX missedCallStarted ON missedCall(startedAt)",
        """CREATE TABLE call(
            id INTEGER PRIMARY KEY,
            callId BLOB NOT NULL,
            caller BLOB NOT NULL,
            callee BLOB NOT NULL,
            isVideo INTEGER NOT NULL,
            startedAt INTEGER NOT NULL,
            answeredAt INTEGER,
            endedAt INTEGER NOT NULL,
            outcome TEXT NOT NULL)""",
        "CREATE INDEX callCaller ON call(caller)",
        "CREATE INDEX callCallee ON call(callee)",
        "CREATE INDEX callEnded ON call(endedAt)",
        """CREATE TABLE block(
            user INTEGER NOT NULL REFERENCES user ON DELETE CASCADE,
            other BLOB NOT NULL,
            PRIMARY KEY(user, other)) WITHOUT ROWID""",
        """CREATE TABLE token(
            id INTEGER PRIMARY KEY,
            digest BLOB NOT NULL UNIQUE,
            name BLOB NOT NULL,
            expiresAt REAL NOT NULL)""",
        "CREATE INDEX tokenName ON token(name)",
        "CREATE INDEX tokenExpires ON token(expiresAt)",
        """CREATE TABLE audit(
            id INTEGER PRIMARY KEY AUTOINCREMENT,
            at INTEGER NOT NULL,
            actor TEXT NOT NULL,
            action TEXT NOT NULL,
            subject BLOB NOT NULL,
            detail TEXT NOT NULL)""",
    ),
)
"""For each version of the schema what makes it from the one before."""


@frozen
class UserRecord:
    """
    A user as an operator sees it.

    Times are milliseconds since the epoch, UTC.

    @ivar seenAt: the last registration; C{None} before the first.
    @ivar hasAccount: false for one who is only remembered.
    @ivar waitingTexts: how many wait.
    """

    name: bytes
    createdAt: int
    seenAt: int | None
    hasAccount: bool
    isDisabled: bool
    waitingTexts: int


@frozen
class AuditRecord:
    """
    An entry of the audit trail.

    @ivar at: milliseconds since the epoch, UTC.
    @ivar actor: who did it.
    @ivar action: C{"add"}, C{"delete"}, C{"disable"}, C{"enable"}, C{"password"} or C{"revoke"}.
    @ivar subject: whose account it was.
    """

    number: int
    at: int
    actor: str
    action: str
    subject: bytes
    detail: str


@frozen
class Change:
    """
    An account was changed, by whatever process.

    @ivar action: as in L{AuditRecord}.
    @ivar isKnown: whether there is an account now.
    @ivar blocks: whom that user blocks now.
    """

    name: bytes
    action: str
    isKnown: bool
    blocks: frozenset[bytes]


@frozen
class Statistics:
    """
    How much there is.

    @ivar fileBytes: of the database file.
    @ivar usedBytes: what of that is in use.
    @ivar textBytes: of the data of all texts that wait.
    """

    version: int
    fileBytes: int
    usedBytes: int
    users: int
    accounts: int
    texts: int
    textBytes: int
    sessions: int
    missedCalls: int
    calls: int
    tokens: int
    blocks: int
    audit: int


@frozen
class Outcome:
    """
    What came of a transaction.

    @ivar results: for each operation what it returned, or the refusal that it raised.
    @ivar changes: the accounts that have changed since the last time, by this process or another one.
    @ivar texts: how many texts were kept.
    @ivar hasWritten: whether anything in the file has changed.
    """

    results: list[Any]
    changes: list[Change]
    texts: int
    hasWritten: bool


@frozen
class Served:
    """
    What a server keeps in memory.

    @ivar known: everyone with an account, or else everyone who is remembered, with the time last seen in seconds since
        the epoch, longest absent first.
    """

    known: dict[bytes, float]
    blocks: dict[bytes, set[bytes]]


@define
class Queue:
    """
    What is known of a receiver's texts.

    @ivar first: the number of the first one that waits.
    @ivar next: the number that the next one gets.
    @ivar size: bytes of their data, or more than that.
    @ivar isExact: whether C{size} is exact.
    """

    first: int
    next: int
    size: int
    isExact: bool


@define
class Pending:
    """What a transaction has still to write, merged."""

    texts: list[Any] = field(factory=list)
    forgets: dict[int, int] = field(factory=dict)
    counts: dict[bytes, int] = field(factory=dict)


_DAMAGE = (TypeError, ValueError)
"""What comes of a damaged file besides SQLite's errors: a value of another kind, or a message that is no text."""


Operation = tuple[Any, ...]
"""A method of L{Database}, a tuple of its arguments, and whatever the caller wants to find again there."""


def describe(error: Exception) -> str:
    """Return in one line, for a person, what an C{sqlite3.Error} or C{OSError} of a store in use says."""
    text = str(error)
    for sign, meaning in (
        ("full", "the store is full: no space left on the disk"),
        ("locked", "the store is locked by another program"),
        ("readonly", "the store cannot be written: it is read-only"),
        ("malformed", "the store is damaged"),
        ("not a database", "the store is damaged"),
        ("I/O", "the store's disk fails"),
    ):
        if sign in text:
            return meaning
    return f"the store failed: {text}"


def _values(columns: int, rows: int) -> str:
    row = "(" + ",".join("?" * columns) + ")"
    return ",".join([row] * rows)


BLOCKS = (64, 8, 1)
"""How many rows a statement takes: few different statements, so that SQLite keeps them all prepared."""

_INSERT = {n: f"INSERT INTO text(receiver, number, sender, sentAt, data) VALUES {_values(5, n)}" for n in BLOCKS}  # noqa: S608
_FORGET = {
    n: f"""WITH v(receiver, number) AS (VALUES {_values(2, n)})
        DELETE FROM text WHERE id IN (SELECT text.id FROM v CROSS JOIN text
            ON text.receiver = v.receiver AND text.number < v.number)"""  # noqa: S608
    for n in BLOCKS
}
_COUNT = {
    n: f"""WITH v(digest, taken) AS (VALUES {_values(2, n)})
        UPDATE session SET taken = max(taken, (SELECT v.taken FROM v WHERE v.digest = session.digest))
        WHERE digest IN (SELECT digest FROM v)"""  # noqa: S608
    for n in BLOCKS
}


class Database:
    """
    One connection to the database.

    User IDs are C{bytes}; times are milliseconds since the epoch, UTC, if nothing else is said.

    The operations (everything down to "the operator's") belong into a transaction: L{run} or L{transact}.

    @ivar seconds: returns seconds since the epoch.
    @ivar isOnline: whether a user is registered now or about to be: those are not forgotten, nor are texts for them.
        It is called in whatever thread calls the database.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        seconds: Callable[[], float] = time.time,
        *,
        mustExist: bool = False,
        busyTimeout: float = BUSY_TIMEOUT,
        migrations: Sequence[Sequence[str]] = MIGRATIONS,
    ) -> None:
        """
        Open or make the file, readable by nobody else; an older one is upgraded, after a copy of it has been made.

        @param mustExist: whether a file that is not there is a problem.
        @raise StoreProblem: it cannot be done; the text says to an operator why, and what to do.
        """
        self.path = Path(path)
        self.seconds = seconds
        self.isOnline: Callable[[bytes], bool] = lambda userId: False
        self._accounts = False
        self._maxUsers = self._mostTexts = self._mostBytes = self._mostSize = 0
        self._migrations = migrations
        self._lock: sqlite3.Connection | None = None
        self._ids: dict[bytes, int] = {}
        self._newIds: list[bytes] = []
        self._queues: dict[int, Queue] = {}
        self._before: dict[int, Queue] = {}
        self._pending = Pending()
        self._fresh = 0
        self._used = 0
        self._kept = 0
        self._remembered: int | None = None
        self._absent: list[tuple[int, bytes, int]] = []
        self._lookAgainAt = 0.0
        self._audited = False
        self._lastAudit = 0
        self._dataVersion = 0
        self._changes: list[Change] = []
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise StoreProblem(f"SQLite {sqlite3.sqlite_version} is too old: install 3.25 or later")
        self._makeFile(mustExist)
        try:
            self._connection = sqlite3.connect(
                self.path, timeout=busyTimeout, isolation_level=None, check_same_thread=False, cached_statements=256
            )
        except sqlite3.Error as e:
            raise self._cannotOpen(e) from e
        try:
            self._prepare()
        except (sqlite3.Error, OSError, *_DAMAGE) as e:
            self._connection.close()
            raise self._cannotOpen(e) from e
        except StoreProblem:
            self._connection.close()
            raise

    # -- opening and closing

    def _makeFile(self, mustExist: bool) -> None:
        # SQLite would make it readable for everyone.  A file that is there is not opened here: closing it would undo
        # the locks which this process may have on it already.
        try:
            if not mustExist and not self.path.exists():
                os.close(os.open(self.path, os.O_CREAT | os.O_RDWR, 0o600))
            elif self.path.stat() and not os.access(self.path, os.R_OK | os.W_OK):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        except OSError as e:
            raise StoreProblem(
                f"The database {str(self.path)!r} cannot be opened: {e.strerror}. "
                "Name a file in a folder that this user may write."
            ) from e

    def _cannotOpen(self, error: Exception) -> StoreProblem:
        text = "it is malformed" if isinstance(error, _DAMAGE) else str(error)
        # SQLite says so of what it cannot make beside the file, and not why.
        if "I/O" in text and shutil.disk_usage(self.path.parent).free < LEAST_ROOM:
            text = "its disk is full: no space is left"
        advice = "Name a file in a folder that this user may write."
        if "not a database" in text:
            advice = "Name another file: this one is left as it is."
        elif "malformed" in text:
            advice = "Put a backup in its place, or move it away to begin with an empty one."
        elif "locked" in text:
            advice = "Stop the program that uses it, or name another file."
        elif "full" in text:
            advice = "Make room on that disk."
        return StoreProblem(f"The database {str(self.path)!r} cannot be opened: {text}. {advice}")

    def _value(self, sql: str, *arguments: object) -> Any:
        row = self._connection.execute(sql, arguments).fetchone()
        return row and row[0]

    def _prepare(self) -> None:
        self._connection.create_function("isOnline", 1, lambda name: self.isOnline(name))
        version = self._checkOurs()
        mode = self._value("PRAGMA journal_mode = WAL")
        if mode != "wal":
            raise StoreProblem(
                f"The database {str(self.path)!r} cannot be used: its folder allows no shared memory. "
                "Name a file on a disk of this machine."
            )
        for pragma in ("synchronous = FULL", "foreign_keys = ON", f"journal_size_limit = {64 * 2**20}"):
            self._connection.execute(f"PRAGMA {pragma}")
        if version < len(self._migrations):
            self._migrate(version)
        self._dataVersion = self._value("PRAGMA data_version")
        self._lastAudit = self._newestAudit()

    def _checkOurs(self) -> int:
        """Return the version of the schema; 0 if there is none yet."""
        # One statement, so that all is of one moment: another process may be making the file.
        version, applicationId, tables = self._connection.execute(
            "SELECT (SELECT user_version FROM pragma_user_version), (SELECT application_id FROM pragma_application_id),"
            " (SELECT count(*) FROM sqlite_master)"
        ).fetchone()
        if tables and applicationId != APPLICATION_ID:
            raise StoreProblem(
                f"The database {str(self.path)!r} is not one of this server. "
                "Name another file: this one is left as it is."
            )
        if version > len(self._migrations):
            raise StoreProblem(
                f"The database {str(self.path)!r} is of a newer version ({version}) than this server knows "
                f"({len(self._migrations)}). Install that server again, or name another file."
            )
        return int(version)

    def _migrate(self, version: int) -> None:
        if version:
            backup = self.path.with_name(f"{self.path.name}.v{version}-backup")
            # One that is there already is of an upgrade which was not completed.
            unfinished = backup.with_name(backup.name + "-unfinished")
            unfinished.unlink(missing_ok=True)
            self.backup(unfinished)
            unfinished.replace(backup)
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            for statements in self._migrations[self._checkOurs() :]:
                for statement in statements:
                    self._connection.execute(statement)
            self._connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            self._connection.execute(f"PRAGMA user_version = {len(self._migrations)}")
            self._connection.execute("COMMIT")
        except BaseException:
            self._rollBack()
            raise

    def serve(
        self,
        *,
        accounts: bool = False,
        maxUsers: int = MAX_USERS,
        queuedTexts: int = MAX_QUEUED_TEXTS,
        queuedBytes: int = MAX_QUEUED_BYTES,
        storeSize: int = MAX_SIZE,
    ) -> Served:
        """
        Take the database for a server, and return what it keeps in memory.

        All limits are off where they are 0.

        @param accounts: whether known is who has an account.
        @param maxUsers: users without accounts who are remembered.
        @param queuedTexts: texts that wait for one user.
        @param queuedBytes: bytes of texts that wait for one user.
        @param storeSize: bytes in use of the file, past which no text is kept.
        @raise StoreProblem: another server has it, or it is damaged.
        """
        self._accounts, self._maxUsers = accounts, maxUsers
        self._mostTexts, self._mostBytes, self._mostSize = queuedTexts, queuedBytes, storeSize
        # SQLite's own locks are the same on every system, and the system undoes them if the server dies.
        lock = self.path.with_name(self.path.name + "-lock")
        try:
            if not lock.exists():
                os.close(os.open(lock, os.O_CREAT | os.O_RDWR, 0o600))
            self._lock = sqlite3.connect(lock, timeout=0, isolation_level=None, check_same_thread=False)
            self._lock.execute("PRAGMA journal_mode = MEMORY")  # or there would be one more file
            self._lock.execute("BEGIN EXCLUSIVE")
        except (sqlite3.Error, OSError) as e:
            if "locked" in str(e):
                raise StoreProblem(
                    f"The database {str(self.path)!r} is in use by another server. Stop that one, or name another file."
                ) from e
            raise self._cannotOpen(e) from e
        try:
            return self.transact(self._takeOver)
        except StoreProblem as e:
            raise StoreProblem(f"The database {str(self.path)!r} cannot be used: {e}.") from e
        except _DAMAGE as e:
            raise self._cannotOpen(e) from e

    def _takeOver(self) -> Served:
        # Numbers of texts are never given twice, and those of an empty queue are stored nowhere: so a server's begin
        # past all that earlier ones can have given.
        self._connection.execute("UPDATE setting SET value = value + 1 WHERE name = 'generation'")
        self._fresh = self._value("SELECT value FROM setting WHERE name = 'generation'") << GENERATION_BITS
        self._connection.execute("UPDATE session SET lostAt = ? WHERE lostAt IS NULL", (self._now(),))
        which = "passwordHash IS NOT NULL" if self._accounts else "seenAt IS NOT NULL"
        known = {
            name: (seenAt or 0) / 1000
            for name, seenAt in self._connection.execute(f"SELECT name, seenAt FROM user WHERE {which} ORDER BY seenAt")  # noqa: S608
        }
        blocks: dict[bytes, set[bytes]] = {}
        for name, other in self._connection.execute("SELECT name, other FROM block JOIN user ON user.id = block.user"):
            blocks.setdefault(name, set()).add(other)
        return Served(known, blocks)

    def close(self) -> None:
        """Close the file; doing it twice does no harm."""
        self._connection.close()
        if self._lock is not None:
            self._lock.close()

    # -- transactions

    def run(self, operations: Iterable[Operation]) -> Outcome:
        """
        Do all of it in one transaction, in order.

        An operation that raises L{StoreProblem}, L{AccountExists} or L{NoSuchAccount} has done nothing, and is the
        only one that fails.

        @raise StoreProblem: nothing of it is done.
        """
        before = self._connection.total_changes
        self._kept = 0
        results: list[Any] = []
        append = results.append
        execute = self._connection.execute
        try:
            execute("BEGIN IMMEDIATE")
            self._catchUp()
            if self._mostSize:
                self._used = self._usedBytes()
            for operation in operations:
                try:
                    append(operation[0](*operation[1]))
                except (StoreProblem, AccountExists, NoSuchAccount) as e:
                    append(e)
            self._flush()
            execute("COMMIT")
        except (sqlite3.OperationalError, OSError) as e:
            self._rollBack()
            raise StoreProblem(describe(e)) from e
        except sqlite3.DatabaseError as e:
            self._rollBack()
            if type(e) is not sqlite3.DatabaseError:
                raise
            raise StoreProblem(describe(e)) from e
        except BaseException:
            self._rollBack()
            raise
        self._before.clear()
        self._newIds.clear()
        if self._audited:
            self._audited = False
            self._readAudit()
        changes, self._changes = self._changes, []
        return Outcome(results, changes, self._kept, self._connection.total_changes > before)

    def transact(self, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """
        Do one operation in a transaction of its own, and return what it returns.

        @raise StoreProblem: nothing of it is done.
        """
        (result,) = self.run([(lambda: function(*args, **kwargs), ())]).results
        if isinstance(result, Exception):
            raise result
        return result  # type: ignore[no-any-return]

    def poll(self) -> list[Change]:
        """Return what accounts another process has changed since the last time that anything was done here."""
        try:
            self._catchUp()
        except sqlite3.Error as e:
            raise StoreProblem(describe(e)) from e
        changes, self._changes = self._changes, []
        return changes

    def _rollBack(self) -> None:
        self._queues.update(self._before)
        self._before.clear()
        for name in self._newIds:
            self._ids.pop(name, None)
        self._newIds.clear()
        self._pending = Pending()
        self._remembered = None
        self._audited = False
        if self._connection.in_transaction:
            # If even this fails, so does the next BEGIN, and then there is another try.
            with suppress(sqlite3.Error):
                self._connection.execute("ROLLBACK")

    def _catchUp(self) -> None:
        version = self._value("PRAGMA data_version")
        if version != self._dataVersion:
            self._readAudit()
            self._dataVersion = version

    def _readAudit(self) -> None:
        rows = self._connection.execute(
            "SELECT id, subject, action FROM audit WHERE id > ? ORDER BY id", (self._lastAudit,)
        ).fetchall()
        for number, name, action in rows:
            user, isKnown = self._connection.execute(
                "SELECT max(id), max(passwordHash IS NOT NULL) FROM user WHERE name = ?", (name,)
            ).fetchone()
            if self._ids.get(name, user) != user:
                self._dropUser(name)
            blocks = self._connection.execute("SELECT other FROM block WHERE user = ?", (user,)).fetchall()
            self._changes.append(Change(name, action, bool(isKnown), frozenset(other for (other,) in blocks)))
            self._lastAudit = number
            self._remembered = None

    def _newestAudit(self) -> int:
        return self._value("SELECT max(id) FROM audit") or 0

    def _usedBytes(self) -> int:
        pages, free, size = self._connection.execute(
            "SELECT page_count, freelist_count, page_size"
            " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        ).fetchone()
        return int((pages - free) * size)

    def _flush(self) -> None:
        pending = self._pending
        if pending.texts:
            self._kept += len(pending.texts) // 5
            self._inBlocks(_INSERT, pending.texts, 5)
            pending.texts = []
        if pending.forgets:
            self._inBlocks(_FORGET, [x for pair in pending.forgets.items() for x in pair], 2)
            pending.forgets = {}
        if pending.counts:
            self._inBlocks(_COUNT, [x for pair in pending.counts.items() for x in pair], 2)
            pending.counts = {}

    def _inBlocks(self, statements: dict[int, str], values: list[Any], columns: int) -> None:
        at, left = 0, len(values) // columns
        for n in BLOCKS:
            while left >= n:
                self._connection.execute(statements[n], values[at : at + n * columns])
                at += n * columns
                left -= n

    def _now(self) -> int:
        return int(self.seconds() * 1000)

    # -- users and their queues

    def _find(self, name: bytes) -> int | None:
        user = self._ids.get(name)
        if user is None:
            user = self._value("SELECT id FROM user WHERE name = ?", name)
            if user is not None:
                self._ids[name] = user
                self._newIds.append(name)
        return user

    def _get(self, name: bytes) -> int:
        user = self._find(name)
        if user is None:
            raise StoreProblem("that user is not known to the store")
        return user

    def _queue(self, user: int) -> Queue:
        """Return a queue to change: what it was is put back if the transaction fails."""
        queue = self._queues.get(user)
        if queue is None:
            first, last = self._connection.execute(
                "SELECT (SELECT min(number) FROM text WHERE receiver = ?1),"
                " (SELECT max(number) FROM text WHERE receiver = ?1)",
                (user,),
            ).fetchone()
            if first is None:
                queue = Queue(self._fresh, self._fresh, 0, True)
            else:
                queue = Queue(first, last + 1, (last + 1 - first) * MAX_TEXT, False)
            self._queues[user] = queue
        if user not in self._before:
            self._before[user] = Queue(queue.first, queue.next, queue.size, queue.isExact)
        return queue

    def _dropUser(self, name: bytes) -> None:
        """Another process has deleted that user: whoever gets the name next gets no number that was given already."""
        user = self._ids.pop(name)
        queue = self._queues.pop(user, None)
        if queue is not None:
            self._before.pop(user, None)
            self._fresh = max(self._fresh, queue.next)

    def _deleteRow(self, user: int, name: bytes) -> None:
        self._flush()
        self._fresh = max(self._fresh, self._queue(user).next)  # no number is given twice, whoever has the name
        del self._queues[user]
        self._ids.pop(name, None)
        self._connection.execute("DELETE FROM user WHERE id = ?", (user,))

    def registered(self, name: bytes) -> tuple[bool, bytes | None]:
        """
        Remember when that user was last seen.

        @return: whether the user is known now, and who has been forgotten for that.
        """
        self._flush()
        now = self._now()
        user = self._find(name)
        if user is not None:
            self._connection.execute("UPDATE user SET seenAt = ? WHERE id = ?", (now, user))
            return not self._accounts or self.account(name) is not None, None
        if self._accounts:
            return False, None
        if self._remembered is None:
            self._remembered = self._value("SELECT count(*) FROM user WHERE passwordHash IS NULL")
        forgotten = None
        if self._maxUsers and self._remembered >= self._maxUsers:
            forgotten = self._forgetOne()
            if forgotten is None:
                return False, None
        self._connection.execute("INSERT INTO user(name, createdAt, seenAt) VALUES(?, ?, ?)", (name, now, now))
        self._remembered += 1
        return True, forgotten

    def _forgetOne(self) -> bytes | None:
        """Forget the longest absent user for whom nothing waits; return which, or nothing if there is none."""
        condition = (
            "passwordHash IS NULL AND NOT EXISTS(SELECT 1 FROM text WHERE receiver = user.id) AND NOT isOnline(name)"
        )
        for isSecondTime in (False, True):
            while self._absent:
                user, name, seenAt = self._absent.pop()
                sql = f"SELECT 1 FROM user WHERE id = ? AND seenAt = ? AND {condition}"  # noqa: S608
                if self._value(sql, user, seenAt):
                    self._deleteRow(user, name)
                    return name
            if isSecondTime or self.seconds() < self._lookAgainAt:
                break
            # Whoever has waiting texts is looked at in vain, so several are looked for at a time.
            self._absent = self._connection.execute(
                f"SELECT id, name, seenAt FROM user WHERE {condition} ORDER BY seenAt LIMIT {LOOKED_FOR}"  # noqa: S608
            ).fetchall()[::-1]
            if not self._absent:
                self._lookAgainAt = self.seconds() + LOOK_AGAIN_AFTER
        return None

    # -- texts

    def keep(self, receiver: bytes, sender: bytes, sentAt: int, data: bytes, session: bytes, taken: int) -> int:
        """See L{IStore.keep<wecompany.interfaces.IStore.keep>}; C{sentAt} is in milliseconds since the epoch."""
        if session:
            # Also if it is refused: with that it has been answered.
            self._pending.counts[session] = taken
        user = self._ids.get(receiver) or self._get(receiver)
        queue = self._queue(user)
        size = len(data)
        self._checkRoom(user, queue, size)
        number = queue.next
        queue.next = number + 1
        queue.size += size
        self._used += size + TEXT_OVERHEAD
        self._pending.texts += (user, number, sender, sentAt, data)
        return number

    def _checkRoom(self, user: int, queue: Queue, size: int) -> None:
        if self._mostTexts and queue.next - queue.first >= self._mostTexts:
            raise QueueFull("queued-texts", f"that user has {queue.next - queue.first} texts waiting")
        if self._mostBytes and queue.size + size > self._mostBytes:
            if not queue.isExact:
                self._flush()
                queue.size = int(self._value("SELECT total(length(data)) FROM text WHERE receiver = ?", user))
                queue.isExact = True
            if queue.size + size > self._mostBytes:
                raise QueueFull("queued-bytes", f"that user has {queue.size} bytes of texts waiting")
        if self._mostSize and self._used + size + TEXT_OVERHEAD > self._mostSize:
            raise QueueFull("store-size", f"the store has reached its {self._mostSize} bytes")

    def keepAll(
        self, receivers: Sequence[bytes], sender: bytes, sentAt: int, data: bytes, session: bytes, taken: int
    ) -> list[int | StoreProblem]:
        """See L{IStore.keepAll<wecompany.interfaces.IStore.keepAll>}; C{sentAt} is as in L{keep}."""
        self.answered(session, taken)
        kept: list[int | StoreProblem] = []
        for receiver in receivers:
            try:
                kept.append(self.keep(receiver, sender, sentAt, data, b"", 0))
            except StoreProblem as e:
                kept.append(e)
        return kept

    def answered(self, session: bytes, taken: int) -> None:
        """See L{IStore.answered<wecompany.interfaces.IStore.answered>}."""
        self._pending.counts[session] = taken

    def forget(self, receiver: bytes, before: int) -> None:
        """See L{IStore.forget<wecompany.interfaces.IStore.forget>}."""
        user = self._ids.get(receiver) or self._find(receiver)
        if user is not None:
            self._forget(user, before)

    def _forget(self, user: int, before: int) -> None:
        queue = self._queue(user)
        before = min(before, queue.next)
        if before > queue.first:
            queue.first = before
            queue.isExact = before == queue.next
            if queue.isExact:
                queue.size = 0
            self._pending.forgets[user] = before

    def putBack(self, receiver: bytes, texts: Sequence[tuple[bytes, bytes]], sentAt: int) -> int:
        """
        See L{IStore.putBack<wecompany.interfaces.IStore.putBack>}.

        @return: how many were left out, as the queue is full.
        """
        self._flush()
        user = self._find(receiver)
        if user is None:
            return len(texts)
        queue = self._queue(user)
        waiting, start = queue.next - queue.first, queue.next
        rows: list[Any] = []
        size = 0
        for sender, data in texts:
            size += len(data)
            if size > PUT_BACK_ALWAYS:
                try:
                    self._checkRoom(user, queue, len(data))
                except QueueFull:
                    break
            rows += (user, queue.next, sender, sentAt, data)
            queue.next += 1
            queue.size += len(data)
            self._used += len(data) + TEXT_OVERHEAD
        kept = queue.next - start
        if not kept:
            return len(texts)
        if waiting:
            # All get new numbers: an old session that counts by theirs may be resumed yet, and what is put back here
            # must not be taken for what that one has got.
            self._connection.execute(
                "UPDATE text SET number = number + ? WHERE receiver = ?", (start + kept - queue.first, user)
            )
            queue.next += waiting
        queue.first = start
        self._inBlocks(_INSERT, rows, 5)
        return len(texts) - kept

    def load(self, receiver: bytes, number: int, size: int) -> list[StoredText]:
        """See L{IStore.load<wecompany.interfaces.IStore.load>}; L{MAX_LOADED} texts at most."""
        self._flush()
        user = self._find(receiver)
        if user is None:
            return []
        last = self._value(
            """SELECT max(number) FROM (
                SELECT number, sum(size) OVER (ORDER BY number ROWS UNBOUNDED PRECEDING) AS total FROM (
                    SELECT number, length(data) AS size FROM text WHERE receiver = ? AND number >= ?
                    ORDER BY number LIMIT ?))
            WHERE total <= ?""",
            user,
            number,
            MAX_LOADED,
            size,
        )
        if last is None:
            last = self._value("SELECT min(number) FROM text WHERE receiver = ? AND number >= ?", user, number)
        rows = self._value(
            "SELECT group_concat(number || ' ' || hex(sender) || ' ' || sentAt || ' ' || hex(data), ';')"
            " FROM text WHERE receiver = ? AND number BETWEEN ? AND ?",
            user,
            number,
            last,
        )
        return sorted(map(_parseText, rows.split(";")), key=lambda text: text.number) if rows else []

    # -- sessions

    def waiting(self, receiver: bytes) -> Waiting:
        """See L{IStore.waiting<wecompany.interfaces.IStore.waiting>}."""
        self._flush()
        user = self._find(receiver)
        if user is None:
            return Waiting(self._fresh, self._fresh, ())
        queue = self._queue(user)
        calls = self._connection.execute(
            "SELECT callId, caller, startedAt FROM missedCall WHERE user = ? ORDER BY id", (user,)
        ).fetchall()
        oldest = self._now() - MISSED_CALLS_KEPT_FOR * 1000
        return Waiting(queue.first, queue.next, tuple(MissedCall(*call) for call in calls if call[2] >= oldest))

    def beginSession(self, name: bytes, session: bytes, resumed: bytes, received: int) -> Begun:
        """
        See L{IStore.beginSession<wecompany.interfaces.IStore.beginSession>}.

        @raise QueueFull: that user is not remembered, as there are too many.
        """
        self._flush()
        user = self._find(name)
        if user is None:
            raise QueueFull("users", "the store knows too many users")
        old = self._connection.execute(
            "SELECT base, taken, resumed FROM session WHERE digest = ? AND user = ?"
            " AND (lostAt IS NULL OR lostAt >= ?)",
            (resumed, user, self._now() - SESSIONS_KEPT_FOR * 1000),
        ).fetchone()
        taken = 0
        if old is not None:
            base, taken, before = old
            self._connection.execute("DELETE FROM session WHERE user = ? AND resumed = ?", (user, resumed))
            if before is not None:
                self.sessionUsed(resumed)  # who knows its ID got the answer to it
            self._forget(user, base + received)
            self._flush()
        waiting = self.waiting(name)
        self._connection.execute(
            "INSERT INTO session(digest, user, resumed, base) VALUES(?, ?, ?, ?)",
            (session, user, None if old is None else resumed, waiting.first),
        )
        self._connection.execute(
            """DELETE FROM session WHERE id IN (
                SELECT id FROM session WHERE user = ?1
                AND digest NOT IN (SELECT resumed FROM session WHERE user = ?1 AND resumed IS NOT NULL)
                ORDER BY id DESC LIMIT -1 OFFSET ?2)""",
            (user, MAX_SESSIONS),
        )
        return Begun(taken, waiting)

    def sessionUsed(self, session: bytes) -> None:
        """See L{IStore.sessionUsed<wecompany.interfaces.IStore.sessionUsed>}."""
        self._flush()
        self._connection.execute(
            "DELETE FROM session WHERE digest = (SELECT resumed FROM session WHERE digest = ?)", (session,)
        )
        self._connection.execute(
            "UPDATE session SET resumed = NULL WHERE digest = ? AND resumed IS NOT NULL", (session,)
        )

    def sessionLost(self, session: bytes) -> None:
        """See L{IStore.sessionLost<wecompany.interfaces.IStore.sessionLost>}."""
        self._connection.execute("UPDATE session SET lostAt = ? WHERE digest = ?", (self._now(), session))

    # -- calls and blocks

    def callEnded(self, call: CallRecord) -> None:
        """See L{IStore.callEnded<wecompany.interfaces.IStore.callEnded>}."""
        self._connection.execute(
            "INSERT INTO call(callId, caller, callee, isVideo, startedAt, answeredAt, endedAt, outcome)"
            " VALUES(?, ?, ?, ?, ?, ?, ?, ?)",
            (
                call.callId,
                call.caller,
                call.callee,
                call.isVideo,
                call.startedAt,
                call.answeredAt,
                call.endedAt,
                call.outcome,
            ),
        )

    def missedCall(self, callee: bytes, call: MissedCall) -> None:
        """See L{IStore.missedCall<wecompany.interfaces.IStore.missedCall>}."""
        user = self._find(callee)
        if user is None:
            return
        self._connection.execute(
            "INSERT INTO missedCall(user, callId, caller, startedAt) VALUES(?, ?, ?, ?)",
            (user, call.callId, call.caller, call.startedAt),
        )
        self._connection.execute(
            "DELETE FROM missedCall WHERE id IN"
            " (SELECT id FROM missedCall WHERE user = ? ORDER BY id DESC LIMIT -1 OFFSET ?)",
            (user, MAX_MISSED_CALLS),
        )

    def missedCallsTold(self, callee: bytes, calls: tuple[MissedCall, ...]) -> None:
        """See L{IStore.missedCallsTold<wecompany.interfaces.IStore.missedCallsTold>}."""
        self._connection.executemany(
            "DELETE FROM missedCall WHERE user = (SELECT id FROM user WHERE name = ?) AND callId = ?",
            [(callee, call.callId) for call in calls],
        )

    def block(self, name: bytes, other: bytes) -> None:
        """
        See L{IStore.block<wecompany.interfaces.IStore.block>}.

        @raise StoreProblem: that user blocks too many.
        """
        user = self._get(name)
        if self._value("SELECT 1 FROM block WHERE user = ? AND other = ?", user, other):
            return
        if self._value("SELECT count(*) FROM block WHERE user = ?", user) >= MAX_BLOCKS:
            raise StoreProblem(f"you block {MAX_BLOCKS} users: unblock one first")
        self._connection.execute("INSERT INTO block VALUES(?, ?)", (user, other))

    def unblock(self, name: bytes, other: bytes) -> None:
        """See L{IStore.unblock<wecompany.interfaces.IStore.unblock>}."""
        self._connection.execute("DELETE FROM block WHERE user = ? AND other = ?", (self._find(name), other))

    # -- accounts and tokens

    def account(self, name: bytes) -> Account | None:
        """Return the account of that name."""
        row = self._connection.execute(
            "SELECT passwordHash, isDisabled FROM user WHERE name = ? AND passwordHash IS NOT NULL", (name,)
        ).fetchone()
        return row and Account(name, row[0], bool(row[1]))

    def _getAccount(self, name: bytes) -> Account:
        account = self.account(name)
        if account is None:
            raise NoSuchAccount(name)
        return account

    def _audit(self, actor: str, action: str, name: bytes, detail: str = "") -> None:
        self._connection.execute(
            "INSERT INTO audit(at, actor, action, subject, detail) VALUES(?, ?, ?, ?, ?)",
            (self._now(), actor, action, name, detail),
        )
        self._audited = True

    def addAccount(self, name: bytes, passwordHash: str, actor: str, most: int = 0) -> None:
        """
        Create an account.

        @raise AccountExists: there is one.
        @raise QueueFull: there are C{most} (0: any number) already.
        """
        if self.account(name) is not None:
            raise AccountExists(name)
        if most and self._value("SELECT count(*) FROM user WHERE passwordHash IS NOT NULL") >= most:
            raise QueueFull("accounts", f"there are {most} accounts already")
        self._connection.execute("INSERT OR IGNORE INTO user(name, createdAt) VALUES(?, ?)", (name, self._now()))
        self._connection.execute(
            "UPDATE user SET passwordHash = ?, isDisabled = 0 WHERE name = ?", (passwordHash, name)
        )
        self._audit(actor, "add", name)

    def setPassword(self, name: bytes, passwordHash: str, actor: str) -> None:
        """
        Set a password, and revoke all tokens.

        @raise NoSuchAccount: there is none of that name.
        """
        self._getAccount(name)
        self._connection.execute("UPDATE user SET passwordHash = ? WHERE name = ?", (passwordHash, name))
        self._connection.execute("DELETE FROM token WHERE name = ?", (name,))
        self._audit(actor, "password", name)

    def renewHash(self, name: bytes, oldHash: str, newHash: str) -> None:
        """Replace a hash, unless it has changed meanwhile."""
        self._connection.execute(
            "UPDATE user SET passwordHash = ? WHERE name = ? AND passwordHash = ?", (newHash, name, oldHash)
        )

    def disable(self, name: bytes, actor: str) -> bool:
        """
        Let that user in no more, and revoke all tokens; return whether that was not so already.

        @raise NoSuchAccount: there is none of that name.
        """
        return self._setDisabled(name, True, actor)

    def enable(self, name: bytes, actor: str) -> bool:
        """
        Undo L{disable}; return whether that was not so already.

        @raise NoSuchAccount: there is none of that name.
        """
        return self._setDisabled(name, False, actor)

    def _setDisabled(self, name: bytes, isDisabled: bool, actor: str) -> bool:
        if self._getAccount(name).isDisabled == isDisabled:
            return False
        self._connection.execute("UPDATE user SET isDisabled = ? WHERE name = ?", (isDisabled, name))
        if isDisabled:
            self._connection.execute("DELETE FROM token WHERE name = ?", (name,))
        self._audit(actor, "disable" if isDisabled else "enable", name)
        return True

    def deleteUser(self, name: bytes, actor: str) -> None:
        """
        Remove an account or a remembered user with all that belongs to it: texts that wait for it, tokens, sessions.

        @raise NoSuchAccount: there is none of that name.
        """
        user = self._find(name)
        if user is None:
            raise NoSuchAccount(name)
        self._connection.execute("DELETE FROM token WHERE name = ?", (name,))
        self._deleteRow(user, name)
        self._audit(actor, "delete", name)

    def addToken(self, name: bytes, digest: bytes, expiresAt: float) -> None:
        """
        Keep a token; C{expiresAt} is in seconds since the epoch.

        @raise NoSuchAccount: there is no account that it could be for.
        """
        account = self.account(name)
        if self._accounts and (account is None or account.isDisabled):
            raise NoSuchAccount(name)
        self._connection.execute(
            "INSERT INTO token(digest, name, expiresAt) VALUES(?, ?, ?)", (digest, name, expiresAt)
        )
        self._connection.execute(
            "DELETE FROM token WHERE id IN (SELECT id FROM token WHERE name = ? ORDER BY id DESC LIMIT -1 OFFSET ?)",
            (name, MAX_TOKENS),
        )

    def token(self, digest: bytes) -> Token | None:
        """Return a token, be it expired or not."""
        row = self._connection.execute("SELECT name, expiresAt FROM token WHERE digest = ?", (digest,)).fetchone()
        return row and Token(*row)

    def revokeTokens(self, name: bytes, digest: bytes, actor: str) -> int:
        """
        Revoke one token, or all of that user's if C{digest} is empty; return how many.

        @param actor: who does it, for the audit trail; empty for the user itself, who could fill it with that.
        """
        sql = "DELETE FROM token WHERE name = ?"
        cursor = (
            self._connection.execute(sql + " AND digest = ?", (name, digest))
            if digest
            else self._connection.execute(sql, (name,))
        )
        if cursor.rowcount and actor:
            self._audit(actor, "revoke", name, str(cursor.rowcount))
        return cursor.rowcount

    # -- tidying up

    def expireTexts(self, after: int) -> int | None:
        """
        Forget texts that have waited for too long, of some of the receivers who are not online.

        @param after: 0, or what the last step returned.
        @return: where to go on; C{None} if that was the last step.
        """
        self._flush()
        receivers = """WITH RECURSIVE receivers(user) AS (
            SELECT min(receiver) FROM text WHERE receiver > ?
            UNION ALL SELECT (SELECT min(receiver) FROM text WHERE receiver > user) FROM receivers
            WHERE user IS NOT NULL LIMIT ?)"""
        oldest = self._now() - TEXTS_KEPT_FOR * 1000
        rows = self._connection.execute(
            f"""{receivers} SELECT user, name FROM receivers JOIN user ON id = user
            WHERE (SELECT sentAt FROM text WHERE receiver = user ORDER BY number LIMIT 1) < ?
            AND NOT EXISTS(SELECT 1 FROM session WHERE session.user = user.id AND lostAt IS NULL)
            ORDER BY user""",  # noqa: S608
            (after, STEP, oldest),
        ).fetchall()
        left = STEP
        for user, name in rows:
            if self.isOnline(name):
                continue
            first = self._queue(user).first
            # The older ones of each queue go, and none from its middle: a session counts by the numbers.
            end = self._value(
                "SELECT number FROM text WHERE receiver = ? AND sentAt >= ? ORDER BY number LIMIT 1",
                user,
                oldest,
            )
            end = self._queue(user).next if end is None else end
            if end - first > left:
                self._forget(user, first + left)
                return int(user) - 1
            self._forget(user, end)
            left -= end - first
        last = self._value(
            f"{receivers} SELECT CASE WHEN count(*) = ? THEN max(user) END FROM receivers",  # noqa: S608
            after,
            STEP,
            STEP,
        )
        return None if last is None else int(last)

    def expire(self) -> bool:
        """Remove some of what is too old or too much; return whether there is more to do."""
        self._flush()
        now = self._now()
        removed = [
            self._connection.execute(
                f"DELETE FROM {table} WHERE id IN (SELECT id FROM {table} WHERE {condition} LIMIT {STEP})",  # noqa: S608
                (bound,),
            ).rowcount
            for table, condition, bound in (
                ("session", "lostAt < ?", now - SESSIONS_KEPT_FOR * 1000),
                ("token", "expiresAt <= ?", self.seconds()),
                ("missedCall", "startedAt < ?", now - MISSED_CALLS_KEPT_FOR * 1000),
                ("call", "endedAt < ?", now - CALLS_KEPT_FOR * 1000),
                ("call", "id <= (SELECT max(id) FROM call) - ?", MAX_CALLS),
                ("audit", "id <= (SELECT max(id) FROM audit) - ?", MAX_AUDIT),
            )
        ]
        return STEP in removed

    def expireUsers(self) -> tuple[list[bytes], bool]:
        """
        Forget some of those who have no account, have been absent for too long, and for whom nothing waits.

        @return: who is forgotten, and whether there may be more.
        """
        self._flush()
        rows = self._connection.execute(
            "SELECT id, name FROM user WHERE passwordHash IS NULL AND seenAt < ? AND NOT isOnline(name)"
            " AND NOT EXISTS(SELECT 1 FROM text WHERE receiver = user.id) ORDER BY seenAt LIMIT ?",
            (self._now() - KNOWN_FOR * 1000, STEP),
        ).fetchall()
        for user, name in rows:
            self._deleteRow(user, name)
        if rows:
            self._remembered = None
        return [name for _, name in rows], len(rows) == STEP

    # -- the operator's, each in a transaction of its own

    def users(self) -> list[UserRecord]:
        """Return everyone, by name."""
        return [
            UserRecord(name, createdAt, seenAt, bool(hasAccount), bool(isDisabled), waiting)
            for name, createdAt, seenAt, hasAccount, isDisabled, waiting in self._read(
                "SELECT name, createdAt, seenAt, passwordHash IS NOT NULL, isDisabled,"
                " (SELECT count(*) FROM text WHERE receiver = user.id) FROM user ORDER BY name"
            )
        ]

    def audit(self, most: int) -> list[AuditRecord]:
        """Return the newest entries of the audit trail, newest first."""
        rows = self._read("SELECT id, at, actor, action, subject, detail FROM audit ORDER BY id DESC LIMIT ?", most)
        return [AuditRecord(*row) for row in rows]

    def calls(self, most: int, name: bytes | None = None, since: int = 0) -> list[CallRecord]:
        """
        Return the newest calls of the history, newest first.

        @param name: whose calls; C{None} for everyone's.
        @param since: milliseconds since the epoch: calls that began earlier are left out.
        """
        rows = self._read(
            "SELECT callId, caller, callee, isVideo, startedAt, answeredAt, endedAt, outcome FROM call"
            " WHERE startedAt >= ?1 AND (?2 IS NULL OR id IN (SELECT id FROM call WHERE caller = ?2"
            " UNION SELECT id FROM call WHERE callee = ?2)) ORDER BY id DESC LIMIT ?3",
            since,
            name,
            most,
        )
        return [
            CallRecord(callId, caller, callee, bool(isVideo), startedAt, answeredAt, endedAt, outcome)
            for callId, caller, callee, isVideo, startedAt, answeredAt, endedAt, outcome in rows
        ]

    def statistics(self) -> Statistics:
        """Count what there is."""
        pages, free, size = self._connection.execute(
            "SELECT page_count, freelist_count, page_size"
            " FROM pragma_page_count, pragma_freelist_count, pragma_page_size"
        ).fetchone()
        (row,) = self._read(
            "SELECT (SELECT count(*) FROM user), (SELECT count(*) FROM user WHERE passwordHash IS NOT NULL),"
            " (SELECT count(*) FROM text), (SELECT CAST(total(length(data)) AS INTEGER) FROM text),"
            " (SELECT count(*) FROM session), (SELECT count(*) FROM missedCall), (SELECT count(*) FROM call),"
            " (SELECT count(*) FROM token), (SELECT count(*) FROM block), (SELECT count(*) FROM audit)"
        )
        version = self._value("PRAGMA user_version")
        return Statistics(version, pages * size, (pages - free) * size, *row)

    def check(self) -> list[str]:
        """Test the whole file, and return what is wrong with it, a line each."""
        try:
            problems = [text for (text,) in self._connection.execute("PRAGMA integrity_check(100)") if text != "ok"]
            problems += [
                f"row {row} of {table} belongs to a {parent} that is not there"
                for table, row, parent, _ in self._connection.execute("PRAGMA foreign_key_check")
            ]
            problems += [
                f"the texts for {name.decode('utf-8', 'replace')!r} are not numbered without a gap"
                for (name,) in self._connection.execute(
                    "SELECT name FROM text JOIN user ON user.id = receiver GROUP BY receiver"
                    " HAVING max(number) - min(number) + 1 <> count(*)"
                )
            ]
            if not isinstance(self._value("SELECT value FROM setting WHERE name = 'generation'"), int):
                problems.append("the number of the server's last start is missing")
        except (sqlite3.DatabaseError, *_DAMAGE) as e:
            return [str(e)]
        return problems

    def backup(self, path: str | os.PathLike[str], progress: Callable[[int, int], None] | None = None) -> None:
        """
        Copy the database as it is at this moment, be it in use or not.

        @param path: of the copy, where nothing may be yet.
        @param progress: called now and then with how many pages are left, and how many there are.
        @raise StoreProblem: it could not be done, and there is no copy.
        """
        target = Path(path)
        try:
            os.close(os.open(target, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600))
        except FileExistsError:
            raise StoreProblem(f"{str(target)!r} is there already: name another file for the copy") from None
        except OSError as e:
            raise StoreProblem(f"{str(target)!r} cannot be written: {e.strerror}") from e
        try:
            copy = sqlite3.connect(target)
            try:
                # Within one reading transaction, or each change by the server would make it begin again.
                self._connection.execute("BEGIN")
                self._value("SELECT count(*) FROM sqlite_master")
                self._connection.backup(
                    copy,
                    pages=PAGES_AT_ONCE,
                    progress=None if progress is None else lambda status, left, total: progress(left, total),
                )
            finally:
                copy.close()
                if self._connection.in_transaction:
                    self._connection.execute("ROLLBACK")
        except BaseException as e:
            target.unlink(missing_ok=True)
            if isinstance(e, (sqlite3.Error, OSError)):
                raise StoreProblem(f"{str(target)!r} cannot be written: {e}") from e
            raise

    def _read(self, sql: str, *arguments: object) -> list[Any]:
        try:
            return self._connection.execute(sql, arguments).fetchall()
        except sqlite3.Error as e:
            raise StoreProblem(describe(e)) from e


def _parseText(row: str) -> StoredText:
    number, sender, sentAt, data = row.split(" ")
    return StoredText(int(number), bytes.fromhex(sender), int(sentAt), bytes.fromhex(data))
