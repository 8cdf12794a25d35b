"""The audit log in the management API."""

from typing import Any

from aiohttp import web

from llm_proxy import audit
from llm_proxy.audit import Who
from llm_proxy.clock import from_rfc3339
from llm_proxy.errors import NotFound
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import answer_page, one_of, page, parameters

TIMES = ("start_time", "end_time")
OUTCOMES = ("success", "failure", "denied", "error")


async def find(request: web.Request, who: Who) -> web.Response:
    """The audit events, newest first."""
    given: dict[str, Any] = dict(parameters(request, ("limit", "after", *audit.EXACT_FILTERS, "search", *TIMES)))
    asked = page(given)
    if "outcome" in given:
        one_of("outcome", OUTCOMES, given["outcome"])
    filters = {name: from_rfc3339(name, value) if name in TIMES else value for name, value in given.items()}
    return answer_page(await audit.find(request.app[CONTEXT].database, asked, filters), asked, audit.shown)


async def get(request: web.Request, who: Who) -> web.Response:
    """One audit event."""
    id = request.match_info["id"]
    found = await audit.get(request.app[CONTEXT].database, id)
    if found is None:
        raise NotFound("audit event")
    return answer_json(audit.shown(found))
