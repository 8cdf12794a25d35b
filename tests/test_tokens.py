"""Withering tokens: their form, their rows, the cache that recognises them."""

import asyncio
import base64
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy import projects, tokens
from llm_proxy.changes import EVERYTHING, Change
from llm_proxy.clock import now_ms
from llm_proxy.db import NO_PARAMS, Database, Params, Row
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError, Conflict, DatabaseUnavailable, InvalidField, Overtaken
from llm_proxy.ids import new_id
from llm_proxy.secret import Secret
from llm_proxy.tokens import Token, TokenCache
from llm_proxy.vault import Vault

NO_KEY = Vault([])

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


def test_a_token_has_the_form_that_scanners_look_for() -> None:
    for _ in range(200):
        id, secret = tokens.new_token()
        assert re.fullmatch(tokens.PATTERN, secret.reveal())
        assert len(secret.reveal()) == tokens.LENGTH == 66
        assert tokens.well_formed(secret.reveal())
        assert uuid.UUID(id).version == 7


def test_no_two_tokens_share_anything_random() -> None:
    made = [tokens.new_token()[1].reveal() for _ in range(500)]
    assert len({token[28:60] for token in made}) == 500
    assert {char for token in made for char in token[28:60]} == set(tokens.ALPHABET), "every character is in use"


def test_a_token_tells_its_id_and_when_it_was_made() -> None:
    before = now_ms()
    id, secret = tokens.new_token()
    said = tokens.inspect(secret.reveal())
    assert said["id"] == id
    assert before <= said["created_at"] <= now_ms()
    assert said["hint"] == f"sk-lp-…{secret.reveal()[-4:]}"


@given(st.binary(min_size=16, max_size=16))
def test_any_id_comes_back_out_of_its_token(raw: bytes) -> None:
    id = uuid.UUID(bytes=raw)
    body = tokens.PREFIX + tokens._base62(id.int, tokens.ID_CHARS) + "0" * tokens.RANDOM_CHARS
    assert tokens.inspect(body + tokens._checksum(body))["id"] == str(id)


@pytest.mark.parametrize(
    "token",
    [
        pytest.param("", id="nothing"),
        pytest.param("sk-proj-0123456789abcdef0123456789abcdef", id="somebody else's"),
        pytest.param("sk-lp-" + "0" * 60, id="a wrong checksum"),
        pytest.param("sk-lp-" + "z" * 22 + "0" * 32, id="too short"),
    ],
)
def test_what_is_no_token_of_ours_tells_nothing(token: str) -> None:
    with pytest.raises(InvalidField, match="66 characters beginning with sk-lp-"):
        tokens.inspect(token)


def test_an_id_beyond_the_last_is_refused() -> None:
    body = tokens.PREFIX + "z" * tokens.ID_CHARS + "0" * tokens.RANDOM_CHARS
    with pytest.raises(InvalidField, match="out of range"):
        tokens.inspect(body + tokens._checksum(body))


def test_any_single_wrong_or_swapped_character_is_noticed() -> None:
    token = tokens.new_token()[1].reveal()
    for place in range(len(tokens.PREFIX), len(token)):
        for char in "0Az":
            if char != token[place]:
                assert not tokens.well_formed(token[:place] + char + token[place + 1 :])
    for place in range(len(tokens.PREFIX), len(token) - 1):
        if token[place] != token[place + 1]:
            assert not tokens.well_formed(token[:place] + token[place + 1] + token[place] + token[place + 2 :])


@pytest.mark.parametrize(
    ("presented", "possible"),
    [
        pytest.param("", False, id="nothing"),
        pytest.param("x" * 15, False, id="too short for any secret"),
        pytest.param("x" * 16, True, id="somebody's own choice"),
        pytest.param("x" * 512, True, id="as long as it may be"),
        pytest.param("x" * 513, False, id="too long"),
        pytest.param("0123456789abcde f", False, id="with a space"),
        pytest.param("0123456789abcdef\n", False, id="with a line's end"),
        pytest.param("0123456789abcdef\x00", False, id="with a control character"),
        pytest.param("0123456789abcdefé", False, id="beyond ASCII"),
        pytest.param("sk-lp-0123456789abcdef", False, id="our prefix and too little"),
        pytest.param("sk-lp-" + "0" * 61, False, id="our prefix and too much"),
        pytest.param("sk-lp-" + "0" * 59 + "_", False, id="our prefix and another alphabet"),
    ],
)
def test_what_can_be_a_credential_is_judged_without_the_database(presented: str, possible: bool) -> None:
    assert tokens.well_formed(presented) is possible


