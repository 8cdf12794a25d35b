"""The store of the settings' choice."""

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Protocol

from redis.asyncio import Redis

from llm_proxy.cache import Count, Entry, Found, Place, Selection, Stats
from llm_proxy.cache.memory import MemoryStore
from llm_proxy.cache.redis import RedisStore


class Store(Protocol):
    """Keeps responses under keys, each with its variants."""

    @property
    def degraded(self) -> bool:
        """Whether nothing is found because what holds it is away."""

    async def get(self, key: str, place: Place) -> Found:
        """The variants under a key, none when the store does not answer.

        Args:
            place: the same for all that is ever asked or stored under this key.
        """

    async def put(self, key: str, variant: str, entry: Entry, generation: object) -> bool:
        """Store an entry in place of the one under the same key and variant; whether it was stored.

        It is not if it does not fit, if what is under the key was purged since it was looked up, or if the store does not answer.

        Args:
            generation: from the `get` that led to the request whose answer this is, `Found.generation`.
        """

    async def delete(self, key: str) -> int:
        """Forget what is under a key; how many entries that were.

        A store that does not answer makes it 0; it is done later, before this process looks up that key.
        """

    async def purge(self, said: Selection) -> int:
        """Forget what is selected; how many entries that were.

        Nothing that was looked up before it is stored after it; what is looked up while it runs may be.

        Raises:
            ApiError: `cache_unavailable`; some may have been forgotten nevertheless.
        """

    async def count(self, said: Selection) -> Count:
        """How many entries a purge would forget; a store in which that takes long stops at some point.

        Raises:
            ApiError: `cache_unavailable`.
        """

    async def stats(self) -> Stats:
        """How much is stored.

        Raises:
            ApiError: `cache_unavailable`.
        """


@asynccontextmanager
async def open_store(
    redis: "Redis | None", prefix: str, *, max_bytes: int, max_object_bytes: int, switched: Callable[[str], None]
) -> AsyncIterator[Store]:
    """A store for the length of the block.

    Args:
        redis: where responses are kept; None for the memory of this process.
        prefix: what the names of keys in Redis begin with.
        max_bytes: what memory may hold; in Redis entries expire, after a day at the latest if nobody asks for them.
        max_object_bytes: for the body of one entry.
        switched: told each change, `unavailable` when Redis is gone, `redis` when it is back.
    """
    if redis is None:
        yield MemoryStore(max_bytes, max_object_bytes)
        return
    store = RedisStore(redis, prefix, max_object_bytes=max_object_bytes, switched=switched)
    await store.open()
    try:
        yield store
    finally:
        await store.close()
