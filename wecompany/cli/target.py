"""
A server that is to be loaded: what watches its connections, how one speaks to it, and what to say when it does not go.

A L{Target} says how a server is spoken to; benchmarks/peers.py has some for other servers.
"""

from __future__ import annotations

import errno
import itertools
import secrets
import select
import selectors
import socket
import ssl
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from typing import NoReturn, Protocol

from wecompany.wire import (
    ID_SIZE,
    ErrorCode,
    MediaKind,
    MessageType,
    RejectCode,
    WireError,
    decodeError,
    decodeFrames,
    encodeFrame,
    splitId,
    splitReason,
)

RAISED = tuple(
    f"--limit={limit}"
    for limit in (
        "text=10M",
        "media=10G",
        "file=10G",
        "address-connections=1M",
        "connection-rate=1M",
        "unregistered=1M",
        "calls=1M",
        "broadcast=1M",
    )
)
"""The limits that one machine which stands for many people exceeds.  They are raised rather than turned off."""

ANSWER_WITHIN = 10.0
"""Seconds that a server has to answer a registration, and to deliver what is under way when a measurement ends."""

AT_ONCE = 64
"""Connections that are registered at once, before the measurement, and calls between two looks at the progress."""

SLICE = 0.2
"""Seconds of load between two looks at the progress."""

CHUNK = 65_536
"""Bytes that are read at once."""

WOULD_BLOCK = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)
"""What a connection raises when it can only go on later."""

HINT = "Start the server with higher limits for that:\ntwistd -n wecompany " + " ".join(RAISED)
"""What to do about a limit of the server."""

_RUN = secrets.token_hex(4).encode()
_serial = itertools.count()


class Trouble(Exception):
    """What was asked for cannot be measured; the text says why, for a person."""


class Unreachable(Trouble):
    """There is no server, or it cannot be trusted, or it lets nobody in."""


# -- Connections ---------------------------------------------------------------------------------------------------


class Watched(Protocol):
    """Something that a loop watches."""

    def fileno(self) -> int:
        """Return its file number."""

    def readable(self) -> None:
        """Something has come."""

    def writable(self) -> None:
        """There is room for more."""


class Loop(ABC):
    """Watches connections, and calls them when they can go on."""

    @abstractmethod
    def watch(self, watched: Watched, toRead: bool = True, toWrite: bool = False) -> None:
        """Watch something from now on, or in another way than before."""

    @abstractmethod
    def forget(self, fileNumber: int) -> None:
        """Watch it no more, if it is watched."""

    @abstractmethod
    def turn(self, seconds: float) -> None:
        """Take what has come, or wait for it so long at most."""

    @abstractmethod
    def close(self) -> None:
        """It is not needed any more."""


class SelectorLoop(Loop):
    """The loop of all systems."""

    def __init__(self) -> None:
        self._selector = selectors.DefaultSelector()

    def watch(self, watched: Watched, toRead: bool = True, toWrite: bool = False) -> None:
        """See L{Loop.watch}."""
        events = selectors.EVENT_READ * toRead | selectors.EVENT_WRITE * toWrite
        known = watched.fileno() in self._selector.get_map()
        (self._selector.modify if known else self._selector.register)(watched.fileno(), events, watched)

    def forget(self, fileNumber: int) -> None:
        """See L{Loop.forget}."""
        with suppress(KeyError, ValueError):  # it may be closed
            self._selector.unregister(fileNumber)

    def turn(self, seconds: float) -> None:
        """See L{Loop.turn}."""
        if not self._selector.get_map():  # Windows cannot wait for nothing
            time.sleep(seconds)
            return
        for key, events in self._selector.select(seconds):
            if events & selectors.EVENT_READ:
                key.data.readable()
            if events & selectors.EVENT_WRITE:
                key.data.writable()

    def close(self) -> None:
        """See L{Loop.close}."""
        self._selector.close()


