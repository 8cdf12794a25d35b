"""The call at its provider: what is asked there, and what becomes of answers that break off."""

import asyncio
import gc
import gzip
import weakref
from pathlib import Path

import orjson
import pytest
from stage.asking import CHAT, MESSAGES, STREAM, ask, call, code_of, event_of, until
from stage.house import PROVIDER_KEY, TESTER, House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import END, STREAM_HEAD, Exchange, Script, ScriptedProvider, answer, chunk
from stage.raw import Answer, connected
from stage.scripts import holds, resets, sends

from llm_proxy.acts import providers

KEY = PROVIDER_KEY.encode()
EVENT = b'data: {"n": 1}\n\n'


BEARER, X_API_KEY, API_KEY = (b"authorization", b"Bearer " + KEY), (b"x-api-key", KEY), (b"api-key", KEY)
DEPLOYMENT = "/openai/deployments/d/chat/completions"
ROUTES = [
    ("openai", "", "/v1/models", "/v1/models", BEARER),
    ("openai", "/v1", "/v1/models", "/v1/models", BEARER),
    ("groq", "/openai/v1", "/v1/models", "/openai/v1/models", BEARER),
    ("openrouter", "/api/v1", "/v1/models?a=b", "/api/v1/models?a=b", BEARER),
    ("mistral", "", "/v1/models", "/v1/models", BEARER),
    ("custom", "/x", "/v1/models", "/x/v1/models", BEARER),
    ("anthropic", "", "/v1/models", "/v1/models", X_API_KEY),
    ("anthropic", "", "/v1/chat/completions", "/v1/chat/completions", BEARER),
    ("azure", "", DEPLOYMENT, f"{DEPLOYMENT}?api-version=2024-10-21", API_KEY),
    ("azure", "", f"{DEPLOYMENT}?api-version=2099-01-01&x", f"{DEPLOYMENT}?api-version=2099-01-01&x", API_KEY),
    ("azure", "/openai/v1", "/v1/models", "/openai/v1/models", API_KEY),
]


async def test_each_kind_of_provider_is_asked_in_its_way(house: House, provider: ScriptedProvider) -> None:
    for kind, base, path, asked, credential in ROUTES:
        token = await house.token_for(provider.url + base, provider_type=kind)
        method = "POST" if "completions" in path else "GET"
        assert (await ask(house.url, call(token, path=path, method=method))).status == 200  # type: ignore[union-attr]
        exchange = provider.exchanges[-1]
        assert exchange.request_line == f"{method} {asked} HTTP/1.1".encode()
        credentials = [pair for pair in exchange.headers if pair[0] in (b"authorization", b"x-api-key", b"api-key")]
        assert credentials == [credential] == exchange.headers[-1:]
        assert (exchange.header(b"anthropic-version") == b"2023-06-01") is (kind == "anthropic")
        assert token.encode() not in exchange.head + exchange.body
    assert len(provider.exchanges) == len(ROUTES)


async def test_a_providers_own_api_version_goes_before_the_profiles(house: House, provider: ScriptedProvider) -> None:
    project = await house.project(provider.url, provider_type="azure")
    [own] = await providers.of_project(house.context, project)
    await providers.update(house.context, TESTER, project, own.id, {"provider_params": {"api_version": "2025-01-01-preview"}})
    token = await house.token(project)
    await ask(house.url, call(token, path="/openai/deployments/d/embeddings"))
    assert provider.exchanges[0].request_line == b"POST /openai/deployments/d/embeddings?api-version=2025-01-01-preview HTTP/1.1"


