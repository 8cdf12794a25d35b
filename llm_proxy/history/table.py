"""The table of usage, a row for each project, provider, model and minute, in SQL."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_proxy.clock import DAY_MS, MINUTE_MS
from llm_proxy.db import Connection, Database
from llm_proxy.history.figures import COLUMNS
from llm_proxy.history.pending import Key, Rows

DIMENSIONS = ("project_id", "provider", "model")

_KEY = ", ".join(Key._fields)
_ADD = (
    f"INSERT INTO usage_minutes ({_KEY}, {', '.join(COLUMNS)}) "
    f"VALUES ({', '.join(f':{name}' for name in (*Key._fields, *COLUMNS))}) "
    f"ON CONFLICT ({_KEY}) DO UPDATE SET {', '.join(f'{name} = usage_minutes.{name} + excluded.{name}' for name in COLUMNS)}"
)
_SUMS = ", ".join(f"SUM({name}) AS {name}" for name in COLUMNS)
# Each of the two is found in the index; asked for without these brackets, SQLite would read the whole table.
_EXTENT = "SELECT (SELECT MIN(minute) FROM usage_minutes) AS first, (SELECT MAX(minute) FROM usage_minutes) AS last"


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

    def slices(self, first: int, last: int) -> Iterator[tuple[int, int]]:
        """The time between them that is asked for, in days: no statement takes long, however much there is."""
        start = max(self.start - self.start % MINUTE_MS, first)
        end = min(self.end, last + 1)
        for begin in range(start, end, DAY_MS):
            yield begin, min(begin + DAY_MS, end)

    def group_of(self, key: Key) -> Group:
        """The group of a row."""
        moment = key.minute // self.step * self.step if self.step else 0
        return Group(moment, getattr(key, self.by) if self.by else "")

    def fits(self, key: Key, start: int, end: int) -> bool:
        """Whether a row is among those between `start` and `end` that are asked for."""
        return start <= key.minute < end and all(getattr(key, name) == value for name, value in self.filters.items())


async def insert(database: Database, rows: Sequence[tuple[Key, list[int]]]) -> None:
    """Add rows to those in the table, all of them or none."""
    await database.executemany(_ADD, [{**key._asdict(), **dict(zip(COLUMNS, values, strict=True))} for key, values in rows])


async def extent(connection: Connection) -> tuple[int, int] | None:
    """The first and the last minute of the table, None when it is empty."""
    row = await connection.fetch_one(_EXTENT)
    return (row["first"], row["last"]) if row and row["first"] is not None else None


async def select(connection: Connection, question: Question, start: int, end: int) -> list[tuple[Group, list[int]]]:
    """The sums by group, of the time from `start` to before `end`."""
    # Names of columns and the step are ours; what others chose goes in as parameters.
    moment = f"minute / {question.step} * {question.step}" if question.step else "0"
    conditions = "".join(f" AND {name} = :{name}" for name in question.filters)
    groups = ", ".join([*([question.by] if question.by else []), *([moment] if question.step else [])])
    rows = await connection.fetch_all(
        f"SELECT {question.by or repr('')} AS name, {moment} AS moment, {_SUMS} FROM usage_minutes "
        f"WHERE minute >= :start AND minute < :end{conditions}" + (f" GROUP BY {groups}" if groups else ""),
        {**question.filters, "start": start, "end": end},
    )
    # Without groups there is a row even where nothing was summed. PostgreSQL sums large integers to decimals.
    return [(Group(row["moment"], row["name"]), [int(row[name]) for name in COLUMNS]) for row in rows if row["calls"]]


async def delete_before(database: Database, minute: int, step: int) -> None:
    """Delete older rows, in pieces of `step` milliseconds: one statement over years would hold up everyone else's."""
    while (found := await extent(database)) and found[0] < minute:
        await database.execute("DELETE FROM usage_minutes WHERE minute < :before", {"before": min(found[0] + step, minute)})


def fitting(rows: Rows, question: Question, start: int, end: int) -> Iterable[tuple[Group, list[int]]]:
    """The same as `select` for rows in memory, one entry for each."""
    return [(question.group_of(key), values) for key, values in rows.items() if question.fits(key, start, end)]
