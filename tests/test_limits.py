"""How often someone may do something."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from twisted.internet.task import Clock
from twisted.trial.unittest import SynchronousTestCase

from wecompany.limits import MAX_KEYS, RateLimit


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