@pytest.mark.parametrize("header", [b"Location", b"Operation-Location"])
@pytest.mark.parametrize("base", ["", "/openai/v1"])
async def test_urls_of_the_provider_lead_back_through_us(
    house: House, provider: ScriptedProvider, header: bytes, base: str
) -> None:
    token = await house.token_for(provider.url + base)
    theirs = f"{provider.url}{base or '/v1'}/files/f?x=1".encode()
    provider.script = sends(answer(b"{}", status=b"201 Created", extra=b"%b: %b\r\n" % (header, theirs)))
    reply = await ask(house.url, call(token, path="/v1/files", host="proxy.example:8080"))
    assert reply is not None and reply.header(header) == b"http://proxy.example:8080/v1/files/f?x=1"
    assert provider.url.encode() not in reply.head
    nameless = call(token, path="/v1/files", version="1.0").replace(b"Host: proxy\r\n", b"")
    assert (await ask(house.url, nameless)).header(header) == b"/v1/files/f?x=1"  # type: ignore[union-attr]


FIRST = b'event: message_start\ndata: {"type":"message_start","message":{"model":"claude-x","usage":{"input_tokens":7}}}\n\n'
JSON_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
BREAKS: dict[str, tuple[Script, str]] = {
    "fin": (sends(STREAM_HEAD, chunk(FIRST), close=True), "upstream_invalid_response"),
    "fin-in-an-event": (sends(STREAM_HEAD, chunk(FIRST + b"data: {"), close=True), "upstream_invalid_response"),
    "fin-in-a-chunk": (sends(STREAM_HEAD, chunk(FIRST), b"50\r\ndata: {", close=True), "upstream_invalid_response"),
    "reset": (resets(STREAM_HEAD, chunk(FIRST)), "upstream_invalid_response"),
    "bad-chunk": (sends(STREAM_HEAD, chunk(FIRST), b"zz\r\n"), "upstream_invalid_response"),
    "chunk-too-long": (sends(STREAM_HEAD, chunk(FIRST), b"2\r\nabcdef\r\n"), "upstream_invalid_response"),
    "silence": (holds(STREAM_HEAD, chunk(FIRST)), "upstream_timeout"),
    "silence-in-an-event": (holds(STREAM_HEAD, chunk(FIRST + b"data: {")), "upstream_timeout"),
}


@pytest.mark.parametrize("path", [CHAT, MESSAGES])
async def test_a_broken_stream_ends_with_an_error_and_never_cleanly(
    tmp_path: Path, provider: ScriptedProvider, path: str
) -> None:
    async with open_house(settings_for(tmp_path), profiles=shipped(timeouts={"idle": 0.3})) as house:
        token = await house.token_for(provider.url, provider_type="anthropic", max_requests=len(BREAKS))
        for number, (name, (script, code)) in enumerate(BREAKS.items()):
            provider.script = script
            reply = await ask(house.url, call(token, path=path, body=STREAM))
            assert reply is not None and reply.status == 200 and not reply.whole, name
            assert reply.body.startswith(FIRST) and b"[DONE]" not in reply.body, name
            *_, begun, last = reply.body.removesuffix(b"\n\n").split(b"\n\n")
            assert begun in (FIRST.removesuffix(b"\n\n"), b"data: {", b"ab"), name
            lead = b"event: error\ndata: " if path == MESSAGES else b"data: "
            error = orjson.loads(last.removeprefix(lead))
            assert (error["error"]["code"], error["error"]["source"]) == (code, "proxy"), name
            assert (error.get("type"), last[:5]) == (("error", b"event") if path == MESSAGES else (None, b"data:")), name
            event = await event_of(house, number)
            assert (event.outcome, event.code, event.status, event.stream) == ("upstream_incomplete", code, 200, True), name
            assert (event.usage.prompt_tokens, event.model_used) == (7, "claude-x"), name
            assert event.duration < 1, name
        # Each of them reached the provider, so each counts.
        assert code_of(await ask(house.url, call(token))) == "request_limit_exhausted"


