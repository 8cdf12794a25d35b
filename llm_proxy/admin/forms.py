"""Forms of the admin site: where they come from, what their fields say."""

import hashlib
import hmac
import json
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import urlsplit

from aiohttp import web

from llm_proxy.errors import ApiError
from llm_proxy.middleware import PEER
from llm_proxy.requests import read_object

Reader = Callable[[str], object]

MOST_BYTES = 512 * 1024


def seal_of(key: str) -> str:
    """What every form carries: another site cannot know it, since it follows from a cookie."""
    return hashlib.sha256(b"form" + key.encode(errors="surrogateescape")).hexdigest()


def check_origin(request: web.Request) -> None:
    """Refuse what no page of this site has sent.

    Raises:
        ApiError: `origin_not_allowed`.
    """
    try:
        origin = urlsplit(request.headers.get("Origin", ""))
        same_host = bool(origin.netloc) and origin.netloc.lower() == request.headers.get("Host", "").lower()
    except ValueError:
        same_host = False
    # A proxy with TLS that nobody named in TRUSTED_PROXIES makes https look like http from here; never the other way round.
    schemes = ("https",) if request[PEER].scheme == "https" else ("http", "https")
    if not same_host or origin.scheme not in schemes or request.headers.get("Sec-Fetch-Site", "same-origin") != "same-origin":
        raise ApiError("origin_not_allowed", "This form was not sent by a page of this site. Open the page here and try again.")


async def read_form(request: web.Request, key: str) -> dict[str, str]:
    """The fields of a form, each once.

    Raises:
        ApiError: `invalid_form` when it does not carry the seal; `bad_request` when a field comes twice.
    """
    form: dict[str, str] = {}
    if request.content_type == "application/x-www-form-urlencoded":
        for name, value in (await request.post()).items():
            if name in form or not isinstance(value, str):
                raise ApiError("bad_request", "A field of this form came twice.")
            form[name] = value.replace("\r\n", "\n")
    if not key or not hmac.compare_digest(form.pop("seal", "").encode(errors="replace"), seal_of(key).encode()):
        raise ApiError("invalid_form", "This form is not of your present session. Load its page again, then send it.")
    return form


def text(value: str) -> object:
    """Text, as it is."""
    return value.strip()


def number(value: str) -> object:
    """A whole number, or None where nothing stands; what is neither is left for the act to refuse."""
    value = value.strip().replace(" ", "").replace("_", "")
    if not value:
        return None
    return int(value) if value.lstrip("-").isascii() and value.lstrip("-").isdecimal() and len(value) < 20 else value


def lines(value: str) -> object:
    """The lines that are not empty."""
    return [line.strip() for line in value.split("\n") if line.strip()]


def ticked(value: str) -> object:
    """A box; forms leave out those that are not ticked."""
    return value == "on"


def pairs(value: str) -> object:
    """Lines of `name = value`, or an object of JSON; what is neither is left for the act to refuse."""
    if value.strip().startswith("{"):
        try:
            return read_object(value.encode(errors="replace"))
        except ApiError:
            return value
    rows = [line.partition("=") for line in value.split("\n") if line.strip()]
    if not all(equals for _, equals, _ in rows):
        return value
    return {name.strip(): given.strip() for name, _, given in rows}


def as_pairs(value: Mapping[str, Any]) -> str:
    """An object as `pairs` reads it back: lines where all is plain text, else JSON."""
    plain = all(isinstance(item, str) and "\n" not in item + name and "=" not in name for name, item in value.items())
    if plain and not any(name.strip() != name or item.strip() != item or name[:1] == "{" for name, item in value.items()):
        return "\n".join(f"{name} = {item}" for name, item in value.items())
    return json.dumps(value, indent=2, ensure_ascii=False)


def read_fields(form: Mapping[str, str], readers: Mapping[str, Reader], *, skip_empty: tuple[str, ...] = ()) -> dict[str, object]:
    """What a form says, as acts take it.

    Args:
        skip_empty: fields that say nothing when they are left empty.
    """
    given = {name: form.get(name, "") for name in readers}
    return {name: readers[name](value) for name, value in given.items() if value.strip() or name not in skip_empty}
