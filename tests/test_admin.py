"""The admin command: what it does to a real database, what it shows, and its exit codes."""

from __future__ import annotations

import argparse
import builtins
import contextlib
import getpass
import io
import json
import os
import pwd
import sqlite3
import sys
from typing import Any
from unittest import mock

from twisted.trial.unittest import SynchronousTestCase

from tests import temporaryFolder
from wecompany import accounts
from wecompany.accounts import digestToken, makeToken, verifyPassword
from wecompany.cli import admin
from wecompany.cli.admin import addAdminParser, runAdmin
from wecompany.cli.running import Problem
from wecompany.database import Database
from wecompany.interfaces import AccountExists, CallRecord

PASSWORD, OTHER = "correct horse", "battery staple"
EVIL = "\x1b]0;owned\x07"
NOON = 1_780_000_000_000


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    def isatty(self) -> bool:
        return True


class AdminCase(SynchronousTestCase):
    def setUp(self) -> None:
        self.patch(accounts, "argon2", None)
        self.patch(accounts, "SCRYPT_LN", 1)
        self.folder = temporaryFolder(self)
        self.path = self.folder / "wecompany.sqlite"
        self.out = self.err = ""

    def open(self) -> Database:
        """Return the database as the server has it open."""
        database = Database(self.path)
        self.addCleanup(database.close)
        return database

    def parse(self, *words: str) -> argparse.Namespace:
        parser = argparse.ArgumentParser()
        addAdminParser(parser.add_subparsers(dest="command"))
        return parser.parse_args(["admin", *words])

    def run_(self, *words: str, stdin: bytes = b"", where: bool = True, terminal: bool = False) -> int:
        """Run a command line; return its exit code."""
        out, err = io.StringIO(), Terminal() if terminal else io.StringIO()
        source = Terminal() if terminal else io.TextIOWrapper(io.BytesIO(stdin))
        database = ["--database", str(self.path)] if where else []
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch.object(sys, "stdin", source),
        ):
            code = runAdmin(self.parse(words[0], *database, *words[1:]))
        self.out, self.err = out.getvalue(), err.getvalue()
        return code

    def add(self, name: str, password: str = PASSWORD) -> None:
        """Make an account."""
        code = self.run_("add", name, "--password-stdin", stdin=f"{password}\n".encode())
        self.assertEqual(code, 0, self.err)

    def json(self, *words: str, **more: Any) -> Any:
        """Run a command that succeeds; return its answer."""
        self.assertEqual(self.run_(*words, "--json", **more), 0, self.err)
        return json.loads(self.out)

    def hash_(self, name: bytes) -> str:
        account = self.open().account(name)
        assert account is not None
        return account.passwordHash


class ParserTests(AdminCase):
    def test_usage(self) -> None:
        """What is wrong on the command line is said, and the exit code is 2; a password is never an argument."""
        for words in (
            (),
            ("add",),
            ("add", "#group"),
            ("add", "a\udcff"),
            ("add", "alice", "secret"),
            ("add", "alice", "--password-stdin", "--generate"),
            ("calls", "--last", "0"),
            ("audit", "--last", "-1"),
            ("backup",),
            ("fly",),
        ):
            errors = io.StringIO()
            with contextlib.redirect_stderr(errors), self.assertRaises(SystemExit) as left:
                self.parse(*words)
            self.assertEqual(left.exception.code, 2, words)

    def test_defaults(self) -> None:
        """Without --database it is wecompany.sqlite in the current folder."""
        self.assertEqual(str(self.parse("users").database), "wecompany.sqlite")
        self.assertEqual(self.parse("audit", "--last", "7").last, 7)
        here = os.getcwd()  # noqa: PTH109
        self.addCleanup(os.chdir, here)
        os.chdir(self.folder)
        self.assertEqual(self.run_("users", where=False), 1)
        self.add("alice")
        self.assertEqual(self.run_("users", where=False), 0)


