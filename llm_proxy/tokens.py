"""Withering tokens: made, recognised, found, revoked."""

import binascii
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from llm_proxy.clock import now_ms
from llm_proxy.db import Connection, Row
from llm_proxy.db.sql import Page, assignments, contains, page_clause, page_params, pattern
from llm_proxy.errors import ApiError, InvalidField, Overtaken
from llm_proxy.ids import made_at_ms, new_uuid
from llm_proxy.secret import Secret
from llm_proxy.vault import Vault

PREFIX = "sk-lp-"
ALPHABET = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
ID_CHARS, RANDOM_CHARS, CHECK_CHARS = 22, 32, 6
LENGTH = len(PREFIX) + ID_CHARS + RANDOM_CHARS + CHECK_CHARS
SHORTEST_SECRET, LONGEST_SECRET = 16, 512
# What secret scanners may look for.
PATTERN = rf"{PREFIX}[0-9A-Za-z]{{{ID_CHARS + RANDOM_CHARS + CHECK_CHARS}}}"

_PRESENTABLE = re.compile(rf"[!-~]{{{SHORTEST_SECRET},{LONGEST_SECRET}}}")
_OURS = re.compile(PATTERN)


def _base62(number: int, width: int) -> str:
    digits = []
    for _ in range(width):
        number, digit = divmod(number, 62)
        digits.append(ALPHABET[digit])
    return "".join(reversed(digits))


def _number(text: str) -> int:
    number = 0
    for char in text:
        number = number * 62 + ALPHABET.index(char)
    return number


def _checksum(text: str) -> str:
    return _base62(binascii.crc32(text.encode()), CHECK_CHARS)


def new_token() -> tuple[str, Secret]:
    """A fresh id with its token: the id in base62, more than 190 random bits, a checksum over both."""
    id = new_uuid()
    body = PREFIX + _base62(id.int, ID_CHARS) + _base62(secrets.randbelow(62**RANDOM_CHARS), RANDOM_CHARS)
    return str(id), Secret(body + _checksum(body))


def hint_of(token: str) -> str:
    """What may be shown of a token ever after."""
    prefix = PREFIX if token.startswith(PREFIX) else token[:3]
    return f"{prefix}…{token[-4:]}"


def well_formed(token: str) -> bool:
    """Whether a presented credential can be one of ours, judged without the database."""
    if not _PRESENTABLE.fullmatch(token):
        return False
    if not token.startswith(PREFIX):
        return True
    return bool(_OURS.fullmatch(token)) and secrets.compare_digest(_checksum(token[:-CHECK_CHARS]), token[-CHECK_CHARS:])


def inspect(token: str) -> dict[str, Any]:
    """What a token says of itself: its row's id, and when it was made in milliseconds.

    Raises:
        InvalidField: it is not one of ours, or mistyped.
    """
    if not token.startswith(PREFIX) or not well_formed(token):
        raise InvalidField(
            "token", f"this is no token of ours, or it was mistyped: {LENGTH} characters beginning with {PREFIX} are expected."
        )
    number = _number(token[len(PREFIX) : len(PREFIX) + ID_CHARS])
    if number >> 128:
        raise InvalidField("token", "its id part is out of range.")
    id = uuid.UUID(int=number)
    return {"id": str(id), "created_at": made_at_ms(id), "hint": hint_of(token)}


@dataclass(frozen=True)
class Token:
    """A token's row; times are milliseconds since the epoch, `hint` is all that is left of the secret."""

    id: str
    project_id: str
    kind: str
    name: str
    hint: str
    allowed_models: tuple[str, ...]
    metadata: Mapping[str, Any]
    rate_limit: int | None
    rate_limit_per_minute: int | None
    max_parallel: int | None
    max_requests: int | None
    request_count: int
    cache_hit_count: int
    expires_at: int | None
    is_active: bool
    created_at: int
    updated_at: int
    deactivated_at: int | None
    last_used_at: int | None
    project_name: str
    project_is_active: bool
    project_rate_limit: int | None
    project_rate_limit_per_minute: int | None
    project_max_parallel: int | None

    def status(self, now: int) -> str:
        """active, expired, revoked or exhausted, at the time `now` in milliseconds."""
        if not self.is_active:
            return "revoked"
        if self.expires_at is not None and self.expires_at <= now:
            return "expired"
        if self.max_requests is not None and self.request_count >= self.max_requests:
            return "exhausted"
        return "active"

    def overtaken(self) -> Overtaken | None:
        """Why a call must end that had begun with this token, if it must."""
        if not self.project_is_active:
            return Overtaken("project_inactive", "The project of this token is not active. Ask the operator of this proxy.")
        if not self.is_active:
            return Overtaken("token_inactive", "This token was revoked. Ask for a new one.")
        return None

    def check(self, now: int) -> None:
        """Raise unless the token may be used at the time `now` in milliseconds; the quota is not looked at.

        Raises:
            Overtaken: `project_inactive` or `token_inactive`.
            ApiError: `token_expired`.
        """
        if error := self.overtaken():
            raise error
        if self.expires_at is not None and self.expires_at <= now:
            raise ApiError("token_expired", "This token has expired. Ask for a new one.")


