"""`llm-proxy manage audit`."""

from collections.abc import Mapping
from typing import Any

import click

from llm_proxy.audit import EXACT_FILTERS
from llm_proxy.cli.api import listed
from llm_proxy.cli.manage.arguments import given, most, on_server
from llm_proxy.cli.output import as_json, show_list


@click.command()
@click.option(
    "--where", "filters", multiple=True, metavar="NAME=VALUE", help=f"Only these; NAME is one of {', '.join(EXACT_FILTERS)}."
)
@click.option("--search", metavar="TEXT", help="Only those with this text in action, actor, path, reason or details.")
@click.option("--since", metavar="TIME", help="Only those at or after a time such as 2026-11-21T00:00:00Z.")
@click.option("--until", metavar="TIME", help="Only those before a time.")
@most
@as_json
@on_server
def audit(filters: tuple[str, ...], search: str | None, since: str | None, until: str | None, limit: int, json: bool) -> None:
    """Read the audit log, newest first. --json shows all that is known of each event.

    \b
    Examples:
      llm-proxy manage audit --where action=token.create --since 2026-11-21T00:00:00Z
      llm-proxy manage audit --where outcome=denied --json
    """
    params = given(search=search, start_time=since, end_time=until)
    for text in filters:
        name, mark, value = text.partition("=")
        if not mark or name not in EXACT_FILTERS:
            raise click.UsageError(f"--where takes NAME=VALUE with a NAME of {', '.join(EXACT_FILTERS)}.")
        params[name] = value
    show_list(listed("/manage/audit", params, limit), _row, json)


def _row(event: Mapping[str, Any]) -> Mapping[str, object]:
    about = next((f"{kind} {event[f'{kind}_id']}" for kind in ("token", "project") if event[f"{kind}_id"]), None)
    return {
        "timestamp": event["timestamp"],
        "action": event["action"],
        "outcome": event["outcome"] + (f" ({event['reason']})" if event["reason"] else ""),
        "actor": event["actor"],
        "from": event["client_ip"],
        "about": about,
    }
