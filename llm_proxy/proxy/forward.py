"""A call's way to its provider, with the answer's way back."""

import asyncio
import dataclasses
import time
from collections.abc import Callable

from llm_proxy.errors import UpstreamError, UpstreamTimeout
from llm_proxy.providers.profiles import Timeouts
from llm_proxy.proxy import headers, urls
from llm_proxy.proxy.caching import Turn
from llm_proxy.proxy.call import Call, Route, shown
from llm_proxy.proxy.capture import kept_of
from llm_proxy.proxy.counting import begin_counting, settle_usage
from llm_proxy.proxy.replay import passed_on, replay
from llm_proxy.proxy.reply import Reply
from llm_proxy.proxy.tee import Tee
from llm_proxy.upstream import Answer, Request

KEEPALIVE = b": keep-alive\n\n"
UPSTREAM_REQUEST_IDS = (b"x-request-id", b"request-id")


async def forward(call: Call, route: Route, turn: Turn) -> Reply:
    """Send the call to its provider, stream the answer back; returns the reply, which is written.

    Args:
        turn: what the cache has to do with it: the provider may be asked only whether a stored answer still holds.

    Raises:
        ApiError: there is no answer, it broke off, or the call must end; `Reply.started` says if any of it was sent.
        ClientGone: the client left.
    """
    timeouts = timeouts_of(call, route)
    call.body.on_error = call.end
    try:
        async with asyncio.timeout(timeouts.total) as call.deadline:
            call.check_ended()
            answer = await _open(call, route, turn, timeouts)
            try:
                stored = await turn.confirmed(answer.status, answer.headers)
                await (replay(call, turn, stored) if stored else _relay(call, route, turn, answer, timeouts.idle))
            except BaseException:
                answer.abort()
                raise
            # What stands behind a failure that was not passed on was not read.
            answer.abort() if stored and answer.status != 304 else answer.close()
    except TimeoutError:
        raise call.end_error or UpstreamTimeout("The call took longer than it may in total.", sent=True) from None
    finally:
        call.deadline = None
    return call.reply


def timeouts_of(call: Call, route: Route) -> Timeouts:
    """The profile's timeouts, or what the settings put in their place."""
    timeouts, settings = route.profile.timeouts, call.context.settings
    if settings.request_timeout_secs:
        timeouts = dataclasses.replace(timeouts, first_byte=settings.request_timeout_secs, idle=settings.request_timeout_secs)
    if settings.ttft_timeout_secs and call.wants_stream:
        timeouts = dataclasses.replace(timeouts, first_byte=min(timeouts.first_byte, settings.ttft_timeout_secs))
    return timeouts


async def _open(call: Call, route: Route, turn: Turn, timeouts: Timeouts) -> Answer:
    event, began = call.event, time.perf_counter()
    event.provider, event.provider_type = route.provider.id, route.profile.name
    event.attempts += 1
    try:
        with call.waiting():
            answer = await call.context.upstream.open(request_to(call, route, turn, timeouts, call.sent))
    except UpstreamError as error:
        raise call.end_error or error from error
    finally:
        event.connect = call.sent_at - began if call.reached_provider else None
    event.first_byte = time.perf_counter() - call.sent_at
    call.timings += [("connect", call.sent_at - began), ("ttfb", event.first_byte)]
    event.upstream_request_id = shown(headers.first(answer.headers, UPSTREAM_REQUEST_IDS))
    return answer


def request_to(call: Call, route: Route, turn: Turn, timeouts: Timeouts, on_sent: Callable[[], None]) -> Request:
    """What the provider gets for a call."""
    path, profile = call.target.path, route.profile
    key = route.provider.api_key
    assert key is not None
    sent = headers.to_provider(
        turn.request_headers(call.request.raw_headers),
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
        on_sent=on_sent,
    )


async def _relay(call: Call, route: Route, turn: Turn, answer: Answer, idle: float) -> None:
    """Stream the answer back through a tee that only watches; the event goes out before the end of the reply does."""
    content_type = headers.first(answer.headers, (b"content-type",)) or ""
    coding = headers.first(answer.headers, (b"content-encoding",)) or ""
    tee = call.tee = Tee(content_type, coding, kept_of(call.context.settings))
    length = headers.first(answer.headers, (b"content-length",))
    sent = passed_on(call, [route], answer.headers, _added(call, tee))
    await turn.answered(answer.status, answer.reason, answer.headers, sent)
    call.begin_reply(answer.status, answer.reason, [*sent, *turn.headers()], int(length) if length else None)
    begin_counting(call, tee)
    if tee.is_event_stream:
        await call.reply.flush_head()
    await _relay_body(call, turn, answer, tee, idle)


async def _relay_body(call: Call, turn: Turn, answer: Answer, tee: Tee, idle: float) -> None:
    left = call.reply.length if call.reply.has_body else None
    patience = _until_first_byte(call, tee, idle)
    while chunk := await _next_chunk(call, answer, tee, patience):
        patience = idle
        tee.feed(chunk)
        turn.feed(chunk)
        if left is not None and (left := left - len(chunk)) <= 0:
            break
        with call.waiting():
            await call.reply.write(chunk)
    # A stream that its dialect did not end may have been cut by something that ended the connection neatly.
    if await turn.finish(whole=tee.finished or not (tee.is_event_stream and call.request.method == "POST")):
        call.event.cache = "stored"
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


def _added(call: Call, tee: Tee) -> dict[str, str]:
    return {
        "X-UPSTREAM-REQUEST-START": str(call.sent_ns),
        "X-UPSTREAM-REQUEST-STOP": str(time.time_ns()),
        **({"X-Accel-Buffering": "no"} if tee.is_event_stream else {}),
    }
