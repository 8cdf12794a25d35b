"""No event is trimmed that a group has yet to acknowledge, but by the cap, and then it is counted."""

import orjson
from stage.redis import RedisServer
from stage.streams import GIB, KEY, filled, open_stream

from llm_proxy.events.stream import EVENT, GAP, EventStream, read_id


async def read(stream: EventStream, group: str, count: int) -> list[bytes]:
    """Have so many read by a consumer; returns their ids."""
    return [id for id, _ in await stream.fetch(group, "someone", count)]


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


async def test_a_group_that_comes_late_holds_up_nothing_that_went_before(redis_server: RedisServer) -> None:
    async with open_stream(redis_server) as stream:
        await stream.join("file")
        await filled(stream, 10)
        ids = await read(stream, group := stream.group_of("file"), 10)
        await stream.acknowledge(group, ids[:9])
        await stream.trim(GIB)
        await stream.join("lunary")
        assert (await stream.trim(GIB))[1] == read_id(ids[9])
        late = await read(stream, stream.group_of("lunary"), 10)
        assert late == ids[9:]
        for name in ("file", "lunary"):
            await stream.acknowledge(stream.group_of(name), late)
        await stream.trim(GIB)
        await stream.join("helicone")
        assert (await stream.trim(GIB))[1] > read_id(ids[9]), "nothing is left that anybody could wait for"


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
