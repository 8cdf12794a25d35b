"""`llm-proxy manage token`."""

from typing import Any

import click
import orjson

from llm_proxy import tokens
from llm_proxy.cli.api import run
from llm_proxy.cli.manage.arguments import as_json, asked, confirmed, given, most
from llm_proxy.cli.output import echo_json, echo_one, echo_table
from llm_proxy.clock import to_rfc3339

COLUMNS = ("id", "name", "project_name", "status", "hint", "request_count", "max_requests", "expires_at")


@click.group()
def token() -> None:
    """What clients call with, in place of a provider's key."""


@token.command()
@click.option("--project", "project_id", required=True, metavar="ID", help="The project it belongs to.")
@click.option("--name", help="A name, to recognise it by.")
@click.option("--minutes", type=click.IntRange(1), help="How long it lives.  [default: a day]")
@click.option("--expires-at", metavar="TIME", help="When it expires, such as 2026-12-31T23:59:59Z, or `never`.")
@click.option("--max-requests", type=click.IntRange(1), help="How many requests it is good for.  [default: any number]")
@click.option(
    "--model", "models", multiple=True, help="A model it may use, or a glob; may be given several times.  [default: all]"
)
@click.option("--metadata", metavar="JSON", help="An object kept with it.")
@as_json
def create(
    project_id: str,
    name: str | None,
    minutes: int | None,
    expires_at: str | None,
    max_requests: int | None,
    models: tuple[str, ...],
    metadata: str | None,
    json: bool,
) -> None:
    """Make a token; it is shown this one time."""
    body = given(
        project_id=project_id,
        name=name,
        duration_minutes=minutes,
        max_requests=max_requests,
        allowed_models=list(models) or None,
        metadata=_object(metadata),
    )
    if expires_at:
        body["expires_at"] = None if expires_at == "never" else expires_at
    made = run(lambda api: api.call("POST", "/manage/tokens", json=body))
    if json:
        return echo_json(made)
    secret = made.pop("token")
    echo_one(made)
    click.echo()
    click.secho(secret, bold=True)
    return click.echo("This is shown once, and kept nowhere.", err=True)


@token.command("list")
@click.option("--project", "project_id", metavar="ID", help="Only those of this project.")
@click.option("--status", type=click.Choice(tokens.STATUSES), help="Only these.")
@most
@as_json
def list_(project_id: str | None, status: str | None, limit: int, json: bool) -> None:
    """List tokens, newest first."""
    params = given(project_id=project_id, status=status)
    found = run(lambda api: api.everything("/manage/tokens", params, limit))
    echo_json(found) if json else echo_table(COLUMNS, [[one[name] for name in COLUMNS] for one in found])


@token.command()
@click.argument("id")
@as_json
def get(id: str, json: bool) -> None:
    """Show one token."""
    _show(run(lambda api: api.call("GET", f"/manage/tokens/{asked(id)}")), json)


@token.command()
@click.argument("id")
@click.option("--name", help="A new name.")
@click.option("--active/--revoked", default=None, help="Let it be used again, or no more.")
@click.option("--max-requests", metavar="N", help="A new quota, or `none`.")
@click.option("--expires-at", metavar="TIME", help="A new expiry, or `never`.")
@click.option("--model", "models", multiple=True, help="The models it may use from now on; may be given several times.")
@click.option("--all-models", is_flag=True, help="Let it use every model.")
@click.option("--metadata", metavar="JSON", help="An object kept with it.")
@as_json
def update(
    id: str,
    name: str | None,
    active: bool | None,
    max_requests: str | None,
    expires_at: str | None,
    models: tuple[str, ...],
    all_models: bool,
    metadata: str | None,
    json: bool,
) -> None:
    """Change a token."""
    body = given(name=name, is_active=active, metadata=_object(metadata))
    if max_requests:
        body["max_requests"] = None if max_requests == "none" else _number(max_requests)
    if expires_at:
        body["expires_at"] = None if expires_at == "never" else expires_at
    if models or all_models:
        body["allowed_models"] = list(models)
    if not body:
        raise click.UsageError("Say what to change; --help lists what can be.")
    _show(run(lambda api: api.call("PATCH", f"/manage/tokens/{asked(id)}", json=body)), json)


@token.command()
@click.argument("id")
@confirmed("Calls that run with this token end at once. Go on?")
def revoke(id: str) -> None:
    """Revoke a token; calls that run with it end within a second."""
    run(lambda api: api.call("DELETE", f"/manage/tokens/{asked(id)}"))
    click.echo(f"Revoked {id}.")


@token.command()
@click.argument("secret", metavar="TOKEN")
@as_json
def inspect(secret: str, json: bool) -> None:
    """Say what a token tells of itself: its id, when it was made. No database is asked."""
    facts = tokens.inspect(secret)
    _show({**facts, "created_at": to_rfc3339(facts["created_at"])}, json)


def _object(text: str | None) -> Any:
    if text is None:
        return None
    try:
        return orjson.loads(text)
    except orjson.JSONDecodeError as error:
        raise click.UsageError(f"--metadata is not JSON: {error}") from None


def _number(text: str) -> int:
    if not text.isascii() or not text.isdigit():
        raise click.UsageError("--max-requests takes a whole number, or none.")
    return int(text)


def _show(resource: dict[str, Any], json: bool) -> None:
    echo_json(resource) if json else echo_one(resource)
