"""The stream of events in Redis."""

import secrets
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import orjson
from redis.asyncio import Redis
from redis.exceptions import RedisError, ResponseError

from llm_proxy.errors import StartError
from llm_proxy.events.stream_scripts import ADD, FORGET, JOIN, TRIM
from llm_proxy.redis_client import eviction_warning, open_redis
from llm_proxy.settings import Settings
from llm_proxy.tasks import Tasks

# How long one command may take; nobody waits for it who serves a call.
PATIENCE = 2.0
# How many entries a script drops before others get their turn.
MOST_DROPPED = 500
# So many dead letters are asked for at once; each may hold the bodies of a call.
MOST_LETTERS = 50

EVENT, GAP = b"event", b"gap"

# An id of the stream, as it is compared.
Id = tuple[int, int]
Fields = dict[bytes, bytes]


class StreamUnavailable(OSError):
    """Redis does not answer, or does not do what it is asked."""


class NoGroup(StreamUnavailable):
    """The group is not there, or the whole stream, or not any more."""


@dataclass(frozen=True)
class GroupState:
    """How a group of consumers is doing.

    Attributes:
        lag: events that no consumer was given yet, None where Redis cannot tell.
        pending: events that one has and has not acknowledged.
        dead_letters: what the sink refused or missed for good.
    """

    name: str
    consumers: int
    lag: int | None
    pending: int
    dead_letters: int


@dataclass(frozen=True)
class StreamState:
    """What stands in the stream."""

    key: str
    available: bool
    length: int = 0
    bytes: int = 0
    groups: tuple[GroupState, ...] = ()


def read_id(id: bytes) -> Id:
    """The id so that the later is the greater."""
    ms, _, number = id.partition(b"-")
    return int(ms), int(number)


