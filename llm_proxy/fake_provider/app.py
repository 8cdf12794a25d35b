"""The fake provider as an application, served while a block runs."""

import asyncio
import itertools
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any

import orjson
from aiohttp import web

from llm_proxy.fake_provider.calls import find_route, read_call
from llm_proxy.fake_provider.faults import NO_FAULTS, Body, Faults, disturbed, read_faults
from llm_proxy.fake_provider.refusals import Refused, error_body
from llm_proxy.fake_provider.replies import ENDPOINTS, frames

BODY_PIECE = 64
LARGEST_BODY = 64 * 2**20
LONGEST_LINE = 64 * 2**10


class _Provider:
    def __init__(self, key: str | None, faults: Faults) -> None:
        self._key = key
        self._faults = faults
        self._calls = itertools.count(1)

    async def handle(self, request: web.Request) -> web.StreamResponse:
        name, model = find_route(request.path)
        anthropic = name.startswith("messages")
        request_id = f"req_fake_{next(self._calls):06}"
        status, faults, headers = 200, self._faults, {"request-id" if anthropic else "x-request-id": request_id}
        try:
            faults = read_faults(request.headers, faults)
            body = await self._answer(request, name, model, faults)
        except Refused as refused:
            status, body = refused.status, error_body(refused, anthropic, request_id)
            if faults.retry_after:
                headers["Retry-After"] = faults.retry_after
        headers["Content-Type"] = "application/json" if isinstance(body, bytes) else "text/event-stream; charset=utf-8"
        if faults.delay:
            await asyncio.sleep(faults.delay)
        body = disturbed(body, faults, request.headers, headers)
        if isinstance(body, bytes) and faults.cut is None and faults.stall is None:
            return web.Response(status=status, headers=headers, body=body)
        return await _send(request, web.StreamResponse(status=status, headers=headers), body, faults)

    async def _answer(self, request: web.Request, name: str, model: str, faults: Faults) -> Body:
        endpoint = ENDPOINTS.get(f"{request.method} {name}")
        raw = await (request.read() if endpoint else _describe(request))
        if self._key is not None and not _carries(request.headers, self._key):
            raise Refused(401, "The API key of this request is missing or wrong.")
        if faults.status:
            raise Refused(faults.status, f"The fake provider was asked to fail with status {faults.status}.")
        if endpoint is None:
            return raw
        call = read_call(raw, model, endpoint.needs_model, faults.words)
        if endpoint.events and call.body.get("stream") is True:
            return frames(endpoint.events(call), endpoint.named)
        return orjson.dumps(endpoint.reply(call))


def _carries(headers: Mapping[str, str], key: str) -> bool:
    # All that are sent must be right, so that a proxy which leaks its client's token beside the key is found out.
    sent = [headers[name] for name in ("x-api-key", "api-key") if name in headers]
    sent += [headers["Authorization"].removeprefix("Bearer ")] if "Authorization" in headers else []
    return set(sent) == {key}


async def _describe(request: web.Request) -> bytes:
    size = 0
    async for chunk in request.content.iter_any():
        size += len(chunk)
    place = {"method": request.method, "path": request.rel_url.raw_path, "query": request.rel_url.raw_query_string}
    return orjson.dumps({**place, "content_type": request.headers.get("Content-Type", ""), "bytes": size})


async def _send(request: web.Request, response: web.StreamResponse, body: Body, faults: Faults) -> web.StreamResponse:
    limit = min((n for n in (faults.cut, faults.stall) if n is not None), default=None)
    if faults.cut != 0:
        if isinstance(body, bytes):
            # The last piece stays here, or a body of known length would be whole before the cut.
            response.content_length = len(body)
            body = iter([body[at : at + BODY_PIECE] for at in range(0, len(body) - BODY_PIECE, BODY_PIECE)])
        await response.prepare(request)
        for number, chunk in enumerate(itertools.islice(body, limit)):
            if number and faults.drip:
                await asyncio.sleep(faults.drip)
            await response.write(chunk)
    if limit is not None and limit != faults.cut:
        await asyncio.Event().wait()
    if limit is not None and request.transport is not None:
        # Closing sends what was written before the end comes without its terminator; aborting might lose it.
        request.transport.close()
    return response


def create_app(*, require_key: str | None = None, faults: Faults = NO_FAULTS) -> web.Application:
    """The fake provider as an application.

    Args:
        require_key: the only credential that is accepted; None accepts every request.
        faults: what goes wrong with each request that does not ask for something else.
    """
    app = web.Application(client_max_size=LARGEST_BODY)
    app.router.add_route("*", "/{path:.*}", _Provider(require_key, faults).handle)
    return app


@asynccontextmanager
async def running(host: str = "127.0.0.1", port: int = 0, **options: Any) -> AsyncIterator[str]:
    """Serve `create_app(**options)` at the address that it yields; calls that run at the end are cut a moment later."""
    runner = web.AppRunner(
        create_app(**options),
        handler_cancellation=True,
        access_log=None,
        auto_decompress=False,
        shutdown_timeout=0.05,
        max_line_size=LONGEST_LINE,
        max_field_size=LONGEST_LINE,
    )
    await runner.setup()
    try:
        await web.TCPSite(runner, host, port, backlog=1024).start()
        address, bound = runner.addresses[0][:2]
        yield f"http://[{address}]:{bound}" if ":" in address else f"http://{address}:{bound}"
    finally:
        await runner.cleanup()
