"""A real browser shows every page without a complaint, at both widths, light and dark; people can read and use it."""

import json
from pathlib import Path
from typing import Any

import pytest
from stage.asking import BODY, ask, call
from stage.chromium import MISSING, PATH, Watched, open_chromium
from stage.house import MANAGEMENT_TOKEN, TESTER, House
from stage.provider import ScriptedProvider
from stage.secrets import used

from llm_proxy.acts import master_keys, providers, tokens
from llm_proxy.admin import PAGES
from llm_proxy.clock import MINUTE_MS
from llm_proxy.db.sql import Page
from llm_proxy.events import Event
from llm_proxy.events.dead_letters import FILE, DeadLetters
from llm_proxy.tokens import find as find_tokens
from llm_proxy.usage import Usage

# The one skip that the specification allows; scripts/test says it too, and .ci/run installs what is missing.
pytestmark = pytest.mark.skipif(not PATH.exists(), reason=MISSING)

CHECKS = (Path(__file__).parent / "checks.js").read_text()
KEYBOARD = (Path(__file__).parent / "keyboard.js").read_text()
LOOKS = [(width, scheme) for width in (360, 1440) for scheme in ("light", "dark")]


async def furnish(house: House) -> dict[str, str]:
    """Something on every page, long names among it; the ids by the paths' places."""
    context = house.context
    project = await house.project("https://api.example.com/v1", name="Support " + "without_a_break" * 12)
    [own] = await providers.of_project(context, project)
    await providers.create(context, TESTER, None, {"id": "pool", "api_key": "sk-0123456789abcdef", "weight": 0})
    for status in ("active", "revoked"):
        made, _ = await tokens.create(context, TESTER, {"project_id": project, "name": status, "max_requests": 1_000_000})
    await tokens.revoke(context, TESTER, made.id)
    await master_keys.create(context, TESTER, {"name": "batch", "id": "master"})
    call = Event("r", None, "192.0.2.1", "client/9 " * 9, "POST", "/v1/" + "long/" * 60, request_body="{}" * 9999)
    call.token_id, call.token_name, call.project_id, call.project_name = made.id, "active", project, "x" * 200
    call.model, call.provider, call.provider_type = "m" * 256, own.id, "openai"
    call.outcome, call.status, call.code = "refused", 403, "model_not_allowed"
    call.usage, call.attempts = Usage(10**9, 10**9, 10**9, source="provider"), 2
    call.failed_attempts = [{"provider": own.id, "status": 500, "code": None, "duration": 1.5}]
    context.bus.publish(call)
    letters = DeadLetters(Path(context.settings.event_dir) / FILE)
    for sink, reason in (("lunary", "refused " * 30), ("lunary", "400"), ("file", "gone")):
        await letters.add(sink, reason, event={"id": "0199a1b2-0000-7000-8000-000000000001", "model": "m" * 300})
    [letter, *_] = letters.letters()
    for minutes, status in ((0, 200), (1, 500), (30, 200)):
        event = Event("r", None, None, None, "POST", "/", status=status, project_id=project, provider="pool", model="long_" * 50)
        event.started_at -= minutes * MINUTE_MS
        context.history.count(event)
    row = await context.database.fetch_one("SELECT id FROM audit_events WHERE action = 'token.create' LIMIT 1")
    assert row
    return {
        "projects": project,
        "tokens": made.id,
        "master-keys": "master",
        "audit": row["id"],
        "requests": call.id,
        "own": own.id,
        "events": letter.id,
    }


def filled(path: str, ids: dict[str, str]) -> str:
    """A path with real ids in its places."""
    provider = ids["own"] if "/keys/" in path else "pool"
    return path.replace("{provider_id}", provider).replace("{id}", ids.get(path.partition("/")[0], ""))


