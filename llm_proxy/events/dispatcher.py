"""Delivery of the log to one sink: in order, at least once, for as long as it takes."""

import asyncio
import contextlib
import itertools
import logging
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import orjson

from llm_proxy.clock import from_rfc3339, now_ms, to_rfc3339
from llm_proxy.errors import InvalidField
from llm_proxy.events.reading import LARGEST_BATCH, Backlog, Entry, Gap, Item, StreamGap
from llm_proxy.events.sinks.contract import Sink, Verdict
from llm_proxy.tasks import Tasks

log = logging.getLogger(__name__)

BATCH_SIZE = 100
# The longest that an event waits for others to go with.
FLUSH = 1.0
# So often an event may fail before it is held to be at fault.
MOST_FAILURES = 10
SHORTEST_PAUSE, LONGEST_PAUSE = 1.0, 60.0

NO_BACKLOG = Backlog(0, 0)

Pause = Callable[[asyncio.Event, float], Awaitable[None]]


class Source(Protocol):
    """Where a dispatcher's events come from."""

    async def read(self, limit: int) -> list[Item]:
        """What comes next, in order; the same, with what came since, until it is settled. An `OSError` passes."""

    async def settle(self, count: int) -> None:
        """The first `count` items of the last reading are done with for good."""

    def backlog(self) -> Backlog:
        """What is not settled."""


class Letters(Protocol):
    """Where what a sink will not take is set aside."""

    async def add(self, sink: str, reason: str, **what: Any) -> None:
        """Return once it is kept there; an `OSError` says that it is not, and passes."""


class Courier(Protocol):
    """Who empties one source for the benefit of one receiver, named for people."""

    name: str

    @property
    def stats(self) -> "Stats":
        """How the receiver is doing."""

    async def run(self) -> None:
        """Deliver until told to stop."""

    def stop(self) -> None:
        """Deliver what can be delivered, then end."""


class Fate(Enum):
    """What becomes of an event after an attempt."""

    DONE = "done"
    DEAD = "dead"
    WAITING = "waiting"


def fates(sequences: Sequence[int], verdicts: Sequence[Verdict], delivered_before: int, failures: int) -> list[Fate]:
    """Judge an attempt.

    A sink that takes nothing is broken, whatever it answers, and its events wait. That an event is at fault shows only
    where the sink took another: for a refusal any other, for the last of many failures a later one, since that proves
    the sink alive after it. An event that is refused all alone has nothing to be compared with, and the sink's word counts.

    Args:
        delivered_before: the latest event that was delivered ahead of its turn, 0 for none.
        failures: how many attempts have failed in a row, this one included.
    """
    delivered = [sequence for sequence, verdict in zip(sequences, verdicts, strict=True) if verdict.kind == "delivered"]
    latest = max([delivered_before, *delivered])
    judged = []
    for sequence, verdict in zip(sequences, verdicts, strict=True):
        refused = verdict.kind == "refused" and (latest > 0 or len(verdicts) == 1)
        worn_out = verdict.kind == "failed" and failures >= MOST_FAILURES and sequence < latest
        judged.append(Fate.DONE if verdict.kind == "delivered" else Fate.DEAD if refused or worn_out else Fate.WAITING)
    return judged


def backoff(attempt: int, chance: float) -> float:
    """Seconds before the next attempt: twice as many each time, up to a limit, half of them by chance."""
    return float(min(LONGEST_PAUSE, SHORTEST_PAUSE * 2 ** min(attempt - 1, 30))) * (0.5 + chance / 2)


