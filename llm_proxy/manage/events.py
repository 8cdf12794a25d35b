"""The delivery of events in the management API."""

from aiohttp import web

from llm_proxy.audit import Who
from llm_proxy.events.statistics import shown
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import parameters


async def stats(request: web.Request, who: Who) -> web.Response:
    """How the log and each sink are doing, since this process started."""
    parameters(request, ())
    events = request.app[CONTEXT].events
    return answer_json(shown(events.report(), await events.stream_state()))
