"""`llm-proxy server`: whatever keeps it from starting is said in one line, with the way out."""

import fcntl
import pathlib
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator

import pytest
from stage.house import MANAGEMENT_TOKEN
from stage.postgres import free_port
from stage.processes import command as process
from stage.processes import environment

from .conftest import Cli

GOOD = {"LISTEN_ADDR": "127.0.0.1:0", "ADMIN_UI_LISTEN_ADDR": "127.0.0.1:0", "MANAGEMENT_TOKEN": MANAGEMENT_TOKEN}
PUBLIC = {**GOOD, "LISTEN_ADDR": ":0"}


@pytest.fixture
def bad_files(tmp_path: pathlib.Path) -> pathlib.Path:
    """Files of every kind that cannot be used."""
    (tmp_path / "broken.yaml").write_text("default_api: openai\napis:\n  openai: [\n")
    (tmp_path / "unknown.yaml").write_text("default_api: openai\napis:\n  openai:\n    base_uri: https://x\n")
    (tmp_path / "text").write_text("not a certificate, not a database, not a folder\n" * 100)
    return tmp_path


@pytest.mark.parametrize(
    ("env", "code", "says"),
    [
        pytest.param({**GOOD, "API_CONFIG_PATH": "broken.yaml"}, 2, ["broken.yaml:4:", "not YAML"], id="broken YAML"),
        pytest.param({**GOOD, "API_CONFIG_PATH": "unknown.yaml"}, 2, ["unknown.yaml:4:", "base_url?"], id="unknown key in YAML"),
        pytest.param({**GOOD, "API_CONFIG_PATH": "no.yaml"}, 2, ["no.yaml", "cannot be read"], id="no such YAML"),
        pytest.param({**GOOD, "SHUTDOWN_TIMEOUT": "soon"}, 2, ["SHUTDOWN_TIMEOUT=soon", "30s"], id="a setting"),
        pytest.param({**GOOD, "MANAGEMENT_TOKEN": ""}, 2, ["MANAGEMENT_TOKEN", "llm-proxy setup"], id="no management token"),
        pytest.param({**PUBLIC, "MANAGEMENT_TOKEN": "short"}, 2, ["32 characters", "openssl rand"], id="a weak one in public"),
        pytest.param({**GOOD, "REQUIRE_ENCRYPTION_KEY": "yes"}, 2, ["ENCRYPTION_KEY", "openssl rand"], id="no encryption key"),
        pytest.param({**GOOD, "ENCRYPTION_KEY": "short"}, 2, ["ENCRYPTION_KEY=****", "openssl rand"], id="no real key"),
        pytest.param({**GOOD, "DEFAULT_API_PROVIDER": "x"}, 2, ["DEFAULT_API_PROVIDER=x", "openai, anthropic"], id="no profile"),
        pytest.param({**GOOD, "TRUSTED_PROXIES": "10.0.0.0/99"}, 2, ["TRUSTED_PROXIES=10.0.0.0/99", "10.0.0.0/8"], id="network"),
        pytest.param({**GOOD, "SSL_CERT_FILE": "text"}, 2, ["SSL_CERT_FILE=text", "certificate"], id="no certificates"),
        pytest.param({**GOOD, "LOG_FILE": "text/log"}, 2, ["LOG_FILE=text/log", "cannot be opened"], id="log file"),
        pytest.param(
            {**GOOD, "MANAGEMENT_TOKEN_FILE": "none", "MANAGEMENT_TOKEN": ""}, 2, ["MANAGEMENT_TOKEN_FILE"], id="secret file"
        ),
        pytest.param({**GOOD, "DATABASE_PATH": "text/x.db"}, 1, ["text/x.db", "DATABASE_PATH"], id="database not writable"),
        pytest.param({**GOOD, "DATABASE_PATH": "text"}, 1, ["text", "not a database", "backup"], id="no database file"),
        pytest.param({**GOOD, "DATABASE_PATH": "."}, 1, ["DATABASE_PATH"], id="a folder for a database"),
        pytest.param({**GOOD, "DATABASE_URL": "mysql://h/n"}, 2, ["DATABASE_URL", "postgresql://"], id="another database"),
        pytest.param({**GOOD, "DB_DRIVER": "sqlite", "DATABASE_URL": "postgresql://h/n"}, 2, ["contradict"], id="two databases"),
    ],
)
def test_what_cannot_be_used_stops_the_start(
    cli: Cli, bad_files: pathlib.Path, env: dict[str, str], code: int, says: list[str]
) -> None:
    done = cli("server", **env)
    assert (done.code, done.out) == (code, "")
    stopped(done.err, says)


