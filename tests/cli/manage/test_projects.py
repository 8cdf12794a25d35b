"""`llm-proxy manage project`, on a running server and on its database."""

import pytest
from stage.house import PROVIDER_KEY, TESTER, House

from llm_proxy.acts import tokens

from ..conftest import Manage


async def made(manage: Manage, name: str = "web") -> str:
    """A project with a key; its id."""
    done = await manage("project", "create", "--name", name, "--api-key", "-", "--json", input=f"{PROVIDER_KEY}\n")
    assert done.code == 0, done.err
    return str(done.json["id"])


async def key_of(house: House, project_id: str) -> str | None:
    await house.context.changes.catch_up()
    [provider] = await house.context.providers.of_project(project_id)
    return provider.api_key and provider.api_key.reveal()


async def test_create_shows_the_project_and_never_the_key(manage: Manage, house: House) -> None:
    done = await manage("project", "create", "--name", "my web", "--api-key", "-", input=f"{PROVIDER_KEY}\n")
    assert (done.code, done.err) == (0, "")
    assert done.fields["name"] == "my web" and done.fields["is_active"] == "yes"
    assert PROVIDER_KEY not in done.out
    assert await key_of(house, done.fields["id"]) == PROVIDER_KEY


async def test_create_for_another_provider(manage: Manage, house: House) -> None:
    arguments = ("--provider-type", "anthropic", "--api-base", "http://127.0.0.1:1", "--api-key", "sk-given", "--json")
    done = await manage("project", "create", "--name", "lab", *arguments)
    await house.context.changes.catch_up()
    [provider] = await house.context.providers.of_project(str(done.json["id"]))
    assert (provider.provider_type, provider.api_base) == ("anthropic", "http://127.0.0.1:1")


async def test_list_filters_and_shows_a_table_or_json(manage: Manage) -> None:
    first, second = await made(manage, "first"), await made(manage, "second")
    await manage("project", "deactivate", first, "--yes")
    assert [row[:3] for row in (await manage("project", "list")).rows] == [[second, "second", "yes"], [first, "first", "no"]]
    assert [row[0] for row in (await manage("project", "list", "--active")).rows] == [second]
    assert [row[0] for row in (await manage("project", "list", "--inactive")).rows] == [first]
    found = (await manage("project", "list", "--name", "second", "--json")).json
    assert [one["id"] for one in found] == [second]  # type: ignore[index]
    assert (await manage("project", "list", "--name", "third")).out == "Nothing found.\n"


async def test_get_shows_one_project(manage: Manage) -> None:
    id = await made(manage)
    assert (await manage("project", "get", id)).fields["name"] == "web"
    assert (await manage("project", "get", id, "--json")).json["object"] == "project"


async def test_update_changes_name_and_key(manage: Manage, house: House) -> None:
    id = await made(manage)
    assert (await manage("project", "update", id, "--name", "new")).fields["name"] == "new"
    done = await manage("project", "update", id, "--api-key", "-", input="sk-a-newer-key\n")
    assert done.code == 0 and "sk-a-newer-key" not in done.out
    assert await key_of(house, id) == "sk-a-newer-key"


async def test_limits_are_numbers_none_or_default(manage: Manage) -> None:
    flags = ("--rate-limit", "5", "--max-parallel", "none", "--rate-limit-per-minute", "60")
    made = await manage("project", "create", "--name", "default", *flags)
    limits = ("name", "rate_limit", "rate_limit_per_minute", "max_parallel")
    assert [made.fields[name] for name in limits] == ["default", "5", "60", "none"]
    changed = await manage("project", "update", made.fields["id"], "--rate-limit", "default", "--max-parallel", "2", "--json")
    assert [changed.json[name] for name in limits] == ["default", None, 60, 2]
    wrong = await manage("project", "update", made.fields["id"], "--rate-limit", "-1")
    assert (wrong.code, "give a whole number, none or default" in wrong.err) == (2, True)


async def test_update_revokes_tokens(manage: Manage, house: House) -> None:
    id = await made(manage)
    token, _ = await tokens.create(house.context, TESTER, {"project_id": id})
    await manage("project", "update", id, "--revoke-tokens")
    assert (await tokens.get(house.context, token.id)).is_active is False


async def test_deactivate_and_activate(manage: Manage) -> None:
    id = await made(manage)
    assert (await manage("project", "deactivate", id, "--yes")).fields["is_active"] == "no"
    assert (await manage("project", "activate", id)).fields["is_active"] == "yes"


async def test_delete_deactivates_and_revokes(manage: Manage, house: House) -> None:
    id = await made(manage)
    token, _ = await tokens.create(house.context, TESTER, {"project_id": id})
    assert (await manage("project", "delete", id, "--yes")).out == f"Deactivated {id}; its tokens are revoked.\n"
    assert (await manage("project", "get", id)).fields["is_active"] == "no"
    assert (await tokens.get(house.context, token.id)).is_active is False


@pytest.mark.parametrize("command", ["delete", "deactivate"])
async def test_what_stops_a_project_asks_first(manage: Manage, command: str) -> None:
    id = await made(manage)
    done = await manage("project", command, id, input="n\n")
    assert done.code == 1
    assert "Go on?" in done.out and "Aborted" in done.err
    assert (await manage("project", "get", id)).fields["is_active"] == "yes"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(("get", "nobody"), 1, "(not_found)", id="unknown"),
        pytest.param(("delete", "nobody", "--yes"), 1, "(not_found)", id="unknown for delete"),
        pytest.param(("create", "--name", "taken"), 1, "(already_exists)", id="name taken"),
        pytest.param(("create", "--name", "x", "--api-key", "sk-…x"), 1, "(masked_secret)", id="masked key"),
        pytest.param(("create", "--name", "x", "--api-key", "k", "--provider-type", "x"), 1, "openai, anthropic", id="profile"),
        pytest.param(("create",), 2, "Missing option '--name'", id="no name"),
        pytest.param(("update", "nobody"), 2, "Say what to change", id="nothing to change"),
        pytest.param(("list", "--limit", "0"), 2, "--limit", id="limit"),
    ],
)
async def test_what_cannot_be_done_is_said(manage: Manage, arguments: tuple[str, ...], code: int, says: str) -> None:
    await made(manage, "taken")
    done = await manage("project", *arguments)
    assert (done.code, done.out) == (code, "")
    assert says in done.err
