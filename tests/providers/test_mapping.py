"""The mapping of models: which name a provider gets, which mappings make sense."""

from collections.abc import Mapping
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import InvalidField
from llm_proxy.providers.mapping import (
    LONGEST_NAME,
    MOST_ENTRIES,
    compile_mapping,
    model_mapping,
    without_suffix,
)

CHAT = {
    "gpt-4": "acme-4",
    "gpt-4*": "acme-4-*",
    "gpt-*": "acme-*-old",
    "*-mini": {"model": "small-*", "max_input_tokens": 8000},
    "claude": {"mapped_model": "claude-5"},
    "acme/*": "*",
}


@pytest.mark.parametrize(
    ("mapping", "model", "name"),
    [
        pytest.param({}, "anything", "anything", id="none-serves-all"),
        pytest.param(CHAT, "gpt-4", "acme-4", id="exact-before-glob"),
        pytest.param(CHAT, "gpt-4o", "acme-4-o", id="longest-glob"),
        pytest.param(CHAT, "gpt-4o-mini", "acme-4-o-mini", id="as-long-with-more-of-the-beginning"),
        pytest.param(CHAT, "gpt-3.5", "acme-3.5-old", id="shorter-glob"),
        pytest.param(CHAT, "o3-mini", "small-o3", id="glob-at-the-beginning"),
        pytest.param(CHAT, "claude", "claude-5", id="mapped_model"),
        pytest.param(CHAT, "claude-4", None, id="not-served"),
        pytest.param(CHAT, "GPT-4", None, id="names-have-a-case"),
        pytest.param(CHAT, "acme/o3", "o3", id="what-the-glob-matched-alone"),
        pytest.param(CHAT, "acme/", None, id="nothing-is-no-name"),
        pytest.param({"*": "one"}, "any", "one", id="all-to-one"),
        pytest.param({"*": "*"}, "any", "any", id="all-to-themselves"),
        pytest.param({"a*a": "<*>"}, "aa", "<>", id="the-glob-stands-for-nothing"),
        pytest.param({"a*a": "<*>"}, "a", None, id="no-part-is-used-twice"),
        pytest.param({"a*c": "1", "ab*": "2"}, "abc", "2", id="more-of-the-beginning"),
        pytest.param({"gpt-*": "*"}, "gpt-*", "*", id="a-star-in-a-name-is-a-letter"),
    ],
)
def test_a_model_gets_the_provider_s_name(mapping: dict[str, Any], model: str, name: str | None) -> None:
    assert compile_mapping(mapping).serves(model) == name


