"""
The published seams: what the parts of the server know of each other, and what an application may plug in.

User IDs are C{bytes} on this side of the wire and C{str} in what an application sees.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from attrs import define, frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from zope.interface import Attribute, Interface

from wecompany.wire import EndCode, ErrorCode, RejectCode


@frozen
class CallSession:
    """
    A call as it was when one asked: a snapshot, which does not change.

    Times are seconds of the server's clock; C{None} stands for what has not happened.

    @ivar callId: 32 hexadecimal digits.
    @ivar state: C{"ringing"}, C{"active"} or C{"ended"}.
    """

    callId: str
    caller: str
    callee: str
    isVideo: bool
    state: str
    startedAt: float
    answeredAt: float | None = None
    endedAt: float | None = None


class IServerObserver(Interface):
    """
    An application's ear: plugged in with C{WeCompanyFactory.addObserver}.

    Each method is called when the thing has happened.  What one of them raises is logged and harms nothing.  They are
    called in the reactor thread, so they do not block.  L{ServerObserver} has all of them doing nothing.
    """

    def clientConnected(userId: str) -> None:
        """C{userId} has come online.  A takeover from another connection is not told."""

    def clientDisconnected(userId: str) -> None:
        """C{userId} has gone offline."""

    def messageReceived(fromUser: str, toUser: str, messageType: int, data: bytes) -> None:
        """A TEXT or FILE for someone online came from C{fromUser}; C{toUser} is empty for a broadcast."""

    def callInitiated(session: CallSession) -> None:
        """A call rings."""

    def callAccepted(session: CallSession) -> None:
        """A call became active."""

    def callRejected(session: CallSession, code: int, reason: str) -> None:
        """A call was not taken (L{RejectCode<wecompany.RejectCode>}), be it that it rang or that it could not."""

    def callEnded(session: CallSession, code: int, reason: str) -> None:
        """A call is over (L{EndCode<wecompany.EndCode>})."""


class IStreamTransport(ITransport, IConsumer, IPushProducer):
    """What a connection needs of its transport: all of Twisted's stream transports are so."""

    def abortConnection() -> None:
        """Drop the connection at once, and whatever waits to be written."""


@define(eq=False)
class Session:
    """
    One reliable session: how many texts have come from its client.

    @ivar digest: the SHA-256 of its ID.
    @ivar received: how many the client has sent.
    @ivar taken: how many of them are in the store, or answered with an ERROR.
    @ivar acknowledged: how many of them the client knows of.
    """

    digest: bytes
    received: int = 0
    taken: int = 0
    acknowledged: int = 0


