"""The server's certificate: which TLS is spoken, how it is renewed, and what a client's certificate says."""

from __future__ import annotations

import contextlib
import datetime
import os
import socket
import ssl
import sys
import warnings
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Any, cast

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from OpenSSL import SSL
from twisted.internet.defer import Deferred, succeed
from twisted.internet.interfaces import IListeningPort, IOpenSSLServerConnectionCreator
from twisted.internet.protocol import Factory, Protocol
from twisted.internet.task import Clock
from twisted.internet.testing import StringTransport
from twisted.internet.threads import deferToThread
from twisted.logger import ILogObserver, LogEvent, globalLogPublisher
from twisted.trial.unittest import SynchronousTestCase, TestCase
from zope.interface.verify import verifyObject

from tests import temporaryFolder
from wecompany.poller import fastest
from wecompany.tls import CHECK_EVERY, WARN_EVERY, ServerTLS, TLSProblem, certificateNames

DAY = 86_400.0
NOW = datetime.datetime.now(datetime.timezone.utc)


@lru_cache
def newKey(name: str) -> ec.EllipticCurvePrivateKey:
    """Return the key of that name."""
    return ec.generate_private_key(ec.SECP256R1())


def makeCertificate(
    name: str,
    issuer: str = "",
    key: str = "",
    names: tuple[str, ...] = (),
    others: tuple[x509.GeneralName, ...] = (),
    days: float = 100,
    isCA: bool = False,
    extension: x509.ExtensionType | None = None,
) -> bytes:
    """
    Return a certificate in PEM.

    @param issuer: who signs it; itself if empty.
    @param key: which key it is for; one of its own name if empty.
    @param names: the common names; C{name} if there are none.
    """
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, one) for one in names or (name,)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]) if issuer else subject)
        .public_key(newKey(key or name).public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOW - datetime.timedelta(days=1_000))
        .not_valid_after(NOW + datetime.timedelta(days=days))
        .add_extension(x509.BasicConstraints(ca=isCA, path_length=None), critical=True)
    )
    if extension is not None:
        builder = builder.add_extension(extension, critical=False)
    if others:
        builder = builder.add_extension(x509.SubjectAlternativeName(others), critical=False)
    certificate = builder.sign(newKey(issuer or key or name), hashes.SHA256())
    return certificate.public_bytes(serialization.Encoding.PEM)


def keyOf(name: str, passphrase: bytes = b"") -> bytes:
    """Return the key of that name in PEM."""
    return newKey(name).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.BestAvailableEncryption(passphrase) if passphrase else serialization.NoEncryption(),
    )


def atOnce(f: Callable[[], Any]) -> Deferred[Any]:
    """Stand for another thread."""
    return succeed(f())


class Logged:
    """What has been logged since, as text."""

    def __init__(self, test: Any) -> None:
        self._events: list[LogEvent] = []
        observer = cast(ILogObserver, self._events.append)
        globalLogPublisher.addObserver(observer)
        test.addCleanup(globalLogPublisher.removeObserver, observer)

    def warnings(self) -> list[str]:
        """Return the warnings and worse, and forget them."""
        events, self._events[:] = list(self._events), []
        return [e["log_format"].format(**e) for e in events if e["log_level"].name in ("warn", "error", "critical")]


