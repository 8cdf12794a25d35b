"""Fragments of SQL that several records need."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from llm_proxy.db import Connection, Row


class Page(NamedTuple):
    """One page of a list, newest first.

    Attributes:
        limit: how many rows at most.
        after: the id of the last row of the page before, or None for the first page.
    """

    limit: int = 50
    after: str | None = None


def assignments(columns: Iterable[str]) -> str:
    """`a = :a, b = :b` for the columns that a partial update names."""
    return ", ".join(f"{column} = :{column}" for column in columns)


def contains(parameter: str, *columns: str) -> str:
    """The condition that one of the columns holds a text, in any case; the parameter is a `pattern`."""
    # Both sides are lowered by the same hand: databases differ in which alphabets they know.
    return "(" + " OR ".join(f"LOWER({column}) LIKE LOWER(:{parameter}) ESCAPE '\\'" for column in columns) + ")"


def pattern(text: str) -> str:
    """What LIKE takes for any text that holds this one."""
    escaped = text.replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
    return f"%{escaped}%"


async def select_page(
    connection: Connection, source: str, conditions: Sequence[str], params: dict[str, Any], page: Page, key: str = "id"
) -> list[Row]:
    """A page of `source` (everything from SELECT to FROM), one row more than asked when there is a next page."""
    if page.after is not None:
        conditions = [*conditions, f"{key} < :after"]
        params = {**params, "after": page.after}
    where = f"WHERE {' AND '.join(conditions)}" if conditions else ""
    return await connection.fetch_all(f"{source} {where} ORDER BY {key} DESC LIMIT :limit", {**params, "limit": page.limit + 1})
