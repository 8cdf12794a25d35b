"""The file of events that a sink will not take."""

import asyncio
import contextlib
import fcntl
import hashlib
import itertools
import os
import pathlib
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import orjson

from llm_proxy.clock import now_ms, to_rfc3339
from llm_proxy.events.disk import Disk

# Its name in the folder of an instance.
FILE = "dead-letters.jsonl"
# So many are read at once; each may hold the bodies of a call.
CHUNK = 50


@dataclass(frozen=True)
class Letter:
    """An event that was set aside, or the gap where events are gone.

    Attributes:
        id: names it for as long as it is there.
        facts: what was written of it.
    """

    id: str
    facts: Mapping[str, Any]

    @property
    def at(self) -> str:
        """When it was set aside."""
        return str(self.facts["at"])

    @property
    def sink(self) -> str:
        """Who did not take it."""
        return str(self.facts["sink"])

    @property
    def reason(self) -> str:
        """Why."""
        return str(self.facts["reason"])

    @property
    def event(self) -> dict[str, Any] | None:
        """The event, None where there is none that could be delivered."""
        event = self.facts.get("event")
        return event if isinstance(event, dict) and isinstance(event.get("id"), str) else None

    @property
    def gap(self) -> int | None:
        """How many events are gone, None where it tells of no gap."""
        gap = self.facts.get("gap")
        return gap.get("count") if isinstance(gap, dict) else None


def letter_of(id: str, written: bytes) -> Letter | None:
    """What was written, None where it is no letter."""
    try:
        facts = orjson.loads(written)
        return Letter(id, facts) if all(isinstance(facts[name], str) for name in ("at", "sink", "reason")) else None
    except (ValueError, LookupError, TypeError):
        return None


class DeadLetters:
    """Lines of JSON: when, which sink, why, and the event itself, or the gap where events are gone.

    Several processes may add to the file, read it, take letters away: whoever changes it holds its lock.
    """

    def __init__(self, path: pathlib.Path, now: Callable[[], int] = now_ms) -> None:
        self._path, self._now = path, now

    async def add(self, sink: str, reason: str, **what: Any) -> None:
        """Return once the disk has it.

        Raises:
            OSError: the disk would not; the event must stay where it is.
        """
        letter = {"at": to_rfc3339(self._now()), "sink": sink, "reason": reason, **what}
        await asyncio.to_thread(self._append, orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE))

    def _append(self, line: bytes) -> None:
        with self._locked(os.O_CREAT | os.O_WRONLY | os.O_APPEND) as fd:
            size = os.fstat(fd).st_size
            if os.write(fd, line) != len(line):
                os.ftruncate(fd, size)
                raise OSError(28, "the line could only be written in part")
            os.fdatasync(fd)

    @contextlib.contextmanager
    def _locked(self, flags: int) -> Iterator[int]:
        """The file that has the name, open and locked."""
        while True:
            fd = os.open(self._path, flags | os.O_CLOEXEC, 0o600)
            try:
                fcntl.flock(fd, fcntl.LOCK_EX)
                # Another may have put a file without some letters in its place while we waited.
                if os.fstat(fd).st_ino == self._inode():
                    yield fd
                    return
            finally:
                os.close(fd)

    def _inode(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None

    def letters(self) -> Iterator[Letter]:
        """Those that are there now, the oldest first; what is no letter is passed over."""
        with contextlib.suppress(FileNotFoundError), self._path.open("rb") as lines:
            left = os.fstat(lines.fileno()).st_size
            for line in lines:
                left -= len(line)
                if left < 0 or not line.endswith(b"\n"):
                    return
                if letter := letter_of(_id_of(line), line):
                    yield letter

    async def read(self) -> AsyncGenerator[Letter, None]:
        """The same, read in threads."""
        found = self.letters()
        while chunk := await asyncio.to_thread(lambda: list(itertools.islice(found, CHUNK))):
            for letter in chunk:
                yield letter

    async def remove(self, ids: Collection[str]) -> int:
        """Take letters away; how many they were.

        Raises:
            OSError: the disk would not; all are still there.
        """
        return await asyncio.to_thread(self._remove, frozenset(ids)) if ids else 0

    def _remove(self, ids: Collection[str]) -> int:
        beside = self._path.with_suffix(".tmp")
        try:
            with self._locked(os.O_RDWR) as fd, os.fdopen(fd, "rb", closefd=False) as lines:
                try:
                    removed = _write_rest(lines, beside, ids)
                    if beside.stat().st_size:
                        beside.replace(self._path)
                    else:
                        self._path.unlink()
                    Disk().sync_folder(self._path.parent)
                finally:
                    beside.unlink(missing_ok=True)
        except FileNotFoundError:
            return 0
        return removed


def _write_rest(lines: Iterable[bytes], beside: pathlib.Path, ids: Collection[str]) -> int:
    """Write the lines that are to stay; how many go."""
    removed = 0
    fd = os.open(beside, os.O_CREAT | os.O_TRUNC | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    with os.fdopen(fd, "wb") as file:
        for line in lines:
            if _id_of(line) in ids:
                removed += 1
            else:
                file.write(line)
        file.flush()
        os.fdatasync(fd)
    return removed


def _id_of(line: bytes) -> str:
    return hashlib.blake2b(line, digest_size=16).hexdigest()
