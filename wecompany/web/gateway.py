"""
The wire contract over WebSocket: one binary message is one payload.

::

    browser                                                        the hub, as for TCP
       |   binary message          frame (length, payload)
       |--------------> _Socket --------------------------> WeCompanyProtocol.dataReceived
       | <------------- _Socket <------------ _Stream.write <------- Outbound
           more of them in one write                whole frames

To L{WeCompanyProtocol<wecompany.protocol.WeCompanyProtocol>} a WebSocket is one more stream transport, so limits,
queues, deadlines and last words are the same.  Autobahn does the handshake, control frames, messages in pieces, and the
closing.  Whole binary messages, which is nearly all that ever comes, are taken here, many at once: through autobahn
each would cost several times as much, and a chunk of tiny ones would keep everybody waiting for a fifth of a second.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable
from typing import Any

import txaio
from autobahn.twisted.websocket import WebSocketServerFactory, WebSocketServerProtocol
from twisted.internet.interfaces import (
    IAddress,
    IDelayedCall,
    IProducer,
    IProtocol,
    IPushProducer,
    IReactorTime,
    ISSLTransport,
    ITransport,
)
from twisted.internet.protocol import connectionDone
from twisted.python.failure import Failure
from zope.interface import alsoProvides, implementer

from wecompany.interfaces import IStreamTransport
from wecompany.protocol import LINGER, MAX_FRAMES, WeCompanyProtocol
from wecompany.server import WeCompanyFactory
from wecompany.wire import MAX_PAYLOAD, ErrorCode, MessageType

MAX_PIECES = 1_000
"""Frames that one message may come in: an empty one costs memory, too."""

PING_EVERY = 30.0
"""Seconds between two pings: proxies close what is silent for a minute.  Whether a client lives, the hub judges."""

GOING_AWAY = 1001
"""The close code of a server that stops."""

NOT_BINARY = 1003
"""The close code for a text message."""

TOO_BIG = 1009
"""The close code for a message that is no payload: it is too long."""

CLOSED_FOR = 4000
"""The close code after an ERROR that closes is this and the ERROR's code; only L{GOING_AWAY} has a better one."""

_BINARY = 0x82
"""The first byte of a whole binary message."""

_TEXT = 0x1

_MASKED = 0x80
"""What every frame of a client has in its second byte."""

_NORMAL = 1000


class Gateway:
    """
    Makes a WebSocket of a connection that is ready for its handshake.

    Whether the request may have one, its Origin among it, has been judged before.
    """

    def __init__(self, hub: WeCompanyFactory, clock: IReactorTime) -> None:
        """
        @param clock: the time; it is the hub's.
        """
        self.hub = hub
        self.clock = clock
        state = random.getstate()
        self._factory = WebSocketServerFactory(server="", reactor=clock)
        random.setstate(state)  # autobahn reseeds what belongs to the application
        # Its timers would run in the reactor that is installed.  Compression is not accepted unless one says so.
        self._factory.setProtocolOptions(
            versions=[13],
            webStatus=False,
            utf8validateIncoming=False,
            maxFramePayloadSize=MAX_PAYLOAD,
            maxMessagePayloadSize=MAX_PAYLOAD,
            failByDrop=False,
            openHandshakeTimeout=0,
            closeHandshakeTimeout=0,
            autoPingInterval=0,
        )

    def open(self, key: bytes, upgrade: Callable[[IProtocol], ITransport]) -> None:
        """
        Answer the handshake, and begin.

        @param key: the C{Sec-WebSocket-Key}: 16 bytes in base64.
        @param upgrade: is given the protocol which the connection's bytes go to from now on; returns its transport.
        """
        socket = _Socket(self)
        socket.factory = self._factory
        transport = upgrade(socket)
        socket.makeConnection(_Plain(transport))
        socket.begin(key, transport)


class _Plain:
    """A transport that shows nothing of its TLS: autobahn would look into that for what nobody here asks for."""

    def __init__(self, transport: ITransport) -> None:
        self._transport = transport

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # there the interfaces are
            raise AttributeError(name)
        return getattr(self._transport, name)


