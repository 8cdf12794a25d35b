"""When a call that failed at one provider may be tried at the next."""

from collections.abc import Callable
from dataclasses import dataclass

# The provider did not take the call on, or says that another try is in order.
_PASSED_OVER = frozenset({429, 502, 503, 529})
# Another provider has another key.
_KEY_REFUSED = frozenset({401, 403})

# Timers of the event loop are exact to some milliseconds, and in less than this nobody answers.
LEAST_SECONDS = 0.01
LEAST_BUDGET = 100
SHARE = 0.1


@dataclass(frozen=True, slots=True)
class Failure:
    """How an attempt ended that did not go well.

    Attributes:
        sent: whether any byte of the request may have reached the provider.
        status: of its answer, None when none came.
        should_retry: its answer has `x-should-retry: true`. `false` is said to clients, of this one provider.
    """

    sent: bool
    status: int | None = None
    should_retry: bool = False


@dataclass(frozen=True, slots=True)
class Circumstances:
    """What of a call decides whether it may be tried again.

    Attributes:
        whole_body: all of the request's body is at hand.
        reply_started: a byte of a reply went to the client.
        idempotency_key: the client sent an `Idempotency-Key`, by which it allows that a call is sent twice.
        sticky: only one provider can serve it.
        tried: how many providers were tried, the one that just failed included.
        most: UPSTREAM_MAX_ATTEMPTS.
        seconds_left: of the first-byte deadline of the whole call.
    """

    whole_body: bool
    reply_started: bool
    idempotency_key: bool
    sticky: bool
    tried: int
    most: int
    seconds_left: float


def may_try_another(failure: Failure, call: Circumstances) -> bool:
    """Whether the next candidate may be tried after a failure, the budget permitting."""
    if not call.whole_body or call.reply_started or call.sticky or call.tried >= call.most or call.seconds_left < LEAST_SECONDS:
        return False
    if failure.should_retry:
        return True
    if failure.status is not None:
        return failure.status in _PASSED_OVER or failure.status in _KEY_REFUSED
    # It may have begun to work, which would be paid twice.
    return not failure.sent or call.idempotency_key


class RetryBudget:
    """Bounds the retries in flight, so that a provider's bad day is not made worse by everybody asking again.

    A retry after an attempt that failed before its request was sent is free: no provider had any work with it.

    Args:
        calls: how many calls are in flight.

    Attributes:
        retries: those in flight that count.
    """

    def __init__(self, calls: Callable[[], int]) -> None:
        self.retries = 0
        self._calls = calls

    def take(self, failure: Failure) -> "Retry | None":
        """Leave for one retry, None when too many are in flight."""
        counts = failure.sent
        if counts and self.retries >= max(LEAST_BUDGET, int(self._calls() * SHARE)):
            return None
        return Retry(self, counts)


class Retry:
    """A retry in flight; a context manager, at whose end its place in the budget is given back.

    Args:
        counts: whether it takes a place.
    """

    __slots__ = ("_budget", "_held")

    def __init__(self, budget: RetryBudget, counts: bool) -> None:
        self._budget = budget
        self._held = counts
        budget.retries += counts

    def __enter__(self) -> None:
        pass

    def __exit__(self, *_: object) -> None:
        self._budget.retries -= self._held
        self._held = False
