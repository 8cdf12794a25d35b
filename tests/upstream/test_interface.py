"""What is refused of a provider before it is called, and of its answer."""

import pytest

from llm_proxy.errors import InvalidField, UpstreamInvalid
from llm_proxy.upstream import check_answer, check_base_url, fields_of, is_private

Pairs = list[tuple[bytes, bytes]]


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        (200, []),
        (204, [(b"X", b"1")]),
        (599, [(b"Content-Length", b"0")]),
        (200, [(b"content-length", b" 12 ")]),
        (200, [(b"Transfer-Encoding", b"Chunked")]),
        (302, [(b"Location", b"https://elsewhere/")]),
        (200, [(b"X", b"v" * 65_000)]),
    ],
    ids=str,
)
def test_an_answer_passes(status: int, headers: Pairs) -> None:
    assert check_answer(status, headers) == fields_of(headers)


def test_of_a_header_that_comes_twice_the_first_counts_whatever_its_case() -> None:
    headers = [(b"X-A", b"1"), (b"B", b"2"), (b"x-a", b"3")]
    assert check_answer(200, headers) == fields_of(headers) == {b"x-a": b"1", b"b": b"2"}


@pytest.mark.parametrize(
    ("status", "headers"),
    [
        pytest.param(101, [], id="101"),
        pytest.param(99, [], id="99"),
        pytest.param(199, [], id="199"),
        pytest.param(600, [], id="600"),
        pytest.param(1000, [], id="1000"),
        pytest.param(200, [(b"Content-Length", b"5"), (b"Transfer-Encoding", b"chunked")], id="both-lengths"),
        pytest.param(200, [(b"Content-Length", b"5"), (b"content-length", b"6")], id="two-lengths"),
        pytest.param(200, [(b"Content-Length", b"5"), (b"Content-Length", b"5")], id="two-equal-lengths"),
        pytest.param(200, [(b"Content-Length", b"5, 5")], id="a-list-of-lengths"),
        pytest.param(200, [(b"Content-Length", b"+5")], id="signed"),
        pytest.param(200, [(b"Content-Length", b"")], id="empty"),
        pytest.param(200, [(b"Content-Length", b"0x5")], id="hexadecimal"),
        pytest.param(200, [(b"Content-Length", "５".encode())], id="full-width"),
        pytest.param(200, [(b"Transfer-Encoding", b"gzip, chunked")], id="gzip-and-chunked"),
        pytest.param(200, [(b"Transfer-Encoding", b"identity")], id="identity"),
        pytest.param(200, [(b"Transfer-Encoding", b"chunked"), (b"Transfer-Encoding", b"chunked")], id="chunked-twice"),
        pytest.param(200, [(b"X", b"v" * 70_000)], id="a-large-header"),
        pytest.param(200, [(b"X-%d" % n, b"v" * 100) for n in range(1000)], id="many-headers"),
    ],
)
def test_an_answer_that_could_be_read_in_two_ways_is_refused(status: int, headers: Pairs) -> None:
    with pytest.raises(UpstreamInvalid) as refusal:
        check_answer(status, headers)
    assert refusal.value.sent


@pytest.mark.parametrize(
    ("host", "private"),
    [
        ("8.8.8.8", False),
        ("2606:4700::1111", False),
        ("api.openai.com", False),
        ("localhost.example.com", False),
        ("notlocalhost", False),
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("10.0.0.1", True),
        ("172.16.0.1", True),
        ("192.168.1.1", True),
        ("169.254.169.254", True),
        ("100.64.0.1", True),
        ("0.0.0.0", True),
        ("224.0.0.1", True),
        ("255.255.255.255", True),
        ("::1", True),
        ("::", True),
        ("fe80::1", True),
        ("fe80::1%eth0", True),
        ("fd00::1", True),
        ("ff02::1", True),
        ("::ffff:127.0.0.1", True),
        ("::ffff:8.8.8.8", False),
        ("::ffff:169.254.169.254", True),
        ("2002:7f00:1::", True),
        ("64:ff9b::a9fe:a9fe", True),
        ("64:ff9b::808:808", False),
        ("::127.0.0.1", True),
        ("localhost", True),
        ("LocalHost.", True),
        ("x.localhost", True),
    ],
)
def test_private_addresses_are_known_in_every_writing(host: str, private: bool) -> None:
    assert is_private(host) is private


@pytest.mark.parametrize(
    ("url", "stored"),
    [
        ("https://api.example.com", "https://api.example.com"),
        ("https://api.example.com/", "https://api.example.com"),
        ("https://api.example.com:8443/openai/v1//", "https://api.example.com:8443/openai/v1"),
        ("https://8.8.8.8", "https://8.8.8.8"),
    ],
)
def test_a_base_url_is_stored_without_a_slash(url: str, stored: str) -> None:
    assert check_base_url("api_base", url, allow_private=False) == stored


@pytest.mark.parametrize(
    "url",
    [
        "http://api.example.com",
        "ftp://api.example.com",
        "api.example.com",
        "https://",
        "https://:443",
        "https://user@api.example.com",
        "https://user:password@api.example.com",
        "https://@api.example.com",
        "https://api.example.com?key=1",
        "https://api.example.com?",
        "https://api.example.com#f",
        "https://api.example.com:99999",
        "https://api.example.com:x",
        "https://[::1",
        "https://api.example.com/a b",
        "https://api.exämple.com",
        "https://127.0.0.1",
        "https://[::1]:8000",
        "https://169.254.169.254/latest",
        "https://localhost",
        "https://localhost.:8080",
    ],
)
def test_a_base_url_from_outside_is_refused(url: str) -> None:
    with pytest.raises(InvalidField) as refusal:
        check_base_url("api_base", url, allow_private=False)
    assert refusal.value.param == "api_base"
    assert "password" not in str(refusal.value)


@pytest.mark.parametrize("url", ["http://127.0.0.1:8000", "http://localhost/v1", "https://10.0.0.1", "http://vllm:8000"])
def test_private_addresses_are_taken_where_the_operator_allows_them(url: str) -> None:
    assert check_base_url("api_base", url, allow_private=True) == url
