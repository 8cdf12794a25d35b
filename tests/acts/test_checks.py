"""Checks call providers for real, within bounds."""

import asyncio
import json
from typing import Any

import pytest
from stage.house import TESTER, House
from stage.profiles import shipped
from stage.provider import Exchange, ScriptedProvider
from stage.secrets import used

from llm_proxy.acts import checks, providers
from llm_proxy.acts.checks import Ask, list_models, one_token
from llm_proxy.errors import InvalidField, NotFound

KEY = "sk-checked-0123456789"
AZURE, AZURE_V1 = "https://x.openai.azure.com", "https://x.openai.azure.com/openai/v1"


def answering(status: int) -> Any:
    """A script that answers with a status."""

    async def answer(exchange: Exchange) -> None:
        await exchange.send(f"HTTP/1.1 {status} X\r\nContent-Length: 2\r\n\r\n{{}}".encode())

    return answer


async def silence(exchange: Exchange) -> None:
    """A script that never answers."""
    await exchange.until_closed()


async def pooled(house: House, base: str, **more: Any) -> str:
    """A provider of the shared pool; its id."""
    given = {"provider_type": "custom", "api_base": base, "api_key": used(KEY), **more}
    return (await providers.create(house.context, TESTER, None, given)).id


@pytest.mark.parametrize(
    ("kind", "base", "listed", "path", "limit"),
    [
        ("openai", "https://x", "/v1/models", "/v1/chat/completions", "max_completion_tokens"),
        ("anthropic", "https://x", "/v1/models", "/v1/chat/completions", "max_tokens"),
        ("azure", AZURE, "/openai/models", "/openai/deployments/a%2Fb/chat/completions", "max_completion_tokens"),
        ("azure", AZURE_V1, "/v1/models", "/v1/chat/completions", "max_completion_tokens"),
        ("custom", "https://x/v1", "/v1/models", "/v1/chat/completions", "max_tokens"),
    ],
)
def test_each_profile_is_asked_in_its_own_dialect(kind: str, base: str, listed: str, path: str, limit: str) -> None:
    profile = shipped().get(kind)
    assert list_models(profile, base) == Ask("GET", listed)
    ask = one_token(profile, base, "a/b")
    assert (ask.method, ask.path) == ("POST", path)
    assert ask.body is not None
    assert (ask.body["model"], ask.body[limit]) == ("a/b", 1)


@pytest.mark.parametrize(
    ("status", "of_list", "of_chat"),
    [
        (200, None, None),
        (404, None, "the provider answers 404"),
        (401, "the provider refuses the key (401)", "the provider refuses the key (401)"),
        (429, "the provider answers 429", "the provider answers 429"),
        (500, "the provider answers 500", "the provider answers 500"),
    ],
)
async def test_a_status_tells_whether_the_provider_is_well(
    house: House, provider: ScriptedProvider, status: int, of_list: str | None, of_chat: str | None
) -> None:
    provider.script = answering(status)
    id = await pooled(house, f"{provider.url}/v1", model_mapping={"gpt-4*": "acme-*"})
    found = await checks.check_one(house.context, TESTER, id)
    assert ([one["error"] for one in found["models"]], found["status"]) == ([of_list], "unhealthy" if of_list else "healthy")
    found = await checks.check_pool(house.context, TESTER, {"models": ["gpt-4o", "o3"]})
    by_model = {one["model"]: one["error"] for one in found["providers"][0]["models"]}
    assert by_model == {"gpt-4o": of_chat, "o3": "its model_mapping does not serve this model"}
    listed, chat = provider.exchanges
    assert listed.request_line == b"GET /v1/models HTTP/1.1"
    assert chat.request_line == b"POST /v1/chat/completions HTTP/1.1"
    assert json.loads(chat.body)["model"] == "acme-o"
    assert chat.header(b"authorization") == f"Bearer {KEY}".encode()


async def test_calls_keep_to_their_time_and_their_number_at_once(house: House, provider: ScriptedProvider) -> None:
    provider.script = silence
    for _ in range(3):
        await pooled(house, provider.url)
    asking = asyncio.create_task(checks.check_pool(house.context, TESTER, {"timeout_secs": 1, "max_concurrent": 3}))
    found = await asking
    assert (found["total_providers"], found["healthy_providers"], found["unhealthy_providers"]) == (3, 0, 3)
    assert {one["models"][0]["error"] for one in found["providers"]} == {"The provider did not begin its answer in time."}
    assert {one["avg_response_time_ms"] for one in found["providers"]} == {None}


async def test_no_more_than_are_allowed_are_called_at_once(house: House, provider: ScriptedProvider) -> None:
    running, most = 0, 0

    async def watch(exchange: Exchange) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0)
        running -= 1
        await answering(200)(exchange)

    provider.script = watch
    for _ in range(6):
        await pooled(house, provider.url)
    assert (await checks.check_pool(house.context, TESTER, {"max_concurrent": 1}))["healthy_providers"] == 6
    assert most == 1


async def test_a_provider_that_cannot_be_called_is_not(house: House, provider: ScriptedProvider) -> None:
    good, lost, off = [await pooled(house, provider.url, id=name) for name in ("good", "lost", "off")]
    provider.script = answering(200)
    await house.context.database.execute("UPDATE providers SET model_mapping = '[' WHERE id = 'lost'")
    await providers.update(house.context, TESTER, None, off, {"is_enabled": False})
    found = await checks.check_pool(house.context, TESTER, {})
    assert {one["provider_id"]: one["status"] for one in found["providers"]} == {good: "healthy", lost: "unhealthy"}
    named = await checks.check_pool(house.context, TESTER, {"provider_ids": [off]})
    assert named["providers"][0]["status"] == "healthy", "who names one means it"
    assert len(provider.exchanges) == 2


async def test_what_is_not_in_the_pool_is_not_checked(house: House) -> None:
    private = await house.project("http://127.0.0.1:9")
    [own] = await providers.of_project(house.context, private)
    with pytest.raises(NotFound):
        await checks.check_one(house.context, TESTER, own.id)
    with pytest.raises(InvalidField) as caught:
        await checks.check_pool(house.context, TESTER, {"provider_ids": [own.id]})
    assert caught.value.param == "provider_ids[0]"


async def test_too_many_calls_are_refused(house: House) -> None:
    for _ in range(5):
        await pooled(house, "http://127.0.0.1:9")
    with pytest.raises(InvalidField):
        await checks.check_pool(house.context, TESTER, {"models": [f"m{number}" for number in range(50)]})
