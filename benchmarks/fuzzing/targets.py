"""
What the fuzzer calls: each of L{TARGETS} takes any bytes, and raises if something is wrong with what came of them.

Three kinds of targets.  C{frames} and C{fields} feed the decoders of L{wecompany.wire}; C{media}, C{limits} and their
like other parsers.  C{server} and its variants take the bytes as a script: three users, frames with any data as first
and as later ones, raw bytes, lost connections, passing time, against a whole server in memory.  C{client} is the same
for the client library, with the script on the server's side.
"""

from __future__ import annotations

import shutil
import tempfile
from collections import Counter, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any, cast

from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.error import ConnectionLost
from twisted.internet.interfaces import IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Protocol, connectionDone
from twisted.internet.task import Clock
from twisted.logger import LogEvent, LogLevel, formatEvent, globalLogPublisher
from twisted.python.failure import Failure
from zope.interface import implementer

from wecompany.accounts import Accounts, hashPassword, makeToken
from wecompany.client import Call, Client, ClientError, ClientListener, IncomingFile
from wecompany.database import Database
from wecompany.limits import Limits, RateLimit, addressKey
from wecompany.media import MAX_FRAME, MediaFrame, Reassembler, StreamDescription
from wecompany.media import encodeFrame as encodeMedia
from wecompany.store import Store
from wecompany.testing import FakeClient, MemoryServer, MemoryTransport
from wecompany.wire import (
    MAX_PAYLOAD,
    ErrorCode,
    FileOffer,
    MediaKind,
    MessageType,
    WireError,
    checkUserId,
    decodeError,
    decodeFrames,
    decodeOffset,
    decodePayload,
    decodeU32,
    encodeError,
    encodeFrame,
    encodeOffset,
    encodeU32,
    splitId,
    splitOffset,
    splitReason,
)

MAX_STEPS = 48
"""Steps of one script: more of them find little that these do not, and take their time."""

LONG_ENOUGH = 130.0
"""Seconds after which a server whose users have all gone has forgotten what was between them."""

USERS = (b"alice", b"bob", b"carol")
"""Who is online when a script begins."""

WHOM = (*USERS, b"", b"nobody", b"#group", b"\xff", b"x" * 200)
"""User IDs that a script names by a number."""

PASSWORD = b"correct horse"
"""The password of all L{USERS} where there are accounts."""

TRANSFER = b"transfer-id-is-0"
"""The transfer ID that a script need not spell."""

WAITS = (0.02, 1.0, 5.0, 16.0, 31.0, 95.0)
"""Seconds that a script can let pass: they lie on both sides of the server's timers."""


class Finding(Exception):
    """Something is wrong."""


# -- What a fuzzer's bytes mean ------------------------------------------------------------------------------------


class Script:
    """Bytes that are read as numbers and strings; past their end there are zeros."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def isOver(self) -> bool:
        """Whether all has been read."""
        return self._at >= len(self._data)

    def number(self, below: int) -> int:
        """Return a number."""
        byte = self._data[self._at] if self._at < len(self._data) else 0
        self._at += 1
        return byte % below

    def string(self) -> bytes:
        """Return a string of at most 255 bytes."""
        length = self.number(256)
        self._at += length
        return self._data[self._at - length : self._at]

    def steps(self) -> Iterator[int]:
        """Yield what to do in each step, a number below 16."""
        for _ in range(MAX_STEPS):
            if self.isOver:
                return
            yield self.number(16)


def fill(data: bytes, words: dict[int, bytes]) -> bytes:
    """Return C{data} with bytes that UTF-8 does not have replaced by what only a running server can tell."""
    if words.keys().isdisjoint(data):
        return data
    return b"".join(words.get(byte, bytes((byte,))) for byte in data)[: MAX_PAYLOAD - 512]


CALL_ID, SESSION_ID, TRANSFER_ID, SECRET, TOKEN, EIGHT, OFFER, MANY, REQUEST = 0xC0, 0xC1, *range(0xF5, 0xFC)
"""Stand in a script's strings for: the last call's ID, the last session's, ..."""

