"""Tokens in the management API."""

import datetime
import re
from typing import Any

import aiohttp
import pytest
from stage.house import House
from stage.management import Management

from llm_proxy.tokens import PATTERN

NOBODY = "0199c5f2-7d3a-7c1e-8f00-0123456789ab"
MODELS = ["gpt-4o", "gpt-4*"]


def shifted(**more: float) -> str:
    """A time from now, as a client writes it."""
    return (datetime.datetime.now(datetime.UTC) + datetime.timedelta(**more)).isoformat()


def minutes(token: dict[str, Any]) -> float:
    """How long a token was made for."""
    times = [datetime.datetime.fromisoformat(token[name]) for name in ("created_at", "expires_at")]
    return (times[1] - times[0]).total_seconds() / 60


BAD: list[tuple[dict[str, Any], str]] = [
    ({"project_id": None}, "project_id"),
    ({"project_id": 7}, "project_id"),
    ({"name": ""}, "name"),
    ({"name": "x" * 201}, "name"),
    ({"name": "a\x00b"}, "name"),
    ({"duration_minutes": 0}, "duration_minutes"),
    ({"duration_minutes": -1}, "duration_minutes"),
    ({"duration_minutes": 525_601}, "duration_minutes"),
    ({"duration_minutes": 10**30}, "duration_minutes"),
    ({"duration_minutes": 1.5}, "duration_minutes"),
    ({"duration_minutes": "60"}, "duration_minutes"),
    ({"duration_minutes": True}, "duration_minutes"),
    ({"duration_minutes": None}, "duration_minutes"),
    ({"duration_minutes": 5, "expires_at": None}, "duration_minutes"),
    ({"expires_at": shifted(minutes=-1)}, "expires_at"),
    ({"expires_at": shifted(days=367)}, "expires_at"),
    ({"expires_at": "tomorrow"}, "expires_at"),
    ({"expires_at": "2999-01-01T00:00:00"}, "expires_at"),
    ({"expires_at": "9999-12-31T23:59:59Z"}, "expires_at"),
    ({"expires_at": 1_900_000_000}, "expires_at"),
    ({"max_requests": 0}, "max_requests"),
    ({"max_requests": -1}, "max_requests"),
    ({"max_requests": 2**53}, "max_requests"),
    ({"max_requests": 1.0}, "max_requests"),
    ({"max_requests": False}, "max_requests"),
    ({"allowed_models": "gpt-4o"}, "allowed_models"),
    ({"allowed_models": None}, "allowed_models"),
    ({"allowed_models": [""]}, "allowed_models[0]"),
    ({"allowed_models": ["gpt-4o", 7]}, "allowed_models[1]"),
    ({"allowed_models": ["m"] * 201}, "allowed_models"),
    ({"metadata": []}, "metadata"),
    ({"metadata": None}, "metadata"),
    ({"metadata": {"a": {"b": 1}}}, "metadata"),
    ({"metadata": {"a": [1]}}, "metadata"),
    ({"metadata": {"a": 10**400}}, "metadata"),
    ({"metadata": {"a": "\x00"}}, "metadata"),
    ({"metadata": {"\x07": 1}}, "metadata"),
    ({"metadata": {"a": "x" * 8193}}, "metadata"),
    ({"metadata": {str(number): number for number in range(51)}}, "metadata"),
    ({"rate_limit": -1}, "rate_limit"),
    ({"rate_limit": 0.5}, "rate_limit"),
    ({"rate_limit_per_minute": "60"}, "rate_limit_per_minute"),
    ({"max_parallel": True}, "max_parallel"),
    ({"max_parallel": 2**53}, "max_parallel"),
    ({"is_active": True}, "is_active"),
    ({"token": "sk-lp-chosen"}, "token"),
    ({"secret_hash": "x"}, "secret_hash"),
]


async def test_a_new_token_is_answered_with_its_secret_this_once(each_api: Management) -> None:
    project = await each_api.project("demo")
    given = {"name": "workshop", "max_requests": 3, "allowed_models": MODELS, "metadata": {"room": 4, "paid": True, "x": None}}
    given |= {"rate_limit": 5, "rate_limit_per_minute": 0, "max_parallel": None}
    reply = await each_api.ask("POST", "/manage/tokens", {"project_id": project, **given})
    assert reply.status == 201
    assert reply.headers["Cache-Control"] == "no-store"
    made = dict(reply.data)
    secret = made.pop("token")
    assert re.fullmatch(PATTERN, secret)
    assert made == {
        **given,
        "object": "token",
        "id": made["id"],
        "project_id": project,
        "project_name": "demo",
        "hint": f"sk-lp-…{secret[-4:]}",
        "status": "active",
        "is_active": True,
        "request_count": 0,
        "cache_hit_count": 0,
        "expires_at": made["expires_at"],
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
        "deactivated_at": None,
        "last_used_at": None,
    }
    for path in (f"/manage/tokens/{made['id']}", "/manage/tokens", "/manage/audit"):
        answer = await each_api.ask("GET", path)
        assert secret not in answer.text
    assert await each_api.done("GET", f"/manage/tokens/{made['id']}") == made
    assert (await each_api.done("GET", "/manage/tokens"))["data"] == [made]


