"""Both sites, really started: served, stopped in order, cut, handed over by systemd."""

import asyncio
import contextlib
import math
import pathlib
import re
import signal
import socket
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import orjson
import pytest
from stage.asking import STREAM, call, until
from stage.house import MANAGEMENT_TOKEN, PROVIDER_KEY, House, open_house, settings_for
from stage.notified import notified
from stage.passing import passed_to, started_by
from stage.postgres import free_port
from stage.processes import Server, server
from stage.provider import END, STREAM_HEAD, Exchange, ScriptedProvider, answer, chunk
from stage.raw import Answer, RawConnection, connected

from llm_proxy import server as serving
from llm_proxy.context import open_context
from llm_proxy.errors import StartError
from llm_proxy.server import _by_purpose, _limits, _Stop

EVENT = b'data: {"choices": []}\n\n'
LIVE = b"GET /live HTTP/1.1\r\nHost: h\r\n\r\n"
READY = b"GET /ready HTTP/1.1\r\nHost: h\r\n\r\n"


class Streams:
    """A provider's script: each stream sends an event, and ends when it is released."""

    def __init__(self, provider: ScriptedProvider) -> None:
        self.released = asyncio.Event()
        provider.script = self

    async def __call__(self, exchange: Exchange) -> None:
        await exchange.send(STREAM_HEAD + chunk(EVENT))
        await self.released.wait()
        await exchange.send(chunk(b"data: [DONE]\n\n") + END)


@asynccontextmanager
async def streaming(url: str, token: str, count: int) -> AsyncIterator[list[RawConnection]]:
    """So many streams, each with its first event on its way."""
    async with AsyncExitStack() as stack:
        opened = [await stack.enter_async_context(connected(url)) for _ in range(count)]
        for one in opened:
            await one.send(call(token, body=STREAM))
        for one in opened:
            await one.reader.readuntil(EVENT + b"\r\n")
        yield opened


