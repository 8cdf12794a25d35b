"""Pages of providers: the shared pool, or a project's own keys."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from aiohttp import web

from llm_proxy.acts import checks, configuration
from llm_proxy.acts import projects as project_acts
from llm_proxy.acts import providers as acts
from llm_proxy.admin import use
from llm_proxy.admin.display import lasting
from llm_proxy.admin.forms import Reader, as_pairs, number, pairs, read_fields, text, ticked
from llm_proxy.admin.visits import Visit, problems_of
from llm_proxy.errors import ApiError

CHANGES: Mapping[str, Reader] = {
    "name": text,
    "provider_type": text,
    "api_base": text,
    "api_key": text,
    "weight": number,
    "model_mapping": pairs,
    "provider_params": pairs,
    "is_enabled": ticked,
}
NEW: Mapping[str, Reader] = {"id": text, **CHANGES}
# What the buttons of a provider's page do, and how that is told.
STATES: Mapping[str, tuple[dict[str, object], str]] = {
    "enable": ({"is_enabled": True}, "The provider is enabled."),
    "disable": ({"is_enabled": False}, "The provider is disabled: it gets no new calls."),
    "drain": ({"weight": 0}, "The weight is 0: the provider gets no new calls, those that run go on."),
}


@dataclass(frozen=True)
class Owner:
    """Whose providers these are; `id` is None for the shared pool."""

    id: str | None
    name: str

    @property
    def list(self) -> str:
        """The page that lists them."""
        return f"/admin/projects/{self.id}" if self.id else "/admin/providers"

    @property
    def add(self) -> str:
        """Where a new one is sent."""
        return f"{self.list}/keys" if self.id else self.list

    def page(self, id: str) -> str:
        """The page of one of them."""
        return f"{self.add}/{quote(id)}"


async def _owner(visit: Visit) -> Owner:
    id = visit.request.match_info.get("id")
    return Owner(id, (await project_acts.get(visit.context, id)).name) if id else Owner(None, "the shared pool")


async def find(visit: Visit) -> web.Response:
    """The shared pool, with the version of the configuration."""
    context = visit.context
    pool = [acts.shown_now(context, one) for one in await acts.of_project(context, None)]
    facts = {
        "providers": sorted(pool, key=lambda one: str(one["id"])),
        "owner": await _owner(visit),
        "recent": await use.of_providers(context),
    }
    return visit.show("providers.html", {**facts, "configuration": await configuration.shown(context)})


async def reload(visit: Visit) -> web.Response:
    """Read the profiles and providers anew, in every instance."""
    try:
        done = await configuration.reload(visit.context, visit.who)
    except ApiError as error:
        if error.code != "invalid_profiles":
            raise
        return visit.go("/admin/providers", error.message, is_bad=True)
    said = f"Read anew: {done['providers_count']} enabled providers, {done['credentials_count']} enabled master keys."
    return visit.go("/admin/providers", said)


async def profiles(visit: Visit) -> web.Response:
    """The loaded profiles with their rules."""
    found = visit.context.profiles
    return visit.show("profiles.html", {"profiles": found.apis.values(), "default": found.default_api})


async def new(visit: Visit) -> web.Response:
    """The form for a new provider."""
    return await _new(visit, {"weight": "1", "is_enabled": "on"}, {})


async def _new(visit: Visit, form: Mapping[str, str], problems: Mapping[str, str]) -> web.Response:
    profiles = visit.context.profiles
    facts = {"form": {"provider_type": profiles.default_api, **form}, "problems": problems, "types": list(profiles.apis)}
    return visit.show("provider_new.html", {**facts, "owner": await _owner(visit)}, 400 if problems else 200)


async def create(visit: Visit) -> web.Response:
    """A new provider."""
    owner = await _owner(visit)
    given = read_fields(visit.form, NEW, skip_empty=("id", "name", "api_base", "api_key", "weight"))
    try:
        made = await acts.create(visit.context, visit.who, owner.id, given)
    except ApiError as error:
        return await _new(visit, visit.form, problems_of(error, NEW))
    return visit.go(owner.page(made.id), f"The provider {made.name} was added.")


async def show(visit: Visit) -> web.Response:
    """One provider."""
    return await _show(visit, {})


async def _show(visit: Visit, problems: Mapping[str, str]) -> web.Response:
    owner, context = await _owner(visit), visit.context
    found = acts.shown_now(context, await acts.get(context, owner.id, visit.part("provider_id")))
    stored: dict[str, Any] = {
        **found,
        "api_key": "",
        "model_mapping": as_pairs(found["model_mapping"]),
        "provider_params": as_pairs(found["provider_params"]),
        "is_enabled": "on" if found["is_enabled"] else "",
    }
    facts = {
        "owner": owner,
        "provider": found,
        "form": visit.form or stored,
        "problems": problems,
        "types": list(context.profiles.apis),
        "use": await use.read(context, use.span_of(visit.request), {"provider": found["id"]}),
        **use.CHOICES,
    }
    return visit.show("provider.html", facts, 400 if problems else 200)


async def update(visit: Visit) -> web.Response:
    """Change a provider; without a new key it keeps its own."""
    owner, id = await _owner(visit), visit.part("provider_id")
    given = read_fields(visit.form, CHANGES, skip_empty=("api_key",))
    given["api_base"] = given["api_base"] or None
    try:
        await acts.update(visit.context, visit.who, owner.id, id, given)
    except ApiError as error:
        return await _show(visit, problems_of(error, CHANGES))
    return visit.go(owner.page(id), "The provider was changed.")


async def set_state(visit: Visit) -> web.Response:
    """Enable, disable or drain."""
    owner, id = await _owner(visit), visit.part("provider_id")
    changes, said = STATES.get(visit.form.get("state", ""), ({}, ""))
    await acts.update(visit.context, visit.who, owner.id, id, changes)
    return visit.go(owner.page(id), said)


async def test(visit: Visit) -> web.Response:
    """One small real call."""
    owner, id = await _owner(visit), visit.part("provider_id")
    found = await checks.check_one(visit.context, visit.who, id, owner.id)
    [tried] = found["models"]
    came_from_health = visit.form.get("back") == "health"
    text, is_bad = said_of(tried)
    path = "/admin/health" if came_from_health else owner.page(id)
    return visit.go(path, f"{id}: {text}" if came_from_health else text, is_bad=is_bad)


def said_of(tried: Mapping[str, Any]) -> tuple[str, bool]:
    """What one try of a provider found, with whether that is bad."""
    if tried["error"]:
        return f"The test failed: {tried['error']}", True
    return f"The provider answers, within {lasting(tried['response_time_ms'] / 1000)}.", False


async def confirm_delete(visit: Visit) -> web.Response:
    """What removing it means."""
    owner = await _owner(visit)
    found = acts.shown(visit.context, await acts.get(visit.context, owner.id, visit.part("provider_id")))
    return visit.show("provider_delete.html", {"owner": owner, "provider": found})


async def delete(visit: Visit) -> web.Response:
    """Remove a provider."""
    owner = await _owner(visit)
    await acts.delete(visit.context, visit.who, owner.id, visit.part("provider_id"))
    return visit.go(owner.list, "The provider was removed.")
