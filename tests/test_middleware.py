"""What is equal for every route of our own."""

import asyncio
import json
import logging
import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from aiohttp import web
from stage.house import MANAGEMENT_TOKEN, House, open_house, settings_for
from stage.management import Management, managing
from stage.provider import END, chunk
from stage.raw import connected, exchange

from llm_proxy.errors import ApiError
from llm_proxy.middleware import answer_json
from llm_proxy.server import create_proxy_app

AUTH = f"Host: x\r\nAuthorization: Bearer {MANAGEMENT_TOKEN}\r\n"
BODY = b'{"name": "demo"}'


@pytest.fixture
async def site(house: House) -> AsyncIterator[Management]:
    """The operator."""
    async with managing(house) as operator:
        yield operator


def post(headers: str, body: bytes = b"") -> bytes:
    """A request that makes a project."""
    return f"POST /manage/projects HTTP/1.1\r\n{headers}\r\n".encode() + body


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("my-id_1.2", True),
        ("x" * 128, True),
        ("x" * 129, False),
        ("", False),
        ("a b", False),
        ("a/b", False),
        ("{{7*7}}", False),
    ],
)
async def test_every_answer_names_its_request(site: Management, given: str, kept: bool) -> None:
    for path in ("/health", "/manage/version", "/manage/nothing"):
        reply = await site.ask("GET", path, headers={"X-Request-ID": given})
        assert (reply.headers["X-Request-ID"] == given) is kept
        assert re.fullmatch(r"[A-Za-z0-9._-]{1,128}", reply.headers["X-Request-ID"])


@pytest.mark.parametrize("given", ["6.6.6.6, 192.0.2.9", "6.6.6.6\r\nX-Forwarded-For: 192.0.2.9"], ids=["one line", "two lines"])
async def test_a_trusted_proxy_has_the_last_word_on_who_asks_on_a_line_of_its_own_too(tmp_path: Path, given: str) -> None:
    async with open_house(settings_for(tmp_path, TRUSTED_PROXIES="127.0.0.1")) as house, managing(house) as operator:
        refused = await exchange(
            house.url, f"GET /manage/projects HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: {given}\r\n\r\n".encode()
        )
        assert refused and refused.status == 401
        await house.context.audit.close()
        [found] = await operator.audit(action="management.refuse")
        assert found["client_ip"] == "192.0.2.9"


async def test_every_answer_is_plain_about_its_kind_and_silent_about_what_runs_here(site: Management) -> None:
    for path in ("/health", "/metrics", "/manage/version", "/manage/nothing", "/manage/openapi.yaml"):
        reply = await site.ask("GET", path)
        assert reply.headers["X-Content-Type-Options"] == "nosniff"
        assert reply.headers["Server"] == "llm-proxy"


async def test_what_may_hold_a_secret_is_kept_by_nobody_on_the_way(site: Management) -> None:
    for path in ("/manage/projects", "/manage/tokens", "/manage/nothing"):
        assert (await site.ask("GET", path)).headers["Cache-Control"] == "no-store"


async def test_one_line_is_logged_for_each_request_with_its_ids_and_address(tmp_path: Path) -> None:
    log = tmp_path / "log"
    async with (
        open_house(settings_for(tmp_path, LOG_FILE=str(log), TRUSTED_PROXIES="127.0.0.1")) as house,
        managing(house) as site,
    ):
        headers = {"X-Request-ID": "r-1", "X-Correlation-ID": "c-1", "X-Forwarded-For": "203.0.113.9"}
        await site.ask("GET", "/manage/version?x=1", headers=headers)
        await site.ask("GET", "/health", headers={"X-Request-ID": "r-2"})
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    [line] = [line for line in lines if line.get("request_id") == "r-1"]
    assert (line["message"], line["correlation_id"], line["client_ip"]) == ("GET /manage/version 200", "c-1", "203.0.113.9")
    assert line["seconds"] > 0
    assert not [line for line in lines if line.get("request_id") == "r-2"]


async def broken(request: web.Request) -> web.Response:
    """A route with a mistake."""
    raise ZeroDivisionError("a secret reason")


async def refusing(request: web.Request) -> web.Response:
    """A route that refuses with a header of its own."""
    raise ApiError("origin_not_allowed", "No.", headers={"X-Extra": "yes"})


async def conflicting(request: web.Request) -> web.Response:
    """A route that raises what no route of ours raises."""
    raise web.HTTPConflict


@pytest.fixture
async def stranger_site(house: House) -> AsyncIterator[str]:
    """The proxy site's application with three more routes."""
    app = create_proxy_app(house.context)
    for handler in (broken, refusing, conflicting):
        app.router.add_get(f"/{handler.__name__}", handler)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    await runner.cleanup()


