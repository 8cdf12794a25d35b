"""The events of all instances reach a sink through Redis, whichever process is killed on the way."""

import asyncio
import os
import pathlib
import random
import signal
from collections import Counter
from typing import Any

import aiohttp
import orjson
import pytest
from aiohttp import web
from stage.asking import until
from stage.calls import call
from stage.house import House, open_house, settings_for
from stage.logs import lines_of
from stage.notified import notified
from stage.postgres import free_port
from stage.processes import dispatcher
from stage.redis import RedisServer
from stage.sinks import KEY, FakeLunary, running, sample
from stage.streams import KEY as STREAM
from stage.streams import Log, open_stream, shipping

from llm_proxy.dispatcher import open_post, open_site
from llm_proxy.errors import StartError
from llm_proxy.events import consuming
from llm_proxy.events import dispatcher as delivery
from llm_proxy.events import shipping as shipment
from llm_proxy.events.consuming import StreamLetters
from llm_proxy.events.stream import EVENT
from llm_proxy.settings import Settings

KILLS = int(os.environ.get("KILLS", "3"))
STREAMS = {"LLM_PROXY_EVENT_BUS": "redis-streams", "REDIS_STREAM_KEY": STREAM}


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(delivery, "FLUSH", 0.02)
    monkeypatch.setattr(delivery, "SHORTEST_PAUSE", 0.02)
    monkeypatch.setattr(shipment, "TRIM_SECONDS", 0.05)
    monkeypatch.setattr(consuming, "HOLD_SECONDS", 0.02)
    monkeypatch.setattr(consuming, "IDLE_SECONDS", 0.3)


def house_settings(folder: pathlib.Path, server: RedisServer, **more: str) -> Settings:
    folder.mkdir(exist_ok=True)
    return settings_for(folder, REDIS_URL=server.uri, **STREAMS, **more)


async def called(house: House, fake: str, count: int) -> None:
    token = await house.token_for(fake)
    async with aiohttp.ClientSession() as client:
        for _ in range(count):
            assert await call(client, house, token) == (200, None)


def delivered(path: pathlib.Path) -> Counter[str]:
    return Counter(event["id"] for event in lines_of(path))


async def test_the_events_of_two_instances_arrive_at_the_sink_of_one_dispatcher(
    redis_server: RedisServer, tmp_path: pathlib.Path, fake: str
) -> None:
    async with (
        open_house(house_settings(tmp_path / "a", redis_server, EVENT_SINKS="lunary")) as one,
        open_house(house_settings(tmp_path / "b", redis_server)) as other,
        dispatcher(tmp_path, "file", redis_server.uri, REDIS_STREAM_KEY=STREAM) as process,
    ):
        await asyncio.gather(called(one, fake, 30), called(other, fake, 30))
        made = {event.id for house in (one, other) for event in house.events}
        await until(lambda: len(delivered(tmp_path / "events.jsonl")) == 60, 10)
        assert set(delivered(tmp_path / "events.jsonl")) == made
        # What is acknowledged is counted, too.
        await until(lambda: all(house.context.events._own.spool.drained for house in (one, other)), 10)  # type: ignore[union-attr]
        assert orjson.loads((await process.get("/health"))[1])["service"] == "file"
        assert await process.get("/ready") == (200, '{"status": "ready", "missing": []}')
        assert 'llm_proxy_events_delivered_total{sink="file"} 60.0' in (await process.get("/metrics"))[1]
        shipped = one.context.metrics.registry.get_sample_value("llm_proxy_events_delivered_total", {"sink": "redis"})
        assert shipped == 30 == len(one.events)
        (tmp_path / "events.jsonl").rename(tmp_path / "rotated.jsonl")
        process.send(signal.SIGHUP)
        await called(one, fake, 1)
        await until(lambda: len(delivered(tmp_path / "events.jsonl")) == 1, 10)
        assert await process.stopped() == 0
        async with open_stream(redis_server) as stream:
            [group] = (await stream.state()).groups
        assert (group.consumers, group.pending, group.lag) == (0, 0, 0), "it gave back what it had, and left"


