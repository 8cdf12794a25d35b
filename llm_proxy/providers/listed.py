"""What providers say they serve, remembered for a while."""

import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

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
