"""The store as the hub sees it: what is asked in the reactor's thread, and what comes of it."""

from __future__ import annotations

import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, Logger, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests import temporaryFolder
from wecompany import database
from wecompany import store as module
from wecompany.database import DAY, Database
from wecompany.interfaces import (
    Account,
    AccountExists,
    Begun,
    CallRecord,
    IAccountStore,
    IStore,
    MissedCall,
    NoSuchAccount,
    QueueFull,
    StoreProblem,
    Token,
    Waiting,
)
from wecompany.store import POLL_EVERY, RETRY_AFTER, TIDY_EVERY, Store, openStore

NOW = 1_800_000_000.0

T = TypeVar("T")


class StoreTestCase(SynchronousTestCase):
    """
    A store whose writer works when the clock goes on.

    @ivar results: what the C{done}s were called with, in order.
    @ivar delay: seconds that the writer takes.
    """

    def setUp(self) -> None:
        self.path = temporaryFolder(self) / "store.sqlite"
        self.clock = Clock()
        self.clock.advance(NOW)
        self.results: list[Any] = []
        self.transactions = 0
        self.delay = 0.0
        self.store = self.open()

    def open(self, **options: Any) -> Store:
        """Open the store as a server does."""
        self.database = Database(self.path, self.clock.seconds, busyTimeout=0.01)
        self.addCleanup(self.database.close)
        return Store(self.database, self.clock, self.runInThread, **options)

    def reopen(self, **options: Any) -> None:
        """Stop the server and start it again."""
        self.stop()
        self.store = self.open(**options)

    def stop(self) -> None:
        """Stop the server."""
        d = self.store.stop()
        self.settle()
        self.successResultOf(d)

    def runInThread(self, f: Callable[[], T]) -> Deferred[T]:
        """Do it at once, and tell later."""
        self.transactions += 1
        result = maybeDeferred(f)
        d: Deferred[T] = Deferred()
        self.clock.callLater(self.delay, result.chainDeferred, d)
        return d

    def settle(self) -> None:
        """Let the writer do what it is asked."""
        for _ in range(20):
            self.clock.advance(0)

    def done(self, result: Any) -> None:
        """What is given to the store as C{done}."""
        self.results.append(result)

    def taken(self) -> list[Any]:
        """What the C{done}s were called with since the last time, when all is done."""
        self.settle()
        results, self.results = self.results, []
        return results

    def keep(self, receiver: bytes, data: bytes, session: bytes = b"", taken: int = 0) -> None:
        """Ask for a text to be kept."""
        self.store.keep(receiver, b"alice", data, session, taken, self.done)

    def register(self, *names: bytes) -> None:
        """Let users be known."""
        for name in names:
            self.store.registered(name)
        self.settle()

    def texts(self, receiver: bytes) -> list[bytes]:
        """The data of all that waits for someone."""
        self.store.load(receiver, 0, 2**40, self.done)
        (texts,) = self.taken()
        return [text.data for text in texts]

    def fill(self) -> None:
        """Let the disk be full."""
        pages = self.database._value("PRAGMA page_count")
        self.database._value(f"PRAGMA max_page_count = {pages}")

    def empty(self) -> None:
        """Let there be room on the disk again."""
        self.database._value("PRAGMA max_page_count = 1000000")

    def admin(self) -> Database:
        """The same file as the admin command sees it, in another process as it were."""
        command = Database(self.path, self.clock.seconds)
        self.addCleanup(command.close)
        return command

    def logged(self) -> list[str]:
        """What the operator was told since the last time, without the levels."""
        return self.recorded.take()

    @property
    def recorded(self) -> Recorded:
        """A publisher that is listened to from the first use on."""
        if not hasattr(self, "_recorded"):
            self._recorded = Recorded()
            self.patch(Store, "_log", Logger("store", observer=self._recorded))
        return self._recorded


@implementer(ILogObserver)
class Recorded:
    """An observer of the log."""

    def __init__(self) -> None:
        self.events: list[Any] = []

    def __call__(self, event: Any) -> None:
        self.events.append(event)
        globalLogPublisher(event)

    def take(self) -> list[str]:
        """What was told since the last time."""
        events, self.events = self.events, []
        return [event["log_format"].format(**event) for event in events]


