"""How an answer reaches its reader."""

import asyncio

import pytest

from llm_proxy.errors import UpstreamInvalid, UpstreamUnavailable
from llm_proxy.upstream.answer import READ_BUFFER, ReceivedAnswer


class Provider:
    """The connection's side of an answer."""

    def __init__(self) -> None:
        self.went_on = self.aborted = 0
        self.watched: list[float] = []

    def go_on(self) -> None:
        self.went_on += 1

    def watch(self, seconds: float) -> None:
        self.watched.append(seconds)

    def abort(self) -> None:
        self.aborted += 1


async def test_a_reader_gets_what_is_there_in_one_piece_then_waits() -> None:
    answer = ReceivedAnswer(Provider())
    answer.add(b"one, ")
    answer.add(b"two")
    assert await answer.chunk() == b"one, two"
    waiting = asyncio.ensure_future(answer.chunk())
    await asyncio.sleep(0)
    answer.wake()
    await asyncio.sleep(0)
    assert not waiting.done()
    answer.add(b"three")
    answer.wake()
    assert await waiting == b"three"
    answer.is_whole = True
    answer.end()
    assert [await answer.chunk() for _ in range(2)] == [b"", b""]


async def test_who_stops_waiting_may_wait_again() -> None:
    answer = ReceivedAnswer(Provider())
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0):
            await answer.chunk()
    answer.wake()
    answer.add(b"late")
    assert await answer.chunk() == b"late"


async def test_who_waited_too_long_may_wait_again() -> None:
    provider = Provider()
    answer = ReceivedAnswer(provider)
    waiting = asyncio.ensure_future(answer.chunk(7.0))
    await asyncio.sleep(0)
    answer.silent()
    with pytest.raises(TimeoutError):
        await waiting
    answer.silent()
    answer.add(b"late")
    assert (answer.ready(), answer.ready(), provider.watched) == (b"late", b"", [7.0])
    answer.add(b"more")
    assert await answer.chunk(7.0) == b"more"
    assert provider.watched == [7.0]


async def test_what_came_before_a_failure_is_read_first() -> None:
    answer = ReceivedAnswer(Provider())
    answer.status = 200
    answer.add(b"some")
    answer.fail(UpstreamInvalid("It broke off.", sent=True))
    await answer.head()
    assert await answer.chunk() == b"some"
    for _ in range(2):
        with pytest.raises(UpstreamInvalid):
            await answer.chunk()


async def test_a_failure_before_the_head_wakes_who_waits_for_it() -> None:
    answer = ReceivedAnswer(Provider())
    waiting = asyncio.ensure_future(answer.head())
    await asyncio.sleep(0)
    answer.fail(UpstreamUnavailable("It closed.", sent=True))
    with pytest.raises(UpstreamUnavailable):
        await waiting


async def test_the_provider_goes_on_once_a_full_buffer_is_read() -> None:
    provider = Provider()
    answer = ReceivedAnswer(provider)
    for size, went_on in ((READ_BUFFER, 0), (READ_BUFFER + 1, 1)):
        answer.add(bytes(size))
        assert len(await answer.chunk()) == size
        assert provider.went_on == went_on


async def test_a_connection_that_serves_others_is_not_closed_by_this_one() -> None:
    provider = Provider()
    answer = ReceivedAnswer(provider)
    answer.abort()
    assert provider.aborted == 1
    answer.add(bytes(READ_BUFFER + 1))
    answer.is_whole = True
    answer.end()
    answer.abort()
    await answer.chunk()
    assert (provider.aborted, provider.went_on) == (1, 0)
