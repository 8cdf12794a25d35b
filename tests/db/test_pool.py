"""Connections to PostgreSQL: how they are made, lent, kept for the next."""

import asyncio
import contextlib
import itertools
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import psycopg2
import pytest
from stage.asking import until
from stage.postgres import Postgres, free_port

from llm_proxy.db.pool import Pool, connect, targets


@asynccontextmanager
async def listener(*, once: bool = False) -> AsyncIterator[int]:
    """The port of somebody who takes connections and says nothing; `once` refuses all but the first."""
    held = []

    async def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        held.append(writer)
        if once:
            server.close()

    server = await asyncio.start_server(accept, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for writer in held:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()


def stand_still() -> None:
    """Keep the loop from its next turn until every answer has come."""
    time.sleep(0.002)


async def answer(raw: Any) -> int:
    """What a connection says to a simple question."""
    async with raw.cursor() as cursor:
        await cursor.execute("SELECT 42")
        return int((await cursor.fetchone())[0])


@pytest.fixture
async def pool(postgres: Postgres) -> AsyncIterator[Pool]:
    opened = Pool(postgres.uri, 2, 2.0, "")
    yield opened
    opened.close()


@pytest.mark.parametrize(
    ("url", "found"),
    [
        pytest.param("postgresql://h/d", [("h", "", "5432")], id="a host"),
        pytest.param("postgresql://h:6/d", [("h", "", "6")], id="a host with its port"),
        pytest.param("postgresql://a:1,b:2/d", [("a", "", "1"), ("b", "", "2")], id="two hosts"),
        pytest.param("postgresql://a,b/d?port=7", [("a", "", "7"), ("b", "", "7")], id="two hosts with one port"),
        pytest.param("postgresql:///d", [("", "", "5432")], id="no host"),
        pytest.param("postgresql://%2Frun%2Fpg/d", [("/run/pg", "", "5432")], id="a folder with the socket"),
        pytest.param("postgresql:///d?hostaddr=1.2.3.4", [("", "1.2.3.4", "5432")], id="an address"),
        pytest.param("postgresql://h/d?hostaddr=::1", [("h", "::1", "5432")], id="a host with its address"),
    ],
)
def test_each_host_of_a_url_is_a_target(url: str, found: list[tuple[str, str, str]]) -> None:
    parts = targets(url)
    assert [(part["host"], part["hostaddr"], part["port"]) for part in parts] == found
    assert all(part["dbname"] == "d" for part in parts)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("postgresql://llm@127.0.0.1:{port}/postgres", id="an address"),
        pytest.param("postgresql://llm@localhost:{port}/postgres", id="a name"),
        pytest.param("postgresql://llm@/postgres?hostaddr=127.0.0.1&port={port}", id="an address as a parameter"),
        pytest.param("postgresql://llm@/postgres?host={folder}&port={port}", id="a socket in a folder"),
        pytest.param("postgresql://llm@127.0.0.1:1,127.0.0.1:{port}/postgres", id="a host that refuses before it"),
        pytest.param("postgresql://llm@[::1]:{port},127.0.0.1:{port}/postgres", id="another family before it"),
    ],
)
async def test_the_first_host_that_answers_is_used(postgres: Postgres, url: str) -> None:
    raw = await connect(url.format(port=postgres.port, folder=postgres._folder), 2.0)
    assert await answer(raw) == 42
    raw.close()


async def test_a_host_that_is_silent_takes_only_its_share_of_the_time(postgres: Postgres) -> None:
    async with listener() as silent, asyncio.timeout(1.5):
        raw = await connect(f"postgresql://llm@127.0.0.1:{silent},127.0.0.1:{postgres.port}/postgres", 2.0)
        assert await answer(raw) == 42
        raw.close()


async def test_when_no_host_answers_the_last_failure_is_told(postgres: Postgres) -> None:
    with pytest.raises(psycopg2.OperationalError, match='"nowhere" does not exist'):
        await connect(f"postgresql://llm@127.0.0.1:1,127.0.0.1:{postgres.port}/nowhere", 2.0)
    with pytest.raises(ConnectionRefusedError):
        await connect(f"postgresql://llm@127.0.0.1:{free_port()}/postgres", 2.0)


async def test_a_refused_connection_leaves_nothing_that_the_next_could_stumble_over(postgres: Postgres) -> None:
    for _ in range(3):
        async with listener(once=True) as refusing:
            with pytest.raises((psycopg2.OperationalError, OSError)):
                await connect(f"postgresql://llm@127.0.0.1:{refusing}/postgres", 0.3)
        raw = await connect(postgres.uri, 2.0)
        assert await answer(raw) == 42
        raw.close()


