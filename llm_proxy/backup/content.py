"""What the database of a backup holds."""

import pathlib
from collections import Counter
from dataclasses import asdict, dataclass
from sqlite3 import Connection
from typing import Any

import orjson

from llm_proxy.audit import Who, event_of
from llm_proxy.backup.manifest import KeyUse, Manifest
from llm_proxy.clock import now_ms
from llm_proxy.db.copying import opened, told
from llm_proxy.vault import key_id_of

# By this much of what is stored the id of its key is known.
_SEALED = "SELECT substr(api_key_ciphertext, 1, 16), COUNT(*) FROM providers WHERE api_key_ciphertext LIKE 'enc:%' GROUP BY 1"
# Of tokens that are over, nobody misses the key.
_HASHED = (
    "SELECT substr(secret_hash, 1, 14), COUNT(*) FROM tokens "
    "WHERE secret_hash LIKE 'hmac:%' AND is_active AND (expires_at IS NULL OR expires_at > :now) GROUP BY 1"
)
_PLAIN = "SELECT COUNT(*) FROM providers WHERE api_key_ciphertext NOT LIKE 'enc:%' AND api_key_ciphertext <> ''"


@dataclass(frozen=True)
class Content:
    """What a database holds.

    Attributes:
        migration: the newest that is applied.
        holds: how many rows, by the name of the thing.
        keys: by the id of an encryption key, what needs it.
        plain: how many keys of providers are stored without encryption.
    """

    migration: str
    holds: dict[str, int]
    keys: dict[str, KeyUse]
    plain: int


def content_of(path: pathlib.Path) -> Content:
    """Look into a database.

    Raises:
        StartError: it is none of this program's.
    """
    with told(path), opened(path) as connection:
        provider_keys, tokens = _by_key(connection, _SEALED), _by_key(connection, _HASHED)
        return Content(
            migration=_one(connection, "SELECT COALESCE(MAX(migration_id), '') FROM _yoyo_migration"),
            holds={name: _one(connection, f"SELECT COUNT(*) FROM {name}") for name in ("projects", "providers", "tokens")},
            keys={id: KeyUse(provider_keys[id], tokens[id]) for id in sorted({*provider_keys, *tokens})},
            plain=_one(connection, _PLAIN),
        )


def note_restore(path: pathlib.Path, manifest: Manifest) -> None:
    """Put into the audit log that the database was restored: what was revoked since the backup is good again from here on."""
    facts = {"created_at": manifest.created_at, "version": manifest.version}
    row = asdict(event_of(Who("restore"), "backup.restore", details=facts))
    row["details"] = orjson.dumps(row["details"]).decode()
    with told(path), opened(path) as connection:
        connection.execute(f"INSERT INTO audit_events ({', '.join(row)}) VALUES (:{', :'.join(row)})", row)


def _one(connection: Connection, sql: str) -> Any:
    [value] = connection.execute(sql).fetchone()
    return value


def _by_key(connection: Connection, sql: str) -> Counter[str]:
    found = Counter[str]()
    for stored, count in connection.execute(sql, {"now": now_ms()}):
        if id := key_id_of(stored):
            found[id] += count
    return found
