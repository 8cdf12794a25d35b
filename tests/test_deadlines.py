"""Deadlines of many tasks on one timer."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from llm_proxy.deadlines import Deadline, Deadlines


@pytest.fixture
async def deadlines() -> AsyncIterator[Deadlines]:
    """Those of a process."""
    made = Deadlines()
    yield made
    made.close()


async def forever() -> None:
    await asyncio.get_running_loop().create_future()


async def test_each_passes_in_its_own_time_whatever_their_order(deadlines: Deadlines) -> None:
    passed: list[float] = []

    async def work(seconds: float) -> None:
        with pytest.raises(TimeoutError), deadlines.within(seconds):
            await forever()
        passed.append(seconds)

    async with asyncio.timeout(2):
        await asyncio.gather(*map(work, (0.06, 0.02, 0.04, 0)))
    assert passed == [0, 0.02, 0.04, 0.06]
    assert not deadlines._pending and deadlines._timer is None


async def test_what_ends_in_time_is_left_alone_and_leaves_nothing(deadlines: Deadlines) -> None:
    with deadlines.within(0.01) as deadline:
        await asyncio.sleep(0)
    await asyncio.sleep(0.03)
    assert not (deadline.expired() or deadlines._pending or deadlines._timer)


async def test_one_may_be_moved_while_it_runs(deadlines: Deadlines) -> None:
    with deadlines.within(3600) as deadline, pytest.raises(asyncio.CancelledError):
        asyncio.get_running_loop().call_soon(deadline.reschedule, 0.0)
        await forever()
    async with asyncio.timeout(2):
        with pytest.raises(TimeoutError), deadlines.within(3600) as deadline:
            deadline.reschedule(asyncio.get_running_loop().time())
            await forever()
    assert deadline.expired()


async def test_who_is_cancelled_by_somebody_else_stays_cancelled(deadlines: Deadlines) -> None:
    async def work(made: list[Deadline]) -> None:
        with deadlines.within(3600) as deadline:
            made.append(deadline)
            await forever()

    for expires in (False, True):
        made: list[Deadline] = []
        task = asyncio.ensure_future(work(made))
        await asyncio.sleep(0)
        task.cancel()
        if expires:
            made[0].expire()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert not deadlines._pending


async def test_an_error_of_the_block_goes_on_as_it_is(deadlines: Deadlines) -> None:
    with pytest.raises(LookupError), deadlines.within(3600):
        raise LookupError
    assert not deadlines._pending
