"""`llm-proxy manage project`."""

from collections.abc import Mapping
from typing import Any

import click

from llm_proxy.cli.api import call, listed
from llm_proxy.cli.manage.arguments import asked, changes, confirmed, given, limits, most, on_server, secret_from, shown_limits
from llm_proxy.cli.output import as_json, show, show_list


@click.group()
@on_server
def project() -> None:
    """The tenants: each owns tokens, and its own provider keys.

    \b
    Example:
      llm-proxy manage project create --name web --api-key -
    """


@project.command("list")
@click.option("--name", help="Only the one of this name.")
@click.option("--active/--inactive", default=None, help="Only these.")
@most
@as_json
@on_server
def list_(name: str | None, active: bool | None, limit: int, json: bool) -> None:
    """List projects, newest first.

    \b
    Example:
      llm-proxy manage project list --active
    """
    params = given(name=name, is_active=None if active is None else str(active).lower())
    show_list(listed("/manage/projects", params, limit), _row, json)


def _row(project: Mapping[str, Any]) -> Mapping[str, object]:
    return {"id": project["id"], "name": project["name"], "active": project["is_active"], "created": project["created_at"]}


@project.command()
@click.argument("id")
@as_json
@on_server
def get(id: str, json: bool) -> None:
    """Show one project.

    \b
    Example:
      llm-proxy manage project get PROJECT_ID --json
    """
    _show(call("GET", f"/manage/projects/{asked(id)}"), json)


def _show(project: Mapping[str, Any], json: bool) -> None:
    show(project if json else shown_limits(project), json)


@project.command()
@click.option("--name", required=True, help="Its name, which no other project has.")
@click.option(
    "--api-key", metavar="KEY", help="Its provider's API key; - reads it from standard input, where no process list shows it."
)
@click.option("--provider-type", metavar="PROFILE", help="The provider's profile, such as openai or anthropic.")
@click.option("--api-base", metavar="URL", help="The provider's base URL, where it is not the profile's.")
@limits
@as_json
@on_server
def create(name: str, api_key: str | None, json: bool, **rest: Any) -> None:
    """Make a project. Its limits are shared by its tokens.

    \b
    Examples:
      llm-proxy manage project create --name web --api-key - < openai.key
      llm-proxy manage project create --name lab --provider-type anthropic --api-key - --rate-limit-per-minute 600
    """
    body = given(name=name, api_key=secret_from(api_key), **rest)
    _show(call("POST", "/manage/projects", body), json)


@project.command()
@click.argument("id")
@click.option("--name", help="A new name.")
@click.option("--api-key", metavar="KEY", help="A new API key for its only provider; - reads it from standard input.")
@click.option("--revoke-tokens", is_flag=True, default=None, help="Revoke all its tokens as well.")
@limits
@as_json
@on_server
def update(id: str, api_key: str | None, json: bool, **rest: Any) -> None:
    """Change a project.

    \b
    Examples:
      llm-proxy manage project update PROJECT_ID --api-key - < new.key
      llm-proxy manage project update PROJECT_ID --revoke-tokens
    """
    _change(id, changes(given(api_key=secret_from(api_key), **rest)), json)


def _change(id: str, body: Mapping[str, Any], json: bool) -> None:
    _show(call("PATCH", f"/manage/projects/{asked(id)}", body), json)


@project.command()
@click.argument("id")
@confirmed("Nothing is served for the project any more, and all its tokens are revoked for good. Go on?")
@on_server
def delete(id: str) -> None:
    """Deactivate a project and revoke its tokens. Its data stays.

    \b
    Example:
      llm-proxy manage project delete PROJECT_ID --yes
    """
    call("DELETE", f"/manage/projects/{asked(id)}")
    click.echo(f"Deactivated {id}; its tokens are revoked.")


@project.command()
@click.argument("id")
@as_json
@on_server
def activate(id: str, json: bool) -> None:
    """Serve a project again. Tokens that were revoked stay so.

    \b
    Example:
      llm-proxy manage project activate PROJECT_ID
    """
    _change(id, {"is_active": True}, json)


@project.command()
@click.argument("id")
@confirmed("Nothing is served for the project until it is activated again. Go on?")
@as_json
@on_server
def deactivate(id: str, json: bool) -> None:
    """Stop serving a project. Its tokens stay, and work again when it is activated.

    \b
    Example:
      llm-proxy manage project deactivate PROJECT_ID
    """
    _change(id, {"is_active": False}, json)
