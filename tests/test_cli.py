"""The command: what it takes, what it shows, what it does against a server in memory, and its exit codes."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import getpass
import io
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest import mock

import twisted.internet
from hypothesis import given
from hypothesis import strategies as st
from twisted.internet import reactor
from twisted.internet.defer import Deferred, maybeDeferred
from twisted.internet.endpoints import HostnameEndpoint, TCP4ClientEndpoint
from twisted.python import log
from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder
from tests.mediasample import makeSample
from tests.test_client import ClientTestCase, Heard, ScriptedConnection, ScriptedServer
from wecompany import __version__, media
from wecompany.cli import main, makeParser, running, talk, terminal
from wecompany.cli.chat import Chat
from wecompany.cli.progress import PlainProgress, showProgress, size
from wecompany.cli.running import Problem, endpointOf, printable, serverEndpoint, serverName, textTime
from wecompany.cli.terminal import Terminal
from wecompany.cli.tokens import loadToken, saveToken, tokenFile
from wecompany.client import Client
from wecompany.media import MediaFile, MediaUnavailable
from wecompany.testing import FakeClient, MemoryServer, Message
from wecompany.wire import (
    EndCode,
    ErrorCode,
    FileOffer,
    FileOp,
    MediaKind,
    MessageType,
    RejectCode,
    decodeFrames,
    encodeError,
    encodeFrame,
    encodeOffset,
    encodeU32,
)

TEXT = MessageType.TEXT
FILE = MessageType.FILE
EVIL = "\x1b]0;owned\x07\x1b[2J\r\u202e"


def isHarmless(shown: str) -> bool:
    """Return whether a terminal obeys nothing in what it is shown; the bell is our own."""
    return all(c.isprintable() or c in "\n\t\u200d\a" for c in shown)


class Teletype(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


# -- what is typed ---------------------------------------------------------------------------------------------------


class ParserTests(SynchronousTestCase):
    def parse(self, *words: str) -> argparse.Namespace:
        return makeParser().parse_args(words)

    def complaint(self, *words: str) -> str:
        """Return what is said about a command line that is wrong; its exit code is 2."""
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors), self.assertRaises(SystemExit) as left:
            self.parse(*words)
        self.assertEqual(left.exception.code, 2, words)
        self.assertNotIn("Traceback", errors.getvalue())
        return errors.getvalue()

    def test_folderIsMade(self) -> None:
        """Where files are to go into a folder that is not there yet, it is made."""
        folder = temporaryFolder(self) / "inbox"
        for _ in range(2):
            self.assertEqual(self.parse("receive-files", "--as", "bob", "--into", str(folder)).into, folder)
            self.assertTrue(folder.is_dir())

    def test_commands(self) -> None:
        """Each command takes what its help says."""
        options = self.parse("send", "--as", "alice", "bob", "hello")
        self.assertEqual((options.command, options.user, options.to, options.text), ("send", "alice", "bob", "hello"))
        self.assertEqual(options.server, "localhost:8888")
        options = self.parse("chat", "--as", "爱丽丝", "--server", "tls:example.com:1", "--into", "/")
        self.assertEqual((options.user, options.server, options.into), ("爱丽丝", "tls:example.com:1", Path("/")))
        self.assertEqual(self.parse("chat", "--as", "a").into, Path())
        options = self.parse("send-file", "--as", "alice", "bob", __file__)
        self.assertEqual(options.path, Path(__file__))
        options = self.parse("receive-files", "--as", "b", "--into", "/", "--count", "3", "--from", "x", "--from", "y")
        self.assertEqual((options.count, options.senders), (3, ["x", "y"]))
        options = self.parse("call", "--as", "alice", "bob", "--play", __file__, "--record", "x.ogg")
        self.assertEqual((options.play, options.record, options.tone), (Path(__file__), Path("x.ogg"), None))
        options = self.parse("answer", "--as", "bob", "--tone", "2.5")
        self.assertEqual((options.tone, options.senders), (2.5, None))
        self.assertIsNone(self.parse("users").user)
        self.assertEqual((self.parse("users").all, self.parse("users", "--all").all), (False, True))
        options = self.parse("login", "--as", "alice", "--signup", "--password-stdin")
        self.assertEqual((options.signup, options.passwordStdin), (True, True))
        self.assertEqual(self.parse("block", "--as", "alice", "bob").whom, "bob")
        for name in ("login", "logout", "passwd"):
            self.assertEqual(self.parse(name, "--as", "alice").command, name)
        options = self.parse("users", "--tls", "--ca", __file__, "--cert", f"{__file__},{os.__file__}")
        self.assertEqual((options.tls, options.ca), (True, Path(__file__)))
        self.assertEqual(options.certificate, (Path(__file__), Path(os.__file__)))
        self.assertEqual(self.parse("users", "--cert", __file__).certificate, (Path(__file__), Path(__file__)))

    def test_noPasswordThere(self) -> None:
        """A password is never a part of the command line, where others can see it."""
        for words in (("login", "--as", "alice", "secret"), ("passwd", "--as", "alice", "--password", "secret")):
            self.assertIn("unrecognized", self.complaint(*words))

    def test_wrong(self) -> None:
        """What is wrong is said, without a traceback, and the exit code is 2."""
        for words, said in (
            ((), "COMMAND"),
            (("fly",), "fly"),
            (("send", "bob", "hello"), "--as"),
            (("send", "--as", "alice", "bob"), "TEXT"),
            (("send", "--as", "#group", "bob", "x"), "'#group'"),
            (("send", "--as", "alice", "a/b", "x"), "'a/b'"),
            (("send", "--as", "\udcff", "bob", "x"), "UTF-8"),
            (("send", "--as", "x" * 129, "bob", "x"), "128"),
            (("send-file", "--as", "alice", "bob", "/no/such/file"), "not a file"),
            (("send-file", "--as", "alice", "bob", "/"), "not a file"),
            (("receive-files", "--as", "bob"), "--into"),
            (("send-file", "--as", "alice", "bob", "x" * 300), "not a file"),
            (("send-file", "--as", "alice", "bob", "~nobody-of-that-name/x"), "home"),
            (("receive-files", "--as", "bob", "--into", "/no/such"), "not a folder"),
            (("receive-files", "--as", "bob", "--into", "x" * 300), "not a folder"),
            (("receive-files", "--as", "bob", "--into", "/", "--count", "many"), "--count"),
            (("call", "--as", "a", "b", "--tone", "1", "--play", __file__), "not allowed with"),
            (("login",), "--as"),
            (("logout",), "--as"),
            (("block", "--as", "alice"), "WHOM"),
            (("block", "--as", "alice", "a/b"), "'a/b'"),
            (("users", "--ca", "/no/such"), "not a file"),
            (("users", "--cert", f"{__file__},/no/such"), "/no/such"),
        ):
            self.assertIn(said, self.complaint(*words))

    def test_senselessNumbers(self) -> None:
        """A number that makes no sense is refused before anything begins."""
        for tone in ("0", "-1", "nan", "inf", "1e12", "x"):
            self.assertIn("--tone", self.complaint("answer", "--as", "bob", f"--tone={tone}"))
        self.assertIn("--count", self.complaint("receive-files", "--as", "bob", "--into", "/", "--count=-1"))

    def test_help(self) -> None:
        """--help and --version tell what they should and exit with 0."""
        for words, said in (
            (("--help",), "Exit codes"),
            (("--version",), __version__),
            (("chat", "--help"), "--into"),
            (("call", "--help"), "--play"),
        ):
            shown = io.StringIO()
            with contextlib.redirect_stdout(shown), self.assertRaises(SystemExit) as left:
                main(words)
            self.assertEqual(left.exception.code, 0)
            self.assertIn(said, shown.getvalue())

    def test_badServer(self) -> None:
        """A server that is none is said in one line, before anything begins, and the exit code is 2."""
        self.patch(twisted.internet, "reactor", object())
        errors = io.StringIO()
        with contextlib.redirect_stderr(errors):
            self.assertEqual(main(["users", "--server", "localhost:0"]), 2)
        self.assertEqual(errors.getvalue().count("\n"), 1)
        self.assertIn("localhost:0", errors.getvalue())


class ServerEndpointTests(SynchronousTestCase):
    def test_hostAndPort(self) -> None:
        """HOST, HOST:PORT, and IPv6 addresses in brackets are what they say; without a port it is 8888."""
        for server, host, port in (
            ("localhost", b"localhost", 8888),
            ("example.com:9000", b"example.com", 9000),
            ("10.0.0.1:1", b"10.0.0.1", 1),
            ("[::1]:65535", b"::1", 65535),
            ("[fe80::1]", b"fe80::1", 8888),
        ):
            endpoint = serverEndpoint(reactor, server)
            self.assertIsInstance(endpoint, HostnameEndpoint)
            self.assertEqual((cast(Any, endpoint)._hostBytes, cast(Any, endpoint)._port), (host, port))

    def test_endpointString(self) -> None:
        """A Twisted client endpoint is taken as such."""
        endpoint = serverEndpoint(reactor, "tcp:10.0.0.1:9000:timeout=5")
        self.assertIsInstance(endpoint, (HostnameEndpoint, TCP4ClientEndpoint))
        for server in ("tls:example.com:443", "unix:/run/wecompany.sock"):
            self.assertNotIsInstance(serverEndpoint(reactor, server), TCP4ClientEndpoint)

    def test_rubbish(self) -> None:
        """Anything else is a Problem that names it."""
        for server in (
            "",
            ":",
            ":8888",
            "host:",
            "host:0",
            "host:65536",
            "host:-1",
            "host:x",
            "host:²",
            "host:" + "9" * 5_000,
            "::1",
            "a:b:1",
            "[::1:8888",
            "tcp:host",
            "tcp:host:port",
            "tls:",
            "ssl:",
        ):
            with self.assertRaises(Problem) as raised:
                serverEndpoint(reactor, server)
            self.assertIn(server, str(raised.exception))

    @given(st.text(max_size=30))
    def test_anything(self, server: str) -> None:
        """Whatever is typed, it is an endpoint or a Problem."""
        with contextlib.suppress(Problem):
            serverEndpoint(reactor, server)


class TlsOptionsTests(SynchronousTestCase):
    def options(self, *words: str) -> argparse.Namespace:
        return makeParser().parse_args(["users", *words])

    def test_plain(self) -> None:
        """Without options about TLS there is none, unless the endpoint says so."""
        endpoint = endpointOf(reactor, self.options("--server", "localhost:1"))
        self.assertIsInstance(endpoint, HostnameEndpoint)

    def test_tls(self) -> None:
        """With --tls HOST:PORT is reached over TLS."""
        for server in ("localhost:1", "[::1]:1", "localhost"):
            endpoint = endpointOf(reactor, self.options("--server", server, "--tls"))
            self.assertNotIsInstance(endpoint, HostnameEndpoint)

    def test_wrong(self) -> None:
        """What is wrong with them is a Problem that names it."""
        for words, said in (
            (("--server", "tls:localhost:1", "--tls"), "tls:localhost:1"),
            (("--server", "localhost:0", "--tls"), "localhost:0"),
            (("--ca", __file__), __file__),
            (("--cert", __file__), __file__),
        ):
            with self.assertRaises(Problem) as raised:
                endpointOf(reactor, self.options(*words))
            self.assertIn(said, str(raised.exception))
        options = self.options("--ca", __file__)
        options.ca = Path("/no/such/file")
        with self.assertRaises(Problem) as raised:
            endpointOf(reactor, options)
        self.assertIn("/no/such/file", str(raised.exception))

    def test_serverName(self) -> None:
        """A token is kept under the server, however that was typed; what was got over TLS is not sent without."""
        names = [
            serverName(self.options(*words))
            for words in (
                (),
                ("--server", "localhost"),
                ("--server", "LOCALHOST:8888"),
                ("--tls",),
                ("--server", "tls:localhost:8888"),
                ("--server", "localhost:8889"),
            )
        ]
        self.assertEqual(len(set(names[:3])), 1)
        self.assertEqual(names[3], names[4])
        self.assertEqual(len(set(names)), 3)


class PrintableTests(SynchronousTestCase):
    @given(st.text())
    def test_harmless(self, text: str) -> None:
        """Whatever the text, a terminal obeys nothing in it."""
        self.assertTrue(isHarmless(printable(text)))
        self.assertNotIn("\a", printable(text))

    def test_kept(self) -> None:
        """What can be shown stays as it is, emoji that are joined too; the rest is named."""
        for text in ("hello", "a\ttab", "再见", "👩\u200d💻"):
            self.assertEqual(printable(text), text)
        self.assertRegex(printable("two\nlines"), "^two\n +lines$")
        self.assertEqual(printable("\x1b[2J\r\x7f\u202e\udcff"), r"\x1b[2J\x0d\x7f\x202e\xdcff")


class TimeTests(SynchronousTestCase):
    def test_texts(self) -> None:
        """A text that has just come has the time of day, one that waited the date too, whatever its clock said."""
        self.assertRegex(textTime(None), r"^\d\d:\d\d$")
        self.assertRegex(textTime(1_700_000_000.5), r"^2023-11-1\d \d\d:\d\d$")
        for nonsense in (2.0**64 / 1000, 1e300):
            self.assertTrue(textTime(nonsense))


class TokenTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.config = temporaryFolder(self)
        self.patch(os, "environ", {"XDG_CONFIG_HOME": str(self.config), "HOME": str(self.config / "home")})

    def test_kept(self) -> None:
        """A token is kept for its server and user until it is removed or replaced."""
        self.assertEqual(loadToken("a:1", "alice"), b"")
        saveToken("a:1", "alice", b"1")
        saveToken("a:1", "爱丽丝", b"2")
        saveToken("b:1", "alice", b"3")
        saveToken("a:1", "alice", b"4")
        self.assertEqual(
            [loadToken("a:1", "alice"), loadToken("a:1", "爱丽丝"), loadToken("b:1", "alice")], [b"4", b"2", b"3"]
        )
        saveToken("a:1", "alice", b"")
        saveToken("a:1", "nobody", b"")
        self.assertEqual([loadToken("a:1", "alice"), loadToken("a:1", "爱丽丝")], [b"", b"2"])

    def test_private(self) -> None:
        """The file and its folder are the user's alone, though they were not before, and nothing else is left there."""
        tokenFile().parent.mkdir(mode=0o755)
        tokenFile().write_text("{}")
        tokenFile().chmod(0o644)
        before = os.umask(0)
        self.addCleanup(os.umask, before)
        saveToken("a:1", "alice", b"1")
        self.assertEqual(tokenFile().stat().st_mode & 0o777, 0o600)
        self.assertEqual(tokenFile().parent.stat().st_mode & 0o777, 0o700)
        self.assertEqual(list(tokenFile().parent.iterdir()), [tokenFile()])

    def test_atomic(self) -> None:
        """If the new file cannot be written the old one is still there, and nothing of the new."""
        saveToken("a:1", "alice", b"1")

        def full(descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        self.patch(os, "fsync", full)
        with self.assertRaises(Problem) as raised:
            saveToken("a:1", "alice", b"2")
        self.assertIn("No space", str(raised.exception))
        self.assertEqual(loadToken("a:1", "alice"), b"1")
        self.assertEqual(list(tokenFile().parent.iterdir()), [tokenFile()])

    def test_place(self) -> None:
        """It is in $XDG_CONFIG_HOME; where that is not set, or is no absolute path, in ~/.config."""
        self.assertEqual(tokenFile(), self.config / "wecompany" / "tokens.json")
        for wrong in ("", "relative"):
            os.environ["XDG_CONFIG_HOME"] = wrong
            self.assertEqual(tokenFile().parts[-3:], (".config", "wecompany", "tokens.json"))
        self.patch(Path, "home", mock.Mock(side_effect=RuntimeError("no home")))
        with self.assertRaises(Problem):
            tokenFile()

    def test_damaged(self) -> None:
        """A file that is damaged, or cannot be read, is said by its name, and is not overwritten."""
        tokenFile().parent.mkdir()
        for text in ("", "{", "[]", '{"a:1": 1}', '{"a:1": {"alice": 1}}', "[" * 100_000, "\xff"):
            tokenFile().write_bytes(text.encode("latin-1"))
            for use in (lambda: loadToken("a:1", "alice"), lambda: saveToken("a:1", "alice", b"1")):
                with self.assertRaises(Problem) as raised:
                    use()
                self.assertIn(str(tokenFile()), str(raised.exception))
            self.assertEqual(tokenFile().read_bytes(), text.encode("latin-1"))
        tokenFile().unlink()
        tokenFile().mkdir()
        with self.assertRaises(Problem):
            loadToken("a:1", "alice")


class ProgressTests(SynchronousTestCase):
    def test_size(self) -> None:
        """A size is shown with the unit that suits it."""
        for number, shown in (
            (0, "0 B"),
            (999, "999 B"),
            (1_000, "1.0 kB"),
            (1_048_576, "1.0 MB"),
            (2_500_000_000, "2.5 GB"),
            (9.9e12, "9.9 TB"),
            (5e15, "5000.0 TB"),
        ):
            self.assertEqual(size(number), shown)

    def test_plain(self) -> None:
        """Without a terminal there is a line for each tenth of the file, and no more."""
        stream = io.StringIO()
        progress = showProgress("x" + EVIL, stream)
        self.assertIsInstance(progress, PlainProgress)
        for done in range(0, 1_001, 10):
            progress(done, 1_000)
        progress(1_000, 1_000)
        progress.close()
        lines = stream.getvalue().splitlines()
        self.assertEqual(len(lines), 11)
        self.assertIn("  0 %  0 B of 1.0 kB", lines[0])
        self.assertIn("100 %  1.0 kB of 1.0 kB", lines[-1])
        self.assertTrue(isHarmless(stream.getvalue()))

    def test_empty(self) -> None:
        """An empty file is whole at once."""
        stream = io.StringIO()
        showProgress("x", stream)(0, 0)
        self.assertIn("100 %", stream.getvalue())

    def test_bar(self) -> None:
        """On a terminal there is a bar with the name as it is, brackets and all."""
        stream = Teletype()
        progress = showProgress("a[b].bin", stream)
        self.assertNotIsInstance(progress, PlainProgress)
        progress(500, 1_000)
        progress(1_000, 1_000)
        progress.close()
        self.assertIn("a[b].bin", stream.getvalue())
        self.assertIn("1.0", stream.getvalue())

    def test_noRich(self) -> None:
        """On a terminal without rich there are lines."""
        self.assertIsInstance(showProgress("x", Teletype(), rich=lambda name, stream: None), PlainProgress)
        with mock.patch.dict(sys.modules, {"rich.console": None}):
            self.assertIsInstance(showProgress("x", Teletype()), PlainProgress)


# -- a terminal ------------------------------------------------------------------------------------------------------


class FakeTerminal:
    """Stands where a terminal does: keeps what is shown."""

    def __init__(self, reactor: object, lineReceived: Callable[[str], None], ended: Callable[[], None]) -> None:
        self.type = lineReceived
        self.end = ended
        self.prompt = ""
        self.shown: list[str] = []
        self.rung = 0
        self.complete: Callable[[str, str], list[str]] = lambda before, word: []

    def start(self, complete: Callable[[str, str], list[str]]) -> None:
        self.complete = complete

    def close(self) -> None:
        """Nothing is left of it."""

    def show(self, text: str) -> None:
        self.shown.append(printable(text))

    def ring(self) -> None:
        self.rung += 1


class ChatTestCase(ClientTestCase):
    """Alice chats."""

    def setUp(self) -> None:
        super().setUp()
        self.patch(sys.modules["wecompany.cli.chat"], "Terminal", FakeTerminal)
        self.folder = temporaryFolder(self)
        self.chat = Chat(self.server.clock, "alice", self.folder)
        self.terminal = cast(FakeTerminal, self.chat._terminal)

    def begin(self, *others: str) -> list[FakeClient]:
        """Begin to chat while others are online, whom it returns."""
        clients = [self.server.login(name) for name in others]
        self.chat.client = self.start("alice", self.chat)
        self.chat.begin()
        self.shown()
        return clients

    def shown(self) -> str:
        """Return what was shown since one last asked."""
        self.server.pump()
        shown, self.terminal.shown[:] = "\n".join(self.terminal.shown), []
        return shown

    def type(self, line: str) -> str:
        """Type a line, and return what is shown then."""
        self.terminal.type(line)
        return self.shown()


class ChatTests(ChatTestCase):
    def test_greeting(self) -> None:
        """It begins with who one is, what one can do, and who is there."""
        self.server.login("carol")
        self.chat.client = self.start("alice", self.chat)
        self.chat.begin()
        shown = self.shown()
        for said in ("alice", "/help", "Online: carol"):
            self.assertIn(said, shown)
        self.assertEqual(self.terminal.prompt, "alice> ")

    def test_alone(self) -> None:
        """Alone, /users says so."""
        self.begin()
        self.assertEqual(self.type("/users"), "Nobody else is online yet.")

    def test_texts(self) -> None:
        """@name chooses and writes, a plain line goes to whom was chosen, // begins a text with a slash."""
        bob, carol = self.begin("bob", "carol")
        for line, receiver, text in (
            ("@bob hello  there ", bob, "hello  there"),
            ("  and more", bob, "and more"),
            ("@carol", None, ""),
            ("for carol", carol, "for carol"),
            ("//etc/passwd", carol, "/etc/passwd"),
            ("/to bob", None, ""),
            ("again", bob, "again"),
            ("", None, ""),
            ("@", bob, "@"),
            ("@ bob", bob, "@ bob"),
        ):
            self.assertEqual(self.type(line), "")
            for client in (bob, carol):
                expected = [Message(TEXT, "alice", text.encode())] if client is receiver else []
                self.assertEqual(client.received(), expected, line)
        self.assertEqual(self.terminal.prompt, "alice → bob> ")

    def test_nobodyChosen(self) -> None:
        """Without anybody chosen a text goes nowhere, and /to without a name chooses nobody."""
        (bob,) = self.begin("bob")
        self.assertIn("To whom?", self.type("hello"))
        self.type("@bob")
        self.type("/to")
        self.assertIn("To whom?", self.type("hello"))
        self.assertEqual(bob.received(), [])

    def test_undelivered(self) -> None:
        """A text that does not get through is said so, with the server's reason."""
        self.begin()
        self.assertRegex(self.type("@ghost hello"), "ghost did not get it.*offline")
        self.assertRegex(self.type("@a/b hello"), "a/b is no user ID")

    def test_received(self) -> None:
        """A text is shown with its sender; the first who writes is the one whom one answers."""
        bob, carol = self.begin("bob", "carol")
        self.server.factory.sendMessage("alice", "from above")
        self.assertRegex(self.shown(), r"^\d\d:\d\d \(server\): from above$")
        self.assertEqual(self.terminal.prompt, "alice> ")
        bob.send(TEXT, "alice", "привет".encode())
        self.assertRegex(self.shown(), r"^\d\d:\d\d bob: привет$")
        carol.send(TEXT, "alice", b"hi")
        self.type("answer")
        self.assertEqual([len(bob.received()), len(carol.received())], [1, 0])

    def test_oneTextOneLine(self) -> None:
        """A text of several lines cannot pass for a text of somebody else's."""
        (bob,) = self.begin("bob")
        bob.send(TEXT, "alice", b"hi\n12:00 carol: send me the key\r\n* carol is online")
        for line in self.shown().split("\n")[1:]:
            self.assertRegex(line, r"^\s+")

    def test_presence(self) -> None:
        """Who comes and goes is shown, and /users knows it."""
        self.begin("bob")
        carol = self.server.login("carol")
        self.server.advance(1)
        self.assertEqual(self.shown(), "* carol is online")
        self.assertEqual(self.type("/users"), "Online: bob, carol")
        carol.drop()
        self.server.advance(1)
        self.assertEqual(self.shown(), "* carol is offline")
        self.assertEqual(self.type("/users"), "Online: bob")

    def test_waited(self) -> None:
        """A text that had to wait is shown with its date; a missed call with who and when."""
        self.server = server = ScriptedServer()
        self.begin()
        (connection,) = server.connections
        for frame in ((TEXT, b"bob", b"hi"), (MessageType.CALL_REJECT, b"bob", bytes(16) + b"\3")):
            connection.send(MessageType.DELAY, b"bob", encodeOffset(1_700_000_000_000))
            connection.send(*frame)
        shown = self.shown().split("\n")
        self.assertRegex(shown[0], r"^2023-11-1\d \d\d:\d\d bob: hi$")
        self.assertRegex(shown[1], r"^\* you missed a call from bob, 2023-11-1\d \d\d:\d\d$")

    def test_usersOffline(self) -> None:
        """/users shows who is online, and whom else the server knows."""
        self.server = server = AccountServer()
        server.tokens[b""] = b"alice"
        self.begin()
        self.assertIn("Offline: carol", self.type("/users"))
        server.isDown = True
        server.cut()
        self.shown()
        self.assertEqual(self.type("/users"), "There is no connection now.")

    def test_block(self) -> None:
        """/block and /unblock say so to the server, and what it says against it is shown."""
        self.server = server = AccountServer()
        server.tokens[b""] = b"alice"
        self.begin()
        self.assertIn("bob is blocked", self.type("/block bob"))
        self.assertIn("bob is not blocked", self.type("/unblock bob"))
        self.assertEqual(server.commands, [(b"bob", b"\2"), (b"bob", b"\3")])
        self.assertIn("Whom?", self.type("/block"))
        server.connections[0].sendBytes(b"")
        self.assertIn("!", self.type("/block a/b"))

    def test_expired(self) -> None:
        """If the server does not know the user any more the chat ends, and says how to come back."""
        self.chat = Chat(self.server.clock, "alice", self.folder, "log in first: so")
        self.terminal = cast(FakeTerminal, self.chat._terminal)
        self.server = server = AccountServer()
        server.tokens[b""] = b"alice"
        self.begin()
        server.tokens.clear()
        server.cut()
        server.advance(2)
        shown = self.shown()
        self.assertIn("who are you?", shown)
        self.assertIn("log in first: so", shown)
        self.assertEqual(self.successResultOf(self.chat.finished), 3)

    def test_unknown(self) -> None:
        """An unknown command is said so, harmlessly."""
        self.begin()
        shown = self.type("/fly\x1b[2J away")
        self.assertIn("/fly", shown)
        self.assertIn("/help", shown)
        self.assertTrue(isHarmless(shown))

    def test_help(self) -> None:
        """/help names every command."""
        self.begin()
        shown = self.type("/help")
        for command in self.terminal.complete("", "/"):
            self.assertIn(command.strip(), shown)

    def test_quit(self) -> None:
        """/quit and the end of the input leave with 0, and doing it twice does no harm."""
        for leave in (lambda: self.type("/quit"), self.terminal.end):
            leave()
            leave()
            self.assertEqual(self.successResultOf(self.chat.finished), 0)
            self.chat.finished = Deferred()

    def test_completion(self) -> None:
        """Tab completes commands and names at the beginning of a line, and names further on."""
        self.begin("bob", "bobby", "carol")
        complete = self.terminal.complete
        self.assertEqual(complete("", "@bo"), ["@bob ", "@bobby "])
        self.assertEqual(complete("", "/us"), ["/users "])
        self.assertEqual(complete("/call ", "c"), ["carol "])
        self.assertEqual(complete("/call ", "x"), [])
        self.assertEqual(complete("", "")[0], "/accept ")

    def test_connection(self) -> None:
        """A lost connection and its return are shown; when one leaves oneself, nothing is."""
        self.begin()
        self.server.cut()
        self.assertRegex(self.shown(), "^! .*trying")
        self.assertIn("did not get it", self.type("@bob hello"))
        self.server.advance(2)
        self.assertIn("* connected again", self.shown())
        self.type("/quit")
        self.server.cut()
        self.assertEqual(self.shown(), "")

    def test_watchFails(self) -> None:
        """If the server does not tell who is online, that is shown."""
        self.chat.client = self.make("alice", self.chat)
        self.chat.begin()
        self.assertIn("did not work", self.shown())

    def test_harmless(self) -> None:
        """Whatever a server sends, no escape sequence reaches the terminal."""
        self.server = server = ScriptedServer()
        self.begin()
        (connection,) = server.connections
        evil = EVIL.encode()
        callId = bytes(16)
        name = FileOffer(1, bytes(32), "x\u202e").encode()
        for messageType, userId, data in (
            (TEXT, evil, evil),
            (MessageType.PRESENCE, evil, b"\1"),
            (MessageType.PRESENCE, evil, b"\0"),
            (MessageType.PRESENCE, b"", bytes(4)),
            (MessageType.PRESENCE, evil, b"\0"),
            (MessageType.CALL_REQUEST, evil, callId + b"\0"),
            (MessageType.CALL_ACCEPT, evil, callId),
            (MessageType.CALL_END, evil, callId + b"\0" + evil),
            (FILE, evil, bytes((FileOp.OFFER,)) + callId + name),
            (FILE, evil, bytes((FileOp.CANCEL,)) + callId + b"\0" + evil),
            (MessageType.ERROR, evil, encodeError(99, 99, EVIL)),
        ):
            connection.send(messageType, userId, data)
            shown = self.shown()
            self.assertTrue(isHarmless(shown), shown)
        self.terminal.type(f"@x{EVIL} hi")
        self.terminal.type(f"/call x{EVIL}")
        self.terminal.type(f"/file /no{EVIL} x")
        self.terminal.type(f"/file {__file__} x{EVIL}")
        connection.refuse(ErrorCode.REPLACED, EVIL)
        shown = self.shown()
        self.assertTrue(isHarmless(shown), shown)
        self.assertTrue(isHarmless(self.terminal.prompt), self.terminal.prompt)

    def test_replaced(self) -> None:
        """When the server does not want this user any more, the chat ends with 3 and says why."""
        self.server = server = ScriptedServer()
        self.begin()
        server.connections[0].refuse(ErrorCode.REPLACED, "elsewhere")
        self.assertIn("elsewhere", self.shown())
        self.assertEqual(self.successResultOf(self.chat.finished), 3)


class ChatCallTests(ChatTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.bobHeard = Heard()
        self.bob = self.start("bob", self.bobHeard)
        self.begin()

    def test_outgoing(self) -> None:
        """/call rings, says when it is taken, how to hang up, and how long it lasted; /end hangs up."""
        self.assertIn("rings", self.type("/call bob"))
        (call,) = self.bobHeard.calls
        self.assertFalse(call.isVideo)
        call.accept()
        self.assertRegex(self.shown(), "in a call with bob.*/end")
        call.sendMedia(b"\0" * 2_000)
        self.server.pump()
        shown = self.type("/end good night")
        self.assertRegex(shown, r"call with bob is over after \d+ s: hung up: good night, 2.0 kB")
        self.assertEqual(call.outcome and call.outcome.text, "good night")

    def test_video(self) -> None:
        """/call NAME video is a video call, and without a name it calls whom one writes to."""
        self.type("/to bob")
        self.type("/call")
        self.type("/end")
        self.type("/call bob video")
        self.assertEqual([call.isVideo for call in self.bobHeard.calls], [False, True])
        self.assertIsNone(self.bobHeard.calls[1].outcome)

    def test_noCall(self) -> None:
        """Without a name, or where it cannot ring, that is said."""
        self.assertIn("Whom?", self.type("/call"))
        self.assertRegex(self.type("/call ghost"), "no call with ghost: offline")
        self.assertEqual(self.type("/end"), "There is no call.")

    def test_notTaken(self) -> None:
        """A call that is not taken is over without a time."""
        self.type("/call bob")
        self.bobHeard.calls[0].reject(RejectCode.BUSY, f"later{EVIL}")
        shown = self.shown()
        self.assertRegex(shown, "call with bob is over: busy: later")
        self.assertTrue(isHarmless(shown))

    def test_incoming(self) -> None:
        """An incoming call is announced with what one can do, and /accept takes it."""
        call = self.settled(self.bob.call("alice", isVideo=True))
        self.assertRegex(self.shown(), "video call from bob: /accept or /reject")
        self.assertEqual(self.terminal.rung, 1)
        self.assertIn("in a call with bob", self.type("/accept"))
        self.assertTrue(call.isActive)
        self.assertIn("Nothing waits", self.type("/accept"))
        self.assertIn("Nothing waits", self.type("/reject"))
        call.end()
        self.assertIn("is over", self.shown())

    def test_rejected(self) -> None:
        """/reject takes a reason, apostrophes and all."""
        for line, reason in (("/reject", ""), ("/reject it's late", "it's late"), ('/reject "not now"', "not now")):
            call = self.settled(self.bob.call("alice"))
            self.assertIn("call from bob", self.shown())
            self.assertIn("is over: declined", self.type(line))
            self.assertEqual(call.outcome and call.outcome.text, reason)

    def test_reasonTooLong(self) -> None:
        """A reason that is too long is said so, and does not leave the call ringing."""
        call = self.settled(self.bob.call("alice"))
        self.type("/reject " + "x" * 2_000)
        self.assertIsNotNone(call.outcome)


class ChatFileTests(ChatTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.bobHeard = Heard()
        self.bob = self.start("bob", self.bobHeard)
        self.begin()
        self.path = temporaryFolder(self) / "my report.txt"
        self.path.write_text("text")

    def test_sent(self) -> None:
        """/file offers a file, whose name may be quoted, and tells when it is there."""
        self.assertEqual(self.type(f"/file '{self.path}' bob"), "* offering my report.txt to bob")
        self.settled(self.bobHeard.files[0].accept(self.folder))
        self.assertEqual(self.shown(), "* bob has received my report.txt")

    def test_declined(self) -> None:
        """A file that does not get through is said so; without a name it goes to whom one writes to."""
        self.type("/to bob")
        self.type(f"/file '{self.path}'")
        self.bobHeard.files[0].decline("no")
        self.assertIn("my report.txt did not get through: declined: no", self.shown())

    def test_wrong(self) -> None:
        """What is missing is said."""
        self.assertIn("Which?", self.type("/file"))
        self.assertIn("To whom?", self.type(f"/file '{self.path}'"))
        self.assertIn("not a file", self.type("/file /no/such bob"))
        self.assertIn("not a file", self.type("/file / bob"))

    def test_offered(self) -> None:
        """An offered file is announced; /accept takes the oldest, and says where it is."""
        sent = self.bob.sendFile("alice", self.path)
        self.assertEqual(self.shown(), "* bob offers my report.txt (4 B): /accept or /reject")
        shown = self.type("/accept")
        self.assertIn("taking my report.txt", shown)
        self.assertIn(f"{self.folder / 'my report.txt'} is complete", shown)
        self.settled(sent)
        self.assertIn("Nothing waits", self.type("/accept"))

    def test_rejected(self) -> None:
        """/reject declines it with a reason."""
        sent = self.bob.sendFile("alice", self.path)
        self.server.pump()
        self.assertIn("my report.txt declined", self.type("/reject too big"))
        self.assertEqual(self.failed(sent, Exception).text, "too big")

    def test_withdrawn(self) -> None:
        """An offer that is withdrawn is said so, and can be taken no more."""
        self.bob.sendFile("alice", self.path).addErrback(lambda _: None)
        self.server.pump()
        self.cutOff("bob")
        self.assertIn("bob offers my report.txt no more", self.shown())
        self.assertIn("Nothing waits", self.type("/accept"))

    def test_cannotBeKept(self) -> None:
        """A file that cannot be written is said so."""
        self.chat._folder = self.folder / "missing"
        self.bob.sendFile("alice", self.path).addErrback(lambda _: None)
        self.server.pump()
        self.assertIn("my report.txt did not arrive", self.type("/accept"))


class TerminalTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.out = io.StringIO()
        self.lines: list[str] = []

    def terminal(self, isTerminal: bool) -> Terminal:
        """Return a terminal, or what stands in its place in a pipe."""
        self.out = Teletype() if isTerminal else io.StringIO()
        self.patch(sys, "stdout", self.out)
        self.patch(sys, "stdin", Teletype() if isTerminal else io.StringIO())
        reactor = SimpleNamespace(callFromThread=lambda f, *arguments: f(*arguments))
        return Terminal(reactor, self.lines.append, lambda: self.lines.append("(end)"))

    def test_pipe(self) -> None:
        """Into a pipe go whole lines and nothing else."""
        piped = self.terminal(False)
        piped.show("hello")
        piped.ring()
        self.assertEqual(self.out.getvalue(), "hello\n")

    def test_harmless(self) -> None:
        """Whatever is shown, the terminal obeys nothing in it; its bell rings when it is told to, and only then."""
        for isTerminal in (False, True):
            shown = self.terminal(isTerminal)
            shown.prompt = ""
            shown.show(EVIL)
            self.assertTrue(isHarmless(self.out.getvalue().removeprefix("\r\x1b[K")))
            self.assertNotIn("\a", self.out.getvalue())
        shown.ring()
        self.assertIn("\a", self.out.getvalue())

    def test_above(self) -> None:
        """On a terminal a message stands above the prompt, and what is being typed is there again."""
        self.patch(terminal, "_readline", lambda: SimpleNamespace(get_line_buffer=lambda: "half a li"))
        shown = self.terminal(True)
        shown.prompt = "alice> "
        shown._isAsking = True
        shown._atPrompt.set()
        shown.show("hello")
        self.assertEqual(self.out.getvalue(), "\r\x1b[Khello\nalice> half a li")

    def test_noReadline(self) -> None:
        """A system without readline has a terminal, too."""
        with mock.patch.dict(sys.modules, {"readline": None}):
            shown = self.terminal(True)
        shown.show("early")
        self.assertEqual(self.out.getvalue(), "early\n", "there is no prompt yet")
        shown._isAsking = True
        shown._atPrompt.set()
        shown.show("hello")
        shown.close()
        self.assertEqual(self.out.getvalue(), "early\n\r\x1b[Khello\n> \n")

    def test_lines(self) -> None:
        """Each line is handed over, with the prompt that the one before led to, until there are no more."""
        reading = self.terminal(True)
        prompts: list[str] = []
        lines = iter(["one", "two"])

        def read(prompt: str) -> str:
            prompts.append(prompt)
            reading.prompt = f"{len(prompts)}> "
            try:
                return next(lines)
            except StopIteration:
                raise EOFError from None

        self.patch(builtins, "input", read)
        reading._read()
        self.assertEqual(self.lines, ["one", "two", "(end)"])
        self.assertEqual(prompts, ["> ", "1> ", "2> "])

    def test_pipedLines(self) -> None:
        """From a pipe lines come as they are, the last one without its end too; what is no UTF-8 does no harm."""
        reading, writing = os.pipe()
        with os.fdopen(reading) as stdin:
            piped = self.terminal(False)
            self.patch(sys, "stdin", stdin)
            os.write(writing, "one\n\n二\nthree \udcff\nfour".encode("utf-8", "surrogateescape"))
            os.close(writing)
            before = set(threading.enumerate())
            piped.start(lambda before, word: [])
            for thread in set(threading.enumerate()) - before:
                thread.join(20)
            self.assertEqual(self.lines, ["one", "", "二", "three \ufffd", "four", "(end)"])
            self.assertEqual(self.out.getvalue(), "")

    def test_completer(self) -> None:
        """The readline module is told how to complete."""
        told: dict[str, Any] = {}
        readline = SimpleNamespace(
            get_line_buffer=lambda: "/call bo",
            get_begidx=lambda: 6,
            set_completer=lambda f: told.update(completer=f),
            set_completer_delims=lambda delims: told.update(delims=delims),
            set_pre_input_hook=lambda f: told.update(hook=f),
            parse_and_bind=lambda line: told.update(bound=line),
        )
        self.patch(terminal, "_readline", lambda: readline)
        reading = self.terminal(True)
        self.patch(reading, "_read", lambda: None)
        reading.start(lambda before, word: [f"{before}{word}{end}" for end in ("b ", "bby ")])
        self.assertEqual((told["delims"], told["bound"]), (" ", "tab: complete"))
        self.assertEqual([told["completer"]("bo", state) for state in range(3)], ["/call bob ", "/call bobby ", None])

    def test_restored(self) -> None:
        """The terminal is left as it was found; where there is none, nothing happens."""
        main, side = pty.openpty()
        self.addCleanup(os.close, main)
        import termios

        with os.fdopen(side, "r") as stdin:
            self.patch(sys, "stdin", stdin)
            before = termios.tcgetattr(stdin)
            with terminal.terminalRestored():
                changed = termios.tcgetattr(stdin)
                changed[3] &= ~termios.ECHO
                termios.tcsetattr(stdin, termios.TCSANOW, changed)
                self.assertNotEqual(termios.tcgetattr(stdin), before)
            self.assertEqual(termios.tcgetattr(stdin), before)

    def test_nothingToRestore(self) -> None:
        """Where there is no terminal there is nothing to be restored."""
        with Path(os.devnull).open() as nothing:
            for stdin in (io.StringIO(), nothing):
                self.patch(sys, "stdin", stdin)
                entered = False
                with terminal.terminalRestored():
                    entered = True
                self.assertTrue(entered)


# -- the commands ----------------------------------------------------------------------------------------------------


class FakeThreads:
    """A thread pool without threads."""

    def callInThreadWithCallback(self, done: Callable[[bool, Any], None], f: Callable[..., Any], *a: Any) -> None:
        maybeDeferred(f, *a).addCallbacks(lambda result: done(True, result), lambda failure: done(False, failure))


class FakeReactor:
    """A reactor whose time is that of a server in memory."""

    def __init__(self, server: MemoryServer) -> None:
        self._server = server
        self._clock = server.clock
        self.callLater = self._clock.callLater
        self.seconds = self._clock.seconds
        self.running = False
        self._stopped = False
        self._first: list[Callable[[], object]] = []
        self._shutDown: list[Callable[[], Deferred[None] | None]] = []

    def callWhenRunning(self, f: Callable[[], object]) -> None:
        self._first.append(f)

    def callFromThread(self, f: Callable[..., object], *arguments: object) -> None:
        self._clock.callLater(0, f, *arguments)

    def getThreadPool(self) -> FakeThreads:
        return FakeThreads()

    def addSystemEventTrigger(self, phase: str, event: str, f: Callable[[], Deferred[None] | None]) -> None:
        assert (phase, event) == ("before", "shutdown")
        self._shutDown.append(f)

    def stop(self) -> None:
        assert self.running
        assert not self._stopped
        self._stopped = True

    def run(self) -> None:
        self.running = True
        for f in self._first:
            f()
        while not self._stopped:
            self._server.advance(0.05)
            assert self.seconds() < 10_000, "the command does not end"
        waiting = [result for f in self._shutDown if (result := f()) is not None]
        for _ in range(200):
            self._server.advance(0.05)
        assert all(result.called for result in waiting), "the command does not end when it is told to"
        self.running = False


class CommandTestCase(ClientTestCase):
    """Runs commands against a server in memory."""

    def setUp(self) -> None:
        super().setUp()
        self.folder = temporaryFolder(self)
        self.config = temporaryFolder(self)
        self.out, self.err = "", ""
        self.patch(talk, "LINGER", 0.5)

    def at(self, seconds: float, f: Callable[..., object], *arguments: object) -> None:
        """Let something happen so many seconds after the command was started."""
        self.server.clock.callLater(seconds, f, *arguments)

    def run_(self, *words: str, faulty: bool = False) -> int:
        """Run a command, and return its exit code; only where it is faulty there is a traceback."""
        reactor = FakeReactor(self.server)
        self.reactor = reactor
        self.patch(twisted.internet, "reactor", reactor)
        self.patch(running, "serverEndpoint", lambda reactor, server: self.server.endpoint())
        self.patch(os, "environ", {**os.environ, "XDG_CONFIG_HOME": str(self.config)})
        out, err = io.StringIO(), io.StringIO()
        self.patch(log, "logerr", err)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            code = main(words)
        self.out, self.err = out.getvalue(), err.getvalue()
        self.assertEqual("Traceback" in self.err, faulty, self.err)
        return code

    def type(self, *lines: str) -> None:
        """Let that stand in the standard input."""
        data = "".join(line + "\n" for line in lines).encode("utf-8", "surrogateescape")
        self.patch(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "utf-8", "surrogateescape"))

    def interrupt(self) -> None:
        """Ctrl-C: it stops the reactor."""
        self.reactor.stop()


class MessageCommandTests(CommandTestCase):
    def test_send(self) -> None:
        """send sends one text, says nothing, and exits with 0."""
        bob = self.server.login("bob")
        self.assertEqual(self.run_("send", "--as", "alice", "bob", "hello"), 0)
        self.assertEqual(bob.received(), [Message(TEXT, "alice", b"hello")])
        self.assertEqual(self.out + self.err, "")

    def test_fromInput(self) -> None:
        """With - the text comes from the standard input."""
        bob = self.server.login("bob")
        self.patch(sys, "stdin", io.StringIO("two\nlines\n"))
        self.assertEqual(self.run_("send", "--as", "alice", "bob", "-"), 0)
        self.assertEqual(bob.received(), [Message(TEXT, "alice", b"two\nlines\n")])

    def test_noTextFromInput(self) -> None:
        """An input that is no text is one line and 2; Ctrl-C while it is read is 130."""
        self.patch(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff"), "utf-8"))
        self.assertEqual(self.run_("send", "--as", "alice", "bob", "-"), 2)
        self.assertRegex(self.err, "^wecompany: .*\n$")

        def interrupted(size: int) -> str:
            raise KeyboardInterrupt

        self.patch(sys, "stdin", SimpleNamespace(read=interrupted))
        self.assertEqual(self.run_("send", "--as", "alice", "bob", "-"), 130)

    def test_offline(self) -> None:
        """To somebody who is offline it is one line and 1."""
        self.assertEqual(self.run_("send", "--as", "alice", "bob", "hello"), 1)
        self.assertEqual(self.err, "wecompany: offline: that user is offline\n")

    def test_noUtf8(self) -> None:
        """A text that is no UTF-8 is one line and no traceback."""
        self.server.login("bob")
        self.assertIn(self.run_("send", "--as", "alice", "bob", "\udcff"), (1, 2))
        self.assertRegex(self.err, "^wecompany: .*\n$")

    def test_noServer(self) -> None:
        """Without a server it is 3, says which, and how to start one."""
        self.server.isDown = True
        self.assertEqual(self.run_("send", "--as", "alice", "bob", "hello", "--server", "example:1"), 3)
        self.assertIn("cannot reach example:1", self.err)
        self.assertIn("twistd -n wecompany", self.err)

    def test_idInUse(self) -> None:
        """If the server does not take the user it is 3, in one line."""
        other = self.server.login("alice")
        self.at(1, other.send, MessageType.HEARTBEAT)
        self.assertEqual(self.run_("send", "--as", "alice", "bob", "hello"), 3)
        self.assertRegex(self.err, "^wecompany: the server does not take alice: .*in use.*\n$")

    def test_hostileServer(self) -> None:
        """Whatever a server refuses the user with, no escape sequence of its reaches the terminal."""
        self.server = server = ScriptedServer()
        server.greeting = encodeFrame(MessageType.ERROR, b"", encodeError(ErrorCode.FORBIDDEN, 7, EVIL))
        self.at(1, lambda: server.connections[0].transport.loseConnection())
        self.assertEqual(self.run_("users"), 3)
        self.assertTrue(isHarmless(self.err), self.err)

    def test_silentServer(self) -> None:
        """A server that does not answer is given up, with 3."""
        self.server = server = ScriptedServer()
        server.greeting = b""
        self.assertEqual(self.run_("users"), 3)
        self.assertEqual(self.err.count("\n"), 1)

    def test_replaced(self) -> None:
        """If another connection takes the user ID meanwhile it is 3."""
        self.server = server = ScriptedServer()
        server.answers = False
        self.at(1, lambda: server.connections[0].refuse(ErrorCode.REPLACED, "elsewhere"))
        self.assertEqual(self.run_("send", "--as", "alice", "bob", "hello"), 3)
        self.assertIn("elsewhere", self.err)

    def test_interrupted(self) -> None:
        """Ctrl-C is 130 and says nothing."""
        self.server = server = ScriptedServer()
        server.answers = False
        self.at(1, self.interrupt)
        self.assertEqual(self.run_("users"), 130)
        self.assertEqual(self.out + self.err, "")
        self.assertTrue(server.connections[0].isLost)

    def test_users(self) -> None:
        """users lists who is online, sorted and harmlessly, under an ID of its own."""
        for name in ("carol", "bob"):
            self.server.login(name)
        self.assertEqual(self.run_("users"), 0)
        self.assertEqual((self.out, self.err), ("bob\ncarol\n", ""))

    def test_usersOfNobody(self) -> None:
        """Where nobody is online the list is empty, and that is said beside it."""
        self.assertEqual(self.run_("users", "--as", "alice"), 0)
        self.assertEqual((self.out, self.err), ("", "Nobody else is online.\n"))

    def test_fault(self) -> None:
        """A fault of the command's own shows a traceback, for its author, and is 1."""

        self.patch(Client, "users", lambda self: self.sleep(1).addCallback(lambda _: 1 // 0))
        self.assertEqual(self.run_("users", faulty=True), 1)
        self.assertIn("ZeroDivisionError", self.err)


class AccountServer(ScriptedServer):
    """
    A server with accounts and a store.

    @ivar passwords: of each user; C{tokens} the valid ones.
    @ivar waiting: frames that follow a registration.
    """

    def __init__(self) -> None:
        super().__init__()
        self.passwords = {b"alice": b"secret"}
        self.tokens: dict[bytes, bytes] = {}
        self.waiting = b""
        self.commands: list[tuple[bytes, bytes]] = []

    def buildProtocol(self, addr: object) -> AccountConnection:
        connection = AccountConnection(self)
        self.connections.append(connection)
        return connection


class AccountConnection(ScriptedConnection):
    """Its end of a connection."""

    _server: AccountServer
    user = b""

    def dataReceived(self, data: bytes) -> None:
        for messageType, userId, body, _ in decodeFrames(data):
            self.frames.append((messageType, userId, body))
            if not self.user:
                self.register(messageType, userId, body)
            elif messageType == MessageType.LOGIN and body == b"\5":
                self.write(MessageType.AUTH_RESPONSE, b"", b"\1" + self.newToken(self.user))
            elif messageType == MessageType.LOGIN:
                self._server.commands.append((userId, body))
                self.command(userId, body)
            elif messageType == MessageType.HEARTBEAT:
                self.write(MessageType.HEARTBEAT, b"", body)
            elif messageType == MessageType.PRESENCE and userId:
                self.write(MessageType.PRESENCE, userId, b"\1")
            elif messageType == MessageType.PRESENCE:
                isAll = body == b"\3"
                if isAll:
                    self.write(MessageType.PRESENCE, b"carol", b"\0")
                self.write(MessageType.PRESENCE, b"bob", b"\1")
                self.write(MessageType.PRESENCE, b"", encodeU32(1 + isAll))
            elif messageType == TEXT and userId == b"mallory":
                self.write(MessageType.ERROR, userId, encodeError(ErrorCode.FORBIDDEN, TEXT, "not from you"))
            elif messageType == TEXT and userId != b"nobody":
                self.write(MessageType.ACK, b"", encodeU32(1))

    def write(self, messageType: int, userId: bytes, data: bytes) -> None:
        self.transport.write(encodeFrame(messageType, userId, data))

    def newToken(self, userId: bytes) -> bytes:
        token = b"token%d" % len(self._server.tokens)
        self._server.tokens[token] = userId
        return token

    def register(self, messageType: int, userId: bytes, data: bytes) -> None:
        server = self._server
        signsUp = messageType == MessageType.SIGNUP
        if signsUp:
            server.passwords.setdefault(userId, data)
        credential = data if signsUp else data[20:]
        if server.passwords.get(userId) != credential and server.tokens.get(credential) != userId:
            if signsUp:
                self.write(MessageType.AUTH_RESPONSE, userId, b"\0wrong user or password")
            else:
                why = "wrong user or password" if credential else "who are you?"
                self.write(MessageType.ERROR, userId, encodeError(ErrorCode.BAD_CREDENTIAL, messageType, why))
            self.transport.loseConnection()
            return
        self.user = userId
        if signsUp:
            self.write(MessageType.AUTH_RESPONSE, userId, b"\1" + self.newToken(userId))
        self.write(MessageType.HEARTBEAT, userId, bytes(16))
        if not signsUp:
            self.write(MessageType.ACK, b"", encodeU32(0))
        self.transport.write(server.waiting)

    def command(self, whom: bytes, data: bytes) -> None:
        server = self._server
        if data[0] == 0:
            server.tokens.pop(data[1:], None)
        elif data[0] == 1:
            end = 3 + int.from_bytes(data[1:3], "big")
            if server.passwords[self.user] != data[3:end]:
                self.write(MessageType.AUTH_RESPONSE, whom, b"\0wrong password")
                return
            server.passwords[self.user] = data[end:]
            server.tokens.clear()
        self.write(MessageType.AUTH_RESPONSE, whom, b"\1")


class AccountCommandTests(CommandTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.openServer = self.server
        self.accounts = self.server = AccountServer()

    def logIn(self) -> None:
        """Log in."""
        self.type("secret")
        self.assertEqual(self.run_("login", "--as", "alice", "--password-stdin"), 0)

    def test_login(self) -> None:
        """login keeps a token, which the commands to come use, and which is never shown; nor is the password."""
        self.assertEqual(self.run_("send", "--as", "alice", "bob", "hello"), 3)
        self.logIn()
        self.assertNotIn("token0", self.out + self.err)
        self.assertNotIn("secret", self.out + self.err)
        self.assertIn("Logged in as alice", self.err)
        for words in (("send", "--as", "alice", "bob", "hello"), ("users", "--as", "alice")):
            self.assertEqual(self.run_(*words), 0, self.err)
            self.assertEqual(self.accounts.connections[-1].frames[0][2][20:], b"token0")
        stored = list(self.config.rglob("*"))
        self.assertEqual([path.name for path in stored], ["wecompany", "tokens.json"])
        self.assertNotIn("secret", stored[1].read_text())

    def test_notLoggedIn(self) -> None:
        """Without a token that the server knows every command is 3 and says what to do."""
        for words in (
            ("send", "--as", "alice", "bob", "hello"),
            ("send-file", "--as", "alice", "bob", __file__),
            ("receive-files", "--as", "alice", "--into", str(self.folder)),
            ("call", "--as", "alice", "bob"),
            ("answer", "--as", "alice"),
            ("chat", "--as", "alice"),
            ("users", "--as", "alice"),
            ("block", "--as", "alice", "bob"),
        ):
            self.assertEqual(self.run_(*words), 3, words)
            self.assertEqual(
                self.err,
                "wecompany: the server does not take alice: who are you?\n"
                "      log in first: wecompany login --as alice\n",
            )
        self.assertEqual(self.run_("users"), 3)
        self.assertIn("--as ME", self.err)
        self.assertEqual(self.run_("users", "--as", "x y", "--server", "h:1"), 3)
        self.assertIn("wecompany login --as 'x y' --server h:1", self.err)

    def test_howItIsReached(self) -> None:
        """What one is told to do reaches the same server in the same way."""
        for words, said in ((("--tls",), " --tls"), (("--ca", __file__), f" --ca {__file__}"), ((), "")):
            options = makeParser().parse_args(["chat", "--as", "alice", "--server", "h:1", *words])
            options.isGuest = False
            self.assertEqual(running.logInText(options), f"log in first: wecompany login --as alice --server h:1{said}")

    def test_revokedMeanwhile(self) -> None:
        """If the token ends while a command runs, that command ends with 3 and says what to do."""
        self.logIn()
        self.at(1, self.accounts.tokens.clear)
        self.at(1, self.server.cut)
        self.assertEqual(self.run_("receive-files", "--as", "alice", "--into", str(self.folder)), 3)
        self.assertIn("log in first: wecompany login --as alice", self.err)

    def test_forbidden(self) -> None:
        """A text that its addressee does not take is 1: it is not the server that does not take this user."""
        self.logIn()
        self.assertEqual(self.run_("send", "--as", "alice", "mallory", "hello"), 1)
        self.assertEqual(self.err, "wecompany: forbidden: not from you\n")

    def test_replacedMeanwhile(self) -> None:
        """If another connection takes the user ID before a text is acknowledged it is 3, and said."""
        self.logIn()
        self.at(1, lambda: self.accounts.connections[-1].refuse(ErrorCode.REPLACED, "elsewhere"))
        self.assertEqual(self.run_("send", "--as", "alice", "nobody", "hello"), 3)
        self.assertIn("elsewhere", self.err)
        self.assertIn("not known", self.err)

    def test_wrongPassword(self) -> None:
        """A wrong password is 3, in one line, and keeps nothing."""
        self.type("wrong")
        self.assertEqual(self.run_("login", "--as", "alice", "--password-stdin"), 3)
        self.assertEqual(self.err, "wecompany: the server does not take alice: wrong user or password\n")
        self.assertEqual(list(self.config.rglob("*")), [])

    def test_signup(self) -> None:
        """--signup creates the account; on a terminal the password is typed twice, and not shown."""
        typed = ["new", "new"]
        prompts: list[str] = []

        def ask(prompt: str) -> str:
            prompts.append(prompt)
            return typed.pop(0)

        self.patch(getpass, "getpass", ask)
        self.assertEqual(self.run_("login", "--as", "dave", "--signup"), 0)
        self.assertEqual(self.accounts.passwords[b"dave"], b"new")
        self.assertEqual(len(prompts), 2)
        typed[:] = ["one", "two"]
        self.assertEqual(self.run_("login", "--as", "eve", "--signup"), 2)
        self.assertIn("different", self.err)
        self.assertNotIn(b"eve", self.accounts.passwords)

    def test_asksOnce(self) -> None:
        """Logging in asks once; without a terminal, or without a password, it is 2."""
        self.patch(getpass, "getpass", lambda prompt: "secret")
        self.assertEqual(self.run_("login", "--as", "alice"), 0)
        for failure in (EOFError(), getpass.GetPassWarning(), OSError()):
            self.patch(getpass, "getpass", mock.Mock(side_effect=failure))
            self.assertEqual(self.run_("login", "--as", "alice"), 2)
            self.assertIn("--password-stdin", self.err)
        self.patch(getpass, "getpass", mock.Mock(side_effect=KeyboardInterrupt))
        self.assertEqual(self.run_("login", "--as", "alice"), 130)

    def test_noPassword(self) -> None:
        """A password of no bytes, or of more than the protocol takes, is 2; the longest goes through."""
        self.accounts.passwords[b"alice"] = b"x" * 1_024
        for password, code in (("", 2), ("x" * 1_025, 2), ("x" * 5_000, 2), ("x" * 1_024, 0), ("\udcff", 2)):
            self.type(password)
            self.assertEqual(self.run_("login", "--as", "alice", "--password-stdin"), code)

    def test_textsStay(self) -> None:
        """A command that shows no texts leaves them with the server, and tells of missed calls."""
        self.accounts.waiting = (
            encodeFrame(TEXT, b"bob", b"hi")
            + encodeFrame(MessageType.DELAY, b"bob", encodeOffset(0))
            + encodeFrame(MessageType.CALL_REJECT, b"bob", bytes(16) + b"\3")
        )
        self.type("secret")
        for words in (
            ("login", "--as", "alice", "--password-stdin"),
            ("send", "--as", "alice", "bob", "hello"),
            ("users", "--as", "alice"),
            ("block", "--as", "alice", "b"),
        ):
            self.assertEqual(self.run_(*words), 0)
            self.assertNotIn("hi", self.out)
            self.assertIn("Missed call from bob", self.err)
            self.assertNotIn(MessageType.ACK, [frame[0] for frame in self.accounts.connections[-1].frames[1:]])

    def test_open(self) -> None:
        """A server that runs open gives no token, which is said, and is 0."""
        self.server = self.openServer
        self.logIn()
        self.assertIn("runs open", self.err)

    def test_logout(self) -> None:
        """logout revokes the token and forgets it; without one it is 2; one that has expired is forgotten too."""
        self.assertEqual(self.run_("logout", "--as", "alice"), 2)
        self.assertIn("not logged in", self.err)
        self.logIn()
        self.assertEqual(self.run_("logout", "--as", "alice"), 0)
        self.assertEqual((self.accounts.tokens, self.accounts.commands), ({}, [(b"", b"\0token0")]))
        self.assertEqual(self.run_("logout", "--as", "alice"), 2)
        self.logIn()
        self.accounts.tokens.clear()
        self.assertEqual(self.run_("logout", "--as", "alice"), 0)
        self.assertEqual(self.run_("logout", "--as", "alice"), 2)

    def test_logoutWithoutServer(self) -> None:
        """If the token could not be revoked it is kept, and that is 3."""
        self.logIn()
        self.server.isDown = True
        self.assertEqual(self.run_("logout", "--as", "alice"), 3)
        self.server.isDown = False
        self.assertEqual(self.run_("logout", "--as", "alice"), 0)

    def test_passwd(self) -> None:
        """passwd changes the password, and one is logged in with the new one."""
        self.logIn()
        self.type("secret", "better")
        self.assertEqual(self.run_("passwd", "--as", "alice", "--password-stdin"), 0, self.err)
        self.assertEqual(self.accounts.passwords[b"alice"], b"better")
        self.assertEqual(self.run_("users", "--as", "alice"), 0)
        self.assertNotIn("better", self.out + self.err)

    def test_passwdWrong(self) -> None:
        """If the old password is wrong that is said, and is 1; one stays logged in."""
        self.logIn()
        self.type("wrong", "better")
        self.assertEqual(self.run_("passwd", "--as", "alice", "--password-stdin"), 1)
        self.assertEqual(self.err, "wecompany: wrong password\n")
        self.assertEqual(self.run_("users", "--as", "alice"), 0)

    def test_block(self) -> None:
        """block and unblock say so to the server, and say nothing else."""
        self.logIn()
        for command, op in (("block", b"\2"), ("unblock", b"\3")):
            self.assertEqual(self.run_(command, "--as", "alice", "bob"), 0)
            self.assertEqual((self.out + self.err, self.accounts.commands.pop()), ("", (b"bob", op)))

    def test_allUsers(self) -> None:
        """users --all lists everybody whom the server knows, and who is online."""
        self.logIn()
        self.assertEqual(self.run_("users", "--as", "alice", "--all"), 0)
        self.assertEqual(self.out, "bob\tonline\ncarol\toffline\n")

    def test_tokenFileDamaged(self) -> None:
        """A file of tokens that is damaged is one line and 2."""
        (self.config / "wecompany").mkdir()
        (self.config / "wecompany" / "tokens.json").write_text("{")
        self.assertEqual(self.run_("users", "--as", "alice"), 2)
        self.assertRegex(self.err, "^wecompany: .*tokens.json is damaged.*\n$")


class AdminCommandTests(CommandTestCase):
    def test_admin(self) -> None:
        """admin works on the database itself: it needs no server and no reactor, and its exit code is the command's."""
        database = str(self.folder / "x.sqlite")
        self.server.isDown = True
        self.type("secret-of-alice")
        self.assertEqual(self.run_("admin", "add", "alice", "--database", database, "--password-stdin"), 0, self.err)
        self.assertEqual(self.run_("admin", "users", "--database", database), 0)
        self.assertIn("alice", self.out)
        self.assertEqual(self.run_("admin", "revoke", "bob", "--database", database), 1)
        self.assertFalse(self.reactor.running)

    def test_interrupted(self) -> None:
        """Ctrl-C while it asks for a password is 130."""
        self.patch(getpass, "getpass", mock.Mock(side_effect=KeyboardInterrupt))
        self.patch(sys, "stdin", Teletype())
        self.assertEqual(self.run_("admin", "add", "alice", "--database", str(self.folder / "x.sqlite")), 130)


class TransferCommandTests(CommandTestCase):
    def setUp(self) -> None:
        super().setUp()
        self.source = temporaryFolder(self) / "report.bin"
        self.source.write_bytes(os.urandom(300_000))

    def test_sendFile(self) -> None:
        """send-file says how far it is and that all is there, and exits with 0."""
        heard = Heard()
        self.start("bob", heard)
        self.at(1, lambda: heard.files[0].accept(self.folder))
        self.assertEqual(self.run_("send-file", "--as", "alice", "bob", str(self.source)), 0)
        self.assertEqual((self.folder / "report.bin").read_bytes(), self.source.read_bytes())
        self.assertIn("100 %", self.err)
        self.assertIn("bob has received report.bin", self.err)
        self.assertEqual(self.out, "")

    def test_declined(self) -> None:
        """A file that is not wanted is 1, with the reason."""
        heard = Heard()
        self.start("bob", heard)
        self.at(1, lambda: heard.files[0].decline(f"no{EVIL}"))
        self.assertEqual(self.run_("send-file", "--as", "alice", "bob", str(self.source)), 1)
        self.assertIn("declined: no", self.err)
        self.assertTrue(isHarmless(self.err))

    def test_offline(self) -> None:
        """A file to nobody is 1."""
        self.assertEqual(self.run_("send-file", "--as", "alice", "bob", str(self.source)), 1)
        self.assertIn("offline", self.err)

    def test_dropped(self) -> None:
        """A dropped connection is said, and its return, and the file arrives."""
        heard = Heard()
        self.start("bob", heard)
        self.source.write_bytes(os.urandom(3_000_000))
        cut = [False]

        def progress(done: int, total: int) -> None:
            if done > 1_000_000 and not cut[0]:
                cut[0] = True
                self.at(0, self.cutOff, "alice")

        self.at(1, lambda: heard.files[0].accept(self.folder, progress))
        self.assertEqual(self.run_("send-file", "--as", "alice", "bob", str(self.source)), 0)
        self.assertEqual((self.folder / "report.bin").read_bytes(), self.source.read_bytes())
        self.assertIn("trying to get it back", self.err)
        self.assertIn("Connected again", self.err)

    def receive(self, *more: str) -> int:
        return self.run_("receive-files", "--as", "bob", "--into", str(self.folder), *more)

    def test_receive(self) -> None:
        """receive-files takes what comes, prints where it is, and leaves after --count files."""
        alice = self.start("alice")
        second = self.source.with_name("second")
        second.write_bytes(b"2")
        self.at(1, lambda: alice.sendFile("bob", self.source))
        self.at(2, lambda: alice.sendFile("bob", second))
        self.assertEqual(self.receive("--count", "2"), 0)
        self.assertEqual(self.out, f"{self.folder / 'report.bin'}\n{self.folder / 'second'}\n")
        self.assertIn("alice sends report.bin (300.0 kB)", self.err)

    def test_noMoreThanCount(self) -> None:
        """With --count 1 one file is taken, and a second that is offered meanwhile is not begun."""
        alice = self.start("alice")
        second = self.source.with_name("second")
        second.write_bytes(b"2")
        results: list[Deferred[None]] = []
        self.at(1, lambda: results.extend(alice.sendFile("bob", path) for path in (self.source, second)))
        self.assertEqual(self.receive("--count", "1"), 0)
        self.assertEqual(len(list(self.folder.iterdir())), 1)
        self.successResultOf(results[0])
        self.failed(results[1], Exception)

    def test_from(self) -> None:
        """With --from only those senders' files are taken, and the others are told so."""
        carol, alice = self.start("carol"), self.start("alice")
        refused: list[Deferred[None]] = []
        self.at(1, lambda: refused.append(carol.sendFile("bob", self.source)))
        self.at(2, lambda: alice.sendFile("bob", self.source))
        self.assertEqual(self.receive("--count", "1", "--from", "alice", "--from", "dave"), 0)
        self.assertIn("only some senders", str(self.failed(refused[0], Exception)))
        self.assertNotIn("carol", self.err)

    def test_failing(self) -> None:
        """A file that fails is said, does not count, and the next one is taken."""
        alice = self.server.login("alice")
        good = self.start("carol")

        def fail() -> None:
            offer = FileOffer(10, bytes(32), "bad").encode()
            alice.send(FILE, "bob", bytes((FileOp.OFFER,)) + bytes(16) + offer)
            alice.send(FILE, "bob", bytes((FileOp.CANCEL,)) + bytes(16) + b"\1" + EVIL.encode())

        self.at(1, fail)
        self.at(2, lambda: good.sendFile("bob", self.source))
        self.assertEqual(self.receive("--count", "1"), 0)
        self.assertIn("bad: cancelled", self.err)
        self.assertTrue(isHarmless(self.err))

    def test_interrupted(self) -> None:
        """Ctrl-C ends it with 130, in the middle of a file too; what came is kept."""
        alice = self.server.login("alice")

        def begin() -> None:
            alice.send(FILE, "bob", bytes((FileOp.OFFER,)) + bytes(16) + FileOffer(10, bytes(32), "x").encode())
            alice.send(FILE, "bob", bytes((FileOp.CHUNK,)) + bytes(16) + bytes(8) + b"half")

        self.at(1, begin)
        self.at(2, self.interrupt)
        self.assertEqual(self.receive(), 130)
        self.assertEqual([path.read_bytes() for path in self.folder.iterdir()], [b"half"])
        self.assertEqual(self.server.factory.getOnlineUsers(), ["alice"])

    def test_replaced(self) -> None:
        """If the server does not want this user any more it is 3."""
        self.server = server = ScriptedServer()
        self.at(1, lambda: server.connections[0].refuse(ErrorCode.REPLACED, f"elsewhere{EVIL}"))
        self.assertEqual(self.receive(), 3)
        self.assertIn("elsewhere", self.err)
        self.assertTrue(isHarmless(self.err), self.err)


class ChatCommandTests(CommandTestCase):
    def test_chat(self) -> None:
        """chat ends with 0 when the person leaves, and tells the server."""
        terminals: list[FakeTerminal] = []

        def make(*arguments: Any) -> FakeTerminal:
            terminals.append(FakeTerminal(*arguments))
            return terminals[0]

        self.patch(sys.modules["wecompany.cli.chat"], "Terminal", make)
        bob = self.server.login("bob")
        self.at(1, lambda: terminals[0].type("@bob hello"))
        self.at(2, lambda: terminals[0].end())
        self.assertEqual(self.run_("chat", "--as", "alice"), 0)
        self.assertEqual(bob.received(), [Message(TEXT, "alice", b"hello")])
        self.assertEqual(self.server.factory.getOnlineUsers(), ["bob"])

    def test_interrupted(self) -> None:
        """Ctrl-C ends it with 130."""
        self.patch(sys.modules["wecompany.cli.chat"], "Terminal", FakeTerminal)
        self.at(1, self.interrupt)
        self.assertEqual(self.run_("chat", "--as", "alice"), 130)
        self.assertEqual(self.server.factory.getOnlineUsers(), [])


class TalkCommandTests(CommandTestCase):
    """The command on one side; on the other a client of the library, so that one process runs one command."""

    def setUp(self) -> None:
        super().setUp()
        self.heard = Heard()
        self.peer = self.start("peer", self.heard)
        self.media: list[bytes] = []

    def sample(self, name: str = "talk.ogg", seconds: float = 1.0, video: bool = False) -> Path:
        path = self.folder / name
        makeSample(path, seconds, video)
        return path

    def take(self, answer: bytes = b"") -> None:
        """Take the call that rings at the peer, and keep what comes."""
        call = self.heard.calls[-1]
        call.mediaReceived = self.media.append
        call.accept(answer)

    def ring(self, offer: bytes = b"", isVideo: bool = False) -> None:
        """Let the peer call."""
        self.calling = self.peer.call("me", isVideo, offer)
        self.calling.addCallback(self._keep).addErrback(lambda failure: self.heard.events.append(("failed", failure)))

    def _keep(self, call: Any) -> None:
        self.heard.calls.append(call)
        call.mediaReceived = self.media.append

    def hangUp(self) -> None:
        self.heard.calls[-1].end("bye")

    def play(self, path: Path, call: Any = None) -> None:
        """Let the peer send a file, all of it at once, and say that this was all."""
        call = call or self.heard.calls[-1]
        for frame in [*MediaFile(path), media.MediaFrame(MediaKind.OTHER, 0, 0, talk.END_OF_MEDIA)]:
            for piece in media.encodeFrame(frame):
                call.sendMedia(piece)

    def test_play(self) -> None:
        """call plays a file at its real pace and then hangs up; the exit code is 0."""
        for name, video in (("talk.ogg", False), ("talk.webm", True)):
            path = self.sample(name, video=video)
            self.media.clear()
            self.at(1, self.take)
            began = self.server.clock.seconds()
            self.assertEqual(self.run_("call", "--as", "me", "peer", "--play", str(path)), 0)
            reassembler = media.Reassembler()
            frames = [frame for piece in self.media if (frame := reassembler.feed(piece)) is not None]
            self.assertEqual(frames[:-1], list(MediaFile(path)))
            self.assertEqual(frames[-1].data, talk.END_OF_MEDIA)
            self.assertEqual(self.heard.calls[-1].isVideo, video)
            self.assertGreater(self.server.clock.seconds() - began, 1 + 1 + 0.5 - 0.1)
            self.assertIn(f"{len(frames) - 1} sent, 0 received, 0 lost", self.err)
            self.assertIn("hung up", self.err)

    def test_tone(self) -> None:
        """--tone plays a tone, and leaves no file behind."""
        self.at(1, self.take)
        self.assertEqual(self.run_("call", "--as", "me", "peer", "--tone", "0.2"), 0)
        self.assertGreater(len(self.media), 9)

    def test_record(self) -> None:
        """answer --record keeps what comes, every packet as it was, and hangs up when there is no more."""
        for name, video in (("heard.ogg", False), ("heard.webm", True)):
            path = self.sample("talk.webm", video=video)
            record = self.folder / name
            self.at(1, self.ring, MediaFile(path).description.encode(), video)
            self.at(2, self.play, path)
            self.assertEqual(self.run_("answer", "--as", "me", "--record", str(record)), 0)
            self.assertEqual([f.data for f in MediaFile(record)], [f.data for f in MediaFile(path)])
            self.assertIn("peer calls", self.err)

    def test_callRecords(self) -> None:
        """call --record keeps what the one who answers plays."""
        path = self.sample()
        record = self.folder / "heard.ogg"
        self.at(1, self.take, MediaFile(path).description.encode())
        self.at(2, self.play, path)
        self.assertEqual(self.run_("call", "--as", "me", "peer", "--record", str(record)), 0)
        self.assertEqual([f.data for f in MediaFile(record)], [f.data for f in MediaFile(path)])

    def test_bothWays(self) -> None:
        """A call goes on until both have played what they have."""
        path = self.sample(seconds=2)
        self.at(1, self.ring, MediaFile(path).description.encode())
        self.at(2, self.play, path)
        record = self.folder / "heard.ogg"
        self.assertEqual(self.run_("answer", "--as", "me", "--play", str(path), "--record", str(record)), 0)
        self.assertGreater(len(self.media), 100)
        self.assertTrue(record.exists())

    def test_peerHangsUp(self) -> None:
        """When the other party hangs up first the command ends with 0, and has kept what came."""
        path = self.sample()
        record = self.folder / "heard.ogg"
        self.at(1, self.ring, MediaFile(path).description.encode())
        self.at(2, lambda: self.heard.calls[-1].sendMedia(media.encodeFrame(next(iter(MediaFile(path))))[0]))
        self.at(3, self.hangUp)
        self.assertEqual(self.run_("answer", "--as", "me", "--record", str(record)), 0)
        self.assertIn("hung up: bye", self.err)
        self.assertEqual(len(list(MediaFile(record))), 1)

    def test_peerLost(self) -> None:
        """When the other party is lost for good the command ends with 1, and has kept what came."""
        path = self.sample()
        record = self.folder / "heard.ogg"
        self.at(1, self.ring, MediaFile(path).description.encode())
        self.at(2, lambda: self.heard.calls[-1].sendMedia(media.encodeFrame(next(iter(MediaFile(path))))[0]))
        self.at(3, self.peer.stop)
        self.assertEqual(self.run_("answer", "--as", "me", "--record", str(record)), 1)
        self.assertIn("peer lost", self.err)
        self.assertEqual(len(list(MediaFile(record))), 1)

    def test_listensOnly(self) -> None:
        """Without anything to play or record the call lasts until the other party hangs up."""
        self.at(1, self.take)
        self.at(500, self.hangUp)
        self.assertEqual(self.run_("call", "--as", "me", "peer"), 0)

    def test_nothingToRecord(self) -> None:
        """A caller that sends nothing can be answered with --record, and no file is made."""
        record = self.folder / "heard.ogg"
        self.at(1, self.ring)
        self.at(3, self.hangUp)
        self.assertEqual(self.run_("answer", "--as", "me", "--record", str(record)), 0)
        self.assertFalse(record.exists())

    def test_notTaken(self) -> None:
        """A call that is not taken is 1, with the reason."""
        self.at(1, lambda: self.heard.calls[-1].reject(RejectCode.BUSY, f"no{EVIL}"))
        self.assertEqual(self.run_("call", "--as", "me", "peer"), 1)
        self.assertIn("busy: no", self.err)
        self.assertTrue(isHarmless(self.err))
        self.assertEqual(self.run_("call", "--as", "me", "ghost"), 1)
        self.assertIn("offline", self.err)

    def test_noAnswer(self) -> None:
        """A call that nobody answers is 1."""
        self.assertEqual(self.run_("call", "--as", "me", "peer"), 1)
        self.assertIn("no answer", self.err)

    def test_interrupted(self) -> None:
        """Ctrl-C hangs up, keeps what was recorded, and is 130; while it rings it cancels."""
        path = self.sample()
        record = self.folder / "heard.ogg"
        self.at(1, self.ring, MediaFile(path).description.encode())
        self.at(2, lambda: self.heard.calls[-1].sendMedia(media.encodeFrame(next(iter(MediaFile(path))))[0]))
        self.at(3, self.interrupt)
        self.assertEqual(self.run_("answer", "--as", "me", "--record", str(record)), 130)
        outcome = self.heard.calls[-1].outcome
        self.assertEqual(outcome and outcome.code, EndCode.HUNG_UP)
        self.assertEqual(len(list(MediaFile(record))), 1)
        self.at(1, self.interrupt)
        self.assertEqual(self.run_("call", "--as", "me", "peer"), 130)
        outcome = self.heard.calls[-1].outcome
        self.assertEqual(outcome and outcome.code, EndCode.CANCELLED)
        self.at(1, self.interrupt)
        self.assertEqual(self.run_("answer", "--as", "me"), 130)

    def test_from(self) -> None:
        """With --from other callers are refused, and a second call while one is on is busy."""
        carol = self.server.login("carol")
        self.at(1, carol.send, MessageType.CALL_REQUEST, "me", b"\0")
        self.at(2, self.ring)
        self.at(4, self.hangUp)
        self.assertEqual(self.run_("answer", "--as", "me", "--from", "peer"), 0)
        self.assertEqual(carol.received()[-1].data[16], RejectCode.FORBIDDEN)

    def test_unsupported(self) -> None:
        """An offer that cannot be recorded is refused as unsupported, and the next call is taken."""
        webm = self.sample("talk.webm", video=True)
        record = self.folder / "heard.ogg"
        self.at(1, self.ring, b"nonsense")
        self.at(2, self.ring, MediaFile(webm).description.encode())
        self.at(3, self.ring)
        self.at(5, self.hangUp)
        self.assertEqual(self.run_("answer", "--as", "me", "--record", str(record)), 0)
        self.assertEqual(self.err.count("cannot be taken"), 2)
        codes = [call.outcome.code for call in self.heard.calls if call.outcome is not None]
        self.assertEqual(codes, [RejectCode.UNSUPPORTED, RejectCode.UNSUPPORTED, EndCode.HUNG_UP])

    def test_answerCannotBeRecorded(self) -> None:
        """An answer that cannot be recorded ends the call, with 2."""
        self.at(1, self.take, b"nonsense")
        record = self.folder / "heard.ogg"
        self.assertEqual(self.run_("call", "--as", "me", "peer", "--record", str(record)), 2)
        self.server.pump()
        self.assertIsNotNone(self.heard.calls[-1].outcome)

    def test_badFile(self) -> None:
        """A file that is no media is 2, before anybody is called."""
        path = self.folder / "x.ogg"
        path.write_text("no media")
        self.assertEqual(self.run_("call", "--as", "me", "peer", "--play", str(path)), 2)
        self.assertEqual(self.heard.calls, [])

    def test_noPyAV(self) -> None:
        """Without PyAV whatever needs it is 2 and says what to install, and the caller is not kept ringing."""

        def missing(*arguments: object) -> None:
            raise MediaUnavailable('media files need PyAV: pip install "wecompany[media]"')

        path = self.sample()
        offer = MediaFile(path).description.encode()
        self.patch(talk, "MediaFile", missing)
        self.patch(talk, "Recorder", missing)
        for words in (("--play", str(path)), ("--tone", "1")):
            with mock.patch.dict(sys.modules, {"av": None, "av.audio.stream": None}):
                self.assertEqual(self.run_("call", "--as", "me", "peer", *words), 2)
            self.assertIn("wecompany[media]", self.err)
        self.at(1, self.ring, offer)
        self.at(50, lambda: None if self.reactor._stopped else self.interrupt())
        self.assertEqual(self.run_("answer", "--as", "me", "--record", str(self.folder / "heard.ogg")), 2)
        self.assertIn("wecompany[media]", self.err)

    def test_dropped(self) -> None:
        """A connection that drops in a call is said, and its return, and the call goes on."""
        path = self.sample(seconds=10)
        self.at(1, self.take)
        self.at(3, self.cutOff, "me")
        self.assertEqual(self.run_("call", "--as", "me", "peer", "--play", str(path)), 0)
        self.assertIn("trying to get it back", self.err)
        self.assertIn("Connected again", self.err)

    def test_droppedAtTheEnd(self) -> None:
        """A connection that drops just before the end does not keep the call from ending."""
        path = self.sample(seconds=1)
        self.at(1, self.take)
        self.at(2, self.cutOff, "me")
        self.assertEqual(self.run_("call", "--as", "me", "peer", "--play", str(path)), 0)
        self.server.advance(20)
        self.assertIsNotNone(self.heard.calls[-1].outcome)

    def test_replacedWhileWaiting(self) -> None:
        """If the server does not want this user any more while it waits for a call it is 3."""
        self.server = server = ScriptedServer()
        self.at(1, lambda: server.connections[0].refuse(ErrorCode.REPLACED, f"elsewhere{EVIL}"))
        self.assertEqual(self.run_("answer", "--as", "me"), 3)
        self.assertTrue(isHarmless(self.err), self.err)

    def test_unreadableMiddle(self) -> None:
        """A file that cannot be read to its end ends the call, and says why."""
        path = self.sample()

        def fail(self: MediaFile) -> Any:
            raise media.MediaError("the disk is gone")
            yield

        self.patch(MediaFile, "__iter__", fail)
        self.at(1, self.take)
        self.run_("call", "--as", "me", "peer", "--play", str(path))
        self.assertIn("the disk is gone", self.err)

    def test_slowDisk(self) -> None:
        """What comes faster than it can be written is dropped past a bound, and counted."""
        self.patch(talk, "MAX_UNWRITTEN", 3)
        frames = list(MediaFile(self.sample()))
        written: list[object] = []
        busy: Deferred[None] = Deferred()
        waiting = [busy]

        def run(f: Callable[..., Any], *arguments: Any) -> Deferred[Any]:
            return waiting.pop().addCallback(lambda _: f(*arguments)) if waiting else maybeDeferred(f, *arguments)

        ear = talk._Ear(isRecorded=True)
        recorder = SimpleNamespace(write=written.append, close=lambda: written.append("closed"))
        recording = Deferred.fromCoroutine(ear.record(cast(Any, SimpleNamespace(runInThread=run)), cast(Any, recorder)))
        for frame in frames:
            for piece in media.encodeFrame(frame):
                ear.mediaReceived(piece)
        self.assertEqual((ear.received, ear.lost), (len(frames), len(frames) - 1 - 3))
        ear.finish()
        ear.finish()
        self.assertNoResult(recording)
        busy.callback(None)
        self.successResultOf(recording)
        self.assertEqual(written, [*frames[:4], "closed"])

    def test_notRecording(self) -> None:
        """Without a recording nothing is kept; what is no media ends nothing; what a lost connection cut is lost."""
        ear = talk._Ear(isRecorded=False)
        for frame in MediaFile(self.sample()):
            for piece in media.encodeFrame(frame):
                ear.mediaReceived(piece)
        self.assertEqual((ear.received > 3, ear.lost, len(ear._frames.pending)), (True, 0, 0))
        ear.mediaReceived(b"\3rubbish")
        ear.mediaReceived(media.encodeFrame(media.MediaFrame(MediaKind.OTHER, 0, 0, b"?"))[0])
        self.assertNoResult(ear.finished)
        half, _ = media.encodeFrame(media.MediaFrame(MediaKind.VIDEO_KEY, 0, 0, b"x" * 5_000))
        ear.mediaReceived(half)
        ear.connectionLost()
        ear.mediaReceived(half)
        ear.mediaReceived(media.encodeFrame(media.MediaFrame(MediaKind.VIDEO_KEY, 1, 0, b"x"))[0])
        self.assertEqual(ear.lost, 1)


class PtyTests(SynchronousTestCase):
    """The one thing that needs a real terminal: readline."""

    program = """
import sys
from wecompany.cli.terminal import Terminal, terminalRestored

class Reactor:
    def callFromThread(self, f, *arguments):
        f(*arguments)

def took(line):
    print("took", repr(line), flush=True)

terminal = Terminal(Reactor(), took, lambda: print("ended", flush=True))
terminal.prompt = "me> "
with terminalRestored():
    terminal.start(lambda before, word: [name for name in ("@bob ", "@carol ") if name.startswith(word)])
    import threading
    for thread in threading.enumerate():
        if thread is not threading.main_thread():
            terminal._atPrompt.wait()  # only now the terminal is readline's: what is typed before, the system may eat
            terminal.show("above")
            thread.join()
"""

    def test_completion(self) -> None:
        """On a real terminal Tab completes a name, the line is taken, and Ctrl-D ends it."""
        main, side = pty.openpty()
        self.addCleanup(os.close, main)
        environment = {**os.environ, "TERM": "dumb", "INPUTRC": os.devnull}
        process = subprocess.Popen(
            [sys.executable, "-c", self.program], stdin=side, stdout=side, stderr=side, env=environment
        )
        os.close(side)
        self.addCleanup(self._end, process)
        self.seen = b""
        self._await(main, b"above\r\nme> ")
        os.write(main, b"@b\thello\n")
        self._await(main, b"took '@bob hello'\r\nme> ")
        os.write(main, b"\x04")
        self._await(main, b"ended")
        self.assertEqual(process.wait(20), 0)

    def _await(self, main: int, wanted: bytes) -> None:
        end = time.monotonic() + 20
        while wanted not in self.seen:
            ready, _, _ = select.select([main], [], [], max(0, end - time.monotonic()))
            self.assertTrue(ready, self.seen)
            self.seen += os.read(main, 4096)

    @staticmethod
    def _end(process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            process.wait(20)