async def test_redis_killed_frozen_and_emptied_costs_no_call_a_moment_and_no_event(
    mortal_redis: RedisServer, tmp_path: pathlib.Path, fake: str
) -> None:
    took: list[float] = []
    async with open_house(house_settings(tmp_path / "a", mortal_redis)) as house, aiohttp.ClientSession() as client:
        token = await house.token_for(fake)

        async def calls(count: int) -> None:
            for _ in range(count):
                began = asyncio.get_running_loop().time()
                assert await call(client, house, token) == (200, None)
                took.append(asyncio.get_running_loop().time() - began)

        await calls(20)
        # Shipped, and not delivered: these are lost with Redis.
        await until(lambda: house.context.events.report().sinks["redis"].backlog.count == 0)
        mortal_redis.kill()
        await calls(20)
        mortal_redis.start()
        async with open_post(house.context.settings, "file"):
            await calls(20)
            mortal_redis.freeze()
            await calls(20)
            mortal_redis.resume()
            mortal_redis.restart()
            await calls(20)
            await until(lambda: len(delivered(tmp_path / "a" / "events.jsonl")) == 100, 10)
        assert set(delivered(tmp_path / "a" / "events.jsonl")) == {event.id for event in house.events}
        assert max(took) < 0.5
        assert house.context.events.report().lost == house.context.events.report().dropped == 0


