"""`llm-proxy quickstart`: the first minute of a stranger, as a process in an empty folder."""

import asyncio
import contextlib
import pathlib
import re
import shutil
import socket
import sqlite3
import stat
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import pytest
from dotenv import dotenv_values
from stage import secrets
from stage.processes import Process, command

from llm_proxy import settings, tokens
from llm_proxy.cli.quickstart import TOKEN_FILE, kept_token

from .conftest import Cli

FREE = ("--addr", "127.0.0.1:0", "--admin-addr", "127.0.0.1:0")
OPENAI_KEY = "sk-proj-a-key-that-nobody-has-0123456789"


@asynccontextmanager
async def quickstart(folder: pathlib.Path, *arguments: str, **env: str) -> AsyncIterator[Process]:
    """A quickstart that has said all it says at its start."""
    async with command("quickstart", *FREE, *arguments, folder=folder, **env) as run:
        await run.until("Ctrl-C stops it")
        yield run


def said(run: Process, name: str) -> str:
    """What stands behind a name in the greeting."""
    [line] = [line for line in run.out if line.startswith(f"  {name} ")]
    return line.removeprefix(f"  {name}").strip()


def curl_line(run: Process) -> str:
    """The command to paste, as it was printed."""
    text = "\n".join(run.out)
    return text[text.index("curl -N") : text.index("\n\nCtrl-C")]


def rows(folder: pathlib.Path, sql: str) -> list[tuple[Any, ...]]:
    with contextlib.closing(sqlite3.connect(folder / "data" / "llm-proxy.db")) as connection:
        return connection.execute(sql).fetchall()


# For a machine without curl: it knows what the printed line asks of it.
STAND_IN = f"""#!{sys.executable}
import sys, urllib.request
words = iter(sys.argv[1:])
headers, data, url = {{}}, None, None
for word in words:
    if word == "-H":
        name, _, value = next(words).partition(": ")
        headers[name] = value
    elif word == "-d":
        data = next(words).encode()
    elif word != "-N":
        url = word
sys.stdout.write(urllib.request.urlopen(urllib.request.Request(url, data, headers)).read().decode())
"""


def paste(line: str, folder: pathlib.Path, *, stand_in: bool = False) -> str:
    """What a line prints when it is run by a shell in another folder."""
    programs = folder / "bin"
    programs.mkdir(parents=True)
    if stand_in or not shutil.which("curl"):
        (programs / "curl").write_text(STAND_IN)
        (programs / "curl").chmod(0o755)
    env = {"PATH": f"{programs}:/usr/local/bin:/usr/bin:/bin"}
    return subprocess.run(["/bin/sh", "-c", line], cwd=folder, env=env, capture_output=True, text=True, check=True).stdout


