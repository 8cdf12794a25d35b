"""The upstream side on aiohttp's ClientSession."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import abc, hdrs
from multidict import CIMultiDict
from yarl import URL

from llm_proxy.errors import (
    SettingsError,
    UpstreamError,
    UpstreamInvalid,
    UpstreamTimeout,
    UpstreamTLSError,
    UpstreamUnavailable,
)
from llm_proxy.grammar import MAX_HEAD_BYTES, RawHeaders
from llm_proxy.settings import Settings
from llm_proxy.upstream import Request, check_answer, is_private

READ_BUFFER = 64 * 1024
# aiohttp warns of larger bodies in one piece, since they would be copied in one go.
PIECE = 256 * 1024
IDLE_SECONDS = 55.0
NOT_OURS_TO_ADD = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)


class PublicResolver(abc.AbstractResolver):
    """Resolves names, leaving out addresses that are not public, so that no name can point the proxy at its own network."""

    def __init__(self) -> None:
        self._inner = aiohttp.ThreadedResolver()

    async def resolve(self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET) -> list[abc.ResolveResult]:
        found = await self._inner.resolve(host, port, family)
        public = [result for result in found if not is_private(result["host"])]
        if not public:
            raise OSError("the name has no public address")
        return public

    async def close(self) -> None:
        await self._inner.close()


class BoundedConnector(aiohttp.TCPConnector):
    """A connector that bounds idle connections, never calls."""

    def __init__(self, *, max_idle: int, max_idle_per_host: int, **kwargs: Any) -> None:
        super().__init__(limit=0, keepalive_timeout=IDLE_SECONDS, ttl_dns_cache=60, **kwargs)
        self._max_idle = max_idle
        self._max_idle_per_host = max_idle_per_host

    def _release(self, key: Any, protocol: Any, *, should_close: bool = False) -> None:
        idle = len(self._conns.get(key, ()))
        full = idle >= self._max_idle_per_host or sum(map(len, self._conns.values())) >= self._max_idle
        super()._release(key, protocol, should_close=should_close or full)


def _tls(settings: Settings) -> ssl.SSLContext | bool:
    if not settings.verify_ssl:
        return False
    context = ssl.create_default_context()
    if settings.ssl_cert_file:
        try:
            context.load_verify_locations(settings.ssl_cert_file)
        except (OSError, ssl.SSLError) as error:
            raise SettingsError(
                f"SSL_CERT_FILE={settings.ssl_cert_file}: no certificates could be read from it: {error}"
            ) from error
    return context


class SessionUpstream:
    """Opens calls through one session for each profile and trust."""

    def __init__(self, settings: Settings) -> None:
        self._tls = _tls(settings)
        self._allow_private = settings.allow_private_upstreams
        self._sessions: dict[tuple[str, bool], aiohttp.ClientSession] = {}

    def _session(self, request: Request) -> aiohttp.ClientSession:
        guarded = not (request.trusted or self._allow_private)
        key = (request.profile.name, guarded)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = self._new_session(request, guarded)
        return session

    def _new_session(self, request: Request, guarded: bool) -> aiohttp.ClientSession:
        tracing = aiohttp.TraceConfig()
        tracing.on_request_headers_sent.append(_head_sent)
        connector = BoundedConnector(
            max_idle=request.profile.max_idle,
            max_idle_per_host=request.profile.max_idle_per_host,
            ssl=self._tls,
            resolver=PublicResolver() if guarded else aiohttp.ThreadedResolver(),
        )
        return aiohttp.ClientSession(
            connector=connector,
            cookie_jar=aiohttp.DummyCookieJar(),
            trust_env=False,
            auto_decompress=False,
            skip_auto_headers=NOT_OURS_TO_ADD,
            read_bufsize=READ_BUFFER,
            max_line_size=MAX_HEAD_BYTES,
            max_field_size=MAX_HEAD_BYTES,
            trace_configs=[tracing],
        )

    async def open(self, request: Request) -> "SessionAnswer":
        """See `Upstream.open`."""
        if not (request.trusted or self._allow_private) and is_private(urlsplit(request.url).hostname or ""):
            raise UpstreamUnavailable("The provider's address is not public.")
        progress = _Progress(request)
        try:
            async with asyncio.timeout(None) as progress.deadline:
                response = await self._session(request).request(
                    request.method,
                    URL(request.url, encoded=True),
                    headers=_headers(request),
                    data=_body(request, progress),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, connect=request.profile.timeouts.connect),
                    trace_request_ctx=progress,
                )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _translated(error, progress.sent) from error
        answer = SessionAnswer(response)
        try:
            check_answer(answer.status, answer.headers)
        except UpstreamError:
            answer.abort()
            raise
        return answer

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()


class _Progress:
    """How far a request has come: the first-byte deadline starts when the provider has something to work on."""

    deadline: asyncio.Timeout

    def __init__(self, request: Request) -> None:
        self.sent = False
        self._request = request

    def head_sent(self) -> None:
        self.sent = True
        self.moved()
        self._request.on_sent()

    def moved(self) -> None:
        self.deadline.reschedule(asyncio.get_running_loop().time() + self._request.profile.timeouts.first_byte)


async def _head_sent(_session: Any, context: SimpleNamespace, _params: Any) -> None:
    context.trace_request_ctx.head_sent()


def _headers(request: Request) -> CIMultiDict[str]:
    headers = CIMultiDict(request.headers)
    if request.length is not None and (request.body is not None or request.length):
        headers[hdrs.CONTENT_LENGTH] = str(request.length)
    return headers


def _body(request: Request, progress: _Progress) -> bytes | AsyncIterator[bytes] | None:
    if isinstance(request.body, bytes):
        return request.body if len(request.body) <= PIECE else _pieces(request.body)
    return _moving(request.body, progress) if request.body is not None else None


async def _pieces(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]


async def _moving(body: AsyncIterator[bytes], progress: _Progress) -> AsyncIterator[bytes]:
    async for piece in body:
        yield piece
        progress.moved()


def _translated(error: Exception, sent: bool) -> UpstreamError:
    """aiohttp's errors as ours; what they say may hold the provider's address, so it stays in the log's traceback."""
    match error:
        case aiohttp.ClientConnectorCertificateError() | aiohttp.ClientConnectorSSLError() | ssl.SSLError():
            return UpstreamTLSError("The provider's TLS certificate or handshake is wrong.", sent=sent)
        case TimeoutError() if sent:
            return UpstreamTimeout("The provider did not begin its answer in time.", sent=True)
        case TimeoutError():
            return UpstreamTimeout("The provider could not be connected to in time.")
        case aiohttp.ClientConnectorError() | aiohttp.ClientConnectorDNSError():
            return UpstreamUnavailable("The provider could not be connected to.", sent=sent)
        case aiohttp.ServerDisconnectedError() | aiohttp.ClientOSError() | OSError():
            return UpstreamUnavailable("The provider closed the connection without an answer.", sent=sent)
        case _:
            return UpstreamInvalid("The provider's answer is not valid HTTP.", sent=sent)


class SessionAnswer:
    """See `Answer`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.reason = response.reason or ""
        self.headers: RawHeaders = response.raw_headers

    async def chunk(self) -> bytes:
        """See `Answer.chunk`."""
        try:
            return await self._response.content.readany()
        except aiohttp.ClientPayloadError as error:
            raise UpstreamInvalid("The provider's answer broke off.", sent=True) from error
        except (aiohttp.ClientError, OSError) as error:
            raise UpstreamUnavailable("The provider closed the connection before the end of its answer.", sent=True) from error

    def close(self) -> None:
        """See `Answer.close`."""
        self._response.release()

    def abort(self) -> None:
        """See `Answer.abort`."""
        self._response.close()
