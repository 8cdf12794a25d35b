"""The usage of every dialect is read from replies and streams, and nonsense is passed over."""

import json
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_proxy.usage import LARGEST_FIGURE, LONGEST_MODEL, NO_USAGE, StreamUsage, Usage, read_model, read_usage

# No test may depend on how busy the machine is.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

OPENAI_CHAT = {
    "prompt_tokens": 19,
    "completion_tokens": 10,
    "total_tokens": 29,
    "prompt_tokens_details": {"cached_tokens": 7, "cache_write_tokens": 4, "audio_tokens": 0},
    "completion_tokens_details": {"reasoning_tokens": 3, "accepted_prediction_tokens": 0},
}
OPENAI_RESPONSES = {
    "input_tokens": 36,
    "input_tokens_details": {"cached_tokens": 5, "cache_write_tokens": 2},
    "output_tokens": 87,
    "output_tokens_details": {"reasoning_tokens": 64},
    "total_tokens": 123,
}
ANTHROPIC = {
    "input_tokens": 21,
    "cache_creation_input_tokens": 100,
    "cache_read_input_tokens": 1000,
    "output_tokens": 12,
    "output_tokens_details": {"thinking_tokens": 8},
    "service_tier": "standard",
}


def provider(*figures: int) -> Usage:
    return Usage(*figures, source="provider")


@pytest.mark.parametrize(
    ("usage", "expected"),
    [
        pytest.param(OPENAI_CHAT, provider(19, 10, 29, 7, 4, 3), id="openai-chat"),
        pytest.param({"prompt_tokens": 8, "total_tokens": 8}, provider(8, 0, 8), id="openai-embeddings"),
        pytest.param(OPENAI_RESPONSES, provider(36, 87, 123, 5, 2, 64), id="openai-responses"),
        pytest.param(ANTHROPIC, provider(1121, 12, 1133, 1000, 100, 8), id="anthropic-cache-beside-input"),
        pytest.param({"input_tokens": 5, "output_tokens": 2}, provider(5, 2, 7), id="anthropic-without-cache"),
        pytest.param(
            {"prompt_tokens": 50, "completion_tokens": 1, "total_tokens": 51, "cache_read_input_tokens": 40},
            provider(50, 1, 51, 40),
            id="gateway-that-sends-both-dialects",
        ),
        pytest.param({"prompt_tokens": 3, "completion_tokens": 4}, provider(3, 4, 7), id="no-total"),
        pytest.param({"prompt_tokens": 0, "completion_tokens": 0, "total_tokens": 0}, provider(), id="all-zero-is-stated"),
        pytest.param({"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 9}, provider(3, 4, 9), id="own-total-stays"),
        pytest.param({"prompt_tokens": LARGEST_FIGURE}, provider(10**9, 0, 10**9), id="largest"),
    ],
)
def test_each_dialect_is_read(usage: dict[str, Any], expected: Usage) -> None:
    assert read_usage({"id": "x", "usage": usage}) == expected


@pytest.mark.parametrize("bad", [-1, True, 1.0, "7", None, [], {}, LARGEST_FIGURE + 1, 10**30], ids=repr)
def test_a_figure_that_makes_no_sense_is_left_out(bad: object) -> None:
    assert read_usage({"usage": {"prompt_tokens": bad, "completion_tokens": 4}}) == provider(0, 4, 4)
    assert read_usage({"usage": {"prompt_tokens": bad}}) is None


@pytest.mark.parametrize("bad", [None, 3, "many", [1], {"cached_tokens": "all"}, {"cached_tokens": -2}], ids=repr)
def test_details_that_make_no_sense_are_left_out(bad: object) -> None:
    usage = {"prompt_tokens": 1, "completion_tokens": 2, "prompt_tokens_details": bad, "completion_tokens_details": bad}
    assert read_usage({"usage": usage}) == provider(1, 2, 3)


@pytest.mark.parametrize(
    "reply",
    [
        None,
        [],
        "usage",
        7,
        {},
        {"usage": None},
        {"usage": []},
        {"usage": {}},
        {"usage": {"type": "duration", "seconds": 9}},
        {"usage": {"prompt_tokens_details": {"cached_tokens": 5}}},
        {"input_tokens": 2095},
    ],
    ids=repr,
)
def test_a_reply_without_usage_has_none(reply: object) -> None:
    assert read_usage(reply) is None


_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from([*OPENAI_CHAT, *ANTHROPIC, "usage"]), inner, max_size=4)
    ),
)


