"""Acts on tokens."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from llm_proxy import tokens
from llm_proxy.acts import Act, act_among_others, acting
from llm_proxy.acts.fields import LIMITS, Field, boolean, mapping, models, optional, read, read_changes, text, whole
from llm_proxy.audit import Who
from llm_proxy.clock import DAY_MS, MINUTE_MS, from_rfc3339, now_ms, to_rfc3339
from llm_proxy.context import Context
from llm_proxy.errors import InvalidField, NotFound
from llm_proxy.secret import Secret
from llm_proxy.tokens import Token

LONGEST_MINUTES = 365 * 24 * 60
# A year with a leap day in it is a year too.
LONGEST_MS = 366 * DAY_MS


def max_requests(name: str, value: object) -> int:
    """A quota of at least one request."""
    if value == 0 and value is not False:
        raise InvalidField(name, "0 would make a token that can never be used; use null for no quota.")
    number: int = whole(1)(name, value)
    return number


def moment(name: str, value: object) -> int:
    """A time in the future, at most a year away, in milliseconds since the epoch."""
    at, now = from_rfc3339(name, value), now_ms()
    if not now < at <= now + LONGEST_MS:
        raise InvalidField(
            name, "give a time in the future, at most a year away, or leave it empty: such a token does not expire."
        )
    return at


CHANGEABLE: dict[str, Field] = {
    "name": text(200),
    "is_active": boolean,
    "max_requests": optional(max_requests),
    **LIMITS,
    "allowed_models": models,
    "expires_at": optional(moment),
    "metadata": mapping,
}
NEW: dict[str, Field] = {
    **{name: field for name, field in CHANGEABLE.items() if name != "is_active"},
    "project_id": text(100),
    "duration_minutes": whole(1, LONGEST_MINUTES),
}


def shown(context: Context, token: Token) -> dict[str, Any]:
    """A token as the API shows it; what this process holds of its count without having used it is left out."""
    if unused := context.quota.unused(token.id):
        token = replace(token, request_count=max(0, token.request_count - unused))
    return {
        "object": "token",
        "id": token.id,
        "project_id": token.project_id,
        "project_name": token.project_name,
        "name": token.name,
        "hint": token.hint,
        "status": token.status(now_ms()),
        "is_active": token.is_active,
        "allowed_models": list(token.allowed_models),
        "metadata": token.metadata,
        "max_requests": token.max_requests,
        **{name: getattr(token, name) for name in LIMITS},
        "request_count": token.request_count,
        "cache_hit_count": token.cache_hit_count,
        "expires_at": to_rfc3339(token.expires_at),
        "created_at": to_rfc3339(token.created_at),
        "updated_at": to_rfc3339(token.updated_at),
        "deactivated_at": to_rfc3339(token.deactivated_at),
        "last_used_at": to_rfc3339(token.last_used_at),
    }


async def get(context: Context, id: str) -> Token:
    """One token."""
    return _withering(await tokens.get(context.database, id))


def _withering(found: Token | None) -> Token:
    """A token that was found; master keys, which are never to expire, have acts of their own."""
    if found is None or found.kind != "token":
        raise NotFound("token")
    return found


async def create(context: Context, who: Who, given: Mapping[str, object]) -> tuple[Token, Secret]:
    """Make a token; the secret is returned this one time, and kept by nobody."""
    # Here, as secrets are made in the thread of the loop only.
    id, secret = tokens.new_token()

    async def work(act: Act) -> tuple[Token, Secret]:
        columns = _columns(read(NEW, given, required=("project_id",)))
        project = await act.project(columns["project_id"])
        if not project.is_active:
            raise InvalidField("project_id", "this project is not active; activate it first.")
        act.token_id = id
        made = await tokens.insert(act.tx, context.vault, columns, id, secret)
        act.details["token"] = shown(context, made)
        return made, secret

    return await act_among_others(context, who, "token.create", work)


def _columns(fields: dict[str, Any]) -> dict[str, Any]:
    """What to store for the fields of a new token: it withers after a day unless something else is said."""
    duration = fields.pop("duration_minutes", None)
    if duration and "expires_at" in fields:
        raise InvalidField("duration_minutes", "give either this or expires_at, not both.")
    return {"name": "", "expires_at": now_ms() + (duration * MINUTE_MS if duration else DAY_MS), **fields}


async def update(context: Context, who: Who, id: str, given: Mapping[str, object]) -> Token:
    """Change the named fields of a token."""
    async with acting(context, who, "token.update") as act:
        before = await _found(act, id)
        stored = shown(context, before)
        fields = read_changes(CHANGEABLE, given, stored)
        after = await tokens.update(act.tx, id, fields) if fields else before
        if after is None:
            raise NotFound("token")
        act.before_and_after(stored, shown(context, after))
        act.changed("token", id)
        return after


async def revoke(context: Context, who: Who, id: str) -> None:
    """Revoke a token; once more does no harm."""
    async with acting(context, who, "token.revoke") as act:
        before = await _found(act, id)
        if before.is_active:
            await tokens.update(act.tx, id, {"is_active": False})
        act.changed("token", id)


async def reissue(context: Context, who: Who, id: str) -> tuple[Token, Secret]:
    """Revoke a token, and make one like it that lasts as long from now on; the new secret is returned this one time."""
    async with acting(context, who, "token.reissue") as act:
        before = await _found(act, id)
        if not before.project_is_active:
            raise InvalidField("project_id", "its project is not active; activate it first.")
        if before.is_active:
            await tokens.update(act.tx, id, {"is_active": False})
        act.changed("token", id)
        act.token_id, secret = tokens.new_token()
        made = await tokens.insert(act.tx, context.vault, _like(before), act.token_id, secret)
        act.details.update({"replaced": id, "token": shown(context, made)})
    return made, secret


def _like(before: Token) -> dict[str, Any]:
    """The columns of a token that is to take another's place."""
    lasts = before.expires_at - before.created_at if before.expires_at else None
    kept = ("project_id", "name", "allowed_models", "metadata", "max_requests", *LIMITS)
    expires = now_ms() + min(max(lasts, MINUTE_MS), LONGEST_MS) if lasts is not None else None
    return {**{name: getattr(before, name) for name in kept}, "expires_at": expires}


async def _found(act: Act, id: str) -> Token:
    """The token that an act concerns."""
    token = _withering(await tokens.get(act.tx, id))
    act.token_id, act.project_id = token.id, token.project_id
    return token
