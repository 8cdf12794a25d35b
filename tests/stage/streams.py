"""Logs shipped to a real Redis, and read from it, by tests."""

import asyncio
import pathlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import orjson

from llm_proxy.events.disk import Disk
from llm_proxy.events.reading import StreamGap
from llm_proxy.events.shipping import NAME, Shipper
from llm_proxy.events.spool import Spool
from llm_proxy.events.stream import EVENT, EventStream
from llm_proxy.redis_client import open_redis
from llm_proxy.secret import Secret
from llm_proxy.tasks import Tasks
from stage.redis import RedisServer
from stage.sinks import sample

KEY, PREFIX = "events", "llm-proxy"
GIB = 1024**3


@asynccontextmanager
async def open_stream(server: RedisServer) -> AsyncIterator[EventStream]:
    """The stream of a server."""
    async with open_redis(Secret(server.uri), 10) as client:
        stream = EventStream(client, KEY, PREFIX)
        try:
            yield stream
        finally:
            await stream.close()


async def filled(stream: EventStream, count: int, size: int = 10) -> str:
    """So many events in the stream; its epoch."""
    epoch, _ = await stream.add("", [])
    for begin in range(0, count, 100):
        records = [(EVENT, b"%06d" % number + bytes(size)) for number in range(begin, min(begin + 100, count))]
        assert (await stream.add(epoch, records))[1]
    return epoch


class Log:
    """A log with its shipper; events are named by their number."""

    def __init__(self, folder: pathlib.Path, stream: EventStream, *, cap: int = GIB, **options: Any) -> None:
        folder.mkdir(exist_ok=True)
        self.spool = Spool(folder, (NAME,), disk=Disk(), **options)
        self.spool.open()
        self.shipper = Shipper(self.spool, stream, cap=cap)

    def publish(self, *numbers: int) -> None:
        """Append the events of these numbers."""
        for number in numbers:
            assert self.spool.append(orjson.dumps(sample(number)))

    @property
    def acknowledged(self) -> int:
        """Up to where nothing is needed any more."""
        return self.spool.cursors[NAME].position


@asynccontextmanager
async def shipping(*logs: Log) -> AsyncIterator[None]:
    """Ship while the block runs; its logs are closed with it."""
    tasks = Tasks()
    running = [tasks.start("shipper", log.shipper.run()) for log in logs]
    try:
        yield
        for log in logs:
            log.shipper.stop()
        async with asyncio.timeout(10):
            await asyncio.gather(*running)
    finally:
        await tasks.close()
        for log in logs:
            log.spool.close()


def numbers_of(items: list[Any]) -> list[int]:
    """The numbers of the events among these, in order."""
    return [int(orjson.loads(item.payload)["request_id"].split("-")[1]) for item in items if not isinstance(item, StreamGap)]


async def taken(source: Any, most: int = 100) -> list[Any]:
    """Everything that a source has for now, acknowledged."""
    found: list[Any] = []
    while items := await source.read(most):
        found += items
        await source.settle(len(items))
    return found
