"""What Grafana and Prometheus are given asks for metrics that exist."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from stage.calls import call
from stage.house import House, open_house, settings_for
from stage.management import Management, managing
from stage.profiles import shipped
from stage.provider import END, STREAM_HEAD, Exchange, answer, chunk, scripted_provider

from llm_proxy.errors import SettingsError
from llm_proxy.providers.profiles import Profiles

MONITORING = Path(__file__).parents[1] / "deploy" / "monitoring"
DASHBOARD = json.loads((MONITORING / "dashboard.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
RULES = [rule for group in yaml.safe_load((MONITORING / "alerts.yaml").read_text())["groups"] for rule in group["rules"]]
DATASOURCE = {"type": "prometheus", "uid": "${datasource}"}

# Every label that Prometheus adds, or takes away by itself.
SCRAPED = {"job", "instance"}
WORDS = {"and", "or", "unless", "by", "without", "on", "ignoring", "group_left", "group_right", "bool", "offset", "inf", "nan"}
GROUPED = re.compile(r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"(?<![\w.$])([a-zA-Z_:][\w:]*)\s*(\{[^}]*\})?(?![\w(]|\s*\()")
MATCHER = re.compile(r"(\w+)\s*(?:=~|!~|!=|=)")


class Used(NamedTuple):
    """What an expression of PromQL uses: metrics with the labels that each is selected by, the labels it groups by."""

    metrics: list[tuple[str, set[str]]]
    grouped: set[str]


def used(expression: str) -> Used:
    """Read an expression, as far as ours go."""
    bare = re.sub(r'"(?:[^"\\]|\\.)*"', "", expression)
    grouped = {label.strip() for labels in GROUPED.findall(bare) for label in labels.split(",")}
    bare = re.sub(r"\[[^\]]*\]", "", GROUPED.sub("", bare))
    found = [(name, set(MATCHER.findall(labels))) for name, labels in SELECTOR.findall(bare) if name not in WORDS]
    return Used(found, grouped)


@pytest.mark.parametrize(
    ("expression", "metrics", "grouped"),
    [
        ("a_total", [("a_total", set())], set()),
        ('sum by (le, x) (rate(a_bucket{x=~"b|c{d}", y!="e"}[5m])) > 0.5', [("a_bucket", {"x", "y"})], {"le", "x"}),
        ("a / b > 1e3 and on (job) c == 0", [("a", set()), ("b", set()), ("c", set())], {"job"}),
        ("histogram_quantile(0.9, sum(rate(a[$__rate_interval])) by (le))", [("a", set())], {"le"}),
    ],
    ids=["bare", "labels with braces in them", "several", "grouped behind"],
)
def test_an_expression_is_read(expression: str, metrics: list[tuple[str, set[str]]], grouped: set[str]) -> None:
    assert used(expression) == (metrics, grouped)


def queries() -> Iterator[tuple[str, str, str]]:
    """Where each query stands, the query, the text that shows its labels."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield panel["title"], target["expr"], target["legendFormat"]
    for rule in RULES:
        yield rule["alert"], rule["expr"], json.dumps(rule["annotations"])
    for variable in DASHBOARD["templating"]["list"]:
        if variable["type"] == "query":
            metric = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert metric
            yield variable["name"], metric[1], f"{{{{{metric[2]}}}}}"


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession() as session:
        yield session


