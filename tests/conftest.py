"""Fixtures that every test may use."""

import asyncio
import contextlib
import functools
import gc
import os
import pathlib
import shutil
import ssl
import uuid
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from typing import Any

import hypothesis
import pytest
import uvloop
from stage import secrets
from stage.house import House, migrated, migrated_database, open_house, settings_for
from stage.management import Management, managing
from stage.postgres import Postgres, running_postgres
from stage.provider import ScriptedProvider, scripted_provider
from stage.redis import RedisServer, running_redis
from stage.watchdog import Watchdog

from llm_proxy import context, fake_provider
from llm_proxy.db import Database, open_database
from llm_proxy.providers.profile_file import load_profiles, packaged_path
from llm_proxy.providers.profiles import Profiles
from llm_proxy.settings import TABLE, Settings
from llm_proxy.upstream import pool

NAMES = {name for field in TABLE for name in (field.name.upper(), f"{field.name.upper()}_FILE", *field.metadata["aliases"])} | {
    "HOST",
    "PORT",
    "CREDENTIALS_DIRECTORY",
    "NOTIFY_SOCKET",
    "LISTEN_FDS",
    "OPENAI_API_KEY",
}


def pytest_asyncio_loop_factories() -> dict[str, Callable[[], asyncio.AbstractEventLoop]]:
    """Tests run on the loop that the product runs on."""
    return {"uvloop": uvloop.new_event_loop}


# EXAMPLES=1000 looks longer than a run of everything can.
EXAMPLES = int(os.environ.get("EXAMPLES", "50"))
# No property depends on how busy the machine is.
hypothesis.settings.register_profile(
    "suite", deadline=None, max_examples=EXAMPLES, suppress_health_check=[hypothesis.HealthCheck.too_slow]
)
hypothesis.settings.load_profile("suite")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """What collecting makes stays to the end: looking for garbage in it takes a sixth of the time, and time of tests later."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


watchdog = Watchdog()


def pytest_timeout_set_timer(item: pytest.Item, settings: Any) -> bool | None:
    """The timeouts of setup.cfg are watched by one thread."""
    if settings.method != "thread":
        return None
    watchdog.watch(item, settings)
    return True


def pytest_timeout_cancel_timer() -> None:
    """The test is over, whoever watched it."""
    watchdog.rest()


@pytest.fixture(scope="session", autouse=True)
def bare_environment() -> Iterator[None]:
    """No setting of the machine reaches a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in NAMES & os.environ.keys():
            patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def read_once() -> Iterator[None]:
    """The system's certificates and the packaged profiles: reading them takes most of the time in which a house opens."""
    read_trust, default_trust = pool.trust, functools.cache(ssl.create_default_context)
    packaged, packaged_profiles = packaged_path(), functools.cache(load_profiles)

    def trust(settings: Settings) -> ssl.SSLContext:
        return read_trust(settings) if settings.ssl_cert_file or not settings.verify_ssl else default_trust()

    def profiles(path: pathlib.Path) -> Profiles:
        return packaged_profiles(path) if path == packaged else load_profiles(path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pool, "trust", trust)
        patch.setattr(context, "load_profiles", profiles)
        yield


@pytest.fixture(scope="session")
def empty_folder(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    """Where the thousands of tests work that ask for no folder: making one takes longer than most of them."""
    return tmp_path_factory.mktemp("empty")


@pytest.fixture(autouse=True)
def own_folder(request: pytest.FixtureRequest, empty_folder: pathlib.Path) -> Iterator[None]:
    """No .env reaches a test, and no file that it leaves holds a provider's key, a token or another secret of its house."""
    folder = request.getfixturevalue("tmp_path") if "tmp_path" in request.fixturenames else empty_folder
    secrets.begin()
    with contextlib.chdir(folder):
        yield
    assert not secrets.found_in(folder)
    if folder == empty_folder and any(folder.iterdir()):
        shutil.rmtree(folder)
        folder.mkdir()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """One PostgreSQL for the tests of a process."""
    with running_postgres() as server:
        yield server


@pytest.fixture
def empty_postgres_url(postgres: Postgres) -> str:
    """The URL of an empty database."""
    return postgres.create(f"t{uuid.uuid4().hex}")


@pytest.fixture
def postgres_url(postgres: Postgres) -> str:
    """The URL of a migrated database."""
    return migrated_database(postgres)


@pytest.fixture(scope="session")
def shared_redis() -> Iterator[RedisServer]:
    """One Redis for the tests of a process that leave it running."""
    with running_redis() as server:
        yield server


@pytest.fixture
def redis_server(shared_redis: RedisServer) -> RedisServer:
    """An empty Redis that this test must not harm."""
    shared_redis.empty()
    return shared_redis


@pytest.fixture
def mortal_redis() -> Iterator[RedisServer]:
    """An empty Redis that this test may freeze, kill and start again."""
    with running_redis() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgres"])
def settings(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Settings:
    """Settings of a house, once on each database."""
    if request.param == "postgres":
        return settings_for(tmp_path, DATABASE_URL=request.getfixturevalue("postgres_url"))
    return settings_for(tmp_path)


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """An empty, migrated database, once on each kind."""
    async with open_database(migrated(settings)) as opened:
        yield opened


@pytest.fixture
async def house(tmp_path: pathlib.Path) -> AsyncIterator[House]:
    """The whole program on SQLite."""
    async with open_house(settings_for(tmp_path)) as opened:
        yield opened


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    """A provider that records raw bytes, and says what a test scripts."""
    async with scripted_provider() as running:
        yield running


@pytest.fixture
async def fake() -> AsyncIterator[str]:
    """The URL of the fake provider, which speaks both dialects."""
    async with fake_provider.running() as url:
        yield url


@pytest.fixture
async def each_house(settings: Settings) -> AsyncIterator[House]:
    """The whole program, once on each database."""
    async with open_house(settings) as opened:
        yield opened


@pytest.fixture
async def api(house: House) -> AsyncIterator[Management]:
    """The operator of a house on SQLite."""
    async with managing(house) as operator:
        yield operator


@pytest.fixture
async def each_api(each_house: House) -> AsyncIterator[Management]:
    """The operator of a house, once on each database."""
    async with managing(each_house) as operator:
        yield operator
