"""Every event of a log reaches the stream, whatever happens to Redis; the log keeps what no group has acknowledged."""

import pathlib
from collections import Counter

import orjson
import pytest
from stage.asking import until
from stage.redis import RedisServer
from stage.streams import KEY, Log, numbers_of, open_stream, shipping, taken

from llm_proxy.events import shipping as product
from llm_proxy.events.consuming import StreamSource
from llm_proxy.events.stream import EVENT


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "SHIP_SECONDS", 0.01)
    monkeypatch.setattr(product, "TRIM_SECONDS", 0.02)
    monkeypatch.setattr(product, "RETRY_SECONDS", 0.05)


def length(server: RedisServer) -> int:
    return int(server.say(f"XLEN {KEY}")[1:])


async def test_events_of_several_logs_reach_every_group_in_their_order(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(redis_server) as stream:
        one, other = Log(tmp_path / "a", stream), Log(tmp_path / "b", stream)
        file, lunary = StreamSource(stream, "file"), StreamSource(stream, "lunary")
        async with shipping(one, other):
            await file.read(1)
            one.publish(*range(150))
            other.publish(*range(1000, 1150))
            await until(lambda: one.shipper.stats.delivered == other.shipper.stats.delivered == 150)
            got = numbers_of(await taken(file))
            assert [number for number in got if number < 1000] == list(range(150))
            assert [number for number in got if number >= 1000] == list(range(1000, 1150))
            assert one.acknowledged < 150 or length(redis_server) == 0
            await lunary.read(1)
            assert set(numbers_of(await taken(lunary))) <= set(got)
            await until(lambda: one.acknowledged == other.acknowledged == 150)
            await until(lambda: one.spool.drained and other.spool.drained)
            assert length(redis_server) == 0
            assert one.shipper.stats.backlog.count == 0


async def test_redis_away_holds_events_on_the_disk_and_loses_none(mortal_redis: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(mortal_redis) as stream:
        log, source = Log(tmp_path / "a", stream), StreamSource(stream, "file")
        async with shipping(log):
            log.publish(*range(10))
            await until(lambda: log.shipper.stats.delivered == 10)
            mortal_redis.kill()
            log.publish(*range(10, 300))
            await until(lambda: log.shipper.stats.failed)
            stats = log.shipper.stats
            assert stats.backlog.count == 290 and stats.oldest_age > 0 and stats.last_error
            mortal_redis.start()
            # What was shipped before is shipped again, for it went with Redis.
            got: list[int] = []
            while set(got) != set(range(300)):
                got += numbers_of(await taken(source))
            assert max(Counter(got).values()) == 1
            await until(lambda: log.acknowledged == 300)


@pytest.mark.parametrize("loss", ["flush", "delete", "restart"])
async def test_what_redis_lost_before_it_was_acknowledged_is_shipped_again(
    mortal_redis: RedisServer, tmp_path: pathlib.Path, loss: str
) -> None:
    async with open_stream(mortal_redis) as stream:
        one, other = Log(tmp_path / "a", stream), Log(tmp_path / "b", stream)
        source = StreamSource(stream, "file")
        async with shipping(one, other):
            one.publish(*range(100))
            await until(lambda: one.shipper.stats.delivered == 100)
            done = await source.read(30) or await source.read(30)
            await source.settle(len(done))
            await until(lambda: one.acknowledged == 0 and length(mortal_redis) == 70)
            if loss == "restart":
                mortal_redis.restart()
            else:
                assert mortal_redis.say("FLUSHALL" if loss == "flush" else f"DEL {KEY}")[0] in "+:"
            other.publish(*range(1000, 1010))
            got = numbers_of(done)
            while not set(got) >= {*range(100), *range(1000, 1010)}:
                got += numbers_of(await taken(source))
            await until(lambda: one.acknowledged == 100 and other.acknowledged == 10)


async def test_a_restart_ships_nothing_twice(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(redis_server) as stream:
        await stream.join("file")
        log = Log(tmp_path / "a", stream)
        async with shipping(log):
            log.publish(*range(50))
            await until(lambda: (tmp_path / "a" / "redis.mark").exists())
        again = Log(tmp_path / "a", stream)
        async with shipping(again):
            again.publish(*range(50, 60))
            await until(lambda: again.shipper.stats.delivered)
        assert length(redis_server) == 60
        assert again.acknowledged == 0


async def test_what_was_shipped_just_before_a_stop_is_not_shipped_again(
    redis_server: RedisServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "TRIM_SECONDS", 1000)
    async with open_stream(redis_server) as stream:
        await stream.join("file")
        async with shipping(log := Log(tmp_path / "a", stream)):
            for number in range(3):
                log.publish(number)
                await until(lambda number=number: log.shipper.stats.delivered > number)
        async with shipping(again := Log(tmp_path / "a", stream)):
            again.publish(3)
            await until(lambda: again.shipper.stats.delivered)
        assert length(redis_server) == 4


async def test_a_restart_ships_again_what_redis_lost_meanwhile(mortal_redis: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(mortal_redis) as stream:
        log = Log(tmp_path / "a", stream)
        async with shipping(log):
            log.publish(*range(50))
            await until(lambda: (tmp_path / "a" / "redis.mark").exists())
        mortal_redis.restart()
        async with shipping(again := Log(tmp_path / "a", stream)):
            await until(lambda: again.shipper.stats.delivered == 50)
        assert length(mortal_redis) == 50


async def test_numbers_that_a_power_loss_took_and_others_got_are_shipped(
    redis_server: RedisServer, tmp_path: pathlib.Path
) -> None:
    async with open_stream(redis_server) as stream:
        log = Log(tmp_path / "a", stream)
        async with shipping(log):
            log.publish(*range(50))
            await until(lambda: (tmp_path / "a" / "redis.mark").exists())
        for path in (tmp_path / "a").glob("*.seg"):
            path.unlink()
        again = Log(tmp_path / "a", stream)
        again.publish(*range(100, 103))
        async with shipping(again):
            await until(lambda: again.shipper.stats.delivered == 3)
            again.publish(*range(103, 200))
            await until(lambda: again.shipper.stats.delivered == 100)


async def test_what_the_logs_cap_took_away_is_a_gap_in_the_stream(mortal_redis: RedisServer, tmp_path: pathlib.Path) -> None:
    mortal_redis.kill()
    async with open_stream(mortal_redis) as stream:
        log = Log(tmp_path / "a", stream, backlog_bytes=20_000)
        for number in range(300):
            log.publish(number)
            log.spool.tick()
        assert log.spool.dropped > 0
        mortal_redis.start()
        source = StreamSource(stream, "file")
        async with shipping(log):
            await until(lambda: log.shipper.stats.backlog.count == 0)
            await source.read(1)
            found = await taken(source)
        gaps = [item for item in found if not hasattr(item, "payload")]
        assert [gap.count for gap in gaps] == [log.spool.dropped] == [log.shipper.stats.dropped]
        assert len(numbers_of(found)) + log.spool.dropped == 300


async def test_the_cap_of_the_stream_lets_go_of_the_log_too(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(redis_server) as stream:
        await stream.join("file")
        source = StreamSource(stream, "file")
        log = Log(tmp_path / "a", stream, cap=60_000)
        async with shipping(log):
            log.publish(*range(1000))
            await until(lambda: log.shipper.stats.delivered == 1000 and log.acknowledged > 500)
            let_go = log.acknowledged
            found = await taken(source)
        gone = sum(item.count for item in found if not hasattr(item, "payload"))
        assert gone >= let_go and gone + len(numbers_of(found)) == 1000


async def test_a_redis_that_may_throw_the_stream_away_is_warned_of_and_nothing_is_lost(
    mortal_redis: RedisServer, tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    assert mortal_redis.say("CONFIG SET maxmemory-policy allkeys-lru") == "+OK"
    async with open_stream(mortal_redis) as stream, shipping(log := Log(tmp_path / "a", stream)):
        log.publish(*range(20))
        await until(lambda: log.shipper.stats.delivered == 20)
        assert "noeviction" in caplog.text
        # What the policy may do at any time.
        assert mortal_redis.say(f"DEL {KEY}") == ":1"
        await until(lambda: length(mortal_redis) == 20)


async def test_a_full_redis_is_as_one_that_is_away(mortal_redis: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(mortal_redis) as stream, shipping(log := Log(tmp_path / "a", stream)):
        log.publish(*range(20))
        await until(lambda: log.shipper.stats.delivered == 20)
        assert mortal_redis.say("CONFIG SET maxmemory 100000") == "+OK"
        log.publish(*range(20, 40))
        await until(lambda: log.shipper.stats.failed)
        assert log.shipper.stats.backlog.count == 20 and "maxmemory" in log.shipper.stats.last_error
        assert mortal_redis.say("CONFIG SET maxmemory 0") == "+OK"
        await until(lambda: length(mortal_redis) == 40)
        await stream.join("file")
        assert numbers_of(await taken(StreamSource(stream, "file"))) == list(range(40))


async def test_marks_are_thinned_out(redis_server: RedisServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(product, "MOST_MARKS", 4)
    async with open_stream(redis_server) as stream:
        log, source = Log(tmp_path / "a", stream), StreamSource(stream, "file")
        async with shipping(log):
            for number in range(12):
                log.publish(number)
                await until(lambda done=number: log.shipper.stats.delivered > done)
            assert len(log.shipper._marks) <= 4
            await source.read(1)
            assert numbers_of(await taken(source)) == list(range(12))
            await until(lambda: log.acknowledged == 12)


async def test_the_stream_holds_the_events_as_they_stand_in_the_log(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(redis_server) as stream:
        async with shipping(log := Log(tmp_path / "a", stream)):
            log.publish(7)
            await until(lambda: log.shipper.stats.delivered)
        [(_, fields)] = await stream.do(stream._redis.xrange(KEY))
        assert orjson.loads(fields[EVENT])["request_id"] == "request-7"
