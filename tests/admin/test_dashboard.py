"""The dashboard tells what was really called, and goes on telling it while it is open."""

import asyncio
import html
import json
import re
from collections.abc import Mapping
from urllib.parse import quote

import pytest
from aiohttp import ClientResponse
from stage.asking import ask, call, until
from stage.cached import FRESH, Tenant, tenant_of
from stage.house import TESTER, House
from stage.provider import Exchange, ScriptedProvider, answer
from stage.visitor import Page, Visitor

from llm_proxy.acts import providers
from llm_proxy.admin import dashboard, live
from llm_proxy.clock import MINUTE_MS, now_ms
from llm_proxy.context import Context
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.events import Event

USED = b'{"model": "gpt-4o", "usage": {"prompt_tokens": 1200, "completion_tokens": 34, "total_tokens": 1234}}'
PLAIN = "/admin/dashboard?span=15m"


def cells(page: Page, label: str) -> dict[str, list[str]]:
    """The rows of a table by their first cell."""
    table = page.source.partition(f'aria-label="{label}"')[2].partition("</table>")[0]
    rows = [re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL) for row in re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)]
    first, *rest = zip(*(map(plain, row) for row in rows if row), strict=True)
    return dict(zip(first, map(list, zip(*rest, strict=True)), strict=True))


def plain(source: str) -> str:
    """The text of a piece of a page."""
    return html.unescape(re.sub("<[^>]+>", "", source))


def tiles(page: Page) -> dict[str, str]:
    """The large figures by what they are called."""
    found = {}
    for part in page.source.partition('<dl class="tiles">')[2].partition("</dl>")[0].split("<dt>")[1:]:
        found[part.partition("</dt>")[0]] = part.partition("<b>")[2].partition("</b>")[0]
    return found


@pytest.fixture
async def tenant(house: House, provider: ScriptedProvider) -> Tenant:
    """Who calls; the provider knows what was used, has not got most models, and its model x may be kept."""

    async def script(exchange: Exchange) -> None:
        if exchange.request_line.startswith(b"GET /v1/models/x"):
            await exchange.send(answer(b"{}", extra=FRESH))
        elif exchange.request_line.startswith(b"GET"):
            await exchange.send(answer(b"{}", status=b"404 Not Found"))
        else:
            await exchange.send(answer(USED))

    provider.script = script
    return await tenant_of(house, provider)


async def some_calls(tenant: Tenant) -> None:
    """Three with tokens, one error of the provider, one stored, two from the cache, one of a stranger."""
    for _ in range(3):
        await ask(tenant.house.url, call(tenant.token))
    await tenant.send(path="/v1/models/absent", method="GET")
    for _ in range(3):
        await tenant.send(path="/v1/models/x", method="GET")
    await ask(tenant.house.url, call("sk-lp-unknown"))
    await until(lambda: len(tenant.house.events) == 8)


