"""When requests come to a limit: crowds at its edges, chance, malice."""

import os
import random
from collections.abc import Callable, Iterator, Sequence

# In all tests of a limiter together, in Redis a tenth; ARRIVALS=1000000 is the full run.
TOTAL = int(os.environ.get("ARRIVALS", "200000"))

Arrivals = Callable[[random.Random, int, int], Iterator[int]]


def crowds(chance: random.Random, span: int, limit: int) -> Iterator[int]:
    """More than the limit at once, just before and just after whole spans."""
    edge = 0
    while True:
        edge += span
        for moment in (edge - chance.randint(1, 3), edge, edge + chance.randint(0, 3)):
            for _ in range(limit // 2 + 1):
                yield moment


def by_chance(chance: random.Random, span: int, limit: int) -> Iterator[int]:
    """A Poisson process of twice the limit."""
    now = 0.0
    while True:
        now += chance.expovariate(2 * limit / span)
        yield int(now)


def around_sub_buckets(chance: random.Random, span: int, limit: int) -> Iterator[int]:
    """A few at a time, within a tick of where a sub-bucket, or a whole span of them, begins or ends."""
    now, step = 0, max(span // 1000, 1)
    while True:
        now += span - step if chance.random() < 0.0005 else chance.choice((0, 1, step - 1, step, step + 1))
        for _ in range(chance.randint(1, max(limit // 300, 3))):
            yield now


def most_in_any_window(admitted: Sequence[int], span: int) -> int:
    """The most that one interval of a span, its end not included, has seen."""
    most = first = 0
    for last, moment in enumerate(admitted):
        while admitted[first] <= moment - span:
            first += 1
        most = max(most, last - first + 1)
    return most


PATTERNS: dict[str, Arrivals] = {
    "crowds at the edges": crowds,
    "by chance": by_chance,
    "around sub-buckets": around_sub_buckets,
}
