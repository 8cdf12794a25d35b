"""`llm-proxy manage cache`, on a running server and on its database."""

import asyncio

from stage.asking import until
from stage.cached import MODELS, numbered, tenant_of
from stage.house import House
from stage.provider import ScriptedProvider

from ..conftest import Cli, Manage


async def test_purge_forgets_what_a_running_server_keeps(manage: Manage, house: House, provider: ScriptedProvider) -> None:
    provider.script = numbered()
    tenant = await tenant_of(house, provider)
    for flags in (("--all",), ("--prefix", "/v1/mod"), ("--path", MODELS, "--project", tenant.project, "--method", "GET")):
        await tenant.send()
        done = await manage("cache", "purge", *flags)
        assert (done.code, done.err) == (0, "") and done.out.startswith("Purged"), flags
        async with asyncio.timeout(5):
            while (await house.context.cache.stats()).entries:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
    await until(lambda: [event.cache for event in house.events] == ["stored"] * 3)


async def test_purge_says_what_is_wrong(manage: Manage) -> None:
    nothing = await manage("cache", "purge")
    assert nothing.code == 2 and "Say what to purge" in nothing.err
    wrong = await manage("cache", "purge", "--method", "GET")
    assert wrong.code == 1 and '{"prefix"}' in wrong.err


async def test_stats_are_the_running_servers(house: House, provider: ScriptedProvider, cli: Cli) -> None:
    provider.script = numbered()
    tenant = await tenant_of(house, provider)
    assert [await tenant.how() for _ in range(2)] == ["stored", "hit"]
    token = {"MANAGEMENT_TOKEN": house.context.settings.management_token[0].reveal()}
    where = ("manage", "--api-url", house.url, "cache", "stats")
    shown = await asyncio.to_thread(cli, *where, **token)
    assert shown.fields["hit_ratio"] == "0.5" and tenant.project in shown.out
    assert (await asyncio.to_thread(cli, *where, "--json", **token)).json["entries"] == 1
    local = await asyncio.to_thread(cli, "manage", "--local", "--db", house.context.settings.database_path, "cache", "stats")
    assert local.code == 2 and "Leave --local out" in local.err
