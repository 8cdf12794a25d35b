"""`llm-proxy events`: what the log holds, delivered again on demand."""

import asyncio
import pathlib
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import orjson
import pytest
from stage.logs import left_behind, lines_of, samples
from stage.processes import command, server
from stage.redis import RedisServer
from stage.streams import KEY, open_stream

from llm_proxy.clock import from_rfc3339, to_rfc3339
from llm_proxy.events.consuming import StreamLetters
from llm_proxy.events.stream import EVENT

from .conftest import Cli

EVENTS = samples(*range(4))
MOMENTS = [from_rfc3339("t", event["started_at"]) for event in EVENTS]


@pytest.fixture
def root(tmp_path: pathlib.Path) -> pathlib.Path:
    """Two logs, whose events take turns."""
    folder = tmp_path / "data" / "events"
    left_behind(folder, EVENTS[0], EVENTS[2], name="a", sinks=("file",))
    left_behind(folder, EVENTS[1], EVENTS[3], name="b")
    return folder


def files_of(folder: pathlib.Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextmanager
def unchanged(folder: pathlib.Path) -> Iterator[None]:
    """The block leaves every file of a folder as it is."""
    before = files_of(folder)
    yield
    assert files_of(folder) == before


def ids(events: list[dict[str, Any]]) -> list[str]:
    return [event["id"] for event in events]


def test_tail_prints_the_last_events_of_all_instances_in_their_order(cli: Cli, root: pathlib.Path) -> None:
    with unchanged(root):
        lines = cli("events", "tail").out.splitlines()
        assert [line.split()[0] for line in lines] == [to_rfc3339(moment) for moment in MOMENTS]
        assert "/v1/chat/completions  200  completed  gpt-4o  1.500s  13 tokens" in lines[0]
        assert cli("events", "tail", "-n", "2").out.splitlines() == lines[2:]
        assert cli("events", "tail", "-n", "0").out == ""
        assert ids([orjson.loads(line) for line in cli("events", "tail", "--json").out.splitlines()]) == ids(EVENTS)


def test_tail_lets_no_event_write_to_the_terminal(cli: Cli, root: pathlib.Path) -> None:
    left_behind(root, {**EVENTS[0], "model": "\x1b[31mred"}, name="c")
    assert "\x1b" not in cli("events", "tail").out


async def test_tail_follows_what_a_running_server_writes(tmp_path: pathlib.Path) -> None:
    env = {"EVENT_DIR": str(tmp_path / "events")}
    async with server(tmp_path) as site, command("events", "tail", "-f", folder=tmp_path, **env) as tail:
        for number in range(3):
            with pytest.raises(AssertionError):
                await site.manage("GET", f"/v1/wrong-{number}")
            await tail.until(f"/v1/wrong-{number}  401  refused")
        tail.send(signal.SIGINT)
        await tail.ended()
        assert await site.stopped() == 0


def test_replay_delivers_a_range_of_time_to_the_sink_that_is_named(cli: Cli, root: pathlib.Path, tmp_path: pathlib.Path) -> None:
    since, until = to_rfc3339(MOMENTS[1]), to_rfc3339(MOMENTS[3])
    with unchanged(root):
        done = cli("events", "replay", "--since", since, "--until", until, "--sink", "file", EVENT_FILE="again.jsonl")
    assert (done.code, done.out) == (0, "2 events were delivered to file, 0 refused.\n")
    assert sorted(ids(lines_of(tmp_path / "again.jsonl"))) == ids(EVENTS[1:3])


def test_replay_understands_how_long_ago(cli: Cli, root: pathlib.Path) -> None:
    assert cli("events", "replay", "--since", "1h", "--sink", "file").out.startswith("0 events")
    assert cli("events", "replay", "--since", "yesterday", "--sink", "file").code == 2


def test_replay_to_a_sink_that_does_not_take_it_says_so(cli: Cli, root: pathlib.Path, unused_tcp_port: int) -> None:
    env = {"LUNARY_URL": f"http://127.0.0.1:{unused_tcp_port}", "LUNARY_API_KEY": "key-of-the-sink-0001"}
    arguments = ("events", "replay", "--since", "2000-01-01T00:00:00Z", "--sink", "lunary")
    done = cli(*arguments, **env)
    assert done.code == 1 and "lunary does not take the rest: no connection" in done.err
    assert cli(*arguments).code == 2, "without its key"


def test_stats_says_what_each_log_holds_and_each_sink_lacks(cli: Cli, root: pathlib.Path) -> None:
    with unchanged(root):
        assert [row[:3] + row[4:] for row in cli("events", "stats").rows] == [
            ["a-1", "1", "2", "file 2", "0"],
            ["b-1", "1", "2", "-", "0"],
        ]
        found: Any = cli("events", "stats", "--json").json
    assert [log["backlog"] for log in found["logs"]] == [{"file": 2}, {}] and found["stream"] is None


async def test_stats_and_dead_letters_know_the_stream_in_redis(cli: Cli, redis_server: RedisServer) -> None:
    async with open_stream(redis_server) as stream:
        await stream.join("file")
        epoch, _ = await stream.add("", [])
        await stream.add(epoch, [(EVENT, orjson.dumps(event)) for event in EVENTS])
        await StreamLetters(stream).add("file", "400 poison", event=EVENTS[0])
    env = {"LLM_PROXY_EVENT_BUS": "redis-streams", "REDIS_URL": redis_server.uri, "REDIS_STREAM_KEY": KEY, "EVENT_DIR": "nowhere"}
    told = (await asyncio.to_thread(cli, "events", "stats", **env)).out
    assert "Nothing found." in told and f"The stream {KEY} in Redis: 4 events" in told
    assert told.splitlines()[-1].split() == ["llm-proxy:file", "0", "4", "0", "1"]
    found: Any = (await asyncio.to_thread(cli, "events", "stats", "--json", **env)).json
    assert found["stream"]["groups"][0]["lag"] == 4
    [row] = (await asyncio.to_thread(cli, "events", "dead-letters", **env)).rows
    assert row[1:] == ["file", EVENTS[0]["id"], "400 poison"]


def test_dead_letters_are_listed_with_their_reason(cli: Cli, root: pathlib.Path) -> None:
    assert cli("events", "dead-letters").out == "Nothing found.\n"
    letters: list[dict[str, Any]] = [
        {"at": "2026-11-21T08:54:37.120Z", "sink": "lunary", "reason": "400 poison", "event": EVENTS[0]},
        {"at": "2026-11-21T08:54:38.120Z", "sink": "file", "reason": "gone", "gap": {"from": 1, "to": 3, "count": 3}},
        {"at": "2026-11-21T08:54:39.120Z", "sink": "file", "reason": "unreadable", "event": "{"},
    ]
    (root / "a-1" / "dead-letters.jsonl").write_bytes(b"".join(orjson.dumps(letter) + b"\n" for letter in letters))
    assert [row[1:] for row in cli("events", "dead-letters").rows] == [
        ["lunary", EVENTS[0]["id"], "400 poison"],
        ["file", "3 events", "gone"],
        ["file", "unreadable", "unreadable"],
    ]
    assert cli("events", "dead-letters", "--json").json == letters


@pytest.mark.parametrize("name", ["tail", "stats", "dead-letters"])
def test_without_a_log_there_is_a_word(cli: Cli, name: str) -> None:
    done = cli("events", name, EVENT_DIR="nowhere")
    assert done.code == 1 and "EVENT_DIR=nowhere: there is no such folder" in done.err


async def test_hangup_opens_the_file_of_events_anew(tmp_path: pathlib.Path) -> None:
    written = tmp_path / "events.jsonl"
    async with server(tmp_path, EVENT_SINKS="file") as site, asyncio.timeout(20):

        async def one_more(count: int) -> None:
            with pytest.raises(AssertionError):
                await site.manage("GET", "/v1/wrong")
            while len(lines_of(written)) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.05)

        await one_more(1)
        written.rename(tmp_path / "rotated.jsonl")
        site.send(signal.SIGHUP)
        await one_more(1)
        assert await site.stopped() == 0
    assert len(lines_of(tmp_path / "rotated.jsonl")) == 1
