"""`llm-proxy manage project`."""

from typing import Any

import click

from llm_proxy.cli.api import run
from llm_proxy.cli.manage.arguments import as_json, asked, confirmed, given, most, secret_from
from llm_proxy.cli.output import echo_json, echo_one, echo_table

COLUMNS = ("id", "name", "is_active", "created_at")


@click.group()
def project() -> None:
    """The tenants: each owns tokens, and its own provider keys."""


@project.command("list")
@click.option("--name", help="Only the one of this name.")
@click.option("--active/--inactive", default=None, help="Only these.")
@most
@as_json
def list_(name: str | None, active: bool | None, limit: int, json: bool) -> None:
    """List projects, newest first."""
    params = given(name=name, is_active=None if active is None else str(active).lower())
    found = run(lambda api: api.everything("/manage/projects", params, limit))
    echo_json(found) if json else echo_table(COLUMNS, [[one[name] for name in COLUMNS] for one in found])


@project.command()
@click.argument("id")
@as_json
def get(id: str, json: bool) -> None:
    """Show one project."""
    _show(run(lambda api: api.call("GET", f"/manage/projects/{asked(id)}")), json)


@project.command()
@click.option("--name", required=True, help="Its name, which nothing else has.")
@click.option(
    "--api-key", metavar="KEY", help="Its provider's API key; - reads it from standard input, where no process list shows it."
)
@click.option("--provider-type", metavar="PROFILE", help="The provider's profile, such as openai or anthropic.")
@click.option("--api-base", metavar="URL", help="The provider's base URL, where it is not the profile's.")
@as_json
def create(name: str, api_key: str | None, provider_type: str | None, api_base: str | None, json: bool) -> None:
    """Make a project."""
    body = given(name=name, api_key=secret_from(api_key), provider_type=provider_type, api_base=api_base)
    _show(run(lambda api: api.call("POST", "/manage/projects", json=body)), json)


@project.command()
@click.argument("id")
@click.option("--name", help="A new name.")
@click.option("--api-key", metavar="KEY", help="A new API key for its only provider; - reads it from standard input.")
@click.option("--revoke-tokens", is_flag=True, help="Revoke all its tokens as well.")
@as_json
def update(id: str, name: str | None, api_key: str | None, revoke_tokens: bool, json: bool) -> None:
    """Change a project."""
    body: dict[str, Any] = given(name=name, api_key=secret_from(api_key), revoke_tokens=revoke_tokens or None)
    if not body:
        raise click.UsageError("Say what to change: --name, --api-key or --revoke-tokens.")
    _show(run(lambda api: api.call("PATCH", f"/manage/projects/{asked(id)}", json=body)), json)


@project.command()
@click.argument("id")
@confirmed("Nothing is served for the project any more, and all its tokens are revoked for good. Go on?")
def delete(id: str) -> None:
    """Deactivate a project and revoke its tokens; its data stays."""
    run(lambda api: api.call("DELETE", f"/manage/projects/{asked(id)}"))
    click.echo(f"Deactivated {id}; its tokens are revoked.")


@project.command()
@click.argument("id")
@as_json
def activate(id: str, json: bool) -> None:
    """Serve a project again; tokens that were revoked stay so."""
    _show(run(lambda api: api.call("PATCH", f"/manage/projects/{asked(id)}", json={"is_active": True})), json)


@project.command()
@click.argument("id")
@confirmed("Nothing is served for the project until it is activated again. Go on?")
@as_json
def deactivate(id: str, json: bool) -> None:
    """Stop serving a project; its tokens stay, and work again when it is activated."""
    _show(run(lambda api: api.call("PATCH", f"/manage/projects/{asked(id)}", json={"is_active": False})), json)


def _show(resource: dict[str, Any], json: bool) -> None:
    echo_json(resource) if json else echo_one(resource)
