"""Kept connections that the provider closes: what is sent again, and what is never."""

import asyncio
import contextlib
import os
import random
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from stage.house import settings_for
from stage.profiles import shipped
from stage.provider import Exchange, Script, ScriptedProvider, answer
from stage.scripts import in_turn, sends

from llm_proxy.errors import UpstreamError, UpstreamInvalid, UpstreamUnavailable
from llm_proxy.upstream import Answer, Request, Upstream, open_upstream
from llm_proxy.upstream.dialing import Dialer

# The full run: STALE_CALLS=10000.
CALLS = int(os.environ.get("STALE_CALLS", "1000"))
WORKERS = 16
PROFILE = shipped().apis["openai"]
GOOD = answer(b'{"ok": true}')


@pytest.fixture
async def upstream(tmp_path: Path) -> AsyncIterator[Upstream]:
    """The provider's side of a process."""
    async with open_upstream(settings_for(tmp_path)) as opened:
        yield opened


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


def request(
    url: str,
    method: str,
    body: bytes | AsyncIterator[bytes] | None = None,
    headers: tuple[tuple[bytes, bytes], ...] = (),
    on_sent: Callable[[], None] = lambda: None,
) -> Request:
    length = len(body) if isinstance(body, bytes) else None
    return Request(method, url, headers, body, length, PROFILE, PROFILE.timeouts, trusted=True, on_sent=on_sent)


async def whole(answer: Answer) -> bytes:
    read = []
    while piece := await answer.chunk():
        read.append(piece)
    answer.abort()
    return b"".join(read)


async def closes(exchange: Exchange) -> None:
    exchange.writer.close()


async def resets(exchange: Exchange) -> None:
    exchange.reset()


@pytest.mark.parametrize("end", [closes, resets])
@pytest.mark.parametrize(
    ("method", "body", "again"),
    [
        ("GET", None, True),
        ("OPTIONS", None, True),
        ("DELETE", None, True),
        ("PUT", b"body", True),
        ("PUT", "pieces", False),
        ("POST", b"body", False),
        ("POST", None, False),
        ("PATCH", b"body", False),
    ],
)
async def test_a_request_that_a_kept_connection_lost_is_sent_again_where_it_may(
    upstream: Upstream, provider: ScriptedProvider, end: Script, method: str, body: bytes | str | None, again: bool
) -> None:
    provider.script = in_turn(sends(GOOD), end, sends(GOOD))
    await whole(await upstream.open(request(provider.url, "GET")))
    sent: list[None] = []
    asked = request(
        provider.url, method, body if isinstance(body, bytes | None) else pieces(b"body"), on_sent=lambda: sent.append(None)
    )
    if again:
        assert await whole(await upstream.open(asked)) == b'{"ok": true}'
    else:
        with pytest.raises(UpstreamUnavailable) as failure:
            await upstream.open(asked)
        assert failure.value.sent
    assert len(provider.exchanges) == 3 if again else 2
    assert (len(sent), provider.connections) == (1, 2 if again else 1)


@pytest.mark.parametrize(
    ("script", "error"),
    [
        pytest.param(sends(b"H", close=True), UpstreamUnavailable, id="a-byte-came"),
        pytest.param(sends(b"HTTP/1.1 100 Continue\r\n\r\n", close=True), UpstreamUnavailable, id="an-interim-answer-came"),
        pytest.param(sends(b"garbage"), UpstreamInvalid, id="garbage-came"),
    ],
)
async def test_what_the_provider_answered_is_not_asked_again(
    upstream: Upstream, provider: ScriptedProvider, script: Script, error: type[UpstreamError]
) -> None:
    provider.script = in_turn(sends(GOOD), script, sends(GOOD))
    await whole(await upstream.open(request(provider.url, "GET")))
    with pytest.raises(error):
        await upstream.open(request(provider.url, "GET"))
    assert len(provider.exchanges) == 2


