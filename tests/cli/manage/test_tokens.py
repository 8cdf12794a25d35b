"""`llm-proxy manage token`, on a running server and on its database."""

import re
from typing import Any

import aiohttp
import pytest
from stage.house import House

from llm_proxy import tokens

from ..conftest import Cli, Manage


@pytest.fixture
async def project_id(house: House, fake: str) -> str:
    """A project whose calls go to the fake provider."""
    return await house.project(fake, name="web")


async def made(manage: Manage, project_id: str, *more: str) -> dict[str, Any]:
    done = await manage("token", "create", "--project", project_id, "--json", *more)
    assert done.code == 0, done.err
    return dict(done.json)


async def test_create_shows_the_token_once_apart_from_its_facts(manage: Manage, house: House, project_id: str) -> None:
    done = await manage("token", "create", "--project", project_id, "--name", "ci")
    facts, _, secret = done.out.rstrip("\n").rpartition("\n")
    assert tokens.well_formed(secret) and secret not in facts
    assert done.err == "This is shown once, and kept nowhere.\n"
    assert re.search(rf"^project_id +{project_id}$", facts, re.M) and re.search("^name +ci$", facts, re.M)
    async with aiohttp.ClientSession() as client:
        headers = {"Authorization": f"Bearer {secret}"}
        async with client.get(f"{house.url}/v1/models", headers=headers) as reply:
            assert reply.status == 200


async def test_create_says_everything_that_a_token_may_be(manage: Manage, project_id: str) -> None:
    flags = ("--max-requests", "3", "--model", "gpt-4o*", "--model", "o1", "--metadata", '{"team": "a"}')
    found = await made(manage, project_id, "--minutes", "5", *flags)
    assert (found["max_requests"], found["allowed_models"], found["metadata"]) == (3, ["gpt-4o*", "o1"], {"team": "a"})
    assert found["token"].startswith(tokens.PREFIX) and found["expires_at"]
    assert (await made(manage, project_id, "--expires-at", "never"))["expires_at"] is None


async def test_list_filters_and_shows_how_much_is_used(manage: Manage, project_id: str) -> None:
    first = await made(manage, project_id, "--max-requests", "3", "--expires-at", "never", "--name", "first")
    second = await made(manage, project_id)
    await manage("token", "revoke", second["id"], "--yes")
    listed = await manage("token", "list", "--project", project_id)
    assert listed.rows == [
        [second["id"], "web", "-", second["hint"], "revoked", "0", second["expires_at"]],
        [first["id"], "web", "first", first["hint"], "active", "0 of 3", "never"],
    ]
    assert [row[0] for row in (await manage("token", "list", "--status", "active")).rows] == [first["id"]]
    assert (await manage("token", "list", "--project", "nobody")).out == "Nothing found.\n"
    assert [one["id"] for one in (await manage("token", "list", "--json")).json] == [second["id"], first["id"]]  # type: ignore[index]


async def test_get_shows_one_token_without_its_secret(manage: Manage, project_id: str) -> None:
    token = await made(manage, project_id, "--rate-limit", "none", "--max-parallel", "4")
    done = await manage("token", "get", token["id"])
    limits = [done.fields[name] for name in ("rate_limit", "rate_limit_per_minute", "max_parallel")]
    assert limits == ["none", "default", "4"]
    assert done.fields["hint"] == token["hint"] and token["token"] not in done.out
    words = {name: done.fields[name] for name in ("max_requests", "allowed_models", "request_count", "metadata", "is_active")}
    assert words == {"max_requests": "none", "allowed_models": "all", "request_count": "0", "metadata": "-", "is_active": "yes"}


