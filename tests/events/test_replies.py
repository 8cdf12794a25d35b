"""Tests of putting streams together."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.events.replies import assemble, json_of, reply_of


def sse(*payloads: Any, names: bool = False, end: str = "\n") -> str:
    lines = []
    for payload in payloads:
        if names:
            lines.append(f"event: {payload['type']}{end}")
        text = payload if isinstance(payload, str) else orjson.dumps(payload).decode()
        lines.append(f"data: {text}{end}{end}")
    return "".join(lines)


AROUND = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 7, "model": "gpt-4o", "system_fingerprint": "fp"}


def chunk(*choices: dict[str, Any], usage: Any = None) -> dict[str, Any]:
    return {**AROUND, "choices": list(choices), "usage": usage, "obfuscation": "xx"}


def piece(index: int, finish: str | None = None, **delta: Any) -> dict[str, Any]:
    return {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}


def called(index: int, **parts: Any) -> dict[str, Any]:
    return {"index": index, **parts}


CHAT = sse(
    chunk(piece(0, role="assistant", content="", refusal=None)),
    chunk(
        piece(
            1,
            role="assistant",
            content=None,
            tool_calls=[called(0, id="c1", type="function", function={"name": "f", "arguments": ""})],
        )
    ),
    chunk(piece(0, content="Hel")),
    chunk(piece(1, tool_calls=[called(0, function={"arguments": '{"a"'})])),
    chunk(piece(1, tool_calls=[called(1, id="c2", type="function", function={"name": "g", "arguments": "{}"})])),
    chunk(piece(0, content="lo")),
    chunk(piece(1, tool_calls=[called(0, function={"arguments": ":1}"})])),
    chunk(piece(0, finish="stop"), piece(1, finish="tool_calls")),
    {**AROUND, "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8}},
    "[DONE]",
)
CHAT_REPLY = {
    "id": "chatcmpl-1",
    "object": "chat.completion",
    "created": 7,
    "model": "gpt-4o",
    "system_fingerprint": "fp",
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hello", "refusal": None},
            "logprobs": None,
            "finish_reason": "stop",
        },
        {
            "index": 1,
            "message": {
                "role": "assistant",
                "content": None,
                "tool_calls": [
                    {"id": "c1", "type": "function", "function": {"name": "f", "arguments": '{"a":1}'}},
                    {"id": "c2", "type": "function", "function": {"name": "g", "arguments": "{}"}},
                ],
            },
            "logprobs": None,
            "finish_reason": "tool_calls",
        },
    ],
    "usage": {"prompt_tokens": 3, "completion_tokens": 5, "total_tokens": 8},
}
LOGPROBS = sse(
    {
        **AROUND,
        "choices": [{**piece(0, role="assistant", content="a"), "logprobs": {"content": [{"token": "a"}], "refusal": None}}],
    },
    {**AROUND, "choices": [{**piece(0, "stop", content="b"), "logprobs": {"content": [{"token": "b"}], "refusal": None}}]},
)
COMPLETION = sse(
    {"id": "cmpl", "object": "text_completion", "model": "m", "choices": [{"index": 1, "text": "x", "finish_reason": None}]},
    {"id": "cmpl", "object": "text_completion", "model": "m", "choices": [{"index": 0, "text": "a", "finish_reason": None}]},
    {"id": "cmpl", "object": "text_completion", "model": "m", "choices": [{"index": 0, "text": "b", "finish_reason": "stop"}]},
    {"id": "cmpl", "object": "text_completion", "model": "m", "choices": [], "usage": {"total_tokens": 4}},
    "[DONE]",
)
RESPONSE = {
    "id": "resp",
    "object": "response",
    "status": "completed",
    "output": [{"type": "message"}],
    "usage": {"total_tokens": 2},
}
RESPONSES_BEGUN = (
    {"type": "response.created", "response": {"id": "resp", "object": "response", "status": "in_progress", "output": []}},
    {"type": "response.output_item.added", "output_index": 0, "item": {"type": "message", "role": "assistant", "content": []}},
    {"type": "response.content_part.added", "output_index": 0, "content_index": 0, "part": {"type": "output_text", "text": ""}},
    {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "Hel"},
    {"type": "response.output_text.delta", "output_index": 0, "content_index": 0, "delta": "lo"},
    {"type": "response.output_item.added", "output_index": 1, "item": {"type": "function_call", "name": "f", "arguments": ""}},
    {"type": "response.function_call_arguments.delta", "output_index": 1, "delta": '{"a":1}'},
)
ANTHROPIC = (
    {
        "type": "message_start",
        "message": {
            "id": "msg",
            "type": "message",
            "role": "assistant",
            "model": "claude",
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": {"input_tokens": 11, "output_tokens": 1},
        },
    },
    {"type": "content_block_start", "index": 0, "content_block": {"type": "thinking", "thinking": "", "signature": ""}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "thinking_delta", "thinking": "hm"}},
    {"type": "content_block_delta", "index": 0, "delta": {"type": "signature_delta", "signature": "sig"}},
    {"type": "content_block_stop", "index": 0},
    {"type": "ping"},
    {"type": "content_block_start", "index": 1, "content_block": {"type": "text", "text": ""}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "Hel"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "text_delta", "text": "lo"}},
    {"type": "content_block_delta", "index": 1, "delta": {"type": "citations_delta", "citation": {"cited_text": "x"}}},
    {"type": "content_block_stop", "index": 1},
    {"type": "content_block_start", "index": 2, "content_block": {"type": "tool_use", "id": "t", "name": "f", "input": {}}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": '{"a"'}},
    {"type": "content_block_delta", "index": 2, "delta": {"type": "input_json_delta", "partial_json": ": 1}"}},
    {"type": "content_block_stop", "index": 2},
    {"type": "message_delta", "delta": {"stop_reason": "tool_use", "stop_sequence": None}, "usage": {"output_tokens": 25}},
    {"type": "message_stop"},
)
ANTHROPIC_REPLY = {
    "id": "msg",
    "type": "message",
    "role": "assistant",
    "model": "claude",
    "content": [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "text", "text": "Hello", "citations": [{"cited_text": "x"}]},
        {"type": "tool_use", "id": "t", "name": "f", "input": {"a": 1}},
    ],
    "stop_reason": "tool_use",
    "stop_sequence": None,
    "usage": {"input_tokens": 11, "output_tokens": 25},
}


@pytest.mark.parametrize(
    ("stream", "reply"),
    [
        pytest.param(CHAT, CHAT_REPLY, id="chat, two choices, two tool calls"),
        pytest.param(CHAT.replace("\n", "\r\n"), CHAT_REPLY, id="chat with CRLF"),
        pytest.param(": keep-alive\n\n" + CHAT, CHAT_REPLY, id="chat with a comment"),
        pytest.param(sse(*ANTHROPIC, names=True), ANTHROPIC_REPLY, id="anthropic"),
        pytest.param(
            sse(*RESPONSES_BEGUN, {"type": "response.completed", "response": RESPONSE}, names=True), RESPONSE, id="responses"
        ),
        pytest.param(
            COMPLETION,
            {
                "id": "cmpl",
                "object": "text_completion",
                "model": "m",
                "usage": {"total_tokens": 4},
                "choices": [
                    {"index": 0, "text": "ab", "finish_reason": "stop", "logprobs": None},
                    {"index": 1, "text": "x", "finish_reason": None, "logprobs": None},
                ],
            },
            id="completions",
        ),
        pytest.param("data: [DONE]\n\n", None, id="nothing but the end"),
        pytest.param('data: {"unknown": 1}\n\n', None, id="a dialect that is not known"),
        pytest.param("", None, id="nothing"),
    ],
)
def test_a_stream_is_put_together(stream: str, reply: Any) -> None:
    assert assemble(stream) == reply


def test_log_probabilities_are_joined() -> None:
    reply = assemble(LOGPROBS)
    assert reply
    [choice] = reply["choices"]
    assert choice["logprobs"] == {"content": [{"token": "a"}, {"token": "b"}], "refusal": None}
    assert choice["message"]["content"] == "ab"


def test_responses_cut_short_give_what_had_come() -> None:
    reply = assemble(sse(*RESPONSES_BEGUN, names=True))
    assert reply == {
        "id": "resp",
        "object": "response",
        "status": "in_progress",
        "output": [
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "Hello"}]},
            {"type": "function_call", "name": "f", "arguments": '{"a":1}'},
        ],
    }


@given(st.integers(0, len(CHAT)))
def test_a_chat_cut_anywhere_gives_what_had_come(cut: int) -> None:
    reply = assemble(CHAT[:cut])
    for choice in reply["choices"] if reply else []:
        whole = CHAT_REPLY["choices"][choice["index"]]["message"]  # type: ignore[index]
        assert (whole["content"] or "").startswith(choice["message"]["content"] or "")
        for call, complete in zip(choice["message"].get("tool_calls", []), whole.get("tool_calls", []), strict=False):
            assert complete["function"]["arguments"].startswith(call["function"]["arguments"])


junk = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "index",
                    "delta",
                    "choices",
                    "message",
                    "content",
                    "tool_calls",
                    "usage",
                    "response",
                    "item",
                    "output_index",
                    "logprobs",
                    "content_index",
                    "content_block",
                    "part",
                    "text",
                    "arguments",
                    "partial_json",
                    "citation",
                    "type",
                ]
            ),
            inner,
            max_size=6,
        )
    ),
    max_leaves=12,
)
TYPES = [
    "message_start",
    "message_delta",
    "content_block_start",
    "content_block_delta",
    "content_block_stop",
    "response.created",
    "response.output_item.added",
    "response.output_text.delta",
    "response.content_part.added",
    "response.function_call_arguments.delta",
]
kinds = st.sampled_from([{"object": "chat.completion.chunk"}, {"object": "text_completion"}, *({"type": name} for name in TYPES)])


@given(st.lists(st.tuples(junk, kinds), max_size=8))
def test_no_nonsense_of_a_provider_breaks_it(parts: list[tuple[Any, dict[str, str]]]) -> None:
    assemble(sse(*({**(content if isinstance(content, dict) else {}), **kind} for content, kind in parts)))


@pytest.mark.parametrize(
    ("event", "reply"),
    [
        ({"reply_body": '{"a": 1}'}, {"a": 1}),
        ({"reply_body": CHAT, "stream": True}, CHAT_REPLY),
        ({"reply_body": '{"error": 1}', "stream": True}, {"error": 1}),
        ({"reply_body": "plain", "stream": False}, "plain"),
        ({"reply_body": ""}, None),
        ({}, None),
    ],
    ids=["json", "stream", "an error in place of a stream", "text", "empty", "none"],
)
def test_the_reply_of_an_event(event: dict[str, Any], reply: Any) -> None:
    assert reply_of(event) == reply


@pytest.mark.parametrize(("text", "value"), [('{"a":1}', {"a": 1}), ("text", "text"), ("", None), (None, None), (5, None)])
def test_a_captured_body_is_decoded(text: object, value: object) -> None:
    assert json_of(text) == value