OTHER_BREAKS: dict[str, Script] = {
    "short-length": sends(JSON_HEAD + b"Content-Length: 50\r\n\r\n", b'{"half": ', close=True),
    "no-last-chunk": sends(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk(b'{"half": '), close=True),
    "bad-chunk": sends(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk(b'{"half": '), b"zz\r\n"),
    "reset": resets(JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk(b'{"half": ')),
    "reset-of-a-body-until-close": resets(JSON_HEAD + b"\r\n", b'{"half": '),
    "silence": holds(JSON_HEAD + b"Content-Length: 50\r\n\r\n", b'{"half": '),
    "coded-stream": sends(
        STREAM_HEAD.replace(b"Tr", b"Content-Encoding: gzip\r\nTr"), chunk(gzip.compress(EVENT)[:20]), close=True
    ),
    "stream-with-length": sends(
        b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 99\r\n\r\n", EVENT, close=True
    ),
}


@pytest.mark.parametrize("version", ["1.1", "1.0"])
async def test_any_other_broken_reply_is_cut(tmp_path: Path, provider: ScriptedProvider, version: str) -> None:
    """To a client of HTTP/1.0 that is every reply: there a reset is the only thing that cannot be taken for an end."""
    scripts = OTHER_BREAKS | ({name: script for name, (script, _) in BREAKS.items()} if version == "1.0" else {})
    async with open_house(settings_for(tmp_path), profiles=shipped(timeouts={"idle": 0.3})) as house:
        token = await house.token_for(provider.url)
        for number, (name, script) in enumerate(scripts.items()):
            provider.script = script
            reply = await ask(house.url, call(token, body=STREAM, version=version))
            assert reply is not None and reply.status == 200 and not reply.whole, name
            assert b"error" not in reply.body, name
            assert (await event_of(house, number)).outcome == "upstream_incomplete", name


@pytest.mark.parametrize("framing", [b"Transfer-Encoding: chunked", b"Content-Length: 50"])
async def test_an_answer_that_breaks_before_its_first_byte_is_502(
    house: House, provider: ScriptedProvider, framing: bytes
) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(JSON_HEAD + framing + b"\r\n\r\n", close=True)
    for version in ("1.1", "1.0"):
        reply = await ask(house.url, call(token, version=version))
        assert (reply.status, code_of(reply)) == (502, "upstream_invalid_response")  # type: ignore[union-attr]
        assert reply.header(b"transfer-encoding") is None  # type: ignore[union-attr]
    assert [event.outcome for event in house.events] == ["upstream_failed"] * 2


async def slowly(exchange: Exchange) -> None:
    """A stream that never ends and never pauses long."""
    await exchange.send(STREAM_HEAD)
    while not exchange.writer.transport.is_closing():
        await exchange.send(chunk(EVENT))
        await asyncio.sleep(0.02)


