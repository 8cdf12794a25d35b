"""Two processes on one database: what one changes, the other obeys."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from stage.asking import until
from stage.calls import call, last_words, stream_without_end, streaming
from stage.house import PROVIDER_KEY, TESTER, House, open_house
from stage.provider import Exchange, ScriptedProvider
from stage.secrets import used

from llm_proxy.acts import master_keys, projects, providers, tokens
from llm_proxy.changes import EVERYTHING
from llm_proxy.clock import now_ms
from llm_proxy.settings import Settings

# One second is promised; a machine that runs other tests meanwhile gets three.
SOON = 3.0

Act = Callable[[House, str, str], Awaitable[object]]


async def revoke_token(house: House, project: str, token: str) -> None:
    """Revoke the one token."""
    await tokens.revoke(house.context, TESTER, token)


async def switch_token_off(house: House, project: str, token: str) -> None:
    """Revoke it by PATCH."""
    await tokens.update(house.context, TESTER, token, {"is_active": False})


async def revoke_all(house: House, project: str, token: str) -> None:
    """Revoke all of the project's tokens."""
    await projects.revoke_tokens(house.context, TESTER, project, {})


async def deactivate(house: House, project: str, token: str) -> None:
    """Deactivate the project for good."""
    await projects.deactivate(house.context, TESTER, project)


async def stop_project(house: House, project: str, token: str) -> None:
    """Stop the project for a while."""
    await projects.update(house.context, TESTER, project, {"is_active": False})


ENDINGS = [
    (revoke_token, 401, "token_inactive"),
    (switch_token_off, 401, "token_inactive"),
    (revoke_all, 401, "token_inactive"),
    (deactivate, 403, "project_inactive"),
    (stop_project, 403, "project_inactive"),
]


@pytest.fixture
async def houses(settings: Settings) -> AsyncIterator[tuple[House, House]]:
    """Two houses on one database, once on each kind."""
    async with open_house(settings) as one, open_house(settings) as other:
        yield one, other


async def until_refused(client: aiohttp.ClientSession, house: House, token: str) -> tuple[int, str | None]:
    """The first refusal of a token that was good."""
    async with asyncio.timeout(SOON):
        while True:
            outcome = await call(client, house, token)
            if outcome[1]:
                return outcome


