"""`llm-proxy restore`: what it says; tests/backup/test_restoring.py holds what it does."""

import asyncio
import pathlib

import pytest
from stage.house import ENCRYPTION_KEY, House
from stage.logs import left_behind, samples

from llm_proxy.providers.profile_file import packaged_path

from .conftest import Cli

KEY = {"ENCRYPTION_KEY": ENCRYPTION_KEY}


@pytest.fixture
async def backup(house: House, cli: Cli, tmp_path: pathlib.Path) -> str:
    """A backup of a house with a token, an undelivered event and profiles of its own."""
    await house.token_for("http://127.0.0.1:1")
    left_behind(tmp_path / "events", *samples(1), sinks=("file",))
    (tmp_path / "own.yaml").write_text(packaged_path().read_text() + "# Our own.\n")
    env = {**KEY, "EVENT_DIR": str(tmp_path / "events"), "API_CONFIG_PATH": "own.yaml"}
    done = await asyncio.to_thread(cli, "backup", "b.tar.gz", "--db", house.context.settings.database_path, **env)
    assert done.code == 0, done.err
    return "b.tar.gz"


def test_a_check_changes_nothing(cli: Cli, backup: str, tmp_path: pathlib.Path) -> None:
    done = cli("restore", "--check", backup, **KEY)
    assert done.code == 0 and "b.tar.gz is whole, and can be restored here" in done.out and "1 undelivered" in done.out
    assert not (tmp_path / "data").exists()
    wrong = cli("restore", "--check", backup)
    assert wrong.code == 1 and "needs the ENCRYPTION_KEY with the fingerprint" in wrong.err


def test_what_was_done_is_said_with_what_is_left_to_do(cli: Cli, backup: str, tmp_path: pathlib.Path) -> None:
    done = cli("restore", backup, **KEY)
    assert done.code == 0, done.err
    first, *rest = done.out.splitlines()
    assert first.startswith("Restored b.tar.gz of 2") and "1 tokens, 1 events, 1 undelivered" in first
    assert rest == [
        "The profiles were written to config/api_providers.yaml.",
        "Tokens that were revoked after the backup are good again: revoke them again.",
        "Its settings, without secrets: tar -xzOf b.tar.gz settings.env",
    ]
    assert cli("manage", "--local", "token", "list", **KEY).rows
    refused = cli("restore", backup, **KEY)
    assert refused.code == 1 and "data/llm-proxy.db is there already" in refused.err and "--force" in refused.err
    (tmp_path / "config" / "api_providers.yaml").write_text(packaged_path().read_text())
    forced = cli("restore", "--force", backup, **KEY).out
    assert forced.count("What was there is kept: ") == 2 and "are not those of the backup, and stay" in forced


async def test_of_postgresql_it_says_what_to_do(cli: Cli, postgres_url: str) -> None:
    await asyncio.to_thread(cli, "backup", "b.tar.gz", DATABASE_URL=postgres_url)
    done = await asyncio.to_thread(cli, "restore", "b.tar.gz", DATABASE_URL=postgres_url)
    assert done.code == 0 and "pg_restore --clean --if-exists" in done.out and postgres_url not in done.out
