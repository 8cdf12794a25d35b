"""Stored provider keys come under the newest encryption key, on both databases."""

import base64
from collections.abc import Mapping
from typing import Any

import pytest

from llm_proxy import projects, providers
from llm_proxy.db import Database, Params
from llm_proxy.ids import new_id
from llm_proxy.providers import sealing
from llm_proxy.secret import Secret
from llm_proxy.vault import Vault

OLD, NEW = (Secret(base64.b64encode(bytes([n]) * 32).decode()) for n in (1, 2))
PLAIN, OLDER, NEWEST, BOTH = Vault(()), Vault([OLD]), Vault([NEW]), Vault([NEW, OLD])
NONE = {"with the newest key": 0, "with an older key": 0, "plain": 0, "unreadable": 0}


async def add(database: Database, vault: Vault, key: str) -> str:
    """A provider of a project of its own, sealed as the vault does it; returns the ids."""
    id, project_id = new_id(), new_id()
    columns = {"id": id, "project_id": project_id, "name": "p", "provider_type": "openai", "api_base": "", "weight": 1}
    async with database.transaction() as tx:
        await projects.insert(tx, project_id, project_id, {})
        await providers.insert(tx, vault, {**columns, "is_enabled": True}, Secret(key))
    return id


async def keys(database: Database, vault: Vault) -> Mapping[str, str | None]:
    """The keys that a vault can read, by provider."""
    return {one.id: one.api_key and one.api_key.reveal() for one in await providers.every(database, vault, 1000)}


async def changes(database: Database) -> list[str]:
    return [row["ref"] for row in await database.fetch_all("SELECT ref FROM changes WHERE kind = 'provider' ORDER BY version")]


@pytest.mark.parametrize(
    ("before", "after", "left_alone"),
    [
        pytest.param(PLAIN, OLDER, 0, id="plain to the first key"),
        pytest.param(OLDER, BOTH, 0, id="the old key to the new one"),
        pytest.param(NEWEST, BOTH, 1, id="the newest already"),
    ],
)
async def test_a_key_is_sealed_with_the_newest_and_stays_the_same(
    database: Database, before: Vault, after: Vault, left_alone: int
) -> None:
    id = await add(database, before, "sk-one")
    assert await sealing.seal_all(database, after) == (1 - left_alone, [])
    assert await sealing.count(database, after) == {**NONE, "with the newest key": 1}
    assert await keys(database, after) == {id: "sk-one"}
    assert await changes(database) == [id][left_alone:], "other processes hear of what was rewritten, of nothing else"


async def test_after_the_rotation_the_new_key_alone_opens_everything(database: Database) -> None:
    ids = [await add(database, vault, key) for vault, key in ((PLAIN, "sk-1"), (OLDER, "sk-2"), (NEWEST, "sk-3"))]
    assert await sealing.count(database, BOTH) == {**NONE, "plain": 1, "with an older key": 1, "with the newest key": 1}
    assert await sealing.seal_all(database, BOTH) == (2, [])
    assert await keys(database, NEWEST) == dict(zip(ids, ("sk-1", "sk-2", "sk-3"), strict=True))


async def test_what_cannot_be_opened_is_named_and_keeps_nobody_else_from_being_sealed(database: Database) -> None:
    lost, fine = await add(database, OLDER, "sk-lost"), await add(database, PLAIN, "sk-fine")
    done, [problem] = await sealing.seal_all(database, NEWEST)
    assert done == 1
    assert lost in problem and "which ENCRYPTION_KEY does not hold" in problem
    assert await sealing.count(database, NEWEST) == {**NONE, "with the newest key": 1, "unreadable": 1}
    assert await keys(database, NEWEST) == {lost: None, fine: "sk-fine"}


async def test_without_a_key_what_is_sealed_counts_as_unreadable(database: Database) -> None:
    await add(database, OLDER, "sk-lost")
    await add(database, PLAIN, "sk-plain")
    assert await sealing.count(database, PLAIN) == {**NONE, "plain": 1, "unreadable": 1}


async def test_more_than_one_batch_is_sealed(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sealing, "BATCH", 2)
    for number in range(5):
        await add(database, PLAIN, f"sk-{number}")
    assert await sealing.seal_all(database, OLDER) == (5, [])
    assert await sealing.count(database, OLDER) == {**NONE, "with the newest key": 5}


class Interrupted:
    """A database on which something happens before the first transaction."""

    def __init__(self, database: Database, happens: Any) -> None:
        self._database = database
        self._happens = happens

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)

    async def fetch_all(self, sql: str, params: Params) -> Any:
        rows = await self._database.fetch_all(sql, params)
        if rows:
            await self._happens()
        return rows


async def test_a_key_that_an_operator_replaces_meanwhile_stays(database: Database) -> None:
    id = await add(database, PLAIN, "sk-old")

    async def replaced() -> None:
        async with database.transaction() as tx:
            await providers.update(tx, OLDER, id, {}, Secret("sk-new"))

    assert await sealing.seal_all(Interrupted(database, replaced), OLDER) == (0, [])  # type: ignore[arg-type]
    assert await keys(database, OLDER) == {id: "sk-new"}
