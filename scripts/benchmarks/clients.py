"""Requests on plain sockets: single ones, and thousands of connections that stay open."""

import contextlib
import resource
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from urllib.parse import urlsplit

from benchmarks.processes import FILES, Failed
from benchmarks.wrk import Ask

# A server may allow one address only so many connections.
PER_ADDRESS = 4000


def request(ask: Ask) -> bytes:
    """A request as it stands on the wire."""
    headers = {"Host": "127.0.0.1", **ask.headers, "Content-Length": str(len(ask.body))}
    lines = [f"{ask.method} {ask.path} HTTP/1.1", *(f"{name}: {value}" for name, value in headers.items())]
    return "\r\n".join([*lines, "", ask.body]).encode()


def exchange(connection: socket.socket, asked: bytes) -> bytes:
    """Send a request; returns the whole answer.

    Raises:
        Failed: it is no good one.
    """
    connection.sendall(asked)
    got = b""
    while not is_whole(got):
        piece = connection.recv(65536)
        if not piece:
            raise Failed(f"The connection was closed after {got[:200]!r}")
        got += piece
    if not got.startswith(b"HTTP/1.1 200"):
        raise Failed(f"A request was answered with {got[:500]!r}")
    return got


def is_whole(got: bytes) -> bool:
    """Whether these bytes are a whole answer, with a length or in chunks."""
    head, blank, body = got.partition(b"\r\n\r\n")
    if not blank:
        return False
    for line in head.lower().split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name == b"content-length":
            return len(body) >= int(value)
    return body.endswith(b"0\r\n\r\n")


def answer(url: str, ask: Ask) -> bytes:
    """The whole answer to one request."""
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), 30) as connection:
        return exchange(connection, request(ask))


@contextmanager
def idle_connections(url: str, ask: Ask, count: int) -> Iterator[int]:
    """Connections that have made one request each and stay open for the length of the block; yields how many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (FILES, FILES))
    # Half of what the other side may open, too, as it is a child of ours.
    count = min(count, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] or hard) // 4)
    parts, asked = urlsplit(url), request(ask)
    with ExitStack() as stack:
        for number in range(count):
            source = (f"127.0.0.{2 + number // PER_ADDRESS}", 0)
            connection = socket.create_connection((parts.hostname, parts.port), 30, source)
            stack.enter_context(contextlib.closing(connection))
            exchange(connection, asked)
        yield count


def wait_ready(url: str, seconds: float = 30) -> None:
    """Wait until a server says that calls may be sent."""
    end = time.monotonic() + seconds
    while True:
        with contextlib.suppress(OSError, urllib.error.URLError), urllib.request.urlopen(f"{url}/ready", timeout=5) as reply:
            if reply.status == 200:
                return
        if time.monotonic() > end:
            raise Failed(f"{url}/ready is not 200 after {seconds:.0f} s.")
        time.sleep(0.005)
