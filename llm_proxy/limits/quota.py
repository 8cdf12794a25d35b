"""Request quotas, exact over any number of processes, by leases on the token's row."""

import asyncio
import logging
import time
from dataclasses import dataclass, field

from llm_proxy.changes import Change
from llm_proxy.clock import now_ms
from llm_proxy.db import Connection, Row
from llm_proxy.errors import ApiError, DatabaseUnavailable
from llm_proxy.tasks import to_the_end
from llm_proxy.tokens import Token, unknown_token

log = logging.getLogger(__name__)

FLUSH_SECONDS = 1.0
UNUSED_SECONDS = 2.0
LARGEST_LEASE = 4096
# With this many requests left or fewer, instances take them one by one, so that none is refused for another's unused lease.
SINGLE_BELOW = 64
# A lease that lasted no longer than this was too small.
BRISK_SECONDS = 0.5

_TAKE = (
    "UPDATE tokens SET request_count = request_count + :n, last_used_at = :now WHERE id = :id AND is_active "
    "AND (expires_at IS NULL OR expires_at > :now) AND (max_requests IS NULL OR request_count + :n <= max_requests) "
    "RETURNING request_count, max_requests"
)


def next_size(size: int, lasted: float, remaining: int) -> int:
    """How many requests to lease next.

    Args:
        size: the lease before.
        lasted: the seconds in which that was used up.
        remaining: what the row had left after it.
    """
    if remaining <= SINGLE_BELOW:
        return 1
    wanted = size * 2 if lasted < BRISK_SECONDS else max(1, size // 2)
    return min(wanted, remaining // 8, LARGEST_LEASE)


@dataclass
class Lease:
    """Requests that this process has counted in the row, and not yet spent."""

    left: int = 0
    size: int = 1
    remaining: int = 0
    taken_at: float = 0.0
    used_at: float = 0.0
    filling: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quota:
    """Takes requests from tokens, and gives back what was not used.

    The database away: a lease goes on while it lasts, then `DatabaseUnavailable`; counts of tokens without a quota wait in
    memory. A crash leaves its leases counted as used, so that the quota is never exceeded.
    """

    def __init__(self, database: Connection) -> None:
        self._database = database
        self._leases: dict[str, Lease] = {}
        self._counts: dict[str, int] = {}

    async def take(self, token: Token) -> None:
        """Take one request.

        Raises:
            ApiError: `request_limit_exhausted`, or what else the row says meanwhile.
            DatabaseUnavailable: a lease is needed and the database does not answer.
        """
        if token.max_requests is None:
            self._counts[token.id] = self._counts.get(token.id, 0) + 1
            return
        lease = self._leases.get(token.id)
        if lease and lease.left:
            self._spend(lease)
        else:
            # A statement that was cut off may have counted; it has to end, so that what it took can be given back.
            await to_the_end(self._draw(token), lambda _: self.give_back(token))

    def _spend(self, lease: Lease) -> None:
        lease.left -= 1
        lease.used_at = time.monotonic()

    async def _draw(self, token: Token) -> None:
        while True:
            lease = self._leases.setdefault(token.id, Lease())
            async with lease.filling:
                # While this waited for its turn, the lease may have been returned.
                if self._leases.get(token.id) is not lease:
                    continue
                if not lease.left:
                    await self._fill(token, lease)
                return self._spend(lease)

    async def _fill(self, token: Token, lease: Lease) -> None:
        now = time.monotonic()
        size = next_size(lease.size, now - lease.taken_at, lease.remaining)
        row = await self._take(token.id, size)
        if row is None and size > 1:
            size = 1
            row = await self._take(token.id, 1)
        if row is None:
            raise await self._refusal(token.id)
        lease.left += size
        lease.size, lease.taken_at = size, now
        lease.remaining = (row["max_requests"] or 0) - row["request_count"]

    async def _take(self, id: str, n: int) -> Row | None:
        return await self._database.fetch_one(_TAKE, {"id": id, "n": n, "now": now_ms()})

    async def _refusal(self, id: str) -> ApiError:
        row = await self._database.fetch_one(
            "SELECT t.is_active, t.expires_at, t.max_requests, t.request_count FROM tokens t WHERE t.id = :id", {"id": id}
        )
        if row is None:
            return unknown_token()
        if not row["is_active"]:
            return ApiError("token_inactive", "This token was revoked. Ask for a new one.")
        if row["expires_at"] is not None and row["expires_at"] <= now_ms():
            return ApiError("token_expired", "This token has expired. Ask for a new one.")
        return ApiError(
            "request_limit_exhausted",
            f"All {row['max_requests']} requests of this token are used up. Ask for a new token or a larger quota.",
        )

    def give_back(self, token: Token) -> None:
        """Return one request that reached no provider."""
        if token.max_requests is None:
            self._counts[token.id] = self._counts.get(token.id, 0) - 1
        else:
            lease = self._leases.setdefault(token.id, Lease())
            lease.left += 1
            lease.used_at = time.monotonic()

    def unused(self, id: str) -> int:
        """What this process holds of a token's count without having used it, less what it has not yet written."""
        lease = self._leases.get(id)
        return (lease.left if lease else 0) - self._counts.get(id, 0)

    def on_change(self, change: Change) -> None:
        """A changed token's lease goes back with the next flush: its quota may be another one now."""
        if change.kind == "token" and (lease := self._leases.get(change.ref)):
            lease.used_at = 0.0

    async def flush(self) -> None:
        """Write counts and return idle leases every second; runs until cancelled."""
        while True:
            await asyncio.sleep(FLUSH_SECONDS)
            try:
                await self.settle(idle_for=UNUSED_SECONDS)
            except DatabaseUnavailable:
                log.warning("request counts wait in memory: the database does not answer")

    async def settle(self, idle_for: float = 0.0) -> None:
        """Write all counts, and return leases that were not used for `idle_for` seconds."""
        await self._write_counts()
        oldest = time.monotonic() - idle_for
        for id, lease in list(self._leases.items()):
            if lease.used_at <= oldest and not lease.filling.locked():
                await self._return(id, lease)

    async def _write_counts(self) -> None:
        counts, self._counts = self._counts, {}
        now = now_ms()
        rows = [{"id": id, "n": n, "now": now} for id, n in counts.items() if n]
        if not rows:
            return
        try:
            await self._database.executemany(
                "UPDATE tokens SET request_count = request_count + :n, last_used_at = :now WHERE id = :id", rows
            )
        except DatabaseUnavailable:
            for id, n in counts.items():
                self._counts[id] = self._counts.get(id, 0) + n
            raise

    async def _return(self, id: str, lease: Lease) -> None:
        # Removed before the write: a call that comes meanwhile starts a lease of its own. Should the write fail, what was
        # leased stays counted as used, which errs on the safe side.
        self._leases.pop(id, None)
        left, lease.left = lease.left, 0
        if left:
            await self._database.execute(
                "UPDATE tokens SET request_count = request_count - :n WHERE id = :id", {"id": id, "n": left}
            )
