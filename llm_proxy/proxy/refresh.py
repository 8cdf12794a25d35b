"""A stale answer, fetched anew while it still answers (RFC 5861 section 3)."""

import asyncio
import logging

from llm_proxy.errors import UpstreamError
from llm_proxy.providers.breaker import Attempt
from llm_proxy.proxy.attempts import Candidates, open_once
from llm_proxy.proxy.caching import Turn
from llm_proxy.proxy.call import Call, Route
from llm_proxy.proxy.outgoing import renames, request_to, timeouts_of
from llm_proxy.proxy.renamed import with_clients_name
from llm_proxy.upstream import Answer

log = logging.getLogger(__name__)


def refresh(call: Call, routes: list[Route], turn: Turn) -> None:
    """Begin to fetch anew what the call is answered with, unless that is under way; the call does not wait for it."""
    candidates = Candidates(call, routes)
    route = candidates.admitted()
    if route and (fetch := turn.behind_the_call()):
        attempt = candidates.breaker(route).begin()
        call.context.tasks.start("refresh of a stored answer", _refresh(call, route, attempt, fetch))


async def _refresh(call: Call, route: Route, attempt: Attempt, turn: Turn) -> None:
    timeouts = timeouts_of(call, route.profile)
    try:
        async with asyncio.timeout(timeouts.total):
            with attempt:
                answer = await open_once(call.context.upstream, request_to(call, route, turn, timeouts, lambda: None), attempt)
            if renames(call, route):
                answer = with_clients_name(answer, route.model or "", call.model or "")
            try:
                await _take(answer, turn, timeouts.idle)
            finally:
                # Read to its end or not, as when it is of no use.
                answer.abort()
    except (UpstreamError, TimeoutError) as error:
        log.info("a stored answer could not be fetched anew, and goes on as long as its terms allow: %s", error)
    finally:
        turn.close()


async def _take(answer: Answer, turn: Turn, idle: float) -> None:
    if await turn.confirmed(answer.status, answer.headers):
        return
    await turn.answered(answer.status, answer.reason, answer.headers, ())
    while turn.captures:
        async with asyncio.timeout(idle):
            chunk = await answer.chunk()
        if not chunk:
            await turn.finish(whole=True)
            return
        turn.feed(chunk)