async def test_the_figures_are_those_of_the_calls(visitor: Visitor, tenant: Tenant) -> None:
    await some_calls(tenant)
    page = await visitor.get(PLAIN)
    shown = tiles(page)
    assert shown | {"Latency p50": "", "Latency p95": "", "Our overhead": ""} == {
        "Calls": "8",
        "Errors": "25.0 %",
        "Latency p50": "",
        "Latency p95": "",
        "Our overhead": "",
        "Tokens": "3\u202f702",
        "From cache": "25.0 %",
        "Active calls": "0",
        "Event backlog": "0",
    }
    assert all(shown[name].endswith(" ms") for name in ("Latency p50", "Latency p95", "Our overhead"))
    [own] = await providers.of_project(tenant.house.context, tenant.project)
    exact = {
        label: {name: [row[place] for place in (0, 1, -3, -2, -1)] for name, row in cells(page, label).items()}
        for label in ("By model", "By project", "By provider")
    }
    name = (await visitor.get(f"/admin/projects/{tenant.project}")).title
    assert exact["By model"] == {
        "gpt-4o": ["3", "0", "3\u202f600", "102", "0"],
        "x": ["3", "0", "0", "0", "2"],
        "absent": ["1", "1", "0", "0", "0"],
        "none": ["1", "1", "0", "0", "0"],
    }
    assert exact["By project"] == {
        name: ["7", "1", "3\u202f600", "102", "2"],
        "none: unknown token": ["1", "1", "0", "0", "0"],
    }
    assert cells(page, "By provider")[own.name][0] == "breaker closed"
    assert f"/admin/projects/{tenant.project}/keys/{own.id}" in page.links
    in_time = cells(page, "Use over time")
    assert len(in_time) == 15 and sum(int(row[0]) for row in in_time.values()) == 8
    said = re.findall(r"<title data-at=[^>]*>[^<]* – errors (\d+), answered (\d+)</title>", page.source)
    assert (len(said), sum(int(errors) for errors, _ in said), sum(int(answered) for _, answered in said)) == (15, 2, 6)


async def test_a_project_and_a_provider_show_their_own_part(visitor: Visitor, tenant: Tenant) -> None:
    await some_calls(tenant)
    await tenant_of(tenant.house, tenant.provider)
    page = await visitor.get(f"/admin/projects/{tenant.project}?span=15m")
    assert (tiles(page)["Calls"], tiles(page)["Tokens"], tiles(page)["From cache"]) == ("7", "3\u202f702", "28.6 %")
    [own] = await providers.of_project(tenant.house.context, tenant.project)
    assert cells(page, "Providers")[own.name][:3] == ["enabled", "5", "20.0 %"]
    page = await visitor.get(f"/admin/projects/{tenant.project}/keys/{own.id}?span=24h")
    assert (tiles(page)["Calls"], tiles(page)["Errors"]) == ("5", "20.0 %")
    assert len(cells(page, "Use over time")) == 24


async def test_what_is_older_than_the_span_is_left_out(house: House, visitor: Visitor) -> None:
    for minutes, model in ((0, "new"), (30, "older"), (300, "old"), (3000, "ancient")):
        event = Event("r", None, None, None, "POST", "/", started_at=now_ms() - minutes * MINUTE_MS, model=model, status=200)
        house.context.history.count(event)
    models = {"15m": {"new"}, "1h": {"new", "older"}, "24h": {"new", "older", "old"}}
    for span, expected in {**models, "7d": {*models["24h"], "ancient"}, "of another version": models["1h"]}.items():
        page = await visitor.get(f"/admin/dashboard?span={quote(span)}")
        assert set(cells(page, "By model")) == expected, span
        assert tiles(page)["Calls"] == str(len(expected))
        assert sum(int(row[0]) for row in cells(page, "Use over time").values()) == len(expected)


async def test_the_rest_is_put_together_and_the_sick_come_first(house: House, visitor: Visitor) -> None:
    for number in range(14):
        given = {"id": f"p{number}", "name": f"n{number}", "api_key": "sk-0123456789abcdef", "weight": number % 13}
        await providers.create(house.context, TESTER, None, given)
        event = Event("r", None, None, None, "POST", "/", provider=f"p{number}", model=f"m{number}", status=200)
        for _ in range(20 - number):
            house.context.history.count(event)
    await house.context.providers.read_pool()
    [last] = [one for one in house.context.providers.pooled if one.id == "p13"]
    with house.context.breakers.of(last).begin() as attempt:
        attempt.answered(401)
    page = await visitor.get(PLAIN)
    assert cells(page, "By model")["4 more"][0] == str(10 + 9 + 8 + 7)
    states = {name: row[0].partition(" refused")[0] for name, row in cells(page, "By provider").items()}
    assert list(states) == ["n13", *(f"n{number}" for number in range(9)), "4 more"]
    assert states["n13"].startswith("breaker bad_key") and (states["n0"], states["n1"]) == ("drained", "breaker closed")


