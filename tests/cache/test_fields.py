"""Header fields are read as their specifications say, and in doubt so that less is served from the cache."""

import calendar
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.cache import fields

NOW = float(calendar.timegm((2026, 11, 21, 9, 0, 0)))
LARGEST = fields.LARGEST_SECONDS

unhurried = settings(deadline=None, max_examples=300)


def raw(*lines: str) -> list[tuple[bytes, bytes]]:
    """Headers from lines as they look on the wire."""
    parts = [line.partition(":") for line in lines]
    return [(name.encode(), value.strip().encode("latin-1")) for name, _, value in parts]


# RFC 9110 section 5.6.1.
LISTS = {
    "empty members are dropped": (", a,, b ,", ["a", "b"]),
    "a comma in a quoted string is text": ('x="a, b", c', ['x="a, b"', "c"]),
    "an escaped quote does not end the string": (r'x="a\", b", c', [r'x="a\", b"', "c"]),
    "a string without an end takes the rest": ('x="a, b', ['x="a, b']),
    "a backslash may be the last character": ('a, x="b\\', ["a", 'x="b\\']),
    "nothing": ("", []),
}


@pytest.mark.parametrize(("text", "members"), LISTS.values(), ids=LISTS.keys())
def test_lists_are_split_at_their_commas(text: str, members: list[str]) -> None:
    assert fields.members(text) == members


def test_lines_of_a_field_are_one_list_whatever_their_case() -> None:
    assert fields.combined(raw("Vary: a", "X: 1", "VARY:  b "), b"vary") == "a, b"
    assert fields.combined(raw("X: 1"), b"vary") is None


# RFC 9111 sections 1.2.2, 4.2.1, 5.2.
SECONDS = {
    "plain": ("max-age=60", 60),
    "absent": ("public", None),
    "among others": ("public, max-age=60, foo", 60),
    "any case": ("MaX-aGe=60", 60),
    "quoted": ('max-age="60"', 60),
    "leading zeros": ("max-age=0060", 60),
    "too large to hold": ("max-age=99999999999", LARGEST),
    "larger than any number that Python reads": (f"max-age={'9' * 5000}", LARGEST),
    "the least of several": ("max-age=60, max-age=30, max-age=90", 30),
    "single quotes are no quotes": ("max-age='60'", 0),
    "negative": ("max-age=-60", 0),
    "with a fraction": ("max-age=60.0", 0),
    "with letters": ("max-age=60a", 0),
    "with other digits": ("max-age=²", 0),
    "space before the sign": ("max-age =60", 0),
    "space after the sign": ("max-age= 60", 0),
    "no argument": ("max-age", 0),
    "an empty argument": ("max-age=", 0),
    "in a string of another directive": ('x="max-age=60"', None),
    "in a string of another directive, before its own": ('x="max-age=3600", max-age=1', 1),
    "one of several is invalid": ("max-age=60, max-age=a", 0),
}


@pytest.mark.parametrize(("text", "seconds"), SECONDS.values(), ids=SECONDS.keys())
def test_seconds_of_a_directive(text: str, seconds: int | None) -> None:
    assert fields.seconds(fields.directives(text), "max-age") == seconds


# RFC 9111 section 5.2.2.4.
NO_CACHE = {
    "of the whole response": ("no-cache", None),
    "of one field": ('no-cache="A"', {b"a"}),
    "of several": ('no-cache="a, b"', {b"a", b"b"}),
    "as a token": ("no-cache=a", {b"a"}),
    "the whole response outweighs a field": ('no-cache="a", no-cache', None),
    "an empty list names nothing, so it is the whole": ('no-cache=""', None),
    "absent": ("max-age=1", set()),
}


@pytest.mark.parametrize(("text", "names"), NO_CACHE.values(), ids=NO_CACHE.keys())
def test_fields_that_a_directive_names(text: str, names: set[bytes] | None) -> None:
    assert fields.field_names(fields.directives(text), "no-cache") == names


# RFC 9111 section 5.1, except that what is invalid is not ignored: somebody said that the response is aged.
AGES = {
    "absent": ([], 0),
    "plain": (["Age: 30"], 30),
    "zero": (["Age: 0"], 0),
    "not a number": (["Age: abc"], LARGEST),
    "negative": (["Age: -7200"], LARGEST),
    "a fraction": (["Age: 7200.0"], LARGEST),
    "a parameter": (["Age: 7200;foo=bar"], LARGEST),
    "a list": (["Age: 0, 0"], LARGEST),
    "two lines": (["Age: 0", "Age: 0"], LARGEST),
}


