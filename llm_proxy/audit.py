"""The audit log: who did what, on which thing, with what outcome."""

import asyncio
import logging
import pathlib
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, NamedTuple

import orjson

from llm_proxy.clock import DAY_MS, MINUTE_MS, now_ms, to_rfc3339
from llm_proxy.db import Connection, Database, Row
from llm_proxy.db.sql import Page, select_page
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.ids import new_id

log = logging.getLogger(__name__)

WAITING_EVENTS = 10_000
BATCH = 500
RETENTION_SECONDS = 3600.0
EXACT_FILTERS = (
    "action",
    "actor",
    "project_id",
    "token_id",
    "outcome",
    "client_ip",
    "request_id",
    "correlation_id",
    "method",
    "path",
)


class Who(NamedTuple):
    """The origin of an act: who asked for it, how, from where."""

    actor: str
    client_ip: str | None = None
    method: str | None = None
    path: str | None = None
    user_agent: str | None = None
    request_id: str | None = None
    correlation_id: str | None = None


@dataclass(frozen=True)
class AuditEvent:
    """One administrative act, or one refusal; `timestamp` is in milliseconds, `details` never hold a secret."""

    action: str
    actor: str
    outcome: str = "success"
    reason: str | None = None
    project_id: str | None = None
    token_id: str | None = None
    request_id: str | None = None
    correlation_id: str | None = None
    client_ip: str | None = None
    method: str | None = None
    path: str | None = None
    user_agent: str | None = None
    details: Mapping[str, Any] = field(default_factory=dict)
    id: str = field(default_factory=new_id)
    timestamp: int = field(default_factory=now_ms)


def event_of(who: Who, action: str, **facts: Any) -> AuditEvent:
    """An event with the origin filled in; what a client chose freely is cut to a sane length."""
    event = AuditEvent(action=action, **who._asdict(), **facts)
    return replace(event, user_agent=(event.user_agent or "")[:400] or None, path=(event.path or "")[:400] or None)


def shown(event: AuditEvent) -> dict[str, Any]:
    """The event as the API and the file show it."""
    return {**asdict(event), "timestamp": to_rfc3339(event.timestamp)}


async def insert(connection: Connection, events: Sequence[AuditEvent]) -> None:
    """Write events to the table."""
    rows = [{**asdict(event), "details": orjson.dumps(event.details).decode()} for event in events]
    columns = list(rows[0])
    names, values = ", ".join(columns), ", ".join(f":{column}" for column in columns)
    await connection.executemany(f"INSERT INTO audit_events ({names}) VALUES ({values}) ON CONFLICT (id) DO NOTHING", rows)


def _from_row(row: Row) -> AuditEvent:
    return AuditEvent(**{**row, "details": orjson.loads(row["details"])})


async def get(connection: Connection, id: str) -> AuditEvent | None:
    """One event by its id."""
    row = await connection.fetch_one("SELECT * FROM audit_events WHERE id = :id", {"id": id})
    return _from_row(row) if row else None


async def find(connection: Connection, page: Page, filters: Mapping[str, Any]) -> list[AuditEvent]:
    """A page of events, newest first, one more than asked when there are more.

    Args:
        filters: any of `EXACT_FILTERS`, `start_time` and `end_time` (milliseconds, start included, end not), and `search`,
            which finds a text in action, actor, path, reason and details, in any case.
    """
    conditions = [f"{name} = :{name}" for name in EXACT_FILTERS if name in filters]
    conditions += ["timestamp >= :start_time"] if "start_time" in filters else []
    conditions += ["timestamp < :end_time"] if "end_time" in filters else []
    params = dict(filters)
    if "search" in params:
        escaped = params["search"].lower().replace("\\", "\\\\").replace("%", "\\%").replace("_", "\\_")
        params["search"] = f"%{escaped}%"
        columns = ("action", "actor", "path", "reason", "details")
        conditions.append("(" + " OR ".join(f"LOWER({column}) LIKE :search ESCAPE '\\'" for column in columns) + ")")
    return [_from_row(row) for row in await select_page(connection, "SELECT * FROM audit_events", conditions, params, page)]


