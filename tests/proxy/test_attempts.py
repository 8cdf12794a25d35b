"""A provider's bad day is nobody's outage: calls go on at the next one while none has begun to work on them."""

import asyncio
from collections import Counter
from typing import Any

import pytest
from stage.asking import ask, call, code_of
from stage.house import PROVIDER_KEY, TESTER, House
from stage.postgres import free_port
from stage.provider import ScriptedProvider, answer, scripted_provider
from stage.scripts import resets, sends

from llm_proxy.acts import providers


async def project_of(house: House, *urls: str, **fields: Any) -> str:
    """A project with a provider at each of these URLs, in the order of their ids; returns a token."""
    project = await house.project(urls[0])
    for url in urls[1:]:
        given = {"api_key": PROVIDER_KEY, "api_base": url, "provider_type": "openai", **fields}
        await providers.create(house.context, TESTER, project, given)
    return await house.token(project)


@pytest.mark.parametrize("status", [b"429 Slow", b"502 Bad", b"503 Away", b"529 Full", b"401 Key", b"403 Key"])
async def test_what_one_provider_does_not_take_on_the_next_one_does(
    house: House, provider: ScriptedProvider, status: bytes
) -> None:
    async with scripted_provider() as sick:
        sick.script = sends(answer(b'{"error": {}}', status=status))
        token = await project_of(house, sick.url, provider.url)
        replies = [await ask(house.url, call(token)) for _ in range(20)]
    assert [reply.status for reply in replies if reply] == [200] * 20
    assert 0 < len(sick.exchanges) <= 6, "its breaker opens, or it is left to cool"
    failed = [event for event in house.events if event.failed_attempts]
    assert len(failed) == len(sick.exchanges)
    assert {one["status"] for event in failed for one in event.failed_attempts} == {int(status[:3])}


async def test_a_provider_that_refuses_connections_costs_no_call(house: House, provider: ScriptedProvider) -> None:
    token = await project_of(house, f"http://127.0.0.1:{free_port()}", provider.url)
    replies = await asyncio.gather(*(ask(house.url, call(token)) for _ in range(40)))
    assert Counter(reply.status for reply in replies if reply) == {200: 40}
    assert len(provider.exchanges) == 40


async def test_a_call_that_may_have_been_begun_is_not_sent_twice(house: House, provider: ScriptedProvider) -> None:
    async with scripted_provider() as sick:
        sick.script = provider.script = resets
        token = await project_of(house, sick.url, provider.url)
        reply = await ask(house.url, call(token))
        assert reply and (reply.status, code_of(reply)) == (502, "upstream_unavailable")
        assert len(sick.exchanges) + len(provider.exchanges) == 1
        reply = await ask(house.url, call(token, b"Idempotency-Key: k"))
        assert reply and reply.status == 502
        assert len(sick.exchanges) + len(provider.exchanges) == 3, "its client allows that it is sent twice"
