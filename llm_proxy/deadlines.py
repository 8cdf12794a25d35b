"""Deadlines that are set by the thousand while hardly one passes, all on one timer."""

import asyncio
import math
from types import TracebackType


class Deadlines:
    """The deadlines of one event loop.

    Setting one costs an entry in a set: the timer is moved only when the new one is the next to pass. It may wake for one that is
    gone, which costs a look at those that are left, and that as seldom as deadlines are long.
    """

    def __init__(self) -> None:
        self._pending: set[Deadline] = set()
        self._timer: asyncio.TimerHandle | None = None
        self._wakes_at = math.inf

    def within(self, seconds: float) -> "Deadline":
        """A context manager that raises `TimeoutError` after so many seconds, as `asyncio.timeout` does."""
        return Deadline(self, asyncio.get_running_loop().time() + seconds)

    def wake_by(self, when: float) -> None:
        """See to it that the timer wakes by then."""
        if when >= self._wakes_at:
            return
        if self._timer:
            self._timer.cancel()
        self._timer, self._wakes_at = asyncio.get_running_loop().call_at(when, self._look), when

    def _look(self) -> None:
        self._timer, self._wakes_at = None, math.inf
        now = asyncio.get_running_loop().time()
        for deadline in [pending for pending in self._pending if pending.when <= now]:
            deadline.expire()
        if self._pending:
            self.wake_by(min(deadline.when for deadline in self._pending))

    def close(self) -> None:
        """No deadline is set any more."""
        if self._timer:
            self._timer.cancel()


class Deadline:
    """Cancels the task that runs in its block when its time has come, which the block's end turns into `TimeoutError`.

    Attributes:
        when: in the loop's time.
    """

    __slots__ = ("_deadlines", "_passed", "_requests", "_task", "when")

    _task: "asyncio.Task[object]"

    def __init__(self, deadlines: Deadlines, when: float) -> None:
        self._deadlines = deadlines
        self._passed = False
        self._requests = 0
        self.when = when

    def expired(self) -> bool:
        """Whether its time has come."""
        return self._passed

    def reschedule(self, when: float) -> None:
        """Let it pass at another time."""
        self.when = when
        self._deadlines.wake_by(when)

    def expire(self) -> None:
        """Its time has come."""
        self._deadlines._pending.discard(self)
        self._passed = True
        self._task.cancel()

    def __enter__(self) -> "Deadline":
        task = asyncio.current_task()
        assert task is not None
        self._task, self._requests = task, task.cancelling()
        deadlines = self._deadlines
        deadlines._pending.add(self)
        if self.when < deadlines._wakes_at:
            deadlines.wake_by(self.when)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._deadlines._pending.discard(self)
        # Who was cancelled by somebody else too stays cancelled.
        if self._passed and self._task.uncancel() <= self._requests and kind is asyncio.CancelledError:
            raise TimeoutError from error
