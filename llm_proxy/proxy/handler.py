"""The life of a call, in one function."""

import contextlib
import logging
import time
from collections.abc import Mapping
from typing import NamedTuple

from aiohttp import HttpVersion11

from llm_proxy import dialects
from llm_proxy.audit import Who, event_of
from llm_proxy.context import Context
from llm_proxy.errors import ApiError, ClientGone, UpstreamError
from llm_proxy.grammar import check_head, read_target
from llm_proxy.heads import Head
from llm_proxy.inbound import Inbound
from llm_proxy.logs import request_ids
from llm_proxy.middleware import peer_of_request
from llm_proxy.providers import Provider, policy, routing
from llm_proxy.providers.mapping import without_suffix
from llm_proxy.providers.profiles import Profile
from llm_proxy.proxy.body import check_length, is_read_whole, read_body
from llm_proxy.proxy.caching import Turn
from llm_proxy.proxy.call import Call, Route, shown
from llm_proxy.proxy.counting import asks_for_usage
from llm_proxy.proxy.credentials import presented_token
from llm_proxy.proxy.forward import forward
from llm_proxy.proxy.models import asks_for_models, models_of
from llm_proxy.proxy.refresh import refresh
from llm_proxy.proxy.replay import passed_on, replay
from llm_proxy.proxy.reply import Reply
from llm_proxy.token_cache import Presented
from llm_proxy.tokens import Token

log = logging.getLogger(__name__)

# Refusals of a credential: these are audited.
CREDENTIAL_CODES = frozenset({"invalid_token", "token_expired", "token_inactive", "project_inactive", "too_many_failures"})


async def handle(context: Context, request: Inbound) -> Reply:
    """Serve one call from its head to its event; a step returns, or raises what the client is told."""
    call = Call(context, request, peer_of_request(context, request))
    request_ids.set((call.request_id, call.correlation_id))
    context.active += 1
    try:
        read_head(call)
        check_room(call)
        if is_preflight(call):
            return await answer_preflight(call)
        call.recognise(await authenticate(call))
        routes = await admit_head(call)
        await take_limits(call)
        answer_expectation(call)
        routes = await admit_body(call, routes)
        await take_request(call)
        if asks_for_models(call, routes):
            return await answer_models(call, routes)
        return await respond(call, routes)
    except ApiError as error:
        # Or the call would wait for the garbage collector where a frame that the error came through holds the error.
        error.__traceback__ = None
        return await tell(call, error)
    except ClientGone:
        return call.reply
    except Exception:
        log.exception("a call failed by a mistake of this program")
        return await tell(call, ApiError("internal_error", "Something went wrong here. The log has it under this request id."))
    finally:
        context.active -= 1
        call.publish("aborted_by_shutdown" if context.stopping else "client_gone")
        call.settle()


def read_head(call: Call) -> None:
    """Check method, target and headers; after a head that is doubtful, nothing more is read from its connection."""
    head, keep_alive = call.request.head, call.reply.keep_alive
    if head.target is None:
        call.reply.keep_alive = False
        check_head(head.method, head.version, head.raw_headers)
        host = head.headers.get("Host", "")
        head.target = read_target(head.method, head.raw_path, host, call.context.settings.allowed_hosts)
        call.reply.keep_alive = keep_alive
    call.target = head.target


def check_room(call: Call) -> None:
    """Keep the calls in flight within what this process may hold; the call itself is already counted."""
    if call.context.active > call.context.settings.max_concurrent_requests:
        raise ApiError("overloaded", "Too many calls are in flight here. Try again shortly.")


def is_preflight(call: Call) -> bool:
    """Whether a browser asks if it may call; it sends no token with that."""
    return call.request.method == "OPTIONS" and ("Origin" in call.request.headers or call.target.path == "*")


async def answer_preflight(call: Call) -> Reply:
    """204, with what is allowed from that origin."""
    headers = call.request.headers
    allowed = policy.preflight(
        call.context.profiles.apis.values(),
        headers.get("Origin", ""),
        requested_headers=headers.get("Access-Control-Request-Headers", ""),
    )
    return await answer(call, 204, {"X-Request-ID": call.request_id, **allowed}, b"", "completed")


def _presented(head: Head) -> Presented:
    return Presented.of(presented_token(head.raw_headers))