_FIXED = {
    TRANSFER_ID: TRANSFER,
    SECRET: PASSWORD,
    EIGHT: bytes(8),
    OFFER: FileOffer(70_000, bytes(32), "report.pdf").encode(),
    MANY: bytes(30_000),
}


# -- What must not happen ------------------------------------------------------------------------------------------


@contextmanager
def watchedLog() -> Iterator[None]:
    """
    Let nothing be logged as a fault, and no line be broken by what strangers say.

    @raise Finding: if that happened.
    """
    findings: list[str] = []

    def observe(event: LogEvent) -> None:
        text = formatEvent(event)
        if event["log_level"] >= LogLevel.error:
            failure = event.get("log_failure")
            findings.append(text if failure is None else f"{text}\n{failure.getTraceback()}")
        elif "Unable to format" in text or not text.isprintable():
            findings.append(f"a log line that is none: {text!r}")

    globalLogPublisher.addObserver(cast(Any, observe))
    try:
        yield
    finally:
        globalLogPublisher.removeObserver(cast(Any, observe))
    if findings:
        raise Finding("\n".join(findings))


def tables(*owners: object) -> dict[str, int]:
    """Return how much is in each container of those and of their parts, but for the counters and rate limits."""
    parts = [part for owner in owners for part in vars(owner).values() if _isPart(part)]
    return {
        f"{type(owner).__name__}.{name}": len(value)
        for owner in (*owners, *parts)
        for name, value in vars(owner).items()
        if isinstance(value, dict | set | list | deque) and name not in ("counters", "_reported")
    }


def _isPart(value: object) -> bool:
    isOurs = type(value).__module__.startswith("wecompany.") and hasattr(value, "__dict__")
    return isOurs and not isinstance(value, RateLimit | Limits | Store | Accounts)


def expect(isRight: bool, what: str) -> None:
    """
    Say what has to be.

    @raise Finding: if it is not.
    """
    if not isRight:
        raise Finding(what)


# -- Decoders ------------------------------------------------------------------------------------------------------


def frames(data: bytes) -> None:
    """However a stream is cut, the same frames come out of it, and the same fault at the same place."""
    script = Script(data)
    stream = data[1:]
    size = script.number(256) + 1
    whole, fault = _decoded(stream)
    parts: list[tuple[int, bytes, bytes]] = []
    partFault = ""
    unparsed = b""
    for at in range(0, len(stream), size):
        unparsed += stream[at : at + size]
        end = 0
        try:
            for messageType, userId, body, end in decodeFrames(unparsed):
                parts.append((messageType, userId, body))
        except WireError as e:
            partFault = e.text
            break
        unparsed = unparsed[end:]
    expect((whole, fault) == (parts, partFault), "other frames when the stream is cut")
    end = sum(map(_frameSize, whole))
    expect(b"".join(encodeFrame(*frame) for frame in whole) == stream[:end], "no way back")
    rest = stream[end:]
    isPart = len(rest) < 2 or len(rest) < 2 + int.from_bytes(rest[:2], "big")
    expect(bool(fault) or isPart, "a frame that is whole and left out")


def _decoded(stream: bytes) -> tuple[list[tuple[int, bytes, bytes]], str]:
    found: list[tuple[int, bytes, bytes]] = []
    try:
        found.extend((messageType, userId, body) for messageType, userId, body, _ in decodeFrames(stream))
    except WireError as e:
        return found, e.text
    return found, ""


def _frameSize(frame: tuple[int, bytes, bytes]) -> int:
    return 5 + len(frame[1]) + len(frame[2])


