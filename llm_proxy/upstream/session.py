"""The upstream side on aiohttp's ClientSession."""

import asyncio
import ssl
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

import aiohttp
from aiohttp import hdrs
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
from llm_proxy.upstream import Request, is_private
from llm_proxy.upstream.connector import BoundedConnector, PublicResolver

READ_BUFFER = 64 * 1024
# aiohttp warns of larger bodies in one piece, since they would be copied in one go.
PIECE = 256 * 1024
# Together they are bounded by MAX_HEAD_BYTES.
MAX_HEADERS = 1024
NOT_OURS_TO_ADD = (hdrs.USER_AGENT, hdrs.ACCEPT, hdrs.ACCEPT_ENCODING, hdrs.CONTENT_TYPE)


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

    def _is_guarded(self, request: Request) -> bool:
        return not (request.trusted or self._allow_private)

    def _session(self, request: Request) -> aiohttp.ClientSession:
        guarded = self._is_guarded(request)
        key = (request.profile.name, guarded)
        session = self._sessions.get(key)
        if session is None:
            session = self._sessions[key] = self._new_session(request, guarded)
        return session

    def _new_session(self, request: Request, guarded: bool) -> aiohttp.ClientSession:
        tracing = aiohttp.TraceConfig()
        tracing.on_request_headers_sent.append(_head_sent)
        resolver = aiohttp.ThreadedResolver()
        connector = BoundedConnector(
            max_idle=request.profile.max_idle,
            max_idle_per_host=request.profile.max_idle_per_host,
            ssl=self._tls,
            resolver=PublicResolver(resolver) if guarded else resolver,
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
            max_headers=MAX_HEADERS,
            trace_configs=[tracing],
        )

    async def open(self, request: Request) -> "SessionAnswer":
        """See `Upstream.open`."""
        if self._is_guarded(request) and is_private(urlsplit(request.url).hostname or ""):
            raise UpstreamUnavailable("The provider's address is not public.")
        progress = _Progress(request)
        try:
            async with asyncio.timeout(None) as progress.deadline:
                response = await self._session(request).request(
                    request.method,
                    URL(request.url, encoded=True),
                    headers=_framing(request),
                    middlewares=[_HeadersAsGiven(request)],
                    data=_body(request, progress),
                    allow_redirects=False,
                    timeout=aiohttp.ClientTimeout(total=None, connect=request.timeouts.connect),
                    trace_request_ctx=progress,
                )
        except (aiohttp.ClientError, OSError, TimeoutError, ValueError) as error:
            raise _translated(error, progress.sent) from error
        finally:
            progress.deadline = None
        return SessionAnswer(response)

    async def close(self) -> None:
        """Close every connection."""
        for session in self._sessions.values():
            await session.close()


class _Progress:
    """How far a request has come: the first-byte deadline starts when the provider has something to work on."""

    def __init__(self, request: Request) -> None:
        self.sent = False
        self.deadline: asyncio.Timeout | None = None
        self._request = request

    def head_sent(self) -> None:
        self.sent = True
        self.moved()
        self._request.on_sent()

    def moved(self) -> None:
        """A piece of the request is gone; the answer may have begun before."""
        if self.deadline and not self.deadline.expired():
            self.deadline.reschedule(asyncio.get_running_loop().time() + self._request.timeouts.first_byte)


async def _head_sent(_session: Any, context: SimpleNamespace, _params: Any) -> None:
    context.trace_request_ctx.head_sent()


class _HeadersAsGiven:
    """Puts the headers into a request just before it is sent: aiohttp itself would drop one of two names that differ in case."""

    def __init__(self, request: Request) -> None:
        self._headers = request.headers

    async def __call__(self, request: aiohttp.ClientRequest, send: aiohttp.ClientHandlerType) -> aiohttp.ClientResponse:
        for name, value in self._headers:
            request.headers.add(name, value)
        return await send(request)


def _framing(request: Request) -> dict[str, str]:
    stated = request.length is not None and (request.body is not None or request.length > 0)
    return {hdrs.CONTENT_LENGTH: str(request.length)} if stated else {}


def _body(request: Request, progress: _Progress) -> bytes | AsyncIterator[bytes] | None:
    body = request.body
    if body is None or (isinstance(body, bytes) and len(body) <= PIECE):
        return body
    return _moving(_pieces(body) if isinstance(body, bytes) else body, progress)


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
        case OSError() | aiohttp.ServerDisconnectedError() if sent:
            return UpstreamUnavailable("The provider closed the connection without an answer.", sent=True)
        case _ if sent:
            return UpstreamInvalid("The provider's answer is not valid HTTP.", sent=True)
        case _:
            return UpstreamUnavailable("The provider could not be connected to.")


class SessionAnswer:
    """See `Answer`."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self._response = response
        self.status = response.status
        self.reason = response.reason or ""
        self.headers: RawHeaders = response.raw_headers

    async def chunk(self) -> bytes:
        """See `Answer.chunk`."""
        content = self._response.content
        try:
            return await content.readany()
        except (aiohttp.ClientError, OSError) as error:
            # What came before the break is the client's all the same; the next call of this raises.
            if content._buffer:
                return content._read_nowait(-1)
            raise _broken(error) from error

    def close(self) -> None:
        """See `Answer.close`."""
        self._response.release()

    def abort(self) -> None:
        """See `Answer.abort`."""
        self._response.close()


def _broken(error: Exception) -> UpstreamError:
    if isinstance(error, aiohttp.ClientPayloadError):
        return UpstreamInvalid("The provider's answer broke off.", sent=True)
    return UpstreamUnavailable("The provider closed the connection before the end of its answer.", sent=True)
