"""The error table: how each call that may not be is refused, in both dialects."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import orjson
import pytest
from stage.asking import CHAT, MESSAGES, ask, call, event_of
from stage.house import TESTER, House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import ScriptedProvider
from stage.raw import Answer

from llm_proxy.acts import projects, providers, tokens
from llm_proxy.errors import RULES

ORIGIN = b"Origin: https://app.example.com"
# What no answer may contain.
MARK = "zq7mark"


@dataclass
class Stand:
    """A house with a provider, where refusals are provoked."""

    house: House
    provider: ScriptedProvider
    project: str


async def good(stand: Stand) -> str:
    return await stand.house.token(stand.project)


async def expired(stand: Stand) -> str:
    secret = await stand.house.token(stand.project, name="expires")
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
    secret = await stand.house.token(stand.project, max_requests=1)
    assert (await ask(stand.house.url, call(secret, ORIGIN))).status == 200  # type: ignore[union-attr]
    return secret


async def for_other_models(stand: Stand) -> str:
    return await stand.house.token(stand.project, allowed_models=["gpt-3*"])


def this(secret: str) -> Callable[[Stand], Awaitable[str]]:
    async def made(_: Stand) -> str:
        return secret

    return made


@dataclass(frozen=True)
class Refusal:
    """A call and how it is refused.

    Attributes:
        headers: lines, besides the allowed origin unless `origin` says otherwise.
        path: with {} for an endpoint's own.
        answer: headers that the answer must have.
    """

    status: int
    code: str
    headers: tuple[bytes, ...] = ()
    token: Callable[[Stand], Awaitable[str]] = good
    path: str = "{}"
    origin: tuple[bytes, ...] = (ORIGIN,)
    more: dict[str, Any] = field(default_factory=dict)
    answer: dict[bytes, bytes] = field(default_factory=dict)


BEARER = {b"www-authenticate": b"Bearer"}
REFUSALS = {
    "no-token": Refusal(401, "invalid_token", token=this(""), answer=BEARER),
    "malformed-token": Refusal(401, "invalid_token", token=this(f"sk-lp-{MARK}"), answer=BEARER),
    "unknown-token": Refusal(401, "invalid_token", token=this(f"{MARK}-0123456789abcdefghij"), answer=BEARER),
    "injection": Refusal(401, "invalid_token", token=this("' OR '1'='1' -- 0123456789"), answer=BEARER),
    "expired": Refusal(401, "token_expired", token=expired),
    "revoked": Refusal(401, "token_inactive", token=revoked),
    "inactive-project": Refusal(403, "project_inactive", token=of_inactive_project),
    "other-model": Refusal(403, "model_not_allowed", token=for_other_models),
    "no-provider": Refusal(404, "model_not_found", token=of_project_without_provider),
    "disabled-provider": Refusal(404, "model_not_found", token=of_disabled_provider),
    "used-up": Refusal(429, "request_limit_exhausted", token=used_up),
    "endpoint": Refusal(404, "endpoint_not_found", path="{}/" + MARK),
    "method": Refusal(405, "method_not_allowed", more={"method": "PUT"}, answer={b"allow": b"DELETE, GET, POST"}),
    "trace": Refusal(405, "method_not_allowed", more={"method": "TRACE", "body": b""}),
    "param": Refusal(400, "param_not_allowed", more={"body": b'{"model": "gpt-4o", "user": "%b"}' % MARK.encode()}),
    "duplicate-key": Refusal(400, "duplicate_key", more={"body": b'{"model": "gpt-4o", "model": "gpt-5"}'}),
    "not-json": Refusal(400, "invalid_json", more={"body": f'{{"{MARK}'.encode()}),
    "encoded": Refusal(400, "encoded_body", (b"Content-Encoding: gzip",)),
    "no-origin": Refusal(400, "origin_required", origin=()),
    "other-origin": Refusal(403, "origin_not_allowed", origin=(f"Origin: https://{MARK}.example".encode(),)),
    "path": Refusal(400, "invalid_path", path="{}/../" + MARK),
    "query": Refusal(400, "token_in_query", path="{}?api_key=" + MARK),
    "header": Refusal(400, "invalid_header", (f"X_{MARK}: 1".encode(),)),
    "two-tokens": Refusal(400, "conflicting_credentials", (f"x-api-key: {MARK}".encode(),)),
    "large-body": Refusal(413, "request_too_large", more={"body": b'{"model": "gpt-4o", "x": "%b"}' % (b"y" * 20_000)}),
    "expectation": Refusal(417, "expectation_failed", (f"Expect: {MARK}".encode(),)),
    "host": Refusal(421, "unknown_host", more={"host": f"{MARK}.example"}),
    "websocket": Refusal(426, "websocket_not_supported", (b"Upgrade: websocket", b"Connection: upgrade"), more={"body": b""}),
}


@pytest.mark.parametrize("endpoint", [CHAT, MESSAGES])
async def test_every_refusal_comes_in_its_dialect_once_and_echoes_nothing(
    tmp_path: Path, provider: ScriptedProvider, endpoint: str
) -> None:
    profiles = shipped(
        allowed_endpoints=(CHAT, MESSAGES),
        allowed_origins=(ORIGIN.decode().removeprefix("Origin: "),),
        required_headers=("origin",),
        param_whitelist={"user": ("u*",), "model": ("*",)},
    )
    settings = settings_for(tmp_path, ALLOWED_HOSTS="proxy", MAX_REQUEST_BYTES="16KiB")
    async with open_house(settings, profiles=profiles) as house:
        stand = Stand(house, provider, await house.project(provider.url, provider_type="anthropic"))
        for name, refusal in REFUSALS.items():
            token = await refusal.token(stand)
            events, calls = len(house.events), len(provider.exchanges)
            data = call(token, *refusal.origin, *refusal.headers, path=refusal.path.format(endpoint), **refusal.more)
            reply = await ask(house.url, data)
            assert reply is not None and reply.whole, name
            check(name, reply, refusal, is_anthropic=endpoint == MESSAGES)
            assert len(provider.exchanges) == calls, name
            event = await event_of(house, events)
            assert len(house.events) == events + 1, name
            assert (event.outcome, event.code, event.status) == ("refused", refusal.code, refusal.status), name
            assert event.reply_bytes == len(reply.body), name
        assert house.context.active == len(house.context.running) == 0


def check(name: str, reply: Answer, refusal: Refusal, *, is_anthropic: bool) -> None:
    """The answer is the one that the error table promises."""
    body = orjson.loads(reply.body)
    error = body["error"]
    assert (reply.status, error["code"], error["source"]) == (refusal.status, refusal.code, "proxy"), name
    assert error["message"], name
    if is_anthropic:
        assert body["type"] == "error" and set(error) == {"type", "message", "code", "source"}, name
        assert body["request_id"].encode() == reply.header(b"x-request-id"), name
    else:
        assert error["type"] == RULES[refusal.code].type, name
        assert set(error) == {"message", "type", "param", "code", "source"}, name
    assert MARK.encode() not in reply.head + reply.body, name
    assert reply.header(b"content-type") == b"application/json", name
    assert reply.header(b"x-request-id") and reply.header(b"x-should-retry") == b"false", name
    assert reply.header(b"retry-after") is None, name
    assert all(reply.header(header) == value for header, value in refusal.answer.items()), name
