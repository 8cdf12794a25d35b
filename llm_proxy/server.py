"""The sites on one context: opened, served, stopped in order."""

import asyncio
import contextlib
import errno
import gc
import logging
import math
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

from aiohttp import web

from llm_proxy import admin, admin_v1, grammar, health, manage, systemd
from llm_proxy.admin.visits import ProxySite
from llm_proxy.context import Context
from llm_proxy.errors import ApiError, StartError
from llm_proxy.guard import Guard, Limits, refusal
from llm_proxy.heads import Head, Heads
from llm_proxy.middleware import CONTEXT, frame
from llm_proxy.proxy.handler import handle
from llm_proxy.serving import Calls
from llm_proxy.settings import Settings
from llm_proxy.wire import GuardedRunner, Handler, check_parser

log = logging.getLogger(__name__)

BACKLOG = 4096
# After so many more, the garbage collector looks for cycles among them.
NEW_OBJECTS = 20_000
LAG_SECONDS = 1.0
POLL_SECONDS = 0.02
# At a stop, how long an idle connection may still bring a request that was on its way.
IDLE_SECONDS = 0.3
# Of the calls that are cut at the end of a stop: how long their last words may take.
CUT_SECONDS = 0.8
# After the calls, what closing the pools, the log of events and the database may take.
CLOSING_SECONDS = 15.0
# Files that connections leave to the database, the log and the admin site.
RESERVED_FILES = 512
ADMIN_CONNECTIONS = 256
OUR_PATHS = ("/manage", "/admin/v1", "/health", "/live", "/ready")


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
    admin_v1.add_routes(app)
    health.add_routes(app)
    return app


@asynccontextmanager
async def open_sites(context: Context, hurry: asyncio.Event | None = None) -> AsyncIterator[Sites]:
    """Serve both sites while the block runs; at its end calls finish in order.

    Args:
        hurry: set, it cuts the calls that would otherwise be waited for.

    Raises:
        StartError: an address cannot be listened on.
    """
    check_parser()
    settings, passed = context.settings, systemd.passed_sockets()
    for_proxy, for_admin = _by_purpose(passed)
    async with AsyncExitStack() as stack:
        guard = Guard(_limits(context), lambda error: context.metrics.refusals.labels(error.code).inc(), context.trusted_proxies)
        runner = GuardedRunner(create_proxy_app(context), lambda ours: _checked(context, ours, guard), guard, _calls(context))
        runners = [runner]
        proxy, admin_site = await _open(stack, runner, "LISTEN_ADDR", settings.listen_addr, settings, for_proxy), None
        if settings.admin_ui_enabled:
            runners.append(_admin_runner(context, proxy, guard.count))
            address = settings.admin_ui_listen_addr
            admin_site = await _open(stack, runners[-1], "ADMIN_UI_LISTEN_ADDR", address, settings, for_admin)
        yield Sites(proxy, admin_site)
        await _drain(context, runners, 0.0 if passed else settings.drain_delay, hurry or asyncio.Event())


@asynccontextmanager
async def open_admin_site(context: Context, hurry: asyncio.Event) -> AsyncIterator[str]:
    """Serve the admin site alone while the block runs; yields its URL.

    Raises:
        StartError: its address cannot be listened on.
    """
    check_parser()
    settings, (first, second) = context.settings, _by_purpose(systemd.passed_sockets())
    host, _, port = settings.listen_addr.rpartition(":")
    async with AsyncExitStack() as stack:
        # Another process serves the proxy, by the same settings.
        proxy = _url((host, int(port)), host)
        runner = _admin_runner(context, proxy, lambda error: context.metrics.refusals.labels(error.code).inc())
        yield await _open(stack, runner, "ADMIN_UI_LISTEN_ADDR", settings.admin_ui_listen_addr, settings, second or first)
        await _drain(context, [runner], 0.0, hurry)


def _admin_runner(context: Context, proxy: str, count: Callable[[ApiError], None]) -> GuardedRunner:
    guard = Guard(
        Limits(context.settings.max_request_bytes, ADMIN_CONNECTIONS, ADMIN_CONNECTIONS), count, context.trusted_proxies
    )
    app = admin.create_app(context, ProxySite(proxy, _on_every_address(context.settings.listen_addr)))
    return GuardedRunner(app, lambda ours: _checked(context, ours, guard), guard)


