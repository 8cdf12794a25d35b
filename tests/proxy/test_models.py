"""`/v1/models` of the shared pool says what a token may call."""

import asyncio
from typing import Any

import orjson
import pytest
from stage.asking import ask, call, code_of
from stage.house import House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import ScriptedProvider, answer
from stage.raw import Answer
from stage.routes import at, pooled, project_with, token_with
from stage.scripts import holds, resets, sends

MAPPING = {"smart": "prov-1", "gpt-4o": "prov-2", "gpt-4*": "prov-*"}
LIST = orjson.dumps({"data": [{"id": "llama", "created": 7, "owned_by": "meta"}, {"id": "gpt-4-own"}, {"id": "gpt-4o"}]})


async def models(house: House, token: str, name: str = "", method: str = "GET") -> Answer:
    path = f"/v1/models/{name}" if name else "/v1/models"
    reply = await ask(house.url, call(token, path=path, method=method, body=b""), method)
    assert reply is not None
    return reply


async def ids(house: House, token: str) -> list[str]:
    reply = await models(house, token)
    assert (reply.status, reply.header(b"Content-Type")) == (200, b"application/json")
    return [model["id"] for model in orjson.loads(reply.body)["data"]]


@pytest.fixture
async def project(house: House, provider: ScriptedProvider) -> str:
    """A project on a pool of two: one has a mapping, the other serves what it lists."""
    provider.script = sends(answer(LIST))
    await pooled(house, at("http://127.0.0.1:9", model_mapping=MAPPING), at(provider.url))
    return await project_with(house)


async def test_the_pool_lists_mapped_names_and_what_the_others_list(
    house: House, provider: ScriptedProvider, project: str
) -> None:
    token = await house.token(project)
    found = await asyncio.gather(*(ids(house, token) for _ in range(20)))
    assert found == [["gpt-4-own", "gpt-4o", "llama", "smart"]] * 20
    [exchange] = provider.exchanges
    assert exchange.request_line == b"GET /v1/models HTTP/1.1", "twenty calls ask it once"
    assert await ids(house, await house.token(project, allowed_models=["gpt-4*"])) == ["gpt-4-own", "gpt-4o"]
    assert {event.provider for event in house.events} == {None}


async def test_head_is_answered_where_the_profile_admits_it(tmp_path: Any) -> None:
    profiles = shipped(allowed_methods=("GET", "HEAD"))
    async with open_house(settings_for(tmp_path), profiles=profiles) as house:
        await pooled(house, at("http://127.0.0.1:9", model_mapping=MAPPING))
        token = await house.token(await project_with(house))
        head, listed = await models(house, token, method="HEAD"), await models(house, token)
        assert (head.status, head.body) == (200, b"")
        assert head.header(b"Content-Length") == b"%d" % len(listed.body)


@pytest.mark.parametrize(
    ("name", "allowed", "expected"),
    [
        ("smart", [], 200),
        ("gpt-4-any", [], 200),
        ("llama", [], {"id": "llama", "object": "model", "created": 7, "owned_by": "meta"}),
        ("unknown", [], "model_not_found"),
        ("smart", ["gpt-4*"], "model_not_allowed"),
        ("gpt-4o", ["gpt-4*"], 200),
    ],
)
async def test_one_model_is_shown_or_not_found(
    house: House, project: str, name: str, allowed: list[str], expected: object
) -> None:
    reply = await models(house, await house.token(project, allowed_models=allowed), name)
    if isinstance(expected, str):
        assert code_of(reply) == expected
        return
    shown = orjson.loads(reply.body)
    assert (reply.status, shown["id"], shown["object"], b"prov-" in reply.body) == (200, name, "model", False)
    assert expected in (200, shown)


async def test_a_model_is_found_with_the_suffix_too(tmp_path: Any, provider: ScriptedProvider) -> None:
    provider.script = sends(answer(LIST))
    async with open_house(settings_for(tmp_path, PROVIDER_SUFFIX="acme")) as house:
        await pooled(house, at(provider.url))
        reply = await models(house, await house.token(await project_with(house)), "acme/llama")
        assert orjson.loads(reply.body)["id"] == "acme/llama"


@pytest.mark.parametrize(
    "script",
    [
        resets(),
        sends(answer(b"{}", status=b"500 Mistake")),
        sends(answer(b'{"data": [1]}')),
        sends(answer(b'{"data": {"id": 1}}')),
        sends(answer(b"[]")),
        sends(answer(b"not json")),
        holds(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n"),
    ],
    ids=["reset", "500", "no-objects", "no-list", "no-object", "no-json", "silent"],
)
async def test_a_provider_that_gives_no_list_takes_none_away(
    house: House, provider: ScriptedProvider, project: str, script: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_proxy.proxy.models.PATIENCE_SECONDS", 0.1)
    provider.script = script
    token = await house.token(project)
    assert await ids(house, token) == ["gpt-4o", "smart"]
    asked = len(provider.exchanges)
    assert await ids(house, token) == ["gpt-4o", "smart"]
    assert len(provider.exchanges) == asked, "it is left alone for a while"


async def test_a_project_with_its_own_keys_is_answered_by_its_provider(
    house: House, provider: ScriptedProvider, project: str
) -> None:
    token = await token_with(house, at(provider.url))
    reply = await models(house, token)
    assert (reply.body, len(provider.exchanges)) == (LIST, 1)
    assert (await models(house, token)).body == LIST
    assert len(provider.exchanges) == 2
