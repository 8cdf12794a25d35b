"""Pages of tokens."""

from collections.abc import Mapping, Sequence
from typing import Any

from aiohttp import web

from llm_proxy import projects, tokens
from llm_proxy.acts import providers as provider_acts
from llm_proxy.acts import tokens as acts
from llm_proxy.admin.display import state_of
from llm_proxy.admin.forms import Reader, as_pairs, lines, number, pairs, read_fields, text
from llm_proxy.admin.lists import filters_of, listing, page_of
from llm_proxy.admin.snippets import Snippet, model_for, proxy_address, snippets
from llm_proxy.admin.visits import PROXY, Visit, problems_of
from llm_proxy.clock import now_ms
from llm_proxy.context import Context
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError
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
MOST_CHOICES = 200


def rows_of(context: Context, found: Sequence[Token]) -> list[dict[str, Any]]:
    """Tokens as lists show them."""
    now = now_ms()
    return [
        {**acts.shown(context, one), "state": state_of(one, now), "project_is_active": one.project_is_active} for one in found
    ]


async def find(visit: Visit) -> web.Response:
    """The tokens, newest first."""
    filters, page = filters_of(visit.request, ("project_id", "status", "search")), page_of(visit.request)
    asked: dict[str, Any] = {**filters, "status": filters.get("status")}
    if asked["status"] not in tokens.STATUSES:
        asked["status"] = None
    found = listing(visit.request, await tokens.find(visit.context.database, page, **asked), page, filters)
    facts = {"list": found, "tokens": rows_of(visit.context, found.rows), "statuses": tokens.STATUSES}
    return visit.show("tokens.html", {**facts, "projects": await _choices(visit)})


async def _choices(visit: Visit) -> Sequence[projects.Project]:
    """The newest projects, for a list to choose from."""
    return (await projects.find(visit.context.database, Page(MOST_CHOICES)))[:MOST_CHOICES]


async def new(visit: Visit) -> web.Response:
    """The form for a new token, of a project where the link says which."""
    return await _new(visit, {"project_id": visit.request.query.get("project_id", ""), "duration": "1440"}, {})


async def _new(visit: Visit, form: Mapping[str, str], problems: Mapping[str, str]) -> web.Response:
    choices = [one for one in await _choices(visit) if one.is_active]
    wanted = form.get("project_id", "")
    if wanted and wanted not in {one.id for one in choices}:
        found = await projects.get(visit.context.database, wanted)
        choices = [found, *choices] if found else choices
    facts = {"form": form, "problems": problems, "presets": PRESETS, "projects": choices}
    return visit.show("token_new.html", facts, 400 if problems else 200)


async def create(visit: Visit) -> web.Response:
    """A new token; the page that follows shows it once."""
    given = read_fields(visit.form, NEW, skip_empty=tuple(SHARED))
    duration = visit.form.get("duration", "")
    given |= {"expires_at": None} if duration == "never" else {"duration_minutes": number(duration)}
    try:
        made, secret = await acts.create(visit.context, visit.who, given)
    except ApiError as error:
        names = {**NEW, "duration_minutes": number}
        if error.code == "not_found":
            return await _new(visit, visit.form, {"project_id": "Choose a project."})
        return await _new(visit, visit.form, problems_of(error, names))
    return visit.go(f"/admin/tokens/{made.id}", "The token was made.", secret=secret.reveal())


async def show(visit: Visit) -> web.Response:
    """One token; after it was made, with its secret."""
    return await _show(visit, await acts.get(visit.context, visit.part("id")), {})


async def _show(visit: Visit, token: Token, problems: Mapping[str, str]) -> web.Response:
    [row] = rows_of(visit.context, [token])
    stored = {**row, "allowed_models": "\n".join(row["allowed_models"]), "metadata": as_pairs(row["metadata"])}
    secret = visit.news.secret if visit.news else ""
    facts = {
        "token": row,
        "form": visit.form or stored,
        "problems": problems,
        "snippets": await snippets_for(visit, token, secret) if secret else [],
    }
    return visit.show("token.html", facts, 400 if problems else 200)


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
