"""Runs http-cache-tests: its client, a shim that knows a token, the real server, its origin."""

import argparse
import asyncio
import contextlib
import json
import os
import pathlib
import re
import socket
import subprocess
import sys
import tempfile
import zlib
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import aiohttp

VERSION = "0.4.5"
HERE = pathlib.Path(__file__).parent
INSTALLED = HERE.parent.parent / ".http-cache-tests"
PACKAGE = INSTALLED / "node_modules" / "http-cache-tests"
BASELINE = HERE / "baseline.json"
MANAGEMENT_TOKEN = "for-this-run-on-loopback-only-0a1b2c"
# Three cases send `Authorization: FOO` and look for it at the origin, where it is the provider's key that arrives.
PROVIDER_KEY = "FOO"
PROFILE = """
default_api: bench
apis:
  bench:
    auth: {header: Authorization}
    allowed_endpoints: [/**]
    allowed_methods: [GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, M-SEARCH, FOO]
"""
SECONDS = 300
# The id of a case, in each of its paths.
CASE = re.compile(rb"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
# The suite lets its origin hang up so often that the breaker of a single provider would open.
TENANTS = 100


def free_port() -> int:
    """A port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def install() -> None:
    """Install the package once, into a folder that git ignores."""
    if not PACKAGE.exists():
        INSTALLED.mkdir(exist_ok=True)
        (INSTALLED / "package.json").write_text('{"private": true}')
        subprocess.run(["npm", "install", "--silent", f"http-cache-tests@{VERSION}"], cwd=INSTALLED, check=True)


@asynccontextmanager
async def process(*command: str, cwd: pathlib.Path, env: dict[str, str]) -> AsyncIterator[None]:
    """A process for the length of the block; what it says goes to a file beside it."""
    with (cwd / f"{pathlib.Path(command[0]).name}.log").open("ab") as log:
        running = await asyncio.create_subprocess_exec(*command, cwd=cwd, env={**os.environ, **env}, stdout=log, stderr=log)
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                running.terminate()
            await running.wait()


async def answers(url: str) -> None:
    """Wait until something answers."""
    async with aiohttp.ClientSession() as session, asyncio.timeout(20):
        while True:
            with contextlib.suppress(aiohttp.ClientError):
                async with session.get(url):
                    return
            await asyncio.sleep(0.05)


async def tokens_for(proxy: str, origin: str) -> list[str]:
    """Tokens of as many projects, whose provider is the origin."""
    headers = {"Authorization": f"Bearer {MANAGEMENT_TOKEN}"}
    tokens = []
    async with aiohttp.ClientSession(proxy, headers=headers, raise_for_status=True) as session:
        for number in range(TENANTS):
            project = {"name": f"tenant {number}", "provider_type": "bench", "api_base": origin, "api_key": PROVIDER_KEY}
            async with session.post("/manage/projects", json=project) as made:
                project_id = (await made.json())["id"]
            async with session.post("/manage/tokens", json={"project_id": project_id}) as made:
                tokens.append(str((await made.json())["token"]))
    return tokens


@asynccontextmanager
async def server(folder: pathlib.Path, origin: str) -> AsyncIterator[tuple[str, list[str]]]:
    """The real server; yields its URL and tokens that lead to the origin."""
    (folder / "profiles.yaml").write_text(PROFILE)
    port = free_port()
    settings = {
        "LISTEN_ADDR": f"127.0.0.1:{port}",
        "ADMIN_UI_ENABLED": "false",
        "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN,
        "API_CONFIG_PATH": str(folder / "profiles.yaml"),
        "ALLOW_PRIVATE_UPSTREAMS": "true",
        "LOG_LEVEL": "warning",
    }
    async with process(sys.executable, "-m", "llm_proxy", "server", cwd=folder, env=settings):
        url = f"http://127.0.0.1:{port}"
        await answers(f"{url}/ready")
        yield url, await tokens_for(url, origin)


@asynccontextmanager
async def shim(proxy: str, tokens: Sequence[str]) -> AsyncIterator[str]:
    """Sends a token as `x-api-key`, the same for all that one case asks, in place of the tests' Authorization."""
    host, _, port = proxy.removeprefix("http://").partition(":")

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there_reader, there_writer = await asyncio.open_connection(host, int(port))
        back = asyncio.ensure_future(pass_on(there_reader, writer))
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                token = tokens[zlib.crc32(b"".join(CASE.findall(head.split(b"\r\n")[0]))) % len(tokens)]
                there_writer.write(with_token(head, token) + await body_of(head, reader))
                await there_writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            there_writer.close()
            with contextlib.suppress(ConnectionError):
                await back
            writer.close()

    async with await asyncio.start_server(serve, "127.0.0.1", 0) as listening:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"


def with_token(head: bytes, token: str) -> bytes:
    """The head of a request with our token in place of its credential."""
    first, *lines = head.split(b"\r\n")
    kept = [line for line in lines if not line.lower().startswith(b"authorization:")]
    return b"\r\n".join([first, b"x-api-key: " + token.encode(), *kept])


async def body_of(head: bytes, reader: asyncio.StreamReader) -> bytes:
    """The body of a request, as it was framed."""
    found = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in head.split(b"\r\n"))}
    if b"transfer-encoding" in found:
        return await reader.readuntil(b"0\r\n\r\n")
    return await reader.readexactly(int(found.get(b"content-length", b"0")))