@pytest.mark.parametrize(
    ("flags", "field", "value"),
    [
        (("--name", "new"), "name", "new"),
        (("--revoked",), "is_active", False),
        (("--max-requests", "7"), "max_requests", 7),
        (("--max-requests", "none"), "max_requests", None),
        (("--rate-limit", "0"), "rate_limit", 0),
        (("--rate-limit-per-minute", "none"), "rate_limit_per_minute", 0),
        (("--max-parallel", "default"), "max_parallel", None),
        (("--expires-at", "never"), "expires_at", None),
        (("--model", "o1"), "allowed_models", ["o1"]),
        (("--all-models",), "allowed_models", []),
        (("--metadata", '{"a": 1}'), "metadata", {"a": 1}),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else None,
)
async def test_update_changes_what_it_names(
    manage: Manage, project_id: str, flags: tuple[str, ...], field: str, value: object
) -> None:
    limits = ("--rate-limit", "7", "--rate-limit-per-minute", "8", "--max-parallel", "9")
    before = await made(manage, project_id, "--max-requests", "3", "--model", "gpt-4o", "--name", "old", *limits)
    assert (before["rate_limit"], before["rate_limit_per_minute"], before["max_parallel"]) == (7, 8, 9)
    after = (await manage("token", "update", before["id"], *flags, "--json")).json
    assert after[field] == value
    left = set(after) - {field, "status", "updated_at", "deactivated_at"}
    assert {name: after[name] for name in left} == {name: before[name] for name in left}


async def test_a_revoked_token_may_be_used_again_when_it_is_made_active(manage: Manage, project_id: str) -> None:
    token = await made(manage, project_id)
    assert (await manage("token", "revoke", token["id"], "--yes")).out == f"Revoked {token['id']}.\n"
    assert (await manage("token", "get", token["id"])).fields["status"] == "revoked"
    assert (await manage("token", "update", token["id"], "--active")).fields["status"] == "active"


async def test_revoke_asks_first(manage: Manage, project_id: str) -> None:
    token = await made(manage, project_id)
    done = await manage("token", "revoke", token["id"], input="n\n")
    assert done.code == 1 and "Go on?" in done.out
    assert (await manage("token", "get", token["id"])).fields["status"] == "active"


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(("get", "nobody"), 1, "(not_found)", id="unknown"),
        pytest.param(("create", "--project", "nobody"), 1, "There is no project with", id="project"),
        pytest.param(("create",), 2, "Missing option '--project'", id="no project"),
        pytest.param(("create", "--project", "x", "--max-requests", "0"), 2, "--max-requests", id="quota 0"),
        pytest.param(("create", "--project", "x", "--metadata", "{"), 2, "this is not JSON", id="metadata"),
        pytest.param(("create", "--project", "x", "--expires-at", "soon"), 1, "expires_at", id="expiry"),
        pytest.param(("update", "x"), 2, "Say what to change", id="nothing to change"),
        pytest.param(("update", "x", "--max-requests", "many"), 2, "1 or more, or none", id="no number"),
        pytest.param(("update", "x", "--max-requests", "0"), 2, "1 or more, or none", id="none is not 0"),
        pytest.param(("update", "x", "--model", "a", "--all-models"), 2, "Give one of them", id="some and all"),
        pytest.param(("list", "--status", "happy"), 2, "'active', 'expired', 'revoked', 'exhausted'", id="status"),
    ],
)
async def test_what_cannot_be_done_is_said(manage: Manage, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = await manage("token", *arguments)
    assert (done.code, done.out) == (code, "")
    assert says in done.err


@pytest.mark.parametrize("place", ["argument", "standard input"])
def test_inspect_reads_a_token_without_any_server(cli: Cli, place: str) -> None:
    id, secret = tokens.new_token()
    shown = secret.reveal()
    done = cli("manage", "token", "inspect", shown if place == "argument" else "-", "--json", input=f"{shown}\n")
    assert (done.code, done.err) == (0, "")
    assert done.json["id"] == id and str(done.json["created_at"]).endswith("Z") and done.json["hint"] == tokens.hint_of(shown)


def test_inspect_says_what_is_no_token_of_ours_without_repeating_it(cli: Cli) -> None:
    done = cli("manage", "token", "inspect", "sk-lp-mistyped-but-secret")
    assert done.code == 1
    assert "no token of ours" in done.err and "secret" not in done.err
