"""What is stored, for how long, when it answers: the rules of RFC 9111 case by case."""

from email.utils import formatdate

import pytest

from llm_proxy.cache import Entry, Hit, Lookup, Miss, OnlyIfCachedMiss, Revalidate, StaleWhileRevalidate, Terms, rules

NOW = 1_800_000_000.0
BODY = b"0123456789"


def date(seconds: float) -> str:
    """An HTTP date that many seconds from the present of these tests."""
    return formatdate(NOW + seconds, usegmt=True)


def raw(*lines: str) -> list[tuple[bytes, bytes]]:
    """Headers from lines as they look on the wire."""
    parts = [line.partition(":") for line in lines]
    return [(name.encode(), value.strip().encode("latin-1")) for name, _, value in parts]


def request(*lines: str, method: str = "GET", listed: bool = True) -> Lookup:
    return rules.read_request(method, raw(*lines), post_listed=listed)


def terms(*lines: str, status: int = 200, asked: Lookup | None = None, shared: bool = False) -> Terms | None:
    return rules.may_store(asked or request(), status, raw(*lines), NOW, default_ttl=300, shared=shared)


def stored(*lines: str, status: int = 200, asked: Lookup | None = None, at: float = NOW, under_way: float = 0) -> Entry:
    """A response that came at that time, so long after its request went out."""
    asked = asked or request()
    found = rules.may_store(asked, status, raw(*lines), at, default_ttl=300)
    assert found is not None
    response = (status, "", raw(*lines))
    return rules.entry_of(found, asked, response, BODY, project="p", path="/v1", request_time=at - under_way, response_time=at)


# Keys.


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(("q", "GET", "/v1/models", "a=1&b=2", None), id="partition"),
        pytest.param(("p", "POST", "/v1/models", "a=1&b=2", None), id="method"),
        pytest.param(("p", "GET", "/v1/model", "a=1&b=2", None), id="path"),
        pytest.param(("p", "GET", "/v1/models", "a=1&b=3", None), id="value"),
        pytest.param(("p", "GET", "/v1/models", "a=1&b=2&b=2", None), id="parameter once more"),
        pytest.param(("p", "GET", "/v1/models", "a=1&b=%32", None), id="encoding, which is not undone"),
        pytest.param(("p", "GET", "/v1/models", None, None), id="no query"),
        pytest.param(("p", "GET", "/v1/models", "a=1&b=2", b"hash"), id="body"),
        pytest.param(("p/v1", "GET", "/models", "a=1&b=2", None), id="borders"),
    ],
)
def test_requests_for_different_things_have_different_keys(other: tuple[str, str, str, str | None, bytes | None]) -> None:
    assert rules.primary_key(*other) != rules.primary_key("p", "GET", "/v1/models", "a=1&b=2")


def test_a_key_does_not_depend_on_the_order_of_parameters_of_different_names() -> None:
    assert rules.primary_key("p", "GET", "/", "b=2&a=1") == rules.primary_key("p", "GET", "/", "a=1&b=2")
    assert rules.primary_key("p", "GET", "/", "a=2&a=1") != rules.primary_key("p", "GET", "/", "a=1&a=2")


def test_get_and_head_share_a_key_which_tells_nothing() -> None:
    key = rules.primary_key("project", "GET", "/v1/models", None)
    assert key == rules.primary_key("project", "HEAD", "/v1/models", None)
    assert len(key) == 64 and set(key) <= set("0123456789abcdef")


def test_an_empty_query_is_not_none() -> None:
    assert rules.primary_key("p", "GET", "/", "") != rules.primary_key("p", "GET", "/", None)