class AskingTests(StoreTestCase):
    def test_interfaces(self) -> None:
        """The store is what the hub and the accounts expect."""
        verifyObject(IStore, self.store)
        verifyObject(IAccountStore, self.store)

    def test_never(self) -> None:
        """No C{done} is called from within the method that it was given to."""
        self.register(b"bob")
        self.keep(b"bob", b"x")
        self.store.answered(b"S", 1, self.done)
        self.store.load(b"bob", 0, 1, self.done)
        self.store.waiting(b"bob", self.done)
        self.store.beginSession(b"bob", b"S", b"", 0, self.done)
        self.store.block(b"bob", b"x", self.done)
        self.store.unblock(b"bob", b"x", self.done)
        d = self.store.account(b"bob")
        self.assertEqual(self.results, [])
        self.assertNoResult(d)
        self.assertEqual(len(self.taken()), 7)
        self.assertIsNone(self.successResultOf(d))

    def test_order(self) -> None:
        """All is done in the order in which it was asked, and told in that order, then that all is told."""
        self.register(b"bob")
        self.store.setAfterCommit(lambda: self.results.append("after"))
        self.transactions = 0
        self.keep(b"bob", b"0")
        self.store.waiting(b"bob", self.done)
        self.keep(b"bob", b"1")
        self.store.waiting(b"bob", self.done)
        number, before, second, after, last = self.taken()
        self.assertEqual((before, after), (Waiting(number, number + 1, ()), Waiting(number, number + 2, ())))
        self.assertEqual((second, last), (number + 1, "after"))
        self.assertEqual(self.transactions, 1)

    def test_gathered(self) -> None:
        """What is asked while the writer is busy is done together in the next transaction."""
        self.register(b"bob")
        self.store.setAfterCommit(lambda: self.results.append("after"))
        self.delay = 1
        self.keep(b"bob", b"0")
        self.clock.advance(0)
        self.keep(b"bob", b"1")
        self.keep(b"bob", b"2")
        self.assertEqual(self.taken(), [])
        self.clock.advance(1)
        self.clock.advance(1)
        first, *rest = self.taken()
        self.assertEqual(rest, ["after", first + 1, first + 2, "after"])

    def test_committed(self) -> None:
        """A result is told when everybody else can see it, not before."""
        self.register(b"bob")
        admin = self.admin()
        seen: list[int] = []
        self.store.keep(b"bob", b"a", b"x", b"", 0, lambda result: seen.append(admin.statistics().texts))
        self.settle()
        self.assertEqual(seen, [1])

    def test_raises(self) -> None:
        """A C{done} that raises is logged, and harms no other."""
        self.register(b"bob")

        def fail(result: object) -> None:
            raise ValueError("cake")

        self.store.setAfterCommit(lambda: fail(0))
        self.keep(b"bob", b"0")
        self.store.keep(b"bob", b"a", b"1", b"", 0, fail)
        self.keep(b"bob", b"2")
        self.assertEqual(len(self.taken()), 2)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 2)
        self.keep(b"bob", b"3")
        self.assertEqual(len(self.taken()), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)

    def test_bounded(self) -> None:
        """One transaction has only so many operations and so many bytes."""
        self.register(b"bob")
        for bound, most in (("MAX_OPERATIONS", 3), ("MAX_TRANSACTION", 3 * (module.OVERHEAD + 10))):
            self.patch(module, bound, most)
            self.transactions = 0
            for _ in range(7):
                self.keep(b"bob", bytes(10))
            results = self.taken()
            self.assertEqual(results, list(range(results[0], results[0] + 7)))
            self.assertEqual(self.transactions, 3)
            self.patch(module, bound, 10**9)

    def test_pendingBytes(self) -> None:
        """It is told about how much is not committed yet, until it is."""
        self.register(b"bob")
        self.assertEqual(self.store.pendingBytes, 0)
        self.keep(b"bob", bytes(1000))
        self.store.forget(b"bob", 0)
        self.assertGreater(self.store.pendingBytes, 1000)
        self.assertEqual(self.store.queueLength, 2)
        self.delay = 1
        self.settle()
        self.assertGreater(self.store.pendingBytes, 1000)
        self.clock.advance(1)
        self.assertEqual(self.store.pendingBytes, 0)
        self.assertEqual(self.store.queueLength, 0)

    def test_counters(self) -> None:
        """What was done is counted."""
        self.register(b"bob")
        before = self.store.commits
        self.keep(b"bob", b"0")
        self.keep(b"bob", b"1")
        self.settle()
        self.assertEqual((self.store.commits - before, self.store.textsKept, self.store.failures), (1, 2, 0))

    def test_stop(self) -> None:
        """All that was asked before the stop is committed; what is asked later is refused."""
        self.register(b"bob")
        self.delay = 1
        self.keep(b"bob", b"0")
        self.clock.advance(0)
        self.keep(b"bob", b"1")
        first, second = self.store.stop(), self.store.stop()
        self.keep(b"bob", b"2")
        self.store.forget(b"bob", 2**62)
        (refused,) = self.taken()
        self.assertEqual(str(refused), "the store is closed")
        self.clock.advance(1)
        self.clock.advance(1)
        self.assertEqual(len(self.taken()), 2)
        self.assertNoResult(first)
        self.clock.advance(1)
        self.successResultOf(first)
        self.successResultOf(second)
        self.delay = 0
        self.assertEqual(self.clock.getDelayedCalls(), [])
        self.store = self.open()
        self.results.clear()
        self.assertEqual(self.texts(b"bob"), [b"0", b"1"])

    def test_stopAtOnce(self) -> None:
        """What was asked in the same moment as the stop is committed too."""
        self.register(b"bob")
        self.keep(b"bob", b"0")
        self.stop()
        self.assertEqual([type(result) for result in self.results], [int])
        self.assertEqual(self.admin().statistics().texts, 1)

    def test_stopStarted(self) -> None:
        """A store that was started leaves no timer when it stops, be its writer busy or not."""
        self.store.start()
        self.settle()
        self.delay = 0.25
        self.clock.advance(POLL_EVERY)
        d = self.store.stop()
        self.clock.advance(0.25)
        self.assertNoResult(d)
        self.clock.advance(0.25)
        self.successResultOf(d)
        self.assertEqual(self.clock.getDelayedCalls(), [])


class FailureTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.register(b"bob", b"carol")
        self.keep(b"bob", b"0")
        (self.first,) = self.taken()
        self.logged()

    def test_full_reading(self) -> None:
        """While the disk is full what was asked to be read is read, beside what cannot be written."""
        self.register(b"bob")
        self.keep(b"bob", b"hello")
        (number,) = self.taken()
        self.fill()
        for _ in range(2):
            self.keep(b"bob", bytes(60_000))
            self.store.load(b"bob", number, 1_000, self.done)
            self.store.forget(b"bob", number)
            refused, texts = sorted(self.taken(), key=lambda result: isinstance(result, list))
            self.assertIsInstance(refused, StoreProblem)
            self.assertEqual([text.data for text in texts], [b"hello"])

    def test_full(self) -> None:
        """While the disk is full all is refused with a clear text; then the numbers go on where they were."""
        self.fill()
        self.keep(b"bob", bytes(60_000))
        self.store.answered(b"S", 1, self.done)
        self.store.block(b"bob", b"x", self.done)
        d = self.store.account(b"bob")
        results = self.taken()
        self.assertEqual([str(result) for result in results], ["the store is full: no space left on the disk"] * 3)
        self.failureResultOf(d, StoreProblem)
        self.assertEqual(self.store.blocks, {})
        self.empty()
        self.keep(b"bob", b"1")
        self.assertEqual(self.taken(), [self.first + 1])
        self.assertEqual(self.texts(b"bob"), [b"0", b"1"])
        self.assertEqual((self.store.failures, self.store.pendingBytes), (1, 0))

    def test_toldOnce(self) -> None:
        """The operator is told when the store fails and when it works again, not of each transaction."""
        self.fill()
        for _ in range(3):
            self.keep(b"bob", bytes(60_000))
            self.store.waiting(b"bob", self.done)
            self.settle()
            self.store.waiting(b"bob", self.done)
            self.settle()
        self.assertEqual(self.logged(), ["The store does not work: the store is full: no space left on the disk"])
        self.empty()
        self.keep(b"bob", b"1")
        self.keep(b"bob", b"2")
        self.settle()
        self.assertEqual(self.logged(), ["The store works again"])

    def test_afterCommit(self) -> None:
        """After a transaction that failed it is told too that all is told."""
        self.store.setAfterCommit(lambda: self.results.append("after"))
        self.fill()
        self.keep(b"bob", bytes(60_000))
        problem, after = self.taken()
        self.assertIsInstance(problem, StoreProblem)
        self.assertEqual(after, "after")

    def lock(self) -> sqlite3.Connection:
        """Let another program hold on to the file."""
        other = sqlite3.connect(self.path, isolation_level=None)
        self.addCleanup(other.close)
        other.execute("BEGIN IMMEDIATE")
        return other

    def test_triedAgain(self) -> None:
        """Updates that nobody waits for are tried again after a while, in their order, each in its last form."""
        self.keep(b"bob", b"1")
        self.keep(b"bob", b"2")
        self.store.beginSession(b"bob", b"S1", b"", 0, self.done)
        self.store.beginSession(b"bob", b"S2", b"S1", 0, self.done)
        self.taken()
        other = self.lock()
        call = CallRecord(b"C", b"alice", b"carol", False, 1, None, 2, "no answer")
        for before in (2, 1):
            self.store.forget(b"bob", self.first + before)
            self.store.callEnded(call)
            self.store.missedCall(b"carol", MissedCall(b"C", b"alice", int(NOW * 1000)))
            self.store.sessionUsed(b"S2")
            self.store.sessionLost(b"S2")
            self.store.registered(b"dave")
            self.settle()
        self.store.putBack(b"bob", [(b"x", b"back")])
        self.settle()
        self.assertEqual(self.store.queueLength, 7)
        self.assertEqual(self.store.pendingBytes, 7 * module.OVERHEAD + len(b"back"))
        other.execute("ROLLBACK")
        self.clock.advance(RETRY_AFTER - 0.25)
        self.settle()
        self.assertEqual(self.store.queueLength, 7)
        self.clock.advance(0.25)
        self.settle()
        self.assertEqual((self.store.queueLength, self.store.pendingBytes, self.store.lost), (0, 0, 0))
        self.assertEqual(self.texts(b"bob"), [b"back", b"2"])
        admin = self.admin()
        self.assertEqual(admin.calls(10), [call])
        self.assertEqual([user.name for user in admin.users()], [b"bob", b"carol", b"dave"])
        self.assertEqual(admin._value("SELECT group_concat(hex(digest)) FROM session WHERE lostAt > 0"), "5332")
        self.store.waiting(b"carol", self.done)
        self.assertEqual(len(self.taken()[0].missedCalls), 1)

    def test_triedWithTheNext(self) -> None:
        """They are tried before whatever is asked next, so that this sees them."""
        other = self.lock()
        self.store.forget(b"bob", self.first + 1)
        self.settle()
        other.execute("ROLLBACK")
        self.store.waiting(b"bob", self.done)
        self.assertEqual(self.taken(), [Waiting(self.first + 1, self.first + 1, ())])
        self.clock.advance(RETRY_AFTER)
        self.settle()

    def test_triedAgainAtMost(self) -> None:
        """Past a bound they are given up, and counted."""
        for bound, most in (("MAX_RETRIED", 2), ("MAX_RETRIED_BYTES", 250)):
            self.patch(module, bound, most)
            other = self.lock()
            lost = self.store.lost
            for name in (b"a", b"b", b"c", b"d"):
                self.store.forget(name, 1)
                self.settle()
            self.assertEqual(self.store.lost - lost, 2)
            self.assertEqual(self.store.queueLength, 2)
            other.execute("ROLLBACK")
            self.clock.advance(RETRY_AFTER)
            self.settle()
            self.assertEqual((self.store.queueLength, self.store.pendingBytes), (0, 0))
            self.patch(module, bound, 10**9)

    def test_stop(self) -> None:
        """A store that fails can be stopped; the operator is told that something is lost."""
        self.lock()
        self.store.forget(b"bob", self.first + 1)
        self.settle()
        self.logged()
        self.stop()
        self.assertEqual(self.logged(), ["The store was closed while it did not work; 1 updates are lost"])
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_fault(self) -> None:
        """A fault of the store's own is logged with its traceback, and not tried again for ever."""
        self.store.forget(b"bob", "one")  # type: ignore[arg-type]
        self.keep(b"bob", b"1")
        (problem,) = self.taken()
        self.assertEqual(str(problem), "a fault in the store; it is logged")
        self.assertEqual(len(self.flushLoggedErrors(TypeError)), 1)
        self.keep(b"bob", b"1")
        self.assertEqual(self.taken(), [self.first + 1])
        self.assertEqual((self.store.lost, self.store.pendingBytes), (1, 0))

    def test_raises(self) -> None:
        """Where a C{done} that is told of a failure raises, that is logged and harms no other."""
        self.fill()

        def fail(result: object) -> None:
            raise ValueError("cake")

        self.store.keep(b"bob", b"a", bytes(60_000), b"", 0, fail)
        self.keep(b"bob", b"1")
        self.assertEqual(len(self.taken()), 1)
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)