async def rest_of(connection: RawConnection) -> bytes:
    """What comes of a stream until it ends or breaks."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while not data.endswith(END) and (piece := await connection.reader.read(65536)):
            data += piece
    return data


async def ask(url: str, data: bytes) -> Answer:
    async with asyncio.timeout(5), connected(url) as connection:
        await connection.send(data)
        found = await connection.answer()
        assert found
        return found


def outcomes(run: Server) -> list[str]:
    """How the calls ended that the log tells of."""
    lines = [orjson.loads(line) for line in run.err if line.startswith("{")]
    return [line["outcome"] for line in lines if line["logger"] == "llm_proxy.calls"]


async def token_of(run: Server, provider: ScriptedProvider) -> str:
    return str((await run.token_for(provider.url, PROVIDER_KEY))["token"])


async def refuses(url: str) -> bool:
    try:
        async with connected(url):
            return False
    except ConnectionRefusedError:
        return True
    except ConnectionResetError:
        # It waited in the queue of a socket that was closed just then.
        return False


async def until_refused(url: str) -> None:
    async with asyncio.timeout(5):
        while not await refuses(url):  # noqa: ASYNC110
            await asyncio.sleep(0.01)


async def test_a_stop_drains_finishes_every_stream_and_exits_0(tmp_path: pathlib.Path, provider: ScriptedProvider) -> None:
    async with server(tmp_path, DRAIN_DELAY="1s", SHUTDOWN_TIMEOUT="20s") as run:
        token = await token_of(run, provider)
        streams = Streams(provider)
        async with asyncio.timeout(20), streaming(run.url, token, 50) as opened:
            run.send(signal.SIGTERM)
            await run.until("draining")
            ready = await ask(run.url, READY)
            assert ready.status == 503 and orjson.loads(ready.body)["missing"] == ["draining"]
            async with streaming(run.url, token, 1) as late:
                await until_refused(run.url)
                assert await refuses(run.admin)
                streams.released.set()
                ends = await asyncio.gather(*(rest_of(one) for one in (*opened, *late)))
        assert all(end.endswith(b"data: [DONE]\n\n\r\n" + END) for end in ends)
        assert await run.ended() == 0
    assert outcomes(run) == ["completed"] * 51


async def test_streams_that_outlast_the_timeout_are_cut_each_with_a_word_and_an_event(
    tmp_path: pathlib.Path, provider: ScriptedProvider
) -> None:
    async with server(tmp_path, SHUTDOWN_TIMEOUT="1s") as run:
        token = await token_of(run, provider)
        Streams(provider)
        async with asyncio.timeout(20), streaming(run.url, token, 20) as opened:
            began = time.monotonic()
            run.send(signal.SIGTERM)
            ends = await asyncio.gather(*(rest_of(one) for one in opened))
            assert await run.ended() == 0
        assert 1 <= time.monotonic() - began < 3
    assert all(b'"shutting_down"' in end and not end.endswith(END) for end in ends)
    assert outcomes(run) == ["aborted_by_shutdown"] * 20


@pytest.mark.parametrize("stage", ["while it drains", "while calls finish"])
async def test_a_second_signal_cuts_what_the_first_would_wait_for(
    tmp_path: pathlib.Path, provider: ScriptedProvider, stage: str
) -> None:
    delay, line = {"while it drains": ("60s", "draining"), "while calls finish": ("0s", "stopping: 3 calls")}[stage]
    async with server(tmp_path, DRAIN_DELAY=delay, SHUTDOWN_TIMEOUT="60s") as run:
        token = await token_of(run, provider)
        Streams(provider)
        async with asyncio.timeout(20), streaming(run.url, token, 3) as opened:
            run.send(signal.SIGTERM)
            await run.until(line)
            run.send(signal.SIGINT)
            ends = await asyncio.gather(*(rest_of(one) for one in opened))
            assert await run.ended(3) == 0
    assert all(b'"shutting_down"' in end for end in ends)
    assert outcomes(run) == ["aborted_by_shutdown"] * 3


def test_a_third_signal_ends_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    codes: list[int] = []
    monkeypatch.setattr("os._exit", codes.append)
    stop = _Stop()
    states = []
    for _ in range(3):
        stop.on_signal()
        states.append((stop.asked.is_set(), stop.hurry.is_set(), len(codes)))
    assert states == [(True, False, 0), (True, True, 0), (True, True, 1)] and codes == [1]


async def test_a_stop_tells_kept_connections_to_close_with_their_next_answer(
    tmp_path: pathlib.Path, provider: ScriptedProvider
) -> None:
    async with server(tmp_path, SHUTDOWN_TIMEOUT="20s") as run:
        token = await token_of(run, provider)
        models = call(token, path="/v1/models", method="GET", body=b"")
        async with asyncio.timeout(20), connected(run.url) as ours, connected(run.url) as calls, connected(run.admin) as admin:
            for one, data in ((ours, LIVE), (calls, models), (admin, LIVE)):
                await one.send(data)
                kept = await one.answer()
                assert kept and kept.status == 200 and kept.header(b"connection") is None
            streams = Streams(provider)
            async with streaming(run.url, token, 1) as [stream]:
                run.send(signal.SIGTERM)
                await until_refused(run.url)
                provider.script = ScriptedProvider()._ok
                for one, data in ((ours, LIVE), (calls, models), (admin, LIVE)):
                    await one.send(data)
                    last = await one.answer()
                    assert last and last.status == 200 and last.header(b"connection") == b"close"
                    assert await one.is_closed()
                streams.released.set()
                assert (await rest_of(stream)).endswith(END)
            assert await run.ended() == 0


async def test_a_stop_cuts_no_client_that_asks_without_pause(tmp_path: pathlib.Path) -> None:
    """Each has a moment between its answer and its next request; the stop must not fall into it."""

    async def ask_until_told_to_close(url: str, served: asyncio.Event) -> None:
        async with connected(url) as connection:
            for count in range(100_000):
                await connection.send(LIVE)
                found = await connection.answer()
                assert found and found.status == 200, f"cut after {count} answers"
                if found.header(b"connection") == b"close":
                    break
                served.set()

    async with server(tmp_path) as run:
        async with asyncio.timeout(20):
            served = [asyncio.Event() for _ in range(16)]
            asking = [asyncio.ensure_future(ask_until_told_to_close(run.url, event)) for event in served]
            # A connection that nobody has accepted yet is lost with the listening socket.
            for event in served:
                await event.wait()
            run.send(signal.SIGTERM)
            await asyncio.gather(*asking)
        assert await run.ended() == 0


async def test_an_act_under_way_is_finished_at_a_stop(tmp_path: pathlib.Path) -> None:
    body = b'{"name": "at the last moment"}'
    head = b"POST /manage/projects HTTP/1.1\r\nHost: h\r\nAuthorization: Bearer %b\r\nContent-Length: %d\r\n\r\n"
    async with server(tmp_path) as run:
        async with asyncio.timeout(10), connected(run.url) as connection:
            await connection.send(head % (MANAGEMENT_TOKEN.encode(), len(body)) + body[:10])
            # The answer to a second connection says that the first one has been read.
            await ask(run.url, LIVE)
            run.send(signal.SIGTERM)
            await until_refused(run.url)
            await connection.send(body[10:])
            made = await connection.answer()
            assert made and made.status == 201
        assert await run.ended() == 0


async def test_an_idle_server_stops_at_once(tmp_path: pathlib.Path) -> None:
    async with server(tmp_path, SHUTDOWN_TIMEOUT="20s") as run, connected(run.url) as idle:
        began = time.monotonic()
        assert await run.stopped() == 0
        assert time.monotonic() - began < 2
        assert await idle.is_closed()


@pytest.mark.parametrize("when", ["before the first byte", "in mid-stream", "while it sends its body"])
async def test_the_provider_sees_within_100_ms_that_the_client_left(
    tmp_path: pathlib.Path, provider: ScriptedProvider, when: str
) -> None:
    async def serve(exchange: Exchange) -> None:
        if when == "in mid-stream":
            await exchange.send(STREAM_HEAD + chunk(EVENT))
        await exchange.until_closed()

    upload = [b"Content-Type: application/octet-stream", b"Content-Length: 3000000"]
    async with server(tmp_path) as run:
        token = await token_of(run, provider)
        provider.script = serve
        provider.reads_bodies = when != "while it sends its body"
        took = []
        # A machine that is busy with other things may be late a few times.
        while len(took) < 20 and not (took and took[-1] < 0.1):
            async with asyncio.timeout(10), connected(run.url) as connection:
                if when == "while it sends its body":
                    await connection.send(call(token, *upload, path="/v1/files", body=b"") + b"a" * 2_000_000)
                else:
                    await connection.send(call(token, body=STREAM))
                exchange = await provider.next_exchange()
                if when == "in mid-stream":
                    await connection.reader.readuntil(EVENT)
                began = time.monotonic()
                connection.abort()
                await exchange.closed.wait()
                took.append((exchange.closed_at or math.inf) - began)
        assert min(took) < 0.1
        await run.until('"outcome":"client_gone"')


async def test_hangup_opens_the_audit_file_anew_even_while_it_stops(tmp_path: pathlib.Path, provider: ScriptedProvider) -> None:
    audit = tmp_path / "audit.jsonl"
    async with server(tmp_path, AUDIT_LOG_FILE=str(audit)) as run:
        token = await token_of(run, provider)
        await until(audit.exists)
        streams = Streams(provider)
        async with asyncio.timeout(10), streaming(run.url, token, 1) as [stream]:
            audit.rename(tmp_path / "audit.1")
            run.send(signal.SIGHUP)
            made = await run.manage("POST", "/manage/projects", {"name": "after"})
            await until(lambda: audit.exists() and made["id"] in audit.read_text())
            run.send(signal.SIGTERM)
            await until_refused(run.url)
            run.send(signal.SIGHUP)
            streams.released.set()
            assert (await rest_of(stream)).endswith(END)
        assert await run.ended() == 0


async def test_hangup_reads_the_profiles_anew_a_good_file_whole_a_bad_one_not_at_all(tmp_path: pathlib.Path) -> None:
    file = tmp_path / "profiles.yaml"
    file.write_text(PROFILES.format(name="first"))
    async with server(tmp_path, API_CONFIG_PATH=str(file)) as run:
        file.write_text(PROFILES.format(name="second"))
        run.send(signal.SIGHUP)
        await run.until("the profiles were read anew: second")
        given = {"name": "demo", "provider_type": "second", "api_key": "sk-0123456789abcdef", "api_base": "https://example.com"}
        project = await run.manage("POST", "/manage/projects", given)
        file.write_text("apis: nonsense")
        run.send(signal.SIGHUP)
        await run.until("the profiles stay as they were")
        found = await run.manage("GET", f"/manage/projects/{project['id']}/providers")
        assert [one["problem"] for one in found["data"]] == [None]
        assert await run.stopped() == 0


PROFILES = """
default_api: {name}
apis:
  {name}:
    auth: {{header: Authorization, scheme: Bearer}}
    allowed_endpoints: [/v1/chat/completions]
    allowed_methods: [POST]
