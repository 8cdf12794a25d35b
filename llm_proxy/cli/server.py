"""`llm-proxy server`: both sites."""

import asyncio
import os
import signal

import click
import uvloop

from llm_proxy.cli import options
from llm_proxy.context import open_context
from llm_proxy.server import serve
from llm_proxy.settings import Settings, check_serving


@click.command()
@options.addr
@options.admin_addr
@options.no_admin
@options.database
@options.profiles
@options.log_level
@options.env_file
def command() -> None:
    """Serve the proxy and the admin site, until SIGTERM or Ctrl-C.

    \b
    Examples:
      llm-proxy server
      llm-proxy server --addr 127.0.0.1:9000 --db /var/lib/llm-proxy/llm-proxy.db
    """
    settings = options.settings()
    check_serving(settings)
    uvloop.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    # A start may wait, for another one that migrates, and as process 1 of a container would not be ended by a signal that nobody
    # handles. Sites that are served put their orderly stop in its place.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, os._exit, 0)
    async with open_context(settings) as context:
        await serve(context)
