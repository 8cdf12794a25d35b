"""An answer from the cache on its way to the client."""

import time
from collections.abc import Iterable, Sequence

from llm_proxy.cache import Entry, Served, rules
from llm_proxy.grammar import RawHeaders
from llm_proxy.providers.policy import cors_headers
from llm_proxy.proxy import headers, urls
from llm_proxy.proxy.caching import Turn
from llm_proxy.proxy.call import Call, Route, shown
from llm_proxy.proxy.capture import captures, kept_of
from llm_proxy.proxy.reply import Reply
from llm_proxy.proxy.tee import Tee

_PROXY = (b"X-Proxy", b"llm-proxy")


async def replay(call: Call, turn: Turn, entry: Entry) -> Reply:
    """Answer with what is stored, at once; returns the reply, which is written.

    Raises:
        ClientGone: the client left.
    """
    served = rules.serve(entry, turn.lookup, time.time())
    sent = [*passed_on(call, turn.routes, served.headers), *turn.headers(entry)]
    body = b"" if served.body is None or call.request.method == "HEAD" else served.body
    call.begin_reply(served.status, served.reason, sent, None if served.body is None else len(served.body))
    call.reply.check_client()
    call.event.cache = turn.status
    if not call.reached_provider:
        call.context.quota.count_hit(call.token)
    if captures(call.context.settings):
        call.replayed = _read(call, served, body)
    call.publish("completed" if call.reached_provider else "cached", last=body)
    await call.reply.end(body)
    return call.reply


def _read(call: Call, served: Served, body: bytes) -> Tee:
    """What the event is to know of the answer; not its usage, which was another call's."""
    content_type = headers.first(served.headers, (b"content-type",)) or ""
    coding = headers.first(served.headers, (b"content-encoding",)) or ""
    tee = Tee(content_type, coding, kept_of(call.context.settings))
    tee.feed(body)
    call.event.model_used, call.event.stream = shown(tee.model), tee.is_event_stream
    return tee


def passed_on(
    call: Call, routes: Sequence[Route], answer: RawHeaders, added: Iterable[tuple[bytes, bytes]] = ()
) -> list[tuple[bytes, bytes]]:
    """The headers of an answer as the client gets them, with the values of this very call.

    Args:
        routes: where the answer may have come from.
        answer: the provider's headers, or those that are stored.
        added: ours, beside those that every answer has.
    """
    ours = [(b"X-Request-ID", call.request_id.encode()), _PROXY]
    if call.correlation_id:
        ours.append((b"X-Correlation-ID", call.correlation_id.encode()))
    ours += added
    said = cors_headers([route.profile for route in routes], call.request.headers.get("Origin", ""))
    ours += [(name.encode(), value.encode()) for name, value in said.items()]
    ours.append((b"Server-Timing", call.server_timing()))
    return headers.to_client(answer, ours, lambda url: _led_back(url, routes, call))


def _led_back(url: str, routes: Sequence[Route], call: Call) -> str:
    host = call.request.headers.get("Host", "")
    us = f"{call.peer.scheme}://{host}" if host else ""
    for route in routes:
        if (ours := urls.rewritten(url, route.base_url, us)) != url:
            return ours
    return url
