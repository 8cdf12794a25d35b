"""Chats are asked and read as OpenAI, Anthropic and Azure write them."""

from typing import Any

import pytest

from llm_proxy.chats import ANTHROPIC, AZURE, DIALECTS, OPENAI, Answer, Dialect, Problem, problem_of

HELLO = [{"role": "user", "content": "hello"}]
DELTA = b'data: {"choices":[{"delta":{"content":"%b"}}]}\n\n'
OF_OPENAI = (
    b'data: {"model":"m","choices":[{"delta":{"role":"assistant","content":null}}]}\n\n',
    DELTA % b"Hel",
    DELTA % b"lo",
    b'data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2,"total_tokens":5}}\n\n',
    b"data: [DONE]\n\n",
)
OF_ANTHROPIC = (
    b'event: message_start\ndata: {"type":"message_start","message":{"usage":{"input_tokens":3,"output_tokens":1}}}\n\n',
    b'event: content_block_start\ndata: {"type":"content_block_start","index":0,"content_block":{"type":"text","text":""}}\n\n',
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"thinking_delta","thinking":"hm"}}\n\n',
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"Hel"}}\n\n',
    b'data: {"type":"content_block_delta","index":0,"delta":{"type":"text_delta","text":"lo"}}\n\n',
    b'event: message_delta\ndata: {"type":"message_delta","delta":{},"usage":{"output_tokens":2}}\n\n',
    b'event: message_stop\ndata: {"type":"message_stop"}\n\n',
)


@pytest.mark.parametrize(("dialect", "events"), [(OPENAI, OF_OPENAI), (ANTHROPIC, OF_ANTHROPIC)], ids=["openai", "anthropic"])
@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_stream_gives_text_usage_and_end_however_it_is_cut(dialect: Dialect, events: tuple[bytes, ...], size: int) -> None:
    whole, answer = b"".join(events), Answer(dialect)
    text = "".join(answer.feed(whole[place : place + size]) for place in range(0, len(whole), size))
    usage = answer.usage.result()
    assert (text, answer.usage.finished, answer.problem) == ("Hello", True, None)
    assert usage and (usage.prompt_tokens, usage.completion_tokens) == (3, 2)


@pytest.mark.parametrize(
    ("event", "problem"),
    [
        (b'data: {"error":{"message":"Too slow.","code":"upstream_timeout"}}', Problem("upstream_timeout", "Too slow.")),
        (
            b'event: error\ndata: {"type":"error","error":{"type":"overloaded_error","message":"Busy."}}',
            Problem("overloaded_error", "Busy."),
        ),
        (b"data: {", Problem("", "this is no stream of a chat.")),
        (b"data: []", Problem("", "this is no stream of a chat.")),
    ],
    ids=["openai", "anthropic", "no JSON", "no event"],
)
@pytest.mark.parametrize("dialect", [OPENAI, ANTHROPIC], ids=["openai", "anthropic"])
def test_an_error_within_a_stream_ends_its_text(dialect: Dialect, event: bytes, problem: Problem) -> None:
    answer = Answer(dialect)
    more = (OF_OPENAI if dialect is OPENAI else OF_ANTHROPIC)[-4]
    assert answer.feed(event + b"\n\n" + more) == ""
    assert answer.problem == problem and not answer.usage.finished


@pytest.mark.parametrize("rest", [b"", b',"delta":null'], ids=["no delta", "a delta of null"])
def test_what_azures_filter_says_within_a_stream_holds_no_text(rest: bytes) -> None:
    note = b'data: {"id":"","choices":[{"index":0,"finish_reason":null,"content_filter_results":{}%b}]}\n\n' % rest
    answer = Answer(AZURE)
    assert answer.feed(b"".join((OF_OPENAI[1], note, *OF_OPENAI[2:], note))) == "Hello"
    assert answer.usage.finished and answer.problem is None


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        (b'{"error":{"message":"No.","code":"invalid_token"}}', Problem("invalid_token", "No.")),
        (b'{"error":{"message":"No.","code":404}}', Problem("", "No.")),
        (b'{"error":"No."}', Problem("", "No.")),
        (b'{"error":{}}', None),
        (b'{"ok":true}', None),
        (b"[]", None),
        (b"<html>", None),
    ],
)
def test_the_body_of_an_error(body: bytes, problem: Problem | None) -> None:
    assert problem_of(body) == problem


@pytest.mark.parametrize(
    ("dialect", "path", "header", "system"),
    [
        (OPENAI, "/v1/chat/completions", "Authorization", {"messages": [{"role": "system", "content": "Be brief."}, *HELLO]}),
        (ANTHROPIC, "/v1/messages", "x-api-key", {"messages": HELLO, "system": "Be brief.", "max_tokens": 4096}),
        (AZURE, "/openai/deployments/a%2Fb/chat/completions", "api-key", {}),
    ],
    ids=list(DIALECTS),
)
def test_what_is_asked(dialect: Dialect, path: str, header: str, system: dict[str, Any]) -> None:
    body = dialect.body("a/b", "Be brief.", HELLO)
    assert dialect.path("a/b") == path
    assert dialect.headers("sk-lp-x")[header].endswith("sk-lp-x")
    assert body["model"] == "a/b" and body["stream"] is True and system.items() <= body.items()
    assert "Be brief." not in str(dialect.body("a/b", "", HELLO))
