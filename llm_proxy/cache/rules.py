"""The rules of HTTP caching (RFC 9111) as functions of values; time is given to them."""

import dataclasses
import functools
import hashlib
from collections.abc import Container, Sequence
from http import HTTPStatus
from urllib.parse import urljoin, urlsplit

from llm_proxy.cache import (
    Conditions,
    Decision,
    Entry,
    Freshened,
    Hit,
    Lookup,
    Miss,
    OnlyIfCachedMiss,
    Part,
    Revalidate,
    Served,
    StaleWhileRevalidate,
    Terms,
    Why,
    conditions_of,
    fields,
)
from llm_proxy.grammar import RawHeaders

# RFC 9111 section 4.2.2 suggests this part of the time since the last modification.
HEURISTIC_FRACTION = 0.1
LONGEST_HEURISTIC = 86_400.0

_SAFE = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
_UNDERSTOOD = frozenset(status.value for status in HTTPStatus)
# RFC 9110 section 15.1.
_HEURISTIC = frozenset({200, 203, 204, 206, 300, 301, 308, 404, 405, 410, 414, 501})
# These answer conditions or ranges of one request, and would be wrong for the next.
_ABOUT_CONDITIONS = frozenset({304, 412, 416})
_ERRORS = frozenset({500, 502, 503, 504})
# RFC 9110 section 15.4.5, with what tells a client how old the answer is.
_IN_304 = frozenset(
    b"age cache-control cdn-cache-control cache-status content-location date etag expires last-modified vary".split()
)
# What describes a body that a 416 does not have.
_DESCRIBING = frozenset(b"content-type content-encoding content-language content-range content-md5 etag last-modified".split())
_CONDITIONS = frozenset({b"if-none-match", b"if-modified-since"})
_ASKED = _CONDITIONS | {b"cache-control", b"pragma", b"range", b"if-range", b"if-match", b"if-unmodified-since"}


def primary_key(partition: str, method: str, path: str, query: str | None, body_hash: bytes | None = None) -> str:
    """The opaque name of what a request is for; GET and HEAD share it.

    Args:
        partition: whose answers may be shared: a project's id.
        path: canonical.
        query: its parameters may come in any order; those of one name keep theirs.
        body_hash: SHA-256 of the body of a POST.
    """
    parameters = None if query is None else sorted(query.split("&"), key=lambda parameter: parameter.partition("=")[0])
    # The repr of a tuple of plain values is the same for no other tuple.
    what = (partition, "GET" if method == "HEAD" else method, path, parameters, body_hash)
    return hashlib.sha256(repr(what).encode()).hexdigest()


def read_request(method: str, headers: RawHeaders, *, post_listed: bool = False) -> Lookup:
    """What a request asks of the cache.

    Args:
        post_listed: the profile lists this endpoint as one where a client may opt in to caching of POST.
    """
    asked: dict[bytes, str] = {}
    for field, value in headers:
        if (name := field.lower()) in _ASKED:
            text = value.decode("latin-1").strip(" \t")
            asked[name] = f"{asked[name]}, {text}" if name in asked else text
    if not asked:
        why = _bypass(method, asked, {}, post_listed)
        return _passing_by(method, why) if why else Lookup(method, headers)
    found = fields.directives(asked.get(b"cache-control"))
    # RFC 9111 section 5.4: Pragma speaks only where Cache-Control is silent.
    said = found or fields.directives(asked.get(b"pragma"))
    max_stale = fields.LARGEST_SECONDS if found.get("max-stale") == (None,) else fields.seconds(found, "max-stale")
    return Lookup(
        method=method,
        headers=headers,
        bypass=_bypass(method, asked, found, post_listed),
        no_cache="no-cache" in said,
        only_if_cached="only-if-cached" in found,
        max_age=fields.seconds(found, "max-age"),
        min_fresh=fields.seconds(found, "min-fresh") or 0,
        max_stale=max_stale or 0,
        stale_if_error=fields.seconds(found, "stale-if-error") or 0,
        if_none_match=asked.get(b"if-none-match"),
        if_modified_since=asked.get(b"if-modified-since"),
        range=asked.get(b"range") if method == "GET" else None,
        if_range=asked.get(b"if-range"),
    )


@functools.lru_cache(maxsize=64)
def _passing_by(method: str, why: Why) -> Lookup:
    return Lookup(method, (), why)


