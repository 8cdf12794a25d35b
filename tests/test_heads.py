"""What is remembered of heads, and for how long."""

from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict

from llm_proxy.errors import ApiError
from llm_proxy.heads import LONGEST_REMEMBERED, MOST_REMEMBERED, Head, Heads, Start, length_of, start_of

GET = b"GET / HTTP/1.1\r\nHost: h\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nX-One: 1\r\n\r\n"


def message(length: str | None = None, *, chunked: bool = False) -> Any:
    headers = CIMultiDict({} if length is None else {"Content-Length": length})
    facts = {"method": "POST", "path": "/", "version": (1, 1), "headers": headers, "raw_headers": ()}
    return SimpleNamespace(**facts, should_close=False, upgrade=False, chunked=chunked)


def start(data: bytes) -> Start:
    found = start_of(data)
    assert found
    return found


def numbered(number: int) -> Start:
    return start(POST.replace(b"Host: h", b"Host: h%d" % number))


@pytest.mark.parametrize("data", [b"", b"G", GET[:-1], b"\r\n" + GET, b"\r\n\r\n" + GET, b"\r\n\r\n", b"\n" + GET], ids=ascii)
def test_what_is_no_whole_head_or_begins_with_an_empty_line_has_no_start(data: bytes) -> None:
    assert start_of(data) is None


@pytest.mark.parametrize(
    ("data", "length", "missing"),
    [
        (GET, None, 0),
        (GET + b"G", None, -1),
        (POST + b"{}", 2, 0),
        (POST + b"\r\n", 2, 0),
        (POST + b"{", 2, 1),
        (POST, 2, 2),
        (POST + b"{}" + GET, 2, -len(GET)),
        (POST.replace(b": 2", b": 0"), 0, 0),
        (POST.replace(b"Content-Length", b"content-length") + b"{}", 2, 0),
    ],
    ids=ascii,
)
def test_a_start_tells_what_is_missing_of_its_request(data: bytes, length: int | None, missing: int) -> None:
    found = start(data)
    assert (found.length, found.missing(data)) == (length, missing)


def test_starts_that_differ_in_the_length_alone_are_of_one_head() -> None:
    assert start(POST).key == start(POST.replace(b": 2", b": 12345")).key


@pytest.mark.parametrize(
    "other",
    [
        POST.replace(b": 2", b": "),
        POST.replace(b": 2", b": \0"),
        POST.replace(b": 2", b": 02"),
        POST.replace(b": 2", b": +2"),
        POST.replace(b": 2", b":2"),
        POST.replace(b": 2", b":  2"),
        POST.replace(b": 2\r\n", b": 2\r\nContent-Length: 2\r\n"),
        POST.replace(b"Content-Length: 2\r\n", b""),
        POST.replace(b"X-One: 1", b"X-One: 2"),
        POST.replace(b"X-One", b"X-one"),
        POST.replace(b"\r\nX-One", b"\r\n X-One"),
        POST.replace(b"POST /", b"POST /\r\nContent-Length: 2\r\n"),
    ],
    ids=ascii,
)
def test_starts_that_differ_in_anything_else_are_not(other: bytes) -> None:
    assert start(POST).key != start(other).key


@pytest.mark.parametrize(
    ("data", "said", "agrees"),
    [
        (GET, message(), True),
        (GET, message("0"), False),
        (GET, message(chunked=True), False),
        (POST, message("2"), True),
        (POST, message("02"), False),
        (POST, message("3"), False),
        (POST, message(), False),
        (POST, message("2", chunked=True), False),
    ],
)
def test_what_the_parser_sees_otherwise_is_left_to_it(data: bytes, said: Any, agrees: bool) -> None:
    assert start(data).agrees(said) is agrees


@pytest.mark.parametrize(
    ("said", "length"), [(None, None), ("0", 0), ("17", 17), ("", None), ("²", None), ("-1", None), ("x", None)]
)
def test_a_length_that_is_no_number_is_none(said: str | None, length: int | None) -> None:
    assert length_of(message(said)) == length


def test_a_head_that_came_before_is_the_same() -> None:
    heads, first = Heads(), Head(message("2"))
    assert heads.get(start(POST)) is None
    assert heads.same(start(POST), first) is first
    assert heads.same(start(POST), Head(message("2"))) is heads.get(start(POST)) is first


def test_a_head_that_is_too_long_is_not_kept() -> None:
    heads, long = Heads(), start(b"POST /" + b"a" * LONGEST_REMEMBERED + POST[6:])
    first = Head(message("2"))
    assert heads.same(long, first) is first
    assert heads.get(long) is None


def test_only_so_many_are_remembered_those_in_use_among_them() -> None:
    heads = Heads()
    for number in range(5 * MOST_REMEMBERED):
        heads.same(numbered(number), Head(message("2")))
        assert heads.get(numbered(0)), number
    remembered = sum(heads.get(numbered(number)) is not None for number in range(5 * MOST_REMEMBERED))
    assert MOST_REMEMBERED <= remembered <= 2 * MOST_REMEMBERED


def test_what_is_made_of_a_head_is_made_once() -> None:
    seen, first = [], Head(message())

    def make(one: Head) -> str:
        seen.append(one)
        return one.method

    assert [first.recall(make), first.recall(make)] == ["POST", "POST"] and seen == [first]


def test_what_a_head_is_refused_for_is_raised_each_time_anew() -> None:
    raised, first = [], Head(message())

    def refuse(one: Head) -> str:
        raised.append(ApiError("bad_request", "No."))
        raise raised[-1]

    for _ in range(2):
        with pytest.raises(ApiError):
            first.recall(refuse)
    assert len(raised) == 2
