"""Everything on at full load for many minutes: memory must stay flat."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from benchmarks.cases import CALLS, Bench
from benchmarks.results import PROXY, Sample

MINUTES = 10.0
STEP_SECONDS = 15.0


@dataclass(frozen=True)
class Course:
    """How a soak went: minutes and MiB of each step, calls, and what went wrong."""

    steps: Sequence[tuple[float, float]]
    calls: int
    errors: int

    def sample(self) -> Sample:
        """By how many percent memory grew, once the first quarter was over."""
        base = self.steps[len(self.steps) // 4][1]
        last = self.steps[-1][1]
        return Sample(100 * (last / base - 1), rss=last, errors=self.errors)

    def note(self) -> str:
        """Memory over time, in ten figures at most."""
        every = max(1, len(self.steps) // 10)
        kept = [*self.steps[:-1:every], self.steps[-1]]
        course = ", ".join(f"{minutes:.1f} min {rss:.1f}" for minutes, rss in kept)
        return f"Soak of {self.steps[-1][0]:.0f} minutes, {self.calls:,} calls with everything on; MiB resident: {course}."


def run(bench: Bench, minutes: float, tell: Callable[[str], None]) -> Course:
    """Load the server for so long."""
    site, ask = CALLS["everything"].target(bench, PROXY)
    steps: list[tuple[float, float]] = []
    calls, errors, began = 0, 0, time.monotonic()
    while not steps or time.monotonic() - began < minutes * 60:
        found = bench.scene.load(site.url, ask, min(STEP_SECONDS, minutes * 60))
        calls, errors = calls + found.requests, errors + sum(found.errors.values())
        steps.append(((time.monotonic() - began) / 60, site.process.rss()))
        tell(f"soak {steps[-1][0]:5.1f} min  {steps[-1][1]:7.1f} MiB  {found.rate:,.0f} calls/s")
    return Course(steps, calls, errors)