async def test_the_total_bounds_a_stream_that_never_pauses(tmp_path: Path, provider: ScriptedProvider) -> None:
    async with open_house(settings_for(tmp_path), profiles=shipped(timeouts={"total": 0.3})) as house:
        token = await house.token_for(provider.url)
        provider.script = slowly
        reply = await ask(house.url, call(token, body=STREAM))
        assert reply is not None and not reply.whole
        assert orjson.loads(reply.body.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["code"] == "upstream_timeout"
        event = await event_of(house)
        assert event.outcome == "upstream_incomplete" and 0.25 < event.duration < 2


async def test_the_total_bounds_a_call_that_waits(tmp_path: Path, provider: ScriptedProvider) -> None:
    async with open_house(settings_for(tmp_path), profiles=shipped(timeouts={"total": 0.1})) as house:
        token = await house.token_for(provider.url)
        provider.script = holds()
        reply = await ask(house.url, call(token))
        assert (reply.status, code_of(reply)) == (504, "upstream_timeout")  # type: ignore[union-attr]


def in_band_code(reply: Answer | None) -> str:
    """The code of the error that ends a stream."""
    assert reply is not None and not reply.whole
    return str(orjson.loads(reply.body.split(b"\n\n")[-2].removeprefix(b"data: "))["error"]["code"])


@pytest.mark.parametrize(
    ("settings", "script", "body", "code"),
    [
        pytest.param({"REQUEST_TIMEOUT_SECS": "150ms"}, holds(), b"{}", "upstream_timeout", id="request-timeout-first-byte"),
        pytest.param(
            {"REQUEST_TIMEOUT_SECS": "150ms"},
            holds(STREAM_HEAD, chunk(EVENT)),
            STREAM,
            "upstream_timeout",
            id="request-timeout-idle",
        ),
        pytest.param({"TTFT_TIMEOUT_SECS": "150ms"}, holds(), STREAM, "upstream_timeout", id="ttft-before-the-head"),
        pytest.param({"TTFT_TIMEOUT_SECS": "150ms"}, holds(STREAM_HEAD), STREAM, "upstream_timeout", id="ttft-after-the-head"),
        pytest.param(
            {"TTFT_TIMEOUT_SECS": "150ms"}, holds(STREAM_HEAD), b"{}", "upstream_timeout", id="ttft-of-an-unasked-stream"
        ),
    ],
)
async def test_settings_bound_the_silence(
    tmp_path: Path, provider: ScriptedProvider, settings: dict[str, str], script: Script, body: bytes, code: str
) -> None:
    async with open_house(settings_for(tmp_path, **settings)) as house:
        token = await house.token_for(provider.url)
        provider.script = script
        reply = await ask(house.url, call(token, body=body))
        assert reply is not None
        assert (code_of(reply) if reply.status == 504 else in_band_code(reply)) == code
        assert 0.1 < (await event_of(house)).duration < 2


@pytest.mark.parametrize(
    ("settings", "before", "between", "body"),
    [
        pytest.param({"TTFT_TIMEOUT_SECS": "100ms"}, 0.25, 0.0, b"{}", id="ttft-does-not-bound-other-calls"),
        pytest.param({"TTFT_TIMEOUT_SECS": "100ms"}, 0.0, 0.25, STREAM, id="ttft-ends-with-the-first-byte"),
        pytest.param({"REQUEST_TIMEOUT_SECS": "400ms"}, 0.25, 0.25, STREAM, id="request-timeout-is-no-total"),
    ],
)
async def test_settings_do_not_bound_more_than_they_say(
    tmp_path: Path, provider: ScriptedProvider, settings: dict[str, str], before: float, between: float, body: bytes
) -> None:
    async def script(exchange: Exchange) -> None:
        await asyncio.sleep(before)
        await exchange.send(STREAM_HEAD if body == STREAM else JSON_HEAD + b"Transfer-Encoding: chunked\r\n\r\n", chunk(EVENT))
        await asyncio.sleep(between)
        await exchange.send(chunk(EVENT), END)

    profiles = shipped(timeouts={"first_byte": 5, "idle": 5, "total": 10})
    async with open_house(settings_for(tmp_path, **settings), profiles=profiles) as house:
        token = await house.token_for(provider.url)
        provider.script = script
        reply = await ask(house.url, call(token, body=body))
        assert reply is not None and reply.whole and reply.body == EVENT * 2


@pytest.mark.parametrize(
    ("data", "end"),
    [
        ((STREAM_HEAD, chunk(EVENT), END), "whole"),
        ((STREAM_HEAD, chunk(EVENT)), "reset"),
        ((), "reset"),
        ((STREAM_HEAD, chunk(EVENT)), "left by its client"),
    ],
    ids=["whole", "broken off", "not answered", "left by its client"],
)
async def test_a_call_that_ended_leaves_nothing_to_the_garbage_collector(
    house: House, provider: ScriptedProvider, data: tuple[bytes, ...], end: str
) -> None:
    token = await house.token_for(provider.url)
    calls: list[weakref.ref[object]] = []

    async def script(exchange: Exchange) -> None:
        calls.extend(map(weakref.ref, house.context.running.longest()))
        if end == "reset":
            await resets(*data)(exchange)
        else:
            await exchange.send(*data)

    provider.script = script
    gc.disable()
    try:
        async with connected(house.url) as client:
            await client.send(call(token, body=STREAM))
            await (until(lambda: calls) if end == "left by its client" else client.answer())
        await until(lambda: calls and not any(ended() for ended in calls))
    finally:
        gc.enable()
