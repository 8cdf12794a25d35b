"""PostgreSQL: the translation of names, a pool that outlives its server, a connection that listens."""

import asyncio
import os
import pathlib
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, closing
from typing import Any

import aiohttp
import psycopg2
import pytest
from stage.asking import ASKING, CHAT, until
from stage.house import MANAGEMENT_TOKEN, open_house, settings_for
from stage.postgres import Postgres, running_postgres

from llm_proxy.db import postgres
from llm_proxy.db.postgres import PostgresDatabase, translate
from llm_proxy.errors import Conflict, DatabaseUnavailable, StartError


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    """A server that tests may stop and start, with a database of its own for all of them."""
    with running_postgres() as running:
        yield running


@pytest.fixture
async def database(server: Postgres) -> AsyncIterator[PostgresDatabase]:
    """An opened database with one table, `things`."""
    ask(server, "DROP TABLE IF EXISTS things; CREATE TABLE things (id BIGINT PRIMARY KEY, name TEXT)")
    async with postgres.connect(server.uri, 4) as opened:
        yield opened


def ask(server: Postgres, sql: str) -> list[Any]:
    """Run a statement from outside."""
    with closing(psycopg2.connect(server.uri)) as connection:
        connection.autocommit = True
        cursor = connection.cursor()
        cursor.execute(sql)
        return list(cursor.fetchall()) if cursor.description else []


OTHERS = "FROM pg_stat_activity WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"


async def seconds_until(attempt: Callable[[], Awaitable[object]]) -> float:
    """How long it takes until an attempt passes."""
    start = time.monotonic()
    while True:
        try:
            await attempt()
            return time.monotonic() - start
        except DatabaseUnavailable:
            await asyncio.sleep(0.01)


async def waiting_in(server: Postgres, sql: str) -> None:
    """Wait until somebody runs a statement that begins so."""
    await until(lambda: ask(server, f"SELECT 1 {OTHERS} AND state = 'active' AND query LIKE '{sql}%'"))


@pytest.mark.parametrize(
    ("sql", "translated"),
    [
        pytest.param("SELECT 1", "SELECT 1", id="nothing to translate"),
        pytest.param("id = :id", "id = %(id)s", id="a name"),
        pytest.param(":a, :a_2,:b", "%(a)s, %(a_2)s,%(b)s", id="several names"),
        pytest.param("':id'", "':id'", id="a name in a literal"),
        pytest.param("'it''s :id', :id", "'it''s :id', %(id)s", id="after a quote in a literal"),
        pytest.param("'' || :id", "'' || %(id)s", id="after an empty literal"),
        pytest.param('"a:b" = :b', '"a:b" = %(b)s', id="a name in an identifier"),
        pytest.param("""'"' || :id || '"'""", """'"' || %(id)s || '"'""", id="between quotes of the other kind"),
        pytest.param(":id::text", "%(id)s::text", id="a cast"),
        pytest.param("now()::date", "now()::date", id="a cast of an expression"),
        pytest.param("7 % :n", "7 %% %(n)s", id="a percent sign as an operator"),
        pytest.param("LIKE '50%'", "LIKE '50%%'", id="a percent sign in a literal"),
        pytest.param("'%(id)s %s'", "'%%(id)s %%s'", id="the other notation in a literal"),
    ],
)
def test_names_become_the_drivers_outside_literals(sql: str, translated: str) -> None:
    assert translate(sql) == translated


async def test_casts_and_operators_reach_the_server_whole(database: PostgresDatabase) -> None:
    row = await database.fetch_one("SELECT :n::text || '::' AS a, (:n::bigint % 4)::int AS b", {"n": 7})
    assert row == {"a": "7::", "b": 3}


async def test_a_server_that_stops_is_an_outage_at_once_and_none_when_it_is_back(
    server: Postgres, database: PostgresDatabase
) -> None:
    await asyncio.gather(*(database.fetch_one("SELECT pg_sleep(0.05)") for _ in range(4)))
    server.stop()
    try:
        start = time.monotonic()
        for verb in (
            database.execute("SELECT 1"),
            database.executemany("INSERT INTO things (id) VALUES (:id)", [{"id": 1}]),
            database.fetch_one("SELECT 1"),
            database.fetch_all("SELECT 1"),
            database.notify(),
            database.ping(),
        ):
            with pytest.raises(DatabaseUnavailable):
                await verb
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction():
                raise AssertionError("it cannot have begun")
        assert time.monotonic() - start < 1
    finally:
        server.start()
    assert await seconds_until(database.ping) < 1
    async with database.transaction() as tx:
        assert await tx.fetch_one("SELECT 1 AS one") == {"one": 1}


