"""Nobody gets in without the management token, nobody else uses the session of who did."""

import secrets
from pathlib import Path

import pytest
from stage.house import MANAGEMENT_TOKEN, House, open_house, settings_for
from stage.management import Management
from stage.visitor import Visitor, visiting

from llm_proxy import audit
from llm_proxy.admin import ACTS, PAGES
from llm_proxy.admin.login import safe_next
from llm_proxy.db.sql import Page
from llm_proxy.operators import FAILURES, Operators
from llm_proxy.secret import Secret
from llm_proxy.sessions import IDLE_MS, LONG_MS, SHORT_MS, Sessions


def filled(path: str) -> str:
    """A path with something in its places."""
    return "/admin/" + path.replace("{id}", "x").replace("{provider_id}", "y").replace("{kind}", "csv")


async def test_every_page_asks_a_stranger_to_log_in_and_then_leads_there(stranger: Visitor) -> None:
    for path, _ in PAGES:
        reply = await stranger.get(filled(path), follow=False)
        assert (reply.status, reply.headers["Location"]) == (303, f"/admin/login?next={filled(path)}"), path
    page = await stranger.get("/admin/audit?action=admin.login&after=")
    page = await stranger.send(page, "/admin/login", token=MANAGEMENT_TOKEN)
    assert (page.status, page.path) == (200, "/admin/audit")
    assert page.values["action"] == "admin.login"


async def test_every_act_is_refused_without_a_session_or_its_seal_or_from_elsewhere(
    house: House, visitor: Visitor, api: Management
) -> None:
    async with visiting(house, logged_in=False) as stranger:
        for path, _ in ACTS:
            reply = await stranger.post(filled(path), {}, follow=False)
            assert (reply.status, reply.headers["Location"]) == (303, "/admin/login?next=/admin/"), path
    seal = (await visitor.get("/admin/new-project")).form("/admin/projects").fields["seal"]
    foreign = ("https://evil.example", "null", "", "http://127.0.0.1:1", "file://", "http://[")
    for path, _ in ACTS:
        for origin in foreign:
            reply = await visitor.post(filled(path), {"seal": seal}, origin=origin)
            assert (reply.status, "sent by a page of this site" in reply.text) == (403, True), (path, origin)
        for form in ({}, {"seal": ""}, {"seal": seal[:-1] + "x"}, {"seal": "\udcff".encode(errors="replace").decode()}):
            reply = await visitor.post(filled(path), form)
            assert (reply.status, "not of your present session" in reply.text) == (403, True), path
    reply = await visitor.post("/admin/projects", {"seal": seal, "name": "no"}, **{"Sec-Fetch-Site": "cross-site"})
    assert reply.status == 403
    assert await api.done("GET", "/manage/projects") == {"object": "list", "data": [], "has_more": False, "next": None}
    # Sampled: of one address and reason one a minute.
    await house.context.audit.close()
    assert {event["reason"] for event in await api.audit(action="admin.refuse")} == {"origin_not_allowed", "invalid_form"}


async def test_a_wrong_token_is_refused_beside_the_field_and_soon_not_even_looked_at(house: House, stranger: Visitor) -> None:
    for _ in range(FAILURES):
        page = await stranger.log_in("wrong-" + secrets.token_hex(20))
        assert (page.status, stranger.cookie()) == (401, None)
        assert page.problems["token"].startswith("This is not the management token.")
    page = await stranger.log_in(MANAGEMENT_TOKEN)
    assert (page.status, stranger.cookie()) == (429, None)
    assert "Too many failed attempts" in page.problems["token"]
    await stranger.log_in(MANAGEMENT_TOKEN)
    await house.context.audit.close()
    found = await audit.find(house.context.database, Page(), {"action": "admin.login"})
    reasons = sorted(str(event.reason) for event in found)
    assert reasons == ["invalid_management_token"] * FAILURES + ["too_many_failures"]
    assert {(event.client_ip, event.outcome) for event in found} == {("127.0.0.1", "denied")}


async def test_the_cookie_is_out_of_reach_and_the_login_is_audited(stranger: Visitor, api: Management) -> None:
    page = await stranger.get("/admin/login")
    form = {**page.form("/admin/login").fields, "token": f" {MANAGEMENT_TOKEN}\n"}
    reply = await stranger.post("/admin/login", form, follow=False)
    [written] = [line for line in reply.headers.getall("Set-Cookie") if line.startswith("llm_proxy_session=")]
    attributes = {part.strip().lower() for part in written.split(";")[1:]}
    assert attributes == {"httponly", "samesite=strict", "path=/admin"}
    assert len(stranger.cookie().value) >= 43
    [event] = await api.audit(action="admin.login")
    assert (event["outcome"], event["client_ip"], event["details"]) == ("success", "127.0.0.1", {"long": False})
    # The name of the operator is the one under which the API audits the same token.
    [page] = [one for one in await api.audit() if one["action"] == "admin.login"]
    await api.project()
    assert page["actor"] == (await api.audit(action="project.create"))[0]["actor"]