class EpollLoop(Loop):
    """The loop of Linux: an event costs half of what it does in L{SelectorLoop}."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._watched: dict[int, Watched] = {}

    def watch(self, watched: Watched, toRead: bool = True, toWrite: bool = False) -> None:
        """See L{Loop.watch}."""
        fileNumber = watched.fileno()
        change = self._epoll.modify if fileNumber in self._watched else self._epoll.register
        change(fileNumber, select.EPOLLIN * toRead | select.EPOLLOUT * toWrite)
        self._watched[fileNumber] = watched

    def forget(self, fileNumber: int) -> None:
        """See L{Loop.forget}."""
        if self._watched.pop(fileNumber, None) is not None:
            self._epoll.unregister(fileNumber)

    def turn(self, seconds: float) -> None:
        """See L{Loop.turn}."""
        watched = self._watched
        for fileNumber, events in self._epoll.poll(seconds):
            if events & ~select.EPOLLOUT:
                watched[fileNumber].readable()
            if events & select.EPOLLOUT:
                watched[fileNumber].writable()

    def close(self) -> None:
        """See L{Loop.close}."""
        self._epoll.close()


makeLoop: Callable[[], Loop] = EpollLoop if hasattr(select, "epoll") else SelectorLoop
"""Makes the fastest loop that there is here."""


class Connection:
    """
    A registered user's connection.

    @ivar received: takes the bytes that come.
    """

    __slots__ = ("_loop", "_pending", "_recv", "_send", "_socket", "_unsent", "fileno", "received", "userId")

    def __init__(self, loop: Loop, connected: socket.socket, userId: bytes) -> None:
        self._loop = loop
        self._socket = connected
        self._recv = connected.recv
        self._send = connected.send
        self._pending = connected.pending if isinstance(connected, ssl.SSLSocket) else None
        self._unsent = bytearray()
        self.userId = userId
        self.received: Callable[[bytes], None] = self._unexpected
        self.fileno = connected.fileno
        connected.setblocking(False)
        loop.watch(self)

    def write(self, data: bytes | bytearray | memoryview) -> None:
        """Send at once what goes, and the rest when it does."""
        if self._unsent:
            self._unsent += data
            return
        try:
            sent = self._send(data)
        except WOULD_BLOCK:
            sent = 0
        except OSError as e:
            self._lost(e)
        if sent < len(data):
            self._unsent += data[sent:]
            self._loop.watch(self, toWrite=True)

    def writable(self) -> None:
        """There is room for more."""
        unsent, self._unsent = self._unsent, bytearray()
        self._loop.watch(self)
        self.write(unsent)

    def readable(self) -> None:
        """Something has come."""
        try:
            data = self._recv(CHUNK)
            # What TLS has decrypted already no selector tells of.
            while self._pending is not None and self._pending():
                data += self._recv(CHUNK)
        except WOULD_BLOCK:
            return
        except OSError as e:
            self._lost(e)
        if not data:
            self._lost(None)
        self.received(data)

    def discard(self) -> None:
        """Throw away what has come so far."""
        with suppress(*WOULD_BLOCK):
            while self._recv(CHUNK):
                pass

    def close(self) -> None:
        """Close it."""
        self._loop.forget(self.fileno())
        self._socket.close()

    def _lost(self, e: OSError | None) -> NoReturn:
        why = "" if e is None else f": {e.strerror or e}"
        raise Trouble(f"the server closed a connection{why}; its log may say why")

    def _unexpected(self, data: bytes) -> None:
        raise Trouble(explained(data))


def explained(stream: bytes) -> str:
    """
    Return what to say, and what to do, about something that came in place of what was expected.

    @param stream: what came, from the beginning of a frame on.
    """
    try:
        for messageType, _, data, _ in decodeFrames(stream):
            if messageType == MessageType.ERROR:
                code, about, text = decodeError(data)
                return _advised(code, about, text)
            if messageType == MessageType.CALL_REJECT:
                code, why = splitReason(splitId(data)[1])
                hint = f"\n{HINT}" if code == RejectCode.OVERLOADED else ""
                return f"the server rejected a call: {why.decode(errors='replace') or f'code {code}'}{hint}"
    except WireError:
        pass
    return f"what arrived is not what was sent, but {stream[:100]!r}"


def _advised(code: int, about: int, text: str) -> str:
    said = f"the server says: {text}"
    if code == ErrorCode.OVERLOADED:
        return f"{said}\n{HINT}"
    if code == ErrorCode.FORBIDDEN and about == MessageType.TEXT:
        return f"{said}\nThis shape needs a server that was started with --broadcast, and a higher limit:\n" + (
            "twistd -n wecompany --broadcast --limit=broadcast=1M"
        )
    if code == ErrorCode.BAD_CREDENTIAL:
        return f"{said}\nThis server has accounts: name some with --users FILE."
    return said


@dataclass
class Target:
    """
    A server that is to be loaded, and how one speaks to it.

    @ivar pid: its process, if that is known and on this machine.
    @ivar tls: what makes TLS connections; C{None} for plain ones.
    @ivar users: user IDs and their passwords or tokens, where the server has accounts.
    """

    host: str
    port: int
    pid: int | None = None
    tls: ssl.SSLContext | None = field(default=None, repr=False)
    users: Sequence[tuple[bytes, bytes]] = field(default=(), repr=False)

    atOnce = AT_ONCE  # connections that are registered at once, before the measurement

    def __str__(self) -> str:
        """Return where it is."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{host}:{self.port}"

    def connect(self) -> socket.socket:
        """
        Return a new connection, which is nobody's yet.

        @raise OSError: if there is none.
        """
        connection = socket.create_connection((self.host, self.port), ANSWER_WITHIN)
        try:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            return connection if self.tls is None else self.tls.wrap_socket(connection, server_hostname=self.host)
        except BaseException:
            connection.close()
            raise

    def userId(self, index: int) -> bytes:
        """Return a user ID that nobody has, always of the same length."""
        return b"bench-%b-%06d" % (_RUN, index)

    def newUsers(self, n: int) -> list[tuple[bytes, bytes]]:
        """
        Return user IDs, and their passwords or tokens.

        @raise Trouble: if there are not so many.
        """
        if not self.users:
            return [(self.userId(next(_serial)), b"") for _ in range(n)]
        if n > len(self.users):
            raise Trouble(f"this takes {n} users, and --users names {len(self.users)}")
        return list(self.users[:n])

    def begin(self, connection: socket.socket, userId: bytes, credential: bytes = b"") -> None:
        """Send what registers a user."""
        connection.sendall(encodeFrame(MessageType.HEARTBEAT, userId, credential))

    def finish(self, connection: socket.socket, userId: bytes) -> None:
        """
        Wait for the answer to L{begin}.

        @raise Trouble: if the server does not want that.
        """
        received = b""
        while more := connection.recv(CHUNK):
            received += more
            if self.isRegistered(received, userId):
                return
        raise self.closed()

    def closed(self) -> Unreachable:
        """Return what to raise when the server closes a connection instead of registering it."""
        return Unreachable(f"{self} closes a connection that was to be registered; does it speak TLS? Then say --tls.")

    def isRegistered(self, received: bytes, userId: bytes) -> bool:
        """
        Return whether that is the answer to a registration; false if it has not all come yet.

        @raise Trouble: if it is something else.
        """
        try:
            for messageType, about, _, _ in decodeFrames(received):
                if messageType != MessageType.HEARTBEAT or about != userId:
                    raise Trouble(explained(received))
                return True
        except WireError:
            raise Unreachable(f"what answers at {self} is no WeCompany server, or it speaks TLS (--tls)") from None
        return False

    def register(self, userId: bytes, credential: bytes = b"") -> socket.socket:
        """
        Return a connection that is C{userId}'s.

        @raise Trouble: if the server does not want that.
        """
        with ExitStack() as undo:
            connection = undo.enter_context(self.connect())
            self.begin(connection, userId, credential)
            self.finish(connection, userId)
            undo.pop_all()
        return connection

    def texts(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Return a text as its sender sends it, and as its receiver gets it."""
        return encodeFrame(MessageType.TEXT, receiver, data), encodeFrame(MessageType.TEXT, sender, data)

    def media(self, sender: bytes, receiver: bytes, data: bytes) -> tuple[bytes, bytes]:
        """Return a piece of audio as its sender sends it, and as its receiver gets it."""
        data = bytes((MediaKind.AUDIO,)) + data[1:]
        return encodeFrame(MessageType.MEDIA_DATA, receiver, data), encodeFrame(MessageType.MEDIA_DATA, sender, data)

    def call(self, loop: Loop, caller: Connection, callee: Connection) -> None:
        """
        Let one call the other, who accepts.

        @raise Trouble: if the server does not want that.
        """
        heard = {caller: bytearray(), callee: bytearray()}
        for party, stream in heard.items():
            party.received = stream.extend

        def hear(party: Connection, messageType: MessageType) -> bytes:
            deadline = time.monotonic() + ANSWER_WITHIN
            while time.monotonic() < deadline:
                stream = bytes(heard[party])
                for kind, _, data, end in decodeFrames(stream):
                    if kind != messageType:
                        raise Trouble(explained(stream))
                    del heard[party][:end]
                    return data
                loop.turn(SLICE)
            raise Trouble(f"a call was not connected within {ANSWER_WITHIN:g} s")

        caller.write(encodeFrame(MessageType.CALL_REQUEST, callee.userId, b"\0"))
        callId = hear(caller, MessageType.CALL_REQUEST)[:ID_SIZE]
        hear(callee, MessageType.CALL_REQUEST)
        callee.write(encodeFrame(MessageType.CALL_ACCEPT, caller.userId, callId))
        for party in heard:
            hear(party, MessageType.CALL_ACCEPT)

    def open(self, loop: Loop, n: int, told: Callable[[str], None]) -> Iterator[Connection]:
        """
        Yield so many registered connections, of different users.

        @param told: called with how far that is.
        @raise Trouble: if the server does not want that.
        """
        users = self.newUsers(n)
        for first in range(0, n, self.atOnce):
            told(f"{first:,} of {n:,} connections")
            some = users[first : first + self.atOnce]
            with self.reaching(), ExitStack() as undo:
                sockets: list[socket.socket] = []
                for userId, credential in some:
                    sockets.append(undo.enter_context(self.connect()))
                    self.begin(sockets[-1], userId, credential)
                for connected, (userId, _) in zip(sockets, some, strict=True):
                    self.finish(connected, userId)
                undo.pop_all()
            for connected, (userId, _) in zip(sockets, some, strict=True):
                yield Connection(loop, connected, userId)

    @contextmanager
    def reaching(self) -> Iterator[None]:
        """Turn what a connection fails with into a L{Trouble} that says what to do."""
        try:
            yield
        except ssl.SSLCertVerificationError as e:
            raise Unreachable(f"cannot trust {self}: {e.verify_message} (--ca FILE names whom to trust)") from None
        except ssl.SSLError as e:
            raise Unreachable(f"{self} speaks no TLS, or not ours: {e.strerror or e}") from None
        except ConnectionRefusedError:
            raise Unreachable(
                f"nobody listens at {self}\nIs the server running? twistd -n wecompany starts one here."
            ) from None
        except TimeoutError:
            raise Unreachable(f"{self} does not answer; does it speak TLS? Then say --tls.") from None
        except ConnectionResetError:
            raise Unreachable(
                f"{self} closes connections at once; does it speak TLS? Then say so with --tls."
            ) from None
        except OSError as e:
            if e.errno == errno.EADDRNOTAVAIL:
                raise Trouble("this machine has no free ports left: wait a minute, and take less") from None
            raise Unreachable(f"cannot reach {self}: {e.strerror or e}") from None