async def test_a_server_that_stops_under_load_gives_no_other_error(server: Postgres, database: PostgresDatabase) -> None:
    stop, outages, served = asyncio.Event(), 0, 0

    async def one(number: int) -> None:
        if number % 2:
            await database.fetch_one("SELECT COUNT(*) AS n FROM pg_class")
            return
        async with database.transaction() as tx:
            await tx.execute("SET LOCAL work_mem = '1MB'")
            await tx.fetch_all("SELECT relname FROM pg_class")

    async def work(number: int) -> None:
        nonlocal outages, served
        while not stop.is_set():
            try:
                await one(number)
                served += 1
            except DatabaseUnavailable:
                outages += 1
                await asyncio.sleep(0.002)

    workers = [asyncio.create_task(work(number)) for number in range(8)]
    for _ in range(2):
        await asyncio.sleep(0.1)
        server.stop()
        server.start()
        assert await seconds_until(database.ping) < 1
    before = served
    await until(lambda: served >= before + 100)
    stop.set()
    await asyncio.gather(*workers)
    assert outages


async def test_a_statement_that_the_server_does_not_answer_fails_after_two_seconds(
    server: Postgres, database: PostgresDatabase
) -> None:
    with closing(psycopg2.connect(server.uri)) as other:
        other.cursor().execute("LOCK TABLE things IN ACCESS EXCLUSIVE MODE")
        start = time.monotonic()
        verbs = [
            database.execute("DELETE FROM things"),
            database.fetch_all("SELECT id FROM things"),
            database.executemany("INSERT INTO things (id) VALUES (:id)", [{"id": 1}]),
            # Two more than there are connections: these wait for one, and for as long in all.
            *(database.fetch_one("SELECT COUNT(*) FROM things") for _ in range(3)),
        ]
        results = await asyncio.gather(*verbs, return_exceptions=True)
        assert [type(result) for result in results] == [DatabaseUnavailable] * len(verbs)
        # Waiting for a connection and then for the answer, each for two seconds, would be four.
        assert 1.9 < time.monotonic() - start < 3.9
    assert await seconds_until(lambda: database.fetch_all("SELECT id FROM things")) < 1


async def test_waiting_for_a_connection_is_part_of_the_time_that_a_verb_has(
    server: Postgres, database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "WAIT_SECONDS", 0.8)
    with closing(psycopg2.connect(server.uri)) as other:
        other.cursor().execute("LOCK TABLE things IN ACCESS EXCLUSIVE MODE")
        async with postgres.connect(server.uri, 1) as narrow:
            holding = asyncio.create_task(narrow.fetch_one("SELECT pg_sleep(0.6)"))
            await waiting_in(server, "SELECT pg_sleep")
            start = time.monotonic()
            with pytest.raises(DatabaseUnavailable):
                await narrow.fetch_all("SELECT id FROM things")
            assert 0.7 < time.monotonic() - start < 0.6 + 0.8
            await holding


async def test_a_verb_waits_for_a_free_connection_no_longer_than_it_must(server: Postgres) -> None:
    async with postgres.connect(server.uri, 1) as database:
        async with database.transaction():
            waiting = asyncio.create_task(database.fetch_one("SELECT 1 AS one"))
            await asyncio.sleep(0.05)
            assert not waiting.done()
        async with asyncio.timeout(1):
            assert await waiting == {"one": 1}


async def test_a_release_that_is_cancelled_still_wakes_the_next_in_line(server: Postgres) -> None:
    async with postgres.connect(server.uri, 1) as database:

        async def hold(ready: asyncio.Event) -> None:
            async with database.transaction():
                ready.set()
                await asyncio.Event().wait()

        for _ in range(20):
            ready = asyncio.Event()
            holding = asyncio.create_task(hold(ready))
            await ready.wait()
            waiting = asyncio.create_task(database.fetch_one("SELECT 1 AS one"))
            await asyncio.sleep(0)
            holding.cancel()
            async with asyncio.timeout(1):
                assert await waiting == {"one": 1}
            await asyncio.wait([holding])


async def test_a_statement_cancelled_by_an_administrator_is_an_outage_and_no_cancellation(
    server: Postgres, database: PostgresDatabase
) -> None:
    asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
    verb = asyncio.create_task(database.fetch_one("SELECT pg_sleep(30)"))
    await waiting_in(server, "SELECT pg_sleep")
    ask(server, f"SELECT pg_cancel_backend(pid) {OTHERS}")
    with pytest.raises(DatabaseUnavailable):
        await verb
    await database.ping()


