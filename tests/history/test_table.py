"""The table sums as plain Python does, on both databases."""

import itertools
import random
from typing import Any

import pytest

from llm_proxy.clock import DAY_MS, HOUR_MS, MINUTE_MS
from llm_proxy.db import Database
from llm_proxy.history import table
from llm_proxy.history.figures import COLUMNS, add
from llm_proxy.history.pending import Key
from llm_proxy.history.table import (
    DIMENSIONS,
    HOURS,
    MINUTES,
    Group,
    Question,
    Slice,
    delete_before,
    extent,
    fitting,
    insert,
    select,
    select_by_every,
)
from llm_proxy.settings import Settings

# 2026-11-21T00:00:00Z
MIDNIGHT = 1_795_219_200_000
ALWAYS = (0, 2**62)
ALL = Slice(MINUTES, *ALWAYS)
SPANS = (ALWAYS, (MIDNIGHT - HOUR_MS, MIDNIGHT + MINUTE_MS), (MIDNIGHT - HOUR_MS, MIDNIGHT + HOUR_MS))


def rows(count: int = 300, seed: int = 7) -> dict[Key, list[int]]:
    """Rows around midnight, names that SQL might stumble over among them."""
    chance, found = random.Random(seed), {}
    for _ in range(count):
        minute = MIDNIGHT + chance.randrange(-3 * 60, 3 * 60) * MINUTE_MS
        names = (chance.choice(("", "p1", "p'2")), chance.choice(("", "openai")), chance.choice(("", "gpt", "100%", "ö")))
        found[Key(minute, *names)] = [chance.randrange(1, 2**24 if chance.random() < 0.1 else 100) for _ in COLUMNS]
    return found


def summed(found: Any) -> dict[Group, list[int]]:
    sums: dict[Group, list[int]] = {}
    for group, values in found:
        add(sums.setdefault(group, [0] * len(COLUMNS)), values)
    return sums


QUESTIONS = [
    Question(*ALWAYS, by, step, filters)
    for by in (None, *DIMENSIONS)
    for step in (None, MINUTE_MS, HOUR_MS, DAY_MS)
    for filters in ({}, {"project_id": "p'2"}, {"provider": "openai", "model": "100%"}, {"model": "nothing"})
]


async def test_every_grouping_and_filter_sums_as_plain_python_does(database: Database) -> None:
    given = rows()
    await insert(database, list(given.items()))
    for question in QUESTIONS:
        for start, end in SPANS:
            part = Slice(MINUTES, start, end)
            found = await select(database, question, part)
            assert len(found) == len({group for group, _ in found}), question
            assert summed(found) == summed(fitting(given, question, part)), question
            if question.by and not question.step:
                every = await select_by_every(database, question, part)
                assert summed((question.group_of(key), values) for key, values in every) == summed(found), question


@pytest.mark.parametrize("step", [None, MINUTE_MS, HOUR_MS, DAY_MS])
async def test_hours_and_minutes_together_sum_as_minutes_alone_do(database: Database, step: int | None) -> None:
    given = rows()
    for half in (list(given.items())[::2], list(given.items())[1::2]):
        await insert(database, half)
    found = await extent(database)
    assert found == (min(given).began, max(given).began)
    for start, end in (*SPANS, (MIDNIGHT - 90 * MINUTE_MS, MIDNIGHT + 90 * MINUTE_MS), (MIDNIGHT, MIDNIGHT + 1)):
        question = Question(start, end, "model", step)
        parts = list(question.slices(*found))
        assert all(one.end == other.start for one, other in itertools.pairwise(parts))
        read = [row for part in parts for row in await select(database, question, part)]
        assert summed(read) == summed(fitting(given, question, Slice(MINUTES, start, end))), (start, end)


async def test_adding_to_a_row_adds_every_column(database: Database) -> None:
    given = rows(20)
    for _ in range(3):
        await insert(database, list(given.items()))
    for part in (ALL, Slice(HOURS, *ALWAYS)):
        found = await select(database, Question(*ALWAYS), part)
        assert found == [(Group(0, ""), [3 * sum(column) for column in zip(*given.values(), strict=True)])]


