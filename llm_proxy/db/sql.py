"""Fragments of SQL that several records need."""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from llm_proxy.db import Connection, Row


class Page(NamedTuple):
    """One page of a list, newest first.

    Attributes:
        limit: how many rows at most.
        after: the id of the last row of the page before, or None for the first page.
        before: the id of the first row of the page behind, where the list is read backward.
    """

    limit: int = 50
    after: str | None = None
    before: str | None = None


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
    """A page of `source` (everything from SELECT to FROM), one row more than asked when there is more that way.

    The one more stands at the end, and of a page that was read backward at the beginning.
    """
    rows = await connection.fetch_all(f"{source} {page_clause(conditions, page, key)}", {**params, **page_params(page)})
    return rows[::-1] if page.before else rows


def page_clause(conditions: Sequence[str], page: Page, key: str = "id") -> str:
    """From WHERE to the end, for a page of what the conditions leave; of a page read backward, the oldest come first."""
    conditions = [*conditions, *([f"{key} > :before"] if page.before else [f"{key} < :after"] if page.after else [])]
    where = f"WHERE {' AND '.join(conditions)} " if conditions else ""
    return f"{where}ORDER BY {key} {'ASC' if page.before else 'DESC'} LIMIT :limit"


def page_params(page: Page) -> dict[str, Any]:
    """The parameters of `page_clause`."""
    bound = {"before": page.before} if page.before else {"after": page.after} if page.after else {}
    return {**bound, "limit": page.limit + 1}
