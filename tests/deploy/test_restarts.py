"""A restart with passed sockets loses nothing: the sockets stay, the process stops, and then the next one starts.

RESTARTS=5 CLIENTS=8 looks longer; scripts/restart-under-load judges a server that systemd runs.
"""

import asyncio
import os
import pathlib
import socket

from stage.house import PROVIDER_KEY
from stage.passing import passed_to
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, answer, chunk
from stage.restarts import Load

RESTARTS, CLIENTS = int(os.environ.get("RESTARTS", "2")), int(os.environ.get("CLIENTS", "3"))
# Each stream lasts a while, so that every stop falls into some.
PIECES, PAUSE = 20, 0.05


async def serve(exchange: Exchange) -> None:
    """Models at once, chats piece by piece."""
    if exchange.request_line.startswith(b"GET"):
        return await exchange.send(answer(b'{"object": "list", "data": []}'))
    await exchange.send(STREAM_HEAD)
    for number in range(PIECES):
        await exchange.send(chunk(b'data: {"choices": [{"delta": {"content": "%d"}}]}\n\n' % number))
        await asyncio.sleep(PAUSE)
    return await exchange.send(chunk(b"data: [DONE]\n\n") + END)


async def test_restarts_under_load_refuse_reset_and_cut_nobody(tmp_path: pathlib.Path, provider: ScriptedProvider) -> None:
    provider.script = serve
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        url = "http://{}:{}".format(*listener.getsockname())
        async with passed_to(tmp_path, listener) as run:
            load = Load(url, (await run.token_for(provider.url, PROVIDER_KEY))["token"])
            load.start(CLIENTS)
            await _served(load, 1)
            assert await run.stopped() == 0
        for _ in range(RESTARTS - 1):
            async with passed_to(tmp_path, listener) as run:
                await _served(load, load.figures.streams + CLIENTS)
                assert await run.stopped() == 0
        async with passed_to(tmp_path, listener) as run:
            await _served(load, load.figures.streams + CLIENTS)
            figures = await load.end()
            assert await run.stopped() == 0
    print(figures)
    assert not figures.faults
    assert min(figures.short, figures.kept, figures.streams) > RESTARTS * CLIENTS


async def _served(load: Load, streams: int) -> None:
    """Every kind of call was answered, and so many streams have ended."""
    async with asyncio.timeout(30):
        while load.figures.streams < streams or not load.figures.kept:  # noqa: ASYNC110
            await asyncio.sleep(0.02)
