"""The operator's credential, with a limit on guesses."""

import hashlib
import hmac
import math
import time
from collections import deque
from collections.abc import Callable, Sequence

from llm_proxy.errors import ApiError
from llm_proxy.secret import Secret

FAILURES = 10
WINDOW_SECONDS = 60.0
_MANY_ADDRESSES = 10_000


class Operators:
    """Recognises management tokens.

    Args:
        tokens: all that are good; several while one is being replaced.
        clock: seconds that only ever grow.
    """

    def __init__(self, tokens: Sequence[Secret], clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._clock = clock
        self._failures: dict[str, deque[float]] = {}

    def recognise(self, authorization: str, address: str) -> str:
        """The name under which the audit log knows the operator who sent this Authorization header.

        Raises:
            ApiError: `invalid_management_token`; `too_many_failures` after ten failures of an address within a minute.
        """
        failures = self._recent(address)
        if len(failures) >= FAILURES:
            wait = max(1, math.ceil(WINDOW_SECONDS - (self._clock() - failures[0])))
            text = f"Too many failed attempts from this address. Try again in {wait} s."
            raise ApiError("too_many_failures", text, headers={"Retry-After": str(wait)})
        scheme, _, presented = authorization.partition(" ")
        name = self._named(presented.strip()) if scheme.lower() == "bearer" else None
        if name:
            return name
        self._count(address)
        raise ApiError(
            "invalid_management_token",
            "The management token is missing or wrong. Send MANAGEMENT_TOKEN as `Authorization: Bearer`.",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def _named(self, presented: str) -> str | None:
        found = None
        # Bytes beyond ASCII, which a header may hold, come from the parser as halves of surrogate pairs.
        raw = presented.encode(errors="surrogateescape")
        for token in self._tokens:
            # Every token is compared, so that the time tells nothing of which one was close.
            if hmac.compare_digest(token.reveal().encode(), raw):
                found = "operator:" + hashlib.sha256(b"operator" + raw).hexdigest()[:8]
        return found

    def _recent(self, address: str) -> deque[float]:
        """When the failures of an address within the window were."""
        failures = self._failures.get(address, deque())
        while failures and self._clock() - failures[0] >= WINDOW_SECONDS:
            failures.popleft()
        return failures

    def _count(self, address: str) -> None:
        if len(self._failures) >= _MANY_ADDRESSES:
            self._failures.clear()
        self._failures.setdefault(address, deque(maxlen=FAILURES)).append(self._clock())
