"""The suite that both limiters pass."""

import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from stage.redis import RedisServer

from llm_proxy.limits.limiter import Limiter, open_limiter
from llm_proxy.limits.memory import MemoryLimiter
from llm_proxy.limits.rates import MINUTE, SECOND, Decision, Limits, Rate, Slots, Standing
from llm_proxy.limits.redis import RedisLimiter
from llm_proxy.redis_client import open_redis
from llm_proxy.secret import Secret

MICROSECOND = 1000
BEGIN = 1_763_720_000 * SECOND


@dataclass
class Bench:
    """A limiter at a time that the test sets; `settled` waits until what it was told is known where it counts."""

    limiter: Limiter
    settled: Callable[[], Awaitable[None]]
    now: int = BEGIN

    async def take(self, *limits: Rate | Slots) -> Decision:
        rates = tuple(each for each in limits if isinstance(each, Rate))
        return await self.limiter.take(Limits(rates, tuple(each for each in limits if isinstance(each, Slots))))

    async def grant(self, *limits: Rate | Slots) -> Decision:
        decision = await self.take(*limits)
        assert decision.granted
        return decision


async def nothing() -> None:
    """What is counted in memory is known at once."""


@pytest.fixture(params=["memory", "redis"])
async def bench(request: pytest.FixtureRequest) -> AsyncIterator[Bench]:
    if request.param == "memory":
        bench = Bench(MemoryLimiter(lambda: bench.now), nothing)
        yield bench
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    async with open_redis(Secret(server.uri), 4) as redis:
        memory = MemoryLimiter(lambda: bench.now)
        limiter = RedisLimiter(
            redis,
            "ratelimit:",
            fallback=False,
            switched=lambda to: None,
            memory=memory,
            server_clock=lambda: bench.now // MICROSECOND,
            patience=10.0,
        )
        bench = Bench(limiter, limiter.settle)
        yield bench
        await limiter.close()


def minute(limit: int, key: str = "{p}:minute") -> Rate:
    return Rate(key, limit, MINUTE)


def parallel(limit: int, key: str = "{p}:parallel") -> Slots:
    return Slots(key, limit)


async def test_a_rate_is_used_up_and_says_so(bench: Bench) -> None:
    left = []
    for _ in range(3):
        decision = await bench.grant(minute(3))
        assert decision.standing
        left.append(decision.standing.remaining)
        bench.now += SECOND
    assert left == [2, 1, 0]
    refused = await bench.take(minute(3))
    assert not refused.granted and not refused.full
    assert refused.wait == 57 * SECOND
    assert refused.headers() == {
        "x-ratelimit-limit-requests": "3",
        "x-ratelimit-remaining-requests": "0",
        "x-ratelimit-reset-requests": "59s",
        "Retry-After": "57",
        "retry-after-ms": "57000",
    }


async def test_who_waits_as_long_as_told_is_admitted_and_not_before(bench: Bench) -> None:
    for gap in (0, 7 * MICROSECOND, 13 * SECOND):
        bench.now += gap
        await bench.grant(minute(3))
    for _ in range(3):
        wait = (await bench.take(minute(3))).wait
        bench.now += wait - MICROSECOND
        assert (await bench.take(minute(3))).wait == MICROSECOND
        bench.now += MICROSECOND
        await bench.grant(minute(3))


async def test_the_longest_of_several_waits_counts(bench: Bench) -> None:
    rates = Rate("{p}:second", 1, SECOND), minute(1)
    await bench.grant(*rates)
    assert (await bench.take(*rates)).wait == MINUTE


SECOND_OF_TOKEN, MINUTE_OF_TOKEN = Rate("{p}:t:second", 2, SECOND), Rate("{p}:t:minute", 2, MINUTE)
SECOND_OF_PROJECT, MINUTE_OF_PROJECT = Rate("{p}:second", 2, SECOND), Rate("{p}:minute", 5000, MINUTE)
ALL: tuple[Rate | Slots, ...] = (
    SECOND_OF_TOKEN,
    MINUTE_OF_TOKEN,
    SECOND_OF_PROJECT,
    MINUTE_OF_PROJECT,
    Slots("{p}:t:parallel", 2),
    Slots("{p}:parallel", 2),
)


@pytest.mark.parametrize("exhausted", ALL, ids=lambda each: each.key)
async def test_refused_by_one_costs_none_of_the_others(bench: Bench, exhausted: Rate | Slots) -> None:
    tight = type(exhausted)(exhausted.key, 1, *([exhausted.span] if isinstance(exhausted, Rate) else []))
    others = [each for each in ALL if each != exhausted]
    await bench.grant(tight)
    for _ in range(5):
        refused = await bench.take(*others, tight)
        assert not refused.granted
        assert refused.full == isinstance(exhausted, Slots)
    for _ in range(2):
        await bench.grant(*others)


async def test_a_call_holds_its_slot_until_it_is_released(bench: Bench) -> None:
    first = await bench.grant(parallel(2))
    await bench.grant(parallel(2))
    refused = await bench.take(parallel(2))
    assert refused.full and refused.wait == SECOND
    bench.limiter.release(first)
    await bench.grant(parallel(2))
    assert (await bench.take(parallel(2))).full


async def test_releasing_twice_frees_one_slot(bench: Bench) -> None:
    first = await bench.grant(parallel(2))
    await bench.grant(parallel(2))
    bench.limiter.release(first)
    bench.limiter.release(first)
    await bench.grant(parallel(2))
    assert (await bench.take(parallel(2))).full


