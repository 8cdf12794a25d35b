"""What is remembered of heads, and for how long."""

from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict

from llm_proxy.errors import ApiError
from llm_proxy.heads import LONGEST_REMEMBERED, MOST_REMEMBERED, Head, Heads

POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n\r\n"


def head(length: str | None = "2", *, chunked: bool = False) -> Head:
    headers: Any = CIMultiDict({} if length is None else {"Content-Length": length})
    message: Any = SimpleNamespace(
        method="POST", path="/", version=(1, 1), headers=headers, raw_headers=(), should_close=False, upgrade=False
    )
    message.chunked = chunked
    return Head(message)


def numbered(number: int) -> bytes:
    return POST.replace(b"Host: h", b"Host: h%d" % number)


@pytest.mark.parametrize(
    ("data", "length"),
    [
        pytest.param(POST + b"{}", "2", id="a body"),
        pytest.param(b"GET / HTTP/1.1\r\n\r\n", None, id="none"),
        pytest.param(POST + b"\r\n", "2", id="a body of line ends"),
        pytest.param(POST + b"\r\n\r\n", "4", id="a body like the end of a head"),
    ],
)
def test_a_head_that_was_seen_is_known_with_its_body(data: bytes, length: str | None) -> None:
    heads, first = Heads(), head(length)
    assert heads.of(data) is None
    heads.learn(data, first)
    assert heads.of(data) == (first, data.partition(b"\r\n\r\n")[2])


@pytest.mark.parametrize("data", [b"", POST[:-1], POST, POST + b"{", POST + b"{}G", POST + b"{}" + POST + b"{}"], ids=ascii)
def test_what_is_not_one_whole_request_is_left_to_the_parser(data: bytes) -> None:
    heads = Heads()
    heads.learn(POST + b"{}", head())
    assert heads.of(data) is None


@pytest.mark.parametrize(
    ("data", "first"),
    [
        pytest.param(POST + b"{}", head(chunked=True), id="chunks"),
        pytest.param(POST + b"{}", head("²"), id="a length that is no number"),
        pytest.param(POST + b"{}" + POST, head(), id="more than one request"),
        pytest.param(b"\r\n\r\n{}", head(), id="empty lines"),
        pytest.param(b"{}", head("0"), id="no head at all"),
        pytest.param(b"POST /" + b"a" * LONGEST_REMEMBERED + POST[6:] + b"{}", head(), id="too long"),
    ],
)
def test_what_cannot_be_told_from_the_head_is_not_learnt(data: bytes, first: Head) -> None:
    heads = Heads()
    heads.learn(data, first)
    assert heads.of(data) is None


def test_only_so_many_are_remembered_those_in_use_among_them() -> None:
    heads = Heads()
    for number in range(5 * MOST_REMEMBERED):
        heads.learn(numbered(number) + b"{}", head())
        assert heads.of(numbered(0) + b"{}"), number
    remembered = sum(heads.of(numbered(number) + b"{}") is not None for number in range(5 * MOST_REMEMBERED))
    assert MOST_REMEMBERED <= remembered <= 2 * MOST_REMEMBERED


def test_what_is_made_of_a_head_is_made_once() -> None:
    seen, first = [], head()

    def make(one: Head) -> str:
        seen.append(one)
        return one.method

    assert [first.recall(make), first.recall(make)] == ["POST", "POST"] and seen == [first]


def test_what_a_head_is_refused_for_is_raised_each_time_anew() -> None:
    raised = []

    def refuse(one: Head) -> str:
        raised.append(ApiError("bad_request", "No."))
        raise raised[-1]

    first = head()
    for _ in range(2):
        with pytest.raises(ApiError):
            first.recall(refuse)
    assert len(raised) == 2
