"""What acts on master keys do to calls."""

from typing import Any

import aiohttp
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage.calls import call, last_words, stream_without_end, streaming
from stage.house import TESTER, House
from stage.provider import ScriptedProvider
from stage.secrets import used

from llm_proxy import tokens as token_records
from llm_proxy.acts import master_keys, projects, providers, tokens
from llm_proxy.acts.master_keys import key
from llm_proxy.errors import AlreadyExists, ApiError, InvalidField, NotFound
from llm_proxy.projects import DEFAULT_ID

SECRET = "a-master-key-of-my-own"
FIELDS: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from(["a", "b c", "ä"]),
    "allowed_models": st.lists(st.sampled_from(["gpt-4*", "o3"]), unique=True),
    "rate_limit": st.none() | st.integers(0, 9),
    "rate_limit_per_minute": st.none() | st.integers(0, 9),
    "max_parallel": st.none() | st.integers(0, 9),
    "is_enabled": st.booleans(),
}


async def pool(house: House, provider: ScriptedProvider) -> None:
    """A shared pool of one."""
    given = {"api_key": used("sk-pool-0123456789"), "api_base": provider.url}
    await providers.create(house.context, TESTER, None, given)


async def test_a_master_key_is_used_like_any_token_and_its_rules_hold(
    each_house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    house, context = each_house, each_house.context
    await pool(house, provider)
    made, secret = await master_keys.create(context, TESTER, {"name": "one", "key": used(SECRET), "allowed_models": ["gpt-4*"]})
    assert secret.reveal() == SECRET
    assert await call(client, house, SECRET) == (200, None)
    for name in ("x-api-key", "api-key"):
        async with client.post(f"{house.url}/v1/chat/completions", json={"model": "gpt-4o"}, headers={name: SECRET}) as reply:
            assert reply.status == 200
    assert await call(client, house, SECRET, model="o3") == (403, "model_not_allowed")
    await master_keys.update(context, TESTER, made.id, {"allowed_models": [], "rate_limit_per_minute": 1})
    assert await call(client, house, SECRET, model="o3") == (200, None)
    assert await call(client, house, SECRET) == (429, "rate_limit_exceeded")
    await master_keys.update(context, TESTER, made.id, {"rate_limit_per_minute": None})
    assert await call(client, house, SECRET) == (200, None)


async def test_the_last_key_disabled_leaves_nothing_open(
    each_house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    await pool(each_house, provider)
    made, secret = await master_keys.create(each_house.context, TESTER, {"name": "one"})
    assert await call(client, each_house, secret.reveal()) == (200, None)
    await master_keys.update(each_house.context, TESTER, made.id, {"is_enabled": False})
    assert await call(client, each_house, secret.reveal()) == (401, "token_inactive")
    for headers in ({}, {"Authorization": "Bearer "}, {"Authorization": "Bearer null"}, {"x-api-key": ""}):
        async with client.post(f"{each_house.url}/v1/chat/completions", json={}, headers=headers) as reply:
            assert reply.status == 401
    await master_keys.delete(each_house.context, TESTER, made.id)
    assert await call(client, each_house, secret.reveal()) == (401, "invalid_token")
    assert len(provider.exchanges) == 1


async def test_a_removed_master_key_ends_its_streams_and_may_be_made_again(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    await pool(house, provider)
    provider.script = stream_without_end
    await master_keys.create(house.context, TESTER, {"name": "one", "id": "mine", "key": used(SECRET)})
    async with streaming(house, SECRET) as stream:
        await master_keys.delete(house.context, TESTER, "mine")
        assert await last_words(stream) == "token_inactive"
    with pytest.raises(NotFound):
        await master_keys.delete(house.context, TESTER, "mine")
    made, _ = await master_keys.create(house.context, TESTER, {"name": "two", "id": "mine", "key": SECRET})
    assert (made.id, made.token.request_count) == ("mine", 0)


async def test_a_rotation_without_grace_ends_the_old_secret_at_once(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    await pool(house, provider)
    made, first = await master_keys.create(house.context, TESTER, {"name": "one"})
    assert await call(client, house, first.reveal()) == (200, None)
    _, second = await master_keys.rotate(house.context, TESTER, made.id, {})
    assert await call(client, house, first.reveal()) == (401, "token_expired")
    _, third = await master_keys.rotate(house.context, TESTER, made.id, {"grace_seconds": 60})
    assert await call(client, house, first.reveal()) == (401, "invalid_token")
    for secret in (second, third):
        assert await call(client, house, secret.reveal()) == (200, None)
    # Both are remembered now, and a change must reach both.
    await master_keys.update(house.context, TESTER, made.id, {"is_enabled": False})
    for secret in (second, third):
        assert await call(client, house, secret.reveal()) == (401, "token_inactive")


async def test_a_key_of_its_own_replaces_the_old_one_at_once(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    await pool(house, provider)
    made, secret = await master_keys.create(house.context, TESTER, {"name": "one"})
    await master_keys.update(house.context, TESTER, made.id, {"key": used(SECRET)})
    assert await call(client, house, secret.reveal()) == (401, "token_expired")
    assert await call(client, house, SECRET) == (200, None)


async def test_id_and_key_are_taken_once_grace_included(each_house: House) -> None:
    context = each_house.context
    await master_keys.create(context, TESTER, {"name": "one", "id": "mine", "key": used(SECRET)})
    for same, param in (({"id": "mine"}, "id"), ({"key": SECRET}, "key")):
        with pytest.raises(AlreadyExists) as caught:
            await master_keys.create(context, TESTER, {"name": "two", **same})
        assert caught.value.param == param
    await master_keys.rotate(context, TESTER, "mine", {"grace_seconds": 60})
    with pytest.raises(AlreadyExists):
        await master_keys.create(context, TESTER, {"name": "two", "key": SECRET})


async def test_the_acts_on_tokens_know_no_master_keys(house: House) -> None:
    made, _ = await master_keys.create(house.context, TESTER, {"name": "one"})
    for act in (
        tokens.get(house.context, made.id),
        tokens.update(house.context, TESTER, made.id, {"expires_at": None}),
        tokens.revoke(house.context, TESTER, made.id),
    ):
        with pytest.raises(NotFound):
            await act


async def test_the_built_in_project_can_be_stopped_but_not_deleted_or_renamed(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    await pool(house, provider)
    _, secret = await master_keys.create(house.context, TESTER, {"name": "one"})
    for act in (
        projects.deactivate(house.context, TESTER, DEFAULT_ID),
        projects.update(house.context, TESTER, DEFAULT_ID, {"name": "mine"}),
    ):
        with pytest.raises(ApiError) as caught:
            await act
        assert caught.value.code == "built_in_project"
    assert await call(client, house, secret.reveal()) == (200, None)
    await projects.update(house.context, TESTER, DEFAULT_ID, {"is_active": False})
    assert await call(client, house, secret.reveal()) == (403, "project_inactive")


@pytest.mark.parametrize(
    "given",
    ["short", "x" * 513, "with a space in it", "ümläut-0123456789", None, 7, "tab\tinside-0123456789", "sk-lp-" + "a" * 60],
    ids=["short", "long", "space", "not ASCII", "null", "a number", "tab", "a token of ours, mistyped"],
)
def test_what_no_client_could_present_is_no_key(given: object) -> None:
    with pytest.raises(InvalidField) as caught:
        key("key", given)
    assert caught.value.param == "key"


def test_the_preview_of_a_key_is_no_key_and_a_token_of_ours_is_one() -> None:
    with pytest.raises(ApiError) as caught:
        key("key", "my-…master-key-0123456789")
    assert caught.value.code == "masked_secret"
    assert key("key", token_records.new_token()[1].reveal())


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.fixed_dictionaries({}, optional=FIELDS), max_size=4))
async def test_an_update_touches_what_it_names_and_nothing_else(house: House, changes: list[dict[str, Any]]) -> None:
    context = house.context
    made, _ = await master_keys.create(context, TESTER, {"name": "one"})
    # What the process counts meanwhile must not be written back.
    await context.database.execute("UPDATE tokens SET request_count = 7 WHERE id = :id", {"id": made.id})
    expected = {**master_keys.shown(context, made), "request_count": 7}
    for change in changes:
        expected.update(change)
        found = master_keys.shown(context, await master_keys.update(context, TESTER, made.id, change))
        assert {**found, "updated_at": None} == {**expected, "updated_at": None}