def test_variants_are_told_apart_by_what_the_response_varies_on() -> None:
    def variant(vary: str, *asked: str) -> str:
        return stored("Cache-Control: max-age=60", vary, asked=request(*asked)).terms.variant

    one = variant("Vary: Foo, Bar", "Foo: 1", "Other: 1")
    assert one == variant("Vary: Foo, Bar", "Foo: 1", "Other: 2")
    assert one != variant("Vary: Foo, Bar", "Foo: 1", "Bar:")
    assert one != variant("Vary: Foo, Bar", "Bar: 1")
    assert variant("Vary:", "Foo: 1") == variant("Vary:")


# What a request asks (RFC 9111 section 5.2.1).

BYPASSES = {
    "a plain GET": (request(), None),
    "HEAD": (request(method="HEAD"), None),
    "no-store": (request("Cache-Control: no-store"), "bypass"),
    "If-Match, which the provider judges": (request('If-Match: "a"'), "bypass"),
    "If-Unmodified-Since, which the provider judges": (request(f"If-Unmodified-Since: {date(0)}"), "bypass"),
    "a POST that opts in": (request("Cache-Control: public", method="POST"), None),
    "a POST that does not": (request(method="POST"), "bypass"),
    "a POST that says something else": (request("Cache-Control: max-age=60", method="POST"), "bypass"),
    "a POST where the profile does not list it": (request("Cache-Control: public", method="POST", listed=False), "bypass"),
    "another method": (request(method="DELETE"), "method"),
    "an unknown method": (request(method="M-SEARCH"), "method"),
}


@pytest.mark.parametrize(("asked", "bypass"), BYPASSES.values(), ids=BYPASSES.keys())
def test_which_requests_pass_the_cache_by(asked: Lookup, bypass: str | None) -> None:
    assert asked.bypass == bypass
    assert rules.decide([stored("Cache-Control: max-age=60")], asked, NOW) == (
        Miss(bypass) if asked.bypass else Hit(stored("Cache-Control: max-age=60"))
    )
    assert (terms("Cache-Control: max-age=60", asked=asked) is None) is (bypass is not None or asked.method == "HEAD")


# Freshness (RFC 9111 section 4.2): the lifetime of a 200 to a GET, None where it is not to be stored.

LIFETIMES = {
    "max-age": (["Cache-Control: max-age=60"], 60),
    "s-maxage outweighs max-age": (["Cache-Control: max-age=60, s-maxage=5"], 5),
    "s-maxage in another line": (["Cache-Control: s-maxage=90", "Cache-Control: max-age=60"], 90),
    "max-age outweighs Expires": (["Cache-Control: max-age=60", f"Expires: {date(3600)}", f"Date: {date(0)}"], 60),
    "max-age outweighs an invalid Expires": (["Cache-Control: max-age=60", "Expires: 0"], 60),
    "Expires counts from Date": ([f"Expires: {date(100)}", f"Date: {date(40)}"], 60),
    "Expires counts from arrival without Date": ([f"Expires: {date(60)}"], 60),
    "Expires counts from arrival with an invalid Date": ([f"Expires: {date(60)}", "Date: foo"], 60),
    "a tenth of the time since the last change": ([f"Last-Modified: {date(-600)}", f"Date: {date(0)}"], 60),
    "at most a day without being told": ([f"Last-Modified: {date(-86400 * 365)}", f"Date: {date(0)}"], 86400),
    "changed in the future": ([f"Last-Modified: {date(600)}", f"Date: {date(0)}"], 0),
    "private is for the project": (["Cache-Control: private, max-age=60"], 60),
    "a targeted field outweighs Cache-Control": (["Cache-Control: max-age=60", "CDN-Cache-Control: max-age=5"], 5),
    "a targeted field outweighs no-store": (["Cache-Control: no-store", "CDN-Cache-Control: max-age=5"], 5),
    "an invalid targeted field is none": (["Cache-Control: max-age=60", "CDN-Cache-Control: max-age =5"], 60),
    "a targeted field silences Expires": ([f"Expires: {date(60)}", "CDN-Cache-Control: public", "ETag: a"], 0),
    "expired, to be validated": ([f"Expires: {date(-60)}", f"Last-Modified: {date(-600)}"], 0),
    "Expires that equals Date": ([f"Expires: {date(0)}", f"Date: {date(0)}", "ETag: a"], 0),
    "an invalid Expires is the past": (["Expires: 0", "ETag: a"], 0),
    "an invalid max-age is none": (["Cache-Control: max-age=a", "ETag: a"], 0),
    "nothing said, to be validated": (["ETag: a"], 0),
    "stale at once, but good for errors": (["Cache-Control: max-age=0, stale-if-error=60"], 0),
    "nothing said, nothing to validate": ([], None),
    "expired, nothing to validate": ([f"Expires: {date(-60)}"], None),
    "no-store": (["Cache-Control: max-age=60, No-Store"], None),
    "no-store with must-understand": (["Cache-Control: max-age=60, no-store, must-understand"], None),
    "targeted no-store": (["Cache-Control: max-age=60", "CDN-Cache-Control: no-store"], None),
    "no-cache, nothing to validate": (["Cache-Control: no-cache, max-age=60"], None),
    "Vary: *": (["Cache-Control: max-age=60", "Vary: foo, *"], None),
}


