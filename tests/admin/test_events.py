"""The delivery of events is shown; what was refused is looked at, delivered again, dropped."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from stage.house import House, open_house, settings_for
from stage.logs import left_behind, samples
from stage.redis import RedisServer
from stage.sinks import KEY, FakeLunary, running
from stage.visitor import Page, Visitor, visiting

from llm_proxy.admin.events import MOST_GROUPS, NEWEST, groups_of
from llm_proxy.events.consuming import StreamLetters
from llm_proxy.events.dead_letters import FILE, DeadLetters
from llm_proxy.events.letters import Found, Tally
from llm_proxy.events.replaying import Box
from llm_proxy.events.stream import EventStream

EVENTS = samples(*range(4))


@pytest.fixture
async def service() -> AsyncIterator[FakeLunary]:
    lunary = FakeLunary()
    async with running(lunary):
        yield lunary


@pytest.fixture(params=["disk", "redis"])
async def stocked(request: pytest.FixtureRequest, tmp_path: Path, service: FakeLunary) -> AsyncIterator[Visitor]:
    """A visitor where Lunary refused four events, one of them for another reason than the rest, and missed two more."""
    more = {"LUNARY_URL": service.url, "LUNARY_API_KEY": KEY}
    if request.param == "redis":
        server: RedisServer = request.getfixturevalue("redis_server")
        more |= {"LLM_PROXY_EVENT_BUS": "redis-streams", "REDIS_URL": server.uri}
    async with open_house(settings_for(tmp_path, **more)) as house, visiting(house) as visitor:
        other = DeadLetters(left_behind(tmp_path / "events", name="other") / FILE)
        redis = house.context.redis
        root = tmp_path / "events" / FILE
        here: Box = StreamLetters(EventStream.of(redis, house.context.settings)) if redis else DeadLetters(root)
        for event, box, reason in zip(EVENTS, (other, here, here, here), ("400", "401", "401", "401"), strict=True):
            await box.add("lunary", reason, event=event)
            # Each has a time of its own, by which they are sorted.
            await asyncio.sleep(0.002)
        await here.add("lunary", "gone", gap={"from": 1, "to": 2, "count": 1200})
        yield visitor


async def kept(visitor: Visitor, chosen: dict[str, str]) -> Page:
    """Press a retry of the page of events."""
    page = await visitor.get("/admin/events")
    [form] = [
        form
        for form in page.forms
        if form.action == "/admin/events/retry" and {name: form.fields.get(name) for name in chosen} == chosen
    ]
    return await visitor.post("/admin/events/retry", form.fields)


async def audited(visitor: Visitor, acts: list[str]) -> None:
    """Wait until these are the acts on letters in the audit log, the newest first."""
    async with asyncio.timeout(5):
        while True:
            page = await visitor.get("/admin/audit")
            if [word for word in page.text.split() if word in ("events.retry", "events.drop")] == acts:
                return
            await asyncio.sleep(0.01)


async def test_letters_are_shown_by_reason_and_one_whole(stocked: Visitor) -> None:
    page = await stocked.get("/admin/events")
    text = page.text.replace("\u202f", " ")
    for shown in ("5 on this disk", "every reason lunary 5", "401 lunary 3", "400 lunary 1", "1 200 events", EVENTS[0]["id"]):
        assert shown in text, shown
    chosen = [form.fields for form in page.forms if form.action == "/admin/events/retry"]
    assert sorted(fields.get("reason", "") for fields in chosen) == ["", "400", "401"], "a gap cannot be retried"
    link = next(link for link in page.links if link.startswith("/admin/events/") and "drop" not in link)
    assert "1 200" in (await stocked.get(link)).text.replace("\u202f", " "), "the newest is the first"
    found = [await stocked.get(link) for link in page.links if link.startswith("/admin/events/") and "drop" not in link]
    assert sorted(EVENTS[number]["id"] in page.text for page in found for number in range(4)).count(True) == 4
    assert all("gpt-4o" in page.text or "holds no event" in page.text for page in found)
    assert (await stocked.get("/admin/events/nowhere")).status == 404


async def test_a_retry_delivers_and_a_reload_repeats_nothing(stocked: Visitor, service: FakeLunary) -> None:
    service.poison = {EVENTS[2]["id"]: "out of range"}
    page = await kept(stocked, {"sink": "lunary"} | {"reason": "401"})
    assert page.path == "/admin/events"
    assert "Delivered again: 2. Refused again: 1; their reasons are below." in page.text and "out of range lunary 1" in page.text
    tries = dict(service.tries)
    assert "Delivered again" not in (await stocked.get("/admin/events")).text and dict(service.tries) == tries
    await audited(stocked, ["events.retry"])


async def test_one_letter_is_retried_on_its_page(stocked: Visitor, service: FakeLunary) -> None:
    page = await stocked.get("/admin/events")
    [link, *_] = [link for link in page.links if link.startswith("/admin/events/") and "drop" not in link][1:]
    letter = await stocked.get(link)
    page = await stocked.send(letter, "/admin/events/retry")
    assert "Delivered again: 1." in page.text and len(service.kept) == 1
    page = await stocked.send(letter, "/admin/events/retry")
    assert "not there any more" in page.text and len(service.kept) == 1


async def test_a_sink_that_is_away_is_told(stocked: Visitor, service: FakeLunary) -> None:
    service.fault = lambda request, document: web.Response(status=503, text="closed")
    page = await kept(stocked, {"sink": "lunary", "reason": "401"})
    assert "Delivered again: 0. The rest waits: 503 closed." in page.text and "401 lunary 3" in page.text


async def test_a_drop_is_confirmed_with_the_number_and_drops_no_more(stocked: Visitor) -> None:
    page = await stocked.get("/admin/events")
    [link] = [link for link in page.links if "drop?" in link and "reason=401" in link]
    asked = await stocked.get(link)
    assert asked.title == "Drop these dead letters?" and "Letters 3" in asked.text and "Drop 3" in asked.text
    page = await stocked.send(asked, "/admin/events/drop")
    assert "Dropped for good: 3." in page.text and "401 lunary" not in page.text and "400 lunary 1" in page.text
    assert "Dropped for good: 0." in (await stocked.send(asked, "/admin/events/drop")).text
    seal = asked.form("/admin/events/drop").fields["seal"]
    assert "Dropped for good: 0." in (await stocked.post("/admin/events/drop", {"seal": seal})).text, "unconfirmed"
    page = await stocked.send(await stocked.get("/admin/events/drop"), "/admin/events/drop")
    assert "Dropped for good: 2." in page.text and "None: every sink took" in page.text
    assert "none like that any more" in (await stocked.get("/admin/events/drop")).text
    await audited(stocked, ["events.drop"] * 4)


async def test_what_cannot_be_delivered_from_here_is_told(house: House, visitor: Visitor) -> None:
    await DeadLetters(Path(house.context.settings.event_dir) / FILE).add("lunary", "400", event=EVENTS[0])
    page = await kept(visitor, {"sink": "lunary"})
    assert "LUNARY_API_KEY is not set" in page.text and "400 lunary 1" in page.text
    seal = page.form("/admin/events/retry").fields["seal"]
    assert "say which letters" in (await visitor.post("/admin/events/retry", {"seal": seal})).text
    await audited(visitor, ["events.retry"] * 2)


async def test_redis_that_is_away_takes_nothing_else_from_the_page(mortal_redis: RedisServer, tmp_path: Path) -> None:
    streams = {"LLM_PROXY_EVENT_BUS": "redis-streams", "REDIS_URL": mortal_redis.uri}
    async with open_house(settings_for(tmp_path, **streams)) as house, visiting(house) as visitor:
        assert "None: every sink took" in (await visitor.get("/admin/events")).text
        mortal_redis.kill()
        page = await visitor.get("/admin/events")
        assert page.status == 200 and "The dead letters cannot be read or changed now" in page.text


def test_the_most_frequent_reasons_of_a_sink_come_first() -> None:
    of_lunary = {("lunary", str(number)): Tally(number, 1) for number in range(1, MOST_GROUPS + 5)}
    found = Found({**of_lunary, ("file", "one"): Tally(7)}, ())
    groups = groups_of(found)
    assert [group["sink"] for group in groups] == ["file", *["lunary"] * (MOST_GROUPS + 1)]
    assert [group["reason"] for group in groups[:3]] == ["one", None, str(MOST_GROUPS + 4)]
    assert (groups[1]["total"], groups[1]["deliverable"]) == (sum(range(1, MOST_GROUPS + 5)), MOST_GROUPS + 4)


async def test_only_the_newest_letters_are_shown(house: House, visitor: Visitor) -> None:
    times = iter(range(NEWEST + 5))
    letters = DeadLetters(Path(house.context.settings.event_dir) / FILE, lambda: 1000 * next(times))
    for number in range(NEWEST + 5):
        await letters.add("file", "<b>no</b>", event={"id": f"event-{number}"})
    page = await visitor.get("/admin/events")
    assert f"The newest {NEWEST} of {NEWEST + 5}." in page.text and "<b>no</b> file 105" in page.text
    assert f"event-{NEWEST + 4}" in page.text and "event-4 " not in page.text
