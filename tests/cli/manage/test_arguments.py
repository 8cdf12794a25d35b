"""Arguments that the manage commands share."""

import io

import click
import pytest
from click.testing import CliRunner

from llm_proxy.cli.manage.arguments import asked, confirmed, given, secret_from


def test_only_what_was_given_is_sent() -> None:
    assert given(a=None, b=0, c="", d=False, e=[]) == {"b": 0, "c": "", "d": False, "e": []}


@pytest.mark.parametrize(
    ("id", "path"), [("01a1-b", "01a1-b"), ("a/b", "a%2Fb"), ("../x", "..%2Fx"), ("a?b#c", "a%3Fb%23c"), ("ü", "%C3%BC")]
)
def test_an_id_stays_one_segment_of_a_path(id: str, path: str) -> None:
    assert asked(id) == path


@pytest.mark.parametrize(("text", "secret"), [(None, None), ("sk-x", "sk-x"), ("-", "sk-from-stdin"), ("", "")])
def test_a_dash_reads_the_first_line_of_standard_input(
    monkeypatch: pytest.MonkeyPatch, text: str | None, secret: str | None
) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO("  sk-from-stdin \nsecond line\n"))
    assert secret_from(text) == secret


def test_on_a_terminal_a_secret_is_asked_for_without_showing_it(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    asked_for: dict[str, object] = {}

    def prompt(text: str, **options: object) -> str:
        asked_for.update(text=text, **options)
        return "sk-typed"

    monkeypatch.setattr("sys.stdin", Terminal())
    monkeypatch.setattr(click, "prompt", prompt)
    assert secret_from("-") == "sk-typed"
    assert asked_for == {"text": "API key", "hide_input": True}


@click.command()
@click.argument("id")
@confirmed("Sure?")
def remove(id: str) -> None:
    """Remove something."""
    click.echo(f"removed {id}")


@pytest.mark.parametrize(
    ("arguments", "answer", "code", "removed"),
    [
        pytest.param(("x",), "y\n", 0, True, id="yes"),
        pytest.param(("x",), "n\n", 1, False, id="no"),
        pytest.param(("x",), "", 1, False, id="nobody there"),
        pytest.param(("x", "--yes"), "", 0, True, id="by flag"),
    ],
)
def test_what_takes_something_away_asks_first(arguments: tuple[str, ...], answer: str, code: int, removed: bool) -> None:
    result = CliRunner().invoke(remove, arguments, input=answer)
    assert result.exit_code == code
    assert ("removed x" in result.output) is removed
    assert ("Sure?" in result.output) is ("--yes" not in arguments)
