"""Statements are timed, whatever they end with."""

import pytest

from llm_proxy.db import Database
from llm_proxy.db.timed import TimedDatabase
from llm_proxy.errors import Conflict

NEW = "INSERT INTO projects (id, name, is_active, created_at, updated_at) VALUES (:id, :id, TRUE, 1, 1)"


async def test_every_statement_is_timed_those_of_transactions_and_failures_too(database: Database) -> None:
    seconds: list[float] = []
    timed = TimedDatabase(database, seconds.append)
    await timed.execute(NEW, {"id": "one"})
    assert await timed.fetch_one("SELECT id FROM projects WHERE id = 'one'") == {"id": "one"}
    assert len(seconds) == 2
    with pytest.raises(Conflict):
        async with timed.transaction() as tx:
            await tx.executemany(NEW, [{"id": "two"}])
            await tx.execute(NEW, {"id": "one"})
    assert len(seconds) == 4
    assert await timed.fetch_all("SELECT id FROM projects WHERE id IN ('one', 'two')") == [{"id": "one"}]
    await timed.ping()
    assert await timed.transact(lambda tx: tx.fetch_one("SELECT 1 AS n"), list) == {"n": 1}
    assert len(seconds) == 7
    assert all(0 < each < 60 for each in seconds)
