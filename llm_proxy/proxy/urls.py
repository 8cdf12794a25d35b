"""The provider's URLs: how a call's path joins a base, how an answer's URL leads back to us."""

from collections.abc import Mapping
from urllib.parse import SplitResult, quote, unquote_plus, urljoin, urlsplit

VERSION = "/v1"


def join(base: str, path: str) -> str:
    """The URL of a call; where the base ends in /v1 and the path begins with it, it is taken once.

    Args:
        base: a base URL without a slash at its end.
        path: the call's canonical path, beginning with a slash.
    """
    if base.endswith(VERSION) and (path == VERSION or path.startswith(VERSION + "/")):
        return base + path.removeprefix(VERSION)
    return base + path


def with_defaults(query: str | None, defaults: Mapping[str, str]) -> str:
    """The query as it was sent, with the parameters it lacks added; with its question mark, or empty."""
    if not defaults:
        return "" if query is None else f"?{query}"
    present = {unquote_plus(part.partition("=")[0]) for part in (query or "").split("&")}
    added = [f"{name}={quote(value, safe='')}" for name, value in defaults.items() if name not in present]
    if query is None and not added:
        return ""
    return "?" + "&".join([*([query] if query else []), *added])


def rewritten(url: str, base: str, ours: str) -> str:
    """A URL of an answer, leading through us when it lies under the provider's base; a path stays a path.

    Args:
        url: from `Location` or `Operation-Location`.
        base: the provider's base URL.
        ours: scheme and authority under which the client called us; empty when it named none.
    """
    there = urlsplit(base)
    try:
        absolute = urlsplit(urljoin(base, url) if url.startswith("/") else url)
        same = _origin(absolute) == _origin(there)
    except ValueError:
        return url
    rest = absolute.path.removeprefix(there.path)
    if not same or (there.path and rest == absolute.path) or rest[:1] not in ("", "/"):
        return url
    if url.startswith("/") and not url.startswith("//"):
        ours = ""
    return ours + absolute._replace(scheme="", netloc="", path=(VERSION if base.endswith(VERSION) else "") + rest).geturl()


def _origin(url: SplitResult) -> tuple[str, str | None, int | None]:
    return url.scheme, url.hostname, url.port or {"http": 80, "https": 443}.get(url.scheme)
