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
        self._tokens = [(token, _fingerprint(token.reveal().encode())) for token in tokens]
        self._failures = Failures(FAILURES, clock)

    def recognise(self, authorization: str, address: str) -> str:
        """The name under which the audit log knows the operator who sent this Authorization header.

        Raises:
            ApiError: `invalid_management_token`; `too_many_failures` after ten failures of an address within a minute.
        """
        scheme, _, presented = authorization.partition(" ")
        fingerprint = self.admit(presented.strip() if scheme.lower() == "bearer" else "", address)
        if fingerprint:
            return name_of(fingerprint)
        raise ApiError(
            "invalid_management_token",
            "The management token is missing or wrong. Send MANAGEMENT_TOKEN as `Authorization: Bearer`.",
            headers={"WWW-Authenticate": "Bearer"},
        )

    def admit(self, presented: str, address: str) -> str | None:
        """The fingerprint of a management token; None for anything else, which counts as a failure of the address.

        Raises:
            ApiError: `too_many_failures` after ten failures of an address within a minute.
        """
        if refusal := self._failures.refusal(address):
            raise refusal
        fingerprint = self._known(presented)
        if fingerprint is None:
            self._failures.count(address)
        return fingerprint

    @property
    def fingerprints(self) -> frozenset[str]:
        """Those of all tokens that are good."""
        return frozenset(fingerprint for _, fingerprint in self._tokens)

    def _known(self, presented: str) -> str | None:
        found = None
        # Bytes beyond ASCII, which a header may hold, come from the parser as halves of surrogate pairs.
        raw = presented.encode(errors="surrogateescape")
        for token, fingerprint in self._tokens:
            # Every token is compared, so that the time tells nothing of which one was close.
            if hmac.compare_digest(token.reveal().encode(), raw):
                found = fingerprint
        return found


def name_of(fingerprint: str) -> str:
    """The name under which the audit log knows the operator whose token has this fingerprint."""
    return f"operator:{fingerprint[:8]}"


def _fingerprint(token: bytes) -> str:
    return hashlib.sha256(b"operator" + token).hexdigest()
