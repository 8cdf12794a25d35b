"""Options become settings, wherever they stand."""

import pathlib

import click
import pytest
from click.testing import CliRunner, Result

from llm_proxy.cli import options
from llm_proxy.errors import SettingsError
from llm_proxy.settings import load


@click.group()
@options.database
@options.env_file
def group() -> None:
    """A group whose commands take the same options."""


@group.command()
@options.addr
@options.no_admin
@options.database
@options.env_file
def show() -> None:
    """Print some settings."""
    settings = options.settings()
    click.echo(f"{settings.listen_addr} {settings.admin_ui_enabled} {settings.database_path}")


def run(*arguments: str, **env: str) -> Result:
    return CliRunner().invoke(group, arguments, env=env)


@pytest.mark.parametrize(
    ("arguments", "printed"),
    [
        pytest.param(("show",), ":8080 True data/llm-proxy.db", id="none"),
        pytest.param(("--db", "a.db", "show"), ":8080 True a.db", id="at the group"),
        pytest.param(("show", "--db", "b.db"), ":8080 True b.db", id="at the command"),
        pytest.param(("--db", "a.db", "show", "--db", "b.db"), ":8080 True b.db", id="at both: the command's counts"),
        pytest.param(("show", "--addr", "[::1]:80", "--no-admin"), "[::1]:80 False data/llm-proxy.db", id="others"),
        pytest.param(("show", "--db", ""), ":8080 True data/llm-proxy.db", id="empty says nothing"),
    ],
)
def test_an_option_counts_wherever_it_stands(arguments: tuple[str, ...], printed: str) -> None:
    assert run(*arguments).output == f"{printed}\n"


def test_an_option_goes_over_the_environment_and_the_file(tmp_path: pathlib.Path) -> None:
    (tmp_path / "other.env").write_text("DATABASE_PATH=file.db\n")
    arguments = ("--env", "other.env", "show")
    assert run(*arguments).output == ":8080 True file.db\n"
    assert run(*arguments, DATABASE_PATH="environment.db").output == ":8080 True environment.db\n"
    assert run(*arguments, "--db", "option.db", DATABASE_PATH="environment.db").output == ":8080 True option.db\n"


@pytest.mark.parametrize("address", ["8080", "host", "host:99999", "http://host:1", ""])
def test_what_is_no_address_is_refused_with_the_name_of_the_option(address: str) -> None:
    result = run("show", "--addr", address)
    assert result.exit_code == 2
    assert "Invalid value for '--addr'" in result.output and "host:port" in result.output


def test_a_sqlite_file_beside_a_postgresql_url_is_refused_rather_than_passed_over() -> None:
    result = run("show", "--db", "a.db", DATABASE_URL="postgresql://u:p@h/n")
    assert isinstance(result.exception, SettingsError)
    assert "contradict" in str(result.exception)


@pytest.mark.parametrize(
    ("listen", "url"),
    [
        (":8080", "http://127.0.0.1:8080"),
        ("0.0.0.0:80", "http://127.0.0.1:80"),
        ("[::]:80", "http://[::1]:80"),
        ("[::1]:80", "http://[::1]:80"),
        ("example.com:80", "http://example.com:80"),
    ],
)
def test_a_server_of_these_settings_is_reached_here(listen: str, url: str) -> None:
    assert options.own_address(load(overrides={"LISTEN_ADDR": listen})) == url
