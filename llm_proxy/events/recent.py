"""The newest events of this process, kept in memory for people to look at."""

import sys
from collections import OrderedDict, deque
from copy import copy
from dataclasses import dataclass
from itertools import islice

from llm_proxy.events import Event

KEPT = 1000
# All bodies together; with OBSERVABILITY_CAPTURE=bodies a thousand events could hold a third of a GiB.
BODY_BYTES = 16 * 1024 * 1024

STATUS_CLASSES = ("2xx", "3xx", "4xx", "5xx", "none")


@dataclass(frozen=True)
class Bodies:
    """What was captured of a call's request and reply."""

    request: str | None
    reply: str | None


NO_BODIES = Bodies(None, None)


@dataclass(frozen=True)
class Filter:
    """Which calls are wanted; what is empty wants all.

    Attributes:
        status: one of `STATUS_CLASSES`.
        text: what an id, the path, a name, the address, the user agent or the code contains, in any case.
    """

    project_id: str = ""
    token_id: str = ""
    provider: str = ""
    model: str = ""
    status: str = ""
    outcome: str = ""
    text: str = ""

    def fits(self, event: Event) -> bool:
        """Whether a call that has ended is wanted."""
        return (
            self.outcome in ("", event.outcome)
            and self.status in ("", f"{event.status // 100}xx" if event.status else "none")
            and self.concerns(event)
        )

    def concerns(self, event: Event) -> bool:
        """Whether a call is wanted, as far as can be said before it has ended."""
        return (
            self.project_id in ("", event.project_id)
            and self.token_id in ("", event.token_id)
            and self.provider in ("", event.provider)
            and self.model in ("", event.model)
            and (not self.text or self._is_in(event))
        )

    def _is_in(self, event: Event) -> bool:
        ids = (event.id, event.request_id, event.correlation_id, event.upstream_request_id)
        names = (event.project_name, event.token_name, event.model, event.model_used, event.provider)
        others = (event.path, event.client_ip, event.user_agent, event.code)
        return self.text.lower() in "\n".join(filter(None, ids + names + others)).lower()


class RecentEvents:
    """The last `KEPT` events, in the order in which their calls ended.

    Args:
        nameless: leave out who the client is, as the log does.

    Attributes:
        count: how many events there were since the process started; it numbers them.
    """

    def __init__(self, *, nameless: bool = False) -> None:
        self.count = 0
        self._nameless = nameless
        # Without their bodies, of which there is less room.
        self._events: deque[Event] = deque(maxlen=KEPT)
        self._bodies: OrderedDict[str, Bodies] = OrderedDict()
        self._body_bytes = 0

    def __len__(self) -> int:
        return len(self._events)

    def add(self, event: Event) -> None:
        """Keep an event, in place of the oldest."""
        if self._bodies and len(self._events) == KEPT:
            self._let_go(self._events[0].id)
        if self._nameless or event.request_body is not None or event.reply_body is not None:
            event = self._stripped(event)
        self._events.append(event)
        self.count += 1

    def _stripped(self, event: Event) -> Event:
        """The event without what stands elsewhere, or nowhere; others have the event too, so it stays as it is."""
        bodies = Bodies(event.request_body, event.reply_body)
        if bodies != NO_BODIES:
            self._bodies[event.id] = bodies
            self._body_bytes += _size(bodies)
            while self._body_bytes > BODY_BYTES:
                self._let_go(next(iter(self._bodies)))
        event = copy(event)
        event.request_body = event.reply_body = None
        if self._nameless:
            event.client_ip = event.user_agent = None
        return event

    def _let_go(self, id: str) -> None:
        if bodies := self._bodies.pop(id, None):
            self._body_bytes -= _size(bodies)

    def get(self, id: str) -> Event | None:
        """One event, without its bodies."""
        return next((event for event in self._events if event.id == id), None)

    def bodies(self, id: str) -> Bodies:
        """What was captured of one call, as long as there is room for it: the bodies of the oldest calls go first."""
        return self._bodies.get(id, NO_BODIES)

    def newest_first(self) -> list[Event]:
        """All of them."""
        return list(reversed(self._events))

    def after(self, number: int) -> list[Event]:
        """Those that are kept of the events with a higher number, newest first."""
        return list(islice(reversed(self._events), max(0, self.count - number)))

    def number_of(self, id: str) -> int | None:
        """The number of an event; None when it is not kept any more."""
        for place, event in enumerate(reversed(self._events)):
            if event.id == id:
                return self.count - place
        return None


def _size(bodies: Bodies) -> int:
    return sum(sys.getsizeof(text) for text in (bodies.request, bodies.reply) if text is not None)
