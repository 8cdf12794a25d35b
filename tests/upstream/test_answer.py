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


class Taker:
    """Takes pieces, and wants a pause after those that say so."""

    def __init__(self) -> None:
        self.taken: list[bytes] = []

    def __call__(self, piece: bytes, chunk: bytes = b"") -> bool:
        self.taken.append(piece)
        if piece == b"broken":
            raise RuntimeError("no more")
        return piece.endswith(b"pause")


async def test_pieces_flow_to_their_taker_at_once_until_the_end() -> None:
    provider, take = Provider(), Taker()
    answer = ReceivedAnswer(provider)
    answer.add(b"before")
    flowing = asyncio.ensure_future(answer.flow(take, 7.0))
    await asyncio.sleep(0)
    for piece in (b"one", b"two"):
        answer.add(piece)
        answer.wake()
    assert take.taken == [b"before", b"one", b"two"], "without a turn of the loop"
    assert provider.watched == [7.0] * 3, "each piece begins the silence anew"
    answer.add(b"last")
    answer.is_whole = True
    answer.end()
    assert await flowing is True
    assert take.taken[3:] == [b"last"]


async def test_framing_alone_is_no_piece_that_flows() -> None:
    provider, take = Provider(), Taker()
    answer = ReceivedAnswer(provider)
    flowing = asyncio.ensure_future(answer.flow(take, 7.0))
    await asyncio.sleep(0)
    answer.wake()
    assert take.taken == [], "an empty piece would be the end of a chunked body"
    assert provider.watched == [7.0] * 2, "it is no silence either"
    answer.is_whole = True
    answer.end()
    assert await flowing is True


async def test_a_taker_that_wants_a_pause_gets_no_more_until_it_asks() -> None:
    answer, take = ReceivedAnswer(Provider()), Taker()
    flowing = asyncio.ensure_future(answer.flow(take))
    await asyncio.sleep(0)
    answer.add(b"pause")
    answer.wake()
    answer.add(b"after")
    answer.wake()
    assert await flowing is False
    assert take.taken == [b"pause"]
    answer.add(b", pause")
    assert await answer.flow(take) is False
    assert take.taken[1:] == [b"after, pause"]


async def test_what_a_taker_raises_ends_the_flow_and_not_the_connection() -> None:
    provider, take = Provider(), Taker()
    answer = ReceivedAnswer(provider)
    flowing = asyncio.ensure_future(answer.flow(take))
    await asyncio.sleep(0)
    answer.add(b"broken")
    answer.wake()
    answer.add(b"more")
    answer.wake()
    with pytest.raises(RuntimeError, match="no more"):
        await flowing
    assert (take.taken, provider.aborted, answer.ready()) == ([b"broken"], 0, b"more")


async def test_a_flow_that_falls_silent_or_breaks_off_says_so() -> None:
    answer, take = ReceivedAnswer(Provider()), Taker()
    flowing = asyncio.ensure_future(answer.flow(take, 1.0))
    await asyncio.sleep(0)
    answer.silent()
    with pytest.raises(TimeoutError):
        await flowing
    flowing = asyncio.ensure_future(answer.flow(take, 1.0))
    await asyncio.sleep(0)
    answer.add(b"last")
    answer.fail(UpstreamInvalid("cut off", sent=True))
    with pytest.raises(UpstreamInvalid):
        await flowing
    assert take.taken == [b"last"], "what came before still counts"


async def test_nothing_flows_to_one_who_was_cancelled() -> None:
    answer, take = ReceivedAnswer(Provider()), Taker()
    flowing = asyncio.ensure_future(answer.flow(take))
    await asyncio.sleep(0)
    flowing.cancel()
    answer.add(b"late")
    answer.wake()
    with pytest.raises(asyncio.CancelledError):
        await flowing
    answer.wake()
    assert (take.taken, answer.ready()) == ([], b"late")
