"""A link to Redis for what can be done without it: whoever uses it waits a moment at most, and not at all while Redis is away."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from redis.exceptions import RedisError

from llm_proxy.tasks import Tasks

# How long a call waits for Redis.
PATIENCE = 0.05
FAILURES = 5
# A probe takes time too, and Redis has to be in use again within a second of its return.
PROBE_SECONDS = 0.9
# What nobody waits for may take longer.
BACKGROUND_PATIENCE = 1.0

# What `RedisLink.ask` raises.
NO_ANSWER = (RedisError, OSError)


class RedisLink:
    """Asks Redis, and follows whether it is there: after five failures in a row it is away until a check finds it back.

    Args:
        check: run when the link is opened, then about each second, with how long it may take; it raises what a command of
            Redis raises, and when it does not, Redis is there.
        switched: told each change, with the failure when Redis is gone, with None when it is back.
        patience: how many seconds one who asks waits.

    Attributes:
        away: whether nobody asks Redis now.
    """

    def __init__(
        self,
        check: Callable[[float], Awaitable[None]],
        switched: Callable[[Exception | None], None],
        patience: float = PATIENCE,
    ) -> None:
        self.away = False
        self._check = check
        self._switched = switched
        self._patience = patience
        self._tasks = Tasks()
        self._failures = 0

    async def open(self) -> None:
        """Look whether Redis is there at all, so that no call has to find out; from now on follow whether it is."""
        try:
            await self._check(BACKGROUND_PATIENCE)
        except NO_ANSWER as error:
            self._leave(error)
        self._tasks.start("watch over Redis", self._watch())

    async def close(self) -> None:
        """End; what is still being asked is given up."""
        await self._tasks.close()

    async def ask(self, command: Callable[[], Awaitable[Any]], patience: float | None = None) -> Any:
        """The answer of Redis, in time.

        Args:
            command: makes what is awaited, such as `lambda: redis.get(key)`.
            patience: another than that of the link.

        Raises:
            RedisError: what redis-py says.
            OSError: the same, or that there is no answer in time, or that Redis is away.
        """
        if self.away:
            raise ConnectionError("Redis is away")
        try:
            answer = await self.within(self._patience if patience is None else patience, command())
        except NO_ANSWER as error:
            self._failed(error)
            raise
        self._failures = 0
        return answer

    async def within(self, seconds: float, command: Awaitable[Any]) -> Any:
        """The answer of Redis in this time, whether it is away or not, for checks.

        Raises:
            RedisError: what redis-py says.
            OSError: the same, or that there is no answer in time.
        """
        return await self._tasks.within(seconds, "a command to Redis", command)

    async def _watch(self) -> None:
        while True:
            await asyncio.sleep(PROBE_SECONDS)
            try:
                await self._check(self._patience if self.away else BACKGROUND_PATIENCE)
            except NO_ANSWER as error:
                self._failed(error)
            else:
                self._return()

    def _failed(self, error: Exception) -> None:
        self._failures += 1
        if self._failures >= FAILURES and not self.away:
            self._leave(error)

    def _leave(self, error: Exception) -> None:
        self.away = True
        self._switched(error)

    def _return(self) -> None:
        if self.away:
            self.away, self._failures = False, 0
            self._switched(None)
