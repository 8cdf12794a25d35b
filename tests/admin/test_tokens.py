"""Tokens are made, shown once, edited, revoked, reissued."""

import aiohttp
import pytest
from stage.house import TESTER, House
from stage.management import Management
from stage.provider import ScriptedProvider
from stage.secrets import used
from stage.visitor import Page, Visitor

from llm_proxy.acts import tokens
from llm_proxy.admin.tokens import PRESETS
from llm_proxy.clock import from_rfc3339, now_ms
from llm_proxy.tokens import PREFIX, well_formed


async def made(visitor: Visitor, project: str, /, **fields: str) -> Page:
    """The page of a new token."""
    return await visitor.send(await visitor.get(f"/admin/new-token?project_id={project}"), "/admin/tokens", **fields)


async def test_a_token_is_shown_once_with_code_to_try_it(visitor: Visitor, api: Management) -> None:
    page = await made(
        visitor, await api.project(), name="app", max_requests="5", allowed_models="gpt-4*\ngpt-4o\n", metadata="team = a"
    )
    secret = used(page.values["secret"])
    assert well_formed(secret) and secret.startswith(PREFIX)
    assert all(secret in page.values[f"snippet-{number}"] for number in (1, 2, 3))
    assert '"gpt-4o"' in page.values["snippet-1"]
    again = await visitor.get(page.path)
    assert secret not in again.source and "snippet-1" not in again.values
    assert secret[-4:] in again.text
    [stored] = (await api.done("GET", "/manage/tokens"))["data"]
    assert (stored["name"], stored["max_requests"], stored["allowed_models"]) == ("app", 5, ["gpt-4*", "gpt-4o"])
    assert stored["metadata"] == {"team": "a"}


@pytest.mark.parametrize(("duration", "minutes"), [("5", 5), ("525600", 525_600), ("never", None)])
async def test_a_preset_makes_a_token_that_lasts_as_long(
    visitor: Visitor, api: Management, duration: str, minutes: int | None
) -> None:
    assert duration in dict(PRESETS)
    await made(visitor, await api.project(), duration=duration)
    [stored] = (await api.done("GET", "/manage/tokens"))["data"]
    if minutes is None:
        assert stored["expires_at"] is None
    else:
        left = from_rfc3339("expires_at", stored["expires_at"]) - now_ms()
        assert minutes * 60_000 - 10_000 < left <= minutes * 60_000


async def test_problems_of_a_new_token_stand_beside_their_fields(visitor: Visitor, api: Management) -> None:
    page = await made(visitor, await api.project(), max_requests="0", name="kept")
    assert (page.status, list(page.problems)) == (400, ["max_requests"])
    assert "0 would make a token that can never be used" in page.problems["max_requests"]
    assert page.values["name"] == "kept"
    for field, value in (("duration", "77777777"), ("metadata", "x"), ("project_id", "none"), ("allowed_models", "x" * 201)):
        page = await made(visitor, (await api.done("GET", "/manage/projects"))["data"][0]["id"], **{field: value})
        assert (page.status, list(page.problems)) == (400, [field])
    assert (await api.done("GET", "/manage/tokens"))["data"] == []


async def test_a_token_is_edited_in_every_field(visitor: Visitor, api: Management) -> None:
    token = await api.token(await api.project(), name="before")
    here = f"/admin/tokens/{token['id']}"
    page = await visitor.send(
        await visitor.get(here),
        here,
        name="after",
        max_requests="9",
        rate_limit="1",
        rate_limit_per_minute="2",
        max_parallel="3",
        allowed_models="a\nb",
        metadata='{"n": 1}',
        expires_at="",
    )
    assert "The token was changed" in page.text
    stored = await api.done("GET", f"/manage/tokens/{token['id']}")
    wanted = {"name": "after", "max_requests": 9, "rate_limit": 1, "rate_limit_per_minute": 2, "max_parallel": 3}
    wanted |= {"allowed_models": ["a", "b"], "metadata": {"n": 1}, "expires_at": None}
    assert {name: stored[name] for name in wanted} == wanted
    # What is shown can be sent back as it is, and changes nothing.
    await visitor.send(await visitor.get(here), here)
    again = await api.done("GET", f"/manage/tokens/{token['id']}")
    assert {**again, "updated_at": None} == {**stored, "updated_at": None}
    page = await visitor.send(await visitor.get(here), here, expires_at="tomorrow", name="kept")
    assert (page.status, list(page.problems), page.values["name"]) == (400, ["expires_at"], "kept")