class AccountTests(AdminCase):
    def test_add(self) -> None:
        """add makes an account, whose password is a line of the standard input, and says how its user logs in."""
        self.add("alice")
        self.assertIn("wecompany login --as alice", self.out)
        self.assertIn("it is made", self.err)
        self.assertTrue(verifyPassword(self.hash_(b"alice"), PASSWORD.encode()))
        self.assertNotIn(PASSWORD, self.out + self.err)
        self.add("爱丽丝", "密码密码密码密码")
        self.assertNotIn("it is made", self.err)
        self.assertTrue(verifyPassword(self.hash_("爱丽丝".encode()), "密码密码密码密码".encode()))

    def test_lineEnds(self) -> None:
        """The line's end is no part of the password, be there one or not; spaces are."""
        for n, end in enumerate(("", "\n", "\r\n", "\nsecond line\n")):
            self.add(f"user{n}", f" {PASSWORD} {end}")
            self.assertTrue(verifyPassword(self.hash_(b"user%d" % n), f" {PASSWORD} ".encode()))

    def test_badPassword(self) -> None:
        """A password that breaks the rules is 2, and nothing is done."""
        for password in (b"", b"short\n", b"x" * 1_025, b"x" * 5_000, b"\xff" * 9, makeToken()):
            self.assertEqual(self.run_("add", "alice", "--password-stdin", stdin=password), 2, password)
            self.assertIn("nothing is done", self.err)
        self.assertEqual(self.json("users"), [])
        self.assertEqual(self.run_("add", "alice", "--password-stdin", stdin=b"x" * 1_024 + b"\r\n"), 0)

    def test_generate(self) -> None:
        """--generate makes a password, and shows it."""
        first = self.json("add", "alice", "--generate")
        self.assertTrue(verifyPassword(self.hash_(b"alice"), first["password"].encode()))
        self.assertEqual(self.run_("password", "alice", "--generate"), 0)
        second = self.out.rpartition("Password: ")[2].strip()
        self.assertEqual(len(second), 16)
        self.assertTrue(verifyPassword(self.hash_(b"alice"), second.encode()))
        self.assertFalse(verifyPassword(self.hash_(b"alice"), first["password"].encode()))

    def test_prompt(self) -> None:
        """On a terminal the password is asked for twice, and both have to be the same."""
        typed = [PASSWORD, PASSWORD, PASSWORD, "another one"]
        self.patch(getpass, "getpass", lambda prompt: typed.pop(0))
        self.assertEqual(self.run_("add", "alice", terminal=True), 0)
        self.assertTrue(verifyPassword(self.hash_(b"alice"), PASSWORD.encode()))
        self.assertEqual(self.run_("add", "bob", terminal=True), 2)
        self.assertIn("two different", self.err)

        def end(prompt: str) -> str:
            raise EOFError

        self.patch(getpass, "getpass", end)
        self.assertEqual(self.run_("add", "bob", terminal=True), 2)
        self.assertEqual(len(self.json("users")), 1)

    def test_noTerminal(self) -> None:
        """Where nobody can be asked it is 2, and what can be done instead is said."""
        self.assertEqual(self.run_("add", "alice", stdin=PASSWORD.encode()), 2)
        self.assertIn("--password-stdin", self.err)

    def test_addTwice(self) -> None:
        """A name that has an account is 1, before any password is asked for, even if it got it just now."""
        self.add("alice")
        self.assertEqual(self.run_("add", "alice"), 1)
        self.assertIn("wecompany admin password alice", self.err)
        self.patch(Database, "addAccount", mock.Mock(side_effect=AccountExists(b"bob")))
        self.assertEqual(self.run_("add", "bob", "--generate"), 1)
        self.assertIn("already", self.err)

    def test_nobody(self) -> None:
        """What is to be done to somebody who is not there is 1, and says where to look."""
        self.add("alice")
        for action in ("delete", "disable", "enable", "revoke", "password"):
            self.assertEqual(self.run_(action, "bob"), 1, action)
            self.assertIn("there is no account bob", self.err)
            self.assertIn("wecompany admin users", self.err)

    def test_noDatabase(self) -> None:
        """Only add makes a database; elsewhere a missing one is 1, and is not made."""
        for words in (("users",), ("delete", "a"), ("audit",), ("calls",), ("check",), ("backup", "x")):
            self.assertEqual(self.run_(*words), 1, words)
            self.assertIn("--database", self.err)
        self.assertFalse(self.path.exists())

    def test_password(self) -> None:
        """password sets another one and revokes all tokens."""
        self.add("alice")
        database = self.open()
        database.transact(database.addToken, b"alice", b"digest", 2e9)
        self.assertEqual(self.run_("password", "alice", "--password-stdin", stdin=OTHER.encode()), 0)
        self.assertTrue(verifyPassword(self.hash_(b"alice"), OTHER.encode()))
        self.assertIsNone(database.token(b"digest"))
        self.assertNotIn(OTHER, self.out + self.err)

    def test_revoke(self) -> None:
        """revoke revokes all tokens of that user, and says how many."""
        self.add("alice")
        self.add("bob")
        database = self.open()
        for name, token in ((b"alice", b"1"), (b"alice", b"2"), (b"bob", b"3")):
            database.transact(database.addToken, name, digestToken(token), 2e9)
        self.assertEqual(self.run_("revoke", "alice"), 0)
        self.assertIn("2 tokens revoked", self.out)
        self.assertEqual(self.json("revoke", "alice"), {"user": "alice", "revoked": 0})
        self.assertIsNotNone(database.token(digestToken(b"3")))

    def test_disable(self) -> None:
        """disable and enable do so, and say when it was so already."""
        self.add("alice")
        self.assertEqual(self.run_("disable", "alice"), 0)
        self.assertIn("wecompany admin enable alice", self.out)
        self.assertIs(self.json("users")[0]["disabled"], True)
        self.assertEqual(self.json("disable", "alice"), {"user": "alice", "changed": False})
        self.assertEqual(self.json("enable", "alice"), {"user": "alice", "changed": True})
        self.assertEqual(self.run_("enable", "alice"), 0)
        self.assertIn("not disabled", self.out)
        self.assertIs(self.json("users")[0]["disabled"], False)

    def test_delete(self) -> None:
        """delete removes the account."""
        self.add("alice")
        self.assertEqual(self.run_("delete", "alice"), 0)
        self.assertEqual(self.json("users"), [])
        self.assertEqual(self.run_("delete", "alice"), 1)

    def test_whileTheServerRuns(self) -> None:
        """A server that has the database open learns what is done."""
        self.add("alice")
        server = self.open()
        server.serve(accounts=True)
        server.poll()
        self.assertEqual(self.run_("disable", "alice"), 0)
        self.add("bob")
        self.assertEqual([(c.name, c.action) for c in server.poll()], [(b"alice", "disable"), (b"bob", "add")])


