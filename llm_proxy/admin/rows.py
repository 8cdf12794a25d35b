"""Calls as the list of requests shows them: texts, made once for the page and for those who follow it live."""

from typing import Any

from llm_proxy.admin.display import THIN_SPACE, amount, size, took
from llm_proxy.clock import to_rfc3339
from llm_proxy.context import Context
from llm_proxy.events import Event
from llm_proxy.running import RunningCall

NOTHING = "–"


def provider_name(context: Context, event: Event) -> str:
    """What a provider is called in lists: the id of one in the pool, the type of a project's own with a bit of its id."""
    if event.provider is None:
        return NOTHING
    own = event.provider not in context.providers.pooled_ids
    return f"{event.provider_type} …{event.provider[-4:]}" if own else event.provider


def tone_of(event: Event) -> str:
    """The class of the badge: whether all went well, somebody was refused, or something failed."""
    if event.outcome == "client_gone":
        return "off"
    if event.outcome == "refused":
        return "expiring"
    return "active" if event.outcome in ("completed", "cached") and event.status < 400 else "revoked"


def result_of(event: Event) -> str:
    """Status and outcome in a few words."""
    words = event.outcome.replace("_", " ")
    return f"{event.status} {words}" if event.status else words


def _row(context: Context, event: Event, moment: int) -> dict[str, Any]:
    at = to_rfc3339(moment) or ""
    return {
        "id": event.id,
        "at": at,
        "time": f"{at[:19].replace('T', ' ')} UTC",
        "project_id": event.project_id or "",
        "project": event.project_name or NOTHING,
        "token_id": event.token_id or "",
        "token": event.token_name or ("unnamed" if event.token_id else ""),
        "call": f"{event.method} {event.path}",
        "model": event.model or NOTHING,
        "provider": provider_name(context, event),
    }


def ended_row(context: Context, event: Event) -> dict[str, Any]:
    """A call that has ended."""
    return {
        **_row(context, event, event.started_at + round(event.duration * 1000)),
        "result": result_of(event),
        "tone": tone_of(event),
        "code": event.code or "",
        "took": took(event.duration),
        "tokens": amount(event.usage.total_tokens) if event.usage.source != "none" else NOTHING,
    }


def running_row(context: Context, call: RunningCall) -> dict[str, Any]:
    """A call that runs, with where its token is taken from it."""
    token = f"tokens/{call.token_id}/revoke" if call.token_kind == "token" else f"master-keys/{call.token_id}"
    return {
        **_row(context, call.event, call.event.started_at),
        "elapsed": took(call.elapsed()),
        "how": "stream" if call.streams else "",
        "sent": size(call.sent_bytes).replace(" ", THIN_SPACE),
        "revoke": f"/admin/{token}",
    }
