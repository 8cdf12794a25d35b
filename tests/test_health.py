"""Health and metrics tell the truth, to those who may know it."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample
from stage.calls import call
from stage.house import House, open_house, settings_for
from stage.management import Management, managing
from stage.postgres import Postgres
from stage.provider import ScriptedProvider, answer

from llm_proxy import __version__
from llm_proxy.errors import RULES

TOKEN = "metrics-token-that-is-long-enough-for-anyone"
FOREIGN = {"X-Forwarded-For": "203.0.113.9"}


@asynccontextmanager
async def both_sites(folder: Path, **more: str) -> AsyncIterator[tuple[House, Management, Management]]:
    """A house, with a stranger at its proxy site and at its admin site."""
    async with open_house(settings_for(folder, **more)) as house, managing(house) as proxy, managing(house, admin=True) as admin:
        yield house, proxy, admin


async def test_health_and_live_need_neither_token_nor_database(tmp_path: Path, postgres: Postgres, postgres_url: str) -> None:
    async with both_sites(tmp_path, DATABASE_URL=postgres_url) as (house, proxy, admin):
        # Without it the sudden end would take back what was just committed, the migrations included.
        await house.context.database.execute("CHECKPOINT")
        postgres.stop()
        try:
            for site in (proxy, admin):
                health = await site.ask("GET", "/health", token=None)
                assert (health.status, health.data["status"], health.data["version"]) == (200, "ok", __version__)
                assert health.data["uptime_seconds"] >= 0
                live = await site.ask("GET", "/live", token=None)
                assert (live.status, live.data) == (200, {"status": "ok"})
                ready = await site.ask("GET", "/ready", token=None)
                assert (ready.status, ready.data) == (503, {"status": "not ready", "missing": ["database"]})
            detailed = (await proxy.ask("GET", "/health/detailed")).data
            assert (detailed["status"], detailed["database"]["ok"]) == ("not ready", False)
            assert "llm_proxy_db_query_seconds_count" in (await proxy.ask("GET", "/metrics", token=None)).text
        finally:
            postgres.start()
        assert (await proxy.ask("GET", "/ready", token=None)).status == 200


async def test_ready_is_said_while_nothing_is_missing(house: House) -> None:
    async with managing(house) as site:
        reply = await site.ask("GET", "/ready", token=None)
        assert (reply.status, reply.data) == (200, {"status": "ready", "missing": []})
        house.context.draining = True
        reply = await site.ask("GET", "/ready", token=None)
        assert (reply.status, reply.data) == (503, {"status": "not ready", "missing": ["draining"]})
        assert (await site.ask("GET", "/health", token=None)).status == 200


async def test_a_database_of_an_older_schema_is_not_ready(house: House) -> None:
    await house.context.database.execute("DELETE FROM _yoyo_migration")
    async with managing(house) as site:
        reply = await site.ask("GET", "/ready", token=None)
        assert (reply.status, reply.data["missing"]) == (503, ["migrations"])


async def test_the_details_of_health_are_for_the_operator(house: House) -> None:
    async with managing(house) as site:
        assert (await site.ask("GET", "/health/detailed", token=None)).status == 401
        found = (await site.ask("GET", "/health/detailed")).data
    assert (found["status"], found["missing"], found["active_requests"]) == ("ok", [], 0)
    assert found["database"]["driver"] == "sqlite"
    assert 0 < found["database"]["latency_ms"] < 5000
    assert found["queues"]["audit"] >= found["queues"]["token_count_bytes"] == 0
    assert (found["events"]["dead_letters"], found["events"]["log_cap_bytes"]) == (0, 2**30)


async def test_probes_are_answered_to_head_as_well(house: House) -> None:
    async with managing(house) as site:
        for path in ("/health", "/live", "/ready", "/metrics"):
            reply = await site.ask("HEAD", path, token=None)
            assert (reply.status, reply.text) == (200, ""), path


@pytest.mark.parametrize("authorization", ["", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", "Bearer", "Bearer \xe9"])
async def test_a_metrics_token_guards_both_sites_from_everyone(tmp_path: Path, authorization: str) -> None:
    headers = {"Authorization": authorization} if authorization.isascii() and authorization else {}
    async with both_sites(tmp_path, METRICS_TOKEN=TOKEN) as (_, *sites):
        for site in sites:
            for path in ("/metrics", "/metrics/prometheus"):
                for accept in ("*/*", "application/json"):
                    reply = await site.ask("GET", path, token=None, headers={**headers, "Accept": accept})
                    assert (reply.status, reply.error["code"]) == (401, "invalid_token")
                    assert reply.headers["WWW-Authenticate"] == "Bearer"


async def test_whoever_knows_the_metrics_token_may_read_from_anywhere(tmp_path: Path) -> None:
    async with both_sites(tmp_path, METRICS_TOKEN=TOKEN, TRUSTED_PROXIES="127.0.0.1") as (_, *sites):
        for site in sites:
            for scheme in ("Bearer", "bearer"):
                reply = await site.ask("GET", "/metrics", token=None, headers={**FOREIGN, "Authorization": f"{scheme} {TOKEN}"})
                assert reply.status == 200


async def test_the_management_token_is_no_metrics_token(tmp_path: Path) -> None:
    async with both_sites(tmp_path, METRICS_TOKEN=TOKEN) as (_, proxy, _admin):
        assert (await proxy.ask("GET", "/metrics")).status == 401


@pytest.mark.parametrize(
    ("trusted", "headers", "status"),
    [
        ("", {}, 200),
        ("", FOREIGN, 404),
        ("", {"X-Forwarded-For": "127.0.0.1"}, 404),
        ("", {"Forwarded": "for=127.0.0.1"}, 404),
        ("127.0.0.1", {}, 200),
        ("127.0.0.1", FOREIGN, 404),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1, 203.0.113.9"}, 404),
        ("127.0.0.1", {"X-Forwarded-For": "127.0.0.1"}, 200),
        ("10.0.0.0/8", {"X-Forwarded-For": "203.0.113.9"}, 200),
    ],
    ids=[
        "this machine",
        "through an unknown proxy",
        "through an unknown proxy, from here",
        "through an unknown proxy of the newer kind",
        "beside a proxy",
        "through a proxy",
        "through a proxy, with a forged address",
        "through a proxy, from here",
        "a header from nobody that is trusted",
    ],
)
async def test_without_a_metrics_token_the_proxy_site_serves_this_machine_alone(
    tmp_path: Path, trusted: str, headers: dict[str, str], status: int
) -> None:
    async with both_sites(tmp_path, TRUSTED_PROXIES=trusted) as (_, proxy, admin):
        for path in ("/metrics", "/metrics/prometheus"):
            assert (await proxy.ask("GET", path, token=None, headers=headers)).status == status
            assert (await admin.ask("GET", path, token=None, headers=headers)).status == 200


async def test_metrics_may_be_elsewhere_or_nowhere(tmp_path: Path) -> None:
    async with both_sites(tmp_path, METRICS_PATH="/internal/numbers") as (_, proxy, _admin):
        assert (await proxy.ask("GET", "/internal/numbers", token=None)).status == 200
        assert (await proxy.ask("GET", "/internal/numbers/prometheus", token=None)).status == 200
        assert (await proxy.ask("GET", "/metrics", token=None)).error["code"] == "invalid_token"
    async with both_sites(tmp_path, ENABLE_METRICS="false") as (_, proxy, admin):
        assert (await proxy.ask("GET", "/metrics", token=None)).error["code"] == "invalid_token"
        assert (await admin.ask("GET", "/metrics", token=None)).status == 404


def samples_of(text: str) -> list[Sample]:
    """Every sample of a Prometheus text, read by Prometheus' own parser."""
    return [sample for family in text_string_to_metric_families(text) for sample in family.samples]


