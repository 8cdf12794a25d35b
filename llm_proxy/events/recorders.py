"""What every process makes of each event: a line in the log, its part in the metrics."""

import asyncio
import logging
from collections import deque
from typing import Any, Protocol

from llm_proxy.clock import now_ms, to_rfc3339
from llm_proxy.events import HITS, Event
from llm_proxy.logs import JsonFormatter, Ready, TextFormatter
from llm_proxy.metrics import Metrics
from llm_proxy.secret import redact

log = logging.getLogger("llm_proxy.calls")

METHODS = frozenset({"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"})
# Lines of calls that wait to be written, and how many seconds.
MOST_WAITING, PATIENCE = 32, 0.1
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

    Lines are made and written some at a time, which costs a quarter of one after the other: their code stays in the processor's
    caches, and the file is looked at once. A line waits until there are `MOST_WAITING`, for `PATIENCE` at the longest; any other
    record that the handler gets goes behind those that wait.

    Args:
        handler: what `logs.configure` returned.
    """

    def __init__(self, handler: logging.Handler) -> None:
        self._handler = handler
        assert isinstance(handler.formatter, JsonFormatter | TextFormatter)
        self._line = handler.formatter.line
        # Taken from its left while others add to its right: records of other threads come in between.
        self._waiting: deque[tuple[int, Event]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        handler.addFilter(self._keep_order)

    def add(self, event: Event) -> None:
        """Write a line for the call soon; its event changes no more."""
        if not log.isEnabledFor(logging.INFO):
            return
        self._waiting.append((now_ms(), event))
        if len(self._waiting) >= MOST_WAITING:
            self.flush()
        elif self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(PATIENCE, self.flush)

    def flush(self) -> None:
        """Write the lines that wait."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        self._write()

    def _write(self) -> None:
        lines = []
        while self._waiting:
            ms, event = self._waiting.popleft()
            message = f"{redact(event.method)} {event.path} {event.status or '-'} {event.outcome}"
            lines.append(self._line(ms, "INFO", log.name, message, facts_of(event)))
        if lines:
            self._handler.handle(Ready(log.name, "\n".join(lines)))

    def _keep_order(self, record: logging.LogRecord) -> bool:
        if record.name != log.name:
            self._write()
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
