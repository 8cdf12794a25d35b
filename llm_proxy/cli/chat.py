"""`llm-proxy chat`: a chat in the terminal, through the proxy."""

import asyncio
import sys
from collections.abc import Mapping

import aiohttp
import click
from click.core import ParameterSource

from llm_proxy.chats import OPENAI, Answer, Messages, problem_of
from llm_proxy.cli import options
from llm_proxy.cli.api import reason_of
from llm_proxy.cli.output import printable
from llm_proxy.cli.quickstart import kept_token
from llm_proxy.errors import StartError
from llm_proxy.tokens import PREFIX


def never_a_providers_key(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:
    """What OPENAI_API_KEY holds is most often OpenAI's own key, and none of the proxy's business."""
    from_environment = ctx.get_parameter_source("token") is ParameterSource.ENVIRONMENT
    return None if value and from_environment and not value.startswith(PREFIX) else value


@click.command()
@click.option("--url", metavar="URL", type=options.site_url, help="The proxy.  [default: LISTEN_ADDR of the settings]")
@click.option(
    "--token",
    envvar="OPENAI_API_KEY",
    callback=never_a_providers_key,
    help="A token of the proxy.  [default: OPENAI_API_KEY where it is one, else the quickstart's]",
)
@click.option("--model", default="gpt-4o-mini", show_default=True, help="The model to ask.")
@click.option("--system", metavar="TEXT", help="Instructions for the model.")
@options.env_file
@click.argument("question", nargs=-1)
def command(url: str | None, token: str | None, model: str, system: str | None, question: tuple[str, ...]) -> None:
    """Chat through the proxy, streaming. With a question, answer it and end; without, ask until an empty line.

    \b
    Examples:
      llm-proxy chat
      llm-proxy chat --model gpt-4o "What is a withering token?"
    """
    token = token or kept_token()
    if not token:
        raise click.UsageError("Give a token of the proxy with --token. `llm-proxy manage token create` makes one.")
    url = url or options.own_address(options.settings())
    messages: list[Mapping[str, str]] = []
    for asked in [" ".join(question)] if question else iter(_asked, ""):
        messages.append({"role": "user", "content": asked})
        answer = asyncio.run(_answer(url, token, model, system or "", messages))
        messages.append({"role": "assistant", "content": answer})


def _asked() -> str:
    """The next line, empty at the end."""
    if sys.stdin.isatty():
        import readline  # noqa: F401  (makes the arrow keys work)
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except (EOFError, KeyboardInterrupt):
        return ""


async def _answer(url: str, token: str, model: str, system: str, messages: Messages) -> str:
    """Print the answer as it comes; returns the whole of it."""
    timeout = aiohttp.ClientTimeout(total=None, sock_connect=10)
    async with aiohttp.ClientSession(headers=OPENAI.headers(token), timeout=timeout) as session:
        try:
            reply = await session.post(url + OPENAI.path(model), json=OPENAI.body(model, system, messages))
        except (aiohttp.ClientError, TimeoutError) as error:
            raise StartError(f"No answer from the proxy at {url}: {reason_of(error)}. --url says where it is.") from error
        async with reply:
            if reply.status != 200:
                problem = problem_of(await reply.read())
                raise StartError(problem.message if problem else f"{url} answered with status {reply.status}.")
            return await _printed(reply.content)


async def _printed(stream: aiohttp.StreamReader) -> str:
    whole, answer = "", Answer(OPENAI)
    try:
        async for chunk in stream.iter_any():
            piece = answer.feed(chunk)
            whole += piece
            click.echo("\n".join(map(printable, piece.split("\n"))), nl=False)
            if answer.problem:
                raise StartError(f"The answer broke off: {answer.problem.message}")
    except aiohttp.ClientError as error:
        raise StartError(f"The answer broke off: {reason_of(error)}") from error
    finally:
        click.echo()
    return whole
