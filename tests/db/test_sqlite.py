"""SQLite: its file, its one writer, its readers."""

import asyncio
import os
import pathlib
import sqlite3
import stat
import threading
import time
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from llm_proxy.db import sqlite
from llm_proxy.db.sqlite import SQLiteDatabase
from llm_proxy.errors import DatabaseUnavailable, StartError

SLOW = (
    "SELECT COUNT(*) FROM (WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 1000000000) SELECT x FROM c)"
)


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "some.db"


@pytest.fixture
async def database(path: pathlib.Path) -> AsyncIterator[SQLiteDatabase]:
    async with sqlite.connect(str(path)) as opened:
        await opened.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT)")
        yield opened


async def names(database: SQLiteDatabase) -> list[str]:
    return [row["name"] for row in await database.fetch_all("SELECT name FROM things ORDER BY id")]


@pytest.mark.parametrize(
    ("pragma", "value"),
    [
        pytest.param("journal_mode", "wal", id="readers go on beside a writer"),
        pytest.param("synchronous", 1, id="one sync a checkpoint"),
        pytest.param("foreign_keys", 1, id="references are kept"),
        pytest.param("busy_timeout", 5000, id="another process's write is waited for"),
    ],
)
async def test_every_connection_is_set_up(database: SQLiteDatabase, pragma: str, value: object) -> None:
    for connection in (database._writer, database._watcher, *database._idle._queue):  # type: ignore[attr-defined]
        row = await connection.fetch_one(f"PRAGMA {pragma}")
        assert row is not None
        assert list(row.values()) == [value]


async def test_writers_take_turns_in_the_order_they_came(database: SQLiteDatabase) -> None:
    async def write(number: int) -> None:
        sql, params = "INSERT INTO things (name) VALUES (:name)", {"name": str(number)}
        if number % 2:
            await database.execute(sql, params)
            return
        async with database.transaction() as tx:
            await tx.fetch_one("SELECT 1")
            await tx.execute(sql, params)

    await asyncio.gather(*(write(number) for number in range(20)))
    assert await names(database) == [str(number) for number in range(20)]


async def test_a_slow_read_holds_up_no_other(database: SQLiteDatabase) -> None:
    slow = asyncio.create_task(database.fetch_one(SLOW))
    await asyncio.sleep(0.02)
    async with asyncio.timeout(1):
        for _ in range(10):
            assert await names(database) == []
        await database.execute("INSERT INTO things (name) VALUES ('a')")
    assert not slow.done()
    slow.cancel()
    await asyncio.wait([slow])


async def test_slow_reads_that_are_cancelled_free_their_readers_at_once(database: SQLiteDatabase) -> None:
    slow = [asyncio.create_task(database.fetch_one(SLOW)) for _ in range(sqlite.READERS)]
    await asyncio.sleep(0.02)
    for task in slow:
        task.cancel()
    await asyncio.wait(slow)
    assert all(task.cancelled() for task in slow)
    async with asyncio.timeout(1):
        assert await asyncio.gather(*(names(database) for _ in range(10))) == [[]] * 10


async def worst_lag(until: asyncio.Task[object]) -> float:
    """The longest that the loop kept somebody waiting while a task ran."""
    worst = 0.0
    while not until.done():
        before = time.perf_counter()
        await asyncio.sleep(0.005)
        worst = max(worst, time.perf_counter() - before - 0.005)
    return worst


async def test_another_process_that_writes_is_waited_for_beside_the_loop(database: SQLiteDatabase, path: pathlib.Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
        other.execute("BEGIN EXCLUSIVE")
        other.execute("INSERT INTO things (name) VALUES ('theirs')")
        threading.Timer(0.6, other.execute, ["COMMIT"]).start()
        write = asyncio.create_task(database.execute("INSERT INTO things (name) VALUES ('ours')"))
        assert await names(database) == [], "readers see what was committed before"
        assert await worst_lag(write) < 0.5
        assert await write == 1
    assert await names(database) == ["theirs", "ours"]


async def test_another_process_that_writes_for_too_long_is_an_outage_that_ends(
    path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MS", 50)
    async with sqlite.connect(str(path)) as database:
        await database.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT)")
        with closing(sqlite3.connect(path, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            with pytest.raises(DatabaseUnavailable):
                await database.execute("INSERT INTO things (name) VALUES ('ours')")
            with pytest.raises(DatabaseUnavailable):
                async with database.transaction():
                    raise AssertionError("it cannot have begun")
            other.execute("ROLLBACK")
        await database.execute("INSERT INTO things (name) VALUES ('ours')")
        assert await names(database) == ["ours"]


async def test_what_nobody_changed_gives_no_further_hint(database: SQLiteDatabase) -> None:
    hints = database.hints()
    await anext(hints)
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(2 * sqlite.HINT_SECONDS + 0.1):
            await anext(hints)


async def test_the_own_writes_give_a_hint_too(database: SQLiteDatabase) -> None:
    hints = database.hints()
    await anext(hints)
    await database.execute("INSERT INTO things (name) VALUES ('a')")
    async with asyncio.timeout(1):
        await anext(hints)


async def test_a_file_that_cannot_be_written_stops_the_start(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "BUSY_MS", 50)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(StartError, match=f"{path} cannot be used: .* must be writable"):
            async with sqlite.connect(str(path)):
                pass


async def test_the_files_beside_it_are_as_private_as_the_database(path: pathlib.Path) -> None:
    os.close(os.open(path, os.O_CREAT, 0o600))
    async with sqlite.connect(str(path)) as database:
        await database.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT)")
        modes = {file.name: stat.S_IMODE(file.stat().st_mode) for file in os.scandir(path.parent)}
        assert modes == {"some.db": 0o600, "some.db-shm": 0o600, "some.db-wal": 0o600}


async def test_closing_leaves_one_file(tmp_path: pathlib.Path) -> None:
    async with sqlite.connect(str(tmp_path / "other.db")) as other:
        await other.execute("CREATE TABLE things (id INTEGER PRIMARY KEY)")
    assert [file.name for file in os.scandir(tmp_path)] == ["other.db"]
