"""What every process makes of each event: a line in the log, its part in the metrics."""

import logging
import threading
from collections.abc import Callable
from typing import Any, Protocol

from llm_proxy.clock import to_rfc3339
from llm_proxy.events import HITS, Event
from llm_proxy.logs import JsonFormatter, Ready, TextFormatter
from llm_proxy.metrics import Metrics
from llm_proxy.secret import redact

log = logging.getLogger("llm_proxy.calls")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
SECONDS = ("duration", "overhead", "connect", "first_byte", "ttft")
BODIES = ("request_body", "reply_body")
# What else stands in an event is ours, or was masked before it was put there.
UNCHECKED = ("client_ip", "method", "project_name", "token_name", "provider_type", "endpoint")
# A stream that is shorter came in one piece, and says nothing of how fast its tokens come.
SHORTEST_STREAM = 0.01


class Labels(Protocol):
    """The names that may become labels, which are few."""

    def provider(self, id: str | None, kind: str | None) -> str:
        """The label of a provider, by its id and its profile."""

    def model(self, project_id: str | None, model: str | None) -> str:
        """The label of a model that a client named."""


class CallLog:
    """One line per call in this process's log, made from its event, never with bodies.

    Lines are written some at a time, with one look at the file. They go ahead of whatever else the event loop logs.

    Args:
        handler: what `logs.configure` returned.
        catch_up: has `add` called with the events that it lacks.
    """

    def __init__(self, handler: logging.Handler, catch_up: Callable[[], None]) -> None:
        assert isinstance(handler.formatter, JsonFormatter | TextFormatter)
        self._line, self._catch_up = handler.formatter.line, catch_up
        self._lines: list[str] = []
        self._thread = threading.get_ident()
        handler.addFilter(self._keep_order)

    def add(self, event: Event) -> None:
        """Make the line of a call, with the time at which it ended, for `write`."""
        if log.isEnabledFor(logging.INFO):
            ended = event.started_at + int(event.duration * 1000)
            message = f"{redact(event.method)} {event.path} {event.status or '-'} {event.outcome}"
            self._lines.append(self._line(ended, "INFO", log.name, message, facts_of(event)))

    def write(self) -> None:
        """Write the lines that were made."""
        if self._lines:
            lines, self._lines = self._lines, []
            log.handle(Ready(log.name, "\n".join(lines)))

    def _keep_order(self, record: logging.LogRecord) -> bool:
        if not isinstance(record, Ready) and threading.get_ident() == self._thread:
            self._catch_up()
        return True


def facts_of(event: Event) -> dict[str, Any]:
    """What the log tells of a call: all that is known, without bodies; of secrets it is free."""
    facts = {name: value for name, value in vars(event).items() if value is not None}
    facts["started_at"], facts["usage_source"] = to_rfc3339(event.started_at), event.usage.source
    for name in SECONDS:
        if name in facts:
            facts[name] = round(facts[name], 6)
    for name in UNCHECKED:
        if name in facts:
            facts[name] = redact(facts[name])
    for name in BODIES:
        facts.pop(name, None)
    return facts


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
    metrics.requests.labels(method, endpoint, model, provider, str(event.status)).inc()
    metrics.duration.labels(endpoint).observe(event.duration)
    metrics.overhead.observe(event.overhead)
    if event.code:
        metrics.refusals.labels(event.code).inc()
    if event.outcome == "client_gone":
        metrics.disconnects.inc()
    _measure_cache(metrics, event.cache)
    if event.attempts:
        _measure_provider(metrics, labels, event, provider)
    _measure_tokens(metrics, event, model, provider)


def _measure_provider(metrics: Metrics, labels: Labels, event: Event, provider: str) -> None:
    if event.first_byte is not None:
        metrics.provider_latency.labels(provider).observe(event.first_byte)
    if event.ttft is not None:
        metrics.ttft.labels(provider).observe(event.ttft)
    for attempt in event.failed_attempts:
        tried = labels.provider(attempt["provider"], event.provider_type)
        metrics.failed_attempts.labels(tried, str(attempt["status"] or attempt["code"])).inc()


def _measure_tokens(metrics: Metrics, event: Event, model: str, provider: str) -> None:
    prompt, completion = event.usage.prompt_tokens, event.usage.completion_tokens
    if prompt:
        metrics.tokens.labels(model, provider, "prompt").inc(prompt)
    if not completion:
        metrics.tokens_used += prompt or 0
        return
    metrics.tokens.labels(model, provider, "completion").inc(completion)
    metrics.tokens_used += completion + (prompt or 0)
    if event.ttft is not None and (seconds := event.duration - event.ttft) >= SHORTEST_STREAM:
        metrics.tokens_per_second.labels(provider).observe(completion / seconds)


def _measure_cache(metrics: Metrics, cache: str | None) -> None:
    if cache in HITS:
        metrics.cache_hits.inc()
    elif cache == "bypass":
        metrics.cache_bypass.inc()
    elif cache:
        metrics.cache_misses.inc()
        if cache == "stored":
            metrics.cache_stores.inc()