async def pause(stopping: asyncio.Event, seconds: float) -> None:
    """Wait, shorter when it is time to stop."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await stopping.wait()


def document_of(payload: bytes) -> dict[str, Any]:
    """The event as sinks get it.

    Raises:
        ValueError: it is no event.
    """
    event = orjson.loads(payload)
    if not isinstance(event, dict) or not isinstance(event.get("id"), str):
        raise ValueError("it is no event")
    began = event.get("started_at")
    if isinstance(began, int):
        # The log holds milliseconds: to write them out there would cost the call.
        event["started_at"] = to_rfc3339(began)
    else:
        from_rfc3339("started_at", began)
    return event


@dataclass
class Stats:
    """How a sink is doing.

    Attributes:
        delivered: events that it took.
        failed: events that it did not take at an attempt, each time counted.
        dead_letters: events that it will not take.
        dropped: events that were gone before it could have them.
        backlog: what it has yet to get.
        oldest_age: seconds since the oldest of those began, 0 when there is none.
        last_error: why it did not take the last one that it did not.
    """

    delivered: int = 0
    failed: int = 0
    dead_letters: int = 0
    dropped: int = 0
    backlog: Backlog = NO_BACKLOG
    oldest_age: float = 0.0
    last_error: str = ""

    def with_backlog(self, backlog: Backlog, oldest: int | None, now: int) -> "Stats":
        """These, told what is to come now, and when the oldest of it began, in milliseconds, where that is known."""
        self.backlog = backlog
        self.oldest_age = max(now - oldest, 0) / 1000 if backlog.count and oldest is not None else 0.0
        return self


class Dispatcher:
    """Delivers from one source to one sink.

    Args:
        name: the sink's, for people.
        pause: waits for a number of seconds, or until the event given is set.
        now: milliseconds since the epoch.
        chance: a number from 0 to 1.
    """

    def __init__(
        self,
        name: str,
        sink: Sink,
        source: Source,
        dead_letters: Letters,
        *,
        batch_size: int = BATCH_SIZE,
        pause: Pause = pause,
        now: Callable[[], int] = now_ms,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self.name = name
        self._sink, self._source, self._dead_letters = sink, source, dead_letters
        self._batch_size, self._pause, self._now, self._chance = batch_size, pause, now, chance
        self._stats = Stats()
        self._stopping = asyncio.Event()
        # Events that are done with, but stand behind one that is not.
        self._done: set[int] = set()
        self._failures = self._attempts = 0
        self._one_by_one = False
        self._oldest: int | None = None

    @property
    def stats(self) -> Stats:
        """How the sink is doing now."""
        return self._stats.with_backlog(self._source.backlog(), self._oldest, self._now())

    @property
    def ahead(self) -> frozenset[int]:
        """The sequences that are done with, and that the source was not told of, since one before them is not."""
        return frozenset(self._done)

    async def run(self) -> None:
        """Deliver until told to stop; what is left then, and can be delivered at once, still is."""
        while True:
            seconds = await self._step()
            if seconds and self._stopping.is_set():
                return
            if seconds:
                await self._pause(self._stopping, seconds)

    def stop(self) -> None:
        """Deliver what can be delivered, then end."""
        self._stopping.set()

    async def _step(self) -> float:
        """One attempt; the seconds to wait before the next."""
        try:
            items = await self._source.read(self._batch_size + len(self._done))
            if not items:
                self._oldest = None
                return FLUSH
            if not isinstance(items[0], Entry):
                await self._pass_over(items[0])
                return 0.0
            entries: list[Entry] = []
            for item in items:
                if not isinstance(item, Entry):
                    break
                entries.append(item)
            # What is suspected comes one by one, in quick succession.
            full = (
                entries[0].suspected
                or len(items) >= self._batch_size
                or sum(len(entry.payload) for entry in entries) >= LARGEST_BATCH
            )
            return await self._deliver(entries, more=full or len(items) > len(entries))
        except OSError as error:
            log.warning("delivery to %s: what it needs is out of reach: %s", self.name, error)
            return self._wait()

    async def _pass_over(self, gap: Gap | StreamGap) -> None:
        """Account for events that are gone."""
        gone = {"from": gap.first, "to": gap.last, "count": gap.count}
        await self._dead_letters.add(self.name, "gone: the backlog was above its cap, or the disk lost them", gap=gone)
        await self._source.settle(1)
        self._stats.dropped += gap.count
        log.error("%d events never reach %s: %s to %s are gone", gap.count, self.name, gap.first, gap.last)

    async def _deliver(self, entries: list[Entry], more: bool) -> float:
        pending = [entry for entry in entries if entry.sequence not in self._done]
        events = await self._sort_out(pending)
        verdicts = await self._attempt(list(events.values()))
        if any(verdict.kind in ("failed", "refused") for verdict in verdicts):
            self._failures += 1
        judged = fates(list(events), verdicts, max(self._done, default=0), self._failures)
        before = len(self._done)
        for (sequence, event), verdict, fate in zip(events.items(), verdicts, judged, strict=True):
            if fate is Fate.DONE:
                self._done.add(sequence)
                self._stats.delivered += 1
            else:
                await self._record_failure(sequence, event, verdict, fate)
        progress = len(self._done) > before or len(events) < len(pending)
        await self._settle(entries)
        if Fate.WAITING not in judged:
            self._failures = self._attempts = 0
            self._one_by_one = False
            return 0.0 if more else FLUSH
        return self._after_failure(verdicts, progress)

    def _after_failure(self, verdicts: Sequence[Verdict], progress: bool) -> float:
        """What to try next, and when."""
        refused_whole = len(verdicts) > 1 and all(verdict.kind == "refused" for verdict in verdicts)
        if not self._one_by_one and (refused_whole or self._failures >= MOST_FAILURES - 1):
            # A batch says nothing of its events; each by itself does. The last attempt must.
            self._one_by_one = True
            return 0.0 if refused_whole else self._wait()
        if progress:
            self._attempts = 0
        return max(self._wait(), *(verdict.retry_after for verdict in verdicts))

    def _wait(self) -> float:
        self._attempts += 1
        return backoff(self._attempts, self._chance())

    async def _sort_out(self, pending: list[Entry]) -> dict[int, dict[str, Any]]:
        """The events by their sequence; what is none goes to the dead letters."""
        events: dict[int, dict[str, Any]] = {}
        for entry in pending:
            try:
                event = document_of(entry.payload)
            except (ValueError, InvalidField) as error:
                await self._bury(entry.sequence, entry.payload.decode("utf-8", "replace"), f"unreadable: {error}")
                continue
            if entry.handed > MOST_FAILURES:
                await self._bury(entry.sequence, event, f"{MOST_FAILURES} dispatchers ended while they had it")
                continue
            events[entry.sequence] = event
        first = next(iter(events.values()), None)
        self._oldest = from_rfc3339("started_at", first["started_at"]) if first else None
        return events

    async def _attempt(self, events: list[dict[str, Any]]) -> list[Verdict]:
        if not self._one_by_one:
            return await self._ask(events) if events else []
        verdicts: list[Verdict] = []
        for event in events:
            verdicts += await self._ask([event])
            if verdicts[-1].kind == "away":
                break
        return verdicts + [Verdict("away", "not tried")] * (len(events) - len(verdicts))

    async def _ask(self, events: list[dict[str, Any]]) -> list[Verdict]:
        try:
            verdicts = await self._sink.deliver(events)
            if len(verdicts) != len(events):
                raise ValueError(f"{len(verdicts)} verdicts on {len(events)} events")
        except Exception as error:
            # An event that the sink's code cannot handle must not stand in the way of the others for ever.
            log.exception("the sink %s failed", self.name)
            return [Verdict("failed", f"{type(error).__name__}: {error}")] * len(events)
        return verdicts

    async def _record_failure(self, sequence: int, event: dict[str, Any], verdict: Verdict, fate: Fate) -> None:
        self._stats.failed += 1
        if verdict.reason != "not tried":
            self._stats.last_error = verdict.reason
        if fate is Fate.DEAD:
            await self._bury(sequence, event, verdict.reason)

    async def _bury(self, sequence: int, event: object, reason: str) -> None:
        await self._dead_letters.add(self.name, reason, event=event)
        self._done.add(sequence)
        self._stats.dead_letters += 1
        log.warning("an event goes to the dead letters of %s: %s", self.name, reason)

    async def _settle(self, entries: list[Entry]) -> None:
        """Let the source forget what is done with, up to the first that is not."""
        ready = list(itertools.takewhile(lambda entry: entry.sequence in self._done, entries))
        if ready:
            await self._source.settle(len(ready))
            self._done -= {entry.sequence for entry in ready}


class Dispatchers:
    """The couriers of a process, each in a task of its own."""

    def __init__(self, tasks: Tasks) -> None:
        self._tasks = tasks
        self._running: dict[Courier, asyncio.Task[Any]] = {}

    def start(self, dispatcher: Courier) -> None:
        """Let one deliver."""
        self._running[dispatcher] = self._tasks.start(f"delivery to {dispatcher.name}", dispatcher.run())

    async def stop(self, deadline: float) -> None:
        """Let them deliver what they can within `deadline` seconds; the rest waits on the disk."""
        for dispatcher in self._running:
            dispatcher.stop()
        running = list(self._running.values())
        self._running = {}
        if not running:
            return
        _, late = await asyncio.wait(running, timeout=deadline)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)
