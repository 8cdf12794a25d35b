"""Tests of the delivery, over a real log, through outages that last an hour of a clock of our own."""

import asyncio
import pathlib
import random
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import orjson
import pytest
from stage.sinks import VirtualClock, sample

from llm_proxy.events.dead_letters import DeadLetters
from llm_proxy.events.dispatcher import LONGEST_PAUSE, Dispatcher, Dispatchers, backoff, document_of, fates
from llm_proxy.events.reading import Reader, SpoolSource
from llm_proxy.events.sinks.contract import DELIVERED, Document, Verdict
from llm_proxy.events.spool import Spool
from llm_proxy.tasks import Tasks

AWAY, FAILED, REFUSED = Verdict("away", "gone"), Verdict("failed", "500"), Verdict("refused", "400")


class ScriptedSink:
    """Answers as it is told, keeps what it takes."""

    def __init__(self, answer: Callable[[Sequence[Document]], Verdict | list[Verdict]]) -> None:
        self.answer = answer
        self.taken: list[str] = []
        self.calls: list[int] = []

    async def deliver(self, events: Sequence[Document]) -> list[Verdict]:
        await asyncio.sleep(0)
        self.calls.append(len(events))
        answer = self.answer(events)
        verdicts = answer if isinstance(answer, list) else [answer] * len(events)
        self.taken += [event["request_id"] for event, verdict in zip(events, verdicts, strict=True) if verdict is DELIVERED]
        return verdicts

    async def close(self) -> None:
        pass


