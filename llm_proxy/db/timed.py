"""A database whose statements are timed."""

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from llm_proxy.db import NO_PARAMS, Connection, Database, Params, Row, T, Work

# Told how long each statement took, in seconds.
Observe = Callable[[float], None]


class _Timed:
    """Tells how long the block took; a generator would cost four times as much, for each statement."""

    def __init__(self, observe: Observe) -> None:
        self._observe = observe

    def __enter__(self) -> None:
        self._began = time.perf_counter()

    def __exit__(self, *error: object) -> None:
        self._observe(time.perf_counter() - self._began)


class TimedConnection:
    """The verbs, each timed, whatever it ends with."""

    def __init__(self, inner: Connection, observe: Observe) -> None:
        self._inner = inner
        self._observe = observe

    async def execute(self, sql: str, params: Params = NO_PARAMS) -> int:
        with _Timed(self._observe):
            return await self._inner.execute(sql, params)

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        with _Timed(self._observe):
            await self._inner.executemany(sql, rows)

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        with _Timed(self._observe):
            return await self._inner.fetch_one(sql, params)

    async def fetch_all(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        with _Timed(self._observe):
            return await self._inner.fetch_all(sql, params)

    async def notify(self) -> None:
        await self._inner.notify()


class TimedDatabase(TimedConnection):
    """The database behind, its own statements and those of transactions timed."""

    def __init__(self, inner: Database, observe: Observe) -> None:
        super().__init__(inner, observe)
        self._database = inner

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with self._database.transaction() as tx:
            yield TimedConnection(tx, self._observe)

    async def transact(self, work: Work[T], committed: Callable[[], None]) -> T:
        return await self._database.transact(lambda tx: work(TimedConnection(tx, self._observe)), committed)

    def hints(self) -> AsyncIterator[None]:
        return self._database.hints()

    async def ping(self) -> None:
        with _Timed(self._observe):
            await self._database.ping()
