"""Acts on providers: a project's own API keys, or, of no project, the shared pool."""

from collections.abc import Mapping
from typing import Any

from llm_proxy import projects, providers
from llm_proxy.acts import Act, acting
from llm_proxy.acts.fields import Field, boolean, identifier, mapping, optional, read, read_changes, secret, text, whole
from llm_proxy.audit import Who
from llm_proxy.clock import to_rfc3339
from llm_proxy.context import Context
from llm_proxy.db import Connection
from llm_proxy.errors import AlreadyExists, Conflict, InvalidField, NotFound
from llm_proxy.ids import new_id
from llm_proxy.providers import Provider
from llm_proxy.providers.mapping import model_mapping
from llm_proxy.secret import Secret, mask
from llm_proxy.upstream import check_base_url

FIELDS: dict[str, Field] = {
    "name": text(200),
    "provider_type": text(100),
    "api_base": optional(text(2000)),
    "api_key": secret,
    "model_mapping": model_mapping,
    "weight": whole(0, 1_000_000),
    "provider_params": mapping,
    "is_enabled": boolean,
}


# Another weight or name leaves the answers what they were, and what is cached of them.
_WHAT_ANSWERS = {"provider_type", "api_base", "model_mapping", "provider_params"}


def shown(context: Context, provider: Provider) -> dict[str, Any]:
    """A provider as the API shows it, its key masked."""
    profile = context.profiles.apis.get(provider.provider_type)
    return {
        "object": "provider",
        "id": provider.id,
        "project_id": provider.project_id,
        "name": provider.name,
        "provider_type": provider.provider_type,
        "api_base": provider.api_base or (profile.base_url if profile else ""),
        "api_key": mask(provider.api_key.reveal()) if provider.api_key else None,
        "model_mapping": provider.model_mapping,
        "weight": provider.weight,
        "provider_params": provider.provider_params,
        "is_enabled": provider.is_enabled,
        "problem": providers.problem_of(provider, context.profiles),
        "created_at": to_rfc3339(provider.created_at),
        "updated_at": to_rfc3339(provider.updated_at),
    }


def shown_now(context: Context, provider: Provider) -> dict[str, Any]:
    """A provider as answers show it: with what its breaker is now, which is no field that an act changes."""
    return {**shown(context, provider), "status": context.breakers.status(provider)._asdict()}


async def of_project(context: Context, project_id: str | None) -> list[Provider]:
    """All providers of a project, or of the shared pool, by id."""
    if project_id is not None and await projects.get(context.database, project_id) is None:
        raise NotFound("project")
    return await providers.of_project(context.database, context.vault, project_id)


async def get(context: Context, project_id: str | None, id: str) -> Provider:
    """One provider of a project, or of the shared pool."""
    return await _existing(context, context.database, project_id, id)


async def _existing(context: Context, connection: Connection, project_id: str | None, id: str) -> Provider:
    found = await providers.get(connection, context.vault, project_id, id)
    if found is None:
        raise NotFound("provider")
    return found


async def _concerns(act: Act, project_id: str | None) -> None:
    if project_id is not None:
        await act.project(project_id)


async def create(context: Context, who: Who, project_id: str | None, given: Mapping[str, object]) -> Provider:
    """Add a provider to a project, or to the shared pool."""
    async with acting(context, who, "provider.create") as act:
        await _concerns(act, project_id)
        return await add(context, act, read({**FIELDS, "id": identifier}, given, required=("api_key",)))


async def add(context: Context, act: Act, fields: Mapping[str, Any]) -> Provider:
    """Add a provider to the project of an act, to the shared pool when it has none; `fields` are read, and hold api_key."""
    kind = fields.get("provider_type") or context.profiles.default_api
    columns = {
        "id": fields.get("id") or new_id(),
        "project_id": act.project_id,
        "name": fields.get("name") or kind,
        "provider_type": kind,
        "api_base": _base(context, kind, fields.get("api_base")),
        "model_mapping": fields.get("model_mapping", {}),
        "weight": fields.get("weight", 1),
        "provider_params": fields.get("provider_params", {}),
        "is_enabled": fields.get("is_enabled", True),
    }
    try:
        made = await providers.insert(act.tx, context.vault, columns, fields["api_key"])
    except Conflict as error:
        raise AlreadyExists(f"There is already a provider with the id {columns['id']!r}.", "id") from error
    act.details["provider"] = shown(context, made)
    act.changed("provider", made.id, project_id=made.project_id)
    return made


def _base(context: Context, kind: str, base: str | None) -> str:
    """What to store as base URL: nothing when it is the profile's, so that a change of the profile reaches the provider."""
    profile = context.profiles.get(kind)
    if base and base.rstrip("/") != profile.base_url:
        return check_base_url("api_base", base, allow_private=context.settings.allow_private_upstreams)
    if not profile.base_url:
        raise InvalidField("api_base", f"the profile {kind} has no base URL of its own; give the provider's.")
    return ""


async def update(context: Context, who: Who, project_id: str | None, id: str, given: Mapping[str, object]) -> Provider:
    """Change the named fields of a provider."""
    async with acting(context, who, "provider.update") as act:
        await _concerns(act, project_id)
        before = await _existing(context, act.tx, project_id, id)
        # The masked key was shown, and sending it back must not replace the key by its mask.
        stored = {name: value for name, value in shown(context, before).items() if name != "api_key"}
        # What was read may be sent back, however the breaker stands by now.
        given = {name: value for name, value in given.items() if name != "status" or not isinstance(value, dict)}
        fields = read_changes(FIELDS, given, stored)
        key = fields.pop("api_key", None)
        if "provider_type" in fields or "api_base" in fields:
            kind = fields.get("provider_type", before.provider_type)
            fields["api_base"] = _base(context, kind, fields.get("api_base", before.api_base))
        return await change(context, act, before, fields, key)


async def change(context: Context, act: Act, before: Provider, columns: dict[str, Any], key: Secret | None) -> Provider:
    """Change a provider inside an act."""
    act.details["provider_id"] = before.id
    if not columns and not key:
        return before
    after = await providers.update(act.tx, context.vault, before.id, columns, key)
    if after is None:
        raise NotFound("provider")
    act.before_and_after(shown(context, before), shown(context, after))
    if key:
        # Two keys may look alike when they are masked.
        act.details["replaced"] = "api_key"
    same = not key and not columns.keys() & _WHAT_ANSWERS
    act.changed("provider", before.id, project_id=before.project_id, same_answers=same)
    return after


async def delete(context: Context, who: Who, project_id: str | None, id: str) -> None:
    """Remove a provider; calls under way with its key go on."""
    async with acting(context, who, "provider.delete") as act:
        await _concerns(act, project_id)
        before = await _existing(context, act.tx, project_id, id)
        await providers.delete(act.tx, id)
        act.details["provider"] = shown(context, before)
        act.changed("provider", id, project_id=project_id, deleted=True)
