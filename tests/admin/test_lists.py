"""Lists page by key, with their filters in the URL."""

import pytest
from stage.house import TESTER, House
from stage.visitor import Visitor

from llm_proxy import audit
from llm_proxy.acts import master_keys, projects
from llm_proxy.admin import audit as audit_pages
from llm_proxy.audit import AuditEvent


async def test_pages_lead_to_the_next_and_back_to_the_first_with_their_filters(house: House, visitor: Visitor) -> None:
    for number in range(52):
        await projects.create(house.context, TESTER, {"name": f"Fleet {number:02}"})
    await projects.create(house.context, TESTER, {"name": "100% other_"})
    page = await visitor.get("/admin/projects?search=FLEET&state=active")
    assert page.text.count("Fleet") == 50 and "Fleet 51" in page.text
    [next] = [link for link in page.links if "after=" in link]
    page = await visitor.get(next)
    assert page.text.count("Fleet") == 2 and "Fleet 00" in page.text
    assert "/admin/projects?search=FLEET&state=active" in page.links
    assert not [link for link in page.links if "after=" in link]
    [previous] = [link for link in page.links if "before=" in link]
    page = await visitor.get(previous)
    assert page.text.count("Fleet") == 50 and "Fleet 51" in page.text and next in page.links
    for search, found in (("0%25", True), ("r_", True), ("t_0", False), ("fleet%25", False)):
        page = await visitor.get(f"/admin/projects?search={search}&state=")
        assert ("No project fits" not in page.text) == found, search
        assert page.values["search"] == search.replace("%25", "%")


async def test_pages_lead_back_one_by_one_and_the_first_is_whole(house: House, visitor: Visitor) -> None:
    events = [AuditEvent("bulk", f"actor-{number:03}.") for number in range(120)]
    await audit.insert(house.context.database, events)
    page = await visitor.get("/admin/audit?action=bulk")
    shown = [page.text.count("actor-")]
    for way in ("after=", "after=", "before="):
        [link] = [link for link in page.links if way in link and "Export" not in link]
        page = await visitor.get(link)
        shown.append(page.text.count("actor-"))
    assert shown == [50, 50, 20, 50] and "actor-069." in page.text and "actor-020." in page.text
    # New ones have come meanwhile: the first page has as many as it can, not only those before the page behind it.
    await audit.insert(house.context.database, [AuditEvent("bulk", f"actor-{number}.") for number in range(120, 123)])
    for _ in range(2):
        [link] = [link for link in page.links if "before=" in link]
        page = await visitor.get(link)
    assert page.text.count("actor-") == 50 and "actor-122." in page.text and "actor-073." in page.text
    assert not [link for link in page.links if "before=" in link]


async def test_master_keys_page_both_ways(house: House, visitor: Visitor) -> None:
    for number in range(52):
        await master_keys.create(house.context, TESTER, {"id": f"key-{number:02}", "name": f"Name {number:02}"})
    page = await visitor.get("/admin/master-keys")
    assert page.text.count("Name ") == 50 + 1 and page.links.count("/admin/master-keys?after=key-49") == 1
    page = await visitor.get("/admin/master-keys?after=key-49")
    assert "Name 50" in page.text and "/admin/master-keys?before=key-50" in page.links and "/admin/master-keys" in page.links
    assert "after=" not in "".join(page.links)
    page = await visitor.get("/admin/master-keys?before=key-50")
    assert "Name 00" in page.text and "Name 49" in page.text and "before=" not in "".join(page.links)


@pytest.mark.parametrize("way", ["after", "before"])
async def test_a_search_that_ended_says_how_far_it_came_and_goes_on(
    house: House, visitor: Visitor, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    async def look(*given: object) -> audit.Looked:
        return await audit.look(*given, most=10)  # type: ignore[arg-type]

    monkeypatch.setattr(audit_pages, "look", look)
    events = [AuditEvent("bulk", "needle." if number in (3, 21) else "hay") for number in range(25)]
    await audit.insert(house.context.database, events)
    path, links, found = "/admin/audit?search=needle", 0, 0
    if way == "before":
        path += f"&before={events[0].id}"
    page = await visitor.get(path)
    while onward := [link for link in page.links if f"{way}=" in link and "looked at" in page.text]:
        found, links = found + page.text.count("needle."), links + 1
        page = await visitor.get(onward[0])
    assert (found + page.text.count("needle."), links) == (2, 2)
    assert "Look further back" not in page.text
