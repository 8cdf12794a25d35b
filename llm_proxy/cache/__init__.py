"""A shared HTTP cache (RFC 9111): what it holds, what it is asked, how it decides."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from llm_proxy.cache import fields
from llm_proxy.grammar import RawHeaders

# Why a request goes on to the provider, in the words of RFC 9211 section 2.2.
Why = Literal["bypass", "method", "uri-miss", "vary-miss", "request", "stale", "partial"]
# Names and values of conditional request headers.
Conditions = tuple[tuple[bytes, bytes], ...]


@dataclass(frozen=True, slots=True)
class Lookup:
    """What a request asks of the cache.

    Attributes:
        method: GET, HEAD, or POST when its client opted in; anything else has a `bypass`.
        headers: all of the request's, of one that the cache has a part in.
        bypass: why the cache neither answers this request nor stores its response; None when it may do both.
        max_age: the oldest response that the client takes, in seconds; None for any age.
        min_fresh: for how many seconds more the response must be fresh.
        max_stale: for how many seconds the response may have been stale.
        stale_if_error: the same, when the provider fails (RFC 5861 section 4).
    """

    method: str
    headers: RawHeaders
    bypass: Why | None = None
    no_cache: bool = False
    only_if_cached: bool = False
    max_age: int | None = None
    min_fresh: int = 0
    max_stale: int = 0
    stale_if_error: int = 0
    if_none_match: str | None = None
    if_modified_since: str | None = None
    range: str | None = None
    if_range: str | None = None


class Part(NamedTuple):
    """Which part of a representation a 206 response holds.

    Attributes:
        asked: the Range that it answers.
        first: position of its first byte.
        last: position of its last byte, as the provider said it.
        complete: the length of the whole.
    """

    asked: str
    first: int
    last: int
    complete: int


@dataclass(frozen=True, slots=True)
class Terms:
    """On what terms a response may be stored, then used again; times are in seconds.

    Attributes:
        lifetime: how old it may be to be fresh.
        stale_while_revalidate: for how long it answers after that, while it is fetched anew (RFC 5861 section 3).
        stale_if_error: for how long it answers after that, when the provider fails.
        no_cache: every use has to be validated.
        must_revalidate: never used stale, whatever a client would take.
        vary: the request's fields that selected it, sorted.
        selecting: what the request said in them, in that order, normalised.
        variant: names `vary`, `selecting` and `part` among the responses under one key.
        part: None when it is whole.
    """

    lifetime: float
    stale_while_revalidate: int
    stale_if_error: int
    no_cache: bool
    must_revalidate: bool
    vary: tuple[str, ...]
    selecting: tuple[str | None, ...]
    variant: str
    part: Part | None = None


@dataclass(frozen=True, slots=True)
class Entry:
    """A stored response.

    Attributes:
        project: whose it is, empty in a partition that all projects share; by it, `method` and `path` it is purged.
        method: GET or POST.
        headers: those of the provider that may be stored, without Age and Content-Length.
        response_time: when its head, or that of the last validation, came: wall clock, seconds since the epoch.
        initial_age: how old it was then (RFC 9111 section 4.2.3).
    """

    project: str
    method: str
    path: str
    status: int
    reason: str
    headers: tuple[tuple[bytes, bytes], ...]
    body: bytes
    response_time: float
    initial_age: float
    terms: Terms

    def age(self, now: float) -> float:
        """Seconds since the provider made or validated it; a clock that was set back makes it older, never younger."""
        return self.initial_age + abs(now - self.response_time)

    def ttl(self, now: float) -> float:
        """For how many seconds more it is fresh; negative when it is stale."""
        return self.terms.lifetime - self.age(now)

    @property
    def conditions(self) -> Conditions:
        """What asks the provider whether it still holds (RFC 9111 section 4.3.1); a POST is never asked again so."""
        return conditions_of(self.headers) if self.method == "GET" else ()

    def is_selected_by(self, lookup: Lookup) -> bool:
        """Whether a request selects this variant (RFC 9111 section 4.1).

        A client that prefers to all others the language that an answer is in would get that answer.
        """
        terms = self.terms
        if not terms.vary:
            return True
        asked = fields.selecting_values(terms.vary, lookup.headers)
        differing = [name for name, a, b in zip(terms.vary, asked, terms.selecting, strict=True) if a != b]
        if differing != ["accept-language"]:
            return not differing
        language = fields.combined(self.headers, b"content-language")
        return language is not None and fields.preferred(lookup.headers, b"accept-language") == language.lower()

    def positions(self, lookup: Lookup) -> tuple[int, int] | None:
        """Where in the body of a partial response that is which a request asks for: start and end; None when it is not in it."""
        part = self.terms.part
        if part is None or lookup.range is None or lookup.if_range is not None:
            return None
        if lookup.range == part.asked:
            return 0, len(self.body)
        ranges = fields.byte_ranges(lookup.range, part.complete)
        if not ranges or len(ranges) > 1:
            return None
        [(first, last)] = ranges
        start, end = first - part.first, min(last - part.first + 1, len(self.body))
        return (start, end) if part.first <= first and last <= part.last and start < end else None

    def ranges(self, lookup: Lookup, now: float) -> list[tuple[int, int]] | None:
        """First and last positions that a request asks of a whole response; None for all of it (RFC 9110 section 14.2)."""
        if lookup.range is None or self.status != 200 or not self._is_of(lookup.if_range, now):
            return None
        return fields.byte_ranges(lookup.range, len(self.body))

    def _is_of(self, if_range: str | None, now: float) -> bool:
        """RFC 9110 section 13.1.5: only a strong validator will do; a date is one when it is a second or more before Date."""
        if if_range is None:
            return True
        if if_range.startswith('"'):
            return if_range == fields.combined(self.headers, b"etag")
        asked, modified = fields.http_date(if_range, now), fields.date_of(self.headers, b"last-modified", now)
        made = fields.date_of(self.headers, b"date", now)
        return asked is not None and asked == modified and made is not None and made - modified >= 1

    def is_held_by(self, lookup: Lookup, now: float) -> bool:
        """Whether the client has it already (RFC 9110 section 13.2.2, RFC 9111 section 4.3.2)."""
        if lookup.method == "POST" or not 200 <= self.status < 300:
            return False
        if lookup.if_none_match is not None:
            tags = {fields.weakly(tag) for tag in fields.members(lookup.if_none_match)}
            etag = fields.combined(self.headers, b"etag")
            return "*" in tags or (etag is not None and fields.weakly(etag) in tags)
        since = lookup.if_modified_since and fields.http_date(lookup.if_modified_since, now)
        if not since:
            return False
        dates = (fields.date_of(self.headers, name, now) for name in (b"last-modified", b"date"))
        return next((date for date in dates if date is not None), self.response_time) <= since


def conditions_of(headers: RawHeaders) -> Conditions:
    """What asks for a response only if it is another than the one with these headers."""
    found = {name.lower(): value for name, value in headers}
    pairs = ((b"If-None-Match", found.get(b"etag")), (b"If-Modified-Since", found.get(b"last-modified")))
    return tuple((name, value) for name, value in pairs if value)


@dataclass(frozen=True, slots=True)
class Hit:
    """The entry answers."""

    entry: Entry


@dataclass(frozen=True, slots=True)
class StaleWhileRevalidate:
    """The entry answers now; it is to be fetched anew in the background, with these conditions."""

    entry: Entry
    conditions: Conditions


@dataclass(frozen=True, slots=True)
class Revalidate:
    """The provider is asked, with these conditions or, when there are none, for all of it; the entry waits for what it says."""

    entry: Entry
    conditions: Conditions
    why: Why


@dataclass(frozen=True, slots=True)
class Miss:
    """Nothing stored answers; the request goes on as it is."""

    why: Why


@dataclass(frozen=True, slots=True)
class OnlyIfCachedMiss:
    """Nothing stored answers, and the client wants nothing else: 504."""


Decision = Hit | StaleWhileRevalidate | Revalidate | Miss | OnlyIfCachedMiss


class Served(NamedTuple):
    """An answer made from an entry.

    Attributes:
        reason: empty for the usual one.
        headers: without Content-Length.
        body: for HEAD too, whose answer has its length; None when there is neither body nor length (304).
    """

    status: int
    reason: str
    headers: list[tuple[bytes, bytes]]
    body: bytes | None


class Freshened(NamedTuple):
    """An entry after the provider confirmed it.

    Attributes:
        entry: what answers the request that led to this.
        keep: whether it may go on being stored; if not, it is to be deleted.
    """

    entry: Entry
    keep: bool


class Place(NamedTuple):
    """By what a call's entries are purged; the same for all calls with one key.

    Attributes:
        project: as in `Entry`, empty in a partition that all projects share.
        method: HEAD counts as GET.
    """

    project: str
    method: str
    path: str


class Selection(NamedTuple):
    """What is to be purged: what is under a key, or all for which what else is said holds.

    Attributes:
        method: HEAD means GET.
        prefix: of the path, any string.
    """

    key: str | None = None
    project: str | None = None
    method: str | None = None
    path: str | None = None
    prefix: str | None = None

    def covers(self, place: Place) -> bool:
        """Whether what is stored there is to be purged, where no key is said."""
        return (
            (self.project is None or place.project == self.project)
            and (self.path is None or place.path == self.path)
            and (self.prefix is None or place.path.startswith(self.prefix))
            and (self.method is None or _stored_as(place.method) == _stored_as(self.method))
        )


def _stored_as(method: str) -> str:
    return "GET" if method == "HEAD" else method


def selection(*, everything: bool = False, **said: str | None) -> Selection:
    """What a purge with these words is about, those of `Selection`.

    Raises:
        ValueError: nothing is said, or a method alone.
    """
    if not everything and all(value is None for name, value in said.items() if name != "method"):
        raise ValueError("Say what to purge: a key, a project, a path, a prefix or everything.")
    return Selection(**said)


class Found(NamedTuple):
    """What is stored under a key.

    Attributes:
        entries: its variants.
        generation: whoever stores an answer to this request later shows it, so that nothing is stored that was purged
            meanwhile. It means something to its store only, and is to be dropped when the call ends. None: nothing can be stored.
    """

    entries: tuple[Entry, ...]
    generation: object


class Held(NamedTuple):
    """How much is stored."""

    entries: int
    bytes: int


class Count(NamedTuple):
    """How many entries there are.

    Attributes:
        complete: False where not all were looked at, so that there may be more.
    """

    entries: int
    complete: bool = True


class Stats(NamedTuple):
    """How much is stored, in all, then by project."""

    entries: int
    bytes: int
    projects: Mapping[str, Held]
