"""What every process makes of each event: a line in the log, its part in the metrics."""

import logging

from llm_proxy.events import Event, as_record
from llm_proxy.metrics import Metrics

log = logging.getLogger("llm_proxy.calls")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})


def log_call(event: Event) -> None:
    """One line per call, made from its event, never with bodies."""
    record = as_record(event)
    ids = {"request_id": event.request_id, "correlation_id": event.correlation_id}
    facts = {name: round(value, 6) if isinstance(value, float) else value for name, value in record.items() if value is not None}
    log.info("%s %s %s %s", event.method, event.path, event.status or "-", event.outcome, extra={"facts": {**facts, **ids}})


def measure(metrics: Metrics, event: Event) -> None:
    """Count the call."""
    endpoint, provider = event.endpoint or "other", event.provider_type or "none"
    # Models and methods come from clients; only names known beforehand may become labels.
    model = "other" if event.model else "none"
    method = event.method if event.method in METHODS else "other"
    metrics.published.inc()
    metrics.of(metrics.requests, method, endpoint, model, provider, str(event.status)).inc()
    metrics.of(metrics.duration, endpoint).observe(event.duration)
    metrics.overhead.observe(event.overhead)
    if event.first_byte is not None:
        metrics.of(metrics.ttft, provider).observe(event.first_byte)
    if event.code:
        metrics.of(metrics.refusals, event.code).inc()
    if event.outcome == "client_gone":
        metrics.disconnects.inc()
    _measure_cache(metrics, event.cache)
    if event.usage.prompt_tokens:
        metrics.of(metrics.tokens, model, provider, "prompt").inc(event.usage.prompt_tokens)
    if event.usage.completion_tokens:
        metrics.of(metrics.tokens, model, provider, "completion").inc(event.usage.completion_tokens)


def _measure_cache(metrics: Metrics, cache: str | None) -> None:
    if cache in ("hit", "conditional-hit"):
        metrics.cache_hits.inc()
    elif cache == "bypass":
        metrics.cache_bypass.inc()
    elif cache:
        metrics.cache_misses.inc()
        if cache == "stored":
            metrics.cache_stores.inc()
