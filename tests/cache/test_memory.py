"""Memory is given to what was used last, and never more of it than was allowed."""

import tracemalloc
from collections import OrderedDict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llm_proxy.cache import Entry, Place, rules, selection
from llm_proxy.cache.memory import ENTRY_OVERHEAD, MOST_VARIANTS, MemoryStore, size_of

NOW = 1_800_000_000.0

unhurried = settings(deadline=None, max_examples=150)


def entry(body: bytes, *, project: str = "p", path: str = "/", headers: int = 0) -> Entry:
    lookup = rules.read_request("GET", [])
    came = [(b"Cache-Control", b"max-age=60"), *((b"X-Header-%d" % n, b"value of %d" % n) for n in range(headers))]
    terms = rules.may_store(lookup, 200, came, NOW, default_ttl=300)
    assert terms is not None
    response = (200, "OK", came)
    return rules.entry_of(terms, lookup, response, body, project=project, path=path, request_time=NOW, response_time=NOW)


async def put(store: MemoryStore, key: str, variant: str, entry: Entry) -> bool:
    found = await store.get(key, Place(entry.project, entry.method, entry.path))
    return await store.put(key, variant, entry, found.generation)


async def entries_of(store: MemoryStore, key: str) -> tuple[Entry, ...]:
    return (await store.get(key, Place("", "GET", ""))).entries


async def test_the_least_recently_used_is_given_up_first() -> None:
    small = size_of("a", "", entry(b""))
    store = MemoryStore(max_bytes=3 * small, max_object_bytes=1000)
    for key in "abc":
        await put(store, key, "", entry(b""))
    await entries_of(store, "a")
    await put(store, "d", "", entry(b""))
    assert [key for key in "abcd" if await entries_of(store, key)] == ["a", "c", "d"]


async def test_a_further_variant_is_a_use_of_its_key() -> None:
    store = MemoryStore(max_bytes=3 * size_of("k", "1", entry(b"1")), max_object_bytes=1000)
    for key, variant in (("k", "1"), ("l", "1"), ("k", "2"), ("m", "1")):
        await put(store, key, variant, entry(b"1"))
    assert [len(await entries_of(store, key)) for key in "klm"] == [2, 0, 1]


async def test_of_one_key_the_oldest_variant_goes_first() -> None:
    store = MemoryStore(max_bytes=2 * size_of("k", "1", entry(b"1")), max_object_bytes=1000)
    for variant in ("1", "2", "1", "3"):
        await put(store, "k", variant, entry(variant.encode()))
    assert [found.body for found in await entries_of(store, "k")] == [b"1", b"3"]


async def test_a_client_cannot_make_lookups_long_by_asking_for_ever_new_variants() -> None:
    store = MemoryStore(max_bytes=1 << 30, max_object_bytes=1000)
    for n in range(MOST_VARIANTS + 5):
        await put(store, "k", str(n), entry(b"%d" % n))
    bodies = [found.body for found in await entries_of(store, "k")]
    assert bodies == [b"%d" % n for n in range(5, MOST_VARIANTS + 5)]


async def test_what_is_larger_than_the_store_leaves_the_rest_alone() -> None:
    store = MemoryStore(max_bytes=2 * ENTRY_OVERHEAD, max_object_bytes=1 << 20)
    await put(store, "a", "", entry(b""))
    assert await put(store, "b", "", entry(b"x" * 2 * ENTRY_OVERHEAD)) is False
    assert await entries_of(store, "a")


async def test_a_purge_is_about_running_calls_whose_entry_was_given_up_meanwhile() -> None:
    store = MemoryStore(max_bytes=size_of("a", "", entry(b"")), max_object_bytes=1000)
    await put(store, "a", "", entry(b""))
    found = await store.get("a", Place("p", "GET", "/"))
    await put(store, "b", "", entry(b""))
    assert await store.purge(selection(project="p")) == 1
    assert await store.put("a", "", entry(b""), found.generation) is False


operations = st.lists(
    st.tuples(
        st.sampled_from(["put", "put", "put", "get", "delete", "purge"]),
        st.sampled_from("abcdef"),
        st.integers(0, 9000),
    ),
    max_size=60,
)


@unhurried
@given(operations)
async def test_bytes_stay_below_the_cap_and_the_order_is_that_of_use(steps: list[tuple[str, str, int]]) -> None:
    cap = 20_000
    store = MemoryStore(max_bytes=cap, max_object_bytes=8000)
    model: OrderedDict[str, int] = OrderedDict()
    for verb, key, length in steps:
        if verb == "put":
            made = entry(b"x" * length, project=key, path=f"/{key}")
            model.pop(key, None)
            if await put(store, key, "", made):
                model[key] = size_of(key, "", made)
            while sum(model.values()) > cap:
                model.popitem(last=False)
        elif verb == "get":
            assert bool(await entries_of(store, key)) is (key in model)
            if key in model:
                model.move_to_end(key)
        elif verb == "delete":
            assert await store.delete(key) == int(model.pop(key, None) is not None)
        else:
            assert await store.purge(selection(path=f"/{key}")) == int(model.pop(key, None) is not None)
        stats = await store.stats()
        assert stats.bytes == sum(model.values()) <= cap
        assert {project: held.bytes for project, held in stats.projects.items()} == model
    assert await store.purge(selection(everything=True)) == len(model)


@pytest.mark.parametrize(("headers", "length"), [(0, 10), (12, 600), (40, 4000)])
async def test_what_counts_is_what_python_takes(headers: int, length: int) -> None:
    store = MemoryStore(max_bytes=1 << 30, max_object_bytes=1 << 20)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for n in range(500):
            key = rules.primary_key("p", "GET", f"/{n}", None)
            await put(store, key, "", entry(bytes(length), project=f"p{n % 20}", path=f"/{n}", headers=headers))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    counted = (await store.stats()).bytes
    assert 0.5 * counted < taken < 1.1 * counted
