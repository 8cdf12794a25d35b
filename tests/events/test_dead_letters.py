"""Tests of the file of events that a sink will not take."""

import errno
import pathlib

import orjson
import pytest

from llm_proxy.events.dead_letters import DeadLetters


async def test_a_letter_says_when_where_why_and_what(tmp_path: pathlib.Path) -> None:
    letters = DeadLetters(tmp_path / "dead.jsonl", lambda: 1_790_000_000_123)
    await letters.add("lunary", "400 no", event={"id": "x"})
    await letters.add("file", "gone", gap={"from": 1, "to": 3, "count": 3})
    assert [orjson.loads(line) for line in (tmp_path / "dead.jsonl").read_bytes().splitlines()] == [
        {"at": "2026-09-21T14:13:20.123Z", "sink": "lunary", "reason": "400 no", "event": {"id": "x"}},
        {"at": "2026-09-21T14:13:20.123Z", "sink": "file", "reason": "gone", "gap": {"from": 1, "to": 3, "count": 3}},
    ]
    assert (tmp_path / "dead.jsonl").stat().st_mode & 0o777 == 0o600


async def test_a_disk_that_refuses_is_said_so_that_the_event_stays(tmp_path: pathlib.Path) -> None:
    with pytest.raises(OSError) as caught:
        await DeadLetters(tmp_path / "absent" / "dead.jsonl").add("file", "no", event={})
    assert caught.value.errno == errno.ENOENT
