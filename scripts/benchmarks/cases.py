"""The cases: what is asked of what, and how a sample is taken."""

import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from functools import partial

from benchmarks import clients
from benchmarks.machine import ROOT, real_time
from benchmarks.nginx import LARGE, LISTED, MEBIBYTE
from benchmarks.processes import free_port
from benchmarks.results import DIRECT, NGINX, PROXY, Sample
from benchmarks.scene import CHUNKS, EVERYTHING, MANY, STREAMS, Scene, Site
from benchmarks.wrk import Ask, Load

IDLE_CONNECTIONS = 10_000
STREAM_CONNECTIONS = 64
SLOW_STREAMS = 1000
# A slow stream takes five seconds; fewer than two of them tell of their beginnings only.
SLOW_SECONDS = 12
WARM_SECONDS = 1
PAUSE_MS = 1
JSON = {"Content-Type": "application/json"}

Target = tuple[Site, Ask]


@dataclass
class Bench:
    """A run.

    Attributes:
        peers: other gateways, by name: each begins itself in the scene.
    """

    scene: Scene
    stack: ExitStack
    seconds: float
    peers: Mapping[str, Callable[[Scene], Target]] = field(default_factory=dict)
    warm: set[tuple[str, str, str]] = field(default_factory=set)
    redis: str = ""
    begun: dict[str, Target] = field(default_factory=dict)

    def peer(self, name: str) -> Target:
        """Another gateway, which runs from when it is first asked for."""
        if name not in self.begun:
            self.begun[name] = self.peers[name](self.scene)
        return self.begun[name]

    def redis_url(self) -> str:
        """A Redis of this run's own, on the core of everything else."""
        if not self.redis:
            from stage.redis import running_redis

            server = self.stack.enter_context(running_redis())
            if real_time():
                os.sched_setscheduler(server.process.pid, os.SCHED_RR, os.sched_param(10))
            self.redis = server.uri
        return self.redis


@dataclass(frozen=True)
class Case:
    """One case: `measure` takes a sample of one of its subjects."""

    name: str
    subjects: tuple[str, ...]
    measure: Callable[[Bench, str], Sample]


def chat(token: str = "", **parameters: object) -> Ask:
    """A chat completion's request."""
    body = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}], **parameters}
    return Ask(headers={**JSON, "Authorization": f"Bearer {token}"}, body=json.dumps(body))


@dataclass(frozen=True)
class Calls:
    """A case of many calls: the same to our server as to nginx.

    Attributes:
        provider: what answers.
        token: fields of the token.
        ask: makes the request from the token's secret.
        server: whose memory tells of this case and its like.
        env: settings that this server has.
        redis: whether that one has a Redis.
    """

    provider: str = "calls"
    token: Mapping[str, object] = field(default_factory=dict)
    ask: Callable[[str], Ask] = chat
    server: str = "server"
    env: Mapping[str, str] = field(default_factory=dict)
    redis: bool = False

    def target(self, bench: Bench, subject: str) -> Target:
        """Whom a subject's requests go to."""
        scene = bench.scene
        if subject == NGINX:
            return scene.nginx(self.provider), self.ask("")
        if subject == DIRECT:
            return scene.direct(self.provider), self.ask("")
        if subject in bench.peers:
            return bench.peer(subject)
        env = {**self.env, **({"REDIS_URL": bench.redis_url()} if self.redis else {})}
        server = scene.server(self.server, **env)
        return server, self.ask(scene.token(server, self.provider, **self.token))


def load(bench: Bench, target: Target, *, seconds: float = 0, connections: int = 32) -> tuple[Load, float, Site]:
    """Load a target, warm; returns what was found, the processor time in microseconds that it took, and the site."""
    site, ask = target
    if (key := (site.url, ask.path, ask.body[:200])) not in bench.warm:
        bench.warm.add(key)
        bench.scene.load(site.url, ask, WARM_SECONDS)
    site.process.check()
    before = site.process.cpu_seconds()
    found = bench.scene.load(site.url, ask, seconds or bench.seconds, connections)
    return found, (site.process.cpu_seconds() - before) * 1e6, site


