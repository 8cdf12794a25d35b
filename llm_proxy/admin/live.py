"""Streams that keep an open page up to date (server-sent events, HTML Living Standard section 9.2)."""

import contextlib
import time
from collections.abc import AsyncGenerator, Mapping

import orjson
from aiohttp import web

from llm_proxy.admin.visits import Visit

# A message at least this often, so that a stream notices within it that it should end.
TICK_SECONDS = 0.5
# Proxies on the way close what stays silent; a session that ended is noticed as often.
KEEP_ALIVE_SECONDS = 15.0

NOTHING: Mapping[str, object] = {}
HEADERS = {"Content-Type": "text/event-stream; charset=utf-8", "X-Accel-Buffering": "no"}


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
                    await response.write(b"data: " + orjson.dumps(message) + b"\n\n")
                if time.monotonic() - looked_at >= KEEP_ALIVE_SECONDS:
                    looked_at = time.monotonic()
                    if await visit.context.sessions.find(visit.id) is None:
                        break
                    await response.write(b": still here\n\n")
    return response
