"""`llm-proxy admin`: the admin site alone."""

import dataclasses

import click
import uvloop

from llm_proxy.cli import options
from llm_proxy.context import open_context
from llm_proxy.server import serve_admin
from llm_proxy.settings import Settings, check_serving


@click.command()
@options.admin_addr
@options.database
@options.profiles
@options.management_token
@options.log_level
@options.env_file
def command() -> None:
    """Serve the admin site alone, on the database of a server that runs elsewhere, or with --no-admin.

    Live tail, running streams and the state of breakers are the server's; pages say so.

    \b
    Examples:
      llm-proxy admin
      llm-proxy admin --admin-addr 127.0.0.1:9001 --db /var/lib/llm-proxy/llm-proxy.db
    """
    # Events are the server's: with a log of its own, this process would deliver what a server left that is down.
    settings = dataclasses.replace(options.settings(), observability_enabled=False)
    check_serving(settings)
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    async with open_context(settings) as context:
        context.alone = True
        await serve_admin(context)
