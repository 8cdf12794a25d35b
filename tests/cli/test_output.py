"""Tables for people, JSON for scripts."""

from typing import Any

import orjson
import pytest

from llm_proxy.cli import output


@pytest.mark.parametrize(
    ("value", "printed"),
    [
        (None, "-"),
        ("", "-"),
        ([], "-"),
        ({}, "-"),
        (True, "yes"),
        (False, "no"),
        (0, "0"),
        (["a", "b"], "a, b"),
        ({"a": 1}, '{"a":1}'),
        ("über", "über"),
        ("\x1b[31mred\r\n", "�[31mred��"),
        (["\x1b]0;x\x07"], "�]0;x�"),
        ({"a": "\x1b"}, '{"a":"\\u001b"}'),
    ],
    ids=repr,
)
def test_a_cell_is_short_and_harmless_to_a_terminal(value: object, printed: str, capsys: pytest.CaptureFixture[str]) -> None:
    output.echo_one({"name": value})
    assert capsys.readouterr().out == f"name  {printed}\n"


def test_a_table_has_columns_as_wide_as_they_need(capsys: pytest.CaptureFixture[str]) -> None:
    output.echo_table(("id", "name"), [("1", "long name"), ("22", None)])
    assert capsys.readouterr().out == "ID  NAME\n1   long name\n22  -\n"


def test_a_long_cell_is_whole_and_does_not_widen_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    output.echo_table(("a", "b"), [("x" * 80, "1"), ("y", "2")])
    _, first, second = capsys.readouterr().out.splitlines()
    assert first == "x" * 80 + "  1"
    assert second == "y" + " " * 59 + "  2"


def test_one_resource_has_a_line_for_each_field_but_its_kind(capsys: pytest.CaptureFixture[str]) -> None:
    output.show({"object": "project", "id": "1", "is_active": True}, json=False)
    assert capsys.readouterr().out == "id         1\nis_active  yes\n"


def test_json_is_the_resource_as_it_is(capsys: pytest.CaptureFixture[str]) -> None:
    output.show({"object": "project", "name": "\x1b"}, json=True)
    assert orjson.loads(capsys.readouterr().out) == {"object": "project", "name": "\x1b"}


@pytest.mark.parametrize(
    ("found", "json", "printed"),
    [
        ([{"id": 1, "more": 2}], False, "ID\n1\n"),
        ([], False, "Nothing found.\n"),
        ([], True, "[]\n"),
        ([{"id": 1, "more": 2}], True, '[\n  {\n    "id": 1,\n    "more": 2\n  }\n]\n'),
    ],
)
def test_a_list_is_a_table_or_json(
    found: list[dict[str, Any]], json: bool, printed: str, capsys: pytest.CaptureFixture[str]
) -> None:
    output.show_list(found, lambda one: {"id": one["id"]}, json)
    assert capsys.readouterr().out == printed