class EventStream:
    """One stream in Redis, with the groups that read it. Every verb raises `StreamUnavailable`, soon, where Redis is away.

    Redis that is full (`noeviction`) refuses to add, which is the same as being away; trimming goes on.

    Args:
        prefix: what the names of our groups begin with.
    """

    def __init__(self, redis: "Redis", key: str, prefix: str) -> None:
        self.key, self.prefix = key, prefix
        self._redis = redis
        self._tasks = Tasks()
        self._keys = (key, f"{key}:epoch")

    @classmethod
    def of(cls, redis: "Redis", settings: Settings) -> "EventStream":
        """The stream that the settings name."""
        return cls(redis, settings.redis_stream_key, settings.redis_consumer_group)

    def group_of(self, service: str) -> str:
        """The group that delivers to this sink."""
        return f"{self.prefix}:{service}"

    def dead_letters_of(self, service: str) -> str:
        """The stream of what this sink will not take."""
        return f"{self.key}:dead-letters:{service}"

    async def do(self, command: Any) -> Any:
        """The answer to a command of the client.

        Raises:
            StreamUnavailable: there is none.
        """
        try:
            return await self._tasks.within(PATIENCE, "a command to the stream of events", command)
        except ResponseError as error:
            gone = str(error).startswith("NOGROUP") or "no such key" in str(error)
            raise (NoGroup if gone else StreamUnavailable)(str(error)) from error
        except (RedisError, OSError) as error:
            raise StreamUnavailable(str(error) or type(error).__name__) from error

    async def eviction_warning(self) -> str | None:
        """What to tell the operator when Redis may throw the stream away."""
        warning: str | None = await self.do(eviction_warning(self._redis))
        return warning

    async def add(self, epoch: str, records: Sequence[tuple[bytes, bytes]]) -> tuple[str, Id | None]:
        """Add records, if this is the epoch of the stream; says which it is, with the id of the last."""
        parts = [part for record in records for part in record]
        now, *last = await self.do(self._redis.eval(ADD, 2, *self._keys, epoch, secrets.token_hex(8), *parts))
        return now.decode(), read_id(last[0]) if last else None

    async def trim(self, cap: int) -> tuple[str, Id, bool]:
        """Let go of what every group has acknowledged, and of the oldest above so many bytes, for which a gap then stands.

        Says the epoch, the id before which nothing is of use any more, and whether there is more to drop.
        """
        found = await self.do(self._redis.eval(TRIM, 2, *self._keys, str(cap), secrets.token_hex(8), str(MOST_DROPPED)))
        return found[0].decode(), read_id(found[1]), bool(found[2])

    async def join(self, service: str) -> None:
        """Make the sink's group, from the beginning of the stream, where there is none."""
        try:
            await self.do(self._redis.eval(JOIN, 2, *self._keys, self.group_of(service)))
        except StreamUnavailable as error:
            if not str(error).startswith("BUSYGROUP"):
                raise

    async def remove(self, service: str) -> bool:
        """Remove the sink's group; False when there is none."""
        try:
            return bool(await self.do(self._redis.xgroup_destroy(self.key, self.group_of(service))))
        except StreamUnavailable as error:
            if "requires the key to exist" in str(error):
                return False
            raise

    async def fetch(self, group: str, consumer: str, count: int) -> list[tuple[bytes, Fields]]:
        """Entries that no consumer of the group was given yet."""
        found = await self.do(self._redis.xreadgroup(group, consumer, {self.key: ">"}, count=count))
        return list(found[0][1]) if found else []

    async def claim(
        self, group: str, consumer: str, idle_ms: int, start: bytes, count: int
    ) -> tuple[bytes, list[tuple[bytes, Fields, int]]]:
        """Entries that a consumer was given and has left alone for so long, with how often they were given to one.

        Says first where to go on the next time.
        """
        answer = await self.do(self._redis.xautoclaim(self.key, group, consumer, idle_ms, start, count))
        # Before Redis 7 what is gone from the stream comes without fields.
        found = [(id, fields) for id, fields in answer[1] if fields]
        if not found:
            return answer[0], []
        ends = found[0][0], found[-1][0]
        # What the consumer has in hand already may stand between.
        rows = await self.do(
            self._redis.xpending_range(self.key, group, *ends, count=len(found) + MOST_DROPPED, consumername=consumer)
        )
        handed = {row["message_id"]: int(row["times_delivered"]) for row in rows}
        return answer[0], [(id, fields, handed.get(id, 1)) for id, fields in found]

    async def hold(self, group: str, consumer: str, ids: Sequence[bytes]) -> None:
        """Say that the consumer still has these in hand."""
        await self.do(self._redis.xclaim(self.key, group, consumer, 0, list(ids), justid=True))

    async def give_back(self, group: str, consumer: str, ids: Sequence[bytes], idle_ms: int) -> None:
        """Let any consumer claim these at once, as if nobody had been given them."""
        await self.do(self._redis.xclaim(self.key, group, consumer, 0, list(ids), idle=idle_ms, retrycount=0, justid=True))

    async def acknowledge(self, group: str, ids: Sequence[bytes]) -> None:
        """The group is done with these."""
        await self.do(self._redis.xack(self.key, group, *ids))

    async def forget(self, group: str, idle_ms: int, consumer: str = "") -> None:
        """Forget consumers, or only that one, that have not been heard of for so long, and hold nothing."""
        await self.do(self._redis.eval(FORGET, 1, self.key, group, str(idle_ms), consumer))

    async def groups(self) -> list[dict[str, Any]]:
        """What Redis says of the groups; none where there is no stream."""
        try:
            found: list[dict[str, Any]] = await self.do(self._redis.xinfo_groups(self.key))
        except NoGroup:
            return []
        return found

    async def add_letter(self, service: str, letter: dict[str, Any]) -> None:
        """Set aside what a sink will not take."""
        await self.do(self._redis.xadd(self.dead_letters_of(service), {"letter": orjson.dumps(letter)}))

    async def letters(self, service: str, after: bytes = b"0", last: bytes = b"+") -> list[tuple[bytes, bytes]]:
        """The first letters that were set aside for a sink after an id, up to another, by their ids."""
        found = await self.do(self._redis.xrange(self.dead_letters_of(service), b"(" + after, last, count=MOST_LETTERS))
        return [(id, fields.get(b"letter", b"")) for id, fields in found]

    async def last_letter(self, service: str) -> bytes | None:
        """The id of the last, None where there is none."""
        found = await self.do(self._redis.xrevrange(self.dead_letters_of(service), count=1))
        return found[0][0] if found else None

    async def remove_letters(self, service: str, ids: Sequence[bytes]) -> int:
        """Take away what was set aside; how many they were."""
        removed: int = await self.do(self._redis.xdel(self.dead_letters_of(service), *ids))
        return removed

    async def state(self) -> StreamState:
        """What stands in the stream; `available` is False where Redis does not say."""
        try:
            groups = [await self._group(facts) for facts in await self.groups()]
            length = await self.do(self._redis.xlen(self.key))
            size = await self.do(self._redis.memory_usage(self.key, samples=100))
        except StreamUnavailable:
            return StreamState(self.key, available=False)
        return StreamState(self.key, True, length, size or 0, tuple(groups))

    async def _group(self, facts: dict[str, Any]) -> GroupState:
        name = facts["name"].decode()
        service = name.removeprefix(f"{self.prefix}:")
        dead = await self.do(self._redis.xlen(self.dead_letters_of(service)))
        return GroupState(name, facts["consumers"], facts.get("lag"), facts["pending"], dead)

    async def close(self) -> None:
        """End what is still asked of Redis."""
        await self._tasks.close()


@asynccontextmanager
async def open_stream(settings: Settings) -> AsyncIterator[EventStream]:
    """The stream that the settings name, for a question or two.

    Raises:
        StartError: Redis does not answer.
    """
    async with open_redis(settings.redis_url, 1) as client:
        stream = EventStream.of(client, settings)
        try:
            yield stream
        except StreamUnavailable as error:
            raise StartError(f"REDIS_URL: Redis does not answer: {error}") from error
        finally:
            await stream.close()
