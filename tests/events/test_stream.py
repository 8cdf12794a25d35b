"""The stream keeps what a group has yet to acknowledge, and counts what its cap takes away."""

import asyncio
import pathlib

import orjson
import pytest
from stage.redis import RedisServer
from stage.streams import GIB, KEY, open_stream

from llm_proxy.events import stream as stream_module
from llm_proxy.events.stream import EVENT, GAP, EventStream, NoGroup, StreamUnavailable, read_id


async def filled(stream: EventStream, count: int, size: int = 10) -> str:
    """So many events in the stream; its epoch."""
    epoch, _ = await stream.add("", [])
    for begin in range(0, count, 100):
        records = [(EVENT, b"%06d" % number + bytes(size)) for number in range(begin, min(begin + 100, count))]
        assert (await stream.add(epoch, records))[1]
    return epoch


async def read(stream: EventStream, group: str, count: int) -> list[bytes]:
    """Have so many read by a consumer; returns their ids."""
    return [id for id, _ in await stream.fetch(group, "someone", count)]


@pytest.mark.parametrize("loss", ["restart", "flush", "delete"])
async def test_an_epoch_ends_with_the_stream(mortal_redis: RedisServer, loss: str) -> None:
    async with open_stream(mortal_redis) as stream:
        epoch = await filled(stream, 5)
        assert (await stream.trim(GIB))[0] == epoch
        {
            "restart": mortal_redis.restart,
            "flush": mortal_redis.empty,
            "delete": lambda: mortal_redis.say(f"DEL {KEY}"),
        }[loss]()
        await stream.join("file")
        new, id = await stream.add(epoch, [(EVENT, b"event")])
        assert new != epoch and id is None, "nothing is added under the wrong epoch"
        assert mortal_redis.say(f"XLEN {KEY}") == ":0"
        assert (await stream.trim(GIB))[0] == new == (await stream.add(new, [(EVENT, b"event")]))[0]


async def test_no_event_goes_before_every_group_has_acknowledged_it(redis_server: RedisServer) -> None:
    async with open_stream(redis_server) as stream:
        await filled(stream, 5000)
        await stream.trim(GIB)
        assert redis_server.say(f"XLEN {KEY}") == ":5000", "nobody has read anything, and there is no group"
        for service in ("file", "lunary"):
            await stream.join(service)
        mine, other = stream.group_of("file"), stream.group_of("lunary")
        ids = await read(stream, mine, 3000)
        await stream.acknowledge(mine, ids)
        await stream.trim(GIB)
        assert redis_server.say(f"XLEN {KEY}") == ":5000", "the other group has read nothing"
        assert await read(stream, other, 2000) == ids[:2000]
        await stream.acknowledge(other, [*ids[:500], *ids[501:2000]])
        _, floor, more = await stream.trim(GIB)
        assert (floor, more) == (read_id(ids[500]), False)
        assert redis_server.say(f"XLEN {KEY}") == ":4500", "one in the middle is pending"
        await stream.acknowledge(other, [ids[500]])
        await stream.trim(GIB)
        assert redis_server.say(f"XLEN {KEY}") == ":3000"
        assert await stream.remove("lunary") and not await stream.remove("lunary")
        await stream.trim(GIB)
        assert redis_server.say(f"XLEN {KEY}") == ":2000", "only the group that is left counts"


async def test_what_the_cap_takes_is_counted_for_each_group_that_lacks_it(redis_server: RedisServer) -> None:
    async with open_stream(redis_server) as stream:
        await stream.join("file")
        await stream.join("lunary")
        await filled(stream, 3000, size=200)
        ahead, behind = stream.group_of("file"), stream.group_of("lunary")
        ids = await read(stream, ahead, 2900)
        await stream.acknowledge(ahead, ids)
        await stream.acknowledge(behind, (await read(stream, behind, 50))[:49])
        cap, more = 100_000, True
        while more:
            _, floor, more = await stream.trim(cap)
        assert (await stream.state()).bytes <= cap
        got: dict[str, list[bytes]] = {}
        gaps: dict[str, int] = {}
        for group in (ahead, behind):
            entries = [*(await stream.fetch(group, "someone", 5000))]
            got[group] = [fields[EVENT] for _, fields in entries if EVENT in fields]
            gaps[group] = sum(orjson.loads(fields[GAP])["missing"][group] for _, fields in entries if GAP in fields)
        assert gaps[behind] > 2000
        assert len(got[behind]) + gaps[behind] == 3000 - 49, "the one that it has not acknowledged is gone too"
        assert len(got[ahead]) + gaps[ahead] == 100
        assert len(got[ahead]) == min(100, len(got[behind])), "what it had is not missing to it"
        assert floor == read_id((await stream.do(stream._redis.xrange(KEY, count=1)))[0][0])


async def test_gaps_that_go_are_counted_in_those_that_follow(redis_server: RedisServer) -> None:
    async with open_stream(redis_server) as stream:
        await stream.join("file")
        await filled(stream, 1200, size=100)
        more = True
        while more:
            _, _, more = await stream.trim(1)
        [(_, fields)] = await stream.fetch(stream.group_of("file"), "someone", 100)
        assert orjson.loads(fields[GAP])["missing"] == {"llm-proxy:file": 1200}
        assert orjson.loads(fields[GAP])["count"] == 1200


async def test_redis_away_or_full_is_said_soon(mortal_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream_module, "PATIENCE", 0.3)
    async with open_stream(mortal_redis) as stream:
        epoch = await filled(stream, 10)
        used = (await stream.do(stream._redis.info("memory")))["used_memory"]
        assert mortal_redis.say(f"CONFIG SET maxmemory {used // 2}") == "+OK"
        with pytest.raises(StreamUnavailable, match="maxmemory"):
            await stream.add(epoch, [(EVENT, b"event")])
        assert (await stream.trim(GIB))[0] == epoch, "what makes room still works"
        mortal_redis.freeze()
        async with asyncio.timeout(0.9):
            with pytest.raises(StreamUnavailable):
                await stream.add(epoch, [(EVENT, b"event")])
        mortal_redis.kill()
        async with asyncio.timeout(1):
            with pytest.raises(StreamUnavailable):
                await stream.trim(GIB)
            assert (await stream.state()).available is False


async def test_the_state_tells_of_every_group(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(redis_server) as stream:
        assert (await stream.state()).groups == ()
        with pytest.raises(NoGroup):
            await stream.fetch(stream.group_of("file"), "someone", 1)
        await stream.join("file")
        await stream.join("file")
        await filled(stream, 5)
        await read(stream, stream.group_of("file"), 2)
        await stream.add_letter("file", {"reason": "400"})
        state = await stream.state()
        [group] = state.groups
        assert (state.available, state.length, state.bytes > 0) == (True, 5, True)
        assert (group.name, group.consumers, group.lag, group.pending, group.dead_letters) == ("llm-proxy:file", 1, 3, 2, 1)
        assert await stream.letters("file") == [{"reason": "400"}]
