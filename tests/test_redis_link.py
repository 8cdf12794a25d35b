"""Tests of the link to Redis: nobody waits long, and when it is away nobody waits."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis
from stage.redis import RedisServer, slow_road

from llm_proxy.redis_client import open_redis
from llm_proxy.redis_link import FAILURES, NO_ANSWER, RedisLink
from llm_proxy.secret import Secret

PATIENTLY = 10.0
# Longer than the product's, for machines with much else to do, and shorter than redis-py's own.
PATIENCE = 0.25
SOON = 0.8


@dataclass
class Bench:
    """A link, what it said, and the client it uses."""

    link: RedisLink
    switches: "asyncio.Queue[Exception | None]"
    redis: "Redis"

    async def get(self) -> object:
        async with asyncio.timeout(SOON):
            return await self.link.ask(lambda: self.redis.get("key"))

    async def switched(self) -> Exception | None:
        async with asyncio.timeout(PATIENTLY):
            return await self.switches.get()


@asynccontextmanager
async def open_bench(uri: str, patience: float = PATIENCE) -> AsyncIterator[Bench]:
    switches: asyncio.Queue[Exception | None] = asyncio.Queue()
    async with open_redis(Secret(uri), 20) as redis:

        async def check(seconds: float) -> None:
            await link.within(seconds, redis.set("probe", ""))

        link = RedisLink(check, switches.put_nowait, patience)
        await link.open()
        try:
            yield Bench(link, switches, redis)
        finally:
            await link.close()


async def test_five_failures_in_a_row_then_nobody_waits_until_it_is_back(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        await bench.redis.set("key", "value")
        mortal_redis.freeze()
        for _ in range(FAILURES):
            assert not bench.link.away
            with pytest.raises(NO_ANSWER):
                await bench.get()
        assert bench.link.away and isinstance(await bench.switched(), TimeoutError)
        with pytest.raises(ConnectionError, match="away"):
            bench.link.ask(bench.redis.ping).send(None)
        mortal_redis.resume()
        assert await bench.switched() is None
        assert await bench.get() == b"value"
        assert bench.switches.empty()


async def test_one_failure_is_no_reason_to_leave(redis_server: RedisServer) -> None:
    async with slow_road(redis_server) as road, open_bench(road.uri) as bench:
        for _ in range(FAILURES):
            road.delay = 2 * PATIENCE
            with pytest.raises(TimeoutError):
                await bench.get()
            road.delay = 0.0
            assert await bench.get() is None
        assert not bench.link.away


async def test_redis_away_at_the_start_is_known_before_anybody_asks(mortal_redis: RedisServer) -> None:
    mortal_redis.kill()
    async with open_bench(mortal_redis.uri) as bench:
        assert bench.link.away
        mortal_redis.start()
        assert await bench.switched() and await bench.switched() is None


async def test_who_asks_waits_50_milliseconds_unless_told_otherwise() -> None:
    assert inspect.signature(RedisLink).parameters["patience"].default == 0.05
