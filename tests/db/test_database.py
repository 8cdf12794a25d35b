"""The contract of a database, kept by both."""

import asyncio
import pathlib
import sqlite3
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing, closing
from typing import Any

import psycopg2
import pytest
from stage.asking import until
from stage.house import settings_for

from llm_proxy.db import Connection, Database, open_database
from llm_proxy.errors import Conflict, StartError
from llm_proxy.settings import Settings


@pytest.fixture(autouse=True)
async def things(database: Database) -> AsyncIterator[None]:
    """Tables to play with."""
    for table in ("parts", "things"):
        await database.execute(f"DROP TABLE IF EXISTS {table}")
    await database.execute("CREATE TABLE things (id BIGINT PRIMARY KEY, name TEXT UNIQUE NOT NULL, size BIGINT CHECK (size > 0))")
    await database.execute("CREATE TABLE parts (id BIGINT PRIMARY KEY, thing BIGINT NOT NULL REFERENCES things (id))")
    yield


async def insert(connection: Connection, id: int, name: str = "") -> int:
    return await connection.execute("INSERT INTO things (id, name) VALUES (:id, :name)", {"id": id, "name": name or f"n{id}"})


async def ids(connection: Connection) -> list[int]:
    return [row["id"] for row in await connection.fetch_all("SELECT id FROM things ORDER BY id")]


def open_transactions(settings: Settings) -> int:
    """How many transactions somebody has left open, asked from outside."""
    if settings.db_driver == "postgres":
        with closing(psycopg2.connect(settings.database_url.reveal())) as outside:
            outside.autocommit = True
            cursor = outside.cursor()
            cursor.execute(
                "SELECT COUNT(*) FROM pg_stat_activity WHERE datname = current_database() AND state LIKE 'idle in transaction%'"
            )
            return int(cursor.fetchone()[0])
    with closing(sqlite3.connect(settings.database_path, isolation_level=None, timeout=0)) as outside:
        try:
            outside.execute("BEGIN IMMEDIATE")
        except sqlite3.OperationalError:
            return 1
        outside.execute("ROLLBACK")
        return 0


async def assert_nothing_is_left_open(settings: Settings) -> None:
    """A server may need a moment to see that a connection was closed."""
    await until(lambda: not open_transactions(settings))


async def test_execute_says_how_many_rows_it_touched(database: Database) -> None:
    assert await insert(database, 1) == 1
    assert await insert(database, 2) == 1
    assert await database.execute("UPDATE things SET size = 5") == 2
    assert await database.execute("DELETE FROM things WHERE id = :id", {"id": 9}) == 0


async def test_executemany_runs_once_for_each_set(database: Database) -> None:
    await database.executemany("INSERT INTO things (id, name) VALUES (:id, :name)", [{"id": n, "name": str(n)} for n in range(5)])
    assert await ids(database) == [0, 1, 2, 3, 4]


async def test_executemany_with_nothing_to_do_does_nothing(database: Database) -> None:
    await database.executemany("INSERT INTO things (id, name) VALUES (:id, :name)", [])
    assert await ids(database) == []


async def test_executemany_is_all_or_nothing(database: Database) -> None:
    rows = [{"id": 1, "name": "a"}, {"id": 2, "name": "b"}, {"id": 1, "name": "c"}]
    with pytest.raises(Conflict):
        await database.executemany("INSERT INTO things (id, name) VALUES (:id, :name)", rows)
    assert await ids(database) == []


async def test_rows_are_mappings(database: Database) -> None:
    await insert(database, 1, "one")
    row = await database.fetch_one("SELECT id, name, size FROM things")
    assert isinstance(row, Mapping)
    assert dict(row) == {"id": 1, "name": "one", "size": None}
    assert await database.fetch_all("SELECT id, name, size FROM things") == [row]


async def test_fetch_one_gives_the_first_row_or_none(database: Database) -> None:
    assert await database.fetch_one("SELECT id FROM things") is None
    await insert(database, 1)
    await insert(database, 2)
    assert await database.fetch_one("SELECT id FROM things ORDER BY id DESC") == {"id": 2}


async def test_a_write_may_return_its_row(database: Database) -> None:
    await insert(database, 1)
    sql = "UPDATE things SET size = COALESCE(size, 0) + :n WHERE id = :id RETURNING size"
    assert await database.fetch_one(sql, {"n": 3, "id": 1}) == {"size": 3}
    assert await database.fetch_one(sql, {"n": 3, "id": 1}) == {"size": 6}
    assert await database.fetch_one(sql, {"n": 3, "id": 2}) is None


