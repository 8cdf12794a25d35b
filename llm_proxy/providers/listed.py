"""What providers say they serve, remembered for a while."""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import NamedTuple

from llm_proxy.changes import Change

LIVES_SECONDS = 300.0
# A provider that could not be asked is not asked again by every call.
PAUSE_SECONDS = 10.0


class Listed(NamedTuple):
    """A model as `/v1/models` shows it; `created` is in seconds since the epoch."""

    id: str
    created: int
    owned_by: str


class ListedModels:
    """The last word of each provider.

    Args:
        clock: seconds that only ever grow.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._known: dict[str, tuple[float, Sequence[Listed]]] = {}
        self._asking: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def get(self, provider_id: str, ask: Callable[[], Awaitable[Sequence[Listed] | None]]) -> Sequence[Listed]:
        """The models of a provider, which is asked when it is time to; one call asks for all that want to know.

        Args:
            ask: what it says, None when that is of no use.
        """
        known = self.of(provider_id)
        if known is None:
            async with self._asking[provider_id]:
                known = self.of(provider_id)
                if known is None:
                    known = self.remember(provider_id, await ask())
        return known

    def on_change(self, change: Change) -> None:
        """Forget what a provider said that is another one now, or gone."""
        if change.kind in ("everything", "reload"):
            self._known.clear()
        elif change.kind == "provider":
            self._known.pop(change.ref, None)

    def of(self, provider_id: str) -> Sequence[Listed] | None:
        """The models of a provider; None when it is time to ask it."""
        until, models = self._known.get(provider_id, (0.0, ()))
        return models if self._clock() < until else None

    def remember(self, provider_id: str, models: Sequence[Listed] | None) -> Sequence[Listed]:
        """What it said, None when it said nothing of use, so that its word of before stands; returns what stands now."""
        _, before = self._known.get(provider_id, (0.0, ()))
        kept, seconds = (before, PAUSE_SECONDS) if models is None else (models, LIVES_SECONDS)
        self._known[provider_id] = (self._clock() + seconds, kept)
        return kept
