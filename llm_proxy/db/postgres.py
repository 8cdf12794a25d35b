"""PostgreSQL: a pool of connections, one more that listens."""

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from typing import Any

import aiopg
import psycopg2
import psycopg2.extras

from llm_proxy.db import Connection, Params, Row
from llm_proxy.errors import Conflict, DatabaseUnavailable

# A call waits at most this long for the database before it answers 503 (data.md).
WAIT_SECONDS = 2.0
RECONNECT_SECONDS = 0.25
# A notification can be lost with its connection; looking now and then bounds what that costs.
LOOK_SECONDS = 5.0
CHANNEL = "llm_proxy_changes"

_TOKENS = re.compile(r"('(?:[^']|'')*')|(::)|:([a-z_][a-z0-9_]*)|(%)")


@functools.lru_cache(maxsize=512)
def translate(sql: str) -> str:
    """`:name` to `%(name)s` outside literals, `%` doubled everywhere."""

    def replace(match: re.Match[str]) -> str:
        literal, cast, name, _ = match.groups()
        if literal or cast:
            return (literal or cast).replace("%", "%%")
        return f"%({name})s" if name else "%%"

    return _TOKENS.sub(replace, sql)


@contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except psycopg2.IntegrityError as error:
        raise Conflict(str(error).partition("\n")[0]) from error
    except (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.ReadOnlySqlTransaction, TimeoutError) as error:
        raise DatabaseUnavailable from error
    except RuntimeError as error:
        # aiopg says so when its connection or pool was closed under a statement.
        if "closed" in str(error):
            raise DatabaseUnavailable from error
        raise


class PostgresConnection:
    """The verbs on one connection."""

    def __init__(self, raw: Any) -> None:
        self._raw = raw

    @asynccontextmanager
    async def _cursor(self, sql: str, params: Params) -> AsyncIterator[Any]:
        with _translated():
            async with self._raw.cursor(cursor_factory=psycopg2.extras.RealDictCursor) as cursor:
                await cursor.execute(translate(sql), dict(params))
                yield cursor

    async def execute(self, sql: str, params: Params = {}) -> int:
        async with self._cursor(sql, params) as cursor:
            return int(cursor.rowcount)

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        for row in rows:
            await self.execute(sql, row)

    async def fetch_one(self, sql: str, params: Params = {}) -> Row | None:
        async with self._cursor(sql, params) as cursor:
            row: Row | None = await cursor.fetchone()
            return row

    async def fetch_all(self, sql: str, params: Params = {}) -> list[Row]:
        async with self._cursor(sql, params) as cursor:
            return list(await cursor.fetchall())

    async def notify(self) -> None:
        await self.execute(f"NOTIFY {CHANNEL}")


class PostgresDatabase:
    """The database, through a pool that opens connections as they are needed."""

    def __init__(self, pool: Any, dsn: str) -> None:
        self._pool = pool
        self._dsn = dsn

    @asynccontextmanager
    async def _acquired(self) -> AsyncIterator[PostgresConnection]:
        with _translated():
            async with asyncio.timeout(WAIT_SECONDS):
                raw = await self._pool.acquire()
        try:
            yield PostgresConnection(raw)
        except DatabaseUnavailable:
            # What broke this connection has most likely broken the idle ones too.
            await self._pool.clear()
            raise
        finally:
            await self._pool.release(raw)

    async def execute(self, sql: str, params: Params = {}) -> int:
        async with self._acquired() as connection:
            return await connection.execute(sql, params)

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        async with self.transaction() as connection:
            await connection.executemany(sql, rows)

    async def fetch_one(self, sql: str, params: Params = {}) -> Row | None:
        async with self._acquired() as connection:
            return await connection.fetch_one(sql, params)

    async def fetch_all(self, sql: str, params: Params = {}) -> list[Row]:
        async with self._acquired() as connection:
            return await connection.fetch_all(sql, params)

    async def notify(self) -> None:
        async with self._acquired() as connection:
            await connection.notify()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self._acquired() as connection:
            try:
                await connection.execute("BEGIN")
                yield connection
                await connection.execute("COMMIT")
            except BaseException:
                # A cancelled statement has closed its connection already, which rolls back as well.
                with contextlib.suppress(Exception):
                    await connection.execute("ROLLBACK")
                raise

    async def hints(self) -> AsyncIterator[None]:
        while True:
            with contextlib.suppress(DatabaseUnavailable):
                async for _ in self._listen():
                    yield
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> AsyncIterator[None]:
        """Listens on a connection of its own: an SQL error would poison its notifications for good."""
        with _translated():
            async with aiopg.connect(self._dsn, timeout=WAIT_SECONDS, enable_hstore=False) as raw:
                await PostgresConnection(raw).execute(f"LISTEN {CHANNEL}")
                yield
                while True:
                    with contextlib.suppress(TimeoutError):
                        await asyncio.wait_for(raw.notifies.get(), LOOK_SECONDS)
                    yield

    async def ping(self) -> None:
        await self.fetch_one("SELECT 1")


@asynccontextmanager
async def connect(dsn: str, size: int) -> AsyncIterator[PostgresDatabase]:
    """Open a pool of up to `size` connections to `dsn`."""
    pool = await aiopg.create_pool(
        dsn,
        minsize=1,
        maxsize=max(1, size),
        timeout=WAIT_SECONDS,
        enable_hstore=False,
        enable_json=False,
        enable_uuid=False,
        options=f"-c statement_timeout={int(WAIT_SECONDS * 1000)}",
    )
    try:
        yield PostgresDatabase(pool, dsn)
    finally:
        pool.terminate()
        await pool.wait_closed()