async def authenticate(call: Call) -> Token:
    """The token of the call, mostly without the database; not even looked up where too many were unknown before."""
    context, address, began = call.context, call.peer.address, time.perf_counter()
    refusal = context.strangers.refusal(address)
    try:
        presented = call.request.head.recall(_presented)
        if refusal and not context.tokens.has_served(presented):
            raise refusal
        token = context.tokens.known(presented) or await context.tokens.look_up(presented)
    except ApiError as error:
        if error.code != "invalid_token":
            raise
        if refusal:
            raise refusal from error
        context.strangers.count(address)
        raise
    call.timed("auth", began)
    return token


class Choice(NamedTuple):
    """The routes that a head was admitted to, as long as providers and profiles are the same."""

    providers: list[Provider]
    apis: Mapping[str, Profile]
    routes: list[Route]
    endpoint: str | None


async def admit_head(call: Call) -> list[Route]:
    """The providers whose profile lets method, path, origin and headers through."""
    head, apis = call.request.head, call.context.profiles.apis
    providers = await call.context.providers.of_project(call.token.project_id)
    chosen: Choice | None = head.choice
    if chosen and chosen.providers is providers and chosen.apis is apis:
        call.event.endpoint = chosen.endpoint
        return chosen.routes
    routes = [Route(provider, apis[provider.provider_type]) for provider in providers if provider.provider_type in apis]
    if not routes:
        raise ApiError(
            "model_not_found", "The project of this token has no usable provider. Its operator must add an API key to it."
        )
    routes = admitted(call, routes)
    call.event.endpoint = routes[0].profile.at(call.target.path).endpoint
    head.choice = Choice(providers, apis, routes, call.event.endpoint)
    return routes


def admitted(call: Call, routes: list[Route], parameters: dict[str, object] | None = None) -> list[Route]:
    """The routes whose profile lets the call through, at least one; without parameters, as far as its head says."""
    profiles = [route.profile for route in routes]
    through = policy.admit(profiles, call.request.method, call.target.path, call.request.headers, parameters)
    return routes if len(through) == len(routes) else [route for route in routes if route.profile in through]


def answer_expectation(call: Call) -> None:
    """Ask for the body of a client that waits to hear that it is wanted (RFC 9110 section 10.1.1)."""
    check_length(call.request, call.context.settings.max_request_bytes)
    expectation = call.request.headers.get("Expect")
    if expectation is None or call.request.version < HttpVersion11:
        return
    if expectation.lower() != "100-continue":
        raise ApiError("expectation_failed", "The only expectation served is 100-continue.")
    call.reply.ask_for_body()


async def admit_body(call: Call, routes: list[Route]) -> list[Route]:
    """Read the body as far as rules and routing need it; what is left of the providers once it is known."""
    request, suffix = call.request, call.context.settings.provider_suffix
    limited = bool(call.token.allowed_models)
    restricted = limited or bool(suffix)
    for route in routes:
        limited |= bool(route.profile.param_whitelist)
        restricted |= limited or not route.mapping.serves_all
    if restricted and request.can_read_body and request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError("encoded_body", "This call's parameters must be read. Send the body without Content-Encoding.")
    needed = limited or policy.needs_model(request.method, call.target.path)
    with call.waiting():
        call.body = await read_body(request, call.context.settings.max_request_bytes, restricted=restricted, needed=needed)
    parameters = read_parameters(call, strict=restricted) or {}
    call.wants_stream = parameters.get("stream") is True
    call.wants_usage = asks_for_usage(parameters)
    call.model = policy.model_of(call.target.path, parameters)
    call.event.model = shown(call.model)
    if limited:
        if suffix and isinstance(model := parameters.get("model"), str):
            parameters = {**parameters, "model": without_suffix(model, suffix)}
        routes = admitted(call, routes, parameters)
    return admit_model(call, routes)


def admit_model(call: Call, routes: list[Route]) -> list[Route]:
    """The providers that serve the model, each with its own name for it."""
    model = call.model and without_suffix(call.model, call.context.settings.provider_suffix)
    required = policy.needs_model(call.request.method, call.target.path)
    policy.check_model(call.token.allowed_models, model, required=required)
    serving = [Route(route.provider, route.profile, name) for route, name in routing.serving(routes, model)]
    if not serving:
        raise ApiError("model_not_found", "No provider of this token serves the model. GET /v1/models lists what is served.")
    return serving


