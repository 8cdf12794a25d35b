"""Tests of the client of Redis."""

import asyncio

import pytest
from redis.exceptions import ConnectionError as RedisConnectionError
from stage.postgres import free_port
from stage.redis import RedisServer, slow_road

from llm_proxy.errors import SettingsError
from llm_proxy.redis_client import eviction_warning, latency, open_redis
from llm_proxy.secret import Secret


async def test_a_redis_that_is_not_there_fails_soon_and_only_when_it_is_used() -> None:
    async with open_redis(Secret(f"redis://127.0.0.1:{free_port()}/0"), 2) as client, asyncio.timeout(1):
        with pytest.raises(RedisConnectionError):
            await client.ping()


async def test_a_connection_that_redis_closed_is_made_anew(redis_server: RedisServer) -> None:
    async with open_redis(Secret(redis_server.uri), 1) as client:
        await client.set("key", "value")
        assert redis_server.say("CLIENT KILL TYPE normal").startswith(":")
        assert await client.get("key") == b"value"


async def test_more_commands_than_connections_wait_for_each_other(redis_server: RedisServer) -> None:
    async with open_redis(Secret(redis_server.uri), 2) as client:
        assert sorted(await asyncio.gather(*(client.incr("key") for _ in range(20)))) == list(range(1, 21))


async def test_an_answer_that_nobody_waited_for_is_not_given_to_another(redis_server: RedisServer) -> None:
    async with slow_road(redis_server) as road, open_redis(Secret(road.uri), 1) as client:
        await client.mset({"mine": "mine", "yours": "yours"})
        road.delay = 0.2
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.get("mine")
        road.delay = 0.0
        assert await client.get("yours") == b"yours"


@pytest.mark.parametrize("url", ["http://127.0.0.1", "127.0.0.1:6379", ""], ids=["http", "no scheme", "empty"])
async def test_a_url_that_is_none_of_redis_is_named(url: str) -> None:
    with pytest.raises(SettingsError, match="REDIS_URL"):
        async with open_redis(Secret(url), 2):
            pass


async def test_latency_is_a_time_while_there_is_an_answer(mortal_redis: RedisServer) -> None:
    async with open_redis(Secret(mortal_redis.uri), 1) as client:
        assert 0 < (await latency(client) or 0) < 1
        mortal_redis.kill()
        assert await latency(client) is None


async def test_a_redis_that_may_evict_is_warned_of(mortal_redis: RedisServer) -> None:
    async with open_redis(Secret(mortal_redis.uri), 1) as client:
        assert await eviction_warning(client) is None
        await client.config_set("maxmemory-policy", "allkeys-lru")
        assert "allkeys-lru" in (await eviction_warning(client) or "")
