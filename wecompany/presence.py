"""Who is told when somebody comes online or goes offline."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from wecompany.interfaces import IConnection
from wecompany.limits import RateLimit
from wecompany.wire import (
    ErrorCode,
    MessageType,
    PresenceOp,
    WireError,
    checkUserId,
    encodeFrame,
    encodeU32,
)

LISTED_AT_ONCE = 65_536
"""Bytes of a list that are made before it is seen whether the client takes them."""

COALESCE = 0.25
"""Seconds in which several changes are told together, and of each user only the last: so a storm of log-ins costs each
watcher four frames a second, not one for each log-in."""

ONLINE = b"\1"
OFFLINE = b"\0"


def _encode(userId: bytes, isOnline: bool) -> bytes:
    return encodeFrame(MessageType.PRESENCE, userId, ONLINE if isOnline else OFFLINE)


class Presence:
    """
    The subscriptions of one server.  They belong to a connection and end with it.

    @ivar known: returns all users of whom the store knows, online or not.
    """

    def __init__(
        self,
        online: dict[bytes, IConnection],
        clock: IReactorTime,
        count: Callable[[str], None],
        lists: RateLimit | None,
        maxSubscriptions: int,
    ) -> None:
        """
        @param online: the hub's map of who is online, which stays the hub's.
        @param count: adds one to a counter that the operator sees.
        @param lists: how often a user may ask for a list.
        @param maxSubscriptions: single users that one connection may watch; 0 for any number.
        """
        self._online = online
        self._clock = clock
        self._ofEveryone: set[IConnection] = set()
        self._ofUser: dict[bytes, set[IConnection]] = {}
        self._watched: dict[IConnection, set[bytes]] = {}
        self._count = count
        self._lists = lists
        self._maxSubscriptions = maxSubscriptions
        self.known: Callable[[], Iterable[bytes]] = lambda: ()
        self._listings: dict[IConnection, Iterator[bytes]] = {}
        self._changed: dict[bytes, bool] = {}
        self._timer: IDelayedCall | None = None

    def frameReceived(self, connection: IConnection, userId: bytes, data: bytes) -> None:
        """
        Take a PRESENCE from a client.

        @raise WireError: what the client is to be told by an ERROR.
        """
        if userId:
            checkUserId(userId)
        if data == b"\1" and userId:
            self._subscribe(connection, userId)
        elif data == b"\2":
            self._unsubscribe(connection, userId)
        elif len(data) == 1 and data[0] in (PresenceOp.LIST, PresenceOp.SUBSCRIBE, PresenceOp.LIST_ALL) and not userId:
            self._list(connection, PresenceOp(data[0]))
        else:
            raise WireError(ErrorCode.BAD_REQUEST, "there is no such presence op")

    def changed(self, userId: bytes) -> None:
        """A user has come online or gone offline: tell those who watch it."""
        self._changed[userId] = userId in self._online
        if self._timer is None:
            self._tellChanges()
            self._timer = self._clock.callLater(COALESCE, self._coalesced)

    def cleared(self, connection: IConnection) -> None:
        """The connection takes more: go on with its list."""
        self._goOn(connection)

    def connectionLost(self, connection: IConnection) -> None:
        """Forget what this connection watched."""
        self._listings.pop(connection, None)
        self._ofEveryone.discard(connection)
        for userId in self._watched.pop(connection, ()):
            self._forget(connection, userId)

    def stop(self) -> None:
        """Tell nobody any more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._changed.clear()

    def _list(self, connection: IConnection, op: PresenceOp) -> None:
        if self._lists is not None and not self._lists.allow(connection.userId):
            self._count("limits hit: presence")
            raise WireError(ErrorCode.OVERLOADED, "too many lists: try again in a minute (limit presence)")
        if op == PresenceOp.SUBSCRIBE:
            self._tellChanges()  # so that nothing older follows the list
            self._ofEveryone.add(connection)
        if connection in self._listings:
            raise WireError(ErrorCode.OVERLOADED, "one list at a time")
        users = list(self.known() if op == PresenceOp.LIST_ALL else ())
        online = [userId for userId in self._online if op == PresenceOp.LIST_ALL or userId != connection.userId]
        self._listings[connection] = self._listed(users, online)
        self._goOn(connection)

    def _listed(self, known: list[bytes], online: list[bytes]) -> Iterator[bytes]:
        """Yield the frames of a list, each as things stand when it is asked for."""
        n = 0
        for userId in online:
            if userId in self._online:
                n += 1
                yield _encode(userId, True)
        wereOnline = set(online)
        for userId in known:
            if userId not in wereOnline:
                n += 1
                yield _encode(userId, userId in self._online)
        yield encodeFrame(MessageType.PRESENCE, b"", encodeU32(n))

    def _goOn(self, connection: IConnection) -> None:
        """Send the next piece of a list, if there is one and the client takes what it has got so far."""
        frames = self._listings.get(connection)
        if frames is None or connection.textsWaiting:
            return
        piece: list[bytes] = []
        size = 0
        for frame in frames:
            piece.append(frame)
            size += len(frame)
            if size >= LISTED_AT_ONCE:
                self._clock.callLater(0, self._goOn, connection)
                break
        else:
            del self._listings[connection]
        if piece:
            connection.send(b"".join(piece))

    def _subscribe(self, connection: IConnection, userId: bytes) -> None:
        watched = self._watched.setdefault(connection, set())
        if userId not in watched and len(watched) >= (self._maxSubscriptions or math.inf):
            self._count("limits hit: subscriptions")
            raise WireError(
                ErrorCode.OVERLOADED, f"you watch {len(watched)} users: watch everyone instead (limit subscriptions)"
            )
        self._tellChanges()
        watched.add(userId)
        self._ofUser.setdefault(userId, set()).add(connection)
        connection.send(_encode(userId, userId in self._online))

    def _unsubscribe(self, connection: IConnection, userId: bytes) -> None:
        if not userId:
            self._ofEveryone.discard(connection)
        elif userId in self._watched.get(connection, ()):
            self._watched[connection].remove(userId)
            self._forget(connection, userId)

    def _forget(self, connection: IConnection, userId: bytes) -> None:
        watchers = self._ofUser[userId]
        watchers.remove(connection)
        if not watchers:
            del self._ofUser[userId]

    def _coalesced(self) -> None:
        self._timer = None
        if self._changed:
            self._tellChanges()
            self._timer = self._clock.callLater(COALESCE, self._coalesced)

    def _tellChanges(self) -> None:
        # No watcher hears of itself: it watches only while it is online, and what happened before is told before.
        changes, self._changed = self._changed, {}
        if not changes:
            return
        told = {userId: _encode(userId, isOnline) for userId, isOnline in changes.items()}
        if self._ofEveryone:
            everything = b"".join(told.values())
            for connection in self._ofEveryone:
                connection.send(everything)
        for userId, frame in told.items():
            for connection in self._ofUser.get(userId, set()) - self._ofEveryone:
                connection.send(frame)
