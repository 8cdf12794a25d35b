"""`llm-proxy server`: both sites."""

import dataclasses

import click
import uvloop

from llm_proxy.cli import options
from llm_proxy.context import open_context
from llm_proxy.server import serve
from llm_proxy.settings import Settings, check_serving


@click.command()
@click.option("--addr", metavar="HOST:PORT", help="Where the proxy listens (LISTEN_ADDR).")
@click.option("--admin-addr", metavar="HOST:PORT", help="Where the admin site listens (ADMIN_UI_LISTEN_ADDR).")
@click.option("--no-admin", is_flag=True, help="Do not serve the admin site.")
@options.database
@options.profiles
@options.log_level
@options.env_file
def command(
    addr: str | None,
    admin_addr: str | None,
    no_admin: bool,
    db: str | None,
    config: str | None,
    log_level: str | None,
    env: str | None,
) -> None:
    """Serve the proxy and the admin site, until SIGTERM or Ctrl-C.

    \b
    llm-proxy server
    llm-proxy server --addr 127.0.0.1:9000 --db /var/lib/llm-proxy/llm-proxy.db
    """
    settings = options.settings_from(env, addr=addr, admin_addr=admin_addr, db=db, config=config, log_level=log_level)
    if no_admin:
        settings = dataclasses.replace(settings, admin_ui_enabled=False)
    check_serving(settings)
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    async with open_context(settings) as context:
        await serve(context)
