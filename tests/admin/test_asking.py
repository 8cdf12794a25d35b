"""A question reaches the proxy by its own address, and says what came of it."""

import orjson
import pytest
from stage.house import House
from stage.postgres import free_port
from stage.provider import END, STREAM_HEAD, ScriptedProvider, chunk
from stage.scripts import sends

from llm_proxy.admin.asking import MOST_RAW, MOST_TEXT, Outcome, Question, ask
from llm_proxy.chats import ANTHROPIC, OPENAI, Dialect
from llm_proxy.secret import Secret
from llm_proxy.usage import Usage

HELLO = [{"role": "user", "content": "hello"}]


async def outcome_of(house: House, url: str, token: str) -> Outcome:
    outcome = Outcome()
    question = Question(url, "", Secret(token), OPENAI, "m", "", HELLO)
    pieces = [piece async for piece in ask(house.context, question, outcome)]
    assert "".join(pieces) == outcome.text
    return outcome


async def test_a_proxy_that_is_away_is_named_by_its_address(house: House) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    outcome = await outcome_of(house, url, "sk-lp-0")
    assert outcome.problem and f"cannot be reached at {url}" in outcome.problem.message and not outcome.shown


async def test_what_answers_in_its_place_is_no_proxy(house: House, provider: ScriptedProvider) -> None:
    provider.script = sends(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", close=True)
    problem = (await outcome_of(house, provider.url, "sk-lp-0")).problem
    assert problem and "is no LLM Proxy" in problem.message


async def test_a_redirect_is_not_followed(house: House, provider: ScriptedProvider) -> None:
    provider.script = sends(b"HTTP/1.1 307 Elsewhere\r\nLocation: http://127.0.0.1:9/\r\nContent-Length: 0\r\n\r\n")
    outcome = await outcome_of(house, provider.url, "sk-lp-0")
    assert outcome.status == 307 and len(provider.exchanges) == 1


async def test_an_answer_without_an_end_is_left_once_it_is_too_long(house: House, provider: ScriptedProvider) -> None:
    event = b"data: %b\n\n" % orjson.dumps({"choices": [{"delta": {"content": "x" * 10_000}}]})
    provider.script = sends(STREAM_HEAD, *[chunk(event)] * 20, END)
    outcome = await outcome_of(house, house.url, await house.token_for(provider.url))
    assert outcome.problem and "longer than" in outcome.problem.message
    assert MOST_TEXT < len(outcome.text) <= MOST_TEXT + 70_000 and len(outcome.raw) == MOST_RAW < outcome.size


@pytest.mark.parametrize(
    ("dialect", "header"),
    [(OPENAI, "Authorization: Bearer (hidden)"), (ANTHROPIC, "x-api-key: (hidden)")],
    ids=["openai", "anthropic"],
)
def test_a_request_is_shown_without_its_token(dialect: Dialect, header: str) -> None:
    question = Question("http://127.0.0.1:1", "", Secret("sk-lp-secret"), dialect, "m", "", HELLO)
    assert header in question.shown and "Host: 127.0.0.1:1" in question.shown
    assert "sk-lp-secret" not in question.shown + repr(question)
    assert ("sk-lp-secret" in str(question.request.headers)) is True


@pytest.mark.parametrize(
    ("first", "whole", "tokens", "rate"),
    [(1.0, 3.0, 10, 5.0), (2.0, 2.0, 10, 5.0), (None, 2.0, 10, None), (1.0, 3.0, 0, None)],
    ids=["streamed", "in one piece", "no text", "no tokens"],
)
def test_tokens_a_second(first: float | None, whole: float, tokens: int, rate: float | None) -> None:
    assert Outcome(first_seconds=first, seconds=whole, usage=Usage(completion_tokens=tokens)).rate == rate