def _bypass(method: str, asked: Container[bytes], found: fields.Directives, post_listed: bool) -> Why | None:
    if method not in ("GET", "HEAD", "POST"):
        return "method"
    # RFC 9110 section 13.1: what these ask, only the provider may answer.
    if "no-store" in found or b"if-match" in asked or b"if-unmodified-since" in asked:
        return "bypass"
    return "bypass" if method == "POST" and not (post_listed and "public" in found) else None


def may_store(
    lookup: Lookup, status: int, headers: RawHeaders, now: float, *, default_ttl: float, shared: bool = False
) -> Terms | None:
    """The terms on which a response may be stored, once it has come whole; None when it may not (RFC 9111 section 3).

    Args:
        headers: the provider's.
        now: when they came.
        default_ttl: the lifetime of an answer to a POST when neither its provider nor its client says one.
        shared: the partition belongs to all projects, so only what is public may be in it.
    """
    if lookup.bypass or lookup.method == "HEAD":
        return None
    return _terms(lookup, status, headers, now, default_ttl, shared)


def _terms(lookup: Lookup, status: int, headers: RawHeaders, now: float, default_ttl: float, shared: bool) -> Terms | None:
    found, stated = fields.policy(headers, now)
    vary = fields.vary_names(headers)
    part = _part(lookup, headers) if status == 206 else None
    if vary is None or not _admitted(status, found, shared) or (status == 206 and part is None):
        return None
    # Projects have keys of their own, by which the provider says that it answers.
    if shared and not fields.CREDENTIALS.isdisjoint(vary):
        return None
    if lookup.method == "POST":
        granted = default_ttl if lookup.max_age is None else lookup.max_age
        lifetime = (granted if stated is None else stated) if status == 200 else None
    else:
        lifetime = _guessed(status, found, headers, now) if stated is None else stated
    if lifetime is None:
        return None
    selecting = fields.selecting_values(vary, lookup.headers)
    terms = Terms(
        lifetime=lifetime,
        stale_while_revalidate=fields.seconds(found, "stale-while-revalidate") or 0,
        stale_if_error=fields.seconds(found, "stale-if-error") or 0,
        no_cache="no-cache" in found and fields.field_names(found, "no-cache") is None,
        must_revalidate=not found.keys().isdisjoint({"must-revalidate", "proxy-revalidate", "s-maxage"}),
        vary=vary,
        selecting=selecting,
        variant=fields.variant(vary, selecting, part.asked if part else None),
        part=part,
    )
    return terms if _useful(terms, lookup, headers) else None


def _admitted(status: int, found: fields.Directives, shared: bool) -> bool:
    """Whether a response may be stored at all; `private` may be, where the partition belongs to one project."""
    if "no-store" in found or status < 200 or status in _ABOUT_CONDITIONS:
        return False
    if "must-understand" in found and status not in _UNDERSTOOD:
        return False
    return not shared or ("public" in found and "private" not in found)


def _guessed(status: int, found: fields.Directives, headers: RawHeaders, now: float) -> float | None:
    """The lifetime of a response that states none: 0 when it can only be validated, None when it must not be stored."""
    if status not in _HEURISTIC and "public" not in found:
        return None
    date = fields.date_of(headers, b"date", now)
    modified = fields.date_of(headers, b"last-modified", now)
    if modified is None:
        return 0.0
    return min(max(0.0, (now if date is None else date) - modified) * HEURISTIC_FRACTION, LONGEST_HEURISTIC)


def _part(lookup: Lookup, headers: RawHeaders) -> Part | None:
    stated = fields.content_range(headers)
    # With If-Range, the part may be of an older representation than the next request would get.
    return Part(lookup.range, *stated) if stated and lookup.range and lookup.if_range is None else None


def _useful(terms: Terms, lookup: Lookup, headers: RawHeaders) -> bool:
    """Whether a response can ever answer: a POST is never validated, anything else is by a validator."""
    validated = lookup.method != "POST" and bool(conditions_of(headers))
    if terms.no_cache:
        return validated
    return terms.lifetime > 0 or validated or max(terms.stale_while_revalidate, terms.stale_if_error) > 0


def conditioned(headers: RawHeaders, conditions: Conditions) -> list[tuple[bytes, bytes]]:
    """A request's headers with the cache's conditions in place of its own."""
    return [*fields.without(headers, _CONDITIONS), *conditions]


