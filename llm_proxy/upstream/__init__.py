"""The provider's side of a call: a small interface, so that the client behind it may change."""

import ipaddress
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from llm_proxy.errors import InvalidField, UpstreamInvalid
from llm_proxy.grammar import MAX_HEAD_BYTES, RawHeaders
from llm_proxy.providers.profiles import Profile
from llm_proxy.settings import Settings


@dataclass(frozen=True)
class Request:
    """What goes to a provider.

    Attributes:
        url: absolute, sent as it is written here.
        headers: in order, without Host, hop-by-hop fields and framing.
        body: all of it, or pieces as they arrive, or None.
        length: the size of `body` in bytes when it is known, None when it must be chunked.
        profile: gives timeouts and idle connections.
        trusted: the URL is the operator's word, so it may be a private address.
        on_sent: called when the head is handed to the connection; from then on the provider may be working.
    """

    method: str
    url: str
    headers: Sequence[tuple[str, str]]
    body: bytes | AsyncIterator[bytes] | None
    length: int | None
    profile: Profile
    trusted: bool
    on_sent: Callable[[], None]


class Answer(Protocol):
    """A provider's answer, its head read, its body still to come."""

    status: int
    reason: str
    headers: RawHeaders

    async def chunk(self) -> bytes:
        """The next bytes of the body as they came; empty at its end.

        Raises:
            UpstreamError: the body broke off.
        """

    def close(self) -> None:
        """The body was read to its end: the connection may serve again."""

    def abort(self) -> None:
        """Close the connection now; the provider sees it and may stop working."""


class Upstream(Protocol):
    """Opens calls to providers."""

    async def open(self, request: Request) -> Answer:
        """Send a request, return its answer's head.

        Raises:
            UpstreamError: there is none; `sent` says whether the provider may have begun to work.
        """


@asynccontextmanager
async def open_upstream(settings: Settings) -> AsyncIterator[Upstream]:
    """The provider's side for one process.

    Raises:
        SettingsError: SSL_CERT_FILE cannot be used.
    """
    from llm_proxy.upstream.session import SessionUpstream

    upstream = SessionUpstream(settings)
    try:
        yield upstream
    finally:
        await upstream.close()


def check_answer(status: int, headers: RawHeaders) -> None:
    """Refuse an answer that cannot be passed on safely (RFC 9112 section 6.3).

    Raises:
        UpstreamInvalid: it is ambiguous, too large, or a protocol switch nobody asked for.
    """
    if not 200 <= status <= 599:
        raise UpstreamInvalid("The provider answered with a status that is not allowed.", sent=True)
    if sum(len(name) + len(value) + 4 for name, value in headers) > MAX_HEAD_BYTES:
        raise UpstreamInvalid("The provider's headers are too large.", sent=True)
    lengths = [value.strip() for name, value in headers if name.lower() == b"content-length"]
    codings = [value for name, value in headers if name.lower() == b"transfer-encoding"]
    if len(set(lengths)) > 1 or (lengths and not lengths[0].isdigit()) or (lengths and codings):
        raise UpstreamInvalid("The provider's answer has no clear length.", sent=True)


def check_base_url(field: str, url: str, *, allow_private: bool) -> str:
    """A base URL that came through an API, without a slash at its end.

    Raises:
        InvalidField: it is not https, has user info, query or fragment, or names a private address.
    """
    parts = urlsplit(url)
    schemes = ("https", "http") if allow_private else ("https",)
    try:
        usable = parts.scheme in schemes and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        usable = False
    if not usable or not url.isascii() or any(c.isspace() for c in url):
        raise InvalidField(field, f"give a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}.")
    if parts.username is not None or parts.password is not None or "?" in url or "#" in url:
        raise InvalidField(field, "give a URL without user, query and fragment; the key has a field of its own.")
    if not allow_private and is_private(parts.hostname or ""):
        raise InvalidField(field, "this address is not public. ALLOW_PRIVATE_UPSTREAMS=true admits it.")
    return url.rstrip("/")


def is_private(host: str) -> bool:
    """Whether a host is an address literal that is not public, or a name for this machine; other names are looked up later."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")
    mapped = getattr(address, "ipv4_mapped", None)
    return not (mapped or address).is_global or address.is_multicast
