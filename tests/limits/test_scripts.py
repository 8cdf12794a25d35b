"""Tests of the Lua scripts, against the window in Python."""

import itertools
import random
from collections.abc import AsyncIterator, Sequence

import pytest
from redis.asyncio import Redis
from stage.arrivals import PATTERNS, TOTAL, most_in_any_window
from stage.redis import RedisServer

from llm_proxy.limits.scripts import GIVE_BACK, HOLD, TAKE
from llm_proxy.limits.window import LONGEST_LOG, Window
from llm_proxy.redis_client import open_redis
from llm_proxy.secret import Secret

SPAN = 10_000_000
LIFETIME = 30_000_000
BEGIN = 1_763_720_000_000_000
LIMITS = (1, 7, LONGEST_LOG, 2 * LONGEST_LOG + 1)
AT_ONCE = 200
ARRIVALS = TOTAL // 10 // (len(LIMITS) * len(PATTERNS)) // AT_ONCE * AT_ONCE + AT_ONCE


@pytest.fixture
async def redis(redis_server: RedisServer) -> AsyncIterator["Redis"]:
    async with open_redis(Secret(redis_server.uri), 2) as client:
        yield client


def width(limit: int) -> int:
    return 0 if limit <= LONGEST_LOG else SPAN // LONGEST_LOG


async def ask(redis: "Redis", moments: Sequence[int], limit: int) -> list[list[int]]:
    """What Redis answers to requests at these moments, in order."""
    async with redis.pipeline(transaction=False) as pipe:
        for moment in moments:
            pipe.eval(TAKE, 1, "rate", moment, "someone", LIFETIME, 1, limit, SPAN, width(limit))
        return await pipe.execute()


def expected(window: Window, now: int, limit: int) -> list[int]:
    """What the window in Python says: granted, a slot missing, the wait, how many are left, the reset."""
    wait = window.wait(now, limit)
    if not wait:
        window.add(now, limit)
    return [int(not wait), 0, wait, max(limit - window.total, 0), window.reset(now)]


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("pattern", PATTERNS)
async def test_redis_decides_as_the_window_does_and_no_window_ever_holds_more(redis: "Redis", pattern: str, limit: int) -> None:
    arrivals = [BEGIN + at for at in itertools.islice(PATTERNS[pattern](random.Random(limit), SPAN, limit), ARRIVALS)]
    window, admitted = Window(SPAN), []
    for begin in range(0, ARRIVALS, AT_ONCE):
        moments = arrivals[begin : begin + AT_ONCE]
        for moment, answer in zip(moments, await ask(redis, moments, limit), strict=True):
            assert [*answer[:3], *answer[4:]] == expected(window, moment, limit)
            if answer[0]:
                admitted.append(moment)
    assert most_in_any_window(admitted, SPAN) <= limit


async def test_a_clock_that_goes_back_locks_nobody_for_longer_than_a_span(redis: "Redis") -> None:
    hour = 3_600_000_000
    first, second, refused, back, later = await ask(redis, [BEGIN, BEGIN + 5, BEGIN + 6, BEGIN - hour, BEGIN - hour + SPAN], 2)
    assert (first[0], second[0], later[0]) == (1, 1, 1)
    assert refused[2] == SPAN - 6
    assert back[2] == SPAN


async def test_nothing_old_is_given_back_to_a_window_that_began_anew(redis: "Redis") -> None:
    [[_, _, _, number, *_]] = await ask(redis, [BEGIN], 1)
    await redis.flushall()
    await ask(redis, [BEGIN + 1], 1)
    await redis.eval(GIVE_BACK, 1, "rate", number)
    assert (await ask(redis, [BEGIN + 2], 1))[0][0] == 0


async def test_what_is_given_back_fits_again(redis: "Redis") -> None:
    [[_, _, _, number, *_]] = await ask(redis, [BEGIN], 1)
    await redis.eval(GIVE_BACK, 1, "rate", number)
    assert (await ask(redis, [BEGIN + 1], 1))[0][0] == 1


async def slot(redis: "Redis", now: int, id: str, *ended: str) -> bool:
    answer = await redis.eval(TAKE, 1, "slots", now, id, LIFETIME, 0, 1, len(ended), *ended)
    return bool(answer[0])


async def test_a_slot_that_nobody_renews_expires(redis: "Redis") -> None:
    assert await slot(redis, BEGIN, "first")
    assert not await slot(redis, BEGIN + LIFETIME - 1, "second")
    assert await slot(redis, BEGIN + LIFETIME, "second")


async def test_a_slot_that_is_renewed_stays(redis: "Redis") -> None:
    assert await slot(redis, BEGIN, "first")
    await redis.eval(HOLD, 1, "slots", BEGIN + 10, LIFETIME, "first")
    assert not await slot(redis, BEGIN + LIFETIME + 9, "second")
    assert await slot(redis, BEGIN + LIFETIME + 10, "second")


async def test_a_request_that_is_sent_twice_holds_one_slot(redis: "Redis") -> None:
    assert await slot(redis, BEGIN, "first")
    assert await slot(redis, BEGIN + 1, "first")
    assert not await slot(redis, BEGIN + 2, "second")


async def test_slots_of_requests_that_ended_are_free_in_the_same_step(redis: "Redis") -> None:
    assert await slot(redis, BEGIN, "first")
    assert await slot(redis, BEGIN + 1, "second", "first", "unknown")


async def test_a_clock_that_goes_back_keeps_no_slot_beyond_its_lifetime(redis: "Redis") -> None:
    assert await slot(redis, BEGIN, "first")
    back = BEGIN - 3_600_000_000
    assert not await slot(redis, back, "second")
    assert await slot(redis, back + LIFETIME, "second")


async def test_keys_leave_redis_when_nobody_uses_them(redis: "Redis") -> None:
    await ask(redis, [BEGIN], 1)
    await slot(redis, BEGIN, "first")
    await redis.eval(HOLD, 1, "held", BEGIN, LIFETIME, "first")
    assert 10_000 < await redis.pttl("rate") <= 11_000
    assert 30_000 < await redis.pttl("slots") <= 31_000
    assert 30_000 < await redis.pttl("held") <= 31_000


async def test_queues_do_not_grow_beyond_the_longest_log(redis: "Redis") -> None:
    limit, step = 3 * LONGEST_LOG, SPAN // (2 * LONGEST_LOG)
    for begin in range(0, 3 * SPAN, SPAN // 2):
        await ask(redis, [BEGIN + begin + at for at in range(0, SPAN // 2, step)], limit)
    assert await redis.hlen("rate") <= 2 * (LONGEST_LOG + 2) + 4
