"""What a field may hold."""

from typing import Any

import pytest

from llm_proxy.acts.fields import (
    LARGEST,
    Field,
    boolean,
    identifier,
    mapping,
    models,
    optional,
    read,
    read_changes,
    secret,
    text,
    whole,
)
from llm_proxy.errors import ApiError, InvalidField


@pytest.mark.parametrize(
    ("field", "given", "found"),
    [
        (text(5), " a b ", "a b"),
        (text(5), "äöüßé", "äöüßé"),
        (text(20), "山田　太郎", "山田　太郎"),
        (text(20), "نمی‌دانم", "نمی‌دانم"),
        (text(20), "👨‍👩‍👧", "👨‍👩‍👧"),
        (identifier, "a", "a"),
        (identifier, "A-1._~z", "A-1._~z"),
        (whole(1), 1, 1),
        (whole(0, 5), 5, 5),
        (whole(1), LARGEST, LARGEST),
        (boolean, False, False),
        (optional(whole(1)), None, None),
        (optional(whole(1)), 2, 2),
        (models, [], ()),
        (models, ["b", "a", "b"], ("b", "a")),
        (mapping, {}, {}),
        (mapping, {"a": 1, "b": 1.5, "c": None, "d": True, "e": "x"}, {"a": 1, "b": 1.5, "c": None, "d": True, "e": "x"}),
        (mapping, {"a": -LARGEST}, {"a": -LARGEST}),
    ],
)
def test_a_value_is_read(field: Field, given: object, found: Any) -> None:
    assert field("field", given) == found


@pytest.mark.parametrize(
    ("field", "given"),
    [
        *(
            (text(5), given)
            for given in ("", "   ", "abcdef", "a\x00", "a\x7f", "a\x85", "a\u2028", "a\u202e", "\ud800", 5, None, ["a"])
        ),
        *((identifier, given) for given in ("", ".", "..", "-a", "a b", "a/b", "a%2f", "ä", "a\n", "x" * 101, 5, None)),
        *((whole(1, 5), given) for given in (0, 6, -1, 1.0, "1", True, None, 10**400, float("inf"), float("nan"))),
        *((boolean, given) for given in (0, 1, "true", None, [])),
        *((secret, given) for given in ("", " ", None, 5, "a b", "ä", "a\x00b", "a\nb", "x" * 4097)),
        *((models, given) for given in ("a", None, {}, [""], [5], [None], ["a\x00"], ["x" * 201], ["m"] * 201)),
        *((mapping, given) for given in ([], None, "a", {"a": {}}, {"a": []}, {"a\x00": 1}, {"a": "\n"}, {"a": 2**53})),
        *(
            (mapping, given)
            for given in ({"a": float("inf")}, {"a": float("nan")}, {"a": "x" * 8192}, dict.fromkeys(map(str, range(51))))
        ),
    ],
    ids=lambda value: repr(value)[:30] if not callable(value) else getattr(value, "__qualname__", ""),
)
def test_a_value_is_refused_naming_the_field(field: Field, given: object) -> None:
    with pytest.raises(InvalidField) as caught:
        field("field", given)
    assert caught.value.param is not None
    assert caught.value.param.startswith("field")


@pytest.mark.parametrize("given", ["****", "sk-…cdef", "sk-...cdef", "sk-proj-0123456789…"])
def test_the_mask_of_a_key_is_no_key(given: str) -> None:
    with pytest.raises(ApiError) as caught:
        secret("api_key", given)
    assert (caught.value.code, caught.value.param) == ("masked_secret", "api_key")


def test_a_key_is_read_without_the_spaces_around_it_and_does_not_show_itself() -> None:
    found = secret("api_key", " sk-0123456789abcdef\n")
    assert found.reveal() == "sk-0123456789abcdef"
    assert "0123" not in repr(found)


def test_the_place_of_a_wrong_entry_of_a_list_is_named() -> None:
    with pytest.raises(InvalidField) as caught:
        models("allowed_models", ["fine", "also fine", 7])
    assert caught.value.param == "allowed_models[2]"


FIELDS: dict[str, Field] = {"name": text(10), "size": optional(whole(1)), "on": boolean}


def test_a_new_resource_has_the_fields_that_were_given_and_no_others() -> None:
    assert read(FIELDS, {"size": None, "name": "a"}, required=("name",)) == {"size": None, "name": "a"}
    assert read(FIELDS, {}) == {}


@pytest.mark.parametrize(
    ("given", "param"),
    [
        ({"name": "a", "colour": 1}, "colour"),
        ({"size": 1}, "name"),
        ({"name": "a", "size": 0}, "size"),
        ({"x" * 500: 1}, "x" * 100),
    ],
)
def test_a_new_resource_is_refused_for_the_first_wrong_field(given: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read(FIELDS, given, required=("name",))
    assert caught.value.param == param


STORED: dict[str, object] = {"id": "1", "name": "a", "size": 1, "on": True, "count": 5}


@pytest.mark.parametrize(
    ("given", "changed"),
    [
        ({}, {}),
        (STORED, {}),
        ({"name": "b"}, {"name": "b"}),
        ({**STORED, "size": None}, {"size": None}),
        ({"on": False, "count": 5}, {"on": False}),
    ],
    ids=["nothing", "all as it was", "one", "null is not omission", "read-only sent along"],
)
def test_an_update_is_what_differs_from_what_is_stored(given: dict[str, object], changed: dict[str, object]) -> None:
    assert read_changes(FIELDS, given, STORED) == changed


@pytest.mark.parametrize(
    ("given", "param"),
    [({"id": "2"}, "id"), ({"count": 5.0}, "count"), ({"on": 1}, "on"), ({"colour": 1}, "colour"), ({"size": 1.0}, "size")],
)
def test_an_update_of_the_wrong_kind_is_refused(given: dict[str, object], param: str) -> None:
    with pytest.raises(InvalidField) as caught:
        read_changes(FIELDS, given, STORED)
    assert caught.value.param == param
