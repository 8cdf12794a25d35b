"""One call's dealings with the cache."""

import asyncio
import copy
import dataclasses
import functools
import hashlib
import time

from llm_proxy.cache import (
    Entry,
    Hit,
    Lookup,
    Miss,
    OnlyIfCachedMiss,
    Place,
    Revalidate,
    StaleWhileRevalidate,
    Terms,
    Why,
    fields,
    rules,
)
from llm_proxy.errors import ApiError
from llm_proxy.grammar import RawHeaders
from llm_proxy.heads import Head
from llm_proxy.proxy.call import Call, Route
from llm_proxy.proxy.headers import CREDENTIALS

# How long a call waits for an identical one.
PATIENCE = 60.0
# They are replaced on the way to the provider, so they select nothing, and must not be stored.
_NEVER_SELECTING = frozenset(name.encode() for name in (*CREDENTIALS, "cookie", "content-length"))


class Turn:
    """What a call finds in the cache, and leaves there.

    Attributes:
        lookup: what the call asks of the cache.
        key: the name of what it asks for, None when the cache has no part in the call.
        found: what to do.
        status: what `X-PROXY-CACHE` says.
    """

    def __init__(self, call: Call, routes: list[Route]) -> None:
        self._call = call
        self._cache = call.context.cache
        self.routes = routes
        self._post_listed = call.request.method == "POST" and _lists_post(call, routes)
        self.lookup = self._read()
        self.key = None if self.lookup.bypass else self._key()
        self.found: Hit | StaleWhileRevalidate | Revalidate | Miss = Miss(self.lookup.bypass or "uri-miss")
        self.status = "bypass" if self.lookup.bypass else "miss"
        call.event.cache = self.status
        self._generation: object = None
        self._leads = self._collapsed = False
        self._forwarded_status: int | None = None
        self._capture: _Capture | None = None
        self.asked_at = 0.0

    @functools.cached_property
    def place(self) -> Place:
        """Where in the cache it looks."""
        return self._cache.place_of(self._call.project_id, self.lookup.method, self._call.target.path)

    def _read(self) -> Lookup:
        lookup = self._call.request.head.recall(_asked_of_listed if self._post_listed else _asked)
        if lookup.bypass:
            return lookup
        body = self._call.body
        # A GET may have a body, which is no part of its key, though it may be of what its provider makes of it.
        unkeyed = body.rest is not None or (body.held and lookup.method != "POST")
        if unkeyed or not self._cache.enabled:
            return dataclasses.replace(lookup, bypass="bypass")
        return lookup

    def _key(self) -> str:
        call = self._call
        body_hash = hashlib.sha256(call.body.held).digest() if self.lookup.method == "POST" else None
        return rules.primary_key(self._partition(), self.lookup.method, self.place.path, call.target.query, body_hash)

    def _partition(self) -> str:
        """A project's own, or of all projects that have the same providers: a path is another thing at another one."""
        return self.place.project or " ".join(sorted({f"{route.base_url} {self._renamed(route)}" for route in self.routes}))

    def _renamed(self, route: Route) -> str:
        """The provider's name for the model where it is another: two projects may mean two models by one name."""
        return route.model if route.model and route.model != self._call.model else ""

    # Before the provider

    @property
    def is_asked(self) -> bool:
        """Whether the cache has a word in the call."""
        return self.key is not None or self.lookup.only_if_cached

    async def decide(self) -> None:
        """Look into the cache, after an identical call that is under way if there is one.

        Raises:
            ApiError: `only_if_cached`.
        """
        await self._look()
        if self.key is None or not self._may_wait():
            return
        if fetch := self._cache.fetch_of(self.key):
            if await self._outcome(fetch):
                await self._look()
                self._collapsed = self.entry is not None
        elif self.lookup.method != "HEAD":
            self._cache.begin_fetch(self.key)
            self._leads = True

    async def _look(self) -> None:
        found = rules.decide((), self.lookup, 0)
        if self.key:
            found, self._generation = await self._cache.look_up(self.key, self.place, self.lookup)
        if isinstance(found, OnlyIfCachedMiss):
            raise ApiError("only_if_cached", "There is no stored answer that may be used, and the call asks for nothing else.")
        self.found = found
        if isinstance(found, Hit | StaleWhileRevalidate):
            self.status = "hit"

    def _may_wait(self) -> bool:
        """Whether the answer to an identical call that was sent earlier would do."""
        if self._call.wants_stream or self.lookup.no_cache or self.lookup.max_age == 0:
            return False
        return isinstance(self.found, Miss) or (isinstance(self.found, Revalidate) and self.found.why == "stale")

    async def _outcome(self, fetch: "asyncio.Future[bool]") -> bool:
        call = self._call
        try:
            with call.context.deadlines.within(PATIENCE) as call.deadline:
                call.check_ended()
                with call.waiting():
                    return await asyncio.shield(fetch)
        except TimeoutError:
            call.check_ended()
            return False
        finally:
            call.deadline = None

    def behind_the_call(self) -> "Turn | None":
        """A turn that fetches anew what answers this call; None when a fetch is under way."""
        assert isinstance(self.found, StaleWhileRevalidate) and self.key
        if self._cache.fetch_of(self.key):
            return None
        turn = copy.copy(self)
        turn.found = Revalidate(self.found.entry, self.found.conditions, "stale")
        self._cache.begin_fetch(self.key)
        turn._leads = True
        return turn

    @property
    def entry(self) -> Entry | None:
        """The stored answer that may be sent at once."""
        return self.found.entry if isinstance(self.found, Hit | StaleWhileRevalidate) else None

    @property
    def wants_refresh(self) -> bool:
        """Whether what answers is to be fetched anew meanwhile."""
        return isinstance(self.found, StaleWhileRevalidate)

    def request_headers(self, headers: RawHeaders) -> RawHeaders:
        """The call's headers, with the cache's conditions where it asks whether a stored answer still holds."""
        self.asked_at = time.time()
        if isinstance(self.found, Revalidate) and self.found.conditions:
            return rules.conditioned(headers, self.found.conditions)
        return headers

    # With the provider's answer

    @property
    def revalidates(self) -> bool:
        """Whether the provider is asked because what is stored may not be sent as it is."""
        return isinstance(self.found, Revalidate)

    async def confirmed(self, status: int, headers: RawHeaders) -> Entry | None:
        """The stored answer that a provider's one lets us send: confirmed by it, or in place of a failure."""
        if not isinstance(self.found, Revalidate):
            return None
        if status == 304 and self.found.conditions:
            renewed = rules.freshened(self.found.entry, self.lookup, headers, **self._times(), shared=self._cache.shared)
            self._forwarded_status, self.status = 304, "conditional-hit"
            await self._keep(renewed.entry, renewed.keep)
            return renewed.entry
        return self.instead_of(status)

    def instead_of(self, status: int | None) -> Entry | None:
        """The stored answer that may be sent in place of a failure; of none at all when `status` is None."""
        found = self.found
        if isinstance(found, Revalidate) and rules.serve_stale_on_error(found.entry, self.lookup, time.time(), status):
            self._forwarded_status, self.status = status, "hit"
            return found.entry
        return None

    def _times(self) -> dict[str, float]:
        return {"request_time": self.asked_at, "response_time": time.time()}

    async def _keep(self, entry: Entry, keep: bool) -> None:
        assert self.key
        stored = await self._cache.put(self.key, entry, self._generation) if keep else False
        if not keep:
            await self._cache.delete(self.key)
        self._land(stored=stored)

    async def answered(self, status: int, reason: str, headers: RawHeaders, sent: RawHeaders) -> None:
        """The provider's answer goes on to the client: see what it means for what is stored, and whether it may be.

        Args:
            headers: the provider's.
            sent: as the client gets them.
        """
        if self.lookup.bypass == "method" or (self.lookup.method == "POST" and not self._post_listed):
            await self._invalidate(status, sent)
        if self.key is None:
            return
        if self.lookup.method == "HEAD" and status == 200 and isinstance(self.found, Revalidate):
            renewed = rules.freshened_by_head(self.found.entry, self.lookup, headers, **self._times(), shared=self._cache.shared)
            await self._keep(renewed.entry, renewed.keep)
            return
        terms = rules.may_store(
            self.lookup, status, headers, time.time(), default_ttl=self._cache.default_ttl, shared=self._cache.shared
        )
        # Without a generation the store is away, and would take nothing.
        if terms and self._generation is not None and _is_framed(status, headers, self._cache.max_object_bytes):
            self._capture = _Capture(terms, (status, reason, headers), time.time())
            self.status = "stored"
            return
        if status < 400 and isinstance(self.found, Revalidate):
            # What took its place must not be stored, so what was stored is out of date for good.
            await self._cache.delete(self.key)
        self._land(stored=False)

    async def _invalidate(self, status: int, sent: RawHeaders) -> None:
        call = self._call
        query = f"?{call.target.query}" if call.target.query is not None else ""
        url = f"{call.peer.scheme}://{call.request.headers.get('Host', '')}{call.target.path}{query}"
        for path, asked in rules.invalidated_by(call.request.method, status, url, sent):
            await self._cache.delete(rules.primary_key(self._partition(), "GET", path, asked))

    def feed(self, chunk: bytes) -> None:
        """A piece of the body passes."""
        if self._capture is None:
            return
        self._capture.body += chunk
        if len(self._capture.body) > self._cache.max_object_bytes:
            self._capture = None
            self._land(stored=False)

    @property
    def captures(self) -> bool:
        """Whether the body that passes is going to be stored."""
        return self._capture is not None

    async def finish(self, *, whole: bool) -> bool:
        """The provider's answer has ended: store it, if it may be and is `whole`; whether it is stored now."""
        capture, self._capture = self._capture, None
        if capture is None or self.key is None or not whole:
            return False
        entry = rules.entry_of(
            capture.terms,
            self.lookup,
            capture.head,
            bytes(capture.body),
            project=self.place.project,
            path=self.place.path,
            request_time=self.asked_at,
            response_time=capture.came_at,
        )
        stored = await self._cache.put(self.key, entry, self._generation)
        self._land(stored=stored)
        return stored

    def _land(self, *, stored: bool) -> None:
        if self._leads and self.key:
            self._leads = False
            self._cache.end_fetch(self.key, stored=stored)

    def close(self) -> None:
        """The call is over, however it ended."""
        self._land(stored=False)

    # For the client

    def headers(self, entry: Entry | None = None) -> list[tuple[bytes, bytes]]:
        """What the client is told of the cache; `entry` is what it gets."""
        fwd = None if isinstance(self.found, Hit | StaleWhileRevalidate) else self.found.why
        if self.key is None and self._forwarded_status is None and entry is None:
            return list(_told_of_bypass(self.status, fwd))
        said = fields.cache_status(
            self.key,
            fwd=fwd,
            fwd_status=self._forwarded_status,
            ttl=entry.ttl(time.time()) if entry else None,
            stored=self.status in ("stored", "conditional-hit"),
            collapsed=self._collapsed,
        )
        return [(b"X-PROXY-CACHE", self.status.encode()), (b"Cache-Status", said)]