def entry_of(
    terms: Terms,
    lookup: Lookup,
    response: tuple[int, str, RawHeaders],
    body: bytes,
    *,
    project: str,
    path: str,
    request_time: float,
    response_time: float,
) -> Entry:
    """A response to be stored.

    Args:
        terms: from `may_store`.
        response: its status, reason and headers.
        body: all of it.
        project: whose it is, empty in a shared partition.
        request_time: when the request went out.
        response_time: when the head of its answer came.
    """
    status, reason, headers = response
    # A provider takes long to think about a POST; its answer is made when it comes, whatever time has passed.
    sent = response_time if lookup.method == "POST" else request_time
    return Entry(
        project=project,
        method="POST" if lookup.method == "POST" else "GET",
        path=path,
        status=status,
        reason=reason,
        headers=fields.stored(headers, response_time),
        body=body,
        response_time=response_time,
        initial_age=fields.initial_age(headers, sent, response_time),
        terms=terms,
    )


def decide(entries: Sequence[Entry], lookup: Lookup, now: float) -> Decision:
    """What to do with a request, given what is stored under its key (RFC 9111 section 4)."""
    decision = _decide(entries, lookup, now)
    if lookup.only_if_cached and lookup.bypass != "method" and isinstance(decision, Miss | Revalidate):
        return OnlyIfCachedMiss()
    return decision


def _decide(entries: Sequence[Entry], lookup: Lookup, now: float) -> Decision:
    if lookup.bypass:
        return Miss(lookup.bypass)
    if not entries:
        return Miss("uri-miss")
    matching = sorted((entry for entry in entries if entry.is_selected_by(lookup)), key=lambda entry: entry.response_time)
    if not matching:
        return Miss("vary-miss")
    whole = [entry for entry in matching if entry.terms.part is None]
    usable = whole or [entry for entry in matching if entry.positions(lookup)]
    return _judge(usable[-1], lookup, now) if usable else Miss("partial")


def _judge(entry: Entry, lookup: Lookup, now: float) -> Decision:
    terms, age = entry.terms, entry.age(now)
    stale_for = age - terms.lifetime
    too_old = lookup.max_age is not None and (age > lookup.max_age or lookup.max_age == 0)
    if terms.no_cache or lookup.no_cache or too_old:
        return Revalidate(entry, entry.conditions, "stale" if terms.no_cache or stale_for >= 0 else "request")
    if stale_for < 0:
        return Hit(entry) if stale_for + lookup.min_fresh <= 0 else Revalidate(entry, entry.conditions, "request")
    if not terms.must_revalidate and not lookup.min_fresh:
        if 0 < lookup.max_stale >= stale_for:
            return Hit(entry)
        # Nobody asked for a second, paid answer to a POST.
        if entry.method == "GET" and 0 < terms.stale_while_revalidate >= stale_for:
            return StaleWhileRevalidate(entry, entry.conditions)
    return Revalidate(entry, entry.conditions, "stale")


def serve_stale_on_error(entry: Entry, lookup: Lookup, now: float, status: int | None) -> bool:
    """Whether an entry answers in place of a failure (RFC 5861 section 4).

    Args:
        status: the provider's, None when no answer came.
    """
    if entry.terms.no_cache or entry.terms.must_revalidate or lookup.no_cache or status not in {None, *_ERRORS}:
        return False
    return 0 < max(entry.terms.stale_if_error, lookup.stale_if_error) >= -entry.ttl(now)


def serve(entry: Entry, lookup: Lookup, now: float) -> Served:
    """The answer to a request that an entry may answer: whole, a part of it, or that the client has it already."""
    headers = [*entry.headers, (b"Age", b"%d" % entry.age(now))]
    if entry.is_held_by(lookup, now):
        return Served(304, "", [header for header in headers if header[0].lower() in _IN_304], None)
    if entry.terms.part:
        return _serve_part(entry, lookup, headers)
    ranges = entry.ranges(lookup, now)
    if ranges is None:
        return Served(entry.status, entry.reason, headers, entry.body)
    length = len(entry.body)
    if not ranges:
        return Served(416, "", [*fields.without(headers, _DESCRIBING), (b"Content-Range", b"bytes */%d" % length)], b"")
    if len(ranges) > 1:
        return _serve_ranges(entry, headers, ranges)
    [(first, last)] = ranges
    headers = [*fields.without(headers, {b"content-range"}), _content_range(first, last, length)]
    return Served(206, "", headers, entry.body[first : last + 1])


