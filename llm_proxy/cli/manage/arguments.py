"""Arguments that the manage commands share."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import click

F = TypeVar("F", bound=Callable[..., Any])

as_json = click.option("--json", is_flag=True, help="JSON, for scripts.")
most = click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many at most.")


def given(**values: Any) -> dict[str, Any]:
    """The values that were given."""
    return {name: value for name, value in values.items() if value is not None}


def asked(id: str) -> str:
    """An id as part of a path."""
    return quote(id, safe="")


def secret_from(text: str | None) -> str | None:
    """The secret itself, or what standard input says for `-`."""
    if text != "-":
        return text
    if sys.stdin.isatty():
        return str(click.prompt("API key", hide_input=True))
    return sys.stdin.readline().strip()


def confirmed(question: str) -> Callable[[F], F]:
    """Ask before a command that takes something away; --yes answers for scripts."""

    def check(_: click.Context, __: click.Parameter, yes: bool) -> None:
        if not yes:
            click.confirm(question, abort=True)

    return click.option("--yes", is_flag=True, expose_value=False, callback=check, help="Do not ask.")