@unhurried
@given(_JSON)
def test_whatever_the_reply_holds_reading_gives_sane_figures_or_none(usage: object) -> None:
    read = read_usage({"usage": usage})
    assert read is None or all(0 <= figure <= 4 * LARGEST_FIGURE for figure in astuple(read)[:-1])


def test_no_usage_says_that_nobody_counted() -> None:
    assert Usage(0, 0, 0, 0, 0, 0, "none") == NO_USAGE


@pytest.mark.parametrize(
    ("reply", "model"),
    [
        ({"model": "gpt-4o"}, "gpt-4o"),
        ({"model": "m" * LONGEST_MODEL}, "m" * LONGEST_MODEL),
        ({"model": "m" * (LONGEST_MODEL + 1)}, None),
        ({"model": ""}, None),
        ({"model": 5}, None),
        ({}, None),
        ("model", None),
    ],
    ids=["name", "longest", "too-long", "empty", "number", "absent", "no-object"],
)
def test_the_model_is_read_when_it_is_a_name(reply: object, model: str | None) -> None:
    assert read_model(reply) == model


Event = tuple[str, Any]


def fed(*events: Event) -> StreamUsage:
    stream = StreamUsage()
    for name, payload in events:
        data = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
        stream.feed(name.encode(), data)
    return stream


def chat_chunk(**more: Any) -> Event:
    return "", {"id": "c", "object": "chat.completion.chunk", "model": "gpt-4o", "choices": [{"delta": {"content": "x"}}], **more}


DONE: Event = ("", b"[DONE]")
MESSAGE_START: Event = (
    "message_start",
    {"type": "message_start", "message": {"model": "claude-x", "content": [], "usage": {**ANTHROPIC, "output_tokens": 1}}},
)
MESSAGE_STOP: Event = ("message_stop", {"type": "message_stop"})


def message_delta(usage: dict[str, Any]) -> Event:
    return "message_delta", {"type": "message_delta", "delta": {"stop_reason": "end_turn"}, "usage": usage}


def response(kind: str, usage: object) -> Event:
    return kind, {"type": kind, "sequence_number": 1, "response": {"id": "r", "model": "gpt-5", "usage": usage}}


