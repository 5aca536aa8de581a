"""Each transport once, with real sockets and the installed server; the client is nothing but Twisted's own receiver."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from twisted.internet.defer import Deferred, DeferredQueue
from twisted.internet.endpoints import clientFromString, wrapClientTLS
from twisted.internet.interfaces import IStreamClientEndpoint
from twisted.internet.protocol import Factory
from twisted.internet.ssl import CertificateOptions
from twisted.internet.threads import deferToThread
from twisted.protocols.basic import Int16StringReceiver
from twisted.trial.unittest import SynchronousTestCase, TestCase

from tests import temporaryFolder
from tests.processes import TERMINATE, Process, freePort
from wecompany.wire import MessageType

ROOT = Path(__file__).parent.parent


class PlainReceiver(Int16StringReceiver):
    """A client without a line of ours in it."""

    def __init__(self) -> None:
        self.payloads: DeferredQueue[bytes] = DeferredQueue()

    def stringReceived(self, payload: bytes) -> None:
        self.payloads.put(payload)


class TransportTests(TestCase):
    """Two plain receivers talk over every transport that C{--listen} can name."""

    timeout = 60

    async def converse(self, listen: str, connect: Callable[[Any], IStreamClientEndpoint], header: bytes = b"") -> None:
        """Start a server, register two clients, and pass a text of every length class."""
        from twisted.internet import reactor

        server = Process("twistd", "-n", "--pidfile=", "wecompany", "--listen", listen)
        self.addCleanup(server.end)
        await deferToThread(server.waitFor, "runs open")
        receivers = []
        for name in (b"alice", b"bob"):
            receiver: Any = await connect(reactor).connect(Factory.forProtocol(PlainReceiver))
            if header:
                receiver.transport.write(header)
            receiver.sendString(b"\7" + len(name).to_bytes(2, "big") + name)
            answer = await receiver.payloads.get()
            self.assertEqual(answer[: 3 + len(name)], b"\7" + len(name).to_bytes(2, "big") + name)
            self.assertEqual(len(answer), 3 + len(name) + 16)
            receivers.append(receiver)
        alice, bob = receivers
        for size in (0, 1, 1000, 65_000):
            alice.sendString(b"\0\0\3bob" + b"x" * size)
            self.assertEqual(await bob.payloads.get(), b"\0\0\5alice" + b"x" * size)
        server.signal(TERMINATE)
        for receiver in receivers:
            last = await receiver.payloads.get()
            self.assertEqual((last[0], last[3:5]), (MessageType.ERROR, b"\x0a\xff"))
            receiver.transport.loseConnection()
        self.assertEqual(await deferToThread(server.wait), -TERMINATE)

    def run_(self, *arguments: Any) -> Deferred[None]:
        return Deferred.fromCoroutine(self.converse(*arguments))

    def test_tcp(self) -> Deferred[None]:
        """TCP."""
        port = freePort()
        return self.run_(
            f"tcp:{port}:interface=127.0.0.1", lambda reactor: clientFromString(reactor, f"tcp:127.0.0.1:{port}")
        )

    def test_ipv6(self) -> Deferred[None]:
        """TCP over IPv6."""
        port = freePort()
        return self.run_(
            rf"tcp6:{port}:interface=\:\:1", lambda reactor: clientFromString(reactor, rf"tcp:host=\:\:1:port={port}")
        )

    def test_unix(self) -> Deferred[None]:
        """A UNIX socket."""
        path = temporaryFolder(self) / "socket"
        return self.run_(f"unix:{path}", lambda reactor: clientFromString(reactor, f"unix:{path}"))

    def test_tls(self) -> Deferred[None]:
        """TLS, with a certificate made for the occasion."""
        folder = temporaryFolder(self)
        key, certificate = folder / "key.pem", folder / "cert.pem"
        makeCertificate(key, certificate)
        port = freePort()
        return self.run_(
            f"ssl:{port}:interface=127.0.0.1:privateKey={key}:certKey={certificate}",
            lambda reactor: wrapClientTLS(CertificateOptions(), clientFromString(reactor, f"tcp:127.0.0.1:{port}")),
        )

    def test_haproxy(self) -> Deferred[None]:
        """TCP behind a proxy that tells the client's address first."""
        port = freePort()
        return self.run_(
            f"haproxy:tcp:{port}:interface=127.0.0.1",
            lambda reactor: clientFromString(reactor, f"tcp:127.0.0.1:{port}"),
            b"PROXY TCP4 192.0.2.1 127.0.0.1 40000 8888\r\n",
        )


def makeCertificate(key: Path, certificate: Path) -> None:
    """Write a key and a self-signed certificate for localhost."""
    from datetime import datetime, timedelta, timezone

    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    private = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    now = datetime.now(timezone.utc)
    signed = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    key.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
    )
    certificate.write_bytes(signed.public_bytes(serialization.Encoding.PEM))


class EmbeddingTests(SynchronousTestCase):
    """The program that docs/embedding.rst shows."""

    def test_example(self) -> None:
        """It runs, greets who comes, says how a call ended, and has at most twenty lines of code."""
        program = ROOT / "docs" / "examples" / "embedded.py"
        lines = [line for line in program.read_text("utf-8").splitlines()[1:] if line.strip()]
        self.assertLessEqual(len(lines), 20)
        self.assertIn("examples/embedded.py", (ROOT / "docs" / "embedding.rst").read_text("utf-8"))
        port = freePort()
        server = Process("python", program, str(port))
        self.addCleanup(server.end)
        server.waitFor("Listening")
        alice = Process("wecompany", "chat", "--as", "alice", "--server", f"127.0.0.1:{port}")
        self.addCleanup(alice.end)
        alice.waitFor("(server): Welcome, alice. Online: alice")
        bob = Process("wecompany", "answer", "--as", "bob", "--server", f"127.0.0.1:{port}")
        self.addCleanup(bob.end)
        alice.waitFor("bob is online")
        alice.type("/call bob")
        alice.waitFor("in a call with bob")
        alice.type("/end")
        server.waitFor("alice and bob: HUNG_UP")
        self.assertEqual(bob.wait(), 0)

    def test_jsonLog(self) -> None:
        """Twisted's own JSON log takes what the server logs, field by field."""
        port = freePort()
        server = Process("twist", "--log-format=json", "wecompany", "--interface", "127.0.0.1", "--port", str(port))
        self.addCleanup(server.end)
        server.waitFor("runs open")
        send = subprocess.run(
            [Path(sys.executable).parent / "wecompany", "users", "--as", "alice", "--server", f"127.0.0.1:{port}"],
            timeout=30,
            check=True,
        )
        self.assertEqual(send.returncode, 0)
        self.assertIn('"user": "alice"', server.waitFor("is online"))
