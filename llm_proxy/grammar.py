"""The grammar of requests, stricter than the parser's where leniency has hurt proxies."""

import functools
import re
from collections.abc import Collection, Sequence
from typing import NamedTuple
from urllib.parse import unquote, unquote_to_bytes

from llm_proxy.errors import ApiError

MAX_HEAD_BYTES = 64 * 1024
MAX_TARGET_BYTES = 16 * 1024
MAX_HEADERS = 128

RawHeaders = Sequence[tuple[bytes, bytes]]

# RFC 9110 section 5.6.2, less the underscore: CGI-like servers cannot tell `X_Api_Key` from `X-Api-Key`.
_NAME = re.compile(rb"[!#$%&'*+\-.^`|~0-9A-Za-z]+")
# RFC 9110 section 5.5, less obs-text, whose meaning nobody agrees on.
_VALUES = re.compile(rb"[\t -~\n]*")
_LENGTH = re.compile(rb"0|[1-9][0-9]{0,17}")
# RFC 9110 section 7.2: a host and a port, and no user, path or list of hosts.
_HOST = re.compile(rb"(?:\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._~%!$&'()*+;=-]*)(?::[0-9]*)?")
_WEBSOCKET = re.compile(rb"(?:^|,)\s*websocket\s*(?:$|[,/])", re.IGNORECASE)
# Of two fields of these names each reader believes a different one.
_SINGLE = frozenset(
    {b"host", b"content-length", b"transfer-encoding", b"content-type", b"content-encoding", b"expect", b"authorization"}
)
_LONGEST_KNOWN = 64
_ABSOLUTE = re.compile(r"(https?)://([^/?#]*)(.*)", re.IGNORECASE | re.DOTALL)
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")
# Encoded separators and control characters mean one thing to the check and another to whoever decodes them next.
_BAD_IN_PATH = re.compile(r"%(?:2[fF]|5[cC]|[01][0-9A-Fa-f]|7[fF])|[\\\x00-\x20\x7f]")
_BAD_IN_QUERY = re.compile(r"%0[0aAdD]|[\x00-\x20\x7f]")
_CREDENTIAL_PARAMETERS = frozenset({"api_key", "api-key", "apikey", "x-api-key", "access_token"})
_TOKEN_VALUE = "sk-lp-"
_REFUSED_METHODS = frozenset({"TRACE", "TRACK", "CONNECT", "DEBUG"})


class Target(NamedTuple):
    """What is asked for: an absolute path, and the query after `?`, or None without one; both as they were sent."""

    path: str
    query: str | None


def path_of(target: str) -> str:
    """The path of a target before anything of it was checked, only to decide who looks at it."""
    absolute = None if target[:1] == "/" else _ABSOLUTE.fullmatch(target)
    return (absolute[3] if absolute else target).partition("?")[0]


def check_head(method: str, version: tuple[int, int], headers: RawHeaders) -> None:
    """Refuse a head that another HTTP implementation could read differently (RFC 9112 sections 6, 11).

    Raises:
        ApiError: `method_not_allowed`, `headers_too_large`, `invalid_header`, `bad_request`, `conflicting_credentials`,
            `websocket_not_supported`.
    """
    if method in _REFUSED_METHODS:
        raise ApiError("method_not_allowed", f"{method} is not served here.")
    if not (1, 0) <= version <= (1, 1):
        raise ApiError("bad_request", "Only HTTP/1.1 and HTTP/1.0 are served here.")
    seen: set[bytes] = set()
    size = 4 * len(headers)
    for name, value in headers:
        size += len(name) + len(value)
        lowered = _known_name(name) if len(name) <= _LONGEST_KNOWN else _lowered(name)
        if lowered in _SINGLE:
            _check_single(lowered, value, version, twice=lowered in seen)
            seen.add(lowered)
        elif lowered == b"upgrade" and _WEBSOCKET.search(value):
            raise ApiError(
                "websocket_not_supported",
                "WebSockets are not proxied. Use HTTP, with streaming where you need it.",
                headers={"Upgrade": "HTTP/1.1"},
            )
    _check_values([value for _, value in headers])
    if size > MAX_HEAD_BYTES:
        raise ApiError("headers_too_large", f"The headers are larger than {MAX_HEAD_BYTES} bytes together.")
    if b"content-length" in seen and b"transfer-encoding" in seen:
        raise ApiError("bad_request", "Content-Length and Transfer-Encoding exclude each other.")


def _lowered(name: bytes) -> bytes:
    if not _NAME.fullmatch(name):
        raise ApiError(
            "invalid_header", "A header name has a character that is not allowed; an underscore is not allowed either."
        )
    return name.lower()


# The same few names come with every call; what is kept of what strangers send is bounded, in number and in length.
_known_name = functools.lru_cache(maxsize=4096)(_lowered)


