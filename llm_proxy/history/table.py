"""The tables of usage in SQL, a row for each project, provider, model and minute or hour."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_proxy.clock import DAY_MS, HOUR_MS, MINUTE_MS
from llm_proxy.db import Connection, Database, Row
from llm_proxy.history.figures import COLUMNS, add
from llm_proxy.history.pending import Key, Rows

DIMENSIONS = ("project_id", "provider", "model")

MINUTES, HOURS = "usage_minutes", "usage_hours"

_KEY = ", ".join(Key._fields)
_SUMS = ", ".join(f"SUM({name}) AS {name}" for name in COLUMNS)
# Each of the two is found in the index; asked for without these brackets, SQLite would read the whole table.
_EXTENT = f"SELECT (SELECT MIN(began) FROM {MINUTES}) AS first, (SELECT MAX(began) FROM {MINUTES}) AS last"


def _adding(table: str) -> str:
    values = ", ".join(f":{name}" for name in (*Key._fields, *COLUMNS))
    sums = ", ".join(f"{name} = {table}.{name} + excluded.{name}" for name in COLUMNS)
    return f"INSERT INTO {table} ({_KEY}, {', '.join(COLUMNS)}) VALUES ({values}) ON CONFLICT ({_KEY}) DO UPDATE SET {sums}"


class Slice(NamedTuple):
    """A time from `start` to before `end`, and the table in which it is summed."""

    table: str
    start: int
    end: int


class Group(NamedTuple):
    """Which group a sum is of: the beginning of its step, 0 without steps; the name, empty for none."""

    moment: int
    name: str


@dataclass(frozen=True)
class Question:
    """Which calls are summed, how they are grouped.

    Attributes:
        start: milliseconds; the minute that it falls into is included.
        end: milliseconds; a minute that begins before it is included.
        by: one of `DIMENSIONS`, None for one group.
        step: milliseconds of UTC by which groups are told apart, None for all time as one.
        filters: a value for any of `DIMENSIONS`.
    """

    start: int
    end: int
    by: str | None = None
    step: int | None = None
    filters: Mapping[str, str] = field(default_factory=dict)

    def slices(self, first: int, last: int) -> Iterator[Slice]:
        """The time between these minutes that is asked for, in parts of a day or a month: no statement takes long.

        Whole hours are read from the table of hours, unless smaller steps are asked for.
        """
        start = max(self.start - self.start % MINUTE_MS, first)
        end = max(start, min(self.end, last + MINUTE_MS))
        if self.step and self.step < HOUR_MS:
            yield from _parts(MINUTES, start, end, DAY_MS)
            return
        begin = min(end, _ceil(start))
        # The hour of the last minute is whole too, if all of it is asked for.
        stop = min(_ceil(end), self.end // HOUR_MS * HOUR_MS) if begin < end else begin
        yield from _parts(MINUTES, start, begin, HOUR_MS)
        yield from _parts(HOURS, begin, stop, 30 * DAY_MS)
        yield from _parts(MINUTES, max(begin, stop), end, HOUR_MS)

    def group_of(self, key: Key) -> Group:
        """The group of a row."""
        moment = key.began // self.step * self.step if self.step else 0
        return Group(moment, getattr(key, self.by) if self.by else "")

    def fits(self, key: Key, part: Slice) -> bool:
        """Whether a row is among those of a slice that are asked for."""
        return part.start <= key.began < part.end and all(getattr(key, name) == value for name, value in self.filters.items())


def _ceil(moment: int) -> int:
    return -(-moment // HOUR_MS) * HOUR_MS


def _parts(table: str, start: int, end: int, length: int) -> Iterator[Slice]:
    for begin in range(start, end, length):
        yield Slice(table, begin, min(begin + length, end))


async def insert(database: Database, rows: Sequence[tuple[Key, list[int]]]) -> None:
    """Add rows of minutes to those in the tables, all of them or none; in order, lest two processes wait for each other."""
    hours: dict[Key, list[int]] = {}
    for key, values in rows:
        add(hours.setdefault(key._replace(began=key.began // HOUR_MS * HOUR_MS), [0] * len(COLUMNS)), values)
    async with database.transaction() as tx:
        for table, added in ((MINUTES, rows), (HOURS, list(hours.items()))):
            given = [{**key._asdict(), **dict(zip(COLUMNS, values, strict=True))} for key, values in sorted(added)]
            await tx.executemany(_adding(table), given)


async def extent(connection: Connection) -> tuple[int, int] | None:
    """The first and the last minute of the table, None when it is empty."""
    row = await connection.fetch_one(_EXTENT)
    return (row["first"], row["last"]) if row and row["first"] is not None else None


async def select(connection: Connection, question: Question, part: Slice) -> list[tuple[Group, list[int]]]:
    """The sums of a slice by group."""
    # Names of tables and columns and the step are ours; what others chose goes in as parameters.
    moment = f"began / {question.step} * {question.step}" if question.step else "0"
    groups = ", ".join([*([question.by] if question.by else []), *([moment] if question.step else [])])
    rows = await _sums(connection, f"{question.by or repr('')} AS name, {moment} AS moment", groups, question, part)
    return [(Group(row["moment"], row["name"]), values) for row, values in rows]


async def select_by_every(connection: Connection, question: Question, part: Slice) -> list[tuple[Key, list[int]]]:
    """The sums of a slice by all of `DIMENSIONS` together, for all its time."""
    columns = ", ".join(DIMENSIONS)
    rows = await _sums(connection, columns, columns, question, part)
    return [(Key(part.start, *(row[name] for name in DIMENSIONS)), values) for row, values in rows]


async def _sums(
    connection: Connection, columns: str, groups: str, question: Question, part: Slice
) -> list[tuple[Row, list[int]]]:
    conditions = "".join(f" AND {name} = :{name}" for name in question.filters)
    rows = await connection.fetch_all(
        f"SELECT {columns}, {_SUMS} FROM {part.table} WHERE began >= :start AND began < :end{conditions}"
        + (f" GROUP BY {groups}" if groups else ""),
        {**question.filters, "start": part.start, "end": part.end},
    )
    # Without groups there is a row even where nothing was summed. PostgreSQL sums large integers to decimals.
    return [(row, [int(row[name]) for name in COLUMNS]) for row in rows if row["calls"]]


async def delete_before(database: Database, hour: int, step: int) -> None:
    """Delete older rows, in pieces of `step` milliseconds: one statement over years would hold up everyone else's.

    Args:
        hour: where an hour begins, since both tables must go on to agree.
    """
    while (found := await extent(database)) and found[0] < hour:
        before = {"before": min((found[0] // HOUR_MS) * HOUR_MS + step, hour)}
        async with database.transaction() as tx:
            for table in (MINUTES, HOURS):
                await tx.execute(f"DELETE FROM {table} WHERE began < :before", before)


def fitting(rows: Rows, question: Question, part: Slice) -> Iterable[tuple[Group, list[int]]]:
    """The same as `select` for rows of minutes in memory, one entry for each."""
    return [(question.group_of(key), values) for key, values in rows.items() if question.fits(key, part)]
