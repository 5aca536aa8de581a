"""
How often someone may do something.

One float for each key that has been active lately, by the generic cell rate algorithm (ITU-T I.371): a token bucket
that needs no timer and no count.
"""

from __future__ import annotations

from twisted.internet.interfaces import IReactorTime

MAX_KEYS = 100_000
"""Keys that one limit remembers.  Past that, whoever is not among them is refused."""


class RateLimit:
    """
    At most C{burst} at once, and C{rate} a second in the long run, for each key.

    A key at rest costs nothing: it is forgotten as soon as its bucket is full again.
    """

    def __init__(self, clock: IReactorTime, rate: float, burst: int) -> None:
        self._clock = clock
        self._interval = 1 / rate
        self._tolerance = (burst - 1) / rate
        self._fullAt: dict[bytes, float] = {}
        self._forgetAt = 1024
        self._lookAgainAt = 0.0

    def allow(self, key: bytes) -> bool:
        """Take one from C{key}'s bucket and return true, or return false if it is empty."""
        now = self._clock.seconds()
        fullAt = max(self._fullAt.get(key, now), now)
        # The least part of an interval is forgiven, as sums of floats are not exact.
        if fullAt - now > self._tolerance + self._interval * 1e-6:
            return False
        if key not in self._fullAt and not self._hasRoom(now):
            return False
        self._fullAt[key] = fullAt + self._interval
        return True

    def _hasRoom(self, now: float) -> bool:
        if len(self._fullAt) >= self._forgetAt and now >= self._lookAgainAt:
            self._fullAt = {key: fullAt for key, fullAt in self._fullAt.items() if fullAt > now}
            # Twice what is left, and not within the same second: so many calls share the cost of a look at all.
            self._forgetAt = min(max(1024, 2 * len(self._fullAt)), MAX_KEYS)
            self._lookAgainAt = now + 1
        return len(self._fullAt) < MAX_KEYS
