"""Tests of the file of events that a sink will not take."""

import asyncio
import errno
import pathlib
import sys

import orjson
import pytest

from llm_proxy.events.dead_letters import CHUNK, DeadLetters

AT = "2026-09-21T14:13:20.123Z"


def reasons(path: pathlib.Path) -> list[str]:
    """Those of the letters that are there."""
    return [letter.reason for letter in DeadLetters(path).letters()]


def left(folder: pathlib.Path) -> list[str]:
    """The files that are there."""
    return [path.name for path in folder.iterdir()]


async def test_a_letter_says_when_where_why_and_what(tmp_path: pathlib.Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl", lambda: 1_790_000_000_123)
    await letters.add("lunary", "400 no", event={"id": "x"})
    await letters.add("file", "gone", gap={"from": 1, "to": 3, "count": 3})
    assert [orjson.loads(line) for line in (tmp_path / "dead.jsonl").read_bytes().splitlines()] == [
        {"at": AT, "sink": "lunary", "reason": "400 no", "event": {"id": "x"}},
        {"at": AT, "sink": "file", "reason": "gone", "gap": {"from": 1, "to": 3, "count": 3}},
    ]
    assert (tmp_path / "dead.jsonl").stat().st_mode & 0o777 == 0o600
    found = [(letter.at, letter.sink, letter.reason, letter.event, letter.gap) for letter in letters.letters()]
    assert found == [(AT, "lunary", "400 no", {"id": "x"}, None), (AT, "file", "gone", None, 3)]


async def test_a_disk_that_refuses_is_said_so_that_the_event_stays(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError) as caught:
        await DeadLetters(tmp_path / "absent" / "dead.jsonl").add("file", "no", event={})
    assert caught.value.errno == errno.ENOENT


async def test_what_is_no_letter_is_passed_over_and_stays(tmp_path: pathlib.Path) -> None:
    letters, path = DeadLetters(tmp_path / "dead.jsonl"), tmp_path / "dead.jsonl"
    await letters.add("file", "one")
    odd = b'{"at": 1}\n[]\nnonsense\n{"sink": "torn"'
    path.write_bytes(path.read_bytes() + odd)
    assert reasons(path) == ["one"]
    assert await letters.remove([letter.id for letter in letters.letters()]) == 1
    assert path.read_bytes() == odd


async def test_letters_that_are_taken_away_are_gone_and_others_stay(tmp_path: pathlib.Path) -> None:
    letters, path = DeadLetters(tmp_path / "dead.jsonl"), tmp_path / "dead.jsonl"
    for number in range(CHUNK + 5):
        await letters.add("file", str(number))
    found = [letter async for letter in letters.read()]
    assert [letter.reason for letter in found] == [str(number) for number in range(CHUNK + 5)]
    assert await letters.remove([found[1].id, found[3].id, "0" * 32]) == 2
    assert await letters.remove([found[1].id]) == 0
    assert reasons(path) == [str(number) for number in range(CHUNK + 5) if number not in (1, 3)]
    assert path.stat().st_mode & 0o777 == 0o600
    assert await letters.remove([letter.id for letter in found]) == CHUNK + 3
    assert await letters.remove([found[0].id]) == 0
    assert left(tmp_path) == []


async def test_reading_ends_with_what_was_there_when_it_began(tmp_path: pathlib.Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl")
    await letters.add("file", "first")
    seen = []
    async for letter in letters.read():
        seen.append(letter.reason)
        await letters.add("file", "again")
    assert seen == ["first"]


ADD_MANY = """
import asyncio, pathlib, sys
from llm_proxy.events.dead_letters import DeadLetters

async def main(path, name, count):
    for number in range(int(count)):
        await DeadLetters(pathlib.Path(path)).add("file", f"{name}-{number}")

asyncio.run(main(*sys.argv[1:]))
"""


async def test_no_letter_is_lost_or_comes_back_while_processes_add_and_remove(tmp_path: pathlib.Path) -> None:
    path, count = tmp_path / "dead.jsonl", 200
    letters, taken = DeadLetters(path), list[str]()
    adding = [await asyncio.create_subprocess_exec(sys.executable, "-c", ADD_MANY, path, name, str(count)) for name in "ab"]
    ended = asyncio.gather(*(process.wait() for process in adding))
    while not ended.done() or any(letters.letters()):
        found = list(letters.letters())
        assert await letters.remove([letter.id for letter in found]) == len(found)
        taken += [letter.reason for letter in found]
        await asyncio.sleep(0.001)
    assert await ended == [0, 0]
    assert sorted(taken) == sorted(f"{name}-{number}" for name in "ab" for number in range(count))