class Post:
    """A log, a sink and what delivers from one to the other."""

    def __init__(self, folder: pathlib.Path, sink: ScriptedSink, **options: Any) -> None:
        self.clock, self.sink, self.folder = VirtualClock(), sink, folder
        self.spool = Spool(folder, ("sink",), **options)
        self.spool.open()
        self.dispatcher = self.another()

    def another(self) -> Dispatcher:
        source = SpoolSource(Reader(self.spool, "sink"))
        letters = DeadLetters(self.folder / "dead.jsonl", self.clock.ms)
        return Dispatcher("sink", self.sink, source, letters, pause=self.clock.pause, now=self.clock.ms, chance=lambda: 1.0)

    def publish(self, *numbers: int) -> None:
        for number in numbers:
            self.spool.append(orjson.dumps(sample(number)))

    @property
    def letters(self) -> list[dict[str, Any]]:
        path = self.folder / "dead.jsonl"
        return [orjson.loads(line) for line in path.read_bytes().splitlines()] if path.exists() else []

    async def until(self, reached: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not reached():  # noqa: ASYNC110 - what is awaited are counters of the product
                await asyncio.sleep(0)


@asynccontextmanager
async def delivering(post: Post) -> AsyncIterator[Post]:
    tasks = Tasks()
    dispatchers = Dispatchers(tasks)
    dispatchers.start(post.dispatcher)
    yield post
    await dispatchers.stop(5)
    await tasks.close()
    post.spool.close()


def names(*numbers: int) -> list[str]:
    return [f"request-{number}" for number in numbers]


def bad(*numbers: int) -> Callable[[Document], bool]:
    return lambda event: event["request_id"] in names(*numbers)


async def test_events_arrive_in_order_in_batches(tmp_path: pathlib.Path) -> None:
    post = Post(tmp_path, ScriptedSink(lambda events: DELIVERED))
    post.publish(*range(250))
    async with delivering(post):
        await post.until(lambda: post.dispatcher.stats.delivered == 250)
    assert post.sink.taken == names(*range(250))
    assert post.sink.calls == [100, 100, 50]
    assert post.dispatcher.stats.backlog.count == post.dispatcher.stats.backlog.bytes == 0
    assert post.spool.cursors["sink"].saved == 250


@pytest.mark.parametrize("verdict", [AWAY, FAILED, REFUSED, Verdict("away", "429", 300.0)], ids=lambda verdict: verdict.reason)
async def test_an_hour_of_outage_delays_every_event_and_loses_none(tmp_path: pathlib.Path, verdict: Verdict) -> None:
    down = [verdict]
    post = Post(tmp_path, ScriptedSink(lambda events: down[0]))
    post.clock.at(3600, lambda: down.__setitem__(0, DELIVERED))
    post.publish(*range(150))
    began = post.clock.now
    async with delivering(post):
        await post.until(lambda: len(post.sink.taken) >= 150)
    assert post.sink.taken == names(*range(150))
    assert post.letters == []
    assert 3600 <= post.clock.now - began <= 3600 + max(LONGEST_PAUSE, verdict.retry_after) + 5


@pytest.mark.parametrize("verdict", [FAILED, REFUSED], ids=["failing", "refused"])
@pytest.mark.parametrize("poison", [[0], [3], [98], [0, 1, 2], [3, 50, 51]], ids=str)
async def test_a_poison_event_alone_goes_to_the_dead_letters(tmp_path: pathlib.Path, verdict: Verdict, poison: list[int]) -> None:
    is_bad = bad(*poison)
    post = Post(tmp_path, ScriptedSink(lambda events: verdict if any(map(is_bad, events)) else DELIVERED))
    post.publish(*range(120))
    async with delivering(post):
        await post.until(lambda: len(post.letters) == len(poison) and len(post.sink.taken) >= 120 - len(poison))
    assert post.sink.taken == names(*(number for number in range(120) if number not in poison))
    assert [letter["event"]["request_id"] for letter in post.letters] == names(*poison)
    assert {(letter["sink"], letter["reason"]) for letter in post.letters} == {("sink", verdict.reason)}
    assert post.dispatcher.stats.dead_letters == len(poison)


async def test_a_verdict_for_each_event_needs_no_isolation(tmp_path: pathlib.Path) -> None:
    is_bad = bad(5)
    post = Post(tmp_path, ScriptedSink(lambda events: [REFUSED if is_bad(event) else DELIVERED for event in events]))
    post.publish(*range(20))
    async with delivering(post):
        await post.until(lambda: len(post.sink.taken) + len(post.letters) == 20)
    assert post.sink.calls == [20]


async def test_the_last_event_is_held_to_be_at_fault_only_once_a_later_one_passed(tmp_path: pathlib.Path) -> None:
    is_bad = bad(2)
    post = Post(tmp_path, ScriptedSink(lambda events: FAILED if any(map(is_bad, events)) else DELIVERED))
    post.publish(0, 1, 2)
    async with delivering(post):
        await post.until(lambda: len(post.sink.calls) > 20)
        assert post.letters == []
        post.publish(3)
        await post.until(lambda: len(post.letters) == 1)
        await post.until(lambda: post.sink.taken == names(0, 1, 3))


async def test_an_event_that_is_none_does_not_stop_the_others(tmp_path: pathlib.Path) -> None:
    post = Post(tmp_path, ScriptedSink(lambda events: DELIVERED))
    post.spool.append(b"{no json")
    post.publish(1)
    async with delivering(post):
        await post.until(lambda: post.sink.taken == names(1))
    assert [letter["event"] for letter in post.letters] == ["{no json"]


async def test_a_sink_whose_code_breaks_on_an_event_loses_only_that(tmp_path: pathlib.Path) -> None:
    def answer(events: Sequence[Document]) -> Verdict:
        if any(map(bad(1), events)):
            raise TypeError("a bug")
        return DELIVERED

    post = Post(tmp_path, ScriptedSink(answer))
    post.publish(0, 1, 2)
    async with delivering(post):
        await post.until(lambda: post.sink.taken == names(0, 2))
    assert [letter["reason"] for letter in post.letters] == ["TypeError: a bug"]


@pytest.mark.parametrize("cap", [1, 2_000, 8_000, 20_000, 60_000])
@pytest.mark.parametrize("seed", range(3))
async def test_what_the_cap_dropped_with_what_was_delivered_is_all_that_was_produced(
    tmp_path: pathlib.Path, cap: int, seed: int
) -> None:
    chance, produced, down = random.Random(seed), 200, [True]
    post = Post(tmp_path, ScriptedSink(lambda events: AWAY if down[0] else DELIVERED), backlog_bytes=cap, sync="os")
    async with delivering(post):
        for number in range(produced):
            post.publish(number)
            if chance.random() < 0.5:
                await asyncio.to_thread(post.spool.tick)
            if number > produced // 2 and chance.random() < 0.1:
                down[0] = not down[0]
        down[0] = False
        await post.until(lambda: post.dispatcher.stats.backlog.count == 0)
    gone = [n for letter in post.letters for n in range(letter["gap"]["from"], letter["gap"]["to"] + 1)]
    assert sum(letter["gap"]["count"] for letter in post.letters) == len(gone) == post.dispatcher.stats.dropped
    # The first sequence of a log is 1.
    taken = [int(name.removeprefix("request-")) + 1 for name in post.sink.taken]
    assert sorted(taken + gone) == list(range(1, produced + 1)), "each is delivered once, or gone and accounted for"
    assert taken == sorted(taken)
    assert cap > 20_000 or gone


async def test_a_stop_leaves_on_the_disk_what_a_hanging_sink_does_not_take(tmp_path: pathlib.Path) -> None:
    class Hanging(ScriptedSink):
        async def deliver(self, events: Sequence[Document]) -> list[Verdict]:
            self.calls.append(len(events))
            await asyncio.Event().wait()
            return []

    post = Post(tmp_path, Hanging(lambda events: DELIVERED))
    post.publish(0, 1)
    tasks = Tasks()
    dispatchers = Dispatchers(tasks)
    dispatchers.start(post.dispatcher)
    await post.until(lambda: bool(post.sink.calls))
    await dispatchers.stop(0.01)
    post.spool.close()
    again = Post(tmp_path, ScriptedSink(lambda events: DELIVERED))
    async with delivering(again):
        await again.until(lambda: again.sink.taken == names(0, 1))


async def test_a_stop_delivers_what_can_be_delivered(tmp_path: pathlib.Path) -> None:
    post = Post(tmp_path, ScriptedSink(lambda events: DELIVERED))
    post.publish(*range(1000))
    async with delivering(post):
        pass
    assert post.sink.taken == names(*range(1000))


async def test_the_stats_tell_how_far_a_sink_is_behind(tmp_path: pathlib.Path) -> None:
    post = Post(tmp_path, ScriptedSink(lambda events: AWAY))
    post.spool.append(orjson.dumps(sample(0, started_at=post.clock.ms())))
    async with delivering(post):
        await post.until(lambda: len(post.sink.calls) == 10)
        stats = post.dispatcher.stats
        assert stats.backlog.count == 1
        assert stats.backlog.bytes > 100
        assert stats.oldest_age > 60
        assert stats.failed >= 9
        assert stats.last_error == "gone"


@pytest.mark.parametrize(
    ("verdicts", "failures", "expected"),
    [
        ([DELIVERED, DELIVERED], 0, "done done"),
        ([REFUSED, REFUSED], 50, "waiting waiting"),
        ([REFUSED], 1, "dead"),
        ([REFUSED, DELIVERED], 1, "dead done"),
        ([DELIVERED, REFUSED], 1, "done dead"),
        ([FAILED, DELIVERED], 9, "waiting done"),
        ([FAILED, DELIVERED], 10, "dead done"),
        ([DELIVERED, FAILED], 10, "done waiting"),
        ([FAILED], 99, "waiting"),
        ([AWAY, DELIVERED], 99, "waiting done"),
    ],
    ids=lambda value: " ".join(verdict.kind for verdict in value) if isinstance(value, list) else str(value),
)
def test_the_fate_of_an_event(verdicts: list[Verdict], failures: int, expected: str) -> None:
    judged = fates(range(1, len(verdicts) + 1), verdicts, 0, failures)
    assert " ".join(fate.value for fate in judged) == expected


def test_an_event_delivered_ahead_of_its_turn_proves_the_sink_alive() -> None:
    assert [fate.value for fate in fates([5], [FAILED], 9, 10)] == ["dead"]


@pytest.mark.parametrize(
    ("attempt", "chance", "seconds"), [(1, 1.0, 1.0), (1, 0.0, 0.5), (4, 1.0, 8.0), (7, 1.0, 60.0), (10**6, 0.0, 30.0)]
)
def test_the_pauses_between_attempts(attempt: int, chance: float, seconds: float) -> None:
    assert backoff(attempt, chance) == seconds


def test_a_time_in_milliseconds_is_written_out() -> None:
    event = document_of(orjson.dumps({"id": "x", "started_at": 1_790_000_000_123}))
    assert event["started_at"] == "2026-09-21T14:13:20.123Z"
