"""Providers that fail, each in its own way, as their clients see it."""

import asyncio
import socket
from pathlib import Path

import pytest
from stage.asking import ask, call, code_of, event_of
from stage.house import House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import END, Exchange, Script, ScriptedProvider, answer, chunk, scripted_provider
from stage.raw import connected
from stage.scripts import black_hole, holds, in_turn, resets, sends

OK = b"HTTP/1.1 200 OK\r\n"
GOOD = answer(b'{"ok": true}')
NONSENSE = {
    "both-lengths": OK + b"Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "both-lengths-the-other-way": OK + b"Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
    "two-lengths": OK + b"Content-Length: 5\r\nContent-Length: 6\r\n\r\nhello!",
    "two-equal-lengths": OK + b"Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello",
    "a-list-of-lengths": OK + b"Content-Length: 5, 5\r\n\r\nhello",
    "a-negative-length": OK + b"Content-Length: -5\r\n\r\nhello",
    "a-hexadecimal-length": OK + b"Content-Length: 0x5\r\n\r\nhello",
    "an-endless-length": OK + b"Content-Length: 99999999999999999999999\r\n\r\nhello",
    "another-coding": OK + b"Transfer-Encoding: gzip, chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n",
    "no-coding": OK + b"Transfer-Encoding: identity\r\nConnection: close\r\n\r\nhello",
    "a-bad-chunk": OK + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nhello\r\n0\r\n\r\n",
    "a-chunk-that-is-too-long": OK + b"Transfer-Encoding: chunked\r\n\r\n2\r\nhello\r\n0\r\n\r\n",
    "status-99": b"HTTP/1.1 99 Low\r\nContent-Length: 0\r\n\r\n",
    "status-1000": b"HTTP/1.1 1000 High\r\nContent-Length: 0\r\n\r\n",
    "status-600": b"HTTP/1.1 600 High\r\nContent-Length: 0\r\n\r\n",
    "no-status": b"HTTP/1.1 OK\r\nContent-Length: 0\r\n\r\n",
    "http-0.9": b"hello\r\n",
    "http-3": b"HTTP/3.0 200 OK\r\nContent-Length: 0\r\n\r\n",
    "garbage": bytes(range(256)) * 4,
    "tls": b"\x15\x03\x01\x00\x02\x02\x46",
    "switching-protocols": b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\n\r\nhello",
    "nul-in-a-value": OK + b"X-A: a\0b\r\nContent-Length: 0\r\n\r\n",
    "a-space-in-a-name": OK + b"X A: 1\r\nContent-Length: 0\r\n\r\n",
    "a-line-without-colon": OK + b"hello\r\nContent-Length: 0\r\n\r\n",
    "cr-in-the-reason": b"HTTP/1.1 200 OK\rSet-Cookie: a=b\r\nContent-Length: 0\r\n\r\n",
    "a-large-header": OK + b"X-A: " + b"v" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "large-headers": OK + (b"X-A: " + b"v" * 7_000 + b"\r\n") * 10 + b"Content-Length: 0\r\n\r\n",
    "ten-thousand-headers": OK + b"a: b\r\n" * 10_000 + b"Content-Length: 0\r\n\r\n",
    "a-large-reason": b"HTTP/1.1 200 " + b"r" * 70_000 + b"\r\nContent-Length: 0\r\n\r\n",
    "an-endless-head": OK + b"X-A: " + b"v" * 200_000,
}


