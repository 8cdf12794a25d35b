"""The deletion of tokens that have been over for long."""

import asyncio
import logging

from llm_proxy.clock import DAY_MS, now_ms
from llm_proxy.db import Database
from llm_proxy.errors import DatabaseUnavailable

log = logging.getLogger(__name__)

BATCH = 500
RETENTION_SECONDS = 3600.0

# Master keys do not expire, and are deleted by hand.
_OVER = "kind = 'token' AND (expires_at < :old OR (NOT is_active AND deactivated_at < :old))"
# The condition stands twice, as a token may be given a longer life between the search and the deletion.
_DELETE = f"DELETE FROM tokens WHERE id IN (SELECT id FROM tokens WHERE {_OVER} LIMIT :most) AND {_OVER}"


async def expire_tokens(database: Database, days: int) -> None:
    """Delete tokens that expired or were revoked so many days ago, once an hour; runs until cancelled.

    The database away: they wait for the next hour.

    Args:
        days: 0 keeps all.
    """
    while days:
        try:
            if deleted := await _delete_old(database, now_ms() - days * DAY_MS):
                log.info("%d tokens were deleted that had been over for %d days", deleted, days)
        except DatabaseUnavailable:
            log.warning("tokens that are over wait for the database to be deleted")
        await asyncio.sleep(RETENTION_SECONDS)


async def _delete_old(database: Database, old: int) -> int:
    # In pieces: one statement over years of tokens would hold up everyone else's, or run into its time limit.
    total = 0
    while deleted := await database.execute(_DELETE, {"old": old, "most": BATCH}):
        total += deleted
    return total
