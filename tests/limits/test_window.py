"""Tests of the sliding window."""

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from stage.arrivals import PATTERNS, TOTAL, most_in_any_window

from llm_proxy.limits.window import LONGEST_LOG, Window

SPAN = 1_000_000
LIMITS = {"one": 1, "a few": 7, "the longest log": LONGEST_LOG, "sub-buckets": 5 * LONGEST_LOG}
ARRIVALS = TOTAL // (len(LIMITS) * len(PATTERNS)) + 1


def take(window: Window, now: int, limit: int) -> int:
    """One request; returns how long it has to wait, 0 when it is admitted."""
    wait = window.wait(now, limit)
    if not wait:
        window.add(now, limit)
    return wait


def filled(limit: int, *moments: int) -> Window:
    window = Window(SPAN)
    for moment in moments:
        assert take(window, moment, limit) == 0
    return window


@pytest.mark.parametrize("limit", LIMITS.values(), ids=LIMITS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_no_window_ever_holds_more_than_the_limit(pattern: str, limit: int) -> None:
    window, arrivals = Window(SPAN), PATTERNS[pattern](random.Random(limit), SPAN, limit)
    admitted = [now for now in itertools.islice(arrivals, ARRIVALS) if not take(window, now, limit)]
    assert limit >= most_in_any_window(admitted, SPAN) > 0.9 * limit


def test_sub_buckets_cost_a_thousandth_of_what_is_allowed() -> None:
    limit, step = 2 * LONGEST_LOG, SPAN // (4 * LONGEST_LOG)
    window = Window(SPAN)
    admitted = [now for now in range(0, 10 * SPAN, step) if not take(window, now, limit)]
    assert len(admitted) > 10 * limit * 0.998


@given(st.lists(st.integers(0, SPAN // 3), min_size=1, max_size=60), st.integers(1, 12))
def test_who_waits_as_long_as_told_is_admitted_and_not_a_tick_before(gaps: list[int], limit: int) -> None:
    window, now = Window(SPAN), 0
    for gap in gaps:
        now += gap
        if wait := take(window, now, limit):
            assert take(window, now + wait - 1, limit) == 1
            now += wait
            assert take(window, now, limit) == 0


@given(st.lists(st.integers(0, SPAN), min_size=1, max_size=8), st.integers(LONGEST_LOG + 1, 2 * LONGEST_LOG), st.integers(1, 9))
def test_waiting_is_enough_with_sub_buckets_too(gaps: list[int], limit: int, size: int) -> None:
    window, now = Window(SPAN), 0
    for gap in gaps:
        now += gap
        for _ in range(size * limit // 5):
            if wait := take(window, now, limit):
                assert take(window, now + wait, limit) == 0
                now += wait


def test_a_limit_that_changes_counts_at_once() -> None:
    window = filled(5, 10, 20, 30, 40, 50)
    assert window.wait(60, 6) == 0
    assert window.wait(60, 2) == 40 + SPAN - 60
    assert window.wait(60, 1) == 50 + SPAN - 60


def test_what_is_given_back_was_never_there() -> None:
    window = Window(SPAN)
    window.count(10)
    first, second = window.add(10, 2), window.add(20, 2)
    window.give_back(second)
    assert window.count(20) == 1
    assert take(window, 30, 2) == 0
    window.give_back(first)
    assert window.wait(40, 1) == 30 + SPAN - 40


def test_what_has_left_cannot_be_given_back() -> None:
    window = Window(SPAN)
    window.count(0)
    number = window.add(0, 2)
    assert take(window, SPAN, 2) == 0
    window.give_back(number)
    assert window.count(SPAN) == 1


@given(st.data(), st.integers(1, 5) | st.just(2 * LONGEST_LOG))
def test_the_count_is_what_was_added_less_what_was_given_back(data: st.DataObject, limit: int) -> None:
    window, now, live = Window(SPAN), 0, list[tuple[int, int]]()
    for _ in range(40):
        now += data.draw(st.integers(0, SPAN // 4))
        window.count(now)
        if live and data.draw(st.booleans()):
            _, number = live.pop(data.draw(st.integers(0, len(live) - 1)))
            window.give_back(number)
        elif not window.wait(now, limit):
            live.append((now, window.add(now, limit)))
        inside = sum(moment > now - SPAN for moment, _ in live)
        # Sub-buckets may hold on to a request for a thousandth of the span.
        kept = sum(moment > now - SPAN - SPAN // LONGEST_LOG for moment, _ in live)
        assert inside <= window.count(now) <= (inside if limit <= LONGEST_LOG else kept)


def test_the_reset_is_when_nothing_is_left() -> None:
    window = filled(3, 10, 50)
    assert window.reset(60) == 50 + SPAN - 60
    assert window.count(60 + window.reset(60)) == 0
    assert window.reset(50 + SPAN) == 0


@given(st.lists(st.tuples(st.integers(0, SPAN // 2), st.integers(-(10**15), 10**15)), max_size=30), st.integers(1, 4))
def test_a_clock_that_jumps_locks_nobody_for_longer_than_a_span(steps: list[tuple[int, int]], limit: int) -> None:
    window, shown = Window(SPAN), 10**16
    for gap, jump in steps:
        shown += gap + jump
        assert take(window, shown, limit) <= SPAN
    assert window.wait(shown + SPAN, limit) == 0


def test_a_clock_that_goes_back_frees_nothing() -> None:
    window = filled(2, SPAN * 5, SPAN * 5 + 1)
    assert window.wait(3, 2) == SPAN
    assert window.wait(2 + SPAN, 2) == 1


def test_the_memory_of_a_window_is_bounded() -> None:
    window = Window(SPAN)
    for now in range(0, 4 * SPAN, 100):
        take(window, now, 100 * LONGEST_LOG)
        assert window.entries <= 2 * LONGEST_LOG + 2
