"""Pages of the audit log."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import urlencode

import orjson
from aiohttp import web

from llm_proxy import audit, spreadsheet
from llm_proxy.admin.choosers import by_name, choices, chosen
from llm_proxy.admin.lists import Listing, Rows, filters_of, paged
from llm_proxy.admin.visits import Visit, problems_of
from llm_proxy.audit import AuditEvent, look
from llm_proxy.clock import from_rfc3339
from llm_proxy.db.bounded import MOST
from llm_proxy.db.sql import Page
from llm_proxy.errors import InvalidField, NotFound

TIMES = ("start_time", "end_time")
NAMES = (*audit.EXACT_FILTERS, "search", *TIMES)
OUTCOMES = ("success", "failure", "denied", "error")
BATCH = 500


def _asked(given: Mapping[str, str]) -> dict[str, Any]:
    """The filters of the form as the table understands them.

    Raises:
        InvalidField: a time is none.
    """
    return {name: from_rfc3339(name, value) if name in TIMES else value for name, value in given.items()}


async def find(visit: Visit) -> web.Response:
    """The audit events, newest first."""
    database, given = visit.context.database, filters_of(visit.request, NAMES)
    problems, asked, until = dict[str, str](), dict[str, Any](), list[AuditEvent]()

    async def read(page: Page) -> Rows:
        looked = await look(database, page, asked)
        until[:] = [looked.until] if looked.until else []
        return Rows(looked.events, looked.until.id if looked.until else None)

    try:
        if "project_id" in given:
            given["project_id"] = (await chosen(database, given["project_id"])).id
        asked = _asked(given)
    except InvalidField as error:
        problems = problems_of(error, dict.fromkeys(NAMES))
    found = Listing([], given) if problems else await paged(visit.request, given, read)
    facts = {
        "list": found,
        "until": until[0] if until else None,
        "backward": "before" in visit.request.query,
        "most": MOST,
        "form": await by_name(database, given),
        "problems": problems,
        "projects": await choices(database),
        "outcomes": OUTCOMES,
        "exports": {kind: f"/admin/audit-export/{kind}" + (f"?{urlencode(given)}" if given else "") for kind in WRITERS},
    }
    return visit.show("audit.html", facts, 400 if problems else 200)


async def show(visit: Visit) -> web.Response:
    """One event, whole."""
    found = await audit.get(visit.context.database, visit.part("id"))
    if found is None:
        raise NotFound("audit event")
    return visit.show("audit_event.html", {"event": found})


async def export(visit: Visit) -> web.StreamResponse:
    """All events that fit, newest first, written as they are read."""
    kind = visit.part("kind")
    if kind not in WRITERS:
        raise NotFound("export")
    write, content_type = WRITERS[kind]
    asked = _asked(filters_of(visit.request, NAMES))
    headers = {"Content-Type": content_type, "Content-Disposition": f'attachment; filename="audit.{kind}"'}
    response = web.StreamResponse(headers=headers)
    page, first = Page(BATCH), True
    rows = await audit.find(visit.context.database, page, asked)
    await response.prepare(visit.request)
    while rows:
        shown = rows[:BATCH]
        await response.write(write(shown, first))
        if len(rows) <= BATCH:
            break
        page, first = Page(BATCH, shown[-1].id), False
        rows = await audit.find(visit.context.database, page, asked)
    await response.write_eof()
    return response


def as_lines(events: Sequence[AuditEvent], first: bool) -> bytes:
    """Events as JSON lines."""
    return b"".join(orjson.dumps(audit.shown(event), option=orjson.OPT_APPEND_NEWLINE) for event in events)


def as_csv(events: Sequence[AuditEvent], first: bool) -> bytes:
    """Events as CSV, with the names of the columns before the first."""
    rows = [{**audit.shown(event), "details": orjson.dumps(event.details).decode()} for event in events]
    text = spreadsheet.as_csv(list(rows[0]), rows)
    return (text if first else text.partition("\r\n")[2]).encode()


WRITERS: Mapping[str, tuple[Callable[[Sequence[AuditEvent], bool], bytes], str]] = {
    "csv": (as_csv, "text/csv; charset=utf-8"),
    "jsonl": (as_lines, "application/jsonl"),
}
