"""What a site refuses before it has read a request: too much, too many, what no parser can read."""

import asyncio
import logging
import time
from collections import Counter
from collections.abc import Callable
from typing import NamedTuple

from aiohttp import http_exceptions, web

from llm_proxy import dialects, ids
from llm_proxy.errors import ApiError
from llm_proxy.grammar import MAX_HEADERS, MAX_TARGET_BYTES
from llm_proxy.peers import Network, is_loopback

log = logging.getLogger(__name__)

LOG_SECONDS = 60.0
_MANY_PEERS = 10_000


class Limits(NamedTuple):
    """What one site takes.

    Attributes:
        body_bytes: a request body as it travels, its framing included.
        connections: open at one time.
        connections_of_peer: of these, from one address.
    """

    body_bytes: int
    connections: int
    connections_of_peer: int


class Guard:
    """Counts the connections of a site, with what it refuses.

    Attributes:
        limits: what the site takes.
        count: told of every refusal.
        gateways: the networks of the operator's own proxies.
    """

    def __init__(self, limits: Limits, count: Callable[[ApiError], None], gateways: tuple[Network, ...] = ()) -> None:
        self.limits = limits
        self.gateways = gateways
        self.count = count
        self._logged: dict[str, float] = {}
        self._open = 0
        self._of_peer: Counter[str] = Counter()

    def note(self, error: ApiError, peer: str) -> None:
        """Take note of a refusal: each is counted, one a minute of each peer is logged."""
        self.count(error)
        now = time.monotonic()
        if now - self._logged.get(peer, -LOG_SECONDS) >= LOG_SECONDS:
            if len(self._logged) >= _MANY_PEERS:
                self._logged.clear()
            self._logged[peer] = now
            log.warning("a request from %s was refused: %s", peer, error.code)

    def admits(self, transport: asyncio.BaseTransport) -> bool:
        """Whether one more connection is served; one that is counts until it leaves."""
        peer = peer_address(transport)
        # This machine's own address is that of a proxy in front of us, behind which are many.
        too_many = self._of_peer[peer] >= self.limits.connections_of_peer and peer != "" and not is_loopback(peer)
        if too_many or self._open >= self.limits.connections:
            self.note(ApiError("overloaded", "Too many connections are open."), peer)
            return False
        self._open += 1
        self._of_peer[peer] += 1
        return True

    def leaves(self, transport: asyncio.BaseTransport) -> None:
        """A connection that was admitted is closed."""
        peer = peer_address(transport)
        self._open -= 1
        self._of_peer[peer] -= 1
        if not self._of_peer[peer]:
            del self._of_peer[peer]


def peer_address(transport: asyncio.BaseTransport) -> str:
    """The address at a connection's other end, empty where it has none."""
    name = transport.get_extra_info("peername")
    return str(name[0]) if isinstance(name, tuple) else ""


def refusal_of(status: int, exc: BaseException | None) -> ApiError:
    """What a client is told when aiohttp came to this status by this exception."""
    if isinstance(exc, ApiError):
        return exc
    if status >= 500:
        return ApiError("internal_error", "Something went wrong here. The log has the details.")
    if isinstance(exc, http_exceptions.LineTooLong):
        if exc.args[1] == MAX_TARGET_BYTES:
            return ApiError("target_too_long", f"The request target is longer than {MAX_TARGET_BYTES} bytes.")
        return ApiError("headers_too_large", "A header is too large.")
    if "Too many headers" in str(exc):
        return ApiError("headers_too_large", f"The request has more than {MAX_HEADERS} headers.")
    return ApiError("bad_request", "This is not a request that HTTP/1.1 allows.")


def refusal(error: ApiError) -> web.Response:
    """The answer after which a connection is closed, since nobody knows where the next request begins."""
    headers = dialects.error_headers(error, ids.new_id())
    answer = web.Response(status=error.status, body=dialects.error_body(error, "", headers["X-Request-ID"]), headers=headers)
    answer.force_close()
    return answer
