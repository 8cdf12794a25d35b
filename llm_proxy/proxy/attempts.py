"""A call's attempts at one provider after the other, until one takes it on."""

import contextlib
import dataclasses
import time

from llm_proxy.errors import UpstreamError, UpstreamResting, UpstreamTimeout
from llm_proxy.providers import routing
from llm_proxy.providers.breaker import Attempt, Breaker
from llm_proxy.providers.profiles import Timeouts
from llm_proxy.providers.retries import Circumstances, Failure, may_try_another
from llm_proxy.proxy import headers
from llm_proxy.proxy.caching import Turn
from llm_proxy.proxy.call import Call, Route, shown
from llm_proxy.proxy.outgoing import renames, request_to, timeouts_of
from llm_proxy.proxy.renamed import with_clients_name
from llm_proxy.upstream import Answer, Request, Upstream

Place = contextlib.AbstractContextManager[None]
UPSTREAM_REQUEST_IDS = frozenset({b"x-request-id", b"request-id"})
NO_RETRY: Place = contextlib.nullcontext()


class Candidates:
    """The providers that a call may go to, those that were tried left out."""

    def __init__(self, call: Call, routes: list[Route]) -> None:
        body = call.body.held if call.body.rest is None else b""
        self._call = call
        self.sticky = len(routes) > 1 and routing.is_sticky(call.request.method, call.target.path, body)
        self._routes = [routing.fixed(routes) or routes[0]] if self.sticky else routes
        self.tried: list[str] = []

    def breaker(self, route: Route) -> Breaker:
        """What is known of the route's provider."""
        return self._call.context.breakers.of(route.provider)

    def first(self) -> Route:
        """Where the call goes.

        Raises:
            UpstreamResting: every breaker is open.
        """
        if len(self._routes) == 1 and self.breaker(self._routes[0]).admits():
            return self._routes[0]
        chosen = self.admitted() or routing.choose(self._routes, lambda route: self.breaker(route).answers)
        if chosen is None:
            raise UpstreamResting(min(self.breaker(route).retry_after for route in self._routes))
        return chosen

    def admitted(self) -> Route | None:
        """Where the call goes first, if any breaker lets it through."""
        return routing.choose(self._routes, lambda route: self.breaker(route).admits())

    def following(self) -> Route | None:
        """Where it goes next; None when nobody is left."""
        return routing.choose(self._routes, lambda route: self.breaker(route).admits(), self.tried)


async def open_answer(call: Call, routes: list[Route], turn: Turn) -> tuple[Route, Answer]:
    """The answer of the provider that took the call on; of the last one that was asked, when none did.

    Raises:
        UpstreamError: the last one gave no answer, or every breaker is open.
    """
    candidates = Candidates(call, routes)
    route, retry = candidates.first(), NO_RETRY
    timeouts = timeouts_of(call, route.profile)
    until = time.monotonic() + timeouts.first_byte
    while True:
        began = time.perf_counter()
        with retry, candidates.breaker(route).begin() as attempt:
            outcome = await _attempt(call, route, turn, attempt, timeouts)
        candidates.tried.append(route.id)
        failure = _failure(outcome)
        following = _next(call, candidates, failure, until) if failure else None
        if following is None:
            if isinstance(outcome, UpstreamError):
                raise outcome
            return route, _as_asked(call, route, outcome, time.perf_counter() - began)
        _note(call, route, outcome, time.perf_counter() - began)
        if not isinstance(outcome, UpstreamError):
            outcome.abort()
        route, retry = following
        timeouts = _within(timeouts_of(call, route.profile), until - time.monotonic())


async def _attempt(call: Call, route: Route, turn: Turn, attempt: Attempt, timeouts: Timeouts) -> Answer | UpstreamError:
    event, began = call.event, time.perf_counter()
    is_first = not event.attempts
    event.provider, event.provider_type, event.model_used = route.id, route.profile.name, None
    event.first_byte = event.upstream_request_id = None
    event.attempts += 1
    call.sent_at = 0.0
    try:
        with call.waiting():
            answer = await call.context.upstream.open(request_to(call, route, turn, timeouts, call.sent))
    except UpstreamError as error:
        if call.end_error:
            raise call.end_error from error
        # What the attempts before left of the time may have been too little for a provider that works.
        if is_first or not isinstance(error, UpstreamTimeout):
            attempt.failed(error.message)
        return error
    finally:
        event.connect = call.sent_at - began if call.sent_at else None
    _learn(attempt, answer)
    event.first_byte = time.perf_counter() - call.sent_at
    event.upstream_request_id = _request_id(answer)
    return answer


def _learn(attempt: Attempt, answer: Answer) -> None:
    attempt.answered(answer.status, answer.fields.get(b"retry-after", b"").decode("latin-1") if answer.status == 429 else "")


def _request_id(answer: Answer) -> str | None:
    """The provider's own id of the call."""
    if UPSTREAM_REQUEST_IDS.isdisjoint(answer.fields):
        return None
    return shown(headers.first(answer.headers, UPSTREAM_REQUEST_IDS))


async def open_once(upstream: Upstream, request: Request, attempt: Attempt) -> Answer:
    """The answer to a request that no client waits for; what its outcome says of the provider is kept.

    Raises:
        UpstreamError: there is none.
    """
    try:
        answer = await upstream.open(request)
    except UpstreamError as error:
        attempt.failed(error.message)
        raise
    _learn(attempt, answer)
    return answer


def _within(timeouts: Timeouts, left: float) -> Timeouts:
    """The timeouts of a further attempt: all of them together have one first-byte deadline."""
    left = max(0.001, left)
    return dataclasses.replace(timeouts, connect=min(timeouts.connect, left), first_byte=min(timeouts.first_byte, left))


def _as_asked(call: Call, route: Route, answer: Answer, duration: float) -> Answer:
    """The answer that the client gets, under the name of the model that it used."""
    first_byte = call.event.first_byte or 0.0
    call.took("connect", duration - first_byte)
    call.took("ttfb", first_byte)
    if not renames(call, route):
        return answer
    call.event.model_used = shown(route.model)
    return with_clients_name(answer, route.model or "", call.model or "")


def _failure(outcome: Answer | UpstreamError) -> Failure | None:
    """What stands against an outcome; None when it is the provider's word on the call."""
    if isinstance(outcome, UpstreamError):
        return Failure(sent=outcome.sent)
    if outcome.status < 400:
        return None
    asks = outcome.fields.get(b"x-should-retry", b"").lower() == b"true"
    return Failure(sent=True, status=outcome.status, should_retry=asks)


def _next(call: Call, candidates: Candidates, failure: Failure, until: float) -> tuple[Route, Place] | None:
    """Where the call goes after a failure, with its place among the retries in flight; None when it ends here."""
    circumstances = Circumstances(
        whole_body=call.body.rest is None,
        reply_started=call.reply.started,
        idempotency_key="Idempotency-Key" in call.request.headers,
        sticky=candidates.sticky,
        tried=len(candidates.tried),
        most=call.context.settings.upstream_max_attempts,
        seconds_left=until - time.monotonic(),
    )
    if not may_try_another(failure, circumstances):
        return None
    following = candidates.following()
    place = call.context.retries.take(failure) if following else None
    return (following, place) if following and place else None


def _note(call: Call, route: Route, outcome: Answer | UpstreamError, duration: float) -> None:
    """The event lists what failed; it is also a part of Server-Timing."""
    status, code = (None, outcome.code) if isinstance(outcome, UpstreamError) else (outcome.status, None)
    call.event.failed_attempts.append({"provider": route.id, "status": status, "code": code, "duration": duration})
    call.took("failed", duration)
