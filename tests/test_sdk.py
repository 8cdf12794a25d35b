"""The official clients through the proxy, with only base URL and key changed."""

import asyncio
import contextlib
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import anthropic
import openai
import orjson
import pytest
from stage.asking import event_of
from stage.certificates import new_authority
from stage.house import TESTER, House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import STREAM_HEAD, ScriptedProvider, answer, chunk, scripted_provider
from stage.scripts import holds, resets, sends

from llm_proxy.acts import projects, tokens
from llm_proxy.errors import DatabaseUnavailable

# Not a real one: those warn when their end comes near.
CLAUDE = "claude-test"
ASKED: Any = [{"role": "user", "content": "hello there"}]


@contextlib.asynccontextmanager
async def openai_client(house: House, token: str, **more: Any) -> AsyncIterator[openai.AsyncOpenAI]:
    """OpenAI's client as its users make it."""
    async with openai.AsyncOpenAI(base_url=f"{house.url}/v1", api_key=token, **more) as client:
        yield client


@contextlib.asynccontextmanager
async def anthropic_client(house: House, token: str, **more: Any) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """Anthropic's client as its users make it."""
    async with anthropic.AsyncAnthropic(base_url=house.url, api_key=token, **more) as client:
        yield client


async def test_openai_chat(house: House, fake: str) -> None:
    async with openai_client(house, await house.token_for(fake)) as client:
        reply = await client.chat.completions.create(model="gpt-4o", messages=ASKED)
        assert "hello there" in (reply.choices[0].message.content or "")
        assert reply.usage and reply.usage.prompt_tokens == 2


async def test_openai_streamed_chat(house: House, fake: str) -> None:
    async with openai_client(house, await house.token_for(fake)) as client:
        stream = await client.chat.completions.create(
            model="gpt-4o", messages=ASKED, stream=True, stream_options={"include_usage": True}
        )
        chunks = [chunk async for chunk in stream]
        assert "hello there" in "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
        assert chunks[-1].usage and chunks[-1].usage.prompt_tokens == 2
    assert [(event.stream, event.usage.prompt_tokens) for event in house.events] == [(True, 2)]


async def test_openai_embeddings(house: House, fake: str) -> None:
    async with openai_client(house, await house.token_for(fake)) as client:
        reply = await client.embeddings.create(model="text-embedding-3-small", input=["a", "b"])
        assert [len(item.embedding) for item in reply.data] == [1536, 1536]


async def test_openai_models(house: House, fake: str) -> None:
    async with openai_client(house, await house.token_for(fake)) as client:
        names = [model.id async for model in client.models.list()]
        assert "gpt-4o" in names
        assert (await client.models.retrieve("gpt-4o")).id == "gpt-4o"


async def test_openai_responses(house: House, fake: str) -> None:
    async with openai_client(house, await house.token_for(fake)) as client:
        reply = await client.responses.create(model="gpt-4o", input="hello there")
        assert "hello there" in reply.output_text
        async with client.responses.stream(model="gpt-4o", input="hello there") as stream:
            kinds = [event.type async for event in stream]
            final = await stream.get_final_response()
        assert kinds[0] == "response.created" and kinds[-1] == "response.completed"
        assert "hello there" in final.output_text


async def test_openai_sends_files(house: House, provider: ScriptedProvider) -> None:
    file = {"id": "f", "object": "file", "bytes": 3, "created_at": 1, "filename": "a", "purpose": "batch", "status": "processed"}
    provider.script = sends(answer(orjson.dumps(file)))
    async with openai_client(house, await house.token_for(provider.url)) as client:
        made = await client.files.create(file=("a.jsonl", b"x" * 3_000_000), purpose="batch")
        assert made.id == "f"
    assert b"x" * 3_000_000 in provider.exchanges[0].body


async def test_anthropic_messages(house: House, fake: str) -> None:
    async with anthropic_client(house, await house.token_for(fake, provider_type="anthropic")) as client:
        reply = await client.messages.create(model=CLAUDE, max_tokens=100, messages=ASKED)
        assert reply.content[0].type == "text" and "hello there" in reply.content[0].text
        assert reply.usage.input_tokens == 2
        count = await client.messages.count_tokens(model=CLAUDE, messages=ASKED)
        assert count.input_tokens == 2


