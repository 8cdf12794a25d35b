"""Tests of the limiter in memory, beyond the suite of all limiters."""

import asyncio

from llm_proxy.limits.memory import MemoryLimiter
from llm_proxy.limits.rates import MINUTE, SECOND, Limits, Rate, Slots


class Clock:
    """Nanoseconds that a test sets."""

    def __init__(self) -> None:
        self.now = 0

    def __call__(self) -> int:
        return self.now


def second(key: str, limit: int = 10) -> Limits:
    return Limits((Rate(key, limit, SECOND),))


async def test_a_take_never_waits() -> None:
    taking = MemoryLimiter().take(second("key"))
    try:
        taking.send(None)
    except StopIteration as done:
        assert done.value.granted
    else:
        raise AssertionError("it waited for something")


async def test_tasks_that_race_get_the_limit_and_no_more() -> None:
    limiter = MemoryLimiter(Clock())
    decisions = await asyncio.gather(*(limiter.take(second("key", 100)) for _ in range(300)))
    assert sum(decision.granted for decision in decisions) == 100


def test_windows_that_nobody_uses_are_dropped() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    for number in range(500):
        limiter.take_now(second(f"key {number}"))
    assert limiter.size == 500
    clock.now += SECOND
    for _ in range(100):
        limiter.take_now(second("key 499"))
    assert limiter.size == 1


def test_a_window_in_use_is_not_dropped_with_those_around_it() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    limiter.take_now(second("idle"))
    limits = Limits((Rate("short", 2, SECOND), Rate("long", 2, MINUTE)))
    limiter.take_now(limits)
    clock.now += SECOND
    limiter.take_now(limits)
    assert limiter.take_now(limits).wait == MINUTE - SECOND


def test_an_idle_window_used_with_a_new_one_is_counted() -> None:
    clock = Clock()
    limiter = MemoryLimiter(clock)
    limiter.take_now(second("key", 1))
    clock.now += SECOND
    assert limiter.take_now(Limits((Rate("key", 1, SECOND), Rate("new", 5, MINUTE)))).granted
    assert not limiter.take_now(second("key", 1)).granted


def test_slots_that_are_free_take_no_memory() -> None:
    limiter = MemoryLimiter()
    limits = Limits((), (Slots("key", 2),))
    decisions = [limiter.take_now(limits) for _ in range(2)]
    assert len(limiter.held["key"]) == 2
    for decision in decisions:
        limiter.release(decision)
    assert not limiter.held


def test_ids_are_unlike_those_of_other_processes() -> None:
    first, second = MemoryLimiter(), MemoryLimiter()
    assert len({first.new_id(), first.new_id(), second.new_id(), second.new_id()}) == 4


def test_what_was_admitted_elsewhere_counts_here() -> None:
    limiter = MemoryLimiter(Clock())
    limits = Limits((Rate("rate", 1, SECOND),), (Slots("slots", 1),))
    receipt = limiter.admit(limits, "id", (7,))
    assert receipt.numbers == (7,)
    refused = limiter.take_now(limits)
    assert refused.full and refused.wait == SECOND