async def test_the_login_takes_only_its_own_form(house: House, stranger: Visitor, api: Management) -> None:
    page = await stranger.get("/admin/login")
    form = {**page.form("/admin/login").fields, "token": MANAGEMENT_TOKEN}
    for origin in ("https://evil.example", "null", "", "http://127.0.0.1:1"):
        reply = await stranger.post("/admin/login", form, origin=origin)
        assert (reply.status, "sent by a page of this site" in reply.text) == (403, True), origin
    reply = await stranger.post("/admin/login", form, **{"Sec-Fetch-Site": "same-site"})
    assert reply.status == 403
    # The seal of another browser's form, or none, or a good one without the cookie that it follows from.
    async with visiting(house, logged_in=False) as other:
        seal = (await other.get("/admin/login")).form("/admin/login").fields["seal"]
        for given in ({**form, "seal": seal}, {**form, "seal": ""}, {"token": MANAGEMENT_TOKEN}):
            reply = await stranger.post("/admin/login", given)
            assert (reply.status, "too old" in reply.text) == (403, True)
        other.session.cookie_jar.clear()
        reply = await other.post("/admin/login", form)
        assert (reply.status, "too old" in reply.text) == (403, True)
        assert other.cookie() is stranger.cookie() is None
    assert await api.audit(action="admin.login") == []
    await house.context.audit.close()
    found = await api.audit(action="admin.refuse")
    assert {(event["reason"], event["outcome"], event["client_ip"], event["path"]) for event in found} == {
        (reason, "denied", "127.0.0.1", "/admin/login") for reason in ("origin_not_allowed", "invalid_form")
    }


async def test_a_long_session_is_asked_for(stranger: Visitor) -> None:
    await stranger.log_in(long="on")
    assert int(stranger.cookie()["max-age"]) == 30 * 24 * 60 * 60


async def test_logging_in_never_takes_up_a_session_that_is_there(visitor: Visitor, stranger: Visitor, api: Management) -> None:
    planted = visitor.cookie().value
    page = await stranger.get("/admin/login")
    form = {**page.form("/admin/login").fields, "token": MANAGEMENT_TOKEN}
    login = f"llm_proxy_login={stranger.cookie('llm_proxy_login').value}"
    for cookie in (f"{login}; llm_proxy_session={planted}", f"{login}; llm_proxy_session=made-up"):
        reply = await stranger.post("/admin/login", form, follow=False, Cookie=cookie)
        [written] = [line for line in reply.headers.getall("Set-Cookie") if line.startswith("llm_proxy_session=")]
        assert planted not in written and "made-up" not in written
    assert (await visitor.get("/admin/projects")).path == "/admin/login", "who planted it is out"
    # The planted one, then the one that this browser got in its place.
    assert len(await api.audit(action="admin.logout")) == 2 and len(await api.audit(action="admin.login")) == 3
    reply = await stranger.post("/admin/login", {"token": MANAGEMENT_TOKEN, "seal": "old"}, follow=False)
    assert (reply.status, "too old" in reply.text) == (403, True)


async def test_logging_out_ends_the_session_wherever_its_cookie_is(house: House, visitor: Visitor, api: Management) -> None:
    id = visitor.cookie().value
    page = await visitor.send(await visitor.get("/admin/projects"), "/admin/logout")
    assert (page.path, visitor.cookie()) == ("/admin/login", None)
    visitor.session.cookie_jar.update_cookies({"llm_proxy_session": id})
    assert (await visitor.get("/admin/projects")).path == "/admin/login"
    [event] = await api.audit(action="admin.logout")
    assert (event["outcome"], event["client_ip"]) == ("success", "127.0.0.1")
    assert event["actor"] == (await api.audit(action="admin.login"))[0]["actor"]
    assert (await visitor.get("/admin/logout")).status == 405, "a link must not log anyone out"


