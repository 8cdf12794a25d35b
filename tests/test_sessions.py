"""Sessions last as long as they should, on both databases, and nothing stored opens one."""

import asyncio
import dataclasses

import pytest

from llm_proxy import sessions
from llm_proxy.clock import DAY_MS, MINUTE_MS
from llm_proxy.db import Database
from llm_proxy.sessions import IDLE_MS, LONG_MS, SHORT_MS, Sessions

OPERATOR = "f" * 64


class Clock:
    """Milliseconds that a test sets."""

    now = 1_800_000_000_000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def ended() -> list[str]:
    """Why sessions have ended by themselves."""
    return []


@pytest.fixture
def known(database: Database, ended: list[str], clock: Clock) -> Sessions:
    return Sessions(database, {OPERATOR}, lambda session, reason: ended.append(reason), clock)


async def test_an_idle_session_ends_and_a_used_one_goes_on_to_its_end(
    database: Database, known: Sessions, ended: list[str], clock: Clock
) -> None:
    id, session = await known.begin(database, OPERATOR, "192.0.2.1", long=False)
    began = clock.now
    while clock.now < began + SHORT_MS - IDLE_MS:
        clock.now += IDLE_MS - 1
        assert await known.recognise(id.reveal())
    clock.now = began + SHORT_MS
    assert await known.recognise(id.reveal()) is None
    other, _ = await known.begin(database, OPERATOR, "192.0.2.1", long=False)
    clock.now += IDLE_MS
    assert await asyncio.gather(*(known.recognise(other.reveal()) for _ in range(5))) == [None] * 5
    assert ended == ["expired", "idle"], "each is told of once"
    clock.now -= IDLE_MS
    assert await known.recognise(other.reveal()) is None, "an ended session does not come back"
    assert session.client_ip == "192.0.2.1"


async def test_a_long_session_may_stand_idle(database: Database, known: Sessions, clock: Clock) -> None:
    id, _ = await known.begin(database, OPERATOR, "192.0.2.1", long=True)
    clock.now += LONG_MS - 1
    assert await known.recognise(id.reveal())
    clock.now += 1
    assert await known.recognise(id.reveal()) is None


async def test_only_hashes_are_stored_and_use_is_written_once_a_minute(database: Database, known: Sessions, clock: Clock) -> None:
    id, session = await known.begin(database, OPERATOR, "192.0.2.1", long=False)
    again, _ = await known.begin(database, OPERATOR, "192.0.2.1", long=False)
    assert id.reveal() != again.reveal() and len(id.reveal()) >= 43
    began = clock.now
    for wait, seen in ((MINUTE_MS - 1, began), (1, began + MINUTE_MS)):
        clock.now += wait
        await known.recognise(id.reveal())
        row = await database.fetch_one("SELECT * FROM admin_sessions WHERE id_hash = :id", {"id": session.id_hash})
        assert row and row["last_seen_at"] == seen
        assert id.reveal() not in str(dict(row))


async def test_a_session_ends_with_its_management_token(
    database: Database, known: Sessions, ended: list[str], clock: Clock
) -> None:
    id, _ = await known.begin(database, OPERATOR, "192.0.2.1", long=True)
    after = Sessions(database, {"another"}, lambda session, reason: ended.append(reason), clock)
    assert await after.recognise(id.reveal()) is None
    assert await known.recognise(id.reveal()) is None
    assert ended == ["management_token_changed"]


async def test_ended_and_expired_sessions_leave_no_row(database: Database, known: Sessions, clock: Clock) -> None:
    _, old = await known.begin(database, OPERATOR, "192.0.2.1", long=True)
    clock.now += 31 * DAY_MS
    _, new = await known.begin(database, OPERATOR, "192.0.2.1", long=False)
    rows = await database.fetch_all("SELECT id_hash FROM admin_sessions")
    assert [row["id_hash"] for row in rows] == [new.id_hash] != [old.id_hash]
    await sessions.end(database, new)
    assert await database.fetch_all("SELECT id_hash FROM admin_sessions") == []


def test_a_clock_that_was_set_back_ends_no_session(clock: Clock) -> None:
    session = sessions.Session("h", clock.now, clock.now, clock.now + SHORT_MS, "", OPERATOR)
    assert session.over_because(clock.now - DAY_MS, {OPERATOR}) is None
    assert dataclasses.replace(session, expires_at=clock.now).over_because(clock.now, {OPERATOR}) == "expired"
