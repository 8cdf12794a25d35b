"""Labels are few, and what is told of providers is what calls will find."""

import pytest
from prometheus_client import CollectorRegistry
from stage.profiles import shipped

from llm_proxy import projects
from llm_proxy.changes import EVERYTHING
from llm_proxy.db import Database
from llm_proxy.ids import new_id
from llm_proxy.providers import Provider, ProviderCache, delete, insert
from llm_proxy.providers.breaker import Breakers
from llm_proxy.providers.statistics import MOST_MODELS, MOST_SHOWN, KnownLabels, ProviderCollector, shown
from llm_proxy.secret import Secret
from llm_proxy.vault import Vault

VAULT = Vault([Secret("MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY=")])

# What is told does not depend on the database.
pytestmark = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


async def make(database: Database, id: str, project_id: str | None = None, **columns: object) -> Provider:
    given = {"id": id, "project_id": project_id, "name": id, "provider_type": "openai", "api_base": "", "weight": 1}
    async with database.transaction() as tx:
        return await insert(tx, VAULT, {**given, "is_enabled": True, **columns}, Secret("sk-0123456789abcdef"))


async def project(database: Database) -> str:
    return (await projects.insert(database, new_id(), new_id(), {})).id


@pytest.fixture
def cache(database: Database) -> ProviderCache:
    return ProviderCache(database, VAULT, shipped)


async def test_a_provider_of_the_pool_is_its_id_a_private_one_its_profile(database: Database, cache: ProviderCache) -> None:
    labels = KnownLabels(cache, "")
    await make(database, "main")
    await make(database, "off", is_enabled=False)
    await cache.read_pool()
    assert [labels.provider(id, "openai") for id in ("main", "off", "x", None)] == ["main", "off", "private:openai", "none"]
    assert labels.knows_provider("off")
    async with database.transaction() as tx:
        await delete(tx, "off")
    cache.on_change(EVERYTHING)
    assert labels.knows_provider("off"), "until the pool is read again, nothing is known of it"
    await cache.read_pool()
    assert [label for label in ("main", "off", "private:gone", "none") if labels.knows_provider(label)] == [
        "main",
        "private:gone",
        "none",
    ]


async def test_a_model_is_known_by_the_exact_names_of_the_project_that_uses_it(database: Database, cache: ProviderCache) -> None:
    labels, own, without = KnownLabels(cache, "acme"), await project(database), await project(database)
    await make(database, "p1", own, model_mapping={"mine": "x", "mine-*": "y"})
    await make(database, "main", model_mapping={"ours": "x"})
    for used in (own, without):
        await cache.of_project(used)
    names = ("mine", "ours", "mine-4", "acme/ours", None)
    # In this order, since what was known once stays so.
    assert [labels.model(own, name) for name in ("ours", "mine-4", "mine")] == ["other", "other", "mine"]
    assert [labels.model(without, name) for name in names] == ["mine", "ours", "other", "ours", "none"]
    assert labels.model(None, "acme/mine") == "mine"


async def test_models_are_bounded_however_many_are_mapped(database: Database, cache: ProviderCache) -> None:
    labels, names = KnownLabels(cache, ""), [f"model-{number}" for number in range(MOST_MODELS + 50)]
    await make(database, "main", model_mapping=dict.fromkeys(names, "x"))
    await cache.read_pool()
    found = [labels.model("any", name) for name in names]
    assert found == [*names[:MOST_MODELS], *["other"] * 50]
    assert labels.model("any", names[0]) == names[0]


async def test_health_is_that_of_enabled_providers_in_use(database: Database, cache: ProviderCache) -> None:
    breakers, registry = Breakers(lambda id, state, reason: None), CollectorRegistry()
    registry.register(ProviderCollector(cache, breakers))
    own = await project(database)
    await make(database, "off", is_enabled=False)
    await make(database, "nonsense", provider_type="gone")
    made = {id: await make(database, id) for id in ("well", "sick")}
    private = [await make(database, f"key{number}", own) for number in range(2)]
    await cache.read_pool()
    await cache.of_project(own)
    for provider in (made["sick"], private[0]):
        breakers.of(provider).begin().answered(401)

    def health(label: str) -> float | None:
        return registry.get_sample_value("llm_proxy_provider_health", {"provider": label})

    def state(label: str, state: str) -> float | None:
        return registry.get_sample_value("llm_proxy_provider_circuit_state", {"provider": label, "state": state})

    assert [health(label) for label in ("well", "sick", "nonsense", "off", "private:openai")] == [1, 0, 0, None, 1]
    assert [state("sick", name) for name in ("bad_key", "closed", "open")] == [1, 0, 0]
    assert [state("private:openai", name) for name in ("bad_key", "closed")] == [1, 1]
    assert state("off", "closed") is None
    breakers.of(private[1]).begin().answered(401)
    assert health("private:openai") == 0
    told = shown(cache, breakers)
    assert {one["id"]: (one["status"]["state"], bool(one["problem"])) for one in told["pool"]} == {
        "nonsense": ("closed", True),
        "off": ("closed", False),
        "sick": ("bad_key", False),
        "well": ("closed", False),
    }
    assert [one["id"] for one in told["private_not_closed"]] == ["key0", "key1"]


async def test_lists_are_bounded(database: Database, cache: ProviderCache) -> None:
    breakers = Breakers(lambda id, state, reason: None)
    many = [await make(database, f"p{number}", await project(database)) for number in range(2)]
    few = ProviderCache(database, VAULT, shipped, many * MOST_SHOWN)
    assert len(shown(few, breakers)["pool"]) == MOST_SHOWN
