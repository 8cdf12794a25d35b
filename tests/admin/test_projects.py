"""Projects are run from their pages."""

from stage.house import PROVIDER_KEY, House
from stage.management import Management
from stage.secrets import used
from stage.visitor import Visitor

from llm_proxy.projects import DEFAULT_ID


async def test_empty_lists_say_what_to_do_next(visitor: Visitor) -> None:
    page = await visitor.get("/admin/projects")
    assert (page.path, page.title) == ("/admin/projects", "Projects")
    assert "There is no project yet" in page.text and "/admin/new-project" in page.links
    assert "there is none yet" in (await visitor.get("/admin/tokens")).text
    assert "there is no active one" in (await visitor.get("/admin/new-token")).text


async def test_a_project_is_made_with_its_key_changed_stopped_and_started(visitor: Visitor, api: Management) -> None:
    page = await visitor.send(
        await visitor.get("/admin/new-project"), "/admin/projects", name="Support", api_key=used(PROVIDER_KEY), rate_limit="1 000"
    )
    here = page.path
    assert "The project Support was made" in page.text
    assert PROVIDER_KEY not in page.source and f"…{PROVIDER_KEY[-4:]}" in page.text
    page = await visitor.send(page, here, name="Help", rate_limit="", max_parallel="0")
    assert page.title == "Help" and "was changed" in page.text
    [project] = (await api.done("GET", "/manage/projects"))["data"]
    assert (project["name"], project["rate_limit"], project["max_parallel"]) == ("Help", None, 0)
    token = await api.token(project["id"])
    page = await visitor.get(f"{here}/deactivate")
    assert "Tokens that stop working: 1 of 1" in page.text
    page = await visitor.send(page, f"{here}/deactivate")
    assert "work again when it is activated" in page.text
    assert "Revoke…" in (await visitor.get(f"/admin/tokens/{token['id']}")).text
    page = await visitor.send(page, f"{here}/activate")
    assert "The project is active" in page.text
    page = await visitor.send(await visitor.get(f"{here}/deactivate"), f"{here}/deactivate", revoke_tokens="on")
    assert (await api.done("GET", f"/manage/tokens/{token['id']}"))["status"] == "revoked"
    actions = [(event["action"], event["client_ip"]) for event in await api.audit(project_id=project["id"])]
    assert actions[:2] == [("project.update", "127.0.0.1"), ("project.update", "127.0.0.1")]


async def test_problems_stand_beside_their_fields_with_what_was_written(visitor: Visitor, api: Management) -> None:
    await api.project("taken")
    page = await visitor.send(
        await visitor.get("/admin/new-project"),
        "/admin/projects",
        name="taken",
        api_base="https://x.example/v1",
        rate_limit="many",
    )
    assert page.status == 400
    assert page.problems == {"rate_limit": "Give a whole number from 0 to 9007199254740991."}
    assert (page.values["name"], page.values["rate_limit"]) == ("taken", "many")
    page = await visitor.send(page, "/admin/projects", rate_limit="")
    assert page.problems == {"provider_type": "This says where api_key belongs; give api_key too."}
    page = await visitor.send(page, "/admin/projects", api_base="")
    assert list(page.problems) == ["name"] and "already a project" in page.problems["name"]
    page = await visitor.send(page, "/admin/projects", name=" ")
    assert page.problems == {"name": "Give text of 1 to 200 characters, without control characters."}
    assert len((await api.done("GET", "/manage/projects"))["data"]) == 1


async def test_all_tokens_are_revoked_at_once(visitor: Visitor, api: Management) -> None:
    id = await api.project()
    for _ in range(3):
        await api.token(id)
    page = await visitor.get(f"/admin/projects/{id}/revoke")
    assert "Tokens that work now: 3 of 3" in page.text
    assert "Tokens revoked: 3." in (await visitor.send(page, f"/admin/projects/{id}/revoke")).text


async def test_a_reload_repeats_nothing(visitor: Visitor, api: Management) -> None:
    form = (await visitor.get("/admin/new-project")).form("/admin/projects").fields
    reply = await visitor.post("/admin/projects", {**form, "name": "once"}, follow=False)
    assert reply.status == 303
    for _ in range(2):
        assert (await visitor.get(reply.headers["Location"])).status == 200
    assert len((await api.done("GET", "/manage/projects"))["data"]) == 1


async def test_the_built_in_project_keeps_its_name(house: House, visitor: Visitor, api: Management) -> None:
    await api.done("POST", "/admin/v1/master-keys", {"name": "service"})
    here = f"/admin/projects/{DEFAULT_ID}"
    page = await visitor.send(await visitor.get(here), here, rate_limit="5")
    assert "The project was changed" in page.text and page.values["rate_limit"] == "5"
    assert "they are the master keys" in (await visitor.get(f"{here}/deactivate")).text


async def test_limits_are_told_in_words(visitor: Visitor, api: Management) -> None:
    for name, limits in (
        ("usual", {}),
        ("limited", {"rate_limit": 5, "rate_limit_per_minute": 1000}),
        ("free", {"rate_limit": 0, "max_parallel": 2}),
    ):
        await api.done("POST", "/manage/projects", {"name": name, **limits})
    text = (await visitor.get("/admin/projects")).text
    assert "usual active default" in text
    assert "limited active 5 a second, 1 000 a minute" in text
    assert "free active any number a second, 2 at a time" in text
