"""Arguments that the manage commands share."""

import sys
from collections.abc import Callable
from typing import Any, TypeVar
from urllib.parse import quote

import click

from llm_proxy.cli import options

F = TypeVar("F", bound=Callable[..., Any])

_PLACE = (
    options.kept(
        "--api-url",
        "api_url",
        metavar="URL",
        type=options.site_url,
        help="The running server.  [default: LISTEN_ADDR of the settings]",
    ),
    options.kept("--local", "local", is_flag=True, help="Work on the database itself; no server needs to run."),
    options.database,
    options.env_file,
)

most = click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many at most.")


def on_server(function: F) -> F:
    """The options that say where the API is."""
    for option in reversed(_PLACE):
        function = option(function)
    return function


def given(**values: Any) -> dict[str, Any]:
    """The values that were given."""
    return {name: value for name, value in values.items() if value is not None}


def asked(id: str) -> str:
    """An id as part of a path."""
    return quote(id, safe="")


def secret_from(text: str | None, prompt: str = "API key") -> str | None:
    """The secret itself, or what standard input says for `-`."""
    if text != "-":
        return text
    if sys.stdin.isatty():
        return str(click.prompt(prompt, hide_input=True))
    return sys.stdin.readline().strip()


def confirmed(question: str) -> Callable[[F], F]:
    """Ask before a command that takes something away; --yes answers for scripts."""

    def check(_: click.Context, __: click.Parameter, yes: bool) -> None:
        if not yes:
            click.confirm(question, abort=True)

    return click.option("--yes", is_flag=True, expose_value=False, callback=check, help="Do not ask.")