async def test_a_statement_cancelled_as_its_connection_breaks_ends_as_cancelled(
    server: Postgres, database: PostgresDatabase
) -> None:
    for turns in range(5):
        verb = asyncio.create_task(database.fetch_one("SELECT pg_sleep(30)"))
        await waiting_in(server, "SELECT pg_sleep")
        # The loop stands still until the end of the connection has come.
        ask(server, f"SELECT pg_terminate_backend(pid, 1000) {OTHERS}")
        for _ in range(turns):
            await asyncio.sleep(0)
        if not verb.cancel():
            break
        await asyncio.wait([verb])
        assert verb.cancelled(), turns
    assert turns > 0


async def test_a_transaction_whose_connection_is_cut_is_an_outage(server: Postgres, database: PostgresDatabase) -> None:
    with pytest.raises(DatabaseUnavailable):
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO things (id) VALUES (1)")
            ask(server, f"SELECT pg_terminate_backend(pid) {OTHERS}")
            await tx.execute("INSERT INTO things (id) VALUES (2)")
    assert await seconds_until(database.ping) < 1
    assert await database.fetch_all("SELECT id FROM things") == []


async def test_a_connection_whose_end_the_loop_did_not_notice_is_an_outage_all_the_same(
    server: Postgres, database: PostgresDatabase
) -> None:
    verb = asyncio.create_task(database.fetch_one("SELECT pg_sleep(30)"))
    await waiting_in(server, "SELECT pg_sleep")
    [raw] = database._pool._lent
    asyncio.get_running_loop().remove_reader(raw.raw.fileno())
    server.stop()
    server.start()
    start = time.monotonic()
    with pytest.raises(DatabaseUnavailable):
        await verb
    assert time.monotonic() - start < 1


async def test_what_cut_one_connection_casts_doubt_on_the_idle_ones(server: Postgres, database: PostgresDatabase) -> None:
    await asyncio.gather(*(database.fetch_one("SELECT pg_sleep(0.05)") for _ in range(4)))
    before = {row[0] for row in ask(server, f"SELECT pid {OTHERS}")}
    assert len(before) == 4
    with pytest.raises(DatabaseUnavailable):
        await database.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    await asyncio.gather(*(database.fetch_one("SELECT pg_sleep(0.05)") for _ in range(4)))
    after = {row[0] for row in ask(server, f"SELECT pid {OTHERS}")}
    assert len(after) == 4
    assert not before & after


async def test_a_transaction_that_goes_on_after_a_failed_statement_is_not_taken_for_committed(
    database: PostgresDatabase,
) -> None:
    with pytest.raises(Conflict, match="nothing of it was written"):
        async with database.transaction() as tx:
            await tx.execute("INSERT INTO things (id) VALUES (1)")
            with pytest.raises(Conflict):
                await tx.execute("INSERT INTO things (id) VALUES (1)")
    assert await database.fetch_all("SELECT id FROM things") == []


async def test_a_conflict_tells_nothing_of_the_values(database: PostgresDatabase) -> None:
    await database.execute("INSERT INTO things (id) VALUES (4711)")
    with pytest.raises(Conflict) as raised:
        await database.execute("INSERT INTO things (id) VALUES (4711)")
    assert "4711" not in str(raised.value)


async def test_a_server_that_may_only_be_read_is_an_outage_for_writers_until_it_may_be_written(
    server: Postgres, database: PostgresDatabase
) -> None:
    ask(server, "ALTER DATABASE postgres SET default_transaction_read_only = on")
    try:
        ask(server, f"SELECT pg_terminate_backend(pid) {OTHERS}")
        await seconds_until(database.ping)
        with pytest.raises(DatabaseUnavailable):
            await database.execute("INSERT INTO things (id) VALUES (1)")
        with pytest.raises(DatabaseUnavailable):
            async with database.transaction() as tx:
                await tx.execute("INSERT INTO things (id) VALUES (1)")
        assert await database.fetch_all("SELECT id FROM things") == []
    finally:
        ask(server, "BEGIN READ WRITE; ALTER DATABASE postgres RESET default_transaction_read_only; COMMIT")
    with pytest.raises(DatabaseUnavailable):
        await database.execute("INSERT INTO things (id) VALUES (1)")
    assert await database.execute("INSERT INTO things (id) VALUES (1)") == 1


