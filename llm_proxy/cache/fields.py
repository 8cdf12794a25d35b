"""Header fields as a cache reads, keeps or writes them."""

import datetime
import functools
import math
import re
from collections.abc import Container, Iterable, Mapping
from email.utils import formatdate

from llm_proxy.grammar import RawHeaders

# RFC 9111 section 1.2.2: what is too large to hold counts as this.
LARGEST_SECONDS = 2**31
MOST_RANGES = 16
CACHE_NAME = "llm-proxy"
LONGEST_REMEMBERED = 100

Directives = Mapping[str, tuple[str | None, ...]]

_TOKEN = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# A member of a comma-separated list; commas within a quoted string are its own (RFC 9110 section 5.6.1).
_MEMBER = re.compile(r'(?:"(?:[^"\\]|\\.)*+(?:"|\\?$)|[^",]++)+', re.DOTALL)
_QUOTED_PAIR = re.compile(r"\\(.)", re.DOTALL)
_DIGITS = re.compile(r"[0-9]+")


def values(headers: RawHeaders, name: bytes) -> list[str]:
    """The values of all lines of a field, its name in lower case, without the space around them."""
    return [value.decode("latin-1").strip(" \t") for field, value in headers if field.lower() == name]


def combined(headers: RawHeaders, name: bytes) -> str | None:
    """The value of a list field, its lines joined; None when there is no line."""
    lines = values(headers, name)
    return ", ".join(lines) if lines else None


def members(text: str) -> list[str]:
    """The members of a comma-separated list, empty ones left out."""
    return [member for part in _MEMBER.findall(text) if (member := part.strip(" \t"))]


def _unquoted(text: str) -> str:
    if len(text) >= 2 and text[0] == text[-1] == '"':
        return _QUOTED_PAIR.sub(r"\1", text[1:-1])
    return text


def directives(text: str | None) -> Directives:
    """The directives of Cache-Control by their lower-case names, each with all its arguments, None for none.

    What follows a name without being an argument, as in `max-age =1`, is kept as an argument that means nothing.
    """
    return (_remembered if len(text) <= LONGEST_REMEMBERED else _directives)(text) if text else {}


def _directives(text: str) -> Directives:
    found: dict[str, tuple[str | None, ...]] = {}
    for member in members(text):
        if token := _TOKEN.match(member):
            rest = member[token.end() :]
            argument = _unquoted(rest.removeprefix("=")) if rest else None
            lowered = token[0].lower()
            found[lowered] = (*found.get(lowered, ()), argument)
    return found


# The same few short values come with most messages.
_remembered = functools.lru_cache(maxsize=256)(_directives)


def seconds(found: Directives, name: str) -> int | None:
    """The argument of a directive, None when the directive is absent.

    One that is not a number counts as 0, and of several the least, so that in doubt a response is stale (RFC 9111 section 4.2.1).
    """
    if name not in found:
        return None
    return min(_delta_seconds(argument or "") or 0 for argument in found[name])


def _delta_seconds(text: str) -> int | None:
    if not _DIGITS.fullmatch(text):
        return None
    digits = text.lstrip("0")
    return min(int(digits or "0"), LARGEST_SECONDS) if len(digits) <= 10 else LARGEST_SECONDS


def field_names(found: Directives, name: str) -> frozenset[bytes] | None:
    """The lower-case fields that a directive such as `no-cache="a, b"` is about; None when it is about the whole response."""
    names: set[bytes] = set()
    for argument in found.get(name, ()):
        listed = members(argument or "")
        if not listed:
            return None
        names.update(field.lower().encode("latin-1") for field in listed)
    return frozenset(names)


def age(headers: RawHeaders) -> int:
    """The value of Age, 0 when it is absent.

    RFC 9111 section 5.1 would ignore an invalid one. But somebody did say that the response is aged, so it counts as very old.
    """
    lines = values(headers, b"age")
    if not lines:
        return 0
    value = _delta_seconds(lines[0]) if len(lines) == 1 else None
    return LARGEST_SECONDS if value is None else value


def initial_age(headers: RawHeaders, request_time: float, response_time: float) -> float:
    """How old a response was when it came (RFC 9111 section 4.2.3)."""
    date = date_of(headers, b"date", response_time)
    apparent = 0.0 if date is None else max(0.0, response_time - date)
    return max(apparent, age(headers) + max(0.0, response_time - request_time))


