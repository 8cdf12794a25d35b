"""The page of the cache."""

from collections.abc import Mapping

from aiohttp import web

from llm_proxy import projects
from llm_proxy.acts import cache as acts
from llm_proxy.admin.choosers import choices, chosen
from llm_proxy.admin.forms import Reader, read_fields, text
from llm_proxy.admin.visits import Visit, problems_of
from llm_proxy.errors import ApiError

FORMS: Mapping[str, tuple[str, ...]] = {
    "prefix": ("prefix",),
    "project": ("project_id", "method", "path"),
    "key": ("key",),
    "all": (),
}
SELECTORS: Mapping[str, Reader] = {name: text for names in FORMS.values() for name in names}


async def show(visit: Visit) -> web.Response:
    """How the cache is doing."""
    return await _show(visit, {})


async def _show(visit: Visit, problems: Mapping[str, str]) -> web.Response:
    figures = await acts.shown(visit.context)
    # Most projects never ask for what can be kept.
    figures["projects"] = [row for row in figures["projects"] if row["entries"] or row["hits"] or row["misses"]]
    for row in figures["projects"]:
        found = await projects.get(visit.context.database, row["project_id"]) if row["project_id"] else None
        row["name"] = found.name if found else row["project_id"]
    facts = {"cache": figures, "form": visit.form, "problems": problems, "shared": visit.context.cache.shared}
    facts["projects"] = await choices(visit.context.database)
    return visit.show("cache.html", facts, 400 if problems else 200)


async def _selectors(visit: Visit) -> dict[str, object]:
    """What a form says is to be purged.

    Raises:
        InvalidField: the project is not clear.
    """
    selectors = _said(visit.form)
    if "project_id" in selectors:
        selectors["project_id"] = (await chosen(visit.context.database, visit.form["project_id"])).id
    return selectors


def _said(form: Mapping[str, str]) -> dict[str, object]:
    way = form.get("way", "")
    if way == "all":
        return {"all": True}
    names = FORMS.get(way, ())
    return read_fields(form, {name: SELECTORS[name] for name in names}, skip_empty=names)


async def preview(visit: Visit) -> web.Response:
    """What would be purged, with how many entries."""
    try:
        selectors = await _selectors(visit)
        if not selectors:
            raise _empty(visit.form.get("way", ""))
        count = await acts.preview(visit.context, selectors)
    except ApiError as error:
        return await _show(visit, problems_of(error, SELECTORS))
    project = await projects.get(visit.context.database, str(selectors.get("project_id", "")))
    facts = {"chosen": selectors, "project": project, "count": count, "way": visit.form["way"]}
    return visit.show("cache_purge.html", facts)


def _empty(way: str) -> ApiError:
    field = FORMS.get(way, ("key",))[0]
    return ApiError("invalid_field", f"{field}: say what to purge.", param=field)


async def purge(visit: Visit) -> web.Response:
    """Purge what the preview showed."""
    try:
        deleted = await acts.purge(visit.context, visit.who, await _selectors(visit))
    except ApiError as error:
        return await _show(visit, problems_of(error, SELECTORS))
    return visit.go("/admin/cache", f"Entries purged here: {deleted}. Other instances follow within a second.")
