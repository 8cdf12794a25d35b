"""The Lua scripts do what the store in memory does."""

from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis
from stage.redis import RedisServer

from llm_proxy.cache import Entry, Place, Terms, selection
from llm_proxy.cache.memory import MemoryStore
from llm_proxy.cache.redis import RedisStore
from llm_proxy.redis_client import open_redis
from llm_proxy.secret import Secret

NOW = 1_800_000_000.0
PLACES = {f"{project}{path}": Place(project, "GET", path) for project in "pq" for path in ("/a", "/b")}
PURGES: tuple[dict[str, Any], ...] = (
    {"project": "p"},
    {"path": "/a"},
    {"method": "HEAD", "path": "/b"},
    {"project": "q", "prefix": "/a"},
    {"key": "p/a"},
    {"everything": True},
)

unhurried = settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
steps = st.lists(
    st.tuples(
        st.sampled_from(["look up", "store", "store", "store large", "delete", "purge"]),
        st.sampled_from(sorted(PLACES)),
        st.integers(0, 40),
    ),
    max_size=50,
)


def entry(place: Place, variant: str, body: bytes) -> Entry:
    return Entry(*place, 200, "OK", (), body, NOW, 0.0, Terms(60, 0, 0, False, False, (), (), variant))


class Pair:
    """Two stores that are told the same, each with the generations that it showed."""

    def __init__(self, redis: "Redis") -> None:
        self.stores = (
            MemoryStore(max_bytes=1 << 30, max_object_bytes=100),
            RedisStore(redis, "cache:", max_object_bytes=100, switched=lambda to: None, patience=10.0),
        )
        self._shown: dict[str, list[list[object]]] = {key: [] for key in PLACES}

    async def do(self, verb: str, key: str, number: int) -> list[object]:
        """What each store says to one step."""
        if verb == "look up":
            found = [await store.get(key, PLACES[key]) for store in self.stores]
            self._shown[key].append([each.generation for each in found])
            return [frozenset(each.entries) for each in found]
        if verb == "delete":
            return [await store.delete(key) for store in self.stores]
        if verb == "purge":
            return [await store.purge(selection(**PURGES[number % len(PURGES)])) for store in self.stores]
        shown = self._shown[key][number % len(self._shown[key])] if self._shown[key] else [None, None]
        made = entry(PLACES[key], str(number), bytes(101 if verb == "store large" else number))
        pairs = zip(self.stores, shown, strict=True)
        return [await store.put(key, str(number), made, generation) for store, generation in pairs]


@unhurried
@given(steps)
async def test_every_history_is_that_of_the_store_in_memory(
    redis_server: RedisServer, history: list[tuple[str, str, int]]
) -> None:
    redis_server.empty()
    async with open_redis(Secret(redis_server.uri), 2) as redis:
        pair = Pair(redis)
        for step in history:
            in_memory, in_redis = await pair.do(*step)
            assert in_redis == in_memory, step
        for key in PLACES:
            in_memory, in_redis = await pair.do("look up", key, 0)
            assert in_redis == in_memory
        for said in PURGES:
            counted = [await store.count(selection(**said)) for store in pair.stores]
            assert counted[0].entries == counted[1].entries, said
        counts = [await store.stats() for store in pair.stores]
        held = [{project: each.entries for project, each in count.projects.items()} for count in counts]
        assert held[0] == held[1] and counts[0].entries == counts[1].entries
