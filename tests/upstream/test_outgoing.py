"""The bytes that providers get."""

import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest
from stage.profiles import shipped

from llm_proxy.upstream import Request
from llm_proxy.upstream.outgoing import PIECE, head_of, is_in_one_piece, is_repeatable, pieces_of, target_of

PROFILE = shipped().apis["openai"]
HEADERS = [(b"b", b"2"), (b"A", b"1"), (b"B", "é".encode())]
GET = Request("GET", "http://a/", [], None, None, PROFILE, PROFILE.timeouts, trusted=True, on_sent=lambda: None)


async def pieces(*given: bytes) -> AsyncIterator[bytes]:
    for piece in given:
        yield piece


@pytest.mark.parametrize(
    ("url", "origin", "authority", "path"),
    [
        ("https://api.example.com", (True, "api.example.com", 443), "api.example.com", "/"),
        ("http://API.Example.com:80/v1", (False, "api.example.com", 80), "api.example.com", "/v1"),
        ("https://a:8443/v1/x?b=%2F&c=a/b?d", (True, "a", 8443), "a:8443", "/v1/x?b=%2F&c=a/b?d"),
        ("http://a/%7Ex;y=1/?", (False, "a", 80), "a", "/%7Ex;y=1/?"),
        ("http://a?b", (False, "a", 80), "a", "/?b"),
        ("http://[2001:db8::1]:8000/v1", (False, "2001:db8::1", 8000), "[2001:db8::1]:8000", "/v1"),
        ("https://api.exämple.com/v1", (True, "api.xn--exmple-cua.com", 443), "api.xn--exmple-cua.com", "/v1"),
    ],
)
def test_a_url_is_asked_for_as_it_is_written(url: str, origin: tuple[bool, str, int], authority: str, path: str) -> None:
    target = target_of(url)
    assert (target.origin, target.head, target.path) == (origin, f" {path} HTTP/1.1\r\nHost: {authority}".encode(), path)


@pytest.mark.parametrize(
    "url",
    [
        "",
        "/v1",
        "ftp://a/",
        "http://",
        "http://.",
        "http://a:x/",
        "http://a:99999/",
        "http://[::1/",
        "http://a/ b",
        "http://a/\r\nX: y",
        "http://a/é",
        "http://a\r\nX: y/",
        "http://a b/",
        "http://a/\0",
    ],
)
def test_a_url_that_nobody_can_be_asked_for_is_refused(url: str) -> None:
    with pytest.raises(ValueError):
        target_of(url)


@pytest.mark.parametrize(
    ("method", "body", "length", "framing"),
    [
        pytest.param("GET", None, None, "", id="get"),
        pytest.param("HEAD", None, None, "", id="head"),
        pytest.param("POST", None, None, "Content-Length: 0\r\n", id="post-without-body"),
        pytest.param("DELETE", None, None, "Content-Length: 0\r\n", id="delete"),
        pytest.param("GET", b"", 0, "Content-Length: 0\r\n", id="an-empty-body"),
        pytest.param("POST", b"hello", 5, "Content-Length: 5\r\n", id="bytes"),
        pytest.param("POST", pieces(), 7, "Content-Length: 7\r\n", id="pieces-of-a-length"),
        pytest.param("POST", pieces(), None, "Transfer-Encoding: chunked\r\n", id="pieces"),
    ],
)
def test_a_head_has_its_framing_then_the_headers_as_given(method: str, body: Any, length: int | None, framing: str) -> None:
    request = dataclasses.replace(GET, method=method, body=body, length=length, headers=HEADERS)
    wanted = f"{method} /v1 HTTP/1.1\r\nHost: a:81\r\n{framing}b: 2\r\nA: 1\r\nB: é\r\n\r\n"
    assert head_of(request, target_of("http://a:81/v1")) == wanted.encode()


def test_an_origin_can_be_asked_by_another_name() -> None:
    request = dataclasses.replace(GET, host="proxy.example:81")
    assert head_of(request, target_of("http://127.0.0.1:81/v1")) == b"GET /v1 HTTP/1.1\r\nHost: proxy.example:81\r\n\r\n"


@pytest.mark.parametrize(
    "wrong",
    [{"headers": [(b"a", b"b%bc" % end)]} for end in (b"\r\n", b"\n", b"\r", b"\0")]
    + [{"headers": [(b"a\r\nb", b"c")]}, {"method": "GET / HTTP/1.1\r\nX:"}, {"method": "G T"}, {"method": ""}],
    ids=repr,
)
def test_nothing_ends_a_line_but_we(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError):
        head_of(dataclasses.replace(GET, **wrong), target_of("http://a/"))


@pytest.mark.parametrize(
    ("given", "length", "sent"),
    [
        ([b"ab", b"", b"c"], None, [b"2\r\nab\r\n", b"1\r\nc\r\n", b"0\r\n\r\n"]),
        ([], None, [b"0\r\n\r\n"]),
        ([b"ab", b"c"], 3, [b"ab", b"c"]),
        ([], 0, []),
    ],
    ids=["chunked", "nothing-chunked", "length", "nothing"],
)
async def test_a_body_is_framed_as_announced(given: list[bytes], length: int | None, sent: list[bytes]) -> None:
    request = dataclasses.replace(GET, body=pieces(*given), length=length)
    assert [piece async for piece in pieces_of(request)] == sent


@pytest.mark.parametrize(("length", "sent"), [(2, [b"ab"]), (4, [b"ab", b"c"])], ids=["more", "less"])
async def test_a_body_of_another_length_than_announced_is_an_error(length: int, sent: list[bytes]) -> None:
    seen = []
    with pytest.raises(ValueError, match="differs"):
        async for piece in pieces_of(dataclasses.replace(GET, body=pieces(b"ab", b"c"), length=length)):
            seen.append(piece)  # noqa: PERF401 - what came before the error counts
    assert seen == sent


async def test_a_large_body_goes_in_pieces() -> None:
    body = bytes(2 * PIECE + 1)
    request = dataclasses.replace(GET, body=body, length=len(body))
    assert [len(piece) async for piece in pieces_of(request)] == [PIECE, PIECE, 1]
    assert not is_in_one_piece(request)
    assert is_in_one_piece(dataclasses.replace(request, body=body[:PIECE]))


@pytest.mark.parametrize(
    ("method", "body", "repeatable"),
    [
        ("GET", None, True),
        ("PUT", b"x", True),
        ("DELETE", None, True),
        ("PUT", pieces(), False),
        ("POST", b"x", False),
        ("PATCH", b"x", False),
    ],
)
def test_what_may_be_sent_twice(method: str, body: Any, repeatable: bool) -> None:
    assert is_repeatable(dataclasses.replace(GET, method=method, body=body)) is repeatable
