"""Health and metrics, as both sites serve them."""

import hmac
import time

from aiohttp import web

from llm_proxy import __version__
from llm_proxy.errors import ApiError, DatabaseUnavailable
from llm_proxy.middleware import CONTEXT, PEER, answer_json
from llm_proxy.peers import is_loopback


async def health(request: web.Request) -> web.Response:
    """The process runs."""
    context = request.app[CONTEXT]
    uptime = round(time.monotonic() - context.started_at, 3)
    return answer_json({"status": "ok", "version": __version__, "uptime_seconds": uptime})


async def live(request: web.Request) -> web.Response:
    """The event loop turns."""
    return answer_json({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Calls may be sent here; 503 says what is missing."""
    context = request.app[CONTEXT]
    missing = ["draining"] if context.draining else []
    try:
        await context.database.ping()
    except DatabaseUnavailable:
        missing.append("database")
    if missing:
        return answer_json({"status": "not ready", "missing": missing}, 503)
    return answer_json({"status": "ready"})


async def metrics(request: web.Request) -> web.Response:
    """Prometheus text, or with `Accept: application/json` a summary."""
    context = request.app[CONTEXT]
    _check_reader(request)
    if "application/json" in request.headers.get("Accept", ""):
        return answer_json(_summary(request))
    context.metrics.active.set(context.active)
    # The content type carries a version, which aiohttp's content_type argument would refuse.
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "Cache-Control": "no-store"}
    return web.Response(body=context.metrics.text(), headers=headers)


def _check_reader(request: web.Request) -> None:
    """A metrics token guards when it is set; without one, the proxy site, which the world may reach, serves loopback only."""
    context = request.app[CONTEXT]
    if context.settings.metrics_token:
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        wanted = context.settings.metrics_token.reveal().encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(presented.strip().encode(), wanted):
            raise ApiError(
                "invalid_token", "Send METRICS_TOKEN as `Authorization: Bearer`.", headers={"WWW-Authenticate": "Bearer"}
            )
    elif not is_loopback(request[PEER].address):
        raise ApiError("endpoint_not_found", "Metrics are served to this machine only; METRICS_TOKEN opens them to who knows it.")


def _summary(request: web.Request) -> dict[str, object]:
    context = request.app[CONTEXT]
    total = context.metrics.total
    return {
        "uptime_seconds": round(time.monotonic() - context.started_at, 3),
        "request_count": int(total(context.metrics.requests)),
        "error_count": int(total(context.metrics.refusals)),
        "active_requests": context.active,
        "tokens": int(total(context.metrics.tokens)),
    }


def add_routes(app: web.Application) -> None:
    """Add the routes to a site's application."""
    app.router.add_get("/health", health)
    app.router.add_get("/live", live)
    app.router.add_get("/ready", ready)
    settings = app[CONTEXT].settings
    if settings.enable_metrics:
        app.router.add_get(settings.metrics_path, metrics)
        app.router.add_get(f"{settings.metrics_path}/prometheus", metrics)