async def test_nonsense_is_502_and_its_connection_is_not_used_again(house: House, provider: ScriptedProvider) -> None:
    async with asyncio.timeout(20), connected(house.url) as connection:
        for number, (name, data) in enumerate(NONSENSE.items()):
            # A provider that talks nonsense more often than not would be left alone.
            token = await house.token_for(provider.url)
            provider.script = in_turn(sends(data), sends(GOOD))
            await connection.send(call(token))
            reply = await connection.answer()
            assert reply is not None and reply.status == 502, name
            assert code_of(reply) == "upstream_invalid_response", name
            assert reply.header(b"x-should-retry") == b"true"
            await connection.send(call(token))
            assert (await connection.answer()).body == b'{"ok": true}', name  # type: ignore[union-attr]
            # The good call's connection takes the next nonsense, and is gone after it.
            assert provider.connections == number + 2, name
    outcomes = [(event.outcome, event.code, event.status) for event in house.events]
    assert outcomes == [("upstream_failed", "upstream_invalid_response", 502), ("completed", None, 200)] * len(NONSENSE)


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(resets(), id="reset"),
        pytest.param(sends(close=True), id="closed"),
        pytest.param(sends(OK + b"Content-Ty", close=True), id="closed-in-its-head"),
        pytest.param(sends(b"HTTP/1.1 100 Continue\r\n\r\n", close=True), id="closed-after-100"),
    ],
)
async def test_a_provider_that_closes_without_an_answer_is_502_and_called_once(
    house: House, provider: ScriptedProvider, script: Script
) -> None:
    token = await house.token_for(provider.url, max_requests=1)
    provider.script = script
    reply = await ask(house.url, call(token))
    assert (reply.status, code_of(reply)) == (502, "upstream_unavailable")  # type: ignore[union-attr]
    assert len(provider.exchanges) == 1
    # The provider had the request, so it counts.
    assert code_of(await ask(house.url, call(token))) == "request_limit_exhausted"


async def test_a_provider_that_cannot_be_connected_to_is_502_and_costs_nothing(house: House, free_port: int) -> None:
    token = await house.token_for(f"http://127.0.0.1:{free_port}", max_requests=1)
    for _ in range(3):
        reply = await ask(house.url, call(token))
        assert (reply.status, code_of(reply)) == (502, "upstream_unavailable")  # type: ignore[union-attr]
        assert reply.header(b"x-should-retry") == b"true"  # type: ignore[union-attr]
    assert [(event.outcome, event.connect, event.attempts) for event in house.events] == [("upstream_failed", None, 1)] * 3


@pytest.fixture
def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


async def test_a_name_that_does_not_resolve_is_502(house: House) -> None:
    token = await house.token_for("http://no-such-host.invalid")
    assert code_of(await ask(house.url, call(token))) == "upstream_unavailable"


async def test_a_connection_that_does_not_come_about_is_504_and_costs_nothing(tmp_path: Path) -> None:
    profiles = shipped(timeouts={"connect": 0.1})
    with black_hole() as url:
        async with open_house(settings_for(tmp_path), profiles=profiles) as house:
            token = await house.token_for(url, max_requests=1)
            for _ in range(2):
                reply = await ask(house.url, call(token))
                assert (reply.status, code_of(reply)) == (504, "upstream_timeout")  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(holds(), id="nothing"),
        pytest.param(holds(b"HTTP/1.1 100 Continue\r\n\r\n"), id="100-alone"),
        pytest.param(holds(OK + b"Content-Length: 5\r\n"), id="half-a-head"),
    ],
)
async def test_silence_before_the_answer_is_504_and_the_provider_sees_the_end(
    tmp_path: Path, provider: ScriptedProvider, script: Script
) -> None:
    async with open_house(settings_for(tmp_path), profiles=shipped(timeouts={"first_byte": 0.1})) as house:
        token = await house.token_for(provider.url, max_requests=1)
        provider.script = script
        reply = await ask(house.url, call(token))
        assert (reply.status, code_of(reply)) == (504, "upstream_timeout")  # type: ignore[union-attr]
        await asyncio.wait_for(provider.exchanges[0].closed.wait(), 1)
        assert code_of(await ask(house.url, call(token))) == "request_limit_exhausted"


async def test_a_long_upload_does_not_count_as_silence(tmp_path: Path, provider: ScriptedProvider) -> None:
    async with open_house(settings_for(tmp_path), profiles=shipped(timeouts={"first_byte": 0.2})) as house:
        token = await house.token_for(provider.url)
        whole = call(token, b"Content-Type: audio/wav", path="/v1/files", body=b"w" * 2_400_000)
        async with connected(house.url) as connection:
            for start in range(0, len(whole), 200_000):
                await connection.send(whole[start : start + 200_000])
                await asyncio.sleep(0.05)
            assert (await connection.answer()).status == 200  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "interim", [b"HTTP/1.1 100 Continue\r\n\r\n", b"HTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n", b"HTTP/1.1 102 P\r\n\r\n"]
)
async def test_interim_answers_are_dropped(house: House, provider: ScriptedProvider, interim: bytes) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(interim, interim, GOOD)
    async with connected(house.url) as connection:
        for _ in range(2):
            await connection.send(call(token))
            reply = await connection.answer()
            assert (reply.status, reply.body) == (200, b'{"ok": true}')  # type: ignore[union-attr]


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
@pytest.mark.parametrize("apart", [False, True], ids=["at-once", "later"])
async def test_a_body_that_must_not_be_there_never_becomes_the_next_answer(
    house: House, provider: ScriptedProvider, status: bytes, apart: bool
) -> None:
    token = await house.token_for(provider.url)
    poison = answer(b'{"ok": "poison"}')
    head = b"HTTP/1.1 %b\r\nETag: x\r\n\r\n" % status
    went = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(head if apart else head + poison)
        if apart:
            await went.wait()
            await exchange.send(poison)
            await exchange.until_closed()

    provider.script = script
    async with connected(house.url) as connection:
        await connection.send(call(token))
        reply = await connection.answer()
        assert reply is not None and reply.status == int(status[:3])
        went.set()
        if apart:
            await asyncio.wait_for(provider.exchanges[0].closed.wait(), 1)
        provider.script = sends(GOOD)
        await connection.send(call(token))
        assert (await connection.answer()).body == b'{"ok": true}'  # type: ignore[union-attr]
    assert provider.connections == 2