@pytest.mark.parametrize(
    ("expression", "value"),
    [
        pytest.param(":n", 7, id="a name"),
        pytest.param(":n + :n", 14, id="a name twice"),
        pytest.param("':n'", ":n", id="a name in a literal"),
        pytest.param("'it''s :n'", "it's :n", id="a quote in a literal"),
        pytest.param("'100%'", "100%", id="a percent sign in a literal"),
        pytest.param("'%(n)s'", "%(n)s", id="the other notation in a literal"),
        pytest.param("'%s'", "%s", id="a driver's placeholder in a literal"),
        pytest.param(":n % 4", 3, id="a percent sign as an operator"),
        pytest.param("'12:30:15'", "12:30:15", id="a time in a literal"),
        pytest.param("''", "", id="an empty literal"),
        pytest.param("'a' || '%' || 'b'", "a%b", id="several literals"),
        pytest.param("CAST(:n AS TEXT)", "7", id="a cast"),
    ],
)
async def test_names_are_filled_in_outside_literals(database: Database, expression: str, value: object) -> None:
    given = {"n": 7, "unused": 1}
    assert await database.fetch_one(f'SELECT {expression} AS "value:n"', given) == {"value:n": value}


async def test_percent_signs_need_no_parameters(database: Database) -> None:
    assert await database.fetch_one("SELECT 'a%b' AS x, 7 % 4 AS y") == {"x": "a%b", "y": 3}


@pytest.mark.parametrize("text", ["", "it's", "100%", ":id", "%(id)s", "\\", '"', "é漢😀", "a\nb", "x" * 100_000])
async def test_any_text_goes_in_and_comes_out(database: Database, text: str) -> None:
    await database.execute("INSERT INTO things (id, name) VALUES (:id, :name)", {"id": 1, "name": text})
    assert await database.fetch_one("SELECT name FROM things WHERE name = :name", {"name": text}) == {"name": text}


@pytest.mark.parametrize("number", [0, -1, 2**53 - 1, 2**63 - 1])
async def test_whole_numbers_keep_their_value(database: Database, number: int) -> None:
    await insert(database, number)
    assert await ids(database) == [number]


@pytest.mark.parametrize(
    "sql",
    [
        pytest.param("INSERT INTO things (id, name) VALUES (1, 'other')", id="an id is taken"),
        pytest.param("INSERT INTO things (id, name) VALUES (2, 'one')", id="a name is taken"),
        pytest.param("INSERT INTO things (id, name) VALUES (2, NULL)", id="a name is missing"),
        pytest.param("UPDATE things SET size = 0", id="a check fails"),
        pytest.param("INSERT INTO parts (id, thing) VALUES (1, 9)", id="what it refers to is not there"),
    ],
)
async def test_a_row_that_breaks_a_rule_is_a_conflict(database: Database, sql: str) -> None:
    await insert(database, 1, "one")
    with pytest.raises(Conflict):
        await database.execute(sql)
    with pytest.raises(Conflict):
        async with database.transaction() as tx:
            await insert(tx, 5)
            await tx.execute(sql)
    assert await ids(database) == [1]


async def test_a_mistake_in_a_statement_is_not_passed_off_as_an_outage(database: Database) -> None:
    for sql in ("SELECT size FROM nowhere", "SELEC 1", "UPDATE things SET nothing = 1"):
        with pytest.raises((sqlite3.OperationalError, psycopg2.ProgrammingError)):
            await database.fetch_one(sql)
    await insert(database, 1)


async def test_a_transaction_is_committed_at_its_end(database: Database, settings: Settings) -> None:
    async with database.transaction() as tx:
        await insert(tx, 1)
        await tx.executemany(
            "INSERT INTO things (id, name) VALUES (:id, :name)", [{"id": 2, "name": "b"}, {"id": 3, "name": "c"}]
        )
        assert await ids(tx) == [1, 2, 3], "a transaction sees its own writes"
        assert await tx.fetch_one("SELECT COUNT(*) AS n FROM things") == {"n": 3}
        assert await ids(database) == [], "nobody else does"
    assert await ids(database) == [1, 2, 3]
    await assert_nothing_is_left_open(settings)


async def test_a_transaction_left_by_an_error_is_rolled_back(database: Database, settings: Settings) -> None:
    error = ValueError("mine")
    with pytest.raises(ValueError, match="mine") as raised:
        async with database.transaction() as tx:
            await insert(tx, 1)
            raise error
    assert raised.value is error
    await assert_nothing_is_left_open(settings)
    assert await ids(database) == []
    await insert(database, 1)
    assert await ids(database) == [1]


async def test_work_is_committed_before_its_result_is_told(database: Database, settings: Settings) -> None:
    async def work(tx: Connection) -> list[int]:
        await insert(tx, 1)
        return await ids(tx)

    told: list[str] = []
    assert await database.transact(work, lambda: told.append("committed")) == [1]
    assert told == ["committed"]
    assert await ids(database) == [1]
    with pytest.raises(Conflict):
        await database.transact(work, lambda: told.append("not committed"))
    assert told == ["committed"]
    await assert_nothing_is_left_open(settings)


async def two_things(database: Database, first: int) -> None:
    async with database.transaction() as tx:
        await insert(tx, first)
        await insert(tx, first + 1)
        await tx.fetch_one("SELECT COUNT(*) FROM things")


# A transaction takes some forty turns of the loop; for the last of these it may take as many as it will.
TURNS = [*range(30), *range(30, 120, 3), 10**9]


async def turned(turns: int, task: asyncio.Task[Any]) -> None:
    """Let the loop turn so many times, or until the task is done."""
    for _ in range(turns):
        if task.done():
            return
        await asyncio.sleep(0)


