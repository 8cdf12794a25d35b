"""The guard below the sites: limits of head and time, our own answer to what no parser can read."""

import logging
import time
from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import StreamReader, http_exceptions, http_parser, web
from aiohttp.streams import EMPTY_PAYLOAD
from aiohttp.web_protocol import RequestHandler, _ErrInfo

from llm_proxy import dialects, ids
from llm_proxy.errors import ApiError, StartError
from llm_proxy.grammar import MAX_HEAD_BYTES, MAX_TARGET_BYTES

log = logging.getLogger(__name__)

HEAD_SECONDS = 10.0
BODY_IDLE_SECONDS = 30.0
BODY_GRACE_SECONDS = 30.0
BODY_BYTES_PER_SECOND = 1024
WRITE_STALL_SECONDS = 60.0
KEEPALIVE_SECONDS = 75.0
LINGER_SECONDS = 1.0
WATCH_SECONDS = 1.0
LOG_SECONDS = 60.0
_MANY_PEERS = 10_000

Handler = Callable[[web.BaseRequest], Awaitable[Any]]


class Connection(RequestHandler):
    """One client's connection: aiohttp's, with deadlines and with limits that it lacks.

    A timer runs only while something is outstanding: a head or body that is not complete, a client that does not read.
    """

    __slots__ = ("_body", "_body_began", "_body_bytes", "_head_began", "_head_bytes", "_moved", "_refused", "_timer", "_unsent")

    def __init__(self, manager: web.Server, **kwargs: Any) -> None:
        super().__init__(manager, **kwargs)
        self._body: StreamReader = EMPTY_PAYLOAD
        self._body_began = 0.0
        self._body_bytes = 0
        self._head_began = 0.0
        self._head_bytes = 0
        self._moved = 0.0
        self._refused = False
        self._timer: Any = None
        self._unsent = 0

    def data_received(self, data: bytes) -> None:
        """Pass bytes to the parser, watching how much of what kind has come since when."""
        if self._refused:
            return
        messages = self._request_count
        super().data_received(data)
        self._moved = self._loop.time()
        if self._request_count != messages:
            self._message_began(data)
        elif self._body.is_eof():
            self._head_grew(len(data))
        else:
            self._body_bytes += len(data)
        if self._head_began or not self._body.is_eof():
            self._watch()

    def _message_began(self, data: bytes) -> None:
        self._head_began, self._head_bytes = 0.0, 0
        if not self._messages:
            return
        message, self._body = self._messages[-1]
        self._body_began, self._body_bytes = self._moved, 0
        if isinstance(message, _ErrInfo):
            self._refused = True
            if data.split(b" ", 1)[0] in (b"TRACK", b"DEBUG"):
                error = ApiError("method_not_allowed", "This method is not served here.")
                self._messages[-1] = (_ErrInfo(405, error, error.message), EMPTY_PAYLOAD)

    def _head_grew(self, size: int) -> None:
        self._head_began = self._head_began or self._moved
        self._head_bytes += size
        if self._head_bytes > MAX_HEAD_BYTES:
            self._refuse(ApiError("headers_too_large", f"The head of the request is larger than {MAX_HEAD_BYTES} bytes."))

    def _refuse(self, error: ApiError) -> None:
        """Queue an error as the answer to a request that never became one."""
        self._refused = True
        self._request_count += 1
        self._messages.append((_ErrInfo(error.status, error, error.message), EMPTY_PAYLOAD))
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def pause_writing(self) -> None:
        """The client reads more slowly than we write."""
        super().pause_writing()
        self._moved, self._unsent = self._loop.time(), self._unsent_bytes()
        self._watch()

    def _unsent_bytes(self) -> int:
        return self.transport.get_write_buffer_size() if self.transport else 0

    def _watch(self) -> None:
        if self._timer is None and self.transport is not None:
            self._timer = self._loop.call_later(WATCH_SECONDS, self._look)

    def _look(self) -> None:
        self._timer = None
        if self.transport is None:
            return
        now = self._loop.time()
        if self._paused:
            self._look_at_writing(now)
        elif self._head_began:
            if now - self._head_began >= HEAD_SECONDS:
                self._head_began = 0.0
                self._refuse(ApiError("request_timeout", f"The head of the request did not come within {HEAD_SECONDS:.0f} s."))
        elif not self._body.is_eof():
            self._look_at_body(now)
        if self._paused or self._head_began or not self._body.is_eof():
            self._watch()

    def _look_at_writing(self, now: float) -> None:
        unsent = self._unsent_bytes()
        if unsent != self._unsent:
            self._moved, self._unsent = now, unsent
        elif now - self._moved >= WRITE_STALL_SECONDS and self.transport:
            self.transport.abort()

    def _look_at_body(self, now: float) -> None:
        if self._reading_paused:
            # It is we who do not read; the client's time starts anew when we do.
            self._moved = self._body_began = now
            self._body_bytes = 0
            return
        age = now - self._body_began
        too_slow = age >= BODY_GRACE_SECONDS and self._body_bytes < age * BODY_BYTES_PER_SECOND
        if too_slow or now - self._moved >= BODY_IDLE_SECONDS:
            self._body.set_exception(ApiError("request_timeout", "The body of the request came too slowly."))
            self._body.feed_eof()
            self.keep_alive(False)

    def connection_lost(self, exc: BaseException | None) -> None:
        """Nothing is watched any more."""
        if self._timer is not None:
            self._timer.cancel()
        super().connection_lost(exc)

    def handle_error(
        self, request: web.BaseRequest, status: int = 500, exc: BaseException | None = None, message: str | None = None
    ) -> web.StreamResponse:
        """Our answer, in our shape, that echoes nothing of the input; the connection is closed after it."""
        if request.writer.output_size > 0:
            raise ConnectionError("an answer is under way already")
        error = _as_api_error(status, exc)
        if error.code == "internal_error":
            log.error("a request failed by a mistake of this program", exc_info=exc)
        assert isinstance(self._manager, GuardedServer)
        self._manager.refusals.note(error, request.remote or "")
        return refusal(error)

    async def finish_response(
        self, request: web.BaseRequest, resp: web.StreamResponse, start_time: float | None
    ) -> tuple[web.StreamResponse, bool]:
        """Send the answer; after a refusal read on for a moment, since closing on unread bytes would destroy it."""
        result = await super().finish_response(request, resp, start_time)
        if self._refused and not self._messages and self.transport is not None and self.transport.can_write_eof():
            self.transport.write_eof()
            self._waiter = self._loop.create_future()
            self._loop.call_later(LINGER_SECONDS, self._stop_lingering)
            await self._waiter
        return result

    def _stop_lingering(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)


