"""What a backup says of itself."""

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from llm_proxy.errors import StartError

FORMAT = 1
DATABASE, SETTINGS, PROFILES, EVENTS = "database.db", "settings.env", "api_providers.yaml", "events/"
# Nothing else is ever taken out of an archive, whatever it says; a name that begins with a dot is among what is not.
_EVENT_FILE = re.compile(r"events/([A-Za-z0-9_-][A-Za-z0-9._-]*/)?[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class KeyUse:
    """What needs an encryption key: so many keys of providers, so many tokens that are good."""

    provider_keys: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class File:
    """One file of the archive."""

    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a backup says of itself; it holds no secret.

    Attributes:
        version: of the program that made it.
        migration: the newest that the database has.
        created_at: RFC 3339.
        database: `sqlite`, which is in the archive, or `postgres`, which is not.
        holds: how many of what is in it.
        encryption_keys: by the fingerprint of an encryption key, what cannot be used without it.
        files: by their names in the archive.
    """

    version: str
    migration: str
    created_at: str
    database: str
    holds: Mapping[str, int]
    encryption_keys: Mapping[str, KeyUse]
    files: Mapping[str, File]
    format: int = FORMAT

    def encode(self) -> bytes:
        """As it stands in the archive."""
        return orjson.dumps(dataclasses.asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def decode(data: bytes) -> Manifest:
    """The manifest of an archive.

    Raises:
        StartError: it is none, or one that only a newer program can read.
    """
    try:
        facts: dict[str, Any] = orjson.loads(data)
        if int(facts["format"]) > FORMAT:
            raise StartError(f"The backup was made by a newer LLM Proxy ({facts['version']}). Restore it with that version.")
        facts["encryption_keys"] = {str(id): KeyUse(**use) for id, use in facts["encryption_keys"].items()}
        facts["files"] = {str(name): File(int(file["bytes"]), str(file["sha256"])) for name, file in facts["files"].items()}
        manifest = Manifest(**facts)
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        raise StartError("The archive is no backup of LLM Proxy, or a damaged one: its manifest cannot be read.") from error
    if wrong := [name for name in manifest.files if not _is_ours(name)]:
        raise StartError(f"The archive is no backup of LLM Proxy: it holds a file {wrong[0]!r}.")
    return manifest


def _is_ours(name: str) -> bool:
    return name in (DATABASE, SETTINGS, PROFILES) or bool(_EVENT_FILE.fullmatch(name))
