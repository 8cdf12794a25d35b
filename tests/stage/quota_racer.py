"""One of several processes that race for the quotas of all tokens in a database.

Started with settings as JSON, those of the database and of Redis where limits are counted there, and with the file to which every
granted request is written as a line with its token's id. It says `ready`, waits for a line, takes until every token refuses,
returns what it did not use, then prints how many requests it asked for.
"""

import asyncio
import json
import os
import random
import sys
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

from llm_proxy import tokens
from llm_proxy.db import open_database
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError, DatabaseUnavailable
from llm_proxy.limits.limiter import Limiter, open_limiter
from llm_proxy.limits.quota import Quota
from llm_proxy.limits.rates import Bounds, KnownLimits
from llm_proxy.redis_client import open_redis
from llm_proxy.settings import Settings, load
from llm_proxy.tokens import Token

AT_ONCE = 8


@asynccontextmanager
async def opened_limiter(settings: Settings) -> AsyncIterator[Limiter]:
    """The limiter that a server with these settings has."""
    async with AsyncExitStack() as stack:
        redis = await stack.enter_async_context(open_redis(settings.redis_url, 10)) if settings.redis_url else None
        yield await stack.enter_async_context(
            open_limiter(redis, "ratelimit:", fallback=True, switched=lambda to: print(to, file=sys.stderr))
        )


class Door:
    """Takes as a call does: from limits and slots first, then from the quota, whose refusal gives those back."""

    def __init__(self, quota: Quota, limiter: Limiter, limits: KnownLimits) -> None:
        self._quota, self._limiter, self._limits = quota, limiter, limits

    async def take(self, token: Token) -> None:
        """Take one request.

        Raises:
            ApiError: there is none.
        """
        decision = await self._limiter.take(self._limits.of(token))
        if not decision.granted:
            raise decision.refusal()
        try:
            await self._quota.take(token)
        except ApiError:
            self._limiter.give_back(decision)
            raise
        self._limiter.release(decision)


async def exhaust(quota: Door, token: Token, granted: int) -> int:
    """Take until refused; returns how often it asked."""
    asked = 0
    while True:
        asked += 1
        try:
            await quota.take(token)
        except DatabaseUnavailable:
            continue
        except ApiError as error:
            if error.code == "rate_limit_exceeded":
                await asyncio.sleep(0)
                continue
            assert error.code == "request_limit_exhausted", error.code
            return asked
        # Whole lines reach the file even if the process is killed right after.
        os.write(granted, f"{token.id}\n".encode())


async def race(settings: str, path: str) -> None:
    """Take part in the race."""
    granted = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    loaded = load(overrides=json.loads(settings))
    async with open_database(loaded) as database, opened_limiter(loaded) as limiter:
        quota = Quota(database)
        door = Door(quota, limiter, KnownLimits(Bounds(), (0, 60.0), 10_000))
        left = await tokens.find(database, Page(limit=100_000))
        random.shuffle(left)
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)

        async def work() -> int:
            asked = 0
            while left:
                asked += await exhaust(door, left.pop(), granted)
            return asked

        asked = sum(await asyncio.gather(*(work() for _ in range(AT_ONCE))))
        await quota.settle()
        print(asked, flush=True)


if __name__ == "__main__":
    asyncio.run(race(*sys.argv[1:]))
