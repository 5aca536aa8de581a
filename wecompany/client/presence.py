"""Who is online, as one client sees it."""

from __future__ import annotations

from collections.abc import Callable

from twisted.internet.defer import Deferred, fail
from twisted.python.failure import Failure

from wecompany.client.errors import ClientError
from wecompany.wire import PresenceOp, decodeU32

MAX_LISTED = 1_000_000
"""Users in one list from the server."""

Users = list[tuple[str, bool]]
"""Users, and whether each is online."""


def names(users: Users) -> list[str]:
    """Return the users without more."""
    return [user for user, _ in users]


class Presence:
    """
    The lists that one asks for, and the changes between them.

    @ivar isWatched: whether to be told of everyone who comes and goes.
    """

    def __init__(
        self, user: str, ask: Callable[[PresenceOp], Deferred[None]], changed: Callable[[str, bool], None]
    ) -> None:
        """
        @param user: oneself, who is in no list here and whose changes are not told.
        @param ask: asks the server; fails if it refuses.
        @param changed: called with a user and whether that one is online now.
        """
        self._user = user
        self._ask = ask
        self._changed = changed
        self.isWatched = False
        self._listing: Deferred[Users] | None = None
        self._listed: Users = []
        self._known: set[str] = set()

    def fetch(self, op: PresenceOp) -> Deferred[Users]:
        """Ask for a list; fires with it."""
        if self._listing is not None:
            return fail(ClientError("a list is on its way"))
        listing: Deferred[Users] = Deferred()
        self._listing = listing
        self._listed = []

        def failed(failure: Failure) -> None:
            if self._listing is listing:
                self._listing = None
                for user, isOnline in self._listed:
                    self._tell(user, isOnline)
                listing.errback(failure)

        self._ask(op).addErrback(failed)
        return listing

    def watch(self) -> Deferred[list[str]]:
        """Be told of changes; fires with who is online."""
        self.isWatched = True

        def online(users: Users) -> list[str]:
            self._known = set(names(users))
            return names(users)

        return self.fetch(PresenceOp.SUBSCRIBE).addCallback(online)

    def watchAgain(self) -> Deferred[None]:
        """Over a new connection, be told of changes again, and of those since the connection before."""

        def tellChanges(users: Users) -> None:
            before, self._known = self._known, set(names(users))
            for user in sorted(before ^ self._known):
                self._changed(user, user in self._known)

        return self.fetch(PresenceOp.SUBSCRIBE).addCallback(tellChanges)

    def received(self, user: str, data: bytes) -> None:
        """
        Take a PRESENCE from the server.

        @raise WireError: if it is none.
        """
        if user:
            isOnline = data == b"\1"
            if self._listing is None:
                self._tell(user, isOnline)
            elif len(self._listed) < MAX_LISTED:
                self._listed.append((user, isOnline))
            return
        count = decodeU32(data)
        listing, self._listing = self._listing, None
        if listing is not None:
            first = max(0, len(self._listed) - count)
            before, self._listed = self._listed[:first], self._listed[first:]
            for other, isOnline in before:
                self._tell(other, isOnline)
            listing.callback([listed for listed in self._listed if listed[0] != self._user])

    def lost(self, reason: ClientError) -> None:
        """The connection is gone."""
        listing, self._listing = self._listing, None
        if listing is not None:
            listing.errback(Failure(reason))

    def _tell(self, user: str, isOnline: bool) -> None:
        if user == self._user:
            return
        (self._known.add if isOnline else self._known.discard)(user)
        self._changed(user, isOnline)
