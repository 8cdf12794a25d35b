"""The cache is shown and purged, each way, after saying what."""

import pytest
from stage.cached import Tenant, key_of, numbered, tenant_of
from stage.house import House
from stage.management import Management
from stage.provider import ScriptedProvider
from stage.visitor import Visitor


@pytest.fixture
async def tenant(house: House, provider: ScriptedProvider) -> Tenant:
    """A client whose provider's answers are stored."""
    provider.script = numbered()
    return await tenant_of(house, provider)


async def test_figures_are_shown(visitor: Visitor, tenant: Tenant) -> None:
    assert "nothing was looked up yet" in (await visitor.get("/admin/cache")).text
    for _ in range(4):
        await tenant.send()
    page = await visitor.get("/admin/cache")
    assert "Hit ratio 75.0 %" in page.text
    assert f"/admin/projects/{tenant.project}" in page.links


@pytest.mark.parametrize("way", ["prefix", "project", "named", "path", "key", "all"])
async def test_each_way_purges_what_its_preview_says(visitor: Visitor, api: Management, tenant: Tenant, way: str) -> None:
    reply = await tenant.send()
    name = (await api.done("GET", f"/manage/projects/{tenant.project}"))["name"]
    fields = {
        "prefix": {"way": "prefix", "prefix": "/v1/mod"},
        "project": {"way": "project", "project_id": tenant.project},
        "named": {"way": "project", "project_id": name},
        "path": {"way": "project", "path": "/v1/models", "method": "GET"},
        "key": {"way": "key", "key": key_of(reply)},
        "all": {"way": "all"},
    }[way]
    page = await visitor.get("/admin/cache")
    seal = page.form("/admin/cache/preview").fields["seal"]
    page = await visitor.post("/admin/cache/preview", {**fields, "seal": seal})
    assert "Entries now: 1." in page.text
    assert way not in ("project", "named") or name in page.text
    assert await tenant.how() == "hit", "a preview purges nothing"
    page = await visitor.send(page, "/admin/cache/purge")
    assert "Entries purged here: 1." in page.text
    assert await tenant.how() != "hit"
    assert len(await api.audit(action="cache.purge")) == 1


async def test_what_cannot_be_purged_is_told_beside_its_field(visitor: Visitor) -> None:
    seal = (await visitor.get("/admin/cache")).form("/admin/cache/preview").fields["seal"]
    for fields, wrong in (
        ({"way": "prefix"}, "prefix"),
        ({"way": "prefix", "prefix": "models"}, "prefix"),
        ({"way": "key"}, "key"),
        ({"way": "project", "method": "GET"}, "key"),
        ({"way": "project", "project_id": "nobody"}, "project_id"),
        ({}, "key"),
    ):
        for action in ("preview", "purge"):
            page = await visitor.post(f"/admin/cache/{action}", {**fields, "seal": seal})
            assert page.status == 400, fields
            assert action == "purge" or list(page.problems) == [wrong], fields
