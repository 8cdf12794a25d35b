"""The calls that run now, so that a revocation or a stop can end them."""

from typing import Protocol

from llm_proxy.changes import Change
from llm_proxy.errors import ApiError


class RunningCall(Protocol):
    """What can be asked of a running call."""

    @property
    def token_id(self) -> str:
        """The id of its token."""

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
