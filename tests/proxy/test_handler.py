"""The life of a call, through the front door."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import orjson
import pytest
from stage.asking import CHAT, MESSAGES, ask, call, code_of, event_of, until
from stage.house import TESTER, House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import ScriptedProvider, answer, scripted_provider
from stage.raw import Answer, connected, exchange
from stage.scripts import holds, sends

from llm_proxy.acts import projects, providers, tokens
from llm_proxy.errors import RULES, DatabaseUnavailable
from llm_proxy.settings import Settings

ORIGIN = "https://app.example.com"
MARK = "zq7mark"


@dataclass
class Stand:
    """A house with a provider, where refusals are provoked."""

    house: House
    provider: ScriptedProvider
    good: str
    project: str
    tokens: dict[str, str] = field(default_factory=dict)

    async def token(self, **fields: object) -> str:
        return await self.house.token(self.project, **fields)


async def expired(stand: Stand) -> str:
    secret = await stand.token(name="expires")
    await stand.house.context.database.execute("UPDATE tokens SET expires_at = 1 WHERE name = 'expires'", {})
    return secret


async def revoked(stand: Stand) -> str:
    made, secret = await tokens.create(stand.house.context, TESTER, {"project_id": stand.project})
    await tokens.revoke(stand.house.context, TESTER, made.id)
    return secret.reveal()


async def of_inactive_project(stand: Stand) -> str:
    project = await stand.house.project(stand.provider.url)
    secret = await stand.house.token(project)
    await projects.deactivate(stand.house.context, TESTER, project)
    return secret


async def of_project_without_provider(stand: Stand) -> str:
    project = await projects.create(stand.house.context, TESTER, {"name": "bare"})
    return await stand.house.token(project.id)


async def of_disabled_provider(stand: Stand) -> str:
    project = await stand.house.project(stand.provider.url)
    [own] = await providers.of_project(stand.house.context, project)
    await providers.update(stand.house.context, TESTER, project, own.id, {"is_enabled": False})
    return await stand.house.token(project)


async def used_up(stand: Stand) -> str:
    secret = await stand.token(max_requests=1)
    assert (await ask(stand.house.url, call(secret))).status == 200  # type: ignore[union-attr]
    return secret


async def for_other_models(stand: Stand) -> str:
    return await stand.token(allowed_models=["gpt-3*"])


Maker = Callable[[Stand], Awaitable[str]]


@dataclass(frozen=True)
class Refusal:
    """A call and how it is refused."""

    status: int
    code: str
    headers: tuple[bytes, ...] = ()
    token: str | Maker = ""
    path: str = ""
    more: dict[str, object] = field(default_factory=dict)
    answer_headers: dict[bytes, bytes] = field(default_factory=dict)


BEARER = {b"www-authenticate": b"Bearer"}
REFUSALS = {
    "no-token": Refusal(401, "invalid_token", token=" ", answer_headers=BEARER),
    "malformed-token": Refusal(401, "invalid_token", token=f"sk-lp-{MARK}", answer_headers=BEARER),
    "unknown-token": Refusal(401, "invalid_token", token=f"{MARK}-0123456789abcdefghij", answer_headers=BEARER),
    "injection": Refusal(401, "invalid_token", token="' OR '1'='1' -- 0123456789", answer_headers=BEARER),
    "expired": Refusal(401, "token_expired", token=expired),
    "revoked": Refusal(401, "token_inactive", token=revoked),
    "inactive-project": Refusal(403, "project_inactive", token=of_inactive_project),
    "other-model": Refusal(403, "model_not_allowed", token=for_other_models),
    "no-provider": Refusal(404, "model_not_found", token=of_project_without_provider),
    "disabled-provider": Refusal(404, "model_not_found", token=of_disabled_provider),
    "used-up": Refusal(429, "request_limit_exhausted", token=used_up),
    "endpoint": Refusal(404, "endpoint_not_found", path=f"/v1/{MARK}"),
    "longer-endpoint": Refusal(404, "endpoint_not_found", path="/v1/modelsX"),
    "method": Refusal(405, "method_not_allowed", more={"method": "PUT"}, answer_headers={b"allow": b"DELETE, GET, POST"}),
    "trace": Refusal(405, "method_not_allowed", more={"method": "TRACE"}),
    "param": Refusal(400, "param_not_allowed", more={"body": b'{"model": "gpt-4o", "user": "%b"}' % MARK.encode()}),
    "duplicate-key": Refusal(400, "duplicate_key", more={"body": b'{"model": "gpt-4o", "model": "gpt-5"}'}),
    "not-json": Refusal(400, "invalid_json", more={"body": f'{{"{MARK}'.encode()}),
    "encoded": Refusal(400, "encoded_body", (b"Content-Encoding: gzip",)),
    "no-origin": Refusal(400, "origin_required", (b"Drop-Origin: 1",)),
    "other-origin": Refusal(403, "origin_not_allowed", (f"Origin: https://{MARK}.example".encode(),)),
    "path": Refusal(400, "invalid_path", path=f"/v1/../{MARK}"),
    "query": Refusal(400, "token_in_query", path=f"{CHAT}?api_key={MARK}"),
    "header": Refusal(400, "invalid_header", (f"X_{MARK}: 1".encode(),)),
    "two-tokens": Refusal(400, "conflicting_credentials", (f"x-api-key: {MARK}".encode(),)),
    "long-target": Refusal(414, "target_too_long", path="/v1/" + MARK * 3_000),
    "large-body": Refusal(413, "request_too_large", more={"body": b'{"model": "gpt-4o", "x": "%b"}' % (b"y" * 20_000)}),
    "expectation": Refusal(417, "expectation_failed", (f"Expect: {MARK}".encode(),)),
    "host": Refusal(421, "unknown_host", more={"host": f"{MARK}.example"}),
    "websocket": Refusal(426, "websocket_not_supported", (b"Upgrade: websocket", b"Connection: upgrade")),
}


def strict_settings(folder: Path) -> Settings:
    """Settings under which everything in `REFUSALS` is refused."""
    return settings_for(folder, ALLOWED_HOSTS="proxy", MAX_REQUEST_BYTES="16KiB")


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_every_refusal_comes_in_its_dialect_once_and_echoes_nothing(
    tmp_path: Path, provider: ScriptedProvider, path: str
) -> None:
    profiles = shipped(
        allowed_origins=(ORIGIN,), required_headers=("origin",), param_whitelist={"user": ("u*",), "model": ("*",)}
    )
    anthropic = profiles.apis["anthropic"]
    profiles = replace(
        profiles, apis={**profiles.apis, "anthropic": replace(anthropic, allowed_methods=("GET", "POST", "DELETE"))}
    )
    async with open_house(strict_settings(tmp_path), profiles=profiles) as house:
        project = await house.project(provider.url, provider_type="anthropic")
        stand = Stand(house, provider, await house.token(project), project)
        for name, refusal in REFUSALS.items():
            token = refusal.token if isinstance(refusal.token, str) else await refusal.token(stand)
            origin = () if any(h.startswith((b"Origin", b"Drop")) for h in refusal.headers) else (f"Origin: {ORIGIN}".encode(),)
            events, calls = len(house.events), len(provider.exchanges)
            where = refusal.path if refusal.path and path == CHAT else refusal.path.replace("/v1/", f"{MESSAGES}/x/", 1)
            data = call(token or stand.good, *origin, *refusal.headers, path=where or path, **refusal.more)  # type: ignore[arg-type]
            reply = await ask(house.url, data)
            assert reply is not None, name
            check_refusal(reply, refusal, is_anthropic=(where or path).startswith(MESSAGES))
            assert MARK.encode() not in reply.head + reply.body, name
            assert len(provider.exchanges) == calls, name
            event = await event_of(house, events)
            assert len(house.events) == events + 1, name
            assert (event.outcome, event.code, event.status) == ("refused", refusal.code, refusal.status), name
        assert house.context.active == len(house.context.running) == 0


def check_refusal(reply: Answer, refusal: Refusal, *, is_anthropic: bool) -> None:
    """The answer is the one that the error table promises."""
    body = orjson.loads(reply.body)
    rule = RULES[refusal.code]
    assert (reply.status, body["error"]["code"]) == (refusal.status, refusal.code)
    assert body["error"]["source"] == "proxy" and body["error"]["message"]
    if is_anthropic:
        assert body["type"] == "error"
        assert body["request_id"].encode() == reply.header(b"x-request-id")
    else:
        assert body["error"]["type"] == rule.type and set(body["error"]) == {"message", "type", "param", "code", "source"}
    assert reply.header(b"content-type") == b"application/json"
    assert reply.header(b"x-request-id")
    assert reply.header(b"x-should-retry") == b"false"
    assert reply.header(b"retry-after") is None
    for name, value in refusal.answer_headers.items():
        assert reply.header(name) == value


async def test_the_database_away_is_503(house: House, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch) -> None:
    known, unknown = await house.token_for(provider.url), await house.token_for(provider.url)
    assert (await ask(house.url, call(known))).status == 200  # type: ignore[union-attr]

    async def away(*_: object) -> None:
        raise DatabaseUnavailable

    for verb in ("fetch_one", "fetch_all", "execute"):
        monkeypatch.setattr(house.context.database, verb, away)
    reply = await ask(house.url, call(unknown))
    assert reply is not None
    assert (reply.status, code_of(reply), reply.header(b"retry-after")) == (503, "database_unavailable", b"1")
    assert (await ask(house.url, call(known))).status == 200  # type: ignore[union-attr]


async def test_calls_beyond_the_room_are_503_until_there_is_room(tmp_path: Path, provider: ScriptedProvider) -> None:
    async with open_house(settings_for(tmp_path, MAX_CONCURRENT_REQUESTS="2")) as house:
        token = await house.token_for(provider.url)
        provider.script = holds()
        async with connected(house.url) as one, connected(house.url) as two:
            await one.send(call(token))
            await two.send(call(token))
            await until(lambda: len(provider.exchanges) == 2)
            reply = await ask(house.url, call(token))
            assert (reply.status, code_of(reply)) == (503, "overloaded")  # type: ignore[union-attr]
            assert reply.header(b"retry-after") == b"1"  # type: ignore[union-attr]
            one.abort()
            await until(lambda: house.context.active == 1)
            provider.script = sends(answer(b"{}"))
            assert (await ask(house.url, call(token))).status == 200  # type: ignore[union-attr]
        await until(lambda: house.context.active == 0)


async def test_a_connection_serves_call_after_call(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    calls = [
        call(token),
        call(token, path="/v1/nothing"),
        call("wrong"),
        call(token, path="/v1/models", method="GET", body=b""),
        call(token),
    ]
    async with connected(house.url) as connection:
        for data in calls:
            await connection.send(data)
        statuses = [(await connection.answer()).status for _ in calls]  # type: ignore[union-attr]
    assert statuses == [200, 404, 401, 200, 200]


@pytest.mark.parametrize(
    ("version", "headers", "closed"),
    [
        ("1.1", (), False),
        ("1.1", (b"Connection: close",), True),
        ("1.0", (), True),
        ("1.0", (b"Connection: keep-alive",), False),
    ],
)
async def test_connections_are_kept_as_the_client_asks(
    house: House, provider: ScriptedProvider, version: str, headers: tuple[bytes, ...], closed: bool
) -> None:
    token = await house.token_for(provider.url)
    reply = await exchange(house.url, call(token, *headers, version=version))
    assert reply is not None and (reply.status, reply.closed) == (200, closed)
    said = reply.header(b"connection")
    assert said == (b"close" if closed else b"keep-alive" if version == "1.0" else None)


async def test_a_client_that_asks_is_told_to_send_its_body(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    head, _, body = call(token, b"Expect: 100-Continue").partition(b"\r\n\r\n")
    async with asyncio.timeout(5), connected(house.url) as connection:
        for _ in range(2):
            await connection.send(head + b"\r\n\r\n")
            assert (await connection.answer()).status == 100  # type: ignore[union-attr]
            await connection.send(body)
            assert (await connection.answer()).status == 200  # type: ignore[union-attr]
    assert [exchange.body for exchange in provider.exchanges] == [body, body]
    assert provider.exchanges[0].header(b"expect") is None


@pytest.mark.parametrize(
    ("token", "headers", "status"),
    [
        ("wrong", (b"Expect: 100-continue",), 401),
        ("", (b"Expect: 200-ok",), 417),
        ("", (b"Expect: 100-continue", b"Content-Length: 99999999999"), 413),
    ],
)
async def test_a_body_is_not_asked_for_when_it_is_not_wanted(
    house: House, provider: ScriptedProvider, token: str, headers: tuple[bytes, ...], status: int
) -> None:
    good = await house.token_for(provider.url)
    reply = await exchange(house.url, call(token or good, *headers, body=b""))
    assert reply is not None and (reply.status, reply.closed) == (status, True)
    assert reply.header(b"connection") == b"close"
    assert provider.exchanges == []


async def test_an_expectation_of_http_1_0_is_none(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    assert (await ask(house.url, call(token, b"Expect: 100-continue", version="1.0"))).status == 200  # type: ignore[union-attr]


async def test_browsers_are_answered_from_the_union_and_checked_by_their_own(tmp_path: Path, provider: ScriptedProvider) -> None:
    profiles = shipped()
    apis = {**profiles.apis, "groq": replace(profiles.apis["groq"], allowed_origins=(ORIGIN,))}
    async with open_house(settings_for(tmp_path), profiles=replace(profiles, apis=apis)) as house:
        groq = await house.token_for(provider.url, provider_type="groq")
        openai = await house.token_for(provider.url)
        origin = f"Origin: {ORIGIN}".encode()
        preflight = (origin, b"Access-Control-Request-Method: POST", b"Access-Control-Request-Headers: authorization, x-new")
        reply = await ask(house.url, b"\r\n".join([b"OPTIONS /v1/anything HTTP/1.1", b"Host: p", *preflight, b"", b""]))
        assert reply is not None and reply.status == 204 and reply.header(b"content-length") is None
        assert reply.header(b"access-control-allow-origin") == ORIGIN.encode()
        assert reply.header(b"access-control-allow-headers") == b"authorization, x-new"
        assert reply.header(b"x-request-id") and reply.header(b"vary") == b"Origin"
        refused = await ask(house.url, call("wrong", origin))
        assert refused is not None and refused.header(b"access-control-allow-origin") == ORIGIN.encode()
        provider.script = sends(answer(b"{}", extra=b"Access-Control-Allow-Origin: *\r\nVary: Accept\r\n"))
        allowed = await ask(house.url, call(groq, origin))
        assert allowed is not None and allowed.head.lower().count(b"access-control-allow-origin") == 1
        assert allowed.header(b"access-control-allow-origin") == ORIGIN.encode()
        assert b"Vary: Accept\r\n" in allowed.head and b"Vary: Origin\r\n" in allowed.head
        other = await ask(house.url, call(openai, origin))
        assert other is not None and other.header(b"access-control-allow-origin") is None
        stranger = await ask(house.url, call(groq, b"Origin: https://elsewhere.example"))
        assert stranger is not None and code_of(stranger) == "origin_not_allowed"
        assert stranger.header(b"access-control-allow-origin") is None


async def test_options_for_the_whole_server_is_answered_here(house: House, provider: ScriptedProvider) -> None:
    reply = await ask(house.url, b"OPTIONS * HTTP/1.1\r\nHost: p\r\n\r\n")
    assert reply is not None and reply.status == 204
    assert provider.connections == 0


@pytest.mark.parametrize(
    ("trusted", "address", "scheme"), [("127.0.0.0/8", "203.0.113.7", b"https"), ("10.0.0.0/8", "127.0.0.1", b"http")]
)
async def test_forwarded_headers_count_from_trusted_proxies_only(
    tmp_path: Path, provider: ScriptedProvider, trusted: str, address: str, scheme: bytes
) -> None:
    async with open_house(settings_for(tmp_path, TRUSTED_PROXIES=trusted)) as house:
        token = await house.token_for(provider.url)
        provider.script = sends(answer(b"{}", extra=f"Location: {provider.url}/v1/x\r\n".encode()))
        reply = await ask(house.url, call(token, b"X-Forwarded-For: 203.0.113.7", b"X-Forwarded-Proto: https"))
        assert reply is not None and reply.header(b"location") == scheme + b"://proxy/v1/x"
        assert house.events[0].client_ip == address
        assert provider.exchanges[0].header(b"x-forwarded-for") is None


async def test_a_provider_is_chosen_by_weight(house: House, provider: ScriptedProvider) -> None:
    async with scripted_provider() as other, scripted_provider() as spare:
        project = await house.project(provider.url)
        await providers.create(
            house.context, TESTER, project, {"api_key": "sk-other-0123456789", "api_base": other.url, "weight": 3}
        )
        await providers.create(
            house.context, TESTER, project, {"api_key": "sk-spare-0123456789", "api_base": spare.url, "weight": 0}
        )
        token = await house.token(project)
        for _ in range(60):
            assert (await ask(house.url, call(token))).status == 200  # type: ignore[union-attr]
        counts = [len(one.exchanges) for one in (provider, other, spare)]
        assert counts[2] == 0 and sum(counts) == 60 and 0 < counts[0] < counts[1]
        assert {one.header(b"authorization") for one in other.exchanges} == {b"Bearer sk-other-0123456789"}


async def test_a_provider_whose_profile_refuses_drops_out(house: House, provider: ScriptedProvider) -> None:
    async with scripted_provider() as other:
        project = await house.project(provider.url)
        await providers.create(
            house.context, TESTER, project, {"api_key": "sk-ant-0123456789", "api_base": other.url, "provider_type": "anthropic"}
        )
        token = await house.token(project)
        for path, method in (("/v1/messages", "POST"), ("/v1/embeddings", "POST"), ("/v1/messages", "POST")):
            assert (await ask(house.url, call(token, path=path, method=method))).status == 200  # type: ignore[union-attr]
        assert [one.request_line.split()[1] for one in other.exchanges] == [b"/v1/messages"] * 2
        assert [one.request_line.split()[1] for one in provider.exchanges] == [b"/v1/embeddings"]


async def test_refused_credentials_are_audited_others_are_not(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    for data in (call("wrong"), call(token, path="/v1/nothing"), call("wrong again")):
        await ask(house.url, data)

    async def refusals() -> list[str]:
        rows = await house.context.database.fetch_all("SELECT reason FROM audit_events WHERE action = 'call.refuse'", {})
        return [row["reason"] for row in rows]

    async with asyncio.timeout(5):
        while not (found := await refusals()):
            await asyncio.sleep(0.01)
    assert found == ["invalid_token"]


async def test_bodies_choose_neither_host_nor_credential(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    async with scripted_provider() as evil:
        body = orjson.dumps(
            {
                "model": "gpt-4o",
                "api_base": evil.url,
                "base_url": evil.url,
                "api_key": "sk-evil",
                "extra_headers": {"Host": "evil"},
            }
        )
        assert (await ask(house.url, call(token, body=body))).status == 200  # type: ignore[union-attr]
        assert (evil.connections, provider.exchanges[0].body) == (0, body)
        assert provider.exchanges[0].header(b"host") == provider.url.removeprefix("http://").encode()
