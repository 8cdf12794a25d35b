"""What was done is kept, whatever the database or the disk does meanwhile."""

import asyncio
import contextlib
import json
import logging
import os
import pathlib
import threading
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest

from llm_proxy import audit
from llm_proxy.audit import EXACT_FILTERS, AuditEvent, AuditLog, Who, event_of, find, get, insert, look, shown
from llm_proxy.clock import DAY_MS, MINUTE_MS, now_ms
from llm_proxy.db import Database, Params, Row
from llm_proxy.db.sql import Page
from llm_proxy.errors import DatabaseUnavailable, SettingsError

WHO = Who("operator:1", "192.0.2.1", "POST", "/manage/projects", "curl/8", "r1", "c1")


class Away:
    """A database that is away when told so, and keeps what it is given when not."""

    def __init__(self) -> None:
        self.away = False
        self.rows: dict[str, Params] = {}
        self.tried = asyncio.Event()
        self.proceed = asyncio.Event()
        self.proceed.set()

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        self.tried.set()
        if self.away:
            raise DatabaseUnavailable
        if any(row["action"] == "poison" for row in rows):
            raise ValueError("no database takes this")
        self.rows |= {row["id"]: row for row in rows}
        await self.proceed.wait()

    async def execute(self, sql: str, params: Params) -> int:
        self.tried.set()
        raise DatabaseUnavailable

    async def fetch_all(self, sql: str, params: Params) -> list[Row]:
        raise DatabaseUnavailable

    async def fetch_one(self, sql: str, params: Params) -> Row | None:
        raise DatabaseUnavailable

    async def notify(self) -> None:
        raise DatabaseUnavailable


def audit_log(database: Any, *, enabled: bool = True, file: str = "", retention_days: int = 0) -> AuditLog:
    return AuditLog(database, enabled=enabled, file=file, retention_days=retention_days)


def events(count: int, action: str = "call.refuse", **facts: Any) -> list[AuditEvent]:
    return [event_of(WHO, action, **facts) for _ in range(count)]


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(10):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


async def until_found(database: Database, count: int) -> None:
    async with asyncio.timeout(10):
        while len(await find(database, Page(200), {})) != count:  # noqa: ASYNC110
            await asyncio.sleep(0.005)


@contextlib.asynccontextmanager
async def running(coroutine: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(coroutine)
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled(), task.exception()


# Events


def test_event_carries_who_asked_and_what_was_done() -> None:
    event = event_of(WHO, "project.create", project_id="p1", details={"after": {"name": "x"}})
    told = shown(event)
    assert (told["actor"], told["client_ip"], told["user_agent"]) == ("operator:1", "192.0.2.1", "curl/8")
    assert (told["action"], told["outcome"], told["project_id"], told["details"]) == (
        "project.create",
        "success",
        "p1",
        {"after": {"name": "x"}},
    )
    assert told["timestamp"].endswith("Z")


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("x" * 500, "x" * 400),
        ("half \udce9", "half ?"),
        ("nul \0", "nul ?"),
        ("Grüße", "Grüße"),
        ("", None),
        (None, None),
    ],
)
def test_what_a_client_chose_is_made_fit_to_be_stored(given: str | None, kept: str | None) -> None:
    event = event_of(WHO._replace(user_agent=given, path=given), "call.refuse")
    assert (event.user_agent, event.path) == (kept, kept)


async def test_event_comes_back_from_the_table_as_it_was(database: Database) -> None:
    event = event_of(WHO, "token.create", token_id="t1", reason="why", details={"before": {"n": None}, "name": "Grüße \0 'x'"})
    await insert(database, [event])
    assert await get(database, event.id) == event
    assert await get(database, "missing") is None


async def test_event_that_is_there_already_is_not_written_again(database: Database) -> None:
    [event] = events(1)
    await insert(database, [event])
    await insert(database, [replace(event, actor="another"), *events(1)])
    found = await find(database, Page(), {})
    assert len(found) == 2
    assert event in found


# Searching


async def test_every_filter_is_exact(database: Database) -> None:
    wanted = {name: replace(events(1)[0], **{name: f"{name} a%b"}) for name in EXACT_FILTERS}
    await insert(database, [*wanted.values(), *(replace(events(1)[0], **{name: f"{name} axb"}) for name in EXACT_FILTERS)])
    found = {name: await find(database, Page(), {name: f"{name} a%b"}) for name in EXACT_FILTERS}
    assert found == {name: [event] for name, event in wanted.items()}
    assert [await find(database, Page(), {name: f"{name} a%"}) for name in EXACT_FILTERS] == [[]] * len(EXACT_FILTERS)


