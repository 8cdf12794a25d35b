"""The way of events from the bus over the disk to the sinks."""

import asyncio
import logging
import pathlib
import re
import socket
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import Any

import aiohttp
import orjson
from redis.asyncio import Redis

from llm_proxy.events import Event
from llm_proxy.events.bus import Bus
from llm_proxy.events.dead_letters import FILE, DeadLetters
from llm_proxy.events.delivery import Delivery
from llm_proxy.events.dispatcher import Stats
from llm_proxy.events.instances import Claim, claim_dead, claim_own, trim_dead
from llm_proxy.events.letters import AllLetters
from llm_proxy.events.shipping import NAME
from llm_proxy.events.sinks import SINKS, options_of
from llm_proxy.events.sinks.contract import Sink
from llm_proxy.events.statistics import DeliveryCollector, Report, total
from llm_proxy.events.stream import EventStream, StreamState
from llm_proxy.metrics import Metrics
from llm_proxy.settings import Settings
from llm_proxy.tasks import Tasks, to_the_end

log = logging.getLogger(__name__)

# At a stop, how long sinks may still be given what they lack; the rest waits on the disk.
DRAIN_SECONDS = 2.0
# After this a folder that could not be had at the start is tried again.
RETRY_SECONDS = 1.0
# So often logs of dead instances are looked for.
ADOPT_SECONDS = 30.0


class Pipeline:
    """Writes every event to this instance's log, delivers it, and what dead instances left.

    Args:
        stream: given, the logs are shipped there, and to no sink.

    Attributes:
        letters: what was set aside, by this process or by others.
    """

    def __init__(self, settings: Settings, sinks: Mapping[str, Sink], stream: EventStream | None = None) -> None:
        self._settings, self._sinks, self._stream = settings, sinks, stream
        self.letters = AllLetters(settings, stream)
        self._root = pathlib.Path(settings.event_dir)
        self._nameless = settings.observability_capture == "none"
        self._tasks = Tasks()
        self._own: Delivery | None = None
        # Every log that is claimed; `_own` is the one that is written to.
        self._logs: list[Delivery] = []
        self._ended: dict[str, Stats] = {name: Stats() for name in ((NAME,) if stream else sinks)}
        # Events for which there was no log, or of which no record could be made.
        self._unwritten = 0
        # Looked up once, for every call pays for it.
        self._append: Callable[[bytes], int] = self._lose

    def write(self, event: Event) -> None:
        """Append an event to the log; it never waits."""
        try:
            self._append(orjson.dumps(without_client(event) if self._nameless else event))
        except TypeError:
            self._unwritten += 1
            raise

    def _lose(self, payload: bytes) -> int:
        """Stands in for the log while there is none."""
        self._unwritten += 1
        return 0

    async def start(self) -> None:
        """Take up this instance's log; a disk that refuses is tried again for as long as it takes."""
        try:
            await self._open_own()
        except OSError as error:
            log.error("EVENT_DIR=%s cannot be used, and events are lost until it can: %s", self._root, error)
            self._tasks.start("opening of the event log", self._keep_trying())

    async def _keep_trying(self) -> None:
        while self._own is None:
            await asyncio.sleep(RETRY_SECONDS)
            with suppress(OSError):
                await self._open_own()
        log.warning("EVENT_DIR=%s can be used now; %d events were lost so far", self._root, self._unwritten)

    async def _open_own(self) -> None:
        claim = await to_the_end(asyncio.to_thread(claim_own, self._root, instance_name()), Claim.release)
        letters = DeadLetters(claim.folder / FILE)
        own = Delivery(claim, self._settings, self._sinks, letters, self._stream)
        self._logs.append(own)
        await own.start(appending=True)
        self._own, self._append = own, own.spool.append
        self._tasks.start("adoption of event logs", self._adopt(letters) if self._ended else self._trim())

    async def _adopt(self, letters: DeadLetters) -> None:
        """Look for logs whose instance is gone, again and again."""
        while True:
            for claim in await to_the_end(asyncio.to_thread(claim_dead, self._root), _release):
                log.info("the events in %s are delivered here: their instance is gone", claim.folder)
                delivery = Delivery(claim, self._settings, self._sinks, letters, self._stream)
                self._logs.append(delivery)
                self._tasks.start(f"delivery of {claim.folder}", self._deliver_rest(delivery))
            await asyncio.sleep(ADOPT_SECONDS)

    async def _trim(self) -> None:
        """Without sinks nobody empties the logs of dead instances: keep them within the backlog's cap, again and again."""
        while True:
            if removed := await asyncio.to_thread(trim_dead, self._root, self._settings.event_backlog_bytes):
                log.error("the logs of dead instances are above EVENT_BACKLOG_BYTES: the %d oldest segments are dropped", removed)
            await asyncio.sleep(ADOPT_SECONDS)

    async def _deliver_rest(self, delivery: Delivery) -> None:
        """Deliver a log to its end, then remove it."""
        await delivery.start(appending=False)
        await delivery.emptied()
        await delivery.close(DRAIN_SECONDS, remove=True)
        self._logs.remove(delivery)
        self._ended = {name: total([ended, delivery.stats[name]]) for name, ended in self._ended.items()}

    def report(self) -> Report:
        """How all of this is doing."""
        states = [delivery.stats for delivery in self._logs]
        sinks = {name: total([ended, *(state[name] for state in states)]) for name, ended in self._ended.items()}
        if self._own is None:
            enabled = self._settings.observability_enabled
            return Report(enabled=enabled, writing=not enabled, lost=self._unwritten, sinks=sinks)
        spool = self._own.spool
        lost, dropped = spool.lost + self._unwritten, sum(delivery.spool.dropped for delivery in self._logs)
        return Report(
            writing=not spool.failing,
            last=spool.last,
            synced=spool.synced,
            lost=lost,
            dropped=dropped,
            bytes=max(delivery.spool.bytes_from(0) for delivery in self._logs),
            cap=self._settings.event_backlog_bytes,
            sinks=sinks,
        )

    async def stream_state(self) -> StreamState | None:
        """What stands in the stream in Redis, None where there is to be none."""
        return await self._stream.state() if self._stream else None

    def reopen(self) -> None:
        """Let the sinks open their files anew, after those were rotated away; a disk may take its time for that."""
        for name, sink in self._sinks.items():
            self._tasks.start(f"reopening of {name}", asyncio.to_thread(sink.reopen))

    async def close(self) -> None:
        """Deliver what can be delivered quickly, sync the logs, give them back."""
        await self._tasks.close()
        await asyncio.gather(*(delivery.close(DRAIN_SECONDS) for delivery in self._logs))
        if lost := self.report().lost:
            log.error("%d events were lost, because they could not be written", lost)


