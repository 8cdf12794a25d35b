"""Tokens that are over go after their time, and no others."""

import asyncio
import logging
import pathlib
from typing import Any

import pytest
from stage.house import House, migrated, open_house, settings_for

from llm_proxy import retention
from llm_proxy.clock import DAY_MS, now_ms
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.retention import expire_tokens

LONG_AGO, YESTERDAY, TOMORROW = now_ms() - 31 * DAY_MS, now_ms() - DAY_MS, now_ms() + DAY_MS


async def left(house: House) -> set[str]:
    return {row["name"] for row in await house.context.database.fetch_all("SELECT name FROM tokens")}


async def test_only_tokens_that_have_been_over_for_long_are_deleted(each_house: House, monkeypatch: pytest.MonkeyPatch) -> None:
    project, database = await each_house.project("http://127.0.0.1:1"), each_house.context.database
    columns = {
        "expired long ago": {"expires_at": LONG_AGO},
        "another": {"expires_at": LONG_AGO},
        "revoked long ago": {"is_active": False, "deactivated_at": LONG_AGO},
        "expired yesterday": {"expires_at": YESTERDAY},
        "revoked yesterday": {"is_active": False, "deactivated_at": YESTERDAY, "expires_at": TOMORROW},
        "revoked once, good again": {"is_active": True, "deactivated_at": None},
        "good for ever": {"expires_at": None},
        "a master key, disabled long ago": {
            "kind": "master_key",
            "is_active": False,
            "deactivated_at": LONG_AGO,
            "expires_at": None,
        },
    }
    for name, values in columns.items():
        await each_house.token(project, name=name)
        written = ", ".join(f"{column} = :{column}" for column in values)
        await database.execute(f"UPDATE tokens SET {written} WHERE name = :name", {**values, "name": name})
    monkeypatch.setattr(retention, "BATCH", 2)
    task = asyncio.ensure_future(expire_tokens(database, 30))
    gone = {"expired long ago", "another", "revoked long ago"}
    async with asyncio.timeout(5):
        while gone & await left(each_house):  # noqa: ASYNC110
            await asyncio.sleep(0.01)
    task.cancel()
    assert await left(each_house) == columns.keys() - gone


async def test_a_token_that_is_given_a_longer_life_just_then_stays(tmp_path: pathlib.Path, postgres_url: str) -> None:
    async with open_house(settings_for(tmp_path, DATABASE_URL=postgres_url)) as house:
        await house.token_for("http://127.0.0.1:1", name="prolonged")
        database = house.context.database
        await database.execute("UPDATE tokens SET expires_at = 1")
        async with database.transaction() as tx, asyncio.timeout(10):
            await tx.execute("UPDATE tokens SET expires_at = :late", {"late": TOMORROW})
            task = asyncio.ensure_future(expire_tokens(database, 1))
            while not await database.fetch_one("SELECT 1 FROM pg_locks WHERE NOT granted"):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        # It is done with it once another has waited in the same line.
        await database.execute("UPDATE tokens SET last_used_at = 1")
        task.cancel()
        assert await left(house) == {"prolonged"}


async def test_without_a_time_every_token_stays() -> None:
    await expire_tokens(None, 0)  # type: ignore[arg-type]


async def test_a_database_that_is_away_is_asked_again(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = asyncio.Event()

    class Away:
        times = 0

        async def execute(self, sql: str, params: Any) -> int:
            self.times += 1
            if self.times == 1:
                raise DatabaseUnavailable
            asked.set()
            return 0

    monkeypatch.setattr(retention, "RETENTION_SECONDS", 0)
    task = asyncio.ensure_future(expire_tokens(Away(), 1))  # type: ignore[arg-type]
    async with asyncio.timeout(5):
        await asked.wait()
    task.cancel()
    assert [record.getMessage() for record in caplog.records] == ["tokens that are over wait for the database to be deleted"]


async def test_the_program_keeps_the_time_that_is_set(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    settings = migrated(settings_for(tmp_path, TOKEN_RETENTION_DAYS="30"))
    async with open_house(settings) as house:
        await house.token_for("http://127.0.0.1:1")
        await house.context.database.execute("UPDATE tokens SET expires_at = 1")
    with caplog.at_level(logging.INFO):
        async with open_house(settings) as house, asyncio.timeout(5):
            while "were deleted" not in caplog.text:  # noqa: ASYNC110
                await asyncio.sleep(0.01)
            assert not await left(house)
    assert "1 tokens were deleted that had been over for 30 days" in caplog.text