async def test_every_call_counts_once_under_labels_that_strangers_cannot_choose(house: House, provider: ScriptedProvider) -> None:
    usage = b'{"model": "m", "choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}}'
    provider.script = lambda exchange: exchange.send(answer(usage))
    token = await house.token_for(provider.url)
    async with aiohttp.ClientSession() as client, managing(house) as site:
        for number in range(3):
            assert await call(client, house, token, model=f"chosen-by-the-client-{number}") == (200, None)
            assert (await call(client, house, f"wrong-token-{number}-0123456789"))[0] == 401
            await site.ask("GET", f"/v1/chosen-by-a-stranger-{number}", token=token, headers={"User-Agent": "x" * 100})
        provider.script = lambda exchange: exchange.send(answer(b"{}", status=b"500 Internal Server Error"))
        async with client.post(f"{house.url}/v1/chat/completions", headers={"x-api-key": token}, json={}) as reply:
            assert reply.status == 500
        text = (await site.ask("GET", "/metrics", token=None)).text
        summary = (await site.ask("GET", "/metrics", token=None, headers={"Accept": "application/json"})).data
    samples = samples_of(text)
    counted = [sample for sample in samples if sample.name == "llm_proxy_requests_total"]
    assert sum(sample.value for sample in counted) == 10
    assert {name: summary[name] for name in ("request_count", "error_count", "active_requests", "tokens")} == {
        "request_count": 10,
        "error_count": 7,
        "active_requests": 0,
        "tokens": 21,
    }
    assert {sample.labels["status"] for sample in counted} == {"200", "401", "404", "500"}
    assert sum(sample.value for sample in samples if sample.name == "llm_proxy_request_duration_seconds_count") == 10
    assert "chosen" not in text
    assert "x" * 100 not in text
    codes = {sample.labels["code"]: sample.value for sample in samples if sample.name == "llm_proxy_refusals_total"}
    assert codes == {"invalid_token": 3, "endpoint_not_found": 3}
    assert set(codes) <= set(RULES)


async def test_the_prometheus_path_is_text_whatever_is_accepted(house: House) -> None:
    async with managing(house) as site:
        for path, accept, kind in (
            ("/metrics", "*/*", "text/plain"),
            ("/metrics", "text/html, application/json;q=0.9", "application/json"),
            ("/metrics", "Application/JSON", "application/json"),
            ("/metrics/prometheus", "application/json", "text/plain"),
        ):
            reply = await site.ask("GET", path, token=None, headers={"Accept": accept})
            assert reply.headers["Content-Type"].partition(";")[0] == kind
            assert reply.headers["Cache-Control"] == "no-store"
        names = {sample.name for sample in samples_of((await site.ask("GET", "/metrics")).text)}
    assert {"process_resident_memory_bytes", "llm_proxy_active_requests", "llm_proxy_loop_lag_seconds"} <= names
