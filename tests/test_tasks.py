"""Background tasks have a name, an owner, an end; none fails unheard."""

import asyncio
import inspect
import logging

import pytest

from llm_proxy.tasks import Tasks, to_the_end


async def test_task_runs_under_its_name() -> None:
    tasks = Tasks()
    task = tasks.start("sweep", asyncio.sleep(0, "swept"))
    assert task.get_name() == "sweep"
    assert await task == "swept"


async def test_failure_is_logged_with_the_task_s_name(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise RuntimeError("broken")

    task = Tasks().start("sweep", fail())
    await asyncio.wait([task])
    await asyncio.sleep(0)
    [record] = caplog.records
    assert (record.levelno, record.getMessage()) == (logging.ERROR, "the background task sweep failed")
    assert record.exc_info and record.exc_info[0] is RuntimeError


async def test_close_ends_what_runs_in_its_own_way(caplog: pytest.LogCaptureFixture) -> None:
    ended: list[str] = []

    async def run(name: str) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(0)
            ended.append(name)

    tasks = Tasks()
    running = [tasks.start(name, run(name)) for name in ("a", "b")]
    await asyncio.sleep(0)
    await tasks.close()
    assert sorted(ended) == ["a", "b"]
    assert all(task.cancelled() for task in running)
    assert not caplog.records


async def test_close_without_tasks_returns() -> None:
    await Tasks().close()


async def test_work_that_must_not_be_cut_gives_its_result() -> None:
    undone: list[int] = []
    assert await to_the_end(asyncio.sleep(0, 7), undone.append) == 7
    assert undone == []


async def test_cancelled_caller_leaves_the_work_to_end_then_it_is_undone() -> None:
    begun, proceed = asyncio.Event(), asyncio.Event()
    undone: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    async def work() -> int:
        begun.set()
        await proceed.wait()
        return 7

    caller = asyncio.create_task(to_the_end(work(), undone.set_result))
    await begun.wait()
    caller.cancel()
    with pytest.raises(asyncio.CancelledError):
        await caller
    assert not undone.done()
    proceed.set()
    assert await asyncio.wait_for(undone, 5) == 7


async def test_work_that_fails_after_the_caller_left_has_nothing_to_undo() -> None:
    begun, proceed, undone = asyncio.Event(), asyncio.Event(), []
    ended = asyncio.Event()

    async def work() -> int:
        begun.set()
        await proceed.wait()
        asyncio.get_running_loop().call_soon(ended.set)
        raise RuntimeError("broken")

    caller = asyncio.create_task(to_the_end(work(), undone.append))
    await begun.wait()
    caller.cancel()
    await asyncio.wait([caller])
    proceed.set()
    await ended.wait()
    await asyncio.sleep(0)
    assert undone == []


async def test_failure_of_the_work_reaches_the_caller() -> None:
    async def work() -> int:
        raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        await to_the_end(work(), lambda _: None)


async def test_nobody_waits_for_what_is_late_and_goes_on_when_it_is_cancelled() -> None:
    tasks, ended = Tasks(), asyncio.Event()

    async def stubborn() -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            await asyncio.sleep(0.05)
        ended.set()
        return "late"

    async with asyncio.timeout(1):
        assert await tasks.within(1, "quick", asyncio.sleep(0, "quick")) == "quick"
        with pytest.raises(TimeoutError):
            await tasks.within(0.01, "stubborn", stubborn())
        assert not ended.is_set()
        await tasks.close()
    assert ended.is_set()


async def test_the_failure_of_what_is_awaited_in_time_is_its_callers(caplog: pytest.LogCaptureFixture) -> None:
    async def fail() -> None:
        raise ValueError("broken")

    with pytest.raises(ValueError, match="broken"):
        await Tasks().within(1, "broken", fail())
    assert caplog.records == []


async def test_what_is_cancelled_before_its_first_step_is_closed() -> None:
    tasks, coroutine = Tasks(), asyncio.sleep(60)
    waiting = asyncio.ensure_future(tasks.within(60, "never begun", coroutine))
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED
    await tasks.close()
    with pytest.raises(TimeoutError):
        await waiting
    await asyncio.sleep(0)
    assert inspect.getcoroutinestate(coroutine) == inspect.CORO_CLOSED
