"""The grammar of requests: what each rule admits, what it refuses."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.errors import ApiError
from llm_proxy.grammar import MAX_HEAD_BYTES, MAX_TARGET_BYTES, Target, check_head, check_path, path_of, read_target

HTTP_11, HTTP_10 = (1, 1), (1, 0)


def code_of(call: object, *args: object) -> str:
    try:
        call(*args)  # type: ignore[operator]
    except ApiError as error:
        return error.code
    return "admitted"


@pytest.mark.parametrize(
    ("headers", "code"),
    [
        ([], "admitted"),
        ([(b"Host", b"a"), (b"Accept", b"*/*"), (b"accept", b"text/html")], "admitted"),
        ([(b"X-Empty", b"")], "admitted"),
        ([(b"X-Tab", b"a\tb")], "admitted"),
        ([(b"!#$%&'*+-.^`|~09az", b"v")], "admitted"),
        ([(b"", b"v")], "invalid_header"),
        ([(b"X_Api_Key", b"v")], "invalid_header"),
        ([(b"X Key", b"v")], "invalid_header"),
        ([(b"X-Key ", b"v")], "invalid_header"),
        ([(b"X-Key\n", b"v")], "invalid_header"),
        ([(b"X-\xe9", b"v")], "invalid_header"),
        ([(b"X", b"\xe9")], "invalid_header"),
        ([(b"X", b"\xed\xa0\x80")], "invalid_header"),
        ([(b"X", b"a\x00b")], "invalid_header"),
        ([(b"X", b"a\x07b")], "invalid_header"),
        ([(b"X", b"a\x7fb")], "invalid_header"),
        ([(b"X", b"a\r\nY: b")], "invalid_header"),
        ([(b"X", b"a\n")], "invalid_header"),
        ([(b"Content-Length", b"0")], "admitted"),
        ([(b"Content-Length", b"12345")], "admitted"),
        ([(b"Content-Length", b"005")], "bad_request"),
        ([(b"Content-Length", b"00")], "bad_request"),
        ([(b"Content-Length", b"")], "bad_request"),
        ([(b"Content-Length", b"+5")], "bad_request"),
        ([(b"Content-Length", b"-0")], "bad_request"),
        ([(b"Content-Length", b"1_0")], "bad_request"),
        ([(b"Content-Length", b"5, 5")], "bad_request"),
        ([(b"Content-Length", b"9" * 20)], "bad_request"),
        ([(b"Content-Length", b"5"), (b"content-length", b"5")], "bad_request"),
        ([(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")], "bad_request"),
        ([(b"Transfer-Encoding", b"chunked"), (b"Content-Length", b"5")], "bad_request"),
        ([(b"Transfer-Encoding", b"chunked")], "admitted"),
        ([(b"Transfer-Encoding", b"Chunked")], "admitted"),
        ([(b"Transfer-Encoding", b"")], "bad_request"),
        ([(b"Transfer-Encoding", b"identity")], "bad_request"),
        ([(b"Transfer-Encoding", b"gzip, chunked")], "bad_request"),
        ([(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")], "bad_request"),
        ([(b"Host", b"a"), (b"Host", b"a")], "bad_request"),
        ([(b"Content-Type", b"a/b"), (b"Content-Type", b"a/b")], "bad_request"),
        ([(b"Content-Encoding", b"gzip"), (b"Content-Encoding", b"gzip")], "bad_request"),
        ([(b"Expect", b"100-continue"), (b"Expect", b"100-continue")], "bad_request"),
        ([(b"Authorization", b"Bearer a"), (b"Authorization", b"Bearer a")], "conflicting_credentials"),
        ([(b"Host", b"example.com:8080")], "admitted"),
        ([(b"Host", b"[::1]:8080")], "admitted"),
        ([(b"Host", b"llm_proxy")], "admitted"),
        ([(b"Host", b"")], "admitted"),
        ([(b"Host", b"a, b")], "bad_request"),
        ([(b"Host", b"user@a")], "bad_request"),
        ([(b"Host", b"a/b")], "bad_request"),
        ([(b"Host", b"a:80:90")], "bad_request"),
        ([(b"Upgrade", b"websocket")], "websocket_not_supported"),
        ([(b"upgrade", b"h2c, WebSocket")], "websocket_not_supported"),
        ([(b"Upgrade", b"websocket/13")], "websocket_not_supported"),
        ([(b"Upgrade", b"h2c")], "admitted"),
        ([(b"Upgrade", b"not-websocket")], "admitted"),
        ([(b"X", b"v" * (MAX_HEAD_BYTES - 5))], "admitted"),
        ([(b"X", b"v" * (MAX_HEAD_BYTES - 4))], "headers_too_large"),
        ([(b"X-%d" % number, b"v" * 1000) for number in range(70)], "headers_too_large"),
    ],
    ids=lambda value: ascii(value)[:60],
)
def test_a_head_is_refused_where_readers_may_differ(headers: list[tuple[bytes, bytes]], code: str) -> None:
    assert code_of(check_head, "POST", HTTP_11, headers) == code


def test_chunks_are_not_of_http_1_0() -> None:
    assert code_of(check_head, "POST", HTTP_10, [(b"Transfer-Encoding", b"chunked")]) == "bad_request"


@pytest.mark.parametrize("version", [(0, 9), (1, 2), (2, 0)])
def test_other_versions_are_refused(version: tuple[int, int]) -> None:
    assert code_of(check_head, "GET", version, []) == "bad_request"


@pytest.mark.parametrize("method", ["TRACE", "TRACK", "CONNECT", "DEBUG"])
def test_methods_that_show_what_they_got_are_refused(method: str) -> None:
    assert code_of(check_head, method, HTTP_11, []) == "method_not_allowed"


@given(st.lists(st.tuples(st.binary(max_size=20), st.binary(max_size=40)), max_size=6))
def test_no_head_gets_through_with_a_byte_that_ends_a_line(headers: list[tuple[bytes, bytes]]) -> None:
    if code_of(check_head, "GET", HTTP_11, headers) == "admitted":
        text = b"".join(name + value for name, value in headers)
        assert not {0, 10, 13} & set(text) and text.isascii()


PATHS = [
    ("/", "admitted"),
    ("/v1/chat/completions", "admitted"),
    ("/v1/models/", "admitted"),
    ("/v1/models/ft:gpt-4o:x%20y", "admitted"),
    ("/v1/files/a.b..c", "admitted"),
    ("/v1/a;b=c/d", "admitted"),
    ("/v1/%C3%A9", "admitted"),
    ("/%252e%252e/x", "admitted"),
    ("/v1/...", "admitted"),
    ("", "invalid_path"),
    ("v1", "invalid_path"),
    ("*", "invalid_path"),
    ("//v1/x", "invalid_path"),
    ("/v1//x", "invalid_path"),
    ("///evil.example/", "invalid_path"),
    ("/v1/", "admitted"),
    ("/v1/.", "invalid_path"),
    ("/v1/./x", "invalid_path"),
    ("/v1/..", "invalid_path"),
    ("/v1/../admin", "invalid_path"),
    ("/v1/%2e%2e/admin", "invalid_path"),
    ("/v1/%2E./admin", "invalid_path"),
    ("/v1/.%2e/admin", "invalid_path"),
    ("/v1/..;/admin", "invalid_path"),
    ("/v1/%2e%2e;a=b/admin", "invalid_path"),
    ("/v1/%2e%2e%3b/admin", "invalid_path"),
    ("/v1/a%2fb", "invalid_path"),
    ("/v1/a%2Fb", "invalid_path"),
    ("/v1/a%5cb", "invalid_path"),
    ("/v1/a\\b", "invalid_path"),
    ("/v1/%00", "invalid_path"),
    ("/v1/%0d%0a", "invalid_path"),
    ("/v1/%7f", "invalid_path"),
    ("/v1/%zz", "invalid_path"),
    ("/v1/%", "invalid_path"),
    ("/v1/%2", "invalid_path"),
    ("/v1/%u0041", "invalid_path"),
    ("/v1/\xe9", "invalid_path"),
    ("/v1/\udcc0\udcaf", "invalid_path"),
    ("/v1/%c0%af", "invalid_path"),
    ("/v1/%ff", "invalid_path"),
    ("/v1/x#y", "invalid_path"),
    ("/v1/a b", "invalid_path"),
    ("/v1/a\tb", "invalid_path"),
]


@pytest.mark.parametrize(("path", "code"), PATHS, ids=lambda value: ascii(value))
def test_a_path_that_can_be_read_in_two_ways_is_refused(path: str, code: str) -> None:
    assert code_of(check_path, path) == code


@given(st.text(alphabet="/.%2eEfF5cC;a\\", max_size=12).map("/".__add__))
def test_an_admitted_path_means_the_same_however_often_it_is_normalised(path: str) -> None:
    import posixpath
    from urllib.parse import unquote

    if code_of(check_path, path) == "admitted":
        decoded = unquote(path)
        assert posixpath.normpath(decoded) == (decoded.rstrip("/") or "/")
        assert decoded.count("/") == path.count("/")


@pytest.mark.parametrize(
    ("query", "code"),
    [
        ("a=b&c=d", "admitted"),
        ("key=1&key=2", "admitted"),
        ("key=a;key=b", "admitted"),
        ("", "admitted"),
        ("a=%C3%A9&b=%00", "invalid_path"),
        ("a=/../?x", "admitted"),
        ("a=%2F%5C", "admitted"),
        ("a=%0d%0aX:y", "invalid_path"),
        ("a=%0AX: y", "invalid_path"),
        ("a=%", "invalid_path"),
        ("a=%u0041", "invalid_path"),
        ("a=\xe9", "invalid_path"),
        ("a=b#c", "invalid_path"),
        ("api_key=x", "token_in_query"),
        ("a=b&API-KEY=x", "token_in_query"),
        ("a=b;x-api-key=x", "token_in_query"),
        ("access_token=x", "token_in_query"),
        ("api%5fkey=x", "token_in_query"),
        ("anything=sk-lp-123", "token_in_query"),
        ("anything=sk%2Dlp-123", "token_in_query"),
        ("api_keys=x", "admitted"),
        ("api-version=2024-10-21", "admitted"),
    ],
    ids=ascii,
)
def test_a_query_is_refused_when_it_hides_a_line_end_or_a_token(query: str, code: str) -> None:
    assert code_of(read_target, "GET", f"/v1/models?{query}", "x", ()) == code


def test_a_token_in_the_query_is_not_repeated() -> None:
    with pytest.raises(ApiError) as caught:
        read_target("GET", "/v1/models?api_key=sk-lp-secret", "x", ())
    assert "secret" not in caught.value.message


@pytest.mark.parametrize(
    ("method", "target", "host", "found"),
    [
        ("GET", "/v1/models", "x", Target("/v1/models", None)),
        ("GET", "/v1/models?", "x", Target("/v1/models", "")),
        ("GET", "/v1/models?a=b?c", "x", Target("/v1/models", "a=b?c")),
        ("GET", "http://x/v1/models?a", "x", Target("/v1/models", "a")),
        ("GET", "HTTPS://X:8080/v1/models", "x:8080", Target("/v1/models", None)),
        ("GET", "http://x", "x", Target("/", None)),
        ("GET", "http://x?a=b", "x", Target("/", "a=b")),
        ("OPTIONS", "*", "x", Target("*", None)),
    ],
    ids=lambda value: ascii(value),
)
def test_a_target_is_split_as_it_was_sent(method: str, target: str, host: str, found: Target) -> None:
    assert read_target(method, target, host, ()) == found


@pytest.mark.parametrize(
    ("method", "target", "host", "code"),
    [
        ("GET", "*", "x", "invalid_path"),
        ("GET", "http://other/v1", "x", "bad_request"),
        ("GET", "http://x@other/v1", "x", "bad_request"),
        ("GET", "http://x/v1", "", "bad_request"),
        ("GET", "ftp://x/v1", "x", "invalid_path"),
        ("GET", "http:///v1", "x", "bad_request"),
        ("GET", "/" + "a" * MAX_TARGET_BYTES, "x", "target_too_long"),
        ("GET", "/" + "a" * (MAX_TARGET_BYTES - 1), "x", "admitted"),
    ],
    ids=lambda value: ascii(value)[:30],
)
def test_a_target_that_is_not_ours_is_refused(method: str, target: str, host: str, code: str) -> None:
    assert code_of(read_target, method, target, host, ()) == code


@pytest.mark.parametrize(
    ("host", "code"),
    [
        ("proxy.example", "admitted"),
        ("PROXY.example:8080", "admitted"),
        ("[::1]:8080", "admitted"),
        ("[::1]", "admitted"),
        ("evil.example", "unknown_host"),
        ("proxy.example.evil.example", "unknown_host"),
        ("", "unknown_host"),
        ("proxy.example:80:80", "unknown_host"),
    ],
)
def test_only_the_configured_hosts_are_answered(host: str, code: str) -> None:
    assert code_of(read_target, "GET", "/", host, ("Proxy.Example", "[::1]")) == code


@pytest.mark.parametrize(
    ("target", "path"),
    [
        ("/manage?x", "/manage"),
        ("http://x/manage?x", "/manage"),
        ("http://x", ""),
        ("*", "*"),
        ("//x/manage", "//x/manage"),
        ("/manage%2f..", "/manage%2f.."),
    ],
)
def test_the_path_of_an_unchecked_target(target: str, path: str) -> None:
    assert path_of(target) == path
