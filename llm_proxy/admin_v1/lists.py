"""Lists in the shape that scripts of the predecessor know."""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from aiohttp import web

from llm_proxy.acts.configuration import shown as shown_version
from llm_proxy.acts.fields import identifier
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import limit_of, parameters

# Those scripts know of no pages: what they manage fits into one.
MOST = 1000


class Slice(NamedTuple):
    """The part of a list that is asked for: `limit` entries at most, those behind the id `after`."""

    limit: int
    after: str


def asked_slice(request: web.Request) -> Slice:
    """What `limit` and `after` ask for.

    Raises:
        InvalidField: one of them cannot be used, or there is another parameter.
    """
    given = parameters(request, ("limit", "after"))
    return Slice(limit_of(given, MOST, MOST), identifier("after", given["after"]) if "after" in given else "")


async def answer_list(
    request: web.Request, name: str, rows: Sequence[Any], asked: Slice, show: Callable[[Any], dict[str, Any]]
) -> web.Response:
    """A list under its name, with the version of what is stored; `rows` hold one more than asked when there are more."""
    version = (await shown_version(request.app[CONTEXT]))["version"]
    page, more = rows[: asked.limit], len(rows) > asked.limit
    listed = {name: [show(row) for row in page], "has_more": more, "next": page[-1].id if more else None}
    return answer_json({"version": version, **listed})
