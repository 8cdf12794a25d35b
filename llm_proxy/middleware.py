"""What is equal for every route of our own: request id, log line, errors as answers."""

import logging
import time
from collections.abc import Awaitable, Callable

import orjson
from aiohttp import HttpVersion11, web

from llm_proxy import dialects
from llm_proxy.audit import Who, event_of
from llm_proxy.context import Context
from llm_proxy.errors import ApiError
from llm_proxy.ids import new_id, valid_request_id
from llm_proxy.inbound import Inbound
from llm_proxy.logs import request_ids
from llm_proxy.peers import Peer, peer_of
from llm_proxy.secret import redact

log = logging.getLogger(__name__)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]

CONTEXT = web.AppKey("context", Context)
PEER = web.RequestKey("peer", Peer)
IDS = web.RequestKey("ids", tuple[str, str | None])
# How a site shows an error to a person; it returns None where the request is not a person's.
SHOW_ERROR: web.AppKey[Callable[[web.Request, ApiError], web.Response | None]] = web.AppKey("show_error")
# Asked every few seconds by machines; a line each would bury the rest of the log.
QUIET = frozenset({"/health", "/live", "/ready", "/metrics", "/metrics/prometheus"})
# Who answers is nobody's clue to what is installed here.
ALWAYS = {"X-Content-Type-Options": "nosniff", "Server": "llm-proxy"}


def peer_of_request(context: Context, request: web.BaseRequest | Inbound) -> Peer:
    """Who sent a request, seen through the proxies that the settings trust."""
    if not context.trusted_proxies:
        return Peer(request.remote or "", request.scheme)
    return peer_of(
        request.remote or "",
        request.scheme,
        # Some proxies add a line of their own behind the client's.
        ", ".join(request.headers.getall("X-Forwarded-For", ())),
        ", ".join(request.headers.getall("X-Forwarded-Proto", ())),
        context.trusted_proxies,
    )


@web.middleware
async def frame(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Give the request its ids, turn errors into answers, log one line."""
    context, began = request.app[CONTEXT], time.perf_counter()
    request[PEER] = peer_of_request(context, request)
    request[IDS] = ids = (
        valid_request_id(request.headers.get("X-Request-ID")) or new_id(),
        valid_request_id(request.headers.get("X-Correlation-ID")),
    )
    request_ids.set(ids)
    try:
        response = await handler(request)
    except ApiError as error:
        response = answer_error(context, request, error)
    except web.HTTPException as error:
        response = answer_error(context, request, _as_api_error(error))
    except Exception:
        log.exception("%s %s failed by a mistake of this program", request.method, request.path)
        response = answer_error(
            context, request, ApiError("internal_error", "Something went wrong here. The log has the details.")
        )
    for name, value in {"X-Request-ID": ids[0], **ALWAYS}.items():
        response.headers.setdefault(name, value)
    log.log(
        logging.DEBUG if request.path in QUIET else logging.INFO,
        "%s %s %d",
        request.method,
        request.path,
        response.status,
        extra={"facts": {"client_ip": request[PEER].address, "seconds": round(time.perf_counter() - began, 6)}},
    )
    return response


def _as_api_error(error: web.HTTPException) -> ApiError:
    match error:
        case web.HTTPNotFound():
            return ApiError("endpoint_not_found", "There is nothing at this path.")
        case web.HTTPMethodNotAllowed():
            allowed = ", ".join(sorted(error.allowed_methods))
            return ApiError("method_not_allowed", f"This path takes {allowed}.", headers={"Allow": allowed})
        case web.HTTPRequestEntityTooLarge():
            return ApiError("request_too_large", "The body is too large for this path.")
        case _:
            return ApiError("bad_request", error.reason)


def answer_error(context: Context, request: web.Request, error: ApiError) -> web.Response:
    """The answer to an error on a route of our own."""
    context.metrics.refusals.labels(error.code).inc()
    request_id = request[IDS][0]
    headers = {**dialects.error_headers(error, request_id), "Cache-Control": "no-store"}
    show = request.app.get(SHOW_ERROR)
    answer = show(request, error) if show else None
    if answer is None:
        answer = web.Response(status=error.status, body=dialects.error_body(error, "", request_id), headers=headers)
    for name, value in headers.items():
        answer.headers.setdefault(name, value)
    if "Expect" in request.headers:
        # The client may or may not send its body now; only a closed connection leaves no doubt where the next request begins.
        answer.force_close()
    return answer


def answer_json(data: object, status: int = 200) -> web.Response:
    """A JSON answer; it may hold what must not be kept by anyone on the way."""
    headers = {"Content-Type": "application/json", "Cache-Control": "no-store"}
    return web.Response(status=status, body=orjson.dumps(data), headers=headers)


async def decide_later(request: web.Request) -> None:
    """Stands in for aiohttp's answer to `Expect`, which would ask a stranger for the body."""


async def ask_for_body(request: web.Request) -> None:
    """Tell a client that waits for it that its body is wanted (RFC 9110 section 10.1.1).

    Raises:
        ApiError: `expectation_failed`.
    """
    expectation = request.headers.get("Expect")
    if expectation is None or request.version < HttpVersion11:
        return
    if expectation.lower() != "100-continue":
        raise ApiError("expectation_failed", "The only expectation served is 100-continue.")
    await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    # What counts as output is the answer itself, which has not begun.
    request.writer.output_size = 0


def who(request: web.Request, actor: str) -> Who:
    """The origin of an act, for the audit log, without a token that was mistaken for an id."""
    request_id, correlation_id = request[IDS]
    agent = request.headers.get("User-Agent")
    return Who(
        actor,
        request[PEER].address,
        request.method,
        redact(request.path),
        redact(agent) if agent else None,
        request_id,
        correlation_id,
    )


def operator(request: web.Request) -> Who:
    """The operator whose management token the request carries; a refusal is audited.

    Raises:
        ApiError: `invalid_management_token`, `too_many_failures`.
    """
    context = request.app[CONTEXT]
    try:
        return who(request, context.operators.recognise(request.headers.get("Authorization", ""), request[PEER].address))
    except ApiError as error:
        audit_refusal(request, "management.refuse", error)
        raise


def audit_refusal(request: web.Request, action: str, error: ApiError) -> None:
    """Put into the audit log that what was given is no management token."""
    audit, event = request.app[CONTEXT].audit, event_of(who(request, "unknown"), action, outcome="denied", reason=error.code)
    # Ten wrong attempts are each worth a line; what follows them is one a minute.
    if error.code == "too_many_failures":
        audit.append_sampled(event, event.client_ip or "")
    else:
        audit.append(event)
