"""Withering tokens: their form, their rows."""

import base64
import re
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from llm_proxy import projects, tokens
from llm_proxy.clock import now_ms
from llm_proxy.db import NO_PARAMS, Database, Params, Row
from llm_proxy.db.sql import Page
from llm_proxy.errors import ApiError, Conflict, InvalidField, Overtaken
from llm_proxy.ids import new_id
from llm_proxy.secret import Secret
from llm_proxy.tokens import Token
from llm_proxy.vault import Vault

NO_KEY = Vault([])


def vault_of(*keys: int) -> Vault:
    return Vault([Secret(base64.b64encode(bytes([key]) * 32).decode()) for key in keys])


@pytest.fixture
async def project(database: Database) -> str:
    return (await projects.insert(database, new_id(), "one", {})).id


async def make(database: Database, project_id: str, vault: Vault = NO_KEY, **columns: Any) -> tuple[Token, str]:
    id, secret = tokens.new_token()
    async with database.transaction() as tx:
        made = await tokens.insert(tx, vault, {"project_id": project_id, "name": "mine", **columns}, id, secret)
    return made, secret.reveal()


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
