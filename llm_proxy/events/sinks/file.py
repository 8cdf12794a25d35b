"""Events as lines of JSON in a file."""

import asyncio
import os
import pathlib
import threading
from collections.abc import Sequence

import orjson

from llm_proxy.events.sinks.contract import DELIVERED, Document, Verdict


class FileSink:
    """Appends to a file, which is synced before an event counts as delivered.

    At its size it becomes `<name>.1`, the one before `<name>.2` and so on; the oldest goes.

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
            if self._fd < 0:
                self._path.parent.mkdir(parents=True, exist_ok=True)
                self._fd = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
            size = os.fstat(self._fd).st_size
            if size and size + len(lines) > self._largest:
                self._rotate()
                size = 0
            self._write(lines, size)

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
        for number in range(self._kept - 1, 0, -1):
            older = self._numbered(number)
            if older.exists():
                older.replace(self._numbered(number + 1))
        if self._kept:
            self._path.replace(self._numbered(1))
        else:
            self._path.unlink()
        self._shut()
        self._fd = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)

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
