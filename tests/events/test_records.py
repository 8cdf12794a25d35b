"""Tests of the frame around a record."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy.events.records import HEAD_SIZE, claimed_size, decode, encode

payloads = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def framed(contents: list[bytes], first: int = 1) -> bytes:
    return b"".join(encode(first + index, payload) for index, payload in enumerate(contents))


@given(payloads, st.integers(1, 2**63))
def test_what_was_written_is_read(contents: list[bytes], first: int) -> None:
    data = framed(contents, first)
    records = list(decode(data))
    assert [record.payload for record in records] == contents
    assert [record.sequence for record in records] == list(range(first, first + len(contents)))
    assert not records or records[-1].end == len(data)


@given(payloads, st.data())
def test_a_cut_leaves_the_records_before_it(contents: list[bytes], data: st.DataObject) -> None:
    whole = framed(contents)
    cut = data.draw(st.integers(0, len(whole)))
    kept = [record.payload for record in decode(whole[:cut])]
    assert kept == contents[: len(kept)]
    assert len(framed(contents[: len(kept) + 1])) > cut or len(kept) == len(contents)


def test_twenty_thousand_damages_never_give_a_wrong_record() -> None:
    chance = random.Random(4)
    contents = [chance.randbytes(chance.randint(1, 60)) for _ in range(12)]
    whole = framed(contents)
    for _ in range(20_000):
        damaged = bytearray(whole)
        at = chance.randrange(len(whole))
        kind = chance.randrange(3)
        if kind == 0:
            damaged[at] ^= 1 << chance.randrange(8)
        elif kind == 1:
            damaged[at : at + 64] = bytes(len(damaged[at : at + 64]))
        else:
            del damaged[at:]
        records = list(decode(bytes(damaged)))
        assert [record.payload for record in records] == contents[: len(records)]
        sound = records[-1].end if records else 0
        assert damaged == whole or sound <= at + 64


@pytest.mark.parametrize(
    "data",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(bytes(4096), id="a page of zeros"),
        pytest.param(encode(1, b"x")[:-1], id="a record cut short"),
        pytest.param(b"\xff" * 64, id="an absurd length"),
        pytest.param(encode(1, b"x")[: HEAD_SIZE - 1], id="a head cut short"),
    ],
)
def test_no_record_is_read_from(data: bytes) -> None:
    assert list(decode(data)) == []


def test_a_record_out_of_sequence_ends_the_reading() -> None:
    data = encode(1, b"a") + encode(3, b"b")
    assert [record.sequence for record in decode(data)] == [1]
    assert list(decode(encode(5, b"a"), previous=3)) == []


@pytest.mark.parametrize(
    ("data", "size"),
    [(encode(1, b"x" * 100)[:20], HEAD_SIZE + 100), (bytes(HEAD_SIZE), 0), (b"\xff" * 20, 0), (b"", 0)],
    ids=["a beginning", "zeros", "an absurd length", "nothing"],
)
def test_the_size_that_a_beginning_claims(data: bytes, size: int) -> None:
    assert claimed_size(data) == size
