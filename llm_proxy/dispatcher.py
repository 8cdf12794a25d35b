"""The process that delivers the events of all instances from Redis to one sink."""

import asyncio
import errno
import hmac
import logging
import os
import signal
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass, field

import aiohttp
from aiohttp import web

from llm_proxy import __version__, logs, systemd
from llm_proxy.errors import StartError
from llm_proxy.events.consuming import StreamLetters, StreamSource
from llm_proxy.events.dispatcher import Dispatcher, Dispatchers
from llm_proxy.events.sinks import SINKS, options_of
from llm_proxy.events.sinks.contract import Sink
from llm_proxy.events.statistics import DeliveryCollector, Report
from llm_proxy.events.stream import EventStream, StreamUnavailable
from llm_proxy.metrics import Metrics
from llm_proxy.redis_client import open_redis
from llm_proxy.settings import Settings
from llm_proxy.tasks import Tasks

log = logging.getLogger(__name__)

# After what is in hand was delivered, what closing may take.
CLOSING_SECONDS = 15.0


@dataclass(frozen=True)
class Post:
    """What delivers to one sink, with what is told of it."""

    settings: Settings
    service: str
    source: StreamSource
    dispatcher: Dispatcher
    sink: Sink
    metrics: Metrics
    tasks: Tasks
    started_at: float = field(default_factory=time.monotonic)

    def reopen(self) -> None:
        """Let the sink open its file anew, after another program moved it away."""
        self.tasks.start("reopening of the sink", asyncio.to_thread(self.sink.reopen))


POST = web.AppKey("post", Post)


@asynccontextmanager
async def open_post(settings: Settings, service: str) -> AsyncIterator[Post]:
    """Deliver to a sink while the block runs; at its end what is in hand is delivered in time, or given back."""
    async with AsyncExitStack() as stack:
        client = await stack.enter_async_context(open_redis(settings.redis_url, settings.redis_pool_size))
        stream = EventStream.of(client, settings)
        stack.push_async_callback(stream.close)
        session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        sink = SINKS[service](options_of(settings), session)
        stack.push_async_callback(sink.close)
        await _greet(stream, service)
        source, metrics, tasks = StreamSource(stream, service), Metrics(), Tasks()
        dispatcher = Dispatcher(service, sink, source, StreamLetters(stream), batch_size=settings.dispatcher_batch_size)
        metrics.registry.register(DeliveryCollector(lambda: Report(sinks={service: dispatcher.stats})))
        stack.push_async_callback(source.close)
        stack.push_async_callback(tasks.close)
        running = Dispatchers(tasks)
        tasks.start("hold of events", source.hold())
        running.start(dispatcher)
        yield Post(settings, service, source, dispatcher, sink, metrics, tasks)
        source.stop()
        await running.stop(settings.shutdown_timeout)


async def _greet(stream: EventStream, service: str) -> None:
    """Make the group; Redis away, it is made as soon as Redis is there."""
    try:
        await stream.join(service)
        if warning := await stream.eviction_warning():
            log.warning("%s", warning)
    except StreamUnavailable as error:
        log.warning("Redis does not answer; events are delivered once it does: %s", error)


async def health(request: web.Request) -> web.Response:
    """The process runs."""
    post = request.app[POST]
    uptime = round(time.monotonic() - post.started_at, 3)
    return web.json_response({"status": "ok", "version": __version__, "uptime_seconds": uptime, "service": post.service})


async def ready(request: web.Request) -> web.Response:
    """Events can be had; 503 says what is missing."""
    missing = ["redis"] if request.app[POST].source.away else []
    return web.json_response({"status": "not ready" if missing else "ready", "missing": missing}, status=503 if missing else 200)


async def metrics(request: web.Request) -> web.Response:
    """Prometheus text, for those who know METRICS_TOKEN where it is set."""
    post = request.app[POST]
    wanted = post.settings.metrics_token.reveal().encode()
    scheme, _, presented = request.headers.get("Authorization", "").partition(" ")
    if wanted and not (scheme.lower() == "bearer" and hmac.compare_digest(presented.strip().encode(), wanted)):
        text = "Send METRICS_TOKEN as `Authorization: Bearer`.\n"
        raise web.HTTPUnauthorized(text=text, headers={"WWW-Authenticate": "Bearer"})
    headers = {"Content-Type": "text/plain; version=0.0.4; charset=utf-8", "Cache-Control": "no-store"}
    return web.Response(body=post.metrics.text(), headers=headers)


@asynccontextmanager
async def open_site(post: Post, addr: str) -> AsyncIterator[str]:
    """Serve health and metrics while the block runs; gives the site's URL.

    Raises:
        StartError: the address cannot be listened on.
    """
    app = web.Application()
    app[POST] = post
    app.router.add_get("/health", health)
    app.router.add_get("/ready", ready)
    if post.settings.enable_metrics:
        app.router.add_get(post.settings.metrics_path, metrics)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=1.0)
    await runner.setup()
    try:
        await _listen(runner, addr)
        bound = runner.addresses[0]
        yield f"http://[{bound[0]}]:{bound[1]}" if ":" in bound[0] else f"http://{bound[0]}:{bound[1]}"
    finally:
        await runner.cleanup()


async def _listen(runner: web.AppRunner, addr: str) -> None:
    host, _, port = addr.rpartition(":")
    try:
        await web.TCPSite(runner, host.strip("[]") or None, int(port)).start()
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else error
        hint = " Is another dispatcher running? Each needs an --addr of its own." if error.errno == errno.EADDRINUSE else ""
        raise StartError(f"--addr {addr}: cannot listen there: {reason}.{hint}") from error


@contextmanager
def _signals(handlers: dict[signal.Signals, Callable[[], object]]) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    for number, handler in handlers.items():
        loop.add_signal_handler(number, handler)
    try:
        yield
    finally:
        for number in handlers:
            loop.remove_signal_handler(number)


async def serve(settings: Settings, service: str, addr: str) -> None:
    """Deliver to a sink until SIGTERM or SIGINT.

    Raises:
        StartError: the address cannot be listened on.
    """
    stop, handler = asyncio.Event(), logs.configure(settings)
    try:
        for warning in settings.warnings:
            log.warning("settings: %s", warning)
        async with open_post(settings, service) as post, open_site(post, addr) as url:
            with _signals({signal.SIGTERM: stop.set, signal.SIGINT: stop.set, signal.SIGHUP: post.reopen}):
                log.info("the dispatcher of %s listens on %s", service, url)
                post.tasks.start("watchdog", systemd.feed_watchdog())
                systemd.notify("READY=1")
                await stop.wait()
                systemd.stopping(settings.shutdown_timeout + CLOSING_SECONDS)
            log.info("stopping: what is in hand is delivered")
        log.info("stopped")
    finally:
        logging.getLogger().removeHandler(handler)
        handler.close()