def read_parameters(call: Call, *, strict: bool) -> dict[str, object] | None:
    """The top-level parameters of the body, where they are at hand."""
    if call.body.scanner:
        return {"model": call.body.scanner.model} if call.body.scanner.model else None
    content_type = call.request.headers.get("Content-Type", "")
    if strict or is_read_whole(content_type):
        return policy.read_object(call.body.held, content_type, strict=strict)
    return None


async def take_limits(call: Call) -> None:
    """Take from rates and slots at once, before the body is waited for: a call that reads its body runs already."""
    began = time.perf_counter()
    await call.take_limits()
    call.timed("limit", began)


async def take_request(call: Call) -> None:
    """Take from the quota; refused, the rates and slots go back too, as they do for all that was refused before."""
    began = time.perf_counter()
    await call.take_request()
    call.timed("limit", began)


async def answer_models(call: Call, routes: list[Route]) -> Reply:
    """200, with what the token may call."""
    with call.waiting():
        body = await models_of(call, routes)
    call.begin_reply(200, "", passed_on(call, routes, [(b"Content-Type", b"application/json")], {}), len(body))
    body = body if call.reply.has_body else b""
    call.publish("completed", last=body)
    await call.reply.end(body)
    return call.reply


async def respond(call: Call, routes: list[Route]) -> Reply:
    """Answer from the cache where HTTP allows it, else from a provider."""
    turn = Turn(call, routes)
    try:
        began = time.perf_counter()
        if turn.is_asked:
            await turn.decide()
        call.timed("cache", began)
        # Limits and cache may have taken a while, in which the call's permission went.
        call.check_ended()
        if stored := turn.entry:
            if turn.wants_refresh:
                refresh(call, routes, turn)
            return await replay(call, turn, stored)
        return await forward(call, routes, turn)
    except UpstreamError:
        if not call.reply.started and (stored := turn.instead_of(None)):
            return await replay(call, turn, stored)
        raise
    finally:
        turn.close()


async def tell(call: Call, error: ApiError) -> Reply:
    """Answer with the error while an answer can still be chosen; else break the reply off, so that it never looks whole."""
    if not call.reply.started:
        return await refuse(call, error)
    call.publish(call.outcome_of(error), error)
    words, tee = b"", call.tee
    if tee and tee.is_event_stream and tee.is_uncoded:
        words = b"" if tee.at_boundary else b"\n\n"
        words += dialects.stream_error(error, call.target.path, call.request_id)
    call.reply.break_off(words)
    return call.reply


async def refuse(call: Call, error: ApiError) -> Reply:
    """Answer with an error, in the dialect of the path."""
    if error.code in CREDENTIAL_CODES:
        audit_refusal(call, error)
    call.give_back_limits()
    await call.look_at_limits()
    if "Expect" in call.request.headers and not call.reply.asked_for_body:
        # The client may or may not send its body now; only a closed connection leaves no doubt where the next request begins.
        call.reply.keep_alive = False
    origin = call.request.headers.get("Origin", "")
    headers = {
        **dialects.error_headers(error, call.request_id),
        **({"X-Correlation-ID": call.correlation_id} if call.correlation_id else {}),
        **policy.cors_headers(call.context.profiles.apis.values(), origin),
    }
    body = dialects.error_body(error, call.target.path, call.request_id)
    return await answer(call, error.status, headers, body, call.outcome_of(error), error)


async def answer(
    call: Call, status: int, headers: dict[str, str], body: bytes, outcome: str, error: ApiError | None = None
) -> Reply:
    """Send an answer of our own, its event first."""
    raw = [(name.encode(), value.encode()) for name, value in headers.items()]
    call.begin_reply(status, "", raw, len(body))
    call.publish(outcome, error, last=body)
    with contextlib.suppress(ClientGone):
        await call.reply.end(body)
    return call.reply


def audit_refusal(call: Call, error: ApiError) -> None:
    """Refused credentials are audited, one a minute of a token, or of an address, and code."""
    event = call.event
    actor = f"token {event.token_id}" if event.token_id else "unknown"
    who = Who(actor, event.client_ip, event.method, event.path, event.user_agent, call.request_id, call.correlation_id)
    facts = {"outcome": "denied", "reason": error.code, "token_id": event.token_id, "project_id": event.project_id}
    call.context.audit.append_sampled(event_of(who, "call.refuse", **facts), event.token_id or event.client_ip or "")
