"""Request quotas, exact over any number of processes, by leases on the token's row."""

import asyncio
import logging
import time
from collections.abc import Callable
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

# The size was reckoned from what the row had left a while ago; others may have taken from it since.
_TAKE = (
    "UPDATE tokens SET request_count = request_count + :n, last_used_at = :now WHERE id = :id AND is_active "
    "AND (expires_at IS NULL OR expires_at > :now) AND (max_requests IS NULL OR request_count + :n <= max_requests) "
    "AND (:n = 1 OR max_requests IS NULL "
    "OR (max_requests - request_count > :single AND :n <= (max_requests - request_count) / 8)) "
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
    """Requests that this process has counted in the row, and not yet spent.

    Attributes:
        left: how many may still be spent.
        stale: how many may not be spent any more, and go back.
        size: how many were leased last, at the time `taken_at`.
        remaining: what the row had left after that.
        answers: how often the row was asked for more.
        refusal: what its last answer was, None when it gave some.
        changes: how often the token has changed.
    """

    left: int = 0
    stale: int = 0
    size: int = 1
    remaining: int = 0
    taken_at: float = 0.0
    used_at: float = 0.0
    answers: int = 0
    refusal: ApiError | None = None
    changes: int = 0
    writing: asyncio.Lock = field(default_factory=asyncio.Lock)


class Quota:
    """Takes requests from tokens, and gives back what was not used.

    The database away: a lease goes on while it lasts, then `DatabaseUnavailable`; counts of tokens without a quota wait in
    memory. A crash leaves its leases counted as used, so that the quota is never exceeded.

    Args:
        clock: seconds that never go back.
    """

    def __init__(self, database: Connection, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._clock = clock
        self._leases: dict[str, Lease] = {}
        self._counts: dict[str, int] = {}
        self._hits: dict[str, int] = {}
        self._settling = asyncio.Lock()

    async def take(self, token: Token) -> None:
        """Take one request.

        Raises:
            ApiError: `request_limit_exhausted`, or what else the row says meanwhile.
            DatabaseUnavailable: a lease is needed and the database does not answer.
        """
        if token.max_requests is None:
            self._counts[token.id] = self._counts.get(token.id, 0) + 1
            return
        # A Lease that is not needed would cost as much as all else here.
        while not (lease := self._leases.get(token.id) or self._leases.setdefault(token.id, Lease())).left:
            # A statement that was cut off may have counted; it has to end, so that what it took is known here.
            await to_the_end(self._fill(token.id, lease), _leave)
        lease.left -= 1
        lease.used_at = self._clock()

    async def _fill(self, id: str, lease: Lease) -> None:
        seen = lease.answers
        async with lease.writing:
            # While this waited for its turn, others may have filled the lease, or ended it.
            if lease.left or self._leases.get(id) is not lease:
                return
            # What another was told meanwhile holds for all who wait; they must not ask a slow database one after another.
            if lease.answers == seen or lease.refusal is None:
                lease.refusal = await self._ask(id, lease)
                lease.answers += 1
            if lease.refusal:
                raise lease.refusal.with_traceback(None)

    async def _ask(self, id: str, lease: Lease) -> ApiError | None:
        """Lease more from the row; returns what stands against it."""
        changes, now = lease.changes, self._clock()
        size = next_size(lease.size, now - lease.taken_at, lease.remaining)
        try:
            await self._give_back_stale(id, lease)
            row = await self._take(id, size)
            if row is None and size > 1:
                size = 1
                row = await self._take(id, 1)
            if row is None:
                return await self._refusal(id)
        except DatabaseUnavailable as error:
            return error
        if lease.changes == changes:
            lease.left += size
        else:
            lease.stale += size
        lease.size, lease.taken_at, lease.used_at = size, now, now
        lease.remaining = (row["max_requests"] or 0) - row["request_count"]
        return None

    async def _take(self, id: str, n: int) -> Row | None:
        return await self._database.fetch_one(_TAKE, {"id": id, "n": n, "single": SINGLE_BELOW, "now": now_ms()})

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
            lease.used_at = self._clock()

    def count_hit(self, token: Token) -> None:
        """Count an answer from the cache, for which nothing was taken, or all of it given back."""
        self._hits[token.id] = self._hits.get(token.id, 0) + 1

    def unused(self, id: str) -> int:
        """What this process holds of a token's count without having used it, less what it has not yet written."""
        lease = self._leases.get(id)
        return (lease.left + lease.stale if lease else 0) - self._counts.get(id, 0)

    def on_change(self, change: Change) -> None:
        """What was leased under another quota is spent no more, and goes back before the next is leased."""
        concerned = {"token": [change.ref], "everything": list(self._leases), "reload": list(self._leases)}.get(change.kind, [])
        for id in concerned:
            if lease := self._leases.get(id):
                lease.changes += 1
                lease.stale, lease.left = lease.stale + lease.left, 0

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
        # Cut off in the middle, nobody would know what was written.
        await to_the_end(self._settle(idle_for), _leave)

    async def _settle(self, idle_for: float) -> None:
        async with self._settling:
            await self._write_counts()
            if self._leases:
                # What goes back is lost when its write fails, since it may have come through all the same; so ask first.
                await self._database.execute("UPDATE tokens SET request_count = request_count WHERE id = ''")
            for id, lease in list(self._leases.items()):
                async with lease.writing:
                    await self._return(id, lease, idle_for)

    async def _return(self, id: str, lease: Lease, idle_for: float) -> None:
        if lease.used_at + idle_for <= self._clock():
            # A call that comes meanwhile starts a lease of its own.
            del self._leases[id]
            lease.stale, lease.left = lease.stale + lease.left, 0
        await self._give_back_stale(id, lease)

    async def _write_counts(self) -> None:
        counts, self._counts = self._counts, {}
        hits, self._hits = self._hits, {}
        now = now_ms()
        # In one order everywhere, or two processes could each wait for a row that the other has.
        both = [(id, counts.get(id, 0), hits.get(id, 0)) for id in sorted(counts.keys() | hits.keys())]
        rows = [{"id": id, "n": n, "hits": hit, "now": now} for id, n, hit in both if n or hit]
        if not rows:
            return
        try:
            await self._database.executemany(
                "UPDATE tokens SET request_count = request_count + :n, cache_hit_count = cache_hit_count + :hits, "
                "last_used_at = :now WHERE id = :id",
                rows,
            )
        except DatabaseUnavailable:
            for waiting, written in ((self._counts, counts), (self._hits, hits)):
                for id, n in written.items():
                    waiting[id] = waiting.get(id, 0) + n
            raise

    async def _give_back_stale(self, id: str, lease: Lease) -> None:
        n, lease.stale = lease.stale, 0
        if n:
            sql = "UPDATE tokens SET request_count = request_count - :n WHERE id = :id"
            await self._database.execute(sql, {"id": id, "n": n})


def _leave(_: None) -> None:
    """What a cut-off call has leased stays in the lease, for others or to be returned."""