@implementer(IPushProducer)
class _Socket(WebSocketServerProtocol):
    """
    One WebSocket.

    Its reading stops while the hub wants nothing, or others have their turn; its producer is paused while the client
    does not read.
    """

    transport: Any
    log = txaio.make_logger(level="none")  # type: ignore[attr-defined]  # it quotes strangers as they come

    def __init__(self, gateway: Gateway) -> None:
        super().__init__()
        self._gateway = gateway
        self._clock = gateway.clock
        self._unparsed = b""
        self._isDeaf = False
        self._isHeld = False
        self._isFull = False
        self._isTaking = False
        self._hasHadItsShare = False
        self._isLost = False
        self._pieces = 0
        self._unanswered: bytes | None = None
        self._leaving: IDelayedCall | None = None
        self._pinging: IDelayedCall
        self._producer: Any = None
        self._closeCode = _NORMAL
        self._hub: WeCompanyProtocol

    def begin(self, key: bytes, transport: ITransport) -> None:
        """Answer the handshake; what the hub's side is given is the transport as it is."""
        super().dataReceived(
            b"GET /ws HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + key + b"\r\n\r\n"
        )
        self._pinging = self._clock.callLater(PING_EVERY, self._ping)
        stream = _Stream(self, transport)
        self._hub = self._gateway.hub.buildProtocol(stream.getPeer())
        self._hub.makeConnection(stream)

    # -- from the client

    def dataReceived(self, data: bytes) -> None:
        """Take what has arrived, however it was cut."""
        if not self._isDeaf:
            self._unparsed += data
            self._take()

    def _take(self) -> None:
        """Take as many frames as are this client's share of a turn, and no more while the hub wants none."""
        if self._isTaking or self._hasHadItsShare:  # the hub may go on in the middle of it
            return
        self._isTaking = True
        data = self._unparsed
        left = MAX_FRAMES
        at = before = 0
        try:
            while left and not (self._isHeld or self._isDeaf):
                before = at
                messages, at, left = ([], at, left) if self.inside_message else _takeMessages(data, at, left)
                if messages:
                    self._hub.dataReceived(b"".join(messages))
                else:
                    at = self._takeOther(data, at)
                    left -= 1
                if at == before:
                    break
        finally:
            self._isTaking = False
            self._unparsed = b"" if self._isDeaf else data[at:]
        if not left:
            self._hasHadItsShare = True
            self.setReading()
            self._clock.callLater(0, self._takeOn)

    def _takeOther(self, data: bytes, start: int) -> int:
        """
        Have autobahn take the frame that begins at C{start}, if it is there.

        @return: where the next one begins, or C{start}.
        """
        end, length = _endOf(data, start)
        if length > MAX_PAYLOAD:
            self._refuse(TOO_BIG, f"a message has at most {MAX_PAYLOAD:,} bytes")
        elif end > start and data[start] & 0xF == _TEXT:
            self._refuse(NOT_BINARY, "messages are binary")
        elif self.inside_message and self._pieces >= MAX_PIECES:
            self._refuse(TOO_BIG, f"a message has at most {MAX_PIECES:,} pieces")
        elif start < end <= len(data):
            self._pieces = self._pieces + 1 if self.inside_message else 1
            super().dataReceived(data[start:end])
            return end
        return start

    def _takeOn(self) -> None:
        """Others have had their turn."""
        self._hasHadItsShare = False
        if not self._isLost:
            self._take()
            self.setReading()

    def _refuse(self, code: int, why: str) -> None:
        """Say goodbye because of a frame that may be long, and that nobody reads: so nothing behind it is, either."""
        self._isDeaf = True
        self.sendCloseFrame(code, why.encode())

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        """A message has come in pieces."""
        self._hub.dataReceived(len(payload).to_bytes(2, "big") + payload)

    def onPing(self, payload: bytes) -> None:
        """Answer; while the client does not read, only the last one is remembered, as else there would be no bound."""
        if self._isFull:
            self._unanswered = payload
        else:
            self.sendPong(payload)

    def onCloseFrame(self, code: int, reasonRaw: bytes) -> bool | None:
        """The client leaves, or answers our own goodbye: as with a TCP connection that it closes, that is the end."""
        if self.state == self.STATE_OPEN:
            self._leave(connectionDone)
            self._leaving = self._clock.callLater(LINGER, self.transport.abortConnection)
        isOver: bool | None = super().onCloseFrame(code, reasonRaw)
        return isOver

    def dropConnection(self, abort: bool = False) -> None:
        """Close: both have said goodbye and read the other's, so nothing is to be cut short."""
        super().dropConnection()

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        if self._leaving is not None and self._leaving.active():
            self._leaving.cancel()
        super().connectionLost(reason)
        self._leave(reason)

    def _leave(self, reason: Failure) -> None:
        if not self._isLost:
            self._isLost = self._isDeaf = True
            self._unparsed = b""
            self._pinging.cancel()
            self._hub.connectionLost(reason)

    # -- to the client

    def _ping(self) -> None:
        """Show the proxies between that this connection is in use."""
        self._pinging = self._clock.callLater(PING_EVERY, self._ping)
        if not self._isFull:
            self.sendPing()

    def sendCloseFrame(self, code: int | None = None, reasonUtf8: bytes | None = None, isReply: bool = False) -> None:
        """Say goodbye: if it is for what the client did, the hub is told and says it first."""
        if not isReply and not self._hub.isClosed:
            self._closeCode = code or _NORMAL
            self._hub.close(ErrorCode.MALFORMED, (reasonUtf8 or b"").decode("utf-8", "replace"))
        else:
            super().sendCloseFrame(code, reasonUtf8, isReply)

    def goodbye(self, errorCode: int) -> None:
        """
        The hub has said its last word.

        @param errorCode: of the ERROR that this was; 0 if it was something else.
        """
        if self._closeCode == _NORMAL and errorCode:
            self._closeCode = GOING_AWAY if errorCode == ErrorCode.SHUTTING_DOWN else CLOSED_FOR + errorCode
        super().sendCloseFrame(self._closeCode)
        self.hold(False)  # the client's own goodbye is to be read

    # -- back-pressure

    def setProducer(self, producer: IProducer | None) -> None:
        """Say who is to be paused while the client does not read."""
        self._producer = producer
        if producer is None:
            self.transport.unregisterProducer()
        else:
            self.transport.registerProducer(self, True)

    def pauseProducing(self) -> None:
        """The client does not read."""
        self._isFull = True
        if self._producer is not None:
            self._producer.pauseProducing()

    def resumeProducing(self) -> None:
        """It has read."""
        self._isFull = False
        if self._unanswered is not None:
            self.sendPong(self._unanswered)
            self._unanswered = None
        if self._producer is not None:
            self._producer.resumeProducing()

    def stopProducing(self) -> None:
        """The connection is lost."""

    def hold(self, isHeld: bool) -> None:
        """Say whether the hub wants nothing from this client for now."""
        self._isHeld = isHeld
        if not isHeld:
            self._take()
        self.setReading()

    def setReading(self) -> None:
        """Read or do not, as all that have a say in it want."""
        if self._isHeld or self._hasHadItsShare:
            self.transport.pauseProducing()
        else:
            self.transport.resumeProducing()


