"""Each event is one line in the log and one call in the metrics."""

import logging
from typing import Any

import pytest

from llm_proxy.events import Event
from llm_proxy.events.recorders import log_call, measure
from llm_proxy.metrics import Metrics
from llm_proxy.usage import Usage


def new_event(**facts: Any) -> Event:
    event = Event("r1", "c1", "192.0.2.1", "ua/1.0", facts.pop("method", "POST"), "/v1/chat/completions")
    for name, value in {"status": 200, "outcome": "completed", **facts}.items():
        setattr(event, name, value)
    return event


def sample(metrics: Metrics, name: str, **labels: str) -> float | None:
    return metrics.registry.get_sample_value(name, labels)


class Known:
    """Knows the models that it is given, and every provider by its id."""

    def __init__(self, *models: str) -> None:
        self.models = models

    def provider(self, id: str | None, kind: str | None) -> str:
        return id or "none"

    def model(self, project_id: str | None, model: str | None) -> str:
        return model if model in self.models else "other" if model else "none"


def test_line_tells_what_became_of_the_call(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm_proxy.calls")
    log_call(new_event(duration=0.123456789, first_byte=None, usage=Usage(prompt_tokens=3)))
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.INFO, "POST /v1/chat/completions 200 completed")
    facts = record.__dict__["facts"]
    assert (facts["request_id"], facts["correlation_id"], facts["duration"]) == ("r1", "c1", 0.123457)
    assert "first_byte" not in facts


def test_line_of_a_client_that_got_no_status_has_a_dash(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm_proxy.calls")
    log_call(new_event(status=0, outcome="client_gone"))
    assert caplog.messages == ["POST /v1/chat/completions - client_gone"]


def test_call_is_counted_once_with_its_durations_and_tokens() -> None:
    metrics = Metrics()
    usage = Usage(prompt_tokens=3, completion_tokens=4)
    measure(
        metrics,
        Known("gpt-4o"),
        new_event(
            model="gpt-4o",
            provider="main",
            endpoint="/v1/chat/completions",
            attempts=2,
            failed_attempts=[{"provider": "sick", "status": 503, "code": None, "duration": 0.1}],
            first_byte=0.2,
            ttft=0.5,
            duration=1.0,
            usage=usage,
        ),
    )
    labels = {"method": "POST", "endpoint": "/v1/chat/completions", "model": "gpt-4o", "provider": "main", "status": "200"}
    assert sample(metrics, "llm_proxy_requests_total", **labels) == 1
    assert sample(metrics, "llm_proxy_request_duration_seconds_sum", endpoint="/v1/chat/completions") == 1.0
    assert sample(metrics, "llm_proxy_overhead_seconds_count") == 1
    assert sample(metrics, "llm_proxy_provider_latency_seconds_sum", provider="main") == 0.2
    assert sample(metrics, "llm_proxy_ttft_seconds_sum", provider="main") == 0.5
    assert sample(metrics, "llm_proxy_tokens_per_second_sum", provider="main") == 8
    assert sample(metrics, "llm_proxy_failed_attempts_total", provider="sick", status="503") == 1
    assert sample(metrics, "llm_proxy_tokens_total", model="gpt-4o", provider="main", type="prompt") == 3
    assert sample(metrics, "llm_proxy_tokens_total", model="gpt-4o", provider="main", type="completion") == 4
    assert sample(metrics, "llm_proxy_events_published_total", sink="spool") == 1
    assert metrics.total(metrics.refusals) == metrics.total(metrics.disconnects) == 0


def test_a_stream_in_one_piece_has_no_rate() -> None:
    metrics = Metrics()
    measure(metrics, Known(), new_event(provider="main", attempts=1, ttft=0.5, duration=0.501, usage=Usage(completion_tokens=4)))
    assert sample(metrics, "llm_proxy_ttft_seconds_count", provider="main") == 1
    assert sample(metrics, "llm_proxy_tokens_per_second_count", provider="main") is None


def test_refusal_is_counted_by_its_code() -> None:
    metrics = Metrics()
    measure(metrics, Known(), new_event(status=401, outcome="refused", code="invalid_token"))
    labels = {"method": "POST", "endpoint": "other", "model": "none", "provider": "none", "status": "401"}
    assert sample(metrics, "llm_proxy_requests_total", **labels) == 1
    assert sample(metrics, "llm_proxy_refusals_total", code="invalid_token") == 1


def test_client_that_left_is_counted() -> None:
    metrics = Metrics()
    measure(metrics, Known(), new_event(outcome="client_gone", status=0))
    assert metrics.total(metrics.disconnects) == 1


def test_clients_cannot_invent_labels() -> None:
    metrics = Metrics()
    for number in range(200):
        measure(metrics, Known(), new_event(method=f"M{number}", model=f"model-{number}"))
    [family] = metrics.requests.collect()
    assert [(sample.labels["method"], sample.labels["model"], sample.value) for sample in family.samples] == [
        ("other", "other", 200)
    ]
