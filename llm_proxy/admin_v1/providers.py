"""The shared pool of providers in `/admin/v1`."""

from typing import Any

from aiohttp import web

from llm_proxy.acts import providers as acts
from llm_proxy.acts.fields import boolean, read
from llm_proxy.admin_v1.lists import answer_list, asked_slice
from llm_proxy.audit import Who
from llm_proxy.context import Context
from llm_proxy.errors import InvalidField
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.providers import Provider
from llm_proxy.requests import json_object

# What a list of providers and its scripts call the id.
ALIAS = "provider_key"


def _shown(context: Context, provider: Provider) -> dict[str, Any]:
    """A provider without its key, which can only be written."""
    hidden = ("object", "project_id", "api_key")
    shown = {name: value for name, value in acts.shown_now(context, provider).items() if name not in hidden}
    return {"id": provider.id, ALIAS: provider.id, **shown}


def _as_id(given: dict[str, object]) -> dict[str, object]:
    """The fields with the id under its own name.

    Raises:
        InvalidField: both names are there, and say different things.
    """
    if ALIAS not in given:
        return given
    id = given.pop(ALIAS)
    if given.setdefault("id", id) != id:
        raise InvalidField(ALIAS, "this is another name of id; give one of them.")
    return given


async def find(request: web.Request, who: Who) -> web.Response:
    """The shared pool, by id; it has few providers, so the page is cut out of all of them."""
    context, asked = request.app[CONTEXT], asked_slice(request)
    found = sorted(await acts.of_project(context, None), key=lambda one: one.id)
    rows = [one for one in found if one.id > asked.after]
    return await answer_list(request, "providers", rows, asked, lambda one: _shown(context, one))


async def create(request: web.Request, who: Who) -> web.Response:
    """A new provider."""
    context = request.app[CONTEXT]
    made = await acts.create(context, who, None, _as_id(await json_object(request)))
    return answer_json(_shown(context, made), 201)


async def get(request: web.Request, who: Who) -> web.Response:
    """One provider."""
    context = request.app[CONTEXT]
    return answer_json(_shown(context, await acts.get(context, None, request.match_info["id"])))


async def update(request: web.Request, who: Who) -> web.Response:
    """Change the fields that are named."""
    context = request.app[CONTEXT]
    changed = await acts.update(context, who, None, request.match_info["id"], _as_id(await json_object(request)))
    return answer_json(_shown(context, changed))


async def set_status(request: web.Request, who: Who) -> web.Response:
    """Enable or disable."""
    context = request.app[CONTEXT]
    given = read({"is_enabled": boolean}, await json_object(request), required=("is_enabled",))
    return answer_json(_shown(context, await acts.update(context, who, None, request.match_info["id"], given)))


async def delete(request: web.Request, who: Who) -> web.Response:
    """Remove the provider."""
    await acts.delete(request.app[CONTEXT], who, None, request.match_info["id"])
    return web.Response(status=204)