@pytest.mark.parametrize(("lines", "lifetime"), LIFETIMES.values(), ids=LIFETIMES.keys())
def test_for_how_long_a_response_is_fresh(lines: list[str], lifetime: float | None) -> None:
    found = terms(*lines)
    assert (found and found.lifetime) == lifetime


# RFC 9111 section 3, RFC 9110 section 15.1.
EXPLICIT, HEURISTIC = "Cache-Control: max-age=60", f"Last-Modified: {date(-600)}"
STATUSES = {
    "200 with a lifetime": (200, EXPLICIT, True),
    "200 by guess": (200, HEURISTIC, True),
    "404 by guess": (404, HEURISTIC, True),
    "501 by guess": (501, HEURISTIC, True),
    "201 by guess": (201, HEURISTIC, False),
    "403 by guess": (403, HEURISTIC, False),
    "503 by guess": (503, HEURISTIC, False),
    "503 with a lifetime": (503, EXPLICIT, True),
    "unknown with a lifetime": (599, EXPLICIT, True),
    "unknown by guess": (599, HEURISTIC, False),
    "unknown by guess, but public": (599, f"{HEURISTIC}\nCache-Control: public", True),
    "unknown, to be understood": (599, "Cache-Control: max-age=60, must-understand", False),
    "understood": (404, "Cache-Control: max-age=60, must-understand", True),
    "not final": (103, EXPLICIT, False),
    "an answer to a condition": (304, EXPLICIT, False),
    "an answer to another condition": (412, EXPLICIT, False),
    "an answer to a range": (416, EXPLICIT, False),
    "a part that nobody asked for": (206, f"{EXPLICIT}\nContent-Range: bytes 0-9/20", False),
}


@pytest.mark.parametrize(("status", "lines", "kept"), STATUSES.values(), ids=STATUSES.keys())
def test_which_statuses_are_stored(status: int, lines: str, kept: bool) -> None:
    assert (terms(*lines.split("\n"), status=status) is not None) is kept


PARTS = {
    "asked for": (["Range: bytes=-5"], "bytes 5-9/10", True),
    "on a condition": (["Range: bytes=-5", 'If-Range: "a"'], "bytes 5-9/10", False),
    "of unknown length": (["Range: bytes=-5"], "bytes 5-9/*", False),
}


@pytest.mark.parametrize(("asked", "stated", "kept"), PARTS.values(), ids=PARTS.keys())
def test_which_parts_are_stored(asked: list[str], stated: str, kept: bool) -> None:
    found = terms("Cache-Control: max-age=60", f"Content-Range: {stated}", status=206, asked=request(*asked))
    assert (found is not None) is kept


