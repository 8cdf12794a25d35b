"""`llm-proxy benchmark`: many calls through a proxy, summed up; one that fails at once costs one call."""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest
from stage.house import House
from stage.postgres import free_port
from stage.processes import environment
from stage.provider import ScriptedProvider, answer
from stage.scripts import in_turn, sends

from llm_proxy import fake_provider
from llm_proxy.cli.benchmark import asked, percentiles
from llm_proxy.fake_provider import Faults

from .conftest import Cli, Done

Benchmark = Callable[..., Awaitable[Done]]


@pytest.fixture
async def benchmark(house: House, fake: str, cli: Cli) -> Benchmark:
    """Runs `llm-proxy benchmark` through a proxy whose calls go to the fake provider, or elsewhere."""

    async def run(*arguments: str, api_base: str = fake) -> Done:
        token = await house.token_for(api_base)
        return await asyncio.to_thread(cli, "benchmark", "--url", house.url, "--token", token, *arguments)

    return run


async def test_every_request_is_a_call_and_the_report_says_whose_time_it_was(benchmark: Benchmark, house: House) -> None:
    async with fake_provider.running(faults=Faults(delay=0.05)) as slow:
        done = await benchmark("-n", "8", "-c", "4", "--json", api_base=slow)
    report = json.loads(done.out)
    assert (done.code, report["requests"], report["failed"], report["statuses"]) == (0, 8, 0, {"200": 8})
    assert len(house.events) == 8
    spent = report["milliseconds"]
    assert spent["answer_begins"]["p50"] >= spent["provider"]["p50"] >= 50
    assert spent["proxy_and_network"]["max"] > 0
    assert report["per_second"] > 0


async def test_streams_are_asked_for_and_their_pieces_counted(benchmark: Benchmark, house: House) -> None:
    async with fake_provider.running(faults=Faults(words=5, drip=0.005)) as dripping:
        report = json.loads((await benchmark("-n", "3", "--stream", "--json", api_base=dripping)).out)
    assert [event.stream for event in house.events] == [True] * 3
    assert report["pieces"] > 3 * 5
    assert report["milliseconds"]["answer_ends"]["p50"] > report["milliseconds"]["first_bytes"]["p50"]


async def test_answers_come_from_the_cache_when_that_is_asked_for(benchmark: Benchmark, provider: ScriptedProvider) -> None:
    provider.script = sends(answer(b'{"ok": true}'))
    done = await benchmark("-n", "6", "-c", "2", "--cache", api_base=provider.url)
    assert "Cache: 1 stored, 5 hit." in done.out
    assert len(provider.exchanges) == 1


async def test_without_that_every_answer_is_the_providers(benchmark: Benchmark, provider: ScriptedProvider) -> None:
    done = await benchmark("-n", "6", "-c", "2", api_base=provider.url)
    assert len(provider.exchanges) == 6
    assert "Cache" not in done.out


async def test_people_get_a_table(benchmark: Benchmark) -> None:
    done = await benchmark("-n", "5", "-c", "2")
    assert done.out.startswith("5 requests, 2 at a time in ") and "; 0 failed." in done.out
    lines = {line.split("  ")[0]: line.split()[-4:] for line in done.out.partition("\n\n")[2].splitlines()}
    assert lines["MILLISECONDS"] == ["P50", "P90", "P99", "MAX"]
    assert set(lines) == {"MILLISECONDS", "answer begins", "provider", "proxy and network", "first bytes", "answer ends"}


async def test_a_first_request_that_fails_is_the_only_one(benchmark: Benchmark, house: House) -> None:
    async with fake_provider.running(faults=Faults(status=503)) as failing:
        done = await benchmark("-n", "50", api_base=failing)
    assert done.code == 1
    assert "no other was made: The fake provider was asked to fail with status 503." in done.err
    assert len(house.events) == 1


