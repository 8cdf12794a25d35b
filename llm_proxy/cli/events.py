"""`llm-proxy events`: the log of events."""

import asyncio
import contextlib
import itertools
import pathlib
import re
import time
from collections import deque
from collections.abc import Mapping
from typing import Any

import click
import orjson

from llm_proxy.cli import options
from llm_proxy.cli.output import as_json, echo_json, echo_table, printable, show_list
from llm_proxy.clock import from_rfc3339, now_ms
from llm_proxy.errors import InvalidField, StartError
from llm_proxy.events import browsing
from llm_proxy.events.dead_letters import FILE, DeadLetters, Letter
from llm_proxy.events.statistics import shown_stream
from llm_proxy.events.stream import StreamState, open_stream
from llm_proxy.settings import SINKS, Settings, check_sinks, parse_duration

POLL_SECONDS = 0.2
LATEST = 2**53


@click.group()
@options.env_file
def command() -> None:
    """Read the log of events (EVENT_DIR), deliver it again. A server may run meanwhile; it is not disturbed.

    \b
    Examples:
      llm-proxy events tail --follow
      llm-proxy events replay --since 2h --sink lunary
    """


def _root(settings: Settings) -> pathlib.Path:
    root = pathlib.Path(settings.event_dir)
    if not root.is_dir():
        raise StartError(f"EVENT_DIR={root}: there is no such folder. A server makes it when it starts.")
    return root


class Moment(click.ParamType):  # type: ignore[type-arg]  # generic only in newer click
    """A time as RFC 3339, or as how long ago it was; becomes milliseconds."""

    name = "time"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """See click."""
        try:
            if re.fullmatch(r"[0-9.]+[a-z]+", str(value)):
                return now_ms() - int(parse_duration(value) * 1000)
            return from_rfc3339("time", value)
        except (ValueError, InvalidField):
            self.fail(f"{value!r} is not accepted. Give a time such as 2026-11-21T08:54:37Z, or how long ago: 30m, 2h, 1d.")


@command.command()
@options.env_file
@as_json
@click.option("--lines", "-n", default=10, show_default=True, type=click.IntRange(0), help="How many of the last events.")
@click.option("--follow", "-f", is_flag=True, help="Go on with those that come, until Ctrl-C.")
def tail(json: bool, lines: int, follow: bool) -> None:
    """Print the last events, a line for each.

    \b
    Examples:
      llm-proxy events tail -n 50
      llm-proxy events tail --follow --json
    """
    root = _root(options.settings())
    places: dict[pathlib.Path, browsing.Place] = {}
    last: list[dict[str, Any]] = []
    for folder in browsing.logs(root):
        read = deque(browsing.documents(folder), maxlen=max(lines, 1))
        if read:
            places[folder] = read[-1][1]
        last += [document for document, _ in read]
    for document in sorted(last, key=lambda document: str(document["started_at"]))[-lines:] if lines else []:
        _print(document, json)
    while follow:
        time.sleep(POLL_SECONDS)
        for folder in browsing.logs(root):
            for document, after in browsing.documents(folder, places.get(folder)):
                places[folder] = after
                _print(document, json)


def _print(event: Mapping[str, Any], json: bool) -> None:
    usage = event.get("usage") or {}
    facts = [event.get("method"), event.get("path"), event.get("status") or "-", event.get("outcome"), event.get("model") or "-"]
    line = f"{event['started_at']}  {'  '.join(map(str, facts))}  {event.get('duration') or 0:.3f}s"
    tokens = usage.get("total_tokens")
    click.echo(orjson.dumps(event) if json else printable(line + (f"  {tokens} tokens" if tokens else "")))