async def stream(exchange: Exchange) -> None:
    """A provider's stream that takes a moment, with its usage."""
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}\n\n'
    await exchange.send(STREAM_HEAD, chunk(b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'))
    await asyncio.sleep(0.02)
    await exchange.send(chunk(usage), chunk(b"data: [DONE]\n\n"), END)


async def pool(site: Management, *urls: str, **fields: object) -> None:
    """A shared pool: the first provider is never taken while another can be."""
    for number, url in enumerate(urls):
        given = {"id": f"p{number}", "api_base": url, "api_key": "sk-pool-0123456789abcdef", **fields}
        await site.done("POST", "/admin/v1/providers", {**given, "weight": min(number, 1)})


async def scraped(site: Management) -> dict[str, set[str]]:
    """Every metric of a house by its name in queries, with its labels."""
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families((await site.ask("GET", "/metrics", token=None)).text):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


@pytest.fixture
async def there(tmp_path: Path) -> dict[str, set[str]]:
    """The metrics of a house after a stream that one provider failed and another served."""
    settings = settings_for(tmp_path, EVENT_SINKS="file")
    async with scripted_provider() as well, scripted_provider() as sick, open_house(settings) as house, managing(house) as site:
        well.script = stream
        sick.script = lambda exchange: exchange.send(answer(b"{}", status=b"503 Service Unavailable"))
        await pool(site, well.url, sick.url, model_mapping={"gpt-4o": "gpt-4o"})
        token = await house.token(await site.project())
        async with aiohttp.ClientSession() as client:
            assert await call(client, house, token, stream=True) == (200, None)
            assert (await call(client, house, "not-a-token"))[0] == 401
        return await scraped(site)


async def test_every_metric_and_label_that_is_asked_for_exists(there: dict[str, set[str]]) -> None:
    for title, expression, text in queries():
        found = used(expression)
        assert found.metrics, title
        for metric, labels in found.metrics:
            assert metric in there, f"{title}: there is no metric {metric}"
            assert labels <= there[metric] | SCRAPED, f"{title}: {metric} has no label {labels - there[metric] - SCRAPED}"
            # Grouping by what a metric does not have would silently sum everything.
            assert found.grouped <= there[metric] | SCRAPED, f"{title}: {metric} has no {found.grouped - there[metric] - SCRAPED}"
        told = set(re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", text))
        has = found.grouped or there[found.metrics[0][0]] | SCRAPED
        assert told <= has, f"{title}: nothing is left of {told - has}"


TABLE = {
    "requests_total": {"method", "endpoint", "model", "provider", "status"},
    "request_duration_seconds_bucket": {"endpoint", "le"},
    "overhead_seconds_bucket": {"le"},
    "active_requests": set(),
    "tokens_total": {"model", "provider", "type"},
    "provider_health": {"provider"},
    "provider_latency_seconds_bucket": {"provider", "le"},
    "ttft_seconds_bucket": {"provider", "le"},
    "tokens_per_second_bucket": {"provider", "le"},
    "cache_hits_total": set(),
    "cache_misses_total": set(),
    "cache_bypass_total": set(),
    "cache_stores_total": set(),
    "cache_bytes": set(),
    "refusals_total": {"code"},
    "events_published_total": {"sink"},
    "events_delivered_total": {"sink"},
    "events_failed_total": {"sink"},
    "events_lost_total": {"sink"},
    "events_backlog": {"sink"},
    "events_oldest_seconds": {"sink"},
    "provider_circuit_state": {"provider", "state"},
    "client_disconnects_total": set(),
    "db_query_seconds_bucket": {"le"},
    "loop_lag_seconds": set(),
}


async def test_every_metric_of_the_specification_is_there_with_its_labels(there: dict[str, set[str]]) -> None:
    assert {name: there.get(f"llm_proxy_{name}") for name in TABLE} == TABLE


def test_every_metric_is_documented_and_nothing_else(there: dict[str, set[str]]) -> None:
    text = (MONITORING / "README.md").read_text()
    documented: dict[str, set[str]] = {}
    for names, labels in re.findall(r"^\| (`llm_proxy_[^|]*) \|([^|]*)\|", text, re.MULTILINE):
        documented |= {name: set(re.findall(r"`(\w+)`", labels)) for name in re.findall(r"`(\w+)`", names)}
    real: dict[str, set[str]] = {}
    for name, labels in there.items():
        if name.startswith("llm_proxy_"):
            real.setdefault(re.sub("_(bucket|sum|count)$", "", name), set()).update(labels - {"le"})
    # These are counted where Redis comes and goes.
    assert {name: documented.pop(f"llm_proxy_{name}_switches_total") for name in ("cache", "limiter")} == {
        "cache": {"to"},
        "limiter": {"to"},
    }
    assert documented == real


def test_alerting_rules_say_what_happened_and_what_to_do() -> None:
    names = [rule["alert"] for rule in RULES]
    assert len(set(names)) == len(names)
    for rule in RULES:
        assert set(rule) <= {"alert", "expr", "for", "labels", "annotations"}, rule
        assert re.fullmatch(r"LLMProxy[A-Z]\w+", rule["alert"])
        assert re.fullmatch(r"\d+[smh]", rule.get("for", "0s"))
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert set(rule["annotations"]) == {"summary", "action"}
        assert all(text.endswith(".") for text in rule["annotations"].values())


def test_the_dashboard_can_be_imported_anywhere() -> None:
    chosen = DASHBOARD["templating"]["list"][0]
    assert (chosen["name"], chosen["type"], chosen["query"]) == ("datasource", "datasource", "prometheus")
    places = [panel["gridPos"] for panel in DASHBOARD["panels"]]
    assert len({(place["x"], place["y"]) for place in places}) == len(places)
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(places)
    assert len({panel["title"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["description"] and panel["targets"], panel["title"]
    assert [found for found in datasources(DASHBOARD) if found != DATASOURCE] == []


def datasources(node: Any) -> Iterator[Any]:
    """Every data source that is named anywhere."""
    if isinstance(node, dict):
        yield from (value for name, value in node.items() if name == "datasource")
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from datasources(child)


async def test_a_refused_file_of_profiles_shows_until_a_good_one_is_read(tmp_path: Path) -> None:
    faults: list[SettingsError] = []

    def read() -> Profiles:
        if faults:
            raise faults.pop()
        return shipped()

    async with open_house(settings_for(tmp_path), profiles=read) as house:

        def good() -> float | None:
            return house.context.metrics.registry.get_sample_value("llm_proxy_config_last_reload_successful")

        assert good() == 1
        faults.append(SettingsError("line 3: no"))
        with pytest.raises(SettingsError):
            await house.context.reload()
        assert good() == 0
        await house.context.reload()
        assert good() == 1


async def test_labels_are_ids_of_the_pool_profiles_of_private_keys_names_of_mappings(
    house: House, client: aiohttp.ClientSession
) -> None:
    def samples() -> dict[tuple[str, str], float]:
        [family] = house.context.metrics.requests.collect()
        ended = [sample for sample in family.samples if sample.name.endswith("_total")]
        return {(one.labels["model"], one.labels["provider"]): one.value for one in ended}

    async with scripted_provider() as provider, managing(house) as site:
        await pool(site, provider.url, model_mapping={"gpt-4o": "acme-4o", "gpt-*": "acme-*"})
        pooled, private = await house.token(await site.project()), await house.token_for(provider.url)
        for token in (pooled, private):
            for model in ("gpt-4o", "gpt-unheard-of"):
                assert await call(client, house, token, model=model) == (200, None)
        assert samples() == {
            ("gpt-4o", "p0"): 1,
            ("other", "p0"): 1,
            ("gpt-4o", "private:openai"): 1,
            ("other", "private:openai"): 1,
        }
        before = (await site.ask("GET", "/metrics", headers={"Accept": "application/json"})).data
        text = (await site.ask("GET", "/metrics")).text
        assert 'llm_proxy_provider_health{provider="p0"} 1.0' in text
        await site.done("DELETE", "/admin/v1/providers/p0")
        text = (await site.ask("GET", "/metrics")).text
        after = (await site.ask("GET", "/metrics", headers={"Accept": "application/json"})).data
    assert 'provider="p0"' not in text
    assert {model for model, provider in samples() if provider == "private:openai"} == {"gpt-4o", "other"}
    assert before["request_count"] == after["request_count"] == 4


async def test_a_refused_key_is_seen_in_the_api_in_health_and_in_the_metrics(house: House, client: aiohttp.ClientSession) -> None:
    async with scripted_provider() as provider, managing(house) as site:
        provider.script = lambda exchange: exchange.send(answer(b"{}", status=b"401 Unauthorized"))
        await pool(site, provider.url)
        project = await house.project(provider.url)
        for token in (await house.token(await site.project()), await house.token(project)):
            async with client.post(
                f"{house.url}/v1/chat/completions", headers={"x-api-key": token}, json={"model": "m"}
            ) as reply:
                assert reply.status == 401
        bad = {"state": "bad_key", "reason": "the provider answered 401 to its key"}
        [own] = (await site.done("GET", f"/manage/projects/{project}/providers"))["data"]
        pooled = await site.done("GET", "/admin/v1/providers/p0")
        assert own["status"] == pooled["status"] == bad
        found = (await site.done("GET", "/health/detailed"))["providers"]
        assert found == {
            "pool": [{"id": "p0", "is_enabled": True, "problem": None, "status": bad}],
            "private": {"closed": 0, "open": 0, "half-open": 0, "cooling": 0, "bad_key": 1},
            "private_not_closed": [{"project_id": project, "id": own["id"], "status": bad}],
        }
        text = (await site.ask("GET", "/metrics")).text
        for label in ("p0", "private:openai"):
            assert f'llm_proxy_provider_circuit_state{{provider="{label}",state="bad_key"}} 1.0' in text
            assert f'llm_proxy_provider_health{{provider="{label}"}} 0.0' in text
        # What was read may be sent back, and what the breaker says is no part of what an act changes.
        changed = await site.done("PUT", "/admin/v1/providers/p0", {**pooled, "name": "new", "api_key": "sk-better-0123456789"})
        assert changed["status"] == {"state": "closed", "reason": None}
        [event] = await site.audit(action="provider.update")
        assert set(event["details"]["after"]) == {"name", "api_key"}
