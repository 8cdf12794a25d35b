"""The page of the delivery of events."""

import asyncio
import heapq
import pathlib
from typing import Any

from aiohttp import web

from llm_proxy.admin.visits import Visit
from llm_proxy.events import browsing
from llm_proxy.events.statistics import shown

NEWEST = 100


async def show(visit: Visit) -> web.Response:
    """Sinks, what each has yet to get, what was set aside."""
    events = visit.context.events
    report = shown(events.report(), await events.stream_state())
    letters = await asyncio.to_thread(newest_letters, pathlib.Path(visit.context.settings.event_dir))
    return visit.show("events.html", {"report": report, "letters": letters, "most": NEWEST})


def newest_letters(root: pathlib.Path) -> list[dict[str, Any]]:
    """The last dead letters of every log on this disk, newest first."""
    found = heapq.nlargest(NEWEST, browsing.letters(root), key=lambda letter: str(letter.get("at")))
    return [
        {
            "at": letter.get("at"),
            "sink": letter.get("sink"),
            "reason": letter.get("reason"),
            "event": event.get("id") if isinstance(event := letter.get("event"), dict) else None,
            "gap": gap.get("count") if isinstance(gap := letter.get("gap"), dict) else None,
        }
        for letter in found
    ]
