"""What anyone may do at most: the rates, the table of all limits, and what an address counts as."""

from __future__ import annotations

from ipaddress import IPv6Address

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from wecompany.limits import DEFAULTS, MAX_KEYS, MAX_VALUE, AddressCounts, Limits, RateLimit, addressKey


class RateLimitTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.clock = Clock()

    def test_burst(self) -> None:
        """A key has its burst at once, and nothing after it."""
        limit = RateLimit(self.clock, 1, 3)
        self.assertEqual([limit.allow(b"a") for _ in range(5)], [True] * 3 + [False] * 2)

    def test_rate(self) -> None:
        """After its burst a key has one for each interval, not a moment earlier; refused ones cost nothing."""
        limit = RateLimit(self.clock, 0.1, 2)
        limit.allow(b"a")
        limit.allow(b"a")
        for _ in range(5):
            self.clock.advance(9.99)
            self.assertFalse(limit.allow(b"a"))
            self.clock.advance(0.01)
            self.assertTrue(limit.allow(b"a"))
            self.assertFalse(limit.allow(b"a"))

    def test_roundedClock(self) -> None:
        """A clock that has rounded an interval a little down refuses nobody who has waited for it."""
        self.clock.advance(1_800_000_000)
        limit = RateLimit(self.clock, 10, 1)
        for _ in range(10):
            self.assertTrue(limit.allow(b"a"))
            self.clock.advance(0.1)

    def test_rest(self) -> None:
        """A key at rest fills up to its burst and no further."""
        limit = RateLimit(self.clock, 1, 3)
        for _ in range(2):
            self.assertEqual([limit.allow(b"a") for _ in range(4)], [True, True, True, False])
            self.clock.advance(1000)

    def test_keys(self) -> None:
        """Each key has its own."""
        limit = RateLimit(self.clock, 1, 1)
        self.assertEqual([limit.allow(key) for key in (b"a", b"b", b"a", b"b")], [True, True, False, False])

    def test_limits(self) -> None:
        """Each limit has its own."""
        self.assertTrue(all(RateLimit(self.clock, 1, 1).allow(b"a") for _ in range(2)))

    @given(
        st.integers(1, 5),
        st.sampled_from([0.1, 0.3, 1, 7, 60]),
        st.lists(st.floats(0, 20, allow_nan=False), max_size=60),
    )
    def test_neverMore(self, burst: int, rate: float, pauses: list[float]) -> None:
        """In no stretch of time is more allowed than the burst and the rate together."""
        clock = Clock()
        limit = RateLimit(clock, rate, burst)
        allowed: list[float] = []
        for pause in pauses:
            clock.advance(pause)
            if limit.allow(b"a"):
                allowed.append(clock.seconds())
        for i, since in enumerate(allowed):
            for j in range(i, len(allowed)):
                self.assertLessEqual(j - i + 1, burst + (allowed[j] - since) * rate + 0.001)

    def test_bounded(self) -> None:
        """No more keys are remembered than the bound: past it a new one is refused, and a known one is not."""
        limit = RateLimit(self.clock, 0.01, 2)
        for i in range(MAX_KEYS):
            self.assertTrue(limit.allow(b"%d" % i))
        self.assertFalse(limit.allow(b"new"))
        self.assertTrue(limit.allow(b"7"))
        self.assertFalse(limit.allow(b"7"))
        self.clock.advance(100)
        self.assertTrue(limit.allow(b"new"))

    def test_forgotten(self) -> None:
        """Keys at rest make room for others: however many there have been, new ones are allowed."""
        limit = RateLimit(self.clock, 1, 1)
        for i in range(3 * MAX_KEYS):
            if i % 500 == 0:
                self.clock.advance(1.01)
            self.assertTrue(limit.allow(b"%d" % i))


