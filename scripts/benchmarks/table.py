"""The table of a run, on a terminal and in a document."""

import pathlib
from collections.abc import Iterable, Mapping, Sequence

from benchmarks.results import Row, Sample, number

BEGIN, END = "<!-- scripts/bench: begin -->", "<!-- scripts/bench: end -->"
NAMES = ("what", "proxy", "nginx", "of nginx", "CPU µs each", "nginx", "RSS MiB", "bar", "result")


def _value(sample: Sample | None, unit: str) -> str:
    if sample is None:
        return ""
    return f"{number(sample.value)} {unit}" + (f", {sample.errors} errors" if sample.errors else "")


def _figure(value: float | None) -> str:
    return "" if value is None else number(value)


def cells(row: Row, peers: Sequence[str]) -> list[str]:
    """A row's cells, those of peers at the end."""
    bars = "; ".join(bar.text() for bar in row.bars)
    return [
        row.title,
        _value(row.proxy, row.unit),
        _value(row.nginx, row.unit),
        _figure(row.ratio),
        _figure(row.proxy.cpu if row.proxy else None),
        _figure(row.nginx.cpu if row.nginx else None),
        _figure(row.proxy.rss if row.proxy else None),
        bars,
        row.verdict(),
        *(_value(row.others.get(peer), row.unit) for peer in peers),
    ]


def markdown(names: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table that reads well as it is: every column as wide as it needs."""
    widths = [max(map(len, column)) for column in zip(names, *rows, strict=True)]
    lines = [names, ["-" * width for width in widths], *rows]
    return "\n".join(
        "| " + " | ".join(f"{cell:{width}}" for cell, width in zip(line, widths, strict=True)) + " |" for line in lines
    )


def rendered(rows: Sequence[Row]) -> str:
    """The table of a run."""
    peers = list(dict.fromkeys(peer for row in rows for peer in row.others))
    return markdown([*NAMES, *peers], [cells(row, peers) for row in rows])


def report(facts: Mapping[str, str], rows: Sequence[Row], notes: Iterable[str]) -> str:
    """What a document says of a run."""
    about = "\n".join(f"- {name}: {value}" for name, value in facts.items())
    below = "\n".join(f"- {note}" for note in notes)
    return f"{about}\n\n{rendered(rows)}\n" + (f"\n{below}\n" if below else "")


def rewritten(document: str, between: str) -> str:
    """The document with this text between its markers.

    Raises:
        ValueError: it has no markers.
    """
    before, begin, rest = document.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the markers {BEGIN} and {END} are missing")
    return f"{before}{BEGIN}\n{between.strip()}\n{END}{after}"


def write(path: pathlib.Path, between: str) -> None:
    """Put a report into a document."""
    path.write_text(rewritten(path.read_text(), between))