async def test_filters_narrow_each_other(database: Database) -> None:
    one, two, three = events(1, "a", project_id="p1")[0], events(1, "a", project_id="p2")[0], events(1, "b", project_id="p1")[0]
    await insert(database, [one, two, three])
    assert await find(database, Page(), {"action": "a", "project_id": "p1"}) == [one]


async def test_times_hold_the_start_but_not_the_end(database: Database) -> None:
    made = [replace(event, timestamp=time) for event, time in zip(events(4), (10, 20, 30, 40), strict=True)]
    await insert(database, made)
    found = await find(database, Page(), {"start_time": 20, "end_time": 40})
    assert [event.timestamp for event in found] == [30, 20]
    assert len(await find(database, Page(), {"start_time": 20})) == 3
    assert len(await find(database, Page(), {"end_time": 20})) == 1


SEARCHES = [
    ("100%", "now 100% done", "now 100 percent done"),
    ("a_b", "name a_b here", "name axb here"),
    ("a\\b", "path a\\b", "path a/b"),
    ("\\%", "odd \\% one", "odd % one"),
    ("it's", "it's here", "its here"),
    ("MiXeD", "a mixed case", "a mix"),
    ("mixed", "A MIXED CASE", "A MIX"),
    ("Straße", "in der Straße", "in der Strasse"),
    ("ÜBER", "ÜBER alles", "UBER alles"),
    (":end", "a :end", "an end"),
]


async def test_search_takes_the_text_as_it_is_in_any_case(database: Database) -> None:
    for search, hit, miss in SEARCHES:
        await insert(database, [replace(events(1)[0], reason=reason, token_id=search) for reason in (hit, miss)])
    found = {
        search: [event.reason for event in await find(database, Page(), {"search": search, "token_id": search})]
        for search, _, _ in SEARCHES
    }
    assert found == {search: [hit] for search, hit, _ in SEARCHES}


async def test_search_looks_into_every_text(database: Database) -> None:
    places = {
        "action": "a needle",
        "actor": "needles",
        "path": "/needle",
        "reason": "NEEDLE",
        "details": {"after": {"n": "needle"}},
    }
    wanted = [replace(events(1)[0], **{place: value}) for place, value in places.items()]
    await insert(database, [*wanted, *events(2), replace(events(1)[0], user_agent="needle")])
    assert await find(database, Page(), {"search": "needle", "method": "POST"}) == wanted[::-1]


async def test_pages_go_from_the_newest_to_the_oldest_without_a_gap(database: Database) -> None:
    made = events(5)
    await insert(database, made)
    first = await find(database, Page(2), {})
    second = await find(database, Page(2, first[1].id), {})
    last = await find(database, Page(2, second[1].id), {})
    assert first[:2] + second[:2] + last == made[::-1]
    assert [len(first), len(second), len(last)] == [3, 3, 1]


# Writing


async def test_events_outside_transactions_reach_the_table(database: Database) -> None:
    log, made = audit_log(database), events(3)
    async with running(log.write()):
        for event in made:
            log.append(event)
        await until_found(database, 3)
    assert await find(database, Page(), {}) == made[::-1]
    await log.close()


async def test_close_writes_what_waits(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    # So many rows may take a busy machine longer than a stop waits for them.
    monkeypatch.setattr(audit, "CLOSE_SECONDS", 60)
    log, made = audit_log(database), events(1200)
    for event in made:
        log.append(event)
    await log.close()
    row = await database.fetch_one("SELECT COUNT(*) AS n FROM audit_events")
    assert row and row["n"] == 1200


async def test_database_away_for_a_while_loses_nothing_up_to_the_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.01)
    database = Away()
    database.away = True
    log, made = audit_log(database), events(audit.WAITING_EVENTS + 1)
    async with running(log.write()):
        log.append(made[0])
        await database.tried.wait()
        for event in made[1:]:
            log.append(event)
        assert not caplog.records
        log.append(events(1, "one.too.many")[0])
        assert caplog.messages == ["audit event lost, the database has been away too long: one.too.many by operator:1"]
        database.away = False
        await until(lambda: len(database.rows) == len(made))
    assert list(database.rows) == [event.id for event in made]
    await log.close()


async def test_writer_that_is_cut_in_the_middle_leaves_its_batch_to_close() -> None:
    database = Away()
    database.proceed.clear()
    log, made = audit_log(database), events(3)
    async with running(log.write()):
        for event in made:
            log.append(event)
        await database.tried.wait()
    database.rows.clear()
    database.proceed.set()
    await log.close()
    assert list(database.rows) == [event.id for event in made]


