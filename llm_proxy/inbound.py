"""A request as the call that it begins sees it."""

import asyncio
from typing import Protocol

from aiohttp import StreamReader

from llm_proxy.heads import Head


class Given:
    """An answer that is written already: whether the connection goes on is all that is left to know."""

    def __init__(self, keep_alive: bool) -> None:
        self.keep_alive = keep_alive


class Line(Protocol):
    """The client's connection.

    Attributes:
        transport: None once it is lost.
        remote: the client's address.
        _paused: the client reads more slowly than we write. (aiohttp's property for it costs a call.)
    """

    transport: asyncio.Transport | None
    remote: str
    _paused: bool

    async def drained(self) -> None:
        """Wait until the client has read enough.

        Raises:
            ConnectionError: it left.
        """


class WholeBody:
    """A body that came in one piece with its head: as much of a stream as its reader asks for."""

    __slots__ = ("_left", "total_bytes")

    def __init__(self, data: bytes) -> None:
        self._left = data
        self.total_bytes = len(data)

    def at_eof(self) -> bool:
        """Whether there is nothing more to read."""
        return not self._left

    def is_eof(self) -> bool:
        """Whether all of it has come."""
        return True

    def exception(self) -> BaseException | None:
        """Nothing can go wrong with it any more."""
        return None

    def set_exception(self, exc: BaseException) -> None:
        """Nothing waits for it that could be told."""

    def read_nowait(self) -> bytes:
        """All of it, once."""
        data, self._left = self._left, b""
        return data

    async def readany(self) -> bytes:
        """All of it, once."""
        return self.read_nowait()


class Inbound:
    """A request, its head read, its body perhaps still on its way.

    Attributes:
        head: what it begins with; method, version, headers, raw_headers and raw_path are the head's.
        length: of the body in bytes, as this request states it; None when it states none.
        content: the body.
        keep_alive: whether the connection may serve another request after this one.
        protocol: the connection.
    """

    __slots__ = ("content", "head", "headers", "keep_alive", "length", "method", "protocol", "raw_headers", "raw_path", "version")

    # TLS ends before us.
    scheme = "http"

    def __init__(
        self, protocol: Line, head: Head, length: int | None, content: StreamReader | WholeBody, keep_alive: bool
    ) -> None:
        self.protocol = protocol
        self.head = head
        self.length = length
        self.content = content
        self.keep_alive = keep_alive
        self.method = head.method
        self.version = head.version
        self.headers = head.headers
        self.raw_headers = head.raw_headers
        self.raw_path = head.raw_path

    @property
    def can_read_body(self) -> bool:
        """Whether a part of the body is still to be read."""
        return not self.content.at_eof()

    @property
    def remote(self) -> str:
        """The address of whoever opened the connection."""
        return self.protocol.remote

    @property
    def transport(self) -> asyncio.Transport | None:
        """The connection's, None once it is lost."""
        return self.protocol.transport
