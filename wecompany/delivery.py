"""
Text that has to last: what waits in the store for whom, and what each reliable session has taken.

A text goes this way if its sender or its receiver has a reliable session, or if its receiver is away, is still being
given older ones, or does not keep up.  Every other text goes straight from connection to connection.

::

    sender                          store                              receiver
      | TEXT bob "hello"              |                                    |
      |------------------------------>| keep: bob's text number 7          |
      |                            commit                                  |
      | <---------------- ACK "" [n]  |  TEXT alice "hello" -------------> |   if bob has all before it
      |                               |                                    |
      |                               | <--------------------- ACK "" [k]  |   a reliable session
      |                               | forget up to it                    |   any other: when the kernel has taken it

The numbers of a receiver's texts have no gap.  So a session knows with the number of its first text which one it means
when it counts, and nothing has to be remembered for a text that is under way.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from functools import partial

from twisted.internet.interfaces import IReactorTime
from twisted.logger import Logger

from wecompany.interfaces import (
    Begun,
    IConnection,
    IStore,
    MissedCall,
    QueueFull,
    Session,
    StoredText,
    StoreProblem,
    Waiting,
)
from wecompany.outbound import Turn
from wecompany.wire import (
    ErrorCode,
    MessageType,
    RejectCode,
    WireError,
    decodeU32,
    encodeFrame,
    encodeU32,
)

READ_AT_ONCE = 65_536
"""Bytes of texts that are read from the store for one receiver at a time."""

DELAYED_AFTER = 1.0
"""Seconds from which on a text that was stored while its receiver was online is marked as delayed."""

MAX_STORING = 262_144
"""Bytes that may wait for a commit for one sender; then it is not read until half of that is done."""

OVERHEAD = 64
"""Bytes that each text counts for beside its own."""

MAX_STORING_IN_ALL = 32 * 1_048_576
"""Bytes that may wait for a commit for all; then no sender is read who has anything waiting."""

RETRY_AFTER = 1.0
"""Seconds after which the store is asked again when it could not read."""

HELD = "the store has enough to do"
"""Why a connection is not read."""

_TIME = struct.Struct(">Q")


class Mailbox:
    """
    What goes from the store to one user who is online.

    @ivar base: the number of the first text that this connection gets.
    @ivar next: the number of the next one.
    @ivar end: the number behind the last one in the store.
    @ivar liveFrom: texts before this number came before the user registered.
    @ivar forgotten: the store was told to forget what is before this number.
    @ivar storing: how many texts for this user are not committed yet.
    @ivar room: bytes that may be sent yet before it is seen whether the client keeps up.
    @ivar missedCalls: what the user was told, and maybe does not know yet.
    @ivar isOpen: whether these numbers are known.
    """

    __slots__ = (
        "base",
        "connection",
        "end",
        "forgotten",
        "isLoading",
        "isOpen",
        "liveFrom",
        "missedCalls",
        "next",
        "room",
        "storing",
    )

    def __init__(self, connection: IConnection) -> None:
        self.connection = connection
        self.base = self.next = self.end = self.liveFrom = self.forgotten = 0
        self.storing = 0
        self.room = READ_AT_ONCE
        self.missedCalls: tuple[MissedCall, ...] = ()
        self.isOpen = False
        self.isLoading = False

    @property
    def isReady(self) -> bool:
        """Whether the next text may be sent now."""
        # The first one waits until all is sent that went past the store: so nothing that is left at the end is
        # partly of this kind and partly of that.
        isFirst = self.next == self.base and self.connection.session is None
        return not (self.isLoading or self.connection.textsWaiting) and (not isFirst or self.connection.isClear)

    def open(self, first: int, end: int) -> None:
        """What waits is known."""
        self.base = self.next = self.forgotten = first
        self.end = self.liveFrom = end
        self.isOpen = True


class _Broadcast:
    """
    A text of a reliable session to everyone that is not committed yet.

    @ivar mailboxes: of those who get it from the store, in their turn.
    @ivar others: those who get it when it is committed, past the store.
    """

    __slots__ = ("data", "mailboxes", "others", "sender")

    def __init__(self, sender: bytes, data: bytes) -> None:
        self.sender = sender
        self.data = data
        self.mailboxes: list[Mailbox] = []
        self.others: set[IConnection] = set()


class Delivery:
    """The stored texts of one server: in from any sender, out to whoever is online."""

    _log = Logger()

    def __init__(
        self,
        store: IStore,
        clock: IReactorTime,
        turn: Turn,
        count: Callable[[str], None],
        online: Callable[[bytes], IConnection | None],
    ) -> None:
        """
        @param count: adds one to a counter that the operator sees.
        @param online: returns the connection of a user who is online.
        """
        self._store = store
        self._clock = clock
        self._turn = turn
        self._count = count
        self._online = online
        self._mailboxes: dict[bytes, Mailbox] = {}
        self._toAcknowledge: set[IConnection] = set()
        self._toSettle: set[Mailbox] = set()
        self._held: set[IConnection] = set()
        self._parting: dict[bytes, IConnection] = {}  # plain ones that are being closed
        self._asked: set[Mailbox] = set()  # those that wait to learn what waits
        self._broadcasts: list[_Broadcast] = []
        store.setAfterCommit(self._afterCommit)

    # -- users come and go

    def join(self, connection: IConnection, begun: Begun | None) -> None:
        """
        Somebody has registered.

        @param begun: the session, if it is a reliable one.
        """
        mailbox = self._makeMailbox(connection)
        userId = connection.userId
        self._store.registered(userId)
        if begun is None:
            self._asked.add(mailbox)
            self._store.waiting(userId, partial(self._waits, mailbox))
        else:
            connection.send(encodeFrame(MessageType.ACK, b"", encodeU32(begun.taken)))

    def begin(self, connection: IConnection, waiting: Waiting, isResumed: bool = False) -> None:
        """
        The user has been told how its call stands: tell what was missed, and give it what waits.

        @param isResumed: whether this may never arrive, and then the same session is resumed again.
        """
        mailbox = self._mailboxes[connection.userId]
        mailbox.open(waiting.first, waiting.end)
        for call in waiting.missedCalls:
            connection.send(_missed(call))
        mailbox.missedCalls = waiting.missedCalls
        if not isResumed:
            self._missedCallsTold(mailbox)
        self._pump(mailbox)
        self._settle(mailbox)

    def heardFrom(self, connection: IConnection, session: Session) -> None:
        """Something has come from a reliable session: its client knows that it has begun."""
        self._store.sessionUsed(session.digest)
        self._missedCallsTold(self._mailboxes[connection.userId])

    def _missedCallsTold(self, mailbox: Mailbox) -> None:
        calls, mailbox.missedCalls = mailbox.missedCalls, ()
        if calls:
            self._store.missedCallsTold(mailbox.connection.userId, calls)

    def leave(self, connection: IConnection) -> None:
        """The user of that connection is not reached there any more.  What waits for it goes back to the store."""
        userId = connection.userId
        texts = connection.takeTexts()
        self._held.discard(connection)
        mailbox = self._mailboxes.get(userId)
        if mailbox is not None and mailbox.connection is connection:
            del self._mailboxes[userId]
            self._toSettle.discard(mailbox)
            self._asked.discard(mailbox)
        else:
            mailbox = None
        if connection.session is not None:
            self._store.sessionLost(connection.session.digest)
            return
        self._parting[userId] = connection
        for broadcast in self._broadcasts:  # it has got nothing from the store since such a one came
            if connection in broadcast.others:
                broadcast.others.remove(connection)
                texts.append((broadcast.sender, broadcast.data))
        if mailbox is None or mailbox.next == mailbox.base:
            self._putBack(userId, texts)
        else:
            self._store.forget(userId, mailbox.next - len(texts))

    def lost(self, connection: IConnection) -> None:
        """The connection is gone, and maybe with it a text of which the kernel had only a part."""
        if self._parting.get(connection.userId) is connection:
            del self._parting[connection.userId]
            self._putBack(connection.userId, connection.handedTexts())

    def expect(self, userId: bytes) -> None:
        """
        A user is about to register: a connection of its own that is being closed has no more time.

        A client that has stopped reading in the middle of a text does not get to hear why it was closed; in return that
        text comes in its order.
        """
        parting = self._parting.pop(userId, None)
        if parting is not None:
            texts = parting.handedTexts()
            if texts:
                self._putBack(userId, texts)
                parting.abort()

    # -- from senders

    def keep(self, connection: IConnection | None, sender: bytes, receiver: bytes, data: bytes) -> None:
        """
        Keep a text, and deliver it when it is committed.  All that is for the same receiver comes behind it.

        @param connection: the sender's, who learns how that went; C{None} if it is the server itself.
        """
        mailbox = self._mailboxes.get(receiver)
        if mailbox is None:
            online = self._online(receiver)
            if online is not None:
                mailbox = self._makeMailbox(online)
        if mailbox is not None:
            mailbox.storing += 1
        session = None
        if connection is not None:
            session = connection.session
            self._stores(connection, len(data) + OVERHEAD)
        digest, taken = (session.digest, session.received) if session is not None else (b"", 0)
        kept = partial(self._kept, connection, mailbox, taken, sender, receiver, data)
        self._store.keep(receiver, sender, data, digest, taken, kept)

    def refuse(self, connection: IConnection, error: WireError, receiver: bytes) -> None:
        """Answer a text of a reliable session with an ERROR, in its turn."""
        session = connection.session
        assert session is not None
        taken = session.received

        def done(result: StoreProblem | None) -> None:
            connection.storing -= OVERHEAD
            self._refused(connection, error, receiver, taken, result)

        self._stores(connection, OVERHEAD)
        self._store.answered(session.digest, taken, done)

    def spread(self, connection: IConnection, data: bytes, receivers: Iterable[IConnection]) -> None:
        """
        Give a text of a reliable session to all of them, when it is committed and behind what that session sent before.

        Who has older texts waiting gets it from the store, where it has its place now; to all others it goes straight
        at the commit, which is before that of any later text.
        """
        session = connection.session
        assert session is not None
        taken = session.received
        broadcast = _Broadcast(connection.userId, data)
        for receiver in receivers:
            mailbox = self._mailboxes.get(receiver.userId)
            if mailbox is None:
                broadcast.others.add(receiver)
            else:
                mailbox.storing += 1
                broadcast.mailboxes.append(mailbox)
        size = len(data) + OVERHEAD * (1 + len(broadcast.others) + len(broadcast.mailboxes))
        self._broadcasts.append(broadcast)
        self._stores(connection, size)
        users = [mailbox.connection.userId for mailbox in broadcast.mailboxes]
        done = partial(self._spread, connection, broadcast, taken, size)
        self._store.keepAll(users, broadcast.sender, data, session.digest, taken, done)

    def _spread(
        self,
        connection: IConnection,
        broadcast: _Broadcast,
        taken: int,
        size: int,
        result: list[int | StoreProblem] | StoreProblem,
    ) -> None:
        self._turn.isOpen = True
        self._broadcasts.remove(broadcast)
        connection.storing -= size
        results = [result] * len(broadcast.mailboxes) if isinstance(result, StoreProblem) else result
        for mailbox, one in zip(broadcast.mailboxes, results, strict=True):
            self._isStored(mailbox, broadcast.sender, mailbox.connection.userId, broadcast.data, one)
        if isinstance(result, StoreProblem):
            self._refused(connection, WireError(ErrorCode.OVERLOADED, str(result)), b"", taken, result)
            return
        self._taken(connection, taken)
        self._turn.sendAll(broadcast.others, encodeFrame(MessageType.TEXT, broadcast.sender, broadcast.data))

    def _stores(self, connection: IConnection, size: int) -> None:
        """So much more of this sender waits for a commit: if it is too much, read no more for now."""
        connection.storing += size
        if connection.storing > MAX_STORING or self._store.pendingBytes > MAX_STORING_IN_ALL:
            self._held.add(connection)
            connection.hold(HELD)

    # -- from receivers

    def acknowledge(self, connection: IConnection, userId: bytes, data: bytes) -> None:
        """
        Take an ACK from a client.

        @raise WireError: what the client is to be told by an ERROR.
        """
        if connection.session is None:
            raise WireError(ErrorCode.BAD_REQUEST, "this registration has no reliable texts to acknowledge")
        n = decodeU32(data)
        mailbox = self._mailboxes[connection.userId]
        if userId or n > mailbox.next - mailbox.base:
            raise WireError(ErrorCode.BAD_REQUEST, "more is acknowledged than was sent")
        if mailbox.base + n > mailbox.forgotten:
            mailbox.forgotten = mailbox.base + n
            self._store.forget(connection.userId, mailbox.forgotten)

    def divert(self, connection: IConnection) -> None:
        """That client is behind: until it has caught up, its texts wait in the store."""
        if connection.userId not in self._mailboxes:
            self._makeMailbox(connection)

    def cleared(self, connection: IConnection) -> None:
        """The connection takes more."""
        mailbox = self._mailboxes.get(connection.userId)
        if mailbox is not None and mailbox.connection is connection:
            self._pump(mailbox)
            self._settle(mailbox)

    def sweep(self) -> None:
        """Look after those whose transport does not tell when the kernel has taken everything."""
        for mailbox in list(self._toSettle):
            self._settle(mailbox)

    # -- inside

    def _makeMailbox(self, connection: IConnection) -> Mailbox:
        mailbox = self._mailboxes[connection.userId] = Mailbox(connection)
        connection.isDirect = False
        return mailbox

    def _waits(self, mailbox: Mailbox, result: Waiting | StoreProblem) -> None:
        if mailbox not in self._asked:
            return
        if isinstance(result, StoreProblem):
            self._count("store: could not be read")
            self._clock.callLater(RETRY_AFTER, self._askAgain, mailbox)
            return
        self._asked.remove(mailbox)
        self.begin(mailbox.connection, result)

    def _askAgain(self, mailbox: Mailbox) -> None:
        if mailbox in self._asked:
            self._store.waiting(mailbox.connection.userId, partial(self._waits, mailbox))

    def _kept(
        self,
        connection: IConnection | None,
        awaiting: Mailbox | None,
        taken: int,
        sender: bytes,
        receiver: bytes,
        data: bytes,
        result: int | StoreProblem,
    ) -> None:
        self._turn.isOpen = True
        if connection is not None:
            connection.storing -= len(data) + OVERHEAD
            if isinstance(result, StoreProblem):
                why = None if isinstance(result, QueueFull) else result
                self._refused(connection, WireError(ErrorCode.OVERLOADED, str(result)), receiver, taken, why)
            elif taken:
                self._taken(connection, taken)
        self._isStored(awaiting, sender, receiver, data, result)

    def _isStored(
        self, awaiting: Mailbox | None, sender: bytes, receiver: bytes, data: bytes, result: int | StoreProblem
    ) -> None:
        """A text for that receiver is committed, or refused."""
        mailbox = self._mailboxes.get(receiver)
        if awaiting is not None:
            awaiting.storing -= 1
        if isinstance(result, StoreProblem):
            self._count(f"limits hit: {result.limit}" if isinstance(result, QueueFull) else "store: texts refused")
            if mailbox is not None:
                self._toSettle.add(mailbox)
        elif mailbox is not None:
            self._arrived(mailbox, result, sender, data)

    def _taken(self, connection: IConnection, taken: int) -> None:
        session = connection.session
        assert session is not None
        session.taken = taken
        self._toAcknowledge.add(connection)

    def _refused(
        self, connection: IConnection, error: WireError, receiver: bytes, taken: int, result: StoreProblem | None
    ) -> None:
        """
        Send an ERROR.

        @param result: why it is not counted yet; that is done when the store works again.
        """
        self._turn.isOpen = True
        if taken:
            assert connection.session is not None
            if result is not None and not connection.isClosed:  # who does not read the ERROR sends that text again
                self._store.counted(connection.session.digest, taken)
            self._acknowledge(connection, taken - 1)
            self._taken(connection, taken)
        connection.sendError(error.code, error.text, MessageType.TEXT, receiver)

    def _acknowledge(self, connection: IConnection, taken: int) -> None:
        session = connection.session
        assert session is not None
        if taken > session.acknowledged:
            session.acknowledged = taken
            connection.send(encodeFrame(MessageType.ACK, b"", encodeU32(taken)))

    def _afterCommit(self) -> None:
        """A transaction is over: what followed from it goes out."""
        acknowledged, self._toAcknowledge = self._toAcknowledge, set()
        for connection in acknowledged:
            assert connection.session is not None
            self._acknowledge(connection, connection.session.taken)
        self._turn.close()
        self.sweep()
        for connection in [c for c in self._held if c.storing <= MAX_STORING // 2]:
            self._held.remove(connection)
            connection.release(HELD)

    def _arrived(self, mailbox: Mailbox, number: int, sender: bytes, data: bytes) -> None:
        """A text is committed."""
        if mailbox in self._asked:
            return  # the answer tells of this one too
        if not mailbox.isOpen:
            mailbox.open(number, number)
        mailbox.end = number + 1
        if mailbox.next == number and mailbox.isReady and mailbox.room > 0:
            mailbox.next = number + 1
            mailbox.room -= len(data)
            mailbox.connection.send(encodeFrame(MessageType.TEXT, sender, data))
        self._toSettle.add(mailbox)

    def _pump(self, mailbox: Mailbox) -> None:
        """Read more, if there is any and there is room for it."""
        if mailbox.next < mailbox.end and mailbox.isReady:
            mailbox.isLoading = True
            self._store.load(mailbox.connection.userId, mailbox.next, READ_AT_ONCE, partial(self._loaded, mailbox))

    def _loaded(self, mailbox: Mailbox, result: list[StoredText] | StoreProblem) -> None:
        mailbox.isLoading = False
        connection = mailbox.connection
        if self._mailboxes.get(connection.userId) is not mailbox:
            return
        if isinstance(result, StoreProblem):
            self._count("store: could not be read")
            self._clock.callLater(RETRY_AFTER, self._pumpAgain, mailbox)
            return
        self._turn.isOpen = True
        late = self._clock.seconds() - DELAYED_AFTER
        for text in result:
            if text.number != mailbox.next:
                break
            mailbox.next += 1
            frame = encodeFrame(MessageType.TEXT, text.sender, text.data)
            if text.number < mailbox.liveFrom or text.sentAt < late * 1000:
                frame = encodeDelay(text.sender, text.sentAt) + frame
            connection.send(frame)
        else:
            if result:
                self._toSettle.add(mailbox)
                return
        self._log.error(
            "The texts of {user!r} have a gap before {number}", user=connection.userId.decode(), number=mailbox.next
        )
        connection.close(ErrorCode.INTERNAL, "a fault in the server; it is logged")

    def _pumpAgain(self, mailbox: Mailbox) -> None:
        if self._mailboxes.get(mailbox.connection.userId) is mailbox:
            self._pump(mailbox)

    def _settle(self, mailbox: Mailbox) -> None:
        """Read on; forget what the kernel of a plain client has taken; if nothing is left, all is direct again."""
        connection = mailbox.connection
        self._toSettle.discard(mailbox)
        mailbox.room = READ_AT_ONCE
        self._pump(mailbox)
        if connection.session is not None or mailbox in self._asked:
            return
        if not connection.isClear:
            self._toSettle.add(mailbox)
            return
        if mailbox.forgotten < mailbox.next:
            mailbox.forgotten = mailbox.next
            self._store.forget(connection.userId, mailbox.next)
        if mailbox.next == mailbox.end and not mailbox.storing:
            self._close(mailbox)

    def _close(self, mailbox: Mailbox) -> None:
        del self._mailboxes[mailbox.connection.userId]
        mailbox.connection.isDirect = True

    def _putBack(self, userId: bytes, texts: list[tuple[bytes, bytes]]) -> None:
        if texts:
            if self._store.isKnown(userId):
                self._store.putBack(userId, texts)
            else:
                self._count("texts lost: their receiver left and is not known to the store")


def encodeDelay(sender: bytes, sentAt: int) -> bytes:
    """Return the DELAY that stands before what was sent at C{sentAt}, milliseconds since the epoch."""
    return encodeFrame(MessageType.DELAY, sender, _TIME.pack(sentAt))


def _missed(call: MissedCall) -> bytes:
    return encodeDelay(call.caller, call.startedAt) + encodeFrame(
        MessageType.CALL_REJECT, call.caller, call.callId + bytes((RejectCode.NO_ANSWER,))
    )
