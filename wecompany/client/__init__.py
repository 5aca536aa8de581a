"""
The client library: one user's session with a server, in anyone's reactor.

::

    client = Client(reactor, clientFromString(reactor, "tcp:localhost:8888"), "alice", Listener())
    await client.start()
    await client.sendText("bob", "hello")
    call = await client.call("bob")
    await call.whenAccepted()
"""

from wecompany.client.calls import Call, CallOutcome
from wecompany.client.errors import CallRejected, ClientError, NotConnected, ServerError, TransferCancelled
from wecompany.client.session import Client, ClientListener
from wecompany.client.transfers import IncomingFile

__all__ = [
    "Call",
    "CallOutcome",
    "CallRejected",
    "Client",
    "ClientError",
    "ClientListener",
    "IncomingFile",
    "NotConnected",
    "ServerError",
    "TransferCancelled",
]