async def test_anthropic_streamed_messages(house: House, fake: str) -> None:
    async with anthropic_client(house, await house.token_for(fake, provider_type="anthropic")) as client:
        async with client.messages.stream(model=CLAUDE, max_tokens=100, messages=ASKED) as stream:
            text = "".join([piece async for piece in stream.text_stream])
            final = await stream.get_final_message()
        assert "hello there" in text and final.usage.input_tokens == 2
        assert [model.id async for model in client.models.list()]
    assert house.events[0].usage.prompt_tokens == 2


async def test_azure_deployments(house: House, fake: str) -> None:
    token = await house.token_for(fake, provider_type="azure")
    async with openai.AsyncAzureOpenAI(azure_endpoint=house.url, api_key=token, api_version="2024-10-21") as client:
        reply = await client.chat.completions.create(model="gpt-4o", messages=ASKED)
        assert "hello there" in (reply.choices[0].message.content or "")


async def test_openai_dialect_of_anthropic(house: House, fake: str) -> None:
    async with openai_client(house, await house.token_for(fake, provider_type="anthropic")) as client:
        reply = await client.chat.completions.create(model=CLAUDE, messages=ASKED)
        assert reply.choices[0].message.content


@dataclass
class Stage:
    """Where errors are provoked: one house, a provider, another one whose certificate nobody trusts."""

    house: House
    provider: ScriptedProvider
    untrusted: ScriptedProvider
    monkeypatch: pytest.MonkeyPatch

    async def token(self, base: str = "", **fields: object) -> str:
        return await self.house.token_for(base or self.provider.url, provider_type="anthropic", **fields)


async def unknown(stage: Stage) -> str:
    return "sk-lp-nonsense"


async def good(stage: Stage) -> str:
    return await stage.token()


async def expired(stage: Stage) -> str:
    secret = await stage.token(name="expires")
    await stage.house.context.database.execute("UPDATE tokens SET expires_at = 1 WHERE name = 'expires'", {})
    return secret


async def revoked(stage: Stage) -> str:
    project = await stage.house.project(stage.provider.url)
    made, secret = await tokens.create(stage.house.context, TESTER, {"project_id": project})
    await tokens.revoke(stage.house.context, TESTER, made.id)
    return secret.reveal()


async def of_inactive_project(stage: Stage) -> str:
    project = await stage.house.project(stage.provider.url)
    secret = await stage.house.token(project)
    await projects.deactivate(stage.house.context, TESTER, project)
    return secret


async def of_project_without_provider(stage: Stage) -> str:
    return await stage.house.token((await projects.create(stage.house.context, TESTER, {"name": secrets.token_hex(6)})).id)


async def for_other_models(stage: Stage) -> str:
    return await stage.token(allowed_models=["other"])


async def used_up(stage: Stage) -> str:
    secret = await stage.token(max_requests=1)
    await stage.house.context.database.execute("UPDATE tokens SET request_count = 1 WHERE max_requests = 1", {})
    return secret


async def busy_provider(stage: Stage) -> str:
    theirs = answer(
        b'{"error": {"message": "slow down", "code": "theirs"}}', status=b"429 Slow", extra=b"x-should-retry: false\r\n"
    )
    stage.provider.script = sends(theirs)
    return await stage.token()


async def unreachable(stage: Stage) -> str:
    return await stage.token("http://127.0.0.1:1")


async def untrusted(stage: Stage) -> str:
    return await stage.token(stage.untrusted.url)


async def resetting(stage: Stage) -> str:
    stage.provider.script = resets()
    return await stage.token()


async def silent(stage: Stage) -> str:
    stage.provider.script = holds()
    return await stage.token()


async def talking_nonsense(stage: Stage) -> str:
    stage.provider.script = sends(b"nonsense\r\n\r\n")
    return await stage.token()


async def database_away(stage: Stage) -> str:
    async def away(*_: object) -> None:
        raise DatabaseUnavailable

    secret = await stage.token()
    stage.monkeypatch.setattr(stage.house.context.database, "fetch_one", away)
    return secret


async def crowded(stage: Stage) -> str:
    stage.house.context.active = 10_000
    return await stage.token()


async def running_already(stage: Stage) -> str:
    secret = await stage.token(max_parallel=1)
    context = stage.house.context
    assert (await context.limiter.take(context.limits.of(await context.tokens.authenticate(secret)))).granted
    return secret


async def mistaken(stage: Stage) -> str:
    async def mistake(*_: object) -> None:
        raise ZeroDivisionError

    secret = await stage.token()
    stage.monkeypatch.setattr(stage.house.context.quota, "take", mistake)
    return secret


