"""Pages of requests: the newest calls of this instance, those that run, one of them whole."""

import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from itertools import islice
from urllib.parse import parse_qsl, urlencode

from aiohttp import web

from llm_proxy import projects, providers, tokens
from llm_proxy.acts import calls as acts
from llm_proxy.admin.lists import filters_of, listing, page_of
from llm_proxy.admin.live import stream
from llm_proxy.admin.rows import ended_row, provider_name, result_of, running_row, tone_of
from llm_proxy.admin.tail import Tail, running_rows
from llm_proxy.admin.visits import Visit
from llm_proxy.context import Context
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError
from llm_proxy.events import OUTCOMES, Event
from llm_proxy.events.recent import BODY_BYTES, KEPT, STATUS_CLASSES, Filter

TAIL = web.AppKey("tail", Tail)
NAMES = tuple(field.name for field in fields(Filter))
MOST_CHOICES = 100

Choices = list[tuple[str, str]]


async def find(visit: Visit) -> web.Response:
    """The calls that run, and those that have ended, newest first."""
    context, page, given = visit.context, page_of(visit.request), filters_of(visit.request, NAMES)
    wanted, events, number = Filter(**given), context.recent.newest_first(), context.recent.count
    found = listing(visit.request, fitting(events, page, wanted), page, given)
    running, count = running_rows(context, wanted)
    facts = {
        "list": found,
        "rows": [ended_row(context, event) for event in found.rows],
        "running": running,
        "running_count": count,
        "newest": events[0].id if events else "",
        "number": number,
        "live": page.after is None,
        "form": given,
        "back": urlencode(given),
        "choices": _choices(context, events, await _names(context, given)),
        "outcomes": [(outcome, outcome.replace("_", " ")) for outcome in OUTCOMES],
        "statuses": STATUS_CLASSES,
        "kept": KEPT,
        "enabled": context.settings.observability_enabled,
    }
    return visit.show("requests.html", facts)


def fitting(events: Sequence[Event], page: Page, wanted: Filter) -> list[Event]:
    """The events of one page, with one more when there is a next one."""
    places = {event.id: place for place, event in enumerate(events)} if page.after else {}
    # What is not kept any more is older than all that is.
    start = places.get(page.after, len(events)) + 1 if page.after else 0
    return list(islice((event for event in events[start:] if wanted.fits(event)), page.limit + 1))


def _choices(context: Context, events: Sequence[Event], given: Mapping[str, tuple[str, str]]) -> Mapping[str, Choices]:
    """What filters can be set to: what most calls have, with what is set now, under the names in `given`."""
    pairs: Mapping[str, Iterable[tuple[str | None, str]]] = {
        "project_id": ((event.project_id, event.project_name or "") for event in events),
        "token_id": ((event.token_id, f"{event.token_name or 'unnamed'} · {event.project_name}") for event in events),
        "provider": ((event.provider, provider_name(context, event)) for event in events),
        "model": ((event.model, event.model or "") for event in events),
    }
    return {name: _most_frequent(values, given.get(name)) for name, values in pairs.items()}


async def _names(context: Context, given: Mapping[str, str]) -> Mapping[str, tuple[str, str]]:
    """The filters that are set, each with a name for people, though perhaps no call has it any more."""
    names = {name: (value, value) for name, value in given.items()}
    if (id := given.get("project_id")) and (project := await projects.get(context.database, id)):
        names["project_id"] = (id, project.name)
    if (id := given.get("token_id")) and (token := await tokens.get(context.database, id)):
        names["token_id"] = (id, f"{token.name or 'unnamed'} · {token.project_name}")
    return names


def _most_frequent(pairs: Iterable[tuple[str | None, str]], chosen: tuple[str, str] | None) -> Choices:
    names, counts = dict[str, str](), Counter[str]()
    for value, name in pairs:
        if value:
            counts[value] += 1
            names.setdefault(value, name)
    shown = {value: names[value] for value, _ in counts.most_common(MOST_CHOICES)}
    if chosen:
        value, name = chosen
        shown.setdefault(value, names.get(value, name))
    return sorted(shown.items(), key=lambda pair: pair[1].lower())


async def live(visit: Visit) -> web.StreamResponse:
    """The same list while it changes."""
    wanted, query = Filter(**filters_of(visit.request, NAMES)), visit.request.query
    number = query.get("number", "")
    known = int(number) if re.fullmatch("[0-9]{1,15}", number) else 0
    return await stream(visit, visit.request.app[TAIL].follow(wanted, query.get("after", ""), known))


async def show(visit: Visit) -> web.Response:
    """One call, whole: ended, or as far as it has come."""
    context, id = visit.context, visit.part("id")
    call, event = context.running.get(id), context.recent.get(id)
    known = event or (call.event if call else None)
    if known is None:
        raise ApiError("not_found", f"This instance does not have this request: it keeps the last {KEPT} since it started.")
    facts = {
        "event": known,
        "running": None if event or not call else running_row(context, call),
        "ended_at": known.started_at + round(known.duration * 1000),
        "result": result_of(known),
        "tone": tone_of(known),
        "token_path": await _token_path(context, known),
        "provider": provider_name(context, known),
        "provider_path": await _provider_path(context, known),
        "bodies": context.recent.bodies(id),
        "captures": context.settings.observability_capture == "bodies",
        "body_bytes": BODY_BYTES,
    }
    return visit.show("request.html", facts)


async def _token_path(context: Context, event: Event) -> str | None:
    """Where the call's token is shown; None when it has none, or one that was deleted."""
    token = await tokens.get(context.database, event.token_id) if event.token_id else None
    if token is None:
        return None
    return f"/admin/{'tokens' if token.kind == 'token' else 'master-keys'}/{token.id}"


async def _provider_path(context: Context, event: Event) -> str | None:
    """Where the call's provider is shown; None when it has none, or one that was deleted."""
    if event.provider is None:
        return None
    label = (await providers.labels_of(context.database, [event.provider])).get(event.provider)
    if label is None:
        return None
    return f"/admin/{f'projects/{label.project_id}/keys' if label.project_id else 'providers'}/{event.provider}"


async def end(visit: Visit) -> web.Response:
    """End a running call; the list that follows has the filters of the one before."""
    given = {name: value for name, value in parse_qsl(visit.form.get("back", "")) if name in NAMES}
    path = "/admin/requests" + (f"?{urlencode(given)}" if given else "")
    try:
        await acts.end(visit.context, visit.who, visit.form.get("id", ""))
    except ApiError as error:
        if error.code != "not_found":
            raise
        return visit.go(path, "That call had ended already.", is_bad=True)
    return visit.go(path, "The call ends now; its client is told that an operator ended it.")