@functools.lru_cache(maxsize=64)
def _told_of_bypass(status: str, fwd: Why | None) -> tuple[tuple[bytes, bytes], ...]:
    return (b"X-PROXY-CACHE", status.encode()), (b"Cache-Status", fields.cache_status(None, fwd=fwd))


@dataclasses.dataclass(slots=True)
class _Capture:
    """An answer on its way, which is stored if it ends whole."""

    terms: Terms
    head: tuple[int, str, RawHeaders]
    came_at: float
    body: bytearray = dataclasses.field(default_factory=bytearray)


def _asked(head: Head, *, post_listed: bool = False) -> Lookup:
    lookup = rules.read_request(head.method, head.raw_headers, post_listed=post_listed)
    return dataclasses.replace(lookup, headers=fields.without(lookup.headers, _NEVER_SELECTING))


def _asked_of_listed(head: Head) -> Lookup:
    return _asked(head, post_listed=True)


def _lists_post(call: Call, routes: list[Route]) -> bool:
    return all(route.profile.at(call.target.path).caches_post for route in routes)


def _is_framed(status: int, headers: RawHeaders, limit: int) -> bool:
    """Whether it will be known that the answer came whole, and that it is not too large from the beginning."""
    found = {name.lower(): value for name, value in headers}
    length = found.get(b"content-length")
    if length is not None:
        return int(length) <= limit
    return b"transfer-encoding" in found or status == 204