def _check_values(values: list[bytes]) -> None:
    # All at once, as a match for each would cost ten times as much; a line break inside a value would make one more of them.
    together = b"\n".join(values)
    if not _VALUES.fullmatch(together) or together.count(b"\n") >= max(1, len(values)):
        raise ApiError("invalid_header", "A header value has a character that is not allowed: use printable ASCII.")


def _check_single(name: bytes, value: bytes, version: tuple[int, int], *, twice: bool) -> None:
    if twice and name == b"authorization":
        raise ApiError("conflicting_credentials", "The header authorization came twice. Send the token once.")
    if twice:
        raise ApiError("bad_request", f"The header {name.decode()} came twice.")
    if name == b"content-length" and not _LENGTH.fullmatch(value):
        raise ApiError("bad_request", "Content-Length is not a plain number.")
    if name == b"transfer-encoding" and (value.lower() != b"chunked" or version < (1, 1)):
        raise ApiError("bad_request", "The only Transfer-Encoding served is chunked, in HTTP/1.1.")
    if name == b"host" and not _HOST.fullmatch(value):
        raise ApiError("bad_request", "The Host header is not a host with an optional port.")


def read_target(method: str, target: str, host: str, allowed_hosts: Collection[str]) -> Target:
    """Split and check a request target (RFC 9112 section 3.2).

    Args:
        host: the Host header, empty when there was none (HTTP/1.0).
        allowed_hosts: the host names that are answered, empty for any.

    Raises:
        ApiError: `invalid_path`, `bad_request`, `unknown_host`, `target_too_long`, `token_in_query`.
    """
    if len(target) > MAX_TARGET_BYTES:
        raise ApiError("target_too_long", f"The request target is longer than {MAX_TARGET_BYTES} bytes.")
    if allowed_hosts and _host_name(host) not in map(str.lower, allowed_hosts):
        raise ApiError("unknown_host", "This host name is not served here (ALLOWED_HOSTS).")
    if target[:1] != "/" and (absolute := _ABSOLUTE.fullmatch(target)):
        if absolute[2].lower() != host.lower():
            raise ApiError("bad_request", "The host of the request target differs from the Host header.")
        target = absolute[3] if absolute[3].startswith("/") else "/" + absolute[3]
    if target == "*" and method == "OPTIONS":
        return Target("*", None)
    return _known_origin_form(target) if len(target) <= _LONGEST_KNOWN else _origin_form(target)


def _origin_form(target: str) -> Target:
    path, mark, query = target.partition("?")
    check_path(path)
    if mark:
        _check_query(query)
    return Target(path, query if mark else None)


_known_origin_form = functools.lru_cache(maxsize=4096)(_origin_form)


def _host_name(host: str) -> str:
    return re.sub(r":[0-9]*$", "", host).lower()


def check_path(path: str) -> None:
    """Refuse a path that could be read in two ways, so that what is checked is what is forwarded.

    Raises:
        ApiError: `invalid_path`.
    """
    if not path.startswith("/"):
        raise _invalid("it must begin with /")
    if not path.isascii() or "#" in path:
        raise _invalid("characters beyond ASCII must be percent-encoded")
    if _BAD_ESCAPE.search(path):
        raise _invalid("a % must be followed by two hexadecimal digits")
    if _BAD_IN_PATH.search(path):
        raise _invalid("encoded slashes, backslashes and control characters are not allowed")
    if "//" in path:
        raise _invalid("empty segments (//) are not allowed")
    if "%" in path or "/." in path:
        _check_decoded(path)


def _check_decoded(path: str) -> None:
    decoded = unquote_to_bytes(path)
    try:
        segments = decoded.decode().split("/")
    except UnicodeDecodeError:
        raise _invalid("its percent-encoding is not UTF-8") from None
    if any(segment.partition(";")[0] in (".", "..") for segment in segments):
        raise _invalid("the segments . and .. are not allowed")


def _check_query(query: str) -> None:
    if not query.isascii() or "#" in query or _BAD_ESCAPE.search(query) or _BAD_IN_QUERY.search(query):
        raise _invalid("the query has a character or an escape that is not allowed")
    for part in re.split("[&;]", query):
        name, _, value = (unquote(part) if "%" in part else part).partition("=")
        if name.lower() in _CREDENTIAL_PARAMETERS or value.startswith(_TOKEN_VALUE):
            raise ApiError(
                "token_in_query",
                "A token must not travel in the URL, where logs keep it. "
                "Send it as `Authorization: Bearer`, `x-api-key` or `api-key`.",
            )


def _invalid(problem: str) -> ApiError:
    return ApiError("invalid_path", f"The request target cannot be used: {problem}.")
