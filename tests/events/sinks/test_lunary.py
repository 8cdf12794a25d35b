"""Tests of runs at Lunary, against a fake that validates as the real one does."""

from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import orjson
import pytest
from stage.sinks import KEY, FakeLunary, running, sample

from llm_proxy.events.sinks.lunary import LunarySink, read_results, records_of
from llm_proxy.secret import Secret

REQUEST = {"model": "gpt-4o", "messages": [{"role": "user", "content": "Hi"}]}
REPLY = {"choices": [{"index": 0, "message": {"role": "assistant", "content": "Hello"}}], "usage": {}}
STREAM = (
    'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"role":"assistant","content":"Hel"}}]}\n\n'
    'data: {"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":"lo"}}]}\n\ndata: [DONE]\n\n'
)


def text(document: Any) -> str:
    return orjson.dumps(document).decode()


@pytest.fixture
async def lunary() -> AsyncIterator[FakeLunary]:
    service = FakeLunary()
    async with running(service):
        yield service


@pytest.fixture
async def sink(lunary: FakeLunary) -> AsyncIterator[LunarySink]:
    async with aiohttp.ClientSession() as session:
        yield LunarySink(session, lunary.url, Secret(KEY))


async def test_a_call_is_a_start_and_an_end_of_one_run(lunary: FakeLunary, sink: LunarySink) -> None:
    event = sample(1, request_body=text(REQUEST), reply_body=text(REPLY), model_used="gpt-4o-2024")
    [verdict] = await sink.deliver([event])
    assert verdict.kind == "delivered"
    [body] = lunary.bodies
    assert set(body) == {"events"}
    start, end = body["events"]
    assert (start["runId"], end["runId"]) == (event["id"], event["id"])
    assert (start["type"], start["name"], start["input"]) == ("llm", "gpt-4o-2024", REQUEST["messages"])
    assert end["output"] == {"role": "assistant", "content": "Hello"}
    assert end["tokensUsage"] == {"prompt": 9, "completion": 4}
    assert (start["timestamp"], end["timestamp"]) == ("2026-09-21T14:13:20.124Z", "2026-09-21T14:13:21.624Z")


async def test_a_batch_delivered_twice_is_delivered(lunary: FakeLunary, sink: LunarySink) -> None:
    events = [sample(number, duration=0.0) for number in range(5)]
    for _ in range(2):
        assert [verdict.kind for verdict in await sink.deliver(events)] == ["delivered"] * 5
    assert lunary.kept == [event["id"] for event in events]


async def test_each_event_has_its_own_verdict(lunary: FakeLunary, sink: LunarySink) -> None:
    events = [sample(number) for number in range(4)]
    lunary.poison = {events[1]["id"]: 'invalid input syntax for type "json"', events[2]["id"]: "Connection terminated"}
    verdicts = await sink.deliver(events)
    assert [verdict.kind for verdict in verdicts] == ["delivered", "refused", "failed", "delivered"]
    assert verdicts[1].reason == 'invalid input syntax for type "json"'


@pytest.mark.parametrize(
    ("changes", "input", "output"),
    [
        ({"stream": True, "reply_body": STREAM}, None, {"role": "assistant", "content": "Hello"}),
        ({"request_body": text({"input": "embed me"}), "reply_body": text({"data": [1]})}, "embed me", {"data": [1]}),
        ({"request_body": text({"prompt": "p"}), "reply_body": text({"choices": [{"text": "t"}]})}, "p", "t"),
        (
            {"request_body": text({"system": "s", "messages": [1]}), "reply_body": text({"type": "message", "content": ["c"]})},
            [{"role": "system", "content": "s"}, 1],
            {"role": "assistant", "content": ["c"]},
        ),
        ({"reply_body": text({"choices": [{"message": "a"}, {"message": "b"}]})}, None, ["a", "b"]),
        ({"request_body": "no json", "reply_body": "neither"}, "no json", "neither"),
        ({}, None, None),
    ],
    ids=["stream", "embedding", "completion", "anthropic", "two choices", "text", "no bodies"],
)
def test_input_and_output(changes: dict[str, Any], input: Any, output: Any) -> None:
    start, end = records_of(sample(1, **changes))
    assert (start["input"], end["output"]) == (input, output)


def test_tokens_that_nobody_counted_are_not_told_as_zero() -> None:
    _, end = records_of(sample(1, usage={"prompt_tokens": 0, "completion_tokens": 0, "source": "none"}))
    assert "tokensUsage" not in end


@pytest.mark.parametrize("answer", [b"", b"[]", b"{}", b'{"results": 5}', b'{"results": [5]}', b'{"results": []}'])
def test_an_answer_without_results_is_a_failure(answer: bytes) -> None:
    assert [verdict.kind for verdict in read_results(answer, ["a", "b"])] == ["failed", "failed"]
