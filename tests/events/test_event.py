"""An event becomes a record that log and sinks can write."""

import json

import orjson

from llm_proxy.events import OUTCOMES, Event, as_record
from llm_proxy.usage import Usage


def new_event() -> Event:
    return Event("r1", "c1", "192.0.2.1", "ua/1.0", "POST", "/v1/chat/completions")


def test_event_of_a_call_that_got_nowhere_is_an_error_of_ours() -> None:
    event = new_event()
    assert (event.outcome, event.status, event.usage.source) == ("internal_error", 0, "none")
    assert event.outcome in OUTCOMES


def test_every_event_has_an_id_of_its_own() -> None:
    assert new_event().id != new_event().id


def test_record_is_json_with_time_and_usage() -> None:
    event = new_event()
    event.started_at = 1_795_251_277_120
    event.usage = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=7, source="provider")
    record = json.loads(orjson.dumps(as_record(event)))
    assert record["started_at"] == "2026-11-21T08:54:37.120Z"
    assert (record["usage"]["prompt_tokens"], record["usage_source"]) == (3, "provider")
    assert (record["request_id"], record["path"], record["first_byte"]) == ("r1", "/v1/chat/completions", None)


def test_record_for_the_log_has_no_bodies() -> None:
    event = new_event()
    event.request_body, event.reply_body = "asked", "answered"
    assert not {"request_body", "reply_body"} & as_record(event).keys()


def test_record_leaves_the_event_as_it_is() -> None:
    event = new_event()
    as_record(event)["path"] = "/elsewhere"
    assert event.path == "/v1/chat/completions"
    assert isinstance(event.started_at, int)
