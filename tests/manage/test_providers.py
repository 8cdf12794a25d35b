"""The providers of a project in the management API."""

from typing import Any

import pytest
from stage.house import House
from stage.management import Management

KEY = "sk-first-0123456789abcdef"
NEXT_KEY = "sk-other-fedcba9876543210"

BAD: list[tuple[dict[str, Any], str, str]] = [
    ({}, "invalid_field", "api_key"),
    ({"api_key": "sk-…cdef"}, "masked_secret", "api_key"),
    ({"api_key": KEY, "id": ""}, "invalid_field", "id"),
    ({"api_key": KEY, "id": "a/b"}, "invalid_field", "id"),
    ({"api_key": KEY, "id": ".."}, "invalid_field", "id"),
    ({"api_key": KEY, "id": "a b"}, "invalid_field", "id"),
    ({"api_key": KEY, "id": "a%20b"}, "invalid_field", "id"),
    ({"api_key": KEY, "id": "x" * 101}, "invalid_field", "id"),
    ({"api_key": KEY, "id": 7}, "invalid_field", "id"),
    ({"api_key": KEY, "project_id": "other"}, "invalid_field", "project_id"),
    ({"api_key": KEY, "model_mapping": {"gpt-4": "acme-*"}}, "invalid_field", "model_mapping.gpt-4"),
    ({"api_key": KEY, "weight": -1}, "invalid_field", "weight"),
    ({"api_key": KEY, "weight": 1_000_001}, "invalid_field", "weight"),
    ({"api_key": KEY, "weight": 10**30}, "invalid_field", "weight"),
    ({"api_key": KEY, "weight": 1.5}, "invalid_field", "weight"),
    ({"api_key": KEY, "weight": True}, "invalid_field", "weight"),
    ({"api_key": KEY, "weight": "1"}, "invalid_field", "weight"),
    ({"api_key": KEY, "weight": None}, "invalid_field", "weight"),
    ({"api_key": KEY, "is_enabled": "true"}, "invalid_field", "is_enabled"),
    ({"api_key": KEY, "provider_type": "nobody"}, "invalid_field", "provider_type"),
    ({"api_key": KEY, "provider_type": "custom"}, "invalid_field", "api_base"),
    ({"api_key": KEY, "api_base": "//example.com"}, "invalid_field", "api_base"),
    ({"api_key": KEY, "api_base": "https://example.com?key=x"}, "invalid_field", "api_base"),
    ({"api_key": KEY, "api_base": "https://" + "x" * 2000}, "invalid_field", "api_base"),
    ({"api_key": KEY, "provider_params": []}, "invalid_field", "provider_params"),
    ({"api_key": KEY, "provider_params": {"a": {}}}, "invalid_field", "provider_params"),
    ({"api_key": KEY, "provider_params": {"a": "\x00"}}, "invalid_field", "provider_params"),
]


@pytest.fixture
async def path(api: Management) -> str:
    """The path of a project's providers, of which there are none."""
    return f"/manage/projects/{await api.project()}/providers"


@pytest.fixture
async def each_path(each_api: Management) -> str:
    """The same, once on each database."""
    return f"/manage/projects/{await each_api.project()}/providers"


async def test_a_new_provider_is_answered_as_a_whole_and_is_read_back_the_same(each_api: Management, each_path: str) -> None:
    given = {
        "id": "team-azure",
        "name": "Azure, Sweden",
        "provider_type": "azure",
        "api_base": "https://team.openai.azure.com/",
        "model_mapping": {"gpt-4*": {"mapped_model": "acme-*", "max_input_tokens": 9, "note": [1, None]}, "b": "b", "a": "c"},
        "weight": 3,
        "provider_params": {"api_version": "2024-10-21"},
        "is_enabled": False,
    }
    reply = await each_api.ask("POST", each_path, {**given, "api_key": KEY})
    assert reply.status == 201
    assert KEY not in reply.text
    made = reply.data
    assert made == {
        **given,
        "api_base": "https://team.openai.azure.com",
        "object": "provider",
        "project_id": each_path.split("/")[3],
        "api_key": "sk-…cdef",
        "problem": None,
        "status": {"state": "closed", "reason": None},
        "created_at": made["created_at"],
        "updated_at": made["created_at"],
    }
    assert await each_api.done("GET", f"{each_path}/team-azure") == made
    assert (await each_api.done("GET", each_path))["data"] == [made]


async def test_a_key_alone_makes_a_provider_of_the_default_profile(api: Management, path: str) -> None:
    made = await api.done("POST", path, {"api_key": KEY})
    shown = {name: made[name] for name in ("name", "provider_type", "api_base", "weight", "provider_params", "is_enabled")}
    assert shown == {
        "name": "openai",
        "provider_type": "openai",
        "api_base": "https://api.openai.com",
        "weight": 1,
        "provider_params": {},
        "is_enabled": True,
    }


async def test_what_cannot_be_a_provider_is_refused_and_not_made(api: Management, path: str) -> None:
    for body, code, param in BAD:
        assert await api.refused("POST", path, body) == (400, code, param), body
    assert (await api.done("GET", path))["data"] == []