"""


@pytest.fixture
def listener() -> Any:
    with socket.socket() as one:
        # Not the host of LISTEN_ADDR, which does not count when a socket is passed.
        one.bind(("127.0.0.2", 0))
        one.listen(128)
        yield one


def url_of(one: socket.socket) -> str:
    return "http://{}:{}".format(*one.getsockname())


@pytest.mark.parametrize("names", ["", "llm-proxy.socket"], ids=["unnamed", "named after its unit"])
async def test_a_passed_socket_is_served_and_outlives_the_process(
    tmp_path: pathlib.Path, listener: socket.socket, names: str
) -> None:
    async with asyncio.timeout(20):
        # A drain would be a minute in which systemd could not start the successor.
        async with passed_to(tmp_path, listener, DRAIN_DELAY="60s", LISTEN_FDNAMES=names) as run:
            assert run.url == url_of(listener)
            assert (await ask(run.url, LIVE)).status == 200
            assert await run.stopped() == 0
        async with connected(url_of(listener)) as waiting:
            await waiting.send(LIVE)
            async with passed_to(tmp_path, listener, LISTEN_FDNAMES=names):
                served = await waiting.answer()
                assert served and served.status == 200


async def test_both_sites_may_be_passed(tmp_path: pathlib.Path, listener: socket.socket) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen(128)
        async with asyncio.timeout(10), passed_to(tmp_path, listener, other, LISTEN_FDNAMES="admin:proxy") as run:
            assert (run.url, run.admin) == (url_of(other), url_of(listener))
            assert (await ask(run.admin, LIVE)).status == 200


async def test_restarts_under_load_refuse_reset_and_cut_nobody(tmp_path: pathlib.Path, listener: socket.socket) -> None:
    """Here the successor is started before the predecessor stops; tests/deploy/test_restarts.py has it the other way round."""
    enough = asyncio.Event()

    async def ask_on(url: str) -> int:
        count = 0
        while not enough.is_set():
            async with connected(url) as connection:
                kept = True
                while kept and not enough.is_set():
                    await connection.send(LIVE)
                    found = await connection.answer()
                    assert found and found.status == 200, f"cut after {count} answers"
                    count, kept = count + 1, found.header(b"connection") != b"close"
        return count

    async with asyncio.timeout(40), AsyncExitStack() as stack:
        run = await stack.enter_async_context(passed_to(tmp_path, listener))
        asking = [asyncio.ensure_future(ask_on(url_of(listener))) for _ in range(8)]
        for _ in range(2):
            successor = await stack.enter_async_context(passed_to(tmp_path, listener))
            assert await run.stopped() == 0
            run = successor
        enough.set()
        assert min(await asyncio.gather(*asking)) > 0


WITH_FEW_FILES = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (int(sys.argv[1]), int(sys.argv[1])))
os.execv(sys.executable, [sys.executable, "-m", "llm_proxy", "server"])
"""


