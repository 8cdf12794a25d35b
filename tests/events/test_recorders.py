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
        new_event(
            model="gpt-4o", provider_type="openai", endpoint="/v1/chat/completions", first_byte=0.2, duration=1.0, usage=usage
        ),
    )
    labels = {"method": "POST", "endpoint": "/v1/chat/completions", "model": "other", "provider": "openai", "status": "200"}
    assert sample(metrics, "llm_proxy_requests_total", **labels) == 1
    assert sample(metrics, "llm_proxy_request_duration_seconds_sum", endpoint="/v1/chat/completions") == 1.0
    assert sample(metrics, "llm_proxy_overhead_seconds_count") == 1
    assert sample(metrics, "llm_proxy_ttft_seconds_sum", provider="openai") == 0.2
    assert sample(metrics, "llm_proxy_tokens_total", model="other", provider="openai", type="prompt") == 3
    assert sample(metrics, "llm_proxy_tokens_total", model="other", provider="openai", type="completion") == 4
    assert sample(metrics, "llm_proxy_events_published_total") == 1
    assert metrics.total(metrics.refusals) == metrics.total(metrics.disconnects) == 0


def test_refusal_is_counted_by_its_code() -> None:
    metrics = Metrics()
    measure(metrics, new_event(status=401, outcome="refused", code="invalid_token"))
    labels = {"method": "POST", "endpoint": "other", "model": "none", "provider": "none", "status": "401"}
    assert sample(metrics, "llm_proxy_requests_total", **labels) == 1
    assert sample(metrics, "llm_proxy_refusals_total", code="invalid_token") == 1


def test_client_that_left_is_counted() -> None:
    metrics = Metrics()
    measure(metrics, new_event(outcome="client_gone", status=0))
    assert metrics.total(metrics.disconnects) == 1


def test_clients_cannot_invent_labels() -> None:
    metrics = Metrics()
    for number in range(200):
        measure(metrics, new_event(method=f"M{number}", model=f"model-{number}"))
    [family] = metrics.requests.collect()
    assert [(sample.labels["method"], sample.labels["model"], sample.value) for sample in family.samples] == [
        ("other", "other", 200)
    ]