class FilesTests(SynchronousTestCase):
    """Without sockets: what is read, when, and what is said about it."""

    def setUp(self) -> None:
        self.folder = temporaryFolder(self)
        self.clock = Clock()
        self.logged = Logged(self)
        self.inThread: list[Callable[[], Any]] = []
        self.certificate = self.write("cert.pem", makeCertificate("one"))
        self.key = self.write("key.pem", keyOf("one"))

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def inAThread(self, f: Callable[[], Any]) -> Deferred[Any]:
        self.inThread.append(f)
        return succeed(f())

    def make(self, *paths: Path | None, **options: Any) -> ServerTLS:
        tls = ServerTLS(self.clock, self.inAThread, *(paths or (self.certificate, self.key)), **options)  # type: ignore[arg-type]
        self.addCleanup(tls.stop)
        return tls

    def served(self, tls: ServerTLS) -> str:
        """Return the common name of the certificate that the next connection gets."""
        client = SSL.Connection(SSL.Context(SSL.TLS_CLIENT_METHOD), None)
        server = tls.serverConnectionForTLS(cast(Any, None))
        client.set_connect_state()
        server.set_accept_state()
        for _ in range(3):
            for one, other in ((client, server), (server, client)):
                with contextlib.suppress(SSL.WantReadError):
                    one.do_handshake()
                with contextlib.suppress(SSL.WantReadError):
                    other.bio_write(one.bio_read(65_536))
        certificate = client.get_peer_certificate()
        assert certificate is not None
        (name,) = certificate.to_cryptography().subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return cast(str, name.value)

    def test_interface(self) -> None:
        """It is what Twisted makes TLS connections from."""
        verifyObject(IOpenSSLServerConnectionCreator, self.make())

    def test_oneFile(self) -> None:
        """Certificate and key may be in one file, in either order, and the chain behind the certificate."""
        chain = makeCertificate("one") + makeCertificate("ca", isCA=True)
        for data in (chain + keyOf("one"), keyOf("one") + chain):
            self.assertEqual(self.served(self.make(self.write("both.pem", data))), "one")

    def without(self, module: str) -> None:
        """Let a module be missing."""
        modules: dict[str, Any] = sys.modules
        self.addCleanup(modules.__setitem__, module, modules[module])
        modules[module] = None

    def test_notInstalled(self) -> None:
        """Without pyOpenSSL the problem says what to install, and no transport speaks for anybody."""
        for module in ("OpenSSL.crypto", "OpenSSL.SSL"):
            self.without(module)
        with self.assertRaises(TLSProblem) as raised:
            self.make()
        self.assertIn("wecompany[tls]", str(raised.exception))
        self.assertEqual(certificateNames(StringTransport()), frozenset())

    def test_problems(self) -> None:
        """What cannot be used is told in one line that names the file."""
        missing = self.folder / "missing.pem"
        rubbish = self.write("rubbish.pem", b"no certificate")
        broken = self.write("broken.pem", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n")
        locked = self.write("locked.pem", keyOf("one", b"secret"))
        other = self.write("other.pem", keyOf("two"))
        for paths, named in (
            ((missing, None, None), missing),
            ((self.certificate, missing, None), missing),
            ((self.certificate, self.key, missing), missing),
            ((self.certificate, None, None), self.certificate),
            ((rubbish, self.key, None), rubbish),
            ((broken, self.key, None), broken),
            ((self.certificate, rubbish, None), rubbish),
            ((self.certificate, locked, None), locked),
            ((self.certificate, self.key, rubbish), rubbish),
            ((self.certificate, self.key, self.key), self.key),
            ((self.certificate, other, None), other),
            ((self.folder, self.key, None), self.folder),
        ):
            with self.assertRaises(TLSProblem) as raised:
                self.make(*paths)
            self.assertIn(str(named), str(raised.exception))
            self.assertNotIn("\n", str(raised.exception))
            self.assertNotIn("[", str(raised.exception))

    def test_renewed(self) -> None:
        """New files are used at the next look, and not before it."""
        tls = self.make()
        tls.start()
        self.write("cert.pem", makeCertificate("two"))
        self.write("key.pem", keyOf("two"))
        self.clock.advance(CHECK_EVERY - 0.1)
        self.assertEqual(self.served(tls), "one")
        self.clock.advance(0.1)
        self.assertEqual(self.served(tls), "two")
        self.assertEqual(self.logged.warnings(), [])

    def test_sameSize(self) -> None:
        """A file that changes in its time only, or is replaced by another, has changed."""
        tls = self.make()
        tls.start()
        self.write("key.pem", keyOf("two"))
        self.write("cert.pem", makeCertificate("two"))
        stat = self.certificate.stat()
        self.clock.advance(CHECK_EVERY)
        for name in ("uno", "due"):
            self.write("new.pem", makeCertificate(name, key="two")).replace(self.certificate)
            os.utime(self.certificate, ns=(stat.st_atime_ns, stat.st_mtime_ns))
            self.clock.advance(CHECK_EVERY)
            self.assertEqual(self.served(tls), name)

    def test_unchanged(self) -> None:
        """Files that have not changed are not read."""
        tls = self.make()
        tls.start()
        pair = cast(Any, tls)._pair
        self.clock.pump([CHECK_EVERY] * 10)
        self.assertIs(cast(Any, tls)._pair, pair)
        self.assertEqual(len(self.inThread), 10)

    def test_halfRenewed(self) -> None:
        """While the new files do not belong together the old pair stays, which is said once for each change."""
        tls = self.make()
        tls.start()
        for change in (
            lambda: self.write("cert.pem", makeCertificate("two")),
            lambda: self.certificate.unlink(),
            lambda: self.write("cert.pem", b"rubbish"),
        ):
            change()
            self.clock.pump([CHECK_EVERY] * 3)
            self.assertEqual(self.served(tls), "one")
            (said,) = self.logged.warnings()
            self.assertIn(str(self.certificate), said)
        self.write("cert.pem", makeCertificate("two"))
        self.write("key.pem", keyOf("two"))
        self.clock.advance(CHECK_EVERY)
        self.assertEqual(self.served(tls), "two")

    def test_reload(self) -> None:
        """reload reads at once, whether anything seems to have changed or not, and looks no further when it is done."""
        tls = self.make()
        self.write("cert.pem", makeCertificate("two"))
        self.successResultOf(tls.reload())
        self.assertEqual((self.served(tls), len(self.logged.warnings())), ("one", 1))
        self.write("key.pem", keyOf("two"))
        self.successResultOf(tls.reload())
        self.assertEqual((self.served(tls), self.logged.warnings()), ("two", []))
        self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_inThread(self) -> None:
        """Nothing is read in the reactor's thread: until the other thread has done it the old pair is there."""
        results: list[Deferred[Any]] = []

        def later(f: Callable[[], Any]) -> Deferred[Any]:
            self.inThread.append(f)
            results.append(Deferred())
            return results[-1]

        tls = ServerTLS(self.clock, later, self.certificate, self.key)
        tls.start()
        self.addCleanup(tls.stop)
        self.write("cert.pem", makeCertificate("two"))
        self.write("key.pem", keyOf("two"))
        self.clock.advance(CHECK_EVERY)
        results[0].callback(self.inThread[0]())
        self.assertEqual((self.served(tls), len(results)), ("one", 2))
        self.clock.advance(10 * CHECK_EVERY)
        self.assertEqual(len(results), 2)
        results[1].callback(self.inThread[1]())
        self.assertEqual(self.served(tls), "two")

    def test_relative(self) -> None:
        """Files are found again although the process has gone to another folder, as a daemon does."""
        before = Path.cwd()
        os.chdir(self.folder)
        self.addCleanup(os.chdir, before)
        tls = self.make(Path("cert.pem"), Path("key.pem"))
        os.chdir("/")
        self.write("cert.pem", makeCertificate("two"))
        self.write("key.pem", keyOf("two"))
        self.successResultOf(tls.reload())
        self.assertEqual(self.served(tls), "two")

    def test_stopped(self) -> None:
        """Stopped, it leaves no timer; started again, it looks again."""
        tls = self.make()
        tls.stop()
        for _ in range(2):
            tls.start()
            self.assertEqual(len(self.clock.getDelayedCalls()), 1)
            tls.stop()
            self.assertEqual(self.clock.getDelayedCalls(), [])

    def test_fault(self) -> None:
        """A fault of the looking itself is logged."""

        def fail(f: Callable[[], Any]) -> Deferred[Any]:
            raise ZeroDivisionError

        tls = ServerTLS(self.clock, fail, self.certificate, self.key)
        tls.start()
        self.clock.advance(CHECK_EVERY)
        self.assertEqual(len(self.flushLoggedErrors(ZeroDivisionError)), 1)

    def expiring(self, days: float) -> list[str]:
        """Return what is said at the start about a certificate that is valid for so many days yet."""
        tls = self.make(now=lambda: NOW.timestamp() + (100 - days) * DAY)
        tls.start()
        return self.logged.warnings()

    def test_expires(self) -> None:
        """From 14 days before a certificate expires that is said, and also when it has expired."""
        self.assertEqual(self.expiring(14.01), [])
        for days, words in (
            (14, "expires in 14.0 days"),
            (0.1, "expires in 0.1 days"),
            (0, "has expired"),
            (-9, "has"),
        ):
            (said,) = self.expiring(days)
            self.assertIn(str(self.certificate), said)
            self.assertIn(words, said)

    def test_expiresDaily(self) -> None:
        """It is said once a day, also if it begins while the server runs, until there is a better one."""
        tls = self.make(now=lambda: NOW.timestamp() + 85 * DAY + self.clock.seconds())
        tls.start()
        self.assertEqual(self.logged.warnings(), [])
        said = []
        for _ in range(3):
            self.clock.pump([CHECK_EVERY] * int(WARN_EVERY / CHECK_EVERY))
            said += [len(self.logged.warnings())]
        self.assertEqual(said, [1, 1, 1])
        self.write("cert.pem", makeCertificate("one", days=200))
        self.clock.pump([CHECK_EVERY] * int(2 * WARN_EVERY / CHECK_EVERY))
        self.assertEqual(self.logged.warnings(), [])

    def test_expiresInTheChain(self) -> None:
        """The first one of the chain to expire counts."""
        self.write("cert.pem", makeCertificate("one") + makeCertificate("ca", isCA=True, days=5))
        self.make().start()
        (said,) = self.logged.warnings()
        self.assertIn("expires in 5.0 days", said)

    def test_expiredIsServed(self) -> None:
        """An expired certificate is warned about and served all the same: that is the clients' to judge."""
        self.write("cert.pem", makeCertificate("one", days=-1))
        self.assertEqual(self.served(self.make()), "one")


class Echo(Protocol):
    """Answers what arrives, behind the names that the client's certificate speaks for."""

    def dataReceived(self, data: bytes) -> None:
        assert self.transport is not None
        self.transport.write(b",".join(sorted(certificateNames(self.transport))) + b":" + data)


class RealSocketTests(TestCase):
    """With the real reactor, on the loopback only; the clients are Python's own C{ssl} in other threads."""

    timeout = 60

    def setUp(self) -> None:
        from twisted.internet import reactor

        self.reactor = cast(Any, reactor)
        self.folder = temporaryFolder(cast(Any, self))
        self.logged = Logged(self)
        self.write("cert.pem", makeCertificate("one"))
        self.write("key.pem", keyOf("one"))
        self.write("ca.pem", makeCertificate("ca", isCA=True))

    def write(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        path.write_bytes(data)
        return path

    def listen(self, plain: bool = False, clients: bool = False, **options: Any) -> ServerTLS:
        """Listen on L{self.port}."""
        tls = ServerTLS(
            self.reactor,
            deferToThread,
            self.folder / "cert.pem",
            self.folder / "key.pem",
            self.folder / "ca.pem" if clients else None,
            **options,
        )
        self.serve(tls, plain)
        return tls

    def serve(self, contextFactory: Any, plain: bool = False) -> None:
        reactor = self.reactor if plain else fastest(self.reactor)
        listening: IListeningPort = reactor.listenSSL(
            0, Factory.forProtocol(Echo), contextFactory, interface="127.0.0.1"
        )
        self.port = cast(Any, listening.getHost()).port
        self.addCleanup(listening.stopListening)

    def context(self, name: str = "", signer: str = "ca", **options: Any) -> ssl.SSLContext:
        """Return a client's context, with a certificate if C{name} is given."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        if name:
            path = self.write("client.pem", makeCertificate(name, signer, **options) + keyOf(name))
            context.load_cert_chain(path)
        return context

    def only(self, version: ssl.TLSVersion) -> ssl.SSLContext:
        context = self.context()
        context.set_ciphers("ALL:@SECLEVEL=0")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)
            context.maximum_version = version
            context.minimum_version = version
        return context

    async def connect(self, context: ssl.SSLContext) -> ssl.SSLSocket:
        """Return a new connection that has had an answer."""

        def connect() -> ssl.SSLSocket:
            plain = socket.create_connection(("127.0.0.1", self.port), 20)
            try:
                return context.wrap_socket(plain)
            except BaseException:
                plain.close()
                raise

        connected: ssl.SSLSocket = await deferToThread(connect)
        self.addCleanup(connected.close)
        return connected

    async def ask(self, connected: ssl.SSLSocket) -> bytes:
        """Return the answer to b"x"."""

        def ask() -> bytes:
            connected.sendall(b"x")
            return connected.recv(1000)

        answer: bytes = await deferToThread(ask)
        return answer

    def nameOf(self, connected: ssl.SSLSocket) -> str:
        """Return the name in the server's certificate."""
        der = connected.getpeercert(True)
        assert der is not None
        (name,) = x509.load_der_x509_certificate(der).subject.get_attributes_for_oid(NameOID.COMMON_NAME)
        return cast(str, name.value)

    async def test_versions(self) -> None:
        """TLS 1.2 and 1.3 are spoken, through the poller and without it; TLS 1.1 is not."""
        for plain in (False, True):
            self.listen(plain)
            for version, name in ((ssl.TLSVersion.TLSv1_2, "TLSv1.2"), (ssl.TLSVersion.TLSv1_3, "TLSv1.3")):
                connected = await self.connect(self.only(version))
                self.assertEqual(connected.version(), name)
                self.assertEqual(await self.ask(connected), b":x")
            with self.assertRaises((ssl.SSLError, ConnectionError)):
                await self.connect(self.only(ssl.TLSVersion.TLSv1_1))

    async def test_clientCanSpeakLess(self) -> None:
        """The client of the test before would speak TLS 1.1 with a server that does."""

        class Lax:
            def getContext(self) -> SSL.Context:
                context = SSL.Context(SSL.TLS_SERVER_METHOD)
                context.set_cipher_list(b"ALL:@SECLEVEL=0")
                context.use_certificate_file(str(self_.folder / "cert.pem"))
                context.use_privatekey_file(str(self_.folder / "key.pem"))
                return context

        self_ = self
        self.serve(cast(Any, Lax()))
        connected = await self.connect(self.only(ssl.TLSVersion.TLSv1_1))
        self.assertEqual(connected.version(), "TLSv1.1")

    async def test_renewed(self) -> None:
        """After a reload new connections get the new certificate, and an old one goes on with the old."""
        tls = self.listen()
        old = await self.connect(self.context())
        self.assertEqual((self.nameOf(old), await self.ask(old)), ("one", b":x"))
        self.write("cert.pem", makeCertificate("two"))
        self.write("key.pem", keyOf("two"))
        await tls.reload()
        new = await self.connect(self.context())
        self.assertEqual((self.nameOf(new), await self.ask(new)), ("two", b":x"))
        self.assertEqual((self.nameOf(old), await self.ask(old)), ("one", b":x"))

    async def test_chain(self) -> None:
        """The chain goes with the certificate: who knows nothing but its root can verify it."""
        middle = makeCertificate("middle", "ca", isCA=True)
        for chain, isVerified in ((middle, True), (b"", False)):
            self.write("cert.pem", makeCertificate("one", "middle") + chain)
            self.listen()
            context = self.context()
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(self.folder / "ca.pem")
            try:
                await self.connect(context)
            except ssl.SSLCertVerificationError:
                self.assertFalse(isVerified)
            else:
                self.assertTrue(isVerified)

    async def test_brokenRenewal(self) -> None:
        """After a reload of files that cannot be used the old certificate is served on, and that is logged."""
        tls = self.listen()
        self.write("cert.pem", makeCertificate("two"))
        await tls.reload()
        self.assertEqual(self.nameOf(await self.connect(self.context())), "one")
        self.assertEqual(len(self.logged.warnings()), 1)

    async def test_clientNames(self) -> None:
        """A client's certificate speaks for its common names and the e-mail addresses among its other names."""
        self.listen(clients=True)
        for names, others, said in (
            (("alice",), (), b"alice"),
            (("alice", "álice"), (), "alice,álice".encode()),
            (
                ("alice",),
                (x509.RFC822Name("a@example.com"), x509.DNSName("bob.example.com"), x509.RFC822Name("b@x")),
                b"a@example.com,alice,b@x",
            ),
        ):
            context = self.context("alice", names=names, others=others)
            self.assertEqual(await self.ask(await self.connect(context)), said + b":x")

    async def test_noCertificate(self) -> None:
        """A client without a certificate speaks for nobody, and is turned away where one is required."""
        self.listen(clients=True)
        self.assertEqual(await self.ask(await self.connect(self.context())), b":x")
        self.listen(clients=True, isRequired=True)
        self.assertEqual(await self.ask(await self.connect(self.context("alice"))), b"alice:x")
        with self.assertRaises((ssl.SSLError, ConnectionError)):
            self.assertEqual(await self.ask(await self.connect(self.context())), b"")
            raise ConnectionError("closed without a word")

    async def test_foreignCertificate(self) -> None:
        """A certificate that another CA has signed, or its owner, or that has expired, ends the handshake."""
        for isRequired in (False, True):
            self.listen(clients=True, isRequired=isRequired)
            for signer, options in (("stranger", {}), ("", {}), ("ca", {"key": "alice", "days": -1})):
                with self.assertRaises((ssl.SSLError, ConnectionError)):
                    self.assertEqual(await self.ask(await self.connect(self.context("alice", signer, **options))), b"")
                    raise ConnectionError("closed without a word")

    async def test_unreadableNames(self) -> None:
        """A certificate with a name that is against the rules speaks for nobody at all, and the connection goes on."""
        self.listen(clients=True)
        latin1 = x509.UnrecognizedExtension(x509.SubjectAlternativeName.oid, b"\x30\x03\x81\x01\xe1")
        context = self.context("alice", extension=latin1)
        self.assertEqual(await self.ask(await self.connect(context)), b":x")

    async def test_notAsked(self) -> None:
        """Without CAs nobody is asked for a certificate, and so it speaks for nobody."""
        self.listen()
        self.assertEqual(await self.ask(await self.connect(self.context("alice"))), b":x")

    async def test_unverified(self) -> None:
        """What a context of somebody else's has let through speaks for nobody, be it shown."""
        shown: list[str] = []

        class Trusting:
            def getContext(self) -> SSL.Context:
                context = SSL.Context(SSL.TLS_SERVER_METHOD)
                context.use_certificate_file(str(self_.folder / "cert.pem"))
                context.use_privatekey_file(str(self_.folder / "key.pem"))

                def verify(connection: Any, certificate: Any, *rest: int) -> bool:
                    shown.append(certificate.to_cryptography().subject.rfc4514_string())
                    return True

                context.set_verify(SSL.VERIFY_PEER, verify)
                return context

        self_ = self
        self.serve(cast(Any, Trusting()))
        self.assertEqual(await self.ask(await self.connect(self.context("alice", "stranger"))), b":x")
        self.assertIn("CN=alice", shown)


class NamesTests(SynchronousTestCase):
    def test_noTLS(self) -> None:
        """A transport without TLS, or without anything at all, speaks for nobody."""
        self.assertEqual(certificateNames(StringTransport()), frozenset())
        self.assertEqual(certificateNames(None), frozenset())
        with socket.socket() as plain:

            class Transport:
                def getHandle(self) -> socket.socket:
                    return plain

            self.assertEqual(certificateNames(Transport()), frozenset())
