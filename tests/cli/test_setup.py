"""`llm-proxy setup`: a .env file that a server starts with."""

import pathlib
import stat

import pytest
from dotenv import dotenv_values

from llm_proxy import settings

from .conftest import Cli


def test_it_writes_secrets_with_which_a_server_may_start(cli: Cli, tmp_path: pathlib.Path) -> None:
    done = cli("setup")
    assert (done.code, done.out) == (0, "Wrote .env (mode 0600). Next: llm-proxy server\n")
    path = tmp_path / ".env"
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    loaded = settings.load()
    settings.check_serving(loaded)
    assert loaded.encryption_key and not loaded.warnings


def test_flags_are_written_and_nobody_is_asked(cli: Cli, tmp_path: pathlib.Path) -> None:
    done = cli("setup", "--addr", "127.0.0.1:9000", "--admin-addr", "127.0.0.1:9001", "--db", "my files/x.db", "--env", "a.env")
    assert done.out == "Wrote a.env (mode 0600). Next: llm-proxy server --env a.env\n"
    loaded = settings.load("a.env")
    assert (loaded.listen_addr, loaded.admin_ui_listen_addr, loaded.database_path) == (
        "127.0.0.1:9000",
        "127.0.0.1:9001",
        "my files/x.db",
    )


def test_a_postgresql_url_is_written(cli: Cli, tmp_path: pathlib.Path) -> None:
    assert cli("setup", "--database-url", "postgresql://u:p%23@h/n").code == 0
    assert settings.load().database_url.reveal() == "postgresql://u:p%23@h/n"


def test_it_asks_and_asks_again_for_what_cannot_be_used(cli: Cli, tmp_path: pathlib.Path) -> None:
    done = cli("setup", "--interactive", input="nonsense\n127.0.0.1:9000\n\nmysql://x\n\nother.db\n")
    assert done.code == 0
    assert "'nonsense' is not accepted" in done.out and "give a URL such as postgresql://" in done.out
    values = dotenv_values(tmp_path / ".env")
    assert {name: values[name] for name in ("LISTEN_ADDR", "ADMIN_UI_LISTEN_ADDR", "DATABASE_PATH")} == {
        "LISTEN_ADDR": "127.0.0.1:9000",
        "ADMIN_UI_LISTEN_ADDR": "127.0.0.1:8081",
        "DATABASE_PATH": "other.db",
    }


@pytest.mark.parametrize(
    ("flags", "answers", "name", "value"),
    [
        pytest.param((), "\n\npostgresql://h/n\n", "DATABASE_URL", "postgresql://h/n", id="a URL when asked"),
        pytest.param(("--db", "x.db"), "\n\n", "DATABASE_PATH", "x.db", id="what a flag says is not asked"),
        pytest.param(("--addr", ":9"), "\n\n\n\n", "LISTEN_ADDR", ":9", id="a flag is the default of its question"),
    ],
)
def test_flags_and_answers_go_together(
    cli: Cli, tmp_path: pathlib.Path, flags: tuple[str, ...], answers: str, name: str, value: str
) -> None:
    assert cli("setup", "--interactive", *flags, input=answers).code == 0
    assert dotenv_values(tmp_path / ".env")[name] == value


def test_a_file_that_is_there_is_replaced_only_with_force(cli: Cli, tmp_path: pathlib.Path) -> None:
    path = tmp_path / ".env"
    path.write_text("MANAGEMENT_TOKEN=mine\n")
    done = cli("setup", "--interactive", input="\n\n\n\n")
    assert (done.code, done.out) == (1, ""), "nothing is asked in vain"
    assert "--force" in done.err and "--env" in done.err
    assert path.read_text() == "MANAGEMENT_TOKEN=mine\n"
    assert cli("setup", "--force").code == 0
    assert "mine" not in path.read_text()


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        pytest.param(("--addr", "x"), 2, "--addr", id="address"),
        pytest.param(("--database-url", "mysql://x"), 2, "postgresql://", id="URL"),
        pytest.param(("--db", "a", "--database-url", "postgresql://h/n"), 2, "Give one of them", id="both databases"),
        pytest.param(("--env", "/dev/null/.env"), 1, "cannot be written", id="nowhere to write"),
    ],
)
def test_what_cannot_be_used_is_named(cli: Cli, tmp_path: pathlib.Path, arguments: tuple[str, ...], code: int, says: str) -> None:
    done = cli("setup", *arguments)
    assert done.code == code
    assert says in done.err
    assert not (tmp_path / ".env").exists()
