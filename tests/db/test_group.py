"""Work of one moment shares a commit; each is done whole or not at all, whatever becomes of the others."""

import asyncio
import gc
import pathlib
import sqlite3
import weakref
from collections.abc import AsyncIterator
from contextlib import closing

import pytest

from llm_proxy.db import Connection, group, sqlite
from llm_proxy.db.sqlite import SQLiteDatabase
from llm_proxy.errors import Conflict, DatabaseUnavailable


class Mistake(Exception):
    """An error of the caller's own."""


@pytest.fixture
def path(tmp_path: pathlib.Path) -> pathlib.Path:
    return tmp_path / "some.db"


@pytest.fixture
async def database(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[SQLiteDatabase]:
    monkeypatch.setattr(sqlite, "BUSY_MS", 50)
    async with sqlite.connect(str(path)) as opened:
        await opened.execute("CREATE TABLE things (id INTEGER PRIMARY KEY, name TEXT UNIQUE)")
        yield opened


async def insert(tx: Connection, name: str) -> None:
    await tx.execute("INSERT INTO things (name) VALUES (:name)", {"name": name})


async def transact(database: SQLiteDatabase, number: int, committed: list[int] | None = None) -> int:
    """Write two rows, and read the first."""

    async def work(tx: Connection) -> int:
        await insert(tx, f"{number} a")
        await insert(tx, f"{number} b")
        row = await tx.fetch_one("SELECT :number AS n FROM things WHERE name = :name", {"name": f"{number} a", "number": number})
        assert row
        return int(row["n"])

    return await database.transact(work, lambda: committed.append(number) if committed is not None else None)


async def fail(database: SQLiteDatabase, number: int, sql: str = "") -> None:
    """Write a row, then fail by an error of one's own, or by what a statement says."""

    async def work(tx: Connection) -> None:
        await insert(tx, f"{number} lost")
        await tx.execute(sql or "SELECT 1")
        raise Mistake

    await database.transact(work, lambda: pytest.fail("it was not committed"))


async def done(database: SQLiteDatabase) -> list[int]:
    """The numbers of those whose rows are there, each of whom must have both."""
    rows = [row["name"] for row in await database.fetch_all("SELECT name FROM things")]
    numbers = sorted({int(name.split()[0]) for name in rows})
    assert sorted(rows) == sorted(f"{number} {letter}" for number in numbers for letter in "ab")
    return numbers


async def test_all_that_wait_at_one_time_share_commits_and_each_gets_its_own_result(database: SQLiteDatabase) -> None:
    statements: list[str] = []
    await database._writer._raw.set_trace_callback(statements.append)
    committed: list[int] = []
    number = 2 * group.MOST
    assert await asyncio.gather(*(transact(database, n, committed) for n in range(number))) == list(range(number))
    # The first begins before the others are there.
    assert [statements.count(word) for word in ("BEGIN IMMEDIATE", "COMMIT")] == [3, 3]
    assert committed == await done(database) == list(range(number))


async def test_an_error_has_no_other_as_its_context(database: SQLiteDatabase) -> None:
    first, second = await asyncio.gather(fail(database, 1), fail(database, 2), return_exceptions=True)
    assert isinstance(first, Mistake) and isinstance(second, Mistake)
    assert first.__context__ is second.__context__ is None


async def test_what_fails_is_undone_for_itself(database: SQLiteDatabase) -> None:
    outcomes = await asyncio.gather(
        transact(database, 0),
        transact(database, 1),
        fail(database, 2),
        fail(database, 3, "INSERT INTO things (name) VALUES ('1 a')"),
        fail(database, 4, "SELECT nothing FROM nowhere"),
        transact(database, 5),
        return_exceptions=True,
    )
    assert [outcomes[place] for place in (0, 1, 5)] == [0, 1, 5]
    assert [type(outcomes[place]) for place in (2, 3, 4)] == [Mistake, Conflict, sqlite3.OperationalError]
    assert await done(database) == [0, 1, 5]


async def test_who_is_cancelled_before_the_group_begins_has_no_part_in_it(database: SQLiteDatabase) -> None:
    async with database.transaction():
        tasks = [asyncio.create_task(transact(database, n)) for n in range(2 * group.MOST)]
        await asyncio.sleep(0)
        for task in tasks[: group.MOST + 1]:
            task.cancel()
        await asyncio.wait(tasks[: group.MOST + 1])
    left = list(range(group.MOST + 1, 2 * group.MOST))
    assert await asyncio.gather(*tasks[group.MOST + 1 :]) == left
    assert await done(database) == left


async def test_who_is_cancelled_at_any_moment_takes_nobody_along(database: SQLiteDatabase) -> None:
    for turn in range(24):
        numbers, committed = [10 * turn + n for n in range(4)], list[int]()
        tasks = [asyncio.create_task(transact(database, n, committed)) for n in numbers]
        for _ in range(turn // 2):
            await asyncio.sleep(0)
        # The first runs alone, the second leads the group of the rest.
        gone = tasks.pop(turn % 2)
        gone.cancel()
        async with asyncio.timeout(5):
            assert set(await asyncio.gather(*tasks)) < set(numbers)
            await asyncio.wait([gone])
        await database.execute("SELECT 1")
        there = [n for n in await done(database) if n // 10 == turn]
        assert len(there) >= 3 and committed == there
        assert gone.cancelled() or len(there) == 4


async def test_work_that_waits_for_something_else_is_a_mistake_that_harms_nobody_after_it(database: SQLiteDatabase) -> None:
    async def work(tx: Connection) -> None:
        await insert(tx, "0 a")
        await asyncio.sleep(0)

    with pytest.raises(RuntimeError, match="something else than its connection"):
        await database.transact(work, list)
    assert await transact(database, 1) == 1
    assert await done(database) == [1]


async def test_an_outage_is_told_to_all_and_ends(database: SQLiteDatabase, path: pathlib.Path) -> None:
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        outcomes = await asyncio.gather(*(transact(database, n) for n in range(4)), return_exceptions=True)
        assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * 4
        other.execute("ROLLBACK")
    assert await asyncio.gather(*(transact(database, n) for n in range(4, 8))) == [4, 5, 6, 7]
    assert await done(database) == [4, 5, 6, 7]


@pytest.mark.parametrize("mistakes", [0, 1], ids=["at the first attempt", "at the second"])
async def test_nobody_is_told_of_success_where_a_full_disk_undid_everything(database: SQLiteDatabase, mistakes: int) -> None:
    await database.fetch_all("PRAGMA max_page_count = 10")
    async with database.transaction():
        full = fail(database, 2, "INSERT INTO things (name) VALUES (hex(zeroblob(100000)))")
        others = [transact(database, 0), *(fail(database, 1) for _ in range(mistakes)), full, transact(database, 3)]
        attempts = [asyncio.ensure_future(one) for one in others]
        await asyncio.sleep(0)
    outcomes = await asyncio.gather(*attempts, return_exceptions=True)
    assert [type(outcome) for outcome in outcomes] == [DatabaseUnavailable] * len(others)
    assert await done(database) == []
    assert await transact(database, 4) == 4
    assert await done(database) == [4]


async def test_an_error_is_let_go_of_without_a_search_for_cycles(database: SQLiteDatabase) -> None:
    gc.disable()
    try:
        with pytest.raises(Mistake) as raised:
            await fail(database, 1)
        left = weakref.ref(raised.value)
        del raised
        # The thread holds on to what it did last.
        await database.execute("SELECT 1")
        assert left() is None
    finally:
        gc.enable()
