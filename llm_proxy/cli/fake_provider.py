"""`llm-proxy fake-provider`: a provider to try things on."""

import asyncio
import signal
from typing import Any

import click
import uvloop

from llm_proxy import fake_provider
from llm_proxy.cli.api import reason_of
from llm_proxy.cli.options import address
from llm_proxy.errors import StartError
from llm_proxy.fake_provider import Faults


@click.command()
@click.option("--addr", metavar="HOST:PORT", type=address, default="127.0.0.1:8090", show_default=True, help="Where it listens.")
@click.option("--require-key", metavar="KEY", help="Refuse every other credential, as a real provider does.")
@click.option("--delay", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Wait before each answer.")
@click.option("--status", type=click.IntRange(0, 599), default=0, metavar="CODE", help="Answer with this error.")
@click.option("--retry-after", default="", metavar="VALUE", help="Retry-After of errors.")
@click.option("--cut", type=click.IntRange(0), metavar="N", help="Break each answer off after N chunks.")
@click.option("--stall", type=click.IntRange(0), metavar="N", help="Fall silent after N chunks.")
@click.option("--drip", type=click.FloatRange(0), default=0.0, metavar="SECONDS", help="Wait between chunks.")
@click.option("--words", type=click.IntRange(0), default=0, metavar="N", help="How long answers are.")
@click.option("--bad-json", is_flag=True, help="Answer with broken JSON.")
@click.option("--gzip", is_flag=True, help="Compress answers where the client accepts it.")
def command(addr: str, require_key: str | None, **faults: Any) -> None:
    """Serve a provider that speaks OpenAI's and Anthropic's dialects. Headers X-Fake-* choose faults for one request.

    \b
    Examples:
      llm-proxy fake-provider --drip 0.1 --words 100
      curl -H 'X-Fake-Status: 529' http://127.0.0.1:8090/v1/models
    """
    host, _, port = addr.rpartition(":")
    try:
        uvloop.run(_serve(host.strip("[]") or "0.0.0.0", int(port), require_key, Faults(**faults)))
    except OSError as error:
        raise StartError(f"--addr {addr}: cannot listen there: {reason_of(error)}.") from error


async def _serve(host: str, port: int, require_key: str | None, faults: Faults) -> None:
    stop = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    async with fake_provider.running(host, port, require_key=require_key, faults=faults) as url:
        click.echo(f"The fake provider listens on {url}")
        await stop.wait()
