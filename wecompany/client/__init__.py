"""
The client library: one user's session with a server, in anyone's reactor.

::

    client = Client(reactor, clientFromString(reactor, "tcp:localhost:8888"), "alice", Listener())
    await client.start()
    await client.sendText("bob", "hello")
    call = await client.call("bob")
    await call.whenAccepted()

Where the server has accounts, a password gives a token, and that lets the client in; over TLS::

    endpoint = tlsEndpoint(reactor, "chat.example.com", 8888)
    token = await logIn(reactor, endpoint, "alice", password)
    client = Client(reactor, endpoint, "alice", Listener(), credential=token)
"""

from wecompany.client.calls import Call, CallOutcome
from wecompany.client.endpoints import tlsEndpoint
from wecompany.client.errors import (
    AccountRefused,
    CallRejected,
    ClientError,
    NotConnected,
    ServerError,
    TlsFailed,
    TransferCancelled,
)
from wecompany.client.login import logIn, signUp
from wecompany.client.session import Client, ClientListener
from wecompany.client.transfers import IncomingFile

__all__ = [
    "AccountRefused",
    "Call",
    "CallOutcome",
    "CallRejected",
    "Client",
    "ClientError",
    "ClientListener",
    "IncomingFile",
    "NotConnected",
    "ServerError",
    "TlsFailed",
    "TransferCancelled",
    "logIn",
    "signUp",
    "tlsEndpoint",
]
