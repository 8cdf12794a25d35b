"""The bus that carries events inside the process."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from llm_proxy.events import Event

log = logging.getLogger(__name__)

Reader = Callable[[Event], None]


class Bus:
    """Hands every event to readers at once, and to subscribers through a queue of their own.

    Publishing is synchronous: an `await` in the `finally` of a cancelled call would be a second chance to lose the event.

    Args:
        size: how many events wait for a subscriber.
    """

    def __init__(self, size: int = 1000) -> None:
        self._size = size
        self._readers: list[Reader] = []
        self._queues: set[asyncio.Queue[Event]] = set()
        self.dropped = 0

    def read_by(self, reader: Reader) -> None:
        """Call `reader` with every event, inside `publish`; it must be quick."""
        self._readers.append(reader)

    def publish(self, event: Event) -> None:
        """Hand over an event; a reader that fails costs nobody else the event, and never the call."""
        for reader in self._readers:
            try:
                reader(event)
            except Exception:
                log.exception("a reader of the event bus failed on the event %s", event.id)
        for queue in self._queues:
            try:
                queue.put_nowait(event)
            except asyncio.QueueFull:
                self.dropped += 1

    @contextmanager
    def subscribed(self, size: int | None = None) -> Iterator["asyncio.Queue[Event]"]:
        """A queue of the events from now on; a subscriber that is too slow misses some, which `dropped` counts."""
        queue: asyncio.Queue[Event] = asyncio.Queue(size or self._size)
        self._queues.add(queue)
        try:
            yield queue
        finally:
            self._queues.discard(queue)