@command.command()
@options.env_file
@click.option("--since", type=Moment(), required=True, help="From then on: a time, or how long ago (30m, 2h, 1d).")
@click.option("--until", type=Moment(), default=None, help="Before then; without it, up to the last.")
@click.option("--sink", type=click.Choice(SINKS), required=True, help="Where to.")
def replay(since: int, until: int | None, sink: str) -> None:
    """Deliver a range of events again. It holds those that are still in the log, by the time at which their calls began.
    Ids stay the same, so that a sink can drop what it has. What the sink refuses for good is set aside (`events
    dead-letters`); where it cannot take more, the replay ends with exit code 1.

    \b
    Example:
      llm-proxy events replay --since 2026-11-21T08:00:00Z --until 2026-11-21T09:00:00Z --sink helicone
    """
    from llm_proxy.events.replaying import Replay, replay

    settings = options.settings()
    check_sinks(settings, (sink,))
    found = (browsing.between(folder, since, until or LATEST) for folder in browsing.logs(_root(settings)))
    source, letters = Replay(itertools.chain.from_iterable(found)), DeadLetters(_root(settings) / FILE)
    stats = asyncio.run(replay(settings, sink, source, letters))
    click.echo(f"{stats.delivered} events were delivered to {sink}, {stats.dead_letters} refused.")
    if stats.backlog.count:
        raise StartError(f"{sink} does not take the rest: {stats.last_error}")


@command.command()
@options.env_file
@as_json
def stats(json: bool) -> None:
    """Show what each log holds, and what each sink lacks. With LLM_PROXY_EVENT_BUS=redis-streams the stream is shown too.

    \b
    Example:
      llm-proxy events stats
    """
    settings, rows = options.settings(), list[dict[str, Any]]()
    for folder in browsing.logs(_root_or_stream(settings)):
        found = browsing.summary(folder)
        log = {"instance": found.instance, "first": found.first, "last": found.last, "bytes": found.bytes}
        sinks = {name: found.last - position for name, position in found.positions.items()}
        rows.append({**log, "backlog": sinks, "dead_letters": found.dead_letters})
    stream = shown_stream(asyncio.run(_state(settings))) if settings.ships else None
    if json:
        return echo_json({"logs": rows, "stream": stream})
    show_list(rows, lambda row: {**row, "backlog": ", ".join(f"{name} {count}" for name, count in row["backlog"].items())}, json)
    if stream:
        click.echo(f"\nThe stream {stream['key']} in Redis: {stream['length']} events, {stream['bytes']} bytes.")
        show_list(stream["groups"], dict, json)
    return None


def _root_or_stream(settings: Settings) -> pathlib.Path:
    """Where logs are; where events go to Redis there need be none on this machine."""
    return pathlib.Path(settings.event_dir) if settings.ships else _root(settings)


async def _state(settings: Settings) -> StreamState:
    async with open_stream(settings) as stream:
        return await stream.state()


async def _letters(settings: Settings) -> list[Letter]:
    from llm_proxy.events.letters import AllLetters

    async with contextlib.AsyncExitStack() as stack:
        stream = await stack.enter_async_context(open_stream(settings)) if settings.ships else None
        return [letter async for letter in AllLetters(settings, stream).read()]


@command.command("dead-letters")
@options.env_file
@as_json
def dead_letters(json: bool) -> None:
    """List what a sink refused or missed for good. With LLM_PROXY_EVENT_BUS=redis-streams those of dispatchers are among them.

    \b
    Examples:
      llm-proxy events dead-letters
      llm-proxy events dead-letters --json
    """
    settings = options.settings()
    _root_or_stream(settings)
    found = asyncio.run(_letters(settings))
    if json:
        return click.echo(orjson.dumps([letter.facts for letter in found], option=orjson.OPT_INDENT_2))
    rows = [(letter.at, letter.sink, _what(letter), printable(letter.reason)) for letter in found]
    return echo_table(("at", "sink", "event", "reason"), rows) if rows else click.echo("Nothing found.")


def _what(letter: Letter) -> str:
    if letter.gap is not None:
        return f"{letter.gap} events"
    return printable(letter.event["id"]) if letter.event else "unreadable"
