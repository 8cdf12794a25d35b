"""`llm-proxy dispatcher`: delivery of the events of all instances."""

import asyncio

import click
import uvloop

from llm_proxy.cli import options
from llm_proxy.errors import SettingsError
from llm_proxy.settings import SINKS, Settings, check_sinks


@click.command()
@click.option("--service", type=click.Choice(SINKS), required=True, help="The sink to deliver to.")
@click.option(
    "--addr",
    metavar="HOST:PORT",
    type=options.address,
    default="127.0.0.1:8082",
    show_default=True,
    help="Where /health, /ready and /metrics are served.",
)
@click.option("--remove", is_flag=True, help="Remove the sink's group: events no longer wait for it. Stop its dispatchers first.")
@click.option("--yes", is_flag=True, help="Do not ask before events are given up.")
@options.log_level
@options.env_file
def command(service: str, addr: str, remove: bool, yes: bool) -> None:
    """Deliver events from Redis to one sink, until SIGTERM or Ctrl-C. This is for LLM_PROXY_EVENT_BUS=redis-streams. Several
    may run for one sink; each delivers in order what it reads.

    \b
    Examples:
      llm-proxy dispatcher --service lunary
      llm-proxy dispatcher --service file --addr 127.0.0.1:9100
      llm-proxy dispatcher --service helicone --remove
    """
    settings = options.settings()
    if not settings.redis_url:
        raise SettingsError("REDIS_URL is not set, and the dispatcher reads events from Redis. Set it as the servers have it.")
    if remove:
        return asyncio.run(_remove(settings, service, yes))
    check_sinks(settings, (service,))
    from llm_proxy.dispatcher import serve

    return uvloop.run(serve(settings, service, addr))


async def _remove(settings: Settings, service: str, yes: bool) -> None:
    from llm_proxy.events.stream import open_stream

    async with open_stream(settings) as stream:
        name = stream.group_of(service)
        found = [facts for facts in await stream.groups() if facts["name"].decode() == name]
        if not found:
            return click.echo(f"There is no group {name} on {stream.key}.")
        lag = found[0].get("lag")
        waiting = "An unknown number of" if lag is None else lag + found[0]["pending"]
        if waiting and not yes:
            click.confirm(f"{waiting} events were not delivered to {service} yet, and never will be. Go on?", abort=True)
        await stream.remove(service)
        return click.echo(f"Removed the group {name}; {str(waiting).lower()} events were not delivered.")
