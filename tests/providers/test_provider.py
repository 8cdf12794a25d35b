"""Providers: their rows, their sealed keys, the cache of what a project may use."""

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from stage.profiles import shipped

from llm_proxy import projects, providers
from llm_proxy.changes import EVERYTHING, Change
from llm_proxy.db import NO_PARAMS, Database, Params, Row
from llm_proxy.errors import Conflict, DatabaseUnavailable
from llm_proxy.ids import new_id
from llm_proxy.providers import Provider, ProviderCache
from llm_proxy.secret import Secret
from llm_proxy.vault import Vault

KEY = Secret("sk-provider-0123456789abcdef")
VAULT = Vault([Secret("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")])
OTHER_VAULT = Vault([Secret("ZmVkY2JhOTg3NjU0MzIxMGZlZGNiYTk4NzY1NDMyMTA=")])

# What the cache keeps is the same on both databases.
on_one = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


class Reading:
    """A database that counts its reads, can be made to fail, and lets somebody in while a row is on its way."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = 0
        self.away = False
        self.meanwhile: asyncio.Event | None = None
        self.arrived = asyncio.Event()

    async def fetch_all(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        self.reads += 1
        if self.away:
            raise DatabaseUnavailable
        rows = await self._database.fetch_all(sql, params)
        if self.meanwhile:
            self.arrived.set()
            await self.meanwhile.wait()
        return rows


@pytest.fixture
async def project(database: Database) -> str:
    return (await projects.insert(database, new_id(), "one", {})).id


async def make(database: Database, project_id: str | None, vault: Vault = VAULT, **columns: Any) -> Provider:
    given = {
        "id": new_id(),
        "project_id": project_id,
        "name": "mine",
        "provider_type": "openai",
        "api_base": "",
        "weight": 1,
        "is_enabled": True,
        **columns,
    }
    return await providers.insert(database, vault, given, KEY)


def same(one: Provider | None, other: Provider) -> bool:
    """Whether two are equal but for the object that holds the key."""
    assert one is not None
    shown = [{**vars(provider), "api_key": provider.api_key and provider.api_key.reveal()} for provider in (one, other)]
    return shown[0] == shown[1]


async def test_a_provider_is_stored_as_it_is_returned(database: Database, project: str) -> None:
    made = await make(database, project, weight=3, provider_params={"api_version": "2024-10-21"}, is_enabled=False)
    assert made.api_key is not None
    assert made.api_key.reveal() == KEY.reveal()
    assert (made.weight, made.provider_params, made.is_enabled, made.problem) == (3, {"api_version": "2024-10-21"}, False, None)
    assert same(await providers.get(database, VAULT, project, made.id), made)
    assert await providers.get(database, VAULT, new_id(), made.id) is None, "it belongs to its project"
    assert await providers.get(database, VAULT, project, new_id()) is None


async def test_the_key_is_stored_sealed_and_shown_to_nobody(database: Database, project: str) -> None:
    made = await make(database, project)
    row = await database.fetch_one("SELECT * FROM providers")
    assert row is not None
    assert row["api_key_ciphertext"].startswith("enc:v2:")
    assert KEY.reveal() not in repr(row) + repr(made)


async def test_an_id_is_taken_once(database: Database, project: str) -> None:
    made = await make(database, project)
    with pytest.raises(Conflict):
        await make(database, project, id=made.id)


async def test_a_provider_needs_its_project(database: Database) -> None:
    with pytest.raises(Conflict):
        await make(database, new_id())


async def test_an_update_writes_what_it_names_and_nothing_else(database: Database, project: str) -> None:
    made = await make(database, project, weight=3)
    changed = await providers.update(database, VAULT, made.id, {"name": "other", "provider_params": {"a": 1}})
    assert changed is not None
    assert (changed.name, changed.weight, changed.provider_params) == ("other", 3, {"a": 1})
    assert changed.api_key is not None
    assert changed.api_key.reveal() == KEY.reveal()
    rekeyed = await providers.update(database, VAULT, made.id, {}, Secret("sk-another-0123456789"))
    assert rekeyed is not None
    assert rekeyed.api_key is not None
    assert (rekeyed.name, rekeyed.api_key.reveal()) == ("other", "sk-another-0123456789")
    assert await providers.update(database, VAULT, new_id(), {"name": "x"}) is None


async def test_providers_are_called_by_their_names_whoever_owns_them(database: Database, project: str) -> None:
    own, shared = await make(database, project, name="own"), await make(database, None, name="shared")
    found = await providers.labels_of(database, [own.id, shared.id, new_id()])
    assert found == {own.id: ("own", project), shared.id: ("shared", None)}
    assert await providers.labels_of(database, []) == {}


async def test_a_removed_provider_is_gone(database: Database, project: str) -> None:
    made, other = await make(database, project), await make(database, project)
    await providers.delete(database, made.id)
    assert [provider.id for provider in await providers.of_project(database, VAULT, project)] == [other.id]


async def test_a_key_that_cannot_be_read_disables_one_provider_and_breaks_no_list(database: Database, project: str) -> None:
    good = await make(database, project)
    lost = await make(database, project, vault=OTHER_VAULT)
    moved = await make(database, project)
    await database.execute(
        "UPDATE providers SET api_key_ciphertext = (SELECT api_key_ciphertext FROM providers WHERE id = :good) WHERE id = :moved",
        {"good": good.id, "moved": moved.id},
    )
    found = await providers.of_project(database, VAULT, project)
    assert [provider.api_key is None for provider in found] == [False, True, True]
    assert found[1].problem is not None
    assert found[2].problem is not None
    assert "which ENCRYPTION_KEY does not hold" in found[1].problem
    assert "moved here from another row" in found[2].problem
    usable = await ProviderCache(database, VAULT, shipped).of_project(project)
    assert [provider.id for provider in usable] == [good.id]
    assert lost.id not in {provider.id for provider in usable}


NONSENSE = [
    pytest.param("model_mapping", "{", "model_mapping", id="broken JSON"),
    pytest.param("model_mapping", "[]", "model_mapping", id="a list for a mapping"),
    pytest.param("model_mapping", '{"gpt-4": 7}', "model_mapping", id="a number for a name"),
    pytest.param("model_mapping", '{"gpt-4": "acme-*"}', "model_mapping", id="a star that nothing stands for"),
    pytest.param("provider_params", "null", "provider_params", id="null for parameters"),
    pytest.param("api_base", "ftp://example.com", "api_base", id="no web address"),
    pytest.param("api_base", "https://[", "api_base", id="no address at all"),
    pytest.param("api_key_ciphertext", "enc:v2:00000000:AAAA", "API key", id="a key that cannot be read"),
    pytest.param("api_key_ciphertext", "sk-x\r\nHost: evil", "API key", id="a key that would end its header"),
    pytest.param("api_key_ciphertext", "", "API key", id="no key"),
    pytest.param("provider_type", "nobody", "profile", id="a type without a profile"),
    pytest.param("provider_type", "custom", "base URL", id="a type without a base URL"),
]


@pytest.mark.parametrize(("column", "planted", "named"), NONSENSE)
async def test_a_row_that_makes_no_sense_is_out_of_use_by_itself(
    database: Database, project: str, caplog: pytest.LogCaptureFixture, column: str, planted: str, named: str
) -> None:
    good, bad = await make(database, project), await make(database, project)
    await database.execute(f"UPDATE providers SET {column} = :planted WHERE id = :id", {"planted": planted, "id": bad.id})
    cache = ProviderCache(database, VAULT, shipped)
    for _ in range(3):
        assert [provider.id for provider in await cache.of_project(project)] == [good.id]
        cache.on_change(EVERYTHING)
    [told] = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert bad.id in told and named in told and good.id not in told
    assert len(await providers.of_project(database, VAULT, project)) == 2, "no list breaks"
    assert len(await providers.every(database, VAULT, 9)) == 2


@on_one
@pytest.mark.parametrize("weight", [-1, "heavy", 1.5])
async def test_a_weight_that_makes_no_sense_is_none(database: Database, project: str, weight: object) -> None:
    bad = await make(database, project)
    async with database.transaction() as tx:
        await tx.execute("PRAGMA ignore_check_constraints = ON")
        await tx.execute("UPDATE providers SET weight = :weight WHERE id = :id", {"weight": weight, "id": bad.id})
        await tx.execute("PRAGMA ignore_check_constraints = OFF")
    [found] = await providers.of_project(database, VAULT, project)
    assert (found.weight, found.problem) == (0, "weight is no whole number from 0.")
    assert await ProviderCache(database, VAULT, shipped).of_project(project) == []


async def test_projects_without_a_provider_share_a_pool_and_know_of_its_changes(database: Database, project: str) -> None:
    other = (await projects.insert(database, new_id(), "two", {})).id
    own = await make(database, other)
    cache = ProviderCache(database, VAULT, shipped)
    assert await cache.of_project(project) == []
    pooled = await make(database, None)
    assert await cache.of_project(project) == [], "what was read is kept until a change is told"
    cache.on_change(Change("provider", pooled.id, {"project_id": None}))
    assert [provider.id for provider in await cache.of_project(project)] == [pooled.id]
    assert [provider.id for provider in await cache.of_project(other)] == [own.id]
    assert await providers.get(database, VAULT, project, pooled.id) is None, "the pool belongs to no project"
    assert await providers.get(database, VAULT, None, own.id) is None, "what is a project's is not in the pool"


@on_one
async def test_the_pool_of_the_process_stands_beside_that_of_the_database(database: Database, project: str) -> None:
    fake = replace(await make(database, None), id="fake")
    cache = ProviderCache(database, VAULT, shipped, [fake])
    assert [provider.id for provider in await cache.of_project(project)][1:] == ["fake"]
    assert len(await cache.of_project(project)) == 2


async def test_a_column_that_a_newer_program_added_is_no_hindrance(database: Database, project: str) -> None:
    made = await make(database, project)
    await database.execute("ALTER TABLE providers ADD COLUMN later TEXT")
    assert same(await providers.get(database, VAULT, project, made.id), made)
    assert len(await providers.of_project(database, VAULT, project)) == 1
    assert await providers.update(database, VAULT, made.id, {"name": "x"}) is not None


@on_one
async def test_the_cache_reads_a_project_once_until_it_changes(database: Database, project: str) -> None:
    made = await make(database, project)
    reading = Reading(database)
    cache = ProviderCache(reading, VAULT, shipped)  # type: ignore[arg-type]
    for _ in range(3):
        assert [provider.id for provider in await cache.of_project(project)] == [made.id]
    assert reading.reads == 1
    for change in (
        Change("provider", made.id, {"project_id": project}),
        Change("project", project),
        EVERYTHING,
    ):
        cache.on_change(change)
        await cache.of_project(project)
    assert reading.reads == 4


@on_one
@pytest.mark.parametrize(
    "change",
    [
        pytest.param(Change("provider", "p", {"project_id": "another"}), id="another project's provider"),
        pytest.param(Change("provider", "p", {"project_id": None}), id="a provider of no project"),
        pytest.param(Change("provider", "p"), id="a provider, by somebody who says no more"),
        pytest.param(Change("project", "another"), id="another project"),
        pytest.param(Change("token", "t"), id="a token"),
    ],
)
async def test_what_concerns_another_is_no_reason_to_read_again(database: Database, project: str, change: Change) -> None:
    await make(database, project)
    reading = Reading(database)
    cache = ProviderCache(reading, VAULT, shipped)  # type: ignore[arg-type]
    await cache.of_project(project)
    cache.on_change(change)
    await cache.of_project(project)
    assert reading.reads == 1


@on_one
async def test_disabled_providers_are_not_used_nor_is_the_pool_in_their_place(database: Database, project: str) -> None:
    pooled = await make(database, project, name="pooled")
    await providers.delete(database, pooled.id)
    cache = ProviderCache(database, VAULT, shipped, [pooled])
    assert await cache.of_project(project) == [pooled], "a project without a provider of its own goes to the pool"
    made = await make(database, project, is_enabled=False)
    cache.on_change(Change("provider", made.id, {"project_id": project}))
    assert await cache.of_project(project) == []


@on_one
async def test_a_project_that_was_read_goes_on_while_the_database_is_away(database: Database, project: str) -> None:
    made = await make(database, project)
    reading = Reading(database)
    cache = ProviderCache(reading, VAULT, shipped)  # type: ignore[arg-type]
    await cache.of_project(project)
    reading.away = True
    assert [provider.id for provider in await cache.of_project(project)] == [made.id]
    with pytest.raises(DatabaseUnavailable):
        await cache.of_project("another")


@on_one
@pytest.mark.parametrize("kind", ["provider", "project", "everything"])
async def test_a_read_under_way_does_not_put_back_what_a_change_removed(database: Database, project: str, kind: str) -> None:
    made = await make(database, project)
    reading = Reading(database)
    cache = ProviderCache(reading, VAULT, shipped)  # type: ignore[arg-type]
    reading.meanwhile = asyncio.Event()
    under_way = asyncio.create_task(cache.of_project(project))
    await reading.arrived.wait()
    await providers.update(database, VAULT, made.id, {"is_enabled": False})
    cache.on_change(
        {"provider": Change("provider", made.id, {"project_id": project}), "project": Change("project", project)}.get(
            kind, EVERYTHING
        )
    )
    reading.meanwhile.set()
    await under_way
    assert await cache.of_project(project) == []