async def test_every_page_can_be_read_and_used_by_everybody(house: House) -> None:
    ids, site = await furnish(house), house.sites.admin
    assert site
    async with open_chromium() as browser:
        tab = Watched(await browser.new_page(timezone_id="Europe/Berlin", locale="en-GB"), site)
        found: dict[str, Any] = {}
        await tab.open("login")
        found |= await looked_at(tab, "login")
        found |= await tabbed_through(tab, "login")
        await tab.log_in()
        for path in [filled(path, ids) for path, _ in PAGES if not path.startswith("audit-export")]:
            await tab.open(path)
            found |= await looked_at(tab, path)
            found |= await tabbed_through(tab, path)
    assert found == {}, json.dumps(found, indent=1)
    assert tab.complaints == []


async def looked_at(tab: Watched, path: str) -> dict[str, Any]:
    """What is wrong with a page, by how it is looked at."""
    found = {}
    for width, scheme in LOOKS:
        await tab.page.set_viewport_size({"width": width, "height": 800})
        # Colours that are on their way to others have no contrast of their own.
        await tab.page.emulate_media(color_scheme=scheme, reduced_motion="reduce")  # type: ignore[arg-type]
        if wrong := await tab.page.evaluate(CHECKS):
            found[f"{path} at {width} px, {scheme}"] = wrong
    return found


async def tabbed_through(tab: Watched, path: str) -> dict[str, Any]:
    """What of a page the Tab key does not reach, or not visibly."""
    for _ in range(await tab.page.evaluate(f"({KEYBOARD}).begin()")):
        await tab.page.keyboard.press("Tab")
    wrong = await tab.page.evaluate(f"({KEYBOARD}).end()")
    return {f"{path} by keyboard": wrong} if wrong else {}