async def test_an_id_is_used_once_among_all_projects(each_api: Management, each_path: str) -> None:
    other = f"/manage/projects/{await each_api.project('other')}/providers"
    await each_api.done("POST", each_path, {"id": "mine", "api_key": KEY})
    for path in (each_path, other):
        assert await each_api.refused("POST", path, {"id": "mine", "api_key": KEY}) == (409, "already_exists", "id")
    assert (await each_api.done("GET", other))["data"] == []


async def test_patch_changes_what_it_names_and_nothing_else(each_api: Management, each_path: str) -> None:
    made = await each_api.done("POST", each_path, {"id": "mine", "api_key": KEY, "weight": 5, "provider_params": {"a": 1}})
    for change in (
        {"name": "renamed"},
        {"weight": 0},
        {"is_enabled": False},
        {"provider_params": {"b": True}},
        {"provider_params": {"b": 1}},
        {"api_base": "https://llm.example.com/v1"},
    ):
        after = await each_api.done("PATCH", f"{each_path}/mine", change)
        assert after == {**made, **change, "updated_at": after["updated_at"]}
        made = after
    after = await each_api.done("PATCH", f"{each_path}/mine", {"api_key": NEXT_KEY})
    assert after == {**made, "api_key": "sk-…3210", "updated_at": after["updated_at"]}


async def test_null_gives_back_the_base_url_of_the_profile_and_omission_keeps_it(api: Management, path: str) -> None:
    await api.done("POST", path, {"id": "mine", "api_key": KEY, "api_base": "https://llm.example.com"})
    kept = await api.done("PATCH", f"{path}/mine", {"provider_type": "mistral"})
    assert kept["api_base"] == "https://llm.example.com"
    back = await api.done("PATCH", f"{path}/mine", {"api_base": None})
    assert back["api_base"] == "https://api.mistral.ai"
    assert await api.refused("PATCH", f"{path}/mine", {"provider_type": "custom"}) == (400, "invalid_field", "api_base")


async def test_what_was_read_may_be_sent_back_but_for_the_masked_key(api: Management, path: str) -> None:
    made = await api.done("POST", path, {"id": "mine", "api_key": KEY})
    assert await api.refused("PATCH", f"{path}/mine", made) == (400, "masked_secret", "api_key")
    shown = {name: value for name, value in made.items() if name != "api_key"}
    assert await api.done("PATCH", f"{path}/mine", shown) == made


async def test_a_read_only_field_that_differs_is_refused(api: Management, path: str) -> None:
    await api.done("POST", path, {"id": "mine", "api_key": KEY})
    for field in ("object", "id", "project_id", "problem", "created_at", "updated_at"):
        assert await api.refused("PATCH", f"{path}/mine", {field: "other"}) == (400, "invalid_field", field)


async def test_a_deleted_provider_is_gone_and_its_id_is_free(api: Management, path: str) -> None:
    await api.done("POST", path, {"id": "mine", "api_key": KEY})
    assert (await api.ask("DELETE", f"{path}/mine")).status == 204
    assert await api.refused("DELETE", f"{path}/mine") == (404, "not_found", None)
    assert (await api.done("GET", path))["data"] == []
    assert (await api.ask("POST", path, {"id": "mine", "api_key": KEY})).status == 201


async def test_a_provider_is_found_under_its_own_project_alone(api: Management, path: str) -> None:
    await api.done("POST", path, {"id": "mine", "api_key": KEY})
    other = f"/manage/projects/{await api.project('other')}/providers"
    for method, body in (("GET", None), ("PATCH", {"weight": 0}), ("DELETE", None)):
        for wrong in (f"{other}/mine", f"{path}/nobody", "/manage/projects/nobody/providers/mine"):
            assert await api.refused(method, wrong, body) == (404, "not_found", None)
    assert (await api.done("GET", f"{path}/mine"))["weight"] == 1


async def test_the_list_is_paged_by_id_over_ids_of_any_kind(api: Management, path: str) -> None:
    ids = ["B", "a", "a-2", "b_1", "b~", "z"]
    for id in reversed(ids):
        await api.done("POST", path, {"id": id, "api_key": KEY})
    visited: list[str] = []
    after: dict[str, str] = {}
    for _ in ids:
        page = await api.done("GET", path, params={"limit": "2", **after})
        visited += [one["id"] for one in page["data"]]
        if not page["has_more"]:
            break
        # What the cursor names may go meanwhile.
        await api.done("DELETE", f"{path}/{page['next']}")
        after = {"after": page["next"]}
    assert visited == ids


async def test_a_provider_whose_key_cannot_be_read_says_so_and_breaks_no_list(api: Management, path: str, house: House) -> None:
    for id in ("broken", "fine"):
        await api.done("POST", path, {"id": id, "api_key": KEY})
    damaged = "UPDATE providers SET api_key_ciphertext = 'enc:v2:00000000:AAAA' WHERE id = 'broken'"
    await house.context.database.execute(damaged)
    broken, fine = (await api.done("GET", path))["data"]
    assert (broken["api_key"], fine["api_key"]) == (None, "sk-…cdef")
    assert "ENCRYPTION_KEY" in broken["problem"]
    assert fine["problem"] is None
    mended = await api.done("PATCH", f"{path}/broken", {"api_key": NEXT_KEY})
    assert (mended["api_key"], mended["problem"]) == ("sk-…3210", None)
