"""Migrations: at start, at the same time, killed in the middle, back, on a database that is newer or damaged."""

import json
import os
import pathlib
import random
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import Any

import psycopg2
import pytest
from stage.house import settings_for
from stage.postgres import Postgres

from llm_proxy.db import migrate, open_database
from llm_proxy.errors import StartError
from llm_proxy.settings import Settings

TABLES = [
    "admin_sessions",
    "audit_events",
    "changes",
    "config_version",
    "projects",
    "providers",
    "tokens",
    "usage_hours",
    "usage_minutes",
]


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """The URL of an empty database, the same one for all these tests."""
    with closing(psycopg2.connect(postgres.uri)) as connection:
        connection.autocommit = True
        connection.cursor().execute("DROP DATABASE IF EXISTS migrated WITH (FORCE)")
    return postgres.create("migrated")


@pytest.fixture
def migrations(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A copy of the migrations, to which tests may add."""
    folder = tmp_path / "of [this] house" / "migrations"
    shutil.copytree(migrate.folder(), folder)
    monkeypatch.setattr(migrate, "folder", lambda: folder)
    return folder


@contextmanager
def cursor_of(settings: Settings) -> Iterator[Any]:
    """A cursor from outside."""
    if settings.db_driver == "postgres":
        with closing(psycopg2.connect(settings.database_url.reveal())) as connection:
            connection.autocommit = True
            yield connection.cursor()
    else:
        with closing(sqlite3.connect(settings.database_path, isolation_level=None)) as connection:
            yield connection.cursor()


def tables(settings: Settings) -> list[str]:
    """The tables that are ours."""
    with cursor_of(settings) as cursor:
        if settings.db_driver == "postgres":
            cursor.execute("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
        else:
            cursor.execute("SELECT name FROM sqlite_master WHERE type = 'table'")
        return sorted(row[0] for row in cursor.fetchall() if "yoyo" not in row[0] and not row[0].startswith("sqlite"))


def run(script: str, *arguments: str) -> subprocess.Popen[str]:
    """A Python of its own."""
    path = os.pathsep.join(filter(None, sys.path))
    return subprocess.Popen(
        [sys.executable, "-c", script, *arguments],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def database_of(settings: Settings) -> str:
    """The settings that name the database, for another process."""
    if settings.db_driver == "postgres":
        return json.dumps({"DATABASE_URL": settings.database_url.reveal()})
    return json.dumps({"DATABASE_PATH": settings.database_path})


def test_every_migration_has_its_way_back() -> None:
    names = migrate.known()
    assert names == sorted(names)
    assert names
    for name in names:
        assert (migrate.folder() / f"{name}.rollback.sql").exists()


def test_an_empty_database_gets_all_of_them_once(settings: Settings) -> None:
    assert migrate.applied(settings) == []
    assert migrate.missing(settings) == migrate.known()
    assert migrate.up(settings) == migrate.known()
    assert migrate.applied(settings) == migrate.known()
    assert tables(settings) == TABLES
    assert migrate.up(settings) == []


def test_the_newest_is_rolled_back_and_applied_again(settings: Settings, migrations: pathlib.Path) -> None:
    (migrations / "9998_more.sql").write_text("CREATE TABLE more (id BIGINT PRIMARY KEY)")
    (migrations / "9998_more.rollback.sql").write_text("DROP TABLE more")
    migrate.up(settings)
    assert migrate.down(settings) == ["9998_more"]
    assert tables(settings) == TABLES
    assert migrate.missing(settings) == ["9998_more"]
    for name in reversed(migrate.applied(settings)):
        assert migrate.down(settings) == [name]
    assert tables(settings) == []
    assert migrate.down(settings) == []
    migrate.up(settings)
    assert tables(settings) == sorted([*TABLES, "more"])


def test_a_migration_that_fails_leaves_everything_as_it_was(settings: Settings, migrations: pathlib.Path) -> None:
    migrate.up(settings)
    later = migrations / "9998_more.sql"
    later.write_text("CREATE TABLE more (id BIGINT PRIMARY KEY); INSERT INTO more VALUES (1); INSERT INTO more VALUES (1);")
    with pytest.raises(StartError, match=r"(?s)failed and was rolled back: .*mend the cause"):
        migrate.up(settings)
    assert tables(settings) == TABLES
    later.write_text("CREATE TABLE more (id BIGINT PRIMARY KEY)")
    assert migrate.up(settings) == ["9998_more"]
    assert tables(settings) == sorted([*TABLES, "more"])


def test_a_newer_database_is_refused(settings: Settings, migrations: pathlib.Path) -> None:
    (migrations / "9998_more.sql").write_text("CREATE TABLE more (id BIGINT PRIMARY KEY)")
    migrate.up(settings)
    (migrations / "9998_more.sql").unlink()
    for act in (migrate.up, migrate.down, migrate.missing):
        with pytest.raises(StartError, match=r"newer than this program: it has the migration 9998_more.*Start the newer program"):
            act(settings)
    assert tables(settings) == sorted([*TABLES, "more"]), "nothing below it was rolled back"


OPENING = """
import asyncio, json, sys
from llm_proxy.db import open_database
from llm_proxy.settings import load

async def main():
    async with open_database(load(overrides=json.loads(sys.argv[1]))) as database:
        row = await database.fetch_one("UPDATE config_version SET version = version + 1 RETURNING version")
        print(row["version"])

asyncio.run(main())
"""


def test_processes_that_start_at_once_wait_for_the_one_that_migrates(settings: Settings) -> None:
    processes = [run(OPENING, database_of(settings)) for _ in range(4)]
    outputs = [process.communicate(timeout=60) for process in processes]
    assert [process.returncode for process in processes] == [0] * 4, outputs
    assert sorted(int(output) for output, _ in outputs) == [1, 2, 3, 4]


def test_threads_that_start_at_once_migrate_once(settings: Settings) -> None:
    with ThreadPoolExecutor(8) as threads:
        done = list(threads.map(migrate.up, [settings] * 8))
    assert sorted(done) == [[]] * 7 + [migrate.known()]
    with cursor_of(settings) as cursor:
        cursor.execute("SELECT COUNT(*) FROM _yoyo_migration")
        assert cursor.fetchone() == (len(migrate.known()),)


async def test_many_at_once_open_an_empty_database(settings: Settings) -> None:
    import asyncio

    async def once() -> None:
        async with open_database(settings) as database:
            await database.execute("UPDATE config_version SET version = version + 1")

    await asyncio.gather(*(once() for _ in range(8)))
    with cursor_of(settings) as cursor:
        cursor.execute("SELECT version FROM config_version")
        assert cursor.fetchone() == (8,)


# Forks for many a statement of a migration, yoyo's own included, a child that is killed right before it; then starts as usual.
KILLING = """
import json, os, signal, sys
import psycopg2
from yoyo.backends.base import DatabaseBackend
from yoyo.migrations import MigrationStep
from llm_proxy.db import migrate
from llm_proxy.settings import load

given = json.loads(sys.argv[1])

def empty(number):
    if "DATABASE_PATH" in given:
        return load(overrides={"DATABASE_PATH": f"{given['DATABASE_PATH']}{number}"})
    connection = psycopg2.connect(given["DATABASE_URL"])
    connection.autocommit = True
    connection.cursor().execute("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    connection.close()
    return load(overrides=given)

count = 0

def die_before(number):
    for owner, name in ((DatabaseBackend, "execute"), (DatabaseBackend, "commit"), (MigrationStep, "_execute")):
        def dying(*args, _act=getattr(owner, name), **kwargs):
            global count
            count += 1
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return _act(*args, **kwargs)
        setattr(owner, name, dying)

def killed_before(number):
    settings = empty(number)
    child = os.fork()
    if not child:
        die_before(number)
        migrate.up(settings)
        os._exit(count)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status):
        return os.WEXITSTATUS(status)
    half = migrate.applied(settings)
    done = migrate.up(settings)
    assert half + done == migrate.known(), (number, half, done)
    assert migrate.missing(settings) == []

total = killed_before(0)
points = sorted({*range(1, total, 8), *range(total - 5, total + 1)})
assert [killed_before(point) for point in points] == [None] * len(points)
print(total)
"""


def test_a_migration_killed_at_any_statement_is_begun_anew(settings: Settings) -> None:
    process = run(KILLING, database_of(settings))
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, errors
    assert int(output) > (migrate.folder() / "0001_tables.sql").read_text().count(";"), "the steps were counted"


def test_the_lock_that_a_killed_tool_left_is_removed(settings: Settings, migrations: pathlib.Path) -> None:
    migrate.up(settings)
    for act in (migrate.break_lock, migrate.down, migrate.up):
        with cursor_of(settings) as cursor:
            cursor.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, CURRENT_TIMESTAMP, 4711)")
        act(settings)
        with cursor_of(settings) as cursor:
            cursor.execute("SELECT COUNT(*) FROM yoyo_lock")
            assert cursor.fetchone() == (0,)


def test_a_process_that_migrates_for_too_long_is_not_waited_for(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with migrate._locked(settings):
        monkeypatch.setattr(migrate, "LOCK_SECONDS", 0.1)
        with pytest.raises(StartError, match="Another process has been migrating"):
            migrate.up(settings)
    migrate.up(settings)


def test_the_file_and_its_folders_are_made_for_the_owner_alone(tmp_path: pathlib.Path) -> None:
    settings = settings_for(tmp_path, DATABASE_PATH=str(tmp_path / "some folders" / "50% [é]" / "the #1?.db"))
    migrate.up(settings)
    file = pathlib.Path(settings.database_path)
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert tables(settings) == TABLES


@pytest.mark.parametrize("damage", ["not a database", "cut short", "a page overwritten", "bytes flipped"])
def test_a_damaged_file_stops_the_start_and_says_what_to_do(tmp_path: pathlib.Path, damage: str) -> None:
    settings = settings_for(tmp_path)
    migrate.up(settings)
    rows = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 2000)"
    with cursor_of(settings) as cursor:
        cursor.execute(f"INSERT INTO changes {rows} SELECT x, x, 'token', 'the id of a token', '{{}}' FROM c")
    file = pathlib.Path(settings.database_path)
    data = bytearray(file.read_bytes())
    if damage == "not a database":
        data[:16] = b"something else.."
    elif damage == "cut short":
        del data[len(data) // 2 :]
    elif damage == "a page overwritten":
        middle = len(data) // 8192 * 4096
        data[middle : middle + 4096] = random.Random(7).randbytes(4096)
    else:
        for place in range(len(data) // 2, len(data), 5000):
            data[place] ^= 0xFF
    file.write_bytes(data)
    with pytest.raises(StartError, match=r"house\.db cannot be used: .*restore a backup"):
        migrate.up(settings)


def test_a_large_file_is_looked_at_for_a_moment_only(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = settings_for(tmp_path)
    migrate.up(settings)
    rows = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c WHERE x < 200000)"
    with cursor_of(settings) as cursor:
        cursor.execute(f"INSERT INTO changes {rows} SELECT x, x, 'token', 'the id of a token', '{{}}' FROM c")
    monkeypatch.setattr(migrate, "CHECK_SECONDS", 0.002)
    migrate.check_integrity(settings)


def test_a_file_of_somebody_else_stops_the_start(tmp_path: pathlib.Path) -> None:
    folder = tmp_path / "private"
    folder.mkdir(mode=0o700)
    settings = settings_for(folder)
    migrate.up(settings)
    folder.chmod(0)
    before = os.geteuid()
    if before == 0:
        os.seteuid(65534)
    try:
        with pytest.raises(StartError, match=r"Permission denied.*Check DATABASE_PATH and the file's permissions"):
            migrate.up(settings)
    finally:
        os.seteuid(before)
        folder.chmod(0o700)


@pytest.mark.parametrize(
    "url",
    [
        pytest.param("postgres://llm@127.0.0.1:{port}/migrated", id="the short scheme"),
        pytest.param("postgresql://llm@localhost:{port}/migrated?application_name=a%20b", id="a parameter"),
        pytest.param("postgresql://llm@/migrated?host={folder}&port={port}", id="a socket"),
        pytest.param("postgresql://llm@127.0.0.1:1,127.0.0.1:{port}/migrated", id="two hosts"),
        pytest.param("postgresql://llm@127.0.0.1:{port}/m%69grated", id="an escaped name"),
    ],
)
@pytest.mark.usefixtures("postgres_url")
def test_whatever_libpq_reads_as_a_url_will_do(postgres: Postgres, tmp_path: pathlib.Path, url: str) -> None:
    settings = settings_for(tmp_path, DATABASE_URL=url.format(port=postgres.port, folder=postgres._folder))
    assert migrate.up(settings) == migrate.known()


async def test_the_schema_of_the_url_holds_the_tables(postgres_url: str, tmp_path: pathlib.Path) -> None:
    with closing(psycopg2.connect(postgres_url)) as connection, connection:
        connection.cursor().execute("CREATE SCHEMA mine")
    settings = settings_for(tmp_path, DATABASE_URL=f"{postgres_url}?options=-c%20search_path%3Dmine")
    async with open_database(settings) as database:
        assert await database.fetch_one("SELECT version FROM mine.config_version") == {"version": 0}
        assert await database.fetch_one("SELECT version FROM config_version") == {"version": 0}
