"""The stream in Redis as the source of a dispatcher in a process of its own."""

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import AsyncGenerator, Callable, Collection
from typing import Any

import orjson

from llm_proxy.clock import now_ms, to_rfc3339
from llm_proxy.events.dead_letters import Letter, letter_of
from llm_proxy.events.reading import LARGEST_BATCH, Backlog, Entry, Item, StreamGap
from llm_proxy.events.stream import EVENT, EventStream, Fields, NoGroup, StreamUnavailable
from llm_proxy.settings import SINKS

log = logging.getLogger(__name__)

# So often Redis is told that what was read is still in hand; what is in nobody's hand for longer than the other, anybody takes.
HOLD_SECONDS = 1.0
IDLE_SECONDS = 5.0
# A consumer that holds nothing is forgotten after this.
FORGET_SECONDS = 3600.0
# Entries are asked for in small numbers, since those with bodies are large.
STEP = 20


class StreamSource:
    """Reads on behalf of one group. What is settled is acknowledged; what is not, another consumer gets when this one is gone.

    Redis away: nothing new comes, what is in hand is delivered, and acknowledged once Redis is back.

    Attributes:
        away: whether Redis did not answer the last time.
    """

    def __init__(self, stream: EventStream, service: str) -> None:
        self._stream, self._service = stream, service
        self._group = stream.group_of(service)
        self.consumer = f"{socket.gethostname()}-{os.getpid()}-{secrets.token_hex(3)}"
        self.away = False
        self._stopping = False
        self._numbers = 0
        self._waiting: list[tuple[bytes, Item]] = []
        # Settled while Redis was away, or of no meaning to this group.
        self._done: list[bytes] = []
        self._lag = 0
        self._claim_from = b"0-0"
        self._claimed_at = -IDLE_SECONDS

    async def read(self, limit: int) -> list[Item]:
        """See `Source.read`. An event that is suspected of ending dispatchers comes alone."""
        await self._guarded(self._more(limit))
        items = [item for _, item in self._waiting[:limit]]
        if items and isinstance(items[0], Entry) and items[0].suspected:
            return items[:1]
        return items

    async def settle(self, count: int) -> None:
        """See `Source.settle`. Redis away, it is told later."""
        self._done += [id for id, _ in self._waiting[:count]]
        del self._waiting[:count]
        await self._guarded(self._acknowledge())

    def backlog(self) -> Backlog:
        """What is in hand, with what Redis says is to come; the bytes are those in hand."""
        size = sum(len(item.payload) for _, item in self._waiting if isinstance(item, Entry))
        return Backlog(len(self._waiting) + self._lag, size)

    def stop(self) -> None:
        """Take nothing new any more."""
        self._stopping = True

    async def hold(self) -> None:
        """Tell Redis again and again that this consumer lives, until cancelled."""
        while True:
            await self._guarded(self._hold())
            await asyncio.sleep(HOLD_SECONDS)

    async def close(self) -> None:
        """Give back what is in hand, for any other consumer to take at once."""
        self._stopping = True
        await self._guarded(self._give_back())

    async def _guarded(self, work: Any) -> None:
        try:
            await work
        except NoGroup:
            # The next reading makes it.
            return
        except StreamUnavailable as error:
            if not self.away:
                self.away = True
                log.warning("delivery to %s waits for Redis: %s", self._service, error)
        else:
            if self.away:
                self.away = False
                log.warning("delivery to %s: Redis is back", self._service)

    async def _more(self, limit: int) -> None:
        await self._acknowledge()
        if self._stopping:
            return
        try:
            await self._claim(limit)
            while (room := limit - len(self._waiting)) > 0 and self.backlog().bytes < LARGEST_BATCH:
                found = await self._stream.fetch(self._group, self.consumer, min(room, STEP))
                for id, fields in found:
                    self._take(id, fields, 1)
                if not found:
                    break
        except NoGroup:
            await self._stream.join(self._service)
        # Gaps that are none to this group.
        await self._acknowledge()

    async def _claim(self, limit: int) -> None:
        now = asyncio.get_running_loop().time()
        if now - self._claimed_at < HOLD_SECONDS or len(self._waiting) >= limit:
            return
        self._claimed_at, idle = now, int(IDLE_SECONDS * 1000)
        self._claim_from, found = await self._stream.claim(self._group, self.consumer, idle, self._claim_from, STEP)
        known = {id for id, _ in self._waiting}
        for id, fields, handed in found:
            if id not in known:
                self._take(id, fields, handed)

    def _take(self, id: bytes, fields: Fields, handed: int) -> None:
        item = self._item(fields, handed)
        if item is None:
            self._done.append(id)
        else:
            self._waiting.append((id, item))

    def _item(self, fields: Fields, handed: int) -> Item | None:
        if EVENT in fields:
            self._numbers += 1
            return Entry(self._numbers, fields[EVENT], handed)
        return gap_of(fields, self._group)

    async def _acknowledge(self) -> None:
        if self._done:
            ids = list(self._done)
            await self._stream.acknowledge(self._group, ids)
            del self._done[: len(ids)]

    async def _hold(self) -> None:
        if self._waiting:
            await self._stream.hold(self._group, self.consumer, [id for id, _ in self._waiting])
        for facts in await self._stream.groups():
            if facts["name"].decode() == self._group:
                self._lag = facts.get("lag") or 0
                await self._stream.forget(self._group, int(FORGET_SECONDS * 1000))

    async def _give_back(self) -> None:
        await self._acknowledge()
        if self._waiting:
            ids = [id for id, _ in self._waiting]
            await self._stream.give_back(self._group, self.consumer, ids, int(IDLE_SECONDS * 1000))
        await self._stream.forget(self._group, 0, self.consumer)


def gap_of(fields: Fields, group: str) -> StreamGap | None:
    """The gap that an entry tells of, None when nothing is missing to this group."""
    try:
        gap = orjson.loads(fields[b"gap"])
        count = int((gap.get("missing") or {}).get(group, gap["count"]))
        return StreamGap(str(gap["from"]), str(gap["to"]), count) if count else None
    except (LookupError, ValueError, TypeError, AttributeError):
        log.error("an entry of the stream is neither an event nor a gap, and is passed over")
        return None


class StreamLetters:
    """Dead letters, in a stream of their own for each sink."""

    def __init__(self, stream: EventStream, now: Callable[[], int] = now_ms) -> None:
        self._stream, self._now = stream, now

    async def add(self, sink: str, reason: str, **what: Any) -> None:
        """Return once Redis has it.

        Raises:
            OSError: it would not; the event must stay where it is.
        """
        await self._stream.add_letter(sink, {"at": to_rfc3339(self._now()), "sink": sink, "reason": reason, **what})

    async def read(self) -> AsyncGenerator[Letter, None]:
        """Those that are there now, of every sink, the oldest first.

        Raises:
            OSError: Redis does not say.
        """
        for service in SINKS:
            last, place = await self._stream.last_letter(service), b"0"
            while last and (found := await self._stream.letters(service, place, last)):
                for place, written in found:
                    if letter := letter_of(f"{service}-{place.decode()}", written):
                        yield letter

    async def remove(self, ids: Collection[str]) -> int:
        """Take letters away; how many they were.

        Raises:
            OSError: Redis would not; some may be gone.
        """
        named: dict[str, list[bytes]] = {}
        for service, _, place in (id.partition("-") for id in ids):
            named.setdefault(service, []).append(place.encode())
        return sum([await self._stream.remove_letters(service, places) for service, places in named.items()])
