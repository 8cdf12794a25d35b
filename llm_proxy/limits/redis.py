"""Limits counted in Redis, which several processes share."""

import asyncio
import contextlib
import hashlib
import logging
from collections.abc import Callable
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import NoScriptError

from llm_proxy.errors import ApiError
from llm_proxy.limits.memory import MemoryLimiter
from llm_proxy.limits.rates import WAIT_FOR_SLOT, Decision, Limits, Rate, Standing, tightest
from llm_proxy.limits.scripts import GIVE_BACK, HOLD, TAKE
from llm_proxy.limits.window import LONGEST_LOG
from llm_proxy.redis_link import BACKGROUND_PATIENCE, NO_ANSWER, PATIENCE, PROBE_SECONDS, RedisLink
from llm_proxy.tasks import Tasks

log = logging.getLogger(__name__)

SLOT_SECONDS = 30
# A command that was given up may reach Redis after those that were sent later on other connections.
LATE_SECONDS = 1.0
# The next look may be a while away.
RENEW_SECONDS = 10.0 - PROBE_SECONDS
# Slots that cannot be freed while Redis is away; those beyond expire by themselves.
MOST_UNSENT = 10_000
MOST_ENDED_IN_TAKE = 100

_SHA = hashlib.sha1(TAKE.encode(), usedforsecurity=False).hexdigest()
_MICROSECOND = 1000


