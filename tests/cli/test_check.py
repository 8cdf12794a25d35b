"""`llm-proxy check`: a good house passes, each thing that is wrong is named, nothing is changed."""

import asyncio
import pathlib
import re
import sqlite3
from collections.abc import Awaitable, Callable, Iterator
from contextlib import closing, contextmanager

import pytest
from stage.house import MANAGEMENT_TOKEN, PROVIDER_KEY, House
from stage.postgres import free_port
from stage.redis import RedisServer

from llm_proxy import fake_provider
from llm_proxy.cli import check
from llm_proxy.db import migrate
from llm_proxy.fake_provider import Faults

from .conftest import Cli, Done

Check = Callable[..., Awaitable[Done]]
GOOD = {"MANAGEMENT_TOKEN": MANAGEMENT_TOKEN}


@pytest.fixture
async def checked(house: House, cli: Cli, env_file: pathlib.Path) -> Check:
    """Runs `llm-proxy check` with the settings of a house, on its database."""

    async def run(*arguments: str) -> Done:
        return await asyncio.to_thread(cli, "check", "--db", house.context.settings.database_path, *arguments)

    return run


async def test_a_good_house_passes(checked: Check, house: House) -> None:
    async with fake_provider.running(require_key=PROVIDER_KEY) as url:
        await house.project(url, name="web")
        done = await checked()
    assert (done.code, done.err) == (0, "")
    states = [line.split()[0] for line in done.out.splitlines()]
    subjects = [line.split()[1] for line in done.out.splitlines()]
    assert states == ["ok"] * 5
    assert subjects == ["settings:", "profiles:", "events:", "database:", "provider"]
    assert "SQLite 3." in done.out and f"schema {migrate.known()[-1]}" in done.out


@pytest.mark.parametrize(
    ("options", "says"),
    [
        pytest.param({"require_key": "another"}, "the provider refuses the key (401)", id="key refused"),
        pytest.param({"faults": Faults(status=503)}, "the provider answers 503", id="out of order"),
        pytest.param({"faults": Faults(delay=60)}, "did not begin its answer in time", id="silent"),
        pytest.param({"faults": Faults(cut=0)}, "provider", id="hangs up"),
    ],
)
async def test_a_provider_that_cannot_be_used_is_named(
    checked: Check, house: House, monkeypatch: pytest.MonkeyPatch, options: dict[str, object], says: str
) -> None:
    monkeypatch.setattr(check, "PROVIDER_SECONDS", 0.2)
    async with fake_provider.running(**options) as url:
        await house.project(url)
        done = await checked()
    assert done.code == 1
    wrong(done, says)


def wrong(done: Done, says: str) -> None:
    """One line says what is wrong, and the last word is that something is."""
    [line] = [line for line in done.out.splitlines() if line.startswith("wrong")]
    assert says in line
    assert done.err == "Error: 1 of the providers cannot be used.\n"


async def test_a_provider_that_is_not_there_is_named_and_the_others_are_looked_at(
    checked: Check, house: House, fake: str
) -> None:
    await house.project(f"http://127.0.0.1:{free_port()}")
    await house.project(fake)
    done = await checked()
    wrong(done, "could not be connected to")
    assert done.out.count("ok      provider") == 1


async def test_offline_no_provider_is_called(checked: Check, house: House) -> None:
    await house.project(f"http://127.0.0.1:{free_port()}")
    assert (await checked("--offline")).code == 0


async def test_a_provider_out_of_use_is_passed_over(checked: Check, house: House) -> None:
    await house.project(f"http://127.0.0.1:{free_port()}")
    await house.context.database.execute("UPDATE providers SET is_enabled = :no", {"no": False})
    done = await checked()
    assert done.code == 0 and "provider " not in done.out


async def test_a_provider_without_a_profile_is_named(checked: Check, house: House) -> None:
    await house.project("http://127.0.0.1:1")
    await house.context.database.execute("UPDATE providers SET provider_type = 'gone'")
    wrong(await checked("--offline"), "There is no profile gone; known are openai, anthropic")


async def test_a_key_that_cannot_be_read_is_named(checked: Check, house: House) -> None:
    await house.project("http://127.0.0.1:1")
    await house.context.database.execute("UPDATE providers SET api_key_ciphertext = 'enc:v2:00000000:AAAA'")
    wrong(await checked("--offline"), "which ENCRYPTION_KEY does not hold")


async def test_of_very_many_providers_the_first_are_looked_at(
    checked: Check, house: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "MOST_PROVIDERS", 1)
    for _ in range(2):
        await house.project("http://127.0.0.1:1")
    done = await checked("--offline")
    assert done.code == 0
    assert "warning there are more than 1 providers" in done.out and done.out.count("ok      provider") == 1


def test_warnings_are_shown_and_are_no_failure(cli: Cli, env_file: pathlib.Path) -> None:
    env_file.write_text(env_file.read_text() + "LISTEN_ADR=:80\n")
    done = cli("check")
    assert done.code == 0
    assert "warning LISTEN_ADR is not a setting; did you mean LISTEN_ADDR?\n" in done.out


@contextmanager
def unchanged(folder: pathlib.Path) -> Iterator[None]:
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    before = state()
    yield
    assert state() == before


def test_a_database_that_is_not_there_yet_is_not_made(cli: Cli, env_file: pathlib.Path) -> None:
    with unchanged(env_file.parent):
        done = cli("check")
    assert done.code == 0
    assert "data/llm-proxy.db is not there yet; the first start makes it" in done.out


