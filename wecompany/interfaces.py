"""
The published seams: what the parts of the server know of each other, and what an application may plug in.

User IDs are C{bytes} on this side of the wire and C{str} in what an application sees.
"""

from __future__ import annotations

from attrs import frozen
from twisted.internet.interfaces import IConsumer, IPushProducer, ITransport
from zope.interface import Attribute, Interface

from wecompany.wire import ErrorCode


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


class IConnection(Interface):
    """What the hub sees of one connection, whatever its transport."""

    userId = Attribute("bytes: who registered here; empty before that.")
    tag = Attribute("bytes: the user ID as every relayed frame of this user has it.")

    def peerName() -> str:
        """Return where the client is, for the log: an address, or whatever names its transport's other end."""

    def send(frames: bytes) -> None:
        """Put whole frames behind what waits for this client."""

    def registered(userId: bytes, sessionId: bytes) -> None:
        """This connection is C{userId}'s from now on: answer its first frame with that."""

    def resume() -> None:
        """What follows the registration has been sent: take the frames that waited for it."""

    def ownsSession(sessionId: bytes) -> bool:
        """Whether that is the session ID which this connection's registration was answered with."""

    def probe() -> None:
        """Ask the client for a sign of life: L{IHub.heardFrom} is called when any bytes arrive."""

    def sweep(now: float) -> None:
        """Close the connection if one of its deadlines has passed."""

    def close(code: ErrorCode, text: str) -> None:
        """Say why with an ERROR, or as the first frame asked for, then close; take nothing more from this client."""

    def abort() -> None:
        """Drop the connection at once."""


class IHub(Interface):
    """What a connection sees of the hub."""

    idleTimeout = Attribute("float: seconds after which a silent client is closed.")

    def connectionMade(connection: IConnection) -> None:
        """Somebody has connected, and is nobody yet."""

    def register(connection: IConnection, userId: bytes, credential: bytes, sessionId: bytes | None) -> None:
        """
        The first frame has come.  The hub answers, now or later, with C{registered} and C{resume}, or C{close}.

        @param sessionId: what the client says its last session was; C{None} if it resumes nothing.
        """

    def frameReceived(connection: IConnection, messageType: int, userId: bytes, data: bytes) -> None:
        """
        A later frame has come.

        @raise WireError: what the client is to be told by an ERROR.
        """

    def heardFrom(connection: IConnection) -> None:
        """Something has come from a connection that was probed."""

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

    def tell(event: str, *arguments: object) -> None:
        """Call that method of L{IServerObserver} on every observer."""
