"""Stored responses in this process's memory, the least recently used given up first."""

from collections import OrderedDict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from llm_proxy.cache import Entry

# What Python takes for an entry with its place in the tables, and for a header, besides their bytes.
ENTRY_OVERHEAD = 1500
HEADER_OVERHEAD = 130
# A client chooses what it says in a field of Vary; each lookup has to look at every variant.
MOST_VARIANTS = 32


class Held(NamedTuple):
    """How much is stored."""

    entries: int
    bytes: int


class Stats(NamedTuple):
    """How much is stored, in all, then by project."""

    entries: int
    bytes: int
    projects: Mapping[str, Held]


@dataclass(slots=True)
class _Slot:
    """What is stored under one key, which says of all of it to whom it belongs; of its variants the newest is the last."""

    project: str
    method: str
    path: str
    variants: dict[str, Entry] = field(default_factory=dict)


def size_of(key: str, variant: str, entry: Entry) -> int:
    """The bytes that an entry counts for."""
    headers = sum(len(name) + len(value) + HEADER_OVERHEAD for name, value in entry.headers)
    selecting = sum(len(value or "") for value in entry.terms.selecting)
    texts = len(key) + len(variant) + len(entry.project) + len(entry.path) + len(entry.reason) + selecting
    return ENTRY_OVERHEAD + headers + texts + len(entry.body)


class MemoryStore:
    """A store of at most `max_bytes`.

    Args:
        max_bytes: for everything, names, headers and overhead too.
        max_object_bytes: for the body of one entry.
    """

    def __init__(self, max_bytes: int, max_object_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_object_bytes = max_object_bytes
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        self._by_project: dict[str, set[str]] = {}
        self._by_path: dict[str, set[str]] = {}
        self._held: dict[str, Held] = {}
        self._bytes = 0

    async def get(self, key: str) -> tuple[Entry, ...]:
        """The variants under a key."""
        slot = self._slots.get(key)
        if slot is None:
            return ()
        self._slots.move_to_end(key)
        return tuple(slot.variants.values())

    async def put(self, key: str, variant: str, entry: Entry) -> bool:
        """Store an entry in place of the one under the same key and variant; whether it fits."""
        size = size_of(key, variant, entry)
        slot = self._slots.get(key)
        if slot and variant in slot.variants:
            self._drop(key, variant)
        if len(entry.body) > self._max_object_bytes or size > self._max_bytes:
            return False
        slot = self._slot(key, entry)
        if len(slot.variants) >= MOST_VARIANTS:
            self._drop(key, next(iter(slot.variants)))
        slot.variants[variant] = entry
        self._count(slot.project, 1, size)
        while self._bytes > self._max_bytes:
            self._give_up_one()
        return True

    async def delete(self, key: str) -> int:
        """Forget what is under a key; how many entries that were."""
        return self._forget([key])

    async def purge(
        self,
        *,
        project: str | None = None,
        method: str | None = None,
        path: str | None = None,
        prefix: str | None = None,
        everything: bool = False,
    ) -> int:
        """Forget the entries for which all that is said holds; how many they were.

        Args:
            method: HEAD means GET.
            prefix: of the path, any string.

        Raises:
            ValueError: nothing is said, or a method without project, path or prefix.
        """
        keys = self._slots.keys() if everything else self._keys(project, path, prefix)
        method = "GET" if method == "HEAD" else method
        return self._forget([key for key in keys if self._is_of(key, project, method, prefix)])

    async def stats(self) -> Stats:
        """How much is stored."""
        return Stats(sum(held.entries for held in self._held.values()), self._bytes, dict(self._held))

    def _keys(self, project: str | None, path: str | None, prefix: str | None) -> Iterable[str]:
        if path is not None:
            return self._by_path.get(path, set())
        if project is not None:
            return self._by_project.get(project, set())
        if prefix is None:
            raise ValueError("Say what to purge: a project, a path, a prefix or everything.")
        return [key for stored, keys in self._by_path.items() if stored.startswith(prefix) for key in keys]

    def _is_of(self, key: str, project: str | None, method: str | None, prefix: str | None) -> bool:
        slot = self._slots[key]
        return (
            (project is None or slot.project == project)
            and (method is None or slot.method == method)
            and (prefix is None or slot.path.startswith(prefix))
        )

    def _slot(self, key: str, entry: Entry) -> _Slot:
        """The slot of a key, as the most recently used one."""
        slot = self._slots.setdefault(key, _Slot(entry.project, entry.method, entry.path))
        self._slots.move_to_end(key)
        self._by_project.setdefault(entry.project, set()).add(key)
        self._by_path.setdefault(entry.path, set()).add(key)
        return slot

    def _give_up_one(self) -> None:
        key, slot = next(iter(self._slots.items()))
        self._drop(key, next(iter(slot.variants)))

    def _forget(self, keys: Iterable[str]) -> int:
        forgotten = [(key, variant) for key in keys if key in self._slots for variant in self._slots[key].variants]
        for key, variant in forgotten:
            self._drop(key, variant)
        return len(forgotten)

    def _drop(self, key: str, variant: str) -> None:
        slot = self._slots[key]
        entry = slot.variants.pop(variant)
        self._count(slot.project, -1, -size_of(key, variant, entry))
        if not slot.variants:
            del self._slots[key]
            _discard(self._by_project, slot.project, key)
            _discard(self._by_path, slot.path, key)

    def _count(self, project: str, entries: int, size: int) -> None:
        held = self._held.pop(project, Held(0, 0))
        if held.entries + entries:
            self._held[project] = Held(held.entries + entries, held.bytes + size)
        self._bytes += size


def _discard(index: dict[str, set[str]], name: str, key: str) -> None:
    index[name].discard(key)
    if not index[name]:
        del index[name]
