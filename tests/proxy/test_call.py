"""What is known of a call when it ends: its event, its ids, what it took."""

import asyncio
import re
import socket
import uuid
from collections.abc import Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import orjson
import pytest
from stage.asking import ASKING, BODY, CHAT, MESSAGES, STREAM, ask, call, event_of
from stage.house import House, open_house, settings_for
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, answer, chunk
from stage.raw import connected
from stage.scripts import holds, in_turn, resets, sends

from llm_proxy.acts import providers
from llm_proxy.errors import ApiError
from llm_proxy.events import Event
from llm_proxy.events.recorders import facts_of
from llm_proxy.proxy.call import shown
from llm_proxy.proxy.tee import Tee
from llm_proxy.secret import Secret

EMBEDDING = {"model": "text-embedding-3-small", "input": "hello there"}
COMPLETION = {"model": "gpt-4o", "prompt": "hello there"}
RESPONSE = {"model": "gpt-4o", "input": "hello there"}
MESSAGE = {"model": "claude-sonnet-4-5", "max_tokens": 10, "messages": [{"role": "user", "content": "hello there"}]}
WITH_USAGE = {"stream": True, "stream_options": {"include_usage": True}}
ENDPOINTS: dict[str, tuple[str, dict[str, Any]]] = {
    "chat": (CHAT, ASKING),
    "chat-streamed": (CHAT, {**ASKING, **WITH_USAGE}),
    "completions": ("/v1/completions", COMPLETION),
    "completions-streamed": ("/v1/completions", {**COMPLETION, **WITH_USAGE}),
    "embeddings": ("/v1/embeddings", EMBEDDING),
    "responses": ("/v1/responses", RESPONSE),
    "responses-streamed": ("/v1/responses", {**RESPONSE, "stream": True}),
    "messages": (MESSAGES, MESSAGE),
    "messages-streamed": (MESSAGES, {**MESSAGE, "stream": True}),
}


@pytest.mark.parametrize("coding", [(), (b"Accept-Encoding: gzip", b"X-Fake-Gzip: 1")], ids=["plain", "gzip"])
async def test_the_usage_of_every_endpoint_is_read(house: House, fake: str, coding: tuple[bytes, ...]) -> None:
    openai, anthropic = await house.token_for(fake), await house.token_for(fake, provider_type="anthropic")
    for number, (name, (path, body)) in enumerate(ENDPOINTS.items()):
        token = anthropic if path == MESSAGES else openai
        reply = await ask(house.url, call(token, *coding, path=path, body=orjson.dumps(body)))
        assert reply is not None and reply.status == 200 and reply.whole, name
        assert (reply.header(b"content-encoding") == b"gzip") is bool(coding), name
        event = await event_of(house, number)
        assert (event.outcome, event.status, event.stream) == ("completed", 200, "streamed" in name), name
        assert (event.usage.source, event.usage.prompt_tokens) == ("provider", 1 if path == CHAT else 2), name
        assert event.usage.total_tokens == event.usage.prompt_tokens + event.usage.completion_tokens > 0, name
        assert (event.usage.completion_tokens > 0) is (name != "embeddings"), name
        assert (event.model, event.model_used) == (body["model"], body["model"]), name
        assert event.endpoint == (path if path in (CHAT, "/v1/completions", "/v1/embeddings") else f"{path}/**"), name
        assert event.reply_bytes == len(reply.body), name
        assert event.upstream_request_id and event.upstream_request_id.startswith("req_fake_"), name


