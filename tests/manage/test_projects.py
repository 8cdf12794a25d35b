"""Projects in the management API."""

import re
from typing import Any

from stage.management import Management

KEY = "sk-first-0123456789abcdef"
NEXT_KEY = "sk-other-fedcba9876543210"
NOBODY = "0199c5f2-7d3a-7c1e-8f00-0123456789ab"
TIME = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}\.\d{3}Z")

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "invalid_field", "name"),
    ({"name": None}, "invalid_field", "name"),
    ({"name": 7}, "invalid_field", "name"),
    ({"name": ["demo"]}, "invalid_field", "name"),
    ({"name": ""}, "invalid_field", "name"),
    ({"name": " \t "}, "invalid_field", "name"),
    ({"name": "x" * 201}, "invalid_field", "name"),
    ({"name": "a\x00b"}, "invalid_field", "name"),
    ({"name": "a\nb"}, "invalid_field", "name"),
    ({"name": "a\u202eb"}, "invalid_field", "name"),
    ({"name": "demo", "id": NOBODY}, "invalid_field", "id"),
    ({"name": "demo", "is_active": True}, "invalid_field", "is_active"),
    ({"name": "demo", "rate_limit": -1}, "invalid_field", "rate_limit"),
    ({"name": "demo", "max_parallel": "5"}, "invalid_field", "max_parallel"),
    ({"name": "demo", "api_key": None}, "invalid_field", "api_key"),
    ({"name": "demo", "api_key": ""}, "invalid_field", "api_key"),
    ({"name": "demo", "api_key": "sk-with space-0123456789"}, "invalid_field", "api_key"),
    ({"name": "demo", "api_key": "sk-\x00-0123456789abcdef"}, "invalid_field", "api_key"),
    ({"name": "demo", "api_key": "sk-ключ-0123456789abcdef"}, "invalid_field", "api_key"),
    ({"name": "demo", "api_key": "x" * 4097}, "invalid_field", "api_key"),
    ({"name": "demo", "api_key": "sk-…cdef"}, "masked_secret", "api_key"),
    ({"name": "demo", "api_key": "****"}, "masked_secret", "api_key"),
    ({"name": "demo", "api_key": "sk-...cdef"}, "masked_secret", "api_key"),
    ({"name": "demo", "provider_type": "openai"}, "invalid_field", "provider_type"),
    ({"name": "demo", "api_base": "https://api.openai.com"}, "invalid_field", "api_base"),
    ({"name": "demo", "api_key": KEY, "provider_type": "nobody"}, "invalid_field", "provider_type"),
    ({"name": "demo", "api_key": KEY, "provider_type": "custom"}, "invalid_field", "api_base"),
    ({"name": "demo", "api_key": KEY, "api_base": "ftp://example.com"}, "invalid_field", "api_base"),
    ({"name": "demo", "api_key": KEY, "api_base": "https://user:pw@example.com"}, "invalid_field", "api_base"),
]


async def providers_of(api: Management, project: str) -> list[dict[str, Any]]:
    """The project's providers."""
    return list((await api.done("GET", f"/manage/projects/{project}/providers"))["data"])


async def test_a_new_project_is_answered_as_a_whole_and_is_read_back_the_same(each_api: Management) -> None:
    reply = await each_api.ask("POST", "/manage/projects", {"name": "  Büro 山田　🦀 "})
    made = reply.data
    assert reply.status == 201
    assert {name: made[name] for name in ("object", "name", "is_active", "deactivated_at")} == {
        "object": "project",
        "name": "Büro 山田　🦀",
        "is_active": True,
        "deactivated_at": None,
    }
    assert TIME.fullmatch(made["created_at"])
    assert made["updated_at"] == made["created_at"]
    assert await each_api.done("GET", f"/manage/projects/{made['id']}") == made
    assert (await each_api.done("GET", "/manage/projects"))["data"] == [made]
    assert await providers_of(each_api, made["id"]) == []


async def test_a_project_may_be_made_with_its_key(api: Management) -> None:
    reply = await api.ask("POST", "/manage/projects", {"name": "demo", "api_key": KEY, "provider_type": "anthropic"})
    [provider] = await providers_of(api, reply.data["id"])
    assert (provider["provider_type"], provider["name"], provider["weight"]) == ("anthropic", "anthropic", 1)
    assert provider["api_base"] == "https://api.anthropic.com"
    assert provider["api_key"] == "sk-…cdef"
    assert KEY not in reply.text


async def test_what_cannot_be_a_project_is_refused_and_not_made(api: Management) -> None:
    for body, code, param in BAD:
        assert await api.refused("POST", "/manage/projects", body) == (400, code, param), body
    assert (await api.done("GET", "/manage/projects"))["data"] == []


