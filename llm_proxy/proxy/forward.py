"""A call's way to its provider, with the answer's way back."""

import asyncio
import dataclasses
import time

from llm_proxy.errors import UpstreamError, UpstreamTimeout
from llm_proxy.providers.policy import cors_headers
from llm_proxy.providers.profiles import Timeouts
from llm_proxy.proxy import headers, urls
from llm_proxy.proxy.call import Call, Route, shown
from llm_proxy.proxy.capture import kept_of
from llm_proxy.proxy.counting import begin_counting, settle_usage
from llm_proxy.proxy.reply import Reply
from llm_proxy.proxy.tee import Tee
from llm_proxy.upstream import Answer, Request

KEEPALIVE = b": keep-alive\n\n"
UPSTREAM_REQUEST_IDS = (b"x-request-id", b"request-id")


async def forward(call: Call, route: Route) -> Reply:
    """Send the call to its provider, stream the answer back; returns the reply, which is written.

    Raises:
        ApiError: there is no answer, it broke off, or the call must end; `Reply.started` says if any of it was sent.
        ClientGone: the client left.
    """
    timeouts = _timeouts(call, route)
    call.body.on_error = call.end
    try:
        async with asyncio.timeout(timeouts.total) as call.deadline:
            call.check_ended()
            answer = await _open(call, route, timeouts)
            try:
                await _relay(call, route, answer, timeouts.idle)
            except BaseException:
                answer.abort()
                raise
            answer.close()
    except TimeoutError:
        raise call.end_error or UpstreamTimeout("The call took longer than it may in total.", sent=True) from None
    finally:
        call.deadline = None
    return call.reply


def _timeouts(call: Call, route: Route) -> Timeouts:
    """The profile's timeouts, or what the settings put in their place."""
    timeouts, settings = route.profile.timeouts, call.context.settings
    if settings.request_timeout_secs:
        timeouts = dataclasses.replace(timeouts, first_byte=settings.request_timeout_secs, idle=settings.request_timeout_secs)
    if settings.ttft_timeout_secs and call.wants_stream:
        timeouts = dataclasses.replace(timeouts, first_byte=min(timeouts.first_byte, settings.ttft_timeout_secs))
    return timeouts


async def _open(call: Call, route: Route, timeouts: Timeouts) -> Answer:
    event, began = call.event, time.perf_counter()
    event.attempts += 1
    try:
        with call.waiting():
            answer = await call.context.upstream.open(_request(call, route, timeouts))
    except UpstreamError as error:
        raise call.end_error or error from error
    finally:
        event.connect = call.sent_at - began if call.reached_provider else None
    event.first_byte = time.perf_counter() - call.sent_at
    call.timings += [("connect", call.sent_at - began), ("ttfb", event.first_byte)]
    event.upstream_request_id = shown(headers.first(answer.headers, UPSTREAM_REQUEST_IDS))
    return answer


def _request(call: Call, route: Route, timeouts: Timeouts) -> Request:
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
        timeouts=timeouts,
        trusted=route.base_url == profile.base_url,
        on_sent=call.sent,
    )


async def _relay(call: Call, route: Route, answer: Answer, idle: float) -> None:
    """Stream the answer back through a tee that only watches; the event goes out before the end of the reply does."""
    content_type = headers.first(answer.headers, (b"content-type",)) or ""
    coding = headers.first(answer.headers, (b"content-encoding",)) or ""
    tee = call.tee = Tee(content_type, coding, kept_of(call.context.settings))
    length = headers.first(answer.headers, (b"content-length",))
    call.begin_reply(answer.status, answer.reason, _headers(call, route, answer, tee), int(length) if length else None)
    begin_counting(call, tee)
    if tee.is_event_stream:
        await call.reply.flush_head()
    await _relay_body(call, answer, tee, idle)


async def _relay_body(call: Call, answer: Answer, tee: Tee, idle: float) -> None:
    left = call.reply.length if call.reply.has_body else None
    patience = _until_first_byte(call, tee, idle)
    while chunk := await _next_chunk(call, answer, tee, patience):
        patience = idle
        tee.feed(chunk)
        if left is not None and (left := left - len(chunk)) <= 0:
            break
        with call.waiting():
            await call.reply.write(chunk)
    await _end(call, chunk)


def _until_first_byte(call: Call, tee: Tee, idle: float) -> float:
    """How long the first byte of the body may take: of a stream, no longer than is left of TTFT_TIMEOUT_SECS."""
    limit = call.context.settings.ttft_timeout_secs
    if not (limit and tee.is_event_stream):
        return idle
    return min(idle, max(0.0, limit - (time.perf_counter() - call.sent_at)))


async def _end(call: Call, last: bytes) -> None:
    call.reply.check_client()
    await settle_usage(call)
    call.publish("completed", last=last)
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
    base, host = route.base_url, call.request.headers.get("Host", "")
    us = f"{call.peer.scheme}://{host}" if host else ""
    return headers.to_client(answer.headers, added, lambda url: urls.rewritten(url, base, us))
