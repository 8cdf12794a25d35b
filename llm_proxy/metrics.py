"""The Prometheus registry."""

from collections.abc import Callable, Iterable
from typing import Any

from prometheus_client import (
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    disable_created_metrics,
    generate_latest,
)

from llm_proxy.counters import CounterFamily, Family, HistogramFamily, Registry

# From half a millisecond, what we add to a call, to two minutes, what a long completion takes.
SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120)
# Tokens a second, from a model that crawls to what special hardware does.
RATES = (1, 2.5, 5, 10, 25, 50, 75, 100, 150, 250, 500, 1000, 2500)
# The label of what holds for the log of events itself, and for no sink.
SPOOL = "spool"


class Metrics:
    """Every metric of one process; each call counts once, refusals too."""

    def __init__(self) -> None:
        # When each series began is of no use to anyone here, and would double their number.
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry = Registry()
        ProcessCollector(registry=registry)
        PlatformCollector(registry=registry)
        labels = ("method", "endpoint", "model", "provider", "status")
        self.requests = CounterFamily("llm_proxy_requests", "Calls that ended.", labels, registry=registry)
        self.duration = HistogramFamily(
            "llm_proxy_request_duration_seconds",
            "From the head of a request to the end of its reply.",
            ("endpoint",),
            buckets=SECONDS,
            registry=registry,
        )
        self.overhead = HistogramFamily(
            "llm_proxy_overhead_seconds", "The proxy's own part of a call.", buckets=SECONDS, registry=registry
        )
        self._time_providers(registry)
        self.active = Gauge("llm_proxy_active_requests", "Calls in flight.", registry=registry)
        self.tokens = CounterFamily(
            "llm_proxy_tokens",
            "Model tokens used, by type prompt or completion.",
            ("model", "provider", "type"),
            registry=registry,
        )
        self.refusals = CounterFamily(
            "llm_proxy_refusals", "Requests answered with an error of our own.", ("code",), registry=registry
        )
        self.disconnects = CounterFamily(
            "llm_proxy_client_disconnects", "Clients that left before the end of their reply.", registry=registry
        )
        self._count_cache(registry)
        published = CounterFamily(
            "llm_proxy_events_published", "Events of calls, each for the log and for every sink.", ("sink",), registry=registry
        )
        self._published = published
        self.published = [published.labels(SPOOL)]
        self._count_stores(registry)
        self.loop_lag = Gauge("llm_proxy_loop_lag_seconds", "How late the event loop last ran a timer.", registry=registry)
        self.db_query = Histogram(
            "llm_proxy_db_query_seconds",
            "How long statements took, the wait for a connection included.",
            buckets=SECONDS,
            registry=registry,
        )
        self.reloaded = Gauge(
            "llm_proxy_config_last_reload_successful", "0 while the last file of profiles was refused.", registry=registry
        )
        self.reloaded.set(1)
        # For the summary in JSON: what was counted for a provider stays counted when its series go.
        self.calls = self.failed_calls = self.tokens_used = 0

    def _time_providers(self, registry: Registry) -> None:
        def timed(name: str, help: str, buckets: tuple[float, ...] = SECONDS) -> HistogramFamily:
            return HistogramFamily(f"llm_proxy_{name}", help, ("provider",), buckets=buckets, registry=registry)

        self.provider_latency = timed(
            "provider_latency_seconds", "From a request handed to a provider to the first byte of its answer."
        )
        self.ttft = timed("ttft_seconds", "From the head of a call to the first bytes of the stream that answers it.")
        self.tokens_per_second = timed(
            "tokens_per_second", "Completion tokens a second of a stream, from its first bytes to its end.", RATES
        )
        self.failed_attempts = CounterFamily(
            "llm_proxy_failed_attempts",
            "Attempts at providers after which a call went on to another, by status or error code.",
            ("provider", "status"),
            registry=registry,
        )

    def _count_cache(self, registry: Registry) -> None:
        self.cache_hits = CounterFamily("llm_proxy_cache_hits", "Calls that were answered from the cache.", registry=registry)
        self.cache_misses = CounterFamily(
            "llm_proxy_cache_misses", "Calls that the cache might have answered and did not.", registry=registry
        )
        self.cache_bypass = CounterFamily(
            "llm_proxy_cache_bypass", "Calls in which the cache has no part, such as most POSTs.", registry=registry
        )
        self.cache_stores = CounterFamily("llm_proxy_cache_stores", "Answers that were put into the cache.", registry=registry)
        self.cache_bytes = Gauge("llm_proxy_cache_bytes", "What the cache in memory holds.", registry=registry)
        self.cache_switches = Counter(
            "llm_proxy_cache_switches", "How often the store of the cache went away or came back.", ("to",), registry=registry
        )

    def _count_stores(self, registry: Registry) -> None:
        self.limiter_switches = Counter(
            "llm_proxy_limiter_switches",
            "Times that rate limits were counted elsewhere from then on: redis, memory, unavailable.",
            ("to",),
            registry=registry,
        )
        self.usage_lost = Counter(
            "llm_proxy_usage_lost",
            "Calls that the history of usage lacks; the database was away too long.",
            registry=registry,
        )
        self.limiter_degraded = Gauge(
            "llm_proxy_limiter_degraded", "1 while Redis is away and rate limits are not counted there.", registry=registry
        )

    def publishes_to(self, sinks: Iterable[str]) -> None:
        """From now on every event is made for these sinks too."""
        self.published += [self._published.labels(sink) for sink in sinks]

    def forget_providers(self, is_known: Callable[[str], bool]) -> None:
        """Let go of the series of providers whose label is not known any more."""
        counters = (self.requests, self.tokens, self.failed_attempts)
        families: tuple[Family[Any], ...] = (*counters, self.provider_latency, self.ttft, self.tokens_per_second)
        for family in families:
            place = family.label_names.index("provider")
            for labels in family:
                if not is_known(labels[place]):
                    family.remove(*labels)

    def cache_switched(self, to: str) -> None:
        """The store of the cache is away, or back."""
        self.cache_switches.labels(to).inc()

    def text(self) -> bytes:
        """All metrics in Prometheus' text format."""
        return generate_latest(self.registry)

    def total(self, counter: Counter | CounterFamily) -> float:
        """The sum of a counter over all its labels."""
        self.registry.catch_up()
        return sum(sample.value for family in counter.collect() for sample in family.samples if sample.name.endswith("_total"))
