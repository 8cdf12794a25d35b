"""Calls of a client through a house, with the streams that it leaves open."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

from stage.asking import until
from stage.house import House
from stage.provider import END, STREAM_HEAD, Exchange, chunk
from stage.raw import RawConnection, connected

__all__ = ["call", "last_words", "stream_without_end", "streaming", "until"]

BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
FIRST = b'data: {"choices": [{"delta": {"content": "a"}}]}\n\n'


async def stream_without_end(exchange: Exchange) -> None:
    """A provider's script: one event, then silence until the other side closes."""
    await exchange.send(STREAM_HEAD, chunk(FIRST))
    await exchange.until_closed()


async def call(client: aiohttp.ClientSession, house: House, token: str, **more: Any) -> tuple[int, str | None]:
    """Status and error code of a chat call."""
    headers = {"Authorization": f"Bearer {token}"}
    async with client.post(f"{house.url}/v1/chat/completions", json={**BODY, **more}, headers=headers) as reply:
        text = await reply.text()
        return reply.status, json.loads(text)["error"]["code"] if reply.status >= 400 else None


@asynccontextmanager
async def streaming(house: House, token: str) -> AsyncIterator[RawConnection]:
    """A stream whose first event has arrived."""
    body = json.dumps({**BODY, "stream": True})
    head = f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\r\nContent-Type: application/json\r\n"
    async with connected(house.url) as connection:
        await connection.send(f"{head}Content-Length: {len(body)}\r\n\r\n{body}".encode())
        await connection.reader.readuntil(chunk(FIRST))
        yield connection


async def last_words(connection: RawConnection) -> str:
    """The code of the error with which a stream is cut; to be cut, it must end without the end of its message."""
    said = await connection.reader.read(-1)
    assert not said.endswith(END), said
    [event] = re.findall(rb"data: (.*)\n\n", said)
    return str(json.loads(event)["error"]["code"])
