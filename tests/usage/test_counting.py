"""The rules of counting give OpenAI's own figures, whichever way a text is cut."""

import time
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from llm_proxy.usage.counting import LONGEST_TEXT, MOST_PARTS, PIECE, Completion, Uncountable, pieces_of, read_prompt
from llm_proxy.usage.encodings import encoding_of, load

# The example of OpenAI's cookbook ("How to count tokens with tiktoken"), for which it gives what the API charged.
COOKBOOK = [
    {
        "role": "system",
        "content": "You are a helpful, pattern-following assistant that translates corporate jargon into plain English.",
    },
    {"role": "system", "name": "example_user", "content": "New synergies will help drive top-line growth."},
    {"role": "system", "name": "example_assistant", "content": "Things working well together will increase revenue."},
    {
        "role": "system",
        "name": "example_user",
        "content": "Let's circle back when we have more bandwidth to touch base on opportunities for increased leverage.",
    },
    {"role": "system", "name": "example_assistant", "content": "Let's talk later when we're less busy about how to do better."},
    {"role": "user", "content": "This late pivot means we don't have time to boil the ocean for the client deliverable."},
]
PNG = "data:image/png;base64,iVBORw0KGgoAAAANSUhEUgAABAAAAAQACAYAAAB/"
TOOLS = [{"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}]
# What tiktoken says of these texts, asked by itself.
TOKENS = {"weather": 1, "tester": 1, "I cannot": 2, '{"city": "Köln"}': 8, '{"city": 1}': 6}
TOOLS_TOKENS = 19
CALLED = {"id": "call_1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Köln"}'}}


def prompt_tokens(request: dict[str, Any], model: str = "gpt-4o") -> int:
    prompt, count = read_prompt(orjson.dumps(request)), load(encoding_of(model))
    return prompt.fixed + sum(count(piece) for text in prompt.texts for piece in pieces_of(text))


@pytest.mark.parametrize(
    ("model", "figure"), [("gpt-3.5-turbo", 129), ("gpt-4-0613", 129), ("gpt-4o", 124), ("gpt-4o-mini", 124)]
)
def test_the_cookbooks_messages_cost_what_openai_charged(model: str, figure: int) -> None:
    assert prompt_tokens({"messages": COOKBOOK}, model) == figure


def user(content: Any, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": content, **more}]}


@pytest.mark.parametrize(
    ("request_", "figure"),
    [
        pytest.param({"messages": []}, 3, id="no-message"),
        pytest.param(user("hello"), 3 + 1 + 1 + 3, id="message"),
        pytest.param(user("hello", name="tester"), 3 + 1 + 1 + 1 + TOKENS["tester"] + 3, id="name"),
        pytest.param(user(None), 3 + 1 + 3, id="no-content"),
        pytest.param(user([{"type": "text", "text": "hello"}] * 2), 3 + 1 + 2 + 3, id="parts"),
        pytest.param(user([{"type": "image_url", "image_url": {"url": "https://a.test/b"}}]), 3 + 1 + 85 + 3, id="image"),
        pytest.param(user([{"type": "image_url", "image_url": {"url": PNG}}]), 3 + 1 + 765 + 3, id="image-of-known-size"),
        pytest.param(
            user([{"type": "image_url", "image_url": {"url": PNG, "detail": "low"}}]), 3 + 1 + 85 + 3, id="image-without-detail"
        ),
        pytest.param({**user("hello"), "tools": TOOLS}, 8 + 9 + TOOLS_TOKENS, id="tools-as-text"),
        pytest.param(user(None, tool_calls=[CALLED]), 3 + 1 + TOKENS["weather"] + TOKENS['{"city": "Köln"}'] + 3, id="tool-call"),
        pytest.param({"prompt": "hello there"}, 2, id="completion"),
        pytest.param({"prompt": ["hello there", "hello"]}, 3, id="prompts"),
        pytest.param({"prompt": [1, 2, 3]}, 3, id="prompt-of-tokens"),
        pytest.param({"prompt": [[1, 2], [3]]}, 3, id="prompts-of-tokens"),
        pytest.param({"messages": [None, 7, {"role": 1, "content": {"a": "b"}}]}, 9 + 3, id="nonsense"),
    ],
)
def test_every_part_of_a_request_is_counted(request_: dict[str, Any], figure: int) -> None:
    assert prompt_tokens(request_) == figure


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"[]", b'{"input": "x"}', orjson.dumps({"prompt": "a" * (LONGEST_TEXT + 1)})],
    ids=["empty", "no-json", "no-object", "no-chat", "too-long"],
)
def test_what_is_no_chat_or_too_long_is_not_counted(body: bytes) -> None:
    with pytest.raises(Uncountable):
        read_prompt(body)


def completion_of(*replies: Any) -> Completion:
    completion = Completion(load("o200k_base"))
    for reply in replies:
        completion.take(reply)
    return completion


def delta(index: int = 0, **said: Any) -> dict[str, Any]:
    return {"choices": [{"index": index, "delta": said}]}


def call_of(index: int, **function: str) -> dict[str, Any]:
    return delta(tool_calls=[{"index": index, "function": function}])


@pytest.mark.parametrize(
    ("replies", "figure"),
    [
        pytest.param([], 0, id="nothing"),
        pytest.param([delta(role="assistant", content="")], 0, id="only-a-role"),
        # Cut in the middle of a word: by themselves the pieces are four tokens.
        pytest.param([delta(content="hel"), delta(content="lo wor"), delta(content="ld")], 2, id="words-cut"),
        pytest.param([delta(0, content="hello"), delta(1, content="hello"), delta(0, content=" world")], 3, id="two-choices"),
        pytest.param(
            [call_of(0, name="weather", arguments=""), call_of(0, arguments='{"ci'), call_of(0, arguments='ty": 1}')],
            TOKENS["weather"] + TOKENS['{"city": 1}'],
            id="tool-call",
        ),
        pytest.param([call_of(0, name="weather"), call_of(1, name="weather")], 2 * TOKENS["weather"], id="two-tool-calls"),
        pytest.param([delta(function_call={"name": "weather"})], TOKENS["weather"], id="old-function-call"),
        pytest.param(
            [delta(refusal="I cannot"), delta(reasoning_content="so")], TOKENS["I cannot"] + 1, id="refusal-and-reasoning"
        ),
        pytest.param([{"choices": [{"index": 0, "text": "hello there"}]}], 2, id="completion"),
        pytest.param(
            [{"choices": [{"index": 0, "message": {"content": "hello", "tool_calls": [CALLED, CALLED]}}]}],
            1 + 2 * (TOKENS["weather"] + TOKENS['{"city": "Köln"}']),
            id="whole-reply",
        ),
        pytest.param([None, [], {"choices": 7}, {"choices": [None, {"delta": []}]}, delta(content=7)], 0, id="nonsense"),
    ],
)
def test_every_part_of_a_reply_is_counted(replies: list[Any], figure: int) -> None:
    assert completion_of(*replies).total() == figure


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow], max_examples=60)
@given(
    st.lists(st.text("ab'sé数😀1 ,.\n\t\r\u00a0\u0301/(", min_size=1, max_size=30), min_size=200, max_size=400),
    st.sampled_from(["o200k_base", "cl100k_base"]),
)
def test_a_text_in_pieces_has_as_many_tokens_as_the_whole(words: list[str], name: str) -> None:
    text, count = "the proxy ".join(words), load(name)
    completion = Completion(count)
    for word in (words[0], *("the proxy " + word for word in words[1:])):
        completion.take(delta(content=word))
    assert completion.total() == count(text)
    assert completion.waiting <= PIECE < len(text)
    assert sum(map(count, pieces_of(text))) == count(text)


@pytest.mark.parametrize("run", ["a", " ", "\n", "😀", "数", "^", " \n"])
def test_long_runs_take_no_longer_than_words(run: str) -> None:
    text, count = run * (2**18 // len(run)), load("o200k_base")
    began = time.process_time()
    assert all(len(piece) <= PIECE for piece in pieces_of(text))
    assert sum(map(count, pieces_of(text))) > 0
    # On an idle machine this takes 0.04 s; what grew with the square of the run would take minutes.
    assert time.process_time() - began < 2


def test_a_reply_that_would_take_too_long_is_given_up() -> None:
    completion = Completion(len)
    with pytest.raises(Uncountable):
        for _ in range(LONGEST_TEXT // 2**16 + 1):
            completion.take(delta(content="word " * (2**16 // 5 + 1)))
    with pytest.raises(Uncountable):
        completion_of(*(delta(index, content="a") for index in range(MOST_PARTS + 1)))
