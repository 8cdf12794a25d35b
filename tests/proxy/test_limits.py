"""Rate limits through the front door, counted in memory."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import orjson
import pytest
from stage.asking import CHAT, MESSAGES, STREAM, ask, call, code_of, until
from stage.house import TESTER, House, open_house, settings_for
from stage.postgres import free_port
from stage.provider import STREAM_HEAD, ScriptedProvider, answer, chunk
from stage.raw import Answer, connected
from stage.scripts import holds, resets, sends

from llm_proxy.acts import projects, tokens
from llm_proxy.context import STRANGERS_FAILURES
from llm_proxy.db import NO_PARAMS, Params, Row
from llm_proxy.errors import ApiError

REMAINING = b"x-ratelimit-remaining-requests"


async def asked(house: House, data: bytes) -> Answer:
    reply = await ask(house.url, data)
    assert reply is not None
    return reply


def remaining(reply: Answer) -> int:
    """How many requests the answer says are left, in the one header that says so."""
    assert reply.head.lower().count(REMAINING) == 1, reply.head
    assert reply.header(b"x-ratelimit-limit-requests") and reply.header(b"x-ratelimit-reset-requests")
    return int(reply.header(REMAINING) or b"")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_too_fast_is_429_with_the_time_to_come_again(house: House, provider: ScriptedProvider, path: str) -> None:
    token = await house.token_for(provider.url, provider_type="anthropic", rate_limit_per_minute=2, max_requests=10)
    for left in (1, 0):
        assert remaining(await asked(house, call(token, path=path))) == left
    reply = await asked(house, call(token, path=path))
    assert (reply.status, code_of(reply), remaining(reply)) == (429, "rate_limit_exceeded", 0)
    assert orjson.loads(reply.body)["error"]["type"] == "rate_limit_error"
    wait, exact = int(reply.header(b"retry-after") or b""), int(reply.header(b"retry-after-ms") or b"")
    assert 55 < wait <= 60 and wait - 1 < exact / 1000 <= wait
    assert reply.header(b"x-should-retry") is None
    assert (house.events[-1].outcome, house.events[-1].code) == ("refused", "rate_limit_exceeded")
    assert len(provider.exchanges) == 2


async def test_every_answer_to_a_limited_token_says_what_is_left(house: House, provider: ScriptedProvider) -> None:
    """What is refused for another reason costs nothing; what a provider or its absence spoiled does."""
    project = await house.project(provider.url)
    token = await house.token(project, rate_limit_per_minute=9, allowed_models=["gpt-4o"], max_requests=4)
    theirs = b"X-RateLimit-Limit-Requests: 5000\r\nx-ratelimit-remaining-requests: 4999\r\nx-ratelimit-limit-tokens: 7\r\n"
    provider.script = sends(answer(b"{}", extra=theirs))
    first = await asked(house, call(token))
    assert (first.status, remaining(first), first.header(b"x-ratelimit-limit-requests")) == (200, 8, b"9")
    assert first.header(b"x-ratelimit-limit-tokens") == b"7"
    other_model = call(token, body=orjson.dumps({"model": "o1"}))
    for data, status in ((call(token, path="/v1/none"), 404), (call(token, body=b"{"), 400), (other_model, 403)):
        reply = await asked(house, data)
        assert (reply.status, remaining(reply)) == (status, 8)
    provider.script = sends(answer(b"{}", status=b"500 Oh"))
    spoiled = await asked(house, call(token))
    assert (spoiled.status, remaining(spoiled)) == (500, 7)
    provider.script = resets()
    broken = await asked(house, call(token))
    assert (broken.status, remaining(broken)) == (502, 6)
    provider.script = sends(STREAM_HEAD, chunk(b"data: [DONE]\n\n"), b"0\r\n\r\n")
    streamed = await asked(house, call(token, body=STREAM))
    assert (streamed.status, remaining(streamed)) == (200, 5)
    for _ in range(3):
        reply = await asked(house, call(token))
        assert (code_of(reply), remaining(reply)) == ("request_limit_exhausted", 5)


async def test_without_rates_the_providers_own_headers_come_through(house: House, provider: ScriptedProvider) -> None:
    provider.script = sends(answer(b"{}", extra=b"x-ratelimit-remaining-requests: 4999\r\n"))
    reply = await asked(house, call(await house.token_for(provider.url, max_parallel=3)))
    assert reply.header(REMAINING) == b"4999"


async def test_who_is_refused_by_the_quota_or_a_slot_pays_no_rate(house: House, provider: ScriptedProvider) -> None:
    project = await house.project(provider.url)
    made, secret = await tokens.create(
        house.context, TESTER, {"project_id": project, "rate_limit_per_minute": 3, "max_requests": 2, "max_parallel": 1}
    )
    token = secret.reveal()
    provider.script = holds()
    async with connected(house.url) as running:
        await running.send(call(token))
        await provider.next_exchange()
        for _ in range(5):
            reply = await asked(house, call(token))
            assert (code_of(reply), reply.header(b"retry-after"), remaining(reply)) == ("rate_limit_exceeded", b"1", 2)
        running.abort()
    await until(lambda: not len(house.context.running))
    provider.script = sends(answer(b"{}"))
    assert (await asked(house, call(token))).status == 200
    for _ in range(5):
        assert code_of(await asked(house, call(token))) == "request_limit_exhausted"
    await tokens.update(house.context, TESTER, made.id, {"max_requests": None})
    assert remaining(await asked(house, call(token))) == 0


async def test_a_call_holds_its_slot_from_before_its_body_and_gives_it_back_however_it_ends(
    house: House, provider: ScriptedProvider
) -> None:
    token = await house.token_for(provider.url, max_parallel=1)
    unreachable = await house.token_for(f"http://127.0.0.1:{free_port()}", max_parallel=1)
    whole = call(token, body=STREAM)
    endings = {"in the body": 20, "before the first byte": 0, "in mid-stream": 0}
    for name, missing in endings.items():
        provider.script = holds(STREAM_HEAD, chunk(b"data: 1\n\n")) if name == "in mid-stream" else holds()
        async with connected(house.url) as running:
            await running.send(whole[: len(whole) - missing])
            if missing:
                await until(lambda: len(house.context.running))
            else:
                await provider.next_exchange()
            reply = await asked(house, call(token, b"Expect: 100-continue"))
            assert (reply.status, code_of(reply)) == (429, "rate_limit_exceeded"), f"{name}: not even asked for its body"
            running.abort()
        await until(lambda: not len(house.context.running))
    for script in (resets(), sends(answer(b"{}", status=b"500 Oh")), sends(answer(b"{}"))):
        provider.script = script
        assert (await asked(house, call(token))).status != 429
        assert (await asked(house, call(token, body=b"{"))).status != 429
    for _ in range(2):
        assert code_of(await asked(house, call(unreachable))) == "upstream_unavailable"
    provider.script = holds()
    async with connected(house.url) as running:
        provider.arrived.clear()
        await running.send(whole)
        await provider.next_exchange()
        house.context.running.end_all(ApiError("shutting_down", "It stops."))
        assert (await running.answer()) is not None
    provider.script = sends(answer(b"{}"))
    assert (await asked(house, call(token))).status == 200


async def test_a_projects_tokens_share_its_limits_and_a_change_reaches_every_house(
    tmp_path: Path, house: House, provider: ScriptedProvider
) -> None:
    async with open_house(settings_for(tmp_path)) as other:
        project = await house.project(provider.url)
        one, two = await house.token(project), await house.token(project)
        for place in (house, other):
            assert (await asked(place, call(one))).header(REMAINING) is None
        await projects.update(house.context, TESTER, project, {"rate_limit_per_minute": 3})
        assert [remaining(await asked(house, call(token))) for token in (one, two, one)] == [2, 1, 0]
        assert (await asked(house, call(two))).status == 429
        async with asyncio.timeout(1):
            while (reply := await asked(other, call(one))).header(REMAINING) is None:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        assert remaining(reply) == 2, "counted in the memory of each"


@pytest.fixture
async def strict(tmp_path: Path) -> AsyncIterator[House]:
    """A house whose settings limit everybody."""
    async with open_house(settings_for(tmp_path, RATE_LIMIT_PER_MINUTE="2", RATE_LIMIT_PARALLEL="1")) as house:
        yield house


async def test_the_settings_limit_tokens_that_say_nothing(strict: House, provider: ScriptedProvider) -> None:
    project = await strict.project(provider.url)
    plain, free = await strict.token(project), await strict.token(project, rate_limit_per_minute=0, max_parallel=0)
    assert [(await asked(strict, call(plain))).status for _ in range(3)] == [200, 200, 429]
    assert [(await asked(strict, call(free))).status for _ in range(3)] == [200] * 3
    provider.script = holds()
    slow = await strict.token(project, rate_limit_per_minute=0)
    async with connected(strict.url) as running:
        provider.arrived.clear()
        await running.send(call(slow))
        await provider.next_exchange()
        assert code_of(await asked(strict, call(slow))) == "rate_limit_exceeded"


class Counting:
    """A database that counts the questions of a token."""

    def __init__(self, house: House) -> None:
        self._fetch_one, self.asked = house.context.database.fetch_one, 0

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        self.asked += "secret_hash" in sql
        return await self._fetch_one(sql, params)


async def test_an_address_with_many_unknown_tokens_is_looked_up_no_more_but_for_tokens_that_were_good(
    tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with open_house(settings_for(tmp_path, TRUSTED_PROXIES="127.0.0.1")) as house:
        here, there = b"X-Forwarded-For: 203.0.113.9", b"X-Forwarded-For: 203.0.113.10"
        project = await house.project(provider.url)
        known, unseen = await house.token(project), await house.token(project)
        assert (await asked(house, call(known, here))).status == 200
        for number in range(STRANGERS_FAILURES):
            assert code_of(await asked(house, call(f"unknown-token-number-{number:04}", here))) == "invalid_token"
        database = Counting(house)
        monkeypatch.setattr(house.context.database, "fetch_one", database.fetch_one)
        for token in ("another-unknown-token", "", unseen):
            reply = await asked(house, call(token, here))
            assert (reply.status, code_of(reply)) == (429, "too_many_failures")
            assert 0 < int(reply.header(b"retry-after") or b"") <= 60
        assert database.asked == 0
        # What is cached of it is forgotten with any change to its project, so it is looked up.
        await projects.update(house.context, TESTER, project, {"name": "another"})
        assert (await asked(house, call(known, here))).status == 200
        assert (await asked(house, call(unseen, there))).status == 200
        assert database.asked == 2
