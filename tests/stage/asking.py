"""Calls as bytes, for raw connections."""

import asyncio
from collections.abc import Callable

import orjson

from llm_proxy.events import Event
from stage.house import House
from stage.raw import Answer, connected

CHAT = "/v1/chat/completions"
MESSAGES = "/v1/messages"
ASKING = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}
BODY = orjson.dumps(ASKING)
STREAM = orjson.dumps({**ASKING, "stream": True})


def call(
    token: str,
    *headers: bytes,
    path: str = CHAT,
    method: str = "POST",
    body: bytes = BODY,
    version: str = "1.1",
    host: str = "proxy",
) -> bytes:
    """A whole call, its body with a length; `headers` are lines."""
    lines = [
        f"{method} {path} HTTP/{version}".encode(),
        f"Host: {host}".encode(),
        f"Authorization: Bearer {token}".encode(),
        *headers,
    ]
    if body:
        lines += [b"Content-Type: application/json"] if not any(h.lower().startswith(b"content-type:") for h in headers) else []
        lines += [b"Content-Length: %d" % len(body)]
    return b"\r\n".join(lines) + b"\r\n\r\n" + body


async def until(condition: Callable[[], object], seconds: float = 5.0) -> None:
    """Wait until a condition holds that nothing tells of."""
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.002)


async def event_of(house: House, number: int = 0) -> Event:
    """The event of the call with this number, which may still be on its way."""
    await until(lambda: len(house.events) > number)
    return house.events[number]


def code_of(reply: Answer | None) -> str:
    """The code in an error's body, which must be whole."""
    assert reply is not None and reply.whole, reply
    return str(orjson.loads(reply.body)["error"]["code"])


async def ask(url: str, data: bytes, method: str = "POST") -> Answer | None:
    """Send a call on a connection of its own, read its answer."""
    async with asyncio.timeout(10), connected(url) as connection:
        await connection.send(data)
        return await connection.answer(method)