async def test_failures_are_told_after_the_report(benchmark: Benchmark, provider: ScriptedProvider) -> None:
    provider.script = in_turn(sends(answer(b"{}")), sends(answer(b"", status=b"400 Bad")), sends(answer(b"{}")))
    done = await benchmark("-n", "4", "-c", "1", api_base=provider.url)
    assert done.code == 1
    assert "; 1 failed." in done.out
    assert done.err == "Error: 1 of 4 requests failed: status 400.\n"


async def test_time_that_is_up_ends_it(benchmark: Benchmark) -> None:
    async with fake_provider.running(faults=Faults(delay=0.05)) as slow:
        done = await benchmark("-n", "1000", "-c", "1", "--seconds", "0.3", api_base=slow)
    assert done.code == 0
    assert "of 1000, then the time was up" in done.out


async def test_a_proxy_that_goes_away_in_between_is_not_told_as_time_that_was_up(cli: Cli) -> None:
    async def answer_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        server.close()
        await reader.readuntil(b"}]}")
        writer.write(answer(b"{}", extra=b"Connection: close\r\n"))
        writer.close()
        await writer.wait_closed()

    server = await asyncio.start_server(answer_once, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    done = await asyncio.to_thread(cli, "benchmark", "--url", url, "--token", "x", "-n", "50", "-c", "2")
    assert done.out.startswith("3 requests of 50, 2 at a time")
    assert (done.code, done.err) == (1, "Error: 2 of 3 requests failed: Connection refused\n")


async def test_on_a_terminal_a_bar_shows_how_far_it_is(house: House, fake: str) -> None:
    ours, theirs = os.openpty()
    words = ("benchmark", "--url", house.url, "--token", await house.token_for(fake), "-n", "3")
    command = [sys.executable, "-m", "llm_proxy", *words]
    done = await asyncio.to_thread(subprocess.run, command, stderr=theirs, stdout=subprocess.PIPE, env=environment(TERM="xterm"))
    os.close(theirs)
    drawn = os.read(ours, 65536).decode()
    os.close(ours)
    assert done.returncode == 0 and done.stdout.startswith(b"3 requests, ")
    assert "0/3" in drawn and "3/3" in drawn


async def test_a_wrong_token_is_refused_in_the_proxys_words(house: House, cli: Cli) -> None:
    done = await asyncio.to_thread(cli, "benchmark", "--url", house.url, "--token", "wrong")
    assert done.code == 1
    assert "The token is missing, malformed or unknown" in done.err


def test_a_proxy_that_does_not_run_is_said_with_its_address(cli: Cli) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = cli("benchmark", "--url", url, "--token", "x")
    assert (done.code, done.out) == (1, "")
    assert done.err == f"Error: No answer from the proxy at {url}: Connection refused. --url says where it is.\n"


@pytest.mark.parametrize(
    "arguments",
    [(), ("--token", "x", "-n", "0"), ("--token", "x", "-c", "2000"), ("--token", "x", "--seconds", "0")],
    ids=["no token", "no requests", "too many at a time", "no time"],
)
def test_what_makes_no_sense_exits_2(cli: Cli, arguments: tuple[str, ...]) -> None:
    assert cli("benchmark", *arguments).code == 2


@pytest.mark.parametrize(
    ("nanoseconds", "found"),
    [
        pytest.param([], {}, id="none"),
        pytest.param([3_000_000], {"p50": 3.0, "p90": 3.0, "p99": 3.0, "max": 3.0}, id="one"),
        pytest.param(
            [n * 1_000_000 for n in range(100, 0, -1)], {"p50": 50.0, "p90": 90.0, "p99": 99.0, "max": 100.0}, id="a hundred"
        ),
    ],
)
def test_percentiles_are_those_of_what_was_measured(nanoseconds: list[int], found: dict[str, float]) -> None:
    assert percentiles(nanoseconds) == found


@pytest.mark.parametrize("stream", [True, False])
def test_a_stream_is_asked_for_only_when_it_is_wanted(stream: bool) -> None:
    body = asked("m", "hello", stream=stream)
    assert body["messages"] == [{"role": "user", "content": "hello"}]
    assert ("stream" in body, "stream_options" in body) == (stream, stream)
