"""Figures: medians of samples, rows with their bars."""

import dataclasses
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

PROXY, NGINX, DIRECT = "proxy", "nginx", "direct"


@dataclass(frozen=True)
class Sample:
    """One measurement of one case; what was not measured is None.

    Attributes:
        value: the figure of the case, in its unit.
        cpu: microseconds of processor time a call, or a chunk.
        rss: MiB resident when it ended.
        errors: what went wrong; a sample with errors is not worth much.
        more: further figures, by name.
    """

    value: float
    cpu: float | None = None
    rss: float | None = None
    errors: int = 0
    more: Mapping[str, float] = field(default_factory=dict)


Figures = Mapping[str, Mapping[str, Sample]]
"""The median samples, by case and by what was measured."""


def median(samples: Sequence[Sample]) -> Sample:
    """The medians of each figure; errors are added up."""
    names = samples[0].more
    return Sample(
        value=statistics.median(sample.value for sample in samples),
        cpu=_median(sample.cpu for sample in samples),
        rss=_median(sample.rss for sample in samples),
        errors=sum(sample.errors for sample in samples),
        more={name: statistics.median(sample.more[name] for sample in samples) for name in names},
    )


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.median(known) if known else None


@dataclass(frozen=True)
class Bar:
    """What quality.md asks of a figure.

    Attributes:
        of: `value`, `ratio` (to nginx), `cpu` or `rss`.
        unit: how the figure is called beside the bar.
    """

    of: str
    limit: float
    unit: str = ""
    aim: float | None = None
    at_most: bool = False

    def text(self) -> str:
        """The bar as a reader sees it."""
        aim = f" (aim {number(self.aim)})" if self.aim is not None else ""
        return f"{'≤' if self.at_most else '≥'} {number(self.limit)}{self.unit}{aim}"

    def verdict(self, figure: float | None, noise: float = 0.0) -> str:
        """Whether a figure meets it, else by how much it does not; a figure that noise may have put on its side does not tell."""
        if figure is None:
            return "not measured"
        if abs(figure - self.limit) < noise:
            return f"too noisy to tell (± {number(noise)})"
        short = (figure - self.limit) if self.at_most else (self.limit - figure)
        return "met" if short <= 0 else f"missed by {max(1, round(100 * short / self.limit))} %"


@dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
        others: peers by name.
        noise: how far the figure was off its median, in either direction, where it is a difference.
    """

    title: str
    unit: str
    proxy: Sample | None
    nginx: Sample | None = None
    bars: Sequence[Bar] = ()
    others: Mapping[str, Sample] = field(default_factory=dict)
    noise: float = 0.0

    @property
    def ratio(self) -> float | None:
        """The proxy's figure over nginx's."""
        return self.proxy.value / self.nginx.value if self.proxy and self.nginx and self.nginx.value else None

    def figure(self, name: str) -> float | None:
        """A figure that a bar may be about."""
        if name == "ratio":
            return self.ratio
        return getattr(self.proxy, name) if self.proxy else None

    def verdict(self) -> str:
        """What became of all its bars."""
        found = [bar.verdict(self.figure(bar.of), self.noise) for bar in self.bars]
        return "met" if found and set(found) == {"met"} else "; ".join(found)

    def as_json(self) -> dict[str, object]:
        """The row for keeping."""
        kept = {name: dataclasses.asdict(sample) for name, sample in self.others.items()}
        return {
            "title": self.title,
            "unit": self.unit,
            "proxy": self.proxy and dataclasses.asdict(self.proxy),
            "nginx": self.nginx and dataclasses.asdict(self.nginx),
            "ratio": self.ratio,
            "noise": self.noise,
            "others": kept,
            "bars": [bar.text() for bar in self.bars],
            "verdict": self.verdict(),
        }


def number(value: float) -> str:
    """A figure with as many digits as mean something."""
    if value == 0 or abs(value) >= 100:
        return f"{value:,.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.3g}"
