"""The real `llm-proxy server`, as processes: several on one database, stopped, killed, searched for secrets."""

import asyncio
import base64
import contextlib
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
import psycopg2
import pytest
from stage.calls import last_words, stream_without_end, streaming
from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN, PROVIDER_KEY
from stage.processes import Server, server
from stage.provider import ScriptedProvider, answer
from stage.raw import exchange
from stage.secrets import SCRIPT

from llm_proxy import fake_provider
from llm_proxy.fake_provider import Faults

CHAT = {"model": "gpt-4o-mini", "messages": [{"role": "user", "content": "Say hello."}]}
STREAM = {**CHAT, "stream": True}


@pytest.fixture(params=["sqlite", "postgres"])
def database(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> dict[str, str]:
    """The setting that names a new, empty database, once of each kind."""
    if request.param == "postgres":
        return {"DATABASE_URL": request.getfixturevalue("empty_postgres_url")}
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
    database: dict[str, str], tmp_path: pathlib.Path, provider: ScriptedProvider, client: aiohttp.ClientSession
) -> None:
    provider.script = stream_without_end
    async with two_servers(tmp_path, **database) as (one, other):
        made = await one.token_for(provider.url, PROVIDER_KEY)
        async with streaming(other, made["token"]) as stream:
            await one.manage("DELETE", f"/manage/tokens/{made['id']}")
            async with asyncio.timeout(1):
                assert await last_words(stream) == "token_inactive"
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


