"""`llm-proxy admin`: the admin site alone, beside a server."""

import pathlib
import signal

import aiohttp
from stage.house import PROVIDER_KEY
from stage.processes import command, house_environment, server
from stage.provider import ScriptedProvider
from stage.visitor import Visitor

TOKEN = "of-the-command-line-and-long-enough-for-anybody"


async def test_it_serves_the_servers_database_and_leaves_calls_to_the_server(
    tmp_path: pathlib.Path, provider: ScriptedProvider
) -> None:
    env = house_environment(tmp_path, LISTEN_ADDR="127.0.0.1:8099", EVENT_SINKS="file")
    async with (
        server(tmp_path, EVENT_SINKS="file") as run,
        command("admin", "--management-token", TOKEN, folder=tmp_path, **env) as alone,
    ):
        token = await run.token_for(provider.url, PROVIDER_KEY)
        line = await alone.until("the admin site listens on ")
        assert not any("the proxy listens" in line for line in alone.err)
        url = line.partition("listens on ")[2].partition('"')[0].partition(";")[0]
        async with aiohttp.ClientSession(cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            visitor = Visitor(session, url)
            assert (await visitor.log_in(TOKEN)).path == "/admin/projects"
            for path in ("health", "events", "cache"):
                assert "This is the admin site alone" in (await visitor.get(f"/admin/{path}")).text, path
            assert "Breaker" not in (await visitor.get("/admin/health")).text
            page = await visitor.send(
                await visitor.get(f"/admin/new-token?project_id={token['project_id']}"), "/admin/tokens", name="app"
            )
            # Code to try it leads to where the server is said to listen.
            assert "http://127.0.0.1:8099/v1" in page.values["snippet-1"]
            headers = {"Authorization": f"Bearer {page.values['secret']}"}
            async with session.get(f"{run.url}/v1/models", headers=headers) as reply:
                assert reply.status == 200
            # A server that is killed finds its events again, as it left them.
            run.send(signal.SIGKILL)
            await run.ended()
            left = kept(tmp_path)
            assert left
            assert (await visitor.get("/admin/events")).status == 200
        assert await alone.stopped() == 0
    assert kept(tmp_path) == left


def kept(folder: pathlib.Path) -> dict[str, bytes]:
    """The files of the event log."""
    return {str(path): path.read_bytes() for path in sorted((folder / "events").rglob("*")) if path.is_file()}
