"""The shared pool in /admin/v1, on both sites."""

from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage.house import House
from stage.management import Management
from stage.secrets import used

KEY = "sk-pool-0123456789abcdef"
PATH = "/admin/v1/providers"
MAPPING = {"gpt-4o": "mine", "gpt-4*": {"mapped_model": "acme-4*", "max_input_tokens": 128000, "note": {"a": [1, None]}}}
BAD = [
    ({}, "api_key"),
    ({"api_key": KEY, "id": "a/b"}, "id"),
    ({"api_key": KEY, "id": "a", "provider_key": "b"}, "provider_key"),
    ({"api_key": KEY, "project_id": None}, "project_id"),
    ({"api_key": KEY, "weight": -1}, "weight"),
    ({"api_key": KEY, "weight": 1.5}, "weight"),
    ({"api_key": KEY, "provider_type": "nobody"}, "provider_type"),
    ({"api_key": KEY, "provider_type": "custom"}, "api_base"),
    ({"api_key": KEY, "api_base": "ftp://example.com"}, "api_base"),
    ({"api_key": KEY, "model_mapping": []}, "model_mapping"),
    ({"api_key": KEY, "model_mapping": {"a*b*": "x"}}, "model_mapping"),
    ({"api_key": KEY, "model_mapping": {"a": "x*"}}, "model_mapping.a"),
    ({"api_key": KEY, "model_mapping": {"a": {"max_input_tokens": 5}}}, "model_mapping.a"),
    ({"api_key": KEY, "model_mapping": {"a": None}}, "model_mapping.a"),
    ({"api_key": KEY, "is_enabled": 1}, "is_enabled"),
    ({"api_key": KEY, "colour": 1}, "colour"),
]
CHANGES: dict[str, st.SearchStrategy[Any]] = {
    "name": st.sampled_from(["a", "b c", "ä"]),
    "provider_type": st.sampled_from(["openai", "groq", "custom"]),
    "api_base": st.sampled_from(["https://one.example.com", "https://two.example.com/v1"]),
    "model_mapping": st.dictionaries(st.sampled_from(["a", "b*"]), st.sampled_from(["x", "y"])),
    "weight": st.integers(0, 9),
    "provider_params": st.dictionaries(st.sampled_from(["a", "b"]), st.integers(0, 9)),
    "is_enabled": st.booleans(),
}


async def test_a_provider_lives_in_the_shapes_that_scripts_know(site: Management) -> None:
    fields = {"name": "one", "provider_type": "custom", "api_base": "https://one.example.com", "weight": 3}
    more = {"model_mapping": MAPPING, "provider_params": {"a": 1}, "is_enabled": False}
    reply = await site.ask("POST", PATH, {"provider_key": "one", "api_key": used(KEY), **fields, **more})
    assert reply.status == 201
    made = reply.data
    times = {name: made[name] for name in ("created_at", "updated_at")}
    status = {"state": "closed", "reason": None}
    assert made == {"id": "one", "provider_key": "one", **fields, **more, "problem": None, "status": status, **times}
    assert list(made["model_mapping"]) == list(MAPPING), "in the order it was written in"
    listed = await site.done("GET", PATH)
    assert listed == {"version": listed["version"], "providers": [made], "has_more": False, "next": None}
    assert listed["version"] == (await site.done("GET", "/admin/v1/config/version"))["version"] > 0
    assert await site.done("GET", f"{PATH}/one") == made
    assert await site.done("PUT", f"{PATH}/one", made) == made, "what was read may be sent back"
    assert (await site.done("PATCH", f"{PATH}/one/status", {"is_enabled": True}))["is_enabled"] is True
    assert (await site.ask("DELETE", f"{PATH}/one")).status == 204
    assert await site.refused("GET", f"{PATH}/one") == (404, "not_found", None)


async def test_defaults_are_those_of_the_table(site: Management) -> None:
    made = await site.done("POST", PATH, {"api_key": used(KEY)})
    shown = {name: made[name] for name in ("provider_type", "model_mapping", "weight", "provider_params", "is_enabled")}
    assert shown == {"provider_type": "openai", "model_mapping": {}, "weight": 1, "provider_params": {}, "is_enabled": True}


