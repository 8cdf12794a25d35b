"""Fields of requests: what may be written, how it is read."""

import json
import math
import re
from collections.abc import Callable, Collection, Mapping
from typing import Any

from llm_proxy.errors import ApiError, InvalidField
from llm_proxy.secret import Secret, looks_masked

Field = Callable[[str, object], Any]

MOST_MODELS = 200
MOST_ENTRIES = 50
MOST_CHARACTERS = 8192
LARGEST = 2**53 - 1

# Controls, half surrogates, and the marks that change lines or the direction of reading, behind which a name can hide another.
_UNSHOWABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069\ud800-\udfff]")
_IDENTIFIER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~-]{0,99}")


def text(longest: int) -> Field:
    """Text of 1 to `longest` characters, without control characters."""

    def read(name: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > longest or _UNSHOWABLE.search(value):
            raise InvalidField(name, f"give text of 1 to {longest} characters, without control characters.")
        return value.strip()

    return read


def identifier(name: str, value: object) -> str:
    """An id that the caller chose; it has to stand in a path as it is."""
    if not isinstance(value, str) or not _IDENTIFIER.fullmatch(value):
        raise InvalidField(name, "give 1 to 100 letters, digits and . _ ~ -, beginning with a letter or digit.")
    return value


def whole(least: int, most: int = LARGEST) -> Field:
    """A whole number from `least` to `most`."""

    def read(name: str, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
            raise InvalidField(name, f"give a whole number from {least} to {most}.")
        return value

    return read


def boolean(name: str, value: object) -> bool:
    """true or false."""
    if not isinstance(value, bool):
        raise InvalidField(name, "give true or false.")
    return value


def secret(name: str, value: object) -> Secret:
    """A provider's API key: printable ASCII, not the mask that was shown for one."""
    if not isinstance(value, str) or not 1 <= len(value.strip()) <= 4096:
        raise InvalidField(name, "give the key as text.")
    if looks_masked(value):
        raise ApiError(
            "masked_secret", f"{name}: this is the masked form of a key. Leave the field out to keep the key.", param=name
        )
    if not value.strip().isascii() or not value.strip().isprintable() or " " in value.strip():
        raise InvalidField(name, "a key has printable ASCII characters only, without spaces.")
    return Secret(value.strip())


def optional(field: Field) -> Field:
    """null, or what `field` reads."""

    def read(name: str, value: object) -> Any:
        return None if value is None else field(name, value)

    return read


# What a project and a token may both have: null for what stands behind it, 0 for none.
LIMITS: dict[str, Field] = {name: optional(whole(0)) for name in ("rate_limit", "rate_limit_per_minute", "max_parallel")}


def models(name: str, value: object) -> tuple[str, ...]:
    """A list of model names or globs."""
    if not isinstance(value, list) or len(value) > MOST_MODELS:
        raise InvalidField(name, f'give a list of at most {MOST_MODELS} model names, such as ["gpt-4o", "gpt-4*"]; [] for all.')
    one = text(200)
    return tuple(dict.fromkeys(one(f"{name}[{place}]", item) for place, item in enumerate(value)))


def mapping(name: str, value: object) -> dict[str, Any]:
    """An object of plain values that are stored and shown exactly as they came."""
    if not isinstance(value, dict) or len(value) > MOST_ENTRIES or not all(map(_is_plain, [*value, *value.values()])):
        raise InvalidField(
            name, f"give an object of at most {MOST_ENTRIES} texts without control characters, numbers, booleans or nulls."
        )
    if sum(len(key) + len(str(item)) for key, item in value.items()) > MOST_CHARACTERS:
        raise InvalidField(name, f"give at most {MOST_CHARACTERS} characters in all.")
    return value


def _is_plain(item: object) -> bool:
    match item:
        case None | bool():
            return True
        case str():
            return not _UNSHOWABLE.search(item)
        case int():
            return abs(item) <= LARGEST
        case float():
            return math.isfinite(item)
        case _:
            return False


def read(fields: Mapping[str, Field], given: Mapping[str, object], required: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a new resource.

    Raises:
        InvalidField: one is unknown, missing, or cannot be used.
    """
    for name in given:
        if name not in fields:
            raise InvalidField(name[:100], f"there is no such field. Known are {', '.join(fields) or 'none'}.")
    for name in required:
        if name not in given:
            raise InvalidField(name, "this field is required.")
    return {name: fields[name](name, value) for name, value in given.items()}


def read_changes(fields: Mapping[str, Field], given: Mapping[str, object], stored: Mapping[str, object]) -> dict[str, Any]:
    """The fields of a partial update that differ from what is stored.

    What was read may be sent back as a whole: a field that says what is stored already, a read-only one too, changes nothing.

    Raises:
        InvalidField: one is unknown, read-only, or cannot be used.
    """
    changed = {}
    for name, value in given.items():
        if name in stored and _as_json(value) == _as_json(stored[name]):
            continue
        if name in stored and name not in fields:
            raise InvalidField(name, "this field is read-only.")
        changed[name] = value
    return read(fields, changed)


def _as_json(value: object) -> str:
    """The value as JSON says it, where true and 1 differ."""
    return json.dumps(value, sort_keys=True)
