"""Acts on master keys."""

from collections.abc import Mapping
from typing import Any

from llm_proxy import master_keys, tokens
from llm_proxy.acts import Act, acting
from llm_proxy.acts.fields import LIMITS, Field, boolean, identifier, models, read, read_changes, text, whole
from llm_proxy.audit import Who
from llm_proxy.clock import now_ms, to_rfc3339
from llm_proxy.context import Context
from llm_proxy.db import Connection
from llm_proxy.errors import AlreadyExists, ApiError, Conflict, InvalidField, NotFound
from llm_proxy.ids import new_id
from llm_proxy.master_keys import MasterKey
from llm_proxy.projects import DEFAULT_ID
from llm_proxy.secret import Secret, looks_masked
from llm_proxy.tokens import LONGEST_SECRET, SHORTEST_SECRET, well_formed

LONGEST_GRACE = 30 * 24 * 60 * 60


def key(name: str, value: object) -> Secret:
    """A secret that the caller chose: anything that a header can carry, and that is not the mask of one."""
    if isinstance(value, str) and looks_masked(value):
        raise ApiError(
            "masked_secret", f"{name}: this is the masked form of a key. Leave the field out to have one made.", param=name
        )
    if not isinstance(value, str) or not well_formed(value):
        raise InvalidField(
            name,
            f"give {SHORTEST_SECRET} to {LONGEST_SECRET} printable ASCII characters without spaces; "
            "what begins like a token of ours has to be one, its checksum included.",
        )
    return Secret(value)


CHANGEABLE: dict[str, Field] = {"name": text(200), "allowed_models": models, **LIMITS, "is_enabled": boolean}
NEW: dict[str, Field] = {**CHANGEABLE, "id": identifier, "key": key}
ROTATION: dict[str, Field] = {"grace_seconds": whole(0, LONGEST_GRACE)}


def shown(context: Context, found: MasterKey) -> dict[str, Any]:
    """A master key as the API shows it, without its secret."""
    token = found.token
    return {
        "id": token.id,
        "name": token.name,
        "key_preview": token.hint,
        "allowed_models": list(token.allowed_models),
        **{name: getattr(token, name) for name in LIMITS},
        "is_enabled": token.is_active,
        "request_count": max(0, token.request_count - context.quota.unused(token.id)),
        "cache_hit_count": token.cache_hit_count,
        "previous_key_expires_at": to_rfc3339(found.previous_expires_at),
        "created_at": to_rfc3339(token.created_at),
        "updated_at": to_rfc3339(token.updated_at),
        "last_used_at": to_rfc3339(token.last_used_at),
    }


def _columns(fields: Mapping[str, Any]) -> dict[str, Any]:
    return {"is_active" if name == "is_enabled" else name: value for name, value in fields.items()}


async def get(context: Context, id: str) -> MasterKey:
    """One master key."""
    return await _existing(context.database, id)


async def _existing(connection: Connection, id: str) -> MasterKey:
    found = await master_keys.get(connection, id)
    if found is None:
        raise NotFound("master key")
    return found


async def _found(act: Act, id: str) -> MasterKey:
    found = await _existing(act.tx, id)
    act.token_id, act.project_id = id, DEFAULT_ID
    return found


async def create(context: Context, who: Who, given: Mapping[str, object]) -> tuple[MasterKey, Secret]:
    """Make a master key; the secret is returned this one time."""
    async with acting(context, who, "master_key.create") as act:
        fields = read(NEW, given, required=("name",))
        id, secret = fields.pop("id", None) or new_id(), fields.pop("key", None) or tokens.new_token()[1]
        if await tokens.get(act.tx, id):
            raise AlreadyExists("There is already a master key, or a token, with this id.", "id")
        await _check_free(context, act, secret)
        try:
            made = await master_keys.insert(act.tx, context.vault, _columns(fields), id, secret)
        except Conflict as error:
            raise AlreadyExists("There is already a master key with this id or key.") from error
        act.token_id, act.project_id = id, DEFAULT_ID
        act.details["master_key"] = shown(context, made)
        # Other processes may remember this secret as unknown, or the row that had this id before.
        act.changed("token", id)
    return made, secret


async def _check_free(context: Context, act: Act, secret: Secret) -> None:
    """Two rows of one secret would be one too many, whichever key of the vault either was hashed with."""
    if await master_keys.is_known(act.tx, context.vault, secret):
        raise AlreadyExists("This key is in use already.", "key")


async def update(context: Context, who: Who, id: str, given: Mapping[str, object]) -> MasterKey:
    """Change the named fields of a master key; a new `key` ends the old one at once."""
    async with acting(context, who, "master_key.update") as act:
        before = await _found(act, id)
        fields = read_changes({**CHANGEABLE, "key": key}, given, shown(context, before))
        if secret := fields.pop("key", None):
            await _replace(context, act, id, secret, now_ms())
        if fields:
            await tokens.update(act.tx, id, _columns(fields))
        return await _changed(context, act, before)


async def rotate(context: Context, who: Who, id: str, given: Mapping[str, object]) -> tuple[MasterKey, Secret]:
    """Give a master key a new secret; the old one is good for `grace_seconds` more. A still older one ends at once."""
    async with acting(context, who, "master_key.rotate") as act:
        before = await _found(act, id)
        grace, secret = read(ROTATION, given).get("grace_seconds", 0), tokens.new_token()[1]
        act.details["grace_seconds"] = grace
        await _replace(context, act, id, secret, now_ms() + 1000 * grace)
        return await _changed(context, act, before), secret


async def _replace(context: Context, act: Act, id: str, secret: Secret, good_until: int) -> None:
    await _check_free(context, act, secret)
    try:
        await master_keys.replace_secret(act.tx, context.vault, id, secret, good_until)
    except Conflict as error:
        raise AlreadyExists("This key is in use already.", "key") from error
    act.details["replaced"] = "key"


async def _changed(context: Context, act: Act, before: MasterKey) -> MasterKey:
    after = await _found(act, before.id)
    act.before_and_after(shown(context, before), shown(context, after))
    act.changed("token", before.id)
    return after


async def delete(context: Context, who: Who, id: str) -> None:
    """Remove a master key; its id and its key may be used again, its audit events stay."""
    async with acting(context, who, "master_key.delete") as act:
        before = await _found(act, id)
        await master_keys.delete(act.tx, id)
        act.details["master_key"] = shown(context, before)
        act.changed("token", id)
