"""The table sums as plain Python does, on both databases."""

import random
from typing import Any

import pytest

from llm_proxy.clock import DAY_MS, MINUTE_MS
from llm_proxy.db import Database
from llm_proxy.history import HOUR_MS, table
from llm_proxy.history.figures import COLUMNS, add
from llm_proxy.history.pending import Key
from llm_proxy.history.table import DIMENSIONS, Group, Question, delete_before, extent, fitting, insert, select
from llm_proxy.settings import Settings

# 2026-11-21T00:00:00Z
MIDNIGHT = 1_795_219_200_000
ALWAYS = (0, 2**62)


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
        for start, end in (ALWAYS, (MIDNIGHT - HOUR_MS, MIDNIGHT + MINUTE_MS)):
            found = await select(database, question, start, end)
            assert len(found) == len({group for group, _ in found}), question
            assert summed(found) == summed(fitting(given, question, start, end)), question


async def test_adding_to_a_row_adds_every_column(database: Database) -> None:
    given = rows(20)
    for _ in range(3):
        await insert(database, sorted(given.items()))
    found = await select(database, Question(*ALWAYS), *ALWAYS)
    assert found == [(Group(0, ""), [3 * sum(column) for column in zip(*given.values(), strict=True)])]


async def test_hours_and_days_begin_where_those_of_utc_do(database: Database) -> None:
    minutes = {MIDNIGHT - MINUTE_MS: 1, MIDNIGHT: 2, MIDNIGHT + HOUR_MS - MINUTE_MS: 4, MIDNIGHT + HOUR_MS: 8}
    await insert(database, [(Key(at, "p", "", ""), [calls, *[0] * (len(COLUMNS) - 1)]) for at, calls in minutes.items()])
    for step, expected in (
        (HOUR_MS, {MIDNIGHT - HOUR_MS: 1, MIDNIGHT: 6, MIDNIGHT + HOUR_MS: 8}),
        (DAY_MS, {MIDNIGHT - DAY_MS: 1, MIDNIGHT: 14}),
    ):
        found = await select(database, Question(*ALWAYS, step=step), *ALWAYS)
        assert {group.moment: values[0] for group, values in found} == expected


async def test_old_rows_go_in_pieces_and_the_rest_stays(database: Database) -> None:
    given = rows()
    assert await extent(database) is None
    await delete_before(database, MIDNIGHT, HOUR_MS)
    await insert(database, list(given.items()))
    assert await extent(database) == (min(given).minute, max(given).minute)
    await delete_before(database, MIDNIGHT, HOUR_MS)
    assert summed(await select(database, Question(*ALWAYS, "model", MINUTE_MS), *ALWAYS)) == summed(
        fitting(given, Question(*ALWAYS, "model", MINUTE_MS), MIDNIGHT, ALWAYS[1])
    )


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize("question", QUESTIONS[::3], ids=lambda one: f"{one.by}-{one.step}-{len(one.filters)}")
async def test_no_question_reads_the_whole_table(database: Database, settings: Settings, question: Question) -> None:
    asked: list[tuple[str, Any]] = []

    class Listening:
        async def fetch_all(self, sql: str, params: Any) -> list[Any]:
            asked.append((sql, params))
            return []

    await select(Listening(), question, 0, 1)  # type: ignore[arg-type]
    [(sql, params)] = asked
    plan = [row["detail"] for row in await database.fetch_all(f"EXPLAIN QUERY PLAN {sql}", params)]
    assert "minute>? AND minute<?" in plan[0], plan
    for row in await database.fetch_all(f"EXPLAIN QUERY PLAN {table._EXTENT}"):
        assert "SCAN usage_minutes" not in row["detail"] or "INDEX" in row["detail"]


@pytest.mark.parametrize(
    ("start", "end", "expected"),
    [
        (0, 2**62, [(MIDNIGHT, MIDNIGHT + DAY_MS), (MIDNIGHT + DAY_MS, MIDNIGHT + DAY_MS + 1)]),
        (MIDNIGHT + 59_999, MIDNIGHT + 1, [(MIDNIGHT, MIDNIGHT + 1)]),
        (MIDNIGHT, MIDNIGHT, []),
        (MIDNIGHT + 2 * DAY_MS, 2**62, []),
        (0, MIDNIGHT, []),
    ],
)
def test_time_is_asked_for_in_days_and_never_beyond_what_there_is(start: int, end: int, expected: list[tuple[int, int]]) -> None:
    assert list(Question(start, end).slices(MIDNIGHT, MIDNIGHT + DAY_MS)) == expected
