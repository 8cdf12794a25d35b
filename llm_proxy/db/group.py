"""Transactions that share one commit, so that many small writes at once cost little more than one."""

import asyncio
import contextlib
import sqlite3
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, NamedTuple

from llm_proxy.db import Connection, Work
from llm_proxy.errors import DatabaseUnavailable

# A longer group would keep other writers waiting, and gain little.
MOST = 64


class Outcome(NamedTuple):
    """What came of one member's work: its result, or the error that it was left by."""

    result: Any = None
    error: BaseException | None = None


class Member:
    """One piece of work, with the future in which its caller waits for the outcome."""

    def __init__(self, work: Work[Any], committed: Callable[[], None]) -> None:
        self.work, self.committed = work, committed
        self.outcome: asyncio.Future[Outcome] = asyncio.get_running_loop().create_future()


def run(connection: Connection, members: Sequence[Member]) -> None:
    """Do the work of all, then tell each caller; in a thread, so that none who leaves takes the others along.

    Args:
        connection: its verbs end before they are waited for.
    """
    loop = members[0].outcome.get_loop()
    loop.call_soon_threadsafe(_tell, members, _outcomes(connection, [member.work for member in members]))


def _tell(members: Sequence[Member], outcomes: Sequence[Outcome]) -> None:
    for member, outcome in zip(members, outcomes, strict=True):
        if outcome.error is None:
            member.committed()
        if not member.outcome.done():
            member.outcome.set_result(outcome)


# An error keeps the frames it came through; these must not hold a member, which keeps the error.
def _outcomes(connection: Connection, works: Sequence[Work[Any]]) -> list[Outcome]:
    together = _together(connection, works)
    try:
        together.send(None)
    except StopIteration as end:
        outcomes: list[Outcome] = end.value
        return outcomes
    except BaseException as error:
        return [Outcome(error=error)] * len(works)
    together.close()
    return [Outcome(error=RuntimeError("work in a transaction waited for something else than its connection"))] * len(works)


async def _together(connection: Connection, works: Sequence[Work[Any]]) -> list[Outcome]:
    """Do the work of all; where one fails, all of it once more, each with a savepoint, which costs a fifth of the work."""
    try:
        return await _commit(connection, works, _plainly)
    except DatabaseUnavailable:
        raise
    except Exception:
        # Whose error it is will be told by the second time, without the first as its context.
        pass
    return await _commit(connection, works, _apart)


async def _commit(
    connection: Connection, works: Sequence[Work[Any]], way: Callable[[Connection, Work[Any]], Awaitable[Outcome]]
) -> list[Outcome]:
    # IMMEDIATE takes the write lock at once: a read that turns into a write could not wait for it.
    await connection.execute("BEGIN IMMEDIATE")
    try:
        outcomes = [await way(connection, work) for work in works]
        await connection.execute("COMMIT")
    except BaseException:
        with contextlib.suppress(sqlite3.Error, DatabaseUnavailable):
            await connection.execute("ROLLBACK")
        raise
    return outcomes


async def _plainly(connection: Connection, work: Work[Any]) -> Outcome:
    return Outcome(await work(connection))


async def _apart(connection: Connection, work: Work[Any]) -> Outcome:
    """Do the work of one member; what fails is undone for itself."""
    await connection.execute("SAVEPOINT member")
    try:
        result = await work(connection)
    except Exception as error:
        await _undo(connection, error)
        return Outcome(error=error)
    await connection.execute("RELEASE member")
    return Outcome(result)


async def _undo(connection: Connection, error: Exception) -> None:
    try:
        await connection.execute("ROLLBACK TO member")
        await connection.execute("RELEASE member")
    except sqlite3.OperationalError:
        # The disk full, for example, SQLite has undone everything at once, the work of those before too.
        raise DatabaseUnavailable from error
