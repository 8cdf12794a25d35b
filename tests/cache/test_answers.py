"""What is made of a stored response: an answer to a request, or a newer one of itself."""

from email.utils import formatdate

import pytest

from llm_proxy.cache import Entry, Freshened, Hit, Lookup, Miss, Served, rules

NOW = 1_800_000_000.0
BODY = b"0123456789"


def date(seconds: float) -> str:
    """An HTTP date that many seconds from the present of these tests."""
    return formatdate(NOW + seconds, usegmt=True)


def raw(*lines: str) -> list[tuple[bytes, bytes]]:
    """Headers from lines as they look on the wire."""
    parts = [line.partition(":") for line in lines]
    return [(name.encode(), value.strip().encode("latin-1")) for name, _, value in parts]


def request(*lines: str, method: str = "GET") -> Lookup:
    return rules.read_request(method, raw(*lines), post_listed=True)


def stored(*lines: str, status: int = 200, asked: Lookup | None = None, body: bytes = BODY) -> Entry:
    asked = asked or request()
    headers = raw("Cache-Control: max-age=60", f"Date: {date(0)}", *lines)
    found = rules.may_store(asked, status, headers, NOW, default_ttl=300)
    assert found is not None
    response = (status, "Fine", headers)
    return rules.entry_of(found, asked, response, body, project="p", path="/v1", request_time=NOW, response_time=NOW)


def value(headers: list[tuple[bytes, bytes]] | tuple[tuple[bytes, bytes], ...], name: str) -> str | None:
    """The only value of a field."""
    found = [value.decode("latin-1") for field, value in headers if field.lower() == name.encode()]
    assert len(found) < 2
    return found[0] if found else None


# Whole answers (RFC 9111 section 5.1).


def test_a_hit_is_the_stored_response_with_its_age() -> None:
    entry = stored("Age: 30", "A: 1")
    served = rules.serve(entry, request(), NOW + 3.9)
    headers = [*raw("Cache-Control: max-age=60", f"Date: {date(0)}", "A: 1"), (b"Age", b"33")]
    assert served == Served(200, "Fine", headers, BODY)


def test_head_is_answered_from_a_get_with_the_length_of_its_body() -> None:
    entry = stored()
    assert rules.decide([entry], request(method="HEAD"), NOW) == Hit(entry)
    assert rules.serve(entry, request("Range: bytes=0-1", method="HEAD"), NOW).body == BODY


@pytest.mark.parametrize("status", [204, 404, 503])
def test_other_statuses_are_served_as_they_came(status: int) -> None:
    served = rules.serve(stored('ETag: "a"', status=status), request('If-None-Match: "a"', "Range: bytes=0-1"), NOW)
    assert served.status == (304 if status == 204 else status)


# Conditions of the client (RFC 9110 sections 8.8.3.2, 13.1.2, 13.1.3, 13.2.2; RFC 9111 section 4.3.2).