def stopped(err: str, says: list[str]) -> None:
    """One error, which says these things, and no traceback."""
    assert err.startswith("Error: ") and err.count("Error: ") == 1, err
    assert [text for text in says if text not in err] == [], err
    assert "Traceback" not in err


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


@pytest.mark.parametrize("flag", ["--addr", "--admin-addr"])
def test_a_port_that_is_taken_stops_the_start(cli: Cli, taken_port: int, flag: str) -> None:
    done = cli("server", flag, f"127.0.0.1:{taken_port}", "--log-level", "error", **GOOD)
    assert done.code == 1
    stopped(done.err, [f"=127.0.0.1:{taken_port}", "in use", "another instance"])


def test_a_postgresql_that_is_not_there_stops_the_start_without_telling_the_password(cli: Cli) -> None:
    done = cli("server", **GOOD, DATABASE_URL=f"postgresql://user:a-password@127.0.0.1:{free_port()}/name")
    assert done.code == 1
    stopped(done.err, ["DATABASE_URL", "Connection refused"])
    assert "a-password" not in done.err


def test_a_newer_database_stops_the_start_and_stays_as_it_is(cli: Cli, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "x.db"
    assert cli("migrate", "--db", str(path), "up").code == 0
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO _yoyo_migration (migration_hash, migration_id) VALUES ('x', '9999_future')")
    before = path.read_bytes()
    done = cli("server", "--db", str(path), **GOOD)
    assert done.code == 1
    stopped(done.err, ["newer", "9999_future", "backup"])
    assert path.read_bytes() == before


def test_the_real_command_says_it_alike(tmp_path: pathlib.Path) -> None:
    arguments = [sys.executable, "-m", "llm_proxy", "server", "--db", "/dev/null/x.db"]
    done = subprocess.run(arguments, env=environment(**GOOD), cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    stopped(done.stderr, ["/dev/null/x.db"])


async def test_flags_go_over_the_settings(tmp_path: pathlib.Path) -> None:
    arguments = ("server", "--addr", "127.0.0.1:0", "--no-admin", "--db", "flag.db")
    async with process(*arguments, folder=tmp_path, **{**GOOD, "LISTEN_ADDR": "127.0.0.1:1", "DATABASE_PATH": "env.db"}) as run:
        await run.until("the proxy listens on http://127.0.0.1:")
        assert await run.stopped() == 0
    assert not any("admin site" in line for line in run.err)
    assert (tmp_path / "flag.db").exists() and not (tmp_path / "env.db").exists()


async def test_a_weak_token_will_do_on_loopback(tmp_path: pathlib.Path) -> None:
    async with process("server", folder=tmp_path, **{**GOOD, "MANAGEMENT_TOKEN": "short"}) as run:
        await run.until("the proxy listens on")
        assert await run.stopped() == 0


async def test_warnings_about_settings_are_logged_and_do_not_stop_the_start(tmp_path: pathlib.Path) -> None:
    async with process("server", folder=tmp_path, **GOOD, LLM_PROXY_PORT="1") as run:
        await run.until("LLM_PROXY_PORT is not a setting")
        await run.until("the proxy listens on")
        assert await run.stopped() == 0


async def test_a_start_that_waits_can_be_stopped_as_process_1_too(tmp_path: pathlib.Path) -> None:
    with (tmp_path / "x.db.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        async with process("server", "--db", "x.db", folder=tmp_path, **GOOD, LLM_PROXY_PORT="1") as run:
            await run.until("LLM_PROXY_PORT is not a setting")
            # Were it not handled, it would be -15.
            assert await run.stopped() == 0
    assert not any("listens" in line for line in run.err)
