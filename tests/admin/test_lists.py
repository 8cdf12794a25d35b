"""Lists page by key, with their filters in the URL."""

from stage.house import TESTER, House
from stage.visitor import Visitor

from llm_proxy.acts import projects


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
    for search, found in (("0%25", True), ("r_", True), ("t_0", False), ("fleet%25", False)):
        page = await visitor.get(f"/admin/projects?search={search}&state=")
        assert ("No project fits" not in page.text) == found, search
        assert page.values["search"] == search.replace("%25", "%")
