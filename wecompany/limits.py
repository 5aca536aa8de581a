"""
What anyone may do at most: how often, and how much of it.

All limits of the server stand in one table, L{DEFAULTS}; the command line's help and the documents are made from it.
Rates are kept with one float for each key that has been active lately, by the generic cell rate algorithm (ITU-T
I.371): a token bucket that needs no timer and no count.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from difflib import get_close_matches
from ipaddress import IPv6Address, ip_address, ip_network

from attrs import evolve, frozen
from twisted.internet.interfaces import IReactorTime

MAX_KEYS = 100_000
"""Keys that one limit remembers.  Past that, whoever is not among them is refused."""

MAX_VALUE = 10**15
"""The highest number that a limit can be set to."""

FORGIVEN = 1e-6
"""Seconds that are forgiven, as clocks and sums of floats are not exact; never so much that one more is allowed."""

_SIZES = {"Gi": 2**30, "Mi": 2**20, "Ki": 2**10, "G": 10**9, "M": 10**6, "k": 10**3}

_NUMBER = re.compile(r"([0-9]{1,16})([kMG]|[KMG]i)?")


class RateLimit:
    """
    At most C{burst} at once, and C{rate} a second in the long run, for each key.

    A key at rest costs nothing: it is forgotten as soon as its bucket is full again.
    """

    def __init__(self, clock: IReactorTime, rate: float, burst: int) -> None:
        self._clock = clock
        self._interval = 1 / rate
        self._depth = burst / rate
        self._forgiven = min(FORGIVEN, self._interval / 2)
        # Times count from here: with those of the epoch a float would lose a few bytes of a fast rate each time.
        self._since = clock.seconds()
        self._fullAt: dict[bytes, float] = {}
        self._forgetAt = 1024
        self._lookAgainAt = 0.0

    def allow(self, key: bytes, n: int = 1) -> bool:
        """
        Take C{n} from C{key}'s bucket and return true, or return false if they are not in it.

        More than the burst can be taken from a full bucket, which then takes so much longer to fill again: so what
        comes in pieces larger than the burst is slowed, and never stopped for good.
        """
        now = self._clock.seconds() - self._since
        fullAt = max(self._fullAt.get(key, now), now)
        cost = n * self._interval
        if fullAt - now + min(cost, self._depth) > self._depth + self._forgiven:
            return False
        if key not in self._fullAt and not self._hasRoom(now):
            return False
        self._fullAt[key] = fullAt + cost
        return True

    def wait(self, key: bytes, n: int = 1) -> float:
        """Return in how many seconds L{allow} may be true, if nobody takes anything meanwhile: 0.0 for now."""
        now = self._clock.seconds() - self._since
        fullAt = self._fullAt.get(key)
        if fullAt is None:
            return 0.0 if self._hasRoom(now) else self._lookAgainAt - now
        seconds = fullAt - now + min(n * self._interval, self._depth) - self._depth
        return seconds if seconds > self._forgiven else 0.0

    def _hasRoom(self, now: float) -> bool:
        if len(self._fullAt) >= self._forgetAt and now >= self._lookAgainAt:
            self._fullAt = {key: fullAt for key, fullAt in self._fullAt.items() if fullAt > now}
            # Twice what is left, and not within the same second: so many calls share the cost of a look at all.
            self._forgetAt = min(max(1024, 2 * len(self._fullAt)), MAX_KEYS)
            self._lookAgainAt = now + 1
        return len(self._fullAt) < MAX_KEYS


@frozen
class Limit:
    """
    One limit.

    @ivar what: what is counted, and for whom.
    @ivar value: the most there may be, or may come in C{per} seconds; 0 for any number.
    @ivar burst: of a rate, how many may come at once; 0 for what is no rate.
    @ivar per: of a rate, the seconds that C{value} is for; 0 for what is no rate.
    """

    name: str
    what: str
    value: int
    burst: int = 0
    per: int = 0

    def __str__(self) -> str:
        """Return C{NAME=VALUE} or C{NAME=VALUE:BURST}, as L{Limits.changed} takes it."""
        return f"{self.name}={self.setting}"

    @property
    def setting(self) -> str:
        """Return C{VALUE} or C{VALUE:BURST}."""
        return _short(self.value) + (f":{_short(self.burst)}" if self.value and self.per else "")


DEFAULTS = (
    Limit("connections", "connections in all; 0 for as many as open files allow", 0),
    Limit("address-connections", "connections of each address", 1_000),
    Limit("connection-rate", "new connections a second of each address", 100, 1_000, 1),
    Limit("unregistered", "connections of each address that have not registered yet", 500),
    Limit("text", "texts a second of each user", 100, 1_000, 1),
    Limit("calls", "calls a minute that each user may begin", 10, 10, 60),
    Limit("media", "bytes of audio and video a second of each user", 2_000_000, 4_000_000, 1),
    Limit("file", "bytes of files a second of each user", 50_000_000, 50_000_000, 1),
    Limit("broadcast", "texts to everyone a second of each user", 1, 1, 1),
    Limit("presence", "lists of who is online a minute of each user", 6, 6, 60),
    Limit("subscriptions", "users whose presence one connection may watch", 1_000),
    Limit("queued-texts", "texts that wait for each user in the store", 10_000),
    Limit("queued-bytes", "bytes of texts that wait for each user in the store", 64 * 2**20),
    Limit("store-size", "bytes of the store", 4 * 2**30),
    Limit("queued-memory", "bytes that wait in memory for all receivers together", 512 * 2**20),
    Limit("hashing", "passwords that wait to be checked", 64),
    Limit("signups", "new accounts an hour of each address", 10, 10, 3_600),
    Limit("accounts", "accounts up to which users may make their own", 10_000),
    Limit("users", "users that are remembered where there are no accounts", 100_000),
)
"""All limits of the server, with what they are if nobody sets them."""

_DEFAULTS = {limit.name: limit for limit in DEFAULTS}


def _short(number: int) -> str:
    for suffix in ("Gi", "Mi", "G", "M", "Ki"):
        if number and number % _SIZES[suffix] == 0:
            return f"{number // _SIZES[suffix]}{suffix}"
    return str(number)


def _number(word: str, least: int, setting: str) -> int:
    match = _NUMBER.fullmatch(word)
    number = int(match[1]) * _SIZES.get(match[2], 1) if match else -1
    if not least <= number <= MAX_VALUE:
        raise ValueError(
            f"{word!r} in {setting!r} is not a whole number from {least} to {MAX_VALUE:,}, "
            "with k, M, G, Ki, Mi or Gi behind it or none of them"
        )
    return number


class Limits(Mapping[str, Limit]):
    """All limits of a server, by their names.  They do not change: L{changed} returns others."""

    def __init__(self, limits: Iterable[Limit] = DEFAULTS) -> None:
        """
        @param limits: those that differ from L{DEFAULTS}, or all.
        """
        self._limits = _DEFAULTS | {limit.name: limit for limit in limits}

    @classmethod
    def none(cls) -> Limits:
        """Return the limits with all of them off."""
        return cls(evolve(limit, value=0, burst=0) for limit in DEFAULTS)

    def __getitem__(self, name: str) -> Limit:
        return self._limits[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._limits)

    def __len__(self) -> int:
        return len(self._limits)

    def __repr__(self) -> str:
        return f"<Limits {' '.join(str(limit) for limit in self.values() if limit != _DEFAULTS[limit.name])}>"

    def changed(self, setting: str) -> Limits:
        """
        Return limits of which one is set as an operator says.

        @param setting: C{NAME=VALUE} or, for a rate, C{NAME=VALUE:BURST}; a C{VALUE} of 0 turns the limit off.  Without
            a C{BURST} it is as many times the value as by default, and 1 at least.  Numbers are whole and may end
            in k, M, G, Ki, Mi or Gi.
        @raise ValueError: if it cannot be; the text is one line that says why.
        """
        name, isSet, numbers = setting.partition("=")
        if not isSet:
            raise ValueError(f"{setting!r} is not NAME=VALUE or NAME=VALUE:BURST")
        default = _DEFAULTS.get(name)
        if default is None:
            near = get_close_matches(name[:100], _DEFAULTS, 1)
            meant = f" (did you mean {near[0]}?)" if near else ""
            raise ValueError(f"there is no limit {name!r}{meant}, there are {', '.join(_DEFAULTS)}")
        word, hasBurst, burstWord = numbers.partition(":")
        value = _number(word, 0, setting)
        burst = 0
        if hasBurst:
            if not default.per:
                raise ValueError(f"{setting!r} has a burst, but {name} is no rate: it is set as {name}={word}")
            burst = _number(burstWord, 1, setting)
        elif default.per:
            burst = min(max(1, value * default.burst // default.value), MAX_VALUE)
        return Limits([*self.values(), evolve(default, value=value, burst=burst if value else 0)])

    def rate(self, name: str, clock: IReactorTime) -> RateLimit | None:
        """Return what keeps that rate, or C{None} if it is off."""
        limit = self[name]
        return RateLimit(clock, limit.value / limit.per, limit.burst) if limit.value else None


def addressKey(host: str) -> str:
    """
    Return what an address is counted as: an IPv6 one as its /64, of which whoever has one address has all, and an IPv4
    one in the form of IPv6 as itself.

    @param host: an IP address; anything else is returned as it is.
    """
    try:
        address = ip_address(host)
    except ValueError:
        return host
    if isinstance(address, IPv6Address):
        if address.ipv4_mapped is None:
            return str(ip_network((int(address), 64), strict=False))
        address = address.ipv4_mapped
    return str(address)


class AddressCounts:
    """
    How many connections each address has now.

    It holds one number for each address with any, so there are never more than connections.
    """

    def __init__(self) -> None:
        self._counts: dict[str, int] = {}

    def __getitem__(self, key: str) -> int:
        """Return how many there are of an L{addressKey}."""
        return self._counts.get(key, 0)

    def __len__(self) -> int:
        """Return how many addresses have any."""
        return len(self._counts)

    def add(self, key: str) -> int:
        """Count one more, and return how many there are now."""
        count = self._counts[key] = self._counts.get(key, 0) + 1
        return count

    def remove(self, key: str) -> None:
        """Count one less; there must be one."""
        count = self._counts.pop(key) - 1
        if count:
            self._counts[key] = count