async def test_an_empty_proxy_says_what_to_do_next(house: House, visitor: Visitor) -> None:
    page = await visitor.get("/admin/")
    assert page.title == "Dashboard" and page.source.count(">to do<") == 3
    assert {"/admin/new-project", "/admin/new-token"} <= set(page.links)
    project = await house.project("http://127.0.0.1:1")
    page = await visitor.get("/admin/dashboard")
    assert (page.source.count(">done<"), page.source.count(">to do<")) == (1, 2)
    await house.token(project)
    page = await visitor.get("/admin/dashboard")
    assert "No call in this time" in page.text and "<svg" not in page.source


async def test_an_open_page_shows_a_call_within_three_seconds(visitor: Visitor, tenant: Tenant) -> None:
    async with visitor.session.get(f"{visitor.url}/admin/dashboard/live?span=15m") as reply:
        assert set(await next_message(reply)) == set(dashboard.PARTS)
        await ask(tenant.house.url, call(tenant.token))
        async with asyncio.timeout(3):
            while "gpt-4o" not in (changed := await next_message(reply)).get("models", ""):
                pass
        assert "<b>1</b>" in changed["summary"] and "answered 1" in changed["charts"]
        reply.close()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open pages are kept up to date without a pause."""
    monkeypatch.setattr(dashboard, "REFRESH_SECONDS", 0.1)
    monkeypatch.setattr(live, "TICK_SECONDS", 0.02)


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The spans for which the figures were read."""
    spans, read = list[str](), dashboard.read

    async def noted(context: Context, span: str) -> dashboard.Board:
        spans.append(span)
        return await read(context, span)

    monkeypatch.setattr(dashboard, "read", noted)
    return spans


async def test_all_pages_share_one_rendering(made: list[str], visitor: Visitor) -> None:
    url = f"{visitor.url}/admin/dashboard/live?span=24h"
    async with visitor.session.get(url) as one, visitor.session.get(url) as other:
        assert await next_message(one) == await next_message(other)
        one.close()
        other.close()
    assert made.count("24h") == 1


async def test_nothing_is_read_while_no_page_is_open(quick: None, made: list[str], visitor: Visitor, tenant: Tenant) -> None:
    async with visitor.session.get(f"{visitor.url}/admin/dashboard/live?span=24h") as reply:
        for _ in range(3):
            await next_message(reply)
        reply.close()
    await asyncio.sleep(0.2)
    so_far = made.count("24h")
    assert so_far >= 3
    # Three times as long as it takes while a page is open.
    await asyncio.sleep(0.3)
    assert made.count("24h") == so_far


async def test_an_open_page_says_that_the_database_is_away_and_goes_on(
    quick: None, monkeypatch: pytest.MonkeyPatch, visitor: Visitor, tenant: Tenant
) -> None:
    read, away = dashboard.read, asyncio.Event()

    async def failing(context: Context, span: str) -> dashboard.Board:
        if away.is_set():
            raise DatabaseUnavailable
        return await read(context, span)

    monkeypatch.setattr(dashboard, "read", failing)
    async with visitor.session.get(f"{visitor.url}/admin/dashboard/live") as reply:
        await next_message(reply)
        away.set()
        await until_said(reply, "The database does not answer")
        away.clear()
        await until_said(reply, "As of")
        reply.close()


async def next_message(reply: ClientResponse) -> Mapping[str, str]:
    """The next message of a stream."""
    while True:
        said = await reply.content.readuntil(b"\n\n")
        if said.startswith(b"data: "):
            return dict(json.loads(said.removeprefix(b"data: ")))


async def until_said(reply: ClientResponse, text: str) -> None:
    """Wait until the summary says something."""
    async with asyncio.timeout(3):
        while text not in (await next_message(reply)).get("summary", ""):
            pass
