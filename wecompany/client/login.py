"""Getting a token with a password: what one logs in with once need not be kept."""

from __future__ import annotations

from typing import Any

from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IStreamClientEndpoint

from wecompany.client.errors import ServerError
from wecompany.client.session import Client, ClientListener
from wecompany.wire import ErrorCode


def logIn(
    reactor: Any, endpoint: IStreamClientEndpoint, userId: str, password: str, listener: ClientListener | None = None
) -> Deferred[bytes]:
    """
    Log in with a password, and leave again.

    It is a reliable registration like any other, so a text that waits for this user stays with the server unless the
    listener takes it.

    @param listener: who is told what comes meanwhile, such as missed calls.
    @return: fires with the token, which is what a L{Client<wecompany.client.Client>} takes as its credential; it is
        empty where the server runs open.  Fails with L{ServerError<wecompany.client.ServerError>}, badCredential if
        that is no such user or not its password, with what the endpoint fails with, or with
        L{NotConnected<wecompany.client.NotConnected>}.
    """
    return Deferred.fromCoroutine(_logIn(Client(reactor, endpoint, userId, listener, credential=password.encode())))


def signUp(
    reactor: Any, endpoint: IStreamClientEndpoint, userId: str, password: str, listener: ClientListener | None = None
) -> Deferred[bytes]:
    """Create an account, where the server lets one do that, and log in; see L{logIn}."""
    return Deferred.fromCoroutine(_signUp(Client(reactor, endpoint, userId, listener, credential=password.encode())))


async def _logIn(client: Client) -> bytes:
    try:
        await client.start()
        return await client.newToken()
    except ServerError as e:
        if e.code != ErrorCode.BAD_REQUEST:
            raise
        return b""  # a server that runs open knows of no tokens
    finally:
        await client.stop()


async def _signUp(client: Client) -> bytes:
    try:
        return await client.signUp()
    finally:
        await client.stop()
