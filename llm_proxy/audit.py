"""The audit log: who did what, on which thing, with what outcome."""

import asyncio
import contextlib
import logging
import pathlib
import queue
import threading
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, BinaryIO, NamedTuple

import orjson

from llm_proxy.clock import DAY_MS, MINUTE_MS, now_ms, to_rfc3339
from llm_proxy.db import Connection, Database, Row
from llm_proxy.db.bounded import MOST, Search, search_page
from llm_proxy.db.sql import Page, contains, pattern, select_page
from llm_proxy.errors import DatabaseUnavailable, SettingsError
from llm_proxy.ids import new_id

log = logging.getLogger(__name__)

WAITING_EVENTS = 10_000
BATCH = 500
LONGEST_ORIGIN = 400
RETENTION_SECONDS = 3600.0
RETRY_SECONDS = 0.5
CLOSE_SECONDS = 2.0
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
SEARCHED = ("action", "actor", "path", "reason", "details")
# Events around the beginning and the end of a span of time, among which the first and the last id of it are.
NEIGHBOURS = 5000


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


# By name, so that a column which a newer instance adds does not trouble an older one.
_NAMES = [column.name for column in fields(AuditEvent)]
_COLUMNS = ", ".join(_NAMES)
_INSERT = f"INSERT INTO audit_events ({_COLUMNS}) VALUES (:{', :'.join(_NAMES)}) ON CONFLICT (id) DO NOTHING"


def event_of(who: Who, action: str, **facts: Any) -> AuditEvent:
    """An event with the origin filled in; what a client chose freely is cut to a sane length, and to text that can be stored."""
    origin: dict[str, Any] = {name: _storable(value) if value else None for name, value in who._asdict().items()}
    return AuditEvent(action=action, **origin, **facts)


def _storable(text: str) -> str:
    return text[:LONGEST_ORIGIN].encode(errors="replace").decode().replace("\0", "?")


def shown(event: AuditEvent) -> dict[str, Any]:
    """The event as the API and the file show it."""
    return {**asdict(event), "timestamp": to_rfc3339(event.timestamp)}


async def insert(connection: Connection, events: Sequence[AuditEvent]) -> None:
    """Write events to the table."""
    rows = [{**vars(event), "details": orjson.dumps(event.details).decode()} for event in events]
    await connection.executemany(_INSERT, rows)


def _from_row(row: Row) -> AuditEvent:
    return AuditEvent(**{**row, "details": orjson.loads(row["details"])})


async def get(connection: Connection, id: str) -> AuditEvent | None:
    """One event by its id."""
    row = await connection.fetch_one(f"SELECT {_COLUMNS} FROM audit_events WHERE id = :id", {"id": id})
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
        params["search"] = pattern(params["search"])
        conditions.append(contains("search", *SEARCHED))
    return [
        _from_row(row) for row in await select_page(connection, f"SELECT {_COLUMNS} FROM audit_events", conditions, params, page)
    ]


class Looked(NamedTuple):
    """A page of events, found among a bounded number of them.

    Attributes:
        events: one more than asked when there are more that way.
        until: the last event that was looked at, where there are more to look at.
    """

    events: list[AuditEvent]
    until: AuditEvent | None = None


async def look(connection: Connection, page: Page, filters: Mapping[str, Any], most: int = MOST) -> Looked:
    """What `find` does, for people who wait: with several filters, or a text to search, it ends after `most` events."""
    span = await _span(connection, filters)
    if span is None:
        return Looked([])
    params = {**filters, "search": pattern(filters.get("search", ""))}
    # The index of times would bring every event of the span, to be sorted by id; the sum keeps databases from it.
    times = ["timestamp + 0 >= :start_time"] if "start_time" in filters else []
    times += ["timestamp + 0 < :end_time"] if "end_time" in filters else []
    search = Search(
        _COLUMNS,
        "audit_events",
        exact=[name for name in EXACT_FILTERS if name in filters],
        first=span.get("first"),
        last=span.get("last"),
        frequent=times,
        rare=[contains("search", *SEARCHED)] if "search" in filters else [],
        most=most,
    )
    found = await search_page(connection, search, params, page)
    return Looked([_from_row(row) for row in found.rows], await get(connection, found.until) if found.until else None)