@dataclass(frozen=True)
class Row:
    """A row of the error table.

    Attributes:
        token: sets the stage, gives the token to use.
        error: the name of the class that both clients must raise.
        path, method, headers, body: where the call differs from a plain one.
    """

    token: Callable[[Stage], Awaitable[str]]
    status: int
    error: str
    code: str
    path: str = ""
    method: str = "post"
    headers: dict[str, str] = field(default_factory=dict)
    body: dict[str, object] = field(default_factory=dict)


BAD, AUTH, DENIED, MISSING = "BadRequestError", "AuthenticationError", "PermissionDeniedError", "NotFoundError"
LIMITED, SERVER, OTHER = "RateLimitError", "InternalServerError", "APIStatusError"
UPGRADE = {"Upgrade": "websocket", "Connection": "upgrade"}
FINAL = {
    "unknown-token": Row(unknown, 401, AUTH, "invalid_token"),
    "expired": Row(expired, 401, AUTH, "token_expired"),
    "revoked": Row(revoked, 401, AUTH, "token_inactive"),
    "inactive-project": Row(of_inactive_project, 403, DENIED, "project_inactive"),
    "model": Row(for_other_models, 403, DENIED, "model_not_allowed"),
    "endpoint": Row(good, 404, MISSING, "endpoint_not_found", path="/nothing"),
    "method": Row(good, 405, OTHER, "method_not_allowed", method="put"),
    "parameter": Row(good, 400, BAD, "param_not_allowed", body={"user": "not allowed"}),
    "origin": Row(good, 403, DENIED, "origin_not_allowed", headers={"Origin": "https://elsewhere.example"}),
    "invalid-header": Row(good, 400, BAD, "invalid_header", headers={"X_Under_Score": "1"}),
    "invalid-path": Row(good, 400, BAD, "invalid_path", path="/a%2fb"),
    "encoded": Row(good, 400, BAD, "encoded_body", headers={"Content-Encoding": "br"}),
    "conflict": Row(good, 400, BAD, "conflicting_credentials", headers={"api-key": "another"}),
    "query": Row(good, 400, BAD, "token_in_query", path="?api_key=x"),
    "target": Row(good, 414, OTHER, "target_too_long", path="/" + "x" * 17_000),
    "large": Row(good, 413, OTHER, "request_too_large", body={"x": "y" * 5_000}),
    "head": Row(good, 431, OTHER, "headers_too_large", headers={"X-Large": "x" * 70_000}),
    "expectation": Row(good, 417, OTHER, "expectation_failed", headers={"Expect": "something"}),
    "host": Row(good, 421, OTHER, "unknown_host", headers={"Host": "elsewhere"}),
    "websocket": Row(good, 426, OTHER, "websocket_not_supported", headers=UPGRADE),
    "quota": Row(used_up, 429, LIMITED, "request_limit_exhausted"),
    "no-provider": Row(of_project_without_provider, 404, MISSING, "model_not_found"),
    "providers-own": Row(busy_provider, 429, LIMITED, "theirs"),
}
WORTH_A_RETRY = {
    "overloaded": Row(crowded, 503, SERVER, "overloaded"),
    "parallel": Row(running_already, 429, LIMITED, "rate_limit_exceeded"),
    "database": Row(database_away, 503, SERVER, "database_unavailable"),
    "unreachable": Row(unreachable, 502, SERVER, "upstream_unavailable"),
    "tls": Row(untrusted, 502, SERVER, "upstream_tls_error"),
    "reset": Row(resetting, 502, SERVER, "upstream_unavailable"),
    "too-slow": Row(silent, 504, SERVER, "upstream_timeout"),
    "nonsense": Row(talking_nonsense, 502, SERVER, "upstream_invalid_response"),
    "mistake": Row(mistaken, 500, SERVER, "internal_error"),
}
DIALECTS = {"openai": (openai, openai_client, "/chat/completions"), "anthropic": (anthropic, anthropic_client, "/v1/messages")}


@contextlib.asynccontextmanager
async def open_stage(folder: Path) -> AsyncIterator[Stage]:
    """A stage of its own, with rules that there is something to break of."""
    profiles = shipped(
        timeouts={"first_byte": 0.05},
        allowed_endpoints=("/v1/chat/completions", "/v1/messages"),
        param_whitelist={"user": ("u*",)},
        allowed_origins=("https://app.example.com",),
    )
    settings = settings_for(folder, MAX_REQUEST_BYTES="4KiB", ALLOWED_HOSTS="127.0.0.1")
    with pytest.MonkeyPatch.context() as monkeypatch:
        async with (
            scripted_provider() as provider,
            scripted_provider(new_authority(folder).server()) as untrusted,
            open_house(settings, profiles=profiles) as house,
        ):
            yield Stage(house, provider, untrusted, monkeypatch)