async def pass_on(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Bytes as they come, then the end."""
    with contextlib.suppress(ConnectionError):
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    writer.close()


async def node(*arguments: str, cwd: pathlib.Path, env: dict[str, str] | None = None) -> str:
    """What a script says."""
    running = await asyncio.create_subprocess_exec(
        "node", "--no-warnings", *arguments, cwd=cwd, env={**os.environ, **(env or {})}, stdout=subprocess.PIPE
    )
    async with asyncio.timeout(SECONDS):
        said, _ = await running.communicate()
    return said.decode()


async def run(case: str) -> str:
    """What the client of the package says after all cases, or after one."""
    with tempfile.TemporaryDirectory() as name:
        folder, port = pathlib.Path(name), free_port()
        config = {"protocol": "http", "port": str(port), "base": "", "id": case, "pidfile": str(folder / "pid")}
        env = {f"npm_package_config_{name}": value for name, value in config.items()}
        origin = f"http://127.0.0.1:{port}"
        # The package's server looks for its files from its own folder.
        async with process("node", "server/server.mjs", cwd=PACKAGE, env=env):
            await answers(origin)
            async with server(folder, origin) as (proxy, tokens), shim(proxy, tokens) as base:
                said = await node("cli.mjs", cwd=PACKAGE, env={**env, "npm_package_config_base": base})
        sys.stderr.write((folder / f"{pathlib.Path(sys.executable).name}.log").read_text())
        return said


def scored(cases: Sequence[dict[str, Any]], results: dict[str, Any]) -> dict[str, Any]:
    """How many cases of each kind pass, and which of those that count do not."""
    passed = {case["id"] for case in cases if results.get(case["id"]) is True}
    counted = [case for case in cases if case["kind"] in ("required", "optimal")]
    return {
        **{kind: sum(case["kind"] == kind and case["id"] in passed for case in cases) for kind in ("required", "optimal")},
        "failing": sorted(f"{case['kind']} {case['id']}" for case in counted if case["id"] not in passed),
    }


def main() -> None:
    """Run all cases and compare, record them as the baseline, or show one."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--record", action="store_true", help="make what is found the baseline")
    parser.add_argument("--case", default="", help="run this one, and show what was said")
    asked = parser.parse_args()
    install()
    said = asyncio.run(run(asked.case))
    if asked.case:
        print(said)
        return
    cases = json.loads(asyncio.run(node(str(HERE / "cases.mjs"), cwd=INSTALLED)))
    found, baseline = scored(cases, json.loads(said)), json.loads(BASELINE.read_text()) if BASELINE.exists() else {}
    print(json.dumps(found, indent=1))
    if asked.record:
        BASELINE.write_text(json.dumps(found, indent=1) + "\n")
    elif any(found[kind] < baseline.get(kind, 0) for kind in ("required", "optimal")):
        sys.exit(f"Worse than the baseline: {baseline['required']} required, {baseline['optimal']} optimal.")


if __name__ == "__main__":
    main()
