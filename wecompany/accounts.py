"""
Who may be whom: passwords, tokens, sign-up, and what holds up those who guess.

::

    credential ---- none, but a certificate that names the user ----------------------------> in
       |---- token: its SHA-256 is looked up ------------------------------------------------> in
       '---- password -> lock-outs -> one of 64 places -> own accounts, then other checkers -> in

Nothing here blocks: the store answers later, and hashing goes to threads.
"""

from __future__ import annotations

import contextlib
import hashlib
import hmac
import math
import os
import re
import secrets
import time
from base64 import b64decode, b64encode, urlsafe_b64encode
from collections import OrderedDict
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

from attrs import Factory, define
from twisted.cred.checkers import ICredentialsChecker
from twisted.cred.credentials import UsernamePassword
from twisted.cred.error import LoginFailed, Unauthorized
from twisted.internet.defer import Deferred, DeferredSemaphore, maybeDeferred
from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

from wecompany.interfaces import (
    AccountExists,
    Attempt,
    IAccountStore,
    IAuthenticator,
    NoSuchAccount,
    QueueFull,
    Refused,
    StoreProblem,
)
from wecompany.limits import Limits, addressKey
from wecompany.wire import MAX_REASON, AccountOp, ErrorCode, MessageType, WireError

try:
    import argon2
except ImportError:  # scrypt then
    argon2 = None  # type: ignore[assignment]

MIN_PASSWORD = 8
"""Characters of a password."""

MAX_PASSWORD = MAX_REASON
"""Bytes of a password, and of any credential."""

TOKEN_LIFETIME = 86_400.0
"""Seconds that a token lets its user in."""

HASHING_AT_ONCE = min(4, os.cpu_count() or 1)
"""Hashes that are computed at the same time: each fills up to 64 MiB, and threads have other things to do as well."""

KEPT_PART = 2
"""One in so many places of those whose passwords wait is kept for who has been let in from the same network before."""

MOST_KEPT = 4
"""Of these, how many one account has."""

MOST_COMMON = 16
"""Of the others, how many one account has: more than the wrong passwords that one address is allowed."""

MOST_NETWORKS = 8
"""Networks of an account from which it was let in that are remembered, the latest."""

MOST_KNOWN = 50_000
"""Accounts of which that is remembered, those that came last."""

CHECKER_TIMEOUT = 30.0
"""Seconds that another checker has for its answer: one that never answers must not keep all others out."""

WRONG_WITHIN = 120.0
"""Seconds for which a wrong password counts."""

WRONG_FOR_ACCOUNT = 10
"""Wrong passwords for one account from one address that lock that account for that address."""

WRONG_FROM_ADDRESS = 100
"""Wrong passwords from one address, whatever the account, that lock it."""

LOCKED_FOR = 300.0
"""Seconds that a lock-out lasts."""

MAX_LOCK_OUT_KEYS = 100_000
"""Addresses, and accounts for an address, whose wrong passwords and lock-outs are remembered."""

SCRYPT_LN = 14
"""Binary logarithm of scrypt's cost n: with r = 8 a hash fills 16 MiB."""

SCRYPT_R = 8
"""scrypt's block size."""

SCRYPT_P = 1
"""scrypt's parallelism."""

_TOKEN = re.compile(rb"wct_[A-Za-z0-9_-]{43}\Z")
_SCRYPT = re.compile(r"\$scrypt\$ln=(\d{1,2}),r=(\d{1,2}),p=(\d{1,2})\$([A-Za-z0-9+/]+)\$([A-Za-z0-9+/]+)\Z")

_TAKEN = "this name is taken"
_WRONG = "wrong user ID or password"
_BAD_TOKEN = "this token has expired or is revoked: log in with the password"  # noqa: S105 - says it, is none


_log = Logger()


# -- Passwords and tokens ------------------------------------------------------------------------------------------


