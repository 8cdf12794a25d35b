"""Every store of responses keeps the same promises."""

import dataclasses
from typing import Any

import pytest

from llm_proxy.cache import Entry, Hit, rules
from llm_proxy.cache.memory import MemoryStore

NOW = 1_800_000_000.0

Store = MemoryStore


@pytest.fixture(params=["memory"])
def store() -> Store:
    return MemoryStore(max_bytes=1 << 20, max_object_bytes=1000)


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
    assert await store.put("k", made.terms.variant, made)
    assert await store.get("k") == (made,)
    assert await store.get("other") == ()


async def test_variants_lie_side_by_side_and_each_answers_its_request(store: Store) -> None:
    one, two = entry(b"1", foo="1"), entry(b"2", foo="2")
    await store.put("k", one.terms.variant, one)
    await store.put("k", two.terms.variant, two)
    entries = await store.get("k")
    assert set(entries) == {one, two}
    assert rules.decide(entries, rules.read_request("GET", [(b"Foo", b"1")]), NOW) == Hit(one)


async def test_the_newer_of_one_variant_takes_the_place_of_the_older(store: Store) -> None:
    await store.put("k", "v", entry(b"old"))
    await store.put("k", "v", entry(b"new"))
    assert [found.body for found in await store.get("k")] == [b"new"]
    assert (await store.stats()).entries == 1


async def test_what_is_too_large_is_not_stored_and_what_it_would_replace_is_gone(store: Store) -> None:
    await store.put("k", "v", entry(b"old"))
    assert await store.put("k", "v", entry(b"x" * 1001)) is False
    assert await store.get("k") == ()
    assert await store.put("k", "v", entry(b"x" * 1000)) is True


async def test_delete_forgets_all_variants_of_a_key(store: Store) -> None:
    await store.put("k", "v", entry())
    await store.put("k", "w", entry())
    await store.put("l", "v", entry())
    assert await store.delete("k") == 2
    assert await store.delete("k") == 0
    assert await store.get("k") == ()
    assert len(await store.get("l")) == 1


async def stock(store: Store) -> None:
    """One entry for each of these, under keys that say what it is."""
    for project in ("p", "q"):
        for method, path in (("GET", "/v1/models"), ("GET", "/v1/models/m"), ("POST", "/v1/models"), ("GET", "/v1/files")):
            await store.put(f"{project} {method} {path}", "", entry(project=project, method=method, path=path))


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
    "a path that nothing has": ({"path": "/v1"}, 0, lambda key: True),
    "a project that has nothing": ({"project": "r"}, 0, lambda key: True),
}


@pytest.mark.parametrize(("said", "deleted", "stays"), PURGES.values(), ids=PURGES.keys())
async def test_purge_forgets_exactly_what_was_named(store: Store, said: dict[str, Any], deleted: int, stays: object) -> None:
    assert callable(stays)
    await stock(store)
    keys = [f"{p} {rest}" for p in "pq" for rest in ("GET /v1/models", "GET /v1/models/m", "POST /v1/models", "GET /v1/files")]
    assert await store.purge(**said) == deleted
    assert [key for key in keys if await store.get(key)] == [key for key in keys if stays(key)]
    assert await store.purge(**said) == 0


@pytest.mark.parametrize("said", [{}, {"method": "GET"}], ids=["nothing", "a method alone"])
async def test_a_purge_of_nothing_in_particular_is_refused(store: Store, said: dict[str, Any]) -> None:
    await stock(store)
    with pytest.raises(ValueError, match="what to purge"):
        await store.purge(**said)
    assert (await store.stats()).entries == 8


async def test_stats_tell_entries_and_bytes_by_project(store: Store) -> None:
    assert await store.stats() == (0, 0, {})
    await stock(store)
    stats = await store.stats()
    assert stats.entries == 8
    assert {project: held.entries for project, held in stats.projects.items()} == {"p": 4, "q": 4}
    assert stats.bytes == sum(held.bytes for held in stats.projects.values()) > 8 * len(b"body")
    await store.purge(project="p")
    assert (await store.stats()).projects.keys() == {"q"}
    await store.purge(everything=True)
    assert await store.stats() == (0, 0, {})
