"""Both sites on one context: opened, served, stopped in order."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass

from aiohttp import web

from llm_proxy import admin, grammar, health, manage, systemd
from llm_proxy.context import Context
from llm_proxy.errors import ApiError, StartError
from llm_proxy.middleware import CONTEXT, frame
from llm_proxy.proxy.handler import handle
from llm_proxy.wire import GuardedRunner, Handler, Refusals, check_parser, refusal

log = logging.getLogger(__name__)

BACKLOG = 4096
LAG_SECONDS = 1.0
# Of the calls that are cut at the end of a stop: how long their last words may take.
CUT_SECONDS = 0.8
OUR_PATHS = ("/manage", "/health", "/live", "/ready")


@dataclass(frozen=True)
class Sites:
    """Where the sites can be reached; `admin` is None when it is not served."""

    proxy: str
    admin: str | None


def create_proxy_app(context: Context) -> web.Application:
    """The application of our own routes on the proxy site."""
    app = web.Application(middlewares=[frame])
    app[CONTEXT] = context
    manage.add_routes(app)
    health.add_routes(app)
    return app


@asynccontextmanager
async def open_sites(context: Context) -> AsyncIterator[Sites]:
    """Serve both sites while the block runs; at its end calls finish in order.

    Raises:
        StartError: an address cannot be listened on.
    """
    check_parser()
    settings, passed = context.settings, systemd.passed_sockets()
    refusals = Refusals(lambda error: context.metrics.refusals.labels(error.code).inc())
    runner = GuardedRunner(create_proxy_app(context), lambda ours: _proxy_handler(context, ours, refusals), refusals)
    runners = [runner]
    await runner.setup()
    try:
        proxy = await _listen(
            runner, "LISTEN_ADDR", settings.listen_addr, settings.reuse_port, passed.get("proxy", passed.get("0"))
        )
        admin_site = None
        if settings.admin_ui_enabled:
            runner = GuardedRunner(admin.create_app(context), lambda ours: _checked(context, ours, refusals), refusals)
            runners.append(runner)
            await runner.setup()
            given = passed.get("admin", passed.get("1"))
            admin_site = await _listen(runner, "ADMIN_UI_LISTEN_ADDR", settings.admin_ui_listen_addr, settings.reuse_port, given)
        yield Sites(proxy, admin_site)
        await _drain(context, runners, delay=0.0 if passed else settings.drain_delay)
    finally:
        for runner in reversed(runners):
            await runner.cleanup()


def _checked(context: Context, ours: Handler, refusals: Refusals) -> Handler:
    """The application's handler, behind the check of every head."""

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        try:
            grammar.check_head(request.method, request.version, request.raw_headers)
            grammar.read_target(request.method, request.raw_path, request.headers.get("Host", ""), context.settings.allowed_hosts)
        except ApiError as error:
            refusals.note(error, request.remote or "")
            return refusal(error)
        answer: web.StreamResponse = await ours(request)
        return answer

    return serve


def _proxy_handler(context: Context, ours: Handler, refusals: Refusals) -> Handler:
    """Our own paths go to the application; every other request is a call, whose target no router must touch."""
    checked = _checked(context, ours, refusals)
    prefixes = (*OUR_PATHS, context.settings.metrics_path) if context.settings.enable_metrics else OUR_PATHS

    async def serve(request: web.BaseRequest) -> object:
        path = grammar.path_of(request.raw_path)
        if path.startswith(prefixes) and any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes):
            return await checked(request)
        return await handle(context, request)

    return serve


async def _listen(runner: GuardedRunner, name: str, address: str, reuse_port: bool, passed: socket.socket | None) -> str:
    host, _, port = address.rpartition(":")
    site: web.BaseSite
    if passed:
        site = web.SockSite(runner, passed, backlog=BACKLOG)
    else:
        site = web.TCPSite(runner, host.strip("[]") or None, int(port), backlog=BACKLOG, reuse_port=reuse_port or None)
    try:
        await site.start()
    except OSError as error:
        raise StartError(
            f"{name}={address}: cannot listen there: {error.strerror or error}. Is another instance running?"
        ) from error
    bound = runner.addresses[-1]
    return f"http://{host or '127.0.0.1'}:{bound[1]}" if isinstance(bound, tuple) else str(bound)


async def _drain(context: Context, runners: list[GuardedRunner], delay: float) -> None:
    """Say not ready, keep serving for a while; then take no connection, let calls finish, cut what is left at the deadline."""
    systemd.notify("STOPPING=1")
    context.draining = True
    if delay:
        log.info("draining for %g s: /ready says 503, calls are still served", delay)
        await asyncio.sleep(delay)
    context.stopping = True
    for runner in runners:
        for site in list(runner.sites):
            await site.stop()
        if runner.server:
            runner.server.pre_shutdown()
    deadline = time.monotonic() + context.settings.shutdown_timeout
    while context.active and time.monotonic() < deadline:
        await asyncio.sleep(0.02)
    if context.active:
        log.warning("%d calls did not finish within SHUTDOWN_TIMEOUT and are cut", context.active)
        context.running.end_all(ApiError("shutting_down", "This instance of the proxy stops. Try again."))
        deadline = time.monotonic() + CUT_SECONDS
        while context.active and time.monotonic() < deadline:
            await asyncio.sleep(0.02)


@contextmanager
def _stop_signals() -> Iterator[asyncio.Event]:
    """An event that SIGTERM or SIGINT sets; a second signal ends the process at once."""
    loop, stop = asyncio.get_running_loop(), asyncio.Event()

    def on_signal() -> None:
        if stop.is_set():
            os._exit(1)
        stop.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    try:
        yield stop
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)


async def serve(context: Context, started: "asyncio.Future[Sites] | None" = None) -> None:
    """Serve until SIGTERM or SIGINT, then stop in order.

    Args:
        started: given, it is told where the sites are, once they are served.
    """
    with _stop_signals() as stop:
        async with open_sites(context) as sites:
            context.tasks.start("loop lag", _measure_lag(context))
            context.tasks.start("watchdog", _feed_watchdog())
            _announce(context, sites)
            systemd.notify("READY=1")
            if started:
                started.set_result(sites)
            with _reopen_on_hangup(context):
                await stop.wait()
            log.info("stopping: %d calls in flight", context.active)
    log.info("stopped")


def _announce(context: Context, sites: Sites) -> None:
    log.info("the proxy listens on %s", sites.proxy)
    if sites.admin:
        log.info("the admin site listens on %s%s", sites.admin, _how_to_reach(context.settings.admin_ui_listen_addr, sites.admin))


def _how_to_reach(address: str, url: str) -> str:
    if address.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
        return ""
    port = url.rpartition(":")[2]
    return f"; from elsewhere: ssh -L {port}:127.0.0.1:{port} THIS-HOST, or set ADMIN_UI_LISTEN_ADDR"


@contextmanager
def _reopen_on_hangup(context: Context) -> Iterator[None]:
    """SIGHUP: the audit file is opened anew, after it was rotated away; the log file notices by itself."""
    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGHUP, context.audit.reopen)
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGHUP)


async def _measure_lag(context: Context) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(LAG_SECONDS)
        context.metrics.loop_lag.set(max(0.0, time.perf_counter() - began - LAG_SECONDS))


async def _feed_watchdog() -> None:
    every = systemd.watchdog_seconds()
    while every:
        with contextlib.suppress(OSError):
            systemd.notify("WATCHDOG=1")
        await asyncio.sleep(every)