def test_missing_migrations_are_told_and_not_applied(cli: Cli, env_file: pathlib.Path) -> None:
    cli("migrate", "up")
    cli("migrate", "down", "--yes")
    with unchanged(env_file.parent / "data"):
        done = cli("check")
    assert done.code == 0
    assert f"the next start applies {migrate.known()[-1]}" in done.out


@pytest.mark.parametrize(
    ("env", "code", "says"),
    [
        pytest.param({"MANAGEMENT_TOKEN": "short", "LISTEN_ADDR": ":1"}, 2, "MANAGEMENT_TOKEN", id="weak token"),
        pytest.param({"LOG_LEVEL": "loud"}, 2, "LOG_LEVEL=loud", id="setting"),
        pytest.param({"API_CONFIG_PATH": "broken.yaml"}, 2, "broken.yaml:1: not YAML", id="profiles"),
        pytest.param({"SSL_CERT_FILE": "nowhere"}, 2, "SSL_CERT_FILE=nowhere", id="certificates, with no database yet"),
        pytest.param({"TRUSTED_PROXIES": "x"}, 2, "TRUSTED_PROXIES=x", id="networks, with no database yet"),
        pytest.param({"DATABASE_PATH": "broken.yaml/x.db"}, 1, "nothing can be written to", id="no folder"),
        pytest.param({"DATABASE_PATH": "broken.yaml"}, 1, "file is not a database", id="no database"),
        pytest.param({"EVENT_DIR": "broken.yaml"}, 1, "EVENT_DIR=broken.yaml: nothing can be written to", id="events"),
        pytest.param({"EVENT_SINKS": "file", "EVENT_FILE": "broken.yaml/f"}, 1, "EVENT_FILE=broken.yaml/f: nothing", id="file"),
    ],
)
def test_what_would_stop_a_start_stops_the_check(
    cli: Cli, tmp_path: pathlib.Path, env: dict[str, str], code: int, says: str
) -> None:
    (tmp_path / "broken.yaml").write_text("[" * 20 + "no database, and no YAML" * 50)
    done = cli("check", **{**GOOD, **env})
    assert done.code == code
    assert says in done.err and done.err.count("Error: ") == 1


def test_events_that_are_switched_off_need_no_room(cli: Cli, tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").touch()
    assert cli("check", **GOOD, EVENT_DIR="file", OBSERVABILITY_ENABLED="false").code == 0


def test_a_damaged_file_is_recognised(cli: Cli, env_file: pathlib.Path) -> None:
    cli("migrate", "up")
    path = env_file.parent / "data" / "llm-proxy.db"
    content = bytearray(path.read_bytes())
    # The second half of all pages but the first: the schema can be read, the tables cannot.
    for start in range(8192, len(content), 4096):
        content[start : start + 2048] = b"\xff" * 2048
    path.write_bytes(content)
    done = cli("check")
    assert done.code == 1
    assert "llm-proxy.db" in done.err and "backup" in done.err and "Traceback" not in done.err


def test_a_newer_database_is_recognised(cli: Cli, env_file: pathlib.Path) -> None:
    cli("migrate", "up")
    with closing(sqlite3.connect("data/llm-proxy.db", isolation_level=None)) as connection:
        connection.execute("INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999_future')")
    done = cli("check")
    assert done.code == 1 and "newer than this program" in done.err


def test_postgresql_says_its_version(cli: Cli, env_file: pathlib.Path, postgres_url: str) -> None:
    done = cli("check", DATABASE_URL=postgres_url)
    assert done.code == 0
    assert "database: PostgreSQL " in done.out and f"schema {migrate.known()[-1]}" in done.out


def test_an_old_postgresql_is_refused(
    cli: Cli, env_file: pathlib.Path, postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "OLDEST_POSTGRES", 999)
    done = cli("check", DATABASE_URL=postgres_url)
    assert done.code == 1
    assert done.err.startswith("Error: PostgreSQL 999 or newer is needed; this is ")


def test_a_postgresql_that_is_not_there_is_said(cli: Cli, env_file: pathlib.Path) -> None:
    done = cli("check", DATABASE_URL=f"postgresql://u:a-password@127.0.0.1:{free_port()}/n")
    assert done.code == 1
    assert "DATABASE_URL" in done.err and "a-password" not in done.err


def test_redis_says_what_it_speaks_and_is_warned_of_when_it_may_forget(
    cli: Cli, env_file: pathlib.Path, mortal_redis: RedisServer
) -> None:
    env = {"REDIS_URL": mortal_redis.uri, "DISTRIBUTED_RATE_LIMIT_ENABLED": "true"}
    done = cli("check", **env)
    assert done.code == 0 and re.search(r"ok +redis: speaks as Redis [678]\.", done.out)
    mortal_redis.say("CONFIG SET maxmemory-policy allkeys-lru")
    assert "Set maxmemory-policy noeviction" in cli("check", **env).out


def test_an_old_redis_is_refused(
    cli: Cli, env_file: pathlib.Path, redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check, "OLDEST_REDIS", (999, 0))
    done = cli("check", REDIS_URL=redis_server.uri)
    assert done.code == 1 and "Redis 6.2 or newer is needed; this is " in done.err


def test_a_redis_that_is_not_there_is_said(cli: Cli, env_file: pathlib.Path) -> None:
    done = cli("check", REDIS_URL=f"redis://:a-password@127.0.0.1:{free_port()}/0")
    assert done.code == 1
    assert "REDIS_URL: Redis cannot be used: " in done.err and "a-password" not in done.err
