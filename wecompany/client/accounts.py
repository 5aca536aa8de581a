"""What a registered user asks for its own account."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

from wecompany.client.errors import AccountRefused, ClientError
from wecompany.wire import ErrorCode, WireError


def splitIds(data: bytes) -> list[str]:
    """
    Return the user IDs that stand one after the other in C{data}, each behind its length.

    @raise ClientError: if the last one is cut.
    """
    users = []
    while data:
        end = 2 + int.from_bytes(data[:2], "big")
        if len(data) < max(2, end):
            raise ClientError("the list that the server sent is cut")
        users.append(data[2:end].decode("utf-8", "replace"))
        data = data[end:]
    return users


class Accounts:
    """The commands that wait: one is sent when the one before it has been answered, so the answer is its own."""

    def __init__(self) -> None:
        self._waiting: deque[tuple[Callable[[], None], Deferred[bytes]]] = deque()

    def ask(self, send: Callable[[], None]) -> Deferred[bytes]:
        """
        Give a command.

        @param send: sends it.
        @return: fires with what the server says; fails with L{AccountRefused}, L{ServerError} or L{NotConnected}.
        """
        answered: Deferred[bytes] = Deferred()
        self._waiting.append((send, answered))
        if len(self._waiting) == 1:
            send()
        return answered

    def answered(self, data: bytes) -> None:
        """
        An AUTH_RESPONSE has come.

        @raise WireError: if it says neither yes nor no.
        """
        if data[:1] not in (b"\0", b"\1"):
            raise WireError(ErrorCode.BAD_REQUEST, "an AUTH_RESPONSE says yes or no")
        answered = self._next()
        if answered is not None and data[0]:
            answered.callback(data[1:])
        elif answered is not None:
            answered.errback(Failure(AccountRefused(data[1:].decode("utf-8", "replace"))))

    def refused(self, error: ClientError) -> bool:
        """An ERROR about a LOGIN has come; return whether it answers a command."""
        answered = self._next()
        if answered is not None:
            answered.errback(Failure(error))
        return answered is not None

    def lost(self, error: ClientError) -> None:
        """The connection is gone, and with it the answers."""
        waiting, self._waiting = self._waiting, deque()
        for _, answered in waiting:
            answered.errback(Failure(error))

    def _next(self) -> Deferred[bytes] | None:
        """Return whose answer this is, and send the command behind it."""
        if not self._waiting:
            return None
        _, answered = self._waiting.popleft()
        if self._waiting:
            self._waiting[0][0]()
        return answered
