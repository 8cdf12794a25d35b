"""Tests of the store in Redis, beyond the suite of all stores."""

import asyncio
import dataclasses
import inspect
import json
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest
from redis.asyncio import Redis
from stage.redis import RedisServer, slow_road

from llm_proxy.cache import Count, Entry, Found, Place, Terms, selection
from llm_proxy.cache import redis as product
from llm_proxy.cache.redis import KEPT_TO_VALIDATE, LEAST_ROOM, LONGEST_KEPT, RedisStore, kept_for
from llm_proxy.errors import ApiError
from llm_proxy.redis_client import open_redis
from llm_proxy.redis_link import FAILURES
from llm_proxy.secret import Secret

PATIENTLY = 10.0
# Longer than the product's, for machines with much else to do, and shorter than redis-py's own.
PATIENCE = 0.25
SOON = 0.8
PLACE = Place("p", "GET", "/v1/models")


def entry(body: bytes = b"body", variant: str = "", *, lifetime: float = 60, stale: int = 0) -> Entry:
    terms = Terms(lifetime, 0, stale, False, False, (), (), variant)
    return Entry("p", "GET", "/v1/models", 200, "OK", (), body, time.time(), 0.0, terms)


@dataclass
class Bench:
    """A store that runs, what it said about Redis, and the client it uses."""

    store: RedisStore
    switches: "asyncio.Queue[str]"
    redis: "Redis"

    async def get(self, key: str = "k") -> Found:
        async with asyncio.timeout(SOON):
            return await self.store.get(key, PLACE)

    async def bodies(self, key: str = "k") -> list[bytes]:
        return [entry.body for entry in (await self.get(key)).entries]

    async def put(self, body: bytes, variant: str = "", key: str = "k") -> bool:
        return await self.store.put(key, variant, entry(body, variant), (await self.get(key)).generation)

    async def switched(self) -> str:
        async with asyncio.timeout(PATIENTLY):
            return await self.switches.get()

    async def until_away(self) -> None:
        for _ in range(FAILURES):
            assert await self.get() == ((), None)
        assert await self.switched() == "unavailable" and self.store.degraded


@asynccontextmanager
async def open_bench(
    uri: str, *, patience: float = PATIENCE, prefix: str = "cache:", largest: int = 1000
) -> AsyncIterator[Bench]:
    switches: asyncio.Queue[str] = asyncio.Queue()
    async with open_redis(Secret(uri), 20) as client:
        store = RedisStore(client, prefix, max_object_bytes=largest, switched=switches.put_nowait, patience=patience)
        await store.open()
        try:
            yield Bench(store, switches, client)
        finally:
            await store.close()


async def test_stores_on_one_redis_see_each_others_entries_and_purges(redis_server: RedisServer) -> None:
    uri = redis_server.uri
    async with open_bench(uri, patience=PATIENTLY) as one, open_bench(uri, patience=PATIENTLY) as other:
        late = await one.get()
        assert await one.put(b"1") and await other.bodies() == [b"1"]
        assert await other.store.purge(selection(project="p")) == 1
        assert await one.bodies() == []
        assert await one.store.put("k", "", entry(), late.generation) is False
        assert (await other.store.stats()).entries == 0


async def test_a_purge_sees_every_key_of_many_and_leaves_those_of_others(
    redis_server: RedisServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        open_bench(redis_server.uri, prefix="a[*]?:", patience=PATIENTLY) as bench,
        open_bench(redis_server.uri, prefix="ab:", patience=PATIENTLY) as other,
    ):
        for begin in range(0, 1200, 20):
            await asyncio.gather(*(bench.put(b"1", key=str(n)) for n in range(begin, begin + 20)))
        await other.put(b"other")
        await bench.redis.set("limits", "1")
        assert (await bench.store.stats()).projects["p"].entries == 1200
        monkeypatch.setattr(product, "COUNT_SECONDS", 60.0)
        assert await bench.store.count(selection(prefix="/v1")) == Count(1200)
        with monkeypatch.context() as patch:
            patch.setattr(product, "COUNT_SECONDS", 0.0)
            found = await bench.store.count(selection(prefix="/v1"))
            assert not found.complete and found.entries < 1200
        assert await bench.store.purge(selection(prefix="/v1")) == 1200
        assert set(await bench.redis.keys()) - {b"a[*]?:probe", b"ab:probe"} == {b"limits", b"ab:k"}


