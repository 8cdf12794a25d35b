"""`llm-proxy manage provider`."""

from collections.abc import Mapping
from typing import Any

import click

from llm_proxy.cli.api import call, listed, listed_as
from llm_proxy.cli.manage.arguments import asked, changes, confirmed, given, json_value, most, on_server, secret_from
from llm_proxy.cli.output import as_json, show, show_list

of_project = click.option("--project", "project_id", metavar="ID", help="A project's own provider, not one of the shared pool.")
_FIELDS = (
    click.option("--name", help="Its name."),
    click.option("--provider-type", metavar="PROFILE", help="Its profile, such as openai or anthropic."),
    click.option("--api-base", metavar="URL", help="Its base URL, where it is not the profile's."),
    click.option("--weight", metavar="N", type=click.IntRange(0), help="Its share; 0: only when nothing else is left."),
    click.option("--model-mapping", metavar="JSON", type=json_value, help='Its names of models: {"gpt-4*": "acme-4*"}.'),
    click.option("--provider-params", metavar="JSON", type=json_value, help="Facts for its profile."),
)


def fields(function: Any) -> Any:
    """The options that both making and changing take."""
    for option in reversed(_FIELDS):
        function = option(function)
    return function


def _path(project_id: str | None, id: str | None = None) -> str:
    base = f"/manage/projects/{asked(project_id)}/providers" if project_id else "/admin/v1/providers"
    return base if id is None else f"{base}/{asked(id)}"


def _change(project_id: str | None, id: str, body: Mapping[str, Any], json: bool) -> None:
    show(call("PATCH" if project_id else "PUT", _path(project_id, id), body), json)


@click.group()
@on_server
def provider() -> None:
    """Where calls go: the shared pool.

    Projects without a provider of their own use it. With --project, these are a project's own.

    \b
    Example:
      llm-proxy manage provider create --id openai-1 --api-key -
    """


@provider.command("list")
@of_project
@most
@as_json
@on_server
def list_(project_id: str | None, limit: int, json: bool) -> None:
    """List the providers of the shared pool, or of a project, by id.

    \b
    Example:
      llm-proxy manage provider list --project PROJECT_ID
    """
    found = listed(_path(project_id), {}, limit) if project_id else listed_as(_path(None), "providers", limit)
    show_list(found, _row, json)


def _row(provider: Mapping[str, Any]) -> Mapping[str, object]:
    return {
        "id": provider["id"],
        "name": provider["name"],
        "type": provider["provider_type"],
        "weight": provider["weight"],
        "enabled": provider["is_enabled"],
        "problem": provider["problem"],
    }


@provider.command()
@click.argument("id")
@of_project
@as_json
@on_server
def get(id: str, project_id: str | None, json: bool) -> None:
    """Show one provider. Its key is never shown.

    \b
    Example:
      llm-proxy manage provider get openai-1
    """
    show(call("GET", _path(project_id, id)), json)


@provider.command()
@of_project
@click.option("--id", help="Its id, of letters, digits and . _ ~ -.  [default: a UUID]")
@click.option(
    "--api-key", metavar="KEY", required=True, help="Its API key; - reads it from standard input, where no process list shows it."
)
@fields
@as_json
@on_server
def create(project_id: str | None, api_key: str, json: bool, **rest: Any) -> None:
    """Add a provider to the shared pool, or to a project. The next call may go there.

    \b
    Examples:
      llm-proxy manage provider create --id openai-1 --api-key - < openai.key
      llm-proxy manage provider create --provider-type custom --api-base https://llm.example.com --api-key - < key
      llm-proxy manage provider create --project PROJECT_ID --weight 3 --api-key - < key
    """
    show(call("POST", _path(project_id), given(api_key=secret_from(api_key), **rest)), json)


@provider.command()
@click.argument("id")
@of_project
@click.option("--api-key", metavar="KEY", help="A new API key; - reads it from standard input.")
@fields
@as_json
@on_server
def update(id: str, project_id: str | None, api_key: str | None, json: bool, **rest: Any) -> None:
    """Change a provider.

    \b
    Examples:
      llm-proxy manage provider update openai-1 --weight 0
      llm-proxy manage provider update openai-1 --model-mapping '{"gpt-4*": "acme-4*"}'
    """
    _change(project_id, id, changes(given(api_key=secret_from(api_key), **rest)), json)


@provider.command()
@click.argument("id")
@of_project
@confirmed("The provider and its key are removed for good. Go on?")
@on_server
def delete(id: str, project_id: str | None) -> None:
    """Remove a provider and its key. Calls under way go on.

    \b
    Example:
      llm-proxy manage provider delete openai-1 --yes
    """
    call("DELETE", _path(project_id, id))
    click.echo(f"Removed {id}.")


@provider.command()
@click.argument("id")
@of_project
@as_json
@on_server
def enable(id: str, project_id: str | None, json: bool) -> None:
    """Let calls go to a provider again.

    \b
    Example:
      llm-proxy manage provider enable openai-1
    """
    _change(project_id, id, {"is_enabled": True}, json)


@provider.command()
@click.argument("id")
@of_project
@as_json
@on_server
def disable(id: str, project_id: str | None, json: bool) -> None:
    """Let no more calls go to a provider. Calls under way go on.

    \b
    Example:
      llm-proxy manage provider disable openai-1
    """
    _change(project_id, id, {"is_enabled": False}, json)
