"""The playground in a real browser: answers are seen as they stream, Stop ends the provider's call."""

import asyncio
import json

import pytest
from playwright.async_api import expect
from stage.chromium import MISSING, PATH, Watched, open_chromium
from stage.house import MANAGEMENT_TOKEN, TESTER, House
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, answer, chunk
from stage.scripts import holds, resets, sends

from llm_proxy.acts import providers

pytestmark = pytest.mark.skipif(not PATH.exists(), reason=MISSING)

EVIL = "<script>alert(1)</script><img src=x onerror=alert(2)>"


def event(text: str) -> bytes:
    """A piece of an answer."""
    return chunk(b"data: %b\n\n" % json.dumps({"choices": [{"delta": {"content": text}}]}).encode())


DONE = chunk(b'data: {"choices":[],"usage":{"prompt_tokens":12,"completion_tokens":7,"total_tokens":19}}\n\ndata: [DONE]\n\n')


async def test_answers_stream_stop_and_fail_in_place(house: House, provider: ScriptedProvider) -> None:
    site, go_on = house.sites.admin, asyncio.Event()
    assert site
    await house.project(provider.url, name="Support")
    mapped = await house.project(provider.url, name="Mapped")
    [key] = await providers.of_project(house.context, mapped)
    await providers.update(house.context, TESTER, mapped, key.id, {"model_mapping": {"fast": "gpt-4o-mini"}})

    async def in_two_pieces(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, event("Hello, " + EVIL))
        await go_on.wait()
        await exchange.send(event(" and goodbye."), DONE, END)

    provider.script = in_two_pieces
    async with open_chromium() as browser:
        tab = Watched(await browser.new_page(timezone_id="Europe/Berlin", locale="en-GB"), site)
        await tab.log_in()
        await tab.open("chat")
        # Another project has other models to offer.
        offered = tab.page.locator("#models option")
        project = tab.page.get_by_label("Project", exact=True)
        await project.fill("Mapped")
        await project.blur()
        await expect(offered).to_have_attribute("value", "fast")
        await project.fill("supp")
        await project.blur()
        await expect(offered).to_have_attribute("value", "gpt-4o-mini")
        page, said = tab.page, tab.page.locator(".said .text")
        await page.fill("#question", "Greet me")
        await page.keyboard.press("Control+Enter")
        # The first piece is there while the second is still to come.
        await expect(said).to_have_text(["Greet me", "Hello, " + EVIL])
        await expect(page.get_by_role("button", name="Stop")).to_be_visible()
        go_on.set()
        await expect(said.last).to_have_text(f"Hello, {EVIL} and goodbye.")
        await expect(page.locator(".measured")).to_contain_text("12 in, 7 out")
        await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        await page.get_by_text("Raw exchange").click()
        await expect(page.locator(".raw pre").first).to_contain_text("Authorization: Bearer (hidden)")
        # Stop, which ends the provider's call; what has come stays in the conversation.
        provider.script = holds(STREAM_HEAD, event("Once upon"))
        await page.fill("#question", "A story")
        await page.get_by_role("button", name="Send").click()
        await expect(said.last).to_have_text("Once upon")
        exchange = provider.exchanges[-1]
        await page.get_by_role("button", name="Stop").click()
        await asyncio.wait_for(exchange.closed.wait(), 2)
        await expect(page.get_by_role("alert")).to_contain_text("Stopped.")
        # An answer that breaks off is marked, and its question can be sent again.
        provider.script = resets(STREAM_HEAD, event("Half"))
        await page.fill("#question", "And then?")
        await page.keyboard.press("Control+Enter")
        await expect(page.get_by_role("alert")).to_contain_text("upstream_invalid_response")
        await expect(page.locator(".broken .text")).to_have_text("Half")
        assert await page.input_value("#question") == "And then?"
        provider.script = sends(
            answer(b'{"error":{"message":"No such model.","code":"model_not_found"}}', status=b"404 Not Found")
        )
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_role("alert")).to_contain_text("No such model.")
        await expect(said).to_have_count(5)
        messages = [one["content"] for one in json.loads(provider.exchanges[-1].body)["messages"]]
        assert messages == ["Greet me", f"Hello, {EVIL} and goodbye.", "A story", "Once upon", "And then?"]
        # A new conversation ends an answer under way, and has nothing of it.
        provider.script = holds(STREAM_HEAD, event("Never"))
        await page.get_by_role("button", name="Send").click()
        await expect(said.last).to_have_text("Never")
        await page.get_by_role("link", name="New conversation").click()
        await asyncio.wait_for(provider.exchanges[-1].closed.wait(), 2)
        await expect(page.get_by_role("button", name="Stop")).to_be_hidden()
        await expect(page.get_by_role("alert")).to_have_count(0)
        await page.fill("#question", "And then?")
        # What the form itself lacks is said in place too.
        await page.fill("#model", "")
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_role("alert")).to_contain_text("name a model")
        await page.get_by_role("link", name="New conversation").click()
        await expect(said).to_have_count(0)
        # The session is over, in another tab say.
        await house.context.database.execute("UPDATE admin_sessions SET expires_at = 1")
        await page.fill("#model", "gpt-4o")
        await page.fill("#question", "Still there?")
        await page.get_by_role("button", name="Send").click()
        await expect(page.get_by_role("alert")).to_contain_text("Log in again")
    # The browser itself tells of the 400.
    assert [one for one in tab.complaints if "400 (Bad Request)" not in one] == []


async def test_a_conversation_without_scripts(house: House, provider: ScriptedProvider) -> None:
    site = house.sites.admin
    assert site
    await house.project(provider.url, name="Support")
    provider.script = sends(STREAM_HEAD, event("Hello."), DONE, END)
    async with open_chromium() as browser:
        tab = Watched(await browser.new_page(java_script_enabled=False), site)
        await tab.open("login")
        await tab.page.fill("#token", MANAGEMENT_TOKEN)
        await tab.page.press("#token", "Enter")
        await tab.open("chat")
        for question in ("Greet me", "Again"):
            await tab.page.get_by_label("Message").fill(question)
            await tab.page.get_by_role("button", name="Send").click()
        said = ["Greet me", "Hello.", "Again", "Hello."]
        await expect(tab.page.locator(".said .text")).to_have_text(said)
        await tab.page.reload()
        await expect(tab.page.locator(".said .text")).to_have_text(said)
        assert len(provider.exchanges) == 2
        assert not await tab.page.get_by_role("button", name="Stop").is_visible()
    assert tab.complaints == []
