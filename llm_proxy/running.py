"""The calls that run now, so that a revocation or a stop can end them."""

from typing import Protocol

from llm_proxy.changes import Change
from llm_proxy.errors import ApiError
from llm_proxy.events import Event


class RunningCall(Protocol):
    """What can be asked of a running call."""

    @property
    def event(self) -> Event:
        """What is known of it so far."""

    @property
    def streams(self) -> bool:
        """Whether its answer is a stream of events."""

    @property
    def sent_bytes(self) -> int:
        """How much of the answer's body went to the client."""

    def elapsed(self) -> float:
        """Seconds since the head of its request."""

    @property
    def token_id(self) -> str:
        """The id of its token."""

    @property
    def token_kind(self) -> str:
        """`token`, or `master_key`, which has pages of its own."""

    @property
    def project_id(self) -> str:
        """The id of the token's project."""

    def end(self, error: ApiError) -> None:
        """Stop it now; its client is told `error` where that is still possible."""


class RunningCalls:
    """Every call between its authentication and its end."""

    def __init__(self) -> None:
        self._calls: set[RunningCall] = set()

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: RunningCall) -> None:
        """A call has been authenticated."""
        self._calls.add(call)

    def remove(self, call: RunningCall) -> None:
        """A call has ended."""
        self._calls.discard(call)

    def get(self, id: str) -> RunningCall | None:
        """The call whose event will have this id; None when it has ended, or never was."""
        return next((call for call in self._calls if call.event.id == id), None)

    def longest(self) -> list[RunningCall]:
        """All of them, those that began first at the front."""
        return sorted(self._calls, key=lambda call: call.event.id)

    def concerned_by(self, change: Change) -> list[RunningCall]:
        """The calls whose token or project a change may have revoked."""
        if change.kind == "token":
            return [call for call in self._calls if call.token_id == change.ref]
        if change.kind == "project":
            return [call for call in self._calls if call.project_id == change.ref]
        # At a reload, rows may have been edited by hand.
        return list(self._calls) if change.kind in ("everything", "reload") else []

    def end_all(self, error: ApiError) -> None:
        """Stop whatever still runs."""
        for call in list(self._calls):
            call.end(error)
