"""Who may use the management API."""

from pathlib import Path

import pytest
from stage.house import MANAGEMENT_TOKEN, PROVIDER_KEY, open_house, settings_for
from stage.management import Management, managing

from llm_proxy.manage import ROUTES

METRICS_TOKEN = "metrics-token-that-is-long-enough-for-anyone"
SECOND_TOKEN = "second-management-token-while-one-is-replaced"
ID = "0199c5f2-7d3a-7c1e-8f00-0123456789ab"


def behind_proxy(folder: Path, **more: str) -> object:
    """Settings of a house whose clients' addresses come with X-Forwarded-For."""
    return settings_for(folder, TRUSTED_PROXIES="127.0.0.1", **more)


async def test_every_route_asks_a_stranger_for_the_management_token(tmp_path: Path) -> None:
    async with open_house(behind_proxy(tmp_path)) as house, managing(house) as api:
        for number, (method, path, _) in enumerate(ROUTES):
            path = path.replace("{id}", ID).replace("{provider_id}", "one")
            reply = await api.ask(method, path, token=None, headers={"X-Forwarded-For": f"203.0.113.{number}"})
            assert (reply.status, reply.error["code"]) == (401, "invalid_management_token"), path
            assert reply.headers["WWW-Authenticate"] == "Bearer"
            assert reply.headers["Content-Type"] == "application/json"


@pytest.mark.parametrize("scheme", ["Bearer", "bearer", "BEARER", "bEaReR"])
async def test_the_scheme_may_be_written_in_any_case(api: Management, scheme: str) -> None:
    headers = {"Authorization": f"{scheme} {MANAGEMENT_TOKEN}"}
    assert (await api.ask("GET", "/manage/version", token=None, headers=headers)).status == 200


@pytest.mark.parametrize(
    "authorization",
    [
        MANAGEMENT_TOKEN,
        f"Basic {MANAGEMENT_TOKEN}",
        f"Bearer {MANAGEMENT_TOKEN}x",
        f"Bearer {MANAGEMENT_TOKEN[:-1]}",
        f"Bearer {MANAGEMENT_TOKEN.upper()}",
        f"Bearer {MANAGEMENT_TOKEN}, Bearer {MANAGEMENT_TOKEN}",
        "Bearer",
        "Bearer ' OR '1'='1",
        f"Bearer {PROVIDER_KEY}",
        f"Bearer {METRICS_TOKEN}",
    ],
    ids=["no scheme", "basic", "longer", "shorter", "upper case", "twice", "nothing", "sql", "provider key", "metrics token"],
)
async def test_anything_but_the_token_is_refused(tmp_path: Path, authorization: str) -> None:
    async with open_house(settings_for(tmp_path, METRICS_TOKEN=METRICS_TOKEN)) as house, managing(house) as api:
        reply = await api.ask("GET", "/manage/projects", token=None, headers={"Authorization": authorization})
        assert (reply.status, reply.error["code"]) == (401, "invalid_management_token")
        assert MANAGEMENT_TOKEN not in reply.text


async def test_a_token_of_one_kind_is_no_token_of_another(api: Management) -> None:
    token = (await api.token(await api.project()))["token"]
    assert await api.refused("GET", "/manage/projects", token=token) == (401, "invalid_management_token", None)
    assert await api.refused("POST", "/v1/chat/completions", token=MANAGEMENT_TOKEN) == (401, "invalid_token", None)


async def test_the_token_counts_in_the_authorization_header_alone(api: Management) -> None:
    for name in ("x-api-key", "api-key", "Cookie"):
        headers = {name: MANAGEMENT_TOKEN}
        assert (await api.ask("GET", "/manage/projects", token=None, headers=headers)).status == 401
    reply = await api.ask("GET", f"/manage/projects?api_key={MANAGEMENT_TOKEN}", token=None)
    assert (reply.status, reply.error["code"]) == (400, "token_in_query")


async def test_several_tokens_are_good_and_are_told_apart_in_the_audit_log(tmp_path: Path) -> None:
    settings = settings_for(tmp_path, MANAGEMENT_TOKEN=f"{MANAGEMENT_TOKEN}, {SECOND_TOKEN}")
    async with open_house(settings) as house, managing(house) as api:
        await api.done("POST", "/manage/projects", {"name": "first"})
        await api.done("POST", "/manage/projects", {"name": "second"}, token=SECOND_TOKEN)
        actors = [event["actor"] for event in await api.audit(action="project.create")]
    assert len(set(actors)) == 2
    assert all(actor.startswith("operator:") for actor in actors)


async def test_ten_failures_of_an_address_block_it_and_nobody_else(tmp_path: Path) -> None:
    async with open_house(behind_proxy(tmp_path)) as house, managing(house) as api:
        guesser, other = {"X-Forwarded-For": "203.0.113.9"}, {"X-Forwarded-For": "203.0.113.10"}
        for number in range(10):
            reply = await api.ask("GET", "/manage/projects", token=f"guess-{number}", headers=guesser)
            assert reply.status == 401, number
        for token in ("guess-10", None, MANAGEMENT_TOKEN):
            reply = await api.ask("GET", "/manage/projects", token=token, headers=guesser)
            assert (reply.status, reply.error["code"]) == (429, "too_many_failures")
            assert 1 <= int(reply.headers["Retry-After"]) <= 60
        assert (await api.ask("GET", "/manage/projects", headers=other)).status == 200
        assert (await api.ask("GET", "/manage/projects")).status == 200


async def test_an_address_cannot_be_borrowed_by_a_header_of_the_client(api: Management) -> None:
    for number in range(10):
        await api.ask("GET", "/manage/projects", token="guess", headers={"X-Forwarded-For": f"203.0.113.{number}"})
    reply = await api.ask("GET", "/manage/projects", token="guess", headers={"X-Forwarded-For": "203.0.113.99"})
    assert reply.status == 429


async def test_refusals_are_audited_each_wrong_guess_and_one_a_minute_of_what_follows(tmp_path: Path) -> None:
    async with open_house(behind_proxy(tmp_path)) as house, managing(house) as api:
        headers = {"X-Forwarded-For": "203.0.113.9", "User-Agent": "guesser/1", "X-Request-ID": "r-1", "X-Correlation-ID": "c-1"}
        for _ in range(15):
            await api.ask("DELETE", "/manage/tokens/nothing", token="guess", headers=headers)
        blocked = await api.audited(search="too_many_failures")
        wrong = await api.audited(search="invalid_management_token")
    assert len(blocked) == 1
    assert len(wrong) == 10
    for event in (*blocked, *wrong):
        shown = {name: event[name] for name in ("action", "actor", "outcome", "client_ip", "method", "path", "user_agent")}
        assert shown == {
            "action": "management.refuse",
            "actor": "unknown",
            "outcome": "denied",
            "client_ip": "203.0.113.9",
            "method": "DELETE",
            "path": "/manage/tokens/nothing",
            "user_agent": "guesser/1",
        }
        assert (event["request_id"], event["correlation_id"]) == ("r-1", "c-1")


async def test_a_route_that_is_not_there_says_so_in_json(api: Management) -> None:
    for path in ("/manage", "/manage/", "/manage/nothing", "/manage/projects/", "/manage/projects/a/b/c"):
        assert await api.refused("GET", path) == (404, "endpoint_not_found", None)
    reply = await api.ask("PUT", "/manage/projects", {})
    assert (reply.status, reply.error["code"]) == (405, "method_not_allowed")
    assert reply.headers["Allow"] == "GET, POST"
