"""Providers: places calls can go."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from llm_proxy.changes import Change
from llm_proxy.clock import now_ms
from llm_proxy.db import Connection, Row
from llm_proxy.db.sql import assignments
from llm_proxy.secret import Secret
from llm_proxy.vault import Place, Undecipherable, Vault

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provider:
    """A provider of a project.

    Attributes:
        api_base: its base URL, empty for the profile's.
        api_key: None when it cannot be decrypted; `problem` says why.
        provider_params: facts for its profile, such as `{"api_version": "..."}` for Azure.
    """

    id: str
    project_id: str | None
    name: str
    provider_type: str
    api_base: str
    api_key: Secret | None
    weight: int
    provider_params: Mapping[str, Any]
    is_enabled: bool
    created_at: int
    updated_at: int
    problem: str | None = None


# Named one by one, so that a newer program may add columns while this one runs.
_COLUMNS = (
    "id, project_id, name, provider_type, api_base, api_key_ciphertext, weight, provider_params, is_enabled, "
    "created_at, updated_at"
)


def place_of(id: str) -> Place:
    """Where the ciphertext of a provider's key belongs."""
    return Place("providers", id, "api_key_ciphertext")


def _from_row(row: Row, vault: Vault) -> Provider:
    values = {name: value for name, value in row.items() if name != "api_key_ciphertext"}
    key, problem = None, None
    try:
        key = vault.open(row["api_key_ciphertext"], place_of(row["id"]))
    except Undecipherable as error:
        problem = f"The API key cannot be read: {error}."
        log.error("provider %s (%s) is out of use. %s", row["id"], row["name"], problem)
    values["provider_params"] = orjson.loads(row["provider_params"])
    return Provider(**{**values, "is_enabled": bool(row["is_enabled"]), "api_key": key, "problem": problem})


async def insert(tx: Connection, vault: Vault, columns: Mapping[str, Any], key: Secret) -> Provider:
    """Make a provider; `columns` hold id, project_id, name, provider_type, api_base, weight, provider_params, is_enabled.

    Raises:
        Conflict: the id is taken.
    """
    now = now_ms()
    values = _stored({"provider_params": {}, **columns}) | {
        "api_key_ciphertext": vault.seal(key, place_of(columns["id"])),
        "model_mapping": "{}",
        "created_at": now,
        "updated_at": now,
    }
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    row = await tx.fetch_one(f"INSERT INTO providers ({names}) VALUES ({places}) RETURNING {_COLUMNS}", values)
    assert row is not None
    return _from_row(row, vault)


def _stored(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: orjson.dumps(value).decode() if name == "provider_params" else value for name, value in columns.items()}


async def update(tx: Connection, vault: Vault, id: str, columns: Mapping[str, Any], key: Secret | None = None) -> Provider | None:
    """Write the named columns, with the key when one is given."""
    values = {**_stored(columns), "updated_at": now_ms()}
    if key:
        values["api_key_ciphertext"] = vault.seal(key, place_of(id))
    sql = f"UPDATE providers SET {assignments(values)} WHERE id = :id RETURNING {_COLUMNS}"
    row = await tx.fetch_one(sql, {**values, "id": id})
    return _from_row(row, vault) if row else None


async def delete(tx: Connection, id: str) -> None:
    """Remove a provider."""
    await tx.execute("DELETE FROM providers WHERE id = :id", {"id": id})


async def get(connection: Connection, vault: Vault, project_id: str, id: str) -> Provider | None:
    """One provider of a project."""
    params = {"id": id, "project_id": project_id}
    row = await connection.fetch_one(f"SELECT {_COLUMNS} FROM providers WHERE id = :id AND project_id = :project_id", params)
    return _from_row(row, vault) if row else None


async def of_project(connection: Connection, vault: Vault, project_id: str) -> list[Provider]:
    """All providers of a project, by id."""
    rows = await connection.fetch_all(
        f"SELECT {_COLUMNS} FROM providers WHERE project_id = :project_id ORDER BY id", {"project_id": project_id}
    )
    return [_from_row(row, vault) for row in rows]


async def every(connection: Connection, vault: Vault, most: int) -> list[Provider]:
    """The first `most` providers of all, by id."""
    rows = await connection.fetch_all(f"SELECT {_COLUMNS} FROM providers ORDER BY id LIMIT :most", {"most": most})
    return [_from_row(row, vault) for row in rows]


class ProviderCache:
    """The decrypted providers of the projects in use; a change drops those it concerns.

    The database away: projects that were read before go on, others raise `DatabaseUnavailable`.

    Args:
        pool: where the calls of projects without a provider of their own go.
    """

    def __init__(self, database: Connection, vault: Vault, pool: Sequence[Provider] = ()) -> None:
        self._database = database
        self._vault = vault
        self._pool = list(pool)
        self._known: dict[str, list[Provider]] = {}
        self._generation = 0

    async def of_project(self, project_id: str) -> list[Provider]:
        """The enabled, readable providers of a project, or, if it has none at all, the pool."""
        known = self._known.get(project_id)
        if known is not None:
            return known
        generation = self._generation
        found = await of_project(self._database, self._vault, project_id)
        usable = [provider for provider in found if provider.is_enabled and provider.api_key] if found else self._pool
        if generation == self._generation:
            self._known[project_id] = usable
        return usable

    def on_change(self, change: Change) -> None:
        """Forget what a change made stale; a read under way must not put it back."""
        if change.kind == "everything":
            self._generation += 1
            self._known.clear()
        elif change.kind in ("provider", "project"):
            self._generation += 1
            self._known.pop(change.payload.get("project_id", "") if change.kind == "provider" else change.ref, None)
