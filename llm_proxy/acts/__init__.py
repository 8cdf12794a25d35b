"""Administrative acts: each with its audit event and its change in one transaction."""

from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

from llm_proxy import audit, changes
from llm_proxy.audit import AuditEvent, Who
from llm_proxy.changes import Change
from llm_proxy.context import Context
from llm_proxy.db import Connection
from llm_proxy.errors import ApiError, NotFound
from llm_proxy.projects import Project
from llm_proxy.projects import get as get_project

T = TypeVar("T")


@dataclass
class Act:
    """One act under way.

    Attributes:
        who: who does it.
        action: what it is, as the audit log calls it.
        tx: the transaction in which everything of it happens.
        project_id: the project it concerns, once that was found, for the audit event.
        token_id: the token it concerns, once that was found, for the audit event.
        details: facts for the audit event, without secrets.
        event: its audit event, once that was written.
    """

    who: Who
    action: str
    tx: Connection = field(init=False)
    project_id: str | None = None
    token_id: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    event: AuditEvent = field(init=False)
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

    def begin(self, tx: Connection) -> None:
        """Begin in a transaction, perhaps once more after all was undone that it did in another."""
        self.tx, self.project_id, self.token_id = tx, None, None
        self.details.clear()
        self.changes.clear()

    async def record(self, context: Context) -> None:
        """Write its audit event and its changes, where its own writes are."""
        if context.audit.enabled:
            self.event = self.as_event(details=self.details)
            await audit.insert(self.tx, [self.event])
        for change in self.changes:
            await changes.record(self.tx, change)

    def copy(self, context: Context) -> None:
        """Hand its audit event, which is committed, to the file of the audit log."""
        if context.audit.enabled:
            context.audit.copy(self.event)

    def as_event(self, **facts: Any) -> AuditEvent:
        """The audit event of it."""
        return audit.event_of(self.who, self.action, project_id=self.project_id, token_id=self.token_id, **facts)


@asynccontextmanager
async def acting(context: Context, who: Who, action: str) -> AsyncIterator[Act]:
    """Do an act: its writes, its audit event and its changes are committed together, or none of them.

    An act that fails leaves an audit event that says so.
    """
    with _failure_audited(context, Act(who, action)) as act:
        async with context.changes.changing() as act.tx:
            yield act
            await act.record(context)
    act.copy(context)


async def act_among_others(context: Context, who: Who, action: str, work: Callable[[Act], Coroutine[Any, Any, T]]) -> T:
    """Do an act as `acting` does, where many may be done at once: they share their commits (`Database.transact`)."""

    async def transact(tx: Connection) -> T:
        act.begin(tx)
        result = await work(act)
        await act.record(context)
        return result

    with _failure_audited(context, Act(who, action)) as act:
        result = await context.database.transact(transact, lambda: act.copy(context))
        if act.changes:
            await context.changes.committed()
    return result


@contextmanager
def _failure_audited(context: Context, act: Act) -> Iterator[Act]:
    try:
        yield act
    except Exception as error:
        outcome, reason = ("failure", error.code) if isinstance(error, ApiError) else ("error", type(error).__name__)
        context.audit.append(act.as_event(outcome=outcome, reason=reason))
        raise