@pytest.mark.parametrize("cut", ["connection", "server"])
async def test_what_listens_recovers_within_a_second(server: Postgres, database: PostgresDatabase, cut: str) -> None:
    async with aclosing(database.hints()) as hints:
        await anext(hints)
        if cut == "server":
            server.stop()
            server.start()
        else:
            assert ask(server, f"SELECT pg_terminate_backend(pid) {OTHERS} AND query LIKE 'LISTEN%'") == [(True,)]
        async with asyncio.timeout(1):
            # Whatever was said while nobody listened may have been missed, so this is a hint in itself.
            await anext(hints)
        ask(server, f"NOTIFY {postgres.CHANNEL}")
        async with asyncio.timeout(0.5):
            await anext(hints)


async def test_silence_gives_a_hint_now_and_then(database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "LOOK_SECONDS", 0.05)
    async with aclosing(database.hints()) as hints, asyncio.timeout(2):
        for _ in range(4):
            await anext(hints)


async def test_a_connection_that_fell_silent_is_replaced(
    server: Postgres, database: PostgresDatabase, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(postgres, "LOOK_SECONDS", 0.1)
    monkeypatch.setattr(postgres, "WAIT_SECONDS", 0.3)
    listening = f"SELECT pid {OTHERS} AND query LIKE 'LISTEN%'"
    async with aclosing(database.hints()) as hints:
        await anext(hints)
        [(pid,)] = ask(server, listening)
        os.kill(pid, signal.SIGSTOP)
        try:
            async with asyncio.timeout(3):
                while {row[0] for row in ask(server, listening)} <= {pid}:
                    await anext(hints)
        finally:
            os.kill(pid, signal.SIGCONT)


async def test_nobody_listens_after_the_hints_are_closed(server: Postgres, database: PostgresDatabase) -> None:
    async with aclosing(database.hints()) as hints:
        await anext(hints)
        assert ask(server, f"SELECT COUNT(*) {OTHERS} AND query LIKE 'LISTEN%'") == [(1,)]
    await until(lambda: ask(server, f"SELECT COUNT(*) {OTHERS} AND query LIKE 'LISTEN%'") == [(0,)])


async def test_closing_leaves_no_connection(server: Postgres) -> None:
    async with postgres.connect(server.uri, 4) as database:
        await asyncio.gather(*(database.fetch_one("SELECT pg_sleep(0.05)") for _ in range(4)))
    await until(lambda: ask(server, f"SELECT COUNT(*) {OTHERS}") == [(0,)])


async def test_options_of_the_url_are_kept_beside_ours(server: Postgres) -> None:
    async with postgres.connect(f"{server.uri}?options=-c%20work_mem%3D4321kB", 1) as database:
        assert await database.fetch_one("SHOW work_mem") == {"work_mem": "4321kB"}
        assert await database.fetch_one("SHOW statement_timeout") == {"statement_timeout": "2s"}


async def test_calls_go_on_without_the_server_as_far_as_they_can(server: Postgres, tmp_path: pathlib.Path, fake: str) -> None:
    ask(server, "CREATE DATABASE house")
    settings = settings_for(tmp_path, DATABASE_URL=server.uri.replace("/postgres", "/house"))
    async with open_house(settings) as house, aiohttp.ClientSession() as client:

        async def call(token: str) -> tuple[int, str | None]:
            headers = {"Authorization": f"Bearer {token}"}
            async with client.post(f"{house.url}{CHAT}", json=ASKING, headers=headers) as reply:
                return reply.status, (await reply.json()).get("error", {}).get("code")

        project = await house.project(fake)
        free, other = await house.token(project), await house.token(project)
        limited = await house.token(project, max_requests=10_000)
        # The second lease of a token is of two, one of which is left.
        assert [await call(token) for token in (free, limited, limited)] == [(200, None)] * 3
        # This server is quick rather than safe: what it has not written yet is lost with it.
        ask(server, "CHECKPOINT")
        server.stop()
        try:
            assert [await call(token) for token in (free, limited, free)] == [(200, None)] * 3
            start = time.monotonic()
            assert [await call(token) for token in (limited, other)] == [(503, "database_unavailable")] * 2
            headers = {"Authorization": f"Bearer {MANAGEMENT_TOKEN}"}
            async with client.post(f"{house.url}/manage/projects", json={"name": "new"}, headers=headers) as reply:
                assert reply.status == 503
            assert time.monotonic() - start < 2
        finally:
            server.start()
        start = time.monotonic()
        while (await call(other))[0] == 503:
            assert time.monotonic() - start < 1
        assert await call(limited) == (200, None)


async def test_a_database_that_is_not_there_stops_the_start(server: Postgres) -> None:
    with pytest.raises(StartError, match=r'DATABASE_URL does not answer: .*"nowhere" does not exist'):
        async with postgres.connect(server.uri.replace("/postgres", "/nowhere"), 1):
            pass
