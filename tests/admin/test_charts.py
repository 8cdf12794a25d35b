"""Charts have round scales, show every value, and nothing where there is none."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.admin.charts import HEIGHT, LEAST, Bar, Line, lined, marks, scale, stacked
from llm_proxy.admin.display import brief, milliseconds


@pytest.mark.parametrize(
    ("most", "whole", "expected"),
    [
        (0, True, [0, 1]),
        (0, False, [0, 1]),
        (1, True, [0, 1]),
        (3, True, [0, 1, 2, 3]),
        (4, True, [0, 1, 2, 3, 4]),
        (5, True, [0, 2, 4, 6]),
        (9, False, [0, 2.5, 5, 7.5, 10]),
        (0.4, False, [0, 0.1, 0.2, 0.3, 0.4]),
        (100, True, [0, 50, 100]),
        (399, True, [0, 100, 200, 300, 400]),
        (1_000_000_001, True, [0, 500_000_000, 1_000_000_000, 1_500_000_000]),
    ],
)
def test_a_scale_has_round_numbers_up_to_the_first_above(most: float, whole: bool, expected: list[float]) -> None:
    assert scale(most, whole=whole) == pytest.approx(expected)


@given(st.floats(0, 1e15, allow_subnormal=False) | st.integers(0, 10**15), st.booleans())
def test_no_value_is_above_its_scale_and_lines_are_few(most: float, whole: bool) -> None:
    ticks = scale(most, whole=whole)
    assert ticks[0] == 0 and ticks[-1] >= most * (1 - 1e-9) and 2 <= len(ticks) <= 5
    assert not whole or all(float(tick).is_integer() for tick in ticks)


@pytest.mark.parametrize(
    ("count", "expected"),
    [
        (0, []),
        (1, [0]),
        (7, [0]),
        (15, [0, 5, 10]),
        (24, [0, 6, 12, 18]),
        (60, [0, 15, 30, 45]),
        (30, [0, 10, 20]),
        (25, [0, 5, 10, 15, 20]),
    ],
)
def test_times_stand_where_equal_parts_begin(count: int, expected: list[int]) -> None:
    assert marks(range(count)) == expected


def test_counts_stand_on_each_other_and_the_smallest_is_seen() -> None:
    lines = [Line("errors", "bad", [0, 1, 1000]), Line("answered", "main", [0, 999, 1000])]
    chart = stacked("Calls", [0, 60_000, 120_000], lines, brief)
    assert (chart.width, chart.ticks, chart.levels) == (
        30,
        ["2\u202f000", "1\u202f500", "1\u202f000", "500", "0"],
        [0, 25, 50, 75, 100],
    )
    assert [step.bars for step in chart.steps] == [
        [],
        [Bar("bad", HEIGHT - LEAST, LEAST), Bar("main", 48.55, 49.95)],
        [Bar("bad", 50, 50), Bar("main", 0, 50)],
    ]
    assert [(step.x, step.moment, step.says) for step in chart.steps] == [
        (0, 0, "errors 0, answered 0"),
        (10, 60_000, "errors 1, answered 999"),
        (20, 120_000, "errors 1\u202f000, answered 1\u202f000"),
    ]


@given(st.lists(st.tuples(*[st.integers(0, 10**12)] * 3), max_size=40))
def test_bars_stay_within_the_chart(columns: list[tuple[int, int, int]]) -> None:
    lines = [Line(name, name, [column[place] for column in columns]) for place, name in enumerate("abc")]
    for step in stacked("x", range(len(columns)), lines, brief).steps:
        assert all(0 <= bar.y <= HEIGHT and 0 <= bar.height <= HEIGHT - bar.y + 0.01 for bar in step.bars)


@pytest.mark.parametrize(
    ("values", "paths"),
    [
        ([], []),
        ([None, None], []),
        ([0.0], [("main dot", "M5 100h0")]),
        ([1.0, 0.5, None, 1.0], [("main", "M5 0L15 50"), ("main dot", "M35 0h0")]),
        ([None, 1.0, 1.0], [("main", "M15 0L25 0")]),
    ],
)
def test_lines_break_where_there_is_no_value(values: list[float | None], paths: list[tuple[str, str]]) -> None:
    chart = lined("Latency", range(len(values)), [Line("p50", "main", values)], milliseconds)
    assert chart.paths == paths
    assert [step.says for step in chart.steps] == [f"p50 {milliseconds(value)}" for value in values]
