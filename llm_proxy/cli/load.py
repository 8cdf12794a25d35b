"""Requests one after another on a few connections, each timed to the nanosecond."""

import asyncio
import ssl
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import httptools

from llm_proxy.cli.api import reason_of

CONNECT_SECONDS = 10.0
# Of an answer that is no good, to say why.
KEPT_BYTES = 64 * 1024


@dataclass(slots=True)
class Timed:
    """One request; moments are nanoseconds of one clock, 0 where they never came.

    Attributes:
        headers: of the answer, by name in lower case.
        pieces: how many times bytes of the body came in.
        kept: the beginning of the body of an answer that is no good.
        error: why there is no whole answer, empty when there is one.
    """

    began: int = 0
    head: int = 0
    first: int = 0
    ended: int = 0
    status: int = 0
    pieces: int = 0
    size: int = 0
    headers: dict[bytes, bytes] = field(default_factory=dict)
    kept: bytes = b""
    error: str = ""

    @property
    def is_good(self) -> bool:
        """Whether a whole answer came that is no refusal."""
        return not self.error and self.status < 400

    def provider_ns(self) -> int:
        """What the provider took until its answer began, as the proxy says; 0 when it was not asked."""
        try:
            stop, start = self.headers[b"x-upstream-request-stop"], self.headers[b"x-upstream-request-start"]
            return max(0, int(stop) - int(start))
        except (KeyError, ValueError):
            return 0


class Connection(asyncio.Protocol):
    """One connection, one request at a time."""

    def __init__(self) -> None:
        self._transport: Any = None
        self._parser: Any = None
        self._timed = Timed()
        self._done: asyncio.Future[None] | None = None
        self.is_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio."""
        self._transport = transport

    def connection_lost(self, error: Exception | None) -> None:
        """See asyncio."""
        self.is_open = False
        self._end(reason_of(error) if error else "the connection was closed in the middle of it")

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserError:
            self._end("what came is no HTTP")
            self.close()

    async def ask(self, request: bytes) -> Timed:
        """Send a request; returns what came of it, once the answer has ended."""
        self._timed, self._parser = Timed(), httptools.HttpResponseParser(self)
        self._done = asyncio.get_running_loop().create_future()
        self._timed.began = time.perf_counter_ns()
        self._transport.write(request)
        await self._done
        return self._timed

    def close(self) -> None:
        """Close it."""
        self.is_open = False
        self._transport.abort()

    def on_header(self, name: bytes, value: bytes) -> None:
        """See httptools."""
        self._timed.headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        """See httptools."""
        self._timed.head = time.perf_counter_ns()
        self._timed.status = self._parser.get_status_code()

    def on_body(self, data: bytes) -> None:
        """See httptools."""
        timed = self._timed
        timed.first = timed.first or time.perf_counter_ns()
        timed.pieces += 1
        timed.size += len(data)
        if timed.status >= 400 and len(timed.kept) < KEPT_BYTES:
            timed.kept += data

    def on_message_complete(self) -> None:
        """See httptools."""
        if self._timed.status >= 200:
            self.is_open = self.is_open and self._parser.should_keep_alive()
            self._end("")

    def _end(self, error: str) -> None:
        if self._done and not self._done.done():
            self._timed.ended, self._timed.error = time.perf_counter_ns(), error
            self._done.set_result(None)


@dataclass(frozen=True)
class Load:
    """What is asked, where, how much of it, for how long at most.

    Attributes:
        url: the site, perhaps with a path in front of the request's.
        count: how many requests there are, the first one by itself.
        tell: called after each.
    """

    url: str
    path: str
    headers: dict[str, str]
    body: bytes
    count: int
    concurrency: int
    seconds: float
    tell: Callable[[], None]

    async def run(self) -> tuple[list[Timed], float]:
        """Ask; returns what came of each request that ended in time, and the seconds in which all but the first were made.

        Nothing follows a first request that is no good.

        Raises:
            OSError: there is no connection.
        """
        found = [await self._first()]
        self.tell()
        if not found[0].is_good:
            return found, 0.0
        left = iter(range(self.count - 1))
        began = time.perf_counter()
        try:
            async with asyncio.timeout(self.seconds):
                await asyncio.gather(*(self._ask(left, found) for _ in range(min(self.concurrency, self.count - 1))))
        except TimeoutError:
            # A timer may be a millisecond early; from this number others know that the time was up.
            return found, max(self.seconds, time.perf_counter() - began)
        return found, time.perf_counter() - began

    async def _first(self) -> Timed:
        connection = await self._connect()
        try:
            async with asyncio.timeout(self.seconds):
                return await connection.ask(self._request())
        except TimeoutError:
            return Timed(error=f"no answer within {self.seconds:g} s")
        finally:
            connection.close()

    async def _ask(self, left: Any, found: list[Timed]) -> None:
        """Ask for as long as requests are left, on one connection as long as it stays open."""
        request, connection = self._request(), None
        try:
            for _ in left:
                if connection is None or not connection.is_open:
                    connection = await self._connect()
                found.append(await connection.ask(request))
                self.tell()
        except OSError as error:
            found.append(Timed(error=reason_of(error)))
        finally:
            if connection:
                connection.close()

    async def _connect(self) -> Connection:
        parts = urlsplit(self.url)
        tls = ssl.create_default_context() if parts.scheme == "https" else None
        async with asyncio.timeout(CONNECT_SECONDS):
            _, connection = await asyncio.get_running_loop().create_connection(
                Connection, parts.hostname or "", parts.port or (443 if tls else 80), ssl=tls
            )
        return connection

    def _request(self) -> bytes:
        parts = urlsplit(self.url)
        headers = {"Host": parts.netloc.rpartition("@")[2], **self.headers, "Content-Length": str(len(self.body))}
        lines = [f"POST {parts.path}{self.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items()), "", ""]
        return "\r\n".join(lines).encode() + self.body
