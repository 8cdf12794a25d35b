"""Providers that answer before they have the whole request."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from stage.house import settings_for
from stage.profiles import shipped
from stage.provider import Exchange, ScriptedProvider, answer

from llm_proxy.errors import UpstreamUnavailable
from llm_proxy.upstream import Request, open_upstream

PROFILE = shipped().apis["openai"]
REFUSAL = answer(b'{"error": "too large"}', status=b"413 Too Large")
SIZE = 64 * 1024 * 1024


class Body:
    """A body that notes how much of it was taken, and whether it was let go."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.taken = 0
        self.ended = asyncio.Event()

    async def pieces(self) -> AsyncIterator[bytes]:
        try:
            while self.taken < self.size:
                self.taken += 65536
                yield bytes(65536)
        finally:
            self.ended.set()


def request(url: str, body: AsyncIterator[bytes] | bytes) -> Request:
    length = len(body) if isinstance(body, bytes) else SIZE
    return Request("POST", url, [], body, length, PROFILE, PROFILE.timeouts, trusted=True, on_sent=lambda: None)


@pytest.mark.parametrize("end", ["nothing", "fin", "reset"])
@pytest.mark.parametrize("in_pieces", [True, False], ids=["pieces", "bytes"])
async def test_the_answer_is_had_and_the_rest_is_not_sent(
    tmp_path: Path, provider: ScriptedProvider, end: str, in_pieces: bool
) -> None:
    provider.reads_bodies = False

    async def script(exchange: Exchange) -> None:
        await exchange.send(REFUSAL)
        if end == "fin":
            exchange.writer.close()
        elif end == "reset":
            await asyncio.sleep(0.01)
            exchange.reset()
        else:
            await exchange.until_closed()

    provider.script = script
    async with open_upstream(settings_for(tmp_path)) as upstream:
        for _ in range(5):
            body = Body(SIZE)
            answer = await upstream.open(request(provider.url, body.pieces() if in_pieces else bytes(SIZE)))
            assert (answer.status, await answer.chunk(), await answer.chunk()) == (413, b'{"error": "too large"}', b"")
            answer.abort()
            if in_pieces:
                await asyncio.wait_for(body.ended.wait(), 1)
                assert body.taken < SIZE
            if end == "nothing":
                await asyncio.wait_for(provider.exchanges[-1].closed.wait(), 1)
    assert provider.connections == 5


async def test_a_body_that_breaks_off_ends_the_call(tmp_path: Path, provider: ScriptedProvider) -> None:
    async def broken() -> AsyncIterator[bytes]:
        yield b"some"
        raise ConnectionResetError

    async with open_upstream(settings_for(tmp_path)) as upstream:
        with pytest.raises(UpstreamUnavailable, match="body could not be sent") as failure:
            await upstream.open(request(provider.url, broken()))
    assert failure.value.sent and isinstance(failure.value.__cause__, ConnectionResetError)


@pytest.mark.parametrize("moment", ["sending", "waiting", "reading"])
async def test_who_leaves_is_seen_by_the_provider_at_once(tmp_path: Path, provider: ScriptedProvider, moment: str) -> None:
    provider.reads_bodies = moment != "sending"

    async def script(exchange: Exchange) -> None:
        if moment == "sending":
            await asyncio.sleep(0.05)
        if moment == "reading":
            await exchange.send(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n01234")
        await exchange.until_closed()

    provider.script = script
    body = Body(SIZE)
    async with open_upstream(settings_for(tmp_path)) as upstream:

        async def call() -> None:
            answer = await upstream.open(request(provider.url, body.pieces() if moment == "sending" else b"body"))
            try:
                while await answer.chunk():
                    reading.set()
            except asyncio.CancelledError:
                answer.abort()
                raise

        reading = asyncio.Event()
        calling = asyncio.ensure_future(call())
        exchange = await provider.next_exchange()
        if moment == "reading":
            await reading.wait()
        calling.cancel()
        await asyncio.wait_for(exchange.closed.wait(), 0.1 if moment != "sending" else 0.5)
        with pytest.raises(asyncio.CancelledError):
            await calling
        if moment == "sending":
            await asyncio.wait_for(body.ended.wait(), 1)
