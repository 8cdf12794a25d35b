"""The connections to providers, guarded against what a provider or a name server may do to them."""

import functools
import socket
from collections.abc import Callable
from typing import Any

import aiohttp
from aiohttp import abc
from aiohttp.client_proto import ResponseHandler
from aiohttp.http_exceptions import HttpProcessingError

from llm_proxy.errors import UpstreamInvalid
from llm_proxy.grammar import MAX_HEAD_BYTES
from llm_proxy.upstream import check_answer, is_private

IDLE_SECONDS = 55.0
DNS_SECONDS = 60


class PublicResolver(abc.AbstractResolver):
    """Resolves names, leaving out addresses that are not public, so that no name can point the proxy at its own network."""

    def __init__(self, inner: abc.AbstractResolver) -> None:
        self._inner = inner

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[abc.ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        public = [result for result in found if not is_private(result["host"])]
        if not public:
            raise OSError("the name has no public address")
        return public

    async def close(self) -> None:
        await self._inner.close()


class Connection(ResponseHandler):
    """One connection to a provider, less trusting than aiohttp's."""

    def __init__(self, loop: Any) -> None:
        super().__init__(loop)
        self.idle = False
        self._in_head = True
        self._head_bytes = 0

    def set_response_params(self, **params: Any) -> None:
        """A request begins."""
        self.idle, self._in_head, self._head_bytes = False, True, 0
        super().set_response_params(**params)

    def data_received(self, data: bytes) -> None:
        """Take bytes of the answer to the request under way."""
        if self.idle and data:
            # It would be taken for the answer to the next request, which may be another client's.
            self.close()
            return
        super().data_received(data)
        if self._in_head:
            self._head_bytes += len(data)
            if self._head_bytes > MAX_HEAD_BYTES:
                self.set_exception(aiohttp.ClientPayloadError("the head is too large"))
                self.close()

    def feed_data(self, data: Any, size: int = 0) -> None:
        """Take a head that the parser has completed; after an interim one, another is to come."""
        message, _ = data
        self._in_head, self._head_bytes = 100 <= message.code < 200 and message.code != 101, 0
        try:
            if not self._in_head:
                check_answer(message.code, message.raw_headers)
        except UpstreamInvalid as error:
            # Here, since a connection whose answer is already whole has gone back to the pool when its head is looked at.
            self.set_exception(error)
        else:
            super().feed_data(data, size)

    def set_exception(self, exc: BaseException, *cause: BaseException) -> None:
        """What comes cannot be parsed, or what goes cannot be written."""
        super().set_exception(exc, *cause)
        if isinstance(exc, HttpProcessingError) and self._payload is not None:
            # aiohttp tells only who waits for a head; who waits for the rest of a body would wait until a timeout.
            self._payload.set_exception(aiohttp.ClientPayloadError("the rest of the body is not framed as it should be"))

    def connection_lost(self, exc: BaseException | None) -> None:
        """End what is under way."""
        if exc is not None and self._payload is not None and not self._payload.is_eof():
            # A body that only the end of the connection ends is whole after a FIN; aiohttp would take a RST for one.
            self._payload.set_exception(aiohttp.ClientPayloadError("the connection was reset"))
        super().connection_lost(exc)


class BoundedConnector(aiohttp.TCPConnector):
    """A connector that bounds idle connections, never calls."""

    def __init__(self, *, max_idle: int, max_idle_per_host: int, **kwargs: Any) -> None:
        super().__init__(limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=DNS_SECONDS, **kwargs)
        connection: Callable[..., ResponseHandler] = Connection
        self._factory = functools.partial(connection, loop=self._loop)
        self._max_idle = max_idle
        self._max_idle_per_host = max_idle_per_host

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        idle = len(self._conns.get(key, ()))
        full = idle >= self._max_idle_per_host or sum(map(len, self._conns.values())) >= self._max_idle
        super()._release(key, protocol, should_close=should_close or full)
        protocol.idle = True
