"""The cache that recognises tokens."""

import contextlib
import hashlib
import time
from collections import OrderedDict
from collections.abc import Callable
from typing import NamedTuple

from llm_proxy.changes import Change
from llm_proxy.clock import now_ms
from llm_proxy.db import Connection, Row
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.tokens import Token, find_by_hashes, from_row, unknown_token, well_formed
from llm_proxy.vault import Vault

ENTRY_SECONDS = 60.0
MISS_SECONDS = 5.0
MISSES = 10_000


class Presented(NamedTuple):
    """A credential as a client presents it, with the hash by which it is known here."""

    text: str
    key: bytes

    @classmethod
    def of(cls, text: str) -> "Presented":
        """With its hash."""
        return cls(text, hashlib.sha256(text.encode(errors="surrogatepass")).digest())

    def __repr__(self) -> str:
        # A Secret would mask it, and count what any stranger sends among the secrets that every text is searched for.
        return "Presented('****')"


class TokenCache:
    """Turns a presented credential into a token, mostly without the database.

    The database away: tokens that are cached go on, others raise `DatabaseUnavailable`.

    Args:
        size: how many tokens are kept, the least recently used go first.
        clock: seconds that never go back.
    """

    def __init__(self, database: Connection, vault: Vault, size: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._database = database
        self._vault = vault
        self._size = max(1, size)
        self._clock = clock
        self._known: OrderedDict[bytes, tuple[float, Token]] = OrderedDict()
        self._misses: OrderedDict[bytes, float] = OrderedDict()
        # While a key that was replaced has its grace, two credentials lead to one row.
        self._keys_of: dict[str, set[bytes]] = {}
        self._served: OrderedDict[bytes, None] = OrderedDict()
        self._generation = 0

    async def authenticate(self, presented: str) -> Token:
        """The token of a credential, checked for expiry and revocation.

        Raises:
            ApiError: `invalid_token`, `token_expired`.
            Overtaken: `token_inactive`, `project_inactive`.
            DatabaseUnavailable: it is not cached and cannot be looked up.
        """
        found = Presented.of(presented)
        return self.known(found) or await self.look_up(found)

    def known(self, presented: Presented) -> Token | None:
        """As `authenticate`, without the database; None when it must be asked."""
        token = self._cached(presented.key)
        if token is not None:
            token.check(now_ms())
        return token

    async def look_up(self, presented: Presented) -> Token:
        """As `authenticate`, of a credential that is not `known`."""
        if not well_formed(presented.text):
            raise unknown_token()
        token = await self._look_up(presented.key, presented.text)
        token.check(now_ms())
        return token

    def has_served(self, presented: Presented) -> bool:
        """Whether this credential was good here lately, by its hash; it may have been revoked since."""
        return presented.key in self._served

    def _cached(self, key: bytes) -> Token | None:
        now = self._clock()
        entry = self._known.get(key)
        if entry and now < entry[0]:
            self._known.move_to_end(key)
            return entry[1]
        if now < self._misses.get(key, 0):
            raise unknown_token()
        return None

    async def _look_up(self, key: bytes, presented: str) -> Token:
        while True:
            generation = self._generation
            row = await self._read(presented)
            # A change that came while the row was read may be newer than the row.
            if generation == self._generation:
                break
        if row is None:
            self._remember_miss(key)
            raise unknown_token()
        token = from_row(row)
        self._remember(key, token)
        return token

    async def _read(self, presented: str) -> Row | None:
        hashes = self._vault.token_hashes(presented)
        row = await find_by_hashes(self._database, hashes)
        if row is None:
            return None
        if row["secret_hash"] not in hashes:
            # The secret of before: it is good for the rest of its grace, to the millisecond, however long this is cached.
            ends = row["previous_expires_at"] or 0
            return {**row, "expires_at": ends if row["expires_at"] is None else min(ends, row["expires_at"])}
        if row["secret_hash"] != hashes[0]:
            await self._rehash(row, hashes[0])
        return row

    async def _rehash(self, row: Row, newest: str) -> None:
        """A key was added or rotated since the token was stored: store it as new ones are, now or another time."""
        with contextlib.suppress(DatabaseUnavailable):
            await self._database.execute(
                "UPDATE tokens SET secret_hash = :new WHERE id = :id AND secret_hash = :old",
                {"new": newest, "id": row["id"], "old": row["secret_hash"]},
            )

    def _remember(self, key: bytes, token: Token) -> None:
        self._known[key] = (self._clock() + ENTRY_SECONDS, token)
        self._known.move_to_end(key)
        self._keys_of.setdefault(token.id, set()).add(key)
        self._served[key] = None
        self._served.move_to_end(key)
        if len(self._served) > self._size:
            self._served.popitem(last=False)
        if len(self._known) > self._size:
            gone, (_, oldest) = self._known.popitem(last=False)
            self._forget(gone, oldest.id)

    def _forget(self, key: bytes, id: str) -> None:
        keys = self._keys_of[id]
        keys.discard(key)
        if not keys:
            del self._keys_of[id]

    def _remember_miss(self, key: bytes) -> None:
        self._misses[key] = self._clock() + MISS_SECONDS
        if len(self._misses) > MISSES:
            self._misses.popitem(last=False)

    def on_change(self, change: Change) -> None:
        """Forget what a change made stale; a look-up under way begins anew."""
        if change.kind not in ("token", "project", "reload", "everything"):
            return
        self._generation += 1
        self._misses.clear()
        if change.kind == "token":
            for key in self._keys_of.pop(change.ref, ()):
                self._known.pop(key, None)
        else:
            self._known.clear()
            self._keys_of.clear()
