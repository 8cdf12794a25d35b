"""A request as the bytes that a provider gets."""

import functools
import re
from collections.abc import AsyncGenerator, AsyncIterator
from typing import NamedTuple
from urllib.parse import urlsplit

from llm_proxy.upstream import Request, is_private

# Up to here a body is handed over with its head, in one piece; beyond it the provider's pace counts.
PIECE = 256 * 1024
_ON_THE_WIRE = re.compile(r"[!-~]+")
_METHOD = re.compile(r"[!#$%&'*+\-.^_`|~0-9A-Za-z]+")
# RFC 9110 section 8.6: of any other method without a body, the provider is told that there is none.
_WITHOUT_BODY = frozenset({"GET", "HEAD", "OPTIONS", "TRACE"})
# RFC 9110 section 9.2.2.
_REPEATABLE = frozenset({"GET", "HEAD", "OPTIONS", "PUT", "DELETE"})


class Origin(NamedTuple):
    """Whom a connection leads to."""

    tls: bool
    host: str
    port: int


class Target(NamedTuple):
    """What a URL asks of whom.

    Attributes:
        path: with its query, as it was written.
        is_private: the URL names an address that is not public.
        head: what a request for it begins with, after the method.
    """

    origin: Origin
    path: str
    is_private: bool
    head: bytes


# Endpoints are few; the bound matters for what has ids or queries in it, up to 16 KiB each.
@functools.lru_cache(maxsize=128)
def target_of(url: str) -> Target:
    """Take a URL apart.

    Raises:
        ValueError: nothing can be asked of it.
    """
    parts = urlsplit(url)
    host, tls = parts.hostname, parts.scheme == "https"
    path = url[len(f"{parts.scheme}://{parts.netloc}") :]
    if not host or not host.strip(".") or parts.scheme not in ("http", "https") or (path and not _ON_THE_WIRE.fullmatch(path)):
        raise ValueError("the URL cannot be asked for")
    if not host.isascii():
        host = host.encode("idna").decode("ascii")
    usual = 443 if tls else 80
    port = usual if parts.port is None else parts.port
    authority = (f"[{host}]" if ":" in host else host) + ("" if port == usual else f":{port}")
    if not _ON_THE_WIRE.fullmatch(authority):
        raise ValueError("the URL has no usable host")
    path = path if path.startswith("/") else f"/{path}"
    return Target(Origin(tls, host, port), path, is_private(host), _beginning(path, authority))


def _beginning(path: str, authority: str) -> bytes:
    return f" {path} HTTP/1.1\r\nHost: {authority}".encode()


def head_of(request: Request, target: Target) -> bytes:
    """The request line with all headers.

    Raises:
        ValueError: something in it would end a line.
    """
    if not _METHOD.fullmatch(request.method):
        raise ValueError("the method is no word")
    body = request.body
    framing = (b"Content-Length: %d" % len(body),) if isinstance(body, bytes) else _framing(request)
    beginning = _beginning(target.path, request.host) if request.host else target.head
    lines = [request.method.encode() + beginning, *framing, *map(b": ".join, request.headers), b"\r\n"]
    head = b"\r\n".join(lines)
    # Each line but the first, which is two, adds one end; the last is the empty one after them.
    ends = len(lines) + 1
    if head.count(b"\n") != ends or head.count(b"\r") != ends or b"\0" in head:
        raise ValueError("a header would end its line")
    return head


def _framing(request: Request) -> tuple[bytes, ...]:
    """How a body is framed that is not at hand, or that there is none."""
    body, length = request.body, request.length
    if body is not None:
        return (b"Transfer-Encoding: chunked" if length is None else b"Content-Length: %d" % length,)
    return () if request.method in _WITHOUT_BODY else (b"Content-Length: 0",)


def is_in_one_piece(request: Request) -> bool:
    """Whether the request is so small that it is handed over whole."""
    return request.body is None or (isinstance(request.body, bytes) and len(request.body) <= PIECE)


def is_repeatable(request: Request) -> bool:
    """Whether the request may reach its provider twice, and can be sent twice."""
    return request.method in _REPEATABLE and (request.body is None or isinstance(request.body, bytes))


async def pieces_of(request: Request) -> AsyncGenerator[bytes, None]:
    """The body's pieces, framed; the body is let go at the end of this, wherever that is.

    Raises:
        ValueError: there is more or less of it than was announced.
    """
    assert request.body is not None
    left = len(request.body) if isinstance(request.body, bytes) else request.length
    body = _cut(request.body) if isinstance(request.body, bytes) else request.body
    try:
        async for piece in body:
            if left is not None:
                left -= len(piece)
                if left < 0:
                    break
                yield piece
            elif piece:
                # An empty chunk would be the last.
                yield b"%x\r\n%b\r\n" % (len(piece), piece)
    finally:
        if isinstance(body, AsyncGenerator):
            await body.aclose()
    if left:
        raise ValueError("the body's length differs from the one announced")
    if left is None:
        yield b"0\r\n\r\n"


async def _cut(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), PIECE):
        yield body[start : start + PIECE]
