"""`llm-proxy chat`: a chat in the terminal, through the proxy."""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import click
import orjson

from llm_proxy.cli.quickstart import demo_token
from llm_proxy.errors import StartError


@click.command()
@click.option("--url", default="http://127.0.0.1:8080", show_default=True, help="The proxy.")
@click.option("--token", envvar="OPENAI_API_KEY", help="A token of the proxy.  [default: OPENAI_API_KEY, else the quickstart's]")
@click.option("--model", default="gpt-4o-mini", show_default=True, help="The model to ask.")
@click.option("--system", help="Instructions for the model.")
@click.argument("question", nargs=-1)
def command(url: str, token: str | None, model: str, system: str | None, question: tuple[str, ...]) -> None:
    """Chat through the proxy, streaming. With a question, answer it and end; without, ask until an empty line.

    \b
    llm-proxy chat
    llm-proxy chat --model gpt-4o "What is a withering token?"
    """
    token = token or demo_token()
    if not token:
        raise click.UsageError("Give a token of the proxy with --token. `llm-proxy manage token create` makes one.")
    messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_chat(url.rstrip("/"), token, model, messages, " ".join(question)))


async def _chat(url: str, token: str, model: str, messages: list[dict[str, str]], question: str) -> None:
    headers = {"Authorization": f"Bearer {token}"}
    async with aiohttp.ClientSession(headers=headers, timeout=aiohttp.ClientTimeout(total=None, sock_connect=10)) as session:
        once = bool(question)
        while question := question or await _asked():
            messages.append({"role": "user", "content": question})
            answer = ""
            async for piece in _answer(session, url, {"model": model, "messages": messages, "stream": True}):
                answer += piece
                click.echo(piece, nl=False)
            click.echo()
            messages.append({"role": "assistant", "content": answer})
            if once:
                return
            question = ""


async def _asked() -> str:
    if sys.stdin.isatty():
        click.secho("> ", fg="cyan", nl=False)
    return (await asyncio.to_thread(sys.stdin.readline)).strip()


async def _answer(session: aiohttp.ClientSession, url: str, body: dict[str, Any]) -> AsyncIterator[str]:
    try:
        async with session.post(f"{url}/v1/chat/completions", json=body) as reply:
            if reply.status != 200:
                raise StartError(_problem(reply.status, await reply.read()))
            async for line in reply.content:
                yield _piece(line)
    except aiohttp.ClientError as error:
        raise StartError(f"The answer broke off, or the proxy at {url} did not answer: {error}") from error


def _piece(line: bytes) -> str:
    """The text in a line of the stream."""
    data = line.removeprefix(b"data: ").strip()
    if not line.startswith(b"data: ") or data == b"[DONE]":
        return ""
    event = orjson.loads(data)
    if "error" in event:
        raise StartError(event["error"]["message"])
    return "".join(str(choice.get("delta", {}).get("content") or "") for choice in event.get("choices", []))


def _problem(status: int, body: bytes) -> str:
    try:
        return str(orjson.loads(body)["error"]["message"])
    except (ValueError, KeyError, TypeError):
        return f"The proxy answered {status}."
