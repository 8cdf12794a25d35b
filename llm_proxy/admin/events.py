"""The page of the delivery of events, with what sinks would not take."""

import functools
from dataclasses import asdict, replace
from typing import Any
from urllib.parse import urlencode

from aiohttp import web

from llm_proxy.acts import events as acts
from llm_proxy.admin.visits import Visit
from llm_proxy.errors import ApiError
from llm_proxy.events.letters import ALL, Chosen, Found, Retried, Tally
from llm_proxy.events.statistics import shown

HERE = "/admin/events"
NEWEST = 100
# Reasons may differ by no more than an id.
MOST_GROUPS = 50
NAMES = ("id", "sink", "reason", "until")


async def show(visit: Visit) -> web.Response:
    """Sinks, what each has yet to get, what was set aside."""
    events = visit.context.events
    report = shown(events.report(), await events.stream_state())
    try:
        found, problem = await acts.find(visit.context, ALL, NEWEST), ""
    except ApiError as error:
        found, problem = Found({}, ()), error.message
    facts = {"report": report, "groups": groups_of(found), "letters": found.newest, "count": found.count}
    return visit.show("events.html", {**facts, "problem": problem})


def groups_of(found: Found) -> list[dict[str, Any]]:
    """Letters that can be retried or dropped together: those of a sink, then for each reason; the most first."""
    sinks: dict[str, dict[str, Tally]] = {}
    for (sink, reason), tally in found.groups.items():
        sinks.setdefault(sink, {})[reason] = tally
    groups = []
    for sink, reasons in sorted(sinks.items()):
        if len(reasons) > 1:
            groups.append(_group(functools.reduce(Tally.plus, reasons.values()), Chosen(sink=sink)))
        ordered = sorted(reasons.items(), key=lambda entry: -entry[1].total)[:MOST_GROUPS]
        groups += [_group(tally, Chosen(sink=sink, reason=reason)) for reason, tally in ordered]
    return groups


def _group(tally: Tally, chosen: Chosen) -> dict[str, Any]:
    group = {"sink": chosen.sink, "reason": chosen.reason, **tally._asdict()}
    return {**group, "chosen": said(chosen), "drop": drop_of(chosen)}


def said(chosen: Chosen) -> dict[str, str]:
    """What a form says of letters."""
    return {name: value for name, value in asdict(chosen).items() if value is not None}


def drop_of(chosen: Chosen) -> str:
    """The page that asks before these are dropped."""
    return f"{HERE}/drop?{urlencode(said(chosen))}" if said(chosen) else f"{HERE}/drop"


async def letter(visit: Visit) -> web.Response:
    """One dead letter whole."""
    found = await acts.get(visit.context, visit.part("id"))
    return visit.show("event_letter.html", {"letter": found, "drop": drop_of(Chosen(id=found.id))})


async def confirm_drop(visit: Visit) -> web.Response:
    """How many would be dropped: those that are there now, and none that comes while somebody reads this."""
    chosen = Chosen(**{name: visit.request.query[name] for name in NAMES if name in visit.request.query})
    found = await acts.find(visit.context, chosen)
    chosen = replace(chosen, until=found.newest[0].at if found.newest else "")
    return visit.show("events_drop.html", {"count": found.count, "chosen": chosen, "said": said(chosen)})


def _chosen(visit: Visit) -> Chosen:
    return Chosen(**{name: visit.form[name] for name in NAMES if name in visit.form})


async def retry(visit: Visit) -> web.Response:
    """Deliver letters again."""
    try:
        done = await acts.retry(visit.context, visit.who, _chosen(visit))
    except ApiError as error:
        if error.code == "not_found":
            return visit.go(HERE, "This letter is not there any more: somebody else retried or dropped it.", is_bad=True)
        if error.code not in ("invalid_field", "events_unavailable"):
            raise
        return visit.go(HERE, error.message, is_bad=True)
    return visit.go(HERE, told(done), is_bad=bool(done.refused or done.waiting))


def told(done: Retried) -> str:
    """What became of a retry."""
    text = f"Delivered again: {done.delivered}."
    if done.refused:
        text += f" Refused again: {done.refused}; their reasons are below."
    if done.waiting:
        text += f" The rest waits: {done.reason}." if done.reason else " Not all were tried yet: retry once more."
    return text


async def drop(visit: Visit) -> web.Response:
    """Give up the letters of which the page before said how many they are."""
    chosen = _chosen(visit)
    dropped = await acts.drop(visit.context, visit.who, replace(chosen, until=chosen.until or ""))
    return visit.go(HERE, f"Dropped for good: {dropped}.")
