"""The copy of a log that is written meanwhile: whoever takes it up misses nothing, whenever it was made."""

import asyncio
import itertools
import pathlib
import tempfile
from collections.abc import Callable
from typing import Any

import orjson
from hypothesis import example, given
from hypothesis import strategies as st
from stage.logs import left_behind, samples

from llm_proxy.events.copying import copy_logs
from llm_proxy.events.dead_letters import FILE, DeadLetters
from llm_proxy.events.disk import Disk
from llm_proxy.events.instances import claim_dead, claim_own
from llm_proxy.events.reading import Entry, Reader
from llm_proxy.events.spool import Spool

SINKS = ("file", "lunary")


class HastyDisk(Disk):
    """A disk that need not survive a loss of power."""

    def sync(self, fd: int) -> None:
        pass

    def sync_folder(self, folder: pathlib.Path) -> None:
        pass


class MeddledDisk(HastyDisk):
    """A disk on which something happens before each look at it."""

    def __init__(self, meddle: Callable[[], None]) -> None:
        self._meddle = meddle

    def list(self, folder: pathlib.Path) -> list[str]:
        self._meddle()
        return super().list(folder)

    def size(self, path: pathlib.Path) -> int:
        self._meddle()
        return super().size(path)

    def read(self, path: pathlib.Path, offset: int, size: int) -> bytes:
        self._meddle()
        return super().read(path, offset, size)


def numbers(folder: pathlib.Path, sink: str) -> list[int]:
    """What a server that takes up this log hands to a sink, by the number of each event; gaps are none."""
    spool = Spool(folder, SINKS, disk=HastyDisk())
    spool.open(appending=False)
    items = Reader(spool, sink).read(10_000)
    spool.close()
    assert all(isinstance(item, Entry) for item in items) and not spool.damaged and not list(folder.glob("*.bad"))
    return [int(item.payload) for item in items if isinstance(item, Entry)]


