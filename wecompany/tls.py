"""
The server's certificate, and what a client's certificate says.

The files are read again when they change or when it is asked for, so a renewed certificate needs no restart: each new
connection is given the newest pair that could be used, and those that there are go on with theirs.

pyOpenSSL is an extra (C{wecompany[tls]}), so everything of it is imported where it is needed.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from weakref import WeakSet

from attrs import frozen
from twisted.internet.defer import Deferred
from twisted.internet.interfaces import IOpenSSLServerConnectionCreator, IReactorTime
from twisted.internet.task import LoopingCall
from twisted.logger import Logger
from zope.interface import implementer

if TYPE_CHECKING:
    from OpenSSL.SSL import Connection, Context
    from twisted.protocols.tls import TLSMemoryBIOProtocol

CHECK_EVERY = 10.0
"""Seconds between two looks at whether the files have changed."""

EXPIRES_SOON = 14
"""Days before a certificate expires from which on the operator is warned."""

WARN_EVERY = 86_400.0
"""Seconds between two warnings about that."""

MAX_FILE = 1_048_576
"""Bytes that are read of each file: a chain has a few thousand."""

_log = Logger()
_T = TypeVar("_T")
_Stamp = tuple[tuple[int, int, int] | None, ...]


class TLSProblem(Exception):
    """A certificate or key cannot be used; the text is one line that says which and why."""


@frozen
class _Pair:
    """
    What one reading of the files gave.

    @ivar expiresAt: when the first certificate of the chain ends to be valid, in seconds since the epoch.
    """

    context: Context
    expiresAt: float


@frozen
class _Files:
    certificate: Path
    key: Path
    clients: Path | None
    isRequired: bool

    def stamp(self) -> _Stamp:
        """Return what is different after any of the files has been written or replaced."""
        return tuple(_stampOf(path) for path in (self.certificate, self.key, self.clients) if path is not None)

    def load(self) -> _Pair:
        """Read all of them, or raise L{TLSProblem}."""
        try:
            from OpenSSL.crypto import FILETYPE_PEM, X509, load_privatekey
            from twisted.internet.ssl import CertificateOptions, TLSVersion
        except ImportError as e:
            raise TLSProblem(f'{e}: pip install "wecompany[tls]"') from None
        from cryptography.x509 import load_pem_x509_certificates

        chain = _use(self.certificate, load_pem_x509_certificates)
        # A passphrase is given so that nobody is asked for one on a terminal.
        key = _use(self.key, lambda pem: load_privatekey(FILETYPE_PEM, pem, b""))
        verifying: dict[str, Any] = {}
        if self.clients is not None:
            trusted = [X509.from_cryptography(one) for one in _use(self.clients, load_pem_x509_certificates)]
            verifying = {"verify": True, "caCerts": trusted, "requireCertificate": self.isRequired}
        try:
            first, *others = (X509.from_cryptography(one) for one in chain)
            context = CertificateOptions(
                privateKey=key,
                certificate=first,
                extraCertChain=others,
                raiseMinimumTo=TLSVersion.TLSv1_2,
                **verifying,
            ).getContext()
        except Exception as e:  # noqa: BLE001 - OpenSSL's errors have no common class
            raise TLSProblem(f"{self.certificate} and {self.key}: {_reason(e)}") from None
        if self.clients is not None:
            _verifying.add(context)
        return _Pair(context, min(one.not_valid_after_utc.timestamp() for one in chain))


def _stampOf(path: Path) -> tuple[int, int, int] | None:
    try:
        stat = path.stat()
    except OSError:
        return None
    return stat.st_mtime_ns, stat.st_size, stat.st_ino


def _use(path: Path, parse: Callable[[bytes], _T]) -> _T:
    try:
        with path.open("rb") as file:
            return parse(file.read(MAX_FILE))
    except Exception as e:  # noqa: BLE001 - the parsers' errors have no common class
        raise TLSProblem(f"{path}: {_reason(e)}") from None


def _reason(e: Exception) -> str:
    if isinstance(e, OSError) and e.strerror:
        return e.strerror
    first = e.args[0] if e.args else ""
    text = first[0][-1] if isinstance(first, list) and first else str(e)
    return " ".join(text.split()) or type(e).__name__


_verifying: WeakSet[Context] = WeakSet()
"""The contexts that verify a client's certificate."""