STRONG, WEAK, CHANGED = 'ETag: "a"', 'ETag: W/"a"', f"Last-Modified: {date(-100)}"
CONDITIONS = {
    "the same tag": ([STRONG], ['If-None-Match: "a"'], 304),
    "another tag": ([STRONG], ['If-None-Match: "b"'], 200),
    "the first of several": ([STRONG], ['If-None-Match: "a", "b"'], 304),
    "the last of several": ([STRONG], ['If-None-Match: "b", "a"'], 304),
    "in another line": ([STRONG], ['If-None-Match: "b"', 'If-None-Match: "a"'], 304),
    "a weak tag": ([WEAK], ['If-None-Match: W/"a"'], 304),
    "a weak tag for a strong one": ([STRONG], ['If-None-Match: W/"a"'], 304),
    "a strong tag for a weak one": ([WEAK], ['If-None-Match: "a"'], 304),
    "a tag in other letters": ([STRONG], ['If-None-Match: "A"'], 200),
    "a tag with a comma": (['ETag: "a,b"'], ['If-None-Match: "a,b"'], 304),
    "a tag without quotes": (["ETag: a"], ["If-None-Match: a"], 304),
    "anything": ([STRONG], ["If-None-Match: *"], 304),
    "a tag where none is": ([], ['If-None-Match: "a"'], 200),
    "not changed since": ([CHANGED], [f"If-Modified-Since: {date(-100)}"], 304),
    "not changed since then or later": ([CHANGED], [f"If-Modified-Since: {date(-50)}"], 304),
    "changed since": ([CHANGED], [f"If-Modified-Since: {date(-101)}"], 200),
    "since no date": ([CHANGED], ["If-Modified-Since: 0"], 200),
    "Date stands in for Last-Modified": ([], [f"If-Modified-Since: {date(0)}"], 304),
    "Date stands in for Last-Modified, and is later": ([], [f"If-Modified-Since: {date(-1)}"], 200),
    "the tag outweighs the date": ([STRONG, CHANGED], ['If-None-Match: "b"', f"If-Modified-Since: {date(0)}"], 200),
    "the tag holds whatever the date": ([STRONG, CHANGED], ['If-None-Match: "a"', f"If-Modified-Since: {date(-999)}"], 304),
    "before a range": ([STRONG], ['If-None-Match: "a"', "Range: bytes=0-1"], 304),
}


@pytest.mark.parametrize(("lines", "asked", "status"), CONDITIONS.values(), ids=CONDITIONS.keys())
def test_who_has_it_already_gets_304(lines: list[str], asked: list[str], status: int) -> None:
    served = rules.serve(stored(*lines), request(*asked), NOW)
    assert served.status == status
    assert served.body == (None if status == 304 else BODY)


def test_304_says_what_a_client_needs_to_bring_its_own_up_to_date() -> None:
    lines = ['ETag: "a"', "Vary: Foo", "Content-Location: /a", "Expires: 0", "Content-Type: text/plain", "A: 1"]
    served = rules.serve(stored(*lines), request('If-None-Match: "a"'), NOW + 5)
    assert {name.decode() for name, _ in served.headers} == {
        "Cache-Control", "Date", "ETag", "Vary", "Content-Location", "Expires", "Age",
    }  # fmt: skip


def test_a_post_has_no_conditions() -> None:
    asked = request("Cache-Control: public", 'If-None-Match: "a"', method="POST")
    assert rules.serve(stored('ETag: "a"', asked=asked), asked, NOW).status == 200


# Ranges (RFC 9110 sections 14.2, 15.3.7, 15.5.17).

RANGES = {
    "the first two": ("bytes=0-1", 206, b"01", "bytes 0-1/10"),
    "without an end": ("bytes=7-", 206, b"789", "bytes 7-9/10"),
    "the last two": ("bytes=-2", 206, b"89", "bytes 8-9/10"),
    "beyond the end": ("bytes=10-", 416, b"", "bytes */10"),
    "another unit": ("lines=0-1", 200, BODY, None),
    "too many": ("bytes=" + ",".join(["0-0"] * 17), 200, BODY, None),
}


@pytest.mark.parametrize(("asked", "status", "body", "stated"), RANGES.values(), ids=RANGES.keys())
def test_a_range_of_a_whole_response(asked: str, status: int, body: bytes, stated: str | None) -> None:
    served = rules.serve(stored("Content-Type: text/plain", "A: 1"), request(f"Range: {asked}"), NOW)
    assert (served.status, served.body) == (status, body)
    assert value(served.headers, "content-range") == stated
    assert value(served.headers, "a") == "1"
    assert value(served.headers, "content-type") == (None if status == 416 else "text/plain")


def test_a_content_range_of_a_whole_response_is_what_it_was_until_a_range_is_asked() -> None:
    entry = stored("Content-Range: anything")
    assert value(rules.serve(entry, request(), NOW).headers, "content-range") == "anything"
    assert value(rules.serve(entry, request("Range: bytes=0-0"), NOW).headers, "content-range") == "bytes 0-0/10"


