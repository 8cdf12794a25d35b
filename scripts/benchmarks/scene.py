"""The scene of a run: providers, nginx, servers of ours, each started when it is first needed."""

import base64
import json
import os
import pathlib
import secrets
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from benchmarks import nginx, wrk
from benchmarks.machine import ROOT, cores, program
from benchmarks.processes import Failed, Process, free_port, running

CHUNKS = 100
# Providers that stream: milliseconds between a stream's chunks, and whether they say no usage. Two milliseconds are 32,000
# chunks a second on 64 connections: dense enough that waking up for each does not count for more than the chunk.
STREAMS: Mapping[str, tuple[int, bool]] = {"sse": (2, False), "counted": (2, True), "slow": (50, False)}
MANY = 100_000_000
# What makes every part of a call's path work, and never refuses.
EVERYTHING: Mapping[str, Any] = {
    "max_requests": MANY,
    "rate_limit": 1_000_000,
    "rate_limit_per_minute": MANY,
    "allowed_models": ["gpt-4o*"],
}


@dataclass(frozen=True)
class Site:
    """Something that is measured: where it is, which process it is."""

    url: str
    process: Process


class Scene:
    """Everything that runs, in a folder of its own; it ends with its stack."""

    def __init__(self, stack: ExitStack, folder: pathlib.Path) -> None:
        self._stack = stack
        self.folder = folder
        self.measured, self.others = cores()
        self._management = secrets.token_urlsafe(32)
        self._secret = base64.b64encode(os.urandom(32)).decode()
        self._sites: dict[str, Site] = {}
        self._tokens: dict[str, str] = {}
        self._ways = {name: free_port() for name in ("calls", *STREAMS)}

    def direct(self, name: str) -> Site:
        """A provider: `calls`, or one of the STREAMS."""
        key = f"direct {name}"
        if key not in self._sites:
            port = free_port()
            self._sites[key] = Site(f"http://127.0.0.1:{port}", self._begin_provider(name, port))
        return self._sites[key]

    def _begin_provider(self, name: str, port: int) -> Process:
        if name == "calls":
            return self._begin_nginx("provider", nginx.provider(self.folder, port), self.others, port)
        every, silent = STREAMS[name]
        words = ["--port", str(port), "--every", str(every), "--chunks", str(CHUNKS), *(["--silent"] if silent else [])]
        command = [sys.executable, "-m", "benchmarks.provider", *words]
        return self._begin(f"provider-{name}", command, self.others, {"PYTHONPATH": str(ROOT / "scripts")}, port)

    def nginx(self, name: str) -> Site:
        """nginx in front of a provider."""
        port = self._ways[name]
        if "nginx" not in self._sites:
            ways = {here: _port(self.direct(provider)) for provider, here in self._ways.items()}
            text = nginx.reverse_proxy(self.folder, "nginx", ways, frozenset(self._ways[name] for name in STREAMS))
            self._sites["nginx"] = Site("", self._begin_nginx("nginx", text, self.measured, port))
        return Site(f"http://127.0.0.1:{port}", self._sites["nginx"].process)

    @contextmanager
    def fresh_nginx(self) -> Iterator[Site]:
        """A reverse proxy that has served nothing, in front of the provider of calls, for the length of the block."""
        port = free_port()
        text = nginx.reverse_proxy(self.folder, "fresh-nginx", {port: _port(self.direct("calls"))})
        with running("fresh-nginx", self._nginx("fresh-nginx", text), self.measured, self.folder, {}, port) as process:
            yield Site(f"http://127.0.0.1:{port}", process)

    def _nginx(self, name: str, text: str) -> list[str]:
        config = self.folder / f"{name}.conf"
        config.write_text(text)
        return [program("nginx"), "-p", str(self.folder), "-e", str(self.folder / f"{name}.err"), "-c", str(config)]

    def _begin_nginx(self, name: str, text: str, core: int, port: int) -> Process:
        return self._begin(name, self._nginx(name, text), core, {}, port)

    def _begin(self, name: str, command: list[str], core: int, env: Mapping[str, str], port: int) -> Process:
        return self._stack.enter_context(running(name, command, core, self.folder, env, port))

    def server(self, name: str = "server", **env: str) -> Site:
        """Our server; those with other settings have names of their own."""
        if name not in self._sites:
            self._sites[name] = self._stack.enter_context(self.fresh_server(name, **env))
        return self._sites[name]

    @contextmanager
    def fresh_server(self, name: str, **env: str) -> Iterator[Site]:
        """A server of ours for the length of the block; one of this name that ran before has left its database."""
        folder, port = self.folder / name, free_port()
        folder.mkdir(exist_ok=True)
        given = {
            "LISTEN_ADDR": f"127.0.0.1:{port}",
            "ADMIN_UI_LISTEN_ADDR": "127.0.0.1:0",
            "MANAGEMENT_TOKEN": self._management,
            "ENCRYPTION_KEY": self._secret,
            "ALLOW_PRIVATE_UPSTREAMS": "true",
            "PYTHONPATH": str(ROOT),
            **env,
        }
        command = [sys.executable, "-m", "llm_proxy", "server"]
        with running(name, command, self.measured, folder, given, port) as process:
            yield Site(f"http://127.0.0.1:{port}", process)

    def begin(self, name: str, command: list[str], env: Mapping[str, str], port: int) -> Site:
        """Something else that is measured."""
        if name not in self._sites:
            self._sites[name] = Site(f"http://127.0.0.1:{port}", self._begin(name, command, self.measured, env, port))
        return self._sites[name]

    def token(self, server: Site, provider: str, **fields: Any) -> str:
        """A token of a server that leads to a provider, the same each time."""
        key = json.dumps([server.url, provider, fields])
        if key not in self._tokens:
            given = {"name": f"{provider} {len(self._tokens)}", "api_key": "sk-of-nobody", "api_base": self.direct(provider).url}
            project = self.manage(server, "/manage/projects", given)["id"]
            self._tokens[key] = str(self.manage(server, "/manage/tokens", {"project_id": project, **fields})["token"])
        return self._tokens[key]

    def manage(self, server: Site, path: str, given: object) -> Any:
        """POST to the management API, which must go well."""
        request = urllib.request.Request(server.url + path, json.dumps(given).encode(), self.management_headers())
        try:
            with urllib.request.urlopen(request, timeout=30) as reply:
                return json.load(reply)
        except urllib.error.HTTPError as error:
            raise Failed(f"{path} answered {error.code}: {error.read().decode()}") from error

    def management_headers(self) -> dict[str, str]:
        """Those that make a request the operator's."""
        return {"Authorization": f"Bearer {self._management}", "Content-Type": "application/json"}

    def load(self, url: str, ask: wrk.Ask, seconds: float, connections: int = wrk.CONNECTIONS) -> wrk.Load:
        """Load something from the other core."""
        return wrk.run(url, ask, seconds, self.others, self.folder, connections)


def _port(site: Site) -> int:
    return int(site.url.rpartition(":")[2])
