"""Delivering events once more: those of the logs, or those that were set aside."""

import asyncio
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Protocol

import aiohttp
import orjson

from llm_proxy.events.dead_letters import Letter
from llm_proxy.events.dispatcher import Dispatcher, Letters, Source, Stats
from llm_proxy.events.reading import LARGEST_BATCH, Backlog, Entry, Item
from llm_proxy.events.sinks import SINKS, options_of
from llm_proxy.settings import Settings


class Box(Letters, Protocol):
    """Where dead letters are kept."""

    def read(self) -> AsyncIterator[Letter]:
        """Those that are there when it begins, the oldest first. An `OSError` passes."""

    async def remove(self, ids: Collection[str]) -> int:
        """Take letters away; how many they were. An `OSError` passes."""


class Replayed(Source, Protocol):
    """What is delivered once more."""

    async def close(self, ahead: Collection[int]) -> None:
        """The end. Those of these sequences are done with too, though one before them is not."""


class Replay:
    """Events from anywhere as a dispatcher's source; they are numbered anew."""

    def __init__(self, found: Iterator[Entry]) -> None:
        self._found = (Entry(number, entry.payload) for number, entry in enumerate(found, 1))
        self._waiting: list[Entry] = []

    async def read(self, limit: int) -> list[Item]:
        """See `Source.read`."""
        size = sum(len(entry.payload) for entry in self._waiting)
        while len(self._waiting) < limit and size < LARGEST_BATCH and (entry := next(self._found, None)):
            self._waiting.append(entry)
            size += len(entry.payload)
        return list(self._waiting[:limit])

    async def settle(self, count: int) -> None:
        """See `Source.settle`."""
        del self._waiting[:count]

    def backlog(self) -> Backlog:
        """What was read and not taken."""
        return Backlog(len(self._waiting), sum(len(entry.payload) for entry in self._waiting))

    async def close(self, ahead: Collection[int]) -> None:
        """The log keeps what it has."""


class LetterReplay:
    """Dead letters as a dispatcher's source. What is done with leaves its box, at the end; until then a crash leaves it there.

    Args:
        ends: when, by the loop's clock, nothing more is begun.

    Attributes:
        is_cut: whether some were not begun for that reason, or because their box cannot be read.
    """

    def __init__(self, box: Box, found: AsyncIterator[Letter], ends: float) -> None:
        self._box, self._found, self._ends = box, found, ends
        self._number = 0
        self._waiting: list[tuple[str, Entry]] = []
        self._done: set[str] = set()
        self.is_cut = False

    async def read(self, limit: int) -> list[Item]:
        """See `Source.read`."""
        size = self.backlog().bytes
        while len(self._waiting) < limit and size < LARGEST_BATCH and (letter := await self._next()):
            self._number += 1
            entry = Entry(self._number, orjson.dumps(letter.event))
            self._waiting.append((letter.id, entry))
            size += len(entry.payload)
        return [entry for _, entry in self._waiting[:limit]]

    async def _next(self) -> Letter | None:
        try:
            letter = await anext(self._found, None)
        except OSError:
            self.is_cut = True
            raise
        self.is_cut |= letter is not None and asyncio.get_running_loop().time() > self._ends
        return None if self.is_cut else letter

    async def settle(self, count: int) -> None:
        """See `Source.settle`."""
        self._done.update(id for id, _ in self._waiting[:count])
        del self._waiting[:count]

    def backlog(self) -> Backlog:
        """What was read and not taken."""
        return Backlog(len(self._waiting), sum(len(entry.payload) for _, entry in self._waiting))

    async def close(self, ahead: Collection[int]) -> None:
        """See `Replayed.close`."""
        self._done.update(id for id, entry in self._waiting if entry.sequence in ahead)
        await self._box.remove(self._done)


async def replay(settings: Settings, sink: str, source: Replayed, letters: Letters) -> Stats:
    """Hand events to a sink, in order, up to the first that it cannot take now; those that it never will are set aside."""
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        opened = SINKS[sink](options_of(settings), session)
        dispatcher = Dispatcher(sink, opened, source, letters, batch_size=settings.dispatcher_batch_size)
        try:
            # Told to stop beforehand, it ends where it would have to wait.
            dispatcher.stop()
            await dispatcher.run()
        finally:
            await opened.close()
            await source.close(dispatcher.ahead)
    return dispatcher.stats
