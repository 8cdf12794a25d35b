"""Fragments of SQL that several records need."""

import pytest

from llm_proxy.db import Database
from llm_proxy.db.sql import Page, assignments, select_page

SOURCE = "SELECT c.version FROM changes c"


@pytest.fixture
async def seven(database: Database) -> None:
    """Seven rows, the odd ones of another kind."""
    await database.execute("DELETE FROM changes")
    await database.executemany(
        "INSERT INTO changes (version, at, kind, ref, payload) VALUES (:version, 0, :kind, '', '{}')",
        [{"version": version, "kind": "odd" if version % 2 else "even"} for version in range(1, 8)],
    )


@pytest.mark.parametrize(
    ("columns", "sql"),
    [
        pytest.param(["a"], "a = :a", id="one"),
        pytest.param({"a": 1, "b": 2}, "a = :a, b = :b", id="several, from a mapping"),
    ],
)
def test_assignments_name_the_columns_they_are_given(columns: list[str], sql: str) -> None:
    assert assignments(columns) == sql


@pytest.mark.parametrize(
    ("conditions", "page", "found"),
    [
        pytest.param([], Page(10), [7, 6, 5, 4, 3, 2, 1], id="newest first"),
        pytest.param([], Page(3), [7, 6, 5, 4], id="one more than asked when there are more"),
        pytest.param([], Page(7), [7, 6, 5, 4, 3, 2, 1], id="no more than there are"),
        pytest.param([], Page(3, after=5), [4, 3, 2, 1], id="after a row"),
        pytest.param([], Page(3, after=1), [], id="after the last"),
        pytest.param([], Page(3, before=2), [6, 5, 4, 3], id="before a row, one more at the beginning when there are more"),
        pytest.param([], Page(3, before=4), [7, 6, 5], id="before a row, no more than there are"),
        pytest.param(["c.kind = :kind"], Page(1, before=1), [5, 3], id="before a row, with a condition"),
        pytest.param(["c.kind = :kind"], Page(10), [7, 5, 3, 1], id="with a condition"),
        pytest.param(["c.kind = :kind", "c.version > 1"], Page(1, after=7), [5, 3], id="with all of it"),
    ],
)
@pytest.mark.usefixtures("seven")
async def test_a_page_holds_what_comes_next(database: Database, conditions: list[str], page: Page, found: list[int]) -> None:
    given = {"kind": "odd"}
    assert [row["version"] for row in await select_page(database, SOURCE, conditions, given, page, key="c.version")] == found
    assert given == {"kind": "odd"}, "what was handed in is left alone"
