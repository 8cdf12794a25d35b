"""Background tasks: each has a name, an owner and an end."""

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

log = logging.getLogger(__name__)

T = TypeVar("T")


async def to_the_end(coroutine: Coroutine[Any, Any, T], undo: Callable[[T], None]) -> T:
    """Await a coroutine that must not be cut in half.

    When the caller is cancelled, the coroutine still ends, and `undo` is called with its result if it has one.
    """
    task = asyncio.get_running_loop().create_task(coroutine)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        task.add_done_callback(lambda done: undo(done.result()) if not done.cancelled() and not done.exception() else None)
        raise


class Tasks:
    """Keeps the tasks of one owner, logs the failure of any, cancels the rest at the end."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()

    def start(self, name: str, coroutine: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `coroutine` under `name` until it ends or `close` is called."""
        task = asyncio.get_running_loop().create_task(coroutine, name=name)
        self._tasks.add(task)
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: "asyncio.Task[Any]") -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()):
            log.error("the background task %s failed", task.get_name(), exc_info=error)

    async def close(self) -> None:
        """Cancel what still runs; returns when all have ended."""
        running = list(self._tasks)
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)
