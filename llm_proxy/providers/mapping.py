"""The models that a provider serves, under the names it has for them."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import orjson

from llm_proxy.errors import InvalidField

MOST_ENTRIES = 1000
MOST_BYTES = 64 * 1024
LONGEST_NAME = 200
_DEEPEST = 5
_LARGEST = 2**53 - 1
# The predecessors wrote either.
_NAME_FIELDS = ("model", "mapped_model")


class _Glob(NamedTuple):
    """A name with one `*`; the provider's name may have one too, which takes what this one stands for."""

    before: str
    after: str
    target: str

    def name(self, model: str) -> str | None:
        """The provider's name for a model, None when the glob does not fit it."""
        if len(model) < len(self.before) + len(self.after):
            return None
        if not (model.startswith(self.before) and model.endswith(self.after)):
            return None
        matched = model[len(self.before) : len(model) - len(self.after)]
        # Of `acme/*` to `*` nothing would be left for `acme/`, which is then no name of this rule.
        return self.target.replace("*", matched, 1) or None


class ModelMapping:
    """A provider's `model_mapping`, compiled.

    Args:
        exact: the provider's names, by the names of clients.
        globs: the same by names with one `*`.

    Attributes:
        names: the exact names of clients, in the order they were given, for `/v1/models`.
        serves_all: whether there is no mapping, so that every model is served under its own name.
    """

    __slots__ = ("_exact", "_globs", "names", "serves_all")

    def __init__(self, exact: Mapping[str, str], globs: Mapping[str, str]) -> None:
        self._exact = dict(exact)
        self._globs = [_Glob(*_split(glob), target) for glob, target in sorted(globs.items(), key=_longest_first)]
        self.names = tuple(exact)
        self.serves_all = not exact and not globs

    def names_exactly(self, model: str) -> bool:
        """Whether a model is named as it is, and not by a glob."""
        return model in self._exact

    def serves(self, model: str) -> str | None:
        """The provider's name for a model, None when it does not serve it.

        An exact name goes before every glob, the longest glob before the others; of two as long, the one that fixes more of
        the beginning.
        """
        if self.serves_all:
            return model
        name = self._exact.get(model)
        if name is not None:
            return name
        return next((name for glob in self._globs if (name := glob.name(model)) is not None), None)


def _split(glob: str) -> tuple[str, str]:
    before, _, after = glob.partition("*")
    return before, after


def _longest_first(rule: tuple[str, str]) -> tuple[int, int, str]:
    glob, _ = rule
    return -len(glob), -glob.index("*"), glob


def without_suffix(model: str, suffix: str) -> str:
    """The model that a client means where PROVIDER_SUFFIX is set: `acme/gpt-4` is `gpt-4`.

    It goes before every other rule: what a token may use and what is looked up in a mapping is the name without it.
    """
    rest = model.removeprefix(f"{suffix}/") if suffix else model
    return rest or model


def model_mapping(name: str, value: object) -> dict[str, Any]:
    """The field `model_mapping` of a request, as it came, so that it is stored and shown as it was written.

    Raises:
        InvalidField: it makes no sense; the field that is named is that of the entry, such as `model_mapping.gpt-4*`.
    """
    compile_mapping(value, name)
    assert isinstance(value, dict)
    return value


def compile_mapping(value: object, field: str = "model_mapping") -> ModelMapping:
    """A mapping made ready to be asked, from a request or from a row that somebody may have planted.

    Raises:
        InvalidField: it makes no sense.
    """
    if not isinstance(value, dict) or len(value) > MOST_ENTRIES:
        raise InvalidField(
            field, f'give an object of at most {MOST_ENTRIES} model names, such as {{"gpt-4*": "acme-4*"}}; {{}} for all.'
        )
    exact: dict[str, str] = {}
    globs: dict[str, str] = {}
    for key, item in value.items():
        _check_name(field, key, "a model's name as a key")
        (globs if "*" in key else exact)[key] = _target(f"{field}.{key}", key, item)
    if len(orjson.dumps(value)) > MOST_BYTES:
        raise InvalidField(field, f"give at most {MOST_BYTES} bytes in all.")
    return ModelMapping(exact, globs)


def _target(field: str, key: str, item: object) -> str:
    """The provider's name in one entry."""
    if isinstance(item, dict):
        _check_kept(field, item)
        field, item = _named(field, item)
    target = _check_name(field, item, "the provider's name for the model")
    if "*" in target and "*" not in key:
        raise InvalidField(field, f"`*` takes what the glob matched, and the key {key} is no glob.")
    return target


def _named(field: str, entry: Mapping[str, object]) -> tuple[str, object]:
    """The field of an entry that says the provider's name, with its value."""
    present = [name for name in _NAME_FIELDS if name in entry]
    if len(present) != 1:
        raise InvalidField(field, "name the provider's model in `model` (or in `mapped_model`, not in both).")
    return f"{field}.{present[0]}", entry[present[0]]


def _check_name(field: str, name: object, what: str) -> str:
    # What cannot be printed could hide one name behind another.
    if not isinstance(name, str) or not 1 <= len(name) <= LONGEST_NAME or not name.isprintable() or name != name.strip():
        raise InvalidField(field, f"give {what}: text of 1 to {LONGEST_NAME} printable characters, without spaces around it.")
    if name.count("*") > 1:
        raise InvalidField(field, f"give {what} with one `*` at most.")
    return name


def _check_kept(field: str, entry: Mapping[object, object]) -> None:
    if not _is_json(entry, _DEEPEST):
        raise InvalidField(
            field, f"give texts without control characters, numbers, booleans, nulls, lists and objects, {_DEEPEST} deep at most."
        )


def _is_json(item: object, depth: int) -> bool:
    """Whether an item can be stored, and shown to people, as it is."""
    match item:
        case None | bool():
            return True
        case str():
            return item.isprintable()
        case int():
            return abs(item) <= _LARGEST
        case float():
            return math.isfinite(item)
        case list():
            return depth > 0 and all(_is_json(each, depth - 1) for each in item)
        case dict():
            return depth > 0 and all(
                isinstance(key, str) and key.isprintable() and _is_json(each, depth - 1) for key, each in item.items()
            )
        case _:
            return False
