"""Stored responses in Redis, which several processes share."""

import json
import logging
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import aclosing, contextmanager
from typing import Any

from redis.asyncio import Redis
from redis.commands.core import AsyncScript

from llm_proxy.cache import Count, Entry, Found, Held, Place, Selection, Stats
from llm_proxy.cache.memory import MOST_VARIANTS
from llm_proxy.cache.packed import pack, unpack
from llm_proxy.cache.scripts import COUNT, FORGET, LOOK_UP, MEASURE, PLACES, STORE
from llm_proxy.errors import ApiError
from llm_proxy.redis_link import BACKGROUND_PATIENCE, NO_ANSWER, PATIENCE, RedisLink

log = logging.getLogger(__name__)

# How long a call may take whose answer is stored: for so long what it looked up is remembered.
GENERATION_MS = 600_000
# For how long an entry that answers nobody by itself any more may still be validated, or serve a client that takes it stale.
KEPT_TO_VALIDATE = 3600.0
# Redis is shared with limits and events, and nothing in it gives way to something else.
LONGEST_KEPT = 86_400.0
# All variants under a key are read by each lookup, within its 50 ms.
LEAST_ROOM = 1 << 20
BATCH = 1000
MOST_OWED = 10_000
# Somebody waits for a count, and to know that there are many serves him as well.
COUNT_SECONDS = 0.5

_UNKNOWN = "so nobody knows what is in it. Try again shortly."
_GLOB = str.maketrans({character: f"\\{character}" for character in "\\*?[]^-"})


