"""The choice among providers: shares, order, and calls that only one can serve."""

import collections
import random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.providers.mapping import ModelMapping, compile_mapping
from llm_proxy.providers.routing import choose, fixed, is_sticky, serving


class Place(NamedTuple):
    """A provider, as far as the choice knows it."""

    id: str
    weight: int = 1
    mapping: ModelMapping = ModelMapping({}, {})


def all_of(_: Place) -> bool:
    return True


def places(*weights: int) -> list[Place]:
    return [Place(f"p{number}", weight) for number, weight in enumerate(weights)]


def test_shares_follow_the_weights() -> None:
    candidates, number = places(5, 3, 1, 0), 100_000
    rolled = random.Random(4).random
    chosen = collections.Counter(choose(candidates, all_of, (), rolled) for _ in range(number))
    for candidate in candidates:
        assert abs(chosen[candidate] / number - candidate.weight / 9) < 0.01
    assert chosen[candidates[3]] == 0


def test_the_next_one_after_a_failure_is_chosen_by_the_weights_of_those_left() -> None:
    candidates, number = places(5, 3, 1, 0), 30_000
    rolled = random.Random(5).random
    chosen = collections.Counter(choose(candidates, all_of, {"p0"}, rolled) for _ in range(number))
    assert chosen[candidates[0]] == chosen[candidates[3]] == 0
    assert abs(chosen[candidates[1]] / number - 3 / 4) < 0.02


@given(st.lists(st.integers(0, 4), max_size=6), st.sets(st.integers(0, 5)), st.randoms(use_true_random=False))
def test_candidates_are_gone_through_once_each_those_of_weight_0_last(
    weights: list[int], refused: set[int], rolls: random.Random
) -> None:
    candidates = places(*weights)
    shut = {f"p{number}" for number in refused}
    order: list[Place] = []
    while found := choose(candidates, lambda each: each.id not in shut, {each.id for each in order}, rolls.random):
        order.append(found)
    assert sorted(order) == [each for each in candidates if each.id not in shut]
    weighted = [bool(each.weight) for each in order]
    assert weighted == sorted(weighted, reverse=True)


def test_the_largest_roll_finds_a_candidate() -> None:
    candidates = places(1, 1_000_000, 0)
    assert choose(candidates, all_of, (), lambda: 1.0) == candidates[1], "a float may be rounded up"


@given(st.permutations(places(0, 2, 5, 5, 1)))
def test_objects_are_always_with_the_same_candidate(candidates: list[Place]) -> None:
    found = fixed(candidates)
    assert found and found.id == "p2"
    assert fixed([]) is None


def test_a_candidate_serves_a_model_under_its_own_name() -> None:
    any_model, one, none = (
        Place("any"),
        Place("one", 1, compile_mapping({"gpt-*": "x-*"})),
        Place("none", 1, compile_mapping({"o3": "o3"})),
    )
    assert serving([any_model, one, none], "gpt-4") == [(any_model, "gpt-4"), (one, "x-4")]
    assert serving([any_model, one, none], None) == [(any_model, None), (one, None), (none, None)]


@pytest.mark.parametrize(
    ("method", "path", "body", "sticky"),
    [
        ("POST", "/v1/chat/completions", b"", False),
        ("POST", "/v1/chat/completions", b'{"store": true}', True),
        ("POST", "/v1/chat/completions", b'{"store": false}', False),
        ("POST", "/v1/chat/completions", b'{"messages": [{"content": "\\"file_id\\": \\"f\\""}]}', False),
        ("POST", "/v1/chat/completions", b'{"messages": [{"content": [{"file": {"file_id": "f"}}]}]}', True),
        ("GET", "/v1/chat/completions", b"", True),
        ("GET", "/v1/chat/completions/c1/messages", b"", True),
        ("POST", "/openai/deployments/gpt-4/chat/completions", b"", False),
        ("POST", "/openai/deployments/gpt-4/chat/completions", b'{"store":true}', True),
        ("POST", "/openai/deployments/gpt-4/chat/completions", b'{"messages": [{"file_id" : "f"}]}', True),
        ("POST", "/v1/messages", b"{}", False),
        ("POST", "/v1/messages", b'{"container": "c1"}', True),
        ("POST", "/v1/messages", b'{"source": {"type": "file", "file_id": "f1"}}', True),
        ("POST", "/v1/messages/count_tokens", b"{}", False),
        ("POST", "/v1/messages/batches", b"{}", True),
        ("GET", "/v1/messages/batches/b1/results", b"", True),
        ("POST", "/v1/responses", b"{}", True),
        ("POST", "/v1/responses", b'{"store": null}', True),
        ("POST", "/v1/responses", b'{"store":false}', False),
        ("POST", "/v1/responses", b'{"store":false,"tools":[{"store":true}]}', True),
        ("POST", "/v1/responses", b'{"store":false,"previous_response_id":null}', False),
        ("POST", "/v1/responses", b'{"store":false,"previous_response_id":"r1"}', True),
        ("POST", "/v1/responses", b'{"store":false,"conversation":{"id":"c"}}', True),
        ("POST", "/v1/responses", b'{"store":false,"tools":[{"vector_store_ids":[ "v"]}]}', True),
        ("POST", "/v1/responses", b'{"store":false,"tools":[{"vector_store_ids":[],"container":{"type":"auto"}}]}', False),
        ("POST", "/openai/responses", b'{"store":false}', False),
        ("POST", "/openai/v1/responses", b"", True),
        ("GET", "/v1/responses/r1", b"", True),
        ("GET", "/v1/files", b"", True),
        ("POST", "/openai/files", b"", True),
        ("GET", "/v1/filesystem", b"", False),
        ("POST", "/v1/uploads/u1/parts", b"", True),
        ("POST", "/v1/batches", b"", True),
        ("POST", "/v1/batch/jobs", b"", True),
        ("POST", "/v1/fine_tuning/jobs", b"", True),
        ("POST", "/v1/threads/t1/runs", b"", True),
        ("POST", "/v1/assistants", b"", True),
        ("GET", "/v1/vector_stores/v1", b"", True),
        ("POST", "/v1/embeddings", b"", False),
        ("GET", "/v1/models", b"", False),
        ("GET", "/v1/models/gpt-4", b"", False),
        ("DELETE", "/v1/models/ft:gpt-4:acme", b"", True),
        ("GET", "/v1/generation", b"", True),
    ],
)
def test_calls_about_objects_go_to_one_provider(method: str, path: str, body: bytes, sticky: bool) -> None:
    assert is_sticky(method, path, body) is sticky
