"""Request quotas: exact among processes, cancellations, kills, changes of the quota."""

import asyncio
import collections
import contextlib
import json
import os
import pathlib
import random
import subprocess
import sys
import time
from collections.abc import Awaitable, Iterator, Sequence
from contextlib import AsyncExitStack
from typing import IO

import hypothesis
import pytest
import uvloop
from hypothesis import strategies as st
from stage.asking import until
from stage.house import settings_for
from stage.postgres import Postgres
from stage.redis import RedisServer

from llm_proxy import projects, tokens
from llm_proxy.changes import EVERYTHING, Change
from llm_proxy.db import NO_PARAMS, Database, Params, Row, open_database
from llm_proxy.errors import ApiError, DatabaseUnavailable
from llm_proxy.ids import new_id
from llm_proxy.limits import quota as module
from llm_proxy.limits.quota import LARGEST_LEASE, SINGLE_BELOW, UNUSED_SECONDS, Quota, next_size
from llm_proxy.settings import Settings
from llm_proxy.tokens import Token
from llm_proxy.vault import Vault

# TOKENS=3000 is the full race.
TOKENS = int(os.environ.get("TOKENS", "60"))

# What happens in memory is the same on both databases.
on_one = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


@pytest.fixture(scope="module")
def postgres_url(postgres: Postgres) -> str:
    """The URL of one database for all these tests."""
    return postgres.create("quotas")


@pytest.fixture
async def database(database: Database) -> Database:
    """A database without tokens."""
    await database.execute("DELETE FROM tokens")
    return database


class Clock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


