"""Small attacks on a real server: what it does about them.  How fast it stays, C{benchmarks.attacks} measures."""

from __future__ import annotations

import json
import subprocess
import sys
from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

from twisted.python.runtime import platform
from twisted.trial.unittest import SynchronousTestCase

from benchmarks.attacks import ATTACKS, answerIn, countedIn, sources
from wecompany.wire import ErrorCode, MessageType, encodeError, encodeFrame

ROOT = Path(__file__).parent.parent
SECONDS = 180


class PartsTests(SynchronousTestCase):
    """What the attacks are made of."""

    def test_answers(self) -> None:
        """An answer to a first frame is told by its kind, numbers aside, and not before it is whole."""
        refusal = encodeFrame(MessageType.ERROR, b"", encodeError(ErrorCode.OVERLOADED, 7, "wait 17 s"))
        self.assertEqual(answerIn(refusal), "OVERLOADED: wait N s")
        self.assertEqual(answerIn(refusal[:-1]), "")
        self.assertEqual(answerIn(encodeFrame(MessageType.AUTH_RESPONSE, b"a", b"\0no: 3")), "no: N")
        self.assertEqual(answerIn(encodeFrame(MessageType.AUTH_RESPONSE, b"a", b"\1token")), "in")
        self.assertEqual(answerIn(encodeFrame(MessageType.HEARTBEAT, b"a")), "in")

    def test_counted(self) -> None:
        """All reports of a log are added up, and a comma in a name does not break it."""
        log = b"x [-] Counted lately: a: b, or c 2, d 3\nx [-] all is well 9\ny [-] Counted lately: d 4\n"
        self.assertEqual(countedIn(log), {"a: b, or c": 2, "d": 7})

    def test_sources(self) -> None:
        """Attackers' addresses are different ones of the loopback, and not the pair's."""
        addresses = sources(2_000)
        self.assertEqual(len(set(addresses)), 2_000)
        self.assertTrue(all(address.startswith("127.1.") for address in addresses))


@cache
def allFigures() -> dict[str, dict[str, Any]]:
    """Attack once, slowloris, which takes 11 s of the server's, beside the others; return what came of each."""
    others = [name for name in ATTACKS if name not in ("alone", "slowloris")]
    found: dict[str, dict[str, Any]] = {}
    runs = []
    for names in (["slowloris"], others):
        command = [sys.executable, "-m", "benchmarks.attacks", "--json", "--seconds", "0.4", "--scale", "0.01"]
        command += [word for name in names for word in ("--attack", name)]
        runs.append(subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True))
    try:
        for run in runs:
            output, errors = run.communicate(timeout=SECONDS)
            if not output:
                raise AssertionError(errors)
            found |= {figures["attack"]: figures for figures in json.loads(output)["attacks"]}
    finally:
        for run in runs:
            if run.poll() is None:
                run.terminate()
                run.communicate()
    return found


class AttackTests(SynchronousTestCase):
    """C{python -m benchmarks.attacks}: all attacks are run once, and each test looks at one of them."""

    if not platform.isLinux():
        skip = "the attacks bind many addresses of the loopback, and read /proc"

    def attacked(self, name: str) -> tuple[dict[str, float], Counter[str]]:
        """Return what an attacker saw and the server counted; nothing else went wrong and nobody else noticed."""
        figures = allFigures()[name]
        self.assertEqual(figures["findings"], [])
        self.assertEqual(figures["lost"], 0)
        self.assertGreater(figures["texts"], 0)
        return figures["seen"], Counter(figures["counted"])

    def test_slowloris(self) -> None:
        """Whoever does not finish a first frame in 10 s is told so and closed."""
        seen, counted = self.attacked("slowloris")
        self.assertEqual(seen["NOT_REGISTERED: no first frame within N s"], 100)
        self.assertEqual(seen["never closed"], 0)
        self.assertGreaterEqual(seen["closed after, s, at least"], 9.5)
        self.assertEqual(counted["connections closed: NOT_REGISTERED"], 100)

    def test_flood(self) -> None:
        """Past the rate new connections of an address are refused; a hundred are told so, others dropped."""
        seen, counted = self.attacked("flood")
        self.assertGreater(counted["limits hit: connection-rate"], 0)
        self.assertGreaterEqual(seen["in"], 1_000)

    def test_guessing(self) -> None:
        """Ten wrong passwords from an address are heard and no more, and the owner comes in from elsewhere."""
        seen, counted = self.attacked("guessing")
        self.assertEqual(counted["wrong passwords"], 10)
        self.assertEqual(counted["lock-outs: account"], 1)
        self.assertGreater(counted["passwords refused: locked out"], 0)
        self.assertGreater(seen["owner's password: in"], 0)
        self.assertEqual(seen["owner's token: in"], seen["owner's token: tries"])

    def test_guessingFromManyAddresses(self) -> None:
        """Guesses from many addresses find the places for hashing taken, and the owner's token is not held up."""
        seen, counted = self.attacked("guessing-many")
        self.assertGreater(counted["wrong passwords"], 0)
        self.assertGreater(seen["owner's token: in"], 0)
        self.assertEqual(seen["owner's token: in"], seen["owner's token: tries"])

    def test_oversized(self) -> None:
        """A first frame that says it is too long is malformed before it has come."""
        seen, counted = self.attacked("oversized")
        self.assertGreater(counted["connections closed: MALFORMED"], 0)
        self.assertNotIn("in", seen)

    def test_maximalFrames(self) -> None:
        """A client that sends the longest heartbeats without end is answered, and stays."""
        seen, _ = self.attacked("frames")
        self.assertGreater(seen["MB answered"], 0)
        self.assertFalse(seen["closed by the server"])

    def test_nonsense(self) -> None:
        """Each frame that makes no sense is answered with an ERROR, and the client stays."""
        seen, counted = self.attacked("nonsense")
        self.assertGreater(counted["errors: BAD_REQUEST"], 0)
        self.assertFalse(seen["closed by the server"])

    def test_texts(self) -> None:
        """Past its rate a client is read more slowly: the burst arrives, and little more."""
        seen, counted = self.attacked("texts")
        self.assertGreater(counted["limits hit: text"], 0)
        self.assertGreaterEqual(seen["texts arrived"], 900)
        self.assertLess(seen["texts arrived"], 2_500)
        self.assertFalse(seen["closed by the server"])

    def test_media(self) -> None:
        """Media over its rate is dropped and counted, and the call goes on."""
        seen, counted = self.attacked("media")
        self.assertGreater(counted["limits hit: media"], 0)
        self.assertGreater(seen["bytes arrived"], 1_000_000)
        self.assertFalse(seen["closed by the server"])

    def test_unread(self) -> None:
        """What is written to somebody who does not read it does not stay in memory."""
        seen, _ = self.attacked("unread")
        self.assertGreater(seen["MB sent"], 0)

    def test_storm(self) -> None:
        """All who log in with tokens at once come in."""
        seen, counted = self.attacked("storm")
        self.assertEqual(seen["in"], seen["users"])
        self.assertEqual(counted["registered by token"], seen["users"])

    def test_signups(self) -> None:
        """Ten accounts are made from an address within the hour, and no more."""
        _, counted = self.attacked("signups")
        self.assertEqual(counted["registered by sign-up"], 10)
        self.assertGreater(counted["limits hit: signups"], 0)