@pytest.mark.parametrize("database", ["postgres", "there_is_no_such_one"])
async def test_connecting_that_is_cancelled_ends_as_cancelled(postgres: Postgres, database: str) -> None:
    uri = postgres.uri.replace("/postgres", f"/{database}")
    for turns in itertools.count():
        task = asyncio.create_task(connect(uri, 2.0))
        for _ in range(turns):
            stand_still()
            await asyncio.sleep(0)
        if not task.cancel():
            break
        await asyncio.wait([task])
        assert task.cancelled(), turns
    assert turns > 5
    with contextlib.suppress(psycopg2.OperationalError):
        task.result().close()


async def test_options_are_added_to_those_of_the_url(postgres: Postgres) -> None:
    raw = await connect(f"{postgres.uri}?options=-c%20work_mem%3D4321kB", 2.0, "-c statement_timeout=1234")
    async with raw.cursor() as cursor:
        await cursor.execute("SELECT current_setting('work_mem'), current_setting('statement_timeout')")
        assert await cursor.fetchone() == ("4321kB", "1234ms")
    raw.close()


async def test_the_connection_used_last_is_lent_first(pool: Pool) -> None:
    first, second = await pool.acquire(), await pool.acquire()
    pool.release(first)
    pool.release(second)
    assert await pool.acquire() is second
    assert await pool.acquire() is first
    pool.release(first)
    pool.release(second)


async def test_no_more_are_lent_than_there_may_be(pool: Pool) -> None:
    first, second = await pool.acquire(), await pool.acquire()
    waiting = asyncio.create_task(pool.acquire())
    await asyncio.wait([waiting], timeout=0.05)
    assert not waiting.done()
    pool.release(first)
    async with asyncio.timeout(1):
        assert await waiting is first
    pool.release(first)
    pool.release(second)


async def test_a_connection_that_broke_is_not_lent_again(pool: Pool) -> None:
    raw = await pool.acquire()
    with pytest.raises(psycopg2.Error):
        async with raw.cursor() as cursor:
            await cursor.execute("SELECT pg_terminate_backend(pg_backend_pid())")
    pool.release(raw)
    other = await pool.acquire()
    assert other is not raw
    assert await answer(other) == 42
    pool.release(other)


async def test_a_connection_that_broke_while_idle_is_not_lent_again(pool: Pool) -> None:
    first, second = await pool.acquire(), await pool.acquire()
    pid = await first.get_backend_pid()
    pool.release(first)
    async with second.cursor() as cursor:
        await cursor.execute(f"SELECT pg_terminate_backend({pid}, 1000)")
    await until(lambda: first.closed)
    other = await pool.acquire()
    assert other is not first
    assert await answer(other) == 42
    pool.release(other)
    pool.release(second)


async def test_a_connection_in_the_middle_of_a_transaction_is_closed_and_not_kept(pool: Pool) -> None:
    raw = await pool.acquire()
    async with raw.cursor() as cursor:
        await cursor.execute("BEGIN")
    pool.release(raw)
    assert raw.closed


async def test_clearing_closes_what_is_idle_and_leaves_what_is_lent(pool: Pool) -> None:
    idle, lent = await pool.acquire(), await pool.acquire()
    pool.release(idle)
    pool.clear()
    assert idle.closed
    assert await answer(lent) == 42
    pool.release(lent)
    assert await pool.acquire() is lent
    pool.release(lent)


async def test_closing_closes_what_is_lent_too(pool: Pool) -> None:
    idle, lent = await pool.acquire(), await pool.acquire()
    pool.release(idle)
    pool.close()
    assert idle.closed
    assert lent.closed
    pool.release(lent)


async def test_a_failure_to_connect_takes_no_place() -> None:
    pool = Pool(f"postgresql://llm@127.0.0.1:{free_port()}/postgres", 1, 2.0, "")
    for _ in range(3):
        with pytest.raises(ConnectionRefusedError):
            await pool.acquire()


async def test_a_cancellation_takes_no_place(pool: Pool) -> None:
    for turns in range(60):
        task = asyncio.create_task(pool.acquire())
        for _ in range(turns):
            await asyncio.sleep(0)
        if task.cancel():
            with pytest.raises(asyncio.CancelledError):
                await task
        else:
            pool.release(task.result())
        # Otherwise the first connection would serve all the rest.
        pool.clear()
    async with asyncio.timeout(1):
        for raw in [await pool.acquire(), await pool.acquire()]:
            pool.release(raw)