async def test_a_token_is_made_copied_and_not_made_again_by_a_reload(house: House) -> None:
    project, site = await house.project("https://api.example.com/v1"), house.sites.admin
    assert site
    async with open_chromium() as browser:
        context = await browser.new_context(timezone_id="Europe/Berlin", locale="en-GB")
        await context.grant_permissions(["clipboard-read", "clipboard-write"])
        tab = Watched(await context.new_page(), site)
        await tab.log_in()
        await tab.open(f"new-token?project_id={project}")
        # From the top of the page by keyboard alone.
        await tab.page.keyboard.press("Tab")
        assert await tab.page.evaluate("document.activeElement.textContent") == "Skip to the content"
        await tab.page.keyboard.press("Enter")
        await tab.page.focus("#name")
        assert await tab.page.evaluate("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        await tab.page.keyboard.type("app")
        await tab.page.keyboard.press("Enter")
        await tab.page.wait_for_selector("#secret")
        secret = used(await tab.page.input_value("#secret"))
        assert await tabbed_through(tab, "the new secret") == {}
        await tab.page.click("button[data-copy=secret]")
        await tab.page.wait_for_selector("text=Copied")
        assert await tab.page.evaluate("navigator.clipboard.readText()") == secret
        time = tab.page.locator("time").first
        assert "UTC" in (await time.get_attribute("title") or "") and "UTC" not in await time.inner_text()
        await tab.page.reload()
        assert await tab.page.locator("#secret").count() == 0
        found = await find_tokens(house.context.database, Page())
        assert [token.name for token in found] == ["app"]
        # A page that only an act shows, on a phone, where the navigation is a menu.
        await tab.page.set_viewport_size({"width": 360, "height": 800})
        await tab.open("cache")
        await tab.page.click("text=Purge all…")
        await tab.page.wait_for_selector("text=Purge the cache?")
        assert await tabbed_through(tab, "the preview of a purge") == {}
        assert await tab.page.locator(".menu").get_by_role("link", name="Health").is_visible()
        # Another site's page cannot send a form here, even though this browser is logged in.
        other = await context.new_page()
        await other.goto("about:blank")
        await other.set_content(
            f'<form method="post" action="{site}/admin/projects"><input name="name" value="no"><button></form>'
        )
        async with other.expect_navigation():
            await other.click("button")
        assert "That did not work" in await other.inner_text("main")
        await tab.page.click("text=Log out")
        assert tab.page.url == f"{site}/admin/login"
    assert tab.complaints == []


async def test_an_open_dashboard_shows_a_call_and_leaves_alone_what_is_read(house: House, provider: ScriptedProvider) -> None:
    site, token = house.sites.admin, await house.token_for(provider.url)
    assert site
    async with open_chromium() as browser:
        tab = Watched(await browser.new_page(timezone_id="Europe/Berlin", locale="en-GB"), site)
        await tab.log_in()
        await ask(house.url, call(token))
        chart = tab.page.locator("#charts svg").first
        await chart.wait_for(timeout=3000)
        await tab.page.click("#charts summary")
        await tab.page.evaluate("document.querySelector('#models tbody td').focusHere = true")
        said = "[...document.querySelectorAll('#charts svg title')].map((title) => title.textContent).join()"
        assert "answered 1" in await tab.page.evaluate(said) and "UTC" not in await tab.page.evaluate(said)
        await ask(house.url, call(token, body=BODY.replace(b"gpt-4o", b"<b>evil</b>")))
        await tab.page.locator("#models td", has_text="<b>evil</b>").wait_for(timeout=3000)
        assert await tab.page.evaluate("document.querySelector('#charts details').open"), "a table that was opened stays open"
        assert await tab.page.evaluate("document.querySelector('#models tbody td').focusHere"), "only what differs is touched"
        assert await tab.page.locator("#models tr").count() == 3
    assert tab.complaints == []


async def test_a_dashboard_that_nobody_sees_holds_no_stream(house: House) -> None:
    site = house.sites.admin
    assert site
    turn = "hidden => [document.__defineGetter__('hidden', () => hidden), document.dispatchEvent(new Event('visibilitychange'))]"
    async with open_chromium() as browser:
        tab = Watched(await browser.new_page(), site)
        async with tab.page.expect_response("**/dashboard/live?*"):
            await tab.log_in()
        async with tab.page.expect_event("requestfailed", lambda request: "/live" in request.url, timeout=3000):
            await tab.page.evaluate(turn, True)
        async with tab.page.expect_response("**/dashboard/live?*", timeout=3000):
            await tab.page.evaluate(turn, False)
    assert tab.complaints == []


async def test_a_dashboard_that_is_told_no_more_says_so(house: House) -> None:
    site = house.sites.admin
    assert site
    async with open_chromium() as browser:
        page = await browser.new_page()
        await Watched(page, site).log_in()
        said = page.get_by_text("not live any more")
        assert not await said.is_visible()
        # As it is for a session that has ended, though without the seconds after which a browser tries again.
        await page.route("**/dashboard/live?*", lambda route: route.fulfill(body="Log in", content_type="text/html"))
        await page.reload()
        await said.wait_for(timeout=3000)


async def test_everything_works_without_scripts(house: House) -> None:
    site = house.sites.admin
    assert site
    async with open_chromium() as browser:
        tab = Watched(await browser.new_page(java_script_enabled=False), site)
        await tab.open("login")
        await tab.page.fill("#token", MANAGEMENT_TOKEN)
        await tab.page.press("#token", "Enter")
        await tab.open("new-project")
        await tab.page.fill("#name", "plain")
        await tab.page.click("text=Make the project")
        await tab.page.click("text=New token")
        await tab.page.click("text=Make the token")
        used(await tab.page.input_value("#secret"))
        assert not await tab.page.locator("button[data-copy=secret]").is_visible()
        assert "UTC" in await tab.page.locator("time").first.inner_text()
        await tab.page.click("text=Revoke…")
        await tab.page.click("button:has-text('Revoke')")
        assert "The token is revoked" in await tab.page.inner_text("main")
    assert tab.complaints == []
