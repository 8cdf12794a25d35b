"""The bodies of a call as its event may hold them: text, bounded, without credentials."""

from collections.abc import Mapping

from aiohttp import hdrs

from llm_proxy.proxy.body import is_read_whole
from llm_proxy.proxy.tee import KEEP, Inflater, Tee
from llm_proxy.secret import redact
from llm_proxy.settings import Settings

# So much more is looked at than is kept, or a credential that the cut goes through would not be known as one.
MARGIN = 4096
_CODED = frozenset({"gzip", "x-gzip", "deflate"})


def kept_of(settings: Settings) -> int:
    """How much of a reply its tee must keep."""
    wanted = settings.observability_max_response_body_bytes if captures(settings) else 0
    return max(KEEP, wanted + MARGIN)


def captures(settings: Settings) -> bool:
    """Whether events hold bodies."""
    return settings.observability_enabled and settings.observability_capture == "bodies"


def request_text(headers: Mapping[str, str], held: bytes, limit: int) -> str | None:
    """The beginning of a request's JSON or form; None of anything else, and of what is coded in an unknown way."""
    if not held or not is_read_whole(headers.get(hdrs.CONTENT_TYPE, "")):
        return None
    coding = headers.get(hdrs.CONTENT_ENCODING, "identity").strip().lower()
    if coding in _CODED:
        held = b"".join(Inflater(coding, limit + MARGIN).feed(held))
    elif coding != "identity":
        return None
    return _text(held, limit)


def reply_text(tee: Tee | None, limit: int) -> str | None:
    """The beginning of a provider's reply; None of what is no text, or is coded in an unknown way."""
    return _text(tee.kept, limit) if tee and tee.is_text and tee.kept else None


def _text(data: bytes, limit: int) -> str:
    whole = len(data) <= limit
    text = redact(data[: limit + MARGIN].decode("utf-8", "replace"))
    return text if whole else text.encode()[:limit].decode("utf-8", "ignore")
