"""What commands print: tables for people, JSON for scripts."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import click
import orjson

WIDEST = 60

as_json = click.option("--json", is_flag=True, help="JSON, for scripts.")


def printable(text: str) -> str:
    """The text without characters that would do something to a terminal."""
    return "".join(char if char.isprintable() else "�" for char in text)


def _cell(value: object) -> str:
    if value in (None, "", [], {}):
        return "-"
    match value:
        case bool():
            return "yes" if value else "no"
        case list():
            return printable(", ".join(map(str, value)))
        case dict():
            return orjson.dumps(value).decode()
    return printable(str(value))


def echo_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows under their names, each column as wide as it needs."""
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [min(WIDEST, max(map(len, column))) for column in zip(names, *cells, strict=True)]
    for number, row in enumerate([[name.upper() for name in names], *cells]):
        line = "  ".join(f"{cell:{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        click.secho(line, bold=number == 0)


def echo_one(resource: Mapping[str, Any]) -> None:
    """Print one resource, a line for each field."""
    width = max(map(len, resource))
    for name, value in resource.items():
        if name != "object":
            click.echo(f"{name:{width}}  {_cell(value)}")


def echo_json(data: object) -> None:
    """Print JSON."""
    click.echo(orjson.dumps(data, option=orjson.OPT_INDENT_2))


def show(resource: Mapping[str, Any], json: bool) -> None:
    """Print one resource, as `--json` says."""
    echo_json(resource) if json else echo_one(resource)


def show_list(found: Sequence[Mapping[str, Any]], row: Callable[[Mapping[str, Any]], Mapping[str, object]], json: bool) -> None:
    """Print resources, as `--json` says: whole ones for scripts, for people what `row` makes of each."""
    rows = [row(one) for one in found]
    if json:
        echo_json(found)
    elif rows:
        echo_table(list(rows[0]), [list(one.values()) for one in rows])
    else:
        click.echo("Nothing found.")
