"""
A server's figures in the text format of Prometheus.

It needs the extra C{wecompany[metrics]}: C{prometheus_client} is imported when a L{Metrics} is made, and its global
registry is not used.

::

    metrics = Metrics(factory)
    metrics.render()            # b"# HELP wecompany_connections ..."

What grows is counted where it happens, most of it in C{factory.counters}, and read here when somebody asks.  No label
has a value that a user could choose.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from enum import IntEnum
from typing import TYPE_CHECKING

from wecompany.interfaces import CallSession
from wecompany.server import ServerObserver, WeCompanyFactory
from wecompany.wire import EndCode, MessageType, RejectCode

if TYPE_CHECKING:
    from prometheus_client import Counter
    from prometheus_client.core import Metric

SETUP_BUCKETS = (0.5, 1, 2, 3, 5, 7.5, 10, 15, 20, 30, 45, 60)
"""Seconds that a call rings until it is taken."""

DURATION_BUCKETS = (1, 5, 15, 30, 60, 180, 300, 600, 1_800, 3_600, 7_200, 14_400, 43_200)
"""Seconds that the two talk."""

LAG_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5)
"""Seconds by which the reactor is late."""

RELAY_BUCKETS = (5e-6, 1e-5, 2e-5, 5e-5, 1e-4, 2e-4, 5e-4, 1e-3, 5e-3, 1e-2, 1e-1)
"""Seconds that a message is in the server's hands."""

_FAMILIES = {
    "limits hit": ("limits_hit", "limit", "How often a limit was hit."),
    "errors": ("errors", "code", "Frames that were answered with an ERROR."),
    "connections closed": ("connections_closed", "reason", "Connections that the server closed."),
    "registrations refused": ("registrations_refused", "reason", "Registrations that were refused."),
    "media dropped": ("media_dropped", "reason", "Media frames that were dropped."),
}
"""The counters whose names are C{family: value}: name, label and help of what they become."""

_LOG_INS = "registered by "

_MEDIA_CLASSES = ("audio", "video")


class MetricsMissing(ImportError):
    """What this needs is not installed; the text says what to do."""

    def __init__(self) -> None:
        super().__init__('metrics need prometheus_client: pip install "wecompany[metrics]"')