@pytest.mark.parametrize("away", [False, True])
async def test_event_that_cannot_be_stored_takes_no_other_with_it(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, away: bool
) -> None:
    monkeypatch.setattr(audit, "RETRY_SECONDS", 0.01)
    database = Away()
    database.away = away
    log, made = audit_log(database), events(5)
    made[2] = replace(made[2], action="poison")
    made[3] = replace(made[3], details={"odd": "\udce9"})
    async with running(log.write()):
        for event in made:
            log.append(event)
        if away:
            await database.tried.wait()
            database.away = False
        await until(lambda: len(database.rows) == 3)
        log.append(events(1, "after")[0])
        await until(lambda: len(database.rows) == 4)
    assert [row["action"] for row in database.rows.values()] == ["call.refuse"] * 3 + ["after"]
    assert caplog.messages == [
        f"audit event lost, it cannot be stored: {action} by operator:1" for action in ("poison", "call.refuse")
    ]


async def test_close_gives_up_on_a_database_that_stays_away(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(audit, "CLOSE_SECONDS", 0.05)
    database = Away()
    database.away = True
    log = audit_log(database)
    for event in events(3):
        log.append(event)
    await log.close()
    assert caplog.messages == ["3 audit events lost: the database does not answer"]


async def test_disabled_log_keeps_nothing(tmp_path: pathlib.Path) -> None:
    database = Away()
    log = audit_log(database, enabled=False, file=str(tmp_path / "audit.log"))
    log.append(events(1)[0])
    log.append_sampled(events(1)[0], "x")
    log.reopen()
    await log.close()
    assert database.rows == {}
    assert not (tmp_path / "audit.log").exists()


# Sampling


@pytest.mark.parametrize(
    ("subject", "reason", "after_ms", "kept"),
    [
        pytest.param("t1", "token_expired", MINUTE_MS - 1, False, id="within the minute"),
        pytest.param("t1", "token_expired", MINUTE_MS, True, id="after a minute"),
        pytest.param("t1", "token_inactive", 0, True, id="another reason"),
        pytest.param("t2", "token_expired", 0, True, id="another subject"),
        pytest.param("t1", "token_expired", -3_600_000, True, id="the clock was set back"),
    ],
)
async def test_refusals_are_sampled_by_subject_reason_and_minute(subject: str, reason: str, after_ms: int, kept: bool) -> None:
    database = Away()
    log = audit_log(database)
    first = event_of(WHO, "call.refuse", reason="token_expired")
    second = replace(event_of(WHO, "call.refuse", reason=reason), timestamp=first.timestamp + after_ms)
    for event, about in ((first, "t1"), (second, subject)):
        log.append_sampled(event, about)
    await log.close()
    assert (second.id in database.rows) is kept
    assert first.id in database.rows


async def test_subjects_remembered_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "WAITING_EVENTS", 100)
    log = audit_log(Away())
    for number in range(250):
        log.append_sampled(events(1)[0], f"192.0.2.{number}")
    assert len(log._sampled) <= 100
    await log.close()


# The file


