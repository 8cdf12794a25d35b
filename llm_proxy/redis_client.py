"""The client of Redis that the parts of a process share."""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from redis.asyncio import BlockingConnectionPool, Redis
from redis.asyncio.retry import Retry
from redis.backoff import ExponentialBackoff
from redis.exceptions import RedisError

from llm_proxy.errors import SettingsError
from llm_proxy.secret import Secret

# The last resort; whoever serves a call gives up much earlier.
TIMEOUT = 1.0


@asynccontextmanager
async def open_redis(url: Secret, pool_size: int) -> AsyncIterator["Redis"]:
    """A client for the length of the block. It connects when it is used first, so Redis may be away now.

    redis-py's own retries would hold a call for seconds: here a command is sent once more, at once, which is for connections
    that Redis closed while nobody used them.

    Raises:
        SettingsError: the URL cannot be used.
    """
    try:
        pool = BlockingConnectionPool.from_url(
            url.reveal(),
            max_connections=max(1, pool_size),
            timeout=TIMEOUT,
            socket_timeout=TIMEOUT,
            socket_connect_timeout=TIMEOUT,
            retry=Retry(ExponentialBackoff(cap=0.1, base=0.01), 1),
        )
    except ValueError:
        raise SettingsError("REDIS_URL must begin with redis:// or rediss://, such as redis://:password@host:6379/0.") from None
    async with Redis.from_pool(pool) as client:
        yield client


async def eviction_warning(client: "Redis") -> str | None:
    """What to tell the operator when Redis may throw away what we keep in it.

    Raises:
        RedisError: Redis does not answer.
    """
    policy = (await client.info("memory")).get("maxmemory_policy", "noeviction")
    if policy == "noeviction":
        return None
    return f"Redis may evict limits and events when it is full (maxmemory-policy {policy}). Set maxmemory-policy noeviction."


async def latency(client: "Redis") -> float | None:
    """How many seconds a small question takes, None when Redis does not answer it."""
    began = time.perf_counter()
    try:
        await client.ping()
    except (RedisError, OSError):
        return None
    return time.perf_counter() - began
