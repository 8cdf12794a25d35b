"""The bus that carries events inside the process."""

import asyncio
import contextvars
import logging
from collections.abc import Callable

from llm_proxy.events import Event

log = logging.getLogger(__name__)

Reader = Callable[[Event], None]

# Late readers get so many events at once, and wait no more than so many seconds for the first of them.
FEW, PATIENCE = 16, 0.1


class Bus:
    """Hands every event to readers at once, to late readers a moment later.

    Late readers get a few events one after the other: at each event their code would have to come from memory anew, which takes
    several times as long as it runs. Who shows what they make of events calls `catch_up` first, and nobody sees the difference.

    Publishing is synchronous: an `await` in the `finally` of a cancelled call would be a second chance to lose the event.
    """

    def __init__(self) -> None:
        self._readers: list[Reader] = []
        self._late_readers: list[tuple[Reader, Callable[[], None]]] = []
        self._late: list[Event] = []
        self._timer: asyncio.TimerHandle | None = None
        # That of no call: what late readers log is not of the call whose event was the first or the last.
        self._context = contextvars.Context()

    def read_by(self, reader: Reader) -> None:
        """Call `reader` with every event, inside `publish`; it must be quick."""
        self._readers.append(reader)

    def read_late_by(self, reader: Reader, then: Callable[[], None] = lambda: None) -> None:
        """Call `reader` with every event soon, and `then` after some; an event that is published changes no more."""
        self._late_readers.append((reader, then))

    def publish(self, event: Event) -> None:
        """Hand over an event; a reader that fails costs nobody else the event, and never the call."""
        # A function for what follows would cost each call more than its lines do.
        for reader in self._readers:
            try:
                reader(event)
            except Exception:
                _tell_of_failure(event)
        if self._late_readers:
            self._late.append(event)
            if (waiting := len(self._late)) in (1, FEW):
                self._catch_up_soon(waiting)

    def _catch_up_soon(self, waiting: int) -> None:
        loop = asyncio.get_running_loop()
        if waiting == 1:
            self._timer = loop.call_later(PATIENCE, self.catch_up, context=self._context)
        else:
            # Not now: the call has yet to hand over the end of its reply.
            loop.call_soon(self.catch_up, context=self._context)

    def catch_up(self) -> None:
        """Have the late readers read what they have yet to read."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        events, self._late = self._late, []
        if not events:
            return
        for reader, then in self._late_readers:
            for event in events:
                try:
                    reader(event)
                except Exception:
                    _tell_of_failure(event)
            then()


def _tell_of_failure(event: Event) -> None:
    log.exception("a reader of the event bus failed on the event %s", event.id)