def without_client(event: Event) -> dict[str, Any]:
    """The event, silent on who the client is."""
    return {**vars(event), "client_ip": None, "user_agent": None}


def instance_name() -> str:
    """What the folders of this machine's instances begin with."""
    return re.sub(r"[^A-Za-z0-9.-]", "-", socket.gethostname()).strip(".-") or "instance"


def _release(claims: list[Claim]) -> None:
    for claim in claims:
        claim.release()


@asynccontextmanager
async def open_pipeline(settings: Settings, bus: Bus, metrics: Metrics, redis: "Redis | None" = None) -> AsyncIterator[Pipeline]:
    """Write and deliver the events of the bus while the block runs; without OBSERVABILITY_ENABLED nothing of it.

    Args:
        redis: needed where LLM_PROXY_EVENT_BUS says so.
    """
    names = settings.event_sinks if settings.delivers else ()
    async with AsyncExitStack() as stack:
        session = await stack.enter_async_context(aiohttp.ClientSession(cookie_jar=aiohttp.DummyCookieJar()))
        sinks = {name: SINKS[name](options_of(settings), session) for name in names}
        for sink in sinks.values():
            stack.push_async_callback(sink.close)
        stream = EventStream.of(redis, settings) if redis and settings.ships else None
        if stream:
            stack.push_async_callback(stream.close)
        pipeline = Pipeline(settings, sinks, stream)
        stack.push_async_callback(pipeline.close)
        if settings.observability_enabled:
            await pipeline.start()
            bus.read_by(pipeline.write)
            metrics.publishes_to(pipeline.report().sinks)
            metrics.registry.register(DeliveryCollector(pipeline.report))
        yield pipeline