async def test_killed_redis_is_a_miss_then_no_wait_and_back_it_is_empty(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        found = await bench.get()
        assert await bench.store.put("k", "", entry(), found.generation)
        mortal_redis.kill()
        await bench.until_away()
        mortal_redis.start()
        assert await bench.switched() == "redis"
        assert await bench.bodies() == []
        assert await bench.store.put("k", "", entry(b"from before"), found.generation) is False
        assert await bench.put(b"new") and await bench.bodies() == [b"new"]


async def test_frozen_redis_is_a_miss_then_no_wait_and_back_it_answers(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        assert await bench.put(b"1")
        found = await bench.get()
        mortal_redis.freeze()
        async with asyncio.timeout(SOON):
            assert await bench.store.put("k", "", entry(), found.generation) is False
        await bench.until_away()
        # A coroutine that ends with its first step waits for nothing.
        with pytest.raises(StopIteration, match="Found"):
            bench.store.get("k", PLACE).send(None)
        with pytest.raises(StopIteration, match="False"):
            bench.store.put("k", "", entry(), found.generation).send(None)
        mortal_redis.resume()
        begun = time.monotonic()
        assert await bench.switched() == "redis" and time.monotonic() - begun < SOON + 1
        # What was sent to it in time it may have stored.
        assert await bench.bodies() in ([b"1"], [b"body"])


async def test_slow_redis_is_left_until_it_is_fast_again(redis_server: RedisServer) -> None:
    async with slow_road(redis_server) as road, open_bench(road.uri) as bench:
        assert await bench.put(b"1")
        road.delay = 0.6
        async with asyncio.timeout(SOON):
            await asyncio.gather(*(bench.get() for _ in range(30)))
        assert await bench.switched() == "unavailable"
        road.delay = 0.0
        assert await bench.switched() == "redis"
        assert await bench.bodies() == [b"1"]


async def test_full_redis_is_as_good_as_none(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        assert await bench.put(b"1", key="l")
        await bench.redis.config_set("maxmemory", 1)
        await bench.until_away()
        assert await bench.store.purge(selection(everything=True)) == 1, "which makes room"
        await bench.redis.config_set("maxmemory", 0)
        assert await bench.switched() == "redis"
        assert await bench.put(b"1")


async def test_a_call_waits_50_milliseconds_for_redis_unless_told_otherwise() -> None:
    assert inspect.signature(RedisStore).parameters["patience"].default == 0.05


async def test_a_purge_that_redis_did_not_hear_claims_nothing(mortal_redis: RedisServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llm_proxy.cache.redis.BACKGROUND_PATIENCE", 0.05)
    async with open_bench(mortal_redis.uri) as bench:
        assert await bench.put(b"1")
        mortal_redis.freeze()
        await bench.until_away()
        for attempt in (
            bench.store.purge(selection(key="k")),
            bench.store.purge(selection(project="p")),
            bench.store.purge(selection(everything=True)),
            bench.store.stats(),
            bench.store.count(selection(key="k")),
            bench.store.count(selection(everything=True)),
        ):
            with pytest.raises(ApiError, match="does not answer") as caught:
                await attempt
            assert (caught.value.code, caught.value.status) == ("cache_unavailable", 503)
        mortal_redis.resume()
        monkeypatch.undo()
        assert await bench.switched() == "redis"
        assert await bench.put(b"2") and await bench.store.purge(selection(key="k")) == 1


async def test_a_purge_that_redis_stops_to_hear_claims_nothing(mortal_redis: RedisServer) -> None:
    async with open_bench(mortal_redis.uri) as bench:
        mortal_redis.kill()
        with pytest.raises(ApiError, match="not all that you named was purged"):
            await bench.store.purge(selection(path="/v1/models"))


@pytest.mark.parametrize("most", [10_000, 0], ids=["few", "more than are remembered"])
async def test_what_was_to_be_deleted_while_redis_was_away_does_not_answer_again(
    mortal_redis: RedisServer, monkeypatch: pytest.MonkeyPatch, most: int
) -> None:
    monkeypatch.setattr("llm_proxy.cache.redis.MOST_OWED", most)
    async with open_bench(mortal_redis.uri) as bench, open_bench(mortal_redis.uri, patience=PATIENTLY) as other:
        assert await bench.put(b"1")
        late = await bench.get()
        mortal_redis.freeze()
        assert await bench.store.delete("k") == 0
        mortal_redis.resume()
        assert await bench.get() == ((), None)
        assert await bench.store.put("k", "", entry(), late.generation) is False
        async with asyncio.timeout(PATIENTLY):
            while (await bench.get()).generation is None:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert await bench.bodies() == await other.bodies() == []
        assert await bench.put(b"2") and await bench.bodies() == [b"2"]


GARBAGE = {
    "a string": lambda key: ("SET", key, b"garbage"),
    "a list": lambda key: ("RPUSH", key, b"garbage"),
    "a hash of something else": lambda key: ("HSET", key, "field", b"value"),
    "a hash without place": lambda key: ("HSET", key, "generation", b"g", "v", b"garbage"),
    "a hash of another version": lambda key: ("HSET", key, "place", b'{"a":1}', "generation", b"g", "v", b"\xff" * 99),
}


@pytest.mark.parametrize("write", GARBAGE.values(), ids=GARBAGE.keys())
async def test_garbage_is_a_miss_that_can_be_stored_over_and_purged(redis_server: RedisServer, write: object) -> None:
    assert callable(write)
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        await bench.redis.execute_command(*write("cache:k"))
        assert await bench.bodies() == []
        assert await bench.put(b"1")
        assert await bench.bodies() == [b"1"]
        await bench.redis.delete("cache:k")
        await bench.redis.execute_command(*write("cache:k"))
        await bench.store.stats()
        await bench.store.purge(selection(project="somebody else"))
        assert not await bench.redis.exists("cache:k")
        assert not bench.store.degraded


async def test_spoiled_entries_are_left_out(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        assert await bench.put(b"1", "a") and await bench.put(b"2", "b")
        packed = await bench.redis.hget("cache:k", "va")
        await bench.redis.hset("cache:k", "va", packed[:-1] + b"!")
        assert await bench.bodies() == [b"2"]


async def test_what_json_cannot_say_is_not_stored_and_replaces_what_was(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        assert await bench.put(b"1")
        odd = dataclasses.replace(entry(), reason="\udcff")
        assert await bench.store.put("k", "", odd, (await bench.get()).generation) is False
        assert await bench.bodies() == []


async def test_variants_under_one_key_are_bounded_in_bytes(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY, largest=LEAST_ROOM) as bench:
        third = bytes(2 * LEAST_ROOM // 3)
        for variant in "abcd":
            assert await bench.put(third, variant)
        found = await bench.get()
        assert sorted(each.terms.variant for each in found.entries) == ["c", "d"]


async def test_keys_expire_when_they_are_of_no_use_any_more(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        looked_up = await bench.get()
        assert 590_000 < await bench.redis.pttl("cache:k") <= 600_000
        await bench.store.put("k", "", entry(lifetime=100, stale=50), looked_up.generation)
        assert 149_000 < await bench.redis.pttl("cache:k") - 1000 * KEPT_TO_VALIDATE <= 150_000
        await bench.store.put("k", "b", entry(lifetime=1), looked_up.generation)
        assert await bench.redis.pttl("cache:k") - 1000 * KEPT_TO_VALIDATE > 149_000, "the longest lived keeps the key"
        await bench.redis.pexpire("cache:k", 5)
        await bench.get()
        assert await bench.redis.pttl("cache:k") > 600_000, "who was shown a generation has ten minutes"


async def test_a_variant_goes_when_its_time_has_come_though_its_key_lives_on(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        for variant in "ab":
            assert await bench.put(b"1", variant)
        [a, b] = json.loads(await bench.redis.hget("cache:k", "order"))
        await bench.redis.hset("cache:k", "order", json.dumps([[a[0], a[1] - 4_000_000, a[2]], b]))
        assert await bench.put(b"1", "c")
        assert sorted(each.terms.variant for each in (await bench.get()).entries) == ["b", "c"]


KEPT = {
    "fresh": (entry(lifetime=60), 0, 60 + KEPT_TO_VALIDATE),
    "older": (entry(lifetime=60), 50, 10 + KEPT_TO_VALIDATE),
    "stale windows": (entry(lifetime=60, stale=9), 0, 69 + KEPT_TO_VALIDATE),
    "stale": (entry(lifetime=0), 5, KEPT_TO_VALIDATE),
    "for a year": (entry(lifetime=31_536_000), 0, LONGEST_KEPT),
}


@pytest.mark.parametrize(("entry", "after", "kept"), KEPT.values(), ids=KEPT.keys())
def test_entries_are_kept_for_as_long_as_they_may_be_used(entry: Entry, after: float, kept: float) -> None:
    assert kept_for(entry, entry.response_time + after) == pytest.approx(kept)


async def test_scripts_that_redis_forgot_are_sent_again(redis_server: RedisServer) -> None:
    async with open_bench(redis_server.uri, patience=PATIENTLY) as bench:
        assert await bench.put(b"1")
        await bench.redis.script_flush()
        assert await bench.bodies() == [b"1"]
        await bench.redis.script_flush()
        assert await bench.store.purge(selection(everything=True)) == 1
