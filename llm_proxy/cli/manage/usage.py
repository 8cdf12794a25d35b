"""`llm-proxy manage usage`."""

from collections.abc import Mapping
from typing import Any

import click

from llm_proxy.cli.api import listed, text
from llm_proxy.cli.manage.arguments import given, most, on_server
from llm_proxy.cli.output import as_json, show_list

GROUPINGS = ("project", "provider", "model", "hour", "day")


@click.command()
@click.option("--by", "group_by", type=click.Choice(GROUPINGS), default="project", show_default=True, help="What to sum by.")
@click.option("--since", metavar="TIME", help="From a time such as 2026-11-21T00:00:00Z.  [default: a day before the end]")
@click.option("--until", metavar="TIME", help="Before a time.  [default: now]")
@click.option("--project", "project_id", metavar="ID", help="Only the calls of this project.")
@click.option("--provider", metavar="ID", help="Only those that went to this provider.")
@click.option("--model", metavar="NAME", help="Only those that asked for this model.")
@click.option("--csv", is_flag=True, help="CSV, for spreadsheets; all of it, whatever --limit says.")
@most
@as_json
@on_server
def usage(since: str | None, until: str | None, csv: bool, limit: int, json: bool, **filters: str | None) -> None:
    """Sum up calls, errors, cache hits, tokens and times. Hours and days are those of UTC.

    \b
    Examples:
      llm-proxy manage usage --by model
      llm-proxy manage usage --by day --since 2026-11-01T00:00:00Z --project PROJECT_ID
      llm-proxy manage usage --by hour --csv > usage.csv
    """
    if csv and json:
        raise click.UsageError("--csv and --json are two forms. Give one of them.")
    params = given(start_time=since, end_time=until, **filters)
    if csv:
        # The lines end as RFC 4180 wants it, which a text stream might change.
        click.echo(text("/manage/usage", {**params, "format": "csv"}).encode(), nl=False)
        return
    show_list(listed("/manage/usage", params, limit), _row, json)


def _row(found: Mapping[str, Any]) -> Mapping[str, object]:
    """For people, a name in place of an id where there is one, and short words."""
    key = next(iter(found))
    return {
        key.removesuffix("_id"): found.get("project_name") or found[key],
        "calls": found["calls"],
        "errors": found["errors"],
        "cached": found["cache_hits"],
        "prompt": found["prompt_tokens"],
        "completion": found["completion_tokens"],
        "p50 ms": found["latency_p50_ms"],
        "p95 ms": found["latency_p95_ms"],
        "ours ms": found["overhead_ms"],
    }
