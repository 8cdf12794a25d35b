"""Every store of responses keeps the same promises."""

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

import pytest
from stage.redis import RedisServer

from llm_proxy.cache import Count, Entry, Hit, Place, rules, selection
from llm_proxy.cache.memory import MOST_VARIANTS, MemoryStore
from llm_proxy.cache.redis import RedisStore
from llm_proxy.cache.store import Store
from llm_proxy.redis_client import open_redis
from llm_proxy.secret import Secret

NOW = 1_800_000_000.0
PLACE = Place("p", "GET", "/v1/models")


@pytest.fixture(params=["memory", "redis"])
async def store(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Store]:
    if request.param == "memory":
        yield MemoryStore(max_bytes=1 << 20, max_object_bytes=1000)
        return
    server: RedisServer = request.getfixturevalue("redis_server")
    # What is exact must not hang on how much else this machine does.
    monkeypatch.setattr("llm_proxy.cache.redis.COUNT_SECONDS", 60.0)
    async with open_redis(Secret(server.uri), 8) as redis:
        store = RedisStore(redis, "cache:", max_object_bytes=1000, switched=lambda to: None, patience=10.0)
        yield store
        await store.close()


async def put(store: Store, key: str, variant: str, entry: Entry) -> bool:
    """Store what a request brought that looked the key up first."""
    found = await store.get(key, Place(entry.project, entry.method, entry.path))
    return await store.put(key, variant, entry, found.generation)


async def entries_of(store: Store, key: str) -> tuple[Entry, ...]:
    return (await store.get(key, PLACE)).entries


def entry(body: bytes = b"body", *, project: str = "p", method: str = "GET", path: str = "/v1/models", foo: str = "") -> Entry:
    lookup = rules.read_request("GET", [(b"Foo", foo.encode())])
    headers = [(b"Cache-Control", b"max-age=60, stale-if-error=9"), (b"ETag", b'"a"'), (b"Vary", b"Foo, Bar")]
    terms = rules.may_store(lookup, 200, headers, NOW, default_ttl=300)
    assert terms is not None
    response = (200, "OK", headers)
    made = rules.entry_of(terms, lookup, response, body, project=project, path=path, request_time=NOW, response_time=NOW)
    return dataclasses.replace(made, method=method)


async def test_what_was_put_is_got_as_it_was(store: Store) -> None:
    made = entry(b"\x00\xff", foo="1")
    assert await put(store, "k", made.terms.variant, made)
    assert await entries_of(store, "k") == (made,)
    assert await entries_of(store, "other") == ()


async def test_variants_lie_side_by_side_and_each_answers_its_request(store: Store) -> None:
    one, two = entry(b"1", foo="1"), entry(b"2", foo="2")
    await put(store, "k", one.terms.variant, one)
    await put(store, "k", two.terms.variant, two)
    entries = await entries_of(store, "k")
    assert set(entries) == {one, two}
    assert rules.decide(entries, rules.read_request("GET", [(b"Foo", b"1")]), NOW) == Hit(one)


async def test_the_newer_of_one_variant_takes_the_place_of_the_older(store: Store) -> None:
    await put(store, "k", "v", entry(b"old"))
    await put(store, "k", "v", entry(b"new"))
    assert [found.body for found in await entries_of(store, "k")] == [b"new"]
    assert (await store.stats()).entries == 1


async def test_what_is_too_large_is_not_stored_and_what_it_would_replace_is_gone(store: Store) -> None:
    await put(store, "k", "v", entry(b"old"))
    assert await put(store, "k", "v", entry(b"x" * 1001)) is False
    assert await entries_of(store, "k") == ()
    assert await put(store, "k", "v", entry(b"x" * 1000)) is True


async def test_delete_forgets_all_variants_of_a_key(store: Store) -> None:
    await put(store, "k", "v", entry())
    await put(store, "k", "w", entry())
    await put(store, "l", "v", entry())
    assert await store.delete("k") == 2
    assert await store.delete("k") == 0
    assert await entries_of(store, "k") == ()
    assert len(await entries_of(store, "l")) == 1


async def stock(store: Store) -> None:
    """One entry for each of these, under keys that say what it is."""
    for project in ("p", "q"):
        for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/m"), ("POST", "/v1/models"), ("GET", "/v1/files")):
            await put(store, f"{project} {method} {path}", "", entry(project=project, method=method, path=path))


PURGES = {
    "everything": ({"everything": True}, 8, lambda key: False),
    "a project": ({"project": "p"}, 4, lambda key: key.startswith("q")),
    "a path in every project": ({"path": "/v1/models"}, 4, lambda key: not key.endswith("/v1/models")),
    "a method and path": ({"method": "POST", "path": "/v1/models"}, 2, lambda key: "POST" not in key),
    "HEAD is GET": ({"method": "HEAD", "path": "/v1/files"}, 2, lambda key: not key.endswith("/v1/files")),
    "a path in a project": ({"project": "p", "path": "/v1/files"}, 1, lambda key: key != "p GET /v1/files"),
    "all of that": (
        {"project": "q", "method": "GET", "path": "/v1/models"},
        1,
        lambda key: key != "q GET /v1/models",
    ),
    "a prefix": ({"prefix": "/v1/models"}, 6, lambda key: key.endswith("/v1/files")),
    "a prefix in a project": ({"project": "p", "prefix": "/v1/models"}, 3, lambda key: key[0] == "q" or key.endswith("files")),
    "a project's calls by one method": ({"project": "p", "method": "POST"}, 1, lambda key: key != "p POST /v1/models"),
    "a key": ({"key": "p GET /v1/files"}, 1, lambda key: key != "p GET /v1/files"),
    "a path that nothing has": ({"path": "/v1"}, 0, lambda key: True),
    "a project that has nothing": ({"project": "r"}, 0, lambda key: True),
}


