"""What was counted is told exactly: written or not, by one process or several, while the database is away."""

import asyncio
import logging
import signal
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from typing import Any

import aiohttp
import pytest
from stage.asking import until
from stage.house import PROVIDER_KEY, migrated, open_house, settings_for
from stage.processes import Server, server

from llm_proxy import history
from llm_proxy.clock import DAY_MS, MINUTE_MS, now_ms
from llm_proxy.db import Connection, Database, Params, open_database
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.events import Event
from llm_proxy.events.bus import Bus
from llm_proxy.history import SPANS, History, open_history, pending
from llm_proxy.history.table import DIMENSIONS, Question
from llm_proxy.settings import Settings
from llm_proxy.usage import Usage

ALWAYS = Question(0, 2**62)


def event(model: str = "gpt-4o", *, at: int | None = None, **facts: Any) -> Event:
    made = Event("r1", None, None, None, "POST", "/v1/chat/completions", started_at=now_ms() if at is None else at)
    made.project_id, made.provider, made.model, made.status, made.outcome = "p1", "openai", model, 200, "completed"
    made.usage = Usage(prompt_tokens=2, completion_tokens=1)
    for name, value in facts.items():
        setattr(made, name, value)
    return made


def new_history(database: Any, days: int = 0) -> History:
    return History(database, lambda calls: None, days)


async def calls_of(one: History, question: Question = ALWAYS) -> int:
    return sum(figures.calls for figures in (await one.read(question)).values())


class Faulty:
    """The database, which may be away, or refuse what names a model `poison`."""

    def __init__(self, real: Database) -> None:
        self._real = real
        self.away = False

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Any]:
        if self.away:
            raise DatabaseUnavailable
        async with self._real.transaction() as connection:
            yield Picky(connection)


class Picky:
    """A connection that refuses rows of a model `poison`."""

    def __init__(self, real: Connection) -> None:
        self._real = real

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        if any(row["model"] == "poison" for row in rows):
            raise ValueError("no database takes this")
        await self._real.executemany(sql, rows)


async def test_calls_are_told_once_wherever_they_are_while_they_are_written(database: Database) -> None:
    one, counted = new_history(database), 0

    async def write() -> None:
        for _ in range(20):
            await one.settle()

    async with asyncio.TaskGroup() as group:
        writing = group.create_task(write())
        while not writing.done():
            for number in range(7):
                one.count(event(f"m{number}"))
            counted += 7
            assert await calls_of(one) == counted
    await one.settle()
    assert await calls_of(new_history(database)) == counted


async def test_several_processes_add_to_the_same_rows(settings: Settings) -> None:
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(open_database(migrated(settings))) for _ in range(3)]
        several = [new_history(database) for database in opened]
        at = now_ms()

        async def use(one: History, order: int) -> None:
            for _ in range(10):
                for number in range(20)[::order]:
                    one.count(event(f"m{number}", at=at))
                await one.settle()

        await asyncio.gather(*(use(one, order) for one, order in zip(several, (1, -1, 1), strict=True)))
        found = await several[0].read(replace(ALWAYS, by="model"))
        assert {figures.calls for figures in found.values()} == {30} and len(found) == 20
        assert {figures.prompt_tokens for figures in found.values()} == {60}
        row = await opened[0].fetch_one("SELECT COUNT(*) AS n FROM usage_minutes")
        assert row and row["n"] == 20


async def test_the_database_away_loses_nothing_that_fits_into_memory(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history, "FLUSH_SECONDS", 0.01)
    monkeypatch.setattr(pending, "MOST_ROWS", 5)
    faulty, lost, bus = Faulty(database), [], Bus()
    faulty.away = True
    async with open_history(faulty, bus, lost.append, 0) as one:  # type: ignore[arg-type]
        for number in range(8):
            bus.publish(event(f"m{number}"))
        await until(lambda: "usage waits in memory: the database does not answer" in caplog.messages)
        bus.publish(event("m0"))
        assert await calls_of(one) == 6 and lost == [1, 1, 1]
        faulty.away = False
        await until_written(database, 6)
    assert await calls_of(new_history(database)) == 6


