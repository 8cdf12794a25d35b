"""Arguments that the manage commands share."""

import sys
from collections.abc import Callable, Mapping
from typing import Any, TypeVar
from urllib.parse import quote

import click
import orjson

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

DEFAULT, NONE = "default", "none"
# A value that was given, and is null; None is one that was not given.
NULL = object()


def limit(text: str) -> object:
    """The type of options that take a limit: a number, `none`, or `default` for what stands behind it."""
    if text == DEFAULT:
        return NULL
    if text == NONE:
        return 0
    if not text.isascii() or not text.isdigit():
        raise click.BadParameter("give a whole number, none or default.")
    return int(text)


def json_value(text: str) -> Any:
    """The type of options that take JSON."""
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise click.BadParameter(f"this is not JSON: {error}") from None


_LIMITS = (
    click.option("--rate-limit", metavar="N", type=limit, help="Requests a second; none, or default."),
    click.option("--rate-limit-per-minute", metavar="N", type=limit, help="Requests a minute; none, or default."),
    click.option("--max-parallel", metavar="N", type=limit, help="Calls at the same time; none, or default."),
)

some_models = click.option(
    "--model", "models", multiple=True, help="A model it may use, or a glob; may be given several times.  [default: all]"
)
_OTHER_MODELS = (
    click.option("--model", "models", multiple=True, help="The models it may use from now on; may be given several times."),
    click.option("--all-models", is_flag=True, help="Let it use every model."),
)

most = click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True, help="How many at most.")


def on_server(function: F) -> F:
    """The options that say where the API is."""
    for option in reversed(_PLACE):
        function = option(function)
    return function


def limits(function: F) -> F:
    """The options that set limits."""
    for option in reversed(_LIMITS):
        function = option(function)
    return function


def other_models(function: F) -> F:
    """The options that change which models may be used."""
    for option in reversed(_OTHER_MODELS):
        function = option(function)
    return function


def allowed(models: tuple[str, ...], all_models: bool = False) -> dict[str, Any]:
    """What those options, or `some_models`, say."""
    if models and all_models:
        raise click.UsageError("--model names some models, --all-models admits every one. Give one of them.")
    return {"allowed_models": models} if models or all_models else {}


def changes(body: dict[str, Any]) -> dict[str, Any]:
    """What an update changes, which must be something."""
    if not body:
        raise click.UsageError("Say what to change; --help lists what can be.")
    return body


def show_secret(secret: str) -> None:
    """Print a new secret for people, apart from what is known of it."""
    click.secho(f"\n{secret}", bold=True)
    click.echo("This is shown once, and kept nowhere.", err=True)


def shown_limits(resource: Mapping[str, Any]) -> dict[str, Any]:
    """For people, words in place of the limits that are no numbers."""
    words = {None: DEFAULT, 0: NONE}
    names = ("rate_limit", "rate_limit_per_minute", "max_parallel")
    return {**resource, **{name: words.get(resource[name], resource[name]) for name in names}}


def given(**values: Any) -> dict[str, Any]:
    """The values that were given."""
    return {name: None if value is NULL else value for name, value in values.items() if value is not None}


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
