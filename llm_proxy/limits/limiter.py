"""The limiter of the settings' choice."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from redis.asyncio import Redis

from llm_proxy.limits.memory import MemoryLimiter
from llm_proxy.limits.rates import Decision, Limits, Standing
from llm_proxy.limits.redis import RedisLimiter


class Limiter(Protocol):
    """Keeps requests within rates and slots.

    Attributes:
        degraded: whether limits are not counted where they should be.
    """

    @property
    def degraded(self) -> bool:
        """Whether limits are not counted where they should be."""

    async def take(self, limits: Limits) -> Decision:
        """Take one request from all limits, or from none.

        Raises:
            ApiError: `rate_limits_unavailable`.
        """

    async def look(self, limits: Limits) -> Standing | None:
        """How far the tightest rate is used up, None without any; nothing is taken."""

    def give_back(self, decision: Decision) -> None:
        """Make a granted request not to have happened, as when its quota refused it; only the first time counts."""

    def release(self, decision: Decision) -> None:
        """A granted request has ended: free its slots; only the first time counts, and a refused one holds none."""


@asynccontextmanager
async def open_limiter(
    redis: "Redis | None", prefix: str, *, fallback: bool, switched: Callable[[str], None]
) -> AsyncIterator[Limiter]:
    """A limiter for the length of the block.

    Args:
        redis: where limits are counted; None for the memory of this process.
        prefix: what the names of keys in Redis begin with.
        fallback: whether this process enforces the limits by itself while Redis is away; else requests are refused.
        switched: told each change, `memory` or `unavailable` when Redis is gone, `redis` when it is back.
    """
    if redis is None:
        yield MemoryLimiter()
        return
    limiter = RedisLimiter(redis, prefix, fallback=fallback, switched=switched)
    await limiter.open()
    try:
        yield limiter
    finally:
        await limiter.close()