@pytest.mark.parametrize(
    ("mapping", "field"),
    [
        pytest.param([], "model_mapping", id="no-object"),
        pytest.param(None, "model_mapping", id="null"),
        pytest.param({str(number): "a" for number in range(MOST_ENTRIES + 1)}, "model_mapping", id="too-many"),
        pytest.param({f"{number:0150}": "a" for number in range(600)}, "model_mapping", id="too-large"),
        pytest.param({"": "a"}, "model_mapping", id="empty-key"),
        pytest.param({" a": "a"}, "model_mapping", id="spaces-around-a-key"),
        pytest.param({"a\n": "a"}, "model_mapping", id="control-character-in-a-key"),
        pytest.param({"a" * (LONGEST_NAME + 1): "a"}, "model_mapping", id="long-key"),
        pytest.param({"*a*": "a"}, "model_mapping", id="two-stars-in-a-key"),
        pytest.param({1: "a"}, "model_mapping", id="key-is-no-text"),
        pytest.param({"a": ""}, "model_mapping.a", id="empty-value"),
        pytest.param({"a": None}, "model_mapping.a", id="null-value"),
        pytest.param({"a": 1}, "model_mapping.a", id="number"),
        pytest.param({"a": ["b"]}, "model_mapping.a", id="list"),
        pytest.param({"a": "b\u202ec"}, "model_mapping.a", id="value-turns-the-direction"),
        pytest.param({"a": "\ud800"}, "model_mapping.a", id="half-a-pair"),
        pytest.param({"a": "*"}, "model_mapping.a", id="star-without-a-glob"),
        pytest.param({"a*": "*-*"}, "model_mapping.a*", id="two-stars-in-a-value"),
        pytest.param({"a": {}}, "model_mapping.a", id="entry-without-a-name"),
        pytest.param({"a": {"model": "b", "mapped_model": "b"}}, "model_mapping.a", id="entry-with-two-names"),
        pytest.param({"a": {"model": ""}}, "model_mapping.a.model", id="entry-with-an-empty-name"),
        pytest.param({"a": {"mapped_model": "*"}}, "model_mapping.a.mapped_model", id="entry-with-a-star-without-a-glob"),
        pytest.param({"a": {"model": "b", "note": "\x00"}}, "model_mapping.a", id="control-character-in-a-field"),
        pytest.param({"a": {"model": "b", "most": 2**53}}, "model_mapping.a", id="number-too-large-for-json"),
        pytest.param({"a": {"model": "b", "most": float("nan")}}, "model_mapping.a", id="not-a-number"),
        pytest.param({"a": {"model": "b", "x": [[[[[[1]]]]]]}}, "model_mapping.a", id="too-deep"),
    ],
)
def test_what_makes_no_sense_is_refused_by_the_name_of_its_field(mapping: object, field: str) -> None:
    with pytest.raises(InvalidField) as refused:
        model_mapping("model_mapping", mapping)
    assert refused.value.param == field


def test_a_mapping_is_stored_as_it_was_written() -> None:
    written = {**CHAT, "other": {"model": "b", "costs": {"in": 0.5, "out": [1, None, True]}}}
    assert model_mapping("model_mapping", written) is written


def test_the_exact_names_are_listed_in_their_order() -> None:
    mapping = compile_mapping(CHAT)
    assert (mapping.names, mapping.serves_all) == (("gpt-4", "claude"), False)
    nothing = compile_mapping({})
    assert (nothing.names, nothing.serves_all) == ((), True)


letters = st.text("ab", max_size=4)
globs = st.builds("{}*{}".format, letters, letters)


@given(
    st.dictionaries(st.text("ab", min_size=1, max_size=4), st.text("xy", min_size=1, max_size=2), max_size=4),
    st.dictionaries(globs, st.sampled_from(["x", "<*>", "y*"]), max_size=6),
    letters.filter(bool),
)
def test_an_exact_name_goes_first_then_the_longest_glob(
    exact: Mapping[str, str], patterns: Mapping[str, str], model: str
) -> None:
    name = compile_mapping({**exact, **patterns}).serves(model)
    fitting = {
        glob: target.replace("*", model[len(before) : len(model) - len(after)])
        for glob, target in patterns.items()
        for before, after in [glob.split("*")]
        if len(glob) - 1 <= len(model) and model.startswith(before) and model.endswith(after)
    }
    if not exact and not patterns:
        assert name == model
    elif model in exact:
        assert name == exact[model]
    elif not fitting:
        assert name is None
    else:
        assert name in {target for glob, target in fitting.items() if len(glob) == max(map(len, fitting))}


@pytest.mark.parametrize(
    ("model", "suffix", "means"),
    [
        ("acme/gpt-4", "acme", "gpt-4"),
        ("gpt-4", "acme", "gpt-4"),
        ("acme/acme/gpt-4", "acme", "acme/gpt-4"),
        ("acmegpt-4", "acme", "acmegpt-4"),
        ("other/gpt-4", "acme", "other/gpt-4"),
        ("acme/", "acme", "acme/"),
        ("/gpt-4", "", "/gpt-4"),
    ],
)
def test_the_suffix_of_the_provider_is_taken_off_once(model: str, suffix: str, means: str) -> None:
    assert without_suffix(model, suffix) == means
