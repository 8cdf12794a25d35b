"""The log in one folder with the dispatchers that empty it."""

import asyncio
import threading
from collections.abc import Mapping

from llm_proxy.events.dead_letters import DeadLetters
from llm_proxy.events.dispatcher import Courier, Dispatcher, Dispatchers, Stats
from llm_proxy.events.instances import Claim
from llm_proxy.events.reading import Reader, SpoolSource
from llm_proxy.events.shipping import NAME, Shipper
from llm_proxy.events.sinks.contract import Sink
from llm_proxy.events.spool import INTERVAL, Spool
from llm_proxy.events.stream import EventStream
from llm_proxy.settings import Settings, parse_duration
from llm_proxy.tasks import Tasks


class Delivery:
    """A claimed folder: its log is kept, and delivered to every sink, until `close`.

    Args:
        letters: where what a sink refuses goes.
        stream: given, the log is shipped there, and to no sink.
    """

    def __init__(
        self,
        claim: Claim,
        settings: Settings,
        sinks: Mapping[str, Sink],
        letters: DeadLetters,
        stream: EventStream | None = None,
    ) -> None:
        self._claim = claim
        sync, size, cap = settings.event_sync, settings.dispatcher_batch_size, settings.event_backlog_bytes
        self._interval = INTERVAL if sync in ("always", "os") else parse_duration(sync)
        self.spool = Spool(claim.folder, (NAME,) if stream else tuple(sinks), sync=sync, backlog_bytes=cap)
        self._dispatchers: list[Courier] = (
            # Less than the log's cap, so that the log does not let go of what is not acknowledged while it is in the stream.
            [Shipper(self.spool, stream, cap=cap * 3 // 4)]
            if stream
            else [
                Dispatcher(name, sink, SpoolSource(Reader(self.spool, name)), letters, batch_size=size)
                for name, sink in sinks.items()
            ]
        )
        self._tasks = Tasks()
        self._running = Dispatchers(self._tasks)
        # A start that is cancelled leaves its thread to open what `close` must then find closed.
        self._lock = threading.Lock()
        self._closed = False

    async def start(self, *, appending: bool) -> None:
        """Take up the log, let the dispatchers deliver.

        Args:
            appending: False for the log of a process that is gone.
        """
        await asyncio.to_thread(self._open, appending)
        self._tasks.start(f"event log {self._claim.folder}", self.spool.run(self._interval))
        for dispatcher in self._dispatchers:
            self._running.start(dispatcher)

    def _open(self, appending: bool) -> None:
        with self._lock:
            if not self._closed:
                self.spool.open(appending=appending)

    @property
    def stats(self) -> Mapping[str, Stats]:
        """How each sink is doing here."""
        return {dispatcher.name: dispatcher.stats for dispatcher in self._dispatchers}

    async def emptied(self) -> None:
        """Return once every sink has everything, and the log is gone from the disk."""
        while not self.spool.drained or self.spool.segments():  # noqa: ASYNC110 - threads empty it
            await asyncio.sleep(INTERVAL)

    async def close(self, deadline: float, *, remove: bool = False) -> None:
        """Deliver what can be delivered within `deadline` seconds, sync the log, give the folder back; once.

        Args:
            remove: everything is delivered; the folder goes.
        """
        await self._running.stop(deadline)
        await self._tasks.close()
        await asyncio.to_thread(self._close, remove)

    def _close(self, remove: bool) -> None:
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.spool.close()
            if remove:
                self._claim.remove()
            else:
                self._claim.release()
