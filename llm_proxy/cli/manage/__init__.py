"""`llm-proxy manage`: projects, tokens, the audit log."""

import click

from llm_proxy.cli import options
from llm_proxy.cli.manage.audit import audit
from llm_proxy.cli.manage.projects import project
from llm_proxy.cli.manage.tokens import token


@click.group()
@click.option("--api-url", metavar="URL", help="The running server.  [default: LISTEN_ADDR of the settings]")
@click.option("--local", is_flag=True, help="Work on the database itself; no server needs to run.")
@options.database
@options.env_file
@click.pass_context
def command(ctx: click.Context, api_url: str | None, local: bool, db: str | None, env: str | None) -> None:
    """Manage projects and tokens, read the audit log.

    \b
    llm-proxy manage project create --name web --api-key -
    llm-proxy manage token create --project PROJECT_ID --minutes 60 --max-requests 100
    llm-proxy manage --local token list --status active
    """
    if db and not local:
        raise click.UsageError("--db is for --local; a running server knows its own database.")
    ctx.obj = {"api_url": api_url, "local": local, "db": db, "env": env}


command.add_command(project)
command.add_command(token)
command.add_command(audit)
