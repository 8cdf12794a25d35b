"""Tests of the limiter in Redis, beyond the suite of all limiters."""

import asyncio
import contextlib
import inspect
import logging
import re
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import redis
from redis.asyncio import Redis
from stage.redis import RedisServer, slow_road

from llm_proxy.errors import ApiError
from llm_proxy.limits.limiter import open_limiter
from llm_proxy.limits.rates import MINUTE, SECOND, Decision, Limits, Rate, Slots
from llm_proxy.limits.redis import RedisLimiter
from llm_proxy.redis_client import open_redis
from llm_proxy.redis_link import FAILURES
from llm_proxy.secret import Secret

PATIENTLY = 10.0
# Longer than the product's, for machines with much else to do, and shorter than redis-py's own.
PATIENCE = 0.25
TOO_SLOW = 0.6
SOON = 0.8


@dataclass
class Bench:
    """A limiter that runs, what it said about Redis, and the client it uses."""

    limiter: RedisLimiter
    switches: "asyncio.Queue[str]"
    redis: "Redis"

    async def switched(self) -> str:
        async with asyncio.timeout(PATIENTLY):
            return await self.switches.get()

    async def until_away(self, limits: Limits) -> list[Decision]:
        """Five calls, each within its bound; the limiter leaves Redis with the last of them at the latest."""
        decisions = []
        for _ in range(FAILURES):
            async with asyncio.timeout(SOON):
                decisions.append(await self.limiter.take(limits))
        assert await self.switched() == "memory"
        return decisions


@asynccontextmanager
async def open_bench(uri: str, *, fallback: bool = True, patience: float = PATIENCE) -> AsyncIterator[Bench]:
    switches: asyncio.Queue[str] = asyncio.Queue()
    async with open_redis(Secret(uri), 20) as client:
        limiter = RedisLimiter(client, "ratelimit:", fallback=fallback, switched=switches.put_nowait, patience=patience)
        await limiter.open()
        try:
            yield Bench(limiter, switches, client)
        finally:
            await limiter.close()


def minute(limit: int) -> Limits:
    return Limits((Rate("{p}:minute", limit, MINUTE),))


def parallel(limit: int) -> Limits:
    return Limits((), (Slots("{p}:parallel", limit),))


def at_once(taking: Coroutine[Any, Any, Decision]) -> Decision:
    """The decision of a call that waits for nothing at all."""
    try:
        taking.send(None)
    except StopIteration as done:
        return done.value
    taking.close()
    raise AssertionError("it waited for something")


def commands(server: RedisServer, name: str) -> int:
    """How often a command was run since the server began."""
    with contextlib.closing(redis.Redis(port=server.port)) as client:
        return int(client.info("commandstats").get(f"cmdstat_{name}", {}).get("calls", 0))