_SELECT = (
    "SELECT t.id, t.project_id, t.kind, t.name, t.hint, t.allowed_models, t.metadata, t.rate_limit, t.rate_limit_per_minute, "
    "t.max_parallel, t.max_requests, t.request_count, t.cache_hit_count, t.expires_at, t.is_active, t.created_at, t.updated_at, "
    "t.deactivated_at, t.last_used_at, p.name AS project_name, p.is_active AS project_is_active, "
    "p.rate_limit AS project_rate_limit, p.rate_limit_per_minute AS project_rate_limit_per_minute, "
    "p.max_parallel AS project_max_parallel"
)
_FROM = "FROM tokens t JOIN projects p ON p.id = t.project_id"
SELECT_WITH_GRACE = f"{_SELECT}, t.secret_hash, t.previous_expires_at {_FROM}"
_LIVE = "t.is_active = :on AND (t.expires_at IS NULL OR t.expires_at > :now)"
_STATUS = {
    "active": f"{_LIVE} AND (t.max_requests IS NULL OR t.request_count < t.max_requests)",
    "expired": "t.is_active = :on AND t.expires_at <= :now",
    "revoked": "t.is_active = :off",
    "exhausted": f"{_LIVE} AND t.max_requests IS NOT NULL AND t.request_count >= t.max_requests",
}
STATUSES = tuple(_STATUS)


def from_row(row: Row) -> Token:
    """The token of a row, which may have further columns."""
    values = {
        **row,
        "allowed_models": tuple(orjson.loads(row["allowed_models"])),
        "metadata": orjson.loads(row["metadata"]),
        "is_active": bool(row["is_active"]),
        "project_is_active": bool(row["project_is_active"]),
    }
    for name in ("secret_hash", "previous_expires_at"):
        values.pop(name, None)
    return Token(**values)


def _stored(columns: Mapping[str, Any]) -> dict[str, Any]:
    as_json = ("allowed_models", "metadata")
    return {name: orjson.dumps(value).decode() if name in as_json else value for name, value in columns.items()}


async def insert(tx: Connection, vault: Vault, columns: Mapping[str, Any], id: str, secret: Secret) -> Token:
    """Make a token; `columns` hold project_id, name and any of the limits, allowed_models, metadata, expires_at, kind, is_active.

    Raises:
        Conflict: the project does not exist, or id or secret is taken.
    """
    now = now_ms()
    values = _stored({"allowed_models": (), "metadata": {}, "kind": "token", "is_active": True, **columns}) | {
        "id": id,
        "secret_hash": vault.token_hashes(secret.reveal())[0],
        "hint": hint_of(secret.reveal()),
        "created_at": now,
        "updated_at": now,
    }
    await tx.execute(f"INSERT INTO tokens ({', '.join(values)}) VALUES (:{', :'.join(values)})", values)
    made = await get(tx, id)
    assert made is not None
    return made


async def find_by_hashes(connection: Connection, hashes: Sequence[str]) -> Row | None:
    """The row whose secret, or whose secret before the last rotation, has one of these hashes; the present one goes before."""
    names = [f"h{number}" for number in range(len(hashes))]
    among = f"IN ({', '.join(f':{name}' for name in names)})"
    return await connection.fetch_one(
        f"{SELECT_WITH_GRACE} WHERE t.secret_hash {among} OR t.previous_secret_hash {among} "
        f"ORDER BY CASE WHEN t.secret_hash {among} THEN 0 ELSE 1 END LIMIT 1",
        dict(zip(names, hashes, strict=True)),
    )


async def get(connection: Connection, id: str) -> Token | None:
    """One token by its id."""
    row = await connection.fetch_one(f"{_SELECT} {_FROM} WHERE t.id = :id", {"id": id})
    return from_row(row) if row else None


async def find(
    connection: Connection, page: Page, *, project_id: str | None = None, status: str | None = None, search: str = ""
) -> list[Token]:
    """A page of tokens, newest first, one more than asked when there are more; `search` is a part of the name, in any case."""
    # SQLite takes the index of kinds for as good as that of projects, and that of states for as good as the one with the names.
    kind = "t.project_id = :project_id AND t.kind <> 'master_key'" if project_id else "t.kind = 'token'"
    state = _STATUS.get(status or "", "1 = 1")
    conditions = [kind, contains("search", "t.name"), f"CASE WHEN {state} THEN 1 ELSE 0 END = 1"] if search else [kind, state]
    params = {"now": now_ms(), "on": True, "off": False, "project_id": project_id, "search": pattern(search)}
    ids = f"SELECT t.id FROM tokens t {page_clause(conditions, page, 't.id')}"
    rows = await connection.fetch_all(f"{_SELECT} {_FROM} WHERE t.id IN ({ids}) ORDER BY t.id DESC", params | page_params(page))
    return [from_row(row) for row in rows]


async def update(tx: Connection, id: str, columns: Mapping[str, Any]) -> Token | None:
    """Write the named columns, no others."""
    values = {**_stored(columns), "updated_at": now_ms()}
    if "is_active" in columns:
        values["deactivated_at"] = None if columns["is_active"] else values["updated_at"]
    if not await tx.execute(f"UPDATE tokens SET {assignments(values)} WHERE id = :id", {**values, "id": id}):
        return None
    return await get(tx, id)


async def revoke_all(tx: Connection, project_id: str) -> tuple[int, int]:
    """Revoke every token of a project; returns how many were revoked now, and how many it has."""
    revoked = await tx.execute(
        "UPDATE tokens SET is_active = :off, deactivated_at = :now, updated_at = :now "
        "WHERE project_id = :project_id AND is_active",
        {"project_id": project_id, "now": now_ms(), "off": False},
    )
    row = await tx.fetch_one("SELECT COUNT(*) AS n FROM tokens WHERE project_id = :project_id", {"project_id": project_id})
    return revoked, row["n"] if row else 0


def unknown_token() -> ApiError:
    """The answer to every credential that is not ours, whatever is wrong with it."""
    return ApiError(
        "invalid_token",
        "The token is missing, malformed or unknown. Send it as `Authorization: Bearer`, `x-api-key` or `api-key`.",
        headers={"WWW-Authenticate": "Bearer"},
    )
