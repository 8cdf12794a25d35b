"""Providers: places calls can go."""

import functools
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import orjson

from llm_proxy.changes import Change
from llm_proxy.clock import now_ms
from llm_proxy.db import Connection, Row
from llm_proxy.db.sql import assignments
from llm_proxy.errors import InvalidField
from llm_proxy.providers.mapping import ModelMapping, compile_mapping
from llm_proxy.providers.profiles import Profiles
from llm_proxy.secret import Secret
from llm_proxy.vault import Place, Undecipherable, Vault

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Provider:
    """A provider of a project, or of the shared pool.

    Attributes:
        project_id: None in the shared pool.
        api_base: its base URL, empty for the profile's.
        api_key: None when it cannot be decrypted; `problem` says why.
        provider_params: facts for its profile, such as `{"api_version": "..."}` for Azure.
        problem: what in its row makes no sense, so that it is out of use; None when nothing does.
        model_mapping: the provider's names of models, by names or globs of the client's; empty for the same names.
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
    model_mapping: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def mapping(self) -> ModelMapping:
        """The models that it serves.

        Raises:
            InvalidField: there is no sense in it; `problem` says so too.
        """
        return compile_mapping(self.model_mapping)


# Named one by one, so that a newer program may add columns while this one runs.
_COLUMNS = (
    "id, project_id, name, provider_type, api_base, api_key_ciphertext, model_mapping, weight, provider_params, is_enabled, "
    "created_at, updated_at"
)


_AS_JSON = ("model_mapping", "provider_params")


def place_of(id: str) -> Place:
    """Where the ciphertext of a provider's key belongs."""
    return Place("providers", id, "api_key_ciphertext")


def _from_row(row: Row, vault: Vault) -> Provider:
    """The provider of a row; what no write would have stored is left out, and `problem` says what that is."""
    values = {name: value for name, value in row.items() if name != "api_key_ciphertext"}
    key, problem = None, None
    try:
        key = vault.open(row["api_key_ciphertext"], place_of(row["id"]))
    except Undecipherable as error:
        problem = f"The API key cannot be read: {error}."
    as_objects = {name: _object(row[name]) for name in _AS_JSON}
    return Provider(
        **{
            **values,
            **{name: value or {} for name, value in as_objects.items()},
            "weight": row["weight"] if _is_weight(row["weight"]) else 0,
            "is_enabled": bool(row["is_enabled"]),
            "api_key": key,
            "problem": problem or _nonsense({**row, **as_objects}, key),
        }
    )


def _object(text: object) -> dict[str, Any] | None:
    """The JSON object in a column; None when it holds something else."""
    try:
        value = orjson.loads(text) if isinstance(text, str | bytes) else None
    except orjson.JSONDecodeError:
        return None
    return value if isinstance(value, dict) else None


def _is_weight(value: object) -> bool:
    # SQLite stores text in a column of numbers, if somebody asks it to.
    return isinstance(value, int) and value >= 0


def _nonsense(row: Mapping[str, Any], key: Secret | None) -> str | None:
    """What in a row makes no sense, its JSON read; None when nothing does."""
    if key is not None and not _is_sendable(key.reveal()):
        return "The API key is empty, or has characters that no header may have."
    if not _is_weight(row["weight"]):
        return "weight is no whole number from 0."
    if row["provider_params"] is None:
        return "provider_params is no JSON object."
    if row["model_mapping"] is None:
        return "model_mapping is no JSON object."
    try:
        compile_mapping(row["model_mapping"])
    except InvalidField as error:
        return error.message
    return "api_base is no URL." if row["api_base"] and not _is_url(row["api_base"]) else None


def _is_sendable(key: str) -> bool:
    return bool(key) and key.isascii() and key.isprintable() and " " not in key


def _is_url(text: object) -> bool:
    try:
        parts = urlsplit(str(text))
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


async def insert(tx: Connection, vault: Vault, columns: Mapping[str, Any], key: Secret) -> Provider:
    """Make a provider; `columns` hold id, project_id, name, provider_type, api_base, weight and is_enabled, perhaps model_mapping
    and provider_params.

    Raises:
        Conflict: the id is taken.
    """
    now = now_ms()
    values = _stored({"model_mapping": {}, "provider_params": {}, **columns}) | {
        "api_key_ciphertext": vault.seal(key, place_of(columns["id"])),
        "created_at": now,
        "updated_at": now,
    }
    names, places = ", ".join(values), ", ".join(f":{name}" for name in values)
    row = await tx.fetch_one(f"INSERT INTO providers ({names}) VALUES ({places}) RETURNING {_COLUMNS}", values)
    assert row is not None
    return _from_row(row, vault)


def _stored(columns: Mapping[str, Any]) -> dict[str, Any]:
    return {name: orjson.dumps(value).decode() if name in _AS_JSON else value for name, value in columns.items()}


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


def _of(project_id: str | None) -> str:
    """The condition on the owner, which NULL takes another word for."""
    return "project_id IS NULL" if project_id is None else "project_id = :project_id"


async def get(connection: Connection, vault: Vault, project_id: str | None, id: str) -> Provider | None:
    """One provider of a project, or of the shared pool."""
    sql = f"SELECT {_COLUMNS} FROM providers WHERE id = :id AND {_of(project_id)}"
    row = await connection.fetch_one(sql, {"id": id, "project_id": project_id})
    return _from_row(row, vault) if row else None


