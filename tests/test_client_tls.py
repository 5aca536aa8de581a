"""A client trusts only whom it should: TLS servers with certificates of every kind, in memory and over sockets."""

from __future__ import annotations

import contextlib
import datetime
import ipaddress
import socket
import ssl
import sys
import threading
from pathlib import Path
from typing import Any, cast
from unittest import mock

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from twisted.internet.defer import Deferred, maybeDeferred, succeed
from twisted.internet.interfaces import IAddress, IProtocol, IProtocolFactory, IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions, PrivateCertificate, trustRootFromCertificates
from twisted.internet.task import Clock
from twisted.protocols.tls import TLSMemoryBIOFactory
from twisted.trial.unittest import SynchronousTestCase
from zope.interface import implementer

from tests import temporaryFolder
from tests.processes import Process
from tests.test_client import ClientTestCase, ScriptedServer
from wecompany.client import ClientError, NotConnected, TlsFailed, tlsEndpoint
from wecompany.client.tls import connectionCreator, explain
from wecompany.testing import _ADDRESS
from wecompany.wire import MessageType, decodeFrames, encodeFrame, encodeU32

NOW = datetime.datetime.now(datetime.timezone.utc)
DAY = datetime.timedelta(days=1)


class Authority:
    """Somebody who signs certificates."""

    def __init__(self, name: str) -> None:
        self.name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        self.key = ec.generate_private_key(ec.SECP256R1())
        self.certificate = self._sign(self.name, self.key, [], NOW - DAY, NOW + DAY, isAuthority=True)

    @property
    def pem(self) -> bytes:
        """Return its own certificate."""
        return self.certificate.public_bytes(serialization.Encoding.PEM)

    def issue(self, *hosts: str, begins: datetime.datetime = NOW - DAY, ends: datetime.datetime = NOW + DAY) -> bytes:
        """Return a certificate for hosts, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        names: list[x509.GeneralName] = []
        for host in hosts:
            try:
                names.append(x509.IPAddress(ipaddress.ip_address(host)))
            except ValueError:
                names.append(x509.DNSName(host))
        name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, hosts[0])])
        certificate = self._sign(name, key, names, begins, ends, isAuthority=False)
        return certificate.public_bytes(serialization.Encoding.PEM) + pemOf(key)

    def _sign(
        self,
        name: x509.Name,
        key: ec.EllipticCurvePrivateKey,
        names: list[x509.GeneralName],
        begins: datetime.datetime,
        ends: datetime.datetime,
        isAuthority: bool,
    ) -> x509.Certificate:
        builder = (
            x509.CertificateBuilder()
            .subject_name(name)
            .issuer_name(self.name)
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(begins)
            .not_valid_after(ends)
            .add_extension(x509.BasicConstraints(isAuthority, None), critical=True)
        )
        if names:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        return builder.sign(self.key, hashes.SHA256())


def pemOf(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a key as a file has it."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def selfSigned(host: str) -> bytes:
    """Return a certificate for a host that nobody but itself has signed, and its key."""
    authority = Authority(host)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)])
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(authority.key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - DAY)
        .not_valid_after(NOW + DAY)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(authority.key, hashes.SHA256())
    )
    return certificate.public_bytes(serialization.Encoding.PEM) + pemOf(authority.key)


class TlsServer(ScriptedServer):
    """A scripted server behind TLS, in memory."""

    def __init__(self, options: Any, creator: Any) -> None:
        super().__init__()
        self._wrapped = TLSMemoryBIOFactory(options, False, Factory.forProtocol(cast(Any, self._build)), self.clock)
        self._creator = creator

    def _build(self) -> IProtocol:
        return super().buildProtocol(_ADDRESS)

    def buildProtocol(self, addr: IAddress) -> Any:
        return self._wrapped.buildProtocol(addr)

    def endpoint(self) -> Any:
        return _TlsEndpoint(self, self._creator)


@implementer(IStreamClientEndpoint)
class _TlsEndpoint:
    def __init__(self, server: TlsServer, creator: Any) -> None:
        self._server = server
        self._creator = creator

    def connect(self, protocolFactory: IProtocolFactory) -> Deferred[IProtocol]:
        protocol = TLSMemoryBIOFactory(
            self._creator, True, cast(Any, protocolFactory), self._server.clock
        ).buildProtocol(_ADDRESS)
        assert protocol is not None
        self._server.link(protocol)
        return succeed(cast(Any, protocol).wrappedProtocol)


class TlsTestCase(ClientTestCase):
    """Has a folder for certificates, and an authority."""

    def setUp(self) -> None:
        self.folder = temporaryFolder(self)
        self.authority = Authority("our own authority")
        self.ca = self.file("ca.pem", self.authority.pem)

    def file(self, name: str, data: bytes) -> Path:
        """Return a file with that in it."""
        path = self.folder / name
        path.write_bytes(data)
        return path

    def serve(
        self, pem: bytes, host: str, ca: Path | None, own: tuple[Path, Path] | None = None, **options: Any
    ) -> Deferred[None]:
        """Return what starting a client at a server with that certificate gives."""
        certificate = PrivateCertificate.loadPEM(pem)
        serverOptions = CertificateOptions(
            privateKey=certificate.privateKey.original, certificate=certificate.original, **options
        )
        self.server = TlsServer(serverOptions, connectionCreator(host, ca, own))
        started = self.make("alice", runInThread=maybeDeferred).start()
        self.server.pump()
        return started


class TrustTests(TlsTestCase):
    def test_ownAuthority(self) -> None:
        """A certificate for the host that a named authority has signed is trusted, for a name and for an address."""
        others = Authority("somebody else")
        both = self.file("both.pem", b"# two\n" + others.pem + self.authority.pem)
        for host in ("chat.example.com", "127.0.0.1", "::1"):
            for ca in (self.ca, both):
                self.settled(self.serve(self.authority.issue(host), host, ca))

    def test_untrusted(self) -> None:
        """Any other certificate is TlsFailed, which says whose and why, and nothing is sent to such a server."""
        host = "chat.example.com"
        for pem, ca, words in (
            (selfSigned(host), None, "signed by itself"),
            (selfSigned(host), self.ca, "signed by itself"),
            (self.authority.issue(host), None, "authority that is not trusted"),
            (Authority("another").issue(host), self.ca, "authority that is not trusted"),
            (self.authority.issue(host, begins=NOW - 2 * DAY, ends=NOW - DAY), self.ca, "expired"),
            (self.authority.issue(host, begins=NOW + DAY, ends=NOW + 2 * DAY), self.ca, "not valid yet"),
            (self.authority.issue("example.com"), self.ca, "another name"),
            (self.authority.issue("127.0.0.1"), self.ca, "another name"),
        ):
            error = self.failed(self.serve(pem, host, ca), TlsFailed)
            self.assertIn(words, str(error))
            for connection in cast(TlsServer, self.server).connections:
                self.assertEqual(connection.frames, [], words)

    def test_unexplained(self) -> None:
        """Where it cannot be found out why, what OpenSSL says is said."""
        self.assertEqual(explain(object(), "TLS failed"), "TLS failed")

    def test_itself(self) -> None:
        """A certificate that is signed by itself can be named as its own authority."""
        pem = selfSigned("chat.example.com")
        self.settled(self.serve(pem, "chat.example.com", self.file("it.pem", pem)))

    def test_clientCertificate(self) -> None:
        """A client certificate is shown with all that links it to an authority; without one such a server says no."""
        middle = Authority("a middle one")
        middle.certificate = self.authority._sign(middle.name, middle.key, [], NOW - DAY, NOW + DAY, isAuthority=True)
        pem = middle.issue("alice")
        certificate, _, key = pem.partition(b"-----BEGIN PRIVATE KEY")
        own = self.file("alice.pem", certificate + middle.pem)
        keyFile = self.file("alice.key", b"-----BEGIN PRIVATE KEY" + key)
        whole = self.file("whole.pem", pem + middle.pem)
        from twisted.internet.ssl import Certificate

        trusted = trustRootFromCertificates([Certificate.loadPEM(self.authority.pem)])
        for paths in ((own, keyFile), (whole, whole)):
            self.settled(self.serve(self.authority.issue("x.example"), "x.example", self.ca, paths, trustRoot=trusted))
        started = self.serve(self.authority.issue("x.example"), "x.example", self.ca, trustRoot=trusted)
        self.failed(started, NotConnected)

    def test_badFiles(self) -> None:
        """A file that is not what it should be is said by its name."""
        pem = self.authority.issue("alice")
        good = self.file("good.pem", pem)
        other = self.file("other.key", pemOf(ec.generate_private_key(ec.SECP256R1())))
        empty = self.file("empty.pem", b"nothing\n")
        broken = self.file("broken.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        for ca, own, named in (
            (empty, None, empty),
            (broken, None, broken),
            (None, (empty, good), empty),
            (None, (good, other), other),
            (None, (good, empty), empty),
        ):
            with self.assertRaises(ClientError) as raised:
                tlsEndpoint(Clock(), "x.example", 1, ca, own)
            self.assertIn(str(named), str(raised.exception))
        with self.assertRaises(OSError):
            tlsEndpoint(Clock(), "x.example", 1, self.folder / "missing")
        with self.assertRaises(ClientError):
            tlsEndpoint(Clock(), "x" * 300 + ".example", 1)

    def test_notInstalled(self) -> None:
        """Without the packages for TLS it is said what to install."""
        with mock.patch.dict(sys.modules, {"OpenSSL": None}):
            sys.modules.pop("wecompany.client.tls", None)
            with self.assertRaises(ClientError) as raised:
                tlsEndpoint(Clock(), "x.example", 1)
        self.assertIn("wecompany[tls]", str(raised.exception))


class SocketServer:
    """A server behind TLS on a real socket: it registers whoever comes and knows that nobody else is online."""

    def __init__(self, pem: Path) -> None:
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(pem)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Stop."""
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                plain, _ = self._listener.accept()
                with contextlib.suppress(OSError), self._context.wrap_socket(plain, server_side=True) as client:
                    self._serve(client)

    def _serve(self, client: ssl.SSLSocket) -> None:
        received = b""
        while data := client.recv(65_536):
            received += data
            end = 0
            for messageType, userId, body, end in decodeFrames(received):
                if messageType == MessageType.ACK:
                    client.sendall(encodeFrame(MessageType.HEARTBEAT, userId, bytes(16)))
                elif messageType == MessageType.PRESENCE:
                    client.sendall(encodeFrame(MessageType.PRESENCE, b"", encodeU32(0)))
                elif messageType == MessageType.HEARTBEAT:
                    client.sendall(encodeFrame(MessageType.HEARTBEAT, b"", body))
            received = received[end:]