@pytest.mark.parametrize(("lines", "seconds"), AGES.values(), ids=AGES.keys())
def test_age_that_is_no_number_counts_as_very_old(lines: list[str], seconds: int) -> None:
    assert fields.age(raw(*lines)) == seconds


# RFC 9111 section 4.2.3: response_time is NOW; the request took two seconds where the table says so.
INITIAL_AGES = {
    "made just now": (["Date: Sat, 21 Nov 2026 09:00:00 GMT"], 0, 0),
    "made a minute ago": (["Date: Sat, 21 Nov 2026 08:59:00 GMT"], 0, 60),
    "a clock ahead of ours makes nothing younger": (["Date: Sat, 21 Nov 2026 09:05:00 GMT"], 0, 0),
    "the time under way counts": ([], 2, 2),
    "Age and the time under way": (["Age: 30"], 2, 32),
    "the greater one counts": (["Age: 30", "Date: Sat, 21 Nov 2026 08:59:00 GMT"], 2, 60),
    "an invalid Date is none": (["Date: foo", "Age: 5"], 0, 5),
}


@pytest.mark.parametrize(("lines", "under_way", "seconds"), INITIAL_AGES.values(), ids=INITIAL_AGES.keys())
def test_age_at_arrival(lines: list[str], under_way: int, seconds: int) -> None:
    assert fields.initial_age(raw(*lines), NOW - under_way, NOW) == seconds


AUGUST = float(calendar.timegm((2050, 8, 18, 2, 1, 18)))
# RFC 9110 section 5.6.7, RFC 9111 section 4.2.
DATES = {
    "usual": ("Thu, 18 Aug 2050 02:01:18 GMT", AUGUST),
    "RFC 850": ("Thursday, 18-Aug-50 02:01:18 GMT", AUGUST),
    "asctime": ("Thu Aug 18 02:01:18 2050", AUGUST),
    "asctime with one digit": ("Mon Aug  8 02:01:18 2050", AUGUST - 10 * 86400),
    "weekday in capitals": ("THU, 18 Aug 2050 02:01:18 GMT", AUGUST),
    "month in capitals": ("Thu, 18 AUG 2050 02:01:18 GMT", AUGUST),
    "zone in small letters": ("Thu, 18 Aug 2050 02:01:18 gmt", AUGUST),
    "leap second": ("Thu, 18 Aug 2050 02:01:60 GMT", AUGUST + 42),
    "two digits more than 50 years ahead": ("Sunday, 06-Nov-94 08:49:37 GMT", 784111777.0),
    "before the epoch": ("Wed, 31 Dec 1969 23:59:59 GMT", -1.0),
    "another zone": ("Thu, 18 Aug 2050 02:01:18 UTC", None),
    "an offset": ("Thu, 18 Aug 2050 02:01:18 +0000", None),
    "two digits in the usual form": ("Thu, 18 Aug 50 02:01:18 GMT", None),
    "no comma": ("Thu 18 Aug 2050 02:01:18 GMT", None),
    "more spaces": ("Thu, 18  Aug  2050 02:01:18 GMT", None),
    "dashes": ("Thu, 18-Aug-2050 02:01:18 GMT", None),
    "periods": ("Thu, 18 Aug 2050 02.01.18 GMT", None),
    "one digit of an hour": ("Thu, 18 Aug 2050 2:01:18 GMT", None),
    "no such day": ("Thu, 31 Feb 2050 02:01:18 GMT", None),
    "no such hour": ("Thu, 18 Aug 2050 24:01:18 GMT", None),
    "no such second": ("Thu, 18 Aug 2050 02:01:61 GMT", None),
    "no such year": ("Thu, 18 Aug 0000 02:01:18 GMT", None),
    "zero": ("0", None),
    "nothing": ("", None),
}


@pytest.mark.parametrize(("text", "seconds"), DATES.values(), ids=DATES.keys())
def test_dates(text: str, seconds: float | None) -> None:
    assert fields.http_date(text, NOW) == seconds


