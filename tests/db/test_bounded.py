"""A search looks at no more rows than it may, says where it ended, and loses none when it is gone on with."""

from collections.abc import Callable, Mapping
from typing import Any

import pytest

from llm_proxy.db import Database
from llm_proxy.db.bounded import Search, search_page
from llm_proxy.db.sql import Page

ROWS = range(100, 200)
RARE = ["details LIKE :text"]


@pytest.fixture
async def hundred(database: Database) -> Database:
    """A hundred events: every second of one action, every tenth of one actor, every fiftieth with a word of its own."""
    await database.execute("DELETE FROM audit_events")
    await database.executemany(
        "INSERT INTO audit_events (id, timestamp, action, actor, outcome, details) VALUES (:id, :at, :action, :actor, '', :text)",
        [
            {
                "id": str(number),
                "at": number,
                "action": "even" if number % 2 == 0 else "odd",
                "actor": "tenth" if number % 10 == 0 else "other",
                "text": "needle" if number % 50 == 0 else "hay",
            }
            for number in ROWS
        ],
    )
    return database


async def all_pages(database: Database, search: Search, params: Mapping[str, Any], *, backward: bool = False) -> list[int]:
    """What every page together shows, each gone on with from where the one before ended."""
    found: list[int] = []
    page = Page(3, before="000") if backward else Page(3)
    for _ in range(60):
        rows, until = await search_page(database, search, params, page)
        shown = rows[-3:] if backward else rows[:3]
        found = [int(row["id"]) for row in shown] + found if backward else found + [int(row["id"]) for row in shown]
        end = (shown[0] if backward else shown[-1])["id"] if len(rows) > 3 else until
        if end is None:
            return found
        page = Page(3, before=end) if backward else Page(3, after=end)
    raise AssertionError("no end")


@pytest.mark.parametrize("backward", [False, True], ids=["forward", "backward"])
@pytest.mark.parametrize(
    ("given", "fits"),
    [
        pytest.param({}, lambda number: True, id="everything"),
        pytest.param({"exact": ["action"]}, lambda number: number % 2 == 0, id="one filter"),
        pytest.param({"exact": ["action", "actor"]}, lambda number: number % 10 == 0, id="two filters"),
        pytest.param({"rare": RARE}, lambda number: number % 50 == 0, id="a text"),
        pytest.param({"exact": ["actor"], "rare": RARE}, lambda number: number % 50 == 0, id="a filter and a text"),
        pytest.param(
            {"exact": ["action"], "first": "120", "last": "160", "frequent": ["timestamp + 0 >= 122"]},
            lambda number: 122 <= number <= 160 and number % 2 == 0,
            id="a filter in a span",
        ),
        pytest.param(
            {"rare": RARE, "first": "110", "last": "190", "frequent": ["timestamp + 0 > 110"]},
            lambda number: number == 150,
            id="a text in a span",
        ),
    ],
)
async def test_all_that_fits_is_found_once_page_after_page(
    hundred: Database, given: dict[str, Any], fits: Callable[[int], bool], backward: bool
) -> None:
    params = {"action": "even", "actor": "tenth", "text": "%needle%"}
    found = await all_pages(hundred, Search("id", "audit_events", most=20, **given), params, backward=backward)
    assert found == [number for number in reversed(ROWS) if fits(number)]


async def test_a_search_ends_where_it_has_looked_at_enough_of_the_fewest(hundred: Database) -> None:
    params = {"action": "even", "actor": "tenth", "text": "%nowhere%"}
    for exact, until in (([], "180"), (["action"], "160"), (["action", "actor"], None), (["actor", "action"], None)):
        found = await search_page(hundred, Search("id", "audit_events", most=20, exact=exact, rare=RARE), params, Page())
        assert found == ([], until), exact
    # A page that is full says nothing of where it would have ended.
    found = await search_page(hundred, Search("id", "audit_events", most=20, rare=["details = 'hay'"]), {}, Page(3))
    assert (len(found.rows), found.until) == (4, None)
