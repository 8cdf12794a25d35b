"""The history of usage in the management API."""

from collections.abc import Mapping
from typing import Any, NamedTuple

from aiohttp import web

from llm_proxy import projects
from llm_proxy.audit import Who
from llm_proxy.clock import DAY_MS, HOUR_MS, from_rfc3339, now_ms, to_rfc3339
from llm_proxy.context import Context
from llm_proxy.errors import InvalidField
from llm_proxy.history.figures import Figures
from llm_proxy.history.table import DIMENSIONS, Group, Question
from llm_proxy.middleware import CONTEXT, answer_json
from llm_proxy.requests import limit_of, one_of, parameters
from llm_proxy.spreadsheet import as_csv

FORMATS = ("json", "csv")


class Grouping(NamedTuple):
    """A way to group, and the fields that name a group of it, its key first."""

    by: str | None
    step: int | None
    fields: tuple[str, ...]


GROUPINGS = {
    "project": Grouping("project_id", None, ("project_id", "project_name")),
    "provider": Grouping("provider", None, ("provider",)),
    "model": Grouping("model", None, ("model",)),
    "hour": Grouping(None, HOUR_MS, ("hour",)),
    "day": Grouping(None, DAY_MS, ("day",)),
}


async def find(request: web.Request, who: Who) -> web.Response:
    """The usage of a time, by group."""
    known = ("group_by", "start_time", "end_time", *DIMENSIONS, "format", "limit", "after")
    given = parameters(request, known)
    grouping = GROUPINGS[one_of("group_by", GROUPINGS, given.get("group_by", "project"))]
    question = _question(given, grouping)
    if _wants_csv(request, given):
        return await _as_file(request.app[CONTEXT], grouping, question)
    limit, after = limit_of(given), _after(given, grouping)
    found = await _found(request.app[CONTEXT], grouping, question)
    rest = [one for one in found if after is None or _order(_name(grouping, one[0])) > _order(after)]
    page = rest[:limit]
    more = len(rest) > limit
    following = _name(grouping, page[-1][0]) if more else None
    rows = await _shown(request.app[CONTEXT], grouping, page)
    return answer_json({"object": "list", "data": rows, "has_more": more, "next": following})


def _question(given: Mapping[str, str], grouping: Grouping) -> Question:
    end = from_rfc3339("end_time", given["end_time"]) if "end_time" in given else now_ms() + 1
    start = from_rfc3339("start_time", given["start_time"]) if "start_time" in given else end - DAY_MS
    if start > end:
        raise InvalidField("start_time", "this is after end_time, which is now unless it is given.")
    return Question(start, end, grouping.by, grouping.step, {name: given[name] for name in DIMENSIONS if name in given})


def _wants_csv(request: web.Request, given: Mapping[str, str]) -> bool:
    """Whether CSV is asked for; `format` goes before the header.

    Raises:
        InvalidField: `format` is another one, or CSV is asked for in pages.
    """
    accepted = request.headers.get("Accept", "").lower()
    by_header = "csv" if "text/csv" in accepted and "application/json" not in accepted else "json"
    if one_of("format", FORMATS, given.get("format", by_header)) == "json":
        return False
    for name in ("limit", "after"):
        if name in given:
            raise InvalidField(name, "CSV comes as a whole, without pages.")
    return True


def _after(given: Mapping[str, str], grouping: Grouping) -> str | None:
    after = given.get("after")
    return to_rfc3339(from_rfc3339("after", after)) if after and grouping.step else after


async def _found(context: Context, grouping: Grouping, question: Question) -> list[tuple[Group, Figures]]:
    """The groups in order: by time, or by name, those without one last, since an empty `after` could not name them."""
    found = await context.history.read(question)
    return sorted(found.items(), key=lambda one: _order(_name(grouping, one[0])))


def _order(name: str) -> tuple[bool, str]:
    return name == "", name


def _name(grouping: Grouping, group: Group) -> str:
    return to_rfc3339(group.moment) or "" if grouping.step else group.name


async def _shown(context: Context, grouping: Grouping, found: list[tuple[Group, Figures]]) -> list[dict[str, Any]]:
    ids = [group.name for group, _ in found] if grouping.by == "project_id" else []
    names = await projects.names_of(context.database, ids)
    return [_row(grouping, _name(grouping, group), names, figures) for group, figures in found]


def _row(grouping: Grouping, name: str, names: Mapping[str, str], figures: Figures) -> dict[str, Any]:
    return {**dict(zip(grouping.fields, (name or None, names.get(name)), strict=False)), **shown(figures)}


def shown(figures: Figures) -> dict[str, Any]:
    """The figures as the API shows them."""
    return {
        "calls": figures.calls,
        "errors": figures.errors,
        "cache_hits": figures.cache_hits,
        "prompt_tokens": figures.prompt_tokens,
        "completion_tokens": figures.completion_tokens,
        "total_tokens": figures.tokens,
        "latency_p50_ms": figures.quantile_ms(0.5),
        "latency_p95_ms": figures.quantile_ms(0.95),
        "overhead_ms": figures.overhead_ms,
    }


async def _as_file(context: Context, grouping: Grouping, question: Question) -> web.Response:
    rows = await _shown(context, grouping, await _found(context, grouping, question))
    headers = {
        "Content-Type": "text/csv; charset=utf-8; header=present",
        "Content-Disposition": 'attachment; filename="usage.csv"',
        "Cache-Control": "no-store",
    }
    return web.Response(body=as_csv((*grouping.fields, *shown(Figures())), rows).encode(), headers=headers)