class IConnection(Interface):
    """What the hub sees of one connection, whatever its transport."""

    userId = Attribute("bytes: who registered here; empty before that.")
    tag = Attribute("bytes: the user ID as every relayed frame of this user has it.")
    address = Attribute("str: the client's IP address, or what stands for it; empty while that is not known.")
    countedAs = Attribute("str: the address as the hub counts its connections; empty if this one is not counted.")
    session = Attribute("Session | None: where its texts are counted, if it registered with reliable delivery.")
    isDirect = Attribute("bool: whether a text for this client is just sent, and needs no look at what waits already.")
    isClosed = Attribute("bool: whether its last word is said.")
    textsWaiting = Attribute("int: bytes of texts that wait to be sent; one more has to wait if there are any.")
    isClear = Attribute("bool: whether the kernel has taken every text.")
    waiting = Attribute("int: bytes that wait to be sent.")
    textsLeft = Attribute("int: texts that may come before the text rate is looked at again.")
    mediaLeft = Attribute("int: bytes of media that may come before the media rate is looked at again.")
    storing = Attribute("int: bytes from this client that wait to be committed.")

    def waitingByClass() -> Mapping[str, int]:
        """Return the bytes that wait to be sent, by the class that they wait in; a class in which none do may miss."""

    def peerName() -> str:
        """Return where the client is, for the log: an address, or whatever names its transport's other end."""

    def send(frames: bytes) -> None:
        """Put whole frames behind what waits for this client, each in its class, a DELAY with what is behind it."""

    def sendRun(frames: bytes, n: int) -> None:
        """Do C{send} with C{n} frames that are of one type."""

    def hasRoomFor(size: int) -> bool:
        """Whether so many bytes of texts may wait besides those that do."""

    def setInCall(isInCall: bool) -> None:
        """Say whether the client is in a call, so that nothing may delay its media for long."""

    def sendError(code: ErrorCode, text: str, messageType: int, userId: bytes) -> None:
        """Answer a frame that had this type and user ID with an ERROR."""

    def registered(userId: bytes, sessionId: bytes, resumed: bytes, token: bytes) -> None:
        """
        This connection is C{userId}'s from now on: answer its first frame with that.

        @param resumed: the digest of the session that this one goes on from; L{IHub.heardFrom} is called when the
            first bytes arrive.
        @param token: what the AUTH_RESPONSE brings, where there is one.
        """

    def resume() -> None:
        """What follows the registration has been sent: take the frames that waited for it."""

    def hold(why: str) -> None:
        """Take no further frame, and read nothing, until L{release} with the same reason."""

    def release(why: str) -> None:
        """Go on where L{hold} stopped, if there is no other reason left."""

    def takeTexts() -> list[tuple[bytes, bytes]]:
        """Return the TEXTs that are not on their way yet, each C{(sender, data)}; they are not sent any more."""

    def handedTexts() -> list[tuple[bytes, bytes]]:
        """Return the TEXTs that the transport has and that the kernel has not wholly taken."""

    def ownsSession(digest: bytes) -> bool:
        """
        Whether that is the SHA-256 of the session ID which this connection's registration was answered with, or, as
        long as nothing has come since, of the one that it resumed.
        """

    def probe() -> None:
        """Ask the client for a sign of life: L{IHub.heardFrom} is called when any bytes arrive."""

    def sweep(now: float) -> None:
        """Close the connection if one of its deadlines has passed."""

    def close(code: ErrorCode, text: str, lingers: bool = True) -> None:
        """
        Say why with an ERROR, or as the first frame asked for, then close; take nothing more from this client.

        @param lingers: whether the client gets time to read that and to close before the connection is dropped.
        """

    def abort() -> None:
        """Drop the connection at once."""