def test_several_ranges_are_parts_of_one_body() -> None:
    served = rules.serve(stored("Content-Type: text/plain"), request("Range: bytes=0-1,-2"), NOW)
    kind, _, boundary = (value(served.headers, "content-type") or "").partition("; boundary=")
    assert (served.status, kind) == (206, "multipart/byteranges")
    assert value(served.headers, "content-range") is None
    assert (
        served.body
        == (
            f"--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 0-1/10\r\n\r\n01\r\n"
            f"--{boundary}\r\nContent-Type: text/plain\r\nContent-Range: bytes 8-9/10\r\n\r\n89\r\n--{boundary}--\r\n"
        ).encode()
    )


# RFC 9110 section 13.1.5.
IF_RANGES = {
    "the same tag": ([STRONG], '"a"', 206),
    "another tag": ([STRONG], '"b"', 200),
    "a weak tag": ([WEAK], 'W/"a"', 200),
    "a strong tag for a weak one": ([WEAK], '"a"', 200),
    "the same date": ([CHANGED], date(-100), 206),
    "another date": ([CHANGED], date(-99), 200),
    "a date too near to be sure": ([f"Last-Modified: {date(0)}"], date(0), 200),
    "no date": ([CHANGED], "a", 200),
}


@pytest.mark.parametrize(("lines", "condition", "status"), IF_RANGES.values(), ids=IF_RANGES.keys())
def test_a_range_only_of_what_the_client_has_begun(lines: list[str], condition: str, status: int) -> None:
    served = rules.serve(stored(*lines), request("Range: bytes=0-1", f"If-Range: {condition}"), NOW)
    assert served.status == status


PARTS = {
    "the same again": ("bytes=5-14", BODY, "bytes 5-14/20"),
    "a part of it": ("bytes=6-7", b"12", "bytes 6-7/20"),
    "the rest of it": ("bytes=13-14", b"89", "bytes 13-14/20"),
}


@pytest.mark.parametrize(("asked", "body", "stated"), PARTS.values(), ids=PARTS.keys())
def test_a_range_of_a_stored_part(asked: str, body: bytes, stated: str) -> None:
    entry = stored("Content-Range: bytes 5-14/20", status=206, asked=request("Range: bytes=5-14"))
    served = rules.serve(entry, request(f"Range: {asked}"), NOW)
    assert (served.status, served.body, value(served.headers, "content-range")) == (206, body, stated)


def test_a_part_that_came_shorter_than_it_said_is_no_longer_when_served() -> None:
    entry = stored("Content-Range: bytes 4-9/10", status=206, asked=request("Range: bytes=-5"), body=b"01234")
    served = rules.serve(entry, request("Range: bytes=6-"), NOW)
    assert (served.body, value(served.headers, "content-range")) == (b"234", "bytes 6-8/10")
    assert entry.positions(request("Range: bytes=9-")) is None


# Validated (RFC 9111 sections 3.2, 4.3.4): stored at NOW, a 304 came 100 seconds later.


def confirmed(entry: Entry, *lines: str, asked: Lookup | None = None) -> Freshened:
    return rules.freshened(entry, asked or request(), raw(*lines), request_time=NOW + 100, response_time=NOW + 100)


UPDATES = {
    "a field": ("Test-Header: old", "Test-Header: new", "new"),
    "a field that it lacks": ("Test-Header: old", "Other: new", "old"),
    "a field that is new": ("Other: old", "Test-Header: new", "new"),
    "a field in other letters": ("Test-Header: old", "TEST-HEADER: new", "new"),
    "a cookie": ("A: 1", "Set-Cookie: a=b", None),
    "the type": ("Content-Type: old", "Content-Type: new", "new"),
    "the location": ("Content-Location: old", "Content-Location: new", "new"),
    "not the coding": ("Content-Encoding: old", "Content-Encoding: new", "old"),
    "not the hash": ("Content-MD5: old", "Content-MD5: new", "old"),
    "not the range": ("Content-Range: old", "Content-Range: new", "old"),
    "not the tag that was asked about": ("ETag: old", "ETag: new", "old"),
}