class KnownTests(StoreTestCase):
    def test_registered(self) -> None:
        """Who has registered is known from that moment on, for 30 days, and after a restart too."""
        self.assertFalse(self.store.isKnown(b"bob"))
        self.store.registered(b"bob")
        self.assertTrue(self.store.isKnown(b"bob"))
        self.settle()
        self.reopen()
        self.assertEqual(self.store.knownUsers(), [b"bob"])
        self.clock.advance(30 * DAY)
        self.assertTrue(self.store.isKnown(b"bob"))
        self.clock.advance(0.125)
        self.assertFalse(self.store.isKnown(b"bob"))
        self.assertEqual(self.store.knownUsers(), [])
        self.register(b"bob")
        self.assertTrue(self.store.isKnown(b"bob"))

    def test_maxUsers(self) -> None:
        """Past the limit a newcomer is known when somebody was forgotten for him, who is known no more."""
        self.reopen(maxUsers=2)
        for name in (b"a", b"b", b"a"):
            self.register(name)
            self.clock.advance(1)
        self.store.registered(b"c")
        self.assertFalse(self.store.isKnown(b"c"))
        self.settle()
        self.assertEqual(set(self.store.knownUsers()), {b"a", b"c"})

    def test_nobodyToForget(self) -> None:
        """Where nobody can be forgotten the newcomer is not known, and has no session; nobody else suffers."""
        self.reopen(maxUsers=1)
        self.store.setOnline({b"a"}.__contains__)
        self.register(b"a")
        self.store.registered(b"b")
        self.store.beginSession(b"b", b"S", b"", 0, self.done)
        self.assertIsInstance(self.taken()[0], QueueFull)
        self.assertEqual(self.store.knownUsers(), [b"a"])

    def test_beginSession(self) -> None:
        """A session can begin before its user is said to have registered."""
        self.store.beginSession(b"bob", b"S", b"", 0, self.done)
        self.assertIsInstance(self.taken()[0], Begun)
        self.assertTrue(self.store.isKnown(b"bob"))

    def test_accounts(self) -> None:
        """With accounts, known is who has one: from its commit on, and without ever having registered."""
        self.reopen(accounts=True)
        self.register(b"bob")
        self.assertFalse(self.store.isKnown(b"bob"))
        d = self.store.addAccount(b"bob", "hash", "root")
        self.assertFalse(self.store.isKnown(b"bob"))
        self.settle()
        self.successResultOf(d)
        self.register(b"bob")
        self.clock.advance(31 * DAY)
        self.assertEqual(self.store.knownUsers(), [b"bob"])
        self.reopen(accounts=True)
        self.assertEqual(self.store.knownUsers(), [b"bob"])

    def test_withoutAccounts(self) -> None:
        """Without accounts who has one is known only by registering."""
        d = self.store.addAccount(b"bob", "hash", "root")
        self.settle()
        self.successResultOf(d)
        self.assertFalse(self.store.isKnown(b"bob"))
        self.register(b"bob")
        self.assertTrue(self.store.isKnown(b"bob"))

    def test_blocks(self) -> None:
        """Blocks are answered from memory as soon as they are committed, and after a restart."""
        self.register(b"bob")
        self.store.block(b"bob", b"eve", lambda result: self.results.append(dict(self.store.blocks)))
        self.store.block(b"bob", b"mallory", self.done)
        self.assertEqual(self.store.blocks, {})
        self.assertEqual(self.taken(), [{b"bob": {b"eve"}}, None])
        self.reopen()
        self.assertEqual(self.store.blocks, {b"bob": {b"eve", b"mallory"}})
        self.store.unblock(b"bob", b"eve", self.done)
        self.store.unblock(b"bob", b"mallory", self.done)
        self.store.block(b"nobody", b"eve", self.done)
        first, second, problem = self.taken()
        self.assertEqual((first, second), (None, None))
        self.assertIsInstance(problem, StoreProblem)
        self.assertEqual(self.store.blocks, {})

    def test_putBack(self) -> None:
        """What cannot be put back is counted and told to the operator."""
        self.register(b"bob")
        self.logged()
        self.store.putBack(b"bob", [(b"alice", b"x")])
        self.store.putBack(b"nobody", [(b"alice", b"x"), (b"alice", b"y")])
        self.settle()
        self.assertEqual(self.store.lost, 2)
        self.assertEqual(self.logged(), ["2 texts for 'nobody' are lost: too many wait for that user"])
        self.assertEqual(self.texts(b"bob"), [b"x"])


