"""The playground keeps little, of each session its own, and not for long."""

import pytest

from llm_proxy.admin.asking import Outcome, Question
from llm_proxy.admin.playground import MOST_BYTES, MOST_TALKS, TALK_SECONDS, TOKEN_REQUESTS, TOKEN_SECONDS, Playground, Talk
from llm_proxy.chats import OPENAI
from llm_proxy.secret import Secret


class Clock:
    """A clock that goes when it is told to."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def playground(clock: Clock) -> Playground:
    return Playground(clock)


def talk(text: str = "") -> Talk:
    question = Question("http://127.0.0.1:1", "", Secret("sk-lp-0"), OPENAI, "m", "", [])
    return Talk({}, [], question, Outcome(text=text))


def test_a_token_serves_its_session_and_project_until_it_is_used_up_or_about_to_end(playground: Playground, clock: Clock) -> None:
    token = Secret("one")
    playground.lend("a", "p", token)
    assert playground.token_of("b", "p") is None and playground.token_of("a", "q") is None
    assert [playground.token_of("a", "p") for _ in range(TOKEN_REQUESTS)] == [*[token] * (TOKEN_REQUESTS - 1), None]
    playground.lend("a", "p", token)
    clock.now += TOKEN_SECONDS
    assert playground.token_of("a", "p") is None


def test_a_refused_token_is_forgotten(playground: Playground) -> None:
    one, other = Secret("one"), Secret("other")
    playground.lend("a", "p", one)
    playground.lend("a", "q", other)
    playground.forget(one)
    assert playground.token_of("a", "p") is None and playground.token_of("a", "q") is other


def test_a_conversation_is_kept_for_its_session_and_a_while(playground: Playground, clock: Clock) -> None:
    kept = talk()
    id = playground.keep("a", kept)
    assert playground.find("a", id) is kept and playground.find("b", id) is None
    clock.now += TALK_SECONDS
    assert playground.find("a", id) is None


def test_the_oldest_conversations_go_when_there_are_too_many(playground: Playground) -> None:
    ids = [playground.keep("a", talk()) for _ in range(MOST_TALKS + 1)]
    assert [playground.find("a", id) is not None for id in ids] == [False] + [True] * MOST_TALKS


def test_the_oldest_conversations_go_when_they_hold_too_much(playground: Playground) -> None:
    ids = [playground.keep("a", talk("x" * (MOST_BYTES // 2))) for _ in range(2)]
    assert [playground.find("a", id) is not None for id in ids] == [False, True]
