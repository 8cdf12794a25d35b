"""Limits counted in the memory of one process."""

import itertools
import secrets
import time
from collections import OrderedDict
from collections.abc import Callable, Mapping, Set

from llm_proxy.limits.rates import MOST_RATES, WAIT_FOR_SLOT, Decision, Limits, Receipt, Standing, tightest
from llm_proxy.limits.window import Window


class MemoryLimiter:
    """Counts what this process admits; it needs nobody else, so it is never away.

    Windows that nobody used for a whole span are dropped as others are used.

    Args:
        clock: monotonic nanoseconds.
    """

    degraded = False

    def __init__(self, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._windows: OrderedDict[str, Window] = OrderedDict()
        self._held: dict[str, set[str]] = {}
        self._process = secrets.token_hex(8)
        self._numbers = itertools.count()

    async def take(self, limits: Limits) -> Decision:
        """Take one request from all limits, or from none."""
        return self.take_now(limits)

    def take_now(self, limits: Limits) -> Decision:
        """The same; there is no await between check and act."""
        if not limits:
            return Decision()
        now = self._clock()
        windows = self._windows_of(limits, now)
        wait = 0
        for rate, window in zip(limits.rates, windows, strict=True):
            wait = max(wait, window.wait(now, rate.limit))
        full = any(len(self._held.get(slots.key, ())) >= slots.limit for slots in limits.slots)
        if full:
            wait = max(wait, WAIT_FOR_SLOT)
        receipt = None if wait else self._admit(limits, windows, self.new_id(), now)
        return Decision(wait, _standing(limits, windows, now), full, receipt)

    async def look(self, limits: Limits) -> Standing | None:
        """How far the tightest rate is used up, None without any; nothing is taken."""
        now = self._clock()
        windows = [self._windows.get(rate.key) or Window(rate.span) for rate in limits.rates]
        for window in windows:
            window.count(now)
        return _standing(limits, windows, now)

    def admit(self, limits: Limits, id: str, numbers: tuple[int, ...]) -> Receipt:
        """Count a request that Redis admitted, where it has these numbers."""
        now = self._clock()
        receipt = self._admit(limits, self._windows_of(limits, now), id, now)
        receipt.numbers = numbers
        return receipt

    def _admit(self, limits: Limits, windows: list[Window], id: str, now: int) -> Receipt:
        for slots in limits.slots:
            self._held.setdefault(slots.key, set()).add(id)
        entries = [(window, window.add(now, rate.limit)) for rate, window in zip(limits.rates, windows, strict=True)]
        return Receipt(id, limits, entries)

    def give_back(self, decision: Decision) -> None:
        """Make a granted request not to have happened; only the first time counts."""
        receipt = decision.receipt
        if receipt:
            self.release(decision)
            for window, number in receipt.entries:
                window.give_back(number)

    def release(self, decision: Decision) -> None:
        """The request has ended: free its slots; only the first time counts."""
        receipt, decision.receipt = decision.receipt, None
        if receipt:
            for slots in receipt.limits.slots:
                held = self._held[slots.key]
                held.discard(receipt.id)
                if not held:
                    del self._held[slots.key]

    @property
    def held(self) -> Mapping[str, Set[str]]:
        """The slots that running calls of this process hold, by key."""
        return self._held

    @property
    def size(self) -> int:
        """How many windows are kept."""
        return len(self._windows)

    def new_id(self) -> str:
        """An id that no other request of any process has."""
        return f"{self._process}-{next(self._numbers)}"

    def _windows_of(self, limits: Limits, now: int) -> list[Window]:
        known, windows = self._windows, []
        # First, so that none of those that are about to be used is dropped.
        self._drop_idle(now)
        for rate in limits.rates:
            window = known.get(rate.key)
            if window is None:
                window = known[rate.key] = Window(rate.span)
            else:
                known.move_to_end(rate.key)
            windows.append(window)
        return windows

    def _drop_idle(self, now: int) -> None:
        # The least recently used stand first. More go than can come with one request, so that only those in use stay.
        for _ in range(MOST_RATES + 1):
            key = next(iter(self._windows), None)
            if key is None or self._windows[key].count(now):
                return
            del self._windows[key]


def _standing(limits: Limits, windows: list[Window], now: int) -> Standing | None:
    return tightest(
        [
            Standing(rate.limit, max(rate.limit - window.total, 0), window.reset(now))
            for rate, window in zip(limits.rates, windows, strict=True)
        ]
    )
