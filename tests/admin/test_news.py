"""News are read once, in their own session only, and mean nothing to who steals the cookie's value."""

from stage.house import House
from stage.visitor import Visitor, visiting

from llm_proxy.admin import cookies
from llm_proxy.admin.news import News, seal, unseal


def test_news_come_back_in_their_session_only() -> None:
    news = News("It was done: ü <b>", is_bad=True, secret="sk-lp-secret")
    sealed = seal(news, "one")
    assert unseal(sealed, "one") == news
    assert unseal(sealed, "two") is None
    assert seal(news, "one") != sealed
    for damaged in ("", "x", "%", sealed[:-4], sealed[:20] + "AAAA" + sealed[24:], "ü"):
        assert unseal(damaged, "one") is None
    assert len(seal(News("x" * 100_000, secret="s" * 512), "one")) < 4096


async def test_news_survive_one_redirect_and_no_reload(house: House, visitor: Visitor) -> None:
    page = await visitor.send(await visitor.get("/admin/new-project"), "/admin/projects", name="once")
    assert "was made" in page.text
    assert visitor.cookie(cookies.NEWS) is None
    assert "was made" not in (await visitor.get(page.path)).text


async def test_news_of_one_are_not_shown_to_another(house: House, visitor: Visitor) -> None:
    form = (await visitor.get("/admin/new-project")).form("/admin/projects").fields
    reply = await visitor.post("/admin/projects", {**form, "name": "mine"}, follow=False)
    assert reply.status == 303
    async with visiting(house) as other:
        cookie = f"llm_proxy_session={other.cookie().value}; llm_proxy_news={visitor.cookie(cookies.NEWS).value}"
        assert "was made" not in (await other.get("/admin/projects", Cookie=cookie)).text
