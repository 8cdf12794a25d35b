"""`/v1/models` for tokens on the shared pool: what they may call."""

import asyncio
from collections.abc import Iterable, Sequence
from urllib.parse import unquote

import orjson

from llm_proxy.acts.checks import list_models, request_of
from llm_proxy.errors import ApiError, UpstreamError
from llm_proxy.providers import policy
from llm_proxy.providers.listed import Listed
from llm_proxy.providers.mapping import without_suffix
from llm_proxy.proxy.call import Call, Route

PATH = "/v1/models"
# A provider's list is asked for within this time, and up to this size.
PATIENCE_SECONDS = 5.0
LARGEST_LIST = 4 * 1024 * 1024
LONGEST_NAME = 200


def asks_for_models(call: Call, routes: Iterable[Route]) -> bool:
    """Whether the call is answered from here: a project's own keys are its own, and its calls are forwarded."""
    asked = call.target.path == PATH or call.target.path.startswith(PATH + "/")
    return asked and call.request.method in ("GET", "HEAD") and all(route.provider.project_id is None for route in routes)


async def models_of(call: Call, routes: Sequence[Route]) -> bytes:
    """The list, or the one model that the path names, as OpenAI writes them.

    Raises:
        ApiError: `model_not_found`.
    """
    name = unquote(call.target.path.removeprefix(PATH).removeprefix("/"))
    mapped = [route for route in routes if name and not route.mapping.serves_all]
    # Only those whose mapping serves the name came so far.
    found = [_mapped(mapped[0], name)] if mapped else await _serving(call, routes)
    if not name:
        return orjson.dumps({"object": "list", "data": [_shown(model) for model in found]})
    meant = without_suffix(name, call.context.settings.provider_suffix)
    for model in found:
        if model.id in (name, meant):
            return orjson.dumps(_shown(model._replace(id=name)))
    raise ApiError(
        "model_not_found", "There is no such model for this token. GET /v1/models lists what is served.", param="model"
    )


def _shown(model: Listed) -> dict[str, object]:
    return {"id": model.id, "object": "model", "created": model.created, "owned_by": model.owned_by}


async def _serving(call: Call, routes: Sequence[Route]) -> list[Listed]:
    """The models that the token may use, by name, each once."""
    lists = await asyncio.gather(*(_of_route(call, route) for route in routes))
    allowed = call.token.allowed_models
    by_id = {model.id: model for models in lists for model in models if policy.allows(allowed, model.id)}
    return [by_id[id] for id in sorted(by_id)]


async def _of_route(call: Call, route: Route) -> Sequence[Listed]:
    if not route.mapping.serves_all:
        return [_mapped(route, name) for name in route.mapping.names]
    return await call.context.listed_models.get(route.id, lambda: _asked(call, route))


def _mapped(route: Route, name: str) -> Listed:
    return Listed(name, route.provider.created_at // 1000, route.profile.name)


async def _asked(call: Call, route: Route) -> list[Listed] | None:
    """What the provider says, None when it gives no list."""
    request = request_of(route.provider, route.profile, list_models(route.profile, route.base_url), PATIENCE_SECONDS)
    try:
        async with asyncio.timeout(PATIENCE_SECONDS):
            answer = await call.context.upstream.open(request)
            body = bytearray()
            try:
                while answer.status == 200 and len(body) <= LARGEST_LIST and (chunk := await answer.chunk()):
                    body += chunk
            finally:
                answer.abort()
    except (UpstreamError, TimeoutError):
        return None
    return _read(bytes(body), route.profile.name)


def _read(body: bytes, owner: str) -> list[Listed] | None:
    try:
        entries = orjson.loads(body)["data"]
        return [_entry(entry, owner) for entry in entries if 0 < len(entry["id"]) <= LONGEST_NAME]
    except (orjson.JSONDecodeError, LookupError, TypeError):
        return None


def _entry(entry: dict[str, object], owner: str) -> Listed:
    created, owned_by = entry.get("created"), entry.get("owned_by")
    return Listed(str(entry["id"]), created if type(created) is int else 0, owned_by if isinstance(owned_by, str) else owner)
