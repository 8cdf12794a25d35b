"""What acts on providers do to calls."""

import pathlib

import aiohttp
import pytest
from stage.calls import call
from stage.house import PROVIDER_KEY, TESTER, House, open_house, settings_for
from stage.provider import ScriptedProvider, scripted_provider

from llm_proxy.acts import projects, providers
from llm_proxy.errors import InvalidField

SECOND_KEY = "sk-second-0123456789abcdef"
NOT_PUBLIC = (
    "http://llm.example.com",
    "https://localhost",
    "https://127.0.0.1",
    "https://10.0.0.1",
    "https://169.254.169.254/latest",
    "https://[::1]",
    "https://[::ffff:10.0.0.1]",
    "https://user@llm.example.com",
    "https://llm.example.com?x=1",
    "https://llm.example.com#x",
    "https://llm .example.com",
    "file:///etc/passwd",
    "llm.example.com",
)


def keys_used(provider: ScriptedProvider) -> set[str]:
    """The keys with which a provider was called since this was last asked."""
    found = {(exchange.header(b"authorization") or b"").decode().removeprefix("Bearer ") for exchange in provider.exchanges}
    provider.exchanges.clear()
    return found


async def test_a_key_is_rotated_without_a_call_in_vain(
    each_house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    context = each_house.context
    project = await each_house.project(provider.url)
    token = await each_house.token(project)
    [old] = await providers.of_project(context, project)

    async def used() -> set[str]:
        for _ in range(24):
            assert await call(client, each_house, token) == (200, None)
        return keys_used(provider)

    assert await used() == {PROVIDER_KEY}
    new = await providers.create(context, TESTER, project, {"api_key": SECOND_KEY, "api_base": provider.url})
    assert await used() == {PROVIDER_KEY, SECOND_KEY}
    await providers.update(context, TESTER, project, old.id, {"weight": 0})
    assert await used() == {SECOND_KEY}
    await providers.update(context, TESTER, project, new.id, {"is_enabled": False})
    assert await used() == {PROVIDER_KEY}
    await providers.update(context, TESTER, project, new.id, {"is_enabled": True})
    await providers.delete(context, TESTER, project, old.id)
    assert await used() == {SECOND_KEY}
    await providers.delete(context, TESTER, project, new.id)
    assert await call(client, each_house, token) == (404, "model_not_found")


async def test_the_next_call_goes_to_the_new_address(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    project = await house.project(provider.url)
    token = await house.token(project)
    await call(client, house, token)
    [only] = await providers.of_project(house.context, project)
    async with scripted_provider() as elsewhere:
        await providers.update(house.context, TESTER, project, only.id, {"api_base": f"{elsewhere.url}/v1/"})
        assert await call(client, house, token) == (200, None)
        assert elsewhere.exchanges[0].request_line == b"POST /v1/chat/completions HTTP/1.1"
    assert len(provider.exchanges) == 1


async def test_a_provider_that_cannot_be_read_is_out_of_use_until_it_has_a_key_again(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    project = await house.project(provider.url)
    token = await house.token(project)
    await house.context.database.execute("UPDATE providers SET api_key_ciphertext = 'enc:v2:00000000:AAAA'")
    assert await call(client, house, token) == (404, "model_not_found")
    assert provider.exchanges == []
    await projects.update(house.context, TESTER, project, {"api_key": SECOND_KEY})
    assert await call(client, house, token) == (200, None)
    assert keys_used(provider) == {SECOND_KEY}


async def test_an_address_that_is_not_public_is_refused_unless_the_operator_allows_such(tmp_path: pathlib.Path) -> None:
    async with open_house(settings_for(tmp_path, ALLOW_PRIVATE_UPSTREAMS="false")) as house:
        project = (await projects.create(house.context, TESTER, {"name": "demo"})).id
        for base in NOT_PUBLIC:
            with pytest.raises(InvalidField) as caught:
                await providers.create(house.context, TESTER, project, {"api_key": SECOND_KEY, "api_base": base})
            assert caught.value.param == "api_base", base


async def test_the_base_url_of_the_profile_is_not_stored_so_that_it_may_change(house: House) -> None:
    project = (await projects.create(house.context, TESTER, {"name": "demo"})).id
    for given in ({}, {"api_base": None}, {"api_base": "https://api.openai.com"}, {"api_base": "https://api.openai.com/"}):
        made = await providers.create(house.context, TESTER, project, {"api_key": SECOND_KEY, **given})
        assert made.api_base == ""


async def test_the_key_is_stored_encrypted_and_shown_masked(house: House) -> None:
    project = (await projects.create(house.context, TESTER, {"name": "demo"})).id
    made = await providers.create(house.context, TESTER, project, {"api_key": SECOND_KEY})
    [row] = await house.context.database.fetch_all("SELECT api_key_ciphertext FROM providers")
    assert row["api_key_ciphertext"].startswith("enc:v2:")
    assert SECOND_KEY not in row["api_key_ciphertext"]
    assert providers.shown(house.context, made)["api_key"] == "sk-…cdef"
    short = await providers.create(house.context, TESTER, project, {"api_key": "short-key"})
    assert providers.shown(house.context, short)["api_key"] == "****"


async def test_a_deleted_provider_leaves_no_breaker(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    project = await house.project(provider.url)
    await call(client, house, await house.token(project))
    [own] = await providers.of_project(house.context, project)
    assert own.id in dict(house.context.breakers)
    await providers.delete(house.context, TESTER, project, own.id)
    assert own.id not in dict(house.context.breakers)
