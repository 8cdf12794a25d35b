"""Which headers go to the provider, which come back, one row per rule."""

from collections.abc import Callable

import pytest

from llm_proxy.providers.profiles import Auth
from llm_proxy.proxy.headers import first, kept_for_provider, readable_codings, replaced, to_client, to_provider

BEARER = Auth("Authorization", "Bearer")
Pairs = list[tuple[bytes, bytes]]


def sent(headers: Pairs, *, auth: Auth = BEARER, correlation_id: str | None = None, **defaults: str) -> list[tuple[str, str]]:
    given = {name.replace("_", "-"): value for name, value in defaults.items()}
    got = to_provider(
        kept_for_provider(headers), auth=auth, key="sk-key", defaults=given, request_id="r1", correlation_id=correlation_id
    )
    return [(name.decode(), value.decode()) for name, value in got]


def returned(headers: Pairs, *added: tuple[bytes, bytes]) -> Pairs:
    return to_client(headers, added, lambda url: f"rewritten:{url}")


OURS = [("X-Request-ID", "r1"), ("Authorization", "Bearer sk-key")]


@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "Proxy-Authorization", "TE", "Trailer"),
        *("Transfer-Encoding", "Upgrade", "HTTP2-Settings", "Host", "Content-Length", "Expect"),
        *("Authorization", "x-api-key", "api-key", "Cookie"),
        *("X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-Prefix", "X-Forwarded-Anything"),
        *("Forwarded", "X-Real-IP", "CF-Connecting-IP", "CF-Ray", "Proxy-Anything"),
        *("X-Original-URL", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"),
        *("X-Request-ID", "X-Correlation-ID"),
    ],
)
@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.title])
def test_the_provider_never_gets(name: str, spelled: Callable[[str], str]) -> None:
    assert sent([(b"A", b"1"), (spelled(name).encode(), b"x"), (b"B", b"2")]) == [("A", "1"), ("B", "2"), *OURS]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("User-Agent", "OpenAI/Python 1.0 (odd; {})"),
        ("Accept", "*/*;q=0.1"),
        ("Content-Type", "application/json; Charset=UTF-8"),
        ("Content-Encoding", "gzip"),
        ("OpenAI-Organization", "org-1"),
        ("anthropic-beta", "a,b"),
        ("Idempotency-Key", "k"),
        ("Origin", "https://app.example.com"),
        ("Referer", "https://app.example.com/x"),
        ("Range", "bytes=0-,0-"),
        ("If-None-Match", '"etag"'),
        ("Cache-Control", "no-cache"),
        ("X-Stainless-Arch", "x64"),
        ("x-cookie", "not one"),
        ("cfx", "not Cloudflare's"),
        ("X-Forwarded", "not one of the family"),
        ("Empty", ""),
    ],
)
def test_the_provider_gets_as_sent(name: str, value: str) -> None:
    assert sent([(name.encode(), value.encode())]) == [(name, value), *OURS]


def test_order_case_and_duplicates_are_kept() -> None:
    headers = [(b"b", b"1"), (b"X-A", b"2"), (b"x-a", b"3"), (b"B", b"4"), (b"b", b"1")]
    assert sent(headers)[:5] == [("b", "1"), ("X-A", "2"), ("x-a", "3"), ("B", "4"), ("b", "1")]


@pytest.mark.parametrize(
    ("connection", "left"),
    [
        (b"close", ["Keep-This", "And-This"]),
        (b"close, Keep-This", ["And-This"]),
        (b" keep-this ,AND-THIS", []),
        (b"X-Request-ID, Authorization, Content-Length", ["Keep-This", "And-This"]),
        (b",,", ["Keep-This", "And-This"]),
    ],
)
def test_what_connection_names_is_stripped_but_not_what_we_set(connection: bytes, left: list[str]) -> None:
    headers = [(b"Connection", connection), (b"Keep-This", b"1"), (b"And-This", b"2")]
    assert [name for name, _ in sent(headers)] == [*left, "X-Request-ID", "Authorization"]


@pytest.mark.parametrize(
    ("auth", "header"),
    [
        (BEARER, ("Authorization", "Bearer sk-key")),
        (Auth("x-api-key"), ("x-api-key", "sk-key")),
        (Auth("api-key"), ("api-key", "sk-key")),
        (Auth("X-Goog-Api-Key"), ("X-Goog-Api-Key", "sk-key")),
    ],
    ids=lambda value: value.header if isinstance(value, Auth) else "",
)
def test_the_providers_credential_comes_last_and_alone(auth: Auth, header: tuple[str, str]) -> None:
    client = [
        (b"authorization", b"Bearer t"),
        (b"X-Api-Key", b"t"),
        (b"API-KEY", b"t"),
        (b"x-goog-api-key", b"theirs"),
        (b"A", b"1"),
    ]
    got = sent(client, auth=auth)
    assert got[-1] == header
    assert [name.lower() for name, _ in got].count(header[0].lower()) == 1
    assert not [value for _, value in got if value.removeprefix("Bearer ") == "t"]


def test_defaults_are_added_only_where_the_client_sent_none() -> None:
    assert ("anthropic-version", "2023-06-01") in sent([], anthropic_version="2023-06-01")
    got = sent([(b"Anthropic-Version", b"2099-01-01")], anthropic_version="2023-06-01")
    assert [value for name, value in got if name.lower() == "anthropic-version"] == ["2099-01-01"]


