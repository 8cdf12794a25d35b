"""`llm-proxy fake-provider`: served as its flags say, until it is told to stop."""

import json
import pathlib
import signal
import socket

import aiohttp
import pytest
from stage.processes import command

from .conftest import Cli

CHAT = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hi"}]}


@pytest.mark.parametrize("host", ["127.0.0.1", "[::1]"])
async def test_it_says_where_it_is_serves_as_told_and_stops_in_order(tmp_path: pathlib.Path, host: str) -> None:
    flags = ("--addr", f"{host}:0", "--require-key", "the-key", "--words", "3")
    async with command("fake-provider", *flags, folder=tmp_path) as run, aiohttp.ClientSession() as client:
        url = (await run.until("The fake provider listens on")).split()[-1]
        assert url.startswith(f"http://{host}:")
        async with client.post(f"{url}/v1/chat/completions", json=CHAT) as refused:
            assert refused.status == 401
        async with client.post(f"{url}/v1/chat/completions", json=CHAT, headers={"Authorization": "Bearer the-key"}) as good:
            assert json.loads(await good.read())["choices"][0]["message"]["content"] == "Hello! You said:"
        run.send(signal.SIGINT)
        assert await run.ended() == 0


async def test_a_fault_by_flag_is_that_of_every_answer(tmp_path: pathlib.Path) -> None:
    flags = ("--addr", "127.0.0.1:0", "--status", "529", "--retry-after", "7")
    async with command("fake-provider", *flags, folder=tmp_path) as run, aiohttp.ClientSession() as client:
        url = (await run.until("The fake provider listens on")).split()[-1]
        async with client.post(f"{url}/v1/chat/completions", json=CHAT) as reply:
            assert (reply.status, reply.headers["Retry-After"]) == (529, "7")


def test_a_port_that_is_taken_is_said_in_one_line(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        done = cli("fake-provider", "--addr", address)
    assert (done.code, done.err) == (1, f"Error: --addr {address}: cannot listen there: Address already in use.\n")


@pytest.mark.parametrize("flags", [("--addr", "nowhere"), ("--status", "1000"), ("--delay", "-1"), ("--cut", "x")], ids=" ".join)
def test_a_flag_that_cannot_be_used_exits_2(cli: Cli, flags: tuple[str, ...]) -> None:
    done = cli("fake-provider", *flags)
    assert done.code == 2
    assert f"Invalid value for '{flags[0]}'" in done.err
