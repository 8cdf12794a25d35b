"""The history of usage: what the calls of each minute amount to, written to the database from the event bus."""

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import NamedTuple

from llm_proxy.clock import DAY_MS, HOUR_MS, MINUTE_MS, now_ms
from llm_proxy.db import Database
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.events.bus import Bus
from llm_proxy.history import table
from llm_proxy.history.figures import COLUMNS, Figures, add
from llm_proxy.history.pending import OTHER, Key, Pending
from llm_proxy.history.table import DIMENSIONS, Group, Question, Slice
from llm_proxy.tasks import Tasks, to_the_end

log = logging.getLogger(__name__)

FLUSH_SECONDS = 2.0
BATCH = 500
RETENTION_SECONDS = 3600.0
CLOSE_SECONDS = 2.0
# Names that one answer tells apart; what more there are is counted under `other`.
MOST_NAMES = 10_000


class Span(NamedTuple):
    """A time up to now, in milliseconds, and the steps in which a chart shows it."""

    length: int
    step: int

    def moments(self, now: int) -> range:
        """When each step begins, oldest first; the last one has not ended."""
        end = (now // self.step + 1) * self.step
        return range(end - self.length, end, self.step)


# From a day on, steps of whole hours: what is summed by the hour is read in a sixtieth of the time.
SPANS = {
    "15m": Span(15 * MINUTE_MS, MINUTE_MS),
    "1h": Span(HOUR_MS, MINUTE_MS),
    "24h": Span(24 * HOUR_MS, HOUR_MS),
    "7d": Span(7 * DAY_MS, 6 * HOUR_MS),
    "30d": Span(30 * DAY_MS, DAY_MS),
}


@dataclass(frozen=True)
class Series:
    """Figures over time.

    Attributes:
        moments: when each step begins, oldest first.
        lines: by name, empty for none, the figures of each step.
    """

    moments: list[int]
    lines: dict[str, list[Figures]]


class History:
    """Counts calls as they end, writes the counts every two seconds, answers what they were.

    The database away: counts wait in memory within a bound, and calls above it are counted as lost; questions raise
    `DatabaseUnavailable`. A process that is killed loses what it has not written, at most the last two seconds and the time
    of a write. A write that ends with the connection may have come through, and is repeated all the same.

    Args:
        lost: told how many calls are lost.
        retention_days: 0 keeps everything.
        catch_up: has `count` called with the events that it lacks.
    """

    def __init__(
        self,
        database: Database,
        lost: Callable[[int], None],
        retention_days: int,
        catch_up: Callable[[], None] = lambda: None,
    ) -> None:
        self._database = database
        self._catch_up = catch_up
        self._pending = Pending(lost)
        self._retention_ms = retention_days * DAY_MS
        # While rows are on their way, nobody could say whether they are in the table yet.
        self._writing = asyncio.Lock()
        self.count = self._pending.add

    async def settle(self) -> None:
        """Write what waits.

        Raises:
            DatabaseUnavailable: what is not written waits on.
        """
        # Cut off in the middle, nobody would know what was written.
        await to_the_end(self._settle(), lambda _: None)

    async def _settle(self) -> None:
        async with self._writing:
            self._catch_up()
            rows = list(self._pending.take().items())
            try:
                while rows:
                    await self._insert(rows[:BATCH])
                    del rows[:BATCH]
            finally:
                self._pending.settle(dict(rows))

    async def _insert(self, rows: list[tuple[Key, list[int]]]) -> None:
        try:
            await table.insert(self._database, rows)
        except DatabaseUnavailable:
            raise
        except Exception:
            # What no database takes must not keep everything else out.
            log.exception("usage of %d minutes cannot be stored", len(rows))
            self._pending.lose(values for _, values in rows)

    async def flush(self) -> None:
        """Write what waits every two seconds; runs until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.settle()
            except DatabaseUnavailable:
                log.warning("usage waits in memory: the database does not answer")

    async def expire(self) -> None:
        """Delete what is older than the retention; runs until cancelled."""
        while self._retention_ms:
            try:
                oldest = (now_ms() - self._retention_ms) // HOUR_MS * HOUR_MS
                await table.delete_before(self._database, oldest, HOUR_MS)
            except DatabaseUnavailable:
                log.warning("old usage waits for the database to be deleted")
            await asyncio.sleep(RETENTION_SECONDS)

    async def close(self) -> None:
        """Write what still waits, as far as that is possible within two seconds."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self.settle()
        except (TimeoutError, DatabaseUnavailable):
            log.error("usage since the last flush is lost: the database does not answer")

    async def read(self, question: Question) -> dict[Group, Figures]:
        """The figures of each group that has calls, what this process has not written yet included."""
        sums: dict[Group, list[int]] = {}
        names: set[str] = set()
        for part in await self._slices(question):
            async with self._writing:
                found = await table.select(self._database, question, part)
                found += table.fitting(self._pending.rows(), question, part)
            _merge(sums, names, found)
        return {group: Figures.of(values) for group, values in sums.items()}

    async def _slices(self, question: Question) -> Iterable[Slice]:
        self._catch_up()
        async with self._writing:
            written = await table.extent(self._database)
            minutes = [*(written or ()), *(key.began for key in self._pending.rows())]
        return question.slices(min(minutes), max(minutes)) if minutes else ()

    async def totals(self, span: Span, by: str | None = None, filters: Mapping[str, str] | None = None) -> dict[str, Figures]:
        """The figures of a time up to now, by the names of a dimension; without one, under the empty name.

        The time begins where the first step of `series` does, so that what a chart shows adds up to these.
        """
        moments = span.moments(now_ms())
        found = await self.read(Question(moments.start, moments.stop, by, filters=filters or {}))
        return {group.name: figures for group, figures in found.items()} or ({} if by else {"": Figures()})

    async def totals_by_every(self, span: Span) -> dict[str, dict[str, Figures]]:
        """The same for each dimension, by the names of it; the rows are read once for all of them."""
        moments = span.moments(now_ms())
        question = Question(moments.start, moments.stop)
        sums: dict[str, dict[Group, list[int]]] = {by: {} for by in DIMENSIONS}
        names: dict[str, set[str]] = {by: set() for by in DIMENSIONS}
        for part in await self._slices(question):
            async with self._writing:
                found = await table.select_by_every(self._database, question, part)
                found += [(key, values) for key, values in self._pending.rows().items() if question.fits(key, part)]
            for by in DIMENSIONS:
                _merge(sums[by], names[by], ((Group(0, getattr(key, by)), values) for key, values in found))
        return {by: {group.name: Figures.of(values) for group, values in sums[by].items()} for by in DIMENSIONS}

    async def series(self, span: Span, by: str | None = None, filters: Mapping[str, str] | None = None) -> Series:
        """The figures of a time up to now in steps, the last of which has not ended, by the names of a dimension."""
        moments = span.moments(now_ms())
        found = await self.read(Question(moments.start, moments.stop, by, span.step, filters or {}))
        names = sorted({group.name for group in found}) if by else [""]
        none = Figures()
        return Series(list(moments), {name: [found.get(Group(moment, name), none) for moment in moments] for name in names})


def _merge(sums: dict[Group, list[int]], names: set[str], found: Iterable[tuple[Group, list[int]]]) -> None:
    for group, values in found:
        if group.name not in names and len(names) >= MOST_NAMES:
            group = group._replace(name=OTHER)
        names.add(group.name)
        add(sums.setdefault(group, [0] * len(COLUMNS)), values)


@asynccontextmanager
async def open_history(database: Database, bus: Bus, lost: Callable[[int], None], retention_days: int) -> AsyncIterator[History]:
    """Count the calls of the bus while the block runs, write the rest at its end."""
    history, tasks = History(database, lost, retention_days, bus.catch_up), Tasks()
    bus.read_late_by(history.count)
    tasks.start("usage history", history.flush())
    tasks.start("retention of the usage history", history.expire())
    try:
        yield history
    finally:
        await tasks.close()
        await history.close()