async def test_what_makes_no_sense_is_refused_and_not_made(site: Management) -> None:
    for body, param in BAD:
        assert await site.refused("POST", PATH, body) == (400, "invalid_field", param), body
    assert await site.refused("POST", PATH, {"api_key": "sk-…cdef"}) == (400, "masked_secret", "api_key")
    assert (await site.done("GET", PATH))["providers"] == []
    await site.done("POST", PATH, {"id": "one", "api_key": used(KEY)})
    assert await site.refused("POST", PATH, {"id": "one", "api_key": KEY}) == (409, "already_exists", "id")
    assert await site.refused("PUT", f"{PATH}/one", {"id": "two"}) == (400, "invalid_field", "id")


async def test_the_pool_is_no_project_s_and_a_project_s_is_not_in_the_pool(api: Management) -> None:
    project = await api.project(api_key=used("sk-own-0123456789abcdef"))
    [own] = (await api.done("GET", f"/manage/projects/{project}/providers"))["data"]
    await api.done("POST", PATH, {"id": "one", "api_key": used(KEY)})
    assert [one["id"] for one in (await api.done("GET", PATH))["providers"]] == ["one"]
    assert len((await api.done("GET", f"/manage/projects/{project}/providers"))["data"]) == 1
    assert (await api.refused("GET", f"{PATH}/{own['id']}"))[0] == 404
    assert (await api.refused("DELETE", f"/manage/projects/{project}/providers/one"))[0] == 404


async def test_planted_nonsense_is_shown_with_its_problem_and_mended_by_a_put(api: Management, house: House) -> None:
    for id in ("good", "bad"):
        await api.done("POST", PATH, {"id": id, "api_key": used(KEY)})
    for column, planted, field, mended in (
        ("model_mapping", "nonsense", "model_mapping", {}),
        ("provider_type", "nobody", "provider_type", "openai"),
        ("api_key_ciphertext", "enc:v2:00000000:AAAA", "api_key", KEY),
    ):
        await house.context.database.execute(f"UPDATE providers SET {column} = :v WHERE id = 'bad'", {"v": planted})
        listed = {one["id"]: one for one in (await api.done("GET", PATH))["providers"]}
        assert listed["good"]["problem"] is None
        assert listed["bad"]["problem"]
        if field == "model_mapping":
            # It is shown as empty, and so would be sent back.
            await api.done("PUT", f"{PATH}/bad", {"model_mapping": {"a": "a"}})
        assert (await api.done("PUT", f"{PATH}/bad", {field: mended}))["problem"] is None


async def test_every_write_is_audited_without_the_key(api: Management) -> None:
    await api.done("POST", PATH, {"id": "one", "api_key": used(KEY)})
    await api.done("PUT", f"{PATH}/one", {"weight": 0})
    await api.done("DELETE", f"{PATH}/one")
    events = [event for event in await api.audit() if event["action"].startswith("provider.")]
    assert [event["action"] for event in reversed(events)] == ["provider.create", "provider.update", "provider.delete"]
    assert events[1]["details"] == {"provider_id": "one", "before": {"weight": 1}, "after": {"weight": 0}}
    assert {event["project_id"] for event in events} == {None}


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(changes=st.lists(st.fixed_dictionaries({}, optional=CHANGES), max_size=4))
async def test_an_update_touches_what_it_names_and_nothing_else(api: Management, changes: list[dict[str, Any]]) -> None:
    expected = await api.done("POST", PATH, {"api_key": used(KEY), "api_base": "https://first.example.com"})
    for change in changes:
        expected.update(change)
        found = await api.done("PUT", f"{PATH}/{expected['id']}", change)
        assert {**found, "updated_at": None} == {**expected, "updated_at": None}


@pytest.mark.parametrize("limit", ["0", "1001", "x", "-1"])
async def test_a_wrong_limit_is_refused(api: Management, limit: str) -> None:
    assert await api.refused("GET", f"{PATH}?limit={limit}") == (400, "invalid_field", "limit")