def test_a_part_is_no_variant_of_the_whole() -> None:
    part = terms("Cache-Control: max-age=60", "Content-Range: bytes 5-9/10", status=206, asked=request("Range: bytes=-5"))
    whole = terms("Cache-Control: max-age=60", asked=request("Range: bytes=-5"))
    assert part and whole and part.variant != whole.variant


# The page "Limits, cache, events": what goes into a partition that projects share.
SHARED = {
    "public": ("Cache-Control: public, max-age=60", True),
    "not said to be public": ("Cache-Control: max-age=60", False),
    "private": ("Cache-Control: public, private, max-age=60", False),
}


@pytest.mark.parametrize(("line", "kept"), SHARED.values(), ids=SHARED.keys())
def test_only_what_is_public_is_shared_between_projects(line: str, kept: bool) -> None:
    assert (terms(line, shared=True) is not None) is kept


# The same page: a POST whose client says `public`.
POSTS = {
    "for the usual time": ("public", [], 200, 300),
    "for as long as the client says": ("public, max-age=7", [], 200, 7),
    "for as long as the provider says": ("public, max-age=7", ["Cache-Control: max-age=90"], 200, 90),
    "a guess is no word of the provider": ("public", [HEURISTIC], 200, 300),
    "private is for the project": ("public", ["Cache-Control: private"], 200, 300),
    "not at all, says the client": ("public, max-age=0", [], 200, None),
    "not at all, says the provider": ("public", ["Cache-Control: no-store"], 200, None),
    "never without asking, and a POST cannot ask": ("public", ["Cache-Control: no-cache", 'ETag: "a"'], 200, None),
    "expired, and a POST cannot ask": ("public", ["Cache-Control: max-age=0", 'ETag: "a"'], 200, None),
    "an error": ("public", ["Cache-Control: max-age=90"], 500, None),
}


@pytest.mark.parametrize(("asked", "lines", "status", "lifetime"), POSTS.values(), ids=POSTS.keys())
def test_for_how_long_an_answer_to_a_post_is_fresh(asked: str, lines: list[str], status: int, lifetime: int | None) -> None:
    found = terms(*lines, status=status, asked=request(f"Cache-Control: {asked}", method="POST"))
    assert (found and found.lifetime) == lifetime


def test_the_time_a_provider_thinks_about_a_post_does_not_age_its_answer() -> None:
    for method, age in (("POST", 0), ("GET", 40)):
        asked = request("Cache-Control: public, max-age=60", method=method)
        assert stored("Cache-Control: max-age=60", asked=asked, under_way=40).age(NOW) == age


# Reuse (RFC 9111 sections 4, 4.2.4, 5.2.1; RFC 5861 section 3): a response that is fresh for 60 s, `age` seconds old.

