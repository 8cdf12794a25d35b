"""The providers of a project in the management API."""

from aiohttp import web

from llm_proxy.acts import providers as acts
from llm_proxy.audit import Who
from llm_proxy.manage.requests import json_object, parameters
from llm_proxy.middleware import CONTEXT, answer_json


async def find(request: web.Request, who: Who) -> web.Response:
    """All providers of the project; there are few, so they come in one page."""
    parameters(request, ())
    context = request.app[CONTEXT]
    found = await acts.of_project(context, request.match_info["id"])
    return answer_json({"object": "list", "data": [acts.shown(context, one) for one in found], "has_more": False, "next": None})


async def create(request: web.Request, who: Who) -> web.Response:
    """A new provider."""
    context = request.app[CONTEXT]
    made = await acts.create(context, who, request.match_info["id"], await json_object(request))
    return answer_json(acts.shown(context, made), 201)


async def get(request: web.Request, who: Who) -> web.Response:
    """One provider."""
    context, ids = request.app[CONTEXT], request.match_info
    return answer_json(acts.shown(context, await acts.get(context, ids["id"], ids["provider_id"])))


async def update(request: web.Request, who: Who) -> web.Response:
    """Change the fields that are named."""
    context, ids = request.app[CONTEXT], request.match_info
    changed = await acts.update(context, who, ids["id"], ids["provider_id"], await json_object(request))
    return answer_json(acts.shown(context, changed))


async def delete(request: web.Request, who: Who) -> web.Response:
    """Remove the provider."""
    await acts.delete(request.app[CONTEXT], who, request.match_info["id"], request.match_info["provider_id"])
    return web.Response(status=204)
