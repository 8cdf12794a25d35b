"""Streams that keep an open page up to date (server-sent events, HTML Living Standard section 9.2)."""

import asyncio
import contextlib
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Generic, TypeVar

import orjson
from aiohttp import web

from llm_proxy.admin.visits import Visit
from llm_proxy.errors import DatabaseUnavailable

# A message at least this often, so that a stream notices within it that it should end.
TICK_SECONDS = 0.5
# Proxies on the way close what stays silent; a session that ended is noticed as often.
KEEP_ALIVE_SECONDS = 15.0
# How long a page may take nothing: one on a machine that was put to sleep would hold up the stop of the process.
PATIENCE_SECONDS = 15.0

Key = TypeVar("Key")
Value = TypeVar("Value")

NOTHING: Mapping[str, object] = {}
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


class Shared(Generic[Key, Value]):
    """Makes once what many streams show; while nobody asks, nothing is made.

    Args:
        make: makes what is shown under a key; what it raises reaches who asked.
        seconds: for how long that is shown.
    """

    def __init__(self, make: Callable[[Key], Awaitable[Value]], seconds: float) -> None:
        self._make = make
        self._seconds = seconds
        self._made: dict[Key, tuple[float, Value]] = {}
        self._making: dict[Key, asyncio.Lock] = {}

    async def get(self, key: Key) -> Value:
        """What was made last, or, when that has become too old, a new one."""
        async with self._making.setdefault(key, asyncio.Lock()):
            made = self._made.get(key)
            if made is None or time.monotonic() - made[0] >= self._seconds:
                value = await self._make(key)
                # Its age counts from here: what is slow to make would be old at once, and be made anew for each who waited.
                made = self._made[key] = (time.monotonic(), value)
            return made[1]


Parts = Mapping[str, str]


async def parts(latest: Callable[[], Awaitable[Parts]]) -> AsyncGenerator[Mapping[str, object], None]:
    """Messages for `stream` with what has changed of the parts of a page, by their ids."""
    shown: Parts = {}
    while True:
        now = await latest()
        yield {id: html for id, html in now.items() if shown.get(id) != html} if now is not shown else NOTHING
        shown = now
        await asyncio.sleep(TICK_SECONDS)


async def stream(visit: Visit, messages: AsyncGenerator[Mapping[str, object], None]) -> web.StreamResponse:
    """Send messages to the page until it is closed, its session ends, or the process stops.

    Args:
        messages: each becomes one event with JSON; `NOTHING`, at the latest after `TICK_SECONDS`, when there is none yet.
    """
    response = web.StreamResponse(headers=HEADERS)
    await response.prepare(visit.request)
    looked_at = time.monotonic()
    with contextlib.suppress(ConnectionError):
        async with contextlib.aclosing(messages) as each:
            async for message in each:
                if visit.context.stopping or visit.request.transport is None:
                    break
                if message:
                    await _write(visit, response, b"data: " + orjson.dumps(message) + b"\n\n")
                if time.monotonic() - looked_at >= KEEP_ALIVE_SECONDS:
                    looked_at = time.monotonic()
                    if not await _lasts(visit):
                        break
                    await _write(visit, response, b": still here\n\n")
    return response


async def _write(visit: Visit, response: web.StreamResponse, data: bytes) -> None:
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await response.write(data)
    except TimeoutError:
        if transport := visit.request.transport:
            # What it has not taken would hold up the end of the answer too.
            transport.abort()
        raise ConnectionResetError from None


async def _lasts(visit: Visit) -> bool:
    """Whether the session goes on; so it does while the database is away, which ends no session."""
    try:
        return await visit.context.sessions.find(visit.id) is not None
    except DatabaseUnavailable:
        return True
