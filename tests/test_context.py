"""What the process shares: opened whole or not at all, closed without a trace, told of revocations."""

import asyncio
import dataclasses
import logging
import pathlib
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from stage.asking import until
from stage.house import TESTER, settings_for

from llm_proxy import acts, context, tokens
from llm_proxy.acts import projects as project_acts
from llm_proxy.acts import tokens as token_acts
from llm_proxy.context import Context, open_context, read_profiles
from llm_proxy.db import NO_PARAMS, Database, Params, Row, open_database
from llm_proxy.errors import ApiError, DatabaseUnavailable, SettingsError, StartError
from llm_proxy.events import Event
from llm_proxy.history import SPANS, History
from llm_proxy.providers.profile_file import packaged_path
from llm_proxy.settings import Settings

on_one = pytest.mark.parametrize("settings", ["sqlite"], indirect=True)


@dataclass(eq=False)
class Call:
    """A running call that remembers how it was ended."""

    token_id: str
    project_id: str
    ended: list[ApiError] = field(default_factory=list)

    def end(self, error: ApiError) -> None:
        self.ended.append(error)


class Away:
    """A database that does not answer as long as it is away."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.away = True
        self.asked = 0

    async def fetch_one(self, sql: str, params: Params = NO_PARAMS) -> Row | None:
        self.asked += 1
        if self.away:
            raise DatabaseUnavailable
        return await self._database.fetch_one(sql, params)

    async def executemany(self, sql: str, rows: list[Params]) -> None:
        raise DatabaseUnavailable


@asynccontextmanager
async def leaving_nothing() -> AsyncIterator[None]:
    """Whatever is opened in the block, no task and no thread of it is left when it has ended."""
    tasks, threads = asyncio.all_tasks(), own_threads()
    yield
    await until(lambda: asyncio.all_tasks() <= tasks)
    await until(lambda: own_threads() <= threads)


def own_threads() -> set[threading.Thread]:
    """All threads but those that the loop keeps for whatever may block."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("uvloop")}


async def make_token(opened: Context, **fields: Any) -> tokens.Token:
    project = await project_acts.create(opened, TESTER, {"name": f"project of {fields}"})
    made, _ = await token_acts.create(opened, TESTER, {"project_id": project.id, **fields})
    return made


def running(opened: Context, token: tokens.Token) -> Call:
    call = Call(token.id, token.project_id)
    opened.running.add(call)
    return call


async def test_a_context_opens_whole_and_closes_without_a_trace(settings: Settings) -> None:
    handlers = list(logging.getLogger().handlers)
    async with leaving_nothing():
        async with open_context(settings) as opened:
            await opened.database.ping()
            names = {task.get_name() for task in asyncio.all_tasks()}
            assert {"changes", "quota", "audit"} <= names
        assert logging.getLogger().handlers == handlers


async def test_two_contexts_stand_side_by_side_on_one_database(settings: Settings) -> None:
    async with leaving_nothing(), open_context(settings) as one, open_context(settings) as other:
        made = await make_token(one)
        assert await tokens.get(other.database, made.id) == made


async def test_what_was_counted_and_leased_is_written_at_the_close(settings: Settings) -> None:
    async with open_context(settings) as opened:
        free, limited = await make_token(opened), await make_token(opened, max_requests=10_000)
        for _ in range(40):
            await opened.quota.take(free)
            await opened.quota.take(limited)
        assert opened.quota.unused(limited.id) > 0
    async with open_database(settings) as database:
        stored = [await tokens.get(database, token.id) for token in (free, limited)]
    assert [token and token.request_count for token in stored] == [40, 40]


@on_one
async def test_the_last_call_is_in_log_usage_and_metrics_at_the_close(settings: Settings, tmp_path: pathlib.Path) -> None:
    log = tmp_path / "log"
    async with open_context(dataclasses.replace(settings, log_file=str(log), log_level="info")) as opened:
        opened.bus.publish(Event("the-last", None, None, None, "POST", "/v1/chat/completions"))
        assert opened.metrics.total(opened.metrics.requests) == 1
        assert (await opened.history.totals(SPANS["1h"]))[""].calls == 1
        opened.bus.publish(Event("the-very-last", None, None, None, "POST", "/v1/chat/completions"))
    assert '"request_id":"the-last"' in log.read_text() and '"request_id":"the-very-last"' in log.read_text()
    async with open_database(settings) as database:
        assert (await History(database, lambda _: None, 0).totals(SPANS["1h"]))[""].calls == 2


