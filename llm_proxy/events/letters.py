"""The dead letters of every instance on this disk, with those in Redis."""

import asyncio
import heapq
import pathlib
from collections import defaultdict
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import NamedTuple

from llm_proxy.events.browsing import logs
from llm_proxy.events.consuming import StreamLetters
from llm_proxy.events.dead_letters import FILE, DeadLetters, Letter
from llm_proxy.events.replaying import Box, LetterReplay, replay
from llm_proxy.events.stream import EventStream
from llm_proxy.settings import Settings

# Somebody waits for the end of a retry; what it has not begun by then waits for the next.
RETRY_SECONDS = 15.0


@dataclass(frozen=True)
class Chosen:
    """Which letters: those for which all that is said here holds.

    Attributes:
        until: set aside no later than that.
    """

    id: str | None = None
    sink: str | None = None
    reason: str | None = None
    until: str | None = None

    def covers(self, letter: Letter) -> bool:
        """Whether this letter is one of them."""
        return (
            (self.id is None or letter.id == self.id)
            and (self.sink is None or letter.sink == self.sink)
            and (self.reason is None or letter.reason == self.reason)
            and (self.until is None or letter.at <= self.until)
        )


ALL = Chosen()


class Tally(NamedTuple):
    """How many letters.

    Attributes:
        deliverable: how many of them hold an event.
    """

    total: int = 0
    deliverable: int = 0

    def plus(self, other: "Tally") -> "Tally":
        """Both together."""
        return Tally(self.total + other.total, self.deliverable + other.deliverable)


@dataclass(frozen=True)
class Found:
    """What there is.

    Attributes:
        groups: how many there are by sink and reason.
        newest: the last ones, the newest first.
    """

    groups: Mapping[tuple[str, str], Tally]
    newest: Sequence[Letter]

    @property
    def count(self) -> int:
        """How many there are."""
        return sum(tally.total for tally in self.groups.values())


@dataclass
class Retried:
    """What became of letters.

    Attributes:
        delivered: the sink took them, and they are gone.
        refused: the sink refused them again; they are there with its new reason.
        waiting: whether some were not tried, or could not be delivered now, and are there as they were.
        reason: why the sink takes no more now.
    """

    delivered: int = 0
    refused: int = 0
    waiting: bool = False
    reason: str = ""


class AllLetters:
    """Looks through the boxes of all instances, living and dead, and of replays. Every verb passes on an `OSError`.

    Args:
        stream: given, the letters of its sinks too.
    """

    def __init__(self, settings: Settings, stream: EventStream | None = None) -> None:
        self._settings, self._stream = settings, stream
        # What is pressed twice is not delivered twice.
        self._retrying = asyncio.Lock()

    async def _boxes(self) -> list[Box]:
        paths = await asyncio.to_thread(_files, pathlib.Path(self._settings.event_dir))
        return [*(DeadLetters(path) for path in paths), *([StreamLetters(self._stream)] if self._stream else [])]

    async def read(self, chosen: Chosen = ALL) -> AsyncGenerator[Letter, None]:
        """Letters, box by box."""
        for box in await self._boxes():
            async with aclosing(_read(box, chosen)) as found:
                async for letter in found:
                    yield letter

    async def find(self, chosen: Chosen = ALL, most: int = 1) -> Found:
        """How many there are, with the newest."""
        groups: defaultdict[tuple[str, str], Tally] = defaultdict(Tally)
        newest: list[Letter] = []
        async for letter in self.read(chosen):
            key = letter.sink, letter.reason
            groups[key] = groups[key].plus(Tally(1, letter.event is not None))
            newest.append(letter)
            if len(newest) > 2 * most:
                newest = _newest(newest, most)
        return Found(groups, _newest(newest, most))

    async def drop(self, chosen: Chosen) -> int:
        """Give letters up for good; how many they were."""
        dropped = 0
        for box in await self._boxes():
            dropped += await box.remove([letter.id async for letter in _read(box, chosen)])
        return dropped

    async def retry(self, sink: str, chosen: Chosen) -> Retried:
        """Deliver letters of a sink again, with the ids that their events have. Those that tell of a gap stay."""
        done, ends = Retried(), asyncio.get_running_loop().time() + RETRY_SECONDS
        async with self._retrying:
            for box in await self._boxes():
                async with aclosing(_deliverable(box, sink, chosen)) as found:
                    source = LetterReplay(box, found, ends)
                    stats = await replay(self._settings, sink, source, box)
                done.delivered += stats.delivered
                done.refused += stats.dead_letters
                if stats.backlog.count or source.is_cut:
                    done.waiting, done.reason = True, stats.last_error
                    break
        return done


def _files(root: pathlib.Path) -> list[pathlib.Path]:
    """Every file of dead letters: in each instance's folder, and of replays."""
    return [path for path in (*(folder / FILE for folder in logs(root)), root / FILE) if path.exists()]


async def _read(box: Box, chosen: Chosen) -> AsyncGenerator[Letter, None]:
    async for letter in box.read():
        if chosen.covers(letter):
            yield letter


async def _deliverable(box: Box, sink: str, chosen: Chosen) -> AsyncGenerator[Letter, None]:
    async for letter in _read(box, chosen):
        if letter.sink == sink and letter.event is not None:
            yield letter


def _newest(letters: list[Letter], most: int) -> list[Letter]:
    return heapq.nlargest(most, letters, key=lambda letter: letter.at)
