"""An entry comes back as it was; anything else is no entry."""

import dataclasses

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llm_proxy.cache import Entry, Part, Terms
from llm_proxy.cache.packed import VERSION, pack, unpack

WHOLE = Terms(60.5, 5, 9, False, True, ("accept", "foo"), ("text/plain, \xff", None), "accept: text/plain\nfoo")
ENTRY = Entry(
    "p", "GET", "/v1/models?", 200, "OK", ((b"ETag", b'"a"'), (b"X", b"\xff\x80 \t")), b"\x00\xffbody", 1.8e9 + 0.1, 3.7, WHOLE
)
PARTIAL = dataclasses.replace(ENTRY, status=206, body=b"", terms=dataclasses.replace(WHOLE, part=Part("bytes=0-1", 0, 1, 10**18)))


@pytest.mark.parametrize("entry", [ENTRY, PARTIAL], ids=["whole", "a part"])
def test_an_entry_comes_back_as_it_was(entry: Entry) -> None:
    packed = pack(entry)
    assert packed and unpack(packed) == entry
    assert len(packed) < len(entry.body) + 350


def test_another_version_is_no_entry() -> None:
    packed = pack(ENTRY)
    assert packed
    assert unpack(bytes([VERSION + 1]) + packed[1:]) is None


@settings(deadline=None, max_examples=200)
@given(st.binary(max_size=60), st.integers(0, 400), st.integers(0, 255))
@example(b"", 0, 0)
@example(bytes([VERSION, 0, 0, 0, 0, 0, 0, 0, 0]), 400, 1)
def test_garbage_is_no_entry(garbage: bytes, at: int, flip: int) -> None:
    packed = pack(ENTRY)
    assert packed
    spoiled = bytearray(packed)
    spoiled[at % len(packed)] ^= flip
    for data in (garbage, packed[: at % len(packed)], packed + garbage + b"!", bytes(spoiled) if flip else b""):
        assert unpack(data) is None


@pytest.mark.parametrize(
    "entry",
    [
        dataclasses.replace(ENTRY, reason="\udcff"),
        dataclasses.replace(PARTIAL, terms=dataclasses.replace(WHOLE, part=Part("bytes=0-1", 0, 1, 10**30))),
    ],
    ids=["text that is not UTF-8", "a length beyond 64 bits"],
)
def test_what_json_cannot_say_is_not_packed(entry: Entry) -> None:
    assert pack(entry) is None


def test_version_1_is_of_these_fields() -> None:
    """Whoever changes them raises `VERSION`, and then this."""
    assert VERSION == 1
    assert [[field.name for field in dataclasses.fields(each)] for each in (Entry, Terms)] == [
        ["project", "method", "path", "status", "reason", "headers", "body", "response_time", "initial_age", "terms"],
        [
            "lifetime",
            "stale_while_revalidate",
            "stale_if_error",
            "no_cache",
            "must_revalidate",
            "vary",
            "selecting",
            "variant",
            "part",
        ],
    ]
    assert Part._fields == ("asked", "first", "last", "complete")