async def of_project(connection: Connection, vault: Vault, project_id: str | None) -> list[Provider]:
    """All providers of a project, or of the shared pool, by id."""
    sql = f"SELECT {_COLUMNS} FROM providers WHERE {_of(project_id)} ORDER BY id"
    return [_from_row(row, vault) for row in await connection.fetch_all(sql, {"project_id": project_id})]


class Label(NamedTuple):
    """What a provider is called, and whose it is: None for the shared pool."""

    name: str
    project_id: str | None


async def labels_of(connection: Connection, ids: Sequence[str]) -> dict[str, Label]:
    """What providers are called, by their ids; ids of none are left out."""
    if not ids:
        return {}
    given = {f"id{place}": id for place, id in enumerate(ids)}
    marks = ", ".join(f":{name}" for name in given)
    rows = await connection.fetch_all(f"SELECT id, name, project_id FROM providers WHERE id IN ({marks})", given)
    return {row["id"]: Label(row["name"], row["project_id"]) for row in rows}


async def count_enabled(connection: Connection) -> int:
    """How many providers of the shared pool are enabled."""
    row = await connection.fetch_one("SELECT COUNT(*) AS n FROM providers WHERE project_id IS NULL AND is_enabled")
    return row["n"] if row else 0


async def every(connection: Connection, vault: Vault, most: int) -> list[Provider]:
    """The first `most` providers of all, by id."""
    rows = await connection.fetch_all(f"SELECT {_COLUMNS} FROM providers ORDER BY id LIMIT :most", {"most": most})
    return [_from_row(row, vault) for row in rows]


def problem_of(provider: Provider, profiles: Profiles) -> str | None:
    """Why a provider is out of use although it is enabled: its row makes no sense, or its profile is none for it."""
    if provider.problem:
        return provider.problem
    profile = profiles.apis.get(provider.provider_type)
    if profile is None:
        return f"There is no profile {provider.provider_type}; known are {', '.join(profiles.apis)}."
    return None if provider.api_base or profile.base_url else "It has no base URL, and neither has its profile."


class ProviderCache:
    """The decrypted providers of the projects in use, with the shared pool; a change drops those it concerns.

    The database away: projects that were read before go on, others raise `DatabaseUnavailable`.

    Args:
        pool: stands beside the shared pool of the database.
        profiles: says which profiles are in force.

    Attributes:
        pooled_ids: the ids of the shared pool as it was last read.
        version: another one whenever what is known here changes.
    """

    def __init__(
        self, database: Connection, vault: Vault, profiles: Callable[[], Profiles], pool: Sequence[Provider] = ()
    ) -> None:
        self._database = database
        self._vault = vault
        self._pool = list(pool)
        self._profiles = profiles
        # The shared pool stands under None, with what stands beside it, and None for a project that has no provider of its own.
        # Who serves a project is the same list until it changes.
        self._known: dict[str | None, list[Provider] | None] = {}
        self._pooled: list[Provider] = []
        self.pooled_ids = frozenset(one.id for one in self._pool)
        self._generation = self.version = 0
        self._reported: set[tuple[str, str]] = set()

    async def of_project(self, project_id: str) -> list[Provider]:
        """The enabled, sound providers of a project, or, if it has none at all, the shared pool's."""
        own = await self._usable(project_id)
        return own if own is not None else await self._usable(None) or self._pool

    async def _usable(self, project_id: str | None) -> list[Provider] | None:
        if project_id in self._known:
            return self._known[project_id]
        generation = self._generation
        found = await of_project(self._database, self._vault, project_id)
        usable = [provider for provider in found if provider.is_enabled and self._is_sound(provider)] if found else None
        if project_id is None and usable:
            usable += self._pool
        if generation == self._generation:
            self._known[project_id] = usable
            self.version += 1
            if project_id is None:
                self._pooled = found
                self.pooled_ids = frozenset(one.id for one in self.pooled)
        return usable

    async def read_pool(self) -> None:
        """Have `pooled` up to date."""
        await self._usable(None)

    @property
    def pooled(self) -> list[Provider]:
        """The shared pool as it was last read, with those that are disabled or make no sense."""
        return [*self._pooled, *self._pool]

    @property
    def private(self) -> Iterator[Provider]:
        """The usable providers that projects have of their own, of the projects in use."""
        return (one for project, own in self._known.items() if project is not None for one in own or ())

    def names_model(self, project_id: str, model: str) -> bool:
        """Whether a provider that serves the project now has a mapping with exactly this name in it."""
        own = self._known.get(project_id)
        serving = own if own is not None else self._known.get(None) or self._pool
        return any(provider.mapping.names_exactly(model) for provider in serving)

    def problem_of(self, provider: Provider) -> str | None:
        """Why a provider is out of use although it may be enabled; None when nothing is wrong."""
        return problem_of(provider, self._profiles())

    def _is_sound(self, provider: Provider) -> bool:
        problem = self.problem_of(provider)
        if problem and (provider.id, problem) not in self._reported:
            # Once, and not whenever its project is read again.
            self._reported.add((provider.id, problem))
            log.error("provider %s (%s) is out of use. %s", provider.id, provider.name, problem)
        return problem is None

    def on_change(self, change: Change) -> None:
        """Forget what a change made stale; a read under way must not put it back."""
        self.version += 1
        if change.kind in ("everything", "reload"):
            self._generation += 1
            self._known.clear()
        elif change.kind in ("provider", "project"):
            self._generation += 1
            self._known.pop(change.payload.get("project_id") if change.kind == "provider" else change.ref, None)
