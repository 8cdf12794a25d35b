"""`llm-proxy admin`: the admin site alone, beside a server."""

import pathlib
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from urllib.parse import urlsplit

import aiohttp
from stage.house import PROVIDER_KEY
from stage.logs import samples
from stage.processes import Process, Server, command, house_environment, server
from stage.provider import END, STREAM_HEAD, ScriptedProvider, chunk
from stage.scripts import sends
from stage.visitor import Visitor

from llm_proxy.events.dead_letters import FILE, DeadLetters

TOKEN = "of-the-command-line-and-long-enough-for-anybody"
ALONE = "This is the admin site alone"
SAID = chunk(b'data: {"choices":[{"delta":{"content":"Hello."}}]}\n\ndata: [DONE]\n\n')


@asynccontextmanager
async def alone_beside(run: Server, folder: pathlib.Path) -> AsyncIterator[tuple[Process, Visitor]]:
    """The admin site of another process on the server's database, with somebody who is logged in there."""
    env = house_environment(folder, LISTEN_ADDR=urlsplit(run.url).netloc, EVENT_SINKS="file")
    async with (
        command("admin", "--management-token", TOKEN, folder=folder, **env) as alone,
        aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session,
    ):
        line = await alone.until("the admin site listens on ")
        assert not any("the proxy listens" in line for line in alone.err)
        visitor = Visitor(session, line.partition("listens on ")[2].partition('"')[0].partition(";")[0])
        assert (await visitor.log_in(TOKEN)).path == "/admin/dashboard"
        yield alone, visitor


async def test_it_serves_the_servers_database_and_leaves_calls_to_the_server(
    tmp_path: pathlib.Path, provider: ScriptedProvider
) -> None:
    provider.script = sends(STREAM_HEAD, SAID, END)
    async with server(tmp_path, EVENT_SINKS="file") as run, alone_beside(run, tmp_path) as (alone, visitor):
        token = await run.token_for(provider.url, PROVIDER_KEY)
        pages = {
            path: await visitor.get(f"/admin/{path}") for path in ("dashboard", "requests", "chat", "health", "events", "cache")
        }
        assert [path for path, page in pages.items() if ALONE not in page.text] == []
        assert "Breaker" not in pages["health"].text
        # What only the server knows is not told as nothing.
        for path in ("dashboard", "requests"):
            unknown = (">Active calls<", ">Event backlog<", "breaker closed", "No call runs now")
            assert not [text for text in unknown if text in pages[path].source], path
        assert not any(given.get("id") == "tail" for _, given in pages["requests"].tags)
        page = await visitor.send(
            await visitor.get(f"/admin/new-token?project_id={token['project_id']}"), "/admin/tokens", name="app"
        )
        # Code to try it leads to where the server is said to listen.
        assert f"{run.url}/v1" in page.values["snippet-1"]
        headers = {"Authorization": f"Bearer {page.values['secret']}"}
        async with visitor.session.get(f"{run.url}/v1/models", headers=headers) as reply:
            assert reply.status == 200
        # A chat goes through the server.
        page = await visitor.send(await visitor.get("/admin/chat"), "/admin/chat", question="Are you there?")
        assert '<h3>Model</h3><div class="text">Hello.</div>' in page.source
        assert run.url in page.text
        # A letter that a sink refused is delivered from here.
        letters = DeadLetters(tmp_path / "events" / FILE)
        await letters.add("file", "refused", event={**samples(0)[0], "id": "retried"})
        page = await visitor.send(await visitor.get("/admin/events"), "/admin/events/retry")
        assert "Delivered again: 1." in page.text
        assert "retried" in (tmp_path / "events.jsonl").read_text() and list(letters.letters()) == []
        # A server that is killed finds its events again, as it left them.
        run.send(signal.SIGKILL)
        await run.ended()
        left = kept(tmp_path)
        assert left
        assert (await visitor.get("/admin/events")).status == 200
        page = await visitor.send(await visitor.get("/admin/chat"), "/admin/chat", question="And now?")
        assert f"The proxy cannot be reached at {run.url}" in page.text
        assert await alone.stopped() == 0
    assert kept(tmp_path) == left


def kept(folder: pathlib.Path) -> dict[str, bytes]:
    """The files of the event log."""
    return {str(path): path.read_bytes() for path in sorted((folder / "events").rglob("*")) if path.is_file()}