@pytest.mark.parametrize("status", [b"301 Moved", b"302 Found", b"303 See Other", b"307 Temporary", b"308 Permanent"])
async def test_redirects_are_passed_on_and_never_followed(house: House, provider: ScriptedProvider, status: bytes) -> None:
    token = await house.token_for(provider.url)
    async with scripted_provider() as elsewhere:
        target = f"{elsewhere.url}/v1/chat/completions".encode()
        provider.script = sends(answer(b"moved", status=status, extra=b"Location: %b\r\n" % target))
        reply = await ask(house.url, call(token))
        assert (reply.status, reply.body, reply.header(b"location")) == (int(status[:3]), b"moved", target)  # type: ignore[union-attr]
        assert elsewhere.connections == 0


async def test_an_answer_before_the_end_of_the_request_is_passed_on(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.reads_bodies = False
    provider.script = holds(answer(b'{"error": "too large"}', status=b"413 Too Large"))
    async with asyncio.timeout(5), connected(house.url) as connection:
        whole = call(token, b"Content-Type: audio/wav", path="/v1/files", body=b"w" * 20_000_000)
        sending = asyncio.ensure_future(connection.send(whole))
        reply = await connection.answer()
        assert (reply.status, reply.body) == (413, b'{"error": "too large"}')  # type: ignore[union-attr]
        assert reply.header(b"connection") == b"close"  # type: ignore[union-attr]
        await provider.exchanges[0].closed.wait()
        connection.abort()
        await sending
    assert (await event_of(house)).outcome == "completed"


async def test_an_answer_may_begin_before_the_request_has_ended(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    sent = b"w" * 3_000_000
    provider.reads_bodies = False

    async def script(exchange: Exchange) -> None:
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: audio/wav\r\nTransfer-Encoding: chunked\r\n\r\n", chunk(b"first,"))
        exchange.body = await exchange.reader.readexactly(len(sent))
        await exchange.send(chunk(b"last"), END)

    provider.script = script
    async with asyncio.timeout(5), connected(house.url) as connection:
        whole = call(token, b"Content-Type: audio/wav", path="/v1/files", body=sent)
        await connection.send(whole[:1_500_000])
        assert b"first," in await connection.reader.readuntil(b"first,")
        await connection.send(whole[1_500_000:])
        assert await connection.reader.readuntil(b"0\r\n\r\n") == b"\r\n4\r\nlast\r\n0\r\n\r\n"
    assert provider.exchanges[0].body == sent


async def test_a_head_answer_has_its_length_and_no_body(tmp_path: Path, provider: ScriptedProvider) -> None:
    async with open_house(settings_for(tmp_path), profiles=shipped(allowed_methods=("GET", "HEAD"))) as house:
        token = await house.token_for(provider.url)
        provider.script = sends(OK + b"Content-Length: 1234\r\nContent-Type: application/json\r\n\r\n")
        async with connected(house.url) as connection:
            for _ in range(2):
                await connection.send(call(token, path="/v1/models", method="HEAD", body=b""))
                reply = await connection.answer("HEAD")
                assert (reply.status, reply.header(b"content-length")) == (200, b"1234")  # type: ignore[union-attr]
        assert [event.outcome for event in house.events] == ["completed"] * 2
        assert provider.connections == 1


async def test_a_not_modified_answer_may_state_the_length_it_would_have(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(b"HTTP/1.1 304 Not Modified\r\nContent-Length: 1234\r\nETag: x\r\n\r\n")
    reply = await ask(house.url, call(token, b"If-None-Match: x", path="/v1/models", method="GET", body=b""))
    assert (reply.status, reply.header(b"etag")) == (304, b"x")  # type: ignore[union-attr]
    assert house.events[0].outcome == "completed"


async def test_a_head_is_refused_as_soon_as_it_is_too_large(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = holds(OK, *[b"X-A: " + b"v" * 9_000 + b"\r\n"] * 8)
    assert code_of(await ask(house.url, call(token))) == "upstream_invalid_response"
    await asyncio.wait_for(provider.exchanges[0].closed.wait(), 1)


async def test_errors_of_the_provider_pass_untouched(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    for status in (b"400 Bad", b"401 Unauthorized", b"429 Slow Down", b"500 Oops", b"503 Busy", b"529 Overloaded"):
        body = b'{"error": {"message": "%b"}}' % status
        provider.script = sends(answer(body, status=status, extra=b"Retry-After: 99999999\r\nx-should-retry: maybe\r\n"))
        reply = await ask(house.url, call(token))
        assert reply is not None
        assert (reply.status, reply.body) == (int(status[:3]), body)
        assert (reply.header(b"retry-after"), reply.header(b"x-should-retry")) == (b"99999999", b"maybe")
    assert [event.outcome for event in house.events] == ["completed"] * 6
    assert len(provider.exchanges) == 6


async def test_connections_are_kept_and_bounded(tmp_path: Path, provider: ScriptedProvider) -> None:
    async with open_house(settings_for(tmp_path), profiles=shipped(max_idle_per_host=2)) as house:
        token = await house.token_for(provider.url)
        together = asyncio.Barrier(5)

        async def script(exchange: Exchange) -> None:
            await together.wait()
            await exchange.send(GOOD)

        provider.script = script
        await asyncio.gather(*(ask(house.url, call(token)) for _ in range(5)))
        assert provider.connections == 5
        await asyncio.gather(*(ask(house.url, call(token)) for _ in range(5)))
        assert provider.connections == 8


async def test_a_connection_the_provider_closed_meanwhile_is_not_used(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    provider.script = sends(GOOD, close=True)
    for _ in range(20):
        assert (await ask(house.url, call(token))).status == 200  # type: ignore[union-attr]


async def test_an_answer_on_an_idle_connection_is_not_the_next_one(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    went = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(GOOD)
        await went.wait()
        await exchange.send(answer(b'{"ok": "poison"}'))
        await exchange.until_closed()

    provider.script = script
    assert (await ask(house.url, call(token))).status == 200  # type: ignore[union-attr]
    went.set()
    await asyncio.wait_for(provider.exchanges[0].closed.wait(), 1)
    provider.script = sends(GOOD)
    assert (await ask(house.url, call(token))).body == b'{"ok": true}'  # type: ignore[union-attr]


@pytest.mark.parametrize(
    "setting",
    [{}, {"ALLOW_PRIVATE_UPSTREAMS": "false"}],
    ids=["allowed", "not-allowed"],
)
async def test_the_operators_own_base_url_may_be_private(
    tmp_path: Path, provider: ScriptedProvider, setting: dict[str, str]
) -> None:
    async with open_house(settings_for(tmp_path, **setting), profiles=shipped(base_url=provider.url)) as house:
        token = await house.token_for(provider.url)
        assert (await ask(house.url, call(token))).status == 200  # type: ignore[union-attr]


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "[::ffff:127.0.0.1]", "localhost."])
async def test_private_addresses_are_refused_also_behind_names(tmp_path: Path, provider: ScriptedProvider, host: str) -> None:
    """The names here are numbers that only the system's resolver turns into addresses."""
    port = provider.url.rpartition(":")[2]
    async with open_house(settings_for(tmp_path)) as house:
        token = await house.token_for(f"http://{host}:{port}", max_requests=1)
    async with open_house(settings_for(tmp_path, ALLOW_PRIVATE_UPSTREAMS="false")) as house:
        for _ in range(2):
            reply = await ask(house.url, call(token))
            assert (reply.status, code_of(reply)) == (502, "upstream_unavailable")  # type: ignore[union-attr]
    assert provider.connections == 0