class Metrics:
    """
    The figures of one server.

    @ivar contentType: of what L{render} returns.
    """

    def __init__(self, factory: WeCompanyFactory) -> None:
        """
        Begin to watch.

        @raise MetricsMissing: if C{prometheus_client} is not installed.
        """
        try:
            import prometheus_client
        except ImportError:
            raise MetricsMissing from None
        self._factory = factory
        self._registry = registry = prometheus_client.CollectorRegistry()
        self._generate = prometheus_client.generate_latest
        self.contentType: str = prometheus_client.CONTENT_TYPE_LATEST
        histogram = prometheus_client.Histogram
        setup = histogram(
            "wecompany_call_setup_seconds",
            "Time from a call's request until it was taken.",
            buckets=SETUP_BUCKETS,
            registry=registry,
        )
        duration = histogram(
            "wecompany_call_duration_seconds",
            "Time from when a call was taken until its end.",
            buckets=DURATION_BUCKETS,
            registry=registry,
        )
        ended = prometheus_client.Counter(
            "wecompany_calls_ended_total",
            "Calls that are over or were not taken, by how that came.",
            ["outcome"],
            registry=registry,
        )
        for code in (*RejectCode, *EndCode):
            ended.labels(code.name.lower())
        lag = histogram(
            "wecompany_reactor_lag_seconds",
            "Time by which the reactor was late for what was due, looked at each second while somebody is connected.",
            buckets=LAG_BUCKETS,
            registry=registry,
        )
        relay = histogram(
            "wecompany_relay_seconds",
            "Time from reading a message to handing it to the receiver's socket; one a second is looked at.",
            buckets=RELAY_BUCKETS,
            registry=registry,
        )
        registry.register(self)
        prometheus_client.ProcessCollector(registry=registry)
        prometheus_client.PlatformCollector(registry=registry)
        prometheus_client.GCCollector(registry=registry)

        before = factory.swept

        def swept(late: float) -> None:
            before(late)
            lag.observe(late)
            factory.timeRelay(relay.observe)

        factory.addObserver(_CallWatch(setup.observe, duration.observe, ended))
        factory.swept = swept

    def render(self) -> bytes:
        """Return all figures as they are now."""
        return self._generate(self._registry)

    def describe(self) -> list[Metric]:
        """Say nothing of what will be collected: the registry need not know it beforehand."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Return what is read off the factory; the registry calls this."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        factory = self._factory
        traffic = factory.traffic

        def gauge(name: str, text: str, value: float) -> Metric:
            return GaugeMetricFamily(f"wecompany_{name}", text, value)

        def counter(name: str, text: str, value: float) -> Metric:
            return CounterMetricFamily(f"wecompany_{name}", text, value)

        yield gauge("connections", "Connections that are open, registered or not.", factory.connectionCount)
        yield gauge("users_online", "Users who are online.", factory.onlineCount)
        yield counter("registrations", "Registrations that were accepted.", factory.registrations)
        queued = GaugeMetricFamily("wecompany_queued_bytes", "Bytes that wait for receivers.", labels=["class"])
        for name, waiting in factory.waitingByClass().items():
            queued.add_metric([name], waiting)
        yield queued
        calls = GaugeMetricFamily("wecompany_calls", "Calls that there are now.", labels=["state"])
        for state, n in zip(("ringing", "active"), factory.calls.countCalls(), strict=True):
            calls.add_metric([state], n)
        yield calls
        messages = CounterMetricFamily(
            "wecompany_messages", "Frames, from clients (in) and to clients (out).", labels=["type", "direction"]
        )
        size = CounterMetricFamily("wecompany_message_bytes", "Bytes of these frames.", labels=["type", "direction"])
        for family, received, sent in (
            (messages, traffic.received, traffic.sent),
            (size, traffic.receivedBytes, traffic.sentBytes),
        ):
            for direction, numbers in (("in", received), ("out", sent)):
                for known in MessageType:
                    family.add_metric([known.name.lower(), direction], numbers[known])
                family.add_metric(["other", direction], sum(numbers[len(MessageType) :]))
            yield family
        yield from self._counted()
        yield from self._ofStore()

    def _counted(self) -> Iterator[Metric]:
        """Return the factory's counters, by the families that their names form."""
        from prometheus_client.core import CounterMetricFamily

        families = {
            prefix: CounterMetricFamily(
                f"wecompany_{name}", text, labels=["class", label] if prefix == "media dropped" else [label]
            )
            for prefix, (name, label, text) in _FAMILIES.items()
        }
        logIns = CounterMetricFamily("wecompany_log_ins", "Registrations that accounts let in.", labels=["by"])
        events = CounterMetricFamily("wecompany_events", "Whatever else is counted.", labels=["event"])
        for what, n in sorted(self._factory.counters.items()):
            prefix, _, value = what.partition(": ")
            family = families.get(prefix)
            if what.startswith(_LOG_INS):
                logIns.add_metric([what.removeprefix(_LOG_INS)], n)
            elif family is None:
                events.add_metric([what], n)
            elif prefix == "media dropped":
                kind, _, reason = value.partition(", ")
                family.add_metric([kind, reason] if kind in _MEDIA_CLASSES else ["unknown", value], n)
            else:
                family.add_metric([value], n)
        yield from families.values()
        yield logIns
        yield events

    def _ofStore(self) -> Iterator[Metric]:
        """Return what the store tells of itself; another than this package's may tell less."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily

        store = self._factory.store
        for attribute, kind, name, text in (
            ("commits", CounterMetricFamily, "store_commits", "Transactions that succeeded."),
            ("failures", CounterMetricFamily, "store_failures", "Transactions that failed."),
            ("textsKept", CounterMetricFamily, "store_texts_kept", "Texts that were committed."),
            ("lost", CounterMetricFamily, "store_updates_lost", "Updates that were given up."),
            ("lastCommitSeconds", GaugeMetricFamily, "store_commit_seconds", "How long the last transaction took."),
            ("pendingBytes", GaugeMetricFamily, "store_pending_bytes", "Bytes that are not committed yet."),
            ("queueLength", GaugeMetricFamily, "store_queued_operations", "Operations that wait for a transaction."),
            ("lagSeconds", GaugeMetricFamily, "store_lag_seconds", "How long the oldest operation waits by now."),
        ):
            value = getattr(store, attribute, None)
            if value is not None:
                yield kind(f"wecompany_{name}", text, value)


class _CallWatch(ServerObserver):
    """Watches calls."""

    def __init__(self, setup: Callable[[float], None], duration: Callable[[float], None], ended: Counter) -> None:
        self._setup = setup
        self._duration = duration
        self._ended = ended

    def callAccepted(self, session: CallSession) -> None:
        """See L{IServerObserver.callAccepted<wecompany.interfaces.IServerObserver.callAccepted>}."""
        assert session.answeredAt is not None
        self._setup(session.answeredAt - session.startedAt)

    def callRejected(self, session: CallSession, code: int, reason: str) -> None:
        """See L{IServerObserver.callRejected<wecompany.interfaces.IServerObserver.callRejected>}."""
        self._over(session, RejectCode(code))

    def callEnded(self, session: CallSession, code: int, reason: str) -> None:
        """See L{IServerObserver.callEnded<wecompany.interfaces.IServerObserver.callEnded>}."""
        self._over(session, EndCode(code))

    def _over(self, session: CallSession, outcome: IntEnum) -> None:
        self._ended.labels(outcome.name.lower()).inc()
        if session.answeredAt is not None and session.endedAt is not None:
            self._duration(session.endedAt - session.answeredAt)
