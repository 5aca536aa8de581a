"""
The store as the reactor sees it: nothing here blocks.

What is asked is gathered while the one writer thread is busy, and then done in one transaction: the more there is to
do, the more is done at a time.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from collections.abc import Set as AbstractSet
from functools import partial
from itertools import islice
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IDelayedCall, IReactorFromThreads, IReactorTime
from twisted.internet.threads import deferToThreadPool
from twisted.logger import Logger
from twisted.python.failure import Failure
from twisted.python.threadpool import ThreadPool
from zope.interface import implementer

from wecompany.database import (
    KNOWN_FOR,
    MAX_QUEUED_BYTES,
    MAX_QUEUED_TEXTS,
    MAX_SIZE,
    MAX_USERS,
    Change,
    Database,
    Outcome,
)
from wecompany.interfaces import (
    Account,
    Begun,
    CallRecord,
    IAccountStore,
    IStore,
    MissedCall,
    StoredText,
    StoreProblem,
    Token,
    Waiting,
)

T = TypeVar("T")

MAX_OPERATIONS = 10_000
"""Operations in one transaction."""

MAX_TRANSACTION = 16 * 2**20
"""About how many bytes one transaction writes."""

MAX_RETRIED = 100_000
"""Updates that wait for the store to work again.  What comes past that is lost."""

MAX_RETRIED_BYTES = 64 * 2**20
"""Bytes of texts among them."""

RETRY_AFTER = 5.0
"""Seconds after which what failed is tried again, if nothing else is asked before."""

POLL_EVERY = 0.5
"""Seconds between two looks at what another process has changed."""

TIDY_EVERY = 600.0
"""Seconds between two rounds of removing what is too old."""

SEEN_EVERY = 24 * 3600.0
"""Seconds after which it is written again that a user is online."""

OVERHEAD = 100
"""About how many bytes an operation takes beside its data."""

CLOSED = "the store is closed"


_Asked = tuple[Callable[..., Any], tuple[Any, ...], Callable[[Any], None] | None, int, Any, float]
"""
A method of L{Database} and its arguments, what is called with the result, about how many bytes it is, its key, and
when it was asked for.  Of two updates that have failed and have the same key one is enough; what has none is not tried
again where it fails.
"""


def _nothing() -> None:
    """Nobody wants to know."""


def _uncounted(what: str) -> None:
    """Nobody wants to know."""


def _ignore(userId: bytes) -> None:
    """Nobody wants to know."""


@implementer(IStore, IAccountStore)
class Store:
    """
    The store of one server.

    @ivar pendingBytes: see L{IStore}.
    @ivar isFailing: see L{IStore}.
    @ivar commits: transactions that succeeded.
    @ivar failures: transactions that failed.
    @ivar textsKept: texts that were committed.
    @ivar lastCommitSeconds: how long the last transaction took, from handing it over to its results.
    @ivar lost: updates that were given up as there were too many to try again, and texts put back into a full queue.
    """

    _log = Logger()

    def __init__(
        self,
        database: Database,
        clock: IReactorTime,
        runInThread: Callable[[Callable[[], T]], Deferred[T]],
        *,
        accounts: bool = False,
        maxUsers: int = MAX_USERS,
        queuedTexts: int = MAX_QUEUED_TEXTS,
        queuedBytes: int = MAX_QUEUED_BYTES,
        storeSize: int = MAX_SIZE,
        whenStopped: Callable[[], None] = _nothing,
    ) -> None:
        """
        Take the database for this server.  This blocks, but not for long.

        @param runInThread: calls a function in the thread that writes, one after the other, and fires in the reactor's
            thread with what it returns.
        @param accounts: whether known is who has an account.
        @param maxUsers: users without accounts who are remembered; 0 for any number, as in what follows.
        @param queuedTexts: texts that wait for one user.
        @param queuedBytes: bytes of texts that wait for one user.
        @param storeSize: bytes of the file in use, past which no text is kept.
        @param whenStopped: called when the database is closed.
        @raise StoreProblem: another server has the database, or it is damaged.
        """
        self._database = database
        self._clock = clock
        self._runInThread = cast(Callable[[Callable[[], Any]], Deferred[Any]], runInThread)
        self._accounts = accounts
        self._maxUsers = maxUsers
        self._whenStopped = whenStopped
        self.pendingBytes = 0
        self.commits = self.failures = self.textsKept = self.lost = 0
        self.lastCommitSeconds = 0.0
        served = database.serve(
            accounts=accounts,
            maxUsers=maxUsers,
            queuedTexts=queuedTexts,
            queuedBytes=queuedBytes,
            storeSize=storeSize,
        )
        self._known = served.known
        self._blocks = served.blocks
        self.blocks: Mapping[bytes, AbstractSet[bytes]] = self._blocks
        self._isOnline: Callable[[bytes], bool] = database.isOnline
        self._asked: list[_Asked] = []
        self._doing: list[_Asked] = []
        self._retried: dict[Any, _Asked] = {}
        self._isBusy = False
        self.isFailing = False
        self._isTidying = False
        self._isStopping = False
        self._soon: IDelayedCall | None = None
        self._timers: dict[Callable[[], None], IDelayedCall] = {}
        self._stopped: Deferred[None] = Deferred()
        self._afterCommit: Callable[[], None] = _nothing
        self._accountChanged: Callable[[bytes], None] = _ignore
        self._count: Callable[[str], None] = _uncounted

    @property
    def queueLength(self) -> int:
        """How many operations wait to be handed over."""
        return len(self._asked) + len(self._retried)

    @property
    def lagSeconds(self) -> float:
        """For how long the oldest operation waits to be committed; 0 if none does."""
        first = [queue[0][5] for queue in (self._doing, self._asked) if queue]
        first += [asked[5] for asked in islice(self._retried.values(), 1)]
        return max(0.0, self._clock.seconds() - min(first)) if first else 0.0

    # -- starting and stopping

    def start(self) -> None:
        """Begin to look after what other processes change, and to remove what is too old."""
        self._poll()
        self._tidy()

    def stop(self) -> Deferred[None]:
        """Take nothing more, commit everything, and close the database; fires when that is done."""
        if not self._isStopping:
            self._isStopping = True
            for timer in self._timers.values():
                timer.cancel()
            self._timers.clear()
            if not self._isBusy:
                self._handOver()
        result: Deferred[None] = Deferred()
        self._stopped.addCallback(result.callback)
        return result

    def _in(self, seconds: float, f: Callable[[], None]) -> None:
        if f not in self._timers and not self._isStopping:
            self._timers[f] = self._clock.callLater(seconds, self._timeIsUp, f)

    def _timeIsUp(self, f: Callable[[], None]) -> None:
        del self._timers[f]
        f()

    def setOnline(self, f: Callable[[bytes], bool]) -> None:
        """
        Let C{f} tell whether a user is registered, or is about to be from the moment on when the store is asked what
        waits: such users and texts for them do not expire.

        It is called in the thread that writes too: it must do no more than look into a C{dict} or the like.
        """
        self._isOnline = self._database.isOnline = f

    # -- IStore

    def isKnown(self, userId: bytes) -> bool:
        """See L{IStore.isKnown}."""
        seenAt = self._known.get(userId)
        return seenAt is not None and (self._accounts or seenAt >= self._clock.seconds() - KNOWN_FOR)

    def knownUsers(self) -> list[bytes]:
        """See L{IStore.knownUsers}."""
        return [userId for userId in self._known if self.isKnown(userId)]

    def setAfterCommit(self, f: Callable[[], None]) -> None:
        """See L{IStore.setAfterCommit}."""
        self._afterCommit = f

    def setCount(self, f: Callable[[str], None]) -> None:
        """See L{IStore.setCount}."""
        self._count = f

    def setAccountChanged(self, f: Callable[[bytes], None]) -> None:
        """See L{IStore.setAccountChanged}."""
        self._accountChanged = f

    def registered(self, userId: bytes) -> None:
        """See L{IStore.registered}."""
        isKnown = self._known.pop(userId, None) is not None
        if isKnown or not (self._accounts or (self._maxUsers and len(self._known) >= self._maxUsers)):
            self._known[userId] = self._clock.seconds()  # and so the longest absent stay in front
        done = partial(self._isRegistered, userId)
        self._ask(self._database.registered, (userId,), done, OVERHEAD, ("registered", userId))

    def _isRegistered(self, userId: bytes, result: tuple[bool, bytes | None]) -> None:
        isKnown, forgotten = result
        if forgotten is not None or not (isKnown or self._accounts):
            self._count("limits hit: users")
        if forgotten is not None:
            self._known.pop(forgotten, None)
        if not isKnown:
            self._known.pop(userId, None)
        elif userId not in self._known:
            self._known[userId] = self._clock.seconds()

    def keep(
        self,
        receiver: bytes,
        sender: bytes,
        data: bytes,
        session: bytes,
        taken: int,
        done: Callable[[int | StoreProblem], None],
    ) -> None:
        """See L{IStore.keep}."""
        now = int(self._clock.seconds() * 1000)
        arguments = (receiver, sender, now, data, session, taken)
        self._ask(self._database.keep, arguments, done, OVERHEAD + len(data))

    def keepAll(
        self,
        receivers: Sequence[bytes],
        sender: bytes,
        data: bytes,
        session: bytes,
        taken: int,
        done: Callable[[list[int | StoreProblem] | StoreProblem], None],
    ) -> None:
        """See L{IStore.keepAll}."""
        now = int(self._clock.seconds() * 1000)
        arguments = (receivers, sender, now, data, session, taken)
        self._ask(self._database.keepAll, arguments, done, OVERHEAD + len(receivers) * (OVERHEAD + len(data)))

    def answered(self, session: bytes, taken: int, done: Callable[[StoreProblem | None], None]) -> None:
        """See L{IStore.answered}."""
        self._ask(self._database.answered, (session, taken), done)

    def forget(self, receiver: bytes, before: int) -> None:
        """See L{IStore.forget}."""
        self._ask(self._database.forget, (receiver, before), None, OVERHEAD, receiver)

    def putBack(self, receiver: bytes, texts: Sequence[tuple[bytes, bytes]]) -> None:
        """See L{IStore.putBack}."""
        now = int(self._clock.seconds() * 1000)
        size = sum(OVERHEAD + len(data) for _, data in texts)
        done = partial(self._isPutBack, receiver)
        self._ask(self._database.putBack, (receiver, texts, now), done, size, object())

    def _isPutBack(self, receiver: bytes, leftOut: int) -> None:
        if leftOut:
            self.lost += leftOut
            self._log.warn(
                "{n} texts for {user!r} are lost: too many wait for that user", n=leftOut, user=receiver.decode()
            )

    def load(
        self, receiver: bytes, number: int, size: int, done: Callable[[list[StoredText] | StoreProblem], None]
    ) -> None:
        """See L{IStore.load}; L{MAX_LOADED<wecompany.database.MAX_LOADED>} texts at most."""
        self._ask(self._database.load, (receiver, number, size), done)

    def waiting(self, receiver: bytes, done: Callable[[Waiting | StoreProblem], None]) -> None:
        """See L{IStore.waiting}."""
        self._ask(self._database.waiting, (receiver,), done)

    def beginSession(
        self, userId: bytes, session: bytes, resumed: bytes, received: int, done: Callable[[Begun | StoreProblem], None]
    ) -> None:
        """
        See L{IStore.beginSession}.

        A user who is not known is remembered with that; fails with L{QueueFull<wecompany.interfaces.QueueFull>} if
        that cannot be, as there are too many.
        """
        if not self.isKnown(userId):
            self.registered(userId)
        self._ask(self._database.beginSession, (userId, session, resumed, received), done)

    def sessionUsed(self, session: bytes) -> None:
        """See L{IStore.sessionUsed}."""
        self._ask(self._database.sessionUsed, (session,), None, OVERHEAD, ("used", session))

    def sessionLost(self, session: bytes) -> None:
        """See L{IStore.sessionLost}."""
        self._ask(self._database.sessionLost, (session,), None, OVERHEAD, ("lost", session))

    def callEnded(self, call: CallRecord) -> None:
        """See L{IStore.callEnded}."""
        self._ask(self._database.callEnded, (call,), None, OVERHEAD, ("ended", call.callId))

    def missedCall(self, callee: bytes, call: MissedCall) -> None:
        """See L{IStore.missedCall}."""
        self._ask(self._database.missedCall, (callee, call), None, OVERHEAD, ("missed", callee, call.callId))

    def missedCallsTold(self, callee: bytes, calls: tuple[MissedCall, ...]) -> None:
        """See L{IStore.missedCallsTold}."""
        self._ask(self._database.missedCallsTold, (callee, calls), None, OVERHEAD, ("told", callee, calls))

    def counted(self, session: bytes, taken: int) -> None:
        """See L{IStore.counted}."""
        self._ask(self._database.answered, (session, taken), None, OVERHEAD, ("counted", session))

    def block(self, userId: bytes, other: bytes, done: Callable[[StoreProblem | None], None]) -> None:
        """See L{IStore.block}."""
        self._ask(self._database.block, (userId, other), partial(self._isBlocked, userId, other, True, done))

    def unblock(self, userId: bytes, other: bytes, done: Callable[[StoreProblem | None], None]) -> None:
        """See L{IStore.unblock}."""
        self._ask(self._database.unblock, (userId, other), partial(self._isBlocked, userId, other, False, done))

    def _isBlocked(
        self,
        userId: bytes,
        other: bytes,
        isBlocked: bool,
        done: Callable[[StoreProblem | None], None],
        result: StoreProblem | None,
    ) -> None:
        if result is None:
            others = set(self._blocks.get(userId, ()))
            (others.add if isBlocked else others.discard)(other)
            self._setBlocks(userId, others)
        done(result)

    def _setBlocks(self, userId: bytes, others: AbstractSet[bytes]) -> None:
        if others:
            self._blocks[userId] = set(others)
        else:
            self._blocks.pop(userId, None)

    # -- IAccountStore

    def account(self, userId: bytes) -> Deferred[Account | None]:
        """See L{IAccountStore.account}."""
        return self._defer(self._database.account, userId)

    def addAccount(self, userId: bytes, passwordHash: str, actor: str, most: int = 0) -> Deferred[None]:
        """See L{IAccountStore.addAccount}."""
        return self._defer(self._database.addAccount, userId, passwordHash, actor, most)

    def setPassword(self, userId: bytes, passwordHash: str, actor: str) -> Deferred[None]:
        """See L{IAccountStore.setPassword}."""
        return self._defer(self._database.setPassword, userId, passwordHash, actor)

    def renewHash(self, userId: bytes, oldHash: str, newHash: str) -> Deferred[None]:
        """See L{IAccountStore.renewHash}."""
        return self._defer(self._database.renewHash, userId, oldHash, newHash)

    def addToken(self, userId: bytes, digest: bytes, expiresAt: float) -> Deferred[None]:
        """See L{IAccountStore.addToken}; fails with L{NoSuchAccount} if there is none or it is disabled."""
        return self._defer(self._database.addToken, userId, digest, expiresAt)

    def token(self, digest: bytes) -> Deferred[Token | None]:
        """See L{IAccountStore.token}."""
        return self._defer(self._database.token, digest)

    def revokeTokens(self, userId: bytes, digest: bytes, actor: str) -> Deferred[int]:
        """See L{IAccountStore.revokeTokens}."""
        return self._defer(self._database.revokeTokens, userId, digest, actor)

    def _defer(self, function: Callable[..., T], *arguments: Any) -> Deferred[T]:
        result: Deferred[T] = Deferred()
        self._ask(function, arguments, partial(_fire, result))
        return result

    # -- to the writer and back

    def _ask(
        self,
        function: Callable[..., Any],
        arguments: tuple[Any, ...],
        done: Callable[[Any], None] | None,
        size: int = OVERHEAD,
        key: Any = None,
    ) -> None:
        if self._isStopping:
            if key is None and done is not None:
                self._clock.callLater(0, done, StoreProblem(CLOSED))
            return
        self.pendingBytes += size
        self._asked.append((function, arguments, done, size, key, self._clock.seconds()))
        if self._soon is None and not self._isBusy:
            self._soon = self._clock.callLater(0, self._handOver)

    def _handOver(self) -> None:
        """Give the writer something to do, if there is something."""
        if self._soon is not None and self._soon.active():
            self._soon.cancel()
        self._soon = None
        # What is only read goes alone while nothing can be written: who is online gets what waits, be the disk full.
        loads = [asked for asked in self._asked if self._isLoad(asked)] if self.isFailing else []
        if self._retried and not loads:
            self._asked[:0] = self._retried.values()
            self._retried.clear()
        if not self._asked:
            if self._isStopping:
                self._close()
            return
        batch = self._asked
        size = n = 0
        if loads:
            batch = loads
            self._asked = [asked for asked in self._asked if not self._isLoad(asked)]
        elif len(batch) > MAX_OPERATIONS or self.pendingBytes > MAX_TRANSACTION:
            for n, asked in enumerate(batch[:MAX_OPERATIONS], 1):
                size += asked[3]
                if size >= MAX_TRANSACTION:
                    break
            batch, self._asked = batch[:n], batch[n:]
        else:
            self._asked = []
        self._isBusy = True
        self._doing = batch
        d = self._runInThread(partial(self._database.run, batch))
        arguments = (batch, self._clock.seconds())
        d.addCallbacks(self._committed, self._failed, arguments, errbackArgs=arguments)
        d.addErrback(self._report)

    def _isLoad(self, asked: _Asked) -> bool:
        return asked[0] == self._database.load

    def _report(self, failure: Failure) -> None:
        self._log.failure("The store could not tell its results", failure)

    def _committed(self, outcome: Outcome, batch: list[_Asked], since: float) -> None:
        self.commits += 1
        self.textsKept += outcome.texts
        self.lastCommitSeconds = self._clock.seconds() - since
        self.pendingBytes -= sum([asked[3] for asked in batch])
        if outcome.hasWritten and self.isFailing:
            self.isFailing = False
            self._log.info("The store works again")
        self._change(outcome.changes)
        # The writer goes on before anyone hears of this: what follows from it comes into the transaction after that.
        self._isBusy = False
        self._doing = []
        self._handOver()
        for asked, result in zip(batch, outcome.results, strict=True):
            done = asked[2]
            if done is not None:
                try:
                    done(result)
                except Exception:  # noqa: BLE001 - one listener's fault is logged and harms no other
                    self._log.failure("What was to follow a commit failed")
        self._tellAfterCommit()

    def _failed(self, failure: Failure, batch: list[_Asked], since: float) -> None:
        self.failures += 1
        self.lastCommitSeconds = self._clock.seconds() - since
        problem = failure.value
        isFault = not isinstance(problem, StoreProblem)
        if isFault:
            self._log.failure("A fault in the store", failure)
            problem = StoreProblem("a fault in the store; it is logged")
        else:
            self._tellFailing(problem)
        answered = []
        isMixed = not (isFault or self._isStopping or all(map(self._isLoad, batch)))
        for asked in batch:
            if isMixed and self._isLoad(asked):
                self._asked.append(asked)
                continue
            if asked[4] is None:
                answered.append(asked)
            elif isFault or self._isStopping:
                self.lost += 1
            elif self._retry(asked):
                continue
            self.pendingBytes -= asked[3]
        self._isBusy = False
        self._doing = []
        if self._asked or self._isStopping:
            self._handOver()
        elif self._retried:
            self._in(RETRY_AFTER, self._tryAgain)
        for asked in answered:
            if asked[2] is not None:
                try:
                    asked[2](problem)
                except Exception:  # noqa: BLE001 - one listener's fault is logged and harms no other
                    self._log.failure("What was to follow a failure of the store failed")
        self._tellAfterCommit()

    def _tellAfterCommit(self) -> None:
        try:
            self._afterCommit()
        except Exception:  # noqa: BLE001 - one listener's fault is logged and harms no other
            self._log.failure("What was to follow all commits failed")

    def _tellFailing(self, problem: object) -> None:
        if not self.isFailing:
            self.isFailing = True
            self._log.error("The store does not work: {problem}", problem=str(problem))

    def _retry(self, asked: _Asked) -> bool:
        """Put an update among those that are tried again; return whether it is there now."""
        key = asked[4]
        before = self._retried.get(key)
        if before is not None:
            # The place of the earlier one, and the numbers of the one that forgets more.
            if asked[0] == self._database.forget:
                asked = max(before, asked, key=lambda forget: cast(int, forget[1][1]))
            self._retried[key] = asked
            return False
        if len(self._retried) >= MAX_RETRIED or self.pendingBytes > MAX_RETRIED_BYTES:
            self.lost += 1
            return False
        self._retried[key] = asked
        return True

    def _tryAgain(self) -> None:
        if not self._isBusy:
            self._handOver()

    def _close(self) -> None:
        self._isBusy = True
        self._runInThread(self._database.close).addErrback(self._report).addCallback(self._isClosed)

    def _isClosed(self, ignored: None) -> None:
        if self.isFailing:
            self._log.error("The store was closed while it did not work; {n} updates are lost", n=self.lost)
        self._whenStopped()
        self._stopped.callback(None)

    # -- what others change

    def _poll(self) -> None:
        self._in(POLL_EVERY, self._poll)
        if not (self._isBusy or self._asked or self._retried):
            self._isBusy = True
            self._runInThread(self._database.poll).addCallbacks(self._polled, self._notPolled).addErrback(self._report)

    def _polled(self, changes: list[Change]) -> None:
        self._isBusy = False
        self._handOver()
        self._change(changes)

    def _notPolled(self, failure: Failure) -> None:
        if failure.check(StoreProblem):
            self._tellFailing(failure.value)
        else:
            self._log.failure("A fault in the store", failure)
        self._isBusy = False
        self._handOver()

    def _change(self, changes: list[Change]) -> None:
        for change in changes:
            if not change.isKnown and (self._accounts or change.action == "delete"):
                self._known.pop(change.name, None)
            elif change.isKnown and self._accounts:
                self._known.setdefault(change.name, 0.0)
            self._setBlocks(change.name, change.blocks)
            if change.action in ("disable", "delete"):
                try:
                    self._accountChanged(change.name)
                except Exception:  # noqa: BLE001 - one listener's fault is logged and harms no other
                    self._log.failure("What was to follow a change of an account failed")

    # -- tidying up

    def _tidy(self) -> None:
        self._in(TIDY_EVERY, self._tidy)
        seenLongAgo = []
        for userId, seenAt in self._known.items():
            if seenAt > self._clock.seconds() - SEEN_EVERY:
                break
            if self._isOnline(userId):
                seenLongAgo.append(userId)
        for userId in seenLongAgo:
            self.registered(userId)
        if not self._isTidying:
            self._isTidying = True
            self._ask(self._database.expireTexts, (0,), self._textsExpired)

    def _textsExpired(self, result: int | StoreProblem | None) -> None:
        if isinstance(result, StoreProblem):
            self._isTidying = False
        elif result is not None:
            self._ask(self._database.expireTexts, (result,), self._textsExpired)
        else:
            self._ask(self._database.expire, (), self._expired)

    def _expired(self, result: bool | StoreProblem) -> None:
        if isinstance(result, StoreProblem):
            self._isTidying = False
        elif result:
            self._ask(self._database.expire, (), self._expired)
        else:
            self._ask(self._database.expireUsers, (), self._usersExpired)

    def _usersExpired(self, result: tuple[list[bytes], bool] | StoreProblem) -> None:
        if isinstance(result, StoreProblem):
            self._isTidying = False
            return
        forgotten, isMore = result
        for userId in forgotten:
            if not self.isKnown(userId):  # who has just registered again is remembered again with that
                self._known.pop(userId, None)
                self._blocks.pop(userId, None)
        if isMore:
            self._ask(self._database.expireUsers, (), self._usersExpired)
        else:
            self._isTidying = False


def _fire(result: Deferred[T], value: T | Exception) -> None:
    if isinstance(value, Exception):
        result.errback(value)
    else:
        result.callback(value)


def openStore(path: str | os.PathLike[str], reactor: IReactorTime, **options: Any) -> Store:
    """
    Open the store of a server, with a thread of its own.

    @param reactor: which runs in the thread that uses the store.
    @param options: as for L{Store}.
    @raise StoreProblem: it cannot be opened; the text says to an operator why, and what to do.
    """
    database = Database(path, reactor.seconds)
    threads = ThreadPool(0, 1, "store")
    fromThreads = cast(IReactorFromThreads, reactor)

    def runInThread(f: Callable[[], T]) -> Deferred[T]:
        return deferToThreadPool(fromThreads, threads, f)

    try:
        store = Store(database, reactor, runInThread, whenStopped=threads.stop, **options)
    except StoreProblem:
        database.close()
        raise
    threads.start()
    return store
