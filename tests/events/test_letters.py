"""Dead letters are found, delivered again and dropped wherever they are."""

import asyncio
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import web
from stage.house import settings_for
from stage.logs import left_behind, samples
from stage.redis import RedisServer
from stage.sinks import KEY, FakeLunary, running
from stage.streams import open_stream

from llm_proxy.events import letters as product
from llm_proxy.events.consuming import StreamLetters
from llm_proxy.events.dead_letters import FILE, DeadLetters
from llm_proxy.events.letters import ALL, AllLetters, Chosen, Tally
from llm_proxy.events.replaying import Box

EVENTS = samples(*range(6))
OF_LUNARY = Chosen(sink="lunary")


@pytest.fixture
async def service() -> AsyncIterator[FakeLunary]:
    lunary = FakeLunary()
    async with running(lunary):
        yield lunary


@pytest.fixture(params=["disk", "redis"])
async def stocked(
    request: pytest.FixtureRequest, tmp_path: pathlib.Path, service: FakeLunary
) -> AsyncIterator[tuple[AllLetters, Box]]:
    """Letters of Lunary, one of a gap and one of another sink among them, with a box that they are in."""
    settings = settings_for(tmp_path, LUNARY_URL=service.url, LUNARY_API_KEY=KEY, DISPATCHER_BATCH_SIZE="3")
    if request.param == "disk":
        box: Box = DeadLetters(left_behind(tmp_path / "events") / FILE)
        await stock(box)
        yield AllLetters(settings), box
        return
    async with open_stream(request.getfixturevalue("redis_server")) as stream:
        await stock(box := StreamLetters(stream))
        yield AllLetters(settings, stream), box


async def stock(box: Box) -> None:
    for number, event in enumerate(EVENTS):
        await box.add("lunary", "401 key" if number % 2 else "400 odd", event=event)
        await asyncio.sleep(0.002)
    await box.add("lunary", "gone", gap={"from": 1, "to": 9, "count": 9})
    await box.add("file", "unreadable", event="{")


async def ids(letters: AllLetters, chosen: Chosen = ALL) -> list[str]:
    """The events that are set aside."""
    return [letter.event["id"] async for letter in letters.read(chosen) if letter.event]


async def test_letters_are_counted_by_sink_and_reason_and_the_newest_shown(stocked: tuple[AllLetters, Box]) -> None:
    letters, _ = stocked
    found = await letters.find(most=2)
    of_lunary = {("lunary", "400 odd"): Tally(3, 3), ("lunary", "401 key"): Tally(3, 3), ("lunary", "gone"): Tally(1, 0)}
    assert (found.groups, found.count) == (of_lunary | {("file", "unreadable"): Tally(1, 0)}, 8)
    assert {letter.sink for letter in found.newest} == {"lunary", "file"} and len(found.newest) == 2
    [last] = (await letters.find(Chosen(sink="lunary", reason="401 key"))).newest
    assert last.event == EVENTS[5]
    assert (await letters.find(Chosen(id=last.id))).newest == [last]
    assert (await letters.find(Chosen(reason="401 key", until=last.at))).count == 3
    assert (await letters.find(Chosen(reason="400 odd", until=""))).count == 0


async def test_what_is_delivered_again_keeps_its_id_and_leaves(stocked: tuple[AllLetters, Box], service: FakeLunary) -> None:
    letters, _ = stocked
    done = await letters.retry("lunary", OF_LUNARY)
    assert (done.delivered, done.refused, done.waiting) == (6, 0, False)
    assert sorted(service.kept) == [event["id"] for event in EVENTS]
    assert (await letters.find()).groups.keys() == {("lunary", "gone"), ("file", "unreadable")}
    assert (await letters.retry("lunary", OF_LUNARY)).delivered == 0


async def test_only_those_that_are_chosen_are_delivered(stocked: tuple[AllLetters, Box], service: FakeLunary) -> None:
    letters, _ = stocked
    await letters.retry("lunary", Chosen(reason="401 key"))
    assert service.kept == [EVENTS[number]["id"] for number in (1, 3, 5)]
    [letter] = (await letters.find(Chosen(reason="400 odd"))).newest
    assert (await letters.retry("lunary", Chosen(id=letter.id))).delivered == 1
    assert await ids(letters) == [EVENTS[number]["id"] for number in (0, 2)]


