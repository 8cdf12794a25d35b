"""PostgreSQL: a pool of connections, one more that listens."""

import asyncio
import contextlib
import functools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager
from typing import Any

import psycopg2
import psycopg2.extras

from llm_proxy.db import NO_PARAMS, Connection, Params, Row, T, Work, pool
from llm_proxy.db.pool import Cancellation, Pool, Watch
from llm_proxy.errors import Conflict, DatabaseUnavailable, StartError

# A call waits at most this long for the database before it answers 503 (data.md).
WAIT_SECONDS = 2.0
RECONNECT_SECONDS = 0.25
# A notification can be lost with its connection; looking now and then bounds what that costs.
LOOK_SECONDS = 5.0
CHANNEL = "llm_proxy_changes"

_TOKENS = re.compile(r"""('(?:[^']|'')*'|"[^"]*")|(::)|:([a-z_][a-z0-9_]*)|(%)""")


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
    except (psycopg2.OperationalError, psycopg2.InterfaceError, psycopg2.errors.ReadOnlySqlTransaction, OSError) as error:
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
                await self._run(cursor.execute(translate(sql), dict(params)))
                yield cursor

    async def _run(self, statement: Awaitable[None]) -> None:
        watch = Watch(self._raw)
        with Cancellation() as cancellation:
            try:
                await statement
            except asyncio.CancelledError:
                # aiopg says so too when the server cancelled the statement, at its timeout or an administrator's word.
                if not cancellation:
                    raise DatabaseUnavailable from None
                raise
            finally:
                watch.end()

    async def execute(self, sql: str, params: Params = NO_PARAMS) -> int:
        async with self._cursor(sql, params) as cursor:
            return int(cursor.rowcount)

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        for row in rows:
            await self.execute(sql, row)

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        async with self._cursor(sql, params) as cursor:
            row: Row | None = await cursor.fetchone()
            return row

    async def fetch_all(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        async with self._cursor(sql, params) as cursor:
            return list(await cursor.fetchall())

    async def notify(self) -> None:
        await self.execute(f"NOTIFY {CHANNEL}")

    async def commit(self) -> None:
        """End a transaction; PostgreSQL answers a COMMIT after a failed statement with ROLLBACK, and no error."""
        async with self._cursor("COMMIT", NO_PARAMS) as cursor:
            if cursor.statusmessage != "COMMIT":
                raise Conflict("a statement of this transaction failed, so nothing of it was written")


class PostgresDatabase:
    """The database, through a pool that opens connections as they are needed."""

    def __init__(self, pool: Pool, dsn: str) -> None:
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
            raw.close()
            self._pool.clear()
            raise
        finally:
            self._pool.release(raw)

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[PostgresConnection]:
        """A connection for one statement; waiting for the connection and the statement together are bounded."""
        end = asyncio.get_running_loop().time() + WAIT_SECONDS
        async with self._acquired() as connection:
            with _translated():
                async with asyncio.timeout_at(end):
                    yield connection

    async def execute(self, sql: str, params: Params = NO_PARAMS) -> int:
        async with self._in_time() as connection:
            return await connection.execute(sql, params)

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        async with self.transaction() as connection:
            await connection.executemany(sql, rows)

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        async with self._in_time() as connection:
            return await connection.fetch_one(sql, params)

    async def fetch_all(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        async with self._in_time() as connection:
            return await connection.fetch_all(sql, params)

    async def notify(self) -> None:
        async with self._in_time() as connection:
            await connection.notify()

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self._acquired() as connection:
            try:
                await connection.execute("BEGIN")
                yield connection
                await connection.commit()
            except BaseException:
                # A cancelled statement has closed its connection already, which rolls back as well.
                with contextlib.suppress(Exception):
                    await connection.execute("ROLLBACK")
                raise

    async def transact(self, work: Work[T], committed: Callable[[], None]) -> T:
        async with self.transaction() as connection:
            result = await work(connection)
        committed()
        return result

    async def hints(self) -> AsyncIterator[None]:
        while True:
            with contextlib.suppress(DatabaseUnavailable):
                async with aclosing(self._listen()) as notes:
                    async for _ in notes:
                        yield
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _listen(self) -> AsyncGenerator[None, None]:
        """Listens on a connection of its own: an SQL error would poison its notifications for good."""
        with _translated():
            raw = await pool.connect(self._dsn, WAIT_SECONDS)
            try:
                await PostgresConnection(raw).execute(f"LISTEN {CHANNEL}")
                yield
                while True:
                    await self._note(raw)
                    yield
            finally:
                raw.close()

    async def _note(self, raw: Any) -> None:
        try:
            async with asyncio.timeout(LOOK_SECONDS):
                await raw.notifies.get()
        except TimeoutError:
            # A connection that a firewall has dropped is as silent as one with nothing to say.
            await PostgresConnection(raw).execute("SELECT 1")

    async def ping(self) -> None:
        await self.fetch_one("SELECT 1")


@asynccontextmanager
async def connect(dsn: str, size: int) -> AsyncIterator[PostgresDatabase]:
    """Open a pool of up to `size` connections to `dsn`.

    Raises:
        StartError: it cannot be reached.
    """
    connections = Pool(dsn, size, WAIT_SECONDS, f"-c statement_timeout={int(WAIT_SECONDS * 1000)}")
    try:
        database = PostgresDatabase(connections, dsn)
        try:
            await database.ping()
        except DatabaseUnavailable as error:
            raise StartError(f"The PostgreSQL database of DATABASE_URL does not answer: {_cause(error)}") from error
        yield database
    finally:
        connections.close()


def _cause(error: DatabaseUnavailable) -> str:
    return str(error.__cause__ or error).strip()
