"""What is true of every command: help, names, exit codes, quickness."""

import subprocess
import sys
from collections.abc import Iterator

import click
import pytest
from stage.processes import environment

from llm_proxy import __version__
from llm_proxy.cli import COMMANDS, command
from llm_proxy.errors import DatabaseUnavailable, InvalidField, SettingsError, StartError
from llm_proxy.secret import Secret

from .conftest import Cli


def every(group: click.Group, names: tuple[str, ...] = ()) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every group and command below a group, with the words that lead to it."""
    context = click.Context(group)
    for name in group.list_commands(context):
        found = group.get_command(context, name)
        assert found is not None
        yield (*names, name), found
        if isinstance(found, click.Group):
            yield from every(found, (*names, name))


ALL = [pytest.param(names, found, id=" ".join(names)) for names, found in every(command)]  # type: ignore[arg-type]


@pytest.mark.parametrize(("names", "found"), ALL)
def test_help_says_what_a_command_is_for_and_shows_an_example(cli: Cli, names: tuple[str, ...], found: click.Command) -> None:
    done = cli(*names, "--help")
    assert done.code == 0
    assert "Example" in done.out
    assert f"llm-proxy {' '.join(names)}" in done.out.partition("Example")[2], "the example is one of this command"
    assert cli(*names, "-h") == done


@pytest.mark.parametrize(("names", "found"), ALL)
def test_every_option_says_what_it_is_for(names: tuple[str, ...], found: click.Command) -> None:
    assert [option.name for option in found.params if isinstance(option, click.Option) and not option.help] == []


@pytest.mark.parametrize(("names", "found"), [case for case in ALL if isinstance(case.values[1], click.Group)])
def test_no_line_in_a_list_of_commands_is_cut_short(cli: Cli, names: tuple[str, ...], found: click.Command) -> None:
    assert "..." not in cli(*names, "--help").out.partition("Commands:")[2]


@pytest.mark.parametrize("name", COMMANDS)
def test_the_table_and_the_command_itself_say_the_same(name: str) -> None:
    found = command.get_command(click.Context(command), name)
    assert found is not None and found.callback is not None
    assert COMMANDS[name][1].endswith(".")


def test_help_works_where_the_settings_are_broken(cli: Cli) -> None:
    assert cli("migrate", "up", "--help", LISTEN_ADDR="nonsense").code == 0
    assert cli("manage", "token", "list", "--help", LISTEN_ADDR="nonsense").code == 0


@pytest.mark.parametrize("arguments", [("--help",), ("--version",), ()], ids=" ".join)
def test_the_first_look_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    code = f"""
import sys
from llm_proxy.cli import command
command.main({arguments!r}, standalone_mode=False)
heavy = {{"uvloop", "aiohttp", "asyncio", "cryptography", "psycopg2", "yaml"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=arguments != (), env=environment(), capture_output=True)


def test_the_version_is_that_of_the_package(cli: Cli) -> None:
    assert cli("--version").out == f"llm-proxy, version {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        pytest.param(("nonsense",), "No such command 'nonsense'", id="unknown command"),
        pytest.param(("server", "--nonsense"), "No such option", id="unknown option"),
        pytest.param(("server", "--addr", "8080"), "Invalid value for '--addr'", id="wrong value"),
        pytest.param(("manage", "token", "get"), "Missing argument 'ID'", id="missing argument"),
    ],
)
def test_wrong_usage_exits_2_and_says_what_is_wrong(cli: Cli, arguments: tuple[str, ...], says: str) -> None:
    done = cli(*arguments)
    assert (done.code, done.out) == (2, "")
    assert says in done.err and "--help" in done.err


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (SettingsError("LISTEN_ADDR=x: not accepted."), 2),
        (StartError("The disk is full."), 1),
        (InvalidField("token", "mistyped."), 1),
        (DatabaseUnavailable(), 1),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_error_of_ours_is_one_line_with_its_exit_code(
    cli: Cli, monkeypatch: pytest.MonkeyPatch, error: Exception, code: int
) -> None:
    @click.command()
    def failing() -> None:
        raise error

    monkeypatch.setattr("llm_proxy.cli.config.command", failing)
    done = cli("config")
    assert (done.code, done.out, done.err) == (code, "", f"Error: {error}\n")


def test_a_secret_in_an_error_is_masked(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    secret = Secret("a password of the database")

    @click.command()
    def failing() -> None:
        raise StartError(f"cannot connect with {secret.reveal()}")

    monkeypatch.setattr("llm_proxy.cli.config.command", failing)
    assert cli("config").err == "Error: cannot connect with ****\n"


def test_a_mistake_of_the_program_is_not_taken_for_an_error_of_the_user(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    @click.command()
    def failing() -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("llm_proxy.cli.config.command", failing)
    with pytest.raises(ZeroDivisionError):
        cli("config")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_gets_its_completion(shell: str) -> None:
    script = subprocess.run(
        [sys.executable, "-m", "llm_proxy"],
        env=environment(_LLM_PROXY_COMPLETE=f"{shell}_source"),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "llm-proxy" in script.stdout