# Structured fields (RFC 8941), as far as they are needed to know whether a dictionary is valid.
_KEY = r"[a-z*][a-z0-9_\-.*]*"
_STRING = r'"(?:[ !#-\[\]-~]|\\["\\])*"'
_SF_TOKEN = r"[A-Za-z*][!#$%&'*+\-.^_`|~:/0-9A-Za-z]*"
_BARE = rf"(?:-?[0-9]{{1,12}}\.[0-9]{{1,3}}|-?[0-9]{{1,15}}|{_STRING}|{_SF_TOKEN}|:[A-Za-z0-9+/=]*:|\?[01])"
_PARAMETERS = rf"(?:; *{_KEY}(?:={_BARE})?)*"
_INNER_LIST = rf"\( *(?:{_BARE}{_PARAMETERS}(?: +{_BARE}{_PARAMETERS})* *)?\)"
_ENTRY = re.compile(rf"({_KEY})(?:=({_BARE}|{_INNER_LIST}))?{_PARAMETERS}(?:[ \t]*(,)[ \t]*|$)")


def targeted(headers: RawHeaders, name: bytes) -> Directives | None:
    """The directives of a targeted field such as CDN-Cache-Control; None when it is absent, empty or no valid dictionary.

    RFC 9213 section 2.1: then Cache-Control and Expires rule as if it were not there.
    """
    text = (combined(headers, name) or "").strip(" ")
    found: dict[str, tuple[str | None, ...]] = {}
    position, more = 0, bool(text)
    while more:
        entry = _ENTRY.match(text, position)
        if entry is None:
            return None
        key, value, comma = entry.groups()
        found.pop(key, None)
        if value != "?0":
            found[key] = (None if value in (None, "?1") else _unquoted(value),)
        position, more = entry.end(), comma is not None
    return found if text else None


_MONTHS = "jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec"
_MONTH = f"(?P<month>{_MONTHS})"
_TIME = r"(?P<hour>\d\d):(?P<minute>\d\d):(?P<second>\d\d)"
_DAY = "(?:mon|tue|wed|thu|fri|sat|sun)"
_LONG_DAY = "(?:monday|tuesday|wednesday|thursday|friday|saturday|sunday)"
# RFC 9110 section 5.6.7; case is ignored and no zone but GMT is read, as RFC 9111 section 4.2 asks of caches.
_DATES = [
    re.compile(form, re.IGNORECASE | re.ASCII)
    for form in (
        rf"{_DAY}, (?P<day>\d\d) {_MONTH} (?P<year>\d{{4}}) {_TIME} GMT",
        rf"{_LONG_DAY}, (?P<day>\d\d)-{_MONTH}-(?P<year>\d\d) {_TIME} GMT",
        rf"{_DAY} {_MONTH} (?P<day>\d\d| \d) {_TIME} (?P<year>\d{{4}})",
    )
]


def http_date(text: str, now: float) -> float | None:
    """Seconds since the epoch, None for what is no HTTP date.

    Args:
        now: two-digit years that seem more than 50 years ahead of it are of the century before.
    """
    for form in _DATES:
        if date := form.fullmatch(text):
            return _moment(date.groupdict(), now)
    return None


def _moment(parts: Mapping[str, str], now: float) -> float | None:
    year, second = int(parts["year"]), int(parts["second"])
    if len(parts["year"]) == 2:
        present = datetime.datetime.fromtimestamp(now, datetime.UTC).year
        year += present - present % 100
        year -= 100 if year > present + 50 else 0
    month = _MONTHS.index(parts["month"].lower()) // 4 + 1
    # A leap second is the last one that a datetime has, and one more.
    clock = (int(parts["hour"]), int(parts["minute"]), min(second, 59))
    try:
        moment = datetime.datetime(year, month, int(parts["day"]), *clock, tzinfo=datetime.UTC)
    except ValueError:
        return None
    return moment.timestamp() + (second - clock[2]) if second <= 60 else None


def date_of(headers: RawHeaders, name: bytes, now: float) -> float | None:
    """The date in the first line of a field; None when it is absent or invalid."""
    lines = values(headers, name)
    return http_date(lines[0], now) if lines else None


def expires(headers: RawHeaders, now: float) -> float | None:
    """The earliest date of Expires; None when it is absent, 0 when it is invalid, which means the past (RFC 9111 section 5.3)."""
    return min((http_date(line, now) or 0.0 for line in values(headers, b"expires")), default=None)