async def test_a_name_is_used_once_whether_made_or_changed(each_api: Management) -> None:
    await each_api.project("taken")
    other = await each_api.project("other")
    assert await each_api.refused("POST", "/manage/projects", {"name": "taken"}) == (409, "already_exists", "name")
    assert await each_api.refused("PATCH", f"/manage/projects/{other}", {"name": "taken"}) == (409, "already_exists", "name")
    assert (await each_api.done("GET", f"/manage/projects/{other}"))["name"] == "other"


async def test_the_list_is_filtered_by_name_and_state(each_api: Management) -> None:
    on, off = await each_api.project("on"), await each_api.project("off")
    await each_api.done("DELETE", f"/manage/projects/{off}")

    async def found(**params: str) -> list[str]:
        return [one["id"] for one in (await each_api.done("GET", "/manage/projects", params=params))["data"]]

    assert await found() == [off, on]
    assert await found(name="on") == [on]
    assert await found(name="ON") == []
    assert await found(name="o%") == []
    assert await found(is_active="true") == [on]
    assert await found(is_active="false") == [off]
    assert await found(is_active="false", name="on") == []


async def test_patch_changes_what_it_names_and_nothing_else(each_api: Management) -> None:
    id = await each_api.project("before", api_key=KEY)
    before = await each_api.done("GET", f"/manage/projects/{id}")
    [provider] = await providers_of(each_api, id)
    after = await each_api.done("PATCH", f"/manage/projects/{id}", {"name": "after"})
    assert after == {**before, "name": "after", "updated_at": after["updated_at"]}
    assert await providers_of(each_api, id) == [provider]
    assert await each_api.done("GET", f"/manage/projects/{id}") == after


async def test_what_was_read_may_be_sent_back_and_changes_nothing(api: Management) -> None:
    id = await api.project()
    await api.done("PATCH", f"/manage/projects/{id}", {"is_active": False})
    before = await api.done("GET", f"/manage/projects/{id}")
    for body in (before, {}, {"is_active": False}):
        assert await api.done("PATCH", f"/manage/projects/{id}", body) == before


async def test_a_read_only_field_that_differs_is_refused(api: Management) -> None:
    path = f"/manage/projects/{await api.project()}"
    for field in ("object", "id", "created_at", "updated_at", "deactivated_at"):
        assert await api.refused("PATCH", path, {field: "other"}) == (400, "invalid_field", field)


async def test_a_change_that_cannot_be_is_refused_as_a_whole(api: Management) -> None:
    path = f"/manage/projects/{await api.project()}"
    before = await api.done("GET", path)
    for param, value in (
        ("name", None),
        ("is_active", None),
        ("is_active", 1),
        ("is_active", "false"),
        ("revoke_tokens", "yes"),
        ("api_key", None),
        ("provider_type", "openai"),
    ):
        assert await api.refused("PATCH", path, {"name": "new", param: value}) == (400, "invalid_field", param)
    assert await api.done("GET", path) == before


async def test_a_new_key_replaces_that_of_the_only_provider(each_api: Management) -> None:
    id = await each_api.project(api_key=KEY)
    [before] = await providers_of(each_api, id)
    await each_api.done("PATCH", f"/manage/projects/{id}", {"name": "renamed", "api_key": NEXT_KEY})
    [after] = await providers_of(each_api, id)
    assert after == {**before, "api_key": "sk-…3210", "updated_at": after["updated_at"]}
    [event] = await each_api.audit(action="project.update")
    assert event["details"]["before"] == {"name": "demo", "api_key": "sk-…cdef"}
    assert event["details"]["after"] == {"name": "renamed", "api_key": "sk-…3210"}


async def test_a_new_key_becomes_the_first_provider_where_there_is_none(api: Management) -> None:
    id = await api.project()
    await api.done("PATCH", f"/manage/projects/{id}", {"api_key": KEY})
    [provider] = await providers_of(api, id)
    assert (provider["provider_type"], provider["api_key"]) == ("openai", "sk-…cdef")


async def test_a_new_key_is_refused_where_several_providers_could_be_meant(each_api: Management) -> None:
    id = await each_api.project(api_key=KEY)
    await each_api.done("POST", f"/manage/projects/{id}/providers", {"api_key": NEXT_KEY})
    before = await providers_of(each_api, id)
    reply = await each_api.ask("PATCH", f"/manage/projects/{id}", {"name": "renamed", "api_key": "sk-third-0123456789abcdef"})
    assert (reply.status, reply.error["code"], reply.error["param"]) == (409, "several_providers", "api_key")
    assert f"/manage/projects/{id}/providers/" in reply.error["message"]
    assert await providers_of(each_api, id) == before
    assert (await each_api.done("GET", f"/manage/projects/{id}"))["name"] == "demo"