async def test_what_is_refused_again_stays_with_the_new_reason(stocked: tuple[AllLetters, Box], service: FakeLunary) -> None:
    letters, _ = stocked
    service.poison = {EVENTS[2]["id"]: "out of range"}
    done = await letters.retry("lunary", OF_LUNARY)
    assert (done.delivered, done.refused, done.waiting) == (5, 1, False)
    [letter] = (await letters.find(Chosen(reason="out of range"))).newest
    assert letter.event == EVENTS[2] and await ids(letters) == [EVENTS[2]["id"]]


async def test_a_sink_that_is_away_leaves_them_as_they_were(stocked: tuple[AllLetters, Box], service: FakeLunary) -> None:
    letters, _ = stocked
    before = await letters.find()
    service.fault = lambda request, document: web.Response(status=503, text="closed")
    done = await letters.retry("lunary", OF_LUNARY)
    assert (done.delivered, done.waiting, done.reason) == (0, True, "503 closed")
    assert await letters.find() == before


async def test_a_retry_that_is_cut_short_loses_none(stocked: tuple[AllLetters, Box], service: FakeLunary) -> None:
    letters, _ = stocked
    reached = asyncio.Event()

    def take_and_hang(request: web.Request, document: Any) -> str:
        service.take(document)
        reached.set()
        return "hang"

    service.fault = take_and_hang
    retry = asyncio.ensure_future(letters.retry("lunary", OF_LUNARY))
    async with asyncio.timeout(5):
        await reached.wait()
    retry.cancel()
    with pytest.raises(asyncio.CancelledError):
        await retry
    assert len(await ids(letters)) == len(EVENTS)


async def test_what_is_retried_twice_at_once_is_delivered_once(stocked: tuple[AllLetters, Box], service: FakeLunary) -> None:
    letters, _ = stocked
    done = await asyncio.gather(*(letters.retry("lunary", OF_LUNARY) for _ in range(2)))
    assert sorted(each.delivered for each in done) == [0, 6]
    assert set(service.tries.values()) == {1}


async def test_what_has_no_time_waits(
    stocked: tuple[AllLetters, Box], service: FakeLunary, monkeypatch: pytest.MonkeyPatch
) -> None:
    letters, _ = stocked
    monkeypatch.setattr(product, "RETRY_SECONDS", -1.0)
    done = await letters.retry("lunary", OF_LUNARY)
    assert (done.delivered, done.waiting, done.reason) == (0, True, "")
    assert len(await ids(letters)) == len(EVENTS)


async def test_what_is_dropped_is_gone_and_what_comes_later_stays(stocked: tuple[AllLetters, Box]) -> None:
    letters, box = stocked
    until = (await letters.find(Chosen(reason="400 odd"))).newest[0].at
    await asyncio.sleep(0.002)
    await box.add("lunary", "400 odd", event=EVENTS[0])
    assert await letters.drop(Chosen(sink="lunary", reason="400 odd", until=until)) == 3
    assert await letters.drop(Chosen(sink="lunary", reason="400 odd", until=until)) == 0
    assert (await letters.find()).groups["lunary", "400 odd"].total == 1
    assert await letters.drop(ALL) == 6
    assert (await letters.find()).count == 0


async def test_those_of_every_instance_and_of_replays_are_found(tmp_path: pathlib.Path, service: FakeLunary) -> None:
    root = tmp_path / "events"
    for event, folder in zip(EVENTS, (left_behind(root, name="a"), left_behind(root, name="b"), root), strict=False):
        await DeadLetters(folder / FILE).add("lunary", "no", event=event)
    letters = AllLetters(settings_for(tmp_path, LUNARY_URL=service.url, LUNARY_API_KEY=KEY))
    assert await ids(letters) == [event["id"] for event in EVENTS[:3]]
    assert (await letters.retry("lunary", ALL)).delivered == 3
    assert list(root.rglob(FILE)) == [] and await ids(letters) == []
    assert await ids(AllLetters(settings_for(tmp_path / "nowhere"))) == []


async def test_redis_that_is_away_is_said(mortal_redis: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(mortal_redis) as stream:
        letters = AllLetters(settings_for(tmp_path), stream)
        mortal_redis.kill()
        for attempt in (letters.find(), letters.drop(ALL)):
            with pytest.raises(OSError):
                await attempt