def checkNewPassword(password: bytes) -> None:
    """
    Check that a password may be set: 8 characters to 1,024 bytes of UTF-8, and nothing that looks like a token.

    @raise WireError: badRequest, if it may not.
    """
    try:
        length = len(password.decode("utf-8"))
    except UnicodeDecodeError:
        raise WireError(ErrorCode.BAD_REQUEST, "a password is UTF-8") from None
    if length < MIN_PASSWORD:
        raise WireError(ErrorCode.BAD_REQUEST, f"a password has at least {MIN_PASSWORD} characters")
    if len(password) > MAX_PASSWORD:
        raise WireError(ErrorCode.BAD_REQUEST, f"a password has at most {MAX_PASSWORD} bytes")
    if isToken(password):
        raise WireError(ErrorCode.BAD_REQUEST, "this looks like a token: choose another password")


def hashPassword(password: bytes) -> str:
    """
    Return the hash of a password as it is stored: of Argon2id where argon2-cffi is installed, of scrypt elsewhere.

    It takes a good part of a second and much memory: never call it in the reactor thread.
    """
    if argon2 is not None:
        return argon2.PasswordHasher().hash(password)
    salt = secrets.token_bytes(16)
    hashed = _scrypt(password, salt, SCRYPT_LN, SCRYPT_R, SCRYPT_P, 32)
    return f"$scrypt$ln={SCRYPT_LN},r={SCRYPT_R},p={SCRYPT_P}${_b64(salt)}${_b64(hashed)}"


def verifyPassword(passwordHash: str, password: bytes) -> bool:
    """
    Return whether that is the password; as slow as L{hashPassword}.

    @raise StoreProblem: if the hash is of a kind that cannot be computed here.
    """
    if match := _SCRYPT.match(passwordHash):
        salt, hashed = (b64decode(text + "=" * (-len(text) % 4)) for text in match.group(4, 5))
        ln, r, p = map(int, match.group(1, 2, 3))
        return hmac.compare_digest(hashed, _scrypt(password, salt, ln, r, p, len(hashed)))
    if not passwordHash.startswith("$argon2"):
        raise StoreProblem("the password's hash is of an unknown kind")
    if argon2 is None:
        raise StoreProblem('the password\'s hash needs argon2-cffi: pip install "wecompany[auth]"')
    try:
        return argon2.PasswordHasher().verify(passwordHash, password)
    except argon2.exceptions.VerifyMismatchError:
        return False
    except (argon2.exceptions.Argon2Error, argon2.exceptions.InvalidHashError) as e:
        raise StoreProblem(f"the password's hash cannot be checked: {e}") from None


def isOutdated(passwordHash: str) -> bool:
    """Return whether L{hashPassword} would make a better hash than this one, which L{verifyPassword} understands."""
    if argon2 is not None:
        return not passwordHash.startswith("$argon2id$") or argon2.PasswordHasher().check_needs_rehash(passwordHash)
    return not passwordHash.startswith(f"$scrypt$ln={SCRYPT_LN},r={SCRYPT_R},p={SCRYPT_P}$")


def _scrypt(password: bytes, salt: bytes, ln: int, r: int, p: int, length: int) -> bytes:
    try:
        # Twice what the algorithm fills, as OpenSSL wants some room beside that.
        return hashlib.scrypt(password, salt=salt, n=1 << ln, r=r, p=p, maxmem=256 * r * (p + (1 << ln)), dklen=length)
    except (ValueError, OverflowError, MemoryError) as e:
        raise StoreProblem(f"the password's hash cannot be computed: {e}") from None


def _b64(raw: bytes) -> str:
    return b64encode(raw).rstrip(b"=").decode()


def makeToken() -> bytes:
    """Return a new token: 47 characters that nobody can guess."""
    return b"wct_" + urlsafe_b64encode(secrets.token_bytes(32)).rstrip(b"=")


def isToken(credential: bytes) -> bool:
    """Return whether that has the form of a token, which no password has."""
    return _TOKEN.match(credential) is not None


def digestToken(token: bytes) -> bytes:
    """Return what is stored of a token: 32 bytes that lead nobody back to it."""
    return hashlib.sha256(token).digest()


# -- Lock-outs -----------------------------------------------------------------------------------------------------

_Key = tuple[str, bytes]
"""A network and a user ID; no user ID where all of that network is meant."""


@define
class _Guesses:
    """
    @ivar wrong: when there were wrong ones, the oldest first.
    @ivar pending: how many are being checked.
    """

    wrong: list[float] = Factory(list)
    pending: int = 0


