"""Master keys in `/admin/v1`, which older scripts call credentials."""

from aiohttp import web

from llm_proxy import master_keys
from llm_proxy.acts import master_keys as acts
from llm_proxy.acts.fields import boolean, read
from llm_proxy.admin_v1.lists import answer_list, asked_slice
from llm_proxy.audit import Who
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import json_object


async def find(request: web.Request, who: Who) -> web.Response:
    """The master keys, by id."""
    return await _list(request, "master_keys")


async def find_credentials(request: web.Request, who: Who) -> web.Response:
    """The same under the older name."""
    return await _list(request, "credentials")


async def _list(request: web.Request, name: str) -> web.Response:
    context, asked = request.app[CONTEXT], asked_slice(request)
    rows = await master_keys.find(context.database, asked.limit + 1, asked.after)
    return await answer_list(request, name, rows, asked, lambda one: acts.shown(context, one))


async def create(request: web.Request, who: Who) -> web.Response:
    """A new master key; its secret is in this answer and nowhere else."""
    context = request.app[CONTEXT]
    made, secret = await acts.create(context, who, await json_object(request))
    return answer_json({**acts.shown(context, made), "key": secret.reveal()}, 201)


async def get(request: web.Request, who: Who) -> web.Response:
    """One master key."""
    context = request.app[CONTEXT]
    return answer_json(acts.shown(context, await acts.get(context, request.match_info["id"])))


async def update(request: web.Request, who: Who) -> web.Response:
    """Change the fields that are named."""
    context = request.app[CONTEXT]
    return answer_json(acts.shown(context, await acts.update(context, who, request.match_info["id"], await json_object(request))))


async def rotate(request: web.Request, who: Who) -> web.Response:
    """A new secret, in this answer and nowhere else."""
    context = request.app[CONTEXT]
    changed, secret = await acts.rotate(context, who, request.match_info["id"], await json_object(request))
    return answer_json({**acts.shown(context, changed), "key": secret.reveal()})


async def set_status(request: web.Request, who: Who) -> web.Response:
    """Enable or disable."""
    context = request.app[CONTEXT]
    given = read({"is_enabled": boolean}, await json_object(request), required=("is_enabled",))
    return answer_json(acts.shown(context, await acts.update(context, who, request.match_info["id"], given)))


async def delete(request: web.Request, who: Who) -> web.Response:
    """Remove the master key."""
    await acts.delete(request.app[CONTEXT], who, request.match_info["id"])
    return web.Response(status=204)
