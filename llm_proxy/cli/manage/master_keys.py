"""`llm-proxy manage master-key`."""

from collections.abc import Mapping
from typing import Any

import click

from llm_proxy.cli.api import call, listed_as
from llm_proxy.cli.manage.arguments import (
    allowed,
    asked,
    changes,
    confirmed,
    given,
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

PATH = "/admin/v1/master-keys"


@click.group("master-key")
@on_server
def master_key() -> None:
    """Tokens that do not expire, in the built-in project.

    \b
    Example:
      llm-proxy manage master-key create --name backend
    """


def _show(found: Mapping[str, Any], json: bool) -> None:
    """For people, words stand where an absence means much; a new secret stands apart."""
    facts = {**shown_limits(found), "allowed_models": found["allowed_models"] or "all"}
    show(found if json else {name: value for name, value in facts.items() if name != "key"}, json)
    if "key" in found and not json:
        show_secret(found["key"])


@master_key.command("list")
@most
@as_json
@on_server
def list_(limit: int, json: bool) -> None:
    """List master keys, by id.

    \b
    Example:
      llm-proxy manage master-key list
    """
    show_list(listed_as(PATH, "master_keys", limit), _row, json)


def _row(found: Mapping[str, Any]) -> Mapping[str, object]:
    return {
        "id": found["id"],
        "name": found["name"],
        "key": found["key_preview"],
        "enabled": found["is_enabled"],
        "requests": found["request_count"],
        "last used": found["last_used_at"],
    }


@master_key.command()
@click.argument("id")
@as_json
@on_server
def get(id: str, json: bool) -> None:
    """Show one master key, without its secret.

    \b
    Example:
      llm-proxy manage master-key get KEY_ID
    """
    _show(call("GET", f"{PATH}/{asked(id)}"), json)


@master_key.command()
@click.option("--name", required=True, help="A name, to recognise it by.")
@click.option("--id", help="Its id, of letters, digits and . _ ~ -.  [default: a UUID]")
@click.option(
    "--key", metavar="KEY", help="The secret, 16 characters or more; - reads it from standard input.  [default: a new one]"
)
@some_models
@limits
@as_json
@on_server
def create(key: str | None, models: tuple[str, ...], json: bool, **rest: Any) -> None:
    """Make a master key. A secret that was made with it is shown this one time.

    \b
    Examples:
      llm-proxy manage master-key create --name backend --rate-limit-per-minute 600
      llm-proxy manage master-key create --name old-clients --key - < old.key
    """
    made = call("POST", PATH, given(key=secret_from(key, "Key"), **rest) | allowed(models))
    # Who brought the secret has it.
    _show({name: value for name, value in made.items() if name != "key"} if key else made, json)


@master_key.command()
@click.argument("id")
@click.option("--name", help="A new name.")
@other_models
@limits
@as_json
@on_server
def update(id: str, models: tuple[str, ...], all_models: bool, json: bool, **rest: Any) -> None:
    """Change a master key.

    \b
    Example:
      llm-proxy manage master-key update KEY_ID --rate-limit default --model 'gpt-4o*'
    """
    body = changes(given(**rest) | allowed(models, all_models))
    _show(call("PUT", f"{PATH}/{asked(id)}", body), json)


@master_key.command()
@click.argument("id")
@click.option("--grace", metavar="SECONDS", type=click.IntRange(0), default=0, show_default=True, help="For the old secret.")
@as_json
@on_server
def rotate(id: str, grace: int, json: bool) -> None:
    """Give a master key a new secret, which is shown this one time.

    \b
    Example:
      llm-proxy manage master-key rotate KEY_ID --grace 3600
    """
    _show(call("POST", f"{PATH}/{asked(id)}/rotate", {"grace_seconds": grace}), json)


@master_key.command()
@click.argument("id")
@confirmed("The master key is removed for good, and calls that run with it end at once. Go on?")
@on_server
def delete(id: str) -> None:
    """Remove a master key. Its id and its secret may be used again.

    \b
    Example:
      llm-proxy manage master-key delete KEY_ID --yes
    """
    call("DELETE", f"{PATH}/{asked(id)}")
    click.echo(f"Removed {id}.")


@master_key.command()
@click.argument("id")
@as_json
@on_server
def enable(id: str, json: bool) -> None:
    """Let a master key be used again.

    \b
    Example:
      llm-proxy manage master-key enable KEY_ID
    """
    _set(id, True, json)


@master_key.command()
@click.argument("id")
@confirmed("Calls that run with this master key end at once. Go on?")
@as_json
@on_server
def disable(id: str, json: bool) -> None:
    """Let a master key be used no more. Calls that run with it end within a second.

    \b
    Example:
      llm-proxy manage master-key disable KEY_ID --yes
    """
    _set(id, False, json)


def _set(id: str, is_enabled: bool, json: bool) -> None:
    _show(call("PATCH", f"{PATH}/{asked(id)}/status", {"is_enabled": is_enabled}), json)
