"""What commands print: tables for people, JSON for scripts."""

from collections.abc import Mapping, Sequence
from typing import Any

import click
import orjson

WIDEST = 60


def _cell(value: object) -> str:
    match value:
        case None | "" | [] | {}:
            return "-"
        case bool():
            return "yes" if value else "no"
        case list():
            return ", ".join(map(str, value))
        case dict():
            return orjson.dumps(value).decode()
    return "".join(char if char.isprintable() else "�" for char in str(value))


def echo_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their names, each column as wide as it needs."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [min(WIDEST, max(len(name), *(len(row[place]) for row in cells), 0)) for place, name in enumerate(names)]
    line = "  ".join(f"{name.upper():{width}}" for name, width in zip(names, widths, strict=True)).rstrip()
    click.secho(line, bold=True)
    for row in cells:
        click.echo("  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip())


def echo_one(resource: Mapping[str, Any]) -> None:
    """Print one resource, a line for each field."""
    width = max(map(len, resource))
    for name, value in resource.items():
        if name != "object":
            click.echo(f"{name:{width}}  {_cell(value)}")


def echo_json(data: object) -> None:
    """Print JSON."""
    click.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2))
