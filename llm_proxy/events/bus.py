"""The bus that carries events inside the process."""

import logging
from collections.abc import Callable

from llm_proxy.events import Event

log = logging.getLogger(__name__)

Reader = Callable[[Event], None]


class Bus:
    """Hands every event to its readers at once.

    Publishing is synchronous: an `await` in the `finally` of a cancelled call would be a second chance to lose the event.
    """

    def __init__(self) -> None:
        self._readers: list[Reader] = []

    def read_by(self, reader: Reader) -> None:
        """Call `reader` with every event, inside `publish`; it must be quick."""
        self._readers.append(reader)

    def publish(self, event: Event) -> None:
        """Hand over an event; a reader that fails costs nobody else the event, and never the call."""
        for reader in self._readers:
            try:
                reader(event)
            except Exception:
                log.exception("a reader of the event bus failed on the event %s", event.id)