def test_expires_is_the_earliest_of_several_and_an_invalid_one_is_the_past() -> None:
    late, early = "Expires: Thu, 18 Aug 2050 02:01:19 GMT", "Expires: Thu, 18 Aug 2050 02:01:18 GMT"
    assert fields.expires(raw(late, early), NOW) == AUGUST
    assert fields.expires(raw(late, "Expires: 0"), NOW) == 0
    assert fields.expires([], NOW) is None


# RFC 8941 section 3.2, RFC 9213 section 2.1.
TARGETED = {
    "plain": (["CDN-Cache-Control: max-age=60, must-revalidate"], {"max-age": ("60",), "must-revalidate": (None,)}),
    "false is absence": (["CDN-Cache-Control: no-store=?0, max-age=60"], {"max-age": ("60",)}),
    "the last of several is absence": (["CDN-Cache-Control: no-store, no-store=?0, max-age=60"], {"max-age": ("60",)}),
    "true is presence": (["CDN-Cache-Control: no-store=?1"], {"no-store": (None,)}),
    "the last of several counts": (["CDN-Cache-Control: max-age=60, max-age=30"], {"max-age": ("30",)}),
    "lines are one dictionary": (["CDN-Cache-Control: max-age=60", "CDN-Cache-Control: a"], {"max-age": ("60",), "a": (None,)}),
    "parameters mean nothing": (["CDN-Cache-Control: max-age=60;a;b=1; c=?0"], {"max-age": ("60",)}),
    "strings": ([r'CDN-Cache-Control: no-cache="a, \"b"'], {"no-cache": ('a, "b',)}),
    "inner lists": (['CDN-Cache-Control: x=(a "b" 1;q=2);p, y=:YQ==:'], {"x": ('(a "b" 1;q=2)',), "y": (":YQ==:",)}),
    "absent": (["Cache-Control: max-age=60"], None),
    "empty": (["CDN-Cache-Control:"], None),
    "a comma at the end": (["CDN-Cache-Control: max-age=60,"], None),
    "a capital letter": (["CDN-Cache-Control: Max-Age=60"], None),
    "space before the sign": (["CDN-Cache-Control: max-age =60"], None),
    "space after the sign": (["CDN-Cache-Control: max-age= 60"], None),
    "a semicolon for a comma with a bad parameter": (["CDN-Cache-Control: max-age=60; =1"], None),
    "a string without an end": (['CDN-Cache-Control: a="b'], None),
    "a number too long": (["CDN-Cache-Control: max-age=1234567890123456"], None),
}


@pytest.mark.parametrize(("lines", "directives"), TARGETED.values(), ids=TARGETED.keys())
def test_targeted_fields_are_structured(lines: list[str], directives: dict[str, tuple[str | None]] | None) -> None:
    assert fields.targeted(raw(*lines), b"cdn-cache-control") == directives


# RFC 9110 section 12.5.5.
VARIES = {
    "absent": ([], ()),
    "sorted, in small letters, each once": (["Vary: Foo, bar, FOO"], ("bar", "foo")),
    "star": (["Vary: *"], None),
    "star among others": (["Vary: foo, *"], None),
    "star after nothing": (["Vary: , *"], None),
    "star in another line": (["Vary:", "Vary: *"], None),
}


@pytest.mark.parametrize(("lines", "names"), VARIES.values(), ids=VARIES.keys())
def test_names_in_vary(lines: list[str], names: tuple[str, ...] | None) -> None:
    assert fields.vary_names(raw(*lines)) == names


