"""Breakers, which leave a provider alone while it fails, refuses its key, or asks for a pause."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple, Self

from llm_proxy.clock import seconds_asked
from llm_proxy.providers import Provider
from llm_proxy.secret import Secret

FAILURES_IN_A_ROW = 5
WINDOW_SECONDS = 10
LEAST_IN_WINDOW = 20
OPEN_SECONDS = 10.0
COOL_SECONDS = 15.0
LONGEST_SECONDS = 300.0
# A probe that takes longer stands in no other's way.
PROBE_SECONDS = 10.0
_MOST_DOUBLINGS = 8

State = Literal["closed", "open", "half-open", "cooling", "bad_key"]
# Told of a breaker that opens, cools or closes, with the reason.
Switched = Callable[[State, str], None]


class _Window:
    """How many calls went well and wrong within the last seconds, counted by the second."""

    __slots__ = ("_seconds", "failures", "total")

    def __init__(self) -> None:
        self.failures = self.total = 0
        self._seconds: deque[tuple[int, list[int]]] = deque()

    def add(self, now: float, *, failed: bool) -> None:
        second = int(now)
        while self._seconds and self._seconds[0][0] <= second - WINDOW_SECONDS:
            _, (total, failures) = self._seconds.popleft()
            self.total -= total
            self.failures -= failures
        if not self._seconds or self._seconds[-1][0] != second:
            self._seconds.append((second, [0, 0]))
        counts = self._seconds[-1][1]
        counts[0] += 1
        counts[1] += failed
        self.total += 1
        self.failures += failed


class Attempt:
    """One call that a breaker let through; its first outcome counts, and where none is told, none does.

    It is a context manager, at whose end the slot of a probe is given back, whatever happened: the client left, or the failure
    was our own.
    """

    __slots__ = ("_breaker", "_settled", "coolings", "era", "key_era")

    def __init__(self, breaker: "Breaker", era: int, key_era: int, coolings: int) -> None:
        self._breaker = breaker
        self._settled = False
        self.era = era
        self.key_era = key_era
        self.coolings = coolings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if not self._settled:
            self.abandoned()

    def answered(self, status: int, retry_after: str = "", now: float | None = None) -> None:
        """The head of an answer came; what breaks off later had worked until then.

        Args:
            retry_after: the answer's `Retry-After`.
            now: seconds since the epoch, which a date in it is compared with.
        """
        if status == 401:
            self._settle(lambda was_probe: self._breaker._key_refused(self, was_probe))
        elif status == 403:
            self._settle(lambda was_probe: self._breaker._forbade(self, was_probe))
        elif status == 429:
            pause = seconds_asked(retry_after, time.time() if now is None else now)
            self._settle(lambda _: self._breaker._asked_to_pause(self, pause))
        elif status >= 500:
            self.failed(f"the provider answered {status}")
        elif not self._settled:
            self._settled = True
            self._breaker._worked(self, self._breaker._take_back_probe(self))

    def succeeded(self) -> None:
        """The provider works."""
        self._settle(lambda was_probe: self._breaker._worked(self, was_probe))

    def failed(self, reason: str) -> None:
        """No connection, no answer in time, none that makes sense, or one that says that the provider is broken."""
        self._settle(lambda was_probe: self._breaker._failed(self, reason, was_probe))

    def abandoned(self) -> None:
        """It ended for a reason that says nothing of the provider."""
        self._settle(lambda _: None)

    def _settle(self, outcome: Callable[[bool], None]) -> None:
        if not self._settled:
            self._settled = True
            outcome(self._breaker._take_back_probe(self))


class Breaker:
    """What is known of one provider from the calls that went to it.

    Closed, it lets all calls through. It opens after failures or when the key is refused, for 10 s at first; after that one
    call may probe, which closes it, or opens it for twice as long. A pause that the provider asked for stands beside that.

    Of two outcomes the one of the later call counts: calls that began before the breaker closed, or with the key before, say
    nothing any more.

    Attributes:
        reason: why it is not closed, for people; of the last time it was not.
    """

    def __init__(self, switched: Switched = lambda state, reason: None, clock: Callable[[], float] = time.monotonic) -> None:
        self.reason = ""
        self._switched = switched
        self._clock = clock
        self._window = _Window()
        self._streak = 0
        # None while it is closed.
        self._open_until: float | None = None
        self._openings = 0
        self._probe: Attempt | None = None
        self._probe_until = 0.0
        self._bad_key = False
        self._cool_until = 0.0
        self._coolings = 0
        self._doublings = 0
        self._era = 0
        self._key_era = 0

    @property
    def state(self) -> State:
        """What it is now; `bad_key` until a probe says otherwise or the key is changed."""
        now = self._clock()
        if self._bad_key:
            return "bad_key"
        if self._open_until is not None:
            return "open" if now < self._open_until else "half-open"
        return "cooling" if now < self._cool_until else "closed"

    @property
    def retry_after(self) -> float:
        """In how many seconds it may let a call through, 0 when it does now."""
        now = self._clock()
        wait = max(self._cool_until - now, (self._open_until or now) - now, 0.0)
        return wait or (1.0 if self._probe and now < self._probe_until else 0.0)

    def admits(self) -> bool:
        """Whether it lets a call through now."""
        # One that never had trouble, or is over it, needs no clock for that.
        return (self._open_until is None and not self._cool_until and self._probe is None) or self.retry_after == 0

    @property
    def answers(self) -> bool:
        """Whether it only refuses, so that its own answer is better than none where no other provider is left.

        A limit may be that of one model, and of a refused key the client learns best from the provider.
        """
        return self.state in ("cooling", "bad_key")

    def begin(self) -> Attempt:
        """Let a call through, which `admits` or `answers` must have allowed just before.

        Admitted while it was open, it is a probe.
        """
        admitted = self.admits()
        assert admitted or self.answers, "the breaker admits no call"
        attempt = Attempt(self, self._era, self._key_era, self._coolings)
        if admitted and self._open_until is not None:
            self._probe, self._probe_until = attempt, self._clock() + PROBE_SECONDS
        return attempt

    def key_changed(self) -> None:
        """The provider has another key: what was said of the one before, bad or to be spared, holds no longer."""
        self._key_era += 1
        self._cool_until, self._doublings = 0.0, 0
        if self._bad_key:
            self._close("the key was changed")

    def _take_back_probe(self, attempt: Attempt) -> bool:
        """Whether the attempt was the probe, whose slot is free then."""
        if self._probe is not attempt:
            return False
        self._probe = None
        return True

    def _worked(self, attempt: Attempt, was_probe: bool) -> None:
        if attempt.coolings == self._coolings:
            self._doublings = 0
        if was_probe:
            self._close("a probe went well")
        elif self._open_until is None and attempt.era == self._era:
            self._streak = 0
            self._window.add(self._clock(), failed=False)

    def _forbade(self, attempt: Attempt, was_probe: bool) -> None:
        """It may be about the model or the region, which a client chose: the provider works, and of its key that says nothing."""
        if not self._bad_key:
            self._worked(attempt, was_probe)

    def _failed(self, attempt: Attempt, reason: str, was_probe: bool) -> None:
        if was_probe:
            self._open(f"a probe failed: {reason}", is_news=False)
        elif self._counts(attempt):
            self._streak += 1
            self._window.add(self._clock(), failed=True)
            window = self._window
            if self._streak >= FAILURES_IN_A_ROW:
                self._open(f"{self._streak} failures in a row, at last: {reason}", is_news=True)
            elif window.total >= LEAST_IN_WINDOW and window.failures * 2 > window.total:
                share = f"{window.failures} of {window.total} calls failed within {WINDOW_SECONDS} s"
                self._open(f"{share}, at last: {reason}", is_news=True)

    def _key_refused(self, attempt: Attempt, was_probe: bool) -> None:
        if attempt.key_era != self._key_era or attempt.era != self._era:
            return
        self._bad_key, was_bad = True, self._bad_key
        reason = "the provider answered 401 to its key"
        if was_probe or self._open_until is None:
            self._open(reason, is_news=not was_bad)
        elif not was_bad:
            self.reason = reason
            self._switched("bad_key", reason)

    def _asked_to_pause(self, attempt: Attempt, asked: float) -> None:
        """Calls that were under way when the pause began may make it longer by what they were told, and never double it.

        A Retry-After of no seconds is taken for none: it would be no pause.
        """
        is_news = attempt.coolings == self._coolings
        if attempt.key_era != self._key_era or not (asked or is_news):
            return
        pause = min(asked or _doubled(COOL_SECONDS, self._doublings), LONGEST_SECONDS)
        self._cool_until = max(self._cool_until, self._clock() + pause)
        if is_news:
            self._coolings += 1
            self._doublings += not asked
            reason = f"the provider answered 429, so it is left alone for {pause:.0f} s"
            if self._open_until is None:
                self.reason = reason
            self._switched("cooling", reason)

    def _counts(self, attempt: Attempt) -> bool:
        return self._open_until is None and attempt.era == self._era

    def _open(self, reason: str, *, is_news: bool) -> None:
        self._open_until = self._clock() + _doubled(OPEN_SECONDS, self._openings)
        self._openings += 1
        self.reason = reason
        if is_news:
            self._switched("bad_key" if self._bad_key else "open", reason)

    def _close(self, reason: str) -> None:
        self._open_until, self._openings, self._bad_key, self._probe = None, 0, False, None
        self._streak = 0
        self._era += 1
        self._switched("closed", reason)


def _doubled(seconds: float, times: int) -> float:
    return float(min(seconds * 2 ** min(times, _MOST_DOUBLINGS), LONGEST_SECONDS))


class Status(NamedTuple):
    """What a breaker is now, with the reason for people where it is not closed."""

    state: State
    reason: str | None


_CLOSED = Status("closed", None)


@dataclass
class _Held:
    breaker: Breaker
    key: Secret | None
    version: int


class Breakers:
    """The breakers of all providers that were called, beside the snapshots, so that a reload resets nothing.

    Args:
        switched: told of each breaker that opens, cools or closes: the provider's id, the state, the reason.
        clock: in seconds, never going back.
    """

    def __init__(self, switched: Callable[[str, State, str], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._switched = switched
        self._clock = clock
        self._held: dict[str, _Held] = {}

    def __iter__(self) -> Iterator[tuple[str, Breaker]]:
        """The providers' ids with their breakers."""
        return ((id, held.breaker) for id, held in self._held.items())

    def of(self, provider: Provider) -> Breaker:
        """The breaker of a provider; another key than before, unless it is from an older snapshot, is taken for a new one."""
        held = self._held.get(provider.id)
        if held is None:
            breaker = Breaker(lambda state, reason: self._switched(provider.id, state, reason), self._clock)
            held = self._held[provider.id] = _Held(breaker, provider.api_key, provider.updated_at)
        elif provider.api_key is not held.key and provider.updated_at >= held.version:
            if _text(provider.api_key) != _text(held.key):
                held.breaker.key_changed()
            held.key, held.version = provider.api_key, provider.updated_at
        return held.breaker

    def status(self, provider: Provider) -> Status:
        """The breaker of a provider as people see it; closed, where it was never called."""
        if provider.id not in self._held:
            return _CLOSED
        breaker = self.of(provider)
        return _CLOSED if breaker.state == "closed" else Status(breaker.state, breaker.reason)

    def forget(self, provider_id: str) -> None:
        """The provider was deleted."""
        self._held.pop(provider_id, None)


def _text(key: Secret | None) -> str:
    return key.reveal() if key else ""
