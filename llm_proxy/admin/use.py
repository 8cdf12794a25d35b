"""Use over time, as the dashboard, projects and providers show it."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

from aiohttp import web

from llm_proxy.admin.charts import Chart, Line, lined, stacked
from llm_proxy.admin.display import brief, milliseconds
from llm_proxy.clock import DAY_MS
from llm_proxy.context import Context
from llm_proxy.history import SPANS, Series
from llm_proxy.history.figures import Figures

# By what the URL says; the first stands there when it says nothing that we know.
SPAN_NAMES = {"1h": "1 h", "15m": "15 min", "24h": "24 h", "7d": "7 days", "30d": "30 days"}
# What lists show beside each row.
LIST_SPAN = "1h"
CHOICES: Mapping[str, object] = {"span_names": SPAN_NAMES, "span_order": tuple(SPANS)}


@dataclass(frozen=True)
class Use:
    """The calls of a time up to now.

    Attributes:
        steps: when each step of the time began, oldest first, with its figures.
        by_day: whether steps are told apart by their date, and not by the clock.
    """

    span: str
    total: Figures
    steps: list[tuple[int, Figures]]
    by_day: bool
    charts: list[Chart]

    @property
    def begins(self) -> int:
        """When the time began."""
        return self.steps[0][0]


def span_of(request: web.Request) -> str:
    """The span that the URL asks for; an address that was kept from another version opens as well."""
    asked = request.query.get("span", "")
    return asked if asked in SPAN_NAMES else next(iter(SPAN_NAMES))


async def read(context: Context, span: str, filters: Mapping[str, str] | None = None) -> Use:
    """What was used in a span, of all calls or of those that fit."""
    return drawn(span, await context.history.series(SPANS[span], filters=filters))


async def of_providers(context: Context, filters: Mapping[str, str] | None = None) -> dict[str, Figures]:
    """What providers did in the last hour, by their ids; a provider that was not called did nothing."""
    return defaultdict(Figures, await context.history.totals(SPANS[LIST_SPAN], "provider", filters))


def drawn(span: str, series: Series) -> Use:
    """A series as a page shows it."""
    moments, figures = series.moments, series.lines[""]
    total = sum(figures, Figures())
    return Use(span, total, list(zip(moments, figures, strict=True)), SPANS[span].length > DAY_MS, charts_of(moments, figures))


def charts_of(moments: list[int], figures: list[Figures]) -> list[Chart]:
    """Calls, latency and tokens."""
    calls = [
        Line("errors", "bad", [one.errors for one in figures]),
        Line("answered", "main", [one.calls - one.errors for one in figures]),
    ]
    latency = [
        Line("p95", "second", [one.quantile_ms(0.95) for one in figures]),
        Line("p50", "main", [one.quantile_ms(0.5) for one in figures]),
    ]
    tokens = [
        Line("prompt", "main", [one.prompt_tokens for one in figures]),
        Line("completion", "second", [one.completion_tokens for one in figures]),
    ]
    return [
        stacked("Calls", moments, calls, brief),
        lined("Latency", moments, latency, milliseconds),
        stacked("Tokens", moments, tokens, brief),
    ]
