"""The newest requests are listed, filtered, shown whole; running ones are ended, with and without scripts."""

import asyncio
import time
from pathlib import Path

import pytest
from stage.asking import ask, call, event_of
from stage.calls import last_words, stream_without_end, streaming, until
from stage.chromium import MISSING, PATH, Watched, open_chromium
from stage.house import TESTER, House, open_house, settings_for
from stage.management import Management
from stage.provider import ScriptedProvider, answer
from stage.scripts import resets, sends
from stage.secrets import used
from stage.visitor import Visitor, visiting

from llm_proxy import tokens as stored_tokens
from llm_proxy.acts import master_keys, providers, tokens
from llm_proxy.admin.requests import MOST_CHOICES, fitting
from llm_proxy.db.sql import Page
from llm_proxy.events import Event
from llm_proxy.events.recent import KEPT, Filter

USAGE = b'"usage": {"prompt_tokens": 1200, "completion_tokens": 34, "total_tokens": 1234}'
OK = sends(answer(b'{"model": "gpt-4o-2024", ' + USAGE + b"}"))


def ids_in(links: list[str]) -> list[str]:
    """The ids of the requests that a page links, in order."""
    return [link.rpartition("/")[2] for link in links if link.startswith("/admin/requests/")]


async def test_calls_are_listed_and_filtered(house: House, visitor: Visitor, provider: ScriptedProvider) -> None:
    empty = await visitor.get("/admin/requests")
    assert "No call has ended yet" in empty.text and "This instance's list" in empty.text
    token, provider.script = await house.token_for(provider.url, name="web"), OK
    await ask(house.url, call(token))
    await ask(house.url, call("sk-lp-unknown"))
    provider.script = resets()
    await ask(house.url, call(token, body=b'{"model": "o1"}'))
    served, refused, failed = [await event_of(house, number) for number in range(3)]
    page = await visitor.get("/admin/requests")
    assert ids_in(page.links) == [failed.id, refused.id, served.id]
    for text in ("200 completed", "401 refused invalid_token", "502 upstream failed", "web", "gpt-4o", "1 234"):
        assert text in page.text
    assert page.form("/admin/requests").fields["project_id"] == ""
    for query, wanted in (
        (f"project_id={served.project_id}", [failed, served]),
        (f"token_id={served.token_id}&status=2xx", [served]),
        ("status=4xx", [refused]),
        ("outcome=upstream_failed", [failed]),
        (f"provider={served.provider}", [failed, served]),
        ("model=o1", [failed]),
        (f"text={refused.request_id.upper()}", [refused]),
        (f"after={failed.id}", [refused, served]),
        (f"after={refused.id}&status=2xx", [served]),
    ):
        found = await visitor.get(f"/admin/requests?{query}")
        assert ids_in(found.links) == [event.id for event in wanted], query
    nothing = await visitor.get("/admin/requests?model=gone&text=x")
    assert "No call that is kept fits" in nothing.text
    assert nothing.form("/admin/requests").fields["model"] == "gone", "a filter stays chosen, though no call has it any more"
    idle = await house.project(provider.url, name="Idle")
    [link] = [link for link in (await visitor.get(f"/admin/projects/{idle}")).links if link.startswith("/admin/requests?")]
    of_idle = await visitor.get(link)
    assert of_idle.form("/admin/requests").fields["project_id"] == idle and f'value="{idle}" selected>Idle<' in of_idle.source
    await house.token(idle, name="quiet")
    [made] = [token for token in await stored_tokens.find(house.context.database, Page()) if token.name == "quiet"]
    [link] = [link for link in (await visitor.get(f"/admin/tokens/{made.id}")).links if link.startswith("/admin/requests?")]
    assert "selected>quiet · Idle<" in (await visitor.get(link)).source


def test_pages_follow_each_other_by_key() -> None:
    events = [Event("r", None, None, None, "GET", "/", id=f"e{number}") for number in range(5)]
    seen, after = list[str](), None
    while found := fitting(events, Page(2, after), Filter()):
        seen += [event.id for event in found[:2]]
        after = seen[-1]
    assert seen == [f"e{number}" for number in range(5)]
    assert fitting(events, Page(2, "gone"), Filter()) == []


