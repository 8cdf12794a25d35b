"""What is remembered of heads, and for how long."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiohttp.base_protocol import BaseProtocol
from aiohttp.http import HttpProcessingError, HttpRequestParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
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


def parsed(data: bytes) -> list[tuple[Any, Any]]:
    """What a parser that has seen nothing yet makes of these bytes; nothing where it refuses them."""
    loop = asyncio.get_running_loop()
    parser = HttpRequestParser(BaseProtocol(loop), loop, 65536, auto_decompress=False, max_msg_queue_size=8)
    try:
        return list(parser.feed_data(data)[0])
    except HttpProcessingError:
        return []


def without_length(said: Any) -> list[object]:
    headers = [pair for pair in said.raw_headers if pair[0].lower() != b"content-length"]
    return [said.method, said.path, said.version, headers, said.should_close, said.upgrade, said.chunked]


FIRST = b"POST / HTTP/1.1\r\nHost: h\r\n"
LENGTHS = "Content-Length: 5\r\n|content-length: 5\r\n|Content-Length:5\r\n|Content-Length: |5|0"
OTHERS = "Transfer-Encoding: chunked\r\n|Connection: upgrade\r\nUpgrade: h2c\r\n|Connection: close\r\n|X: y\r\n|X:\r\n|X: y"
ODD = "\r|\n|\r\n|\r\n |\r\n\r\n|\t| |\0|abcde"
PARTS = [part.encode() for part in f"{LENGTHS}|{OTHERS}|{ODD}".split("|")]


@settings(max_examples=200)
@given(parts=st.lists(st.sampled_from(PARTS), max_size=5), body=st.sampled_from([b"", b"abcde", b"\r\n\r\n"]))
@example(parts=[b"Content-Length:5\r\n"], body=b"")
@example(parts=[b"Transfer-Encoding: chunked\r\n"], body=b"")
@example(parts=[b"Content-Length:3\r\nX: y\r\n\r\n\r\nContent-Length: 5"], body=b"")
async def test_a_head_that_is_learnt_is_read_alike_with_any_length(parts: list[bytes], body: bytes) -> None:
    data = FIRST + b"".join(parts) + b"\r\n" + body
    found, messages = start_of(data), parsed(data)
    if not found or len(messages) != 1 or not found.agrees(messages[0][0]) or found.missing(data) < 0:
        return
    before, behind = found.key
    for length in (0, 1, 12) if behind else (None,):
        again = before + (b"%d" % length if length is not None else b"") + behind + b"\n" * (length or 0)
        assert start(again).key == found.key and start(again).missing(again) == 0
        [(said, content)] = parsed(again)
        assert without_length(said) == without_length(messages[0][0]) and length_of(said) == length
        assert content.is_eof() and content.total_bytes == (length or 0)


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
