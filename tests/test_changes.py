"""What changed in the database: told to its own process and to others, in order, each once."""

import asyncio
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from stage.asking import until

from llm_proxy import changes
from llm_proxy.changes import EVERYTHING, KEPT_MS, Change, ChangeFeed, record
from llm_proxy.clock import now_ms
from llm_proxy.db import NO_PARAMS, Database, Params, Row, open_database
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.settings import Settings


class Listening:
    """A feed with all that it told."""

    def __init__(self, database: Database) -> None:
        self.feed = ChangeFeed(database)
        self.told: list[Change] = []
        self.feed.listen(self.told.append)

    async def make(self, *made: Change) -> None:
        async with self.feed.changing() as tx:
            for change in made:
                await record(tx, change)

    async def told_within_a_second(self, *expected: Change) -> None:
        await until(lambda: len(self.told) >= len(expected), 1.0)
        assert self.told == list(expected)


class Unreliable:
    """A database whose reads fail as often as told."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.failures = 0
        self.transaction = database.transaction
        self.fetch_all = database.fetch_all
        self.hints = database.hints

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        if self.failures:
            self.failures -= 1
            raise DatabaseUnavailable
        return await self._database.fetch_one(sql, params)


@pytest.fixture
async def here(database: Database) -> Listening:
    listening = Listening(database)
    await listening.feed.start()
    return listening


@asynccontextmanager
async def following(feed: ChangeFeed) -> AsyncIterator[None]:
    """A feed that follows, still does at the end of the block, and ends when it is cancelled."""
    task = asyncio.create_task(feed.follow())
    try:
        yield
    finally:
        assert not task.done()
        task.cancel()
        await asyncio.wait([task])


@pytest.fixture
async def there(settings: Settings, here: Listening) -> AsyncIterator[Listening]:
    """Another program on the same database; both follow."""
    async with open_database(settings) as other, following(here.feed):
        listening = Listening(other)
        await listening.feed.start()
        async with following(listening.feed):
            yield listening


def token(id: str, **payload: object) -> Change:
    return Change("token", id, payload)


async def test_a_change_is_in_force_here_when_its_block_has_ended(here: Listening) -> None:
    await here.make(token("a"), Change("provider", "b", {"project_id": "p", "n": 1}))
    assert here.told == [token("a"), Change("provider", "b", {"project_id": "p", "n": 1})]


async def test_a_change_that_is_rolled_back_is_told_to_nobody(here: Listening) -> None:
    with pytest.raises(ValueError, match="no"):
        async with here.feed.changing() as tx:
            await record(tx, token("a"))
            raise ValueError("no")
    await here.make(token("b"))
    assert here.told == [token("b")]


async def test_what_was_changed_before_the_start_is_not_told(here: Listening, database: Database) -> None:
    await here.make(token("a"))
    later = Listening(database)
    await later.feed.start()
    await later.feed.catch_up()
    assert later.told == []


async def test_every_listener_is_told(here: Listening) -> None:
    others: list[Change] = []
    here.feed.listen(others.append)
    await here.make(token("a"))
    assert others == here.told == [token("a")]


async def test_changes_are_told_to_another_program_within_a_second(here: Listening, there: Listening) -> None:
    await here.make(token("a"))
    await there.told_within_a_second(token("a"))
    await there.make(token("b", n=2))
    await here.told_within_a_second(token("a"), token("b", n=2))
    assert there.told == here.told


async def test_changes_made_at_once_are_told_everywhere_in_one_order_each_once(
    here: Listening, there: Listening, database: Database
) -> None:
    made = [token(str(number)) for number in range(30)]
    await asyncio.gather(*((here if number % 3 else there).make(change) for number, change in enumerate(made)))
    await until(lambda: len(here.told) == len(there.told) == len(made), 1.0)
    stored = [row["ref"] for row in await database.fetch_all("SELECT ref FROM changes ORDER BY version")]
    assert [change.ref for change in here.told] == [change.ref for change in there.told] == stored
    assert sorted(stored) == sorted(change.ref for change in made)


async def test_many_changes_are_read_in_batches(here: Listening, database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "BATCH", 3)
    made = [token(str(number)) for number in range(10)]
    async with database.transaction() as tx:
        for change in made:
            await record(tx, change)
    await here.feed.catch_up()
    assert here.told == made


@pytest.mark.parametrize(
    ("gone", "told"),
    [
        pytest.param("version <= 2", [EVERYTHING, token("3"), token("4")], id="the oldest"),
        pytest.param("version = 2", [EVERYTHING, token("1"), token("3"), token("4")], id="one in the middle"),
        pytest.param("version > 0", [EVERYTHING], id="all"),
        pytest.param("version < 0", [token("1"), token("2"), token("3"), token("4")], id="none"),
    ],
)
async def test_who_fell_behind_what_is_kept_drops_everything(
    here: Listening, database: Database, gone: str, told: list[Change]
) -> None:
    async with database.transaction() as tx:
        for number in range(1, 5):
            await record(tx, token(str(number)))
        await tx.execute(f"DELETE FROM changes WHERE {gone}")
    await here.feed.catch_up()
    assert here.told == told
    await here.make(token("5"))
    assert here.told == [*told, token("5")]


async def test_an_older_database_in_the_place_of_the_one_before_drops_everything(here: Listening, database: Database) -> None:
    await here.make(token("1"), token("2"), token("3"))
    here.told.clear()
    await database.execute("UPDATE config_version SET version = 1")
    await database.execute("DELETE FROM changes WHERE version > 1")
    await here.feed.catch_up()
    await here.make(token("other"))
    assert here.told == [EVERYTHING, token("other")]


async def test_rows_go_after_an_hour(here: Listening, database: Database) -> None:
    await here.make(token("old"), token("young"))
    sql = "UPDATE changes SET at = :at WHERE ref = :ref"
    await database.execute(sql, {"at": now_ms() - KEPT_MS - 1000, "ref": "old"})
    await database.execute(sql, {"at": now_ms() - KEPT_MS + 60_000, "ref": "young"})
    await here.make(token("new"))
    assert await database.fetch_all("SELECT ref FROM changes ORDER BY version") == [{"ref": "young"}, {"ref": "new"}]


async def test_a_change_does_not_fail_because_it_cannot_be_looked_at_now(database: Database) -> None:
    unreliable = Unreliable(database)
    here = Listening(unreliable)  # type: ignore[arg-type]
    await here.feed.start()
    unreliable.failures = 1
    await here.make(token("a"))
    assert here.told == []
    assert unreliable.failures == 0
    await here.feed.catch_up()
    assert here.told == [token("a")]


async def test_following_outlives_an_outage(database: Database) -> None:
    unreliable = Unreliable(database)
    here = Listening(unreliable)  # type: ignore[arg-type]
    await here.feed.start()
    async with following(here.feed):
        unreliable.failures = 2
        async with database.transaction() as tx:
            await record(tx, token("a"))
        await here.told_within_a_second(token("a"))
    assert unreliable.failures == 0


@pytest.mark.parametrize("settings", ["postgres"], indirect=True)
async def test_a_listener_whose_connection_is_cut_recovers_within_a_second(
    here: Listening, there: Listening, database: Database
) -> None:
    listening = "FROM pg_stat_activity WHERE datname = current_database() AND query LIKE 'LISTEN%'"
    async with asyncio.timeout(1):
        while await database.fetch_one(f"SELECT COUNT(*) AS n {listening}") != {"n": 2}:
            pass
    await database.fetch_all(f"SELECT pg_terminate_backend(pid) {listening}")
    await here.make(token("a"))
    await there.told_within_a_second(token("a"))
    await there.make(token("b"))
    await here.told_within_a_second(token("a"), token("b"))


WRITER = """
import sqlite3, sys, time
connection = sqlite3.connect(sys.argv[1], isolation_level=None)
connection.execute("BEGIN IMMEDIATE")
connection.execute("UPDATE config_version SET version = 1")
connection.execute("INSERT INTO changes (version, at, kind, ref, payload) VALUES (1, 9e15, 'token', 'a', '{}')")
connection.execute("COMMIT")
print(time.time())
"""


@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_the_write_of_another_process_to_the_file_is_noticed_within_a_second(here: Listening, settings: Settings) -> None:
    async with following(here.feed):
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-I", "-c", WRITER, settings.database_path, stdout=subprocess.PIPE
        )
        await until(lambda: here.told)
        noticed = time.time()
        written, _ = await process.communicate()
    assert here.told == [token("a")]
    assert noticed - float(written) < 1.0