class AccountTests(StoreTestCase):
    def result(self, d: Deferred[T]) -> T:
        """What comes of it when it is committed."""
        self.assertNoResult(d)
        self.settle()
        return self.successResultOf(d)

    def test_accounts(self) -> None:
        """Accounts and tokens are kept, and what is refused says why."""
        store = self.store
        self.result(store.addAccount(b"bob", "1", "root"))
        for d, error in (
            (store.addAccount(b"bob", "1", "root"), AccountExists),
            (store.addAccount(b"carol", "1", "root", 1), QueueFull),
            (store.setPassword(b"carol", "1", "root"), NoSuchAccount),
        ):
            self.settle()
            self.failureResultOf(d, error)
        self.result(store.renewHash(b"bob", "1", "2"))
        self.assertEqual(self.result(store.account(b"bob")), Account(b"bob", "2", False))
        self.result(store.addToken(b"bob", b"T", NOW))
        self.assertEqual(self.result(store.token(b"T")), Token(b"bob", NOW))
        self.assertEqual(self.result(store.revokeTokens(b"bob", b"T", "bob")), 1)
        self.assertIsNone(self.result(store.token(b"T")))
        self.result(store.setPassword(b"bob", "3", "bob"))
        self.assertEqual([entry.action for entry in self.admin().audit(9)], ["password", "revoke", "add"])

    def test_closed(self) -> None:
        """A store that is closed says so."""
        self.stop()
        d = self.store.account(b"bob")
        self.settle()
        self.assertEqual(str(self.failureResultOf(d, StoreProblem).value), "the store is closed")


