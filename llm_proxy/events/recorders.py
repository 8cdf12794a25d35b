"""What every process makes of each event: a line in the log, its part in the metrics."""

import logging
from typing import Protocol

from llm_proxy.events import HITS, Event, as_record
from llm_proxy.metrics import Metrics

log = logging.getLogger("llm_proxy.calls")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# A stream that is shorter came in one piece, and says nothing of how fast its tokens come.
SHORTEST_STREAM = 0.01


class Labels(Protocol):
    """The names that may become labels, which are few."""

    def provider(self, id: str | None, kind: str | None) -> str:
        """The label of a provider, by its id and its profile."""

    def model(self, project_id: str | None, model: str | None) -> str:
        """The label of a model that a client named."""


def log_call(event: Event) -> None:
    """One line per call, made from its event, never with bodies."""
    record = as_record(event)
    ids = {"request_id": event.request_id, "correlation_id": event.correlation_id}
    facts = {name: round(value, 6) if isinstance(value, float) else value for name, value in record.items() if value is not None}
    log.info("%s %s %s %s", event.method, event.path, event.status or "-", event.outcome, extra={"facts": {**facts, **ids}})


def measure(metrics: Metrics, labels: Labels, event: Event) -> None:
    """Count the call."""
    endpoint, provider = event.endpoint or "other", labels.provider(event.provider, event.provider_type)
    # Models and methods come from clients; only names known beforehand may become labels.
    model = labels.model(event.project_id, event.model)
    method = event.method if event.method in METHODS else "other"
    metrics.calls += 1
    metrics.failed_calls += event.status >= 400
    for published in metrics.published:
        published.inc()
    metrics.of(metrics.requests, method, endpoint, model, provider, str(event.status)).inc()
    metrics.of(metrics.duration, endpoint).observe(event.duration)
    metrics.overhead.observe(event.overhead)
    if event.code:
        metrics.of(metrics.refusals, event.code).inc()
    if event.outcome == "client_gone":
        metrics.disconnects.inc()
    _measure_cache(metrics, event.cache)
    if event.attempts:
        _measure_provider(metrics, labels, event, provider)
    _measure_tokens(metrics, event, model, provider)


def _measure_provider(metrics: Metrics, labels: Labels, event: Event, provider: str) -> None:
    if event.first_byte is not None:
        metrics.of(metrics.provider_latency, provider).observe(event.first_byte)
    if event.ttft is not None:
        metrics.of(metrics.ttft, provider).observe(event.ttft)
    for attempt in event.failed_attempts:
        tried = labels.provider(attempt["provider"], event.provider_type)
        metrics.of(metrics.failed_attempts, tried, str(attempt["status"] or attempt["code"])).inc()


def _measure_tokens(metrics: Metrics, event: Event, model: str, provider: str) -> None:
    prompt, completion = event.usage.prompt_tokens, event.usage.completion_tokens
    if prompt:
        metrics.of(metrics.tokens, model, provider, "prompt").inc(prompt)
    if not completion:
        metrics.tokens_used += prompt or 0
        return
    metrics.of(metrics.tokens, model, provider, "completion").inc(completion)
    metrics.tokens_used += completion + (prompt or 0)
    if event.ttft is not None and (seconds := event.duration - event.ttft) >= SHORTEST_STREAM:
        metrics.of(metrics.tokens_per_second, provider).observe(completion / seconds)


def _measure_cache(metrics: Metrics, cache: str | None) -> None:
    if cache in HITS:
        metrics.cache_hits.inc()
    elif cache == "bypass":
        metrics.cache_bypass.inc()
    elif cache:
        metrics.cache_misses.inc()
        if cache == "stored":
            metrics.cache_stores.inc()
