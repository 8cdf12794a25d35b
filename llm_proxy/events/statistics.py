"""How the log of events is doing, for the management API, health, metrics."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llm_proxy.events.dispatcher import Stats
from llm_proxy.events.reading import Backlog
from llm_proxy.events.stream import StreamState
from llm_proxy.metrics import SPOOL


@dataclass(frozen=True, kw_only=True)
class Report:
    """The state of one process's events since it started.

    Attributes:
        enabled: whether events are written at all.
        writing: whether the last event could be written.
        last: the sequence of the last event in the log.
        synced: the last of which the disk is sure.
        lost: events that could not be written.
        dropped: events that the backlog's cap took away before every sink had them.
        bytes: what the fullest log holds.
        cap: what a log may hold; 0 where there is none.
    """

    enabled: bool = True
    writing: bool = True
    last: int = 0
    synced: int = 0
    lost: int = 0
    dropped: int = 0
    bytes: int = 0
    cap: int = 0
    sinks: Mapping[str, Stats]


def total(parts: Iterable[Stats]) -> Stats:
    """How a sink is doing over several logs."""
    whole = Stats()
    for part in parts:
        whole.delivered += part.delivered
        whole.failed += part.failed
        whole.dead_letters += part.dead_letters
        whole.dropped += part.dropped
        whole.backlog = Backlog(whole.backlog.count + part.backlog.count, whole.backlog.bytes + part.backlog.bytes)
        whole.oldest_age = max(whole.oldest_age, part.oldest_age)
        whole.last_error = part.last_error or whole.last_error
    return whole


def shown(report: Report, stream: StreamState | None = None) -> dict[str, Any]:
    """The report as the management API gives it, with the stream in Redis where events go there."""
    return {
        "object": "event_stats",
        "enabled": report.enabled,
        "writing": report.writing,
        "last_sequence": report.last,
        "synced_sequence": report.synced,
        "lost": report.lost,
        "dropped": report.dropped,
        "sinks": [_sink(name, stats) for name, stats in report.sinks.items()],
        "stream": stream and shown_stream(stream),
    }


def shown_stream(stream: StreamState) -> dict[str, Any]:
    """The stream for programs that read JSON."""
    return asdict(stream)


def _sink(name: str, stats: Stats) -> dict[str, Any]:
    return {
        "name": name,
        "delivered": stats.delivered,
        "failed": stats.failed,
        "dead_letters": stats.dead_letters,
        "dropped": stats.dropped,
        "backlog": stats.backlog.count,
        "backlog_bytes": stats.backlog.bytes,
        "oldest_age_seconds": stats.oldest_age,
        "last_error": stats.last_error or None,
    }


class DeliveryCollector(Collector):
    """The metrics of the delivery, made from the report when they are asked for."""

    def __init__(self, report: Callable[[], Report]) -> None:
        self._report = report

    def collect(self) -> Iterator[Metric]:
        """Every metric with its samples."""
        report = self._report()
        sinks = report.sinks.items()
        lost = [(SPOOL, report.lost), *((name, stats.dropped) for name, stats in sinks)]
        yield _counter("delivered", "Events that a sink took.", [(name, stats.delivered) for name, stats in sinks])
        yield _counter("failed", "Events that a sink did not take at an attempt.", [(name, s.failed) for name, s in sinks])
        yield _counter("lost", "Events that could not be written, or were dropped before a sink had them.", lost)
        yield _counter("dead_letters", "Events that a sink will not take.", [(name, s.dead_letters) for name, s in sinks])
        yield _gauge("backlog", "Events that a sink has yet to get.", [(name, stats.backlog.count) for name, stats in sinks])
        yield _gauge("oldest_seconds", "The age of the oldest of them.", [(name, stats.oldest_age) for name, stats in sinks])
        if report.cap:
            yield GaugeMetricFamily("llm_proxy_events_spool_bytes", "What the fullest log of events holds.", report.bytes)
            yield GaugeMetricFamily("llm_proxy_events_spool_cap_bytes", "EVENT_BACKLOG_BYTES: what it may hold.", report.cap)


def _of_sinks(
    kind: type[CounterMetricFamily | GaugeMetricFamily], name: str, help: str, samples: Sequence[tuple[str, float]]
) -> Metric:
    family = kind(f"llm_proxy_events_{name}", help, labels=("sink",))
    for sink, value in samples:
        family.add_metric((sink,), value)
    return family


_counter, _gauge = functools.partial(_of_sinks, CounterMetricFamily), functools.partial(_of_sinks, GaugeMetricFamily)
