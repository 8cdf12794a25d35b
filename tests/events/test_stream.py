"""The stream keeps what a group has yet to acknowledge, and counts what its cap takes away."""

import asyncio
import pathlib

import pytest
from stage.redis import RedisServer
from stage.streams import GIB, KEY, filled, open_stream

from llm_proxy.events import stream as stream_module
from llm_proxy.events.stream import EVENT, EventStream, NoGroup, StreamUnavailable


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
        assert [letter for _, letter in await stream.letters("file")] == [b'{"reason":"400"}']