async def _span(connection: Connection, filters: Mapping[str, Any]) -> dict[str, str] | None:
    """Between which ids the events of a span of time are; None where there are none.

    Ids and times were given by one clock, at once. Clocks are set, and several differ a little, hence many neighbours.
    """
    found: dict[str, str] = {}
    for name, best, condition, order in (
        ("first", "MIN", "timestamp >= :start_time", "ASC"),
        ("last", "MAX", "timestamp < :end_time", "DESC"),
    ):
        if condition.rpartition(":")[2] not in filters:
            continue
        row = await connection.fetch_one(
            f"SELECT {best}(id) AS id "
            f"FROM (SELECT id FROM audit_events WHERE {condition} ORDER BY timestamp {order} LIMIT :most) AS near",
            {**filters, "most": NEIGHBOURS},
        )
        if row is None or row["id"] is None:
            return None
        found[name] = row["id"]
    return found


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

    @property
    def waiting(self) -> int:
        """How many events are yet to be written."""
        return self._waiting.qsize() + len(self._batch)

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
        last = self._sampled.get(key)
        # A clock that was set back must not silence a subject until it has caught up.
        if last is not None and 0 <= event.timestamp - last < MINUTE_MS:
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
        """Write until nothing waits."""
        while self._batch or not self._waiting.empty():
            while len(self._batch) < BATCH and not self._waiting.empty():
                self._batch.append(self._waiting.get_nowait())
            try:
                await insert(self._database, self._batch)
                self._batch = []
            except DatabaseUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
            except Exception:
                await self._store_singly()

    async def _store_singly(self) -> None:
        """Drop the event of the batch that no database takes, lest it keep all others out."""
        while self._batch:
            event = self._batch[0]
            try:
                await insert(self._database, [event])
            except DatabaseUnavailable:
                await asyncio.sleep(RETRY_SECONDS)
                continue
            except Exception:
                log.exception("audit event lost, it cannot be stored: %s by %s", event.action, event.actor)
            self._batch.pop(0)

    async def expire(self) -> None:
        """Delete what is older than the retention; runs until cancelled."""
        while self._retention_ms:
            try:
                await self._delete_old()
            except DatabaseUnavailable:
                log.warning("old audit events wait for the database to be deleted")
            await asyncio.sleep(RETENTION_SECONDS)

    async def _delete_old(self) -> None:
        # In pieces: one statement over years of events would hold up everyone else's, or run into its time limit.
        sql = "DELETE FROM audit_events WHERE id IN (SELECT id FROM audit_events WHERE timestamp < :old LIMIT :most)"
        while await self._database.execute(sql, {"old": now_ms() - self._retention_ms, "most": BATCH}) == BATCH:
            pass

    async def close(self) -> None:
        """Write what still waits, as far as that is possible within two seconds."""
        try:
            async with asyncio.timeout(CLOSE_SECONDS):
                await self._store()
        except TimeoutError:
            log.error("%d audit events lost: the database does not answer", self.waiting)
        if self._file:
            await asyncio.to_thread(self._file.close)


class AuditFile:
    """Appends JSON lines to a file from a thread of its own.

    The disk full or slow: what cannot be written is logged as not copied; it is in the database all the same.

    Raises:
        SettingsError: the file cannot be opened.
    """

    def __init__(self, path: pathlib.Path) -> None:
        self._path = path
        try:
            self._file = self._open()
        except OSError as error:
            raise SettingsError(f"AUDIT_LOG_FILE={path}: cannot be opened: {error}. Give a file that may be written.") from error
        self._queue: queue.Queue[AuditEvent | None] = queue.Queue(WAITING_EVENTS)
        self._stale = threading.Event()
        self._thread = threading.Thread(target=self._run, name="audit-file", daemon=True)
        self._thread.start()

    def append(self, event: AuditEvent) -> None:
        """Queue an event; never blocks."""
        try:
            self._queue.put_nowait(event)
        except queue.Full:
            log.error("audit event not copied to %s: the disk is too slow", self._path)

    def reopen(self) -> None:
        """Open the path anew before the next line."""
        self._stale.set()

    def close(self) -> None:
        """Write what is queued, for a few seconds at most, then end."""
        with contextlib.suppress(queue.Full):
            self._queue.put(None, timeout=CLOSE_SECONDS)
        self._thread.join(CLOSE_SECONDS)
        if self._thread.is_alive():
            log.error("the last audit events not copied to %s: the disk is too slow", self._path)

    def _open(self) -> BinaryIO:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        return self._path.open("ab", buffering=0)

    def _run(self) -> None:
        while event := self._queue.get():
            try:
                if self._stale.is_set():
                    self._change_files()
                self._file.write(orjson.dumps(shown(event), option=orjson.OPT_APPEND_NEWLINE))
            except (OSError, TypeError):
                log.exception("audit event not copied to %s", self._path)
        self._file.close()

    def _change_files(self) -> None:
        """Go on in a fresh file; where that cannot be opened, in the old one, until it can."""
        self._stale.clear()
        try:
            fresh = self._open()
        except OSError:
            self._stale.set()
            log.exception("%s cannot be opened anew, the old file goes on", self._path)
            return
        self._file.close()
        self._file = fresh