@pytest.mark.parametrize(
    ("events", "expected", "model", "finished"),
    [
        pytest.param(
            [chat_chunk(usage=None), chat_chunk(usage=None), chat_chunk(choices=[], usage=OPENAI_CHAT), DONE],
            provider(19, 10, 29, 7, 4, 3),
            "gpt-4o",
            True,
            id="openai-null-until-the-last-chunk",
        ),
        pytest.param([chat_chunk(), DONE], None, "gpt-4o", True, id="openai-not-asked-for-usage"),
        pytest.param([chat_chunk(usage=None)], None, "gpt-4o", False, id="openai-broken-off"),
        pytest.param([chat_chunk(model=""), chat_chunk(), DONE], None, "gpt-4o", True, id="azure-names-the-model-later"),
        pytest.param(
            [chat_chunk(), chat_chunk(usage=OPENAI_CHAT), DONE],
            provider(19, 10, 29, 7, 4, 3),
            "gpt-4o",
            True,
            id="mistral-usage-beside-the-last-choice",
        ),
        pytest.param(
            [
                chat_chunk(),
                chat_chunk(usage=None, x_groq={"id": "g", "usage": {"prompt_tokens": 3, "completion_tokens": 2}}),
                DONE,
            ],
            provider(3, 2, 5),
            "gpt-4o",
            True,
            id="groq-in-a-corner-of-its-own",
        ),
        pytest.param(
            [
                chat_chunk(usage={"prompt_tokens": 9, "completion_tokens": 1, "total_tokens": 10}),
                chat_chunk(usage={"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}),
            ],
            provider(9, 2, 11),
            "gpt-4o",
            False,
            id="running-count-the-last-is-taken",
        ),
        pytest.param(
            [
                MESSAGE_START,
                ("ping", {"type": "ping"}),
                message_delta({"output_tokens": 5}),
                message_delta({"output_tokens": 12}),
                MESSAGE_STOP,
            ],
            provider(1121, 12, 1133, 1000, 100, 8),
            "claude-x",
            True,
            id="anthropic-merged",
        ),
        pytest.param([MESSAGE_START], provider(1121, 1, 1122, 1000, 100, 8), "claude-x", False, id="anthropic-client-gone"),
        pytest.param(
            [MESSAGE_START, message_delta({"input_tokens": None, "cache_read_input_tokens": -4, "output_tokens": 6})],
            provider(1121, 6, 1127, 1000, 100, 8),
            "claude-x",
            False,
            id="anthropic-nonsense-replaces-nothing",
        ),
        pytest.param(
            [
                response("response.created", None),
                response("response.in_progress", None),
                response("response.completed", OPENAI_RESPONSES),
            ],
            provider(36, 87, 123, 5, 2, 64),
            "gpt-5",
            True,
            id="responses",
        ),
        pytest.param(
            [response("response.created", None), response("response.incomplete", OPENAI_RESPONSES)],
            provider(36, 87, 123, 5, 2, 64),
            "gpt-5",
            True,
            id="responses-incomplete",
        ),
        pytest.param([response("response.failed", None)], None, "gpt-5", True, id="responses-failed"),
        pytest.param(
            [("", response("response.completed", OPENAI_RESPONSES)[1])],
            provider(36, 87, 123, 5, 2, 64),
            "gpt-5",
            True,
            id="responses-without-event-names",
        ),
        pytest.param([("", {"type": "message_stop"})], None, None, True, id="anthropic-end-without-event-name"),
        pytest.param(
            [("done", b"[DONE]")],
            None,
            None,
            True,
            id="assistants-named-done",
        ),
        pytest.param(
            [
                (
                    "transcript.text.done",
                    {"type": "transcript.text.done", "usage": {"input_tokens": 14, "output_tokens": 45, "total_tokens": 59}},
                )
            ],
            provider(14, 45, 59),
            None,
            False,
            id="transcription",
        ),
    ],
)
def test_each_dialect_is_read_from_its_stream(
    events: list[Event], expected: Usage | None, model: str | None, finished: bool
) -> None:
    stream = fed(*events)
    assert (stream.result(), stream.model, stream.finished) == (expected, model, finished)


@pytest.mark.parametrize("name", ["message_stop", "response.completed", "response.incomplete", "response.failed"])
def test_the_event_name_alone_tells_the_end(name: str) -> None:
    assert fed((name, b"{}")).finished
    assert not fed((name + "d", b"{}")).finished


def test_what_the_model_writes_about_usage_is_not_taken_for_usage() -> None:
    text = '{"usage": {"prompt_tokens": 999}} [DONE] {"type":"message_stop"}'
    stream = fed(chat_chunk(), chat_chunk(choices=[{"delta": {"content": text}}]))
    assert stream.result() is None
    assert not stream.finished


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b'{"model": ',
        b'"model"',
        b'["model", {"usage": {}}]',
        b'{"model": ["x"], "usage": {"prompt_tokens": "x"}}',
        b'{"model": "\\ud800"}',
        b'{"model": "\xff"}',
        b'{"model": 1e999}',
        b'{"usage": {"prompt_tokens": ' + b"[" * 100_000,
        b'{"response": 4, "message": [], "x_groq": "usage", "usage": {}}',
    ],
    ids=["empty", "cut", "string", "list", "wrong-types", "surrogate", "not-utf8", "infinite", "deep", "odd-holders"],
)
def test_data_that_cannot_be_read_is_passed_over(data: bytes) -> None:
    stream = StreamUsage()
    stream.feed(b"", data)
    assert (stream.result(), stream.model, stream.finished) == (None, None, False)
    stream.feed(b"", b'{"model": "m", "usage": {"prompt_tokens": 1}}')
    assert (stream.result(), stream.model) == (provider(1, 0, 1), "m")


@unhurried
@given(
    st.lists(
        st.tuples(st.binary(max_size=20), st.binary(max_size=60) | _JSON.map(lambda value: json.dumps(value).encode())),
        max_size=5,
    )
)
def test_no_event_makes_reading_fail(events: list[tuple[bytes, bytes]]) -> None:
    stream = StreamUsage()
    for name, data in events:
        stream.feed(name, data)
        assert stream.result() is None or stream.result() != NO_USAGE
