"""Bringing stored provider keys under the newest encryption key."""

from llm_proxy.changes import Change, record
from llm_proxy.db import Database, Row
from llm_proxy.providers import place_of
from llm_proxy.vault import PREFIX, Undecipherable, Vault

BATCH = 100


async def seal_all(database: Database, vault: Vault) -> tuple[int, list[str]]:
    """Seal every key that is not yet sealed with the newest encryption key, row by row, so that a stop loses nothing.

    Returns:
        How many were sealed, and what is wrong with those that could not be opened.
    """
    done, failed, after = 0, [], ""
    while rows := await _batch(database, after):
        for row in rows:
            try:
                done += await _seal(database, vault, row)
            except Undecipherable as error:
                failed.append(f"provider {row['id']} ({row['name']}): {error}")
        after = rows[-1]["id"]
    return done, failed


async def _batch(database: Database, after: str) -> list[Row]:
    return await database.fetch_all(
        "SELECT id, name, project_id, api_key_ciphertext FROM providers WHERE id > :after ORDER BY id LIMIT :batch",
        {"after": after, "batch": BATCH},
    )


async def _seal(database: Database, vault: Vault, row: Row) -> int:
    stored = row["api_key_ciphertext"]
    if vault.is_current(stored):
        return 0
    sealed = vault.seal(vault.open(stored, place_of(row["id"])), place_of(row["id"]))
    async with database.transaction() as tx:
        # Only over what was read: a key that an operator replaced meanwhile stays.
        written = await tx.execute(
            "UPDATE providers SET api_key_ciphertext = :sealed WHERE id = :id AND api_key_ciphertext = :stored",
            {"sealed": sealed, "id": row["id"], "stored": stored},
        )
        if written:
            await record(tx, Change("provider", row["id"], {"project_id": row["project_id"]}))
    return written


async def count(database: Database, vault: Vault) -> dict[str, int]:
    """How many keys are stored in which way."""
    counts, after = dict.fromkeys(("with the newest key", "with an older key", "plain", "unreadable"), 0), ""
    while rows := await _batch(database, after):
        for row in rows:
            counts[_state(vault, row)] += 1
        after = rows[-1]["id"]
    return counts


def _state(vault: Vault, row: Row) -> str:
    stored = row["api_key_ciphertext"]
    if not stored.startswith(PREFIX):
        return "plain"
    try:
        vault.open(stored, place_of(row["id"]))
    except Undecipherable:
        return "unreadable"
    return "with the newest key" if vault.is_current(stored) else "with an older key"
