"""Master keys are made, shown once, edited, rotated, removed."""

from stage.management import Management
from stage.secrets import used
from stage.visitor import Visitor


async def test_a_master_key_lives_from_its_page(visitor: Visitor, api: Management) -> None:
    page = await visitor.get("/admin/master-keys")
    assert "There is no master key" in page.text
    page = await visitor.send(await visitor.get("/admin/new-master-key"), "/admin/master-keys", name="batch", id="svc.1")
    here = "/admin/master-keys/svc.1"
    first = used(page.values["secret"])
    assert page.path == here and first in page.values["snippet-2"]
    assert first not in (await visitor.get(here)).source
    page = await visitor.send(await visitor.get(here), here, name="jobs", allowed_models="gpt-4o", max_parallel="2")
    assert page.title == "jobs" and page.values["allowed_models"] == "gpt-4o"
    page = await visitor.send(page, f"{here}/rotate", grace_seconds="3600")
    second = used(page.values["secret"])
    assert second != first and "Old key ends" in page.text
    page = await visitor.send(await visitor.get(here), here, leave_out=("is_enabled",))
    assert "disabled" in page.text
    assert "jobs" in (await visitor.get("/admin/master-keys")).text
    page = await visitor.send(await visitor.get(f"{here}/delete"), f"{here}/delete")
    assert page.path == "/admin/master-keys" and "was removed" in page.text
    actions = [event["action"] for event in await api.audit(token_id="svc.1")]
    assert actions == ["master_key.delete", "master_key.update", "master_key.rotate", "master_key.update", "master_key.create"]


async def test_a_key_of_ones_own_is_taken_and_problems_stand_beside_their_fields(visitor: Visitor) -> None:
    own = used("a-key-that-is-in-use-elsewhere-01")
    form = await visitor.get("/admin/new-master-key")
    page = await visitor.send(form, "/admin/master-keys", name="own", id="own", key=own)
    assert page.values["secret"] == own
    for field, value in (("key", own), ("key", "short"), ("id", "own"), ("id", "a b"), ("name", " "), ("rate_limit", "x")):
        page = await visitor.send(form, "/admin/master-keys", **{"name": "n", field: value})
        assert (page.status, list(page.problems)) == (400, [field]), value
    page = await visitor.send(await visitor.get("/admin/master-keys/own"), "/admin/master-keys/own", name="")
    assert (page.status, list(page.problems)) == (400, ["name"])


async def test_many_are_paged_by_id(visitor: Visitor, api: Management) -> None:
    for number in range(51):
        await api.done("POST", "/admin/v1/master-keys", {"name": f"Key {number:02}", "id": f"key-{number:02}"})
    page = await visitor.get("/admin/master-keys")
    assert page.text.count("key-") == 50
    [next] = [link for link in page.links if "after=" in link]
    page = await visitor.get(next)
    assert "Key 50" in page.text and "/admin/master-keys" in page.links