class IHub(Interface):
    """What a connection sees of the hub."""

    idleTimeout = Attribute("float: seconds after which a silent client is closed.")

    def connectionMade(connection: IConnection) -> None:
        """Somebody has connected, and is nobody yet."""

    def addressKnown(connection: IConnection) -> None:
        """It is known where the client is."""

    def register(connection: IConnection, attempt: Attempt, resumed: bytes | None, received: int) -> None:
        """
        The first frame has come.  The hub answers, now or later, with C{registered} and C{resume}, or C{close}.

        @param resumed: C{None} if the client asks for no reliable delivery; else the digest of the session that it
            goes on from, empty for none.
        @param received: the TEXT frames that it took in that session.
        """

    def frameReceived(connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        """
        A later frame has come.

        @raise WireError: what the client is to be told by an ERROR.
        """

    def relay(connection: IConnection, messageType: int, userId: bytes, data: bytes) -> bool:
        """
        Pass a frame on, if that is all that is to be done with it.

        @return: whether that has been done; else L{frameReceived} is to be called.
        """

    def relayRun(
        connection: IConnection,
        messageType: int,
        userId: bytes,
        bodies: Sequence[bytes],
        isEven: bool,
        size: int,
    ) -> bool:
        """
        Do L{relay} with frames that are alike but for their data, with all of them or none.

        @param isEven: whether it is known that all these data have the same length.
        @param size: the bytes that all these frames had.
        """

    def heardFrom(connection: IConnection) -> None:
        """Something has come from a connection that was probed, or whose session resumed another one."""

    def isBehind(connection: IConnection) -> None:
        """So much waits for this connection that texts for it had better wait in the store."""

    def cleared(connection: IConnection) -> None:
        """A connection that was behind takes more again."""

    def unregister(connection: IConnection) -> None:
        """This connection is going: whoever was registered here is so no more.  Saying it twice does no harm."""

    def connectionLost(connection: IConnection) -> None:
        """The connection is gone."""

    def count(what: str, n: int = 1) -> None:
        """Add to a counter that the operator sees."""


class IRouter(Interface):
    """What calls, files and presence see of the hub."""

    def isOnline(userId: bytes) -> bool:
        """Whether that user has a registered connection now."""

    def deliver(userId: bytes, messageType: int, about: bytes, data: bytes) -> bool:
        """
        Send a frame to a user.

        @param about: the user ID that stands in the frame.
        @return: whether that user is online.
        """

    def count(what: str, n: int = 1) -> None:
        """Add to a counter that the operator sees: for whatever is dropped without an answer."""

    def routesChanged(userId: bytes) -> None:
        """Media begins to flow to that user, or has ceased."""

    def tell(event: str, *arguments: object) -> None:
        """Call that method of L{IServerObserver} on every observer."""

    def isBlocked(userId: bytes, sender: bytes) -> bool:
        """Whether C{userId} wants nothing from C{sender}."""

    def recordCall(session: CallSession, outcome: RejectCode | EndCode) -> None:
        """A call is over, or found its callee busy or offline: that goes into the history, and may have been missed."""


# -- The store -----------------------------------------------------------------------------------------------------


class StoreProblem(Exception):
    """The store could not do it, and nothing of it is done: the disk is full, the file is locked or damaged."""


class QueueFull(StoreProblem):
    """
    A limit of the store is reached; the text names it.

    @ivar limit: its name.
    """

    def __init__(self, limit: str, text: str) -> None:
        super().__init__(f"{text} (limit {limit})")
        self.limit = limit


@frozen
class StoredText:
    """
    A text that waits for its receiver.

    @ivar number: its place among all texts that its receiver ever got from the store.
    @ivar sentAt: milliseconds since the epoch, UTC.
    """

    number: int
    sender: bytes
    sentAt: int
    data: bytes


@frozen
class MissedCall:
    """
    A call that its callee does not know of, or did not take.

    @ivar startedAt: milliseconds since the epoch, UTC.
    """

    callId: bytes
    caller: bytes
    startedAt: int


@frozen
class Waiting:
    """
    What waits for a user who has just registered.

    @ivar first: the number of the oldest waiting text.
    @ivar end: the number that the next text will have; C{first} if none waits.
    """

    first: int
    end: int
    missedCalls: tuple[MissedCall, ...]


@frozen
class Begun:
    """
    A session that has begun.

    @ivar taken: how many texts the server took in the session that this one resumes; 0 if it resumes none.
    """

    taken: int
    waiting: Waiting


@frozen
class CallRecord:
    """
    A call in the history.

    Times are milliseconds since the epoch, UTC.

    @ivar answeredAt: C{None} if nobody took it.
    @ivar outcome: how it ended, as a person reads it: C{"hung up"}, C{"busy"}, C{"no answer"}, ...
    """

    callId: bytes
    caller: bytes
    callee: bytes
    isVideo: bool
    startedAt: int
    answeredAt: int | None
    endedAt: int
    outcome: str


class IStore(Interface):
    """
    What the hub sees of the store.

    Whatever is asked is done in the order in which it was asked, many things in one transaction.  A C{done} is called
    in the reactor thread with the result when that is committed, or with a L{StoreProblem} when it failed; never from
    within the method that it was given to.  Nothing here blocks.

    The texts of a receiver are numbered without a gap, and a number is never given twice: so a session needs only to
    know the number of its first text to count.
    """

    pendingBytes = Attribute("int: about how much has been asked for and is not committed yet.")
    isFailing = Attribute("bool: whether it could not write when it last tried.")

    blocks = Attribute("Mapping[bytes, Set[bytes]]: for each user with any, whom that user blocks; always up to date.")

    def isKnown(userId: bytes) -> bool:
        """Whether texts for that user are kept: who has an account, or without accounts has registered lately."""

    def knownUsers() -> list[bytes]:
        """Return all of whom L{isKnown} is true."""

    def setAfterCommit(f: Callable[[], None]) -> None:
        """Let C{f} be called after all C{done}s of each transaction, be it that it was committed or failed."""

    def setCount(f: Callable[[str], None]) -> None:
        """Let C{f} be called with the name of whatever the operator is to see counted."""

    def setOnline(f: Callable[[bytes], bool]) -> None:
        """Let C{f} say, from any thread, who is registered or about to be: nothing of theirs expires."""

    def setAccountChanged(f: Callable[[bytes], None]) -> None:
        """Let C{f} be called with a user whose account has been disabled or deleted, by whatever process."""

    def registered(userId: bytes) -> None:
        """That user has registered: from now on it is known where there are no accounts."""

    def keep(
        receiver: bytes,
        sender: bytes,
        data: bytes,
        session: bytes,
        taken: int,
        done: Callable[[int | StoreProblem], None],
    ) -> None:
        """
        Keep a text; the result is its number.

        @param session: the digest of the sender's session, whose count becomes C{taken} in the same transaction; empty
            for a sender that has none.
        """

    def keepAll(
        receivers: Sequence[bytes],
        sender: bytes,
        data: bytes,
        session: bytes,
        taken: int,
        done: Callable[[list[int | StoreProblem] | StoreProblem], None],
    ) -> None:
        """
        Do L{keep} with the same text for each of C{receivers}, all in one transaction.

        The results are in their order: one of them whose text cannot be kept harms no other.
        """

    def answered(session: bytes, taken: int, done: Callable[[StoreProblem | None], None]) -> None:
        """That session's count becomes C{taken}, for a text that is not kept."""

    def counted(session: bytes, taken: int) -> None:
        """As L{answered}, when that has failed: it is tried until it succeeds."""

    def forget(receiver: bytes, before: int) -> None:
        """Forget all texts of C{receiver} with a number below C{before}.  If that fails, it is tried again later."""

    def putBack(receiver: bytes, texts: Sequence[tuple[bytes, bytes]]) -> None:
        """Keep texts, each C{(sender, data)}, before all others that wait for C{receiver}: they were never stored."""

    def load(receiver: bytes, number: int, size: int, done: Callable[[list[StoredText] | StoreProblem], None]) -> None:
        """Read texts from C{number} on, in order: as many as have C{size} bytes of data together, and one at least."""

    def waiting(receiver: bytes, done: Callable[[Waiting | StoreProblem], None]) -> None:
        """Learn what waits for a user who registers without a session."""

    def beginSession(
        userId: bytes, session: bytes, resumed: bytes, received: int, done: Callable[[Begun | StoreProblem], None]
    ) -> None:
        """
        Begin a reliable session.

        If C{resumed} is known and not older than 7 days, the first C{received} texts that it got are forgotten, and
        its count is learned.  It stays until L{sessionUsed}; beginning another one that resumes it discards this one.

        @param session: the digest of the new session's ID, 32 bytes.
        @param resumed: the digest of the session that it goes on from; empty for none.
        """

    def sessionUsed(session: bytes) -> None:
        """Something has arrived in that session: the one that it resumed is forgotten."""

    def sessionLost(session: bytes) -> None:
        """Its connection is gone: its 7 days begin."""

    def callEnded(call: CallRecord) -> None:
        """Write a call into the history."""

    def missedCall(callee: bytes, call: MissedCall) -> None:
        """Tell C{callee} of it at the next registration, if that user is known."""

    def missedCallsTold(callee: bytes, calls: tuple[MissedCall, ...]) -> None:
        """C{callee} has been told of these."""

    def block(userId: bytes, other: bytes, done: Callable[[StoreProblem | None], None]) -> None:
        """Let nothing from C{other} reach C{userId}."""

    def unblock(userId: bytes, other: bytes, done: Callable[[StoreProblem | None], None]) -> None:
        """Undo L{block}."""


# -- Accounts ------------------------------------------------------------------------------------------------------


@frozen
class Account:
    """
    A user's account.

    @ivar passwordHash: in the form that names its algorithm and parameters; empty where no password lets one in.
    """

    userId: bytes
    passwordHash: str
    isDisabled: bool


@frozen
class Token:
    """
    What lets a user in for a while.

    @ivar expiresAt: seconds since the epoch, UTC.
    """

    userId: bytes
    expiresAt: float


class AccountExists(Exception):
    """There is an account of that name already."""


class NoSuchAccount(Exception):
    """There is no account of that name."""


class IAccountStore(Interface):
    """
    What accounts see of the store.  Each Deferred fires when it is committed, or fails with L{StoreProblem}.

    Every change is written into the audit trail: when, who (C{actor}), what, whose.
    """

    def account(userId: bytes) -> Deferred[Account | None]:
        """Fires with the account of that name."""

    def addAccount(userId: bytes, passwordHash: str, actor: str, most: int = 0) -> Deferred[None]:
        """
        Create an account.  Fails with L{AccountExists}, or L{QueueFull} if there are C{most} (0: any number) already.
        """

    def setPassword(userId: bytes, passwordHash: str, actor: str) -> Deferred[None]:
        """Set a password; all tokens of that user are revoked.  Fails with L{NoSuchAccount}."""

    def renewHash(userId: bytes, oldHash: str, newHash: str) -> Deferred[None]:
        """Replace a hash of the same password by a better one, unless it has changed meanwhile; revokes nothing."""

    def addToken(userId: bytes, digest: bytes, expiresAt: float) -> Deferred[None]:
        """Keep a token's SHA-256.  A user's newest 100 are kept.  Expired ones are removed now and then."""

    def token(digest: bytes) -> Deferred[Token | None]:
        """Fires with the token, be it expired or not, or C{None} if there is none."""

    def revokeTokens(userId: bytes, digest: bytes, actor: str) -> Deferred[int]:
        """
        Revoke one token, or all of that user's if C{digest} is empty; fires with how many.

        @param actor: empty for the user itself, which the audit trail does not keep.
        """


class Refused(Exception):
    """
    A registration is not accepted.

    @ivar code: badCredential, forbidden or overloaded.
    @ivar text: what the client is told.
    """

    def __init__(self, code: ErrorCode, text: str) -> None:
        super().__init__(code, text)
        self.code = code
        self.text = text


@frozen
class Attempt:
    """
    Somebody wants to register.

    @ivar messageType: of the first frame: LOGIN and SIGNUP say more than that.
    @ivar address: the client's IP address, or whatever else stands for where it comes from.
    @ivar certificateNames: user IDs that a verified client certificate speaks for.
    """

    userId: bytes
    credential: bytes
    messageType: int
    address: str
    certificateNames: frozenset[bytes] = frozenset()


class IAuthenticator(Interface):
    """What the hub sees of accounts: who may be whom."""

    def authenticate(attempt: Attempt) -> Deferred[bytes]:
        """
        Fires with what follows C{[1]} in the AUTH_RESPONSE: a new token for LOGIN and SIGNUP, else nothing.

        Fails with L{Refused}; with L{StoreProblem} if the store cannot tell now.
        """

    def accountCommand(userId: bytes, address: str, data: bytes) -> Deferred[bytes]:
        """
        Do what a registered user asks for its own account.

        ::

            op:u8 0  log out            [token text]                  that token is revoked; without one, all of them
                  1  change password    oldLength:u16 old new         all tokens are revoked
                  5  a new token                                      what to say is the token

        Fires with what to say; fails with L{Refused} or L{StoreProblem}, or
        L{WireError<wecompany.wire.WireError>} if it makes no sense.
        """
