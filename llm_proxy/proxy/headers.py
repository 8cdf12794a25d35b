"""Which headers go to the provider, which come back."""

import re
from collections.abc import Callable, Collection, Iterable, Mapping

from llm_proxy.grammar import RawHeaders
from llm_proxy.providers.profiles import Auth

CREDENTIALS = ("authorization", "x-api-key", "api-key")

# RFC 9110 section 7.6.1, and what was used like these before it.
HOP_BY_HOP = frozenset(
    {
        b"connection",
        # Reserved, so that no header has the name of this option of Connection.
        b"close",
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
_NOT_WHEN_RENAMED = _NOT_TO_PROVIDER | DIGESTS | {b"accept-encoding", b"range", b"if-range"}
_PREFIXES_NOT_TO_PROVIDER = (b"x-forwarded-", b"cf-", b"proxy-")
_NOT_TO_CLIENT = HOP_BY_HOP | {b"content-length", b"set-cookie", b"set-cookie2", b"alt-svc", b"x-proxy-cache"}
_PREFIXES_NOT_TO_CLIENT = (b"access-control-", b"proxy-", b"x-upstream-request-")
# Lists, to which we add; of every other header that we set, the provider's goes.
_APPENDED = frozenset({b"server-timing", b"cache-status", b"vary", b"x-request-id"})
_CHANGED = frozenset({b"location", b"operation-location", b"x-request-id"})
# It could end the header early for some readers (response splitting).
_CONTROL = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_READABLE_CODINGS = frozenset({"gzip", "deflate", "identity"})


# What a Connection header says in most messages; it names no header that is not hop-by-hop anyway.
_USUAL_CONNECTION = frozenset({b"keep-alive", b"close", b"Keep-Alive", b"Close"})


def _end_to_end(headers: RawHeaders) -> RawHeaders:
    """The headers without those of Connection, and those that they name (RFC 9110 section 7.6.1)."""
    named = {part.strip().lower() for name, value in headers if name.lower() == b"connection" for part in value.split(b",")}
    named.add(b"connection")
    return [pair for pair in headers if pair[0].lower() not in named]


def kept_for_provider(headers: RawHeaders, *, uncoded: bool = False) -> list[tuple[bytes, bytes]]:
    """The client's headers that its provider gets, in their order.

    Args:
        headers: checked by `grammar.check_head`, thus ASCII.
        uncoded: the model is renamed, so the answer must be readable as it comes, and digests of the body hold no more.
    """
    dropped = _NOT_WHEN_RENAMED if uncoded else _NOT_TO_PROVIDER
    kept: list[tuple[bytes, bytes]] = []
    for pair in headers:
        name = pair[0].lower()
        if name in dropped:
            if name == b"connection" and pair[1] not in _USUAL_CONNECTION:
                return kept_for_provider(_end_to_end(headers), uncoded=uncoded)
        elif name == b"accept-encoding":
            kept.append((pair[0], readable_codings(pair[1].decode("ascii")).encode()))
        elif not name.startswith(_PREFIXES_NOT_TO_PROVIDER):
            kept.append(pair)
    return kept


def to_provider(
    kept: RawHeaders,
    *,
    auth: Auth,
    key: str,
    defaults: Mapping[str, str],
    request_id: str,
    correlation_id: str | None,
    uncoded: bool = False,
) -> list[tuple[bytes, bytes]]:
    """The headers of a call as its provider gets them, in their order, the provider's credential last.

    Args:
        kept: what `kept_for_provider` left of the client's.
        defaults: lower-case names and values that are added when absent.
        uncoded: see there.
    """
    credential = auth.header.encode()
    sent = [*kept] if auth.header.lower() in CREDENTIALS else _without(kept, credential.lower())
    if defaults:
        present = {name.lower().decode("ascii") for name, _ in sent}
        sent += [(name.encode(), value.encode()) for name, value in defaults.items() if name not in present]
    if uncoded:
        sent.append((b"Accept-Encoding", b"identity"))
    sent.append((b"X-Request-ID", request_id.encode()))
    if correlation_id:
        sent.append((b"X-Correlation-ID", correlation_id.encode()))
    sent.append((credential, auth.value(key).encode()))
    return sent


def _without(headers: RawHeaders, name: bytes) -> list[tuple[bytes, bytes]]:
    return [pair for pair in headers if pair[0].lower() != name]


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
    replaced = {pair[0].lower() for pair in added} - _APPENDED
    kept: list[tuple[bytes, bytes]] = []
    for pair in headers:
        name = pair[0].lower()
        if name in _NOT_TO_CLIENT:
            if name == b"connection" and pair[1] not in _USUAL_CONNECTION:
                return to_client(_end_to_end(headers), added, rewrite)
        elif name in replaced or name.startswith(_PREFIXES_NOT_TO_CLIENT) or _CONTROL.search(pair[1]):
            continue
        elif name in _CHANGED:
            kept.append(_changed(name, pair, rewrite))
        else:
            kept.append(pair)
    return [*kept, *added]


def _changed(name: bytes, pair: tuple[bytes, bytes], rewrite: Callable[[str], str]) -> tuple[bytes, bytes]:
    if name == b"x-request-id":
        return b"X-Upstream-Request-ID", pair[1]
    return pair[0], rewrite(pair[1].decode("latin-1")).encode("latin-1")


def replaced(headers: Iterable[tuple[bytes, bytes]], ours: Mapping[str, str]) -> list[tuple[bytes, bytes]]:
    """The headers without those that we set, then ours; their names are in lower case."""
    added = [(name.encode(), value.encode()) for name, value in ours.items()]
    names = {name for name, _ in added}
    return [pair for pair in headers if pair[0].lower() not in names] + added


def first(headers: RawHeaders, names: Collection[bytes]) -> str | None:
    """The first value of any of these lower-case names."""
    for name, value in headers:
        if name.lower() in names:
            return value.decode("latin-1")
    return None
