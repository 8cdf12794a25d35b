"""Reading logs of events from outside, without disturbing the process that writes them."""

import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from llm_proxy.clock import from_rfc3339
from llm_proxy.errors import InvalidField
from llm_proxy.events.cursors import Cursor
from llm_proxy.events.dead_letters import FILE
from llm_proxy.events.disk import Disk
from llm_proxy.events.dispatcher import document_of
from llm_proxy.events.instances import LOCK
from llm_proxy.events.reading import Entry
from llm_proxy.events.segments import path_of, records_of


@dataclass(frozen=True)
class Place:
    """How far a log has been read: a segment's number, with the offset behind the last record."""

    ordinal: int = 0
    offset: int = 0


@dataclass(frozen=True)
class Summary:
    """What stands in one log.

    Attributes:
        first: the sequence of the oldest event, 0 when there is none.
        positions: the last event that each sink is done with, by the sink.
        dead_letters: how many events were set aside.
    """

    instance: str
    first: int
    last: int
    bytes: int
    positions: dict[str, int]
    dead_letters: int


def logs(root: pathlib.Path) -> list[pathlib.Path]:
    """The folders of instances."""
    return sorted(folder for folder in root.iterdir() if (folder / LOCK).exists()) if root.is_dir() else []


def entries(folder: pathlib.Path, place: Place | None = None) -> Iterator[tuple[Entry, Place]]:
    """The sound events of a log from a place on, each with the place behind it; of a damaged segment those before the damage."""
    disk, place = Disk(), place or Place()
    for ordinal in _ordinals(folder):
        if ordinal < place.ordinal:
            continue
        path, offset = path_of(folder, ordinal), place.offset if ordinal == place.ordinal else 0
        try:
            for record in records_of(disk, path, offset, disk.size(path)):
                yield Entry(record.sequence, record.payload), Place(ordinal, record.end)
        except FileNotFoundError:
            # Every sink has it, and the server removed it just now.
            continue


def _ordinals(folder: pathlib.Path) -> list[int]:
    return sorted(int(path.stem) for path in folder.glob("*.seg") if path.stem.isdecimal())


def documents(folder: pathlib.Path, place: Place | None = None) -> Iterator[tuple[dict[str, Any], Place]]:
    """The events of a log as sinks get them; what is none is passed over."""
    for entry, after in entries(folder, place):
        try:
            yield document_of(entry.payload), after
        except (ValueError, InvalidField):
            continue


def between(folder: pathlib.Path, since: int, until: int) -> Iterator[Entry]:
    """The events of calls that began in a range of time, in milliseconds; `until` is no part of it."""
    for entry, _ in entries(folder):
        try:
            began = from_rfc3339("started_at", document_of(entry.payload)["started_at"])
        except (ValueError, InvalidField):
            continue
        if since <= began < until:
            yield entry


def summary(folder: pathlib.Path) -> Summary:
    """What stands in one log, read to its end."""
    first = last = 0
    for entry, _ in entries(folder):
        first, last = first or entry.sequence, entry.sequence
    positions = {}
    for path in sorted(folder.glob("*.cursor")):
        cursor = Cursor(Disk(), folder, path.stem)
        cursor.load()
        positions[cursor.sink] = cursor.position
    # All may be delivered and gone; the numbers go on all the same.
    last = max([last, *positions.values()])
    size = sum(path.stat().st_size for path in folder.glob("*.seg"))
    found = (folder / FILE).read_bytes().count(b"\n") if (folder / FILE).exists() else 0
    return Summary(folder.name, first, last, size, positions, found)
