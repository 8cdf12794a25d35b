"""Pages of projects."""

from collections.abc import Mapping
from typing import Any

from aiohttp import web

from llm_proxy import projects, token_counts, tokens
from llm_proxy.acts import projects as acts
from llm_proxy.acts import providers as provider_acts
from llm_proxy.admin import use
from llm_proxy.admin.forms import Reader, read_fields, text
from llm_proxy.admin.lists import Rows, filters_of, paged
from llm_proxy.admin.tokens import LIMITS, rows_of
from llm_proxy.admin.visits import Visit, problems_of
from llm_proxy.changes import Change
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError
from llm_proxy.projects import Project

NEW: Mapping[str, Reader] = {"name": text, "api_key": text, "provider_type": text, "api_base": text, **LIMITS}
CHANGES: Mapping[str, Reader] = {"name": text, **LIMITS}
NEWEST_TOKENS = 10
_STATES = {"active": True, "inactive": False}


async def find(visit: Visit) -> web.Response:
    """The projects, newest first."""
    filters = filters_of(visit.request, ("search", "state"))
    is_active, search = _STATES.get(filters.get("state", "")), filters.get("search")

    async def read(page: Page) -> Rows:
        return Rows(await projects.find(visit.context.database, page, search=search, is_active=is_active))

    return visit.show("projects.html", {"list": await paged(visit.request, filters, read)})


async def new(visit: Visit) -> web.Response:
    """The form for a new project."""
    return _new(visit, {})


def _new(visit: Visit, problems: Mapping[str, str]) -> web.Response:
    profiles = visit.context.profiles
    facts = {"form": visit.form, "problems": problems, "types": list(profiles.apis), "default_type": profiles.default_api}
    return visit.show("project_new.html", facts, 400 if problems else 200)


async def create(visit: Visit) -> web.Response:
    """A new project, with its first key when one is given."""
    given = read_fields(visit.form, NEW, skip_empty=("api_key", "provider_type", "api_base", *LIMITS))
    if "api_key" not in given and "api_base" not in given:
        # The list of types always has one chosen; without a key that says nothing.
        given.pop("provider_type", None)
    try:
        made = await acts.create(visit.context, visit.who, given)
    except ApiError as error:
        return _new(visit, problems_of(error, NEW))
    return visit.go(f"/admin/projects/{made.id}", f"The project {made.name} was made. Next: make a token for it.")


async def show(visit: Visit) -> web.Response:
    """One project."""
    return await _show(visit, await acts.get(visit.context, visit.part("id")), {})


async def _show(visit: Visit, project: Project, problems: Mapping[str, str]) -> web.Response:
    context = visit.context
    own = await provider_acts.of_project(context, project.id)
    newest = await tokens.find(context.database, Page(NEWEST_TOKENS), project_id=project.id)
    facts = {
        "project": project,
        "form": visit.form or acts.shown(project),
        "problems": problems,
        "built_in": project.id == projects.DEFAULT_ID,
        "keys": [provider_acts.shown_now(context, one) for one in sorted(own, key=lambda one: one.id)],
        "recent": await use.of_providers(context, {"project_id": project.id}),
        "tokens": rows_of(context, newest[:NEWEST_TOKENS]),
        "more_tokens": len(newest) > NEWEST_TOKENS,
        "use": await use.read(context, use.span_of(visit.request), {"project_id": project.id}),
        **use.CHOICES,
    }
    return visit.show("project.html", facts, 400 if problems else 200)


async def update(visit: Visit) -> web.Response:
    """Change name and limits."""
    id = visit.part("id")
    try:
        await acts.update(visit.context, visit.who, id, read_fields(visit.form, CHANGES))
    except ApiError as error:
        return await _show(visit, await acts.get(visit.context, id), problems_of(error, CHANGES))
    return visit.go(f"/admin/projects/{id}", "The project was changed.")


async def confirm_deactivate(visit: Visit) -> web.Response:
    """What would stop."""
    return visit.show("project_deactivate.html", await _what_stops(visit))


async def _what_stops(visit: Visit) -> dict[str, Any]:
    project = await acts.get(visit.context, visit.part("id"))
    counts = await token_counts.count(visit.context.database, project.id)
    running = len(visit.context.running.concerned_by(Change("project", project.id)))
    return {"project": project, "counts": counts, "running": running, "built_in": project.id == projects.DEFAULT_ID}


async def deactivate(visit: Visit) -> web.Response:
    """Stop a project; its tokens are revoked too, where that was asked for."""
    id = visit.part("id")
    also = {"revoke_tokens": True} if visit.form.get("revoke_tokens") == "on" else {}
    await acts.update(visit.context, visit.who, id, {"is_active": False, **also})
    said = " Its tokens are revoked." if also else " Its tokens work again when it is activated."
    return visit.go(f"/admin/projects/{id}", f"The project is not active any more.{said}")


async def activate(visit: Visit) -> web.Response:
    """Serve a project again."""
    id = visit.part("id")
    await acts.update(visit.context, visit.who, id, {"is_active": True})
    return visit.go(f"/admin/projects/{id}", "The project is active.")


async def confirm_revoke(visit: Visit) -> web.Response:
    """How many tokens would be revoked."""
    return visit.show("project_revoke.html", await _what_stops(visit))


async def revoke(visit: Visit) -> web.Response:
    """Revoke every token of a project."""
    id = visit.part("id")
    counted = await acts.revoke_tokens(visit.context, visit.who, id, {})
    return visit.go(f"/admin/projects/{id}", f"Tokens revoked: {counted['revoked_count']}.")