class ListTests(AdminCase):
    def test_users(self) -> None:
        """users is a table whose columns stand below each other, whatever the script."""
        self.add("alice")
        self.add("爱丽丝")
        self.assertEqual(self.run_("users"), 0)
        head, first, second = self.out.splitlines()
        self.assertTrue(head.startswith("user    account  disabled  created"))
        self.assertTrue(first.startswith("alice   yes      no        20"), first)
        self.assertTrue(second.startswith("爱丽丝  yes      no        20"), second)
        self.assertEqual([user["user"] for user in self.json("users")], ["alice", "爱丽丝"])

    def test_nothing(self) -> None:
        """Where there is nothing that is said, and is no problem; in JSON it is an empty list."""
        self.open()
        for words in ("users", "calls", "audit"):
            self.assertEqual(self.run_(words), 0)
            self.assertEqual(self.out, "")
            self.assertIn("no", self.err.lower())
            self.assertEqual(self.json(words), [])

    def test_audit(self) -> None:
        """audit lists who has done what, as the system knows who that was, the newest last."""
        self.patch(os, "environ", {**os.environ, "LOGNAME": "mallory", "USER": "mallory"})
        self.add("alice")
        self.run_("disable", "alice")
        self.run_("delete", "alice")
        actor = f"admin:{pwd.getpwuid(os.getuid()).pw_name}"
        entries = self.json("audit")
        self.assertEqual(
            [(entry["who"], entry["did"], entry["user"]) for entry in entries],
            [(actor, did, "alice") for did in ("add", "disable", "delete")],
        )
        self.assertEqual([entry["did"] for entry in self.json("audit", "--last", "1")], ["delete"])
        self.assertEqual(self.run_("audit"), 0)
        self.assertIn(actor, self.out)

    def test_actor(self) -> None:
        """A user without a name is its number; where there is no such list it is the name of the log-in."""
        with mock.patch.object(pwd, "getpwuid", side_effect=KeyError):
            self.assertEqual(admin._actor(), f"admin:{os.getuid()}")
        real = builtins.__import__

        def windows(name: str, *arguments: Any, **more: Any) -> Any:
            if name == "pwd":
                raise ImportError
            return real(name, *arguments, **more)

        with (
            mock.patch.object(builtins, "__import__", windows),
            mock.patch.object(getpass, "getuser", return_value="someone"),
        ):
            self.assertEqual(admin._actor(), "admin:someone")

    def test_calls(self) -> None:
        """calls lists those of everyone or of one user, the newest last, with how long they were and how they ended."""
        database = self.open()
        for n, (caller, callee, answeredAt) in enumerate(
            ((b"alice", b"bob", NOON + 2_000), (b"carol", b"alice", None), (b"bob", b"carol", NOON + 1_000))
        ):
            call = CallRecord(b"%016d" % n, caller, callee, n == 0, NOON, answeredAt, NOON + 63_000, f"hung{EVIL} up")
            database.transact(database.callEnded, call)
        calls = self.json("calls")
        self.assertEqual([call["seconds"] for call in calls], [61, None, 62])
        self.assertEqual([call["video"] for call in calls], [True, False, False])
        self.assertEqual([call["caller"] for call in self.json("calls", "--user", "alice")], ["alice", "carol"])
        self.assertEqual([call["caller"] for call in self.json("calls", "--last", "1")], ["bob"])
        self.assertEqual(self.run_("calls"), 0)
        self.assertNotIn("\x1b", self.out)
        self.assertRegex(self.out.splitlines()[1], r"^20\d\d-\d\d-\d\d \d\d:\d\d:\d\d[+-]\d\d:\d\d  alice   bob ")