class Life:
    """A log that is written, delivered and kept, a step at a time."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.spool = Spool(folder, SINKS, disk=HastyDisk(), segment_bytes=90)
        self.spool.open()
        self._count = itertools.count(1)
        self._readers = {sink: Reader(self.spool, sink) for sink in SINKS}
        self.acts = {
            "append": self.append,
            "tick": self.spool.tick,
            "file": self._settle("file"),
            "lunary": self._settle("lunary"),
        }

    def append(self) -> None:
        assert self.spool.append(b"%d" % next(self._count))

    def _settle(self, sink: str) -> Callable[[], None]:
        def settle() -> None:
            if items := self._readers[sink].read(3):
                self._readers[sink].settle(len(items))
                self._readers[sink].save()

        return settle

    def lacks(self, sink: str) -> set[int]:
        return set(range(self.spool.cursors[sink].position + 1, self.spool.last + 1))


ACTS = st.lists(st.sampled_from(["append", "append", "append", "tick", "file", "lunary"]), max_size=12)


@example(before=["append"] * 3, meanwhile=[[], [], [], ["append"] * 6])
@example(before=["append"] * 3, meanwhile=[[], [], [], ["tick", *["append"] * 9, "tick"], ["file", "lunary"] * 4, ["tick"]])
@given(before=ACTS, meanwhile=st.lists(ACTS, max_size=12))
def test_a_copy_made_at_any_time_lacks_no_event_that_a_sink_lacked(before: list[str], meanwhile: list[list[str]]) -> None:
    with tempfile.TemporaryDirectory() as name:
        root, target = pathlib.Path(name, "events"), pathlib.Path(name, "copy")
        claim = claim_own(root, "host")
        life, script = Life(claim.folder), iter(meanwhile)

        def meddle() -> None:
            for act in next(script, ()):
                life.acts[act]()

        for act in before:
            life.acts[act]()
        lacked = {sink: life.lacks(sink) for sink in SINKS}
        found = copy_logs(root, target, MeddledDisk(meddle))
        left = {sink: life.lacks(sink) for sink in SINKS}
        for sink in SINKS:
            got = numbers(target / "host-1", sink)
            assert got == sorted(got) and lacked[sink] & left[sink] <= set(got)
            assert found.undelivered >= len(got)
        life.spool.close()
        claim.release()


def test_an_event_that_is_just_being_written_is_no_damage(tmp_path: pathlib.Path) -> None:
    folder = left_behind(tmp_path / "events", *samples(1, 2), sinks=("file",))
    with max(folder.glob("*.seg")).open("ab") as file:
        file.write(b"\x10\0\0\0half")
    found = copy_logs(tmp_path / "events", tmp_path / "copy")
    spool = Spool(tmp_path / "copy" / folder.name, ("file",))
    spool.open(appending=False)
    spool.tick()
    assert (spool.last, spool.damaged, found.events, found.undelivered) == (2, 0, 2, 2)
    spool.close()


def test_what_no_sink_is_to_get_is_copied_too(tmp_path: pathlib.Path) -> None:
    left_behind(tmp_path / "events", *samples(1, 2, 3))
    found = copy_logs(tmp_path / "events", tmp_path / "copy")
    assert (found.events, found.undelivered, found.dead_letters) == (3, 0, 0)


def test_how_far_the_shipment_to_redis_is_goes_along_and_what_was_damaged_does_not(tmp_path: pathlib.Path) -> None:
    folder = left_behind(tmp_path / "events", *samples(1, 2), sinks=("redis",))
    (folder / "redis.mark").write_bytes(b'["epoch",[1,2],1]')
    (folder / "00000009.bad").write_bytes(b"damage")
    copy_logs(tmp_path / "events", tmp_path / "copy")
    copied = tmp_path / "copy" / folder.name
    assert sorted(path.name for path in copied.iterdir()) == ["00000001.seg", "lock", "redis.cursor", "redis.mark"]
    assert (copied / "redis.mark").read_bytes() == b'["epoch",[1,2],1]'
    assert {path.stat().st_mode & 0o777 for path in copied.iterdir()} == {0o600}


def test_without_a_log_there_is_an_empty_copy(tmp_path: pathlib.Path) -> None:
    assert copy_logs(tmp_path / "nowhere", tmp_path / "copy").events == 0


async def test_what_is_set_aside_while_the_copy_is_made_is_in_it(tmp_path: pathlib.Path) -> None:
    claim = claim_own(tmp_path / "events", "host")
    spool, letters = Spool(claim.folder, ("file",)), DeadLetters(claim.folder / FILE)
    spool.open()
    [event] = samples(1)
    spool.append(orjson.dumps(event))
    reader = Reader(spool, "file")

    moments = itertools.count()

    def refuse() -> None:
        # After the segments were copied, as the cursors are about to be.
        if next(moments) == 3:
            reader.read(1)
            asyncio.run(letters.add("file", "400 poison", event=event))
            reader.settle(1)
            reader.save()

    found = await asyncio.to_thread(copy_logs, tmp_path / "events", tmp_path / "copy", MeddledDisk(refuse))
    copied: list[Any] = [letter.event for letter in DeadLetters(tmp_path / "copy" / "host-1" / FILE).letters()]
    assert (copied, found.dead_letters, found.undelivered) == ([event], 1, 0)
    spool.close()
    claim.release()


def test_a_log_that_another_instance_delivered_and_removed_meanwhile_is_not_delivered_again(tmp_path: pathlib.Path) -> None:
    root = tmp_path / "events"
    folder = left_behind(root, *samples(1, 2), sinks=("file",))

    moments = itertools.count()

    def adopt() -> None:
        if next(moments) == 5:
            [claim] = claim_dead(root)
            for path in folder.glob("*.seg"):
                path.unlink()
            claim.remove()

    found = copy_logs(root, tmp_path / "copy", MeddledDisk(adopt))
    assert not folder.exists() and (found.events, found.undelivered) == (0, 0)
    assert not list((tmp_path / "copy").iterdir())