@pytest.mark.parametrize(("said", "deleted", "stays"), PURGES.values(), ids=PURGES.keys())
async def test_purge_forgets_exactly_what_was_named(store: Store, said: dict[str, Any], deleted: int, stays: object) -> None:
    assert callable(stays)
    await stock(store)
    keys = [f"{p} {rest}" for p in "pq" for rest in ("GET /v1/models", "GET /v1/models/m", "POST /v1/models", "GET /v1/files")]
    assert await store.count(selection(**said)) == Count(deleted)
    assert await store.purge(selection(**said)) == deleted
    assert await store.count(selection(**said)) == Count(0)
    assert [key for key in keys if await entries_of(store, key)] == [key for key in keys if stays(key)]
    assert await store.purge(selection(**said)) == 0


@pytest.mark.parametrize("said", [{}, {"method": "GET"}], ids=["nothing", "a method alone"])
async def test_a_purge_of_nothing_in_particular_is_refused(store: Store, said: dict[str, Any]) -> None:
    await stock(store)
    with pytest.raises(ValueError, match="what to purge"):
        await store.purge(selection(**said))
    assert (await store.stats()).entries == 8


async def test_a_count_forgets_nothing_and_has_every_variant(store: Store) -> None:
    await stock(store)
    await put(store, "p GET /v1/files", "another", entry(path="/v1/files"))
    for said, entries in (({"key": "p GET /v1/files"}, 2), ({"project": "p"}, 5), ({"everything": True}, 9)):
        assert await store.count(selection(**said)) == Count(entries)  # type: ignore[arg-type]
    assert (await store.stats()).entries == 9


async def test_stats_tell_entries_and_bytes_by_project(store: Store) -> None:
    assert await store.stats() == (0, 0, {})
    await stock(store)
    stats = await store.stats()
    assert stats.entries == 8
    assert {project: held.entries for project, held in stats.projects.items()} == {"p": 4, "q": 4}
    assert stats.bytes == sum(held.bytes for held in stats.projects.values()) > 8 * len(b"body")
    await store.purge(selection(project="p"))
    assert (await store.stats()).projects.keys() == {"q"}
    await store.purge(selection(everything=True))
    assert await store.stats() == (0, 0, {})


async def test_of_ever_new_variants_the_oldest_go(store: Store) -> None:
    for n in [0, *range(1, MOST_VARIANTS), 0, MOST_VARIANTS]:
        await put(store, "k", str(n), entry(b"%d" % n))
    assert {int(found.body) for found in await entries_of(store, "k")} == {0, *range(2, MOST_VARIANTS + 1)}


OLD = entry(b"old")
FORGETTINGS: dict[str, dict[str, Any]] = {
    "the key": {"key": "k"},
    "its project": {"project": "p"},
    "its path": {"path": "/v1/models"},
    "its method and path": {"method": "GET", "path": "/v1/models"},
    "a prefix of its path": {"prefix": "/v1"},
    "everything": {"everything": True},
}


@pytest.mark.parametrize("stored", [False, True], ids=["nothing stored", "an entry stored"])
@pytest.mark.parametrize("said", FORGETTINGS.values(), ids=FORGETTINGS.keys())
async def test_what_was_asked_for_before_a_purge_is_not_stored_after_it(store: Store, said: dict[str, Any], stored: bool) -> None:
    if stored:
        await put(store, "k", "v", OLD)
    before = await store.get("k", PLACE)
    assert await store.purge(selection(**said)) == int(stored)
    after = await store.get("k", PLACE)
    assert await store.put("k", "v", OLD, before.generation) is False
    assert await entries_of(store, "k") == ()
    assert await store.put("k", "v", entry(b"new"), after.generation)
    assert await store.put("k", "v", OLD, before.generation) is False
    assert [found.body for found in await entries_of(store, "k")] == [b"new"]


async def test_what_a_purge_is_not_about_is_stored_after_it(store: Store) -> None:
    found = await store.get("k", PLACE)
    for said in ({"project": "q"}, {"path": "/v1/files"}, {"method": "POST", "path": "/v1/models"}, {"key": "l"}):
        await store.purge(selection(**said))  # type: ignore[arg-type]
    await put(store, "l", "v", entry())
    assert await store.delete("l") == 1
    assert await store.put("k", "v", entry(), found.generation)
    assert await store.put("k", "w", entry(), found.generation), "two answers may be under way at once"


async def test_what_was_asked_for_before_a_key_was_deleted_is_not_stored_after_it(store: Store) -> None:
    before = await store.get("k", PLACE)
    assert await store.delete("k") == 0
    assert await store.put("k", "v", OLD, before.generation) is False


async def test_an_answer_to_a_request_that_was_never_looked_up_is_not_stored(store: Store) -> None:
    assert await store.put("k", "v", OLD, None) is False
    assert await entries_of(store, "k") == ()


async def test_no_old_content_survives_purges_among_calls(store: Store) -> None:
    """Each answer says how many purges had begun when it was asked for; none is found that is older than one that has ended."""
    begun = ended = 0

    async def calls(key: str) -> None:
        for _ in range(12):
            at_least = ended
            found = await store.get(key, PLACE)
            assert all(int(each.body) >= at_least for each in found.entries)
            asked = begun
            await asyncio.sleep(0)
            await store.put(key, "v", entry(b"%d" % asked), found.generation)

    async def purging() -> None:
        nonlocal begun, ended
        for _ in range(8):
            begun += 1
            await store.purge(selection(path="/v1/models"))
            ended += 1
            await asyncio.sleep(0)

    await asyncio.gather(purging(), *(calls(f"k{n % 3}") for n in range(6)))
