"""How the providers are doing, for health, metrics, the labels in them."""

from collections import Counter
from collections.abc import Iterator
from typing import Any, get_args

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from llm_proxy.providers import Provider, ProviderCache
from llm_proxy.providers.breaker import Breakers, State
from llm_proxy.providers.mapping import without_suffix

STATES: tuple[State, ...] = get_args(State)
# Ids have no colon, so that no provider of the shared pool has such a label.
PRIVATE = "private:"
NO_PROVIDER = NO_MODEL = "none"
OTHER_MODEL = "other"
# Each model multiplies the series; those that come later are `other`.
MOST_MODELS = 200
# Labels that need not be looked for again while the providers stay the same.
MOST_REMEMBERED = 1000
MOST_SHOWN = 200


class KnownLabels:
    """Names of providers and models as labels: bounded by what is configured, whatever clients send.

    A provider of the shared pool stands under its id. Those of projects, of which there may be thousands, stand together under
    their profile. A model is known when a mapping names it exactly, and stays so.

    Args:
        suffix: PROVIDER_SUFFIX, which is no part of a model's name.
    """

    def __init__(self, providers: ProviderCache, suffix: str) -> None:
        self._providers = providers
        self._suffix = suffix
        self._models: set[str] = set()
        self._labels: dict[tuple[str | None, str], str] = {}
        self._version = 0

    def provider(self, id: str | None, kind: str | None) -> str:
        """The label of a provider, by its id and its profile."""
        if id is None:
            return NO_PROVIDER
        return id if id in self._providers.pooled_ids else f"{PRIVATE}{kind}"

    def model(self, project_id: str | None, model: str | None) -> str:
        """The label of a model that a client named."""
        if not model:
            return NO_MODEL
        if self._version != self._providers.version or len(self._labels) >= MOST_REMEMBERED:
            self._version = self._providers.version
            self._labels.clear()
        label = self._labels.get((project_id, model))
        if label is None:
            label = self._labels[(project_id, model)] = self._model(project_id, model)
        return label

    def _model(self, project_id: str | None, model: str) -> str:
        name = without_suffix(model, self._suffix)
        if name in self._models:
            return name
        if len(self._models) < MOST_MODELS and project_id and self._providers.names_model(project_id, name):
            self._models.add(name)
            return name
        return OTHER_MODEL

    def knows_provider(self, label: str) -> bool:
        """Whether there is still something that has this label."""
        return label == NO_PROVIDER or label.startswith(PRIVATE) or label in self._providers.pooled_ids


def _usable_in(providers: ProviderCache, breakers: Breakers) -> Iterator[tuple[str, State, bool]]:
    """The label, the state of the breaker, the soundness of every enabled provider of the pool, and of the projects in use."""
    for one in providers.pooled:
        if one.is_enabled:
            yield one.id, breakers.status(one).state, providers.problem_of(one) is None
    for one in providers.private:
        yield f"{PRIVATE}{one.provider_type}", breakers.status(one).state, True


class ProviderCollector(Collector):
    """The metrics of the providers as they are now, made when they are asked for: what was deleted is not among them."""

    def __init__(self, providers: ProviderCache, breakers: Breakers) -> None:
        self._providers = providers
        self._breakers = breakers

    def collect(self) -> Iterator[Metric]:
        """Both metrics with their samples."""
        states: dict[str, Counter[State]] = {}
        usable: dict[str, bool] = {}
        for label, state, sound in _usable_in(self._providers, self._breakers):
            states.setdefault(label, Counter())[state] += 1
            usable[label] = usable.get(label, False) or (sound and state == "closed")
        health = GaugeMetricFamily(
            "llm_proxy_provider_health", "1 while the provider, or one of this label, is usable.", labels=("provider",)
        )
        circuit = GaugeMetricFamily(
            "llm_proxy_provider_circuit_state", "How many breakers are in this state.", labels=("provider", "state")
        )
        for label, counts in states.items():
            health.add_metric((label,), usable[label])
            for state in STATES:
                circuit.add_metric((label, state), counts[state])
        yield from (health, circuit)


def shown(providers: ProviderCache, breakers: Breakers) -> dict[str, Any]:
    """The providers for programs that read JSON: the pool one by one, private ones summed, with those that are not closed."""
    counts: Counter[State] = Counter()
    sick: list[dict[str, Any]] = []
    for one in providers.private:
        state = breakers.status(one).state
        counts[state] += 1
        if state != "closed" and len(sick) < MOST_SHOWN:
            sick.append({"project_id": one.project_id, **_shown(one, breakers)})
    return {
        "pool": [
            {**_shown(one, breakers), "is_enabled": one.is_enabled, "problem": providers.problem_of(one)}
            for one in providers.pooled[:MOST_SHOWN]
        ],
        "private": {state: counts[state] for state in STATES},
        "private_not_closed": sick,
    }


def _shown(provider: Provider, breakers: Breakers) -> dict[str, Any]:
    return {"id": provider.id, "status": breakers.status(provider)._asdict()}
