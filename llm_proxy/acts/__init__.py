"""Administrative acts: each with its audit event and its change in one transaction."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

from llm_proxy import audit, changes
from llm_proxy.audit import AuditEvent, Who
from llm_proxy.changes import Change
from llm_proxy.context import Context
from llm_proxy.db import Connection
from llm_proxy.errors import ApiError, NotFound
from llm_proxy.projects import Project
from llm_proxy.projects import get as get_project


@dataclass
class Act:
    """One act under way.

    Attributes:
        tx: the transaction in which everything of it happens.
        project_id: the project it concerns, once that was found, for the audit event.
        token_id: the token it concerns, once that was found, for the audit event.
        details: facts for the audit event, without secrets.
    """

    tx: Connection
    project_id: str | None = None
    token_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    changes: list[Change] = field(default_factory=list)

    async def project(self, id: str) -> Project:
        """The project that the act concerns.

        Raises:
            NotFound: there is none; the audit event then has no project either.
        """
        found = await get_project(self.tx, id)
        if found is None:
            raise NotFound("project")
        self.project_id = found.id
        return found

    def changed(self, kind: str, ref: str, **payload: Any) -> None:
        """Other processes must look at this again."""
        self.changes.append(Change(kind, ref, payload))

    def before_and_after(self, before: dict[str, Any], after: dict[str, Any]) -> None:
        """Put what is different into the audit event, beside what another part of the act put there."""
        different = [name for name in after if before.get(name) != after[name] and name != "updated_at"]
        self.details.setdefault("before", {}).update({name: before.get(name) for name in different})
        self.details.setdefault("after", {}).update({name: after[name] for name in different})


@asynccontextmanager
async def acting(context: Context, who: Who, action: str) -> AsyncIterator[Act]:
    """Do an act: its writes, its audit event and its changes are committed together, or none of them.

    An act that fails leaves an audit event that says so.
    """
    act = None
    try:
        async with context.changes.changing() as tx:
            act = Act(tx)
            yield act
            event = _event(who, action, act, details=act.details)
            if context.audit.enabled:
                await audit.insert(tx, [event])
            for change in act.changes:
                await changes.record(tx, change)
    except Exception as error:
        outcome, reason = ("failure", error.code) if isinstance(error, ApiError) else ("error", type(error).__name__)
        context.audit.append(_event(who, action, act, outcome=outcome, reason=reason))
        raise
    if context.audit.enabled:
        context.audit.copy(event)


def _event(who: Who, action: str, act: Act | None, **facts: Any) -> AuditEvent:
    """The event of an act; `act` is None when it could not even begin."""
    ids = {"project_id": act.project_id, "token_id": act.token_id} if act else {}
    return audit.event_of(who, action, **ids, **facts)