class AmountTests(SynchronousTestCase):
    """Several at once, as bytes are."""

    def setUp(self) -> None:
        self.clock = Clock()

    def test_burst(self) -> None:
        """A full bucket has its burst at once and not one more, however it is taken; what is refused costs nothing."""
        limit = RateLimit(self.clock, 2_000_000, 4_000_000)
        self.assertTrue(limit.allow(b"a", 3_999_999))
        self.assertFalse(limit.allow(b"a", 2))
        self.assertTrue(limit.allow(b"a", 1))
        self.assertFalse(limit.allow(b"a", 1))
        self.assertTrue(limit.allow(b"b", 4_000_000))
        self.assertFalse(limit.allow(b"b", 1))

    def test_refill(self) -> None:
        """What is taken comes back at the rate."""
        limit = RateLimit(self.clock, 1_000, 1_000)
        limit.allow(b"a", 1_000)
        self.clock.advance(0.4)
        self.assertFalse(limit.allow(b"a", 401))
        self.assertTrue(limit.allow(b"a", 400))

    def test_moreThanTheBurst(self) -> None:
        """A piece larger than the burst needs a full bucket, and is paid for in full before the next one."""
        limit = RateLimit(self.clock, 100, 200)
        self.assertTrue(limit.allow(b"a", 1))
        self.assertFalse(limit.allow(b"a", 1_000))
        self.assertAlmostEqual(limit.wait(b"a", 1_000), 0.01)
        self.clock.advance(0.01)
        self.assertTrue(limit.allow(b"a", 1_000))
        self.assertAlmostEqual(limit.wait(b"a", 1), 8.01)
        self.clock.advance(8)
        self.assertFalse(limit.allow(b"a", 1))
        self.clock.advance(0.01)
        self.assertTrue(limit.allow(b"a", 1))

    def test_fastAndLate(self) -> None:
        """At the time of day of our years, single bytes of a fast rate are counted, too."""
        self.clock.advance(1_800_000_000)
        limit = RateLimit(self.clock, 50_000_000, 1_000_000)
        self.assertEqual(sum(limit.allow(b"a") for _ in range(1_000_100)), 1_000_000)

    def test_wait(self) -> None:
        """wait tells how long until so many can be taken, takes nothing, and is 0 if they can be now."""
        limit = RateLimit(self.clock, 10, 5)
        self.assertEqual([limit.wait(b"a", n) for n in (1, 5, 1)], [0.0] * 3)
        limit.allow(b"a", 5)
        self.assertEqual([round(limit.wait(b"a", n), 6) for n in (1, 5, 1)], [0.1, 0.5, 0.1])
        self.clock.advance(0.2)
        self.assertEqual([round(limit.wait(b"a", n), 6) for n in (1, 2, 3)], [0.0, 0.0, 0.1])
        self.assertEqual(limit.wait(b"b", 5), 0.0)

    @given(
        st.sampled_from([0.1, 7, 1_000, 50_000_000]),
        st.integers(1, 100_000),
        st.floats(0, 2e9),
        st.lists(st.integers(1, 200_000), min_size=1, max_size=20),
    )
    def test_waitIsEnough(self, rate: float, burst: int, start: float, amounts: list[int]) -> None:
        """allow is true exactly when wait is 0, and after that wait at the latest a clock's tick later."""
        clock = Clock()
        clock.advance(start)
        limit = RateLimit(clock, rate, burst)
        for n in amounts:
            seconds = limit.wait(b"a", n)
            if seconds:
                self.assertFalse(limit.allow(b"a", n))
                clock.advance(seconds + 1e-6)
                self.assertEqual(limit.wait(b"a", n), 0.0)
            self.assertTrue(limit.allow(b"a", n))

    def test_noRoom(self) -> None:
        """Where there is no room for one more key, wait says when it is worth while to ask again."""
        limit = RateLimit(self.clock, 0.1, 1)
        for i in range(MAX_KEYS):
            limit.allow(b"%d" % i)
        self.assertFalse(limit.allow(b"new"))
        self.assertEqual(limit.wait(b"new"), 1.0)
        self.clock.advance(10)
        self.assertEqual(limit.wait(b"new"), 0.0)
        self.assertTrue(limit.allow(b"new"))


NAMES = tuple(limit.name for limit in DEFAULTS)

PER = {"calls": 60, "presence": 60, "signups": 3_600}
"""The rates that are not for each second."""


