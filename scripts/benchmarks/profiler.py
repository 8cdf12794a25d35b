"""`scripts/profile`: the server under load within this process, and where the time of a call goes, by module and function."""

import argparse
import asyncio
import cProfile
import os
import pathlib
import pstats
import signal
import site
import sys
import sysconfig
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import NamedTuple

import uvloop
from stage.house import House, migrated, settings_for

from benchmarks import clients, nginx, provider, wrk
from benchmarks.cases import STREAM_CONNECTIONS, chat
from benchmarks.machine import ROOT, cores, program, real_time
from benchmarks.processes import Failed, free_port, running
from benchmarks.scene import CHUNKS, EVERYTHING
from llm_proxy.context import open_context
from llm_proxy.server import open_sites

WARM_SECONDS = 2
# Between the chunks of a stream: the profiler slows the server down, and chunks must still come singly.
EVERY_MS = 15

Place = tuple[str, int, str]
"""File, line and name, as pstats has them; what is written in C has the file `~`."""


class Spent(NamedTuple):
    """What a module or a function took in all: calls of functions, seconds of its own."""

    calls: int
    seconds: float


@dataclass(frozen=True)
class Profile:
    """What happens for each unit: a call, or a chunk."""

    stats: Mapping[Place, tuple[int, int, float, float, Mapping[Place, tuple[int, int, float, float]]]]
    units: int
    often: float = 0.2

    def functions(self) -> Iterator[tuple[Place, Spent]]:
        """Functions that run at least once for a few units, those in C among them; the rest is housekeeping."""
        for place, (_, calls, own, _, _) in self.stats.items():
            if calls >= self.often * self.units:
                yield place, Spent(calls, own)

    def modules(self) -> dict[str, Spent]:
        """Time by module; what is written in C counts for the module that calls it."""
        found: dict[str, list[float]] = defaultdict(lambda: [0, 0.0])
        for place, spent in self.functions():
            shares = [(place[0], spent)] if place[0] != "~" else self._callers(place)
            for file, share in shares:
                found[short(file)][0] += share.calls
                found[short(file)][1] += share.seconds
        return {name: Spent(int(calls), seconds) for name, (calls, seconds) in found.items()}

    def _callers(self, place: Place) -> list[tuple[str, Spent]]:
        return [(file, Spent(calls, own)) for (file, _, _), (_, calls, own, _) in self.stats[place][4].items()]


def short(file: str) -> str:
    """A file as one recognises it."""
    roots = [f"{ROOT}/", *(f"{folder}/" for folder in site.getsitepackages()), f"{sysconfig.get_path('stdlib')}/"]
    for root in roots:
        file = file.removeprefix(root)
    return file.rpartition("site-packages/")[2]


def report(profile: Profile, unit: str, most: int) -> Iterator[str]:
    """The lines: modules, then functions, each by the time it takes."""
    spent = profile.modules()
    total = Spent(sum(one.calls for one in spent.values()), sum(one.seconds for one in spent.values()))
    yield f"{profile.units:,} × one {unit}: {_line(total, profile.units)}"
    yield "The profiler itself makes each function call dearer: compare with other profiles, not with a clock."
    yield f"\nµs and function calls a {unit}, by module:"
    yield from _ranked(spent.items(), profile.units, most)
    yield f"\nµs and function calls a {unit}, by function:"
    yield from _ranked(((_name(place), one) for place, one in profile.functions()), profile.units, most)


def _name(place: Place) -> str:
    file, line, name = place
    return name if file == "~" else f"{short(file)}:{line} {name}"


def _ranked(found: Iterable[tuple[str, Spent]], units: int, most: int) -> Iterator[str]:
    for name, spent in sorted(found, key=lambda pair: -pair[1].seconds)[:most]:
        yield f"{_line(spent, units)}  {name}"


def _line(spent: Spent, units: int) -> str:
    return f"{spent.seconds / units * 1e6:8.1f} µs {spent.calls / units:8.1f} calls"


async def _load(url: str, ask: wrk.Ask, seconds: float, folder: pathlib.Path, connections: int) -> wrk.Load:
    return await asyncio.to_thread(wrk.run, url, ask, seconds, cores()[1], folder, connections)


async def profiled(house: House, upstream: str, asked: argparse.Namespace, folder: pathlib.Path) -> Profile:
    """The profile of a house under load."""
    token = await house.token_for(upstream, **EVERYTHING)
    ask = chat(token, stream=True, stream_options={"include_usage": True}) if asked.stream else chat(token)
    connections = STREAM_CONNECTIONS if asked.stream else wrk.CONNECTIONS
    whole = len(await asyncio.to_thread(clients.answer, house.url, ask))
    await _load(house.url, ask, WARM_SECONDS, folder, connections)
    profiler = cProfile.Profile()
    profiler.enable()
    found = await _load(house.url, ask, asked.seconds, folder, connections)
    profiler.disable()
    if found.errors or not found.requests:
        raise Failed(f"Not all calls went well: {found}")
    if asked.keep:
        profiler.dump_stats(asked.keep)
    # Most streams are in their middle when the load ends.
    units = round(found.bytes / whole * CHUNKS) if asked.stream else found.requests
    return Profile(pstats.Stats(profiler).stats, units)  # type: ignore[attr-defined]


def _begin_upstream(stack: ExitStack, folder: pathlib.Path, stream: bool) -> str:
    port = free_port()
    if stream:
        command = [sys.executable, provider.__file__, "--port", str(port), "--every", str(EVERY_MS), "--chunks", str(CHUNKS)]
    else:
        config = folder / "provider.conf"
        config.write_text(nginx.provider(folder, port))
        command = [program("nginx"), "-p", str(folder), "-e", str(folder / "provider.err"), "-c", str(config)]
    stack.enter_context(running("provider", command, cores()[1], folder, {}, port))
    return f"http://127.0.0.1:{port}"


async def main_in(folder: pathlib.Path, upstream: str, asked: argparse.Namespace) -> Profile:
    """Serve in this process and look at it."""
    settings = migrated(settings_for(folder, LOG_FILE=str(folder / "log")))
    # The house of the tests would keep every event.
    async with open_context(settings) as context, open_sites(context) as sites:
        return await profiled(House(context, sites), upstream, asked, folder)


def main() -> None:
    """Profile as the command line says."""
    parser = argparse.ArgumentParser(prog="scripts/profile", description=__doc__)
    parser.add_argument("--stream", action="store_true", help="streams, by chunk, in place of calls")
    parser.add_argument("--seconds", type=float, default=5, help="of load under the profiler (default 5)")
    parser.add_argument("--most", type=int, default=40, help="lines of each list (default 40)")
    parser.add_argument("--keep", type=pathlib.Path, metavar="FILE", help="also keep the profile, for pstats or snakeviz")
    asked = parser.parse_args()
    for name in ("nginx", "wrk", "taskset"):
        program(name)
    measured, _ = cores()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        with ExitStack() as stack:
            folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="llm-proxy-profile")))
            upstream = _begin_upstream(stack, folder, asked.stream)
            os.sched_setaffinity(0, {measured})
            if real_time():
                os.sched_setscheduler(0, os.SCHED_RR, os.sched_param(10))
            profile = uvloop.run(main_in(folder, upstream, asked))
    except Failed as failure:
        sys.exit(str(failure))
    except KeyboardInterrupt:
        sys.exit("Stopped; nothing is left running.")
    print("\n".join(report(profile, "chunk" if asked.stream else "call", asked.most)))


if __name__ == "__main__":
    main()
