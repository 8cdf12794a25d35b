"""Events as lines of JSON in a file."""

import asyncio
import fcntl
import os
import pathlib
import threading
from collections.abc import Sequence

import orjson

from llm_proxy.events.sinks.contract import DELIVERED, Document, Verdict


class FileSink:
    """Appends to a file, which is synced before an event counts as delivered.

    At its size it becomes `<name>.1`, the one before `<name>.2` and so on; the oldest goes. Several processes may share
    the file: each holds its lock while it writes, so that none turns away a file that another has begun.

    Args:
        path: the file.
        largest: the size at which it begins anew.
        kept: how many earlier files stay.
    """

    def __init__(self, path: str, largest: int, kept: int) -> None:
        self._path = pathlib.Path(path)
        self._largest, self._kept = largest, kept
        self._fd = -1
        # Deliveries from several logs and `reopen` may meet.
        self._lock = threading.Lock()

    async def deliver(self, events: Sequence[Document]) -> list[Verdict]:
        """All of them or none; a disk that refuses is `away`."""
        lines = b"".join(orjson.dumps(event, option=orjson.OPT_APPEND_NEWLINE) for event in events)
        try:
            await asyncio.to_thread(self._append, lines)
        except OSError as error:
            return [Verdict("away", f"{self._path}: {error.strerror}")] * len(events)
        return [DELIVERED] * len(events)

    def _append(self, lines: bytes) -> None:
        with self._lock:
            size = self._take(len(lines))
            try:
                self._write(lines, size)
            finally:
                fcntl.flock(self._fd, fcntl.LOCK_UN)

    def _take(self, coming: int) -> int:
        """Open and lock the file that has the name, with room for what comes; its size."""
        while True:
            if self._fd < 0:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = self._opened()
            fcntl.flock(self._fd, fcntl.LOCK_EX)
            size = os.fstat(self._fd).st_size
            if self._is_superseded():
                self._shut()
            elif size and size + coming > self._largest:
                self._rotate()
            else:
                return size

    def _opened(self) -> int:
        return os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)

    def _is_superseded(self) -> bool:
        """Whether another process rotated, while we waited or before. A file that was only moved away is ours to `reopen`."""
        ours = os.fstat(self._fd)
        return not ours.st_nlink or self._inode() not in (ours.st_ino, None)

    def _inode(self) -> int | None:
        try:
            return self._path.stat().st_ino
        except FileNotFoundError:
            return None

    def _write(self, lines: bytes, size: int) -> None:
        try:
            written = os.write(self._fd, lines)
            while written < len(lines):
                written += os.write(self._fd, lines[written:])
            os.fdatasync(self._fd)
        except OSError:
            # Half a line must not stay in the way of the next one.
            os.ftruncate(self._fd, size)
            raise

    def _rotate(self) -> None:
        """Let the next file take the name, unless the name was moved away already."""
        if self._inode() is not None:
            for number in range(self._kept - 1, 0, -1):
                older = self._numbered(number)
                if older.exists():
                    older.replace(self._numbered(number + 1))
            if self._kept:
                self._path.replace(self._numbered(1))
            else:
                self._path.unlink()
        # There before the lock is given up: who waits for it must find that the file is another.
        following = self._opened()
        self._shut()
        self._fd = following

    def _numbered(self, number: int) -> pathlib.Path:
        return self._path.with_name(f"{self._path.name}.{number}")

    def _shut(self) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:
            os.close(fd)

    def reopen(self) -> None:
        """Write to what has the name from now on, as after another program moved the file away."""
        with self._lock:
            self._shut()

    async def close(self) -> None:
        """Give the file back."""
        self.reopen()
