"""Tests of whose folder is whose."""

import os
import pathlib
import subprocess
import sys

import pytest

from llm_proxy.events.instances import claim_dead, claim_own, living, trim_dead

OWNER = """
import pathlib, sys
from llm_proxy.events.instances import claim_own
claim = claim_own(pathlib.Path(sys.argv[1]), "host")
(claim.folder / "00000001.seg").write_bytes(b"x")
print(claim.folder.name, flush=True)
sys.stdin.read()
"""


def test_two_living_processes_have_two_folders(tmp_path: pathlib.Path) -> None:
    first, second = claim_own(tmp_path, "host"), claim_own(tmp_path, "host")
    assert [first.folder.name, second.folder.name] == ["host-1", "host-2"]
    first.release()
    again = claim_own(tmp_path, "host")
    assert again.folder.name == "host-1", "who starts again finds what it left"
    again.release()
    second.release()


def test_the_living_are_told_from_the_dead(tmp_path: pathlib.Path) -> None:
    first, second = claim_own(tmp_path, "host"), claim_own(tmp_path, "host")
    second.release()
    (tmp_path / "no-log").mkdir()
    assert living(tmp_path) == ["host-1"]
    first.release()
    assert living(tmp_path) == living(tmp_path / "nowhere") == []


def test_the_folder_of_a_killed_process_is_taken_over_and_that_of_a_living_one_is_not(tmp_path: pathlib.Path) -> None:
    with subprocess.Popen([sys.executable, "-c", OWNER, str(tmp_path)], stdin=-1, stdout=-1) as owner:
        assert owner.stdout and owner.stdout.readline() == b"host-1\n"
        ours = claim_own(tmp_path, "host")
        assert claim_dead(tmp_path) == []
        owner.kill()
    [claim] = claim_dead(tmp_path)
    assert claim.folder.name == "host-1"
    assert claim_dead(tmp_path) == [], "it is ours now"
    claim.release()
    ours.release()


def test_a_folder_that_is_done_with_goes(tmp_path: pathlib.Path) -> None:
    claim = claim_own(tmp_path, "host")
    (claim.folder / "file.cursor").write_bytes(b"")
    claim.remove()
    assert list(tmp_path.iterdir()) == []


def test_what_was_set_aside_keeps_its_folder(tmp_path: pathlib.Path) -> None:
    claim = claim_own(tmp_path, "host")
    (claim.folder / "00000001.bad").write_bytes(b"x")
    claim.remove()
    assert (claim.folder / "00000001.bad").exists()


def test_the_oldest_segments_of_the_dead_go_until_the_rest_is_within_the_cap(tmp_path: pathlib.Path) -> None:
    living = claim_own(tmp_path, "alive")
    segments = [("old", 1, 10), ("alive", 1, 5), ("old", 2, 20), ("new", 1, 30), ("new", 2, 40)]
    for name, number, age in segments:
        path = tmp_path / f"{name}-1" / f"{number:08d}.seg"
        path.parent.mkdir(exist_ok=True)
        (path.parent / "lock").touch()
        path.write_bytes(b"x" * 100)
        os.utime(path, (age, age))
    assert trim_dead(tmp_path, 500) == 0
    assert trim_dead(tmp_path, 150) == 3
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("*/*.seg")) == [
        "alive-1/00000001.seg",
        "new-1/00000002.seg",
    ]
    assert not (tmp_path / "old-1").exists(), "an empty folder goes too"
    [left] = claim_dead(tmp_path)
    assert left.folder.name == "new-1", "what stays can be claimed again"
    left.release()
    living.release()


def test_a_root_that_is_not_there_has_no_dead(tmp_path: pathlib.Path) -> None:
    assert claim_dead(tmp_path / "absent") == []
    assert trim_dead(tmp_path / "absent", 0) == 0


def test_a_root_that_cannot_be_made_is_said(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(OSError):
        claim_own(tmp_path / "file", "host")
