"""What changed in the database, told to who listens."""

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager
from typing import Any, NamedTuple

import orjson

from llm_proxy.clock import now_ms
from llm_proxy.db import Connection, Database
from llm_proxy.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

KEPT_MS = 3_600_000
BATCH = 1000


class Change(NamedTuple):
    """One change.

    Attributes:
        kind: project, provider, token, cache_purge, reload; `everything` when so much was missed that nothing cached may be
            trusted.
        ref: the id of what changed.
        payload: further facts for the listener.
    """

    kind: str
    ref: str
    payload: Mapping[str, Any] = {}


EVERYTHING = Change("everything", "")

Listener = Callable[[Change], None]


async def record(tx: Connection, change: Change) -> None:
    """Write a change in the transaction that makes it.

    The row lock on config_version keeps the order of versions the order of commits.
    """
    now = now_ms()
    row = await tx.fetch_one(
        "UPDATE config_version SET version = version + 1, updated_at = :now WHERE id = 1 RETURNING version", {"now": now}
    )
    assert row is not None
    await tx.execute(
        "INSERT INTO changes (version, at, kind, ref, payload) VALUES (:version, :at, :kind, :ref, :payload)",
        {
            "version": row["version"],
            "at": now,
            "kind": change.kind,
            "ref": change.ref,
            "payload": orjson.dumps(change.payload).decode(),
        },
    )
    await tx.execute("DELETE FROM changes WHERE at < :old", {"old": now - KEPT_MS})
    await tx.notify()


async def version(connection: Connection) -> tuple[int, int]:
    """The version of the newest change, with the time of it in milliseconds, 0 before the first."""
    row = await connection.fetch_one("SELECT version, updated_at FROM config_version WHERE id = 1")
    return (row["version"], row["updated_at"]) if row else (0, 0)


class ChangeFeed:
    """Tells listeners of changes, its own process's and the others', each once and in order."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._listeners: list[Listener] = []
        self._tellers: list[Callable[[], None]] = []
        self._seen = 0
        self._reading = asyncio.Lock()

    def listen(self, listener: Listener) -> None:
        """Call `listener` with every change from now on."""
        self._listeners.append(listener)

    def tell_by(self, teller: Callable[[], None]) -> None:
        """Call `teller` after every change made here, so that others look; it must not wait."""
        self._tellers.append(teller)

    async def start(self) -> None:
        """Begin at the present version."""
        self._seen = await self._newest()

    async def follow(self) -> None:
        """Look whenever the database hints at something new; runs until cancelled."""
        while True:
            try:
                async with aclosing(self._database.hints()) as hints:  # type: ignore[type-var]
                    async for _ in hints:
                        await self.catch_up()
            except DatabaseUnavailable:
                log.warning("the database does not answer; changes made elsewhere are noticed when it is back")
                await asyncio.sleep(0.25)

    async def catch_up(self) -> None:
        """Apply what is new; after it, every committed change is in force in this process."""
        async with self._reading:
            newest = await self._newest()
            if newest < self._seen:
                # An older database stands here now: a backup, or a replica that had lagged.
                self._tell(EVERYTHING)
                self._seen = newest
            while self._seen < newest:
                await self._read_on(newest)

    async def _read_on(self, newest: int) -> None:
        rows = await self._unseen()
        last = rows[-1]["version"] if rows else newest
        if last - self._seen != len(rows):
            # Some were so old that they are gone.
            self._tell(EVERYTHING)
        for row in rows:
            self._tell(Change(row["kind"], row["ref"], orjson.loads(row["payload"])))
        self._seen = last

    async def _newest(self) -> int:
        return (await version(self._database))[0]

    async def _unseen(self) -> list[Mapping[str, Any]]:
        return await self._database.fetch_all(
            "SELECT version, kind, ref, payload FROM changes WHERE version > :seen ORDER BY version LIMIT :batch",
            {"seen": self._seen, "batch": BATCH},
        )

    def _tell(self, change: Change) -> None:
        for listener in self._listeners:
            listener(change)

    @asynccontextmanager
    async def changing(self) -> AsyncIterator[Connection]:
        """A transaction whose recorded changes are in force in this process when the block has ended."""
        async with self._database.transaction() as tx:
            yield tx
        await self.committed()

    async def committed(self) -> None:
        """Tell of changes that were just committed; when this returns, they are in force in this process."""
        for teller in self._tellers:
            teller()
        # The change is made; that this process cannot look at it now must not make it seem to have failed.
        with contextlib.suppress(DatabaseUnavailable):
            await self.catch_up()