def lines(path: pathlib.Path) -> list[Mapping[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


async def test_every_event_is_a_line_of_the_file_too(tmp_path: pathlib.Path) -> None:
    path, made = tmp_path / "deep" / "audit.log", events(100)
    log = audit_log(Away(), file=str(path))
    for event in made[:50]:
        log.append(event)
    for event in made[50:]:
        log.copy(event)
    await log.close()
    assert lines(path) == [shown(event) for event in made]


async def test_file_that_was_rotated_away_is_opened_anew(tmp_path: pathlib.Path) -> None:
    path, made = tmp_path / "audit.log", events(2)
    log = audit_log(Away(), file=str(path))
    log.copy(made[0])
    await until(lambda: len(lines(path)) == 1)
    path.rename(tmp_path / "audit.log.1")
    log.reopen()
    log.copy(made[1])
    await log.close()
    assert [event["id"] for event in lines(tmp_path / "audit.log.1")] == [made[0].id]
    assert [event["id"] for event in lines(path)] == [made[1].id]


async def test_old_file_goes_on_while_the_new_one_cannot_be_opened(
    tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture
) -> None:
    path, old, made = tmp_path / "audit.log", tmp_path / "audit.log.1", events(2)
    log = audit_log(Away(), file=str(path))
    path.rename(old)
    path.mkdir()
    log.reopen()
    log.copy(made[0])
    await until(lambda: len(lines(old)) == 1)
    assert caplog.messages == [f"{path} cannot be opened anew, the old file goes on"]
    path.rmdir()
    log.copy(made[1])
    await log.close()
    assert [event["id"] for event in lines(path)] == [made[1].id]


async def test_file_is_appended_to(tmp_path: pathlib.Path) -> None:
    path = tmp_path / "audit.log"
    for event in events(2):
        log = audit_log(Away(), file=str(path))
        log.copy(event)
        await log.close()
    assert len(lines(path)) == 2


def test_file_that_cannot_be_opened_stops_the_start(tmp_path: pathlib.Path) -> None:
    with pytest.raises(SettingsError, match=r"AUDIT_LOG_FILE=.*: cannot be opened: .*Give a file that may be written"):
        audit_log(Away(), file=str(tmp_path))


async def test_line_that_cannot_be_written_costs_no_other(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    path, made = tmp_path / "audit.log", events(3)
    made[1] = replace(made[1], details={"odd": "\udce9"})
    log = audit_log(Away(), file=str(path))
    for event in made:
        log.copy(event)
    await log.close()
    assert [event["id"] for event in lines(path)] == [made[0].id, made[2].id]
    assert caplog.messages == [f"audit event not copied to {path}"]


async def test_disk_that_stalls_blocks_nobody(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(audit, "WAITING_EVENTS", 200)
    monkeypatch.setattr(audit, "CLOSE_SECONDS", 0.05)
    os.mkfifo("audit.pipe")
    # Nobody reads from the pipe until the end, so that the writer gets stuck when it is full.
    reader = os.open("audit.pipe", os.O_RDONLY | os.O_NONBLOCK)
    log = audit_log(Away(), file="audit.pipe")
    for event in events(1000):
        log.copy(event)
    assert "audit event not copied to audit.pipe: the disk is too slow" in caplog.messages
    await log.close()
    assert caplog.messages[-1] == "the last audit events not copied to audit.pipe: the disk is too slow"
    os.close(reader)
    await log.close()
    await until(lambda: not any(thread.name == "audit-file" for thread in threading.enumerate()))


# Retention


async def test_old_events_are_deleted_in_pieces_the_others_kept(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "BATCH", 10)
    now = now_ms()
    old = [replace(event, timestamp=now - 3 * DAY_MS) for event in events(35)]
    kept = [replace(event, timestamp=now - DAY_MS) for event in events(5)]
    await insert(database, [*old, *kept])
    log = audit_log(database, retention_days=2)
    async with running(log.expire()):
        await until_found(database, 5)
    assert await find(database, Page(100), {}) == kept[::-1]


async def test_without_a_retention_everything_is_kept(database: Database) -> None:
    ancient = replace(events(1)[0], timestamp=0)
    await insert(database, [ancient])
    await audit_log(database).expire()
    assert await find(database, Page(), {}) == [ancient]


async def test_retention_waits_for_a_database_that_is_away(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    database = Away()
    async with running(audit_log(database, retention_days=1).expire()):
        await database.tried.wait()
        await until(lambda: bool(caplog.messages))
    assert caplog.messages == ["old audit events wait for the database to be deleted"]


@pytest.mark.parametrize("most", [7, 1000], ids=["in pieces", "at once"])
@pytest.mark.parametrize(
    "filters",
    [
        pytest.param({}, id="everything"),
        pytest.param({"action": "a1"}, id="one filter"),
        pytest.param({"action": "a1", "actor": "b2"}, id="two filters"),
        pytest.param({"search": "NEEDLE"}, id="a text"),
        pytest.param({"search": "needle", "action": "a0"}, id="a text and a filter"),
        pytest.param({"start_time": 40}, id="from a time"),
        pytest.param({"end_time": 40}, id="up to a time"),
        pytest.param({"start_time": 20, "end_time": 60}, id="a span of time"),
        pytest.param({"start_time": 20, "end_time": 60, "action": "a0", "search": "needle"}, id="everything at once"),
        pytest.param({"start_time": 500}, id="a span without events"),
    ],
)
async def test_what_people_look_for_is_what_the_api_finds(database: Database, filters: dict[str, Any], most: int) -> None:
    # Two clocks that differ a little: the order of ids is not quite that of times.
    events = [
        AuditEvent(f"a{n % 2}", f"b{n % 3}", timestamp=n + n % 2 * 5, details={"word": "Needle" if n % 4 == 0 else "hay"})
        for n in range(80)
    ]
    await database.execute("DELETE FROM audit_events")
    await insert(database, events)
    wanted = [event.id for event in await find(database, Page(200), filters)]
    assert bool(wanted) == (filters != {"start_time": 500})
    found, page = list[str](), Page(9)
    while True:
        looked = await look(database, page, filters, most)
        shown = [event.id for event in looked.events[:9]]
        found += shown
        end = shown[-1] if len(looked.events) > 9 else looked.until and looked.until.id
        if end is None:
            break
        page = Page(9, after=end)
    assert found == wanted
