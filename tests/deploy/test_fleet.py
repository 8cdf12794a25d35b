"""Three instances behind a gateway are one service: nothing is lost at a restart, and what one knows all know."""

import asyncio
import json
import os
import secrets
from collections import Counter
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio
from stage.asking import until
from stage.calls import FIRST, last_words, stream_without_end, streaming
from stage.fleet import Fleet, Slot, Tally, open_fleet
from stage.house import migrated_database
from stage.postgres import Postgres
from stage.programs import needs
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, answer, chunk, scripted_provider
from stage.redis import running_redis

# RESTARTS=5 restarts each of them so often, one after the other; by default two of them are, and the third is killed.
ROUNDS = int(os.environ.get("RESTARTS", "0"))
DONE = b"data: [DONE]\n\n"
LONG = pytest.mark.timeout(90 * max(1, ROUNDS))
pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs("haproxy")]


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def fleet(postgres: Postgres, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Fleet]:
    folder = tmp_path_factory.mktemp("fleet")
    with running_redis() as redis:
        async with open_fleet(folder, migrated_database(postgres), redis) as opened:
            yield opened


@pytest_asyncio.fixture(loop_scope="module")
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with scripted_provider() as running:
        running.script = chat
        yield running


async def chat(exchange: Exchange) -> None:
    """An answer, or a stream that outlasts the half second for which a stopping instance is served new calls."""
    if not json.loads(exchange.body).get("stream"):
        await exchange.send(answer(b'{"object": "chat.completion", "choices": []}'))
        return
    await exchange.send(STREAM_HEAD)
    for _ in range(16):
        await exchange.send(chunk(FIRST))
        await asyncio.sleep(0.05)
    await exchange.send(chunk(DONE), END)


@LONG
async def test_a_rolling_restart_under_load_loses_no_call_cuts_no_stream_and_drops_no_event(
    fleet: Fleet, provider: ScriptedProvider
) -> None:
    token = (await fleet.token(provider.url))["token"]
    async with fleet.load(token) as tally:
        for slot in fleet.slots * ROUNDS or fleet.slots[:2]:
            async with streaming(slot, token) as stream:
                await slot.stop()
                assert (await stream.reader.read()).endswith(DONE + b"\r\n" + END)
            await slot.start()
    print(f"{len(tally.whole)} calls, half of them streams; {len(tally.failed)} failed")
    assert (tally.failed, len(tally.whole) > 50) == ([], True)
    events = await arrived(fleet, tally)
    # Nor was one made by two instances, as of a call that the gateway had sent again.
    assert len(events) == len({request for request, _ in events})


async def arrived(fleet: Fleet, tally: Tally) -> set[tuple[str, str]]:
    """What is at the sink, once it has an event of every call of a load that was answered whole."""
    await until(lambda: {request for request, _ in fleet.delivered()} >= set(tally.whole), 10)
    return fleet.delivered()


@LONG
async def test_an_instance_that_is_killed_takes_its_own_calls_with_it_and_no_event_of_a_whole_answer(
    fleet: Fleet, provider: ScriptedProvider
) -> None:
    token = (await fleet.token(provider.url))["token"]
    async with fleet.load(token) as tally:
        for slot in fleet.slots * ROUNDS or fleet.slots[2:]:
            await asyncio.sleep(0.2)
            await slot.kill()
            await asyncio.sleep(0.2)
            await slot.start()
    print(f"{len(tally.whole)} calls; {len(tally.failed)} failed with the instance that was killed")
    assert len(tally.failed) <= 4 * max(1, 3 * ROUNDS), tally.failed
    await arrived(fleet, tally)


async def test_a_revocation_is_in_force_on_each_instance_within_a_second_for_running_streams_too(
    fleet: Fleet, provider: ScriptedProvider
) -> None:
    async def endless_streams(exchange: Exchange) -> None:
        await (stream_without_end if b"stream" in exchange.body else chat)(exchange)

    made = await fleet.token(provider.url)
    assert await fleet.statuses(made["token"]) == [200, 200, 200]
    provider.script = endless_streams

    async def words(slot: Slot) -> str:
        async with streaming(slot, made["token"]) as stream:
            opened.release()
            return await last_words(stream)

    opened = asyncio.Semaphore(0)
    streams = [asyncio.ensure_future(words(slot)) for slot in fleet.slots]
    for _ in streams:
        await opened.acquire()
    await fleet.manage(1, "DELETE", f"/manage/tokens/{made['id']}")

    async def refuses(slot: Slot) -> bool:
        return (await fleet.answer(slot.url, made["token"])).status == 401

    took = await fleet.until_everywhere(1, refuses)
    async with asyncio.timeout(1 - took):
        assert await asyncio.gather(*streams) == ["token_inactive"] * 3
    print(f"revoked everywhere after {took} s")