async def test_sessions_end_by_standing_idle_by_age_and_with_their_token(house: House, visitor: Visitor, api: Management) -> None:
    context, tell = house.context, house.context.sessions._on_end
    began = context.sessions._now()
    now = [began]
    context.sessions = Sessions(context.database, context.operators.fingerprints, tell, lambda: now[0])
    now[0] = began + IDLE_MS - 1000
    assert (await visitor.get("/admin/projects")).path == "/admin/projects"
    now[0] += IDLE_MS + 1000
    assert (await visitor.get("/admin/projects")).path == "/admin/login"
    await visitor.log_in()
    for _ in range(SHORT_MS // IDLE_MS * 2):
        now[0] += IDLE_MS // 2
        last = await visitor.get("/admin/health")
    assert last.path == "/admin/login"
    # A long one may stand idle, and ends by age alone.
    await visitor.log_in(long="on")
    now[0] += LONG_MS - 1000
    assert (await visitor.get("/admin/health")).path == "/admin/health"
    now[0] += 1000
    assert (await visitor.get("/admin/health")).path == "/admin/login"
    await visitor.log_in()
    assert (await visitor.get("/admin/health")).path == "/admin/health"
    others = Operators([Secret("another-token-" + "x" * 32)])
    context.sessions = Sessions(context.database, others.fingerprints, tell, lambda: now[0])
    assert (await visitor.get("/admin/health")).path == "/admin/login"
    await context.audit.close()
    found = reversed(await api.audit(action="admin.session_end"))
    [actor] = {event["actor"] for event in await api.audit(action="admin.login")}
    told = [(event["reason"], event["actor"], event["client_ip"]) for event in found]
    reasons = ("idle", "expired", "expired", "management_token_changed")
    assert told == [(reason, actor, "127.0.0.1") for reason in reasons]


async def test_behind_tls_cookies_go_over_nothing_else(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, TRUSTED_PROXIES="127.0.0.1/32")
    async with open_house(settings) as house, visiting(house, logged_in=False) as browser:
        behind = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "192.0.2.9"}
        page = await browser.get("/admin/login", **behind)
        cookie = page.headers["Set-Cookie"]
        assert cookie.startswith("__Secure-llm_proxy_login=") and "Secure" in cookie
        form = {**page.form("/admin/login").fields, "token": MANAGEMENT_TOKEN}
        value = cookie.partition(";")[0]
        origin = browser.url.replace("http:", "https:")
        for wrong in (browser.url, origin + "0"):
            reply = await browser.post("/admin/login", form, follow=False, origin=wrong, Cookie=value, **behind)
            assert reply.status == 403
        reply = await browser.post("/admin/login", form, follow=False, origin=origin, Cookie=value, **behind)
        [session] = [line for line in reply.headers.getall("Set-Cookie") if "session" in line]
        assert session.startswith("__Secure-llm_proxy_session=")
        attributes = {part.strip().lower() for part in session.split(";")[1:]}
        assert attributes == {"secure", "httponly", "samesite=strict", "path=/admin"}
        [event] = await audit.find(house.context.database, Page(), {"action": "admin.login"})
        assert event.client_ip == "192.0.2.9", "the browser's address, not that of the proxy in between"
        # Without TLS the same session is not looked for under that name.
        reply = await browser.get("/admin/projects", follow=False, Cookie=session.partition(";")[0])
        assert reply.status == 303
        reply = await browser.get("/admin/projects", follow=False, Cookie=session.partition(";")[0], **behind)
        assert reply.status == 200


@pytest.mark.parametrize("several", ["first", "second"])
async def test_each_of_several_management_tokens_opens(tmp_path: Path, several: str) -> None:
    tokens = {"first": "first-" + "a1" * 20, "second": "second-" + "b2" * 20}
    settings = settings_for(tmp_path, MANAGEMENT_TOKEN=",".join(tokens.values()))
    async with open_house(settings) as house, visiting(house, logged_in=False) as browser:
        assert (await browser.log_in(tokens[several])).path == "/admin/dashboard"


@pytest.mark.parametrize(
    ("wanted", "path"),
    [
        ("/admin/tokens?status=active", "/admin/tokens?status=active"),
        ("/admin/", "/admin/"),
        ("https://evil.example/", "/admin/"),
        ("//evil.example/admin/", "/admin/"),
        ("/admin/../x y", "/admin/"),
        ("/admin/\\evil.example", "/admin/"),
        ("/admin/x\r\nSet-Cookie: a=b", "/admin/"),
        ("/admin/login?next=/admin/login", "/admin/"),
        ("", "/admin/"),
    ],
)
def test_after_logging_in_only_pages_of_this_site_are_gone_to(wanted: str, path: str) -> None:
    assert safe_next(wanted) == path
