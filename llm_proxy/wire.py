"""The guarded server below both sites."""

from collections.abc import Awaitable, Callable
from typing import Any

from aiohttp import HttpVersion11, http_parser, web
from aiohttp.web_protocol import ERROR, RequestHandler

from llm_proxy.connection import Connection
from llm_proxy.errors import StartError
from llm_proxy.grammar import MAX_HEAD_BYTES, MAX_HEADERS, MAX_TARGET_BYTES
from llm_proxy.guard import Guard
from llm_proxy.serving import Calls

KEEPALIVE_SECONDS = 75.0

Handler = Callable[[web.BaseRequest], Awaitable[Any]]


class GuardedServer(web.Server):
    """Makes guarded connections; unlike aiohttp's, it fails rather than drop a limit that it does not know.

    Attributes:
        stopping: each connection's next answer is its last.
    """

    def __init__(self, plain: web.Server, handler: Handler, guard: Guard, calls: Calls | None) -> None:
        super().__init__(handler, request_factory=self._request, handler_cancellation=plain.handler_cancellation, **plain._kwargs)
        self._factory = plain.request_factory
        self._guard = guard
        self._calls = calls
        self.stopping = False
        # An option that this version of aiohttp does not know must stop the start, not each connection.
        self()

    def __call__(self) -> RequestHandler:
        return Connection(self, self._guard, self._calls, loop=self._loop, **self._kwargs)

    def _request(self, message: Any, body: Any, connection: Any, *rest: Any) -> web.BaseRequest:
        if message is ERROR:
            message = message._replace(version=HttpVersion11)
        elif not connection.outlives(message):
            message = message._replace(should_close=True)
        return self._factory(message, body, connection, *rest)

    def busy(self) -> int:
        """How many connections wait for an answer."""
        return sum(connection.is_busy for connection in self._connections if isinstance(connection, Connection))


class GuardedRunner(web.AppRunner):
    """Runs an application behind guarded connections.

    Args:
        app: serves our own routes.
        wrap: given the application's handler, returns the one that sees every request first.
        guard: decides what gets so far.
        calls: takes what it wants before anybody else sees it.
    """

    guarded: GuardedServer

    def __init__(
        self, app: web.Application, wrap: Callable[[Handler], Handler], guard: Guard, calls: Calls | None = None
    ) -> None:
        super().__init__(
            app,
            access_log=None,
            auto_decompress=False,
            handler_cancellation=True,
            keepalive_timeout=KEEPALIVE_SECONDS,
            max_line_size=MAX_TARGET_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            max_headers=MAX_HEADERS,
            # Who stops has waited for the calls already.
            shutdown_timeout=0.1,
        )
        self._wrap = wrap
        self._guard = guard
        self._calls = calls

    async def _make_server(self) -> web.Server:
        plain = await super()._make_server()
        self.guarded = GuardedServer(plain, self._wrap(plain.request_handler), self._guard, self._calls)
        return self.guarded


def check_parser() -> None:
    """Refuse to serve with a parser whose limits and strictness were not tried.

    Raises:
        StartError: aiohttp runs without its C parser, or Python without assertions.
    """
    if "_http_parser" not in http_parser.HttpRequestParser.__module__:
        raise StartError("aiohttp's C parser is missing. Install aiohttp from a wheel, and unset AIOHTTP_NO_EXTENSIONS.")
    if not __debug__:
        raise StartError("Do not run with python -O or PYTHONOPTIMIZE: it removes checks that this program relies on.")
