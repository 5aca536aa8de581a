"""
The fast path on Linux: the sockets of the server in an epoll set of their own, which is one reader of whatever reactor
runs.

Twisted's reactors do more for each event than a relay needs, and C{write} puts data aside, asks for writability and
sends a turn later.  Here the ports and connections are still Twisted's own, TLS included; they are only given a
L{Poller} for a reactor, and C{write} sends at once when nothing waits.

::

    reactor --- one reader ---> Poller (epoll) ---> tcp.Port, tcp.Server, tcp.Server, ...
       ^                           |
       +---- callLater, threads ---+    everything that is not about readiness goes to the reactor
"""

from __future__ import annotations

import select
import socket
from typing import Any

from twisted.internet import tcp
from twisted.internet.endpoints import serverFromString
from twisted.internet.error import ConnectionDone, ConnectionLost
from twisted.internet.interfaces import (
    IHalfCloseableDescriptor,
    IListeningPort,
    IReactorFDSet,
    IReadDescriptor,
    IStreamServerEndpoint,
)
from twisted.internet.posixbase import PosixReactorBase
from twisted.logger import Logger
from twisted.python.failure import Failure
from zope.interface import implementer

MAX_EVENTS = 256
"""Events that are handled before the reactor gets its turn: so a busy server starves no timer and no other reader."""

MAX_ACCEPTS = 50
"""Connections that a port takes before others get their turn: to take one, or to turn it away, costs some 150 us."""

_READ = getattr(select, "EPOLLIN", 0)
_WRITE = getattr(select, "EPOLLOUT", 0)
_GONE = getattr(select, "EPOLLHUP", 0) | getattr(select, "EPOLLERR", 0)


def fastest(reactor: Any) -> Any:
    """
    Return what listens best in C{reactor}: a L{Poller} where the system has epoll and the reactor is a real one of
    Twisted's that watches file descriptors, else the reactor itself.
    """
    return Poller(reactor) if hasattr(select, "epoll") and isinstance(reactor, PosixReactorBase) else reactor


def serverEndpoint(reactor: Any, description: str) -> IStreamServerEndpoint:
    """
    Return the endpoint that an application listens with for a server of its own, be it C{"tcp:8888"},
    C{"ssl:8889:privateKey=key.pem:certKey=cert.pem"} or any other that Twisted knows.

    @param reactor: the application's; the connections are served as L{fastest} says.
    @raise ValueError: if C{description} is none.
    """
    endpoint: IStreamServerEndpoint = serverFromString(fastest(reactor), description)
    return endpoint


class _Server(tcp.Server):
    """
    Twisted's connection with a shorter way in, and one out that sends at once when nothing waits.

    @cvar pausesAtOnce: its producer is paused as soon as anything could not be sent.
    """

    pausesAtOnce = True

    def _isSendBufferFull(self) -> bool:
        return bool(self.dataBuffer or self._tempDataBuffer)

    def doRead(self) -> BaseException | None:  # type: ignore[override]
        """Take what has arrived."""
        try:
            data = self.socket.recv(self.bufferSize)
        except BlockingIOError:
            return None
        except OSError:
            return ConnectionLost()
        if not data:
            return ConnectionDone()
        self.protocol.dataReceived(data)
        return None

    def write(self, data: bytes) -> None:
        """Send C{data}, or as much of it as the kernel takes; the rest goes Twisted's way."""
        if self.dataBuffer or self._tempDataBuffer or self.TLS or not self.connected:
            super().write(data)
            return
        try:
            sent = self.socket.send(data)
        except OSError:
            # The kernel is full, or the connection is gone: what happens then is found out where Twisted expects it.
            sent = 0
        if sent < len(data):
            super().write(data[sent:])


class _Port(tcp.Port):
    transport = _Server

    def doRead(self) -> None:
        """Take new connections, but not so many that the others wait: Twisted's own takes ever more at once."""
        self.numberAccepts = min(self.numberAccepts, MAX_ACCEPTS)
        super().doRead()


