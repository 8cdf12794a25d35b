"""The files of the log: reading what is sound in them, setting aside what is not."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field

from llm_proxy.events.disk import Disk, Path
from llm_proxy.events.records import Record, claimed_size, decode

CHUNK = 1024 * 1024


@dataclass(slots=True)
class Segment:
    """One file of the log.

    Attributes:
        first: the sequence of its first record, 0 while it has none.
        size: how many of its bytes are records.
    """

    ordinal: int
    path: Path
    first: int = 0
    size: int = 0


@dataclass
class Recovered:
    """What stands in a folder.

    Attributes:
        last: the sequence of the last record, 0 when there is none.
        ordinal: the number for the next segment, above all that are or were set aside here.
        damage: where the sound part of a segment ends, by the segment's number.
    """

    segments: list[Segment] = field(default_factory=list)
    last: int = 0
    ordinal: int = 1
    damage: dict[int, int] = field(default_factory=dict)


def path_of(folder: Path, ordinal: int) -> Path:
    """Where the segment of that number is."""
    return folder / f"{ordinal:08d}.seg"


def records_of(disk: Disk, path: Path, offset: int, end: int) -> Iterator[Record]:
    """The sound records between two offsets, each with the offset behind it; it stops at the first that is damaged.

    Raises:
        OSError: the file cannot be read.
    """
    previous = 0
    size = CHUNK
    while offset < end:
        data = disk.read(path, offset, min(size, end - offset))
        used = 0
        for record in decode(data, previous, offset):
            previous, used = record.sequence, record.end - offset
            yield record
        offset += used
        # A record that is larger than a chunk is read by itself.
        claimed = CHUNK if used else claimed_size(data)
        if not used and not size < claimed <= end - offset:
            return
        size = claimed


def recover(disk: Disk, folder: Path) -> Recovered:
    """Read a folder as a crash or a power loss left it. What cannot be read is left out; nothing is raised."""
    found = Recovered()
    numbers = []
    with contextlib.suppress(OSError):
        for name in disk.list(folder):
            stem, _, kind = name.partition(".")
            if stem.isdecimal() and kind in ("seg", "bad"):
                found.ordinal = max(found.ordinal, int(stem) + 1)
                numbers += [int(stem)] if kind == "seg" else []
    for number in sorted(numbers):
        with contextlib.suppress(OSError):
            found.segments.append(_opened(disk, folder, number, found.damage))
    for segment in reversed(found.segments):
        found.last = _end_of(disk, segment, found.damage)
        if found.last:
            break
    return found


def _opened(disk: Disk, folder: Path, number: int, damage: dict[int, int]) -> Segment:
    """A segment by its size and first record; the rest is checked when it is read."""
    path = path_of(folder, number)
    segment = Segment(number, path, size=disk.size(path))
    first = next(records_of(disk, path, 0, segment.size), None)
    if first:
        segment.first = first.sequence
    elif segment.size:
        damage[number] = segment.size = 0
    return segment


def _end_of(disk: Disk, segment: Segment, damage: dict[int, int]) -> int:
    """The last sequence in a segment, noting where its sound part ends."""
    last = sound = 0
    with contextlib.suppress(OSError):
        for record in records_of(disk, segment.path, 0, segment.size):
            last, sound = record.sequence, record.end
        if sound < segment.size:
            damage[segment.ordinal] = segment.size = sound
    return last


def quarantine(disk: Disk, path: Path, sound: int) -> None:
    """Move what follows the first `sound` bytes of a segment to a file beside it.

    Raises:
        OSError: the disk would not; the segment is as it was, or only lacks what the other file has.
    """
    beside = path.with_suffix(".bad")
    end = disk.size(path)
    if sound >= end:
        return
    with contextlib.suppress(FileNotFoundError):
        disk.unlink(beside)
    with _closing(disk, disk.create(beside)) as fd:
        for offset in range(sound, end, CHUNK):
            disk.write(fd, disk.read(path, offset, min(CHUNK, end - offset)))
        disk.sync(fd)
    disk.sync_folder(path.parent)
    with _closing(disk, disk.open(path)) as fd:
        disk.cut(fd, sound)
        disk.sync(fd)


@contextlib.contextmanager
def _closing(disk: Disk, fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        disk.close(fd)
