"""Master keys: tokens without expiry, in a project that is always there."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llm_proxy import projects, tokens
from llm_proxy.clock import now_ms
from llm_proxy.db import Connection, Row
from llm_proxy.db.sql import assignments
from llm_proxy.projects import DEFAULT_ID
from llm_proxy.secret import Secret
from llm_proxy.tokens import Token
from llm_proxy.vault import Vault

KIND = "master_key"


@dataclass(frozen=True)
class MasterKey:
    """A master key: its token, with the end of the secret that it had before, in milliseconds, while that is good."""

    token: Token
    previous_expires_at: int | None

    @property
    def id(self) -> str:
        """The id of its token."""
        return self.token.id


async def insert(tx: Connection, vault: Vault, columns: Mapping[str, Any], id: str, secret: Secret) -> MasterKey:
    """Make a master key, and the built-in project when it is the first.

    Raises:
        Conflict: the id or the secret is taken.
    """
    await projects.ensure_default(tx)
    values = {"name": "", **columns, "project_id": DEFAULT_ID, "kind": KIND}
    return MasterKey(await tokens.insert(tx, vault, values, id, secret), None)


async def get(connection: Connection, id: str) -> MasterKey | None:
    """One master key by its id."""
    row = await connection.fetch_one(f"{tokens.SELECT_WITH_GRACE} WHERE t.id = :id AND t.kind = :kind", {"id": id, "kind": KIND})
    return _from_row(row) if row else None


async def find(connection: Connection, limit: int, after: str = "", before: str = "") -> list[MasterKey]:
    """By id, the first `limit` master keys whose id comes after `after`, or the last whose id comes before `before`."""
    comes, order = ("t.id < :before", "DESC") if before else ("t.id > :after", "ASC")
    rows = await connection.fetch_all(
        f"{tokens.SELECT_WITH_GRACE} WHERE t.kind = :kind AND {comes} ORDER BY t.id {order} LIMIT :limit",
        {"kind": KIND, "after": after, "before": before, "limit": limit},
    )
    found = [_from_row(row) for row in rows]
    return found[::-1] if before else found


def _from_row(row: Row) -> MasterKey:
    ends = row["previous_expires_at"]
    return MasterKey(tokens.from_row(row), ends if ends is not None and ends > now_ms() else None)


async def is_known(connection: Connection, vault: Vault, secret: Secret) -> bool:
    """Whether this is the secret of a token or master key, or was it before the last rotation."""
    return await tokens.find_by_hashes(connection, vault.token_hashes(secret.reveal())) is not None


async def replace_secret(tx: Connection, vault: Vault, id: str, secret: Secret, good_until: int) -> None:
    """Give a master key another secret; the one it had is good until a time in milliseconds.

    Raises:
        Conflict: the secret is taken.
    """
    # The right sides are the values of before the statement.
    values = {
        "secret_hash": vault.token_hashes(secret.reveal())[0],
        "hint": tokens.hint_of(secret.reveal()),
        "previous_expires_at": good_until,
        "updated_at": now_ms(),
    }
    sql = f"UPDATE tokens SET previous_secret_hash = secret_hash, {assignments(values)} WHERE id = :id"
    await tx.execute(sql, {**values, "id": id})


async def delete(tx: Connection, id: str) -> None:
    """Remove a master key; its id and its secret may be used again."""
    await tx.execute("DELETE FROM tokens WHERE id = :id AND kind = :kind", {"id": id, "kind": KIND})


async def count_enabled(connection: Connection) -> int:
    """How many master keys are enabled."""
    row = await connection.fetch_one("SELECT COUNT(*) AS n FROM tokens WHERE kind = :kind AND is_active", {"kind": KIND})
    return row["n"] if row else 0
