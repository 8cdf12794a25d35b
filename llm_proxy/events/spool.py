"""The append-only log of events on the local disk."""

import asyncio
import contextlib
import logging
import threading
from collections.abc import Sequence

from llm_proxy.events.cursors import Cursor
from llm_proxy.events.disk import Disk, Path
from llm_proxy.events.records import LARGEST_PAYLOAD, encode
from llm_proxy.events.segments import Segment, path_of, quarantine, recover

log = logging.getLogger(__name__)

SEGMENT_BYTES = 64 * 1024 * 1024
BACKLOG_BYTES = 1024 * 1024 * 1024
# How often what was written is synced, and the log is kept in order.
INTERVAL = 0.1


class Spool:
    """The log in one folder, with one writer, and a cursor for each sink.

    `append` belongs to the event loop: it makes one write, never waits, never raises. Everything else that touches the
    disk is in `tick`, for a thread. A disk that cannot be written costs the events meanwhile, which `lost` counts, and
    nothing else; when it can be written again, so is the log.

    Sequences have no holes while the log is whole, so whoever reads it knows what is missing: what the backlog's cap
    took away, what a power loss did.

    Attributes:
        last: the sequence of the last event.
        synced: the last event of which the disk is sure (with `os`: that was handed to the system).
        lost: events that could not be written.
        dropped: events that the backlog's cap took away before every sink had them.
        damaged: segments in which damage was found and set aside.
        failures: times that the disk refused anything but an event.
        failing: whether the last event could not be written.
    """

    def __init__(
        self,
        folder: Path,
        sinks: Sequence[str] = (),
        *,
        disk: Disk | None = None,
        sync: str = "100ms",
        segment_bytes: int = SEGMENT_BYTES,
        backlog_bytes: int = BACKLOG_BYTES,
    ) -> None:
        self.folder = folder
        self.disk = disk or Disk()
        self.cursors = {sink: Cursor(self.disk, folder, sink) for sink in sinks}
        self.last = self.synced = 0
        self.lost = self.dropped = self.damaged = self.failures = 0
        self.failing = False
        self._mode = sync
        self._write = self.disk.write
        self._backlog_bytes = backlog_bytes
        # The cap drops whole segments, so it needs several to choose from.
        self._segment_bytes = min(segment_bytes, max(backlog_bytes // 8, 1))
        # Above this size of the segment `append` looks further; 0 makes it look every time.
        self._limit = 0
        self._appending = self._forced = self._unsure = False
        self._segments: list[Segment] = []
        # Readers in other threads rely on the order: its size grows before `last`, it is listed before it is written.
        self._active = Segment(0, folder)
        self._damage: dict[int, int] = {}
        self._ordinal = 1
        # The segment written to; -1 stands for none, or for one whose torn tail has yet to be cut (`_parked`).
        self._fd = self._parked = -1
        self._spare: tuple[Segment, int] | None = None
        self._retired: list[int] = []
        self._lock = threading.Lock()

    def open(self, *, appending: bool = True) -> None:
        """Take up the log as the last process left it; a disk that refuses makes for a log that loses, until it heals.

        Args:
            appending: False for the log of a process that is gone, which is only read to its end.
        """
        found = recover(self.disk, self.folder)
        self._segments, self._ordinal, self._damage = found.segments, found.ordinal, found.damage
        for cursor in self.cursors.values():
            cursor.load()
        # A sink may have been given events that a power loss took from the log; their numbers are not given again.
        self.last = max([found.last, *(cursor.position for cursor in self.cursors.values())])
        self._retire_found()
        self._sync()
        oldest = next((segment.first for segment in self._segments if segment.first), self.last + 1)
        for cursor in self.cursors.values():
            if not cursor.known:
                cursor.begin_at(oldest - 1)
        self._appending = appending
        if appending:
            self._prepare()
            self._switch()

    def append(self, payload: bytes) -> int:
        """Write an event at the end of the log; its sequence, or 0 when it is lost."""
        if not 0 < len(payload) <= LARGEST_PAYLOAD:
            return self._lose(f"an event of {len(payload)} bytes")
        record = encode(self.last + 1, payload)
        try:
            written = self._write(self._fd, record)
        except OSError as error:
            return self._try_again(record, error)
        if written != len(record):
            self._cut_tail(written)
            return self._lose(f"{written} of {len(record)} bytes were written")
        active = self._active
        active.size += written
        self.last += 1
        if active.size >= self._limit:
            self._look_after()
        return self.last

    def _look_after(self) -> None:
        """What is seldom due after an append: a sync, a new segment, the end of a fault."""
        if self._mode == "always" and self._sync_one(self._fd):
            self.synced = self.last
        if self._forced or self._active.size >= self._segment_bytes:
            # Without a spare the segment just grows on: the loop must not wait for a disk to make one.
            self._switch()
        if self.failing:
            self.failing = False
            log.warning("events are written again; %d were lost so far", self.lost)
        self._limit = 0 if self._mode == "always" or self._forced else self._segment_bytes

    def _try_again(self, record: bytes, error: OSError) -> int:
        """After a refusal, once more where something changed: a tail was cut, or a new segment is there."""
        if self._unparked() or ((self._active.size or self._fd < 0) and self._switch()):
            try:
                written = self._write(self._fd, record)
            except OSError as again:
                return self._lose(str(again))
            if written == len(record):
                self._active.size += written
                self.last += 1
                self._look_after()
                return self.last
            self._cut_tail(written)
        return self._lose(str(error))

    def _lose(self, reason: str) -> int:
        self.lost += 1
        self._limit = 0
        if not self.failing:
            self.failing = True
            log.error("events cannot be written and are lost until they can: %s", reason)
        return 0

    def _cut_tail(self, written: int) -> None:
        """Take back a record that was written in part; until that is done nothing may be written behind it."""
        if written:
            try:
                self.disk.cut(self._fd, self._active.size)
            except OSError:
                self._fd, self._parked = -1, self._fd

    def _unparked(self) -> bool:
        """Cut the tail that could not be cut before."""
        if self._parked < 0:
            return False
        try:
            self.disk.cut(self._parked, self._active.size)
        except OSError:
            return False
        self._fd, self._parked = self._parked, -1
        return True

    def _switch(self) -> bool:
        """Go on in the spare segment, when there is one."""
        spare, self._spare = self._spare, None
        if spare is None:
            return False
        old, (segment, fd) = max(self._fd, self._parked), spare
        if old >= 0:
            # Retired before `_fd` changes, so that `_sync` in its thread misses neither.
            self._retired.append(old)
        segment.first = self.last + 1
        self._segments.append(segment)
        self._active, self._fd, self._parked, self._forced = segment, fd, -1, False
        return True

    def tick(self) -> None:
        """What is due every 100 ms: sync, have the next segment at hand, let go of what every sink has, keep the cap."""
        with self._lock:
            if self._mode == "os":
                self._pass_as_synced()
            else:
                self._sync()
            for work in (self._prepare_in_time, self._set_aside, self._discard):
                try:
                    work()
                except OSError as error:
                    self.failures += 1
                    log.debug("the log's folder %s: %s", self.folder, error)

    def _pass_as_synced(self) -> None:
        upto, retired = self.last, list(self._retired)
        for fd in retired:
            self.disk.close(fd)
            self._retired.remove(fd)
        self.synced = upto

    def _sync(self) -> None:
        """Sync what was written, the segments that were left first."""
        # In this order: what `upto` counts is in `fd`, or was retired before `retired` is read.
        upto, fd = self.last, max(self._fd, self._parked)
        retired = list(self._retired)
        done = True
        for old in retired:
            if self._sync_one(old):
                self.disk.close(old)
                self._retired.remove(old)
            else:
                done = False
        if fd >= 0:
            done = self._sync_one(fd) and done
        if done:
            self.synced = max(self.synced, upto)
            self._unsure = False

    def _sync_one(self, fd: int) -> bool:
        try:
            self.disk.sync(fd)
        except OSError as error:
            self.failures += 1
            if not self._unsure:
                self._unsure = True
                log.error("events are written, but the disk may not keep them over a power loss: %s", error)
            return False
        return True

    def _retire_found(self) -> None:
        """Have the segments of the process before synced, which may have ended before it could."""
        for segment in self._segments:
            # What cannot be opened for writing was not written just now either.
            with contextlib.suppress(OSError):
                self._retired.append(self.disk.open(segment.path))

    def _prepare_in_time(self) -> None:
        if self._appending and (self._active.size * 2 >= self._segment_bytes or self.failing or self._forced or self._fd < 0):
            self._prepare()

    def _prepare(self) -> None:
        """Make the next segment: first the file, then its name safe on the disk, and only then may it be written."""
        if self._spare is not None:
            return
        try:
            self._spare = self._create(self._ordinal)
        except OSError as error:
            self.failures += 1
            log.debug("no new segment in %s: %s", self.folder, error)
        self._ordinal += 1

    def _create(self, ordinal: int) -> tuple[Segment, int]:
        path = path_of(self.folder, ordinal)
        fd = self.disk.create(path)
        try:
            self.disk.sync_folder(self.folder)
        except OSError:
            self.disk.close(fd)
            raise
        return Segment(ordinal, path), fd

    def _set_aside(self) -> None:
        """Quarantine the damage that was found, by recovery or by a reader."""
        for ordinal, sound in list(self._damage.items()):
            segment = next((each for each in self._segments if each.ordinal == ordinal), None)
            if segment is not None:
                quarantine(self.disk, segment.path, sound)
                log.error("damage in %s: what follows byte %d is set aside", segment.path, sound)
                self.damaged += 1
            del self._damage[ordinal]

    def report_damage(self, segment: Segment, sound: int) -> None:
        """Told by a reader that a segment is damaged behind its first `sound` bytes."""
        if segment is self._active:
            # What is appended behind the damage would never be read.
            self._forced, self._limit = True, 0
        elif segment.size > sound:
            segment.size = sound
            self._damage.setdefault(segment.ordinal, sound)

    def _discard(self) -> None:
        """Remove the oldest segments: those every sink is done with for certain, and those above the cap."""
        while self._segments and (oldest := self._segments[0]) is not self._active:
            end, floor = self.end_of(0), self._floor()
            if oldest.first and not (self.cursors and end <= floor):
                # The numbers of what is dropped must outlive a power loss, in a later segment.
                if self.bytes_from(0) <= self._backlog_bytes or end >= self.synced:
                    return
                self._drop(max(oldest.first, floor + 1), end)
            self._remove(oldest)

    def _remove(self, oldest: Segment) -> None:
        with contextlib.suppress(FileNotFoundError):
            if self._damage.pop(oldest.ordinal, None) is None:
                self.disk.unlink(oldest.path)
            else:
                # There was no room to copy what is damaged, so it is kept as it is.
                self.disk.replace(oldest.path, oldest.path.with_suffix(".bad"))
        self._segments.pop(0)

    def _drop(self, first: int, end: int) -> None:
        if self.cursors:
            self.dropped += end - first + 1
            log.error("the backlog of events is above its cap: %d to %d are dropped", first, end)

    def _floor(self) -> int:
        """The last event that every sink is done with, and the disk knows it."""
        return min((cursor.saved for cursor in self.cursors.values()), default=0)

    def segments(self) -> list[Segment]:
        """The segments from the oldest on."""
        return list(self._segments)

    def end_of(self, index: int) -> int:
        """The last sequence that the segment at that place may hold."""
        return next((segment.first for segment in self._segments[index + 1 :] if segment.first), self.last + 1) - 1

    def bytes_from(self, index: int) -> int:
        """How many bytes the segments from that place on hold."""
        return sum(segment.size for segment in self._segments[index:])

    @property
    def drained(self) -> bool:
        """Whether every sink has everything, and the disk knows it."""
        return self._floor() >= self.last

    async def run(self, interval: float = INTERVAL) -> None:
        """Keep the log until cancelled."""
        while True:
            await asyncio.sleep(interval)
            await asyncio.to_thread(self.tick)

    def close(self) -> None:
        """Sync the log, note where the sinks are, give the files back."""
        for cursor in self.cursors.values():
            if cursor.position > cursor.saved:
                cursor.save()
        self.tick()
        with self._lock:
            spare = [self._spare[1]] if self._spare else []
            for fd in [self._fd, self._parked, *self._retired, *spare]:
                if fd >= 0:
                    self.disk.close(fd)
            self._fd = self._parked = -1
            self._spare, self._retired, self._appending = None, [], False
