"""Use over time is drawn as it was counted."""

import pytest
from aiohttp.test_utils import make_mocked_request

from llm_proxy.admin import use
from llm_proxy.history import SPANS, Series
from llm_proxy.history.figures import COLUMNS, Figures

LATENCY = COLUMNS.index("ms_100")


def figures(calls: int, errors: int = 0) -> Figures:
    values = [calls, errors, 1, 30, 12, 400 * calls, *[0] * (len(COLUMNS) - 6)]
    values[LATENCY] = calls
    return Figures.of(values)


@pytest.mark.parametrize(("asked", "span"), [("", "1h"), ("?span=24h", "24h"), ("?span=2+weeks", "1h"), ("?span=", "1h")])
def test_an_address_that_was_kept_opens_whatever_its_span_was(asked: str, span: str) -> None:
    assert use.span_of(make_mocked_request("GET", f"/admin/dashboard{asked}")) == span


def test_every_span_can_be_chosen() -> None:
    assert set(use.SPAN_NAMES) == set(SPANS)


def test_charts_and_totals_say_the_same() -> None:
    drawn = use.drawn("15m", Series([0, 60_000, 120_000], {"": [figures(3, 1), Figures(), figures(5)]}))
    assert (drawn.total.calls, drawn.total.errors, drawn.total.tokens) == (8, 1, 84)
    assert (drawn.begins, drawn.by_day, [moment for moment, _ in drawn.steps]) == (0, False, [0, 60_000, 120_000])
    said = [[step.says for step in chart.steps] for chart in drawn.charts]
    assert said == [
        ["errors 1, answered 2", "errors 0, answered 0", "errors 0, answered 5"],
        ["p95 97.5 ms, p50 75 ms", "p95 –, p50 –", "p95 97.5 ms, p50 75 ms"],
        ["prompt 30, completion 12", "prompt 0, completion 0", "prompt 30, completion 12"],
    ]
