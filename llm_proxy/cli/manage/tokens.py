"""`llm-proxy manage token`."""

from collections.abc import Mapping
from typing import Any

import click

from llm_proxy import tokens
from llm_proxy.cli.api import call, listed
from llm_proxy.cli.manage.arguments import (
    NONE,
    allowed,
    asked,
    changes,
    confirmed,
    given,
    json_value,
    limits,
    most,
    on_server,
    other_models,
    secret_from,
    show_secret,
    shown_limits,
    some_models,
)
from llm_proxy.cli.output import as_json, show, show_list
from llm_proxy.clock import to_rfc3339

NEVER = "never"


def quota(text: str) -> int | str:
    """The type of options that take a number of requests or `none`."""
    if text == NONE:
        return text
    if not text.isascii() or not text.isdigit() or not int(text):
        raise click.BadParameter("give a whole number, 1 or more, or none.")
    return int(text)


@click.group()
@on_server
def token() -> None:
    """What clients call with, in place of a provider's key.

    \b
    Example:
      llm-proxy manage token create --project PROJECT_ID --minutes 60
    """


@token.command()
@click.option("--project", "project_id", required=True, metavar="ID", help="The project it belongs to.")
@click.option("--name", help="A name, to recognise it by.")
@click.option("--minutes", "duration_minutes", metavar="N", type=click.IntRange(1), help="How long it lives.  [default: a day]")
@click.option("--expires-at", metavar="TIME", help="When it expires, such as 2026-12-31T23:59:59Z, or `never`.")
@click.option(
    "--max-requests", metavar="N", type=click.IntRange(1), help="How many requests it is good for.  [default: any number]"
)
@some_models
@click.option("--metadata", metavar="JSON", type=json_value, help="An object kept with it.")
@limits
@as_json
@on_server
def create(expires_at: str | None, models: tuple[str, ...], json: bool, **rest: Any) -> None:
    """Make a token. It is shown this one time.

    \b
    Examples:
      llm-proxy manage token create --project PROJECT_ID --minutes 60 --max-requests 100
      llm-proxy manage token create --project PROJECT_ID --expires-at never --model 'gpt-4o*'
    """
    made = call("POST", "/manage/tokens", given(**rest) | _expiry(expires_at) | allowed(models))
    _show(made, json)
    if not json:
        show_secret(made["token"])


def _show(token: Mapping[str, Any], json: bool) -> None:
    """For people, words stand where an absence means much."""
    words = {"expires_at": NEVER, "max_requests": NONE, "allowed_models": "all"}
    facts = {name: value or words.get(name, value) for name, value in shown_limits(token).items() if name != "token"}
    show(token if json else facts, json)


@token.command("list")
@click.option("--project", "project_id", metavar="ID", help="Only those of this project.")
@click.option("--status", type=click.Choice(tokens.STATUSES), help="Only these.")
@most
@as_json
@on_server
def list_(project_id: str | None, status: str | None, limit: int, json: bool) -> None:
    """List tokens, newest first.

    \b
    Example:
      llm-proxy manage token list --project PROJECT_ID --status active
    """
    show_list(listed("/manage/tokens", given(project_id=project_id, status=status), limit), _row, json)


def _row(token: Mapping[str, Any]) -> Mapping[str, object]:
    quota = f" of {token['max_requests']}" if token["max_requests"] is not None else ""
    return {
        "id": token["id"],
        "project": token["project_name"],
        "name": token["name"],
        "token": token["hint"],
        "status": token["status"],
        "requests": f"{token['request_count']}{quota}",
        "expires": token["expires_at"] or NEVER,
    }


@token.command()
@click.argument("id")
@as_json
@on_server
def get(id: str, json: bool) -> None:
    """Show one token.

    \b
    Example:
      llm-proxy manage token get TOKEN_ID
    """
    _show(call("GET", f"/manage/tokens/{asked(id)}"), json)


@token.command()
@click.argument("id")
@click.option("--name", help="A new name.")
@click.option("--active/--revoked", "is_active", default=None, help="Let it be used again, or no more.")
@click.option("--max-requests", metavar="N", type=quota, help="A new quota, or `none`.")
@click.option("--expires-at", metavar="TIME", help="A new expiry, or `never`.")
@other_models
@click.option("--metadata", metavar="JSON", type=json_value, help="An object kept with it.")
@limits
@as_json
@on_server
def update(
    id: str,
    max_requests: int | str | None,
    expires_at: str | None,
    models: tuple[str, ...],
    all_models: bool,
    json: bool,
    **rest: Any,
) -> None:
    """Change a token.

    \b
    Examples:
      llm-proxy manage token update TOKEN_ID --max-requests 500 --rate-limit-per-minute 60
      llm-proxy manage token update TOKEN_ID --expires-at never --all-models
    """
    body = given(**rest) | _expiry(expires_at) | allowed(models, all_models)
    if max_requests:
        body["max_requests"] = None if max_requests == NONE else max_requests
    _show(call("PATCH", f"/manage/tokens/{asked(id)}", changes(body)), json)


def _expiry(text: str | None) -> dict[str, str | None]:
    return {"expires_at": None if text == NEVER else text} if text else {}


@token.command()
@click.argument("id")
@confirmed("Calls that run with this token end at once. Go on?")
@on_server
def revoke(id: str) -> None:
    """Revoke a token. Calls that run with it end within a second.

    \b
    Example:
      llm-proxy manage token revoke TOKEN_ID --yes
    """
    call("DELETE", f"/manage/tokens/{asked(id)}")
    click.echo(f"Revoked {id}.")


@token.command()
@click.argument("secret", metavar="TOKEN")
@as_json
def inspect(secret: str, json: bool) -> None:
    """Say what a token tells of itself. That is its id, and when it was made; no database is asked.

    \b
    Examples:
      llm-proxy manage token inspect sk-lp-...
      llm-proxy manage token inspect -          reads it from standard input
    """
    facts = tokens.inspect(secret_from(secret, "Token") or "")
    show({**facts, "created_at": to_rfc3339(facts["created_at"])}, json)
