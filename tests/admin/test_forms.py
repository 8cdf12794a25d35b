"""What forms say is read as acts take it, and put back as it was."""

import pytest

from llm_proxy.admin import forms


@pytest.mark.parametrize(
    ("reader", "given", "read"),
    [
        pytest.param(forms.text, "  a b ", "a b", id="text"),
        pytest.param(forms.number, "", None, id="no number"),
        pytest.param(forms.number, " 1 000 000 ", 1_000_000, id="thousands apart"),
        pytest.param(forms.number, "-5", -5, id="negative, for the act to refuse"),
        pytest.param(forms.number, "1.5", "1.5", id="no whole number, for the act to refuse"),
        pytest.param(forms.number, "9" * 5000, "9" * 5000, id="longer than Python converts"),
        pytest.param(forms.number, "٣", "٣", id="a digit of another alphabet"),
        pytest.param(forms.lines, "a\n\n b \n", ["a", "b"], id="lines"),
        pytest.param(forms.ticked, "on", True, id="ticked"),
        pytest.param(forms.ticked, "", False, id="not ticked"),
        pytest.param(forms.pairs, "", {}, id="no pairs"),
        pytest.param(forms.pairs, "gpt-4* = acme/*\nb=c=d", {"gpt-4*": "acme/*", "b": "c=d"}, id="pairs"),
        pytest.param(forms.pairs, ' {"a": 1}', {"a": 1}, id="an object"),
        pytest.param(forms.pairs, '{"a": 1', '{"a": 1', id="half an object, for the act to refuse"),
        pytest.param(forms.pairs, '{"a": 1, "a": 2}', '{"a": 1, "a": 2}', id="a key twice, for the act to refuse"),
        pytest.param(forms.pairs, "a", "a", id="no pair, for the act to refuse"),
    ],
)
def test_a_field_is_read(reader: forms.Reader, given: str, read: object) -> None:
    assert reader(given) == read


@pytest.mark.parametrize(
    "stored",
    [
        {},
        {"a": "b"},
        {"a": 1, "b": None},
        {"a": " b"},
        {"a=b": "c"},
        {"a": "b\nc"},
        {"{": "x"},
        {"a": {"model": "b"}},
        {"": "b"},
        {"a": ""},
    ],
    ids=repr,
)
def test_an_object_comes_back_as_it_was_shown(stored: dict[str, object]) -> None:
    assert forms.pairs(forms.as_pairs(stored)) == stored


def test_fields_that_may_be_left_out_say_nothing_when_they_are_empty() -> None:
    readers = {"name": forms.text, "limit": forms.number, "key": forms.text}
    assert forms.read_fields({"name": "", "key": " "}, readers, skip_empty=("key",)) == {"name": "", "limit": None}


def test_the_seal_tells_nothing_of_its_key_and_differs_between_sessions() -> None:
    assert forms.seal_of("one") != forms.seal_of("two")
    assert "one" not in forms.seal_of("one") and len(forms.seal_of("one")) == 64
