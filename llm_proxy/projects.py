"""Projects: the tenants."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from llm_proxy.clock import now_ms
from llm_proxy.db import Connection, Row
from llm_proxy.db.sql import Page, assignments, contains, pattern, select_page

# The project of master keys, made with the first of them. A UUID like those of other projects, older than all.
DEFAULT_ID = "00000000-0000-7000-8000-000000000000"
DEFAULT_NAMES = ("default", "default (built-in)")
IDS_AT_ONCE = 500


@dataclass(frozen=True)
class Project:
    """A tenant; times are milliseconds since the epoch, a limit of None means the default, 0 none."""

    id: str
    name: str
    is_active: bool
    rate_limit: int | None
    rate_limit_per_minute: int | None
    max_parallel: int | None
    created_at: int
    updated_at: int
    deactivated_at: int | None


# Named one by one, so that a newer program may add columns while this one runs.
_COLUMNS = ", ".join(field.name for field in fields(Project))


def _from_row(row: Row) -> Project:
    return Project(**{**row, "is_active": bool(row["is_active"])})


async def insert(tx: Connection, id: str, name: str, limits: Mapping[str, int | None]) -> Project:
    """Make a project.

    Raises:
        Conflict: the name is taken.
    """
    now = now_ms()
    row = await tx.fetch_one(
        "INSERT INTO projects (id, name, is_active, rate_limit, rate_limit_per_minute, max_parallel, created_at, updated_at) "
        f"VALUES (:id, :name, :is_active, :rate_limit, :rate_limit_per_minute, :max_parallel, :now, :now) RETURNING {_COLUMNS}",
        {
            "id": id,
            "name": name,
            "is_active": True,
            "rate_limit": limits.get("rate_limit"),
            "rate_limit_per_minute": limits.get("rate_limit_per_minute"),
            "max_parallel": limits.get("max_parallel"),
            "now": now,
        },
    )
    assert row is not None
    return _from_row(row)


async def ensure_default(tx: Connection) -> None:
    """Make the built-in project if it is missing; where somebody took its name before, it has another."""
    now = now_ms()
    for name in DEFAULT_NAMES:
        # Another process may make it at the same time; with any other conflict, the next name is tried.
        await tx.execute(
            "INSERT INTO projects (id, name, is_active, created_at, updated_at) VALUES (:id, :name, :on, :now, :now) "
            "ON CONFLICT DO NOTHING",
            {"id": DEFAULT_ID, "name": name, "on": True, "now": now},
        )
        if await get(tx, DEFAULT_ID):
            return


async def get(connection: Connection, id: str) -> Project | None:
    """One project by its id."""
    row = await connection.fetch_one(f"SELECT {_COLUMNS} FROM projects WHERE id = :id", {"id": id})
    return _from_row(row) if row else None


async def find(
    connection: Connection, page: Page, *, name: str | None = None, is_active: bool | None = None, search: str | None = None
) -> list[Project]:
    """A page of projects, newest first, one more than asked when there are more; `search` is a part of the name, in any case."""
    filters = {"name": name, "is_active": is_active}
    params: dict[str, Any] = {column: value for column, value in filters.items() if value is not None}
    conditions = [f"{column} = :{column}" for column in params]
    if search:
        conditions.append(contains("search", "name"))
        params["search"] = pattern(search)
    return [_from_row(row) for row in await select_page(connection, f"SELECT {_COLUMNS} FROM projects", conditions, params, page)]


async def meant(connection: Connection, text: str, most: int = 4) -> list[Project]:
    """What a person may mean: one project when it is clear, at most `most` when it is not, newest first.

    A whole id or name goes before the name in another case, and that before a part of it.
    """
    ways = ("id = :text OR name = :text", "LOWER(name) = LOWER(:text)", contains("part", "name"))
    for way in ways:
        rows = await connection.fetch_all(
            f"SELECT {_COLUMNS} FROM projects WHERE {way} ORDER BY id DESC LIMIT :most",
            {"text": text, "part": pattern(text), "most": most},
        )
        if rows:
            return [_from_row(row) for row in rows]
    return []


async def names_of(connection: Connection, ids: Sequence[str]) -> dict[str, str]:
    """The names of projects by their ids; ids of none are left out."""
    found: dict[str, str] = {}
    for begin in range(0, len(ids), IDS_AT_ONCE):
        given = {f"id{place}": id for place, id in enumerate(ids[begin : begin + IDS_AT_ONCE])}
        marks = ", ".join(f":{name}" for name in given)
        rows = await connection.fetch_all(f"SELECT id, name FROM projects WHERE id IN ({marks})", given)
        found |= {row["id"]: row["name"] for row in rows}
    return found


async def update(tx: Connection, id: str, columns: Mapping[str, Any]) -> Project | None:
    """Write the named columns, no others.

    Raises:
        Conflict: the name is taken.
    """
    values = {**columns, "updated_at": now_ms()}
    if "is_active" in columns:
        values["deactivated_at"] = None if columns["is_active"] else values["updated_at"]
    sql = f"UPDATE projects SET {assignments(values)} WHERE id = :id RETURNING {_COLUMNS}"
    row = await tx.fetch_one(sql, {**values, "id": id})
    return _from_row(row) if row else None
