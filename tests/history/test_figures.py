"""A call is counted for what it was; percentiles stay within their step."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.events import OUTCOMES, Event
from llm_proxy.history.figures import BOUNDS_MS, COLUMNS, Figures, add, count
from llm_proxy.usage import Usage


def event(**facts: object) -> Event:
    made = Event("r1", None, None, None, "POST", "/v1/chat/completions")
    made.status, made.outcome = 200, "completed"
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def figures(*events: Event) -> Figures:
    values = [0] * len(COLUMNS)
    for one in events:
        count(values, one)
    return Figures.of(values)


@pytest.mark.parametrize(
    ("status", "outcome", "errors"),
    [
        *((200, outcome, 0 if outcome in ("completed", "cached", "client_gone") else 1) for outcome in OUTCOMES),
        *((429, outcome, 1) for outcome in OUTCOMES),
        (0, "client_gone", 0),
        (0, "aborted_by_shutdown", 1),
        (399, "completed", 0),
        (400, "completed", 1),
    ],
)
def test_an_error_is_what_the_client_got_as_one_or_did_not_get_whole(status: int, outcome: str, errors: int) -> None:
    assert figures(event(status=status, outcome=outcome)).errors == errors


@pytest.mark.parametrize(
    ("cache", "hits"), [(None, 0), ("hit", 1), ("conditional-hit", 1), ("stored", 0), ("miss", 0), ("bypass", 0)]
)
def test_a_hit_is_what_the_cache_answered(cache: str | None, hits: int) -> None:
    assert figures(event(cache=cache)).cache_hits == hits


@pytest.mark.parametrize(
    ("seconds", "place"),
    [(0.0, 0), (0.001, 0), (0.0011, 1), (0.1, 6), (0.100001, 7), (1.0, 11), (120.0, 22), (120.001, 23), (1e6, 23)],
)
def test_a_time_falls_into_the_step_that_it_does_not_exceed(seconds: float, place: int) -> None:
    latency = figures(event(duration=seconds)).latency
    assert [number for number, calls in enumerate(latency) if calls] == [place]


def test_tokens_and_our_own_time_are_summed() -> None:
    used = Usage(prompt_tokens=3, completion_tokens=4, total_tokens=9, source="provider")
    one = figures(event(usage=used, overhead=0.0015), event(usage=used, overhead=0.0005), event())
    assert (one.calls, one.prompt_tokens, one.completion_tokens, one.overhead_us) == (3, 6, 8, 2000)
    assert one.overhead_ms == 0.667


def test_values_add_up_column_by_column() -> None:
    values = [0] * len(COLUMNS)
    for _ in range(2):
        add(values, range(len(COLUMNS)))
    assert values == [2 * place for place in range(len(COLUMNS))]


def test_nothing_has_no_percentile_no_average_and_no_share() -> None:
    none = Figures()
    assert (none.quantile_ms(0.5), none.overhead_ms, none.error_share, none.hit_share) == (None, None, None, None)


def test_figures_add_up_and_know_their_shares() -> None:
    used = Usage(prompt_tokens=3, completion_tokens=4)
    one = figures(event(duration=0.15, usage=used), event(status=500, overhead=0.001))
    other = figures(event(cache="hit", duration=0.15), event(usage=used))
    both = one + other
    assert both == figures(
        event(duration=0.15, usage=used), event(status=500, overhead=0.001), event(cache="hit", duration=0.15), event(usage=used)
    )
    assert (both.calls, both.error_share, both.hit_share, both.tokens) == (4, 0.25, 0.25, 14)


@pytest.mark.parametrize(("share", "ms"), [(0.25, 125.0), (0.5, 150.0), (1.0, 200.0)])
def test_calls_are_taken_to_be_spread_evenly_over_their_step(share: float, ms: float) -> None:
    assert figures(*[event(duration=0.15)] * 4).quantile_ms(share) == ms


def test_what_is_above_every_step_is_told_as_the_last_bound() -> None:
    assert figures(event(duration=500.0)).quantile_ms(0.5) == 120_000


@given(
    st.lists(st.floats(0, 200, allow_subnormal=False), min_size=1, max_size=60),
    st.sampled_from((0.0, 0.05, 0.5, 0.95, 0.99, 1.0)),
)
def test_a_percentile_is_in_the_step_of_the_exact_one(seconds: list[float], share: float) -> None:
    exact = sorted(seconds)[max(0, math.ceil(share * len(seconds)) - 1)] * 1000
    estimated = figures(*(event(duration=one) for one in seconds)).quantile_ms(share)
    above = next((bound for bound in BOUNDS_MS if exact <= bound), BOUNDS_MS[-1])
    below = max((bound for bound in BOUNDS_MS if bound < exact), default=0)
    assert estimated is not None
    assert min(below, BOUNDS_MS[-1]) - 0.1 <= estimated <= above + 0.1
