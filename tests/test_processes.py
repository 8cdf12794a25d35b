"""The real `llm-proxy server`, as processes: several on one database, stopped, killed, searched for secrets."""

import asyncio
import pathlib
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import aiohttp
import pytest

from llm_proxy import fake_provider
from llm_proxy.fake_provider import Faults
from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN, PROVIDER_KEY
from stage.processes import Server, server
from stage.provider import ScriptedProvider, answer
from stage.secrets import SCRIPT

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}
STREAM = {**CHAT, "stream": True}


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> dict[str, str]:
    """The setting that names a new, empty database, once of each kind."""
    if request.param == "postgres":
        return {"DATABASE_URL": request.getfixturevalue("postgres_url")}
    return {"DATABASE_PATH": str(tmp_path / "shared.db")}


@asynccontextmanager
async def two_servers(folder: pathlib.Path, **env: str) -> AsyncIterator[tuple[Server, Server]]:
    """Two servers that are started at the same moment."""
    async with AsyncExitStack() as stack:
        one, other = await asyncio.gather(*(stack.enter_async_context(server(folder, **env)) for _ in range(2)))
        yield one, other


@pytest.fixture
async def client() -> AsyncIterator[aiohttp.ClientSession]:
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=30)) as session:
        yield session


def call(client: aiohttp.ClientSession, url: str, token: str, body: Any = CHAT, **headers: str) -> Any:
    """A chat completion, to be entered or awaited."""
    return client.post(f"{url}/v1/chat/completions", json=body, headers={"Authorization": f"Bearer {token}", **headers})


async def status_of(client: aiohttp.ClientSession, url: str, token: str) -> int:
    async with call(client, url, token) as reply:
        await reply.read()
        return int(reply.status)


async def test_two_servers_that_start_at_once_on_a_new_database_both_serve(
    database: dict[str, str], tmp_path: pathlib.Path, fake: str, client: aiohttp.ClientSession
) -> None:
    async with two_servers(tmp_path, **database) as (one, other):
        made = await one.token_for(fake, PROVIDER_KEY)
        assert [await status_of(client, site.url, made["token"]) for site in (one, other)] == [200, 200]
        assert [await site.stopped() for site in (one, other)] == [0, 0]


async def test_a_revocation_in_one_server_ends_the_token_and_its_streams_in_the_other_within_a_second(
    database: dict[str, str], tmp_path: pathlib.Path, client: aiohttp.ClientSession
) -> None:
    endless = Faults(drip=0.02, words=100_000)
    async with fake_provider.running(faults=endless) as slow, two_servers(tmp_path, **database) as (one, other):
        made = await one.token_for(slow, PROVIDER_KEY)
        async with call(client, other.url, made["token"], STREAM) as stream:
            await stream.content.readany()
            await one.manage("DELETE", f"/manage/tokens/{made['id']}")
            async with asyncio.timeout(1):
                with pytest.raises(aiohttp.ClientPayloadError):
                    while True:
                        last = await stream.content.readany()
            assert b"token_inactive" in last
        assert await status_of(client, other.url, made["token"]) == 401


async def test_the_time_to_start_is_reported(tmp_path: pathlib.Path, record_property: Any) -> None:
    for kind in ("first", "second"):
        began = time.perf_counter()
        async with server(tmp_path) as site:
            record_property(f"{kind}_start_seconds", took := round(time.perf_counter() - began, 3))
            print(f"{kind} start: {took} s")
            assert await site.stopped() == 0


async def test_sigterm_with_50_streams_drains_finishes_them_all_and_exits_0(
    tmp_path: pathlib.Path, client: aiohttp.ClientSession
) -> None:
    # 40 chunks, each after 60 ms: more than the drain, so that the streams end after the listeners were closed.
    slow = Faults(drip=0.06, words=40)
    async with fake_provider.running(faults=slow) as provider, server(tmp_path, DRAIN_DELAY="1s") as site:
        made = await site.token_for(provider, PROVIDER_KEY)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector) as streamers:
            streams = [await call(streamers, site.url, made["token"], STREAM) for _ in range(50)]
            site.send(signal.SIGTERM)
            await until_not_ready(client, site.url)
            assert await status_of(client, site.url, made["token"]) == 200
            texts = await asyncio.gather(*(stream.text() for stream in streams))
        assert [text.strip().endswith("data: [DONE]") for text in texts] == [True] * 50
        assert await site.ended() == 0


async def until_not_ready(client: aiohttp.ClientSession, url: str) -> None:
    async with asyncio.timeout(1):
        while True:
            async with client.get(f"{url}/ready") as reply:
                if reply.status == 503:
                    assert (await reply.json())["missing"] == ["draining"]
                    return


async def test_a_quota_is_never_exceeded_over_kill_9(
    tmp_path: pathlib.Path, provider: ScriptedProvider, client: aiohttp.ClientSession
) -> None:
    token, quota = "", 300
    for _ in range(4):
        async with server(tmp_path) as site:
            token = token or (await site.token_for(provider.url, PROVIDER_KEY, max_requests=quota))["token"]
            await calls_until_killed(client, site, token)
    before = len(provider.exchanges)
    async with server(tmp_path) as site:
        while await status_of(client, site.url, token) == 200:
            pass
    assert 0 < before < len(provider.exchanges) <= quota


async def calls_until_killed(client: aiohttp.ClientSession, site: Server, token: str) -> None:
    """Call from eight sides; after 30 answers the server is killed, with calls under way and a lease in hand."""
    answered = 0

    async def caller() -> None:
        nonlocal answered
        while answered < 30:
            await status_of(client, site.url, token)
            answered += 1
        site.send(signal.SIGKILL)

    await asyncio.gather(*(caller() for _ in range(8)), return_exceptions=True)


async def test_no_secret_is_in_what_a_run_leaves_on_disk(
    tmp_path: pathlib.Path, provider: ScriptedProvider, client: aiohttp.ClientSession
) -> None:
    metrics_token = secrets.token_hex(16)
    env = {
        "LOG_FILE": str(tmp_path / "server.log"),
        "LOG_LEVEL": "debug",
        "AUDIT_LOG_FILE": str(tmp_path / "audit.jsonl"),
        "METRICS_TOKEN": metrics_token,
        "LISTEN_ADDR": f"127.0.0.1:{free_port()}",
    }
    used = {PROVIDER_KEY, MANAGEMENT_TOKEN, ENCRYPTION_KEY, metrics_token}
    async with server(tmp_path, **env) as site:
        used |= await every_kind_of_call(client, site, provider, metrics_token)
        # Killed, the server leaves its write-ahead log and all that lies in it.
        await asyncio.sleep(0)
        assert check(tmp_path, used) == f"None of {len(used)} secrets in {len(left_in(tmp_path))} files.\n"
        assert await site.stopped() == 0
    assert {"house.db", "server.log", "audit.jsonl"} <= left_in(tmp_path)
    assert all((tmp_path / name).stat().st_size for name in ("house.db", "server.log", "audit.jsonl"))
    assert check(tmp_path, used) == f"None of {len(used)} secrets in {len(left_in(tmp_path))} files.\n"
