"""Stored responses in this process's memory, the least recently used given up first."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass, field
from weakref import WeakValueDictionary

from llm_proxy.cache import Count, Entry, Found, Held, Place, Selection, Stats

# What Python takes for an entry with its place in the tables, and for a header, besides their bytes.
ENTRY_OVERHEAD = 1500
HEADER_OVERHEAD = 130
# A client chooses what it says in a field of Vary; each lookup has to look at every variant.
MOST_VARIANTS = 32


@dataclass(slots=True, eq=False, weakref_slot=True)
class _Slot:
    """What is stored under one key; of its variants the newest is the last.

    It is the generation that whoever looked it up shows when he stores, empty as it may have been.
    """

    place: Place
    purged: bool = False
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

    degraded = False

    def __init__(self, max_bytes: int, max_object_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._max_object_bytes = max_object_bytes
        self._slots: OrderedDict[str, _Slot] = OrderedDict()
        # Those of calls that run and have nothing stored: a purge is about what they will bring, too.
        self._awaited: WeakValueDictionary[str, _Slot] = WeakValueDictionary()
        self._by_project: dict[str, set[str]] = {}
        self._by_path: dict[str, set[str]] = {}
        self._held: dict[str, Held] = {}
        self._bytes = 0

    async def get(self, key: str, place: Place) -> Found:
        """The variants under a key."""
        slot = self._slots.get(key)
        if slot is None:
            return Found((), self._await(key, place))
        self._slots.move_to_end(key)
        return Found(tuple(slot.variants.values()), slot)

    async def put(self, key: str, variant: str, entry: Entry, generation: object) -> bool:
        """Store an entry in place of the one under the same key and variant; whether it was stored.

        It is not if it does not fit, or if what is under the key was purged since it was looked up.

        Args:
            generation: from the `get` that led to the request whose answer this is.
        """
        if not isinstance(generation, _Slot) or generation.purged:
            return False
        size = size_of(key, variant, entry)
        if variant in generation.variants:
            self._drop(key, variant)
        if len(entry.body) > self._max_object_bytes or size > self._max_bytes:
            return False
        self._use(key, generation)
        if len(generation.variants) >= MOST_VARIANTS:
            self._drop(key, next(iter(generation.variants)))
        generation.variants[variant] = entry
        self._count(generation.place.project, 1, size)
        while self._bytes > self._max_bytes:
            self._give_up_one()
        return True

    async def delete(self, key: str) -> int:
        """Forget what is under a key; how many entries that were."""
        return self._forget([key])

    async def purge(self, said: Selection) -> int:
        """Forget what is selected; how many entries that were."""
        if said.key is not None:
            return await self.delete(said.key)
        awaited = [key for key, slot in self._awaited.items() if said.covers(slot.place)]
        return self._forget([*awaited, *self._meant(said)])

    async def count(self, said: Selection) -> Count:
        """How many entries a purge would forget."""
        return Count(sum(len(self._slots[key].variants) for key in self._meant(said)))

    async def stats(self) -> Stats:
        """How much is stored."""
        return Stats(sum(held.entries for held in self._held.values()), self._bytes, dict(self._held))

    def _meant(self, said: Selection) -> list[str]:
        """The keys with something stored that are selected."""
        if said.key is not None:
            return [said.key] if said.key in self._slots else []
        return [key for key in self._keys(said) if said.covers(self._slots[key].place)]

    def _keys(self, said: Selection) -> Iterable[str]:
        """Those that may be meant, where no key is said."""
        if said.path is not None:
            return self._by_path.get(said.path, set())
        if said.project is not None:
            return self._by_project.get(said.project, set())
        if said.prefix is None:
            return self._slots.keys()
        return [key for stored, keys in self._by_path.items() if stored.startswith(said.prefix) for key in keys]

    def _await(self, key: str, place: Place) -> _Slot:
        slot = self._awaited.get(key)
        if slot is None:
            slot = self._awaited[key] = _Slot(place)
        return slot

    def _use(self, key: str, slot: _Slot) -> None:
        """Make a slot the most recently used one."""
        self._awaited.pop(key, None)
        self._slots[key] = slot
        self._slots.move_to_end(key)
        self._by_project.setdefault(slot.place.project, set()).add(key)
        self._by_path.setdefault(slot.place.path, set()).add(key)

    def _give_up_one(self) -> None:
        key, slot = next(iter(self._slots.items()))
        self._drop(key, next(iter(slot.variants)))

    def _forget(self, keys: Iterable[str]) -> int:
        forgotten = 0
        for key in keys:
            if slot := self._slots.get(key) or self._awaited.get(key):
                for variant in list(slot.variants):
                    self._drop(key, variant)
                    forgotten += 1
                slot.purged = True
                self._awaited.pop(key, None)
        return forgotten

    def _drop(self, key: str, variant: str) -> None:
        slot = self._slots[key]
        entry = slot.variants.pop(variant)
        self._count(slot.place.project, -1, -size_of(key, variant, entry))
        if not slot.variants:
            del self._slots[key]
            _discard(self._by_project, slot.place.project, key)
            _discard(self._by_path, slot.place.path, key)
            # Calls that looked it up may bring something yet.
            self._awaited[key] = slot

    def _count(self, project: str, entries: int, size: int) -> None:
        held = self._held.pop(project, Held(0, 0))
        if held.entries + entries:
            self._held[project] = Held(held.entries + entries, held.bytes + size)
        self._bytes += size


def _discard(index: dict[str, set[str]], name: str, key: str) -> None:
    index[name].discard(key)
    if not index[name]:
        del index[name]