async def test_a_thousand_are_kept_and_choices_are_bounded(house: House, visitor: Visitor) -> None:
    for number in range(KEPT + 1):
        house.context.bus.publish(Event(f"r{number}", None, None, None, "GET", "/", model=f"m{number}"))
    first, second = house.events[:2]
    page = await visitor.get("/admin/requests")
    assert page.source.count('<option value="m') == MOST_CHOICES
    assert (await visitor.get(f"/admin/requests/{first.id}")).status == 404
    assert (await visitor.get(f"/admin/requests/{second.id}")).status == 200
    pages, links = 1, ids_in(page.links)
    while following := [link for link in page.links if "after=" in link]:
        page, pages = await visitor.get(following[-1]), pages + 1
        links += ids_in(page.links)
    assert links == [event.id for event in reversed(house.events[1:])] and pages == KEPT / 50


async def test_one_call_is_shown_whole(tmp_path: Path, provider: ScriptedProvider) -> None:
    async with open_house(settings_for(tmp_path, OBSERVABILITY_CAPTURE="bodies")) as house, visiting(house) as visitor:
        project = await house.project(provider.url, name="Support")
        token, provider.script = await house.token(project, name="web"), OK
        await ask(house.url, call(token, b"User-Agent: client/9", b"X-Correlation-ID: c-1"))
        event = await event_of(house)
        page = await visitor.get(f"/admin/requests/{event.id}")
        for text in ("200 completed", "gpt-4o-2024", "client/9", "c-1", "1 200", "the provider", "127.0.0.1", event.request_id):
            assert text in page.text
        assert "&#34;content&#34;:&#34;hello&#34;" in page.source and "&#34;prompt_tokens&#34;: 1200" in page.source
        assert token not in page.source
        for link in (
            f"/admin/projects/{project}",
            f"/admin/tokens/{event.token_id}",
            f"/admin/projects/{project}/keys/{event.provider}",
        ):
            assert link in page.links and (await visitor.get(link)).status == 200
        await house.context.database.execute("DELETE FROM providers")
        later = await visitor.get(f"/admin/requests/{event.id}")
        assert "(deleted)" in later.text and not [link for link in later.links if "/keys/" in link]
        missing = await visitor.get("/admin/requests/0199a1b2-0000-7000-8000-000000000001")
        assert missing.status == 404 and "keeps the last 1000" in missing.text


async def test_a_running_stream_is_shown_and_ended_by_the_form(
    house: House, visitor: Visitor, api: Management, provider: ScriptedProvider
) -> None:
    token = await house.token_for(provider.url, name="web")
    provider.script = stream_without_end
    async with asyncio.timeout(10), streaming(house, token) as connection:
        [running] = house.context.running.longest()
        page = await visitor.get("/admin/requests?model=gpt-4o")
        assert ids_in(page.links)[0] == running.event.id and "50 B" in page.text
        whole = await visitor.get(f"/admin/requests/{running.event.id}")
        assert "running" in whole.text and f"/admin/tokens/{running.token_id}/revoke" in whole.links
        form = page.form("/admin/requests/end")
        began = time.monotonic()
        after = await visitor.post("/admin/requests/end", form.fields, follow=False)
        assert (after.status, after.headers["Location"]) == (303, "/admin/requests?model=gpt-4o")
        assert await last_words(connection) == "ended_by_operator"
        assert time.monotonic() - began < 1
    assert "an operator ended it" in (await visitor.get("/admin/requests")).text
    event = await event_of(house)
    assert "200 refused ended_by_operator" in (await visitor.get("/admin/requests")).text and event.id == running.event.id
    again = await visitor.post("/admin/requests/end", form.fields)
    assert again.path == "/admin/requests" and "had ended already" in again.text
    assert (await visitor.post("/admin/requests/end", {"id": running.event.id})).status == 403, "the form is sealed"
    for outcome in ("success", "failure"):
        assert len(await api.audited(action="call.end", outcome=outcome)) == 1