class RedisStore:
    """A store that all processes on one Redis share; its entries expire by themselves.

    Redis away: a lookup waits at most 50 ms for it and finds nothing, nothing is stored, and after five failures in a row
    nobody waits until a check, made each second, finds it back. What should have been deleted meanwhile is deleted before
    anything is looked up again. A purge or a count that cannot be had is an error.

    Args:
        max_object_bytes: for the body of one entry.
        switched: told each change, `unavailable` when Redis is gone, `redis` when it is back.
        patience: how many seconds a call waits.
    """

    def __init__(
        self,
        redis: "Redis",
        prefix: str,
        *,
        max_object_bytes: int,
        switched: Callable[[str], None],
        patience: float = PATIENCE,
    ) -> None:
        self._redis = redis
        self._prefix = prefix
        self._max_object_bytes = max_object_bytes
        self._room = max(LEAST_ROOM, 2 * max_object_bytes)
        self._told = switched
        self._link = RedisLink(self._check, self._switched, patience)
        # Keys whose deletion failed; what is under them must not answer.
        self._owed: set[str] = set()
        self._owes_everything = False
        self._look_up, self._store = redis.register_script(LOOK_UP), redis.register_script(STORE)
        self._forget, self._places = redis.register_script(FORGET), redis.register_script(PLACES)
        self._entries, self._measure = redis.register_script(COUNT), redis.register_script(MEASURE)

    @property
    def degraded(self) -> bool:
        """Whether nothing is found because Redis is away."""
        return self._link.away

    async def open(self) -> None:
        """Look whether Redis is there, and follow it from now on."""
        await self._link.open()

    async def close(self) -> None:
        """End."""
        await self._link.close()

    async def get(self, key: str, place: Place) -> Found:
        """The variants under a key; none when Redis does not answer."""
        if self._owes_everything or key in self._owed:
            return Found((), None)
        args: list[str | bytes | int] = [json.dumps(place), secrets.token_bytes(12), GENERATION_MS]
        try:
            generation, *values = await self._link.ask(lambda: self._look_up(keys=[self._prefix + key], args=args))
        except NO_ANSWER:
            return Found((), None)
        return Found(tuple(entry for value in values if (entry := unpack(value))), generation)

    async def put(self, key: str, variant: str, entry: Entry, generation: object) -> bool:
        """Store an entry in place of the one under the same key and variant; whether it was stored.

        It is not if it is too large, if what is under the key was purged since it was looked up, if that was more than ten
        minutes ago, or if Redis does not answer; a Redis that is late may store it nevertheless.

        Args:
            generation: from the `get` that led to the request whose answer this is.
        """
        if not isinstance(generation, bytes) or self._owes_everything or key in self._owed:
            return False
        # Without a value the script forgets the one before.
        value = (pack(entry) or b"") if len(entry.body) <= self._max_object_bytes else b""
        kept = int(kept_for(entry, time.time()) * 1000)
        args: list[str | bytes | int] = [generation, variant, value, kept, MOST_VARIANTS, self._room]
        try:
            return bool(await self._link.ask(lambda: self._store(keys=[self._prefix + key], args=args)))
        except NO_ANSWER:
            return False

    async def delete(self, key: str) -> int:
        """Forget what is under a key; how many entries that were.

        Redis away: it is 0, and done once Redis is back, before this process looks anything up there.
        """
        try:
            return int(await self._link.ask(lambda: self._forget(keys=[self._prefix + key])))
        except NO_ANSWER:
            self._owe(key)
            return 0

    async def purge(self, said: Selection) -> int:
        """Forget what is selected; how many entries that were.

        Raises:
            ApiError: `cache_unavailable`; some may have been forgotten nevertheless.
        """
        with self._needed("so not all that you named was purged. Purge again shortly."):
            return await (self._sweep(said) if said.key is None else self._forget_now([self._prefix + said.key]))

    async def count(self, said: Selection) -> Count:
        """How many entries a purge would forget; it ends after `COUNT_SECONDS`, wherever it is by then.

        Raises:
            ApiError: `cache_unavailable`.
        """
        if said.key is not None:
            with self._needed(_UNKNOWN):
                [(_, entries)] = await self._patiently(self._entries(keys=[self._prefix + said.key]))
            return Count(entries)
        found: dict[bytes, int] = {}
        ends = time.monotonic() + COUNT_SECONDS
        async with aclosing(self._rows(self._entries)) as rows:
            async for key, (head, entries) in rows:
                if _is_meant(said, head):
                    found[key] = entries
                if time.monotonic() > ends:
                    return Count(sum(found.values()), complete=False)
        return Count(sum(found.values()))

    async def stats(self) -> Stats:
        """How much is stored; it looks at every key.

        Raises:
            ApiError: `cache_unavailable`.
        """
        rows = self._rows(self._measure)
        measured = {key: (_project(head), entries, size) async for key, (head, entries, size) in rows}
        return _summed(measured.values())

    async def _rows(self, script: AsyncScript) -> AsyncGenerator[tuple[bytes, Any], None]:
        """Every key, some maybe twice, with what a script says of it."""
        with self._needed(_UNKNOWN):
            if self._link.away:
                raise ConnectionError("Redis is away")
            async for keys in self._batches():
                for key, row in zip(keys, await self._patiently(script(keys=keys)), strict=True):
                    yield key, row

    @contextmanager
    def _needed(self, consequence: str) -> Iterator[None]:
        """What cannot be done without Redis."""
        try:
            yield
        except NO_ANSWER as error:
            text = f"Redis, which holds the cache, does not answer, {consequence}"
            raise ApiError("cache_unavailable", text, headers={"Retry-After": "1"}) from error

    async def _sweep(self, said: Selection) -> int:
        """Forget what is meant.

        Every key that is there all the while is seen, so what was looked up before cannot be stored afterwards.
        """
        forgotten = 0
        async for keys in self._batches():
            rows = zip(keys, await self._patiently(self._places(keys=keys)), strict=True)
            if meant := [key for key, head in rows if _is_meant(said, head)]:
                forgotten += await self._forget_now(meant)
        return forgotten

    async def _forget_now(self, keys: Sequence[bytes | str]) -> int:
        return int(await self._patiently(self._forget(keys=keys)))

    async def _batches(self) -> AsyncIterator[list[bytes]]:
        """All keys of ours, some maybe twice."""
        pattern, cursor = f"{self._prefix.translate(_GLOB)}*", 0
        while True:
            cursor, keys = await self._patiently(self._redis.scan(cursor, match=pattern, count=BATCH))
            if keys:
                yield keys
            if not cursor:
                return

    # A Redis that is left because it is full can still be purged, so this does not ask whether it is away.
    async def _patiently(self, command: Awaitable[Any]) -> Any:
        return await self._link.within(BACKGROUND_PATIENCE, command)

    def _owe(self, key: str) -> None:
        if len(self._owed) < MOST_OWED:
            self._owed.add(key)
        else:
            self._owes_everything = True

    async def _check(self, patience: float) -> None:
        # It writes, because a Redis that is full or follows another one still answers to what only reads.
        await self._link.within(patience, self._redis.set(f"{self._prefix}probe", "", px=1))
        if self._owes_everything:
            await self._sweep(Selection())
            self._owes_everything = False
        for key in list(self._owed):
            await self._forget_now([self._prefix + key])
            self._owed.discard(key)

    def _switched(self, error: Exception | None) -> None:
        if error:
            log.warning("cache: Redis does not answer (%s); until it does, nothing is answered from the cache", error)
        else:
            log.warning("cache: Redis is back")
        self._told("unavailable" if error else "redis")


def kept_for(entry: Entry, now: float) -> float:
    """For how many seconds an entry is worth its place."""
    stale = max(entry.terms.stale_while_revalidate, entry.terms.stale_if_error)
    return min(max(entry.ttl(now) + stale, 0.0) + KEPT_TO_VALIDATE, LONGEST_KEPT)


def _place(head: bytes) -> Place | None:
    """By what a key's entries are purged; None when this version cannot read it."""
    try:
        project, method, path = json.loads(head)
    except (ValueError, TypeError):
        return None
    return Place(str(project), str(method), str(path))


def _is_meant(said: Selection, head: bytes) -> bool:
    # What another version wrote may be what was named: a cache can always do without.
    place = _place(head)
    return place is None or said.covers(place)


def _project(head: bytes) -> str:
    place = _place(head)
    return place.project if place else ""


def _summed(measured: Iterable[tuple[str, int, int]]) -> Stats:
    projects: dict[str, Held] = {}
    for project, entries, size in measured:
        if entries:
            held = projects.get(project, Held(0, 0))
            projects[project] = Held(held.entries + entries, held.bytes + size)
    return Stats(sum(held.entries for held in projects.values()), sum(held.bytes for held in projects.values()), projects)
