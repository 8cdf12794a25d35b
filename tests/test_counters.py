"""What is counted shows as prometheus_client shows its own."""

from collections.abc import Callable
from typing import Any

import prometheus_client
import pytest
from prometheus_client import generate_latest

from llm_proxy.counters import CounterFamily, HistogramFamily, Registry

BOUNDS = (0.001, 0.5, 1, 120)


def fill(counter: Callable[..., Any], histogram: Callable[..., Any]) -> bytes:
    """The text of two metrics without labels, of two with some, of two that have no series yet."""
    registry = Registry()
    counter("calls", "Calls.", registry=registry).inc()
    labelled = counter("tokens", "Tokens.", ("model", "type"), registry=registry)
    labelled.labels('gpt "4"', "prompt").inc(3)
    labelled.labels('gpt "4"', "prompt").inc(0.5)
    labelled.labels("m", "completion").inc()
    counter("unused", "Nothing.", ("code",), registry=registry)
    histogram("spent", "Seconds.", buckets=BOUNDS, registry=registry).observe(0.2)
    by_provider = histogram("latency", "Latency.", ("provider",), buckets=BOUNDS, registry=registry)
    for seconds in (0, 0.001, 0.0011, 1, 119, 120, 121):
        by_provider.labels("p").observe(seconds)
    histogram("idle", "Nothing.", buckets=BOUNDS, registry=registry)
    return generate_latest(registry)


def test_text_is_that_of_the_library() -> None:
    prometheus_client.disable_created_metrics()
    ours = fill(CounterFamily, HistogramFamily)
    assert ours == fill(prometheus_client.Counter, prometheus_client.Histogram)
    assert b'latency_bucket{le="+Inf",provider="p"} 7.0' in ours


def test_series_that_is_removed_begins_anew() -> None:
    family = CounterFamily("calls", "Calls.", ("code",), registry=Registry())
    for _ in range(2):
        family.labels("a").inc()
        assert (list(family), family.labels("a").value) == ([("a",)], 1)
        family.remove("a")
    assert list(family) == []


def test_labels_must_be_those_of_the_family() -> None:
    family = CounterFamily("calls", "Calls.", ("code",), registry=Registry())
    with pytest.raises(ValueError, match="calls has the labels"):
        family.labels("a", "b")


def test_name_is_registered_once() -> None:
    registry = Registry()
    CounterFamily("calls", "Calls.", registry=registry)
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        HistogramFamily("calls_total", "Calls.", buckets=BOUNDS, registry=registry)


def test_what_is_yet_to_be_counted_is_counted_before_anything_is_told() -> None:
    registry = Registry()
    family = CounterFamily("calls", "Calls.", registry=registry)
    registry.catch_up = family.inc
    assert registry.get_sample_value("calls_total") == 1
    assert [sample.value for metric in family.collect() for sample in metric.samples] == [2]
    assert b"calls_total 3.0" in generate_latest(registry)