def check(folder: pathlib.Path, secrets: set[str]) -> str:
    """What scripts/check-secrets says of a folder."""
    done = subprocess.run([sys.executable, SCRIPT, folder], input="\n".join(secrets), capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


async def test_no_secret_is_in_what_a_run_leaves_on_disk(
    database: dict[str, str], tmp_path: pathlib.Path, provider: ScriptedProvider
) -> None:
    metrics_token = secrets.token_hex(16)
    env = {"LOG_FILE": str(tmp_path / "server.log"), "AUDIT_LOG_FILE": str(tmp_path / "audit.jsonl"), **database}
    async with server(tmp_path, **env, LOG_LEVEL="debug", METRICS_TOKEN=metrics_token) as site:
        run = Run(site, provider)
        await run.everything(metrics_token)
        # First while the write-ahead log is full of what was just written, then as an orderly stop leaves it.
        while_running = check(tmp_path, run.used)
        assert await site.stopped() == 0
    if "DATABASE_URL" in database:
        dump(database["DATABASE_URL"], tmp_path / "shared.db")
    assert while_running.startswith(f"None of {len(run.used)} secrets in ")
    assert check(tmp_path, run.used).startswith(f"None of {len(run.used)} secrets in ")
    # That the search works: what is no secret is found in all three.
    found = check(tmp_path, {run.project_id})
    assert all(f"{tmp_path}/{name}" in found for name in ("shared.db", "server.log", "audit.jsonl"))


def dump(url: str, file: pathlib.Path) -> None:
    """Write every row of a PostgreSQL database to a file."""
    with contextlib.closing(psycopg2.connect(url)) as connection, connection.cursor() as cursor, file.open("w") as output:
        cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        for [table] in cursor.fetchall():
            cursor.execute(f'SELECT t::text FROM "{table}" t')
            output.writelines(f"{table}: {row}\n" for [row] in cursor.fetchall())


def basic_of(user: str, password: str) -> str:
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()


class Run:
    """Every kind of request, good and bad, with a note of each secret that was in one."""

    def __init__(self, site: Server, provider: ScriptedProvider) -> None:
        self.site, self.provider = site, provider
        self.used = {PROVIDER_KEY, MANAGEMENT_TOKEN, ENCRYPTION_KEY}
        self.project_id = ""

    def secret(self, prefix: str = "") -> str:
        """A new secret, noted."""
        made = prefix + secrets.token_hex(20)
        self.used.add(made)
        return made

    async def everything(self, metrics_token: str) -> None:
        """All of it, one after the other."""
        self.used.add(metrics_token)
        token = await self.manage()
        async with aiohttp.ClientSession() as client:
            await self.good_calls(client, token)
            await self.refused_calls(client, token)
            await self.failing_calls(client, token)
            await self.operator_mistakes(client, metrics_token)
        await self.unparsable_requests(token)

    async def manage(self) -> str:
        """Projects, keys old and new, tokens kept and revoked; returns a token."""
        manage, url = self.site.manage, self.provider.url
        made = await manage("POST", "/manage/projects", {"name": "web", "api_key": self.secret("sk-"), "api_base": url})
        self.project_id = made["id"]
        place = f"/manage/projects/{made['id']}"
        await manage("PATCH", place, {"api_key": PROVIDER_KEY})
        second = await manage("POST", f"{place}/providers", {"api_key": self.secret(), "api_base": url, "is_enabled": False})
        await manage("PATCH", f"{place}/providers/{second['id']}", {"api_key": self.secret("sk-ant-")})
        tokens = [await manage("POST", "/manage/tokens", {"project_id": made["id"], "max_requests": n}) for n in (1, 1000)]
        self.used |= {token["token"] for token in tokens}
        await manage("DELETE", f"/manage/tokens/{tokens[0]['id']}")
        self.revoked = tokens[0]["token"]
        return str(tokens[1]["token"])

    async def good_calls(self, client: aiohttp.ClientSession, token: str) -> None:
        """JSON and streams, with the credential in each of its places."""
        for headers in ({"Authorization": f"Bearer {token}"}, {"x-api-key": token}, {"api-key": token}):
            for body in (CHAT, STREAM):
                async with client.post(f"{self.site.url}/v1/chat/completions", json=body, headers=headers) as reply:
                    assert reply.status == 200
                    await reply.read()

    async def refused_calls(self, client: aiohttp.ClientSession, token: str) -> None:
        """Wrong and misplaced credentials."""
        url, bearer = self.site.url, f"Bearer {token}"
        mistyped, stranger = token[:-1] + ("a" if token[-1] != "a" else "b"), self.secret("sk-proj-")
        self.used.add(mistyped)
        basic = basic_of("user", token)
        for path, headers, status in (
            ("/v1/models", {"Authorization": f"Bearer {mistyped}"}, 401),
            ("/v1/models", {"Authorization": f"Bearer {stranger}"}, 401),
            ("/v1/models", {"Authorization": f"Bearer {self.revoked}"}, 401),
            ("/v1/models", {"Authorization": basic}, 401),
            ("/v1/models", {"Authorization": bearer, "x-api-key": stranger}, 400),
            (f"/v1/models?api_key={token}", {"Authorization": bearer}, 400),
            (f"/v1/models?key={token}", {}, 401),
            (f"/v1/unknown/{token}", {"Authorization": bearer}, 404),
            (f"/{token}", {}, 401),
        ):
            async with client.get(url + path, headers=headers) as reply:
                assert reply.status in (status, 400), (path, headers, await reply.text())

    async def failing_calls(self, client: aiohttp.ClientSession, token: str) -> None:
        """Providers that show their key in errors, in a broken head, in a stream that breaks."""

        async def echo(exchange: Any) -> None:
            key = exchange.header(b"authorization")
            await exchange.send(answer(b'{"error": {"message": "Incorrect API key provided: %b"}}' % key, status=b"401 " + key))

        async def garbage(exchange: Any) -> None:
            await exchange.send(b"HTTP/1.1 200 OK\r\nX Broken " + exchange.header(b"authorization") + b"\r\n\r\n")

        async def broken(exchange: Any) -> None:
            await exchange.send(answer(b"data: " + exchange.header(b"authorization"), b"text/event-stream")[:-5])
            exchange.reset()

        for script in (echo, garbage, broken):
            self.provider.script = script
            for body in (CHAT, STREAM):
                with contextlib.suppress(aiohttp.ClientError):
                    async with call(client, self.site.url, token, body) as reply:
                        await reply.read()
                        assert reply.status in (401, 502)

    async def operator_mistakes(self, client: aiohttp.ClientSession, metrics_token: str) -> None:
        """Wrong, misplaced and malformed things at the management API, the metrics and the admin site."""
        url, good = self.site.url, {"Authorization": f"Bearer {MANAGEMENT_TOKEN}"}
        wrong = {"Authorization": f"Bearer {self.secret()}"}
        basic = {"Authorization": basic_of("admin", MANAGEMENT_TOKEN)}
        for headers in (wrong, basic):
            for path in ("/manage/projects", f"/manage/tokens/{MANAGEMENT_TOKEN}", f"/manage/audit?token={MANAGEMENT_TOKEN}"):
                async with client.get(url + path, headers=headers) as reply:
                    assert reply.status == 401
        for body in (
            {"name": "web", "api_key": self.secret("sk-")},
            {"name": "other", "api_key": self.secret("sk- with space ")},
            {"name": "other", "api_key": self.secret("sk-"), "api_base": f"http://u:{self.secret()}@example.com"},
            {"name": "other", "apikey": self.secret("sk-")},
            [self.secret("sk-")],
        ):
            async with client.post(f"{url}/manage/projects", json=body, headers=good) as reply:
                assert reply.status in (400, 409), await reply.text()
        for site in (url, self.site.admin):
            for headers in ({"Authorization": f"Bearer {metrics_token}"}, wrong):
                async with client.get(f"{site}/metrics", headers=headers) as reply:
                    assert reply.status in (200, 401)

    async def unparsable_requests(self, token: str) -> None:
        """Heads that no parser admits, with a credential in them."""
        for head in (
            f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization : Bearer {token}\r\n\r\n",
            f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {token}\x00\r\n\r\n",
            f"{token} /v1/models HTTP/1.1\r\nHost: x\r\n\r\n",
            f"GET http://{token}@x/ HTTP/1.1\r\nHost: x\r\n\r\n",
        ):
            found = await exchange(self.site.url, head.encode())
            assert found is None or found.status in (400, 401, 421), found
