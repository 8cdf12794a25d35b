"""What a management request asks: who sends it, its body, its page, its filters."""

import json
import re
from collections.abc import Awaitable, Callable, Collection, Iterable, Sequence
from functools import wraps
from typing import Any, NoReturn

from aiohttp import web

from llm_proxy.audit import Who
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError, InvalidField
from llm_proxy.middleware import Handler, answer_json, ask_for_body, decide_later, operator

MOST = 200

Guarded = Callable[[web.Request, Who], Awaitable[web.StreamResponse]]
Route = tuple[str, str, Guarded]

_LIMIT = re.compile(r"[1-9][0-9]{0,3}")
_UUID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")


def guarded(handler: Guarded) -> Handler:
    """Serve only an operator; the handler gets who it is."""

    @wraps(handler)
    async def serve(request: web.Request) -> web.StreamResponse:
        who = operator(request)
        await ask_for_body(request)
        return await handler(request, who)

    return serve


def add_guarded(app: web.Application, routes: Iterable[Route]) -> None:
    """Add routes that serve only an operator to a site's application."""
    for method, path, handler in routes:
        app.router.add_route(method, path, guarded(handler), expect_handler=decide_later)


async def json_object(request: web.Request) -> dict[str, object]:
    """The JSON object in the body, whatever Content-Type it claims; no body is an empty object.

    Raises:
        ApiError: as `read_object` does, and `encoded_body`.
    """
    if request.headers.get("Content-Encoding", "identity").lower() != "identity":
        raise ApiError("encoded_body", "Send the body without Content-Encoding.", param="body")
    return read_object(await request.read())


def read_object(raw: bytes) -> dict[str, object]:
    """A JSON object in the one way it can be understood.

    Raises:
        ApiError: `invalid_json` for anything else, `duplicate_key` where it names a key twice at any depth.
        InvalidField: something follows it.
    """
    try:
        text = raw.decode().strip(" \t\r\n")
        value, end = _DECODER.raw_decode(text or "{}")
        if "\\u" in text:
            # Half of a surrogate pair passes the decoder, and neither answer nor database could hold it.
            json.dumps(value, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        raise ApiError("invalid_json", "The body is not a JSON object in UTF-8.", param="body") from None
    if end < len(text):
        raise InvalidField("body", "something follows the JSON object.")
    if not isinstance(value, dict):
        raise ApiError("invalid_json", "The body must be a JSON object.", param="body")
    return value


def _once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found: dict[str, object] = {}
    for name, value in pairs:
        if name in found:
            shown = name[:100].encode(errors="replace").decode()
            raise ApiError("duplicate_key", "The body names a field twice. Send each once.", param=shown)
        found[name] = value
    return found


def _no_constant(name: str) -> NoReturn:
    raise ValueError(name)  # NaN and Infinity are Python's, not JSON's.


_DECODER = json.JSONDecoder(object_pairs_hook=_once, parse_constant=_no_constant)


def parameters(request: web.Request, known: Collection[str]) -> dict[str, str]:
    """The query's parameters, each at most once, none of them empty.

    Raises:
        InvalidField: one is unknown, came twice or says nothing.
    """
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise InvalidField(name[:100], f"there is no such parameter. Known are {', '.join(known)}.")
        if name in found:
            raise InvalidField(name, "this parameter came twice.")
        if not value:
            # A script whose variable was empty must not be answered with everything.
            raise InvalidField(name, "this parameter is empty. Leave it out, or give a value.")
        found[name] = value
    return found


def page(parameters: dict[str, str]) -> Page:
    """The page that `limit` and `after` ask for, which are taken out of the parameters.

    Raises:
        InvalidField: `limit` is not a number from 1 to 200, or `after` is no id of ours.
    """
    limit, after = limit_of(parameters), parameters.pop("after", None)
    if after and not _UUID.fullmatch(after):
        # Anything else would be compared with the ids all the same, and could let the whole list through.
        raise InvalidField("after", "give the `next` of the page before.")
    return Page(limit, after)


def limit_of(parameters: dict[str, str], usual: int = 50, most: int = MOST) -> int:
    """How many entries a page may have, taken out of the parameters.

    Raises:
        InvalidField: `limit` is not a number from 1 to `most`.
    """
    limit = parameters.pop("limit", str(usual))
    if not _LIMIT.fullmatch(limit) or int(limit) > most:
        raise InvalidField("limit", f"give a whole number from 1 to {most}.")
    return int(limit)


def one_of(name: str, choices: Collection[str], value: str) -> str:
    """A word out of a few.

    Raises:
        InvalidField: it is another one.
    """
    if value not in choices:
        raise InvalidField(name, f"give one of {', '.join(choices)}.")
    return value


def answer_page(rows: Sequence[Any], page: Page, show: Callable[[Any], dict[str, Any]]) -> web.Response:
    """A list; `rows` hold one more than the page when there is a next one."""
    shown, more = rows[: page.limit], len(rows) > page.limit
    return answer_json(
        {"object": "list", "data": [show(row) for row in shown], "has_more": more, "next": shown[-1].id if more else None}
    )
