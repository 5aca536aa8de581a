"""The server in the browser: the gateway, the page's files, and the options of twistd that bring them."""

from __future__ import annotations

import gzip
import os
import random
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any, cast
from urllib.request import urlopen

import hypothesis.strategies as st
from autobahn.twisted.websocket import WebSocketClientFactory, WebSocketClientProtocol
from hypothesis import given
from twisted.internet.abstract import FileDescriptor
from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.defer import Deferred, fail
from twisted.internet.error import ConnectionDone
from twisted.internet.interfaces import ISSLTransport
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.internet.testing import MemoryReactorClock, StringTransport
from twisted.internet.threads import deferToThread
from twisted.python.failure import Failure
from twisted.trial.unittest import SynchronousTestCase, TestCase
from twisted.web.resource import Resource
from twisted.web.server import Request
from zope.interface import alsoProvides
from zope.interface.verify import verifyObject

import wecompany.web
from tests import temporaryFolder
from tests.processes import freePort, startServer
from tests.test_service import parse
from tests.test_tls import Logged, keyOf, makeCertificate
from wecompany.interfaces import Attempt, IStreamTransport, Refused
from wecompany.limits import Limits
from wecompany.protocol import LINGER, MAX_FRAMES, REGISTER_WITHIN
from wecompany.server import WeCompanyFactory
from wecompany.service import CannotStart, Options, WeCompanyService, makeService
from wecompany.testing import MemoryServer, MemoryTransport, Message
from wecompany.tls import ServerTLS
from wecompany.web import gateway, site
from wecompany.web.gateway import MAX_PIECES, PING_EVERY
from wecompany.web.site import REQUEST_WITHIN, TAKE_WITHIN, WebSite, checkOrigin
from wecompany.wire import MAX_PAYLOAD, ErrorCode, MessageType, decodeError, encodeFrame

HEARTBEAT = MessageType.HEARTBEAT
TEXT = MessageType.TEXT

KEY = "dGhlIHNhbXBsZSBub25jZQ=="
"""The key of the example in RFC 6455."""

ACCEPT = b"s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
"""The answer to it."""

CONTINUED, TEXTUAL, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def handshake(method: str = "GET", path: str = "/ws", version: str = "1.1", **headers: str | None) -> bytes:
    """Return a request for a WebSocket, with some headers in other words than usual, or C{None} for without."""
    usual: dict[str, str | None] = {
        "Host": "chat.example:8080",
        "Upgrade": "websocket",
        "Connection": "keep-alive, Upgrade",
        "Origin": "http://chat.example:8080",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
    }
    usual |= {name.replace("_", "-"): value for name, value in headers.items()}
    lines = [f"{method} {path} HTTP/{version}", *(f"{n}: {v}" for n, v in usual.items() if v is not None)]
    return "\r\n".join((*lines, "", "")).encode()


def frame(opcode: int, payload: bytes = b"", first: int = 0x80, mask: bytes | None = b"\1\2\3\4") -> bytes:
    """
    Return a frame of a client.

    @param first: what is in its first byte besides the opcode: C{0x80} if it is the last of its message.
    @param mask: none for one that breaks the rules.
    """
    size = len(payload)
    if size < 126:
        lengths = bytes((size,))
    else:
        lengths = b"\x7e" + size.to_bytes(2, "big") if size < 65_536 else b"\x7f" + size.to_bytes(8, "big")
    if mask is None:
        return bytes((first | opcode,)) + lengths + payload
    masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))
    return bytes((first | opcode, lengths[0] | 0x80)) + lengths[1:] + mask + masked


