"""Fields of requests: what may be written, how it is read."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from llm_proxy.errors import ApiError, InvalidField
from llm_proxy.secret import Secret, looks_masked

Field = Callable[[str, object], Any]

MOST_MODELS = 200
LARGEST = 2**53 - 1


def text(longest: int) -> Field:
    """Text of 1 to `longest` characters, without control characters."""

    def read(name: str, value: object) -> str:
        if not isinstance(value, str) or not value.strip() or len(value) > longest or not value.isprintable():
            raise InvalidField(name, f"give text of 1 to {longest} characters.")
        return value.strip()

    return read


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


def models(name: str, value: object) -> tuple[str, ...]:
    """A list of model names or globs."""
    if not isinstance(value, list) or len(value) > MOST_MODELS:
        raise InvalidField(name, f'give a list of at most {MOST_MODELS} model names, such as ["gpt-4o", "gpt-4*"].')
    one = text(200)
    return tuple(dict.fromkeys(one(f"{name}[{place}]", item) for place, item in enumerate(value)))


def mapping(name: str, value: object) -> dict[str, Any]:
    """An object of at most 50 texts, numbers or booleans."""
    plain = isinstance(value, dict) and all(item is None or isinstance(item, str | int | float | bool) for item in value.values())
    if not isinstance(value, dict) or not plain or len(value) > 50 or sum(len(str(item)) for item in value.items()) > 8192:
        raise InvalidField(name, "give an object of at most 50 texts, numbers or booleans, 8 KiB in all.")
    return value


def read(fields: Mapping[str, Field], given: Mapping[str, object], required: Collection[str] = ()) -> dict[str, Any]:
    """The fields of a new resource.

    Raises:
        InvalidField: one is unknown, missing, or cannot be used.
    """
    for name in given:
        if name not in fields:
            raise InvalidField(name, f"there is no such field. Known are {', '.join(fields)}.")
    for name in required:
        if name not in given:
            raise InvalidField(name, "this field is required.")
    return {name: fields[name](name, value) for name, value in given.items()}


def read_changes(fields: Mapping[str, Field], given: Mapping[str, object], stored: Mapping[str, object]) -> dict[str, Any]:
    """The fields of a partial update; a read-only field may be sent along, unless it differs from what is stored.

    Raises:
        InvalidField: one is unknown, read-only, or cannot be used.
    """
    for name, value in given.items():
        if name not in fields and name in stored and stored[name] != value:
            raise InvalidField(name, "this field is read-only.")
    return read(fields, {name: value for name, value in given.items() if name in fields or name not in stored})
