"""Streams pass as they come: at once, with signs of life, no faster than they are read."""

import asyncio
import gzip
from pathlib import Path

import pytest
from stage.asking import STREAM, call, event_of
from stage.house import House, open_house, settings_for
from stage.profiles import shipped
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, chunk
from stage.raw import RawConnection, connected

COMMENT = b": keep-alive\n\n"
EVENT = b'data: {"n": 1}\n\n'


async def next_chunk(connection: RawConnection) -> bytes:
    """The next chunk of a chunked body as it came over the wire."""
    size = int(await connection.reader.readuntil(b"\r\n"), 16)
    return (await connection.reader.readexactly(size + 2))[:-2]


async def head_of(connection: RawConnection) -> bytes:
    """The head of an answer."""
    return await connection.reader.readuntil(b"\r\n\r\n")


@pytest.mark.parametrize("kind", [b"text/event-stream", b"text/event-stream; charset=utf-8", b"application/json", b"audio/mpeg"])
async def test_every_piece_arrives_before_the_next_is_sent(house: House, provider: ScriptedProvider, kind: bytes) -> None:
    token = await house.token_for(provider.url)
    read = asyncio.Queue[None]()

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD.replace(b"text/event-stream", kind))
        for number in range(5):
            await exchange.send(chunk(b"data: %d" % number))
            await read.get()
        await exchange.send(END)

    provider.script = script
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(call(token, body=STREAM))
        head = await head_of(connection)
        assert (b"X-Accel-Buffering: no" in head) is kind.startswith(b"text/event-stream")
        for number in range(5):
            assert await next_chunk(connection) == b"data: %d" % number
            assert house.events == []
            read.put_nowait(None)
        assert await next_chunk(connection) == b""


async def test_a_chunk_whose_framing_comes_by_itself_ends_nothing(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    seen = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(EVENT))
        await seen.wait()
        size, _, rest = chunk(EVENT).partition(b"\r\n")
        for piece in (size, b"\r\n", rest, END):
            await exchange.send(piece)
            await asyncio.sleep(0.02)

    provider.script = script
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(call(token, body=STREAM))
        await head_of(connection)
        assert await next_chunk(connection) == EVENT
        seen.set()
        assert [await next_chunk(connection) for _ in range(2)] == [EVENT, b""]


async def test_the_head_of_an_event_stream_does_not_wait_for_its_body(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    read = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        await read.wait()
        await exchange.send(END)

    provider.script = script
    async with asyncio.timeout(5), connected(house.url) as connection:
        await connection.send(call(token, body=STREAM))
        assert (await head_of(connection)).startswith(b"HTTP/1.1 200 OK\r\n")
        read.set()
        assert await next_chunk(connection) == b""


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"], ids=["lf", "crlf", "cr"])
async def test_silence_is_filled_between_events_only(tmp_path: Path, provider: ScriptedProvider, end: bytes) -> None:
    event = EVENT.replace(b"\n", end)
    seen = asyncio.Event()

    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(event + event[:7]))
        await asyncio.sleep(0.15)
        await exchange.send(chunk(event[7:]))
        await seen.wait()
        await exchange.send(chunk(event), END)

    provider.script = script
    async with open_house(settings_for(tmp_path, SSE_KEEPALIVE="40ms")) as house:
        token = await house.token_for(provider.url)
        async with asyncio.timeout(5), connected(house.url) as connection:
            await connection.send(call(token, body=STREAM))
            await head_of(connection)
            assert await next_chunk(connection) == event + event[:7]
            assert await next_chunk(connection) == event[7:]
            for _ in range(3):
                assert await next_chunk(connection) == COMMENT
            seen.set()
            rest = b""
            while piece := await next_chunk(connection):
                rest += piece
            assert rest.replace(COMMENT, b"") == event