async def test_a_flood_of_connections_leaves_the_rest_of_the_program_at_work(
    tmp_path: pathlib.Path, provider: ScriptedProvider
) -> None:
    async with started_by(WITH_FEW_FILES, "600", tmp_path) as run:
        token = await token_of(run, provider)
        models = call(token, path="/v1/models", method="GET", body=b"")
        async with asyncio.timeout(10), connected(run.url) as early, AsyncExitStack() as stack:
            await early.send(models)
            assert await early.answer()
            flood = [await stack.enter_async_context(connected(run.url)) for _ in range(100)]
            closed = [one for one in flood if await one.is_closed(0.02)]
            assert 20 < len(closed) < 60
            await early.send(models)
            served = await early.answer()
            assert served and served.status == 200
            assert (await ask(run.admin, LIVE)).status == 200
            await stack.aclose()
            await until(lambda: any("overloaded" in line for line in run.err))
            assert (await ask(run.url, models)).status == 200


@pytest.mark.parametrize(
    ("bound", "host", "url"),
    [
        (("127.0.0.1", 1), "", "http://127.0.0.1:1"),
        (("0.0.0.0", 1), "0.0.0.0", "http://127.0.0.1:1"),
        (("::", 1, 0, 0), "::", "http://[::1]:1"),
        (("::", 1, 0, 0), "[::]", "http://[::1]:1"),
        (("::1", 1, 0, 0), "[::1]", "http://[::1]:1"),
        (("127.0.0.1", 1), "localhost", "http://localhost:1"),
    ],
)
def test_the_url_of_a_site_leads_to_it(bound: tuple[Any, ...], host: str, url: str) -> None:
    assert serving._url(bound, host) == url


