"""A range of events is delivered once more, in order, as far as the sink takes it."""

import pathlib

import pytest
from aiohttp import web
from stage.house import settings_for
from stage.logs import left_behind, lines_of, samples
from stage.sinks import KEY, FakeLunary, running

from llm_proxy.events.browsing import between, letters
from llm_proxy.events.replaying import Replay, replay

EVERYTHING = (0, 2**53)


@pytest.mark.parametrize("batch", ["1", "2", "3", "100"])
async def test_every_event_goes_to_the_sink_in_order(tmp_path: pathlib.Path, batch: str) -> None:
    folder = left_behind(tmp_path, *(events := samples(*range(6))))
    settings = settings_for(tmp_path, DISPATCHER_BATCH_SIZE=batch)
    stats = await replay(settings, "file", between(folder, *EVERYTHING))
    assert (stats.delivered, stats.backlog.count) == (6, 0)
    assert [event["id"] for event in lines_of(tmp_path / "events.jsonl")] == [event["id"] for event in events]


async def test_it_ends_at_a_sink_that_is_away_and_says_why(tmp_path: pathlib.Path) -> None:
    folder, service = left_behind(tmp_path, *samples(1, 2)), FakeLunary()
    service.fault = lambda request, document: web.Response(status=503, text="closed")
    async with running(service):
        settings = settings_for(tmp_path, LUNARY_URL=service.url, LUNARY_API_KEY=KEY)
        stats = await replay(settings, "lunary", between(folder, *EVERYTHING))
    assert (stats.delivered, stats.backlog.count, stats.last_error) == (0, 2, "503 closed")


async def test_what_the_sink_refuses_is_set_aside_beside_the_instances(tmp_path: pathlib.Path) -> None:
    folder, service = left_behind(tmp_path / "events", *(events := samples(1, 2, 3))), FakeLunary()
    service.poison = {events[1]["id"]: "value out of range"}
    async with running(service):
        settings = settings_for(tmp_path, LUNARY_URL=service.url, LUNARY_API_KEY=KEY)
        stats = await replay(settings, "lunary", between(folder, *EVERYTHING))
    assert (stats.delivered, stats.dead_letters) == (2, 1)
    [letter] = letters(tmp_path / "events")
    assert (letter["event"]["id"], letter["reason"]) == (events[1]["id"], "value out of range")


async def test_a_source_gives_the_same_again_until_it_is_settled(tmp_path: pathlib.Path) -> None:
    source = Replay(between(left_behind(tmp_path, *samples(*range(5))), *EVERYTHING))
    first = await source.read(2)
    assert await source.read(2) == first
    await source.settle(1)
    assert [entry.sequence for entry in await source.read(3)] == [2, 3, 4]  # type: ignore[union-attr]
    assert source.backlog().count == 3
