"""`llm-proxy benchmark`: how quickly calls are answered, and whose time it is."""

import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import click
import orjson
import uvloop

from llm_proxy import __version__
from llm_proxy.chats import OPENAI, problem_of
from llm_proxy.cli import options
from llm_proxy.cli.api import reason_of
from llm_proxy.cli.chat import never_a_providers_key
from llm_proxy.cli.load import Load, Timed
from llm_proxy.cli.output import as_json, echo_json, echo_table, printable
from llm_proxy.cli.quickstart import kept_token
from llm_proxy.errors import StartError

QUESTION = "Say hello."
PERCENTILES = {"p50": 0.50, "p90": 0.90, "p99": 0.99, "max": 1.0}

Report = Mapping[str, Any]


@click.command()
@click.option("--url", metavar="URL", type=options.site_url, help="The proxy.  [default: LISTEN_ADDR of the settings]")
@click.option(
    "--token",
    envvar="OPENAI_API_KEY",
    callback=never_a_providers_key,
    help="A token of the proxy.  [default: OPENAI_API_KEY where it is one, else the quickstart's]",
)
@click.option("--requests", "-n", default=100, show_default=True, type=click.IntRange(1, 1_000_000), help="How many to make.")
@click.option("--concurrency", "-c", default=10, show_default=True, type=click.IntRange(1, 1000), help="How many at a time.")
@click.option(
    "--seconds", default=60.0, show_default=True, type=click.FloatRange(0, min_open=True), help="The longest it may take."
)
@click.option("--stream", is_flag=True, help="Ask for streams.")
@click.option("--cache", is_flag=True, help="Let answers come from the cache: all but the first, while it is kept.")
@click.option("--model", default="gpt-4o-mini", show_default=True, help="The model to ask.")
@click.option("--prompt", metavar="TEXT", default=QUESTION, show_default=True, help="What is asked.")
@as_json
@options.env_file
def command(url: str | None, token: str | None, requests: int, concurrency: int, seconds: float, json: bool, **how: Any) -> None:
    """Make many calls through the proxy and say how long they took, the provider's time apart from the proxy's. Each one is a
    real call, at the provider's price; `llm-proxy fake-provider` is one that costs nothing. What is not the provider's time is
    the proxy's, the network's and this command's own.

    \b
    Examples:
      llm-proxy benchmark
      llm-proxy benchmark --requests 10000 --concurrency 32 --cache --json
    """
    token = token or kept_token()
    if not token:
        raise click.UsageError("Give a token of the proxy with --token. `llm-proxy manage token create` makes one.")
    url = url or options.own_address(options.settings())
    body = orjson.dumps(asked(how["model"], how["prompt"], stream=how["stream"]))
    headers, path = headers_of(token, cache=how["cache"]), OPENAI.path(how["model"])
    with _progress(requests, shown=sys.stderr.isatty() and not json) as tell:
        load = Load(url, path, headers, body, requests, concurrency, seconds, tell)
        found, took = _run(load)
    report = summed_up(found, took, load)
    echo_json(report) if json else _show(report, is_up=took >= seconds)
    if report["failed"]:
        raise StartError(f"{report['failed']} of {report['requests']} requests failed: {_why(found)}")


@contextmanager
def _progress(requests: int, *, shown: bool) -> Iterator[Callable[[], None]]:
    """A bar while the block runs; yields what moves it by one."""
    if not shown:
        yield lambda: None
        return
    # To draw it for every request would take more time than the requests do.
    steps = max(1, requests // 100)
    with click.progressbar(length=requests, file=sys.stderr, show_pos=True, update_min_steps=steps) as bar:
        yield lambda: bar.update(1)


def asked(model: str, prompt: str, *, stream: bool) -> Mapping[str, Any]:
    """The body of each request."""
    body = OPENAI.body(model, "", [{"role": "user", "content": prompt}])
    return body if stream else {name: value for name, value in body.items() if not name.startswith("stream")}


def headers_of(token: str, *, cache: bool) -> dict[str, str]:
    """The headers of each request."""
    ours = {"Content-Type": "application/json", "User-Agent": f"llm-proxy-benchmark/{__version__}"}
    return {**ours, **OPENAI.headers(token), **({"Cache-Control": "public, max-age=3600"} if cache else {})}


def _run(load: Load) -> tuple[list[Timed], float]:
    try:
        found, took = uvloop.run(load.run())
    except (OSError, TimeoutError) as error:
        raise StartError(f"No answer from the proxy at {load.url}: {reason_of(error)}. --url says where it is.") from error
    if not found[0].is_good:
        raise StartError(f"The first request failed, so no other was made: {_why(found)}")
    return found, took


def _why(found: Sequence[Timed]) -> str:
    """Why the first of those that failed did."""
    timed = next(timed for timed in found if not timed.is_good)
    problem = problem_of(timed.kept)
    return printable(timed.error or (problem.message if problem else f"status {timed.status}."))


def summed_up(found: Sequence[Timed], took: float, load: Load) -> Report:
    """The report: counts, and milliseconds of the good answers by percentile."""
    good = [timed for timed in found if timed.is_good]
    after_first = sum(timed.is_good for timed in found[1:])
    return {
        "url": load.url,
        "requests": len(found),
        "wanted": load.count,
        "concurrency": load.concurrency,
        "seconds": round(took, 3),
        "per_second": round(after_first / took, 1) if took else None,
        "failed": len(found) - len(good),
        "statuses": dict(sorted(Counter(str(timed.status) for timed in found if timed.status).items())),
        "cache": dict(Counter(timed.headers.get(b"x-proxy-cache", b"").decode("latin-1") or "none" for timed in good)),
        "bytes": sum(timed.size for timed in good),
        "pieces": sum(timed.pieces for timed in good),
        "milliseconds": {name: percentiles([part(timed) for timed in good]) for name, part in PARTS.items()},
    }


PARTS: Mapping[str, Callable[[Timed], int]] = {
    "answer_begins": lambda timed: timed.head - timed.began,
    "provider": Timed.provider_ns,
    "proxy_and_network": lambda timed: max(0, timed.head - timed.began - timed.provider_ns()),
    "first_bytes": lambda timed: (timed.first or timed.ended) - timed.began,
    "answer_ends": lambda timed: timed.ended - timed.began,
}


def percentiles(nanoseconds: Sequence[int]) -> dict[str, float]:
    """Milliseconds at each percentile, by nearest rank; nothing of nothing."""
    ranked = sorted(nanoseconds)
    ranks = {name: max(0, -int(-share * len(ranked) // 1) - 1) for name, share in PERCENTILES.items()}
    return {name: round(ranked[rank] / 1e6, 3) for name, rank in ranks.items()} if ranked else {}


def _show(report: Report, *, is_up: bool) -> None:
    short = "" if report["requests"] == report["wanted"] else f" of {report['wanted']}{', then the time was up' if is_up else ''}"
    rate = f" in {report['seconds']:g} s, {report['per_second']:g} a second" if report["per_second"] else ""
    click.echo(f"{report['requests']} requests{short}, {report['concurrency']} at a time{rate}; {report['failed']} failed.")
    if set(report["cache"]) - {"none", "bypass"}:
        click.echo("Cache: " + ", ".join(f"{count} {status}" for status, count in report["cache"].items()) + ".")
    click.echo(f"{report['bytes']} bytes of answers in {report['pieces']} pieces.\n")
    rows = [
        [name.replace("_", " "), *(f"{value:.2f}" for value in found.values())] for name, found in report["milliseconds"].items()
    ]
    echo_table(["milliseconds", *PERCENTILES], rows)