def measure_calls(calls: Calls, bench: Bench, subject: str) -> Sample:
    """Answers a second, processor time of each."""
    found, cpu, site = load(bench, calls.target(bench, subject))
    more = {"p50": found.p50, "p99": found.p99}
    return Sample(found.rate, cpu / max(1, found.requests), site.process.rss(), sum(found.errors.values()), more)


def measure_chunks(calls: Calls, connections: int, least: float, bench: Bench, subject: str) -> Sample:
    """Chunks a second that arrive, processor time of each, their calls' own part included."""
    target = calls.target(bench, subject)
    whole = len(clients.answer(target[0].url, target[1]))
    seconds = max(least, bench.seconds)
    found, cpu, site = load(bench, target, seconds=seconds, connections=connections)
    chunks = found.bytes / whole * CHUNKS
    # Whatever comes later than the pace of the provider allows.
    late = max(0.0, found.p99 - STREAMS[calls.provider][0] * CHUNKS)
    more = {"late ms": late, "busy": cpu / 1e6 / found.took}
    return Sample(chunks / found.took, cpu / max(1, chunks), site.process.rss(), sum(found.errors.values()), more)


def measure_latency(bench: Bench, subject: str) -> Sample:
    """Milliseconds until the answer, at one connection: in the middle of calls back to back, at worst of calls with pauses.

    Without pauses a core may have nothing but real-time work, and Linux takes such a core away for 50 ms in every second.
    """
    site, ask = Calls(token=EVERYTHING).target(bench, subject)
    found, cpu, _ = load(bench, (site, ask), connections=1)
    paced = bench.scene.load(site.url, replace(ask, pause=PAUSE_MS), bench.seconds, connections=1)
    more = {"p50": found.p50, "p99": paced.p99}
    errors = sum(found.errors.values()) + sum(paced.errors.values())
    return Sample(found.p50, cpu / max(1, found.requests), site.process.rss(), errors, more)


def measure_idle(bench: Bench, subject: str) -> Sample:
    """KiB that a connection takes which has made a call and waits."""
    scene = bench.scene
    with scene.fresh_nginx() if subject == NGINX else scene.fresh_server("idle") as site:
        ask = chat("" if subject == NGINX else scene.token(site, "calls", **EVERYTHING))
        scene.load(site.url, ask, WARM_SECONDS)
        before = site.process.rss()
        with clients.idle_connections(site.url, ask, IDLE_CONNECTIONS) as count:
            time.sleep(1)
            after = site.process.rss()
    return Sample((after - before) * 1024 / count, rss=after)


def measure_start(bench: Bench, subject: str) -> Sample:
    """Seconds until /ready, MiB a second later."""
    began = time.monotonic()
    with bench.scene.fresh_server("start") as site:
        clients.wait_ready(site.url)
        took = time.monotonic() - began
        time.sleep(1)
        return Sample(took, rss=site.process.rss())


def measure_tokens(bench: Bench, subject: str) -> Sample:
    """Tokens that are made a second, over the API."""
    scene = bench.scene
    server = scene.server()
    given = {"name": "tokens", "api_key": "sk-of-nobody", "api_base": scene.direct("calls").url}
    project = scene.manage(server, "/manage/projects", {**given, "name": f"tokens {time.time_ns()}"})["id"]
    ask = Ask("/manage/tokens", headers=scene.management_headers(), body=json.dumps({"project_id": project}))
    found, cpu, site = load(bench, (server, ask))
    return Sample(found.rate, cpu / max(1, found.requests), site.process.rss(), sum(found.errors.values()))


