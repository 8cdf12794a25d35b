"""What one consumer of a group leaves, another gets; nothing is acknowledged before it is settled."""

import asyncio
import pathlib
from collections.abc import AsyncIterator
from typing import Any

import orjson
import pytest
from stage.asking import until
from stage.redis import RedisServer
from stage.sinks import sample
from stage.streams import KEY, Log, numbers_of, open_stream, shipping, taken

from llm_proxy.events import consuming
from llm_proxy.events import shipping as product
from llm_proxy.events import stream as stream_module
from llm_proxy.events.consuming import StreamLetters, StreamSource, gap_of
from llm_proxy.events.reading import FEW_ENDS, StreamGap
from llm_proxy.events.stream import EventStream
from llm_proxy.tasks import Tasks


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "SHIP_SECONDS", 0.01)
    monkeypatch.setattr(product, "RETRY_SECONDS", 0.05)
    monkeypatch.setattr(stream_module, "PATIENCE", 0.3)
    monkeypatch.setattr(consuming, "HOLD_SECONDS", 0.02)
    monkeypatch.setattr(consuming, "IDLE_SECONDS", 0.2)


@pytest.fixture
async def stream(redis_server: RedisServer) -> AsyncIterator[EventStream]:
    async with open_stream(redis_server) as opened:
        await opened.join("file")
        yield opened


@pytest.fixture
async def ten(stream: EventStream, tmp_path: pathlib.Path) -> AsyncIterator[Log]:
    """Ten events in the stream."""
    async with shipping(log := Log(tmp_path / "a", stream)):
        log.publish(*range(10))
        await until(lambda: log.shipper.stats.delivered == 10)
        yield log


async def found(source: StreamSource, count: int = 1) -> list[Any]:
    """What a source has, once it has so many."""
    async with asyncio.timeout(5):
        while len(items := await source.read(100)) < count:  # noqa: ASYNC110 - another program adds them
            await asyncio.sleep(0.005)
    return items


async def pending(stream: EventStream) -> int:
    [group] = (await stream.state()).groups
    return group.pending


async def test_reading_acknowledges_nothing_and_settling_does(stream: EventStream, ten: Log) -> None:
    source = StreamSource(stream, "file")
    items = await source.read(6)
    assert numbers_of(items) == [0, 1, 2, 3, 4, 5]
    assert await source.read(6) == items
    assert numbers_of(await source.read(100)) == list(range(10))
    assert await pending(stream) == 10
    await source.settle(4)
    assert await pending(stream) == 6
    assert numbers_of(await source.read(100)) == list(range(4, 10))


async def test_what_a_dead_consumer_left_another_gets_and_what_a_living_one_holds_it_does_not(
    stream: EventStream, ten: Log
) -> None:
    dead, living, other = (StreamSource(stream, "file") for _ in range(3))
    assert numbers_of(await dead.read(4)) == [0, 1, 2, 3]
    held = await living.read(3)
    tasks = Tasks()
    tasks.start("hold", living.hold())
    claimed = await found(other, 7)
    assert sorted(numbers_of(claimed)) == [0, 1, 2, 3, 7, 8, 9]
    assert {item.handed for item in claimed if numbers_of([item])[0] < 4} == {2}
    await other.settle(len(claimed))
    assert await living.read(3) == held
    await living.settle(3)
    assert await pending(stream) == 0
    await tasks.close()


async def test_who_stops_gives_back_what_it_has_and_is_forgotten(stream: EventStream, ten: Log) -> None:
    leaving, other = StreamSource(stream, "file"), StreamSource(stream, "file")
    await leaving.read(10)
    await leaving.settle(2)
    leaving.stop()
    assert len(await leaving.read(100)) == 8, "what is in hand may still be delivered"
    await leaving.close()
    items = await other.read(100)
    assert numbers_of(items) == list(range(2, 10))
    assert {item.handed for item in items} == {1}, "an orderly stop is no sign of poison"
    await other.settle(8)
    await leaving.close()
    await other.close()
    [group] = (await stream.state()).groups
    assert group.consumers == 0


async def test_what_several_had_when_they_ended_comes_alone(stream: EventStream, ten: Log) -> None:
    for _ in range(FEW_ENDS):
        await found(StreamSource(stream, "file"), 10)
    last = StreamSource(stream, "file")
    [item] = await found(last)
    assert (numbers_of([item]), item.handed) == ([0], FEW_ENDS + 1)
    await last.settle(1)
    assert numbers_of(await last.read(100)) == [1]


async def test_redis_away_it_goes_on_with_what_it_has_and_says_later_that_it_is_done(
    mortal_redis: RedisServer, tmp_path: pathlib.Path
) -> None:
    async with open_stream(mortal_redis) as stream, shipping(log := Log(tmp_path / "a", stream)):
        log.publish(*range(10))
        source = StreamSource(stream, "file")
        items = await found(source, 10)
        mortal_redis.freeze()
        await source.settle(4)
        assert source.away
        mortal_redis.resume()
        assert numbers_of(await source.read(100)) == numbers_of(items)[4:]
        assert not source.away and await pending(stream) == 6
        mortal_redis.restart()
        await source.settle(6)
        again = numbers_of(await found(source, 10))
        assert sorted(again) == list(range(10)), "Redis forgot who had what"


@pytest.mark.parametrize(
    ("record", "gap"),
    [
        pytest.param(b'{"from": "1", "to": "3", "count": 3}', StreamGap("1", "3", 3), id="of a log"),
        pytest.param(b'{"from": "1-0", "to": "3-1", "count": 3, "missing": {"g": 2}}', StreamGap("1-0", "3-1", 2), id="mine"),
        pytest.param(b'{"from": "1-0", "to": "3-1", "count": 3, "missing": {"g": 0}}', None, id="none of mine"),
        pytest.param(b'{"from": "1-0", "to": "3-1", "count": 3, "missing": {}}', StreamGap("1-0", "3-1", 3), id="older than I"),
        pytest.param(b"{", None, id="damaged"),
        pytest.param(b"[]", None, id="no gap"),
    ],
)
def test_a_gap_counts_what_is_missing_to_the_group(record: bytes, gap: StreamGap | None) -> None:
    assert gap_of({b"gap": record}, "g") == gap


async def test_what_is_neither_event_nor_gap_is_passed_over(stream: EventStream, redis_server: RedisServer, ten: Log) -> None:
    assert redis_server.say(f"XADD {KEY} * foreign field").startswith("$")
    assert numbers_of(await taken(StreamSource(stream, "file"))) == list(range(10))
    assert await pending(stream) == 0


async def test_dead_letters_go_to_a_stream_of_their_own(stream: EventStream) -> None:
    await StreamLetters(stream, lambda: 1_790_000_000_123).add("lunary", "400", event=sample(1))
    [(_, letter)] = await stream.letters("lunary")
    assert orjson.loads(letter) == {"at": "2026-09-21T14:13:20.123Z", "sink": "lunary", "reason": "400", "event": sample(1)}