async def test_a_mistake_of_ours_is_told_without_its_reason_and_logged_with_it(
    stranger_site: str, caplog: pytest.LogCaptureFixture
) -> None:
    answer = await exchange(stranger_site, b"GET /broken HTTP/1.1\r\nHost: x\r\nX-Request-ID: r-1\r\n\r\n")
    assert answer
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (500, "internal_error")
    assert answer.header(b"x-request-id") == b"r-1"
    assert b"secret" not in answer.body
    [record] = [record for record in caplog.records if record.levelno == logging.ERROR]
    assert record.exc_info
    assert "a secret reason" in str(record.exc_info[1])


@pytest.mark.parametrize(
    ("path", "status", "code", "extra"),
    [("refusing", 403, "origin_not_allowed", b"yes"), ("conflicting", 400, "bad_request", None)],
)
async def test_an_error_is_answered_by_its_code_with_its_headers(
    stranger_site: str, path: str, status: int, code: str, extra: bytes | None
) -> None:
    answer = await exchange(stranger_site, f"GET /{path} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
    assert answer
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    assert answer.header(b"x-extra") == extra


async def test_a_body_without_a_length_is_cut_where_it_becomes_too_large(house: House, site: Management) -> None:
    large = b"".join(chunk(b" " * 65536) for _ in range(20)) + END
    answer = await exchange(house.url, post(f"{AUTH}Transfer-Encoding: chunked\r\n", large))
    assert answer
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (413, "request_too_large")


async def test_refusals_are_counted_by_code(house: House, site: Management) -> None:
    await site.ask("GET", "/manage/nothing")
    await site.ask("GET", "/manage/projects", token="wrong")
    for code in ("endpoint_not_found", "invalid_management_token"):
        assert house.context.metrics.registry.get_sample_value("llm_proxy_refusals_total", {"code": code}) == 1


def test_json_is_written_as_utf8() -> None:
    answer = answer_json({"name": "Büro"}, 201)
    assert (answer.status, answer.body) == (201, '{"name":"Büro"}'.encode())
    assert answer.headers["Content-Type"] == "application/json"


async def test_a_body_is_asked_for_once_the_operator_is_known(house: House) -> None:
    async with asyncio.timeout(10), connected(house.url) as connection:
        await connection.send(post(f"{AUTH}Expect: 100-continue\r\nContent-Length: {len(BODY)}\r\n"))
        asked = await connection.answer("POST")
        assert asked
        assert asked.status == 100
        await connection.send(BODY)
        made = await connection.answer("POST")
        assert made
        assert (made.status, json.loads(made.body)["name"]) == (201, "demo")
        await connection.send(post(AUTH + "Content-Length: 2\r\n", b"{}"))
        again = await connection.answer("POST")
        assert again
        assert again.status == 400


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ("Host: x\r\nExpect: 100-continue\r\n", 401, "invalid_management_token"),
        (f"{AUTH}Expect: 200-ok\r\n", 417, "expectation_failed"),
    ],
    ids=["a stranger", "another expectation"],
)
async def test_a_body_that_is_not_wanted_is_not_asked_for_and_the_connection_is_closed(
    house: House, headers: str, status: int, code: str
) -> None:
    answer = await exchange(house.url, post(f"{headers}Content-Length: {len(BODY)}\r\n"))
    assert answer
    assert (answer.status, json.loads(answer.body)["error"]["code"]) == (status, code)
    assert answer.closed


@pytest.mark.parametrize(
    "body",
    [b'5\r\n{"name\r\n0\r\n\r\n', b"zz\r\n", b"-1\r\n", b"5\n{}   \n0\n\n"],
    ids=["short chunk", "no size", "negative size", "bare line feeds"],
)
async def test_a_body_with_broken_framing_is_refused_and_makes_nothing(house: House, site: Management, body: bytes) -> None:
    answer = await exchange(house.url, post(f"{AUTH}Transfer-Encoding: chunked\r\n", body))
    assert answer
    assert (answer.status, answer.closed) == (400, True)
    assert json.loads(answer.body)["error"]["source"] == "proxy"
    assert (await site.done("GET", "/manage/projects"))["data"] == []


async def test_a_client_that_leaves_amid_its_body_makes_nothing_and_is_no_mistake_of_ours(
    house: House, site: Management, caplog: pytest.LogCaptureFixture
) -> None:
    async with connected(house.url) as connection:
        await connection.send(post(f"{AUTH}Expect: 100-continue\r\nContent-Length: 100\r\n"))
        assert await connection.answer("POST")
        await connection.send(b'{"name": "demo"}')
        connection.abort()
    async with connected(house.url) as connection:
        await connection.send(post(f"{AUTH}Expect: 100-continue\r\nTransfer-Encoding: chunked\r\n"))
        assert await connection.answer("POST")
        await connection.send(b'10\r\n{"name": "demo"}\r\n')
        connection.writer.write_eof()
        assert await connection.is_closed()
    assert (await site.done("GET", "/manage/projects"))["data"] == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]
