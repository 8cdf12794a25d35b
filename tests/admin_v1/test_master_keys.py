"""Master keys in /admin/v1, on both sites, under both names."""

import pytest
from stage.house import House
from stage.management import Management
from stage.secrets import used

SECRET = "a-master-key-of-my-own"
PATHS = [("/admin/v1/master-keys", "master_keys"), ("/admin/v1/credentials", "credentials")]


@pytest.mark.parametrize(("path", "name"), PATHS)
async def test_a_master_key_lives_in_the_shapes_that_scripts_know(site: Management, path: str, name: str) -> None:
    given = {"id": "mine", "name": "one", "allowed_models": ["gpt-4*"], "rate_limit": 5, "is_enabled": True}
    reply = await site.ask("POST", path, {**given, "key": used(SECRET)})
    assert reply.status == 201
    made = reply.data
    assert made.pop("key") == SECRET
    assert {field: made[field] for field in given} == given
    assert made["key_preview"] == "a-m…-own"
    listed = await site.done("GET", path)
    assert (listed[name], set(listed)) == ([made], {"version", name, "has_more", "next"})
    for other, _ in PATHS:
        assert await site.done("GET", f"{other}/mine") == made
    assert await site.done("PUT", f"{path}/mine", made) == made, "what was read may be sent back"
    assert (await site.done("PUT", f"{path}/mine", {"rate_limit": None}))["rate_limit"] is None
    assert (await site.done("PATCH", f"{path}/mine/status", {"is_enabled": False}))["is_enabled"] is False
    rotated = await site.done("POST", f"{path}/mine/rotate", {"grace_seconds": 60})
    assert used(rotated["key"]).startswith("sk-lp-")
    assert rotated["previous_key_expires_at"]
    assert (await site.ask("DELETE", f"{path}/mine")).status == 204
    for method in ("GET", "PUT", "DELETE"):
        assert await site.refused(method, f"{path}/mine") == (404, "not_found", None)
    assert (await site.ask("POST", path, {**given, "key": SECRET})).status == 201, "id and key may be used again"


async def test_without_a_key_one_is_made_and_shown_once(site: Management) -> None:
    made = await site.done("POST", PATHS[0][0], {"name": "one"})
    secret = used(made["key"])
    for path in (PATHS[0][0], f"{PATHS[0][0]}/{made['id']}"):
        assert secret not in (await site.ask("GET", path)).text


@pytest.mark.parametrize(
    ("body", "refused"),
    [
        ({}, (400, "invalid_field", "name")),
        ({"name": "one", "key": "short"}, (400, "invalid_field", "key")),
        ({"name": "one", "key": "my-****-0123456789"}, (400, "masked_secret", "key")),
        ({"name": "one", "id": "a b"}, (400, "invalid_field", "id")),
        ({"name": "one", "rate_limit": -1}, (400, "invalid_field", "rate_limit")),
        ({"name": "one", "allowed_models": "gpt-4"}, (400, "invalid_field", "allowed_models")),
        ({"name": "one", "expires_at": None}, (400, "invalid_field", "expires_at")),
        ({"name": "one", "key_preview": "x"}, (400, "invalid_field", "key_preview")),
    ],
)
async def test_what_makes_no_sense_is_refused(api: Management, body: object, refused: tuple[int, str, str]) -> None:
    assert await api.refused("POST", PATHS[0][0], body) == refused
    assert (await api.done("GET", PATHS[0][0]))["master_keys"] == []


async def test_the_audit_stays_when_the_key_goes_and_has_no_secret(api: Management, house: House) -> None:
    path = PATHS[0][0]
    await api.done("POST", path, {"name": "one", "id": "mine", "key": used(SECRET)})
    await api.done("PUT", f"{path}/mine", {"name": "two"})
    used((await api.done("POST", f"{path}/mine/rotate", {"grace_seconds": 5}))["key"])
    await api.done("DELETE", f"{path}/mine")
    events = await api.audit(token_id="mine")
    acts = ["master_key.create", "master_key.update", "master_key.rotate", "master_key.delete"]
    assert [event["action"] for event in reversed(events)] == acts
    assert events[2]["details"] == {"before": {"name": "one"}, "after": {"name": "two"}}
    assert SECRET not in str(events)
    row = await house.context.database.fetch_one("SELECT COUNT(*) AS n FROM tokens")
    assert row == {"n": 0}


async def test_a_token_is_no_master_key_and_a_master_key_no_token(api: Management) -> None:
    token = await api.token(await api.project())
    used(token["token"])
    made = await api.done("POST", PATHS[0][0], {"name": "one"})
    used(made["key"])
    assert (await api.refused("GET", f"{PATHS[0][0]}/{token['id']}"))[0] == 404
    assert (await api.refused("DELETE", f"/manage/tokens/{made['id']}"))[0] == 404
    assert [one["id"] for one in (await api.done("GET", "/manage/tokens"))["data"]] == [token["id"]]
