"""One connection to a provider: bytes of a request out, an answer in, one at a time."""

import asyncio
import functools
import math
import select
from typing import Any

import httptools

from llm_proxy.errors import UpstreamError, UpstreamInvalid, UpstreamTimeout, UpstreamUnavailable
from llm_proxy.grammar import MAX_HEAD_BYTES
from llm_proxy.upstream import FRAMING, check_answer
from llm_proxy.upstream.answer import READ_BUFFER, ReceivedAnswer
from llm_proxy.upstream.idle import IdleConnections
from llm_proxy.upstream.outgoing import Origin

# Their bytes are bounded too; this bounds the work that each of them makes.
MAX_HEADERS = 1024


@functools.lru_cache(maxsize=1024)
def _first_line(size: int) -> bytes:
    """How a chunk begins that has so many bytes with its framing; empty where none has."""
    for digits in range(1, 8):
        line = b"%x\r\n" % max(0, size - digits - 4)
        if len(line) == digits + 2 and line != b"0\r\n":
            return line
    return b""


class _Excess(Exception):
    """More came than the answer to the request."""


class Connection(asyncio.Protocol):
    """A connection, less trusting than the provider may like.

    Args:
        origin: whom it leads to.
        idle: where it waits between two requests.

    Attributes:
        idle_since: the loop's time when it was last used.
        is_closed: it is of no use any more.
        is_silent: nothing has come since the last request was sent.
        sending: writes what is left of a request; None when all of it is written.
    """

    def __init__(self, origin: Origin, idle: IdleConnections) -> None:
        self.origin = origin
        self.idle_since = 0.0
        self.is_closed = False
        self.is_silent = True
        self.sending: asyncio.Task[None] | None = None
        self._idle = idle
        self._loop = asyncio.get_running_loop()
        self._poll = select.poll()
        self._answer: ReceivedAnswer | None = None
        self._parser = httptools.HttpResponseParser(self)
        self._is_head_request = False
        self._keeps_alive = False
        self._reason = b""
        self._headers: list[tuple[bytes, bytes]] = []
        # Bytes since the last of the body: a head, chunk extensions or trailers, which must not go on without end.
        self._overhead = 0
        # What comes next is a chunk's first line.
        self._between_chunks = False
        self._reads = True
        self._writable: asyncio.Future[None] | None = None
        self._patience = 0.0
        self._deadline = math.inf
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at = 0.0

    def connection_made(self, transport: Any) -> None:
        """It stands."""
        self._transport = transport
        self._poll.register(transport.get_extra_info("socket").fileno(), select.POLLIN)

    def is_usable(self) -> bool:
        """Whether an idle connection may take a request: what the loop has not yet read is an end, or a poison."""
        return not self.is_closed and not self._poll.poll(0)

    def begin(self, method: str, data: bytes, first_byte: float) -> ReceivedAnswer:
        """Write a request, or its beginning; returns where its answer will arrive.

        Args:
            data: the head, with what is ready of the body.
            first_byte: how many seconds the provider may be silent once it has the request.
        """
        self._is_head_request = method == "HEAD"
        self.is_silent = True
        answer = self._answer = ReceivedAnswer(self)
        self._patience = first_byte
        self.moved()
        self._transport.write(data)
        return answer

    def write(self, data: bytes) -> None:
        """Write more of a request."""
        self._transport.write(data)

    async def written(self) -> None:
        """Wait until the provider keeps up with what was written; the answer may have begun before."""
        if self._writable is not None and not self.is_closed:
            await self._writable
        self.moved()

    def moved(self) -> None:
        """The provider has something new to work on, so its silence begins anew, if it has not yet ended."""
        answer = self._answer
        if answer is not None and not answer.status:
            self.watch(self._patience)

    def watch(self, seconds: float) -> None:
        """See `Source.watch`; before the head has come, the connection ends after so long."""
        deadline = self._deadline = self._loop.time() + seconds
        if self._timer is None or self._timer_at > deadline:
            self._look_at(deadline)

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer, self._timer_at = self._loop.call_at(when, self._look), when

    def _look(self) -> None:
        """Look whether the deadline has passed: calls move it, and only this the timer, which outlives many calls."""
        self._timer = None
        if self._deadline > self._loop.time():
            if self._deadline != math.inf:
                self._look_at(self._deadline)
            return
        self._deadline, answer = math.inf, self._answer
        if answer is not None and answer.status:
            answer.silent()
        else:
            self.end(UpstreamTimeout("The provider did not begin its answer in time.", sent=True))

    def data_received(self, data: bytes) -> None:
        """Take bytes of the answer to the request under way."""
        answer = self._answer
        if answer is None:
            # It would be taken for the answer to the next request, which may be another client's.
            self.abort()
            return
        if self._between_chunks:
            # One whole chunk, as most that comes of a stream, needs no parser, for which nothing changes.
            line = _first_line(len(data))
            if line and data.startswith(line) and data.endswith(b"\r\n") and answer.offer(data[len(line) : -2], data):
                # It was set when the body began to flow, so the timer need not be moved.
                self._deadline = self._loop.time() + answer.patience
                return
        self.is_silent = False
        self._overhead += len(data)
        try:
            self._parser.feed_data(data)
        except (httptools.HttpParserError, httptools.HttpParserUpgrade) as error:
            if not answer.is_whole:
                self._refuse(answer, error)
                return
            self._keeps_alive = False
        # A line that has begun has not yet ended.
        self._between_chunks = self._between_chunks and data.endswith(b"\r\n")
        if answer.is_whole:
            self._complete(answer)
        elif self._overhead > MAX_HEAD_BYTES:
            self._refuse(answer, None)
        else:
            if answer.buffered > READ_BUFFER and self._reads:
                self._transport.pause_reading()
                self._reads = False
            answer.wake()

    def on_message_begin(self) -> None:
        """A message begins; more than the one that was asked for is too much."""
        if self._answer is None or self._answer.is_whole:
            raise _Excess

    def on_status(self, reason: bytes) -> None:
        """A piece of the reason phrase."""
        self._reason += reason

    def on_header(self, name: bytes, value: bytes) -> None:
        """A header; after the head it is a trailer, which goes nowhere."""
        if not self._answer.status:  # type: ignore[union-attr]  # on_message_begin has seen to it
            self._headers.append((name, value.rstrip(b" \t")))

    def on_headers_complete(self) -> None:
        """The head is there; after an interim one, another is to come."""
        status, headers, reason = self._parser.get_status_code(), self._headers, self._reason
        self._headers, self._reason = [], b""
        if 100 <= status < 200 and status != 101:
            return
        if len(reason) > MAX_HEAD_BYTES or len(headers) > MAX_HEADERS:
            raise UpstreamInvalid("The provider's head is too large.", sent=True)
        fields = check_answer(status, headers)
        answer = self._answer
        assert answer is not None
        answer.status, answer.headers, answer.fields = status, headers, fields
        answer.reason = reason.decode("utf-8", "surrogateescape")
        self._deadline, self._between_chunks = math.inf, False
        if self._is_head_request:
            # The parser expects the body that a GET would have.
            answer.is_whole, self._keeps_alive = True, self._parser.should_keep_alive()
            self._parser = httptools.HttpResponseParser(self)

    def on_body(self, data: bytes) -> None:
        """A piece of the body."""
        answer = self._answer
        if answer is None or answer.is_whole:
            raise _Excess
        self._overhead = 0
        answer.add(data)

    def on_chunk_header(self) -> None:
        """A chunk begins."""
        self._between_chunks = False

    def on_chunk_complete(self) -> None:
        """A chunk has ended."""
        self._between_chunks = True

    def on_message_complete(self) -> None:
        """The message ends; an interim one was not the answer."""
        answer = self._answer
        if answer is not None and answer.status and not answer.is_whole:
            answer.is_whole, self._keeps_alive = True, self._parser.should_keep_alive()

    def _complete(self, answer: ReceivedAnswer) -> None:
        """Let the answer go, and wait for another request; not while one is still being sent, whose rest nobody wants."""
        self._answer, self._overhead, self._deadline = None, 0, math.inf
        answer.end()
        if not self._reads:
            self.go_on()
        if self.sending or not self._keeps_alive or self.is_closed or not self._idle.put(self):
            self.abort()

    def _refuse(self, answer: ReceivedAnswer, error: Exception | None) -> None:
        """End what cannot be understood."""
        if answer.is_seen:
            self.end(None)
            return
        # A head that nobody has seen is worth no more than the nonsense that follows it.
        answer.status = 0
        known = error.__context__ if error is not None else None
        invalid = UpstreamInvalid("The provider's answer is not valid HTTP.", sent=True)
        self.end(known if isinstance(known, UpstreamInvalid) else invalid)

    def go_on(self) -> None:
        """See `Source.go_on`."""
        if not self._reads and not self.is_closed:
            self._transport.resume_reading()
            self._reads = True

    def pause_writing(self) -> None:
        """The provider, or the way to it, is slow."""
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        """There is room again."""
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def eof_received(self) -> None:
        """The provider sends no more, which ends a body without a length."""
        answer = self._answer
        if answer is not None and answer.status and answer.fields.keys().isdisjoint(FRAMING):
            answer.is_whole, self._keeps_alive = True, False
            self._complete(answer)
        else:
            self.end(None)

    def connection_lost(self, error: Exception | None) -> None:
        """It is gone, by a reset or by our own hand."""
        self.end(None)
        # It holds methods of this object, and this object it.
        del self._parser

    def abort(self) -> None:
        """See `Source.abort`."""
        self.end(None)

    def end(self, error: UpstreamError | None) -> None:
        """Close at once; the answer under way ends with `error`, or with what the provider has to be blamed for."""
        if self.is_closed:
            return
        self.is_closed = True
        answer, self._answer = self._answer, None
        if answer is None:
            self._idle.remove(self)
        else:
            answer.fail(error or _broken(answer))
        if self._timer is not None:
            self._timer.cancel()
        if self.sending:
            self.sending.cancel()
            self.sending = None
        self.resume_writing()
        self._transport.abort()


def _broken(answer: ReceivedAnswer) -> UpstreamError:
    if answer.status:
        return UpstreamInvalid("The provider's answer broke off.", sent=True)
    return UpstreamUnavailable("The provider closed the connection without an answer.", sent=True)
