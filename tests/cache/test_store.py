"""Tests of the choice of a store."""

from stage.redis import RedisServer

from llm_proxy.cache.memory import MemoryStore
from llm_proxy.cache.redis import RedisStore
from llm_proxy.cache.store import open_store
from llm_proxy.redis_client import open_redis
from llm_proxy.secret import Secret


async def test_without_redis_responses_are_kept_in_memory() -> None:
    async with open_store(None, "cache:", max_bytes=1 << 20, max_object_bytes=10, switched=lambda to: None) as store:
        assert isinstance(store, MemoryStore) and not store.degraded


async def test_with_redis_they_are_kept_there(redis_server: RedisServer) -> None:
    async with (
        open_redis(Secret(redis_server.uri), 2) as redis,
        open_store(redis, "cache:", max_bytes=1, max_object_bytes=10, switched=lambda to: None) as store,
    ):
        assert isinstance(store, RedisStore) and not store.degraded
