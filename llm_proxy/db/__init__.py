"""Five verbs over two databases."""

from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any, Protocol, TypeVar

from llm_proxy.settings import Settings

Row = Mapping[str, Any]
Params = Mapping[str, Any]
NO_PARAMS: Params = {}


class Connection(Protocol):
    """What a transaction offers: the verbs, on one connection."""

    async def execute(self, sql: str, params: Params = NO_PARAMS) -> int:
        """Run a statement; returns how many rows it touched."""

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        """Run a statement once for each set of parameters."""

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        """The first row, or None."""

    async def fetch_all(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        """All rows; the statement bounds how many."""

    async def notify(self) -> None:
        """Inside a transaction: tell other processes, when it commits, that there is something to look at."""


T = TypeVar("T")
Work = Callable[[Connection], Coroutine[Any, Any, T]]


class Database(Connection, Protocol):
    """A database; SQL is written once, with `:name` parameters.

    Every verb raises `Conflict` where a row breaks a rule and `DatabaseUnavailable` where the database does not answer.
    """

    def transaction(self) -> AbstractAsyncContextManager[Connection]:
        """Statements that happen together: committed at the end, rolled back when left by an exception."""

    async def transact(self, work: Work[T], committed: Callable[[], None]) -> T:
        """Do some work in a transaction: committed when this returns, rolled back when the work raises.

        It may share its commit with other work of the same moment, and run in a thread: it is to be short, and to wait for
        nothing but the verbs of its connection. It may be done twice, with nothing left in the database of the first time. A
        caller who is cancelled may leave it to be done all the same.

        Args:
            committed: called in the thread of the loop when the work was committed, whether or not the caller is still there.
        """

    def hints(self) -> AsyncIterator[None]:
        """Yields at once, then whenever another process, or this one, may have changed the database."""

    async def ping(self) -> None:
        """Raise `DatabaseUnavailable` unless the database answers."""


@asynccontextmanager
async def open_database(settings: Settings) -> AsyncIterator[Database]:
    """Open the database that the settings name, with the migrations applied.

    Raises:
        StartError: it cannot be opened or migrated; the text says what to do.
    """
    from llm_proxy.db import migrate

    await migrate.ensure(settings)
    if settings.db_driver == "postgres":
        from llm_proxy.db import postgres

        async with postgres.connect(settings.database_url.reveal(), settings.database_pool_size) as database:
            yield database
    else:
        from llm_proxy.db import sqlite

        async with sqlite.connect(settings.database_path) as opened:
            yield opened