# RFC 9111 section 4.1.
ALIKE = {
    "space around commas": ("foo", ["Foo: 1,2"], ["Foo:  1 ,\t2 "]),
    "one line or two": ("foo", ["Foo: 1, 2"], ["Foo: 1", "foo: 2"]),
    "order of languages": ("accept-language", ["Accept-Language: en, de"], ["Accept-Language: de, en"]),
    "case of languages": ("accept-language", ["Accept-Language: en, de"], ["Accept-Language: eN,De"]),
    "a weight of one": ("accept-encoding", ["Accept-Encoding: gzip, br"], ["Accept-Encoding: gzip;q=1.0, br; q=1"]),
    "credentials, which the provider does not see": ("authorization", ["Authorization: a"], ["Authorization: b"]),
}
DIFFERENT = {
    "another value": ("foo", ["Foo: 1"], ["Foo: 2"]),
    "absent": ("foo", ["Foo: 1"], []),
    "empty": ("foo", ["Foo:"], []),
    "case, where nobody says that it means nothing": ("foo", ["Foo: a"], ["Foo: A"]),
    "order, where nobody says that it means nothing": ("foo", ["Foo: 1, 2"], ["Foo: 2, 1"]),
    "space in a quoted string": ("foo", ['Foo: "a, b"'], ['Foo: "a,b"']),
    "another weight": ("accept-language", ["Accept-Language: en;q=0.5"], ["Accept-Language: en;q=0.6"]),
    "weights the other way round": ("accept-language", ["Accept-Language: en, de;q=0.5"], ["Accept-Language: de, en;q=0.5"]),
}


@pytest.mark.parametrize(("name", "one", "other"), ALIKE.values(), ids=ALIKE.keys())
def test_requests_that_mean_the_same_select_the_same(name: str, one: list[str], other: list[str]) -> None:
    assert fields.selecting_values([name], raw(*one)) == fields.selecting_values([name], raw(*other))


@pytest.mark.parametrize(("name", "one", "other"), DIFFERENT.values(), ids=DIFFERENT.keys())
def test_requests_that_differ_select_differently(name: str, one: list[str], other: list[str]) -> None:
    assert fields.selecting_values([name], raw(*one)) != fields.selecting_values([name], raw(*other))


# RFC 9110 section 12.5.4.
PREFERENCES = {
    "one": ("de", "de"),
    "the heaviest": ("fr;q=0.5, DE;q=1.0", "de"),
    "two alike": ("en, de", None),
    "none": ("", None),
    "refused": ("de;q=0", None),
    "a weight that is none": ("de;q=high", None),
    "a weight beyond one": ("de;q=0.5, fr;q=9", None),
}


@pytest.mark.parametrize(("text", "language"), PREFERENCES.values(), ids=PREFERENCES.keys())
def test_what_a_client_prefers_to_all_else(text: str, language: str | None) -> None:
    assert fields.preferred(raw(f"Accept-Language: {text}"), b"accept-language") == language


# RFC 9110 section 14.1.2, of ten bytes.
RANGES = {
    "the first two": ("bytes=0-1", [(0, 1)]),
    "from the third": ("bytes=2-", [(2, 9)]),
    "the last three": ("bytes=-3", [(7, 9)]),
    "more than there is at the end": ("bytes=-99", [(0, 9)]),
    "beyond the end": ("bytes=5-99", [(5, 9)]),
    "several": ("bytes=0-1, 4-5 ,-1", [(0, 1), (4, 5), (9, 9)]),
    "unit in capitals": ("BYTES=0-1", [(0, 1)]),
    "one of several cannot be had": ("bytes=0-1, 20-30", [(0, 1)]),
    "none can be had": ("bytes=10-", []),
    "none of the last": ("bytes=-0", []),
    "another unit": ("lines=0-1", None),
    "backwards": ("bytes=5-4", None),
    "no bounds": ("bytes=-", None),
    "no range": ("bytes=", None),
    "no numbers": ("bytes=a-b", None),
    "not the whole of it is valid": ("bytes=0-1, x", None),
    "other digits": ("bytes=²-", None),
    "more than the whole": ("bytes=0-,0-", None),
    "sixteen": ("bytes=" + ",".join(["0-0"] * 10 + ["99-"] * 6), [(0, 0)] * 10),
    "seventeen": ("bytes=" + ",".join(["0-0"] * 10 + ["99-"] * 7), None),
}


@pytest.mark.parametrize(("text", "ranges"), RANGES.values(), ids=RANGES.keys())
def test_ranges(text: str, ranges: list[tuple[int, int]] | None) -> None:
    assert fields.byte_ranges(text, 10) == ranges


def test_nothing_has_no_ranges() -> None:
    assert fields.byte_ranges("bytes=0-", 0) is None


@unhurried
@given(st.text("0123456789-, b", max_size=30), st.integers(1, 50))
def test_ranges_lie_within_the_body_and_are_not_more_than_it(text: str, length: int) -> None:
    ranges = fields.byte_ranges(f"bytes={text}", length) or []
    assert all(0 <= first <= last < length for first, last in ranges)
    assert sum(last - first + 1 for first, last in ranges) <= length


