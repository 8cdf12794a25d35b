"""A project is chosen by name, a part of it or its id; what is unclear is said beside the field."""

import pytest
from stage.house import TESTER, House
from stage.visitor import Visitor

from llm_proxy.acts import master_keys, projects, tokens
from llm_proxy.admin.choosers import LONGEST, MOST, chosen
from llm_proxy.errors import InvalidField


@pytest.mark.parametrize(
    ("given", "found"),
    [
        pytest.param("Support", "Support", id="a whole name goes before longer ones"),
        pytest.param("support eu", "Support EU", id="in another case"),
        pytest.param("  us ", "Support US", id="a part that only one has"),
        pytest.param("0% sure_", "100% sure_o", id="signs of patterns"),
        pytest.param("sup", "“sup” may be Support US, Support EU, Support. Give the whole name", id="a part that several have"),
        pytest.param("u", "may be 100% sure_o, 100% sure, Support US and more.", id="a part that many have"),
        pytest.param("x" * 200, f"there is no project “{'x' * LONGEST}…”", id="nothing known"),
        pytest.param(" ", "choose a project", id="nothing"),
    ],
)
async def test_what_is_written_leads_to_one_project_or_says_why_not(house: House, given: str, found: str) -> None:
    database = house.context.database
    for name in ("Support", "Support EU", "Support US", "100% sure", "100% sure_o"):
        made = await projects.create(house.context, TESTER, {"name": name})
    assert await chosen(database, made.id) == made
    try:
        assert (await chosen(database, given)).name == found
    except InvalidField as error:
        assert error.param == "project_id" and found in error.message


async def test_every_form_takes_a_project_beyond_those_it_offers(house: House, visitor: Visitor) -> None:
    context = house.context
    oldest = await projects.create(context, TESTER, {"name": "Oldest"})
    await master_keys.create(context, TESTER, {"name": "their project is no other"})
    # The only one is there already.
    assert (await visitor.get("/admin/new-token")).values["project_id"] == "Oldest"
    for number in range(MOST + 1):
        await projects.create(context, TESTER, {"name": f"Fleet {number}"})
    page = await visitor.get("/admin/new-token")
    offered = [given["value"] for tag, given in page.tags if tag == "option" and given["value"].startswith(("Fleet", "Oldest"))]
    assert len(offered) == MOST and "Oldest" not in offered and page.values["project_id"] == ""
    for given in ("oldest", oldest.id):
        page = await visitor.send(await visitor.get("/admin/new-token"), "/admin/tokens", project_id=given, name=f"by {given}")
        assert page.status == 200 and "Oldest" in page.text
    await tokens.create(context, TESTER, {"project_id": (await chosen(context.database, "fleet 7")).id, "name": "elsewhere"})
    for path, mine, other in (("tokens", "by oldest", "elsewhere"), ("audit", "token.create", "Fleet")):
        for given in ("old", oldest.id):
            page = await visitor.get(f"/admin/{path}?project_id={given}")
            assert mine in page.text and other not in page.text and page.values["project_id"] == "Oldest"
        page = await visitor.get(f"/admin/{path}?project_id=fleet")
        assert (page.status, list(page.problems), page.values["project_id"]) == (400, ["project_id"], "fleet")
        assert "may be Fleet 200, Fleet 199, Fleet 198 and more" in page.problems["project_id"] and mine not in page.text
