"""Tests of the values that limits are made of."""

import dataclasses

import pytest

from llm_proxy.limits.rates import (
    MILLISECOND,
    MINUTE,
    SECOND,
    Bounds,
    Decision,
    KnownLimits,
    Limits,
    Standing,
    duration,
    limits_of,
    tightest,
)


@dataclasses.dataclass(frozen=True)
class Row:
    """What of a token's row matters here."""

    id: str = "t"
    project_id: str = "p"
    rate_limit: int | None = None
    rate_limit_per_minute: int | None = None
    max_parallel: int | None = None


def shown(limits: Limits) -> dict[str, int]:
    """Each limit under its key, without the tag."""
    return {each.key.removeprefix("{p}:"): each.limit for each in (*limits.rates, *limits.slots)}


CASES: dict[str, tuple[Row, Bounds, Bounds, dict[str, int]]] = {
    "nobody says anything": (Row(), Bounds(), Bounds(), {}),
    "the token's own": (
        Row(rate_limit=1, rate_limit_per_minute=2, max_parallel=3),
        Bounds(),
        Bounds(7, 7, 7),
        {"token:t:second": 1, "token:t:minute": 2, "token:t:parallel": 3},
    ),
    "the default": (
        Row(),
        Bounds(),
        Bounds(None, 20, 30),
        {"token:t:minute": 20, "token:t:parallel": 30},
    ),
    "0 of the token is none, whatever the default": (
        Row(rate_limit_per_minute=0, max_parallel=0),
        Bounds(),
        Bounds(1, 2, 3),
        {"token:t:second": 1},
    ),
    "0 of the project is none, whatever the default": (Row(), Bounds(0, 0, 0), Bounds(1, 2, 3), {}),
    "the project's, shared, which holds for each token too": (
        Row(),
        Bounds(4, 5, 6),
        Bounds(1, 2, 3),
        {"project:second": 4, "project:minute": 5, "project:parallel": 6},
    ),
    "both": (
        Row(rate_limit=1, max_parallel=2),
        Bounds(4, None, 6),
        Bounds(),
        {"token:t:second": 1, "token:t:parallel": 2, "project:second": 4, "project:parallel": 6},
    ),
    "none for the token, yet the project's is shared": (Row(rate_limit=0), Bounds(rate_limit=4), Bounds(), {"project:second": 4}),
}


@pytest.mark.parametrize(("token", "project", "default", "expected"), CASES.values(), ids=CASES)
def test_what_is_not_said_is_taken_from_behind(token: Row, project: Bounds, default: Bounds, expected: dict[str, int]) -> None:
    assert shown(limits_of(token, project, default)) == expected


def test_spans_are_a_second_a_minute_a_window() -> None:
    limits = limits_of(Row(), Bounds(1, 2), Bounds(), (3, 0.25))
    assert {rate.key: rate.span for rate in limits.rates} == {
        "{p}:token:t:window": SECOND // 4,
        "{p}:project:second": SECOND,
        "{p}:project:minute": MINUTE,
    }


def test_keys_of_one_project_have_one_hash_tag() -> None:
    limits = limits_of(Row(rate_limit=1, max_parallel=1), Bounds(1, 1, 1), Bounds(1, 1, 1), (1, 1.0))
    assert {each.key.partition("}")[0] for each in (*limits.rates, *limits.slots)} == {"{p"}


DURATIONS = {
    0: "0ms",
    1: "1ms",
    17 * MILLISECOND: "17ms",
    17 * MILLISECOND + 1: "18ms",
    SECOND: "1s",
    8_640 * MILLISECOND: "8.64s",
    MINUTE - 1: "1m0s",
    90 * SECOND: "1m30s",
    360 * SECOND: "6m0s",
    60 * MINUTE: "1h0m0s",
    61 * MINUTE + 5_005 * MILLISECOND: "1h1m5.005s",
}


@pytest.mark.parametrize(("nanoseconds", "text"), DURATIONS.items(), ids=DURATIONS.values())
def test_durations_are_written_as_openai_does(nanoseconds: int, text: str) -> None:
    assert duration(nanoseconds) == text


def test_the_tightest_rate_has_the_fewest_left_and_of_equals_the_longest_reset() -> None:
    wide, short, long = Standing(100, 50, MINUTE), Standing(1, 0, SECOND), Standing(9, 0, MINUTE)
    assert tightest([wide, short]) == short
    assert tightest([wide, short, long]) == long
    assert tightest([]) is None


WAITS = {
    1: ("1", "1"),
    MILLISECOND: ("1", "1"),
    MILLISECOND + 1: ("1", "2"),
    SECOND: ("1", "1000"),
    SECOND + 1: ("2", "1001"),
    59_000_000_001: ("60", "59001"),
}


@pytest.mark.parametrize(("wait", "expected"), WAITS.items(), ids=map(str, WAITS))
def test_a_refusal_says_when_to_come_again_and_never_too_early(wait: int, expected: tuple[str, str]) -> None:
    headers = Decision(wait, Standing(5, 0, MINUTE)).headers()
    assert (headers["Retry-After"], headers["retry-after-ms"]) == expected
    assert headers["x-ratelimit-reset-requests"] == "1m0s"


def test_an_answer_to_a_limited_token_says_what_is_left() -> None:
    assert Decision(standing=Standing(5, 4, SECOND)).headers() == {
        "x-ratelimit-limit-requests": "5",
        "x-ratelimit-remaining-requests": "4",
        "x-ratelimit-reset-requests": "1s",
    }


def test_a_token_without_rates_gets_no_headers() -> None:
    assert Decision().headers() == {}


@pytest.mark.parametrize(("full", "said"), [(True, "in flight"), (False, "too fast")], ids=["slots", "rate"])
def test_a_refusal_names_its_cause(full: bool, said: str) -> None:
    error = Decision(SECOND, None, full).refusal()
    assert error.code == "rate_limit_exceeded"
    assert said in error.message
    assert error.headers == {"Retry-After": "1", "retry-after-ms": "1000"}


def test_what_was_given_back_is_left_again() -> None:
    assert Standing(5, 3, SECOND).without_one() == Standing(5, 4, SECOND)
    assert Standing(5, 4, SECOND).without_one() == Standing(5, 5, 0), "nothing is in the window any more"


@dataclasses.dataclass(frozen=True)
class TokenRow(Row):
    """A token's row, its project's limits beside its own."""

    project_rate_limit: int | None = None
    project_rate_limit_per_minute: int | None = None
    project_max_parallel: int | None = None


def test_limits_are_worked_out_once_for_each_row_and_anew_when_it_changes() -> None:
    known = KnownLimits(Bounds(rate_limit_per_minute=7, max_parallel=0), (3, 1.0), 2)
    row = TokenRow(rate_limit=1, project_rate_limit=2, project_max_parallel=9)
    limits = known.of(row)
    assert [rate.limit for rate in limits.rates] == [1, 7, 3, 2] and [slots.limit for slots in limits.slots] == [9]
    assert known.of(row) is limits
    assert known.of(dataclasses.replace(row, rate_limit=4)).rates[0].limit == 4
    for id in "abc":
        known.of(dataclasses.replace(row, id=id))
    assert len(known._known) <= 2
