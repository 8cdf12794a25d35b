"""Replies as they stand on the wire."""

import asyncio
from pathlib import Path

import pytest
from stage.asking import STREAM, ask, call, until
from stage.house import House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, chunk
from stage.raw import connected, exchange
from stage.scripts import sends

from llm_proxy.proxy import reply

FRAMING = (b"content-length", b"transfer-encoding", b"connection")
OK = b"HTTP/1.1 200 OK\r\n"


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b"200 OK", b"200 OK"),
        (b"200 All Right!", b"200 All Right!"),
        (b"200 ", b"200 OK"),
        (b"200", b"200 OK"),
        (b"529 ", b"529 "),
        (b"529 Site is overloaded", b"529 Site is overloaded"),
        (b"200 Tr\xe8s bien", b"200 OK"),
        (b"200 tab\there", b"200 OK"),
    ],
)
async def test_the_reason_is_the_providers_where_it_is_plain(
    house: House, provider: ScriptedProvider, line: bytes, expected: bytes
) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(b"HTTP/1.1 %b\r\nContent-Length: 0\r\n\r\n" % line)
    found = await ask(house.url, call(token))
    assert found is not None and found.head.split(b"\r\n")[0] == b"HTTP/1.1 " + expected


@pytest.mark.parametrize(
    ("version", "data", "framing"),
    [
        pytest.param("1.1", OK + b"Content-Length: 2\r\n\r\n{}", [b"Content-Length: 2"], id="length"),
        pytest.param("1.0", OK + b"Content-Length: 2\r\n\r\n{}", [b"Content-Length: 2", b"Connection: close"], id="1.0-length"),
        pytest.param(
            "1.1", OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"{}") + END, [b"Transfer-Encoding: chunked"], id="chunks"
        ),
        pytest.param(
            "1.0", OK + b"Transfer-Encoding: chunked\r\n\r\n" + chunk(b"{}") + END, [b"Connection: close"], id="1.0-chunks"
        ),
        pytest.param("1.1", b"HTTP/1.0 200 OK\r\n\r\n{}", [b"Transfer-Encoding: chunked"], id="until-close"),
        pytest.param("1.1", b"HTTP/1.1 204 No Content\r\n\r\n", [], id="204"),
        pytest.param("1.1", b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n", [], id="204-with-a-length"),
        pytest.param("1.0", b"HTTP/1.1 204 No Content\r\n\r\n", [b"Connection: close"], id="1.0-204"),
        pytest.param("1.1", b"HTTP/1.1 304 Not Modified\r\n\r\n", [], id="304"),
        pytest.param("1.1", OK + b"Content-Length: 0\r\n\r\n", [b"Content-Length: 0"], id="empty"),
        pytest.param("1.1", OK + b"Transfer-Encoding: chunked\r\n\r\n" + END, [b"Transfer-Encoding: chunked"], id="no-chunks"),
    ],
)
async def test_replies_are_framed_for_their_client(
    house: House, provider: ScriptedProvider, version: str, data: bytes, framing: list[bytes]
) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(data, close=data.startswith(b"HTTP/1.0"))
    found = await exchange(house.url, call(token, version=version))
    assert found is not None and found.whole
    assert found.head.startswith(b"HTTP/%b " % version.encode())
    assert [line for line in found.head.split(b"\r\n") if line.partition(b":")[0].lower() in FRAMING] == framing
    assert found.body == (b"{}" if b"{}" in data else b"")
    assert found.closed is (version == "1.0")


async def test_a_date_is_added_only_where_there_is_none(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(OK + b"date: Sat, 01 Jan 2000 00:00:00 GMT\r\nContent-Length: 0\r\n\r\n")
    found = await ask(house.url, call(token))
    assert found is not None and found.head.lower().count(b"\r\ndate: ") == 1
    assert found.header(b"date") == b"Sat, 01 Jan 2000 00:00:00 GMT"
    refused = await ask(house.url, call(token, path="/v1/nothing"))
    assert refused is not None and (refused.header(b"date") or b"").endswith(b" GMT")


async def test_last_words_to_a_client_that_does_not_read_are_not_kept_for_long(
    tmp_path: Path, provider: ScriptedProvider, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reply, "DRAIN_SECONDS", 0.05)
    stuck = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        while not stuck.is_set():
            exchange.writer.write(chunk(b"data: %b\n\n" % (b"x" * 65536)))
            try:
                async with asyncio.timeout(0.2):
                    await exchange.writer.drain()
            except TimeoutError:
                stuck.set()
        await exchange.until_closed()

    provider.script = script
    async with open_house(settings_for(tmp_path), profiles=shipped(timeouts={"total": 1})) as house:
        token = await house.token_for(provider.url)
        async with asyncio.timeout(10), connected(house.url) as connection:
            connection.writer.transport.pause_reading()
            await connection.send(call(token, body=STREAM))
            await stuck.wait()
            await until(lambda: house.events)
            assert house.events[0].outcome == "upstream_incomplete"
            await until(lambda: not house.context.active, 0.5)
            await asyncio.sleep(0.1)
            connection.writer.transport.resume_reading()
            found = await connection.answer()
            assert found is not None and not found.whole and b"upstream_timeout" not in found.body


async def test_a_refusal_after_half_a_body_leaves_no_doubt_where_the_next_request_begins(
    house: House, provider: ScriptedProvider
) -> None:
    async with connected(house.url) as connection:
        await connection.send(call("wrong", body=b"{" + b" " * 100_000)[:-1000])
        found = await connection.answer()
        assert found is not None and (found.status, found.header(b"connection")) == (401, b"close")
