"""Tests of the cursors."""

import pathlib
import random

import pytest
from stage.disk import SimulatedDisk

from llm_proxy.events.cursors import Cursor
from llm_proxy.events.disk import Disk

FOLDER = pathlib.Path("events")


def loaded(disk: Disk, folder: pathlib.Path = FOLDER) -> Cursor:
    cursor = Cursor(disk, folder, "lunary")
    cursor.load()
    return cursor


def saved(disk: Disk, *positions: int, folder: pathlib.Path = FOLDER) -> Cursor:
    cursor = loaded(disk, folder)
    for position in positions:
        cursor.advance(position)
        assert cursor.save()
    return cursor


def test_a_place_is_found_again_on_a_real_disk(tmp_path: pathlib.Path) -> None:
    saved(Disk(), 3, 17, folder=tmp_path)
    cursor = loaded(Disk(), tmp_path)
    assert (cursor.known, cursor.position, cursor.saved) == (True, 17, 17)
    assert [path.name for path in tmp_path.iterdir()] == ["lunary.cursor"]


def test_a_sink_without_a_file_has_no_known_place() -> None:
    assert not loaded(SimulatedDisk()).known


@pytest.mark.parametrize("damage", [b"", b"\0" * 22, b"nonsense of no meaning"], ids=["empty", "zeros", "nonsense"])
def test_a_damaged_file_is_no_place(tmp_path: pathlib.Path, damage: bytes) -> None:
    (tmp_path / "lunary.cursor").write_bytes(damage)
    assert not loaded(Disk(), tmp_path).known


def test_a_power_loss_keeps_what_was_saved() -> None:
    for seed in range(100):
        disk = SimulatedDisk()
        cursor = saved(disk, 5)
        cursor.advance(9)
        disk.room = seed % 40
        if cursor.save():
            assert cursor.saved == 9
        disk.lose_power(random.Random(seed))
        assert loaded(disk).position >= cursor.saved


def test_a_full_disk_does_not_stop_a_cursor() -> None:
    disk = SimulatedDisk()
    cursor = saved(disk, 5)
    disk.room = 0
    cursor.advance(6)
    assert cursor.save()
    disk.lose_power(random.Random(1))
    assert loaded(disk).position == 6


def test_a_refusing_disk_leaves_the_place_as_it_was_saved() -> None:
    disk = SimulatedDisk()
    cursor = saved(disk, 5)
    disk.refusing = True
    cursor.advance(6)
    assert not cursor.save()
    assert (cursor.position, cursor.saved) == (6, 5)
    assert loaded(disk).position == 5


def test_a_place_never_goes_back() -> None:
    cursor = saved(SimulatedDisk(), 8)
    cursor.advance(3)
    assert cursor.position == 8
