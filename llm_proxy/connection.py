"""One client's connection: deadlines and limits from its first byte to its close."""

import asyncio
from typing import Any, cast

from aiohttp import web
from aiohttp.http import HttpRequestParser
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import _ErrInfo

from llm_proxy.errors import ApiError
from llm_proxy.grammar import MAX_HEAD_BYTES
from llm_proxy.guard import Guard, peer_address
from llm_proxy.heads import Head, Start, length_of, start_of
from llm_proxy.inbound import WholeBody
from llm_proxy.peers import within
from llm_proxy.serving import Calls, Serving

HEAD_SECONDS = 10.0
BODY_IDLE_SECONDS = 30.0
BODY_GRACE_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 1024
WRITE_STALL_SECONDS = 60.0
WATCH_SECONDS = 1.0
# A gateway must be the one that closes an idle connection, or it may send a call into one that closes in that moment. AWS's
# balancer keeps its own for an hour at most, Caddy for two minutes.
GATEWAY_KEEPALIVE_SECONDS = 3660.0
# llhttp does not know these two; to a client they are methods like TRACE.
_FOREIGN_METHODS = (b"TRACK ", b"DEBUG ")


class Connection(Serving):
    """One client's connection: aiohttp's, with deadlines and with limits that it lacks.

    A timer runs only while something is outstanding: a head or body that is not complete, bytes that a client does not
    read. A connection that has turned deaf reads nothing more, since nobody knows any longer what the bytes mean.
    """

    __slots__ = (
        "_body_began",
        "_body_bytes",
        "_body_paused_at",
        "_ending",
        "_head_began",
        "_head_bytes",
        "_in_chunks",
        "_timer",
        "_to_come",
        "_unsent",
        "_unsent_since",
        "_wire",
    )

    def __init__(self, manager: web.Server, guard: Guard, calls: Calls | None = None, **kwargs: Any) -> None:
        super().__init__(manager, guard, calls, **kwargs)
        self._body_began = 0.0
        self._body_bytes = 0
        self._body_paused_at = 0
        self._ending = b""
        self._head_began = 0.0
        self._head_bytes = 0
        self._in_chunks = False
        self._timer: asyncio.TimerHandle | None = None
        # Bytes of a request that the parser waits for; None where it may have begun one of which nothing is known here.
        self._to_come: int | None = 0
        self._unsent = 0
        self._unsent_since = 0.0
        self._wire: asyncio.Transport | None = None

    @property
    def is_busy(self) -> bool:
        """Whether an answer is owed, or a part of one."""
        unanswered = not self._lingering and (self._request_in_progress or bool(self._messages))
        return unanswered or self._unsent_bytes() > 0

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Begin to serve, unless too many are served already."""
        wire = cast(asyncio.Transport, transport)
        if self._guard.admits(wire):
            self._wire = wire
            self.remote = peer_address(wire)
            if within(self.remote, self._guard.gateways):
                self._keepalive_timeout = GATEWAY_KEEPALIVE_SECONDS
            super().connection_made(wire)
        else:
            wire.abort()

    def data_received(self, data: bytes) -> None:
        """Pass bytes to the parser, watching how much of what kind has come since when."""
        if self._deaf or self._close or self._force_close:
            self._received = self._loop.time()
            return
        calls = self._calls
        start = start_of(data) if calls and self._is_between_requests() else None
        if calls and start and self._is_awaited() and start.missing(data) == 0 and (head := calls.heads.get(start)):
            self._came_known(head, start.length, data[start.end :])
            return
        messages, in_body = self._request_count, not self._body.is_eof()
        super().data_received(data)
        self._received = self._loop.time()
        if came := self._request_count - messages:
            self._messages_came(came, data)
        elif in_body:
            self._body_grew(len(data))
        elif data:
            self._head_grew(len(data))
        self._count(came, data, start)
        if self._in_chunks:
            self._ending = (self._ending + data[-4:])[-4:]
            if self._body.is_eof():
                self._end_chunks()
        if self._is_incomplete():
            self._watch()

    def _is_between_requests(self) -> bool:
        """Whether the parser has seen nothing of the next request."""
        return self._to_come == 0 and self._body.is_eof() and not self._upgraded

    def _is_awaited(self) -> bool:
        """Whether nothing is left to do before the next request."""
        return self._waiter is not None and not self._waiter.done()

    def _count(self, came: int, data: bytes, start: Start | None) -> None:
        """Know whether the parser stands between two requests, for it does not tell that it has begun the next one."""
        before, self._to_come = self._to_come, None
        if self._deaf or before is None:
            return
        if came == 1 and start:
            head, length, body = self._messages.pop()
            if start.agrees(head.message) and start.missing(data) >= 0:
                self._to_come = start.missing(data)
                head = self._recognised(start, head)
            self._messages.append((head, length, body))
        elif came == 0 and len(data) <= before:
            self._to_come = before - len(data)

    def _recognised(self, start: Start, head: Head) -> Head:
        """The head that started so before; nothing is kept of what is for a route of ours, such as management tokens."""
        calls = self._calls
        return calls.heads.same(start, head) if calls and head.recall(calls.wants) else head

    def _came_known(self, head: Head, length: int | None, body: bytes) -> None:
        """A request that needs no parser: its head is known, and its body is all that came with it."""
        assert self._waiter is not None
        self._received = self._loop.time()
        self._request_count += 1
        self._body, self._body_answered = EMPTY_PAYLOAD, False
        self._messages.append((head, length, WholeBody(body) if body else EMPTY_PAYLOAD))
        self._waiter.set_result(None)

    def _messages_came(self, came: int, data: bytes) -> None:
        self._head_began, self._head_bytes = 0.0, 0
        new = [cast(Any, self._messages.pop()) for _ in range(came)]
        while new and not self._deaf:
            message, body = new.pop()
            if isinstance(message, _ErrInfo):
                self._parser_gave_up(message, data)
            elif self._in_chunks:
                self._deaf = self._close = True
            else:
                self._messages.append((Head(message), length_of(message), body))
                self._body, self._body_answered = body, False
                self._body_began, self._body_bytes, self._body_paused_at = self._received, 0, 0
                self._in_chunks = message.chunked

    def _parser_gave_up(self, error: _ErrInfo, data: bytes) -> None:
        self._deaf = True
        if not self._body.is_eof():
            # The parser leaves the body open: who waits for the rest of it gives the one answer.
            self._end_body(ApiError("bad_request", "The body is not framed as its headers say."))
            return
        if data.startswith(_FOREIGN_METHODS):
            unknown = ApiError("method_not_allowed", "This method is not served here.")
            error = _ErrInfo(unknown.status, unknown, unknown.message)
        self._messages.append((error, None, EMPTY_PAYLOAD))

    def _end_chunks(self) -> None:
        """After chunks the parser keeps the last trailer, and gives it to the next request as a header: begin with a fresh one.

        Where more than the chunks may have gone into the parser, the connection ends with this answer.
        """
        self._in_chunks = False
        if self._deaf or self._buffer_paused or self._ending != b"\r\n\r\n":
            self._deaf = self._close = True
            return
        self._parser = HttpRequestParser(
            self,
            self._loop,
            self._read_bufsize,
            max_line_size=self.max_line_size,
            max_field_size=self.max_field_size,
            max_headers=self.max_headers,
            payload_exception=web.RequestPayloadError,
            auto_decompress=False,
            max_msg_queue_size=self._max_msg_queue_size,
        )
        self._to_come = 0

    def _head_grew(self, size: int) -> None:
        self._head_began = self._head_began or self._received
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(ApiError("headers_too_large", f"The head of the request is larger than {MAX_HEAD_BYTES} bytes."))

    def _body_grew(self, size: int) -> None:
        """Framing counts too, or chunk extensions would be a body without limit."""
        self._body_bytes += size
        if self._body_bytes > self._guard.limits.body_bytes and not self._body.is_eof():
            self._end_body(ApiError("request_too_large", f"The body is larger than {self._guard.limits.body_bytes} bytes."))

    def _refuse(self, error: ApiError) -> None:
        """Queue an error as the answer to a request that never became one."""
        self._deaf = True
        self._request_count += 1
        self._messages.append((_ErrInfo(error.status, error, error.message), None, EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _end_body(self, error: ApiError) -> None:
        """Give up a body that is not complete: who waits for it gets the error; the connection ends with the answer."""
        self._deaf = self._close = True
        if self._body_answered:
            self._body.feed_eof()
        else:
            # Without an end, so that nobody takes what has come so far for the whole.
            self._body.set_exception(error)

    def _is_incomplete(self) -> bool:
        return not self._deaf and (self._head_began > 0 or not self._body.is_eof())

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._watch_writing()

    def force_close(self) -> None:
        """Close, watching that what is still to be written gets read."""
        super().force_close()
        self._watch_writing()

    def _unsent_bytes(self) -> int:
        return self._wire.get_write_buffer_size() if self._wire else 0

    def _watch_writing(self) -> None:
        self._unsent, self._unsent_since = self._unsent_bytes(), self._loop.time()
        if self._unsent:
            self._watch()

    def _watch(self) -> None:
        if self._timer is None and self._wire is not None:
            self._timer = self._loop.call_later(WATCH_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        now = self._loop.time()
        if self._head_began and self._is_incomplete():
            self._look_at_head(now)
        elif self._is_incomplete():
            self._look_at_body(now)
        if self._unsent:
            self._look_at_writing(now)
        if self._unsent or self._is_incomplete():
            self._watch()

    def _look_at_head(self, now: float) -> None:
        if now - self._head_began >= HEAD_SECONDS:
            self._refuse(ApiError("request_timeout", f"The head of the request did not come within {HEAD_SECONDS:.0f} s."))

    def _look_at_body(self, now: float) -> None:
        if self._reading_paused or self._buffer_paused:
            # It is we who do not read; the client's time starts anew when we do.
            self._received = self._body_began = now
            self._body_paused_at = self._body_bytes
            return
        age, bytes_since = now - self._body_began, self._body_bytes - self._body_paused_at
        too_slow = age >= BODY_GRACE_SECONDS and bytes_since < age * BODY_BYTES_PER_SECOND
        if too_slow or now - self._received >= BODY_IDLE_SECONDS:
            self._end_body(ApiError("request_timeout", "The body of the request came too slowly."))

    def _look_at_writing(self, now: float) -> None:
        unsent = self._unsent_bytes()
        if unsent != self._unsent:
            self._unsent, self._unsent_since = unsent, now
        elif now - self._unsent_since >= WRITE_STALL_SECONDS and self._wire:
            self._unsent = 0
            self._wire.abort()

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing is watched any more."""
        if self._timer is not None:
            self._timer.cancel()
        if self._wire is not None:
            self._guard.leaves(self._wire)
        self._wire = None
        super().connection_lost(exc)

    async def _linger(self) -> None:
        await super()._linger()
        self._watch_writing()