async def test_hours_and_days_begin_where_those_of_utc_do(database: Database) -> None:
    minutes = {MIDNIGHT - MINUTE_MS: 1, MIDNIGHT: 2, MIDNIGHT + HOUR_MS - MINUTE_MS: 4, MIDNIGHT + HOUR_MS: 8}
    await insert(database, [(Key(at, "p", "", ""), [calls, *[0] * (len(COLUMNS) - 1)]) for at, calls in minutes.items()])
    for step, expected in (
        (HOUR_MS, {MIDNIGHT - HOUR_MS: 1, MIDNIGHT: 6, MIDNIGHT + HOUR_MS: 8}),
        (DAY_MS, {MIDNIGHT - DAY_MS: 1, MIDNIGHT: 14}),
    ):
        for part in (ALL, Slice(HOURS, *ALWAYS)):
            found = await select(database, Question(*ALWAYS, step=step), part)
            assert {group.moment: values[0] for group, values in found} == expected


async def test_old_rows_go_in_pieces_and_the_rest_stays(database: Database) -> None:
    given, question = rows(), Question(*ALWAYS, "model", HOUR_MS)
    assert await extent(database) is None
    await delete_before(database, MIDNIGHT, HOUR_MS)
    await insert(database, list(given.items()))
    await delete_before(database, MIDNIGHT, HOUR_MS)
    kept = summed(fitting(given, question, Slice(MINUTES, MIDNIGHT, ALWAYS[1])))
    for part in (ALL, Slice(HOURS, *ALWAYS)):
        assert summed(await select(database, question, part)) == kept


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize("question", QUESTIONS[::3], ids=lambda one: f"{one.by}-{one.step}-{len(one.filters)}")
async def test_no_question_reads_the_whole_table(database: Database, settings: Settings, question: Question) -> None:
    asked: list[tuple[str, Any]] = []

    class Listening:
        async def fetch_all(self, sql: str, params: Any) -> list[Any]:
            asked.append((sql, params))
            return []

    await select(Listening(), question, Slice(MINUTES, 0, 1))  # type: ignore[arg-type]
    [(sql, params)] = asked
    plan = [row["detail"] for row in await database.fetch_all(f"EXPLAIN QUERY PLAN {sql}", params)]
    assert "began>? AND began<?" in plan[0], plan
    for row in await database.fetch_all(f"EXPLAIN QUERY PLAN {table._EXTENT}"):
        assert "SCAN usage_minutes" not in row["detail"] or "INDEX" in row["detail"]


MONTH_MS = 30 * DAY_MS
LAST = MIDNIGHT + 40 * DAY_MS


@pytest.mark.parametrize(
    ("step", "start", "end", "expected"),
    [
        (
            DAY_MS,
            0,
            2**62,
            [
                Slice(HOURS, MIDNIGHT, MIDNIGHT + MONTH_MS),
                Slice(HOURS, MIDNIGHT + MONTH_MS, LAST + HOUR_MS),
            ],
        ),
        (
            None,
            LAST - HOUR_MS,
            LAST + HOUR_MS - 1,
            [Slice(HOURS, LAST - HOUR_MS, LAST), Slice(MINUTES, LAST, LAST + MINUTE_MS)],
        ),
        (None, LAST + 1, LAST + HOUR_MS, [Slice(HOURS, LAST, LAST + HOUR_MS)]),
        (None, MIDNIGHT + 59_999, MIDNIGHT + 1, [Slice(MINUTES, MIDNIGHT, MIDNIGHT + 1)]),
        (
            MINUTE_MS,
            LAST - DAY_MS - 1,
            LAST,
            [
                Slice(MINUTES, LAST - DAY_MS - MINUTE_MS, LAST - MINUTE_MS),
                Slice(MINUTES, LAST - MINUTE_MS, LAST),
            ],
        ),
        (HOUR_MS, MIDNIGHT, MIDNIGHT, []),
        (HOUR_MS, LAST + DAY_MS, 2**62, []),
        (HOUR_MS, 0, MIDNIGHT, []),
    ],
)
def test_time_is_asked_for_in_parts_and_never_beyond_what_there_is(
    step: int | None, start: int, end: int, expected: list[Slice]
) -> None:
    assert list(Question(start, end, step=step).slices(MIDNIGHT, LAST)) == expected
