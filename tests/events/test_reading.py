"""Tests of reading the log for a sink."""

import pathlib
from collections.abc import Iterator

import pytest

from llm_proxy.events import reading
from llm_proxy.events.reading import LARGEST_BATCH, Backlog, Entry, Gap, Reader, SpoolSource
from llm_proxy.events.records import HEAD_SIZE
from llm_proxy.events.spool import Spool


@pytest.fixture
def spool(tmp_path: pathlib.Path) -> Iterator[Spool]:
    opened = Spool(tmp_path, ("file", "lunary"), segment_bytes=200)
    opened.open()
    yield opened
    opened.close()


def fill(spool: Spool, *payloads: bytes) -> None:
    for payload in payloads:
        spool.append(payload)
        spool.tick()


def test_reading_moves_nothing_until_it_is_settled(spool: Spool) -> None:
    fill(spool, b"a", b"b", b"c")
    reader = Reader(spool, "file")
    assert reader.read(2) == reader.read(2) == [Entry(1, b"a"), Entry(2, b"b")]
    reader.settle(1)
    assert reader.read(5) == [Entry(2, b"b"), Entry(3, b"c")]
    assert Reader(spool, "lunary").read(1) == [Entry(1, b"a")], "the sinks do not share their place"


def test_what_is_settled_in_parts_is_settled(spool: Spool) -> None:
    fill(spool, b"a", b"b", b"c", b"d")
    reader = Reader(spool, "file")
    reader.read(4)
    reader.settle(1)
    reader.settle(2)
    assert reader.read(4) == [Entry(4, b"d")]


def test_a_batch_is_bounded_by_its_bytes(spool: Spool) -> None:
    fill(spool, bytes(LARGEST_BATCH - 1), b"b", b"c")
    assert len(Reader(spool, "file").read(100)) == 2


def test_the_backlog_is_exact_over_segments(spool: Spool) -> None:
    fill(spool, *[bytes(84)] * 10)
    reader = Reader(spool, "file")
    assert reader.backlog() == Backlog(10, 10 * (84 + HEAD_SIZE))
    reader.read(7)
    reader.settle(7)
    assert reader.backlog() == Backlog(3, 3 * (84 + HEAD_SIZE))
    reader.read(7)
    reader.settle(3)
    assert reader.backlog() == Backlog(0, 0)


def test_a_segment_that_somebody_removed_is_a_gap(spool: Spool, tmp_path: pathlib.Path) -> None:
    fill(spool, *[bytes(84)] * 6)
    second = sorted(tmp_path.glob("*.seg"))[1]
    second.unlink()
    assert [item for item in Reader(spool, "file").read(10) if isinstance(item, Gap)] == [Gap(3, 4)]


async def test_a_source_settles_on_the_disk(spool: Spool) -> None:
    fill(spool, b"a", b"b")
    source = SpoolSource(Reader(spool, "file"))
    assert await source.read(10) == [Entry(1, b"a"), Entry(2, b"b")]
    await source.settle(2)
    assert spool.cursors["file"].saved == 2
    assert source.backlog() == Backlog(0, 0)


async def test_a_source_has_the_next_batches_in_memory(spool: Spool) -> None:
    fill(spool, *[bytes([65 + number]) for number in range(5)])
    source = SpoolSource(Reader(spool, "file"))
    assert [item.sequence for item in await source.read(2) if isinstance(item, Entry)] == [1, 2]
    for segment in spool.segments():
        segment.path.unlink()
    assert await source.read(2) == [Entry(1, b"A"), Entry(2, b"B")]
    await source.settle(1)
    assert await source.read(2) == [Entry(2, b"B"), Entry(3, b"C")]
    assert source.backlog().count == 4


async def test_what_came_since_is_read_when_the_memory_has_less_than_a_batch(spool: Spool) -> None:
    fill(spool, b"a", b"b")
    source = SpoolSource(Reader(spool, "file"))
    await source.read(2)
    await source.settle(1)
    fill(spool, b"c")
    assert await source.read(2) == [Entry(2, b"b"), Entry(3, b"c")]


async def test_the_place_of_a_sink_is_noted_now_and_then_and_at_the_end(spool: Spool, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(spool, b"a", b"b", b"c", b"d")
    cursor, source = spool.cursors["file"], SpoolSource(Reader(spool, "file"))
    await source.read(1)
    await source.settle(1)
    assert cursor.saved == 1
    monkeypatch.setattr(reading, "SAVE_SECONDS", 1e9)
    await source.settle(1)
    await source.settle(1)
    assert (cursor.position, cursor.saved) == (3, 1)
    await source.settle(1)
    assert cursor.saved == 4


async def test_the_place_is_noted_where_the_end_shows_only_at_the_next_reading(
    spool: Spool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(reading, "SAVE_SECONDS", 1e9)
    monkeypatch.setattr(reading, "READ_AHEAD", 2)
    fill(spool, b"a", b"b")
    cursor, source = spool.cursors["file"], SpoolSource(Reader(spool, "file"))
    await source.read(2)
    await source.settle(2)
    assert cursor.saved == 0
    assert await source.read(2) == []
    assert cursor.saved == 2