async def test_releasing_keeps_the_rate_counted(bench: Bench) -> None:
    bench.limiter.release(await bench.grant(minute(1), parallel(1)))
    refused = await bench.take(minute(1), parallel(1))
    assert not refused.granted and not refused.full


async def test_what_is_given_back_costs_nothing(bench: Bench) -> None:
    first = await bench.grant(minute(2), parallel(2))
    await bench.grant(minute(2), parallel(2))
    bench.limiter.give_back(first)
    bench.limiter.give_back(first)
    bench.limiter.release(first)
    await bench.settled()
    await bench.grant(minute(2), parallel(2))
    assert (await bench.take(minute(2), parallel(2))).full


async def test_what_left_the_window_cannot_be_given_back(bench: Bench) -> None:
    first = await bench.grant(minute(2))
    bench.now += MINUTE
    for _ in range(2):
        await bench.grant(minute(2))
    bench.limiter.give_back(first)
    await bench.settled()
    assert not (await bench.take(minute(2))).granted


async def test_a_refusal_has_nothing_to_give_back(bench: Bench) -> None:
    await bench.grant(minute(1), parallel(1))
    refused = await bench.take(minute(1), parallel(1))
    bench.limiter.give_back(refused)
    bench.limiter.release(refused)
    await bench.settled()
    assert (await bench.take(minute(1), parallel(1))).full


async def test_without_limits_everything_goes(bench: Bench) -> None:
    for _ in range(3):
        decision = await bench.grant()
        bench.limiter.give_back(decision)
        assert decision.headers() == {}


async def test_looking_says_what_is_left_and_takes_nothing(bench: Bench) -> None:
    rates = minute(2), Rate("{p}:second", 5, SECOND)
    assert await bench.limiter.look(Limits(rates)) == Standing(2, 2, 0)
    await bench.grant(*rates)
    bench.now += SECOND
    for _ in range(3):
        assert await bench.limiter.look(Limits(rates, (parallel(1),))) == Standing(2, 1, 59 * SECOND)
    await bench.grant(*rates, parallel(1))
    assert await bench.limiter.look(Limits((), (parallel(1),))) is None


async def test_keys_do_not_share(bench: Bench) -> None:
    await bench.grant(minute(1, "{p}:a"), parallel(1, "{p}:x"))
    await bench.grant(minute(1, "{p}:b"), parallel(1, "{p}:y"))


async def test_a_limit_that_changes_counts_at_once(bench: Bench) -> None:
    for _ in range(3):
        await bench.grant(minute(3))
        bench.now += SECOND
    await bench.grant(minute(4))
    assert (await bench.take(minute(2))).wait == MINUTE - SECOND


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["take", "take", "take", "wait", "release", "give back"]), st.integers(0, 30 * SECOND // MICROSECOND)
    ),
    max_size=25,
)
runs = itertools.count()


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(steps=STEPS, of_token=st.integers(1, 4), of_project=st.integers(1, 6), slots=st.integers(1, 4))
async def test_every_history_is_that_of_exact_logs(
    bench: Bench, steps: list[tuple[str, int]], of_token: int, of_project: int, slots: int
) -> None:
    run = next(runs)
    limits = Rate(f"{{{run}}}:t", of_token, SECOND * 20), minute(of_project, f"{{{run}}}:p"), parallel(slots, f"{{{run}}}:s")
    log, running = list[tuple[int, Decision]](), list[Decision]()
    for step, number in steps:
        if step == "wait":
            bench.now += number * MICROSECOND
        elif step == "take":
            recent = [sum(moment > bench.now - rate.span for moment, _ in log) for rate in limits[:2]]
            fits = recent[0] < of_token and recent[1] < of_project and len(running) < slots
            decision = await bench.take(*limits)
            assert decision.granted == fits
            if fits:
                log.append((bench.now, decision))
                running.append(decision)
        elif running:
            decision = running.pop(number % len(running))
            if step == "release":
                bench.limiter.release(decision)
            else:
                bench.limiter.give_back(decision)
                log = [each for each in log if each[1] is not decision]
            await bench.settled()


async def test_without_redis_limits_are_counted_in_memory() -> None:
    async with open_limiter(None, "ratelimit:", fallback=True, switched=lambda to: None) as limiter:
        assert isinstance(limiter, MemoryLimiter) and not limiter.degraded


async def test_what_redis_has_to_hear_it_hears_at_the_latest_on_stop(redis_server: RedisServer) -> None:
    limits = Limits((minute(1),), (parallel(1),))
    async with open_redis(Secret(redis_server.uri), 2) as redis:
        async with open_limiter(redis, "ratelimit:", fallback=False, switched=lambda to: None) as first:
            first.give_back(await first.take(limits))
        async with open_limiter(redis, "ratelimit:", fallback=False, switched=lambda to: None) as second:
            assert (await second.take(limits)).granted


async def test_the_time_of_redis_is_the_default(redis_server: RedisServer) -> None:
    async with (
        open_redis(Secret(redis_server.uri), 2) as redis,
        open_limiter(redis, "ratelimit:", fallback=False, switched=lambda to: None) as limiter,
    ):
        before = time.monotonic()
        assert (await limiter.take(Limits((minute(1),)))).granted
        refused = await limiter.take(Limits((minute(1),)))
        assert 60.0 > refused.wait / SECOND >= 60.0 - (time.monotonic() - before) - 0.01
