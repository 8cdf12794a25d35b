"""Ids sort by the time they were made; a client's own must be harmless."""

import uuid

import pytest

from llm_proxy.clock import now_ms
from llm_proxy.ids import made_at_ms, new_id, new_uuid, valid_request_id


def test_ids_are_uuids_of_version_7_that_sort_by_age() -> None:
    ids = [new_id() for _ in range(1000)]
    assert ids == sorted(set(ids))
    assert {uuid.UUID(id).version for id in ids} == {7}


def test_id_tells_when_it_was_made() -> None:
    before = now_ms()
    id = new_uuid()
    assert before <= made_at_ms(id) <= now_ms()


@pytest.mark.parametrize("text", ["a", "01890a5d-ac96-774b-bcce-b302099a8057", "A.b_c-9", "x" * 128])
def test_plain_request_id_is_taken(text: str) -> None:
    assert valid_request_id(text) == text


@pytest.mark.parametrize("text", [None, "", "x" * 129, "a b", "a\n", "a\r\nX: y", "é", "a/b", '"', "a\0"])
def test_any_other_request_id_is_not(text: str | None) -> None:
    assert valid_request_id(text) is None