class SocketTests(SynchronousTestCase):
    """The command as it is installed, against a server on a real socket."""

    def setUp(self) -> None:
        self.folder = temporaryFolder(self)
        self.authority = Authority("our own authority")
        self.ca = self.folder / "ca.pem"
        self.ca.write_bytes(self.authority.pem)

    def users(self, pem: bytes, *options: str | Path, host: str = "localhost") -> tuple[int, list[str]]:
        """Return exit code and lines of a command at a server with that certificate."""
        path = self.folder / "server.pem"
        path.write_bytes(pem)
        server = SocketServer(path)
        self.addCleanup(server.close)
        process = Process("wecompany", "users", "--server", f"{host}:{server.port}", *options)
        self.addCleanup(process.end)
        return process.wait(), process.lines

    def test_trusted(self) -> None:
        """With --ca a server is reached whose certificate that authority has signed."""
        code, lines = self.users(self.authority.issue("localhost"), "--ca", self.ca)
        self.assertEqual((code, lines), (0, ["Nobody else is online."]))

    def test_untrusted(self) -> None:
        """Without it, and with a certificate that is signed by itself or for another, it is one clear line and 3."""
        for pem, options, words in (
            (self.authority.issue("localhost"), ["--tls"], "authority that is not trusted"),
            (selfSigned("localhost"), ["--tls"], "signed by itself"),
            (selfSigned("localhost"), ["--ca", self.ca], "signed by itself"),
            (self.authority.issue("elsewhere.example"), ["--ca", self.ca], "another name"),
        ):
            code, lines = self.users(pem, *options)
            self.assertEqual(code, 3)
            self.assertEqual(len(lines), 1, lines)
            for said in ("localhost:", words, "--ca FILE"):
                self.assertIn(said, lines[0])

    def test_plainServer(self) -> None:
        """A server that speaks no TLS is one line and 3 too."""
        listener = socket.create_server(("127.0.0.1", 0))
        self.addCleanup(listener.close)

        def answer() -> None:
            with contextlib.suppress(OSError), listener.accept()[0] as client:
                client.recv(65_536)
                client.sendall(b"this is no TLS\r\n")

        threading.Thread(target=answer, daemon=True).start()
        process = Process("wecompany", "users", "--tls", "--server", f"localhost:{listener.getsockname()[1]}")
        self.addCleanup(process.end)
        self.assertEqual(process.wait(), 3)
        self.assertEqual(len(process.lines), 1, process.lines)