async def until_written(database: Database, calls: int) -> None:
    async with asyncio.timeout(5):
        while await calls_of(new_history(database)) != calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_stop_writes_what_waits_or_says_that_it_is_lost(database: Database, caplog: pytest.LogCaptureFixture) -> None:
    faulty, bus = Faulty(database), Bus()
    async with open_history(faulty, bus, lambda _: None, 0):  # type: ignore[arg-type]
        bus.publish(event())
    assert await calls_of(new_history(database)) == 1 and caplog.messages == []
    async with open_history(faulty, bus, lambda _: None, 0):  # type: ignore[arg-type]
        bus.publish(event())
        faulty.away = True
    assert caplog.messages == ["usage since the last flush is lost: the database does not answer"]


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_what_no_database_takes_is_counted_as_lost_and_keeps_nothing_else_out(
    database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(history, "BATCH", 1)
    lost: list[int] = []
    one = History(Faulty(database), lost.append, 0)  # type: ignore[arg-type]
    for model in ("a", "poison", "poison", "z"):
        one.count(event(model))
    await one.settle()
    found = await new_history(database).read(replace(ALWAYS, by="model"))
    assert {group.name for group in found} == {"a", "z"} and lost == [2]
    assert [record.levelno for record in caplog.records] == [logging.ERROR]


async def test_what_is_older_than_the_retention_goes(database: Database) -> None:
    one, now = new_history(database, 2), now_ms()
    for days in (1, 3, 5):
        one.count(event(f"{days} days", at=now - days * DAY_MS))
    await one.settle()
    expiring = asyncio.ensure_future(one.expire())
    await until_written(database, 1)
    expiring.cancel()
    assert {group.name for group in await one.read(replace(ALWAYS, by="model"))} == {"1 days"}
    await new_history(database, 0).expire()
    assert await calls_of(one) == 1


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_names_beyond_the_bound_are_told_together(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "MOST_NAMES", 3)
    one = new_history(database)
    for number in range(10):
        one.count(event(f"m{number % 5}", at=now_ms() - (number % 2) * DAY_MS))
    found = await one.read(replace(ALWAYS, by="model"))
    assert len(found) == 4 and sum(figures.calls for figures in found.values()) == 10
    assert next(figures.calls for group, figures in found.items() if group.name == "other") == 4


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
@pytest.mark.parametrize("name", SPANS)
async def test_charts_have_each_step_of_their_time_and_totals_agree(database: Database, name: str) -> None:
    one, span, now = new_history(database), SPANS[name], now_ms()
    assert await one.totals(span) == {"": history.Figures()} and await one.totals(span, "model") == {}
    empty = await one.series(span)
    assert [figures.calls for figures in empty.lines[""]] == [0] * (span.length // span.step)
    for back, model in ((0, "a"), (0, "b"), (span.step, "a"), (span.length // 2, "a"), (2 * span.length, "a")):
        one.count(event(model, at=now - back))
    drawn = await one.series(span, "model")
    assert {line: sum(figures.calls for figures in points) for line, points in drawn.lines.items()} == {"a": 3, "b": 1}
    assert drawn.moments == list(range(drawn.moments[0], drawn.moments[-1] + 1, span.step))
    assert drawn.moments[-1] <= now_ms() < drawn.moments[-1] + span.step + MINUTE_MS
    assert [points[-1].calls for points in drawn.lines.values()] == [1, 1]
    assert {line: figures.calls for line, figures in (await one.totals(span, "model")).items()} == {"a": 3, "b": 1}
    assert (await one.totals(span, filters={"model": "b"}))[""].prompt_tokens == 2
    every = await one.totals_by_every(span)
    assert every == {by: await one.totals(span, by) for by in DIMENSIONS} and every["model"]["b"].calls == 1
    await one.settle()
    assert await one.totals_by_every(span) == every


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_a_call_counts_in_every_answer_as_soon_as_it_has_ended(database: Database) -> None:
    bus = Bus()
    async with open_history(database, bus, lambda _: None, 0) as one:
        bus.publish(event("a"))
        assert {name: figures.calls for name, figures in (await one.totals_by_every(SPANS["1h"]))["model"].items()} == {"a": 1}
        bus.publish(event("a"))
        assert (await one.totals(SPANS["1h"]))[""].calls == 2


async def test_the_program_keeps_its_retention_and_tells_what_it_lost(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = migrated(settings_for(tmp_path, USAGE_RETENTION_DAYS="1"))
    async with open_database(settings) as database:
        one = new_history(database)
        for days in (0, 3):
            one.count(event(at=now_ms() - days * DAY_MS))
        await one.settle()
    async with open_house(settings) as house:
        await until_written(house.context.database, 1)
        monkeypatch.setattr(pending, "MOST_ROWS", 0)
        house.context.bus.publish(event())
        assert house.context.metrics.total(house.context.metrics.usage_lost) == 1


@asynccontextmanager
async def two_servers(folder: Any, url: str) -> AsyncIterator[tuple[Server, Server]]:
    async with server(folder, DATABASE_URL=url) as one, server(folder, DATABASE_URL=url) as other:
        yield one, other


async def test_a_process_that_is_killed_loses_at_most_what_it_had_not_written(
    tmp_path: Any, postgres_url: str, fake: str
) -> None:
    async with aiohttp.ClientSession() as client, two_servers(tmp_path, postgres_url) as (one, other):
        made = await one.token_for(fake, PROVIDER_KEY)
        headers = {"Authorization": f"Bearer {made['token']}"}

        async def call(site: Server, times: int) -> None:
            for _ in range(times):
                body = {"model": "gpt-4o", "messages": []}
                async with client.post(f"{site.url}/v1/chat/completions", json=body, headers=headers) as reply:
                    assert reply.status == 200

        async def counted(site: Server) -> int:
            [row] = (await site.manage("GET", "/manage/usage?group_by=day&model=gpt-4o"))["data"]
            return int(row["calls"])

        await asyncio.gather(call(one, 10), call(other, 10))
        async with asyncio.timeout(10):
            while await counted(one) != 20:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        await call(other, 3)
        other.send(signal.SIGKILL)
        await other.ended()
        assert 20 <= await counted(one) <= 23
