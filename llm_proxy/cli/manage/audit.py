"""`llm-proxy manage audit`."""

import click

from llm_proxy.audit import EXACT_FILTERS
from llm_proxy.cli.api import run
from llm_proxy.cli.manage.arguments import as_json, given, most
from llm_proxy.cli.output import echo_json, echo_table

COLUMNS = ("timestamp", "action", "actor", "outcome", "reason", "project_id", "token_id", "client_ip")


@click.command()
@click.option(
    "--where", "filters", multiple=True, metavar="NAME=VALUE", help=f"Only these; NAME is one of {', '.join(EXACT_FILTERS)}."
)
@click.option("--search", help="Only those with this text in action, actor, path, reason or details.")
@click.option("--since", metavar="TIME", help="Only those at or after a time such as 2026-11-21T00:00:00Z.")
@click.option("--until", metavar="TIME", help="Only those before a time.")
@most
@as_json
def audit(filters: tuple[str, ...], search: str | None, since: str | None, until: str | None, limit: int, json: bool) -> None:
    """Read the audit log, newest first.

    \b
    llm-proxy manage audit --where action=token.create --since 2026-11-21T00:00:00Z
    llm-proxy manage audit --where outcome=denied --json
    """
    params = given(search=search, start_time=since, end_time=until)
    for text in filters:
        name, mark, value = text.partition("=")
        if not mark or name not in EXACT_FILTERS:
            raise click.UsageError(f"--where takes NAME=VALUE with a NAME of {', '.join(EXACT_FILTERS)}.")
        params[name] = value
    found = run(lambda api: api.everything("/manage/audit", params, limit))
    echo_json(found) if json else echo_table(COLUMNS, [[one[name] for name in COLUMNS] for one in found])