async def test_its_token_can_be_taken_from_it(house: House, visitor: Visitor, provider: ScriptedProvider) -> None:
    project, provider.script = await house.project(provider.url), stream_without_end
    made, secret = await tokens.create(house.context, TESTER, {"project_id": project})
    async with asyncio.timeout(10), streaming(house, secret.reveal()) as connection:
        page = await visitor.get("/admin/requests")
        link = f"/admin/tokens/{made.id}/revoke"
        assert link in page.links
        began = time.monotonic()
        await visitor.send(await visitor.get(link), link)
        assert await last_words(connection) == "token_inactive"
        assert time.monotonic() - began < 1


async def test_a_master_key_leads_to_its_own_page(house: House, visitor: Visitor, provider: ScriptedProvider) -> None:
    key, secret = await master_keys.create(house.context, TESTER, {"name": "batch"})
    pooled = {"id": "pool", "api_key": used("sk-" + "p" * 40), "api_base": provider.url}
    await providers.create(house.context, TESTER, None, pooled)
    provider.script = stream_without_end
    async with asyncio.timeout(10), streaming(house, used(secret.reveal())):
        assert f"/admin/master-keys/{key.id}" in (await visitor.get("/admin/requests")).links
    await until(lambda: house.events)
    assert f"/admin/master-keys/{key.id}" in (await visitor.get(f"/admin/requests/{house.events[0].id}")).links


async def test_where_events_are_not_wanted_the_page_says_so(tmp_path: Path) -> None:
    async with open_house(settings_for(tmp_path, OBSERVABILITY_ENABLED="false")) as house, visiting(house) as visitor:
        await ask(house.url, call("sk-lp-unknown"))
        await event_of(house)
        page = await visitor.get("/admin/requests")
        assert "OBSERVABILITY_ENABLED is false" in page.text and "401" not in page.text


@pytest.mark.skipif(not PATH.exists(), reason=MISSING)
async def test_in_a_browser_rows_come_by_themselves_and_acts_work(house: House, provider: ScriptedProvider) -> None:
    token, site = await house.token_for(provider.url, name="<b>web</b>"), house.sites.admin
    assert site
    async with open_chromium() as browser:
        tab = Watched(await browser.new_page(), site)
        await tab.log_in()
        await tab.open("requests")
        page = tab.page
        await page.wait_for_selector("#live:text('Live')")
        provider.script = OK
        await ask(house.url, call(token))
        served = await event_of(house)
        row = page.locator(f"[data-ended] tr[data-id='{served.id}']")
        await row.wait_for()
        assert "200 completed" in await row.inner_text() and "<b>web</b>" in await row.inner_text()
        time = row.locator("time")
        assert "UTC" in (await time.get_attribute("title") or "") and "UTC" not in await time.inner_text()
        provider.script = stream_without_end
        async with streaming(house, token) as connection:
            runs = page.locator("[data-running] tbody tr")
            await runs.wait_for()
            before = await runs.locator("[data-text=elapsed]").inner_text()
            await page.wait_for_function(
                "before => document.querySelector('[data-running] [data-text=elapsed]').textContent !== before", arg=before
            )
            # It is the same row all the time, so a button keeps the focus that a person gave it.
            await runs.locator("button").click()
            assert await last_words(connection) == "ended_by_operator"
        await page.wait_for_selector("text=The call ends now")
        await page.wait_for_selector("[data-idle]:visible")
        await page.wait_for_selector("#live:text('Live')")
        ended = page.locator("[data-ended] tbody tr").first
        await ended.locator("text=ended_by_operator").wait_for()
        await page.click("#pause")
        provider.script = OK
        await ask(house.url, call(token))
        paused = await event_of(house, 2)
        assert await page.locator(f"[data-id='{paused.id}']").count() == 0
        await page.click("#pause")
        await page.locator(f"[data-id='{paused.id}']").wait_for()
        await page.click(f"[data-id='{paused.id}'] time")
        await page.wait_for_url(f"**/admin/requests/{paused.id}")
    assert tab.complaints == []
