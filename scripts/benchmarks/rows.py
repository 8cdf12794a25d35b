"""The rows of the table: which case or difference of cases each shows, with the bars of quality.md."""

import contextlib
import statistics
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from benchmarks.results import DIRECT, NGINX, PROXY, Bar, Figures, Row, Sample
from benchmarks.scene import CHUNKS

RATE, CHUNK_RATE = "/s", "chunks/s"
# Of nginx's rate, where both are offered the same.
KEEPS_UP = 0.98


@dataclass(frozen=True)
class Shown:
    """A row that shows a case as it was measured."""

    case: str
    title: str
    unit: str = RATE
    bars: Sequence[Bar] = ()

    def row(self, figures: Figures) -> Row | None:
        """The row, if its case was measured."""
        found = figures.get(self.case)
        if not found or PROXY not in found:
            return None
        others = {name: sample for name, sample in found.items() if name not in (PROXY, NGINX, DIRECT)}
        return Row(self.title, self.unit, found[PROXY], found.get(NGINX), self.bars, others)


@dataclass(frozen=True)
class Derived:
    """A row whose figure comes of several samples of one turn; `of` raises KeyError where one of them was not measured."""

    title: str
    unit: str
    of: Callable[[Figures], float]
    bars: Sequence[Bar] = ()
    limit: Callable[[Figures], float] | None = None

    def row(self, turns: Sequence[Figures]) -> Row | None:
        """The row, if what it comes of was measured."""
        if not (found := _each(self.of, turns)):
            return None
        value = statistics.median(found)
        noise = max(abs(one - value) for one in found)
        limits = _each(self.limit, turns) if self.limit else []
        nginx = Sample(statistics.median(limits)) if limits else None
        return Row(self.title, self.unit, Sample(value), nginx, self.bars, noise=noise)


def _each(of: Callable[[Figures], float], turns: Sequence[Figures]) -> list[float]:
    found = []
    for turn in turns:
        with contextlib.suppress(KeyError):
            found.append(of(turn))
    return found


def cpu(figures: Figures, case: str, subject: str = PROXY) -> float:
    """Microseconds of a call of a case."""
    return figures[case][subject].cpu or 0.0


def _quota_over_none(figures: Figures) -> float:
    return 100 * (cpu(figures, "quota") / cpu(figures, "calls") - 1)


def _event(figures: Figures) -> float:
    return cpu(figures, "calls") - cpu(figures, "events-off")


def _router(figures: Figures) -> float:
    return cpu(figures, "router", "application") - cpu(figures, "router", "bare")


def _added(percentile: str, subject: str) -> Callable[[Figures], float]:
    def added(figures: Figures) -> float:
        return figures["latency"][subject].more[percentile] - figures["latency"][DIRECT].more[percentile]

    return added


def _resting(figures: Figures) -> float:
    return figures["start"][PROXY].rss or 0.0


ROWS: Sequence[Shown | Derived] = (
    Shown("everything", "calls, everything on", bars=[Bar("value", 12_000, "/s", 15_000), Bar("ratio", 0.12, " of nginx")]),
    Shown("calls", "calls, no quota"),
    Shown("quota", "calls, quota"),
    Derived("CPU of quota over none", "%", _quota_over_none, [Bar("value", 5, " %", at_most=True)]),
    Shown("rate-limit", "calls, rate limits"),
    Shown("hit", "cache hit, GET", bars=[Bar("value", 20_000, "/s")]),
    Shown("hit-post", "cache hit, POST", bars=[Bar("value", 20_000, "/s")]),
    Shown("events-off", "calls without events"),
    Derived("CPU of an event to the spool", "µs", _event, [Bar("value", 5, " µs", at_most=True)]),
    Shown("events-file", "calls, events to a file too"),
    Shown("up", "1 MiB up", "MiB/s"),
    Shown("down", "1 MiB down", "MiB/s"),
    Shown("sse", f"SSE, {CHUNKS} chunks a call", CHUNK_RATE, [Bar("cpu", 12, " µs a chunk", 9, at_most=True)]),
    Shown("counted", "SSE whose tokens are counted", CHUNK_RATE),
    Shown("slow", "1,000 streams at 20 chunks/s", CHUNK_RATE, [Bar("ratio", KEEPS_UP, " of nginx")]),
    Derived(
        "added p50, one connection", "ms", _added("p50", PROXY), [Bar("value", 0.15, " ms", at_most=True)], _added("p50", NGINX)
    ),
    Derived(
        "added p99, one connection", "ms", _added("p99", PROXY), [Bar("value", 1, " ms", at_most=True)], _added("p99", NGINX)
    ),
    Shown("latency", "p50, one connection", "ms"),
    Shown("idle", "idle connection", "KiB", [Bar("value", 10, " KiB", at_most=True)]),
    Shown("start", "start to /ready", "s", [Bar("value", 1, " s", at_most=True)]),
    Derived("resident at rest", "MiB", _resting, [Bar("value", 80, " MiB", at_most=True)]),
    Shown("soak", "memory over the soak's last three quarters", "% more", [Bar("value", 5, " %", at_most=True)]),
    Shown("tokens", "tokens made", bars=[Bar("value", 2_000, "/s")]),
    Shown("redis-limits", "calls, limits in Redis"),
    Shown("redis-streams", "calls, events through Redis Streams"),
    Derived("CPU of a router and a middleware, which calls bypass", "µs", _router),
)


def rows(figures: Figures, turns: Sequence[Figures]) -> list[Row]:
    """The rows of what was measured: of the medians, differences of each turn by itself."""
    found = (shown.row(figures) if isinstance(shown, Shown) else shown.row(turns) for shown in ROWS)
    return [row for row in found if row]


def notes(figures: Figures) -> Iterator[str]:
    """What a reader should know beside the table."""
    for case, what in (("sse", "64 dense streams"), ("slow", "1,000 slow ones")):
        found = figures.get(case, {})
        if DIRECT in found:
            sample = found[DIRECT]
            able = round(1e6 / sample.cpu, -3) if sample.cpu else 0.0
            yield (
                f"The streaming provider alone ({what}): {sample.value:,.0f} chunks/s at {sample.cpu or 0:.1f} µs of CPU each; "
                f"a core to itself would let it send some {able:,.0f}/s."
            )
    sse = figures.get("sse", {})
    if PROXY in sse and NGINX in sse and sse[PROXY].value < KEEPS_UP * sse[NGINX].value:
        yield (
            f"SSE: the proxy passed on {100 * sse[PROXY].value / sse[NGINX].value:.0f} % of what nginx did. What it gets late "
            "comes several chunks at once, so its CPU a chunk is less than it would be one by one."
        )
    for subject, sample in figures.get("slow", {}).items():
        yield (
            f"1,000 slow streams, {subject}: {100 * sample.more['busy']:.0f} % of a core, "
            f"the last chunk of one in a hundred comes {sample.more['late ms']:,.0f} ms late or later."
        )