class LimitsTests(SynchronousTestCase):
    def complaint(self, setting: str) -> str:
        """Return what is said to a setting that cannot be."""
        with self.assertRaises(ValueError) as raised:
            Limits().changed(setting)
        text = str(raised.exception)
        self.assertNotIn("\n", text)
        return text

    def test_defaults(self) -> None:
        """The defaults are these."""
        self.assertEqual(
            " ".join(str(limit) for limit in Limits().values()),
            "connections=0 address-connections=1000 connection-rate=100:1000 unregistered=500 text=100:1000 "
            "calls=10:10 media=2M:4M file=50M:50M broadcast=1:1 presence=6:6 subscriptions=1000 queued-texts=10000 "
            "queued-bytes=64Mi store-size=4Gi queued-memory=512Mi hashing=64 signups=10:10 accounts=10000 users=100000",
        )
        self.assertEqual({limit.name: limit.per for limit in Limits().values() if limit.per > 1}, PER)

    def test_none(self) -> None:
        """none has all of them off, and one can be turned on again."""
        none = Limits.none()
        self.assertEqual(list(none), list(NAMES))
        self.assertEqual([(limit.value, limit.burst) for limit in none.values()], [(0, 0)] * len(NAMES))
        self.assertEqual([none.rate(name, Clock()) for name in NAMES if none[name].per], [None] * 8)
        self.assertEqual(none.changed("text=5"), Limits.none().changed("text=5:50"))
        self.assertNotEqual(none, Limits())

    def test_changed(self) -> None:
        """changed returns limits with one of them changed, and changes nothing."""
        limits = Limits()
        changed = limits.changed("text=200:300").changed("hashing=7")
        self.assertEqual(limits, Limits())
        self.assertEqual((changed["text"].value, changed["text"].burst, changed["text"].per), (200, 300, 1))
        self.assertEqual(changed["hashing"].value, 7)
        others = [name for name in NAMES if name not in ("text", "hashing")]
        self.assertEqual([changed[name] for name in others], [limits[name] for name in others])
        self.assertEqual(repr(changed), "<Limits text=200:300 hashing=7>")

    def test_defaultBurst(self) -> None:
        """Without a burst it stays in its proportion to the value, and is 1 at least; off it is 0."""
        for setting, burst in (
            ("text=200", 2_000),
            ("text=1", 10),
            ("media=1000", 2_000),
            ("calls=3", 3),
            ("broadcast=5", 5),
            ("connection-rate=1", 10),
            ("text=0", 0),
            ("text=0:5", 0),
            ("hashing=5", 0),
        ):
            self.assertEqual(Limits().changed(setting)[setting.partition("=")[0]].burst, burst, setting)
        self.assertEqual(Limits().changed("text=5:5").changed("text=7")["text"].burst, 70)

    def test_suffixes(self) -> None:
        """Numbers may have a suffix of the decimal or the binary kind."""
        for word, number in (
            ("0", 0),
            ("007", 7),
            ("2k", 2_000),
            ("2M", 2_000_000),
            ("2G", 2_000_000_000),
            ("2Ki", 2_048),
            ("2Mi", 2_097_152),
            ("2Gi", 2_147_483_648),
            ("1000000G", MAX_VALUE),
        ):
            self.assertEqual(Limits().changed(f"store-size={word}")["store-size"].value, number)
            if number:
                self.assertEqual(Limits().changed(f"file=1:{word}")["file"].burst, number)

    def test_notANumber(self) -> None:
        """What is no whole number in the bounds is quoted."""
        for word in ("", "x", "-1", "1.5", "1e3", " 1", "1_0", "1K", "1ki", "1MB", "²", "٣", "1000001G", "9" * 5_000):
            self.assertIn(repr(word), self.complaint(f"text={word}"))
            self.assertIn(repr(word), self.complaint(f"text=1:{word}"))
        self.assertIn("'0'", self.complaint("text=1:0"))
        self.assertIn("'1:1'", self.complaint("text=1:1:1"))

    def test_notASetting(self) -> None:
        """What is no setting at all is quoted, with the form that it should have."""
        for setting in ("", "text", "text:1"):
            said = self.complaint(setting)
            self.assertIn(repr(setting), said)
            self.assertIn("NAME=VALUE", said)

    def test_unknown(self) -> None:
        """An unknown name is quoted, with all names that there are and the one that is like it."""
        for setting, near in (("txt=1", "text"), ("queued_bytes=1", "queued-bytes"), ("Calls=1", "calls")):
            said = self.complaint(setting)
            self.assertIn(f"did you mean {near}?", said)
            self.assertIn(", ".join(NAMES), said)
        for setting in ("=1", "xyz=1", "x" * 100_000 + "=1"):
            self.assertNotIn("did you mean", self.complaint(setting))

    def test_burstOfABound(self) -> None:
        """Only a rate has a burst."""
        for name in NAMES:
            if Limits()[name].per:
                self.assertEqual(Limits().changed(f"{name}=3:4")[name].burst, 4)
            else:
                self.assertIn(f"{name} is no rate", self.complaint(f"{name}=3:4"))

    @given(st.sampled_from(NAMES), st.integers(0, MAX_VALUE), st.integers(1, MAX_VALUE))
    def test_roundTrip(self, name: str, value: int, burst: int) -> None:
        """What a limit is shown as sets it."""
        isRate = bool(Limits()[name].per)
        limits = Limits().changed(f"{name}={value}:{burst}" if isRate else f"{name}={value}")
        limit = limits[name]
        self.assertEqual((limit.value, limit.burst), (value, burst if isRate and value else 0))
        self.assertEqual(Limits().changed(str(limit)), limits)

    @given(st.text(max_size=30))
    def test_anything(self, setting: str) -> None:
        """Whatever is given, it is taken or refused with a ValueError of one line."""
        try:
            Limits().changed(setting)
        except ValueError as e:
            self.assertNotIn("\n", str(e))

    def test_rate(self) -> None:
        """rate makes what keeps that limit, by its own time."""
        clock = Clock()
        limit = Limits().changed("calls=6:2").rate("calls", clock)
        assert limit is not None
        self.assertEqual([limit.allow(b"a") for _ in range(3)], [True, True, False])
        clock.advance(9.9)
        self.assertFalse(limit.allow(b"a"))
        clock.advance(0.1)
        self.assertTrue(limit.allow(b"a"))

    def test_mapping(self) -> None:
        """It is a mapping of all names, in the order of the table; other names are not there."""
        self.assertEqual((tuple(Limits()), len(Limits())), (NAMES, len(NAMES)))
        self.assertRaises(KeyError, Limits().__getitem__, "x")
        self.assertEqual(len(set(NAMES)), len(NAMES))


