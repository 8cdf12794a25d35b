"""A scripted provider on a raw socket: records the bytes it gets, answers with the bytes it is told."""

import asyncio
import contextlib
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

Script = Callable[["Exchange"], Awaitable[None]]


@dataclass
class Exchange:
    """One request at the provider."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter
    head: bytes
    body: bytes = b""
    closed_at: float | None = None
    closed: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def request_line(self) -> bytes:
        """The first line of the request."""
        return self.head.split(b"\r\n", 1)[0]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        """Names in lower case, and values, in order."""
        lines = self.head.split(b"\r\n")[1:-2]
        return [(line.partition(b":")[0].lower(), line.partition(b":")[2].strip()) for line in lines]

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header."""
        return next((value for given, value in self.headers if given == name.lower()), None)

    async def send(self, *pieces: bytes) -> None:
        """Send bytes, each piece by itself."""
        for piece in pieces:
            self.writer.write(piece)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def until_closed(self) -> None:
        """Wait until the other side closes, noting when."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass
        self.closed_at = time.monotonic()
        self.closed.set()

    def reset(self) -> None:
        """Close with a RST."""
        import socket
        import struct

        raw = self.writer.get_extra_info("socket")
        raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


def answer(body: bytes, content_type: bytes = b"application/json", status: bytes = b"200 OK", extra: bytes = b"") -> bytes:
    """A whole answer with a length."""
    return b"HTTP/1.1 %b\r\nContent-Type: %b\r\n%bContent-Length: %d\r\n\r\n%b" % (status, content_type, extra, len(body), body)


STREAM_HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def chunk(data: bytes) -> bytes:
    """One chunk of a chunked body."""
    return b"%x\r\n%b\r\n" % (len(data), data)


END = b"0\r\n\r\n"


class ScriptedProvider:
    """Serves one script for every request, which tests replace as they go; `exchanges` holds what came."""

    def __init__(self) -> None:
        self.exchanges: list[Exchange] = []
        self.connections = 0
        self.arrived = asyncio.Event()
        self.script: Script = self._ok
        self.reads_bodies = True
        self.url = ""

    async def _ok(self, exchange: Exchange) -> None:
        await exchange.send(answer(b'{"ok": true}'))

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while True:
                exchange = Exchange(reader, writer, await reader.readuntil(b"\r\n\r\n"))
                self.exchanges.append(exchange)
                self.arrived.set()
                if self.reads_bodies:
                    exchange.body = await _body(exchange)
                await self.script(exchange)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def next_exchange(self, seconds: float = 5.0) -> Exchange:
        """Wait for a request to arrive since the last call of this."""
        async with asyncio.timeout(seconds):
            await self.arrived.wait()
        self.arrived.clear()
        return self.exchanges[-1]


async def _body(exchange: Exchange) -> bytes:
    if exchange.header(b"transfer-encoding") == b"chunked":
        pieces = []
        while size := int((await exchange.reader.readuntil(b"\r\n")).strip(), 16):
            pieces.append(await exchange.reader.readexactly(size))
            await exchange.reader.readexactly(2)
        await exchange.reader.readexactly(2)
        return b"".join(pieces)
    return await exchange.reader.readexactly(int(exchange.header(b"content-length") or 0))


@asynccontextmanager
async def scripted_provider(tls: ssl.SSLContext | None = None) -> AsyncIterator[ScriptedProvider]:
    """A scripted provider on a free loopback port, with `tls` under the name localhost."""
    provider = ScriptedProvider()
    tasks: set[asyncio.Task[None]] = set()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.ensure_future(provider._serve(reader, writer))
        tasks.add(task)
        task.add_done_callback(tasks.discard)

    server = await asyncio.start_server(accept, "127.0.0.1", 0, limit=16 * 1024 * 1024, ssl=tls)
    scheme = "https://localhost" if tls else "http://127.0.0.1"
    provider.url = f"{scheme}:{server.sockets[0].getsockname()[1]}"
    try:
        yield provider
    finally:
        server.close()
        for task in list(tasks):
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