HIT, STALE, REQUEST, BACKGROUND = "hit", "stale", "request", "background"
DECISIONS = {
    "fresh": ("max-age=60", 59.9, "", HIT),
    "just stale": ("max-age=60", 60, "", STALE),
    "must-revalidate means nothing while it is fresh": ("max-age=60, must-revalidate", 59, "", HIT),
    "no-cache": ("max-age=60, no-cache", 1, "", STALE),
    "no-cache for one field": ('max-age=60, no-cache="a"', 1, "", HIT),
    "the client wants it validated": ("max-age=60", 1, "no-cache", REQUEST),
    "the client wants it younger": ("max-age=60", 10, "max-age=9", REQUEST),
    "young enough for the client": ("max-age=60", 10, "max-age=10", HIT),
    "the client wants it new": ("max-age=60", 0, "max-age=0", REQUEST),
    "fresh for long enough": ("max-age=60", 10, "min-fresh=50", HIT),
    "not fresh for long enough": ("max-age=60", 10, "min-fresh=51", REQUEST),
    "stale, but the client takes it": ("max-age=60", 70, "max-stale=10", HIT),
    "too stale for the client": ("max-age=60", 71, "max-stale=10", STALE),
    "the client takes it however stale": ("max-age=60", 10**6, "max-stale", HIT),
    "a max-stale that is no number": ("max-age=60", 70, "max-stale=a", STALE),
    "the provider forbids what the client would take": ("max-age=60, must-revalidate", 70, "max-stale", STALE),
    "proxy-revalidate forbids it": ("max-age=60, proxy-revalidate", 70, "max-stale", STALE),
    "s-maxage forbids it": ("s-maxage=60", 70, "max-stale", STALE),
    "stale while it is validated": ("max-age=60, stale-while-revalidate=10", 70, "", BACKGROUND),
    "stale for longer": ("max-age=60, stale-while-revalidate=10", 70.1, "", STALE),
    "stale, but the client wants it validated": ("max-age=60, stale-while-revalidate=10", 65, "no-cache", STALE),
    "stale, but the client wants it fresh": ("max-age=60, stale-while-revalidate=10", 65, "min-fresh=1", STALE),
    "stale, and must not be": ("max-age=60, stale-while-revalidate=10, must-revalidate", 65, "", STALE),
    "an unknown wish": ("max-age=60", 1, "nothing-to-see-here", HIT),
}


@pytest.mark.parametrize(("said", "age", "wish", "outcome"), DECISIONS.values(), ids=DECISIONS.keys())
def test_when_a_stored_response_answers(said: str, age: float, wish: str, outcome: str) -> None:
    entry = stored(f"Cache-Control: {said}", 'ETag: "a"')
    conditions = ((b"If-None-Match", b'"a"'),)
    decision = rules.decide([entry], request(f"Cache-Control: {wish}"), NOW + age)
    assert (
        decision
        == {
            HIT: Hit(entry),
            STALE: Revalidate(entry, conditions, "stale"),
            REQUEST: Revalidate(entry, conditions, "request"),
            BACKGROUND: StaleWhileRevalidate(entry, conditions),
        }[outcome]
    )
    only = rules.decide([entry], request(f"Cache-Control: {wish}, only-if-cached"), NOW + age)
    assert only == (decision if outcome in (HIT, BACKGROUND) else OnlyIfCachedMiss())


def test_only_if_cached_without_anything_stored() -> None:
    assert rules.decide([], request("Cache-Control: only-if-cached"), NOW) == OnlyIfCachedMiss()
    assert rules.decide([], request("Cache-Control: only-if-cached", method="POST"), NOW) == OnlyIfCachedMiss()
    assert rules.decide([], request("Cache-Control: only-if-cached", method="DELETE"), NOW) == Miss("method")


# RFC 9111 section 5.4.
PRAGMAS = {
    "no-cache": (["Pragma: no-cache"], False),
    "no-cache where Cache-Control speaks": (["Pragma: no-cache", "Cache-Control: max-age=60"], True),
    "something else": (["Pragma: foo"], True),
}


@pytest.mark.parametrize(("lines", "hit"), PRAGMAS.values(), ids=PRAGMAS.keys())
def test_pragma_in_a_request(lines: list[str], hit: bool) -> None:
    decision = rules.decide([stored("Cache-Control: max-age=60", "Pragma: no-cache")], request(*lines), NOW)
    assert isinstance(decision, Hit) is hit


def test_what_cannot_be_validated_is_asked_for_without_conditions() -> None:
    entry = stored("Cache-Control: max-age=60")
    assert rules.decide([entry], request(), NOW + 60) == Revalidate(entry, (), "stale")


def test_both_validators_are_asked_about() -> None:
    entry = stored("Cache-Control: max-age=60", 'ETag: W/"a"', f"Last-Modified: {date(-9)}")
    assert entry.conditions == ((b"If-None-Match", b'W/"a"'), (b"If-Modified-Since", date(-9).encode()))


