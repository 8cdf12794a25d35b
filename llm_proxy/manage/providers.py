"""The providers of a project in the management API."""

from aiohttp import web

from llm_proxy.acts import providers as acts
from llm_proxy.acts.fields import identifier
from llm_proxy.audit import Who
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import answer_page, json_object, page, parameters


async def find(request: web.Request, who: Who) -> web.Response:
    """The providers of the project, by id; a project has few, so the page is cut out of all of them."""
    context, given = request.app[CONTEXT], parameters(request, ("limit", "after"))
    # Their ids may be the caller's own, so that the cursor may be one too.
    after = identifier("after", given.pop("after")) if "after" in given else ""
    found = sorted(await acts.of_project(context, request.match_info["id"]), key=lambda one: one.id)
    return answer_page([one for one in found if one.id > after], page(given), lambda one: acts.shown_now(context, one))


async def create(request: web.Request, who: Who) -> web.Response:
    """A new provider."""
    context = request.app[CONTEXT]
    made = await acts.create(context, who, request.match_info["id"], await json_object(request))
    return answer_json(acts.shown_now(context, made), 201)


async def get(request: web.Request, who: Who) -> web.Response:
    """One provider."""
    context, ids = request.app[CONTEXT], request.match_info
    return answer_json(acts.shown_now(context, await acts.get(context, ids["id"], ids["provider_id"])))


async def update(request: web.Request, who: Who) -> web.Response:
    """Change the fields that are named."""
    context, ids = request.app[CONTEXT], request.match_info
    changed = await acts.update(context, who, ids["id"], ids["provider_id"], await json_object(request))
    return answer_json(acts.shown_now(context, changed))


async def delete(request: web.Request, who: Who) -> web.Response:
    """Remove the provider."""
    await acts.delete(request.app[CONTEXT], who, request.match_info["id"], request.match_info["provider_id"])
    return web.Response(status=204)
