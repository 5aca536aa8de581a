"""Accounts: who is let in, who is held up, and what a user may do with the own account."""

from __future__ import annotations

import hashlib
import sys
from base64 import b64encode
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import module_from_spec, spec_from_file_location
from typing import Any, cast
from unittest import mock

from hypothesis import given
from hypothesis import strategies as st
from twisted.cred import error
from twisted.cred.checkers import AllowAnonymousAccess, ICredentialsChecker, InMemoryUsernamePasswordDatabaseDontUse
from twisted.cred.credentials import IUsernamePassword
from twisted.internet.defer import Deferred, fail, maybeDeferred
from twisted.internet.task import Clock
from twisted.logger import ILogObserver, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer
from zope.interface.verify import verifyObject

from tests import temporaryFolder
from wecompany import accounts
from wecompany.accounts import (
    CHECKER_TIMEOUT,
    HASHING_AT_ONCE,
    Accounts,
    LockOuts,
    Places,
    checkNewPassword,
    digestToken,
    hashPassword,
    isOutdated,
    isToken,
    makeToken,
    verifyPassword,
)
from wecompany.database import Database
from wecompany.interfaces import (
    Account,
    Attempt,
    IAccountStore,
    IAuthenticator,
    Refused,
    StoreProblem,
    Token,
)
from wecompany.limits import Limits
from wecompany.store import Store
from wecompany.wire import ErrorCode, MessageType, WireError

ALICE, BOB = b"alice", "bób".encode()
PASSWORD, OTHER = b"correct horse", "ein längeres Passwort".encode()
HERE, ELSEWHERE = "192.0.2.1", "198.51.100.7"
A_MOMENT = 1e-3

HEARTBEAT, LOGIN, SIGNUP = MessageType.HEARTBEAT, MessageType.LOGIN, MessageType.SIGNUP
BAD_CREDENTIAL, FORBIDDEN, OVERLOADED = ErrorCode.BAD_CREDENTIAL, ErrorCode.FORBIDDEN, ErrorCode.OVERLOADED

ARGON2 = "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHQ$"
"""The beginning of a hash that costs nothing."""


@implementer(IAccountStore)
class FileStore:
    """A real database, which answers at once; C{isBroken} makes it fail."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.isBroken = False
        self.asked: list[str] = []

    def _do(self, what: Callable[..., Any], *arguments: object) -> Deferred[Any]:
        self.asked.append(what.__name__)
        if self.isBroken:
            return fail(StoreProblem("the store is full"))
        return maybeDeferred(self.database.transact, what, *arguments)

    def account(self, userId: bytes) -> Deferred[Account | None]:
        return self._do(self.database.account, userId)

    def addAccount(self, userId: bytes, passwordHash: str, actor: str, most: int = 0) -> Deferred[None]:
        return self._do(self.database.addAccount, userId, passwordHash, actor, most)

    def setPassword(self, userId: bytes, passwordHash: str, actor: str) -> Deferred[None]:
        return self._do(self.database.setPassword, userId, passwordHash, actor)

    def renewHash(self, userId: bytes, oldHash: str, newHash: str) -> Deferred[None]:
        return self._do(self.database.renewHash, userId, oldHash, newHash)

    def addToken(self, userId: bytes, digest: bytes, expiresAt: float) -> Deferred[None]:
        return self._do(self.database.addToken, userId, digest, expiresAt)

    def token(self, digest: bytes) -> Deferred[Token | None]:
        return self._do(self.database.token, digest)

    def revokeTokens(self, userId: bytes, digest: bytes, actor: str) -> Deferred[int]:
        return self._do(self.database.revokeTokens, userId, digest, actor)


class Threads:
    """Runs what belongs into a thread at once, or when the test says so."""

    def __init__(self) -> None:
        self.isHeld = False
        self.ran = 0
        self.waiting: list[Deferred[None]] = []

    def __call__(self, f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        self.ran += 1
        if not self.isHeld:
            return maybeDeferred(f, *arguments)
        self.waiting.append(Deferred())
        return self.waiting[-1].addCallback(lambda _: f(*arguments))

    def release(self) -> None:
        """Run all that waits, and at once all that comes after that."""
        while self.waiting:
            self.waiting.pop(0).callback(None)
        self.isHeld = False


@implementer(ICredentialsChecker)
class Checker:
    """A checker of another system, whose answer the test gives."""

    credentialInterfaces = (IUsernamePassword,)

    def __init__(self, answer: object) -> None:
        self.answer = answer
        self.asked: list[tuple[bytes, bytes]] = []

    def requestAvatarId(self, credentials: Any) -> Any:
        self.asked.append((credentials.username, credentials.password))
        if isinstance(self.answer, Exception):
            raise self.answer
        return self.answer


def cheapHashes(test: SynchronousTestCase) -> None:
    """Let hashes cost nothing, as what is tested is not how long they take."""
    test.patch(accounts, "argon2", None)
    test.patch(accounts, "SCRYPT_LN", 1)


class PasswordTests(SynchronousTestCase):
    def test_bounds(self) -> None:
        """A password has 8 characters at least and 1,024 bytes at most, is UTF-8, and does not look like a token."""
        for password in (b"12345678", "äöüß爱丽丝!".encode(), b"x" * 1_024, b"wct_short", makeToken()[:-1]):
            checkNewPassword(password)
        for password in (b"", b"1234567", "äöüß爱丽丝".encode(), b"x" * 1_025, b"\xff" * 8, makeToken()):
            with self.assertRaises(WireError) as refused:
                checkNewPassword(password)
            self.assertEqual(refused.exception.code, ErrorCode.BAD_REQUEST)

    def test_scrypt(self) -> None:
        """Without argon2-cffi a password is hashed by scrypt with n = 2**14, r = 8, p = 1 and a salt of its own."""
        self.patch(accounts, "argon2", None)
        first, second = hashPassword(PASSWORD), hashPassword(PASSWORD)
        self.assertTrue(first.startswith("$scrypt$ln=14,r=8,p=1$"))
        self.assertNotEqual(first, second)
        self.assertTrue(verifyPassword(first, PASSWORD))
        self.assertTrue(verifyPassword(second, PASSWORD))
        self.assertFalse(verifyPassword(first, OTHER))
        self.assertFalse(isOutdated(first))

    def test_knownScrypt(self) -> None:
        """The stored form is that of others: RFC 7914's second example is verified."""
        expected = bytes.fromhex(
            "fdbabe1c9d3472007856e7190d01e9fe7c6ad7cbc8237830e77376634b373162"
            "2eaf30d92e22a3886ff109279d9830dac727afb94a83ee6d8360cbdfa2cc0640"
        )
        salt, hashed = (b64encode(raw).decode().rstrip("=") for raw in (b"NaCl", expected))
        self.assertTrue(verifyPassword(f"$scrypt$ln=10,r=8,p=16${salt}${hashed}", b"password"))

    def test_argon2(self) -> None:
        """With argon2-cffi a password is hashed by Argon2id with the library's defaults; scrypt's are outdated then."""
        hashed = hashPassword(PASSWORD)
        self.assertTrue(hashed.startswith("$argon2id$v=19$m=65536,t=3,p=4$"))
        self.assertTrue(verifyPassword(hashed, PASSWORD))
        self.assertFalse(verifyPassword(hashed, OTHER))
        self.assertFalse(isOutdated(hashed))
        with mock.patch.object(accounts, "argon2", None), mock.patch.object(accounts, "SCRYPT_LN", 1):
            scrypt = hashPassword(PASSWORD)
        self.assertTrue(verifyPassword(scrypt, PASSWORD))
        self.assertTrue(isOutdated(scrypt))
        self.assertTrue(isOutdated(hashed.replace("m=65536", "m=8")))

    def test_otherParameters(self) -> None:
        """Hashes of earlier parameters are verified, and outdated."""
        self.patch(accounts, "argon2", None)
        with mock.patch.object(accounts, "SCRYPT_LN", 1):
            old = hashPassword(PASSWORD)
        self.assertTrue(verifyPassword(old, PASSWORD))
        self.assertTrue(isOutdated(old))

    def test_cannot(self) -> None:
        """A hash that cannot be checked here says why, and is neither right nor wrong."""
        with mock.patch.object(accounts, "argon2", None), self.assertRaisesRegex(StoreProblem, r"wecompany\[auth\]"):
            verifyPassword(ARGON2 + "AAAA", PASSWORD)
        for strange in ("", "$md5$x", ARGON2 + "!", "$argon2x$", "$scrypt$ln=99,r=8,p=1$AAAA$AAAA"):
            with self.assertRaises(StoreProblem, msg=strange):
                verifyPassword(strange, PASSWORD)

    def test_notInstalled(self) -> None:
        """The module works where argon2-cffi is not installed."""
        spec = spec_from_file_location("accountsWithoutArgon2", accounts.__file__)
        assert spec is not None
        assert spec.loader is not None
        module = module_from_spec(spec)
        with mock.patch.dict(sys.modules, {"argon2": None}):
            spec.loader.exec_module(module)
        self.assertTrue(module.hashPassword(PASSWORD).startswith("$scrypt$"))

    def test_tokens(self) -> None:
        """A token is wct_ and 32 random bytes; nothing else looks like one."""
        token = makeToken()
        self.assertEqual((len(token), token[:4]), (47, b"wct_"))
        self.assertNotEqual(token, makeToken())
        self.assertTrue(isToken(token))
        for other in (token + b"\n", token + b"A", token[:-1], b"wcx" + token[3:], token[:-1] + b"=", b""):
            self.assertFalse(isToken(other), other)
        self.assertEqual(digestToken(token), hashlib.sha256(token).digest())


class LockOutTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()
        self.lockOuts = LockOuts(self.clock)

    def guess(self, isRight: bool | None = False, userId: bytes = ALICE, address: str = HERE) -> list[str]:
        """Let a password be checked; return what that locks."""
        self.lockOuts.begin(userId, address)
        return self.lockOuts.end(userId, address, isRight)

    def assertLocked(self, seconds: int, userId: bytes = ALICE, address: str = HERE) -> None:
        """A password is refused, and the text says for how long."""
        with self.assertRaises(Refused) as refused:
            self.lockOuts.begin(userId, address)
        self.assertEqual(refused.exception.code, OVERLOADED)
        self.assertEqual(refused.exception.text, f"too many wrong passwords: try again in {seconds} s")

    def test_account(self) -> None:
        """The tenth wrong password locks that account for that address for 300 s, and nobody else."""
        for _ in range(9):
            self.assertEqual(self.guess(), [])
        self.assertEqual(self.guess(), ["account"])
        self.assertLocked(300)
        self.assertEqual(self.guess(userId=BOB), [])
        self.assertEqual(self.guess(True, address=ELSEWHERE), [])
        self.clock.advance(300 - A_MOMENT)
        self.assertLocked(1)
        self.clock.advance(A_MOMENT)
        for _ in range(9):
            self.assertEqual(self.guess(), [])
        self.assertEqual(self.guess(), ["account"])

    def test_window(self) -> None:
        """Ten wrong passwords count together only if they are within 120 s."""
        self.guess()
        self.clock.advance(120 - A_MOMENT)
        for _ in range(8):
            self.guess()
        self.clock.advance(A_MOMENT)
        self.assertEqual(self.guess(), [])
        self.assertEqual(self.guess(), ["account"])

    def test_windowOfTheLastMoment(self) -> None:
        """The first of ten still counts just before 120 s have passed."""
        self.guess()
        self.clock.advance(120 - A_MOMENT)
        for _ in range(8):
            self.guess()
        self.assertEqual(self.guess(), ["account"])

    def test_success(self) -> None:
        """A right password clears the account's count at that address; nine more wrong ones lock nothing."""
        for _ in range(3):
            for _ in range(9):
                self.assertEqual(self.guess(), [])
            self.assertEqual(self.guess(True), [])

    def test_address(self) -> None:
        """The hundredth wrong password locks the address for whatever account, right ones in between or not."""
        for n in range(99):
            self.assertEqual(self.guess(userId=b"%d" % (n // 9)), [])
            self.guess(True, userId=b"mine")
        self.assertEqual(self.guess(userId=b"last"), ["address"])
        self.assertLocked(300)
        self.assertLocked(300, b"mine")
        self.assertEqual(self.guess(True, address=ELSEWHERE), [])
        self.clock.advance(300 - A_MOMENT)
        self.assertLocked(1)
        self.clock.advance(A_MOMENT)
        self.assertEqual(self.guess(), [])

    def test_addressWindow(self) -> None:
        """A hundred wrong passwords in more than 120 s lock no address."""
        self.guess(userId=b"first")
        self.clock.advance(120 - A_MOMENT)
        for n in range(98):
            self.guess(userId=b"%d" % (n // 9))
        self.clock.advance(A_MOMENT)
        self.assertEqual(self.guess(userId=b"x"), [])
        self.assertEqual(self.guess(userId=b"y"), ["address"])

    def test_both(self) -> None:
        """One wrong password can lock both."""
        for n in range(90):
            self.guess(userId=b"%d" % (n // 9))
        for _ in range(9):
            self.guess()
        self.assertEqual(self.guess(), ["account", "address"])

    def test_sideBySide(self) -> None:
        """Passwords being checked count as wrong: of many at once ten are heard, and each right one makes room."""
        for _ in range(10):
            self.lockOuts.begin(ALICE, HERE)
        with self.assertRaisesRegex(Refused, "at once"):
            self.lockOuts.begin(ALICE, HERE)
        self.lockOuts.end(ALICE, HERE, True)
        self.lockOuts.begin(ALICE, HERE)
        for _ in range(9):
            self.assertEqual(self.lockOuts.end(ALICE, HERE, False), [])
        self.assertEqual(self.lockOuts.end(ALICE, HERE, False), ["account"])

    def test_addressSideBySide(self) -> None:
        """Of many at once for different accounts a hundred are heard."""
        for n in range(100):
            self.lockOuts.begin(b"%d" % n, HERE)
        with self.assertRaisesRegex(Refused, "at once"):
            self.lockOuts.begin(ALICE, HERE)
        self.lockOuts.begin(ALICE, ELSEWHERE)

    def test_nobodyKnows(self) -> None:
        """A password that could not be checked counts for nothing, and nothing of it is remembered."""
        for _ in range(200):
            self.guess(None)
        self.assertEqual(len(self.lockOuts), 0)

    def test_rest(self) -> None:
        """Nothing is remembered of right passwords, nor of wrong ones and lock-outs when they have lapsed."""
        self.guess(True)
        self.assertEqual(len(self.lockOuts), 0)
        for _ in range(10):
            self.guess()
        self.guess(userId=BOB, address=ELSEWHERE)
        self.assertEqual(len(self.lockOuts), 4)
        self.clock.advance(120)
        self.guess(True, BOB)
        self.assertEqual(len(self.lockOuts), 1)
        self.clock.advance(180)
        self.guess(True)
        self.assertEqual(len(self.lockOuts), 0)

    def test_networks(self) -> None:
        """IPv6 counts by /64, and an IPv4 address in the form of IPv6 as itself."""
        for n in range(10):
            self.guess(address=f"2001:db8:0:1:{n}::1")
        self.assertLocked(300, address="2001:db8:0:1:ffff:ffff:ffff:ffff")
        self.assertEqual(self.guess(address="2001:db8:0:2::"), [])
        for _ in range(9):
            self.guess(address=f"::ffff:{HERE}")
        self.assertEqual(self.guess(address=HERE), ["account"])
        self.assertEqual(self.guess(address=f"::ffff:{ELSEWHERE}"), [])
        self.assertEqual(self.guess(address="a UNIX socket"), [])

    def test_bounded(self) -> None:
        """From however many addresses the guesses come, no more is remembered than the bound; the oldest goes."""
        lockOuts = self.lockOuts = LockOuts(self.clock, 10)
        for _ in range(10):
            self.guess()
        for n in range(1_000):
            self.guess(address=f"10.0.{n // 256}.{n % 256}")
            self.assertLessEqual(len(lockOuts), 10)
        self.assertEqual(len(lockOuts), 10)
        self.assertLocked(300)

    def test_boundedByLast(self) -> None:
        """The one whose last wrong password is the oldest is forgotten, not the one that began first."""
        self.lockOuts = LockOuts(self.clock, 4)
        for address in (HERE, ELSEWHERE, HERE, "203.0.113.1"):
            self.guess(address=address)
        for _ in range(7):
            self.assertEqual(self.guess(address=HERE), [])
        self.assertEqual(self.guess(address=HERE), ["account"])

    def test_boundedLocks(self) -> None:
        """Where all that is remembered is locked, the lock-out that ends first is forgotten for a new one."""
        lockOuts = self.lockOuts = LockOuts(self.clock, 20)
        for n in range(40):
            for _ in range(10):
                self.guess(address=f"10.0.0.{n}")
                self.assertLessEqual(len(lockOuts), 20)
        self.assertLocked(300, address="10.0.0.39")
        self.assertEqual(self.guess(address="10.0.0.0"), [])

    def test_boundKeepsPending(self) -> None:
        """What is being checked is never forgotten, even past the bound."""
        lockOuts = LockOuts(self.clock, 1)
        for n in range(5):
            lockOuts.begin(ALICE, f"10.0.0.{n}")
        self.assertEqual(len(lockOuts), 10)
        for n in range(5):
            lockOuts.end(ALICE, f"10.0.0.{n}", True)
        self.assertEqual(len(lockOuts), 0)

    @given(st.lists(st.tuples(st.floats(0, 200), st.sampled_from([ALICE, BOB]), st.booleans()), max_size=60))
    def test_neverMoreThanTen(self, attempts: list[tuple[float, bytes, bool]]) -> None:
        """In whatever order they come, within 120 s no more than ten wrong passwords in a row are heard."""
        clock = Clock()
        lockOuts = LockOuts(clock)
        heard: dict[bytes, list[float]] = {ALICE: [], BOB: []}
        for seconds, userId, isRight in attempts:
            clock.advance(seconds / 10)
            now = clock.seconds()
            try:
                lockOuts.begin(userId, HERE)
            except Refused:
                continue
            lockOuts.end(userId, HERE, isRight)
            heard[userId] = [] if isRight else [at for at in heard[userId] if now - at < 120] + [now]
            self.assertLessEqual(len(heard[userId]), 10)


class PlacesTests(SynchronousTestCase):
    """Who gets a place to wait for a hash."""

    def setUp(self) -> None:
        self.refused = 0
        self.places = self.make(64)
        self.held = ExitStack()
        self.addCleanup(self.held.close)

    def make(self, most: int) -> Places:
        return Places(most, self.count)

    def count(self, what: str, n: int) -> None:
        self.assertEqual(what, "limits hit: hashing")
        self.refused += n

    def take(self, userId: bytes = ALICE, address: str = HERE) -> None:
        self.held.enter_context(self.places.take(userId, address))

    def assertRefused(self, userId: bytes = ALICE, address: str = HERE) -> None:
        before = self.refused
        with self.assertRaises(Refused) as caught:
            self.take(userId, address)
        self.assertEqual((caught.exception.code, self.refused - before), (OVERLOADED, 1))

    def fill(self) -> None:
        """Take all places that strangers may have."""
        for n in range(32):
            self.take(b"nobody %d" % n, ELSEWHERE)

    def test_kept(self) -> None:
        """Half of them is kept for those who have been let in to the account from the network before."""
        for n in range(40):
            self.places.letIn(b"user %d" % n, HERE)
        self.fill()
        self.assertRefused(address=ELSEWHERE)
        self.assertRefused(b"user 0", ELSEWHERE)
        for n in range(32):
            self.take(b"user %d" % n)
        self.assertRefused(b"user 39")
        self.held.close()
        self.fill()

    def test_ofAccount(self) -> None:
        """An account has at most four of those that are kept, and sixteen of the others, which anybody may have."""
        self.places.letIn(ALICE, HERE)
        for _ in range(16):
            self.take(address=ELSEWHERE)
        self.assertRefused(address=ELSEWHERE)
        for _ in range(4):
            self.take()
        self.assertRefused()
        self.take(BOB)
        self.held.close()
        for _ in range(20):
            self.take()
        self.assertRefused(address=ELSEWHERE)

    def test_networks(self) -> None:
        """Of an account the eight latest networks are remembered; IPv6 counts by /64."""
        for n in range(8):
            self.places.letIn(ALICE, f"2001:db8:0:{n}::1")
        self.places.letIn(ALICE, "2001:db8:0:0::2")
        self.places.letIn(ALICE, HERE)
        self.fill()
        self.take(address="2001:db8:0:0::3")
        self.assertRefused(address="2001:db8:0:1::1")
        self.take(address="2001:db8:0:7::1")

    def test_bounded(self) -> None:
        """Of so many accounts that is remembered and no more, those that came last."""
        self.patch(accounts, "MOST_KNOWN", 2)
        for userId in (ALICE, BOB, ALICE, b"carol"):
            self.places.letIn(userId, HERE)
        self.fill()
        self.take()
        self.take(b"carol")
        self.assertRefused(BOB)

    def test_few(self) -> None:
        """Of a single place nothing can be kept, and without the limit all have one."""
        self.places = self.make(1)
        self.take()
        self.assertRefused(BOB)
        self.places = self.make(0)
        for _ in range(100):
            self.take()


class StoreTests(SynchronousTestCase):
    """The same with the server's own store, whose answers come later."""

    def setUp(self) -> None:
        cheapHashes(self)
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.database = Database(temporaryFolder(self) / "wecompany.sqlite", self.clock.seconds)
        self.store = Store(self.database, self.clock, maybeDeferred, accounts=True)
        self.store.start()
        self.accounts = Accounts(
            self.store, self.clock, maybeDeferred, signup=True, wallClock=self.clock.seconds, limits=Limits()
        )

    def tearDown(self) -> None:
        stopped = self.store.stop()
        self.clock.pump([0] * 20)
        self.successResultOf(stopped)

    def ask(self, messageType: int, credential: bytes, userId: bytes = ALICE) -> Deferred[bytes]:
        """Let somebody register, and everything happen that follows."""
        asked = self.accounts.authenticate(Attempt(userId, credential, messageType, HERE))
        self.clock.pump([0] * 20)
        return asked

    def command(self, data: bytes) -> bytes:
        """Let alice give a command."""
        asked = self.accounts.accountCommand(ALICE, HERE, data)
        self.clock.pump([0] * 20)
        return self.successResultOf(asked)

    def refused(self, code: ErrorCode, messageType: int, credential: bytes, userId: bytes = ALICE) -> None:
        refused = self.failureResultOf(self.ask(messageType, credential, userId), Refused).value
        self.assertEqual(refused.code, code, refused.text)

    def test_everything(self) -> None:
        """Somebody signs up, logs in with password and token, sets another password, logs out, and is disabled."""
        first = self.successResultOf(self.ask(SIGNUP, PASSWORD))
        self.refused(FORBIDDEN, SIGNUP, OTHER)
        self.refused(BAD_CREDENTIAL, LOGIN, OTHER)
        self.refused(BAD_CREDENTIAL, LOGIN, PASSWORD, BOB)
        self.assertEqual(self.successResultOf(self.ask(HEARTBEAT, PASSWORD)), b"")
        self.assertEqual(self.successResultOf(self.ask(HEARTBEAT, first)), b"")
        self.command(b"\1" + len(PASSWORD).to_bytes(2, "big") + PASSWORD + OTHER)
        self.refused(BAD_CREDENTIAL, HEARTBEAT, first)
        second = self.successResultOf(self.ask(LOGIN, OTHER))
        self.assertEqual(self.command(b"\0" + second), b"1 token revoked")
        self.refused(BAD_CREDENTIAL, LOGIN, second)
        self.database.transact(self.database.disable, ALICE, "test")
        self.refused(FORBIDDEN, LOGIN, OTHER)
        self.refused(BAD_CREDENTIAL, LOGIN, PASSWORD)

    def test_mostAccounts(self) -> None:
        """Past the most accounts the store refuses, and nobody signs up."""
        self.accounts = Accounts(
            self.store, self.clock, maybeDeferred, signup=True, limits=Limits().changed("accounts=1")
        )
        self.successResultOf(self.ask(SIGNUP, PASSWORD))
        self.refused(OVERLOADED, SIGNUP, PASSWORD, BOB)

    def test_sideBySide(self) -> None:
        """Of two who sign up by the same name at once one is told that it is taken."""
        both = [self.accounts.authenticate(Attempt(ALICE, PASSWORD, SIGNUP, HERE)) for _ in range(2)]
        self.clock.pump([0] * 20)
        self.successResultOf(both[0])
        self.assertEqual(self.failureResultOf(both[1], Refused).value.code, FORBIDDEN)


class AccountsCase(SynchronousTestCase):
    """Alice has an account."""

    def setUp(self) -> None:
        cheapHashes(self)
        self.clock = Clock()
        self.clock.advance(1_000_000)
        self.threads = Threads()
        path = temporaryFolder(self) / "wecompany.sqlite"
        self.database = Database(path, self.clock.seconds)
        self.addCleanup(self.database.close)
        self.database.serve(accounts=True)
        self.store = FileStore(self.database)
        self.counters: Counter[str] = Counter()
        self.logged: list[str] = []
        observer = cast(ILogObserver, lambda event: self.logged.append(repr(event)))
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        self.accounts = self.make()
        self.database.transact(self.database.addAccount, ALICE, hashPassword(PASSWORD), "test")

    def make(self, **options: Any) -> Accounts:
        """Return accounts of the same store with other options."""
        options = {"store": self.store, "wallClock": self.clock.seconds, "count": self.count, **options}
        return Accounts(options.pop("store"), self.clock, self.threads, **options)

    def count(self, what: str, n: int) -> None:
        self.counters[what] += n

    def attempt(
        self,
        credential: bytes = PASSWORD,
        messageType: int = HEARTBEAT,
        userId: bytes = ALICE,
        address: str = HERE,
        names: frozenset[bytes] = frozenset(),
    ) -> Deferred[bytes]:
        return self.accounts.authenticate(Attempt(userId, credential, messageType, address, names))

    def letIn(self, *arguments: Any, **more: Any) -> bytes:
        """Somebody is let in; return the new token."""
        return self.successResultOf(self.attempt(*arguments, **more))

    def refused(self, code: ErrorCode, *arguments: Any, **more: Any) -> str:
        """Somebody is not let in; return what is said."""
        refused: Refused = self.failureResultOf(self.attempt(*arguments, **more), Refused).value
        self.assertEqual(refused.code, code, refused.text)
        return refused.text

    def passwordHash(self, userId: bytes = ALICE) -> str:
        account = self.database.account(userId)
        assert account is not None
        return account.passwordHash


class AuthenticateTests(AccountsCase):
    def test_interface(self) -> None:
        """Accounts are what the hub asks for."""
        verifyObject(IAuthenticator, self.accounts)
        verifyObject(IAccountStore, self.store)

    def test_password(self) -> None:
        """The right password lets in, without a token; a wrong one does not."""
        self.assertEqual(self.letIn(), b"")
        self.assertEqual(self.refused(BAD_CREDENTIAL, OTHER), "wrong user ID or password")
        self.assertEqual(self.counters["registered by password"], 1)
        self.assertEqual(self.counters["wrong passwords"], 1)

    def test_nobody(self) -> None:
        """Nobody and a wrong password are told the same, and both cost one hash of the same parameters."""
        self.letIn()
        checked: list[str] = []
        real = verifyPassword

        def verify(passwordHash: str, password: bytes) -> bool:
            checked.append(passwordHash.rpartition("$")[0].rpartition("$")[0])
            return real(passwordHash, password)

        self.patch(accounts, "verifyPassword", verify)
        self.assertEqual(self.refused(BAD_CREDENTIAL, userId=b"nobody"), self.refused(BAD_CREDENTIAL, OTHER))
        self.assertEqual(checked, ["$scrypt$ln=1,r=8,p=1"] * 2)

    def test_empty(self) -> None:
        """Without a credential nobody is let in, and that is no guess."""
        for _ in range(200):
            self.refused(BAD_CREDENTIAL, b"")
        self.letIn()

    def test_long(self) -> None:
        """A credential of more than 1,024 bytes is refused without a look; one of 1,024 is a password."""
        self.refused(BAD_CREDENTIAL, b"x" * 1_025)
        self.assertEqual(self.threads.ran, 0)
        self.refused(BAD_CREDENTIAL, b"x" * 1_024)
        self.assertEqual(self.threads.ran, 1)

    def test_certificate(self) -> None:
        """A certificate lets in whom it names and nobody else, and a wrong password beside it is wrong."""
        names = frozenset([ALICE])
        self.assertEqual(self.letIn(b"", names=names), b"")
        self.refused(BAD_CREDENTIAL, b"", userId=BOB, names=names)
        self.refused(BAD_CREDENTIAL, OTHER, names=names)
        self.assertTrue(isToken(self.letIn(b"", LOGIN, names=names)))

    def test_disabled(self) -> None:
        """A disabled user learns so with the right password, token or certificate, and not with a wrong one."""
        token = self.letIn(messageType=LOGIN)
        self.database.transact(self.database.disable, ALICE, "test")
        self.assertEqual(self.refused(BAD_CREDENTIAL, OTHER), "wrong user ID or password")
        for messageType in (HEARTBEAT, LOGIN):
            self.assertEqual(self.refused(FORBIDDEN, PASSWORD, messageType), "this account is disabled")
            self.assertEqual(
                self.refused(FORBIDDEN, b"", messageType, names=frozenset([ALICE])), "this account is disabled"
            )
        self.refused(BAD_CREDENTIAL, token)

    def test_changedMeanwhile(self) -> None:
        """Whoever is disabled, deleted, or given another password while a password is hashed does not get in."""
        changes: list[tuple[Callable[[], object], ErrorCode]] = [
            (lambda: self.database.disable(ALICE, "test"), FORBIDDEN),
            (lambda: self.database.setPassword(ALICE, hashPassword(OTHER), "test"), OVERLOADED),
            (lambda: self.database.deleteUser(ALICE, "test"), BAD_CREDENTIAL),
        ]
        for change, code in changes:
            for messageType in (HEARTBEAT, LOGIN):
                self.threads.isHeld = True
                attempt = self.attempt(PASSWORD, messageType)
                self.database.transact(change)
                self.threads.release()
                self.assertEqual(self.failureResultOf(attempt, Refused).value.code, code)
                if self.database.account(ALICE) is not None:
                    self.database.transact(self.database.deleteUser, ALICE, "test")
                self.database.transact(self.database.addAccount, ALICE, hashPassword(PASSWORD), "test")

    def test_storeFails(self) -> None:
        """When the store cannot tell that is said, and is no wrong password."""
        self.store.isBroken = True
        for _ in range(20):
            self.failureResultOf(self.attempt(), StoreProblem)
            self.failureResultOf(self.attempt(makeToken()), StoreProblem)
        self.store.isBroken = False
        self.letIn()

    def test_unknownHash(self) -> None:
        """A hash that cannot be checked here is no wrong password, and the log says what to install."""
        self.database.transact(self.database.setPassword, ALICE, ARGON2 + "AAAA", "test")
        for _ in range(20):
            self.failureResultOf(self.attempt(), StoreProblem)
        self.assertIn("wecompany[auth]", "".join(self.logged))

    def test_renewed(self) -> None:
        """A hash of weaker parameters is replaced when its password was right, once, and only then."""
        old = self.passwordHash()
        self.patch(accounts, "SCRYPT_LN", 2)
        self.refused(BAD_CREDENTIAL, OTHER)
        self.assertEqual(self.passwordHash(), old)
        token = self.letIn(messageType=LOGIN)
        new = self.passwordHash()
        self.assertTrue(new.startswith("$scrypt$ln=2,"))
        self.letIn()
        self.letIn(token)
        self.assertEqual(self.passwordHash(), new)

    def test_letInBeforeRenewed(self) -> None:
        """A user is let in before the better hash is there, so that nothing can happen between the check and that."""
        old = self.passwordHash()
        self.patch(accounts, "SCRYPT_LN", 2)
        self.threads.isHeld = True
        attempt = Attempt(ALICE, PASSWORD, HEARTBEAT, HERE)
        letIn = self.accounts.authenticate(attempt)
        self.threads.waiting.pop(0).callback(None)
        self.assertEqual(self.successResultOf(letIn), b"")
        self.assertEqual(self.passwordHash(), old)
        self.threads.release()
        self.assertNotEqual(self.passwordHash(), old)

    def test_notRenewed(self) -> None:
        """If the better hash cannot be stored the user is let in nevertheless."""
        self.patch(accounts, "SCRYPT_LN", 2)
        self.patch(self.store, "renewHash", lambda *arguments: fail(StoreProblem("the store is full")))
        self.letIn()
        self.assertIn("the store is full", "".join(self.logged))

    def test_secrets(self) -> None:
        """Neither passwords nor tokens stand in the log or in what a client is told; users are shown quoted."""
        token = self.letIn(messageType=LOGIN)
        said = [self.refused(BAD_CREDENTIAL, OTHER), self.refused(BAD_CREDENTIAL, makeToken())]
        self.refused(BAD_CREDENTIAL, OTHER, userId=b"evil\x1b")
        self.accounts = self.make(signup=True)
        self.letIn(OTHER, SIGNUP, BOB)
        everything = "".join(self.logged + said)
        self.assertIn("Wrong password", everything)
        for secret in (PASSWORD, OTHER, token):
            self.assertNotIn(secret.decode(), everything)


class TokenTests(AccountsCase):
    def test_token(self) -> None:
        """LOGIN gives a token, which lets that user in, gives another one at the next LOGIN, and stays valid."""
        first = self.letIn(messageType=LOGIN)
        self.assertTrue(isToken(first))
        self.assertEqual(self.letIn(first), b"")
        second = self.letIn(first, LOGIN)
        self.assertNotEqual(first, second)
        for token in (first, second):
            self.letIn(token)
        self.assertEqual(self.counters["registered by token"], 4)

    def test_digest(self) -> None:
        """Only a token's SHA-256 is stored."""
        token = self.letIn(messageType=LOGIN)
        stored = self.database.token(hashlib.sha256(token).digest())
        self.assertEqual(stored, Token(ALICE, 1_000_000 + 86_400))
        for path in self.database.path.parent.iterdir():
            self.assertNotIn(token[4:], path.read_bytes())

    def test_otherUser(self) -> None:
        """A token lets in nobody but its user."""
        token = self.letIn(messageType=LOGIN)
        self.database.transact(self.database.addAccount, BOB, hashPassword(OTHER), "test")
        self.refused(BAD_CREDENTIAL, token, userId=BOB)

    def test_expires(self) -> None:
        """A token is valid until its lifetime is over."""
        self.accounts = self.make(tokenLifetime=100)
        token = self.letIn(messageType=LOGIN)
        self.clock.advance(100 - A_MOMENT)
        self.letIn(token)
        self.clock.advance(A_MOMENT)
        self.assertEqual(
            self.refused(BAD_CREDENTIAL, token),
            "this token has expired or is revoked: log in with the password",
        )
        self.assertEqual(self.counters["tokens refused"], 1)

    def test_notCounted(self) -> None:
        """Tokens that are not valid lock nobody out, and no password is hashed for them."""
        for _ in range(200):
            self.refused(BAD_CREDENTIAL, makeToken())
        self.assertEqual(self.threads.ran, 0)
        self.letIn()

    def test_throughLockOut(self) -> None:
        """A valid token is never refused by a lock-out, nor when too many passwords wait."""
        token = self.letIn(messageType=LOGIN)
        for _ in range(10):
            self.refused(BAD_CREDENTIAL, OTHER)
        self.refused(OVERLOADED)
        self.letIn(token)
        self.accounts = self.make(limits=Limits().changed("hashing=1"))
        self.threads.isHeld = True
        self.attempt()
        self.refused(OVERLOADED)
        self.letIn(token)

    def test_deleted(self) -> None:
        """A deleted user's tokens let nobody in."""
        token = self.letIn(messageType=LOGIN)
        self.database.transact(self.database.deleteUser, ALICE, "test")
        self.refused(BAD_CREDENTIAL, token)


class GuessTests(AccountsCase):
    def test_lockedOut(self) -> None:
        """After ten wrong passwords the right one is refused there for 300 s, and elsewhere is not."""
        for _ in range(10):
            self.refused(BAD_CREDENTIAL, OTHER)
        ran = self.threads.ran
        self.assertEqual(self.refused(OVERLOADED), "too many wrong passwords: try again in 300 s")
        self.assertEqual(self.threads.ran, ran)
        self.letIn(address=ELSEWHERE)
        self.clock.advance(300 - A_MOMENT)
        self.refused(OVERLOADED)
        self.clock.advance(A_MOMENT)
        self.letIn()
        self.assertEqual(self.counters["lock-outs: account"], 1)
        self.assertEqual(self.counters["passwords refused: locked out"], 2)

    def test_nobodyIsLockedToo(self) -> None:
        """An account that does not exist is locked out like any other, so that nothing is revealed."""
        for _ in range(10):
            self.refused(BAD_CREDENTIAL, userId=b"nobody")
        self.refused(OVERLOADED, userId=b"nobody")

    def test_address(self) -> None:
        """A hundred wrong passwords for whatever accounts lock the address."""
        for n in range(100):
            self.refused(BAD_CREDENTIAL, userId=b"user%d" % n)
        self.refused(OVERLOADED)
        self.letIn(address=ELSEWHERE)
        self.assertEqual(self.counters["lock-outs: address"], 1)
        self.assertEqual(sum("locked out" in event for event in self.logged), 1)

    def test_atOnce(self) -> None:
        """Of many guesses at once ten are checked, and whoever goes before the answer has guessed nevertheless."""
        self.threads.isHeld = True
        guesses = [self.attempt(OTHER) for _ in range(10)]
        self.refused(OVERLOADED, OTHER)
        for guess in guesses:
            guess.cancel()
            self.failureResultOf(guess)
        self.refused(OVERLOADED, OTHER)
        self.threads.release()
        self.assertEqual(self.refused(OVERLOADED), "too many wrong passwords: try again in 300 s")

    def test_hashing(self) -> None:
        """64 passwords may be checked or wait, the next is refused and counts for nothing; few are hashed at once."""
        self.patch(accounts, "KEPT_PART", 65)
        self.patch(accounts, "MOST_COMMON", 65)
        self.accounts = self.make()
        self.threads.isHeld = True
        attempts = [self.attempt(address=f"10.0.0.{n}") for n in range(64)]
        self.assertEqual(len(self.threads.waiting), HASHING_AT_ONCE)
        self.assertIn("(limit hashing)", self.refused(OVERLOADED))
        for _ in range(20):
            self.refused(OVERLOADED)
        attempts[0].cancel()
        self.failureResultOf(attempts.pop(0))
        self.refused(OVERLOADED)
        self.threads.release()
        for attempt in attempts:
            self.successResultOf(attempt)
        self.letIn()
        self.assertEqual(self.counters["limits hit: hashing"], 22)

    def test_ownerElsewhere(self) -> None:
        """While one address guesses as much as it may, the owner is let in from one that nobody has seen before."""
        self.threads.isHeld = True
        for _ in range(20):
            self.attempt(OTHER).addErrback(lambda failure: failure.trap(Refused))
        owner = self.attempt(address=ELSEWHERE)
        self.threads.release()
        self.successResultOf(owner)

    def test_ownerAmongGuesses(self) -> None:
        """While an account is guessed at from everywhere, its owner is let in where the owner was let in before."""
        for credential in (PASSWORD, self.letIn(messageType=LOGIN, address="203.0.113.1")):
            address = f"203.0.113.{len(credential)}"
            self.letIn(credential, address=address)
            self.threads.isHeld = True
            guesses = [
                self.attempt(OTHER, userId=user, address=f"10.0.0.{n}")
                for n in range(8)
                for user in (ALICE, *(b"user %d" % n for n in range(20)))
            ]
            owner = self.attempt(address=address)
            self.threads.release()
            self.successResultOf(owner)
            for guess in guesses:
                self.failureResultOf(guess, Refused)

    def test_hashingOff(self) -> None:
        """The limit of hashes is an option, and 0 turns it off."""
        self.accounts = self.make(limits=Limits().changed("hashing=0"))
        self.threads.isHeld = True
        attempts = [self.attempt(address=f"10.0.0.{n}") for n in range(200)]
        self.threads.release()
        for attempt in attempts:
            self.successResultOf(attempt)


class SignUpTests(AccountsCase):
    def setUp(self) -> None:
        super().setUp()
        self.accounts = self.make(signup=True)

    def test_signUp(self) -> None:
        """SIGNUP makes an account, gives a token, and both let in; the audit trail says from where."""
        token = self.letIn(OTHER, SIGNUP, BOB)
        self.letIn(token, userId=BOB)
        self.letIn(OTHER, userId=BOB)
        entry = self.database.audit(1)[0]
        self.assertEqual((entry.actor, entry.action, entry.subject), (f"sign-up from {HERE}", "add", BOB))
        self.assertEqual(self.counters["registered by sign-up"], 1)

    def test_notAllowed(self) -> None:
        """Where the server does not allow it, or other checkers know users, nobody can sign up."""
        checker = Checker(error.UnauthorizedLogin())
        for options in ({}, {"signup": True, "checkers": [checker]}, {"signup": True, "store": None}):
            self.accounts = self.make(**options)
            self.refused(FORBIDDEN, OTHER, SIGNUP, BOB)
        self.assertIsNone(self.database.account(BOB))

    def test_taken(self) -> None:
        """A name that exists is taken, even with its password, and even if that shows only when it is stored."""
        self.assertEqual(self.refused(FORBIDDEN, PASSWORD, SIGNUP), "this name is taken")
        self.threads.isHeld = True
        both = [self.attempt(OTHER, SIGNUP, BOB) for _ in range(2)]
        self.threads.release()
        self.successResultOf(both[0])
        self.assertEqual(self.failureResultOf(both[1], Refused).value.text, "this name is taken")

    def test_password(self) -> None:
        """The password has to satisfy the rules."""
        for password in (b"", b"1234567", b"x" * 1_025, makeToken(), b"\xff" * 10):
            self.refused(BAD_CREDENTIAL, password, SIGNUP, BOB)
        self.letIn(b"12345678", SIGNUP, BOB)

    def test_rate(self) -> None:
        """Ten sign-ups an hour are taken from one address, those for taken names included; 0 turns that off."""
        self.refused(FORBIDDEN, OTHER, SIGNUP)
        for n in range(9):
            self.letIn(OTHER, SIGNUP, b"user%d" % n)
        ran = self.threads.ran
        self.assertIn("(limit signups)", self.refused(OVERLOADED, OTHER, SIGNUP, BOB))
        self.assertEqual((self.threads.ran, self.counters["limits hit: signups"]), (ran, 1))
        self.letIn(OTHER, SIGNUP, b"elsewhere", ELSEWHERE)
        self.clock.advance(360 - A_MOMENT)
        self.refused(OVERLOADED, OTHER, SIGNUP, BOB)
        self.clock.advance(A_MOMENT)
        self.letIn(OTHER, SIGNUP, BOB)
        self.accounts = self.make(signup=True, limits=Limits().changed("signups=0"))
        for n in range(20):
            self.letIn(OTHER, SIGNUP, b"more%d" % n)

    def test_mostAccounts(self) -> None:
        """Past the most accounts nobody signs up; 0 turns that off."""
        self.accounts = self.make(signup=True, limits=Limits().changed("accounts=2"))
        self.letIn(OTHER, SIGNUP, BOB)
        self.assertIn("2 accounts already (limit accounts)", self.refused(OVERLOADED, OTHER, SIGNUP, b"carol"))
        self.accounts = self.make(signup=True, limits=Limits().changed("accounts=0"))
        self.letIn(OTHER, SIGNUP, b"carol")

    def test_hashing(self) -> None:
        """A sign-up waits among the passwords, and is refused when too many wait."""
        self.accounts = self.make(signup=True, limits=Limits().changed("hashing=1"))
        self.threads.isHeld = True
        self.attempt(OTHER, SIGNUP, BOB)
        self.refused(OVERLOADED, OTHER, SIGNUP, b"carol")


class CheckerTests(AccountsCase):
    def with_(self, *checkers: Any, **options: Any) -> None:
        self.accounts = self.make(checkers=checkers, **options)

    def test_twisted(self) -> None:
        """Twisted's own checkers plug in, with accounts and without."""
        checker = InMemoryUsernamePasswordDatabaseDontUse(carol=OTHER)
        for options in ({}, {"store": None}):
            self.with_(checker, **options)
            self.letIn(OTHER, userId=b"carol")
            self.refused(BAD_CREDENTIAL, PASSWORD, userId=b"carol")
            self.refused(BAD_CREDENTIAL, OTHER, userId=b"nobody")

    def test_noStore(self) -> None:
        """Without a store of accounts a token is empty, and what looks like one is a password."""
        token = makeToken()
        self.with_(Checker(ALICE), store=None)
        self.assertEqual(self.letIn(OTHER, LOGIN), b"")
        self.assertEqual(self.letIn(token, LOGIN), b"")
        for data in (b"\0", b"\1\0\1x12345678"):
            refused = self.failureResultOf(self.accounts.accountCommand(ALICE, HERE, data), Refused).value
            self.assertEqual(refused.code, FORBIDDEN)

    def test_nobodyAsked(self) -> None:
        """With neither store nor checkers nobody is let in by a password."""
        self.with_(store=None)
        self.refused(BAD_CREDENTIAL)

    def test_adopted(self) -> None:
        """Whom a checker lets in gets an account without a password: tokens, and whatever disables an account, work."""
        checker = Checker(BOB)
        self.with_(checker)
        token = self.letIn(OTHER, LOGIN, BOB)
        self.assertEqual(self.passwordHash(BOB), "")
        self.letIn(token, userId=BOB)
        self.letIn(OTHER, userId=BOB)
        self.database.transact(self.database.disable, BOB, "test")
        self.refused(FORBIDDEN, OTHER, userId=BOB)
        self.with_()
        self.assertEqual(self.refused(BAD_CREDENTIAL, OTHER, userId=BOB), "wrong user ID or password")

    def test_ownPasswords(self) -> None:
        """Where the own passwords are not to let anybody in, only a checker does, and the tokens that it led to."""
        for ownPasswords in (True, False):
            self.with_(Checker(error.UnauthorizedLogin()), ownPasswords=ownPasswords)
            self.letIn() if ownPasswords else self.refused(BAD_CREDENTIAL)
        self.with_(Checker(ALICE), ownPasswords=False)
        token = self.letIn(OTHER, LOGIN)
        self.with_(ownPasswords=False)
        self.refused(BAD_CREDENTIAL, OTHER)
        self.letIn(token)

    def test_adoptedTwice(self) -> None:
        """Two first log-ins at once are both let in."""
        self.with_(Checker(BOB))
        real = self.store.account
        absent = [None, None]
        self.patch(self.store, "account", lambda userId: maybeDeferred(absent.pop) if absent else real(userId))
        self.database.transact(self.database.addAccount, BOB, "", "test")
        self.letIn(OTHER, userId=BOB)

    def test_order(self) -> None:
        """The own accounts come first; then each checker is asked until one says yes."""
        no, yes, never = Checker(error.UnauthorizedLogin()), Checker(ALICE), Checker(ALICE)
        self.with_(no, yes, never)
        self.letIn()
        self.assertEqual(no.asked, [])
        self.letIn(OTHER)
        self.assertEqual((no.asked, yes.asked, never.asked), ([(ALICE, OTHER)], [(ALICE, OTHER)], []))

    def test_somebodyElse(self) -> None:
        """A checker that knows somebody under another name, or as nobody, lets in nobody."""
        for answer in (b"Alice", (), None, "Alice"):
            self.with_(Checker(answer))
            self.refused(BAD_CREDENTIAL, OTHER)
        self.with_(AllowAnonymousAccess())
        self.refused(BAD_CREDENTIAL, OTHER)

    def test_nameAsText(self) -> None:
        """A checker may tell whom it knows in bytes or as text, as Twisted's of Unix accounts does."""
        for answer in (BOB, BOB.decode()):
            self.with_(Checker(answer))
            self.letIn(OTHER, userId=BOB)

    def test_refusals(self) -> None:
        """All of cred's refusals are wrong passwords, and lock out."""
        self.with_(Checker(error.UnauthorizedLogin()), Checker(error.LoginDenied()), Checker(error.Unauthorized()))
        for _ in range(10):
            self.refused(BAD_CREDENTIAL, OTHER)
        self.refused(OVERLOADED)

    def test_noText(self) -> None:
        """No checker gets an empty password, or one that is no text."""
        checker = Checker(ALICE)
        self.with_(checker)
        for password in (b"", b"\xff\xff", b"nul\0nul"):
            self.refused(BAD_CREDENTIAL, password)
        self.assertEqual(checker.asked, [])

    def test_broken(self) -> None:
        """A checker that fails is logged, and keeps nobody out whom another one knows."""
        self.with_(Checker(RuntimeError("LDAP is down")), Checker(ALICE))
        self.letIn(OTHER)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 1)

    def test_brokenAlone(self) -> None:
        """If nobody could tell, that is no wrong password."""
        self.with_(Checker(RuntimeError("LDAP is down")))
        for _ in range(20):
            self.failureResultOf(self.attempt(OTHER, userId=b"carol"), StoreProblem)
        self.assertEqual(len(self.flushLoggedErrors(RuntimeError)), 20)
        self.assertEqual(self.counters["wrong passwords"], 0)

    def test_brokenAndWrong(self) -> None:
        """A guess that somebody has answered counts, even while another checker is out of order."""
        for checkers, userId in (
            ([Checker(RuntimeError())], ALICE),
            ([Checker(error.UnauthorizedLogin()), Checker(RuntimeError())], b"carol"),
            ([Checker(RuntimeError()), Checker(error.UnauthorizedLogin())], b"dave"),
        ):
            self.with_(*checkers)
            for _ in range(10):
                self.refused(BAD_CREDENTIAL, OTHER, userId=userId)
            self.refused(OVERLOADED, OTHER, userId=userId)
        self.flushLoggedErrors(RuntimeError)

    def test_silent(self) -> None:
        """A checker that never answers is given up after its time, and its place is free again."""
        never: Deferred[bytes] = Deferred()
        self.with_(Checker(never), limits=Limits().changed("hashing=1"))
        waiting = self.attempt(OTHER)
        self.clock.advance(CHECKER_TIMEOUT - A_MOMENT)
        self.assertNoResult(waiting)
        self.refused(OVERLOADED)
        self.clock.advance(A_MOMENT)
        self.failureResultOf(waiting, Refused)
        self.letIn()
        self.assertEqual(len(self.flushLoggedErrors()), 1)


class CommandTests(AccountsCase):
    def command(self, data: bytes, userId: bytes = ALICE) -> bytes:
        return self.successResultOf(self.accounts.accountCommand(userId, HERE, data))

    def commandRefused(self, code: ErrorCode, data: bytes, userId: bytes = ALICE) -> str:
        refused = self.failureResultOf(self.accounts.accountCommand(userId, HERE, data), Refused, WireError).value
        self.assertEqual(refused.code, code, refused.text)
        return str(refused.text)

    @staticmethod
    def change(old: bytes, new: bytes) -> bytes:
        return b"\1" + len(old).to_bytes(2, "big") + old + new

    def test_logOut(self) -> None:
        """Logging out revokes that token, and no other."""
        first, second = self.letIn(messageType=LOGIN), self.letIn(messageType=LOGIN)
        self.assertEqual(self.command(b"\0" + first), b"1 token revoked")
        self.refused(BAD_CREDENTIAL, first)
        self.letIn(second)
        self.assertEqual(self.command(b"\0" + first), b"0 tokens revoked")
        self.assertEqual(
            [entry.action for entry in self.database.audit(9)], ["add"]
        )  # what all do all day is not there

    def test_logOutEverywhere(self) -> None:
        """Without a token all of that user are revoked, and nobody else's."""
        tokens = [self.letIn(messageType=LOGIN) for _ in range(3)]
        self.database.transact(self.database.addAccount, BOB, hashPassword(OTHER), "test")
        bobs = self.letIn(OTHER, LOGIN, BOB)
        self.assertEqual(self.command(b"\0"), b"3 tokens revoked")
        for token in tokens:
            self.refused(BAD_CREDENTIAL, token)
        self.letIn(bobs, userId=BOB)

    def test_somebodyElsesToken(self) -> None:
        """Nobody can revoke the token of somebody else."""
        token = self.letIn(messageType=LOGIN)
        self.assertEqual(self.command(b"\0" + token, BOB), b"0 tokens revoked")
        self.letIn(token)

    def test_newToken(self) -> None:
        """A registered user gets a new token, which lets that user in, unless the account is disabled meanwhile."""
        token = self.command(b"\5")
        self.letIn(token)
        self.commandRefused(ErrorCode.BAD_REQUEST, b"\5x")
        self.database.transact(self.database.disable, ALICE, "test")
        self.commandRefused(ErrorCode.FORBIDDEN, b"\5")
        self.assertEqual(self.database.statistics().tokens, 0)

    def test_changePassword(self) -> None:
        """With the old password one sets a new one; all tokens are revoked."""
        token = self.letIn(messageType=LOGIN)
        self.command(self.change(PASSWORD, OTHER))
        self.refused(BAD_CREDENTIAL, token)
        self.refused(BAD_CREDENTIAL)
        self.letIn(OTHER)
        entry = self.database.audit(1)[0]
        self.assertEqual((entry.actor, entry.action), (f"alice from {HERE}", "password"))

    def test_wrongOldPassword(self) -> None:
        """A wrong old password changes nothing, and counts as any wrong one."""
        for _ in range(10):
            self.assertEqual(
                self.commandRefused(BAD_CREDENTIAL, self.change(OTHER, OTHER)), "wrong user ID or password"
            )
        self.commandRefused(OVERLOADED, self.change(PASSWORD, OTHER))
        self.refused(OVERLOADED)
        self.letIn(address=ELSEWHERE)

    def test_badNewPassword(self) -> None:
        """A new password that breaks the rules is a badRequest, and the old one is not even looked at."""
        for password in (b"", b"1234567", b"x" * 1_025, makeToken()):
            self.commandRefused(ErrorCode.BAD_REQUEST, self.change(PASSWORD, password))
        self.assertEqual(self.threads.ran, 0)

    def test_hashing(self) -> None:
        """A change of password waits among the others."""
        self.accounts = self.make(limits=Limits().changed("hashing=1"))
        self.threads.isHeld = True
        self.attempt(address=ELSEWHERE)
        self.commandRefused(OVERLOADED, self.change(PASSWORD, OTHER))
        self.threads.release()
        self.command(self.change(PASSWORD, OTHER))

    def test_ownPasswordsOff(self) -> None:
        """A password that lets nobody in is not changed."""
        before = self.passwordHash()
        self.accounts = self.make(ownPasswords=False)
        self.commandRefused(FORBIDDEN, self.change(PASSWORD, OTHER))
        self.assertEqual(self.passwordHash(), before)

    def test_keptElsewhere(self) -> None:
        """A password that another checker knows cannot be changed here, and checkers are not asked for the old one."""
        checker = Checker(BOB)
        self.accounts = self.make(checkers=[checker])
        self.letIn(OTHER, userId=BOB)
        checker.asked.clear()
        self.commandRefused(FORBIDDEN, self.change(OTHER, b"12345678"), BOB)
        checker.answer = ALICE
        self.commandRefused(BAD_CREDENTIAL, self.change(OTHER, b"12345678"))
        self.assertEqual(checker.asked, [])

    def test_gone(self) -> None:
        """Whose account is deleted while the password is hashed is told so."""
        self.threads.isHeld = True
        changing = self.accounts.accountCommand(ALICE, HERE, self.change(PASSWORD, OTHER))
        self.threads.waiting.pop().callback(None)
        self.database.transact(self.database.deleteUser, ALICE, "test")
        self.threads.release()
        self.assertEqual(self.failureResultOf(changing, Refused).value.code, FORBIDDEN)

    @given(st.binary(max_size=20))
    def test_malformed(self, rest: bytes) -> None:
        """What is no command is a badRequest or refused, and nothing else."""
        for data in (b"", b"\2" + rest, b"\0x" + rest, b"\1\0", b"\1\xff\xff" + rest, rest):
            if data[:1] == b"\0" and len(data) == 1:
                continue
            failure = self.failureResultOf(self.accounts.accountCommand(b"nobody", HERE, data), WireError, Refused)
            if failure.check(WireError):
                self.assertEqual(failure.value.code, ErrorCode.BAD_REQUEST)