class Watched:
    """A database that notes every lease, can be made to fail, and takes its time when told to."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.statements = 0
        self.leases: list[tuple[int, int]] = []
        self.away = False
        self.slowly: Awaitable[object] | None = None

    async def _asked(self) -> None:
        self.statements += 1
        if self.slowly:
            await self.slowly
        if self.away:
            raise DatabaseUnavailable

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        await self._asked()
        row = await self._database.fetch_one(sql, params)
        if row and "n" in params:
            self.leases.append((params["n"], row["max_requests"] - row["request_count"] + params["n"]))
        return row

    async def execute(self, sql: str, params: Params = NO_PARAMS) -> int:
        await self._asked()
        return await self._database.execute(sql, params)

    async def executemany(self, sql: str, rows: Sequence[Params]) -> None:
        await self._asked()
        await self._database.executemany(sql, rows)


async def make_tokens(database: Database, quotas: Sequence[int | None]) -> list[Token]:
    """A token for each quota."""
    async with database.transaction() as tx:
        project = await projects.insert(tx, new_id(), new_id(), {})
        made = []
        for quota in quotas:
            id, secret = tokens.new_token()
            columns = {"project_id": project.id, "name": "", "max_requests": quota}
            made.append(await tokens.insert(tx, Vault([]), columns, id, secret))
    return made


async def make_token(database: Database, quota: int | None) -> Token:
    return (await make_tokens(database, [quota]))[0]


async def count_of(database: Database, token: Token) -> int:
    """What the row says."""
    row = await database.fetch_one("SELECT request_count FROM tokens WHERE id = :id", {"id": token.id})
    assert row is not None
    return int(row["request_count"])


async def take_many(quota: Quota, token: Token, number: int) -> None:
    for _ in range(number):
        await quota.take(token)


async def refusal(quota: Quota, token: Token) -> str:
    with pytest.raises(ApiError) as raised:
        await quota.take(token)
    return raised.value.code


@pytest.fixture
def watched(database: Database) -> Watched:
    return Watched(database)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def quota(watched: Watched, clock: Clock) -> Quota:
    return Quota(watched, clock)  # type: ignore[arg-type]


class Racer:
    """A process that takes part in a race."""

    def __init__(self, settings: Settings, path: pathlib.Path, redis: RedisServer | None) -> None:
        if settings.db_driver == "postgres":
            given = {"DATABASE_URL": settings.database_url.reveal()}
        else:
            given = {"DATABASE_PATH": settings.database_path}
        if redis:
            given["REDIS_URL"] = redis.uri
        self._process = subprocess.Popen(
            [sys.executable, "-m", "stage.quota_racer", json.dumps(given), str(path)],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def _output(self) -> IO[str]:
        assert self._process.stdout is not None
        return self._process.stdout

    def wait_until_ready(self) -> None:
        assert self._output.readline() == "ready\n"

    def go(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def wait(self) -> int:
        """Wait for its end; returns how often it asked."""
        output, _ = self._process.communicate(timeout=120)
        assert self._process.returncode == 0
        return int(output)

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    @property
    def runs(self) -> bool:
        return self._process.poll() is None


@contextlib.contextmanager
def racing(settings: Settings, path: pathlib.Path, number: int, redis: RedisServer | None = None) -> Iterator[list[Racer]]:
    """So many racers, all of them ready, with an empty log of what they were granted."""
    path.touch()
    racers = [Racer(settings, path, redis) for _ in range(number)]
    try:
        for racer in racers:
            racer.wait_until_ready()
        yield racers
    finally:
        for racer in racers:
            racer.kill()


def granted_in(path: pathlib.Path) -> collections.Counter[str]:
    """How many requests each token was granted."""
    return collections.Counter(path.read_text().split())


@pytest.mark.parametrize("limits", ["quotas alone", "limits in Redis"])
async def test_six_processes_grant_exactly_what_there_is(
    database: Database, settings: Settings, tmp_path: pathlib.Path, limits: str, request: pytest.FixtureRequest
) -> None:
    made = await make_tokens(database, [1] * TOKENS)
    redis = None
    if limits == "limits in Redis":
        redis = request.getfixturevalue("redis_server")
        # Fewer at a time than take part, so that what a slot refuses has to be tried again.
        await projects.update(database, made[0].project_id, {"rate_limit_per_minute": 10**6, "max_parallel": 20})
    log = tmp_path / "granted"
    with racing(settings, log, 6, redis) as racers:
        start = time.monotonic()
        for racer in racers:
            racer.go()
        asked = sum(await asyncio.gather(*(asyncio.to_thread(racer.wait) for racer in racers)))
        seconds = time.monotonic() - start
    print(f"{settings.db_driver}, {limits}: {len(made)} tokens, {asked} takes in {seconds:.2f} s, {asked / seconds:.0f} a second")
    assert granted_in(log) == {token.id: token.max_requests for token in made}
    rows = await database.fetch_all("SELECT id, request_count FROM tokens")
    assert {row["id"]: row["request_count"] for row in rows} == {token.id: token.max_requests for token in made}


async def test_processes_that_are_killed_grant_never_more_than_there_is(
    database: Database, settings: Settings, tmp_path: pathlib.Path
) -> None:
    await race_of_the_killed(database, settings, tmp_path / "granted")


@on_one
async def test_nor_do_they_when_their_limits_are_in_redis(
    database: Database, settings: Settings, tmp_path: pathlib.Path, redis_server: RedisServer
) -> None:
    await race_of_the_killed(database, settings, tmp_path / "granted", redis_server)


async def race_of_the_killed(database: Database, settings: Settings, log: pathlib.Path, redis: RedisServer | None = None) -> None:
    """Processes take what they can, and fall one after the other."""
    quotas = [*[1, 2, 3] * 10, *[60] * 20, *[1500] * (10 if redis is None else 1)]
    made = await make_tokens(database, quotas)
    if redis:
        await projects.update(database, made[0].project_id, {"rate_limit_per_minute": 10**6})
    line = len(made[0].id) + 1
    with racing(settings, log, 7, redis) as racers:
        for racer in racers[:4]:
            racer.go()
        # At moments spread over the race one falls, and while there are any another takes its place.
        for fallen, share in enumerate((0.05, 0.2, 0.35, 0.5, 0.6)):
            await until(lambda share=share: log.stat().st_size >= share * sum(quotas) * line, 60)
            assert racers[fallen].runs
            racers[fallen].kill()
            if fallen + 4 < len(racers):
                racers[fallen + 4].go()
        await asyncio.gather(*(asyncio.to_thread(racer.wait) for racer in racers[5:]))
    granted = granted_in(log)
    assert sum(quotas) * 0.6 < granted.total() <= sum(quotas)
    for token in made:
        assert token.max_requests is not None
        assert granted[token.id] <= await count_of(database, token) <= token.max_requests


@pytest.mark.parametrize(
    ("size", "lasted", "remaining", "expected"),
    [
        pytest.param(1, 9.0, 0, 1, id="of nothing known, one"),
        pytest.param(1, 0.1, 1_000_000, 2, id="twice as many when they went briskly"),
        pytest.param(100, 0.1, 1_000_000, 200, id="and twice as many again"),
        pytest.param(100, 0.5, 1_000_000, 50, id="half as many when they lasted"),
        pytest.param(1, 60.0, 1_000_000, 1, id="never fewer than one"),
        pytest.param(4096, 0.0, 1_000_000_000, 4096, id="never more than the largest"),
        pytest.param(512, 0.0, 4000, 500, id="an eighth of what remains"),
        pytest.param(512, 9.0, 1000, 125, id="an eighth even when they lasted"),
        pytest.param(512, 0.0, 65, 8, id="an eighth a little before the end"),
        pytest.param(512, 0.0, 64, 1, id="one by one towards the end"),
        pytest.param(512, 0.0, 1, 1, id="one for the last"),
        pytest.param(512, 0.0, -5, 1, id="one when the quota was made smaller"),
    ],
)
def test_the_next_lease_grows_with_the_rate_and_shrinks_with_what_remains(
    size: int, lasted: float, remaining: int, expected: int
) -> None:
    assert next_size(size, lasted, remaining) == expected


@hypothesis.given(st.integers(1, LARGEST_LEASE), st.floats(0, 1e6), st.integers(-(10**6), 10**12))
def test_a_lease_is_at_least_one_and_at_most_an_eighth(size: int, lasted: float, remaining: int) -> None:
    found = next_size(size, lasted, remaining)
    assert 1 <= found <= LARGEST_LEASE
    assert found == 1 or (remaining > SINGLE_BELOW and found <= remaining / 8)


async def test_one_process_grants_exactly_what_there_is(database: Database, quota: Quota) -> None:
    token = await make_token(database, 300)
    await take_many(quota, token, 300)
    assert await refusal(quota, token) == "request_limit_exhausted"
    assert quota.unused(token.id) == 0
    assert await count_of(database, token) == 300


@on_one
async def test_most_requests_of_a_brisk_token_cost_no_statement(database: Database, watched: Watched, quota: Quota) -> None:
    token = await make_token(database, 1_000_000)
    await take_many(quota, token, 20_000)
    assert watched.statements < 20
    assert [n for n, _ in watched.leases[:5]] == [1, 2, 4, 8, 16]


@on_one
async def test_a_token_that_slows_down_leases_fewer(database: Database, watched: Watched, quota: Quota, clock: Clock) -> None:
    token = await make_token(database, 1_000_000)
    await take_many(quota, token, 255)
    for _ in range(130):
        clock.now += 1.0
        await quota.take(token)
    assert [n for n, _ in watched.leases] == [1, 2, 4, 8, 16, 32, 64, 128, 64, 32, 16, 8, 4, 2, 1, 1, 1, 1]


async def test_a_lease_is_an_eighth_at_most_whatever_others_took_meanwhile(database: Database, clock: Clock) -> None:
    token = await make_token(database, 10_000)
    here, there = Watched(database), Watched(database)
    one, other = Quota(here, clock), Quota(there, clock)  # type: ignore[arg-type]
    await take_many(one, token, 255)
    await take_many(other, token, 9_000)
    await take_many(one, token, 100)
    for n, remaining in here.leases + there.leases:
        assert n == 1 or (remaining > SINGLE_BELOW and n <= remaining / 8)
    await one.settle()
    await other.settle()
    assert await count_of(database, token) == 255 + 9_000 + 100


async def test_what_was_leased_and_not_used_goes_back_when_it_settles(database: Database, quota: Quota) -> None:
    token = await make_token(database, 10_000)
    await take_many(quota, token, 40)
    assert await count_of(database, token) == 63
    assert quota.unused(token.id) == 23, "what the API takes off the row's count"
    await quota.settle()
    assert await count_of(database, token) == 40
    assert quota.unused(token.id) == 0
    await take_many(quota, token, 2)
    await quota.settle()
    assert await count_of(database, token) == 42


async def test_what_was_leased_and_not_used_for_two_seconds_goes_back(database: Database, quota: Quota, clock: Clock) -> None:
    token = await make_token(database, 10_000)
    await take_many(quota, token, 40)
    clock.now += UNUSED_SECONDS - 0.1
    await quota.settle(idle_for=UNUSED_SECONDS)
    assert await count_of(database, token) == 63
    await quota.take(token)
    clock.now += UNUSED_SECONDS - 0.1
    await quota.settle(idle_for=UNUSED_SECONDS)
    assert await count_of(database, token) == 63, "it was in use meanwhile"
    clock.now += 0.2
    await quota.settle(idle_for=UNUSED_SECONDS)
    assert await count_of(database, token) == 41
    assert not quota._leases, "tokens that are not in use take no room"


@on_one
async def test_flushing_returns_and_writes_until_it_is_cancelled(
    database: Database, watched: Watched, quota: Quota, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FLUSH_SECONDS", 0.01)
    token, free = await make_tokens(database, [10_000, None])
    await take_many(quota, token, 40)
    await take_many(quota, free, 3)
    clock.now += UNUSED_SECONDS
    watched.away = True
    task = asyncio.create_task(quota.flush())
    await until(lambda: watched.statements > 10)
    watched.away = False
    await until(lambda: not quota.unused(token.id) and not quota.unused(free.id))
    task.cancel()
    await asyncio.wait([task])
    await quota.settle()
    assert (await count_of(database, token), await count_of(database, free)) == (40, 3)


async def test_a_request_that_was_given_back_is_there_for_another(database: Database, quota: Quota) -> None:
    token = await make_token(database, 2)
    await take_many(quota, token, 2)
    assert await refusal(quota, token) == "request_limit_exhausted"
    quota.give_back(token)
    await quota.take(token)
    assert await refusal(quota, token) == "request_limit_exhausted"
    quota.give_back(token)
    quota.give_back(token)
    await quota.settle()
    assert await count_of(database, token) == 0


async def test_a_request_given_back_here_comes_back_to_another_process(database: Database, quota: Quota) -> None:
    token = await make_token(database, 1)
    other = Quota(database)
    await quota.take(token)
    quota.give_back(token)
    assert await refusal(other, token) == "request_limit_exhausted", "early, by what lies unused here"
    await quota.settle()
    await other.take(token)
    assert await refusal(quota, token) == "request_limit_exhausted"


async def test_a_token_without_a_quota_is_counted_in_memory_until_it_settles(
    database: Database, watched: Watched, quota: Quota
) -> None:
    token = await make_token(database, None)
    await take_many(quota, token, 1000)
    for _ in range(10):
        quota.give_back(token)
    assert watched.statements == 0
    assert quota.unused(token.id) == -990, "what the API adds to the row's count"
    await quota.settle()
    assert quota.unused(token.id) == 0
    assert await count_of(database, token) == 990
    stored = await tokens.get(database, token.id)
    assert stored is not None
    assert stored.last_used_at is not None
    quota.give_back(token)
    await quota.settle()
    assert await count_of(database, token) == 989


@pytest.mark.parametrize(
    ("change", "code"),
    [
        pytest.param("UPDATE tokens SET request_count = 5", "request_limit_exhausted", id="used up elsewhere"),
        pytest.param("UPDATE tokens SET is_active = (1 = 0)", "token_inactive", id="revoked"),
        pytest.param("UPDATE tokens SET expires_at = 1", "token_expired", id="expired"),
        pytest.param("DELETE FROM tokens", "invalid_token", id="deleted"),
    ],
)
async def test_a_refusal_says_what_the_row_says(database: Database, quota: Quota, change: str, code: str) -> None:
    token = await make_token(database, 5)
    await database.execute(change)
    assert await refusal(quota, token) == code


async def test_a_refusal_names_the_quota(database: Database, quota: Quota) -> None:
    token = await make_token(database, 1)
    await quota.take(token)
    with pytest.raises(ApiError, match="All 1 requests of this token are used up") as raised:
        await quota.take(token)
    assert (raised.value.status, raised.value.type) == (429, "insufficient_quota")


@on_one
async def test_a_lease_goes_on_while_the_database_is_away(database: Database, watched: Watched, quota: Quota) -> None:
    token, free = await make_tokens(database, [10_000, None])
    await take_many(quota, token, 40)
    watched.away = True
    await take_many(quota, token, 23)
    await take_many(quota, free, 7)
    assert await refusal(quota, token) == "database_unavailable"
    with pytest.raises(DatabaseUnavailable):
        await quota.settle()
    watched.away = False
    await quota.take(token)
    await quota.settle()
    assert (await count_of(database, token), await count_of(database, free)) == (64, 7)


@on_one
async def test_what_cannot_go_back_now_goes_back_later(database: Database, watched: Watched, quota: Quota) -> None:
    token = await make_token(database, 10_000)
    await take_many(quota, token, 40)
    watched.away = True
    for _ in range(3):
        with pytest.raises(DatabaseUnavailable):
            await quota.settle()
    watched.away = False
    await quota.settle()
    assert await count_of(database, token) == 40


@on_one
async def test_what_may_have_gone_back_already_is_not_given_twice(database: Database, watched: Watched, quota: Quota) -> None:
    token = await make_token(database, 10_000)
    await take_many(quota, token, 40)

    class Breaking(Watched):
        """Its connection breaks after a return was written, before the answer."""

        async def execute(self, sql: str, params: Params = NO_PARAMS) -> int:
            done = await super().execute(sql, params)
            if "request_count - :n" in sql:
                raise DatabaseUnavailable
            return done

    quota._database = Breaking(database)  # type: ignore[assignment]
    with pytest.raises(DatabaseUnavailable):
        await quota.settle()
    quota._database = database
    await quota.settle()
    assert await count_of(database, token) == 40


@on_one
async def test_all_who_wait_for_an_answer_get_it_at_once(database: Database, watched: Watched, quota: Quota) -> None:
    token = await make_token(database, 1)
    await quota.take(token)
    for away, code in ((True, "database_unavailable"), (False, "request_limit_exhausted")):
        before, gate = watched.statements, asyncio.get_running_loop().create_future()
        watched.away, watched.slowly = away, gate
        waiting = [asyncio.create_task(refusal(quota, token)) for _ in range(100)]
        await asyncio.sleep(0.01)
        gate.set_result(None)
        assert await asyncio.gather(*waiting) == [code] * 100
        assert watched.statements - before <= 2, "one question for all"


async def test_many_at_once_share_what_is_leased(database: Database, quota: Quota) -> None:
    token = await make_token(database, 500)
    results = await asyncio.gather(*(quota.take(token) for _ in range(700)), return_exceptions=True)
    assert sum(result is None for result in results) == 500
    assert {result.code for result in results if isinstance(result, ApiError)} == {"request_limit_exhausted"}
    assert await count_of(database, token) == 500


async def test_takes_cancelled_at_any_moment_leak_nothing(database: Database, quota: Quota) -> None:
    generator = random.Random(7)
    token = await make_token(database, 3000)
    granted = 0

    async def take() -> None:
        nonlocal granted
        await quota.take(token)
        granted += 1

    for _ in range(60):
        tasks = [asyncio.create_task(take()) for _ in range(generator.randrange(1, 30))]
        for task in tasks:
            for _ in range(generator.randrange(12)):
                await asyncio.sleep(0)
            if generator.random() < 0.6:
                task.cancel()
        await asyncio.wait(tasks)
        if generator.random() < 0.2:
            await quota.settle()
            assert await count_of(database, token) == granted
    await quota.settle()
    assert await count_of(database, token) == granted
    await take_many(quota, token, 3000 - granted)
    assert await refusal(quota, token) == "request_limit_exhausted"


async def test_settling_cancelled_at_any_moment_loses_and_doubles_nothing(database: Database, quota: Quota) -> None:
    token, free = await make_tokens(database, [100_000, None])
    for turns in range(40):
        await take_many(quota, token, 40)
        await take_many(quota, free, 2)
        settling = asyncio.create_task(quota.settle())
        for _ in range(turns):
            await asyncio.sleep(0)
        settling.cancel()
        await asyncio.wait([settling])
    await asyncio.gather(quota.settle(), quota.settle())
    assert (await count_of(database, token), await count_of(database, free)) == (40 * 40, 40 * 2)


async def test_processes_that_write_the_same_counts_do_not_hold_each_other_up(database: Database, settings: Settings) -> None:
    made = await make_tokens(database, [None] * 60)
    async with open_database(settings) as there:
        quotas = [Quota(database), Quota(there)]
        for _ in range(3):
            for quota, order in zip(quotas, (made, made[::-1]), strict=True):
                for token in order:
                    await quota.take(token)
            await asyncio.gather(*(quota.settle() for quota in quotas))
    assert [await count_of(database, token) for token in made] == [6] * 60


async def test_a_smaller_quota_holds_although_leases_are_out(database: Database, quota: Quota) -> None:
    token = await make_token(database, 10_000)
    await take_many(quota, token, 40)
    assert quota.unused(token.id) == 23
    smaller = await tokens.update(database, token.id, {"max_requests": 45})
    assert smaller is not None
    quota.on_change(Change("token", token.id))
    assert quota.unused(token.id) == 23, "they are still counted in the row"
    await take_many(quota, smaller, 5)
    assert await refusal(quota, smaller) == "request_limit_exhausted"
    await quota.settle()
    assert await count_of(database, token) == 45


async def test_a_larger_quota_is_there_for_a_token_that_was_used_up(database: Database, quota: Quota) -> None:
    token = await make_token(database, 2)
    await take_many(quota, token, 2)
    assert await refusal(quota, token) == "request_limit_exhausted"
    larger = await tokens.update(database, token.id, {"max_requests": 3})
    assert larger is not None
    quota.on_change(Change("token", token.id))
    await quota.take(larger)
    assert await refusal(quota, larger) == "request_limit_exhausted"


@on_one
async def test_a_change_during_a_lease_makes_that_lease_stale_too(database: Database, watched: Watched, quota: Quota) -> None:
    token = await make_token(database, 10_000)
    await take_many(quota, token, 63)
    watched.slowly = gate = asyncio.get_running_loop().create_future()
    taking = asyncio.create_task(quota.take(token))
    await asyncio.sleep(0.01)
    watched.slowly = None
    gate.set_result(None)
    # The statement goes on to the database now; its answer comes after the change.
    await asyncio.sleep(0)
    quota.on_change(Change("token", token.id))
    await taking
    assert [n for n, _ in watched.leases[-2:]] == [64, 128]
    await quota.settle()
    assert await count_of(database, token) == 64


@on_one
@pytest.mark.parametrize(
    ("change", "stale"),
    [
        pytest.param(EVERYTHING, True, id="everything may have changed"),
        pytest.param(Change("token", "another"), False, id="another token"),
        pytest.param(Change("project", "p"), False, id="a project"),
    ],
)
async def test_only_what_concerns_it_makes_a_lease_stale(
    database: Database, watched: Watched, quota: Quota, change: Change, stale: bool
) -> None:
    token = await make_token(database, 10_000)
    await take_many(quota, token, 40)
    before = watched.statements
    quota.on_change(change)
    await quota.take(token)
    assert (watched.statements > before) is stale
    await quota.settle()
    assert await count_of(database, token) == 41


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("take"), st.integers(0, 2), st.integers(1, 60)),
        st.tuples(st.just("cancelled"), st.integers(0, 2), st.integers(1, 60)),
        st.tuples(st.just("give back"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("settle"), st.integers(0, 2), st.sampled_from([0, 2])),
        st.tuples(st.just("idle"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("change"), st.integers(0, 2), st.integers(1, 400)),
        st.tuples(st.just("crash"), st.integers(0, 2), st.just(0)),
        st.tuples(st.just("together"), st.just(0), st.integers(1, 60)),
    ),
    max_size=25,
)


class Several:
    """Three processes with one token, and what they must keep to."""

    def __init__(self, database: Database, token: Token) -> None:
        self.database, self.token, self.clock = database, token, Clock()
        self.quotas = [Quota(database, self.clock) for _ in range(3)]
        self.granted = 0
        self.crashed = False

    async def take(self, place: int) -> None:
        with contextlib.suppress(ApiError):
            await self.quotas[place].take(self.token)
            self.granted += 1
            assert self.token.max_requests is not None
            assert self.granted <= self.token.max_requests

    async def step(self, what: str, place: int, number: int) -> None:
        match what:
            case "take":
                await asyncio.gather(*(self.take(place) for _ in range(number)))
            case "together":
                await asyncio.gather(*(self.take(turn % 3) for turn in range(number)))
            case "cancelled":
                tasks = [asyncio.create_task(self.take(place)) for _ in range(number)]
                for task in tasks[::2]:
                    await asyncio.sleep(0)
                    task.cancel()
                await asyncio.wait(tasks)
            case "give back" if self.granted:
                self.granted -= 1
                self.quotas[place].give_back(self.token)
            case "settle":
                await self.quotas[place].settle(idle_for=number)
            case "idle":
                self.clock.now += UNUSED_SECONDS
            case "change":
                changed = await tokens.update(self.database, self.token.id, {"max_requests": max(number, self.granted, 1)})
                assert changed is not None
                self.token = changed
                for quota in self.quotas:
                    quota.on_change(Change("token", self.token.id))
            case "crash":
                self.quotas[place], self.crashed = Quota(self.database, self.clock), True

    async def check(self) -> None:
        for quota in self.quotas:
            await quota.settle()
        count = await count_of(self.database, self.token)
        assert self.granted <= count if self.crashed else self.granted == count


async def play(database: Database, quota: int, steps: list[tuple[str, int, int]]) -> None:
    several = Several(database, await make_token(database, quota))
    for step in steps:
        await several.step(*step)
        assert several.granted <= await count_of(database, several.token), "nothing is granted that is not counted"
    await several.check()


def test_whatever_processes_do_in_whatever_order_no_quota_is_exceeded(tmp_path: pathlib.Path) -> None:
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        stack = AsyncExitStack()
        database = runner.run(stack.enter_async_context(open_database(settings_for(tmp_path))))

        @hypothesis.settings(max_examples=60, deadline=None)
        @hypothesis.given(st.integers(1, 400), STEPS)
        def holds(quota: int, steps: list[tuple[str, int, int]]) -> None:
            runner.run(play(database, quota, steps))

        try:
            holds()
        finally:
            runner.run(stack.aclose())
