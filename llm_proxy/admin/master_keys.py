"""Pages of master keys."""

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from aiohttp import web

from llm_proxy import master_keys
from llm_proxy.acts import master_keys as acts
from llm_proxy.acts.fields import identifier
from llm_proxy.admin.forms import Reader, lines, number, read_fields, text, ticked
from llm_proxy.admin.tokens import LIMITS, snippets_for
from llm_proxy.admin.visits import Visit, problems_of
from llm_proxy.errors import ApiError
from llm_proxy.master_keys import MasterKey

CHANGES: Mapping[str, Reader] = {"name": text, "allowed_models": lines, **LIMITS, "is_enabled": ticked}
NEW: Mapping[str, Reader] = {"id": text, "key": text, "name": text, "allowed_models": lines, **LIMITS}
GRACES = (("0", "at once"), ("3600", "after 1 hour"), ("86400", "after 1 day"), ("604800", "after 7 days"))
MOST = 50
_LIST = "/admin/master-keys"


def _page(id: str) -> str:
    return f"/admin/master-keys/{quote(id)}"


async def find(visit: Visit) -> web.Response:
    """The master keys, by id, since ids may be the operator's own."""
    query, database = visit.request.query, visit.context.database
    after, before = (identifier(name, query[name]) if query.get(name) else "" for name in ("after", "before"))
    found = await master_keys.find(database, MOST + 1, after, before)
    if before and len(found) <= MOST:
        # Backward, the beginning was reached: the first page is shown whole.
        after = before = ""
        found = await master_keys.find(database, MOST + 1)
    rows = [acts.shown(visit.context, one) for one in (found[-MOST:] if before else found[:MOST])]
    ends = (before or len(found) > MOST, before or after) if rows else (False, False)
    facts = {
        "keys": rows,
        "first": _LIST if after or before else None,
        "previous": f"{_LIST}?{urlencode({'before': rows[0]['id']})}" if ends[1] else None,
        "next": f"{_LIST}?{urlencode({'after': rows[-1]['id']})}" if ends[0] else None,
    }
    return visit.show("master_keys.html", facts)


async def new(visit: Visit) -> web.Response:
    """The form for a new master key."""
    return visit.show("master_key_new.html", {})


async def create(visit: Visit) -> web.Response:
    """A new master key; the page that follows shows it once."""
    given = read_fields(visit.form, NEW, skip_empty=("id", "key"))
    try:
        made, secret = await acts.create(visit.context, visit.who, given)
    except ApiError as error:
        return visit.show("master_key_new.html", {"form": visit.form, "problems": problems_of(error, NEW)}, 400)
    return visit.go(_page(made.id), "The master key was made.", secret=secret.reveal())


async def show(visit: Visit) -> web.Response:
    """One master key; after it was made or rotated, with its secret."""
    return await _show(visit, await acts.get(visit.context, visit.part("id")), {})


async def _show(visit: Visit, found: MasterKey, problems: Mapping[str, str]) -> web.Response:
    key = acts.shown(visit.context, found)
    stored: dict[str, Any] = {
        **key,
        "allowed_models": "\n".join(key["allowed_models"]),
        "is_enabled": "on" if key["is_enabled"] else "",
    }
    secret = visit.news.secret if visit.news else ""
    facts = {
        "key": key,
        "form": visit.form or stored,
        "problems": problems,
        "graces": GRACES,
        "snippets": await snippets_for(visit, found.token, secret) if secret else [],
    }
    return visit.show("master_key.html", facts, 400 if problems else 200)


async def update(visit: Visit) -> web.Response:
    """Change a master key."""
    id = visit.part("id")
    try:
        await acts.update(visit.context, visit.who, id, read_fields(visit.form, CHANGES))
    except ApiError as error:
        return await _show(visit, await acts.get(visit.context, id), problems_of(error, CHANGES))
    return visit.go(_page(id), "The master key was changed.")


async def rotate(visit: Visit) -> web.Response:
    """A new secret; the old one is good for as long as was chosen."""
    id = visit.part("id")
    grace = number(visit.form.get("grace_seconds", "0"))
    _, secret = await acts.rotate(visit.context, visit.who, id, {"grace_seconds": grace})
    return visit.go(_page(id), "The master key has a new secret.", secret=secret.reveal())


async def confirm_delete(visit: Visit) -> web.Response:
    """What removing it means."""
    found = await acts.get(visit.context, visit.part("id"))
    return visit.show("master_key_delete.html", {"key": acts.shown(visit.context, found)})


async def delete(visit: Visit) -> web.Response:
    """Remove a master key."""
    await acts.delete(visit.context, visit.who, visit.part("id"))
    return visit.go("/admin/master-keys", "The master key was removed.")
