"""What acts on projects do to calls."""

import aiohttp
from stage.calls import call
from stage.house import PROVIDER_KEY, TESTER, House
from stage.provider import ScriptedProvider

from llm_proxy.acts import projects, tokens

NEXT_KEY = "sk-replaced-0123456789abcdef"


async def test_a_deactivated_project_is_not_served_and_its_tokens_stay_revoked(
    each_house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    project, other = await each_house.project(provider.url), await each_house.token_for(provider.url)
    token = await each_house.token(project)
    assert await call(client, each_house, token) == (200, None)
    await projects.deactivate(each_house.context, TESTER, project)
    assert await call(client, each_house, token) == (403, "project_inactive")
    assert await call(client, each_house, other) == (200, None)
    await projects.update(each_house.context, TESTER, project, {"is_active": True})
    assert await call(client, each_house, token) == (401, "token_inactive")
    assert await call(client, each_house, await each_house.token(project)) == (200, None)


async def test_a_project_that_was_only_stopped_goes_on_with_its_tokens(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    project = await house.project(provider.url)
    token = await house.token(project)
    for is_active, outcome in ((False, (403, "project_inactive")), (True, (200, None))):
        await projects.update(house.context, TESTER, project, {"is_active": is_active})
        assert await call(client, house, token) == outcome


async def test_all_tokens_of_a_project_are_refused_once_all_were_revoked(
    each_house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    project = await each_house.project(provider.url)
    revoked = [await each_house.token(project) for _ in range(3)]
    for token in revoked:
        assert await call(client, each_house, token) == (200, None)
    counted = await projects.revoke_tokens(each_house.context, TESTER, project, {})
    assert counted == {"revoked_count": 3, "already_revoked_count": 0, "total_tokens": 3}
    for token in revoked:
        assert await call(client, each_house, token) == (401, "token_inactive")


async def test_the_next_call_goes_with_the_new_key_even_over_a_connection_that_was_kept(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    project = await house.project(provider.url)
    token = await house.token(project)
    for key in (PROVIDER_KEY, NEXT_KEY):
        if key is NEXT_KEY:
            await projects.update(house.context, TESTER, project, {"api_key": key})
        assert await call(client, house, token) == (200, None)
        assert provider.exchanges[-1].header(b"authorization") == f"Bearer {key}".encode()


async def test_a_changed_name_does_not_disturb_calls(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    project = await house.project(provider.url)
    token, secret = await tokens.create(house.context, TESTER, {"project_id": project})
    await call(client, house, secret.reveal())
    await projects.update(house.context, TESTER, project, {"name": "renamed"})
    assert await call(client, house, secret.reveal()) == (200, None)
    assert (await tokens.get(house.context, token.id)).project_name == "renamed"
    assert house.events[-1].project_name == "renamed"
