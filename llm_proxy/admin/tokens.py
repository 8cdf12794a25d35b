"""Pages of tokens."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from llm_proxy import tokens
from llm_proxy.acts import providers as provider_acts
from llm_proxy.acts import tokens as acts
from llm_proxy.admin.choosers import by_name, choices, chosen
from llm_proxy.admin.display import state_of
from llm_proxy.admin.forms import Reader, as_pairs, lines, number, pairs, read_fields, text
from llm_proxy.admin.lists import Listing, Rows, filters_of, paged
from llm_proxy.admin.snippets import Snippet, model_for, proxy_address, snippets
from llm_proxy.admin.visits import PROXY, Visit, problems_of
from llm_proxy.clock import now_ms
from llm_proxy.context import Context
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError, InvalidField
from llm_proxy.tokens import Token

LIMITS: Mapping[str, Reader] = {"rate_limit": number, "rate_limit_per_minute": number, "max_parallel": number}
SHARED: Mapping[str, Reader] = {"name": text, "max_requests": number, **LIMITS, "allowed_models": lines, "metadata": pairs}
NEW: Mapping[str, Reader] = {"project_id": text, **SHARED}
CHANGES: Mapping[str, Reader] = {**SHARED, "expires_at": text}
PRESETS = (
    ("5", "5 minutes"),
    ("15", "15 minutes"),
    ("60", "1 hour"),
    ("480", "8 hours"),
    ("1440", "1 day"),
    ("10080", "7 days"),
    ("43200", "30 days"),
    ("129600", "90 days"),
    ("525600", "1 year"),
    ("never", "does not expire"),
)


def rows_of(context: Context, found: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens as lists show them."""
    now = now_ms()
    return [
        {**acts.shown(context, one), "state": state_of(one, now), "project_is_active": one.project_is_active} for one in found
    ]


async def find(visit: Visit) -> web.Response:
    """The tokens, newest first."""
    database, filters = visit.context.database, filters_of(visit.request, ("project_id", "status", "search"))
    if filters.get("status") not in tokens.STATUSES:
        filters.pop("status", None)

    async def read(page: Page) -> Rows:
        return Rows(await tokens.find(database, page, **filters))

    problems = dict[str, str]()
    try:
        if "project_id" in filters:
            filters["project_id"] = (await chosen(database, filters["project_id"])).id
    except InvalidField as error:
        problems = problems_of(error, filters)
    found = Listing([], filters) if problems else await paged(visit.request, filters, read)
    facts = {
        "list": found,
        "tokens": rows_of(visit.context, found.rows),
        "statuses": tokens.STATUSES,
        "form": await by_name(database, filters),
        "problems": problems,
        "projects": await choices(database),
    }
    return visit.show("tokens.html", facts, 400 if problems else 200)


async def new(visit: Visit) -> web.Response:
    """The form for a new token, of a project where the link says which."""
    return await _new(visit, {"project_id": visit.request.query.get("project_id", ""), "duration": "1440"}, {})


async def _new(visit: Visit, form: Mapping[str, str], problems: Mapping[str, str]) -> web.Response:
    database = visit.context.database
    active, written = await choices(database, is_active=True), await by_name(database, form)
    if not problems:
        written["project_id"] = written["project_id"] or active.only
    facts = {"form": written, "problems": problems, "presets": PRESETS, "projects": active}
    return visit.show("token_new.html", facts, 400 if problems else 200)


async def create(visit: Visit) -> web.Response:
    """A new token; the page that follows shows it once."""
    given = read_fields(visit.form, NEW, skip_empty=tuple(SHARED))
    duration = visit.form.get("duration", "")
    given |= {"expires_at": None} if duration == "never" else {"duration_minutes": number(duration)}
    try:
        project = await chosen(visit.context.database, visit.form.get("project_id", ""))
        made, secret = await acts.create(visit.context, visit.who, {**given, "project_id": project.id})
    except ApiError as error:
        return await _new(visit, visit.form, problems_of(error, {**NEW, "duration_minutes": number}))
    return visit.go(f"/admin/tokens/{made.id}", "The token was made.", secret=secret.reveal())


async def show(visit: Visit) -> web.Response:
    """One token; after it was made, with its secret."""
    return await _show(visit, await acts.get(visit.context, visit.part("id")), {})


async def _show(visit: Visit, token: Token, problems: Mapping[str, str]) -> web.Response:
    [row] = rows_of(visit.context, [token])
    stored = {
        **row,
        "expires_at": _to_the_second(row["expires_at"]),
        "allowed_models": "\n".join(row["allowed_models"]),
        "metadata": as_pairs(row["metadata"]),
    }
    secret = visit.news.secret if visit.news else ""
    facts = {
        "token": row,
        "form": visit.form or stored,
        "problems": problems,
        "snippets": await snippets_for(visit, token, secret) if secret else [],
    }
    return visit.show("token.html", facts, 400 if problems else 200)


def _to_the_second(moment: str | None) -> str:
    """A time as the form shows it: nobody means milliseconds."""
    return re.sub(r"\.\d+Z$", "Z", moment or "")


async def snippets_for(visit: Visit, token: Token, secret: str) -> list[Snippet]:
    """Code for a token that was just made, in the dialect of its project's first provider."""
    own = await provider_acts.of_project(visit.context, token.project_id) or await provider_acts.of_project(visit.context, None)
    dialect = own[0].provider_type if own else visit.context.profiles.default_api
    site = visit.request.app[PROXY]
    address = proxy_address(site.url, site.wildcard, visit.request.host)
    return snippets(address, secret, model_for(token.allowed_models, dialect), dialect)


async def update(visit: Visit) -> web.Response:
    """Change what may be changed of a token."""
    id = visit.part("id")
    given = read_fields(visit.form, CHANGES)
    given["expires_at"] = given["expires_at"] or None
    try:
        [row] = rows_of(visit.context, [await acts.get(visit.context, id)])
        # What was left as it stood there stays, the milliseconds of its end and the want of a name too.
        for name, stood in (("name", row["name"]), ("expires_at", _to_the_second(row["expires_at"]))):
            if (given[name] or "") == (stood or ""):
                del given[name]
        await acts.update(visit.context, visit.who, id, given)
    except ApiError as error:
        return await _show(visit, await acts.get(visit.context, id), problems_of(error, CHANGES))
    return visit.go(f"/admin/tokens/{id}", "The token was changed.")


async def confirm_revoke(visit: Visit) -> web.Response:
    """What a revocation means."""
    [row] = rows_of(visit.context, [await acts.get(visit.context, visit.part("id"))])
    return visit.show("token_revoke.html", {"token": row})


async def revoke(visit: Visit) -> web.Response:
    """Revoke a token."""
    id = visit.part("id")
    await acts.revoke(visit.context, visit.who, id)
    return visit.go(f"/admin/tokens/{id}", "The token is revoked; its running calls end within a second.")


async def confirm_reissue(visit: Visit) -> web.Response:
    """What a new token in place of this one means."""
    [row] = rows_of(visit.context, [await acts.get(visit.context, visit.part("id"))])
    return visit.show("token_reissue.html", {"token": row})


async def reissue(visit: Visit) -> web.Response:
    """Revoke a token and make one like it."""
    made, secret = await acts.reissue(visit.context, visit.who, visit.part("id"))
    return visit.go(f"/admin/tokens/{made.id}", "The old token is revoked, this one takes its place.", secret=secret.reveal())
