"""Purges of the cache."""

from collections.abc import Mapping
from typing import Any

from llm_proxy.acts import acting
from llm_proxy.acts.fields import Field, boolean, read, text
from llm_proxy.audit import Who
from llm_proxy.cache import Count
from llm_proxy.context import Context
from llm_proxy.errors import InvalidField
from llm_proxy.tasks import to_the_end


def at(name: str, value: object) -> str:
    """A path, or the beginning of one."""
    if not isinstance(value, str) or not value.startswith("/") or len(value) > 8192 or "?" in value:
        raise InvalidField(name, "give a path such as /v1/models, without a query.")
    return value


SELECTORS: dict[str, Field] = {
    "key": text(64),
    "project_id": text(100),
    "method": text(20),
    "path": at,
    "prefix": at,
    "all": boolean,
}
# Of each request exactly one of these, the third with what may narrow it.
_FORMS = ({"key"}, {"prefix"}, {"project_id", "method", "path"}, {"all"})


async def purge(context: Context, who: Who, given: Mapping[str, object]) -> int:
    """Purge what is named, here at once and in every other process within a second; how many entries were here.

    Whoever asked may leave meanwhile: what is forgotten here is audited, and forgotten elsewhere.
    """
    return await to_the_end(_purge(context, who, given), lambda deleted: None)


async def _purge(context: Context, who: Who, given: Mapping[str, object]) -> int:
    async with acting(context, who, "cache.purge") as act:
        asked = read(SELECTORS, given)
        selectors = _selectors(asked, shared=context.cache.shared)
        act.project_id = asked.get("project_id")
        act.details["purged"] = asked
        act.changed("cache_purge", "", **selectors)
        deleted = await context.cache.purge(**selectors)
        act.details["deleted"] = deleted
    return deleted


async def preview(context: Context, given: Mapping[str, object]) -> Count:
    """How many entries a purge would forget here; it refuses what a purge would."""
    return await context.cache.count_meant(**_selectors(read(SELECTORS, given), shared=context.cache.shared))


def _selectors(asked: Mapping[str, Any], *, shared: bool) -> dict[str, Any]:
    """What `Store.purge` is told.

    Raises:
        InvalidField: it is none of the forms that a purge may have.
    """
    names = set(asked)
    if not any(names and names <= form for form in _FORMS) or names == {"method"} or asked.get("all") is False:
        forms = 'one of {"key"}, {"project_id", "method", "path"} or a part of it, {"prefix"}, {"all": true}'
        raise InvalidField("key", f"give {forms}.")
    if "project_id" in names and shared:
        raise InvalidField("project_id", "HTTP_CACHE_SHARED is true, so answers belong to no project: name a path or a prefix.")
    if "all" in names:
        return {"everything": True}
    renamed = {"project_id": "project"}
    return {renamed.get(name, name): value for name, value in asked.items()}


async def shown(context: Context) -> dict[str, Any]:
    """How the cache is doing, in all and by project: what is stored now, what was asked since this process started."""
    stats, counts = await context.cache.stats(), context.cache.counts
    context.bus.catch_up()
    projects = [
        {"project_id": id or None, **_figures(stats.projects.get(id), counts.get(id, {}))}
        for id in sorted(stats.projects.keys() | counts.keys())
    ]
    summed = {name: sum(count[name] for count in projects) for name in ("hits", "misses", "bypass")}
    return {
        "object": "cache",
        "enabled": context.cache.enabled,
        "backend": context.settings.http_cache_backend,
        "degraded": context.cache.degraded,
        "entries": stats.entries,
        "bytes": stats.bytes,
        **summed,
        "hit_ratio": _ratio(summed["hits"], summed["misses"]),
        "projects": projects,
    }


def _figures(held: Any, counts: Mapping[str, int]) -> dict[str, Any]:
    hits = counts.get("hit", 0) + counts.get("conditional-hit", 0)
    misses = counts.get("miss", 0) + counts.get("stored", 0)
    return {
        "entries": held.entries if held else 0,
        "bytes": held.bytes if held else 0,
        "hits": hits,
        "misses": misses,
        "bypass": counts.get("bypass", 0),
        "hit_ratio": _ratio(hits, misses),
    }


def _ratio(hits: int, misses: int) -> float | None:
    return round(hits / (hits + misses), 4) if hits + misses else None