@pytest.mark.parametrize(
    ("names", "proxy", "admin"),
    [
        ([], None, None),
        (["0"], "0", None),
        (["0", "1"], "0", "1"),
        (["proxy"], "proxy", None),
        (["admin"], None, "admin"),
        (["admin", "proxy"], "proxy", "admin"),
        (["llm-proxy.socket"], "llm-proxy.socket", None),
        (["a", "admin"], "a", "admin"),
        (["a", "proxy"], "proxy", "a"),
    ],
)
def test_passed_sockets_go_by_their_names_else_by_their_order(names: list[str], proxy: str | None, admin: str | None) -> None:
    passed = {name: socket.socket() for name in names}
    try:
        found = _by_purpose(passed)
        assert found == (passed.get(proxy or ""), passed.get(admin or ""))
    finally:
        for one in passed.values():
            one.close()


async def test_systemd_is_told_of_ready_watchdog_reload_and_stopping(tmp_path: pathlib.Path) -> None:
    notify = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "100000", "SHUTDOWN_TIMEOUT": "5m"}
    with notified(tmp_path / "notify") as told:
        async with server(tmp_path, **notify) as run:
            await until(lambda: told.count("WATCHDOG=1") >= 3)
            assert [word for word in told if word != "WATCHDOG=1"] == ["READY=1"]
            run.send(signal.SIGHUP)
            await until(lambda: told.count("READY=1") == 2)
            assert await run.stopped() == 0
        await until(lambda: "EXTEND_TIMEOUT_USEC=315000000" in told)
    words = [re.sub(r"\d{3,}", "N", word) for word in told if word != "WATCHDOG=1"]
    assert words == ["READY=1", "RELOADING=1\nMONOTONIC_USEC=N", "READY=1", "STOPPING=1", "EXTEND_TIMEOUT_USEC=N"]


@pytest.mark.parametrize("name", ["LISTEN_ADDR", "ADMIN_UI_LISTEN_ADDR"])
async def test_an_address_in_use_stops_the_start_and_frees_what_was_taken(
    tmp_path: pathlib.Path, listener: socket.socket, name: str
) -> None:
    taken, port = url_of(listener).removeprefix("http://"), free_port()
    given = {"LISTEN_ADDR": f"127.0.0.1:{port}", "ADMIN_UI_LISTEN_ADDR": "127.0.0.1:0", name: taken}
    with pytest.raises(StartError) as caught:
        async with open_house(settings_for(tmp_path, **given)):
            pass
    assert str(caught.value).startswith(f"{name}={taken}: cannot listen there: ")
    assert str(caught.value).endswith(" Is another instance running?")
    assert await refuses(f"http://127.0.0.1:{port}")


async def test_an_address_that_is_not_ours_stops_the_start(tmp_path: pathlib.Path) -> None:
    with pytest.raises(StartError, match=r"LISTEN_ADDR=203\.0\.113\.1:0: cannot listen there: .*\w\.$"):
        async with open_house(settings_for(tmp_path, LISTEN_ADDR="203.0.113.1:0")):
            pass