class FileTests(AdminCase):
    def test_backup(self) -> None:
        """backup copies the database while the server has it, and the copy is one that works."""
        self.add("alice")
        server = self.open()
        server.serve(accounts=True)
        copy = self.folder / "copy.sqlite"
        self.assertEqual(self.run_("backup", str(copy)), 0, self.err)
        self.assertIn("stop the server", self.out)
        self.assertEqual(self.err, "")
        self.path = copy
        self.assertEqual([user["user"] for user in self.json("users")], ["alice"])

    def test_overwrite(self) -> None:
        """backup overwrites nothing."""
        self.add("alice")
        there = self.folder / "there"
        there.write_text("mine")
        self.assertEqual(self.run_("backup", str(there)), 1)
        self.assertEqual(there.read_text(), "mine")
        self.assertEqual(self.run_("backup", str(self.folder / "nowhere" / "x")), 1)

    def test_progress(self) -> None:
        """backup shows how far it is to whoever looks."""
        self.add("alice")
        self.assertEqual(self.run_("backup", str(self.folder / "copy"), terminal=True), 0)
        self.assertTrue(self.err.endswith("\r100 %\n"), self.err)

    def test_check(self) -> None:
        """check says that a sound database is so, and counts what is in it."""
        self.add("alice")
        self.assertEqual(self.run_("check"), 0)
        self.assertIn("is sound", self.out)
        self.assertIn("1 accounts", self.out)
        answer = self.json("check")
        self.assertEqual((answer["problems"], answer["accounts"], answer["audit entries"]), ([], 1, 1))

    def test_damaged(self) -> None:
        """check of a damaged database is 1 and says what is wrong."""
        self.add("alice")
        connection = sqlite3.connect(self.path)
        connection.execute("PRAGMA foreign_keys = OFF")
        connection.execute("INSERT INTO block(user, other) VALUES(99, X'00')")
        connection.commit()
        connection.close()
        self.assertEqual(self.run_("check"), 1)
        self.assertIn("block", self.out)
        self.assertIn("backup", self.err)
        self.assertEqual(self.run_("check", "--json"), 1)
        self.assertEqual(len(json.loads(self.out)["problems"]), 1)

    def test_notOurs(self) -> None:
        """A file that is no database of this server is 1, and stays as it is."""
        self.path.write_bytes(b"not a database " * 1_000)
        for words in (("users",), ("check",), ("add", "alice", "--generate")):
            self.assertEqual(self.run_(*words), 1, words)
            self.assertIn(str(self.path), self.err)
        self.assertEqual(self.path.read_bytes(), b"not a database " * 1_000)

    def test_problem(self) -> None:
        """A L{Problem} anywhere is 2."""
        self.add("alice")
        self.patch(Database, "users", mock.Mock(side_effect=Problem("no")))
        self.assertEqual(self.run_("users"), 2)