async def until(true: Callable[[], bool]) -> None:
    """Let others run until something is true that nobody tells of."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.001)


async def test_all_limits_take_one_round_trip(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        limits = Limits(tuple(Rate(f"{{p}}:{n}", 5, MINUTE) for n in range(5)), (Slots("{p}:a", 5), Slots("{p}:b", 5)))
        await bench.limiter.take(limits)
        before = commands(redis_server, "evalsha"), commands(redis_server, "eval")
        await bench.limiter.take(limits)
        assert (commands(redis_server, "evalsha"), commands(redis_server, "eval")) == (before[0] + 1, before[1])


async def test_scripts_that_redis_forgot_are_sent_again(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        assert (await bench.limiter.take(minute(2))).granted
        await bench.redis.script_flush()
        assert (await bench.limiter.take(minute(2))).granted
        assert not (await bench.limiter.take(minute(2))).granted


async def test_keys_have_the_prefix_with_the_projects_hash_tag(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        await bench.limiter.take(Limits(minute(2).rates, parallel(2).slots))
        keys = {key.decode() for key in await bench.redis.keys()} - {"ratelimit:{probe}"}
        assert keys == {"ratelimit:{p}:minute", "ratelimit:{p}:parallel"}


async def test_tasks_that_race_on_two_instances_get_the_limit_and_no_more(redis_server: RedisServer) -> None:
    limits = Limits(minute(50).rates, (Slots("{p}:parallel", 40),))

    async def race(bench: Bench) -> int:
        return sum([(await bench.limiter.take(limits)).granted for _ in range(30)])

    async with (
        open_bench(redis_server.uri, fallback=False, patience=PATIENTLY) as one,
        open_bench(redis_server.uri, fallback=False, patience=PATIENTLY) as other,
    ):
        granted = await asyncio.gather(*(race(bench) for bench in (one, other) for _ in range(3)))
        assert sum(granted) == 40
        assert await one.redis.zcard("ratelimit:{p}:parallel") == 40


async def test_killed_redis_leaves_each_instance_its_whole_limit(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        mortal_redis.kill()
        decisions = await bench.until_away(minute(7))
        decisions += [at_once(bench.limiter.take(minute(7))) for _ in range(10)]
        assert [decision.granted for decision in decisions] == [True] * 7 + [False] * 8


async def test_the_limit_of_an_instance_holds_over_the_switch(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        limits = Limits(minute(8).rates, parallel(8).slots)
        for _ in range(5):
            assert (await bench.limiter.take(limits)).granted
        mortal_redis.kill()
        assert [decision.granted for decision in await bench.until_away(limits)] == [True] * 3 + [False] * 2


async def test_frozen_redis_costs_five_bounded_calls_then_none(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        assert (await bench.limiter.take(minute(100))).granted
        mortal_redis.freeze()
        await bench.until_away(minute(100))
        for _ in range(20):
            assert at_once(bench.limiter.take(minute(100))).granted
        mortal_redis.resume()
        assert await bench.switched() == "redis"
        decision = await bench.limiter.take(minute(100))
        assert decision.granted and decision.receipt and decision.receipt.numbers


async def test_calls_at_the_same_time_wait_for_a_frozen_redis_together(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        mortal_redis.freeze()
        async with asyncio.timeout(SOON):
            decisions = await asyncio.gather(*(bench.limiter.take(minute(30)) for _ in range(60)))
        assert sum(decision.granted for decision in decisions) == 30
        mortal_redis.resume()


async def test_slow_redis_is_left_until_it_is_fast_again(redis_server: RedisServer) -> None:
    async with slow_road(redis_server) as road, open_bench(road.uri) as bench:
        assert (await bench.limiter.take(minute(100))).granted
        road.delay = TOO_SLOW
        await bench.until_away(minute(100))
        assert at_once(bench.limiter.take(minute(100))).granted
        road.delay = 0.0
        assert await bench.switched() == "redis"


async def test_a_call_waits_50_milliseconds_for_redis_unless_told_otherwise() -> None:
    assert inspect.signature(RedisLimiter).parameters["patience"].default == 0.05


async def test_one_slow_answer_is_no_reason_to_leave(redis_server: RedisServer) -> None:
    async with slow_road(redis_server) as road, open_bench(road.uri) as bench:
        for _ in range(FAILURES + 1):
            road.delay = TOO_SLOW
            assert (await bench.limiter.take(minute(100))).granted
            road.delay = 0.0
            assert (await bench.limiter.take(minute(100))).granted
        assert not bench.limiter.degraded


async def test_a_restarted_redis_begins_with_empty_windows(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        for _ in range(3):
            assert (await bench.limiter.take(minute(3))).granted
        mortal_redis.kill()
        assert not any(decision.granted for decision in await bench.until_away(minute(3)))
        mortal_redis.start()
        assert await bench.switched() == "redis"
        assert [(await bench.limiter.take(minute(3))).granted for _ in range(4)] == [True, True, True, False]


async def test_windows_begin_with_what_redis_holds(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench, open_bench(mortal_redis.uri) as other:
        for _ in range(3):
            assert (await other.limiter.take(minute(3))).granted
        mortal_redis.freeze()
        await bench.until_away(minute(100))
        mortal_redis.resume()
        assert await bench.switched() == "redis"
        assert not (await bench.limiter.take(minute(3))).granted


async def test_slots_of_running_calls_are_in_redis_again_after_a_restart(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        before = await bench.limiter.take(parallel(3))
        mortal_redis.kill()
        meanwhile = (await bench.until_away(parallel(2)))[0]
        assert before.granted and meanwhile.granted
        mortal_redis.start()
        assert await bench.switched() == "redis"
        assert await bench.redis.zcard("ratelimit:{p}:parallel") == 2
        for decision in (before, meanwhile):
            bench.limiter.release(decision)
        await bench.limiter.settle()
        assert await bench.redis.zcard("ratelimit:{p}:parallel") == 0


async def test_slots_that_ended_while_redis_was_frozen_are_freed(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        held = await bench.limiter.take(parallel(1))
        mortal_redis.freeze()
        bench.limiter.release(held)
        await bench.until_away(minute(100))
        mortal_redis.resume()
        assert await bench.switched() == "redis"
        assert (await bench.limiter.take(parallel(1))).granted


async def test_a_slot_is_renewed_for_as_long_as_its_call_runs(redis_server: RedisServer) -> None:
    now = 10**15
    async with open_redis(Secret(redis_server.uri), 2) as client:
        limiter = RedisLimiter(
            client, "r:", fallback=False, switched=lambda to: None, server_clock=lambda: now, patience=PATIENTLY
        )
        held = await limiter.take(parallel(1))
        for _ in range(6):
            now += 10_000_000
            await limiter.renew()
            assert (await limiter.take(parallel(1))).full
        limiter.release(held)
        await limiter.renew()
        assert (await limiter.take(parallel(1))).granted


async def test_slots_are_renewed_without_being_asked(redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_proxy.limits.redis.RENEW_SECONDS", 0.0)
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        assert (await bench.limiter.take(parallel(1))).granted
        redis_server.empty()
        async with asyncio.timeout(PATIENTLY):
            while not await bench.redis.zcard("ratelimit:{p}:parallel"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_a_slot_of_a_process_that_died_expires(redis_server: RedisServer) -> None:
    now = 10**15
    async with open_redis(Secret(redis_server.uri), 2) as client:
        dead, alive = (
            RedisLimiter(client, "r:", fallback=False, switched=lambda to: None, server_clock=lambda: now, patience=PATIENTLY)
            for _ in range(2)
        )
        assert (await dead.take(parallel(1))).granted
        now += 29_999_999
        assert (await alive.take(parallel(1))).full
        now += 1
        assert (await alive.take(parallel(1))).granted


async def test_a_client_that_leaves_while_redis_is_asked_holds_no_slot(redis_server: RedisServer) -> None:
    async with slow_road(redis_server) as road, open_bench(road.uri) as bench:
        await bench.limiter.take(minute(100))
        road.delay = 0.02
        before = commands(redis_server, "evalsha")
        taking = asyncio.ensure_future(bench.limiter.take(parallel(1)))
        async with asyncio.timeout(SOON):
            await until(lambda: commands(redis_server, "evalsha") > before)
        taking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await taking
        assert (await bench.limiter.take(parallel(1))).granted


async def test_a_slot_that_redis_gives_after_its_client_left_is_freed_all_the_same(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("llm_proxy.limits.redis.LATE_SECONDS", 0.2)
    async with open_bench(redis_server.uri) as bench:
        evaluate, late = bench.limiter._evaluate, asyncio.Event()
        taken: list[asyncio.Task[list[int]]] = []

        async def take_late(limits: Limits, id: str) -> list[int]:
            async def command() -> list[int]:
                await late.wait()
                return await evaluate(limits, id)

            taken.append(asyncio.create_task(command()))
            return await asyncio.shield(taken[0])

        monkeypatch.setattr(bench.limiter, "_evaluate", take_late)
        leaving = asyncio.create_task(bench.limiter.take(parallel(1)))
        await asyncio.sleep(0)
        while not taken:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        leaving.cancel()
        await asyncio.wait([leaving])
        while bench.limiter._ended:  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        late.set()
        assert (await taken[0])[0] == 1
        key = "ratelimit:{p}:parallel"
        assert await bench.redis.zcard(key) == 1
        async with asyncio.timeout(PATIENTLY):
            while await bench.redis.zcard(key):  # noqa: ASYNC110
                await asyncio.sleep(0.01)


async def test_without_fallback_calls_are_refused_until_redis_is_back(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri, fallback=False) as bench:
        mortal_redis.kill()
        for _ in range(FAILURES + 3):
            with pytest.raises(ApiError) as caught:
                await bench.limiter.take(minute(7))
            assert (caught.value.code, caught.value.headers) == ("rate_limits_unavailable", {"Retry-After": "1"})
        assert (await bench.limiter.take(Limits())).granted
        assert await bench.switched() == "unavailable"
        mortal_redis.start()
        assert await bench.switched() == "redis"
        assert (await bench.limiter.take(minute(7))).granted


async def test_who_only_looks_waits_no_longer_and_is_told_what_this_process_knows(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri, fallback=False) as bench:
        assert (await bench.limiter.take(minute(7))).granted
        mortal_redis.freeze()
        for _ in range(FAILURES):
            async with asyncio.timeout(SOON):
                standing = await bench.limiter.look(minute(7))
            assert standing and (standing.limit, standing.remaining) == (7, 6)
        assert await bench.switched() == "unavailable"


async def test_a_full_redis_is_as_good_as_none(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        await bench.redis.config_set("maxmemory", 1)
        assert [decision.granted for decision in await bench.until_away(minute(4))] == [True] * 4 + [False]
        await bench.redis.config_set("maxmemory", 0)
        assert await bench.switched() == "redis"


async def test_the_switch_is_said_once(mortal_redis: RedisServer, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "llm_proxy")
    async with open_bench(mortal_redis.uri) as bench:
        mortal_redis.freeze()
        await asyncio.gather(*(bench.limiter.take(minute(7)) for _ in range(30)))
        mortal_redis.resume()
        assert [await bench.switched(), await bench.switched()] == ["memory", "redis"]
        assert bench.switches.empty()
    said = [record.message for record in caplog.records if record.name.startswith("llm_proxy")]
    assert [bool(re.search("enforces them by itself", text)) for text in said] == [True, False]


async def test_redis_away_at_the_start_is_known_before_the_first_call(mortal_redis: RedisServer) -> None:
    mortal_redis.kill()
    switches: asyncio.Queue[str] = asyncio.Queue()
    async with (
        open_redis(Secret(mortal_redis.uri), 2) as client,
        open_limiter(client, "ratelimit:", fallback=True, switched=switches.put_nowait) as limiter,
    ):
        assert limiter.degraded and switches.get_nowait() == "memory"
        assert at_once(limiter.take(minute(7))).granted
        mortal_redis.start()
        async with asyncio.timeout(PATIENTLY):
            assert await switches.get() == "redis"


async def test_a_token_with_a_second_limit_is_admitted_after_the_wait_it_was_told(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        limits = Limits((Rate("{p}:short", 1, SECOND // 20),))
        assert (await bench.limiter.take(limits)).granted
        refused = await bench.limiter.take(limits)
        await asyncio.sleep(refused.wait / SECOND)
        assert (await bench.limiter.take(limits)).granted
