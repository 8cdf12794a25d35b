"""The file of events that a sink will not take."""

import asyncio
import os
import pathlib
import threading
from collections.abc import Callable
from typing import Any

import orjson

from llm_proxy.clock import now_ms, to_rfc3339

# Its name in the folder of an instance.
FILE = "dead-letters.jsonl"


class DeadLetters:
    """Lines of JSON: when, which sink, why, and the event itself, or the gap where events are gone."""

    def __init__(self, path: pathlib.Path, now: Callable[[], int] = now_ms) -> None:
        self._path, self._now = path, now
        self._lock = threading.Lock()

    async def add(self, sink: str, reason: str, **what: Any) -> None:
        """Return once the disk has it.

        Raises:
            OSError: the disk would not; the event must stay where it is.
        """
        letter = {"at": to_rfc3339(self._now()), "sink": sink, "reason": reason, **what}
        await asyncio.to_thread(self._append, orjson.dumps(letter, option=orjson.OPT_APPEND_NEWLINE))

    def _append(self, line: bytes) -> None:
        with self._lock:
            fd = os.open(self._path, os.O_CREAT | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
            try:
                size = os.fstat(fd).st_size
                if os.write(fd, line) != len(line):
                    os.ftruncate(fd, size)
                    raise OSError(28, "the line could only be written in part")
                os.fdatasync(fd)
            finally:
                os.close(fd)
