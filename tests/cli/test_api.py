"""The management API as commands reach it: errors in words, lists over many pages, the operator's name."""

import asyncio
import os
import pathlib
import pwd
import socket

import pytest
from stage.house import House
from stage.postgres import free_port
from stage.provider import ScriptedProvider, answer

from llm_proxy.cli import api
from llm_proxy.cli.api import LocalOperator, reason_of

from .conftest import Cli, Manage

TOKEN = {"MANAGEMENT_TOKEN": "a token of the test's own"}


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (ConnectionRefusedError(111, "Connect call failed ('127.0.0.1', 1)"), "Connection refused"),
        (TimeoutError(), "it takes too long"),
        (OSError(-2, "Name or service not known"), "[Errno -2] Name or service not known"),
        (ValueError("x"), "x"),
        (RuntimeError(), "RuntimeError"),
    ],
    ids=lambda value: type(value).__name__,
)
def test_a_reason_is_said_in_few_words(error: Exception, words: str) -> None:
    assert reason_of(error) == words


def test_a_server_that_does_not_run_is_said_with_its_address_and_two_ways_out(cli: Cli) -> None:
    url = f"http://127.0.0.1:{free_port()}"
    done = cli("manage", "--api-url", url, "project", "list", **TOKEN)
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith(f"Error: No answer from the server at {url}: Connection refused.")
    assert "--api-url" in done.err and "--local" in done.err


@pytest.mark.parametrize("url", ["nonsense", "http://", "ftp://x", "127.0.0.1:8080"])
def test_what_is_no_url_exits_2(cli: Cli, url: str) -> None:
    done = cli("manage", "--api-url", url, "project", "list", **TOKEN)
    assert done.code == 2
    assert f"{url!r} is not accepted. Give a URL such as http://127.0.0.1:8080." in done.err


def test_a_server_that_never_answers_is_not_waited_for_without_end(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "SECONDS", 0.1)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        done = cli("manage", "--api-url", f"http://127.0.0.1:{silent.getsockname()[1]}", "project", "list", **TOKEN)
    assert done.code == 1
    assert "it takes too long" in done.err


@pytest.mark.parametrize(
    "reply",
    [
        answer(b"<html>nginx</html>", b"text/html", b"502 Bad Gateway"),
        answer(b'{"error": "another shape"}', status=b"500 X"),
        answer(b"[]", status=b"400 X"),
        answer(b"not JSON"),
    ],
    ids=["HTML", "another error", "a list", "no JSON"],
)
async def test_what_is_no_llm_proxy_is_recognised(cli: Cli, provider: ScriptedProvider, reply: bytes) -> None:
    async def script(exchange: object) -> None:
        await exchange.send(reply)  # type: ignore[attr-defined]

    provider.script = script
    done = await asyncio.to_thread(cli, "manage", "--api-url", provider.url, "project", "list", **TOKEN)
    assert done.code == 1
    assert f"What answers at {provider.url}" in done.err and "is no LLM Proxy" in done.err


async def test_a_wrong_management_token_is_refused_in_the_servers_words(cli: Cli, house: House) -> None:
    done = await asyncio.to_thread(cli, "manage", "--api-url", house.url, "project", "list", **TOKEN)
    assert done.code == 1
    assert "The management token is missing or wrong" in done.err and "(invalid_management_token)" in done.err


def test_without_a_management_token_nothing_is_sent(cli: Cli) -> None:
    done = cli("manage", "project", "list")
    assert done.code == 2
    assert "MANAGEMENT_TOKEN is not set" in done.err and "--local" in done.err


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("--db", "x.db", "project", "list"), "--db is for --local"),
        (("project", "list", "--db", "x.db"), "--db is for --local"),
        (("--local", "project", "list", "--api-url", "http://x"), "Give one of them"),
    ],
)
def test_options_that_contradict_each_other_exit_2(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    done = cli("manage", *arguments, **TOKEN)
    assert done.code == 2
    assert says in done.err


def test_local_work_needs_no_token_and_makes_the_database(cli: Cli, tmp_path: pathlib.Path) -> None:
    done = cli("manage", "--local", "project", "list")
    assert (done.code, done.out, done.err) == (0, "Nothing found.\n", "")
    assert (tmp_path / "data" / "llm-proxy.db").exists()


def test_local_work_stores_no_key_plain_where_that_is_forbidden(cli: Cli, tmp_path: pathlib.Path) -> None:
    arguments = ("manage", "--local", "project", "create", "--name", "x", "--api-key", "sk-x")
    done = cli(*arguments, REQUIRE_ENCRYPTION_KEY="true")
    assert done.code == 2
    assert "ENCRYPTION_KEY is not set" in done.err
    assert not (tmp_path / "data").exists()


def test_the_local_operator_has_the_name_that_the_system_knows(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.setenv(name, "somebody else")
    assert LocalOperator(()).recognise("", "") == f"cli:{pwd.getpwuid(os.getuid()).pw_name}"


def test_a_user_without_a_name_has_a_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 4_000_000)
    assert LocalOperator(()).recognise("", "") == "cli:4000000"


@pytest.mark.parametrize(("limit", "shown", "more"), [(3, 3, True), (5, 5, False), (7, 5, False)])
async def test_a_list_goes_over_as_many_pages_as_it_takes_and_says_when_there_are_more(
    manage: Manage, house: House, monkeypatch: pytest.MonkeyPatch, limit: int, shown: int, more: bool
) -> None:
    monkeypatch.setattr(api, "PAGE", 2)
    for number in range(5):
        await house.project("http://127.0.0.1:1", name=f"p{number}")
    done = await manage("project", "list", "--limit", str(limit))
    assert [row[1] for row in done.rows] == [f"p{number}" for number in range(4, 4 - shown, -1)]
    assert done.err == ("There are more than these 3; --limit shows more.\n" if more else "")