def fields(data: bytes) -> None:
    """Every decoder of a type's data takes any bytes, or raises a WireError; what it takes can be encoded again."""
    body = data[1:]
    decode, encode = _FIELDS[data[0] % len(_FIELDS)] if data else _FIELDS[0]
    try:
        value = decode(body)
    except WireError as e:
        expect(e.code in (ErrorCode.BAD_REQUEST, ErrorCode.MALFORMED), f"{e.code!r} for data that makes no sense")
        return
    if encode is not None:
        expect(encode(value) == body, f"{value!r} is not what came")


_FIELDS: list[tuple[Callable[[bytes], Any], Callable[[Any], bytes] | None]] = [
    (decodePayload, lambda value: encodeFrame(*value)[2:]),
    (decodeU32, encodeU32),
    (decodeOffset, encodeOffset),
    (splitOffset, lambda value: encodeOffset(value[0]) + value[1]),
    (splitId, b"".join),
    (splitReason, None),
    (decodeError, None),
    (FileOffer.decode, FileOffer.encode),
    (checkUserId, str.encode),
    (lambda body: decodeError(encodeError(1, 2, decodeError(body)[2])), None),
]


def media(data: bytes) -> None:
    """Pieces of media from anyone make frames within their bounds, and whole ones come back as they were sent."""
    script = Script(data)
    reassembler = Reassembler()
    while not script.isOver:
        piece = script.string()
        for _ in range(1 + 400 * (script.number(256) == MANY)):
            frame = reassembler.feed(piece + bytes(4_000) * (piece[:1] >= b"\x80"))
            expect(frame is None or len(frame.data) <= MAX_FRAME, "a frame past its bound")
    sent = MediaFrame(MediaKind(script.number(4)), 7, 9, data * 30)
    fresh = Reassembler()
    *rest, last = (fresh.feed(piece) for piece in encodeMedia(sent))
    expect(last == sent and not any(rest), "a frame that is not what was sent")


def description(data: bytes) -> None:
    """An offer or answer is a description or a ValueError, and a description says the same when it is encoded."""
    try:
        found = StreamDescription.decode(data)
    except ValueError:
        return
    expect(StreamDescription.decode(found.encode()) == found, "a description that changes")


def limits(data: bytes) -> None:
    """A setting of a limit is taken or refused in one line, and one that is taken says itself again."""
    setting = data.decode("utf-8", "replace")
    addressKey(setting)
    try:
        changed = Limits().changed(setting)
    except ValueError as e:
        expect(str(e).isprintable() or not setting.isprintable(), "a refusal of several lines")
        return
    limit = changed[setting.partition("=")[0]]
    expect(Limits().changed(str(limit))[limit.name] == limit, f"{limit} is not what was set")


# -- The server ----------------------------------------------------------------------------------------------------


