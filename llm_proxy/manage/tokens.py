"""Tokens in the management API."""

from aiohttp import web

from llm_proxy import tokens
from llm_proxy.acts import tokens as acts
from llm_proxy.audit import Who
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import answer_page, json_object, one_of, page, parameters


async def find(request: web.Request, who: Who) -> web.Response:
    """The tokens, newest first."""
    context = request.app[CONTEXT]
    given = parameters(request, ("limit", "after", "project_id", "status"))
    asked = page(given)
    if "status" in given:
        one_of("status", tokens.STATUSES, given["status"])
    return answer_page(await tokens.find(context.database, asked, **given), asked, lambda one: acts.shown(context, one))


async def create(request: web.Request, who: Who) -> web.Response:
    """A new token; its secret is in this answer and nowhere else."""
    context = request.app[CONTEXT]
    made, secret = await acts.create(context, who, await json_object(request))
    return answer_json({**acts.shown(context, made), "token": secret.reveal()}, 201)


async def get(request: web.Request, who: Who) -> web.Response:
    """One token."""
    context = request.app[CONTEXT]
    return answer_json(acts.shown(context, await acts.get(context, request.match_info["id"])))


async def update(request: web.Request, who: Who) -> web.Response:
    """Change the fields that are named."""
    context = request.app[CONTEXT]
    changed = await acts.update(context, who, request.match_info["id"], await json_object(request))
    return answer_json(acts.shown(context, changed))


async def delete(request: web.Request, who: Who) -> web.Response:
    """Revoke the token."""
    await acts.revoke(request.app[CONTEXT], who, request.match_info["id"])
    return web.Response(status=204)
