"""Searches that end after a known number of rows, however many there are."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from llm_proxy.db import Connection, Row
from llm_proxy.db.sql import Page

MOST = 10_000


class Found(NamedTuple):
    """A page of a search.

    Attributes:
        rows: newest first, one more than asked when there is more that way, as `select_page` gives them.
        until: the id at which the search ended without having seen all; the next may go on from there.
    """

    rows: list[Row]
    until: str | None = None


@dataclass(frozen=True)
class Search:
    """What is searched.

    Attributes:
        columns: what is read of each row.
        exact: columns of text that must be as the parameter of their name says; each has an index, which goes on with the id.
        first: the lowest id that can fit, where that is known.
        last: the highest.
        frequent: conditions that most rows between those fulfil.
        rare: conditions that no index helps with, and that few rows may fulfil.
        most: how many rows are looked at.
    """

    columns: str
    table: str
    exact: Sequence[str] = ()
    first: str | None = None
    last: str | None = None
    frequent: Sequence[str] = ()
    rare: Sequence[str] = ()
    most: int = MOST

    def bounds(self, page: Page, until: str | None = None) -> dict[str, str]:
        """The conditions on the id with their values, one at each end: of two, databases would begin at the wrong one."""
        if page.before:
            ends = {"id > :low": page.before, "id <= :high": until or self.last}
        elif page.after:
            ends = {"id >= :low": until or self.first, "id < :high": page.after}
        else:
            ends = {"id >= :low": until or self.first, "id <= :high": self.last}
        return {condition: id for condition, id in ends.items() if id}


async def search_page(connection: Connection, search: Search, params: Mapping[str, Any], page: Page) -> Found:
    """A page of what fits, by id, out of a bounded number of rows: those that the filter with the fewest leaves."""
    ways = [f"{column} = :{column}" for column in search.exact]
    best, until = 0, None
    if len(ways) > 1 or search.rare:
        best, until = await _best_way(connection, search, ways or ["1 = 1"], params, page)
    # What is joined with nothing leads to no index: the rows that were counted are those of the best way's.
    rest = [f"{column} || '' = :{column}" for place, column in enumerate(search.exact) if place != best]
    conditions = [*ways[best : best + 1], *rest, *search.frequent, *search.rare]
    rows = await _select(connection, search, search.columns, conditions, params, page, until=until, limit=page.limit + 1)
    return Found(rows[::-1] if page.before else rows, until if len(rows) <= page.limit else None)


async def _best_way(
    connection: Connection, search: Search, ways: Sequence[str], params: Mapping[str, Any], page: Page
) -> tuple[int, str | None]:
    """Which condition leads furthest within the rows that may be looked at, and to which id; None where that is the end."""
    reached: list[str] = []
    for place, way in enumerate(ways):
        rows = await _select(connection, search, "id", [way], params, page, limit=1, skipped=search.most - 1)
        if not rows:
            return place, None
        reached.append(rows[0]["id"])
    furthest = max(reached) if page.before else min(reached)
    return reached.index(furthest), furthest


async def _select(
    connection: Connection,
    search: Search,
    columns: str,
    conditions: Sequence[str],
    params: Mapping[str, Any],
    page: Page,
    *,
    limit: int,
    skipped: int = 0,
    until: str | None = None,
) -> list[Row]:
    bounds = search.bounds(page, until)
    where = " AND ".join([*conditions, *bounds]) or "1 = 1"
    ends = {condition.rpartition(":")[2]: value for condition, value in bounds.items()}
    return await connection.fetch_all(
        f"SELECT {columns} FROM {search.table} WHERE {where} "
        f"ORDER BY id {'ASC' if page.before else 'DESC'} LIMIT :limit OFFSET :skipped",
        {**params, **ends, "limit": limit, "skipped": skipped},
    )