class AuditLog:
    """Takes events that belong to no transaction, and copies of all to the file; neither ever blocks a call.

    The database away: events of refusals wait in memory, at most `WAITING_EVENTS`, and the loss of any is logged.
    """

    def __init__(self, database: Database, *, enabled: bool, file: str, retention_days: int) -> None:
        self.enabled = enabled
        self._database = database
        self._retention_ms = retention_days * DAY_MS
        self._waiting: asyncio.Queue[AuditEvent] = asyncio.Queue(WAITING_EVENTS)
        # A batch stays here until it is written, so that a stop in between loses nothing.
        self._batch: list[AuditEvent] = []
        self._file = AuditFile(pathlib.Path(file)) if enabled and file else None
        self._sampled: dict[tuple[str, str], int] = {}

    def append(self, event: AuditEvent) -> None:
        """Keep an event that happened outside a transaction."""
        if not self.enabled:
            return
        self.copy(event)
        try:
            self._waiting.put_nowait(event)
        except asyncio.QueueFull:
            log.error("audit event lost, the database has been away too long: %s by %s", event.action, event.actor)

    def append_sampled(self, event: AuditEvent, subject: str) -> None:
        """Keep at most one event a minute of a subject and reason: a client that fails in a loop must not fill the log."""
        key = (subject, event.reason or "")
        if event.timestamp - self._sampled.get(key, 0) < MINUTE_MS:
            return
        if len(self._sampled) >= WAITING_EVENTS:
            self._sampled.clear()
        self._sampled[key] = event.timestamp
        self.append(event)

    def copy(self, event: AuditEvent) -> None:
        """Hand an event to the file, when there is one."""
        if self._file:
            self._file.append(event)

    def reopen(self) -> None:
        """Open the file anew, after it was rotated away."""
        if self._file:
            self._file.reopen()

    async def write(self) -> None:
        """Write waiting events in batches; runs until cancelled."""
        while True:
            self._batch.append(await self._waiting.get())
            await self._store()

    async def _store(self) -> None:
        while len(self._batch) < BATCH and not self._waiting.empty():
            self._batch.append(self._waiting.get_nowait())
        while self._batch:
            try:
                await insert(self._database, self._batch)
                self._batch = []
            except DatabaseUnavailable:
                await asyncio.sleep(0.5)

    async def expire(self) -> None:
        """Delete what is older than the retention; runs until cancelled."""
        while self._retention_ms:
            try:
                await self._database.execute(
                    "DELETE FROM audit_events WHERE timestamp < :old", {"old": now_ms() - self._retention_ms}
                )
            except DatabaseUnavailable:
                log.warning("old audit events wait for the database to be deleted")
            await asyncio.sleep(RETENTION_SECONDS)

    async def close(self) -> None:
        """Write what still waits, for at most two seconds."""
        try:
            async with asyncio.timeout(2):
                while self._batch or not self._waiting.empty():
                    await self._store()
        except TimeoutError:
            log.error("%d audit events lost: the database does not answer", self._waiting.qsize() + len(self._batch))
        if self._file:
            await asyncio.to_thread(self._file.close)


class AuditFile:
    """Appends JSON lines to a file from a thread of its own."""

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        self._queue: queue.Queue[bytes | None] = queue.Queue(WAITING_EVENTS)
        self._stale = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-file", daemon=True)
        self._thread.start()

    def append(self, event: AuditEvent) -> None:
        """Queue an event; never blocks."""
        try:
            self._queue.put_nowait(orjson.dumps(shown(event), option=orjson.OPT_APPEND_NEWLINE))
        except queue.Full:
            log.error("audit event not copied to %s: the disk is too slow", self._path)

    def reopen(self) -> None:
        """Open the path anew before the next line."""
        self._stale.set()

    def close(self) -> None:
        """Write what is queued, then end."""
        self._queue.put(None)
        self._thread.join(5)

    def _run(self) -> None:
        file = None
        while (line := self._queue.get()) is not None:
            try:
                if file is None or self._stale.is_set():
                    self._stale.clear()
                    if file:
                        file.close()
                    self._path.parent.mkdir(parents=True, exist_ok=True)
                    file = self._path.open("ab", buffering=0)
                file.write(line)
            except OSError:
                log.exception("audit event not copied to %s", self._path)
        if file:
            file.close()
