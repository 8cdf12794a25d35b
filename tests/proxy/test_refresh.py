"""A stale answer that answers at once, and is fetched anew behind the call."""

import asyncio

import pytest
from stage.asking import event_of, until
from stage.cached import STALE, Tenant, numbered, said_of, tenant_of
from stage.house import House
from stage.provider import Exchange, ScriptedProvider, answer
from stage.scripts import in_turn, sends

LAXLY = STALE.replace(b"60", b"60, stale-while-revalidate=600") + b'ETag: "one"\r\n'
CONFIRMED = b'HTTP/1.1 304 Not Modified\r\nCache-Control: max-age=60\r\nETag: "one"\r\n\r\n'


@pytest.fixture
async def tenant(house: House, provider: ScriptedProvider) -> Tenant:
    """A client of one project."""
    return await tenant_of(house, provider)


def refreshed(tenant: Tenant) -> bool:
    """Whether nothing is fetched behind a call any more."""
    return not any(task.get_name().startswith("refresh") for task in asyncio.all_tasks()) and tenant.asked >= 2


@pytest.mark.parametrize("confirms", [True, False], ids=["confirmed", "replaced"])
async def test_a_stale_answer_answers_at_once_and_is_fetched_anew_once(
    tenant: Tenant, provider: ScriptedProvider, confirms: bool
) -> None:
    gate = asyncio.Event()

    async def second(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(CONFIRMED if confirms else answer(b"new", extra=b"Cache-Control: max-age=60\r\n"))

    provider.script = in_turn(sends(answer(b"old", extra=LAXLY)), second, sends(answer(b"never")))
    await tenant.send()
    # The provider says nothing until all of them are answered.
    replies = await asyncio.wait_for(asyncio.gather(*(tenant.send() for _ in range(20))), 5)
    assert {(said_of(reply), reply.body) for reply in replies} == {("hit", b"old")}
    await until(lambda: tenant.asked == 2)
    assert provider.exchanges[1].header(b"If-None-Match") == b'"one"'
    assert "ttl=-" in (replies[0].header(b"Cache-Status") or b"").decode()
    gate.set()
    await until(lambda: refreshed(tenant))
    again = await tenant.send()
    assert (said_of(again), again.body, tenant.asked) == ("hit", b"old" if confirms else b"new", 2)
    # What is fetched behind them changes nothing in what is told of the calls.
    assert [event.cache for event in tenant.house.events] == ["stored", *["hit"] * 21]
    assert {event.outcome for event in tenant.house.events[1:]} == {"cached"}


async def test_a_refresh_that_fails_leaves_what_was_stored(tenant: Tenant, provider: ScriptedProvider) -> None:
    broken = answer(b"whole", extra=b"Cache-Control: max-age=60\r\n")[:-2]
    provider.script = in_turn(
        sends(answer(b"old", extra=LAXLY)),
        sends(b"HTTP/1.1 nonsense\r\n\r\n", close=True),
        sends(broken, close=True),
        sends(answer(b"new", extra=b"Cache-Control: max-age=60\r\n")),
    )
    await tenant.send()
    for asked in (2, 3, 4):
        assert (await tenant.send()).body == b"old"
        await until(lambda asked=asked: tenant.asked == asked and refreshed(tenant))
    assert (await tenant.send()).body == b"new"
    assert (await event_of(tenant.house, 1)).outcome == "cached"


async def test_a_purge_is_not_undone_by_a_refresh(tenant: Tenant, provider: ScriptedProvider) -> None:
    gate = asyncio.Event()

    async def second(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(answer(b"secret", extra=b"Cache-Control: max-age=60\r\n"))

    provider.script = in_turn(sends(answer(b"old", extra=LAXLY)), second, numbered())
    await tenant.send()
    await tenant.send()
    await until(lambda: tenant.asked == 2)
    assert await tenant.house.context.cache.purge(everything=True) == 1
    gate.set()
    await until(lambda: refreshed(tenant))
    reply = await tenant.send()
    assert (said_of(reply), reply.body) == ("stored", b'{"n": 1}')
