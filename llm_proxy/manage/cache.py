"""The cache in the management API."""

from aiohttp import web

from llm_proxy.acts import cache as acts
from llm_proxy.audit import Who
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import json_object, parameters


async def stats(request: web.Request, who: Who) -> web.Response:
    """What is stored, how often it answered."""
    parameters(request, ())
    return answer_json(await acts.shown(request.app[CONTEXT]))


async def purge(request: web.Request, who: Who) -> web.Response:
    """Forget stored answers, in every process."""
    deleted = await acts.purge(request.app[CONTEXT], who, await json_object(request))
    return answer_json({"deleted": deleted})