class AddressTests(SynchronousTestCase):
    def test_keys(self) -> None:
        """IPv6 addresses count by their /64, IPv4 ones by themselves in whichever form, other things as they are."""
        for hosts, key in (
            (("192.0.2.1", "::ffff:192.0.2.1", "::ffff:c000:201"), "192.0.2.1"),
            (("2001:db8::1", "2001:db8::ffff:ffff:ffff:ffff", "2001:0DB8::"), "2001:db8::/64"),
            (("2001:db8:0:1::1",), "2001:db8:0:1::/64"),
            (("2001:db8:0:0:1::1",), "2001:db8::/64"),
            (("fe80::1%eth0", "fe80::2"), "fe80::/64"),
            (("::1",), "::/64"),
            (("",), ""),
            (("a UNIX socket",), "a UNIX socket"),
            (("192.0.2.256",), "192.0.2.256"),
        ):
            for host in hosts:
                self.assertEqual(addressKey(host), key)

    @given(st.ip_addresses(v=6), st.integers(0, 2**64 - 1))
    def test_sameNetwork(self, address: IPv6Address, low: int) -> None:
        """Two addresses have the same key exactly if their first 64 bits are the same."""
        if address.ipv4_mapped is None and int(address) >> 64:
            base = int(address) >> 64 << 64
            self.assertEqual(addressKey(str(address)), addressKey(str(IPv6Address(base + low))))
            self.assertNotEqual(addressKey(str(address)), addressKey(str(IPv6Address((base ^ (1 << 64)) + low))))

    def test_counts(self) -> None:
        """Each address has its own count, and one without connections costs nothing."""
        counts = AddressCounts()
        self.assertEqual([counts.add(key) for key in ("a", "b", "a", "a")], [1, 1, 2, 3])
        self.assertEqual([counts[key] for key in ("a", "b", "c")], [3, 1, 0])
        self.assertEqual(len(counts), 2)
        for key in ("a", "b", "a"):
            counts.remove(key)
        self.assertEqual(([counts[key] for key in ("a", "b")], len(counts)), ([1, 0], 1))
        counts.remove("a")
        self.assertEqual(len(counts), 0)
        self.assertRaises(KeyError, counts.remove, "a")