class LockOuts:
    """
    Counts wrong passwords, and says when there are too many to hear another one.

    10 in 120 s for an account from an address lock that account for that address for 300 s; 100 in 120 s from an
    address lock the address.  A password that is being checked counts as a wrong one until it proves right, so that
    guessing side by side gains nothing.  Whoever comes from another address notices nothing of all that.
    """

    def __init__(self, clock: IReactorTime, mostKeys: int = MAX_LOCK_OUT_KEYS) -> None:
        """
        @param mostKeys: how many are remembered; past that the one whose last wrong password is the oldest is
            forgotten, and a locked one only where there is no other.
        """
        self._clock = clock
        self._mostKeys = mostKeys
        # Both are in the order in which they lapse.
        self._guesses: OrderedDict[_Key, _Guesses] = OrderedDict()
        self._lockedUntil: OrderedDict[_Key, float] = OrderedDict()

    def __len__(self) -> int:
        """Return how many keys are remembered."""
        return len(self._guesses) + len(self._lockedUntil)

    def begin(self, userId: bytes, address: str) -> None:
        """
        A password is about to be checked: L{end} tells how that went.

        @raise Refused: overloaded, if there have been too many wrong ones; then there is nothing to end.
        """
        now = self._clock.seconds()
        self._forgetLapsed(now)
        keys = self._keys(userId, address)
        for key, most in keys.items():
            until = self._lockedUntil.get(key)
            if until is not None:
                wait = math.ceil(until - now)
                raise Refused(ErrorCode.OVERLOADED, f"too many wrong passwords: try again in {wait} s")
            guesses = self._guesses.get(key)
            if guesses is not None and guesses.pending + len(self._lately(guesses, now)) >= most:
                raise Refused(ErrorCode.OVERLOADED, "too many passwords at once: try again in a few seconds")
        for key in keys:
            self._guesses.setdefault(key, _Guesses()).pending += 1
        while len(self) > self._mostKeys and self._forgetOne():
            pass

    def end(self, userId: bytes, address: str, isRight: bool | None) -> list[str]:
        """
        The password has been checked.

        @param isRight: C{None} if nobody could tell.
        @return: what is locked now because of it: C{"account"}, C{"address"}, both, or nothing.
        """
        now = self._clock.seconds()
        locked = []
        for key, most in self._keys(userId, address).items():
            guesses = self._guesses[key]
            guesses.pending -= 1
            if isRight and key[1]:
                guesses.wrong.clear()
            elif isRight is False:
                guesses.wrong = [*self._lately(guesses, now), now]
                self._guesses.move_to_end(key)
            if len(guesses.wrong) >= most:
                del self._guesses[key]
                self._lockedUntil[key] = now + LOCKED_FOR
                locked.append("account" if key[1] else "address")
            elif not guesses.wrong and not guesses.pending:
                del self._guesses[key]
        return locked

    @staticmethod
    def _keys(userId: bytes, address: str) -> dict[_Key, int]:
        network = addressKey(address)
        return {(network, userId): WRONG_FOR_ACCOUNT, (network, b""): WRONG_FROM_ADDRESS}

    @staticmethod
    def _lately(guesses: _Guesses, now: float) -> list[float]:
        return [at for at in guesses.wrong if now - at < WRONG_WITHIN]

    def _forgetLapsed(self, now: float) -> None:
        while self._lockedUntil and next(iter(self._lockedUntil.values())) <= now:
            self._lockedUntil.popitem(last=False)
        while self._guesses:
            guesses = next(iter(self._guesses.values()))
            if guesses.pending or now - guesses.wrong[-1] < WRONG_WITHIN:
                return
            self._guesses.popitem(last=False)

    def _forgetOne(self) -> bool:
        # Those that are being checked are few, and have to be there when that ends.
        key = next((key for key, guesses in self._guesses.items() if not guesses.pending), None)
        if key is not None:
            del self._guesses[key]
        elif self._lockedUntil:
            self._lockedUntil.popitem(last=False)
        else:
            return False
        return True


# -- Places --------------------------------------------------------------------------------------------------------


