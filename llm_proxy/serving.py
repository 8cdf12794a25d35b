"""One request after the other on a connection: calls to who serves them, the rest to aiohttp's application."""

import asyncio
import contextlib
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, cast

from aiohttp import StreamReader, web
from aiohttp.http import StreamWriter
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import ERROR, RequestHandler, _ErrInfo

from llm_proxy.guard import Guard, refusal, refusal_of
from llm_proxy.heads import Head, Heads, Message
from llm_proxy.inbound import Given, Inbound, WholeBody
from llm_proxy.logs import request_ids

log = logging.getLogger(__name__)

LINGER_SECONDS = 1.0
LONGEST_LINGER_SECONDS = 10.0
_LATE = web.PayloadAccessError()

# Nothing more of an answer is kept until the next request comes.
_KEPT, _LAST = cast(web.StreamResponse, Given(True)), cast(web.StreamResponse, Given(False))


class Calls(NamedTuple):
    """Who serves the requests that no route of ours is for.

    Attributes:
        serve: answers one; the answer is written when it returns.
        wants: whether a request is one of these, by its head.
        heads: those that came before.
    """

    serve: Callable[[Inbound], Awaitable[Given]]
    wants: Callable[[Head], bool]
    heads: Heads


class Serving(RequestHandler):
    """A connection that serves what was read from it; who reads it is a class below.

    Attributes:
        remote: the client's address.
    """

    # The head of each with the length that it states and its body.
    _messages: deque[tuple[Any, int | None, Any]]  # type: ignore[assignment]

    __slots__ = ("_body", "_body_answered", "_calls", "_deaf", "_guard", "_lingering", "_received", "remote")

    def __init__(self, manager: web.Server, guard: Guard, calls: Calls | None, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._guard = guard
        self._calls = calls
        self._body: StreamReader = EMPTY_PAYLOAD
        self._body_answered = False
        # Nobody knows any longer what further bytes mean.
        self._deaf = False
        self._lingering = False
        self._received = 0.0
        self.remote = ""

    async def start(self) -> None:
        """Serve one request after the other until the connection ends.

        Each runs here: in a task of its own, as aiohttp would have it, every call would wait for two more turns of the loop.
        """
        try:
            while not self._force_close and await self._serve(*await self._next_message()):
                self._next_keepalive_close_time = self._loop.time() + self._keepalive_timeout
                if self._keepalive_handle is None:
                    self._keepalive_handle = self._loop.call_at(self._next_keepalive_close_time, self._process_keepalive)
        except BaseException as error:
            self.force_close()
            if not isinstance(error, Exception):
                raise
            log.error("a connection failed by a mistake of this program", exc_info=error)
        if not self._force_close:
            self._task_handler = None
            if self.transport is not None:
                self.transport.close()

    async def _next_message(self) -> tuple[Any, int | None, StreamReader | WholeBody]:
        if not self._messages:
            self._waiter = self._loop.create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        head, length, body = self._messages.popleft()
        if self._parser is not None and not isinstance(body, WholeBody):
            self._parser.message_consumed()
        if self._buffer_paused and len(self._messages) <= self._msg_queue_resume_size:
            self._resume_reading_if_drained()
        return head, length, body

    async def _serve(self, head: Any, length: int | None, body: StreamReader | WholeBody) -> bool:
        """Serve one request; returns whether there may be another.

        Args:
            head: a `Head`, or what the parser says of something that is none.
            length: of the body, as the head states it.
        """
        # The task, hence its context, served the request before.
        request_ids.set(None)
        calls = self._calls
        if calls and isinstance(head, Head) and head.recall(calls.wants):
            return await self._serve_call(calls, head, length, body)
        assert isinstance(body, StreamReader), "only heads of calls are known"
        return await self._serve_ours(head, body)

    async def _serve_call(self, calls: Calls, head: Head, length: int | None, body: StreamReader | WholeBody) -> bool:
        if self._task_handler is None:
            # The connection is lost.
            return False
        self._request_in_progress = True
        try:
            answer = await calls.serve(Inbound(self, head, length, body, self.outlives(head.message)))
        except ConnectionError:
            return False
        finally:
            self._request_in_progress = False
            if self._handler_waiter is not None and not self._handler_waiter.done():
                self._handler_waiter.set_result(None)
        self._body_answered = self._body_answered or body is self._body
        self._keepalive = answer.keep_alive
        if self._close or not answer.keep_alive:
            await self._linger()
            return False
        if not body.is_eof():
            await self._drop_rest(body)
        body.set_exception(_LATE)
        return not self._close and not self._force_close

    def outlives(self, message: Message) -> bool:
        """Whether the connection may go on after the answer to this message."""
        # After a request that asks for another protocol, the parser drops what it does not understand.
        return not (message.should_close or message.upgrade or self._close or cast(Any, self._manager).stopping)

    async def _serve_ours(self, head: Any, body: StreamReader) -> bool:
        factory, handler, message = self._request_factory, self._request_handler, ERROR
        if factory is None or handler is None or self._task_handler is None:
            # The connection is lost.
            return False
        if isinstance(head, _ErrInfo):
            handler = self._make_error_handler(head)
        else:
            message = head.message
        request = factory(message, body, self, StreamWriter(self, self._loop), self._task_handler)
        try:
            answer, reset = await self._handle_request(request, None, handler)
        except ConnectionError:
            return False
        finally:
            # Or a request in a traceback would hold on to its task.
            request._task = None  # type: ignore[assignment]
        self._keepalive = bool(answer.keep_alive)
        if not reset and not body.is_eof():
            await self._drop_rest(body)
        body.set_exception(_LATE)
        return not reset and self._keepalive and not self._close and not self._force_close

    async def _drop_rest(self, body: StreamReader | WholeBody) -> None:
        """Read what a route of our own did not want to know; a client that takes too long with it is closed on."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(LONGEST_LINGER_SECONDS):
                while not body.is_eof() and not self._force_close:
                    await body.readany()
        if not body.is_eof():
            self.close()

    async def drained(self) -> None:
        """Wait until the client has read enough; `ConnectionError` when it left."""
        if self.transport is not None and self._paused:
            await self._drain_helper()

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Our answer, in our shape, that echoes nothing of the input; the connection is closed after it."""
        error = refusal_of(status, exc)
        if error.code == "internal_error":
            log.error("a request failed by a mistake of this program", exc_info=exc)
        if request.writer.output_size > 0:
            # A second head would be taken for a part of the first answer, which is cut instead.
            raise ConnectionError("an answer is under way already")
        self._guard.note(error, request.remote or "")
        return refusal(error)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer; where it is the connection's last, see to it that the client can read it."""
        if self._close and isinstance(resp, web.StreamResponse):
            resp.force_close()
        resp, reset = await super().finish_response(request, resp, start_time)
        self._body_answered = self._body_answered or request.content is self._body
        if self._close or not resp.keep_alive:
            await self._linger()
            return _LAST, reset
        return _KEPT, reset

    async def _linger(self) -> None:
        """Half-close, and drop what still comes: closing on unread bytes would reset the connection (RFC 9112 section 9.6)."""
        if not self._body.is_eof():
            self._body.feed_eof()
        transport = self.transport
        if transport is None or transport.is_closing():
            return
        self._deaf = self._lingering = True
        transport.write_eof()
        self._resume_transport_reading()
        self._received = self._loop.time()
        latest = self._received + LONGEST_LINGER_SECONDS
        while (left := min(self._received + LINGER_SECONDS, latest) - self._loop.time()) > 0:
            # Cancelled when the connection is lost.
            self._waiter = self._loop.create_future()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(left):
                    await self._waiter
        self._waiter = None
