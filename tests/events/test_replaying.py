"""A range of events is delivered once more, in order, as far as the sink takes it."""

import pathlib

import pytest
from aiohttp import web
from stage.house import settings_for
from stage.logs import left_behind, lines_of, samples
from stage.sinks import KEY, FakeLunary, running

from llm_proxy.events.browsing import between
from llm_proxy.events.dead_letters import FILE, DeadLetters
from llm_proxy.events.dispatcher import Stats
from llm_proxy.events.replaying import LetterReplay, Replay, replay
from llm_proxy.settings import Settings

EVERYTHING = (0, 2**53)


async def replayed(settings: Settings, sink: str, folder: pathlib.Path) -> Stats:
    """Deliver all of a log again."""
    return await replay(settings, sink, Replay(between(folder, *EVERYTHING)), DeadLetters(folder.parent / FILE))


@pytest.mark.parametrize("batch", ["1", "2", "3", "100"])
async def test_every_event_goes_to_the_sink_in_order(tmp_path: pathlib.Path, batch: str) -> None:
    folder = left_behind(tmp_path, *(events := samples(*range(6))))
    settings = settings_for(tmp_path, DISPATCHER_BATCH_SIZE=batch)
    stats = await replayed(settings, "file", folder)
    assert (stats.delivered, stats.backlog.count) == (6, 0)
    assert [event["id"] for event in lines_of(tmp_path / "events.jsonl")] == [event["id"] for event in events]


async def test_it_ends_at_a_sink_that_is_away_and_says_why(tmp_path: pathlib.Path) -> None:
    folder, service = left_behind(tmp_path, *samples(1, 2)), FakeLunary()
    service.fault = lambda request, document: web.Response(status=503, text="closed")
    async with running(service):
        settings = settings_for(tmp_path, LUNARY_URL=service.url, LUNARY_API_KEY=KEY)
        stats = await replayed(settings, "lunary", folder)
    assert (stats.delivered, stats.backlog.count, stats.last_error) == (0, 2, "503 closed")


async def test_what_the_sink_refuses_is_set_aside_beside_the_instances(tmp_path: pathlib.Path) -> None:
    folder, service = left_behind(tmp_path / "events", *(events := samples(1, 2, 3))), FakeLunary()
    service.poison = {events[1]["id"]: "value out of range"}
    async with running(service):
        settings = settings_for(tmp_path, LUNARY_URL=service.url, LUNARY_API_KEY=KEY)
        stats = await replayed(settings, "lunary", folder)
    assert (stats.delivered, stats.dead_letters) == (2, 1)
    [letter] = DeadLetters(tmp_path / "events" / FILE).letters()
    assert (letter.facts["event"]["id"], letter.reason) == (events[1]["id"], "value out of range")


async def test_a_source_gives_the_same_again_until_it_is_settled(tmp_path: pathlib.Path) -> None:
    source = Replay(between(left_behind(tmp_path, *samples(*range(5))), *EVERYTHING))
    first = await source.read(2)
    assert await source.read(2) == first
    await source.settle(1)
    assert [entry.sequence for entry in await source.read(3)] == [2, 3, 4]  # type: ignore[union-attr]
    assert source.backlog().count == 3


async def test_dead_letters_leave_their_box_at_the_end_and_those_ahead_of_one_that_waits_too(tmp_path: pathlib.Path) -> None:
    box = DeadLetters(tmp_path / FILE)
    for event in samples(1, 2, 3, 4):
        await box.add("file", "no", event=event)
    source = LetterReplay(box, box.read(), float("inf"))
    assert [entry.sequence for entry in await source.read(3)] == [1, 2, 3]  # type: ignore[union-attr]
    await source.settle(1)
    assert [entry.sequence for entry in await source.read(9)] == [2, 3, 4]  # type: ignore[union-attr]
    assert (source.backlog().count, len(list(box.letters()))) == (3, 4)
    await source.close({3})
    assert [letter.facts["event"]["request_id"] for letter in box.letters()] == ["request-2", "request-4"]


async def test_of_dead_letters_nothing_more_is_begun_after_the_end(tmp_path: pathlib.Path) -> None:
    box = DeadLetters(tmp_path / FILE)
    await box.add("file", "no", event=samples(1)[0])
    for ends, cut in ((0.0, True), (float("inf"), False)):
        source = LetterReplay(box, box.read(), ends)
        assert (len(await source.read(2)) == 0, source.is_cut) == (cut, cut)
        assert len(await source.read(2)) == (0 if cut else 1)
        assert source.is_cut == cut


async def test_what_the_sink_took_before_it_failed_is_no_dead_letter_any_more(tmp_path: pathlib.Path) -> None:
    box, service, events = DeadLetters(tmp_path / FILE), FakeLunary(), samples(*range(4))
    for event in events:
        await box.add("lunary", "no", event=event)
    service.fault = lambda request, document: web.Response(status=503) if len(service.kept) >= 2 else None
    async with running(service):
        settings = settings_for(tmp_path, LUNARY_URL=service.url, LUNARY_API_KEY=KEY, DISPATCHER_BATCH_SIZE="2")
        stats = await replay(settings, "lunary", LetterReplay(box, box.read(), float("inf")), box)
    assert (stats.delivered, stats.backlog.count) == (2, 2)
    assert [letter.facts["event"]["id"] for letter in box.letters()] == [event["id"] for event in events[2:]]