async def test_in_an_empty_folder_it_makes_what_it_needs_and_its_curl_line_streams(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "empty"
    folder.mkdir()
    async with quickstart(folder) as run:
        for stand_in in (False, True):
            stream = await asyncio.to_thread(paste, curl_line(run), tmp_path / f"elsewhere-{stand_in}", stand_in=stand_in)
            assert stream.count("data: {") > 3 and stream.strip().endswith("data: [DONE]")
            assert '"content":"Hello!"' in stream
        assert await run.stopped() == 0
    files = [path for path in folder.rglob("*") if path.is_file() and "events" not in path.parts]
    made = {str(path.relative_to(folder)): stat.S_IMODE(path.stat().st_mode) for path in files}
    assert all(stat.S_IMODE(path.stat().st_mode) == 0o600 for path in (folder / "data/events").rglob("*") if path.is_file())
    private = {".env", "data/llm-proxy.db", "data/quickstart-token"}
    assert private <= set(made) <= {*private, "data/llm-proxy.db.lock"}
    assert {name: made[name] for name in private} == dict.fromkeys(private, 0o600)
    assert not [line for line in run.err if '"error"' in line or "Traceback" in line]


async def test_the_greeting_says_where_everything_is(tmp_path: pathlib.Path) -> None:
    async with quickstart(tmp_path) as run, aiohttp.ClientSession() as client:
        assert "built-in fake provider" in "\n".join(run.out) and "OPENAI_API_KEY" in "\n".join(run.out)
        assert tokens.well_formed(said(run, "Token"))
        assert "log in with the MANAGEMENT_TOKEN in .env" in "\n".join(run.out)
        for site in ("Proxy", "Admin site"):
            async with client.get(f"{said(run, site)}/health") as reply:
                assert reply.status == 200
        assert re.search(r"\(good until 20\d\d-.*Z\)", "\n".join(run.out))


async def test_a_second_start_keeps_everything_and_prints_the_same_token(tmp_path: pathlib.Path) -> None:
    async with quickstart(tmp_path) as first:
        assert await first.stopped() == 0
    before = (tmp_path / ".env").read_bytes(), rows(tmp_path, "SELECT id FROM projects UNION SELECT id FROM tokens")
    async with quickstart(tmp_path) as second:
        assert said(second, "Token") == said(first, "Token")
        assert "Wrote" not in "\n".join(second.out)
        assert await second.stopped() == 0
    assert ((tmp_path / ".env").read_bytes(), rows(tmp_path, "SELECT id FROM projects UNION SELECT id FROM tokens")) == before


# Each as a statement, with whether the same token is good again at the next start.
SPOILINGS = (
    ("UPDATE tokens SET expires_at = 1", False),
    ("UPDATE tokens SET is_active = 0", False),
    ("DELETE FROM tokens", False),
    ("UPDATE projects SET is_active = 0", True),
)


async def test_when_the_token_is_no_good_any_more_there_is_another(tmp_path: pathlib.Path) -> None:
    async with quickstart(tmp_path) as run:
        token = said(run, "Token")
        assert await run.stopped() == 0
    for number, (spoiling, same) in enumerate(SPOILINGS):
        with contextlib.closing(sqlite3.connect(tmp_path / "data" / "llm-proxy.db", isolation_level=None)) as connection:
            connection.execute(spoiling)
        async with quickstart(tmp_path) as run:
            assert (said(run, "Token") == token) is same, spoiling
            token = said(run, "Token")
            assert "data: [DONE]" in await asyncio.to_thread(paste, curl_line(run), tmp_path / f"elsewhere-{number}"), spoiling
            assert await run.stopped() == 0
        assert kept_token() == token


async def test_nothing_of_the_fake_provider_is_stored_but_that_it_was_called(tmp_path: pathlib.Path) -> None:
    async with quickstart(tmp_path) as run:
        await asyncio.to_thread(paste, curl_line(run), tmp_path / "elsewhere")
        assert await run.stopped() == 0
    assert rows(tmp_path, "SELECT * FROM providers") == []
    assert set(dotenv_values(tmp_path / ".env")) == {"MANAGEMENT_TOKEN", "ENCRYPTION_KEY", "LISTEN_ADDR"}
    tables = [name for (name,) in rows(tmp_path, "SELECT name FROM sqlite_master WHERE type = 'table'")]
    naming = {name for name in tables if "fake" in repr(rows(tmp_path, f"SELECT * FROM {name}"))}
    assert naming == {"usage_minutes", "usage_hours"}


async def test_with_an_openai_key_the_demo_calls_openai_and_the_key_is_encrypted(tmp_path: pathlib.Path) -> None:
    async with quickstart(tmp_path, OPENAI_API_KEY=OPENAI_KEY) as run:
        assert "Calls go to the project's own key." in "\n".join(run.out)
        assert await run.stopped() == 0
    [[kind, base, stored]] = rows(tmp_path, "SELECT provider_type, api_base, api_key_ciphertext FROM providers")
    assert (kind, base) == ("openai", "") and stored.startswith("enc:v2:")
    secrets.used(OPENAI_KEY)
    assert not secrets.found_in(tmp_path) and OPENAI_KEY not in (tmp_path / ".env").read_text()


async def test_a_key_that_comes_later_is_taken_and_one_that_was_given_is_kept(tmp_path: pathlib.Path) -> None:
    async with quickstart(tmp_path) as run:
        assert await run.stopped() == 0
    async with quickstart(tmp_path, "--openai-api-key", OPENAI_KEY) as run:
        assert "the project's own key" in "\n".join(run.out)
        assert await run.stopped() == 0
    before = rows(tmp_path, "SELECT * FROM providers")
    async with quickstart(tmp_path, OPENAI_API_KEY="sk-another") as run:
        assert "the project's own key" in "\n".join(run.out)
        assert await run.stopped() == 0
    assert rows(tmp_path, "SELECT * FROM providers") == before and len(before) == 1


@pytest.mark.parametrize(
    ("before", "added"),
    [
        pytest.param({"LOG_LEVEL": "warning", "THEIRS": "1"}, ["MANAGEMENT_TOKEN", "ENCRYPTION_KEY"], id="another program's"),
        pytest.param({"MANAGEMENT_TOKEN": "mine"}, ["ENCRYPTION_KEY"], id="one without encryption"),
    ],
)
async def test_a_settings_file_that_is_there_keeps_what_it_says_and_gets_what_is_missing(
    tmp_path: pathlib.Path, before: dict[str, str], added: list[str]
) -> None:
    (tmp_path / ".env").write_text("\n".join(f"{name}={value}" for name, value in before.items()))
    async with quickstart(tmp_path) as run:
        assert f"Added {' and '.join(added)} to .env (mode 0600)." in run.out
        assert await run.stopped() == 0
    values = dotenv_values(tmp_path / ".env")
    assert {name: values.pop(name) for name in before} == before
    assert list(values) == added
    assert settings.load().encryption_key


def test_a_port_that_is_taken_is_one_error_line(cli: Cli) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = cli("quickstart", "--addr", f"127.0.0.1:{taken.getsockname()[1]}")
    assert done.code == 1
    assert done.err.startswith("Error: LISTEN_ADDR=127.0.0.1:") and done.err.count("\n") == 1
    assert "in use" in done.err
    assert "running" not in done.out


def test_a_token_file_that_holds_something_else_counts_as_none(tmp_path: pathlib.Path) -> None:
    assert kept_token() is None
    TOKEN_FILE.parent.mkdir()
    TOKEN_FILE.write_text("sk-lp-cut-short\n")
    assert kept_token() is None