@pytest.mark.parametrize(
    ("token", "hint"),
    [("sk-lp-abcdefghijklmnop", "sk-lp-…mnop"), ("my-own-master-key-0123", "my-…0123")],
    ids=["ours", "a caller's"],
)
def test_a_hint_shows_how_a_token_begins_and_ends(token: str, hint: str) -> None:
    assert tokens.hint_of(token) == hint


async def test_a_token_is_stored_as_it_is_returned(database: Database, project: str) -> None:
    made, secret = await make(
        database, project, max_requests=5, expires_at=now_ms() + 60_000, allowed_models=("gpt-4*",), metadata={"team": "é"}
    )
    assert tokens.inspect(secret)["id"] == made.id
    assert (made.project_id, made.project_name, made.project_is_active) == (project, "one", True)
    assert (made.kind, made.name, made.is_active, made.request_count) == ("token", "mine", True, 0)
    assert (made.max_requests, made.allowed_models, made.metadata) == (5, ("gpt-4*",), {"team": "é"})
    assert await tokens.get(database, made.id) == made
    assert await tokens.get(database, new_id()) is None


@pytest.mark.parametrize("vault", [NO_KEY, vault_of(1)], ids=["without a key", "with a key"])
async def test_nothing_that_is_stored_gives_the_token_back(database: Database, project: str, vault: Vault) -> None:
    made, secret = await make(database, project, vault)
    row = await database.fetch_one("SELECT * FROM tokens WHERE id = :id", {"id": made.id})
    assert row is not None
    assert secret not in repr(dict(row)) + repr(made)
    assert secret[-20:] not in repr(dict(row))
    assert row["secret_hash"].startswith("hmac:" if vault is not NO_KEY else "sha256:")


async def test_a_token_needs_its_project(database: Database) -> None:
    with pytest.raises(Conflict):
        await make(database, new_id())


async def test_an_update_writes_what_it_names_and_nothing_else(database: Database, project: str) -> None:
    made, _ = await make(database, project, max_requests=5)
    await database.execute("UPDATE tokens SET request_count = 3")
    changed = await tokens.update(database, made.id, {"name": "other", "allowed_models": ("a", "b"), "metadata": {}})
    assert changed is not None
    assert (changed.name, changed.allowed_models, changed.max_requests, changed.request_count) == ("other", ("a", "b"), 5, 3)
    revoked = await tokens.update(database, made.id, {"is_active": False})
    assert revoked is not None
    assert revoked.deactivated_at == revoked.updated_at
    again = await tokens.update(database, made.id, {"is_active": True})
    assert again is not None
    assert again.deactivated_at is None
    assert await tokens.update(database, new_id(), {"name": "x"}) is None


async def test_all_tokens_of_a_project_are_revoked_and_counted(database: Database, project: str) -> None:
    mine = [(await make(database, project))[0] for _ in range(3)]
    other = await projects.insert(database, new_id(), "two", {})
    theirs, _ = await make(database, other.id)
    await tokens.update(database, mine[0].id, {"is_active": False})
    assert await tokens.revoke_all(database, project) == (2, 3)
    assert await tokens.revoke_all(database, project) == (0, 3)
    states = [(await tokens.get(database, token.id)).is_active for token in [*mine, theirs]]  # type: ignore[union-attr]
    assert states == [False, False, False, True]


async def test_pages_cover_many_rows_each_once(database: Database, project: str) -> None:
    async with database.transaction() as tx:
        made = []
        for _ in range(500):
            id, secret = tokens.new_token()
            made.append((await tokens.insert(tx, NO_KEY, {"project_id": project, "name": ""}, id, secret)).id)
    found: list[str] = []
    after = None
    while page := await tokens.find(database, Page(limit=70, after=after)):
        found += [token.id for token in page[:70]]
        after = found[-1]
    assert found == sorted(made, reverse=True)


NOW = 1_000_000_000_000


