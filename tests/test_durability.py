"""Killed without warning under load, the server has every event of an answer that a client received whole."""

import asyncio
import contextlib
import os
import pathlib
import random
import secrets
import signal
import sqlite3
from collections import Counter

import aiohttp
from stage.asking import until
from stage.house import MANAGEMENT_TOKEN, PROVIDER_KEY
from stage.logs import lines_of, logged
from stage.processes import Server, server

KILLS = int(os.environ.get("KILLS", "4"))
CLIENTS = 8
BODY = {"model": "gpt-4o", "messages": [{"role": "user", "content": "hello"}]}


async def calls(client: aiohttp.ClientSession, url: str, token: str, stream: bool, whole: list[str]) -> None:
    """Calls one after the other, until the server is gone; notes the ids of those whose answer came whole."""
    while True:
        id = secrets.token_hex(8)
        headers = {"Authorization": f"Bearer {token}", "X-Request-ID": id}
        try:
            async with client.post(f"{url}/v1/chat/completions", json={**BODY, "stream": stream}, headers=headers) as reply:
                await reply.read()
                assert reply.status == 200
                whole.append(id)
        except aiohttp.ClientError:
            return


async def test_no_event_of_a_whole_answer_is_lost_or_doubled_by_kill_9(tmp_path: pathlib.Path, fake: str) -> None:
    chance, whole, token = random.Random(3), list[str](), ""
    for _ in range(KILLS):
        async with server(tmp_path) as site, aiohttp.ClientSession() as client:
            token = token or (await site.token_for(fake, PROVIDER_KEY))["token"]
            clients = [asyncio.ensure_future(calls(client, site.url, token, n % 2 == 1, whole)) for n in range(CLIENTS)]
            await asyncio.sleep(chance.uniform(0.1, 0.4))
            site.send(signal.SIGKILL)
            await asyncio.gather(*clients)
    found = Counter(event["request_id"] for event in logged(tmp_path / "events"))
    assert len(whole) > KILLS
    assert [id for id in whole if found[id] != 1] == []
    assert max(found.values()) == 1
    async with server(tmp_path, EVENT_SINKS="file") as site:
        await until(lambda: {event["request_id"] for event in lines_of(tmp_path / "events.jsonl")} >= set(whole), 20)
        assert await site.stopped() == 0


async def test_what_a_killed_server_had_not_delivered_another_delivers(tmp_path: pathlib.Path, fake: str) -> None:
    whole: list[str] = []
    async with server(tmp_path) as site, aiohttp.ClientSession() as client:
        token = (await site.token_for(fake, PROVIDER_KEY))["token"]
        clients = [asyncio.ensure_future(calls(client, site.url, token, False, whole)) for _ in range(CLIENTS)]
        await asyncio.sleep(0.3)
        site.send(signal.SIGKILL)
        await asyncio.gather(*clients)
    [folder] = (tmp_path / "events").iterdir()
    # As where the next instance runs on another machine.
    folder.rename(folder.with_name("another-machine-1"))
    async with server(tmp_path, EVENT_SINKS="file") as site:
        await until(lambda: not folder.with_name("another-machine-1").exists(), 20)
        assert await site.stopped() == 0
    delivered = [event["request_id"] for event in lines_of(tmp_path / "events.jsonl")]
    assert set(delivered) >= set(whole) and len(delivered) == len(set(delivered))


async def create_tokens(client: aiohttp.ClientSession, site: Server, project: str, acknowledged: list[str]) -> None:
    """Makes tokens one after the other, until the server is gone; notes the ids of those that it answered for."""
    headers = {"Authorization": f"Bearer {MANAGEMENT_TOKEN}"}
    with contextlib.suppress(aiohttp.ClientError):
        while True:
            async with client.post(f"{site.url}/manage/tokens", json={"project_id": project}, headers=headers) as reply:
                assert reply.status == 201
                acknowledged.append((await reply.json())["id"])


async def test_every_token_that_was_answered_for_is_there_after_kill_9_with_its_audit_event(tmp_path: pathlib.Path) -> None:
    acknowledged: list[str] = []
    async with server(tmp_path) as site, aiohttp.ClientSession() as client:
        project = (await site.manage("POST", "/manage/projects", {"name": "demo"}))["id"]
        clients = [asyncio.ensure_future(create_tokens(client, site, project, acknowledged)) for _ in range(CLIENTS)]
        await until(lambda: len(acknowledged) > 4 * CLIENTS)
        site.send(signal.SIGKILL)
        await asyncio.gather(*clients)
    with contextlib.closing(sqlite3.connect(tmp_path / "house.db")) as found:
        kept = {id for (id,) in found.execute("SELECT id FROM tokens")}
        audited = {id for (id,) in found.execute("SELECT token_id FROM audit_events WHERE action = 'token.create'")}
    assert set(acknowledged) <= kept == audited
