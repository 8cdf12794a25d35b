"""The cache that recognises tokens: what it asks the database, what it forgets, and when."""

import asyncio
import base64
from typing import Any

import pytest

from llm_proxy import projects, token_cache, tokens
from llm_proxy.changes import EVERYTHING, Change
from llm_proxy.db import NO_PARAMS, Database, Params, Row
from llm_proxy.errors import ApiError, DatabaseUnavailable, Overtaken
from llm_proxy.ids import new_id
from llm_proxy.secret import Secret
from llm_proxy.token_cache import Presented, TokenCache
from llm_proxy.tokens import Token
from llm_proxy.vault import Vault

NO_KEY = Vault([])
NOW = 1_000_000_000_000

# What the cache keeps, and for how long, is the same on both databases.
on_one = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


def vault_of(*keys: int) -> Vault:
    return Vault([Secret(base64.b64encode(bytes([key]) * 32).decode()) for key in keys])


class Watched:
    """A database that counts what it is asked, can be made to fail, and lets somebody in while a row is on its way."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.reads = 0
        self.writes = 0
        self.away: set[str] = set()
        self.meanwhile: asyncio.Event | None = None
        self.arrived = asyncio.Event()

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        self.reads += 1
        if "reads" in self.away:
            raise DatabaseUnavailable
        row = await self._database.fetch_one(sql, params)
        if self.meanwhile:
            held, self.meanwhile = self.meanwhile, None
            self.arrived.set()
            await held.wait()
        return row

    async def execute(self, sql: str, params: Params = NO_PARAMS) -> int:
        self.writes += 1
        if "writes" in self.away:
            raise DatabaseUnavailable
        return await self._database.execute(sql, params)


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
async def project(database: Database) -> str:
    return (await projects.insert(database, new_id(), "one", {})).id


@pytest.fixture
def watched(database: Database) -> Watched:
    return Watched(database)


def cache_of(database: Watched, vault: Vault = NO_KEY, size: int = 100, clock: Clock | None = None) -> TokenCache:
    return TokenCache(database, vault, size, clock or Clock())  # type: ignore[arg-type]


async def make(database: Database, project_id: str, vault: Vault = NO_KEY, **columns: Any) -> tuple[Token, str]:
    id, secret = tokens.new_token()
    async with database.transaction() as tx:
        made = await tokens.insert(tx, vault, {"project_id": project_id, "name": "mine", **columns}, id, secret)
    return made, secret.reveal()


async def refusal(cache: TokenCache, presented: str) -> str:
    with pytest.raises(ApiError) as raised:
        await cache.authenticate(presented)
    return raised.value.code


@on_one
async def test_a_token_is_looked_up_once(database: Database, project: str, watched: Watched) -> None:
    made, secret = await make(database, project)
    cache = cache_of(watched)
    for _ in range(5):
        assert await cache.authenticate(secret) == made
    assert (watched.reads, watched.writes) == (1, 0)


@on_one
async def test_junk_costs_no_database_work(database: Database, project: str, watched: Watched) -> None:
    _, secret = await make(database, project)
    cache = cache_of(watched)
    for junk in (
        "",
        "short",
        "x" * 513,
        "with a space in it",
        secret[:-1],
        secret + "0",
        "sk-lp-" + secret[6:].swapcase(),
        "sk-lp-" + "0" * 60,
    ):
        assert await refusal(cache, junk) == "invalid_token"
    assert (watched.reads, watched.writes) == (0, 0)


@on_one
async def test_an_unknown_token_is_looked_up_once_in_five_seconds(watched: Watched) -> None:
    clock = Clock()
    cache = cache_of(watched, clock=clock)
    unknown = tokens.new_token()[1].reveal()
    for moment, reads in ((0.0, 1), (4.9, 1), (5.1, 2), (10.0, 2), (10.2, 3)):
        clock.now = 1000.0 + moment
        assert await refusal(cache, unknown) == "invalid_token"
        assert watched.reads == reads, f"after {moment} s"


@on_one
async def test_a_known_token_is_looked_up_once_a_minute(database: Database, project: str, watched: Watched) -> None:
    clock = Clock()
    cache = cache_of(watched, clock=clock)
    _, secret = await make(database, project)
    for moment, reads in ((0.0, 1), (59.9, 1), (60.1, 2), (120.0, 2), (120.2, 3)):
        clock.now = 1000.0 + moment
        await cache.authenticate(secret)
        assert watched.reads == reads, f"after {moment} s"


@on_one
async def test_a_row_edited_by_hand_is_noticed_within_a_minute(database: Database, project: str, watched: Watched) -> None:
    clock = Clock()
    cache = cache_of(watched, clock=clock)
    _, secret = await make(database, project)
    await cache.authenticate(secret)
    await database.execute("UPDATE tokens SET is_active = :off", {"off": False})
    clock.now += 60.1
    assert await refusal(cache, secret) == "token_inactive"


@on_one
async def test_the_least_recently_used_go_first(database: Database, project: str, watched: Watched) -> None:
    cache = cache_of(watched, size=3)
    a, b, c, d = [(await make(database, project))[1] for _ in range(4)]
    for secret in (a, b, c, a, d):
        await cache.authenticate(secret)
    assert watched.reads == 4
    for secret, reads in ((a, 4), (c, 4), (d, 4), (b, 5)):
        await cache.authenticate(secret)
        assert watched.reads == reads
    assert len(cache._known) == len(cache._keys_of) == 3


@on_one
async def test_the_table_of_misses_is_bounded(watched: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(token_cache, "MISSES", 10)
    cache = cache_of(watched)
    unknown = [tokens.new_token()[1].reveal() for _ in range(25)]
    for secret in unknown:
        await refusal(cache, secret)
    assert len(cache._misses) == 10
    assert not cache._known
    await refusal(cache, unknown[-1])
    assert watched.reads == 25
    await refusal(cache, unknown[0])
    assert watched.reads == 26


@pytest.mark.parametrize("kind", ["token", "project", "everything"])
async def test_a_change_makes_the_next_call_look_again(database: Database, project: str, watched: Watched, kind: str) -> None:
    made, secret = await make(database, project)
    cache = cache_of(watched)
    await cache.authenticate(secret)
    await tokens.update(database, made.id, {"is_active": False})
    assert await cache.authenticate(secret) == made, "nobody has told of the change"
    cache.on_change({"token": Change("token", made.id), "project": Change("project", project)}.get(kind, EVERYTHING))
    assert await refusal(cache, secret) == "token_inactive"


@on_one
async def test_a_change_of_one_token_leaves_the_others_cached(database: Database, project: str, watched: Watched) -> None:
    (one, _), (_, other) = await make(database, project), await make(database, project)
    cache = cache_of(watched)
    await cache.authenticate(other)
    cache.on_change(Change("token", one.id))
    cache.on_change(Change("provider", "p", {"project_id": project}))
    await cache.authenticate(other)
    assert watched.reads == 1


@on_one
async def test_a_change_empties_the_table_of_misses(watched: Watched) -> None:
    cache = cache_of(watched)
    unknown = tokens.new_token()[1].reveal()
    await refusal(cache, unknown)
    cache.on_change(Change("token", "another"))
    await refusal(cache, unknown)
    assert watched.reads == 2


async def test_a_look_up_under_way_when_a_revocation_came_sees_the_revocation(
    database: Database, project: str, watched: Watched
) -> None:
    made, secret = await make(database, project)
    cache = cache_of(watched)
    watched.meanwhile = held = asyncio.Event()
    under_way = asyncio.create_task(cache.authenticate(secret))
    await watched.arrived.wait()
    await tokens.update(database, made.id, {"is_active": False})
    cache.on_change(Change("token", made.id))
    held.set()
    with pytest.raises(Overtaken):
        await under_way
    assert await refusal(cache, secret) == "token_inactive"
    assert watched.reads == 2, "what was read last is what is kept"


@on_one
async def test_a_look_up_under_way_when_its_token_was_made_leaves_no_miss(
    database: Database, project: str, watched: Watched
) -> None:
    id, secret = tokens.new_token()
    cache = cache_of(watched)
    watched.meanwhile = held = asyncio.Event()
    under_way = asyncio.create_task(cache.authenticate(secret.reveal()))
    await watched.arrived.wait()
    await tokens.insert(database, NO_KEY, {"project_id": project, "name": ""}, id, secret)
    cache.on_change(Change("token", id))
    held.set()
    assert (await under_way).id == id


@pytest.mark.parametrize(
    ("stored_with", "read_with", "newest"),
    [
        pytest.param([], [1], "hmac", id="a key is added"),
        pytest.param([1], [2, 1], "hmac", id="a key is rotated"),
        pytest.param([], [2, 1], "hmac", id="two keys are added"),
        pytest.param([1], [3, 2, 1], "hmac", id="a key is rotated twice"),
    ],
)
async def test_a_token_stored_under_an_older_key_is_found_and_stored_anew(
    database: Database, project: str, watched: Watched, stored_with: list[int], read_with: list[int], newest: str
) -> None:
    made, secret = await make(database, project, vault_of(*stored_with))
    vault = vault_of(*read_with)
    assert (await cache_of(watched, vault).authenticate(secret)).id == made.id
    row = await database.fetch_one("SELECT secret_hash FROM tokens")
    assert row == {"secret_hash": vault.token_hashes(secret)[0]}
    assert row["secret_hash"].startswith(newest)
    assert watched.writes == 1
    await cache_of(watched, vault_of(read_with[0])).authenticate(secret)
    assert watched.writes == 1, "the older keys are needed no more"


async def test_a_token_whose_key_is_gone_is_unknown(database: Database, project: str, watched: Watched) -> None:
    _, secret = await make(database, project, vault_of(1))
    assert await refusal(cache_of(watched, vault_of(2)), secret) == "invalid_token"


@on_one
async def test_a_token_that_cannot_be_stored_anew_now_is_good_all_the_same(
    database: Database, project: str, watched: Watched
) -> None:
    made, secret = await make(database, project)
    watched.away = {"writes"}
    assert (await cache_of(watched, vault_of(1)).authenticate(secret)).id == made.id
    watched.away = set()
    await cache_of(watched, vault_of(1)).authenticate(secret)
    assert watched.writes == 2


@on_one
async def test_the_database_away_leaves_the_cached_and_is_no_refusal_of_others(
    database: Database, project: str, watched: Watched
) -> None:
    (_, known), (_, other) = await make(database, project), await make(database, project)
    cache = cache_of(watched)
    await cache.authenticate(known)
    watched.away = {"reads", "writes"}
    await cache.authenticate(known)
    assert await refusal(cache, other) == "database_unavailable"
    watched.away = set()
    await cache.authenticate(other)


@on_one
async def test_a_token_that_expires_while_it_is_cached_is_refused(
    database: Database, project: str, watched: Watched, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, secret = await make(database, project, expires_at=NOW)
    cache = cache_of(watched)
    for now, code in ((NOW - 1, None), (NOW, "token_expired"), (NOW + 3_600_000, "token_expired"), (NOW - 3_600_000, None)):
        monkeypatch.setattr(token_cache, "now_ms", lambda now=now: now)
        if code:
            assert await refusal(cache, secret) == code
        else:
            await cache.authenticate(secret)
    assert watched.reads == 1


async def test_a_secret_that_a_caller_chose_is_found_like_ours(database: Database, project: str, watched: Watched) -> None:
    made = await tokens.insert(database, NO_KEY, {"project_id": project, "name": ""}, "my-id", Secret("my-own-0123456789"))
    assert (await cache_of(watched).authenticate("my-own-0123456789")).id == made.id == "my-id"


async def test_a_column_that_a_newer_program_added_is_no_hindrance(database: Database, project: str, watched: Watched) -> None:
    made, secret = await make(database, project)
    await database.execute("ALTER TABLE tokens ADD COLUMN later TEXT")
    assert await tokens.get(database, made.id) == made
    assert await cache_of(watched).authenticate(secret) == made


@on_one
async def test_the_tokens_that_were_good_lately_are_known_through_every_change_and_bounded(
    database: Database, watched: Watched, project: str
) -> None:
    cache = cache_of(watched, size=2)
    secrets = [(await make(database, project))[1] for _ in range(3)]
    assert not cache.has_served(Presented.of(secrets[0]))
    for secret in secrets:
        await cache.authenticate(secret)
        cache.on_change(EVERYTHING)
    assert [cache.has_served(Presented.of(secret)) for secret in secrets] == [False, True, True]


def test_a_presented_credential_is_not_shown() -> None:
    assert "sk-lp" not in f"{Presented.of('sk-lp-secret')} {[Presented.of('sk-lp-secret')]}"