async def test_a_stream_of_no_chat_without_usage_has_none(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(answer(b'data: {"model":"gpt-4o","type":"transcript.text.delta"}\n\n', b"text/event-stream"))
    await ask(house.url, call(token, path="/v1/audio/transcriptions", body=STREAM))
    event = await event_of(house)
    assert (event.usage.source, event.usage.total_tokens, event.model_used) == ("none", 0, "gpt-4o")


async def test_an_event_says_all_that_is_known(house: House, provider: ScriptedProvider) -> None:
    project = await house.project(provider.url, name="our project")
    token = await house.token(project, name="our token")
    headers = (b"User-Agent: tester/1", b"X-Request-ID: my-request.1", b"X-Correlation-ID: my_flow")
    provider.script = sends(answer(b'{"model": "gpt-4o-2024"}', extra=b"x-request-id: req_theirs\r\n"))
    reply = await ask(house.url, call(token, *headers, path=f"{CHAT}?a=1"))
    [own] = await providers.of_project(house.context, project)
    event = await event_of(house)
    assert reply is not None
    assert event == Event(
        **{
            **vars(event),
            "request_id": "my-request.1",
            "correlation_id": "my_flow",
            "upstream_request_id": "req_theirs",
            "client_ip": "127.0.0.1",
            "user_agent": "tester/1",
            "method": "POST",
            "path": CHAT,
            "project_id": project,
            "project_name": "our project",
            "token_name": "our token",
            "model": "gpt-4o",
            "model_used": "gpt-4o-2024",
            "provider": own.id,
            "provider_type": "openai",
            "endpoint": CHAT,
            "status": 200,
            "outcome": "completed",
            "code": None,
            "stream": False,
            "request_bytes": len(BODY),
            "reply_bytes": len(reply.body),
            "attempts": 1,
        }
    )
    assert uuid.UUID(event.id).version == 7
    assert event.connect is not None and event.first_byte is not None
    assert 0 <= event.overhead <= event.duration and event.connect + event.first_byte <= event.duration
    assert provider.exchanges[0].header(b"x-request-id") == b"my-request.1"
    assert provider.exchanges[0].header(b"x-correlation-id") == b"my_flow"
    assert reply.header(b"x-request-id") == b"my-request.1"
    assert reply.header(b"x-upstream-request-id") == b"req_theirs"
    assert reply.header(b"x-correlation-id") == b"my_flow"


async def test_what_has_become_a_secret_is_masked_though_the_same_head_came_before(
    house: House, provider: ScriptedProvider
) -> None:
    token, key = await house.token_for(provider.url), "Zq7LkP0vXw3RtY"
    sent = call(token, *(b"%b: of-%b" % (name, key.encode()) for name in (b"User-Agent", b"X-Request-ID", b"X-Correlation-ID")))
    await ask(house.url, sent)
    secret = Secret(key)
    await ask(house.url, sent)
    for number, text in enumerate((f"of-{key}", "of-****")):
        event = await event_of(house, number)
        assert [event.user_agent, event.request_id, event.correlation_id] == [text] * 3
    assert secret


async def test_an_unusable_request_id_is_replaced(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    for number, sent in enumerate([b"", b"a b", b"x" * 129, b"<script>", b"a/b", b'"']):
        reply = await ask(house.url, call(token, b"X-Request-ID: " + sent, b"X-Correlation-ID: " + sent))
        assert reply is not None
        ours = (reply.header(b"x-request-id") or b"").decode()
        assert uuid.UUID(ours).version == 7
        assert provider.exchanges[number].header(b"x-request-id") == ours.encode()
        assert provider.exchanges[number].header(b"x-correlation-id") is None
        assert reply.header(b"x-correlation-id") is None
        assert (house.events[number].request_id, house.events[number].correlation_id) == (ours, None)


async def test_times_are_told_to_the_client(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(answer(b"{}", extra=b"Server-Timing: theirs;dur=5\r\n"))
    reply = await ask(house.url, call(token))
    assert reply is not None
    start, stop = (int(reply.header(name) or 0) for name in (b"x-upstream-request-start", b"x-upstream-request-stop"))
    assert 0 < stop - start < 10**10
    assert reply.header(b"server-timing") == b"theirs;dur=5"
    pattern = (
        rb"\r\nServer-Timing: auth;dur=[0-9.]+, limit;dur=[0-9.]+, cache;dur=[0-9.]+, connect;dur=[0-9.]+, ttfb;dur=[0-9.]+\r\n"
    )
    assert re.search(pattern, reply.head)
    assert reply.header(b"x-proxy") == b"llm-proxy"


@pytest.mark.parametrize(
    ("text", "kept"),
    [(None, None), ("", None), ("a", "a"), ("é", "é"), ("\udce9\udcff", "??"), ("x" * 500, "x" * 400), ("a\nb", "a\nb")],
)
def test_what_an_event_shows_is_bounded_text(text: str | None, kept: str | None) -> None:
    assert shown(text) == kept


async def test_bytes_that_are_no_text_spoil_no_event(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(answer(b"{}", extra=b"x-request-id: \xe9\xff\r\n"))
    await ask(house.url, call(token, b"User-Agent: \xe9\xff"))
    await ask(house.url, call(token))
    assert [(event.status, event.code) for event in house.events] == [(400, "invalid_header"), (200, None)]
    for event in house.events:
        assert orjson.loads(orjson.dumps(facts_of(event)))["id"] == event.id


@contextmanager
def blocking_client(url: str) -> Iterator[socket.socket]:
    host, _, port = url.removeprefix("http://").partition(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        yield connection


REPLIES = (
    (sends(answer(b'{"last": 1}')), b'{"last": 1}'),
    (sends(STREAM_HEAD, chunk(b"data: 1\n\n") + END), b"0\r\n\r\n"),
    (sends(b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{}", close=True), b"0\r\n\r\n"),
    (sends(b"HTTP/1.1 204 No Content\r\n\r\n"), b"\r\n\r\n"),
    (resets(), b'"source":"proxy"}}'),
)


async def test_whoever_has_read_the_whole_reply_finds_the_event(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    missing: list[int] = []

    async def script(exchange: Exchange) -> None:
        await REPLIES[len(provider.exchanges) % len(REPLIES)][0](exchange)

    def read_all() -> None:
        """In a thread of its own, so that it reads while the loop still writes."""
        with blocking_client(house.url) as connection:
            for number in range(1, 201):
                connection.sendall(call(token))
                end, received = REPLIES[number % len(REPLIES)][1], b""
                while not received.endswith(end):
                    received += connection.recv(65536)
                if len(house.events) != number:
                    missing.append(number)

    provider.script = script
    await asyncio.to_thread(read_all)
    assert not missing
    assert len({event.id for event in house.events}) == 200


@pytest.mark.parametrize("begun", [False, True], ids=["before-the-answer", "in-mid-stream"])
async def test_a_mistake_of_ours_is_one_event_and_never_a_clean_end(
    house: House, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch, begun: bool, caplog: pytest.LogCaptureFixture
) -> None:
    token = await house.token_for(provider.url)
    fed = 0

    def feed(tee: Tee, data: bytes) -> None:
        nonlocal fed
        fed += 1
        if fed > begun:
            raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(Tee, "feed", feed)

    async def script(exchange: Exchange) -> None:
        kind = b"text/event-stream" if begun else b"application/json"
        await exchange.send(STREAM_HEAD.replace(b"text/event-stream", kind), chunk(b"data: 1\n\n"))
        await asyncio.sleep(0.02)
        await exchange.send(chunk(b"data: 2\n\n"))
        await exchange.until_closed()

    provider.script = script
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(call(token, body=STREAM))
        reply = await connection.answer()
        await provider.exchanges[0].closed.wait()
    assert reply is not None and reply.whole is not begun
    assert (reply.status, b"internal_error" in reply.body, b"secret detail" in reply.body) == (200 if begun else 500, True, False)
    assert reply.body.startswith(b"data: 1\n\n") is begun
    assert [(event.outcome, event.code) for event in house.events] == [("internal_error", "internal_error")]
    assert "secret detail" in caplog.text
    assert house.context.active == len(house.context.running) == 0


async def test_a_call_may_be_ended_again_while_it_is_on_its_way_out(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = holds(STREAM_HEAD, chunk(b"data: 1\n\n"))
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(call(token, body=STREAM))
        await connection.reader.readuntil(b"data: 1\n\n")
        for number in range(20):
            house.context.running.end_all(ApiError("shutting_down", f"The word number {number}."))
            await asyncio.sleep(0)
        assert b"The word number 0." in await connection.reader.read()
    assert [(event.outcome, event.code) for event in house.events] == [("aborted_by_shutdown", "shutting_down")]


async def test_a_server_that_stops_cuts_what_does_not_end(tmp_path: Path, provider: ScriptedProvider) -> None:
    provider.script = holds(STREAM_HEAD, chunk(b"data: 1\n\n"))
    async with asyncio.timeout(5), AsyncExitStack() as stack:
        async with open_house(settings_for(tmp_path, SHUTDOWN_TIMEOUT="50ms")) as house:
            token = await house.token_for(provider.url)
            connection = await stack.enter_async_context(connected(house.url))
            await connection.send(call(token, body=STREAM))
            await connection.reader.readuntil(b"data: 1\n\n")
        assert b"shutting_down" in await connection.reader.read()
        await provider.exchanges[0].closed.wait()
    assert [(event.outcome, event.code) for event in house.events] == [("aborted_by_shutdown", "shutting_down")]


async def test_quotas_count_what_reached_a_provider(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url, max_requests=2)
    provider.script = in_turn(sends(answer(b"{}", status=b"500 Oops")), sends(answer(b"{}")))
    refused = await ask(house.url, call(token, path="/v1/nothing"))
    statuses = [(await ask(house.url, call(token))).status for _ in range(3)]  # type: ignore[union-attr]
    assert refused is not None and (refused.status, statuses) == (404, [500, 200, 429])
