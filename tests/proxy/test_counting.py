"""A chat whose provider states no usage is counted on its way, and nobody waits for that."""

import asyncio
import gzip
import json
import logging
import threading
import time
from collections.abc import Iterator
from typing import Any

import orjson
import pytest
from stage.asking import CHAT, STREAM, ask, call, event_of, until
from stage.house import House
from stage.provider import END, STREAM_HEAD, Exchange, Script, ScriptedProvider, answer, chunk
from stage.raw import connected

from llm_proxy.proxy.counting import PATIENCE
from llm_proxy.proxy.tee import KEEP
from llm_proxy.usage import NO_USAGE, Usage
from llm_proxy.usage.counter import Counting
from llm_proxy.usage.encodings import Encoder, load

ASKING_USAGE = orjson.dumps({**orjson.loads(STREAM), "stream_options": {"include_usage": True}})
# One message of a user's, `hello`.
PROMPT = 3 + 1 + 1 + 3
STATED = {"prompt_tokens": 50, "completion_tokens": 60, "total_tokens": 110}


@pytest.fixture(autouse=True)
def loaded(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The table in memory, for which the first call of a process would not wait, and time enough on a busy machine."""
    load("o200k_base")
    if "stuck" not in request.fixturenames:
        monkeypatch.setattr("llm_proxy.proxy.counting.PATIENCE", 10.0)


def counted(completion: int, prompt: int = PROMPT) -> Usage:
    return Usage(prompt, completion, prompt + completion, source="counted")


def piece(index: int = 0, **said: Any) -> dict[str, Any]:
    return {"object": "chat.completion.chunk", "model": "gpt-4o", "choices": [{"index": index, "delta": said}]}


def stream_of(*payloads: dict[str, Any], done: bytes = b"data: [DONE]\n\n") -> bytes:
    return b"".join(b"data: " + json.dumps(each, ensure_ascii=False).encode() + b"\n\n" for each in payloads) + done


HELLO = stream_of(piece(role="assistant", content=""), piece(content="hello"), piece(content=" wor"), piece(content="ld"))


def streams(body: bytes, head: bytes = STREAM_HEAD, size: int = 2**16) -> Script:
    """A script that streams `body` in chunks of `size`."""

    async def script(exchange: Exchange) -> None:
        await exchange.send(head, *(chunk(body[at : at + size]) for at in range(0, len(body), size)), END)

    return script


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        pytest.param(HELLO, counted(2), id="words"),
        pytest.param(HELLO.replace(b"data: [DONE]\n\n", b""), counted(2), id="without-an-end"),
        pytest.param(
            stream_of(piece(content="hello"), piece(1, content="hello"), piece(1, content=" world")), counted(3), id="two-choices"
        ),
        pytest.param(
            stream_of(
                piece(tool_calls=[{"index": 0, "function": {"name": "weather", "arguments": ""}}]),
                piece(tool_calls=[{"index": 0, "function": {"arguments": '{"ci'}}]),
                piece(tool_calls=[{"index": 0, "function": {"arguments": 'ty": 1}'}}]),
            ),
            counted(1 + 6),
            id="tool-call",
        ),
        pytest.param(stream_of(piece(content="数据"), piece(content="数据"), piece(content="😀")), counted(3), id="utf-8"),
        pytest.param(stream_of(*(piece(content=" hello") for _ in range(2000))), counted(2000), id="long"),
        pytest.param(
            stream_of(piece(content="hello"), {**piece(), "choices": [], "usage": STATED}),
            Usage(50, 60, 110, source="provider"),
            id="stated",
        ),
        pytest.param(stream_of({"error": {"message": "overloaded"}}), NO_USAGE, id="error"),
        pytest.param(b"data: nonsense\n\n", NO_USAGE, id="nonsense"),
    ],
)
async def test_a_stream_without_usage_is_counted(house: House, provider: ScriptedProvider, body: bytes, usage: Usage) -> None:
    ways = [(asking, size) for asking in (STREAM, ASKING_USAGE) for size in (2**16, 600, 7) if len(body) < 300 * size]
    for number, (asking, size) in enumerate(ways):
        provider.script = streams(body, size=size)
        # A new provider each time, of which nothing is known yet.
        reply = await ask(house.url, call(await house.token_for(provider.url), body=asking))
        assert reply is not None and reply.whole and reply.body == body
        event = await event_of(house, number)
        assert (event.outcome, event.usage) == ("completed", usage), ways[number]


async def test_a_coded_stream_is_counted(house: House, provider: ScriptedProvider) -> None:
    provider.script = streams(gzip.compress(HELLO), STREAM_HEAD.replace(b"Transfer", b"Content-Encoding: gzip\r\nTransfer"))
    await ask(house.url, call(await house.token_for(provider.url), body=STREAM))
    assert (await event_of(house)).usage == counted(2)


COMPLETION = {"model": "gpt-4o", "prompt": "hello there"}


@pytest.mark.parametrize(
    ("path", "asking", "reply", "usage"),
    [
        pytest.param(CHAT, {}, {"choices": [{"index": 0, "message": {"content": "hello world"}}]}, counted(2), id="chat"),
        pytest.param(
            "/v1/completions", COMPLETION, {"choices": [{"index": 0, "text": "hello world"}]}, counted(2, 2), id="completion"
        ),
        pytest.param(CHAT, {}, {"choices": [], "usage": STATED}, Usage(50, 60, 110, source="provider"), id="stated"),
        pytest.param(CHAT, {}, {"ok": True}, NO_USAGE, id="no-chat"),
        pytest.param(
            "/v1/embeddings", {"model": "gpt-4o", "input": "hello"}, {"choices": [{}]}, NO_USAGE, id="no-chat-asked-for"
        ),
    ],
)
async def test_a_whole_answer_without_usage_is_counted(
    house: House, provider: ScriptedProvider, path: str, asking: dict[str, Any], reply: dict[str, Any], usage: Usage
) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(answer(orjson.dumps(reply)))

    provider.script = script
    more = {"body": orjson.dumps(asking)} if asking else {}
    said = await ask(house.url, call(await house.token_for(provider.url), path=path, **more))
    assert said is not None and said.whole
    assert (await event_of(house)).usage == usage


async def test_an_error_of_the_providers_is_not_counted(house: House, provider: ScriptedProvider) -> None:
    provider.script = streams(HELLO, STREAM_HEAD.replace(b"200 OK", b"400 Bad"))
    await ask(house.url, call(await house.token_for(provider.url), body=STREAM))
    assert (await event_of(house)).usage == NO_USAGE


@pytest.mark.parametrize("cut", ["client", "provider"])
async def test_a_stream_that_breaks_off_has_used_what_had_come(house: House, provider: ScriptedProvider, cut: str) -> None:
    part = stream_of(piece(content="hello"), piece(content=" world"), done=b"")

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(part))
        await seen.wait()
        exchange.reset() if cut == "provider" else await exchange.until_closed()

    seen, counting, provider.script = asyncio.Event(), threading.Event(), script
    token = await house.token_for(provider.url)
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(call(token, body=STREAM))
        await connection.reader.readuntil(b" world")
        # The thread takes one after the other, so the prompt is counted when it comes to this.
        house.context.counting.submit(counting.set)
        await asyncio.to_thread(counting.wait, 5)
        seen.set()
        if cut == "provider":
            await connection.reader.read()
    event = await event_of(house)
    assert (event.outcome, event.usage) == ("client_gone" if cut == "client" else "upstream_incomplete", counted(2))


@pytest.fixture
def stuck(house: House) -> Iterator[None]:
    """A tokenizer that does not come back."""
    release = threading.Event()

    def hang(name: str) -> Encoder:
        release.wait(10)
        return len

    house.context.counting = Counting(hang)
    yield
    release.set()
    house.context.counting.close()


@pytest.mark.usefixtures("stuck")
async def test_only_the_end_of_a_stream_waits_for_its_count(house: House, provider: ScriptedProvider) -> None:
    provider.script = streams(HELLO)
    token = await house.token_for(provider.url)
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(call(token, body=STREAM))
        await connection.reader.readuntil(b"[DONE]\n\n\r\n")
        began = time.monotonic()
        assert await connection.reader.readexactly(len(END)) == END
        waited = time.monotonic() - began
    # The lower bound shows that it is the end which is held back, the upper one leaves room for a busy machine.
    assert PATIENCE / 2 < waited < PATIENCE + 0.5
    event = await event_of(house)
    assert (event.outcome, event.usage) == ("completed", NO_USAGE)


async def test_a_count_that_fails_is_none_and_is_said(
    house: House, provider: ScriptedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(name: str) -> Encoder:
        raise OSError("the table is gone")

    house.context.counting = Counting(fail)
    provider.script = streams(HELLO)
    reply = await ask(house.url, call(await house.token_for(provider.url), body=STREAM))
    assert reply is not None and reply.whole and reply.body == HELLO
    assert (await event_of(house)).usage == NO_USAGE
    assert [record.name for record in caplog.records if record.levelno >= logging.ERROR] == ["llm_proxy.usage.counter"]
    house.context.counting.close()


async def test_nothing_is_loaded_where_the_provider_states_the_usage(house: House, provider: ScriptedProvider) -> None:
    loads: list[str] = []

    def watched(name: str) -> Encoder:
        loads.append(name)
        return load(name)

    house.context.counting = Counting(watched)
    token = await house.token_for(provider.url)
    stated = stream_of(piece(content="hello"), {**piece(), "choices": [], "usage": STATED})
    provider.script = streams(stated)
    # A stream whose usage was asked for, then two of a provider that states it unasked: of these the first is counted in vain.
    for number, (asking, expected) in enumerate([(ASKING_USAGE, 0), (STREAM, 1), (STREAM, 1)]):
        await ask(house.url, call(token, body=asking))
        assert (await event_of(house, number)).usage.source == "provider"
        await until(lambda expected=expected: len(loads) == expected)
    house.context.counting.close()


async def test_a_provider_that_ignores_the_wish_for_usage_is_counted_from_the_start_next_time(
    house: House, provider: ScriptedProvider
) -> None:
    long = stream_of(*(piece(content=" hello") for _ in range(KEEP // 100)))
    token = await house.token_for(provider.url)
    provider.script = streams(long)
    for number, usage in enumerate([NO_USAGE, counted(KEEP // 100)]):
        await ask(house.url, call(token, body=ASKING_USAGE))
        assert (await event_of(house, number)).usage == usage


async def test_log_and_metrics_show_who_counted(
    house: House, provider: ScriptedProvider, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="llm_proxy.calls")
    provider.script = streams(HELLO)
    await ask(house.url, call(await house.token_for(provider.url), body=STREAM))
    await event_of(house)
    house.context.bus.catch_up()
    [line] = [orjson.loads(record.message) for record in caplog.records if record.name == "llm_proxy.calls"]
    assert (line["usage_source"], line["usage"]["completion_tokens"]) == ("counted", 2)
    assert house.context.metrics.total(house.context.metrics.tokens) == PROMPT + 2
