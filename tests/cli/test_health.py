"""`llm-proxy health`: 0 for who is well, 1 with the reason for everything else."""

import asyncio
import pathlib
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from stage.house import House, open_house, settings_for
from stage.postgres import free_port
from stage.processes import environment

from llm_proxy.cli import health

from .conftest import Cli, Done


async def asked(cli: Cli, url: str, *arguments: str, **env: str) -> Done:
    return await asyncio.to_thread(cli, "health", "--addr", url.removeprefix("http://"), *arguments, **env)


@pytest.mark.parametrize("hosts", ["", "proxy.example,other.example"], ids=["any host", "only some hosts"])
async def test_a_server_that_is_well_says_so(cli: Cli, tmp_path: pathlib.Path, hosts: str) -> None:
    async with open_house(settings_for(tmp_path, ALLOWED_HOSTS=hosts)) as house:
        assert await asked(cli, house.url, ALLOWED_HOSTS=hosts) == Done(0, "ok\n", "")
        assert await asked(cli, house.url, "--ready", ALLOWED_HOSTS=hosts) == Done(0, "ready\n", "")
        if hosts:
            done = await asked(cli, house.url)
            assert done.code == 1 and "(ALLOWED_HOSTS)" in done.err


async def test_while_it_drains_it_is_well_but_not_ready(cli: Cli, house: House) -> None:
    house.context.draining = True
    assert (await asked(cli, house.url)).code == 0
    assert await asked(cli, house.url, "--ready") == Done(1, "", f"Error: Not well, says {house.url}/ready: draining\n")


@asynccontextmanager
async def stranger(answer: bytes) -> AsyncIterator[str]:
    """Something that listens, and answers everybody the same; without an answer it keeps silent."""

    async def meet(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        await (reader.read() if not answer else writer.drain())
        writer.close()

    async with await asyncio.start_server(meet, "127.0.0.1", 0) as server:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"


@pytest.mark.parametrize(
    ("answer", "says"),
    [
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhello", "with status 200, is no LLM Proxy", id="a stranger"),
        pytest.param(b"HTTP/1.1 404 No\r\nContent-Length: 2\r\n\r\n{}", "with status 404, is no LLM Proxy", id="another API"),
        pytest.param(b"SSH-2.0-OpenSSH_9.2p1\r\n", "No answer from", id="no HTTP"),
        pytest.param(b"", "No answer from", id="silence"),
    ],
)
async def test_what_is_no_server_is_not_well(cli: Cli, monkeypatch: pytest.MonkeyPatch, answer: bytes, says: str) -> None:
    monkeypatch.setattr(health, "SECONDS", 0.1)
    async with stranger(answer) as url:
        done = await asked(cli, url)
    assert (done.code, done.out) == (1, "") and says in done.err


def test_nobody_there_is_said_with_the_reason(cli: Cli) -> None:
    done = cli("health", LISTEN_ADDR=f"127.0.0.1:{free_port()}")
    assert done.code == 1 and "Connection refused. LISTEN_ADDR or --addr" in done.err


def test_it_starts_quickly_as_it_is_run_twice_a_minute() -> None:
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        code = f"""
import sys
from llm_proxy.cli import command
try:
    command.main(["health", "--addr", "127.0.0.1:{silent.getsockname()[1]}"])
finally:
    print({{"aiohttp", "asyncio", "uvloop", "cryptography", "psycopg2", "yaml"}} & set(sys.modules))
"""
        done = subprocess.run([sys.executable, "-c", code], check=False, env=environment(), capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "set()\n"), done.stderr
