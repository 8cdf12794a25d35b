"""`scripts/check-secrets` finds a secret in whatever form it was left, and tells none."""

import base64
import contextlib
import gzip
import json
import os
import pathlib
import sqlite3
import subprocess
import sys
from urllib.parse import quote

import pytest
from stage.secrets import SCRIPT

SECRET = 'sk-"quoted"/and+odd?=characters'


def check(*arguments: object, secrets: str = SECRET) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, SCRIPT, *map(str, arguments)]
    return subprocess.run(command, input=secrets, capture_output=True, text=True, check=False)


def basic(user: str) -> bytes:
    return b"Authorization: Basic " + base64.b64encode(f"{user}:{SECRET}!".encode())


@pytest.mark.parametrize(
    ("content", "form"),
    [
        (SECRET.encode(), "as it is"),
        (b"\xff\x00" + SECRET.encode() + b"\xff", "as it is"),
        (json.dumps({"key": SECRET}).encode(), "as JSON"),
        (b"GET /?key=" + quote(SECRET, safe="").encode(), "percent-encoded"),
        (basic(""), "in base64"),
        (basic("u"), "in base64"),
        (basic("us"), "in base64"),
        (base64.urlsafe_b64encode(SECRET.encode() * 2), "in base64"),
        (SECRET.encode().hex().encode(), "in hexadecimal"),
        (SECRET.encode().hex().upper().encode(), "in hexadecimal"),
        (gzip.compress(SECRET.encode()), "as it is"),
    ],
    ids=["plain", "among bytes", "JSON", "URL", "base64 at 1", "at 2", "at 3", "URL-safe", "hex", "HEX", "gzip"],
)
def test_a_secret_is_found_in_every_form(tmp_path: pathlib.Path, content: bytes, form: str) -> None:
    (tmp_path / "deep").mkdir()
    path = tmp_path / "deep" / "file"
    path.write_bytes(b"one line\n" + content if content[:2] != b"\x1f\x8b" else content)
    done = check(tmp_path)
    assert done.returncode == 1
    assert f"{path}" in done.stdout and f"secret 1 (sk-…, {len(SECRET)} characters), {form}" in done.stdout
    if content[:2] != b"\x1f\x8b":
        assert f"{path}:2: " in done.stdout, "the line is told"
    assert SECRET not in done.stdout


def test_a_secret_that_is_spread_over_the_pages_of_a_database_is_found(tmp_path: pathlib.Path) -> None:
    path, secret = tmp_path / "x.db", "begin-" + "x" * 10_000 + "-end"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute('CREATE TABLE "odd name" (number INTEGER, text TEXT)')
        connection.execute('INSERT INTO "odd name" VALUES (1, ?)', (secret,))
    assert secret.encode() not in path.read_bytes()
    done = check(path, secrets=secret)
    assert done.returncode == 1
    assert f"{path} (odd name.text):1: secret 1" in done.stdout


def test_a_secret_in_the_write_ahead_log_of_a_database_in_use_is_found_and_the_files_stay(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.db"
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("CREATE TABLE t (text TEXT)")
        connection.execute("INSERT INTO t VALUES (?)", (SECRET,))
        before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
        done = check(path)
        assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before
    assert done.returncode == 1 and "(t.text)" in done.stdout


def test_a_damaged_database_is_searched_as_bytes(tmp_path: pathlib.Path) -> None:
    (tmp_path / "x.db").write_bytes(b"SQLite format 3\0" + SECRET.encode())
    assert check(tmp_path).returncode == 1


def test_where_nothing_is_found_it_says_how_much_it_looked_at(tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).write_text("nothing")
    done = check(tmp_path, secrets=f"{SECRET}\n\n{SECRET}\nanother-secret\n")
    assert (done.returncode, done.stdout) == (0, "None of 2 secrets in 2 files.\n")


def test_it_may_be_called_by_its_name() -> None:
    assert os.access(SCRIPT, os.X_OK)
    assert SCRIPT.read_text().startswith("#!/usr/bin/env python3\n")


def test_secrets_may_come_from_a_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "secrets").write_text(f"another-secret\n{SECRET}\n")
    (tmp_path / "log").write_text(SECRET)
    done = check("--secrets", tmp_path / "secrets", tmp_path / "log", secrets="")
    assert done.returncode == 1 and "secret 2" in done.stdout


@pytest.mark.parametrize(
    ("secrets", "place", "says"),
    [
        pytest.param("", ".", "no secrets to look for", id="no secrets"),
        pytest.param("short\n", ".", "secret 1 has fewer than 8 characters", id="one too short"),
        pytest.param(SECRET, "nowhere", "there is no such file or folder", id="no such place"),
        pytest.param(SECRET, "empty", "there is no file", id="an empty folder proves nothing"),
    ],
)
def test_a_search_that_would_prove_nothing_is_refused(tmp_path: pathlib.Path, secrets: str, place: str, says: str) -> None:
    (tmp_path / "empty").mkdir()
    done = check(tmp_path / place, secrets=secrets)
    assert done.returncode == 2
    assert says in done.stderr and "short" not in done.stderr.replace("--", "")
