"""An operator ends a running call."""

import asyncio
import time

import aiohttp
import pytest
from stage.asking import event_of
from stage.calls import call, last_words, stream_without_end, streaming, until
from stage.house import TESTER, House
from stage.management import Management
from stage.provider import ScriptedProvider
from stage.scripts import holds

from llm_proxy.acts import calls
from llm_proxy.errors import NotFound


async def test_a_stream_that_is_ended_says_so_within_a_second_and_no_other_is_touched(
    house: House, api: Management, provider: ScriptedProvider
) -> None:
    token = await house.token_for(provider.url)
    provider.script = stream_without_end
    async with asyncio.timeout(10), streaming(house, token) as other, streaming(house, token) as connection:
        _, newest = house.context.running.longest()
        began = time.monotonic()
        await calls.end(house.context, TESTER, newest.event.id)
        assert await last_words(connection) == "ended_by_operator"
        assert time.monotonic() - began < 1
        event = await event_of(house)
        assert (event.id, event.outcome, event.code) == (newest.event.id, "refused", "ended_by_operator")
        assert not other.reader.at_eof() and len(house.context.running) == 1
        with pytest.raises(NotFound):
            await calls.end(house.context, TESTER, newest.event.id)
    [success] = await api.audited(action="call.end", outcome="success")
    [failure] = await api.audited(action="call.end", outcome="failure")
    assert (success["token_id"], success["project_id"]) == (event.token_id, event.project_id)
    assert success["details"]["call"] == event.id and success["details"]["model"] == "gpt-4o"
    assert failure["reason"] == "not_found"


async def test_a_call_that_still_waits_is_told_so(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = holds()
    async with asyncio.timeout(10), aiohttp.ClientSession() as client:
        waiting = asyncio.ensure_future(call(client, house, token))
        await provider.next_exchange()
        await until(lambda: len(house.context.running))
        [running] = house.context.running.longest()
        await calls.end(house.context, TESTER, running.event.id)
        assert await waiting == (403, "ended_by_operator")
