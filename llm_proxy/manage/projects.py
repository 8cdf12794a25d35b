"""Projects in the management API."""

from typing import Any

from aiohttp import web

from llm_proxy import projects
from llm_proxy.acts import projects as acts
from llm_proxy.audit import Who
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import answer_page, json_object, one_of, page, parameters


async def find(request: web.Request, who: Who) -> web.Response:
    """The projects, newest first."""
    given: dict[str, Any] = dict(parameters(request, ("limit", "after", "name", "is_active")))
    asked = page(given)
    if "is_active" in given:
        given["is_active"] = one_of("is_active", ("true", "false"), given["is_active"]) == "true"
    return answer_page(await projects.find(request.app[CONTEXT].database, asked, **given), asked, acts.shown)


async def create(request: web.Request, who: Who) -> web.Response:
    """A new project."""
    made = await acts.create(request.app[CONTEXT], who, await json_object(request))
    return answer_json(acts.shown(made), 201)


async def get(request: web.Request, who: Who) -> web.Response:
    """One project."""
    return answer_json(acts.shown(await acts.get(request.app[CONTEXT], request.match_info["id"])))


async def update(request: web.Request, who: Who) -> web.Response:
    """Change the fields that are named."""
    changed = await acts.update(request.app[CONTEXT], who, request.match_info["id"], await json_object(request))
    return answer_json(acts.shown(changed))


async def delete(request: web.Request, who: Who) -> web.Response:
    """Deactivate the project and revoke its tokens."""
    await acts.deactivate(request.app[CONTEXT], who, request.match_info["id"])
    return web.Response(status=204)


async def revoke_tokens(request: web.Request, who: Who) -> web.Response:
    """Revoke all tokens of the project."""
    counted = await acts.revoke_tokens(request.app[CONTEXT], who, request.match_info["id"], await json_object(request))
    return answer_json(counted)
