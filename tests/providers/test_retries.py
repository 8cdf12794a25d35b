"""What may be tried again, how often, and how much of it at once."""

import contextlib
import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.providers.retries import Circumstances, Failure, Retry, RetryBudget, may_try_another

FREE = Circumstances(
    whole_body=True, reply_started=False, idempotency_key=False, sticky=False, tried=1, most=3, seconds_left=600.0
)
REFUSED = Failure(sent=False)
RESET = Failure(sent=True)


def answered(status: int, *, should_retry: bool = False) -> Failure:
    return Failure(sent=True, status=status, should_retry=should_retry)


@pytest.mark.parametrize(
    ("failure", "goes_on"),
    [
        pytest.param(REFUSED, True, id="before-the-request-was-sent"),
        pytest.param(RESET, False, id="after-it-was-sent"),
        *[pytest.param(answered(status), True, id=str(status)) for status in (401, 403, 429, 502, 503, 529)],
        *[pytest.param(answered(status), False, id=str(status)) for status in (400, 404, 408, 409, 413, 500, 501, 504)],
        pytest.param(answered(500, should_retry=True), True, id="500-should-retry"),
        pytest.param(answered(409, should_retry=True), True, id="409-should-retry"),
    ],
)
def test_the_next_is_tried_only_where_nothing_is_done_twice(failure: Failure, goes_on: bool) -> None:
    assert may_try_another(failure, FREE) is goes_on


@pytest.mark.parametrize(("failure", "goes_on"), [(RESET, True), (answered(500), False), (answered(400), False)])
def test_an_idempotency_key_allows_what_may_have_begun(failure: Failure, goes_on: bool) -> None:
    assert may_try_another(failure, dataclasses.replace(FREE, idempotency_key=True)) is goes_on


@pytest.mark.parametrize(
    "change",
    [{"whole_body": False}, {"reply_started": True}, {"sticky": True}, {"tried": 3}, {"seconds_left": 0.005}],
    ids=lambda change: next(iter(change)),
)
@pytest.mark.parametrize("failure", [REFUSED, answered(503), answered(500, should_retry=True)], ids=["refused", "503", "asked"])
def test_nothing_goes_before_what_a_call_cannot(change: dict[str, object], failure: Failure) -> None:
    call = dataclasses.replace(FREE, idempotency_key=True)
    assert may_try_another(failure, call)
    assert not may_try_another(failure, dataclasses.replace(call, **change))  # type: ignore[arg-type]


@pytest.mark.parametrize(("calls", "most"), [(0, 100), (1, 100), (1000, 100), (1009, 100), (1010, 101), (10_000, 1000)])
def test_retries_in_flight_stay_within_the_larger_of_100_and_a_tenth(calls: int, most: int) -> None:
    budget = RetryBudget(lambda: calls)
    taken = [retry for _ in range(most + 5) if (retry := budget.take(answered(503)))]
    assert (len(taken), budget.retries) == (most, most)
    assert budget.take(RESET) is None
    assert budget.take(REFUSED), "no provider had work with that one"
    with taken.pop():
        pass
    assert budget.take(answered(503))


@given(st.lists(st.tuples(st.booleans(), st.booleans(), st.integers(0, 3000)), max_size=300))
def test_every_place_is_given_back_however_a_retry_ends(steps: list[tuple[bool, bool, int]]) -> None:
    calls, counting = 0, 0
    budget = RetryBudget(lambda: calls)
    held: list[tuple[Retry, bool]] = []
    for ends, counts, calls in steps:
        if ends and held:
            retry, counted = held.pop()
            with contextlib.suppress(KeyboardInterrupt), retry:
                raise KeyboardInterrupt
            counting -= counted
        elif retry_or_none := budget.take(RESET if counts else REFUSED):
            held.append((retry_or_none, counts))
            counting += counts
            assert not counts or counting <= max(100, calls / 10)
        assert budget.retries == counting
