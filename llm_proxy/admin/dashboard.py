"""The page that shows how the proxy is doing."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any
from urllib.parse import quote

import aiohttp_jinja2
from aiohttp import web

from llm_proxy import health, projects, providers, tokens
from llm_proxy.admin import use
from llm_proxy.admin.live import Parts, Shared, parts, stream
from llm_proxy.admin.visits import Visit
from llm_proxy.clock import MINUTE_MS, now_ms
from llm_proxy.context import Context
from llm_proxy.db.sql import Page
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.history import SPANS
from llm_proxy.history.figures import Figures
from llm_proxy.history.table import Question
from llm_proxy.middleware import CONTEXT
from llm_proxy.providers.breaker import Status

REFRESH_SECONDS = 2.0
# Rows of a table; what more there are stand together in the last one.
MOST_ROWS = 10
TEMPLATE = "dashboard_parts.html"
# The macros of that template, whose names are the ids of the parts of the page too.
PARTS = ("summary", "charts", "models", "providers", "projects")


@dataclass(frozen=True)
class Row:
    """A line of a table.

    Attributes:
        name: empty where calls have none, such as those of unknown tokens.
        page: where more is to be seen.
        breaker: of a provider.
        idle: why a provider gets no calls, although its breaker is closed.
        others: how many lines were put together into this one.
    """

    name: str
    figures: Figures
    page: str | None = None
    breaker: Status | None = None
    idle: str | None = None
    others: int = 0


@dataclass(frozen=True)
class Board:
    """What the dashboard shows.

    Attributes:
        now: the calls since `since`, the beginning of the minute before this one.
        seconds: how long that is.
        health: as `/health/detailed` tells it.
        missing: what there must be before there are calls; known only while there are none.
    """

    at: int
    since: int
    now: Figures
    use: use.Use
    models: list[Row]
    providers: list[Row]
    projects: list[Row]
    health: Mapping[str, Any]
    missing: frozenset[str]

    @property
    def seconds(self) -> float:
        """How long the calls of `now` took to come."""
        return (self.at - self.since) / 1000


async def show(visit: Visit) -> web.Response:
    """How the proxy is doing now, and was in a time up to now."""
    board = await read(visit.context, use.span_of(visit.request))
    return visit.show("dashboard.html", {"board": board, **use.CHOICES})


async def live(visit: Visit) -> web.StreamResponse:
    """The same, for as long as the page is open."""
    latest = partial(visit.request.app[BOARDS].get, use.span_of(visit.request))
    return await stream(visit, parts(latest))


BOARDS = web.AppKey("boards", Shared[str, Parts])


def boards(app: web.Application) -> Shared[str, Parts]:
    """The parts of the dashboard by its span, made once for everyone who looks at it."""

    async def rendered(span: str) -> Parts:
        template = aiohttp_jinja2.get_env(app).get_template(TEMPLATE).module
        try:
            board = await read(app[CONTEXT], span)
        except DatabaseUnavailable:
            return {"summary": str(template.away())}  # type: ignore[attr-defined]
        return {name: str(getattr(template, name)(board)) for name in PARTS}

    return Shared(rendered, REFRESH_SECONDS)


async def read(context: Context, span: str) -> Board:
    """Everything that the dashboard shows.

    Raises:
        DatabaseUnavailable: only the database knows what was.
    """
    at = now_ms()
    since = (at // MINUTE_MS - 1) * MINUTE_MS
    recent = await context.history.read(Question(since, at + 1))
    used = await use.read(context, span)
    calls = await context.history.totals_by_every(SPANS[span])
    known = await health.details(context)
    return Board(
        at,
        since,
        sum(recent.values(), Figures()),
        used,
        _rows([Row(name, figures) for name, figures in calls["model"].items()]),
        await _providers(context, calls["provider"]),
        await _projects(context, calls["project_id"]),
        known,
        frozenset() if used.total.calls else await _missing(context),
    )


def _rows(rows: Sequence[Row]) -> list[Row]:
    """The rows to look at, the rest put together."""
    # What is not well comes first, then what is called most.
    ordered = sorted(rows, key=lambda row: (not _is_unwell(row), -row.figures.calls, row.name))
    shown, rest = ordered[:MOST_ROWS], ordered[MOST_ROWS:]
    others = [Row("", sum((row.figures for row in rest), Figures()), others=len(rest))] if rest else []
    return [*shown, *others]


def _is_unwell(row: Row) -> bool:
    return row.breaker is not None and row.breaker.state != "closed"


async def _providers(context: Context, calls: Mapping[str, Figures]) -> list[Row]:
    """The shared pool, called or not, with the providers of projects that were called or are not well."""
    states = {id: Status(breaker.state, breaker.reason) for id, breaker in context.breakers}
    pool = {one.id: one for one in context.providers.pooled}
    ids = {*pool, *calls, *(id for id, status in states.items() if status.state != "closed")}
    closed = Status("closed", None)
    rows = _rows([Row(id, calls.get(id, Figures()), breaker=states.get(id, closed) if id else None) for id in ids])
    labels = await providers.labels_of(context.database, [row.name for row in rows if row.name])
    return [_labelled(context, row, pool.get(row.name), labels.get(row.name)) for row in rows]


def _labelled(context: Context, row: Row, pooled: providers.Provider | None, label: providers.Label | None) -> Row:
    name = label.name if label else pooled.name if pooled else row.name
    owner = f"/admin/projects/{quote(label.project_id)}/keys" if label and label.project_id else "/admin/providers"
    return Row(
        name,
        row.figures,
        f"{owner}/{quote(row.name, safe='')}" if label else None,
        # A provider that is in nobody's list any more has no state.
        row.breaker if label or pooled else None,
        _idle(context, pooled) if pooled else None,
        row.others,
    )


def _idle(context: Context, provider: providers.Provider) -> str | None:
    if not provider.is_enabled:
        return "disabled"
    if context.providers.problem_of(provider):
        return "out of use"
    return None if provider.weight else "drained"


async def _projects(context: Context, calls: Mapping[str, Figures]) -> list[Row]:
    rows = _rows([Row(id, figures) for id, figures in calls.items()])
    names = await projects.names_of(context.database, [row.name for row in rows if row.name])
    return [
        Row(
            names.get(row.name, row.name),
            row.figures,
            f"/admin/projects/{row.name}" if row.name in names else None,
            others=row.others,
        )
        for row in rows
    ]


async def _missing(context: Context) -> frozenset[str]:
    """What there must be before there are calls."""
    there = {
        "provider": context.providers.pooled or await providers.every(context.database, context.vault, 1),
        "project": [one for one in await projects.find(context.database, Page(2)) if one.id != projects.DEFAULT_ID],
        "token": await tokens.find(context.database, Page(1)),
    }
    return frozenset(name for name, found in there.items() if not found)