def _as_api_error(status: int, exc: BaseException | None) -> ApiError:
    if isinstance(exc, ApiError):
        return exc
    if status >= 500:
        return ApiError("internal_error", "Something went wrong here. The log has the details.")
    if isinstance(exc, http_exceptions.LineTooLong):
        if exc.args[1] == MAX_TARGET_BYTES:
            return ApiError("target_too_long", f"The request target is longer than {MAX_TARGET_BYTES} bytes.")
        return ApiError("headers_too_large", "A header is too large.")
    if "Too many headers" in str(exc):
        return ApiError("headers_too_large", "The request has too many headers.")
    return ApiError("bad_request", "This is not a request that HTTP/1.1 allows.")


class Refusals:
    """Requests refused before they were anything: each counted, logged once a minute for each peer."""

    def __init__(self, count: Callable[[ApiError], None]) -> None:
        self._count = count
        self._logged: dict[str, float] = {}

    def note(self, error: ApiError, peer: str) -> None:
        """Take note of one."""
        self._count(error)
        now = time.monotonic()
        if now - self._logged.get(peer, -LOG_SECONDS) >= LOG_SECONDS:
            if len(self._logged) >= _MANY_PEERS:
                self._logged.clear()
            self._logged[peer] = now
            log.warning("a request from %s could not be read: %s", peer, error.code)


def refusal(error: ApiError, path: str = "") -> web.Response:
    """The answer after which a connection is closed, since nobody knows where the next request begins."""
    headers = dialects.error_headers(error, ids.new_id())
    answer = web.Response(status=error.status, body=dialects.error_body(error, path, headers["X-Request-ID"]), headers=headers)
    answer.force_close()
    return answer


class GuardedServer(web.Server):
    """Makes guarded connections; unlike aiohttp's, it fails rather than drop a limit that it does not know."""

    refusals: Refusals

    def __call__(self) -> RequestHandler:
        return Connection(self, loop=self._loop, **self._kwargs)


class GuardedRunner(web.AppRunner):
    """Runs an application behind guarded connections.

    Args:
        app: serves our own routes.
        wrap: given the application's handler, returns the one that sees every request first.
        refusals: told of every request that could not be read.
    """

    def __init__(self, app: web.Application, wrap: Callable[[Handler], Handler], refusals: Refusals) -> None:
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_TARGET_BYTES,
            max_field_size=8190,
            max_headers=128,
            shutdown_timeout=1.0,
        )
        self._wrap = wrap
        self._refusals = refusals

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        server = GuardedServer(
            self._wrap(plain.request_handler),
            request_factory=plain.request_factory,
            handler_cancellation=plain.handler_cancellation,
            **plain._kwargs,
        )
        server.refusals = self._refusals
        return server


def check_parser() -> None:
    """Refuse to serve with a parser whose limits and strictness were not tried.

    Raises:
        StartError: aiohttp runs without its C parser, or Python without assertions.
    """
    if "_http_parser" not in http_parser.HttpRequestParser.__module__:
        raise StartError("aiohttp's C parser is missing. Install aiohttp from a wheel, and unset AIOHTTP_NO_EXTENSIONS.")
    if not __debug__:
        raise StartError("Do not run with python -O or PYTHONOPTIMIZE: it removes checks that this program relies on.")
