"""Acts on dead letters."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

from llm_proxy.audit import Who, event_of
from llm_proxy.context import Context
from llm_proxy.errors import ApiError, InvalidField, NotFound, SettingsError
from llm_proxy.events.dead_letters import Letter
from llm_proxy.events.letters import Chosen, Found, Retried
from llm_proxy.settings import SINKS, check_sinks
from llm_proxy.tasks import to_the_end


async def find(context: Context, chosen: Chosen, most: int = 1) -> Found:
    """How many dead letters there are, with the newest."""
    async with _within_reach():
        return await context.events.letters.find(chosen, most)


async def get(context: Context, id: str) -> Letter:
    """One dead letter."""
    found = (await find(context, Chosen(id=id))).newest
    if not found:
        raise NotFound("dead letter")
    return found[0]


async def retry(context: Context, who: Who, chosen: Chosen) -> Retried:
    """Deliver dead letters of one sink again, at once; whoever asked may leave meanwhile.

    No transaction is open for as long as a sink takes, so that the audit event comes after the act.
    """
    return await to_the_end(_retry(context, who, chosen), lambda done: None)


async def _retry(context: Context, who: Who, chosen: Chosen) -> Retried:
    async with _audited(context, who, "events.retry", chosen) as details:
        sink = chosen.sink or ((await get(context, chosen.id)).sink if chosen.id else "")
        _check_sink(context, sink)
        done = await context.events.letters.retry(sink, chosen)
        details.update(asdict(done))
    return done


def _check_sink(context: Context, sink: str) -> None:
    """Refuse what cannot be delivered from here."""
    if sink not in SINKS:
        raise InvalidField("sink", f"say which letters: those of a sink, {', '.join(SINKS)}.")
    try:
        check_sinks(context.settings, (sink,))
    except SettingsError as error:
        raise InvalidField("sink", str(error)) from error


async def drop(context: Context, who: Who, chosen: Chosen) -> int:
    """Give dead letters up for good; how many they were. Whoever asked may leave meanwhile: what is gone is audited."""
    return await to_the_end(_drop(context, who, chosen), lambda dropped: None)


async def _drop(context: Context, who: Who, chosen: Chosen) -> int:
    async with _audited(context, who, "events.drop", chosen) as details:
        dropped = await context.events.letters.drop(chosen)
        details["dropped"] = dropped
    return dropped


@asynccontextmanager
async def _audited(context: Context, who: Who, action: str, chosen: Chosen) -> AsyncIterator[dict[str, Any]]:
    """An act with its audit event, whose details may be added to."""
    details: dict[str, Any] = {"letters": {name: value for name, value in asdict(chosen).items() if value is not None}}
    try:
        async with _within_reach():
            yield details
    except Exception as error:
        outcome, reason = ("failure", error.code) if isinstance(error, ApiError) else ("error", type(error).__name__)
        context.audit.append(event_of(who, action, outcome=outcome, reason=reason, details=details))
        raise
    context.audit.append(event_of(who, action, details=details))


@asynccontextmanager
async def _within_reach() -> AsyncIterator[None]:
    try:
        yield
    except OSError as error:
        text = f"The dead letters cannot be read or changed now: {error}. Try again shortly."
        raise ApiError("events_unavailable", text, headers={"Retry-After": "1"}) from error
