"""Each event is one line in the log and one call in the metrics."""

import asyncio
import contextlib
import json
import logging
import pathlib
import secrets
from collections.abc import Iterator
from typing import Any

import pytest
from stage.house import settings_for

from llm_proxy import logs
from llm_proxy.events import Event
from llm_proxy.events.bus import Bus
from llm_proxy.events.recorders import CallLog, measure
from llm_proxy.metrics import Metrics
from llm_proxy.secret import Secret
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


class Written:
    """The process's log as it stands in its file, with a bus whose calls go there."""

    def __init__(self, path: pathlib.Path, handler: logging.Handler) -> None:
        self.path, self.bus = path, Bus()
        calls = CallLog(handler, self.bus.catch_up)
        self.bus.read_late_by(calls.add, calls.write)

    def add(self, event: Event) -> None:
        """Have a call logged at once."""
        self.bus.publish(event)
        self.bus.catch_up()

    @property
    def text(self) -> str:
        return self.path.read_text()

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.text.splitlines()]


@contextlib.contextmanager
def open_log(tmp_path: pathlib.Path, **given: str) -> Iterator[Written]:
    handler = logs.configure(settings_for(tmp_path, LOG_FILE=str(tmp_path / "log"), **given))
    try:
        yield Written(tmp_path / "log", handler)
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()


async def test_line_tells_what_became_of_the_call(tmp_path: pathlib.Path) -> None:
    usage = Usage(prompt_tokens=3)
    with open_log(tmp_path) as written:
        written.add(new_event(started_at=1_795_251_277_120, duration=1.123456789, usage=usage, request_body="asked"))
        [line] = written.lines
    assert (line["level"], line["logger"], line["time"]) == ("info", "llm_proxy.calls", "2026-11-21T08:54:38.243Z")
    assert line["message"] == "POST /v1/chat/completions 200 completed"
    assert (line["request_id"], line["correlation_id"], line["duration"]) == ("r1", "c1", 1.123457)
    assert (line["started_at"], line["usage"]["prompt_tokens"], line["usage_source"]) == ("2026-11-21T08:54:37.120Z", 3, "none")
    assert not {"first_byte", "request_body", "reply_body"} & line.keys()


async def test_line_of_a_client_that_got_no_status_has_a_dash(tmp_path: pathlib.Path) -> None:
    with open_log(tmp_path, LOG_FORMAT="text") as written:
        written.add(new_event(status=0, outcome="client_gone"))
        assert "Z INFO    POST /v1/chat/completions - client_gone request_id=r1 correlation_id=c1 " in written.text


async def test_other_records_go_behind_the_lines_that_wait(tmp_path: pathlib.Path) -> None:
    with open_log(tmp_path) as written:
        written.bus.publish(new_event())
        written.bus.publish(new_event())
        assert written.text == ""
        logging.getLogger("llm_proxy.test").error("trouble")
        assert [line["message"] for line in written.lines] == ["POST /v1/chat/completions 200 completed"] * 2 + ["trouble"]


async def test_a_thread_may_log_while_lines_wait(tmp_path: pathlib.Path) -> None:
    with open_log(tmp_path) as written:
        written.bus.publish(new_event())
        await asyncio.to_thread(logging.getLogger("llm_proxy.test").error, "trouble")
        assert [line["message"] for line in written.lines] == ["trouble"], "what calls come to belongs to the event loop"
        written.bus.catch_up()
        assert len(written.lines) == 2


async def test_a_file_that_was_rotated_away_is_opened_anew(tmp_path: pathlib.Path) -> None:
    with open_log(tmp_path) as written:
        for name in ("one", "two"):
            written.add(new_event(path=name))
            written.path.rename(tmp_path / name)
        assert ["one" in (tmp_path / "one").read_text(), "two" in (tmp_path / "two").read_text()] == [True, True]


async def test_no_line_below_the_level(tmp_path: pathlib.Path) -> None:
    with open_log(tmp_path, LOG_LEVEL="warning") as written:
        written.add(new_event())
        assert written.text == ""


@pytest.mark.parametrize("format", ["json", "text"])
@pytest.mark.parametrize("field", ["method", "project_name", "token_name", "client_ip", "provider_type", "endpoint"])
async def test_no_secret_is_written_that_was_not_masked_before(tmp_path: pathlib.Path, field: str, format: str) -> None:
    text = f"of-{secrets.token_hex(8)}"
    event = new_event(**{field: text})
    with open_log(tmp_path, LOG_FORMAT=format) as written:
        written.add(event)
        secret = Secret(text)
        written.add(event)
        assert secret and [text in line for line in written.text.splitlines()] == [True, False]


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
