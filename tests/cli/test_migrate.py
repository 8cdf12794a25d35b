"""`llm-proxy migrate`: the schema up and down, keys from plain to encrypted to rotated."""

import asyncio
import base64
import contextlib
import pathlib
import sqlite3

import pytest
from stage import secrets

from llm_proxy import providers, settings
from llm_proxy.db import migrate, open_database
from llm_proxy.secret import Secret
from llm_proxy.vault import Vault

from .conftest import Cli

OLD, NEW = (base64.b64encode(bytes([n]) * 32).decode() for n in (1, 2))
NEWEST = migrate.known()[-1]


@pytest.fixture(params=["sqlite", "postgres"])
def env(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> dict[str, str]:
    """The setting that names an empty database, once of each kind."""
    if request.param == "postgres":
        return {"DATABASE_URL": request.getfixturevalue("empty_postgres_url")}
    return {"DATABASE_PATH": str(tmp_path / "x.db")}


def test_up_and_down_and_what_they_say_of_it(cli: Cli, env: dict[str, str]) -> None:
    assert cli("migrate", "version", **env).out == "none\n"
    assert cli("migrate", "status", **env).rows[-1] == [NEWEST, "missing"]
    assert cli("migrate", "up", **env).out == f"Applied {', '.join(migrate.known())}.\n"
    assert cli("migrate", "version", **env).out == f"{NEWEST}\n"
    assert cli("migrate", "status", **env).rows[-1] == [NEWEST, "applied"]
    assert cli("migrate", "up", **env).out == "Nothing to do.\n"
    assert cli("migrate", "down", "--yes", **env).out == f"Rolled back {NEWEST}.\n"
    assert cli("migrate", "version", **env).out != f"{NEWEST}\n"


def test_down_asks_first(cli: Cli, env: dict[str, str]) -> None:
    cli("migrate", "up", **env)
    refused = cli("migrate", "down", input="n\n", **env)
    assert refused.code == 1
    assert f"rolls {NEWEST} back" in refused.out and "Aborted" in refused.err
    assert cli("migrate", "version", **env).out == f"{NEWEST}\n"
    assert "Rolled back" in cli("migrate", "down", input="y\n", **env).out


def test_down_of_an_empty_database_has_nothing_to_do(cli: Cli, env: dict[str, str]) -> None:
    assert cli("migrate", "down", **env).out == "Nothing to do.\n"


@pytest.mark.parametrize("command", ["up", "down", "status", "encrypt-status"])
def test_a_newer_database_is_left_alone(cli: Cli, tmp_path: pathlib.Path, command: str) -> None:
    path = tmp_path / "x.db"
    cli("migrate", "--db", str(path), "up")
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999_future')")
    done = cli("migrate", command, "--db", str(path), input="y\n")
    assert done.code == 1
    assert "newer than this program" in done.err


@pytest.mark.parametrize("place", ["group", "command"])
def test_the_database_may_be_named_before_or_after_the_command(cli: Cli, tmp_path: pathlib.Path, place: str) -> None:
    option = ("--db", str(tmp_path / "named.db"))
    done = cli("migrate", *option, "up") if place == "group" else cli("migrate", "up", *option)
    assert done.code == 0
    assert (tmp_path / "named.db").exists()


def test_a_lock_that_a_killed_tool_left_is_broken(cli: Cli, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.db"
    cli("migrate", "--db", str(path), "up")
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO yoyo_lock (locked, ctime, pid) VALUES (1, '2026-01-01', 1)")
    assert cli("migrate", "break-lock", "--db", str(path)).out == "No lock is left.\n"
    with sqlite3.connect(path) as connection:
        assert connection.execute("SELECT COUNT(*) FROM yoyo_lock").fetchone() == (0,)


def project(cli: Cli, name: str, key: str, **env: str) -> None:
    """A project with a provider's key, made as an operator makes it."""
    done = cli("manage", "--local", "project", "create", "--name", name, "--api-key", "-", input=key + "\n", **env)
    assert done.code == 0, done.err


def readable(env: dict[str, str], key: str) -> list[str | None]:
    """The provider keys that this encryption key alone can read."""

    async def read() -> list[str | None]:
        async with open_database(settings.load(overrides=env)) as database:
            found = await providers.every(database, Vault([Secret(key)]), 100)
            return sorted(one.api_key.reveal() if one.api_key else "unreadable" for one in found)

    return asyncio.run(read())


def counts(cli: Cli, **env: str) -> dict[str, str]:
    return dict(cli("migrate", "encrypt-status", **env).rows)  # type: ignore[arg-type]


def test_keys_go_from_plain_to_encrypted_to_rotated_to_the_new_key_alone(cli: Cli, env: dict[str, str]) -> None:
    project(cli, "one", "sk-first-key", **env)
    project(cli, "two", "sk-second-key", **env, ENCRYPTION_KEY=OLD)
    assert counts(cli, **env, ENCRYPTION_KEY=OLD)["plain"] == "1"
    assert cli("migrate", "encrypt", **env, ENCRYPTION_KEY=OLD).out == "Provider keys that are encrypted anew: 1.\n"
    assert counts(cli, **env, ENCRYPTION_KEY=OLD)["with the newest key"] == "2"
    both = f"{NEW},{OLD}"
    assert counts(cli, **env, ENCRYPTION_KEY=both)["with an older key"] == "2"
    assert cli("migrate", "encrypt", **env, ENCRYPTION_KEY=both).out == "Provider keys that are encrypted anew: 2.\n"
    assert cli("migrate", "encrypt", **env, ENCRYPTION_KEY=both).out == "Provider keys that are encrypted anew: 0.\n"
    assert counts(cli, **env, ENCRYPTION_KEY=NEW) == {
        "with the newest key": "2",
        "with an older key": "0",
        "plain": "0",
        "unreadable": "0",
    }
    assert readable(env, NEW) == ["sk-first-key", "sk-second-key"]


def test_what_was_plain_is_nowhere_in_the_file_after_the_encryption(cli: Cli, tmp_path: pathlib.Path) -> None:
    path, key = tmp_path / "x.db", "sk-a-key-that-was-plain"
    project(cli, "one", key, DATABASE_PATH=str(path))
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        # As most builds of SQLite work: what was deleted stays in the file's free space.
        connection.execute("PRAGMA secure_delete = OFF")
        connection.execute("CREATE TABLE old AS SELECT * FROM providers")
        connection.execute("DROP TABLE old")
    assert path.read_bytes().count(key.encode()) == 2
    assert cli("migrate", "encrypt", DATABASE_PATH=str(path), ENCRYPTION_KEY=NEW).code == 0
    secrets.used(key)
    assert not secrets.found_in(tmp_path)


def test_without_a_key_nothing_is_encrypted(cli: Cli, env: dict[str, str]) -> None:
    done = cli("migrate", "encrypt", **env)
    assert done.code == 2
    assert "ENCRYPTION_KEY is not set" in done.err and "openssl rand" in done.err


def test_a_key_that_cannot_be_read_is_named_and_the_others_are_encrypted(cli: Cli, env: dict[str, str]) -> None:
    project(cli, "lost", "sk-lost-key", **env, ENCRYPTION_KEY=OLD)
    project(cli, "fine", "sk-fine-key", **env)
    done = cli("migrate", "encrypt", **env, ENCRYPTION_KEY=NEW)
    assert (done.code, done.out) == (1, "Provider keys that are encrypted anew: 1.\n")
    assert "which ENCRYPTION_KEY does not hold" in done.err
    assert readable(env, NEW) == ["sk-fine-key", "unreadable"]
