"""Tests of reading the files of the log."""

import pathlib
import random

import pytest

from llm_proxy.events.disk import Disk
from llm_proxy.events.records import encode
from llm_proxy.events.segments import CHUNK, path_of, quarantine, records_of, recover


def write(folder: pathlib.Path, ordinal: int, content: bytes) -> pathlib.Path:
    path = path_of(folder, ordinal)
    path.write_bytes(content)
    return path


def framed(first: int, *contents: bytes) -> bytes:
    return b"".join(encode(first + index, content) for index, content in enumerate(contents))


@pytest.mark.parametrize(
    "sizes", [[CHUNK], [CHUNK - 16], [CHUNK - 17, 5], [10, CHUNK * 2, 10], [1000] * 3000], ids=lambda sizes: str(sizes[:3])
)
def test_records_are_read_over_the_borders_of_chunks(tmp_path: pathlib.Path, sizes: list[int]) -> None:
    contents = [random.Random(index).randbytes(size) for index, size in enumerate(sizes)]
    path = write(tmp_path, 1, framed(1, *contents))
    records = list(records_of(Disk(), path, 0, path.stat().st_size))
    assert [record.payload for record in records] == contents
    assert records[-1].end == path.stat().st_size
    middle = records[len(records) // 2].end
    assert len(list(records_of(Disk(), path, middle, path.stat().st_size))) == len(records) - len(records) // 2 - 1


@pytest.mark.parametrize("claim", [CHUNK * 2, 100], ids=["more than a chunk", "less than a chunk"])
def test_a_file_shorter_than_it_claims_ends_the_reading(tmp_path: pathlib.Path, claim: int) -> None:
    path = write(tmp_path, 1, encode(1, bytes(claim))[:50])
    assert list(records_of(Disk(), path, 0, CHUNK * 4)) == []


def test_a_folder_is_recovered_to_the_last_sound_record(tmp_path: pathlib.Path) -> None:
    write(tmp_path, 3, framed(1, b"a", b"b"))
    write(tmp_path, 4, framed(3, b"c", b"d") + b"torn")
    write(tmp_path, 5, b"\0" * 700)
    write(tmp_path, 6, b"")
    (tmp_path / "file.cursor").write_bytes(b"x")
    (tmp_path / "00000009.bad").write_bytes(b"x")
    found = recover(Disk(), tmp_path)
    assert [(segment.ordinal, segment.first) for segment in found.segments] == [(3, 1), (4, 3), (5, 0), (6, 0)]
    assert (found.last, found.ordinal) == (4, 10)
    assert found.damage == {4: len(framed(3, b"c", b"d")), 5: 0}


def test_a_folder_that_is_not_there_is_an_empty_log(tmp_path: pathlib.Path) -> None:
    found = recover(Disk(), tmp_path / "absent")
    assert (found.segments, found.last, found.ordinal) == ([], 0, 1)


def test_what_is_unsound_moves_beside(tmp_path: pathlib.Path) -> None:
    path = write(tmp_path, 1, b"sound" + b"x" * (CHUNK + 7))
    quarantine(Disk(), path, 5)
    assert path.read_bytes() == b"sound"
    assert (tmp_path / "00000001.bad").read_bytes() == b"x" * (CHUNK + 7)
    quarantine(Disk(), path, 5)
    assert (tmp_path / "00000001.bad").stat().st_size == CHUNK + 7
