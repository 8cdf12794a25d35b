"""A call's way to its provider, with the answer's way back."""

import math
import time

from llm_proxy.errors import UpstreamTimeout
from llm_proxy.proxy.attempts import open_answer
from llm_proxy.proxy.caching import Turn
from llm_proxy.proxy.call import Call, Route
from llm_proxy.proxy.capture import kept_of
from llm_proxy.proxy.counting import begin_counting, settle_usage
from llm_proxy.proxy.outgoing import timeouts_of
from llm_proxy.proxy.replay import passed_on, replay
from llm_proxy.proxy.reply import Reply
from llm_proxy.proxy.tee import Tee
from llm_proxy.upstream import Answer, Take

KEEPALIVE = b": keep-alive\n\n"


async def forward(call: Call, routes: list[Route], turn: Turn) -> Reply:
    """Send the call to a provider, stream its answer back; returns the reply, which is written.

    Args:
        turn: what the cache has to do with it: the provider may be asked only whether a stored answer still holds.

    Raises:
        ApiError: there is no answer, it broke off, or the call must end; `Reply.started` says if any of it was sent.
        ClientGone: the client left.
    """
    try:
        with call.context.deadlines.within(_longest(routes)) as call.deadline:
            call.check_ended()
            route, answer = await open_answer(call, routes, turn)
            try:
                stored = await turn.confirmed(answer.status, answer.headers) if turn.revalidates else None
                await (replay(call, turn, stored) if stored else _relay(call, route, turn, answer))
            finally:
                answer.abort()
    except TimeoutError:
        raise call.end_error or UpstreamTimeout("The call took longer than it may in total.", sent=True) from None
    finally:
        call.deadline = None
    return call.reply


def _longest(routes: list[Route]) -> float:
    """How long the call may take in total, wherever it goes."""
    total = routes[0].profile.timeouts.total
    return total if len(routes) == 1 else max(route.profile.timeouts.total for route in routes)


async def _relay(call: Call, route: Route, turn: Turn, answer: Answer) -> None:
    """Stream the answer back through a tee that only watches; the event goes out before the end of the reply does."""
    said = answer.fields
    content_type, coding = said.get(b"content-type", b""), said.get(b"content-encoding", b"")
    tee = call.tee = Tee(content_type.decode("latin-1"), coding.decode("latin-1"), kept_of(call.context.settings))
    length = said.get(b"content-length")
    sent = passed_on(call, [route], answer.headers, _added(call, tee))
    await turn.answered(answer.status, answer.reason, answer.headers, sent)
    call.begin_reply(answer.status, answer.reason, sent + turn.headers(), int(length) if length else None)
    begin_counting(call, tee)
    if tee.is_event_stream:
        await call.reply.flush_head()
    await _relay_body(call, turn, answer, tee, timeouts_of(call, route.profile).idle)


async def _relay_body(call: Call, turn: Turn, answer: Answer, tee: Tee, idle: float) -> None:
    relay = _flow if call.reply.length is None else _count_down
    last = await relay(call, turn, answer, tee, idle)
    # A stream that its dialect did not end may have been cut by something that ended the connection neatly.
    if turn.captures and await turn.finish(whole=tee.finished or not (tee.is_event_stream and call.request.method == "POST")):
        call.event.cache = "stored"
    await _end(call, last)


async def _count_down(call: Call, turn: Turn, answer: Answer, tee: Tee, idle: float) -> bytes:
    """Pass on a body of known length, but for its last piece, which is returned: the event goes out before that."""
    left = call.reply.length if call.reply.has_body else None
    while True:
        if not (chunk := answer.ready()):
            with call.waiting():
                try:
                    chunk = await answer.chunk(idle)
                except TimeoutError:
                    raise _fell_silent() from None
        if not chunk:
            return b""
        tee.feed(chunk)
        turn.feed(chunk)
        if left is not None and (left := left - len(chunk)) <= 0:
            return chunk
        if call.reply.send(chunk):
            with call.waiting():
                await call.reply.drained()


async def _flow(call: Call, turn: Turn, answer: Answer, tee: Tee, idle: float) -> bytes:
    """Pass on a body that ends when it ends, each piece as it comes, without waking this task for it.

    While the provider is silent, comments keep an event stream's client and its proxies awake.
    """
    reply, take = call.reply, _taker(call, turn, tee)
    patience, keepalive = _until_first_byte(call, tee, idle), _keepalive(call, tee)
    # How long nothing came, and how long nothing was sent.
    silent = quiet = 0.0
    while True:
        sent, pause = reply.sent_bytes, min(keepalive - quiet, patience - silent)
        try:
            with call.waiting():
                if await answer.flow(take, pause):
                    return b""
                await reply.drained()
            pause = 0.0
        except TimeoutError:
            if reply.sent_bytes == sent:
                silent, quiet = silent + pause, quiet + pause
        if reply.sent_bytes > sent:
            patience, silent, quiet = idle, pause, pause
        if silent >= patience:
            raise _fell_silent()
        if quiet >= keepalive:
            quiet = 0.0
            if tee.at_boundary:
                await reply.write(KEEPALIVE)


def _taker(call: Call, turn: Turn, tee: Tee) -> Take:
    """What becomes of each piece of a body that flows."""
    reply, begins_stream, captures = call.reply, tee.is_event_stream, turn.captures

    def take(piece: bytes, chunk: bytes = b"") -> bool:
        nonlocal begins_stream
        began = time.perf_counter()
        if begins_stream:
            begins_stream, call.event.ttft = False, call.elapsed()
        tee.feed(piece)
        if captures:
            turn.feed(piece)
        wants_pause = reply.send(piece, chunk)
        # The task waits meanwhile, but this is our own time.
        call.waited -= time.perf_counter() - began
        return wants_pause

    return take


def _fell_silent() -> UpstreamTimeout:
    return UpstreamTimeout("The provider fell silent in the middle of its answer.", sent=True)


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


def _keepalive(call: Call, tee: Tee) -> float:
    """After how much silence the client gets a comment, where one may be put in."""
    seconds = call.context.settings.sse_keepalive
    return seconds if seconds and tee.is_event_stream and tee.is_uncoded and call.reply.is_chunked else math.inf


def _added(call: Call, tee: Tee) -> list[tuple[bytes, bytes]]:
    added = [(b"X-UPSTREAM-REQUEST-START", b"%d" % call.sent_ns), (b"X-UPSTREAM-REQUEST-STOP", b"%d" % time.time_ns())]
    if tee.is_event_stream:
        added.append((b"X-Accel-Buffering", b"no"))
    return added