async def test_what_is_left_as_it_stands_is_not_changed(visitor: Visitor, api: Management) -> None:
    token = await api.token(await api.project(), duration_minutes=60)
    here = f"/admin/tokens/{token['id']}"
    page = await visitor.get(here)
    shown = page.values["expires_at"]
    assert len(shown) == len("2026-12-31T23:59:59Z") and token["expires_at"].startswith(shown.removesuffix("Z"))
    page = await visitor.send(page, here, max_requests="7")
    changed = await api.done("GET", here.replace("admin", "manage"))
    assert (changed["max_requests"], changed["name"], changed["expires_at"]) == (7, token["name"], token["expires_at"])
    await visitor.send(page, here, expires_at="")
    assert (await api.done("GET", here.replace("admin", "manage")))["expires_at"] is None


async def test_a_token_is_revoked(visitor: Visitor, api: Management) -> None:
    token = await api.token(await api.project())
    here = f"/admin/tokens/{token['id']}"
    page = await visitor.send(await visitor.get(f"{here}/revoke"), f"{here}/revoke")
    assert "The token is revoked" in page.text and f"{here}/revoke" not in page.links
    assert (await api.done("GET", f"/manage/tokens/{token['id']}"))["status"] == "revoked"


async def test_a_reissued_token_takes_the_old_ones_place(visitor: Visitor, api: Management) -> None:
    token = await api.token(await api.project(), name="app", duration_minutes=60, max_requests=7, allowed_models=["m"])
    here = f"/admin/tokens/{token['id']}"
    page = await visitor.send(await visitor.get(f"{here}/reissue"), f"{here}/reissue")
    assert page.path != here and used(page.values["secret"]) != token["token"]
    new, old = (await api.done("GET", "/manage/tokens"))["data"]
    assert (old["status"], new["status"]) == ("revoked", "active")
    same = ("name", "max_requests", "allowed_models", "project_id", "metadata", "rate_limit")
    assert {name: new[name] for name in same} == {name: old[name] for name in same}
    lasts = from_rfc3339("x", new["expires_at"]) - from_rfc3339("x", new["created_at"])
    assert abs(lasts - 3_600_000) < 1000
    [event] = await api.audit(action="token.reissue")
    assert (event["token_id"], event["details"]["replaced"]) == (new["id"], old["id"])


async def test_the_old_token_ends_and_the_new_one_works(house: House, visitor: Visitor, provider: ScriptedProvider) -> None:
    project = await house.project(provider.url)
    made_, secret = await tokens.create(house.context, TESTER, {"project_id": project})
    page = await visitor.get(f"/admin/tokens/{made_.id}/reissue")
    page = await visitor.send(page, f"/admin/tokens/{made_.id}/reissue")
    async with aiohttp.ClientSession() as session:
        for token, status in ((secret.reveal(), 401), (used(page.values["secret"]), 200)):
            headers = {"Authorization": f"Bearer {token}"}
            async with session.get(f"{house.url}/v1/models", headers=headers) as reply:
                assert reply.status == status


async def test_a_token_of_an_inactive_project_is_not_reissued(house: House, visitor: Visitor, api: Management) -> None:
    project = await api.project()
    token = await api.token(project)
    await api.done("PATCH", f"/manage/projects/{project}", {"is_active": False})
    page = await visitor.get(f"/admin/tokens/{token['id']}/reissue")
    page = await visitor.send(page, f"/admin/tokens/{token['id']}/reissue")
    assert page.status == 400 and "activate it first" in page.text
    assert (await api.done("GET", f"/manage/tokens/{token['id']}"))["is_active"]


async def test_tokens_are_found_by_project_state_and_name(visitor: Visitor, api: Management) -> None:
    one, other = await api.project("one"), await api.project("other")
    first = await api.token(one, name="Web App")
    await api.token(other, name="batch")
    await api.done("DELETE", f"/manage/tokens/{first['id']}")
    for query, found in (
        (f"project_id={one}", ["Web App"]),
        ("status=active", ["batch"]),
        ("status=revoked", ["Web App"]),
        ("search=web+a", ["Web App"]),
        ("search=%25", []),
        ("status=nonsense", ["Web App", "batch"]),
    ):
        page = await visitor.get(f"/admin/tokens?{query}")
        assert [name for name in ("Web App", "batch") if name in page.text] == found, query
