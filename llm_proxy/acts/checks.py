"""Small real calls that tell whether a provider works."""

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote, urlencode

import orjson

from llm_proxy import providers
from llm_proxy.acts.fields import Field, identifier, optional, read, text, whole
from llm_proxy.audit import Who, event_of
from llm_proxy.clock import now_ms, to_rfc3339
from llm_proxy.context import Context
from llm_proxy.errors import InvalidField, NotFound, UpstreamError, UpstreamTimeout
from llm_proxy.providers import Provider
from llm_proxy.providers.mapping import compile_mapping
from llm_proxy.providers.profiles import Profile, Timeouts
from llm_proxy.upstream import Request

HEALTHY, UNHEALTHY = "healthy", "unhealthy"
SECONDS, CONCURRENT = 30, 2
MOST_CALLS = 200
_OF_OPENAI = ("openai", "azure")


@dataclass(frozen=True)
class Ask:
    """A request of a check: method, path, and a body where there is one."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None


def _several(field: Field) -> Field:
    """A list of 1 to 50 of what `field` reads, each once."""

    def read_list(name: str, value: object) -> list[Any]:
        if not isinstance(value, list) or not 1 <= len(value) <= 50:
            raise InvalidField(name, "give a list of 1 to 50; leave it out for all.")
        return list(dict.fromkeys(field(f"{name}[{place}]", item) for place, item in enumerate(value)))

    return read_list


FIELDS: dict[str, Field] = {
    "provider_ids": optional(_several(identifier)),
    "models": optional(_several(text(200))),
    "timeout_secs": whole(1, 300),
    "max_concurrent": whole(1, 20),
}


async def check_pool(context: Context, who: Who, given: Mapping[str, object]) -> dict[str, Any]:
    """Check the enabled providers of the shared pool, or those that are named, enabled or not; with totals."""
    asked = read(FIELDS, given)
    chosen = _chosen(await providers.of_project(context.database, context.vault, None), asked.get("provider_ids"))
    models: Sequence[str | None] = asked.get("models") or [None]
    if len(chosen) * len(models) > MOST_CALLS:
        raise InvalidField("models", f"this would be {len(chosen) * len(models)} calls; {MOST_CALLS} are allowed at a time.")
    context.audit.append(event_of(who, "provider.check", details={"providers": len(chosen), "models": len(models)}))
    room = asyncio.Semaphore(asked.get("max_concurrent", CONCURRENT))
    seconds = asked.get("timeout_secs", SECONDS)
    found = await asyncio.gather(*(_report(context, one, models, seconds, room) for one in chosen))
    healthy = sum(report["status"] == HEALTHY for report in found)
    return {
        "providers": found,
        "total_providers": len(found),
        "healthy_providers": healthy,
        "unhealthy_providers": len(found) - healthy,
    }


def _chosen(pool: Sequence[Provider], ids: Sequence[str] | None) -> list[Provider]:
    if ids is None:
        return [one for one in pool if one.is_enabled]
    by_id = {one.id: one for one in pool}
    for place, id in enumerate(ids):
        if id not in by_id:
            raise InvalidField(f"provider_ids[{place}]", "there is no such provider in the shared pool.")
    return [by_id[id] for id in ids]


async def check_one(context: Context, who: Who, id: str, project_id: str | None = None) -> dict[str, Any]:
    """Check one provider of a project, or of the shared pool."""
    found = await providers.get(context.database, context.vault, project_id, id)
    if found is None:
        raise NotFound("provider")
    context.audit.append(event_of(who, "provider.check", project_id=project_id, details={"providers": 1, "models": 1}))
    return await _report(context, found, [None], SECONDS, asyncio.Semaphore(CONCURRENT))


async def _report(
    context: Context, provider: Provider, models: Sequence[str | None], seconds: float, room: asyncio.Semaphore
) -> dict[str, Any]:
    tried = await asyncio.gather(*(_try(context, provider, model, seconds, room) for model in models))
    times = [one["response_time_ms"] for one in tried if one["response_time_ms"] is not None]
    return {
        "provider_id": provider.id,
        "status": HEALTHY if all(one["status"] == HEALTHY for one in tried) else UNHEALTHY,
        "models": tried,
        "avg_response_time_ms": round(sum(times) / len(times), 3) if times else None,
        "checked_at": to_rfc3339(now_ms()),
    }


async def _try(
    context: Context, provider: Provider, model: str | None, seconds: float, room: asyncio.Semaphore
) -> dict[str, Any]:
    """One call; `response_time_ms` is null when there was no answer."""
    waited, error = None, providers.problem_of(provider, context.profiles)
    if error is None:
        async with room:
            began = time.perf_counter()
            try:
                error = await _answer(context, provider, model, seconds)
                waited = round((time.perf_counter() - began) * 1000, 3)
            except UpstreamError as failure:
                error = failure.message
    status = UNHEALTHY if error else HEALTHY
    return {"model": model, "status": status, "response_time_ms": waited, "error": error}


async def _answer(context: Context, provider: Provider, model: str | None, seconds: float) -> str | None:
    """What is wrong with the answer to one call, None when nothing is."""
    profile = context.profiles.apis[provider.provider_type]
    base = provider.api_base or profile.base_url
    if model is None:
        return wrong_of_list(await status_of(context, provider, list_models(profile, base), seconds))
    name = compile_mapping(dict(provider.model_mapping)).serves(model)
    if name is None:
        return "its model_mapping does not serve this model"
    status = await status_of(context, provider, one_token(profile, base, name), seconds)
    return wrong_of_list(status) or (f"the provider answers {status}" if status >= 400 else None)


def wrong_of_list(status: int) -> str | None:
    """What a status tells of a provider; not all of them list their models, so that 404 is no sign of illness."""
    if status in (401, 403):
        return f"the provider refuses the key ({status})"
    return f"the provider answers {status}" if status == 429 or status >= 500 else None


def list_models(profile: Profile, base: str) -> Ask:
    """The list of models, which costs nothing."""
    return Ask("GET", "/openai/models" if takes_deployments(profile, base) else "/v1/models")


def one_token(profile: Profile, base: str, model: str) -> Ask:
    """A chat of one token."""
    path = "/v1/chat/completions"
    if takes_deployments(profile, base):
        path = f"/openai/deployments/{quote(model, safe='')}/chat/completions"
    elif not profile.admits(path):
        path = "/v1/messages"
    # OpenAI's newer models refuse `max_tokens`; others do not know what took its place.
    limit = "max_completion_tokens" if profile.name in _OF_OPENAI else "max_tokens"
    return Ask("POST", path, {"model": model, limit: 1, "messages": [{"role": "user", "content": "Hi"}]})


def takes_deployments(profile: Profile, base: str) -> bool:
    """Whether a base URL is of Azure's older dialect."""
    return profile.admits("/openai/deployments/x/chat/completions") and not base.endswith("/v1")


