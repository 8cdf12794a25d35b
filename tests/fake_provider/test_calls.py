"""What a request asks is read from any of its shapes, or refused."""

import pytest

from llm_proxy.fake_provider.calls import NO_SUCH_MODEL, answer_words, find_route, last_user_text, read_call, text_of
from llm_proxy.fake_provider.refusals import Refused


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/v1/chat/completions", ("chat/completions", "")),
        ("/openai/v1/chat/completions", ("chat/completions", "")),
        ("/api/v1/chat/completions", ("chat/completions", "")),
        ("/anthropic/v1/messages/count_tokens", ("messages/count_tokens", "")),
        ("/openai/deployments/gpt-4o/chat/completions", ("chat/completions", "gpt-4o")),
        ("/openai/deployments/v1/embeddings", ("embeddings", "v1")),
        ("/openai/responses", ("responses", "")),
        ("/v1/models", ("models", "")),
        ("/v1/models/openai/gpt-4o", ("models/*", "openai/gpt-4o")),
        ("/v1", ("", "")),
        ("/v12/models", ("", "")),
        ("/", ("", "")),
    ],
)
def test_route_is_what_follows_the_prefix(path: str, route: tuple[str, str]) -> None:
    assert find_route(path) == route


@pytest.mark.parametrize(
    ("source", "text"),
    [
        pytest.param("plain", "plain", id="text"),
        pytest.param([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "a", id="not the assistant"),
        pytest.param([{"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image_url"}]}], "a", id="parts"),
        pytest.param(["a", "b"], "a b", id="prompts"),
        pytest.param([1, None, {"role": "tool"}], "", id="nothing"),
        pytest.param(None, "", id="absent"),
    ],
)
def test_last_user_text(source: object, text: str) -> None:
    assert last_user_text(source) == text


def test_text_of_joins_any_nesting() -> None:
    assert text_of(["a", [{"content": [{"text": "b"}]}], 7, None]) == "a b"


@pytest.mark.parametrize(
    ("prompt", "wanted", "text"),
    [
        ("Grüße\n  an alle \n", 0, "Hello! You said: Grüße\n  an alle"),
        ("  ", 0, "Hello! You said: nothing that I can read."),
        ("a b c", 4, "Hello! You said: a"),
        ("a", 8, "Hello! You said: a and so on and"),
    ],
)
def test_answer_words(prompt: str, wanted: int, text: str) -> None:
    words = answer_words(prompt, wanted)
    assert "".join(words) == text
    assert len(words) == len(text.split())


def test_answer_to_a_long_prompt_has_an_end() -> None:
    assert len(answer_words("word " * 100_000, 0)) == 200


def test_call_holds_model_answer_and_counted_prompt() -> None:
    raw = b'{"model": "m", "system": "Be brief.", "messages": [{"role": "user", "content": "How are you?"}]}'
    call = read_call(raw, "", needs_model=True, words=0)
    assert (call.model, call.text, call.input_tokens) == ("m", "Hello! You said: How are you?", 5)
    assert call.id == read_call(raw, "", needs_model=True, words=3).id


def test_model_of_the_path_goes_over_that_of_the_body() -> None:
    assert read_call(b'{"model": "other"}', "deployed", needs_model=True, words=0).model == "deployed"


@pytest.mark.parametrize(
    ("raw", "status"),
    [
        pytest.param(b"{", 400, id="no JSON"),
        pytest.param(b"[]", 400, id="no object"),
        pytest.param(b"", 400, id="nothing"),
        pytest.param(b'{"model": 7}', 400, id="model is a number"),
        pytest.param(b'{"model": ""}', 400, id="model is empty"),
        pytest.param(b'{"model": "%b"}' % NO_SUCH_MODEL.encode(), 404, id="unknown model"),
    ],
)
def test_body_without_a_usable_question_is_refused(raw: bytes, status: int) -> None:
    with pytest.raises(Refused) as caught:
        read_call(raw, "", needs_model=True, words=0)
    assert caught.value.status == status


def test_call_without_a_body_may_need_no_model() -> None:
    assert read_call(b"", "", needs_model=False, words=0).model == ""