async def test_delete_deactivates_and_keeps_what_was_deactivated_first(each_api: Management) -> None:
    id = await each_api.project(api_key=KEY)
    token = await each_api.token(id)
    for _ in range(2):
        reply = await each_api.ask("DELETE", f"/manage/projects/{id}")
        assert (reply.status, reply.text) == (204, "")
    project = await each_api.done("GET", f"/manage/projects/{id}")
    first, again = reversed(await each_api.audit(action="project.delete"))
    assert project["is_active"] is False
    assert project["deactivated_at"] == project["updated_at"] <= first["timestamp"]
    assert (await each_api.done("GET", f"/manage/tokens/{token['id']}"))["status"] == "revoked"
    assert len(await providers_of(each_api, id)) == 1
    assert [event["details"]["revoked_count"] for event in (first, again)] == [1, 0]


async def test_a_project_that_is_active_again_is_so_without_its_revoked_tokens(api: Management) -> None:
    id = await api.project()
    token = await api.token(id)
    await api.done("DELETE", f"/manage/projects/{id}")
    again = await api.done("PATCH", f"/manage/projects/{id}", {"is_active": True})
    assert (again["is_active"], again["deactivated_at"]) == (True, None)
    assert (await api.done("GET", f"/manage/tokens/{token['id']}"))["status"] == "revoked"


async def test_to_stop_a_project_does_not_revoke_its_tokens_unless_that_is_said(api: Management) -> None:
    id = await api.project()
    token = await api.token(id)
    await api.done("PATCH", f"/manage/projects/{id}", {"is_active": False})
    assert (await api.done("GET", f"/manage/tokens/{token['id']}"))["is_active"] is True
    await api.done("PATCH", f"/manage/projects/{id}", {"revoke_tokens": True})
    assert (await api.done("GET", f"/manage/tokens/{token['id']}"))["is_active"] is False


async def test_revoking_all_counts_what_it_did(each_api: Management) -> None:
    id, other = await each_api.project(), await each_api.project("other")
    tokens = [(await each_api.token(id))["id"] for _ in range(4)]
    spared = await each_api.token(other)
    await each_api.done("DELETE", f"/manage/tokens/{tokens[0]}")
    path = f"/manage/projects/{id}/tokens/revoke"
    assert await each_api.done("POST", path) == {"revoked_count": 3, "already_revoked_count": 1, "total_tokens": 4}
    assert await each_api.done("POST", path, {}) == {"revoked_count": 0, "already_revoked_count": 4, "total_tokens": 4}
    assert (await each_api.done("GET", f"/manage/tokens/{spared['id']}"))["status"] == "active"


async def test_a_project_that_is_not_there_is_not_found(api: Management) -> None:
    for id in (NOBODY, "nobody", "' OR '1'='1", "x" * 5000):
        path = f"/manage/projects/{id}"
        assert await api.refused("GET", path) == (404, "not_found", None)
        assert await api.refused("PATCH", path, {}) == (404, "not_found", None)
        assert await api.refused("DELETE", path) == (404, "not_found", None)
        assert await api.refused("POST", f"{path}/tokens/revoke") == (404, "not_found", None)
        assert await api.refused("GET", f"{path}/providers") == (404, "not_found", None)
        assert await api.refused("POST", f"{path}/providers", {"api_key": KEY}) == (404, "not_found", None)


async def test_limits_are_made_read_and_changed_one_by_one(each_api: Management) -> None:
    made = (await each_api.ask("POST", "/manage/projects", {"name": "demo", "rate_limit": 5, "max_parallel": 0})).data
    names = ("rate_limit", "rate_limit_per_minute", "max_parallel")
    assert [made[name] for name in names] == [5, None, 0]
    changed = await each_api.done("PATCH", f"/manage/projects/{made['id']}", {"rate_limit_per_minute": 60, "max_parallel": None})
    assert [changed[name] for name in names] == [5, 60, None]
    assert await each_api.done("GET", f"/manage/projects/{made['id']}") == changed
    [event] = await each_api.audit(action="project.update")
    assert event["details"]["after"] == {"rate_limit_per_minute": 60, "max_parallel": None}
    assert await each_api.refused("PATCH", f"/manage/projects/{made['id']}", {"rate_limit": -1}) == (
        400,
        "invalid_field",
        "rate_limit",
    )