@pytest.mark.parametrize(
    ("columns", "status", "code"),
    [
        pytest.param({}, "active", None, id="as it was made"),
        pytest.param({"expires_at": NOW + 1}, "active", None, id="a moment before its end"),
        pytest.param({"expires_at": NOW}, "expired", "token_expired", id="at its end"),
        pytest.param({"is_active": False}, "revoked", "token_inactive", id="revoked"),
        pytest.param({"is_active": False, "expires_at": NOW}, "revoked", "token_inactive", id="revoked, then expired"),
        pytest.param({"max_requests": 2, "request_count": 1}, "active", None, id="one request left"),
        pytest.param({"max_requests": 2, "request_count": 2}, "exhausted", None, id="none left"),
        pytest.param({"max_requests": 2, "request_count": 5}, "exhausted", None, id="a quota made smaller"),
        pytest.param(
            {"max_requests": 1, "request_count": 1, "expires_at": NOW}, "expired", "token_expired", id="used up, expired"
        ),
        pytest.param(
            {"max_requests": 1, "request_count": 1, "is_active": False}, "revoked", "token_inactive", id="used up, revoked"
        ),
    ],
)
async def test_a_token_has_one_state_which_lists_agree_with(
    database: Database, project: str, monkeypatch: pytest.MonkeyPatch, columns: dict[str, Any], status: str, code: str | None
) -> None:
    made, _ = await make(database, project)
    token = await tokens.update(database, made.id, columns)
    assert token is not None
    assert token.status(NOW) == status
    if code is None:
        token.check(NOW)
    else:
        with pytest.raises(ApiError) as raised:
            token.check(NOW)
        assert raised.value.code == code
    monkeypatch.setattr(tokens, "now_ms", lambda: NOW)
    found = {name: len(await tokens.find(database, Page(), project_id=project, status=name)) for name in tokens.STATUSES}
    assert found == {name: int(name == status) for name in tokens.STATUSES}


async def test_an_inactive_project_overtakes_its_tokens(database: Database, project: str) -> None:
    made, _ = await make(database, project)
    assert made.overtaken() is None
    await projects.update(database, project, {"is_active": False})
    token = await tokens.get(database, made.id)
    assert token is not None
    with pytest.raises(Overtaken) as raised:
        token.check(now_ms())
    assert (raised.value.code, raised.value.status) == ("project_inactive", 403)


async def test_lists_hold_one_projects_tokens(database: Database, project: str) -> None:
    mine, _ = await make(database, project)
    other = await projects.insert(database, new_id(), "two", {})
    theirs, _ = await make(database, other.id)
    assert [token.id for token in await tokens.find(database, Page(), project_id=project)] == [mine.id]
    assert [token.id for token in await tokens.find(database, Page())] == [theirs.id, mine.id]


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
    monkeypatch.setattr(tokens, "MISSES", 10)
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
        monkeypatch.setattr(tokens, "now_ms", lambda now=now: now)
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
    assert not cache.has_served(secrets[0])
    for secret in secrets:
        await cache.authenticate(secret)
        cache.on_change(EVERYTHING)
    assert [cache.has_served(secret) for secret in secrets] == [False, True, True]


class Explained:
    """An SQLite database that tells how it would answer."""

    def __init__(self, database: Database) -> None:
        self.database = database
        self.plan = ""

    async def fetch_all(self, sql: str, params: Params = NO_PARAMS) -> list[Row]:
        async with self.database.transaction() as tx:
            self.plan = "; ".join(row["detail"] for row in await tx.fetch_all(f"EXPLAIN QUERY PLAN {sql}", params))
        return []


@pytest.mark.parametrize(
    ("asked", "index"),
    [
        pytest.param({}, "tokens_by_kind (kind=?)", id="all"),
        pytest.param({"search": "a"}, "tokens_by_kind (kind=?)", id="a name"),
        pytest.param({"search": "a", "status": "expired"}, "tokens_by_kind (kind=?)", id="a name and a state"),
        pytest.param({"status": "expired"}, "tokens_by_kind_and_state (kind=? AND is_active=?)", id="a state"),
        pytest.param({"status": "revoked"}, "tokens_by_kind_and_state (kind=? AND is_active=?)", id="another state"),
        pytest.param({"project_id": "p", "status": "expired"}, "tokens_by_project (project_id=?)", id="a project and a state"),
        pytest.param({"project_id": "p", "search": "a"}, "tokens_by_project (project_id=?)", id="a project and a name"),
    ],
)
@pytest.mark.parametrize("settings", ["sqlite"], indirect=True)
async def test_a_list_reads_the_index_that_holds_what_it_filters_by(
    database: Database, asked: dict[str, Any], index: str
) -> None:
    explained = Explained(database)
    await tokens.find(explained, Page(), **asked)  # type: ignore[arg-type]
    assert f"INDEX {index}" in explained.plan and "TEMP B-TREE" not in explained.plan, explained.plan
