"""Reading the log on behalf of one sink."""

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass

from llm_proxy.events.records import Record
from llm_proxy.events.segments import Segment, records_of
from llm_proxy.events.spool import Spool

# An event that so many dispatchers had when they ended may be the cause of it.
FEW_ENDS = 3
# A batch is read into memory; events with bodies are large.
LARGEST_BATCH = 4 * 1024 * 1024
# So many items are read at once for the batches to come, and so often the place of a sink is written down meanwhile: a thread and
# the disk cost more than the events of a batch.
READ_AHEAD = 1000
SAVE_SECONDS = 0.1


@dataclass(slots=True)
class Entry:
    """One event of the log.

    Attributes:
        handed: to how many dispatchers it was given, each of which ended before it said what became of the event.
    """

    sequence: int
    payload: bytes
    handed: int = 1

    @property
    def suspected(self) -> bool:
        """Whether it should be delivered alone, so that it takes no others with it."""
        return self.handed > FEW_ENDS


@dataclass(frozen=True, slots=True)
class Gap:
    """Events that are gone: dropped by the backlog's cap, or taken by a power loss or damage.

    Attributes:
        first: the sequence of the first of them.
        last: that of the last.
    """

    first: int
    last: int

    @property
    def count(self) -> int:
        """How many they are."""
        return self.last - self.first + 1


@dataclass(frozen=True, slots=True)
class StreamGap:
    """Events that are gone from the stream in Redis.

    Attributes:
        first: where the first of them was, an id of the stream or a sequence of the log that they came from.
        last: likewise the last.
        count: how many of those between were still to be delivered.
    """

    first: str
    last: str
    count: int


Item = Entry | Gap | StreamGap


@dataclass(frozen=True, slots=True)
class Backlog:
    """What a sink has yet to get."""

    count: int
    bytes: int


class Ahead:
    """A place in the log before which not everything is done with, and which therefore is kept nowhere."""

    def __init__(self, position: int) -> None:
        self.position = position

    def advance(self, position: int) -> None:
        """See `Cursor.advance`."""
        self.position = max(self.position, position)

    def save(self) -> bool:
        """See `Cursor.save`."""
        return True


class Reader:
    """The log from a sink's cursor on. Reading moves nothing; `settle` does.

    Args:
        ahead: read from there instead.
    """

    def __init__(self, spool: Spool, sink: str, ahead: Ahead | None = None) -> None:
        self._spool = spool
        self._cursor = ahead or spool.cursors[sink]
        # Where the cursor stands, as segment and offset, once known: the log need not be searched for it then.
        self._place = (0, 0)
        self._read: list[tuple[int, tuple[int, int]]] = []

    def read(self, limit: int) -> list[Item]:
        """What comes next, in order, with what is missing between; the same again until it is settled.

        Raises:
            OSError: the log cannot be read now.
        """
        items: list[Item] = []
        self._read = []
        after, upto, taken = self._cursor.position, self._spool.last, 0
        for segment, record in self._from_cursor(upto):
            if record.sequence <= after:
                continue
            place = (segment.ordinal, record.end)
            if record.sequence > after + 1:
                items.append(Gap(after + 1, record.sequence - 1))
                self._read.append((record.sequence - 1, self._place))
            after, taken = record.sequence, taken + len(record.payload)
            items.append(Entry(after, record.payload))
            self._read.append((after, place))
            if len(items) >= limit or taken >= LARGEST_BATCH:
                return items
        if after < upto:
            items.append(Gap(after + 1, upto))
            self._read.append((upto, self._place))
        return items

    def _from_cursor(self, upto: int) -> Iterator[tuple[Segment, Record]]:
        """The records from near the cursor on, passing over damage."""
        segments, position = self._spool.segments(), self._cursor.position
        for index, segment in enumerate(segments):
            following = next((later.first for later in segments[index + 1 :] if later.first), 0)
            if segment.ordinal < self._place[0] or 0 < following <= position + 1:
                continue
            sound, size = self._place[1] if segment.ordinal == self._place[0] else 0, segment.size
            try:
                for record in records_of(self._spool.disk, segment.path, sound, size):
                    if record.sequence > upto:
                        return
                    sound = record.end
                    yield segment, record
            except FileNotFoundError:
                # The cap took it away just now.
                continue
            if sound < size:
                self._spool.report_damage(segment, sound)

    def settle(self, count: int) -> None:
        """The sink is done with the first `count` items of the last reading."""
        sequence, self._place = self._read[count - 1]
        self._read = self._read[count:]
        self._cursor.advance(sequence)

    def save(self) -> bool:
        """Write down what is settled; False when the disk would not.

        Nothing is lost then: the log keeps the events, and after a crash the sink gets some of them again.
        """
        return self._cursor.save()

    def backlog(self) -> Backlog:
        """What is left, the bytes with the frames around the events."""
        position, size = self._cursor.position, 0
        for index, segment in enumerate(self._spool.segments()):
            if segment.ordinal == self._place[0]:
                size += max(segment.size - self._place[1], 0)
            elif self._spool.end_of(index) > position:
                size += segment.size
        count = max(self._spool.last - position, 0)
        return Backlog(count, size if count else 0)


class SpoolSource:
    """The log as a dispatcher's source; the disk is read and written in threads."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader
        # What was read and is not settled.
        self._ahead: list[Item] = []
        self._at_end = True
        self._saved_at = 0.0
        self._unsaved = False

    async def read(self, limit: int) -> list[Item]:
        """What comes next for the sink."""
        if len(self._ahead) < limit:
            self._ahead = await asyncio.to_thread(self._read, max(limit, READ_AHEAD))
        return self._ahead[:limit]

    def _read(self, limit: int) -> list[Item]:
        items = self._reader.read(limit)
        self._at_end = len(items) < limit
        if not items and self._unsaved:
            self._save()
        return items

    async def settle(self, count: int) -> None:
        """The first items are done with. A disk that will not note it is tried again at the next.

        While many follow each other, it is noted ten times a second: after a crash the sink gets again what came since.
        """
        self._reader.settle(count)
        del self._ahead[:count]
        self._unsaved = True
        if (self._at_end and not self._ahead) or time.monotonic() - self._saved_at >= SAVE_SECONDS:
            await asyncio.to_thread(self._save)

    def _save(self) -> None:
        self._saved_at = time.monotonic()
        self._unsaved = not self._reader.save()

    def backlog(self) -> Backlog:
        """What is left for the sink."""
        return self._reader.backlog()
