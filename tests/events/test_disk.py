"""Tests of the real disk, and that the simulated one is like it."""

import errno
import pathlib

import pytest
from stage.disk import SimulatedDisk

from llm_proxy.events.disk import Disk


@pytest.fixture(params=[Disk, SimulatedDisk], ids=["real", "simulated"])
def disk(request: pytest.FixtureRequest) -> Disk:
    made: Disk = request.param()
    return made


def test_a_file_grows_at_its_end_even_after_a_cut(disk: Disk, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    fd = disk.create(path)
    assert disk.write(fd, b"abcdef") == 6
    disk.cut(fd, 2)
    disk.write(fd, b"XY")
    disk.sync(fd)
    disk.close(fd)
    assert disk.read(path, 1, 10) == b"bXY"
    assert disk.size(path) == 4


def test_an_opened_file_is_written_from_its_beginning(disk: Disk, tmp_path: pathlib.Path) -> None:
    path = tmp_path / "file"
    fd = disk.create(path)
    disk.write(fd, b"abcdef")
    disk.close(fd)
    fd = disk.open(path)
    disk.write(fd, b"XY")
    disk.close(fd)
    assert disk.read(path, 0, 10) == b"XYcdef"


def test_names_are_made_replaced_and_taken_away(disk: Disk, tmp_path: pathlib.Path) -> None:
    for name in ("a", "b"):
        disk.close(disk.create(tmp_path / name))
    disk.replace(tmp_path / "a", tmp_path / "c")
    disk.unlink(tmp_path / "b")
    disk.sync_folder(tmp_path)
    assert disk.list(tmp_path) == ["c"]


def test_what_cannot_be_is_an_error(disk: Disk, tmp_path: pathlib.Path) -> None:
    disk.close(disk.create(tmp_path / "there"))
    with pytest.raises(FileExistsError):
        disk.create(tmp_path / "there")
    for call in (disk.open, disk.unlink, disk.size, lambda path: disk.read(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            call(tmp_path / "absent")
    with pytest.raises(OSError) as caught:
        disk.write(-1, b"x")
    assert caught.value.errno == errno.EBADF