async def test_several_processes_may_share_a_port(tmp_path: pathlib.Path) -> None:
    shared = {"REUSE_PORT": "true", "LISTEN_ADDR": f"127.0.0.1:{free_port()}"}
    async with open_house(settings_for(tmp_path, **shared)) as one, open_house(settings_for(tmp_path, **shared)) as other:
        assert one.url == other.url
        assert (await ask(one.url, LIVE)).status == 200


async def test_the_admin_site_may_be_left_out(tmp_path: pathlib.Path) -> None:
    async with open_house(settings_for(tmp_path, ADMIN_UI_ENABLED="false")) as house:
        assert house.sites.admin is None
        assert (await ask(house.url, LIVE)).status == 200


async def test_all_addresses_are_listened_on_without_a_host(tmp_path: pathlib.Path) -> None:
    port = free_port()
    async with open_house(settings_for(tmp_path, LISTEN_ADDR=f":{port}")) as house:
        assert house.url == f"http://127.0.0.1:{port}"
        assert (await ask(f"http://[::1]:{port}", LIVE)).status == 200
        assert (await ask(house.url, LIVE)).status == 200


@pytest.mark.parametrize(
    ("path", "owner"),
    [
        ("/manage/version", "ours"),
        ("/manage", "ours"),
        ("/manage?x", "ours"),
        ("/metrics/prometheus", "ours"),
        ("http://h/health", "ours"),
        ("/managers", "call"),
        ("/healthy", "call"),
        ("/MANAGE/projects", "call"),
        ("/%6danage/projects", "call"),
        ("/v1/models", "call"),
        ("/", "call"),
    ],
)
async def test_our_paths_are_ours_and_every_other_is_a_call(house: House, path: str, owner: str) -> None:
    found = await ask(house.url, f"GET {path} HTTP/1.1\r\nHost: h\r\n\r\n".encode())
    calls = [event.path for event in house.events]
    assert len(calls) == (1 if owner == "call" else 0), found


@pytest.mark.parametrize(
    ("given", "connections", "of_peer"),
    [
        ({}, 14_616, 7_308),
        ({"MAX_CONCURRENT_REQUESTS": "100"}, 200, 100),
        ({"TRUSTED_PROXIES": "10.0.0.0/8"}, 14_616, 14_616),
        ({"files": "-1"}, 20_000, 10_000),
        ({"files": "64"}, 1, 1),
    ],
    ids=["by files", "by calls", "behind a proxy", "no bound of files", "hardly any files"],
)
async def test_connections_leave_files_for_everything_else(
    tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, str], connections: int, of_peer: int
) -> None:
    given = dict(given)
    files = int(given.pop("files", 20_000))
    monkeypatch.setattr(serving.resource, "getrlimit", lambda which: (files, files))
    async with open_context(settings_for(tmp_path, **given)) as context:
        limits = _limits(context)
    assert (limits.connections, limits.connections_of_peer) == (connections, of_peer)


async def test_the_loop_s_lag_is_measured(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(serving, "LAG_SECONDS", 0.001)
    async with open_house(settings_for(tmp_path)) as house:
        house.context.tasks.start("loop lag", serving._measure_lag(house.context))
        await until(lambda: house.context.metrics.registry.get_sample_value("llm_proxy_loop_lag_seconds"))


async def test_calls_that_come_before_the_provider_answers_survive_a_stop(
    tmp_path: pathlib.Path, provider: ScriptedProvider
) -> None:
    """Their answer is still to begin when the stop begins."""
    release = asyncio.Event()

    async def late(exchange: Exchange) -> None:
        await release.wait()
        await exchange.send(answer(b"{}"))

    async with server(tmp_path, SHUTDOWN_TIMEOUT="20s") as run:
        token = await token_of(run, provider)
        provider.script = late
        async with asyncio.timeout(10), connected(run.url) as connection:
            await connection.send(call(token))
            await provider.next_exchange()
            run.send(signal.SIGTERM)
            await until_refused(run.url)
            release.set()
            found = await connection.answer()
            assert found and found.status == 200 and found.whole
        assert await run.ended() == 0
