"""Acts on projects."""

from collections.abc import Mapping
from typing import Any

from llm_proxy import projects, providers, tokens
from llm_proxy.acts import Act, acting
from llm_proxy.acts import providers as provider_acts
from llm_proxy.acts.fields import LIMITS, Field, boolean, read, read_changes, secret, text
from llm_proxy.audit import Who
from llm_proxy.clock import to_rfc3339
from llm_proxy.context import Context
from llm_proxy.errors import AlreadyExists, ApiError, Conflict, InvalidField, NotFound
from llm_proxy.ids import new_id
from llm_proxy.projects import Project
from llm_proxy.secret import Secret

NAME = text(200)
OF_KEY = ("provider_type", "api_base")
NEW: dict[str, Field] = {"name": NAME, "api_key": secret, **{name: provider_acts.FIELDS[name] for name in OF_KEY}, **LIMITS}
CHANGEABLE: dict[str, Field] = {"name": NAME, "is_active": boolean, "api_key": secret, "revoke_tokens": boolean, **LIMITS}


def shown(project: Project) -> dict[str, Any]:
    """A project as the API shows it."""
    return {
        "object": "project",
        "id": project.id,
        "name": project.name,
        "is_active": project.is_active,
        **{name: getattr(project, name) for name in LIMITS},
        "created_at": to_rfc3339(project.created_at),
        "updated_at": to_rfc3339(project.updated_at),
        "deactivated_at": to_rfc3339(project.deactivated_at),
    }


async def get(context: Context, id: str) -> Project:
    """One project."""
    found = await projects.get(context.database, id)
    if found is None:
        raise NotFound("project")
    return found


async def create(context: Context, who: Who, given: Mapping[str, object]) -> Project:
    """Make a project, with its first provider when an API key is given."""
    async with acting(context, who, "project.create") as act:
        fields = read(NEW, given, required=("name",))
        for name in OF_KEY:
            if name in fields and "api_key" not in fields:
                raise InvalidField(name, "this says where api_key belongs; give api_key too.")
        limits = {name: fields.pop(name) for name in LIMITS if name in fields}
        made = await _insert(act, fields.pop("name"), limits)
        act.project_id = made.id
        if fields:
            await provider_acts.add(context, act, fields)
        act.details["project"] = shown(made)
        return made


async def _insert(act: Act, name: str, limits: Mapping[str, int | None]) -> Project:
    try:
        return await projects.insert(act.tx, new_id(), name, limits)
    except Conflict as error:
        raise AlreadyExists(f"There is already a project named {name!r}.", "name") from error


async def update(context: Context, who: Who, id: str, given: Mapping[str, object]) -> Project:
    """Change the named fields of a project; a new API key replaces that of its only provider."""
    async with acting(context, who, "project.update") as act:
        before = await act.project(id)
        fields = read_changes(CHANGEABLE, given, shown(before))
        key, revoke = fields.pop("api_key", None), fields.pop("revoke_tokens", False)
        after = await _write(act, before, fields)
        if key:
            await _replace_key(context, act, before.id, key)
        if revoke:
            act.details["revoked_count"], _ = await tokens.revoke_all(act.tx, id)
        act.changed("project", id)
        return after


async def _write(act: Act, before: Project, fields: dict[str, Any]) -> Project:
    if not fields:
        return before
    try:
        after = await projects.update(act.tx, before.id, fields)
    except Conflict as error:
        raise AlreadyExists(f"There is already a project named {fields['name']!r}.", "name") from error
    if after is None:
        raise NotFound("project")
    act.before_and_after(shown(before), shown(after))
    return after


async def _replace_key(context: Context, act: Act, id: str, key: Secret) -> None:
    own = await providers.of_project(act.tx, context.vault, id)
    if len(own) > 1:
        route = f"/manage/projects/{id}/providers/{{provider_id}}"
        raise ApiError(
            "several_providers",
            f"This project has {len(own)} providers. Replace the key of one with PATCH {route}.",
            param="api_key",
        )
    if own:
        await provider_acts.change(context, act, own[0], {}, key)
    else:
        await provider_acts.add(context, act, {"api_key": key})


async def deactivate(context: Context, who: Who, id: str) -> None:
    """Stop a project: nothing is served for it any more, and its tokens are revoked for good; the data stays."""
    async with acting(context, who, "project.delete") as act:
        before = await act.project(id)
        if before.is_active:
            await _write(act, before, {"is_active": False})
        act.details["revoked_count"], _ = await tokens.revoke_all(act.tx, id)
        act.changed("project", id)


async def revoke_tokens(context: Context, who: Who, id: str, given: Mapping[str, object]) -> dict[str, int]:
    """Revoke every token of a project; `given` has to be empty."""
    async with acting(context, who, "project.revoke_tokens") as act:
        await act.project(id)
        read({}, given)
        revoked, total = await tokens.revoke_all(act.tx, id)
        act.details["revoked_count"] = revoked
        act.changed("project", id)
        return {"revoked_count": revoked, "already_revoked_count": total - revoked, "total_tokens": total}