def test_a_valid_correlation_id_is_forwarded() -> None:
    assert ("X-Correlation-ID", "c1") in sent([(b"x-correlation-id", b"c1")], correlation_id="c1")


@pytest.mark.parametrize(
    ("asked", "narrowed"),
    [
        ("gzip", "gzip"),
        ("gzip, deflate", "gzip, deflate"),
        ("GZip;q=0.5 , identity;q=0", "GZip;q=0.5, identity;q=0"),
        ("gzip;q=NaN, br", "gzip;q=NaN"),
        ("br", "identity"),
        ("br, zstd, x", "identity"),
        ("*", "identity"),
        ("zstd, deflate, br", "deflate"),
        ("", "identity"),
    ],
)
def test_accept_encoding_is_narrowed_to_what_we_can_read(asked: str, narrowed: str) -> None:
    assert readable_codings(asked) == narrowed
    assert sent([(b"Accept-Encoding", asked.encode())])[0] == ("Accept-Encoding", narrowed)


def test_absent_accept_encoding_stays_absent() -> None:
    assert not [name for name, _ in sent([]) if name.lower() == "accept-encoding"]


@pytest.mark.parametrize(
    "name",
    [
        *("Connection", "Keep-Alive", "Proxy-Connection", "Proxy-Authenticate", "TE", "Trailer", "Transfer-Encoding", "Upgrade"),
        *("Content-Length", "Set-Cookie", "Set-Cookie2", "Alt-Svc", "X-PROXY-CACHE"),
        *("Access-Control-Allow-Origin", "Access-Control-Anything", "X-UPSTREAM-REQUEST-START", "X-Upstream-Request-ID"),
    ],
)
@pytest.mark.parametrize("spelled", [str.lower, str.upper, str.title])
def test_the_client_never_gets(name: str, spelled: Callable[[str], str]) -> None:
    assert returned([(b"A", b"1"), (spelled(name).encode(), b"x"), (b"B", b"2")]) == [(b"A", b"1"), (b"B", b"2")]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"Server", b"cloudflare"),
        (b"openai-processing-ms", b"12"),
        (b"X-RateLimit-Remaining-Requests", b"7"),
        (b"Retry-After", b"Fri, 31 Dec 9999 23:59:59 GMT"),
        (b"x-should-retry", b"true"),
        (b"request-id", b"req_1"),
        (b"Content-Encoding", b"gzip"),
        (b"Vary", b"Accept-Encoding"),
        (b"ETag", b'W/"x"'),
        (b"X-Odd", b"\xe9\xff\x80 \xc3\xa9 \t tab"),
        (b"WWW-Authenticate", b"Bearer"),
        (b"Link", b"<https://provider/x>; rel=next"),
        (b"X-Empty", b""),
    ],
)
def test_the_client_gets_as_the_provider_sent(name: bytes, value: bytes) -> None:
    assert returned([(name, value), (name.upper(), value)]) == [(name, value), (name.upper(), value)]


def test_what_the_providers_connection_names_is_stripped() -> None:
    assert returned([(b"Connection", b"close, X-Hop"), (b"x-hop", b"1"), (b"X-End", b"2")]) == [(b"X-End", b"2")]


def test_the_providers_request_id_gets_a_name_of_its_own() -> None:
    got = returned([(b"x-request-id", b"theirs")], (b"X-Request-ID", b"ours"))
    assert got == [(b"X-Upstream-Request-ID", b"theirs"), (b"X-Request-ID", b"ours")]


@pytest.mark.parametrize("name", [b"Location", b"operation-location"])
def test_urls_are_rewritten(name: bytes) -> None:
    assert returned([(name, b"https://provider/\xe9")]) == [(name, b"rewritten:https://provider/\xe9")]


@pytest.mark.parametrize("value", [b"a\rb", b"a\nb", b"a\0b", b"a\x0bb", b"\x7f", b"\x01"])
def test_a_value_with_a_control_character_is_dropped(value: bytes) -> None:
    assert returned([(b"X-Odd", value), (b"X-Even", b"1")]) == [(b"X-Even", b"1")]


@pytest.mark.parametrize("name", [b"X-Proxy", b"X-Accel-Buffering", b"X-Correlation-ID"])
def test_what_we_set_stands_in_for_the_providers(name: bytes) -> None:
    assert returned([(name.lower(), b"theirs")], (name, b"ours")) == [(name, b"ours")]


@pytest.mark.parametrize("name", [b"Server-Timing", b"Cache-Status", b"Vary"])
def test_lists_are_appended_to(name: bytes) -> None:
    assert returned([(name, b"theirs")], (name, b"ours")) == [(name, b"theirs"), (name, b"ours")]


def test_the_first_of_several_names_is_found_whatever_its_case() -> None:
    headers = [(b"A", b"1"), (b"Request-ID", b"\xe9"), (b"X-Request-Id", b"3")]
    assert first(headers, (b"x-request-id", b"request-id")) == "é"
    assert first(headers, (b"absent",)) is None


def test_headers_that_we_set_stand_in_for_those_of_others_in_whatever_case() -> None:
    theirs = [(b"X-Left", b"5"), (b"x-\xff", b"kept"), (b"x-left", b"6")]
    assert replaced(theirs, {"x-left": "1"}) == [(b"x-\xff", b"kept"), (b"x-left", b"1")]
