"""Faults are read from headers, then done to a body."""

import gzip
import zlib

import pytest

from llm_proxy.fake_provider.faults import NO_FAULTS, Faults, compressed, disturbed, read_faults
from llm_proxy.fake_provider.refusals import Refused


def test_headers_of_a_request_win_over_the_defaults() -> None:
    headers = {"x-fake-delay": "0.5", "X-Fake-Bad-JSON": "1", "X-Fake-Cut": "0", "X-Fake-Gzip": "0", "Accept": "*/*"}
    told = read_faults({**headers, "X-Fake-Retry-After": "7"}, Faults(delay=9, words=3, gzip=True))
    assert told == Faults(delay=0.5, words=3, bad_json=True, cut=0, gzip=False, retry_after="7")


def test_without_fault_headers_the_defaults_hold() -> None:
    defaults = Faults(drip=1)
    assert read_faults({"X-Fakery": "1", "Accept": "*/*"}, defaults) is defaults


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("X-Fake-Delay", "soon"),
        ("X-Fake-Delay", "nan"),
        ("X-Fake-Delay", "inf"),
        ("X-Fake-Cut", "-1"),
        ("X-Fake-Stall", "1.5"),
        ("X-Fake-Words", "999999999"),
        ("X-Fake-Oops", "1"),
        ("X-Fake-", "1"),
        ("X-Fake-Gzip", ""),
    ],
)
def test_unusable_fault_header_is_refused(name: str, text: str) -> None:
    with pytest.raises(Refused) as caught:
        read_faults({name: text}, Faults())
    assert caught.value.status == 400


def test_body_without_faults_stays_as_it_is() -> None:
    headers: dict[str, str] = {}
    assert disturbed(b'{"a": 1}', NO_FAULTS, {"Accept-Encoding": "gzip"}, headers) == b'{"a": 1}'
    assert headers == {}


def test_bad_json_leaves_half_of_a_body_and_of_each_event() -> None:
    broken = Faults(bad_json=True)
    assert disturbed(b'{"a": 1}', broken, {}, {}) == b'{"a"'
    assert list(disturbed(iter([b"data: 12\n\n"]), broken, {}, {})) == [b"data:\n\n"]


@pytest.mark.parametrize("accepted", ["gzip", "br, gzip;q=0.5"])
def test_gzip_is_said_in_the_headers(accepted: str) -> None:
    headers: dict[str, str] = {}
    body = disturbed(b"x" * 100, Faults(gzip=True), {"Accept-Encoding": accepted}, headers)
    assert isinstance(body, bytes)
    assert gzip.decompress(body) == b"x" * 100
    assert headers == {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}


def test_gzip_waits_for_a_client_that_accepts_it() -> None:
    headers: dict[str, str] = {}
    assert disturbed(b"x", Faults(gzip=True), {}, headers) == b"x"
    assert headers == {}


def test_each_compressed_chunk_is_readable_at_once() -> None:
    inflate = zlib.decompressobj(wbits=31)
    chunks = compressed([b"one", b"two"])
    assert inflate.decompress(next(chunks)) == b"one"
    assert inflate.decompress(next(chunks)) == b"two"
    inflate.decompress(next(chunks))
    assert inflate.eof