class Dialogue:
    """Three users, and whatever a script lets them do to a server."""

    def __init__(self, server: MemoryServer, credential: bytes = b"") -> None:
        self._server = server
        self._credential = credential
        self._words = _FIXED | {CALL_ID: bytes(16), SESSION_ID: bytes(16), TOKEN: makeToken()}
        self._isAnswered: set[FakeClient] = set()
        self._clients: list[FakeClient] = []
        for user in USERS:
            self._clients.append(self._connect(MessageType.LOGIN, user, credential))

    def _connect(self, messageType: int, userId: bytes, data: bytes) -> FakeClient:
        client = self._server.connect()
        client.send(messageType, userId, data)
        self._listen(client)
        return client

    def run(self, script: Script) -> None:
        """Do all that it says."""
        for step in script.steps():
            who = script.number(len(USERS))
            client = self._clients[who]
            if step <= 6:
                self._send(client, script)
            elif step == 7:
                client.sendBytes(script.string())
            elif step == 8:
                self._clients[who] = client = self._server.connect()
                self._send(client, script)
            elif step == 9:
                self._clients[who] = client = self._server.connect()
                client.sendBytes(script.string())
            elif step in (10, 11):
                session = self._words[SESSION_ID] if step == 11 else bytes(16)
                data = encodeU32(script.number(4)) + session + self._credential
                self._clients[who] = self._connect(MessageType.ACK, USERS[who], data)
            elif step == 12 and client.transport.connected:
                client.drop()
            elif step == 13:
                self._server.advance(WAITS[script.number(len(WAITS))])
            elif step == 14:
                client.pauseReading()
            elif step == 15:
                client.resumeReading()
            for listening in self._clients:
                self._listen(listening)

    def end(self) -> None:
        """Let everybody go."""
        self._server.cut()
        self._server.advance(LONG_ENOUGH)

    def _send(self, client: FakeClient, script: Script) -> None:
        messageType = script.number(len(MessageType) + 1)
        userId = WHOM[script.number(len(WHOM))]
        client.send(messageType, userId, fill(script.string(), self._words))

    def _listen(self, client: FakeClient) -> None:
        for message in client.received():
            if client not in self._isAnswered:
                isAnswer = message.type in (MessageType.ERROR, MessageType.AUTH_RESPONSE, MessageType.HEARTBEAT)
                expect(isAnswer, f"{message} before the registration was answered")
                if message.type == MessageType.HEARTBEAT:
                    self._isAnswered.add(client)
                    self._words[SESSION_ID] = message.data
            if message.type == MessageType.ERROR:
                expect(decodeError(message.data)[0] != ErrorCode.INTERNAL, f"a fault in the server: {message}")
            elif message.type in (MessageType.CALL_REQUEST, MessageType.CALL_ACCEPT):
                self._words[CALL_ID] = message.data[:16]
            elif message.type == MessageType.AUTH_RESPONSE and message.data[1:5] == b"wct_":
                self._words[TOKEN] = message.data[1:]


def server(data: bytes) -> None:
    """A server without a store stands any dialogue, and nothing of it is left when all have gone."""
    _serve(data, MemoryServer(broadcast=True))


def store(data: bytes) -> None:
    """So does one with a store."""
    with _folder() as folder:
        _serve(data, MemoryServer(database=folder / "store", broadcast=True))


def accounts(data: bytes) -> None:
    """So does one with accounts: log-in, sign-up, tokens and account commands."""
    with _folder() as folder:
        memory = MemoryServer(database=folder / "store", broadcast=True)
        assert memory.store is not None
        clock = memory.clock

        def hashCheaply(f: Callable[..., object], *arguments: Any) -> Deferred[Any]:
            """Do what hashing does, in its own time and without its costs."""
            *known, password = arguments
            hashed = _cheapHash(password)
            done: Deferred[Any] = Deferred()
            clock.callLater(0, done.callback, hashed if f is hashPassword else known == [hashed])
            return done

        authenticator = Accounts(memory.store, clock, hashCheaply, signup=True, wallClock=clock.seconds)
        memory.factory.setStore(memory.store, authenticator)
        for user in USERS:
            memory.store.addAccount(user, _cheapHash(PASSWORD), "fuzz")
        memory.pump()
        _serve(data, memory, PASSWORD)


def _cheapHash(password: bytes) -> str:
    return sha256(password).hexdigest()


def _serve(data: bytes, memory: MemoryServer, credential: bytes = b"") -> None:
    with watchedLog():
        empty = tables(memory.factory)
        timers = len(memory.clock.getDelayedCalls())
        try:
            dialogue = Dialogue(memory, credential)
            dialogue.run(Script(data))
            dialogue.end()
            left = {what: (n, empty.get(what, 0)) for what, n in tables(memory.factory).items()}
            grown = {what: n for what, n in left.items() if n[0] > n[1] and what not in _FOR_LONGER}
            expect(not grown, f"left behind: {grown}")
            delayed = memory.clock.getDelayedCalls()
            expect(len(delayed) <= timers + 1, f"timers left behind: {[str(call) for call in delayed]}")
        finally:
            memory.close()


