"""The reply to a client, written to its connection as bytes that nobody else touches."""

import asyncio
import functools
import socket
import struct
import time
from collections.abc import Iterable
from email.utils import formatdate
from http import HTTPStatus

from aiohttp import HttpVersion11

from llm_proxy.errors import ClientGone
from llm_proxy.inbound import Given, Inbound

DRAIN_SECONDS = 1.0
_RESET = struct.pack("ii", 1, 0)


# So long is a reason that is remembered, so that a provider fills no memory with them.
LONGEST_REASON = 64


def _phrase(status: int) -> str:
    try:
        return HTTPStatus(status).phrase
    except ValueError:
        return ""


def _status_line(is_11: bool, status: int, reason: str) -> bytes:
    return f"HTTP/1.{1 if is_11 else 0} {status} {_clean(reason) or _phrase(status)}".encode()


_remembered_line = functools.lru_cache(maxsize=256)(_status_line)


@functools.lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return b"Date: " + formatdate(second, usegmt=True).encode()


class Reply(Given):
    """One reply, framed by its length when that is known, else by chunks, for HTTP/1.0 by the end of the connection.

    When the handler returns it, it is already written.
    """

    def __init__(self, request: Inbound) -> None:
        super().__init__(request.keep_alive)
        self._request = request
        self._protocol = request.protocol
        self._head = b""
        self._chunked = False
        self._by_close = False
        self.has_body = True
        self.status = 0
        self.started = False
        self.sent_bytes = 0
        self.length: int | None = None
        self.asked_for_body = False

    def ask_for_body(self) -> None:
        """Send `100 Continue`, once the body is known to be wanted."""
        self.asked_for_body = True
        self._transport().write(b"HTTP/1.1 100 Continue\r\n\r\n")

    def begin(self, status: int, reason: str, headers: Iterable[tuple[bytes, bytes]], length: int | None) -> None:
        """Settle the head; it travels with the first bytes of the body, or with `flush_head`. Until then it may be settled anew.

        Args:
            length: of the body in bytes, None when it is not known.
        """
        self.status, self.length = status, length
        self.has_body = self._request.method != "HEAD" and status not in (204, 304)
        is_11 = self._request.version >= HttpVersion11
        unknown = self.has_body and length is None
        self._chunked, self._by_close = unknown and is_11, unknown and not is_11
        # Where a body that nobody waits for any more is still on its way, only a closed connection ends it.
        self.keep_alive = self.keep_alive and not self._by_close and self._request.content.is_eof()
        first = _remembered_line if len(reason) <= LONGEST_REASON else _status_line
        head = b"\r\n".join([first(is_11, status, reason), *map(b": ".join, headers)])
        ends = [head]
        if b"\r\ndate:" not in head.lower():
            ends.append(_date(int(time.time())))
        if self._chunked:
            ends.append(b"Transfer-Encoding: chunked")
        elif length is not None and status != 204:
            ends.append(b"Content-Length: %d" % length)
        if not self.keep_alive:
            ends.append(b"Connection: close")
        elif not is_11:
            ends.append(b"Connection: keep-alive")
        ends.append(b"\r\n")
        self._head = b"\r\n".join(ends)

    @property
    def is_chunked(self) -> bool:
        """Whether further events may be put into the body."""
        return self._chunked

    def _transport(self) -> asyncio.WriteTransport:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise self._gone()
        return transport

    def _gone(self) -> ClientGone:
        self.keep_alive = False
        return ClientGone("The client closed its connection.")

    def check_client(self) -> None:
        """Raise `ClientGone` when nobody is there to read the rest."""
        self._transport()

    async def flush_head(self) -> None:
        """Send the head before there is any body."""
        if self._hand_over(b""):
            await self.drained()

    def send(self, data: bytes, chunk: bytes = b"") -> bool:
        """Send a piece of the body; returns whether the client is so slow that `drained` must be waited for.

        Args:
            chunk: the piece as a chunk, if it is at hand.

        Raises:
            ClientGone: there is nobody to send to.
        """
        self.sent_bytes += len(data)
        if self._chunked:
            data = chunk or b"%x\r\n%b\r\n" % (len(data), data)
        transport = self._protocol.transport
        if self._head or transport is None or transport.is_closing():
            return self._hand_over(data)
        transport.write(data)
        return self._protocol._paused

    async def write(self, data: bytes) -> None:
        """Send a piece of the body; waits while the client is slow.

        Raises:
            ClientGone: there is nobody to send to.
        """
        if self.send(data):
            await self.drained()

    def _framed(self, data: bytes) -> bytes:
        return b"%x\r\n%b\r\n" % (len(data), data) if self._chunked else data

    async def end(self, data: bytes = b"") -> None:
        """Send the last piece, which may be empty, and the end of the body."""
        self.sent_bytes += len(data)
        last = self._framed(data) if data and self.has_body else b""
        if self._hand_over(last + b"0\r\n\r\n" if self._chunked else last):
            await self.drained()

    def _hand_over(self, data: bytes) -> bool:
        transport = self._protocol.transport
        if transport is None or transport.is_closing():
            raise self._gone()
        self.started = True
        if self._head:
            data, self._head = self._head + data, b""
        if data:
            transport.write(data)
        return self._protocol._paused

    async def drained(self) -> None:
        """Wait until the client has read enough of what was sent.

        Raises:
            ClientGone: it left.
        """
        try:
            await self._protocol.drained()
        except ConnectionError as error:
            raise ClientGone("The client closed its connection.") from error

    def break_off(self, last_words: bytes) -> None:
        """End a reply that cannot be completed so that no client can take it for whole.

        Args:
            last_words: an event that says why, where the reply is a stream that can carry one; else empty.
        """
        self.keep_alive = False
        transport = self._request.transport
        if transport is None or transport.is_closing():
            return
        if last_words and self._chunked:
            transport.write(self._framed(last_words))
            transport.close()
            # What the client has not read by then it will not get.
            asyncio.get_running_loop().call_later(DRAIN_SECONDS, transport.abort)
            return
        if self._by_close:
            _reset_on_close(transport)
        transport.abort()


def _clean(reason: str) -> str:
    return reason if reason.isascii() and reason.isprintable() else ""


def _reset_on_close(transport: asyncio.WriteTransport) -> None:
    """A body that ends with its connection ends neatly with a FIN; only a reset tells the client that it was cut."""
    connection = transport.get_extra_info("socket")
    if connection is not None:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
