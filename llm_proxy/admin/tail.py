"""The live tail: what open pages of requests are told while calls run and end."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Mapping
from functools import partial
from typing import Any

import orjson

from llm_proxy.admin import live
from llm_proxy.admin.rows import ended_row, running_row
from llm_proxy.context import Context
from llm_proxy.events import Event
from llm_proxy.events.recent import Filter

TICK_SECONDS = 0.1
# Nobody reads more; the page says how many there were besides.
MOST_ROWS = 50
# Running calls are told less often than ended ones: they change all the time.
RUNNING_TICKS = 5


class Tail:
    """Looks ten times a second at what is new, for as long as somebody follows; otherwise nothing is done.

    All who follow wake at the same moment, and what is made for one of them is there for the others.
    """

    def __init__(self, context: Context) -> None:
        self._context = context
        self._tick = -1
        self._made: dict[Any, Any] = {}

    async def follow(self, wanted: Filter, after: str, number: int) -> AsyncGenerator[Mapping[str, object], None]:
        """What happens from an event on, as messages of `live.stream`.

        Args:
            after: the id of the newest event that is known already; one that is not kept here is older than all that are.
            number: of that event, so that what the page has had does not count as missed when the event is gone.
        """
        seen, clock = self._seen(after, number), asyncio.get_running_loop().time
        told, ran = -1, True
        while True:
            tick = int(clock() / TICK_SECONDS)
            if tick != self._tick:
                self._tick, self._made = tick, {}
            message, seen = self._ended(wanted, seen), self._context.recent.count
            if tick // RUNNING_TICKS != told:
                told, running = tick // RUNNING_TICKS, self._once(("running", wanted), lambda: self._running(wanted))
                if ran or running["count"]:
                    message = {**message, "running": running}
                ran = bool(running["count"])
            yield message or live.NOTHING
            await asyncio.sleep(TICK_SECONDS - clock() % TICK_SECONDS)

    def _seen(self, after: str, number: int) -> int:
        recent = self._context.recent
        gone = recent.count - len(recent)
        # The number of an event that is neither kept nor gone is that of another process.
        return recent.number_of(after) or (number if number <= gone else 0)

    def _once(self, key: object, make: Callable[[], Any]) -> Any:
        """What is made at most once in a tick."""
        if key not in self._made:
            self._made[key] = make()
        return self._made[key]

    def _ended(self, wanted: Filter, seen: int) -> Mapping[str, object]:
        """The newest calls of those that have ended since, oldest first, with the number of the others."""
        count = self._context.recent.count
        if count == seen:
            return live.NOTHING
        # Calls end within a tick too: who looks later in it is told of more.
        message: Mapping[str, object] = self._once(("ended", wanted, seen, count), lambda: self._newly_ended(wanted, seen))
        return message

    def _newly_ended(self, wanted: Filter, seen: int) -> Mapping[str, object]:
        recent = self._context.recent
        looked_at = recent.after(seen)[: self._context.settings.observability_buffer_size]
        found = [event for event in looked_at if wanted.fits(event)]
        rows = [self._once(event.id, partial(self._row, event)) for event in reversed(found[:MOST_ROWS])]
        missed = recent.count - seen - len(looked_at)
        if not (found or missed):
            return live.NOTHING
        told = {"ended": rows, "skipped": len(found) - len(rows), "missed": missed}
        return {**told, "newest": looked_at[0].id, "number": recent.count}

    def _row(self, event: Event) -> orjson.Fragment:
        return _packed(ended_row(self._context, event))

    def _running(self, wanted: Filter) -> dict[str, Any]:
        rows, count = running_rows(self._context, wanted)
        return {"rows": [_packed(row) for row in rows], "count": count}


def running_rows(context: Context, wanted: Filter) -> tuple[list[dict[str, Any]], int]:
    """The wanted calls that run, at most `MOST_ROWS`, those that began first at the front; how many there are in all."""
    calls = [call for call in context.running.longest() if wanted.concerns(call.event)]
    return [running_row(context, call) for call in calls[:MOST_ROWS]], len(calls)


def _packed(row: Mapping[str, Any]) -> orjson.Fragment:
    return orjson.Fragment(orjson.dumps(row))
