"""Which headers go to the provider, which come back."""

from collections.abc import Callable, Collection, Iterable, Mapping

from llm_proxy.grammar import RawHeaders
from llm_proxy.providers.profiles import Auth

CREDENTIALS = ("authorization", "x-api-key", "api-key")

# RFC 9110 section 7.6.1, and what was used like these before it.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authenticate",
        b"proxy-authorization",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
        b"http2-settings",
    }
)
_NOT_TO_PROVIDER = HOP_BY_HOP | {
    b"host",
    b"content-length",
    b"expect",
    b"cookie",
    b"forwarded",
    b"x-real-ip",
    b"x-original-url",
    b"x-rewrite-url",
    b"x-http-method-override",
    b"x-http-method",
    b"x-method-override",
    b"x-request-id",
    b"x-correlation-id",
    *(name.encode() for name in CREDENTIALS),
}
# They are about bytes that are not sent on where the model is renamed.
DIGESTS = frozenset({b"content-md5", b"content-digest", b"repr-digest", b"digest"})
# An answer that begins anywhere could not be renamed.
_NOT_WHEN_RENAMED = DIGESTS | {b"accept-encoding", b"range", b"if-range"}
_PREFIXES_NOT_TO_PROVIDER = (b"x-forwarded-", b"cf-", b"proxy-")
_NOT_TO_CLIENT = HOP_BY_HOP | {b"content-length", b"set-cookie", b"set-cookie2", b"alt-svc", b"x-proxy-cache"}
_PREFIXES_NOT_TO_CLIENT = (b"access-control-", b"proxy-", b"x-upstream-request-")
# Lists, to which we add; of every other header that we set, the provider's goes.
_APPENDED = frozenset({b"server-timing", b"cache-status", b"vary", b"x-request-id"})
_URLS = frozenset({b"location", b"operation-location"})
_READABLE_CODINGS = frozenset({"gzip", "deflate", "identity"})


def _named_by_connection(headers: RawHeaders) -> set[bytes]:
    return {part.strip().lower() for name, value in headers if name.lower() == b"connection" for part in value.split(b",")}


def to_provider(
    headers: RawHeaders,
    *,
    auth: Auth,
    key: str,
    defaults: Mapping[str, str],
    request_id: str,
    correlation_id: str | None,
    uncoded: bool = False,
) -> list[tuple[str, str]]:
    """The headers of a call as its provider gets them, in their order, the provider's credential last.

    Args:
        headers: the client's, checked by `grammar.check_head`, thus ASCII.
        defaults: lower-case names and values that are added when absent.
        uncoded: the model is renamed, so the answer must be readable as it comes, and digests of the body hold no more.
    """
    dropped = _NOT_TO_PROVIDER | _named_by_connection(headers) | {auth.header.lower().encode()}
    if uncoded:
        dropped |= _NOT_WHEN_RENAMED
    kept, present = [], set()
    for name, value in headers:
        lowered = name.lower()
        if lowered in dropped or lowered.startswith(_PREFIXES_NOT_TO_PROVIDER):
            continue
        text = value.decode("ascii")
        present.add(lowered.decode("ascii"))
        if lowered == b"accept-encoding":
            text = readable_codings(text)
        kept.append((name.decode("ascii"), text))
    kept += [(name, value) for name, value in defaults.items() if name not in present]
    if uncoded:
        kept.append(("Accept-Encoding", "identity"))
    kept.append(("X-Request-ID", request_id))
    if correlation_id:
        kept.append(("X-Correlation-ID", correlation_id))
    kept.append((auth.header, auth.value(key)))
    return kept


def readable_codings(value: str) -> str:
    """Accept-Encoding, narrowed to what we can read in passing."""
    parts = [part.strip() for part in value.split(",")]
    kept = [part for part in parts if part.partition(";")[0].strip().lower() in _READABLE_CODINGS]
    return ", ".join(kept) or "identity"


def to_client(headers: RawHeaders, added: RawHeaders, rewrite: Callable[[str], str]) -> list[tuple[bytes, bytes]]:
    """The headers of an answer as the client gets them, in their order, ours at the end; the framing is not among them.

    Args:
        headers: the provider's.
        added: ours.
        rewrite: turns a URL of the provider into ours.
    """
    replaced = {name.lower() for name, _ in added} - _APPENDED
    dropped = _NOT_TO_CLIENT | _named_by_connection(headers) | replaced
    kept: list[tuple[bytes, bytes]] = []
    for name, value in headers:
        lowered = name.lower()
        if lowered in dropped or lowered.startswith(_PREFIXES_NOT_TO_CLIENT) or not _safe(value):
            continue
        if lowered == b"x-request-id":
            name = b"X-Upstream-Request-ID"
        elif lowered in _URLS:
            value = rewrite(value.decode("latin-1")).encode("latin-1")
        kept.append((name, value))
    return [*kept, *added]


def replaced(headers: Iterable[tuple[bytes, bytes]], ours: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """The headers without those that we set, then ours; their names are in lower case."""
    kept = [(name, value) for name, value in headers if name.lower().decode("latin-1") not in ours]
    return kept + [(name.encode(), value.encode()) for name, value in ours.items()]


def _safe(value: bytes) -> bool:
    """A control character could end the header early for some readers (response splitting)."""
    return not any((byte < 0x20 and byte != 0x09) or byte == 0x7F for byte in value)


def first(headers: RawHeaders, names: Collection[bytes]) -> str | None:
    """The first value of any of these lower-case names."""
    return next((value.decode("latin-1") for name, value in headers if name.lower() in names), None)
