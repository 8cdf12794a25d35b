"""Shipment of one instance's log to the stream in Redis."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Callable
from dataclasses import astuple, dataclass
from typing import Any

import orjson

from llm_proxy.clock import from_rfc3339, now_ms
from llm_proxy.errors import InvalidField
from llm_proxy.events.disk import Path
from llm_proxy.events.dispatcher import Pause, Stats, document_of, pause
from llm_proxy.events.reading import Ahead, Entry, Item, Reader, StreamGap
from llm_proxy.events.spool import Spool
from llm_proxy.events.stream import EVENT, GAP, EventStream, Id

log = logging.getLogger(__name__)

# Its cursor, and its name among the sinks.
NAME = "redis"
BATCH_SIZE = 100
# How long an event may wait for the next look at the log: what a task loses whose disk goes with it.
SHIP_SECONDS = 0.1
# So often the stream is trimmed, and looked at whether it still holds what is in it.
TRIM_SECONDS = 1.0
# Redis away is tried again after this, so that it is in use again within a second of its return.
RETRY_SECONDS = 0.5
# More marks than these are thinned out.
MOST_MARKS = 10_000


@dataclass(frozen=True)
class Mark:
    """What is shipped up to where: an id of the stream in its epoch, a sequence of the log."""

    epoch: str
    id: Id
    sequence: int


class Shipper:
    """Adds the events of a log to the stream, in order, at least once; looks after the stream.

    Redis may lose what it holds. Therefore the log keeps an event until every group of consumers has acknowledged it, and what
    was not yet acknowledged is shipped again when the stream turns out to be another one. The cursor stands where nothing is
    left to acknowledge; a file beside it says how far the shipment is, so that a restart ships nothing twice.

    Args:
        cap: how many bytes the stream may take; above it the oldest events go, and a gap says so.
        pause: waits for a number of seconds, or until the event given is set.
        now: milliseconds since the epoch.
    """

    name = NAME

    def __init__(
        self,
        spool: Spool,
        stream: EventStream,
        *,
        cap: int,
        batch_size: int = BATCH_SIZE,
        pause: Pause = pause,
        now: Callable[[], int] = now_ms,
    ) -> None:
        self._spool, self._stream, self._cap, self._batch_size = spool, stream, cap, batch_size
        self._pause, self._now = pause, now
        self._path: Path = spool.folder / f"{NAME}.mark"
        self._cursor = spool.cursors[NAME]
        self._stats = Stats()
        self._stopping = asyncio.Event()
        self._epoch = ""
        self._place = Ahead(0)
        self._reader = Reader(spool, NAME, self._place)
        # What is shipped and not known to be acknowledged.
        self._marks: deque[Mark] = deque()
        self._oldest: int | None = None
        self._away = False
        self._trimmed_at = 0

    @property
    def stats(self) -> Stats:
        """How the shipment is doing; the backlog is what is not in the stream."""
        return self._stats.with_backlog(self._reader.backlog(), self._oldest, self._now())

    def stop(self) -> None:
        """Ship what can be shipped, then end."""
        self._stopping.set()

    async def run(self) -> None:
        """Ship until told to stop, and then what is left, if Redis takes it at once."""
        await asyncio.to_thread(self._load)
        with contextlib.suppress(OSError):
            if warning := await self._stream.eviction_warning():
                log.warning("%s", warning)
        while True:
            seconds = await self._step()
            if seconds and self._stopping.is_set():
                # What went since it was last written down would be shipped again by the next process.
                await asyncio.to_thread(self._save)
                return
            if seconds:
                await self._pause(self._stopping, seconds)

    async def _step(self) -> float:
        """Ship a batch; the seconds to wait before the next."""
        items: list[Item] = []
        try:
            if self._spool.last > self._place.position:
                items = await asyncio.to_thread(self._reader.read, self._batch_size)
            if items:
                await self._ship(items)
            else:
                self._oldest = None
            if self._marks and abs(self._now() - self._trimmed_at) >= TRIM_SECONDS * 1000:
                await self._trim()
        except OSError as error:
            self._failed(items, error)
            return RETRY_SECONDS
        if self._away:
            self._away = False
            log.warning("events go to Redis again")
        return 0.0 if len(items) >= self._batch_size else SHIP_SECONDS

    def _failed(self, items: list[Item], error: OSError) -> None:
        self._stats.failed += sum(isinstance(item, Entry) for item in items)
        self._stats.last_error = str(error)
        self._oldest = next((began for item in items if isinstance(item, Entry) and (began := _began(item))), self._oldest)
        if not self._away:
            self._away = True
            log.warning("events wait on the disk: Redis does not take them: %s", error)

    async def _ship(self, items: list[Item]) -> None:
        last = items[-1]
        assert not isinstance(last, StreamGap)
        sequence = last.sequence if isinstance(last, Entry) else last.last
        epoch, id = await self._stream.add(self._epoch, [_record(item) for item in items])
        if id is None:
            return self._begin_anew(epoch)
        self._reader.settle(len(items))
        self._marks.append(Mark(epoch, id, sequence))
        self._count(items)
        if len(self._marks) > MOST_MARKS:
            self._marks = deque(list(self._marks)[1::2])
        return None

    def _count(self, items: list[Item]) -> None:
        for item in items:
            if isinstance(item, Entry):
                self._stats.delivered += 1
            else:
                self._stats.dropped += item.count
                log.error("%d events never reach Redis: %s to %s are gone", item.count, item.first, item.last)

    def _begin_anew(self, epoch: str) -> None:
        """The stream is another one: what was not acknowledged in the one before is not in it."""
        if self._marks:
            again = self._place.position - self._cursor.position
            log.warning("the stream in Redis is a new one; up to %d events are shipped again", again)
        self._epoch, self._trimmed_at = epoch, 0
        self._marks.clear()
        self._place = Ahead(self._cursor.position)
        self._reader = Reader(self._spool, NAME, self._place)

    async def _trim(self) -> None:
        more = True
        while more:
            epoch, floor, more = await self._stream.trim(self._cap)
            if epoch != self._epoch:
                return self._begin_anew(epoch)
            while self._marks and self._marks[0].id < floor:
                self._cursor.advance(self._marks.popleft().sequence)
        self._trimmed_at = self._now()
        await asyncio.to_thread(self._save)
        return None

    def _save(self) -> None:
        """Write down how far it is; what the disk does not take is shipped again after a crash."""
        self._cursor.save()
        if self._marks:
            beside = self._path.with_suffix(".tmp")
            with contextlib.suppress(OSError):
                beside.write_bytes(orjson.dumps(astuple(self._marks[-1])))
                beside.replace(self._path)

    def _load(self) -> None:
        """Find out where the process before was. A power loss may have taken events that it shipped, whose numbers others get."""
        self._place.position = self._cursor.position
        try:
            epoch, id, sequence = orjson.loads(self._path.read_bytes())
            mark = Mark(str(epoch), (int(id[0]), int(id[1])), int(sequence))
        except (OSError, ValueError, TypeError, LookupError):
            return
        if not self._cursor.position < mark.sequence <= self._spool.last:
            with contextlib.suppress(OSError):
                self._path.unlink()
            return
        self._epoch, self._place.position = mark.epoch, mark.sequence
        self._marks.append(mark)


def _record(item: Item) -> tuple[bytes, bytes]:
    """What stands in the stream for it."""
    if isinstance(item, Entry):
        return EVENT, item.payload
    return GAP, orjson.dumps({"from": str(item.first), "to": str(item.last), "count": item.count})


def _began(entry: Entry) -> int | None:
    """When the call of an event began, None where that is no event."""
    try:
        document: dict[str, Any] = document_of(entry.payload)
        return from_rfc3339("started_at", document["started_at"])
    except (ValueError, InvalidField):
        return None