@implementer(IReactorFDSet, IReadDescriptor)
class Poller:
    """
    A set of sockets to be served, for one reactor.

    It is to be given in a reactor's place to whatever listens.
    """

    _log = Logger()

    def __init__(self, reactor: Any) -> None:
        """
        @param reactor: any that has C{addReader}.
        """
        self._reactor = reactor
        self._epoll: select.epoll | None = None
        self._masks: dict[int, int] = {}
        self._added: set[int] = set()  # since the kernel was last asked what is ready
        self._selectables: dict[int, Any] = {}

    def __getattr__(self, name: str) -> Any:
        """Everything else is the reactor's."""
        return getattr(self._reactor, name)

    # -- listening

    def listenTCP(self, port: int, factory: Any, backlog: int = 50, interface: str = "") -> IListeningPort:
        """See L{IReactorTCP.listenTCP<twisted.internet.interfaces.IReactorTCP.listenTCP>}."""
        listening: IListeningPort = _Port(port, factory, backlog, interface, self)
        listening.startListening()
        return listening

    def listenSSL(
        self, port: int, factory: Any, contextFactory: Any, backlog: int = 50, interface: str = ""
    ) -> IListeningPort:
        """See L{IReactorSSL.listenSSL<twisted.internet.interfaces.IReactorSSL.listenSSL>}."""
        # These need pyOpenSSL, which is an extra.
        from twisted.protocols.tls import TLSMemoryBIOFactory, TLSMemoryBIOProtocol

        secured = TLSMemoryBIOFactory(contextFactory, False, factory)
        secured.protocol = TLSMemoryBIOProtocol  # without the buffer that joins small writes, which are joined already
        return self.listenTCP(port, secured, backlog, interface)

    def adoptStreamPort(self, fileDescriptor: int, addressFamily: int, factory: Any) -> IListeningPort:
        """See L{IReactorSocket.adoptStreamPort<twisted.internet.interfaces.IReactorSocket.adoptStreamPort>}."""
        if addressFamily not in (socket.AF_INET, socket.AF_INET6):
            adopted: IListeningPort = self._reactor.adoptStreamPort(fileDescriptor, addressFamily, factory)
            return adopted
        listening: IListeningPort = _Port._fromListeningDescriptor(self, fileDescriptor, addressFamily, factory)
        listening.startListening()
        return listening

    # -- IReactorFDSet

    def addReader(self, selectable: Any) -> None:
        """See L{IReactorFDSet.addReader}."""
        self._set(selectable, _READ, 0)

    def addWriter(self, selectable: Any) -> None:
        """See L{IReactorFDSet.addWriter}."""
        self._set(selectable, _WRITE, 0)

    def removeReader(self, selectable: Any) -> None:
        """See L{IReactorFDSet.removeReader}."""
        self._set(selectable, 0, _READ)

    def removeWriter(self, selectable: Any) -> None:
        """See L{IReactorFDSet.removeWriter}."""
        self._set(selectable, 0, _WRITE)

    def removeAll(self) -> list[Any]:
        """See L{IReactorFDSet.removeAll}."""
        removed = list(self._selectables.values())
        for selectable in removed:
            self._set(selectable, 0, _READ | _WRITE)
        return removed

    def getReaders(self) -> list[Any]:
        """See L{IReactorFDSet.getReaders}."""
        return [self._selectables[fd] for fd, mask in self._masks.items() if mask & _READ]

    def getWriters(self) -> list[Any]:
        """See L{IReactorFDSet.getWriters}."""
        return [self._selectables[fd] for fd, mask in self._masks.items() if mask & _WRITE]

    def _set(self, selectable: Any, add: int, remove: int) -> None:
        fd = selectable.fileno()
        if fd == -1:
            # Closed already, which has taken it out of the kernel's set.
            fd = next((fd for fd, known in self._selectables.items() if known is selectable), -1)
            if self._masks.pop(fd, None) is not None:
                del self._selectables[fd]
                self._rest()
            return
        before = self._masks.get(fd, 0)
        mask = (before | add) & ~remove
        if mask == before:
            return
        epoll = self._wake()
        if not mask:
            del self._masks[fd], self._selectables[fd]
            epoll.unregister(fd)
            self._rest()
            return
        self._masks[fd] = mask
        self._selectables[fd] = selectable
        if before:
            epoll.modify(fd, mask)
        else:
            self._added.add(fd)
            epoll.register(fd, mask)

    def _wake(self) -> select.epoll:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._reactor.addReader(self)
        return self._epoll

    def _rest(self) -> None:
        """With nothing to serve there is nothing to hold on to."""
        if not self._masks and self._epoll is not None:
            self._reactor.removeReader(self)
            self._epoll.close()
            self._epoll = None

    # -- IReadDescriptor: what the reactor sees

    def fileno(self) -> int:
        """Return the epoll set's own file descriptor."""
        return -1 if self._epoll is None else self._epoll.fileno()

    def logPrefix(self) -> str:
        """Return a name for log lines."""
        return "wecompany"

    def connectionLost(self, reason: Failure) -> None:
        """The reactor stops: it knows nothing of the sockets, so they are told here as it tells its own."""
        for selectable in self.removeAll():
            try:
                selectable.connectionLost(reason)
            except Exception:  # noqa: BLE001 - the others are told all the same
                self._log.failure("A connection could not be ended properly")

    def doRead(self) -> None:
        """Something is ready: serve it, and leave what comes meanwhile for the reactor's next turn."""
        assert self._epoll is not None
        selectables = self._selectables
        self._added.clear()
        for fd, event in self._epoll.poll(0, MAX_EVENTS):
            selectable = selectables.get(fd)
            if selectable is None:
                continue  # closed by one of those before it
            isRead = True
            try:
                if event == _READ:
                    # If that was said of another one with this number, there is just nothing to read.
                    why = selectable.doRead()
                elif fd in self._added:
                    continue
                else:
                    why, isRead = self._serve(fd, event, selectable)
            except Exception as e:  # noqa: BLE001 - one connection's fault is logged and ends that connection
                self._log.failure("A connection failed")
                why, isRead = e, False
            if why is not None:
                self._disconnect(selectable, why, isRead)

    def _serve(self, fd: int, event: int, selectable: Any) -> tuple[BaseException | None, bool]:
        """Do what there is to do; return what is wrong, and whether the reading half is meant."""
        if event & _READ:
            why = selectable.doRead()
            if why is not None:
                return why, True
        elif event & _GONE:
            return (ConnectionDone(), True) if self._masks[fd] & _READ else (ConnectionLost(), False)
        if event & _WRITE and selectable.fileno() != -1:
            return selectable.doWrite(), False
        return None, False

    def _disconnect(self, selectable: Any, why: BaseException, isRead: bool) -> None:
        self.removeReader(selectable)
        try:
            if isRead and isinstance(why, ConnectionDone) and IHalfCloseableDescriptor.providedBy(selectable):
                selectable.readConnectionLost(Failure(why))
            else:
                self.removeWriter(selectable)
                selectable.connectionLost(Failure(why))
        except Exception:  # noqa: BLE001 - raised out of doRead it would end the poller, and so every connection
            self._log.failure("A connection could not be ended properly")
