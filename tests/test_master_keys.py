"""Master keys: their rows, their project, their secrets."""

import asyncio

import pytest
from stage.house import open_house

from llm_proxy import master_keys, projects, tokens
from llm_proxy.clock import now_ms
from llm_proxy.db import Database
from llm_proxy.db.sql import Page
from llm_proxy.errors import Conflict
from llm_proxy.ids import new_id
from llm_proxy.projects import DEFAULT_ID
from llm_proxy.secret import Secret
from llm_proxy.settings import Settings
from llm_proxy.vault import Vault

KEY = Secret("a-master-key-of-my-own")
OTHER = Secret("another-master-key-of-mine")
OLD_VAULT = Vault([])
VAULT = Vault([Secret("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")])


async def test_the_first_master_key_makes_the_project_of_all(database: Database) -> None:
    for number in range(2):
        made = await master_keys.insert(database, VAULT, {"name": "k"}, f"k{number}", Secret(f"{KEY.reveal()}{number}"))
        assert (made.token.project_id, made.token.project_name, made.token.expires_at) == (DEFAULT_ID, "default", None)
    assert [key.id for key in await master_keys.find(database, 9)] == ["k0", "k1"]
    assert [key.id for key in await master_keys.find(database, 9, "k0")] == ["k1"]
    assert [key.id for key in await master_keys.find(database, 1, before="k2")] == ["k1"]
    assert [key.id for key in await master_keys.find(database, 9, before="k2")] == ["k0", "k1"]
    assert await tokens.find(database, Page()) == [], "they are no tokens of the other list"
    assert await master_keys.count_enabled(database) == 2


async def test_a_project_that_has_the_name_already_is_left_alone(database: Database) -> None:
    mine = await projects.insert(database, new_id(), "default", {})
    made = await master_keys.insert(database, VAULT, {}, "k", KEY)
    assert (made.token.project_id, made.token.project_name) == (DEFAULT_ID, "default (built-in)")
    assert (await projects.get(database, mine.id)) == mine


async def test_processes_that_make_the_first_at_once_make_one_project(settings: Settings) -> None:
    async with open_house(settings) as one, open_house(settings) as other:

        async def make(house: object, number: int) -> None:
            async with house.context.database.transaction() as tx:  # type: ignore[attr-defined]
                await master_keys.insert(tx, VAULT, {}, f"k{number}", Secret(f"{KEY.reveal()}{number}"))

        await asyncio.gather(*(make(house, number) for number, house in enumerate([one, other] * 4)))
        assert await master_keys.count_enabled(one.context.database) == 8
        assert len(await projects.find(one.context.database, Page())) == 1


async def test_a_secret_is_known_however_it_was_hashed_and_in_its_grace(database: Database) -> None:
    await master_keys.insert(database, OLD_VAULT, {}, "k", KEY)
    assert await master_keys.is_known(database, VAULT, KEY), "the encryption key was added later"
    assert not await master_keys.is_known(database, VAULT, OTHER)
    await master_keys.replace_secret(database, VAULT, "k", OTHER, now_ms() + 60_000)
    assert await master_keys.is_known(database, VAULT, KEY)
    found = await master_keys.get(database, "k")
    assert found is not None
    assert found.previous_expires_at
    assert found.token.hint == tokens.hint_of(OTHER.reveal())


async def test_an_ended_grace_is_not_shown(database: Database) -> None:
    await master_keys.insert(database, VAULT, {}, "k", KEY)
    await master_keys.replace_secret(database, VAULT, "k", OTHER, now_ms() - 1)
    found = await master_keys.get(database, "k")
    assert found is not None
    assert found.previous_expires_at is None


async def test_a_secret_belongs_to_one_row_until_that_is_gone(database: Database) -> None:
    await master_keys.insert(database, VAULT, {}, "k", KEY)
    with pytest.raises(Conflict):
        await master_keys.insert(database, VAULT, {}, "l", KEY)
    await master_keys.delete(database, "k")
    assert await master_keys.get(database, "k") is None
    assert (await master_keys.insert(database, VAULT, {}, "k", KEY)).id == "k"


async def test_a_token_is_no_master_key(database: Database) -> None:
    project = await projects.insert(database, new_id(), "one", {})
    id, secret = tokens.new_token()
    await tokens.insert(database, VAULT, {"project_id": project.id, "name": ""}, id, secret)
    assert await master_keys.get(database, id) is None
    await master_keys.delete(database, id)
    assert await tokens.get(database, id) is not None