async def test_a_token_withers_after_a_day_unless_told_otherwise(api: Management) -> None:
    project = await api.project()
    assert minutes(await api.token(project)) == pytest.approx(24 * 60, abs=0.1)
    assert minutes(await api.token(project, duration_minutes=1)) == pytest.approx(1, abs=0.1)
    assert minutes(await api.token(project, duration_minutes=525_600)) == pytest.approx(525_600, abs=0.1)
    assert minutes(await api.token(project, expires_at=shifted(days=365))) == pytest.approx(525_600, abs=0.1)
    elsewhere = (datetime.datetime.now(datetime.UTC) + datetime.timedelta(hours=1)).astimezone(
        datetime.timezone(datetime.timedelta(hours=9))
    )
    assert minutes(await api.token(project, expires_at=elsewhere.isoformat())) == pytest.approx(60, abs=0.1)
    assert (await api.token(project, expires_at=None))["expires_at"] is None


async def test_no_quota_is_the_default_and_may_be_said(api: Management) -> None:
    project = await api.project()
    assert (await api.token(project))["max_requests"] is None
    assert (await api.token(project, max_requests=None))["max_requests"] is None
    assert (await api.token(project, max_requests=1))["max_requests"] == 1


async def test_what_cannot_be_a_token_is_refused_and_not_made(api: Management) -> None:
    project = await api.project()
    for fields, param in BAD:
        answer = await api.refused("POST", "/manage/tokens", {"project_id": project, **fields})
        assert answer == (400, "invalid_field", param), fields
    assert await api.refused("POST", "/manage/tokens", {"name": "x"}) == (400, "invalid_field", "project_id")
    assert (await api.done("GET", "/manage/tokens"))["data"] == []


async def test_a_quota_of_nothing_is_refused_with_a_hint(api: Management) -> None:
    reply = await api.ask("POST", "/manage/tokens", {"project_id": await api.project(), "max_requests": 0})
    assert "null" in reply.error["message"]


async def test_a_token_needs_a_project_that_is_there_and_active(api: Management) -> None:
    project = await api.project()
    await api.done("DELETE", f"/manage/projects/{project}")
    assert await api.refused("POST", "/manage/tokens", {"project_id": project}) == (400, "invalid_field", "project_id")
    assert await api.refused("POST", "/manage/tokens", {"project_id": NOBODY}) == (404, "not_found", None)


async def test_numbers_and_texts_of_metadata_come_back_as_they_went(each_api: Management) -> None:
    metadata = {
        "great": 2**53 - 1,
        "small": -(2**53) + 1,
        "half": 0.5,
        "tiny": 1e-300,
        "text": "ü🦀 \\ \" '",
        "empty": "",
        "": "x",
    }
    token = await each_api.token(await each_api.project(), metadata=metadata)
    assert (await each_api.done("GET", f"/manage/tokens/{token['id']}"))["metadata"] == metadata


async def test_patch_changes_what_it_names_and_nothing_else(each_api: Management) -> None:
    project = await each_api.project()
    made = await each_api.token(project, name="before", max_requests=5, allowed_models=MODELS, metadata={"a": 1})
    made.pop("token")
    path = f"/manage/tokens/{made['id']}"
    for change in (
        {"name": "after"},
        {"max_requests": None},
        {"max_requests": 9},
        {"allowed_models": []},
        {"allowed_models": ["gpt-4o"]},
        {"metadata": {}},
        {"metadata": {"a": True}},
        {"metadata": {"a": 1}},
        {"expires_at": None},
    ):
        after = await each_api.done("PATCH", path, change)
        assert after == {**made, **change, "updated_at": after["updated_at"]}
        made = after
    off = await each_api.done("PATCH", path, {"is_active": False})
    assert off == {
        **made,
        "is_active": False,
        "status": "revoked",
        "updated_at": off["updated_at"],
        "deactivated_at": off["updated_at"],
    }
    on = await each_api.done("PATCH", path, {"is_active": True})
    assert on == {**made, "updated_at": on["updated_at"]}


