"""How many tokens a project has."""

from typing import NamedTuple

from llm_proxy.clock import now_ms
from llm_proxy.db import Connection


class Counts(NamedTuple):
    """Tokens of a project: all, and those that are good now, their quota aside."""

    total: int
    live: int


async def count(connection: Connection, project_id: str) -> Counts:
    """The tokens and master keys of a project."""
    row = await connection.fetch_one(
        "SELECT COUNT(*) AS total, SUM(CASE WHEN is_active AND (expires_at IS NULL OR expires_at > :now) THEN 1 ELSE 0 END) "
        "AS live FROM tokens WHERE project_id = :project_id",
        {"project_id": project_id, "now": now_ms()},
    )
    return Counts(row["total"], int(row["live"] or 0)) if row else Counts(0, 0)
