"""`llm-proxy health`: a question to a running server, for what watches over it."""

import http.client
import os
from urllib.parse import urlsplit

import click
import orjson

from llm_proxy.cli import options
from llm_proxy.errors import StartError
from llm_proxy.settings import Settings

SECONDS = 4.0


@click.command()
@click.option("--ready", is_flag=True, help="Ask whether calls may be sent there: not while it drains or lacks its database.")
@options.addr
@options.env_file
def command(ready: bool) -> None:
    """Ask a running server, or a dispatcher, whether it is well. Exit 0 when it is, 1 when it is not or says nothing for four
    seconds. No secret is needed.

    \b
    Examples:
      llm-proxy health
      llm-proxy health --ready
      llm-proxy health --addr 127.0.0.1:8082
    """
    settings = options.settings()
    url = options.own_address(settings) + ("/ready" if ready else "/health")
    status, raw = _answer(url, settings)
    try:
        said = orjson.loads(raw)
        if status == 200:
            return click.echo(said["status"])
        reason = ", ".join(said["missing"]) if "missing" in said else said["error"]["message"]
    except (ValueError, LookupError, TypeError) as error:
        raise StartError(f"What answers at {url}, with status {status}, is no LLM Proxy.") from error
    raise StartError(f"Not well, says {url}: {reason}")


def _answer(url: str, settings: Settings) -> tuple[int, bytes]:
    """Status and body of what is answered there. aiohttp would take longer to import than all of the rest.

    Raises:
        StartError: there is no answer.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=SECONDS)
    try:
        # Of the names that are answered, ours need not be one.
        connection.request("GET", parts.path, headers={"Host": settings.allowed_hosts[0]} if settings.allowed_hosts else {})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        reason = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error) or type(error).__name__
        raise StartError(f"No answer from {url}: {reason}. LISTEN_ADDR or --addr says where it is.") from error
    finally:
        connection.close()
