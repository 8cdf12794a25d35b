"""Logs of events, copied while they are written."""

import contextlib
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from llm_proxy.events.browsing import logs
from llm_proxy.events.cursors import Cursor
from llm_proxy.events.dead_letters import FILE
from llm_proxy.events.disk import Disk
from llm_proxy.events.instances import LOCK
from llm_proxy.events.segments import CHUNK, records_of


@dataclass
class Copied:
    """What is in a copy.

    Attributes:
        events: how many events its logs hold.
        undelivered: how many of them some sink still lacks.
        dead_letters: how many were set aside.
    """

    events: int = 0
    undelivered: int = 0
    dead_letters: int = 0


def copy_logs(root: pathlib.Path, target: pathlib.Path, disk: Disk | None = None) -> Copied:
    """Copy the logs of all instances, so that whoever takes them up misses no event that a sink lacked when this began.

    The order does it, for nobody stops writing. All segments come first, then all cursors: a segment that is removed meanwhile
    was delivered, and the cursors say so. Dead letters come last, since an event is set aside before a cursor passes it.

    Raises:
        OSError: what is there cannot be read, or the copy not be written.
    """
    disk, found = disk or Disk(), Copied()
    copies = [_Copy(disk, folder, target / folder.name) for folder in logs(root)]
    for copy in copies:
        copy.take_segments()
    for copy in copies:
        copy.take_cursors()
    for copy in copies:
        found.dead_letters += _copy_letters(copy.source, copy.target)
        found.events += copy.last - copy.first + 1 if copy.last else 0
        found.undelivered += copy.undelivered
    found.dead_letters += _copy_letters(root, target)
    return found


class _Copy:
    """The copy of one instance's log.

    Attributes:
        first: the sequence of the first event in it, 0 while there is none.
        last: that of the last.
        undelivered: how many of them some sink lacks.
    """

    def __init__(self, disk: Disk, source: pathlib.Path, target: pathlib.Path) -> None:
        self._disk, self.source, self.target = disk, source, target
        self.first = self.last = self.undelivered = 0

    def take_segments(self) -> None:
        """Copy the segments, the newest first: an older one is then read later, up to where the newer one begins at the least.

        The oldest first, events could be appended behind what was read of one segment, and then a further segment begun.
        """
        self.target.mkdir(mode=0o700, parents=True)
        (self.target / LOCK).touch(mode=0o600)
        names = [name for name in self._disk.list(self.source) if name.endswith(".seg") and name[:-4].isdecimal()]
        copied = [path for name in sorted(names, key=lambda name: int(name[:-4]), reverse=True) if (path := self._take(name))]
        # The newest one may have been read while its last event was written.
        self.last = next((last for path in copied if (last := self._cut_tail(path))), 0)
        for path in reversed(copied):
            if record := next(records_of(self._disk, path, 0, path.stat().st_size), None):
                self.first = record.sequence
                break

    def _take(self, name: str) -> pathlib.Path | None:
        """The copy of a segment, None when it was removed meanwhile."""
        source, path = self.source / name, self.target / name
        try:
            left, offset = self._disk.size(source), 0
            with _private(path) as file:
                while left > 0 and (data := self._disk.read(source, offset, min(CHUNK, left))):
                    file.write(data)
                    offset, left = offset + len(data), left - len(data)
        except FileNotFoundError:
            path.unlink(missing_ok=True)
            return None
        return path

    def _cut_tail(self, path: pathlib.Path) -> int:
        """Keep what is sound at the beginning of a copied segment; the sequence of its last event, 0 when there is none."""
        last = sound = 0
        for record in records_of(self._disk, path, 0, path.stat().st_size):
            last, sound = record.sequence, record.end
        with path.open("r+b") as file:
            file.truncate(sound)
        return last

    def take_cursors(self) -> None:
        """Copy how far each sink is, and what is in Redis already. A sink that is ahead of the copy has all that is in it."""
        names = [name for name in self._listed() if name.endswith((".cursor", ".mark"))]
        found = []
        for name in names:
            if name.endswith(".mark"):
                with contextlib.suppress(FileNotFoundError):
                    _write(self.target / name, (self.source / name).read_bytes())
                continue
            cursor = Cursor(self._disk, self.source, name.removesuffix(".cursor"))
            cursor.load()
            found += [cursor] if cursor.known else []
        end = self.last or min((cursor.position for cursor in found), default=0)
        for cursor in found:
            Cursor(self._disk, self.target, cursor.sink).begin_at(min(cursor.position, end))
        if found and self.last:
            self.undelivered = max(self.last - max(min(cursor.position for cursor in found), self.first - 1), 0)
        left = self._listed()
        if self.last and not any(name.endswith(".seg") for name in left):
            self._drop(LOCK in left)

    def _listed(self) -> list[str]:
        try:
            return self._disk.list(self.source)
        except FileNotFoundError:
            return []

    def _drop(self, has_letters: bool) -> None:
        """Forget a log that was delivered to its end meanwhile, and then removed with its cursors."""
        for path in list(self.target.iterdir()):
            if not (has_letters and path.name == LOCK):
                path.unlink()
        if not has_letters:
            self.target.rmdir()
        self.first = self.last = self.undelivered = 0


def _copy_letters(source: pathlib.Path, target: pathlib.Path) -> int:
    """Copy the whole lines of a file of dead letters; how many they are."""
    try:
        whole = (source / FILE).read_bytes().rpartition(b"\n")[0]
    except FileNotFoundError:
        return 0
    if whole:
        target.mkdir(mode=0o700, parents=True, exist_ok=True)
        _write(target / FILE, whole + b"\n")
    return whole.count(b"\n") + 1 if whole else 0


def _write(path: pathlib.Path, data: bytes) -> None:
    with _private(path) as file:
        file.write(data)


@contextlib.contextmanager
def _private(path: pathlib.Path) -> Iterator[BinaryIO]:
    path.touch(mode=0o600)
    with path.open("wb") as file:
        yield file
