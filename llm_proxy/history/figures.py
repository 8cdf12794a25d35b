"""What calls amount to: their number, their tokens, how long they took."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from operator import add as add_up

from llm_proxy.events import HITS, Event

# Milliseconds. Steps are finer where completions end, since percentiles are estimated within a step.
_TO_A_SECOND = (1, 2, 5, 10, 20, 50, 100, 200, 300, 500, 700, 1000)
_ABOVE = (1500, 2000, 3000, 5000, 7000, 10_000, 15_000, 20_000, 30_000, 60_000, 120_000)
BOUNDS_MS = (*_TO_A_SECOND, *_ABOVE)
_SECONDS = tuple(bound / 1000 for bound in BOUNDS_MS)

SUMS = ("calls", "errors", "cache_hits", "prompt_tokens", "completion_tokens", "overhead_us")
COLUMNS = (*SUMS, *(f"ms_{bound}" for bound in BOUNDS_MS), "ms_more")

# What a client got that ended so was no answer, whatever its status had promised.
FAILED = frozenset({"refused", "upstream_failed", "upstream_incomplete", "aborted_by_shutdown", "internal_error"})


def count(values: list[int], event: Event) -> None:
    """Add one call to values in the order of `COLUMNS`."""
    usage = event.usage
    values[0] += 1
    if event.status >= 400 or event.outcome in FAILED:
        values[1] += 1
    if event.cache in HITS:
        values[2] += 1
    values[3] += usage.prompt_tokens
    values[4] += usage.completion_tokens
    values[5] += int(event.overhead * 1e6)
    values[len(SUMS) + bisect_left(_SECONDS, event.duration)] += 1


def add(values: list[int], more: Sequence[int]) -> None:
    """Add values in the order of `COLUMNS` to others."""
    for place, value in enumerate(more):
        values[place] += value


@dataclass(frozen=True)
class Figures:
    """The sum of some calls.

    Attributes:
        errors: calls whose client got an error, or an answer that broke off.
        overhead_us: the time in which nothing was waited for, neither provider nor client, in microseconds.
        latency: how many calls fell between each two of `BOUNDS_MS`; the last figure counts those above all of them.
    """

    calls: int = 0
    errors: int = 0
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    overhead_us: int = 0
    latency: tuple[int, ...] = (0,) * (len(BOUNDS_MS) + 1)

    @classmethod
    def of(cls, values: Sequence[int]) -> "Figures":
        """The figures with values in the order of `COLUMNS`."""
        return cls(**dict(zip(SUMS, values, strict=False)), latency=tuple(values[len(SUMS) :]))

    def __add__(self, other: "Figures") -> "Figures":
        """The sum of both."""
        sums = {name: getattr(self, name) + getattr(other, name) for name in SUMS}
        return Figures(**sums, latency=tuple(map(add_up, self.latency, other.latency)))

    @property
    def tokens(self) -> int:
        """All tokens, those that were read as well as those that were written."""
        return self.prompt_tokens + self.completion_tokens

    @property
    def error_share(self) -> float | None:
        """The share of the calls that were errors; None without calls."""
        return self.errors / self.calls if self.calls else None

    @property
    def hit_share(self) -> float | None:
        """The share of the calls that the cache answered; None without calls."""
        return self.cache_hits / self.calls if self.calls else None

    @property
    def overhead_ms(self) -> float | None:
        """Our part of a call, on average; None without calls."""
        return round(self.overhead_us / self.calls / 1000, 3) if self.calls else None

    def quantile_ms(self, share: float) -> float | None:
        """The time within which this share of the calls ended, estimated within its step; None without calls.

        What took longer than the last bound is told as that bound.
        """
        rank, below, low = share * sum(self.latency), 0, 0
        for bound, number in zip(BOUNDS_MS, self.latency, strict=False):
            if number and below + number >= rank:
                return round(low + (bound - low) * max(0.0, rank - below) / number, 1)
            below, low = below + number, bound
        return float(low) if self.latency[-1] else None
