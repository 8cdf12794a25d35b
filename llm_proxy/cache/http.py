"""The HTTP cache of one process, over the store that its settings chose."""

import asyncio
import logging
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from typing import Any, Protocol

from redis.asyncio import Redis

from llm_proxy.cache import Count, Decision, Entry, Lookup, Place, Stats, rules, selection
from llm_proxy.cache.store import Store, open_store
from llm_proxy.changes import Change
from llm_proxy.errors import ApiError
from llm_proxy.settings import Settings
from llm_proxy.tasks import Tasks

log = logging.getLogger(__name__)


class Counted(Protocol):
    """A call's event, as far as the cache counts it."""

    @property
    def project_id(self) -> str | None:
        """Whose call it was."""

    @property
    def cache(self) -> str | None:
        """What the cache had to do with it."""


class HttpCache:
    """What calls ask, and purges empty.

    Args:
        local: whether the store is this process's own, so that the purges of others have to be done here too.

    Attributes:
        enabled: whether anything is ever answered from here, or stored.
        shared: whether all projects share one partition, which then holds only what is public.
        default_ttl: how long an answer to a POST is fresh, in seconds, when nobody says.
        max_object_bytes: the largest body that is stored.
        counts: how many calls of each project were a `hit`, `conditional-hit`, `stored`, `miss` or `bypass`.
    """

    def __init__(self, store: Store, settings: Settings, *, local: bool = True) -> None:
        self.enabled = settings.http_cache_enabled
        self.shared = settings.http_cache_shared
        self.default_ttl = settings.http_cache_default_ttl
        self.max_object_bytes = settings.http_cache_max_object_bytes
        self.counts: defaultdict[str, Counter[str]] = defaultdict(Counter)
        self._store = store
        self._local = local
        self._fetches: dict[str, asyncio.Future[bool]] = {}
        self._tasks = Tasks()

    @property
    def degraded(self) -> bool:
        """Whether nothing is found because what holds it is away."""
        return self._store.degraded

    def place_of(self, project_id: str, method: str, path: str) -> Place:
        """Where a project's call looks: in its own partition, or in the one that all share."""
        return Place("" if self.shared else project_id, method, path)

    async def look_up(self, key: str, place: Place, lookup: Lookup) -> tuple[Decision, object]:
        """What to do with a call; with the generation of what was found, which `put` wants to see."""
        found = await self._store.get(key, place)
        return rules.decide(found.entries, lookup, time.time()), found.generation

    async def put(self, key: str, entry: Entry, generation: object) -> bool:
        """Store an entry, if it was not purged since it was asked for; whether it is stored."""
        return await self._store.put(key, entry.terms.variant, entry, generation)

    async def delete(self, key: str) -> None:
        """Forget what is under a key."""
        await self._store.delete(key)

    # Identical calls

    def fetch_of(self, key: str) -> "asyncio.Future[bool] | None":
        """The fetch under way of what may be stored under this key; its result is whether it was."""
        return self._fetches.get(key)

    def begin_fetch(self, key: str) -> None:
        """Let calls for the same wait, until `end_fetch`."""
        self._fetches[key] = asyncio.get_running_loop().create_future()

    def end_fetch(self, key: str, *, stored: bool) -> None:
        """What was fetched is stored, or will never be."""
        self._fetches.pop(key).set_result(stored)

    # For operators

    async def purge(self, **selectors: Any) -> int:
        """Forget entries at once, `selection` says which; how many they were.

        Raises:
            ValueError: nothing is said, or a method alone.
            ApiError: `cache_unavailable`.
        """
        return await self._store.purge(selection(**selectors))

    async def count_meant(self, **selectors: Any) -> Count:
        """How many entries a purge with these words would forget.

        Raises:
            ValueError: nothing is said, or a method alone.
            ApiError: `cache_unavailable`.
        """
        return await self._store.count(selection(**selectors))

    def on_change(self, change: Change) -> None:
        """Another process purged, or so much was missed that it may have; or a provider is another than it was."""
        if change.kind == "provider" and not change.payload.get("same_answers"):
            # Its new key may be of another account, its new base URL of another service.
            project = change.payload.get("project_id")
            self._purge_here({"project": project} if project and not self.shared else {"everything": True})
        elif self._local and change.kind == "cache_purge":
            self._purge_here(change.payload)
        elif self._local and change.kind == "everything":
            self._purge_here({"everything": True})

    def _purge_here(self, selectors: Mapping[str, Any]) -> None:
        self._tasks.start("purge of the cache", self._purge_or_log(selectors))

    async def _purge_or_log(self, selectors: Mapping[str, Any]) -> None:
        try:
            await self.purge(**selectors)
        except ApiError as error:
            log.error("what a changed provider answered before is still in the cache: %s", error)

    def count(self, event: Counted) -> None:
        """Count a call for the statistics of its project."""
        if event.cache and event.project_id:
            self.counts[event.project_id][event.cache] += 1

    async def stats(self) -> Stats:
        """How much is stored.

        Raises:
            ApiError: `cache_unavailable`.
        """
        return await self._store.stats()

    async def close(self) -> None:
        """End what still runs."""
        await self._tasks.close()


@asynccontextmanager
async def open_cache(settings: Settings, redis: "Redis | None", switched: Callable[[str], None]) -> AsyncIterator[HttpCache]:
    """The cache for the length of the block.

    Args:
        redis: where answers are kept if HTTP_CACHE_BACKEND says so.
        switched: told when that is away, and when it is back.
    """
    chosen = redis if settings.http_cache_enabled and settings.http_cache_backend == "redis" else None
    async with open_store(
        chosen,
        settings.redis_cache_key_prefix,
        max_bytes=settings.http_cache_max_bytes,
        max_object_bytes=settings.http_cache_max_object_bytes,
        switched=switched,
    ) as store:
        cache = HttpCache(store, settings, local=chosen is None)
        try:
            yield cache
        finally:
            await cache.close()
