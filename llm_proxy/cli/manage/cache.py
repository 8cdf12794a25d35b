"""`llm-proxy manage cache`."""

from collections.abc import Mapping
from typing import Any

import click

from llm_proxy.cli import options
from llm_proxy.cli.api import call
from llm_proxy.cli.manage.arguments import given, on_server
from llm_proxy.cli.output import as_json, echo_json, echo_table, show


@click.group()
@on_server
def cache() -> None:
    """The answers that are kept: figures, purges.

    \b
    Examples:
      llm-proxy manage cache stats
      llm-proxy manage cache purge --prefix /v1/models
    """


@cache.command()
@as_json
@on_server
def stats(json: bool) -> None:
    """Show what the running server keeps, and how often that answered.

    \b
    Example:
      llm-proxy manage cache stats
    """
    if "local" in options.said() and options.settings().http_cache_backend == "in-memory":
        raise click.UsageError("What is in memory is the running server's to know. Leave --local out.")
    found = call("GET", "/manage/cache")
    if json:
        echo_json(found)
        return
    show({name: value for name, value in found.items() if name != "projects"}, json)
    if found["projects"]:
        click.echo()
        rows = [_row(project) for project in found["projects"]]
        echo_table(list(rows[0]), [list(row.values()) for row in rows])


def _row(project: Mapping[str, Any]) -> Mapping[str, object]:
    return {**project, "project_id": project["project_id"] or "(shared)"}


@cache.command()
@click.option("--key", help="The answer with this key, from its Cache-Status header.")
@click.option("--project", "project_id", help="What is this project's.")
@click.option("--method", help="With --path or --project: only answers to this method.")
@click.option("--path", help="What is under this path.")
@click.option("--prefix", help="What is under all paths that begin so.")
@click.option("--all", "everything", is_flag=True, help="All of it.")
@as_json
@on_server
def purge(
    key: str | None,
    project_id: str | None,
    method: str | None,
    path: str | None,
    prefix: str | None,
    everything: bool,
    json: bool,
) -> None:
    """Forget kept answers, in every running server.

    \b
    Examples:
      llm-proxy manage cache purge --path /v1/models --project PROJECT_ID
      llm-proxy manage cache purge --all
    """
    named = given(key=key, project_id=project_id, method=method, path=path, prefix=prefix, all=everything or None)
    if not named:
        raise click.UsageError("Say what to purge: --key, --project, --path, --prefix or --all.")
    done = call("POST", "/manage/cache/purge", named)
    if json:
        echo_json(done)
    elif "local" in options.said():
        click.echo("Purged; running servers notice within a second.")
    else:
        click.echo(f"Purged: {done['deleted']} here; other instances follow within a second.")