@implementer(IOpenSSLServerConnectionCreator)
class ServerTLS:
    """
    The TLS of a listening port: to be given to C{SSL4ServerEndpoint}, C{listenSSL} or C{TLSMemoryBIOFactory}.

    It speaks TLS 1.2 and later, with Twisted's ciphers in the server's order.
    """

    def __init__(
        self,
        clock: IReactorTime,
        runInThread: Callable[[Callable[[], Any]], Deferred[Any]],
        certificate: Path,
        key: Path | None = None,
        clients: Path | None = None,
        *,
        isRequired: bool = False,
        now: Callable[[], float] = time.time,
    ) -> None:
        """
        Read the files, here and at once.

        @param runInThread: calls what it is given in another thread, for all later reading; fires with its result.
        @param certificate: in PEM, and behind it the chain that leads to a CA; the key may be in the same file.
        @param key: in PEM, without a passphrase; the certificate's file if not given.
        @param clients: CAs in PEM: clients are asked for a certificate, and one that none of these has signed ends the
            handshake.
        @param isRequired: whether a client without any certificate is turned away, too.
        @param now: seconds since the epoch, to tell whether a certificate has expired.
        @raise TLSProblem: if they cannot be used.
        """
        self._files = _Files(
            certificate.absolute(),
            (key or certificate).absolute(),
            None if clients is None else clients.absolute(),
            isRequired,
        )
        self._clock = clock
        self._runInThread = runInThread
        self._now = now
        self._warnAt = 0.0
        self._stamp = self._files.stamp()
        self._pair = self._files.load()
        self._checking = LoopingCall(self._check)
        self._checking.clock = clock

    def start(self) -> None:
        """Look after the files from now on, and say if the certificate expires soon."""
        self._warn()
        checked = self._checking.start(CHECK_EVERY, now=False)
        checked.addErrback(lambda failure: _log.failure("The certificate is not looked after any more", failure))

    def stop(self) -> None:
        """Look no more."""
        if self._checking.running:
            self._checking.stop()

    def reload(self) -> Deferred[None]:
        """
        Read the files again; if they cannot be used that is logged, and what there is stays in use.

        @return: fires when new connections get what was read.
        """
        return Deferred.fromCoroutine(self._reload())

    def serverConnectionForTLS(self, protocol: TLSMemoryBIOProtocol) -> Connection:
        """See L{IOpenSSLServerConnectionCreator}."""
        from OpenSSL.SSL import Connection

        return Connection(self._pair.context, None)

    def _check(self) -> Deferred[None]:
        return Deferred.fromCoroutine(self._reloadIfChanged())

    async def _reloadIfChanged(self) -> None:
        if await self._runInThread(self._files.stamp) != self._stamp:
            await self._reload()
        if self._clock.seconds() >= self._warnAt:
            self._warn()

    async def _reload(self) -> None:
        def read() -> tuple[_Stamp, _Pair | TLSProblem]:
            # The stamp first: what is written while the files are read is then found at the next look.
            stamp = self._files.stamp()
            try:
                return stamp, self._files.load()
            except TLSProblem as e:
                return stamp, e

        self._stamp, pair = await self._runInThread(read)
        if isinstance(pair, TLSProblem):
            _log.warn("The new certificate cannot be used, the old one stays: {problem}", problem=str(pair))
            return
        self._pair = pair
        _log.info("The certificate has been read again: {path}", path=str(self._files.certificate))
        self._warn()

    def _warn(self) -> None:
        self._warnAt = self._clock.seconds() + WARN_EVERY
        days = (self._pair.expiresAt - self._now()) / 86_400
        if days <= 0:
            _log.warn("The certificate {path} has expired: clients refuse it.", path=str(self._files.certificate))
        elif days <= EXPIRES_SOON:
            _log.warn(
                "The certificate {path} expires in {days:.1f} days.", path=str(self._files.certificate), days=days
            )


def certificateNames(transport: object) -> frozenset[bytes]:
    """
    Return the user IDs that the client's certificate speaks for: the common names (CN) of its subject, and the e-mail
    addresses among its alternative names (SAN), each in UTF-8 and just as it stands there.

    That is nothing where there is no TLS, where the client has shown no certificate, where the connection is not one
    of a L{ServerTLS} with C{clients} (which alone verifies them), and where the names cannot be read.

    @param transport: what data has come from already: the handshake must be over.
    """
    try:
        from OpenSSL.SSL import Connection
    except ImportError:  # so there is no TLS at all
        return frozenset()
    connection = getattr(transport, "getHandle", lambda: None)()
    if not isinstance(connection, Connection) or connection.get_context() not in _verifying:
        return frozenset()
    from cryptography.x509 import ExtensionNotFound, RFC822Name, SubjectAlternativeName
    from cryptography.x509.oid import NameOID

    certificate = connection.get_peer_certificate()
    if certificate is None:
        return frozenset()
    try:
        x509 = certificate.to_cryptography()
        names = [name.value for name in x509.subject.get_attributes_for_oid(NameOID.COMMON_NAME)]
        with suppress(ExtensionNotFound):
            alternatives = x509.extensions.get_extension_for_class(SubjectAlternativeName).value
            names += alternatives.get_values_for_type(RFC822Name)
    except ValueError as e:
        _log.info("A client's certificate cannot be read: {error}", error=str(e))
        return frozenset()
    return frozenset(name.encode() for name in names if isinstance(name, str))
