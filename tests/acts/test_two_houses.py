"""Two processes on one database: what one changes, the other obeys."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import aiohttp
import pytest
from stage.calls import call, last_words, stream_without_end, streaming
from stage.house import PROVIDER_KEY, TESTER, House, open_house
from stage.provider import ScriptedProvider

from llm_proxy.acts import projects, providers, tokens
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