class Places:
    """
    The places of those whose passwords wait to be checked.

    Whoever guesses from thousands of addresses takes them as fast as they are free.  So half of them is kept for those
    who have been let in to that account from that network before, by whatever credential; and no account has more than
    4 of these and 16 of the others.
    """

    def __init__(self, most: int, count: Callable[[str, int], None]) -> None:
        """
        @param most: how many there are; 0 for any number.
        @param count: as of L{Accounts}.
        """
        self._isOff = not most
        self._count = count
        self._free = {True: most // KEPT_PART, False: most - most // KEPT_PART}  # those that are kept, and the others
        self._ofAccount: dict[tuple[bytes, bool], int] = {}
        self._networks: OrderedDict[bytes, tuple[str, ...]] = OrderedDict()  # longest absent first

    def letIn(self, userId: bytes, address: str) -> None:
        """That user has been let in from there."""
        network = addressKey(address)
        others = [each for each in self._networks.pop(userId, ()) if each != network]
        self._networks[userId] = (*others[1 - MOST_NETWORKS :], network)
        if len(self._networks) > MOST_KNOWN:
            self._networks.popitem(last=False)

    @contextlib.contextmanager
    def take(self, userId: bytes, address: str) -> Iterator[None]:
        """
        Have one for as long as the context lasts.

        @raise Refused: overloaded, if there is none.
        """
        isKnown = addressKey(address) in self._networks.get(userId, ())
        isKept = isKnown and self._has(userId, True)
        if not (isKept or self._has(userId, False)):
            self._count("limits hit: hashing", 1)
            raise Refused(ErrorCode.OVERLOADED, "too many log in at once: try again in a few seconds (limit hashing)")
        kind = userId, isKept
        self._free[isKept] -= 1
        self._ofAccount[kind] = self._ofAccount.get(kind, 0) + 1
        try:
            yield
        finally:
            self._free[isKept] += 1
            left = self._ofAccount.pop(kind) - 1
            if left:
                self._ofAccount[kind] = left

    def _has(self, userId: bytes, isKept: bool) -> bool:
        """Whether there is a place of that kind for that account."""
        most = MOST_KEPT if isKept else MOST_COMMON
        return self._isOff or (self._free[isKept] > 0 and self._ofAccount.get((userId, isKept), 0) < most)


# -- Accounts ------------------------------------------------------------------------------------------------------


def _uncounted(what: str, n: int) -> None:
    """Nobody wants to know."""


@implementer(IAuthenticator)
class Accounts:
    """
    The accounts of one server: those in its store, and those that other credentials checkers know.

    The own passwords are looked at first, then each checker in turn, until one knows the password to be right.  Whom
    another checker or a certificate lets in gets an account without a password in the store, if there is a store: so
    its tokens can be kept, its texts wait for it, and it can be disabled.  Deleting that account keeps nobody out for
    long.

    @ivar count: called with the name of what happened and how often.
    """

    def __init__(
        self,
        store: IAccountStore | None,
        clock: IReactorTime,
        runInThread: Callable[..., Deferred[Any]],
        *,
        ownPasswords: bool = True,
        signup: bool = False,
        tokenLifetime: float = TOKEN_LIFETIME,
        limits: Limits | None = None,
        wallClock: Callable[[], float] = time.time,
        checkers: Sequence[ICredentialsChecker] = (),
        count: Callable[[str, int], None] = _uncounted,
    ) -> None:
        """
        @param store: where the own accounts are; without one there are none, and no tokens.
        @param runInThread: calls a function with arguments in a thread, and fires with what it returns.
        @param ownPasswords: whether the passwords in the store let anybody in; tokens do in any case.
        @param signup: whether strangers may make accounts.  Where there are C{checkers} they never may: a stranger
            could take the name of somebody whom only a checker knows.
        @param tokenLifetime: seconds.
        @param limits: of which C{hashing}, C{signups} and C{accounts} are looked at; without any, the defaults.
        @param wallClock: returns seconds since the epoch; tokens expire by it.
        @param checkers: of C{IUsernamePassword}, beside the own accounts.
        """
        self._store = store
        self._clock = clock
        self._runInThread = runInThread
        self._ownPasswords = ownPasswords
        self._signup = signup and not checkers
        self._tokenLifetime = tokenLifetime
        limits = limits or Limits()
        self._places = Places(limits["hashing"].value, count)
        self._mostAccounts = limits["accounts"].value
        self._wallClock = wallClock
        self._checkers = checkers
        self.count = count
        self._signups = limits.rate("signups", clock)
        self._lockOuts = LockOuts(clock)
        self._threads = DeferredSemaphore(HASHING_AT_ONCE)
        self._nobodysHash = ""

    def authenticate(self, attempt: Attempt) -> Deferred[bytes]:
        """See L{IAuthenticator.authenticate}."""
        return _shielded(self._authenticate(attempt))

    def accountCommand(self, userId: bytes, address: str, data: bytes) -> Deferred[bytes]:
        """See L{IAuthenticator.accountCommand}."""
        return _shielded(self._accountCommand(userId, address, data))

    # -- who registers

    async def _authenticate(self, attempt: Attempt) -> bytes:
        userId, credential = attempt.userId, attempt.credential
        known: str | None = None
        if attempt.messageType == MessageType.SIGNUP:
            how = "sign-up"
            known = await self._signUp(attempt)
        elif not credential:
            # Never passed on to a checker: many an LDAP server takes a name without a password for anonymous access.
            how = "certificate"
            if userId not in attempt.certificateNames:
                raise Refused(ErrorCode.BAD_CREDENTIAL, "this server asks for a password or a token")
            await self._adopt(userId, how)
        elif self._store is not None and isToken(credential):
            how = "token"
            await self._checkToken(self._store, userId, credential)
        elif len(credential) > MAX_PASSWORD:
            raise Refused(ErrorCode.BAD_CREDENTIAL, f"a credential has at most {MAX_PASSWORD} bytes")
        else:
            how = "password"
            known = await self._checkPassword(userId, attempt.address, credential, self._checkers)
            if known is None:
                await self._adopt(userId, how)
        token = b""
        if self._store is not None:
            if attempt.messageType in (MessageType.LOGIN, MessageType.SIGNUP):
                token = await self._newToken(self._store, userId, known)
            else:
                await self._checkStill(self._store, userId, known)
            if known is not None and isOutdated(known):
                # Nobody waits for that: what is changed meanwhile would not be seen any more.
                Deferred.fromCoroutine(self._renew(self._store, attempt, known)).addErrback(_report)
        self._places.letIn(userId, attempt.address)
        self.count(f"registered by {how}", 1)
        return token

    async def _newToken(self, store: IAccountStore, userId: bytes, known: str | None) -> bytes:
        token = makeToken()
        with contextlib.suppress(NoSuchAccount):  # deleted or disabled: the next line says which
            await store.addToken(userId, digestToken(token), self._wallClock() + self._tokenLifetime)
        await self._checkStill(store, userId, known)
        return token

    async def _checkToken(self, store: IAccountStore, userId: bytes, credential: bytes) -> None:
        token = await store.token(digestToken(credential))
        if token is None or token.userId != userId or token.expiresAt <= self._wallClock():
            self.count("tokens refused", 1)
            raise Refused(ErrorCode.BAD_CREDENTIAL, _BAD_TOKEN)

    async def _checkStill(self, store: IAccountStore, userId: bytes, known: str | None) -> None:
        """
        Check the account itself.

        This is the last thing, as what was changed while a password was hashed holds for whoever came with it too; a
        token that has been stored meanwhile is told to nobody.
        """
        account = await store.account(userId)
        if account is None:
            raise Refused(ErrorCode.BAD_CREDENTIAL, _WRONG)
        if account.isDisabled:
            raise Refused(ErrorCode.FORBIDDEN, "this account is disabled")
        if known is not None and account.passwordHash != known:
            raise Refused(ErrorCode.OVERLOADED, "the password has just been changed: try again")

    async def _adopt(self, userId: bytes, how: str) -> None:
        """Make an account for somebody who is let in without one."""
        if self._store is None or await self._store.account(userId) is not None:
            return
        with contextlib.suppress(AccountExists):  # made for another connection meanwhile
            await self._store.addAccount(userId, "", f"first log-in by {how}")

    async def _signUp(self, attempt: Attempt) -> str:
        """Make an account; return the hash of its password."""
        if not self._signup or self._store is None:
            raise Refused(ErrorCode.FORBIDDEN, "this server lets nobody sign up: ask whoever runs it for an account")
        try:
            checkNewPassword(attempt.credential)
        except WireError as e:
            raise Refused(ErrorCode.BAD_CREDENTIAL, e.text) from None
        if self._signups is not None and not self._signups.allow(addressKey(attempt.address).encode()):
            self.count("limits hit: signups", 1)
            raise Refused(ErrorCode.OVERLOADED, "too many sign-ups from your address: try again later (limit signups)")
        if await self._store.account(attempt.userId) is not None:
            raise Refused(ErrorCode.FORBIDDEN, _TAKEN)
        passwordHash = await self._hash(attempt.credential, attempt.userId, attempt.address)
        try:
            await self._store.addAccount(
                attempt.userId, passwordHash, f"sign-up from {attempt.address}", self._mostAccounts
            )
        except AccountExists:
            raise Refused(ErrorCode.FORBIDDEN, _TAKEN) from None
        except QueueFull as e:
            self.count("limits hit: accounts", 1)
            raise Refused(ErrorCode.OVERLOADED, str(e)) from None
        _log.info("{user!r} has signed up from {address}", user=_shown(attempt.userId), address=attempt.address)
        return passwordHash

    # -- passwords

    async def _checkPassword(
        self, userId: bytes, address: str, password: bytes, checkers: Sequence[ICredentialsChecker]
    ) -> str | None:
        """
        Return the hash in the store that the password matched, or C{None} if it is another checker that knows it.

        @param checkers: whom to ask beside the store.
        """
        try:
            self._lockOuts.begin(userId, address)
        except Refused:
            self.count("passwords refused: locked out", 1)
            raise
        isRight: bool | None = None
        try:
            with self._places.take(userId, address):
                known, isRight = await self._askOwn(userId, password)
                if not isRight:
                    isRight = await self._ask(checkers, userId, password, isRight)
        finally:
            for what in self._lockOuts.end(userId, address, isRight):
                self.count(f"lock-outs: {what}", 1)
                _log.warn(
                    "Too many wrong passwords from {address}, the last one for {user!r}: that {what} is locked out",
                    address=address,
                    user=_shown(userId),
                    what=what,
                )
        if isRight is None:
            raise StoreProblem("passwords cannot be checked now")
        if not isRight:
            self.count("wrong passwords", 1)
            _log.info("Wrong password for {user!r} from {address}", user=_shown(userId), address=address)
            raise Refused(ErrorCode.BAD_CREDENTIAL, _WRONG)
        return known

    async def _askOwn(self, userId: bytes, password: bytes) -> tuple[str | None, bool | None]:
        """Return the hash in the store if C{password} matches it, and whether it does: C{None} if there is none."""
        if self._store is None or not self._ownPasswords:
            return None, None
        account = await self._store.account(userId)
        known = "" if account is None else account.passwordHash
        try:
            isRight = await self._threads.run(self._runInThread, self._verify, known, password)
        except StoreProblem as e:
            _log.error("The password of {user!r} cannot be checked: {error}", user=_shown(userId), error=str(e))
            raise
        return known if isRight else None, isRight if known else None

    def _verify(self, known: str, password: bytes) -> bool:
        """Runs in a thread, and takes its time for those whom nobody knows too."""
        if not self._nobodysHash:
            self._nobodysHash = hashPassword(secrets.token_bytes(32))
        return verifyPassword(known or self._nobodysHash, password)

    async def _ask(
        self, checkers: Sequence[ICredentialsChecker], userId: bytes, password: bytes, isRight: bool | None
    ) -> bool | None:
        """
        Return whether one of them knows the password to be right.

        @param isRight: what is known of it so far: not true.
        @return: C{None} if nobody said no and somebody could not tell: that is nobody's wrong password.
        """
        isDecided = True
        for checker in checkers if _isText(password) else ():
            try:
                answer = maybeDeferred(checker.requestAvatarId, UsernamePassword(userId, password))
                name = await answer.addTimeout(CHECKER_TIMEOUT, self._clock)
                # Whoever is somebody else there, or nobody, is not let in as this user here.
                isRight = (name.encode() if isinstance(name, str) else name) == userId
            except (LoginFailed, Unauthorized):
                isRight = False
            except Exception:  # noqa: BLE001 - a plug-in's fault is logged, and the next one asked
                _log.failure("The credentials checker {checker} failed", checker=type(checker).__name__)
                isDecided = False
            if isRight:
                return True
        return False if isDecided else isRight

    async def _hash(self, password: bytes, userId: bytes, address: str) -> str:
        with self._places.take(userId, address):
            return str(await self._threads.run(self._runInThread, hashPassword, password))

    async def _renew(self, store: IAccountStore, attempt: Attempt, known: str) -> None:
        """Store a better hash of a password that was right; whoever logs in is let in whatever becomes of it."""
        userId = attempt.userId
        try:
            await store.renewHash(userId, known, await self._hash(attempt.credential, userId, attempt.address))
        except (Refused, StoreProblem) as e:
            _log.warn("The hash for {user!r} is not renewed: {error}", user=_shown(userId), error=str(e))

    # -- what a registered user asks for

    async def _accountCommand(self, userId: bytes, address: str, data: bytes) -> bytes:
        if not data or data[0] not in (AccountOp.LOG_OUT, AccountOp.CHANGE_PASSWORD, AccountOp.NEW_TOKEN):
            raise WireError(ErrorCode.BAD_REQUEST, "there is no such account command")
        op, rest = data[0], data[1:]
        if op == AccountOp.NEW_TOKEN:
            if rest:
                raise WireError(ErrorCode.BAD_REQUEST, "nothing follows the op")
            return b"" if self._store is None else await self._newToken(self._store, userId, None)
        if op == AccountOp.LOG_OUT and rest and not isToken(rest):
            raise WireError(ErrorCode.BAD_REQUEST, "this is no token")
        split = 2 + int.from_bytes(rest[:2], "big")
        old, new = rest[2:split], rest[split:]
        if op == AccountOp.CHANGE_PASSWORD:
            if len(rest) < split:
                raise WireError(ErrorCode.BAD_REQUEST, "a change of password has the old one's length, old and new")
            checkNewPassword(new)
        if self._store is None:
            raise Refused(ErrorCode.FORBIDDEN, "this server keeps no accounts of its own")
        actor = f"{_shown(userId)} from {address}"
        if op == AccountOp.LOG_OUT:
            revoked = await self._store.revokeTokens(userId, digestToken(rest) if rest else b"", "")
            self.count("tokens revoked", revoked)
            return f"{revoked} token{'' if revoked == 1 else 's'} revoked".encode()
        account = await self._store.account(userId)
        if account is None or not account.passwordHash or not self._ownPasswords:
            raise Refused(ErrorCode.FORBIDDEN, "this server does not keep your password: change it where it is kept")
        await self._checkPassword(userId, address, old, ())
        try:
            await self._store.setPassword(userId, await self._hash(new, userId, address), actor)
        except NoSuchAccount:
            raise Refused(ErrorCode.FORBIDDEN, "this account is gone") from None
        self.count("passwords changed", 1)
        _log.info("{user!r} has changed the password from {address}", user=_shown(userId), address=address)
        return b"the password is changed; all tokens are revoked"


def _report(failure: Failure) -> None:
    _log.failure("A hash could not be renewed", failure)


def _isText(password: bytes) -> bool:
    """What is no text is nobody's password, and many a plug-in fails at it."""
    try:
        return "\0" not in password.decode("utf-8")
    except UnicodeDecodeError:
        return False


def _shown(userId: bytes) -> str:
    return userId.decode("utf-8", "replace")


def _shielded(coroutine: Coroutine[Deferred[Any], Any, bytes]) -> Deferred[bytes]:
    """
    Run it to its end, even if whoever waits for it waits no more.

    A guess counts whether or not the guesser stays for the answer, and a hash that is under way keeps its place.
    """
    shown: Deferred[bytes] = Deferred()
    Deferred.fromCoroutine(coroutine).addBoth(shown.callback)
    return shown