def test_a_post_is_not_validated_and_not_sent_again_in_the_background() -> None:
    asked = request("Cache-Control: public", method="POST")
    entry = stored("Cache-Control: max-age=60, stale-while-revalidate=60", 'ETag: "a"', asked=asked)
    assert rules.decide([entry], asked, NOW + 61) == Revalidate(entry, (), "stale")


def test_our_conditions_take_the_place_of_the_clients() -> None:
    sent = rules.conditioned(raw('If-None-Match: "b"', "IF-MODIFIED-SINCE: x", "A: 1"), ((b"If-None-Match", b'"a"'),))
    assert sent == raw("A: 1", 'If-None-Match: "a"')


# Variants (RFC 9111 section 4.1).


def test_a_request_is_answered_by_its_variant_or_by_none() -> None:
    lines = ("Cache-Control: max-age=60", "Vary: Foo")
    one, two = stored(*lines, asked=request("Foo: 1")), stored(*lines, asked=request("Foo: 2"))
    assert rules.decide([one, two], request("Foo: 1", "Bar: 1"), NOW) == Hit(one)
    assert rules.decide([one, two], request("Foo: 2"), NOW) == Hit(two)
    assert rules.decide([one, two], request("Foo: 3"), NOW) == Miss("vary-miss")
    assert rules.decide([one, two], request(), NOW) == Miss("vary-miss")
    assert rules.decide([], request(), NOW) == Miss("uri-miss")


def test_of_several_that_match_the_newest_answers() -> None:
    old, new = stored("Cache-Control: max-age=60"), stored("Cache-Control: max-age=60", at=NOW + 1)
    assert rules.decide([new, old], request(), NOW + 2) == rules.decide([old, new], request(), NOW + 2) == Hit(new)


LANGUAGES = {
    "prefers the language of the answer": ("fr;q=0.5, DE", "de", True),
    "prefers another": ("fr, de;q=0.5", "de", False),
    "prefers none": ("fr, de", "de", False),
    "the answer is in none that is said": ("de", None, False),
}


@pytest.mark.parametrize(("preferred", "language", "hit"), LANGUAGES.values(), ids=LANGUAGES.keys())
def test_an_answer_in_the_language_that_a_client_prefers_is_its_variant(preferred: str, language: str | None, hit: bool) -> None:
    lines = ["Cache-Control: max-age=60", "Vary: Accept-Language, Foo"]
    lines += [f"Content-Language: {language}"] if language else []
    entry = stored(*lines, asked=request("Accept-Language: en, de"))
    assert isinstance(rules.decide([entry], request(f"Accept-Language: {preferred}"), NOW), Hit) is hit
    assert rules.decide([entry], request(f"Accept-Language: {preferred}", "Foo: 1"), NOW) == Miss("vary-miss")


# Parts (RFC 9111 section 3.4): bytes 5 to 14 of 20 are stored.

PART_REQUESTS = {
    "the same again": (["Range: bytes=5-14"], True),
    "a part of it": (["Range: bytes=6-7"], True),
    "a byte before it": (["Range: bytes=4-7"], False),
    "a byte beyond it": (["Range: bytes=6-15"], False),
    "several": (["Range: bytes=6-7, 9-9"], False),
    "the end of the whole": (["Range: bytes=-1"], False),
    "on a condition": (["Range: bytes=6-7", 'If-Range: "a"'], False),
    "the whole": ([], False),
}


@pytest.mark.parametrize(("lines", "hit"), PART_REQUESTS.values(), ids=PART_REQUESTS.keys())
def test_which_requests_a_stored_part_answers(lines: list[str], hit: bool) -> None:
    asked = request("Range: bytes=5-14")
    entry = stored("Cache-Control: max-age=60", "Content-Range: bytes 5-14/20", status=206, asked=asked)
    assert rules.decide([entry], request(*lines), NOW) == (Hit(entry) if hit else Miss("partial"))


