"""`llm-proxy backup`: what it writes, and what it says of that."""

import asyncio
import pathlib
import tarfile

import pytest
from stage.house import ENCRYPTION_KEY, MANAGEMENT_TOKEN, House
from stage.secrets import used

from llm_proxy import settings
from llm_proxy.cli.backup import settings_text
from llm_proxy.secret import Secret
from llm_proxy.settings import TABLE
from llm_proxy.vault import Vault

from .conftest import Cli

[KEY_ID] = Vault([Secret(ENCRYPTION_KEY)]).key_ids
# A value for each kind of setting, other than any default.
VALUES = {
    "LISTEN_ADDR": "127.0.0.1:1",
    "TRUSTED_PROXIES": "10.0.0.0/8, ::1/128",
    "SSE_KEEPALIVE": "1.5s",
    "MAX_REQUEST_BYTES": "10MB",
    "VERIFY_SSL": "no",
    "EVENT_SINKS": "file,lunary",
    "EVENT_FILE": "/var/log/it's a # file.jsonl",
    "EVENT_SYNC": "always",
    "REDIS_URL": "redis://user:a-redis-password@host:6379/0",
    "DATABASE_PATH": "x.db",
    "METRICS_TOKEN": "a-metrics-token",
    "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN,
}


def test_the_settings_are_written_so_that_they_are_read_alike_and_no_secret_is_among_them(tmp_path: pathlib.Path) -> None:
    (tmp_path / "from.env").write_text("".join(f'{name}="{value}"\n' for name, value in VALUES.items()))
    before = settings.load(str(tmp_path / "from.env"))
    (tmp_path / "from.env").unlink()
    text = settings_text(before)
    (tmp_path / "to.env").write_text(text)
    after = settings.load(str(tmp_path / "to.env"))
    secrets = {"redis_url", "metrics_token", "management_token"}
    assert {field.name for field in TABLE if getattr(before, field.name) != getattr(after, field.name)} == secrets
    assert [line for line in text.splitlines() if line.endswith("=")] == [
        "# MANAGEMENT_TOKEN=",
        "# METRICS_TOKEN=",
        "# REDIS_URL=",
    ]
    for secret in ("a-redis-password", "a-metrics-token", MANAGEMENT_TOKEN):
        used(secret)


async def test_into_a_folder_with_what_it_needs_said(cli: Cli, house: House, tmp_path: pathlib.Path) -> None:
    await house.token_for("http://127.0.0.1:1")
    env = {"ENCRYPTION_KEY": ENCRYPTION_KEY, "EVENT_DIR": house.context.settings.event_dir}
    arguments = ("backup", "new/backups/", "--keep", "1", "--db", house.context.settings.database_path)
    done = await asyncio.to_thread(cli, *arguments, **env)
    assert done.code == 0, done.err
    [path] = (tmp_path / "new" / "backups").iterdir()
    assert f"Wrote {path.relative_to(tmp_path)} (mode 0600): 1 projects, 1 providers, 1 tokens, 0 events" in done.out
    assert f"the ENCRYPTION_KEY with the fingerprint {KEY_ID}, for 1 keys of providers and 1 tokens" in done.out
    with tarfile.open(path) as tar:
        assert "settings.env" in tar.getnames()
    assert done.err == ""


def test_keys_without_encryption_are_warned_of(cli: Cli, tmp_path: pathlib.Path) -> None:
    env = {"DATABASE_PATH": "plain.db"}
    cli("manage", "--local", "project", "create", "--name", "one", "--api-key", "-", input="sk-a-plain-key\n", **env)
    done = cli("backup", "b.tar.gz", **env)
    assert done.code == 0 and "warning: 1 keys of providers are in it without encryption" in done.err


async def test_of_postgresql_it_says_what_to_do(cli: Cli, postgres_url: str) -> None:
    done = await asyncio.to_thread(cli, "backup", "b.tar.gz", DATABASE_URL=postgres_url)
    assert done.code == 0 and "pg_dump --format=custom" in done.out and postgres_url not in done.out


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(["b.tar.gz"], 1, "llm-proxy.db: there is no such file. --db or --env says where", id="no database"),
        pytest.param(["b.tar.gz", "--keep", "3"], 2, "--keep counts the backups in a folder", id="keep without a folder"),
        pytest.param([".", "--keep", "0"], 2, "0 is not in the range", id="keep none"),
        pytest.param(["file/"], 1, "file: the folder cannot be made: File exists", id="a file for a folder"),
        pytest.param(["b.tar.gz", "--env", "no.env"], 2, "no.env: there is no such file", id="no settings"),
    ],
)
def test_what_cannot_be_done_is_said(cli: Cli, tmp_path: pathlib.Path, arguments: list[str], code: int, says: str) -> None:
    (tmp_path / "file").touch()

    done = cli("backup", *arguments)
    assert done.code == code and says in done.err, done.err
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