def split(stream: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """Return what the server has sent as (first byte, payload) of each whole frame, and the rest."""
    found = []
    while len(stream) >= 2:
        start = 2 + {126: 2, 127: 8}.get(stream[1], 0)
        size = stream[1] if start == 2 else int.from_bytes(stream[2:start], "big")
        if len(stream) < start + size:
            break
        found.append((stream[0], stream[start : start + size]))
        stream = stream[start + size :]
    return found, stream


class Browser(Protocol):
    """
    A client of the web port that knows HTTP's and WebSocket's bytes and nothing else.

    @ivar head: what has come before the WebSocket, or without one.
    @ivar frames: the frames of the WebSocket that nobody has asked for yet.
    @ivar ended: whether the connection is gone.
    """

    transport: Any

    def __init__(self, test: WebTestCase) -> None:
        self._test = test
        self.head = b""
        self._unparsed = b""
        self.frames: list[tuple[int, bytes]] = []
        self.ended = False

    def dataReceived(self, data: bytes) -> None:
        """Keep what comes."""
        if b"101 Switching" not in self.head:
            self.head += data
            if b"101 Switching" not in self.head or b"\r\n\r\n" not in self.head:
                return
            head, _, data = self.head.partition(b"\r\n\r\n")
            self.head = head + b"\r\n\r\n"
        found, self._unparsed = split(self._unparsed + data)
        self.frames += found

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The connection is gone."""
        self.ended = True

    def sendBytes(self, data: bytes) -> None:
        """Send bytes, and let all that follows happen."""
        self.transport.write(data)
        self._test.server.pump()

    def send(self, messageType: int, userId: str = "", data: bytes = b"") -> None:
        """Send one message."""
        self.sendBytes(frame(BINARY, encodeFrame(messageType, userId.encode(), data)[2:]))

    def taken(self) -> list[tuple[int, bytes]]:
        """Return the frames that have come since one last asked."""
        self._test.server.pump()
        frames, self.frames = self.frames, []
        return frames

    def received(self) -> list[Message]:
        """Return the messages that have come since one last asked, when nothing else has."""
        messages = []
        for first, payload in self.taken():
            assert first == 0x80 | BINARY, (first, payload)
            size = int.from_bytes(payload[1:3], "big")
            messages.append(Message(payload[0], payload[3 : 3 + size].decode(), payload[3 + size :]))
        return messages

    def lastWord(self) -> tuple[int, int]:
        """Return (code of the ERROR, close code), when these are all that has come."""
        (first, error), (second, goodbye) = self.taken()
        assert (first, second) == (0x80 | BINARY, 0x80 | CLOSE), (first, second)
        assert error[0] == MessageType.ERROR, error
        return decodeError(error[3 + int.from_bytes(error[1:3], "big") :])[0], int.from_bytes(goodbye[:2], "big")

    def statusAndHeaders(self) -> tuple[int, dict[str, str]]:
        """Return the code of an HTTP answer, and its headers."""
        first, *lines = self.head.partition(b"\r\n\r\n")[0].decode().split("\r\n")
        return int(first.split(" ")[1]), dict(line.split(": ", 1) for line in lines)


class WebTestCase(SynchronousTestCase):
    """A server in memory with a web port, and a folder of files for it."""

    origins: tuple[str, ...] = ()

    def setUp(self) -> None:
        self.folder = temporaryFolder(self)
        (self.folder / "index.html").write_text("<!doctype html><title>Chat</title>")
        self.serve()

    def serve(self, **options: Any) -> None:
        """Begin with another server."""
        self.server = MemoryServer(**options)
        self.addCleanup(self.server.close)
        self.site = WebSite(self.server.factory, self.server.clock, self.origins, self.folder)

    def connect(self, address: str = "127.0.0.1", tls: bool = False, proxied: bool = False) -> Browser:
        """Return a client that is connected to the web port."""
        peer = (IPv6Address if ":" in address else IPv4Address)("TCP", address, 40000)
        client = Browser(self)
        channel = cast(Any, self.site.buildProtocol(peer))
        end, other = MemoryTransport(self.server.clock), MemoryTransport(self.server.clock, peer)
        if tls:
            alsoProvides(other, ISSLTransport)
            cast(Any, other).setTcpNoDelay = lambda enabled: None
        if proxied:
            cast(Any, other)._proxyInfo = None  # as Twisted's wrapper has it until the proxy has spoken
        end.other, other.other = other, end
        end.protocol, other.protocol = client, channel
        channel.makeConnection(other)
        client.makeConnection(end)
        self.server.pump()
        return client

    def open(self, address: str = "127.0.0.1") -> Browser:
        """Return a client with a WebSocket."""
        client = self.connect(address)
        client.sendBytes(handshake())
        self.assertIn(b"101 Switching Protocols", client.head)
        return client

    def login(self, userId: str) -> Browser:
        """Return a client that is registered."""
        client = self.open()
        client.send(HEARTBEAT, userId)
        (answer,) = client.received()
        self.assertEqual((answer.type, answer.userId, len(answer.data)), (HEARTBEAT, userId, 16))
        return client

    def online(self) -> list[str]:
        return self.server.factory.getOnlineUsers()

    def ask(self, *lines: str, tls: bool = False, body: bytes = b"") -> Browser:
        """Return a client that has asked for something, and got the answer."""
        client = self.connect(tls=tls)
        client.sendBytes("\r\n".join((*lines, "", "")).encode("latin-1") + body)
        return client

    def get(
        self, path: str, *headers: str, tls: bool = False, method: str = "GET"
    ) -> tuple[int, dict[str, str], bytes]:
        """Return code, headers and body of an answer."""
        client = self.ask(f"{method} {path} HTTP/1.1", "Host: chat.example:8080", *headers, tls=tls)
        return (*client.statusAndHeaders(), client.head.partition(b"\r\n\r\n")[2])


class ContractTests(WebTestCase):
    """What the wire contract says is so over WebSocket, too."""

    def test_handshake(self) -> None:
        """The handshake is answered as RFC 6455 says, without any extension, and nothing comes before a message."""
        client = self.open()
        code, headers = client.statusAndHeaders()
        self.assertEqual((code, headers["Sec-WebSocket-Accept"].encode()), (101, ACCEPT))
        self.assertEqual(set(headers), {"Upgrade", "Connection", "Sec-WebSocket-Accept"})
        self.server.advance(5)
        self.assertEqual(client.taken(), [])

    def test_texts(self) -> None:
        """A TCP user and a web user write to each other, and each to himself."""
        web, tcp = self.login("web"), self.server.login("tcp")
        for data in (b"", b"hello", bytes(range(256)) * 3):
            web.send(TEXT, "tcp", data)
            self.assertEqual(tcp.received(), [Message(TEXT, "web", data)])
            tcp.send(TEXT, "web", data)
            self.assertEqual(web.received(), [Message(TEXT, "tcp", data)])
            web.send(TEXT, "web", data)
            self.assertEqual(web.received(), [Message(TEXT, "web", data)])

    def test_call(self) -> None:
        """A TCP user calls a web user, media flows both ways, and the web user ends it."""
        web, tcp = self.login("web"), self.server.login("tcp")
        tcp.send(MessageType.CALL_REQUEST, "web", b"\1offer")
        (ringing,) = tcp.received()
        (request,) = web.received()
        callId = ringing.data[:16]
        self.assertEqual(request, Message(MessageType.CALL_REQUEST, "tcp", callId + b"\1offer"))
        web.send(MessageType.CALL_ACCEPT, "tcp", callId + b"answer")
        self.assertEqual([m[:2] for m in web.received()], [(MessageType.CALL_ACCEPT, "tcp")])
        self.assertEqual(tcp.received(), [Message(MessageType.CALL_ACCEPT, "web", callId + b"answer")])
        for size in (1, 160, 4_096):
            web.send(MessageType.MEDIA_DATA, "tcp", bytes(size))
            self.assertEqual(tcp.received(), [Message(MessageType.MEDIA_DATA, "web", bytes(size))])
            tcp.send(MessageType.MEDIA_DATA, "web", bytes(size))
            self.assertEqual(web.received(), [Message(MessageType.MEDIA_DATA, "tcp", bytes(size))])
        web.send(MessageType.CALL_END, "tcp", callId)
        self.assertEqual([m.type for m in tcp.received() + web.received()], [MessageType.CALL_END] * 2)

    def test_sizes(self) -> None:
        """Payloads of every length come whole in both directions, wherever the length's form changes."""
        web = self.login("web")
        for size in (*range(120, 132), 65_534, MAX_PAYLOAD):
            data = os.urandom(size - 3)
            web.sendBytes(frame(BINARY, encodeFrame(HEARTBEAT, b"", data)[2:], mask=os.urandom(4)))
            self.assertEqual(web.received(), [Message(HEARTBEAT, "", data)])

    def test_pieces(self) -> None:
        """However the bytes are cut on the way, and with the handshake before them, the same messages arrive."""
        stream = handshake() + b"".join(
            frame(BINARY, encodeFrame(HEARTBEAT, name, data)[2:])
            for name, data in ((b"web", b""), (b"", b"1"), (b"", bytes(200)), (b"", b"3"))
        )
        for size in (1, 7, 1_000):
            client = self.connect()
            for at in range(0, len(stream), size):
                client.sendBytes(stream[at : at + size])
            self.assertEqual([m.data for m in client.received()[1:]], [b"1", bytes(200), b"3"])
            client.transport.lose(ConnectionDone())
            self.server.pump()

    def test_messageInPieces(self) -> None:
        """A message in many frames, with a ping between them, is one payload, and what follows it is taken as ever."""
        web = self.login("web")
        payload = encodeFrame(HEARTBEAT, b"", b"abcdef")[2:]
        web.sendBytes(frame(BINARY, payload[:2], first=0) + frame(PING, b"?") + frame(CONTINUED, payload[2:5], first=0))
        self.assertEqual(web.taken(), [(0x80 | PONG, b"?")])
        web.sendBytes(frame(CONTINUED, first=0) + frame(CONTINUED, payload[5:]))
        web.send(HEARTBEAT, "", b"next")
        self.assertEqual([m.data for m in web.received()], [b"abcdef", b"next"])

    def test_manyAtOnce(self) -> None:
        """Whatever goes to a web user in one turn is one write, with a message for each frame."""
        web, tcp = self.login("web"), self.server.login("tcp")
        written: list[bytes] = []
        self.patch(web.transport.other, "write", written.append)
        tcp.sendBytes(b"".join(encodeFrame(TEXT, b"web", bytes((i,))) for i in range(100)))
        (data,) = written
        expected = [(0x82, encodeFrame(TEXT, b"tcp", bytes((i,)))[2:]) for i in range(100)]
        self.assertEqual(split(data), (expected, b""))

    def test_takeover(self) -> None:
        """A web user with the session's ID takes over from TCP, and the other way round."""
        tcp = self.server.resume("alice")
        web = self.open()
        web.send(MessageType.ACK, "alice", bytes(4) + tcp.sessionId)
        (answer,) = web.received()
        self.assertEqual([m.data[0] for m in tcp.received()], [ErrorCode.REPLACED])
        self.assertTrue(tcp.ended)
        again = self.server.resume("alice", sessionId=answer.data)
        self.assertEqual(web.lastWord(), (ErrorCode.REPLACED, 4011))
        self.assertFalse(again.ended)

    def test_certificate(self) -> None:
        """To the hub a WebSocket over TLS has the handle of that, where a client's certificate is looked for."""
        stream = gateway._Stream(cast(Any, None), MemoryTransport(Clock()))
        self.assertFalse(ISSLTransport.providedBy(stream))
        below = MemoryTransport(Clock())
        alsoProvides(below, ISSLTransport)
        cast(Any, below).getHandle = lambda: "the handle"
        stream = gateway._Stream(cast(Any, None), below)
        self.assertTrue(ISSLTransport.providedBy(stream))
        self.assertEqual(stream.getHandle(), "the handle")
        self.assertTrue(verifyObject(IStreamTransport, stream))


class RulesTests(WebTestCase):
    """Whoever breaks a rule is told, and closed with the code that RFC 6455 has for it."""

    def assertRefused(self, stream: bytes, code: int) -> None:
        """A registered client that sends this is told malformed, is offline at once and closed."""
        client = self.login("web")
        client.sendBytes(stream)
        self.assertEqual(client.lastWord(), (ErrorCode.MALFORMED, code), stream[:20])
        self.assertEqual(self.online(), [])
        client.sendBytes(frame(BINARY, encodeFrame(HEARTBEAT, b"", b"late")[2:]))
        self.assertEqual(client.taken(), [])
        self.server.advance(LINGER + 2)
        self.assertTrue(client.ended)

    def test_text(self) -> None:
        """A text message closes with 1003, be it whole or the first piece of one."""
        self.assertRefused(frame(TEXTUAL, b"hello"), 1003)
        self.assertRefused(frame(TEXTUAL, b"hello", first=0), 1003)
        self.assertRefused(frame(TEXTUAL, b"hello")[:2], 1003)

    def test_tooBig(self) -> None:
        """A message of over 65,535 bytes closes with 1009 as soon as its length has come, in one frame or several."""
        self.assertRefused(frame(BINARY, bytes(MAX_PAYLOAD + 1))[:10], 1009)
        self.assertRefused(b"\x82\xff" + b"\xff" * 8, 1009)
        self.assertRefused(frame(BINARY, bytes(40_000), first=0) + frame(CONTINUED, bytes(25_536)), 1009)

    def test_asBigAsAllowed(self) -> None:
        """A message of 65,535 bytes in several frames is taken."""
        client = self.login("web")
        payload = encodeFrame(HEARTBEAT, b"", bytes(MAX_PAYLOAD - 3))[2:]
        client.sendBytes(frame(BINARY, payload[:40_000], first=0) + frame(CONTINUED, payload[40_000:]))
        client.sendBytes(frame(BINARY, first=0) + frame(CONTINUED, payload))
        self.assertEqual([len(m.data) for m in client.received()], [MAX_PAYLOAD - 3] * 2)

    def test_piecesWithoutEnd(self) -> None:
        """A message in more than a thousand pieces closes with 1009, even if they are empty; in fewer it is taken."""
        begin, more = frame(BINARY, first=0), frame(CONTINUED, first=0)
        client = self.login("other")
        whole = begin + more * (MAX_PIECES - 2) + frame(CONTINUED, encodeFrame(HEARTBEAT, b"", b"x")[2:])
        client.sendBytes(whole + whole)
        self.assertEqual(client.received(), [Message(HEARTBEAT, "", b"x")] * 2)
        client.transport.lose(ConnectionDone())
        self.server.pump()
        self.assertRefused(begin + more * (MAX_PIECES - 1) + more[:2], 1009)

    def test_violations(self) -> None:
        """What RFC 6455 forbids closes with 1002."""
        for stream in (
            frame(BINARY, b"abc", mask=None),
            frame(BINARY, bytes(200), mask=None),
            frame(BINARY, b"abc", first=0xC0),
            frame(BINARY, b"abc", first=0x90),
            frame(3, b"abc"),
            frame(11, b"abc"),
            frame(CONTINUED, b"abc"),
            frame(BINARY, b"abc", first=0) + frame(BINARY, b"abc"),
            frame(PING, bytes(126)),
            frame(PING, first=0),
            b"\x82\xfe\0\3" + bytes(7),
            b"\x82\xff" + bytes(7) + b"\3" + bytes(7),
        ):
            with self.subTest(stream=stream[:20]):
                self.assertRefused(stream, 1002)

    def test_deaf(self) -> None:
        """Whatever comes behind a violation is not looked at: that has been answered, and closes."""
        behind = frame(PING, b"?") + frame(CLOSE) + frame(CONTINUED, b"y")
        for stream, code in (
            (frame(CONTINUED, b"x"), 1002),
            (frame(TEXTUAL, b"x"), 1003),
            (frame(BINARY, bytes(MAX_PAYLOAD + 1)), 1009),
        ):
            self.assertRefused(stream + behind, code)

    def test_notAPayload(self) -> None:
        """A binary message that is no payload is malformed as on TCP, and the close code says so."""
        for payload in (b"", b"\7\0", b"\7\0\5al"):
            self.assertRefused(frame(BINARY, payload), 4001)

    def test_nothingInTheLog(self) -> None:
        """Whatever strangers send, not a word of it gets into the log unquoted, and none of it is a failure."""
        logged = Logged(self)
        client = self.connect()
        client.sendBytes(handshake(Sec_WebSocket_Key="\x1b[31m", Origin=None))
        client = self.login("web")
        client.sendBytes(frame(CLOSE, b"\3\xe8\x1b[31m"))
        client = self.login("web")
        client.sendBytes(frame(CLOSE, b"\3\xe8\xff\xff"))
        self.server.advance(5)
        self.assertEqual(logged.warnings(), [])


class ClosingTests(WebTestCase):
    def test_byClient(self) -> None:
        """A client that says goodbye is offline at once, is answered, and the connection ends."""
        client = self.login("web")
        client.sendBytes(frame(CLOSE, (1001).to_bytes(2, "big")) + frame(BINARY, encodeFrame(TEXT, b"web")[2:]))
        self.assertEqual(client.taken(), [(0x80 | CLOSE, (1000).to_bytes(2, "big"))])
        self.assertEqual(self.online(), [])
        self.assertTrue(client.ended)
        self.server.advance(LINGER - 1)
        self.assertNoTimers()

    def test_badCode(self) -> None:
        """A client that says goodbye with what is no code, or no UTF-8, is let go as well."""
        for reason in (b"\3", b"\3\xed", b"\0\0", b"\3\xe8\xff"):
            client = self.login("web")
            client.sendBytes(frame(CLOSE, reason))
            self.assertEqual(self.online(), [])
            self.assertTrue(client.ended)

    def test_answerNotTaken(self) -> None:
        """A client that says goodbye and reads nothing more is dropped 3 s later."""
        client = self.login("web")
        client.transport.pauseProducing()
        client.sendBytes(frame(CLOSE))
        self.assertEqual(self.online(), [])
        self.server.advance(LINGER - 0.1)
        self.assertFalse(client.ended)
        self.server.advance(0.2)
        self.assertTrue(client.ended)
        self.assertNoTimers()

    def assertNoTimers(self) -> None:
        """Nothing is left that would wake the server up."""
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_lost(self) -> None:
        """A connection that breaks is a user offline, and leaves no timer."""
        client = self.login("web")
        client.transport.lose(ConnectionDone())
        self.server.pump()
        self.assertEqual(self.online(), [])
        self.server.advance(2)
        self.assertNoTimers()

    def test_shutdown(self) -> None:
        """A server that stops says shuttingDown and closes with 1001; whoever answers that is let go at once."""
        client, mute = self.login("web"), self.login("mute")
        aborted: list[object] = []
        self.patch(client.transport.other, "abortConnection", lambda: aborted.append(client))
        stopped = self.server.factory.stopServer()
        for one in (client, mute):
            self.assertEqual(one.lastWord(), (ErrorCode.SHUTTING_DOWN, 1001))
        client.sendBytes(frame(CLOSE, (1001).to_bytes(2, "big")))
        self.assertEqual((client.ended, aborted), (True, []))
        self.assertNoResult(stopped)
        self.server.advance(5)
        self.assertTrue(mute.ended)
        self.successResultOf(stopped)
        self.assertNoTimers()

    def test_lastWords(self) -> None:
        """Where the hub closes after an ERROR, the close code is 4000 and the ERROR's code."""
        client = self.open()
        client.send(HEARTBEAT, "#group")
        self.assertEqual(client.lastWord(), (ErrorCode.MALFORMED, 4001))
        client = self.open()
        self.server.advance(REGISTER_WITHIN + 1)
        self.assertEqual(client.lastWord(), (ErrorCode.NOT_REGISTERED, 4002))

    def test_lastWordIsNoError(self) -> None:
        """After a refused LOGIN the close code is 1000: the answer has said it all."""

        class Refuser:
            def authenticate(self, attempt: Attempt) -> Deferred[bytes]:
                return fail(Refused(ErrorCode.BAD_CREDENTIAL, "no"))

        self.serve(authenticator=cast(Any, Refuser()))
        client = self.open()
        client.send(MessageType.LOGIN, "alice", b"guess")
        answer = encodeFrame(MessageType.AUTH_RESPONSE, b"alice", b"\0no")[2:]
        self.assertEqual(client.taken(), [(0x80 | BINARY, answer), (0x80 | CLOSE, (1000).to_bytes(2, "big"))])

    def test_whileHeld(self) -> None:
        """A client that is not read because it writes too fast can still answer the server's goodbye."""
        self.serve(limits=Limits().changed("text=1:1"))
        client = self.login("web")
        client.sendBytes(frame(BINARY, encodeFrame(TEXT, b"web", b"x")[2:]) * 10)
        self.server.factory.stopServer()
        client.taken()
        client.sendBytes(frame(CLOSE))
        self.assertTrue(client.ended)


class PingTests(WebTestCase):
    def test_pinged(self) -> None:
        """Every 30 s the server pings, so that no proxy takes the connection for idle."""
        client = self.login("web")
        self.server.advance(PING_EVERY - 1)
        self.assertEqual(client.taken(), [])
        self.server.advance(1.1)
        self.assertEqual(client.taken(), [(0x80 | PING, b"")])
        self.server.advance(PING_EVERY)
        self.assertEqual(client.taken(), [(0x80 | PING, b"")])

    def test_answered(self) -> None:
        """A client's ping is answered with what was in it."""
        client = self.login("web")
        client.sendBytes(frame(PING, bytes(125)) + frame(PING))
        self.assertEqual(client.taken(), [(0x80 | PONG, bytes(125)), (0x80 | PONG, b"")])

    def test_noSignOfLife(self) -> None:
        """A client whose browser answers pings while the page says nothing is idle after 90 s."""
        client = self.login("web")
        for _ in range(9):
            client.sendBytes(frame(PONG))
            self.server.advance(10)
            client.taken()
        self.assertEqual(self.online(), ["web"])
        self.server.advance(2)
        self.assertEqual(client.lastWord(), (ErrorCode.IDLE, 4012))

    def test_notWhileItDoesNotRead(self) -> None:
        """To a client that reads nothing pings do not pile up; of its own the last is answered when it reads again."""
        client = self.login("web")
        client.transport.pauseProducing()
        self.server.factory.sendMessage("web", bytes(65_532))
        self.server.factory.sendMessage("web", bytes(65_532))
        before = len(client.transport.other._buffer)
        client.sendBytes(frame(PING, bytes(125)) * 100 + frame(PING, b"last"))
        self.server.advance(PING_EVERY + 1)
        self.assertEqual(len(client.transport.other._buffer), before)
        client.transport.resumeProducing()
        self.assertEqual([f for f in client.taken() if f[0] != 0x80 | BINARY], [(0x80 | PONG, b"last")])
        client.sendBytes(frame(PING, b"?"))
        self.assertEqual(client.taken(), [(0x80 | PONG, b"?")])


class PressureTests(WebTestCase):
    """Back-pressure both ways, and everybody's share."""

    def test_unread(self) -> None:
        """What waits for a web user who reads nothing is bounded: then he is tooSlow, and hears that if he reads on."""
        client = self.login("web")
        client.transport.pauseProducing()
        sent = 0
        while "web" in self.online():
            self.server.factory.sendMessage("web", bytes(60_000), MessageType.FILE)
            self.server.pump()
            sent += 1
            self.assertLess(sent, 1_000)
        self.assertLess(len(client.transport.other._buffer), 1_000_000)
        client.transport.resumeProducing()
        *frames, error, goodbye = client.taken()
        self.assertLess(len(frames), sent)
        self.assertEqual(decodeError(error[1][3:])[0], ErrorCode.TOO_SLOW)
        self.assertEqual(goodbye, (0x80 | CLOSE, (4013).to_bytes(2, "big")))

    def test_readsOn(self) -> None:
        """A web user who did not read for a while misses nothing, and everything comes in order."""
        client = self.login("web")
        client.transport.pauseProducing()
        for i in range(20):
            self.server.factory.sendMessage("web", bytes((i,)) * 60_000)
        self.server.advance(1)
        client.transport.resumeProducing()
        self.assertEqual([m.data for m in client.received()], [bytes((i,)) * 60_000 for i in range(20)])

    def test_tooFast(self) -> None:
        """A web user who writes too fast is read more slowly; nothing is lost, and memory does not grow meanwhile."""
        self.serve(limits=Limits().changed("text=10:10"))
        client, tcp = self.login("web"), self.server.login("tcp")
        client.sendBytes(b"".join(frame(BINARY, encodeFrame(TEXT, b"tcp", bytes((i,)))[2:]) for i in range(40)))
        got = tcp.received()
        self.assertLess(len(got), 20)
        self.assertFalse(client.transport.other._reading)
        client.sendBytes(frame(BINARY, encodeFrame(TEXT, b"tcp", b"last")[2:]))
        self.assertTrue(client.transport._buffer)
        self.server.advance(5)
        got += tcp.received()
        self.assertEqual([m.data for m in got], [*(bytes((i,)) for i in range(40)), b"last"])
        self.assertTrue(client.transport.other._reading)

    def test_heldAtTheGate(self) -> None:
        """Of what comes with the frame at which a client is held, little more is taken apart until it is released."""
        self.serve(limits=Limits().changed("text=100:10"))
        client, tcp = self.login("web"), self.server.login("tcp")
        stream = b"".join(frame(BINARY, encodeFrame(TEXT, b"tcp", b"%d" % i)[2:]) for i in range(MAX_FRAMES + 100))
        gate = client.transport.other.protocol.dataReceived.__self__
        gate.dataReceived(stream)
        self.server.advance(0)
        self.assertGreater(len(gate._unparsed), 0.3 * len(stream))
        gate.dataReceived(frame(BINARY, encodeFrame(TEXT, b"tcp", b"last")[2:]))
        self.server.advance(10)
        self.assertEqual([m.data for m in tcp.received()], [*(b"%d" % i for i in range(MAX_FRAMES + 100)), b"last"])
        self.assertTrue(client.transport.other._reading)

    def test_share(self) -> None:
        """Of a flood of tiny frames, whatever they are, only so many are taken before others have their turn."""
        for flood in (
            frame(PING) * 1_000,
            frame(BINARY, encodeFrame(HEARTBEAT, b"")[2:]) * 1_000,
            frame(CONTINUED, first=0) * 900,
        ):
            client = self.login("web")
            if flood[0] == 0:
                client.sendBytes(frame(BINARY, first=0))
            gate = client.transport.other.protocol.dataReceived.__self__
            gate.dataReceived(flood[:-100])
            gate.dataReceived(flood[-100:])
            self.assertGreater(len(gate._unparsed), len(flood) * 0.7)
            self.assertFalse(client.transport.other._reading)
            self.server.pump()
            self.assertEqual(gate._unparsed, b"")
            self.assertTrue(client.transport.other._reading)
            client.transport.lose(ConnectionDone())
            self.server.pump()

    def test_limits(self) -> None:
        """Web users are counted with all others of their address."""
        self.serve(limits=Limits().changed("address-connections=2"))
        self.open("192.0.2.1")
        self.open("192.0.2.1")
        self.assertEqual(self.open("192.0.2.1").lastWord(), (ErrorCode.OVERLOADED, 4007))
        self.assertEqual(self.open("192.0.2.2").taken(), [])


class Socket(FileDescriptor):
    """A transport with Twisted's own buffers, over a network that takes as many bytes as one says."""

    def __init__(self, reactor: MemoryReactorClock) -> None:
        super().__init__(cast(Any, reactor))
        self.connected = 1
        self.clock = reactor
        self.taken = b""
        self.room = sys.maxsize

    def getPeer(self) -> IPv4Address:
        return IPv4Address("TCP", "192.0.2.1", 40000)

    getHost = getPeer

    def writeSomeData(self, data: Any) -> int:
        part = bytes(data[: self.room])
        self.room -= len(part)
        self.taken += part
        return len(part)

    def take(self) -> None:
        while self.room and self in self.clock.getWriters():
            self.doWrite()


class UnsentTests(SynchronousTestCase):
    """What the kernel has not taken, as the hub sees it through a WebSocket."""

    def test_notLost(self) -> None:
        """Of the texts that wait in the transport none is taken for sent; at most one or two that are sent are not."""
        reactor = MemoryReactorClock()
        hub = WeCompanyFactory(cast(Any, reactor))
        channel = cast(Any, WebSite(hub, cast(Any, reactor)).buildProtocol(None))
        transport = Socket(reactor)
        channel.makeConnection(transport)
        channel.dataReceived(handshake() + frame(BINARY, encodeFrame(HEARTBEAT, b"web")[2:]))
        transport.take()
        transport.taken = b""
        (connection,) = hub._connections
        self.assertEqual(connection.handedTexts(), [])
        transport.room = 0
        texts = [bytes((i,)) * 1_000 for i in range(10)]
        for text in texts:
            hub.sendMessage("web", text)
        transport.room = 3_500
        transport.take()
        missing = [data for _, data in connection.takeTexts()]
        whole = len(split(transport.taken)[0])
        self.assertEqual(whole, 3)
        self.assertLessEqual(set(texts[whole:]), set(missing))
        self.assertLessEqual(len(missing), len(texts) - whole + 1)
        self.assertEqual(missing, texts[-len(missing) :])


class FramesTests(SynchronousTestCase):
    """The two forms of a frame, into each other."""

    payloads = st.lists(
        st.one_of(st.binary(max_size=20), st.integers(120, 130).map(bytes), st.integers(65_530, 65_535).map(bytes)),
        max_size=6,
    )

    @given(payloads, st.data())
    def test_out(self, payloads: list[bytes], data: st.DataObject) -> None:
        """However whole frames are cut into writes, each becomes one message, in order."""
        stream = b"".join(len(p).to_bytes(2, "big") + p for p in payloads)
        transport = StringTransport()
        out = gateway._Stream(cast(Any, None), transport)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            out.write(stream[start:end])
        self.assertEqual(split(transport.value()), ([(0x82, p) for p in payloads], b""))

    def test_errorCode(self) -> None:
        """The code is that of the last frame, if it is an ERROR, and makes sense."""
        error = encodeFrame(MessageType.ERROR, b"alice", b"\5\0offline")
        for frames, code in (
            (error, 5),
            (encodeFrame(TEXT, b"a", b"x") + error, 5),
            (error + encodeFrame(TEXT, b"a", b"x"), 0),
            (error + b"\0", 5),
            (error[:-1], 0),
            (b"\0\4\x0b\xff\xff\1", 0),
            (b"\0\3\x0b\0\0", 0),
            (b"\0\0", 0),
            (b"", 0),
        ):
            self.assertEqual(gateway._messagesOf(frames)[2], code, frames)

    @given(payloads, st.binary(min_size=4, max_size=4), st.integers(1, 8), st.data())
    def test_in(self, payloads: list[bytes], mask: bytes, share: int, data: st.DataObject) -> None:
        """However messages arrive, and whatever their mask, the frames are those of the contract, a share at a time."""
        stream = b"".join(frame(BINARY, p, mask=mask) for p in payloads)
        cuts = sorted(data.draw(st.lists(st.integers(0, len(stream)), max_size=6)))
        got = unparsed = b""
        for start, end in zip([0, *cuts], [*cuts, len(stream)], strict=True):
            unparsed += stream[start:end]
            while True:
                frames, at, left = gateway._takeMessages(unparsed, 0, share)
                self.assertEqual(len(frames), 2 * (share - left))
                got += b"".join(frames)
                unparsed = unparsed[at:]
                if not frames:
                    break
        self.assertEqual((got, unparsed), (b"".join(len(p).to_bytes(2, "big") + p for p in payloads), b""))


class DoorTests(WebTestCase):
    """Who gets a WebSocket at all."""

    origins = ("https://page.example", "HTTP://Other.Example:80")

    def answer(self, request: bytes, tls: bool = False) -> tuple[int, str]:
        client = self.connect(tls=tls)
        client.sendBytes(request)
        code = client.statusAndHeaders()[0]
        return code, client.head.partition(b"\r\n\r\n")[2].decode()

    def test_origins(self) -> None:
        """A page of the same scheme, host and port may connect, one of a listed origin, and whatever is no page."""
        for origin, host in (
            ("http://chat.example:8080", "chat.example:8080"),
            ("http://chat.example:8080", "CHAT.example:8080"),
            ("http://chat.example", "chat.example"),
            ("http://chat.example", "chat.example:80"),
            ("http://[::1]:8080", "[::1]:8080"),
            ("https://page.example", "chat.example:8080"),
            ("http://other.example", "chat.example:8080"),
            (None, "chat.example:8080"),
        ):
            self.assertEqual(self.answer(handshake(Origin=origin, Host=host))[0], 101, (origin, host))
        self.assertEqual(self.answer(handshake(Origin="https://chat.example", Host="chat.example"), tls=True)[0], 101)

    def test_otherOrigins(self) -> None:
        """Any other page gets 403 with a reason in plain text, and is counted."""
        others = (
            "https://chat.example:8080",
            "http://chat.example",
            "http://chat.example:8081",
            "http://evil.example",
            "http://chat.example:8080.evil.example",
            "https://page.example:444",
            "http://page.example",
            "https://sub.page.example",
            "null",
            "",
            "file://",
        )
        for origin in others:
            code, text = self.answer(handshake(Origin=origin))
            self.assertEqual((code, text), (403, "Pages of that origin may not connect here.\n"), origin)
        for twice in ("http://evil.example\r\nOrigin: http://chat.example:8080", "https://page.example\r\nOrigin: x"):
            self.assertEqual(self.answer(handshake(Origin=twice))[0], 403)
        self.assertEqual(self.answer(handshake(Host="a b", Origin="http://a b"))[0], 403)
        self.assertEqual(self.answer(handshake(Origin="http://chat.example:8080"), tls=True)[0], 403)
        self.assertEqual(self.server.factory.counters["web requests refused: another origin"], len(others) + 4)

    def test_badOrigin(self) -> None:
        """What is listed must be origins, and is put into the form in which browsers send them."""
        for text in ("", "chat.example", "https://", "https://a/", "https://a/b", "https://u@a", "https://a:x", "//a",
                     "https://a:99999", "https://a b", "https://*.a", "null", "https://[::1"):  # fmt: skip
            with self.assertRaisesRegex(ValueError, re.escape(f"{text!r} is not an origin")):
                checkOrigin(text)
        self.assertEqual(checkOrigin("HTTPS://Chat.Example:443"), "https://chat.example")
        self.assertEqual(checkOrigin("https://chat.example:8443"), "https://chat.example:8443")
        self.assertEqual(checkOrigin("http://[::1]:80"), "http://[::1]")

    def test_noWebSocket(self) -> None:
        """What is no request for a WebSocket of version 13 gets 426, and is told what would be one."""
        for request in (
            handshake(Upgrade=None),
            handshake(Upgrade="h2c"),
            handshake(Connection="close"),
            handshake(Sec_WebSocket_Version="8"),
            handshake(Sec_WebSocket_Version=None),
            handshake(version="1.0"),
            handshake(method="HEAD"),
        ):
            client = self.connect()
            client.sendBytes(request)
            code, headers = client.statusAndHeaders()
            self.assertEqual((code, headers["Upgrade"]), (426, "websocket"))
            self.assertEqual({n.lower(): v for n, v in headers.items()}["sec-websocket-version"], "13")

    def test_badKey(self) -> None:
        """A key that is not 16 bytes in base64 gets 400, and so do two keys."""
        for key in ("", "x", KEY[:-4], KEY[:-1] + "!", "x" * 25, None):
            self.assertEqual(self.answer(handshake(Sec_WebSocket_Key=key))[0], 400, key)
        twice = handshake().replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Key: x\r\nSec-WebSocket-Key")
        self.assertEqual(self.answer(twice)[0], 400)

    def test_elsewhere(self) -> None:
        """There is a WebSocket at /ws and nowhere else."""
        for path in ("/", "/ws/", "/ws/x", "//ws", "/WS"):
            client = self.connect()
            client.sendBytes(handshake(path=path))
            self.assertNotIn(b" 101 ", client.head)
        self.assertEqual(self.answer(handshake(path="/ws?x=y"))[0], 101)

    def test_afterFiles(self) -> None:
        """A connection that has asked for files becomes a WebSocket, as one that a proxy keeps does."""
        client = self.connect()
        client.sendBytes(b"GET / HTTP/1.1\r\nHost: chat.example:8080\r\n\r\n")
        self.assertIn(b"200 OK", client.head)
        client.head = b""
        client.sendBytes(handshake())
        client.send(HEARTBEAT, "web")
        self.assertEqual([m.userId for m in client.received()], ["web"])
        self.server.advance(REQUEST_WITHIN + TAKE_WITHIN)
        self.assertFalse(client.ended)


class FilesTests(WebTestCase):
    """The page's files."""

    def setUp(self) -> None:
        super().setUp()
        (self.folder / "views").mkdir()
        (self.folder / "views" / "chat.js").write_text("export {};")
        (self.folder / "style.css").write_text("p { }")
        (self.folder / "secret.py").write_text("x")
        (self.folder.parent / "outside.txt").write_text("outside")
        self.addCleanup((self.folder.parent / "outside.txt").unlink)
        self.serve()

    def test_files(self) -> None:
        """Each file is served with its type, its length and an ETag, to be asked for again each time."""
        for path, kind, body in (
            ("/", "text/html; charset=utf-8", b"<!doctype html><title>Chat</title>"),
            ("/index.html", "text/html; charset=utf-8", b"<!doctype html><title>Chat</title>"),
            ("/style.css", "text/css; charset=utf-8", b"p { }"),
            ("/style.css?v=2", "text/css; charset=utf-8", b"p { }"),
            ("/views/chat.js", "text/javascript; charset=utf-8", b"export {};"),
        ):
            code, headers, got = self.get(path)
            self.assertEqual((code, got), (200, body))
            self.assertEqual(headers["Content-Type"], kind)
            self.assertEqual(headers["Content-Length"], str(len(body)))
            self.assertEqual(headers["Cache-Control"], "no-cache")
            self.assertRegex(headers["ETag"], r'\A"[0-9a-f]{32}"\Z')

    def test_packed(self) -> None:
        """Who takes gzip gets the same so, under another ETag, and every answer says that it depends on that."""
        _, plain, body = self.get("/style.css", "Accept-Encoding: br, identity")
        for accepted in ("gzip", "br,gzip", "deflate, GZIP , br"):
            code, headers, got = self.get("/style.css", f"Accept-Encoding: {accepted}")
            self.assertEqual((code, headers["Content-Encoding"], gzip.decompress(got)), (200, "gzip", body))
            self.assertEqual((headers["Content-Type"], headers["Vary"]), (plain["Content-Type"], "Accept-Encoding"))
            self.assertEqual(headers["Content-Length"], str(len(got)))
            self.assertNotEqual(headers["ETag"], plain["ETag"])
            again = f"If-None-Match: {headers['ETag']}"
            self.assertEqual(self.get("/style.css", f"Accept-Encoding: {accepted}", again)[0], 304)
            self.assertEqual(self.get("/style.css", again)[0], 200)
        self.assertNotIn("Content-Encoding", plain)
        self.assertEqual(plain["Vary"], "Accept-Encoding")

    def test_head(self) -> None:
        """HEAD says the same without the file."""
        _, expected, _ = self.get("/style.css")
        self.assertEqual(self.get("/style.css", method="HEAD"), (200, expected, b""))
        code, headers, body = self.get("/nothing", method="HEAD")
        self.assertEqual((code, headers["Content-Length"], body), (404, "23", b""))

    def test_notModified(self) -> None:
        """Who has the file is not sent it again, however the ETag is asked about; who has another one is."""
        tag = self.get("/style.css")[1]["ETag"]
        for tags in (tag, f"W/{tag}", f'"x", {tag}', f'"x",{tag} , "y"', "*"):
            code, headers, body = self.get("/style.css", f"If-None-Match: {tags}")
            self.assertEqual((code, body, headers["ETag"]), (304, b"", tag), tags)
            self.assertNotIn("Content-Type", headers)
        for tags in ('"x"', "", tag.strip('"'), self.get("/")[1]["ETag"]):
            self.assertEqual(self.get("/style.css", f"If-None-Match: {tags}")[0], 200, tags)

    def test_nothingElse(self) -> None:
        """There is no listing, no other type of file, and no way out of the folder."""
        for path in ("/views", "/views/", "/secret.py", "/nothing", "/../outside.txt", "/%2e%2e/outside.txt",
                     "/..%2foutside.txt", "/views/../style.css", "//style.css", "/style.css/", "/style.css/x",
                     "/index.html%00", "/%", "/" + "x" * 10_000, "/\\..\\outside.txt",
                     "http://chat.example:8080/style.css"):  # fmt: skip
            code, headers, body = self.get(path)
            self.assertEqual((code, body), (404, b"There is nothing here.\n"), path)
            self.assertEqual(headers["Content-Type"], "text/plain; charset=utf-8")

    def test_methods(self) -> None:
        """Only GET and HEAD are served."""
        for method in ("POST", "PUT", "DELETE", "OPTIONS", "TRACE", "X"):
            for path in ("/", "/ws", "/nothing"):
                code, headers, _ = self.get(path, method=method)
                self.assertEqual((code, headers["Allow"]), (405, "GET, HEAD"))

    def test_headers(self) -> None:
        """Every answer, errors among them, has the strict headers, and nothing tells what serves it."""
        for path, *more in (("/",), ("/nothing",), ("/ws",), ("/ws", "Origin: http://evil.example"), ("/", "X: y")):
            for method in ("GET", "HEAD", "POST"):
                _, headers, _ = self.get(path, *more, method=method)
                policy = dict(part.strip().split(" ", 1) for part in headers["Content-Security-Policy"].split(";"))
                self.assertEqual(policy["default-src"], "'self'")
                self.assertEqual(policy["connect-src"], "'self' wss://chat.example:8080 ws://chat.example:8080")
                for name in ("object-src", "base-uri", "frame-ancestors"):
                    self.assertEqual(policy[name], "'none'")
                self.assertNotIn("unsafe", headers["Content-Security-Policy"])
                self.assertEqual(headers["X-Content-Type-Options"], "nosniff")
                self.assertEqual(headers["X-Frame-Options"], "DENY")
                self.assertEqual(headers["Referrer-Policy"], "no-referrer")
                self.assertEqual(headers["Permissions-Policy"], "camera=(self), microphone=(self)")
                self.assertEqual(headers["Cross-Origin-Opener-Policy"], "same-origin")
                self.assertNotIn("Strict-Transport-Security", headers)
                self.assertNotIn("Server", headers)

    def test_secureHeaders(self) -> None:
        """Over TLS browsers are told to come over TLS only, and to open no WebSocket without."""
        _, headers, _ = self.get("/", tls=True)
        self.assertEqual(headers["Strict-Transport-Security"], "max-age=31536000")
        self.assertIn("connect-src 'self' wss://chat.example:8080;", headers["Content-Security-Policy"])

    def test_hostileHost(self) -> None:
        """A Host that is none gets into no header."""
        for host in ("x; script-src *", "a b", "'unsafe-inline'", "x,y", "", "x:y", "x:99999999"):
            client = self.ask("GET / HTTP/1.1", f"Host: {host}")
            code, headers = client.statusAndHeaders()
            self.assertEqual(code, 200)
            self.assertIn("connect-src 'self';", headers["Content-Security-Policy"])
        client = self.ask("GET / HTTP/1.1", "Host: a", "Host: b")
        self.assertIn("connect-src 'self';", client.statusAndHeaders()[1]["Content-Security-Policy"])

    def test_another(self) -> None:
        """An application puts its own resources beside the page."""

        class News(Resource):
            def render(self, request: Request) -> bytes:
                return b"today"

        cast(Any, self.site.resource).putChild(b"news", News())
        self.assertEqual(self.get("/news")[::2], (200, b"today"))
        self.assertEqual(self.get("/")[0], 200)

    def test_ownPage(self) -> None:
        """The page that is installed is served whole: no file of it has a type that is not."""
        folder = Path(wecompany.web.__file__).parent / "pages"
        self.site = WebSite(self.server.factory, self.server.clock)
        self.assertEqual(self.get("/")[2], (folder / "index.html").read_bytes())
        for path in folder.rglob("*"):
            if path.is_file():
                code, _, body = self.get("/" + path.relative_to(folder).as_posix())
                self.assertEqual((code, body), (200, path.read_bytes()), path.name)


class BoundsTests(WebTestCase):
    """What strangers can make the HTTP side hold."""

    def test_noRequest(self) -> None:
        """A connection without a whole request is closed after 15 s, however slowly one comes."""
        silent, slow = self.connect(), self.connect()
        for byte in b"GET / HTTP/1.1"[: int(REQUEST_WITHIN) - 1]:
            slow.sendBytes(bytes((byte,)))
            self.server.advance(1)
        self.assertEqual((silent.ended, slow.ended), (False, False))
        self.server.advance(1.1)
        self.assertEqual((silent.ended, slow.ended), (True, True))
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_nextRequest(self) -> None:
        """After each answer there are 15 s for the next request."""
        client = self.connect()
        for _ in range(4):
            self.server.advance(REQUEST_WITHIN - 1)
            client.head = b""
            client.sendBytes(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
            self.assertIn(b"200 OK", client.head)
        self.server.advance(REQUEST_WITHIN + 0.1)
        self.assertTrue(client.ended)

    def test_answerNotTaken(self) -> None:
        """Who does not take the answer is dropped."""
        client = self.connect()
        client.transport.pauseProducing()
        client.sendBytes(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        self.server.advance(REQUEST_WITHIN + TAKE_WITHIN - 1)
        self.assertFalse(client.ended)
        self.server.advance(1.1)
        self.assertTrue(client.ended)
        self.assertEqual(self.server.clock.getDelayedCalls(), [])

    def test_body(self) -> None:
        """A request with a body is refused before any of it is read."""
        for header in ("Content-Length: 1", "Content-Length: 99999999999", "Transfer-Encoding: chunked"):
            client = self.ask("POST / HTTP/1.1", "Host: a", header, "X: y", body=bytes(1_000))
            self.assertEqual(client.statusAndHeaders()[0], 413)
            self.assertEqual(client.head.count(b"HTTP/1.1"), 1)
            self.assertTrue(client.ended)
        self.assertEqual(self.ask("GET / HTTP/1.1", "Host: a", "Content-Length: 0").statusAndHeaders()[0], 200)

    def test_afterTheEnd(self) -> None:
        """What comes after a connection is given up, as it can over TLS, is no request any more."""
        channel = cast(Any, self.site.buildProtocol(IPv4Address("TCP", "192.0.2.1", 40000)))
        transport = StringTransport()
        channel.makeConnection(transport)
        channel.dataReceived(b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\nX: y\r\n")
        self.assertTrue(transport.disconnecting)
        transport.clear()
        channel.dataReceived(b"\r\n123456789GET / HTTP/1.1\r\nHost: a\r\n\r\n")
        self.assertEqual(transport.value(), b"")
        channel.connectionLost(Failure(ConnectionDone()))

    def test_headers(self) -> None:
        """Headers of more than 16 KiB are refused."""
        client = self.ask("GET / HTTP/1.1", "Host: a", *(f"X-{i}: {'x' * 1_000}" for i in range(20)))
        self.assertEqual(client.statusAndHeaders()[0], 400)
        self.assertTrue(client.ended)
        client = self.ask("GET / HTTP/1.1", "Host: a", *(f"X-{i}: {'x' * 1_000}" for i in range(14)))
        self.assertEqual(client.statusAndHeaders()[0], 200)

    def test_nonsense(self) -> None:
        """What is no HTTP is closed, and no failure in the log."""
        for stream in (b"\x16\x03\x01\x02\x00\r\n\r\n", encodeFrame(HEARTBEAT, b"alice") + b"\r\n\r\n", b"GET\r\n\r\n"):
            client = self.connect()
            client.sendBytes(stream)
            self.assertTrue(client.ended)

    def test_tooMany(self) -> None:
        """There are so many connections for each address, and in all; a WebSocket is no longer one of them."""
        self.patch(site, "MAX_OF_ADDRESS", 2)
        self.patch(site, "MAX_CONNECTIONS", 3)
        first, second = self.connect("192.0.2.1"), self.connect("192.0.2.1")
        self.assertTrue(self.connect("192.0.2.1").ended)
        first.sendBytes(handshake())
        third, fourth = self.connect("192.0.2.1"), self.connect("2001:db8::1")
        self.assertTrue(self.connect("192.0.2.2").ended)
        self.assertEqual([one.ended for one in (first, second, third, fourth)], [False] * 4)
        second.transport.lose(ConnectionDone())
        self.server.pump()
        self.assertFalse(self.connect("192.0.2.1").ended)
        counters = self.server.factory.counters
        self.assertEqual(counters["web connections refused: too many of one address"], 1)
        self.assertEqual(counters["web connections refused: too many"], 1)

    def test_proxied(self) -> None:
        """What comes through a proxy that will tell the address is counted with none."""
        self.patch(site, "MAX_OF_ADDRESS", 1)
        self.assertFalse(self.connect(proxied=True).ended)
        self.assertFalse(self.connect(proxied=True).ended)
        self.assertFalse(self.connect().ended)
        self.assertTrue(self.connect().ended)

    def test_portClosed(self) -> None:
        """When the port is closed, connections that only ask for files go; WebSockets are the hub's to close."""
        client, web = self.connect(), self.login("web")
        self.site.doStart()
        self.site.doStop()
        self.server.pump()
        self.assertTrue(client.ended)
        self.assertFalse(web.ended)

    def test_noLog(self) -> None:
        """Requests are not logged, whatever they are, and nothing wakes the server up for a log's sake."""
        events: list[Any] = []
        from twisted.logger import globalLogPublisher

        globalLogPublisher.addObserver(cast(Any, events.append))
        self.addCleanup(globalLogPublisher.removeObserver, cast(Any, events.append))
        self.site.doStart()
        self.get("/")
        self.get("/nothing")
        self.get("/", method="HEAD")
        self.get("/nothing", method="HEAD")
        self.connect()
        self.server.advance(REQUEST_WITHIN + TAKE_WITHIN)
        self.assertEqual([event for event in events if event["log_level"].name != "debug"], [])
        self.site.doStop()  # which ends the samples for /status
        self.assertEqual(self.server.clock.getDelayedCalls(), [])


class EmbeddingTests(SynchronousTestCase):
    def test_noGlobalState(self) -> None:
        """Importing it, and making a site, neither installs a reactor nor reseeds the application's random numbers."""
        script = (
            "import random, sys; random.seed(1); state = random.getstate()\n"
            "from twisted.internet.task import Clock\n"
            "from wecompany import WeCompanyFactory\n"
            "from wecompany.web.site import WebSite\n"
            "clock = Clock(); WebSite(WeCompanyFactory(clock), clock)\n"
            "assert 'twisted.internet.reactor' not in sys.modules\n"
            "assert random.getstate() == state\n"
        )
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=False)
        self.assertEqual((done.returncode, done.stderr), (0, ""))
        state = random.getstate()
        gateway.Gateway(WeCompanyFactory(Clock()), Clock())
        self.assertEqual(random.getstate(), state)


class Listening:
    """A port in memory that knows where it listens."""

    def __init__(self, host: str, port: int) -> None:
        self._address = (IPv6Address if ":" in host else IPv4Address)("TCP", host, port)

    def getHost(self) -> IPv4Address | IPv6Address:
        return self._address

    def stopListening(self) -> None:
        """See L{IListeningPort<twisted.internet.interfaces.IListeningPort>}."""


class Reactor(MemoryReactorClock):
    """A reactor in memory whose ports know where they listen."""

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> Any:
        super().listenTCP(port, factory, backlog, interface)
        return Listening(interface or "0.0.0.0", port)

    def listenSSL(self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = "") -> Any:
        super().listenSSL(port, factory, contextFactory, backlog, interface)
        return Listening(interface or "0.0.0.0", port)


class OptionsTests(SynchronousTestCase):
    def complaint(self, *words: str) -> str:
        """Return the one line that says what is wrong with a command line."""
        with self.assertRaises(CannotStart) as raised:
            self.make(*words)
        self.assertNotIn("\n", str(raised.exception))
        return str(raised.exception)

    def make(self, *words: str) -> WeCompanyService:
        self.reactor = Reactor()
        options = Options()
        options.parseOptions(["--database", "none", *words])
        return makeService(options, cast(Any, self.reactor))

    def start(self, *words: str) -> list[str]:
        """Start a server, and return what it says, as it stands in the log."""
        from twisted.logger import formatEvent, globalLogPublisher

        events: list[Any] = []
        observer = cast(Any, events.append)
        globalLogPublisher.addObserver(observer)
        self.addCleanup(globalLogPublisher.removeObserver, observer)
        made = self.make(*words)
        made.privilegedStartService()
        made.startService()
        self.successResultOf(made.stopService())
        return [formatEvent(event) for event in events]

    def test_parsed(self) -> None:
        """--web is a port or an endpoint; without it there is no web port."""
        self.assertEqual((parse()["web"], parse()["web-origins"]), (None, []))
        self.assertEqual(parse("--web", "8080")["web"], 8080)
        self.assertEqual(parse("--web", "8080")["port"], 8888)
        self.assertEqual(parse("--web", "tcp:8080")["web"], "tcp:8080")
        options = parse("--web", "0", "--web-origin", "https://a", "--web-origin", "https://b")
        self.assertEqual(options["web-origins"], ["https://a", "https://b"])
        parse("--web", "8080", "--listen", "tcp:1", "--interface", "::1", "--tls", "x.pem")

    def test_wrong(self) -> None:
        """What does not go together, or is no port, endpoint or origin, is one line that says so."""
        for words, said in (
            (("--web", "65536"), "--web: '65536' is not a port"),
            (("--web", ""), "--web: '' is not a port"),
            (("--web", "http"), "--web: 'http' is not a port"),
            (("--web", "nonsense:1"), "--web nonsense:1: "),
            (("--web", "ssl:1:privateKey=/no.pem:certKey=/no.pem"), "--web ssl:1"),
            (("--web-origin", "https://a"), "--web-origin goes with --web"),
            (("--web", "1", "--web-origin", "a/b"), "--web-origin: 'a/b' is not an origin"),
            (("--web", "tcp:1", "--listen", "tcp:2", "--tls", "x.pem"), "--tls goes with --port"),
        ):
            self.assertIn(said, self.complaint(*words))

    def test_withoutTheExtra(self) -> None:
        """Without the extra one is told what to install."""
        self.addCleanup(sys.modules.__setitem__, "wecompany.web.site", site)
        cast(Any, sys.modules)["wecompany.web.site"] = None
        self.assertIn('pip install "wecompany[web]"', self.complaint("--web", "8080"))

    def test_listens(self) -> None:
        """The web port listens on --interface, besides --port; an endpoint where it says."""
        self.start("--interface", "127.0.0.1", "--web", "8080")
        self.assertEqual([(s[0], s[3]) for s in self.reactor.tcpServers], [(8888, "127.0.0.1"), (8080, "127.0.0.1")])
        self.start("--web", "haproxy:tcp:8080:interface=127.0.0.2")
        self.assertEqual([(s[0], s[3]) for s in self.reactor.tcpServers], [(8888, ""), (8080, "127.0.0.2")])

    def test_saysWhere(self) -> None:
        """At the start it says what to open, and warns where browsers would give no camera."""
        for words, url, isWarned in (
            (("--web", "8080"), "http://localhost:8080/", True),
            (("--web", "8080", "--interface", "127.0.0.1"), "http://127.0.0.1:8080/", False),
            (("--web", "tcp6:8080:interface=\\:\\:1"), "http://[::1]:8080/", False),
            (("--web", "8080", "--interface", "192.0.2.1"), "http://192.0.2.1:8080/", True),
        ):
            said = self.start(*words)
            self.assertEqual([s for s in said if "page for browsers" in s], [f"The page for browsers: {url}"])
            self.assertEqual(any("no camera" in s for s in said), isWarned, words)

    def test_tls(self) -> None:
        """With --tls the web port has the same certificate, or with an endpoint its own; then nothing is warned of."""
        path = temporaryFolder(self) / "cert.pem"
        path.write_bytes(makeCertificate("localhost") + keyOf("localhost"))
        for words in (
            ("--web", "8443", "--tls", str(path)),
            ("--web", f"ssl:8443:privateKey={path}:certKey={path}"),
        ):
            said = self.start(*words)
            self.assertIn("The page for browsers: https://localhost:8443/", said)
            self.assertEqual([s for s in said if "no camera" in s], [])
            self.assertEqual([server[0] for server in self.reactor.sslServers][-1], 8443)

    def test_passwords(self) -> None:
        """Where passwords would cross the network as they are it says so, for the web port as for the other."""
        for words, names in (
            (("--web", "8080"), ["port 8888", "port 8080"]),
            (("--web", "tcp:8080:interface=127.0.0.1"), ["port 8888"]),
        ):
            said = [s for s in self.start("--auth", "memory:alice:secret", *words) if s.startswith("Passwords cross")]
            self.assertEqual(len(said), len(names))
            for line, name in zip(said, names, strict=True):
                self.assertIn(name, line)

    def test_filesReserved(self) -> None:
        """Open files are kept for those who ask for the page."""
        without = cast(Any, self.make()).factory._maxConnections
        self.assertLess(cast(Any, self.make("--web", "8080")).factory._maxConnections, without)


class Client(WebSocketClientProtocol):
    """Autobahn's client: it registers, and writes to itself."""

    factory: Any

    def onOpen(self) -> None:
        self.messages: list[bytes] = []
        self.sendMessage(encodeFrame(HEARTBEAT, b"alice")[2:], True)
        self.sendMessage(encodeFrame(TEXT, b"alice", bytes(50_000))[2:], True)
        self.sendPing(b"?")

    def onMessage(self, payload: bytes, isBinary: bool) -> None:
        assert isBinary
        self.messages.append(payload)

    def onPong(self, payload: bytes) -> None:
        self.sendClose(1000)

    def onClose(self, wasClean: bool, code: int, reason: str) -> None:
        self.factory.done.callback((wasClean, code, self.messages))


class RealSocketTests(TestCase):
    """With the real reactor and autobahn's client, on the loopback."""

    timeout = 60

    async def run_(self, plain: bool, tls: bool) -> None:
        from twisted.internet import reactor as installed
        from twisted.internet.ssl import CertificateOptions

        from wecompany.poller import fastest

        reactor = cast(Any, installed)
        hub = WeCompanyFactory(reactor)
        listener = reactor if plain else fastest(reactor)
        if tls:
            folder = temporaryFolder(cast(Any, self))
            (folder / "cert.pem").write_bytes(makeCertificate("localhost") + keyOf("localhost"))
            context = ServerTLS(reactor, deferToThread, folder / "cert.pem")
            port = listener.listenSSL(0, WebSite(hub, reactor), context, interface="127.0.0.1")
        else:
            port = listener.listenTCP(0, WebSite(hub, reactor), interface="127.0.0.1")
        address = f"{'wss' if tls else 'ws'}://127.0.0.1:{port.getHost().port}/ws"
        factory: Any = WebSocketClientFactory(address, reactor=reactor)
        factory.protocol = Client
        factory.setProtocolOptions(openHandshakeTimeout=0, closeHandshakeTimeout=0, serverConnectionDropTimeout=0)
        factory.done = Deferred()
        if tls:
            connector = reactor.connectSSL("127.0.0.1", port.getHost().port, factory, CertificateOptions())
        else:
            connector = reactor.connectTCP("127.0.0.1", port.getHost().port, factory)
        wasClean, code, (greeting, text) = await factory.done
        connector.disconnect()
        self.assertEqual((wasClean, code), (True, 1000))
        self.assertEqual((greeting[:8], text), (b"\7\0\5alice", b"\0\0\5alice" + bytes(50_000)))
        await port.stopListening()
        await hub.stopServer()

    async def test_tcp(self) -> None:
        """Over TCP, with the poller and without it: messages, a ping and a clean goodbye."""
        for plain in (False, True):
            await self.run_(plain, False)

    async def test_tls(self) -> None:
        """The same over TLS."""
        for plain in (False, True):
            await self.run_(plain, True)


class ProgramTests(SynchronousTestCase):
    """The installed program."""

    def test_served(self) -> None:
        """twistd with --web says where the page is, serves it, and lets a WebSocket in."""
        port = freePort()
        server = startServer(freePort(), "--web", str(port))
        self.addCleanup(server.end)
        url = f"http://127.0.0.1:{port}/"
        self.assertTrue(any(line.endswith(f"The page for browsers: {url}") for line in server.lines))
        with urlopen(url, timeout=20) as answer:
            self.assertEqual(answer.headers["Content-Type"], "text/html; charset=utf-8")
        with socket.create_connection(("127.0.0.1", port), 20) as connected:
            connected.sendall(handshake(Host=f"127.0.0.1:{port}", Origin=url[:-1]))
            connected.sendall(frame(BINARY, encodeFrame(HEARTBEAT, b"alice")[2:]))
            server.waitFor("'alice' is online")

    def test_proxied(self) -> None:
        """Behind haproxy: the address is the one that the proxy tells, and no header's."""
        port = freePort()
        server = startServer(freePort(), "--web", f"haproxy:tcp:{port}:interface=127.0.0.1")
        self.addCleanup(server.end)
        with socket.create_connection(("127.0.0.1", port), 20) as connected:
            connected.sendall(b"PROXY TCP4 192.0.2.7 127.0.0.1 40007 8080\r\n")
            connected.sendall(handshake(X_Forwarded_For="192.0.2.8"))
            connected.sendall(frame(BINARY, encodeFrame(HEARTBEAT, b"alice")[2:]))
            server.waitFor("'alice' is online from 192.0.2.7:40007")
