"""Sessions of operators in a browser."""

import hashlib
import secrets
from collections.abc import Callable, Collection
from dataclasses import dataclass, fields

from llm_proxy.clock import DAY_MS, MINUTE_MS, now_ms
from llm_proxy.db import Connection
from llm_proxy.secret import Secret

IDLE_MS = 30 * MINUTE_MS
SHORT_MS = 12 * 60 * MINUTE_MS
LONG_MS = 30 * DAY_MS


@dataclass(frozen=True)
class Session:
    """A session's row; times are milliseconds since the epoch."""

    id_hash: str
    created_at: int
    last_seen_at: int
    expires_at: int
    client_ip: str
    management_hash: str

    @property
    def is_long(self) -> bool:
        """Whether it was asked to last; such a one does not end by standing idle."""
        return self.expires_at - self.created_at > SHORT_MS

    def over_because(self, now: int, operators: Collection[str]) -> str | None:
        """Why it is over at the time `now` in milliseconds, None while it is not.

        Args:
            operators: the fingerprints of all management tokens that are good.
        """
        if self.management_hash not in operators:
            return "management_token_changed"
        if now >= self.expires_at:
            return "expired"
        return "idle" if not self.is_long and now - self.last_seen_at >= IDLE_MS else None


_COLUMNS = ", ".join(column.name for column in fields(Session))


def hash_of(id: str) -> str:
    """What is stored of an id. It has 256 random bits, so that nothing slower is needed."""
    return hashlib.sha256(id.encode(errors="surrogateescape")).hexdigest()


OnEnd = Callable[[Session, str], None]


class Sessions:
    """Begins, recognises and ends sessions.

    The database away: nobody is recognised, and the error says why.

    Args:
        operators: the fingerprints of all management tokens that are good; a session ends when its own is not among them.
        on_end: told once of a session that has ended by itself, with the reason, when somebody comes with its id.
        now: milliseconds since the epoch.
    """

    def __init__(self, database: Connection, operators: Collection[str], on_end: OnEnd, now: Callable[[], int] = now_ms) -> None:
        self._database = database
        self._operators = operators
        self._on_end = on_end
        self._now = now

    async def begin(self, tx: Connection, operator: str, client_ip: str, *, long: bool) -> tuple[Secret, Session]:
        """A new session under a new id, which is returned this one time; those that are over are swept out."""
        id, now = secrets.token_urlsafe(32), self._now()
        session = Session(hash_of(id), now, now, now + (LONG_MS if long else SHORT_MS), client_ip, operator)
        await tx.execute("DELETE FROM admin_sessions WHERE expires_at <= :now", {"now": now})
        values = {column.name: getattr(session, column.name) for column in fields(Session)}
        places = ", ".join(f":{name}" for name in values)
        await tx.execute(f"INSERT INTO admin_sessions ({_COLUMNS}) VALUES ({places})", values)
        return Secret(id), session

    async def find(self, id: str) -> Session | None:
        """The session with this id, while it lasts; that somebody looked at it does not make it last longer."""
        row = await self._database.fetch_one(
            f"SELECT {_COLUMNS} FROM admin_sessions WHERE id_hash = :id_hash", {"id_hash": hash_of(id)}
        )
        if row is None:
            return None
        session = Session(**row)
        reason = session.over_because(self._now(), self._operators)
        if reason is None:
            return session
        # Of several that come at once, one takes it away.
        if await end(self._database, session):
            self._on_end(session, reason)
        return None

    async def recognise(self, id: str) -> Session | None:
        """The session with this id, while it lasts, of which its owner makes use now."""
        session, now = await self.find(id), self._now()
        if session and now - session.last_seen_at >= MINUTE_MS:
            # Not at every request: a page with its parts would be as many writes.
            sql = "UPDATE admin_sessions SET last_seen_at = :now WHERE id_hash = :id_hash"
            await self._database.execute(sql, {"now": now, "id_hash": session.id_hash})
        return session


async def end(connection: Connection, session: Session) -> bool:
    """Forget a session, whoever still has its id; whether it was still there."""
    sql = "DELETE FROM admin_sessions WHERE id_hash = :id_hash"
    return await connection.execute(sql, {"id_hash": session.id_hash}) > 0