def measure_router(bench: Bench, subject: str) -> Sample:
    """A handler of aiohttp, bare or behind an Application."""
    name = f"aiohttp-{subject}"
    port = free_port()
    words = ["--port", str(port), *(["--application"] if subject == "application" else [])]
    command = [sys.executable, "-m", "benchmarks.bare", *words]
    site = bench.scene.begin(name, command, {"PYTHONPATH": str(ROOT / "scripts")}, port)
    found, cpu, _ = load(bench, (site, chat()))
    return Sample(found.rate, cpu / max(1, found.requests), site.process.rss(), sum(found.errors.values()))


def _get(path: str, token: str) -> Ask:
    return Ask(path, "GET", {"Authorization": f"Bearer {token}"})


def _cached_chat(token: str) -> Ask:
    ask = chat(token)
    return replace(ask, headers={**ask.headers, "Cache-Control": "public, max-age=3600"})


def _large_chat(token: str) -> Ask:
    return chat(token, messages=[{"role": "user", "content": "x" * MEBIBYTE}])


def _stream(token: str) -> Ask:
    return chat(token, stream=True, stream_options={"include_usage": True})


def _stream_without_usage(token: str) -> Ask:
    return chat(token, stream=True)


CALLS: Mapping[str, Calls] = {
    "calls": Calls(),
    "events-off": Calls(server="without-events", env={"OBSERVABILITY_ENABLED": "false"}),
    "quota": Calls(token={"max_requests": MANY}),
    "rate-limit": Calls(token={"rate_limit": 1_000_000, "rate_limit_per_minute": MANY}),
    "everything": Calls(token=EVERYTHING),
    "hit": Calls(token=EVERYTHING, ask=partial(_get, LISTED)),
    "hit-post": Calls(token=EVERYTHING, ask=_cached_chat),
    "events-file": Calls(server="with-file-sink", env={"EVENT_SINKS": "file"}),
    "up": Calls(token=EVERYTHING, ask=_large_chat, server="large-bodies"),
    "down": Calls(token=EVERYTHING, ask=partial(_get, LARGE), server="large-bodies"),
    "redis-limits": Calls(
        token={"rate_limit": 1_000_000, "rate_limit_per_minute": MANY},
        server="with-redis-limits",
        env={"DISTRIBUTED_RATE_LIMIT_ENABLED": "true"},
        redis=True,
    ),
    "redis-streams": Calls(server="with-redis-streams", env={"LLM_PROXY_EVENT_BUS": "redis-streams"}, redis=True),
}
# These have no counterpart in a reverse proxy that the others of the table do not show.
PROXY_ONLY = {"events-off", "events-file", "redis-limits", "redis-streams"}
SSE = Calls("sse", EVERYTHING, _stream, "streams")
COUNTED = Calls("counted", EVERYTHING, _stream_without_usage, "streams")
SLOW = Calls("slow", EVERYTHING, _stream, "slow-streams")


def all_cases(peers: tuple[str, ...] = ()) -> list[Case]:
    """Every case, in the order in which they are measured."""
    both = (PROXY, NGINX)
    return [
        *(
            Case(
                name,
                ((PROXY,) if name in PROXY_ONLY else both) + (peers if name == "calls" else ()),
                partial(measure_calls, calls),
            )
            for name, calls in CALLS.items()
        ),
        Case("latency", (*both, DIRECT, *peers), measure_latency),
        Case("sse", (*both, DIRECT), partial(measure_chunks, SSE, STREAM_CONNECTIONS, 0)),
        Case("counted", (PROXY,), partial(measure_chunks, COUNTED, STREAM_CONNECTIONS, 0)),
        Case("slow", (*both, DIRECT), partial(measure_chunks, SLOW, SLOW_STREAMS, SLOW_SECONDS)),
        Case("tokens", (PROXY,), measure_tokens),
        Case("router", ("bare", "application"), measure_router),
        Case("start", (PROXY,), measure_start),
        Case("idle", both, measure_idle),
    ]
