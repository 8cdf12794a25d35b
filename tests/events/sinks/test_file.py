"""Tests of the file of events."""

import errno
import os
import pathlib
import subprocess
import sys
from collections import Counter

import orjson
import pytest
from stage.sinks import sample

from llm_proxy.events.sinks.contract import DELIVERED
from llm_proxy.events.sinks.file import FileSink

# Another process that writes to the same file, event by event, once it is told to.
WRITER = """
import asyncio, sys
from stage.sinks import sample
from llm_proxy.events.sinks.file import FileSink

async def write():
    sink = FileSink(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    first = int(sys.argv[4])
    for number in range(first, first + 60):
        assert (await sink.deliver([sample(number)]))[0].kind == "delivered"

print("ready", flush=True)
sys.stdin.readline()
asyncio.run(write())
"""


def lines(path: pathlib.Path) -> list[str]:
    return [orjson.loads(line)["request_id"] for line in path.read_bytes().splitlines()]


async def test_events_are_lines_of_json(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "made" / "events.jsonl"
    sink = FileSink(str(path), 10**6, 2)
    assert await sink.deliver([sample(1), sample(2, path="a\nb")]) == [DELIVERED, DELIVERED]
    await sink.close()
    await sink.deliver([sample(3)])
    assert lines(path) == ["request-1", "request-2", "request-3"]
    assert path.stat().st_mode & 0o777 == 0o600
    await sink.close()


@pytest.mark.parametrize("kept", [0, 1, 2])
async def test_a_file_begins_anew_at_its_size(tmp_path: pathlib.Path, kept: int) -> None:
    path = tmp_path / "events.jsonl"
    sink = FileSink(str(path), 3 * len(orjson.dumps(sample(1))) - 1, kept)
    for number in range(1, 10):
        await sink.deliver([sample(number)])
    await sink.close()
    assert lines(path) == ["request-9"]
    older = [lines(tmp_path / f"events.jsonl.{number}") for number in range(1, kept + 1)]
    assert older == [["request-7", "request-8"], ["request-5", "request-6"]][:kept]
    assert len(os.listdir(tmp_path)) == 1 + kept  # noqa: PTH208 - only the names count


async def test_a_file_moved_away_is_left_at_reopen(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events.jsonl"
    sink = FileSink(str(path), 10**6, 2)
    await sink.deliver([sample(1)])
    path.rename(tmp_path / "moved")
    await sink.deliver([sample(2)])
    sink.reopen()
    await sink.deliver([sample(3)])
    assert (lines(tmp_path / "moved"), lines(path)) == (["request-1", "request-2"], ["request-3"])
    await sink.close()


def test_two_processes_that_rotate_one_file_lose_no_line(tmp_path: pathlib.Path) -> None:
    path, largest, kept = tmp_path / "events.jsonl", 4 * len(orjson.dumps(sample(1))), 60
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    writers = [
        subprocess.Popen(
            [sys.executable, "-c", WRITER, str(path), str(largest), str(kept), str(first)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment,
        )
        for first in (1000, 2000)
    ]
    for writer in writers:
        assert writer.stdout and writer.stdout.readline() == b"ready\n"
    for writer in writers:
        assert writer.stdin
        writer.stdin.write(b"\n")
        writer.stdin.flush()
    for writer in writers:
        writer.communicate(timeout=30)
        assert writer.returncode == 0
    files = [path, *(path.with_name(f"events.jsonl.{number}") for number in range(1, kept + 1))]
    found = [lines(file) for file in reversed(files) if file.exists()]
    assert {len(names) for names in found} == {3}, "none is turned away before it is full, none grows beyond its size"
    everything = [name for names in found for name in names]
    assert Counter(everything) == Counter(f"request-{first + n}" for first in (1000, 2000) for n in range(60))
    for first in "12":
        ours = [name for name in everything if name.startswith(f"request-{first}")]
        assert ours == sorted(ours), "the order of each process is kept"


async def test_a_file_that_another_process_took_away_is_followed(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "events.jsonl"
    ours, other = FileSink(str(path), 10**6, 0), FileSink(str(path), 10, 0)
    await ours.deliver([sample(1)])
    await other.deliver([sample(2)])
    await ours.deliver([sample(3)])
    assert lines(path) == ["request-2", "request-3"]
    path.rename(tmp_path / "moved")
    await other.deliver([sample(4)])
    assert (lines(path), lines(tmp_path / "moved")) == (["request-4"], ["request-2", "request-3"])
    await ours.close()
    await other.close()


async def test_a_disk_that_fills_leaves_no_half_line(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "events.jsonl"
    sink = FileSink(str(path), 10**6, 2)
    await sink.deliver([sample(1)])
    write, room = os.write, [10]

    def short(fd: int, data: bytes) -> int:
        if not room:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(fd, data[: room.pop()])

    with monkeypatch.context() as patched:
        patched.setattr(os, "write", short)
        [verdict] = await sink.deliver([sample(2)])
    assert (verdict.kind, "No space left" in verdict.reason) == ("away", True)
    await sink.deliver([sample(3)])
    assert lines(path) == ["request-1", "request-3"]
    await sink.close()


async def test_a_place_that_cannot_be_written_is_away(tmp_path: pathlib.Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    verdicts = await FileSink(str(tmp_path / "file" / "events.jsonl"), 10, 1).deliver([sample(1), sample(2)])
    assert [verdict.kind for verdict in verdicts] == ["away", "away"]
