"""A raw HTTP/1.1 client: sends bytes as they are, reads an answer strictly."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from urllib.parse import urlsplit


@dataclass
class Answer:
    """What came back.

    Attributes:
        whole: the body ended as its framing promised.
        closed: the server closed the connection after it.
    """

    status: int
    head: bytes
    body: bytes
    whole: bool
    closed: bool = False

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header."""
        for line in self.head.split(b"\r\n")[1:]:
            given, _, value = line.partition(b":")
            if given.lower() == name.lower():
                return value.strip()
        return None


class RawConnection:
    """One connection to a site."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Send bytes; that the other side closes meanwhile is an answer too."""
        with contextlib.suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()

    async def answer(self, method: str = "GET") -> Answer | None:
        """Read one answer; None when the connection was closed without one."""
        try:
            head = await self.reader.readuntil(b"\r\n\r\n")
        except (asyncio.IncompleteReadError, ConnectionError):
            return None
        found = Answer(int(head.split(b" ", 2)[1]), head, b"", whole=True)
        if found.status in (100, 204, 304) or method == "HEAD":
            return found
        try:
            found.body = await self._body(found)
        except _Broken as broken:
            found.body, found.whole = broken.args[0], False
        return found

    async def _body(self, found: Answer) -> bytes:
        body = b""
        try:
            if found.header(b"transfer-encoding") == b"chunked":
                while size := int((await self.reader.readuntil(b"\r\n")).strip(), 16):
                    body += await self.reader.readexactly(size)
                    await self.reader.readexactly(2)
                await self.reader.readexactly(2)
                return body
            length = found.header(b"content-length")
            return await self.reader.readexactly(int(length)) if length is not None else await self.reader.read()
        except asyncio.IncompleteReadError as error:
            raise _Broken(body + error.partial) from error
        except (ConnectionError, ValueError) as error:
            raise _Broken(body) from error

    async def is_closed(self, seconds: float = 2.0) -> bool:
        """Whether the server closes the connection within a time, without another byte."""
        try:
            async with asyncio.timeout(seconds):
                return await self.reader.read(1) == b""
        except TimeoutError:
            return False
        except ConnectionError:
            return True

    def abort(self) -> None:
        """Leave without a word."""
        self.writer.transport.abort()


class _Broken(Exception):
    """The body broke off; the argument is what came of it."""


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[RawConnection]:
    """A raw connection to the site at `url`."""
    parts = urlsplit(url)
    reader, writer = await asyncio.open_connection(parts.hostname, parts.port, limit=64 * 1024 * 1024)
    try:
        yield RawConnection(reader, writer)
    finally:
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()


async def exchange(url: str, data: bytes, method: str = "POST") -> Answer | None:
    """Send bytes on a connection of their own, read the answer and whether the connection was closed after it."""
    async with asyncio.timeout(10), connected(url) as connection:
        await connection.send(data)
        found = await connection.answer(method)
        if found:
            found.closed = await connection.is_closed(0.3)
        return found
