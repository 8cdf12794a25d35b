"""Tests of logs at Helicone, against a fake that validates as the real one does."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from stage.sinks import KEY, FakeHelicone, running, sample

from llm_proxy.events.sinks.helicone import HeliconeSink, document_of
from llm_proxy.secret import Secret

REQUEST, REPLY = {"model": "gpt-4o", "messages": []}, {"choices": [], "usage": {"total_tokens": 13}}


@pytest.fixture
async def helicone() -> AsyncIterator[FakeHelicone]:
    service = FakeHelicone()
    async with running(service):
        yield service


@pytest.fixture
async def sink(helicone: FakeHelicone) -> AsyncIterator[HeliconeSink]:
    async with aiohttp.ClientSession() as session:
        yield HeliconeSink(session, helicone.url, Secret(KEY))


async def test_a_call_is_told_with_its_real_times(helicone: FakeHelicone, sink: HeliconeSink) -> None:
    bodies = {"request_body": orjson.dumps(REQUEST).decode(), "reply_body": orjson.dumps(REPLY).decode()}
    [verdict] = await sink.deliver([sample(1, **bodies)])
    assert verdict.kind == "delivered"
    [told] = helicone.bodies
    assert told["providerRequest"]["json"] == REQUEST
    assert told["providerRequest"]["meta"]["Helicone-Property-request_id"] == "request-1"
    assert (told["providerResponse"]["status"], told["providerResponse"]["json"]) == (200, REPLY)
    assert told["timing"] == {
        "startTime": {"seconds": 1_790_000_000, "milliseconds": 124},
        "endTime": {"seconds": 1_790_000_001, "milliseconds": 624},
    }


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"status": 0, "outcome": "client_gone"},
        {"request_body": "text", "reply_body": "text"},
        {"request_body": "[1]", "reply_body": "[1]"},
        {"usage": {"source": "none"}, "model": None},
        {"stream": True, "first_byte": 0.25},
        {"duration": 0.0},
        {"project_name": "Проект\r\n🚀", "token_name": "a\0b", "request_id": "é✓"},
    ],
    ids=["no bodies", "no answer", "text", "lists", "nothing known", "stream", "in no time", "names that are no headers"],
)
async def test_any_call_is_a_log_that_is_taken(helicone: FakeHelicone, sink: HeliconeSink, changes: dict[str, Any]) -> None:
    assert [verdict.kind for verdict in await sink.deliver([sample(1, **changes)])] == ["delivered"]


def test_names_are_told_as_headers_can_hold_them() -> None:
    meta = document_of(sample(1, project_name="50% Müller\n"))["providerRequest"]["meta"]
    assert meta["Helicone-Property-project_name"] == "50% M%C3%BCller%0A"


async def test_events_go_one_after_the_other_on_one_connection(helicone: FakeHelicone, sink: HeliconeSink) -> None:
    events = [sample(number) for number in range(30)]
    await sink.deliver(events[:20])
    await sink.deliver(events[20:])
    assert helicone.kept == [event["id"] for event in events]
    assert len(helicone.connections) == 1


def test_without_bodies_the_tokens_still_show() -> None:
    told = document_of(sample(1, model_used="gpt-4o-2024", stream=True, first_byte=0.25))
    assert told["providerResponse"]["json"] == {
        "model": "gpt-4o-2024",
        "usage": {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13},
    }
    assert told["timing"]["timeToFirstToken"] == 250


def test_what_was_counted_is_put_into_a_reply_that_lacks_it() -> None:
    usage = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 13}
    told = document_of(sample(1, reply_body='{"choices": [], "usage": null}', usage={**usage, "source": "counted"}))
    assert told["providerResponse"]["json"] == {"choices": [], "usage": usage}


@pytest.mark.parametrize(
    ("status", "kinds", "calls"),
    [
        (400, ["delivered", "refused", "delivered"], 3),
        (500, ["delivered", "failed", "away"], 2),
        (429, ["delivered", "away", "away"], 2),
    ],
)
async def test_after_a_failure_the_rest_is_not_tried(
    helicone: FakeHelicone, sink: HeliconeSink, status: int, kinds: list[str], calls: int
) -> None:
    def fault(request: web.Request, document: Any) -> web.Response | None:
        bad = document["providerRequest"]["meta"]["Helicone-Property-request_id"] == "request-1"
        return web.Response(status=status) if bad else None

    helicone.fault = fault
    verdicts = await sink.deliver([sample(0), sample(1), sample(2)])
    assert ([verdict.kind for verdict in verdicts], len(helicone.bodies)) == (kinds, calls)
