"""The guarded server: how it is made, what it turns off and on, how each connection's last answer is announced."""

import asyncio
import gzip
import subprocess
import sys

import pytest
from aiohttp import http_parser, web
from stage.asking import until
from stage.raw import connected
from stage.site import ROOMY, open_site

from llm_proxy import wire
from llm_proxy.errors import StartError
from llm_proxy.guard import Guard
from llm_proxy.wire import GuardedRunner, check_parser

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"


async def test_an_option_that_aiohttp_does_not_know_stops_the_start() -> None:
    runner = GuardedRunner(web.Application(), lambda ours: ours, Guard(ROOMY, lambda error: None))
    runner._kwargs["max_heads"] = 1
    with pytest.raises(TypeError, match="max_heads"):
        await runner.setup()


async def test_the_limits_reach_every_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "KEEPALIVE_SECONDS", 12.5)
    async with open_site() as site, asyncio.timeout(5), connected(site.url):
        await until(lambda: site.connections)
        one = site.connection
        assert (one.max_line_size, one.max_field_size, one.max_headers, one.keepalive_timeout) == (16_384, 65_536, 128, 12.5)


def test_without_the_c_parser_nothing_is_served(monkeypatch: pytest.MonkeyPatch) -> None:
    check_parser()
    monkeypatch.setattr(http_parser, "HttpRequestParser", http_parser.HttpRequestParserPy)
    with pytest.raises(StartError, match="C parser"):
        check_parser()


def test_without_assertions_nothing_is_served() -> None:
    command = [sys.executable, "-O", "-c", "from llm_proxy.wire import check_parser; check_parser()"]
    done = subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": ":".join(sys.path)}, check=False)
    assert done.returncode == 1 and "python -O" in done.stderr


async def test_a_coded_body_comes_through_as_it_is() -> None:
    body = gzip.compress(b"hello")
    async with open_site() as site, asyncio.timeout(5), connected(site.url) as client:
        await client.send(
            b"POST / HTTP/1.1\r\nHost: h\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
        )
        answer = await client.answer()
        assert answer and answer.body == body


async def test_a_client_that_leaves_cancels_its_handler() -> None:
    began, cancelled = asyncio.Event(), asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        began.set()
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            cancelled.set()
            raise

    async with open_site(wait) as site, asyncio.timeout(5), connected(site.url) as client:
        await client.send(GET)
        await began.wait()
        client.abort()
        await cancelled.wait()


async def test_what_cannot_be_read_is_answered_in_http_1_1() -> None:
    async with open_site() as site, asyncio.timeout(5), connected(site.url) as client:
        await client.send(b"\0\r\n\r\n")
        answer = await client.answer()
        assert answer and answer.head.startswith(b"HTTP/1.1 400 ") and answer.header(b"connection") == b"close"


@pytest.mark.parametrize("protocol", [b"h2c", b"TLS/1.2"])
async def test_a_connection_that_was_to_change_its_protocol_serves_no_further_request(protocol: bytes) -> None:
    """The parser drops what comes in the same segment, and would read the rest of it as the next request."""
    served: list[str] = []

    async def note(request: web.BaseRequest) -> web.StreamResponse:
        served.append(request.path)
        return web.Response()

    async with open_site(note) as site, asyncio.timeout(5), connected(site.url) as client:
        await client.send(b"GET /1 HTTP/1.1\r\nHost: h\r\nConnection: upgrade\r\nUpgrade: %b\r\n\r\nGET /2 HT" % protocol)
        await client.send(b"GET /3 HTTP/1.1\r\nHost: h\r\n\r\n")
        answer = await client.answer()
        assert answer and answer.status == 200 and answer.header(b"connection") == b"close"
        assert await client.is_closed()
    assert served == ["/1"]


async def test_while_stopping_each_answer_is_its_connection_s_last() -> None:
    async with open_site() as site, asyncio.timeout(5), connected(site.url) as idle, connected(site.url) as pipelining:
        for client in (idle, pipelining):
            await client.send(GET)
            answer = await client.answer()
            assert answer and answer.header(b"connection") is None
        site.runner.guarded.stopping = True
        await idle.send(GET)
        await pipelining.send(GET * 3)
        for client in (idle, pipelining):
            answer = await client.answer()
            assert answer and answer.status == 200 and answer.header(b"connection") == b"close"
            assert await client.is_closed()


async def test_who_waits_for_an_answer_is_counted() -> None:
    release = asyncio.Event()

    async def wait(request: web.BaseRequest) -> web.StreamResponse:
        await release.wait()
        answer = web.Response()
        answer.force_close()
        return answer

    async with open_site(wait) as site, asyncio.timeout(5), connected(site.url) as asking, connected(site.url):
        await until(lambda: len(site.connections) == 2)
        assert site.runner.guarded.busy() == 0
        await asking.send(GET)
        await until(lambda: site.runner.guarded.busy() == 1)
        release.set()
        assert await asking.answer()
        # It is answered, although its connection still waits for the client to close.
        await until(lambda: site.runner.guarded.busy() == 0)
        assert len(site.connections) == 2


async def test_what_a_slow_client_has_yet_to_read_is_owed_too() -> None:
    async def fill(request: web.BaseRequest) -> web.StreamResponse:
        assert request.transport
        while not request.transport.get_write_buffer_size():
            request.transport.write(b"a" * 16_384)
            await asyncio.sleep(0)
        return web.Response()

    async with open_site(fill) as site, asyncio.timeout(5), connected(site.url) as client:
        client.writer.transport.pause_reading()
        await client.send(GET)
        await until(lambda: site.connections and not site.connection._request_in_progress and site.connection._unsent_bytes())
        assert site.runner.guarded.busy() == 1
        client.writer.transport.resume_reading()
        await until(lambda: site.runner.guarded.busy() == 0)