async def provoke(stage: Stage, name: str, row: Row, dialect: str) -> int:
    """Make the error happen to an official client as it comes; returns how many requests of its arrived."""
    sdk, client_of, path = DIALECTS[dialect]
    token = await row.token(stage)
    metrics, events = stage.house.context.metrics, len(stage.house.events)
    refused = metrics.total(metrics.refusals)
    async with client_of(stage.house, token) as client:
        send, body = getattr(client, row.method), {"model": "gpt-4o", **row.body}
        with pytest.raises(getattr(sdk, row.error)) as raised:
            await send(path + row.path, cast_to=object, body=body, options={"headers": row.headers})
    said = raised.value.body
    assert (raised.value.status_code, said.get("error", said)["code"]) == (row.status, row.code), name
    return max(len(stage.house.events) - events, int(metrics.total(metrics.refusals) - refused))


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_final_errors_come_out_right_at_the_first_try(tmp_path: Path, dialect: str) -> None:
    async with open_stage(tmp_path) as stage:
        for name, row in FINAL.items():
            assert await provoke(stage, name, row, dialect) == 1, name


async def test_errors_that_may_pass_are_tried_again(tmp_path: Path) -> None:
    """All at the same time, since the clients wait between their tries."""

    async def play(name: str, row: Row, dialect: str) -> tuple[str, int]:
        folder = tmp_path / f"{name}-{dialect}"
        folder.mkdir()
        async with open_stage(folder) as stage:
            return name, await provoke(stage, name, row, dialect)

    tried = await asyncio.gather(*(play(name, row, dialect) for name, row in WORTH_A_RETRY.items() for dialect in DIALECTS))
    assert [(name, count) for name, count in tried if count != openai.DEFAULT_MAX_RETRIES + 1] == []


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_client_that_comes_too_fast_waits_as_told_and_is_admitted(
    house: House, provider: ScriptedProvider, dialect: str
) -> None:
    _, client_of, path = DIALECTS[dialect]
    token = await house.token_for(provider.url, provider_type="anthropic", rate_limit=1)
    async with client_of(house, token) as client:
        for _ in range(2):
            await client.post(path, cast_to=object, body={"model": "gpt-4o"})
    assert [event.code for event in house.events] == [None, "rate_limit_exceeded", None]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_client_that_waits_no_longer_ends_the_call(house: House, provider: ScriptedProvider, dialect: str) -> None:
    sdk, client_of, path = DIALECTS[dialect]
    provider.script = holds()
    token = await house.token_for(provider.url, provider_type="anthropic")
    async with client_of(house, token, timeout=0.2, max_retries=0) as client:
        with pytest.raises(sdk.APITimeoutError):
            await client.post(path, cast_to=object, body={"model": "gpt-4o"})
        await asyncio.wait_for(provider.exchanges[0].closed.wait(), 2)
    assert (await event_of(house)).outcome == "client_gone"


async def drained(stream: AsyncIterator[Any]) -> list[Any]:
    """All that a stream gives."""
    return [piece async for piece in stream]


@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_stream_that_breaks_is_an_error_to_its_reader(house: House, provider: ScriptedProvider, dialect: str) -> None:
    token = await house.token_for(provider.url, provider_type="anthropic")
    if dialect == "openai":
        event = b'data: {"id": "x", "object": "chat.completion.chunk", "choices": [], "created": 1, "model": "m"}\n\n'
        provider.script = sends(STREAM_HEAD, chunk(event), close=True)
        async with openai_client(house, token) as client:
            stream = await client.chat.completions.create(model="m", messages=ASKED, stream=True)
            with pytest.raises(openai.APIError, match="broke off"):
                await drained(stream)
    else:
        provider.script = sends(STREAM_HEAD, chunk(b'event: ping\ndata: {"type": "ping"}\n\n'), close=True)
        async with anthropic_client(house, token) as other:
            events = await other.messages.create(model=CLAUDE, max_tokens=9, messages=ASKED, stream=True)
            with pytest.raises(anthropic.APIError, match="broke off"):
                await drained(events)
    assert (await event_of(house)).outcome == "upstream_incomplete"