def _by_purpose(passed: dict[str, socket.socket]) -> tuple[socket.socket | None, socket.socket | None]:
    """The sockets of the proxy and of the admin site: by their names, those of other names in their order."""
    others = iter([found for name, found in passed.items() if name not in ("proxy", "admin")])
    proxy = passed.get("proxy") or next(others, None)
    return proxy, passed.get("admin") or next(others, None)


def _limits(context: Context) -> Limits:
    """Connections leave file descriptors for their calls to providers, and for everything else that must go on."""
    soft, settings = resource.getrlimit(resource.RLIMIT_NOFILE)[0], context.settings
    files = sys.maxsize if soft == resource.RLIM_INFINITY else soft
    connections = max(1, min(2 * settings.max_concurrent_requests, (files - RESERVED_FILES) * 3 // 4))
    # Behind a proxy of the operator's own, every client has its address.
    return Limits(settings.max_request_bytes, connections, connections if context.trusted_proxies else max(1, connections // 2))


def _checked(context: Context, ours: Handler, guard: Guard) -> Handler:
    """The application's handler, behind the check of every head."""

    async def serve(request: web.BaseRequest) -> web.StreamResponse:
        try:
            grammar.check_head(request.method, request.version, request.raw_headers)
            grammar.read_target(request.method, request.raw_path, request.headers.get("Host", ""), context.settings.allowed_hosts)
            _check_length(request)
        except ApiError as error:
            guard.note(error, request.remote or "")
            return refusal(error)
        answer: web.StreamResponse = await ours(request)
        return answer

    return serve


def _check_length(request: web.BaseRequest) -> None:
    """Refuse what a route of our own would refuse only after it had come."""
    if int(request.headers.get("Content-Length", "0")) > request.client_max_size:
        raise ApiError("request_too_large", f"The body is larger than {request.client_max_size} bytes.")


def _calls(context: Context) -> Calls:
    """Every request but those for our own paths is a call, whose target no router must touch."""
    prefixes = (*OUR_PATHS, context.settings.metrics_path) if context.settings.enable_metrics else OUR_PATHS

    def wants(head: Head) -> bool:
        path = grammar.path_of(head.raw_path)
        return not any(path == prefix or path.startswith(f"{prefix}/") for prefix in prefixes)

    return Calls(lambda request: handle(context, request), wants, Heads())


async def _open(
    stack: AsyncExitStack, runner: GuardedRunner, name: str, address: str, settings: Settings, passed: socket.socket | None
) -> str:
    """Serve a site until the stack unwinds; returns its URL."""
    await runner.setup()
    stack.push_async_callback(runner.cleanup)
    host, _, port = address.rpartition(":")
    site: web.BaseSite
    if passed:
        site = web.SockSite(runner, passed, backlog=BACKLOG)
    else:
        site = web.TCPSite(runner, host.strip("[]") or None, int(port), backlog=BACKLOG, reuse_port=settings.reuse_port or None)
    try:
        await site.start()
    except OSError as error:
        hint = " Is another instance running?" if error.errno == errno.EADDRINUSE else ""
        raise StartError(
            f"{name}={address}: cannot listen there: {os.strerror(error.errno) if error.errno else error}.{hint}"
        ) from error
    bound = runner.addresses[0]
    return _url(bound, bound[0] if passed else host) if isinstance(bound, tuple) else str(bound)


def _on_every_address(address: str) -> bool:
    return address.rpartition(":")[0] in ("", "0.0.0.0", "[::]")


def _url(bound: tuple[Any, ...], host: str) -> str:
    # What listens on [::] need not take IPv4: asyncio has it take IPv6 only.
    host = {"": "127.0.0.1", "0.0.0.0": "127.0.0.1", "::": "::1"}.get(host.strip("[]"), host.strip("[]"))
    return f"http://[{host}]:{bound[1]}" if ":" in host else f"http://{host}:{bound[1]}"


async def _drain(context: Context, runners: list[GuardedRunner], delay: float, hurry: asyncio.Event) -> None:
    """Say not ready, keep serving for a while; then take no connection, let calls finish, cut what is left at the deadline."""
    systemd.stopping(delay + context.settings.shutdown_timeout + CLOSING_SECONDS)
    context.draining = True
    if delay:
        log.info("draining for %g s: /ready says 503, calls are still served", delay)
        await _until(hurry.is_set, delay)
    context.stopping = True
    servers = [runner.guarded for runner in runners]
    for runner in runners:
        runner.guarded.stopping = True
        for site in list(runner.sites):
            await site.stop()

    def idle() -> bool:
        return hurry.is_set() or not any(server.busy() for server in servers)

    began = time.monotonic()
    await _until(idle, context.settings.shutdown_timeout)
    # A client may be sending the next request on a connection that it was told to keep; the answer tells it otherwise.
    grace = min(IDLE_SECONDS, context.settings.shutdown_timeout - (time.monotonic() - began))
    await _until(lambda: hurry.is_set() or not any(server.connections for server in servers), grace)
    await _until(idle, context.settings.shutdown_timeout - (time.monotonic() - began))
    if left := sum(server.busy() for server in servers):
        log.warning("%d requests were not answered in time and are cut", left)
        context.running.end_all(ApiError("shutting_down", "This instance of the proxy stops. Try again."))
        await _until(lambda: not any(server.busy() for server in servers), CUT_SECONDS)


async def _until(condition: Callable[[], bool], seconds: float) -> None:
    for _ in range(math.ceil(seconds / POLL_SECONDS)):
        if condition():
            break
        await asyncio.sleep(POLL_SECONDS)


class _Stop:
    """What the process has been told by signals."""

    def __init__(self) -> None:
        self.asked, self.hurry = asyncio.Event(), asyncio.Event()

    def on_signal(self) -> None:
        """The first signal asks for an orderly stop, the second cuts the calls, the third ends the process at once."""
        if self.hurry.is_set():
            os._exit(1)
        (self.hurry if self.asked.is_set() else self.asked).set()


@contextmanager
def _signals(context: Context) -> Iterator[_Stop]:
    """SIGTERM and SIGINT stop; SIGHUP reads the profiles anew, and opens the files of audit and events anew, after they
    were rotated away (the log file notices by itself).
    """
    loop, stop = asyncio.get_running_loop(), _Stop()
    handlers = {signal.SIGTERM: stop.on_signal, signal.SIGINT: stop.on_signal, signal.SIGHUP: context.on_hangup}
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield stop
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


async def serve(context: Context, started: "asyncio.Future[Sites] | None" = None) -> None:
    """Serve until SIGTERM or SIGINT, then stop in order.

    Args:
        started: given, it is told where the sites are, once they are served.
    """
    _raise_file_limit()
    with _signals(context) as stop:
        async with open_sites(context, stop.hurry) as sites:
            log.info("the proxy listens on %s", sites.proxy)
            _announce_admin(context, sites.admin)
            _spare_the_collector()
            _is_ready(context)
            if started:
                started.set_result(sites)
            await stop.asked.wait()
            log.info("stopping: %d calls in flight", context.active)
    log.info("stopped")


async def serve_admin(context: Context) -> None:
    """Serve the admin site alone until SIGTERM or SIGINT."""
    _raise_file_limit()
    with _signals(context) as stop:
        async with open_admin_site(context, stop.hurry) as url:
            _announce_admin(context, url)
            _is_ready(context)
            await stop.asked.wait()
    log.info("stopped")


def _is_ready(context: Context) -> None:
    context.tasks.start("loop lag", _measure_lag(context))
    context.tasks.start("watchdog", systemd.feed_watchdog())
    systemd.notify("READY=1")


def _spare_the_collector() -> None:
    """Have the garbage collector leave alone what was there at the start, and look at new objects less often.

    Nearly all that a call makes is freed by its counts; at the usual 700 new objects the collector would walk through the
    calls in flight at every other call, which took a tenth of the time.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(NEW_OBJECTS, 20, 20)


def _raise_file_limit() -> None:
    """Take as many file descriptors as the system grants: the customary 1024 are for programs that use select()."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _announce_admin(context: Context, url: str | None) -> None:
    if url:
        log.info("the admin site listens on %s%s", url, _how_to_reach(context.settings.admin_ui_listen_addr, url))


def _how_to_reach(address: str, url: str) -> str:
    if address.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]"):
        return ""
    port = url.rpartition(":")[2]
    return f"; from elsewhere: ssh -L {port}:127.0.0.1:{port} THIS-HOST, or set ADMIN_UI_LISTEN_ADDR"


async def _measure_lag(context: Context) -> None:
    while True:
        began = time.perf_counter()
        await asyncio.sleep(LAG_SECONDS)
        context.metrics.loop_lag.set(max(0.0, time.perf_counter() - began - LAG_SECONDS))