_FOR_LONGER = {"FileTransfers._ended", "WeCompanyFactory._blocks"}
"""Ended transfers, which go when others end, and whom users block, which stays in the store."""


@contextmanager
def _folder() -> Iterator[Path]:
    """Make a folder with an empty store, which takes less time to copy than to make."""
    with tempfile.TemporaryDirectory(prefix="wecompany-fuzz-") as name:
        shutil.copyfile(_emptyStore(), Path(name, "store"))
        yield Path(name)


@cache
def _emptyStore() -> Path:
    folder = tempfile.TemporaryDirectory(prefix="wecompany-fuzz-")
    _emptyStores.append(folder)
    path = Path(folder.name, "store")
    Database(path, float).close()
    return path


_emptyStores: list[tempfile.TemporaryDirectory[str]] = []
"""What keeps the folder until the process ends."""


# -- The client library --------------------------------------------------------------------------------------------


class Anything(ClientListener):
    """Keeps the calls and files that were offered."""

    def __init__(self) -> None:
        self.calls: list[Call] = []
        self.files: list[IncomingFile] = []

    def callReceived(self, call: Call) -> None:
        """See L{ClientListener.callReceived}."""
        self.calls.append(call)

    def fileOffered(self, file: IncomingFile) -> None:
        """See L{ClientListener.fileOffered}."""
        self.files.append(file)


class ServerEnd(Protocol):
    """The server's end of a connection: it remembers what a client wants to hear again."""

    def __init__(self, words: dict[int, bytes]) -> None:
        self._words = words
        self._unparsed = b""

    def dataReceived(self, data: bytes) -> None:
        """See that the client keeps to the frames, and note the heartbeat that it waits for."""
        data = self._unparsed + data
        end = 0
        for messageType, _, body, end in decodeFrames(data):
            if messageType == MessageType.HEARTBEAT and len(body) == 8:
                self._words.setdefault(REQUEST, body)
            elif messageType == MessageType.FILE:
                self._words[TRANSFER_ID] = body[1:17]
        self._unparsed = data[end:]

    def connectionLost(self, reason: Failure = connectionDone) -> None:
        """The next connection has requests of its own."""
        self._words.pop(REQUEST, None)


@implementer(IStreamClientEndpoint)
class ScriptedServer:
    """
    Where the client connects to.

    @ivar end: our end of the newest connection.
    """

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.words = _FIXED | {CALL_ID: bytes(range(16)), SESSION_ID: b"s" * 16, TOKEN: makeToken()}
        self.end: MemoryTransport | None = None

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        """See L{IStreamClientEndpoint.connect}."""
        protocol = protocolFactory.buildProtocol(MemoryTransport(self._clock).getPeer())
        assert protocol is not None
        theirs, self.end = MemoryTransport(self._clock), MemoryTransport(self._clock)
        theirs.other, self.end.other = self.end, theirs
        theirs.protocol, self.end.protocol = protocol, ServerEnd(self.words)
        protocol.makeConnection(theirs)
        connected: Deferred[IProtocol] = Deferred()
        self._clock.callLater(0, connected.callback, protocol)
        return connected


