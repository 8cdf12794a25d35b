"""Delivering events of the logs once more."""

import pathlib
from collections.abc import Iterator

import aiohttp

from llm_proxy.events.dead_letters import FILE, DeadLetters
from llm_proxy.events.dispatcher import Dispatcher, Stats
from llm_proxy.events.reading import LARGEST_BATCH, Backlog, Entry, Item
from llm_proxy.events.sinks import SINKS, options_of
from llm_proxy.settings import Settings


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


async def replay(settings: Settings, sink: str, found: Iterator[Entry]) -> Stats:
    """Hand events to a sink, in order, up to the first that it cannot take now; those that it never will are set aside."""
    root = pathlib.Path(settings.event_dir)
    async with aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()) as session:
        opened = SINKS[sink](options_of(settings), session)
        dispatcher = Dispatcher(sink, opened, Replay(found), DeadLetters(root / FILE), batch_size=settings.dispatcher_batch_size)
        try:
            # Told to stop beforehand, it ends where it would have to wait.
            dispatcher.stop()
            await dispatcher.run()
        finally:
            await opened.close()
    return dispatcher.stats