async def status_of(context: Context, provider: Provider, ask: Ask, seconds: float) -> int:
    """The status with which a provider answers within `seconds`; what it says is not read.

    Raises:
        UpstreamError: there is no answer, or none in time.
    """
    request = request_of(provider, context.profiles.get(provider.provider_type), ask, seconds)
    try:
        # Connecting and waiting may each take that long; together they may not.
        async with asyncio.timeout(seconds):
            answer = await context.upstream.open(request)
    except TimeoutError:
        raise UpstreamTimeout("The provider did not begin its answer in time.") from None
    answer.abort()
    return answer.status


def request_of(provider: Provider, profile: Profile, ask: Ask, seconds: float) -> Request:
    """A request of our own, which no client sent."""
    assert provider.api_key is not None
    base = provider.api_base or profile.base_url
    path = ask.path.removeprefix("/v1") if base.endswith("/v1") else ask.path
    auth, body = profile.at(ask.path).auth, orjson.dumps(ask.body) if ask.body is not None else None
    given = [*profile.default_headers.items(), (auth.header, auth.value(provider.api_key.reveal()))]
    headers = [(name.encode(), value.encode()) for name, value in given]
    return Request(
        method=ask.method,
        url=base + path + _query(profile, provider, ask.path),
        headers=[*headers, (b"Content-Type", b"application/json")] if body else headers,
        body=body,
        length=None if body is None else len(body),
        profile=profile,
        timeouts=Timeouts(connect=min(5.0, seconds), first_byte=seconds),
        trusted=base == profile.base_url,
        on_sent=lambda: None,
    )


def _query(profile: Profile, provider: Provider, path: str) -> str:
    params = provider.provider_params
    query = {name: str(params.get(name.replace("-", "_"), value)) for name, value in profile.at(path).query_defaults.items()}
    return f"?{urlencode(query)}" if query else ""
