"""Checks of the shared pool in `/admin/v1`."""

from aiohttp import web

from llm_proxy.acts import checks as acts
from llm_proxy.audit import Who
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import json_object, parameters


async def check(request: web.Request, who: Who) -> web.Response:
    """Call the providers that are asked for."""
    return answer_json(await acts.check_pool(request.app[CONTEXT], who, await json_object(request)))


async def check_one(request: web.Request, who: Who) -> web.Response:
    """Call one provider."""
    parameters(request, ())
    return answer_json(await acts.check_one(request.app[CONTEXT], who, request.match_info["id"]))