@pytest.mark.parametrize(
    ("setting", "head", "version"),
    [
        pytest.param("0", STREAM_HEAD, "1.1", id="switched-off"),
        pytest.param("20ms", STREAM_HEAD.replace(b"text/event-stream", b"application/json"), "1.1", id="not-an-event-stream"),
        pytest.param("20ms", STREAM_HEAD.replace(b"Transfer", b"Content-Encoding: gzip\r\nTransfer"), "1.1", id="coded"),
        pytest.param("20ms", STREAM_HEAD.replace(b"Transfer", b"Content-Encoding: br\r\nTransfer"), "1.1", id="coded-otherwise"),
        pytest.param(
            "20ms", b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nContent-Length: 32\r\n\r\n", "1.1", id="length"
        ),
        pytest.param("20ms", STREAM_HEAD, "1.0", id="http-1.0"),
    ],
)
async def test_silence_is_not_filled(tmp_path: Path, provider: ScriptedProvider, setting: str, head: bytes, version: str) -> None:
    body = gzip.compress(EVENT) if b"gzip" in head else EVENT * 2
    parts = (body[:15], body[15:])

    async def script(exchange: Exchange) -> None:
        chunked = b"chunked" in head
        await exchange.send(head, chunk(parts[0]) if chunked else parts[0])
        await asyncio.sleep(0.1)
        await exchange.send(chunk(parts[1]) if chunked else parts[1], END if chunked else b"")

    provider.script = script
    async with open_house(settings_for(tmp_path, SSE_KEEPALIVE=setting)) as house:
        token = await house.token_for(provider.url)
        async with asyncio.timeout(5), connected(house.url) as connection:
            await connection.send(call(token, body=STREAM, version=version))
            reply = await connection.answer()
        assert reply is not None and reply.whole and reply.body == body


async def test_a_slow_stream_may_last_longer_than_every_silence(tmp_path: Path, provider: ScriptedProvider) -> None:
    async def script(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        for _ in range(30):
            await asyncio.sleep(0.015)
            await exchange.send(chunk(EVENT))
        await exchange.send(END)

    provider.script = script
    profiles = shipped(timeouts={"first_byte": 0.2, "idle": 0.2})
    async with open_house(settings_for(tmp_path), profiles=profiles) as house:
        token = await house.token_for(provider.url)
        async with asyncio.timeout(5), connected(house.url) as connection:
            await connection.send(call(token, body=STREAM))
            reply = await connection.answer()
        assert reply is not None and reply.whole and reply.body == EVENT * 30
        assert house.events[0].duration > 0.4


def queued(*ports: int) -> int:
    """The bytes that wait in the machine's sockets on connections with these ports."""
    total = 0
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        _, local, remote, _, queues, *_ = line.split()
        if {int(end.partition(":")[2], 16) for end in (local, remote)} & set(ports):
            total += sum(int(queue, 16) for queue in queues.split(":"))
    return total


async def test_a_client_that_does_not_read_pauses_its_provider(house: House, provider: ScriptedProvider) -> None:
    token = await house.token_for(provider.url)
    size, piece = 64 * 2**20, b"a" * 2**16
    written, paused = 0, asyncio.Event()

    async def script(exchange: Exchange) -> None:
        nonlocal written
        await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Type: audio/mpeg\r\nContent-Length: %d\r\n\r\n" % size)
        while written < size:
            exchange.writer.write(piece)
            written += len(piece)
            try:
                async with asyncio.timeout(0.3):
                    await exchange.writer.drain()
            except TimeoutError:
                paused.set()
                await exchange.writer.drain()

    provider.script = script
    reader, writer = await asyncio.open_connection("127.0.0.1", int(house.url.rpartition(":")[2]), limit=2**16)
    writer.write(call(token))
    async with asyncio.timeout(20):
        await paused.wait()
        outside = queued(int(provider.url.rpartition(":")[2]), writer.get_extra_info("sockname")[1])
        outside += provider.exchanges[0].writer.transport.get_write_buffer_size()
        # The client's own reader holds twice its limit, and one read more.
        assert written - outside < 2 * 2**20
        assert written < size // 2
        await reader.readuntil(b"\r\n\r\n")
        assert await reader.readexactly(size) == piece * (size // len(piece))
    writer.close()
    assert (await event_of(house)).outcome == "completed"
