"""What acts on tokens do to calls."""

import aiohttp
import pytest
from stage.calls import call
from stage.house import TESTER, House
from stage.provider import ScriptedProvider

from llm_proxy.acts import tokens
from llm_proxy.acts.tokens import max_requests, moment
from llm_proxy.clock import DAY_MS, now_ms, to_rfc3339
from llm_proxy.errors import InvalidField


async def test_a_revoked_token_is_refused_at_once_and_may_be_good_again(
    each_house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    context, project = each_house.context, await each_house.project(provider.url)
    token, secret = await tokens.create(context, TESTER, {"project_id": project})
    assert await call(client, each_house, secret.reveal()) == (200, None)
    await tokens.revoke(context, TESTER, token.id)
    assert await call(client, each_house, secret.reveal()) == (401, "token_inactive")
    await tokens.update(context, TESTER, token.id, {"is_active": True})
    assert await call(client, each_house, secret.reveal()) == (200, None)


async def test_what_a_token_may_do_changes_with_the_next_call(
    each_house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    context, project = each_house.context, await each_house.project(provider.url)
    token, secret = await tokens.create(context, TESTER, {"project_id": project})
    for change, outcome in (
        ({"allowed_models": ["o1"]}, (403, "model_not_allowed")),
        ({"allowed_models": ["gpt-*"]}, (200, None)),
        ({"allowed_models": []}, (200, None)),
        ({"max_requests": 3}, (200, None)),
        ({}, (429, "request_limit_exhausted")),
        ({"max_requests": 4}, (200, None)),
        ({"max_requests": 4}, (429, "request_limit_exhausted")),
        ({"max_requests": None}, (200, None)),
    ):
        await tokens.update(context, TESTER, token.id, change)
        await context.quota.settle()
        assert await call(client, each_house, secret.reveal()) == outcome, change


async def test_an_expired_token_is_good_again_with_a_later_end(
    house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    context, project = house.context, await house.project(provider.url)
    token, secret = await tokens.create(context, TESTER, {"project_id": project})
    await context.database.execute("UPDATE tokens SET expires_at = 1")
    assert await call(client, house, secret.reveal()) == (401, "token_expired")
    await tokens.update(context, TESTER, token.id, {"expires_at": to_rfc3339(now_ms() + DAY_MS)})
    assert await call(client, house, secret.reveal()) == (200, None)


async def test_a_change_does_not_write_back_a_count_that_it_had_read(
    each_house: House, client: aiohttp.ClientSession, provider: ScriptedProvider
) -> None:
    context, project = each_house.context, await each_house.project(provider.url)
    token, secret = await tokens.create(context, TESTER, {"project_id": project, "max_requests": 100})
    for number in range(3):
        await call(client, each_house, secret.reveal())
        await tokens.update(context, TESTER, token.id, {"name": f"name {number}"})
    await context.quota.settle()
    assert tokens.shown(context, await tokens.get(context, token.id))["request_count"] == 3


@pytest.mark.parametrize("value", [1, 2**53 - 1])
def test_a_quota_is_at_least_one_request(value: int) -> None:
    assert max_requests("max_requests", value) == value


@pytest.mark.parametrize("value", [0, 0.0, -1, 1.0, 2**53, True, False, "1", None])
def test_what_is_no_quota_is_refused(value: object) -> None:
    with pytest.raises(InvalidField) as caught:
        max_requests("max_requests", value)
    assert caught.value.param == "max_requests"


@pytest.mark.parametrize("ahead", [1_000, DAY_MS, 365 * DAY_MS, 366 * DAY_MS - 1_000])
def test_a_token_may_end_at_any_time_within_a_year(ahead: int) -> None:
    at = now_ms() + ahead
    assert moment("expires_at", to_rfc3339(at)) == at


@pytest.mark.parametrize("ahead", [-DAY_MS, -1, 366 * DAY_MS + 60_000])
def test_a_token_may_not_end_in_the_past_nor_after_a_year(ahead: int) -> None:
    with pytest.raises(InvalidField):
        moment("expires_at", to_rfc3339(now_ms() + ahead))
