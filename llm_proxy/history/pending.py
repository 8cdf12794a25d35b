"""Usage that waits in memory to be written, a row for each project, provider, model and minute."""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from llm_proxy.clock import MINUTE_MS
from llm_proxy.events import Event
from llm_proxy.history.figures import COLUMNS, add, count

MOST_ROWS = 10_000
# Clients choose what they call a model; a table row for each of their fancies would let them fill the disk.
MODELS_PER_MINUTE = 50
LONGEST_MODEL = 256
OTHER = "other"


class Key(NamedTuple):
    """What a row is about, and when its time began; an empty text stands for none."""

    began: int
    project_id: str
    provider: str
    model: str


Rows = Mapping[Key, list[int]]


class Pending:
    """Rows that are not in the database yet.

    Above `MOST_ROWS`, which only a database that is long away leads to, calls go to the rows that are there, under the model
    `other` at the worst; those without a row are lost.

    Args:
        lost: told how many calls are lost.
    """

    def __init__(self, lost: Callable[[int], None]) -> None:
        self._rows: dict[Key, list[int]] = {}
        self._lost = lost
        self._models: dict[str, set[str]] = {}
        self._minute = 0
        self._taken = 0

    def __len__(self) -> int:
        return len(self._rows) + self._taken

    def add(self, event: Event) -> None:
        """Count a call in the minute in which it ended, so that minutes that have passed change no more."""
        ended = event.started_at + int(event.duration * 1000)
        key = (ended - ended % MINUTE_MS, event.project_id or "", event.provider or "", event.model or "")
        # A plain tuple is equal to a Key, and made in a third of the time.
        values = self._rows.get(key)  # type: ignore[call-overload]
        if values is None and (values := self._row(Key(*key))) is None:
            self._lost(1)
            return
        count(values, event)

    def _row(self, key: Key) -> list[int] | None:
        """The row for a call to which none fits as it is, None when there is no room for one."""
        key = key._replace(model=self._model(key))
        if key not in self._rows and len(self) >= MOST_ROWS:
            key = key._replace(model=OTHER)
            return self._rows.get(key)
        return self._rows.setdefault(key, [0] * len(COLUMNS))

    def _model(self, key: Key) -> str:
        """The name under which a model is counted."""
        if key.began != self._minute:
            self._minute = key.began
            self._models.clear()
        models = self._models.setdefault(key.project_id, set())
        # PostgreSQL takes no NUL.
        model = key.model[:LONGEST_MODEL].replace("\0", "?")
        if model and model not in models and len(models) >= MODELS_PER_MINUTE:
            return OTHER
        if model:
            models.add(model)
        return model

    def take(self) -> Rows:
        """All rows, to be written; `settle` says what became of them."""
        rows, self._rows = self._rows, {}
        self._taken = len(rows)
        return rows

    def settle(self, unwritten: Rows) -> None:
        """Rows that were taken are written but for these, which wait on."""
        self._taken = 0
        for key, values in unwritten.items():
            add(self._rows.setdefault(key, [0] * len(COLUMNS)), values)

    def lose(self, rows: Iterable[list[int]]) -> None:
        """Count the calls of rows that can not be written."""
        self._lost(sum(values[0] for values in rows))

    def rows(self) -> Rows:
        """The rows that wait."""
        return self._rows