async def test_what_was_read_may_be_sent_back_even_when_it_could_not_be_written_anew(api: Management, house: House) -> None:
    token = await api.token(await api.project())
    await house.context.database.execute("UPDATE tokens SET expires_at = 1")
    path = f"/manage/tokens/{token['id']}"
    before = await api.done("GET", path)
    assert before["status"] == "expired"
    assert await api.done("PATCH", path, before) == before
    after = await api.done("PATCH", path, {**before, "name": "renamed"})
    assert (after["name"], after["expires_at"]) == ("renamed", before["expires_at"])


async def test_a_change_that_cannot_be_is_refused_as_a_whole(api: Management) -> None:
    token = await api.token(await api.project())
    path = f"/manage/tokens/{token['id']}"
    before = await api.done("GET", path)
    read_only = ("object", "id", "project_id", "hint", "status", "request_count", "cache_hit_count", "created_at", "last_used_at")
    # An empty name and an active token are what is stored.
    bad = [(fields, param) for fields, param in BAD if fields != {"name": ""} and fields != {"is_active": True}]
    bad = [(fields, param) for fields, param in bad if param not in ("project_id", "duration_minutes")]
    for fields, param in [*bad, *(({name: "other"}, name) for name in read_only), ({"duration_minutes": 5}, "duration_minutes")]:
        answer = await api.refused("PATCH", path, {"metadata": {"changed": True}, **fields})
        assert answer == (400, "invalid_field", param), fields
    assert await api.done("GET", path) == before


async def test_delete_revokes_and_keeps_what_was_revoked_first(each_api: Management) -> None:
    token = await each_api.token(await each_api.project())
    path = f"/manage/tokens/{token['id']}"
    assert (await each_api.ask("DELETE", path)).status == 204
    first = await each_api.done("GET", path)
    assert (first["status"], first["is_active"]) == ("revoked", False)
    assert (await each_api.ask("DELETE", path)).status == 204
    assert await each_api.done("GET", path) == first


async def test_a_token_that_is_not_there_is_not_found(api: Management) -> None:
    secret = (await api.token(await api.project()))["token"]
    for id in (NOBODY, "nobody", "x" * 5000, secret):
        assert await api.refused("GET", f"/manage/tokens/{id}") == (404, "not_found", None)
        assert await api.refused("PATCH", f"/manage/tokens/{id}", {}) == (404, "not_found", None)
        assert await api.refused("DELETE", f"/manage/tokens/{id}") == (404, "not_found", None)


async def test_the_list_is_filtered_by_project_and_status(each_api: Management, each_house: House) -> None:
    project, other = await each_api.project(), await each_api.project("other")
    made = {name: (await each_api.token(project, max_requests=5))["id"] for name in ("active", "expired", "revoked", "exhausted")}
    foreign = (await each_api.token(other))["id"]
    await each_api.done("DELETE", f"/manage/tokens/{made['revoked']}")
    for name, change in (("expired", "expires_at = 1"), ("exhausted", "request_count = 5"), ("revoked", "expires_at = 1")):
        await each_house.context.database.execute(f"UPDATE tokens SET {change} WHERE id = :id", {"id": made[name]})

    async def found(**params: str) -> list[tuple[str, str]]:
        data = (await each_api.done("GET", "/manage/tokens", params=params))["data"]
        return [(one["id"], one["status"]) for one in data]

    for status, id in made.items():
        assert await found(status=status, project_id=project) == [(id, status)]
    assert await found(status="active") == [(foreign, "active"), (made["active"], "active")]
    assert await found(project_id=other) == [(foreign, "active")]
    assert await found(project_id=NOBODY) == []
    assert len(await found()) == 5


async def test_the_count_is_right_while_it_is_only_in_memory_and_so_is_the_status(
    each_api: Management, each_house: House, fake: str
) -> None:
    project = await each_house.project(fake)
    for more in ({}, {"max_requests": 1}):
        token = await each_api.token(project, **more)
        path = f"/manage/tokens/{token['id']}"
        async with aiohttp.ClientSession(headers={"x-api-key": token["token"]}) as client:
            # Refused by policy before it reaches a provider: not counted.
            async with client.get(f"{each_house.url}/v1/nothing") as reply:
                assert reply.status == 404
            before = await each_api.done("GET", path)
            assert (before["request_count"], before["status"]) == (0, "active")
            async with client.post(f"{each_house.url}/v1/chat/completions", json={"model": "gpt-4o", "messages": []}) as reply:
                await reply.read()
        after = await each_api.done("GET", path)
        assert (after["request_count"], after["status"]) == (1, "exhausted" if more else "active")
