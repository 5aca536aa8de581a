"""The main job on real input: the installed server and the C{wecompany} command, each a process of its own."""

from __future__ import annotations

import hashlib
import random
import socket
from pathlib import Path
from time import monotonic

import av
from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder
from tests.mediasample import makeSample
from tests.processes import INTERRUPT, KILL, TERMINATE, TIMEOUT, Process, Proxy, freePort, startServer
from wecompany.media import MediaFile
from wecompany.wire import ErrorCode, MediaKind, MessageType, decodeFrames, encodeFrame

MEGABYTE = 1_000_000


def packets(path: Path, video: bool) -> list[bytes]:
    """Return the packets of one stream of a file."""
    return [frame.data for frame in MediaFile(path) if (frame.kind != MediaKind.AUDIO) == video]


def decoded(path: Path) -> tuple[int, int]:
    """Return how many audio and video frames a file decodes to."""
    counts = []
    for kind in ("audio", "video"):
        with av.open(str(path)) as container:
            streams = [stream for stream in container.streams if stream.type == kind]
            counts.append(sum(1 for _ in container.decode(*streams)))
    return counts[0], counts[1]


class EndToEnd(SynchronousTestCase):
    """Two people and a server."""

    def setUp(self) -> None:
        self.port = freePort()
        self.folder = temporaryFolder(self)

    def server(self, *options: str) -> Process:
        server = startServer(self.port, *options)
        self.addCleanup(server.end)
        return server

    def command(self, command: str, user: str, *arguments: str | Path, port: int = 0) -> Process:
        process = Process("wecompany", command, "--as", user, "--server", f"localhost:{port or self.port}", *arguments)
        self.addCleanup(process.end)
        return process

    def test_chat(self) -> None:
        """Two people write to each other, see each other come and go, and ring each other up."""
        self.server()
        alice = self.command("chat", "alice")
        alice.waitFor("Nobody else is online")
        bob = self.command("chat", "bob")
        alice.waitFor("bob is online")
        bob.waitFor("Online: alice")
        alice.type("@bob 你好, bob")
        bob.waitFor("alice: 你好, bob")
        bob.type("hello alice")
        alice.waitFor("bob: hello alice")
        alice.type("/call bob")
        bob.waitFor("call from alice")
        bob.type("/accept")
        alice.waitFor("in a call with bob")
        bob.waitFor("in a call with alice")
        bob.type("/end see you")
        alice.waitFor("hung up: see you")
        bob.type("/quit")
        alice.waitFor("bob is offline")
        self.assertEqual(bob.wait(), 0)
        alice.type("are you there?")
        alice.waitFor("bob is offline and gets it later")
        self.command("chat", "bob").waitFor("alice: are you there?")
        alice.waitFor("bob is online")

    def test_disabled(self) -> None:
        """A user whom the operator disables, in another process, is put out at once, and one that is added is known."""
        self.server("--signup", "--accounts", "--database", str(self.folder / "store.sqlite"))
        with socket.create_connection(("127.0.0.1", self.port), TIMEOUT) as bob:
            bob.sendall(encodeFrame(MessageType.SIGNUP, b"bob", b"secret-bob"))
            received = b""
            while b"\0\3bob" + b"\1" not in received or received.count(b"bob") < 2:
                received += bob.recv(65536)
            self.admin("disable", "bob")
            received = b""
            while data := bob.recv(65536):
                received += data
            (frame,) = decodeFrames(received)
            self.assertEqual((frame[0], frame[2][0]), (MessageType.ERROR, ErrorCode.FORBIDDEN))

    def admin(self, command: str, *arguments: str) -> None:
        """Let the operator do something."""
        admin = Process("wecompany", "admin", command, "--database", self.folder / "store.sqlite", *arguments)
        self.addCleanup(admin.end)
        self.assertEqual(admin.wait(), 0, admin.lines)

    def test_users_and_send(self) -> None:
        """A script lists who is online and sends a text; its exit code tells whether it got through."""
        self.server()
        bob = self.command("chat", "bob")
        bob.waitFor("Nobody else is online")
        users = self.command("users", "admin")
        self.assertEqual((users.wait(), users.lines), (0, ["bob"]))
        self.assertEqual(self.command("send", "alice", "bob", "one text").wait(), 0)
        bob.waitFor("alice: one text")
        self.assertEqual(self.command("send", "alice", "carol", "one text").wait(), 1)

    def test_file_cutInTheMiddle(self) -> None:
        """A file of 100 MB whose sender's connection is cut in the middle arrives with the same SHA-256."""
        self.server()
        data = random.Random(1).randbytes(100 * MEGABYTE)
        path = self.folder / "holiday.bin"
        path.write_bytes(data)
        proxy = Proxy(self.port)
        self.addCleanup(proxy.close)
        into = self.folder / "bob"
        into.mkdir()
        bob = self.command("receive-files", "bob", "--into", into, "--count", "1")
        bob.waitFor("Waiting for files")
        alice = self.command("send-file", "alice", "bob", path, port=proxy.port)
        alice.waitFor("40 %")
        proxy.cut()
        alice.waitFor("Connected again")
        self.assertEqual(alice.wait(120), 0)
        self.assertEqual(bob.wait(), 0)
        self.assertEqual(hashlib.sha256((into / "holiday.bin").read_bytes()).digest(), hashlib.sha256(data).digest())
        self.assertLess(proxy.passed, 115 * MEGABYTE, "it went on from where it stopped")

    def test_call(self) -> None:
        """In a call of 20 s each Opus and VP8 packet arrives once, in order and unchanged; the recordings decode."""
        self.server()
        played, recorded = {}, {}
        for name, frequency in (("alice", 440), ("bob", 660)):
            played[name] = self.folder / f"{name}.webm"
            recorded[name] = self.folder / f"heard-by-{name}.webm"
            makeSample(played[name], 20, video=True, frequency=frequency)
        bob = self.command("answer", "bob", "--play", played["bob"], "--record", recorded["bob"])
        bob.waitFor("Waiting for a call")
        began = monotonic()
        alice = self.command("call", "alice", "bob", "--play", played["alice"], "--record", recorded["alice"])
        alice.waitFor("In a call with bob")
        self.assertEqual((alice.wait(), bob.wait()), (0, 0))
        self.assertGreater(monotonic() - began, 19, "media is sent at its real pace")
        for speaker, listener in (("alice", "bob"), ("bob", "alice")):
            for video in (False, True):
                sent = packets(played[speaker], video)
                self.assertEqual(packets(recorded[listener], video), sent)
                self.assertGreater(len(sent), 250)
            audio, pictures = decoded(recorded[listener])
            self.assertGreaterEqual(audio, 999)
            self.assertGreaterEqual(pictures, 299)

    def test_callerKilled(self) -> None:
        """When a caller is killed in the middle of a call, the other party learns it after the grace."""
        self.server("--call-grace", "2")
        sample = self.folder / "talk.ogg"
        makeSample(sample, 30, video=False)
        bob = self.command("answer", "bob", "--record", self.folder / "heard.ogg")
        bob.waitFor("Waiting for a call")
        alice = self.command("call", "alice", "bob", "--play", sample)
        alice.waitFor("In a call with bob")
        bob.waitFor("Media comes")
        alice.signal(KILL)
        killed = monotonic()
        bob.waitFor("peer lost")
        self.assertGreater(monotonic() - killed, 1.9)
        self.assertEqual(bob.wait(), 1)
        self.assertGreater(len(packets(self.folder / "heard.ogg", video=False)), 0, "what came is kept")

    def test_serverStopped(self) -> None:
        """A server stopped in the middle of everything ends the calls, tells everyone, and is gone within 5 s."""
        server = self.server()
        sample = self.folder / "talk.webm"
        makeSample(sample, 30, video=True)
        big = self.folder / "big.bin"
        big.write_bytes(bytes(500 * MEGABYTE))
        dave = self.command("receive-files", "dave", "--into", self.folder)
        dave.waitFor("Waiting for files")
        bob = self.command("answer", "bob", "--play", sample)
        bob.waitFor("Waiting for a call")
        alice = self.command("call", "alice", "bob", "--play", sample)
        alice.waitFor("In a call")
        chat = self.command("chat", "erin")
        chat.waitFor("Online")
        carol = self.command("send-file", "carol", "dave", big)
        carol.waitFor("10 %")
        server.signal(TERMINATE)
        asked = monotonic()
        self.assertEqual(server.wait(), -TERMINATE, "twistd ends as the signal that it got says")
        self.assertLess(monotonic() - asked, 5)
        self.assertEqual([line for line in server.lines if "Traceback" in line or "Unhandled" in line], [])
        for process in (alice, bob):
            process.waitFor("shutting down")
            self.assertEqual(process.wait(), 1)
        for process in (carol, dave, chat):
            process.waitFor("the server is going away; trying to get it back")
            process.signal(INTERRUPT)
            self.assertEqual(process.wait(), 130)

    def test_interrupted(self) -> None:
        """Ctrl-C in a call hangs up: the other party sees no lost peer, and the exit code is 130."""
        self.server()
        bob = self.command("answer", "bob")
        bob.waitFor("Waiting for a call")
        alice = self.command("call", "alice", "bob")
        alice.waitFor("In a call")
        bob.waitFor("In a call")
        alice.signal(INTERRUPT)
        self.assertEqual(alice.wait(), 130)
        bob.waitFor("hung up")
        self.assertEqual(bob.wait(), 0)

    def test_noServer(self) -> None:
        """Without a server the command says what to do, in a line or two, and its exit code is 3."""
        send = self.command("send", "alice", "bob", "hello")
        self.assertEqual(send.wait(), 3)
        self.assertIn("twistd -n wecompany", "\n".join(send.lines))
        self.assertNotIn("Traceback", "\n".join(send.lines))
