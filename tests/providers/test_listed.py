"""What providers say they serve is asked for once in a while, however many want to know."""

import asyncio

import pytest
from stage.routes import Clock

from llm_proxy.changes import Change
from llm_proxy.providers.listed import Listed, ListedModels

ONE, TWO = [Listed("one", 1, "x")], [Listed("two", 2, "x")]


class Source:
    """A provider that answers when it is told to; it counts how often it was asked."""

    def __init__(self, *answers: list[Listed] | None) -> None:
        self.answers = list(answers)
        self.asked = 0
        self.ready = asyncio.Event()

    async def __call__(self) -> list[Listed] | None:
        self.asked += 1
        await self.ready.wait()
        return self.answers.pop(0)


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def test_a_list_lives_for_five_minutes_and_outlives_a_provider_that_is_away(clock: Clock) -> None:
    listed, source = ListedModels(clock), Source(ONE, None, TWO)
    source.ready.set()
    for wait, expected, asked in ((0, ONE, 1), (299, ONE, 1), (1, ONE, 2), (9, ONE, 2), (1, TWO, 3), (299, TWO, 3)):
        clock.now += wait
        assert (await listed.get("p", source), source.asked) == (expected, asked)


async def test_one_that_could_not_be_asked_serves_nothing_for_a_moment(clock: Clock) -> None:
    listed, source = ListedModels(clock), Source(None, ONE)
    source.ready.set()
    for wait, expected in ((0, ()), (9, ()), (1, ONE)):
        clock.now += wait
        assert await listed.get("p", source) == expected


async def test_many_at_once_ask_once_and_one_that_leaves_stops_nobody(clock: Clock) -> None:
    listed, source = ListedModels(clock), Source(ONE)
    waiting = [asyncio.ensure_future(listed.get("p", source)) for _ in range(20)]
    await asyncio.sleep(0)
    waiting.pop(0).cancel()
    source.ready.set()
    assert await asyncio.gather(*waiting) == [ONE] * 19
    assert source.asked == 2, "the one that was given up, and one for all the others"


@pytest.mark.parametrize(
    ("change", "asked"),
    [
        (Change("provider", "p"), 2),
        (Change("reload", ""), 2),
        (Change("everything", ""), 2),
        (Change("provider", "q"), 1),
        (Change("token", "p"), 1),
    ],
)
async def test_a_provider_that_changed_is_asked_anew(clock: Clock, change: Change, asked: int) -> None:
    listed, source = ListedModels(clock), Source(ONE, TWO)
    source.ready.set()
    await listed.get("p", source)
    listed.on_change(change)
    await listed.get("p", source)
    assert source.asked == asked
