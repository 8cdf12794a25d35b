"""Logs are read from outside while their owner writes them."""

import pathlib

import orjson
from stage.logs import left_behind, logged, samples

from llm_proxy.clock import from_rfc3339
from llm_proxy.events.browsing import Place, between, documents, entries, logs, summary
from llm_proxy.events.cursors import Cursor
from llm_proxy.events.disk import Disk
from llm_proxy.events.instances import claim_own
from llm_proxy.events.spool import Spool


def test_a_folder_that_is_not_there_has_no_logs(tmp_path: pathlib.Path) -> None:
    assert logs(tmp_path / "nowhere") == []


def test_every_event_of_every_instance_is_read(tmp_path: pathlib.Path) -> None:
    left_behind(tmp_path, *samples(1, 2), name="a")
    left_behind(tmp_path, *samples(3), name="b")
    (tmp_path / "of-somebody-else").mkdir()
    assert [folder.name for folder in logs(tmp_path)] == ["a-1", "b-1"]
    assert [event["request_id"] for event in logged(tmp_path)] == ["request-1", "request-2", "request-3"]


def test_reading_goes_on_where_it_ended_over_segments_and_leaves_the_folder_as_it_is(tmp_path: pathlib.Path) -> None:
    claim = claim_own(tmp_path, "live")
    spool = Spool(claim.folder, segment_bytes=1)
    spool.open()
    place, seen = Place(), []
    for event in samples(*range(6)):
        spool.append(orjson.dumps(event))
        if event["request_id"] in ("request-2", "request-3"):
            spool.tick()
        before = {path.name: path.stat().st_size for path in claim.folder.iterdir()}
        for entry, after in entries(claim.folder, place):
            seen.append(entry.sequence)
            place = after
        assert {path.name: path.stat().st_size for path in claim.folder.iterdir()} == before
    assert seen == [1, 2, 3, 4, 5, 6]
    assert place.ordinal > 1
    spool.close()
    claim.release()


def test_what_is_no_event_is_passed_over(tmp_path: pathlib.Path) -> None:
    folder = left_behind(tmp_path, {"no": "event"}, *samples(1))
    assert [event["request_id"] for event, _ in documents(folder)] == ["request-1"]
    assert [entry.sequence for entry in between(folder, 0, 2**53)] == [2]


def test_a_range_of_time_begins_with_its_first_moment_and_ends_before_its_last(tmp_path: pathlib.Path) -> None:
    events = samples(1, 2, 3, 4)
    folder = left_behind(tmp_path, *events)
    first, last = (from_rfc3339("t", events[number]["started_at"]) for number in (1, 3))
    assert [entry.sequence for entry in between(folder, first, last)] == [2, 3]


def test_a_summary_says_what_the_log_holds_and_where_each_sink_is(tmp_path: pathlib.Path) -> None:
    folder = left_behind(tmp_path, *samples(1, 2, 3), sinks=("file", "lunary"))
    cursor = Cursor(Disk(), folder, "lunary")
    cursor.begin_at(2)
    (folder / "dead-letters.jsonl").write_text('{"reason": "one"}\n{"reason": "two"}\n{"torn')
    found = summary(folder)
    assert (found.instance, found.first, found.last, found.dead_letters) == ("gone-1", 1, 3, 2)
    assert found.positions == {"file": 0, "lunary": 2}
    assert found.bytes > 0