@pytest.mark.parametrize(("old", "new", "left"), UPDATES.values(), ids=UPDATES.keys())
def test_what_a_304_updates(old: str, new: str, left: str | None) -> None:
    entry, keep = confirmed(stored(old, 'Last-Modified: "x"'), new)
    name = "test-header" if "Test-Header" in old + new else new.partition(":")[0].lower()
    assert keep and entry.body == BODY
    assert value(entry.headers, name) == left


def test_a_304_makes_it_fresh_again() -> None:
    entry, keep = confirmed(stored('ETag: "a"', "Age: 50"), f"Date: {date(100)}")
    assert keep and entry.age(NOW + 100) == 0 and entry.ttl(NOW + 130) == 30


def test_a_304_may_be_aged_itself() -> None:
    assert confirmed(stored('ETag: "a"'), f"Date: {date(100)}", "Age: 20")[0].age(NOW + 100) == 20


def test_a_304_without_date_is_as_new_as_its_arrival() -> None:
    entry, _ = confirmed(stored('ETag: "a"'))
    assert entry.age(NOW + 100) == 0
    assert value(entry.headers, "date") == date(100)


def test_a_304_changes_the_lifetime() -> None:
    entry, _ = confirmed(stored('ETag: "a"'), "Cache-Control: max-age=3600")
    assert entry.terms.lifetime == 3600
    assert value(entry.headers, "cache-control") == "max-age=3600"


@pytest.mark.parametrize("line", ["Cache-Control: no-store", "Vary: *"])
def test_a_304_may_forbid_to_keep_it(line: str) -> None:
    entry, keep = confirmed(stored('ETag: "a"'), line)
    assert not keep
    assert rules.serve(entry, request(), NOW + 100).body == BODY
    assert not isinstance(rules.decide([entry], request(), NOW + 100), Hit)


def test_a_confirmed_entry_stays_the_variant_that_it_was() -> None:
    entry = stored('ETag: "a"', "Vary: Foo", asked=request("Foo: 1"))
    assert confirmed(entry, asked=request("Foo: 1"))[0].terms.variant == entry.terms.variant
    moved, _ = confirmed(entry, "Vary: Bar", asked=request("Bar: 2"))
    assert rules.decide([moved], request("Bar: 2"), NOW + 100) == Hit(moved)


def test_a_confirmed_part_stays_a_part() -> None:
    asked = request("Range: bytes=5-14")
    entry = stored('ETag: "a"', "Content-Range: bytes 5-14/20", status=206, asked=asked)
    for line in ("A: 1", "Vary: Foo"):
        after, keep = confirmed(entry, line, asked=asked)
        assert keep and rules.decide([after], request(), NOW + 100) == Miss("partial")


def test_a_confirmed_error_stays_one() -> None:
    assert confirmed(stored('ETag: "a"', status=404))[0].status == 404
    assert confirmed(stored('ETag: "a"', status=403))[1]
    assert not confirmed(stored('ETag: "a"', status=403), "Cache-Control: foo")[1], "no 403 is stored unless its provider says so"


# RFC 9111 section 4.3.5.
HEADS = {
    "nothing else": (["Cache-Control: max-age=3600"], True),
    "the same length": (["Content-Length: 10"], True),
    "another length": (["Content-Length: 11"], False),
    "the same tag": (['ETag: "a"'], True),
    "another tag": (['ETag: "b"'], False),
    "another change": ([f"Last-Modified: {date(0)}"], False),
}


@pytest.mark.parametrize(("lines", "keep"), HEADS.values(), ids=HEADS.keys())
def test_a_head_confirms_or_refutes_what_is_stored(lines: list[str], keep: bool) -> None:
    entry = stored('ETag: "a"', "A: 1")
    asked = request(method="HEAD")
    after = rules.freshened_by_head(entry, asked, raw(*lines), request_time=NOW + 100, response_time=NOW + 100)
    assert after.keep is keep
    assert after.entry.age(NOW + 100) == (0 if keep else 100)
    assert value(after.entry.headers, "a") == "1"