def test_the_whole_answers_before_a_part() -> None:
    asked = request("Range: bytes=5-9")
    part = stored("Cache-Control: max-age=60", "Content-Range: bytes 5-9/10", status=206, asked=asked, at=NOW + 1)
    whole = stored("Cache-Control: max-age=60")
    assert rules.decide([whole, part], asked, NOW + 1) == Hit(whole)


# RFC 5861 section 4: stale since ten seconds.
FAILURES = {
    "no answer": ("stale-if-error=10", "", None, True),
    "an error of the provider": ("stale-if-error=10", "", 503, True),
    "the client allows it": ("", "stale-if-error=10", 500, True),
    "nobody allows it": ("", "", 503, False),
    "stale for too long": ("stale-if-error=9", "", 503, False),
    "an answer that is no failure": ("stale-if-error=10", "", 404, False),
    "an error that is about the request": ("stale-if-error=10", "", 501, False),
    "it has to be validated": ("stale-if-error=10, must-revalidate", "", 503, False),
    "shared caches have to validate it": ("stale-if-error=10, proxy-revalidate", "", 503, False),
    "every use has to be validated": ("stale-if-error=99, no-cache", "", 503, False),
    "the client wants it validated": ("stale-if-error=10", "no-cache", 503, False),
}


@pytest.mark.parametrize(("said", "wish", "status", "served"), FAILURES.values(), ids=FAILURES.keys())
def test_when_a_stale_response_stands_in_for_a_failure(said: str, wish: str, status: int | None, served: bool) -> None:
    entry = stored(f"Cache-Control: max-age=60, {said}", 'ETag: "a"')
    asked = request(f"Cache-Control: {wish}")
    assert rules.serve_stale_on_error(entry, asked, NOW + 70, status) is served


# Invalidation (RFC 9111 section 4.4).

HERE = "https://proxy.example/v1/files?a=1"
INVALIDATIONS = {
    "the target": ("POST", 200, [], {("/v1/files", "a=1")}),
    "by a redirect": ("PUT", 303, [], {("/v1/files", "a=1")}),
    "by an unknown method": ("M-SEARCH", 204, [], {("/v1/files", "a=1")}),
    "not by a failure": ("DELETE", 500, [], set()),
    "not by a refusal": ("POST", 404, [], set()),
    "not by a safe method": ("GET", 200, [], set()),
    "not by a question": ("OPTIONS", 200, [], set()),
    "what was made": ("POST", 201, ["Location: /v1/files/f1"], {("/v1/files", "a=1"), ("/v1/files/f1", None)}),
    "what was sent back": ("POST", 200, ["Content-Location: files/f1?b"], {("/v1/files", "a=1"), ("/v1/files/f1", "b")}),
    "by its whole URL": (
        "POST",
        201,
        ["Location: HTTPS://PROXY.example:443/x#top"],
        {("/v1/files", "a=1"), ("/x", None)},
    ),
    "the root": ("POST", 201, ["Location: https://proxy.example"], {("/v1/files", "a=1"), ("/", None)}),
    "not on another host": ("POST", 201, ["Location: https://other.example/x"], {("/v1/files", "a=1")}),
    "not on another port": ("POST", 201, ["Location: https://proxy.example:8443/x"], {("/v1/files", "a=1")}),
    "not by another scheme": ("POST", 201, ["Location: http://proxy.example/x"], {("/v1/files", "a=1")}),
    "not what is no URL": ("POST", 201, ["Location: https://[oops/x", "Content-Location: //h:x/"], {("/v1/files", "a=1")}),
}


@pytest.mark.parametrize(("method", "status", "lines", "targets"), INVALIDATIONS.values(), ids=INVALIDATIONS.keys())
def test_what_an_unsafe_call_makes_doubtful(
    method: str, status: int, lines: list[str], targets: set[tuple[str, str | None]]
) -> None:
    assert rules.invalidated_by(method, status, HERE, raw(*lines)) == targets
