"""
File transfers: who may send what to whom, in which order, and how much at once.

The server keeps no byte of a file.  It passes each op on to the other party and holds both to the rules, so that a
receiver never gets more than it has room for and a sender always learns how its transfer ended.

::

    sender                  server                 receiver
      | OFFER size sha256 name --------------------------> |
      | <------------------------------------ ACCEPT offset |     or CANCEL declined
      | CHUNK offset bytes ------------------------------> |
      | <------------------------------------ CREDIT offset |     at most 1 MiB past the last one is under way
      | DONE --------------------------------------------> |
      | <------------------------------------------ RECEIVED |     or CANCEL hash mismatch
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Callable

from attrs import define
from twisted.internet.interfaces import IDelayedCall, IReactorTime

from wecompany.interfaces import IRouter
from wecompany.limits import RateLimit
from wecompany.wire import (
    FILE_WINDOW,
    MAX_CHUNK,
    CancelCode,
    ErrorCode,
    FileOffer,
    FileOp,
    MessageType,
    WireError,
    checkUserId,
    decodeOffset,
    encodeOffset,
    splitId,
    splitOffset,
    splitReason,
)

MAX_OFFERED = 32
"""Transfers that are offered and not yet accepted, for each user and direction."""

MAX_ACCEPTED = 4
"""Transfers that are accepted and not yet over, for each user and direction."""

OFFER_LAPSES_AFTER = 600.0
"""Seconds until an offer that nobody accepts is cancelled."""

REMEMBERED_FOR = 32.0
"""Seconds that late chunks of a transfer are expected after its end."""

LEAST_WAIT = 0.001
"""Seconds that a credit over the file rate is held back at least."""

MAX_REMEMBERED = 10_000
"""Ended transfers that are remembered at once."""

Key = tuple[bytes, bytes, bytes]
"""Sender, receiver, transfer ID."""


@define(eq=False)
class Transfer:
    """
    One file on its way.

    @ivar sent: everything before this offset has been passed on.
    @ivar credit: everything before this offset has been taken by the receiver.
    @ivar lapse: what cancels the offer; C{None} when it has been accepted.
    @ivar done: whether the sender has said that this was all.
    @ivar taken: up to where the receiver has taken it, which the sender learns at the pace of its file rate.
    """

    sender: bytes
    receiver: bytes
    transferId: bytes
    size: int
    lapse: IDelayedCall | None
    sent: int = 0
    credit: int = 0
    done: bool = False
    taken: int = 0
    crediting: IDelayedCall | None = None

    @property
    def key(self) -> Key:
        """Return what names it in the table."""
        return self.sender, self.receiver, self.transferId


class FileTransfers:
    """All transfers of one server."""

    def __init__(self, router: IRouter, clock: IReactorTime, rate: RateLimit | None = None) -> None:
        """
        @param router: how users are reached.
        @param rate: how many bytes each user may send; any number if not given.
        """
        self._rate = rate
        self._router = router
        self._clock = clock
        self._transfers: dict[Key, Transfer] = {}
        self._ofUser: dict[bytes, set[Key]] = {}
        # How many a user has: (user, whether as the sender) -> number
        self._offered: Counter[tuple[bytes, bool]] = Counter()
        self._accepted: Counter[tuple[bytes, bool]] = Counter()
        self._ended: OrderedDict[Key, float] = OrderedDict()
        # Each is called with (user, peer, transfer ID, what follows it, the whole data).
        self._handlers: dict[int, Callable[[bytes, bytes, bytes, bytes, bytes], None]] = {
            FileOp.OFFER: self._offer,
            FileOp.ACCEPT: self._accept,
            FileOp.CHUNK: self._chunk,
            FileOp.DONE: self._done,
            FileOp.RECEIVED: self._received,
            FileOp.CANCEL: self._cancel,
            FileOp.CREDIT: self._credit,
        }

    def frameReceived(self, user: bytes, peer: bytes, data: bytes) -> None:
        """
        Take a FILE frame from C{user} about a transfer with C{peer}.

        @raise WireError: what the client is to be told by an ERROR.
        """
        if not data:
            raise WireError(ErrorCode.BAD_REQUEST, "a FILE has an op")
        handler = self._handlers.get(data[0])
        transferId, rest = splitId(data[1:])
        if handler is None:
            raise WireError(ErrorCode.BAD_REQUEST, f"there is no file op {data[0]}")
        handler(user, peer, transferId, rest, data)

    def userLost(self, user: bytes) -> None:
        """Cancel all transfers of a user who has no connection any more; the others can offer or accept them again."""
        for key in list(self._ofUser.get(user, ())):
            transfer = self._transfers[key]
            other = transfer.receiver if transfer.sender == user else transfer.sender
            self._end(transfer)
            self._tellCancelled(transfer, other, CancelCode.PEER_LOST, "the other party's connection was lost")

    def stop(self) -> None:
        """Forget everything."""
        for transfer in self._transfers.values():
            for timer in (transfer.lapse, transfer.crediting):
                if timer is not None:
                    timer.cancel()
        for table in (self._transfers, self._ofUser, self._offered, self._accepted, self._ended):
            table.clear()

    # -- the ops

    def _offer(self, sender: bytes, receiver: bytes, transferId: bytes, rest: bytes, data: bytes) -> None:
        checkUserId(receiver)
        offer = FileOffer.decode(rest)
        if sender == receiver:
            raise WireError(ErrorCode.BAD_REQUEST, "a file cannot be sent to oneself")
        key = sender, receiver, transferId
        if key in self._transfers:
            raise WireError(ErrorCode.BAD_REQUEST, "this transfer is under way")
        if self._router.isBlocked(receiver, sender):
            raise WireError(ErrorCode.FORBIDDEN, "that user takes nothing from you")
        if not self._router.isOnline(receiver):
            raise WireError(ErrorCode.OFFLINE, "that user is offline")
        if self._offered[sender, True] >= MAX_OFFERED:
            raise WireError(ErrorCode.OVERLOADED, f"you have {MAX_OFFERED} offers waiting: cancel one or wait")
        if self._offered[receiver, False] >= MAX_OFFERED:
            raise WireError(ErrorCode.OVERLOADED, f"that user has {MAX_OFFERED} offers waiting: try later")
        transfer = Transfer(sender, receiver, transferId, offer.size, None)
        transfer.lapse = self._clock.callLater(OFFER_LAPSES_AFTER, self._lapsed, transfer)
        self._transfers[key] = transfer
        self._ofUser.setdefault(sender, set()).add(key)
        self._ofUser.setdefault(receiver, set()).add(key)
        self._tally(self._offered, transfer, 1)
        self._router.deliver(receiver, MessageType.FILE, sender, data)

    def _accept(self, receiver: bytes, sender: bytes, transferId: bytes, rest: bytes, data: bytes) -> None:
        offset = decodeOffset(rest)
        transfer = self._find(sender, receiver, transferId)
        if transfer.lapse is None:
            self._breakRule(transfer, "accepted twice")
        elif offset > transfer.size:
            self._breakRule(transfer, "accepted from an offset past the size")
        elif self._accepted[receiver, False] >= MAX_ACCEPTED or self._accepted[sender, True] >= MAX_ACCEPTED:
            raise WireError(ErrorCode.OVERLOADED, f"{MAX_ACCEPTED} transfers are under way: accept when one is over")
        else:
            transfer.lapse.cancel()
            transfer.lapse = None
            self._tally(self._offered, transfer, -1)
            self._tally(self._accepted, transfer, 1)
            transfer.sent = transfer.credit = transfer.taken = offset
            self._router.deliver(sender, MessageType.FILE, receiver, data)

    def _chunk(self, sender: bytes, receiver: bytes, transferId: bytes, rest: bytes, data: bytes) -> None:
        offset, part = splitOffset(rest)
        if not 1 <= len(part) <= MAX_CHUNK:
            raise WireError(ErrorCode.BAD_REQUEST, f"a chunk has 1 to {MAX_CHUNK} bytes")
        transfer = self._findOrDrop(sender, receiver, transferId)
        if transfer is None:
            return
        end = offset + len(part)
        if transfer.lapse is not None:
            self._breakRule(transfer, "a chunk of a transfer that is not accepted")
        elif offset != transfer.sent:
            self._breakRule(transfer, "a chunk out of order")
        elif end > transfer.size:
            self._breakRule(transfer, "a chunk past the size")
        elif end > transfer.credit + FILE_WINDOW:
            self._breakRule(transfer, "a chunk past the window")
        else:
            transfer.sent = end
            self._router.deliver(receiver, MessageType.FILE, sender, data)

    def _credit(self, receiver: bytes, sender: bytes, transferId: bytes, rest: bytes, data: bytes) -> None:
        offset = decodeOffset(rest)
        transfer = self._findOrDrop(sender, receiver, transferId)
        if transfer is None:
            return
        if transfer.lapse is not None and self._endedLately(transfer.key):
            self._router.count("file frames dropped: transfer over")  # it is about the try before this offer
        elif offset > transfer.sent:
            self._breakRule(transfer, "credit past what was sent")
        elif offset < transfer.taken or transfer.lapse is not None:
            raise WireError(ErrorCode.BAD_REQUEST, "credit only grows, from the offset that was accepted")
        else:
            transfer.taken = offset
            if transfer.crediting is None:
                self._passCredit(transfer)

    def _passCredit(self, transfer: Transfer) -> None:
        """Tell the sender what the receiver has taken, as soon as its file rate allows."""
        transfer.crediting = None
        size = transfer.taken - transfer.credit
        if self._rate is not None and size and not self._rate.allow(transfer.sender, size):
            self._router.count("limits hit: file")
            wait = self._rate.wait(transfer.sender, size)
            transfer.crediting = self._clock.callLater(max(wait, LEAST_WAIT), self._passCredit, transfer)
            return
        transfer.credit = transfer.taken
        data = bytes((FileOp.CREDIT,)) + transfer.transferId + encodeOffset(transfer.credit)
        self._router.deliver(transfer.sender, MessageType.FILE, transfer.receiver, data)

    def _done(self, sender: bytes, receiver: bytes, transferId: bytes, rest: bytes, data: bytes) -> None:
        _nothing(rest)
        transfer = self._findOrDrop(sender, receiver, transferId)
        if transfer is None:
            return
        if transfer.lapse is not None or transfer.sent < transfer.size:
            self._breakRule(transfer, "done before all was sent")
        elif transfer.done:
            raise WireError(ErrorCode.BAD_REQUEST, "done was said already")
        else:
            transfer.done = True
            self._router.deliver(receiver, MessageType.FILE, sender, data)

    def _received(self, receiver: bytes, sender: bytes, transferId: bytes, rest: bytes, data: bytes) -> None:
        _nothing(rest)
        transfer = self._find(sender, receiver, transferId)
        if not transfer.done:
            self._breakRule(transfer, "received before all was sent")
        else:
            self._end(transfer)
            self._router.deliver(sender, MessageType.FILE, receiver, data)

    def _cancel(self, user: bytes, peer: bytes, transferId: bytes, rest: bytes, data: bytes) -> None:
        if not rest:
            raise WireError(ErrorCode.BAD_REQUEST, "a CANCEL has a code")
        splitReason(rest)
        transfer = self._transfers.get((user, peer, transferId)) or self._find(peer, user, transferId)
        self._end(transfer)
        self._router.deliver(peer, MessageType.FILE, user, data)

    # -- how a transfer ends

    def _breakRule(self, transfer: Transfer, rule: str) -> None:
        self._end(transfer)
        self._tellBothCancelled(transfer, CancelCode.RULE_BROKEN, rule)

    def _lapsed(self, transfer: Transfer) -> None:
        self._end(transfer)
        self._tellBothCancelled(transfer, CancelCode.CANCELLED, "nobody accepted the offer in time")

    def _tellBothCancelled(self, transfer: Transfer, code: CancelCode, text: str) -> None:
        self._tellCancelled(transfer, transfer.sender, code, text)
        self._tellCancelled(transfer, transfer.receiver, code, text)

    def _tellCancelled(self, transfer: Transfer, party: bytes, code: CancelCode, text: str) -> None:
        other = transfer.receiver if party == transfer.sender else transfer.sender
        data = bytes((FileOp.CANCEL,)) + transfer.transferId + bytes((code,)) + text.encode()
        self._router.deliver(party, MessageType.FILE, other, data)

    def _end(self, transfer: Transfer) -> None:
        key = transfer.key
        del self._transfers[key]
        for user in (transfer.sender, transfer.receiver):
            keys = self._ofUser[user]
            keys.remove(key)
            if not keys:
                del self._ofUser[user]
        if transfer.lapse is not None and transfer.lapse.active():
            transfer.lapse.cancel()
        if transfer.crediting is not None:
            transfer.crediting.cancel()
        self._tally(self._accepted if transfer.lapse is None else self._offered, transfer, -1)
        now = self._clock.seconds()
        while self._ended and (len(self._ended) >= MAX_REMEMBERED or next(iter(self._ended.values())) <= now):
            self._ended.popitem(last=False)
        self._ended.pop(key, None)
        self._ended[key] = now + REMEMBERED_FOR

    # -- the table

    @staticmethod
    def _tally(counter: Counter[tuple[bytes, bool]], transfer: Transfer, n: int) -> None:
        for who in ((transfer.sender, True), (transfer.receiver, False)):
            counter[who] += n
            if not counter[who]:
                del counter[who]

    def _find(self, sender: bytes, receiver: bytes, transferId: bytes) -> Transfer:
        transfer = self._transfers.get((sender, receiver, transferId))
        if transfer is None:
            raise WireError(ErrorCode.BAD_REQUEST, "there is no such transfer with that user in that direction")
        return transfer

    def _findOrDrop(self, sender: bytes, receiver: bytes, transferId: bytes) -> Transfer | None:
        """Return the transfer, or nothing if it ended so lately that its other party cannot have known."""
        key = sender, receiver, transferId
        if key not in self._transfers and self._endedLately(key):
            self._router.count("file frames dropped: transfer over")
            return None
        return self._find(sender, receiver, transferId)

    def _endedLately(self, key: Key) -> bool:
        return self._ended.get(key, 0.0) > self._clock.seconds()


def _nothing(rest: bytes) -> None:
    if rest:
        raise WireError(ErrorCode.BAD_REQUEST, "nothing follows the transfer ID in this op")
