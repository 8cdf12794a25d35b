"""What a management request asks: its body, its page, its filters."""

from collections.abc import Callable, Collection, Sequence
from typing import Any

import orjson
from aiohttp import web

from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError, InvalidField
from llm_proxy.middleware import answer_json
from llm_proxy.providers.policy import read_object

MOST = 200


async def json_object(request: web.Request) -> dict[str, object]:
    """The JSON object in the body, whatever Content-Type it claims; no body is an empty object.

    Raises:
        ApiError: `invalid_json`, `duplicate_key`, `invalid_field` where something follows the object.
    """
    raw = await request.read()
    try:
        return read_object(raw, "application/json", strict=True) or {}
    except ApiError as error:
        if error.code == "invalid_json" and _has_trailing_data(raw):
            raise InvalidField("body", "something follows the JSON object.") from error
        raise


def _has_trailing_data(raw: bytes) -> bool:
    text = raw.strip()
    ends = (place for place, char in enumerate(text[:-1]) if char == ord("}"))
    return any(_is_object(text[: end + 1]) for end in ends)


def _is_object(raw: bytes) -> bool:
    try:
        return isinstance(orjson.loads(raw), dict)
    except orjson.JSONDecodeError:
        return False


def parameters(request: web.Request, known: Collection[str]) -> dict[str, str]:
    """The query's parameters, each at most once.

    Raises:
        InvalidField: one is unknown or came twice.
    """
    found: dict[str, str] = {}
    for name, value in request.query.items():
        if name not in known:
            raise InvalidField(name, f"there is no such parameter. Known are {', '.join(known)}.")
        if name in found:
            raise InvalidField(name, "this parameter came twice.")
        found[name] = value
    return found


def page(parameters: dict[str, str]) -> Page:
    """The page that `limit` and `after` ask for, which are taken out of the parameters.

    Raises:
        InvalidField: `limit` is not a number from 1 to 200.
    """
    text = parameters.pop("limit", "50")
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:9]) <= MOST:
        raise InvalidField("limit", f"give a whole number from 1 to {MOST}.")
    return Page(int(text), parameters.pop("after", None))


def yes_or_no(name: str, text: str) -> bool:
    """A truth value in a query."""
    if text not in ("true", "false"):
        raise InvalidField(name, "give true or false.")
    return text == "true"


def answer_page(rows: Sequence[Any], page: Page, show: Callable[[Any], dict[str, Any]]) -> web.Response:
    """A list; `rows` hold one more than the page when there is a next one."""
    shown, more = rows[: page.limit], len(rows) > page.limit
    return answer_json(
        {"object": "list", "data": [show(row) for row in shown], "has_more": more, "next": shown[-1].id if more else None}
    )