async def test_a_purge_is_in_force_on_each_instance_within_a_second(fleet: Fleet, provider: ScriptedProvider) -> None:
    token, storing = (await fleet.token(provider.url))["token"], {"Cache-Control": "public, max-age=60"}

    async def state(slot: Slot) -> str:
        return (await fleet.answer(slot.url, token, headers=storing)).headers["X-PROXY-CACHE"]

    async def kept(slot: Slot) -> bool:
        return await state(slot) == "hit"

    async def purged(slot: Slot) -> bool:
        return await state(slot) == "stored"

    # The news of the project may come after the first answer was kept, and has it forgotten.
    await fleet.until_everywhere(10, kept)
    assert (await fleet.manage(2, "POST", "/manage/cache/purge", {"all": True}))["deleted"] >= 1
    print(f"purged everywhere after {await fleet.until_everywhere(1, purged)} s")


async def test_one_write_to_the_shared_pool_at_the_gateway_is_seen_and_used_by_all(
    fleet: Fleet, provider: ScriptedProvider
) -> None:
    key = await fleet.manage(0, "POST", "/admin/v1/master-keys", {"name": secrets.token_hex(4)})
    async with scripted_provider() as other:
        other.script = chat
        pool = {"id": "pool", "provider_type": "custom", "api_base": provider.url, "api_key": "sk-" + secrets.token_hex(16)}
        await fleet.manage(0, "POST", "/admin/v1/providers", pool)

        async def serves(slot: Slot) -> bool:
            return (await fleet.answer(slot.url, key["key"])).status == 200

        print(f"added everywhere after {await fleet.until_everywhere(1, serves)} s")
        await fleet.manage(2, "PUT", "/admin/v1/providers/pool", {"api_base": other.url})

        async def moved(slot: Slot) -> bool:
            before = len(provider.exchanges)
            assert await serves(slot)
            return len(provider.exchanges) == before

        print(f"changed everywhere after {await fleet.until_everywhere(1, moved)} s")
        for number in range(3):
            assert (await fleet.manage(number, "GET", "/admin/v1/providers/pool"))["api_base"] == other.url
        await fleet.manage(1, "DELETE", "/admin/v1/providers/pool")


async def test_quotas_are_exact_over_all_instances(fleet: Fleet, provider: ScriptedProvider) -> None:
    token, quota = (await fleet.token(provider.url, max_requests=100))["token"], 100

    async def caller(slot: Slot) -> None:
        while (await fleet.answer(slot.url, token)).status == 200:
            pass

    await asyncio.gather(*(caller(slot) for slot in fleet.slots * 4))
    # What an instance leased and did not use is back within two seconds.
    async with asyncio.timeout(5):
        while len(provider.exchanges) < quota:
            await asyncio.gather(*map(caller, fleet.slots))
            await asyncio.sleep(0.1)
    await asyncio.gather(*map(caller, fleet.slots))
    assert len(provider.exchanges) == quota


async def test_rates_are_exact_over_all_instances(fleet: Fleet, provider: ScriptedProvider) -> None:
    token = (await fleet.token(provider.url, rate_limit_per_minute=20))["token"]
    replies = await asyncio.gather(*(fleet.answer(slot.url, token) for slot in fleet.slots * 20))
    found = Counter(reply.status for reply in replies)
    # A call whose question to Redis was answered too late is refused, and may have been counted.
    assert found[200] <= 20 <= found[200] + found[503], found
    assert found.total() == found[200] + found[429] + found[503]


async def test_parallel_calls_are_exact_over_all_instances(fleet: Fleet, provider: ScriptedProvider) -> None:
    token, enough = (await fleet.token(provider.url, max_parallel=4))["token"], asyncio.Event()

    async def hold(exchange: Exchange) -> None:
        await enough.wait()
        await chat(exchange)

    provider.script = hold
    calls = [asyncio.ensure_future(fleet.answer(slot.url, token)) for slot in fleet.slots * 4]
    await until(lambda: sum(call.done() for call in calls) + len(provider.exchanges) == len(calls))
    enough.set()
    found = Counter(reply.status for reply in await asyncio.gather(*calls))
    assert found[200] <= 4 <= found[200] + found[503], found
    assert found.total() == found[200] + found[429] + found[503]
