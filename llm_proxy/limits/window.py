"""A sliding window that never admits more than its limit, whichever interval one looks at."""

from array import array

# So many requests are remembered one by one; beyond, those of a thousandth of the span are remembered together.
LONGEST_LOG = 1000


class Window:
    """What was admitted during the last `span` ticks of a clock.

    An entry leaves when the last request in it is a whole span old: sub-buckets make the window stricter, by at most a
    thousandth of its span, and never laxer. The limit is an argument, so that it may change at any moment. A clock that goes
    back makes what was admitted seem to have happened now, so that nobody is locked out for longer than one span.

    Attributes:
        span: the window's length in ticks.
        total: how many requests there were in it when it was asked last.
    """

    __slots__ = ("_counts", "_ends", "_first", "_head", "_start", "span", "total")

    def __init__(self, span: int) -> None:
        self.span = span
        # Entries before `_head` have left; they are cut off now and then, which is cheaper than each time.
        self._ends = array("q")
        self._counts = array("q")
        self._head = 0
        self._first = 0
        self._start = 0
        self.total = 0

    def count(self, now: int) -> int:
        """Forget what is a span old; returns how many requests are left."""
        ends = self._ends
        size = len(ends)
        if not size:
            return 0
        if ends[-1] > now:
            self._clock_went_back(now)
        head, oldest = self._head, now - self.span
        while head < size and ends[head] <= oldest:
            self.total -= self._counts[head]
            head += 1
        if head != self._head:
            self._head = head
            if head == size or head >= LONGEST_LOG:
                self._cut_off()
        return self.total

    def wait(self, now: int, limit: int) -> int:
        """In how many ticks one more fits if nobody else comes; 0 for now."""
        excess = self.count(now) - limit + 1
        if excess <= 0:
            return 0
        index = self._head
        while (excess := excess - self._counts[index]) > 0:
            index += 1
        return self._ends[index] + self.span - now

    def add(self, now: int, limit: int) -> int:
        """Count one more, fitting or not; returns the number under which it can be given back.

        Ask `count` or `wait` before, with the same `now`.
        """
        ends = self._ends
        self.total += 1
        if ends and now - self._start <= (0 if limit <= LONGEST_LOG else self.span // LONGEST_LOG):
            ends[-1] = now
            self._counts[-1] += 1
        else:
            ends.append(now)
            self._counts.append(1)
            self._start = now
        return self._first + len(ends) - 1

    def give_back(self, number: int) -> None:
        """Make one that was counted under `number` not to have happened; nothing if it has left already."""
        index = number - self._first
        if index >= self._head:
            self._counts[index] -= 1
            self.total -= 1

    def reset(self, now: int) -> int:
        """In how many ticks the whole limit is free again, if nobody comes."""
        return self._ends[-1] + self.span - now if self.total else 0

    @property
    def entries(self) -> int:
        """How many entries are kept in memory, those included that have left and are not cut off yet."""
        return len(self._ends)

    def _cut_off(self) -> None:
        head = self._head
        del self._ends[:head], self._counts[:head]
        self._first += head
        self._head = 0

    def _clock_went_back(self, now: int) -> None:
        index = len(self._ends) - 1
        while index >= self._head and self._ends[index] > now:
            self._ends[index] = now
            index -= 1
        self._start = min(self._start, now)