async def test_what_one_house_ends_has_ended_in_both(
    houses: tuple[House, House], client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, there = houses
    for act, status, code in ENDINGS:
        project = await here.project(provider.url)
        token, secret = await tokens.create(here.context, TESTER, {"project_id": project})
        for house in houses:
            assert await call(client, house, secret.reveal()) == (200, None)
        await act(here, project, token.id)
        assert await call(client, here, secret.reveal()) == (status, code)
        assert await until_refused(client, there, secret.reveal()) == (status, code)


async def test_what_one_house_ends_ends_the_running_streams_of_both(
    houses: tuple[House, House], provider: ScriptedProvider
) -> None:
    here, there = houses
    provider.script = stream_without_end
    for act, _, code in ENDINGS:
        project = await here.project(provider.url)
        token, secret = await tokens.create(here.context, TESTER, {"project_id": project})
        spared = await here.token_for(provider.url)
        async with (
            streaming(here, secret.reveal()) as near,
            streaming(there, secret.reveal()) as far,
            streaming(there, spared) as other,
        ):
            exchanges = provider.exchanges[-3:-1]
            await act(here, project, token.id)
            async with asyncio.timeout(SOON):
                assert await last_words(near) == code
                assert await last_words(far) == code
                for exchange in exchanges:
                    await exchange.closed.wait()
            assert not other.reader.at_eof()
            assert not provider.exchanges[-1].closed.is_set()


async def test_a_provider_that_one_house_changes_is_another_one_for_both(
    houses: tuple[House, House], client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, there = houses
    project = await here.project(provider.url)
    secret = await here.token(project)

    async def key_used() -> bytes | None:
        assert (await call(client, there, secret))[0] == 200
        return provider.exchanges[-1].header(b"authorization")

    assert await key_used() == f"Bearer {PROVIDER_KEY}".encode()
    await projects.update(here.context, TESTER, project, {"api_key": "sk-replaced-0123456789abcdef"})
    async with asyncio.timeout(SOON):
        while await key_used() != b"Bearer sk-replaced-0123456789abcdef":
            pass
    [only] = await providers.of_project(here.context, project)
    await providers.update(here.context, TESTER, project, only.id, {"is_enabled": False})
    assert (await until_refused(client, there, secret))[1] == "model_not_found"


async def test_what_one_house_makes_the_other_knows_at_once(
    houses: tuple[House, House], client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, there = houses
    project = await here.project(provider.url)
    assert (await projects.get(there.context, project)).id == project
    assert await call(client, there, await here.token(project)) == (200, None)


async def test_the_shared_pool_that_one_house_changes_is_another_one_for_both(
    houses: tuple[House, House], client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, there = houses
    project = (await projects.create(here.context, TESTER, {"name": "without a key"})).id
    secret = await here.token(project)
    assert await call(client, there, secret) == (404, "model_not_found")
    made = await providers.create(here.context, TESTER, None, {"api_key": used("sk-pool-0123456789"), "api_base": provider.url})
    assert await call(client, here, secret) == (200, None)
    async with asyncio.timeout(SOON):
        while (await call(client, there, secret))[1]:
            pass
    await providers.update(here.context, TESTER, None, made.id, {"is_enabled": False})
    assert (await until_refused(client, there, secret))[1] == "model_not_found"


async def test_a_master_key_that_one_house_ends_has_ended_in_both(
    houses: tuple[House, House], client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, there = houses
    await providers.create(here.context, TESTER, None, {"api_key": used("sk-pool-0123456789"), "api_base": provider.url})
    secret = used("a-master-key-of-my-own")
    for code in ("token_inactive", "invalid_token"):
        made, _ = await master_keys.create(here.context, TESTER, {"name": "one", "id": "mine", "key": secret})
        async with asyncio.timeout(SOON):
            # There it may be known for a moment as the one that was removed.
            while (await call(client, there, secret))[1]:
                pass
        if code == "token_inactive":
            await master_keys.update(here.context, TESTER, made.id, {"is_enabled": False})
            assert await until_refused(client, there, secret) == (401, code)
        await master_keys.delete(here.context, TESTER, made.id)
        assert await call(client, here, secret) == (401, "invalid_token")
    assert (await until_refused(client, there, secret))[1] == "invalid_token"


async def test_the_secret_of_before_a_rotation_ends_in_both_houses_with_its_grace_and_not_before(
    houses: tuple[House, House], client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, there = houses
    await providers.create(here.context, TESTER, None, {"api_key": used("sk-pool-0123456789"), "api_base": provider.url})
    made, old = await master_keys.create(here.context, TESTER, {"name": "one"})
    rotated, new = await master_keys.rotate(here.context, TESTER, made.id, {"grace_seconds": 1})
    end = rotated.previous_expires_at
    assert end

    async def last_good(house: House) -> tuple[int, str | None]:
        while True:
            before = now_ms()
            status, code = await call(client, house, old.reveal())
            if code:
                assert now_ms() >= end
                return status, code
            assert before < end

    async with asyncio.timeout(1 + SOON):
        assert await asyncio.gather(last_good(here), last_good(there)) == [(401, "token_expired")] * 2
    for house in houses:
        assert await call(client, house, new.reveal()) == (200, None)
        house.context.tokens.on_change(EVERYTHING)
        assert await call(client, house, old.reveal()) == (401, "token_expired"), "read anew, too"


def keys_of(exchanges: list[Exchange]) -> set[str]:
    """With which keys the provider was called."""
    return {(exchange.header(b"authorization") or b"").decode().removeprefix("Bearer ") for exchange in exchanges}


async def test_a_provider_s_key_changes_in_both_under_load_and_no_call_fails(
    houses: tuple[House, House], client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    here, there = houses
    project = await here.project(provider.url)
    secret = await here.token(project)
    [own] = await providers.of_project(here.context, project)
    outcomes: set[tuple[int, str | None]] = set()
    done = asyncio.Event()

    async def load(house: House) -> None:
        while not done.is_set():
            outcomes.add(await call(client, house, secret))

    async with asyncio.TaskGroup() as group:
        for house in (here, there) * 4:
            group.create_task(load(house))
        for key in ("sk-second-0123456789abcdef", "sk-third-0123456789abcdef"):
            await providers.update(here.context, TESTER, project, own.id, {"api_key": used(key)})
            await until(lambda key=key: keys_of(provider.exchanges[-20:]) == {key}, SOON)
        done.set()
    assert outcomes == {(200, None)}