def weakly(tag: str) -> str:
    """An entity tag as weak comparison sees it (RFC 9110 section 8.8.3.2)."""
    return tag.removeprefix("W/")


def vary_names(headers: RawHeaders) -> tuple[str, ...] | None:
    """The lower-case names that Vary lists, sorted, each once; None when it lists `*`."""
    names = {name.lower() for name in members(combined(headers, b"vary") or "")}
    return None if "*" in names else tuple(sorted(names))


_WHOLE_WEIGHT = re.compile(r";q=1(?:\.0{0,3})?$")
_NEGOTIATED = frozenset({"accept-encoding", "accept-language"})
CREDENTIALS = frozenset({"authorization", "x-api-key", "api-key"})
# The provider never sees what clients send in these, so its answer cannot depend on that; and secrets are no keys.
_UNSEEN = CREDENTIALS | {"cookie", "proxy-authorization"}


def selecting_values(names: Iterable[str], headers: RawHeaders) -> tuple[str | None, ...]:
    """What a request says in the fields that a response varies on, alike for requests that mean the same; None for nothing."""
    return tuple(None if name in _UNSEEN else _normal(name, combined(headers, name.encode("latin-1"))) for name in names)


@functools.lru_cache(maxsize=256)
def _normal(name: str, text: str | None) -> str | None:
    """RFC 9111 section 4.1: white space around commas, and in lists of preferences case and order, mean nothing."""
    if text is None:
        return None
    if name not in _NEGOTIATED:
        return ",".join(members(text))
    return ",".join(sorted(_preferences(text)))


def _preferences(text: str) -> set[str]:
    return {_WHOLE_WEIGHT.sub("", re.sub(r"[ \t]", "", member).lower()) for member in members(text)}


def preferred(headers: RawHeaders, name: bytes) -> str | None:
    """What a request prefers to everything else in a field such as Accept-Language; None when that is not one thing."""
    weighed: list[tuple[float, str]] = []
    for preference in _preferences(combined(headers, name) or ""):
        value, _, weight = preference.partition(";q=")
        if not re.fullmatch(r"(?:0(?:\.\d{0,3})?)?", weight, re.ASCII):
            return None
        weighed.append((float(weight or 1), value))
    weighed.sort(reverse=True)
    if not weighed or weighed[0][0] == 0 or (len(weighed) > 1 and weighed[0][0] == weighed[1][0]):
        return None
    return weighed[0][1]


def variant(names: Iterable[str], selecting: Iterable[str | None], asked: str | None = None) -> str:
    """What tells a response from others under its key: what its request said in the fields of Vary, for a part its Range too."""
    lines = [name if value is None else f"{name}: {value}" for name, value in zip(names, selecting, strict=True)]
    # No field has a name with a space, so that a part is never mistaken for one.
    return "\n".join([*lines, f"part {asked}"] if asked else lines)


_RANGES = re.compile(r"bytes=(.*)", re.IGNORECASE)
_RANGE = re.compile(r"(\d{0,18})-(\d{0,18})", re.ASCII)


def byte_ranges(text: str, length: int) -> list[tuple[int, int]] | None:
    """First and last positions that Range asks of `length` bytes, empty when none can be had; None when it is to be ignored.

    Ignored is what is no valid set of byte ranges, has more than `MOST_RANGES`, or asks for more than the whole
    (RFC 9110 sections 14.2, 17.15).
    """
    if not (asked := _RANGES.fullmatch(text)) or not length:
        return None
    specs = [spec.strip(" \t") for spec in asked[1].split(",") if spec.strip(" \t")]
    if not 0 < len(specs) <= MOST_RANGES:
        return None
    ranges = []
    for spec in specs:
        if not (bounds := _RANGE.fullmatch(spec)) or spec == "-":
            return None
        if bounds[1] and bounds[2] and int(bounds[1]) > int(bounds[2]):
            return None
        ranges.append(_bounds(bounds[1], bounds[2], length))
    wanted = [(first, last) for first, last in ranges if first <= last]
    return wanted if sum(last - first + 1 for first, last in wanted) <= length else None


def _bounds(first: str, last: str, length: int) -> tuple[int, int]:
    """The positions of one range, the first beyond the last when it cannot be had."""
    if not first:
        return max(0, length - int(last)), length - 1
    return int(first), min(int(last), length - 1) if last else length - 1


_CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})", re.IGNORECASE | re.ASCII)


def content_range(headers: RawHeaders) -> tuple[int, int, int] | None:
    """First and last position and complete length that a partial response states; None when it does not state all three."""
    lines = values(headers, b"content-range")
    stated = _CONTENT_RANGE.fullmatch(lines[0]) if len(lines) == 1 else None
    if stated is None:
        return None
    first, last, complete = (int(number) for number in stated.groups())
    return (first, last, complete) if first <= last < complete else None


def policy(headers: RawHeaders, now: float) -> tuple[Directives, float | None]:
    """The directives that rule a response, with the lifetime that they or Expires state, None when they state none.

    A targeted field silences Cache-Control and Expires (RFC 9213 section 2.2).
    """
    own = targeted(headers, b"cdn-cache-control")
    found = directives(combined(headers, b"cache-control")) if own is None else own
    for name in ("s-maxage", "max-age"):
        if (lifetime := seconds(found, name)) is not None:
            return found, lifetime
    end = expires(headers, now) if own is None else None
    if end is None:
        return found, None
    date = date_of(headers, b"date", now)
    return found, max(0.0, end - (now if date is None else date))


# What belongs to one connection (RFC 9111 section 3.1), what clients never get, what is said anew with every answer.
_NOT_STORED = frozenset(
    b"connection keep-alive proxy-connection te trailer transfer-encoding upgrade set-cookie set-cookie2 alt-svc age "
    b"content-length x-request-id request-id cf-ray server-timing openai-processing-ms".split()
)
_PREFIXES_NOT_STORED = (b"proxy-", b"x-ratelimit-", b"anthropic-ratelimit-")
# RFC 9111 section 3.2: these describe the stored bytes, which a 304 does not bring; its ETag is the one that was asked about.
_NOT_UPDATED = frozenset(b"content-encoding content-range content-md5 content-digest repr-digest digest etag".split())


def stored(headers: RawHeaders, now: float) -> tuple[tuple[bytes, bytes], ...]:
    """What is stored of a response's headers (RFC 9111 section 3.1), with a Date when it lacks one (RFC 9110 section 6.6.1)."""
    named = {name.lower().encode("latin-1") for name in members(combined(headers, b"connection") or "")}
    listed = field_names(policy(headers, now)[0], "no-cache") or frozenset()
    kept = [header for header in without(headers, _NOT_STORED | named | listed) if not _is_prefixed(header[0])]
    dated = any(name.lower() == b"date" for name, _ in kept)
    return tuple(kept if dated else [*kept, (b"Date", formatdate(now, usegmt=True).encode())])


def _is_prefixed(name: bytes) -> bool:
    return name.lower().startswith(_PREFIXES_NOT_STORED)


def updated(old: RawHeaders, came: RawHeaders, now: float) -> tuple[tuple[bytes, bytes], ...]:
    """The headers of a stored response after a 304 brought others."""
    new = without(stored(came, now), _NOT_UPDATED)
    return (*without(old, {name.lower() for name, _ in new}), *new)


def without(headers: RawHeaders, names: Container[bytes]) -> list[tuple[bytes, bytes]]:
    """Headers less those with these lower-case names."""
    return [header for header in headers if header[0].lower() not in names]


def cache_status(
    key: str | None,
    *,
    fwd: str | None = None,
    fwd_status: int | None = None,
    ttl: float | None = None,
    stored: bool = False,
    collapsed: bool = False,
) -> bytes:
    """Our member of Cache-Status (RFC 9211), to be sent in a line after those that are there.

    Args:
        key: by which the answer can be purged; None where the cache had no part in it.
        fwd: why the request went on to the provider, a `Why`; None for a hit.
        fwd_status: what the provider answered, where that differs from the answer's own status.
        ttl: for how long the answer is still fresh.
        collapsed: the request waited for another one's answer.
    """
    said = [CACHE_NAME, f"fwd={fwd}" if fwd else "hit"]
    said += [f"fwd-status={fwd_status}"] if fwd_status else []
    said += [f"ttl={math.floor(ttl)}"] if ttl is not None else []
    said += ["stored"] if stored else []
    said += ["collapsed"] if collapsed else []
    said += [f'key="{key}"'] if key else []
    return "; ".join(said).encode()
