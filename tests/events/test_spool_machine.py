"""The log under any order of appends, syncs, deliveries, faults, crashes and power losses."""

import os
import pathlib
import random

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test
from stage.disk import SimulatedDisk

from llm_proxy.events.reading import Entry, Gap, Item, Reader
from llm_proxy.events.segments import Segment, path_of, records_of
from llm_proxy.events.spool import Spool

FOLDER = pathlib.Path("events")
SINKS = ("file", "lunary")
EXAMPLES = int(os.environ.get("SPOOL_MACHINE_EXAMPLES", "120"))

sinks = st.sampled_from(SINKS)


class DeletesBeforeTheCursorIsSynced(Spool):
    """The first seeded bug: a segment goes as soon as every sink said that it is done."""

    def _floor(self) -> int:
        return min(cursor.position for cursor in self.cursors.values())


class ForgetsTheFolder(Spool):
    """The second seeded bug: a segment is written whose name is not safe on the disk."""

    def _create(self, ordinal: int) -> tuple[Segment, int]:
        path = path_of(self.folder, ordinal)
        return Segment(ordinal, path), self.disk.create(path)


class LogMachine(RuleBasedStateMachine):
    """What was promised of the log, beside the log.

    Attributes:
        truth: the payload of each event that may still be read.
        gone: numbers that a gap may name.
        safe: the last event that the log said is synced.
        done: how far each sink is for certain.
    """

    kind: type[Spool] = Spool
    backlog_bytes = 1 << 30

    def __init__(self) -> None:
        super().__init__()
        self.disk = SimulatedDisk()
        self.truth: dict[int, bytes] = {}
        self.gone: set[int] = set()
        self.safe = 0
        self.done = dict.fromkeys(SINKS, 0)
        self.made = self.lost = 0
        self.start()

    def start(self) -> None:
        machine = self

        class Observed(self.kind):  # type: ignore[name-defined, misc]
            def _drop(self, first: int, end: int) -> None:
                machine.gone.update(range(first, end + 1))
                super()._drop(first, end)

        self.lost = 0
        self.spool: Spool = Observed(FOLDER, SINKS, disk=self.disk, segment_bytes=800, backlog_bytes=self.backlog_bytes)
        self.spool.open()
        self.readers = {sink: Reader(self.spool, sink) for sink in SINKS}
        self.read: dict[str, list[Item]] = {sink: [] for sink in SINKS}

    @rule(size=st.integers(1, 900), count=st.integers(1, 6))
    def append(self, size: int, count: int) -> None:
        for _ in range(count):
            self.made += 1
            payload = (b"%d." % self.made).ljust(size, b"x")
            before = self.spool.last
            sequence = self.spool.append(payload)
            if sequence:
                assert sequence == before + 1
                assert sequence not in self.truth
                self.truth[sequence] = payload
                self.gone.discard(sequence)
            else:
                self.lost += 1
                assert self.disk.refusing or self.disk.room is not None or self.spool.failing

    @rule()
    def tick(self) -> None:
        self.spool.tick()
        self.safe = max(self.safe, self.spool.synced)

    @rule(sink=sinks, limit=st.integers(1, 20))
    def deliver(self, sink: str, limit: int) -> None:
        self.read[sink] = self.check_delivery(sink, limit)

    def check_delivery(self, sink: str, limit: int) -> list[Item]:
        """Every number from the cursor on comes up once, as the event it was or as a gap that is known of."""
        items = self.readers[sink].read(limit)
        expected = self.spool.cursors[sink].position + 1
        for item in items:
            if isinstance(item, Gap):
                assert item.first == expected
                assert set(range(item.first, item.last + 1)) <= self.gone, "a gap where nothing is gone"
                expected = item.last + 1
            else:
                assert item == Entry(expected, self.truth[expected])
                expected += 1
        assert len(items) >= limit or expected == self.spool.last + 1
        return items

    @rule(sink=sinks, share=st.floats(0, 1))
    def acknowledge(self, sink: str, share: float) -> None:
        count = round(len(self.read[sink]) * share)
        if count:
            self.readers[sink].settle(count)
            self.read[sink] = self.read[sink][count:]

    @rule()
    def deliver_to_all(self) -> None:
        for sink in SINKS:
            self.deliver(sink, 100)
            self.acknowledge(sink, 1.0)

    @rule(sink=sinks)
    def save(self, sink: str) -> None:
        if self.readers[sink].save():
            self.done[sink] = self.spool.cursors[sink].position

    @rule(room=st.integers(0, 1000))
    def fill(self, room: int) -> None:
        self.disk.room = room

    @rule()
    def refuse(self) -> None:
        self.disk.refusing = True

    @precondition(lambda self: self.disk.refusing or self.disk.room is not None)
    @rule()
    def repair(self) -> None:
        self.disk.refusing, self.disk.room = False, None
        self.tick()
        self.append(10, 1)
        assert not self.spool.failing

    @rule()
    def crash(self) -> None:
        self.disk.crash()
        self.restart(self.spool.last)

    @rule(seed=st.integers(0, 2**32))
    def lose_power(self, seed: int) -> None:
        self.disk.lose_power(random.Random(seed))
        self.restart(self.safe)

    @rule()
    def stop_well(self) -> None:
        self.spool.close()
        assert not self.disk.open_files
        self.restart(self.spool.last)

    def restart(self, safe: int) -> None:
        """Start again, holding against the promise what is there now."""
        self.start()
        visible: list[int] = []
        for segment in self.spool.segments():
            for record in records_of(self.disk, segment.path, 0, segment.size):
                visible.append(record.sequence)
                assert record.payload == self.truth[record.sequence]
        assert visible == sorted(set(visible)), "the order is kept, nothing is there twice"
        for sink in SINKS:
            assert self.spool.cursors[sink].position >= self.done[sink]
        done = min(cursor.position for cursor in self.spool.cursors.values())
        missing = {sequence for sequence in self.truth if sequence > done} - set(visible) - self.gone
        assert not {sequence for sequence in missing if sequence <= safe}, "what was safe is gone"
        self.gone |= missing
        for sequence in [sequence for sequence in self.truth if sequence > self.spool.last]:
            del self.truth[sequence]
        self.gone = {sequence for sequence in self.gone if sequence <= self.spool.last}
        self.safe = min(self.safe, self.spool.last)

    @invariant()
    def losses_are_counted(self) -> None:
        assert self.spool.lost == self.lost

    def teardown(self) -> None:
        self.disk.refusing, self.disk.room = False, None
        for sink in SINKS:
            while items := self.check_delivery(sink, 50):
                self.readers[sink].settle(len(items))
            assert self.readers[sink].save()
        self.spool.tick()
        assert self.spool.drained
        self.spool.close()
        assert not self.disk.open_files


class CappedLogMachine(LogMachine):
    """The same, with a backlog that fills."""

    backlog_bytes = 7000

    @precondition(lambda self: not self.disk.refusing)
    @rule()
    def the_cap_is_kept(self) -> None:
        self.tick()
        # What is written to, and the last segment with a synced event, are never dropped.
        filled = [segment for segment in self.spool.segments() if segment.size]
        assert len(filled) <= 2 or self.spool.bytes_from(0) <= self.backlog_bytes


def check(machine: type[LogMachine], examples: int) -> None:
    """Let hypothesis search for a way to break a promise."""
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=40,
            deadline=None,
            database=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.mark.parametrize("machine", [LogMachine, CappedLogMachine])
def test_no_order_of_events_breaks_a_promise(machine: type[LogMachine]) -> None:
    check(machine, EXAMPLES)


@pytest.mark.parametrize("seeded", [DeletesBeforeTheCursorIsSynced, ForgetsTheFolder])
def test_a_seeded_bug_is_found(seeded: type[Spool]) -> None:
    class Machine(LogMachine):
        kind = seeded

    with pytest.raises(AssertionError, match="is gone"):
        check(Machine, 1000)
