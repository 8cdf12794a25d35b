"""The HTTP cache of one process, over the store that its settings chose."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from llm_proxy.cache import Decision, Entry, Lookup, rules
from llm_proxy.cache.memory import MemoryStore, Stats
from llm_proxy.changes import Change
from llm_proxy.settings import Settings
from llm_proxy.tasks import Tasks

# What a purge may name; `acts.cache` says which of them go together.
SELECTORS = ("key", "project", "method", "path", "prefix", "everything")


class Counted(Protocol):
    """A call's event, as far as the cache counts it."""

    @property
    def project_id(self) -> str | None:
        """Whose call it was."""

    @property
    def cache(self) -> str | None:
        """What the cache had to do with it."""


class HttpCache:
    """What calls ask and what purges empty.

    Attributes:
        enabled: whether anything is ever answered from here, or stored.
        shared: whether all projects share one partition, which then holds only what is public.
        default_ttl: how long an answer to a POST is fresh, in seconds, when nobody says.
        max_object_bytes: the largest body that is stored.
        counts: how many calls of each project were a `hit`, `conditional-hit`, `stored`, `miss` or `bypass`.
    """

    def __init__(
        self, store: MemoryStore, *, enabled: bool = True, shared: bool = False, default_ttl: float, max_object_bytes: int
    ) -> None:
        self.enabled = enabled
        self.shared = shared
        self.default_ttl = default_ttl
        self.max_object_bytes = max_object_bytes
        self.counts: dict[str, Counter[str]] = {}
        self.tasks = Tasks()
        self._store = store
        self._fetches: dict[str, asyncio.Future[bool]] = {}
        self._purges = 0

    def partition(self, project_id: str) -> str:
        """Whose answers a project's calls may get: its own, or those that all share."""
        return "" if self.shared else project_id

    def key_of(self, project_id: str, method: str, path: str, query: str | None, body_hash: bytes | None = None) -> str:
        """The opaque name of what a call asks for."""
        return rules.primary_key(self.partition(project_id), method, path, query, body_hash)

    async def decide(self, key: str, lookup: Lookup) -> Decision:
        """What to do with a call."""
        return rules.decide(await self._store.get(key), lookup, time.time())

    # Fetches

    def fetch_of(self, key: str) -> "asyncio.Future[bool] | None":
        """The fetch under way of what may be stored under this key; its result is whether it was."""
        return self._fetches.get(key)

    def begin_fetch(self, key: str) -> "asyncio.Future[bool]":
        """Let calls for the same wait, until `end_fetch`."""
        fetch = self._fetches[key] = asyncio.get_running_loop().create_future()
        return fetch

    def end_fetch(self, key: str, *, stored: bool) -> None:
        """What was fetched is stored, or will never be; only the first time counts."""
        if fetch := self._fetches.pop(key, None):
            fetch.set_result(stored)

    # What is stored

    @property
    def purges(self) -> int:
        """How often something was purged; what was asked of a provider before the last purge must not be stored after it."""
        return self._purges

    async def put(self, key: str, entry: Entry, purges: int) -> bool:
        """Store an entry; whether that was done.

        Args:
            purges: how many there had been when the provider was asked.
        """
        return purges == self._purges and await self._store.put(key, entry.terms.variant, entry)

    async def delete(self, key: str) -> int:
        """Forget what is under a key."""
        return await self._store.delete(key)

    async def purge(self, selectors: Mapping[str, Any]) -> int:
        """Forget entries at once; how many they were.

        Args:
            selectors: by the names in `SELECTORS`, a `key` alone, `everything` alone.
        """
        self._purges += 1
        if "key" in selectors:
            return await self._store.delete(selectors["key"])
        return await self._store.purge(**selectors)

    def on_change(self, change: Change) -> None:
        """Another instance purged, or so much was missed that it may have."""
        if change.kind in ("cache_purge", "everything"):
            self._purges += 1
            selectors = change.payload if change.kind == "cache_purge" else {"everything": True}
            self.tasks.start("purge of the cache", self.purge(selectors))

    # Figures

    def count(self, event: Counted) -> None:
        """Count a call for the statistics of its project."""
        if event.cache and event.project_id:
            self.counts.setdefault(event.project_id, Counter())[event.cache] += 1

    async def stats(self) -> Stats:
        """How much is stored."""
        return await self._store.stats()


@asynccontextmanager
async def open_cache(settings: Settings) -> AsyncIterator[HttpCache]:
    """The cache for the length of the block."""
    cache = HttpCache(
        MemoryStore(settings.http_cache_max_bytes, settings.http_cache_max_object_bytes),
        enabled=settings.http_cache_enabled,
        shared=settings.http_cache_shared,
        default_ttl=settings.http_cache_default_ttl,
        max_object_bytes=settings.http_cache_max_object_bytes,
    )
    try:
        yield cache
    finally:
        await cache.tasks.close()
