"""A call's way to its provider, with the answer's way back."""

import asyncio
import time
from collections.abc import Callable

from llm_proxy import dialects
from llm_proxy.errors import ApiError, UpstreamError, UpstreamInvalid, UpstreamTimeout
from llm_proxy.providers.policy import cors_headers
from llm_proxy.proxy import headers, urls
from llm_proxy.proxy.call import Call, Route
from llm_proxy.proxy.reply import Reply
from llm_proxy.proxy.tee import Tee
from llm_proxy.upstream import Answer, Request

KEEPALIVE = b": keep-alive\n\n"
UPSTREAM_REQUEST_IDS = (b"x-request-id", b"request-id")


async def forward(call: Call, route: Route) -> Reply:
    """Send the call to its provider, stream the answer back; returns the reply, which is written.

    Raises:
        ApiError: there is no answer, or the call must end, and nothing was sent to the client yet.
        ClientGone: the client left.
    """
    try:
        async with asyncio.timeout(route.profile.timeouts.total) as call.deadline:
            call.check_ended()
            answer = await _open(call, route)
            try:
                await _relay(call, route, answer)
            except BaseException:
                answer.abort()
                raise
            _release(call, answer)
    except TimeoutError:
        await _fail(call, call.end_error or UpstreamTimeout("The call took longer than it may in total.", sent=True))
    except ApiError as error:
        await _fail(call, error)
    finally:
        call.deadline = None
    return call.reply


def _release(call: Call, answer: Answer) -> None:
    """A provider that answered before it had the whole request would take what is left of it for the next one."""
    if call.body.finished:
        answer.close()
    else:
        answer.abort()


async def _fail(call: Call, error: ApiError) -> None:
    """Pass the error on while an answer can still be chosen; else break the reply off, so that it never looks whole."""
    if not call.reply.started:
        raise error
    tee = call.tee
    words = b""
    if tee and tee.is_event_stream and tee.is_uncoded:
        words = b"" if tee.at_boundary else b"\n\n"
        words += dialects.stream_error(error, call.target.path, call.request_id)
    await call.reply.break_off(words)
    call.publish("upstream_incomplete" if isinstance(error, UpstreamError) else call.outcome_of(error), error)


async def _open(call: Call, route: Route) -> Answer:
    event, began = call.event, time.perf_counter()

    def on_sent() -> None:
        call.reached_provider = True
        call.sent_ns = time.time_ns()
        event.connect = time.perf_counter() - began

    event.attempts += 1
    try:
        with call.waiting():
            answer = await call.context.upstream.open(_request(call, route, on_sent))
    except UpstreamError as error:
        raise call.body.error or error from error
    event.first_byte = time.perf_counter() - began - (event.connect or 0.0)
    call.timings += [("connect", event.connect or 0.0), ("ttfb", event.first_byte)]
    event.upstream_request_id = headers.first(answer.headers, UPSTREAM_REQUEST_IDS)
    return answer


def _request(call: Call, route: Route, on_sent: Callable[[], None]) -> Request:
    path, profile = call.target.path, route.profile
    key = route.provider.api_key
    assert key is not None
    sent = headers.to_provider(
        call.request.raw_headers,
        auth=profile.auth_of(path),
        key=key.reveal(),
        defaults=profile.default_headers,
        request_id=call.request_id,
        correlation_id=call.correlation_id,
    )
    query = urls.with_defaults(call.target.query, route.query_defaults(path))
    return Request(
        method=call.request.method,
        url=urls.join(route.base_url, path) + query,
        headers=sent,
        body=call.body.content(),
        length=call.body.length,
        profile=profile,
        trusted=route.base_url == profile.base_url,
        on_sent=on_sent,
    )


async def _relay(call: Call, route: Route, answer: Answer) -> None:
    """Stream the answer back through a tee that only watches; the event goes out before the end of the reply does."""
    content_type = headers.first(answer.headers, (b"content-type",)) or ""
    tee = call.tee = Tee(content_type, headers.first(answer.headers, (b"content-encoding",)) or "")
    length = headers.first(answer.headers, (b"content-length",))
    call.reply.begin(answer.status, answer.reason, _headers(call, route, answer, tee), int(length) if length else None)
    if tee.is_event_stream:
        await call.reply.flush_head()
    await _relay_body(call, route, answer, tee)


async def _relay_body(call: Call, route: Route, answer: Answer, tee: Tee) -> None:
    left = call.reply.length
    first_body_byte = call.context.settings.ttft_timeout_secs if tee.is_event_stream else 0
    idle = min(first_body_byte or route.profile.timeouts.idle, route.profile.timeouts.idle)
    while chunk := await _next_chunk(call, answer, tee, idle):
        idle = route.profile.timeouts.idle
        tee.feed(chunk)
        if left is not None:
            left -= len(chunk)
            if left <= 0:
                return await _end(call, chunk)
        with call.waiting():
            await call.reply.write(chunk)
    if left:
        raise UpstreamInvalid("The provider's answer is shorter than it said.", sent=True)
    await _end(call, b"")


async def _end(call: Call, last: bytes) -> None:
    call.reply.check_client()
    call.reply.sent_bytes += len(last)
    call.publish("completed")
    with call.waiting():
        await call.reply.end(last)


async def _next_chunk(call: Call, answer: Answer, tee: Tee, idle: float) -> bytes:
    """The provider's next bytes; while it is silent, comments keep an event stream's client and its proxies awake."""
    keepalive = call.context.settings.sse_keepalive
    if not (tee.is_event_stream and tee.is_uncoded and call.reply.is_chunked and keepalive):
        keepalive = idle
    silent = 0.0
    with call.waiting():
        while True:
            pause = min(keepalive, idle - silent)
            try:
                async with asyncio.timeout(pause):
                    return await answer.chunk()
            except TimeoutError:
                silent += pause
            if silent >= idle:
                raise UpstreamTimeout("The provider fell silent in the middle of its answer.", sent=True)
            if tee.at_boundary:
                await call.reply.write(KEEPALIVE)


def _headers(call: Call, route: Route, answer: Answer, tee: Tee) -> list[tuple[bytes, bytes]]:
    ours = {
        "X-Request-ID": call.request_id,
        "X-Proxy": "llm-proxy",
        "X-UPSTREAM-REQUEST-START": str(call.sent_ns),
        "X-UPSTREAM-REQUEST-STOP": str(time.time_ns()),
        **({"X-Correlation-ID": call.correlation_id} if call.correlation_id else {}),
        **({"X-Accel-Buffering": "no"} if tee.is_event_stream else {}),
        **cors_headers([route.profile], call.request.headers.get("Origin", "")),
    }
    added = [(name.encode(), value.encode()) for name, value in ours.items()]
    added.append((b"Server-Timing", call.server_timing()))
    base, us = route.base_url, f"{call.peer.scheme}://{call.request.headers.get('Host', '')}"
    return headers.to_client(answer.headers, added, lambda url: urls.rewritten(url, base, us))