@pytest.mark.parametrize("cancellations", [1, 2], ids=["once", "twice"])
async def test_a_transaction_cancelled_at_any_moment_is_done_whole_or_not_at_all(
    database: Database, settings: Settings, cancellations: int
) -> None:
    outcomes = []
    for turns in TURNS:
        task = asyncio.create_task(two_things(database, 10 * turns))
        await turned(turns, task)
        for _ in range(cancellations):
            task.cancel()
            await asyncio.sleep(0)
        await asyncio.wait([task])
        outcomes.append(task.cancelled())
        assert await insert(database, 10 * turns + 5) == 1, "the next verb works"
    await assert_nothing_is_left_open(settings)
    found = {turns: [id for id in await ids(database) if id // 10 == turns] for turns in TURNS}
    for turns, cancelled in zip(TURNS, outcomes, strict=True):
        whole = [10 * turns, 10 * turns + 1, 10 * turns + 5]
        # A COMMIT that is under way when the cancellation comes may still succeed.
        assert found[turns] in ([whole, whole[2:]] if cancelled else [whole]), f"after {turns} turns"
    assert found[0] == [5]
    assert not outcomes[-1]


async def test_a_transaction_cancelled_between_statements_is_rolled_back(database: Database, settings: Settings) -> None:
    reached = asyncio.Event()

    async def work() -> None:
        async with database.transaction() as tx:
            await insert(tx, 1)
            reached.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await reached.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await assert_nothing_is_left_open(settings)
    assert await ids(database) == []


async def test_a_transaction_cancelled_while_it_waits_for_its_turn_never_begins(database: Database) -> None:
    async with database.transaction() as first:
        await insert(first, 1)
        waiting = asyncio.create_task(insert(database, 1))
        await asyncio.sleep(0.02)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await insert(first, 2)
    assert await ids(database) == [1, 2]


async def test_a_verb_that_is_cancelled_ends_as_cancelled(database: Database) -> None:
    await insert(database, 1)
    for turns in range(40):
        # What was cancelled before may have cost a connection; this one is to be spent on the statement alone.
        await database.ping()
        task = asyncio.create_task(database.execute("UPDATE things SET size = :n", {"n": turns + 1}))
        await turned(4, task)
        # The loop stands still until the answer has come, so that the turns in which it is taken in are among these.
        end = time.perf_counter() + 0.01 * (turns % 2)
        while time.perf_counter() < end:
            pass
        await turned(turns // 2, task)
        if task.cancel():
            await asyncio.wait([task])
            assert task.cancelled(), "a background task that runs on after its cancellation holds up every stop"
    assert await database.fetch_one("SELECT COUNT(*) AS n FROM things") == {"n": 1}


async def test_reads_go_on_beside_a_transaction(database: Database) -> None:
    await insert(database, 1)
    async with database.transaction() as tx:
        await insert(tx, 2)
        async with asyncio.timeout(1):
            assert await asyncio.gather(*(ids(database) for _ in range(20))) == [[1]] * 20


async def test_writers_side_by_side_lose_nothing(database: Database) -> None:
    await database.execute("INSERT INTO things (id, name, size) VALUES (1, 'one', 1)")

    async def add() -> None:
        async with database.transaction() as tx:
            row = await tx.fetch_one("UPDATE things SET size = size + 1 WHERE id = 1 RETURNING size")
            assert row is not None
            await insert(tx, 1000 + row["size"])

    await asyncio.gather(*(add() for _ in range(30)))
    assert await database.fetch_one("SELECT size FROM things WHERE id = 1") == {"size": 31}
    assert await ids(database) == [1, *range(1002, 1032)]


async def test_hints_come_at_once_and_when_another_process_has_written(database: Database, settings: Settings) -> None:
    async with open_database(settings) as other, aclosing(database.hints()) as hints:
        async with asyncio.timeout(1):
            await anext(hints)
        for number in range(3):
            async with other.transaction() as tx:
                await insert(tx, number)
                await tx.notify()
            async with asyncio.timeout(1):
                await anext(hints)


async def test_ping_passes_while_the_database_answers(database: Database) -> None:
    await database.ping()


@pytest.mark.parametrize(
    "given",
    [
        pytest.param({"DATABASE_PATH": "file/house.db"}, id="a folder that is a file"),
        pytest.param({"DATABASE_PATH": "."}, id="a file that is a folder"),
        pytest.param({"DATABASE_PATH": "/proc/house.db"}, id="a folder that nobody may write"),
        pytest.param({"DATABASE_URL": "postgresql://127.0.0.1:1/house"}, id="a server that is not there"),
        pytest.param({"DATABASE_URL": "postgresql://127.0.0.1:1/house?nonsense=1"}, id="a URL that libpq does not know"),
    ],
)
async def test_a_database_that_cannot_be_opened_stops_the_start_with_its_setting_named(
    tmp_path: pathlib.Path, given: dict[str, str]
) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StartError, match=next(iter(given))):
        async with open_database(settings_for(tmp_path, **given)):
            pass
