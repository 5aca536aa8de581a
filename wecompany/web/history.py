"""
The last hour of a server's figures, for the page at C{/status}.

It needs nothing but the hub, so that the page is there without C{prometheus_client}, too.  A timer of its own takes the
samples: the hub's sweeps rest while nobody is connected, and a time of which nothing is known looks other than one in
which nothing has happened.
"""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Iterable
from statistics import median

from twisted.internet.interfaces import IDelayedCall, IReactorTime

from wecompany.server import WeCompanyFactory

SAMPLE_EVERY = 10.0
"""Seconds between two samples."""

MAX_SAMPLES = 360
"""Samples that are kept: an hour of them."""

MAX_TIMED = 128
"""Latencies of one kind that wait for the next sample; about one a second is measured."""

_TOTALS: dict[str, Callable[[WeCompanyFactory], int]] = {
    "messagesIn": lambda factory: sum(factory.traffic.received),
    "messagesOut": lambda factory: sum(factory.traffic.sent),
    "bytesIn": lambda factory: sum(factory.traffic.receivedBytes),
    "bytesOut": lambda factory: sum(factory.traffic.sentBytes),
    "dropped": lambda factory: _counted(factory, "media dropped: "),
    "errors": lambda factory: _counted(factory, "errors: ") + _counted(factory, "connections closed: "),
    "limits": lambda factory: _counted(factory, "limits hit: "),
}
"""What only grows, and is told by how much it does so in a second."""

FIELDS = (
    "at",
    *("connections", "users", "callsRinging", "callsActive", "queuedBytes"),
    *_TOTALS,
    *("relayMedian", "relayMost", "lagMedian", "lagMost"),
)
"""
What a sample consists of: when it was taken (milliseconds since 1970), how much there was then, by how much what grows
did so since the sample before (in a second), and latencies of the time between (seconds; none if none was measured).
"""

_Sample = tuple[float | None, ...]


def _counted(factory: WeCompanyFactory, prefix: str) -> int:
    return sum(n for what, n in factory.counters.items() if what.startswith(prefix))


class History:
    """
    Takes a sample each L{SAMPLE_EVERY} between L{start} and L{stop}.

    @ivar samples: the newest L{MAX_SAMPLES}, oldest first, each as L{FIELDS} says.
    """

    def __init__(self, factory: WeCompanyFactory, clock: IReactorTime) -> None:
        """
        @param factory: the hub.
        @param clock: the hub's time.
        """
        self._factory = factory
        self._clock = clock
        self.samples: deque[_Sample] = deque(maxlen=MAX_SAMPLES)
        self._relays: deque[float] = deque(maxlen=MAX_TIMED)
        self._lags: deque[float] = deque(maxlen=MAX_TIMED)
        self._next: IDelayedCall | None = None
        self._since = 0.0
        self._totals: list[int] = []
        before = factory.swept

        def swept(late: float) -> None:
            before(late)
            self._lags.append(late)
            factory.timeRelay(self._relays.append)

        factory.swept = swept

    def start(self) -> None:
        """Begin; what was kept before L{stop} is still there."""
        self._begin()
        self._next = self._clock.callLater(SAMPLE_EVERY, self._sample)

    def stop(self) -> None:
        """Take no more samples."""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    def render(self, after: int = 0) -> bytes:
        """
        Return, as JSON, how things are now, and the samples that were taken later than C{after}.

        @param after: milliseconds since 1970.
        """
        factory = self._factory
        ringing, active = factory.calls.countCalls()
        told = {
            "now": round(self._clock.seconds() * 1000),
            "every": SAMPLE_EVERY,
            "state": "stopping" if factory.isStopping else "failing" if factory.isStoreFailing else "running",
            "current": {
                "connections": factory.connectionCount,
                "users": factory.onlineCount,
                "callsRinging": ringing,
                "callsActive": active,
                "queuedBytes": factory.traffic.waiting,
                "storeOperations": getattr(factory.store, "queueLength", None),
                "storeLag": getattr(factory.store, "lagSeconds", None),
            },
            "fields": FIELDS,
            "samples": [sample for sample in self.samples if sample[0] is not None and sample[0] > after],
        }
        return json.dumps(told, separators=(",", ":")).encode()

    def _begin(self) -> None:
        """From now on is what the next sample tells of."""
        self._since = self._clock.seconds()
        self._totals = [total(self._factory) for total in _TOTALS.values()]
        self._relays.clear()
        self._lags.clear()

    def _sample(self) -> None:
        self._next = self._clock.callLater(SAMPLE_EVERY, self._sample)
        before, since = self._totals, self._since
        relays, lags = _middleAndMost(self._relays), _middleAndMost(self._lags)
        self._begin()
        elapsed = self._since - since
        if elapsed <= 0:  # the clock was set back: what is kept would lie in the future
            self.samples.clear()
            return
        factory = self._factory
        rates = [round((now - then) / elapsed, 2) for then, now in zip(before, self._totals, strict=True)]
        self.samples.append(
            (
                round(self._since * 1000),
                factory.connectionCount,
                factory.onlineCount,
                *factory.calls.countCalls(),
                factory.traffic.waiting,
                *rates,
                *relays,
                *lags,
            )
        )


def _middleAndMost(seconds: Iterable[float]) -> tuple[float | None, float | None]:
    """Return the median and the highest of these, to a tenth of a microsecond."""
    found = sorted(seconds)
    return (round(median(found), 7), round(found[-1], 7)) if found else (None, None)