class Conversation:
    """A client, and whatever a script lets it do and its server say."""

    def __init__(self, folder: Path) -> None:
        self._clock = Clock()
        self._folder = folder
        self._server = ScriptedServer(self._clock)
        self._listener = Anything()
        self._asked: Counter[bool] = Counter()
        self.client = Client(
            self._clock, self._server, "alice", self._listener, credential=PASSWORD, runInThread=self._runLater
        )

    def _runLater(self, f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
        done: Deferred[Any] = Deferred()
        self._clock.callLater(0, lambda: maybeDeferred(f, *arguments).chainDeferred(done))
        return done

    def _wait(self, seconds: float = 0.0) -> None:
        end = self._clock.seconds() + seconds
        while True:
            due = min((call.getTime() for call in self._clock.getDelayedCalls()), default=end + 1)
            if due > end:
                break
            self._clock.advance(max(0.0, due - self._clock.seconds()))
        self._clock.advance(max(0.0, end - self._clock.seconds()))

    def _ask(self, asked: Deferred[Any]) -> None:
        """Whatever is asked for is answered, or fails as the library says that it may."""
        self._asked[False] += 1

        def answered(result: object) -> None:
            self._asked[True] += 1
            if isinstance(result, Failure):
                result.trap(ClientError)

        asked.addBoth(answered)
        asked.addErrback(self._wrong.append)

    def run(self, script: Script) -> None:
        """Do all that it says, and stop the client."""
        self._wrong: list[Failure] = []
        how = script.number(4)
        self._ask(self.client.start() if how else self.client.signUp())
        self._wait()
        if how > 1:
            self._say(MessageType.HEARTBEAT, b"alice", b"s" * 16)
        if how > 2:
            self._say(MessageType.ACK, b"", bytes(4))
        for step in script.steps():
            if step <= 6:
                messageType = script.number(len(MessageType) + 1)
                userId = WHOM[script.number(len(WHOM))]
                self._say(messageType, userId, fill(script.string(), self._server.words))
            elif step == 7:
                self._write(script.string())
            elif step == 8:
                self._wait(WAITS[script.number(len(WAITS))])
            elif step == 9 and self._server.end is not None:
                self._server.end.lose(ConnectionLost())
            elif step == 10:
                self._say(MessageType.HEARTBEAT, b"", self._server.words.pop(REQUEST, b""))
            else:
                self._act(script)
            self._wait()
        self._ask(self.client.stop())
        self._wait(LONG_ENOUGH)
        for failure in self._wrong:
            raise Finding(f"not as the library says: {failure.getTraceback()}")
        open_ = self._asked[False] - self._asked[True]
        expect(not open_, f"{open_} of {self._asked[False]} were never answered")
        delayed = self._clock.getDelayedCalls()
        expect(not delayed, f"timers left behind: {[str(call) for call in delayed]}")

    def _say(self, messageType: int, userId: bytes, data: bytes) -> None:
        self._write(encodeFrame(messageType, userId, data))

    def _write(self, data: bytes) -> None:
        if self._server.end is not None:
            self._server.end.write(data)
        self._wait()

    def _act(self, script: Script) -> None:
        client, listener = self.client, self._listener
        act = script.number(16)
        if act <= 2:
            self._ask(client.sendText("bob", "hello"))
        elif act == 3:
            self._ask(client.users())
        elif act == 4:
            self._ask(client.watch())
        elif act == 5:
            self._ask(client.call("bob", offer=b"offer").addCallback(listener.calls.append))
        elif act == 6 and listener.calls:
            self._ask(listener.calls[-1].accept(b"answer"))
        elif act == 7 and listener.calls:
            self._ask(listener.calls[-1].end())
        elif act == 8 and listener.files:
            self._ask(listener.files.pop().accept(self._folder))
        elif act == 9 and listener.files:
            listener.files.pop().decline()
        elif act == 10:
            path = self._folder / "file"
            path.write_bytes(bytes(100))
            self._ask(client.sendFile("bob", path))
        elif act == 11:
            self._ask(client.logOut())
        elif act == 12:
            self._ask(client.changePassword("old", "something new"))
        elif act == 13:
            self._ask(client.block("bob"))
        elif act == 14:
            self._ask(client.blocked())
        elif act == 15:
            self._ask(client.allUsers())


def client(data: bytes) -> None:
    """The client library stands any server, and answers whoever asked it for something."""
    with tempfile.TemporaryDirectory(prefix="wecompany-fuzz-") as folder, watchedLog():
        Conversation(Path(folder)).run(Script(data))


TARGETS: dict[str, Callable[[bytes], None]] = {
    target.__name__: target for target in (frames, fields, media, description, limits, server, store, accounts, client)
}
"""All targets, by their names."""