class RedisLimiter:
    """Counts what all processes on one Redis admit.

    Redis away: each call waits at most 50 ms for it; after five failures in a row none waits until a probe, sent each second,
    finds it back. Meanwhile, with `fallback`, this process enforces the whole limit by itself, over what it admitted through
    Redis as well; without, requests are refused with `rate_limits_unavailable`. Back again, the windows are what Redis holds,
    and the slots of running calls are put there anew.

    Args:
        fallback: see above.
        switched: told each change, `memory` or `unavailable` when Redis is gone, `redis` when it is back.
        memory: the limiter that stands in.
        server_clock: microseconds, for tests; None for the time of Redis.
        patience: how many seconds a call waits.
    """

    def __init__(
        self,
        redis: "Redis",
        prefix: str,
        *,
        fallback: bool,
        switched: Callable[[str], None],
        memory: MemoryLimiter | None = None,
        server_clock: Callable[[], int] | None = None,
        patience: float = PATIENCE,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._fallback = fallback
        self._switched = switched
        self._memory = memory or MemoryLimiter()
        self._server_clock = server_clock
        self._link = RedisLink(self._check, self._on_switch, patience)
        self._renewed_at: float | None = None
        self._tasks = Tasks()
        # Slots to free in Redis by key, requests to give back by the keys and entries of their rates.
        self._ended: dict[str, dict[str, None]] = {}
        self._unsent = 0
        self._returned: list[tuple[list[str], tuple[int, ...]]] = []
        self._something_to_send = asyncio.Event()
        # What is renewed and what is freed must not overtake each other.
        self._sending = asyncio.Lock()

    @property
    def degraded(self) -> bool:
        """Whether Redis is away."""
        return self._link.away

    async def take(self, limits: Limits) -> Decision:
        """Take one request from all limits, or from none.

        Raises:
            ApiError: `rate_limits_unavailable`.
        """
        if not limits:
            return Decision()
        if self.degraded:
            return self._take_without(limits)
        id = self._memory.new_id()
        try:
            answer = await self._link.ask(lambda: self._evaluate(limits, id))
        except asyncio.CancelledError:
            self._end_twice(limits, id)
            raise
        except NO_ANSWER:
            # It may have counted nevertheless: a rate errs on the strict side, a slot would be held for long.
            self._end_twice(limits, id)
            return self._take_without(limits)
        return self._decision(limits, id, answer)

    async def look(self, limits: Limits) -> Standing | None:
        """How far the tightest rate is used up, None without any; nothing is taken. Redis away: what this process knows."""
        if limits.rates:
            with contextlib.suppress(*NO_ANSWER):
                return self._standing(limits, await self._link.ask(lambda: self._evaluate(Limits(limits.rates), "")))
        return await self._memory.look(limits)

    def _take_without(self, limits: Limits) -> Decision:
        if self._fallback:
            return self._memory.take_now(limits)
        raise ApiError(
            "rate_limits_unavailable",
            "Rate limits cannot be checked now, and calls are not let through without. Try again shortly.",
            headers={"Retry-After": "1"},
        )

    async def _evaluate(self, limits: Limits, id: str) -> list[int]:
        keys = [*(self._prefix + rate.key for rate in limits.rates), *(self._prefix + slots.key for slots in limits.slots)]
        args: list[Any] = [self._time(), id, SLOT_SECONDS * 1_000_000, len(limits.rates)]
        for rate in limits.rates:
            args += rate.limit, rate.span // _MICROSECOND, _sub_bucket(rate)
        for slots in limits.slots:
            ended = list(self._ended.get(slots.key, ()))[:MOST_ENDED_IN_TAKE]
            args += slots.limit, len(ended), *ended
        try:
            found = await self._redis.evalsha(_SHA, len(keys), *keys, *args)
        except NoScriptError:
            found = await self._redis.eval(TAKE, len(keys), *keys, *args)
        return [int(number) for number in found]

    def _time(self) -> int | str:
        return self._server_clock() if self._server_clock else ""

    def _decision(self, limits: Limits, id: str, answer: list[int]) -> Decision:
        granted, full, wait, *of_rates = answer
        wait = max(wait * _MICROSECOND, WAIT_FOR_SLOT if full else 0)
        receipt = self._memory.admit(limits, id, tuple(of_rates[0::3])) if granted else None
        return Decision(wait, self._standing(limits, answer), bool(full), receipt)

    def _standing(self, limits: Limits, answer: list[int]) -> Standing | None:
        left, resets = answer[4::3], answer[5::3]
        return tightest(
            [
                Standing(rate.limit, remaining, reset * _MICROSECOND)
                for rate, remaining, reset in zip(limits.rates, left, resets, strict=True)
            ]
        )

    def give_back(self, decision: Decision) -> None:
        """Make a granted request not to have happened; only the first time counts. Redis hears of it in a moment, or never."""
        receipt = decision.receipt
        self._memory.give_back(decision)
        if receipt:
            self._end(receipt.limits, receipt.id)
            if receipt.numbers and len(self._returned) < MOST_UNSENT:
                self._returned.append(([self._prefix + rate.key for rate in receipt.limits.rates], receipt.numbers))

    def release(self, decision: Decision) -> None:
        """The request has ended: free its slots; only the first time counts. Redis hears of it in a moment."""
        receipt = decision.receipt
        self._memory.release(decision)
        if receipt:
            self._end(receipt.limits, receipt.id)

    def _end(self, limits: Limits, id: str) -> None:
        self._something_to_send.set()
        for slots in limits.slots:
            if self._unsent < MOST_UNSENT and id not in self._ended.get(slots.key, ()):
                self._ended.setdefault(slots.key, {})[id] = None
                self._unsent += 1

    def _end_twice(self, limits: Limits, id: str) -> None:
        """Free slots of which nobody knows whether they were taken: now, and when Redis must have heard that they were."""
        self._end(limits, id)
        self._tasks.start("slots that were taken late", self._end_late(limits, id))

    async def _end_late(self, limits: Limits, id: str) -> None:
        await asyncio.sleep(LATE_SECONDS)
        self._end(limits, id)

    async def open(self) -> None:
        """Look whether Redis is there at all, so that no call has to find out; from now on follow whether it is."""
        await self._link.open()
        self._tasks.start("slots to free in Redis", self._send())

    async def close(self) -> None:
        """Tell Redis what it has yet to hear, and end."""
        await self.settle()
        await self._tasks.close()
        await self._link.close()

    async def _check(self, patience: float) -> None:
        """Write, because a Redis that is full or follows another one still answers to what only reads."""
        now = asyncio.get_running_loop().time()
        if self._ended or self._returned:
            self._something_to_send.set()
        if self._renewed_at is None or self.degraded:
            key = f"{self._prefix}{{probe}}"
            await self._link.within(patience, self._redis.eval(HOLD, 1, key, self._time(), 1_000_000, "probe"))
        elif now - self._renewed_at < RENEW_SECONDS:
            return
        await self.renew()
        self._renewed_at = now

    def _on_switch(self, error: Exception | None) -> None:
        if error is None:
            log.warning("rate limits: Redis is back, and counts again")
            self._switched("redis")
            return
        meanwhile = "this process enforces them by itself" if self._fallback else "calls with limits are refused"
        log.warning("rate limits: Redis does not answer (%s); until it does, %s", error, meanwhile)
        self._switched("memory" if self._fallback else "unavailable")

    async def _send(self) -> None:
        while True:
            await self._something_to_send.wait()
            self._something_to_send.clear()
            await self.settle()

    async def renew(self) -> None:
        """Hold the slots of running calls for another while, those too that Redis lost or never knew."""
        async with self._sending:
            pipe = self._redis.pipeline(transaction=False)
            for key, ids in self._memory.held.items():
                pipe.eval(HOLD, 1, self._prefix + key, self._time(), SLOT_SECONDS * 1_000_000, *ids)
            # Executed, it gives its connection back by itself, however late that is.
            await self._link.within(BACKGROUND_PATIENCE, pipe.execute())

    async def settle(self) -> None:
        """Tell Redis which slots are free and which requests were given back, if it is there."""
        if self.degraded or not (self._ended or self._returned):
            return
        with contextlib.suppress(*NO_ANSWER):
            async with self._sending:
                await self._tell()

    async def _tell(self) -> None:
        ended = {key: list(ids) for key, ids in self._ended.items()}
        # Told twice, a request would be given back twice, so it is not tried again.
        returned, self._returned = self._returned, []
        pipe = self._redis.pipeline(transaction=False)
        for key, ids in ended.items():
            pipe.zrem(self._prefix + key, *ids)
        for keys, numbers in returned:
            pipe.eval(GIVE_BACK, len(keys), *keys, *map(str, numbers))
        await self._link.ask(lambda: pipe.execute(), BACKGROUND_PATIENCE)
        for key, ids in ended.items():
            self._forget(key, ids)

    def _forget(self, key: str, ids: list[str]) -> None:
        waiting = self._ended[key]
        for id in ids:
            del waiting[id]
        if not waiting:
            del self._ended[key]
        self._unsent -= len(ids)


def _sub_bucket(rate: Rate) -> int:
    """How far apart requests may be that are remembered together, in microseconds."""
    return 0 if rate.limit <= LONGEST_LOG else rate.span // LONGEST_LOG // _MICROSECOND
