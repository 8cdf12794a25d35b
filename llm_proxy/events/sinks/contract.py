"""What every sink promises the dispatcher."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol

Document = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Verdict:
    """What a sink said of one event.

    Attributes:
        kind: `delivered`; `refused`, it will never take this event as it is; `failed`, it could not, for a reason that may
            lie in the event; `away`, the reason lies in the sink or the way there.
        reason: for people.
        retry_after: seconds that the sink asked to be left alone.
    """

    kind: Literal["delivered", "refused", "failed", "away"]
    reason: str = ""
    retry_after: float = 0.0


DELIVERED = Verdict("delivered")


class Sink(Protocol):
    """One place that takes events."""

    async def deliver(self, events: Sequence[Document]) -> list[Verdict]:
        """Hand over events, oldest first; a verdict for each. `delivered` means that the sink answers for it now."""

    def reopen(self) -> None:
        """Open anew what may have been moved away; may wait for a disk, so call it in a thread."""

    async def close(self) -> None:
        """Give back what the sink holds."""
