"""Health and metrics, as both sites serve them."""

import contextlib
import hmac
import time

from aiohttp import web

from llm_proxy import __version__, redis_client
from llm_proxy.context import Context
from llm_proxy.db import migrate
from llm_proxy.errors import ApiError, DatabaseUnavailable
from llm_proxy.middleware import CONTEXT, PEER, answer_json, operator
from llm_proxy.peers import is_loopback
from llm_proxy.providers import statistics

Health = dict[str, object]


async def health(request: web.Request) -> web.Response:
    """The process runs."""
    return answer_json(_alive(request.app[CONTEXT]))


def _alive(context: Context) -> Health:
    return {"status": "ok", "version": __version__, "uptime_seconds": _uptime(context)}


def _uptime(context: Context) -> float:
    return round(time.monotonic() - context.started_at, 3)


async def live(request: web.Request) -> web.Response:
    """The event loop turns."""
    return answer_json({"status": "ok"})


async def ready(request: web.Request) -> web.Response:
    """Calls may be sent here; 503 says what is missing."""
    missing = await _missing(request.app[CONTEXT])
    if missing:
        return answer_json({"status": "not ready", "missing": missing}, 503)
    return answer_json({"status": "ready", "missing": []})


async def _missing(context: Context) -> list[str]:
    missing = ["draining"] if context.draining else []
    # Where limits may be enforced without it, calls are served without it.
    if context.limiter.degraded and not context.settings.distributed_rate_limit_fallback:
        missing.append("redis")
    try:
        rows = await context.database.fetch_all("SELECT migration_id FROM _yoyo_migration")
    except DatabaseUnavailable:
        return [*missing, "database"]
    # A backup from before an upgrade may have been put under a running process.
    applied = {row["migration_id"] for row in rows}
    return missing if applied.issuperset(migrate.known()) else [*missing, "migrations"]


async def detailed(request: web.Request) -> web.Response:
    """What an operator wants to know when something is slow."""
    operator(request)
    return answer_json(await details(request.app[CONTEXT]))


async def details(context: Context) -> Health:
    """What is known of this process, its database, Redis, limits and events."""
    began = time.perf_counter()
    missing = await _missing(context)
    waited = round((time.perf_counter() - began) * 1000, 3)
    return {
        **_alive(context),
        "status": "not ready" if missing else "ok",
        "missing": missing,
        "database": {"driver": context.settings.db_driver, "ok": "database" not in missing, "latency_ms": waited},
        "redis": await _redis(context),
        "rate_limits": _rate_limits(context),
        "events": _events(context),
        "providers": await _providers(context),
        "queues": {"audit": context.audit.waiting, "token_count_bytes": context.counting.backlog},
        "active_requests": context.active,
        "loop_lag_seconds": context.metrics.registry.get_sample_value("llm_proxy_loop_lag_seconds"),
    }


async def _redis(context: Context) -> Health | None:
    if context.redis is None:
        return None
    waited = await redis_client.latency(context.redis)
    return {"ok": waited is not None, "latency_ms": None if waited is None else round(waited * 1000, 3)}


def _rate_limits(context: Context) -> Health:
    counted_in = "redis" if context.settings.distributed_rate_limit_enabled else "memory"
    return {"counted_in": counted_in, "degraded": context.limiter.degraded}


def _events(context: Context) -> Health:
    report = context.events.report()
    return {
        "enabled": report.enabled,
        "writing": report.writing,
        "lost": report.lost,
        "backlog": max((stats.backlog.count for stats in report.sinks.values()), default=0),
        "dead_letters": sum(stats.dead_letters for stats in report.sinks.values()),
        "log_bytes": report.bytes,
        "log_cap_bytes": report.cap,
    }


async def _providers(context: Context) -> Health:
    # With the database away, what was last known of the pool is told.
    with contextlib.suppress(DatabaseUnavailable):
        await context.providers.read_pool()
    return statistics.shown(context.providers, context.breakers)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus text, or with `Accept: application/json` a summary."""
    if "application/json" in request.headers.get("Accept", "").lower():
        _check_reader(request)
        return answer_json(_summary(request.app[CONTEXT]))
    return await prometheus(request)


async def prometheus(request: web.Request) -> web.Response:
    """Prometheus text."""
    _check_reader(request)
    context = request.app[CONTEXT]
    context.metrics.active.set(context.active)
    # With the database away, what was last known of the pool is told.
    with contextlib.suppress(DatabaseUnavailable):
        await context.providers.read_pool()
        context.metrics.forget_providers(context.labels.knows_provider)
    if context.settings.http_cache_backend == "in-memory":
        context.metrics.cache_bytes.set((await context.cache.stats()).bytes)
    # The content type carries a version, which aiohttp's content_type argument would refuse.
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "Cache-Control": "no-store"}
    return web.Response(body=context.metrics.text(), headers=headers)


def _check_reader(request: web.Request) -> None:
    """A metrics token guards when it is set; without one, the site that the world may reach serves this machine only."""
    context = request.app[CONTEXT]
    if context.settings.metrics_token:
        scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
        wanted = context.settings.metrics_token.reveal().encode()
        if scheme.lower() != "bearer" or not hmac.compare_digest(presented.strip().encode(), wanted):
            raise ApiError(
                "invalid_token", "Send METRICS_TOKEN as `Authorization: Bearer`.", headers={"WWW-Authenticate": "Bearer"}
            )
    elif request.app[LOOPBACK_ONLY] and not _asked_from_here(context, request):
        raise ApiError("endpoint_not_found", "Metrics are served to this machine only; METRICS_TOKEN opens them to who knows it.")


def _asked_from_here(context: Context, request: web.Request) -> bool:
    # What comes through a proxy on this machine that nobody named in TRUSTED_PROXIES may come from anywhere.
    hidden = not context.trusted_proxies and ("X-Forwarded-For" in request.headers or "Forwarded" in request.headers)
    return is_loopback(request[PEER].address) and not hidden


def _summary(context: Context) -> Health:
    context.bus.catch_up()
    return {
        "uptime_seconds": _uptime(context),
        "request_count": context.metrics.calls,
        "error_count": context.metrics.failed_calls,
        "cache_hits": int(context.metrics.total(context.metrics.cache_hits)),
        "cache_misses": int(context.metrics.total(context.metrics.cache_misses)),
        "cache_bypass": int(context.metrics.total(context.metrics.cache_bypass)),
        "cache_stores": int(context.metrics.total(context.metrics.cache_stores)),
        "active_requests": context.active,
        "tokens": context.metrics.tokens_used,
    }


LOOPBACK_ONLY = web.AppKey("loopback_only", bool)


def add_routes(app: web.Application, *, metrics_to_all: bool = False) -> None:
    """Add the routes to a site's application.

    Args:
        metrics_to_all: without METRICS_TOKEN, metrics are served to whoever reaches the site.
    """
    app[LOOPBACK_ONLY] = not metrics_to_all
    app.router.add_get("/health", health)
    app.router.add_get("/health/detailed", detailed)
    app.router.add_get("/live", live)
    app.router.add_get("/ready", ready)
    settings = app[CONTEXT].settings
    if settings.enable_metrics:
        app.router.add_get(settings.metrics_path, metrics)
        app.router.add_get(f"{settings.metrics_path}/prometheus", prometheus)