@implementer(IStreamTransport)
class _Stream:
    """
    A WebSocket as a stream of frames, as the hub's side knows it from TCP.

    @ivar transport: what is below; L{Outbound<wecompany.outbound.Outbound>} looks there for what the kernel has not
        taken.  In messages frames are as long or 2 bytes longer, so that is never too little.
    """

    def __init__(self, socket: _Socket, transport: Any) -> None:
        self._socket = socket
        self.transport = transport
        self._rest = b""
        self._errorCode = 0
        if ISSLTransport.providedBy(transport):
            alsoProvides(self, ISSLTransport)

    def write(self, data: bytes) -> None:
        """Send each whole frame as a message, all in one write."""
        data = self._rest + data
        messages, end, self._errorCode = _messagesOf(data)
        self._rest = data[end:]
        if messages:
            self.transport.write(b"".join(messages))

    def writeSequence(self, data: Iterable[bytes]) -> None:
        """See L{ITransport.writeSequence}."""
        self.write(b"".join(data))

    def loseConnection(self) -> None:
        """Say goodbye; the client answers that, or is dropped by the hub."""
        self._socket.goodbye(self._errorCode)

    def abortConnection(self) -> None:
        """Drop the connection at once."""
        self.transport.abortConnection()

    def getPeer(self) -> IAddress:
        """Return where the client is, or the proxy in front says that it is."""
        address: IAddress = self.transport.getPeer()
        return address

    def getHost(self) -> IAddress:
        """See L{ITransport.getHost}."""
        address: IAddress = self.transport.getHost()
        return address

    def getHandle(self) -> object:
        """Return the handle of what is below: for TLS, who the client's certificate speaks for is found there."""
        return self.transport.getHandle()

    def registerProducer(self, producer: IProducer, streaming: bool) -> None:
        """See L{IConsumer.registerProducer}."""
        self._socket.setProducer(producer)

    def unregisterProducer(self) -> None:
        """See L{IConsumer.unregisterProducer}."""
        self._socket.setProducer(None)

    def pauseProducing(self) -> None:
        """Take nothing more from the client."""
        self._socket.hold(True)

    def resumeProducing(self) -> None:
        """Take from the client again."""
        self._socket.hold(False)

    def stopProducing(self) -> None:
        """See L{IProducer.stopProducing}."""
        self.loseConnection()