async def test_a_dispatcher_killed_again_and_again_loses_nothing(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    chance, published = random.Random(5), 0
    async with open_stream(redis_server) as stream, shipping(log := Log(tmp_path / "log", stream)):
        for _ in range(KILLS):
            async with dispatcher(tmp_path, "file", redis_server.uri, REDIS_STREAM_KEY=STREAM) as process:
                for _ in range(chance.randrange(5, 40)):
                    log.publish(*range(published, published + 10))
                    published += 10
                    await asyncio.sleep(0.01)
                process.send(signal.SIGKILL)
        async with dispatcher(tmp_path, "file", redis_server.uri, REDIS_STREAM_KEY=STREAM) as process:
            await until(lambda: log.acknowledged == published, 60)
            assert await process.stopped() == 0
        found = delivered(tmp_path / "events.jsonl")
        print(f"{KILLS} kills: {published} events, {published - len(found)} lost, {found.total() - len(found)} duplicates")
        assert set(found) == {sample(number)["id"] for number in range(published)}
        assert await stream.letters("file") == []


async def test_killed_between_delivery_and_acknowledgement_it_is_delivered_again_with_the_same_id(
    redis_server: RedisServer, tmp_path: pathlib.Path
) -> None:
    lunary = FakeLunary()
    env = {"LUNARY_API_KEY": KEY, **STREAMS}
    async with running(lunary), open_stream(redis_server) as stream:
        epoch, _ = await stream.add("", [])
        await stream.add(epoch, [(EVENT, orjson.dumps(sample(number))) for number in range(5)])
        async with dispatcher(tmp_path, "lunary", redis_server.uri, LUNARY_URL=lunary.url, **env) as process:

            def keep_and_kill(request: web.Request, document: Any) -> str:
                lunary.take(document)
                process.send(signal.SIGKILL)
                return "reset"

            lunary.fault = keep_and_kill
            assert await process.ended() == -signal.SIGKILL
        lunary.fault = lambda request, document: None
        kept, bodies = list(lunary.kept), list(lunary.bodies)
        assert len(kept) == 5 and len(bodies) == 1
        settings = settings_for(tmp_path, REDIS_URL=redis_server.uri, LUNARY_URL=lunary.url, **env)
        async with open_post(settings, "lunary") as post:
            await until(lambda: post.dispatcher.stats.delivered == 5)
        assert lunary.kept == kept and lunary.bodies == bodies * 2


async def test_a_poison_event_goes_to_the_dead_letters_in_redis(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(redis_server) as stream:
        epoch, _ = await stream.add("", [])
        await stream.add(epoch, [(EVENT, b"{"), (EVENT, orjson.dumps(sample(1)))])
        async with open_post(settings_for(tmp_path, REDIS_URL=redis_server.uri, **STREAMS), "file"):
            await until(lambda: lines_of(tmp_path / "events.jsonl"))
        [letter] = [found.facts async for found in StreamLetters(stream).read()]
        assert letter["sink"] == "file" and letter["reason"].startswith("unreadable") and letter["event"] == "{"
        [group] = (await stream.state()).groups
        assert (group.pending, group.consumers, group.dead_letters) == (0, 0, 1)


async def test_what_ends_every_dispatcher_goes_to_the_dead_letters(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    async with open_stream(redis_server) as stream:
        await stream.join("file")
        epoch, _ = await stream.add("", [])
        await stream.add(epoch, [(EVENT, orjson.dumps(sample(number))) for number in (1, 2)])
        group = stream.group_of("file")
        [(first, _), _] = await stream.fetch(group, "dead", 2)
        await stream.do(stream._redis.xclaim(STREAM, group, "dead", 0, [first], retrycount=delivery.MOST_FAILURES, justid=True))
        async with open_post(settings_for(tmp_path, REDIS_URL=redis_server.uri, **STREAMS), "file") as post:
            await until(lambda: post.dispatcher.stats.delivered == 1 and post.dispatcher.stats.dead_letters == 1)
        assert [event["id"] for event in lines_of(tmp_path / "events.jsonl")] == [sample(2)["id"]]
        [letter] = [found.facts async for found in StreamLetters(stream).read()]
        assert letter["event"] == sample(1) and letter["reason"] == "10 dispatchers ended while they had it"


async def test_without_redis_it_waits_and_says_so(mortal_redis: RedisServer, tmp_path: pathlib.Path) -> None:
    mortal_redis.kill()
    settings = settings_for(tmp_path, REDIS_URL=mortal_redis.uri, METRICS_TOKEN="metrics-token-0001", **STREAMS)
    async with open_post(settings, "file") as post, open_site(post, "127.0.0.1:0") as url, aiohttp.ClientSession() as client:
        await until(lambda: post.source.away)
        async with client.get(url + "/ready") as reply:
            assert (reply.status, await reply.json()) == (503, {"status": "not ready", "missing": ["redis"]})
        async with client.get(url + "/metrics") as reply:
            assert reply.status == 401
        async with client.get(url + "/metrics", headers={"Authorization": "Bearer metrics-token-0001"}) as reply:
            assert reply.status == 200
        mortal_redis.start()
        async with open_stream(mortal_redis) as stream:
            await until(lambda: not post.source.away)
            epoch, _ = await stream.add("", [])
            await stream.add(epoch, [(EVENT, orjson.dumps(sample(1)))])
            await until(lambda: lines_of(tmp_path / "events.jsonl"))


async def test_an_address_in_use_is_named(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    settings, addr = settings_for(tmp_path, REDIS_URL=redis_server.uri, **STREAMS), f"127.0.0.1:{free_port()}"
    async with open_post(settings, "file") as post, open_site(post, addr):
        with pytest.raises(StartError, match="Is another dispatcher running"):
            async with open_site(post, addr):
                pass


async def test_systemd_is_told_of_ready_watchdog_and_stopping(tmp_path: pathlib.Path, redis_server: RedisServer) -> None:
    env = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000"}
    with notified(tmp_path / "notify") as told:
        async with dispatcher(tmp_path, "file", redis_server.uri, **env) as process:
            await until(lambda: told.count("WATCHDOG=1") >= 3)
            assert await process.stopped() == 0
        await until(lambda: "EXTEND_TIMEOUT_USEC=45000000" in told)
    assert [word for word in told if word != "WATCHDOG=1"] == ["READY=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=45000000"]
