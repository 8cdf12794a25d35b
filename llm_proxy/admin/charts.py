"""Charts as numbers, which a template writes down as SVG."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

# What is drawn is stretched to the room there is, so that units are a hundredth of the height and a tenth of a step.
HEIGHT = 100.0
STEP = 10.0
# One call of a million is drawn too.
LEAST = 1.5
INTERVALS = 4
# Steps of the scale that people count in; half a call there is not.
NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
WHOLE = (1.0, 2.0, 5.0, 10.0)
# How many times stand along a chart: one at the beginning of each equal part.
PARTS = (4, 3, 5, 2)

Show = Callable[[float], str]
Values = Sequence[float | None]


@dataclass(frozen=True)
class Line:
    """What a chart shows: its name, the class that colours it, a value for each step, None where there is none."""

    name: str
    tone: str
    values: Values


@dataclass(frozen=True)
class Bar:
    """A rectangle."""

    tone: str
    y: float
    height: float


@dataclass(frozen=True)
class Step:
    """A part of the time: where it is, what it says when it is pointed at."""

    x: float
    moment: int
    says: str
    bars: list[Bar]


@dataclass(frozen=True)
class Chart:
    """A chart, ready to be drawn `width` wide and `HEIGHT` high.

    Attributes:
        ticks: what stands beside the gridlines, from the top down.
        levels: where those are.
        paths: the lines and dots, with their classes.
        marks: the moments that stand along it.
    """

    title: str
    lines: Sequence[Line]
    width: float
    ticks: list[str]
    levels: list[float]
    steps: list[Step]
    paths: list[tuple[str, str]]
    marks: list[int]


def scale(most: float, *, whole: bool) -> list[float]:
    """Round numbers from 0 to the first that `most` does not exceed."""
    rough = most / INTERVALS
    power = 10.0 ** math.floor(math.log10(rough)) if rough > 0 else 1.0
    step = next(nice * power for nice in (WHOLE if whole else NICE) if nice * power >= rough * (1 - 1e-9))
    step = max(step, 1.0) if whole else step
    intervals = max(math.ceil(most / step - 1e-9), 1)
    return [step * number for number in range(intervals + 1)]


def marks(moments: Sequence[int]) -> list[int]:
    """The moments at which equal parts of the time begin."""
    parts = next((parts for parts in PARTS if moments and len(moments) % parts == 0), 1)
    return list(moments[:: len(moments) // parts]) if moments else []


def stacked(title: str, moments: Sequence[int], lines: Sequence[Line], show: Show) -> Chart:
    """Counts as bars that stand on each other, the first line below."""
    columns = list(zip(*(line.values for line in lines), strict=True))
    ticks = scale(max((sum(value or 0 for value in column) for column in columns), default=0), whole=True)
    bars = [_pile(lines, column, ticks[-1]) for column in columns]
    return _chart(title, moments, lines, show, ticks, bars, [])


def _pile(lines: Sequence[Line], column: Sequence[float | None], top: float) -> list[Bar]:
    bars, y = [], HEIGHT
    for line, value in zip(lines, column, strict=True):
        if value:
            height = min(max(value / top * HEIGHT, LEAST), y)
            y -= height
            bars.append(Bar(line.tone, _short(y), _short(height)))
    return bars


def lined(title: str, moments: Sequence[int], lines: Sequence[Line], show: Show) -> Chart:
    """Values as lines, broken where there are none, with a dot for a value that has no neighbour."""
    ticks = scale(max((value for line in lines for value in line.values if value is not None), default=0), whole=False)
    paths = [path for line in lines for path in _paths(line, ticks[-1])]
    return _chart(title, moments, lines, show, ticks, [[] for _ in moments], paths)


def _paths(line: Line, top: float) -> list[tuple[str, str]]:
    places = [
        None if value is None else f"{number * STEP + STEP / 2:g} {_short(HEIGHT * (1 - value / top)):g}"
        for number, value in enumerate(line.values)
    ]
    runs = [list(run) for there, run in itertools.groupby(places, lambda place: place is not None) if there]
    drawn = "".join(f"M{'L'.join(map(str, run))}" for run in runs if len(run) > 1)
    # A line of no length has round ends.
    dots = "".join(f"M{run[0]}h0" for run in runs if len(run) == 1)
    return [(kind, path) for kind, path in ((line.tone, drawn), (f"{line.tone} dot", dots)) if path]


def _chart(
    title: str,
    moments: Sequence[int],
    lines: Sequence[Line],
    show: Show,
    ticks: Sequence[float],
    bars: Sequence[list[Bar]],
    paths: list[tuple[str, str]],
) -> Chart:
    steps = [
        Step(number * STEP, moment, _says(lines, number, show), piled)
        for number, (moment, piled) in enumerate(zip(moments, bars, strict=True))
    ]
    levels = [_short(HEIGHT * (1 - tick / ticks[-1])) for tick in ticks]
    shown = [show(tick) for tick in ticks]
    return Chart(title, lines, len(moments) * STEP, shown[::-1], levels[::-1], steps, paths, marks(moments))


def _says(lines: Sequence[Line], number: int, show: Show) -> str:
    values = [(line.name, line.values[number]) for line in lines]
    return ", ".join(f"{name} {'–' if value is None else show(value)}" for name, value in values)


def _short(value: float) -> float:
    return round(value, 2)