def _messagesOf(frames: bytes) -> tuple[list[bytes], int, int]:
    """
    Return the whole frames of the contract as those of WebSocket, in parts; where the last one ends; and its code, if
    it is an ERROR.
    """
    messages: list[bytes] = []
    at = last = 0
    size = len(frames)
    while size - at >= 2:
        length = frames[at] << 8 | frames[at + 1]
        end = at + 2 + length
        if end > size:
            break
        # Behind the first byte, or two, the length stands as it does in the contract.
        messages += (b"\x82", frames[at + 1 : end]) if length < 126 else (b"\x82\x7e", frames[at:end])
        last, at = at, end
    if not at or at - last <= 5 or frames[last + 2] != MessageType.ERROR:
        return messages, at, 0
    codeAt = last + 5 + (frames[last + 3] << 8 | frames[last + 4])
    return messages, at, frames[codeAt] if codeAt < at else 0


def _takeMessages(data: bytes, at: int, left: int) -> tuple[list[bytes], int, int]:
    """
    Take whole binary messages from C{data}, from C{at} on and at most C{left}, up to anything else.

    @return: them as frames of the contract, in parts; where the next one begins; and how many may still be taken.
    """
    frames: list[bytes] = []
    size = len(data)
    while left and size - at >= 6 and data[at] == _BINARY and data[at + 1] >= _MASKED:
        length = data[at + 1] - _MASKED
        start = at + 6
        if length >= 126:
            start = at + 8
            if length == 127 or start > size:
                break
            length = data[at + 2] << 8 | data[at + 3]
            if length < 126:
                break
        end = start + length
        if end > size:
            break
        mask = data[start - 4 : start]
        pad = (mask * (length // 4 + 1))[:length]
        payload = (int.from_bytes(data[start:end], "big") ^ int.from_bytes(pad, "big")).to_bytes(length, "big")
        frames += (length.to_bytes(2, "big"), payload)
        at = end
        left -= 1
    return frames, at, left


def _endOf(data: bytes, start: int) -> tuple[int, int]:
    """
    Return where the WebSocket frame ends that begins at C{start}, be that here or later, and the length of what it
    carries; C{(start, 0)} if its header is not whole.
    """
    at = start + 2
    if at > len(data):
        return start, 0
    length = data[start + 1] & 0x7F
    wide = {126: 2, 127: 8}.get(length, 0)
    if at + wide > len(data):
        return start, 0
    if wide:
        length = int.from_bytes(data[at : at + wide], "big")
    return at + wide + (4 if data[start + 1] & _MASKED else 0) + length, length
