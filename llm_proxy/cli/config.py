"""`llm-proxy config`: the effective settings."""

import click
import orjson

from llm_proxy.cli import options
from llm_proxy.cli.output import echo_table
from llm_proxy.settings import TABLE, kind_of, shown


@click.command()
@options.env_file
@click.option("--json", "as_json", is_flag=True, help="JSON, for scripts.")
@click.option("--describe", is_flag=True, help="Describe every setting instead: default, what it accepts, what it is for.")
def command(env: str | None, as_json: bool, describe: bool) -> None:
    """Show the effective value of every setting, secrets masked, with where it came from."""
    if describe:
        rows = [(field.name.upper(), field.metadata["default"], kind_of(field), field.metadata["help"]) for field in TABLE]
        names: tuple[str, ...] = ("name", "default", "accepts", "help")
    else:
        settings = options.settings_from(env)
        rows, names = [*shown(settings)], ("name", "value", "source")  # type: ignore[list-item]
        for warning in settings.warnings:
            click.echo(f"warning: {warning}", err=True)
    if as_json:
        click.echo(orjson.dumps([dict(zip(names, row, strict=True)) for row in rows], option=orjson.OPT_INDENT_2))
    else:
        echo_table(names, rows)
