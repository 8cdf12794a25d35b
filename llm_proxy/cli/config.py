"""`llm-proxy config`: the effective settings."""

from collections.abc import Sequence

import click

from llm_proxy.cli import options
from llm_proxy.cli.output import as_json, echo_json, echo_table
from llm_proxy.settings import TABLE, kind_of, shown


@click.command()
@options.env_file
@as_json
@click.option("--describe", is_flag=True, help="Describe every setting instead: default, what it accepts, what it is for.")
def command(json: bool, describe: bool) -> None:
    """Show the effective value of every setting, secrets masked, with where it came from.

    \b
    Examples:
      llm-proxy config
      llm-proxy config --describe --json
    """
    names, rows = _described() if describe else _effective()
    if json:
        echo_json([dict(zip(names, row, strict=True)) for row in rows])
    else:
        echo_table(names, rows)


def _described() -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    rows = [(field.name.upper(), field.metadata["default"], kind_of(field), field.metadata["help"]) for field in TABLE]
    return ("name", "default", "accepts", "help"), rows


def _effective() -> tuple[Sequence[str], Sequence[Sequence[str]]]:
    settings = options.settings()
    for warning in settings.warnings:
        click.echo(f"warning: {warning}", err=True)
    return ("name", "value", "source"), shown(settings)
