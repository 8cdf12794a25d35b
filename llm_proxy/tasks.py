"""Background tasks: each has a name, an owner and an end."""

import asyncio
import inspect
import logging
from collections.abc import Awaitable, Callable, Coroutine
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

    async def within(self, seconds: float, name: str, awaitable: Awaitable[T]) -> T:
        """What an awaitable gives in this time; one that is late is cancelled, and nobody waits for its end.

        This is for code that may go on for a while when it is cancelled, or for ever, as redis-py does while it connects.

        Raises:
            TimeoutError: it gives nothing in this time.
        """
        outcome: list[T | Exception] = []
        task = self.start(name, _note(awaitable, outcome))
        try:
            await asyncio.wait((task,), timeout=seconds)
        finally:
            task.cancel()
            if not outcome:
                task.add_done_callback(lambda _: _close_unbegun(awaitable))
        if not outcome:
            raise TimeoutError(f"no answer within {seconds:g} s")
        if isinstance(outcome[0], Exception):
            raise outcome[0]
        return outcome[0]

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


def _close_unbegun(awaitable: Awaitable[Any]) -> None:
    """A task that was cancelled before its first step leaves a coroutine of which Python says that nobody ever awaited it."""
    if inspect.iscoroutine(awaitable) and inspect.getcoroutinestate(awaitable) == inspect.CORO_CREATED:
        awaitable.close()


async def _note(awaitable: Awaitable[T], outcome: list[T | Exception]) -> None:
    """Await it; its exception is noted too, since it is no failure of a task, and perhaps nobody is there to hear of it."""
    try:
        outcome.append(await awaitable)
    except Exception as error:
        outcome.append(error)
