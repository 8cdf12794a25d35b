"""`llm-proxy manage provider`, on a running server and on its database."""

import json

from stage.house import PROVIDER_KEY, House

from ..conftest import Manage


async def made(manage: Manage, id: str, *more: str) -> None:
    """A provider with a key."""
    done = await manage("provider", "create", "--id", id, "--api-key", "-", *more, input=f"{PROVIDER_KEY}\n")
    assert (done.code, done.err) == (0, "")
    assert PROVIDER_KEY not in done.out


async def test_a_provider_of_the_shared_pool_lives(manage: Manage) -> None:
    mapping = {"gpt-4*": {"model": "acme-4*"}}
    await made(manage, "one", "--weight", "3", "--model-mapping", json.dumps(mapping), "--name", "the first")
    await made(manage, "two")
    assert (await manage("provider", "get", "one", "--json")).json["model_mapping"] == mapping
    assert [row[:4] for row in (await manage("provider", "list")).rows] == [
        ["one", "the first", "openai", "3"],
        ["two", "openai", "openai", "1"],
    ]
    done = await manage("provider", "list", "--limit", "1", "--json")
    assert [one["id"] for one in done.json] == ["one"]  # type: ignore[index]
    assert "There are more than these 1" in done.err
    assert (await manage("provider", "update", "one", "--weight", "0")).fields["weight"] == "0"
    assert (await manage("provider", "disable", "one")).fields["is_enabled"] == "no"
    assert (await manage("provider", "enable", "one")).fields["is_enabled"] == "yes"
    assert (await manage("provider", "delete", "one", "--yes")).out == "Removed one.\n"
    assert "(not_found)" in (await manage("provider", "get", "one")).err


async def test_with_project_it_is_that_project_s_own(manage: Manage, house: House) -> None:
    id = await house.project("http://127.0.0.1:9")
    await made(manage, "own", "--project", id)
    assert len((await manage("provider", "list", "--project", id, "--json")).json) == 2
    assert (await manage("provider", "list")).out == "Nothing found.\n"
    done = await manage("provider", "disable", "own", "--project", id, "--json")
    assert (done.json["project_id"], done.json["is_enabled"]) == (id, False)
    assert (await manage("provider", "delete", "own", "--project", id, "--yes")).code == 0


async def test_what_cannot_be_is_refused_by_name(manage: Manage) -> None:
    done = await manage("provider", "create", "--api-key", "sk-x", "--model-mapping", '{"a": "b*"}')
    assert (done.code, "model_mapping.a" in done.err) == (1, True)
    assert (await manage("provider", "create", "--api-key", "sk-x", "--model-mapping", "{")).code == 2
    assert (await manage("provider", "update", "one")).code == 2
