"""A change made by one instance is looked at by the others at once, when Redis can tell; when it cannot, nothing is worse."""

import asyncio
import pathlib
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from stage.asking import until
from stage.house import open_house, settings_for
from stage.redis import RedisServer

from llm_proxy import news as product
from llm_proxy.changes import Change
from llm_proxy.db import sqlite
from llm_proxy.errors import DatabaseUnavailable
from llm_proxy.news import News, channel_of, open_news
from llm_proxy.settings import load


class Looking:
    """Counts how often it looks; the database may be away."""

    def __init__(self) -> None:
        self.times = 0
        self.fails = False

    async def __call__(self) -> None:
        self.times += 1
        if self.fails:
            raise DatabaseUnavailable


@asynccontextmanager
async def instance(server: RedisServer, folder: pathlib.Path) -> AsyncIterator[tuple[News, Looking]]:
    look = Looking()
    async with open_news(settings_for(folder, REDIS_URL=server.uri), look) as news:
        yield news, look


async def test_all_instances_on_one_database_look_and_no_others_do(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    async with (
        instance(redis_server, tmp_path / "a") as (one, mine),
        instance(redis_server, tmp_path / "a") as (_, other),
        instance(redis_server, tmp_path / "b") as (_, stranger),
    ):
        await until(lambda: mine.times == other.times == stranger.times == 1)
        one.tell()
        await until(lambda: mine.times == other.times == 2)
        assert stranger.times == 1


async def test_redis_away_nobody_waits_and_when_it_is_back_everybody_looks(
    mortal_redis: RedisServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(product, "RETRY_SECONDS", 0.02)
    async with instance(mortal_redis, tmp_path) as (one, mine), instance(mortal_redis, tmp_path) as (_, other):
        await until(lambda: mine.times == other.times == 1)
        mortal_redis.kill()
        began = time.perf_counter()
        one.tell()
        assert time.perf_counter() - began < 0.005
        mortal_redis.start()
        await until(lambda: min(mine.times, other.times) >= 2)
        before = other.times
        one.tell()
        await until(lambda: other.times > before)


async def test_a_frozen_redis_holds_up_no_stop(mortal_redis: RedisServer, tmp_path: pathlib.Path) -> None:
    async with instance(mortal_redis, tmp_path) as (one, mine):
        await until(lambda: mine.times == 1)
        mortal_redis.freeze()
        one.tell()
        await asyncio.sleep(0.01)
        began = time.perf_counter()
    assert time.perf_counter() - began < 3


async def test_a_connection_that_fell_silent_is_tried_and_made_anew(
    mortal_redis: RedisServer, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SILENCE_SECONDS", "RETRY_SECONDS", "PATIENCE"):
        monkeypatch.setattr(product, name, 0.1)
    async with instance(mortal_redis, tmp_path) as (one, mine):
        await until(lambda: mine.times == 1)
        mortal_redis.freeze()
        await asyncio.sleep(0.5)
        mortal_redis.resume()
        await until(lambda: mine.times >= 2)
        before = mine.times
        one.tell()
        await until(lambda: mine.times > before)


async def test_a_database_that_is_away_does_not_end_the_listening(redis_server: RedisServer, tmp_path: pathlib.Path) -> None:
    async with instance(redis_server, tmp_path) as (one, mine):
        await until(lambda: mine.times == 1)
        mine.fails = True
        one.tell()
        await until(lambda: mine.times == 2)
        one.tell()
        await until(lambda: mine.times == 3)


def test_the_channel_is_that_of_the_database_without_its_credentials(tmp_path: pathlib.Path) -> None:
    def channel(url: str) -> str:
        return channel_of(load(overrides={"DATABASE_URL": url}))

    one = channel("postgresql://user:password@db:5432/main?sslmode=require")
    assert one == channel("postgresql://other:word@db:5432/main") != channel("postgresql://user:password@db:5432/test")
    assert channel_of(settings_for(tmp_path)) != channel_of(settings_for(tmp_path / "other"))
    assert "db" not in one.removeprefix("llm-proxy:changes:")[16:] and len(one) == len("llm-proxy:changes:") + 16


async def test_a_change_in_one_house_reaches_another_by_redis_alone(
    redis_server: RedisServer, tmp_path: pathlib.Path, fake: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "HINT_SECONDS", 3600.0)
    settings = settings_for(tmp_path, REDIS_URL=redis_server.uri)
    async with open_house(settings) as one, open_house(settings) as other:
        heard: list[Change] = []
        other.context.changes.listen(heard.append)
        await one.project(fake)
        await until(lambda: heard)