class OtherProcessTests(StoreTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.reopen(accounts=True)
        self.command = self.admin()
        self.changed: list[bytes] = []
        self.store.setAccountChanged(self.changed.append)
        self.store.start()
        self.settle()

    def change(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Let the admin command do something, and the time go by until it is noticed."""
        self.command.transact(function, *arguments)
        self.clock.advance(POLL_EVERY)
        self.settle()

    def test_changes(self) -> None:
        """An account that another process makes or removes is known or not, half a second later."""
        self.change(self.command.addAccount, b"bob", "hash", "root")
        self.assertTrue(self.store.isKnown(b"bob"))
        self.store.block(b"bob", b"eve", self.done)
        self.settle()
        self.assertEqual(self.changed, [])
        self.change(self.command.disable, b"bob", "root")
        self.assertEqual(self.changed, [b"bob"])
        self.assertTrue(self.store.isKnown(b"bob"))
        self.change(self.command.enable, b"bob", "root")
        self.change(self.command.setPassword, b"bob", "new", "root")
        self.assertEqual(self.changed, [b"bob"])
        self.change(self.command.deleteUser, b"bob", "root")
        self.assertEqual(self.changed, [b"bob", b"bob"])
        self.assertFalse(self.store.isKnown(b"bob"))
        self.assertEqual(self.store.blocks, {})

    def test_withTheNext(self) -> None:
        """It is noticed at once by whatever is asked, before that is told."""
        self.store.setAccountChanged(self.results.append)
        self.change(self.command.addAccount, b"bob", "hash", "root")
        self.command.transact(self.command.deleteUser, b"bob", "root")
        self.store.waiting(b"bob", lambda result: self.results.append("waiting"))
        self.assertEqual(self.taken(), [b"bob", "waiting"])

    def test_raises(self) -> None:
        """A listener that raises is logged, and harms nothing."""

        def fail(name: bytes) -> None:
            raise ValueError("cake")

        self.store.setAccountChanged(fail)
        self.change(self.command.addAccount, b"bob", "hash", "root")
        self.change(self.command.deleteUser, b"bob", "root")
        self.assertEqual(len(self.flushLoggedErrors(ValueError)), 1)
        self.assertFalse(self.store.isKnown(b"bob"))

    def test_deletedWithoutAccounts(self) -> None:
        """Without accounts a user who is deleted is forgotten."""
        self.reopen()
        self.store.setAccountChanged(self.changed.append)
        self.store.start()
        self.register(b"bob")
        self.change(self.command.deleteUser, b"bob", "root")
        self.assertEqual(self.changed, [b"bob"])
        self.assertFalse(self.store.isKnown(b"bob"))

    def test_pollFails(self) -> None:
        """A look that fails is told to the operator, and there is another one."""
        self.logged()
        poll = self.database.poll
        self.patch(self.database, "poll", maybeProblem)
        self.clock.advance(POLL_EVERY)
        self.settle()
        self.assertEqual(self.logged(), ["The store does not work: cake"])
        self.patch(self.database, "poll", poll)
        self.change(self.command.addAccount, b"bob", "hash", "root")
        self.assertTrue(self.store.isKnown(b"bob"))

    def test_onlyALook(self) -> None:
        """Where nothing has changed a look is no transaction."""
        commits = self.store.commits
        self.clock.pump([POLL_EVERY, 0, 0] * 10)
        self.assertEqual(self.store.commits, commits)


def maybeProblem() -> None:
    """Fail as the database does."""
    raise StoreProblem("cake")


class TidyTests(StoreTestCase):
    def tidy(self) -> None:
        """Let the time of the next tidying up come."""
        self.clock.advance(TIDY_EVERY)
        self.settle()
        self.settle()

    def test_expired(self) -> None:
        """At the start and every 10 minutes what is too old is removed, but nothing of those who are online."""
        online = {b"carol"}
        self.store.setOnline(online.__contains__)
        self.register(b"bob", b"carol", b"dave")
        self.keep(b"bob", b"0")
        self.keep(b"carol", b"1")
        self.store.beginSession(b"dave", b"S", b"", 0, self.done)
        self.store.sessionLost(b"S")
        self.store.block(b"dave", b"eve", self.done)
        self.settle()
        self.store.start()
        self.settle()
        self.assertEqual(self.admin().statistics().texts, 2)
        self.clock.advance(31 * DAY)
        self.tidy()
        s = self.admin().statistics()
        self.assertEqual((s.texts, s.sessions, s.users), (1, 0, 1))
        self.assertEqual(self.store.knownUsers(), [b"carol"])
        self.assertEqual(self.store.blocks, {})
        self.tidy()
        self.assertTrue(self.store.isKnown(b"carol"), "who stays online stays known")

    def test_steps(self) -> None:
        """Much is removed in many transactions."""
        self.patch(database, "STEP", 2)
        names = [b"user%d" % i for i in range(5)]
        self.register(*names)
        for name in names:
            self.keep(name, b"x")
            self.store.beginSession(name, name, b"", 0, self.done)
            self.store.sessionLost(name)
        self.settle()
        self.clock.advance(31 * DAY)
        self.store.start()
        for _ in range(5):
            self.settle()
        s = self.admin().statistics()
        self.assertEqual((s.texts, s.sessions, s.users), (0, 0, 0))

    def test_fails(self) -> None:
        """Tidying up that fails in any of its steps is begun anew the next time."""
        self.register(b"bob")
        self.store.start()
        self.settle()
        for name in ("expireTexts", "expire", "expireUsers"):
            function = getattr(self.database, name)
            self.patch(self.database, name, maybeFull)
            self.clock.advance(31 * DAY)
            self.settle()
            self.assertEqual(len(self.admin().users()), 1)
            self.patch(self.database, name, function)
        self.tidy()
        self.assertEqual(self.admin().users(), [])


def maybeFull(*arguments: object) -> None:
    """Fail as an operation does."""
    raise StoreProblem("cake")


KILLED = """
import sys
from twisted.internet import reactor
from wecompany.store import openStore

store = openStore(sys.argv[1], reactor)
store.start()
store.registered(b"bob")

def kept(n, result):
    print(n, result, flush=True)
    keep(n + 10)

def keep(n):
    store.keep(b"bob", b"alice", b"%d" % n, b"", 0, lambda result: kept(n, result))

for n in range(10):
    keep(n)
reactor.run()
"""


class ProcessTests(SynchronousTestCase):
    def run_(self, program: str, path: Path) -> subprocess.Popen[str]:
        """Run a program that uses the store."""
        root = Path(__file__).parent.parent
        process = subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE, text=True, cwd=root)
        self.addCleanup(process.stdout.close)  # type: ignore[union-attr]
        self.addCleanup(process.wait)
        self.addCleanup(process.kill)
        return process

    def test_killed(self) -> None:
        """What was acknowledged before the server was killed is in the file, once."""
        path = temporaryFolder(self) / "store.sqlite"
        process = self.run_(KILLED, path)
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(500)]
        process.send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
        acknowledged = {}
        for line in lines:
            if line.endswith("\n"):
                n, number = line.split()
                acknowledged[int(number)] = n.encode()
        self.assertGreaterEqual(len(acknowledged), 500)
        database = Database(path)
        self.addCleanup(database.close)
        database.serve()
        self.assertEqual(database.check(), [])
        texts = database.transact(database.load, b"bob", 0, 2**40)
        self.assertLessEqual(acknowledged.items(), {text.number: text.data for text in texts}.items())

    def test_reactor(self) -> None:
        """With a real reactor and a thread of its own the store works, and stops."""
        program = KILLED.replace("keep(n + 10)", "n < 100 or store.stop().addCallback(lambda _: stop())")
        program = program.replace(
            "for n in range(10):", "def stop():\n    print('stopped')\n    reactor.stop()\n\nfor n in (1, 100):"
        )
        process = self.run_(program, temporaryFolder(self) / "store.sqlite")
        output, _ = process.communicate(timeout=30)
        lines = output.splitlines()
        self.assertEqual([line.split()[0] for line in lines], ["1", "100", "stopped"])
        self.assertEqual(process.returncode, 0)

    def test_cannotOpen(self) -> None:
        """A store that cannot be opened says so at once, and one that another server has."""
        path = temporaryFolder(self) / "store.sqlite"
        self.assertRaises(StoreProblem, openStore, path / "x", Clock())
        database = Database(path)
        self.addCleanup(database.close)
        database.serve()
        self.assertRaises(StoreProblem, openStore, path, Clock())
