"""Each gateway of deploy/gateway, run for real in front of the program: it holds nothing back, and lets nothing out."""

import asyncio
import contextlib
import json
import re
import secrets
import ssl
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import aiohttp
import pytest
import pytest_asyncio
from stage.asking import ASKING
from stage.certificates import new_authority
from stage.gateways import FOLDER, KINDS, Gateway, Instance, gateway
from stage.house import MANAGEMENT_TOKEN, House, open_house, settings_for
from stage.postgres import free_port
from stage.programs import needs, path_of
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, answer, chunk, scripted_provider
from stage.raw import connected
from stage.visitor import Visitor

from llm_proxy.wire import KEEPALIVE_SECONDS

pytestmark = [pytest.mark.asyncio(loop_scope="module"), needs("curl")]
VERSIONS = pytest.mark.parametrize("version", ["--http1.1", "--http2"])
# The gateways speak to the program from 127.0.0.1, which alone is trusted.
CLIENT = "127.0.0.2"
CHAT = "/v1/chat/completions"


@dataclass
class Front:
    """A gateway, what is behind it, and a client's credential."""

    gateway: Gateway
    house: House
    provider: ScriptedProvider
    token: str
    trust: Path

    @asynccontextmanager
    async def curl(self, version: str, path: str, *options: str) -> AsyncIterator[asyncio.subprocess.Process]:
        """A call from another machine."""
        process = await asyncio.create_subprocess_exec(
            path_of("curl"),
            *("--silent", "--no-buffer", "--ipv4", "--interface", CLIENT, "--cacert", str(self.trust), version),
            *("--header", f"Authorization: Bearer {self.token}", *options, self.gateway.url + path),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            yield process
        finally:
            if process.returncode is None:
                process.kill()
            await process.communicate()

    async def ask(self, version: str, path: str, *options: str) -> tuple[int, str]:
        """Status and body of one call, which must end as its framing promises."""
        async with self.curl(version, path, "--write-out", "\n%{http_code}", *options) as process:
            said, _ = await process.communicate()
        assert process.returncode == 0, (process.returncode, said)
        body, _, status = said.decode().rpartition("\n")
        return int(status), body

    @asynccontextmanager
    async def browser(self) -> AsyncIterator[Visitor]:
        """A browser at the one address."""
        trust = ssl.create_default_context(cafile=self.trust)
        connector = aiohttp.TCPConnector(ssl=trust, local_addr=(CLIENT, 0))
        async with aiohttp.ClientSession(connector=connector, cookie_jar=aiohttp.CookieJar(unsafe=True)) as session:
            yield Visitor(session, self.gateway.url)


@pytest_asyncio.fixture(
    loop_scope="module", scope="module", params=[pytest.param(name, marks=needs(name), id=name) for name in KINDS]
)
async def front(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Front]:
    folder = tmp_path_factory.mktemp(request.param)
    authority = new_authority(folder)
    settings = settings_for(folder, TRUSTED_PROXIES="127.0.0.1", ALLOWED_HOSTS="localhost")
    async with scripted_provider() as provider, open_house(settings) as house:
        assert house.sites.admin
        made = gateway(request.param, folder / "gateway", authority.pair(), Instance(house.url, house.sites.admin))
        async with made.running():
            yield Front(made, house, provider, await house.token_for(provider.url), authority.file)


@pytest.mark.parametrize("file", ["Caddyfile", "nginx.conf"])
async def test_idle_connections_are_closed_by_the_gateway_and_not_by_the_instance(file: str) -> None:
    # What nginx says behind its certificate is about its clients.
    upstream, _, _ = (FOLDER / file).read_text().partition("ssl_certificate")
    kept = re.findall(r"^\s+keepalive(?:_timeout)? (\d+)s", upstream, re.MULTILINE)
    assert kept and max(map(int, kept)) < KEEPALIVE_SECONDS


async def test_the_program_itself_finds_no_fault_in_the_file(front: Front) -> None:
    done = front.gateway.check()
    assert done.returncode == 0, done.stderr
    # No authority of a test says which certificates it has withdrawn.
    assert not [line for line in done.stderr.lower().splitlines() if "warn" in line and "ocsp" not in line], done.stderr


@VERSIONS
async def test_a_call_goes_through_as_it_is_and_its_client_is_known_whatever_it_claims(front: Front, version: str) -> None:
    async def reply(exchange: Exchange) -> None:
        # To nginx, the header is an order to serve something else.
        await exchange.send(answer(exchange.body, extra=b"X-Accel-Redirect: /ready\r\n"))

    front.provider.script = reply
    body = json.dumps({**ASKING, "note": "ä\\u00e4 / \t"})
    claims = ("--header", "X-Forwarded-For: 6.6.6.6", "--header", "X-Forwarded-Proto: http")
    asked = ("--data-binary", body, "--header", "Content-Type: application/json", *claims)
    assert await front.ask(version, f"{CHAT}?a=%2F&b", *asked) == (200, body)
    [exchange] = front.provider.exchanges[-1:]
    assert exchange.request_line == f"POST {CHAT}?a=%2F&b HTTP/1.1".encode()
    names = {name for name, _ in exchange.headers}
    assert not {name for name in names if name.startswith((b"x-forwarded", b"via", b"accept-encoding"))}, names
    assert front.house.events[-1].client_ip == CLIENT


@VERSIONS
async def test_each_piece_of_a_stream_arrives_before_the_next_is_sent(front: Front, version: str) -> None:
    arrived = asyncio.Event()

    async def stream(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD)
        for number in range(5):
            await exchange.send(chunk(b"data: %d\n\n" % number))
            await arrived.wait()
            arrived.clear()
        await exchange.send(END)

    front.provider.script = stream
    async with asyncio.timeout(10), front.curl(version, CHAT, "--json", json.dumps({**ASKING, "stream": True})) as process:
        assert process.stdout
        for number in range(5):
            assert await process.stdout.readuntil(b"\n\n") == b"data: %d\n\n" % number
            arrived.set()
        assert await process.stdout.read() == b""
        assert await process.wait() == 0


@VERSIONS
async def test_a_body_is_passed_on_while_it_is_sent(front: Front, version: str) -> None:
    begun, size = asyncio.Event(), 2 * 2**20

    async def take(exchange: Exchange) -> None:
        await exchange.reader.readexactly(size // 2)
        begun.set()
        await exchange.reader.readuntil(b"0\r\n\r\n")
        await exchange.send(answer(b"{}"))

    front.provider.script, front.provider.reads_bodies = take, False
    options = ("--request", "POST", "--upload-file", "-", "--header", "Content-Type: application/octet-stream")
    try:
        async with asyncio.timeout(10), front.curl(version, "/v1/files", *options) as process:
            assert process.stdin and process.stdout
            process.stdin.write(bytes(size))
            await begun.wait()
            process.stdin.write(bytes(size))
            process.stdin.close()
            assert await process.stdout.read() == b"{}"
    finally:
        front.provider.reads_bodies = True


@VERSIONS
async def test_what_is_too_large_is_answered_by_the_proxy(front: Front, version: str, tmp_path: Path) -> None:
    large = tmp_path / "large"
    with large.open("wb") as file:
        file.truncate(40 * 2**20)
    options = ("--data-binary", f"@{large}", "--header", "Content-Type: application/json", "--header", "Expect:")
    async with front.curl(version, CHAT, "--write-out", "\n%{http_code}", *options) as process:
        said, _ = await process.communicate()
    body, _, status = said.rpartition(b"\n")
    assert status == b"413"
    # Now and then Caddy loses the answer's body, when the rest of the request is not taken any more.
    assert process.returncode != 0 or json.loads(body)["error"]["code"] == "request_too_large"


@VERSIONS
async def test_a_client_that_leaves_ends_its_call_at_the_provider(front: Front, version: str) -> None:
    async def stall(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
        await exchange.until_closed()

    front.provider.script = stall
    async with front.curl(version, CHAT, "--json", json.dumps({**ASKING, "stream": True})) as process:
        assert process.stdout
        await process.stdout.readuntil(b"\n\n")
    async with asyncio.timeout(5):
        await front.provider.exchanges[-1].closed.wait()


@VERSIONS
async def test_a_stream_that_broke_does_not_look_whole(front: Front, version: str) -> None:
    async def break_off(exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD, chunk(b"data: 1\n\n"))
        exchange.reset()

    front.provider.script = break_off
    async with front.curl(version, CHAT, "--json", json.dumps({**ASKING, "stream": True})) as process:
        said, _ = await process.communicate()
    assert b'"code":"upstream_' in said.replace(b" ", b"") and b"[DONE]" not in said
    assert process.returncode != 0 or front.gateway.ends_what_broke


async def test_the_admin_site_is_at_the_same_address_under_tls(front: Front) -> None:
    async with front.browser() as browser:
        assert (await browser.log_in()).title == "Dashboard"
        assert browser.cookie("__Secure-llm_proxy_session")["secure"]
        name = secrets.token_hex(6)
        done = await browser.send(await browser.get("/admin/new-project"), "/admin/projects", name=name)
        assert done.status == 200 and name in done.text
        assert done.headers["Strict-Transport-Security"] == "max-age=31536000"
        seen = await browser.get("/admin/audit")
        assert CLIENT in seen.text


BELONGS = {
    "/health": 200,
    "/ready": 200,
    "/live": 200,
    "/health/detailed": 200,
    "/manage/projects": 200,
    "/admin/v1/providers": 200,
    "/manage": 404,
    "/openai/deployments/x": 401,
    "/administrator": 401,
    "/metricsX": 401,
}


async def test_every_path_goes_where_it_belongs(front: Front) -> None:
    async with front.browser() as browser:
        pages = {path: await browser.get(path, Authorization=f"Bearer {MANAGEMENT_TOKEN}") for path in BELONGS}
    assert {path: page.status for path, page in pages.items()} == BELONGS
    # The gateway has answered none of them itself.
    assert all("X-Request-ID" in page.headers for page in pages.values())


SPELLINGS = ("", "/", "/prometheus", "?x=1", "#x", "/../metrics", "%2F", ";x")
PATHS = ("/%6Detrics", "//metrics", "/./metrics", "/v1/../metrics", "/admin/../metrics", "/admin/%2e%2e/metrics", "/METRICS")


async def test_metrics_stay_inside(front: Front) -> None:
    parts = urlsplit(front.gateway.url)
    trust = ssl.create_default_context(cafile=front.trust)
    for path in (*(f"/metrics{spelling}" for spelling in SPELLINGS), *PATHS, f"{front.gateway.url}/metrics"):
        reader, writer = await asyncio.open_connection("127.0.0.1", parts.port, ssl=trust, server_hostname="localhost")
        # From this machine itself, as METRICS_TOKEN is not set: only the gateway stands between.
        writer.write(
            f"GET {path} HTTP/1.1\r\nHost: {parts.netloc}\r\nX-Forwarded-For: 127.0.0.1\r\nConnection: close\r\n\r\n".encode()
        )
        said = await reader.read()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()
        assert int(said.split(b" ", 2)[1]) in (400, 401, 403, 404), (path, said)
        assert b"llm_proxy_" not in said
    async with connected(front.house.url) as connection:
        await connection.send(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\n\r\n")
        inside = await connection.answer()
        assert inside and inside.status == 200


async def test_when_no_instance_is_ready_calls_are_served_all_the_same(front: Front) -> None:
    async def echo(exchange: Exchange) -> None:
        await exchange.send(answer(exchange.body))

    front.provider.script, front.house.context.draining = echo, True
    auth = {"Authorization": f"Bearer {front.token}"}
    try:
        async with asyncio.timeout(20), front.browser() as browser:
            # The gateway finds out meanwhile, but nginx, which does not look.
            end = time.monotonic() + {"caddy": 1.5, "haproxy": 0.5, "nginx": 0}[front.gateway.name]
            while time.monotonic() < end or (await browser.get("/ready")).status != 503:
                async with browser.session.post(front.gateway.url + CHAT, json=ASKING, headers=auth) as reply:
                    assert (reply.status, await reply.json()) == (200, ASKING)
    finally:
        front.house.context.draining = False


async def test_without_tls_pages_lead_to_it_and_calls_are_refused(front: Front) -> None:
    async with aiohttp.ClientSession() as client:
        for path in ("/", "/admin", "/admin/login?next=/admin/"):
            async with client.get(front.gateway.clear + path, allow_redirects=False) as reply:
                assert (reply.status, urlsplit(reply.headers["Location"])._replace(scheme="", netloc="").geturl()) == (308, path)
                assert reply.headers["Location"].startswith("https://localhost")
        for method, path in (("POST", CHAT), ("GET", "/v1/models"), ("POST", "/admin/login"), ("GET", "/manage/projects")):
            async with client.request(method, front.gateway.clear + path, allow_redirects=False) as reply:
                assert reply.status == 403


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in KINDS])
async def test_a_call_that_was_sent_is_not_sent_twice(name: str, tmp_path: Path) -> None:
    authority = new_authority(tmp_path)

    async def break_off(exchange: Exchange) -> None:
        if exchange.request_line.startswith(b"GET /"):
            await exchange.send(answer(b"{}"))
        else:
            exchange.reset()

    async with scripted_provider() as one, scripted_provider() as other:
        one.script = other.script = break_off
        instances = [Instance(site.url, site.url) for site in (one, other)]
        made = gateway(name, tmp_path / "gateway", authority.pair(), *instances)
        trust = ssl.create_default_context(cafile=authority.file)
        async with (
            made.running(),
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as client,
            client.post(made.url + CHAT, json=ASKING) as reply,
        ):
            assert reply.status == 502
        posts = [found for site in (one, other) for found in site.exchanges if found.request_line.startswith(b"POST")]
    assert len(posts) == 1


LOGS = ("output", "access.log", "error.log")


@pytest.mark.parametrize("name", [pytest.param(name, marks=needs(name)) for name in KINDS])
async def test_no_log_holds_the_token_of_a_call_that_could_not_be_passed_on(name: str, tmp_path: Path) -> None:
    authority = new_authority(tmp_path)
    gone = f"http://127.0.0.1:{free_port()}"
    made = gateway(name, tmp_path / "gateway", authority.pair(), Instance(gone, gone))
    trust = ssl.create_default_context(cafile=authority.file)
    headers = {"api-key": "sk-in-header", "Authorization": "Bearer sk-in-header"}
    async with made.running(), aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trust)) as client:
        for path in (CHAT, "/admin/login"):
            async with client.post(f"{made.url}{path}?key=sk-in-query", json=ASKING, headers=headers) as reply:
                assert reply.status in (502, 503)
    said = "".join(path.read_text() for path in (tmp_path / "gateway").iterdir() if path.name in LOGS)
    # HAProxy on its standard output, like Caddy; nginx in files. The call itself must be told of.
    assert CHAT in said and "sk-in-" not in said
