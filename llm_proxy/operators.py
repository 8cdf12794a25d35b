"""The operator's credential, with a limit on guesses."""

import hashlib
import hmac
import time
from collections.abc import Callable, Sequence

from llm_proxy.errors import ApiError
from llm_proxy.failures import Failures
from llm_proxy.secret import Secret

FAILURES = 10


class Operators:
    """Recognises management tokens.

    Args:
        tokens: all that are good; several while one is being replaced.
        clock: seconds that only ever grow.
    """

    def __init__(self, tokens: Sequence[Secret], clock: Callable[[], float] = time.monotonic) -> None:
        self._tokens = tokens
        self._failures = Failures(FAILURES, clock)

    def recognise(self, authorization: str, address: str) -> str:
        """The name under which the audit log knows the operator who sent this Authorization header.

        Raises:
            ApiError: `invalid_management_token`; `too_many_failures` after ten failures of an address within a minute.
        """
        if refusal := self._failures.refusal(address):
            raise refusal
        scheme, _, presented = authorization.partition(" ")
        name = self._named(presented.strip()) if scheme.lower() == "bearer" else None
        if name:
            return name
        self._failures.count(address)
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