async def test_it_is_sent_again_once_and_on_a_new_connection(upstream: Upstream, provider: ScriptedProvider) -> None:
    """Though other kept ones are waiting, which may have been closed alike."""
    together = asyncio.Barrier(3)

    async def script(exchange: Exchange) -> None:
        await together.wait()
        await exchange.send(GOOD)

    provider.script = script
    await asyncio.gather(*(upstream.open(request(provider.url, "GET")) for _ in range(3)))
    provider.exchanges.clear()
    provider.script = closes
    with pytest.raises(UpstreamUnavailable) as failure:
        await upstream.open(request(provider.url, "GET"))
    assert failure.value.sent
    assert (len(provider.exchanges), provider.connections) == (2, 4)


async def test_a_provider_that_went_away_after_it_had_the_request_may_have_begun(
    upstream: Upstream, provider: ScriptedProvider
) -> None:
    """The second attempt finds nobody, but the first was sent."""
    provider.script = in_turn(sends(GOOD), closes)
    listener = await asyncio.start_server(provider._serve, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{listener.sockets[0].getsockname()[1]}"
    await whole(await upstream.open(request(url, "GET")))
    listener.close()
    with pytest.raises(UpstreamUnavailable, match="could not be connected") as failure:
        await upstream.open(request(url, "GET"))
    assert failure.value.sent


@pytest.mark.parametrize("pause", [0, 0.01], ids=["after-the-request", "before-the-request"])
async def test_a_provider_that_closes_at_once_is_not_waited_for(
    upstream: Upstream, monkeypatch: pytest.MonkeyPatch, pause: float
) -> None:
    dial = Dialer.connect

    async def late(*args: Any, **kwargs: Any) -> Any:
        made = await dial(*args, **kwargs)
        await asyncio.sleep(pause)
        return made

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.transport.abort()

    monkeypatch.setattr(Dialer, "connect", late)
    async with await asyncio.start_server(serve, "127.0.0.1", 0) as server, asyncio.timeout(2):
        with pytest.raises(UpstreamUnavailable):
            await upstream.open(request(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", "POST", b"body"))


class Restless:
    """A provider that closes each idle connection at a random moment, by a FIN or a RST, and counts what it was asked."""

    def __init__(self, dice: random.Random) -> None:
        self.dice = dice
        self.seen: Counter[bytes] = Counter()
        self.closed = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError, TimeoutError):
            patience = None
            while True:
                async with asyncio.timeout(patience):
                    head = await reader.readuntil(b"\r\n\r\n")
                if b"Content-Length" in head:
                    await reader.readexactly(4)
                self.seen[head.partition(b"X-Id: ")[2].partition(b"\r\n")[0]] += 1
                writer.write(GOOD)
                patience = self.dice.choice([None, None, 0, 0.0001, 0.0005, 0.001, 0.003])
        self.closed += 1
        if self.dice.random() < 0.3:
            linger = struct.pack("ii", 1, 0)
            with contextlib.suppress(OSError):
                writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        writer.close()


async def test_a_provider_that_closes_at_random_moments_fails_no_call_that_may_be_repeated(upstream: Upstream) -> None:
    dice = random.Random(7)
    provider, numbers, failed = Restless(dice), iter(range(CALLS)), []

    async def work(url: str) -> None:
        for number in numbers:
            method = "POST" if number % 2 else "GET"
            asked = request(url, method, b"body" if number % 2 else None, ((b"X-Id", f"{method}-{number}".encode()),))
            try:
                assert await whole(await upstream.open(asked)) == b'{"ok": true}'
            except UpstreamUnavailable as error:
                assert error.sent
                failed.append(f"{method}-{number}".encode())
            await asyncio.sleep(dice.choice([0, 0, 0.0001, 0.001]))

    async with await asyncio.start_server(provider.serve, "127.0.0.1", 0) as server:
        url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        await asyncio.gather(*(work(url) for _ in range(WORKERS)))
    assert provider.closed > CALLS / 20
    assert not [name for name in failed if name.startswith(b"GET")]
    assert not [name for name, times in provider.seen.items() if name.startswith(b"POST") and times > 1]
    # What was answered, and nothing else, reached the provider.
    assert {name for name in provider.seen if name.startswith(b"POST")} | set(failed) == {
        f"POST-{number}".encode() for number in range(1, CALLS, 2)
    }
    print(f"{CALLS} calls, {provider.closed} connections closed, {len(failed)} POST failed, {sum(provider.seen.values())} seen")
