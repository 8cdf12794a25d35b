"""Purges: exact, in force everywhere, audited."""

import asyncio
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from stage.asking import until
from stage.cached import FRESH, MODELS, Tenant, key_of, numbered, said_of, tenant_of
from stage.house import TESTER, House, open_house, settings_for
from stage.management import Management
from stage.provider import Exchange, ScriptedProvider, answer
from stage.redis import RedisServer

from llm_proxy.acts import cache
from llm_proxy.errors import ApiError
from llm_proxy.settings import Settings

# One second is promised; a machine that runs other tests meanwhile gets three.
SOON = 3.0
CHAT = {"method": "POST", "path": "/v1/chat/completions", "body": b'{"model": "gpt-4o", "messages": []}'}


@pytest.fixture(params=["sqlite", "postgres", "redis"])
async def houses(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[tuple[House, House]]:
    """Two houses: on SQLite or PostgreSQL with caches of their own, and on SQLite with one in Redis."""
    more = {
        "sqlite": lambda: {},
        "postgres": lambda: {"DATABASE_URL": request.getfixturevalue("postgres_url")},
        "redis": lambda: {"HTTP_CACHE_BACKEND": "redis", "REDIS_URL": request.getfixturevalue("redis_server").uri},
    }[request.param]()
    settings: Settings = settings_for(tmp_path, **more)
    async with open_house(settings) as one, open_house(settings) as other:
        yield one, other


async def fill(*tenants: Tenant) -> None:
    """Have two answers to GET stored, one of them in two variants, and one to POST, for each."""
    for tenant in tenants:
        for color in (b"X-Color: red", b"X-Color: blue"):
            await tenant.send(color)
        await tenant.send(b"X-Color: red", path=f"{MODELS}/gpt-4o")
        await tenant.send(b"X-Color: red", b"Cache-Control: public", **CHAT)


async def stored(tenant: Tenant) -> set[str]:
    """What of that is stored now."""
    asking: dict[str, dict[str, Any]] = {"models": {}, "model": {"path": f"{MODELS}/gpt-4o"}, "chat": CHAT}
    only = b"Cache-Control: public, only-if-cached"
    return {name for name, call in asking.items() if (await tenant.send(only, b"X-Color: red", **call)).status == 200}


def forms(one: Tenant, key: str) -> list[tuple[dict[str, object], int, set[str], set[str]]]:
    """Purges, how many answers they are about, what remains of the project's and of another's."""
    everything = {"models", "model", "chat"}
    return [
        ({"key": key}, 2, {"model", "chat"}, everything),
        ({"method": "HEAD", "path": MODELS}, 4, {"model", "chat"}, {"model", "chat"}),
        ({"method": "POST", "path": MODELS}, 0, everything, everything),
        ({"method": "POST", "project_id": one.project}, 1, {"models", "model"}, everything),
        ({"project_id": one.project, "method": "GET", "path": f"{MODELS}/gpt-4o"}, 1, {"models", "chat"}, everything),
        ({"prefix": "/v1/mod"}, 6, {"chat"}, {"chat"}),
        ({"project_id": one.project}, 4, set(), everything),
        ({"path": "/v1/nothing"}, 0, everything, everything),
        ({"all": True}, 8, set(), set()),
    ]


async def test_a_purge_is_exact_and_in_force_in_every_process(houses: tuple[House, House], provider: ScriptedProvider) -> None:
    here, there = houses
    provider.script = numbered(FRESH + b"Vary: X-Color\r\n")
    near = [await tenant_of(here, provider) for _ in range(2)]
    far = [Tenant(there, provider, tenant.token, tenant.token_id, tenant.project) for tenant in near]
    # Otherwise the news of the projects' providers would come later, and take what is stored along.
    await there.context.changes.catch_up()
    key = key_of(await near[0].send(b"X-Color: red"))
    for selectors, deleted, *remaining in forms(near[0], key):
        await fill(*near, *far)
        assert await cache.purge(here.context, TESTER, selectors) == deleted, selectors
        assert [await stored(tenant) for tenant in near] == remaining, selectors
        async with asyncio.timeout(SOON):
            while [await stored(tenant) for tenant in far] != remaining:  # noqa: ASYNC110
                await asyncio.sleep(0.02)


async def test_a_call_that_began_before_a_purge_stores_nothing_after_it(
    houses: tuple[House, House], provider: ScriptedProvider
) -> None:
    here, there = houses
    gate = asyncio.Event()

    async def slow(exchange: Exchange) -> None:
        await gate.wait()
        await exchange.send(answer(b"old", extra=FRESH))

    provider.script = slow
    near = await tenant_of(here, provider)
    far = Tenant(there, provider, near.token, near.token_id, near.project)
    # Otherwise the news of the projects' providers would come later, and take what is stored along.
    await there.context.changes.catch_up()
    calls = [asyncio.ensure_future(tenant.send()) for tenant in (near, far)]
    await until(lambda: len(provider.exchanges) == 2)
    marker = f"{MODELS}/marker"
    provider.script = numbered(FRESH)
    await far.send(path=marker)
    await cache.purge(here.context, TESTER, {"prefix": MODELS})
    # Once this is gone there, so is the leave to store what was begun.
    async with asyncio.timeout(SOON):
        while (await far.send(b"Cache-Control: only-if-cached", path=marker)).status == 200:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
    gate.set()
    assert [(await each).body for each in calls] == [b"old", b"old"]
    assert here.events[0].cache == "miss"
    for tenant in (near, far):
        assert (await tenant.send()).body != b"old"


async def test_a_purge_is_audited_with_what_was_purged(house: House, provider: ScriptedProvider) -> None:
    provider.script = numbered()
    tenant = await tenant_of(house, provider)
    await tenant.send()
    selectors = {"project_id": tenant.project, "method": "GET", "path": MODELS}
    assert await cache.purge(house.context, TESTER, selectors) == 1
    with pytest.raises(ApiError):
        await cache.purge(house.context, TESTER, {"method": "GET"})
    rows: list[Any] = []
    async with asyncio.timeout(5):
        while len(rows) < 2:
            rows = await house.context.database.fetch_all(
                "SELECT * FROM audit_events WHERE action = 'cache.purge' ORDER BY outcome DESC"
            )
            await asyncio.sleep(0.01)
    done, failed = rows
    assert (done["outcome"], done["actor"], done["project_id"]) == ("success", "tester", tenant.project)
    assert orjson.loads(done["details"]) == {"purged": selectors, "deleted": 1}
    assert (failed["outcome"], failed["reason"]) == ("failure", "invalid_field")


WRONG: list[tuple[dict[str, object], str]] = [
    ({}, "key"),
    ({"method": "GET"}, "key"),
    ({"all": False}, "key"),
    ({"all": "yes"}, "all"),
    ({"key": "k", "path": "/v1"}, "key"),
    ({"key": 7}, "key"),
    ({"key": ""}, "key"),
    ({"prefix": "/v1", "project_id": "p"}, "key"),
    ({"all": True, "project_id": "p"}, "key"),
    ({"path": "v1/models"}, "path"),
    ({"path": "/v1/models?a=1"}, "path"),
    ({"prefix": None}, "prefix"),
    ({"paths": "/v1"}, "paths"),
]


@pytest.mark.parametrize(("given", "field"), WRONG, ids=lambda value: str(value))
async def test_what_is_no_purge_is_refused_and_purges_nothing(
    house: House, provider: ScriptedProvider, given: dict[str, object], field: str
) -> None:
    provider.script = numbered()
    tenant = await tenant_of(house, provider)
    await tenant.send()
    with pytest.raises(ApiError) as refusal:
        await cache.purge(house.context, TESTER, given)
    assert (refusal.value.status, refusal.value.param) == (400, field)
    assert said_of(await tenant.send()) == "hit"


async def test_answers_that_all_projects_share_belong_to_none(provider: ScriptedProvider, tmp_path: Path) -> None:
    provider.script = numbered(b"Cache-Control: public, max-age=60\r\n")
    async with open_house(settings_for(tmp_path, HTTP_CACHE_SHARED="true")) as house:
        tenant = await tenant_of(house, provider)
        await tenant.send()
        with pytest.raises(ApiError) as refusal:
            await cache.purge(house.context, TESTER, {"project_id": tenant.project})
        assert (refusal.value.status, refusal.value.param) == (400, "project_id")
        shown = await cache.shown(house.context)
        assert [(row["project_id"], row["entries"], row["misses"]) for row in shown["projects"]] == [
            (None, 1, 0),
            (tenant.project, 0, 1),
        ]
        assert await cache.purge(house.context, TESTER, {"path": MODELS}) == 1


async def test_without_redis_nothing_is_purged_and_nobody_is_told_so(
    mortal_redis: RedisServer, provider: ScriptedProvider, tmp_path: Path
) -> None:
    async with open_house(settings_for(tmp_path, HTTP_CACHE_BACKEND="redis", REDIS_URL=mortal_redis.uri)) as house:
        mortal_redis.kill()
        began = time.monotonic()
        for act in (cache.purge(house.context, TESTER, {"all": True}), cache.shown(house.context)):
            with pytest.raises(ApiError) as refusal:
                await act
            assert (refusal.value.code, refusal.value.status, refusal.value.headers["Retry-After"]) == (
                "cache_unavailable",
                503,
                "1",
            )
        assert time.monotonic() - began < 4
        changes = await house.context.database.fetch_all("SELECT kind FROM changes WHERE kind = 'cache_purge'")
        assert changes == []


async def test_who_leaves_during_a_purge_does_not_end_it(house: House, provider: ScriptedProvider, api: Management) -> None:
    provider.script = numbered(FRESH)
    await (await tenant_of(house, provider)).send()
    purge = asyncio.ensure_future(cache.purge(house.context, TESTER, {"all": True}))
    async with asyncio.timeout(5):
        while (await house.context.cache.stats()).entries:  # noqa: ASYNC110 - it is to be left right after this
            await asyncio.sleep(0)
        purge.cancel()
        with pytest.raises(asyncio.CancelledError):
            await purge
    assert [event["details"]["deleted"] for event in await api.audited(action="cache.purge")] == [1]
