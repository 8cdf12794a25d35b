"""Provider profiles: what is true of each type of provider."""

import dataclasses
import functools
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, TypeVar

from llm_proxy.errors import InvalidField

T = TypeVar("T")
TOKEN = re.compile(r"[!#$%&'*+.^`|~0-9A-Za-z-]+")  # RFC 9110, without `_`, which no header that we let in may have


@functools.lru_cache(maxsize=1024)
def _compiled(patterns: tuple[str, ...]) -> re.Pattern[str]:
    # What is kept is the patterns, which are the operator's and few, and not the paths, which are the clients'.
    return re.compile("|".join(map(_expression, patterns)))


def _expression(pattern: str) -> str:
    words = {"*": "/[^/]+", "**": "(?:/[^/]+)*"}
    return "".join(words.get(segment) or "/" + re.escape(segment) for segment in pattern.split("/")[1:])


def matches(pattern: str, path: str) -> bool:
    """Whether a pattern admits a path, by whole segments.

    `*` is one segment, `**` the rest, and `/v1/files/**` admits `/v1/files` as well. Neither stands for an empty segment.
    """
    return matches_any((pattern,), path)


def matches_any(patterns: tuple[str, ...], path: str) -> bool:
    """Whether one of the patterns admits a path, in one match, as this is on every call's way."""
    return bool(patterns) and _compiled(patterns).fullmatch(path) is not None


@dataclass(frozen=True)
class Auth:
    """How a provider wants its key.

    Attributes:
        header: the header that carries the key.
        scheme: the word in front of the key, empty for none.
    """

    header: str
    scheme: str = ""

    def value(self, key: str) -> str:
        """The header's value with this key."""
        return f"{self.scheme} {key}" if self.scheme else key


@dataclass(frozen=True)
class Timeouts:
    """How long a provider may take, in seconds: to connect, to begin its answer, between two pieces, for the whole call."""

    connect: float = 5.0
    first_byte: float = 600.0
    idle: float = 120.0
    total: float = 3600.0


class Place(NamedTuple):
    """What a profile says of one path.

    Attributes:
        endpoint: the pattern that admits it, None when none does.
    """

    endpoint: str | None
    auth: Auth
    query_defaults: Mapping[str, str]
    caches_post: bool


# Paths are the clients', so few are remembered, and no long ones.
_MOST_PLACES, _LONGEST_KNOWN = 1000, 100


def _first(table: Mapping[str, T], path: str, otherwise: T) -> T:
    for pattern, value in table.items():
        if matches_any((pattern,), path):
            return value
    return otherwise


@dataclass(frozen=True, kw_only=True)
class Profile:
    """What is true of one type of provider.

    Attributes:
        base_url: where calls go, without a slash at its end; empty when each provider must bring its own.
        auth_for: other auth, by path pattern; the first that fits counts.
        cacheable_post: patterns of endpoints where a client may opt in to the caching of POST.
        param_whitelist: globs of the values that a parameter may have.
        allowed_origins: origins of browsers, exact; empty for no restriction.
        required_headers: in lower case.
        default_headers: headers added when absent, in lower case.
        default_query: parameters added when absent, by path pattern; the first that fits counts.
    """

    name: str
    base_url: str = ""
    auth: Auth
    auth_for: Mapping[str, Auth] = dataclasses.field(default_factory=dict)
    allowed_endpoints: tuple[str, ...]
    allowed_methods: tuple[str, ...]
    cacheable_post: tuple[str, ...] = ()
    param_whitelist: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    allowed_origins: tuple[str, ...] = ()
    required_headers: tuple[str, ...] = ()
    timeouts: Timeouts = Timeouts()
    max_idle: int = 1000
    max_idle_per_host: int = 500
    default_headers: Mapping[str, str] = dataclasses.field(default_factory=dict)
    default_query: Mapping[str, Mapping[str, str]] = dataclasses.field(default_factory=dict)

    @functools.cached_property
    def _places(self) -> dict[str, Place]:
        return {}

    def admits(self, path: str) -> bool:
        """Whether this path may be called."""
        return self.at(path).endpoint is not None

    def at(self, path: str) -> Place:
        """What is true of a path, worked out once for those that are called again and again."""
        if place := self._places.get(path):
            return place
        endpoint = next((pattern for pattern in self.allowed_endpoints if matches(pattern, path)), None)
        auth, query = _first(self.auth_for, path, self.auth), _first(self.default_query, path, {})
        place = Place(endpoint, auth, query, matches_any(self.cacheable_post, path))
        if len(path) <= _LONGEST_KNOWN:
            if len(self._places) >= _MOST_PLACES:
                self._places.clear()
            self._places[path] = place
        return place


@dataclass(frozen=True)
class Profiles:
    """All profiles of one file, as one value that is replaced whole."""

    default_api: str
    apis: Mapping[str, Profile]

    def get(self, name: str) -> Profile:
        """The profile of this name.

        Raises:
            InvalidField: there is none.
        """
        try:
            return self.apis[name]
        except KeyError:
            raise InvalidField("provider_type", f"there is no such profile. Known are {', '.join(self.apis)}.") from None