def _content_range(first: int, last: int, complete: int) -> tuple[bytes, bytes]:
    return b"Content-Range", b"bytes %d-%d/%d" % (first, last, complete)


def _serve_ranges(entry: Entry, headers: list[tuple[bytes, bytes]], ranges: Sequence[tuple[int, int]]) -> Served:
    """Several ranges (RFC 9110 section 15.3.7.2); no body holds its own hash, which therefore parts them."""
    boundary = hashlib.sha256(entry.body).hexdigest()[:32].encode()
    described = [b"%s: %s\r\n" % header for header in headers if header[0].lower() == b"content-type"]
    parts = []
    for first, last in ranges:
        head = [b"--%s\r\n" % boundary, *described, b"%s: %s\r\n\r\n" % _content_range(first, last, len(entry.body))]
        parts += [*head, entry.body[first : last + 1], b"\r\n"]
    headers = fields.without(headers, {b"content-type", b"content-range"})
    headers.append((b"Content-Type", b"multipart/byteranges; boundary=" + boundary))
    return Served(206, "", headers, b"".join([*parts, b"--%s--\r\n" % boundary]))


def _serve_part(entry: Entry, lookup: Lookup, headers: list[tuple[bytes, bytes]]) -> Served:
    part, positions = entry.terms.part, entry.positions(lookup)
    assert part and positions, "only a request that it can answer selects a partial entry"
    start, end = positions
    if part.asked != lookup.range:
        stated = _content_range(part.first + start, part.first + end - 1, part.complete)
        headers = [*fields.without(headers, {b"content-range"}), stated]
    return Served(206, entry.reason, headers, entry.body[start:end])


def freshened(
    entry: Entry, lookup: Lookup, headers: RawHeaders, *, request_time: float, response_time: float, shared: bool = False
) -> Freshened:
    """An entry after a 304 that confirmed it (RFC 9111 section 4.3.4).

    Args:
        headers: of the 304.
    """
    merged = fields.updated(entry.headers, headers, response_time)
    status = 200 if entry.terms.part else entry.status
    terms = _terms(lookup, status, merged, response_time, 0, shared)
    renewed = dataclasses.replace(
        entry,
        headers=merged,
        response_time=response_time,
        initial_age=fields.initial_age(headers, request_time, response_time),
        terms=_renewed(entry.terms, terms),
    )
    return Freshened(renewed, terms is not None)


def _renewed(old: Terms, new: Terms | None) -> Terms:
    if new is None:
        return dataclasses.replace(old, no_cache=True)
    if old.part or old.vary == new.vary:
        return dataclasses.replace(new, vary=old.vary, selecting=old.selecting, variant=old.variant, part=old.part)
    return new


def freshened_by_head(
    entry: Entry, lookup: Lookup, headers: RawHeaders, *, request_time: float, response_time: float, shared: bool = False
) -> Freshened:
    """An entry after a 200 to a HEAD that it could have answered; no longer to be kept if that is about something else.

    RFC 9111 section 4.3.5.
    """
    own = {name.lower(): value for name, value in entry.headers} | {b"content-length": b"%d" % len(entry.body)}
    for name, value in headers:
        if (lowered := name.lower()) in (b"etag", b"last-modified", b"content-length") and own.get(lowered) != value:
            return Freshened(entry, False)
    return freshened(entry, lookup, headers, request_time=request_time, response_time=response_time, shared=shared)


def invalidated_by(method: str, status: int, url: str, headers: RawHeaders) -> set[tuple[str, str | None]]:
    """Paths, with their queries, whose GET entries an unsafe call has made doubtful (RFC 9111 section 4.4).

    Args:
        url: of the call, absolute, as its client sees it.
        headers: of the answer, URLs in them as the client gets them; those of another origin are not ours to judge.
    """
    if method in _SAFE or not 200 <= status < 400:
        return set()
    named = [value for name in (b"location", b"content-location") for value in fields.values(headers, name)]
    own, *others = (_split(url, value) for value in ("", *named))
    return {at[1:] for at in (own, *others) if at and own and at[0] == own[0]}


def _split(url: str, reference: str) -> tuple[tuple[str, str | None, int | None], str, str | None] | None:
    """Origin, path and query of a URL reference; None when it is none."""
    try:
        at = urlsplit(urljoin(url, reference))
        port = at.port or {"http": 80, "https": 443}.get(at.scheme)
    except ValueError:
        return None
    return (at.scheme, at.hostname, port), at.path or "/", at.query or None
