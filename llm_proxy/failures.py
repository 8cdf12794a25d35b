"""Failed attempts to show a good credential, limited for each address."""

import ipaddress
import math
import time
from collections import OrderedDict, deque
from collections.abc import Callable

from llm_proxy.errors import ApiError

WINDOW_SECONDS = 60.0
MANY_ADDRESSES = 10_000


class Failures:
    """Counts the failures of each address within a minute; of too many addresses, the one heard of longest ago is forgotten.

    Args:
        most: how many are answered as what they are.
        clock: seconds that only ever grow.
    """

    def __init__(self, most: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._most = most
        self._clock = clock
        self._of: OrderedDict[str, deque[float]] = OrderedDict()

    def refusal(self, address: str) -> ApiError | None:
        """`too_many_failures` for an address that has failed too often; what it refuses is no further failure."""
        failures = self._of.get(_place(address)) if self._of else None
        if failures is None or len(failures) < self._most:
            return None
        wait = math.ceil(WINDOW_SECONDS - (self._clock() - failures[0]))
        if wait <= 0:
            return None
        text = f"Too many failed attempts from this address. Try again in {wait} s."
        return ApiError("too_many_failures", text, headers={"Retry-After": str(wait)})

    def count(self, address: str) -> None:
        """The address has failed once more."""
        # The last so many are enough to tell: when the first of them is a minute old, one more is let through.
        place = _place(address)
        self._of.setdefault(place, deque(maxlen=self._most)).append(self._clock())
        self._of.move_to_end(place)
        if len(self._of) > MANY_ADDRESSES:
            self._of.popitem(last=False)


def _place(address: str) -> str:
    """What one client has to itself: an IPv4 address, a /64 of IPv6."""
    if ":" not in address:
        return address
    try:
        parsed = ipaddress.IPv6Address(address.partition("%")[0])
    except ValueError:
        return address
    return str(parsed.ipv4_mapped or int(parsed) >> 64)
