"""The metrics have the names that are promised."""

import pytest
from prometheus_client.parser import text_string_to_metric_families

from llm_proxy.metrics import Metrics

NAMES = {
    "llm_proxy_requests",
    "llm_proxy_request_duration_seconds",
    "llm_proxy_overhead_seconds",
    "llm_proxy_active_requests",
    "llm_proxy_tokens",
    "llm_proxy_provider_latency_seconds",
    "llm_proxy_failed_attempts",
    "llm_proxy_ttft_seconds",
    "llm_proxy_tokens_per_second",
    "llm_proxy_refusals",
    "llm_proxy_cache_hits",
    "llm_proxy_cache_misses",
    "llm_proxy_cache_bypass",
    "llm_proxy_cache_stores",
    "llm_proxy_cache_bytes",
    "llm_proxy_cache_switches",
    "llm_proxy_events_published",
    "llm_proxy_usage_lost",
    "llm_proxy_client_disconnects",
    "llm_proxy_limiter_switches",
    "llm_proxy_limiter_degraded",
    "llm_proxy_loop_lag_seconds",
    "llm_proxy_db_query_seconds",
    "llm_proxy_config_last_reload_successful",
}


SINKS = ("spool", "file", "lunary")


def test_every_metric_is_there_with_those_of_the_process() -> None:
    families = {family.name for family in text_string_to_metric_families(Metrics().text().decode())}
    assert families >= NAMES
    assert {name for name in families if name.startswith("llm_proxy_")} == NAMES
    assert "process_resident_memory_bytes" in families


def test_metrics_of_two_processes_in_one_do_not_mix() -> None:
    one, two = Metrics(), Metrics()
    one.disconnects.inc()
    assert (one.total(one.disconnects), two.total(two.disconnects)) == (1, 0)


def test_events_are_published_to_the_log_and_to_every_sink() -> None:
    metrics = Metrics()
    metrics.publishes_to(["file", "lunary"])
    for published in metrics.published:
        published.inc()
    found = {sink: metrics.registry.get_sample_value("llm_proxy_events_published_total", {"sink": sink}) for sink in SINKS}
    assert found == dict.fromkeys(SINKS, 1.0)


def test_the_series_of_a_provider_that_is_gone_go_with_it() -> None:
    metrics = Metrics()
    for provider in ("gone", "main"):
        metrics.requests.labels("POST", "/v1/chat/completions", "m", provider, "200").inc()
        metrics.tokens.labels("m", provider, "prompt").inc(3)
        metrics.ttft.labels(provider).observe(0.1)
    metrics.refusals.labels("gone").inc()
    metrics.forget_providers(lambda label: label == "main")
    text = metrics.text().decode()
    assert 'provider="gone"' not in text
    assert text.count('provider="main"') > 3
    assert metrics.total(metrics.refusals) == 1
    metrics.tokens.labels("m", "gone", "prompt").inc(1)
    assert metrics.total(metrics.tokens) == 4


def test_total_is_the_sum_over_all_labels() -> None:
    metrics = Metrics()
    metrics.refusals.labels("invalid_token").inc(2)
    metrics.refusals.labels("overloaded").inc()
    assert metrics.total(metrics.refusals) == 3
    assert metrics.total(metrics.requests) == 0


@pytest.mark.parametrize("seconds", [0.0005, 120])
def test_durations_reach_from_half_a_millisecond_to_two_minutes(seconds: float) -> None:
    metrics = Metrics()
    metrics.overhead.observe(seconds)
    [family] = [f for f in text_string_to_metric_families(metrics.text().decode()) if f.name == "llm_proxy_overhead_seconds"]
    bounds = {float(sample.labels["le"]): sample.value for sample in family.samples if "le" in sample.labels}
    assert (min(bounds), max(bound for bound in bounds if bound != float("inf"))) == (0.0005, 120)
    assert bounds[seconds] == 1