@on_one
async def test_a_close_while_the_database_is_away_says_what_is_lost(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    async with leaving_nothing(), open_context(settings) as opened:
        await opened.quota.take(await make_token(opened))
        opened.quota._database = Away(opened.database)  # type: ignore[assignment]
    assert "request counts since the last flush are lost" in caplog.text


@pytest.mark.parametrize(
    ("given", "said"),
    [
        pytest.param({"API_CONFIG_PATH": "broken.yaml"}, "broken.yaml", id="profiles that cannot be read"),
        pytest.param({"API_CONFIG_PATH": "absent.yaml"}, "absent.yaml", id="profiles that are not there"),
        pytest.param({"DEFAULT_API_PROVIDER": "nobody"}, "there is no such profile. Known are openai", id="an unknown default"),
        pytest.param({"TRUSTED_PROXIES": "10.0.0.0/99"}, "TRUSTED_PROXIES", id="a network that is none"),
        pytest.param({"SSL_CERT_FILE": "absent.pem"}, "SSL_CERT_FILE", id="certificates that are not there"),
        pytest.param({"DATABASE_PATH": "/proc/house.db"}, "DATABASE_PATH", id="a database that cannot be opened"),
        pytest.param({"LOG_FILE": "/proc/log"}, "LOG_FILE", id="a log that cannot be written"),
    ],
)
async def test_what_cannot_be_opened_stops_the_start_with_its_name_and_closes_the_rest(
    tmp_path: pathlib.Path, given: dict[str, str], said: str
) -> None:
    (tmp_path / "broken.yaml").write_text("apis: [")
    async with leaving_nothing():
        with pytest.raises(StartError, match=said):
            async with open_context(settings_for(tmp_path, **given)):
                raise AssertionError("it must not open")


async def test_doubts_about_the_settings_are_logged(tmp_path: pathlib.Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / ".env").write_text("LISTEN_ADR=:1\n")
    async with open_context(settings_for(tmp_path)):
        pass
    assert "LISTEN_ADR is not a setting; did you mean LISTEN_ADDR?" in caplog.text


def test_profiles_come_from_the_package_unless_there_is_a_file(tmp_path: pathlib.Path) -> None:
    assert "openai" in read_profiles(settings_for(tmp_path)).apis
    (tmp_path / "config").mkdir()
    text = packaged_path().read_text()
    (tmp_path / "config" / "api_providers.yaml").write_text(text.replace("default_api: openai", "default_api: groq"))
    assert read_profiles(settings_for(tmp_path)).default_api == "groq"
    assert read_profiles(settings_for(tmp_path, DEFAULT_API_PROVIDER="mistral")).default_api == "mistral"
    with pytest.raises(SettingsError, match=r"elsewhere\.yaml"):
        read_profiles(settings_for(tmp_path, API_CONFIG_PATH="elsewhere.yaml"))


async def test_a_revocation_ends_the_calls_of_its_token_and_no_others(settings: Settings) -> None:
    async with open_context(settings) as opened:
        token, other = await make_token(opened, name="a"), await make_token(opened, name="b")
        mine, same, theirs = running(opened, token), running(opened, token), running(opened, other)
        await token_acts.revoke(opened, TESTER, token.id)
        await until(lambda: mine.ended and same.ended, 1.0)
        assert [error.code for error in (*mine.ended, *same.ended)] == ["token_inactive"] * 2
        assert theirs.ended == []


async def test_a_deactivation_ends_the_calls_of_its_project(settings: Settings) -> None:
    async with open_context(settings) as opened:
        token, other = await make_token(opened, name="a"), await make_token(opened, name="b")
        mine, theirs = running(opened, token), running(opened, other)
        await project_acts.update(opened, TESTER, token.project_id, {"is_active": False})
        await until(lambda: mine.ended, 1.0)
        assert mine.ended[0].code == "project_inactive"
        assert theirs.ended == []


async def test_a_revocation_elsewhere_ends_calls_here_within_a_second(settings: Settings) -> None:
    async with open_context(settings) as here, open_context(settings) as there:
        token = await make_token(here)
        call = running(here, token)
        await token_acts.revoke(there, TESTER, token.id)
        await until(lambda: call.ended, 1.0)
        assert call.ended[0].code == "token_inactive"


@on_one
async def test_a_change_that_takes_no_permission_ends_nothing(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    async with leaving_nothing(), open_context(settings) as opened:
        token = await make_token(opened)
        call = running(opened, token)
        await token_acts.update(opened, TESTER, token.id, {"name": "another"})
        # A call that had begun may go on after its token has expired; only nothing new begins.
        await opened.database.execute("UPDATE tokens SET expires_at = 1")
        await token_acts.update(opened, TESTER, token.id, {"name": "a third"})
        await project_acts.update(opened, TESTER, token.project_id, {"name": "a project"})
        await until(lambda: not [task for task in asyncio.all_tasks() if task.get_name().startswith("check of")])
        assert call.ended == []
    assert not [record for record in caplog.records if record.levelno >= logging.ERROR]


@on_one
async def test_a_token_whose_row_is_gone_is_revoked(settings: Settings) -> None:
    async with open_context(settings) as opened:
        token = await make_token(opened)
        call = running(opened, token)
        async with opened.changes.changing() as tx:
            await tx.execute("DELETE FROM tokens")
            await acts.changes.record(tx, acts.Change("token", token.id))
        await until(lambda: call.ended, 1.0)
        assert call.ended[0].code == "token_inactive"


@on_one
async def test_a_revocation_is_not_forgotten_because_the_database_went_away(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(context, "RETRY_SECONDS", 0.01)
    async with open_context(settings) as opened:
        token = await make_token(opened)
        calls = [running(opened, token) for _ in range(50)]
        whole, away = opened.database, Away(opened.database)
        opened.database = away  # type: ignore[assignment]
        async with opened.changes.changing() as tx:
            await tokens.update(tx, token.id, {"is_active": False})
            await acts.changes.record(tx, acts.Change("token", token.id))
        await until(lambda: away.asked > 3)
        assert not any(call.ended for call in calls)
        before, away.away = away.asked, False
        await until(lambda: all(call.ended for call in calls), 1.0)
        assert away.asked == before + 1, "many calls of one token cost one question"
        opened.database = whole