CONTENT_RANGES = {
    "a part": (["Content-Range: bytes 4-8/10"], (4, 8, 10)),
    "of unknown length": (["Content-Range: bytes 4-8/*"], None),
    "beyond the end": (["Content-Range: bytes 4-10/10"], None),
    "backwards": (["Content-Range: bytes 8-4/10"], None),
    "twice": (["Content-Range: bytes 4-8/10", "Content-Range: bytes 4-8/10"], None),
    "absent": ([], None),
}


@pytest.mark.parametrize(("lines", "stated"), CONTENT_RANGES.values(), ids=CONTENT_RANGES.keys())
def test_what_a_part_says_of_itself(lines: list[str], stated: tuple[int, int, int] | None) -> None:
    assert fields.content_range(raw(*lines)) == stated


# RFC 9111 section 3.1.
STORED = {
    "anything": ("Test-Header: 1", True),
    "what is cached for": ("Cache-Control: max-age=1", True),
    "a field that is one of the body": ("Content-Location: /a", True),
    "the connection": ("Connection: x", False),
    "what the connection names": ("Named: 1", False),
    "what the connection names, whatever its case": ("OTHER: 1", False),
    "a hop": ("Keep-Alive: 1", False),
    "the framing": ("Transfer-Encoding: chunked", False),
    "of a proxy": ("Proxy-Authenticate: x", False),
    "a cookie": ("Set-Cookie: a=b", False),
    "what needs to be asked for again": ("Secret: 1", False),
    "the id of the first request": ("X-Request-Id: 1", False),
    "the limits after the first request": ("x-ratelimit-remaining-requests: 1", False),
    "the age, which is told anew": ("Age: 1", False),
}


@pytest.mark.parametrize(("line", "kept"), STORED.values(), ids=STORED.keys())
def test_what_is_stored_of_a_response(line: str, kept: bool) -> None:
    headers = raw("Connection: named, Other", 'Cache-Control: no-cache="secret"', "Date: Sat, 21 Nov 2026 09:00:00 GMT", line)
    assert (raw(line)[0] in fields.stored(headers, NOW)) is kept


def test_a_response_without_date_is_stored_with_the_time_of_its_arrival() -> None:
    assert fields.stored(raw("A: 1"), NOW) == ((b"A", b"1"), (b"Date", b"Sat, 21 Nov 2026 09:00:00 GMT"))


# RFC 9211 section 2.
STATUSES: dict[str, tuple[dict[str, Any], bytes]] = {
    "hit": ({"ttl": 30.9}, b'llm-proxy; hit; ttl=30; key="k"'),
    "stale hit": ({"ttl": -0.5}, b'llm-proxy; hit; ttl=-1; key="k"'),
    "miss": ({"fwd": "uri-miss", "stored": True}, b'llm-proxy; fwd=uri-miss; stored; key="k"'),
    "validated": ({"fwd": "stale", "fwd_status": 304}, b'llm-proxy; fwd=stale; fwd-status=304; key="k"'),
    "waited": ({"fwd": "uri-miss", "collapsed": True}, b'llm-proxy; fwd=uri-miss; collapsed; key="k"'),
}


@pytest.mark.parametrize(("facts", "value"), STATUSES.values(), ids=STATUSES.keys())
def test_cache_status_says_what_became_of_a_request(facts: dict[str, Any], value: bytes) -> None:
    assert fields.cache_status("k", **facts) == value


@unhurried
@given(st.text(max_size=60), st.text(max_size=60))
def test_no_text_breaks_the_parsers(one: str, other: str) -> None:
    headers = [(b"Vary", one.encode("utf-8", "replace")), (b"CDN-Cache-Control", other.encode("utf-8", "replace"))]
    for text in (one, other):
        fields.seconds(fields.directives(text), "max-age")
        fields.http_date(text, NOW)
        fields.byte_ranges(f"bytes={text}", 10)
        fields.preferred([(b"accept-language", text.encode("utf-8", "replace"))], b"accept-language")
    fields.vary_names(headers)
    fields.targeted(headers, b"cdn-cache-control")
    fields.stored(headers, NOW)
