"""SQLite: one writer connection, a small pool of readers."""

import asyncio
import contextlib
import itertools
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiosqlite

from llm_proxy.db import NO_PARAMS, Connection, Params, Row, T, Work, group
from llm_proxy.errors import Conflict, DatabaseUnavailable, StartError

READERS = 2
BUSY_MS = 5000
HINT_SECONDS = 0.25


class _Translated:
    """Translates what SQLite raises within the block; a generator would cost four times as much, for each statement."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, sqlite3.IntegrityError):
            raise Conflict(str(error)) from error
        # SQLITE_ERROR is a mistake in a statement; to call it an outage would hide it.
        if isinstance(error, sqlite3.OperationalError) and _code(error) != sqlite3.SQLITE_ERROR:
            raise DatabaseUnavailable from error


def _code(error: sqlite3.OperationalError) -> int:
    return getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR)


_TRANSLATED = _Translated()


class Verbs:
    """The verbs, as functions of a connection of the standard library."""

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        """What a function of such a connection, and of these arguments, returns."""
        raise NotImplementedError

    async def execute(self, sql: str, params: Params = NO_PARAMS) -> int:
        with _TRANSLATED:
            return int(await self.call(_count, sql, params))

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        with _TRANSLATED:
            await self.call(sqlite3.Connection.executemany, sql, rows)

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        rows = await self.fetch_all(sql, params)
        return rows[0] if rows else None

    async def fetch_all(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        with _TRANSLATED:
            found: list[Row] = await self.call(_rows, sql, params)
            return found

    async def notify(self) -> None:
        """Nothing to do: `PRAGMA data_version` tells the others."""


def _count(raw: sqlite3.Connection, sql: str, params: Params) -> int:
    return raw.execute(sql, params).rowcount


def _rows(raw: sqlite3.Connection, sql: str, params: Params) -> list[Row]:
    # sqlite3.Row looks for each of its names among all of them, in twice the time.
    cursor = raw.execute(sql, params)
    rows = cursor.fetchall()
    names = [column[0] for column in cursor.description or ()]
    return [dict(zip(names, row, strict=True)) for row in rows]


class SQLiteConnection(Verbs):
    """The verbs on one connection, in its thread."""

    def __init__(self, raw: aiosqlite.Connection) -> None:
        self._raw = raw

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        # What aiosqlite does for each of its own methods. These take the thread once for a statement and its rows; a change
        # of thread costs more than most statements.
        return await self._raw._execute(function, self._raw._conn, *args)  # type: ignore[no-untyped-call]

    async def interrupt(self) -> None:
        """Stop the statement that runs now, if any does."""
        await self._raw.interrupt()


class AtOnce(Verbs):
    """The verbs in the thread of the connection itself: they never wait."""

    def __init__(self, raw: sqlite3.Connection) -> None:
        self._raw = raw

    async def call(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(self._raw, *args)


def _run(raw: sqlite3.Connection, members: Sequence[group.Member]) -> None:
    group.run(AtOnce(raw), members)


class SQLiteDatabase:
    """The database; writes queue for the one writer, reads go side by side."""

    def __init__(
        self, writer: aiosqlite.Connection, readers: Sequence[aiosqlite.Connection], watcher: aiosqlite.Connection
    ) -> None:
        self._writer = SQLiteConnection(writer)
        self._writing = asyncio.Lock()
        # In the order in which they came.
        self._waiting: dict[group.Member, None] = {}
        self._idle: asyncio.LifoQueue[SQLiteConnection] = asyncio.LifoQueue()
        for reader in readers:
            self._idle.put_nowait(SQLiteConnection(reader))
        self._watcher = SQLiteConnection(watcher)

    async def execute(self, sql: str, params: Params = NO_PARAMS) -> int:
        async with self._writing:
            return await self._writer.execute(sql, params)

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        async with self.transaction() as connection:
            await connection.executemany(sql, rows)

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        async with self._connection_for(sql) as connection:
            return await connection.fetch_one(sql, params)

    async def fetch_all(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        async with self._connection_for(sql) as connection:
            return await connection.fetch_all(sql, params)

    async def notify(self) -> None:
        await self._writer.notify()

    @asynccontextmanager
    async def _connection_for(self, sql: str) -> AsyncIterator[SQLiteConnection]:
        if not sql.lstrip()[:6].upper().startswith("SELECT"):
            async with self._writing:
                yield self._writer
            return
        reader = await self._idle.get()
        try:
            yield reader
        except asyncio.CancelledError:
            # Nobody waits for the rows any more, and the next to read would get this reader.
            await reader.interrupt()
            raise
        finally:
            self._idle.put_nowait(reader)

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self._writing:
            try:
                # IMMEDIATE takes the write lock at once: a read that turns into a write could not wait for it.
                await self._writer.execute("BEGIN IMMEDIATE")
                yield self._writer
                await self._writer.execute("COMMIT")
            except BaseException:
                # Cancellation too: an open transaction would swallow everybody's writes from here on.
                with contextlib.suppress(sqlite3.Error, DatabaseUnavailable):
                    await self._writer.execute("ROLLBACK")
                raise

    async def transact(self, work: Work[T], committed: Callable[[], None]) -> T:
        member = group.Member(work, committed)
        self._waiting[member] = None
        try:
            async with self._writing:
                # One who came before may have taken this member along.
                if member in self._waiting:
                    await self._writer.call(_run, self._take())
            result, error = await member.outcome
        finally:
            # Who is cancelled before the group begins has no part in it.
            self._waiting.pop(member, None)
            member.outcome.cancel()
            del member
        if error is None:
            return result  # type: ignore[no-any-return]
        try:
            raise error
        finally:
            # Its traceback holds this frame, which therefore must not hold it.
            del error

    def _take(self) -> list[group.Member]:
        """The next group: whoever has the turn waited longest, and is in it."""
        taken = list(itertools.islice(self._waiting, group.MOST))
        for member in taken:
            del self._waiting[member]
        return taken

    async def hints(self) -> AsyncIterator[None]:
        seen: object = None
        while True:
            row = await self._watcher.fetch_one("PRAGMA data_version")
            version = row["data_version"] if row else None
            if version != seen:
                seen = version
                yield
            await asyncio.sleep(HINT_SECONDS)

    async def ping(self) -> None:
        await self.fetch_one("SELECT 1")


@asynccontextmanager
async def connect(path: str) -> AsyncIterator[SQLiteDatabase]:
    """Open the file at `path`, which the migrations have made.

    Raises:
        StartError: it cannot be written.
    """
    async with AsyncExitStack() as stack:
        try:
            opened = [await stack.enter_async_context(aiosqlite.connect(path, isolation_level=None)) for _ in range(READERS + 2)]
            for raw in opened:
                await _prepare(raw)
        except sqlite3.Error as error:
            raise StartError(
                f"The SQLite file {path} cannot be used: {error}. The file and its folder must be writable."
            ) from error
        writer, watcher, *readers = opened
        # What a member of a group has to undo is some hundred KiB, for which SQLite would take a file on the disk.
        await writer.execute("PRAGMA temp_store=MEMORY")
        yield SQLiteDatabase(writer, readers, watcher)


async def _prepare(raw: aiosqlite.Connection) -> None:
    await raw.execute(f"PRAGMA busy_timeout={BUSY_MS}")
    await raw.execute("PRAGMA journal_mode=WAL")
    await raw.execute("PRAGMA synchronous=NORMAL")
    await raw.execute("PRAGMA foreign_keys=ON")
