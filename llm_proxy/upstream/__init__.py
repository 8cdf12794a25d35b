"""The provider's side of a call: a small interface, so that the client behind it may change."""

import ipaddress
import math
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol
from urllib.parse import urlsplit

from llm_proxy.errors import InvalidField, UpstreamInvalid
from llm_proxy.grammar import MAX_HEAD_BYTES, RawHeaders
from llm_proxy.providers.profiles import Profile, Timeouts
from llm_proxy.settings import Settings

FRAMING = frozenset({b"content-length", b"transfer-encoding"})
# NAT64's well-known prefix, and the retired "IPv4-compatible" one, which some systems still route.
_WITH_IPV4_LAST = (ipaddress.IPv6Network("64:ff9b::/96"), ipaddress.IPv6Network("::/96"))


# Not frozen, as one is made for every call, and each field of a frozen one costs a call.
@dataclass(slots=True)
class Request:
    """What goes to a provider; nobody changes it.

    Attributes:
        url: absolute, sent as it is written here.
        headers: in order, without Host, hop-by-hop fields and framing.
        body: all of it, or pieces as they arrive, or None.
        length: the size of `body` in bytes when it is known, None when it must be chunked.
        profile: bounds idle connections.
        timeouts: how long the provider may take.
        trusted: the URL is the operator's word, so it may be a private address.
        on_sent: called when the head is handed to the connection; from then on the provider may be working.
        host: the name by which the origin is asked, empty for its own.
    """

    method: str
    url: str
    headers: RawHeaders
    body: bytes | AsyncIterator[bytes] | None
    length: int | None
    profile: Profile
    timeouts: Timeouts
    trusted: bool
    on_sent: Callable[[], None]
    host: str = ""


class Take(Protocol):
    """What becomes of the pieces of a body."""

    def __call__(self, piece: bytes, chunk: bytes = b"") -> bool:
        """Take a piece; returns whether to pause before the next one.

        Args:
            chunk: the piece with its framing as a chunk, where it came so.
        """


class Answer(Protocol):
    """A provider's answer, its head read, its body still to come.

    Attributes:
        fields: the first value of each of its headers, by the name in lower case.
    """

    status: int
    reason: str
    headers: RawHeaders
    fields: Mapping[bytes, bytes]

    def ready(self) -> bytes:
        """What has come of the body and was not yet given, without waiting; empty when that is nothing."""

    async def chunk(self, patience: float = math.inf) -> bytes:
        """The next bytes of the body as they came; empty at its end.

        Args:
            patience: how many seconds the provider may be silent.

        Raises:
            TimeoutError: nothing came for so long; more may still come.
            UpstreamError: the body broke off.
        """

    async def flow(self, take: Take, patience: float = math.inf) -> bool:
        """Hand every further piece of the body to `take` as soon as it comes, without waking this task for it.

        Returns:
            Whether the body has come to its end; if not, `take` wanted a pause.

        Raises:
            TimeoutError, UpstreamError: see `chunk`.
            Exception: what `take` raised.
        """

    def abort(self) -> None:
        """Nothing more is wanted: close the connection, unless the body has come to its end, so that it may serve again."""


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
    from llm_proxy.upstream.pool import PoolUpstream

    upstream = PoolUpstream(settings)
    try:
        yield upstream
    finally:
        await upstream.close()


def fields_of(headers: RawHeaders) -> dict[bytes, bytes]:
    """The first value of each header, by its name in lower case."""
    return {name.lower(): value for name, value in reversed(headers)}


def check_answer(status: int, headers: RawHeaders) -> dict[bytes, bytes]:
    """Refuse an answer that cannot be passed on safely (RFC 9112 section 6.3); gives its `fields_of`.

    Raises:
        UpstreamInvalid: it is ambiguous, too large, or a protocol switch nobody asked for.
    """
    if not 200 <= status <= 599:
        raise UpstreamInvalid("The provider answered with a status that is not allowed.", sent=True)
    size, framing, fields = 0, 0, {}
    for name, value in headers:
        size += len(name) + len(value) + 4
        lowered = name.lower()
        if lowered in FRAMING:
            framing += 1
        if lowered not in fields:
            fields[lowered] = value
    if size > MAX_HEAD_BYTES:
        raise UpstreamInvalid("The provider's headers are too large.", sent=True)
    length = fields.get(b"content-length", b"0").strip()
    # Any coding but chunked alone would be taken off with the header that names it, and leave the body unreadable.
    if framing > 1 or not length.isdigit() or fields.get(b"transfer-encoding", b"chunked").strip().lower() != b"chunked":
        raise UpstreamInvalid("The provider's answer has no clear length.", sent=True)
    return fields


def check_base_url(field: str, url: str, *, allow_private: bool) -> str:
    """A base URL that came through an API, without a slash at its end.

    Raises:
        InvalidField: it is not https, has user info, query or fragment, or names a private address.
    """
    schemes = ("https", "http") if allow_private else ("https",)
    try:
        parts = urlsplit(url)
        usable = parts.scheme in schemes and bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise _unusable(field, schemes) from None
    if not usable or not url.isascii() or any(c.isspace() for c in url):
        raise _unusable(field, schemes)
    if parts.username is not None or parts.password is not None or "?" in url or "#" in url:
        raise InvalidField(field, "give a URL without user, query and fragment; the key has a field of its own.")
    if not allow_private and is_private(parts.hostname or ""):
        raise InvalidField(field, "this address is not public. ALLOW_PRIVATE_UPSTREAMS=true admits it.")
    return url.rstrip("/")


def _unusable(field: str, schemes: Sequence[str]) -> InvalidField:
    return InvalidField(field, f"give a URL that begins with {' or '.join(f'{scheme}://' for scheme in schemes)}.")


def is_private(host: str) -> bool:
    """Whether a host is an address literal that is not public, or a name for this machine; other names are looked up later."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        name = host.rstrip(".").lower()
        return name == "localhost" or name.endswith(".localhost")
    address = _embedded(address) or address
    return not address.is_global or address.is_multicast


def _embedded(address: ipaddress.IPv4Address | ipaddress.IPv6Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 address leads to: mapped, 6to4, or by a NAT64 gateway (RFC 6052)."""
    if isinstance(address, ipaddress.IPv4Address):
        return None
    last = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    through_gateway = any(address in network for network in _WITH_IPV4_LAST)
    return address.ipv4_mapped or address.sixtofour or (last if through_gateway else None)
